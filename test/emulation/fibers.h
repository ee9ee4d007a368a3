/* fibers.h -- CUDA threads as fibers: stacks of their own, between which control moves only where threads wait.

   A gang is a set of blocks that run together on one OS thread: a block, a cluster, the grid of a cooperative launch,
   or a few blocks that need not meet. One fiber of a gang runs at a time, until it waits for others in a barrier, a
   warp collective, an mbarrier or __nanosleep; then pick() chooses the next. The natural order is first come, first
   served. With a seed it is one of five that programs are not made for: last first, at random, one thread or one warp
   starved, one thread ahead. The last lane to arrive at a collective computes it for all, on their stacks.

   Sections
      1 vector types    2 what sanitizers are told    3 settings    4 threads, warps, blocks    5 errors
      6 switching stacks    7 gang    8 warp collectives    9 barriers    10 life of a thread    11 shared memory     */
#pragma once
#define CUDA_EMU 1
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---- 1. vector types ------------------------------------------------------------------------------------------------
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define EMU_VECTORS(T, name, align2, align4)                                        \
    struct name##1 { T x; };                                                        \
    struct alignas(align2) name##2 { T x, y; };                                     \
    struct name##3 { T x, y, z; };                                                  \
    struct alignas(align4) name##4 { T x, y, z, w; };                               \
    constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                   \
    constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }           \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS
inline constinit thread_local uint3 threadIdx{}, blockIdx{};             // set when a fiber goes on
inline constinit thread_local dim3 blockDim, gridDim;                    // set when a gang does
inline constexpr int warpSize = 32;
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local       // enough while blocks take no turns; SHARED, at the end, always is

// ---- 2. what sanitizers are told ------------------------------------------------------------------------------------
#ifdef __has_feature
#define EMU_FEATURE(name) __has_feature(name)
#else
#define EMU_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || EMU_FEATURE(address_sanitizer)
#define EMU_ASAN(...) __VA_ARGS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define EMU_ASAN(...)
#endif
#if EMU_FEATURE(memory_sanitizer)
#define EMU_MSAN(...) __VA_ARGS__
#include <sanitizer/msan_interface.h>
#else
#define EMU_MSAN(...)
#endif
#if defined(__SANITIZE_THREAD__) || EMU_FEATURE(thread_sanitizer)
#define EMU_TSAN(...) __VA_ARGS__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#else
#define EMU_TSAN(...)
#endif
#define EMU_UNSEEN EMU_TSAN(__attribute__((no_sanitize("thread"))))

namespace emu {
constexpr bool ASAN = false EMU_ASAN(|| true), MSAN = false EMU_MSAN(|| true), TSAN = false EMU_TSAN(|| true);
// The thread sanitizer knows the fibers as threads. What one did before release(p), the one that then calls acquire(p)
// has seen. The emulator's own accesses, in functions marked EMU_UNSEEN and where an Unseen lives, are nobody's;
// reads() and writes() are those that it makes for the current thread.
using Address = const void*;
inline void release([[maybe_unused]] Address p) { EMU_TSAN(__tsan_release((void*)p);) }
inline void acquire([[maybe_unused]] Address p) { EMU_TSAN(__tsan_acquire((void*)p);) }
inline void reads([[maybe_unused]] Address p, [[maybe_unused]] size_t n) { EMU_TSAN(__tsan_read_range((void*)p, n);) }
inline void writes([[maybe_unused]] Address p, [[maybe_unused]] size_t n) { EMU_TSAN(__tsan_write_range((void*)p, n);) }
struct Unseen {
    EMU_UNSEEN Unseen() { EMU_TSAN(AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0);) }
    EMU_UNSEEN ~Unseen() { EMU_TSAN(AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0);) }
};
// The address sanitizer: which memory nobody may touch.
inline void forbid([[maybe_unused]] Address p, [[maybe_unused]] size_t n) {
    EMU_ASAN(ASAN_POISON_MEMORY_REGION(p, n);)
}
inline void permit([[maybe_unused]] Address p, [[maybe_unused]] size_t n) {
    EMU_ASAN(ASAN_UNPOISON_MEMORY_REGION(p, n);)
}

// ---- 3. settings ----------------------------------------------------------------------------------------------------
inline long environment(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtol(value, nullptr, 0) : otherwise;
}
struct Settings {                            // cuda_runtime.h says what they do
    uint64_t seed = environment("EMU_SEED", 0);
    long lazy_asked = environment("EMU_LAZY", -1), gang_asked = environment("EMU_GANG", 0);
    int workers = environment("EMU_WORKERS", 0);
    bool poison = environment("EMU_POISON", 1), strict = environment("EMU_STRICT", 1);
    bool fence = environment("EMU_FENCE", 0), hostcheck = environment("EMU_HOSTCHECK", 1);
    bool stats = environment("EMU_STATS", 0);
    int processors = environment("EMU_SMS", 4), devices = environment("EMU_DEVICES", 1);
    int capability = environment("EMU_CAPABILITY", 90);
    size_t memory = (size_t)environment("EMU_MEM_MB", 8192) << 20;
    long spin_timeout = environment("EMU_SPIN_TIMEOUT", 10), nccl_timeout = environment("EMU_NCCL_TIMEOUT", 30);
    size_t stack = (size_t)environment("EMU_STACK_KB", TSAN ? 64 : ASAN || MSAN ? 256 : 128) << 10;
    bool lazy() const { return lazy_asked < 0 ? seed != 0 : lazy_asked; }
    // bytes of shared memory: of a multiprocessor, and of a block, which has a KB less
    size_t shared() const {
        const bool large = capability >= 90 && capability < 120, less = capability == 80 || capability == 87;
        return (large ? 228 : less ? 164 : 100) << 10;
    }
    size_t shared_of_block() const { return shared() - (1 << 10); }
    int gang() const { return gang_asked ? (int)gang_asked : seed ? 1 + seed % 4 : 1; }
};
inline Settings settings;

