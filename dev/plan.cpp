/* dev/plan.cpp -- what a run needs and takes, before it is begun: memory of a GPU by purpose, what fits, the time of a
   step and where it goes, days, GPU hours, cost.

       make build/plan && build/plan --model gpt3-175b --gpu H100 --gpus 1024 --tokens 300e9 --price 2.5
       build/plan --table                            what others published, beside what these formulas give
       make build/plan_mpi && mpirun -np 2 build/plan_mpi            the terms of an exchange, against this machine

   memory     Sizes are asked of train_gpt.cu, which is compiled as for its emulator: what is planned is what it
              allocates.
   time       A step's floor is that of a step line's SOL (gpu::Model::speed()): products and attention at 80 % of the
              card's peak, what else moves bytes at 90 % of its bandwidth; products are rounded up to tiles and to turns
              of all SMs. A GPU takes floor / REACHED; then come exchanges that nothing hides, and waiting
              for the slowest.
   ranks      t GPUs of a machine share each layer (Shoeybi et al. 2019, arXiv:1909.08053); such groups, replicas, share
              the batch. ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054): stage 1 shards master weights and moments
              among replicas, 2 gradients, too.
   not seen   Starts of kernels, which tell in small models; what exchanges take from the kernels beside them; reading
              data, checkpoints, validation, failures. */
#define NO_GPU_MAIN
#include "../train_gpt.cu"

namespace plan {

// ---- cards ----------------------------------------------------------------------------------------------------------
// NVIDIA's data sheets of V100 SXM2, A100 and H100 SXM, H200, HGX B200 and Ada's white paper: FLOP/s dense in bf16
// (V100: fp16) with fp32 sums, bytes/s and bytes of memory; bytes/s one way to the others of a machine (NVLink; PCIe
// 4.0 x16 for the 4090), and across machines: DGX-1 has 4 x 100 Gb/s for 8 GPUs, DGX A100 8 x 200, H100, H200, B200
// 8 x 400, and a machine of 4090s is taken to have 100. Memory is sold in GB and made in GiB: the 7 % between are left
// to CUDA itself.
struct Gpu {
    const char* name;
    int capability, sms;
    double peak, bandwidth, memory, link, network;
    bool nvlink = true;
};
constexpr Gpu GPUS[] = {{"V100", 70, 80, 125e12, 0.9e12, 32e9, 150e9, 6.25e9},
                        {"A100-40", 80, 108, 312e12, 1.555e12, 40e9, 300e9, 25e9},
                        {"A100", 80, 108, 312e12, 2.039e12, 80e9, 300e9, 25e9},
                        {"H100", 90, 132, 989.4e12, 3.35e12, 80e9, 450e9, 50e9},
                        {"H200", 90, 132, 989.4e12, 4.8e12, 141e9, 450e9, 50e9},
                        {"B200", 100, 148, 2250e12, 8e12, 180e9, 900e9, 50e9},
                        {"4090", 89, 128, 165.2e12, 1.008e12, 24e9, 31.5e9, 1.5625e9, false}};
constexpr const Gpu* gpu_named(std::string_view name) {
    for (const Gpu& g : GPUS) if (name == g.name) return &g;
    return nullptr;
}
constexpr double STRAGGLERS = 0.01;          // cards of one kind differ by 2 to 3 % (dev/results/h200.md)

// Models beside the program's own: Brown et al. 2020, arXiv:2005.14165, table 2.1; GPT-2's layers at the sizes of LLaMA
// (Touvron et al. 2023, arXiv:2302.13971, table 2), whose three matrices of an MLP hold as much as our two.
struct Shape {
    int L, NH, C, V = 50257, T = 1024;
    Config config() const {
        Config c;
        std::tie(c.L, c.NH, c.C, c.V, c.T) = std::tuple(L, NH, C, V, T);
        return c;
    }
};
struct Model { const char* name; Shape shape; };
constexpr Model MODELS[] = {{"gpt3-175b", {96, 96, 12288, 50257, 2048}}, {"llama-65b", {80, 64, 8192, 32000, 2048}}};

struct Plan {
    Config c;
    Gpu gpu;
    int gpus = 1, machine = 8;               // GPUs in all, and in a machine
    int tensor = 1, zero = 0;
    int batch = 1, micro = 1;                // rows of a micro-batch, micro-batches of a step: of each replica
    double stragglers = 0;
    // What others do and this program does not, for their rows in the table: stages of a pipeline; blocks computed
    // again before their backward pass; NCCL's rings, and gradients added up over the micro-batches before they are
    // reduced.
    int pipeline = 1;
    bool recompute = false, others = false;

