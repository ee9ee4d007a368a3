/* dev/adamw.cu -- gradient norm, clipping and the optimizer's update, in steps.
                                                                             make build/bench_adamw && build/bench_adamw

   The norm reads 4 bytes a weight; the update reads and writes w, m, v and g, and writes the rounded copy: 34 more.
     host            the norm's square by atomics, fetched by the host, which gives the scale to the update: the GPU
                     idles while the host waits and launches; and the atomics, in any order, make other bits of every
                     run
     device          partial sums in order, whose end every block of the update adds up for itself: nobody waits. But 4
                     bytes at a time
     shipped         gpu::adamw: 16 bytes at a time

   The math is adamw_step() of train_gpt.cpp in all of them. */
#include "bench.cuh"
namespace adamw_study {
using gpu::Outcome;

__global__ void square_sum(float* sum, const float* g, size_t n) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const float part = gpu::block_sum(i < n ? g[i] * g[i] : 0.0f);
    if (threadIdx.x == 0) atomicAdd(sum, part);
}
DEVICE void update_one(float* w, float* m, float* v, float* g, floatX* rounded, bool decays,
                       const AdamWStep& s, float scale) {
    adamw_step(*w, *m, *v, scale * *g, s, decays);
    *g = 0;
    *rounded = floatX(*w);
}
__global__ void update(float* w, float* m, float* v, float* g, floatX* rounded, const unsigned char* decays, size_t n,
                       AdamWStep s, float scale) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) update_one(w + i, m + i, v + i, g + i, rounded + i, decays[i / 128], s, scale);
}
__global__ void update_on_device(float* w, float* m, float* v, float* g, floatX* rounded, const unsigned char* decays,
                                 size_t n, AdamWStep s, float clip, const double* squares, int parts,
                                 Outcome* outcome) {
    double sum = 0;
    for (int b = threadIdx.x; b < parts; b += blockDim.x) sum += squares[b];
    const float norm = sqrt(gpu::block_sum(sum));
    if (blockIdx.x == 0 && threadIdx.x == 0) outcome->norm = norm;
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const float scale = clip > 0 ? fminf(1, clip / (norm + 1e-6f)) : 1;
    if (i < n) update_one(w + i, m + i, v + i, g + i, rounded + i, decays[i / 128], s, scale);
}

// A step whose gradients or loss are not finite changes nothing; the norm tells. Finite ones may have any size.
enum Step { FINE, NAN_GRADIENT, INFINITE_LOSS, LARGE_GRADIENTS };
static const char* const STEPS[] = {"", ", a NaN", ", an infinite loss", ", gradients whose squares overflow"};

static void ladder(size_t n, double clip, Step kind) {
    auto squared = numbers(n), gradients = numbers(n);
    for (float& f : squared) f *= f;
    if (kind == NAN_GRADIENT) gradients[n / 2] = NAN;
    const bool changes = kind == FINE || kind == LARGE_GRADIENTS;
    for (float& f : gradients) if (kind == LARGE_GRADIENTS) f *= 1e25f;
    std::vector<unsigned char> every_third(n / 128, 1);
    for (size_t i = 0; i < every_third.size(); i += 3) every_third[i] = 0;
    Array<float> w(numbers(n)), m(numbers(n)), v(squared), g(gradients), sum(1);
    Array<double> squares(gpu::NORM_BLOCKS);
    Array<floatX> copy(w.host);
    Array<unsigned char> decays(every_third);
    Array<Outcome> outcome(std::vector<Outcome>{{kind == INFINITE_LOSS ? INFINITY : 1, 0}});
    const AdamW o{1e-2, 0.9, 0.95, 1e-8, 0.1};
    const AdamWStep s(o, 3);
    auto scale_of = [&](double norm) { return clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1; };
    const double norm = std::sqrt(cpu::sum_of_squares(g.cpu(), n));
    for (size_t i = 0; i < n && changes; i += 128)
        cpu::adamw_update(w.cpu() + i, m.cpu() + i, v.cpu() + i, g.cpu() + i, 128, s, every_third[i / 128],
                          scale_of(norm));
    auto norm_error = [&] {
        const double found = outcome.get()[0].norm;
        return kind != NAN_GRADIENT ? std::abs(found / norm - 1) : std::isnan(found) ? 0 : INFINITY;
    };
    std::vector<Result> results = {
        {"norm", norm_error, 1e-5, [&] { outcome.reset(); }, [&] { return outcome.bits(); }},
        written("w", w, 1e-6, 1e-6), written("m", m, 1e-6, 1e-6), written("v", v, 1e-6, 1e-6)};
    if (kind != NAN_GRADIENT) results.push_back(written("g", g, 1e-6, 1e-6));
    auto rounded_error = [&] {               // exactly what the weights on the device round to
        const std::vector<float> want = rounded(w.get());
        return relative_error(copy.get().data(), want.data(), n);
    };
    if (gpu::BF16) results.push_back({"rounded", rounded_error, 0, [&] { copy.reset(); }, [&] { return copy.bits(); }});

    const int blocks = ceil_div(n, 256), parts = std::min(gpu::NORM_BLOCKS, ceil_div(n, 4096));
    std::vector<Rung> rungs = {
        {"host", [&] {
            ok(cudaMemsetAsync(sum, 0, sizeof(float), stream()));
            launch(square_sum, blocks, 256, 0, sum, g, n);
            const Outcome seen{1, std::sqrt(sum.get()[0])};
            ok(cudaMemcpyAsync(outcome, &seen, sizeof seen, cudaMemcpyHostToDevice, stream()));
            launch(update, blocks, 256, 0, w, m, v, g, copy, decays, n, s, (float)scale_of(seen.norm));
            ok(cudaStreamSynchronize(stream()));
        }, true},
        {"device", [&] {
            launch(gpu::squares_kernel, parts, 256, 0, squares, g, n, nullptr);
            launch(update_on_device, blocks, 256, 0, w, m, v, g, copy, decays, n, s, (float)clip, squares, parts,
                   outcome);
        }}};
    if (kind != FINE || (!timed && n > 1 << 20)) rungs.clear();           // only what ships looks, or is soon emulated
    rungs.push_back({"shipped", [&] {
        const int count = gpu::sum_of_squares(squares, g, n);
        gpu::adamw(w, m, v, g, copy, decays, n, s, clip, squares, count, outcome);
    }});
    climb("adamw", format("n=%zu clip=%g%s", n, clip, STEPS[kind]), {16.0 * n, (gpu::BF16 ? 38.0 : 36.0) * n}, results,
          rungs);
}

static const Study study([] {
    ladder(128, 1, FINE);
    ladder(128 * 37, 0, FINE);
    ladder(128 * 37, 0.5, FINE);
    if (largest >= SMALL) ladder(128 * 8200, 0.1, FINE);     // more blocks of squares than a block has threads
    ladder(128 * 5, 1, LARGE_GRADIENTS);
    ladder(128 * 5, 1, NAN_GRADIENT);
    ladder(128 * 5, 1, INFINITE_LOSS);
    if (largest == TRAINING) ladder(124475904, 1, FINE);     // GPT-2 124M, in whole segments of 128
});
}  // namespace adamw_study
