/* dev/plan.cpp -- what a run needs and takes before it is paid for: memory of a GPU by purpose, what fits, the time of a
   step and where it goes, days, GPU hours, cost.

       make build/plan && build/plan --model gpt3-175b --gpu H100 --gpus 1024 --tokens 300e9 --price 2.5
       build/plan --table                        what others published, beside what these formulas give
       make build/plan_mpi && mpirun -np 2 build/plan_mpi --measure      the terms of an exchange, against this machine

   memory     Sizes are asked of train_gpt.cu, compiled as for its emulator: one table says what is allocated and what is
              planned. P parameters take 2 P bytes of weights, 4 P of master weights, 4 P of gradients, 8 P of moments.
   time       floor of a step: products and attention at 80 % of the card's peak, what else moves bytes at 90 % of its
              bandwidth, with the counts of gpu::Model::speed(), the SOL of a step line; here a product is also rounded up
              to tiles and to turns of all multiprocessors. A GPU computes for floor / REACHED; then come exchanges that
              nothing hides, and waiting for the slowest.
   ranks      Of n GPUs t share each layer (tensor parallel: Shoeybi et al. 2019, arXiv:1909.08053), within a machine; the
              n / t groups share the batch (ZeRO: Rajbhandari et al. 2019, arXiv:1910.02054): stage 0 keeps all of
              everything, 1 shards master weights and moments, 2 gradients, too.
   not seen   Starts of kernels, which tell in small models; what exchanges take from kernels beside them; reading data,
              checkpoints, validation, failures. */
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#ifdef PLAN_MPI
#include <mpi.h>
#endif

namespace plan {

// ---- cards ----------------------------------------------------------------------------------------------------------
// NVIDIA's data sheets of V100 SXM2, A100 and H100 SXM, H200, HGX B200 and Ada's white paper: FLOP/s dense in bf16 (V100:
// fp16) with fp32 sums, bytes/s and bytes of memory; bytes/s one way to the others of a machine (NVLink; PCIe 4.0 x16
// for the 4090), and across machines: DGX-1 has 4 x 100 Gb/s for 8 GPUs, DGX A100 8 x 200, H100, H200, B200 8 x 400, and a
// machine of 4090s is taken to have 100. Memory is sold in GB and made in GiB: the 7 % between are left to CUDA itself.
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

// Models beside the program's own: Brown et al. 2020, arXiv:2005.14165, table 2.1; GPT-2's layers at the sizes of LLaMA
// (Touvron et al. 2023, arXiv:2302.13971, table 2), whose three matrices of an MLP hold as much as our two.
struct Model { const char* name; int L, NH, C, V, T; };
constexpr Model MODELS[] = {{"gpt3-175b", 96, 96, 12288, 50257, 2048}, {"llama-65b", 80, 64, 8192, 32000, 2048}};

struct Plan {
    Config c;
    Gpu gpu;
    int gpus = 1, machine = 8;               // GPUs in all, and in a machine
    int tensor = 1, zero = 0;
    int batch = 1, micro = 1;                // rows of a micro-batch, micro-batches of a step: of each replica
    double stragglers = 0;
    // What others do and this program does not, for their rows in the table: stages of a pipeline; blocks computed again
    // before their backward pass; gradients added up over the micro-batches before they are reduced, not after each.
    int pipeline = 1;
    bool recompute = false, reduce_once = false;

