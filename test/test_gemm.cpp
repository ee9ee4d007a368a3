/* test/test_gemm.cpp -- the matrix product in float against sums in double: random sizes, all strides, edges untouched. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#include "check.h"

static Rng rng(5);
static std::vector<float> random_numbers(size_t n) {
    std::vector<float> v(n);
    for (float& f : v) f = (float)rng.normal();
    return v;
}

// A product of random numbers; the worst error in units of its bound. What lies between the rows of C must stay.
static double product(int M, int N, int K, int kind) {
    const bool a_turned = kind & 1, b_turned = kind & 2, odd = kind & 4, with_bias = kind & 8, with_plus = kind & 16, own = kind & 32;
    const long a_step = odd ? 3 : 1, gap = odd ? 5 : 0, ldc = N + gap;       // steps of neither 1 nor a row: no fast path
    std::vector<float> a = random_numbers((size_t)M * K * a_step), b = random_numbers((size_t)K * N), bias = random_numbers(N);
    std::vector<float> c = random_numbers(M * ldc), plus = random_numbers(M * ldc);
    const cpu::Matrix A = a_turned ? cpu::Matrix{a.data(), a_step, M * a_step} : cpu::Matrix{a.data(), K * a_step, a_step};
    const cpu::Matrix B = b_turned ? cpu::Matrix{b.data(), 1, K} : cpu::Matrix{b.data(), N, 1};
    if (own) plus = c;
    const std::vector<float> before = c;
    cpu::gemm({c.data(), ldc, with_plus ? own ? c.data() : plus.data() : nullptr, with_bias ? bias.data() : nullptr}, A, B, M, N, K);
    double worst = 0;
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0, size = 0;                        // a sum of n numbers errs by n eps/2 sum|x| at most
            auto add = [&](double x) { sum += x, size += std::abs(x); };
            for (int k = 0; k < K; k++) add((double)A.from(i, k).p[0] * B.from(k, j).p[0]);
            if (with_bias) add(bias[j]);
            if (with_plus) add(plus[i * ldc + j]);
            keep_worst(worst, std::abs(c[i * ldc + j] - sum) / ((K + 2) * 0x1p-24 * size));
        }
        for (long j = N; j < ldc; j++) if (c[i * ldc + j] != before[i * ldc + j]) worst = NAN;
    }
    return worst;
}

int main() {
    for (int kind = 0; kind < 64; kind++) {
        double worst = 0;
        for (int r = 0; r < 12; r++) keep_worst(worst, product(1 + rng.below(100), 1 + rng.below(100), 1 + rng.below(100), kind));
        check(worst <= 1, "gemm/sizes 1 to 100, strides %d: error %.2f of its bound", kind, worst);
    }
    const int large[][3] = {{1, 1, 1}, {1, 1000, 1}, {513, 385, 769}, {1030, 50, 384}, {7, 1200, 1153}, {64, 64, 5000}, {129, 4097, 33}};
    for (auto [M, N, K] : large)
        for (int kind : {0, 1, 2, 19, 55}) {
            const double worst = product(M, N, K, kind);
            check(worst <= 1, "gemm/(%d,%d) (%d,%d), strides %d: error %.2f of its bound", M, K, K, N, kind, worst);
        }
    // one product, any number of threads: the same bits
    const int M = 300, N = 500, K = 900;
    std::vector<float> a = random_numbers((size_t)M * K), b = random_numbers((size_t)K * N), first;
    for (int threads : {1, 2, 3, 8}) {
        std::vector<float> c((size_t)M * N);
        omp_set_num_threads(threads);
        cpu::gemm({c.data(), N}, {a.data(), K, 1}, {b.data(), 1, K}, M, N, K);
        if (first.empty()) first = c;
        check(!memcmp(c.data(), first.data(), c.size() * sizeof c[0]), "gemm/%d threads: the same bits as 1", threads);
    }
    // a row of C has the same bits whatever stands beside it: a sample does not depend on how many are made at once
    for (bool turned : {false, true}) {
        std::vector<float> whole((size_t)M * N), some((size_t)M * N);
        const cpu::Matrix A = {a.data(), K, 1}, B = turned ? cpu::Matrix{b.data(), 1, K} : cpu::Matrix{b.data(), N, 1};
        cpu::gemm({whole.data(), N}, A, B, M, N, K);
        for (int rows : {1, 3, 8, 9, 64}) {
            cpu::gemm({some.data(), N}, A.from(5, 0), B, rows, N, K);
            check(!memcmp(some.data(), &whole[5 * N], sizeof(float) * rows * N), "gemm/%d rows%s: the same bits as among %d", rows, turned ? " (B turned)" : "", M);
        }
    }
    return failed > 0;
}
