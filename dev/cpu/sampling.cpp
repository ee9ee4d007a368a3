/* dev/cpu/sampling.cpp -- one more token for each of B texts, in steps.          make study && build/study_sampling

   recompute     the whole text through the model, for the last row of logits
   cache         the new token alone; keys and values of those before it are kept: Model::extend. All weights are used
                 once a token, so that reading them is the least it can take. (They are read where they lie, without
                 the copying that pays in larger products: gemm_rows in train_gpt.cpp.)
   bf16          --dtype bf16: products read a rounded copy of the weights, which is half as large

   Bytes are those of the weights, once, however many texts there are: 4, or 2, for every parameter but wpe. */
#include "../bench.h"

static void ladder(const Config& c, int B, int held) {
    cpu::Model model(c, B, held + 24, false), whole(c, B, held + 24, false), bf16(c, B, held + 24, false, true);
    initialize(model, 1), initialize(whole, 1), initialize(bf16, 1);
    std::vector<int> x((size_t)B * (held + 24));
    Rng rng(3);
    for (int& token : x) token = (int)rng.below(c.V);
    const int T = held + 24;
    std::vector<float> logits((size_t)B * c.V);
    auto tokens = [&](int from, int n) {                     // of every text
        std::vector<int> v;
        for (int b = 0; b < B; b++) v.insert(v.end(), &x[(size_t)b * T + from], &x[(size_t)b * T + from] + n);
        return v;
    };
    int at = held;
    auto extend = [&](cpu::Model& m) { m.extend(tokens(at, 1).data(), B, at, 1), m.logits(0, 1, B, logits.data()), at++; };
    auto recompute = [&](int n) { whole.extend(tokens(0, n).data(), B, 0, n), whole.logits(n - 1, n, B, logits.data()); };
    recompute(held + 1);
    const std::vector<double> want(logits.begin(), logits.end());
    for (cpu::Model* m : {&model, &bf16}) m->extend(tokens(0, held).data(), B, 0, held);
    const double read = model.layout.parameters - (size_t)c.T * c.C;
    const std::string shape = format("L=%d C=%d V=%d, %d texts of %d tokens", c.L, c.C, c.V, B, held);
    auto written = [&](double limit) {
        Result r = result(logits.data(), want, limit);
        r.reset = [&, poison = r.reset] { poison(), at = held; };
        return r;
    };
    climb("cpu sampling", shape, {2 * B * read, 4 * read, FP32, READ}, {written(1e-5)},
          {{"recompute", [&] { recompute(held + 1); }}, {"cache", [&] { extend(model); }}});
    // the limit: 4 L + 1 products, each off by 2^-8 at most, with random signs
    climb("cpu sampling in bf16", shape, {2 * B * read, 2 * read, BFLOAT16, READ}, {written(std::sqrt(4 * c.L + 1) * 0x1p-8)},
          {{"bf16", [&] { extend(bf16); }}});
}

static void study() {
    Config small, d12;
    small.L = 2, small.NH = 3, small.C = 24, small.V = 101, small.T = 64;
    ladder(small, 1, 9), ladder(small, 11, 30);
    if (timed) ladder(d12, 1, 64), ladder(d12, 8, 64);
}
int main(int argc, char** argv) { return study_main(argc, argv, study); }