    int replicas() const { return gpus / (tensor * pipeline); }
    double tokens() const { return (double)replicas() * micro * batch * c.T; }
};

// ---- memory ---------------------------------------------------------------------------------------------------------
// What tensor parallelism splits: the matrices and what stands between the two of a branch, the vocabulary (section 3).
inline bool is_split(const Tensor& t) {
    auto ends = [&](const char* with) { return t.name.ends_with(with); };
    return t.rows ? !ends("wpe.weight") : ends("attn.c_attn.bias") || ends("mlp.c_fc.bias");
}
inline const std::set<std::string> SPLIT = {"qkv", "att", "lse", "fc", "fc_gelu", "logits", "dwide", "scratch"};

struct Parameters { double all = 0, layer = 0, outside = 0; };               // of the model; of a GPU: a layer's, the others
inline Parameters parameters(const Config& c, int tensor) {
    Parameters n;
    for (auto& [per, t] : tensor_rows(c)) {
        if (!t.present) continue;
        n.all += t.count() * double(per == BLOCK ? c.L : 1);
        (per == BLOCK ? n.layer : n.outside) += double(t.count()) / (is_split(t) ? tensor : 1);
    }
    return n;
}

struct Memory {
    double weights, master, gradients, moments, kept, scratch;
    double activations() const { return kept + scratch; }
    double all() const { return weights + master + gradients + moments + activations(); }
};
/* bytes of one GPU
   here     kept is what a layer leaves for its backward pass; scratch all else that a step computes, with cuBLASLt's
            workspace. Gradients of stage 2: a shard, two layers' whole ones in turn, and those outside of layers, which the
            head begins and the embedding ends. The arenas' padding, for t > 1, is taken as t = 1 has it */
inline Memory memory(const Plan& p) {
    auto& card = gpu::device().properties;                   // what depends on the card: ask for one, of all plans
    card.multiProcessorCount = p.gpu.sms, card.major = p.gpu.capability / 10, card.minor = p.gpu.capability % 10;
    const Parameters n = parameters(p.c, p.tensor);
    const double numbers = (double)Layout(p.c, gpu::VOCABULARY_TILE, gpu::BF16).slots.size;
    const double own = numbers * (n.layer * p.c.L + n.outside) / n.all, shard = own / p.replicas();
    auto arrays = gpu::activation_arrays(p.c, p.batch, p.c.T, true);
    double kept = 0;
    size_t k = 0;
#define X(type, field, ...) if (SPLIT.count(#field)) arrays[k].second = gpu::ceil_div(arrays[k].second, (size_t)p.tensor); k++;
    GPU_ACTIVATIONS(X)
#undef X
    for (auto& [per, units] : arrays) if (per == BLOCK) kept += 16.0 * p.c.L * ((units + 127) / 128 * 128);
    const double all = 16.0 * Slots(arrays, p.c.L).size + gpu::device().workspace_size;
    const double sharded = p.zero > 0 ? shard : own, beside = p.replicas() > 1 ? 2 * n.layer + n.outside : 0;
    return {sizeof(gpu::floatX) * own, 4 * sharded, 4 * (p.zero > 1 ? shard + beside : own), 8 * sharded, kept, all - kept};
}

// ---- time -----------------------------------------------------------------------------------------------------------
/* What of the floor's speed whole steps reach: .749 and .783 in GPT-2 124M, 64 x 1024, and 1.5B, 16 x 1024, on one H200
   (dev/results/h200.md, 2026-11-27). Fitted to these two and to nothing else, before any other row of the table. */
constexpr double REACHED = 0.765;

/* A product (M,N) = (M,K) (K,N) at the floor's rates, seconds: tiles of 128 x 128, one a multiprocessor in each turn; where
   they are few, K is cut into parts of 512 and more. */
inline double product(const Gpu& g, double M, double N, double K) {
    const double tiles = std::ceil(M / 128) * std::ceil(N / 128);
    double turns = std::ceil(tiles / g.sms);
    for (int parts = 2; parts <= 16 && K / parts >= 512; parts++) turns = std::min(turns, std::ceil(tiles * parts / g.sms) / parts);
    return std::max(turns * g.sms * 2 * 128 * 128 * K / (0.8 * g.peak), 2 * (M * K + K * N + M * N) / (0.9 * g.bandwidth));
}

// Seconds to begin, seconds for a hop, bytes/s. NCCL's own model of a ring (src/graph/tuning.cc, "simple" protocol) has 8.4
// us, 3.4 by NVLink, 5.7 by PCIe, 9.6 by the network, and 235 GB/s of an A100's 300: LINK, here of every link.
constexpr double LINK = 0.8;
struct Link { double begin, hop, bandwidth; };
inline Link within(const Gpu& g) { return {8.4e-6, g.nvlink ? 3.4e-6 : 5.7e-6, LINK * g.link}; }
inline Link across(const Gpu& g) { return {8.4e-6, 9.6e-6, LINK * g.network}; }

/* A reduce-scatter or an all-gather over n ranks, `inside` of them in each machine; an all-reduce is one of each.
   math     begin + sum of n - 1 hops + (n - 1) / n bytes / bandwidth;   across machines those inside use their links at once
   source   Thakur et al. 2005, section 4, ring; Patarasuk & Yuan 2009 */
struct Exchange {
    double latency = 0, transfer = 0;
    double seconds() const { return latency + transfer; }
};
inline Exchange ring(int n, int inside, double bytes, const Link& in, const Link& out) {
    if (n < 2) return {};
    const int outer = gpu::ceil_div(n, inside) - 1, inner = n - 1 - outer;
    const double bandwidth = outer ? std::min(inside > 1 ? in.bandwidth : INFINITY, inside * out.bandwidth) : in.bandwidth;
    return {(outer ? out : in).begin + inner * in.hop + outer * out.hop, (n - 1.0) / n * bytes / bandwidth};
}

enum Part { BLOCKS, HEAD, ATTENTION, BYTES, OPTIMIZER, MISSED, TENSOR, GRADIENTS, WEIGHTS, NORM, BUBBLE, STRAGGLERS, PARTS };
constexpr const char* PART[PARTS] = {
    "products of the blocks", "products of the head", "attention", "norms, loss, embedding", "AdamW", "what kernels miss of the floor",
    "tensor parallel: all-reduces of activations", "gradients that nothing hides", "weights that nothing hides", "gradient norm",
    "pipeline's bubble", "waiting for the slowest"};
struct Collective { const char* name; double times, bytes; Exchange each; double exposed; };
struct Step {
    std::array<double, PARTS> part = {};
    std::vector<Collective> collectives;
    double seconds() const { return std::accumulate(part.begin(), part.end(), 0.0); }
};

/* The schedule of a step
   compute   a micro-batch runs forward through L layers, the head, and back; each layer's products are of N x OC x K
   tensor    two all-reduces of (N,C) a layer forward, two backward; one for the embedding, one for the head's dx. All wait
   gradients fp32; a layer's are reduce-scattered during the backward pass of the layer before it. What is left: what takes
             longer than that, and the last layer's and the tables', behind which only another micro-batch's forward pass
             runs. Stage 0 gathers them again at the end, an all-reduce
   weights   stages 1, 2: bf16, gathered one layer ahead of the next forward pass, which begins with the tables' and the first's
   norm      one number, by a tree
   bubble    (p - 1) / micro-batches of the computing (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1)
   slowest   of n steps whose standard deviation is s of their mean, the longest takes s sqrt(2 ln n) more */
inline Step step(const Plan& p) {
    const Config& c = p.c;
    const Gpu& g = p.gpu;
    const Link in = within(g), out = across(g);
    const double N = (double)p.batch * c.T, t = p.tensor, L = (double)c.L / p.pipeline, rate = 0.8 * g.peak, bandwidth = 0.9 * g.bandwidth;
    const Parameters n = parameters(c, p.tensor);
    auto products = [&](double OC, double K, bool backward) {
        return backward ? product(g, N, K, OC) + product(g, K, OC, N) : product(g, N, OC, K);
    };
    const double X = N * c.C * sizeof(gpu::floatX), logits = N * c.V / t * sizeof(gpu::floatX), once = 1.0 / p.pipeline;
    const double all_reduce = 2 * ring(p.tensor, p.tensor, X, in, out).seconds();
    std::array<double, PARTS> layer[2] = {}, micro = {};     // of a layer, forward and backward; of a micro-batch
    for (bool backward : {false, true}) {
        auto& part = layer[backward];
        part[BLOCKS] = products(c.qkv() / t, c.C, backward) + products(c.C, c.C / t, backward) +
                       products(c.hidden() / t, c.C, backward) + products(c.C, c.hidden() / t, backward);
        part[ATTENTION] = (backward ? 4 : 2) * N * c.T * c.C / t / rate;
        part[BYTES] = (backward ? 8 : 4) * X / bandwidth;
        part[TENSOR] = 2 * all_reduce;
        micro[HEAD] += once * products(c.V / t, c.C, backward);
    }
    micro[BYTES] = once * (11 * X + 2 * logits) / bandwidth;
    micro[TENSOR] = once * 2 * all_reduce;
    auto compute = [](const std::array<double, PARTS>& a) {
        return (a[BLOCKS] + a[HEAD] + a[ATTENTION] + a[BYTES]) / REACHED + a[TENSOR];
    };
    const double forward = compute(layer[0]), backward = compute(layer[1]) + p.recompute * forward;
    const double whole = L * (forward + backward) + compute(micro);
    Step s;
    for (int k = 0; k < PARTS; k++) s.part[k] = p.micro * (L * ((1 + p.recompute) * layer[0][k] + layer[1][k]) + micro[k]);
    s.part[OPTIMIZER] = 38 * (L * n.layer + n.outside) / (p.zero ? p.replicas() : 1) / bandwidth;
    s.part[MISSED] = (1 / REACHED - 1) * (s.part[BLOCKS] + s.part[HEAD] + s.part[ATTENTION] + s.part[BYTES] + s.part[OPTIMIZER]);

    const int d = p.replicas(), inside = std::min(d, std::max(1, p.machine / p.tensor)), later = p.reduce_once ? 0 : p.micro - 1;
    auto exchange = [&](double bytes) { return ring(d, inside, bytes, in, out); };
    const Exchange of_layer = exchange(4 * n.layer), of_weights = exchange(2 * n.layer);
    const double one = of_layer.seconds(), tables = exchange(4 * n.outside).seconds(), passes = p.zero ? 1 : 2;
    auto beyond = [&](double each, double hidden_by) { return (L - 1) * std::max(0.0, each - hidden_by); };
    s.part[GRADIENTS] = later * (beyond(one, backward) + std::max(0.0, one + tables - L * forward)) +
                        beyond(passes * one, backward) + passes * (one + tables);
    if (p.zero) s.part[WEIGHTS] = beyond(of_weights.seconds(), forward) + of_weights.seconds() + exchange(2 * n.outside).seconds();
    const int machines = gpu::ceil_div(p.gpus, p.machine), local = std::min(p.gpus, p.machine);
    if (p.gpus > 1) s.part[NORM] = in.begin + 2 * ((local - 1) * in.hop + std::ceil(std::log2(machines)) * out.hop);
    s.part[BUBBLE] = (p.pipeline - 1) * whole;
    s.part[STRAGGLERS] = p.stragglers * std::sqrt(2 * std::log(p.gpus)) * s.seconds();

    const Exchange activations = ring(p.tensor, p.tensor, X, in, out);
    const double all_reduces = p.micro * (L * (4 + 2 * p.recompute) + 2 * once);
    if (p.tensor > 1) s.collectives.push_back({"activations (N,C), both ways", 2 * all_reduces, X, activations, s.part[TENSOR]});
    if (d > 1) s.collectives.push_back({"gradients of a layer", L * (later + passes), 4 * n.layer, of_layer, s.part[GRADIENTS]});
    if (d > 1 && p.zero) s.collectives.push_back({"weights of a layer", L, 2 * n.layer, of_weights, s.part[WEIGHTS]});
    return s;
}

inline double mfu(const Plan& p, double seconds) {
    return p.tokens() * p.c.flops_per_token(parameters(p.c, 1).all, 0, p.c.T) / (seconds * p.gpus * p.gpu.peak);
}

// ---- choosing -------------------------------------------------------------------------------------------------------
struct Way { Plan plan; Memory memory; double seconds; bool fits; };

// Each way to divide the work of a step of so many rows: with the fastest batch that fits, or the least, which does not.
// What is 0 (zero: -1) in `asked` is tried. The fastest first; those that do not fit last, the nearest first.
inline std::vector<Way> ways(const Plan& asked, integer rows) {
    std::vector<Way> all;
    for (int t = 1; t <= std::min(asked.machine, asked.gpus); t++) {
        if (asked.tensor ? t != asked.tensor : asked.machine % t || (t & (t - 1))) continue;
        const int replicas = asked.gpus / t;
        if (asked.gpus % t || asked.c.NH % t || rows % replicas) continue;
        for (int zero = 0; zero <= (replicas > 1 ? 2 : 0); zero++) {
            if (asked.zero >= 0 && zero != asked.zero && replicas > 1) continue;
            std::optional<Way> best;
            for (integer b = 1; b <= std::min<integer>(rows / replicas, 65535); b++) {
                if (rows / replicas % b || (asked.batch && b != asked.batch)) continue;
                Way way = {asked, {}, 0, false};
                way.plan.tensor = t, way.plan.zero = zero, way.plan.batch = b, way.plan.micro = rows / replicas / b;
                way.memory = memory(way.plan), way.seconds = step(way.plan).seconds();
                way.fits = way.memory.all() <= asked.gpu.memory;
                if (!best || (way.fits && way.seconds < best->seconds)) best = way;
                if (!way.fits) break;
            }
            if (best) all.push_back(*best);
        }
    }
    std::stable_sort(all.begin(), all.end(), [](const Way& a, const Way& b) {
        if (a.fits != b.fits) return a.fits;
        return a.fits ? a.seconds < b.seconds : a.memory.all() < b.memory.all();
    });
    return all;
}

inline std::string span(double seconds) {
    const double days = seconds / 86400;
    return days > 730 ? format("%.0f years", days / 365.25) : days >= 2 ? format("%.1f days", days)
         : seconds >= 7200 ? format("%.1f hours", seconds / 3600) : format("%.1f minutes", seconds / 60);
}

// ---- what others published ------------------------------------------------------------------------------------------
// Arithmetic: the seconds that a x P x tokens operations take at a rate; a is 6 or, where blocks are computed twice, 8
// (Narayanan et al. 2021, section 5.1, eq. 4). Nothing is predicted: the rate is stated by the source, or assumed.
struct Arithmetic { const char* what; double a, parameters, tokens, gpus, rate; bool stated; double published; const char* source; };
constexpr double DAY = 86400, YEAR = 365.25 * DAY, MONTH = YEAR / 12;
constexpr Arithmetic ARITHMETIC[] = {
    {"GPT-3 on one V100", 8, 175e9, 300e9, 1, 46e12, false, 288 * YEAR, "Narayanan et al. 2021"},
    {"GPT-3 on one V100, by another estimate", 6, 175e9, 300e9, 1, 28e12, true, 355 * YEAR, "Lambda Labs 2020"},
    {"GPT-3 on 8 V100", 8, 175e9, 300e9, 8, 46e12, false, 36 * YEAR, "NVIDIA's blog, 2021"},
    {"GPT-3 on 512 V100", 8, 175e9, 300e9, 512, 46e12, false, 7 * MONTH, "NVIDIA's blog, 2021"},
    {"GPT-3 on 1,024 A100", 8, 175e9, 300e9, 1024, 140e12, true, 34 * DAY, "Narayanan et al. 2021"},
    {"GPT of 1T on 3,072 A100, 450B tokens", 8, 1008e9, 450e9, 3072, 163e12, true, 84 * DAY, "Narayanan et al. 2021"},
    {"LLaMA-65B on 2,048 A100, 1.4T tokens", 6, 65.2e9, 1.4e12, 2048, 380 * 6 * 65.2e9, true, 21 * DAY, "Touvron et al. 2023"}};

// Steps that were measured, and the model's prediction. rate: TFLOP/s a GPU as Megatron counts them, else seconds a step.
// Its rows of one replica go one by one through p stages, in order (the paper does not say how the rows were measured).
struct Measured { const char* what; int L, NH, C, V, T, gpu, gpus, t, p, batch, rows, zero; bool megatron; double seconds, rate; };
constexpr Measured MEASURED[] = {
    {"llm.c, 124M, 8 A100", 12, 12, 768, 50257, 1024, 2, 8, 1, 1, 64, 512, 1, false, 0.300, 0},
    {"llm.c, 350M, 8 A100", 24, 16, 1024, 50257, 1024, 2, 8, 1, 1, 64, 512, 1, false, 0.820, 0},
    {"llm.c, 774M, 8 A100", 36, 20, 1280, 50257, 1024, 2, 8, 1, 1, 32, 512, 1, false, 1.7, 0},
    {"llm.c, 124M, 8 H100", 12, 12, 768, 50257, 1024, 3, 8, 1, 1, 64, 512, 1, false, 45 * 60 / 18865.0, 0},
    {"llm.c, 1.5B, 8 H100", 48, 25, 1600, 50257, 1024, 3, 8, 1, 1, 16, 1024, 1, false, 2.80, 0},
    {"Megatron, 1.7B", 24, 24, 2304, 51200, 2048, 2, 32, 1, 1, 1, 512, 0, true, 0, 137},
    {"Megatron, 3.6B", 30, 32, 3072, 51200, 2048, 2, 64, 2, 1, 1, 512, 0, true, 0, 138},
    {"Megatron, 7.5B", 36, 32, 4096, 51200, 2048, 2, 128, 4, 1, 1, 512, 0, true, 0, 142},
    {"Megatron, 18.4B", 40, 48, 6144, 51200, 2048, 2, 256, 8, 1, 1, 1024, 0, true, 0, 135},
    {"Megatron, 39.1B", 48, 64, 8192, 51200, 2048, 2, 512, 8, 2, 1, 1536, 0, true, 0, 138},
    {"Megatron, 76.1B", 60, 80, 10240, 51200, 2048, 2, 1024, 8, 4, 1, 1792, 0, true, 0, 140},
    {"Megatron, 145.6B", 80, 96, 12288, 51200, 2048, 2, 1536, 8, 8, 1, 2304, 0, true, 0, 148},
    {"Megatron, 310.1B", 96, 128, 16384, 51200, 2048, 2, 1920, 8, 16, 1, 2160, 0, true, 0, 155},
    {"Megatron, 529.6B", 105, 128, 20480, 51200, 2048, 2, 2520, 8, 35, 1, 2520, 0, true, 0, 163},
    {"Megatron, 1008.0B", 128, 160, 25600, 51200, 2048, 2, 3072, 8, 64, 1, 3072, 0, true, 0, 163}};

inline Config shape(const Model& m) {
    Config c;
    c.L = m.L, c.NH = m.NH, c.C = m.C, c.V = m.V, c.T = m.T;
    return c;
}
constexpr double STRAGGLERS_DEFAULT = 0.01;  // cards of one kind differ by 2 to 3 % (dev/results/h200.md)
inline Plan plan_of(const Measured& m) {
    Plan p = {.c = shape({m.what, m.L, m.NH, m.C, m.V, m.T}), .gpu = GPUS[m.gpu], .gpus = m.gpus, .tensor = m.t, .zero = m.zero,
              .batch = m.batch, .stragglers = STRAGGLERS_DEFAULT, .pipeline = m.p, .recompute = m.megatron, .reduce_once = true};
    p.micro = m.rows / (p.replicas() * m.batch);
    return p;
}
/* math     96 B T L C^2 (1 + T / 6C + V / 16 L C) operations a step: all of attention, blocks twice forward
   source   Narayanan et al. 2021, appendix, eq. 3; its table 1 */
inline double published(const Measured& m) {
    const double C = m.C, operations = 96.0 * m.rows * m.T * m.L * C * C * (1 + m.T / (6 * C) + m.V / (16 * m.L * C));
    return m.rate > 0 ? operations / (m.gpus * m.rate * 1e12) : m.seconds;
}
inline double arithmetic(const Arithmetic& a) { return a.a * a.parameters * a.tokens / (a.gpus * a.rate); }

// GPT-3 on a fleet: the fastest of all ways that fit.
inline Plan fleet_plan() {
    const Plan asked = {.c = shape(MODELS[0]), .gpu = GPUS[3], .gpus = 25000, .tensor = 0, .zero = -1, .batch = 0, .stragglers = STRAGGLERS_DEFAULT};
    return ways(asked, 3125)[0].plan;
}

inline void print_table() {
    printf("arithmetic: operations over a rate that the source states or that is assumed; nothing is predicted\n"
           "%-40s %18s %13s %11s %6s\n", "", "TFLOP/s a GPU", "formula", "published", "ratio");
    for (const Arithmetic& a : ARITHMETIC)
        printf("%-40s %9.1f %-8s %13s %11s %6.3f  %s\n", a.what, a.rate / 1e12, a.stated ? "stated" : "assumed", span(arithmetic(a)).c_str(),
               span(a.published).c_str(), arithmetic(a) / a.published, a.source);
    printf("\nmodel: steps that were measured, predicted with REACHED %g of one H200's steps and nothing of their own\n"
           "%-24s %5s %3s %3s %12s %13s %6s\n", REACHED, "", "GPUs", "TP", "PP", "predicted, s", "published, s", "ratio");
    for (const Measured& m : MEASURED) {
        const double predicted = step(plan_of(m)).seconds(), ratio = predicted / published(m);
        printf("%-24s %5d %3d %3d %12.3f %13.3f %6.3f%s%s\n", m.what, m.gpus, m.t, m.p, predicted, published(m), ratio,
               std::abs(ratio - 1) <= 0.1 ? "" : "  off by more than 10 %", m.p > 1 ? "  (a pipeline, which is not ours)" : "");
    }
    const Plan fleet = fleet_plan();
    const double seconds = step(fleet).seconds();
    printf("\nfleet: %s on 25,000 %s, 300B tokens in steps of %.1fM, TP %d, ZeRO %d, batch %d: %s, MFU %.0f %%\n", MODELS[0].name,
           fleet.gpu.name, fleet.tokens() / 1e6, fleet.tensor, fleet.zero, fleet.batch, span(300e9 / fleet.tokens() * seconds).c_str(),
           100 * mfu(fleet, seconds));
}

// ---- options and the report -----------------------------------------------------------------------------------------
inline std::string names(const auto&... lists) {
    std::string s;
    auto add = [&](const char* name) { s += (s.empty() ? "" : "|") + std::string(name); };
    (std::for_each(std::begin(lists), std::end(lists), [&](auto& each) { add(each.name); }), ...);
    return s;
}
const std::string MODEL_NAMES = names(PRESETS, MODELS) + "|custom", GPU_NAMES = names(GPUS);

const Program PLAN = {
    "plan", {{'p', ""}}, "memory, time and cost of a run on one GPU or 25,000, before it is begun",
    "usage: plan [--option value]...      (plan --help lists all options)\n"
    "  plan --model d12 --gpu H100 --gpus 8 --tokens 10e9\n"
    "  plan --model gpt3-175b --gpu H200 --gpus 1024 --tokens 300e9 --price 3\n"
    "  plan --table\n", ""};

struct Arguments {
    std::set<std::string> given = {};
    text model = "d12", gpu = "H100";
    integer layers = 0, heads = 0, channels = 0, vocab = 0, context = 0, gpus = 1, gpus_per_machine = 8;
    integer batch = 0, tokens_per_step = 0, zero = -1, tensor_parallel = 0;
    number tokens = 0, price = 0, stragglers = STRAGGLERS_DEFAULT;
    flag published = false, measure = false;

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
            {"tokens_per_step", &tokens_per_step, "1..1e12", "p", "tokens of an optimizer step [as GPT-3's grow: 0.5M (P / 125M)^(1/4), and a row at least for each machine]"},
            {"price", &price, "0..1e6", "p", "of a GPU hour [no cost is told]"},
            {"stragglers", &stragglers, "0..1", "p", "standard deviation of a GPU's step, as a share"},
            {"table", &published, "", "p", "what others published, beside these formulas, and a fleet of 25,000"},
            {"measure", &measure, "", "p", "under mpirun (build/plan_mpi): the terms of an exchange, fitted and checked"},
        };
    }
};

