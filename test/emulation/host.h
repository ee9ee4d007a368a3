/* host.h -- what the host sees of the device: memory, launches, streams, events, graphs.

   Device memory is a range of addresses of which no two allocations share a page and none comes twice: a forbidden page
   follows each, and what was freed stays forbidden. All of it is forbidden while the device is not at work.
   A stream is a queue. With EMU_LAZY its operations run when somebody waits, those of several streams in any order that
   events leave open; without, at once. One that needs other processes (nccl.h) is waited for a while, so that the order
   is the seed's and not theirs; then other streams may go first. Blocks of a kernel run on all OS threads, in an order
   drawn from the seed. */
#pragma once
#include "fibers.h"
#include <sched.h>

#define CUDART_VERSION 13000
enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
using cudaDataType = cudaDataType_t;

namespace emu {
inline double now() {                        // seconds
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double clock_ahead = 0;               // seconds that operations claim beyond what they took
// ---- device memory --------------------------------------------------------------------------------------------------
struct Allocation {
    char* p;
    size_t size, before, pages;              // of the whole pages that it lies in; `before` bytes of them precede it
    Place place;
    bool freed = false, open = false;
    void protect(int how) const { mprotect(p - before, pages, how); }
};
// Allocations are opened when the device first touches them, and closed when its work is done.
struct Memory {
    static constexpr size_t PAGE = 4096, RANGE = 64ull << 30;
    char* base = (char*)mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t top = 0, used = 0;
    int at_work = 0;                         // how many operations of the device
    std::vector<Allocation> all;             // by address
    std::vector<size_t> open;                // which of them
    std::vector<std::pair<char*, size_t>> pinned;
    std::recursive_mutex mutex;
    static constexpr bool HANDLES = !ASAN && !TSAN && !MSAN;             // sanitizers have handlers of their own

    static Memory& instance() {
        static Memory* memory = new Memory;
        return *memory;
    }
    Memory() {
        if (base == MAP_FAILED) fail("cannot map %zu bytes for device memory", RANGE);
        struct sigaction action = {};
        action.sa_sigaction = [](int signal, siginfo_t* i, void*) { instance().fault(signal, (char*)i->si_addr); };
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        if (HANDLES) {
            sigaction(SIGSEGV, &action, nullptr);
            sigaction(SIGBUS, &action, nullptr);
        }
    }
    void fault(int signal, char* p) {
        std::lock_guard lock(mutex);
        if (!device(p))
            fail("signal %d at address %p: misaligned vector access, wild pointer or full stack", signal, (void*)p);
        Allocation* a = before(p);
        if (!a) fail("touches device memory before every allocation");
        if (at_work && !a->freed && p < a->p - a->before + a->pages) return unlock(*a);
        fail("touches device memory at offset %td of %zu bytes, %sallocated at %s:%d", p - a->p, a->size,
             a->freed ? "freed, once " : "", a->place.file, a->place.line);
    }
    void unlock(Allocation& a) {
        if (a.freed || std::exchange(a.open, true)) return;
        a.protect(PROT_READ | PROT_WRITE);
        open.push_back(&a - all.data());
    }
    void begin_work() {
        std::lock_guard lock(mutex);
        if (at_work++ == 0 && !HANDLES) for (Allocation& a : all) unlock(a);
    }
    void end_work() {
        std::lock_guard lock(mutex);
        if (--at_work || !settings.hostcheck) return;
        for (size_t i : open) {
            all[i].open = false;
            all[i].protect(PROT_NONE);
        }
        open.clear();
    }
    bool device(const void* p) const { return (char*)p >= base && (char*)p < base + RANGE; }
    Allocation* before(const void* p) {      // the last that begins at or before p
        const auto after = std::upper_bound(all.begin(), all.end(), p, [](auto p, auto& a) { return p < (void*)a.p; });
        return after == all.begin() ? nullptr : &after[-1];
    }
    Allocation* find(const void* p) {        // the one that p points into
        Allocation* a = before(p);
        return a && !a->freed && (char*)p < a->p + a->size ? a : nullptr;
    }
    void* allocate(size_t size, Place place) {
        std::lock_guard lock(mutex);
        const size_t pages = (size + 256 + PAGE - 1) / PAGE * PAGE;
        if (used + size > settings.memory || top + pages + PAGE > RANGE) return nullptr;
        const size_t before = settings.fence ? pages - (size + 15) / 16 * 16 : 0;
        char* p = base + top + before;
        top += pages + PAGE;
        used += size;
        begin_work();
        all.push_back({p, size, before, pages, place});
        unlock(all.back());
        poison(p, size);
        memset(p + size, CANARY, pages - before - size);
        forbid(p + size, pages - before - size);
        end_work();
        return p;
    }
    void release(void* p) {
        std::lock_guard lock(mutex);
        Allocation* a = find(p);
        if (!a || a->p != p) fail("cudaFree(%p): not allocated, or freed before", p);
        begin_work();
        check(*a);
        end_work();
        a->freed = true;
        used -= a->size;
        madvise(a->p - a->before, a->pages, MADV_DONTNEED);
        a->protect(PROT_NONE);
    }
    void check(const Allocation& a) const {  // what lies behind it; with EMU_FENCE, up to 15 bytes
        for (size_t i = a.size; !ASAN && !a.freed && i < a.pages - a.before; i++)
            if ((unsigned char)a.p[i] != CANARY)
                fail("write past the end of device memory, at offset %zu of %zu bytes allocated at %s:%d", i, a.size,
                     a.place.file, a.place.line);
    }
    // What an operation is given must lie within one allocation.
    void check_range(const void* p, size_t size, const char* what) {
        if (!device(p)) return;
        const Allocation* a = find(p);
        if (!a) fail("%s: %p points into no live device allocation", what, p);
        if ((char*)p + size > a->p + a->size)
            fail("%s: %zu bytes at offset %td overrun the %zu bytes allocated at %s:%d", what, size, (char*)p - a->p,
                 a->size, a->place.file, a->place.line);
    }
};
inline Memory& memory() { return Memory::instance(); }
struct AtWork {
    AtWork() { memory().begin_work(); }
    ~AtWork() { memory().end_work(); }
};
inline void check_memory() {                 // whether anything was written behind an allocation
    AtWork at_work;
    for (const Allocation& a : memory().all) memory().check(a);
}

// ---- kernels --------------------------------------------------------------------------------------------------------
// Once for each OS thread: a stack for signals, so that a thread's overflow is told too, and a timer of the OS thread's
// own time, which looks whether control has moved since it last looked: a loop without __nanosleep would keep it.
inline void watch() {
    static thread_local bool watched = false;
    if (!Memory::HANDLES || std::exchange(watched, true)) return;
    static thread_local char stack[1 << 16];
    stack_t signals = {};
    signals.ss_sp = stack;
    signals.ss_size = sizeof stack;
    sigaltstack(&signals, nullptr);
    struct sigaction action = {};
    action.sa_handler = [](int) {
        static thread_local uint64_t seen = ~0ull;
        if (current && std::exchange(seen, turns) == turns)
            fail("runs for more than %ld s without waiting for others; in a loop without __nanosleep?",
                 settings.spin_timeout);
    };
    action.sa_flags = SA_RESTART;
    sigaction(SIGVTALRM, &action, nullptr);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = gettid();
    timer_t timer;
    const itimerspec period = {{settings.spin_timeout, 0}, {settings.spin_timeout, 0}};
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0) timer_settime(timer, 0, &period, nullptr);
}
struct Stats { double seconds = 0; int launches = 0; };
inline void add_stats(const Grid& grid, double seconds) {
    static std::map<std::string, Stats> kernels;
    [[maybe_unused]] static const int at_exit = atexit([] {
        for (const auto& [name, s] : kernels)
            fprintf(stderr, "%10.2f ms %6d launches  %s\n", s.seconds * 1e3, s.launches, name.c_str());
    });
    Stats& s = kernels[kernel_name(grid.kernel)];
    s.launches++;
    s.seconds += seconds;
}

struct Kernel {
    Grid grid;
    std::vector<std::unique_ptr<Gang>> early;                // the first of order(); null: has ended