struct Random {                              // xorshift64*
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull) {
        next();
        next();
    }
    uint64_t next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state * 0x2545F4914F6CDD1Dull;
    }
    unsigned below(size_t n) { return unsigned((next() >> 32) * n >> 32); }
};
inline void poison(void* p, size_t n) {      // what nobody has written: NaN, in every floating-point format
    if (settings.poison) memset(p, 0xff, n);
    EMU_MSAN(__msan_poison(p, n);)
}

// ---- 4. threads, warps, blocks --------------------------------------------------------------------------------------
struct Place { const char* file; int line; };
#define EMU_PLACE ::emu::Place place = {__builtin_FILE(), __builtin_LINE()}          // of the caller; the last argument
using Task = std::function<void()>;

struct Gang;
struct Block;
struct Warp;
struct Context {                             // of a fiber that does not run, or of the OS thread while one does
    void* sp = nullptr;
    const void* bottom = nullptr;            // of its stack, which the address sanitizer wants to know
    size_t size = 0;
    void *asan = nullptr, *tsan = nullptr;
};
enum class State : uint8_t { NEW, READY, WAITS, ENDED };
struct Copy { void* to; const void* from; int bytes, present; };         // cp.async; beyond those present: zeros
struct Fiber;
struct Bulk {                                // cp.async.bulk from shared to global memory: reads, then writes or adds
    const Fiber* by;
    size_t group;                            // number of the thread's group that it belongs to
    bool add, has_read, released = false;    // released: its thread has waited until it had read
    std::vector<Copy> pieces;
    std::vector<char> data;                  // what it has read
};
struct Fiber {
    uint3 thread{};
    unsigned index = 0, lane = 0;            // in its block, in its warp
    State state = State::NEW;
    bool chosen = false;                     // by the order: starved, or ahead
    Gang* gang = nullptr;
    Block* block = nullptr;
    Warp* warp = nullptr;
    const char* waits_in = nullptr;
    Place place{};
    void* mbarrier = nullptr;                // whose phase it waits for
    unsigned parity = 0;
    Context context;
    char* stack = nullptr;
    std::vector<Copy> copies;                // cp.async in flight, oldest first
    std::vector<size_t> groups;              // how many copies each committed group has
    size_t uncommitted = 0;
    size_t bulk_groups = 0;                  // of cp.async.bulk, that were committed
    bool fenced = false;                     // for the thread sanitizer: since a fence its atomics release,
    std::vector<void*> atomics;              // and these are acquired by the next
};
struct Collective {                          // of those lanes of a warp that mask names
    const char* name = nullptr;              // null: free
    unsigned mask = 0, arrived = 0, number = 0;
    Place place{};
    void* lanes[32];                         // what each brings
};
struct Warp {
    unsigned index = 0, born = 0, live = 0, collectives = 0;             // born, live: lanes
    Fiber* lanes[32]{};
    Collective open[8];
    char sync[16];                           // addresses to release and acquire, one for each collective in turn
    // wgmma: products of the group that is not committed yet; committed groups that are not done, oldest first
    std::vector<Task> products;
    std::deque<std::vector<Task>> groups;
    size_t groups_done = 0;
    std::vector<Fiber*> waiting;
    bool fenced = false;
    char group_sync[8];
    size_t committed() const { return groups_done + groups.size(); }
};
struct Votes { int count = 0; bool all = true, any = false; };
constexpr int EVERYBODY = -1;
struct Barrier {
    int arrived = 0, expected = 0;           // expected: EVERYBODY or a number of threads
    unsigned generation = 0;
    Place place{};
    Votes votes, result;
    std::vector<Fiber*> waiting;
    char sync[2];                            // for generations in turn: a slow thread must not learn of later arrivals
    EMU_UNSEEN void* sync_now() { return &sync[generation % 2]; }
};
constexpr size_t WINDOW = 256 << 10;         // bytes of a block's addresses, the first SHARED_BEGIN not used
constexpr size_t SHARED_BEGIN = 1024, RED_ZONE = 16;
constexpr size_t SHARED_UNASKED = 48 << 10;  // bytes that a kernel has without having asked for more
constexpr unsigned char CANARY = 0x7F;       // fills what lies behind an array and must not change: 3.4e38, 2139062143
struct Array { const void* key; char* p; size_t size; const char* name; };
struct Block {
    uint3 index{};
    unsigned rank = 0, first = 0;            // in its cluster; number in the gang of the cluster's first block
    int threads = 0, live = 0;
    char* shared = nullptr;                  // its window
    size_t used = SHARED_BEGIN, bytes = 0;   // of the window; of arrays
    std::vector<Array> arrays;
    std::vector<void*> mbarriers;
    bool mbarrier_unfenced = false;
    Barrier barriers[16], cluster_barrier;   // the latter: of the cluster's first block
    std::vector<Warp> warps;
};
struct Grid {                                // a launch
    dim3 grid, block, cluster;
    size_t dynamic = 0, limit = SHARED_UNASKED;              // bytes of shared memory; the most with static arrays
    bool cooperative = false, dependent = false;             // dependent: may start before the kernel ahead has ended
    const void* kernel = nullptr;
    Task call;                               // the kernel with its arguments, for one thread
    uint64_t number = 0;
    int blocks() const { return grid.x * grid.y * grid.z; }
    int threads() const { return block.x * block.y * block.z; }
    int cluster_size() const { return cluster.x * cluster.y * cluster.z; }
};
inline constinit thread_local Fiber* current = nullptr;      // the running CUDA thread; null: host code
inline constinit thread_local uint64_t turns = 0;            // how often another became it

