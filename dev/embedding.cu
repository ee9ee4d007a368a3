/* dev/embedding.cu -- tokens and positions to vectors, and back, in steps.
                                                                     make build/bench_embedding && build/bench_embedding

   forward   embedded = wte[token] + wpe[t], and its layernorm, which all GPT-2 layers begin with: rows of wte, mostly
             from the cache, are read, embedded and out are written; 3X bytes with wte, of which X is random rows
     separate        one kernel adds, gpu::layernorm_forward reads what it wrote: 4X
     shipped         gpu::layernorm_forward with an Embedding: the row is normalized where it is made

   backward  dwte[token] += dout, dwpe[t] += sum over b: dout is read twice, rows of dwte are updated
     atomics         a thread takes a number of dout and adds it with an atomic to both: frequent tokens have thousands
                     of positions, which wait for each other and arrive in any order
     search          a block takes a token of the vocabulary and looks for it at all N positions: in order, but N V
                     comparisons
     sorted          the host sorts the positions by token while it prepares the batch, a block takes a token that
                     occurs: every position is read once, but the most frequent token's block is at work long after all
                     others
     shipped         gpu::embedding_backward: pieces of one token, of 64 positions at most; then each token's pieces */
#include "bench.cuh"
namespace embedding_study {

__global__ void add(floatX* out, const int* x, const floatX* wte, const floatX* wpe, int t0, int T, size_t n, int C) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int c = i % C, position = i / C;
    out[i] = floatX(float(wte[(size_t)x[position] * C + c]) + float(wpe[(size_t)(t0 + position % T) * C + c]));
}
__global__ void atomics(float* dwte, float* dwpe, const floatX* dout, const int* x, int T, size_t n, int C) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int c = i % C, position = i / C;
    atomicAdd(dwte + (size_t)x[position] * C + c, float(dout[i]));
    atomicAdd(dwpe + (size_t)(position % T) * C + c, float(dout[i]));
}
__global__ void search(float* dwte, const floatX* dout, const int* x, int N, int C) {
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int n = 0; n < N; n++) if (x[n] == int(blockIdx.x)) sum += float(dout[(size_t)n * C + c]);
        dwte[(size_t)blockIdx.x * C + c] += sum;
    }
}

__global__ void sorted_tokens(float* dwte, const floatX* dout, const int* x, gpu::Occurrences o, int C) {
    if (int(blockIdx.x) >= *o.tokens) return;
    const int from = o.start[o.first[blockIdx.x]], to = o.start[o.first[blockIdx.x + 1]];
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int i = from; i < to; i++) sum += float(dout[(size_t)o.order[i] * C + c]);
        dwte[(size_t)x[o.order[from]] * C + c] += sum;
    }
}

// Tokens as they are in text: the k-th most frequent comes as often as 1 / k (Zipf's law).
static std::vector<int> tokens(int N, int V) {
    std::vector<int> x(N);
    Rng rng(++numbers_seed);
    for (int& token : x) token = std::min(V - 1, int(std::exp(rng.uniform() * std::log(V + 1.0))) - 1);
    return x;
}

static void forward(int B, int T, int V, int C) {
    const int N = B * T, t0 = 2;
    Array<int> x(tokens(N, V));
    Array<floatX> wte(numbers((size_t)V * C)), wpe(numbers((size_t)(t0 + T) * C)), w(numbers(C)), b(numbers(C));
    Array<floatX> embedded((size_t)N * C), out(embedded.n);
    Array<float> mean(N), rstd(N);
    cpu::embedding_forward(embedded.cpu(), x.cpu(), wte.cpu(), wpe.cpu(), B, t0, T, C);
    embedded.host = rounded(embedded.host);
    cpu::layernorm_forward(out.cpu(), mean.cpu(), rstd.cpu(), embedded.cpu(), w.cpu(), b.cpu(), N, C, 1e-5);
    climb("embedding and layernorm forward", format("B=%d T=%d V=%d C=%d", B, T, V, C),
          {8.0 * embedded.n, 3.0 * embedded.n * sizeof(floatX)},
          {written("embedded", embedded, 0, 0), written("out", out, ONE)},
          {{"separate", [&] {
                launch(add, ceil_div(embedded.n, 256), 256, 0, embedded, x, wte, wpe, t0, T, embedded.n, C);
                gpu::layernorm_forward(out, mean, rstd, embedded, w, b, N, C, 1e-5);
            }},
           {"shipped", [&] {
                gpu::layernorm_forward(out, mean, rstd, nullptr, w, b, N, C, 1e-5, {embedded, x, wte, wpe, t0, T});
            }}});
}

static void backward(int B, int T, int V, int C) {
    const int N = B * T;
    Array<int> x(tokens(N, V));
    Array<floatX> dout(numbers((size_t)N * C));
    Array<float> dwte(numbers((size_t)V * C)), dwpe(numbers((size_t)T * C));
    const gpu::SortedTokens sorted = gpu::sort_tokens(x.cpu(), N, V);
    const int occurring = (int)sorted.first.size() - 1;
    Array<int> order(sorted.order), start(sorted.start), first(sorted.first), count(std::vector<int>{occurring});
    Array<float> partial((sorted.start.size() - 1) * C);
    const gpu::Occurrences o = {order, start, first, count};
    const auto positions = [&] {
        const int blocks = ceil_div((size_t)T * C, 128);
        launch(WIDTH(C, gpu::embedding_backward_wpe_kernel), blocks, 128, 0, dwpe, dout, B, T * C);
    };
    cpu::embedding_backward(dwte.cpu(), dwpe.cpu(), dout.cpu(), x.cpu(), B, T, C);
    const double bytes = 2.0 * dout.n * sizeof(floatX) + 8.0 * C * (occurring + T);
    climb("embedding backward", format("B=%d T=%d V=%d C=%d", B, T, V, C), {2.0 * dout.n, bytes},
          {written("dwte", dwte, 1e-6, 1e-6), written("dwpe", dwpe, 1e-6, 1e-6)},
          {{"atomics", [&] {
                launch(atomics, ceil_div(dout.n, 256), 256, 0, dwte, dwpe, dout, x, T, dout.n, C);
            }, true},
           {"search", [&] {
                launch(search, V, 128, 0, dwte, dout, x, N, C);
                positions();
            }},
           {"sorted", [&] {
                launch(sorted_tokens, N, 128, 0, dwte, dout, x, o, C);
                positions();
            }},
           {"shipped", [&] { gpu::embedding_backward(dwte, dwpe, partial, dout, x, o, B, T, C); }}});
}

static const Study study([] {
    const struct { Size size; int B, T, V, C; } shapes[] = {
        {TINY, 1, 1, 1, 1}, {TINY, 3, 9, 5, 15}, {TINY, 2, 16, 100, 64},
        // a token in several pieces; more pieces than blocks
        {TINY, 3, 50, 2, 8}, {SMALL, 2, 150, 5000, 8},
        {SMALL, 4, 33, 50, 24}, {LARGE, 3, 100, 1000, 768}, {TRAINING, 64, 1024, 50257, 768}};
    for (auto& s : shapes) if (s.size <= largest) {
        forward(s.B, s.T, s.V, s.C);
        backward(s.B, s.T, s.V, s.C);
    }
});
}  // namespace embedding_study
