/* dev/cpu/gemm.cpp -- the matrix product, C (M,N) = A (M,K) B (K,N), in steps.      make study && build/study_gemm

   naive           three loops as in the definition: walks down columns of B, a cache line for every number
   loop_order      k before j: B and C are read along rows, and the inner loop becomes vector code; but every
                   multiply-add loads and stores C
   register_tile   8 x 48 sums stay in registers while k runs: 24 multiply-adds for 11 loads; but a strip of B is read
                   from memory again for every 8 rows of C
   cache_tile      K is cut into pieces so that a strip of B stays in the level-2 cache for all rows; but its rows lie a
                   row of B apart, so each touches other pages and other cache sets
   packed          the strip is first copied to where it is contiguous: cpu::gemm itself, which also turns B round in
                   registers where it must, and cuts C into tiles that the threads share
   OpenBLAS        cblas_sgemm, where the library is installed (libopenblas.so.0)
   bf16 rounded    cpu::gemm on numbers rounded to bfloat16, B stored so: they are multiplied as floats
   bf16 dots       in AVX-512's dot products of pairs, where the processor has them
   bf16 AMX        on AMX, the matrix unit of newer Xeons; of these three the fastest is what ships, and its peak the
                   roof

   Then cpu::gemm alone, on every product of GPT-2 124M, forward and backward. */
#include "../bench.h"
#include <dlfcn.h>

static void naive(float* c, const float* a, const float* b, int M, int N, int K) {
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int k = 0; k < K; k++) sum += a[(size_t)i * K + k] * b[(size_t)k * N + j];
            c[(size_t)i * N + j] = sum;
        }
}

static void loop_order(float* c, const float* a, const float* b, int M, int N, int K) {
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i++) {
        float* c_i = c + (size_t)i * N;
        std::fill_n(c_i, N, 0.0f);
        for (int k = 0; k < K; k++) {
            const float a_ik = a[(size_t)i * K + k];
            #pragma omp simd
            for (int j = 0; j < N; j++) c_i[j] += a_ik * b[(size_t)k * N + j];
        }
    }
}

// c (MR,NR) = sum over k of a b, on top of what c holds if `more`; only whole tiles, the rest falls back to loops
static void tile(float* c, const float* a, const float* b, int N, int K, int row_a, int m, int n, bool more) {
    using namespace cpu;
    if (m == MR && n == NR) {
        vec sums[MR][VECTORS] = {};
        for (int k = 0; k < K; k++) {
            vec row[VECTORS];
            for (int v = 0; v < VECTORS; v++) row[v] = *(const vec*)(b + (size_t)k * N + v * VL);
            for (int i = 0; i < MR; i++)
                for (int v = 0; v < VECTORS; v++) sums[i][v] += a[(size_t)i * row_a + k] * row[v];
        }
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < VECTORS; v++) {
                vec* to = (vec*)(c + (size_t)i * N + v * VL);
                *to = more ? *to + sums[i][v] : sums[i][v];
            }
        return;
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = more ? c[(size_t)i * N + j] : 0;
            for (int k = 0; k < K; k++) sum += a[(size_t)i * row_a + k] * b[(size_t)k * N + j];
            c[(size_t)i * N + j] = sum;
        }
}

static void register_tile(float* c, const float* a, const float* b, int M, int N, int K) {
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < M; i += cpu::MR)
        for (int j = 0; j < N; j += cpu::NR)
            tile(c + (size_t)i * N + j, a + (size_t)i * K, b + j, N, K, K, std::min(cpu::MR, M - i),
                 std::min(cpu::NR, N - j), false);
}

static void cache_tile(float* c, const float* a, const float* b, int M, int N, int K) {
    #pragma omp parallel for schedule(dynamic)
    for (int j = 0; j < N; j += cpu::NR)
        for (int k = 0; k < K; k += cpu::KC)
            for (int i = 0; i < M; i += cpu::MR)
                tile(c + (size_t)i * N + j, a + (size_t)i * K + k, b + (size_t)k * N + j, N, std::min(cpu::KC, K - k),
                     K, std::min(cpu::MR, M - i), std::min(cpu::NR, N - j), k > 0);
}

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