// ---- 5. errors ------------------------------------------------------------------------------------------------------
inline std::string kernel_name(const void* kernel) {
    Dl_info info;
    if (!dladdr(kernel, &info) || !info.dli_sname) return "a kernel without a name (link with -rdynamic)";
    int status;
    char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    std::string name = plain ? plain : info.dli_sname;
    free(plain);
    const size_t arguments = name.rfind('(');
    name = name.substr(0, arguments);
    return name.compare(0, 5, "void ") ? name : name.substr(5);
}
const void* current_kernel();
[[noreturn, gnu::format(printf, 1, 2), gnu::noinline]] inline void fail(const char* format, ...) {
    char text[8192], who[512] = "host code";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (current) {
        const uint3 b = current->block->index, t = current->thread;
        snprintf(who, sizeof who, "%s, block (%u,%u,%u), thread (%u,%u,%u)", kernel_name(current_kernel()).c_str(), b.x,
                 b.y, b.z, t.x, t.y, t.z);
    }
    fflush(stdout);
    fprintf(stderr, "error: emulated %s, EMU_SEED=%llu: %s\n", who, (unsigned long long)settings.seed, text);
    EMU_ASAN(__sanitizer_print_stack_trace();)
    _exit(1);
}

// What the card must be to have an instruction; wgmma is Hopper's alone.
inline void needs(const char* instruction, int least, int most = 999) {
    if (settings.capability < least || settings.capability > most)
        fail("%s: this GPU, of compute capability %d.%d, does not have it", instruction, settings.capability / 10,
             settings.capability % 10);
}

// ---- 6. switching stacks --------------------------------------------------------------------------------------------
// emu_switch(&from, to) pushes the registers that a function must keep, leaves the stack pointer in `from` and goes on
// where the stack `to` was left. new_stack() prepares one that goes on at the beginning of a function.
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
asm(R"(
    .pushsection .text
    .weak emu_switch
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .popsection)");
constexpr int SAVED = 8, RETURN = 6;         // words: six registers, the return address, and one that keeps alignment
#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)
asm(R"(
    .pushsection .text
    .weak emu_switch
emu_switch:
    stp x29, x30, [sp, #-160]!; stp x19, x20, [sp, #16]; stp x21, x22, [sp, #32]; stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]; stp x27, x28, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]; ldp x21, x22, [sp, #32]; ldp x23, x24, [sp, #48]; ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]; ldp x29, x30, [sp], #160
    ret
    .popsection)");
constexpr int SAVED = 20, RETURN = 1;        // words: x29, x30 to return to, x19 to x28, d8 to d15
#else
#define EMU_PORTABLE                         // slower: every switch is a system call
inline void emu_switch(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, (ucontext_t*)to);
}
inline void* new_stack(char* bottom, size_t size, void (*entry)()) {
    const size_t own = (sizeof(ucontext_t) + 63) / 64 * 64;              // lies at the stack's end
    ucontext_t* fresh = (ucontext_t*)(bottom + size - own);
    getcontext(fresh);
    fresh->uc_stack.ss_sp = bottom;
    fresh->uc_stack.ss_size = size - own;
    fresh->uc_link = nullptr;
    makecontext(fresh, entry, 0);
    return fresh;
}
#endif
#ifndef EMU_PORTABLE
extern "C" void emu_switch(void** from, void* to);
inline void* new_stack(char* bottom, size_t size, void (*entry)()) {
    void** sp = (void**)(bottom + size) - SAVED;
    std::fill(sp, sp + SAVED, nullptr);
    sp[RETURN] = (void*)entry;
    return sp;
}
#endif
EMU_UNSEEN inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool ends) {
    EMU_ASAN(__sanitizer_start_switch_fiber(ends ? nullptr : &from.asan, to.bottom, to.size);)
    EMU_TSAN(__tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);)
    emu_switch(&from.sp, to.sp);
    EMU_ASAN(__sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);)
}

// ---- 7. gang --------------------------------------------------------------------------------------------------------
// Where blocks and threads lie: one window of shared memory for each block, one after another, and stacks, each behind
// a forbidden page. An OS thread uses them again for its next gang. For the thread sanitizer that would be a race
// between the old owner and the new one, and so there every gang maps its own.
struct Ground {
    static constexpr int WINDOWS = 256, STACKS = 32;         // STACKS are mapped together
    char* windows = map(WINDOWS * WINDOW);
    std::vector<char*> stacks, mapped;       // stacks: those that are free
    static char* map(size_t n) {
        void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) fail("cannot map %zu bytes for stacks or shared memory", n);
        return (char*)p;
    }
    char* take_stack() {
        if (stacks.empty()) {
            mapped.push_back(map(STACKS * settings.stack));
            for (int i = STACKS; i-- > 0;) {
                stacks.push_back(mapped.back() + i * settings.stack);
                if (!TSAN) mprotect(stacks.back(), 4096, PROT_NONE);
            }
        }
        char* stack = stacks.back();
        stacks.pop_back();
        return stack;
    }
    ~Ground() {
        for (char* p : mapped) munmap(p, STACKS * settings.stack);
        permit(windows, WINDOWS * WINDOW);
        munmap(windows, WINDOWS * WINDOW);
    }
};
inline std::vector<std::unique_ptr<Ground>>& grounds() {
    static thread_local std::vector<std::unique_ptr<Ground>> free;
    return free;
}

