/* dev/matmul.cu -- the linear layers' matrix products, and what they end in, in steps.
                                                                         make build/bench_matmul && build/bench_matmul

   out = x w, of x (N,C) and w (C,OC): 2 N C OC FLOPs, on operands and results of N C + C OC + N OC numbers
     naive           a thread takes a number of out: two loads for every multiply-add
     shared          a block takes 32 x 32 of out, and holds 32 x 32 of x and of w in shared memory: each number is
                     fetched 32 times less often. A thread takes 2 x 2 of out: a load, from shared memory, for every
                     multiply-add
     registers       a thread takes 4 x 4 of out, a block 64 x 64: half a load
     tensor_cores    a warp multiplies 16 x 16 by 16 x 8 with one instruction, the next 64 columns of x and rows of w
                     are fetched meanwhile. (bf16 only; sizes are multiples of 64.) This is mma.sync, of 2020: what
                     Hopper adds, products read from shared memory by four warps at once and tiles fetched by one
                     thread, is beyond it
     shipped         gpu::linear_forward: cuBLASLt, which knows the card

   Then all products of GPT-2 124M: forward, dx = dout w^T, dw += x^T dout. The residual stream is added apart, or in
   the product itself, before its results leave the registers. `first` is what cuBLASLt proposes first, `fastest` the
   best on the clock of 16 that it proposes; what ships is the best of those that give the bits of the first. `odd` is
   the head with the 50,257 columns that it has, no multiple of 8, so that no fast algorithm takes it; what ships has
   zeros up to 50,304. */
