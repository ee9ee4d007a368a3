/* dev/cpu/sampling.cpp -- one more token for each of B texts, in steps.          make study && build/study_sampling

   recompute     the whole text through the model, for the last row of logits
   cache         the new token alone; keys and values of those before it are kept: Model::extend. All weights are used
                 once a token, so that reading them is the least it can take. (They are read where they lie, without
                 the copying that pays in larger products: gemm_rows in train_gpt.cpp.)
   bf16          --dtype bf16: products read a rounded copy of the weights, which is half as large
   packed        --base-dtype: matrices are kept as bf16, int8 or nf4, and unpacked as a product reads them

   pattern       --pattern: what a token costs beside the model, with 50,257 tokens made of letters, where each leads to
                 a state that is new, and where all are known

   Bytes are those of the weights as they are kept, once, however many texts there are: of all parameters but wpe. */
#include "../bench.h"

static void copy_weights(cpu::Model& to, const cpu::Model& from) {
    for (size_t i = 0; i < from.layout.tensors.size(); i++) {
        std::vector<float> values(from.layout.tensors[i].count());
        from.get(WEIGHT, i, values.data());
        to.set(WEIGHT, i, values.data());
    }
}
static void ladder(Config c, int B, int held) {
    const int T = held + 24;
    cpu::Model model(c, B, T, false), bf16(c, B, T, false, true);
    initialize(model, 1);
    copy_weights(bf16, model);
    std::vector<int> x((size_t)B * T);
    Rng rng(3);
    for (int& token : x) token = (int)rng.below(c.V);
    std::vector<float> logits((size_t)B * c.V);
    auto tokens = [&](int from, int n) {                     // of every text
        std::vector<int> v;
        for (int b = 0; b < B; b++) v.insert(v.end(), &x[(size_t)b * T + from], &x[(size_t)b * T + from] + n);
        return v;
    };
    int at = held;
    auto extend = [&](cpu::Model& m) {
        m.extend(tokens(at, 1).data(), B, at, 1);
        m.logits(0, 1, B, logits.data());
        at++;
    };
    auto recompute = [&](cpu::Model& m, int n) {
        m.extend(tokens(0, n).data(), B, 0, n);
        m.logits(n - 1, n, B, logits.data());
    };
    auto ladder = [&](const std::string& kind, double bytes, Compute compute, double limit,
                      const std::vector<double>& want, const std::vector<Rung>& rungs) {
        Result r = result(logits.data(), want, limit);
        r.reset = [&, poison = r.reset] {
            poison();
            at = held;
        };
        const double products = 2.0 * B * (model.layout.parameters - (size_t)c.T * c.C);
        climb("cpu sampling" + kind, format("L=%d C=%d V=%d, %d texts of %d tokens", c.L, c.C, c.V, B, held),
              {products, bytes, compute, READ}, {r}, rungs);
    };
    auto bytes = [](const cpu::Model& m) {
        size_t sum = 0;
        for (const Tensor& t : m.layout.tensors) if (t.present && t.name.find("wpe") > t.name.size())
            sum += t.form == Form::FP32 ? t.count() * sizeof(float) : packed_bytes(t.form, t.rows, t.cols);
        return double(sum);
    };
    auto known = [&](cpu::Model& whole) {
        recompute(whole, held + 1);
        return std::vector<double>(logits.begin(), logits.end());
    };
    {
        cpu::Model whole(c, B, T, false);
        copy_weights(whole, model);
        const std::vector<double> want = known(whole);
        for (cpu::Model* m : {&model, &bf16}) m->extend(tokens(0, held).data(), B, 0, held);
        ladder("", bytes(model), FP32, 1e-5, want,
               {{"recompute", [&] { recompute(whole, held + 1); }}, {"cache", [&] { extend(model); }}});
        // the limit: 4 L + 1 products, each off by 2^-8 at most, with random signs
        const double limit = std::sqrt(4 * c.L + 1) * 0x1p-8;
        ladder(" in bf16", bytes(model) / 2, BFLOAT16, limit, want, {{"bf16", [&] { extend(bf16); }}});
    }
    for (Form form : {Form::BF16, Form::INT8, Form::NF4}) {  // beside fp32 with the numbers that these unpack to
        c.form = form;
        cpu::Model packed(c, B, T, false);
        copy_weights(packed, model);
        copy_weights(model, packed);
        const std::vector<double> want = known(model);
        packed.extend(tokens(0, held).data(), B, 0, held);
        const std::string kind = format(" of %s", FORMS[(int)form]);
        ladder(kind, bytes(packed), FP32, 1e-5, want, {{"packed", [&] { extend(packed); }}});
    }
}

static void guided() {
    const int V = 50257, end = V - 1;
    Rng rng(5);
    std::vector<std::string> tokens(V);
    for (int v = 0; v < end; v++) {
        if (v < 256) tokens[v] = std::string(1, (char)v);
        else tokens[v].append(rng.below(2), ' ');
        const int letters = v < 256 ? 0 : 1 + (int)rng.below(8);
        for (int n = 0; n < letters; n++) tokens[v] += char('a' + rng.below(26));
    }
    const std::pair<const char*, const char*> patterns[] = {{"new", "[a-z ]{20000}"}, {"known", "([a-z]+ )*[.]"},
                                                            {"new", "(\\{\"[a-z]{1,9}\": [0-9]{1,4}\\} ){1000}"}};
    for (auto [kind, regex] : patterns) {
        Guide guide(regex, tokens);
        std::vector<float> logits(V);
        std::vector<int> held = {guide.start()};
        auto token = [&] {
            std::fill_n(logits.data(), V, 0.0f);
            guide.rule_out(logits.data(), held, 0, end, -1);
            int v = (int)rng.below(V);
            while (logits[v] < 0 || v == end) v = (v + 1) % V;
            held[0] = guide.advance(held[0], v);
        };
        for (int n = 0; n < 100; n++) token();
        climb("pattern", regex, {.bytes = 4.0 * V}, {}, {{kind, token}});
    }
}

static void study() {
    Config small, d12;
    small.L = 2;
    small.NH = 3;
    small.C = 24;
    small.V = 101;
    small.T = 64;
    ladder(small, 1, 9);
    ladder(small, 11, 30);
    if (!timed) return;
    guided();
    ladder(d12, 1, 64);
    ladder(d12, 8, 64);
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
