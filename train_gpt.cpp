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
   dx is the gradient of the loss with respect to x. A matrix (R,K) is row-major: element (r,k) stands at r*K + k.

   Top to bottom:
      1 options            2 config and tensors     3 rows and stages      4 scalar maths               5 layers
      6 matrix product     7 model                  8 model files          9 evaluate, sample, chat    10 train, 11 main
   At a first reading take the headers of dev/host on trust: options, files, shards, tokenizer, checkpoints, runs. */

#include <climits>
#include <numeric>
#include <optional>
#include <utility>
#include "dev/host/adapters.h"
#include "dev/host/arena.h"
#include "dev/host/chat.h"
#include "dev/host/checkpoints.h"
#include "dev/host/comm.h"
#include "dev/host/display.h"
#include "dev/host/machine.h"
#include "dev/host/options.h"
#include "dev/host/pattern.h"
#include "dev/host/reports.h"
#include "dev/host/rows.h"
#include "dev/host/scorer.h"
#include "dev/host/units.h"
#include "dev/host/vectors.h"

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
    X(text,    stage,           "pretrain",   "pretrain|sft|reward|rl",       "te",       "what to learn from: token shards; responses; pairs of answers; rewards of drawn answers. The last three take example shards") \
    X(text,    train,           "",           "",                             "tDP",      "shards to train on: a glob, in quotes [required]") \
    X(text,    val,             "",           "",                             "teDP",     "shards to validate on: a glob [none]") \
    X(text,    raw,             "",           "u16",                          "te",       "shards are headerless 16-bit tokens, as nanoGPT writes them [they have llm.c's header]") \
    X(text,    tokenizer,       "",           "",                             "tsecgmDPR", "GPT-2 merges file, or `bytes` [merges.txt or vocab.bpe beside the data or the model]") \
    X(text,    init,            "d12",        "",                             "tP",       "d6 d12 d24 d36 d48 or custom; or weights to start from: a Hugging Face directory, .safetensors, llm.c .bin") \
    X(text,    model,           "",           "",                             "secgmP!",  "a run, a checkpoint, a Hugging Face directory, .safetensors or llm.c .bin") \
    X(text,    adapter,         "",           "",                             "tsecgmP",  "LoRA adapter for the model (train: for --init): a run or a PEFT directory; its weights are merged, or trained on with --lora-rank") \
    X(integer, lora_rank,       0,            "0..65536",                     "t",        "train an adapter of this rank beside frozen weights (LoRA) [0: all weights are trained]") \
    X(number,  lora_alpha,      16,           "0.000001..1000000",            "tA",       "LoRA: the adapter counts alpha / rank times") \
    X(text,    lora_targets,    "qkv,proj,fc,fcproj", "",                     "tA",       "LoRA: which matrices of a block are adapted") \
    X(integer, layers,          0,            "1..1000",                      "t",        "layers [from --init]") \
    X(integer, heads,           0,            "1..1000",                      "tsecgm",   "attention heads [from --init or the model; where a file does not say, C/64]") \
    X(integer, channels,        0,            "1..100000",                    "t",        "channels [from --init]") \
    X(integer, vocab,           0,            "1..16777216",                  "t",        "vocabulary [the tokenizer's; 50257 without one]") \
    X(integer, context,         0,            "1..1048576",                   "tec",      "tokens of a row [1024, or the model's]") \
    X(integer, bias,            1,            "0..1",                         "t",        "Linear layers have a bias") \
    X(integer, tied,            1,            "0..1",                         "t",        "the head is the token embedding") \
    X(integer, batch,           4,            "1..1048576",                   "teR",      "rows computed at once") \
    X(integer, tokens_per_step, 0,            "1..1099511627776",             "t",        "tokens of an optimizer step, a multiple of batch x context [batch x context]") \
    X(integer, steps,           0,            "1..1000000000000",             "tR1",      "optimizer steps [--epochs decides]") \
    X(number,  epochs,          0,            "0.000001..1000000",            "tR1",      "passes over the training data [1]") \
    X(number,  lr,              6e-4,         "0..1000",                      "t",        "maximum learning rate") \
    X(number,  min_lr,          -1,           "0..1000",                      "t",        "lowest learning rate; wsd falls to 0 [0.1 x lr]") \
    X(integer, warmup,          0,            "0..1000000000000",             "t",        "steps of linear warm-up") \
    X(text,    schedule,        "cosine",     "cosine|linear|wsd|constant",   "t",        "after the warm-up: cosine, linear, wsd (the last fifth falls), constant") \
    X(number,  beta1,           0.9,          "0..0.999999999",               "t",        "AdamW: decay of the mean gradient") \
    X(number,  beta2,           0.95,         "0..0.999999999",               "t",        "AdamW: decay of the mean squared gradient") \
    X(number,  eps,             1e-8,         "1e-30..1",                     "t",        "AdamW: added to the root") \
    X(number,  weight_decay,    0.1,          "0..1000",                      "t",        "AdamW: decay of every 2-D tensor") \
    X(number,  clip,            1,            "0..1e30",                      "t",        "largest gradient norm; 0 = off") \
    X(text,    dtype,           DTYPE,        DTYPES,                         "tsecgF",   "numbers in matrix products, whose sums are fp32; bf16 on a CPU: on AMX or in dot products, whichever is faster, or rounded and multiplied in fp32") \
    X(text,    base_dtype,      DTYPE,        BASE_DTYPES,                    "tsecF",    "how matrices that are not trained are kept (train: with --lora-rank): int8, nf4: those of the blocks, and bf16 the others") \
    X(integer, threads,         0,            "1..4096",                      "tsecgR",   "threads [all, fewer for models too small for them]") \
    X(integer, zero,            1,            "0..2",                         "tR",       "several processes: what each keeps only its part of: 1 moments, 2 gradients, too; 0 nothing") \
    X(integer, tensor_parallel, 1,            "1..1024",                      "tR",       "several processes: so many consecutive ones share each layer, and train on the same rows") \
    X(integer, seed,            1,            "0..9007199254740992",          "tsec",     "seed of weights, order and samples") \
    X(integer, eval_every,      100,          "0..1000000000000",             "tR",       "steps between validations; 0 = never") \
    X(integer, eval_rows,       64,           "0..1000000000000",             "te",       "rows of a validation; 0 = all [64; eval: all]") \
    X(text,    rows,            "packed",     "packed|documents|sliding",     "te",       "packed: windows side by side; documents (validation): one a row; sliding: every window, scored at its last token") \
    X(text,    answers,         "",           "",                             "teDP",     "example shard of (prompt, response), or of dialogues, whose last response counts: count what greedy decoding gets right [none]") \
    X(text,    choices,         "",           "",                             "eP",       "multiple choice questions in llm.c's HellaSwag format [none]") \
    X(integer, sample_every,    100,          "0..1000000000000",             "tR",       "steps between samples; 0 = never") \
    X(integer, save_every,      0,            "0..1000000000000",             "tR",       "steps between checkpoints; 0 = by time, and where the validation loss is the lowest so far") \
    X(number,  save_minutes,    5,            "0..1000000",                   "tR",       "minutes between checkpoints, more where they take over 2 % of the time; 0 = by steps alone") \
    X(integer, keep,            2,            "1..1000000",                   "tR",       "checkpoints to keep, beside the best in OUT/best") \
    X(text,    out,             "",           "",                             "tmRP!",    "directory of the run: log.jsonl and checkpoints; merge: of the model") \
    X(flag,    resume,          false,        "",                             "t",        "go on from the newest whole checkpoint in --out") \
    X(integer, group,           8,            "2..4096",                      "tL",       "rl: answers drawn for each prompt, whose mean reward is subtracted") \
    X(integer, response_tokens, 0,            "1..1048576",                   "tL",       "rl: tokens of an answer, at most [what the context leaves]") \
    X(text,    reward,          "",           "",                             "tseDPL4",  "rl: exact (1 for the shard's answer, else 0), or a model of the reward stage; --best-of: that model [exact]") \
    X(text,    reward_command,  "",           "",                             "tRL4",     "rl: a program that reads {\"prompt\", \"response\"} lines and answers each with a number [--reward decides]") \
    X(number,  reward_timeout,  60,           "0.001..1000000",               "tRL",      "rl: seconds to wait for that program") \
    X(text,    advantage,       "mean",       "mean|normalized",              "tL",       "rl: reward less the group's mean; normalized: over its standard deviation, too") \
    X(integer, rl_passes,       1,            "1..1000",                      "tL",       "rl: optimizer steps with the same answers") \
    X(number,  ppo_clip,        0.2,          "0..1000",                      "tL",       "rl: by how much a token's probability may change in a step and still gain") \
    X(number,  kl,              0.05,         "0..1000",                      "tL",       "rl: weight of the divergence from --init") \
    X(text,    prompt,          "",           "",                             "sE2",      "text to continue; without a tokenizer, token ids [end of text]") \
    X(text,    prompt_file,     "",           "",                             "s2P",      "file with the text to continue, less a last line break; - is standard input [--prompt]") \
    X(text,    prompts,         "",           "",                             "s2P",      "file of prompts: each line is one, or JSON Lines with \"prompt\", a text or turns; - is standard input [--prompt]") \
    X(text,    examples,        "",           "",                             "seP",      "JSON Lines of \"prompt\" and \"response\", to stand before each prompt; those that do not fit are left out, the first ones first [none]") \
    X(integer, tokens,          100,          "1..1000000000",                "sc",       "tokens to write, at most; an end of text stops earlier") \
    X(text_list, stop,          {},           "",                             "sec",      "end a text before this one occurs in it; \\n, \\t, \\r and \\\\ are as in C; may be given several times [none]") \
    X(integer, samples,         1,            "1..4096",                      "s3",       "texts to write to each prompt, side by side") \
    X(text,    format,          "text",       "text|jsonl",                   "s",        "text, or JSON Lines: a text a line, with its tokens and their log-probabilities") \
    X(integer, best_of,         0,            "2..4096",                      "se3",      "draw so many texts, and take the one that --reward prefers, else that with the highest log-probability a token; eval: for each of --answers") \
    X(integer, vote,            0,            "2..4096",                      "se3",      "draw so many texts, and take the first with the answer that most end in; eval: for each of --answers") \
    X(text,    vote_after,      "",           "",                             "se",       "what stands behind the last of these is a text's answer; \\n and the like as in C [the whole text is]") \
    X(number,  repetition_penalty, 1,         "0.01..100",                    "sec",      "divide logits of tokens that prompt or text hold by this, multiply them where negative; 1 = off") \
    X(number,  temperature,     1,            "0..1000",                      "sec",      "0 takes the likeliest token") \
    X(integer, top_k,           0,            "0..16777216",                  "sec",      "choose among the k likeliest; 0 = all") \
    X(number,  top_p,           1,            "0.000001..1",                  "sec",      "choose among the fewest tokens with this probability") \
    X(number,  min_p,           0,            "0..1",                         "sec",      "choose among tokens with at least this share of the likeliest one's probability") \
    X(text,    pattern,         "",           "",                             "sec",      "regular expression that a text matches as a whole: tokens that no match goes on with are never drawn [none]")

// What a row of this table or of CONFIG is in a struct, and to who takes tables as they come.
#define AS_FIELD(type, name, value, ...) type name = value;
#define AS_OPTION(type, name, value, allowed, marks, help) {#name, &name, allowed, marks, help},
struct Options {
    std::string verb;
    std::set<std::string> given;            // names that stood on the command line
    OPTIONS(AS_FIELD)
    bool has(const char* name) const { return given.count(name) > 0; }
    Table table() { return {OPTIONS(AS_OPTION)}; }
};

