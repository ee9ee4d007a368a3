/* dev/host/units.h -- what some processors have for products of bfloat16 numbers: the only intrinsics of the CPU
   program, and the product by blocks that such units share.
     AMX    the matrix unit of newer Xeons. A tile register holds 16 rows of 64 bytes; an instruction adds the product
            of (16,32) and (32,16) numbers to (16,16) sums: those of even k and of odd k, each upwards, added up before
            they join the sum. Four tiles hold (32,32) sums here, two of the others are of A and two of B.
     dots   AVX-512's dot products of pairs: 16 sums at a time, each plus the product of the odd k, plus that of the
            even k
   Both multiply and add without a rounding between, and take subnormal numbers for 0.
   source   Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and VDPBF16PS */
#pragma once
#include "arena.h"
#include "machine.h"
#include "vectors.h"
#include <atomic>
#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <asm/prctl.h>
#include <sys/syscall.h>
#endif

enum class Unit { NONE, DOTS, AMX };
inline constexpr const char* UNITS[] = {"", "dots", "amx"};                    // in state.json
inline const char* told(Unit unit) {         // how bf16 products are made
    const char* const texts[] = {", bf16 rounded and multiplied in fp32 (no unit here is faster)",
                                 ", bf16 in dot products", ", bf16 on AMX"};
    return texts[(int)unit];
}
typedef float floats16 __attribute__((vector_size(64), may_alias));
typedef uint32_t words16 __attribute__((vector_size(64), may_alias));
typedef uint16_t halves32 __attribute__((vector_size(64)));
constexpr int TILE = 16 * 16, SQUARE = 32;   // words of a tile; rows and columns of sums that are made at once

/* sums (32,32) = a (32,K) b (K,32), or += if more. All are tiles of 16 x 16 words: four of sums, row by row; a has two
   rows of K/32, b two columns, `row` words apart. A word of a or b is a pair of numbers, of an even k in its lower half
   and of the odd k above it in the upper; a row of a tile is one row of A, or one such pair of k of B. */
#if (defined(__AMX_BF16__) || defined(EMULATED_AMX)) && !defined(__CUDACC__)
inline bool has_amx() {                                      // Linux is asked for the tiles' place in a thread's state
#if defined(EMULATED_AMX)
    return EMULATED_AMX;
#else
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18) == 0;
    return granted && __builtin_cpu_supports("amx-bf16");
