/* dev/attention.cu -- causal self-attention, forward and backward, in steps.
                                                                     make build/bench_attention && build/bench_attention

   forward   2 B T^2 C FLOPs, half of what full attention takes; qkv is read, out is written, 4X bytes
     matrix          as the formulas stand: scores to a matrix (T,T) of each head, its softmax, times v. It is written
                     three times and read four, and takes 10 times the bytes of q, k and v together at T = 1024
     plain           no matrix: a block takes a query and holds its row of scores; but every query reads all keys and values
     keys_shared     a thread takes a query, 64 of them share each key and value through shared memory, with a running
                     maximum and sum (Milakov, Gimelshein 2018, arXiv:1805.02867): 1 / 64 of the reads, but multiply-adds
                     of single numbers
     shipped         gpu::attention_forward: 64 queries by 64 keys on tensor cores, the next keys fetched meanwhile
                     (Dao 2023, arXiv:2307.08691)

   backward  5 B T^2 C FLOPs; qkv, out and dout are read, dqkv is written, 8X bytes
     atomics         a block takes a key and all queries after it, once: dk and dv are its own, dq is added to by every key
                     with atomics, in any order, and to a copy in fp32
     plain           twice: a block for each key, then one for each query, so that each result has one writer
     shipped         gpu::attention_backward: the same two passes on tensor cores: 7 B T^2 C FLOPs instead of 5, in order */
#include "bench.cuh"
namespace attention_study {

__global__ void scores(float* s, const floatX* qkv, int T, int C, int HS, float scale) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, b = blockIdx.z * HS / C, h = blockIdx.z % (C / HS);
    if (j >= T) return;
    const floatX *q = qkv + ((size_t)b * T + i) * 3 * C + h * HS, *k = qkv + ((size_t)b * T + j) * 3 * C + C + h * HS;
    float dot = 0;
    for (int c = 0; c < HS && j <= i; c++) dot += float(q[c]) * float(k[c]);
    s[((size_t)blockIdx.z * T + i) * T + j] = j <= i ? dot * scale : -INFINITY;
}
__global__ void softmax(float* s, float* lse, int T) {
    s += (size_t)blockIdx.x * T;
    float highest = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < T; j += blockDim.x) highest = fmaxf(highest, s[j]);
    highest = gpu::block_max(highest);
    for (int j = threadIdx.x; j < T; j += blockDim.x) sum += s[j] = expf(s[j] - highest);
    sum = gpu::block_sum(sum);
    for (int j = threadIdx.x; j < T; j += blockDim.x) s[j] /= sum;
    if (threadIdx.x == 0) lse[blockIdx.x] = highest + logf(sum);
}
__global__ void times_v(floatX* out, const float* p, const floatX* qkv, int T, int C, int HS) {
    const int c = threadIdx.x, i = blockIdx.x, b = blockIdx.y * HS / C, h = blockIdx.y % (C / HS);
    float sum = 0;
    const floatX* v = qkv + (size_t)b * T * 3 * C + 2 * C + h * HS + c;
    p += ((size_t)blockIdx.y * T + i) * T;
    for (int j = 0; j < T; j++) sum += p[j] * float(v[(size_t)j * 3 * C]);
    out[((size_t)b * T + i) * C + h * HS + c] = floatX(sum);
}

template <int HS>
__global__ void __launch_bounds__(64) keys_shared(floatX* out, float* lse, const floatX* qkv, int T, int C, float scale) {
    SHARED(k, float[32][HS]);
    SHARED(v, float[32][HS]);
    const int i = blockIdx.x * 64 + threadIdx.x, h = blockIdx.y, b = blockIdx.z;
    const floatX* row = qkv + (size_t)b * T * 3 * C + h * HS;
    float q[HS], o[HS], highest = -INFINITY, sum = 0;
    #pragma unroll
    for (int c = 0; c < HS; c++) q[c] = i < T ? float(row[(size_t)i * 3 * C + c]) : 0, o[c] = 0;
    for (int j0 = 0; j0 < T && j0 < int(blockIdx.x + 1) * 64; j0 += 32) {
        __syncthreads();
        for (int n = threadIdx.x; n < 32 * HS; n += 64) {
            const int j = j0 + n / HS;
            const floatX* at = row + (size_t)::min(j, T - 1) * 3 * C + C + n % HS;
            k[n / HS][n % HS] = float(at[0]), v[n / HS][n % HS] = float(at[C]);
        }
        __syncthreads();
        for (int j = 0; j < 32 && j0 + j <= i && i < T; j++) {
            float s = 0;
            #pragma unroll
            for (int c = 0; c < HS; c++) s += q[c] * k[j][c];
            s *= scale;
            const float high = fmaxf(highest, s), shrink = expf(highest - high), p = expf(s - high);
            highest = high, sum = sum * shrink + p;
            #pragma unroll
            for (int c = 0; c < HS; c++) o[c] = o[c] * shrink + p * v[j][c];
        }
    }
    if (i >= T) return;
    #pragma unroll
    for (int c = 0; c < HS; c++) out[((size_t)b * T + i) * C + h * HS + c] = floatX(o[c] / sum);
    lse[((size_t)b * gridDim.y + h) * T + i] = highest + logf(sum);
}

