/* dev/decoding.cu -- one token more for each of a few rows, in steps.
                                                                       make build/bench_decoding && build/bench_decoding

   What limits it is reading: all weights once, and the cache of keys and values. At GPT-2 124M and 4.3 TB/s the weights
   take 0.058 ms, and at 1024 tokens a row's cache 0.0088; 63 kernels a step must not add more than a few microseconds
   each.

   product       out = f(x) w + b, f a layernorm or nothing: w is read once, C OC numbers, of bf16, int8 or nf4
     library         a kernel for the layernorm, then cuBLASLt; before these, one that unpacks w
     unpacked        w is unpacked, then gpu::few_rows
     shipped         gpu::few_rows: the weights are asked for before the row is there, the layernorm is part of it, and
                     w is unpacked as it is read, once for four rows
   unpacking     a matrix at a time, for many rows
     shipped         gpu::unpack: a thread takes 16 bytes of what it writes
   attention     of one query over a cache: 2 C numbers a key
     plain           the new key and value are copied to the cache, then a block takes a head and holds its row of
                     scores; a thread takes a key, so that neighbours read 2 bytes each, rows apart
     shipped         gpu::attention_step: lanes side by side take a key, 16 bytes each
   pick          a token from logits: V numbers
     download        the host picks: cpu::pick
     shipped         gpu::pick

   Predicted for an H200, in microseconds, before a first run: products of one row 3 (proj) to 4.5 (fc, fcproj); the
   head, cuBLASLt's, 25; attention of one row over 1024 keys 5, of 64 rows 55 (floor 47); pick of all tokens 18. */