#endif
}
inline void amx_begin() {                                    // all eight tiles have 16 rows of 64 bytes
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {1, 0, {}, {}, {}};
    std::fill_n(config.bytes, 8, 64);
    std::fill_n(config.rows, 8, 16);
    _tile_loadconfig(&config);
}
inline void amx_end() { _tile_release(); }
__attribute__((noinline)) inline void amx_multiply(float* sums, const uint32_t* a, const uint32_t* b, long row,
                                                   int tiles, bool more) {
    asm volatile("" ::: "memory");           // not every compiler knows that tiles are loaded from what was written
    if (more) {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE, 64);
        _tile_loadd(2, sums + 2 * TILE, 64);
        _tile_loadd(3, sums + 3 * TILE, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int t = 0; t < tiles; t++) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(5, a + row, 64);
        _tile_loadd(7, b + row, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        a += TILE;
        b += TILE;
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    _tile_stored(2, sums + 2 * TILE, 64);
    _tile_stored(3, sums + 3 * TILE, 64);
    asm volatile("" ::: "memory");
}
#else
constexpr bool has_amx() { return false; }
inline void amx_begin() {}
inline void amx_end() {}
inline void amx_multiply(float*, const uint32_t*, const uint32_t*, long, int, bool) {}
#endif

#if (defined(__AVX512BF16__) || defined(EMULATED_DOTS)) && !defined(__CUDACC__)
#if !defined(EMULATED_DOTS)
inline bool has_dots() { return __builtin_cpu_supports("avx512bf16"); }
inline void add_dots(floats16& sums, const words16& a, const words16& b) {
    sums = (floats16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
inline bool has_dots() { return EMULATED_DOTS; }
#endif
inline void dots_multiply(float* sums, const uint32_t* a, const uint32_t* b, long row, int tiles, bool more) {
    for (int i0 = 0; i0 < SQUARE; i0 += 8) {
        const uint32_t* const a_i = a + i0 / 16 * row + i0 % 16 * 16;
        float* const to = sums + i0 / 16 * 2 * TILE + i0 % 16 * 16;
        floats16 s[8][2];
        for (int i = 0; i < 8; i++)
            for (int v = 0; v < 2; v++) s[i][v] = more ? *(floats16*)(to + v * TILE + 16 * i) : floats16{};
        for (int t = 0; t < tiles * TILE; t += TILE) for (int k = 0; k < 16; k++)
            for (int i = 0; i < 8; i++) {
                const words16 pair = words16{} + a_i[t + 16 * i + k];
                for (int v = 0; v < 2; v++) add_dots(s[i][v], pair, *(const words16*)(b + v * row + t + 16 * k));
            }
        for (int i = 0; i < 8; i++) for (int v = 0; v < 2; v++) *(floats16*)(to + v * TILE + 16 * i) = s[i][v];
    }
}
#else
constexpr bool has_dots() { return false; }
inline void dots_multiply(float*, const uint32_t*, const uint32_t*, long, int, bool) {}
#endif
inline bool has(Unit unit) {
    const bool here = (unit == Unit::AMX && has_amx()) || (unit == Unit::DOTS && has_dots());
    return unit == Unit::NONE || (sizeof(real) == 4 && here);
}
inline auto multiply_in(Unit unit) { return unit == Unit::AMX ? amx_multiply : dots_multiply; }

// Products of zeros in the level-1 cache, on all threads; how many FLOPs they were
inline double unit_trial(Unit unit) {
    constexpr int products = 200, tiles = 4;
    #pragma omp parallel
    {
        alignas(64) float sums[4 * TILE] = {};
        alignas(64) uint32_t a[2 * tiles * TILE] = {}, b[2 * tiles * TILE] = {};
        if (unit == Unit::AMX) amx_begin();
        for (int p = 0; p < products; p++) multiply_in(unit)(sums, a, b, tiles * TILE, tiles, true);
        if (unit == Unit::AMX) amx_end();
    }
    return 2.0 * SQUARE * SQUARE * 32 * tiles * products * omp_get_max_threads();
}

// The best rate, in FLOP/s, of trials that return how many FLOPs they were: it is the least disturbed.
template <typename F> double peak_of(int trials, F trial) {
    double best = 0;
    for (int i = 0; i < trials; i++) {
        const double start = seconds(), flops = trial();
        best = std::max(best, flops / (seconds() - start));
    }
    return best;
}
// The fastest unit that the processor has, by peak(unit), if it is faster by a margin than vectors of floats. On one
// thread: beside other work several are seldom undisturbed together, and the choice must be the same again.
template <typename F> Unit fastest_unit(F peak) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    Unit best = Unit::NONE;
    double most = 1.3 * peak(best);
    for (Unit unit : {Unit::DOTS, Unit::AMX}) {
        const double rate = has(unit) ? peak(unit) : 0;
        if (rate > most) best = unit;
        most = std::max(most, rate);
    }
    omp_set_num_threads(threads);
    return best;
}
// Makes `unit` that of the checkpoint which a run goes on from, if there is one and this machine has it; its name.
inline std::string keep_unit(Unit& unit, const std::string& kept, const std::string& checkpoint) {
    const Unit its = Unit(std::find(std::begin(UNITS), std::end(UNITS), kept) - std::begin(UNITS));
    if (!checkpoint.empty() && has(its)) unit = its;
    else if (!checkpoint.empty())
        warn("%s: its bf16 products were made in a unit that is not here, '%s': from now on sums are added up in "
             "another order", checkpoint.c_str(), kept.c_str());
    return UNITS[(int)unit];
}

// Twice 16 neighbours, rounded to bfloat16, side by side. The instruction takes subnormal numbers for 0, as the
// products do.
#if !defined(__CUDACC__)
inline void side_by_side(words16& to, const bfloat16* low, const bfloat16* high) {
    memcpy(&to, low, 32);
    memcpy((char*)&to + 32, high, 32);
}
inline void side_by_side(words16& to, const real* low, const real* high) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(real) == 4) {
        to = (words16)_mm512_cvtne2ps_pbh(_mm512_loadu_ps((const float*)high), _mm512_loadu_ps((const float*)low));
        return;
    }
#endif
    bfloat16 halves[32];
    for (int l = 0; l < 16; l++) halves[l] = low[l];
    for (int l = 0; l < 16; l++) halves[l + 16] = high[l];
    side_by_side(to, halves, halves + 16);
}
// A tile = the upper left corner of m (rows,K), rounded, and zeros beyond. TRANSPOSED: as B wants it.
template <bool TRANSPOSED, typename E> void pack_tile(uint32_t* to, cpu::Matrix<E> m, int rows, int K) {
    words16 tile[16];
    if (rows >= 16 && K >= 32 && (m.col == 1 || m.row == 1)) {
        for (int i = 0; i < 16; i++) {
            if (m.col == 1) {
                side_by_side(tile[i], m.from(i, 0).p, m.from(i, 16).p);
                continue;
            }
            side_by_side(tile[i], m.from(0, 2 * i).p, m.from(0, 2 * i + 1).p);
            const halves32 two = (halves32)tile[i];
            tile[i] = (words16)__builtin_shufflevector(
                two, two, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12,
                28, 13, 29, 14, 30, 15, 31);
        }
        if ((m.col == 1) == TRANSPOSED) cpu::swap_quarters<1>(tile, std::make_integer_sequence<int, 16>());
    } else {
        auto bits = [&](int i, int k) -> uint32_t { return i < rows && k < K ? bfloat16(m(i, k)).bits : 0; };
        for (int i = 0; i < 16; i++) for (int k = 0; k < 16; k++)
            tile[TRANSPOSED ? k : i][TRANSPOSED ? i : k] = bits(i, 2 * k) | bits(i, 2 * k + 1) << 16;
    }
    memcpy(to, tile, sizeof tile);
}
// The same for some rows of tiles, in the direction in which m lies in memory; a tile some steps ahead is prefetched
template <bool TRANSPOSED, typename E> void pack_tiles(uint32_t* to, int tile_rows, cpu::Matrix<E> m, int rows, int K) {
    const int tiles = (K + 31) / 32;
    for (int n = 0; n < tile_rows * tiles; n++) {
        const int i = m.row == 1 ? n % tile_rows : n / tiles, k = m.row == 1 ? n / tile_rows : n % tiles;
        const cpu::Matrix<E> tile = m.from(16 * i, 32 * k);
        for (int l = 0; l < 32; l++) {
            if (m.row == 1) tile.prefetch(0, 32 + l);
            else tile.prefetch(l / 2, 128 + l % 2 * 16);
        }
        pack_tile<TRANSPOSED>(to + (i * tiles + k) * TILE, tile, rows - 16 * i, K - 32 * k);
    }
}
inline int squares(int n) { return (n + SQUARE - 1) / SQUARE; }

