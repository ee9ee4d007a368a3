/* test/test_host.cpp -- the headers of dev/host by themselves, without a model: options, checkpoints of any list of
   tensors, what a run shows, the machine, models of other programs, the directory of a run, texts and conversations. */
#include "../dev/host/chat.h"
#include "../dev/host/checkpoints.h"
#include "../dev/host/display.h"
#include "../dev/host/options.h"
#include "../dev/host/packed.h"
#include "../dev/host/reports.h"
#include "../dev/host/shards.h"
#include "../dev/host/units.h"
#include "check.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>

static const std::string DIR = "build/test_host_data/";

// What f() dies of, after its exit code; "" if it does not.
template <typename F> static std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) { return format("%d ", e.exit_code) + e.line; }
    return "";
}
static void same(const char* name, const std::string& got, const std::string& want) {
    const std::string wrong = got == want ? "" : format(": '%s', expected '%s'", got.c_str(), want.c_str());
    check(got == want, "host/%s%s", name, wrong.c_str());
}
template <typename F> static void dies(const char* name, const std::string& want, F f) {
    same(name, error_of(f), want);
}
// What f() writes to standard output, or to standard error.
template <typename F> static std::string output_of(F f, FILE* stream = stdout) {
    const int number = fileno(stream), kept = dup(number);
    const int file = open((DIR + "output").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0666);
    auto redirect = [&](int to) {
        fflush(stream);
        dup2(to, number);
        close(to);
    };
    redirect(file);
    f();
    redirect(kept);
    return read_file(DIR + "output");
}

// ---- packed.h ----
// Each number becomes the nearest that its format has; scales are those of the largest of a column, or of a block.
static void packing() {
    Rng rng(3);
    const std::pair<int, int> shapes[] = {{1, 1}, {3, 70}, {65, 64}, {130, 129}};
    for (Form form : {Form::BF16, Form::INT8, Form::NF4}) for (auto [rows, cols] : shapes) {
        std::vector<float> x((size_t)rows * cols), y(x.size());
        for (float& f : x) f = rng.normal();
        for (int i = 0; i < rows; i++) x[i * cols] = 0;              // a column of zeros
        std::vector<uint8_t> memory(packed_bytes(form, rows, cols) + 1, 77);
        pack(form, memory.data(), x.data(), rows, cols);
        unpack(form, y.data(), memory.data(), rows, cols);
        double worst = 0, largest_off = 0;
        for (int i = 0; i < rows; i++) for (int j = 0; j < cols; j++) {
            float largest = 0, nearest = INFINITY;
            const int first = j / NF4_BLOCK * NF4_BLOCK, end = std::min(cols, first + NF4_BLOCK);
            auto enlarge = [&](float f) { largest = std::max(largest, std::abs(f)); };
            if (form == Form::INT8) for (int r = 0; r < rows; r++) enlarge(x[r * cols + j]);
            else for (int c = first; c < end; c++) enlarge(x[i * cols + c]);
            const double value = x[i * cols + j], got = y[i * cols + j];
            if (form == Form::NF4)
                for (float level : LEVELS) nearest = std::min<float>(nearest, std::abs(level * largest - value));
            const double limit = form == Form::BF16   ? std::abs(value) * 0x1p-8
                                 : form == Form::INT8 ? largest / 254
                                                      : nearest;
            const double off = std::abs(got - value);
            keep_worst(worst, off - limit - 1e-6 * largest);
            if (std::abs(value) == largest) keep_worst(largest_off, off - (form == Form::BF16 ? limit : 1e-6));
        }
        check(worst <= 0 && largest_off <= 0 && memory.back() == 77,
              "host/packed %s (%d,%d): the nearest number, and the largest itself", FORMS[(int)form], rows, cols);
    }
    const size_t bf16 = packed_bytes(Form::BF16, 10, 64), int8 = packed_bytes(Form::INT8, 10, 64);
    same("packed sizes", format("%zu %zu %zu", bf16, int8, packed_bytes(Form::NF4, 10, 65)), "1280 896 720");
}

// ---- options.h ----
struct Settings {
    text data = "", kind = "cosine", prompt = "";
    integer steps = 0;
    number epochs = 0, rate = 0.5;
    flag resume = false;
    text_list in = {};
    std::set<std::string> given = {};
    Table table() {
        return {{"data", &data, "", "tDP!", "what to learn"},
                {"steps", &steps, "1..100", "tR1", "steps [--epochs decides]"},
                {"epochs", &epochs, "0.5..10", "tR1", "passes [1]"},
                {"rate", &rate, "0..1", "t", "of learning"},
                {"kind", &kind, "cosine|linear", "tsF", "of schedule"},
                {"resume", &resume, "", "t", "go on"},
                {"prompt_text", &prompt, "", "sE", "to continue [none]"},
                {"in", &in, "", "s", "several [none]"}};
    }
};
static const Program TOOL = {"tool", {{'t', "train", "learns"}, {'s', "show"}},
                             "a title", "usage: tool\n", "the end\n"},
                     PLAIN = {"plain", {{'t', ""}}, "no verbs", "usage: plain\n", ""};
static Settings parsed(const Program& program, const std::vector<std::string>& words) {
    Settings s;
    parse_words(program, words, s.table(), s.given);
    return s;
}

static void options() {
    const std::string file = DIR + "a.txt";
    write_file(file, "x");
    const struct { std::vector<std::string> words; std::string line; } wrong[] = {
        {{"fly"}, "fly: unknown verb; expected train or show"},
        {{file}, file + ": unknown verb; expected train or show"},
        {{"train"}, "train: --data is missing: what to learn"},
        {{}, "train: --data is missing: what to learn"},
        {{"--data", "a", "--nonsense"}, "--nonsense: unknown option; tool --help lists them"},
        {{"train", "--step=3"}, "--step: unknown option, nearest is --steps; tool --help lists them"},
        {{"--verson"}, "--verson: unknown option, nearest is --version; tool --help lists them"},
        {{"show", "--hlep"}, "--hlep: unknown option, nearest is --help; tool --help lists them"},
        {{"train", "more"}, "more: unknown option; tool --help lists them"},
        {{"--data", "a", file}, file + ": stands after no option; a pattern needs quotes: --data '*.txt'"},
        {{"--data", "a", "none.txt"}, "none.txt: unknown option; tool --help lists them"},
        {{"show", "--in", "a", "none.txt"}, "none.txt: stands after no option; a pattern needs quotes: --in '*.txt'; "
                                            "or give the option before each file"},
        {{"show", "--steps", "3"}, "--steps: not an option of show"},
        {{"--steps", "3", "--steps=3"}, "--steps: given twice"},
        {{"--resume=1"}, "--resume: takes no value"},
        {{"--steps"}, "--steps: needs a value"},
        {{"--data="}, "--data: needs a value"},
        {{"--data", std::string("a\0b", 3)}, "--data: the value holds a zero byte"},
        {{"--steps", "0x10"}, "--steps 0x10: not an integer"},
        {{"--steps", "101"}, "--steps 101: must lie in 1..100"},
        {{"--steps", "99999999999999999999"}, "--steps 99999999999999999999: must lie in 1..100"},
        {{"--rate", "nan"}, "--rate nan: not a number"},
        {{"--rate", "1.01"}, "--rate 1.01: must lie in 0..1"},
        {{"--kind", "cosine|linear"}, "--kind cosine|linear: must be one of cosine|linear"},
        {{"--data", "a", "--epochs", "1", "--steps", "3"}, "--epochs: give --steps or --epochs, not both"}};
    for (auto& w : wrong) dies(("options/" + w.line).c_str(), "2 " + w.line, [&] { parsed(TOOL, w.words); });
    dies("options/a program without verbs", "2 --data is missing: what to learn", [] { parsed(PLAIN, {}); });
    dies("options/a word for a program without verbs", "2 train: unknown option; plain --help lists them",
         [] { parsed(PLAIN, {"train"}); });

    Settings s = parsed(TOOL, {"--data=~/x", "--steps", "+5", "--resume", "--kind", "linear"});
    check(s.data == getenv("HOME") + std::string("/x") && s.steps == 5 && s.resume && s.kind == "linear" &&
          s.rate == 0.5,
          "host/options/values, ~ and defaults");
    check(s.given == std::set<std::string>({"data", "steps", "resume", "kind"}), "host/options/what was given");
    s = parsed(TOOL, {"show", "--in", "a", "--prompt_text", "", "--in=b c"});
    check(s.in == text_list({"a", "b c"}) && s.given.count("prompt_text"),
          "host/options/one given twice, and one empty");
    s = Settings();
    std::string is_given;
    for (const Option& o : s.table()) if (!o.is('P') && o.is('t')) is_given += o.is_given() ? o.typed() : "";
    same("options/what its default says is not given", is_given, "--rate--kind");

    // what a shell makes of the command is what was given
    s = parsed(TOOL, {"--data", "it's [1] $HOME \"*\" \\", "--epochs", "2.5", "--resume"});
    const std::string line = command_line(TOOL, "train", s.table());
    FILE* shell = popen(("printf '%s\\n' " + line.substr(line.find(' '))).c_str(), "r");
    std::vector<std::string> words;
    for (char word[256]; fgets(word, sizeof word, shell);) words.push_back(std::string(word, strcspn(word, "\n")));
    pclose(shell);
    Settings again = parsed(TOOL, words);
    check(again.data == s.data && again.epochs == 2.5 && again.steps == 0 && again.resume,
          "host/options/pasted back: %s", line.c_str());

    const std::string all = "tool -- a title\n\nusage: tool\n\ntrain: learns\n"
        "  --data             PATH                         what to learn [required]\n"
        "  --steps            1..100                       steps [--epochs decides]\n"
        "  --epochs           0.5..10                      passes [1]\n"
        "  --rate             0..1                         of learning [0.5]\n"
        "  --kind             cosine|linear                of schedule [cosine]\n"
        "  --resume                                        go on\n\n";
    const std::string show = "show\n"
        "  --kind             cosine|linear                of schedule [cosine]\n"
        "  --prompt-text      TEXT                         to continue [none]\n"
        "  --in               TEXT                         several [none]\nthe end\n";
    auto answered = [](const Program& program, const std::vector<std::string>& words) {
        bool good = false;
        const std::string said = output_of([&] { good = answer(program, Settings().table(), words); });
        return good ? said : said + "(no answer)";
    };
    same("options/--help", answered(TOOL, {"--help"}), all + show);
    same("options/--help of a verb", answered(TOOL, {"show", "-h"}), "tool " + show);
    same("options/--help without verbs", answered(PLAIN, {"-h"}).substr(0, 42),
         "plain -- no verbs\n\nusage: plain\n\n  --data ");
    same("options/--version", answered(TOOL, {"--version"}), "tool " VERSION "\n");
    same("options/neither", answered(TOOL, {"show"}), "(no answer)");
    same("options/none", answered(TOOL, {}), "(no answer)");
}

