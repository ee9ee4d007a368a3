/* test/test_plan.cpp -- make build/train_gpt_emulated build/plan build/test_plan && build/test_plan
   dev/plan.cpp: its memory against what the CUDA program allocates and says, its floor against a step line's SOL,
   exchanges and steps worked out by hand, its choices, its table, and wrong command lines. */
#define NO_PLAN_MAIN
#include "../dev/plan.cpp"
#include "check.h"

namespace plan {

bool near(double a, double b, double tolerance = 1e-12) { return std::abs(a - b) <= tolerance * std::abs(b); }

// What a command says, both streams.
std::string said(const std::string& command) {
    std::string all;
    char line[4096];
    FILE* f = popen((command + " 2>&1").c_str(), "r");
    while (f && fgets(line, sizeof line, f)) all += line;
    if (f) pclose(f);
    return all;
}
// From "12.34 GB: weights" to the digits behind "activations"; as both programs print it.
std::string memory_in(const std::string& text) {
    const size_t at = text.find(" GB: weights "), last = text.find("activations ", at);
    if (at == text.npos || last == text.npos) return "no memory in: " + text;
    const size_t begin = text.find_last_not_of("0123456789.", at - 1) + 1;
    const size_t end = text.find_first_not_of("0123456789.", last + 12);
    return text.substr(begin, end - begin);
}

Plan small(Shape shape, int batch = 1) {
    const gpu::Device& d = gpu::device();
    const Gpu card = {"emulated", d.capability(), d.properties.multiProcessorCount, d.peak(), d.bandwidth(),
                      8e9, 1e9, 1e9};
    return {.c = shape.config(), .gpu = card, .batch = batch};
}

void memory_is_what_is_allocated() {
    for (auto [shape, B] : {std::pair(Shape{2, 2, 128, 512, 96}, 2), {{3, 2, 96, 1000, 64}, 5},
                            {{1, 3, 192, 65, 33}, 1}, {{5, 1, 64, 4001, 128}, 3}}) {
        Plan p = small(shape, B);
        for (Form form : {Form::FP32, Form::BF16, Form::INT8, Form::NF4}) {  // the first: all weights; then adapters
            if (form != Form::FP32) {
                p.c.rank = 8;
                p.c.targets = {"qkv", "proj", "fc", "fcproj"};
                p.c.form = form;
            }
            const Memory m = memory(p);
            const gpu::Model model(p.c, B, p.c.T, true);
            const Footprint needed = model.needed(B);
            check(m.weights + m.master == needed.weights && m.kept + m.scratch == needed.activations &&
                  m.all() == needed.all() && m.text() == needed.text(),
                  "memory, %d layers of %d channels, batch %d, rank %d, %s: %.0f bytes; allocated %.0f",
                  shape.L, shape.C, B, p.c.rank, FORMS[(int)form], m.all(), needed.all());
        }
    }
}

// A run that the card's memory is too small for says what it would take, before it begins.
void memory_is_what_a_run_says() {
    const std::string shard = "build/planned.u16";
    std::vector<uint16_t> tokens(4096);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = 37 * i % 4001;
    write_file(shard, {(const char*)tokens.data(), 2 * tokens.size()});
    const struct { const char *gpu, *shape; } RUNS[] = {
        {"A100", "d12 --batch 64"}, {"H200", "d12 --batch 64"}, {"H100", "d48 --batch 8"},
        {"B200", "d24 --batch 32 --context 512"},
        {"4090", "custom --layers 3 --heads 2 --channels 256 --context 128 --vocab 5000 --batch 100"},
        {"H100", "custom --layers 7 --heads 5 --channels 640 --context 1000 --vocab 50000 --batch 3"}};
    for (auto [name, shape] : RUNS) {
        const Gpu& g = *gpu_named(name);
        const bool sized = strstr(shape, "vocab");
        const std::string card = format("EMU_CAPABILITY=%d EMU_SMS=%d EMU_MEM_MB=40", g.capability, g.sms);
        const std::string run = said(format("%s build/train_gpt_emulated train --train %s --raw u16 "
                                            "--out build/planned --init %s%s", card.c_str(), shard.c_str(), shape,
                                            sized ? "" : " --vocab 50257"));
        const std::string planned = said(format("build/plan --gpu %s --model %s", name, shape));
        check(run.find("not enough memory on the GPU") != run.npos && memory_in(run) == memory_in(planned),
              "start-up, %s, %s: %s, planned %s", name, shape, memory_in(run).c_str(), memory_in(planned).c_str());
    }
    // and one that is large enough
    const char* shape = "custom --layers 2 --heads 1 --channels 64 --context 64 --vocab 8000 --batch 8";
    const std::string run = said(format("build/train_gpt_emulated train --train %s --raw u16 --steps 1 "
                                        "--sample-every 0 --out build/planned --init %s", shard.c_str(), shape));
    const std::string text = memory(small({2, 1, 64, 8000, 64}, 8)).text();
    check(memory_in(run) == text, "start-up of a run: %s, planned %s", memory_in(run).c_str(), text.c_str());
    fs::remove_all("build/planned");
    fs::remove(shard);
}

// With stages of ZeRO and tensor parallelism: what is sharded goes down by the count, all else stays.
void memory_is_divided() {
    Plan p = small({4, 8, 512, 1024, 256}, 2);
    const Memory one = memory(p);
    p.gpus = 4;                              // into which all pieces divide, in units of 128
    const Parameters n = parameters(p.c, 1);
    const double whole = one.weights / sizeof(gpu::floatX);
    Memory zero[3];
    for (int stage = 0; stage < 3; stage++) {
        p.zero = stage;
        zero[stage] = memory(p);
    }
    const double sums = 4 * (whole / 4 + std::max(n.layer, n.outside)), three = 4 * (3 * n.layer + n.outside);
    check(near(zero[0].all(), one.all() + sums) && zero[1].weights == one.weights &&
          near(zero[1].master, one.master / 4) && near(zero[1].moments, one.moments / 4) &&
          near(zero[1].gradients, one.gradients + sums),
          "ZeRO 0, 1: %.0f, %.0f bytes, of one GPU %.0f", zero[0].all(), zero[1].all(), one.all());
    check(near(zero[2].gradients, three + sums) && zero[2].moments == zero[1].moments && zero[2].kept == one.kept,
          "ZeRO 2: gradients %.0f of %.0f bytes", zero[2].gradients, zero[1].gradients);
    p.zero = 0;
    p.tensor = 4;
    const double C = 512, layer = 12 * C * C / 4 + (3 + 4) * C / 4 + 6 * C, outside = 1024 * C / 4 + 256 * C + 2 * C;
    const Parameters four = parameters(p.c, 4);
    const Memory m = memory(p);
    check(four.layer == layer && four.outside == outside && near(m.weights, 2 * (4 * layer + outside)),
          "tensor parallel 4: %.0f numbers a layer, %.0f others", four.layer, four.outside);
    const double N = 2 * 256, stats = 2 * 2 * N * 4, lse = N * 8 * 4;
    // whole: ln1, middle, ln2, residual; split: qkv, att, fc and its gelu
    auto kept = [&](int t) { return 4 * (2 * (4 + 12.0 / t) * N * C + stats + lse / t); };
    check(near(one.kept, kept(1)) && near(m.kept, kept(4)), "tensor parallel 4: activations %.0f, of one GPU %.0f",
          m.kept, one.kept);
}

// The last of three ranks allocates what is planned, the rest of a division that leaves one included.
void memory_is_what_ranks_allocate() {
    for (Shape shape : {Shape{5, 1, 64, 4001, 128}, {2, 2, 128, 512, 96}}) for (int zero : {0, 1, 2}) {
        Plan p = small(shape);
        p.gpus = 3;
        p.zero = zero;
        Comm& comm = world();
        comm.size = 3;
        comm.rank = 2;
        comm.zero = zero;
        {
            const gpu::Model model(p.c, 1, p.c.T, true);
            const Memory m = memory(p);
            const Footprint needed = model.needed(1);
            check(m.weights + m.master == needed.weights && m.gradients == needed.gradients &&
                  m.moments == needed.moments && m.all() == needed.all(),
                  "ZeRO %d, %d layers: %.0f bytes; allocated %.0f", zero, shape.L, m.all(), needed.all());
        }
        comm = Comm();
    }
}

// The same FLOPs and bytes as a step line's SOL, where tiles come out even: an infinite bandwidth leaves products
// their FLOPs.
void floor_is_that_of_a_step_line() {
    for (Shape shape : {Shape{2, 2, 128, 512, 128}, {3, 4, 256, 1024, 256}}) {
        Plan p = small(shape, 4);
        const gpu::Model model(p.c, 4, p.c.T, true);
        double sol = NAN;
        for (auto& [name, value] : model.speed(p.tokens(), 1).log)
            if (!strcmp(name, "sol")) sol = strtod(value.c_str(), nullptr);
        const Step bytes = step(p);
        p.gpu.bandwidth = INFINITY;
        p.gpu.sms = 1;
        const Step flops = step(p);
        const double floor = flops[BLOCKS] + flops[HEAD] + flops[ATTENTION] + bytes[BYTES] + bytes[OPTIMIZER];
        check(near(floor, sol, 1e-6), "floor, %d layers of %d channels: %.9g s, of the step line %.9g", shape.L,
              shape.C, floor, sol);
    }
    for (const Gpu& g : GPUS) {
        auto& card = gpu::device().properties;
        card.multiProcessorCount = g.sms;
        card.major = g.capability / 10;
        card.minor = g.capability % 10;
        strcpy(card.name, g.nvlink ? g.name : "NVIDIA GeForce RTX 4090");
        if (g.capability >= 80)
            check(near(gpu::device().peak(), g.peak), "peak of %s: %.4g, of train_gpt.cu %.4g", g.name, g.peak,
                  gpu::device().peak());
    }
    for (auto [shape, B, ms] : {std::tuple(Shape{12, 12, 768}, 64, 98.9), {{48, 25, 1600}, 16, 294.9}}) {
        const double predicted = 1e3 * step({.c = shape.config(), .gpu = *gpu_named("H200"), .batch = B}).seconds();
        check(near(predicted, ms, 0.025), "one H200, %d layers: %.1f ms/step, measured %.1f", shape.L, predicted, ms);
    }
}

void times_by_hand() {
    const Gpu g = {"g", 90, 10, 1e12, 1e12, 1e9, 1e9, 1e8};
    const double turn = 10 * 2.0 * 128 * 128 / 0.8e12;       // of all SMs, for each k
    const double thin = 2 * (2e6 + 1) / 0.9e12;              // the bytes of a product that has few FLOPs for them
    check(near(product(g, 1280, 128, 256), turn * 256) && near(product(g, 1281, 128, 256), 2 * turn * 256) &&
          near(product(g, 128, 128, 5120), turn * 512) &&
          near(product({"g", 90, 10, 1e18, 1e12, 0, 0, 0}, 1, 1, 1e6), thin),
          "products: tiles, turns, parts of K, bytes");
    const Link in = {1, 2, 100}, out = {10, 20, 30};
    for (bool direct : {true, false}) {
        auto of = [&](int n, int inside, double bytes) { return exchange(n, inside, bytes, in, out, direct); };
        const Exchange none = of(1, 8, 1e9), pair = of(2, 8, 1000), apart = of(4, 1, 400);
        const Exchange two = of(16, 8, 4800), wide = of(16, 2, 4800);
        const char* kind = direct ? "direct" : "ring";
        check(none.seconds() == 0 && pair.latency == 1 + 2 && pair.transfer == 5, "%s exchange of 1, of 2: %g + %g",
              kind, pair.latency, pair.transfer);
        check(apart.latency == 10 + 3 * 20 && apart.transfer == 10, "%s exchange of 4 on 4 machines: %g + %g",
              kind, apart.latency, apart.transfer);
        check(two.latency == 10 + 14 * 2 + 20 && two.transfer == (direct ? 80 : 45),
              "%s exchange of 16 on 2 machines: %g + %g", kind, two.latency, two.transfer);
        check(wide.latency == 10 + 8 * 2 + 7 * 20 && wide.transfer == (direct ? 140 : 75),
              "%s exchange of 16 on 8 machines: %g + %g", kind, wide.latency, wide.transfer);
    }

    Plan p = {.c = Shape{12, 12, 768}.config(), .gpu = *gpu_named("H100"), .batch = 16};
    const Step alone = step(p);
    bool nothing = alone.collectives.empty();
    for (Part k : {TENSOR, GRADIENTS, WEIGHTS, NORM, BUBBLE, SLOWEST}) nothing &= alone[k] == 0;
    check(nothing && near(alone.seconds(), alone.floor() / REACHED), "one GPU: no exchange, %.2f ms",
          1e3 * alone.seconds());
    // 8 GPUs of one machine, two micro-batches: no layer's exchange outlasts its backward pass, so only ends are left
    p.gpus = 8;
    p.micro = 2;
    p.stragglers = 0.01;
    const Parameters n = parameters(p.c, 1);
    auto exchanged = [&](double bytes) { return 8.4e-6 + 7 * 3.4e-6 + 7 / 8.0 * bytes / (0.8 * 450e9); };
    for (int zero = 0; zero < 3; zero++) {
        p.zero = zero;
        const Step s = step(p);
        const double one = exchanged(4 * n.layer), tables = exchanged(4 * n.outside);
        const double weights = exchanged(2 * n.layer) + exchanged(2 * n.outside);
        const double slowest = 0.01 * std::sqrt(2 * std::log(8)) * (s.seconds() - s[SLOWEST]);
        check(near(s[GRADIENTS], one + tables + (zero ? 0 : 12 * one + tables)) &&
              near(s[WEIGHTS], zero ? weights : 0) && near(s[BLOCKS], 2 * alone[BLOCKS]) &&
              near(s[OPTIMIZER], alone[OPTIMIZER] / (zero ? 8 : 1)) && near(s[SLOWEST], slowest),
              "8 GPUs, ZeRO %d: %.3f + %.3f ms not hidden", zero, 1e3 * s[GRADIENTS], 1e3 * s[WEIGHTS]);
    }
    // over a network a thousand times slower everything is left: of each micro-batch what its passes do not hide
    p.gpu.network = 50e6;
    p.machine = 1;
    p.stragglers = 0;
    const Step slow = step(p);
    auto far = [&](double bytes) { return 8.4e-6 + 7 * 9.6e-6 + 7 / 8.0 * bytes / (0.8 * 50e6); };
    const double gradients = 2 * (12 * far(4 * n.layer) + far(4 * n.outside));
    const double weights = 12 * far(2 * n.layer) + far(2 * n.outside);
    const double left = slow[GRADIENTS] + slow[WEIGHTS], all = gradients + weights;
    const double most = 3 * (alone.seconds() - alone[HEAD] / REACHED);
    check(left < all && left > all - most, "a slow network: %.2f s of %.2f not hidden", left, all);
    // two all-reduces a layer each way and two at the ends, 2 exchanges each
    p = {.c = Shape{12, 12, 768}.config(), .gpu = *gpu_named("H100"), .gpus = 4, .tensor = 4, .batch = 16};
    const double each = 8.4e-6 + 3 * 3.4e-6 + 3 / 4.0 * (16 * 1024 * 768 * 2) / (0.8 * 450e9);
    const Step four = step(p);
    check(near(four[TENSOR], 2 * (4 * 12 + 2) * each) && four[GRADIENTS] == 0 && four.collectives.size() == 1 &&
          near(four.collectives[0].times, 100), "tensor parallel 4: %.3f ms", 1e3 * four[TENSOR]);
    check(near(four[ATTENTION], alone[ATTENTION] / 4) && four[BLOCKS] < alone[BLOCKS] / 3.5,
          "tensor parallel 4: products %.2f ms, of one GPU %.2f", 1e3 * four[BLOCKS], 1e3 * alone[BLOCKS]);
}

void choices() {
    Arguments a;
    a.model = "d48";
    a.gpu = "A100";
    a.gpus = 64;
    const auto [p, rows] = asked(a);
    const auto all = ways(p, rows);
    double least = INFINITY;
    for (int zero = 0; zero < 3; zero++) for (int b = 1; b <= rows / 64; b++) {
        Plan q = p;
        q.tensor = 1;
        q.zero = zero;
        q.batch = b;
        q.micro = rows / 64 / b;
        if (rows / 64 % b == 0 && memory(q).all() <= q.gpu.memory) least = std::min(least, step(q).seconds());
    }
    check(all.size() == 3 && all[0].fits() && all[0].seconds == least && all[0].plan.tokens() == (double)rows * 1024,
          "25 heads on 64 A100: the fastest, %.1f ms", 1e3 * all[0].seconds);
    bool ordered = true;
    for (size_t i = 1; i < all.size(); i++)
        ordered &= all[i - 1].fits() > all[i].fits() || all[i - 1].seconds <= all[i].seconds;
    check(ordered, "ways are ordered");
    int without = 0;
    const int counts[] = {1, 2, 3, 7, 8, 24, 40, 1000, 25000};
    for (text model : {"d6", "d12", "d48", "gpt3-175b"}) for (int gpus : counts) for (int machine : {1, 4, 5, 6, 8}) {
        Arguments b;
        b.model = model;
        b.gpus = gpus;
        b.gpus_per_machine = machine;
        if (gpus % std::min(gpus, machine)) continue;
        const auto [q, r] = asked(b);
        without += ways(q, r).empty();
    }
    check(without == 0, "a step of the usual size divides in some way, always");
    double before = INFINITY;
    bool falls = true;
    for (int gpus : {8, 64, 512, 4096, 25000}) {             // steps of one size: the more GPUs, the less for each
        const Plan q = {.c = Shape{96, 96, 12288, 50257, 2048}.config(), .gpu = *gpu_named("H100"), .gpus = gpus,
                        .tensor = 8, .zero = 2, .micro = 25000 / gpus, .stragglers = STRAGGLERS};
        const double share = mfu(q, step(q).seconds());
        falls &= share < before;
        before = share;
    }
    check(falls, "MFU falls from 8 GPUs to 25,000, to %.3f", before);
}

// What build/plan --table shows, and dev/README.md: model rows to half a unit of their last digit.
void published_rows() {
    for (const Arithmetic& a : ARITHMETIC)
        check(near(a.seconds(), a.published, 0.1), "arithmetic, %s: %.3f of what is published", a.what,
              a.seconds() / a.published);
    const double hours = std::end(ARITHMETIC)[-1].gpu_hours();           // Touvron et al. 2023, table 15, has 1,022,362
    check(near(hours, 1022362, 0.01) && near(4.9 * hours, 5e6, 0.1), "LLaMA-65B: %.0f GPU hours, %.2f million", hours,
          4.9 * hours / 1e6);
    const double RATIOS[] = {1.008, 1.023, 1.055, 0.714, 0.842, 0.721, 0.822, 0.992, 1.057, 1.002, 1.000, 1.024, 1.056,
                             1.093, 1.070};
    static_assert(std::size(RATIOS) == std::size(MEASURED));
    for (size_t i = 0; i < std::size(RATIOS); i++) {
        const Measured& m = MEASURED[i];
        const double ratio = step(m.plan()).seconds() / m.published();
        check(std::abs(ratio - RATIOS[i]) <= 5e-4, "model, %s: %.4f of what is published, was %.3f", m.what, ratio,
              RATIOS[i]);
        const double P = parameters(m.shape.config(), 1).all, named = strtod(strchr(m.what, ',') + 1, nullptr);
        check(near(P, named * (strchr(m.what, 'B') ? 1e9 : 1e6), 0.04), "%s has %.4g billion parameters", m.what,
              P / 1e9);
    }
    // Megatron's 175B on 1,024 A100 at 140 TFLOP/s: 34 days, by the operations of its eq. 3 instead of 8 P a token
    const Measured gpt3 = {"", {96, 96, 12288, 51200, 2048}, "A100", 1024, 8, 8, 1, 1536, 0, 0, 140};
    const double seconds = 300e9 / (1536 * 2048.0) * gpt3.published();
    check(near(seconds, 34 * DAY, 0.1), "GPT-3 by eq. 3: %.1f days", seconds / DAY);
    for (const Fleet& f : FLEETS) {
        const Way w = fleet(f);
        check(w.fits() && w.plan.replicas() * w.plan.tensor == f.gpus, "%s on %d %s fits, %.1f GB",
              MODELS[f.model].name, f.gpus, f.gpu, w.memory.all() / 1e9);
    }
    check(FLEETS[2].gpus == 25000, "a fleet of 25,000 is in the table");
}

const struct { const char *words, *line; } WRONG[] = {
    {"--frobnicate 3", "--frobnicate: unknown option; plan --help lists them"},
    {"--model d13", "--model d13: must be one of gpt3-175b|llama-65b|d6|d12|d24|d36|d48|custom"},
    {"--gpu H300", "--gpu H300: must be one of V100|A100-40|A100|H100|H200|B200|4090"},
    {"--gpus 0", "--gpus 0: must lie in 1..1000000"},
    {"--tokens nan", "--tokens nan: not a number"},
    {"--zero 3", "--zero 3: must lie in 0..2"},
    {"--model custom --layers 3", "--model custom: give --layers, --heads and --channels"},
    {"--heads 7", "--channels 768: not a multiple of --heads 7"},
    {"--gpus 12", "--gpus 12: not a multiple of --gpus-per-machine 8"},
    {"--gpus 8 --tensor-parallel 3", "--tensor-parallel 3: must divide the 8 GPUs of a machine and the 12 heads"},
    {"--gpus 8 --tensor-parallel 8", "--tensor-parallel 8: must divide the 8 GPUs of a machine and the 12 heads"},
    {"--tokens-per-step 1000", "--tokens-per-step 1000: not a multiple of --context 1024"},
    {"--gpus 8 --tokens-per-step 9216", "--tokens-per-step 9216: 9 rows do not divide among 8 GPUs"},
    {"--batch 3 --tokens-per-step 4096", "--tokens-per-step 4096: 4 rows do not divide among 1 GPUs in batches of 3"},
    {"--model gpt3-175b", "no way fits: 3221.12 GB a GPU at least, and H100 has 80; take more GPUs, or larger ones"}};

void wrong_command_lines() {
    for (auto [words, line] : WRONG) {
        const std::string found = said(format("build/plan %s", words));
        const std::string last = found.substr(found.rfind("error: ") == found.npos ? 0 : found.rfind("error: "));
        check(last == format("error: %s\n", line), "plan %s: %s", words, last.substr(0, last.find('\n')).c_str());
    }
}

}  // namespace plan

int main() {
    return run_main([] {
        plan::memory_is_what_is_allocated();
        plan::memory_is_what_a_run_says();
        plan::memory_is_divided();
        plan::memory_is_what_ranks_allocate();
        plan::floor_is_that_of_a_step_line();
        plan::times_by_hand();
        plan::choices();
        plan::published_rows();
        plan::wrong_command_lines();
        if (failed) die("%d checks failed", failed);
    });
}