// one key: dk and dv, and its part of every dq
__global__ void backward_atomics(floatX* dqkv, float* dq, const floatX* dout, const floatX* qkv, const float* lse,
                                 const float* D, int T, int C, int HS, float scale) {
    SHARED_DYNAMIC(shared);
    float *p = (float*)shared, *ds = p + T;
    const int j = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const size_t per_head = ((size_t)b * gridDim.y + h) * T;
    const floatX *row = qkv + (size_t)b * T * 3 * C + h * HS, *dout_0 = dout + (size_t)b * T * C + h * HS;
    const floatX* k = row + (size_t)j * 3 * C + C;
    for (int i = j + threadIdx.x; i < T; i += blockDim.x) {
        const gpu::Probability r = gpu::recompute(row + (size_t)i * 3 * C, k, k + C, dout_0 + (size_t)i * C,
                                                  lse[per_head + i], D[per_head + i], HS, scale);
        p[i] = r.p, ds[i] = r.ds;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < HS; c += blockDim.x) {
        float dk = 0, dv = 0;
        for (int i = j; i < T; i++) {
            dk += ds[i] * float(row[(size_t)i * 3 * C + c]), dv += p[i] * float(dout_0[(size_t)i * C + c]);
            atomicAdd(dq + ((size_t)b * T + i) * C + h * HS + c, ds[i] * float(k[c]));
        }
        floatX* to = dqkv + ((size_t)b * T + j) * 3 * C + C + h * HS + c;
        to[0] = floatX(dk), to[C] = floatX(dv);
    }
}
__global__ void round_dq(floatX* dqkv, const float* dq, size_t n, int C) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) dqkv[i / C * 3 * C + i % C] = floatX(dq[i]);
}

// lse is (B,NH,T) on the GPU, (B,T,NH) on the CPU
static std::vector<float> turned(const std::vector<float>& lse, int B, int T, int NH) {
    std::vector<float> v(lse.size());
    for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) for (int h = 0; h < NH; h++)
        v[((size_t)b * NH + h) * T + t] = lse[((size_t)b * T + t) * NH + h];
    return v;
}

// T queries from t0 on, among S tokens that there is room for: in training t0 = 0, S = T.
static void forward(int B, int t0, int T, int S, int NH, int HS) {
    const int C = NH * HS;
    const float scale = 1 / std::sqrt((float)HS);
    Array<floatX> qkv(numbers((size_t)B * S * 3 * C)), out((size_t)B * T * C);
    Array<float> lse((size_t)B * T * NH), matrix(t0 || S != T ? 0 : (size_t)B * NH * T * T);
    cpu::attention_forward(out.cpu(), lse.cpu(), qkv.cpu(), B, t0, T, S, C, NH);
    lse.host = turned(lse.host, B, T, NH);
    std::vector<Rung> rungs;
    if (matrix.n) rungs.push_back({"matrix", [&] {
        launch(scores, dim3(blocks_for(T, 128), T, B * NH), 128, 0, matrix, qkv, T, C, HS, scale);
        launch(softmax, B * NH * T, 128, 0, matrix, lse, T);
        launch(times_v, dim3(T, B * NH), HS, 0, out, matrix, qkv, T, C, HS);
    }});
    rungs.push_back({"plain", [&] {
        launch(gpu::attention_forward_plain, dim3(T, NH, B), gpu::threads_for(t0 + T, 128), gpu::scores_size(t0 + T), out, lse,
               qkv, t0, T, S, C, HS, scale);
    }});
    if (matrix.n && HS == 64) rungs.push_back({"keys_shared", [&] {
        launch(keys_shared<64>, dim3(blocks_for(T, 64), NH, B), 64, 0, out, lse, qkv, T, C, scale);
    }});
    rungs.push_back({"shipped", [&] { gpu::attention_forward(out, lse, qkv, B, t0, T, S, C, NH); }});
    climb("attention forward", format("B=%d T=%d..%d of %d, %d heads of %d", B, t0, t0 + T - 1, S, NH, HS),
          {.flops = 2.0 * B * T * (2 * t0 + T) * C, .bytes = 2.0 * B * (t0 + 2 * T) * C * sizeof(floatX)},
          {written("out", out, 1.5 * ONE), written("lse", lse, 1e-5)}, rungs);
}

