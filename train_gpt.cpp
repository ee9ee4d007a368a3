/* train_gpt.cpp -- a complete GPT-2 trainer for the CPU.

   It pretrains from scratch or from a checkpoint, fine-tunes (SFT, reward models, RL), evaluates, samples, chats, draws
   small models as state graphs, and reads and writes Hugging Face checkpoints. It is also the reference for faster
   kernels: train_gpt.cu includes this file and puts its own layers behind section 7's network.
   There is no dropout, and no architecture but GPT-2. Its speed comes from loop order, from vector types in the matrix
   product and from the compiler; the only intrinsics are those of units for bf16 products, in dev/host/units.h.

     make run                                              build, make a corpus, train on it, show what it learned
     ./train_gpt train --train build/corpus_data/train.bin --val build/corpus_data/val.bin --init d6 --out runs/a
     ./train_gpt sample --model runs/a --prompt "Once"     and chat, eval, graph; --help lists every option

   The letters, here and in every comment below:
     B rows of a batch    T tokens of a row (time)    N = B*T    C channels    L layers
     V vocabulary         NH heads                    HS = C/NH head size      OC output channels of a product
   dx is the gradient of the loss with respect to x. A matrix (R,K) is row-major: element (r,k) stands at r*K + k. The
   matrix product alone has letters of its own: C (M,N) = A (M,K) B (K,N).

   Top to bottom:
      1 options            2 config and tensors     3 rows and stages      4 scalar maths               5 layers
      6 matrix product     7 model                  8 model files          9 evaluate, sample, chat    10 train, 11 main
   At a first reading take the headers of dev/host on trust, and look into four where their types come up: arena.h
   (Slots, Slice), packed.h (Form, Place), vectors.h (Matrix), comm.h (Shares, Group). */

#include "dev/host/adapters.h"
#include "dev/host/chat.h"
#include "dev/host/checkpoints.h"
#include "dev/host/display.h"
#include "dev/host/options.h"
#include "dev/host/pattern.h"
#include "dev/host/rows.h"
#include "dev/host/scorer.h"
#include "dev/host/units.h"

// ---- 1. options -----------------------------------------------------------------------------------------------------
// One row an option: struct, parser, --help, start-up print and the list kept in checkpoints all come from this table,
// whose columns dev/host/options.h explains. To add one, add a row. Verbs: t(rain), s(ample), c(hat), e(val), g(raph).
#ifndef PROGRAM                  // train_gpt.cu has other ones
#define PROGRAM "train_gpt"
#define PROGRAM_HELP \
    "Step lines: GFLOP/s counts 6 P + 6 L C T floating point operations a token (P parameters; causal attention\n" \
    "counted once), and % is of the maximum rate measured, at the start or since.\n"
#define DTYPE "fp32"
#define DTYPES "fp32|bf16"
#define BASE_DTYPES "fp32|bf16|int8|nf4"
#endif

//    type     name             default       allowed                         marks       help
#define OPTIONS(X) \
    X(text,    stage,           "pretrain",   "pretrain|sft|reward|rl",       "te",       "what to learn from: tokens, responses, preferences or rewards") \
    X(text,    train,           "",           "",                             "tDP",      "shards to train on: a glob, in quotes [required]") \
    X(text,    val,             "",           "",                             "teDP",     "shards to validate on: a glob [none]") \
    X(text,    raw,             "",           "u16",                          "te",       "headerless 16-bit tokens, as nanoGPT's [llm.c's header]") \
    X(text,    tokenizer,       "",           "",                             "tsecgmDPR", "GPT-2 merges file, or `bytes` [the one beside data or model]") \
    X(text,    init,            "d12",        "",                             "tP",       "a size (d6 d12 d24 d36 d48, custom), or weights, as for --model") \
    X(text,    model,           "",           "",                             "secgmP!",  "run, checkpoint, Hugging Face directory, .safetensors, llm.c .bin") \
    X(text,    adapter,         "",           "",                             "tsecgmP",  "LoRA adapter of --model or --init: a run or PEFT directory [none]") \
    X(integer, lora_rank,       0,            "0..65536",                     "t",        "LoRA: rank of an adapter to train [0: all weights are trained]") \
    X(number,  lora_alpha,      16,           "0.000001..1000000",            "tA",       "LoRA: the adapter counts alpha / rank times") \
    X(text,    lora_targets,    "qkv,proj,fc,fcproj", "",                     "tA",       "LoRA: which matrices of a block are adapted") \
    X(integer, layers,          0,            "1..1000",                      "t",        "layers [from --init]") \
    X(integer, heads,           0,            "1..1000",                      "tsecgm",   "attention heads [from --init or the model, else C/64]") \
    X(integer, channels,        0,            "1..100000",                    "t",        "channels [from --init]") \
    X(integer, vocab,           0,            "1..16777216",                  "t",        "vocabulary [the tokenizer's; 50257 without one]") \
    X(integer, context,         0,            "1..1048576",                   "tec",      "tokens of a row [1024, or the model's]") \
    X(integer, bias,            1,            "0..1",                         "t",        "Linear layers have a bias") \
    X(integer, tied,            1,            "0..1",                         "t",        "the head is the token embedding") \
    X(integer, batch,           4,            "1..1048576",                   "teR",      "rows computed at once") \
    X(integer, tokens_per_step, 0,            "1..1099511627776",             "t",        "tokens of an optimizer step [batch x context]") \
    X(integer, steps,           0,            "1..1000000000000",             "tR1",      "optimizer steps [--epochs decides]") \
    X(number,  epochs,          0,            "0.000001..1000000",            "tR1",      "passes over the training data [1]") \
    X(number,  lr,              6e-4,         "0..1000",                      "t",        "maximum learning rate") \
    X(number,  min_lr,          -1,           "0..1000",                      "t",        "lowest learning rate; wsd falls to 0 [0.1 x lr]") \
    X(integer, warmup,          0,            "0..1000000000000",             "t",        "steps of linear warm-up") \
    X(text,    schedule,        "cosine",     "cosine|linear|wsd|constant",   "t",        "after the warm-up; wsd: constant, but the last fifth falls") \
    X(number,  beta1,           0.9,          "0..0.999999999",               "t",        "AdamW: decay of the mean gradient") \
    X(number,  beta2,           0.95,         "0..0.999999999",               "t",        "AdamW: decay of the mean squared gradient") \
    X(number,  eps,             1e-8,         "1e-30..1",                     "t",        "AdamW: added to the root") \
    X(number,  weight_decay,    0.1,          "0..1000",                      "t",        "AdamW: decay of every 2-D tensor") \
    X(number,  clip,            1,            "0..1e30",                      "t",        "largest gradient norm; 0 = off") \
    X(text,    dtype,           DTYPE,        DTYPES,                         "tsecgF",   "numbers in matrix products, whose sums are fp32") \
    X(text,    base_dtype,      DTYPE,        BASE_DTYPES,                    "tsecF",    "numbers of frozen matrices; int8, nf4: of those in blocks") \
    X(integer, threads,         0,            "1..4096",                      "tsecgR",   "threads [all, fewer for models too small for them]") \
    X(integer, zero,            1,            "0..2",                         "tR",       "ranks keep parts of: 1 moments, 2 gradients, too; 0 nothing") \
    X(integer, tensor_parallel, 1,            "1..1024",                      "tR",       "so many consecutive ranks share each layer, and their rows") \
    X(integer, seed,            1,            "0..9007199254740992",          "tsec",     "seed of weights, order and samples") \
    X(integer, eval_every,      100,          "0..1000000000000",             "tR",       "steps between validations; 0 = never") \
    X(integer, eval_rows,       64,           "0..1000000000000",             "te",       "rows of a validation; 0 = all [64; eval: all]") \
    X(text,    rows,            "packed",     "packed|documents|sliding",     "te",       "packed: side by side; documents: one a row; sliding: every window") \
    X(text,    answers,         "",           "",                             "teDP",     "example shard, whose responses greedy decoding is to give [none]") \
    X(text,    choices,         "",           "",                             "eP",       "multiple choice questions in llm.c's HellaSwag format [none]") \
    X(integer, sample_every,    100,          "0..1000000000000",             "tR",       "steps between samples; 0 = never") \
    X(integer, save_every,      0,            "0..1000000000000",             "tR",       "steps between checkpoints; 0 = by time, and at the best val loss") \
    X(number,  save_minutes,    5,            "0..1000000",                   "tR",       "minutes between checkpoints, at least; 0 = by steps alone") \
    X(integer, keep,            2,            "1..1000000",                   "tR",       "checkpoints to keep, beside the best in OUT/best") \
    X(text,    out,             "",           "",                             "tmRP!",    "directory of the run; merge: of the model") \
    X(flag,    resume,          false,        "",                             "t",        "go on from the newest whole checkpoint in --out") \
    X(integer, group,           8,            "2..4096",                      "tL",       "rl: answers drawn to each prompt") \
    X(integer, response_tokens, 0,            "1..1048576",                   "tL",       "rl: tokens of an answer, at most [what the context leaves]") \
    X(text,    reward,          "",           "",                             "tseDPL4",  "rl: exact, or a reward model; --best-of: that model [exact]") \
    X(text,    reward_command,  "",           "",                             "tRL4",     "rl: program that answers JSON Lines with rewards [--reward]") \
    X(number,  reward_timeout,  60,           "0.001..1000000",               "tRL",      "rl: seconds to wait for that program") \
    X(text,    advantage,       "mean",       "mean|normalized",              "tL",       "rl: reward less the group's mean; normalized: by its deviation") \
    X(integer, rl_passes,       1,            "1..1000",                      "tL",       "rl: optimizer steps with the same answers") \
    X(number,  ppo_clip,        0.2,          "0..1000",                      "tL",       "rl: change of a token's probability that still gains") \
    X(number,  kl,              0.05,         "0..1000",                      "tL",       "rl: weight of the divergence from --init") \
    X(text,    prompt,          "",           "",                             "sE2",      "text to continue; without a tokenizer, token ids [end of text]") \
    X(text,    prompt_file,     "",           "",                             "s2P",      "file of the text to continue; - is standard input [--prompt]") \
    X(text,    prompts,         "",           "",                             "s2P",      "lines, or JSON Lines, of texts or turns; - is stdin [--prompt]") \
    X(text,    examples,        "",           "",                             "sePWT",    "JSON Lines of prompts and responses, before each prompt [none]") \
    X(integer, tokens,          100,          "1..1000000000",                "sc",       "tokens to write, at most; an end of text stops earlier") \
    X(text_list, stop,          {},           "",                             "secT",     "end a text before this, with \\n as in C; may be repeated [none]") \
    X(integer, samples,         1,            "1..4096",                      "s3",       "texts to write to each prompt, side by side") \
    X(text,    format,          "text",       "text|jsonl",                   "s",        "text, or JSON Lines with tokens and their log-probabilities") \
    X(integer, best_of,         0,            "2..4096",                      "se3WZ",    "draw so many texts, and take the best by --reward, or likelihood") \
    X(integer, vote,            0,            "2..4096",                      "se3WZ",    "draw so many texts, and take the first with the commonest answer") \
    X(text,    vote_after,      "",           "",                             "se",       "an answer stands behind the last of these [it is the whole text]") \
    X(number,  repetition_penalty, 1,         "0.01..100",                    "sec",      "divides the logits of tokens that are there already; 1 = off") \
    X(number,  temperature,     1,            "0..1000",                      "sec",      "0 takes the likeliest token") \
    X(integer, top_k,           0,            "0..16777216",                  "sec",      "choose among the k likeliest; 0 = all") \
    X(number,  top_p,           1,            "0.000001..1",                  "sec",      "choose among the fewest tokens with this probability") \
    X(number,  min_p,           0,            "0..1",                         "sec",      "choose among tokens of this share of the maximum probability") \
    X(text,    pattern,         "",           "",                             "secWZ",    "regular expression that a text matches as a whole [none]")

// What a row of this table or of CONFIG is in a struct, and to who takes tables as they come.
#define AS_FIELD(type, name, value, ...) type name = value;
#define AS_OPTION(type, name, value, allowed, marks, help) {#name, &name, allowed, marks, help},
struct Options {
    std::string verb;
    std::set<std::string> given;            // names that stood on the command line
    OPTIONS(AS_FIELD)
    bool has(const char* name) const { return given.count(name) > 0; }
    Table table() { return {OPTIONS(AS_OPTION)}; }
    void refuse(char mark, const char* why) { refuse_given(table(), Options().table(), given, mark, why); }
};

inline const Program TRAIN_GPT = {
    PROGRAM, {{'t', "train"}, {'s', "sample"}, {'c', "chat"}, {'e', "eval"}, {'g', "graph"}, {'m', "merge"}},
    "train a GPT on token shards, sample from it, evaluate it",
    "usage: " PROGRAM " [train|sample|chat|eval|graph|merge] [--option value]...   (" PROGRAM " --help lists all)\n"
    "  make run\n"
    "  ./" PROGRAM " train --train build/corpus_data/train.bin --val build/corpus_data/val.bin --rows documents "
    "--init custom --layers 2 --heads 2 --channels 64 --context 256 --steps 100 --out runs/first\n"
    "  ./" PROGRAM " sample --model runs/default --tokens 200\n",
    "\nA first SIGINT, SIGTERM or SIGHUP saves after the step, a second ends at once. Exit 0: done; 1: data,\n"
    "files or memory; 2: command line.\n" PROGRAM_HELP};

inline Options parse_options(const std::vector<std::string>& words) {
    Options o;
    o.verb = parse_words(TRAIN_GPT, words, o.table(), o.given);
    while (o.out.size() > 1 && o.out.back() == '/') o.out.pop_back();
    if (o.verb == "train" && !o.resume && o.train.empty())
        die_usage("train: --train is missing: token shards to train on; --resume goes on with a run");
    if (o.verb == "eval" && (o.val + o.choices + o.answers).empty())
        die_usage("eval: give --val, --choices or --answers");
    if (o.verb == "eval" && o.answers.empty()) o.refuse('W', "is for --answers");
    if (o.verb == "train" && o.reward.empty() && o.reward_command.empty()) o.reward = "exact";
    if (o.has("vote_after") && !o.vote) die_usage("--vote-after: is for --vote");
    if (o.verb != "train" && o.has("reward") && !o.best_of) die_usage("--reward: is for --best-of");
    for (text& stop : o.stop) stop = unescaped("--stop", stop);
    o.vote_after = unescaped("--vote-after", o.vote_after);
    return o;
}

// ---- 2. config and tensors ------------------------------------------------------------------------------------------
// The shape of a model, and the table of everything it learns. A new weight is one row of TENSORS and its use in the
// forward and backward pass; its place in memory, initialisation, decay, name in checkpoints and tests follow.

//    type     field   default   name in config.json      largest
#define CONFIG(X) \
    X(int,     L,      12,       "n_layer",               1000)        /* layers */ \
    X(int,     NH,     12,       "n_head",                100000)      /* heads */ \
    X(int,     C,      768,      "n_embd",                100000)      /* channels */ \
    X(int,     V,      50257,    "vocab_size",            1 << 24) \
    X(int,     T,      1024,     "n_positions",           1 << 24)     /* rows of wpe, the longest context */ \
    X(bool,    bias,   true,     "bias",                  0)           /* of Linear layers */ \
    X(bool,    tied,   true,     "tie_word_embeddings",   0)           /* the head is wte */ \
    X(double,  eps,    1e-5,     "layer_norm_epsilon",    0)

#define AS_MEMBER(type, field, value, name, largest) {name, &field, largest},
struct Config : Lora {                                       // with a rank, only A and B are trained
    CONFIG(AS_FIELD)
    Form form = Form::FP32;                                  // of the frozen matrices

    void adapt(const Lora& lora) { Lora::operator=(lora); }
    bool adapts(const char* target) const { return rank && targets.count(target); }
    double lora_scale() const { return alpha / rank; }
    int tp = 1, tp_rank = 0;                                 // tensor parallel: `tp` ranks share each layer
    Config part(int ranks, int rank) const {
        Config c = *this;
        c.tp = ranks;
        c.tp_rank = rank;
        return c;
    }
    // What this rank has of a layer, numbers of a token:
    int heads() const { return NH / tp; }
    int head_size() const { return C / NH; }
    int att() const { return heads() * head_size(); }        // attention's output
    int qkv() const { return 3 * att(); }                    // queries, keys and values of all its heads
    int hidden() const { return 4 * C / tp; }                // input of the second product of an MLP
    int fc() const { return hidden(); }                      // output of the first; with gates there would be more
    Range tokens(int at) const {
        const size_t first = (size_t)V * at / tp;
        return {first, (size_t)V * (at + 1) / tp - first};
    }
    int first_token() const { return tokens(tp_rank).at; }
    int vocab() const { return tokens(tp_rank).n; }          // logits, from that one on

    // floating point operations of training on one token: 2 forward and 4 backward for every parameter, and causal
    // attention counted once (6 P + 6 L C T, the convention of llm.c); for one that is frozen 2 forward and 2 backward.
    double flops_per_token(size_t parameters, size_t frozen, int context) const {
        return 6.0 * parameters - 2.0 * frozen + 6.0 * L * C * context;
    }
    std::vector<Member> members() { return {CONFIG(AS_MEMBER)}; }
};

struct Preset { const char* name; int L, NH, C; };
inline constexpr Preset PRESETS[] = {{"d6", 6, 6, 384}, {"d12", 12, 12, 768}, {"d24", 24, 16, 1024},
                                     {"d36", 36, 20, 1280}, {"d48", 48, 25, 1600}, {"custom", 0, 0, 0}};
inline const Preset* preset_of(const text& init) {          // or null
    for (const Preset& p : PRESETS) if (init == p.name) return &p;
    return nullptr;
}

constexpr float ONES = -1;      // in the column init: all ones; any other number there is a standard deviation

