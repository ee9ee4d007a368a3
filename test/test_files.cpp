/* test/test_files.cpp -- what must hold when files are wrong and runs are cut short. Part one reads damaged files in
   this process: each must end in one line. Part two runs ./train_gpt: killed, interrupted, out of disk, twice at once,
   while a checkpoint is being written or read, resumed, on other data, and started in odd ways.
   STRESS=1 runs the full counts. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#include "check.h"
#include <functional>
#include <sys/resource.h>
#include <sys/wait.h>

static const std::string DIR = "build/test_files_data/";
static const bool STRESS = getenv("STRESS") != nullptr;
static Rng rng(11);

// What f() dies of; "" if it does not.
template <typename F> static std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) { return format("%d ", e.exit_code) + e.line; }
    return "";
}
static bool one_line(const std::string& error) {
    return error.rfind("1 ", 0) == 0 && error.find('\n') == error.npos && error.size() < 1100;
}

static std::string header(std::vector<int32_t> fields, size_t payload) {
    fields.resize(256);
    return std::string((char*)fields.data(), 1024) + std::string(payload, '\0');
}
static std::string safetensors(const std::string& json, size_t data) {
    uint64_t n = json.size();
    return std::string((char*)&n, 8) + json + std::string(data, '\0');
}
static std::string one_tensor(const char* shape, const char* offsets, size_t data) {
    return safetensors(format("{\"a\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":%s}}", shape, offsets), data);
}

// All of its tokens are the same.
static std::string example_shard(int version, int segments, int examples, std::vector<uint64_t> first,
                                 std::vector<uint64_t> offsets, uint16_t token = 1) {
    const int n = offsets.back(), all = offsets.size() - 1;
    std::string bytes = header({20261121, version, examples, segments, 2, 0, n, 0, version == 2 ? all : 0}, 0);
    for (auto& list : {first, offsets}) bytes.append((const char*)list.data(), 8 * list.size());
    for (int i = 0; i < n; i++) bytes.append((const char*)&token, 2);
    return bytes;
}

static void wrong_files() {
    const std::string path = DIR + "file";
    auto shard = [&] { Shard(path, false).check_tokens(10); };
    auto tensors = [&] { Safetensors s(path); };
    auto json = [&] { read_json(path); };
    auto llmc = [&] { config_of(read_llmc(path), 0); };
    auto examples = [&] { Examples(path, 10, 8); };
    auto fitting = [&] { Examples(path, 10, 8, true); };
    auto answers = [&] { Examples(path, 10, 8).need("--answers", {0, 2, 3}); };
    auto choices = [&] { Choices(path, 10, 8); };
    std::string high = header({20240520, 1, 3}, 6);
    high[1024 + 4] = 12;
    struct { const char* name; std::function<void()> read; std::string bytes, line; } cases[] = {
        {"shard empty", shard, "", "empty, expected tokens"},
        {"shard without header", shard, std::string(4000, '\x80') + '\1',
         "byte 0: found magic -2139062144, expected 20240520 or 20240801; a nanoGPT file has no header: "
         "read it with --raw u16"},
        {"shard version", shard, header({20240520, 2, 0}, 0), "byte 4: found version 2, expected 1"},
        {"shard cut short", shard, header({20240520, 1, 10}, 19), "1043 bytes, but a header that counts 10 tokens means 1044; is it cut short?"},
        {"shard too long", shard, header({20240801, 7, 10}, 41), "1065 bytes, but a header that counts 10 tokens means 1064; there is more than it counts"},
        {"shard negative count", shard, header({20240520, 1, -1}, 0), "1024 bytes, but a header that counts -1 tokens means 8589935614; is it cut short?"},
        {"shard foreign token", shard, high, "byte 1028: token 12 is not below the vocabulary size 10; was it written by another tokenizer?"},
        {"safetensors empty", tensors, "", "0 bytes, too short for safetensors"},
        {"safetensors header too long", tensors, std::string(8, '\x7f') + "{}",
         "byte 0: a header of 9187201950435737471 bytes does not fit a file of 10; is this safetensors, and whole?"},
        {"safetensors not JSON", tensors, safetensors("[1,2", 0), "byte 4: the JSON ends where ',' or ']' was expected"},
        {"safetensors not an object", tensors, safetensors("[1]", 0), "byte 8: the header is not a JSON object"},
        {"safetensors hole", tensors, one_tensor("[1]", "[4,8]", 8), "tensor a: data begins at 4, expected 0: tensors must neither overlap nor leave holes"},
        {"safetensors outside", tensors, one_tensor("[2]", "[0,8]", 4), "tensor a: data_offsets [0,8] do not lie in the 4 bytes of data; is it cut short?"},
        {"safetensors shape", tensors, one_tensor("[3]", "[0,8]", 8), "tensor a: F32(3) does not fill data_offsets [0,8]"},
        {"safetensors huge shape", tensors, one_tensor("[4294967296,4294967296]", "[0,0]", 0),
         "tensor a: F32(4294967296,4294967296) does not fill data_offsets [0,0]"},
        {"safetensors rest", tensors, one_tensor("[1]", "[0,4]", 8), "8 bytes of data, more than the 4 that the header describes"},
        {"safetensors fraction", tensors, one_tensor("[0.5]", "[0,2]", 2), "tensor a: shape and data_offsets must be whole numbers"},
        {"JSON twice", json, "{\"a\":1,\"a\":2}", "byte 12: found byte 0x7d, expected no second member named 'a'"},
        {"JSON deep", json, std::string(100, '['), "byte 65: found byte 0x5b, expected at most 64 levels"},
        {"llm.c heads", llmc, header({20240326, 3, 4, 5, 1, 3, 2, 128}, 1368), "2 channels are not a multiple of 3 heads"},
        {"examples magic", examples, header({1, 1}, 0), "byte 0: found magic 1, expected 20261121 (an example shard)"},
        {"examples version", examples, header({20261121, 3, 1, 2, 2}, 0), "byte 4: found version 3, expected 1 or 2"},
        {"examples segments", examples, header({20261121, 1, 1, 4, 2}, 0), "byte 12: found 4 segments, expected 1, 2 or 3"},
        {"examples size", examples, header({20261121, 1, 1, 2, 2}, 0), "1024 bytes, but its header of 1 examples, 2 segments and 0 tokens means 1048"},
        {"examples offsets", examples, header({20261121, 1, 1, 2, 2, 0, 1}, 26), "byte 1024: offsets must run from 0 to 1"},
        {"examples none", examples, header({20261121, 1, 0, 2, 2}, 8), "holds no examples"},
        {"examples an empty response", examples, header({20261121, 1, 1, 2, 2}, 24), "example 0: segment 1, a response, is empty"},
        {"examples an empty rejected one", examples, example_shard(1, 3, 1, {}, {0, 0, 1, 1}), "example 0: segment 2, a response, is empty"},
        {"examples too long", examples, example_shard(1, 2, 2, {}, {0, 0, 1, 4, 9}), "example 1: 9 tokens do not fit the context of 8"},
        {"examples a prompt too long", examples, example_shard(1, 1, 2, {}, {0, 6, 13}), "example 1: 9 tokens do not fit the context of 8"},
        {"examples none left", fitting, example_shard(1, 2, 2, {}, {0, 7, 8, 9, 17}),
         "no example is left of 2: example 0: 9 tokens do not fit the context of 8; raise --context, or shorten them"},
        {"dialogues segments", examples, header({20261121, 2, 1, 2, 2}, 0), "byte 12: found 2 segments, expected 0 for any number"},
        {"dialogues bytes", examples, header({20261121, 2, 1, 0, 3}, 0), "byte 16: found 3 bytes a token, expected 2 or 4"},
        {"dialogues size", examples, example_shard(2, 0, 1, {0, 2}, {0, 1, 2}) + "x",
         "1069 bytes, but its header of 1 examples, 2 segments and 2 tokens means 1068"},
        {"dialogues more segments than bytes", examples, header({20261121, 2, 1, 0, 2, 0, 0, 0, -1, 0x1fffffff}, 8),
         "1032 bytes, but its header of 1 examples, 2305843009213693951 segments and 0 tokens means 1040"},
        {"dialogues first not 0", examples, example_shard(2, 0, 1, {1, 2}, {0, 1, 2}), "byte 1024: first segments must run from 0 to 2"},
        {"dialogues last", examples, example_shard(2, 0, 1, {0, 1}, {0, 1, 2}), "byte 1024: first segments must run from 0 to 2"},
        {"dialogues order", examples, example_shard(2, 0, 2, {0, 3, 2}, {0, 1, 2}), "byte 1040: first segments must ascend"},
        {"dialogues offsets order", examples, example_shard(2, 0, 1, {0, 2}, {0, 3, 2}), "byte 1056: offsets must ascend"},
        {"dialogues offsets last", examples, example_shard(2, 0, 1, {0, 2}, {1, 1, 2}), "byte 1040: offsets must run from 0 to 2"},
        {"dialogues none of an example", examples, example_shard(2, 0, 2, {0, 2, 2}, {0, 1, 2}),
         "example 1: 0 segments, expected contexts and responses in turn"},
        {"dialogues odd", examples, example_shard(2, 0, 2, {0, 3, 4}, {0, 1, 2, 3, 4}), "example 0: 3 segments, expected contexts and responses in turn"},
        {"dialogues an empty response", examples, example_shard(2, 0, 1, {0, 4}, {0, 1, 2, 3, 3}), "example 0: segment 3, a response, is empty"},
        {"dialogues foreign token", examples, example_shard(2, 0, 1, {0, 2}, {0, 1, 2}, 10), "byte 1064: token 10 is not below the vocabulary size 10"},
        {"dialogues too long", examples, example_shard(2, 0, 2, {0, 2, 6}, {0, 3, 7, 8, 9, 12, 14}), "example 1: 9 tokens do not fit the context of 8"},
        {"prompts for --answers", answers, example_shard(1, 1, 1, {}, {0, 1}),
         "prompts alone, but --answers needs dialogues or prompts and responses or preferences"},
        {"choices magic", choices, header({1, 1}, 0), "byte 0: expected magic 20240522 and version 1 of a multiple choice file"},
        {"choices cut short", choices, header({20240522, 1, 1}, 0), "byte 1024: the file ends inside example 0 of 1"},
        {"choices start", choices, header({20240522, 1, 1}, 20), "byte 1024: found 0, expected 65535, the start of example 0"},
    };
    for (auto& c : cases) {
        write_file(path, c.bytes);
        const std::string want = "1 " + path + ": " + c.line, got = error_of(c.read);
        const std::string wrong = got == want ? "" : format(": '%s', expected '%s'", got.c_str(), want.c_str());
        check(got == want, "files/%s%s", c.name, wrong.c_str());
    }
    auto error_of_shard = [](const std::string& path) { return error_of([&] { Shard(path, false); }); };
    auto error_of_model = [](const std::string& path) { return error_of([&] { open_model(path); }); };
    check(error_of_shard(DIR + "none") == "1 " + DIR + "none: cannot open: No such file or directory",
          "files/no such file");
    check(error_of_shard(DIR) == "1 " + DIR + ": is not a regular file", "files/a directory");
    mkfifo((DIR + "fifo").c_str(), 0666);
    check(error_of_shard(DIR + "fifo") == "1 " + DIR + "fifo: is not a regular file", "files/a FIFO does not block");
    fs::create_symlink("loop", DIR + "loop");
    check(one_line(error_of_model(DIR + "loop")) && one_line(error_of_model(std::string(5000, 'x'))),
          "files/a symlink loop, a path too long");
    const char* colours = "{\"a\\nb\\u001b[31m\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}";
    write_file(path, safetensors(colours, 4));
    check(one_line(error_of(tensors)), "files/a tensor name with control characters: one line");
    check(error_of([] { glob_files(DIR + "none*", "--train"); }) == "1 --train " + DIR + "none*: no such file",
          "files/a glob of nothing");
}

// ---- runs of ./train_gpt ----
static std::vector<std::string> command(const std::string& out, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {
        "./train_gpt", "train", "--train", DIR + "train.bin", "--val", DIR + "train.bin", "--init", "custom",
        "--layers", "2", "--heads", "2", "--channels", "16", "--vocab", "50", "--context", "16", "--batch", "2",
        "--tokens-per-step", "64", "--steps", "24", "--save-every", "1", "--eval-every", "6", "--eval-rows", "2",
        "--sample-every", "0", "--lr", "1e-2", "--threads", "2", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}
static std::vector<std::string> resumed(const std::string& out, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"./train_gpt", "train", "--resume", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

static std::vector<std::string> with(std::vector<std::string> words, const std::string& option,
                                     const std::string& value) {
    words[std::find(words.begin(), words.end(), option) - words.begin() + 1] = value;
    return words;
}

static int output() { return open((DIR + "output").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666); }
[[noreturn]] static void become(const std::vector<std::string>& words, const char* program = nullptr) {
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back((char*)w.c_str());
    argv.push_back(nullptr);
    execv(program ? program : argv[0], argv.data());
    _exit(127);
}
static pid_t start(const std::vector<std::string>& words, rlim_t file_size = RLIM_INFINITY,
                   const char* program = nullptr) {
    const pid_t pid = fork();
    if (pid) return pid;
    const int fd = output();
    dup2(fd, 1);
    dup2(fd, 2);
    const rlimit limit{file_size, file_size};
    if (file_size != RLIM_INFINITY) setrlimit(RLIMIT_FSIZE, &limit);
    become(words, program);
}
static int finish(pid_t pid) {
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
static void stop(pid_t pid) {
    kill(pid, SIGKILL);
    finish(pid);
}
static int execute(const std::vector<std::string>& words, rlim_t file_size = RLIM_INFINITY) {
    return finish(start(words, file_size));
}

// The last line, which on exit 1 must be the only one that begins with "error: ".
static std::string last_line() {
    std::string all = read_file(DIR + "output");
    while (!all.empty() && all.back() == '\n') all.pop_back();
    return all.substr(all.rfind('\n') + 1);
}
// What the program refuses: how it must end, and with which last line.
static void refuses(const char* name, const std::vector<std::string>& words, int code, const std::string& line) {
    const int got = execute(words);
    check(got == code && last_line() == "error: " + line, "%s: %s", name, last_line().c_str());
}
static std::string newest(const std::string& out) {
    const auto found = checkpoints_in(out);
    return found.empty() ? "" : found.back();
}
static bool same_checkpoint(const std::string& a, const std::string& b) {
    for (const char* file : {"/model.safetensors", "/optimizer.safetensors"})
        if (!exists(a + file) || !exists(b + file) || read_file(a + file) != read_file(b + file)) return false;
    return true;
}
static bool same_model(const std::string& a, const std::string& b) { return same_checkpoint(newest(a), newest(b)); }

// Whole lines: a killed run may have left the beginning of one.
static std::vector<std::string> lines_of(const std::string& path) {
    std::vector<std::string> lines;
    std::istringstream file(read_file(path));
    for (std::string line; std::getline(file, line) && !file.eof();) lines.push_back(line);
    return lines;
}
static std::vector<Json> log_of(const std::string& out) {
    std::vector<Json> log;
    for (const std::string& line : lines_of(out + "/log.jsonl")) log.push_back(parse_json(line, "log"));
    return log;
}
// Steps and losses of a log, times left out.
static std::string losses(const std::string& out) {
    std::string s;
    for (const Json& j : log_of(out)) {
        if (j["event"].string == "checkpoint") continue;                // a killed run may not have logged its save
        for (const char* key : {"step", "loss", "norm", "lr", "val_loss", "tokens"})
            if (j[key]) s += format("%s %.17g ", key, j[key].number);
    }
    return s;
}

template <typename F> static void each_event(const std::string& out, const char* event, F f) {
    for (const Json& j : log_of(out))
        if (j["event"].string == event) f(j);
}
static Json position_of(const std::string& out) { return verify_checkpoint(newest(out)); }
// Takes lines out of the newest checkpoint's state.json, as if an older program had written it, and adds some.
static void edit_state(const std::string& out, const std::vector<std::string>& names, const std::string& added = "") {
    const std::string path = newest(out) + "/state.json";
    std::string kept;
    for (const std::string& line : lines_of(path)) {
        if (line.starts_with("  \"checksum\"")) break;
        auto begins = [&](const std::string& name) { return line.starts_with("  \"" + name + "\":"); };
        if (std::none_of(names.begin(), names.end(), begins)) kept += line + "\n";
    }
    kept += added;
    write_file(path, kept + checksum_line(kept));
}

// How many checkpoints the log tells of, and how many only after a later step.
static std::pair<int, int> logged(const std::string& out) {
    int all = 0, late = 0;
    double step = 0;
    for (const Json& j : log_of(out)) {
        if (j["event"].string == "step") step = j["step"].number;
        if (j["event"].string == "checkpoint") {
            all++;
            late += j["step"].number < step;
        }
    }
    return {all, late};
}

static void runs() {
    std::vector<int> tokens(3000);
    for (int& t : tokens) t = rng.below(50);
    write_shard(DIR + "train.bin", tokens, 50);
    const std::string whole = DIR + "whole", whole_bf16 = DIR + "whole_bf16", out = DIR + "out";
    int code = 0;
    for (const std::string dtype : {"fp32", "bf16"}) {
        const std::string reference = dtype == "fp32" ? whole : whole_bf16;
        const double began = seconds();
        code = execute(command(reference, {"--dtype", dtype}));
        const double duration = seconds() - began;
        check(code == 0, "run/a whole run in %s: exit %d, %s", dtype.c_str(), code, last_line().c_str());
        for (const char* threads : {"1", "5"}) {
            fs::remove_all(out);
            code = execute(with(command(out, {"--dtype", dtype}), "--threads", threads));
            check(code == 0 && same_model(reference, out), "run/%s, %s threads give the bits of 2", dtype.c_str(),
                  threads);
        }

        const int kills = STRESS ? 200 : dtype == "fp32" ? 16 : 4;
        int went_on = 0, survived = 0;
        for (int k = 0; k < kills; k++) {
            fs::remove_all(out);
            pid_t pid = start(command(out, {"--dtype", dtype}));
            usleep(rng.below(uint64_t(0.9e6 * duration)));
            kill(pid, SIGKILL);
            survived += finish(pid) == 0;
            went_on += execute(command(out, {"--dtype", dtype, "--resume"})) == 0 && same_model(reference, out) &&
                       losses(out) == losses(reference) && same_checkpoint(reference + "/best", out + "/best");
        }
        check(went_on == kills, "run/%s, killed at %d instants (%d had ended), %d resumed to the same bits%s",
              dtype.c_str(), kills, survived, went_on, went_on == kills ? "" : last_line().c_str());
    }
    check(!same_model(whole, whole_bf16), "run/bf16 is not fp32");
    // A run goes on in the unit that it began in, or says that it cannot.
    const char* const told[] = {"bf16 rounded and multiplied", "bf16 in dot products", "bf16 on AMX"};
    const std::string own = position_of(whole_bf16)["unit"].string;
    for (int u : {0, 1, 2, 3}) {
        const std::string kept = u == 3 ? "abacus" : UNITS[u];
        fs::remove_all(out);
        fs::copy(whole_bf16, out, fs::copy_options::recursive);
        edit_state(out, {"unit"}, kept.empty() ? "" : "  \"unit\": \"" + kept + "\",\n");
        code = execute(with(command(out, {"--dtype", "bf16", "--resume"}), "--steps", "26"));
        const std::string output = read_file(DIR + "output"), now = position_of(out)["unit"].string;
        const std::string warning = "were made in a unit that is not here, '" + kept + "'";
        const bool here = u < 3 && has(Unit(u)), warned = output.find(warning) != output.npos;
        check(code == 0 && now == (here ? kept : own) && warned == !here &&
                  (!here || output.find(told[u]) != output.npos),
              "run/resumed with products in unit '%s': exit %d, in '%s'%s", kept.c_str(), code, now.c_str(),
              warned ? ", which it says" : "");
    }

    for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
        fs::remove_all(out);
        pid_t pid = start(with(with(command(out), "--save-every", "0"), "--eval-every", "0"));
        auto began = [&] {
            const std::string log = out + "/log.jsonl";
            return fs::exists(log) && read_file(log).find("\"step\": 2,") != std::string::npos;
        };
        for (int i = 0; i < 1000 && !began(); i++) usleep(2000);
        kill(pid, signal);
        code = finish(pid);
        const std::string end = last_line();
        const bool says_so = end.starts_with("stopped after step ") &&
                          end.find("./train_gpt train --resume --out " + out) != end.npos;
        check(code == 0 && says_so && logged(out).first == 1, "run/signal %d: exit %d, %s", signal, code, end.c_str());
        code = execute(resumed(out));
        check(code == 0 && same_model(whole, out), "run/resumed after signal %d with nothing but --out", signal);
    }

    fs::remove_all(out);
    pid_t pid = start(with(command(out), "--steps", "100000"));
    for (int i = 0; i < 1000 && newest(out).empty(); i++) usleep(2000);
    kill(pid, SIGSTOP);                                                // so that only one writes its output
    refuses("run/a second writer", command(out, {"--resume"}), 1, out + ": another train_gpt is writing there");
    stop(pid);
    code = execute(command(out));
    const char* advice = "is not empty; choose another --out, or go on with --resume";
    check(code == 1 && last_line().find(advice) != std::string::npos,
          "run/a directory that is not empty: %s", last_line().c_str());

    fs::remove_all(out);
    fs::create_directories(out);
    write_file(out + "/thesis.partial", "x");
    write_file(out + "/log.jsonl", "{\"event\": \"run\", \"step\": 0, \"options\": {\"batch\": \"0\"}}\n");
    refuses("run/a log with a wrong option", resumed(out, {"--train", DIR + "train.bin"}), 1,
            out + "/log.jsonl: --batch 0: must lie in 1..1048576");
    check(fs::exists(out + "/thesis.partial"), "run/a resumed run leaves other files alone");
    struct { const char *option, *value, *line; } changed[] = {
        {"--lr", "2e-2", "--lr 0.02: the run in OUT has 0.01, and a resumed run must not differ in it"},
        {"--layers", "3", "--layers 3: the run in OUT has 2, and a resumed run must not differ in it"},
        {"--tokens-per-step", "128", "--tokens-per-step 128: the run in OUT has 64, and a resumed run must not differ in it"},
        {"--steps", "3", "--steps 3: the run in OUT has done 24 already"},
        {"--seed", "2", "--seed 2: the run in OUT has 1, and a resumed run must not differ in it"},
        {"--dtype", "bf16", "--dtype bf16: the run in OUT has fp32, and a resumed run must not differ in it"}};
    for (auto& c : changed) {
        std::string line = c.line;
        line.replace(line.find("OUT"), 3, whole);
        code = execute(resumed(whole, {c.option, c.value}));
        check(code == 2 && last_line().starts_with("error: " + line), "run/resumed with another %s: %s", c.option,
              last_line().c_str());
    }

    // A disk that fills: files may not grow beyond a part of the checkpoint.
    for (rlim_t limit : {2000, 20000, 40000}) {
        fs::remove_all(out);
        execute(with(command(out), "--steps", "5"));
        const std::string before = newest(out);
        code = execute(resumed(out, {"--steps", "9"}), limit);
        std::string line = last_line(), damage = error_of([&] { verify_checkpoint(newest(out)); });
        check(code == 1 && line.rfind("error: ", 0) == 0 && line.find("File too large") != line.npos &&
                  newest(out) == before && damage.empty(),
              "run/no file above %d bytes: %s", (int)limit, line.c_str());
    }
    code = execute({"./train_gpt", "train", "--train", DIR + "train.bin", "--init", "d48", "--context", "16",
                    "--batch", "1000000", "--out", out + "_huge"});
    check(code == 1 && last_line().rfind("error: not enough memory: ", 0) == 0 &&
              last_line().find("GB available; lower --batch or --context") != std::string::npos,
          "run/a batch beyond the memory: %s", last_line().c_str());
    double need = 0, weights = 0, gradients = 0, moments = 0, activations = 0;
    sscanf(last_line().c_str(),
           "error: not enough memory: %lf GB: weights %lf, gradients %lf, moments %lf, activations %lf",
           &need, &weights, &gradients, &moments, &activations);
    check(weights > 0 && std::abs(gradients - weights) <= 0.011 && std::abs(moments - 2 * weights) <= 0.021
          && std::abs(need - weights - gradients - moments - activations) <= 0.031,
          "run/a batch beyond the memory: a gradient and two moments of each weight, and the sum of all");
    write_file(DIR + "plain", "x");
    refuses("run/a directory that cannot be made", command(DIR + "plain/out"), 1,
            DIR + "plain/out: cannot create: Not a directory");
    refuses("run/a directory that cannot be written", command("/proc/nowhere"), 1,
            "/proc/nowhere: cannot create: No such file or directory");
    // the same on a real full file system, where a user namespace may mount one
    fs::remove_all(out);
    fs::create_directories(out);
    std::string line = "unshare -rm sh -c 'mount -t tmpfs -o size=200k none " + out;
    line += " && cd . && exec ./train_gpt train";
    auto words = command(out + "/run", {"--keep", "100"});
    for (size_t i = 2; i < words.size(); i++) line += " " + words[i];
    line += "' 2>&1; echo exit $?";
    code = execute({"/bin/sh", "-c", line});
    std::string output = read_file(DIR + "output");
    const size_t error = output.find("error: ");
    if (error == output.npos && output.find("step ") == output.npos)
        return skip("run/a full tmpfs: no user namespaces here");
    check(output.find("No space left on device") != output.npos && last_line() == "exit 1", "run/a full tmpfs: %s",
          output.substr(error).c_str());
}

// ---- checkpoints that are written while training goes on ----
// A step on two tokens of a model like this takes far less time than its checkpoint does.
static std::vector<std::string> overlapping(const std::string& out, int steps, int save_every,
                                            std::vector<std::string> more = {"--keep", "9"}) {
    std::vector<std::string> words = {
        "./train_gpt", "train", "--train", DIR + "train.bin", "--init", "custom", "--layers", "4", "--heads", "2",
        "--channels", "192", "--vocab", "50", "--context", "2", "--batch", "1", "--steps", std::to_string(steps),
        "--save-every", std::to_string(save_every), "--schedule", "constant", "--eval-every", "0",
        "--sample-every", "0", "--threads", "2", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}
static bool partial_in(const std::string& out) {
    for (auto& entry : entries_of(out)) if (is_step(entry, ".partial")) return true;
    return false;
}

static void checkpoints() {
    const std::string one = DIR + "one", out = DIR + "overlapping", eighth = out + "/step_00000008";
    int code = execute(overlapping(one, 8, 0));
    check(code == 0 && logged(one) == std::pair(1, 0), "checkpoints/one, at the end: exit %d, %s", code,
          last_line().c_str());
    code = execute(overlapping(out, 40, 8));
    auto [all, late] = logged(out);
    check(code == 0 && all == 5 && late > 0 && same_checkpoint(newest(one), eighth),
          "checkpoints/what is written is the state of its step: of %d, %d were whole after later steps", all, late);

    // killed while one is written and training goes on
    fs::remove_all(out);
    bool caught = false;
    integer last = 0;
    for (int tries = 0; tries < 20 && !caught; tries++) {
        fs::remove_all(out);
        const pid_t pid = start(overlapping(out, 100000, 8, {"--keep", "1"}));
        const double began = seconds();
        for (bool midway = false; !midway && seconds() - began < 10; usleep(300)) {
            const std::string log = fs::exists(out + "/log.jsonl") ? read_file(out + "/log.jsonl") : "";
            const size_t at = log.rfind("\"step\": ", log.rfind('\n'));
            last = at == log.npos ? 0 : atoll(&log[at + 8]);
            midway = last > 16 && last % 8 > 0 && partial_in(out);
        }
        stop(pid);
        caught = partial_in(out) && !newest(out).empty();
    }
    const std::string kept = newest(out), error = error_of([&] { verify_checkpoint(kept); });
    check(caught && error.empty(), "checkpoints/killed in step %lld while one was written, %s is whole", last,
          kept.c_str());
    const int goal = int(last) + 3;
    fs::remove_all(one);
    bool good = execute(overlapping(out, goal, 0, {"--resume"})) == 0 && !partial_in(out);
    good = good && execute(overlapping(one, goal, 0)) == 0 && same_model(one, out) && losses(one) == losses(out);
    check(good, "checkpoints/resumed after it, to the same bits: %s", last_line().c_str());

    // a disk that fills while training goes on
    fs::remove_all(out);
    execute(overlapping(out, 4, 0));
    const std::string before = newest(out);
    code = execute(overlapping(out, 40, 8, {"--resume"}), 1 << 20);
    std::string line = last_line();
    const std::string want = "error: " + eighth + ".partial/model.safetensors: cannot write: File too large";
    check(code == 1 && line == want && newest(out) == before && !partial_in(out) && logged(out).first == 1,
          "checkpoints/a disk that fills: exit %d, %s", code, line.c_str());

    // numbers that overflow while one is written: it is waited for, and named. Decay makes weights -1000 times as large
    // a step.
    fs::remove_all(out);
    code = execute(overlapping(out, 40, 1, {"--lr", "1", "--weight-decay", "1000", "--clip", "0"}));
    line = last_line();
    const std::string whole = newest(out);
    check(code == 1 && !whole.empty() && line.find(" is not finite; last good checkpoint: " + whole) != line.npos &&
              line.find(format("error: step %d: ", atoi(&whole[whole.size() - 8]) + 1)) == 0,
          "checkpoints/a loss that is not finite: exit %d, %s", code, line.c_str());

    // no memory for a copy: training waits, to the same bits
    fs::remove_all(out);
    fs::remove_all(one);
    execute(overlapping(one, 8, 0));
    write_file(DIR + "meminfo", "MemAvailable: 36000 kB\n");
    std::string words;
    for (const std::string& word : overlapping(out, 40, 8)) words += word + " ";
    const std::string mount = "mount --bind " + DIR + "meminfo /proc/meminfo";
    code = execute({"/bin/sh", "-c", "exec unshare -rm sh -c '" + mount + " && exec " + words + "'"});
    if (!fs::exists(out)) return skip("checkpoints/without memory for a copy: no user namespaces here");
    check(code == 0 && logged(out) == std::pair(5, 0) && same_checkpoint(newest(one), eighth),
          "checkpoints/without memory for a copy: exit %d, %s", code, last_line().c_str());
}

// ---- where a run stands, and what it must be given again ----
static void resuming() {
    const std::string one = DIR + "tokenized", out = DIR + "resumed", two = DIR + "it's two.bin";
    auto fresh = [&](std::vector<std::string> words) {
        fs::remove_all(out);
        return execute(words);
    };

    // Weights that do not move: every epoch of 187 windows, of which the last step has 3 of 4, must sum up to the same
    // loss.
    auto words = with(with(command(out, {"--schedule", "constant"}), "--steps", "1"), "--lr", "0");
    *std::find(words.begin(), words.end(), "--steps") = "--epochs";
    int code = fresh(words);
    auto sums = [&] {
        std::vector<double> epochs;
        double before = 0;
        each_event(out, "step", [&](const Json& j) {
            const double windows = j["tokens"].number / 16 - before;
            epochs.resize(std::max<size_t>(epochs.size(), 1 + size_t(before / 187)));
            epochs[before / 187] += windows * j["loss"].number;
            before += windows;
        });
        epochs.push_back(before);
        return epochs;
    };
    const auto was = sums();
    code += execute(resumed(out, {"--epochs", "2"}));
    const auto is = sums();
    const bool same = is.size() == 3 && std::abs(is[0] - is[1]) < 2e-6 * is[0];
    check(code == 0 && was[1] == 187 && same && is[2] == 374 && position_of(out)["window"].number == 374,
          "resuming/after a partial step comes the next window: %g windows, losses %.3f and %.3f", is.back(), is[0],
          is[1]);
    code = fresh(words);
    edit_state(out, {"window", "data", "lowest", "fingerprint"});
    code += execute(resumed(out, {"--epochs", "2"}));
    const bool said = read_file(DIR + "output").find("state.json: has no fingerprint") != std::string::npos;
    check(code == 0 && said && sums() == is,
          "resuming/a checkpoint that does not name its window, nor what its program computes: %s",
          last_line().c_str());
    refuses("resuming/fewer epochs", resumed(out, {"--epochs", "1.5"}), 2,
            "--epochs 1.5: the run in " + out + " has seen 374 windows already, and an epoch has 187");

    // the same data elsewhere, under another name; from another directory
    write_file(DIR + "given.txt", "a b\n");
    write_file(DIR + "same.txt", "#version: 0.2\na b\n");
    write_file(DIR + "other.txt", "b a\n");
    const auto with_given = command(one, {"--tokenizer", DIR + "given.txt", "--schedule", "constant"});
    const auto tokenized = with(with_given, "--vocab", "258");
    code = execute(tokenized) + fresh(with(with(tokenized, "--out", out), "--steps", "6"));
    fs::copy(DIR + "train.bin", two);
    code += execute(resumed(out, {"--steps", "12", "--train", two, "--val", two, "--tokenizer", DIR + "same.txt"}));
    const std::string program = fs::current_path().string() + "/train_gpt";
    const std::string elsewhere = program + " train --resume --steps 24 --out ../../" + out;
    code += execute({"/bin/sh", "-c", "cd " + DIR + " && exec " + elsewhere});
    check(code == 0 && losses(one) == losses(out),
          "resuming/data and tokenizer elsewhere, and from another directory: %s", last_line().c_str());
    const std::string given = position_of(out)["data"]["train"].string;
    for (int changed : {1024, 4000, 7023}) {                 // the first token, one in the middle, half of the last
        std::string bytes = read_file(DIR + "train.bin");
        bytes[changed] ^= changed == 7023 ? 0 : 1;
        if (changed == 7023) {
            bytes.resize(7022);
            bytes[8]--;
        }
        write_file(DIR + "changed.bin", bytes);
        for (const char* option : {"--train", "--val"}) {
            code = execute(resumed(out, {"--steps", "30", option, DIR + "changed.bin"}));
            const std::string begins = format("error: %s %schanged.bin: ", option, DIR.c_str());
            const std::string told = ", but the run in " + out + " was given other data: " + given;
            check(code == 1 && last_line().starts_with(begins) && last_line().find(told) != std::string::npos,
                  "resuming/another %s: %s", option, last_line().c_str());
        }
    }
    refuses("resuming/another tokenizer", resumed(out, {"--steps", "30", "--tokenizer", DIR + "other.txt"}), 2,
            "--tokenizer " + DIR + "other.txt: is not that of the run in " + out);
    edit_state(out, {"data"});
    code = execute(resumed(out, {"--steps", "30", "--train", DIR + "train.bin"}));
    check(code == 2 && last_line().find(", and a resumed run must not differ in it") != std::string::npos,
          "resuming/a checkpoint that does not know its data: %s", last_line().c_str());

    // the lowest validation loss: too high a rate makes a middle one the best
    auto lowest = [&] {
        double loss = INFINITY, step = 0;
        each_event(out, "eval", [&](const Json& j) {
            if (!(j["val_loss"].number < loss)) return;
            loss = j["val_loss"].number;
            step = j["step"].number;
        });
        return step;
    };
    const auto constant = command(out, {"--schedule", "constant"});
    const auto steep = with(with(with(constant, "--lr", "0.03"), "--save-every", "0"), "--eval-every", "2");
    code = fresh(steep);
    auto holds = [&](double step) {
        const std::string error = error_of([&] {
            if (verify_checkpoint(out + "/best")["step"].number != step) die("not that step");
        });
        return error.empty();
    };
    const double best = lowest();
    check(code == 0 && best > 0 && best < 24 && holds(best) && checkpoints_in(out).size() == 2 &&
              newest(out) == out + "/step_00000024",
          "resuming/the best is of step %g, beside %zu others", best, checkpoints_in(out).size());
    code = execute(resumed(out, {"--steps", "26", "--keep", "1"}));
    check(code == 0 && holds(lowest()) && checkpoints_in(out).size() == 1,
          "resuming/the best so far is known: still of step %g", lowest());
    code = fresh(with(steep, "--steps", format("%g", best)));
    fs::remove_all(out + "/best");                           // as a kill between two renames leaves it
    code += execute(resumed(out));
    check(code == 0 && holds(best), "resuming/the best is made again");

    // saved by time, and by nothing else
    const auto timed = command(out, {"--save-minutes", "0.0002", "--keep", "99"});
    const auto slow = with(with(timed, "--save-every", "0"), "--eval-every", "0");
    int saves = 0;
    for (int steps = 400; saves <= 3 && steps < 100000; steps *= 4) {    // as many as this machine takes a while for
        code = fresh(with(slow, "--steps", format("%d", steps)));
        saves = logged(out).first;
    }
    code += fresh(with(slow, "--save-minutes", "0"));
    check(code == 0 && saves > 3 && logged(out).first == 1, "resuming/saved by time: %d times, or %d", saves,
          logged(out).first);

    // hung up under nohup; stopped while who reads its output leaves, too
    fs::remove_all(out);
    pid_t pid = start({"/bin/sh", "-c", "trap '' HUP; exec \"$0\" \"$@\"", "./train_gpt", "train",
                       "--train", DIR + "train.bin", "--init", "custom", "--layers", "2", "--heads", "2",
                       "--channels", "16", "--vocab", "50", "--context", "16", "--steps", "200",
                       "--sample-every", "0", "--out", out});
    for (int i = 0; i < 2000 && !fs::exists(out + "/log.jsonl"); i++) usleep(2000);
    kill(pid, SIGHUP);
    code = finish(pid);
    check(code == 0 && newest(out) == out + "/step_00000200",
          "resuming/SIGHUP that was ignored at the start: exit %d, %s", code, last_line().c_str());
    fs::remove_all(out);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) die("no pipe");
    words = with(command(out), "--steps", "100000");
    pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        dup2(output(), 2);
        become(words);
    }
    close(ends[1]);
    FILE* reader = fdopen(ends[0], "r");
    for (char line[4096]; fgets(line, sizeof line, reader) && !strstr(line, "step 3/");) {}
    kill(pid, SIGHUP);
    fclose(reader);
    code = finish(pid);
    const std::string log = read_file(out + "/log.jsonl"), left = newest(out);
    const bool last = log.find("\"step\": " + std::to_string(atoll(&left[left.size() - 8]) + 1) + ",") == log.npos;
    check(code == 1 && last_line() == "error: standard output: cannot write: Broken pipe" && !left.empty() && last,
          "resuming/hung up with the reader of its output: exit %d, %s", code, last_line().c_str());

    // read while it is written
    fs::remove_all(out);
    pid = start(with(with(command(out, {"--keep", "1"}), "--steps", "100000"), "--eval-every", "1"));
    for (int i = 0; i < 2000 && !exists(out + "/best"); i++) usleep(2000);
    int bad = 0;
    for (int i = 0; i < 40; i++) {
        std::string path = i % 2 ? out : out + "/best";
        const std::string error = error_of([&] {
            const Held held = hold_newest(path);
            const ModelFile m = open_model(path);
            for (int k = 0; k < 3; k++) {
                usleep(3000);
                Mapped(m.directory + "/state.json");
                Mapped(m.directory + "/optimizer.safetensors");
            }
            verify_checkpoint(m.directory);
        });
        bad += !error.empty();
        if (!error.empty()) printf("%s\n", error.c_str());
    }
    const bool alive = waitpid(pid, nullptr, WNOHANG) == 0;
    stop(pid);
    check(bad == 0 && alive, "resuming/read 40 times while it is written: %d failed", bad);
}

// ---- how the program is started ----
static void starting() {
    const std::string program = fs::absolute("train_gpt").string(), link = fs::absolute(DIR + "a link").string();
    const std::string bytes = read_file(program);
    unsetenv("GOMP_SPINCOUNT");                              // without it the program starts itself again
    auto version = [&](const char* how, const std::vector<std::string>& words) {
        const bool is_path = words[0][0] == '/' && exists(words[0]);
        const int code = finish(start(words, RLIM_INFINITY, is_path ? nullptr : program.c_str()));
        check(code == 0 && last_line().rfind("train_gpt ", 0) == 0, "starting/%s: %s", how, last_line().c_str());
    };
    const size_t ends = bytes.find('\0', bytes.find("/ld")), begins = bytes.rfind('\0', ends - 1) + 1;
    const std::string loader = bytes.substr(begins, ends - begins);
    fs::create_symlink(program, link);
    version("the program", {program, "--version"});
    version("a link to it", {link, "--version"});
    version("under no name", {"", "--version"});
    version("under another's name", {"/no/such/program", "--version"});
    if (loader[0] != '/' || !exists(loader)) skip("starting/through the loader: the program names none");
    else version(loader.c_str(), {loader, program, "--version"});
    const int code = execute({program, "-h"});
    check(code == 0 && read_file(DIR + "output").starts_with("train_gpt -- "), "starting/-h");
    const struct { std::vector<std::string> words; const char* line; } tools[] = {
        {{"build/shards", "encode", "--val_tokens", "3", "--tokeniser=x"},
         "error: --tokeniser: unknown option, nearest is --tokenizer; shards --help lists them"},
        {{"build/corpus", "--document", "3"}, "error: --document: unknown option, nearest is --documents; corpus --help lists them"},
        {{"build/corpus", "-h"}, "  --seed             0..1000000000000000000       of all that is drawn [1]"}};
    for (auto& t : tools) {
        execute(t.words);
        check(last_line() == t.line, "starting/%s: %s", t.words[0].c_str(), last_line().c_str());
    }
}

// ---- numbers that are not finite, and a file that shrinks ----
static void broken() {
    const std::string bad = DIR + "not_finite";
    fs::remove_all(bad);
    fs::copy(newest(DIR + "whole"), bad);
    fs::remove(bad + "/state.json");
    std::string bytes = read_file(bad + "/model.safetensors");
    uint64_t header;
    memcpy(&header, bytes.data(), 8);
    const float nan = NAN;
    memcpy(&bytes[8 + header], &nan, 4);
    write_file(bad + "/model.safetensors", bytes);
    const std::string where = bad + "/model.safetensors: tensor 'transformer.wte.weight': row 0, column 0 is nan";
    refuses("run/a weight that is NaN",
            {"./train_gpt", "train", "--train", DIR + "train.bin", "--init", bad, "--steps", "3", "--out",
             DIR + "not_finite_run"}, 1, where);
    refuses("run/sample, a weight that is NaN", {"./train_gpt", "sample", "--model", bad}, 1, where);

    // data and model that were made with different tokenizers
    fs::create_directories(DIR + "other");
    fs::copy(DIR + "train.bin", DIR + "other/train.bin", fs::copy_options::overwrite_existing);
    write_file(DIR + "other/merges.txt", "a b\n");
    write_file(bad + "/merges.txt", "c d\n");
    refuses("run/two tokenizers",
            {"./train_gpt", "train", "--train", DIR + "other/train.bin", "--init", bad, "--out", DIR + "other_run"}, 1,
            DIR + "other: the tokenizer there is not that of " + bad +
                "; encode the text with the model's, or say which is right with --tokenizer");

    cpu::Model model(config_of(open_model(newest(DIR + "whole")), 0), 1, 4, true);
    auto first_bad = [&] { return first_not_finite(stored(model, false, {{"gradient of ", GRADIENT}})); };
    check(first_bad() == "", "files/gradients that are finite");
    for (size_t i = 0; i < model.layout.tensors.size(); i++) {       // as backward leaves them: all before it are bad
        if (!model.layout.tensors[i].present) continue;
        std::vector<float> g(model.layout.tensors[i].count(), i % 2 ? INFINITY : NAN);
        model.set(GRADIENT, i, g.data());
        const std::string named = first_bad(), name = "gradient of " + model.layout.tensors[i].name;
        if (i % 7 == 0 || named != name) check(named == name, "files/the first bad gradient: %s", named.c_str());
    }

    write_file(DIR + "shrinks", std::string(1 << 20, 'x'));
    const pid_t pid = fork();
    if (pid == 0) {
        const int fd = output();
        dup2(fd, 1);
        dup2(fd, 2);
        _exit(run_main([] {
            Mapped m(DIR + "shrinks");
            fs::resize_file(DIR + "shrinks", 1);
            if (m.text().find('y') != m.text().npos) puts("found");
        }));
    }
    const int code = finish(pid);
    check(code == 1 && last_line() == "error: a file was cut short while it was read",
          "files/cut short while it is read: %s", last_line().c_str());
}

// ---- damage to a checkpoint of ours ----
static void damage() {
    const std::string good = newest(DIR + "whole"), bad = DIR + "bad";
    Config c = config_of(open_model(good), 0);
    cpu::Model model(c, 1, 1, true);
    bool resumed = true;                     // who reads the model alone needs no optimizer
    auto load = [&] {
        if (resumed) verify_checkpoint(bad);
        ModelFile m = open_model(bad);
        load_tensors(stored(model), m.tensors, m.path);
        Safetensors moments(bad + "/optimizer.safetensors");
        load_tensors(stored(model, false, MOMENTS), moments.tensors, moments.file.path);
    };
    std::vector<std::string> names;
    for (auto& entry : fs::directory_iterator(good)) names.push_back(entry.path().filename().string());
    fs::remove_all(bad);
    fs::copy(good, bad);
    check(error_of(load).empty(), "damage/an undamaged copy loads");
    size_t cut = 0, unseen = 0;
    auto quick_write = [&](const std::string& path, const std::string& bytes) {             // without fsync
        int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (write(fd, bytes.data(), bytes.size()) != (ssize_t)bytes.size()) die("%s: cannot write", path.c_str());
        close(fd);
    };
    for (auto& name : names) {
        const std::string bytes = read_file(good + "/" + name);
        resumed = name == "optimizer.safetensors";
        for (size_t n = 0; n < bytes.size(); n += STRESS ? 1 : 1 + bytes.size() / 700) {
            quick_write(bad + "/" + name, bytes.substr(0, n));
            unseen += !one_line(error_of(load));
            cut++;
        }
        quick_write(bad + "/" + name, bytes);
    }
    check(unseen == 0 && cut > 0, "damage/%zu truncations, %zu unseen", cut, unseen);
    const int corruptions = STRESS ? 10000 : 2000;
    for (int k = 0; k < corruptions; k++) {
        const std::string& name = names[rng.below(names.size())];
        const std::string bytes = read_file(good + "/" + name);
        std::string changed = bytes;
        for (uint64_t flips = 1 + rng.below(3); flips; flips--) changed[rng.below(bytes.size())] ^= 1 << rng.below(8);
        if (changed == bytes) changed[0] ^= 1;
        quick_write(bad + "/" + name, changed);
        resumed = name == "optimizer.safetensors";
        unseen += !one_line(error_of(load));
        quick_write(bad + "/" + name, bytes);
    }
    check(unseen == 0, "damage/%d corruptions, %zu unseen", corruptions, unseen);
    // the same files as foreign ones, without state.json: one line, or a clean load
    fs::remove(bad + "/state.json");
    size_t refused = 0, other = 0;
    for (int k = 0; k < corruptions; k++) {
        const std::string name = k % 3 ? "model.safetensors" : "config.json", bytes = read_file(good + "/" + name);
        std::string changed = bytes;
        changed[rng.below(std::min<size_t>(bytes.size(), 4000))] ^= 1 << rng.below(8);
        quick_write(bad + "/" + name, changed);
        std::string error = error_of([&] {
            ModelFile m = open_model(bad);
            const Config f = config_of(m, 0);
            if ((double)f.L * f.C * f.C < 1e6 && (double)(f.V + f.T) * f.C < 1e6) {
                cpu::Model fresh(f, 1, 1, false);
                load_tensors(stored(fresh), m.tensors, m.path);
            }
        });
        refused += one_line(error);
        other += !error.empty() && !one_line(error);
        quick_write(bad + "/" + name, bytes);
    }
    check(other == 0 && refused > 0, "damage/%d foreign corruptions: %zu refused, the rest loaded", corruptions,
          refused);
}

// Which completion is chosen in all, a token and a byte, against sums that are made one token at a time.
static void choices() {
    Rng own(5);                              // other tests draw from the one above
    const char* merges = "\u0120 t\nh e\n\u0120t he\na t\n\u0120 m\no g\nz z\n";
    const Tokenizer tokenizer = Tokenizer::from_merges(merges, "merges");
    Config c;
    c.L = c.NH = 1;
    c.C = 16;
    c.V = tokenizer.vocab();
    c.T = 40;
    cpu::Model model(c, 4, c.T, false);
    for (size_t i = 0; i < model.layout.tensors.size(); i++) {
        std::vector<float> v(model.layout.tensors[i].count());
        for (float& f : v) f = own.normal();
        model.set(WEIGHT, i, v.data());
    }
    const std::vector<std::string> texts = {" the cat", "dog", " on the mat and the log", " a", "zzzzzz", " mat",
                                            "the"};
    std::string file = header({20240522, 1, 40}, 0);
    auto put = [](std::string& to, const std::vector<int>& words) {
        for (int w : words) to.append((const char*)&w, 2);
    };
    std::array<int, 3> want = {};
    int apart = 0;                           // examples for which the three choose differently
    for (int e = 0; e < 40; e++) {
        const std::vector<int> context = tokenizer.encode(texts[own.below(texts.size())] + ",");
        const int options = 2 + own.below(3), label = own.below(options);
        std::string body;
        std::array<double, 3> best = {-INFINITY, -INFINITY, -INFINITY};
        std::array<int, 3> chosen;
        put(body, {label, options, (int)context.size()});
        put(body, context);
        for (int k = 0; k < options; k++) {
            const std::string text = texts[own.below(texts.size())];
            const std::vector<int> completion = tokenizer.encode(text);
            put(body, {(int)completion.size()});
            put(body, completion);
            std::vector<int> x = context;
            double sum = 0;
            for (int token : completion) {
                std::vector<float> z(c.V);
                model.extend(x.data(), 1, 0, x.size());
                model.logits(x.size() - 1, 1, 1, z.data());
                double total = 0;
                for (float f : z) total += std::exp((double)f);
                sum += z[token] - std::log(total);
                x.push_back(token);
            }
            const double lengths[] = {1, (double)completion.size(), (double)text.size() - (text[0] == ' ')};
            for (int r = 0; r < 3; r++) {
                if (!(sum / lengths[r] > best[r])) continue;
                best[r] = sum / lengths[r];
                chosen[r] = k;
            }
        }
        for (int r = 0; r < 3; r++) want[r] += chosen[r] == label;
        apart += chosen[0] != chosen[1] || chosen[1] != chosen[2];
        put(file, {65535, (int)body.size() + 6, e});
        file += body;
    }
    write_file(DIR + "choices.bin", file);
    const auto right = multiple_choice(model, Choices(DIR + "choices.bin", c.V, c.T), &tokenizer).right;
    check(right == want && apart > 4,
          "choices/right in all, a token, a byte: %d %d %d, expected %d %d %d; %d times apart", right[0], right[1],
          right[2], want[0], want[1], want[2], apart);
}

// What a sample without a prompt continues: an end of text, if texts have ends; else what they begin with.
static void beginnings() {
    auto begins = [](const std::vector<int>& tokens, int eot, int T) {
        std::string file = header({20240520, 1, (int)tokens.size()}, 0);
        for (int t : tokens) file.append((const char*)&t, 2);
        write_file(DIR + "begins.bin", file);
        return beginning_of(Shard(DIR + "begins.bin", false), eot, T);
    };
    std::vector<int> book(100, 7), first = {9, 1, 2, 3, 4};
    std::copy(first.begin(), first.end(), book.begin());
    using Ids = std::vector<int>;
    const bool whole = begins(book, 9, 10) == first, tiny = begins({3}, 9, 1) == Ids({3});
    const bool unmarked = begins(book, -1, 4) == Ids({9, 1});
    book[60] = 9;
    check(whole && unmarked && tiny && begins(book, 9, 10) == Ids({9}),
          "files/what samples without a prompt begin with: %d %d %d", whole, unmarked, tiny);
}

int main() {
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGHUP, SIG_DFL);                 // or programs started here ignore it, too, under nohup
    fs::remove_all(DIR);
    fs::create_directories(DIR);
    try {
        wrong_files();
        choices();
        beginnings();
        runs();
        checkpoints();
        resuming();
        starting();
        broken();
        damage();
    } catch (const Error& e) { check(false, "files: %s", e.line.c_str()); }
    return failed > 0;
}