// What one thread of a gang, drawn by the seed, has stored to shared memory since its last fence.proxy.async: what has
// changed there while it ran. Where a product or a copy from shared memory finds such a word, a fence is missing. Only
// a kernel's first gang is watched, unless that has such products or copies: the other kernels are to stay as fast.
struct Watch {
    static constexpr bool POSSIBLE = !ASAN && !MSAN && !TSAN;
    const Fiber* thread = nullptr;           // null: nobody
    std::vector<std::vector<char>> before;   // the block's arrays, when the thread went on
    std::map<const char*, uint32_t> stored;  // what is not fenced: words, and where
    bool asked = false;                      // whether the kernel has products or copies from shared memory

    static bool wanted(const void* kernel, const bool* asked = nullptr) {            // asked: of a gang that has ended
        static std::map<const void*, bool> known;
        static std::mutex mutex;
        std::lock_guard lock(mutex);
        if (asked) known[kernel] |= *asked;
        const auto it = known.find(kernel);
        return it == known.end() || it->second;
    }
    void goes_on() {
        const std::vector<Array>& arrays = thread->block->arrays;
        before.resize(arrays.size());
        for (size_t i = 0; i < arrays.size(); i++) before[i].assign(arrays[i].p, arrays[i].p + arrays[i].size);
    }
    void stops() {
        const std::vector<Array>& arrays = thread->block->arrays;
        before.resize(arrays.size());
        for (size_t i = 0; i < arrays.size(); i++) {
            const Array& a = arrays[i];
            std::vector<char>& old = before[i];
            if (old.empty()) old.assign(a.size, (char)0xff);             // it was not there yet
            for (size_t at = 0, piece = 256; at < a.size; at += piece) {
                const size_t end = std::min(at + piece, a.size);
                if (!memcmp(a.p + at, &old[at], end - at)) continue;     // as most
                for (size_t k = at; k + 4 <= end; k += 4)
                    if (const uint32_t now = word(a.p + k); now != word(&old[k])) stored[a.p + k] = now;
            }
        }
    }
    void fence(const Fiber* by) {
        if (thread != by) return;
        stored.clear();
        goes_on();
    }
    void forget(const char* p, size_t n) { stored.erase(stored.lower_bound(p), stored.lower_bound(p + n)); }
    void fills(const Fiber* by, char* p, size_t n) {         // a copy in flight does, not the thread that began it
        memset(p, 0xff, n);
        forget(p, n);
        if (thread != by) return;
        const std::vector<Array>& arrays = thread->block->arrays;
        for (size_t i = 0; i < before.size(); i++)
            if (p >= arrays[i].p && p < arrays[i].p + before[i].size()) memset(&before[i][p - arrays[i].p], 0xff, n);
    }
    bool found(const Fiber* by) {            // whether there is anything not fenced for a product or copy to find
        asked = true;
        if (thread && thread == by) {
            stops();
            goes_on();
        }
        return !stored.empty();
    }
    void check(const void* from, size_t n, const char* what) const {
        const char* p = (const char*)from;
        for (auto it = stored.lower_bound(p); it != stored.end() && it->first < p + n; ++it)
            if (word(it->first) == it->second)               // and nobody has stored something else since
                fail("%s: reads what thread %u of the block stored to shared memory, with no fence.proxy.async since",
                     what, thread->index);
    }
    static uint32_t word(const char* p) { uint32_t x; memcpy(&x, p, 4); return x; }
};
struct Gang {
    const Grid& grid;
    std::unique_ptr<Ground> ground;
    std::vector<Fiber> fibers;
    std::vector<Block> blocks;
    std::vector<Fiber*> ready;               // from `head` on
    size_t head = 0;
    std::vector<Fiber*> later;               // in a loop that waits: they go on when nobody else can, so that it ends
    std::vector<Task> copies;                // TMA in flight, to shared memory
    std::vector<Bulk> bulks;                 // and from it
    bool may_finish = true;                  // false: the kernel ahead is still at work, and
    std::vector<Fiber*> parked;              // griddepcontrol.wait puts threads here
    int live;
    unsigned spins = 0;                      // of threads in loops, since one has got further
    std::chrono::steady_clock::time_point spins_since;
    Context outside;                         // of the OS thread
    Watch watch;
    Random random;
    enum Policy { NATURAL, LAST_FIRST, AT_RANDOM, THREAD_STARVED, WARP_STARVED, THREAD_AHEAD } policy;
    size_t victim;
    bool early;                              // copies in flight may complete before everyone waits