/* C (M,N) = A (M,K) B (K,N), in blocks of squares, whose sums stay with their thread until all K have been taken in,
   PIECE tiles at a time: as much of two columns of tiles as the level-1 cache keeps for all rows of a block.
     store(i, j, sums, n)     n sums of row i, from column j on
     store.prefetch(i, j)     what they are to be added to
     store.from(k, i, j)      the same from (i,j) on, for sums from a strip of K that begins at k */
constexpr int PIECE = 8, STRIP_K = 12 * PIECE * 32, STRIP = 1 << 22;         // STRIP: numbers
template <typename Store>
void unit_block(Unit unit, float* sums, const uint32_t* a, const uint32_t* b, int M, int N, int tiles, Store store) {
    const long row = tiles * TILE;
    const int height = squares(M);
    for (int t = 0; t < tiles; t += PIECE) for (int j = 0; j < squares(N); j++) for (int i = 0; i < height; i++) {
        if (t + PIECE >= tiles)
            for (int l = 0; l < 2 * SQUARE; l++) store.prefetch(i * SQUARE + l / 2, j * SQUARE + l % 2 * 16);
        multiply_in(unit)(sums + (j * height + i) * 4 * TILE, a + 2 * i * row + t * TILE, b + 2 * j * row + t * TILE,
                          row, std::min(PIECE, tiles - t), t > 0);
    }
    for (int i = 0; i < M; i++) for (int j = 0; j < N; j += 16) {
        const float* square = sums + (j / SQUARE * height + i / SQUARE) * 4 * TILE;
        store(i, j, square + (i / 16 % 2 * 2 + j / 16 % 2) * TILE + i % 16 * 16, std::min(16, N - j));
    }
}

