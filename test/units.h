/* test/units.h -- the instructions of dev/host/units.h as plain loops: what those of a processor must agree with, bit
   for bit, and what tests run where it has none. Include it before train_gpt.cpp; emulated_amx and emulated_dots say
   whether products may use the loops. */
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>           // which has the names below, too, on processors with some other unit
#endif

// The lower or upper number of a pair; subnormal ones count as 0, in what is read and in what is written.
inline float flushed(float f) { return f < 0x1p-126f && f > -0x1p-126f ? f * 0 : f; }
inline float number_of(uint32_t pair, int odd) {
    const uint32_t bits = odd ? pair & 0xffff0000 : pair << 16;
    float f;
    memcpy(&f, &bits, 4);
    return flushed(f);
}
// sums (16,16) += a (16,32) b (32,16): even and odd k are summed apart
inline void emulated_tiles(float* sums, const uint32_t* a, const uint32_t* b) {
    for (int m = 0; m < 16; m++) for (int n = 0; n < 16; n++) {
        float apart[2] = {};
        for (int odd = 0; odd < 2; odd++) for (int k = 0; k < 16; k++)
            apart[odd] = flushed(
                __builtin_fmaf(number_of(a[16 * m + k], odd), number_of(b[16 * k + n], odd), apart[odd]));
        sums[16 * m + n] = flushed(flushed(sums[16 * m + n]) + flushed(apart[0] + apart[1]));
    }
}
// sum += the product of the odd numbers, then that of the even ones
inline float emulated_dot(float sum, uint32_t a, uint32_t b) {
    sum = flushed(__builtin_fmaf(number_of(a, 1), number_of(b, 1), flushed(sum)));
    return flushed(__builtin_fmaf(number_of(a, 0), number_of(b, 0), sum));
}

#if !defined(__AMX_BF16__)
#define EMULATED_AMX emulated_amx
inline bool emulated_amx = false;

// A tile is 16 rows of 64 bytes. It is of no use until it is configured.
inline thread_local struct { bool configured = false; uint32_t words[16 * 16]; } amx_tiles[8];

inline void emulated_loadconfig(const void* config) {
    const uint8_t* bytes = (const uint8_t*)config;
    for (int t = 0; t < 8; t++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
        amx_tiles[t].configured = bytes[0] == 1 && bytes[1] == 0 && row_bytes == 64 && bytes[48 + t] == 16;
    }
}
inline void emulated_release() {             // which other processors do not know
    for (auto& t : amx_tiles) {
        if (!t.configured) abort();
        t.configured = false;
    }
}
inline uint32_t* tile(int t) {
    if (!amx_tiles[t].configured) __builtin_trap();
    return amx_tiles[t].words;
}
inline void emulated_zero(int t) { memset(tile(t), 0, sizeof amx_tiles[t].words); }
inline void emulated_loadd(int t, const void* from, long stride) {
    for (int r = 0; r < 16; r++) memcpy(tile(t) + 16 * r, (const char*)from + r * stride, 64);
}
inline void emulated_stored(int t, void* to, long stride) {
    for (int r = 0; r < 16; r++) memcpy((char*)to + r * stride, tile(t) + 16 * r, 64);
}
inline void emulated_dpbf16ps(int c, int a, int b) {
    float sums[16 * 16];
    memcpy(sums, tile(c), sizeof sums);
    emulated_tiles(sums, tile(a), tile(b));
    memcpy(tile(c), sums, sizeof sums);
}
#undef _tile_loadconfig
#define _tile_loadconfig emulated_loadconfig
#undef _tile_release
#define _tile_release emulated_release
#undef _tile_zero
#define _tile_zero emulated_zero
#undef _tile_loadd
#define _tile_loadd emulated_loadd
#undef _tile_stored
#define _tile_stored emulated_stored
#undef _tile_dpbf16ps
#define _tile_dpbf16ps emulated_dpbf16ps
#endif

#if !defined(__AVX512BF16__)
#define EMULATED_DOTS emulated_dots
inline bool emulated_dots = false;
template <typename Sums, typename Words> void add_dots(Sums& sums, const Words& a, const Words& b) {
    for (int l = 0; l < 16; l++) sums[l] = emulated_dot(sums[l], a[l], b[l]);
}
#endif

// From here on products may use the loops, where they stand for a unit that the processor lacks.
inline void emulate_units() {
#if defined(EMULATED_AMX)
    emulated_amx = true;
#endif
#if defined(EMULATED_DOTS)
    emulated_dots = true;
#endif
}