    // Blocks of a gang, and gangs: each takes `size` blocks one after another, the last may have fewer.
    int size() const {
        if (grid.cooperative) return grid.blocks();
        const int cluster = grid.cluster_size(), most = 2048 / grid.threads() / cluster * cluster;
        return std::max(cluster, std::min({settings.gang() * cluster, most, grid.blocks()}));
    }
    int count() const { return (grid.blocks() + size() - 1) / size(); }
    std::unique_ptr<Gang> gang(int i) const {
        return std::make_unique<Gang>(grid, i * size(), std::min(size(), grid.blocks() - i * size()));
    }
    std::vector<int> order() const {
        std::vector<int> order(count());
        for (int i = 0; i < count(); i++) order[i] = i;
        Random random(settings.seed * 31 + grid.number);
        for (int i = count(); settings.seed && i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
        return order;
    }
    // Programmatic dependent launch: some gangs run up to griddepcontrol.wait before the kernel ahead does.
    void start_early() {
        Unseen unseen;
        AtWork at_work;
        for (int i : order()) {
            early.push_back(gang(i));
            early.back()->may_finish = false;
            if (early.back()->run()) early.back() = nullptr;
            if (early.size() == 4) break;
        }
    }
    void run() {
        const double start = now();
        {
            AtWork at_work;
            emu::release(&grid.number);
            for (auto& g : early) if (Unseen unseen; g) g->run_rest();
            const std::vector<int> order = this->order();
            [[maybe_unused]] const int workers = TSAN ? 1 : settings.workers;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(workers ? workers : omp_get_max_threads()) if (count() > 1)
#endif
            for (size_t i = early.size(); i < order.size(); i++) {
                Unseen unseen;
                watch();
                gang(order[i])->run();
            }
            Unseen unseen;
            early.clear();
        }
        acquire(&grid);
        { Unseen unseen; Gang::bury(0); }
        if (settings.stats) add_stats(grid, now() - start);
    }
};

// ---- streams, events, graphs ----------------------------------------------------------------------------------------
struct Graph;
struct Event {
    uint64_t recorded = 0, done = 0;         // numbers of cudaEventRecord
    double time = 0;
    Graph* capture = nullptr;                // into which it was recorded
};
struct Operation {                           // one of these; library: a kernel of a library's
    Task run;
    std::function<bool(double)> advance;     // with other processes, for so many seconds at most; whether it is done
    std::shared_ptr<const Grid> launch;
    Event *record = nullptr, *wait = nullptr;
    bool library = false;
    uint64_t event_number = 0, number = 0;
    std::shared_ptr<Kernel> kernel = nullptr;                // of a launch, once it has begun
};
struct Graph { std::vector<Operation> operations; };
struct Stream {
    std::deque<Operation> queue;
    bool blocking = true;                    // keeps its order with the default stream
    Graph* capture = nullptr;
};
struct Streams {
    static constexpr double PATIENCE = 0.3;  // seconds
    Stream standard;
    std::vector<Stream*> all{&standard};
    uint64_t operations = 0, launches = 0;
    bool stalled = false;                    // the last operation drawn: other processes let it wait
    Random random{settings.seed + 77};
    size_t lead = 0;                     // which stream goes first for a while, so that others lag as far as they may
    std::recursive_mutex mutex;