// On the thread that calls it
template <typename E, typename Store>
void unit_tile(Unit unit, cpu::Matrix<> a, cpu::Matrix<E> b, int M, int N, int K, Store store) {
    static thread_local Buffer<uint32_t> A, B;
    static thread_local Buffer<float> sums;
    const int tiles = (K + 31) / 32;
    const size_t row = (size_t)tiles * TILE, rows = 2 * squares(M), cols = 2 * squares(N);       // of tiles
    if (A.size < rows * row) A = Buffer<uint32_t>(rows * row);
    if (B.size < cols * row) B = Buffer<uint32_t>(cols * row);
    if (sums.size < rows * cols * TILE) sums = Buffer<float>(rows * cols * TILE);
    pack_tiles<false>(A.data(), rows, a, M, K);
    pack_tiles<true>(B.data(), cols, b.t(), N, K);
    if (unit == Unit::AMX) amx_begin();
    unit_block(unit, sums.data(), A.data(), B.data(), M, N, tiles, store);
    if (unit == Unit::AMX) amx_end();
}

// On all threads. Strips of A and B are packed whole, each number once, and their tiles are read by all.
template <typename E, typename Store>
void unit_product(Unit unit, cpu::Matrix<> a, cpu::Matrix<E> b, int M, int N, int K, Store store) {
    static thread_local Buffer<uint32_t> memory;
    const int most = std::min(K, STRIP_K), strip = std::max(STRIP / most / SQUARE, 8) * SQUARE;
    const int group = 4;                                     // rows of tiles
    const size_t most_row = (size_t)(most + 31) / 32 * TILE, a_words = 2 * squares(std::min(M, strip)) * most_row;
    const size_t words = a_words + 2 * squares(std::min(N, strip)) * most_row;
    if (memory.size < words) memory = Buffer<uint32_t>(words);
    uint32_t *const A = memory.data(), *const B = A + a_words;
    for (int k0 = 0; k0 < K; k0 += STRIP_K)
    for (int n0 = 0; n0 < N; n0 += strip) for (int m0 = 0; m0 < M; m0 += strip) {
        const int m = std::min(strip, M - m0), n = std::min(strip, N - n0), k = std::min(STRIP_K, K - k0);
        const int tiles = (k + 31) / 32, tile_rows = 2 * squares(m), tile_cols = 2 * squares(n);
        const size_t row = (size_t)tiles * TILE;
        int rows = 8 * SQUARE, cols = 8 * SQUARE;            // of a block
        auto blocks = [&] { return ((m - 1) / rows + 1) * ((n - 1) / cols + 1); };
        while (blocks() < 4 * omp_get_max_threads() && rows + cols > 2 * SQUARE)
            if (rows > cols) rows /= 2;
            else cols /= 2;
        const bool tall = m > n;
        const int all = blocks(), inner = tall ? (n - 1) / cols + 1 : (m - 1) / rows + 1;
        const int shares = omp_get_max_threads();            // of blocks
        std::vector<std::atomic<int>> taken(shares);
        #pragma omp parallel if ((double)m * n * k > 32768)
        {
            if (n0 == 0 || M > strip) {
                #pragma omp for schedule(static) nowait
                for (int i = 0; i < tile_rows; i += group)
                    pack_tiles<false>(A + i * row, std::min(group, tile_rows - i), a.from(m0 + 16 * i, k0), m - 16 * i,
                                      k);
            }
            if (m0 == 0) {
                #pragma omp for schedule(static) nowait
                for (int j = 0; j < tile_cols; j += group)
                    pack_tiles<true>(B + j * row, std::min(group, tile_cols - j), b.from(k0, n0 + 16 * j).t(),
                                     n - 16 * j, k);
            }
            #pragma omp barrier
            static thread_local Buffer<float> sums(8 * 8 * 4 * TILE);
            if (unit == Unit::AMX) amx_begin();
            for (int t = 0; t < shares; t++) {               // its own first, whose tiles it has packed: they are near
                const int share = (omp_get_thread_num() + t) % shares, end = all * (share + 1) / shares;
                while (true) {
                    const int block = all * share / shares + taken[share]++;
                    if (block >= end) break;
                    const int outer = block / inner, inside = block % inner;
                    const int i0 = (tall ? outer : inside) * rows, j0 = (tall ? inside : outer) * cols;
                    unit_block(unit, sums.data(), A + i0 / 16 * row, B + j0 / 16 * row, std::min(rows, m - i0),
                               std::min(cols, n - j0), tiles, store.from(k0, m0 + i0, n0 + j0));
                }
            }
            if (unit == Unit::AMX) amx_end();
        }
    }
}
#else
template <typename... X> void unit_tile(X...) {}
template <typename... X> void unit_product(X...) {}
#endif
