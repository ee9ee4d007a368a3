/* dev/layernorm.cu -- layernorm, forward and backward, in steps.    make build/bench_layernorm && build/bench_layernorm

   forward   out = (x - mean) rstd w + b: x is read, out is written, 2X bytes
     naive           a thread takes a row: the threads of a warp read C numbers apart, so of each 32-byte sector that
                     arrives one number is used, and the rest must still be in the cache when its turn comes
     warp_per_row    a warp takes a row: its lanes read neighbours. But x is read three times, 2 bytes at a time: from
                     the level-1 cache at best, and always through the load units
     wide            16 bytes at a time: an eighth of the instructions, and more bytes under way for each
     in_shared       the row stays in shared memory after the first read
     shipped         gpu::layernorm_forward: it stays in registers, up to 768 or 1792 columns; their number must be
                     known when this is compiled, so what is beyond is read again

   backward  dresidual += ..., and the column sums dw, db, dbias: x, dout and dresidual are read, dresidual is written,
             4X
     atomics         a warp takes a row, and adds to dw, db and dbias with atomics: all rows add to the same 3C numbers,
                     one after another, in any order
     two_passes      one kernel for dresidual, one for the sums, where a block of 32 columns runs down all rows: in
                     order, but x, dout and dresidual are read again, and C / 32 blocks are too few to fill the GPU
     sums_in_shared  one kernel: a warp takes rows, and adds to its own sums of all columns in shared memory, six
                     accesses a number; and it waits for a row before it asks for the next
     shipped         gpu::layernorm_backward: some rows of all three arrays are asked for at once and come to shared
                     memory; warps go along them for the means, then threads down them, with the columns' sums in
                     registers */
#include "bench.cuh"
namespace layernorm_study {

__global__ void naive(floatX* out, float* mean, float* rstd, const floatX* x, const floatX* w, const floatX* b, int N,
                      int C, float eps) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    x += (size_t)n * C;
    out += (size_t)n * C;
    float m = 0, squares = 0;
    for (int c = 0; c < C; c++) m += float(x[c]) / C;
    for (int c = 0; c < C; c++) squares += (float(x[c]) - m) * (float(x[c]) - m);
    const float r = rsqrtf(squares / C + eps);
    for (int c = 0; c < C; c++) out[c] = floatX((float(x[c]) - m) * r * float(w[c]) + float(b[c]));
    mean[n] = m;
    rstd[n] = r;
}
template <int W>
__global__ void warp_per_row(floatX* out, float* mean, float* rstd, const floatX* x, const floatX* w, const floatX* b,
                             int N, int C, float eps) {
    const int n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= N) return;
    x += (size_t)n * C;
    out += (size_t)n * C;
    float sum = 0, squares = 0, v[W], weight[W], bias[W];
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + c);
        for (int i = 0; i < W; i++) sum += v[i];
    }
    const float m = warp_sum(sum) / C;
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + c);
        for (int i = 0; i < W; i++) squares += (v[i] - m) * (v[i] - m);
    }
    const float r = rsqrtf(warp_sum(squares) / C + eps);
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + c);
        load(weight, w + c);
        load(bias, b + c);
        for (int i = 0; i < W; i++) v[i] = (v[i] - m) * r * weight[i] + bias[i];
        store(out + c, v);
    }
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

// Numbers for a row of C. The W neighbours that a lane loads lie 32 apart, so that a warp meets each bank once.
HD int banked(int C) { return (C + 32 * WIDE - 1) / (32 * WIDE) * 32 * WIDE; }
template <int W>
__global__ void in_shared(floatX* out, float* mean, float* rstd, const floatX* x, const floatX* w, const floatX* b,
                          int N, int C, float eps) {
    SHARED_DYNAMIC(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + warp;
    if (n >= N) return;
    float *row = (float*)shared + warp * banked(C) + lane, sum = 0, squares = 0, v[W], weight[W], bias[W];
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + (size_t)n * C + c);
        for (int i = 0; i < W; i++) {
            row[c - lane * W + 32 * i] = v[i];
            sum += v[i];
        }
    }
    const float m = warp_sum(sum) / C;
    for (int c = lane * W; c < C; c += 32 * W)
        for (int i = 0; i < W; i++) {
            const float d = row[c - lane * W + 32 * i] - m;
            squares += d * d;
        }
    const float r = rsqrtf(warp_sum(squares) / C + eps);
    for (int c = lane * W; c < C; c += 32 * W) {
        load(weight, w + c);
        load(bias, b + c);
        for (int i = 0; i < W; i++) v[i] = (row[c - lane * W + 32 * i] - m) * r * weight[i] + bias[i];
        store(out + (size_t)n * C + c, v);
    }
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