    Stream* get(Stream* s) { return s ? s : &standard; }
    bool ahead(const Stream* s, uint64_t number) const { return !s->queue.empty() && s->queue.front().number < number; }
    bool can_run(const Stream* s) const {
        if (s->queue.empty()) return false;
        const Operation& o = s->queue.front();
        if (o.wait && o.wait->done < o.event_number) return false;
        if (s != &standard) return !s->blocking || !ahead(&standard, o.number);
        for (const Stream* t : all) if (t != s && t->blocking && ahead(t, o.number)) return false;
        return true;
    }
    void start(Operation& o) {
        if (!o.launch || o.kernel) return;
        o.kernel = std::make_shared<Kernel>(Kernel{*o.launch, {}});
        o.kernel->grid.number = ++launches;
    }
    void run_next(Stream* s, double patience) {
        const auto& advance = s->queue.front().advance;
        if (stalled = advance && !advance(patience); stalled) return;
        Operation o = std::move(s->queue.front());
        s->queue.pop_front();
        if (o.record) {
            o.record->done = std::max(o.record->done, o.event_number);
            o.record->time = now() + clock_ahead;
        }
        start(o);
        if ((o.launch || o.library) && settings.seed && !s->queue.empty() && s->queue.front().launch) {
            start(s->queue.front());
            if (s->queue.front().launch->dependent) s->queue.front().kernel->start_early();
        }
        if (o.kernel) o.kernel->run();
        if (o.run) { AtWork at_work; o.run(); }
    }
    void turn(double patience) {
        std::vector<Stream*> can;
        for (Stream* s : all) if (can_run(s)) can.push_back(s);
        if (can.empty()) fail("streams wait for an event that nobody records");
        if (settings.seed && random.below(50) == 0) lead = random.below(all.size());
        const auto leader = std::find(can.begin(), can.end(), all[lead % all.size()]);
        if (leader != can.end() && settings.seed && !stalled) run_next(*leader, patience);
        else run_next(can[settings.seed || stalled ? random.below(can.size()) : 0], patience);
    }
    template <typename F> void run_until(F done) {
        if (done()) return;
        AtWork at_work;
        while (!done()) turn(PATIENCE);
    }
    template <typename F> bool query(F done) {               // after one operation at most, which waits for nobody
        std::lock_guard lock(mutex);
        if (done()) return true;
        AtWork at_work;
        turn(0);
        sched_yield();
        return done();
    }
    void not_while_capturing(const char* call) const {
        for (const Stream* s : all) if (s->capture) fail("%s while a stream is being captured", call);
    }
    void wait(Stream* stream) {
        std::lock_guard lock(mutex);
        Stream* s = get(stream);
        if (s->capture) fail("waits for a stream that is being captured");
        run_until([&] { return is_empty(s); });
        if (settings.seed) check_memory();
    }
    void wait_for_all() {
        std::lock_guard lock(mutex);
        run_until([&] { return empty(false); });
        check_memory();
    }
    bool is_empty(Stream* s) const { return s->queue.empty() && (s != &standard || empty(true)); }
    bool empty(bool blocking) const {
        for (const Stream* s : all) if (!s->queue.empty() && (s->blocking || !blocking)) return false;
        return true;
    }
    void push(Stream* stream, Operation o) {
        std::lock_guard lock(mutex);
        Stream* s = get(stream);
        o.number = ++operations;
        if (o.wait && o.wait->capture && !s->capture) s->capture = o.wait->capture;
        if (o.record) o.record->capture = s->capture;
        if (s->capture) {                    // whose order is that of the calls; events add nothing to it
            if (!o.record && !o.wait) s->capture->operations.push_back(std::move(o));
            return;
        }
        s->queue.push_back(std::move(o));
        if (settings.lazy()) return;
        AtWork at_work;
        for (stalled = false; can_run(s) && !stalled;) run_next(s, PATIENCE);
    }
    void push(Stream* s, Task run) {
        Operation o;
        o.run = std::move(run);
        push(s, std::move(o));
    }
};
inline Streams& streams() {
    static Streams* all = new Streams;
    return *all;
}
inline cudaError_t& last_error() {
    static thread_local cudaError_t error = cudaSuccess;
    return error;
}
inline cudaError_t answer(cudaError_t error) { return error ? last_error() = error : error; }
}  // namespace emu

// ---- the CUDA runtime's functions -----------------------------------------------------------------------------------
using cudaStream_t = emu::Stream*;
using cudaEvent_t = emu::Event*;
using cudaGraph_t = emu::Graph*;
using cudaGraphExec_t = emu::Graph*;
inline const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory"
         : e == cudaErrorNotReady ? "device not ready" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return std::exchange(emu::last_error(), cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emu::last_error(); }

template <typename T> cudaError_t cudaMalloc(T** p, size_t n, EMU_PLACE) {
    emu::streams().not_while_capturing("cudaMalloc");
    *p = (T*)emu::memory().allocate(n, place);
    return emu::answer(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
inline cudaError_t cudaFree(void* p) {
    emu::streams().not_while_capturing("cudaFree");
    emu::streams().wait_for_all();
    if (p) emu::memory().release(p);
    return cudaSuccess;
}
template <typename T> cudaError_t cudaMallocHost(T** p, size_t n) {
    *p = (T*)aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    emu::poison(*p, n);
    emu::memory().pinned.push_back({(char*)*p, n});
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
    emu::streams().wait_for_all();
    if (p && !std::erase_if(emu::memory().pinned, [&](auto& one) { return one.first == p; }))
        emu::fail("cudaFreeHost: %p is not allocated, or freed already", p);
    return free(p), cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    *total = emu::settings.memory;
    *available = *total - emu::memory().used;
    return cudaSuccess;
}

namespace emu {
inline bool pageable(const void* p) {        // host memory that is not pinned: no copy of it overlaps with the host
    for (const auto& [begin, size] : memory().pinned) if (p >= begin && p < begin + size) return false;
    return !memory().device(p);
}
inline void check_copy(const void* to, const void* from, size_t n, cudaMemcpyKind kind) {
    memory().check_range(to, n, "copy's destination");
    memory().check_range(from, n, "copy's source");
    for (const auto& [begin, size] : memory().pinned)
        for (const char* p : {(const char*)to, (const char*)from})
            if (p >= begin && p < begin + size && p + n > begin + size)
                fail("copy: %zu bytes at offset %td overrun the %zu pinned ones", n, p - begin, size);
    const auto side = [](bool device) { return device ? "device" : "host"; };
    if (kind != memory().device(to) + 2 * memory().device(from))
        fail("memcpy kind %d does not match the pointers, from %s to %s memory", kind, side(memory().device(from)),
             side(memory().device(to)));
}
}  // namespace emu
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind,
                                   cudaStream_t s = nullptr) {
    emu::check_copy(to, from, n, kind);
    const bool captured = emu::streams().get(s)->capture;
    if (!captured && emu::pageable(from)) {  // the source may change as soon as this returns
        const std::vector<char> staged((const char*)from, (const char*)from + n);
        return emu::streams().push(s, [=] { memcpy(to, staged.data(), n); }), cudaSuccess;
    }
    emu::streams().push(s, [=] { memmove(to, from, n); });
    if (!captured && emu::pageable(to)) emu::streams().wait(s);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, n, kind);
    return emu::streams().wait(nullptr), cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t rows, cudaMemcpyKind kind, cudaStream_t s = nullptr) {
    const auto each_row = [=](auto f) {
        for (size_t i = 0; i < rows; i++) f((char*)to + i * to_pitch, (const char*)from + i * from_pitch);
    };
    each_row([&](char* to, const char* from) { emu::check_copy(to, from, width, kind); });
    emu::streams().push(s, [=] { each_row([&](char* to, const char* from) { memmove(to, from, width); }); });
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s = nullptr) {
    emu::memory().check_range(p, n, "memset");
    if (emu::pageable(p)) emu::fail("memset: %p is the host's memory", p);
    return emu::streams().push(s, [=] { memset(p, value, n); }), cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, size_t n) { return cudaMemsetAsync(p, value, n); }
template <typename T> cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t n, size_t offset = 0) {
    emu::streams().wait_for_all();
    return memcpy((char*)&symbol + offset, from, n), cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    *s = new emu::Stream;
    (*s)->blocking = !(flags & cudaStreamNonBlocking);
    return emu::streams().all.push_back(*s), cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { return emu::streams().wait(s), cudaSuccess; }
inline cudaError_t cudaStreamQuery(cudaStream_t s) {
    emu::streams().not_while_capturing("cudaStreamQuery");
    s = emu::streams().get(s);
    return emu::streams().query([=] { return emu::streams().is_empty(s); }) ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaDeviceSynchronize() {
    emu::streams().not_while_capturing("cudaDeviceSynchronize");
    return emu::streams().wait_for_all(), cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    emu::streams().wait(s);
    std::erase(emu::streams().all, s);
    return delete s, cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = new emu::Event, cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return emu::streams().wait_for_all(), delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr) {
    if (!emu::streams().get(s)->capture) e->recorded++;
    emu::Operation o;
    o.record = e;
    o.event_number = e->recorded;
    return emu::streams().push(s, o), cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    emu::Operation o;
    o.wait = e;
    o.event_number = e->recorded;
    return emu::streams().push(s, o), cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return emu::streams().run_until([=] { return e->done >= e->recorded; }), cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    return emu::streams().query([=] { return e->done >= e->recorded; }) ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    if (from->done < from->recorded || to->done < to->recorded) return emu::answer(cudaErrorNotReady);
    return *ms = float((to->time - from->time) * 1e3), cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s) return emu::answer(cudaErrorStreamCaptureUnsupported);
    return s->capture = new emu::Graph, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    *graph = s->capture;
    for (cudaStream_t t : emu::streams().all) if (t->capture == *graph) t->capture = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
    return *exec = new emu::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    emu::AtWork at_work;
    for (const emu::Operation& o : exec->operations) emu::streams().push(s, o);
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return emu::streams().wait_for_all(), delete exec, cudaSuccess;
}

struct cudaDeviceProp {
    char name[256] = "CUDA emulator";
    size_t totalGlobalMem = emu::settings.memory, sharedMemPerBlock = 48 << 10;
    size_t sharedMemPerBlockOptin = emu::settings.shared_of_block();
    size_t sharedMemPerMultiprocessor = emu::settings.shared();
    int major = emu::settings.capability / 10, minor = emu::settings.capability % 10;
    int multiProcessorCount = emu::settings.processors, warpSize = 32, maxThreadsPerBlock = 1024;
    int maxThreadsPerMultiProcessor = emu::settings.shared() == 100 << 10 ? 1536 : 2048;
    int regsPerBlock = 65536, regsPerMultiprocessor = 65536, l2CacheSize = 50 << 20;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMemoryClockRate = 36, cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return *p = cudaDeviceProp(), cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const cudaDeviceProp p;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMemoryClockRate: *value = 1000000; break;            // kHz
    case cudaDevAttrGlobalMemoryBusWidth: *value = 64; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    }
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* n) { return *n = emu::settings.devices, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// ---- launches -------------------------------------------------------------------------------------------------------
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
    int binaryVersion = emu::settings.capability, ptxVersion = binaryVersion, numRegs = 128, maxThreadsPerBlock = 1024;
    size_t localSizeBytes = 0, sharedSizeBytes = 0;
};
template <typename F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, F*) { return *a = {}, cudaSuccess; }
inline cudaError_t cudaFuncGetName(const char** name, const void* kernel) {
    static std::map<const void*, std::string> names;
    return *name = (names[kernel] = emu::kernel_name(kernel)).c_str(), cudaSuccess;
}
namespace emu {
inline size_t& dynamic_limit(const void* kernel) {           // of its shared memory
    static std::vector<std::pair<const void*, size_t>> limits;
    for (auto& [k, limit] : limits) if (k == kernel) return limit;
    return limits.emplace_back(kernel, 48 << 10).second;
}
}  // namespace emu
template <typename F> cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || (size_t)value > emu::settings.shared_of_block())
        return emu::answer(cudaErrorInvalidValue);
    return emu::dynamic_limit((const void*)kernel) = value, cudaSuccess;
}
template <typename F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, F*, int, size_t) {
    return *n = 1, cudaSuccess;
}
enum cudaLaunchAttributeID {
    cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
union cudaLaunchAttributeValue {
    int cooperative, programmaticStreamSerializationAllowed;
    struct { unsigned x, y, z; } clusterDim;
};
struct cudaLaunchAttribute { cudaLaunchAttributeID id; cudaLaunchAttributeValue val; };
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};
namespace emu {
template <typename T> void check_argument(const T& argument) {
    if constexpr (std::is_pointer_v<T>) {    // one past the end of an allocation will do, as of an empty rest
        const void* p = (const void*)argument;
        if (p && pageable(p)) fail("kernel argument: %p is the host's memory", p);
        if (memory().device(p) && !memory().find((const char*)p - 1)) memory().check_range(p, 0, "kernel argument");
    }
}
}  // namespace emu
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... given) {
    emu::Grid grid;
    grid.grid = config->gridDim;
    grid.block = config->blockDim;
    grid.dynamic = config->dynamicSmemBytes;
    grid.kernel = (const void*)kernel;
    if (emu::dynamic_limit(grid.kernel) > emu::SHARED_UNASKED) grid.limit = emu::settings.shared_of_block();
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttributeValue& v = config->attrs[i].val;
        const cudaLaunchAttributeID id = config->attrs[i].id;
        if (id == cudaLaunchAttributeCooperative) grid.cooperative = v.cooperative;
        else if (id == cudaLaunchAttributeClusterDimension)
            grid.cluster = dim3(v.clusterDim.x, v.clusterDim.y, v.clusterDim.z);
        else grid.dependent = v.programmaticStreamSerializationAllowed;
    }
    if (grid.cluster_size() > 1) emu::needs("a launch of clusters", 90);
    const dim3 g = grid.grid, b = grid.block, c = grid.cluster;
    const size_t limit = emu::dynamic_limit(grid.kernel);
    char wrong[256] = "";
    if (!grid.blocks() || g.x > INT32_MAX || g.y > 65535 || g.z > 65535 || !grid.threads() || grid.threads() > 1024 ||
        b.z > 64)
        snprintf(wrong, sizeof wrong, "bad grid (%u,%u,%u) or block (%u,%u,%u)", g.x, g.y, g.z, b.x, b.y, b.z);
    if (grid.dynamic > limit)
        snprintf(wrong, sizeof wrong, "%zu bytes of dynamic shared memory, more than %zu; cudaFuncSetAttribute?",
                 grid.dynamic, limit);
    if (c.x > 8 || g.x % c.x || c.y != 1 || c.z != 1)
        snprintf(wrong, sizeof wrong, "bad cluster (%u,%u,%u) of a grid (%u,%u,%u)", c.x, c.y, c.z, g.x, g.y, g.z);
    if (*wrong) emu::fail("launch of %s: %s", emu::kernel_name(grid.kernel).c_str(), wrong);
    const std::tuple<std::decay_t<P>...> arguments(std::forward<A>(given)...);
    std::apply([](const auto&... one) { (emu::check_argument(one), ...); }, arguments);
    grid.call = [kernel, arguments] { std::apply(kernel, arguments); };
    emu::Operation o;
    o.launch = std::make_shared<const emu::Grid>(std::move(grid));
    return emu::streams().push(config->stream, std::move(o)), cudaSuccess;
}