static void resuming() {
    Settings old, fresh;
    old.data = "old.bin";
    old.rate = 0.25;
    old.steps = 7;
    const std::string stored = options_json(old.table(), 't');
    const std::string here = json_quote(fs::current_path().string());
    same("resume/stored", stored, "{\"directory\": " + here + ", \"data\": \"old.bin\", \"steps\": \"7\", "
                                  "\"epochs\": \"0\", \"rate\": \"0.25\", \"kind\": \"cosine\"}");
    auto resumed = [&](const std::vector<std::string>& more, bool data_known = false, std::string json = "") {
        std::vector<std::string> words = {"train", "--data", "old.bin"};
        if (!more.empty() && more[0] == "--data") words = {"train"};
        words.insert(words.end(), more.begin(), more.end());
        Settings s = parsed(TOOL, words);
        const Json kept = parse_json(json.empty() ? stored : json, "log");
        resume_options(s.table(), fresh.table(), s.given, kept, data_known, "RUN", "RUN/log");
        return s;
    };
    Settings s = resumed({});
    check(value_of(s.table(), "rate") == "0.25" && value_of(s.table(), "none").empty(),
          "host/options/the value of an option");
    check(s.data == "old.bin" && s.rate == 0.25 && s.steps == 7 && s.epochs == 0 && s.kind == "cosine",
          "host/resume/values come back, and those that say 'not given'");
    check(resumed({"--steps", "9"}).steps == 9, "host/resume/R may differ");
    check(resumed({"--rate", "0.250"}).rate == 0.25, "host/resume/the same value");
    const char* differs = "and a resumed run must not differ in it; --init RUN --out with another directory begins "
                          "a new one from its weights";
    dies("resume/another value", std::string("2 --rate 0.5: the run in RUN has 0.25, ") + differs,
         [&] { resumed({"--rate", "0.5"}); });
    const char* without_weights = "2 --rate 0.5: the run in RUN has 0.25, and a resumed run must not differ in it; "
                                  "--out with another directory begins a new one";
    dies("resume/another value, without weights", without_weights, [&] {
        const Settings other = parsed(TOOL, {"train", "--data", "old.bin", "--rate", "0.5"});
        const Json kept = parse_json(stored, "log");
        resume_options(Settings(other).table(), fresh.table(), other.given, kept, false, "RUN", "RUN/log", false);
    });
    s = resumed({"--epochs", "2"});
    check(s.steps == 0 && s.epochs == 2, "host/resume/an excluded one does not come back");
    check(resumed({"--data", "new.bin"}, true).data == "new.bin", "host/resume/D, data that is known");
    dies("resume/D, data that is not known", std::string("2 --data new.bin: the run in RUN has old.bin, ") + differs,
         [&] { resumed({"--data", "new.bin"}); });
    check(resumed({"--kind", "linear"}, false, "{\"kind\": \"sawtooth\"}").kind == "linear",
          "host/resume/F, a foreign value");
    dies("resume/a wrong value", "1 RUN/log: --rate 5: must lie in 0..1",
         [&] { resumed({}, false, "{\"rate\": \"5\"}"); });
}

// ---- checkpoints.h ----
struct Numbers {
    std::vector<size_t> shape;
    std::vector<float> v;
};
using List = std::vector<std::pair<std::string, Numbers>>;
// A list of tensors in memory; an absent one is zero, and the twin of "w" is not kept.
static std::vector<Stored> stored(List& list) {
    std::vector<Stored> tensors;
    for (auto& [name, numbers] : list) {
        Numbers* t = &numbers;
        Stored s{name, t->shape,
                 [t](float* out, size_t from, size_t n) { std::copy_n(t->v.begin() + from, n, out); },
                 [t](const float* in) { std::copy_n(in, t->v.size(), t->v.begin()); }};
        if (name == "absent" || name == "twin") s.present = false;
        if (name == "twin") s.same_as = "w";
        tensors.push_back(s);
    }
    return tensors;
}
static List some() {
    return {{"w", {{2, 3}, {1, -2, 3, 4.5, 5, 6}}},
            {"b", {{3}, {7, 8, 1e-30f}}},
            {"absent", {{2}, {0, 0}}},
            {"twin", {{2, 3}, {1, -2, 3, 4.5, 5, 6}}}};
}
static void load(const std::string& path, List& list) {
    const Safetensors file(path);
    load_tensors(stored(list), file.tensors, path);
}

static void tensors() {
    const std::string path = DIR + "t.safetensors";
    List was = some(), is = some();
    for (auto& [name, t] : is) std::fill(t.v.begin(), t.v.end(), 99.f);
    save_tensors(path, stored(was));
    load(path, is);
    const Safetensors file(path);
    check(is[0].second.v == was[0].second.v && is[1].second.v == was[1].second.v, "host/tensors/come back");
    check(is[2].second.v[0] == 99 && is[3].second.v[0] == 99, "host/tensors/absent ones are not set");
    check(file.tensors.size() == 3 && file.tensors.at("absent")[1] == 0 && !file.tensors.count("twin") &&
          file.file.at<uint64_t>(0) % 8 == 0,
          "host/tensors/a zero is written, a twin is not");
    // as others write them: everything is a tensor of its own
    auto written = [&](std::function<void(List&)> change) {
        List other = some();
        change(other);
        std::vector<Stored> tensors = stored(other);
        for (Stored& t : tensors) {
            t.same_as = "";
            t.present = true;
        }
        save_tensors(path, tensors);
        List mine = some();
        load(path, mine);
    };
    const struct { const char* line; std::function<void(List&)> change; } cases[] = {
        {"", [](List&) {}}, {"", [](List& l) { l.erase(l.begin() + 2); }}, {"", [](List& l) { l.pop_back(); }},
        {"tensor 'b' is missing", [](List& l) { l.erase(l.begin() + 1); }},
        {"tensor 'w' is F32(3,2), expected F32, BF16 or F16 of (2,3)", [](List& l) { l[0].second.shape = {3, 2}; }},
        {"tensor 'w': row 1, column 0 is nan", [](List& l) { l[0].second.v[3] = NAN; }},
        {"tensor 'w': row 0, column 2 is -inf", [](List& l) { l[0].second.v[2] = -INFINITY; }},
        {"tensor 'b': number 1 is nan", [](List& l) { l[1].second.v[1] = -NAN; }},
        {"tensor 'absent': number 0 is inf", [](List& l) { l[2].second.v[0] = INFINITY; }},
        {"tensor 'absent' is not zero, but the config says bias false", [](List& l) { l[2].second.v[1] = 1e-30f; }},
        {"twin differs from w, but the config says tie_word_embeddings", [](List& l) { l[3].second.v[5] = 7; }},
        {"tensor 'x' has no place in a GPT-2 of this shape", [](List& l) { l.push_back({"x", {{1}, {0}}}); }}};
    for (auto& c : cases) {
        const std::string line = *c.line ? "1 " + path + ": " + c.line : "";
        dies(format("tensors/%s", c.line).c_str(), line, [&] { written(c.change); });
    }
    const float columns[6] = {1, 4.5, -2, 5, 3, 6};
    is = some();
    is[0].second.v.assign(6, 0);
    const View view{"F32", {2, 3}, (const uint8_t*)columns, true}, odd{"F64", {3}, (const uint8_t*)columns};
    load_tensors({stored(is)[0]}, {{"w", view}}, "file");
    check(is[0].second.v == was[0].second.v, "host/tensors/a transposed one");
    // the first in the matrix's order, not in the file's
    float two_bad[6] = {1, INFINITY, -2, 5, NAN, 6};         // (1,0) and (0,2)
    const View bad{"F32", {2, 3}, (const uint8_t*)two_bad, true};
    dies("tensors/the first bad one of a transposed", "1 file: tensor 'w': row 0, column 2 is nan",
         [&] { load_tensors({stored(is)[0]}, {{"w", bad}}, "file"); });
    dies("tensors/another type",
         "1 file: tensor 'b' is F64(3), expected F32, BF16 or F16 of (3); make it float32: "
         "python3 -c \"import safetensors.torch as s; "
         "s.save_file({k: v.float().clone() for k, v in s.load_file('file').items()}, 'file')\"",
         [&] { load_tensors({stored(is)[1]}, {{"b", odd}}, "file"); });
}