// a row's dresidual, by a warp; with SUMS, its part of dw, db and dbias as well
template <bool SUMS>
__global__ void row_backward(floatX* dresidual, float* dw, float* db, float* dbias, const floatX* dout, const floatX* x,
                             const floatX* w, const float* mean, const float* rstd, int N, int C) {
    const int n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= N) return;
    x += (size_t)n * C;
    dout += (size_t)n * C;
    dresidual += (size_t)n * C;
    const float m = mean[n], r = rstd[n];
    float sum = 0, dot = 0;
    for (int c = lane; c < C; c += 32) {
        const float dxhat = float(dout[c]) * float(w[c]);
        sum += dxhat;
        dot += dxhat * (float(x[c]) - m) * r;
    }
    sum = warp_sum(sum) / C;
    dot = warp_sum(dot) / C;
    for (int c = lane; c < C; c += 32) {
        const float d = float(dout[c]), xhat = (float(x[c]) - m) * r;
        const float g = float(dresidual[c]) + r * (d * float(w[c]) - sum - xhat * dot);
        dresidual[c] = floatX(g);
        if (SUMS) {
            atomicAdd(dw + c, d * xhat);
            atomicAdd(db + c, d);
            atomicAdd(dbias + c, g);
        }
    }
}
__global__ void columns(float* dw, float* db, float* dbias, const floatX* dresidual, const floatX* dout,
                        const floatX* x, const float* mean, const float* rstd, int N, int C) {
    SHARED(sums, float[3][8][32]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum[3] = {};
    for (int n = warp; c < C && n < N; n += 8) {
        const size_t at = (size_t)n * C + c;
        const float d = float(dout[at]);
        sum[0] += d * (float(x[at]) - mean[n]) * rstd[n];
        sum[1] += d;
        sum[2] += float(dresidual[at]);
    }
    for (int k = 0; k < 3; k++) sums[k][warp][lane] = sum[k];
    __syncthreads();
    if (warp || c >= C) return;
    for (int k = 0; k < 3; k++) {
        for (int i = 1; i < 8; i++) sum[k] += sums[k][i][lane];
        (k == 0 ? dw : k == 1 ? db : dbias)[c] += sum[k];
    }
}

template <int W>
__global__ void sums_in_shared(floatX* dresidual, float* partial, const floatX* dout, const floatX* x, const floatX* w,
                               const float* mean, const float* rstd, int N, int C) {
    SHARED_DYNAMIC(shared);
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = banked(C);
    float* const sums = (float*)shared + warp * 3 * row;     // dw, db, dbias; W neighbours lie 32 apart
    for (int c = lane; c < 3 * row; c += 32) sums[c] = 0;
    __syncwarp();
    for (int n = blockIdx.x * warps + warp; n < N; n += gridDim.x * warps) {
        const size_t at = (size_t)n * C;
        const float m = mean[n], r = rstd[n];
        float sum = 0, dot = 0, d[W], v[W], weight[W], g[W];
        for (int c = lane * W; c < C; c += 32 * W) {
            load(d, dout + at + c);
            load(v, x + at + c);
            load(weight, w + c);
            for (int i = 0; i < W; i++) {
                sum += d[i] * weight[i];
                dot += d[i] * weight[i] * (v[i] - m) * r;
            }
        }
        sum = warp_sum(sum) / C;
        dot = warp_sum(dot) / C;
        for (int c = lane * W; c < C; c += 32 * W) {
            load(d, dout + at + c);
            load(v, x + at + c);
            load(weight, w + c);
            load(g, dresidual + at + c);
            for (int i = 0; i < W; i++) {
                const float xhat = (v[i] - m) * r;
                g[i] += r * (d[i] * weight[i] - sum - xhat * dot);
                float* s = sums + c - lane * W + lane + 32 * i;
                s[0] += d[i] * xhat;
                s[row] += d[i];
                s[2 * row] += g[i];
            }
            store(dresidual + at + c, g);
        }
    }
    __syncthreads();
    for (int k = 0; k < 3; k++) for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const int place = k * row + c / (32 * W) * 32 * W + c % W * 32 + c % (32 * W) / W;
        float sum = 0;
        for (int i = 0; i < warps; i++) sum += ((float*)shared)[i * 3 * row + place];
        partial[((size_t)blockIdx.x * 3 + k) * C + c] = sum;
    }
}