    int replicas() const { return gpus / (tensor * pipeline); }
    double tokens() const { return (double)replicas() * micro * batch * c.T; }
};

// ---- memory ---------------------------------------------------------------------------------------------------------
// The rank of a tensor group that has most: the last has the larger part of an uneven vocabulary.
inline Config part_of(const Config& c, int tensor) { return c.part(tensor, tensor - 1); }

struct Parameters { double all = 0, layer = 0, outside = 0; };           // of the model; of a GPU: a layer's, others
inline Parameters parameters(const Config& c, int tensor) {
    Parameters n;
    for (const Tensor& t : tensor_rows(part_of(c, tensor), gpu::BF16)) {
        if (!t.present) continue;
        n.all += t.whole() * double(t.per == BLOCK ? c.L : 1);
        double& where = t.per == BLOCK ? n.layer : n.outside;
        where += t.count();
    }
    return n;
}

struct Memory {
    double weights, master, gradients, moments, kept, scratch;
    double all() const { return weights + master + gradients + moments + kept + scratch; }
    std::string text() const {               // as a run begins with it
        return Footprint{weights + master, gradients, moments, kept + scratch}.text();
    }
};
/* bytes of one GPU
   here     kept is what layers leave for their backward pass; scratch all else that a step computes, with cuBLASLt's
            workspace. What replicas keep of weights, gradients and moments is asked of the program's Shares, for the
            rank that has most */
inline Memory memory(const Plan& p) {
    auto& card = gpu::device().properties;                   // what depends on the card: ask for one, of all plans
    card.multiProcessorCount = p.gpu.sms;
    card.major = p.gpu.capability / 10;
    card.minor = p.gpu.capability % 10;
    const Config c = part_of(p.c, p.tensor);
    const int ranks = p.replicas();
    const Comm comm = {.rank = ranks - 1, .size = ranks, .zero = ranks > 1 ? p.zero : 0};
    const Layout layout(c, gpu::VOCABULARY_TILE, gpu::BF16);
    const Layout gradients(in_turns(c, comm.zero), gpu::VOCABULARY_TILE, gpu::BF16);
    const Shares shares = layout.shares(comm, gradients.slots);
    const auto arrays = gpu::activation_arrays(c, p.batch, c.T, true);
    double kept = 0;
    for (auto& [per, units] : arrays) if (per == BLOCK) kept += 16.0 * p.c.L * ((units + 127) / 128 * 128);
    const double all = 16.0 * Slots(arrays, p.c.L).size + gpu::device().workspace_size;
    const double moments = 4.0 * shares.moments();
    const double weights = sizeof(gpu::floatX) * double(layout.slots.size) + 16.0 * layout.packed.size;
    return {weights, moments, 4.0 * (gradients.trained() + shares.exchanged()), 2 * moments, kept, all - kept};
}

// ---- time -----------------------------------------------------------------------------------------------------------
/* What of the floor's speed whole steps reach: .749 and .783 in GPT-2 124M, 64 x 1024, and 1.5B, 16 x 1024, on one H200
   (dev/results/h200.md, 2026-11-27). Fitted to these two and to nothing else, before any other row of the table. */
constexpr double REACHED = 0.765;

/* A product (M,N) = (M,K) (K,N) at the floor's rates, seconds: tiles of 128 x 128, one an SM in each turn;
   where they are few, K is cut into parts of 512 and more. */
inline double product(const Gpu& g, double M, double N, double K) {
    const double tiles = std::ceil(M / 128) * std::ceil(N / 128);
    double turns = std::ceil(tiles / g.sms);
    for (int parts = 2; parts <= 16 && K / parts >= 512; parts++)
        turns = std::min(turns, std::ceil(tiles * parts / g.sms) / parts);
    return std::max(turns * g.sms * 2 * 128 * 128 * K / (0.8 * g.peak),
                    2 * (M * K + K * N + M * N) / (0.9 * g.bandwidth));
}

// Seconds to begin, seconds for a hop, bytes/s. NCCL's own model of a ring (src/graph/tuning.cc, "simple" protocol) has
// 8.4 us, 3.4 by NVLink, 5.7 by PCIe, 9.6 by the network, and 235 GB/s of an A100's 300: LINK, here of every link.
constexpr double LINK = 0.8;
struct Link { double begin, hop, bandwidth; };
inline Link within(const Gpu& g) { return {8.4e-6, g.nvlink ? 3.4e-6 : 5.7e-6, LINK * g.link}; }
inline Link across(const Gpu& g) { return {8.4e-6, 9.6e-6, LINK * g.network}; }

/* A reduce-scatter or an all-gather over n ranks, `inside` of them in each machine; an all-reduce is one of each.
   math     begin + n - 1 hops + (n - 1) / n bytes / bandwidth
   direct   this program's: each rank sends every other its part, of which (n - inside) / n bytes leave by its own
            network link
   ring     NCCL's: what leaves a machine does so once, by the links of all inside (Patarasuk & Yuan 2009) */
struct Exchange {
    double latency = 0, transfer = 0;
    double seconds() const { return latency + transfer; }
};
inline Exchange exchange(int n, int inside, double bytes, const Link& in, const Link& out, bool direct) {
    if (n < 2) return {};
    const double outer = gpu::ceil_div(n, inside) - 1, hops = n - 1 - outer, whole = (n - 1.0) / n * bytes;
    const double within = inside > 1 ? whole / in.bandwidth : 0;
    if (outer == 0) return {in.begin + hops * in.hop, within};
    const double across = direct ? double(n - inside) / n * bytes / out.bandwidth : whole / (inside * out.bandwidth);
    return {out.begin + hops * in.hop + outer * out.hop, std::max(within, across)};
}

enum Part {
    BLOCKS, HEAD, ATTENTION, BYTES, OPTIMIZER, MISSED, TENSOR, GRADIENTS, WEIGHTS, NORM, BUBBLE, SLOWEST, PARTS
};
constexpr const char* PART[PARTS] = {
    "products of the blocks", "products of the head", "attention", "norms, loss, embedding", "AdamW",
    "what kernels miss of the floor", "all-reduces of activations", "gradients that nothing hides",
    "weights that nothing hides", "gradient norm", "pipeline's bubble", "waiting for the slowest"};
struct Parts : std::array<double, PARTS> {
    double floor() const { return std::accumulate(begin(), begin() + MISSED, 0.0); }
    double seconds() const { return std::accumulate(begin(), end(), 0.0); }
};
struct Collective { const char* name; double times, bytes; Exchange each; };
struct Step : Parts { std::vector<Collective> collectives; };

/* The schedule of a step, seconds by part
   compute   a micro-batch of N tokens runs forward through the layers and the head, and back
   tensor    two all-reduces of (N,C) a layer forward, two backward, one for the embedding, one for the head; all wait
   gradients fp32; a layer's are reduce-scattered, after each micro-batch, during the backward pass of the layer before
             it. What is left: the time beyond that, and the exchange of the first layer's and the tables', behind which
             only another micro-batch's forward pass runs. In stage 0 the sums of all are gathered at the end; others
             all-reduce
   weights   stages 1 and 2: bf16, gathered a layer ahead of the next forward pass, which waits for the tables and its
             first
   norm      of all ranks, and their losses: 16 bytes of each
   bubble    p - 1 micro-batches more (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1)
   slowest   of n steps of standard deviation s, as a share, the longest is expected to take s sqrt(2 ln n) more */
inline Step step(const Plan& p) {
    const Config& c = p.c;
    const Gpu& g = p.gpu;
    const Link in = within(g), out = across(g);
    const Parameters n = parameters(c, p.tensor);
    const double t = p.tensor, N = (double)p.batch * c.T, share = 1.0 / p.pipeline, L = share * c.L;
    const double bandwidth = 0.9 * g.bandwidth;
    const double X = N * c.C * sizeof(gpu::floatX), logits = N * c.V / t * sizeof(gpu::floatX);
    const Exchange activations = exchange(p.tensor, p.tensor, X, in, out, !p.others);
    auto products = [&](double OC, double K, bool backward) {
        return backward ? product(g, N, K, OC) + product(g, K, OC, N) : product(g, N, OC, K);
    };
    Parts layer[2] = {}, ends = {};          // a layer, forward and backward; embedding and head
    for (bool backward : {false, true}) {
        Parts& a = layer[backward];
        a[BLOCKS] = products(c.qkv() / t, c.C, backward) + products(c.C, c.C / t, backward) +
                    products(c.fc() / t, c.C, backward) + products(c.C, c.hidden() / t, backward);
        a[ATTENTION] = (backward ? 4 : 2) * N * c.T * c.C / t / (0.8 * g.peak);
        a[BYTES] = (backward ? 8 : 4) * X / bandwidth;
        a[TENSOR] = 4 * activations.seconds();
        ends[HEAD] += share * products(c.V / t, c.C, backward);
    }
    ends[BYTES] = share * (11 * X + 2 * logits) / bandwidth;
    ends[TENSOR] = share * 4 * activations.seconds();
    auto takes = [](const Parts& a) { return a.floor() / REACHED + a[TENSOR]; };
    const double forward = takes(layer[0]), backward = takes(layer[1]) + p.recompute * forward;
    Step s;
    for (int k = 0; k < PARTS; k++) s[k] = p.micro * (L * ((1 + p.recompute) * layer[0][k] + layer[1][k]) + ends[k]);
    s[OPTIMIZER] = 38 * (L * n.layer + n.outside) / (p.zero ? p.replicas() : 1) / bandwidth;
    s[MISSED] = s.floor() * (1 / REACHED - 1);

    const int d = p.replicas(), inside = std::min(d, std::max(1, p.machine / p.tensor));
    const int later = p.others ? 0 : p.micro - 1;            // micro-batches
    auto among = [&](double bytes) { return exchange(d, inside, bytes, in, out, !p.others); };
    auto beyond = [&](double each, double hidden_by) { return (L - 1) * std::max(0.0, each - hidden_by); };
    const Exchange gradients = among(4 * n.layer), weights = among(2 * n.layer);
    const double one = gradients.seconds(), tables = among(4 * n.outside).seconds();
    const int ways = p.others && !p.zero ? 2 : 1, again = p.others || p.zero ? 0 : 1;
    s[GRADIENTS] = later * (beyond(one, backward) + std::max(0.0, one + tables - L * forward)) +
                   beyond(ways * one, backward) + ways * (one + tables) + again * (L * one + tables);
    if (p.zero) s[WEIGHTS] = beyond(weights.seconds(), forward) + weights.seconds() + among(2 * n.outside).seconds();
    s[NORM] = among(16 * d).seconds();
    s[BUBBLE] = (p.pipeline - 1) * (L * (forward + backward) + takes(ends));
    s[SLOWEST] = p.stragglers * std::sqrt(2 * std::log(p.gpus)) * s.seconds();

    if (p.tensor > 1) s.collectives.push_back({"activations (N,C)", s[TENSOR] / activations.seconds(), X, activations});
    if (d > 1) s.collectives.push_back({"gradients of a layer", L * (later + ways + again), 4 * n.layer, gradients});
    if (d > 1 && p.zero) s.collectives.push_back({"weights of a layer", L, 2 * n.layer, weights});
    return s;
}

inline double mfu(const Plan& p, double seconds) {
    return p.tokens() * p.c.flops_per_token(parameters(p.c, 1).all, 0, p.c.T) / (seconds * p.gpus * p.gpu.peak);
}

// ---- choosing -------------------------------------------------------------------------------------------------------
struct Way {
    Plan plan;
    Memory memory;
    double seconds;
    bool fits() const { return memory.all() <= plan.gpu.memory; }
};

// All ways to divide a step of so many rows, each with the fastest batch that fits, or the least, which does not. What
// is 0 (zero: -1) in `asked` is tried. The fastest first; those that do not fit last, the nearest first.
inline std::vector<Way> ways(const Plan& asked, integer rows) {
    std::vector<Way> all;
    for (int t = 1; t <= asked.machine; t++) {
        const int replicas = asked.gpus / t;
        const bool wanted = asked.tensor ? t == asked.tensor : std::has_single_bit((unsigned)t);
        if (!wanted || asked.machine % t || asked.c.NH % t || rows % replicas) continue;
        for (int zero = 0; zero <= (replicas > 1 ? 2 : 0); zero++) {
            if (asked.zero >= 0 && replicas > 1 && zero != asked.zero) continue;
            std::optional<Way> best;
            for (integer b = 1; b <= std::min<integer>({rows / replicas, 65535, INT_MAX / asked.c.T}); b++) {
                if (rows / replicas % b || (asked.batch && b != asked.batch)) continue;
                Way way = {asked, {}, 0};
                way.plan.tensor = t;
                way.plan.zero = zero;
                way.plan.batch = b;
                way.plan.micro = rows / replicas / b;
                way.memory = memory(way.plan);
                way.seconds = step(way.plan).seconds();
                if (!best || (way.fits() && way.seconds < best->seconds)) best = way;
                if (!way.fits()) break;
            }
            if (best) all.push_back(*best);
        }
    }
    std::stable_sort(all.begin(), all.end(), [](const Way& a, const Way& b) {
        if (a.fits() != b.fits()) return a.fits();
        return a.fits() ? a.seconds < b.seconds : a.memory.all() < b.memory.all();
    });
    return all;
}

inline std::string span(double seconds) {
    const double days = seconds / 86400;
    return days > 730 ? format("%.0f years", days / 365.25) : days >= 2 ? format("%.1f days", days)
         : seconds >= 7200 ? format("%.1f hours", seconds / 3600) : format("%.1f minutes", seconds / 60);
}

// ---- what others published ------------------------------------------------------------------------------------------
// Arithmetic: the seconds of a P tokens operations at a rate that the source states, or that is assumed. a is 6, or 8
// where blocks are computed twice forward (Narayanan et al. 2021, section 5.1). 46 TFLOP/s of a V100 are what 288 years
// come from.
constexpr double DAY = 86400, YEAR = 365.25 * DAY, MONTH = YEAR / 12;
struct Arithmetic {
    const char* what;
    double a, parameters, tokens, gpus, rate;
    bool stated;
    double published;
    const char* source;
    double seconds() const { return a * parameters * tokens / (gpus * rate); }
    double gpu_hours() const { return seconds() * gpus / 3600; }
};
constexpr Arithmetic ARITHMETIC[] = {
    {"GPT-3 on one V100", 8, 175e9, 300e9, 1, 46e12, false, 288 * YEAR, "Narayanan et al. 2021"},
    {"GPT-3 on one V100, another estimate", 6, 175e9, 300e9, 1, 28e12, true, 355 * YEAR, "Lambda Labs 2020"},
    {"GPT-3 on 8 V100", 8, 175e9, 300e9, 8, 46e12, false, 36 * YEAR, "NVIDIA's blog 2021"},
    {"GPT-3 on 512 V100", 8, 175e9, 300e9, 512, 46e12, false, 7 * MONTH, "NVIDIA's blog 2021"},
    {"GPT-3 on 1,024 A100", 8, 175e9, 300e9, 1024, 140e12, true, 34 * DAY, "Narayanan et al. 2021"},
    {"GPT of 1T on 3,072 A100, 450B tokens", 8, 1008e9, 450e9, 3072, 163e12, true, 84 * DAY, "Narayanan et al. 2021"},
    {"LLaMA-65B on 2,048 A100, 1.4T tokens", 6, 65.2e9, 1.4e12, 2048, 380 * 6 * 65.2e9, true, 21 * DAY,
     "Touvron et al. 2023; 5 million at 4.9 an hour"}};

// Measured steps, for the model to predict. llm.c: the scripts of f1e2ace; 124M on 8 H100: 18,865 steps in the 45
// minutes that modded-nanogpt's README names. Megatron: Narayanan et al. 2021, table 1, whose batches of a replica go
// row by row through p stages (it does not say how), blocks computed twice, gradients reduced once. teraflops: a GPU's,
// as it counts them.
struct Measured {
    const char* what;
    Shape shape;
    const char* gpu;
    int gpus, tensor, pipeline, batch, rows, zero;
    double seconds, teraflops;

