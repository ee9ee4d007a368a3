/* test/test_golden.cpp -- build/test_golden CASE_DIR...
   Trains the small models of test/golden and compares losses, logits, activations, gradients, gradient norms, learning
   rates and weights after 1, 10 and 50 steps with values from PyTorch in float64. Formulas, files and limits:
   test/golden/README.md. One line a case: the worst error as a fraction of its limit, and where it was. */
#ifdef GPU                       // the CUDA program, on a GPU or emulated
#define NO_GPU_MAIN
#include "../train_gpt.cu"
using gpu::Model;
static const char* const SUITE = "golden gpu";
static std::vector<float> values_of(const gpu::floatX* p, size_t n) { return gpu::host_copy(p, n); }
static const std::vector<std::pair<bool, Unit>> FORMATS = {{gpu::BF16, Unit::NONE}};
static const bool ROUNDS = gpu::BF16;        // weights that are not trained
#else
#define NO_CPU_MAIN
#include "units.h"
#include "../train_gpt.cpp"
using cpu::Model;
static const char* const SUITE = "golden";
static std::vector<float> values_of(const real* p, size_t n) { return std::vector<float>(p, p + n); }
static const std::vector<std::pair<bool, Unit>> FORMATS = {{false, Unit::NONE}, {true, Unit::NONE},      // bf16? where?
                                                           {true, Unit::DOTS}, {true, Unit::AMX}};
static const bool ROUNDS = false;
#endif
#include "check.h"

// How far a number may be from that of PyTorch in float64. bf16: a product of two rounded numbers errs by 2^-8 at most;
// the deepest case has 4 layers, 17 products forward and as many back, whose errors have random signs: 2^-8 sqrt(34) =
// 0.023. Later steps add up the errors of earlier ones. The first turns a gradient near zero into a step of either
// sign. That is an error's root mean square, which the 2-norm over the many numbers of a matrix comes close to. Over n
// numbers whose errors are independent it deviates from that by 1 / sqrt(2 n) of it, one standard deviation: so a
// tensor of n numbers may err by 1 + 3 / sqrt(2 n) times as much, 1.67 for the 10 numbers of a small model's bias, 1.02
// for a matrix of 10,000.
struct Limits { double logits, first_loss, loss, first_norm, norm, gradient, entry, first_step, step; };
static const Limits LIMITS_FP32{1e-4, 1e-5, 1e-4, 1e-5, 3e-4, 1e-4, 0.2, 1e-2, 2e-3};
#ifdef GPU                // activations and their gradients are rounded too: four times as many errors, twice the sum
static const Limits LIMITS_BF16{0.2, 0.046, 0.1, 0.046, 0.25, 0.046, 2.1, 0.6, 0.12};
#else
static const Limits LIMITS_BF16{0.1, 0.023, 0.05, 0.023, 0.06, 0.023, 2.1, 0.6, 0.06};
#endif

struct Case {
    std::string dir;
    bool bf16;
    Json training, batch, expected;
    double worst = 0;
    std::string worst_at = "nothing", failure;
    int compared = 0;

    // NaN fails: every comparison is written so that only a number within the limit passes.
    void within(const std::string& what, double error, double limit) {
        double fraction = error / limit;
        compared++;
        if (!std::isnan(worst) && !(fraction <= worst)) {                            // a NaN stays
            worst = fraction;
            worst_at = what;
        }
        if (!(error <= limit) && failure.empty())
            failure = format("%s: error %g, limit %g", what.c_str(), error, limit);
    }
    void near(const std::string& what, double got, double want, double limit) {
        within(what, std::abs(got - want), limit);
    }
};

static const Json& need(const Json& j, const char* key) {
    if (!j[key]) die("'%s' is missing", key);
    return j[key];
}

static std::vector<double> numbers(const Json& j) {
    std::vector<double> v;
    for (const Json& item : j.items) {
        if (item.kind == Json::ARRAY) for (double d : numbers(item)) v.push_back(d);
        else v.push_back(item.number);
    }
    return v;
}

