/* test/fuzz.cpp -- libFuzzer targets: hostile bytes through every reader of the trainer, and on through what it does
   with them. An Error must be one short printable line with exit code 1 or 2; anything else is a finding.

     make fuzz && build/fuzz_shards -max_total_time=300           the other names stand in the table at the end
     build/fuzz_shards crash-0123...                              one input again

   Without files or directories on its command line a target keeps its inputs in build/fuzz_NAME_data, which it first
   fills with small valid files: from those it reaches deep at once. To add a target, add its functions and its row. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#include "../dev/host/pattern.h"

// The readers take paths; this is the path of a file in memory.
static const std::string PATH = "/proc/self/fd/" + std::to_string(memfd_create("fuzz", 0));

static void must(bool right, const char* what, const std::string& detail = "") {
    if (right) return;
    fprintf(stderr, "finding: %s: %s\n", what, detail.c_str());
    abort();
}
template <typename F> static void guarded(F f) {
    try {
        f();
    } catch (const Error& e) {
        auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
        must(e.exit_code == 1 || e.exit_code == 2, "exit code", e.line);
        must(std::none_of(e.line.begin(), e.line.end(), control), "not one printable line", e.line);
        must(!e.line.empty() && e.line.size() < 2000, "not a short line", e.line);
    }
}

static constexpr int V = 300, T = 16, EOT = 299;
static Config one_layer(int NH, int C, int vocab, int context) {
    Config c;
    c.L = 1;
    c.NH = NH;
    c.C = C;
    c.V = vocab;
    c.T = context;
    return c;
}
static cpu::Model& tiny_model() {
    static std::unique_ptr<cpu::Model> model;
    if (!model) {
        model = std::make_unique<cpu::Model>(one_layer(2, 4, V, T), 4, T, false);
        initialize(*model, 1);
    }
    return *model;
}

// ---- targets: what the trainer does with the bytes, which are in the file PATH too ----------------------------------
static void shards(std::string_view) {
    auto valid = [](const Row& r, const std::string& rows) {
        for (int x : r.x) must(x >= 0 && x < V, "token of a row");
        for (int y : r.y) must(y >= (rows == "sliding" ? -1 : 0) && y < V, "target of a row");
    };
    for (const char* rows : {"packed", "documents", "sliding"})
        for (auto [context, raw] : {std::pair(1, false), {3, false}, {100, false}, {3, true}}) {
            const Wanted wanted{"--train", PATH, rows, "pretrain", {}, raw, false, V, context, EOT};
            guarded([&] {
                Windows w(wanted, 1);
                for (size_t g : {(size_t)0, w.total - 1, w.total, 3 * w.total + w.total / 2}) valid(w.row(g), rows);
            });
            guarded([&] {
                ValidationRows v(wanted, 50);
                for (size_t i = 0; i < v.spans.size(); i++) valid(v.row(i), rows);
            });
        }
}
static void examples(std::string_view) {
    std::optional<Examples> all;
    guarded([&] { all.emplace(PATH, V, T); });
    const Examples e(PATH, V, T, true);
    must(all ? e.left_out == 0 && e.tokens == all->tokens : e.left_out > 0, "what is left out");
    for (size_t i = 0; i < e.size(); i++) must(e.length(i) + (e.segments == 1) <= T, "longer than the context");
    std::vector<uint64_t> first;
    if (!e.segments) first.assign(e.first.begin(), e.first.end());
    write_examples(PATH, e.tokens, e.segments, V, first);
    const Examples again(PATH, V, T);
    must(again.tokens == e.tokens && again.first == e.first && again.segments == e.segments, "write_examples");
    for (bool side_by_side : {false, true}) {
        Windows w({"--train", PATH, "packed", "sft", {e.segments}, false, side_by_side, V, T, EOT}, 1);
        for (size_t g = 0, end = w.end_of(2.5); g < std::min<size_t>(end, 99) && e.segments != 1; g++) {
            const Row r = w.row(g, e.segments == 3 ? 1 + g % 2 : 1);
            must(r.x.size() == r.y.size() && r.x.size() <= (size_t)T && r.y.back() == EOT && r.x[0] == EOT,
                 "a row of examples");
        }
    }
    if (e.segments >= 2) must(right_answers(tiny_model(), e, EOT) <= e.size(), "more right than there are");
}
static void choices(std::string_view) { multiple_choice(tiny_model(), Choices(PATH, V, T), nullptr); }

static void model(std::string_view) {                           // safetensors or llm.c, as --model opens it
    ModelFile m = open_model(PATH);
    const Config c = config_of(m, m.config_path.empty());
    if ((double)c.L * (12.0 * c.C + 99) * c.C + ((double)c.V + c.T) * c.C > 1e5) return;
    cpu::Model model(c, 1, std::min(c.T, 4), false);
    load_tensors(stored(model), m.tensors, m.path);
    Options o;
    o.tokens = 3;
    o.top_p = 0.9;
    o.top_k = 5;
    draw_texts(model, {o, -1, nullptr}, o.seed, {{{0}, o.tokens}}, GOES_ON);
    o.top_p = 1;
    o.temperature = 0;
    draw_texts(model, {o, -1, nullptr}, o.seed, {{{c.V - 1}, o.tokens}}, GOES_ON);
}
static void config(std::string_view bytes) {
    guarded([&] {
        Json j = parse_json(bytes, PATH);
        for (auto& [name, value] : j.members)
            for (auto& s : {name, value.string}) must(parse_json(json_quote(s), PATH).string == s, "json_quote", s);
    });
    Config c, again;
    read_config(c.members(), read_json(PATH), PATH);
    write_file(PATH, config_json(c, c.V - 1));
    read_config(again.members(), read_json(PATH), PATH);
    must(config_json(c, 0) == config_json(again, 0), "config_json", config_json(c, 0));
}
static void merges(std::string_view bytes) {                    // merges, a zero byte, text
    const size_t end = std::min(bytes.find('\0'), bytes.size());
    const std::string_view text = bytes.substr(std::min(end + 1, bytes.size()));
    const Tokenizer t = Tokenizer::from_merges(bytes.substr(0, end), "merges");
    std::string decoded;
    for (int id : t.encode(text)) {
        must(id >= 0 && id < t.eot(), "id out of range");
        decoded += t.decode(id);
    }
    must(decoded == text, "decode(encode(x)) != x", decoded);
    const Tokenizer again = Tokenizer::from_merges(t.merges_txt(), "merges_txt()");
    must(again.merges_txt() == t.merges_txt() && again.encode(text) == t.encode(text), "merges_txt()");
    must(parse_json(t.vocab_json(), "vocab_json()").members.size() == (size_t)t.vocab(), "vocab_json()");
}
static void vocab(std::string_view bytes) {                     // vocab.json, beside merges
    const std::string dir = "/tmp/fuzz_vocab_" + std::to_string(getpid());
    fs::remove_all(dir);
    fs::create_directories(dir);
    write_file(dir + "/merges.txt", "a b\nab c\n");
    write_file(dir + "/vocab.json", bytes);
    const Tokenizer t = Tokenizer::load(dir);
    std::string decoded;
    for (int id : t.encode("abc ab")) {
        must(id >= 0 && id < t.vocab() && id != t.eot(), "id out of range");
        decoded += t.decode(id);
    }
    must(decoded == "abc ab", "decode(encode(x)) != x", decoded);
    t.save(dir);
    must(Tokenizer::load(dir).same(t), "save()");
}
static void options(std::string_view bytes) {                   // one word a line
    std::vector<std::string> words;
    while (!bytes.empty()) {
        words.push_back(std::string(bytes.substr(0, bytes.find('\n'))));
        bytes.remove_prefix(std::min(bytes.size(), words.back().size() + 1));
    }
    Options o = parse_options(words);
    const std::string stored = options_json(o.table(), 't');
    if (o.verb != "train") return;
    Options again, fresh;
    resume_options(again.table(), fresh.table(), {}, parse_json(stored, "log"), false, "a run", "log");
    must(options_json(again.table(), 't') == stored, "resume_options", stored);
}
static void pattern(std::string_view bytes) {                   // a pattern, a zero byte, a token
    const size_t end = std::min(bytes.find('\0'), bytes.size());
    const std::string token(bytes.substr(std::min(end + 1, bytes.size())));
    Guide g(std::string(bytes.substr(0, end)), {token, "a", "0", " ", "\xc3", "\xa4" "a", "\"", "\n"});
    g.pattern.limit = 1 << 22;
    std::vector<int> at = {g.start()};
    for (int n = 0; n < 50 && !g.must_end(at[0]); n++) {
        const Guide::Allowed allowed = g.allowed(at[0]);
        must(allowed.any, "a text that nothing completes");
        int next = n % 8;
        while (!allowed[next]) next = (next + 1) % 8;
        at[0] = g.advance(at[0], next);
        g.tidy(at);
    }
}

// ---- seeds ----------------------------------------------------------------------------------------------------------
using Seeds = std::vector<std::string>;
template <typename F> static std::string written(F write) {
    write();
    return read_file(PATH);
}
static std::string numbers(std::vector<int32_t> header, const std::vector<uint16_t>& rest) {
    header.resize(256);
    return std::string((char*)header.data(), HEADER) + std::string((char*)rest.data(), 2 * rest.size());
}
static Seeds shard_seeds() {
    const std::vector<int> tokens = {EOT, 1, 2, 3, EOT, 4, EOT, 5, 6};
    return {written([&] { write_shard(PATH, tokens, V); }), written([&] { write_shard(PATH, tokens, 70000); })};
}
static Seeds example_seeds() {
    const std::vector<std::vector<int>> s = {{1, 2}, {3}, {}, {4, 5, 6}, {7}, {8}};
    const std::vector<std::vector<int>> three = {{}, {1, 2}, {3}, {4}, {5, 6}, {7}};
    return {written([&] { write_examples(PATH, s, 2, V); }), written([&] { write_examples(PATH, three, 3, 70000); }),
            written([&] { write_examples(PATH, s, 1, V); }),
            written([&] { write_examples(PATH, s, 0, V, {0, 2, 6}); })};
}
static Seeds choice_seeds() {
    return {numbers({20240522, 1, 2, 26}, {65535, 26, 0, 1, 2, 2, 7, 8, 1, 9, 2, 10, 11,
                                           65535, 22, 1, 0, 2, 1, 7, 1, 9, 1, 10})};
}
static Seeds safetensors_seeds() {
    Seeds seeds;
    for (bool full : {true, false}) {
        Config c = one_layer(1, 2, 3, 2);
        c.bias = full;
        c.tied = full;
        cpu::Model m(c, 1, 2, false);
        initialize(m, 1);
        seeds.push_back(written([&] { save_tensors(PATH, stored(m)); }));
    }
    return seeds;
}
static Seeds llmc_seeds() {                                     // T 2, V 3, L 1, NH 1, C 2, V padded to 4: 90 numbers
    return {numbers({20240326, 3, 2, 3, 1, 1, 2, 4}, std::vector<uint16_t>(180, 0x3c00)),
            numbers({20240326, 5, 2, 3, 1, 1, 2, 4}, std::vector<uint16_t>(90, 0x3c00))};
}
static Seeds config_seeds() {
    return {config_json(Config(), -1), R"({"a": [-1.5e3, true, null, {}], "model_type": "\u00e9\ud83d\ude00\n"})"};
}
static Seeds merge_seeds() {
    using namespace std::string_literals;
    return {"#version: 0.2\na b\n\xc4\xa0 c\nab \xc4\xa0" "c\n\0ab cab c 's\xff"s};
}
static Seeds vocab_seeds() {
    const std::string json = Tokenizer::from_merges("a b\nab c\n", "merges").vocab_json();
    return {json,
            "{\"<|endoftext|>\": 300, \"a\": 1, \"b\": 2, \"c\": 3, \"\xc4\xa0\": 4, "
            "\"ab\": 5, \"abc\": 6, \"<x>\": 7}"};
}
static Seeds pattern_seeds() {
    using namespace std::string_literals;
    return {"^(?:[a-z\xc3\xa4-\xc3\xbc]+|\\d{2,3}?\\W)*$\0 a"s,
            "\"([^\"\\\\\\x00-\\u001f]|\\\\[nt])*\"\0aa"s, "(a|\\w)*a.{3,}\0\xa4"s};
}
static Seeds option_seeds() {
    return {"train\n--train\na*.bin\n--lr=1e-3\n--steps\n10\n--out\nb\n--schedule\nwsd\n--resume",
            "--train\na\n--out\nb\n--epochs\n0.5", "sample\n--model\na\n--top-p\n0.5\n--prompt\n",
            "eval\n--model\na\n--val\nb\n--rows\ndocuments", "graph\n--model\na"};
}

// ---- the table, and libFuzzer's two calls ---------------------------------------------------------------------------
static const struct { std::string name; void (*run)(std::string_view); Seeds (*seeds)(); } TARGETS[] = {
    {"shards", shards, shard_seeds}, {"examples", examples, example_seeds}, {"choices", choices, choice_seeds},
    {"safetensors", model, safetensors_seeds}, {"llmc", model, llmc_seeds}, {"config", config, config_seeds},
    {"merges", merges, merge_seeds}, {"vocab", vocab, vocab_seeds}, {"options", options, option_seeds},
    {"pattern", pattern, pattern_seeds}};
#define NAME_OF(target) #target
#define NAME(target) NAME_OF(target)
static const auto& CHOSEN =
    *std::find_if(std::begin(TARGETS), std::end(TARGETS), [](auto& t) { return t.name == NAME(TARGET); });

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
    if (!freopen("/dev/null", "w", stdout)) return 1;           // libFuzzer writes to stderr
    static std::vector<char*> words(*argv, *argv + *argc);
    if (std::any_of(words.begin() + 1, words.end(), [](char* word) { return word[0] != '-'; })) return 0;
    static std::string directory = std::string(words[0]) + "_data";
    fs::create_directories(directory);
    size_t n = 0;
    for (const std::string& seed : CHOSEN.seeds()) {
        write_file(directory + format("/seed_%zu", n), seed);
        n++;
    }
    words.push_back(directory.data());
    *argc = words.size();
    words.push_back(nullptr);
    *argv = words.data();
    return 0;
}
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes((const char*)data, size);
    write_file(PATH, bytes);
    guarded([&] { CHOSEN.run(bytes); });
    return 0;
}
