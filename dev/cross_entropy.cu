/* dev/cross_entropy.cu -- softmax, loss and its gradient, in place, in steps.
                                                             make build/bench_cross_entropy && build/bench_cross_entropy

   A row of logits is read, and its gradient written over it: 2 bytes a logit each way.
     naive           a thread takes a row of 50257: neighbouring threads read 100 KB apart, and there are as many
                     threads as rows, far too few
     three_passes    a block takes a row: maximum, then sum, then gradients. The row is read three times; what the
                     level-2 cache keeps of it depends on how many rows are under way
     two_passes      maximum and sum in one pass, where a new maximum shrinks the sum so far (Milakov, Gimelshein 2018,
                     arXiv:1805.02867, algorithm 3); 16 bytes at a time. Four blocks' rows an SM are under
                     way, 53 MB on 132: as much as the level-2 cache holds
     shipped         gpu::cross_entropy: asynchronous copies bring the row to shared memory, all 100 KB of it under way
                     at once, and both passes find it there */
#include "bench.cuh"
namespace cross_entropy_study {

__global__ void naive(floatX* logits, float* logprob, int* best, const int* y, const float* weight, int rows, int V,
                      int stride) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    floatX* z = logits + (size_t)n * stride;
    int maximum = 0;
    for (int v = 1; v < V; v++) if (float(z[v]) > float(z[maximum])) maximum = v;
    const float high = float(z[maximum]);
    float sum = 0;
    for (int v = 0; v < V; v++) sum += expf(float(z[v]) - high);
    const int target = y[n];
    logprob[n] = target >= 0 ? float(z[target]) - high - logf(sum) : 0;
    best[n] = target >= 0 ? maximum : -1;
    for (int v = 0; v < stride; v++)
        z[v] = floatX(target < 0 || v >= V ? 0 : weight[n] * (expf(float(z[v]) - high) / sum - (v == target)));
}
__global__ void three_passes(floatX* logits, float* logprob, int* best, const int* y, const float* weight, int V,
                             int stride) {
    SHARED(first, int[1]);
    const int n = blockIdx.x, target = y[n];
    floatX* z = logits + (size_t)n * stride;
    float maximum = -INFINITY, sum = 0;
    if (threadIdx.x == 0) first[0] = V;
    for (int v = threadIdx.x; v < V; v += blockDim.x) maximum = fmaxf(maximum, float(z[v]));
    maximum = gpu::block_max(maximum);
    for (int v = threadIdx.x; v < V; v += blockDim.x) {
        sum += expf(float(z[v]) - maximum);
        if (float(z[v]) == maximum) atomicMin(first, v);
    }
    sum = gpu::block_sum(sum);
    if (threadIdx.x == 0) {
        logprob[n] = target >= 0 ? float(z[target]) - maximum - logf(sum) : 0;
        best[n] = target >= 0 ? first[0] : -1;
    }
    __syncthreads();                                         // z[target] is read before it changes
    for (int v = threadIdx.x; v < stride; v += blockDim.x)
        z[v] = floatX(target < 0 || v >= V ? 0 : weight[n] * (expf(float(z[v]) - maximum) / sum - (v == target)));
}

__global__ void two_passes(floatX* logits, float* logprob, int* best, const int* y, const float* weight, int V,
                           int stride) {
    SHARED(first, int[1]);
    const int n = blockIdx.x, target = y[n];
    floatX* z = logits + (size_t)n * stride;
    float maximum = -INFINITY, sum = 0, v[WIDE];
    int where = V;
    if (threadIdx.x == 0) first[0] = V;
    for (int c = threadIdx.x * WIDE; c < V; c += blockDim.x * WIDE) {
        load(v, z + c);
        for (int i = 0; i < WIDE; i++) {
            if (c + i >= V) break;
            if (v[i] > maximum) {
                sum *= expf(maximum - v[i]);
                maximum = v[i];
                where = c + i;
            }
            sum += expf(v[i] - maximum);
        }
    }
    const float high = gpu::block_max(maximum);
    const float total = gpu::block_sum(maximum == -INFINITY ? 0 : sum * expf(maximum - high));
    if (maximum == high) atomicMin(first, where);
    const float at_target = target >= 0 ? float(z[target]) : 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        logprob[n] = target >= 0 ? at_target - high - logf(total) : 0;
        best[n] = target >= 0 ? first[0] : -1;
    }
    for (int c = threadIdx.x * WIDE; c < stride; c += blockDim.x * WIDE) {
        load(v, z + c);
        for (int i = 0; i < WIDE; i++)
            v[i] = target < 0 || c + i >= V ? 0 : weight[n] * (expf(v[i] - high) / total - (c + i == target));
        store(z + c, v);
    }
}

