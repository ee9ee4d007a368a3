/* device.h -- CUDA's device functions, and what the PTX instructions of every GPU since sm_80 do (namespace emu, named
   after the instruction): barriers, shuffles, atomics, cp.async, ldmatrix, mma, griddepcontrol. */
#pragma once
#include "host.h"

// ---- barriers and fences --------------------------------------------------------------------------------------------
inline void __syncthreads(EMU_PLACE) { emu::block_barrier(false, place); }
inline int __syncthreads_count(int vote, EMU_PLACE) { return emu::block_barrier(vote, place).count; }
inline int __syncthreads_and(int vote, EMU_PLACE) { return emu::block_barrier(vote, place).all; }
inline int __syncthreads_or(int vote, EMU_PLACE) { return emu::block_barrier(vote, place).any; }
inline void __syncwarp(unsigned mask = emu::WHOLE_WARP, EMU_PLACE) {
    emu::collective(mask, "__syncwarp", place, (char*)nullptr, [](auto, unsigned) {}, true);
}
inline void __nanosleep(unsigned) { emu::current->gang->let_others(); }
// To the thread sanitizer: what the thread's atomics before the fence have read happened before it, and what it did
// before the fence happened before its atomics after.
inline void __threadfence() {
    if (!emu::TSAN) return std::atomic_thread_fence(std::memory_order_seq_cst);
    emu::Unseen unseen;
    emu::current->fenced = true;
    for (void* p : emu::current->atomics) emu::acquire((char*)p + 1);
    emu::current->atomics.clear();
}
inline void __threadfence_block() { std::atomic_signal_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { __threadfence(); }
[[noreturn]] inline void __trap() { emu::fail("__trap()"); }

// ---- shuffles, votes, reductions ------------------------------------------------------------------------------------
namespace emu {
struct Shuffle { uint64_t value, result; int from; };
template <typename T> T shuffle(unsigned mask, T x, int from, const char* name, Place place) {
    static_assert(sizeof x <= 8 && std::is_trivially_copyable_v<T>);
    Shuffle lane = {0, 0, from};
    memcpy(&lane.value, &x, sizeof x);
    collective(mask, name, place, &lane, [](Shuffle* const* lanes, unsigned arrived) {
        for (unsigned left = arrived; left; left &= left - 1) {
            Shuffle& me = *lanes[std::countr_zero(left)];
            if (!(arrived >> me.from & 1))
                fail("warp shuffle reads lane %d, which does not take part, among %08x", me.from, arrived);
            me.result = lanes[me.from]->value;
        }
    });
    memcpy(&x, &lane.result, sizeof x);
    return x;
}
template <typename T, typename F> T reduce(unsigned mask, T x, const char* name, Place place, F f) {
    collective(mask, name, place, &x, [f](T* const* lanes, unsigned arrived) {
        T all = *lanes[std::countr_zero(arrived)];
        for (unsigned left = arrived & (arrived - 1); left; left &= left - 1)
            all = f(all, *lanes[std::countr_zero(left)]);
        for (unsigned left = arrived; left; left &= left - 1) *lanes[std::countr_zero(left)] = all;
    });
    return x;
}
inline unsigned ballot(unsigned mask, bool vote, const char* name, Place place) {
    return reduce(mask, unsigned(vote) << current->lane, name, place, std::bit_or<unsigned>());
}
inline bool elect_sync(EMU_PLACE) {
    return std::countr_zero(ballot(WHOLE_WARP, true, "elect.sync", place)) == (int)current->lane;
}
}  // namespace emu
// Lane l takes x of lane `from`; one of another segment of `width` lanes is out of bounds, and it keeps its own.
#define EMU_SHUFFLE(name, Distance, from, inside)                                              \
    template <typename T> T name(unsigned mask, T x, Distance d, int width = 32, EMU_PLACE) {  \
        const int l = emu::current->lane, first = l & ~(width - 1), last = l | (width - 1);    \
        const int s = from;                                                                    \
        (void)first, (void)last;                                                               \
        return emu::shuffle(mask, x, inside ? s : l, #name, place);                            \
    }
EMU_SHUFFLE(__shfl_sync, int, first | (d & (width - 1)), true)
EMU_SHUFFLE(__shfl_xor_sync, int, l ^ d, s <= last)
EMU_SHUFFLE(__shfl_down_sync, unsigned, l + (int)d, s <= last)
EMU_SHUFFLE(__shfl_up_sync, unsigned, l - (int)d, s >= first)
#undef EMU_SHUFFLE
#define EMU_REDUCE(name, expression)                                                           \
    template <typename T> T name(unsigned mask, T x, EMU_PLACE) {                              \
        return emu::reduce(mask, x, #name, place, [](T a, T b) { return T(expression); });     \
    }
EMU_REDUCE(__reduce_add_sync, a + b)
EMU_REDUCE(__reduce_min_sync, std::min(a, b))
EMU_REDUCE(__reduce_max_sync, std::max(a, b))
EMU_REDUCE(__reduce_and_sync, a & b)
EMU_REDUCE(__reduce_or_sync, a | b)
EMU_REDUCE(__reduce_xor_sync, a ^ b)
#undef EMU_REDUCE
#define EMU_VOTE(T, name, vote, result) \
    inline T name(unsigned mask, int x, EMU_PLACE) { return emu::ballot(mask, vote, #name, place) result; }
EMU_VOTE(unsigned, __ballot_sync, x, )
EMU_VOTE(int, __any_sync, x, != 0)
EMU_VOTE(int, __all_sync, !x, == 0)
#undef EMU_VOTE
inline unsigned __activemask() { return emu::current->warp->live; }

// ---- atomics --------------------------------------------------------------------------------------------------------
namespace emu {
template <typename T, typename F> T read_modify_write(T* p, F f) {
    if (settings.seed) {                     // others may come in between
        Unseen unseen;
        if (current->gang->random.below(16) == 0) current->gang->let_others();
    }
    if ((uintptr_t)p % sizeof(T)) fail("misaligned atomic operation of %zu bytes at %p", sizeof(T), (void*)p);
    std::atomic_ref<T> at(*p);
    T old = at.load(std::memory_order_relaxed);
    while (!at.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {}
    if (!TSAN) return old;
    Unseen unseen;
    if (current->fenced) release((char*)p + 1);
    if (current->atomics.size() < 64) current->atomics.push_back(p);
    return old;
}
}  // namespace emu
#define EMU_ATOMIC(name, expression)                                                           \
    template <typename T> T name(T* p, std::type_identity_t<T> x) {                            \
        return emu::read_modify_write(p, [=](T old) { return T(expression); });                \
    }
EMU_ATOMIC(atomicAdd, old + x)
EMU_ATOMIC(atomicSub, old - x)
EMU_ATOMIC(atomicMax, old < x ? x : old)
EMU_ATOMIC(atomicMin, x < old ? x : old)
EMU_ATOMIC(atomicExch, (void(old), x))
EMU_ATOMIC(atomicAnd, old & x)
EMU_ATOMIC(atomicOr, old | x)
EMU_ATOMIC(atomicXor, old ^ x)
#undef EMU_ATOMIC
template <typename T> T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
    return emu::read_modify_write(p, [=](T old) { return old == expected ? x : old; });
}

// ---- loads, stores, arithmetic --------------------------------------------------------------------------------------
#define EMU_LOAD(name) template <typename T> T name(const T* p) { return *p; }
#define EMU_STORE(name) template <typename T> void name(T* p, std::type_identity_t<T> x) { *p = x; }
EMU_LOAD(__ldg) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldcv)
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)
#undef EMU_LOAD
#undef EMU_STORE
inline size_t __cvta_generic_to_shared(const void* p) { return emu::shared_address(p); }

// The C library declares __expf and its like, and does not define them: here the names become others.
#define __expf emu_expf
#define __logf emu_logf
#define __log2f emu_log2f
#define __sinf emu_sinf
#define __cosf emu_cosf
#define __powf emu_powf
#define EMU_FLOAT(name, expression) inline float name(float x) { return expression; }
EMU_FLOAT(__expf, std::exp(x))
EMU_FLOAT(__logf, std::log(x))
EMU_FLOAT(__log2f, std::log2(x))
EMU_FLOAT(__sinf, std::sin(x))
EMU_FLOAT(__cosf, std::cos(x))
EMU_FLOAT(rsqrtf, 1 / std::sqrt(x))
EMU_FLOAT(__frsqrt_rn, 1 / std::sqrt(x))
EMU_FLOAT(__fsqrt_rn, std::sqrt(x))
EMU_FLOAT(__frcp_rn, 1 / x)
EMU_FLOAT(__saturatef, std::fmin(std::fmax(x, 0.0f), 1.0f))
#undef EMU_FLOAT
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero((unsigned)x); }
inline int __ffs(int x) { return x ? std::countr_zero((unsigned)x) + 1 : 0; }
inline long long clock64() { return (long long)(emu::now() * 1e9); }
using std::isfinite, std::isinf, std::isnan;
#define EMU_MIN_MAX(T, least, most)                      \
    inline T min(T a, T b) { return least; }             \
    inline T max(T a, T b) { return most; }
EMU_MIN_MAX(int, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(unsigned, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(long, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(unsigned long, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(long long, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(unsigned long long, std::min(a, b), std::max(a, b))
EMU_MIN_MAX(float, std::fmin(a, b), std::fmax(a, b))
EMU_MIN_MAX(double, std::fmin(a, b), std::fmax(a, b))
#undef EMU_MIN_MAX

namespace emu {
inline float from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }
inline uint16_t to_bf16(float x) {           // to nearest, ties to even
    const uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;        // NaN
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// What hardware faults on and C++ need not: a vector access of A bytes that is not aligned to them.
template <size_t A> void aligned(const void* p) {
    if ((uintptr_t)p % A) fail("misaligned %zu-byte access at %p", A, p);
}
inline void bar_sync(int number, int threads, EMU_PLACE) { named_barrier(number, threads, place, true); }
inline void bar_arrive(int number, int threads, EMU_PLACE) { named_barrier(number, threads, place, false); }

// ---- cp.async -------------------------------------------------------------------------------------------------------
// The copy happens between its issue and the wait: late, or with a seed, at random, at once.
EMU_UNSEEN inline void copy_now(const Copy& c) {
    writes(c.to, c.bytes);
    reads(c.from, c.present);
    Unseen unseen;
    memcpy(c.to, c.from, c.present);
    memset((char*)c.to + c.present, 0, c.bytes - c.present);
}
inline void cp_async(uint32_t to, const void* from, int bytes, int present, const char* = nullptr) {
    void* p = shared_pointer(to);
    if (to % bytes || (present && (uintptr_t)from % bytes))
        fail("misaligned cp.async of %d bytes: to shared address %08x, from %p", bytes, to, from);
    bool at_once;
    { Unseen unseen; at_once = settings.seed && current->gang->random.below(2); }
    if (at_once) return copy_now({p, from, bytes, present});
    writes(p, bytes);                        // from here on nobody else may touch it
    Unseen unseen;
    if (settings.seed && settings.poison) memset(p, 0xff, bytes);
    current->copies.push_back({p, from, bytes, present});
    current->uncommitted++;
}
inline void cp_async_commit() {
    Unseen unseen;
    current->groups.push_back(std::exchange(current->uncommitted, 0));
}
inline void cp_async_wait(int left) {        // until all groups but the last `left` are done
    std::vector<Copy> done;
    {
        Unseen unseen;
        auto &groups = current->groups;
        auto &copies = current->copies;
        size_t n = 0;
        while ((int)groups.size() > left) {
            n += groups.front();
            groups.erase(groups.begin());
        }
        done.assign(copies.begin(), copies.begin() + n);
        copies.erase(copies.begin(), copies.begin() + n);
    }
    for (const Copy& c : done) copy_now(c);
}

// ---- matrices -------------------------------------------------------------------------------------------------------
// ldmatrix and stmatrix: N matrices of 8 x 8 numbers of 16 bits. Lane 8 j + r has the address of row r of matrix j;
// lane l holds numbers (l / 4, l % 4 * 2) and its right neighbour of each, or of each transposed.
struct Rows { uint16_t row[8]; uint32_t pairs[4]; };
template <int N, bool TRANSPOSED, bool STORE> void exchange_rows(Rows* const* lanes) {
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < N; j++) {
            const int r = l / 4, c = l % 4 * 2;
            uint16_t& low = TRANSPOSED ? lanes[8 * j + c]->row[r] : lanes[8 * j + r]->row[c];
            uint16_t& high = TRANSPOSED ? lanes[8 * j + c + 1]->row[r] : lanes[8 * j + r]->row[c + 1];
            uint32_t& pair = lanes[l]->pairs[j];
            if (STORE) {
                low = (uint16_t)pair;
                high = pair >> 16;
            } else pair = low | (uint32_t)high << 16;
        }
}
inline char* matrix_row(uint32_t address, const char* name) {
    if (address % 16) fail("%s: row address %08x is not a multiple of 16", name, address);
    return shared_pointer(address);
}
template <int N, bool TRANSPOSED> void ldmatrix(uint32_t (&r)[N], uint32_t address, EMU_PLACE) {
    Rows lane = {};
    if (current->lane < 8 * N) memcpy(lane.row, matrix_row(address, "ldmatrix"), 16);
    whole_warp("ldmatrix", place, &lane, exchange_rows<N, TRANSPOSED, false>);
    memcpy(r, lane.pairs, sizeof r);
}
template <int N, bool TRANSPOSED> void stmatrix(uint32_t address, const uint32_t (&r)[N], EMU_PLACE) {
    Rows lane = {};
    memcpy(lane.pairs, r, sizeof r);
    whole_warp("stmatrix", place, &lane, exchange_rows<N, TRANSPOSED, true>);
    if (current->lane < 8 * N) memcpy(matrix_row(address, "stmatrix"), lane.row, 16);
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: C (16,8) += A (16,16) B (16,8). Lane l holds pairs of
// neighbours: of A, in rows l / 4 + 8 (i % 2) and columns l % 4 * 2 + 8 (i / 2); of B, in column l / 4 and rows
// l % 4 * 2 + 8 i; of C, in rows l / 4 + 8 i and columns l % 4 * 2.
struct Fragments { float c[4]; uint32_t a[4], b[2]; };
typedef float Row __attribute__((vector_size(32)));          // added to and multiplied with a number at once
inline float half_of(uint32_t pair, int high) { return from_bf16(uint16_t(pair >> 16 * high)); }
inline void multiply(Fragments* const* lanes) {
    float A[16][16];
    Row B[16], C[16];
    for (int l = 0; l < 32; l++)
        for (int h = 0; h < 2; h++) {
            const int r = l / 4, c = l % 4 * 2 + h;
            for (int i = 0; i < 4; i++) A[r + i % 2 * 8][c + i / 2 * 8] = half_of(lanes[l]->a[i], h);
            for (int i = 0; i < 2; i++) B[c + 8 * i][r] = half_of(lanes[l]->b[i], h);
            for (int i = 0; i < 2; i++) C[r + 8 * i][c] = lanes[l]->c[2 * i + h];
        }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) C[i] += A[i][k] * B[k];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) lanes[l]->c[i] = C[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}
inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_PLACE) {
    Fragments lane;
    memcpy(lane.c, c, sizeof c);
    memcpy(lane.a, a, sizeof a);
    memcpy(lane.b, b, sizeof b);
    whole_warp("mma.sync", place, &lane, multiply);
    memcpy(c, lane.c, sizeof c);
}

// ---- programmatic dependent launch ----------------------------------------------------------------------------------
inline void griddep_wait(EMU_PLACE) {
    Gang& gang = *current->gang;
    if (gang.may_finish) return;
    { Unseen unseen; gang.parked.push_back(current); }
    gang.wait("griddepcontrol.wait", place);
    acquire(&gang.grid.number);
}
inline void griddep_launch() {}              // what it allows happens anyway
}  // namespace emu
inline void cudaGridDependencySynchronize(EMU_PLACE) { emu::griddep_wait(place); }
inline void cudaTriggerProgrammaticLaunchCompletion() {}