    Plan plan() const {
        Plan p = {.c = shape.config(), .gpu = *gpu_named(gpu), .gpus = gpus, .tensor = tensor, .zero = zero,
                  .batch = batch, .stragglers = STRAGGLERS, .pipeline = pipeline, .recompute = teraflops > 0,
                  .others = true};
        p.micro = rows / (p.replicas() * batch);
        return p;
    }
    double published() const {               // seconds a step; operations: Narayanan's eq. 3
        const auto [L, NH, C, V, T] = shape;
        const double operations = 96.0 * rows * T * L * C * C * (1 + T / (6.0 * C) + V / (16.0 * L * C));
        return teraflops > 0 ? operations / (gpus * teraflops * 1e12) : seconds;
    }
};
constexpr Measured MEASURED[] = {
    {"llm.c, 124M", {12, 12, 768}, "A100", 8, 1, 1, 64, 512, 1, 0.300, 0},
    {"llm.c, 350M", {24, 16, 1024}, "A100", 8, 1, 1, 64, 512, 1, 0.820, 0},
    {"llm.c, 774M", {36, 20, 1280}, "A100", 8, 1, 1, 32, 512, 1, 1.7, 0},
    {"llm.c, 124M", {12, 12, 768}, "H100", 8, 1, 1, 64, 512, 1, 45 * 60 / 18865.0, 0},
    {"llm.c, 1.5B", {48, 25, 1600}, "H100", 8, 1, 1, 16, 1024, 1, 2.80, 0},
    {"Megatron, 1.7B", {24, 24, 2304, 51200, 2048}, "A100", 32, 1, 1, 1, 512, 0, 0, 137},
    {"Megatron, 3.6B", {30, 32, 3072, 51200, 2048}, "A100", 64, 2, 1, 1, 512, 0, 0, 138},
    {"Megatron, 7.5B", {36, 32, 4096, 51200, 2048}, "A100", 128, 4, 1, 1, 512, 0, 0, 142},
    {"Megatron, 18.4B", {40, 48, 6144, 51200, 2048}, "A100", 256, 8, 1, 1, 1024, 0, 0, 135},
    {"Megatron, 39.1B", {48, 64, 8192, 51200, 2048}, "A100", 512, 8, 2, 1, 1536, 0, 0, 138},
    {"Megatron, 76.1B", {60, 80, 10240, 51200, 2048}, "A100", 1024, 8, 4, 1, 1792, 0, 0, 140},
    {"Megatron, 145.6B", {80, 96, 12288, 51200, 2048}, "A100", 1536, 8, 8, 1, 2304, 0, 0, 148},
    {"Megatron, 310.1B", {96, 128, 16384, 51200, 2048}, "A100", 1920, 8, 16, 1, 2160, 0, 0, 155},
    {"Megatron, 529.6B", {105, 128, 20480, 51200, 2048}, "A100", 2520, 8, 35, 1, 2520, 0, 0, 163},
    {"Megatron, 1008.0B", {128, 160, 25600, 51200, 2048}, "A100", 3072, 8, 64, 1, 3072, 0, 0, 163}};

// The same and larger runs by this program, in steps of so many rows; published: days.
struct Fleet { int model, gpus; const char* gpu; integer rows; double tokens, published; };
constexpr Fleet FLEETS[] = {{1, 2048, "A100", 2048, 1.4e12, 21}, {0, 1024, "A100", 2048, 300e9, 34},
                            {0, 25000, "H100", 25000, 300e9, 0}};
inline Way fleet(const Fleet& f) {
    const Plan asked = {.c = MODELS[f.model].shape.config(), .gpu = *gpu_named(f.gpu), .gpus = f.gpus, .tensor = 0,
                        .zero = -1, .batch = 0, .stragglers = STRAGGLERS};
    return ways(asked, f.rows)[0];
}

inline void print_table() {
    printf("arithmetic: operations over a rate, which is no prediction\n%-38s %16s %11s %10s %6s %10s\n", "",
           "TFLOP/s a GPU", "formula", "published", "ratio", "GPU hours");
    for (const Arithmetic& a : ARITHMETIC)
        printf("%-38s %8.1f %-7s %11s %10s %6.3f %10.0f  %s\n", a.what, a.rate / 1e12, a.stated ? "stated" : "assumed",
               span(a.seconds()).c_str(), span(a.published).c_str(), a.seconds() / a.published, a.gpu_hours(),
               a.source);
    printf("\nmodel: one efficiency, %g of the floor, from steps on one H200\n%-18s %10s %3s %3s %10s %10s %6s\n",
           REACHED, "", "GPUs", "TP", "PP", "ms/step", "published", "ratio");
    for (const Measured& m : MEASURED) {
        const double seconds = step(m.plan()).seconds(), ratio = seconds / m.published();
        const char* note = !(std::abs(ratio - 1) <= 0.1) ? "  off by more than 10 %"
                         : m.pipeline > 1 ? "  a pipeline, which is not ours" : "";
        printf("%-18s %5d %s %3d %3d %10.0f %10.0f %6.3f%s\n", m.what, m.gpus, m.gpu, m.tensor, m.pipeline,
               1e3 * seconds, 1e3 * m.published(), ratio, note);
    }
    printf("\nthis program: the fastest way that fits\n%-18s %11s %3s %5s %6s %10s %6s %10s %10s  %s\n", "", "GPUs",
           "TP", "ZeRO", "batch", "ms/step", "MFU", "takes", "published", "not hidden");
    for (const Fleet& f : FLEETS) {
        const Way w = fleet(f);
        const Step s = step(w.plan);
        printf("%-18s %6d %s %3d %5d %6d %10.0f %5.1f%% %10s %10s  gradients %.0f %%, weights %.0f %%\n",
               MODELS[f.model].name, f.gpus, f.gpu, w.plan.tensor, w.plan.zero, w.plan.batch, 1e3 * w.seconds,
               100 * mfu(w.plan, w.seconds), span(f.tokens / w.plan.tokens() * w.seconds).c_str(),
               f.published > 0 ? span(f.published * DAY).c_str() : "", 100 * s[GRADIENTS] / w.seconds,
               100 * s[WEIGHTS] / w.seconds);
    }
}

// ---- options and the report -----------------------------------------------------------------------------------------
inline std::string names(const auto&... lists) {
    std::string s;
    auto add = [&](auto& list) {
        for (auto& each : list) s += (s.empty() ? "" : "|") + std::string(each.name);
    };
    (add(lists), ...);
    return s;
}
const std::string MODEL_NAMES = names(MODELS, PRESETS), GPU_NAMES = names(GPUS);

const Program PLAN = {
    "plan", {{'p', ""}}, "memory, time and cost of a run on one GPU or 25,000, before it is begun",
    "usage: plan [--option value]...      (plan --help lists all options)\n"
    "  plan --model d12 --gpu H100 --gpus 8 --tokens 10e9\n"
    "  plan --model gpt3-175b --gpu H200 --gpus 1024 --tokens 300e9 --price 3\n"
    "  plan --table\n"
    "  plan --adapters\n", ""};

struct Arguments {
    std::set<std::string> given = {};
    text model = "d12", gpu = "H100";
    integer layers = 0, heads = 0, channels = 0, vocab = 0, context = 0, gpus = 1, gpus_per_machine = 8;
    integer batch = 0, tokens_per_step = 0, zero = -1, tensor_parallel = 0;
    number tokens = 0, price = 0, stragglers = STRAGGLERS;
    flag published = false, adapters = false;