// Weights by formula: element n over all tensors is output n of SplitMix64, scaled to [-1,1), times scale, plus offset.
static void make_weights(Model& model, const Json& spec, const std::string& where) {
    Rng rng(0);
    rng.state = (uint64_t)need(spec, "seed").number;
    size_t found = 0;
    for (const Json& t : need(spec, "tensors").items) {
        const std::string name = need(t, "name").string;
        for (size_t i = 0; i < model.layout.tensors.size(); i++) {
            const Tensor& tensor = model.layout.tensors[i];
            if (tensor.name != name) continue;
            std::vector<float> values(tensor.count());
            for (float& v : values)
                v = float(need(t, "offset").number +
                          need(t, "scale").number * (double(rng.next() >> 40) / 8388608.0 - 1.0));
            std::vector<double> first = numbers(need(t, "first"));
            for (size_t k = 0; k < first.size(); k++)
                if (!(values[k] == (float)first[k]))
                    die("%s: %s differs from its check values", where.c_str(), name.c_str());
            model.set(WEIGHT, i, values.data());
            found++;
        }
    }
    const auto& all = model.layout.tensors;
    const size_t present = std::count_if(all.begin(), all.end(), [](auto& t) { return t.present; });
    if (found != present) die("%s: makes %zu tensors, the model has %zu", where.c_str(), found, present);
}

// Compares a tensor with the stored entries 0, s, 2s, ... of the expected one; f(got, want, flat index).
template <typename F> static void stored_entries(const Json& summary, const View& view, size_t count, F f) {
    const Json &stride = summary["stride"], &skip = summary["skip"];
    size_t s = stride ? stride.number : 1, n = 1;
    for (size_t d : view.shape) n *= d;
    if (n != (count + s - 1) / s) die("%zu entries stored, %zu expected", n, (count + s - 1) / s);
    for (size_t i = 0; i < n; i++) {
        if (skip && i * s >= skip.items.at(0).number && i * s < skip.items.at(1).number) continue;
        f(i * s, view[i]);
    }
}

// The adapter as PEFT keeps it, and the weights that it gives when it is made part of them.
static void check_merged(Case& k, const Config& c, Model& model, const Safetensors& file,
                         const std::map<std::string, View>& expected) {
    const std::string dir = format("build/test_golden_%d", (int)getpid());
    std::filesystem::create_directories(dir);
    save_tensors(dir + "/adapter_model.safetensors", as_peft(stored(model, true)));
    write_file(dir + "/adapter_config.json", adapter_config(k.dir, c));
    const Adapter adapter(dir);
    k.near("tensors of the adapter", adapter.tensors.size(), file.tensors.size(), 0.5);
    Config plain = c;
    plain.rank = 0;
    Model whole(plain, 1, 1, false);
    const ModelFile base = open_adapted(k.dir, dir);
    load_adapted(stored(whole), stored(whole, true), base);
    for (auto& [name, want] : expected) {
        if (!name.starts_with("merged.")) continue;
        size_t i = 0;
        while (whole.layout.tensors[i].name != name.substr(strlen("merged."))) i++;
        std::vector<float> got(whole.layout.tensors[i].count());
        whole.get(WEIGHT, i, got.data());
        for (size_t n = 0; n < got.size(); n++)
            k.near(name, got[n], want[n], ROUNDS ? std::abs(want[n]) / 256 : 1e-6);
    }
    std::filesystem::remove_all(dir);
}