    Gang(const Grid& grid, int first, int n)
        : grid(grid), fibers(n * grid.threads()), blocks(n), live(n * grid.threads()),
          random(settings.seed ? settings.seed * 1000003 + grid.number * 7919 + first + 1 : 1),
          policy(settings.seed ? Policy(1 + random.below(5)) : NATURAL), victim(random.below(live)),
          early(settings.seed && random.below(2)) {
        if (grounds().empty() || TSAN) ground = std::make_unique<Ground>();
        else {
            ground = std::move(grounds().back());
            grounds().pop_back();
        }
        if (n > Ground::WINDOWS)
            fail("launch of %s: %d blocks are too many to run together", kernel_name(grid.kernel).c_str(), n);
        ready.reserve(live);
        const unsigned threads = grid.threads(), together = grid.cooperative ? n : grid.cluster_size();
        const dim3 g = grid.grid, d = grid.block;
        for (int b = 0; b < n; b++) {
            Block& block = blocks[b];
            const unsigned i = first + b;
            block.index = {i % g.x, i / g.x % g.y, i / g.x / g.y};
            block.rank = b % together;                                   // clusters lie along x
            block.first = b - block.rank;
            block.threads = block.live = threads;
            block.shared = ground->windows + b * WINDOW;
            forbid(block.shared, WINDOW);
            block.warps.resize((threads + 31) / 32);
            for (unsigned t = 0; t < threads; t++) {
                Fiber& f = fibers[b * threads + t];
                f.thread = {t % d.x, t / d.x % d.y, t / d.x / d.y};
                f.index = t;
                f.lane = t % 32;
                f.gang = this;
                f.block = &block;
                f.warp = &block.warps[t / 32];
                f.warp->index = t / 32;
                f.warp->lanes[f.lane] = &f;
                f.warp->live = f.warp->born |= 1u << f.lane;
                const size_t number = b * threads + t;
                f.chosen = policy == THREAD_STARVED ? number == victim
                         : policy == WARP_STARVED ? number / 32 == victim / 32 : t == victim % threads;
                ready.push_back(&f);
                EMU_TSAN(f.context.tsan = __tsan_create_fiber(0);)       // it has seen what its creator has, the host
            }
        }
        if (Watch::POSSIBLE && settings.poison && Watch::wanted(grid.kernel))
            watch.thread = &fibers[Random(settings.seed * 31 + grid.number * 7919 + first).below(live)];
    }
    ~Gang() {
        if (Watch::POSSIBLE) Watch::wanted(grid.kernel, &watch.asked);
        if (!TSAN) grounds().push_back(std::move(ground));
    }

    void make_ready(Fiber* f) { f->state = State::READY, ready.push_back(f); }
    void make_ready(std::vector<Fiber*>& all) {
        for (Fiber* f : all) make_ready(f);
        all.clear();
    }
    // bulks[i] reads its source; the next time, it writes what it has read, or adds it number by number, and is done.
    void advance(size_t i) {
        Bulk& b = bulks[i];
        char* data = b.data.data();
        if (!b.has_read) {
            for (const Copy& c : b.pieces)
                b.data.insert(b.data.end(), (const char*)c.from, (const char*)c.from + c.bytes);
            b.has_read = true;
            return;
        }
        for (const Copy& c : b.pieces) {
            if (!b.add) memcpy(c.to, data, c.bytes);
            for (int k = 0; b.add && k < c.bytes / 4; k++)
                std::atomic_ref<float>(((float*)c.to)[k]).fetch_add(((const float*)data)[k]);
            data += c.bytes;
        }
        bulks.erase(bulks.begin() + i);
    }
    // Who is next; null if nobody can go on. Copies in flight complete here, late; in half of the gangs with a seed,
    // some early.
    Fiber* pick() {
        for (;;) {
            const size_t n = ready.size() - head;
            if (!copies.empty() && (n == 0 || (early && random.below(16) == 0))) {
                const size_t i = settings.seed ? random.below(copies.size()) : 0;
                const Task copy = std::move(copies[i]);
                copies.erase(copies.begin() + i);
                copy();
            } else if (!bulks.empty() && (n == 0 || (early && random.below(16) == 0))) {
                advance(settings.seed ? random.below(bulks.size()) : 0);
            } else if (!later.empty() && n == 0) {
                ready.insert(ready.end(), later.begin(), later.end());
                later.clear();
            } else if (!later.empty() && settings.seed && random.below(8) == 0) {
                std::swap(later[random.below(later.size())], later.back());
                ready.push_back(later.back());
                later.pop_back();
            } else return n ? take(choose(n)) : nullptr;
        }
    }
    size_t choose(size_t n) {
        if (policy == NATURAL) return head;
        if (policy == LAST_FIRST) return ready.size() - 1;
        if (policy == THREAD_AHEAD)
            for (size_t i = head; i < ready.size(); i++) if (ready[i]->chosen) return i;
        size_t i = head + random.below(n);
        if (policy == THREAD_STARVED || policy == WARP_STARVED)
            for (size_t k = 0; k < n && ready[i]->chosen; k++) i = i + 1 == ready.size() ? head : i + 1;
        return i;
    }
    Fiber* take(size_t i) {
        Fiber* f = ready[i];
        if (policy != NATURAL) {
            ready[i] = ready.back();
            ready.pop_back();
        } else if (++head > 4096 && head * 2 > ready.size()) {
            ready.erase(ready.begin(), ready.begin() + head);
            head = 0;
        }
        return f;
    }
    static void life();
    void enter(Fiber* f) {                   // what is to be set before a switch to it
        turns++;
        if (f->state == State::NEW) {
            f->stack = ground->take_stack();
            f->context.sp = new_stack(f->stack, settings.stack, life);
            f->context.bottom = f->stack;
            f->context.size = settings.stack;
        }
        be(f);
        if (f == watch.thread) watch.goes_on();
    }
    EMU_UNSEEN static void be(Fiber* f) { current = f, threadIdx = f->thread, blockIdx = f->block->index; }
    EMU_UNSEEN static void be_outside() { current = nullptr; }

