/* dev/cpu/attention.cpp -- causal self-attention, forward, in steps.          make study && build/study_attention

   naive        a row of scores for every query, plain loops: the dot products are sums in one order, which no compiler
                may turn into vector code
   simd         `omp simd` permits any order, exactly there; and fast_exp has no branches, so that it, too, becomes
                vector code
   blocks       64 queries against up to 512 keys at a time, with a running softmax, so that scores and output are
                matrix products: cpu::attention_forward itself
   bf16         those products in the processor's unit for bfloat16 numbers, where it has one

   FLOPs are counted for causal attention: 2 B T^2 C. */
#include "../bench.h"

template <bool SIMD> static void rows(float* out, const float* qkv, int B, int T, int C, int NH) {
    const int HS = C / NH;
    const size_t row = 3 * (size_t)C;
    #pragma omp parallel for collapse(3) schedule(dynamic, 16)
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        std::vector<float> p(i + 1);
        const float* const q = qkv + ((size_t)b * T + i) * row + h * HS;
        const float *const k = qkv + (size_t)b * T * row + C + h * HS, *const v = k + C;
        float maximum = -INFINITY, sum = 0, *out_i = out + ((size_t)b * T + i) * C + h * HS;
        for (int j = 0; j <= i; j++) {
            float dot = 0;
            if (SIMD) {
                #pragma omp simd reduction(+ : dot)
                for (int c = 0; c < HS; c++) dot += q[c] * k[j * row + c];
            } else {
                for (int c = 0; c < HS; c++) dot += q[c] * k[j * row + c];
            }
            p[j] = dot / std::sqrt((float)HS);
            maximum = std::max(maximum, p[j]);
        }
        for (float& p_j : p) {
            p_j = SIMD ? fast_exp(p_j - maximum) : std::exp(p_j - maximum);
            sum += p_j;
        }
        std::fill_n(out_i, HS, 0.0f);
        for (int j = 0; j <= i; j++) for (int c = 0; c < HS; c++) out_i[c] += p[j] / sum * v[j * row + c];
    }
}

static void ladder(int B, int T, int C, int NH) {
    const int HS = C / NH;
    const std::vector<float> qkv = random_floats((size_t)B * T * 3 * C, 1);
    std::vector<float> out((size_t)B * T * C), lse((size_t)B * T * NH);
    std::vector<double> want(out.size());
    #pragma omp parallel for collapse(3)
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        std::vector<double> p(i + 1);
        auto at = [&](int t, int part, int c) -> double {
            return qkv[((size_t)b * T + t) * 3 * C + part * C + h * HS + c];
        };
        double sum = 0, *const want_i = &want[((size_t)b * T + i) * C + h * HS];
        for (int j = 0; j <= i; j++) {
            for (int c = 0; c < HS; c++) p[j] += at(i, 0, c) * at(j, 1, c);
            p[j] = std::exp(p[j] / std::sqrt(HS));
            sum += p[j];
        }
        for (int j = 0; j <= i; j++) for (int c = 0; c < HS; c++) want_i[c] += p[j] / sum * at(j, 2, c);
    }
    // scores of about 1 with sqrt(HS) roundings of 2^-24, an exponential of 2 ulp, and sums over T
    const std::string shape = format("B=%d T=%d C=%d NH=%d", B, T, C, NH);
    const Work work = {2.0 * B * T * T * C, 16.0 * B * T * C}, work16 = {work.flops, work.bytes, BFLOAT16};
    float *const to = out.data(), *const l = lse.data();
    climb("cpu attention", shape, work, {result(to, want, 4 * (std::sqrt(HS) + std::sqrt(T) + 4) * 0x1p-24)},
          {{"naive", [&] { rows<false>(to, qkv.data(), B, T, C, NH); }},
           {"simd", [&] { rows<true>(to, qkv.data(), B, T, C, NH); }},
           {"blocks (cpu::attention_forward)",
            [&] { cpu::attention_forward(to, l, qkv.data(), B, 0, T, T, C, NH); }}});
    // inputs and probabilities that err by 2^-9 each, at random
    if (cpu::unit() != Unit::NONE)
        climb("cpu attention in bf16", shape, work16, {result(to, want, 2 * 0x1p-9)},
              {{"bf16", [&] { cpu::attention_forward<bfloat16>(to, l, qkv.data(), B, 0, T, T, C, NH); }}});
}

static void study() {
    ladder(2, 7, 15, 3);
    ladder(1, 600, 24, 2);
    if (!timed) return;
    ladder(4, 256, 768, 12);
    ladder(2, 1024, 768, 12);
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