//    field     per      rows     columns  init      present          name in checkpoints
//    rows 0: a vector, exempt from weight decay. RESID: the last product of a residual branch starts smaller, so that
//    the variance of the residual stream does not grow with L (Radford et al. 2019, section 2.3). Products are X W, so
//    weights stand (in, out), as in Hugging Face's GPT-2. LoRA's A and B come last: what is trained is one piece.
#define TENSORS(X) \
    X(wte,      ONCE,    c.vocab(), c.C,   0.02f,    true,            "transformer.wte.weight") \
    X(wpe,      ONCE,    c.T,     c.C,     0.02f,    true,            "transformer.wpe.weight") \
    X(ln1.w,    BLOCK,   0,       c.C,     ONES,     true,            "transformer.h.%d.ln_1.weight") \
    X(ln1.b,    BLOCK,   0,       c.C,     0,        true,            "transformer.h.%d.ln_1.bias") \
    X(qkv.w,    BLOCK,   c.C,     c.qkv(), 0.02f,    true,            "transformer.h.%d.attn.c_attn.weight") \
    X(qkv.b,    BLOCK,   0,       c.qkv(), 0,        c.bias,          "transformer.h.%d.attn.c_attn.bias") \
    X(proj.w,   BLOCK,   c.att(), c.C,     RESID,    true,            "transformer.h.%d.attn.c_proj.weight") \
    X(proj.b,   BLOCK,   0,       c.C,     0,        c.bias,          "transformer.h.%d.attn.c_proj.bias") \
    X(ln2.w,    BLOCK,   0,       c.C,     ONES,     true,            "transformer.h.%d.ln_2.weight") \
    X(ln2.b,    BLOCK,   0,       c.C,     0,        true,            "transformer.h.%d.ln_2.bias") \
    X(fc.w,     BLOCK,   c.C,     c.fc(),  0.02f,    true,            "transformer.h.%d.mlp.c_fc.weight") \
    X(fc.b,     BLOCK,   0,       c.fc(),  0,        c.bias,          "transformer.h.%d.mlp.c_fc.bias") \
    X(fcproj.w, BLOCK,   c.hidden(), c.C,  RESID,    true,            "transformer.h.%d.mlp.c_proj.weight") \
    X(fcproj.b, BLOCK,   0,       c.C,     0,        c.bias,          "transformer.h.%d.mlp.c_proj.bias") \
    X(lnf.w,    ONCE,    0,       c.C,     ONES,     true,            "transformer.ln_f.weight") \
    X(lnf.b,    ONCE,    0,       c.C,     0,        true,            "transformer.ln_f.bias") \
    X(head_w,   ONCE,    c.vocab(), c.C,   0.02f,    !c.tied,         "lm_head.weight") \
    X(qkv.A,    BLOCK,   c.C,     c.rank,  FROM_C,   c.adapts("qkv"), "transformer.h.%d.attn.c_attn.lora_A") \
    X(qkv.B,    BLOCK,   c.rank,  c.qkv(), 0,        c.adapts("qkv"), "transformer.h.%d.attn.c_attn.lora_B") \
    X(proj.A,   BLOCK,   c.att(), c.rank,  FROM_C,   c.adapts("proj"), "transformer.h.%d.attn.c_proj.lora_A") \
    X(proj.B,   BLOCK,   c.rank,  c.C,     0,        c.adapts("proj"), "transformer.h.%d.attn.c_proj.lora_B") \
    X(fc.A,     BLOCK,   c.C,     c.rank,  FROM_C,   c.adapts("fc"),  "transformer.h.%d.mlp.c_fc.lora_A") \
    X(fc.B,     BLOCK,   c.rank,  c.fc(),  0,        c.adapts("fc"),  "transformer.h.%d.mlp.c_fc.lora_B") \
    X(fcproj.A, BLOCK,   c.hidden(), c.rank, FROM_H, c.adapts("fcproj"), "transformer.h.%d.mlp.c_proj.lora_A") \
    X(fcproj.B, BLOCK,   c.rank,  c.C,     0,        c.adapts("fcproj"), "transformer.h.%d.mlp.c_proj.lora_B")

// With one rank and no adapter, slice, packed and frozen mean nothing: a first reader may pass over them.
struct Tensor {
    Per per;
    std::string name;            // of a row of TENSORS, %d stands for the layer
    size_t offset;               // in the arena, in elements
    int rows, cols;              // rows 0: a vector
    float init;
    bool present;                // an absent bias has no memory; checkpoints show it as zeros
    bool trained = true;
    Form form = Form::FP32;
    size_t packed = 0;           // of any other form, the place in the arena of packed matrices, in bytes
    std::vector<size_t> shape = {};                          // of the whole tensor
    Slice slice = {};                                        // what this rank has of it
    size_t count() const { return (size_t)std::max(rows, 1) * cols; }
    size_t whole() const { return shape[0] * (rows ? shape[1] : 1); }
    bool decays() const { return rows > 0; }
    bool adapter() const { return name.find(".lora_") < name.size(); }
};

template <typename T> struct Norm { T *w, *b; };
template <typename T, typename M = T*> struct Linear { M w; T *b, *A, *B; };
// Pointers to the tensors of one layer, and to those that exist once, in an arena of weights or of their gradients.
template <typename T, typename M = T*> struct Weights {
    M wte, wpe, head_w;
    Norm<T> ln1, ln2, lnf;
    Linear<T, M> qkv, proj, fc, fcproj;
};
template <typename T> using Layer = Linear<T, Place<T>>;     // the weights of one

#define AS_TENSOR(field, per, rows, cols, init, present, name) {per, name, 0, rows, cols, init, present},
// The rows of TENSORS for a model. native: what arenas hold is bfloat16 already, so that it need not be packed.
inline std::vector<Tensor> tensor_rows(const Config& c, bool native) {
    const float RESID = 0.02f / std::sqrt(2.0f * c.L);
    const float FROM_C = 1 / std::sqrt(3.0f * c.C), FROM_H = 1 / std::sqrt(3.0f * c.hidden());     // A's, as in PEFT
    auto rows_of = [&](const Config& c) { return std::vector<Tensor>{TENSORS(AS_TENSOR)}; };
    std::vector<Tensor> list = rows_of(c), whole = rows_of(c.part(1, 0));
    for (size_t k = 0; k < list.size(); k++) {
        Tensor& t = list[k];
        const size_t rows = whole[k].rows, cols = whole[k].cols;
        const size_t parts = t.cols == c.qkv() ? 3 : 1;      // queries, keys and values are sliced each
        t.shape = rows ? std::vector{rows, cols} : std::vector{cols};
        if (t.rows != (int)rows) t.slice = {rows * c.tp_rank / c.tp * cols, t.count()};
        if (t.cols != (int)cols) t.slice = {cols / parts / c.tp * c.tp_rank, t.cols / parts, cols / parts};
        const Form form = t.per == BLOCK || c.form == Form::FP32 ? c.form : Form::BF16;
        if (t.rows > 0 && !t.adapter() && !(native && form == Form::BF16)) t.form = form;
        t.trained = t.form == Form::FP32 && (t.adapter() || !c.rank);
    }
    return list;
}

struct Layout {
    std::vector<Tensor> rows;                                // of TENSORS
    Slots slots, packed;                                     // packed: matrices in fewer bits, in pieces of 16 bytes
    std::vector<Tensor> tensors;                             // as they stand in memory; all layers
    size_t parameters = 0, frozen_parameters = 0;
    size_t frozen = 0;                                       // where what is trained begins in an arena of weights
    size_t trained() const { return slots.size - frozen; }   // the size of the other arenas

    // Matrices of V rows get room for rows up to a multiple of `tile`; what is there beyond V stays zero.
    explicit Layout(const Config& c, int tile = 1, bool native = false)
        : rows(tensor_rows(c, native)), slots(arrays(c, tile, false), c.L), packed(arrays(c, tile, true), c.L) {
        for (size_t k = 0; k < rows.size(); k++) {
            const Tensor& t = rows[k];
            if (t.adapter() && c.rank && !frozen) {
                frozen = slots.first[k];
                frozen_parameters = parameters;
            }
            if (t.adapter() && !t.present) continue;
            for (int l = 0; l < (t.per == BLOCK ? c.L : 1); l++) {
                Tensor& added = tensors.emplace_back(t);
                if (t.per == BLOCK) added.name.replace(t.name.find("%d"), 2, std::to_string(l));
                added.offset = slots.place(k, l);
                added.packed = 16 * packed.place(k, l);
                parameters += t.present ? t.whole() : 0;
            }
        }
        std::stable_sort(tensors.begin(), tensors.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
    }
    // Of tensor i. Number k has its own place in the random sequence, so any number of threads draws the same.
    std::vector<float> initial_values(size_t i, uint64_t seed) const {
        const Tensor& t = tensors[i];
        std::vector<float> values(t.count());
        #pragma omp parallel for schedule(static)
        for (size_t k = 0; k < values.size(); k++) {
            Rng rng(seed, i + 1);
            rng.state += 2 * t.slice.place(k) * 0x9E3779B97F4A7C15ull;   // normal() takes two numbers
            values[k] = t.init == ONES ? 1 : t.init == 0 ? 0 : float(t.init * rng.normal());
        }
        return values;
    }
    // How what is trained is shared out among ranks: its layers are one contiguous piece each, and take turns in
    // `gradients` if that has fewer.
    Shares shares(const Comm& comm, const Slots& gradients) const {
        size_t k = 0;
        while (slots.stride[k] == 0 || slots.first[k] < frozen) k++;
        return Shares(comm, slots.first[k] - frozen, slots.stride[k], slots.layers, gradients.layers, trained());
    }
    // In an arena of all weights or, from = frozen, of what is trained. What is not there is null.
    template <typename W, typename T> W at(T* arena, int l, size_t from = 0, const uint8_t* bytes = nullptr) const {
        size_t k = 0;
        auto take = [&] {
            const Tensor& t = rows[k];
            Place<T> w = {nullptr, nullptr, nullptr, t.form};
            if (t.form == Form::FP32) {
                if (arena && t.present && slots.first[k] >= from) w.p = arena + slots.place(k, l) - from;
            } else if (bytes) {
                w.packed = bytes + 16 * packed.place(k, l);
                w.scales = (const float*)(w.packed + code_bytes(t.form, t.rows, t.cols));
            }
            k++;
            return w;
        };
        W w;
#define TAKE_PLACE(field, ...) w.field = take();
        TENSORS(TAKE_PLACE)
        return w;
    }

private:
    std::vector<std::pair<Per, size_t>> arrays(const Config& c, int tile, bool in_fewer_bits) const {
        std::vector<std::pair<Per, size_t>> v;
        for (const Tensor& t : rows) {
            const size_t height = t.rows + (t.rows == c.vocab() ? (tile - t.rows % tile) % tile : 0);
            const size_t numbers = t.form == Form::FP32 ? std::max<size_t>(height, 1) * t.cols : 0;
            const size_t pieces = (packed_bytes(t.form, height, t.cols) + 15) / 16;
            v.push_back({t.per, t.present * (in_fewer_bits ? pieces : numbers)});
        }
        return v;
    }
};

// A model of as many layers as have gradients at once. With ZeRO 2 that is three: one's are being sent to the ranks
// that keep them, the next one's are computed, and norm_backward() begins a bias gradient of the one below.
inline Config in_turns(Config c, int zero) {
    if (zero == 2) c.L = std::min(c.L, 3);
    return c;
}

// ---- 3. rows and stages ---------------------------------------------------------------------------------------------
// What a step learns from. dev/host/rows.h makes the rows of token and example shards, their order in each epoch, from
// the seed and the position in the data alone, and batches of them.

/* The stages of making a GPT are one network and one loop; they differ in their rows and in what these count for.
     pretrain   windows of token shards          the likelihood of every token
     sft        examples, side by side or one    the likelihood of the responses
     reward     both answers of a preference     pair_loss() of their readouts: logits of end of text behind an answer
     rl         answers drawn to a prompt        ppo_loss() of their tokens, by their reward over that of their group */
struct Stage {
    const char* name;
    std::vector<int> kinds;                  // Examples: 0 dialogues, 1 prompts, 2 responses, 3 preferences; {}: tokens
    bool side_by_side = false;               // several examples packed into a row
};
inline const Stage STAGES[] = {{"pretrain", {}}, {"sft", {0, 2}, true}, {"reward", {3}}, {"rl", {0, 1, 2}}};
inline Wanted wanted(const Options& o, const char* option, const text& pattern, int V, int T, int eot) {
    const Stage* s = STAGES;
    while (o.stage != s->name) s++;
    return {.option = option, .pattern = pattern, .rows = o.rows, .stage = o.stage, .kinds = s->kinds,
            .raw = !o.raw.empty(), .side_by_side = s->side_by_side && o.rows == "packed", .V = V, .T = T, .eot = eot};
}

// ---- 4. scalar maths ------------------------------------------------------------------------------------------------
// Functions of single numbers, compiled for the CPU loops and, as HD, for the CUDA kernels. To try another activation,
// edit gelu() and gelu_grad() here, for the GPU too; `make test` differentiates gelu().

/* e^x for |x| <= 60; saturating above, 0 below; NaN stays NaN. Branch-free, so that loops over it become vector code.
   The cut at -60 keeps softmax and gates clear of subnormal numbers, which are slow on many machines (dev/SPEED.md).
   math     x = n ln 2 + r, |r| <= ln(2)/2;   e^x = 2^n e^r, e^r by its Taylor polynomial of degree 7
   errors   below 2 ulp; adding 1.5 * 2^23 rounds to an integer, which the low bits then hold */
HD float fast_exp(float x) {
    x = x > 60.0f ? 60.0f : x;
    const bool vanishes = x < -60.0f;
    x = vanishes ? -60.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;                  // ln 2 in two parts (Cody and Waite)
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
    return vanishes ? 0.0f : p * power;
}
HD double fast_exp(double x) { return exp(x); }

/* GELU, tanh form: 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), written as x sigmoid(2u), which is the same.
   source   Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2 */
HD real gelu_gate(real x) {
    const real u2 = real(1.5957691216057308) * (x + real(0.044715) * x * x * x);
#ifdef __CUDA_ARCH__
    float power, gate;           // a GPU has instructions for 2^x and 1 / x, good to 2 ulp
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.4426950408889634f * u2));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(gate) : "f"(1 + power));
    return gate;
#else
    return 1 / (1 + fast_exp(-u2));
#endif
}
HD real gelu(real x) { return x * gelu_gate(x); }
// d/dx of x s(2u) = s + x s (1 - s) 2 du/dx
HD real gelu_grad(real x) {
    real s = gelu_gate(x);
    return s + x * s * (1 - s) * real(1.5957691216057308) * (1 + real(0.134145) * x * x);
}

// How a token is drawn. A logit that lies `below` the maximum weighs e^(-below / temperature), as an integer: such sums
// do not depend on their order, so any machine draws the same token from the same logits.
struct Sampling {
    float scale;                             // 2^25 log2(e) / temperature
    int top_k;                               // temperature 0 is top_k 1
    uint64_t top_p;                          // in units of 2^-64; 0: all
    float most_below;                        // min_p: what lies further below the maximum weighs nothing
    explicit Sampling(const Options& o) : scale(std::min(0x1p25 * 1.4426950408889634 / o.temperature, 3e38)),
          top_k(o.temperature == 0 ? 1 : o.top_k ? o.top_k : INT_MAX), top_p(o.top_p < 1 ? o.top_p * 0x1p64 : 0),
          most_below(o.min_p > 0 ? -std::log(o.min_p) * o.temperature : INFINITY) {}
};
constexpr float NEVER = -3e38f;              // a logit of no weight, in bf16 too
/* math     2^40 2^-(n + f),   n + f = below scale 2^-25;   2^-f by a polynomial in units of 2^-32
   errors   below 2^-23 (1 + n) of the weight, and 1; less than 2^24 of them add up in 64 bits
   here     below * scale is never added to, so no compiler makes it an FMA: it rounds alike everywhere */
HD uint64_t weight_of(float below, float scale) {
    const float y = below * scale, most = 63 << 25;
    const uint32_t x = int(y < most ? y : most), f = x << 7;
    auto times_f = [f](uint32_t a) { return uint32_t(uint64_t(f) * a >> 32); };
    uint32_t p = 0x003d8641;                 // minimax, by Remez's exchange
    p = 0x025a2f53 - times_f(p);
    p = 0x0e26cfd9 - times_f(p);
    p = 0x3d7becb2 - times_f(p);
    p = 0xb171c54a - times_f(p);
    p = 0xfffffebe - times_f(p);
    return (uint64_t)p << 8 >> (x >> 25);
}

// The bits of a float as an integer that is greater where the float is; 0 and -0 are equal.
HD uint32_t ordered(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffff : 0x80000000);
}

/* What a token adds to the loss, as a function of its log-probability lp under the model.
   likelihood   -w lp; w is 1 for a language model, the advantage for a policy gradient (Williams 1992)
   PPO          -min(r w, clamp(r, 1 - clip, 1 + clip) w) + kl (e^d - d - 1),   r = e^(lp - old), d = ref - lp;   w is
                the advantage, old and ref are the log-probability when it was drawn and that under the frozen start
   source       Schulman et al. 2017, arXiv:1707.06347, eq. 7; Schulman 2020, "Approximating KL divergence": k3 */
template <typename R> struct TokenLoss { R loss, weight; };                  // weight: -dloss/dlp
template <typename R> HD TokenLoss<R> likelihood_loss(R lp, R w) { return {-w * lp, w}; }
template <typename R> HD TokenLoss<R> ppo_loss(R lp, R w, R old, R ref, R clip, R kl) {
    const R ratio = std::exp(lp - old), least = 1 - clip, most = 1 + clip, e = std::exp(ref - lp);
    const R clipped = ratio < least ? least : ratio > most ? most : ratio;
    const bool unclipped = ratio * w <= clipped * w;         // r w is the minimum; the clipped term has no gradient
    return {-(unclipped ? ratio : clipped) * w + kl * (e - (ref - lp) - 1), (unclipped ? ratio * w : 0) + kl * (e - 1)};
}

/* What a pair adds to the loss, and its derivative, by how much more the chosen answer is rewarded than the other one.
   math     -log sigmoid(margin)
   source   Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1 */
inline std::pair<double, double> pair_loss(double margin) {
    return {std::log1p(std::exp(-std::abs(margin))) - std::min(margin, 0.0), -1 / (1 + std::exp(margin))};
}

// What the tokens of a batch count for, each (B,T); weights that are null are 1. With ref it is PPO; without old, they
// were drawn from these very weights, so that r is 1.
struct Objective {
    const float *weight = nullptr, *old = nullptr, *ref = nullptr;
    double clip = 0, kl = 0;
};
// The same as kernels read it: weights and kl are divided by the step's denominator; kl points to one number.
template <typename W> struct TokenTerms {
    const W *weight, *kl = nullptr;
    const float *old = nullptr, *ref = nullptr;
    float clip = 0;
    template <typename R> HD TokenLoss<R> loss(int n, R lp) const {
        if (!ref) return likelihood_loss<R>(lp, weight[n]);
        return ppo_loss<R>(lp, weight[n], old ? old[n] : lp, ref[n], clip, *kl);
    }
    TokenTerms from(int n0) const { return {weight + n0, kl, old ? old + n0 : old, ref ? ref + n0 : ref, clip}; }
};

struct AdamW { double lr, beta1, beta2, eps, weight_decay; };

/* AdamW, one weight. m and v are the running means of g and g^2.
   math     m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
            w = (1 - lr decay) w - lr (m / correction1) / (sqrt(v / correction2) + eps),   correction = 1 - beta^t
   here     new = 1 - beta,   keep = 1 - lr decay,   rate = lr / correction1,   root = 1 / sqrt(correction2);   t counts
            steps from 1
   source   Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2 */
struct AdamWStep {
    real new1, new2, eps, rate, root, keep;  // keep: of a tensor that decays
    AdamWStep(const AdamW& o, integer t)
        : new1(1 - o.beta1), new2(1 - o.beta2), eps(o.eps), rate(o.lr / (1 - std::pow(o.beta1, t))),
          root(1 / std::sqrt(1 - std::pow(o.beta2, t))), keep(1 - o.lr * o.weight_decay) {}
};
HD void adamw_step(real& w, real& m, real& v, real g, const AdamWStep& s, bool decays) {
    m += s.new1 * (g - m);
    v += s.new2 * (g * g - v);
    w = (decays ? s.keep : 1) * w - s.rate * m / (s.root * std::sqrt(v) + s.eps);
}

struct Schedule {
    std::string kind;
    double lr, min_lr;
    integer warmup, steps;                   // steps: where the decay ends
};

// Learning rate of update number it = 0, 1, ...
inline double lr_at(const Schedule& s, integer it) {
    if (it < s.warmup) return s.lr * (it + 1) / (s.warmup + 1);
    if (s.kind == "constant") return s.lr;
    if (it > s.steps) return s.kind == "wsd" ? 0 : s.min_lr;
    if (s.kind == "wsd") return s.lr * (1 - std::sqrt(std::max(0.0, (it - 0.8 * s.steps) / (0.2 * s.steps))));
    double q = s.steps > s.warmup ? double(it - s.warmup) / (s.steps - s.warmup) : 1;
    if (s.kind == "linear") return s.lr + q * (s.min_lr - s.lr);
    return s.min_lr + 0.5 * (1 + std::cos(M_PI * q)) * (s.lr - s.min_lr);
}

