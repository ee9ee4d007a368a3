/* dev/host/amx.h -- AMX, the matrix unit of newer Xeons: the only intrinsics of the CPU program. A tile register holds 16
   rows of 64 bytes; one instruction adds the product of (16,32) and (32,16) bfloat16 numbers to (16,16) sums. Four tiles
   hold (32,32) sums here, two of the others are of A and two of B.
   source   Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS */
#pragma once
#include "files.h"
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
