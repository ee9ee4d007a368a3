/* test/kernels.cpp -- every kernel of train_gpt.cu against cpu::, on tiny, odd and training-like shapes; on a GPU, or
   emulated, where several orders of the threads are tried. All runs must give the same bits.
   The reference gets the rounded inputs; the limit for a result in bf16 is a rounding, 2^-8, where nothing else is said. */
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#include "check.h"
using gpu::floatX;

static Rng rng(1);
static std::vector<float> numbers(size_t n, double scale = 1) {
    std::vector<float> v(n);
    for (float& f : v) f = float(floatX(float(scale * rng.normal())));
    return v;
}

// n numbers on the device; NaN until something is written. Every result is hashed.
static uint64_t hash_of_run;
template <typename T> struct Array {
    T* p = nullptr;
    size_t n;
    explicit Array(size_t n) : n(n) {
        gpu::check(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T)), "cudaMalloc", __LINE__);
        gpu::check(cudaMemset(p, 0xff, n * sizeof(T)), "cudaMemset", __LINE__), gpu::check(cudaDeviceSynchronize(), "cudaMemset", __LINE__);
    }
    template <typename E> Array(const std::vector<E>& v) : Array(v.size()) {
        const std::vector<T> values(v.begin(), v.end());
        gpu::check(cudaMemcpy(p, values.data(), n * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy", __LINE__);
    }
    Array(const Array&) = delete;
    ~Array() { cudaFree(p); }
    operator T*() const { return p; }
    std::vector<T> raw() const {
        std::vector<T> values(n);
        gpu::check(cudaStreamSynchronize(gpu::device().stream), "cudaStreamSynchronize", __LINE__);
        gpu::check(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy", __LINE__);
        hash_of_run = hash_of_run * 31 + checksum({(const char*)values.data(), n * sizeof(T)});
        return values;
    }
};

static const bool BF16 = !std::is_same_v<floatX, float>;
static bool report;                          // the first run's checks are printed, those of others if they fail
static std::string shape;
template <typename T> static void compare(const char* what, const Array<T>& got, const std::vector<float>& want, double limit_bf16, double limit_fp32 = 1e-5) {
    const std::vector<T> values = got.raw();
    double difference = 0, size = 0;
    for (size_t i = 0; i < want.size(); i++) {
        difference += ((double)values[i] - want[i]) * ((double)values[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    const double error = std::sqrt(difference) / (std::sqrt(size) + 1e-20), limit = BF16 ? limit_bf16 : limit_fp32;
    const bool good = error <= limit && values.size() == want.size();
    if (report || !good) check(good, "kernels/%s, %s: relative error %.1e, limit %.0e", what, shape.c_str(), error, limit);
}
const double ONE = 0x1p-8;                   // a rounding to bf16

static void layernorm(int N, int C) {
    shape = format("N=%d C=%d", N, C);
    const auto x = numbers((size_t)N * C, 2), w = numbers(C), b = numbers(C), dout = numbers((size_t)N * C), stream = numbers((size_t)N * C);
    std::vector<float> out(x.size()), mean(N), rstd(N), dx = stream, dw = numbers(C), db = numbers(C), dbias = numbers(C);
    Array<floatX> d_x(x), d_w(w), d_b(b), d_out(x.size()), d_dout(dout), d_dx(stream);
    Array<float> d_mean(N), d_rstd(N), d_dw(dw), d_db(db), d_dbias(dbias), partial(gpu::partial_size(C));
    cpu::layernorm_forward(out.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), N, C, 1e-5);
    gpu::layernorm_forward(d_out, d_mean, d_rstd, d_x, d_w, d_b, N, C, 1e-5);
    compare("layernorm_forward out", d_out, out, ONE), compare("layernorm_forward mean", d_mean, mean, 1e-5, 1e-5);
    compare("layernorm_forward rstd", d_rstd, rstd, 1e-5, 1e-5);
    cpu::layernorm_backward(dx.data(), dw.data(), db.data(), dout.data(), x.data(), w.data(), mean.data(), rstd.data(), N, C);
    for (int n = 0; n < N; n++) for (int c = 0; c < C; c++) dbias[c] += dx[(size_t)n * C + c];
    gpu::layernorm_backward(d_dx, d_dw, d_db, d_dbias, partial, d_dout, d_x, d_w, d_mean, d_rstd, N, C);
    compare("layernorm_backward dstream", d_dx, dx, ONE), compare("layernorm_backward dw", d_dw, dw, 1e-5);
    compare("layernorm_backward db", d_db, db, 1e-5), compare("layernorm_backward dbias", d_dbias, dbias, 1e-5);
}

static void gelus(int N, int C) {
    shape = format("N=%d C=%d", N, C);
    const auto x = numbers((size_t)N * C, 2), dout = numbers((size_t)N * C);
    std::vector<float> out(x.size()), dx(x.size()), db = numbers(C), sums = db;
    Array<floatX> d_x(x), d_out(x.size()), d_dx(dout), d_dout(dout);
    Array<float> d_db(db), d_sums(db), partial(gpu::partial_size((C + 3) / 4));
    cpu::gelu_forward(out.data(), x.data(), x.size());
    gpu::gelu_forward(d_out, d_x, x.size());
    compare("gelu_forward", d_out, out, ONE);
    cpu::gelu_backward(dx.data(), dout.data(), x.data(), x.size()), cpu::bias_backward(db.data(), dx.data(), N, C);
    gpu::gelu_backward(d_dx, d_db, partial, d_x, N, C);
    compare("gelu_backward dx", d_dx, dx, ONE), compare("gelu_backward db", d_db, db, 1e-5);
    cpu::bias_backward(sums.data(), dout.data(), N, C);
    gpu::column_sums(d_dout, d_sums, partial, nullptr, N, C);
    compare("column_sums", d_sums, sums, 1e-5);
}

// lse is (B,NH,T) here and (B,T,NH) there.
static std::vector<float> turned(const std::vector<float>& lse, int B, int T, int NH) {
    std::vector<float> v(lse.size());
    for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) for (int h = 0; h < NH; h++) v[((size_t)b * NH + h) * T + t] = lse[((size_t)b * T + t) * NH + h];
    return v;
}
static void attention(int B, int t0, int T, int S, int NH, int HS) {
    shape = format("B=%d T=%d..%d of %d, %d heads of %d", B, t0, t0 + T - 1, S, NH, HS);
    const int C = NH * HS;
    const auto qkv = numbers((size_t)B * S * 3 * C), dout = numbers((size_t)B * T * C);
    std::vector<float> out((size_t)B * T * C), lse((size_t)B * T * NH), dqkv(qkv.size());
    Array<floatX> d_qkv(qkv), d_out(out.size()), d_dout(dout), d_dqkv(qkv.size());
    Array<float> d_lse(lse.size()), D(lse.size());
    cpu::attention_forward(out.data(), lse.data(), qkv.data(), B, t0, T, S, C, NH);
    gpu::attention_forward(d_out, d_lse, d_qkv, B, t0, T, S, C, NH);
    compare("attention_forward out", d_out, out, 1.5 * ONE), compare("attention_forward lse", d_lse, turned(lse, B, T, NH), 1e-5);
    if (t0 || S != T) return;
    // backward from the rounded output, which is what forward left
    const Array<floatX> given_out(out);
    std::vector<float> rounded;
    for (float f : out) rounded.push_back(float(floatX(f)));
    cpu::attention_backward(dqkv.data(), dout.data(), qkv.data(), rounded.data(), lse.data(), B, T, C, NH);
    gpu::attention_backward(d_dqkv, D, d_dout, d_qkv, given_out, d_lse, B, T, C, NH);
    compare("attention_backward", d_dqkv, dqkv, 2 * ONE, 2e-5);
}

static void cross_entropy(int rows, int V) {
    shape = format("rows=%d V=%d", rows, V);
    const int step = gpu::logits_stride(V);
    const auto z = numbers((size_t)rows * step, 3), weight = numbers(rows);
    std::vector<int> y(rows), best(rows);
    std::vector<float> dz((size_t)rows * step), logprob(rows);
    double loss = 0.25;
    for (int n = 0; n < rows; n++) {
        const float* row = &z[(size_t)n * step];
        y[n] = n % 3 == 1 ? -1 : (int)rng.below(V);
        double sum = 0, highest = *std::max_element(row, row + V);
        best[n] = y[n] < 0 ? -1 : int(std::max_element(row, row + V) - row);
        for (int v = 0; v < V; v++) sum += std::exp(row[v] - highest);
        for (int v = 0; v < V && y[n] >= 0; v++) dz[(size_t)n * step + v] = weight[n] * (std::exp(row[v] - highest) / sum - (v == y[n]));
        for (int v = V; v < step; v++) dz[(size_t)n * step + v] = z[(size_t)n * step + v];          // beyond V nothing changes
        if (y[n] >= 0) logprob[n] = row[y[n]] - highest - std::log(sum), loss -= (double)weight[n] * logprob[n];
    }
    const Array<int> d_y(y);
    const Array<float> d_weight(weight);
    for (bool gradients : {false, true}) {
        Array<floatX> d_z(z);
        Array<float> d_logprob(rows);
        Array<int> d_best(rows);
        Array<gpu::Outcome> outcome(std::vector<gpu::Outcome>{{0.25, 0}});
        gpu::cross_entropy(d_z, d_logprob, d_best, d_y, d_weight, rows, V, step, gradients);
        gpu::launch(gpu::add_loss_kernel, 1, 256, 0, outcome.p, d_logprob.p, d_weight.p, d_y.p, rows);
        compare("cross_entropy logprob", d_logprob, logprob, 1e-5), compare("cross_entropy dlogits", d_z, gradients ? dz : z, ONE);
        compare("cross_entropy best", d_best, std::vector<float>(best.begin(), best.end()), 0, 0);
        const double got = outcome.raw()[0].loss;
        if (report || !(std::abs(got - loss) <= 1e-5 * (1 + std::abs(loss)))) check(std::abs(got - loss) <= 1e-5 * (1 + std::abs(loss)), "kernels/add_loss, %s: %.7f, expected %.7f", shape.c_str(), got, loss);
    }
}

static void embedding(int B, int T, int V, int C) {
    shape = format("B=%d T=%d V=%d C=%d", B, T, V, C);
    const int N = B * T, t0 = 2;
    const auto wte = numbers((size_t)V * C), wpe = numbers((size_t)(T + t0) * C), w = numbers(C), b = numbers(C), dout = numbers((size_t)N * C);
    std::vector<int> x(N);
    for (int& token : x) token = rng.below(V);
    std::vector<float> embedded((size_t)N * C), out(embedded.size()), mean(N), rstd(N), dwte = numbers(wte.size()), dwpe = numbers(wpe.size());
    const Array<int> d_x(x);
    Array<floatX> d_wte(wte), d_wpe(wpe), d_w(w), d_b(b), d_embedded(embedded.size()), d_out(out.size()), d_dout(dout);
    Array<float> d_mean(N), d_rstd(N), d_dwte(dwte), d_dwpe(dwpe);
    cpu::embedding_forward(embedded.data(), x.data(), wte.data(), wpe.data(), B, t0, T, C);
    for (float& f : embedded) f = float(floatX(f));
    cpu::layernorm_forward(out.data(), mean.data(), rstd.data(), embedded.data(), w.data(), b.data(), N, C, 1e-5);
    gpu::layernorm_forward(d_out, d_mean, d_rstd, nullptr, d_w, d_b, N, C, 1e-5, {d_embedded, d_x, d_wte, d_wpe, t0, T});
    compare("embedding_forward", d_embedded, embedded, 0, 0), compare("embedding_forward, layernorm", d_out, out, ONE);
    const gpu::SortedTokens s = gpu::sort_tokens(x.data(), N, V);
    const Array<int> order(s.order), start(s.start), tokens(std::vector<int>{(int)s.start.size() - 1});
    cpu::embedding_backward(dwte.data(), dwpe.data(), dout.data(), x.data(), B, T, C);
    gpu::embedding_backward(d_dwte, d_dwpe, d_dout, d_x, {order, start, tokens}, B, T, C);
    compare("embedding_backward dwte", d_dwte, dwte, 1e-6, 1e-6), compare("embedding_backward dwpe", d_dwpe, dwpe, 1e-6, 1e-6);
}

static void linear(int N, int C, int OC, bool bias) {
    shape = format("N=%d C=%d OC=%d, %s bias", N, C, OC, bias ? "with" : "no");
    const auto x = numbers((size_t)N * C), w = numbers((size_t)C * OC), b = numbers(OC), plus = numbers((size_t)N * OC), dout = numbers((size_t)N * OC);
    std::vector<float> out(plus.size()), act(plus.size()), dx(x.size()), dw = numbers(w.size());
    Array<floatX> d_x(x), d_w(w), d_b(b), d_plus(plus), d_out(out.size()), d_before(out.size()), d_act(out.size()), d_dout(dout), d_dx(dx.size());
    Array<float> d_dw(dw);
    const float* B = bias ? b.data() : nullptr;
    const floatX* d_B = bias ? d_b.p : nullptr;
    cpu::linear_forward(out.data(), x.data(), w.data(), B, plus.data(), N, C, OC);
    gpu::linear_forward(d_out, d_x, d_w, d_B, d_plus, nullptr, N, C, OC);
    compare("linear_forward, plus", d_out, out, ONE);
    cpu::linear_forward(out.data(), x.data(), w.data(), B, (const float*)nullptr, N, C, OC), cpu::gelu_forward(act.data(), out.data(), out.size());
    gpu::linear_forward(d_act, d_x, d_w, d_B, nullptr, d_before, N, C, OC);
    compare("linear_forward, before gelu", d_before, out, ONE), compare("linear_forward, gelu", d_act, act, 2 * ONE);
    cpu::linear_backward(dx.data(), dw.data(), (float*)nullptr, dout.data(), x.data(), w.data(), N, C, OC);
    gpu::linear_backward(d_dx, d_dw, d_dout, d_x, d_w, N, C, OC);
    compare("linear_backward dx", d_dx, dx, ONE), compare("linear_backward dw", d_dw, dw, 1e-5);
}

static void adamw(size_t n, double clip, int what) {         // what: 0 all is well, 1 a gradient is NaN, 2 the loss is infinite
    shape = format("n=%zu clip=%g%s", n, clip, what == 0 ? "" : what == 1 ? ", a NaN" : ", an infinite loss");
    std::vector<float> w = numbers(n), m = numbers(n), v = numbers(n), g = numbers(n);
    for (float& f : v) f *= f;
    if (what == 1) g[n / 2] = NAN;
    std::vector<unsigned char> decays(n / 128);
    for (size_t i = 0; i < decays.size(); i++) decays[i] = i % 3 != 0;
    Array<float> d_w(w), d_m(m), d_v(v), d_g(g), squares(gpu::NORM_BLOCKS);
    Array<floatX> d_rounded(w);
    const Array<unsigned char> d_decays(decays);
    Array<gpu::Outcome> outcome(std::vector<gpu::Outcome>{{what == 2 ? INFINITY : 1, 0}});
    const AdamW o{1e-2, 0.9, 0.95, 1e-8, 0.1};
    const int step = 3;
    const double norm = std::sqrt(cpu::sum_of_squares(g.data(), n)), scale = clip > 0 ? std::min(1.0, clip / norm) : 1;
    for (size_t i = 0; i < decays.size() && what == 0; i++)
        cpu::adamw_update(&w[i * 128], &m[i * 128], &v[i * 128], &g[i * 128], 128, o, decays[i] ? o.weight_decay : 0, scale, step);
    gpu::adamw(d_w, d_m, d_v, d_g, d_rounded, d_decays, n, gpu::update_of(o, clip, step), squares, outcome);
    std::vector<float> rounded;
    for (float f : d_w.raw()) rounded.push_back(float(floatX(f)));
    compare("adamw w", d_w, w, 1e-6, 1e-6), compare("adamw m", d_m, m, 1e-6, 1e-6), compare("adamw v", d_v, v, 1e-6, 1e-6);
    if (what != 1) compare("adamw g", d_g, g, 1e-6, 1e-6);
    if (BF16) compare("adamw rounded", d_rounded, rounded, 0);
    const double got = outcome.raw()[0].norm;
    const bool good = what == 1 ? std::isnan(got) : std::abs(got / norm - 1) <= 1e-5;
    if (report || !good) check(good, "kernels/adamw, %s: norm %g, expected %g", shape.c_str(), got, norm);
}

int main(int argc, char** argv) {
    const int runs = argc > 1 ? atoi(argv[1]) : 3;
    const bool small = argc > 2;             // under sanitizers, which take long
    uint64_t first = 0;
    for (int run = 0; run < runs; run++) {
#ifdef CUDA_EMU                              // the first in natural order, others in adversarial ones
        emu::cfg.seed = run, emu::cfg.lazy = run > 0, emu::cfg.gang = run ? 1 + run % 4 : 1;
#endif
        rng = Rng(1), hash_of_run = 0, report = run == 0;
        const int sizes[][2] = {{1, 1}, {3, 15}, {7, 24}, {40, 64}, {5, 768}, {2, 1600}};
        for (auto [N, C] : sizes) if (!small || N * C < 3000) layernorm(N, C), gelus(N, C);
        gelus(33, 96);
        attention(1, 0, 1, 1, 1, 1), attention(2, 0, 5, 5, 3, 5), attention(1, 0, 33, 33, 2, 24);
        attention(1, 0, 64, 64, 2, 64), attention(1, 0, 65, 65, 1, 64), attention(1, 0, 70, 70, 1, 128);
        if (!small) attention(2, 0, 130, 130, 1, 128), attention(1, 0, 200, 200, 1, 64);
        attention(2, 0, 7, 20, 2, 64), attention(2, 7, 1, 20, 2, 64), attention(1, 3, 4, 9, 3, 5);
        cross_entropy(1, 2), cross_entropy(5, 101), cross_entropy(3, 1000);
        if (!small) cross_entropy(2, 50257);
        embedding(1, 1, 1, 1), embedding(3, 9, 5, 15), embedding(2, 16, 100, 64);
        linear(1, 1, 1, true), linear(5, 15, 21, true), linear(33, 64, 96, true), linear(16, 96, 64, false);
        if (!small) linear(64, 768, 768, true);
        adamw(128, 1, 0), adamw(128 * 37, 0, 0), adamw(128 * 37, 0.5, 0), adamw(128 * 5, 1, 1), adamw(128 * 5, 1, 2);
        if (run == 0) first = hash_of_run;
        else check(hash_of_run == first, "kernels/run %d gives the bits of the first", run + 1);
    }
    return failed > 0;
}