static void run_case(Case& k) {
    auto json = [&](const char* name) {
        const std::string path = k.dir + "/" + name;
        return parse_json(read_file(path), path);
    };
    k.training = json("train.json");
    k.batch = json("batch.json");
    k.expected = json("expected.json");
    const Json& loss_of = need(k.training, "loss");
    const std::string kind = need(loss_of, "type").string;
    const bool lm = kind == "lm", ppo = kind == "ppo", pairs = kind == "reward";
    if (!lm && !ppo && !pairs && kind != "policy_gradient") die("loss '%s' is not supported", kind.c_str());
    const std::string config = k.dir + "/config.json";
    Config c;
    read_config(c.members(), read_json(config), config);
    if (const Json& lora = k.training["lora"]) {
        c.rank = need(lora, "r").number;
        c.alpha = need(lora, "alpha").number;
        c.targets = {"qkv", "proj", "fc", "fcproj"};
    }
    Safetensors expected(k.dir + "/expected.safetensors");

    const int rows = need(k.batch, "inputs").items.size(), T = need(k.batch, "inputs").items.at(0).items.size();
    auto of_tokens = [&](const char* key) {
        const std::vector<double> v = numbers(need(k.batch, key));
        if (v.size() != (size_t)rows * T) die("%s: the batch is not rectangular", key);
        return std::vector<float>(v.begin(), v.end());
    };
    const std::vector<float> xs = of_tokens("inputs");
    const std::vector<float> ys = pairs ? std::vector<float>(xs.size(), -1) : of_tokens("targets");
    const std::vector<int> x(xs.begin(), xs.end()), y(ys.begin(), ys.end());
    std::vector<float> w(xs.size(), 1), old, ref;
    if (lm) w = of_tokens("weights");
    else if (!pairs) w = of_tokens("advantages");
    if (ppo) {
        old = of_tokens("old_logprobs");
        ref = of_tokens("ref_logprobs");
    }
    auto objective = [&](size_t at) {
        if (!ppo) return Objective{&w[at]};
        const double clip = need(loss_of, "clip_eps").number, kl = need(loss_of, "kl_beta").number;
        return Objective{&w[at], &old[at], &ref[at], clip, kl};
    };
    double denominator = pairs ? rows / 2 : 0;
    for (size_t n = 0; n < y.size(); n++) denominator += y[n] < 0 ? 0 : lm ? w[n] : 1;
    std::vector<int> at;                     // where a row's reward is read
    if (pairs) for (double t : numbers(need(k.batch, "readout_positions"))) at.push_back(t);
    std::vector<float> rewards(rows), drewards(rows);
    // the sum of all pairs' losses / denominator, with the gradients
    auto pairs_forward = [&](Model& model) {
        model.readout(x.data(), at.data(), need(loss_of, "token_id").number, rows, T, rewards.data());
        double loss = 0;
        for (int i = 0, half = rows / 2; i < half; i++) {
            const auto [nats, d] = pair_loss(rewards[i] - rewards[half + i]);
            loss += nats / denominator;
            drewards[i] = d / denominator;
            drewards[half + i] = -d / denominator;
        }
        return loss;
    };

    const Json& accumulate = k.training["grad_accum"];
    const int micro = accumulate ? accumulate.number : 1, B = rows / micro;
    Model model(c, rows, T, true, k.bf16);
    const Limits& limits = k.bf16 ? LIMITS_BF16 : LIMITS_FP32;
#ifndef GPU
    const size_t floats = model.weights.size + model.gradients.size + model.moment1.size + model.moment2.size +
                              model.acts.size;
    k.near("memory", model.memory.all(), 4 * floats + 2 * model.rounded.size + model.packed.size, 0.5);
#endif
    if (std::filesystem::exists(k.dir + "/weights.json")) {
        make_weights(model, json("weights.json"), k.dir + "/weights.json");
    } else {
        ModelFile file = open_model(k.dir + "/model.safetensors");
        load_tensors(stored(model), file.tensors, file.path);
    }
    size_t parameters = model.layout.parameters;
    if (c.rank) {
        const Safetensors adapter(k.dir + "/lora.safetensors");
        load_tensors(stored(model, true), adapter.tensors, adapter.file.path);
        parameters = model.layout.frozen_parameters;
        const double trainable = need(k.expected, "trainable_count").number;
        k.near("trainable_count", model.layout.parameters - parameters, trainable, 0.5);
        check_merged(k, c, model, adapter, expected.tensors);
    }
    k.near("param_count", parameters, need(k.expected, "param_count").number, 0.5);
    k.near("denominator", denominator, need(k.expected, "denominator").number, 1e-6);

    const Json &tensors = need(k.expected, "tensors"), &optimizer = need(k.training, "optimizer");
    const Json& schedule = need(k.training, "schedule");
    auto number_of = [](const Json& j, const char* key, double fallback) { return j[key] ? j[key].number : fallback; };
    const integer steps = need(k.training, "steps").number;
    const Schedule rates{need(schedule, "type").string, need(schedule, "lr").number, number_of(schedule, "min_lr", 0),
                         (integer)number_of(schedule, "warmup_iters", 0),
                         (integer)number_of(schedule, "lr_decay_iters", steps)};
    if (need(optimizer, "type").string != "adamw" || (rates.kind != "cosine" && rates.kind != "constant"))
        die("optimizer '%s' with schedule '%s' is not supported", need(optimizer, "type").string.c_str(),
            rates.kind.c_str());
    const AdamW adamw{0, need(optimizer, "beta1").number, need(optimizer, "beta2").number,
                      need(optimizer, "eps").number, need(optimizer, "weight_decay").number};
    const double clip = number_of(k.training, "grad_clip", 0);
    std::vector<double> losses = numbers(need(k.expected, "losses")), norms = numbers(need(k.expected, "grad_norms")),
                        coefs = numbers(need(k.expected, "clip_coefs")), lrs = numbers(need(k.expected, "lrs"));
    if (losses.size() != size_t(steps) + 1 || norms.size() != (size_t)steps || lrs.size() != (size_t)steps)
        die("losses do not fit the steps");

    // logits and activations, before any step
    auto compare_absolute = [&](const std::string& name, const Json& summary, size_t count, auto get) {
        auto it = expected.tensors.find(name);
        if (it == expected.tensors.end()) return;
        auto compare = [&](size_t i, float want) { k.near(name, get(i), want, limits.logits); };
        stored_entries(summary, it->second, count, compare);
    };
    model.forward(x.data(), y.data(), objective(0), denominator, rows, T, false);
    model.result();
    std::vector<float> logits((size_t)rows * T * c.V);
    model.logits(0, 1, rows * T, logits.data());
    const Json& of_logits = need(need(tensors, "logits"), "logits");
    compare_absolute("logits", of_logits, logits.size(), [&](size_t i) { return logits[i]; });
    auto activation = [&](const std::string& name, auto* p) {
        const std::vector<float> values = values_of(p, (size_t)rows * T * c.C);
        compare_absolute(name, Json(), values.size(), [&](size_t i) { return values[i]; });
    };
    std::vector<float> logprob(model.logprob.begin(), model.logprob.end());
    compare_absolute("logprobs", Json(), logprob.size(), [&](size_t i) { return logprob[i]; });
    if (pairs) {
        const std::vector<double> want = numbers(need(k.expected, "rewards"));
        pairs_forward(model);
        for (int b = 0; b < rows; b++) k.near("rewards", rewards[b], want.at(b), limits.logits);
    }
    activation("act.embed", model.activations(0).embedded);
    activation("act.ln_f", model.activations(0).lnf);
    for (int l = 0; l < c.L; l++) activation(format("act.h.%d", l), model.activations(l).residual);

    auto read = [&](Which which) {
        std::map<std::string, std::vector<float>> values;
        for (size_t i = 0; i < model.layout.tensors.size(); i++) {
            const Tensor& t = model.layout.tensors[i];
            if (!t.present || t.offset < model.layout.frozen) continue;
            values[t.name].resize(t.count());
            model.get(which, i, values[t.name].data());
        }
        return values;
    };
    const auto start = read(WEIGHT);
    double lr_sum = 0;
    for (integer it = 0; it <= steps; it++) {
        double of_pairs = 0;
        if (pairs) {
            of_pairs = pairs_forward(model);
            if (it < steps) {
                model.readout_backward(drewards.data());
                model.backward();
            }
        } else for (int m = 0; m < micro; m++) {
            const size_t first = (size_t)m * B * T;
            model.forward(&x[first], &y[first], objective(first), denominator, B, T, it < steps);
            if (it < steps) model.backward();
        }
        AdamW now = adamw;
        if (it < steps) {
            now.lr = lr_at(rates, it);
            lr_sum += now.lr;
        }
        if (it == 0) {
            const Json& group = need(tensors, "grad");
            for (auto& [name, g] : read(GRADIENT)) {
                const Json& summary = need(group, name.c_str());
                double difference = 0, n = 0;
                const View& stored = expected.tensors.at("grad." + name);
                stored_entries(summary, stored, g.size(), [&, &g = g](size_t i, float want) {
                    difference += ((double)g[i] - want) * ((double)g[i] - want);
                    n++;
                });
                const double chance = k.bf16 ? 1 + 3 / std::sqrt(2 * n) : 1;
                const double limit = limits.gradient * chance * need(summary, "l2").number + 1e-6;
                if (n) k.within("grad." + name, std::sqrt(difference), limit);
            }
        }
        if (it < steps) model.update(now, clip, it + 1);
        const auto [of_all_tokens, norm] = model.result();
        const double loss = of_all_tokens + of_pairs;
        k.near(format("losses[%d]", (int)it), loss, losses[it], it ? limits.loss : limits.first_loss);
        if (it == steps) break;
        const double scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1;
        k.near(format("lrs[%d]", (int)it), now.lr, lrs[it], 1e-12);
        // PPO's loss has corners: rounded to bf16, a token near one may have the slope of its other side from step 2 on
        if (ppo && k.bf16 && it) continue;
        k.near(format("grad_norms[%d]", (int)it), norm / norms[it], 1, it ? limits.norm : limits.first_norm);
        k.near(format("clip_coefs[%d]", (int)it), scale / coefs.at(it), 1, it ? limits.norm : limits.first_norm);
        const Json& group = tensors[format("step%d", (int)it + 1)];
        if (!group) continue;
        for (auto& [name, p] : read(WEIGHT)) {
            const std::string full = format("step%d.", (int)it + 1) + name;
            double squares = 0, n = 0;
            const View& stored = expected.tensors.at(full);
            stored_entries(need(group, name.c_str()), stored, p.size(), [&, &p = p](size_t i, float want) {
                double d = (double)p[i] - want;
                squares += d * d;
                n++;
                k.within(full + " (entry)", std::abs(d), limits.entry * lr_sum);
            });
            if (n) k.within(full, std::sqrt(squares / n), (it ? limits.step : limits.first_step) * lr_sum);
        }
    }
    if (const Json& final_probs = k.expected["final_probs"]; final_probs) {      // every context of a small vocabulary
        for (size_t s = 0; s < final_probs.items.size(); s++) {
            std::vector<int> context(c.T);
            std::vector<float> z(c.V);
            for (int t = 0; t < c.T; t++) context[t] = need(k.expected, "states").items.at(s).string.at(t) - '0';
            model.extend(context.data(), 1, 0, c.T);
            model.logits(c.T - 1, 1, 1, z.data());
            double sum = 0;
            for (float v : z) sum += std::exp(v);
            for (int v = 0; v < c.V; v++) {
                const double want = final_probs.items[s].items.at(v).number;
                k.near(format("final_probs[%zu][%d]", s, v), std::exp(z[v]) / sum, want, limits.logits);
            }
        }
    }
}

