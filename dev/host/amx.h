/* dev/host/amx.h -- AMX, the matrix unit of newer Xeons: the only intrinsics of the CPU program. A tile register holds 16
   rows of 64 bytes; one instruction adds the product of (16,32) and (32,16) bfloat16 numbers to (16,16) sums. Four tiles
   hold (32,32) sums here, two of the others are of A and two of B.
   source   Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS */
#pragma once
#include "packed.h"
#if defined(__AMX_BF16__)
#include <asm/prctl.h>
#include <immintrin.h>
#include <sys/syscall.h>
#endif

constexpr int AMX = 32;                                      // rows and columns of a block
#if defined(__AMX_BF16__) || defined(EMULATED_AMX)
inline bool amx() {                                          // Linux is asked for the tiles' place in a thread's state
#if defined(EMULATED_AMX)
    return EMULATED_AMX;
#else
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18) == 0;
    return granted;
#endif
}

// All eight tiles have 16 rows of 64 bytes.
inline void amx_begin() {
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = 16;
    _tile_loadconfig(&config);
}
inline void amx_end() { _tile_release(); }

// sums (32,32) = a (32,K) b (K,32), K a multiple of 32; rows of a are a_row numbers apart, b is in words (K/2,32): numbers
// 2k and 2k+1 of a column in the lower and the upper half
__attribute__((noinline)) inline void amx_multiply(float* sums, const void* a, long a_row, const uint32_t* b, int K) {
    asm volatile("" ::: "memory");           // not every compiler knows that tiles are loaded from what was written
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    const char* at = (const char*)a;
    for (int k = 0; k < K; k += 32, at += 64, b += 16 * AMX) {
        _tile_loadd(4, at, 2 * a_row); _tile_loadd(5, at + 32 * a_row, 2 * a_row);
        _tile_loadd(6, b, 4 * AMX); _tile_loadd(7, b + 16, 4 * AMX);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * AMX); _tile_stored(1, sums + 16, 4 * AMX);
    _tile_stored(2, sums + 16 * AMX, 4 * AMX); _tile_stored(3, sums + 16 * AMX + 16, 4 * AMX);
    asm volatile("" ::: "memory");
}
#else
constexpr bool amx() { return false; }
inline void amx_begin() {}
inline void amx_end() {}
inline void amx_multiply(float*, const void*, long, const uint32_t*, int) {}
#endif

// Products of zeros in the level-1 cache, on all threads; how many FLOPs they were
inline double amx_trial() {
    constexpr int products = 400, K = 384;
    #pragma omp parallel
    {
        alignas(64) float sums[AMX * AMX];
        alignas(64) uint16_t a[AMX * K] = {};
        alignas(64) uint32_t b[K / 2 * AMX] = {};
        amx_begin();
        for (int p = 0; p < products; p++) amx_multiply(sums, a, K, b, K);
        amx_end();
    }
    return 2.0 * AMX * AMX * K * products * omp_get_max_threads();
}

/* A product by blocks of (32,32), on all threads. A, rounded whole, has rows whose length is a multiple of 32, zeros at the
   end; B is packed a panel at a time, K in pieces of KC.
     a(square, i, k)            square (VL,VL) = a corner of A, or zeros beyond it
     b(block, k, j, end)        block (DEEP,VL) = a corner of B up to column `end`
     put(first, i, j, sums, n)  n sums of row i, from column j on: of the first piece of K, or of a later one, to be added */
constexpr int AMX_M = 1024, AMX_N = 128;                     // a thread's work: (AMX_M,AMX_N) of C
template <typename R, int VL, int DEEP, int KC, typename A, typename B, typename Put>
void amx_product(int M, int N, int K, A a, B b, Put put) {
    static thread_local std::vector<bfloat16> memory;
    const long row = (K + 31) / 32 * 32;
    memory.resize(std::max<size_t>(memory.size(), (M + AMX - 1) / AMX * AMX * row));
    bfloat16* const rows = memory.data();
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i += VL) for (int k = 0; k < row; k += VL) {
        R square[VL * VL];
        a(square, i, k);
        for (int j = 0; j < VL * VL; j++) rows[(i + j / VL) * row + k + j % VL] = square[j];
    }
    #pragma omp parallel for collapse(2) schedule(dynamic)
    for (int n0 = 0; n0 < N; n0 += AMX_N) for (int m0 = 0; m0 < M; m0 += AMX_M) {
        amx_begin();
        for (int k0 = 0; k0 < row; k0 += KC) for (int j0 = n0; j0 < std::min(N, n0 + AMX_N); j0 += AMX) {
            const int kn = std::min<long>(KC, row - k0), n = std::min(AMX, N - j0);
            alignas(64) uint32_t pairs[KC / 2 * AMX];       // of B
            for (int k = 0; k < kn; k += DEEP) for (int j = 0; j < AMX; j += VL) {
                R block[DEEP * VL];
                b(block, k0 + k, j0 + j, j0 + n);
                for (int r = 0; r < DEEP / 2; r++) for (int l = 0; l < VL; l++) {
                    const R* two = block + 2 * r * VL + l;
                    pairs[(k / 2 + r) * AMX + j + l] = bfloat16(two[0]).bits | bfloat16(two[VL]).bits << 16;
                }
            }
            for (int i0 = m0; i0 < std::min(M, m0 + AMX_M); i0 += AMX) {
                alignas(64) R sums[AMX * AMX];
                amx_multiply((float*)sums, rows + i0 * row + k0, row, pairs, kn);
                for (int i = 0; i < std::min(AMX, M - i0); i++) put(k0 == 0, i0 + i, j0, sums + i * AMX, n);
            }
        }
        amx_end();
    }
}