    // The current fiber stops, another goes on, or the OS thread if none can.
    void leave() {
        Unseen unseen;
        Fiber* me = current;
        if (me == watch.thread) watch.stops();
        Fiber* next = pick();
        if (next == me) {
            me->state = State::READY;
            if (me == watch.thread) watch.goes_on();
            return;
        }
        if (next) enter(next);
        switch_context(me->context, next ? next->context : outside, false);
    }
    void wait(const char* in, Place place) {
        Unseen unseen;
        current->waits_in = in;
        current->place = place;
        current->state = State::WAITS;
        spins = 0;
        leave();
    }
    void let_others() {                      // before it tries again what it waits for in a loop, or goes on
        Unseen unseen;
        constexpr unsigned OFTEN = 1 << 16;  // looks at the clock only once in a while
        if (++spins % OFTEN == 0) {
            const auto now = std::chrono::steady_clock::now();
            if (spins == OFTEN) spins_since = now;
            else if (now - spins_since > std::chrono::seconds(settings.spin_timeout))
                fail("waits in a loop for more than %ld s; for a block that does not run? Cooperative launches run all",
                     settings.spin_timeout);
        } else if (ready.size() == head && later.empty() && copies.empty() && bulks.empty()) return;     // no others
        current->state = State::READY;
        later.push_back(current);
        leave();
    }
    // Runs all threads to their ends; false if the kernel ahead is still at work and all that are left wait for it.
    bool run() {
        Unseen unseen;
        blockDim = grid.block;
        gridDim = grid.grid;
        while (Fiber* next = pick()) {
            enter(next);
            EMU_TSAN(outside.tsan = __tsan_get_current_fiber();)
            switch_context(outside, next->context, false);
            be_outside();
            bury(4000);
        }
        if (live && live != (int)parked.size()) deadlock();
        return live == 0;
    }
    void run_rest() {                        // the kernel ahead has ended
        may_finish = true;
        make_ready(parked);
        run();
    }
    // The thread sanitizer gives numbers of destroyed fibers to new ones, and takes both for one that cannot race with
    // itself: so they are destroyed late.
    static std::vector<void*>& dead() {
        static auto* all = new std::vector<void*>;
        return *all;
    }
    static void bury(size_t beyond) {
        if (dead().size() <= beyond) return;
        EMU_TSAN(for (void* fiber : dead()) __tsan_destroy_fiber(fiber);)
        dead().clear();
    }
    [[noreturn]] void deadlock() {
        std::string text;
        const auto add = [&](const char* format, auto... arguments) {
            char line[512];
            snprintf(line, sizeof line, format, arguments...);
            text += line;
        };
        const Fiber* last = nullptr;
        int alike = 0;                       // one after another that wait in the same place: shown together
        for (Fiber& f : fibers) {
            const Block& b = *f.block;
            if (f.index == 0)
                add("\n  block (%u,%u,%u): %d of %d threads have ended", b.index.x, b.index.y, b.index.z,
                    b.threads - b.live, b.threads);
            if (f.state != State::WAITS) continue;
            alike = last && last->block == &b && last->place.line == f.place.line ? alike + 1 : 1;
            if (alike == 1) add("\n    in %s at %s:%d: thread", f.waits_in, f.place.file, f.place.line);
            if (alike < 12) add(" %u", f.index);
            if (alike == 12) text += " ...";
            last = &f;
            be(&f);
        }
        for (const Block& block : blocks)
            for (const Warp& warp : block.warps)
                for (const Collective& c : warp.open)
                    if (c.name) add("\n    warp %u, %s at %s:%d: mask %08x, only %08x arrived", warp.index, c.name,
                                    c.place.file, c.place.line, c.mask, c.arrived);
        fail("deadlock: all threads that are left wait%s", text.c_str());
    }
};
inline const void* current_kernel() { return current->gang->grid.kernel; }
// After a meeting any of those who met may be the first to go on.
inline void mix() {
    if (settings.seed) {
        current->gang->make_ready(current);
        current->gang->leave();
    }
}