int main(int argc, char** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: test_golden CASE_DIR...\n");
        return 2;
    }
#ifndef GPU
    emulate_units();
#endif
    for (int i = 1; i < argc; i++) for (auto [bf16, unit] : FORMATS) {
        if (!has(unit)) continue;
        cpu::unit() = unit;
        const std::string where = unit == Unit::NONE ? ", bf16:" : format(", bf16 in %s:", UNITS[(int)unit]);
        Case k;
        k.dir = argv[i];
        k.bf16 = bf16;
        while (k.dir.size() > 1 && k.dir.back() == '/') k.dir.pop_back();
        std::string name = std::filesystem::path(k.dir).filename().string();
        try {
            run_case(k);
            check(k.failure.empty() && k.worst <= 1 && k.compared > 0,
                  "%s/%s%s worst %.3f of its limit, at %s; %d compared%s%s", SUITE, name.c_str(),
                  bf16 ? where.c_str() : "", k.worst, k.worst_at.c_str(), k.compared,
                  k.failure.empty() ? "" : "; ", k.failure.c_str());
        } catch (const Error& e) {
            check(false, "%s/%s: %s", SUITE, name.c_str(), e.line.c_str());
        } catch (const std::exception& e) {
            check(false, "%s/%s: cannot be read: %s", SUITE, name.c_str(), e.what());
        }
    }
    return failed > 0;
}