// What is asked for, and the rows of a step.
inline std::pair<Plan, integer> asked(const Arguments& a) {
    Plan p;
    Config& c = p.c;
    if (a.model == "custom" && (!a.layers || !a.heads || !a.channels)) die_usage("--model custom: give --layers, --heads and --channels");
    for (const Preset& m : PRESETS) if (a.model == m.name) c.L = m.L, c.NH = m.NH, c.C = m.C;
    for (const Model& m : MODELS) if (a.model == m.name) c = shape(m);
    for (auto [to, from] : {std::pair(&c.L, a.layers), {&c.NH, a.heads}, {&c.C, a.channels}, {&c.V, a.vocab}, {&c.T, a.context}})
        if (from) *to = from;
    if (c.C % c.NH) die_usage("--channels %d: not a multiple of --heads %d", c.C, c.NH);
    p.gpu = *std::find_if(std::begin(GPUS), std::end(GPUS), [&](const Gpu& g) { return a.gpu == g.name; });
    p.gpus = a.gpus, p.machine = std::min(a.gpus, a.gpus_per_machine), p.stragglers = a.stragglers;
    p.tensor = a.tensor_parallel, p.zero = a.zero, p.batch = a.batch;
    if (p.gpus % p.machine) die_usage("--gpus %d: not a multiple of --gpus-per-machine %d", p.gpus, p.machine);
    if (p.tensor && (p.machine % p.tensor || c.NH % p.tensor))
        die_usage("--tensor-parallel %d: must divide the %d GPUs of a machine and the %d heads", p.tensor, p.machine, c.NH);
    if (a.tokens_per_step % c.T) die_usage("--tokens-per-step %lld: not a multiple of --context %d", a.tokens_per_step, c.T);
    if (a.tokens_per_step) return {p, a.tokens_per_step / c.T};
    // a power of two for each machine, or for each group that shares its layers, so that every way divides it
    integer rows = p.gpus / std::gcd(p.tensor ? p.tensor : p.machine, p.gpus);
    const double usual = 524288 * std::pow(parameters(c, 1).all / 125e6, 0.25);
    while ((double)rows * c.T < 0.75 * usual || (a.batch && rows < p.gpus * a.batch)) rows *= 2;
    return {p, rows};
}

