/* dev/host/vectors.h -- what the matrix product of train_gpt.cpp is made of: matrices by strides, vectors of the
   compiler's, and how numbers of each kind get from one to the other. */
#pragma once
#include "packed.h"
#include <utility>

#ifndef REAL
#define REAL float              // tests build the program with double and differentiate it numerically
#endif
using real = REAL;

namespace cpu {

template <typename E = real> struct Matrix { // element (i,j) is p[i * row + j * col]
    const E* p;
    long row, col;
    Matrix t() const { return {p, col, row}; }
    Matrix from(long i, long j) const { return {p + i * row + j * col, row, col}; }
    E operator()(long i, long j) const { return p[i * row + j * col]; }
    void prefetch(long i, long j) const { cpu::prefetch(uintptr_t(p) + (i * row + j * col) * sizeof(E)); }
};
template <typename E> Matrix(E*, long, long) -> Matrix<std::remove_const_t<E>>;            // packed.h has packed ones

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
constexpr int VL = VECTOR_BYTES / sizeof(real);

// VL neighbours at the upper left corner of a matrix, in the direction in which they are contiguous, rounded to P;
// bfloat16 where real is float only, nf4 at multiples of VL
#if defined(__CUDACC__)                      // its front end does not know all that follows
template <typename P, typename E> vec load(const Matrix<E>& m) {
    vec v;
    for (int l = 0; l < VL; l++) v[l] = P(m.col == 1 ? m(0, l) : m(l, 0));
    return v;
}
#else
typedef std::conditional_t<sizeof(real) == 4, uint32_t, uint64_t> word;
typedef word words __attribute__((vector_size(VECTOR_BYTES)));
typedef std::make_signed_t<word> integers __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t halves __attribute__((vector_size(2 * VL), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(2 * VL)));
typedef int8_t bytes __attribute__((vector_size(VL), aligned(1), may_alias));
typedef real pairs __attribute__((vector_size(VECTOR_BYTES), aligned(2), may_alias));         // of bfloat16 numbers
template <typename P> vec load(const Matrix<bfloat16>& m) {
    return (vec)(__builtin_convertvector(*(const halves*)m.p, words) << 16);
}
template <typename P> vec load(const Matrix<real>& m) {
    const vec x = *(const vec*)m.p;
    if constexpr (std::is_same_v<P, real>) return x;
    const words u = (words)x, nan = (words)(x != x) & 0x7fc00000;
    return (vec)(((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000) | nan);
}
template <typename P> vec load(const Matrix<int8_t>& m) {
    const integers codes = __builtin_convertvector(__builtin_convertvector(*(const bytes*)m.p, shorts), integers);
    return __builtin_convertvector(codes, vec) * *(const vec*)m.scale;
}
template <typename P> vec load(const Matrix<nf4>& m) {
    vec v;
    for (int l = 0; l < VL; l++) v[l] = LEVELS[nf4_code(m.codes, m.at + l)] * m.scale[m.at / NF4_BLOCK];
    return v;
}
#if defined(__AVX512F__) && !defined(__clang__)              // a level is a lane of a register, an index 4 bits
template <typename P> requires (VL == 16) vec load(const Matrix<nf4>& m) {
    typedef uint64_t groups __attribute__((vector_size(64)));
    typedef uint32_t lanes __attribute__((vector_size(64)));
    uint64_t group;
    memcpy(&group, m.codes + m.at / 2, 8);
    const lanes codes = (lanes)(group | groups{}) >> lanes{0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28};
    return __builtin_shuffle(*(const vec*)LEVELS, (words)codes) * m.scale[m.at / NF4_BLOCK];
}
#endif
#endif

// n numbers, rounded
inline void round_all(bfloat16* to, const real* from, size_t n) {
    size_t i = 0;
#if !defined(__CUDACC__)
    for (; i + VL <= n; i += VL) {
        const words rounded = (words)load<bfloat16>(Matrix{from + i, 1, 1});
        *(halves*)(to + i) = __builtin_convertvector(rounded >> 16, halves);
    }
#endif
    for (; i < n; i++) to[i] = from[i];
}

// out (DEEP,VL) = b, whose columns are contiguous; rows of out are out_row apart. In round S every square of 2S x 2S
// swaps the quarters off its diagonal (Eklundh 1972, doi:10.1109/TC.1972.5009041): log2(VL) rounds in registers.
// Numbers of type bfloat16 are moved in pairs.
template <typename E> constexpr int DEEP = std::is_same_v<E, bfloat16> ? 2 * VL : VL;
#if defined(__CUDACC__)
template <typename P, typename E> void transpose(real* out, long out_row, Matrix<E> b) {
    for (int i = 0; i < VL; i++) for (int j = 0; j < DEEP<E>; j++) out[j * out_row + i] = P(b(j, i));
}
#else
template <int S, typename V, int... J> inline void swap_quarters(V* rows, std::integer_sequence<int, J...> lanes) {
    constexpr int n = sizeof...(J);
    for (int i = 0; i < n; i++) {
        if (i & S) continue;
        const V upper = rows[i], lower = rows[i + S];
        rows[i] = __builtin_shufflevector(upper, lower, (J & S ? n + J - S : J)...);
        rows[i + S] = __builtin_shufflevector(upper, lower, (J & S ? n + J : J + S)...);
    }
    if constexpr (2 * S < n) swap_quarters<2 * S>(rows, lanes);
}
template <typename P, typename E> void transpose(real* out, long out_row, Matrix<E> b) {
    typedef real aligned __attribute__((vector_size(VECTOR_BYTES)));
    aligned rows[VL];
    for (int i = 0; i < VL; i++)
        if constexpr (DEEP<E> == VL) rows[i] = load<P>(b.from(0, i));
        else rows[i] = *(const pairs*)b.from(0, i).p;
    swap_quarters<1>(rows, std::make_integer_sequence<int, VL>());
    for (int i = 0; i < VL; i++) {
        if constexpr (DEEP<E> == VL) *(vec*)(out + i * out_row) = rows[i];
        else {
            *(vec*)(out + 2 * i * out_row) = (vec)((words)rows[i] << 16);
            *(vec*)(out + (2 * i + 1) * out_row) = (vec)((words)rows[i] & 0xffff0000);
        }
    }
}
#endif

// out (DEEP,VL) = the upper left corner of b, of which there are K rows and n columns; zeros beyond
template <typename P, typename E> void copy_block(real* out, long out_row, Matrix<E> b, int K, int n) {
    if (b.row == 1 && n >= VL && K >= DEEP<E>) return transpose<P>(out, out_row, b);
    for (int k = 0; k < DEEP<E>; k++) {
        if (b.col == 1 && n >= VL && k < K) *(vec*)(out + k * out_row) = load<P>(b.from(k, 0));
        else for (int j = 0; j < VL; j++) out[k * out_row + j] = k < K && j < n ? P(b(k, j)) : P(0);
    }
}

}  // namespace cpu