static void ladder(int rows, int V) {
    const int stride = gpu::padded(V);
    std::vector<int> targets(rows);
    Rng rng(++numbers_seed);
    for (int n = 0; n < rows; n++) targets[n] = n % 3 == 1 ? -1 : (int)rng.below(V);
    const std::vector<float> given = numbers((size_t)rows * stride, 3);
    Array<floatX> logits(given);
    Array<float> weight(numbers(rows)), logprob(rows);
    Array<int> y(targets), best(rows);
    float *const found = logprob.cpu(), *const all = logits.cpu();       // before threads share them
    int* const maximum_at = best.cpu();
    #pragma omp parallel for
    for (int n = 0; n < rows; n++) {
        float* z = all + (size_t)n * stride;
        const int target = targets[n], maximum = int(std::max_element(z, z + V) - z);
        double high = z[maximum], sum = 0;
        for (int v = 0; v < V; v++) sum += std::exp(z[v] - high);
        found[n] = target < 0 ? 0 : z[target] - high - std::log(sum);
        maximum_at[n] = target < 0 ? -1 : maximum;
        const double weight_n = weight.host[n];
        for (int v = 0; v < V; v++) z[v] = target < 0 ? 0 : weight_n * (std::exp(z[v] - high) / sum - (v == target));
        std::fill(z + V, z + stride, 0.0f);
    }
    const std::string shape = format("rows=%d V=%d", rows, V);
    const double bytes = 2.0 * rows * V * sizeof(floatX);
    std::vector<Result> results = {written("logprob", logprob, 1e-5), written("best", best, 0, 0),
                                   written("dlogits", logits, ONE)};
    std::vector<Rung> rungs = {
        {"naive", [&] { launch(naive, ceil_div(rows, 32), 32, 0, logits, logprob, best, y, weight, rows, V, stride); }},
        {"three_passes", [&] { launch(three_passes, rows, 512, 0, logits, logprob, best, y, weight, V, stride); }},
        {"two_passes", [&] { launch(two_passes, rows, 512, 0, logits, logprob, best, y, weight, V, stride); }},
        {"shipped", [&] { gpu::cross_entropy(logits, logprob, best, y, {weight}, rows, V, stride, true); }}};
    if (V > 1e5) rungs.erase(rungs.begin());         // one thread's sum of so many numbers errs by more than is allowed
    climb("cross-entropy", shape, {7.0 * rows * V, bytes}, results, rungs);
    logits.host = given;
    results[2] = written("logits", logits, 0, 0);
    climb("cross-entropy, no gradient", shape, {4.0 * rows * V, bytes / 2, FP32, READ}, results,
          {{"shipped", [&] { gpu::cross_entropy(logits, logprob, best, y, {weight}, rows, V, stride, false); }}});
}
static void loss(int rows) {
    Array<float> weight(numbers(rows)), logprob(numbers(rows));
    std::vector<int> targets(rows);
    double want = 0.25;                      // what is there already
    for (int n = 0; n < rows; n++) if ((targets[n] = n % 3 - 1) >= 0) want -= (double)weight.host[n] * logprob.host[n];
    Array<int> y(targets);
    Array<gpu::Outcome> outcome(std::vector<gpu::Outcome>{{0.25, 0}});
    outcome.reset();                         // keeps what it starts from, as written() does
    climb("loss", format("rows=%d", rows), {2.0 * rows, 12.0 * rows, FP32, READ},
          {{"loss", [&] { return std::abs(outcome.get()[0].loss / want - 1); }, 1e-5, [&] { outcome.reset(); },
            [&] { return outcome.bits(); }}},
          {{"shipped", [&] {
                launch(gpu::add_loss_kernel, 1, gpu::threads_for(rows, 1024), 0, outcome, logprob,
                       TokenTerms<float>{weight}, y, rows);
            }}});
}

static const Study study([] {
    const struct { Size size; int rows, V; } shapes[] = {{TINY, 4, 2}, {TINY, 1, 50}, {TINY, 5, 101}, {TINY, 3, 1000},
                                                         {SMALL, 2, 120001},           // no row fits
                                                         {SMALL, 2, 50257}, {LARGE, 30, 50257}, {LARGE, 7, 4099},
                                                         {TRAINING, 8192, 50257}};
    for (auto& s : shapes) if (s.size <= largest) ladder(s.rows, s.V);
    for (int rows : {1, 50, 1500, 65536}) if (rows < 9999 || largest == TRAINING) loss(rows);
});
}  // namespace cross_entropy_study
