/* dev/cpu/step.cpp -- where the time of a training step of GPT-2 124M goes.   make build/study_step && build/study_step

   The network of train_gpt.cpp runs over a model whose layers are timed, one by one; a row is a layer, in all blocks,
   forward or backward. The roof is the peak of products where FLOPs are counted, and else memory that is read and
   written in place; bytes are those of a layer's inputs and outputs, once each. */
#include "../bench.h"

struct Share { double seconds = 0, flops = 0, bytes = 0; };
struct Timed : cpu::Model {
    using cpu::Model::Model;
    std::vector<std::pair<std::string, Share>> rows;

    template <typename F> auto time(const std::string& name, double flops, double bytes, F f) {
        const double start = seconds();
        f();
        auto row = std::find_if(rows.begin(), rows.end(), [&](auto& r) { return r.first == name; });
        if (row == rows.end()) row = rows.insert(row, {name, {}});
        row->second.seconds += seconds() - start;
        row->second.flops += flops;
        row->second.bytes += bytes;
    }
    const char* product(int C, int OC) const {
        return OC == c.qkv() ? "qkv" : OC == C ? "proj" : OC > C ? "fc" : "fcproj";
    }

    auto embedding_norm_forward(const auto& a, const auto& w, int B, int t0, int T) {
        time("embedding, ln1", 0, 16.0 * B * T * c.C, [&] { cpu::Model::embedding_norm_forward(a, w, B, t0, T); });
        return a.ln1;
    }
    auto norm_forward(auto out, auto stats, auto x, const auto& norm, int N) {
        time("layernorm", 0, 8.0 * N * c.C, [&] { cpu::Model::norm_forward(out, stats, x, norm, N); });
        return out;
    }
    void norm_backward(auto dresidual, bool add, auto... more) {
        const double N = std::get<sizeof...(more) - 1>(std::tuple(more...));
        time("layernorm backward", 0, 16.0 * N * c.C, [&] { cpu::Model::norm_backward(dresidual, add, more...); });
    }
    void linear_forward(auto out, auto x, const auto& layer, auto plus, real* before_gelu, int N, int C, int OC) {
        time(product(C, OC), 2.0 * N * C * OC, 0,
             [&] { cpu::Model::linear_forward(before_gelu ? before_gelu : out, x, layer, plus, nullptr, N, C, OC); });
        if (before_gelu) time("gelu", 0, 8.0 * N * OC, [&] { cpu::gelu_forward(out, before_gelu, (size_t)N * OC); });
    }
    void linear_backward(auto dx, const auto& g, auto dout, auto x, const auto& layer, int N, int C, int OC) {
        time(product(C, OC) + std::string(" backward"), 4.0 * N * C * OC, 0,
             [&] { cpu::Model::linear_backward(dx, g, dout, x, layer, N, C, OC); });
    }
    void gelu_backward(auto d, auto db, auto x, int N, int C) {
        time("gelu backward", 0, 12.0 * N * C, [&] { cpu::Model::gelu_backward(d, db, x, N, C); });
    }
    void attention_forward(const auto& a, auto qkv, int B, int t0, int T, int S) {
        time("attention", 2.0 * B * T * (T + 1) * c.C, 0, [&] { cpu::Model::attention_forward(a, qkv, B, t0, T, S); });
    }
    void attention_backward(const auto& a, auto db, int B, int T) {
        time("attention backward", 5.0 * B * T * (T + 1) * c.C, 0,
             [&] { cpu::Model::attention_backward(a, db, B, T); });
    }
    void embedding_backward(const auto& g, auto dout, int B, int T) {
        time("embedding backward", 0, 20.0 * B * T * c.C, [&] { cpu::Model::embedding_backward(g, dout, B, T); });
    }
    void logits_forward(auto x, int n0, int step, int count) {
        time("head", 2.0 * count * c.C * c.V, 0, [&] { cpu::Model::logits_forward(x, n0, step, count); });
    }
    void cross_entropy(int n0, int count, bool backward) {
        time("cross-entropy", 0, 8.0 * count * c.V, [&] { cpu::Model::cross_entropy(n0, count, backward); });
    }
    void logits_backward(auto x, int n0, int count) {
        time("head backward", 4.0 * count * c.C * c.V, 0, [&] { cpu::Model::logits_backward(x, n0, count); });
    }
};

static void step(Config c, int B, int T, bool bf16) {
    c.T = T;
    Timed model(c, B, T, true, bf16);
    initialize(model, 1);
    std::vector<int> tokens(B * T + 1);
    Rng rng(3);
    for (int& token : tokens) token = (int)rng.below(c.V);
    const int rounds = timed ? 4 : 1;
    double peak = 0, memory = 0, all = 0;
    for (int r = 0; r < rounds; r++) {
        model.forward(tokens.data(), &tokens[1], {}, B * T, B, T, true);
        model.backward();
        const std::vector<float> want(model.gradients.data(), model.gradients.data() + model.gradients.size);
        model.gradients.zero();
        if (r == 1 || !timed) model.rows.clear();            // the first round finds caches and pages cold
        peak += cpu::measure_peak(bf16 ? cpu::unit() : Unit::NONE, 1);
        memory += bandwidth(UPDATE);
        network_head(model, network_forward(model, B, 0, T, T), B * T, true);
        network_backward(model, B, T);
        const bool same = memcmp(want.data(), model.gradients.data(), want.size() * sizeof(float)) == 0;
        if (!timed)
            check(same, "study/step%s, %d x %d: the gradients are those of the model", bf16 ? " in bf16" : "", B, T);
        const double n = model.gradients.size;
        model.time("adamw", 0, n * (36 + 2 * bf16), [&] { model.update({1e-3, 0.9, 0.95, 1e-8, 0.1}, 1, 1); });
        model.result();
    }
    if (!timed) return;
    const double shown = rounds - 1;
    printf("\nstep, %d x %d%-34s %9s %9s %9s %9s\n", B, T, bf16 ? ", bf16" : "", "ms", "GB/s", "GFLOP/s", "of roof");
    for (auto& [name, row] : model.rows) all += row.seconds;
    for (auto& [name, row] : model.rows) {
        const double floor = std::max(row.flops / (peak / rounds), row.bytes / (memory / rounds));
        printf("  %-42s %9.1f %9.1f %9.1f %8.1f%%\n", name.c_str(), row.seconds / shown * 1e3,
               row.bytes / row.seconds / 1e9, row.flops / row.seconds / 1e9, 100 * floor / row.seconds);
    }
    printf("  %-42s %9.1f    peak %.0f GFLOP/s, memory %.1f GB/s\n", "all", all / shown * 1e3, peak / rounds / 1e9,
           memory / rounds / 1e9);
}

static void study() {
    Config small, d12;
    small.L = 2;
    small.NH = 3;
    small.C = 24;
    small.V = 101;
    small.T = 64;
    for (bool bf16 : {false, true}) if (!timed) step(small, 3, 13, bf16);
    if (!timed) return;
    for (auto [B, T] : {std::pair(4, 64), {4, 256}, {2, 1024}})
        for (bool bf16 : {false, true}) step(d12, B, T, bf16);
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