// ---- 5. layers ------------------------------------------------------------------------------------------------------
// Each layer, forward and then its backward. Loops over data run on all threads; every sum has a fixed order that does
// not depend on how many there are, so any number of threads gives the same bits. Backward passes add to the gradients
// of weights (dw, db), and write those of activations unless they say otherwise.
namespace cpu {

/* The matrix product, through which everything expensive goes. Its plain form is three loops, the first rung of
   build/study_gemm; section 6 makes it fast.

     C = A B (+ bias) (+ plus)        A (M,K), B (K,N) by strides, so a transpose is two numbers swapped; C row-major
   cost     2 M N K FLOPs
   order    sums run over k upwards, in pieces of KC, for any M, N and number of threads; a unit for bfloat16, which
            takes products of more than MR rows, has an order of its own

   Numbers are multiplied as type P: real, or bfloat16, to which both inputs are then rounded; sums are real in either
   case. B may already lie there as bfloat16, which halves what is read of it. gemm() runs on all threads, gemm_tile()
   on the one that calls it; that one multiplies bfloat16 in a unit only, and other numbers as real. */

// The epilogue of a product: c = sums over k (+ bias) (+ plus), where those are not null; plus may be c, to accumulate.
struct Target {
    real* c;
    long ldc;                                // row length of c and plus
    const real *plus = nullptr, *bias = nullptr;
    Target from(long i, long j) const {
        return {c + i * ldc + j, ldc, plus ? plus + i * ldc + j : nullptr, bias ? bias + j : nullptr};
    }
};
template <typename P = real, typename E = real> void gemm(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K);
template <typename P = real, typename E = real> void gemm_tile(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K);

/* linear -- the Linear layer; numbers are multiplied as type P
   math     out = x w + b (+ plus)      plus: the residual stream that this branch joins, or null
   shapes   x (N,C)   w (C,OC)   b (OC) or null   out, plus (N,OC) */
template <typename P = real, typename E = real>
void linear_forward(real* out, const real* x, Matrix<E> w, const real* b, const real* plus, int N, int C, int OC) {
    gemm<P>({out, OC, plus, b}, {x, C, 1}, w, N, OC, C);
}

// to (C) += the sums over n of what(i, n), i the place of (n,c); threads own columns, so every sum runs over n upwards
template <typename F> void add_columns(real* to, int N, int C, F what) {
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += 32) {
        const int width = std::min(32, C - c0);
        real sums[32] = {};
        for (int n = 0; n < N; n++) {
            #pragma omp simd
            for (int c = 0; c < width; c++) sums[c] += what((size_t)n * C + c0 + c, n);
        }
        for (int c = 0; c < width; c++) to[c0 + c] += sums[c];
    }
}
inline void bias_backward(real* db, const real* dout, int N, int C) {        // db += sum_n dout; db may be null
    if (db) add_columns(db, N, C, [=](size_t i, int) { return dout[i]; });
}

// forward: out = x w + b     so: dx = dout w^T,   dw += x^T dout, unless w is frozen;   db is bias_backward()'s
template <typename P = real, typename E = real>
void linear_backward(real* dx, real* dw, const real* dout, const real* x, Matrix<E> w, int N, int C, int OC) {
    const Matrix d = {dout, OC, 1};
    gemm<P>({dx, C}, d, w.t(), N, C, OC);
    if (dw) gemm<P>({dw, OC, dw}, Matrix{x, C, 1}.t(), d, C, OC, N);
}

/* lora -- what an adapter of rank R adds to a Linear layer whose w is frozen
   math     out += u B,   u = scale x A
   shapes   x (N,C)   A (C,R)   B (R,OC)   out (N,OC)   u (N,R)
   cost     2 N R (C + OC) FLOPs; backward three times that at most, since it computes u again
   source   Hu et al. 2021, arXiv:2106.09685, eq. 3 */
inline void lora_down(real* u, const real* x, Matrix<> a, double scale, int N, int C, int R) {
    gemm({u, R}, {x, C, 1}, a, N, R, C);
    for (size_t i = 0; i < (size_t)N * R; i++) u[i] *= scale;
}
inline void lora_forward(real* out, real* u, const real* x, const Layer<real>& w, double scale, int N, int C, int OC,
                         int R) {
    lora_down(u, x, {w.A, R, 1}, scale, N, C, R);
    gemm({out, OC, out}, {u, R, 1}, {w.B, OC, 1}, N, OC, R);
}
// du = scale dout B^T;   dx += du A^T,   dA += x^T du,   dB += u^T dout
inline void lora_backward(real* dx, const Linear<real>& g, real* u, real* du, const real* dout, const real* x,
                          const Layer<real>& w, double scale, int N, int C, int OC, int R) {
    lora_down(u, x, {w.A, R, 1}, scale, N, C, R);
    lora_down(du, dout, {w.B, 1, OC}, scale, N, OC, R);
    gemm({dx, C, dx}, {du, R, 1}, {w.A, 1, R}, N, C, R);
    gemm({g.A, R, g.A}, {x, 1, C}, {du, R, 1}, C, R, N);
    gemm({g.B, OC, g.B}, {u, 1, R}, {dout, OC, 1}, R, OC, N);
}

/* embedding -- of the token plus of its position
   math     out[b,t] = wte[x[b,t]] + wpe[t0 + t]
   shapes   x (B,T)   wte (V,C)   wpe (positions,C)   out (B,T,C)
   Ranks that share the vocabulary have its rows first .. first + V - 1; others count as zero, and positions once. */
template <typename E>
void embedding_forward(real* out, const int* x, const E* wte, const E* wpe, int B, int t0, int T, int C, int first = 0,
                       int V = INT_MAX) {
    const std::vector<E> nothing(C);
    #pragma omp parallel for collapse(2) schedule(static)
    for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) {
        size_t n = (size_t)b * T + t;
        const bool here = (unsigned)(x[n] - first) < (unsigned)V;
        const E* const token = here ? wte + (size_t)(x[n] - first) * C : nothing.data();
        const E* const position = first == 0 ? wpe + (size_t)(t0 + t) * C : nothing.data();
        for (int c = 0; c < C; c++) out[n * C + c] = real(token[c]) + real(position[c]);
    }
}

// Tokens repeat, so threads own columns, not rows.
inline void embedding_backward(real* dwte, real* dwpe, const real* dout, const int* x, int B, int T, int C,
                               int first = 0, int V = INT_MAX) {
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += 16) {
        int width = std::min(16, C - c0);
        real elsewhere[16] = {};
        for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) {
            size_t n = (size_t)b * T + t;
            const bool here = (unsigned)(x[n] - first) < (unsigned)V;
            real *dtoken = here ? dwte + (size_t)(x[n] - first) * C + c0 : elsewhere;
            real *dposition = dwpe + (size_t)t * C + c0;
            for (int c = 0; c < width; c++) {
                dtoken[c] += dout[n * C + c0 + c];
                dposition[c] += dout[n * C + c0 + c];
            }
        }
    }
}

/* layernorm
   math     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps), var over C;   out = xhat w + b
   shapes   x, out (N,C)   w, b (C)   mean, rstd (N), kept for backward
   source   Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 4 */
inline void layernorm_forward(real* out, real* mean, real* rstd, const real* x, const real* w, const real* b, int N,
                              int C, double eps) {
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const real* x_n = x + (size_t)n * C;
        real* out_n = out + (size_t)n * C;
        real sum = 0, squares = 0;
        #pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += x_n[c];
        real m = sum / C;
        #pragma omp simd reduction(+ : squares)
        for (int c = 0; c < C; c++) squares += (x_n[c] - m) * (x_n[c] - m);
        real r = 1 / std::sqrt(squares / C + real(eps));
        #pragma omp simd
        for (int c = 0; c < C; c++) out_n[c] = (x_n[c] - m) * r * w[c] + b[c];
        mean[n] = m;
        rstd[n] = r;
    }
}

/* forward: xhat = (x - mean) rstd;   out = xhat w + b     so, with dxhat = dout w:
   math     dx += rstd (dxhat - mean_c(dxhat) - xhat mean_c(dxhat xhat));   dw += sum_n dout xhat;   db += sum_n dout
   It adds to dx, which holds the gradient that goes around the branch. */
inline void layernorm_backward(real* dx, real* dw, real* db, const real* dout, const real* x, const real* w,
                               const real* mean, const real* rstd, int N, int C) {
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const real *x_n = x + (size_t)n * C, *dout_n = dout + (size_t)n * C;
        real *dx_n = dx + (size_t)n * C, m = mean[n], r = rstd[n], sum = 0, dot = 0;
        #pragma omp simd reduction(+ : sum, dot)
        for (int c = 0; c < C; c++) {
            real dxhat = dout_n[c] * w[c];
            sum += dxhat;
            dot += dxhat * (x_n[c] - m) * r;
        }
        sum /= C;
        dot /= C;
        #pragma omp simd
        for (int c = 0; c < C; c++) dx_n[c] += r * (dout_n[c] * w[c] - sum - (x_n[c] - m) * r * dot);
    }
    if (!dw) return;                         // frozen
    add_columns(dw, N, C, [=](size_t i, int n) { return dout[i] * (x[i] - mean[n]) * rstd[n]; });
    bias_backward(db, dout, N, C);
}

/* attention -- causal self-attention, a block of queries and of keys at a time: a thread holds (64,512) scores at most
   math     s_j = q_i . k_j / sqrt(HS) for j <= i;   p = softmax(s);   out_i = sum_j p_j v_j;   lse_i = log sum_j e^s_j
            Online softmax: where a block of keys raises the maximum score, what was summed before is multiplied by
            e^(before - now); the sum of all e^s_j divides it at the end.
   shapes   qkv (B,S,3C): q, k, v side by side, HS columns of each belong to a head; rows 0 .. t0+T-1 of each b exist
            out (B,T,C), lse (B,NH,T): of the T rows from t0 on. Training has t0 = 0, S = T; a sampler adds rows to qkv
            and asks for those only, which makes qkv its cache.
   cost     2 B T^2 C FLOPs (causal)
   source   Vaswani et al. 2017, arXiv:1706.03762, eq. 1; blocks, and lse kept for backward instead of p: Dao 2023,
            arXiv:2307.08691, algorithm 1 */
constexpr int QUERIES = 64, KEYS = 512;

template <typename P = real>
void attention_forward(real* out, real* lse, const real* qkv, int B, int t0, int T, int S, int C, int NH) {
    const int HS = C / NH;
    const long row = 3L * C;
    const real scale = 1 / std::sqrt(real(HS));
    #pragma omp parallel for collapse(3) schedule(dynamic)
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i0 = 0; i0 < T; i0 += QUERIES) {
        static thread_local std::vector<real> scores(QUERIES * KEYS);
        const int queries = std::min(QUERIES, T - i0), keys = t0 + i0 + queries;
        const Matrix q = {qkv + (size_t)b * S * row + h * HS, row, 1}, k = q.from(0, C), v = q.from(0, 2 * C);
        real* out_0 = out + ((size_t)b * T + i0) * C + h * HS;
        real maximum[QUERIES], sum[QUERIES] = {};
        std::fill_n(maximum, queries, -INFINITY);
        for (int j0 = 0; j0 < keys; j0 += KEYS) {
            const int n = std::min(KEYS, keys - j0);
            gemm_tile<P>({scores.data(), n}, q.from(t0 + i0, 0), k.from(j0, 0).t(), queries, n, HS);
            for (int i = 0; i < queries; i++) {
                const int visible = std::clamp(t0 + i0 + i + 1 - j0, 0, n);
                real *s = &scores[(size_t)i * n], *out_i = out_0 + (size_t)i * C, high = maximum[i], total = 0;
                #pragma omp simd reduction(max : high)
                for (int j = 0; j < visible; j++) high = s[j] > high ? s[j] : high;
                #pragma omp simd reduction(+ : total)
                for (int j = 0; j < visible; j++) total += s[j] = fast_exp(scale * (s[j] - high));
                std::fill(s + visible, s + n, real(0));
                const real shrink = fast_exp(scale * (maximum[i] - high));
                if (j0) for (int c = 0; c < HS; c++) out_i[c] *= shrink;
                sum[i] = sum[i] * shrink + total;
                maximum[i] = high;
            }
            gemm_tile<P>({out_0, C, j0 ? out_0 : nullptr}, {scores.data(), n, 1}, v.from(j0, 0), queries, HS, n);
        }
        for (int i = 0; i < queries; i++) {
            for (int c = 0; c < HS; c++) out_0[(size_t)i * C + c] /= sum[i];
            lse[((size_t)b * NH + h) * T + i0 + i] = scale * maximum[i] + std::log(sum[i]);
        }
    }
}

/* forward: p_ij = e^(s_ij - lse_i), out_i = sum_j p_ij v_j     so, with dp_ij = dout_i . v_j and D_i = dout_i . out_i:
   math     ds_ij = p_ij (dp_ij - D_i);   dq_i = sum_j ds_ij k_j / sqrt(HS);   dk_j = sum_i ds_ij q_i / sqrt(HS);
            dv_j = sum_i p_ij dout_i
   shapes   dqkv (B,T,3C), written whole   dout, out (B,T,C)
            Scores are held transposed, (keys,queries), so that most products need no copy of A.
   cost     5 B T^2 C FLOPs (causal); one thread owns a head, so dk and dv have one order of summation
   source   Dao 2023, algorithm 2 */
template <typename P = real> void attention_backward(real* dqkv, const real* dout, const real* qkv, const real* out,
                                                     const real* lse, int B, int T, int C, int NH) {
    const int HS = C / NH;
    const long row = 3L * C;
    const real scale = 1 / std::sqrt(real(HS));
    #pragma omp parallel for collapse(2) schedule(dynamic)
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) {
        static thread_local std::vector<real> p(KEYS * QUERIES), ds(KEYS * QUERIES);
        const size_t head = (size_t)b * T * row + h * HS;
        const Matrix q = {qkv + head, row, 1}, k = q.from(0, C), v = q.from(0, 2 * C);
        const Target dq = {dqkv + head, row, dqkv + head}, dk = dq.from(0, C), dv = dq.from(0, 2 * C);
        for (int t = 0; t < T; t++)
            for (int part = 0; part < 3; part++) std::fill_n(dq.from(t, part * C).c, HS, real(0));
        for (int i0 = 0; i0 < T; i0 += QUERIES) {
            const int queries = std::min(QUERIES, T - i0);
            const size_t at = ((size_t)b * T + i0) * C + h * HS;
            const real *dout_0 = dout + at, *out_0 = out + at;
            const real* lse_i = lse + ((size_t)b * NH + h) * T + i0;
            const Matrix q_i = q.from(i0, 0), dout_i = {dout_0, C, 1};
            real D[QUERIES] = {};
            for (int i = 0; i < queries; i++)
                for (int c = 0; c < HS; c++) D[i] += dout_0[(size_t)i * C + c] * out_0[(size_t)i * C + c];
            for (int j0 = 0; j0 < i0 + queries; j0 += KEYS) {
                const int n = std::min(KEYS, i0 + queries - j0);
                const Matrix k_j = k.from(j0, 0), v_j = v.from(j0, 0);
                gemm_tile<P>({p.data(), queries}, k_j, q_i.t(), n, queries, HS);         // s, for now
                gemm_tile<P>({ds.data(), queries}, v_j, dout_i.t(), n, queries, HS);     // dp, for now
                for (int j = 0; j < n; j++) {
                    real *p_j = &p[(size_t)j * queries], *ds_j = &ds[(size_t)j * queries];
                    const int masked = std::max(0, j0 + j - i0);               // queries before this key
                    std::fill_n(p_j, masked, real(0));
                    std::fill_n(ds_j, masked, real(0));
                    #pragma omp simd
                    for (int i = masked; i < queries; i++) {
                        p_j[i] = fast_exp(scale * p_j[i] - lse_i[i]);
                        ds_j[i] = scale * p_j[i] * (ds_j[i] - D[i]);
                    }
                }
                const Matrix p_ji = {p.data(), queries, 1}, ds_ji = {ds.data(), queries, 1};
                gemm_tile<P>(dq.from(i0, 0), ds_ji.t(), k_j, queries, HS, n);
                gemm_tile<P>(dk.from(j0, 0), ds_ji, q_i, n, HS, queries);
                gemm_tile<P>(dv.from(j0, 0), p_ji, dout_i, n, HS, queries);
            }
        }
    }
}

// The activation, element by element; n numbers.
inline void gelu_forward(real* out, const real* x, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) out[i] = gelu(x[i]);
}

inline void gelu_backward(real* dx, const real* dout, const real* x, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) dx[i] = dout[i] * gelu_grad(x[i]);
}

/* cross_entropy -- log-probabilities of the targets, and if asked the gradients of their losses, in place of the logits
   math     logprob_n = logits_n[y_n] - log sum_v e^(logits_n[v])
            dlogits_n = weight_n (softmax(logits_n) - onehot(y_n)),   weight_n = -dloss_n/dlogprob_n
   shapes   logits (N,V)   y (N); y_n = -1 counts nowhere   terms (N)   logprob (N), best (N): the likeliest token, or
            -1 where y_n is
   Ranks that share the vocabulary have V columns each, from `first` on; finish() merges what each of them has found. */
struct Found { real maximum, sum, target; int best; };       // sum: of e^(logit - maximum), which the logits become
inline Found softmax_parts(real* z, int y, int V) {          // y may be no column of these
    real maximum = z[0], sum = 0;
    #pragma omp simd reduction(max : maximum)
    for (int v = 0; v < V; v++) maximum = z[v] > maximum ? z[v] : maximum;
    const int best = int(std::find(z, z + V, maximum) - z);
    const real target = (unsigned)y < (unsigned)V ? z[y] : 0;
    #pragma omp simd reduction(+ : sum)
    for (int v = 0; v < V; v++) sum += z[v] = fast_exp(z[v] - maximum);
    return {maximum, sum, target, best};
}
inline void cross_entropy(real* logits, real* logprob, int* best, const int* y, const TokenTerms<double>& terms, int N,
                          int V, bool gradients, int first = 0, Group<MpiLink, real> group = {}) {
    const int rank = group.comm.rank, ranks = group.comm.size;
    std::vector<Found> all((size_t)ranks * N);               // by rank, of each row
    auto finish = [&](int n) {
        real *z = logits + (size_t)n * V, sum = 0, target = 0;
        Found most = all[n];
        for (int r = 1; r < ranks; r++) if (all[r * N + n].maximum > most.maximum) most = all[r * N + n];
        auto shrink = [&](int r) { return fast_exp(all[r * N + n].maximum - most.maximum); };
        for (int r = 0; r < ranks; r++) sum += all[r * N + n].sum * shrink(r);
        for (int r = 0; r < ranks; r++) target += all[r * N + n].target;
        best[n] = most.best;
        logprob[n] = target - most.maximum - std::log(sum);
        if (!gradients) return;
        const real weight = terms.loss(n, logprob[n]).weight, scale = weight * shrink(rank) / sum;
        #pragma omp simd
        for (int v = 0; v < V; v++) z[v] *= scale;
        if ((unsigned)(y[n] - first) < (unsigned)V) z[y[n] - first] -= weight;
    };
    #pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) {
        logprob[n] = 0;
        best[n] = -1;
        if (y[n] < 0 && gradients) std::fill_n(logits + (size_t)n * V, V, real(0));
        if (y[n] < 0) continue;
        all[rank * N + n] = softmax_parts(logits + (size_t)n * V, y[n] - first, V);
        all[rank * N + n].best += first;
        if (ranks == 1) finish(n);
    }
    if (ranks == 1) return;
    group.gather(all.data(), N);
    #pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) if (y[n] >= 0) finish(n);
}