static void forward(int N, int C) {
    Array<floatX> x(numbers((size_t)N * C, 2)), w(numbers(C)), b(numbers(C)), out(x.n);
    Array<float> mean(N), rstd(N);
    cpu::layernorm_forward(out.cpu(), mean.cpu(), rstd.cpu(), x.cpu(), w.cpu(), b.cpu(), N, C, 1e-5);
    const auto warps = [&](auto kernel) {
        return [=, &x, &w, &b, &out, &mean, &rstd] {
            launch(kernel, ceil_div(N, 8), 256, 0, out, mean, rstd, x, w, b, N, C, 1e-5f);
        };
    };
    std::vector<Rung> rungs = {
        {"naive", [&] { launch(naive, ceil_div(N, 256), 256, 0, out, mean, rstd, x, w, b, N, C, 1e-5f); }},
        {"warp_per_row", warps(warp_per_row<1>)},
        {"wide", warps(WIDTH(C, warp_per_row))}};
    const size_t row = banked(C) * sizeof(float);
    rungs.push_back({"in_shared", [&, each = gpu::rows_for(row, 8)] {
        launch(WIDTH(C, in_shared), ceil_div(N, each), 32 * each, row * each, out, mean, rstd, x, w, b, N, C, 1e-5f);
    }});
    rungs.push_back({"shipped", [&] { gpu::layernorm_forward(out, mean, rstd, x, w, b, N, C, 1e-5); }});
    climb("layernorm forward", format("N=%d C=%d", N, C), {7.0 * x.n, 2.0 * x.n * sizeof(floatX)},
          {written("out", out, ONE), written("mean", mean, 1e-5), written("rstd", rstd, 1e-5)}, rungs);
}

static void backward(int N, int C) {
    Array<floatX> x(numbers((size_t)N * C, 2)), w(numbers(C)), dout(numbers(x.n)), dresidual(numbers(x.n));
    Array<float> dw(numbers(C)), db(numbers(C)), dbias(numbers(C)), partial(gpu::partial_size(C));
    std::vector<float> unused(x.n), m(N), r(N);
    cpu::layernorm_forward(unused.data(), m.data(), r.data(), x.cpu(), w.cpu(), w.cpu(), N, C, 1e-5);
    Array<float> mean(m), rstd(r);
    cpu::layernorm_backward(dresidual.cpu(), dw.cpu(), db.cpu(), dout.cpu(), x.cpu(), w.cpu(), mean.cpu(), rstd.cpu(),
                            N, C);
    cpu::bias_backward(dbias.cpu(), dresidual.cpu(), N, C);
    climb("layernorm backward", format("N=%d C=%d", N, C), {17.0 * x.n, 4.0 * x.n * sizeof(floatX)},
          {written("dresidual", dresidual, ONE), written("dw", dw, 1e-5), written("db", db, 1e-5),
           written("dbias", dbias, 1e-5)},
          {{"atomics", [&] {
                launch(row_backward<true>, ceil_div(N, 8), 256, 0, dresidual, dw, db, dbias, dout, x, w, mean, rstd, N,
                       C);
            }, true},
           {"two_passes", [&] {
                launch(row_backward<false>, ceil_div(N, 8), 256, 0, dresidual, dw, db, dbias, dout, x, w, mean, rstd, N,
                       C);
                launch(columns, ceil_div(C, 32), 256, 0, dw, db, dbias, dresidual, dout, x, mean, rstd, N, C);
            }, false, ONE},                  // dbias is the sum of rounded numbers
           {"sums_in_shared", [&] {
                const size_t row = 3 * sizeof(float) * banked(C);
                const int each = gpu::rows_for(row, 8);
                const int blocks = std::min(ceil_div(N, each), gpu::SUM_BLOCKS * gpu::device().sms());
                launch(WIDTH(C, sums_in_shared), blocks, 32 * each, each * row, dresidual, partial, dout, x, w, mean,
                       rstd, N, C);
                gpu::add_partials({dw, db, dbias}, 3, partial, blocks, C);
            }},
           {"shipped", [&] {
                gpu::layernorm_backward(dresidual, true, dw, db, dbias, partial, dout, x, w, mean, rstd, N, C);
            }}});
}

static const Study study([] {
    const struct { Size size; int N, C; } shapes[] = {
        {TINY, 1, 1}, {TINY, 3, 15}, {TINY, 7, 24}, {TINY, 40, 64}, {SMALL, 5, 768}, {SMALL, 2, 1600},
        {TINY, 101, 8},                      // more rows than all blocks take at once
        {SMALL, 2, gpu::LAYERNORM_THREADS * WIDE}, {SMALL, 3, gpu::LAYERNORM_THREADS * 4 - 1},           // the widest
        {LARGE, 300, 768}, {LARGE, 37, 1000}, {LARGE, 1000, 8},
        {TRAINING, 64 * 1024, 768}, {TRAINING, 16 * 1024, 1600}};
    for (auto& s : shapes) if (s.size <= largest) {
        forward(s.N, s.C);
        backward(s.N, s.C);
    }
});
}  // namespace layernorm_study