// ---- 8. warp collectives --------------------------------------------------------------------------------------------
// Every lane of the mask brings a P. The last one to come calls all(P* const* lanes, unsigned arrived), which computes
// for every lane, and lets the others go on. If `orders`, what lanes did before is seen by the others after.
inline Collective& arrive(unsigned mask, const char* name, void* lane, Place place, bool& last) {
    const unsigned me = current->lane;
    Warp& warp = *current->warp;
    const unsigned ended = mask & warp.born & ~warp.live;
    if (!(mask >> me & 1))
        fail("%s at %s:%d: lane %u is not in its own mask %08x", name, place.file, place.line, me, mask);
    if (settings.strict && ended)
        fail("%s at %s:%d: mask %08x names lanes that have ended, %08x", name, place.file, place.line, mask, ended);
    Collective *c = nullptr, *unused = nullptr;
    for (Collective& i : warp.open) {
        if (!i.name) unused = unused ? unused : &i;
        else if (i.mask == mask && !(i.arrived >> me & 1)) { c = &i; break; }
    }
    if (!c) {
        if (!unused) fail("%s at %s:%d: a warp has too many open collectives", name, place.file, place.line);
        c = unused;
        c->name = name;
        c->mask = mask;
        c->arrived = 0;
        c->place = place;
        c->number = warp.collectives++;
    }
    if ((c->name != name && strcmp(c->name, name)) || (settings.strict && c->place.line != place.line))
        fail("lanes of one warp are in different places: %s at %s:%d and %s at %s:%d, mask %08x", c->name,
             c->place.file, c->place.line, name, place.file, place.line, mask);
    c->arrived |= 1u << me;
    c->lanes[me] = lane;
    last = c->arrived == (mask & warp.live);
    return *c;
}
inline void complete(Collective& c, Warp& warp) {
    c.name = nullptr;
    for (unsigned left = c.arrived; left; left &= left - 1) {
        Fiber* f = warp.lanes[std::countr_zero(left)];
        if (f != current) f->gang->make_ready(f);
    }
}
template <typename P, typename F>
void collective(unsigned mask, const char* name, Place place, P* lane, F all, bool orders = false) {
    void* sync;
    {
        Unseen unseen;
        bool last;
        Collective& c = arrive(mask, name, lane, place, last);
        sync = &current->warp->sync[c.number % 16];
        if (orders) release(sync);
        if (last) {
            all((P* const*)c.lanes, c.arrived);
            complete(c, *current->warp);
            mix();
        } else current->gang->wait(name, place);
    }
    if (orders) acquire(sync);
}
constexpr unsigned WHOLE_WARP = 0xffffffff;
template <typename P, typename F> void whole_warp(const char* name, Place place, P* lane, F all) {
    collective(WHOLE_WARP, name, place, lane, [&](P* const* lanes, unsigned arrived) {
        if (arrived != WHOLE_WARP) fail("%s at %s:%d by a part of a warp, %08x", name, place.file, place.line, arrived);
        all(lanes);
    });
}

// ---- 9. barriers ----------------------------------------------------------------------------------------------------
inline void complete(Barrier& b, Gang& gang) {
    b.result = b.votes;
    b.votes = Votes();
    b.arrived = 0;
    b.generation++;
    gang.make_ready(b.waiting);
}
// One thread more at a barrier that `expected` must reach; it waits there or goes on (bar.arrive).
inline void join(Barrier& b, int expected, int needed, const char* name, Place place, bool waits) {
    void* sync = b.sync_now();
    release(sync);
    {
        Unseen unseen;
        if (b.arrived && b.expected != expected)
            fail("%s at %s:%d: for %d threads, but at %s:%d for %d", name, place.file, place.line, expected,
                 b.place.file, b.place.line, b.expected);
        b.expected = expected;
        b.place = place;
        b.arrived++;
        if (b.arrived == needed) {
            complete(b, *current->gang);
            if (waits) mix();
        } else if (waits) b.waiting.push_back(current), current->gang->wait(name, place);
    }
    if (waits) acquire(sync);
}
inline const Votes& block_barrier(bool vote, Place place) {
    Barrier& b = current->block->barriers[0];
    {
        Unseen unseen;
        const Block& block = *current->block;
        if (settings.strict && b.arrived && b.place.line != place.line)
            fail("divergent __syncthreads: %s:%d and %s:%d", b.place.file, b.place.line, place.file, place.line);
        if (settings.strict && block.live < block.threads)
            fail("__syncthreads at %s:%d after %d threads of the block have ended", place.file, place.line,
                 block.threads - block.live);
        b.votes.count += vote;
        b.votes.all &= vote;
        b.votes.any |= vote;
    }
    join(b, EVERYBODY, current->block->live, "__syncthreads", place, true);
    return b.result;
}
inline void named_barrier(int number, int threads, Place place, bool waits) {
    if (threads <= 0 || threads % 32)
        fail("barrier %d at %s:%d: %d threads are not whole warps", number, place.file, place.line, threads);
    join(current->block->barriers[number], threads, threads, waits ? "bar.sync" : "bar.arrive", place, waits);
}
inline int live_in_cluster() {
    int live = 0;
    for (const Block& block : current->gang->blocks) live += block.first == current->block->first ? block.live : 0;
    return live;
}
inline Barrier& cluster_barrier() { return current->gang->blocks[current->block->first].cluster_barrier; }
inline void barrier_cluster(EMU_PLACE) {     // of all blocks, in a cooperative launch
    int live;
    { Unseen unseen; live = live_in_cluster(); }
    join(cluster_barrier(), EVERYBODY, live, "barrier.cluster", place, true);
}