static void backward(int B, int T, int NH, int HS) {
    const int C = NH * HS;
    const float scale = 1 / std::sqrt((float)HS);
    Array<floatX> qkv(numbers((size_t)B * T * 3 * C)), dout(numbers((size_t)B * T * C)), dqkv(qkv.n);
    std::vector<float> o(dout.n), l((size_t)B * T * NH);
    cpu::attention_forward(o.data(), l.data(), qkv.cpu(), B, 0, T, T, C, NH);
    Array<floatX> out(rounded(o));           // as forward leaves it
    Array<float> lse(turned(l, B, T, NH)), D(lse.n), dq(std::vector<float>(out.n));
    cpu::attention_backward(dqkv.cpu(), dout.cpu(), qkv.cpu(), out.cpu(), l.data(), B, T, C, NH);
    auto dots = [&] { launch(gpu::attention_dot_kernel, blocks_for(lse.n, 8), 256, 0, D, dout, out, (int)lse.n, T, NH, HS); };
    const dim3 grid(T, NH, B);
    const int threads = gpu::threads_for(T, 128);
    climb("attention backward", format("B=%d T=%d, %d heads of %d", B, T, NH, HS),
          {.flops = 5.0 * B * T * T * C, .bytes = 8.0 * out.n * sizeof(floatX)}, {written("dqkv", dqkv, 2 * ONE, 2e-5)},
          {{"atomics", [&] {
                dots(), ok(cudaMemsetAsync(dq, 0, dq.n * sizeof(float), stream()));
                launch(backward_atomics, grid, threads, gpu::scores_size(2 * T), dqkv, dq, dout, qkv, lse, D, T, C, HS, scale);
                launch(round_dq, blocks_for(dq.n, 256), 256, 0, dqkv, dq, dq.n, C);
            }, true},
           {"plain", [&] {
                dots();
                for (auto kernel : {gpu::attention_backward_plain<true>, gpu::attention_backward_plain<false>})
                    launch(kernel, grid, threads, gpu::scores_size(2 * T), dqkv, dout, qkv, lse, D, T, C, HS, scale);
            }},
           {"shipped", [&] { gpu::attention_backward(dqkv, D, dout, qkv, out, lse, B, T, C, NH); }}});
}

static const Study study([] {
    const struct { Size size; int B, t0, T, S, NH, HS; } shapes[] = {
        {TINY, 1, 0, 1, 1, 1, 1}, {TINY, 2, 0, 5, 5, 3, 5}, {TINY, 1, 0, 33, 33, 2, 24}, {TINY, 1, 0, 64, 64, 2, 64},
        {TINY, 1, 0, 65, 65, 1, 64}, {TINY, 1, 0, 70, 70, 1, 128}, {SMALL, 2, 0, 130, 130, 1, 128},
        {SMALL, 1, 0, 200, 200, 1, 64}, {LARGE, 2, 0, 256, 256, 2, 64}, {LARGE, 1, 0, 255, 255, 3, 128},
        {LARGE, 2, 0, 193, 193, 2, 40},
        // as when sampling: the first tokens at once, one more, and some more
        {TINY, 2, 0, 7, 20, 2, 64}, {TINY, 2, 7, 1, 20, 2, 64}, {TINY, 1, 3, 4, 9, 3, 5},
        {TRAINING, 64, 0, 1024, 1024, 12, 64}, {TRAINING, 16, 0, 1024, 1024, 25, 64}, {TRAINING, 16, 0, 1024, 1024, 8, 128},
        {TRAINING, 8, 1023, 1, 1024, 12, 64}};
    for (auto& s : shapes) {
        if (s.size > largest) continue;
        forward(s.B, s.t0, s.T, s.S, s.NH, s.HS);
        if (s.t0 == 0 && s.S == s.T) backward(s.B, s.T, s.NH, s.HS);
    }
});
}  // namespace attention_study