inline void print_plan(const Arguments& a) {
    auto [p, rows] = asked(a);
    const Config& c = p.c;
    const double P = parameters(c, 1).all, tokens = a.tokens > 0 ? a.tokens : 20 * P, GB = 1e-9;
    const auto all = ways(p, rows);
    if (all.empty())
        die_usage("--tokens-per-step %lld: %lld rows do not divide among %d GPUs%s; give a multiple of %lld", (long long)rows * c.T, (long long)rows,
                  p.gpus, p.batch ? format(" in batches of %d", p.batch).c_str() : "",
                  (long long)p.gpus / std::max(p.tensor, 1) * std::max(p.batch, 1) * c.T);
    const double step_tokens = (double)rows * c.T, steps = std::ceil(tokens / step_tokens);
    printf("%s: %.4g billion parameters; %d layers, %d heads, %d channels, vocabulary %d, context %d\n", a.model.c_str(), P / 1e9, c.L, c.NH, c.C,
           c.V, c.T);
    printf("%d x %s, %d a machine: peak %.0f TFLOP/s, %.2f TB/s, %.0f GB; %.0f GB/s to a neighbour, %.3g GB/s to another machine%s\n", p.gpus,
           p.gpu.name, p.machine, p.gpu.peak / 1e12, p.gpu.bandwidth / 1e12, p.gpu.memory * GB, p.gpu.link * GB, p.gpu.network * GB,
           p.gpu.capability < 80 ? " (train_gpt_cuda needs compute capability 8.0)" : "");
    printf("%.4g billion tokens in %.0f steps of %.0f\n\ntensor parallel  ZeRO  batch  micro-batches  GB a GPU  ms/step    MFU  takes\n",
           tokens / 1e9, steps, step_tokens);
    for (const Way& w : all) {
        printf("%15d  %4d  %5d  %13d  %8.2f  ", w.plan.tensor, w.plan.zero, w.plan.batch, w.plan.micro, w.memory.all() * GB);
        if (w.fits) printf("%7.1f  %4.1f%%  %s\n", 1e3 * w.seconds, 100 * mfu(w.plan, w.seconds), span(steps * w.seconds).c_str());
        else printf("does not fit\n");
    }
    if (!all[0].fits)
        die("%.2f GB a GPU at least, a %s has %.0f; take more GPUs, or ones with more memory, or lower --context", all[0].memory.all() * GB,
            p.gpu.name, p.gpu.memory * GB);
    const Plan& best = all[0].plan;
    const Memory& m = all[0].memory;
    const Step s = step(best);
    printf("\nmemory of a GPU, tensor parallel %d, ZeRO %d, batch %d: %.2f GB: weights %.2f, master weights %.2f, gradients %.2f, moments %.2f, "
           "activations %.2f (%.2f kept for the backward pass)\n", best.tensor, best.zero, best.batch, m.all() * GB, m.weights * GB, m.master * GB,
           m.gradients * GB, m.moments * GB, m.activations() * GB, m.kept * GB);
    printf("\n%-46s %10s %7s\n", "where a step's time goes", "ms", "");
    for (int k = 0; k < PARTS; k++)
        if (s.part[k] > 0) printf("%-46s %10.2f %6.1f%%\n", PART[k], 1e3 * s.part[k], 100 * s.part[k] / s.seconds());
    if (!s.collectives.empty()) printf("\n%-30s %7s %9s %11s %12s %12s\n", "exchanges of a step", "times", "MB", "latency, us", "transfer, us", "not hidden");
    for (const Collective& e : s.collectives)
        printf("%-30s %7.0f %9.2f %11.1f %12.1f %9.2f ms\n", e.name, e.times, e.bytes / 1e6, 1e6 * e.each.latency, 1e6 * e.each.transfer, 1e3 * e.exposed);
    const double seconds = steps * s.seconds(), hours = seconds / 3600 * p.gpus;
    printf("\n%.1f ms/step, %.0f tokens/s: %s, %.4g GPU hours%s\n", 1e3 * s.seconds(), step_tokens / s.seconds(), span(seconds).c_str(), hours,
           a.price > 0 ? format(", %.4g at %g each", hours * a.price, a.price).c_str() : "");
}