// ---- 10. life of a thread -------------------------------------------------------------------------------------------
inline void end_thread() {
    Fiber& f = *current;
    Block& block = *f.block;
    Warp& warp = *f.warp;
    if (settings.strict && f.copies.size()) fail("ends with %zu copies of cp.async in flight", f.copies.size());
    f.state = State::ENDED;
    f.gang->spins = 0;
    f.gang->live--;
    block.live--;
    warp.live &= ~(1u << f.lane);
    if (block.live == 0 && !ASAN)
        for (const Array& a : block.arrays)
            for (size_t i = a.size; i < a.size + RED_ZONE; i++)
                if ((unsigned char)a.p[i] != CANARY)
                    fail("write past the end of shared array %s: offset %zu of %zu bytes", a.name, i, a.size);
    for (const Bulk& b : f.gang->bulks)
        if (settings.strict && block.live == 0 && b.by->block == &block && !b.has_read)
            fail("the block ends before a bulk copy of thread %u has read its shared memory", b.by->index);
    if (settings.strict && warp.live == 0 && (warp.products.size() || warp.groups.size()))
        fail("the warp ends with wgmma in flight");
    Barrier& b = block.barriers[0];
    if (settings.strict && b.arrived)
        fail("ends while others wait in __syncthreads at %s:%d", b.place.file, b.place.line);
    if (b.arrived && b.arrived == block.live) complete(b, *f.gang);
    Barrier& c = cluster_barrier();
    if (c.arrived && c.arrived == live_in_cluster()) complete(c, *f.gang);
    for (Collective& open : warp.open) {
        if (!open.name || open.arrived != (open.mask & warp.live)) continue;
        if (settings.strict)
            fail("ends while %s at %s:%d waits for its lane %u, mask %08x", open.name, open.place.file, open.place.line,
                 f.lane, open.mask);
        complete(open, warp);
    }
}
// A stack whose thread has ended takes the next one that is to begin, with no switch at all: most kernels never wait,
// and their threads run in a loop. (The thread sanitizer would see a race between them.)
EMU_UNSEEN inline void Gang::life() {
    [[maybe_unused]] Context& outside = current->gang->outside;
    EMU_ASAN(__sanitizer_finish_switch_fiber(nullptr, &outside.bottom, &outside.size);)
    for (;;) {
        Fiber* f = current;
        Gang* gang = f->gang;
        gang->grid.call();
        release(&gang->grid);
        Fiber* next;
        {
            Unseen unseen;
            if (f == gang->watch.thread) gang->watch.stops();
            end_thread();
            next = gang->pick();
            if (!TSAN && next && next->state == State::NEW) {
                next->state = State::READY;
                next->stack = f->stack;
                next->context.bottom = f->stack;
                next->context.size = settings.stack;
                turns++;
                be(next);
                if (next == gang->watch.thread) gang->watch.goes_on();
                continue;
            }
            if (TSAN) dead().push_back(f->context.tsan);
            else gang->ground->stacks.push_back(f->stack);
            if (next) gang->enter(next);
        }
        switch_context(f->context, next ? next->context : gang->outside, true);
        __builtin_trap();
    }
}

// ---- 11. shared memory ----------------------------------------------------------------------------------------------
// An array gets its place in the block's window when the first thread meets its declaration. If `barely`, it is aligned
// as was asked for and no better: what needs more shows.
inline char* shared_array(const void* key, size_t size, size_t align, const char* name, bool barely) {
    Unseen unseen;
    Block& block = *current->block;
    for (const Array& a : block.arrays) if (a.key == key) return a.p;
    size_t at = (block.used + align - 1) / align * align;
    if (barely && at / align % 2 == 0) at += align;
    if (at + size > SHARED_BEGIN + settings.shared())
        fail("more than %zu bytes of shared memory", settings.shared_of_block());
    block.used = at + size + RED_ZONE;
    block.bytes += size;
    if (const size_t limit = key ? SHARED_UNASKED : current->gang->grid.limit; size > limit)
        fail("shared array %s of %zu bytes, more than %zu", name, size, limit);
    if (block.bytes > current->gang->grid.limit)
        fail("%zu bytes of shared memory with array %s, more than %zu; cudaFuncSetAttribute?", block.bytes, name,
             current->gang->grid.limit);
    char* p = block.shared + at;
    if (!ASAN) memset(p + size, CANARY, RED_ZONE);
    permit(p, size);
    poison(p, size);
    block.arrays.push_back({key, p, size, name});
    return p;
}
inline unsigned char* dynamic_array(size_t align) {
    return (unsigned char*)shared_array(nullptr, current->gang->grid.dynamic, align, "of dynamic size", true);
}
// Addresses in the shared window have 32 bits: the number of the block in its gang, and 24 bits in its window.
inline uint32_t shared_address(const void* p) {
    const Gang& gang = *current->gang;
    const size_t at = (const char*)p - gang.ground->windows;
    if ((const char*)p < gang.ground->windows || at >= gang.blocks.size() * WINDOW)
        fail("%p is not an address of shared memory", p);
    return uint32_t(at / WINDOW << 24 | at % WINDOW);
}
EMU_UNSEEN inline Block& owner(uint32_t address) {
    Gang& gang = *current->gang;
    if (address >> 24 >= gang.blocks.size() || (address & 0xffffff) >= WINDOW)
        fail("%08x is not an address of shared memory", address);
    Block& block = gang.blocks[address >> 24];
    if (block.live == 0) fail("uses the shared memory of block %u of its cluster, which has ended", block.rank);
    return block;
}
EMU_UNSEEN inline char* shared_pointer(uint32_t address) { return owner(address).shared + (address & 0xffffff); }
}  // namespace emu

// An array in shared memory, and the one whose size is the launch's.
#define SHARED(name, ...)                                                                                              \
    static char name##_key;                                                                                            \
    std::type_identity_t<__VA_ARGS__>& name = *reinterpret_cast<std::type_identity_t<__VA_ARGS__>*>(                   \
        ::emu::shared_array(&name##_key, sizeof(std::type_identity_t<__VA_ARGS__>),                                    \
                            std::max<size_t>(4, alignof(std::type_identity_t<__VA_ARGS__>)), #name, false))
#define SHARED_DYN(name, align) unsigned char* name = ::emu::dynamic_array(align)