inline const Program TRAIN_GPT = {
    PROGRAM, {{'t', "train"}, {'s', "sample"}, {'c', "chat"}, {'e', "eval"}, {'g', "graph"}, {'m', "merge"}},
    "train a GPT on token shards, sample from it, evaluate it",
    "usage: " PROGRAM " [train|sample|chat|eval|graph|merge] [--option value]...      (" PROGRAM " --help lists all options)\n"
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
    if (o.verb == "train" && !o.resume && o.train.empty()) die_usage("train: --train is missing: token shards to train on; --resume goes on with a run");
    if (o.verb == "eval" && (o.val + o.choices + o.answers).empty()) die_usage("eval: give --val, --choices or --answers");
    for (const char* name : {"best_of", "vote", "examples", "pattern"})
        if (o.verb == "eval" && o.has(name) && o.answers.empty()) die_usage("%s: is for --answers", dashed(name).c_str());
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
struct Config {
    CONFIG(AS_FIELD)
    // LoRA: A and B of this rank beside the matrices that are targets; only they are trained then. No part of config.json.
    int rank = 0;
    double lora_alpha = 0;
    std::set<std::string> targets = {};                      // as TENSORS names them
    Form form = Form::FP32;                                  // of the frozen matrices

    bool adapts(const char* target) const { return rank && targets.count(target); }
    double lora_scale() const { return lora_alpha / rank; }
    // Where `tp` ranks share each layer, this one has the part at `place`, and of a token that many numbers:
    int tp = 1, place = 0;
    Config whole() const {
        Config c = *this;
        return c.tp = 1, c.place = 0, c;
    }
    int heads() const { return NH / tp; }
    int head_size() const { return C / NH; }
    int att() const { return heads() * head_size(); }        // what attention gives,
    int qkv() const { return 3 * att(); }                    // queries, keys and values of all its heads,
    int hidden() const { return 4 * C / tp; }                // those between the two products of an MLP,
    int fc() const { return hidden(); }                      // what the first of them makes: gates would come on top,
    int first_token() const { return integer(V) * place / tp; }
    int vocab() const { return integer(V) * (place + 1) / tp - first_token(); }          // and logits, from that one on

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
inline bool is_preset(const text& init) {
    return std::any_of(std::begin(PRESETS), std::end(PRESETS), [&](auto& p) { return init == p.name; });
}

constexpr float ONES = -1;      // in the column init: all ones; any other number there is a standard deviation

//    field     per      rows     columns  init      present          name in checkpoints
//    rows 0: a vector, exempt from weight decay. RESID: the last product of a residual branch starts smaller, so that
//    the variance of the residual stream does not grow with L (Radford et al. 2019, section 2.3). Products are X W, so
//    weights stand (in, out), as in Hugging Face's GPT-2. LoRA's A and B come last: what is trained is one piece of memory.
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

struct Tensor {
    std::string name;
    size_t offset;               // in the arena, in elements
    int rows, cols;              // rows 0: a vector
    float init;
    bool present;                // an absent bias has no memory; checkpoints show it as zeros
    bool trained = true;
    Form form = Form::FP32;      // if it is another,
    size_t packed = 0;           // it stands there, in bytes
    std::vector<size_t> shape = {};                          // of the whole tensor,
    Slice slice = {};                                        // and what this rank has of it
    size_t count() const { return (size_t)std::max(rows, 1) * cols; }
    size_t whole() const { return shape[0] * (rows ? shape[1] : 1); }
    bool decays() const { return rows > 0; }
    bool adapter() const { return name.find(".lora_") < name.size(); }
};

// Where a matrix of weights is: at p, or packed in fewer bits (dev/host/packed.h).
template <typename T> struct Place {
    T* p;
    const uint8_t* packed;
    const float* scales;
    Form form;
    operator T*() const { return p; }
};
template <typename T> struct Norm { T *w, *b; };
template <typename T, typename M = T*> struct Linear {
    M w;
    T *b, *A, *B;
};
// Pointers to the tensors of one layer, and to those that exist once, in an arena of weights or of their gradients.
template <typename T, typename M = T*> struct Weights {
    M wte, wpe, head_w;
    Norm<T> ln1, ln2, lnf;
    Linear<T, M> qkv, proj, fc, fcproj;
};
template <typename T> using Layer = Linear<T, Place<T>>;

#define AS_TENSOR(field, per, rows, cols, init, present, name) {per, {name, 0, rows, cols, init, present}},
// The rows of TENSORS for a model; %d in a name stands for the layer. native: what arenas hold is bfloat16 already, so that
// it need not be packed.
inline std::vector<std::pair<Per, Tensor>> tensor_rows(const Config& c, bool native) {
    const float RESID = 0.02f / std::sqrt(2.0f * c.L);
    const float FROM_C = 1 / std::sqrt(3.0f * c.C), FROM_H = 1 / std::sqrt(3.0f * c.hidden());     // A's, as PEFT begins
    auto rows_of = [&](const Config& c) { return std::vector<std::pair<Per, Tensor>>{TENSORS(AS_TENSOR)}; };
    std::vector<std::pair<Per, Tensor>> list = rows_of(c), whole = rows_of(c.whole());
    for (size_t k = 0; auto& [per, t] : list) {
        const size_t rows = whole[k].second.rows, cols = whole[k].second.cols, parts = t.cols == c.qkv() ? 3 : 1;
        t.shape = rows ? std::vector{rows, cols} : std::vector{cols}, k++;
        if (t.rows != (int)rows) t.slice = {rows * c.place / c.tp * cols, t.count()};
        if (t.cols != (int)cols) t.slice = {cols / parts / c.tp * c.place, t.cols / parts, cols / parts};
        const Form form = per == BLOCK || c.form == Form::FP32 ? c.form : Form::BF16;
        if (t.rows > 0 && !t.adapter() && !(native && form == Form::BF16)) t.form = form;
        t.trained = t.form == Form::FP32 && (t.adapter() || !c.rank);
    }
    return list;
}

struct Layout {
    std::vector<std::pair<Per, Tensor>> rows;                // of TENSORS
    Slots slots, packed;                                     // packed: matrices in fewer bits, in pieces of 16 bytes
    std::vector<Tensor> tensors;                             // as they stand in memory; all layers
    size_t parameters = 0, frozen_parameters = 0;
    size_t frozen = 0;                                       // where what is trained begins in an arena of weights,
    size_t trained() const { return slots.size - frozen; }   // and how much it is: the size of the other arenas

    // The tables of the vocabulary get room for rows up to a multiple of `tile`; what is there beyond V stays zero.
    explicit Layout(const Config& c, int tile = 1, bool native = false)
        : rows(tensor_rows(c, native)), slots(arrays(c, tile, false), c.L), packed(arrays(c, tile, true), c.L) {
        for (size_t k = 0; k < rows.size(); k++) {
            const auto& [per, t] = rows[k];
            if (t.adapter() && c.rank && !frozen) frozen = slots.first[k], frozen_parameters = parameters;
            for (int l = 0; l < (per == BLOCK ? c.L : 1) && (t.present || !t.adapter()); l++) {
                Tensor& added = tensors.emplace_back(t);
                if (per == BLOCK) added.name.replace(t.name.find("%d"), 2, std::to_string(l));
                added.offset = slots.place(k, l), added.packed = 16 * packed.place(k, l);
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
    // How what is trained is shared out among ranks: its layers are one contiguous piece each.
    Shares shares(const Comm& comm, int L, int ring) const {
        size_t k = 0;
        while (slots.stride[k] == 0 || slots.first[k] < frozen) k++;
        return Shares(comm, slots.first[k] - frozen, slots.stride[k], L, ring, trained());
    }
    // In an arena of all weights or, from = frozen, of what is trained. What is not there is null.
    template <typename W, typename T> W at(T* arena, int l, size_t from = 0, const uint8_t* bytes = nullptr) const {
        size_t k = 0;
        auto place = [&] {
            const Tensor& t = rows[k].second;
            Place<T> w = {nullptr, nullptr, nullptr, t.form};
            if (t.form == Form::FP32) w.p = arena && t.present && slots.first[k] >= from ? arena + slots.place(k, l) - from : nullptr;
            else if (bytes) w.packed = bytes + 16 * packed.place(k, l), w.scales = (const float*)(w.packed + code_bytes(t.form, t.rows, t.cols));
            return w;
        };
        W w;
#define TAKE_PLACE(field, ...) w.field = place(), k++;
        TENSORS(TAKE_PLACE)
        return w;
    }

private:
    std::vector<std::pair<Per, size_t>> arrays(const Config& c, int tile, bool in_fewer_bits) const {
        std::vector<std::pair<Per, size_t>> v;
        for (auto& [per, t] : rows) {
            const size_t height = t.rows + (t.rows == c.vocab() ? (tile - t.rows % tile) % tile : 0);
            const size_t numbers = t.form == Form::FP32 ? std::max<size_t>(height, 1) * t.cols : 0;
            v.push_back({per, !t.present ? 0 : in_fewer_bits ? (packed_bytes(t.form, height, t.cols) + 15) / 16 : numbers});
        }
        return v;
    }
};

// A model whose layers' gradients take turns in memory, as with ZeRO 2: a layer's are sent to the ranks that keep them while
// the layer below is computed, which begins the bias sum of yet another.
inline Config in_turns(Config c, int zero) {
    if (zero == 2) c.L = std::min(c.L, 3);
    return c;
}

// ---- 3. rows and stages ---------------------------------------------------------------------------------------------
// What a step learns from. dev/host/rows.h makes the rows of token and example shards, their order in each epoch, from the
// seed and the position in the data alone, and batches of them.

/* The stages of making a GPT are one network and one loop; they differ in their rows and in what these count for.
     pretrain   windows of token shards          the likelihood of every token
     sft        examples, side by side or one    the likelihood of the responses
     reward     both answers of a preference     pair_loss() of their readouts: the logit of end of text behind an answer
     rl         answers drawn to a prompt        ppo_loss() of their tokens, by their reward over that of their group */
struct Stage {
    std::vector<int> kinds;                  // Examples: 0 dialogues, 1 prompts, 2 responses, 3 preferences; {}: tokens
    bool side_by_side = false;               // several examples packed into a row
};
inline const std::pair<const char*, Stage> STAGES[] = {{"pretrain", {}}, {"sft", {{0, 2}, true}}, {"reward", {{3}}}, {"rl", {{0, 1, 2}}}};
inline Wanted wanted(const Options& o, const char* option, const text& pattern, int V, int T, int eot) {
    const Stage& s = std::find_if(std::begin(STAGES), std::end(STAGES), [&](auto& row) { return o.stage == row.first; })->second;
    return {.option = option, .pattern = pattern, .rows = o.rows, .stage = o.stage, .kinds = s.kinds,
            .raw = !o.raw.empty(), .side_by_side = s.side_by_side && o.rows == "packed", .V = V, .T = T, .eot = eot};
}

// ---- 4. scalar maths ------------------------------------------------------------------------------------------------
// Functions of single numbers, compiled for the CPU loops and, as HD, for the CUDA kernels. To try another activation,
// edit gelu() and gelu_grad() here, for the GPU too; `make test` differentiates gelu().
#ifdef __CUDACC__
#define HD __host__ __device__ inline
#else
#define HD inline
#endif

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
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
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
    int hidden = 0;                          // tokens that are never drawn; gpu::Model alone sets and reads it
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
    x += 0.0f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 ? 0xffffffff : 0x80000000);
}

/* What a token adds to the loss, as a function of its log-probability lp under the model.
   likelihood   -w lp; w is 1 for a language model, the advantage for a policy gradient (Williams 1992)
   PPO          -min(r w, clamp(r, 1 - clip, 1 + clip) w) + kl (e^d - d - 1),   r = e^(lp - old), d = ref - lp;   w is the
                advantage, old and ref are the log-probability when it was drawn and that under the frozen start
   source       Schulman et al. 2017, arXiv:1707.06347, eq. 7; Schulman 2020, "Approximating KL divergence": k3 */
template <typename R> struct TokenLoss { R loss, weight; };                  // weight: -dloss/dlp
template <typename R> HD TokenLoss<R> likelihood_loss(R lp, R w) { return {-w * lp, w}; }
template <typename R> HD TokenLoss<R> ppo_loss(R lp, R w, R old, R ref, R clip, R kl) {
    const R ratio = std::exp(lp - old), least = 1 - clip, most = 1 + clip, e = std::exp(ref - lp);
    const R clipped = ratio < least ? least : ratio > most ? most : ratio;
    const bool unclipped = ratio * w <= clipped * w;         // r w is the minimum; the clipped term has no gradient
    return {-(unclipped ? ratio : clipped) * w + kl * (e - (ref - lp) - 1), (unclipped ? ratio * w : 0) + kl * (e - 1)};
}

/* What a pair adds to the loss, and its derivative, by how much more the chosen answer is rewarded than the rejected one.
   math     -log sigmoid(margin)
   source   Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1 */
inline std::pair<double, double> pair_loss(double margin) {
    return {std::log1p(std::exp(-std::abs(margin))) - std::min(margin, 0.0), -1 / (1 + std::exp(margin))};
}

// What the tokens of a batch count for, each (B,T); weights that are null are 1. With ref it is PPO; without old, they were
// drawn from these very weights, so that r is 1.
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
    if (s.kind == "wsd") {
        double x = (it - 0.8 * s.steps) / (0.2 * s.steps);
        return x <= 0 ? s.lr : s.lr * (1 - std::sqrt(x));
    }
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
   order    sums run over k upwards, in pieces of KC, whatever M and N are and however many threads there are

   Numbers are multiplied as type P: real, or bfloat16, to which both inputs are then rounded; sums are real in either
   case. B may already lie there as bfloat16, which halves what is read of it. gemm() runs on all threads, gemm_tile() on
   the one that calls it, and takes bfloat16 where the processor has a unit for it alone. */

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

// db += sum over n of dout; threads own columns, so every sum runs over n upwards
inline void bias_backward(real* db, const real* dout, int N, int OC) {
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < OC; c0 += 32) {
        int width = std::min(32, OC - c0);
        real sums[32] = {};
        for (int n = 0; n < N; n++) {
            #pragma omp simd
            for (int c = 0; c < width; c++) sums[c] += dout[(size_t)n * OC + c0 + c];
        }
        for (int c = 0; c < width; c++) db[c0 + c] += sums[c];
    }
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
inline void lora_forward(real* out, real* u, const real* x, const Layer<real>& w, double scale, int N, int C, int OC, int R) {
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

/* embedding -- what the token is plus where it stands
   math     out[b,t] = wte[x[b,t]] + wpe[t0 + t]
   shapes   x (B,T)   wte (V,C)   wpe (positions,C)   out (B,T,C)
   Ranks that share the vocabulary have its rows first .. first + V - 1; others count as zero, and positions once. */
template <typename E> void embedding_forward(real* out, const int* x, const E* wte, const E* wpe, int B, int t0, int T, int C,
                                             int first = 0, int V = INT_MAX) {
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
inline void embedding_backward(real* dwte, real* dwpe, const real* dout, const int* x, int B, int T, int C, int first = 0,
                               int V = INT_MAX) {
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
        mean[n] = m, rstd[n] = r;
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
        sum /= C, dot /= C;
        #pragma omp simd
        for (int c = 0; c < C; c++) dx_n[c] += r * (dout_n[c] * w[c] - sum - (x_n[c] - m) * r * dot);
    }
    if (!dw) return;                         // frozen
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += 32) {
        int width = std::min(32, C - c0);
        real sums_w[32] = {}, sums_b[32] = {};
        for (int n = 0; n < N; n++) {
            const real *x_n = x + (size_t)n * C + c0, *dout_n = dout + (size_t)n * C + c0;
            #pragma omp simd
            for (int c = 0; c < width; c++) {
                sums_w[c] += dout_n[c] * (x_n[c] - mean[n]) * rstd[n];
                sums_b[c] += dout_n[c];
            }
        }
        for (int c = 0; c < width; c++) dw[c0 + c] += sums_w[c], db[c0 + c] += sums_b[c];
    }
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
                sum[i] = sum[i] * shrink + total, maximum[i] = high;
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
            Scores are held transposed, (keys,queries): so most products read their rows where they are.
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
            const real *dout_0 = dout + ((size_t)b * T + i0) * C + h * HS, *out_0 = out + ((size_t)b * T + i0) * C + h * HS;
            const real* lse_i = lse + ((size_t)b * NH + h) * T + i0;
            const Matrix q_i = q.from(i0, 0), dout_i = {dout_0, C, 1};
            real D[QUERIES] = {};
            for (int i = 0; i < queries; i++)
                for (int c = 0; c < HS; c++) D[i] += dout_0[(size_t)i * C + c] * out_0[(size_t)i * C + c];
            for (int j0 = 0; j0 < i0 + queries; j0 += KEYS) {
                const int n = std::min(KEYS, i0 + queries - j0);
                const Matrix k_j = k.from(j0, 0), v_j = v.from(j0, 0);
                gemm_tile<P>({p.data(), queries}, k_j, q_i.t(), n, queries, HS);
                gemm_tile<P>({ds.data(), queries}, v_j, dout_i.t(), n, queries, HS);
                for (int j = 0; j < n; j++) {
                    real *p_j = &p[(size_t)j * queries], *ds_j = &ds[(size_t)j * queries];
                    const int hidden = std::max(0, j0 + j - i0);               // by causality
                    std::fill_n(p_j, hidden, real(0)), std::fill_n(ds_j, hidden, real(0));
                    #pragma omp simd
                    for (int i = hidden; i < queries; i++) {
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
   shapes   logits (N,V)   y (N); y_n = -1 counts nowhere   terms (N)   logprob (N), best (N): the likeliest token, or -1
            where y_n is
   Ranks that share the vocabulary have V columns each, from `first` on, and tell each other what they have found. */
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
inline void cross_entropy(real* logits, real* logprob, int* best, const int* y, const TokenTerms<double>& terms, int N, int V,
                          bool gradients, int first = 0, Group<MpiLink, real> group = {}) {
    const int rank = group.comm.rank, ranks = group.comm.size;
    std::vector<Found> all((size_t)ranks * N);               // by rank, of each row
    auto finish = [&](int n) {
        real *z = logits + (size_t)n * V, sum = 0, target = 0;
        Found most = all[n];
        for (int r = 1; r < ranks; r++) if (all[r * N + n].maximum > most.maximum) most = all[r * N + n];
        auto shrink = [&](int r) { return fast_exp(all[r * N + n].maximum - most.maximum); };
        for (int r = 0; r < ranks; r++) sum += all[r * N + n].sum * shrink(r), target += all[r * N + n].target;
        best[n] = most.best, logprob[n] = target - most.maximum - std::log(sum);
        if (!gradients) return;
        const real weight = terms.loss(n, logprob[n]).weight, scale = weight * shrink(rank) / sum;
        #pragma omp simd
        for (int v = 0; v < V; v++) z[v] *= scale;
        if ((unsigned)(y[n] - first) < (unsigned)V) z[y[n] - first] -= weight;
    };
    #pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) {
        logprob[n] = 0, best[n] = -1;
        if (y[n] < 0 && gradients) std::fill_n(logits + (size_t)n * V, V, real(0));
        if (y[n] < 0) continue;
        all[rank * N + n] = softmax_parts(logits + (size_t)n * V, y[n] - first, V), all[rank * N + n].best += first;
        if (ranks == 1) finish(n);
    }
    if (ranks == 1) return;
    group.gather(all.data(), N);
    #pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) if (y[n] >= 0) finish(n);
}

/* readout -- one logit of one token of each row of a batch: what a reward model says
   math     out_b = x[b,at_b] . w
   shapes   out, at, dout (B)   x, dx (B,T,C)   w, dw (C): the token's row of the head's table; dx is set, dw added to */
template <typename E> void readout_forward(float* out, const real* x, const int* at, Matrix<E> w, int B, int T, int C) {
    for (int b = 0; b < B; b++) {
        const real* x_b = x + ((size_t)b * T + at[b]) * C;
        real sum = 0;
        for (int i = 0; i < C; i++) sum += x_b[i] * real(w(0, i));
        out[b] = sum;
    }
}
template <typename E>
void readout_backward(real* dx, real* dw, const float* dout, const real* x, const int* at, Matrix<E> w, int B, int T, int C) {
    std::fill_n(dx, (size_t)B * T * C, real(0));
    for (int b = 0; b < B; b++) {
        const size_t n = ((size_t)b * T + at[b]) * C;
        for (int i = 0; i < C; i++) dx[n + i] = dout[b] * real(w(0, i));
        for (int i = 0; dw && i < C; i++) dw[i] += dout[b] * x[n + i];
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
        for (size_t i = i0; i < end; i++) adamw_step(w[i], m[i], v[i], scale * g[i], step, decays), g[i] = 0;
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
    weight.resize(V);
    if (s.top_k < V || s.top_p) {
        order.resize(V);                     // the likelier, the greater
        for (int v = 0; v < V; v++) order[v] = (uint64_t)ordered(logits[v]) << 32 | ~(uint32_t)v;
        auto id = [](uint64_t place) { return ~(uint32_t)place; };
        if (s.top_k < V) {
            std::nth_element(order.begin(), order.begin() + s.top_k - 1, order.end(), std::greater());
            order.resize(s.top_k);
        }
        if (s.top_p) {
            uint64_t sum = 0, kept = 0;
            for (uint64_t place : order) sum += weigh(id(place));
            const uint64_t least = multiply_high(sum, s.top_p);
            size_t n = 0, sorted = 0;        // the likeliest: a few are enough as a rule, so that the rest is not sorted
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
        std::fill(weight.begin(), weight.end(), 0);
        for (uint64_t place : order) weight[id(place)] = weigh(id(place));
    } else
        for (int v = 0; v < V; v++) weight[v] = weigh(v);
    for (int v = 0; v < V; v++) if (maximum - logits[v] > s.most_below) weight[v] = 0;
    uint64_t left = rng.below(std::accumulate(weight.begin(), weight.end(), uint64_t(0)));
    int v = 0;
    while (left >= weight[v]) left -= weight[v++];
    return v;
}

// A token for each of B rows of logits (B,V), none of those hidden; adjust(b, row) may change a row before.
template <typename F>
void pick_rows(int* token, float* logits, int B, int V, const Sampling& s, const std::vector<int>& hidden, Rng* rng, F adjust) {
    for (int b = 0; b < B; b++) {
        float* const row = logits + (size_t)b * V;
        adjust(b, row);
        for (int v : hidden) row[v] = NEVER;
        token[b] = pick(row, V, s, rng[b]);
    }
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

// One sum, or a vector of neighbours, to where it belongs.
inline void put(Target to, real sum) {
    if (to.bias) sum += *to.bias;
    if (to.plus) sum += *to.plus;
    *to.c = sum;
}
inline void put(Target to, vec sums) {
    if (to.bias) sums += *(const vec*)to.bias;
    if (to.plus) sums += *(const vec*)to.plus;
    *(vec*)to.c = sums;
}

// c (m,n) = sum over k of a(i,k) b(k,j), m <= MR, n <= V VL; a has MR rows, b is packed (K,NR)
template <int V> __attribute__((noinline))
void multiply_add(Target to, Matrix<> a, const real* b, int m, int n, int K) {
    vec sums[MR][V] = {};
    for (int i = 0; i < m; i++)              // prefetch C: it is not in cache
        for (int v = 0; v < V; v++) __builtin_prefetch(to.c + i * to.ldc + v * VL, 1);
    for (int k = 0; k < K; k++, a.p += a.col, b += NR) {
        vec row[V];
        for (int v = 0; v < V; v++) row[v] = *(const vec*)(b + v * VL);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < V; v++) sums[i][v] += a.p[i * a.row] * row[v];
    }
    if (m == MR && n == V * VL) {
        for (int i = 0; i < MR; i++) for (int v = 0; v < V; v++) put(to.from(i, v * VL), sums[i][v]);
        return;
    }
    real edge[MR][V * VL];
    for (int i = 0; i < MR; i++) for (int v = 0; v < V; v++) *(vec*)(edge[i] + v * VL) = sums[i][v];
    for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) put(to.from(i, j), edge[i][j]);
}

// panel (K,NR) = b; columns beyond n are of no account
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

// panels (M/MR,K,MR) = a; rows beyond M are of no account
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

// sums (M,n) += a (M,R) b (R,n), n in vectors; rows of sums are TILE_N numbers apart, rows of a KC. The next R
// rows are prefetched: hardware does so along a row, not down a column.
template <typename P, int R, typename E> void add_rows(vec* sums, const real* a, Matrix<E> b, int M, int n) {
    for (int j = 0; j < n; j++) {
        vec rows[R];
        for (int r = 0; r < R; r++) {
            rows[r] = load<P>(b.from(r, j * VL));
            b.prefetch(r + R, j * VL);
        }
        for (int i = 0; i < M; i++) {
            vec sum = sums[i * TILE_N / VL + j];
            for (int r = 0; r < R; r++) sum += a[i * KC + r] * rows[r];
            sums[i * TILE_N / VL + j] = sum;
        }
    }
}

// The product when A has few rows, as when decoding: bound by memory, so B is read once, unpacked, in strips along its
// rows or columns, whichever are contiguous. The sums are those of multiply_add, in the same order.
template <typename P, typename E> void gemm_rows(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    const int strip = b.col == 1 ? TILE_N : VL;
    for (int j0 = 0; j0 < N; j0 += strip) for (int k0 = 0; k0 < K; k0 += KC) {
        const int n = std::min(strip, N - j0), kn = std::min(KC, K - k0), wide = b.col == 1 ? n / VL : 0;
        const Matrix<> a_k = a.from(0, k0);
        const Matrix<E> b_k = b.from(k0, j0);
        real piece[MR * KC];                                 // of A; zeros up to a whole block
        vec sums[MR * TILE_N / VL];
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < (n + VL - 1) / VL; j++) sums[i * TILE_N / VL + j] = vec{};
            for (int k = 0; k < kn; k++) piece[i * KC + k] = P(a_k.p[i * a.row + k * a.col]);
            for (int k = kn; k % DEEP<E>; k++) piece[i * KC + k] = 0;
        }
        int k = 0;
        for (; k + 8 <= kn; k += 8) add_rows<P, 8>(sums, piece + k, b_k.from(k, 0), M, wide);
        for (; k < kn; k++) add_rows<P, 1>(sums, piece + k, b_k.from(k, 0), M, wide);
        for (int j = wide; j * VL < n; j++)                  // what does not lie in whole vectors
            for (k = 0; k < kn; k += DEEP<E>) {
                real block[DEEP<E> * VL];
                for (int l = 0; l < VL; l++) b_k.prefetch(k, (j + 1) * VL + l);
                copy_block<P>(block, VL, b_k.from(k, j * VL), kn - k, n - j * VL);
                for (int d = 0; d < DEEP<E>; d += VL)
                    add_rows<real, VL>(sums + j, piece + k + d, Matrix{block + d * VL, VL, 1}, M, 1);
            }
        const Target target = k0 ? Target{to.c, to.ldc, to.c} : to;
        for (int i = 0; i < M; i++) {
            const vec* row = sums + i * TILE_N / VL;
            for (int j = 0; j < n / VL; j++) put(target.from(i, j0 + j * VL), row[j]);
            for (int j = n / VL * VL; j < n; j++) put(target.from(i, j0 + j), row[j / VL][j % VL]);
        }
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
        const real* from = a.p + i * a.row;
        real* to = copy + (size_t)i * K;
        const int whole = a.col == 1 ? K / VL * VL : 0;
        for (int k = 0; k < whole; k += VL) *(vec*)(to + k) = load<bfloat16>(a.from(i, k));
        for (int k = whole; k < K; k++) to[k] = bfloat16(from[k * a.col]);
    }
    return {copy, K, 1};
}

// The product of bfloat16 numbers on AMX, the matrix unit of newer Xeons, or in dot products: dev/host/units.h has its loops.
struct Put {
    Target to;
    Put from(int k, int i, int j) const { return {(k ? Target{to.c, to.ldc, to.c} : to).from(i, j)}; }
    void prefetch(int i, int j) const { if (to.plus) Matrix{to.plus, to.ldc, 1}.prefetch(i, j); }
    void operator()(int i, int j, const auto* sums, int n) const {
        const Target target = to.from(i, j);
        for (int v = 0; v < n / VL * VL; v += VL) put(target.from(0, v), *(const vec*)(sums + v));
        for (int v = n / VL * VL; v < n; v++) put(target.from(0, v), sums[v]);
    }
};

// Multiply-adds of all threads on numbers in registers (of a unit: in the level-1 cache), in FLOP/s: the roof of gemm()
inline double measure_peak(Unit unit, int trials = 32) {
    double best = 0;
    for (int trial = 0; trial < trials; trial++) {           // the best one is the least disturbed
        const double start = seconds(), flops = unit == Unit::NONE ? register_trial<vec, real, MR, VECTORS>() : unit_trial(unit);
        best = std::max(best, flops / (seconds() - start));
    }
    return best;
}

// Where bfloat16 numbers are multiplied: in the fastest unit that the processor has, if that is faster by a margin than
// vectors of floats. A run keeps its own (state.json), since each adds up in another order.
inline Unit& unit() {
    static Unit chosen = [] {
        Unit best = Unit::NONE;
        double most = 1.3 * measure_peak(best);
        for (Unit u : {Unit::DOTS, Unit::AMX}) if (has(u))
            if (const double rate = measure_peak(u); rate > most) best = u, most = rate;
        return best;
    }();
    return chosen;
}
// The unit of a run: that of the checkpoint which it goes on from, if there is one and this machine has it.
inline std::string keep_unit(const std::string& kept, const std::string& checkpoint) {
    const Unit its = Unit(std::find(std::begin(UNITS), std::end(UNITS), kept) - std::begin(UNITS));
    if (!checkpoint.empty() && has(its)) unit() = its;
    else if (!checkpoint.empty())
        warn("%s: its bf16 products were made in a unit that is not here, '%s': from now on sums are added up in another order",
             checkpoint.c_str(), kept.c_str());
    return UNITS[(int)unit()];
}

template <typename P, typename E> void gemm(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    if constexpr (std::is_same_v<P, bfloat16>) if (M > MR) {
        if (const Unit u = unit(); u != Unit::NONE) return unit_product(u, a, b, M, N, K, Put{to});
        a = rounded(a, M, K);
    }
    int tile_m = TILE_M, tile_n = TILE_N;                    // halving tile_m packs B twice as often, tile_n at most A
    const int enough = (M > MR ? 4 : 1) * omp_get_max_threads();
    auto tiles = [&] { return ((M - 1) / tile_m + 1) * (integer)((N - 1) / tile_n + 1); };
    while (tiles() < enough && tile_n > NR) tile_n /= 2;
    while (tiles() < enough && tile_m > 4 * MR) tile_m /= 2;
    #pragma omp parallel for collapse(2) schedule(dynamic) if (integer(M) * N * K > 32768)
    for (int n0 = 0; n0 < N; n0 += tile_n) for (int m0 = 0; m0 < M; m0 += tile_m)
        vector_tile<P>(to.from(m0, n0), a.from(m0, 0), b.from(0, n0), std::min(tile_m, M - m0), std::min(tile_n, N - n0), K);
}
template <typename P, typename E> void gemm_tile(Target to, Matrix<> a, Matrix<E> b, int M, int N, int K) {
    if constexpr (std::is_same_v<P, bfloat16>) if (M > MR) return unit_tile(unit(), a, b, M, N, K, Put{to});
    vector_tile<real>(to, a, b, M, N, K);
}

}  // namespace cpu

// ---- 7. model -------------------------------------------------------------------------------------------------------
// What Training, checkpoints and the verbs need of a model, and cpu::Model, which is one.
//   Model(config, B, T, training, bf16)      allocates for at most B rows of T tokens, once; dies if that does not fit
//   forward(x, y, objective, denominator, B, T, backward)
//                                      the sum of the tokens' losses / denominator; -log-probabilities in nats, or PPO's.
//                                      The denominator is the whole step's, so that micro-batches add up to one batch.
//                                      backward: a backward() follows, and the head's gradients are taken now, because
//                                      logits are never kept
//   readout(x, at, token, B, T, out)   another forward: out[b] is the logit of one token at position at[b] of row b
//   readout_backward(dout)             its gradients; a backward() follows
//   backward()                         of the last forward; adds to the gradients
//   update(adamw, clip, step)          with gradients scaled to a norm of clip at most (0: as they are), which it then
//                                      clears; step counts from 1. It does nothing if the loss or norm is not finite.
//   result()                           waits for all this; the sum of losses since the last result(), and the norm (L2,
//                                      over all tensors) that the last update() found. logprob[n] and best[n], the
//                                      likeliest token, of the last forward are then there for every y[n] >= 0, unless a
//                                      backward() of likelihoods came after it
//   extend(x, B, t0, T)                prefill and decode: T more tokens for each row, after the t0 in the KV cache
//   logits(n, step, count, out)        (count,V) logits of rows n, n + step, ... of the last forward or extend
//   draw(x, B, t0, T, sampling, hidden, rng, token, ahead)
//                                      extend, and then a token for each of at most 64 rows, with its own random number;
//                                      none of those hidden. One token (T) goes on from the last draw, with its sampling
//                                      ahead: the next x is what this gives, so tokens may be made ahead of time
//   describe()                         one line about the machine and the memory in use
//   speed(tokens, seconds)             of a step: for its line, and for the log
//   get(which, i, out), set(which, i, in)      tensor i of layout.tensors, as float
enum Which { WEIGHT, GRADIENT, MOMENT1, MOMENT2 };
template <typename Model> void initialize(Model& model, uint64_t seed) {     // what is trained
    for (size_t i = 0; i < model.layout.tensors.size(); i++)
        if (model.layout.tensors[i].offset >= model.layout.frozen) model.set(WEIGHT, i, model.layout.initial_values(i, seed).data());
}
struct StepResult { double loss, norm; };
struct Speed { std::string text; std::vector<std::pair<const char*, std::string>> log; };

/* The network, for both programs: m has the layers, which cpu::Model below makes of section 5's functions, gpu::Model of
   its kernels. norm_forward() returns the x of linear_forward(): normalized numbers or, where a GPU decodes few rows,
   what its product is to normalize. */

// Everything a step computes; N rows. KEPT: a layer's own in training, where backward reads it, else shared by layers.
// act is the type of activations, stat of sums over them; a GPU adds rows.
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
    X(act,  logits,    ONCE,   head_rows(N, c.V / c.tp) * padded(c.vocab())) \
    X(act,  dresidual, ONCE,   training ? N * c.C : 0)       /* gradient of the residual stream */ \
    X(act,  dx,        ONCE,   training ? N * c.C : 0)       /* of what is C wide within a branch */ \
    X(act,  dwide,     ONCE,   training ? N * std::max({c.qkv(), c.fc(), 2 * c.C}) : 0)     /* of qkv or fc; sums of the embedding */ \
    X(act,  lora,      ONCE,   2 * N * c.rank)              /* x A, and its gradient */ \
    X(act,  arrivals,  ONCE,   c.tp > 1 ? N * c.C + c.tp : 0)            /* from ranks that share the layers */

// Rows of logits of which each rank has some columns (count,vocab), made whole in place: all ranks do so at once.
inline void join_logits(float* logits, size_t count, Config c) {
    if (c.tp == 1) return;
    const size_t most = count * (c.V / c.tp + 1), first = world().rank - c.place;
    std::vector<float> mine(logits, logits + count * c.vocab()), all(most * world().size);
    mine.resize(most), world().gather(mine.data(), all.data(), most * sizeof(float));
    for (c.place = 0; c.place < c.tp; c.place++) for (size_t n = 0; n < count; n++)
        std::copy_n(&all[(first + c.place) * most + n * c.vocab()], c.vocab(), logits + n * c.V + c.first_token());
}

// A branch joins the residual stream, by a product of whose rows ranks may have some each: what is added counts once.
template <typename M> void join(M& m, auto out, auto x, auto layer, decltype(out) plus, int N, int width) {
    if (!m.group.first()) layer.b = nullptr, plus = nullptr;
    m.linear_forward(out, x, layer, plus, nullptr, N, width, m.c.C);
    m.group.sum(out, (size_t)N * m.c.C);
}

// Tokens t0 .. t0+T-1 of each of B rows, through all blocks and the last layernorm, whose output it returns. a.qkv, the
// KV cache, has S tokens a row; with T < S new ones are computed contiguously, in fc, and then copied into it.
template <typename M> auto network_forward(M& m, int B, int t0, int T, int S) {
    const int N = B * T, C = m.c.C, H = m.c.hidden();
    auto residual = m.activations(0).embedded;
    m.shares.await_weights(0);
    for (int l = 0; l < m.c.L; l++) {
        m.shares.await_weights(l + 1);
        const auto a = m.activations(l);
        const auto w = m.weights_of(l);
        const auto qkv = T == S ? a.qkv : a.fc;
        const auto ln1 = l == 0 ? m.embedding_norm_forward(a, w, B, t0, T)
                                : m.norm_forward(a.ln1, a.ln1_stats, residual, w.ln1, N);
        m.linear_forward(qkv, ln1, w.qkv, nullptr, nullptr, N, C, m.c.qkv());
        m.attention_forward(a, qkv, B, t0, T, S);
        join(m, a.middle, a.att, w.proj, residual, N, m.c.att());
        const auto ln2 = m.norm_forward(a.ln2, a.ln2_stats, a.middle, w.ln2, N);
        m.linear_forward(a.fc_gelu, ln2, w.fc, nullptr, a.fc, N, C, H);
        join(m, a.residual, a.fc_gelu, w.fcproj, a.middle, N, H);
        residual = a.residual;
    }
    m.shares.await_weights(m.c.L + 1);
    const auto a = m.activations(0);
    const auto w = m.weights_of(0);
    return m.norm_forward(a.lnf, a.lnf_stats, residual, w.lnf, N);
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

// The head has left d(loss)/d(lnf) in dx. Each call that makes the gradient of an x w + b also sums it up for b.
template <typename M> void network_backward(M& m, int B, int T) {
    const int N = B * T, C = m.c.C, H = m.c.hidden(), L = m.c.L;
    const auto end = m.activations(L - 1);
    m.group.sum(end.dx, (size_t)N * C);
    m.norm_backward(end.dresidual, false, m.gradients_of(0).lnf, m.gradients_of(L - 1).fcproj.b, end.dx, end.residual,
                    m.weights_of(0).lnf.w, end.lnf_stats, N);
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
    m.shares.reduce_gradients(0), m.shares.reduce_gradients(L + 1);
    m.shares.await_gradients();
}

namespace cpu {

using act = real;
using stat = real;
inline int most_logits = 1 << 25;            // numbers at once; tests have fewer, so that they come in several chunks
inline size_t head_rows(size_t N, int V) {   // of a chunk: all have as many, as near as can be
    const size_t most = std::clamp(most_logits / V, 64, 1024), chunks = std::max<size_t>(1, (N + most - 1) / most);
    return (N + chunks - 1) / chunks;
}
inline size_t padded(int V) { return V; }

struct Activations {
#define X(type, field, ...) type* field;
    ACTIVATIONS(X)
#undef X
};

inline Slots activation_slots(const Config& c, size_t N, bool training) {
    const Per KEPT = training ? BLOCK : ONCE;
    std::vector<std::pair<Per, size_t>> v;
#define X(type, field, per, count) v.push_back({per, count});
    ACTIVATIONS(X)
#undef X
    return Slots(v, c.L);
}

struct Model {
    static void join(const Options&) { join_mpi(); }         // the other ranks, if there are any
    static void leave() { leave_mpi(); }
    const Config c;
    const int max_B, max_T;                  // of a forward pass
    const bool bf16, in_unit;                // products are made of numbers rounded to bfloat16; in a unit of the processor
    const Layout layout;
    const Slots slots;
    const Config turns;                      // as many layers as their gradients have room for,
    const Layout ring;                       // and how these lie
    mutable Sharing<MpiLink, real> shares;   // of what several ranks train
    Group<MpiLink, real> group;              // those that share each layer
    Buffer<real> weights, gradients, moment1, moment2, acts;
    Buffer<real> sums, arrivals;             // several ranks: this one's part of their gradients; where others' arrive
    Buffer<bfloat16> rounded;                // the weights again
    Buffer<uint8_t> packed;                  // matrices that are frozen, in fewer bits
    std::vector<real> logprob;
    std::vector<int> best;

    Model(const Config& c, int B, int T, bool training, bool bf16 = false)
        : c(c), max_B(B), max_T(T), bf16(bf16), in_unit(bf16 && unit() != Unit::NONE), layout(c),
          slots(activation_slots(c, (size_t)B * T, training)), turns(in_turns(c, training ? world().zero : 0)), ring(turns),
          shares(layout.shares(training ? world().data() : Comm(), c.L, turns.L)), group{world().group(c.tp)} {
        if ((double)B * T > INT_MAX) die("--batch %d x --context %d: more than 2^31 tokens at once", B, T);
        if (bf16 && sizeof(real) != 4) die("--dtype bf16: this program was built for 64-bit numbers");
        size_t need = bytes(training), have = available_memory() / world().here;
        if (need > have)
            die("not enough memory: %.2f GB needed (weights %.2f, gradients and moments %.2f, activations %.2f for %d "
                "rows of %d tokens), %.2f GB available; lower --batch or --context",
                need / 1e9, (need - (training * trained_numbers() + slots.size) * sizeof(real)) / 1e9,
                training * trained_numbers() * sizeof(real) / 1e9, slots.size * sizeof(real) / 1e9, B, T, have / 1e9);
        weights = Buffer<real>(layout.slots.size), acts = Buffer<real>(slots.size), packed = Buffer<uint8_t>(16 * layout.packed.size);
        if (bf16) rounded = Buffer<bfloat16>(layout.slots.size);
        if (training) gradients = Buffer<real>(ring.trained());
        if (training) for (Buffer<real>* b : {&moment1, &moment2}) *b = Buffer<real>(shares.moments());
        if (training && shares.several()) sums = Buffer<real>(shares.kept.back()), arrivals = Buffer<real>(shares.landing);
        shares.gradients = gradients.data(), shares.arrivals = arrivals.data();
        shares.sums = (shares.several() ? sums : gradients).data(), group.arrivals = activations(0).arrivals;
        logprob.resize((size_t)B * T), best.resize((size_t)B * T), token_weight.resize((size_t)B * T);
    }
    std::string describe() {
        peak = measure_peak(bf16 ? unit() : Unit::NONE);
        const char* const types[] = {", bf16 rounded and multiplied in fp32 (no unit here is faster)", ", bf16 in dot products",
                                     ", bf16 on AMX"};
        const char* type = bf16 ? types[(int)unit()] : "";
        const double gb = sizeof(real) / 1e9, frozen = rounded.size * sizeof(bfloat16) / 1e9 + packed.size / 1e9;
        const size_t of_gradients = gradients.size + sums.size + arrivals.size;
        return format(
            "%d threads%s, %d-bit vectors%s, measured peak %.0f GFLOP/s; %.2f GB: weights %.2f, gradients %.2f, "
            "moments %.2f, activations %.2f",
            omp_get_max_threads(), WITHOUT_OPENMP, VECTOR_BYTES * 8, type, peak / 1e9, bytes(true) / 1e9,
            weights.size * gb + frozen, of_gradients * gb, (moment1.size + moment2.size) * gb, acts.size * gb);
    }
    Speed speed(double step_tokens, double seconds) {
        const double flops = c.flops_per_token(layout.parameters, layout.frozen_parameters, max_T) * step_tokens / seconds;
        peak = std::max(peak, flops);                        // measured beside other work it came out too low
        return {format("%.1f GFLOP/s (%.0f%%)", flops / 1e9, 100 * flops / peak), {}};
    }
    size_t bytes(bool training) const {
        const size_t each = sizeof(real) + (bf16 ? sizeof(bfloat16) : 0);
        return layout.slots.size * each + 16 * layout.packed.size + (slots.size + training * trained_numbers()) * sizeof(real);
    }
    size_t trained_numbers() const {         // gradients and moments
        return ring.trained() + shares.exchanged() + 2 * shares.moments();
    }

    void forward(const int* x, const int* y, const Objective& o, double denominator, int B, int T, bool backward) {
        const int N = B * T;
        tokens.assign(x, x + N), targets.assign(y, y + N), rows = B, columns = T;
        for (int n = 0; n < N; n++) token_weight[n] = (o.weight ? o.weight[n] : 1.0) / denominator;
        kl = o.kl / denominator;
        terms = {.weight = token_weight.data(), .kl = &kl, .old = o.old, .ref = o.ref, .clip = (float)o.clip};
        network_head(*this, network_forward(*this, B, 0, T, T), N, backward);
    }
    void readout(const int* x, const int* at, int token, int B, int T, float* out) {
        tokens.assign(x, x + B * T), read_at.assign(at, at + B), read_token = token, rows = B, columns = T;
        const real* lnf = network_forward(*this, B, 0, T, T);
        with_matrix(table(), c.C, [&]<typename P>(auto table) { readout_forward(out, lnf, at, table.from(token, 0), B, T, c.C); });
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
        tokens.assign(x, x + B * T);
        network_forward(*this, B, t0, T, max_T);
    }
    void logits(int n, int step, int count, float* out) {
        const Activations a = activations(0);
        for (int i = 0; i < count; i += chunk()) {
            const int some = std::min(chunk(), count - i);
            logits_forward(a.lnf, n + i * step, step, some);
            std::copy_n(a.logits, (size_t)some * c.vocab(), out + (size_t)i * c.vocab());
        }
        join_logits(out, count, c);
    }
    void draw(const int* x, int B, int t0, int T, const Sampling& s, const std::vector<int>& hidden, Rng* rng, int* token, bool) {
        std::vector<float> z((size_t)B * c.V);
        extend(x, B, t0, T), logits(T - 1, T, B, z.data());
        pick_rows(token, z.data(), B, c.V, s, hidden, rng, [](int, float*) {});
    }

    void update(const AdamW& o, double clip, integer step) {
        const bool parts = shares.comm.zero > 0;             // each rank updates its own
        double found[] = {c.place ? 0 : sum_of_squares(shares.sums, shares.kept.back()), c.place ? 0 : loss};
        for (const Tensor& t : layout.tensors)               // what the first of the group does not have
            if (c.place && !t.slice.all())
                each_place(GRADIENT, t, 0, t.count(), [&](real* own, auto, size_t n) { found[0] += sum_of_squares(own, n); });
        world().sum(found, 2), norm = std::sqrt(found[0]), loss = found[1];
        if (!std::isfinite(norm) || !std::isfinite(loss)) return;
        const double scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1;
        const AdamWStep s(o, step);
        if (shares.several() && !parts) shares.gather_gradients();
        real* const g = parts ? shares.sums : shares.gradients;
        for (const Tensor& t : layout.tensors) {
            if (!t.present || !t.trained) continue;
            shares.places(g, parts, t.offset - layout.frozen, t.count(), [&](real* at, size_t i, size_t n) {
                const size_t own = at - g;
                adamw_update(weights.data() + t.offset + i, moment1.data() + own, moment2.data() + own, at, n, s, t.decays(), scale,
                             bf16 ? rounded.data() + t.offset + i : nullptr);
            });
        }
        real* const trained = weights.data() + layout.frozen;
        bfloat16* const its = bf16 ? rounded.data() + layout.frozen : nullptr;
        if (parts) shares.send_weights(trained, [=](size_t at, size_t n) { if (its) convert(its + at, trained + at, n); });
    }

    StepResult result() { return {std::exchange(loss, 0), norm}; }

    // Of several ranks, each has a part of gradients and moments; zeros stand for the others'.
    void get(Which which, size_t i, float* out, size_t from = 0, size_t n = SIZE_MAX) const {
        const Tensor& t = layout.tensors[i];
        n = std::min(n, t.count() - from);
        if (which == WEIGHT) for (int g = 0; g <= c.L + 1; g++) shares.await_weights(g);
        if (t.present && t.form != Form::FP32 && which == WEIGHT) return unpack(t.form, out, packed.data() + t.packed, t.rows, t.cols);
        std::fill_n(out, n, 0);
        each_place(which, t, from, n, [&](real* own, size_t at, size_t some) { convert(out + at, own, some); });
    }
    void set(Which which, size_t i, const float* in) {
        const Tensor& t = layout.tensors[i];
        if (t.present && t.form != Form::FP32 && which == WEIGHT) return pack(t.form, packed.data() + t.packed, in, t.rows, t.cols);
        each_place(which, t, 0, t.count(), [&](real* own, size_t at, size_t n) { convert(own, in + at, n); });
        if (which == WEIGHT && bf16 && t.present) convert(rounded.data() + t.offset, in, t.count());
    }
    // What this rank writes of a tensor.
    auto mine(size_t i) const { return shares.of_tensor(layout.tensors[i].offset - layout.frozen, layout.tensors[i].count()); }
    Activations activations(int l) const {
        size_t k = 0;
        auto pointer = [&] { return acts.data() + slots.first[k] + l * slots.stride[k]; };
        Activations a;
#define X(type, field, ...) a.field = pointer(), k++;
        ACTIVATIONS(X)
#undef X
        return a;
    }

    // The layers, as the network calls them.
    using Parameters = Weights<real, Place<real>>;
    Parameters weights_of(int l) const { return layout.at<Parameters>(weights.data(), l, 0, packed.data()); }
    Weights<real> gradients_of(int l) const { return ring.at<Weights<real>>(gradients.data(), l % turns.L, ring.frozen); }
    const real* embedding_norm_forward(const Activations& a, const Parameters& w, int B, int t0, int T) {
        auto embed = [&](auto* wte, auto* wpe) {
            embedding_forward(a.embedded, tokens.data(), wte, wpe, B, t0, T, c.C, c.first_token(), c.vocab());
        };
        if (w.wte.packed) embed((const bfloat16*)w.wte.packed, (const bfloat16*)w.wpe.packed);
        else embed(w.wte.p, w.wpe.p);
        group.sum(a.embedded, (size_t)B * T * c.C);
        return norm_forward(a.ln1, a.ln1_stats, a.embedded, w.ln1, B * T);
    }
    const real* norm_forward(real* out, real* stats, const real* x, const Norm<real>& norm, int N) {
        return layernorm_forward(out, stats, stats + N, x, norm.w, norm.b, N, c.C, c.eps), out;
    }
    void norm_backward(real* dresidual, bool add, const Norm<real>& g, real* dbias, const real* dout, const real* x,
                       const real* w, const real* stats, int N) {
        if (!add) std::fill_n(dresidual, (size_t)N * c.C, real(0));
        layernorm_backward(dresidual, g.w, g.b, dout, x, w, stats, stats + N, N, c.C);
        if (dbias) bias_backward(dbias, dresidual, N, c.C);
    }
    void linear_forward(real* out, const real* x, const Layer<real>& layer, const real* plus, real* before_gelu, int N, int C, int OC) {
        real* const to = before_gelu ? before_gelu : out;
        with_matrix(layer.w, OC, [&]<typename P>(auto w) { cpu::linear_forward<P>(to, x, w, layer.b, plus, N, C, OC); });
        if (layer.A) lora_forward(to, activations(0).lora, x, layer, c.lora_scale(), N, C, OC, c.rank);
        if (before_gelu) gelu_forward(out, before_gelu, (size_t)N * OC);
    }
    void linear_backward(real* dx, const Linear<real>& g, const real* dout, const real* x, const Layer<real>& layer, int N,
                         int C, int OC) {
        with_matrix(layer.w, OC, [&]<typename P>(auto w) { cpu::linear_backward<P>(dx, g.w, dout, x, w, N, C, OC); });
        real *const u = activations(0).lora, *const du = u + (size_t)N * c.rank;
        if (layer.A) lora_backward(dx, g, u, du, dout, x, layer, c.lora_scale(), N, C, OC, c.rank);
    }
    void gelu_backward(real* d, real* db, const real* x, int N, int C) {
        cpu::gelu_backward(d, d, x, (size_t)N * C);
        if (db) bias_backward(db, d, N, C);
    }
    void attention_forward(const Activations& a, const real* qkv, int B, int t0, int T, int S) {
        const size_t row = c.qkv();
        if (T != S) for (int b = 0; b < B; b++) std::copy_n(qkv + b * T * row, T * row, a.qkv + (b * S + t0) * row);
        (in_unit ? cpu::attention_forward<bfloat16> : cpu::attention_forward<real>)(a.att, a.lse, a.qkv, B, t0, T, S, c.att(), c.heads());
    }
    void attention_backward(const Activations& a, real* db, int B, int T) {
        (in_unit ? cpu::attention_backward<bfloat16> : cpu::attention_backward<real>)(a.dwide, a.dx, a.qkv, a.att, a.lse, B, T, c.att(), c.heads());
        if (db) bias_backward(db, a.dwide, B * T, c.qkv());
    }
    void embedding_backward(const Weights<real>& g, const real* dout, int B, int T) {
        if (g.wte) cpu::embedding_backward(g.wte, g.wpe, dout, tokens.data(), B, T, c.C, c.first_token(), c.vocab());
    }
    int chunk() const { return head_rows((size_t)max_B * max_T, c.V / c.tp); }
    // of `count` rows n0, n0 + step, ... of x
    void logits_forward(const real* x, int n0, int step, int count) {
        const int V = c.vocab();
        with_matrix(table(), c.C, [&]<typename P>(auto table) {
            gemm<P>({activations(0).logits, V}, {x + (size_t)n0 * c.C, (long)step * c.C, 1}, table.t(), count, V, c.C);
        });
    }
    void cross_entropy(int n0, int count, bool backward) {
        cpu::cross_entropy(activations(0).logits, &logprob[n0], &best[n0], &targets[n0], terms.from(n0), count, c.vocab(),
                           backward, c.first_token(), group);
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
    std::vector<int> tokens, targets;        // of the last forward or extend
    std::vector<int> read_at;                // of the last readout
    std::vector<double> token_weight;
    double kl = 0;
    TokenTerms<double> terms;
    int rows = 0, columns = 0, read_token = 0;
    double loss = 0, norm = 0, peak = 0;

    template <typename F> void each_place(Which which, const Tensor& t, size_t from, size_t n, F f) const {
        if (!t.present || (which != WEIGHT && !t.trained)) return;
        if (which == WEIGHT) return f(weights.data() + t.offset + from, 0, n);
        real* const arenas[] = {nullptr, shares.sums, moment1.data(), moment2.data()};
        const bool of_parts = which == GRADIENT ? shares.several() : shares.comm.zero;
        shares.places(arenas[which], of_parts, t.offset - layout.frozen + from, n, f);
    }
    Place<real> table() const { return c.tied ? weights_of(0).wte : weights_of(0).head_w; }
    real* dtable() const { return c.tied ? gradients_of(0).wte : gradients_of(0).head_w; }         // null: frozen
    // f<P>(the matrix w as products read it), P the type in which they multiply; what is packed in less than bf16 they
    // multiply as real
    template <typename F> void with_matrix(const Place<real>& w, int cols, F f) const {
        auto as_bf16 = [&](const bfloat16* p) {
            const Matrix<bfloat16> m = {p, cols, 1};
            if (bf16) f.template operator()<bfloat16>(m);
            else f.template operator()<real>(m);
        };
        const long row = packed_row(cols);
        if (w.form == Form::BF16) as_bf16((const bfloat16*)w.packed);
        else if (w.form == Form::INT8) f.template operator()<real>(Matrix<int8_t>{(const int8_t*)w.packed, w.scales, row, 1});
        else if (w.form == Form::NF4) f.template operator()<real>(Matrix<nf4>{w.packed, w.scales, 0, row, 1});
        else if (bf16) as_bf16(rounded.data() + (w.p - weights.data()));
        else f.template operator()<real>(Matrix{w.p, cols, 1});
    }
};

}  // namespace cpu

// ---- 8. model files -------------------------------------------------------------------------------------------------
// The shape of a model on disk, its tensors, and what tells whether this program computes what its writer did.
inline Config read_config(const Json& json, const std::string& path) {
    Config c;
    read_config(c.members(), json, path);
    return c;
}
inline std::string config_json(Config c, int eot) { return config_json(c.members(), eot); }

inline Config config_of(const ModelFile& m, int heads) {     // heads: of the command line
    const Config c = read_config(with_heads(m, heads), m.config_path.empty() ? m.path : m.config_path);
    if (heads && heads != c.NH) die_usage("--heads %d: %s has %d", heads, m.path.c_str(), c.NH);
    return c;
}

// A model's tensors as files hold them, in layout order: its own or those of its adapter; kinds: weights, or moments with
// a prefix to their names.
using Kinds = std::vector<std::pair<std::string, Which>>;
const Kinds MOMENTS = {{"m.", MOMENT1}, {"v.", MOMENT2}};
template <typename Model> std::vector<Stored> stored(Model& model, bool adapter = false, const Kinds& kinds = {{"", WEIGHT}}) {
    std::vector<Stored> list;
    for (auto& [prefix, which] : kinds)
        for (size_t i = 0; i < model.layout.tensors.size(); i++) {
            const Tensor& t = model.layout.tensors[i];
            if (t.adapter() != adapter) continue;
            auto get = [&model, which = which, i](float* out, size_t from, size_t n) { model.get(which, i, out, from, n); };
            auto set = [&model, which = which, i, &t](const float* in) {
                std::vector<float> own(t.slice.all() ? 0 : t.count());
                t.slice.each({0, own.size()}, [&](size_t k, size_t place, size_t n) { std::copy_n(in + place, n, &own[k]); });
                model.set(which, i, own.empty() ? in : own.data());
            };
            const bool twin = !t.present && t.name == "lm_head.weight";
            auto mine = model.mine(i);
            if (model.c.tp > 1 && !mine) mine = {{0, t.count()}};
            if (model.c.place && t.slice.all()) mine->clear();           // the first of the group writes it
            list.push_back({prefix + t.name, t.shape, get, set, t.present, twin ? prefix + "transformer.wte.weight" : "", mine, t.slice});
        }
    return list;
}

/* What this program computes, in at most 64 numbers: logits of a small model of a kind with c, whose weights are drawn so
   that every layer matters (as they are initialized, a GELU is almost linear). It stands in state.json: a program that
   computes another function of the same tensors must not go on with them as if they were its own. */
inline std::vector<float> fingerprint(Config c) {
    const int HS = std::min(c.head_size(), 64);
    c = c.whole(), c.rank = 0, c.form = Form::FP32, c.L = std::min(c.L, 2), c.NH = std::min(c.NH, 2), c.C = HS * c.NH, c.V = std::min(c.V, 64), c.T = std::min(c.T, 128);
    cpu::Model model(c, 1, c.T, false);
    for (size_t i = 0; i < model.layout.tensors.size(); i++) {
        std::vector<float> values = model.layout.initial_values(i, 1);
        const bool in_block = model.layout.tensors[i].name.find(".h.") != std::string::npos;
        if (in_block) for (size_t k = 0; k < values.size(); k++) values[k] += 0.2 * Rng(k, i + 1).normal();
        model.set(WEIGHT, i, values.data());
    }
    std::vector<int> x;
    for (int t = 0; t < c.T; t++) x.push_back((7919 * t + 1) % c.V);
    std::vector<float> logits(c.V);
    model.extend(x.data(), 1, 0, c.T), model.logits(c.T - 1, 1, 1, logits.data());
    return logits;
}

// ---- 9. evaluate, sample, chat --------------------------------------------------------------------------------------
// A model is a Model as section 7 describes it, of this program or of train_gpt.cu.

// Scores n rows, `batch` at a time; each(row, target, its log-probability, likeliest token) sees the targets in order. Several
// ranks take turns with batches.
void score(auto& model, int batch, size_t n, auto row_at, auto each) {
    each_batch(n, batch, row_at, [&](size_t i, const Batch& b) {
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

Validation validate(auto& model, int batch, const ValidationRows& rows, const Tokenizer* tokenizer) {
    Validation v;
    score(model, batch, rows.spans.size(), [&](size_t i) { return rows.row(i); }, [&](size_t, int target, double logprob, int) {
        v.nats -= logprob, v.tokens++;
        if (tokenizer && !tokenizer->is_added(target)) v.bytes += tokenizer->decode(target).size();
    });
    auto sum = [](double value) { return world().sum_of_groups(value); };
    return {sum(v.nats), (size_t)sum(v.tokens), (size_t)sum(v.bytes)};
}

// What a reward model says of n rows that end in an answer: the logit of end of text behind it. Of several ranks that take
// turns with batches each has some, and zeros.
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
size_t right_answers(auto& model, int batch, const Examples& e, int eot) {
    std::vector<bool> wrong(e.size());
    score(model, batch, e.size(), [&](size_t i) { return turn_row(eot, e.of(i)[0], e.of(i)[1]); },
          [&](size_t i, int target, double, int best) { if (target != best) wrong[i] = true; });
    return e.size() - world().sum_of_groups(std::count(wrong.begin(), wrong.end(), true));
}

ChoiceScores multiple_choice(auto& model, int batch, const Choices& choices, const Tokenizer* tokenizer) {
    const ChoiceRows rows(choices);
    std::vector<double> sums(rows.of.size());
    score(model, batch, sums.size(), [&](size_t i) { return rows.row(i); }, [&](size_t i, int, double logprob, int) { sums[i] += logprob; });
    return choice_scores(rows, sums, tokenizer);
}

/* Continues prompts, in batches of at most 64; emit(i, token) gets the tokens of prompt i as they are drawn, and says
   whether it goes on. An end of text ends it, too; tokens that the tokenizer cannot show are never drawn. When the
   context is full, its later half is the new prompt. Prefill covers the length of a batch's shortest prompt; longer
   prompts are then fed a token a step, while the others decode. A text depends on the seed and its prompt, not on its
   batch, except for rounding on a GPU: cuBLASLt may sum in another order for another number of rows. adjust(i, z) may
   change the logits of prompt i's next token. held: what row 0 of the cache holds, before and after; of a single prompt
   the tokens that it begins with are not computed again. */
void generate(auto& model, const Sampling& sampling, uint64_t seed, const std::vector<Prompt>& prompts, int eot,
              const Tokenizer* tokenizer, auto emit, const Adjust& adjust = nullptr, std::vector<int>* held = nullptr) {
    const std::vector<int> hidden = tokenizer ? tokenizer->hidden(model.c.V) : std::vector<int>();
    for (const std::vector<int>& number : by_length(prompts, std::min(model.max_B, 64))) {
        const int B = number.size();
        const size_t shortest = prompts[number[0]].tokens.size(), longest = prompts[number[B - 1]].tokens.size();
        std::vector<std::vector<int>> rows;
        std::vector<integer> left;
        std::vector<Rng> rng;
        for (int b = 0; b < B; b++) {
            const Prompt& p = prompts[number[b]];
            rows.emplace_back(p.tokens.begin(), p.tokens.begin() + shortest), left.push_back(p.most);
            rng.emplace_back(seed, p.stream + 1);
        }
        std::vector<int> tokens(B);
        int past = 0;                                                        // tokens of each row in the KV cache
        if (held && B == 1)                                                  // but two: a single one goes on from a draw
            past = std::mismatch(held->begin(), held->end(), rows[0].begin(), rows[0].end() - std::min<size_t>(2, shortest)).first - held->begin();
        for (size_t at = shortest; std::any_of(left.begin(), left.end(), [](integer n) { return n > 0; }); at++) {
            if ((int)rows[0].size() > model.max_T) {
                for (auto& row : rows) row.erase(row.begin(), row.end() - std::max(1, model.max_T / 2));
                past = 0;
            }
            const int length = rows[0].size();
            std::vector<int> x;
            for (auto& row : rows) x.insert(x.end(), row.begin() + past, row.end());
            if (!adjust && model.c.tp == 1) model.draw(x.data(), B, past, length - past, sampling, hidden, rng.data(), tokens.data(), at >= longest);
            else {                                                           // as draw() would, but for what is adjusted
                std::vector<float> logits((size_t)B * model.c.V);
                model.extend(x.data(), B, past, length - past), model.logits(length - past - 1, length - past, B, logits.data());
                cpu::pick_rows(tokens.data(), logits.data(), B, model.c.V, sampling, hidden, rng.data(),
                    [&](int b, float* z) { if (adjust && at >= prompts[number[b]].tokens.size() && left[b] > 0) adjust(number[b], z); });
            }
            for (int b = 0; b < B; b++) {
                const Prompt& p = prompts[number[b]];
                if (at < p.tokens.size()) tokens[b] = p.tokens[at], rng[b] = Rng(seed, p.stream + 1);
                else if (left[b] > 0) left[b] = emit(number[b], tokens[b]) && tokens[b] != eot ? left[b] - 1 : 0;
                rows[b].push_back(tokens[b]);
            }
            past = length;
        }
        if (held) held->assign(rows[0].begin(), rows[0].begin() + past);
    }
}

// Draws a text to each prompt; shown(i, text) sees it grow, and says whether it goes on. --stop ends it, too.
std::vector<Text> draw_texts(auto& model, const Options& o, uint64_t seed, const std::vector<Prompt>& prompts, int eot,
                             const Tokenizer* tokenizer, Guide* guide, auto shown, std::vector<int>* held = nullptr) {
    const Stops stops = {o.stop};
    std::vector<Text> texts;
    for (const Prompt& p : prompts) texts.push_back({p});
    std::vector<int> states(prompts.size(), guide ? guide->start() : 0);     // of the pattern's automaton
    auto emit = [&](int i, int token) {
        if (guide && token != eot) states[i] = guide->advance(states[i], token);
        return texts[i].add(token, eot, tokenizer, stops) && shown(i, texts[i]);
    };
    auto adjust = [&](int i, float* z) {
        cpu::penalize(z, texts[i].all(), o.repetition_penalty);
        if (guide) guide->rule_out(z, states, i, eot, NEVER);
    };
    generate(model, Sampling(o), seed, prompts, eot, tokenizer, emit, guide || o.repetition_penalty != 1 ? Adjust(adjust) : Adjust(), held);
    for (size_t i = 0; i < texts.size(); i++) texts[i].certain = texts[i].response.size(), shown(i, texts[i]);
    return texts;
}

// Log-probabilities of the tokens of texts under the model itself, whatever they were drawn with.
void score_texts(auto& model, std::vector<Text>& texts) {
    std::vector<Row> rows;
    std::vector<Text*> text;                                 // of each row
    for (Text& t : texts)
        for (Row& row : text_rows(t.all(), model.max_T)) rows.push_back(row), text.push_back(&t);
    score(model, model.max_B, rows.size(), [&](size_t i) { return rows[i]; },
          [&](size_t i, int, double logprob, int) { text[i]->logprobs.push_back(logprob); });
}

void reward_answers(auto& rewarder, auto& answers, int eot) {
    const std::vector<float> rewards = rewards_of(rewarder, answers.size(), [&](size_t i) { return answers[i].row(eot); }, eot);
    for (size_t i = 0; i < rewards.size(); i++) answers[i].reward = rewards[i];
}

// Draws --samples, --best-of or --vote texts to each prompt, to as many prompts at a time as make 64 texts; each(k, t, n)
// gets those of prompt k, or the one of them that is taken.
inline size_t texts_each(const Options& o) { return o.best_of ? o.best_of : o.vote ? o.vote : o.samples; }
void draw_groups(auto& model, auto* rewarder, const Options& o, const std::vector<Prompt>& prompts, int eot,
                 const Tokenizer* tokenizer, Guide* guide, auto shown, auto each) {
    const size_t n = texts_each(o), at_once = std::max<size_t>(1, 64 / n);
    for (size_t first = 0; first < prompts.size(); first += at_once) {
        std::vector<Prompt> some;
        for (size_t i = first * n; i < std::min(first + at_once, prompts.size()) * n; i++)
            some.push_back(prompts[i / n]), some.back().stream = i;
        std::vector<Text> texts = draw_texts(model, o, o.seed, some, eot, tokenizer, guide, shown);
        if (o.format == "jsonl" || (o.best_of && !rewarder)) score_texts(model, texts);
        if (rewarder) reward_answers(*rewarder, texts, eot);
        else if (o.best_of) for (Text& t : texts) t.reward = t.mean_logprob();
        for (size_t i = 0; i < texts.size(); i += n) {
            const size_t taken = o.vote ? elected(&texts[i], n, o.vote_after) : o.best_of ? best_of(&texts[i], n) : 0;
            each(first + i / n, &texts[i + taken], o.vote || o.best_of ? 1 : n);
        }
    }
}

std::vector<std::string> sample_texts(auto& model, const Options& o, const std::vector<int>& prompt, int eot,
                                      const Tokenizer* tokenizer) {
    std::vector<Prompt> prompts;
    std::vector<std::string> texts;
    for (integer i = 0; i < o.samples; i++) prompts.push_back({prompt, o.tokens, (uint64_t)i});
    for (Text& t : draw_texts(model, o, o.seed, prompts, eot, tokenizer, nullptr, [](auto...) { return true; })) texts.push_back(t.response);
    return texts;
}

// Draws answers to prompts, each of at most so many tokens, and of what the context leaves; `before`: answers of other ranks.
void draw_answers(auto& model, const Sampling& sampling, uint64_t seed, size_t before, integer most, std::vector<Answer>& answers,
                  int eot, const Tokenizer* tokenizer) {
    std::vector<Prompt> prompts;
    for (const Answer& a : answers) prompts.push_back(prompt_of(a.example[0], eot, model.max_T, most, before + prompts.size()));
    generate(model, sampling, seed, prompts, eot, tokenizer, [&](int i, int token) { return answers[i].add(token, eot); });
}

// A conversation; dev/host/chat.h says what it is made of.
void chat(auto& model, const Options& o, int eot, const Tokenizer& tokenizer, Guide* guide) {
    Conversation talk{tokenizer, eot, model.max_T, o.tokens};
    std::vector<int> held;
    std::string line;
    for (uint64_t n = 1; talk.listen(line); n++) {
        const Prompt p = talk.ask(line);
        if (p.most == 0) continue;
        size_t shown = 0;
        talk.answered(draw_texts(model, o, o.seed + n, {p}, eot, &tokenizer, guide, [&](int, const Text& t) {
            t.show(shown);
            return !stop_signal;
        }, &held)[0]);
        write_out("\n");
    }
}

// ---- 10. train ------------------------------------------------------------------------------------------------------
// The loop, and all that stands before it. Everything random is a function of the seed and the step.

// The shape that --init and the size options ask for; fills in the options it decides, so that they can be printed.
inline Config resolve_config(Options& o, const ModelFile* file, const Tokenizer* tokenizer) {
    Config c;
    if (file) {
        c = config_of(*file, o.heads);
        auto same = [&](const char* name, integer asked, integer is) {
            if (o.has(name) && asked != is) die_usage("%s %lld: %s has %lld", dashed(name).c_str(), asked, file->path.c_str(), is);
        };
        same("layers", o.layers, c.L), same("channels", o.channels, c.C), same("vocab", o.vocab, c.V);
        same("bias", o.bias, c.bias), same("tied", o.tied, c.tied);
        if (o.context > c.T) die_usage("--context %lld: %s has positions for %d", o.context, file->path.c_str(), c.T);
        if (o.context == 0) o.context = std::min(c.T, 1024);
    } else {
        if (o.init == "custom" && (!o.layers || !o.heads || !o.channels))
            die_usage("--init custom: give --layers, --heads and --channels");
        for (const Preset& p : PRESETS) if (o.init == p.name) c.L = p.L, c.NH = p.NH, c.C = p.C;
        if (o.layers) c.L = o.layers;
        if (o.heads) c.NH = o.heads;
        if (o.channels) c.C = o.channels;
        c.V = o.vocab ? o.vocab : tokenizer ? tokenizer->vocab() : assumed_vocab(o.train, o.val, !o.raw.empty());
        if (o.context == 0) o.context = 1024;
        c.T = o.context, c.bias = o.bias, c.tied = o.tied;
        if (c.C % c.NH) die_usage("--channels %d: not a multiple of --heads %d", c.C, c.NH);
    }
    if (tokenizer && tokenizer->vocab() > c.V)
        die("--vocab: the model has %d tokens, the tokenizer %d; the shards may need them all", c.V, tokenizer->vocab());
    o.layers = c.L, o.heads = c.NH, o.channels = c.C, o.vocab = c.V, o.bias = c.bias, o.tied = c.tied;
    if (o.lora_rank == 0 && o.has("base_dtype") && o.base_dtype != DTYPE) die_usage("--base-dtype %s: all weights are trained; give --lora-rank", o.base_dtype.c_str());
    if (o.lora_rank == 0) return c;
    c.form = form_of(o.base_dtype);
    if (!file) die_usage("--lora-rank: needs --init, a model to adapt");
    c.rank = o.lora_rank, c.lora_alpha = o.lora_alpha, c.targets = read_targets("--lora-targets", o.lora_targets);
    if (file->adapter) file->adapter->check(c.rank, c.lora_alpha, c.targets);
    return c;
}

// Heuristic: threads synchronize about ten times a layer, and one pays from 10 MFLOP a layer on (dev/SPEED.md).
inline void choose_threads(const Options& o, const Config& c, size_t tokens, bool training) {
    if (o.threads || getenv("OMP_NUM_THREADS")) return;
    const double flops = c.flops_per_token(Layout(c).parameters, 0, o.context) * tokens / (training ? 1 : 3);
    omp_set_num_threads(std::clamp(flops / (1e7 * c.L), 1.0, (double)omp_get_max_threads()));
}

// Weights of a file, and its adapter.
void load(auto& model, const ModelFile& file) { load_adapted(stored(model), stored(model, true), file); }

// A model on disk that is not to change: which checkpoint it is, and what stands beside it.
struct Frozen {
    std::string path;
    Held held;                               // locks the directory that `file` is mapped from
    ModelFile file;
    Config c;
    std::unique_ptr<Tokenizer> tokenizer;

    Frozen(const char* option, const std::string& given, const Options& o, integer heads, const text& adapter = "")
        : path(given), held(hold_model(option, path)), file(open_adapted(path, adapter)), c(config_of(file, heads)) {
        if (exists(path, true)) check_fingerprint(fingerprint(c), file.directory);
        tokenizer = find_tokenizer(o.tokenizer, directories_of(file.directory, o.train, o.val, o.answers));
        if (tokenizer && tokenizer->vocab() > c.V)
            die("%s: %d tokens, but the tokenizer has %d; give the right one with --tokenizer", file.path.c_str(), c.V,
                tokenizer->vocab());
        if (o.context > c.T) die_usage("--context %lld: %s has positions for %d", o.context, file.path.c_str(), c.T);
        c.form = form_of(o.base_dtype);
        if (const auto& a = file.adapter; a && c.form > Form::BF16) c.rank = a->rank, c.lora_alpha = a->alpha, c.targets = a->targets;
    }
    template <typename Model> std::unique_ptr<Model> load(int B, int T, bool bf16) const {
        auto model = std::make_unique<Model>(c, B, T, false, bf16);
        ::load(*model, file);
        return model;
    }
};

// What a run reads, checks and decides before it has a model. A resumed run has the options, the position and the weights
// of its newest whole checkpoint; without one it begins again, with the options that its log began with.
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
    std::optional<Frozen> reference, rewarding;              // rl: --init, and the model that rewards
    int rows_of_window;                      // that are computed
    size_t per_step, end;                    // windows of a step; where the last one ends
    integer steps;
    bool rescheduled = false;                // resumed with another end

    Run(const Options& given, bool on_cpu) : o(given) {
        if (o.resume) resume();
        if (on_cpu && o.dtype == "bf16") position.unit = cpu::keep_unit(position.unit, from);
        open_start();                        // of the directory that rank 0 has tidied
        c = resolve_config(o, start ? &*start : nullptr, tokenizer.get());
        share_layers();
        if (c.rank) base = fs::absolute(start->path.ends_with("/model.safetensors") ? directory_of(start->path) : start->path).string();
        eot = end_of_text(tokenizer.get(), c.V);
        if (start && exists(from.empty() ? o.init : from, true)) check_fingerprint(fingerprint(c), start->directory);
        open_data();
        choose_threads(o, c, o.batch * o.context, true);
        check_alike();
    }

private:
    // A resumed run has groups as before, if it has ranks for them.
    void share_layers() {
        if (!o.has("tensor_parallel") && world().size % o.tensor_parallel) o.tensor_parallel = 1;
        if (o.tensor_parallel > 1 && (c.rank || o.stage == "reward" || o.stage == "rl"))
            die_usage("--tensor-parallel %lld: is for --stage pretrain and sft, without --lora-rank; --zero 2 saves memory, too",
                      o.tensor_parallel);
        world().share_layers(o.tensor_parallel, c.rank ? 0 : o.zero, c.NH, c.V);         // ZeRO 0: an adapter is small
        c.tp = world().tensor, c.place = world().place();
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
        from = past.checkpoint, position = past.position;
        const Table table = o.table();
        if (was) resume_options(table, Options().table(), o.given, was, past.data_known, o.out, past.where, !from.empty());
        if (o.steps) o.epochs = 0;
        rescheduled = !from.empty() && (was["steps"].string != show(o.steps) || was["epochs"].string != show(o.epochs));
        past.find_paths(table, o.given, is_preset(o.init));
        position.take_command(was["reward_command"].string, o.reward_command);
        if (o.train.empty()) die("%s: holds no checkpoint and no log to go on from; give --train to begin", o.out.c_str());
    }

    // The model's shape and tokenizer: of the checkpoint, of the weights to start from, or of the options.
    void open_start() {
        std::string init = from.empty() ? o.init : from, presets;
        for (const Preset& p : PRESETS) presets += (presets.empty() ? "" : ", ") + text(p.name);
        if (from.empty() && !is_preset(init) && !exists(init))
            die_usage("--init %s: no such file or directory, and no size of a model: those are %s%s", init.c_str(),
                      presets.c_str(), published(init));
        if (!from.empty() || !is_preset(init)) held.emplace(hold_newest(init)), start = open_adapted(init, from.empty() ? o.adapter : "");
        const bool own = !from.empty() && !o.has("tokenizer");               // a checkpoint has its tokenizer
        const std::string beside = start ? start->directory : "";
        tokenizer = own ? find_tokenizer("", {from}) : find_tokenizer(o.tokenizer, directories_of(beside, o.train, o.val, o.answers));
        if (from.empty() || own) return;
        if (auto its = find_tokenizer("", {from}); its && !its->same(*tokenizer))
            die_usage("--tokenizer %s: is not that of the run in %s", o.tokenizer.c_str(), o.out.c_str());
    }

    // An epoch ends where its last window does: the rows of a step beyond it stay empty.
    void open_data() {
        const bool rl = o.stage == "rl", later = o.stage != "pretrain";
        if (!rl) refuse_idle(o.table(), Options().table(), o.given, 'L', "--stage rl");
        if (!o.lora_rank) refuse_idle(o.table(), Options().table(), o.given, 'A', "--lora-rank");
        if (later && !rl && !start && !o.has("init")) warn("--stage %s: starts at random, without --init", o.stage.c_str());
        if (later && eot < 0) die_usage("--stage %s: needs a tokenizer, to know the end of text", o.stage.c_str());
        if (later && (!o.raw.empty() || o.rows == "sliding"))
            die_usage("--stage %s: takes example shards, without --raw or --rows sliding", o.stage.c_str());
        rows_of_window = rl ? o.group : o.stage == "reward" ? 2 : 1;
        const integer row_tokens = std::lcm(o.batch, (integer)rows_of_window) * o.context;
        if (o.tokens_per_step == 0) o.tokens_per_step = row_tokens * world().replicas();
        if (o.tokens_per_step % row_tokens)
            die_usage("--tokens-per-step %lld: not a multiple of batch%s x context = %lld", o.tokens_per_step,
                      rl ? " and --group" : rows_of_window == 2 ? ", of pairs," : "", row_tokens);
        if (o.tokens_per_step % (row_tokens * world().replicas()))
            warn("--tokens-per-step %lld: not a multiple of %d ranks' batches, so that some wait for others", o.tokens_per_step,
                 world().replicas());
        if (o.stage == "reward" && o.batch % 2) die_usage("--batch %lld: --stage reward computes pairs of rows; give an even number", o.batch);
        if (!o.steps && o.epochs == 0) o.epochs = 1;
        windows.emplace(wanted(o, "--train", o.train, c.V, o.context, eot), o.seed);
        per_step = o.tokens_per_step / o.context / rows_of_window;
        end = o.steps ? SIZE_MAX : windows->end_of(o.epochs);
        position.check_window(end, windows->total, o.epochs, o.out);
        steps = o.steps ? o.steps : position.step + (end - position.window + per_step - 1) / per_step;
        held_out.emplace(wanted(o, "--val", o.val, c.V, o.context, eot), o.eval_rows, o.train, o.choices, o.answers);
        std::map<std::string, std::string> data = held_out->data;
        data["train"] = windows->identity.text();
        if (rl) open_frozen(data);
        if (c.rank) data["init"] = Identity(start->path).text();
        position.check(data, {{"train", o.train}, {"val", o.val}, {"answers", o.answers}, {"init", o.init}, {"reward", o.reward},
                              {"adapter", o.adapter.empty() ? o.init : o.adapter}}, windows->total, steps, o.out);
        if (o.warmup >= steps && o.has("warmup"))
            warn("--warmup %lld: the run has %lld steps, so the learning rate never reaches --lr", o.warmup, steps);
        if (o.min_lr > o.lr) warn("--min-lr %s: is above --lr %s", show(o.min_lr).c_str(), show(o.lr).c_str());
        position.windows = windows->total, position.data = std::move(data);
        position.beginning = (later && held_out->val ? (const Source&)*held_out->val : *windows).beginning(eot, o.context);
    }
    // What reinforcement learning starts from, and what it is rewarded by.
    void open_frozen(std::map<std::string, std::string>& data) {
        if (is_preset(o.init)) die_usage("--stage rl: needs --init, a model to start from");
        reference.emplace("--init", o.init, o, o.heads, o.adapter), data["init"] = Identity(reference->file.path).text();
        if (const auto& a = reference->file.adapter) data["adapter"] = a->identity();
        const bool exact = o.reward_command.empty() && o.reward == "exact";
        data["reward"] = exact ? "exact" : o.reward_command;
        if (o.reward_command.empty() && !exact) {
            rewarding.emplace("--reward", o.reward, o, 0), data["reward"] = identity_of(rewarding->file);
            if (rewarding->tokenizer && !rewarding->tokenizer->same(*tokenizer))
                die_usage("--reward %s: has another tokenizer than --init %s", o.reward.c_str(), o.init.c_str());
        }
        windows->check_prompts(o.response_tokens, exact);
        if (held_out->val) held_out->val->check_prompts(o.response_tokens, exact);
        tell_stage("--init", o.init, false), tell_stage("--reward", rewarding ? o.reward : "", true);
    }
};

template <typename Model> struct Training : Run {
    Model model;
    const Schedule schedule;
    const double floor;
    const std::vector<float> computes = fingerprint(c);
    Display display;
    Saver saver;
    std::unique_ptr<Model> frozen, rewarder;                 // rl: --init, for the divergence from it; --reward
    std::unique_ptr<Scorer> scorer;                          // --reward-command

    explicit Training(const Options& given)
        : Run(given, std::is_same_v<Model, cpu::Model>), model(c, o.batch, o.context, true, o.dtype == "bf16"),
          schedule{o.schedule, o.lr, o.min_lr < 0 ? 0.1 * o.lr : o.min_lr, o.warmup, steps}, floor(held_out->floor),
          saver{from, position.lowest_step} {
        if (!directory) directory.emplace(o.out, false, world().first());
        directory->check_shared(world());
        if (start) load(model, *start);
        if (!start || (c.rank && !start->adapter)) initialize(model, o.seed);
        if (!from.empty()) {
            Safetensors moments(from + "/optimizer.safetensors");
            load_tensors(stored(model, c.rank > 0, MOMENTS), moments.tensors, moments.file.path);
        }
        start.reset(), held.reset();
        if (reference) frozen = reference->load<Model>(o.batch, o.context, o.dtype == "bf16"), reference.reset();
        if (rewarding) rewarder = rewarding->load<Model>(o.batch, o.context, o.dtype == "bf16"), rewarding.reset();
        if (frozen && !o.reward_command.empty()) scorer = std::make_unique<Scorer>(o.reward_command, o.reward_timeout);
        saver.run = &*directory, display.steps = steps, display.floor = floor;
        display.terminal &= world().size == 1;               // a launcher's is not ours to write over
        display.say("%s\n%zu parameters, %lld steps of %lld tokens, %zu windows an epoch; %s%s",
                    command_line(TRAIN_GPT, o.verb, o.table(), o.stage == "rl" ? 0 : 'L').c_str(), model.layout.parameters, steps, o.tokens_per_step,
                    windows->total, world().describe().c_str(), model.describe().c_str());
        if (!from.empty()) display.say("resumed from %s", from.c_str());
        else if (o.resume) display.say("no checkpoint in %s yet: beginning at step 1", o.out.c_str());
        if (rescheduled && position.step < steps && o.schedule != "constant")
            display.say("the schedule ends at step %lld now: the learning rate goes on at %.2e", steps, lr_at(schedule, position.step));
        directory->rewind_log(position.step, steps);
        if (position.step == 0)
            directory->put("run", 0, {{"parameters", show((integer)model.layout.parameters)}, {"steps", show(steps)},
                                      {"floor", json_number(floor)}, {"options", options_json(o.table(), 't')}});
        if (world().first() && saver.best == position.step && from != o.out + "/best") make_best(o.out, from);  // a kill came between
    }

    void evaluate() {
        double loss;
        std::string line;
        RunDirectory::Fields fields;
        if (o.stage == "rl") {
            std::vector<Answer> answers;
            const auto& spans = held_out->val->spans;
            for (size_t i = world().rank; i < spans.size(); i += world().size)           // ranks take turns, and agree
                answers.push_back({held_out->val->examples[spans[i].file]->example(spans[i].begin)});
            Options greedy = o;
            greedy.temperature = 0;
            draw_and_reward(answers, Sampling(greedy), 0);
            double reward = mean_reward(answers.data(), answers.size(), spans.size());
            world().sum(&reward, 1);
            loss = 0 - reward, line = format("val reward %.6f, %zu prompts", reward, spans.size());
            fields = {{"reward", json_number(reward)}};
        } else if (o.stage == "reward") {
            const Preferences p = validate_pairs(model, *held_out->val, eot);
            loss = p.loss(), line = p.line(), display.val_loss = loss;
            fields = {{"accuracy", json_number(p.accuracy())}, {"margin", json_number(p.margin())},
                      {"calibration_error", json_number(p.calibration_error())}};
        } else {
            const Validation v = validate(model, o.batch, *held_out->val, tokenizer.get());
            loss = v.loss(), line = v.line(), display.val_loss = loss;
            const double bits = v.bytes ? v.nats / std::log(2.0) / v.bytes : NAN;
            fields = {{"bits_per_byte", json_number(bits)}, {"floor", json_number(floor)}};
        }
        if (loss < position.lowest) position.lowest = loss, position.lowest_step = position.step;
        display.say("%s", line.c_str());
        fields.insert(fields.begin(), {"val_loss", json_number(loss)});
        directory->put("eval", position.step, fields);
    }
    void sample(int samples) {
        if (o.stage == "reward") return;     // its tokens are no text any more
        Options s = o;
        s.samples = samples, s.tokens = std::min<integer>(o.context, 200), s.seed = o.seed + position.step;
        std::vector<std::string> texts = sample_texts(model, s, position.beginning, eot, tokenizer.get());
        const bool ends = position.beginning[0] == eot;
        const std::string begin = show_tokens({position.beginning.begin() + ends, position.beginning.end()}, tokenizer.get());
        for (size_t i = 0; i < texts.size(); i++) {
            texts[i] = begin + (begin.empty() || tokenizer ? "" : " ") + texts[i];
            display.say("--- sample %zu\n%s", i + 1, texts[i].c_str());
            directory->put("sample", position.step, {{"text", json_quote(valid_utf8(texts[i]))}});
        }
    }
    void save() {
        saver.save({.out = o.out, .keep = (size_t)o.keep, .position = position, .options = options_json(o.table(), 't'),
                    .config = c.rank ? adapter_config(base, c.rank, c.lora_alpha, c.targets) : config_json(c, eot),
                    .adapter = c.rank > 0, .fingerprint = computes, .tokenizer = tokenizer.get(),
                    .weights = c.rank ? as_peft(stored(model, true)) : stored(model), .moments = stored(model, c.rank > 0, MOMENTS)});
    }
    size_t windows_at(size_t g) const { return std::min(per_step, end - g); }            // of the step that begins with g
    std::vector<Batch> batches_at(size_t g) {                                            // its micro-batches
        if (o.stage == "rl") return drawn_at(g);
        std::vector<Batch> batches;
        const size_t last = g + windows_at(g), each = o.batch / rows_of_window;
        for (; g < last; g += each * world().replicas()) {                               // every rank has as many
            const size_t first = g + each * world().replica();
            std::vector<Row> rows;
            for (int answer = 1; answer <= rows_of_window; answer++)                     // of a pair; else 1
                for (size_t k = first; k < std::min(first + each, last); k++) rows.push_back(windows->row(k, answer));
            batches.push_back(rows.empty() ? NOTHING : Batch(rows));
        }
        return batches;
    }

    // A rank's share of a step that others fill: one token without a target.
    const Batch NOTHING{{Row{{0}, {-1}}}};

    // What is said of a step beside its loss: sums of what its micro-batches add.
    std::vector<std::pair<const char*, double>> notes;
    void note(const char* name, double amount) {
        const auto it = std::find_if(notes.begin(), notes.end(), [&](auto& n) { return !strcmp(n.first, name); });
        if (it == notes.end()) notes.push_back({name, amount});
        else it->second += amount;
    }

    // The loss of each stage: forward and backward of one micro-batch; `count` is the number of tokens or pairs of the
    // whole step. Returned is the part of the loss that a later model.result() does not have.
    double likelihood(Batch& b, double count, int) {
        model.forward(b.x.data(), b.y.data(), {}, count, b.B, b.T, true), model.backward();
        return 0;
    }
    double preference(Batch& b, double count, int) {
        const int pairs = b.B / 2;
        std::vector<float> reward(b.B), dreward(b.B);
        double loss = 0;
        note("accuracy", 0), note("margin", 0);
        model.readout(b.x.data(), b.last.data(), eot, b.B, b.T, reward.data());
        for (int i = 0, k = pairs; i < pairs; i++, k++) {
            const double margin = reward[i] - reward[k];
            const auto [nats, slope] = pair_loss(margin);
            loss += nats / count, dreward[i] = slope / count, dreward[k] = -dreward[i];
            note("accuracy", (margin > 0) / count), note("margin", margin / count);
        }
        model.readout_backward(dreward.data()), model.backward();
        return loss;
    }
    // In pass 0 the weights are those that drew the answers: r is 1, and logprob becomes `old` from then on.
    double policy(Batch& b, double count, int pass) {
        const Objective ppo{b.weight.data(), pass ? b.old.data() : nullptr, b.ref.data(), o.ppo_clip, o.kl};
        model.forward(b.x.data(), b.y.data(), ppo, count, b.B, b.T, true), model.backward();
        const double loss = model.result().loss;             // waits for the log-probabilities, too
        if (pass == 0) b.old.assign(model.logprob.begin(), model.logprob.begin() + b.y.size());
        note("kl", 0), note("entropy", 0), note("clipped", 0);
        for (size_t n = 0; n < b.y.size(); n++) if (b.y[n] >= 0) {
            const double lp = model.logprob[n], moved = std::exp(lp - b.old[n]), d = b.ref[n] - lp;
            if (pass == 0) note("kl", (std::exp(d) - d - 1) / count), note("entropy", -lp / count);
            note("clipped", (b.weight[n] * (moved - 1) > std::abs(b.weight[n]) * o.ppo_clip) / count / o.rl_passes);
        }
        return loss;
    }

    // Draws answers and says how good they are: 1 for the shard's own and else 0, or what a reward model or a program says.
    void draw_and_reward(std::vector<Answer>& answers, const Sampling& sampling, uint64_t seed, size_t before = 0) {
        draw_answers(model, sampling, seed, before, o.response_tokens ? o.response_tokens : o.context, answers, eot, tokenizer.get());
        if (rewarder) return reward_answers(*rewarder, answers, eot);
        std::vector<std::pair<std::string, std::string>> texts;
        for (Answer& a : answers) {
            a.reward = !scorer && a.ended && a.tokens == a.example[1];
            if (scorer) texts.push_back({show_tokens(a.example[0], tokenizer.get()), show_tokens(a.tokens, tokenizer.get())});
        }
        if (scorer) for (size_t i = 0; const double r : scorer->scores(texts)) answers[i++].reward = r;
    }
    static double mean_reward(const Answer* answers, size_t n, size_t of) {             // what n add to the mean of so many
        return std::accumulate(answers, answers + n, 0.0, [&](double sum, const Answer& a) { return sum + a.reward / of; });
    }
    // Micro-batches of answers drawn to a step's prompts. GRPO: an advantage is a reward less the mean of its group,
    // answers to one prompt (Shao et al. 2024, arXiv:2402.03300; without the deviation Liu et al. 2025, 2503.20783).
    std::vector<Batch> drawn_at(size_t g) {
        std::vector<Answer> answers;
        const size_t prompts = windows_at(g), ranks = world().size, most = (prompts + ranks - 1) / ranks;        // of a rank
        const size_t first = std::min(prompts, most * world().rank);
        for (size_t k = first; k < std::min(prompts, first + most); k++) {
            const auto [file, i] = windows->find(g + k);
            answers.insert(answers.end(), o.group, {windows->examples[file]->example(i)});
        }
        const double began = seconds();
        draw_and_reward(answers, Sampling(o), mix64(o.seed * 0x9E3779B97F4A7C15ull + position.step + 1), first * o.group);
        const double n = prompts * o.group, mine = answers.size();
        note("reward", mean_reward(answers.data(), mine, n));
        note("drawn_ms", (seconds() - began) * 1e3 / ranks), note("samples_per_s", mine / (seconds() - began)), note("length", 0);
        std::vector<float> advantages;
        for (size_t i = 0; i < answers.size(); i++) {
            const Answer* const group = &answers[i / o.group * o.group];
            const double mean = mean_reward(group, o.group, o.group);
            double square = 0;
            for (int k = 0; k < o.group; k++) square += (group[k].reward - mean) * (group[k].reward - mean) / (o.group - 1);
            advantages.push_back((answers[i].reward - mean) / (o.advantage == "mean" ? 1 : std::sqrt(square) + 1e-4));
            note("length", answers[i].tokens.size() / n);
        }
        std::vector<Batch> batches;
        for (size_t i = 0; i < answers.size(); i += o.batch) {
            std::vector<Row> rows;
            for (size_t k = i; k < std::min<size_t>(i + o.batch, answers.size()); k++) rows.push_back(answers[k].row(eot));
            Batch& b = batches.emplace_back(rows);
            frozen->forward(b.x.data(), b.y.data(), {}, 1, b.B, b.T, false), frozen->result();
            b.ref.assign(frozen->logprob.begin(), frozen->logprob.begin() + b.y.size());
            for (size_t k = 0; k < b.y.size(); k++) b.weight.push_back(advantages[i + k / b.T]);
        }
        while (batches.size() * o.batch < most * o.group) batches.push_back(NOTHING);
        return batches;
    }

    // What ranks have to agree on before a step's update: what the next step counts, unless rl has yet to draw it; the
    // loss that is no model's to sum, and notes; whether one of them is to stop, and the clock of the first says to save.
    double count = 0, tokens = 0;
    bool stop = false, save_now = false;
    void agree(const std::vector<Batch>& batches, double& loss, bool noted) {
        const double since = seconds() - saver.last;
        const bool by_time = o.save_minutes > 0 && since > 60 * o.save_minutes && since > 50 * saver.stood_ms / 1e3;
        std::vector<double> sums = {(double)stop_signal, 0, 0, loss, (double)(by_time && world().first())};
        for (const Batch& b : batches) sums[1] += o.stage == "reward" ? b.B / 2 : b.targets(), sums[2] += b.x.size();
        if (noted) for (auto& [name, value] : notes) sums.push_back(value);
        if (c.place) std::fill(sums.begin() + 1, sums.end(), 0);         // what the first of its group says for all
        world().sum(sums.data(), sums.size());
        stop = sums[0] > 0, count = sums[1], tokens = sums[2], loss = sums[3], save_now = sums[4] > 0;
        for (size_t i = 5; i < sums.size(); i++) notes[i - 5].second = sums[i];
    }

    // Takes a step with `batches`, then replaces them by the next step's while a GPU is still computing; rl draws its
    // own at the start, since it needs the newest weights.
    void take_step(std::vector<Batch>& batches) {
        const double began = seconds();
        const bool rl = o.stage == "rl";
        const integer step = position.step + 1, passes = rl ? o.rl_passes : 1;
        const size_t taken = windows_at(position.window);
        const double lr = lr_at(schedule, position.step);
        const auto learn = rl ? &Training::policy : o.stage == "reward" ? &Training::preference : &Training::likelihood;
        notes.clear();
        if (rl) batches = batches_at(position.window);
        double loss = 0, norm = 0;
        if (rl) agree(batches, loss, false);
        const double tokens = this->tokens;
        for (integer pass = 0; pass < passes; pass++) {
            loss = 0;
            for (Batch& b : batches) loss += (this->*learn)(b, count, pass);
            if (!rl) batches = batches_at(position.window + taken);
            agree(batches, loss, pass + 1 == passes);
            model.update({lr, o.beta1, o.beta2, o.eps, o.weight_decay}, o.clip, position.step * passes + pass + 1);
            const StepResult result = model.result();
            loss += result.loss, norm = result.norm;
            if (std::isfinite(loss) && std::isfinite(norm)) continue;
            saver.finish();
            auto plain = [](double v) { return std::isnan(v) ? NAN : v; };               // not -nan
            std::string bad = std::isfinite(loss) ? "" : "the loss";
            const Kinds of_gradients = {{"gradient of ", GRADIENT}};
            if (bad.empty())
                for (auto& its : world().texts(first_not_finite(stored(model, c.rank > 0, of_gradients)))) bad = bad.empty() ? its : bad;
            die("step %lld: loss %g, gradient norm %g: %s is not finite; last good checkpoint: %s", step, plain(loss), plain(norm),
                bad.empty() ? "the norm, but no gradient," : bad.c_str(),
                saver.saved.empty() ? "none" : saver.saved.c_str());
        }
        position.step = step, position.window += taken;
        const double ms = (seconds() - began) * 1e3;
        const Speed speed = model.speed(tokens / world().size, ms / 1e3);
        RunDirectory::Fields fields = {
            {"loss", json_number(loss)}, {"norm", json_number(norm)}, {"lr", json_number(lr)}, {"ms", format("%.3f", ms)},
            {"tokens_per_s", format("%.1f", tokens / ms * 1e3)},
            {"tokens", format("%.0f", (double)position.window * rows_of_window * o.context)}};
        fields.insert(fields.end(), speed.log.begin(), speed.log.end());
        if (world().size > 1) fields.push_back({"sent_bytes", show(std::exchange(world().sent, 0))});
        std::string text = speed.text;
        for (auto& [name, value] : notes) text += format("  %s %.4g", name, value), fields.push_back({name, json_number(value)});
        display.step(step, loss, norm, lr, ms, tokens, text);
        directory->put("step", step, fields);
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
        if (ended && std::isfinite(floor)) display.say("floor %.6f nats/token", floor);
        if (saver.saved != o.out + format("/step_%08lld", position.step) || position.lowest_step != saver.best)
            save(), saver.finish();
        if (!ended)
            return display.say("stopped after step %lld; go on with: ./" PROGRAM " train --resume --out %s", position.step,
                               shell_quote(o.out).c_str());
        if (auto& answers = held_out->answers) {
            const integer right = right_answers(model, o.batch, *answers, eot), all = answers->size();
            display.say("answers right %lld of %lld", right, all);
            directory->put("answers", steps, {{"right", show(right)}, {"of", show(all)}});
        }
        if (o.sample_every) sample(3);
        display.say("saved %s", saver.saved.c_str());
    }
};

// ---- 11. main -------------------------------------------------------------------------------------------------------
template <typename Model> void run_verb(Options o) {
    if (o.verb == "train") return Training<Model>(o).run();
    if (o.stage == "rl") die_usage("--stage rl: evaluates nothing by itself; --answers counts the answers that are right");
    std::optional<Frozen> file(std::in_place, "--model", o.model, o, o.heads, o.adapter);
    const Config c = file->c;
    const std::unique_ptr<Tokenizer> tokenizer = std::move(file->tokenizer);
    const std::string path = file->file.path, state = file->file.directory + "/state.json";
    const Json written = is_checkpoint(file->file.directory) ? read_json(state) : Json();
    const text& stage = written["options"]["stage"].string;
    const int eot = end_of_text(tokenizer.get(), c.V);
    for (const char* name : {"best_of", "vote", "pattern"})
        if (o.has(name) && eot < 0) die_usage("%s: needs a tokenizer, to know the end of text", dashed(name).c_str());
    if ((o.verb == "chat" || o.has("stop") || o.has("examples")) && !tokenizer)
        die_usage("%s: needs a tokenizer, to know texts", o.has("stop") ? "--stop" : o.has("examples") ? "--examples" : "chat");
    if (o.verb == "merge") {
        file->c.form = Form::FP32;
        const auto model = file->load<cpu::Model>(1, 1, false);
        export_model(o.out, stored(*model), config_json(c, eot), tokenizer.get());
        return (void)printf("saved %s\n", o.out.c_str());
    }
    int T = o.context ? o.context : c.T;
    Prompter prompter = {tokenizer.get(), path, c.V, T, eot, o.tokens, o.has("reward") || (stage != "" && stage != "pretrain")};
    if (o.has("examples")) prompter.take_examples(o.examples);
    std::vector<Prompt> prompts;
    if (o.verb == "sample") {
        if (written) prompter.beginning = Position(written, state).beginning;
        for (const Asked& given : given_prompts(o.prompt, o.prompt_file, o.prompts)) prompts.push_back(prompter.prompt(given));
        T = std::min<integer>(T, prompter.longest + o.tokens);              // no larger a cache than needed
        if (o.best_of) for (Prompt& p : prompts) p.most = std::min<integer>(o.tokens, T - p.tokens.size());
    }
    HeldOut held_out(wanted(o, "--val", o.val, c.V, T, eot), o.has("eval_rows") ? o.eval_rows : 0, o.train, o.choices, o.answers);
    auto& [val, choices, answers, data, floor] = held_out;
    if (answers) prompter.put_examples(*answers);
    prompter.tell();
    const int B = o.verb == "sample" ? std::min<size_t>(texts_each(o) * prompts.size(), 64) : o.verb == "eval" ? o.batch : 1;

    choose_threads(o, c, o.verb == "sample" ? B : (size_t)B * T, false);
    const std::unique_ptr<Model> loaded = file->load<Model>(B, T, o.dtype == "bf16");
    Model& model = *loaded;
    file.reset();
    const auto rewarder = o.has("reward") ? Frozen("--reward", o.reward, o, 0).load<Model>(B, T, o.dtype == "bf16") : nullptr;
    if (o.verb == "graph")                                                  // the Markov chain that it is when its context is full
        print_chain(c.V, T, [&](const std::vector<int>& context, std::vector<float>& logits) {
            model.extend(context.data(), 1, 0, T), model.logits(T - 1, 1, 1, logits.data());
        });
    const auto guide = o.has("pattern") ? std::make_unique<Guide>(o.pattern, vocabulary_of(*tokenizer, c.V), "--pattern") : nullptr;
    if (o.stage != "reward") tell_stage("--model", o.model, false), tell_stage("--reward", o.reward, true);
    if (o.verb == "chat") chat(model, o, eot, *tokenizer, guide.get());
    if (val && o.stage == "reward") printf("%s\n", validate_pairs(model, *val, eot).line().c_str());
    else if (val) printf("%s\n", validate(model, B, *val, tokenizer.get()).line().c_str());
    if (val && std::isfinite(floor)) printf("floor %.6f nats/token\n", floor);
    if (choices) printf("%s\n", multiple_choice(model, B, *choices, tokenizer.get()).line(!!tokenizer).c_str());
    if (answers) printf("answers right %zu of %zu\n", right_answers(model, B, *answers, eot), answers->size());
    if (answers && (o.best_of || o.vote || o.has("pattern"))) {
        for (size_t i = 0; i < answers->size(); i++) prompts.push_back(prompt_of(answers->of(i)[0], eot, T));
        size_t right = 0;
        draw_groups(model, rewarder.get(), o, prompts, eot, tokenizer.get(), guide.get(), [](auto...) { return true; }, [&](size_t i, const Text* t, size_t) {
            right += t->is_right(held_out.answers->of(i)[1], tokenizer.get(), o.vote ? &o.vote_after : nullptr);
        });
        const std::string how = o.vote ? format("vote of %lld", o.vote) : !o.best_of ? "with --pattern" : format("best of %lld by %s", o.best_of, rewarder ? o.reward.c_str() : "log-probability");
        printf("%s: answers right %zu of %zu\n", how.c_str(), right, answers->size());
    }
    if (o.verb != "sample") return;
    TextWriter writer(tokenizer.get(), prompts, texts_each(o), o.format == "jsonl");
    auto show = [&](int, const Text& t) { return writer.show(t), true; };
    draw_groups(model, rewarder.get(), o, prompts, eot, tokenizer.get(), guide.get(), show, [&](size_t k, const Text* t, size_t n) {
        writer.put(k, t, n);
        if (o.vote && !answer_in(t->response, o.vote_after))
            warn("--vote-after %s: is in no text; the first is taken", shell_quote(o.vote_after).c_str());
    });
}

// What both programs' main() do: read the command line, run the verb, and turn any Error into its line and exit code.
template <typename Model> int run_program(int argc, char** argv) {
    spin_briefly(argv), name_speaker();
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    if (words.empty()) return fputs(TRAIN_GPT.usage, stderr), 2;
    return run_main([&] {
        if (answer(TRAIN_GPT, Options().table(), words)) return;
        Options o = parse_options(words);
        if (o.verb == "train") watch_signals(), Model::join(o);
        else if (const int n = launched().size; n > 1)
            die_usage("%s: runs as one process, but was started as one of %d", o.verb.c_str(), n);
        if (o.threads) omp_set_num_threads(o.threads);
        run_verb<Model>(o);
        if (o.verb == "train") Model::leave();
    });
}

#ifndef NO_CPU_MAIN
int main(int argc, char** argv) { return run_program<cpu::Model>(argc, argv); }
#endif