// Every half-precision number against its definition; matrices of all types, as they lie and transposed, at any byte.
static void views() {
    std::vector<uint16_t> halves(65536);
    for (size_t i = 0; i < halves.size(); i++) halves[i] = i;
    std::vector<float> memory;
    const float* const read = View{"F16", {halves.size()}, (const uint8_t*)halves.data()}.read(memory);
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
        const int exponent = i >> 10 & 31, mantissa = i & 1023;
        double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
        if (exponent == 31) size = mantissa ? NAN : INFINITY;
        const bool same_sign = std::signbit(read[i]) == (i >= 0x8000);
        wrong += !(std::isnan(size) ? std::isnan(read[i]) : std::abs(read[i]) == size && same_sign);
    }
    check(wrong == 0, "host/views/F16: %d of 65536 numbers are wrong", wrong);
    const size_t rows = 37, cols = 53;
    std::vector<uint8_t> bytes(rows * cols * 4 + 1);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = mix64(i);
    const int threads = omp_get_max_threads();
    for (const char* dtype : {"F32", "BF16", "F16"}) for (bool transposed : {false, true}) for (int at : {0, 1}) {
        const View view{dtype, {rows, cols}, bytes.data() + at, transposed};
        wrong = 0;
        for (int n : {1, 3}) {
            omp_set_num_threads(n);
            const float* const numbers = view.read(memory);
            for (size_t r = 0; r < rows; r++) for (size_t k = 0; k < cols; k++) {
                const uint8_t* const from = view.data + (transposed ? k * rows + r : r * cols + k) * view.bytes();
                uint32_t bits = 0;
                memcpy((char*)&bits + (*dtype == 'B' ? 2 : 0), from, view.bytes());
                float expected = std::bit_cast<float>(bits);
                if (!strcmp(dtype, "F16")) expected = std::bit_cast<float16>((uint16_t)bits);
                wrong += memcmp(&expected, &numbers[r * cols + k], sizeof expected) != 0;
            }
        }
        check(wrong == 0, "host/views/%s%s at byte %d: %d numbers are wrong", dtype,
              transposed ? " transposed" : "", at, wrong);
    }
    omp_set_num_threads(threads);
}

static Checkpoint checkpoint(List& list, long long step, const Tokenizer* tokenizer = nullptr) {
    Position position;
    position.step = step;
    position.window = 5;
    position.windows = 9;
    position.data["train"] = "it";
    position.beginning = {3, 1};
    position.lowest = 1.25;
    position.lowest_step = 2;
    return {DIR + "run", 2, position, "{\"rate\": \"1\"}", "{}\n", false, {1.5f, -2}, tokenizer, stored(list),
            stored(list)};
}
static std::string listed(const std::string& dir) {
    std::vector<std::string> names = entries_of(dir);
    std::sort(names.begin(), names.end());
    std::string s;
    for (const std::string& name : names) s += (s.empty() ? "" : " ") + name;
    return s;
}

