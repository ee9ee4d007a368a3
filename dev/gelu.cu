/* dev/gelu.cu -- the activation, forward and backward, in steps.              make build/bench_gelu && build/bench_gelu

   forward   out = gelu(x): x is read, out is written (x is 4C wide: 8X bytes)
     naive           a thread takes a number: each load fetches 2 bytes, 64 a warp, so that too few bytes are under way
     shipped         gpu::gelu_forward: 16 bytes a thread. cuBLASLt's product before it could end in the same function,
                     but takes as much longer then as this does: dev/SPEED.md

   backward  d = d gelu'(x), and db, its column sums: d and x are read, d is written, 12X
     atomics         a thread takes a number and adds it to db with an atomic: N of them meet at every column
     two_passes      d first, then its column sums by gpu::column_sums, in order: d is read once more
     one_row         a block takes 32 W columns and adds up what it writes, as it goes; but the next row is not asked
                     for before this one is written, since for all the compiler knows they could be the same
     shipped         gpu::gelu_backward: d and x are said to be apart (__restrict__), and two rows are under way at
                     once */
#include "bench.cuh"
namespace gelu_study {

__global__ void naive(floatX* out, const floatX* x, size_t n) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = floatX(::gelu(float(x[i])));
}
template <bool SUMS> __global__ void each(floatX* d, float* db, const floatX* x, size_t n, int C) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = float(d[i]) * gelu_grad(float(x[i]));
    d[i] = floatX(v);
    if (SUMS) atomicAdd(db + i % C, v);
}

template <int W> __global__ void one_row(floatX* d, float* partial, const floatX* x, int N, int C) {
    SHARED(sums, float[8][32 * W]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = (blockIdx.x * 32 + lane) * W;
    float sum[W] = {}, v[W], u[W];
    for (int n = blockIdx.y * 8 + warp; c < C && n < N; n += 8 * gridDim.y) {
        load(v, d + (size_t)n * C + c);
        load(u, x + (size_t)n * C + c);
        for (int i = 0; i < W; i++) sum[i] += v[i] *= gelu_grad(u[i]);
        store(d + (size_t)n * C + c, v);
    }
    for (int i = 0; i < W; i++) sums[warp][lane * W + i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * W; i += blockDim.x) {
        float total = 0;
        for (int k = 0; k < 8; k++) total += sums[k][i];
        const int column = blockIdx.x * 32 * W + i;
        if (column < C) partial[(size_t)blockIdx.y * C + column] = total;
    }
}

static void forward(size_t n) {
    Array<floatX> x(numbers(n, 2)), out(n);
    cpu::gelu_forward(out.cpu(), x.cpu(), n);
    climb("gelu forward", format("n=%zu", n), {8.0 * n, 2.0 * n * sizeof(floatX)}, {written("out", out, ONE)},
          {{"naive", [&] { launch(naive, ceil_div(n, 256), 256, 0, out, x, n); }},
           {"shipped", [&] { gpu::gelu_forward(out, x, n); }}});
}

static void backward(int N, int C) {
    const size_t n = (size_t)N * C;
    Array<floatX> x(numbers(n, 2)), d(numbers(n));
    Array<float> db(numbers(C)), partial(gpu::partial_size((C + 3) / 4));         // these are 4C wide
    cpu::gelu_backward(d.cpu(), d.cpu(), x.cpu(), n);
    cpu::bias_backward(db.cpu(), d.cpu(), N, C);
    // A sum of numbers rounded by up to ONE / 2 of each, which is ONE / sqrt(12) of it in the mean: 4 standard
    // deviations.
    const double of_rounded = 4 * ONE / std::sqrt(12) * norm(d.host) / norm(db.host);
    climb("gelu backward", format("N=%d 4C=%d", N, C), {16.0 * n, 3.0 * n * sizeof(floatX)},
          {written("d", d, ONE), written("db", db, 1e-5)},
          {{"atomics", [&] { launch(each<true>, ceil_div(n, 256), 256, 0, d, db, x, n, C); }, true},
           {"two_passes", [&] {
                launch(each<false>, ceil_div(n, 256), 256, 0, d, db, x, n, C);
                gpu::column_sums(d.p, db, partial, N, C);
            }, false, of_rounded},
           {"one_row", [&] {
                const int across = ceil_div(C, 32 * (C % WIDE ? 1 : WIDE));
                const int down = std::clamp(gpu::SUM_BLOCKS * gpu::device().sms() / across, 1, ceil_div(N, 8));
                launch(WIDTH(C, one_row), dim3(across, down), 256, 0, d, partial, x, N, C);
                gpu::add_partials({db, nullptr, nullptr}, 1, partial, down, C);
            }},
           {"shipped", [&] { gpu::gelu_backward(d, db, partial, x, N, C); }}});
}

// db of a gradient that is there already, as attention's is: (N,C) is read once
static void column_sums(int N, int C) {
    Array<floatX> d(numbers((size_t)N * C));
    Array<float> db(numbers(C)), partial(gpu::partial_size((C + 3) / 4));         // these are 4C wide
    cpu::bias_backward(db.cpu(), d.cpu(), N, C);
    climb("column sums", format("N=%d C=%d", N, C), {1.0 * d.n, 1.0 * d.n * sizeof(floatX), FP32, READ},
          {written("db", db, 1e-5)},
          {{"shipped", [&] { gpu::column_sums(d.p, db, partial, N, C); }}});
}

static const Study study([] {
    const struct { Size size; int N, C; } shapes[] = {{TINY, 1, 1}, {TINY, 3, 15}, {TINY, 33, 96}, {TINY, 600, 8},
                                                      {SMALL, 7, 24}, {SMALL, 5, 768}, {SMALL, 2, 6400},
                                                      {LARGE, 300, 3072}, {LARGE, 1001, 9},
                                                      {TRAINING, 64 * 1024, 3072}};
    for (auto& s : shapes) if (s.size <= largest) {
        forward((size_t)s.N * s.C);
        backward(s.N, s.C);
        column_sums(s.N, s.size == TRAINING ? 2304 : s.C);   // of dqkv
    }
});
}  // namespace gelu_study