#ifdef PLAN_MPI
/* ring() beside this machine: an all-reduce, as a reduce-scatter and an all-gather of MPI's. The terms are fitted to the
   smallest and the largest size; those between are predicted. With one process there is no exchange, and none is predicted. */
inline void measure() {
    int rank, n;
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &n);
    std::vector<size_t> sizes;
    std::vector<double> seconds;
    for (size_t bytes = 1 << 10; bytes <= 64 << 20; bytes *= 4) {
        std::vector<float> x(bytes / 4 / n * n, 1.0f);
        std::vector<double> times;
        for (int turn = 0; turn < 31; turn++) {
            MPI_Barrier(MPI_COMM_WORLD);
            const double start = MPI_Wtime();
            MPI_Reduce_scatter_block(MPI_IN_PLACE, x.data(), x.size() / n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, x.data(), x.size() / n, MPI_FLOAT, MPI_COMM_WORLD);
            times.push_back(MPI_Wtime() - start);
        }
        std::nth_element(times.begin(), times.begin() + 15, times.end());
        sizes.push_back(x.size() * 4), seconds.push_back(times[15]);
    }
    const double moved = 2 * (n - 1.0) / n, slope = (seconds.back() - seconds[0]) / (moved * (sizes.back() - sizes[0]));
    const Link link = {0, (seconds[0] - slope * moved * sizes[0]) / (2.0 * (n - 1)), 1 / slope};
    if (rank == 0 && n > 1) printf("%d processes: %.1f us a hop, %.2f GB/s\n", n, 1e6 * link.hop, link.bandwidth / 1e9);
    if (rank == 0) printf("%12s %14s %14s %6s\n", "bytes", "measured, us", "predicted, us", "ratio");
    for (size_t i = 0; i < sizes.size() && rank == 0; i++) {
        const double predicted = 2 * ring(n, n, sizes[i], link, link).seconds();
        printf("%12zu %14.1f %14.1f %6s\n", sizes[i], 1e6 * seconds[i], 1e6 * predicted, n > 1 ? format("%.2f", predicted / seconds[i]).c_str() : "");
    }
    MPI_Finalize();
}
#else
inline void measure() { die_usage("--measure: make build/plan_mpi && mpirun -np 2 build/plan_mpi --measure"); }
#endif

}  // namespace plan

#ifndef NO_PLAN_MAIN
int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    if (words.empty()) return fputs(plan::PLAN.usage, stderr), 2;
    return run_main([&] {
        plan::Arguments a;
        if (answer(plan::PLAN, a.table(), words)) return;
        parse_words(plan::PLAN, words, a.table(), a.given);
        if (a.measure) plan::measure();
        else if (a.published) plan::print_table();
        else plan::print_plan(a);
    });
}
#endif