static void checkpoints() {
    const std::string run = DIR + "run";
    const Tokenizer tokenizer = Tokenizer::from_merges("a b\n", "merges");
    List list = some();
    dies("checkpoint/no directory", "1 " + run + "/step_00000001.partial: cannot create: No such file or directory",
         [&] { checkpoint(list, 1).write(); });
    fs::create_directories(run);
    same("checkpoint/its directory", checkpoint(list, 1, &tokenizer).write(), run + "/step_00000001");
    const std::string files = listed(run + "/step_00000001");
    check(files.starts_with("config.json merges.txt model.safetensors optimizer.safetensors state.json"),
          "host/checkpoint/its files: %s", files.c_str());
    const Json state = verify_checkpoint(run + "/step_00000001");
    const Position p(state, "state");
    check(p.step == 1 && p.window == 5 && p.windows == 9 && p.data.at("train") == "it" &&
          p.beginning == std::vector<int>({3, 1}) && p.lowest == 1.25 && p.lowest_step == 2,
          "host/checkpoint/its position comes back");
    check(state["options"]["rate"].string == "1" &&
          state["files"].members.size() + 1 == entries_of(run + "/step_00000001").size(),
          "host/checkpoint/options, and a checksum of every other file");
    // what a run in `out` may not go on with
    using Names = std::map<std::string, std::string>;
    auto path_of = [](const std::string& name) { return name == "train" ? "t.bin" : std::string(); };
    auto goes_on = [&](const Names& now, size_t windows, long long steps) {
        return error_of([&] { p.check(now, path_of, windows, steps, "out"); });
    };
    same("position/the same data", goes_on({{"train", "it"}, {"val", "more"}}, 9, 1), "");
    same("position/other data", goes_on({{"train", "its"}}, 9, 1),
         "1 --train t.bin: its, but the run in out was given other data: it; "
         "--init out --out with another directory begins a new run from its weights");
    same("position/other windows", goes_on({{"train", "it"}}, 8, 1),
         "1 t.bin: 8 windows, but the run in out was trained on 9; are these the same shards?");
    same("position/fewer steps", goes_on({{"train", "it"}}, 9, 0), "2 --steps 0: the run in out has done 1 already");
    same("position/an end behind it", error_of([&] { p.check_window(5, 9, 0.5, "out"); }), "");
    dies("position/an end before it", "2 --epochs 0.5: the run in out has seen 5 windows already, and an epoch has 9",
         [&] { p.check_window(4, 9, 0.5, "out"); });
    // what is left of a run; older states do not say where it stands in its data
    const std::string cut = DIR + "cut";
    fs::create_directories(cut);
    check(Past(cut).checkpoint.empty() && !Past(cut).options, "host/past/nothing");
    write_file(cut + "/log.jsonl", "{\"options\": {\"lr\": \"3\"}}\n{");
    check(Past(cut).checkpoint.empty() && Past(cut).options["lr"].string == "3" && Past(cut).position.step == 0,
          "host/past/a log alone");
    const Past past(run);
    check(past.checkpoint == run + "/step_00000001" && past.options["rate"].string == "1" && past.data_known &&
          past.position.window == 5,
          "host/past/a checkpoint");
    // the first of two damaged files is named; a reader of the model alone does without the optimizer
    const std::string copy = DIR + "damaged";
    const char* damaged = ": damaged: size or checksum differ from state.json; "
                          "remove this checkpoint to use the one before";
    fs::copy(run + "/step_00000001", copy);
    write_file(copy + "/optimizer.safetensors", "");
    dies("checkpoint/a damaged optimizer", "1 " + copy + "/optimizer.safetensors" + damaged,
         [&] { verify_checkpoint(copy); });
    same("checkpoint/which a reader of the model does not need", error_of([&] { verify_checkpoint(copy, false); }), "");
    fs::resize_file(copy + "/model.safetensors", 10);
    for (bool all : {true, false})
        dies("checkpoint/a damaged model", "1 " + copy + "/model.safetensors" + damaged,
             [&] { verify_checkpoint(copy, all); });
    fs::remove(copy + "/optimizer.safetensors");
    fs::copy_file(run + "/step_00000001/model.safetensors", copy + "/model.safetensors",
                  fs::copy_options::overwrite_existing);
    dies("checkpoint/no optimizer", "1 " + copy + "/optimizer.safetensors: cannot open: No such file or directory",
         [&] { verify_checkpoint(copy); });
    dies("checkpoint/a state without options", "1 state: 'step', 'windows' or 'options' is missing",
         [] { Position(parse_json("{\"step\": 1, \"windows\": 2}", "state"), "state"); });

    dies("checkpoint/the same function", "", [&] { check_fingerprint({1.500001f, -2}, run + "/step_00000001"); });
    for (const std::vector<float>& other : {std::vector<float>{1.5f, -2.0001f}, {1.5f}, {1.5f, NAN}, {1.5f, -2, 0}}) {
        const std::string error = error_of([&] { check_fingerprint(other, run + "/step_00000001"); });
        check(error.find("computes another function") != error.npos,
              "host/checkpoint/another function of %zu numbers", other.size());
    }

    // a write that fails, at any file and of any cause, leaves nothing, and what was there
    rlimit was, limit;
    getrlimit(RLIMIT_FSIZE, &was);
    for (const rlim_t bytes : {0, 100, 400}) {
        limit = {bytes, was.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        const std::string error = error_of([&] { checkpoint(list, 2, &tokenizer).write(); });
        setrlimit(RLIMIT_FSIZE, &was);
        check(error.find(".partial/") != error.npos && error.ends_with(": cannot write: File too large") &&
              listed(run) == "step_00000001",
              "host/checkpoint/no file above %d bytes: %s", (int)bytes, error.c_str());
    }
    Checkpoint c = checkpoint(list, 2);
    c.moments.back().same_as = "";
    c.moments.back().get = [](float*, size_t, size_t) { die("lost"); };
    dies("checkpoint/numbers that cannot be had", "1 lost", [&] { c.write(); });
    same("checkpoint/and nothing is left", listed(run), "step_00000001");

    list[0].second.v[0] = 2;
    checkpoint(list, 2).write();
    list[0].second.v[0] = 3;
    checkpoint(list, 3).write();
    same("checkpoint/two are kept, and the best", listed(run), "best step_00000002 step_00000003");
    List best = some();
    load(run + "/best/model.safetensors", best);
    check(best[0].second.v[0] == 2 && verify_checkpoint(run + "/best")["step"].number == 2,
          "host/checkpoint/the best is of its step");
    checkpoint(list, 3).write();
    check(error_of([&] { verify_checkpoint(run + "/step_00000003"); }).empty(),
          "host/checkpoint/one takes the place of another of its step");

    // what another thread would ask for waits until the model has gone on
    fs::remove_all(run);
    RunDirectory directory(run, false);
    directory.rewind_log(0, 9);
    Saver saver;
    saver.run = &directory;
    std::promise<void> gone_on;
    const auto moved = gone_on.get_future().share();
    const auto self = std::this_thread::get_id();
    c = checkpoint(list, 4);
    for (auto* tensors : {&c.weights, &c.moments})
        for (Stored& t : *tensors) if (t.present)
            t.get = [get = t.get, moved, self](float* out, size_t from, size_t n) {
                if (std::this_thread::get_id() != self) moved.wait();
                get(out, from, n);
            };
    saver.save(c);
    list[0].second.v[0] = 4;
    list[1].second.v[0] = 4;
    gone_on.set_value();
    saver.finish();
    List saved = some(), moments = some();
    load(saver.saved + "/model.safetensors", saved);
    load(saver.saved + "/optimizer.safetensors", moments);
    check(saver.saved == run + "/step_00000004" && saved[0].second.v[0] == 3 && moments[1].second.v[0] == 7 &&
          saver.best == 2,
          "host/saver/what is written is the copy: %g, %g", saved[0].second.v[0], moments[1].second.v[0]);
    const std::string event = "{\"event\": \"checkpoint\", \"step\": 4, \"path\": \"" + saver.saved + "\", \"ms\": ";
    check(read_file(directory.log_path()).starts_with(event), "host/saver/the log tells of it");
    c = checkpoint(list, 5);
    c.out = DIR + "nowhere";
    saver.save(c);
    dies("saver/what the thread died of",
         "1 " + DIR + "nowhere/step_00000005.partial: cannot create: No such file or directory",
         [&] { saver.finish(); });
    check(saver.saved == run + "/step_00000004", "host/saver/the newest that is whole");
}

// ---- display.h, machine.h ----
static void display() {
    auto report = [](long long n, double loss, double ms) {
        return StepReport{.step = n, .loss = loss, .norm = 1.25, .lr = 1e-3, .ms = ms, .tokens = 1000, .seen = 5e9,
                          .speed = {"fast", {{"mfu", "0.5"}}}};
    };
    auto step = [&](Display& d, long long n, double loss, double ms) { d.step(report(n, loss, ms), {}); };
    std::string log;
    for (auto& [name, value] : report(1, 2.5, 500).log({{{"kl", 3.25}}})) log += std::string(name) + " " + value + ", ";
    same("display/a step for the log", log,
         "loss 2.5, norm 1.25, lr 0.001, ms 500.000, tokens_per_s 2000.0, tokens 5000000000, mfu 0.5, kl 3.25, ");
    same("display/a step's notes", report(1, 2.5, 500).text({{{"kl", 3.25}, {"entropy", 2e-5}}}),
         "fast  kl 3.25  entropy 2e-05");
    same("display/a line", output_of([&] {
        Display d{.terminal = false, .floor = NAN, .steps = 10001};
        step(d, 1, 2.5, 500);
    }), "step 1/10001  loss 2.5000  norm 1.250  lr 1.00e-03  500 ms  2000 tok/s  fast  ETA 1:23:20\n");
    const std::string two = output_of([&] {
        Display d{.terminal = false, .floor = 1.5, .steps = 100002};
        step(d, 1, 2.5, 500);
        d.val_loss = 2.25;
        d.say("%d words", 2);
        step(d, 2, 2.5, 1000);
    });
    same("display/floor, validation, smoothed time", two.substr(two.find("2 words")),
         "2 words\nstep 2/100002  loss 2.5000 (floor 1.5000)  val 2.2500  norm 1.250  lr 1.00e-03  "
         "1000 ms  1000 tok/s  fast  ETA 15:16:40\n");
    const std::string line = "  norm 1.250  lr 1.00e-03  100 ms  10000 tok/s  fast  ETA 0:00:00";
    same("display/a terminal", output_of([&] {
        Display d{.terminal = true, .floor = NAN, .steps = 3};
        step(d, 1, 8, 100);
        d.say("between");
        step(d, 2, 4, 100);
        step(d, 3, 2, 100);
    }), "\rstep 1/3  loss 8.0000" + line + "\x1b[K\nbetween\n"
        "\rstep 2/3  loss 4.0000" + line + "  ███████████▁\x1b[K"
        "\rstep 3/3  loss 2.0000" + line + "  ██████▅▅▅▅▅▁\x1b[K\n");
}

static void machine() {
    const size_t bytes = available_memory(), all = (size_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    check(bytes == SIZE_MAX || (bytes > 1 << 20 && bytes <= all),
          "host/machine/%zu bytes to be had of %zu", bytes, all);
    const double start = seconds();
    usleep(2000);
    const double passed = seconds() - start;
    check(passed >= 0.002 && passed < 10, "host/machine/2 ms are %g s", passed);
    const pid_t pid = fork();
    if (pid == 0) {
        watch_signals();
        raise(SIGTERM);
        if (stop_signal == SIGTERM) raise(SIGINT);
        _exit(1);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGINT,
          "host/machine/a first signal is kept, a second ends: status %x", status);
}

// ---- comm.h, units.h ----
static void ranks() {
    const Comm one = {}, first = {.rank = 0, .size = 3}, last = {.rank = 2, .size = 3};
    check(one.share(5).n == 5 && first.share(7).n == 3 && last.share(7).at == 6 && last.share(7).n == 1,
          "host/ranks/shares of things to do");
    check(last.share(2).n == 0 && last.share(4).at == 4 && last.share(4).n == 0 && last.share(4, 1).at == 2 &&
              Comm{.rank = 3, .size = 4}.share(5).n == 0, "host/ranks/a rank with nothing to do");

    // Two groups of two ranks, whose rows of five columns differ: each rank sends its own, and then sees all.
    auto part = [](int r) { return r ? Range{2, 3} : Range{0, 2}; };
    auto value = [](int group, int row, int column) { return 100 * group + 10 * row + column + 1.0f; };
    std::map<int, std::vector<char>> sent;
    int wrong = 0;
    for (int pass = 0; pass < 2; pass++) for (int rank = 0; rank < 4; rank++) {
        const Comm group = {.rank = rank % 2, .size = 2, .lowest = rank / 2 * 2};
        const Range own = part(group.rank);
        std::vector<float> rows(15, -1);
        for (size_t i = 0; i < 3 * own.n; i++) rows[i] = value(rank / 2, i / own.n, own.at + i % own.n);
        world().size = 4;
        world().gather = [&](const void* mine, void* all, size_t bytes) {
            sent[rank].assign((const char*)mine, (const char*)mine + bytes);
            for (auto& [r, message] : sent) std::copy_n(message.data(), bytes, (char*)all + r * bytes);
        };
        join_columns(rows.data(), 3, 5, group, part);
        world() = {};
        for (int i = 0; i < 15; i++) wrong += pass && rows[i] != value(rank / 2, i / 5, i % 5);
    }
    check(wrong == 0, "host/ranks/columns are joined: %d wrong of 60", wrong);
    const float whole[] = {0, 1, 2, 3, 4, 5, 6, 7};
    std::vector<float> own;
    const float* const some = Slice{1, 2, 4}.of(whole, 4, own);          // runs of two, one every four numbers
    check(some == own.data() && own == std::vector<float>({1, 2, 5, 6}) && Slice{}.of(whole, 8, own) == whole,
          "host/ranks/what a rank has of an array");
    float alone = 7;
    join_columns(&alone, 1, 1, {}, part);
    check(alone == 7, "host/ranks/one rank has all columns");
}
static void units() {
    int trials = 0;
    const double rate = peak_of(3, [&] {
        usleep(++trials == 2 ? 2000 : 20000);
        return 1000.0;
    });
    check(trials == 3 && rate > 1000 / 0.02 && rate <= 1000 / 0.002, "host/units/the best of three trials: %g", rate);
    int threads = 0;                         // that any of them ran on
    auto fastest = [&](double dots, double amx) {
        return fastest_unit([&](Unit u) {
            threads = std::max(threads, omp_get_max_threads());
            return u == Unit::NONE ? 10 : u == Unit::DOTS ? dots : amx;
        });
    };
    const int before = omp_get_max_threads();
    omp_set_num_threads(3);
    const int several = omp_get_max_threads();               // one, without OpenMP
    const Unit dots = has(Unit::DOTS) ? Unit::DOTS : Unit::NONE, amx = has(Unit::AMX) ? Unit::AMX : Unit::NONE;
    check(fastest(12.9, 12.9) == Unit::NONE, "host/units/none is faster by a margin");
    check(fastest(20, 12.9) == dots && fastest(12.9, 20) == amx, "host/units/one is");
    check(fastest(20, 30) == (amx == Unit::NONE ? dots : amx) && fastest(30, 20) == (dots == Unit::NONE ? amx : dots),
          "host/units/both are");
    check(threads == 1 && omp_get_max_threads() == several,
          "host/units/one thread is timed, of %d: %d", several, threads);
    omp_set_num_threads(before);
    Unit unit = Unit::AMX;
    same("units/a run that begins", keep_unit(unit, "", ""), "amx");
    same("units/a run that goes on", keep_unit(unit, "", "c"), "");
    std::string kept;
    unit = Unit::NONE;
    const std::string told = output_of([&] { kept = keep_unit(unit, "other", "c"); }, stderr);
    same("units/one that is not here", kept + told,
         "warning: c: its bf16 products were made in a unit that is not here, 'other': "
         "from now on sums are added up in another order\n");
}

// ---- weights.h ----
struct Shape {
    int layers = 2, channels = 8;
    bool bias = true;
    double eps = 1e-5;
    std::vector<Member> members() {
        return {{"n_layer", &layers, 1000}, {"n_embd", &channels, 100000}, {"bias", &bias},
                {"layer_norm_epsilon", &eps}};
    }
};

static void configs() {
    Shape a{3, 12, false, 3e-7}, b;
    const std::string json = config_json(a.members(), 256);
    read_config(b.members(), parse_json(json, "json"), "json");
    check(b.layers == 3 && b.channels == 12 && !b.bias && b.eps == 3e-7, "host/config/comes back");
    check(parse_json(json, "json")["eos_token_id"].number == 256 &&
          !parse_json(config_json(a.members(), -1), "json")["eos_token_id"],
          "host/config/an end of text, or none");
    b = Shape();
    const char* short_one = "{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_embd\": 2, \"n_inner\": 8}";
    read_config(b.members(), parse_json(short_one, "json"), "json");
    check(b.bias && b.eps == 1e-5, "host/config/defaults");
    const char* scaling = "attention without scaling, scaled by layer, or across sequences is not computed here";
    const std::pair<const char*, const char*> wrong[] = {
        {"\"model_type\": null", "found model_type '', expected 'gpt2'"},
        {"\"model_type\": \"llama\"", "found model_type 'llama', expected 'gpt2'"},
        {"\"activation_function\": \"relu\"", "activation_function 'relu' is not computed here, only gelu_new"},
        {"\"n_layer\": null", "'n_layer' is missing"},
        {"\"n_layer\": 0", "'n_layer' must be a whole number from 1 to 1000"},
        {"\"n_layer\": 1001", "'n_layer' must be a whole number from 1 to 1000"},
        {"\"n_layer\": 1.5", "'n_layer' must be a whole number from 1 to 1000"},
        {"\"n_layer\": \"2\"", "'n_layer' must be a whole number from 1 to 1000"},
        {"\"bias\": 1", "'bias' must be true or false"},
        {"\"layer_norm_epsilon\": -1", "'layer_norm_epsilon' must lie between 0 and 1"},
        {"\"layer_norm_epsilon\": 1", "'layer_norm_epsilon' must lie between 0 and 1"},
        {"\"n_inner\": 9", "n_inner 9 is not computed here, only 4 x n_embd = 32"},
        {"\"scale_attn_weights\": 0", "'scale_attn_weights' must be true or false"},
        {"\"scale_attn_weights\": false", scaling},
        {"\"scale_attn_by_inverse_layer_idx\": true", scaling},
        {"\"add_cross_attention\": true", scaling}};
    for (auto& [member, line] : wrong) {
        Json j = parse_json("{\"model_type\": \"gpt2\", \"n_layer\": 2, \"n_embd\": 8}", "json");
        for (auto& [name, value] : parse_json(format("{%s}", member), "json").members) j.members[name] = value;
        dies(format("config/%s", member).c_str(), format("1 json: %s", line),
             [&] { read_config(Shape().members(), j, "json"); });
    }
    dies("config/a list", "1 json: not a JSON object",
         [] { read_config(Shape().members(), parse_json("[1]", "json"), "json"); });
}

static void models() {
    // of 2 positions, 3 tokens padded to 5, a layer, a head and 2 channels, every number its place in the file
    const std::string path = DIR + "model.bin";
    const int32_t T = 2, V = 3, C = 2, padded = 5;
    const size_t block = C + C + C * 3 * C + 3 * C + C * C + C + C + C + C * 4 * C + 4 * C + 4 * C * C + C;
    const size_t count = padded * C + T * C + block + 2 * C;
    auto write = [&](int version, size_t numbers, std::vector<int32_t> sizes = {2, 3, 1, 1, 2, 5}) {
        std::vector<int32_t> header = {20240326, version};
        header.insert(header.end(), sizes.begin(), sizes.end());
        header.resize(256);
        std::string bytes((const char*)header.data(), 1024);
        for (size_t i = 0; i < numbers; i++) {
            const float f = i;
            bytes.append((const char*)&f + (version == 5 ? 2 : 0), version == 5 ? 2 : 4);
        }
        write_file(path, bytes);
        return read_llmc(path);
    };
    for (int version : {3, 5}) {
        const ModelFile m = write(version, count);
        auto tensor = [&](const char* name) { return m.tensors.at(std::string("transformer.") + name); };
        const View wte = tensor("wte.weight"), wpe = tensor("wpe.weight"), last = tensor("ln_f.bias");
        const View qkv = tensor("h.0.attn.c_attn.weight");
        check(m.tensors.size() == 16 && wte.shape == std::vector<size_t>({3, 2}) && !wte.transposed && wte[5] == 5 &&
              wpe[0] == padded * C,
              "host/llm.c/version %d: embeddings, less the padding", version);
        check(qkv.shape == std::vector<size_t>({2, 6}) && qkv.transposed && qkv[0] == padded * C + T * C + 2 * C &&
              last.shape == std::vector<size_t>({2}) && last[0] == count - C,
              "host/llm.c/version %d: a layer, and the last tensor", version);
        check(m.config["n_positions"].number == 2 && m.config["vocab_size"].number == 3 &&
              m.config["n_layer"].number == 1 && m.config["n_head"].number == 1 && m.config["n_embd"].number == 2,
              "host/llm.c/version %d: its config", version);
    }
    auto refused = [&](const char* line, int version, size_t numbers, std::vector<int32_t> sizes = {2, 3, 1, 1, 2, 5}) {
        dies(format("llm.c/%s", line).c_str(), "1 " + path + ": " + line, [&] { write(version, numbers, sizes); });
    };
    refused("byte 4: found version 4, expected 3 (float32) or 5 (bfloat16)", 4, 0);
    refused(format("%zu bytes, its header means %zu", 1024 + 4 * (count - 1), 1024 + 4 * count).c_str(), 3, count - 1);
    refused(format("%zu bytes, its header means %zu", 1024 + 4 * (count + 1), 1024 + 4 * count).c_str(), 3, count + 1);
    refused("byte 8: found 0, expected a size from 1 to 16777216", 3, 0, {0, V, 1, 1, C, padded});
    refused("byte 16: found 1001, expected a size from 1 to 1000", 3, 0, {T, V, 1001, 1, C, padded});
    refused("byte 28: found a vocabulary of 3 padded to 2", 3, 0, {T, V, 1, 1, C, 2});
    write_file(path, std::string(1000, 0));
    dies("llm.c/short", "1 " + path + ": 1000 bytes, shorter than a header of 1024", [&] { read_llmc(path); });

    // what shapes tell
    const float numbers[6] = {1, 2, 3, 4, 5, 6}, others[6] = {1, 2, 3, 4, 5, 7};
    auto view = [](const float* p, std::vector<size_t> shape) { return View{"F32", shape, (const uint8_t*)p}; };
    std::map<std::string, View> t = {{"transformer.wte.weight", view(numbers, {3, 2})},
                                     {"transformer.wpe.weight", view(numbers, {1, 2})},
                                     {"transformer.h.0.ln_1.weight", view(numbers, {2})},
                                     {"transformer.h.1.ln_1.weight", view(numbers, {2})},
                                     {"transformer.h.3.ln_1.weight", view(numbers, {2})}};
    Json j = config_of_shapes(t, "file");
    check(j["vocab_size"].number == 3 && j["n_embd"].number == 2 && j["n_positions"].number == 1 &&
          j["n_layer"].number == 2,
          "host/shapes/sizes");
    check(j["bias"].kind == Json::BOOL && !j["bias"].number && j["tie_word_embeddings"].number == 1,
          "host/shapes/no bias, and a head that is not there");
    t["lm_head.weight"] = view(numbers, {3, 2});
    t["transformer.h.0.attn.c_attn.bias"] = view(numbers, {6});
    j = config_of_shapes(t, "file");
    check(j["bias"].number == 1 && j["tie_word_embeddings"].number == 1,
          "host/shapes/a bias, and a head of the same bytes");
    t["lm_head.weight"] = view(others, {3, 2});
    check(config_of_shapes(t, "file")["tie_word_embeddings"].number == 0, "host/shapes/a head of its own");
    t["transformer.wpe.weight"] = view(numbers, {2});
    dies("shapes/no matrix", "1 file: no matrix 'transformer.wpe.weight' in it; is this a GPT-2?",
         [&] { config_of_shapes(t, "file"); });
}

// ---- runs.h ----
static void runs() {
    // as checkpoints have it that were written long ago
    const std::string_view fox = "The quick brown fox jumps over";
    const std::pair<size_t, const char*> sums[] = {{0, "0000000000000000"}, {1, "417f07755e8e216f"},
                                                   {8, "36087faa9b1ecb45"}, {13, "f17b9fb5dff3074a"},
                                                   {30, "215d7113564d634f"}};
    for (auto [bytes, sum] : sums)
        same(format("runs/the checksum of %zu bytes", bytes).c_str(), hex(checksum(fox.substr(0, bytes))), sum);

    check(is_step("step_00000012", "") && is_step("step_123456789", "") && is_step("step_00000012.partial", ".partial"),
          "host/runs/names of steps");
    for (const char* name : {"step_1", "step_0000001", "step_00000012x", "step_00000012.partial", "steps_00000012",
                             "best", ""})
        check(!is_step(name, ""), "host/runs/'%s' is none", name);

    const std::string run = DIR + "steps", short_one = run + "/step_99999999";
    const std::string far = run + "/step_100000000", damaged = run + "/step_100000001";
    for (const std::string& dir : {short_one, far, damaged, run + "/step_12", run + "/best"})
        fs::create_directories(dir);
    check(checkpoints_in(run).empty() && newest_whole(DIR + "none").empty(), "host/runs/none is whole");
    auto newest = [&](std::string& found) { return output_of([&] { found = newest_whole(run); }, stderr); };
    std::string found, told = newest(found);
    check(found.empty() && std::count(told.begin(), told.end(), '\n') == 3, "host/runs/all are passed over");
    for (const std::string& dir : {far, short_one, run + "/best"}) write_file(dir + "/state.json", "{");
    check(checkpoints_in(run) == std::vector<std::string>({short_one, far}),
          "host/runs/the oldest comes first, and 9 digits after 8");
    told = newest(found);
    same("runs/the newest that is whole", found, far);
    same("runs/a newer one is told of", told,
         "warning: " + damaged + ": has no state.json, so it is not whole: passed over\n");
    fs::remove_all(short_one);
    fs::create_directories(short_one);
    fs::remove_all(damaged);
    same("runs/an older one is not", newest(found), "");

    const std::string state = far + "/state.json";
    for (const char* ours : {"", "{\n  \"format\": 1,\n", "{\n  \"format\": 1,\n  \"step\": 5",
                             "x\n  \"checksum\": \"0\"\n"}) {
        write_file(state, ours);
        check(is_checkpoint(far), "host/runs/ours, damaged or not: %zu bytes", strlen(ours));
    }
    for (const char* other : {"{}", "{\n  \"format\": 2,\n  \"step\": 5"}) {
        write_file(state, other);
        check(!is_checkpoint(far), "host/runs/another's state.json: %zu bytes", strlen(other));
    }
    check(!is_checkpoint(short_one), "host/runs/no state.json");
    write_file(state, "{}");
    dies("runs/no checksum",
         "1 " + state + ": damaged: its checksum does not fit; remove this checkpoint to use the one before",
         [&] { verify_checkpoint(far); });
    write_file(state, "{\n" + checksum_line("{\n"));
    dies("runs/no files", "1 " + state + ": 'files' is missing", [&] { verify_checkpoint(far); });

    const std::string here = fs::current_path().string();
    write_file(DIR + "b.bin", "x");
    same("runs/a path given there", given_in(here + "/" + DIR, "b.bin"), here + "/" + DIR + "b.bin");
    same("runs/a pattern given there", given_in(here + "/" + DIR, "*.bin"), here + "/" + DIR + "*.bin");
    same("runs/what leads nowhere there", given_in(here + "/" + DIR, "none"), "none");
    same("runs/given here", given_in(here, DIR + "b.bin"), DIR + "b.bin");
    same("runs/none given", given_in(here + "/" + DIR, ""), "");
    Settings was;
    was.data = "b.bin";
    was.kind = "b.bin";
    was.prompt = "b.bin";
    was.given = {"prompt_text"};
    paths_from(here + "/" + DIR, was.table(), was.given,
               [](const Option& row) { return strcmp(row.name, "kind") != 0; });
    check(was.data == here + "/" + DIR + "b.bin" && was.kind == "b.bin" && was.prompt == "b.bin",
          "host/runs/paths that are not given anew");
    same("runs/an absolute one", given_in("/nowhere", here + "/" + DIR + "b.bin"), here + "/" + DIR + "b.bin");

    const std::string logged = DIR + "logged";
    auto line = [](const char* event, int step) { return format("{\"event\": \"%s\", \"step\": %d}\n", event, step); };
    const std::string first = line("run", 0) + line("step", 1) + line("eval", 1) + line("step", 2);
    const std::string last = line("eval", 2) + line("answers", 2) + line("sample", 2);
    auto rewound = [&](long long step, long long end) {
        RunDirectory directory(logged, true);
        write_file(directory.log_path(),
                   first + last + "rubbish\n" + line("step", 3) + "{\"event\": \"step\", \"step\": 1");
        directory.rewind_log(step, end);
        directory.put("step", step + 1, {{"loss", "2.5"}});
        return read_file(directory.log_path());
    };
    same("runs/a log, rewound", rewound(2, 9), first + last + "{\"event\": \"step\", \"step\": 3, \"loss\": 2.5}\n");
    same("runs/and what follows the last step is made again", rewound(2, 2),
         first + "{\"event\": \"step\", \"step\": 3, \"loss\": 2.5}\n");
    same("runs/to the beginning", rewound(0, 9), "{\"event\": \"step\", \"step\": 1, \"loss\": 2.5}\n");
    for (const char* left : {"/step_00000003.partial", "/best.old", "/mine.partial"})
        fs::create_directories(logged + left);
    {
        const RunDirectory held(logged, true);
        same("runs/what a kill left is gone, and nothing else", listed(logged), "log.jsonl mine.partial");
        dies("runs/a second writer", "1 " + logged + ": another train_gpt is writing there",
             [&] { RunDirectory(logged, true); });
    }
    const std::string step = logged + "/step_00000003";
    fs::create_directories(step);
    write_file(step + "/state.json", "{\n  \"format\": 1,\n  \"step\": 3");
    const std::string above = ": is a checkpoint; its run is the directory above: --out " + logged + "/";
    for (const std::string end : {"", "/"})
        dies(("runs/a checkpoint is no run" + end).c_str(), "1 " + step + end + above,
             [&] { RunDirectory(step + end, true); });
    for (const char* again : {"runs/not empty", "runs/not empty, and let go of"})
        dies(again, "1 " + logged + ": is not empty; choose another --out, or go on with --resume",
             [&] { RunDirectory(logged, false); });

    std::string bytes(3 << 20, 'x');
    bytes[5] = 'y';
    auto identity = [&](size_t n) {
        write_file(DIR + "c.bin", std::string_view(bytes).substr(0, n));
        return Identity(DIR + "c.bin").text();
    };
    const std::string all = identity(bytes.size()), less = identity(bytes.size() - 1);
    bytes[(2 << 20) + 3] = 'z';
    check(all.starts_with("3145728 bytes in 1 files, checksum ") && less.starts_with("3145727 bytes") &&
          identity(bytes.size()) != all,
          "host/runs/an identity changes with a byte: %s", all.c_str());
}

// ---- shards.h ----
static void examples() {
    using Segments = std::vector<std::vector<int>>;
    const std::string path = DIR + "examples";
    const Segments six = {{1, 2}, {3}, {}, {4, 5, 6}, {7, 8}, {9}}, three = {{}, {1, 2}, {3}, {4}, {5}, {6, 7, 8}};
    const struct { int segments; Segments all; std::vector<uint64_t> first; std::vector<int> lengths; } cases[] = {
        {1, six, {}, {3, 2, 1, 4, 3, 2}}, {2, six, {}, {4, 4, 4}}, {3, three, {}, {3, 5}}, {0, six, {0, 2, 6}, {4, 8}}};
    for (auto& c : cases) for (int V : {10, 70000}) {
        write_examples(path, c.all, c.segments, V, c.first);
        const Examples e(path, V, 100);
        bool good = e.tokens == c.all && e.segments == c.segments && e.size() == c.lengths.size() && e.left_out == 0;
        size_t at = 0;
        for (size_t i = 0; i < e.size(); i++) {
            good = good && e.number[i] == i && e.first[i] == at && e.of(i)[0] == c.all[at];
            good = good && e.length(i) == c.lengths[i];
            at += e.count(i);
        }
        check(good && e.first.back() == c.all.size(), "host/examples/%d segments, %d tokens", c.segments, V);
    }
    // the lengths 3, 2, 1, 4, 3, 2 of prompts alone, which need room for one token more; of pairs 3, 5, 2
    // of dialogues the last response, behind the same tokens; an empty context stays one
    write_examples(path, {{1}, {2, 3}, {4}, {5}, {}, {6}, {7, 8}, {9}}, 0, 11, {0, 6, 8});
    {
        Examples e(path, 11, 9);
        const int length = e.length(0);
        e.answer_last(10);
        const Segments tokens = {{1, 2, 3, 10, 4, 5, 10}, {6}, {7, 8}, {9}};
        check(e.segments == 2 && e.tokens == tokens && e.first == std::vector<size_t>{0, 2, 4} && e.size() == 2 &&
              length == 9 && e.length(0) == 9,
              "host/examples/the last response of dialogues");
        const std::vector<std::vector<int>> folded = e.tokens;
        e.answer_last(10);
        check(e.tokens == folded, "host/examples/pairs stay what they are");
    }
    write_examples(path, six, 1, 10);
    std::string said = output_of([&] {
        const Examples e(path, 10, 3, true);
        check(e.left_out == 3 && e.number == std::vector<size_t>{1, 2, 5} && e.tokens == Segments{{3}, {}, {9}} &&
              e.first.back() == 3 && e.length(2) == 2,
              "host/examples/prompts left out");
    }, stderr);
    same("examples/prompts left out are told of", said,
         "warning: " + path + ": 3 of 6 examples are left out, the first of them example 0: "
                              "4 tokens do not fit the context of 3\n");
    write_examples(path, {{1}, {2}, {1, 1}, {2, 2}, {}, {2}}, 2, 10);
    said = output_of([&] {
        const Examples e(path, 10, 4, true);
        check(e.left_out == 1 && e.number == std::vector<size_t>{0, 2} && *e.of(1) == std::vector<int>() &&
              e.of(1)[1] == std::vector<int>{2},
              "host/examples/a pair left out");
    }, stderr);
    same("examples/a pair left out is told of", said,
         "warning: " + path + ": 1 of 3 examples are left out, the first of them example 1: "
                              "5 tokens do not fit the context of 4\n");
    same("examples/none left out, nothing told", output_of([&] { Examples(path, 10, 5, true); }, stderr), "");
    dies("examples/too long, where none is left out", "1 " + path + ": example 1: 5 tokens do not fit the context of 4",
         [&] { Examples(path, 10, 4); });

    const std::string kept = read_file(path);
    auto refused = [&](const char* name, const std::string& line, const Segments& all, int segments,
                       std::vector<uint64_t> first = {}) {
        dies(format("examples/%s", name).c_str(), "1 " + path + ": " + line,
             [&] { write_examples(path, all, segments, 10, first); });
    };
    const char* not_whole = "6 segments are not a whole number of examples";
    refused("not whole ones", not_whole, six, 4);
    refused("an empty response", "example 1: segment 1, a response, is empty", {{1}, {2}, {3}, {}}, 2);
    refused("an empty chosen one", "example 0: segment 1, a response, is empty", {{1}, {}, {3}}, 3);
    refused("an empty turn", "example 0: segment 3, a response, is empty", {{1}, {1}, {3}, {}}, 0, {0, 4});
    refused("an odd number", "example 1: 1 segments, expected contexts and responses in turn", {{1}, {1}, {3}}, 0,
            {0, 2, 3});
    refused("none of an example", "example 0: 0 segments, expected contexts and responses in turn", {{1}, {1}}, 0,
            {0, 0, 2});
    refused("dialogues that end elsewhere", not_whole, six, 0, {0, 2});
    check(read_file(path) == kept, "host/examples/what is refused leaves the old file");
}

// ---- texts.h ----
static Text text_of(const std::string& response, double reward = 0) {
    Text t = {{{1}, 9}};
    t.response = response;
    t.reward = reward;
    return t;
}
static void texts() {
    // Texts of two letters in tokens of up to three, with up to three stops: each ends as a plain search says, and
    // nothing was certain that then went.
    Rng rng(5);
    auto letters = [&](int n) {
        std::string s;
        for (int i = 0; i < n; i++) s += rng.below(2) ? 'a' : 'b';
        return s;
    };
    int wrong = 0, stopped = 0, held = 0;
    for (int run = 0; run < 3000; run++) {
        Stops stops = {};
        for (int n = rng.below(4); n > 0; n--) stops.strings.push_back(letters(1 + rng.below(5)));
        std::string all, response, shown;
        bool goes_on = true;
        while (goes_on && all.size() < 20) {
            const std::string token = letters(rng.below(4));
            all += token;
            goes_on = stops.add(response, token);
            size_t end = all.size();
            for (auto& stop : stops.strings) end = std::min(end, all.find(stop));
            bool found = false;
            for (auto& stop : stops.strings) found = found || all.find(stop) != all.npos;
            wrong += response != all.substr(0, end) || goes_on == found;
            const size_t certain = goes_on ? stops.certain(response) : response.size();
            wrong += certain < shown.size() || response.compare(0, shown.size(), shown) != 0;
            shown = response.substr(0, certain);
            held += certain < response.size();
        }
        stopped += !goes_on;
    }
    check(wrong == 0 && stopped > 1000 && held > 1000,
          "host/texts/stops: %d of 3000 texts end elsewhere or took back what was certain; "
          "%d ended, %d times something was held", wrong, stopped, held);
    const Stops two = {{"<|end|>", "\n\n"}};
    check(two.certain("one <|e") == 4 && two.certain("one\n") == 3 && Stops{}.certain("one\n") == 4,
          "host/texts/what may begin a stop is held back");

    // rows of a text behind what generate() keeps of it; each token but the first is a target once
    for (int T : {1, 2, 3, 7, 20}) for (int n : {1, 2, 3, 7, 8, 9, 20, 21, 50}) {
        std::vector<int> tokens(n), row;
        std::iota(tokens.begin(), tokens.end(), 0);
        bool good = true;
        int next = 1;
        for (const Row& r : text_rows(tokens, T)) for (size_t t = 0; t < r.y.size(); t++) {
            good = good && r.x.size() <= (size_t)T && r.x.size() == r.y.size() && r.x[t] == int(r.x[0] + t);
            if (r.y[t] < 0) continue;
            if (next == 1) row = {0};
            const int left = std::max(1, T / 2);                 // as generate() does
            if ((int)row.size() > T) row.erase(row.begin(), row.end() - left);
            good = good && r.y[t] == next && r.x[0] == row[0] && r.x[t] == next - 1;
            row.push_back(next);
            next++;
        }
        check(good && next == std::max(n, 1), "host/texts/rows of %d tokens, a context of %d", n, T);
    }

    const std::vector<Text> votes = {text_of("x so 1"), text_of("so 2"), text_of("none"), text_of("so 1 so  2\n"),
                                     text_of("so 3 so 1")};
    auto so_elected = [&](int from, int n) { return elected(&votes[from], n, "so"); };
    check(so_elected(0, 5) == 0 && so_elected(0, 4) == 1 && so_elected(2, 1) == 0 && so_elected(1, 2) == 0 &&
          so_elected(2, 2) == 1,
          "host/texts/votes: the last mark, ties to the earlier, none without the mark");
    const std::vector<Text> whole = {text_of("b"), text_of("a"), text_of("\ta\n"), text_of("b c")};
    check(elected(whole.data(), 4, "") == 1 && elected(&whole[0], 2, "") == 0, "host/texts/votes of whole texts");
    const std::vector<Text> rewarded = {text_of("", -2), text_of("", 1), text_of("", 1)};
    check(best_of(rewarded.data(), 3) == 1 && best_of(rewarded.data(), 1) == 0,
          "host/texts/the best, of equal ones the first");
    const Tokenizer bytes = Tokenizer::load("bytes");
    Text right = text_of(" so 2");
    right.tokens = bytes.encode(right.response);
    const std::string so = "so", nowhere = "no";
    auto answers = [&](const char* text, const std::string& mark) {
        return right.is_right(bytes.encode(text), &bytes, &mark);
    };
    check(!right.is_right(right.tokens, &bytes, nullptr) && answers("so 2", so) && !answers("so 3", so) &&
          !answers("so 2", nowhere),
          "host/texts/a cut text is not right, its answer may be");
    const std::vector<int> wanted = right.tokens;
    right.finish = Finish::STOP;
    check(right.is_right(wanted, &bytes, nullptr), "host/texts/a stopped text is right");
    right.finish = Finish::END;
    right.tokens.push_back(256);
    check(right.is_right(wanted, &bytes, nullptr) && !right.is_right(bytes.encode(" so"), &bytes, nullptr) &&
          right.said() == wanted && right.row(0).x.size() == 6,
          "host/texts/an ended text is right");

    Text t = {{{256, 65}, 4, 0, "a\xff\"\n"}};
    const Stops stops = {{"!"}};
    t.add(bytes.encode("b")[0], 256, &bytes, stops);
    t.add(256, 256, &bytes, stops);
    t.logprobs = {-1, -0.25, -0.5};
    same("texts/a line of JSON", json_line(t),
         "{\"prompt\": \"a\xef\xbf\xbd\\\"\\u000a\", \"response\": \"b\", \"finish\": \"end\", \"tokens\": [65, 256], "
         "\"logprobs\": [-0.250000, -0.500000], "
         "\"prompt_tokens\": [256, 65], \"prompt_logprobs\": [null, -1.000000]}\n");
    const Json back = parse_json(json_line(t), "line");
    check(back["prompt"].string == "a\xef\xbf\xbd\"\n" && back["logprobs"].items.size() == 2 &&
          !back["prompt_logprobs"].items[0] && std::abs(t.mean_logprob() + 0.375) < 1e-12,
          "host/texts/it reads back");
    check(text_of("").mean_logprob() == -INFINITY && show_tokens({5, 6}, nullptr) == "5 6" &&
          (Prompt{{}, 1, 0, "5"}).shown(nullptr) == "5 ",
          "host/texts/none written, and ids");
    same("texts/headings", heading(0, 1, 0, 1) + heading(1, 2, 0, 1) + heading(0, 1, 1, 2) + heading(1, 2, 1, 2),
         "--- prompt 2\n--- sample 2\n--- prompt 2, sample 2\n");

    auto written = [&](bool json, size_t prompts, size_t each) {
        return output_of([&] {
            TextWriter w(&bytes, std::vector<Prompt>(prompts, t.prompt), each, json);
            for (size_t k = 0; k < prompts; k++) {
                w.show(t);
                w.put(k, &t, 1);
            }
        });
    };
    same("texts/one is written as it grows", written(false, 1, 1), "a\xff\"\nb\n");
    same("texts/several are written whole", written(false, 2, 1),
         "--- prompt 1\na\xff\"\nb\n--- prompt 2\na\xff\"\nb\n");
    same("texts/one of several to a prompt", written(false, 1, 2), "a\xff\"\nb\n");
    same("texts/JSON Lines are written whole", written(true, 1, 1), json_line(t));
    const std::vector<Prompt> prompts = {{{1, 2, 3}, 1}, {{1}, 1}, {{1, 2}, 1}, {{2}, 1}, {{1, 2}, 1}};
    check(by_length(prompts, 2) == std::vector<std::vector<int>>({{1, 3}, {2, 4}, {0}}) && by_length({}, 2).empty(),
          "host/texts/the shortest prompts first, two at a time");
    const Prompt to_answer = prompt_of({5, 6}, 9, 8), briefly = prompt_of({5, 6}, 9, 8, 3, 7);
    check(to_answer.tokens == std::vector<int>({9, 5, 6}) && to_answer.most == 5 && briefly.most == 3 &&
          briefly.stream == 7,
          "host/texts/a shard's prompt, and the room for its answer");
    Answer answer = {nullptr};
    check(answer.add(7, 9) && !answer.ended && !answer.add(9, 9) && answer.ended &&
          answer.tokens == std::vector<int>({7}),
          "host/texts/an answer ends in an end of text, and does not hold it");

    const std::string file = DIR + "prompts", jsonl = file + ".jsonl";
    auto read = [&](const std::string& path, const std::string& content) {
        write_file(path, content);
        std::string s;
        for (const Asked& prompt : read_prompts(path))
            if (prompt.turns.empty()) s += "[" + prompt.text + "]";
            else for (auto& [role, words] : prompt.turns) s += "<" + role + ":" + words + ">";
        return s;
    };
    same("texts/prompts, a line each", read(file, "\xef\xbb\xbfone\r\n\n \ntwo {\n{three"), "[one][two {][{three]");
    same("texts/prompts that begin like JSON", read(file, "{\n{\"a\": 1}\n{\"prompt\": 3"),
         "[{][{\"a\": 1}][{\"prompt\": 3]");
    same("texts/prompts as JSON Lines, by the first",
         read(file, "\n{\"prompt\": \"a\\nb\", \"id\": 3}\n\n{\"prompt\": \"\"}"), "[a\nb][]");
    same("texts/prompts as JSON Lines, by the name", read(jsonl, "{\"prompt\": \"a\"}\n"), "[a]");
    check(given_prompts("p", "", "") == std::vector<Asked>{{"p"}} &&
          given_prompts("", "", jsonl) == std::vector<Asked>{{"a"}} &&
          given_prompts("", jsonl, "") == std::vector<Asked>{{"{\"prompt\": \"a\"}"}},
          "host/texts/prompts in each way that they are given");
    const std::string turns = "[{\"role\": \"user\", \"content\": \"a\"}]";
    const std::string said = "[{\"role\": \"assistant\", \"content\": \"b\"}]";
    same("texts/prompts that are turns",
         read(file, "{\"messages\": " + turns + "}\n{\"prompt\": " + turns + "}\n{\"prompt\": \"a\"}"),
         "<user:a><user:a>[a]");
    same("texts/turns first", read(file, "{\"prompt\": " + turns + "}"), "<user:a>");
    dies("texts/turns that end in an answer",
         "1 " + jsonl + ": line 1: \"messages\" is a list of 1 turns, expected one to be answered at its end",
         [&] { read(jsonl, "{\"messages\": " + said + "}"); });
    dies("texts/no turns",
         "1 " + jsonl + ": line 1: \"prompt\" is a list of 0 turns, expected one to be answered at its end",
         [&] { read(jsonl, "{\"prompt\": []}"); });
    dies("texts/no prompts", "1 " + file + ": holds no prompts", [&] { read(file, "\n\r\n"); });
    dies("texts/no prompt in a line", "1 " + jsonl + ": line 3: expected an object with a string \"prompt\"",
         [&] { read(jsonl, "{\"prompt\": \"a\"}\n\n{\"prompt\": 3}\n"); });
    dies("texts/a line that is no JSON", "1 " + jsonl + ": line 1: byte 0: found byte 0x61, expected a JSON value",
         [&] { read(jsonl, "a\n"); });
    write_file(jsonl, "{\"prompt\": \"a\"}");
    dies("texts/an example without a response",
         "1 " + jsonl + ": line 1: expected an object with a string \"response\"", [&] { read_shots(jsonl); });
    write_file(jsonl, "\n");
    dies("texts/no examples", "1 " + jsonl + ": holds no examples", [&] { read_shots(jsonl); });

    write_file(jsonl, "{\"prompt\": \"a\", \"response\": \"bc\"}\n{\"prompt\": \"d\", \"response\": \"e\"}\n");
    auto prompted = [&](int T, long long most, const std::string& said, bool after_end) {
        Prompter p = {&bytes, "m", 256, T, 256, most, after_end, {256, 66}};
        p.take_examples(jsonl);
        const Prompt made = p.prompt({said});
        return format("%zu left out: ", p.left_out) + show_tokens(made.tokens, &bytes) + "|" + made.text;
    };
    same("texts/examples before a prompt", prompted(100, 4, "x", false), "0 left out: abc\nde\nx|x");
    same("texts/examples behind an end of text", prompted(13, 4, "x", true),
         "0 left out: " + std::string(bytes.decode(256)) + "abc\nde\nx|x");
    same("texts/both just fit", prompted(11, 4, "x", false), "0 left out: abc\nde\nx|x");
    same("texts/the first is left out", prompted(10, 4, "x", false), "1 left out: de\nx|x");
    same("texts/both are left out", prompted(6, 4, "xyz", false), "2 left out: xyz|xyz");
    Prompter none = {nullptr, "m", 9, 3, -1, 4, false, {7, 8}};
    const Prompt empty = none.prompt({""}), ids = none.prompt({"1 2"});
    check(empty.tokens == std::vector<int>({7, 8}) && empty.text == "7 8" && ids.tokens == std::vector<int>({1, 2}) &&
          none.longest == 2,
          "host/texts/ids, and what an empty prompt is");
    Tokenizer formed = Tokenizer::load("bytes");
    formed.chat_template = "{role}:{content};";
    const std::string end(bytes.decode(256)), asked = "user:a;assistant:b" + end + "user:c;assistant:";
    const Turns chat = {{"user", "a"}, {ASSISTANT, "b"}, {"user", "c"}};
    Prompter base = {&formed, "m", 257, 99, 256, 4, false}, tuned = {&formed, "m", 257, 99, 256, 4, true};
    const Prompt made = base.prompt({"", chat});
    check(show_tokens(made.tokens, &formed) == end + asked && made.text == asked && made.most == 4,
          "host/texts/turns become a prompt as in training: %s", made.text.c_str());
    auto told = [&](Prompter p, const std::string& text) {
        p.prompt({text});
        return output_of([&] { p.tell(); }, stderr);
    };
    check(told(tuned, "a").starts_with("warning: m: has a template of chats, and a bare text is no turn of one"),
          "host/texts/a bare text, told");
    const Prompter without = {&bytes, "m", 257, 99, 256, 4, true};
    check((told(tuned, "user:a;assistant:") + told(tuned, "") + told(base, "a") + told(without, "a")).empty(),
          "host/texts/a text that is a turn, none, and a model without chats: nothing to tell");
    dies("texts/turns without a template",
         "1 m: has no template of chats, so a prompt cannot be a list of turns; give it as a text",
         [&] { Prompter(without).prompt({"", chat}); });
    dies("texts/ids that are none", "2 --prompt 9: m has no tokenizer, so the prompt must be token ids below 9",
         [&] { none.prompt({"9"}); });
    std::string copies;
    for (auto& some : repeated({{{1}, 9}, {{2}, 9}, {{3}, 9}}, 3, 7)) {
        for (const Prompt& p : some) copies += format("%d:%d ", p.tokens[0], (int)p.stream);
        copies += "| ";
    }
    same("texts/copies of prompts", copies, "1:0 1:1 1:2 2:3 2:4 2:5 | 3:6 3:7 3:8 | ");
    check(repeated({{{1}, 9}, {{2}, 9}}, 8, 7).size() == 2 && repeated({}, 8, 7).empty(),
          "host/texts/more copies than are made at a time, and none");
    const std::string by = taken_by(0, 0, "") + ", " + taken_by(3, 0, "") + ", " + taken_by(0, 4, "") + ", ";
    same("texts/by what texts are taken", by + taken_by(0, 4, "R"),
         "with --pattern, vote of 3, best of 4 by log-probability, best of 4 by R");
    ChoiceScores scores;
    scores.add(0, 2, 1, -4, 4, 1);
    scores.add(1, 2, 1, -3, 1, 4);
    scores.add(0, 2, 1, -1, 1, 1);
    scores.add(1, 2, 1, -2, 4, 2);
    same("reports/choices", scores.line(true),
         "acc 0.5000 (1 of 2), acc_norm 0.5000 (1 of 2), acc_norm a byte 0.5000 (1 of 2)");
}

// ---- chat.h ----
static void chats() {
    const Tokenizer bytes = Tokenizer::load("bytes");
    Tokenizer formed = Tokenizer::load("bytes");
    formed.chat_template = "{role}:{content};";
    auto shown = [&](const Prompt& p) { return show_tokens(p.tokens, &formed) + format(" %lld", p.most); };
    const std::string end(bytes.decode(256));
    Conversation plain{bytes, 256, 20, 8}, talk{formed, 256, 60, 9};
    same("chat/a line as it stands", shown(plain.ask("hi")), end + "hi 8");
    same("chat/a template", shown(talk.ask("hi")), end + "user:hi;assistant: 9");
    Text t = {{{256}, 9}};
    for (int id : bytes.encode("yes.")) t.add(id, 256, &bytes, {{"."}});
    talk.answered(t);
    Text ended = {{{256}, 9}};
    for (int id : std::vector<int>{bytes.encode("n")[0], 256}) ended.add(id, 256, &bytes, {});
    same("chat/an answer as it was shown", shown(talk.ask("a")),
         end + "user:hi;assistant:yes" + end + "user:a;assistant: 9");
    talk.answered(ended);
    std::string next;
    const std::string said = output_of([&] { next = shown(talk.ask("b")); }, stderr);
    same("chat/the oldest turn leaves", next + said,
         end + "user:a;assistant:n" + end + "user:b;assistant: 9"
         "warning: the context is full: the oldest turn is forgotten\n");
    std::string refused;
    const std::string told = output_of([&] { refused = shown(talk.ask(std::string(60, 'x'))); }, stderr);
    const char* too_long = "warning: what was said takes 77 tokens, and the context 60: it is not answered\n";
    check(refused == " 0" && told == too_long && talk.turns.size() == 2,
          "host/chat/a line that is too long forgets nothing: %s", told.c_str());

    write_file(DIR + "typed", "/help\none\r\n/undo\n/undo\n/nwe\n/etc/x\n/ no\n/undo\nagain\n/new\n/quit\nmore\n");
    const int kept = dup(0), file = open((DIR + "typed").c_str(), O_RDONLY);
    dup2(file, 0);
    close(file);
    Conversation c{bytes, 256, 20, 8};
    std::string line, heard;
    const std::string printed = output_of([&] {
        while (c.listen(line)) {
            c.ask(line);
            heard += "[" + line + "]" + std::to_string(c.turns.size());
        }
    });
    Conversation held{bytes, 256, 20, 8};
    rewind(stdin);
    const std::vector<Batch> batches = {Batch({Row{{1, 2}, {2, 3}}}), Batch::nothing()};
    check(sum_over(batches, [](auto& b) { return b.targets(); }) == 2, "host/rows/a sum over batches");
    std::string numbers;
    const std::string seen = output_of([&] {
        held.hold([&](const Prompt& p, uint64_t n, auto show) {
            numbers += std::to_string(n);
            Text answer = {p};
            for (int token : {(int)bytes.encode("y")[0], 256}) {
                answer.add(token, 256, &bytes, {});
                show(0, answer);
            }
            return answer;
        });
    });
    check(seen.find("y\ny\ny\n") != seen.npos && numbers == "1234" && held.turns.empty(),
          "host/chat/a conversation is held: answers to lines %s", numbers.c_str());
    dup2(kept, 0);
    close(kept);
    clearerr(stdin);
    same("chat/what is said, and what commands do", heard, "[one]1[/etc/x]1[/ no]2[again]2");
    same("chat/what commands say", printed,
         std::string(Conversation::HELP) + "there is no turn to forget\n/nwe is no command; /help lists them\n");
    check(c.turns.empty(), "host/chat/a new conversation");
}

int main() {
    packing();
    signal(SIGXFSZ, SIG_IGN);
    fs::remove_all(DIR);
    fs::create_directories(DIR);
    for (auto section : {options, resuming, tensors, views, checkpoints, display, machine, ranks, units, configs,
                         models, runs, examples, texts, chats})
        if (const std::string error = error_of(section); !error.empty()) check(false, "host: %s", error.c_str());
    return failed > 0;
}