/* readout -- one logit of one token of each row of a batch: the reward, of a reward model
   math     out_b = x[b,at_b] . w
   shapes   out, at, dout (B)   x, dx (B,T,C)   w, dw (C): the token's row of the head's table; dw is added to */
template <typename E> void readout_forward(float* out, const real* x, const int* at, Matrix<E> w, int B, int T, int C) {
    for (int b = 0; b < B; b++) {
        const real* x_b = x + ((size_t)b * T + at[b]) * C;
        real sum = 0;
        for (int i = 0; i < C; i++) sum += x_b[i] * real(w(0, i));
        out[b] = sum;
    }
}
template <typename E>
void readout_backward(real* dx, real* dw, const float* dout, const real* x, const int* at, Matrix<E> w, int B, int T,
                      int C) {
    std::fill_n(dx, (size_t)B * T * C, real(0));
    for (int b = 0; b < B; b++) {
        const size_t n = ((size_t)b * T + at[b]) * C;
        for (int i = 0; i < C; i++) dx[n + i] = dout[b] * real(w(0, i));
        if (dw) for (int i = 0; i < C; i++) dw[i] += dout[b] * x[n + i];
    }
}

/* adamw -- one step of the optimizer for n weights, with gradients times scale, which it then clears; `rounded`, if not
   null, is the copy of the weights that products read
   cost     32 bytes a weight: w, m, v and g are read and written; 34 with the copy */
inline void adamw_update(real* w, real* m, real* v, real* g, size_t n, const AdamWStep& s, bool decays, real scale,
                         bfloat16* rounded = nullptr) {
    #pragma omp parallel for schedule(static)
    for (size_t i0 = 0; i0 < n; i0 += 1024) {
        const AdamWStep step = s;            // which no store below can change
        const size_t end = std::min(n, i0 + 1024);
        #pragma omp simd
        for (size_t i = i0; i < end; i++) {
            adamw_step(w[i], m[i], v[i], scale * g[i], step, decays);
            g[i] = 0;
        }
        if (rounded) round_all(rounded + i0, w + i0, end - i0);
    }
}

// Sum of squares in double, over fixed blocks that are added up in order.
inline double sum_of_squares(const real* x, size_t n) {
    const size_t block = 1 << 15;
    std::vector<double> sums((n + block - 1) / block);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < sums.size(); i++) {
        double sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (size_t k = i * block; k < std::min(n, (i + 1) * block); k++) sum += (double)x[k] * x[k];
        sums[i] = sum;
    }
    return std::accumulate(sums.begin(), sums.end(), 0.0);
}

/* pick -- draws a token from softmax(logits / temperature), cut to the top_k likeliest, the lower number first where
   two are equal, then to the fewest of them whose weights reach top_p of their sum, then to those above min_p
   math     the first v whose sum over u <= v of weight_u exceeds rng.below(sum over all);
            p_v >= min_p max p   where   maximum - logit_v <= -ln(min_p) temperature
   source   Holtzman et al. 2019, arXiv:1904.09751, section 3.1; Nguyen et al. 2024, arXiv:2407.01082, section 3 */
inline int pick(const float* logits, int V, const Sampling& s, Rng& rng) {
    static thread_local std::vector<uint64_t> weight, order;
    float maximum = -INFINITY;
    for (int v = 0; v < V; v++)
        if (!std::isfinite(logits[v])) die("a logit is %g; are the model's weights finite?", logits[v]);
    #pragma omp simd reduction(max : maximum)
    for (int v = 0; v < V; v++) maximum = logits[v] > maximum ? logits[v] : maximum;
    if (s.top_k == 1) return int(std::find(logits, logits + V, maximum) - logits);
    auto weigh = [&](int v) { return weight_of(maximum - logits[v], s.scale); };
    weight.assign(V, 0);
    if (s.top_k < V || s.top_p) {
        order.resize(V);                     // the likelier, the greater
        for (int v = 0; v < V; v++) order[v] = (uint64_t)ordered(logits[v]) << 32 | ~(uint32_t)v;
        auto id = [](uint64_t key) { return ~(uint32_t)key; };
        if (s.top_k < V) {
            std::nth_element(order.begin(), order.begin() + s.top_k - 1, order.end(), std::greater());
            order.resize(s.top_k);
        }
        if (s.top_p) {
            uint64_t sum = 0, kept = 0;
            for (uint64_t key : order) sum += weigh(id(key));
            const uint64_t least = multiply_high(sum, s.top_p);
            size_t n = 0, sorted = 0;        // the likeliest: a few are enough as a rule, so the rest is not sorted
            while (kept < least) {
                if (n == sorted) {
                    sorted = std::min(order.size(), 4 * n + 64);
                    std::nth_element(order.begin() + n, order.begin() + sorted, order.end(), std::greater());
                    std::sort(order.begin() + n, order.begin() + sorted, std::greater());
                }
                kept += weigh(id(order[n++]));
            }
            order.resize(n);
        }
        for (uint64_t key : order) weight[id(key)] = weigh(id(key));
    } else
        for (int v = 0; v < V; v++) weight[v] = weigh(v);
    for (int v = 0; v < V; v++) if (maximum - logits[v] > s.most_below) weight[v] = 0;
    uint64_t left = rng.below(std::accumulate(weight.begin(), weight.end(), uint64_t(0)));
    int v = 0;
    while (left >= weight[v]) left -= weight[v++];
    return v;
}

/* penalize -- makes tokens that stand in a text already less likely, each once
   math     z = z / penalty where z > 0, z penalty elsewhere
   source   Keskar et al. 2019, arXiv:1909.05858, section 4.1 */
inline void penalize(float* logits, const std::vector<int>& text, float penalty) {
    for (const int v : std::set<int>(text.begin(), text.end())) logits[v] *= logits[v] > 0 ? 1 / penalty : penalty;
}

// ---- 6. matrix product ----------------------------------------------------------------------------------------------
/* How gemm() is made fast:

            N                C is cut into tiles; a tile is the work of one thread. Within a tile, K is cut into
        +---------+          pieces of KC. A piece of B, NR columns wide, is copied into a panel, where the innermost
      K | B  |NR| |          loop reads it in order from the level-1 or 2 cache, for every MR rows of the tile in turn.
        +---------+          That loop keeps MR x NR sums in registers, and takes in one column of A and one row of B
    +--+ +---------+         at a time: MR NR multiply-adds for MR + NR numbers read.
  M |A | | C  |NR| |
    |MR| |MR  +--+ |   copies   B once for every TILE_M rows of C, A once for every tile, and not at all where its rows
    +--+ +---------+            run along K; bfloat16 numbers are rounded while they are copied

   source   Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication, doi:10.1145/1356052.1356053 */
constexpr int MR = VECTOR_BYTES == 64 ? 8 : VECTOR_BYTES == 32 ? 6 : 4, VECTORS = VECTOR_BYTES == 64 ? 3 : 2;
constexpr int NR = VECTORS * VL, KC = 384, TILE_M = 64 * MR, TILE_N = 8 * NR;

// Stores one sum, or a vector of neighbours; by name, since the alignment of vec is lost in a template's argument.
inline void store(Target to, real sum) {
    if (to.bias) sum += *to.bias;
    if (to.plus) sum += *to.plus;
    *to.c = sum;
}
inline void store(Target to, vec sums) {
    if (to.bias) sums += *(const vec*)to.bias;
    if (to.plus) sums += *(const vec*)to.plus;
    *(vec*)to.c = sums;
}
// Stores neighbours, or with k > 0 adds them to the sums that are there already.
struct StoreRow {
    Target to;
    StoreRow from(int k, int i, int j) const { return {(k ? Target{to.c, to.ldc, to.c} : to).from(i, j)}; }
    void prefetch(int i, int j) const { if (to.plus) Matrix{to.plus, to.ldc, 1}.prefetch(i, j); }
    void operator()(int i, int j, const auto* sums, int n) const {
        const Target target = to.from(i, j);
        for (int v = 0; v < n / VL * VL; v += VL) store(target.from(0, v), *(const vec*)(sums + v));
        for (int v = n / VL * VL; v < n; v++) store(target.from(0, v), sums[v]);
    }
};

// c (m,n) = sum over k of a(i,k) b(k,j), m <= MR, n <= W VL; a has MR rows, b is packed (K,NR)
template <int W> __attribute__((noinline))
void multiply_add(Target to, Matrix<> a, const real* b, int m, int n, int K) {
    vec sums[MR][W] = {};
    for (int i = 0; i < m; i++)              // prefetch C: it is not in cache
        for (int v = 0; v < W; v++) __builtin_prefetch(to.c + i * to.ldc + v * VL, 1);
    for (int k = 0; k < K; k++, a.p += a.col, b += NR) {
        vec row[W];
        for (int v = 0; v < W; v++) row[v] = *(const vec*)(b + v * VL);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < W; v++) sums[i][v] += a.p[i * a.row] * row[v];
    }
    if (m == MR && n == W * VL) {
        for (int i = 0; i < MR; i++) for (int v = 0; v < W; v++) store(to.from(i, v * VL), sums[i][v]);
        return;
    }
    real edge[MR][W * VL];
    for (int i = 0; i < MR; i++) for (int v = 0; v < W; v++) *(vec*)(edge[i] + v * VL) = sums[i][v];
    for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) store(to.from(i, j), edge[i][j]);
}

// panel (K,NR) = b; columns beyond n are undefined
template <typename P, typename E> void pack_b(real* panel, Matrix<E> b, int n, int K) {
    const int whole = b.col == 1 ? n / VL * VL : 0;          // columns that lie in vectors
    for (int k = 0; k < K; k++)
        for (int j = 0; j < whole; j += VL) {
            b.prefetch(k + 16, j);
            *(vec*)(panel + k * NR + j) = load<P>(b.from(k, j));
        }
    for (int k = 0; k < K; k += DEEP<E>)
        for (int j = whole; j < n; j += VL) {
            for (int l = 0; l < VL; l++) b.prefetch(k + 2 * DEEP<E>, j + l);
            copy_block<P>(panel + k * NR + j, NR, b.from(k, j), K - k, n - j);
        }
}

// panels (M/MR,K,MR) = a; rows beyond M are undefined
inline void pack_a(real* panels, Matrix<> a, int M, int K) {
    for (int k0 = 0; k0 < K; k0 += 16)                       // 16 k at a time, so that what is read stays in cache
        for (int i = 0; i < M; i += MR)
            for (int k = k0; k < std::min(K, k0 + 16); k++) {
                real* to = panels + (size_t)i * K + k * MR;
                const Matrix<> from = a.from(i, k);
                if (a.row == 1 && i + MR <= M) memcpy(to, from.p, sizeof(real) * MR);
                else for (int r = 0; r < std::min(MR, M - i); r++) to[r] = from.p[r * a.row];
            }
}

// sums (M,n) += a (M,R) b (R,n), n in vectors; rows of sums are `ld` vectors apart, rows of a KC numbers. The next R
// rows are prefetched: hardware does so along a row, not down a column.
template <typename P, int R, typename E> void add_rows(vec* sums, int ld, const real* a, Matrix<E> b, int M, int n) {
    for (int j = 0; j < n; j++) {
        vec rows[R];
        for (int r = 0; r < R; r++) {
            rows[r] = load<P>(b.from(r, j * VL));
            b.prefetch(r + R, j * VL);
        }
        for (int i = 0; i < M; i++) {
            vec sum = sums[i * ld + j];
            for (int r = 0; r < R; r++) sum += a[i * KC + r] * rows[r];
            sums[i * ld + j] = sum;
        }
    }
}

// The product when A has few rows, as when decoding: bound by memory, so B is read once, unpacked, in strips along its
// rows or columns, whichever are contiguous. The sums are those of multiply_add, in the same order.
constexpr int FEW_SUMS = 2 * MR * TILE_N;    // in the level-1 cache
inline int few_columns(int M) { return FEW_SUMS / M / VL * VL; }
template <typename P, typename E> void gemm_rows(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    const int strip = b.col == 1 ? few_columns(M) : VL, ld = strip / VL;
    for (int j0 = 0; j0 < N; j0 += strip) for (int k0 = 0; k0 < K; k0 += KC) {
        const int n = std::min(strip, N - j0), kn = std::min(KC, K - k0), whole = b.col == 1 ? n / VL : 0;
        const Matrix<E> b_k = b.from(k0, j0);
        real piece[MR * KC];                                 // of A; zeros up to a whole block
        vec sums[FEW_SUMS / VL];
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < (n + VL - 1) / VL; j++) sums[i * ld + j] = vec{};
            for (int k = 0; k < kn; k++) piece[i * KC + k] = P(a(i, k0 + k));
            for (int k = kn; k % DEEP<E>; k++) piece[i * KC + k] = 0;
        }
        int k = 0;
        for (; k + 8 <= kn; k += 8) add_rows<P, 8>(sums, ld, piece + k, b_k.from(k, 0), M, whole);
        for (; k < kn; k++) add_rows<P, 1>(sums, ld, piece + k, b_k.from(k, 0), M, whole);
        for (int j = whole; j * VL < n; j++)                 // what does not lie in whole vectors
            for (k = 0; k < kn; k += DEEP<E>) {
                real block[DEEP<E> * VL];
                for (int l = 0; l < VL; l++) b_k.prefetch(k, (j + 1) * VL + l);
                copy_block<P>(block, VL, b_k.from(k, j * VL), kn - k, n - j * VL);
                for (int d = 0; d < DEEP<E>; d += VL)
                    add_rows<real, VL>(sums + j, ld, piece + k + d, Matrix{block + d * VL, VL, 1}, M, 1);
            }
        for (int i = 0; i < M; i++) StoreRow{to}.from(k0, i, j0)(0, 0, (const real*)(sums + i * ld), n);
    }
}

// One tile, on one thread. Unless M <= MR, A is rounded to P already.
template <typename P, typename E> void vector_tile(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    if (M <= MR) return gemm_rows<P>(to, a, b, M, N, K);
    static thread_local std::vector<real> a_panels, b_panel(KC * NR);
    const int in_place = a.col == 1 ? M / MR * MR : 0;       // rows of A that are read where they are
    a_panels.resize(std::max<size_t>(a_panels.size(), (size_t)(M - in_place + MR - 1) / MR * MR * KC));
    for (int k0 = 0; k0 < K; k0 += KC) {
        const int kn = std::min(KC, K - k0);
        if (k0) to = {to.c, to.ldc, to.c};
        pack_a(a_panels.data(), a.from(in_place, k0), M - in_place, kn);
        for (int j0 = 0; j0 < N; j0 += NR) {
            const int n = std::min(NR, N - j0);
            pack_b<P>(b_panel.data(), b.from(k0, j0), n, kn);
            for (int i0 = 0; i0 < M; i0 += MR) {
                Matrix<> rows = a.from(i0, k0);
                if (i0 >= in_place) rows = {a_panels.data() + (size_t)(i0 - in_place) * kn, 1, MR};
                const auto kernel = n <= VL ? multiply_add<1> : multiply_add<VECTORS>;
                kernel(to.from(i0, j0), rows, b_panel.data(), std::min(MR, M - i0), n, kn);
            }
        }
    }
}

// a, rounded to bfloat16, in memory that lasts until this thread calls again
inline Matrix<> rounded(Matrix<> a, int M, int K) {
    if (a.row == 1 && a.col != 1) return rounded(a.t(), K, M).t();
    static thread_local std::vector<real> memory;
    memory.resize(std::max(memory.size(), (size_t)M * K));
    real* const copy = memory.data();
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i++) {
        real* to = copy + (size_t)i * K;
        const int whole = a.col == 1 ? K / VL * VL : 0;
        for (int k = 0; k < whole; k += VL) *(vec*)(to + k) = load<bfloat16>(a.from(i, k));
        for (int k = whole; k < K; k++) to[k] = bfloat16(a(i, k));
    }
    return {copy, K, 1};
}

// Multiply-adds of all threads on numbers in registers (of a unit: in the level-1 cache), in FLOP/s: the roof of gemm()
inline double measure_peak(Unit unit, int trials = 32) {
    const auto vectors = register_trial<vec, real, MR, VECTORS>;
    return peak_of(trials, [=] { return unit == Unit::NONE ? vectors() : unit_trial(unit); });
}
// Where bfloat16 numbers are multiplied; a run keeps its own (state.json), since each adds up in another order
inline Unit& unit() {
    static Unit chosen = fastest_unit([](Unit unit) { return measure_peak(unit); });
    return chosen;
}

// Few rows, on all threads. Memory is read fastest in long runs, so where rows of B are contiguous, strips are wide,
// and pieces of K are work of their own; their sums are then added in order, as gemm_rows() adds them.
template <typename P, typename E> void gemm_pieces(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    static thread_local std::vector<real> memory;            // sums of each piece, unless there is only one
    const int deep = b.col == 1 ? KC : K, pieces = (K - 1) / deep + 1;
    int strip = b.col == 1 ? few_columns(M) : TILE_N;
    while (pieces * ((N - 1) / strip + 1) < omp_get_max_threads() && strip > NR) strip = strip / 2 / VL * VL;
    memory.resize(std::max(memory.size(), (size_t)pieces * M * N));
    auto sums_of = [=, sums = memory.data()](int p) { return pieces > 1 ? Target{sums + (size_t)p * M * N, N} : to; };
    #pragma omp parallel for collapse(2) schedule(dynamic) if (integer(M) * N * K > 32768)
    for (int n0 = 0; n0 < N; n0 += strip) for (int piece = 0; piece < pieces; piece++) {
        const int k0 = piece * deep, n = std::min(strip, N - n0), kn = std::min(deep, K - k0);
        gemm_rows<P>(sums_of(piece).from(0, n0), a.from(0, k0), b.from(k0, n0), M, n, kn);
    }
    if (pieces > 1) for (int i = 0; i < M; i++)
        for (int p = 0; p < pieces; p++) StoreRow{to}.from(p, i, 0)(0, 0, sums_of(p).from(i, 0).c, N);
}

template <typename P, typename E> void gemm(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    if (M <= MR) return gemm_pieces<P>(to, a, b, M, N, K);
    if constexpr (std::is_same_v<P, bfloat16>) {
        if (const Unit u = unit(); u != Unit::NONE) return unit_product(u, a, b, M, N, K, StoreRow{to});
        a = rounded(a, M, K);
    }
    int tile_m = TILE_M, tile_n = TILE_N;                    // halving tile_m packs B twice as often, tile_n at most A
    auto few = [&] { return ((M - 1) / tile_m + 1) * (integer)((N - 1) / tile_n + 1) < 4 * omp_get_max_threads(); };
    while (few() && tile_n > NR) tile_n /= 2;
    while (few() && tile_m > 4 * MR) tile_m /= 2;
    #pragma omp parallel for collapse(2) schedule(dynamic) if (integer(M) * N * K > 32768)
    for (int n0 = 0; n0 < N; n0 += tile_n) for (int m0 = 0; m0 < M; m0 += tile_m) {
        const int m = std::min(tile_m, M - m0), n = std::min(tile_n, N - n0);
        vector_tile<P>(to.from(m0, n0), a.from(m0, 0), b.from(0, n0), m, n, K);
    }
}
template <typename P, typename E> void gemm_tile(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    if constexpr (std::is_same_v<P, bfloat16>) if (M > MR) return unit_tile(unit(), a, b, M, N, K, StoreRow{to});
    vector_tile<real>(to, a, b, M, N, K);
}

}  // namespace cpu

