/* dev/host/packed.h -- matrices kept in fewer bits than they are computed with: bfloat16, int8, and nf4.
     int8   code = round(127 w / absmax), a scale for each output channel, which is a column
     nf4    code = the nearest of 16 levels, quantiles of a normal distribution, to w / absmax; a scale for each block
            of 64 in a row (Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E); of a group of 16 numbers
            one word of 32 bits holds the even ones, the next the odd ones, so that a shift for each lane is all that a
            vector takes
   layout   codes, of int8 and nf4 in rows that are padded to whole blocks; from a multiple of 64 bytes on, scales */
#pragma once
#include "files.h"

// The upper half of a float: 8 bits of exponent, 8 of precision. Rounded to nearest, ties to even; NaN stays NaN.
struct bfloat16 {
    uint16_t bits;
    bfloat16() = default;
    bfloat16(float x) {
        const uint32_t u = std::bit_cast<uint32_t>(x);
        bits = (u + 0x7fff + (u >> 16 & 1)) >> 16 | (x != x) * 0x7fc0;
    }
    operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

// IEEE's 16 bits: sign, 5 of exponent, 10 of mantissa; without exponent, mantissa / 2^24.
struct float16 {
    uint16_t bits;
    operator float() const {
        const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
        const uint32_t rest = exponent ? (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13
                                       : std::bit_cast<uint32_t>(mantissa * 0x1p-24f);
        return std::bit_cast<float>(sign | rest);
    }
};

// Numbers as another type, by all threads: one alone does not keep memory busy.
template <typename To, typename From> void convert(To* to, const From* from, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) to[i] = To(from[i]);
}

enum class Form { FP32, BF16, INT8, NF4 };
inline constexpr const char* FORMS[] = {"fp32", "bf16", "int8", "nf4"};
inline Form form_of(const std::string& name) {
    return Form(std::find(std::begin(FORMS), std::end(FORMS), name) - std::begin(FORMS));
}

#define NF4_LEVELS \
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, \
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, \
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
inline constexpr float LEVELS[16] = {NF4_LEVELS};
constexpr int NF4_BLOCK = 64;
inline constexpr size_t packed_row(size_t cols) { return (cols + NF4_BLOCK - 1) / NF4_BLOCK * NF4_BLOCK; }

// Where scales begin, and the bytes of all.
inline size_t code_bytes(Form form, size_t rows, size_t cols) {
    const size_t codes = rows * packed_row(cols);            // of int8 and nf4
    const size_t bytes = form == Form::FP32 ? 0 : form == Form::BF16 ? rows * cols * 2
                       : form == Form::INT8 ? codes : codes / 2;
    return (bytes + 63) / 64 * 64;
}
inline size_t packed_bytes(Form form, size_t rows, size_t cols) {
    const size_t scales = form == Form::INT8 ? cols : form == Form::NF4 ? rows * packed_row(cols) / NF4_BLOCK : 0;
    return code_bytes(form, rows, cols) + scales * sizeof(float);
}

// Of element k of the codes, which counts padded rows.
inline size_t nf4_byte(size_t k) { return k / 16 * 8 + k % 2 * 4 + k % 16 / 4; }
inline int nf4_code(const uint8_t* codes, size_t k) { return codes[nf4_byte(k)] >> (k / 2 % 2 * 4) & 15; }

inline void pack(Form form, uint8_t* to, const float* from, size_t rows, size_t cols) {
    float* const scales = (float*)(to + code_bytes(form, rows, cols));
    const size_t row = packed_row(cols);
    if (form == Form::BF16) {
        convert((bfloat16*)to, from, rows * cols);
    } else if (form == Form::INT8) {
        std::fill_n(scales, cols, 0.0f);
        for (size_t i = 0; i < rows; i++) for (size_t j = 0; j < cols; j++)
            scales[j] = std::max(scales[j], std::abs(from[i * cols + j]) / 127);
        #pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) for (size_t j = 0; j < cols; j++)
            ((int8_t*)to)[i * row + j] = scales[j] > 0 ? std::lrint(from[i * cols + j] / scales[j]) : 0;
    } else if (form == Form::NF4) {
        std::fill_n(to, code_bytes(form, rows, cols), 0);
        #pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) for (size_t j0 = 0; j0 < cols; j0 += NF4_BLOCK) {
            const float* block = from + i * cols + j0;
            const size_t n = std::min<size_t>(NF4_BLOCK, cols - j0);
            float largest = 0;
            for (size_t j = 0; j < n; j++) largest = std::max(largest, std::abs(block[j]));
            scales[(i * row + j0) / NF4_BLOCK] = largest;
            for (size_t j = 0; j < n; j++) {
                const float x = largest > 0 ? block[j] / largest : 0;
                int code = 0;
                for (int k = 0; k < 15; k++) code += x > (LEVELS[k] + LEVELS[k + 1]) / 2;
                const size_t k = i * row + j0 + j;
                to[nf4_byte(k)] |= code << (k / 2 % 2 * 4);
            }
        }
    }
}
inline void unpack(Form form, float* to, const uint8_t* from, size_t rows, size_t cols) {
    const float* const scales = (const float*)(from + code_bytes(form, rows, cols));
    for (size_t i = 0; i < rows; i++) for (size_t j = 0; j < cols; j++) {
        const size_t at = i * cols + j, k = i * packed_row(cols) + j;
        if (form == Form::BF16) to[at] = ((const bfloat16*)from)[at];
        else if (form == Form::INT8) to[at] = ((const int8_t*)from)[k] * scales[j];
        else to[at] = LEVELS[nf4_code(from, k)] * scales[k / NF4_BLOCK];
    }
}

// Where a matrix of weights is: at p, or packed.
template <typename T> struct Place {
    T* p;
    const uint8_t* packed;
    const float* scales;
    Form form;
    operator T*() const { return p; }
};

// Packed matrices as products read them, with what cpu::Matrix in vectors.h has: element (i,j), the matrix transposed
// or from an element on.
namespace cpu {
// To the level-2 cache: rows of a matrix often lie where they share a few sets of level 1, where each would drive out
// another.
inline void prefetch(uintptr_t address) { __builtin_prefetch((const void*)address, 0, 2); }

template <typename E> struct Matrix;
template <> struct Matrix<int8_t> {
    const int8_t* p;
    const float* scale;                      // of the columns, or of the rows if transposed
    long row, col, scale_row = 0, scale_col = 1;
    Matrix t() const { return {p, scale, col, row, scale_col, scale_row}; }
    Matrix from(long i, long j) const {
        return {p + i * row + j * col, scale + i * scale_row + j * scale_col, row, col, scale_row, scale_col};
    }
    float operator()(long i, long j) const { return p[i * row + j * col] * scale[i * scale_row + j * scale_col]; }
    void prefetch(long i, long j) const { cpu::prefetch(uintptr_t(p) + i * row + j * col); }
};
struct nf4;
template <> struct Matrix<nf4> {
    const uint8_t* codes;
    const float* scale;
    size_t at;                               // the number of the first element
    long row, col;
    Matrix t() const { return {codes, scale, at, col, row}; }
    Matrix from(long i, long j) const { return {codes, scale, at + i * row + j * col, row, col}; }
    float operator()(long i, long j) const {
        const size_t k = at + i * row + j * col;
        return LEVELS[nf4_code(codes, k)] * scale[k / NF4_BLOCK];
    }
    void prefetch(long i, long j) const { cpu::prefetch(uintptr_t(codes) + (at + i * row + j * col) / 2); }
};
}  // namespace cpu