static void ladder(int M, int N, int K, Sgemm sgemm) {
    const std::vector<float> a = random_floats((size_t)M * K, 1), b = random_floats((size_t)K * N, 2);
    std::vector<float> c((size_t)M * N);
    std::vector<double> want(c.size());
    #pragma omp parallel for
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < N; j++) want[(size_t)i * N + j] += (double)a[(size_t)i * K + k] * b[(size_t)k * N + j];
    auto with = [&](auto f) { return [&, f] { f(c.data(), a.data(), b.data(), M, N, K); }; };
    std::vector<Rung> rungs = {
        {"naive", with(naive), false, 0, 2e9}, {"loop_order", with(loop_order)},
        {"register_tile", with(register_tile)}, {"cache_tile", with(cache_tile)},
        {"packed (cpu::gemm)", [&] { cpu::gemm({c.data(), N}, {a.data(), K, 1}, {b.data(), N, 1}, M, N, K); }}};
    auto blas = [&] { sgemm(101, 111, 111, M, N, K, 1, a.data(), K, b.data(), N, 0, c.data(), N); };
    if (sgemm) rungs.push_back({"OpenBLAS", blas});
    // K roundings of 2^-24 each, which add up like a random walk: sqrt(K) of them, with a factor of 4 to spare
    const std::string shape = format("M=%d N=%d K=%d", M, N, K);
    const double numbers = (double)M * K + (double)K * N + (double)M * N;
    const Work work = {2.0 * M * N * K, 4 * numbers}, work16 = {work.flops, work.bytes - 2.0 * K * N, BFLOAT16};
    climb("cpu gemm", shape, work, {result(c.data(), want, 4 * std::sqrt(K) * 0x1p-24)}, rungs);
    const std::vector<bfloat16> b16(b.begin(), b.end());     // each factor of a product errs by 2^-9 at most
    std::vector<Rung> in_bf16;
    const Unit chosen = cpu::unit();
    auto rung = [&](const char* name, Unit unit) {
        if (has(unit)) in_bf16.push_back({name, [&, unit] {
            cpu::unit() = unit;
            cpu::gemm<bfloat16>({c.data(), N}, {a.data(), K, 1}, cpu::Matrix{b16.data(), N, 1}, M, N, K);
        }});
    };
    rung("bf16 rounded", Unit::NONE);
    rung("bf16 dots", Unit::DOTS);
    rung("bf16 AMX", Unit::AMX);
    climb("cpu gemm in bf16", shape, work16, {result(c.data(), want, 0x1p-8)}, in_bf16);
    cpu::unit() = chosen;
}

// Every product of a 124M step on M tokens: X W, dY W^T, X^T dY; the head's logits are made from W^T.
template <typename P> static void all_products(int M) {
    const bool bf16 = std::is_same_v<P, bfloat16>;
    struct { const char* name; int C, OC, count; } layers[] = {
        {"qkv", 768, 2304, 12}, {"proj", 768, 768, 12}, {"fc", 768, 3072, 12}, {"fcproj", 3072, 768, 12},
        {"head", 768, 50257, 1}};
    printf("\ncpu::gemm, GPT-2 124M, M=%d%s           GFLOP/s and share of the roof\n  %-10s %18s %18s %18s\n", M,
           bf16 ? ", bf16" : "", "", "forward", "dx", "dw");
    double all_flops = 0, all_time = 0, all_ideal = 0;
    for (auto& l : layers) {
        Buffer<real> x((size_t)M * l.C), w((size_t)l.C * l.OC), y((size_t)M * l.OC);
        uint64_t seed = 1;
        for (Buffer<real>* buffer : {&x, &w, &y}) {
            Rng rng(seed++);
            for (size_t i = 0; i < buffer->size; i++) buffer->data()[i] = (real)(rng.uniform() - 0.5);
        }
        const bool head = l.OC == 50257;
        const std::vector<P> weights(w.data(), w.data() + w.size);
        const cpu::Matrix X = {x.data(), l.C, 1}, Y = {y.data(), l.OC, 1};
        const cpu::Matrix<P> W = {weights.data(), head ? 1 : l.OC, head ? l.C : 1};
        printf("  %-10s", l.name);
        for (int kind = 0; kind < 3; kind++) {
            std::vector<double> times, roofs = {cpu::measure_peak(bf16 ? cpu::unit() : Unit::NONE, 1)};
            for (int r = 0; r < 7; r++) {
                const double start = seconds();
                if (kind == 0) cpu::gemm<P>({y.data(), l.OC}, X, W, M, l.OC, l.C);
                if (kind == 1) cpu::gemm<P>({x.data(), l.C}, Y, W.t(), M, l.C, l.OC);
                if (kind == 2 && !head) cpu::gemm<P>({w.data(), l.OC, w.data()}, X.t(), Y, l.C, l.OC, M);
                if (kind == 2 && head) cpu::gemm<P>({w.data(), l.C, w.data()}, Y.t(), X, l.OC, l.C, M);
                times.push_back(seconds() - start);
                roofs.push_back(cpu::measure_peak(bf16 ? cpu::unit() : Unit::NONE, 1));
            }
            const double t = median(times), peak = median(roofs), flops = 2.0 * M * l.C * l.OC;
            printf(" %10.1f %6.1f%%", flops / t / 1e9, 100 * flops / t / peak);
            fflush(stdout);
            all_flops += l.count * flops;
            all_time += l.count * t;
            all_ideal += l.count * flops / peak;
        }
        printf("\n");
    }
    printf("  all, as often as a step has them: %.1f GFLOP/s, %.1f%% of the roof\n", all_flops / all_time / 1e9,
           100 * all_ideal / all_time);
}

static void study() {
    void* library = dlopen("libopenblas.so.0", RTLD_NOW);
    const Sgemm sgemm = library ? (Sgemm)dlsym(library, "cblas_sgemm") : nullptr;
    ladder(61, 67, 71, sgemm);
    ladder(8, 48, 1000, sgemm);
    if (timed) {
        ladder(256, 2304, 768, sgemm);
        ladder(1024, 1024, 1024, sgemm);
        for (int M : {256, 1024, 4096}) {
            all_products<real>(M);
            all_products<bfloat16>(M);
        }
    }
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