// ---- 7. model -------------------------------------------------------------------------------------------------------
// What Training, checkpoints and the verbs need of a model, and cpu::Model, which is one.
//   Model(config, B, T, training, bf16)   allocates for at most B rows of T tokens, once; dies if that does not fit
//   forward(x, y, objective, denominator, B, T, backward)
//       adds the tokens' losses / denominator to the loss that result() gives: -log-probabilities in nats, or PPO's.
//       The denominator is that of the step, so that micro-batches add up to one batch. backward: a backward()
//       follows, and the head's gradients are taken now, because logits are never kept
//   readout(x, at, token, B, T, out)   another forward: out[b] is the logit of one token at position at[b] of row b
//   readout_backward(dout)             its gradients; a backward() follows
//   backward()                         of the last forward; adds to the gradients
//   update(adamw, clip, step)
//       with gradients scaled to a norm of clip at most (0: as they are), which it then clears; step counts from 1. It
//       does nothing if the loss or norm is not finite
//   result()
//       waits for all this; the sum of losses since the last result(), and the norm (L2, over all tensors) that the
//       last update() found. logprob[n] and best[n], the likeliest token, of the last forward are then there for every
//       y[n] >= 0, unless a backward() of likelihoods came after it
//   extend(x, B, t0, T)                prefill and decode: T more tokens for each row, after the t0 in the KV cache
//   logits(n, step, count, out)        (count,V) logits of rows n, n + step, ... of the last forward or extend
//   draw(x, B, t0, T, sampling, hidden, rng, token, ahead)
//       extend, and then a token for each of at most 64 rows, with its own random number; none of those hidden. One
//       token (T) goes on from the last draw, with its sampling; ahead: the next x is what this gives
//   describe(), speed(tokens, seconds)    the machine and the memory in use; a step's speed, for its line and the log
//   get(which, i, out), set(which, i, in)    tensor i of layout.tensors, as float
enum Which { WEIGHT, GRADIENT, MOMENT1, MOMENT2 };
template <typename Model> void initialize(Model& model, uint64_t seed) {     // what is trained
    const Layout& layout = model.layout;
    for (size_t i = 0; i < layout.tensors.size(); i++)
        if (layout.tensors[i].offset >= layout.frozen) model.set(WEIGHT, i, layout.initial_values(i, seed).data());
}
struct StepResult { double loss, norm; };

// What both programs' models have. Link: how ranks exchange numbers; A: the type of activations.
template <typename Link, typename A> struct ModelBase {
    const Config c;
    const int max_B, max_T;                  // of a forward pass
    const Layout layout, gradient_layout;    // of weights, and of their gradients, whose layers may take turns
    mutable Sharing<Link, real> shares;      // of what several ranks train
    Group<Link, A> group;                    // those that share each layer
    std::vector<real> logprob;
    std::vector<int> best;

    ModelBase(const Config& c, int B, int T, bool training, int tile, bool native)
        : c(c), max_B(B), max_T(T), layout(c, tile, native),
          gradient_layout(in_turns(c, training ? world().zero : 0), tile, native),
          shares(layout.shares(training ? world().data() : Comm(), gradient_layout.slots)), group{world().group(c.tp)} {
        if (B > INT_MAX / T) die("--batch %d x --context %d: more than 2^31 tokens at once", B, T);
        logprob.resize(B * T);
        best.resize(B * T);
    }
    Weights<real> gradients_of(int l) const {
        return gradient_layout.at<Weights<real>>(shares.gradients, l, gradient_layout.frozen);
    }
    real* dtable() const { return c.tied ? gradients_of(0).wte : gradients_of(0).head_w; }         // null: frozen
    // What this rank writes of tensor i. What a whole group has, the first of it writes.
    std::vector<Range> mine(size_t i) const {
        const Tensor& t = layout.tensors[i];
        if (c.tp_rank && t.slice.all()) return {};
        return shares.of_tensor(t.offset - layout.frozen, t.count());
    }
};

/* The network, for both programs: m has the layers, which cpu::Model below makes of section 5's functions, gpu::Model
   of its kernels. norm_forward() returns the x of linear_forward(): normalized numbers or, where a GPU decodes few
   rows, what its product is to normalize. */

// Everything a step computes; N rows. KEPT: a layer's own in training, where backward reads it, else shared by layers.
// act is the type of activations, stat of sums over them; the CUDA program adds rows to the table.
#define ACTIVATIONS(X) \
    X(act,  embedded,  ONCE,   N * c.C)         /* the residual stream before the first block */ \
    X(act,  ln1,       KEPT,   N * c.C)         X(stat, ln1_stats, KEPT, 2 * N)   /* mean and rstd */ \
    X(act,  qkv,       BLOCK,  N * c.qkv())     /* when sampling, the KV cache (and the queries) */ \
    X(act,  att,       KEPT,   N * c.att())     X(stat, lse, KEPT, N * c.heads()) \
    X(act,  middle,    KEPT,   N * c.C)         /* the residual stream after attention */ \
    X(act,  ln2,       KEPT,   N * c.C)         X(stat, ln2_stats, KEPT, 2 * N)   /* mean and rstd */ \
    X(act,  fc,        KEPT,   N * c.fc())      X(act, fc_gelu, KEPT, N * c.hidden()) \
    X(act,  residual,  KEPT,   N * c.C)         /* the residual stream after the block */ \
    X(act,  lnf,       ONCE,   N * c.C)         X(stat, lnf_stats, ONCE, 2 * N)   /* mean and rstd */ \
    X(act,  logits,    ONCE,   head_rows(N, c) * padded(c.vocab())) \
    X(act,  dresidual, ONCE,   training ? N * c.C : 0)       /* gradient of the residual stream */ \
    X(act,  dx,        ONCE,   training ? N * c.C : 0)       /* of what is C wide within a branch */ \
    X(act,  dwide,     ONCE,   training ? N * std::max({c.qkv(), c.fc(), 2 * c.C}) : 0)     /* of qkv or fc; sums of the embedding */ \
    X(act,  lora,      ONCE,   2 * N * c.rank)              /* x A, and its gradient */ \
    X(act,  arrivals,  ONCE,   c.tp > 1 ? N * c.C + c.tp : 0)            /* from ranks that share the layers */
#define AS_POINTER(type, field, ...) type* field;

// out = plus + x w + b: a branch joins the residual stream. Of ranks that share layers each has some rows of w, and the
// first adds b and plus.
template <typename M> void add_branch(M& m, auto out, auto x, auto layer, decltype(out) plus, int N, int width) {
    if (!m.group.first()) layer.b = nullptr;
    m.linear_forward(out, x, layer, m.group.first() ? plus : nullptr, nullptr, N, width, m.c.C);
    m.group.sum(out, (size_t)N * m.c.C);
}

// Tokens t0 .. t0+T-1 of each of B rows, through all blocks and the last layernorm, whose output it returns. a.qkv, the
// KV cache, has S tokens a row; with T < S new ones are computed contiguously, in fc, and then copied into it.
template <typename M> auto network_forward(M& m, int B, int t0, int T, int S) {
    const int N = B * T, C = m.c.C, H = m.c.hidden();
    auto residual = m.activations(0).embedded;
    m.shares.await_weights(0);               // groups: 0 the embeddings, l + 1 layer l, L + 1 what comes after
    for (int l = 0; l < m.c.L; l++) {
        m.shares.await_weights(l + 1);
        const auto a = m.activations(l);
        const auto w = m.weights_of(l);
        const auto qkv = T == S ? a.qkv : a.fc;
        const auto ln1 = l == 0 ? m.embedding_norm_forward(a, w, B, t0, T)
                                : m.norm_forward(a.ln1, a.ln1_stats, residual, w.ln1, N);
        m.linear_forward(qkv, ln1, w.qkv, nullptr, nullptr, N, C, m.c.qkv());
        m.attention_forward(a, qkv, B, t0, T, S);
        add_branch(m, a.middle, a.att, w.proj, residual, N, m.c.att());
        const auto ln2 = m.norm_forward(a.ln2, a.ln2_stats, a.middle, w.ln2, N);
        m.linear_forward(a.fc_gelu, ln2, w.fc, nullptr, a.fc, N, C, H);
        add_branch(m, a.residual, a.fc_gelu, w.fcproj, a.middle, N, H);
        residual = a.residual;
    }
    m.shares.await_weights(m.c.L + 1);
    const auto a = m.activations(0);
    return m.norm_forward(a.lnf, a.lnf_stats, residual, m.weights_of(0).lnf, N);
}

/* The head: logits = x table^T, their loss, and if asked the gradients of x, which are left in dx, and of the table. It
   takes a chunk of rows at a time, so that logits (N,V) are never held whole; their gradients take their place.
   cost     2 N C V FLOPs, 6 N C V with gradients */
template <typename M, typename X> void network_head(M& m, X x, int N, bool gradients) {
    const int chunk = m.chunk();
    for (int n0 = 0; n0 < N; n0 += chunk) {
        const int n = std::min(chunk, N - n0);
        m.logits_forward(x, n0, 1, n);
        m.cross_entropy(n0, n, gradients);
        if (gradients) m.logits_backward(x, n0, n);
    }
    m.add_loss(N);
}

// The head has left d(loss)/d(lnf) in dx. linear_backward() leaves out the bias: what completes the gradient of a
// linear layer's output, that of a norm, gelu or attention, also adds its sum over rows to that layer's db.
template <typename M> void network_backward(M& m, int B, int T) {
    const int N = B * T, C = m.c.C, H = m.c.hidden(), L = m.c.L;
    const auto end = m.activations(L - 1);
    m.group.sum(end.dx, (size_t)N * C);
    m.norm_backward(end.dresidual, false, m.gradients_of(0).lnf, m.gradients_of(L - 1).fcproj.b, end.dx, end.residual,
                    m.weights_of(0).lnf.w, end.lnf_stats, N);
    m.shares.reduce_gradients(L + 1);
    for (int l = L - 1; l >= 0; l--) {
        const auto a = m.activations(l);
        const auto w = m.weights_of(l);
        const auto g = m.gradients_of(l);
        const auto input = l ? m.activations(l - 1).residual : a.embedded;                 // the residual stream before
        const auto input_db = l ? m.gradients_of(l - 1).fcproj.b : nullptr;
        // forward: residual = middle + gelu(norm(middle) fc) fcproj
        m.linear_backward(a.dwide, g.fcproj, a.dresidual, a.fc_gelu, w.fcproj, N, H, C);
        m.gelu_backward(a.dwide, g.fc.b, a.fc, N, H);
        m.linear_backward(a.dx, g.fc, a.dwide, a.ln2, w.fc, N, C, H);
        m.group.sum(a.dx, (size_t)N * C);
        m.norm_backward(a.dresidual, true, g.ln2, g.proj.b, a.dx, a.middle, w.ln2.w, a.ln2_stats, N);
        // forward: middle = input + attention(norm(input) qkv) proj
        m.linear_backward(a.dx, g.proj, a.dresidual, a.att, w.proj, N, m.c.att(), C);
        m.attention_backward(a, g.qkv.b, B, T);
        m.linear_backward(a.dx, g.qkv, a.dwide, a.ln1, w.qkv, N, C, m.c.qkv());
        m.group.sum(a.dx, (size_t)N * C);
        m.norm_backward(a.dresidual, true, g.ln1, input_db, a.dx, input, w.ln1.w, a.ln1_stats, N);
        m.shares.reduce_gradients(l + 1);    // while the layer below is computed
    }
    m.embedding_backward(m.gradients_of(0), end.dresidual, B, T);
    m.shares.reduce_gradients(0);
    m.shares.await_gradients();
}

namespace cpu {

using act = real;
using stat = real;
inline int most_logits = 1 << 25;            // numbers at once; tests have fewer, so that they come in several chunks
inline size_t head_rows(size_t N, const Config& c) {         // of a chunk; chunks are of nearly equal size
    const size_t most = std::clamp(most_logits / (c.V / c.tp), 64, 1024);
    const size_t chunks = std::max<size_t>(1, (N + most - 1) / most);
    return (N + chunks - 1) / chunks;
}
inline size_t padded(int V) { return V; }

struct Activations { ACTIVATIONS(AS_POINTER) };

#define AS_SLOT(type, field, per, count) {per, count},
inline Slots activation_slots(const Config& c, size_t N, bool training) {
    const Per KEPT = training ? BLOCK : ONCE;
    return Slots({ACTIVATIONS(AS_SLOT)}, c.L);
}

// Model::draw(), by way of the logits of all rows; adjust(b, row) may change a row of them before.
template <typename M, typename F>
void draw_adjusted(M& m, const int* x, int B, int t0, int T, const Sampling& s, const std::vector<int>& hidden,
                   Rng* rng, int* token, F adjust) {
    std::vector<float> logits((size_t)B * m.c.V);
    m.extend(x, B, t0, T);
    m.logits(T - 1, T, B, logits.data());
    for (int b = 0; b < B; b++) {
        float* const row = &logits[(size_t)b * m.c.V];
        adjust(b, row);
        for (int v : hidden) row[v] = NEVER;
        token[b] = pick(row, m.c.V, s, rng[b]);
    }
}

struct Model : ModelBase<MpiLink, real> {
    static void join(const Options&) { join_mpi(); }         // the other ranks, if there are any
    static void leave() { leave_mpi(); }
    const bool bf16, in_unit;                // products are made of bfloat16 numbers; in a unit of the processor
    const Slots slots;                       // of activations
    const Footprint memory;
    Buffer<real> weights, gradients, moment1, moment2, acts;
    Buffer<real> sums, arrivals;             // several ranks: this one's part of their gradients; where others' arrive
    Buffer<bfloat16> rounded;                // the weights again
    Buffer<uint8_t> packed;                  // matrices that are frozen, in fewer bits

    Model(const Config& c, int B, int T, bool training, bool bf16 = false)
        : ModelBase(c, B, T, training, 1, false), bf16(bf16), in_unit(bf16 && unit() != Unit::NONE),
          slots(activation_slots(c, (size_t)B * T, training)), memory(needed(training)), weights(layout.slots.size),
          gradients(training * gradient_layout.trained()), moment1(training * shares.moments()), moment2(moment1.size),
          acts(slots.size), sums(shares.several() * shares.kept.back()), arrivals(shares.several() * shares.landing),
          rounded(bf16 * layout.slots.size), packed(16 * layout.packed.size), token_weight(logprob.size()) {
        shares.gradients = gradients.data();
        shares.sums = shares.several() ? sums.data() : gradients.data();
        shares.arrivals = arrivals.data();
        group.arrivals = activations(0).arrivals;
    }
    Footprint needed(bool training) const {     // dies if there is less
        if ((bf16 || c.form != Form::FP32) && sizeof(real) != 4) die("this program was built for fp64 alone");
        const double each = sizeof(real), copies = bf16 * sizeof(bfloat16), have = available_memory() / world().here;
        const Footprint m = {.weights = layout.slots.size * (each + copies) + 16 * layout.packed.size,
                             .gradients = training * (gradient_layout.trained() + shares.exchanged()) * each,
                             .moments = training * 2 * shares.moments() * each, .activations = slots.size * each};
        if (m.all() > have)
            die("not enough memory: %s for %d rows of %d tokens, %.2f GB available; lower --batch or --context",
                m.text().c_str(), max_B, max_T, have / 1e9);
        return m;
    }
    std::string describe() {
        peak = measure_peak(bf16 ? unit() : Unit::NONE);
        return format("%d threads%s, %d-bit vectors%s, measured peak %.0f GFLOP/s; %s", omp_get_max_threads(),
                      WITHOUT_OPENMP, VECTOR_BYTES * 8, bf16 ? told(unit()) : "", peak / 1e9, memory.text().c_str());
    }
    Speed speed(double tokens, double seconds) {
        const double flops = c.flops_per_token(layout.parameters, layout.frozen_parameters, max_T) * tokens / seconds;
        peak = std::max(peak, flops);                        // what was measured beside other work is too low
        return {format("%.1f GFLOP/s (%.0f%%)", flops / 1e9, 100 * flops / peak), {}};
    }

    void forward(const int* x, const int* y, const Objective& o, double denominator, int B, int T, bool backward) {
        const int N = B * T;
        take(x, B, T);
        targets.assign(y, y + N);
        for (int n = 0; n < N; n++) token_weight[n] = (o.weight ? o.weight[n] : 1.0) / denominator;
        kl = o.kl / denominator;
        terms = {.weight = token_weight.data(), .kl = &kl, .old = o.old, .ref = o.ref, .clip = (float)o.clip};
        network_head(*this, network_forward(*this, B, 0, T, T), N, backward);
    }
    void readout(const int* x, const int* at, int token, int B, int T, float* out) {
        take(x, B, T);
        read_at.assign(at, at + B);
        read_token = token;
        const real* ln = network_forward(*this, B, 0, T, T);
        with_matrix(table(), c.C, [&]<typename>(auto w) { readout_forward(out, ln, at, w.from(token, 0), B, T, c.C); });
    }
    void readout_backward(const float* dout) {
        const Activations a = activations(0);
        real* const dw = dtable() ? dtable() + (size_t)read_token * c.C : nullptr;
        with_matrix(table(), c.C, [&]<typename P>(auto table) {
            cpu::readout_backward(a.dx, dw, dout, a.lnf, read_at.data(), table.from(read_token, 0), rows, columns, c.C);
        });
    }
    void backward() { network_backward(*this, rows, columns); }
    void extend(const int* x, int B, int t0, int T) {
        take(x, B, T);
        network_forward(*this, B, t0, T, max_T);
    }
    void logits(int n, int step, int count, float* out) {
        const Activations a = activations(0);
        for (int i = 0; i < count; i += chunk()) {
            const int some = std::min(chunk(), count - i);
            logits_forward(a.lnf, n + i * step, step, some);
            std::copy_n(a.logits, (size_t)some * c.vocab(), out + (size_t)i * c.vocab());
        }
        join_columns(out, count, c.V, group.comm, [&](int rank) { return c.tokens(rank); });
    }
    void draw(const int* x, int B, int t0, int T, const Sampling& s, const std::vector<int>& hidden, Rng* rng,
              int* token, bool) {
        draw_adjusted(*this, x, B, t0, T, s, hidden, rng, token, [](auto...) {});
    }

    void update(const AdamW& o, double clip, integer step) {
        const bool parts = shares.comm.zero > 0;             // each rank updates its own
        // Loss and squares of gradients; of what a tensor parallel group has in common, the first counts it.
        double total[] = {c.tp_rank ? 0 : loss, 0};
        if (c.tp_rank) {
            auto add = [&](real* grad, auto, size_t n) { total[1] += sum_of_squares(grad, n); };
            for (const Tensor& t : layout.tensors) if (!t.slice.all()) each_place(GRADIENT, t, 0, t.count(), add);
        } else total[1] = sum_of_squares(shares.sums, shares.kept.back());
        world().sum(total, 2);
        loss = total[0];
        gradient_norm = std::sqrt(total[1]);
        if (!std::isfinite(gradient_norm) || !std::isfinite(loss)) return;
        const double scale = clip > 0 ? std::min(1.0, clip / (gradient_norm + 1e-6)) : 1;
        const AdamWStep s(o, step);
        if (shares.several() && !parts) shares.gather_gradients();
        real* const gradient = parts ? shares.sums : shares.gradients;
        for (const Tensor& t : layout.tensors) {
            if (!t.present || !t.trained) continue;
            shares.places(gradient, parts, t.offset - layout.frozen, t.count(), [&](real* g, size_t i, size_t n) {
                const size_t own = g - gradient;
                i += t.offset;
                adamw_update(weights.data() + i, moment1.data() + own, moment2.data() + own, g, n, s, t.decays(),
                             scale, bf16 ? rounded.data() + i : nullptr);
            });
        }
        if (!parts) return;
        real* const trained = weights.data() + layout.frozen;
        bfloat16* const its = bf16 ? rounded.data() + layout.frozen : nullptr;
        shares.send_weights(trained, [=](size_t at, size_t n) { if (its) convert(its + at, trained + at, n); });
    }

