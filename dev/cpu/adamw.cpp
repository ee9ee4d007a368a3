/* dev/cpu/adamw.cpp -- the optimizer's update, in steps.                          make study && build/study_adamw

   naive        the formula as it stands, on one thread: three divisions and a root in double, far from memory's speed
   threads      on all of them
   hoisted      what does not depend on the weight is divided once, and the root is taken in float: cpu::adamw_update
                itself

   A weight costs 32 bytes: w, m, v and g are read and written (g is cleared for the next step). */
#include "../bench.h"

static const AdamW OPTIONS = {6e-4, 0.9, 0.95, 1e-8, 0.1};
static const int STEP = 3;

static void formula(float& w, float& m, float& v, float& g) {
    m = OPTIONS.beta1 * m + (1 - OPTIONS.beta1) * g;
    v = OPTIONS.beta2 * v + (1 - OPTIONS.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(OPTIONS.beta1, STEP)), v_hat = v / (1 - std::pow(OPTIONS.beta2, STEP));
    w -= OPTIONS.lr * (m_hat / (std::sqrt(v_hat) + OPTIONS.eps) + OPTIONS.weight_decay * w);
    g = 0;
}

static void ladder(size_t n) {
    const std::vector<float> w0 = random_floats(n, 1), m0 = random_floats(n, 2), g0 = random_floats(n, 3);
    std::vector<float> v0 = random_floats(n, 4);
    for (float& v : v0) v *= v;
    Buffer<real> w(n), m(n), v(n), g(n);
    std::vector<double> want_w(n), want_m(n), want_v(n);
    for (size_t i = 0; i < n; i++) {
        want_m[i] = OPTIONS.beta1 * m0[i] + (1 - OPTIONS.beta1) * g0[i];
        want_v[i] = OPTIONS.beta2 * v0[i] + (1 - OPTIONS.beta2) * g0[i] * g0[i];
        const double m_hat = want_m[i] / (1 - std::pow(OPTIONS.beta1, STEP));
        const double v_hat = want_v[i] / (1 - std::pow(OPTIONS.beta2, STEP));
        want_w[i] = w0[i] - OPTIONS.lr * (m_hat / (std::sqrt(v_hat) + OPTIONS.eps) + OPTIONS.weight_decay * w0[i]);
    }
    const double limit = 4 * 0x1p-24;
    auto update = [&](size_t i) { formula(w.data()[i], m.data()[i], v.data()[i], g.data()[i]); };
    climb("cpu adamw", format("n=%zu", n), {14.0 * n, 32.0 * n, FP32, UPDATE},
          {result(w.data(), want_w, limit, w0), result(m.data(), want_m, limit, m0),
           result(v.data(), want_v, limit, v0), result(g.data(), std::vector<double>(n), limit, g0)},
          {{"naive", [&] { for (size_t i = 0; i < n; i++) update(i); }},
           {"threads", [&] {
                #pragma omp parallel for schedule(static)
                for (size_t i = 0; i < n; i++) update(i);
            }},
           {"hoisted (cpu::adamw_update)",
            [&] { cpu::adamw_update(w.data(), m.data(), v.data(), g.data(), n, AdamWStep(OPTIONS, STEP), true, 1); }}});
}

static void study() {
    ladder(1001);
    if (timed) for (size_t n : {1 << 20, 40 << 20}) ladder(n);
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
