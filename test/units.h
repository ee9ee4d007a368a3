/* test/amx.h -- AMX's tile instructions as plain loops, so that the product for machines that have it is tested on those
   that have not. Include it before train_gpt.cpp; emulated_amx says whether products use it. */
#pragma once
#if !defined(__AMX_BF16__)
#include <cstdint>
#include <cstring>
#define EMULATED_AMX emulated_amx
inline bool emulated_amx = false;

// A tile is 16 rows of 64 bytes, which hold 16 floats, or 16 pairs of bfloat16 numbers. It is of no use until it is
// configured.
inline thread_local struct { bool configured = false; uint32_t rows[16][16]; } tiles[8];

inline void _tile_loadconfig(const void* config) {
    const uint8_t* bytes = (const uint8_t*)config;
    for (int t = 0; t < 8; t++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
        tiles[t].configured = bytes[0] == 1 && bytes[1] == 0 && row_bytes == 64 && bytes[48 + t] == 16;
    }
}
inline void _tile_release() { for (auto& t : tiles) t.configured = false; }
inline auto& tile(int t) {
    if (!tiles[t].configured) __builtin_trap();
    return tiles[t].rows;
}
inline void _tile_zero(int t) { memset(tile(t), 0, sizeof tiles[t].rows); }
inline void _tile_loadd(int t, const void* from, long stride) {
    for (int r = 0; r < 16; r++) memcpy(tile(t)[r], (const char*)from + r * stride, 64);
}
inline void _tile_stored(int t, void* to, long stride) {
    for (int r = 0; r < 16; r++) memcpy((char*)to + r * stride, tile(t)[r], 64);
}
// c (16,16) += a (16,32) b (32,16): even and odd k are summed apart, and subnormal numbers count as 0
inline void _tile_dpbf16ps(int c, int a, int b) {
    auto numbers = [](uint32_t (&words)[16][16], int shift, float (*out)[16]) {
        for (int r = 0; r < 16; r++) for (int i = 0; i < 16; i++) {
            const uint32_t bits = words[r][i] << shift & 0xffff0000;
            float f;
            memcpy(&f, &bits, 4);
            out[r][i] = f < 0x1p-126f && f > -0x1p-126f ? 0 : f;
        }
    };
    float A[2][16][16], B[2][16][16];
    for (int odd = 0; odd < 2; odd++) numbers(tile(a), odd ? 0 : 16, A[odd]), numbers(tile(b), odd ? 0 : 16, B[odd]);
    for (int m = 0; m < 16; m++) {
        float sums[2][16] = {}, old[16];
        for (int odd = 0; odd < 2; odd++) for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) sums[odd][n] = __builtin_fmaf(A[odd][m][k], B[odd][k][n], sums[odd][n]);
        memcpy(old, tile(c)[m], 64);
        for (int n = 0; n < 16; n++) old[n] += sums[0][n] + sums[1][n];
        memcpy(tile(c)[m], old, 64);
    }
}
#endif