    StepResult result() { return {std::exchange(loss, 0), gradient_norm}; }

    // Of several ranks, each has a part of gradients and moments; zeros stand for the others'.
    void get(Which which, size_t i, float* out, size_t from = 0, size_t n = SIZE_MAX) const {
        const Tensor& t = layout.tensors[i];
        n = std::min(n, t.count() - from);
        if (which == WEIGHT) for (int g = 0; g <= c.L + 1; g++) shares.await_weights(g);
        if (is_packed(which, t)) return unpack(t.form, out, packed.data() + t.packed, t.rows, t.cols);
        std::fill_n(out, n, 0);
        each_place(which, t, from, n, [&](real* own, size_t at, size_t some) { convert(out + at, own, some); });
    }
    void set(Which which, size_t i, const float* in) {
        const Tensor& t = layout.tensors[i];
        if (is_packed(which, t)) return pack(t.form, packed.data() + t.packed, in, t.rows, t.cols);
        each_place(which, t, 0, t.count(), [&](real* own, size_t at, size_t n) { convert(own, in + at, n); });
        if (which == WEIGHT && bf16 && t.present) convert(rounded.data() + t.offset, in, t.count());
    }
    Activations activations(int l) const {
        size_t k = 0;
        Activations a;
#define TAKE_SLOT(type, field, ...) a.field = acts.data() + slots.place(k++, l);
        ACTIVATIONS(TAKE_SLOT)
        return a;
    }

    // The layers, as the network calls them.
    using Parameters = Weights<real, Place<real>>;
    Parameters weights_of(int l) const { return layout.at<Parameters>(weights.data(), l, 0, packed.data()); }
    const real* embedding_norm_forward(const Activations& a, const Parameters& w, int B, int t0, int T) {
        auto embed = [&](auto* wte, auto* wpe) {
            embedding_forward(a.embedded, inputs.data(), wte, wpe, B, t0, T, c.C, c.first_token(), c.vocab());
        };
        if (w.wte.packed) embed((const bfloat16*)w.wte.packed, (const bfloat16*)w.wpe.packed);
        else embed(w.wte.p, w.wpe.p);
        group.sum(a.embedded, (size_t)B * T * c.C);
        return norm_forward(a.ln1, a.ln1_stats, a.embedded, w.ln1, B * T);
    }
    const real* norm_forward(real* out, real* stats, const real* x, const Norm<real>& norm, int N) {
        layernorm_forward(out, stats, stats + N, x, norm.w, norm.b, N, c.C, c.eps);
        return out;
    }
    void norm_backward(real* dresidual, bool add, const Norm<real>& g, real* dbias, const real* dout, const real* x,
                       const real* w, const real* stats, int N) {
        if (!add) std::fill_n(dresidual, (size_t)N * c.C, real(0));
        layernorm_backward(dresidual, g.w, g.b, dout, x, w, stats, stats + N, N, c.C);
        bias_backward(dbias, dresidual, N, c.C);
    }
    void linear_forward(real* out, const real* x, const Layer<real>& layer, const real* plus, real* before_gelu, int N,
                        int C, int OC) {
        real* const to = before_gelu ? before_gelu : out;
        auto product = [&]<typename P>(auto w) { cpu::linear_forward<P>(to, x, w, layer.b, plus, N, C, OC); };
        with_matrix(layer.w, OC, product);
        if (layer.A) lora_forward(to, activations(0).lora, x, layer, c.lora_scale(), N, C, OC, c.rank);
        if (before_gelu) gelu_forward(out, before_gelu, (size_t)N * OC);
    }
    void linear_backward(real* dx, const Linear<real>& g, const real* dout, const real* x, const Layer<real>& layer,
                         int N, int C, int OC) {
        with_matrix(layer.w, OC, [&]<typename P>(auto w) { cpu::linear_backward<P>(dx, g.w, dout, x, w, N, C, OC); });
        real *const u = activations(0).lora, *const du = u + (size_t)N * c.rank;
        if (layer.A) lora_backward(dx, g, u, du, dout, x, layer, c.lora_scale(), N, C, OC, c.rank);
    }
    void gelu_backward(real* d, real* db, const real* x, int N, int C) {
        cpu::gelu_backward(d, d, x, (size_t)N * C);
        bias_backward(db, d, N, C);
    }
    void attention_forward(const Activations& a, const real* qkv, int B, int t0, int T, int S) {
        const size_t row = c.qkv();
        if (T != S) for (int b = 0; b < B; b++) std::copy_n(qkv + b * T * row, T * row, a.qkv + (b * S + t0) * row);
        const auto attention = in_unit ? cpu::attention_forward<bfloat16> : cpu::attention_forward<real>;
        attention(a.att, a.lse, a.qkv, B, t0, T, S, c.att(), c.heads());
    }
    void attention_backward(const Activations& a, real* db, int B, int T) {
        const auto attention = in_unit ? cpu::attention_backward<bfloat16> : cpu::attention_backward<real>;
        attention(a.dwide, a.dx, a.qkv, a.att, a.lse, B, T, c.att(), c.heads());
        bias_backward(db, a.dwide, B * T, c.qkv());
    }
    void embedding_backward(const Weights<real>& g, const real* dout, int B, int T) {
        if (g.wte) cpu::embedding_backward(g.wte, g.wpe, dout, inputs.data(), B, T, c.C, c.first_token(), c.vocab());
    }
    int chunk() const { return head_rows((size_t)max_B * max_T, c); }
    // of `count` rows n0, n0 + step, ... of x
    void logits_forward(const real* x, int n0, int step, int count) {
        const int V = c.vocab();
        with_matrix(table(), c.C, [&]<typename P>(auto table) {
            gemm<P>({activations(0).logits, V}, {x + (size_t)n0 * c.C, (long)step * c.C, 1}, table.t(), count, V, c.C);
        });
    }
    void cross_entropy(int n0, int count, bool backward) {
        cpu::cross_entropy(activations(0).logits, &logprob[n0], &best[n0], &targets[n0], terms.from(n0), count,
                           c.vocab(), backward, c.first_token(), group);
    }
    void logits_backward(const real* x, int n0, int count) {
        const Activations a = activations(0);
        const int V = c.vocab();
        const Matrix<> d = {a.logits, V, 1};
        with_matrix(table(), c.C, [&]<typename P>(auto table) {
            gemm<P>({a.dx + (size_t)n0 * c.C, c.C}, d, table, count, c.C, V);
            if (dtable()) gemm<P>({dtable(), c.C, dtable()}, d.t(), {x + (size_t)n0 * c.C, c.C, 1}, V, c.C, count);
        });
    }
    void add_loss(int N) {
        double sum = 0;
        for (int n = 0; n < N; n++) if (targets[n] >= 0) sum += terms.loss<double>(n, logprob[n]).loss;
        loss += sum;
    }

private:
    std::vector<int> inputs, targets;        // of the last forward or extend
    std::vector<int> read_at;                // of the last readout
    std::vector<double> token_weight;
    double kl = 0;
    TokenTerms<double> terms;
    int rows = 0, columns = 0, read_token = 0;
    double loss = 0, gradient_norm = 0, peak = 0;

    void take(const int* x, int B, int T) {
        inputs.assign(x, x + (size_t)B * T);
        rows = B;
        columns = T;
    }
    static bool is_packed(Which which, const Tensor& t) { return which == WEIGHT && t.present && t.form != Form::FP32; }
    template <typename F> void each_place(Which which, const Tensor& t, size_t from, size_t n, F f) const {
        if (!t.present || (which != WEIGHT && !t.trained)) return;
        if (which == WEIGHT) return f(weights.data() + t.offset + from, 0, n);
        real* const arenas[] = {nullptr, shares.sums, moment1.data(), moment2.data()};
        const bool of_parts = which == GRADIENT ? shares.several() : shares.comm.zero;
        shares.places(arenas[which], of_parts, t.offset - layout.frozen + from, n, f);
    }
    Place<real> table() const { return c.tied ? weights_of(0).wte : weights_of(0).head_w; }
    // Calls f<P>(w, as a matrix of the form it is stored in), P the type in which products multiply: bfloat16 with
    // --dtype bf16, else real; int8 and nf4 always real.
    template <typename F> void with_matrix(const Place<real>& w, int cols, F f) const {
        auto as_bf16 = [&](const bfloat16* p) {
            const Matrix<bfloat16> m = {p, cols, 1};
            if (bf16) f.template operator()<bfloat16>(m);
            else f.template operator()<real>(m);
        };
        auto as_real = [&](auto m) { f.template operator()<real>(m); };
        const long row = packed_row(cols);
        if (w.form == Form::BF16) as_bf16((const bfloat16*)w.packed);
        else if (w.form == Form::INT8) as_real(Matrix<int8_t>{(const int8_t*)w.packed, w.scales, row, 1});
        else if (w.form == Form::NF4) as_real(Matrix<nf4>{w.packed, w.scales, 0, row, 1});
        else if (bf16) as_bf16(rounded.data() + (w.p - weights.data()));
        else as_real(Matrix{w.p, cols, 1});
    }
};

}  // namespace cpu

// ---- 8. model files -------------------------------------------------------------------------------------------------
// The shape of a model on disk, its tensors, and what tells whether this program computes what its writer did.
inline std::string config_json(Config c, int eot) { return config_json(c.members(), eot); }
inline Config config_of(const ModelFile& m, int heads, integer context = 0) {             // of the command line
    Config c;
    read_config(c.members(), with_heads(m, heads), m.config_path.empty() ? m.path : m.config_path);
    if (heads && heads != c.NH) die_usage("--heads %d: %s has %d", heads, m.path.c_str(), c.NH);
    if (context > c.T) die_usage("--context %lld: %s has positions for %d", context, m.path.c_str(), c.T);
    return c;
}

// A model's tensors as files hold them, in layout order: its own or those of its adapter; kinds: weights, or moments
// with a prefix to their names.
using Kinds = std::vector<std::pair<std::string, Which>>;
const Kinds MOMENTS = {{"m.", MOMENT1}, {"v.", MOMENT2}};
template <typename Model>
std::vector<Stored> stored(Model& model, bool adapter = false, const Kinds& kinds = {{"", WEIGHT}}) {
    std::vector<Stored> list;
    for (auto& [prefix, which] : kinds)
        for (size_t i = 0; i < model.layout.tensors.size(); i++) {
            const Tensor& t = model.layout.tensors[i];
            if (t.adapter() != adapter) continue;
            auto get = [&model, which = which, i](float* out, size_t at, size_t n) { model.get(which, i, out, at, n); };
            auto set = [&model, which = which, i, &t](const float* in) {
                std::vector<float> own;
                model.set(which, i, t.slice.of(in, t.count(), own));
            };
            const bool twin = !t.present && t.name == "lm_head.weight";
            list.push_back({.name = prefix + t.name, .shape = t.shape, .get = get, .set = set, .present = t.present,
                            .same_as = twin ? prefix + "transformer.wte.weight" : "", .mine = model.mine(i),
                            .slice = t.slice});
        }
    return list;
}

/* What this program computes, in at most 64 numbers: logits of a small model of a kind with c, whose weights are drawn
   so that every layer matters (as they are initialized, a GELU is almost linear). It stands in state.json: a program
   that computes another function of the same tensors must not go on with them as if they were its own. */
inline std::vector<float> fingerprint(Config c) {
    const int HS = std::min(c.head_size(), 64);
    c = c.part(1, 0);
    c.adapt({});
    c.form = Form::FP32;
    for (auto [size, most] : {std::pair{&c.L, 2}, {&c.NH, 2}, {&c.V, 64}, {&c.T, 128}}) *size = std::min(*size, most);
    c.C = HS * c.NH;
    cpu::Model model(c, 1, c.T, false);
    for (size_t i = 0; i < model.layout.tensors.size(); i++) {
        std::vector<float> values = model.layout.initial_values(i, 1);
        if (model.layout.tensors[i].per == BLOCK)
            for (size_t k = 0; k < values.size(); k++) values[k] += 0.2 * Rng(k, i + 1).normal();
        model.set(WEIGHT, i, values.data());
    }
    std::vector<int> x;
    for (int t = 0; t < c.T; t++) x.push_back((7919 * t + 1) % c.V);
    std::vector<float> logits(c.V);
    model.extend(x.data(), 1, 0, c.T);
    model.logits(c.T - 1, 1, 1, logits.data());
    return logits;
}

// ---- 9. evaluate, sample, chat --------------------------------------------------------------------------------------
// A model is a Model as section 7 describes it, of this program or of train_gpt.cu.

// Scores n rows; each(row, target, its log-probability, likeliest token) sees the targets in order. Several ranks take
// turns with batches.
void score(auto& model, size_t n, auto row_at, auto each) {
    each_batch(n, model.max_B, row_at, [&](size_t i, const Batch& b) {
        model.forward(b.x.data(), b.y.data(), {}, 1, b.B, b.T, false);
        model.result();
        for (size_t k = 0; k < b.y.size(); k++) {
            if (b.y[k] < 0) continue;
            const size_t row = i + k / b.T;
            const double logprob = model.logprob[k];
            if (!std::isfinite(logprob)) die("row %zu: a log-probability is %g; are the weights finite?", row, logprob);
            each(row, b.y[k], logprob, model.best[k]);
        }
    }, world().replica(), world().replicas());
}

Validation validate(auto& model, const ValidationRows& rows, const Tokenizer* tokenizer) {
    Validation v;
    score(model, rows.spans.size(), rows_of(rows), [&](size_t, int target, double logprob, int) {
        v.nats -= logprob;
        v.tokens++;
        if (tokenizer && !tokenizer->is_added(target)) v.bytes += tokenizer->decode(target).size();
    });
    auto sum = [](double value) { return world().sum_of_groups(value); };
    return {sum(v.nats), (size_t)sum(v.tokens), (size_t)sum(v.bytes)};
}

// What a reward model says of n rows that end in an answer: the logit of end of text behind it. Of several ranks that
// take turns with batches each has some, and zeros.
std::vector<float> rewards_of(auto& model, size_t n, auto row_at, int eot, int rank = 0, int ranks = 1) {
    std::vector<float> rewards(n);
    auto read = [&](size_t i, const Batch& b) { model.readout(b.x.data(), b.last.data(), eot, b.B, b.T, &rewards[i]); };
    each_batch(n, model.max_B, row_at, read, rank, ranks);
    for (float r : rewards) if (!std::isfinite(r)) die("a reward is %g; are the model's weights finite?", r);
    return rewards;
}

Preferences validate_pairs(auto& model, const ValidationRows& rows, int eot) {
    auto row_at = [&](size_t i) { return rows.row(i / 2, 1 + i % 2); };        // chosen and rejected take turns
    const std::vector<float> mine = rewards_of(model, 2 * rows.spans.size(), row_at, eot, world().rank, world().size);
    std::vector<double> all(mine.begin(), mine.end());
    world().sum(all.data(), all.size());
    Preferences p;
    for (size_t i = 0; i < all.size(); i += 2) p.add(all[i] - all[i + 1], pair_loss(all[i] - all[i + 1]).first);
    return p;
}

// Responses that greedy decoding gets right: given the prompt and the response so far, each of its tokens, the end of
// text included, is the likeliest. One forward pass finds that for all of a response's tokens at once.
size_t right_answers(auto& model, const Examples& e, int eot) {
    std::vector<bool> wrong(e.size());
    auto row_at = [&](size_t i) { return turn_row(eot, e.of(i)[0], e.of(i)[1]); };
    auto compare = [&](size_t i, int target, double, int best) { if (target != best) wrong[i] = true; };
    score(model, e.size(), row_at, compare);
    return e.size() - world().sum_of_groups(std::count(wrong.begin(), wrong.end(), true));
}

ChoiceScores multiple_choice(auto& model, const Choices& choices, const Tokenizer* tokenizer) {
    const ChoiceRows rows(choices);
    std::vector<double> sums(rows.of.size());
    score(model, sums.size(), rows_of(rows), [&](size_t i, int, double logprob, int) { sums[i] += logprob; });
    return choice_scores(rows, sums, tokenizer);
}

/* Continues prompts, in batches of at most 64; emit(i, token) gets the tokens of prompt i as they are drawn, and says
   whether it goes on. An end of text ends it, too; tokens that the tokenizer cannot show are never drawn. A text
   depends on the seed and its prompt, not on its batch, except for rounding: cuBLASLt and a CPU's unit for bfloat16 may
   sum in another order for another number of rows. adjust(i, z) may change the logits of prompt i's next token. held:
   what row 0 of the cache holds, before and after; a single prompt that begins with it is computed from there on. */
void generate(auto& model, const Sampling& sampling, uint64_t seed, const std::vector<Prompt>& prompts, int eot,
              const Tokenizer* tokenizer, auto emit, const Adjust& adjust = nullptr, std::vector<int>* held = nullptr) {
    const std::vector<int> hidden = tokenizer ? tokenizer->hidden(model.c.V) : std::vector<int>();
    for (const std::vector<int>& number : by_length(prompts, std::min(model.max_B, 64))) {
        Growing texts(prompts, number, seed);
        std::vector<int> tokens(number.size());
        if (held && number.size() == 1) texts.skip(*held);
        while (texts.go_on()) {
            const std::vector<int> x = texts.unseen(model.max_T);
            const int B = number.size(), T = x.size() / B, past = texts.past;
            auto change = [&](int b, float* z) { if (adjust && texts.draws(b)) adjust(number[b], z); };
            Rng* const rng = texts.rng.data();
            if (adjust || model.c.tp > 1)
                cpu::draw_adjusted(model, x.data(), B, past, T, sampling, hidden, rng, tokens.data(), change);
            else model.draw(x.data(), B, past, T, sampling, hidden, rng, tokens.data(), texts.all_draw());
            texts.add(tokens, eot, emit);
        }
        if (held) *held = texts.cached();
    }
}

// How texts are drawn: --stop and the like; the end of text, or -1; for a --pattern its guide.
struct Drawing {
    const Options& o;
    int eot;
    const Tokenizer* tokenizer;
    Guide* guide = nullptr;
};

constexpr auto GOES_ON = [](auto...) { return true; };
// Draws a text to each prompt; shown(i, text) sees it grow, and says whether it goes on.
std::vector<Text> draw_texts(auto& model, const Drawing& how, uint64_t seed, const std::vector<Prompt>& prompts,
                             auto shown, std::vector<int>* held = nullptr) {
    const Options& o = how.o;
    const Stops stops = {o.stop};
    std::vector<Text> texts;
    for (const Prompt& p : prompts) texts.push_back({p});
    std::vector<int> states(prompts.size(), how.guide ? how.guide->start() : 0);     // of the pattern's automaton
    auto emit = [&](int i, int token) {
        if (how.guide && token != how.eot) states[i] = how.guide->advance(states[i], token);
        return texts[i].add(token, how.eot, how.tokenizer, stops) && shown(i, texts[i]);
    };
    Adjust adjust;
    if (how.guide || o.repetition_penalty != 1)
        adjust = [&](int i, float* z) {
            cpu::penalize(z, texts[i].all(), o.repetition_penalty);
            if (how.guide) how.guide->rule_out(z, states, i, how.eot, NEVER);
        };
    generate(model, Sampling(o), seed, prompts, how.eot, how.tokenizer, emit, adjust, held);
    for (size_t i = 0; i < texts.size(); i++) {
        texts[i].certain = texts[i].response.size();
        shown(i, texts[i]);
    }
    return texts;
}

