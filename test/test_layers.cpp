/* test/test_layers.cpp -- built with REAL=double: every layer's backward against central differences, at odd sizes, to
   give some bugs a chance; then the product against plain loops, the scalar functions, and what a model promises: that
   accumulation equals one batch, that sampling with a cache equals a forward pass, that threads do not change a bit. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#include "check.h"

static Rng rng(7);
static std::vector<real> random_values(size_t n, double scale = 1) {
    std::vector<real> v(n);
    for (real& x : v) x = scale * rng.normal();
    return v;
}

static double dot(const std::vector<real>& a, const std::vector<real>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

static Config sizes(int L, int NH, int C, int V, int T) {
    Config c;
    std::tie(c.L, c.NH, c.C, c.V, c.T) = std::tuple(L, NH, C, V, T);
    return c;
}

// The largest difference between the gradient and (f(x + h) - f(x - h)) / 2h, relative to the largest gradient; of some
// numbers each, and along one direction in which all of them move, where the gradient's is its norm at random.
// The truncation error is O(h^2), the round-off 1e-16 / h: 1e-5 balances them at about 1e-10. Along the direction the
// former grows with its length, to 2.5e-7 in a model with many hidden units: half the step has a quarter of it, so both
// cancel it.
template <typename F> static void differentiate(const char* name, real* x, size_t n, const real* gradient, F f) {
    const double h = 1e-5;
    double worst = 0, largest = 1e-3;
    for (size_t i = 0; i < n; i++) {
        largest = std::max(largest, std::abs((double)gradient[i]));
        if (!std::isfinite(gradient[i])) worst = NAN;              // also where no difference is taken
    }
    for (size_t k = 0; k < std::min<size_t>(n, 30); k++) {
        size_t i = n <= 30 ? k : rng.below(n);
        const real saved = x[i];
        x[i] = saved + h;
        double up = f();
        x[i] = saved - h;
        double down = f();
        x[i] = saved;
        double error = std::abs((up - down) / (2 * h) - gradient[i]) / largest;
        keep_worst(worst, error);
    }
    const std::vector<real> saved(x, x + n), direction = random_values(n);
    double norm = 1e-3, slope = 0;
    for (size_t i = 0; i < n; i++) {
        norm = std::hypot(norm, gradient[i]);
        slope += gradient[i] * direction[i];
    }
    auto along = [&](double h) {
        double difference = 0;
        for (double side : {h, -h}) {
            for (size_t i = 0; i < n; i++) x[i] = saved[i] + side * direction[i];
            difference += f() / (2 * side);
        }
        return difference;
    };
    const double difference = (4 * along(h / 2) - along(h)) / 3;
    std::copy(saved.begin(), saved.end(), x);
    keep_worst(worst, std::abs(difference - slope) / norm);
    check(worst <= 1e-7, "gradient/%s: relative error %.1e, limit 1e-07", name, worst);
}

static void attention(int T) {
    const int B = 2, C = 12, NH = 3, N = B * T;
    auto qkv = random_values(N * 3 * C), out = random_values(N * C), dout = random_values(N * C);
    std::vector<real> lse(N * NH), dqkv(qkv.size());
    qkv.resize(qkv.size() + 3 * C * cpu::KEYS, NAN);           // for whoever reads on
    auto f = [&] {
        cpu::attention_forward(out.data(), lse.data(), qkv.data(), B, 0, T, T, C, NH);
        return dot(out, dout);
    };
    f();
    double worst = 0;
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        const int HS = C / NH, row = 3 * C;
        const real *q = &qkv[(size_t)(b * T + i) * row + h * HS], *k = &qkv[(size_t)b * T * row + C + h * HS];
        std::vector<double> p(i + 1), sum(HS);
        for (int j = 0; j <= i; j++)
            p[j] = std::exp(std::inner_product(q, q + HS, k + (size_t)j * row, 0.0) / std::sqrt(HS));
        const double total = std::accumulate(p.begin(), p.end(), 0.0);
        for (int j = 0; j <= i; j++) for (int c = 0; c < HS; c++)
            sum[c] += p[j] / total * k[(size_t)j * row + C + c];
        const real* const got = &out[(size_t)(b * T + i) * C + h * HS];
        for (int c = 0; c < HS; c++) keep_worst(worst, std::abs(sum[c] - got[c]));
        keep_worst(worst, std::abs(std::log(total) - lse[(size_t)(b * NH + h) * T + i]));
    }
    check(worst <= 1e-12, "attention T=%d against plain loops: error %.1e", T, worst);
    cpu::attention_backward(dqkv.data(), dout.data(), qkv.data(), out.data(), lse.data(), B, T, C, NH);
    differentiate(format("attention T=%d", T).c_str(), qkv.data(), dqkv.size(), dqkv.data(), f);
}

static void layers() {
    const int B = 2, T = 7, C = 12, V = 13, N = B * T, OC = 17;
    {
        auto x = random_values(N * C), w = random_values(C * OC), b = random_values(OC), plus = random_values(N * OC);
        auto out = plus, dout = random_values(N * OC);
        std::vector<real> dx(N * C), dw(C * OC), db(OC);
        const cpu::Matrix W{w.data(), OC, 1};
        auto f = [&] {
            cpu::linear_forward(out.data(), x.data(), W, b.data(), plus.data(), N, C, OC);
            return dot(out, dout);
        };
        f();
        cpu::linear_backward(dx.data(), dw.data(), dout.data(), x.data(), W, N, C, OC);
        cpu::bias_backward(db.data(), dout.data(), N, OC);
        differentiate("linear dx", x.data(), x.size(), dx.data(), f);
        differentiate("linear dw", w.data(), w.size(), dw.data(), f);
        differentiate("linear db", b.data(), b.size(), db.data(), f);
    }
    {
        auto x = random_values(N * C), w = random_values(C), b = random_values(C), out(x), dout = random_values(N * C);
        std::vector<real> mean(N), rstd(N), dx(N * C), dw(C), db(C);
        auto f = [&] {
            cpu::layernorm_forward(out.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), N, C, 1e-5);
            return dot(out, dout);
        };
        f();
        cpu::layernorm_backward(dx.data(), dw.data(), db.data(), dout.data(), x.data(), w.data(), mean.data(),
                                rstd.data(), N, C);
        differentiate("layernorm dx", x.data(), x.size(), dx.data(), f);
        differentiate("layernorm dw", w.data(), w.size(), dw.data(), f);
        differentiate("layernorm db", b.data(), b.size(), db.data(), f);
    }
    for (int length : {1, 7, 131, 600}) attention(length);   // 600: ten blocks of queries, two of keys, the last short
    {
        auto x = random_values(99, 2), dout = random_values(99), out(x);
        std::vector<real> dx(99);
        auto f = [&] {
            cpu::gelu_forward(out.data(), x.data(), 99);
            return dot(out, dout);
        };
        cpu::gelu_backward(dx.data(), dout.data(), x.data(), 99);
        differentiate("gelu", x.data(), 99, dx.data(), f);
        double worst = 0;
        for (double z = -8; z <= 8; z += 0.01) {
            const double want = 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
            keep_worst(worst, std::abs(gelu(z) - want));
        }
        check(worst <= 1e-14, "scalar/gelu against its tanh form: error %.1e", worst);
    }
    {
        auto wte = random_values(V * C), wpe = random_values(T * C), out = random_values(N * C);
        auto dout = random_values(N * C);
        std::vector<real> dwte(V * C), dwpe(T * C);
        std::vector<int> x(N);
        for (int& t : x) t = rng.below(V);
        auto f = [&] {
            cpu::embedding_forward(out.data(), x.data(), wte.data(), wpe.data(), B, 0, T, C);
            return dot(out, dout);
        };
        cpu::embedding_backward(dwte.data(), dwpe.data(), dout.data(), x.data(), B, T, C);
        differentiate("embedding wte", wte.data(), wte.size(), dwte.data(), f);
        differentiate("embedding wpe", wpe.data(), wpe.size(), dwpe.data(), f);
    }
    {
        auto logits = random_values(N * V);
        std::vector<double> weight(N);
        std::vector<int> y(N), best(N);
        std::vector<real> logprob(N), dlogits;
        for (int n = 0; n < N; n++) {
            y[n] = n % 5 == 3 ? -1 : (int)rng.below(V);
            weight[n] = rng.normal();
        }
        auto loss = [&](bool gradients) {
            dlogits = logits;
            const TokenTerms<double> terms{weight.data()};
            cpu::cross_entropy(dlogits.data(), logprob.data(), best.data(), y.data(), terms, N, V, gradients);
            return -std::inner_product(weight.begin(), weight.end(), logprob.begin(), 0.0);
        };
        loss(true);
        const std::vector<real> gradient = dlogits;
        differentiate("cross_entropy", logits.data(), logits.size(), gradient.data(), [&] { return loss(false); });
        double want = 0;
        int right = 0;
        for (int n = 0; n < N; n++) {
            if (y[n] < 0) {
                right += best[n] == -1;
                continue;
            }
            const real* z = &logits[n * V];
            double sum = 0;
            for (int v = 0; v < V; v++) sum += std::exp(z[v]);
            want -= weight[n] * (z[y[n]] - std::log(sum));
            right += best[n] == std::max_element(z, z + V) - z;
        }
        const double error = std::abs(loss(false) - want);
        check(error <= 1e-12 && right == N,
              "cross_entropy: loss against plain loops: error %.1e; the best of %d of %d rows", error, right, N);
    }
}

// The whole model, every tensor.
static void whole_model(bool bias, bool tied, int L, int NH, int C, int T, int rank = 0) {
    Config c = sizes(L, NH, C, 11, T + 2);
    c.bias = bias;
    c.tied = tied;
    c.rank = rank;
    c.alpha = 3;
    c.targets = {"qkv", "proj", "fcproj"};
    const int B = 2, N = B * T;
    cpu::Model model(c, B, T, true);
    initialize(model, 3);
    for (size_t i = 0; i < model.layout.slots.size; i++) model.weights.data()[i] += 0.3 * rng.normal();
    std::vector<int> x(N), y(N);
    std::vector<float> w(N);
    for (int n = 0; n < N; n++) {
        x[n] = rng.below(c.V);
        y[n] = n % 4 == 1 ? -1 : (int)rng.below(c.V);
        w[n] = rng.normal();
    }
    const Objective weighted{w.data()};
    auto f = [&] {
        model.forward(x.data(), y.data(), weighted, 3, B, T, false);
        return model.result().loss;
    };
    model.forward(x.data(), y.data(), weighted, 3, B, T, true);
    model.result();
    model.backward();
    const size_t frozen = model.layout.frozen;
    for (const Tensor& t : model.layout.tensors) {
        if (!t.present || t.offset < frozen) continue;
        const std::string name = format("model bias %d tied %d T %d %s", bias, tied, T, t.name.c_str());
        differentiate(name.c_str(), model.weights.data() + t.offset, t.count(),
                      model.gradients.data() + t.offset - frozen, f);
    }
    const std::vector<real> start(model.weights.data(), model.weights.data() + model.weights.size);
    model.update({1e-2, 0.9, 0.95, 1e-8, 0.1}, 1, 1);
    const real* g = model.gradients.data();
    check(std::all_of(g, g + model.gradients.size, [](real x) { return x == 0; }),
          "model bias %d tied %d: update() leaves no gradient", bias, tied);
    const std::vector<real> before(model.weights.data(), model.weights.data() + model.weights.size);
    check(std::equal(start.begin(), start.begin() + frozen, before.begin()) && before != start,
          "model of rank %d: what is frozen stays", rank);
    model.gradients.data()[0] = NAN;
    model.update({1e-2, 0.9, 0.95, 1e-8, 0.1}, 1, 2);
    model.gradients.zero();
    model.forward(x.data(), y.data(), weighted, NAN, B, T, false);             // a loss that is none
    model.update({1e-2, 0.9, 0.95, 1e-8, 0.1}, 1, 2);
    model.result();
    check(std::equal(before.begin(), before.end(), model.weights.data()),
          "model of rank %d: a NaN among gradients or as loss changes no weight", rank);
    bool zeros = true;
    for (size_t i = 0; i < model.layout.tensors.size(); i++) {
        const Tensor& t = model.layout.tensors[i];
        if (t.present && t.offset >= frozen) continue;
        std::vector<float> values(t.count(), 1);
        const Which which = t.present ? MOMENT1 : WEIGHT;
        model.set(which, i, values.data());
        model.get(which, i, values.data());
        zeros = zeros && std::all_of(values.begin(), values.end(), [](float x) { return x == 0; });
    }
    check(zeros && std::equal(before.begin(), before.end(), model.weights.data()),
          "model bias %d tied %d: absent tensors are zeros that nobody changes", bias, tied);
}

// What tokens and pairs count for: each derivative against differences, on both sides of every corner.
static void token_losses() {
    double worst = 0;
    const double h = 1e-6, clip = 0.2, kl = 0.3;
    const std::vector<double> moves = {-0.7, -0.23, -0.2231, -0.1, 0.1, 0.182, 0.1825, 0.7};
    for (double w : {-1.5, 0.7}) for (double moved : moves) for (double ref : {-4.0, -1.9}) {
        const double lp = -2, old = lp - moved;              // log 0.8 = -0.2231.., log 1.2 = 0.1823..
        auto ppo = [&](double x) { return ppo_loss<double>(x, w, old, ref, clip, kl); };
        auto f = [&](double x) { return ppo(x).loss; };
        const double ratio = std::exp(moved), d = ref - lp;
        const double least = std::min(ratio * w, std::clamp(ratio, 1 - clip, 1 + clip) * w);
        keep_worst(worst, std::abs(ppo(lp).weight + (f(lp + h) - f(lp - h)) / (2 * h)));
        keep_worst(worst, std::abs(f(lp) + least - kl * (std::exp(d) - d - 1)));
        auto g = [&](double x) { return likelihood_loss<double>(x, w).loss; };
        keep_worst(worst, std::abs(likelihood_loss<double>(lp, w).weight + (g(lp + h) - g(lp - h)) / (2 * h)));
    }
    for (double margin : {-40.0, -1.0, 0.0, 0.5, 3.0, 40.0}) {
        const double slope = (pair_loss(margin + h).first - pair_loss(margin - h).first) / (2 * h);
        keep_worst(worst, std::abs(pair_loss(margin).second - slope));
        keep_worst(worst, std::abs(pair_loss(margin).first + std::log(1 / (1 + std::exp(-margin)))));
    }
    check(worst <= 1e-8, "scalar/token and pair losses: derivatives and values differ by %.1e", worst);
    const float own = -3, ref = -2, weight = 0.5, one = 1;
    const TokenTerms<float> first{&weight, &one, nullptr, &ref, 0.2f}, later{&weight, &one, &own, &ref, 0.2f};
    const TokenLoss<double> one_now = first.loss<double>(0, own), one_later = later.loss<double>(0, own);
    check(one_now.loss == one_later.loss && one_now.weight == one_later.weight,
          "scalar/without an old log-probability it is the one of now");
}

// A whole model that is asked for one logit of each row, and one that learns by PPO.
static void other_objectives() {
    Config c = sizes(2, 2, 8, 11, 24);
    c.tied = false;
    const int B = 3, T = 23, N = B * T, token = 4, most = std::exchange(cpu::most_logits, 0);     // two chunks of rows
    cpu::Model model(c, B, T, true);
    initialize(model, 3);
    for (size_t i = 0; i < model.layout.slots.size; i++) model.weights.data()[i] += 0.3 * rng.normal();
    std::vector<int> x(N), y(N), at = {6, 0, 3};
    std::vector<float> w(N), old(N), ref(N), dread = {0.5, -2, 1};
    for (int n = 0; n < N; n++) {
        x[n] = rng.below(c.V);
        y[n] = n % 4 == 1 ? -1 : (int)rng.below(c.V);
        w[n] = rng.normal();
    }
    model.forward(x.data(), y.data(), {}, 1, B, T, false);
    model.result();
    for (int n = 0; n < N; n++) {
        ref[n] = model.logprob[n] + rng.normal();
        old[n] = model.logprob[n] + 0.5 * rng.below(3) - 0.5;
    }
    const Objective ppo{w.data(), old.data(), ref.data(), 0.2, 0.1};
    auto loss = [&] {
        model.forward(x.data(), y.data(), ppo, 3, B, T, false);
        return model.result().loss;
    };
    auto readouts = [&] {
        double sum = 0;
        for (int b = 0; b < B; b++) {                        // in double, from the logits of all
            std::vector<real> z(c.V);
            model.extend(x.data(), B, 0, T);
            const real* lnf = model.activations(0).lnf + (b * T + at[b]) * c.C;
            for (int k = 0; k < c.C; k++) sum += dread[b] * lnf[k] * model.weights_of(0).head_w[token * c.C + k];
        }
        return sum;
    };
    std::vector<float> read(B);
    for (bool pairs : {false, true}) {
        if (pairs) {
            model.readout(x.data(), at.data(), token, B, T, read.data());
            model.readout_backward(dread.data());
        } else {
            model.forward(x.data(), y.data(), ppo, 3, B, T, true);
            model.result();
        }
        model.backward();
        for (const Tensor& t : model.layout.tensors) if (t.present) {
            const std::string name = format("model, %s, %s", pairs ? "readouts" : "PPO", t.name.c_str());
            real *const weights = model.weights.data() + t.offset, *const gradients = model.gradients.data() + t.offset;
            if (pairs) differentiate(name.c_str(), weights, t.count(), gradients, readouts);
            else differentiate(name.c_str(), weights, t.count(), gradients, loss);
        }
        std::fill_n(model.gradients.data(), model.gradients.size, real(0));
    }
    double sum = 0;
    for (int b = 0; b < B; b++) sum += dread[b] * read[b];
    cpu::most_logits = most;
    const double apart = std::abs(sum - readouts());
    check(apart <= 1e-5, "model, readouts: their values differ by %.1e", apart);
}

// Logits of any rows, in chunks of 50, are those of each row alone.
static void logits_of_many_rows() {
    const int B = 5, T = 40, N = B * T, most = std::exchange(cpu::most_logits, 0);
    const Config c = sizes(1, 1, 8, 11, T);
    cpu::Model model(c, B, T, false);
    initialize(model, 3);
    std::vector<int> x(N);
    for (int& token : x) token = rng.below(c.V);
    model.extend(x.data(), B, 0, T);
    for (auto [first, step] : {std::pair{0, 1}, {1, 3}}) {
        const int count = (N - 1 - first) / step + 1;
        std::vector<float> all((size_t)count * c.V), alone(all);
        model.logits(first, step, count, all.data());
        for (int i = 0; i < count; i++) model.logits(first + i * step, 1, 1, &alone[(size_t)i * c.V]);
        check(all == alone && model.chunk() == 50, "model, logits of %d rows, %d apart, in chunks of %d", count, step,
              model.chunk());
    }
    cpu::most_logits = most;
}

// A conversation goes on from the cache: its texts are those that a model computes anew, and only new tokens are
// computed.
struct Counting : cpu::Model {
    using cpu::Model::Model;
    int computed = 0;
    void extend(const int* x, int B, int t0, int T) {
        computed += B * T;
        cpu::Model::extend(x, B, t0, T);
    }
    void draw(const int* x, int B, int t0, int T, const Sampling& s, const std::vector<int>& hidden, Rng* random,
              int* token, bool ahead) {
        computed += B * T;
        cpu::Model::draw(x, B, t0, T, s, hidden, random, token, ahead);
    }
};
static void texts_from_the_cache() {
    const Config c = sizes(2, 2, 16, 13, 40);
    Counting model(c, 1, c.T, false), anew(c, 1, c.T, false);
    initialize(model, 5);
    initialize(anew, 5);
    for (Counting* m : {&model, &anew}) for (size_t i = 0; i < m->layout.slots.size; i++)
        m->weights.data()[i] += 0.5 * Rng(i, 1).normal();
    for (bool adjusted : {false, true}) {
        std::vector<int> held, said;
        bool same = true, few = true;
        const std::vector<std::vector<int>> turns = {{5, 1, 2}, {5}, {}, {5, 3, 3, 4}, {5, 1, 2, 3, 4, 6, 7, 8}, {5},
                                                     {6, 1}};
        for (size_t turn = 0; turn < turns.size(); turn++) {
            const int forget = turn == 5 ? said.size() : turn == 6 ? 2 : 0;      // all of it; the last two tokens
            said.resize(said.size() - forget);
            said.insert(said.end(), turns[turn].begin(), turns[turn].end());
            const int before = model.computed, known = turn == 5 ? 0 : turn == 6 ? said.size() - 2 : held.size();
            std::vector<int> texts[2];
            const Adjust none, flat = [](int, float* z) { z[3] = z[4]; };
            auto into = [&](int k) {
                return [&text = texts[k]](int, int token) {
                    text.push_back(token);
                    return text.size() < 4;
                };
            };
            const Adjust& hook = adjusted ? flat : none;
            generate(model, Sampling(Options()), turn, {{said, 9}}, -1, nullptr, into(0), hook, &held);
            generate(anew, Sampling(Options()), turn, {{said, 9}}, -1, nullptr, into(1), hook);
            same = same && texts[0] == texts[1] && texts[0].size() == 4;
            const int all = said.size(), most = std::max(all - known, std::min(all, 2)) + 3;
            few = few && model.computed - before <= most;
            said.insert(said.end(), texts[0].begin(), texts[0].end());
        }
        const char* how = adjusted ? ", logits adjusted" : "";
        check(same, "drawing: a conversation from the cache is the one computed anew%s", how);
        check(few, "drawing: only its new tokens are computed%s", how);
    }
    // a hook that changes nothing changes no text, and what it makes unlikely is not drawn
    std::vector<int> texts[3], rows;
    const std::vector<Prompt> prompts = {{{5, 1, 2}, 60, 0}};
    for (int k = 0; k < 3; k++) {
        auto into = [&](int, int token) {
            texts[k].push_back(token);
            return true;
        };
        const Adjust hook = [&](int i, float* z) {
            rows.push_back(i);
            if (k == 2) z[texts[0][0]] = NEVER;
        };
        generate(anew, Sampling(Options()), 3, prompts, -1, nullptr, into, k ? hook : Adjust());
    }
    check(texts[0] == texts[1] && rows == std::vector<int>(120, 0),
          "drawing: logits that stay as they are draw the same text");
    check(std::count(texts[2].begin(), texts[2].end(), texts[0][0]) == 0 && texts[2].size() == 60,
          "drawing: a token that is masked is not drawn");
}

// Prompts of several lengths, each answered alone, or side by side; one text is longer than the context.
static void texts_side_by_side() {
    const Config c = sizes(2, 2, 16, 13, 12);
    const std::vector<Prompt> prompts = {{{5, 1, 2, 3, 4, 5}, 4, 0}, {{5}, 6, 1}, {{5, 7, 7}, 3, 2},
                                         {{5, 1, 2, 3}, 30, 3}, {{5, 9, 9}, 5, 4}};
    std::vector<std::vector<int>> alone;
    for (int B : {1, 2, 5}) {
        cpu::Model model(c, B, c.T, false);
        initialize(model, 5);
        for (size_t i = 0; i < model.layout.slots.size; i++) model.weights.data()[i] += 0.5 * Rng(i, 1).normal();
        std::vector<std::vector<int>> texts(prompts.size());
        generate(model, Sampling(Options()), 7, prompts, -1, nullptr, [&](int i, int token) {
            texts[i].push_back(token);
            return true;
        });
        if (B == 1) alone = texts;
        bool whole = texts == alone;
        for (size_t i = 0; i < texts.size(); i++) whole = whole && texts[i].size() == (size_t)prompts[i].most;
        check(whole, "drawing: %d texts side by side are those drawn alone", B);
    }
    const std::vector<int> prompt = {3, 4};
    Answer cut{&prompt, {6, 7}}, ended{&prompt, {6, 7}, true};
    check(cut.row(0).x == std::vector<int>({0, 3, 4, 6, 7}) && cut.row(0).y == std::vector<int>({-1, -1, 6, 7, -1}) &&
              ended.row(0).y.back() == 0,
          "drawing: an answer that was cut off has no end of text to learn");
}

static void scalars() {
    double worst = 0;
    for (float x = -59.9f; x < 59.9f; x += 0.00173f) {
        double error = std::abs(fast_exp(x) / std::exp((double)x) - 1);
        keep_worst(worst, error);
    }
    check(worst <= 2.4e-7, "scalar/fast_exp: relative error %.2e, limit 2.4e-07 (2 ulp)", worst);
    check(std::isnan(fast_exp(NAN)) && fast_exp(-61.0f) == 0 && fast_exp(-1e30f) == 0 && fast_exp(1e30f) > 1e26f,
          "scalar/fast_exp at nan and the ends");
    struct { const char* kind; int64_t it; double lr; } rates[] = {
        {"cosine", 0, 0.25}, {"cosine", 3, 1}, {"cosine", 103, 0.1}, {"cosine", 53, 0.55}, {"cosine", 200, 0.1},
        {"constant", 90, 1}, {"linear", 3, 1}, {"linear", 53, 0.55}, {"linear", 103, 0.1},
        {"wsd", 50, 1}, {"wsd", 82, 1}, {"wsd", 103, 0}};
    for (auto& r : rates) {
        double lr = lr_at({r.kind, 1, 0.1, 3, 103}, r.it);
        check(std::abs(lr - r.lr) <= 1e-9, "scalar/lr_at %s %lld: %.4f, expected %.4f", r.kind, (long long)r.it, lr,
              r.lr);
    }
    const auto numbers = random_values(100003);                     // four of the blocks that are summed up apart
    const double squares = dot(numbers, numbers);
    const double ratio = cpu::sum_of_squares(numbers.data(), numbers.size()) / squares;
    check(std::abs(ratio - 1) <= 1e-12, "scalar/sum_of_squares");
    real w = 1, m = 0.1, v = 0.2;
    adamw_step(w, m, v, real(0.5), AdamWStep({0.01, 0.9, 0.99, 1e-8, 0.1}, 2), true);
    const double want = 0.999 - 0.01 * (0.14 / 0.19) / (std::sqrt(0.2005 / 0.0199) + 1e-8);
    check(std::abs(m - 0.14) <= 1e-12 && std::abs(v - 0.2005) <= 1e-12 && std::abs(w - want) <= 1e-12,
          "scalar/adamw_step");
}

static std::vector<real> train_a_little(int threads, int micro) {
    omp_set_num_threads(threads);
    const Config c = sizes(2, 2, 24, 67, 40);
    const int rows = 6, B = rows / micro, T = c.T;
    cpu::Model model(c, B, T, true);
    initialize(model, 1);
    Rng data(5);
    std::vector<int> x(rows * T), y(rows * T);
    for (int step = 1; step <= 20; step++) {
        for (int n = 0; n < rows * T; n++) {
            x[n] = data.below(c.V);
            y[n] = data.below(9) ? x[n] * 3 % c.V : -1;
        }
        double targets = std::count_if(y.begin(), y.end(), [](int t) { return t >= 0; });
        for (int m = 0; m < micro; m++) {
            model.forward(&x[m * B * T], &y[m * B * T], {}, targets, B, T, true);
            model.backward();
        }
        model.update({1e-2, 0.9, 0.95, 1e-8, 0.1}, 1, step);
    }
    return std::vector<real>(model.weights.data(), model.weights.data() + model.weights.size);
}

static void promises() {
    const int all = omp_get_max_threads();
    const auto one = train_a_little(1, 1), two = train_a_little(2, 1), five = train_a_little(5, 1);
    const auto parts = train_a_little(2, 3);
    check(one == two && one == five, "threads: 1, 2 and 5 give the same bits after 20 steps");
    double worst = 0;
    for (size_t i = 0; i < one.size(); i++) keep_worst(worst, std::abs(one[i] - parts[i]));
    check(worst <= 1e-9, "accumulation over 3 micro-batches equals one batch: difference %.1e", worst);
    omp_set_num_threads(all);

    const Config c = sizes(2, 2, 16, 19, 150);
    const int B = 3, T = c.T;
    cpu::Model batch(c, B, T, false), cached(c, B, T, false);
    initialize(batch, 2);
    initialize(cached, 2);
    std::vector<int> x(B * T);
    for (int& t : x) t = rng.below(c.V);
    batch.extend(x.data(), B, 0, T);
    std::vector<float> want(c.V), got(c.V);
    bool same = true;
    for (int t0 = 0, n = 70; t0 < T; t0 += n, n = 1) {              // a prompt of 70, then token by token
        std::vector<int> piece;
        for (int b = 0; b < B; b++) piece.insert(piece.end(), &x[b * T + t0], &x[b * T + t0] + n);
        cached.extend(piece.data(), B, t0, n);
        for (int b = 0; b < B; b++) {
            batch.logits(b * T + t0 + n - 1, 1, 1, want.data());
            cached.logits(b * n + n - 1, 1, 1, got.data());
            same = same && want == got;
        }
    }
    check(same, "cache: 70 tokens at once, then one by one, give the logits of one pass, bit for bit");
}

// The token to be drawn with this random number: a plain sort, and sums that hold every bit.
static int drawn(const std::vector<float>& z, const Options& o, uint64_t random) {
    using exact = unsigned __int128;
    const float maximum = *std::max_element(z.begin(), z.end());
    std::vector<std::pair<int, uint64_t>> tokens;                   // with their weights
    for (int v = 0; v < (int)z.size(); v++) tokens.push_back({v, weight_of(maximum - z[v], Sampling(o).scale)});
    auto sum = [&](size_t n) {
        auto add = [](exact s, auto& t) { return s + t.second; };
        return std::accumulate(tokens.begin(), tokens.begin() + n, exact(0), add);
    };
    std::stable_sort(tokens.begin(), tokens.end(), [&](auto& a, auto& b) { return z[a.first] > z[b.first]; });
    if (o.temperature == 0) return tokens[0].first;
    if (o.top_k) tokens.resize(std::min<size_t>(o.top_k, tokens.size()));
    if (o.top_p < 1) {
        const exact least = sum(tokens.size()) * exact(std::ldexp(o.top_p, 64)) >> 64;
        size_t n = 1;
        while (sum(n) < least) n++;
        tokens.resize(n);
    }
    while (o.min_p > 0 && maximum - z[tokens.back().first] > -std::log(o.min_p) * o.temperature) tokens.pop_back();
    std::sort(tokens.begin(), tokens.end());
    const exact place = sum(tokens.size()) * random >> 64;
    size_t n = 1;
    while (sum(n) <= place) n++;
    return tokens[n - 1].first;
}
static void drawing() {
    double worst = 0;
    for (double temperature : {0.1, 0.7, 1.0, 3.0})
        for (float below = 0; below < 30 * temperature; below += 0.00137f) {
            Options o;
            o.temperature = temperature;
            const double n = below / temperature / std::log(2.0), want = 0x1p40 * std::exp2(-n);
            keep_worst(worst, std::abs(weight_of(below, Sampling(o).scale) - want) / (0x1p-23 * (1 + n) * want + 1));
        }
    check(worst <= 1, "drawing: weights against 2^40 e^-x: %.2f of the limit", worst);
    Options cold, hot;
    cold.temperature = 1e-300;
    hot.temperature = 1000;
    check(weight_of(0, Sampling(cold).scale) == weight_of(0, 1) && weight_of(1e-20f, Sampling(cold).scale) == 0 &&
              weight_of(INFINITY, Sampling(hot).scale) == 0, "drawing: weights at the ends");
    int wrong = 0, draws = 0;
    for (int V : {1, 2, 3, 50, 201})
        for (double temperature : {0.0, 1e-9, 0.3, 1.0, 1000.0}) for (int top_k : {0, 1, 2, 40, V})
            for (double top_p : {1e-6, 0.3, 0.9, 0.999999, 1.0}) for (double min_p : {0.0, 0.3, 1.0})
            for (int equal = 0; equal < 3; equal++) {        // none; many, 0 and -0 among them; all
                Options o;
                o.temperature = temperature;
                o.top_k = top_k;
                o.top_p = top_p;
                o.min_p = min_p;
                std::vector<float> z(V);
                auto rounded = [] { return std::round(rng.normal()) * (rng.below(2) ? 1.0f : -1.0f); };
                for (float& f : z) f = equal == 2 ? 3 : equal ? rounded() : 3 * rng.normal();
                Rng one(V, ++draws), other = one;
                wrong += cpu::pick(z.data(), V, Sampling(o), one) != drawn(z, o, other.next());
            }
    check(wrong == 0, "drawing: %d of %d tokens are others than those of a plain sort and exact sums", wrong, draws);
    wrong = 0;                               // a logit that is not finite, wherever it stands, ends it
    for (double temperature : {0.0, 1.0}) for (int v : {0, 2, 4}) for (float bad : {NAN, INFINITY, -INFINITY}) {
        Options some;
        some.temperature = temperature;
        std::vector<float> z = {1, -2, 0.5f, 3, 2};
        z[v] = bad;
        try {
            cpu::pick(z.data(), z.size(), Sampling(some), rng);
            wrong++;
        } catch (const Error&) {
        }
    }
    check(wrong == 0, "drawing: %d of 18 logits that are not finite go unnoticed", wrong);
    // frequencies, in standard deviations: 5 are exceeded once in 10^6
    const std::vector<float> z = {1, -2, 0.5f, 3, 2};
    Options o;
    o.temperature = 1.5;
    o.top_k = 4;
    double all = 0;
    std::vector<double> p, count(z.size());
    for (float f : z) {
        p.push_back(f == -2 ? 0 : std::exp(f / 1.5));
        all += p.back();
    }
    const int n = 20000;
    for (int i = 0; i < n; i++) count[cpu::pick(z.data(), z.size(), Sampling(o), rng)]++;
    worst = 0;
    for (size_t v = 0; v < z.size(); v++) {
        p[v] /= all;
        keep_worst(worst, std::abs(count[v] - n * p[v]) / std::sqrt(n * p[v] * (1 - p[v]) + 1e-9));
    }
    std::vector<float> less = {1, -2, 0.5f, 3, 2};
    cpu::penalize(less.data(), {1, 3, 1, 3, 3}, 2);
    check(less == std::vector<float>({1, -4, 0.5f, 1.5f, 2}),
          "drawing: tokens of a text are made less likely, each once");
    check(worst <= 5, "drawing: %d tokens are as frequent as they should be: off by %.1f standard deviations", n,
          worst);
}

int main() {
    scalars();
    token_losses();
    layers();
    for (bool bias : {true, false}) for (bool tied : {true, false}) whole_model(bias, tied, 2, 3, 15, 7);
    whole_model(true, true, 2, 3, 15, 7, 2);
    whole_model(false, false, 1, 2, 6, 7, 5);
    const int most = std::exchange(cpu::most_logits, 0);             // the head in two chunks of 35 rows
    whole_model(true, true, 1, 2, 6, 35);
    whole_model(false, false, 1, 2, 6, 35);
    cpu::most_logits = most;
    other_objectives();
    logits_of_many_rows();
    texts_side_by_side();
    texts_from_the_cache();
    drawing();
    promises();
    return failed > 0;
}