#include "bench.cuh"
namespace decoding_study {
using gpu::Normed;

static void product(int N, int C, int OC, Form form, bool norm, bool gelu, bool plus) {
    Array<floatX> x(numbers((size_t)N * C)), w(numbers((size_t)C * OC, 1 / std::sqrt((double)C))), b(numbers(OC));
    Array<floatX> lw(numbers(C)), lb(numbers(C)), stream(numbers((size_t)N * OC)), out(stream.n), normed(x.n);
    Array<floatX> before(stream.n), unpacked(w.n);
    Array<float> mean(N), rstd(N);
    const bool packs = form != Form::FP32;
    const size_t bytes = packs ? packed_bytes(form, C, OC) : w.bytes();
    std::vector<uint8_t> codes(packs ? (bytes + 15) / 16 * 16 : 0);
    std::vector<float> in(x.host), weights(w.host);
    if (packs) {
        pack(form, codes.data(), w.cpu(), C, OC);
        unpack(form, weights.data(), codes.data(), C, OC);
    }
    weights = rounded(weights);
    Array<uint8_t> packed(codes);
    const Place<floatX> plain = {packs ? unpacked.p : w.p, nullptr, nullptr, Form::FP32};
    const Place<floatX> place = {w.p, packed.p, (const float*)(packed.p + code_bytes(form, C, OC)), form};
    const Normed f = norm ? Normed(x, lw, lb, 1e-5f) : Normed(x);
    if (norm) cpu::layernorm_forward(in.data(), mean.cpu(), rstd.cpu(), x.cpu(), lw.cpu(), lb.cpu(), N, C, 1e-5);
    in = rounded(in);
    const cpu::Matrix W = {weights.data(), OC, 1};
    cpu::linear_forward(out.cpu(), in.data(), W, b.cpu(), plus ? stream.cpu() : nullptr, N, C, OC);
    if (gelu) cpu::gelu_forward(out.cpu(), out.cpu(), out.n);
    auto unpack_all = [&] { if (packs) gpu::unpack(unpacked, place, C, OC); };
    auto each = [&] {                        // row by row, of w unpacked
        unpack_all();
        for (int n = 0; n < N; n++) {
            const Normed row = {x + n * C, f.w, f.b, f.eps};
            gpu::few_rows(out + n * OC, row, plain, b, plus ? stream + n * OC : nullptr, gelu, 1, C, OC);
        }
    };
    std::vector<Rung> rungs = {
        {"library", [&] {
            unpack_all();
            if (norm) gpu::layernorm_forward(normed, mean, rstd, x, lw, lb, N, C, 1e-5);
            gpu::linear_forward(gelu ? before : out, norm ? normed : x, plain, b, plus ? stream.p : nullptr, N, C, OC);
            if (gelu) gpu::gelu_forward(out, before, out.n);
        }},
        {"unpacked", each},
        {"shipped", [&] {
            gpu::few_rows(out, f, packs ? place : plain, b, plus ? stream.p : nullptr, gelu, N, C, OC);
        }}};
    if (!packs) rungs.erase(rungs.begin() + 1);
    const std::string shape = format("N=%d C=%d OC=%d%s%s%s%s%s", N, C, OC, packs ? ", " : "",
                                     packs ? FORMS[(int)form] : "", norm ? ", normalized" : "", gelu ? ", gelu" : "",
                                     plus ? ", plus" : "");
    const double flops = 2.0 * N * C * OC;
    climb("step's product", shape, {.flops = flops, .bytes = (double)bytes, .compute = BFLOAT16, .memory = READ},
          {written("out", out, ONE)}, rungs);
    if (!packs) return;
    each();
    const uint64_t want = out.bits();
    out.reset();
    rungs.back().run();
    const bool same = out.bits() == want;
    if (report || !same)
        check(same, "study/step's product, %s: the bits of each row alone, of w unpacked", shape.c_str());
}

// A whole matrix, as many rows and training read it.
static void unpacking(Form form, int rows, int cols) {
    const std::vector<float> values = numbers((size_t)rows * cols);
    const size_t bytes = packed_bytes(form, rows, cols);
    std::vector<uint8_t> codes((bytes + 15) / 16 * 16);
    Array<floatX> out(values.size());
    pack(form, codes.data(), values.data(), rows, cols);
    unpack(form, out.cpu(), codes.data(), rows, cols);
    out.host = rounded(out.host);
    Array<uint8_t> packed(codes);
    const Place<floatX> place = {nullptr, packed.p, (const float*)(packed.p + code_bytes(form, rows, cols)), form};
    climb("unpacking", format("%d x %d, %s", rows, cols, FORMS[(int)form]), {.bytes = double(bytes + out.bytes())},
          {written("out", out, 0, 0)}, {{"shipped", [&] { gpu::unpack(out, place, rows, cols); }}});
}

// `keys` of each row, with the new one, in a cache for S
static void attention(int B, int keys, int S, int NH, int HS) {
    const int C = NH * HS, at = keys - 1;
    const size_t row = 3 * C * sizeof(floatX);
    std::vector<float> all = numbers((size_t)B * S * 3 * C), now;
    std::vector<float> known(all);           // of the new token nothing; q may stay as it is
    for (int b = 0; b < B; b++) {
        const size_t row_b = ((size_t)b * S + at) * 3 * C;
        now.insert(now.end(), &all[row_b], &all[row_b] + 3 * C);
        std::fill_n(&known[row_b + C], 2 * C, NAN);
    }
    Array<floatX> cache(known), fresh(now), out((size_t)B * C);
    Array<int> position(std::vector<int>(B, at));
    std::vector<float> lse(B * NH);
    cpu::attention_forward(out.cpu(), lse.data(), all.data(), B, at, 1, S, C, NH);
    cache.host = all;
    climb("step's attention", format("B=%d, %d keys of %d, %d heads of %d", B, keys, S, NH, HS),
          {.flops = 4.0 * B * keys * C, .bytes = 2.0 * B * keys * C * sizeof(floatX), .memory = READ},
          {written("out", out, 1.5 * ONE), written("cache", cache, 0, 0)},
          {{"plain", [&] {
                ok(cudaMemcpy2DAsync(cache.p + (size_t)at * 3 * C, S * row, fresh.p, row, row, B,
                                     cudaMemcpyDeviceToDevice, stream()));
                launch(gpu::attention_forward_plain, dim3(1, NH, B), gpu::threads_for(keys, 128),
                       gpu::scores_size(keys), out, nullptr, cache, at, 1, S, C, HS, 1 / std::sqrt((float)HS));
            }},
           {"shipped", [&] { gpu::attention_step(out, cache, fresh, position, B, S, C, NH); }}});
}

// Logits with many that are equal, 0 and -0 among them, or as a model's; a row in five has one that is not finite.
static void pick(int B, int V, double temperature, int top_k, double top_p, double min_p, bool equal) {
    const int stride = gpu::padded(V);
    std::vector<float> logits = numbers((size_t)B * stride, 3);
    for (size_t i = 0; equal && i < logits.size(); i++) logits[i] = std::round(logits[i] / 4) * (i % 2 ? 1.0f : -1.0f);
    for (int b = 4; b < B; b += 5) logits[(size_t)b * stride + b % V] = b % 2 ? NAN : -INFINITY;
    logits = rounded(logits);                // NaN has other bits in bf16
    Options o;
    o.temperature = temperature;
    o.top_k = top_k;
    o.top_p = top_p;
    o.min_p = min_p;
    Array<floatX> z(logits);
    Array<Rng> rng([&] {
        std::vector<Rng> v;
        for (int b = 0; b < B; b++) v.emplace_back(V, b + 1);
        return v;
    }());
    Array<Sampling> sampling(std::vector<Sampling>(1, Sampling(o)));
    Array<int> token(B), drawn(gpu::DRAWN * B), position(std::vector<int>(B, 5)), hidden(std::vector<int>{0});
    position.reset();                        // keep what they start from, as written() does
    rng.reset();
    const int slot = 6 % gpu::DRAWN * B;     // of the position after that
    auto host = [&](const float* z, int b) {
        Rng random = rng.host[b];
        for (int v = 0; v < V; v++) if (!std::isfinite(z[v])) return std::bit_cast<int>(z[v]);
        return cpu::pick(z, V, sampling.host[0], random);
    };
    std::vector<int> want;
    for (int b = 0; b < B; b++) want.push_back(host(&logits[(size_t)b * stride], b));
    const Result result = {"token", [&] {
        const std::vector<int> got = drawn.get();
        double wrong = 0;
        for (int b = 0; b < B; b++) wrong += got[slot + b] != want[b];
        return wrong;
    }, 0, [&] {
        drawn.reset();
        position.reset();
        rng.reset();
    }, [&] { return drawn.bits(); }};
    std::vector<floatX> values(z.n);
    std::vector<float> row(V);
    std::vector<int> picked(B);
    const std::string shape = format("B=%d V=%d temperature %g top_k %d top_p %g min_p %g%s", B, V, temperature, top_k,
                                     top_p, min_p, equal ? ", many equal" : "");
    climb("step's pick", shape, {.bytes = (double)B * V * sizeof(floatX), .memory = READ}, {result},
          {{"download", [&] {
                ok(cudaMemcpyAsync(values.data(), z.p, z.bytes(), cudaMemcpyDeviceToHost, stream()));
                ok(cudaStreamSynchronize(stream()));
                for (int b = 0; b < B; b++) {
                    std::copy_n(&values[(size_t)b * stride], V, row.begin());
                    picked[b] = host(row.data(), b);
                }
                ok(cudaMemcpyAsync(drawn.p + slot, picked.data(), B * sizeof(int), cudaMemcpyHostToDevice, stream()));
            }},
           {"shipped", [&] { gpu::pick({token, position, rng, drawn}, z, sampling, hidden, B, V, B); }}});
}

static const Study study([] {
    const struct { Size size; int N, C, OC; bool norm, gelu, plus; } products[] = {
        {TINY, 1, 8, 16, false, false, false}, {TINY, 1, 24, 8, true, false, true},
        {TINY, 1, 64, 200, true, true, false}, {TINY, 2, 24, 8, false, false, true},
        {TINY, 7, 40, 200, false, true, false}, {SMALL, 1, 768, 768, true, false, false},
        {SMALL, 1, 3072, 64, false, false, true}, {SMALL, 1, 64, 3072, true, true, false},
        {SMALL, 8, 768, 72, false, false, false}, {TRAINING, 1, 768, 2304, true, false, false},
        {TRAINING, 1, 768, 768, false, false, true}, {TRAINING, 1, 768, 3072, true, true, false},
        {TRAINING, 1, 3072, 768, false, false, true}, {TRAINING, 1, 1600, 6400, true, true, false},
        {TRAINING, 1, 6400, 1600, false, false, true}, {TRAINING, 4, 768, 3072, false, true, false},
        {TRAINING, 8, 768, 3072, false, true, false}, {TRAINING, 8, 6400, 1600, false, false, true}};
    const struct { Size size; int B, keys, S, NH, HS; } attentions[] = {
        {TINY, 1, 1, 1, 1, 8}, {TINY, 2, 7, 20, 3, 24}, {TINY, 1, 20, 20, 2, 64}, {SMALL, 3, 300, 333, 2, 64},
        {SMALL, 2, 130, 200, 1, 128}, {SMALL, 1, 513, 600, 2, 40}, {TRAINING, 1, 1024, 1024, 12, 64},
        {TRAINING, 8, 1024, 1024, 12, 64}, {TRAINING, 64, 1024, 1024, 12, 64}};
    const struct { Size size; int B, V; double temperature; int top_k; double top_p, min_p; bool equal; } picks[] = {
        {TINY, 16, 2, 1, 0, 1, 0, false}, {TINY, 16, 101, 0.8, 0, 1, 0, false}, {TINY, 16, 101, 0.8, 0, 1, 0.1, true},
        {TINY, 16, 101, 1, 13, 1, 0, true}, {TINY, 16, 2, 1, 1, 0.5, 0, true}, {TINY, 16, 517, 1e-9, 0, 0.3, 0, true},
        {TINY, 16, 517, 0, 0, 1, 0, true}, {TINY, 16, 517, 1, 0, 0.9, 0, true}, {TINY, 16, 517, 2, 50, 0.9, 0.3, true},
        {SMALL, 7, 4999, 1, 0, 0.95, 0.02, false}, {SMALL, 7, 4999, 0.7, 4999, 0.999999, 0, false},
        {SMALL, 7, 4999, 1000, 600, 0.5, 0, false}, {SMALL, 3, 50257, 0.8, 50, 0.95, 0, false},
        {SMALL, 1, 50257, 1, 0, 1, 0, false}, {TRAINING, 1, 50257, 0.8, 50, 0.95, 0, false},
        {TRAINING, 1, 50257, 1, 0, 0.95, 0, false}, {TRAINING, 64, 50257, 1, 0, 1, 0, false}};
    for (auto& s : products) for (Form form : {Form::FP32, Form::INT8, Form::NF4})
        if (s.size <= largest && (s.N == 1 || form != Form::FP32))
            product(s.N, s.C, s.OC, form, s.norm, s.gelu, s.plus);
    const struct { Size size; int rows, cols; } matrices[] = {
        {TINY, 1, 1}, {TINY, 5, 63}, {TINY, 3, 72}, {SMALL, 33, 201}, {SMALL, 64, 768}, {TRAINING, 768, 3072}};
    for (auto& s : matrices) for (Form form : {Form::INT8, Form::NF4})
        if (s.size <= largest) unpacking(form, s.rows, s.cols);
    for (auto& s : attentions) if (s.size <= largest) attention(s.B, s.keys, s.S, s.NH, s.HS);
    for (auto& s : picks) if (s.size <= largest) pick(s.B, s.V, s.temperature, s.top_k, s.top_p, s.min_p, s.equal);
});
}  // namespace decoding_study