// Log-probabilities of the tokens of texts under the model itself, whatever they were drawn with.
void score_texts(auto& model, std::vector<Text>& texts) {
    std::vector<Row> rows;
    std::vector<Text*> text;                                 // of each row
    for (Text& t : texts) {
        for (Row& row : text_rows(t.all(), model.max_T)) rows.push_back(row);
        text.resize(rows.size(), &t);
    }
    auto row_at = [&](size_t i) { return rows[i]; };
    score(model, rows.size(), row_at, [&](size_t i, int, double lp, int) { text[i]->logprobs.push_back(lp); });
}

void reward_answers(auto& rewarder, auto& answers, int eot) {
    auto row_at = [&](size_t i) { return answers[i].row(eot); };
    const std::vector<float> rewards = rewards_of(rewarder, answers.size(), row_at, eot);
    for (size_t i = 0; i < rewards.size(); i++) answers[i].reward = rewards[i];
}

inline size_t texts_each(const Options& o) { return o.best_of ? o.best_of : o.vote ? o.vote : o.samples; }
// Draws so many texts to each prompt, to as many prompts at a time as make 64 texts; each(k, t, n) gets the n texts t
// of prompt k, or the one of them that is taken.
void draw_groups(auto& model, auto* rewarder, const Drawing& how, const std::vector<Prompt>& prompts, auto shown,
                 auto each) {
    const Options& o = how.o;
    const size_t n = texts_each(o);
    size_t k = 0;
    for (const std::vector<Prompt>& some : repeated(prompts, n, 64)) {
        std::vector<Text> texts = draw_texts(model, how, o.seed, some, shown);
        if (o.format == "jsonl" || (o.best_of && !rewarder)) score_texts(model, texts);
        if (rewarder) reward_answers(*rewarder, texts, how.eot);
        else if (o.best_of) for (Text& t : texts) t.reward = t.mean_logprob();
        for (size_t i = 0; i < texts.size(); i += n) {
            const size_t taken = o.vote ? elected(&texts[i], n, o.vote_after) : o.best_of ? best_of(&texts[i], n) : 0;
            each(k++, &texts[i + taken], o.vote || o.best_of ? 1 : n);
        }
    }
}

// A conversation; dev/host/chat.h says what it is made of.
void chat(auto& model, const Drawing& how) {
    std::vector<int> held;
    Conversation talk{*how.tokenizer, how.eot, model.max_T, how.o.tokens};
    talk.hold([&](const Prompt& p, uint64_t n, auto show) {
        return draw_texts(model, how, how.o.seed + n, {p}, show, &held)[0];
    });
}

// ---- 10. train ------------------------------------------------------------------------------------------------------
// The loop, and all that stands before it. Everything random is a function of the seed and the step.

// The shape that --init and the size options ask for; fills in the options it decides, so that they can be printed.
inline Config resolve_config(Options& o, const ModelFile* file, const Tokenizer* tokenizer) {
    Config c;
    if (file) c = config_of(*file, o.heads, o.context);
    else {
        if (o.init == "custom" && (!o.layers || !o.heads || !o.channels))
            die_usage("--init custom: give --layers, --heads and --channels");
        const Preset* preset = preset_of(o.init);
        c.L = preset->L;
        c.NH = preset->NH;
        c.C = preset->C;
        c.T = o.context ? o.context : 1024;
        if (!o.vocab) c.V = tokenizer ? tokenizer->vocab() : assumed_vocab(o.train, o.val, !o.raw.empty());
    }
    auto settle = [&](const char* name, auto& option, auto& size) {          // a file has it, or the option decides
        if (file && o.has(name) && option != size)
            die_usage("%s %lld: %s has %d", dashed(name).c_str(), option, file->path.c_str(), size);
        if (!file && (option || std::is_same_v<decltype(size), bool&>)) size = option;
        option = size;
    };
    settle("layers", o.layers, c.L);
    settle("heads", o.heads, c.NH);
    settle("channels", o.channels, c.C);
    settle("vocab", o.vocab, c.V);
    settle("bias", o.bias, c.bias);
    settle("tied", o.tied, c.tied);
    if (o.context == 0) o.context = std::min(c.T, 1024);
    if (c.C % c.NH) die_usage("--channels %d: not a multiple of --heads %d", c.C, c.NH);
    if (tokenizer && tokenizer->vocab() > c.V)
        die("--vocab: the model has %d tokens, the tokenizer %d; the shards may need them all", c.V,
            tokenizer->vocab());
    if (o.lora_rank == 0 && o.has("base_dtype") && o.base_dtype != DTYPE)
        die_usage("--base-dtype %s: all weights are trained; give --lora-rank", o.base_dtype.c_str());
    if (o.lora_rank == 0) return c;
    c.form = form_of(o.base_dtype);
    if (!file) die_usage("--lora-rank: needs --init, a model to adapt");
    c.adapt({(int)o.lora_rank, o.lora_alpha, read_targets("--lora-targets", o.lora_targets)});
    if (file->adapter) file->adapter->check(c);
    return c;
}

// Heuristic: threads synchronize about ten times a layer, and one pays from 10 MFLOP a layer on (dev/SPEED.md).
inline void choose_threads(const Options& o, const Config& c, size_t tokens, bool training) {
    if (o.threads || getenv("OMP_NUM_THREADS")) return;
    const double flops = c.flops_per_token(Layout(c).parameters, 0, o.context) * tokens / (training ? 1 : 3);
    omp_set_num_threads(std::clamp(flops / (1e7 * c.L), 1.0, (double)omp_get_max_threads()));
}

// A model on disk that is not to change: which checkpoint it is, and what stands beside it.
struct Frozen {
    std::string path;
    Held held;                               // locks the directory that `file` is mapped from
    ModelFile file;
    Config c;
    std::unique_ptr<Tokenizer> tokenizer;

    Frozen(const char* option, const std::string& given, const Options& o, integer heads, const text& adapter = "")
        : path(given), held(hold_model(option, path)), file(open_adapted(path, adapter)),
          c(config_of(file, heads, o.context)) {
        if (exists(path, true)) check_fingerprint(fingerprint(c), file.directory);
        tokenizer = find_tokenizer(o.tokenizer, directories_of(file.directory, o.train, o.val, o.answers));
        if (tokenizer && tokenizer->vocab() > c.V)
            die("%s: %d tokens, but the tokenizer has %d; give the right one with --tokenizer", file.path.c_str(), c.V,
                tokenizer->vocab());
        c.form = form_of(o.base_dtype);
        if (file.adapter && c.form > Form::BF16) c.adapt(*file.adapter);
    }
    template <typename Model> std::unique_ptr<Model> load(int B, int T, bool bf16) const {
        auto model = std::make_unique<Model>(c, B, T, false, bf16);
        load_adapted(stored(*model), stored(*model, true), file);
        return model;
    }
};

// What a run reads, checks and decides before it has a model. A resumed run has the options, the position and the
// weights of its newest whole checkpoint; without one it begins again, with the options that its log began with.
struct Run {
    Options o;
    std::optional<RunDirectory> directory;   // held from the start by a resumed run; a new one is made later
    std::string from;                        // the checkpoint, or ""
    Position position;
    std::optional<Held> held;                // locks the directory that `start` is mapped from
    std::optional<ModelFile> start;          // weights to start from, if they are not to be drawn
    std::unique_ptr<Tokenizer> tokenizer;
    Config c;
    std::string base;                        // LoRA: the file of the frozen weights
    int eot;
    std::optional<Windows> windows;
    std::optional<HeldOut> held_out;
    std::optional<Frozen> reference_file, reward_file;       // rl: --init, and the model that rewards
    int rows_of_window;                      // the answers of a group, the two of a pair, or one
    size_t per_step, end;                    // windows of a step; where the last one ends
    integer steps;
    bool rescheduled = false;                // resumed with another end

    Run(const Options& given, bool on_cpu) : o(given) {
        if (o.resume) resume();
        if (on_cpu && o.dtype == "bf16") position.unit = keep_unit(cpu::unit(), position.unit, from);
        open_start();                        // after rank 0 has cleaned the directory up
        c = resolve_config(o, start ? &*start : nullptr, tokenizer.get());
        share_layers();
        if (c.rank) base = base_path(start->path);
        eot = end_of_text(tokenizer.get(), c.V);
        if (start && exists(from.empty() ? o.init : from, true)) check_fingerprint(fingerprint(c), start->directory);
        check_stage();
        size_steps();
        open_data();
        choose_threads(o, c, o.batch * o.context, true);
        check_alike();
    }

private:
    // A resumed run has groups as before, if it has ranks for them.
    void share_layers() {
        if (!o.has("tensor_parallel") && world().size % o.tensor_parallel) o.tensor_parallel = 1;
        if (o.tensor_parallel > 1 && (c.rank || o.stage == "reward" || o.stage == "rl"))
            die_usage("--tensor-parallel %lld: is for --stage pretrain and sft, without --lora-rank; --zero 2 saves "
                      "memory, too", o.tensor_parallel);
        world().share_layers(o.tensor_parallel, c.rank ? 0 : o.zero, c.NH, c.V);         // ZeRO 0: an adapter is small
        c = c.part(world().tensor, world().place());
    }
    // That all ranks are to do the same, and with the same: waits for all, too.
    void check_alike() {
        std::vector<std::pair<std::string, std::string>> texts = {
            {"program", Identity("/proc/self/exe").text()}, {"tokenizer", tokenizer ? tokenizer->identity() : "none"},
            {"checkpoint", from}, {"unit", position.unit}};
        for (const Option& row : o.table())
            if (!row.is('P') && strcmp(row.name, "threads")) texts.push_back({dashed(row.name), row.show()});
        for (auto& [name, identity] : position.data) texts.push_back({dashed(name.c_str()), identity});
        world().same(texts);
    }
    void resume() {
        directory.emplace(o.out, true, world().first());
        const Past past(o.out);
        const Json& was = past.options;
        from = past.checkpoint;
        position = past.position;
        const Table table = o.table(), defaults = Options().table();
        if (was) resume_options(table, defaults, o.given, was, past.data_known, o.out, past.where, !from.empty());
        if (o.steps) o.epochs = 0;
        rescheduled = !from.empty() && (was["steps"].string != show(o.steps) || was["epochs"].string != show(o.epochs));
        auto is_path = [&](auto& row) { return row.is('P') && (strcmp(row.name, "init") || !preset_of(o.init)); };
        paths_from(was["directory"].string, table, o.given, is_path);
        position.take_command(was["reward_command"].string, o.reward_command);
        if (o.train.empty())
            die("%s: holds no checkpoint and no log to go on from; give --train to begin", o.out.c_str());
    }

    // The model's shape and tokenizer: of the checkpoint, of the weights to start from, or of the options.
    void open_start() {
        std::string init = from.empty() ? o.init : from, presets;
        for (const Preset& p : PRESETS) presets += (presets.empty() ? "" : ", ") + text(p.name);
        if (from.empty() && !preset_of(init) && !exists(init))
            die_usage("--init %s: no such file or directory, and no size of a model: those are %s%s", init.c_str(),
                      presets.c_str(), published(init));
        if (!from.empty() || !preset_of(init)) {
            held.emplace(hold_newest(init));
            start = open_adapted(init, from.empty() ? o.adapter : "");
        }
        const bool own = !from.empty() && !o.has("tokenizer");               // a checkpoint has its tokenizer
        const auto beside = directories_of(start ? start->directory : "", o.train, o.val, o.answers);
        tokenizer = own ? find_tokenizer("", {from}) : find_tokenizer(o.tokenizer, beside);
        if (from.empty() || own) return;
        if (auto its = find_tokenizer("", {from}); its && !its->same(*tokenizer))
            die_usage("--tokenizer %s: is not that of the run in %s", o.tokenizer.c_str(), o.out.c_str());
    }

    void check_stage() {
        const bool rl = o.stage == "rl", later = o.stage != "pretrain";
        if (!rl) o.refuse('L', "is for --stage rl");
        if (!o.lora_rank) o.refuse('A', "is for --lora-rank");
        if (later && !rl && !start && !o.has("init"))
            warn("--stage %s: starts at random, without --init", o.stage.c_str());
        if (later && eot < 0) die_usage("--stage %s: needs a tokenizer, to know the end of text", o.stage.c_str());
        if (later && (!o.raw.empty() || o.rows == "sliding"))
            die_usage("--stage %s: takes example shards, without --raw or --rows sliding", o.stage.c_str());
    }
    void size_steps() {
        rows_of_window = o.stage == "rl" ? o.group : o.stage == "reward" ? 2 : 1;
        const integer row_tokens = std::lcm(o.batch, (integer)rows_of_window) * o.context;
        const char* const by = o.stage == "rl" ? " and --group" : rows_of_window == 2 ? ", of pairs," : "";
        if (o.tokens_per_step == 0) o.tokens_per_step = row_tokens * world().replicas();
        if (o.tokens_per_step % row_tokens)
            die_usage("--tokens-per-step %lld: not a multiple of batch%s x context = %lld", o.tokens_per_step, by,
                      row_tokens);
        if (o.tokens_per_step % (row_tokens * world().replicas()))
            warn("--tokens-per-step %lld: not a multiple of %d ranks' batches, so that some wait for others",
                 o.tokens_per_step, world().replicas());
        if (o.stage == "reward" && o.batch % 2)
            die_usage("--batch %lld: --stage reward computes pairs of rows; give an even number", o.batch);
        per_step = o.tokens_per_step / o.context / rows_of_window;
    }
    // An epoch ends where its last window does: the rows of a step beyond it stay empty.
    void open_data() {
        if (!o.steps && o.epochs == 0) o.epochs = 1;
        windows.emplace(wanted(o, "--train", o.train, c.V, o.context, eot), o.seed);
        end = o.steps ? SIZE_MAX : windows->end_of(o.epochs);
        position.check_window(end, windows->total, o.epochs, o.out);
        steps = o.steps ? o.steps : position.step + (end - position.window + per_step - 1) / per_step;
        held_out.emplace(wanted(o, "--val", o.val, c.V, o.context, eot), o.eval_rows, o.train, o.choices, o.answers);
        std::map<std::string, std::string> data = held_out->data;
        data["train"] = windows->identity.text();
        if (o.stage == "rl") open_frozen(data);
        if (c.rank) data["init"] = Identity(start->path).text();
        auto path_of = [&](const std::string& name) {
            return value_of(o.table(), name == "adapter" && o.adapter.empty() ? "init" : name);
        };
        position.take(data, path_of, windows->total, steps, o.out);
        if (o.warmup >= steps && o.has("warmup"))
            warn("--warmup %lld: the run has %lld steps, so the learning rate never reaches --lr", o.warmup, steps);
        if (o.min_lr > o.lr) warn("--min-lr %s: is above --lr %s", show(o.min_lr).c_str(), show(o.lr).c_str());
        const Source& shown = o.stage != "pretrain" && held_out->val ? (const Source&)*held_out->val : *windows;
        position.beginning = shown.beginning(eot, o.context);
    }
    // What reinforcement learning starts from, and what it is rewarded by.
    void open_frozen(std::map<std::string, std::string>& data) {
        if (preset_of(o.init)) die_usage("--stage rl: needs --init, a model to start from");
        reference_file.emplace("--init", o.init, o, o.heads, o.adapter);
        data["init"] = Identity(reference_file->file.path).text();
        if (const auto& a = reference_file->file.adapter) data["adapter"] = a->identity();
        const bool exact = o.reward_command.empty() && o.reward == "exact";
        data["reward"] = exact ? "exact" : o.reward_command;
        if (o.reward_command.empty() && !exact) {
            reward_file.emplace("--reward", o.reward, o, 0);
            data["reward"] = identity_of(reward_file->file);
            if (reward_file->tokenizer && !reward_file->tokenizer->same(*tokenizer))
                die_usage("--reward %s: has another tokenizer than --init %s", o.reward.c_str(), o.init.c_str());
        }
        windows->check_prompts(o.response_tokens, exact);
        if (held_out->val) held_out->val->check_prompts(o.response_tokens, exact);
        tell_stage("--init", o.init, false);
        tell_stage("--reward", reward_file ? o.reward : "", true);
    }
};

