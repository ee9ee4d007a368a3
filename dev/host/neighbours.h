/* dev/host/neighbours.h -- how a GPU's kernels read matrices in the forms of packed.h, as vectors.h does for a CPU. */
#pragma once
#include "packed.h"
#ifdef CUDART_VERSION                        // it is a part of train_gpt.cu, from which it takes WIDE and fetch()
namespace gpu {

// WIDE neighbours in each row of w (rows,cols), from column c on: a row as it lies in memory, to be kept, and its
// numbers as products read them, rounded as if w were unpacked. All threads of a block make theirs, and meet before
// they load any.
__constant__ float levels[16] = {NF4_LEVELS};
template <Form FORM> struct Neighbours {
    struct Kept { Pack<unsigned, FORM == Form::INT8 ? WIDE / 4 : FORM == Form::NF4 ? 2 : 4> words; float scale; };
    const Place<floatX> w;
    const int c, cols;
    float* const level;                      // in shared memory: constant memory serves one address at a time
    float scale[WIDE];                       // of int8's columns
    DEVICE Neighbours(const Place<floatX>& w, int c, int cols, float* level) : w(w), c(c), cols(cols), level(level) {
        if (FORM == Form::NF4 && threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
        if (FORM == Form::INT8) for (int i = 0; i < WIDE; i++) scale[i] = c + i < cols ? w.scales[c + i] : 0;
    }
    DEVICE Kept row(int k) const {
        const size_t at = k * packed_row(cols) + c;
        auto codes = [&](size_t from) { return (const unsigned*)(w.packed + from); };
        if constexpr (FORM == Form::INT8) return {fetch<WIDE / 4>(codes(at)), 0};
        if constexpr (FORM == Form::NF4) return {fetch<2>(codes(at / 16 * 8)), w.scales[at / NF4_BLOCK]};
        if constexpr (FORM == Form::FP32) return {fetch_raw(w.p + (size_t)k * cols + c), 0};
    }
    DEVICE void load(float (&x)[WIDE], const Kept& kept) const {
        if constexpr (FORM == Form::FP32) return gpu::load(x, kept.words);
        else for (int i = 0; i < WIDE; i++) {
            if (FORM == Form::INT8) x[i] = int8_t(kept.words.v[i / 4] >> i % 4 * 8) * scale[i];
            else x[i] = level[kept.words.v[i % 2] >> (c % 16 + i) / 2 * 4 & 15] * kept.scale;
            x[i] = float(floatX(x[i]));
        }
    }
};

// out (rows,cols) = w, in which many rows are to be multiplied. Cost: 3 or 2.5 bytes a number.
template <Form FORM> __global__ void unpack_kernel(floatX* out, Place<floatX> w, int rows, int cols) {
    SHARED(level, float[16]);
    const int across = (cols + WIDE - 1) / WIDE, at = blockIdx.x * blockDim.x + threadIdx.x;
    const int k = at / across, c = at % across * WIDE;
    const Neighbours<FORM> neighbours(w, c, cols, level);
    __syncthreads();
    if (k >= rows) return;
    float x[WIDE];
    neighbours.load(x, neighbours.row(k));
    out += (size_t)k * cols + c;
    if (cols % WIDE == 0) store(out, x);
    else for (int i = 0; i < WIDE && c + i < cols; i++) out[i] = floatX(x[i]);
}
inline void unpack(floatX* out, const Place<floatX>& w, int rows, int cols) {
    const int blocks = ceil_div((size_t)rows * ceil_div(cols, WIDE), 256);
    const auto kernel = w.form == Form::NF4 ? unpack_kernel<Form::NF4> : unpack_kernel<Form::INT8>;
    launch(kernel, blocks, 256, 0, out, w, rows, cols);
}

}  // namespace gpu
#endif
