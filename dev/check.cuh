/* dev/check.cuh -- the model of train_gpt.cu against that of train_gpt.cpp, tensor by tensor: ./train_gpt_cuda --check.
   The program includes it as its last part, which no reader of the program needs. */
#pragma once
namespace gpu {

/* Small models draw texts, then take four steps and one of validation, on CPU and GPU side by side, from the same
   weights, on the same tokens; every tensor is compared. Step 2 is PPO's, step 4 one of readouts, as of a reward model.
   The CPU rounds to bf16 what products read, if the GPU does.
   errors   activations and gradients: |gpu - cpu| / |cpu|, 2-norms;   weights: root mean square of gpu - cpu, over lr
   limits   fp32: sums of other orders. bf16: the GPU also rounds activations and their gradients, 2^-9 each at random,
            some 20 times on the way through 2 layers and back: 2^-9 sqrt(20) = 0.009, and a factor of 3. A weight's
            first steps have the signs of its gradients, however small these are; that of a key's bias, which is 0 but
            for rounding, says nothing and is left out. The CPU then takes over the GPU's weights, so that the next step
            starts from the same again. */
struct Comparison {
    int step, compared = 0, failed = 0;
    void operator()(const std::string& name, const std::vector<float>& got, const auto* want, double limit,
                    double unit = 0) {
        double difference = 0, size = 0;
        for (size_t i = 0; i < got.size(); i++) {
            difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
            size += (double)want[i] * want[i];
        }
        if (unit) size = unit * unit * got.size();
        const double error = std::sqrt(difference) / (std::sqrt(size) + 1e-12);
        const bool good = error <= limit;                    // NaN is not
        if (step <= 1 || !good)
            printf("%s step %d  %-44s error %.1e  limit %.1e\n", good ? "ok  " : "FAIL", step, name.c_str(), error,
                   limit);
        compared++;
        failed += !good;
    }
};
template <typename T> std::vector<float> host_copy(const T* p, size_t n) {
    std::vector<T> values(n);
    CHECK(cudaMemcpyAsync(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, device().stream));
    CHECK(cudaStreamSynchronize(device().stream));
    return std::vector<float>(values.begin(), values.end());
}
// Weights to begin with: those of fresh models, but biases and norms, which are alike there, differ everywhere. What
// joins the residual stream stays as small as that is, else all tokens would look alike in the next block.
inline void begin(cpu::Model& on_cpu, Model& on_gpu) {
    for (size_t i = 0; i < on_gpu.layout.tensors.size(); i++) {
        std::vector<float> values = on_gpu.layout.initial_values(i, 1);
        const Tensor& t = on_gpu.layout.tensors[i];
        const double size = t.adapter() ? 0.05 : t.rows ? 0 : t.name.find(".ln_") < t.name.npos ? 0.3 : 0.02;
        Rng rng(2, i + 1);
        for (float& v : values) v += size * rng.normal();
        on_cpu.set(WEIGHT, i, values.data());
        on_gpu.set(WEIGHT, i, values.data());
    }
}
// Texts drawn up to the end of the context: the last step's logits, which hang on all before, and what it drew from
// them.
inline void check_drawing(Comparison& compare, const Config& c, int B, double limit) {
    cpu::Model on_cpu(c, B, c.T, false, BF16);
    Model on_gpu(c, B, c.T, false);
    begin(on_cpu, on_gpu);
    Options o;
    o.temperature = 0.7;
    o.top_k = c.V / 2;
    o.top_p = 0.9;
    const Sampling sampling(o);
    const int V = c.V, never = V / 3, first = c.T - 2 * DRAWN;           // so many tokens are given
    std::vector<int> x((size_t)B * c.T), piece, token(B);
    std::vector<Rng> rng, before;
    for (int& t : x) t = Rng(&t - x.data()).below(V);
    for (int b = 0; b < B; b++) rng.emplace_back(3, b + 1);
    for (int t0 = 0; t0 < c.T; t0 = t0 ? t0 + 1 : first) {
        const int n = t0 ? 1 : first;
        piece.clear();
        before = rng;
        for (int b = 0; b < B; b++) {
            int* const at = &x[b * c.T + t0];
            if (t0) *at = token[b];
            piece.insert(piece.end(), at, at + n);
        }
        on_gpu.draw(piece.data(), B, t0, n, sampling, {never}, rng.data(), token.data(), true);
    }
    on_cpu.extend(x.data(), B, 0, c.T);
    auto check_last = [&](int last, const char* how) {                   // what was drawn behind that position
        std::vector<float> want((size_t)B * V);
        const std::vector<float> got = host_copy(on_gpu.activations(0).logits, (size_t)B * padded(V));
        on_cpu.logits(last, c.T, B, want.data());
        for (int b = 0; b < B; b++) {
            std::vector<float> z(&got[(size_t)b * padded(V)], &got[(size_t)b * padded(V)] + V);
            float* const wanted = &want[b * V];
            const int drawn = cpu::pick(z.data(), V, sampling, before[b]);
            const std::string row = format("row %d of %d, heads of %d%s", b, B, c.C / c.NH, how);
            compare("hidden logit of " + row, {z[never]}, &NEVER, 0.01);
            z[never] = wanted[never] = 0;
            compare("logits of " + row, z, wanted, limit);
            compare("token of " + row, {(float)token[b]}, &drawn, 0);
        }
    };
    check_last(c.T - 1, "");
    // as a chat goes on, from a cache behind which tokens were made ahead that nobody wanted
    const int back = c.T - 4;
    piece.clear();
    rng.clear();
    for (int b = 0; b < B; b++) {
        rng.emplace_back(4, b + 1);
        piece.insert(piece.end(), &x[b * c.T + back], &x[b * c.T + back] + 2);
    }
    before = rng;
    on_gpu.draw(piece.data(), B, back, 2, sampling, {never}, rng.data(), token.data(), false);
    check_last(back + 1, ", from the cache");
}
inline Comparison check_model(const Config& c, int B, int T) {
    cpu::Model on_cpu(c, B, T, true, BF16);
    Model on_gpu(c, B, T, true);
    begin(on_cpu, on_gpu);
    printf("%d layers, %d heads, %d channels, vocabulary %d, %d rows of %d tokens, %s, %s, adapters of rank %d, %s\n",
           c.L, c.NH, c.C, c.V, B, T, c.bias ? "biases" : "no biases", c.tied ? "tied head" : "head of its own", c.rank,
           FORMS[(int)c.form]);
    const double limit = BF16 ? 0.03 : 2e-5, lr = 1e-3;
    Comparison compare{0};
    Rng rng(2);
    for (int rows : {1, 3, 9}) check_drawing(compare, c, rows, limit);
    const int N = B * T;
    for (compare.step = 1; compare.step <= 5; compare.step++) {
        const bool last = compare.step == 5, differ = compare.step == 3;         // all tokens do, if there are so many
        std::vector<int> x(N), y(N);
        for (int n = 0; n < N; n++) {
            x[n] = differ ? n * 7 % c.V : rng.below(c.V);
            y[n] = rng.below(9) ? (int)rng.below(c.V) : -1;
        }
        auto both = [&](auto f) {
            f(on_cpu);
            f(on_gpu);
        };
        std::vector<float> weight(N), old(N), ref(N), read(B), dread(B);
        std::vector<int> at(B);
        for (int b = 0; b < B; b++) {
            at[b] = rng.below(T);
            dread[b] = rng.normal();
        }
        Objective objective;
        if (compare.step == 2) {         // no ratio lies near 1 +- clip, where its side would be a matter of rounding
            both([&](auto& m) {
                m.forward(x.data(), y.data(), {}, N, B, T, false);
                m.result();
            });
            for (int n = 0; n < N; n++) {
                weight[n] = rng.normal();
                ref[n] = on_cpu.logprob[n] + 0.3 * rng.normal();
                old[n] = on_cpu.logprob[n] + 0.5 * rng.below(3) - 0.5;
            }
            objective = {weight.data(), old.data(), ref.data(), 0.2, 0.1};
        }
        if (compare.step == 4) {
            std::vector<std::vector<float>> reads;
            both([&](auto& m) {
                m.readout(x.data(), at.data(), 1, B, T, read.data());
                m.readout_backward(dread.data());
                reads.push_back(read);
            });
            compare("readouts", reads[1], reads[0].data(), limit);
        } else both([&](auto& m) { m.forward(x.data(), y.data(), objective, N, B, T, !last); });
        for (int l = 0; l < c.L; l++) {
            const cpu::Activations a = on_cpu.activations(l);
            const Activations b = on_gpu.activations(l);
            const bool KEPT = true, BLOCK = true, ONCE = l == 0, training = false;
            auto row = [&](const char* name, bool here, const auto* got, const real* want, size_t count) {
                if (!here || !count || !strcmp(name, "logits")) return;
                compare(format("activation %d %s", l, name), host_copy(got, count), want, limit);
            };
#define X(type, field, per, count) row(#field, per, b.field, a.field, count);
            ACTIVATIONS(X)
#undef X
        }
        if (last) {                          // as in validation. Of tokens that are nearly alike, either may be best
            const double loss = on_cpu.result().loss;
            compare("loss", {(float)on_gpu.result().loss}, &loss, limit);
            compare("log-probabilities", on_gpu.logprob, on_cpu.logprob.data(), limit);
            std::vector<float> z((size_t)N * c.V), logits(z.size()), best, want;
            on_cpu.logits(0, 1, N, z.data());
            on_gpu.logits(0, 1, N, logits.data());
            for (int n = 0; n < N; n++) {
                if (y[n] < 0) continue;
                best.push_back(z[(size_t)n * c.V + on_gpu.best[n]]);
                want.push_back(z[(size_t)n * c.V + on_cpu.best[n]]);
            }
            compare("logits", logits, z.data(), limit);
            compare("logits of the best", best, want.data(), limit);
            break;
        }
        on_cpu.backward();
        on_gpu.backward();
        auto tensors = [&](const char* what, Which which, double limit, double unit) {
            for (size_t i = 0; i < on_gpu.layout.tensors.size(); i++) {
                const Tensor& t = on_gpu.layout.tensors[i];
                if (!t.trained) continue;
                std::vector<float> got(t.count()), want(t.count(), 1);
                if (!t.present) on_gpu.set(which, i, want.data());         // does nothing: zeros are read
                on_gpu.get(which, i, got.data());
                on_cpu.get(which, i, want.data());
                if (which == WEIGHT) on_cpu.set(which, i, got.data());
                // At first v's gradients are far larger than those of q and k, and would hide what is wrong with these.
                const bool qkv = t.name.find("c_attn") < t.name.npos, key_bias = qkv && t.rows == 0;
                const int parts = qkv && which == GRADIENT && compare.step == 1 ? 3 : 1;
                for (int part = 0; part < parts; part++) {
                    std::vector<float> g, w;
                    for (size_t k = 0; k < got.size(); k++) {
                        const int p = int(k) % t.cols / c.C;
                        if ((parts > 1 && p != part) || (key_bias && p == 1)) continue;
                        g.push_back(got[k]);
                        w.push_back(want[k]);
                    }
                    const char* const name = parts == 3 ? &" q k v"[2 * part] : "";
                    compare(format("%s %s%.2s", what, t.name.c_str(), name), g, w.data(), limit, unit);
                }
            }
        };
        tensors("gradient", GRADIENT, limit, 0);
        const AdamW adamw{lr, 0.9, 0.95, 1e-8, 0.1};
        on_cpu.update(adamw, 1, compare.step);
        on_gpu.update(adamw, 1, compare.step);
        const StepResult a = on_cpu.result(), b = on_gpu.result();
        compare("loss", {(float)b.loss}, &a.loss, limit);
        compare("gradient norm", {(float)b.norm}, &a.norm, limit);
        tensors("weight", WEIGHT, BF16 ? 0.5 : 0.05, lr);
    }
    return compare;
}
inline int check_program() {
    return run_main([] {
        int compared = 0, failed = 0;
        most_logits = 0;                     // the least: chunks of 64 rows
        const auto model = [](int L, int NH, int C, int V, int T) {
            Config c;
            std::tie(c.L, c.NH, c.C, c.V, c.T) = std::tuple(L, NH, C, V, T);
            return c;
        };
        const Config tiles = model(2, 2, 128, 512, 96), wide = model(1, 1, 128, 64, 140);
        Config plain = model(1, 4, 128, 512, 96);
        plain.bias = false;
        Config odd = model(2, 3, 21, 101, 33);
        odd.bias = odd.tied = false;
        Config adapted = model(1, 2, 128, 512, 64);
        adapted.rank = 8;
        adapted.alpha = 16;
        adapted.targets = {"qkv", "proj", "fc", "fcproj"};
        if (BF16) adapted.form = Form::INT8;
        Config odd_adapted = odd;
        odd_adapted.rank = 3;
        odd_adapted.alpha = 5;
        odd_adapted.targets = {"qkv", "fc"};
        if (BF16) odd_adapted.form = Form::NF4;
        for (const Config& c : {tiles, plain, wide, odd, adapted, odd_adapted}) {
            const Comparison result = check_model(c, 2, c.T);
            compared += result.compared;
            failed += result.failed;
        }
        if (failed) die("%d of %d comparisons beyond their limits on %s", failed, compared, device().properties.name);
        printf("all %d comparisons within their limits on %s\n", compared, device().properties.name);
    });
}

}  // namespace gpu