template <typename Model> struct Training : Run {
    Model model;
    const Schedule schedule;
    const std::vector<float> computes = fingerprint(c);
    Display display{.floor = held_out->floor, .steps = steps};
    Saver saver;
    std::unique_ptr<Model> reference, rewarder;              // rl: --init, for the divergence from it; --reward
    std::unique_ptr<Scorer> scorer;                          // --reward-command
    Notes notes;                             // what is said of a step beside its loss
    double count = 0, tokens = 0, stop = 0, save_now = 0;    // what agree() sums

    explicit Training(const Options& given)
        : Run(given, std::is_same_v<Model, cpu::Model>), model(c, o.batch, o.context, true, o.dtype == "bf16"),
          schedule{.kind = o.schedule, .lr = o.lr, .min_lr = o.min_lr < 0 ? 0.1 * o.lr : o.min_lr, .warmup = o.warmup,
                   .steps = steps}, saver{from, position.lowest_step} {
        if (!directory) directory.emplace(o.out, false, world().first());
        directory->check_shared(world());
        if (start) load_adapted(stored(model), stored(model, true), *start);
        if (!start || (c.rank && !start->adapter)) initialize(model, o.seed);
        if (!from.empty()) {
            Safetensors moments(from + "/optimizer.safetensors");
            load_tensors(stored(model, c.rank > 0, MOMENTS), moments.tensors, moments.file.path);
        }
        if (reference_file) reference = reference_file->load<Model>(o.batch, o.context, o.dtype == "bf16");
        if (reward_file) rewarder = reward_file->load<Model>(o.batch, o.context, o.dtype == "bf16");
        if (reference && o.reward_command != "") scorer = std::make_unique<Scorer>(o.reward_command, o.reward_timeout);
        start.reset();                       // files may change from here on
        held.reset();
        reference_file.reset();
        reward_file.reset();
        saver.run = &*directory;
        display.terminal &= world().size == 1;               // under a launcher no line replaces the last
        display.say("%s\n%zu parameters, %lld steps of %lld tokens, %zu windows an epoch; %s%s",
                    command_line(TRAIN_GPT, o.verb, o.table(), o.stage == "rl" ? 0 : 'L').c_str(),
                    model.layout.parameters, steps, o.tokens_per_step, windows->total, world().describe().c_str(),
                    model.describe().c_str());
        if (!from.empty()) display.say("resumed from %s", from.c_str());
        else if (o.resume) display.say("no checkpoint in %s yet: beginning at step 1", o.out.c_str());
        if (rescheduled && position.step < steps && o.schedule != "constant")
            display.say("the schedule ends at step %lld now: the learning rate goes on at %.2e", steps,
                        lr_at(schedule, position.step));
        directory->rewind_log(position.step, steps);
        if (position.step == 0)
            directory->put("run", 0, {{"parameters", show((integer)model.layout.parameters)}, {"steps", show(steps)},
                                      {"floor", json_number(display.floor)},
                                      {"options", options_json(o.table(), 't')}});
        if (world().first() && saver.best == position.step && from != o.out + "/best") make_best(o.out, from);
    }

    void evaluate() {
        if (o.stage == "rl") {
            std::vector<Answer> answers;
            const auto& spans = held_out->val->spans;
            for (size_t i = world().rank; i < spans.size(); i += world().size)           // ranks take turns, and agree
                answers.push_back({held_out->val->examples[spans[i].file]->example(spans[i].begin)});
            Options greedy = o;
            greedy.temperature = 0;
            draw_and_reward(answers, Sampling(greedy), 0);
            const double mine = mean_reward(answers.data(), answers.size(), spans.size());
            report(AnswersRewarded{world().sum_of_groups(mine), spans.size()});
        } else if (o.stage == "reward") report(validate_pairs(model, *held_out->val, eot));
        else report(validate(model, *held_out->val, tokenizer.get()));
    }
    void report(const auto& found) {         // one of dev/host/reports.h
        const double loss = found.loss();
        if (o.stage != "rl") display.val_loss = loss;
        position.found(loss);
        display.say("%s", found.line().c_str());
        directory->put("eval", position.step, fields_of(loss, found.measures(display.floor)));
    }
    void sample(int samples) {
        if (o.stage == "reward") return;     // a reward model writes no text
        const auto& first = position.beginning;
        const std::string begin = show_tokens({first.begin() + (first[0] == eot), first.end()}, tokenizer.get());
        std::vector<Prompt> prompts;
        for (int k = 0; k < samples; k++) prompts.push_back({first, std::min(o.context, 200LL), (uint64_t)k, begin});
        for (const Text& t : draw_texts(model, {o, eot, tokenizer.get()}, o.seed + position.step, prompts, GOES_ON)) {
            const std::string text = t.prompt.shown(tokenizer.get()) + t.response;
            display.say("--- sample %llu\n%s", (unsigned long long)t.prompt.stream + 1, text.c_str());
            directory->put("sample", position.step, {{"text", json_quote(valid_utf8(text))}});
        }
    }
    void save() {
        saver.save({.out = o.out, .keep = (size_t)o.keep, .position = position, .options = options_json(o.table(), 't'),
                    .config = c.rank ? adapter_config(base, c) : config_json(c, eot),
                    .adapter = c.rank > 0, .fingerprint = computes, .tokenizer = tokenizer.get(),
                    .weights = c.rank ? as_peft(stored(model, true)) : stored(model),
                    .moments = stored(model, c.rank > 0, MOMENTS)});
    }
    size_t windows_at(size_t g) const { return std::min(per_step, end - g); }    // of the step that begins with g,
    std::vector<Batch> batches_at(size_t g) {                                    // and its micro-batches
        if (o.stage == "rl") return drawn_at(g);
        return windows->batches(g, windows_at(g), o.batch / rows_of_window, rows_of_window, world().replica(),
                                world().replicas());
    }

    // The loss of each stage: forward and backward of one micro-batch; `count` has the tokens or pairs of the whole
    // step. Returned is the part of the loss that a later model.result() does not have.
    double likelihood(Batch& b, int) {
        model.forward(b.x.data(), b.y.data(), {}, count, b.B, b.T, true);
        model.backward();
        return 0;
    }
    double preference(Batch& b, int) {
        const int pairs = b.B / 2;
        std::vector<float> reward(b.B), dreward(b.B);
        double loss = 0;
        for (const char* name : {"accuracy", "margin"}) notes.add(name, 0);              // also without a pair
        model.readout(b.x.data(), b.last.data(), eot, b.B, b.T, reward.data());
        for (int i = 0; i < pairs; i++) {
            const int k = pairs + i;         // all chosen answers come first, then those rejected
            const double margin = reward[i] - reward[k];
            const auto [nats, slope] = pair_loss(margin);
            loss += nats / count;
            dreward[i] = slope / count;
            dreward[k] = -dreward[i];
            notes.add("accuracy", (margin > 0) / count);
            notes.add("margin", margin / count);
        }
        model.readout_backward(dreward.data());
        model.backward();
        return loss;
    }
    // In pass 0 the weights are those that drew the answers: r is 1, and logprob becomes `old` from then on.
    double policy(Batch& b, int pass) {
        const Objective ppo = {.weight = b.weight.data(), .old = pass ? b.old.data() : nullptr, .ref = b.ref.data(),
                               .clip = o.ppo_clip, .kl = o.kl};
        model.forward(b.x.data(), b.y.data(), ppo, count, b.B, b.T, true);
        model.backward();
        const double loss = model.result().loss;             // which makes logprob valid, and clears the model's loss
        if (pass == 0) b.old.assign(model.logprob.begin(), model.logprob.begin() + b.y.size());
        for (const char* name : {"kl", "entropy", "clipped"}) notes.add(name, 0);
        for (size_t n = 0; n < b.y.size(); n++) {
            if (b.y[n] < 0) continue;
            const double lp = model.logprob[n], moved = std::exp(lp - b.old[n]), d = b.ref[n] - lp;
            if (pass == 0) notes.add("kl", (std::exp(d) - d - 1) / count);
            if (pass == 0) notes.add("entropy", -lp / count);
            const bool clipped = b.weight[n] * (moved - 1) > std::abs(b.weight[n]) * o.ppo_clip;
            notes.add("clipped", clipped / count / o.rl_passes);
        }
        return loss;
    }

    // Draws answers and rewards them: 1 for the shard's own and 0 for others, or as a reward model or a program says.
    void draw_and_reward(std::vector<Answer>& answers, const Sampling& sampling, uint64_t seed, size_t past = 0) {
        const integer most = o.response_tokens ? o.response_tokens : o.context;
        std::vector<Prompt> prompts;
        for (auto& a : answers) prompts.push_back(prompt_of(a.example[0], eot, o.context, most, past + prompts.size()));
        auto emit = [&](int i, int token) { return answers[i].add(token, eot); };
        generate(model, sampling, seed, prompts, eot, tokenizer.get(), emit);
        auto shown = [&](const std::vector<int>& ids) { return show_tokens(ids, tokenizer.get()); };
        if (rewarder) reward_answers(*rewarder, answers, eot);
        else if (scorer) scorer->reward(answers, shown);
        else for (Answer& a : answers) a.reward = a.ended && a.tokens == a.example[1];
    }
    // Micro-batches of answers drawn to a step's prompts. GRPO: an advantage is a reward less the mean of its group,
    // answers to one prompt (Shao et al. 2024, arXiv:2402.03300; without the deviation Liu et al. 2025, 2503.20783).
    std::vector<Batch> drawn_at(size_t g) {
        std::vector<Answer> answers;
        const size_t prompts = windows_at(g);
        const Range own = world().share(prompts);
        for (size_t k = 0; k < own.n; k++) {
            const auto [file, i] = windows->find(g + own.at + k);
            answers.insert(answers.end(), o.group, {windows->examples[file]->example(i)});
        }
        const double began = seconds();
        const uint64_t seed = mix64(o.seed * 0x9E3779B97F4A7C15ull + position.step + 1);
        draw_and_reward(answers, Sampling(o), seed, own.at * o.group);
        const double n = prompts * o.group, took = seconds() - began;
        notes.add("reward", mean_reward(answers.data(), answers.size(), n));
        notes.add("drawn_ms", took * 1e3 / world().size);
        notes.add("samples_per_s", answers.size() / took);
        notes.add("length", 0);
        std::vector<float> advantages;
        for (size_t i = 0; i < answers.size(); i++) {
            const Answer* const group = &answers[i / o.group * o.group];
            const double mean = mean_reward(group, o.group, o.group);
            double square = 0;
            for (const Answer* a = group; a < group + o.group; a++)
                square += (a->reward - mean) * (a->reward - mean) / (o.group - 1);
            advantages.push_back((answers[i].reward - mean) / (o.advantage == "mean" ? 1 : std::sqrt(square) + 1e-4));
            notes.add("length", answers[i].tokens.size() / n);
        }
        std::vector<Batch> batches;
        auto row_at = [&](size_t i) { return answers[i].row(eot); };
        each_batch(answers.size(), o.batch, row_at, [&](size_t i, const Batch& drawn) {
            Batch& b = batches.emplace_back(drawn);
            reference->forward(b.x.data(), b.y.data(), {}, 1, b.B, b.T, false);
            reference->result();
            b.ref.assign(reference->logprob.begin(), reference->logprob.begin() + b.y.size());
            for (size_t k = 0; k < b.y.size(); k++) b.weight.push_back(advantages[i + k / b.T]);
        });
        const size_t most = world().share(prompts, 0).n;     // prompts of a rank: all make as many batches
        while (batches.size() * o.batch < most * o.group) batches.push_back(Batch::nothing());
        return batches;
    }

    // Before an update ranks sum the loss that no model has and the notes of this step; whether to stop or to save; and
    // the targets and tokens of `batches`, the next step's, or in rl this one's.
    void agree(const std::vector<Batch>& batches, double& loss, bool noted) {
        stop = stop_signal;
        save_now = world().first() && saver.due(o.save_minutes);
        count = sum_over(batches, [&](auto& b) { return o.stage == "reward" ? b.B / 2 : b.targets(); });
        tokens = sum_over(batches, [](auto& b) { return b.x.size(); });
        std::vector<double*> values = {&stop, &save_now, &count, &tokens, &loss};
        if (noted) for (auto& [name, value] : notes.sums) values.push_back(&value);
        std::vector<double> sums;            // a tensor parallel group counts once, but for stop
        for (double* value : values) sums.push_back(c.tp_rank && value != &stop ? 0 : *value);
        world().sum(sums.data(), sums.size());
        for (size_t i = 0; i < sums.size(); i++) *values[i] = sums[i];
    }

    // Takes a step with `batches`, then replaces them by the next step's while a GPU is still computing; rl draws its
    // own at the start, since it needs the newest weights.
    void take_step(std::vector<Batch>& batches) {
        const double began = seconds();
        const bool rl = o.stage == "rl";
        const integer step = position.step + 1, passes = rl ? o.rl_passes : 1;
        const size_t taken = windows_at(position.window);
        const double lr = lr_at(schedule, position.step);
        const AdamW adamw{.lr = lr, .beta1 = o.beta1, .beta2 = o.beta2, .eps = o.eps, .weight_decay = o.weight_decay};
        const auto learn = rl ? &Training::policy : o.stage == "reward" ? &Training::preference : &Training::likelihood;
        notes.sums.clear();
        if (rl) batches = batches_at(position.window);
        double loss = 0, norm = 0;
        if (rl) agree(batches, loss, false);
        const double tokens_now = tokens;    // agree() will count the next step's
        for (integer pass = 0; pass < passes; pass++) {
            loss = 0;
            for (Batch& b : batches) loss += (this->*learn)(b, pass);
            if (!rl) batches = batches_at(position.window + taken);
            agree(batches, loss, pass + 1 == passes);
            model.update(adamw, o.clip, position.step * passes + pass + 1);
            const StepResult result = model.result();
            loss += result.loss;
            norm = result.norm;
            if (!std::isfinite(loss) || !std::isfinite(norm)) die_of(step, loss, norm);
        }
        position.step = step;
        position.window += taken;
        const double ms = (seconds() - began) * 1e3;
        const double seen = (double)position.window * rows_of_window * o.context;
        StepReport report = {.step = step, .loss = loss, .norm = norm, .lr = lr, .ms = ms, .tokens = tokens_now,
                             .seen = seen, .speed = model.speed(tokens_now / world().size, ms / 1e3)};
        if (world().size > 1) report.speed.log.push_back({"sent_bytes", show(std::exchange(world().sent, 0))});
        display.step(report, notes);
        directory->put("step", step, report.log(notes));
    }

    void die_of(integer step, double loss, double norm) {    // one of which is not finite
        saver.finish();
        std::string bad = "the loss";
        if (std::isfinite(loss)) bad = not_finite_of_all(stored(model, c.rank > 0, {{"gradient of ", GRADIENT}}));
        auto plain = [](double v) { return std::isnan(v) ? NAN : v; };                   // not -nan
        die("step %lld: loss %g, gradient norm %g: %s is not finite; last good checkpoint: %s", step, plain(loss),
            plain(norm), bad.c_str(), saver.saved.empty() ? "none" : saver.saved.c_str());
    }

    void run() {
        std::vector<Batch> batches;
        double none = 0;
        if (o.stage != "rl") batches = batches_at(position.window);
        agree(batches, none, false);
        while (position.step < steps && !stop && !(world().size == 1 && stop_signal)) {
            take_step(batches);
            const bool more = position.step < steps;
            auto due = [&](integer every) { return every && position.step % every == 0 && more; };
            if (held_out->val && due(o.eval_every)) evaluate();
            if (due(o.sample_every)) sample(1);
            if (due(o.save_every) || position.lowest_step != saver.best || (save_now && more)) save();
            saver.look();
        }
        saver.finish();
        const bool ended = position.step == steps;
        if (ended && held_out->val) evaluate();
        if (ended && std::isfinite(display.floor)) display.say("floor %.6f nats/token", display.floor);
        if (saver.saved != o.out + format("/step_%08lld", position.step) || position.lowest_step != saver.best) save();
        saver.finish();
        if (!ended)
            return display.say("stopped after step %lld; go on with: ./" PROGRAM " train --resume --out %s",
                               position.step, shell_quote(o.out).c_str());
        if (auto& answers = held_out->answers) {
            const integer right = right_answers(model, *answers, eot), all = answers->size();
            display.say("answers right %lld of %lld", right, all);
            directory->put("answers", steps, {{"right", show(right)}, {"of", show(all)}});
        }
        if (o.sample_every) sample(3);
        display.say("saved %s", saver.saved.c_str());
    }
};

// ---- 11. main -------------------------------------------------------------------------------------------------------
void print_evaluation(auto& model, auto* rewarder, const Drawing& how, const HeldOut& held_out) {
    const Options& o = how.o;
    auto& [val, choices, answers, data, floor] = held_out;
    if (val && o.stage == "reward") printf("%s\n", validate_pairs(model, *val, how.eot).line().c_str());
    else if (val) printf("%s\n", validate(model, *val, how.tokenizer).line().c_str());
    if (val && std::isfinite(floor)) printf("floor %.6f nats/token\n", floor);
    if (choices) printf("%s\n", multiple_choice(model, *choices, how.tokenizer).line(!!how.tokenizer).c_str());
    if (!answers) return;
    printf("answers right %zu of %zu\n", right_answers(model, *answers, how.eot), answers->size());
    if (!o.best_of && !o.vote && !how.guide) return;
    std::vector<Prompt> prompts;
    for (size_t i = 0; i < answers->size(); i++) prompts.push_back(prompt_of(answers->of(i)[0], how.eot, model.max_T));
    size_t right = 0;
    draw_groups(model, rewarder, how, prompts, GOES_ON, [&](size_t i, const Text* t, size_t) {
        right += t->is_right(held_out.answers->of(i)[1], how.tokenizer, o.vote ? &o.vote_after : nullptr);
    });
    printf("%s: answers right %zu of %zu\n", taken_by(o.vote, o.best_of, o.reward).c_str(), right, answers->size());
}

void write_texts(auto& model, auto* rewarder, const Drawing& how, const std::vector<Prompt>& prompts) {
    const Options& o = how.o;
    TextWriter writer(how.tokenizer, prompts, texts_each(o), o.format == "jsonl");
    auto show = [&](int, const Text& t) { return writer.show(t); };
    draw_groups(model, rewarder, how, prompts, show, [&](size_t k, const Text* t, size_t n) {
        writer.put(k, t, n);
        if (o.vote && !answer_in(t->response, o.vote_after))
            warn("--vote-after %s: is in no text; the first is taken", shell_quote(o.vote_after).c_str());
    });
}

template <typename Model> void run_verb(Options o) {
    if (o.verb == "train") return Training<Model>(o).run();
    if (o.stage == "rl")
        die_usage("--stage rl: evaluates nothing by itself; --answers counts the answers that are right");
    std::optional<Frozen> file(std::in_place, "--model", o.model, o, o.heads, o.adapter);
    const Config c = file->c;
    const std::unique_ptr<Tokenizer> tokenizer = std::move(file->tokenizer);
    const std::string path = file->file.path, state = file->file.directory + "/state.json";
    const Json written = is_checkpoint(file->file.directory) ? read_json(state) : Json();
    const text& stage = written["options"]["stage"].string;
    const int eot = end_of_text(tokenizer.get(), c.V);
    if (eot < 0) o.refuse('Z', "needs a tokenizer, to know the end of text");
    if (!tokenizer) o.refuse('T', "needs a tokenizer, to know texts");
    if (!tokenizer && o.verb == "chat") die_usage("chat: needs a tokenizer, to know texts");
    if (o.verb == "merge") {
        file->c.form = Form::FP32;
        const auto model = file->load<cpu::Model>(1, 1, false);
        export_model(o.out, stored(*model), config_json(c, eot), tokenizer.get());
        return (void)printf("saved %s\n", o.out.c_str());
    }
    int T = o.context ? o.context : c.T;
    const bool after_end = o.has("reward") || (stage != "" && stage != "pretrain");
    Prompter prompter = {.tokenizer = tokenizer.get(), .model = path, .V = c.V, .T = T, .eot = eot, .most = o.tokens,
                         .after_end = after_end};
    if (o.has("examples")) prompter.take_examples(o.examples);
    std::vector<Prompt> prompts;
    if (o.verb == "sample") {
        if (written) prompter.beginning = Position(written, state).beginning;
        for (auto& given : given_prompts(o.prompt, o.prompt_file, o.prompts)) prompts.push_back(prompter.prompt(given));
        T = std::min<integer>(T, prompter.longest + o.tokens);              // no larger a cache than needed
        if (o.best_of) for (Prompt& p : prompts) p.most = std::min<integer>(o.tokens, T - p.tokens.size());
    }
    const integer most_rows = o.has("eval_rows") ? o.eval_rows : 0;
    HeldOut held_out(wanted(o, "--val", o.val, c.V, T, eot), most_rows, o.train, o.choices, o.answers);
    if (held_out.answers) prompter.put_examples(*held_out.answers);
    prompter.tell();
    const int B = o.verb == "eval" ? o.batch : std::clamp<size_t>(texts_each(o) * prompts.size(), 1, 64);

    choose_threads(o, c, o.verb == "sample" ? B : (size_t)B * T, false);
    const std::unique_ptr<Model> loaded = file->load<Model>(B, T, o.dtype == "bf16");
    Model& model = *loaded;
    file.reset();
    std::unique_ptr<Model> rewarder;
    if (o.has("reward")) rewarder = Frozen("--reward", o.reward, o, 0).load<Model>(B, T, o.dtype == "bf16");
    if (o.verb == "graph")                   // the Markov chain that it is when its context is full
        print_chain(c.V, T, [&](const std::vector<int>& context, std::vector<float>& logits) {
            model.extend(context.data(), 1, 0, T);
            model.logits(T - 1, 1, 1, logits.data());
        });
    std::unique_ptr<Guide> guide;
    if (o.has("pattern")) guide = std::make_unique<Guide>(o.pattern, vocabulary_of(*tokenizer, c.V), "--pattern");
    if (o.stage != "reward") {
        tell_stage("--model", o.model, false);
        tell_stage("--reward", o.reward, true);
    }
    const Drawing how = {o, eot, tokenizer.get(), guide.get()};
    if (o.verb == "chat") chat(model, how);
    if (o.verb == "eval") print_evaluation(model, rewarder.get(), how, held_out);
    if (o.verb == "sample") write_texts(model, rewarder.get(), how, prompts);
}

// What both programs' main() do: read the command line, run the verb, and turn any Error into its line and exit code.
template <typename Model> int run_program(int argc, char** argv) {
    spin_briefly(argv);
    name_speaker();
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    if (words.empty()) return tell_usage(TRAIN_GPT);
    return run_main([&] {
        if (answer(TRAIN_GPT, Options().table(), words)) return;
        Options o = parse_options(words);
        const bool trains = o.verb == "train";
        if (const int n = launched().size; n > 1 && !trains)
            die_usage("%s: runs as one process, but was started as one of %d", o.verb.c_str(), n);
        if (trains) watch_signals();
        if (trains) Model::join(o);
        if (o.threads) omp_set_num_threads(o.threads);
        run_verb<Model>(o);
        if (trains) Model::leave();
    });
}

#ifndef NO_CPU_MAIN
int main(int argc, char** argv) { return run_program<cpu::Model>(argc, argv); }
#endif