    Table table() {
        return {
            {"model", &model, MODEL_NAMES.c_str(), "p", "the shape of the model; custom: by the next five"},
            {"layers", &layers, "1..1000", "p", "layers [the model's]"},
            {"heads", &heads, "1..1000", "p", "attention heads [the model's]"},
            {"channels", &channels, "1..100000", "p", "channels [the model's]"},
            {"vocab", &vocab, "1..16777216", "p", "vocabulary [the model's]"},
            {"context", &context, "1..1048576", "p", "tokens of a row [the model's]"},
            {"tokens", &tokens, "1..1e18", "p", "tokens to train on [20 a parameter: Hoffmann et al. 2022]"},
            {"gpu", &gpu, GPU_NAMES.c_str(), "p", "type of all GPUs"},
            {"gpus", &gpus, "1..1000000", "p", "how many"},
            {"gpus_per_machine", &gpus_per_machine, "1..1024", "p", "how many of them a machine has"},
            {"tensor_parallel", &tensor_parallel, "1..1024", "p", "GPUs that share each layer [what is fastest]"},
            {"zero", &zero, "0..2", "p", "stage of ZeRO [what is fastest]"},
            {"batch", &batch, "1..65535", "p", "rows of a micro-batch [what is fastest]"},
            {"tokens_per_step", &tokens_per_step, "1..2147483647", "p", "tokens of an optimizer step [about GPT-3's, "
             "0.5M (P / 125M)^(1/4), and a row for each machine at least]"},
            {"price", &price, "0..1e6", "p", "of a GPU hour [no cost is told]"},
            {"stragglers", &stragglers, "0..1", "p", "standard deviation of a GPU's step, as a share"},
            {"adapters", &adapters, "", "p", "the largest model that learns on one card of 24 or 80 GB, its weights "
             "frozen in each form"},
            {"table", &published, "", "p", "what others published, beside these formulas, and a fleet of 25,000"},
        };
    }
};

// What is asked for, and the rows of a step.
inline std::pair<Plan, integer> asked(const Arguments& a) {
    const int machine = std::min(a.gpus, a.gpus_per_machine);
    Plan p = {.c = {}, .gpu = *gpu_named(a.gpu), .gpus = (int)a.gpus, .machine = machine,
              .tensor = (int)a.tensor_parallel, .zero = (int)a.zero, .batch = (int)a.batch, .stragglers = a.stragglers};
    Config& c = p.c;
    if (a.model == "custom" && (!a.layers || !a.heads || !a.channels))
        die_usage("--model custom: give --layers, --heads and --channels");
    for (const Preset& m : PRESETS) if (a.model == m.name) c = Shape{m.L, m.NH, m.C}.config();
    for (const Model& m : MODELS) if (a.model == m.name) c = m.shape.config();
    const std::pair<int*, integer> sizes[] = {{&c.L, a.layers}, {&c.NH, a.heads}, {&c.C, a.channels}, {&c.V, a.vocab},
                                              {&c.T, a.context}};
    for (auto [to, from] : sizes) if (from) *to = from;
    if (c.C % c.NH) die_usage("--channels %d: not a multiple of --heads %d", c.C, c.NH);
    if (p.gpus % p.machine) die_usage("--gpus %d: not a multiple of --gpus-per-machine %d", p.gpus, p.machine);
    const int both = std::gcd(p.machine, c.NH);
    if (p.tensor && both % p.tensor)
        die_usage("--tensor-parallel %d: must divide the %d GPUs of a machine and the %d heads", p.tensor, p.machine,
                  c.NH);
    if (a.tokens_per_step % c.T)
        die_usage("--tokens-per-step %lld: not a multiple of --context %d", a.tokens_per_step, c.T);
    if (a.tokens_per_step) return {p, a.tokens_per_step / c.T};
    // replicas of the largest way to share layers, times a power of two: a multiple of the others' replicas, too
    integer rows = p.gpus / (p.tensor ? p.tensor : both & -both) * std::max<integer>(a.batch, 1);
    const double usual = 524288 * std::pow(parameters(c, 1).all / 125e6, 0.25);
    while (0.75 * usual > (double)rows * c.T) rows *= 2;
    return {p, rows};
}

inline void print_plan(const Arguments& a) {
    auto [p, rows] = asked(a);
    const Config& c = p.c;
    const Gpu& g = p.gpu;
    const auto all = ways(p, rows);
    if (all.empty())
        die_usage("--tokens-per-step %lld: %lld rows do not divide among %d GPUs%s", a.tokens_per_step, rows, p.gpus,
                  p.batch ? format(" in batches of %d", p.batch).c_str() : "");
    const double P = parameters(c, 1).all, tokens = a.tokens > 0 ? a.tokens : 20 * P;
    const double step_tokens = (double)rows * c.T, steps = std::ceil(tokens / step_tokens);
    printf("%s: %.4g billion parameters; %d layers, %d heads, %d channels, vocabulary %d, context %d\n"
           "%d x %s, %d a machine: peak %.0f TFLOP/s, %.2f TB/s, %.0f GB; %.0f GB/s within a machine, "
           "%.3g GB/s across%s\n%.4g billion tokens, %.0f steps of %.0f\n\n",
           a.model.c_str(), P / 1e9, c.L, c.NH, c.C, c.V, c.T, p.gpus, g.name, p.machine, g.peak / 1e12,
           g.bandwidth / 1e12, g.memory / 1e9, g.link / 1e9, g.network / 1e9,
           g.capability < 80 ? " (train_gpt_cuda needs compute capability 8.0)" : "", tokens / 1e9, steps, step_tokens);
    printf("tensor parallel  ZeRO  batch  micro-batches  GB a GPU   ms/step     MFU  takes\n");
    for (const Way& w : all) {
        printf("%15d %5d %6d %14d %9.2f", w.plan.tensor, w.plan.zero, w.plan.batch, w.plan.micro, w.memory.all() / 1e9);
        if (!w.fits()) printf(" does not fit\n");
        else printf(" %9.1f %6.1f%%  %s\n", 1e3 * w.seconds, 100 * mfu(w.plan, w.seconds),
                    span(steps * w.seconds).c_str());
    }
    const auto& [best, m, seconds] = all[0];
    if (!all[0].fits())
        die("no way fits: %.2f GB a GPU at least, and %s has %.0f; take more GPUs, or larger ones", m.all() / 1e9,
            g.name, g.memory / 1e9);
    printf("\ntensor parallel %d, ZeRO %d, batch %d\na GPU's memory, %s; of the weights %.2f in fp32, of the "
           "activations %.2f kept for the backward pass\n\n%-30s %12s\n", best.tensor, best.zero, best.batch,
           m.text().c_str(), m.master / 1e9, m.kept / 1e9, "where a step's time goes", "ms");
    const Step s = step(best);
    for (int k = 0; k < PARTS; k++)
        if (s[k] > 0) printf("%-30s %12.2f %6.1f%%\n", PART[k], 1e3 * s[k], 100 * s[k] / seconds);
    if (!s.collectives.empty())
        printf("\n%-24s %8s %10s %12s %13s\n", "exchanges of a step", "times", "MB", "latency, us", "transfer, us");
    for (const Collective& e : s.collectives)
        printf("%-24s %8.0f %10.2f %12.1f %13.1f\n", e.name, e.times, e.bytes / 1e6, 1e6 * e.each.latency,
               1e6 * e.each.transfer);
    const double hours = steps * seconds / 3600 * p.gpus;
    printf("\n%.1f ms/step, %.0f tokens/s: %s, %.1f GPU hours%s\n", 1e3 * seconds, step_tokens / seconds,
           span(steps * seconds).c_str(), hours,
           a.price > 0 ? format(", %.2f at %g an hour", hours * a.price, a.price).c_str() : "");
}

/* The largest model of GPT-3's shapes (as many layers as heads, of 128 numbers) that learns on one card of 24 GB or 80,
   a row of 1024 tokens at a time: all its weights, or adapters of rank 8 beside all matrices, frozen in each form. */
inline void print_adapters() {
    printf("%-6s %-12s %7s %9s %10s  %s\n", "card", "trained", "layers", "channels", "billion", "memory");
    for (const char* card : {"4090", "A100"}) for (Form form : {Form::FP32, Form::BF16, Form::INT8, Form::NF4}) {
        Plan p = {.c = {}, .gpu = *gpu_named(card)};
        const bool adapts = form != Form::FP32;
        if (adapts) {
            p.c.rank = 8;
            p.c.form = form;
            p.c.targets = {"qkv", "proj", "fc", "fcproj"};
        }
        auto fits = [&](int n) {
            p.c.L = p.c.NH = n;
            p.c.C = 128 * n;
            return memory(p).all() <= p.gpu.memory;
        };
        int n = 1;
        while (fits(n + 1)) n++;
        fits(n);
        Config whole = p.c;
        whole.rank = 0;
        const std::string trained = adapts ? format("rank 8, %s", FORMS[(int)form]) : "all weights";
        printf("%-6s %-12s %7d %9d %10.2f  %s\n", card, trained.c_str(), n, p.c.C, parameters(whole, 1).all / 1e9,
               memory(p).text().c_str());
    }
}

#ifdef USE_MPI
/* exchange() beside this machine: the program's own all-reduce, of gradients as with ZeRO 0, between processes. Its
   terms are fitted to the smallest and the largest size; those between are predicted. One process exchanges nothing. */
inline void measure() {
    join_mpi();
    const int n = world().size;
    std::vector<std::pair<double, double>> measured;         // bytes, seconds: the least of 101
    for (size_t bytes = 1 << 10; bytes <= 4 << 20; bytes *= 4) {
        const size_t numbers = bytes / 4;
        Sharing<MpiLink, float> shares(Shares(world(), 0, numbers, 1, 1, numbers));
        std::vector<float> gradients(numbers, 1.0f), sums(shares.kept.back()), arrivals(shares.landing);
        shares.gradients = gradients.data();
        shares.sums = sums.data();
        shares.arrivals = arrivals.data();
        double least = INFINITY;
        for (int time = 0; time < 101; time++) {
            world().barrier();
            const double start = seconds();
            if (n > 1) {
                shares.reduce_gradients(1);
                shares.await_gradients();
                shares.gather_gradients();
            }
            least = std::min(least, seconds() - start);
        }
        measured.push_back({(double)bytes, least});
    }
    const auto [least, short_time] = measured[0];
    const auto [most, long_time] = measured.back();
    const double share = 2 * (n - 1.0) / n, bandwidth = share * (most - least) / (long_time - short_time);
    const Link link = {0, (short_time - share * least / bandwidth) / (2 * (n - 1.0)), bandwidth};
    if (n > 1) printf("%d processes: %.1f us a hop, %.2f GB/s\n", n, 1e6 * link.hop, bandwidth / 1e9);
    printf("%12s %14s %14s\n", "bytes", "measured, us", "predicted, us");
    for (auto [bytes, seconds] : measured)
        printf("%12.0f %14.1f %14.1f\n", bytes, 1e6 * seconds, 2e6 * exchange(n, n, bytes, link, link, true).seconds());
    leave_mpi();
}
#endif

}  // namespace plan

#ifdef USE_MPI
int main() { return run_main(plan::measure); }
#elif !defined NO_PLAN_MAIN
int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    if (words.empty()) return tell_usage(plan::PLAN);
    return run_main([&] {
        plan::Arguments a;
        if (answer(plan::PLAN, a.table(), words)) return;
        parse_words(plan::PLAN, words, a.table(), a.given);
        if (a.published) plan::print_table();
        else if (a.adapters) plan::print_adapters();
        else plan::print_plan(a);
    });
}
#endif