#include "bench.cuh"
namespace matmul_study {

__global__ void naive(floatX* out, const floatX* x, const floatX* w, int N, int C, int OC) {
    const int c = blockIdx.x * 32 + threadIdx.x % 32, n = blockIdx.y * 8 + threadIdx.x / 32;
    if (n >= N || c >= OC) return;
    float sum = 0;
    for (int k = 0; k < C; k++) sum += float(x[(size_t)n * C + k]) * float(w[(size_t)k * OC + c]);
    out[(size_t)n * OC + c] = floatX(sum);
}

// A thread takes R x R of a block's 16 R x 16 R numbers, a sixteenth of these apart, so that a warp's lie side by side.
template <int R> __global__ void tiled(floatX* out, const floatX* x, const floatX* w, int N, int C, int OC) {
    constexpr int K = 32, SIDE = 16 * R;
    SHARED(xs, float[K][SIDE + 1]);          // transposed; one more, so that a column's numbers lie in different banks
    SHARED(ws, float[K][SIDE]);
    const int n0 = blockIdx.y * SIDE, c0 = blockIdx.x * SIDE, row = threadIdx.x / 16, column = threadIdx.x % 16;
    float sums[R][R] = {};
    for (int k0 = 0; k0 < C; k0 += K) {
        for (int i = threadIdx.x; i < K * SIDE; i += blockDim.x) {
            const int n = n0 + i / K, c = c0 + i % SIDE, kx = k0 + i % K, kw = k0 + i / SIDE;
            xs[i % K][i / K] = n < N && kx < C ? float(x[(size_t)n * C + kx]) : 0;
            ws[i / SIDE][i % SIDE] = c < OC && kw < C ? float(w[(size_t)kw * OC + c]) : 0;
        }
        __syncthreads();
        for (int k = 0; k < K; k++) {
            float a[R], b[R];
            for (int i = 0; i < R; i++) {
                a[i] = xs[k][row + 16 * i];
                b[i] = ws[k][column + 16 * i];
            }
            for (int i = 0; i < R; i++) for (int j = 0; j < R; j++) sums[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < R; i++) for (int j = 0; j < R; j++) {
        const int n = n0 + row + 16 * i, c = c0 + column + 16 * j;
        if (n < N && c < OC) out[(size_t)n * OC + c] = floatX(sums[i][j]);
    }
}

#ifndef TRAIN_FP32
__global__ void __launch_bounds__(128)
tensor_cores(floatX* out, const floatX* x, const floatX* w, int N, int C, int OC) {
    SHARED_DYNAMIC(shared);
    using gpu::Tile, gpu::copies_commit, gpu::copies_wait;
    const unsigned base = gpu::shared_address(shared);
    const int n0 = blockIdx.y * 64, c0 = blockIdx.x * 64, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto of_x = [&](int k) { return Tile<64, 64>{base + k / 64 % 2 * Tile<64, 64>::BYTES}; };
    auto of_w = [&](int k) { return Tile<64, 64>{base + (2 + k / 64 % 2) * Tile<64, 64>::BYTES}; };
    auto fetch = [&](int k) {
        if (k < C) {
            of_x(k).fill(x + k, C, n0, N);
            of_w(k).fill(w + c0, OC, k, C);
        }
        copies_commit();
    };
    float sums[8][4] = {};
    fetch(0);
    for (int k = 0; k < C; k += 64) {
        fetch(k + 64);
        copies_wait<1>();
        __syncthreads();
        for (int i = 0; i < 64; i += 16) {
            unsigned a[4], b[4];
            of_x(k).as_a(a, warp * 16, i);
            for (int n = 0; n < 8; n += 2) {
                of_w(k).as_b(b, i, n * 8);
                gpu::mma(sums[n], a, b[0], b[1]);
                gpu::mma(sums[n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();                     // before the tile after the next takes the place of this one
    }
    for (int r = 0; r < 2; r++) {
        const int n = n0 + warp * 16 + lane / 4 + 8 * r;
        for (int i = 0; i < 8 && n < N; i++) {
            const float two[2] = {sums[i][2 * r], sums[i][2 * r + 1]};
            store(out + (size_t)n * OC + c0 + i * 8 + lane % 4 * 2, two);
        }
    }
}
#endif

__global__ void add(floatX* out, const floatX* plus, size_t n) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = floatX(float(out[i]) + float(plus[i]));
}

static Work work(double N, double C, double OC, double more = 0) {
    return {2 * N * C * OC, (N * C + C * OC + N * OC + more) * sizeof(floatX), BFLOAT16};
}
// Tensor cores cut off, rather than round, what they add to a sum in fp32, 16 products at a time: errors of one sign.
// (Fasi, Higham, Mikaitis, Pranesh 2021, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330)
static double sum_limit(int terms) { return std::max(1e-5, terms / 16 * 0x1p-24); }
static std::vector<float> weights(int C, int OC) { return numbers((size_t)C * OC, 1 / std::sqrt((double)C)); }

static void ladder(int N, int C, int OC) {
    Array<floatX> x(numbers((size_t)N * C)), w(weights(C, OC)), out((size_t)N * OC);
    cpu::linear_forward(out.cpu(), x.cpu(), cpu::Matrix{w.cpu(), OC, 1}, (float*)nullptr, (float*)nullptr, N, C, OC);
    auto tiles = [&](auto kernel, int side) {
        return [=, &out, &x, &w] {
            launch(kernel, dim3(ceil_div(OC, side), ceil_div(N, side)), 256, 0, out, x, w, N, C, OC);
        };
    };
    std::vector<Rung> rungs = {
        {"naive", [&] { launch(naive, dim3(ceil_div(OC, 32), ceil_div(N, 8)), 256, 0, out, x, w, N, C, OC); }},
        {"shared", tiles(tiled<2>, 32)}, {"registers", tiles(tiled<4>, 64)}};
#ifndef TRAIN_FP32
    if (C % 64 == 0 && OC % 64 == 0) rungs.push_back({"tensor_cores", [&] {
        launch(tensor_cores, dim3(OC / 64, ceil_div(N, 64)), 128, 4 * gpu::Tile<64, 64>::BYTES, out, x, w, N, C, OC);
    }});
#endif
    rungs.push_back({"shipped", [&] { gpu::linear_forward(out, x, w, nullptr, nullptr, N, C, OC); }});
    climb("product", format("N=%d C=%d OC=%d", N, C, OC), work(N, C, OC), {written("out", out, ONE)}, rungs);
}

// What cuBLASLt proposes first, and the best of all on the clock.
static void add_heuristics(std::vector<Rung>& rungs, gpu::Matmul p, void* to, const floatX* a, const floatX* b,
                          const floatX* bias = nullptr, const void* plus = nullptr) {
    double best = INFINITY;
    if (!plus) plus = to;
    p.alignment = gpu::alignment_of(a, b, plus, to);
    const std::vector<gpu::Plan> plans = gpu::heuristics(p, bias, timed ? gpu::MOST_HEURISTICS : 1);
    for (const gpu::Plan& plan : plans) {
        auto run = [=] { return gpu::matmul_with(plan, to, a, b, p, bias, plus); };
        auto must = [=] { if (run() != CUBLAS_STATUS_SUCCESS) die("cuBLASLt fails at what it proposes"); };
        if (&plan == &plans[0]) rungs.push_back({"first", must});
        if (!timed || run() != CUBLAS_STATUS_SUCCESS) continue;
        const double t = median_time(must);
        if (best < INFINITY && t < best) rungs.pop_back();
        if (t < best) {
            best = t;
            rungs.push_back({"fastest", must});
        }
    }
}
static void chosen(const std::string& name, const std::string& shape, const Work& work, const Result& result,
                   const gpu::Matmul& p, void* to, const floatX* a, const floatX* b,
                   const std::optional<gpu::Matmul>& odd = {}) {
    std::vector<Rung> rungs = {{"shipped", [=] { gpu::matmul(to, a, b, p); }}};
    if (odd) rungs.insert(rungs.begin(), {"odd", [=] { gpu::matmul(to, a, b, *odd); }});
    add_heuristics(rungs, p, to, a, b);
    climb(name, shape, work, {result}, rungs);
}

// A layer's three products. Forward is out = x w + b, or + stream.
static void layer(const std::string& name, int N, int C, int OC, bool residual, bool biased = true) {
    Array<floatX> x(numbers((size_t)N * C)), w(weights(C, OC)), b(numbers(OC)), dout(numbers((size_t)N * OC));
    Array<floatX> stream(numbers(dout.n)), out(dout.n), dx(x.n);
    Array<float> dw(numbers(w.n));
    const floatX *bias = biased ? b.p : nullptr, *plus = residual ? stream.p : nullptr;
    const cpu::Matrix matrix{w.cpu(), OC, 1};
    cpu::linear_forward(out.cpu(), x.cpu(), matrix, biased ? b.cpu() : nullptr, plus ? stream.cpu() : nullptr, N, C,
                        OC);
    cpu::linear_backward(dx.cpu(), dw.cpu(), dout.cpu(), x.cpu(), matrix, N, C, OC);
    const std::string shape = format("N=%d C=%d OC=%d%s", N, C, OC, biased ? "" : ", no bias");

    std::vector<Rung> rungs = {{"shipped", [&] { gpu::linear_forward(out, x, w, bias, plus, N, C, OC); }}};
    if (residual) rungs.insert(rungs.begin(), {"apart", [&] {
        gpu::linear_forward(out, x, w, bias, nullptr, N, C, OC);
        launch(add, ceil_div(out.n, 256), 256, 0, out, stream, out.n);
    }, false, 2 * ONE});
    gpu::Matmul p{OC, N, C, false, false, OC, C, OC};
    p.bias = biased;
    p.plus = plus;
    add_heuristics(rungs, p, out, w, x, bias, plus);
    climb(name + (residual ? " + residual forward" : " forward"), shape, work(N, C, OC, residual ? out.n : 0),
          {written("out", out, ONE)}, rungs);

    Work sum = work(N, C, OC);               // dw is fp32, read and written
    sum.bytes += (8.0 - sizeof(floatX)) * w.n;
    chosen(name + " dx", shape, work(N, C, OC), written("dx", dx, ONE),
           {C, N, OC, true, false, OC, OC, C}, dx, w, dout);
    chosen(name + " dw", shape, sum, written("dw", dw, sum_limit(N)),
           {OC, C, N, false, true, OC, C, OC, false, true, true}, dw, dout, x);
}
// the head: logits = x table^T; the table is (V,C), with rows of zeros behind, and logits have as many columns
static void head(int N, int C, int vocabulary) {
    const int V = gpu::padded(vocabulary);
    std::vector<float> rows = weights(C, V), given = numbers((size_t)N * V);
    std::fill(rows.begin() + (size_t)vocabulary * C, rows.end(), 0.0f);
    for (int n = 0; n < N; n++) std::fill(&given[(size_t)n * V] + vocabulary, &given[(size_t)n * V] + V, 0.0f);
    Array<floatX> x(numbers((size_t)N * C)), table(rows), dlogits(given), dx(x.n);
    Array<floatX> logits(std::vector<float>(given.size()));  // what `odd` does not write is zero, too
    Array<float> dtable(rows);
    cpu::gemm<float>({logits.cpu(), V}, {x.cpu(), C, 1}, {table.cpu(), 1, C}, N, V, C);
    cpu::gemm<float>({dx.cpu(), C}, {dlogits.cpu(), V, 1}, {table.cpu(), C, 1}, N, C, V);
    cpu::gemm<float>({dtable.cpu(), C, dtable.cpu()}, {dlogits.cpu(), 1, V}, {x.cpu(), C, 1}, V, C, N);
    const std::string shape = format("N=%d C=%d V=%d", N, C, vocabulary);
    Work sum = work(N, C, V);
    sum.bytes += (8.0 - sizeof(floatX)) * table.n;
    chosen("head forward", shape, work(N, C, V), written("logits", logits, ONE),
           {V, N, C, true, false, C, C, V}, logits, table, x, {{vocabulary, N, C, true, false, C, C, V}});
    chosen("head dx", shape, work(N, C, V), written("dx", dx, ONE),
           {C, N, V, false, false, C, V, C}, dx, table, dlogits, {{C, N, vocabulary, false, false, C, V, C}});
    chosen("head dtable", shape, sum, written("dtable", dtable, sum_limit(N)),
           {C, V, N, false, true, C, V, C, false, true, true}, dtable, x, dlogits,
           {{C, vocabulary, N, false, true, C, V, C, false, true, true}});
}

static const Study study([] {
    const int N = 64 * 1024;
    const struct { Size size; int N, C, OC; } shapes[] = {
        {TINY, 1, 1, 1}, {TINY, 5, 15, 21}, {TINY, 33, 64, 96}, {TINY, 70, 128, 64}, {SMALL, 64, 768, 192},
        {LARGE, 130, 768, 2304}, {TRAINING, N, 768, 3072}};
    const struct { Size size; const char* name; int N, C, OC; bool residual, biased; } layers[] = {
        {TINY, "one", 1, 1, 1, false, true}, {TINY, "odd", 5, 15, 21, true, true},
        {TINY, "odd", 7, 13, 19, false, true}, {TINY, "even", 33, 64, 96, false, true},
        {TINY, "even", 70, 128, 64, false, false}, {TINY, "even", 31, 64, 32, true, false},
        {SMALL, "wide", 64, 768, 768, false, true}, {LARGE, "large", 100, 768, 768, true, true},
        {TRAINING, "qkv", N, 768, 2304, false, true}, {TRAINING, "proj", N, 768, 768, true, true},
        {TRAINING, "fc", N, 768, 3072, false, true}, {TRAINING, "fcproj", N, 3072, 768, true, true}};
    const struct { Size size; int N, C, V; } heads[] = {{TINY, 5, 15, 21}, {SMALL, 33, 64, 101},
                                                        {TRAINING, N / 4, 768, 50257}};
    for (auto& s : shapes) if (s.size <= largest) ladder(s.N, s.C, s.OC);
    for (auto& l : layers) if (l.size <= largest) layer(l.name, l.N, l.C, l.OC, l.residual, l.biased);
    for (auto& h : heads) if (h.size <= largest) head(h.N, h.C, h.V);
});
}  // namespace matmul_study
