/* test/test_cases.cpp -- what users of other tools bring. Each file here is made as such a tool makes it: it is taken
   where that can mean one thing only, and else named in one line, by every reader that might be given it. */
#define NO_CPU_MAIN
#define NO_SHARDS_MAIN
#include "../train_gpt.cpp"
#include "../dev/data/shards.cpp"
#include "check.h"
#include <pty.h>
#include <sys/wait.h>

static const std::string DIR = "build/test_cases_data/";
static Rng rng(12);
using Ids = std::vector<int>;
using namespace std::string_literals;

// What f() dies of, "" if it does not, and what it prints meanwhile.
template <typename F> static std::string error_of(F f, std::string* output = nullptr) {
    fflush(stdout);
    fflush(stderr);
    const int out = dup(1), err = dup(2);
    const int file = open((DIR + "output").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0666);
    dup2(file, 1);
    dup2(file, 2);
    std::string line;
    try {
        f();
    } catch (const Error& e) { line = e.line; }
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    for (int fd : {out, err, file}) close(fd);
    if (output) *output = read_file(DIR + "output");
    return line;
}
static bool has(const std::string& s, const std::string& words) { return s.find(words) != s.npos; }
static std::string one_line_with(const std::string& error, const std::string& words) {       // "" if it is that
    if (has(error, words) && !has(error, "\n") && error.size() < 1100) return "";
    return format(": '%s', expected '%s'", error.c_str(), words.c_str());
}
template <typename F> static void dies(const char* name, const std::string& words, F f) {
    const std::string wrong = one_line_with(error_of(f), words);
    check(wrong.empty(), "cases/%s%s", name, wrong.c_str());
}
using Words = std::vector<std::string>;
static Words joined(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}
static std::string run(const Words& words, std::string* error = nullptr) {
    std::string output, line = error_of([&] { run_verb<cpu::Model>(parse_options(words)); }, &output);
    if (error) *error = line;
    return error || line.empty() ? output : "error: " + line;
}
static std::string shards_run(const Words& words, std::string* error = nullptr) {
    auto show = [&] { fputs(shards::run(shards::parse_arguments(words)).c_str(), stdout); };
    std::string output, line = error_of(show, &output);
    if (error) *error = line;
    return error || line.empty() ? output : "error: " + line;
}
// f() with a file as standard input.
template <typename F> static auto with_input(const std::string& path, F f) {
    const int keep = dup(0), file = open(path.c_str(), O_RDONLY);
    dup2(file, 0);
    const auto result = f();
    dup2(keep, 0);
    close(keep);
    close(file);
    return result;
}
static std::string header(std::vector<int32_t> fields, size_t payload) {
    fields.resize(256);
    return std::string((char*)fields.data(), 1024) + std::string(payload, '\0');
}
static std::string utf16(const std::string& ascii, bool big) {
    std::string s;
    for (char c : ascii) s += big ? std::string{'\0', c} : std::string{c, '\0'};
    return s;
}
template <typename T> static std::string numbers(size_t n, int below) {
    std::string s;
    for (size_t i = 0; i < n; i++) {
        const T v = rng.below(below);
        s.append((const char*)&v, sizeof v);
    }
    return s;
}

template <typename T> static std::string floats(size_t n, double scale) {
    std::string s;
    for (size_t i = 0; i < n; i++) {
        const T v = scale * rng.normal();
        s.append((const char*)&v, sizeof v);
    }
    return s;
}
template <typename T> static std::string whole(size_t n) {               // tokens, as floats
    std::string s;
    for (size_t i = 0; i < n; i++) {
        const T v = rng.below(50257);
        s.append((const char*)&v, sizeof v);
    }
    return s;
}
static std::string halves(size_t n) {                                    // bfloat16
    std::string s;
    for (const std::string all = floats<float>(n, 1); s.size() < 2 * n;) s += all.substr(2 * s.size() + 2, 2);
    return s;
}

static void kinds() {
    const std::string rest(1500, '\2'), prose = "One day, a cat sat.\nIt was \xc3\xa9t\xc3\xa9.\n";
    const struct { std::string bytes; const char *what, *usable; bool text = false, tokens = false; } cases[] = {
        {"\x93NUMPY\1\0v\0{'descr': '<u2'"s + rest, "a NumPy array", "numpy.load("},
        {"PK\3\4\x14\0\0\0\0\0ckpt/data.pkl"s + rest, "a PyTorch checkpoint", "save_file("},
        {"PK\3\4\x14\0\0\0\0\0arr_0.npy"s + rest, "NumPy arrays", "numpy.load("},
        {"PK\3\4\x14\0\0\0\0\0text.txt"s + rest, "a zip archive", "unzip "},
        {"\x80\4\x95\0\0\0"s + rest, "a Python pickle", "pickle.load("},
        {"\x80\2]q\0"s + rest, "a Python pickle", "pickle.load("},
        {"\x80\3}q\0"s + rest, "a Python pickle", "pickle.load("},
        {utf16("The cat sat on the mat and it was, by then, 12.", false), "UTF-16 text", "iconv -f UTF-16LE"},
        {utf16("The cat sat on the mat and it was, by then, 12.", true), "UTF-16 text", "iconv -f UTF-16BE"},
        {"\x1f\x8b\x08\0\0"s + rest, "gzip data", "gunzip "},
        {"\x28\xb5\x2f\xfd"s + rest, "Zstandard data", "zstd -d "},
        {"\xfd" "7zXZ\0"s + rest, "xz data", "xz -d "}, {"BZh91AY&SY"s + rest, "bzip2 data", "bunzip2 "},
        {"data/" + std::string(252, '\0') + "ustar\0"s + rest, "a tar archive", "tar xf "},
        {"PAR1\x15"s + rest, "a Parquet table", "read_parquet("}, {"ARROW1\0\0"s + rest, "an Arrow table", "to_json("},
        {"GGUF\3\0\0\0"s + rest, "a model for llama.cpp (GGUF)", "only GPT-2"},
        {"\x89HDF\r\n\x1a\n"s + rest, "HDF5", "model.safetensors"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "a Git LFS pointer", "git lfs pull"},
        {"%PDF-1.7\n"s + rest, "a PDF", "pdftotext"},
        {"\n\x0e\n\5<unk>\x15\0"s + rest, "a SentencePiece model", "merges.txt"},
        {header({20240327, 2}, 99), "reference activations of llm.c", "beside it"},
        {header({20240328, 2}, 99), "a tokenizer of llm.c", "merges.txt"},
        {header({20240527, 1}, 99), "an optimizer's state of llm.c", "model_*.bin"},
        {header({20240803, 3}, 99), "a Llama 3 of llm.c", "only GPT-2"},
        {"\xff\xfe" + utf16(prose, false), "UTF-16 text", "iconv"},
        {"\xfe\xff" + utf16(prose, true), "UTF-16 text", "iconv"},
        {utf16("the cat sat", false), "UTF-16 text", "iconv -f UTF-16LE", false, true},
        {utf16("the cat sat", true), "UTF-16 text", "iconv -f UTF-16BE", false, true},
        {"\xff\xfe\0\0t\0\0\0h\0\0\0"s, "UTF-32 text", "iconv"}, {prose, "text", "build/shards encode --in ", true},
        {"\xef\xbb\xbf" + prose, "text", "build/shards encode --in ", true},
        {"caf\xe9 \x93quoted\x94\r\n", "text", "build/shards encode", true},
        {"{\"text\": \"a\"}\n", "text", "build/shards encode", true},
        {"<!DOCTYPE html>\n<html>", "a web page", "download", true},
        {"{\"!\": 0, \"a\": 1}", "the vocab.json of a tokenizer", "merges.txt", true},
        {"{\"version\": \"1.0\", \"added_tokens\": []}", "a tokenizer.json", "model.save(", true},
        {"{\"metadata\": {}, \"weight_map\": {}}", "the index of a model", "directory", true},
        {"PK\3\4\x14\0\0\0\0\0archive/data.pkl\x80\x02" "ctorch._utils\n_rebuild_tensor_v2\n"s + rest,
         "a PyTorch tensor", "torch.load("},
        {"PK\3\4\x14\0\0\0\0\0archive/data.pkl\x80\x02}q\0X\3\0\0\0idsq\1ctorch._utils\n_rebuild_tensor_v2\n"s
         "q\2((X\7\0\0\0storageq\3ctorch\nLongStorage\n"s + rest, "PyTorch tensors of whole numbers", "[NAME].numpy()"},
        {"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(\x8c\nvocab_size\x94KA"s + rest, "the meta.pkl of nanoGPT's data",
         "--raw u16 --vocab N"},
        {"\x80\2}q\0(X\n\0\0\0vocab_sizeq\1KA"s + rest, "the meta.pkl of nanoGPT's data", "--raw u16 --vocab N"},
        {"(lp0\nI1\naI2\na.", "a Python pickle", "pickle.load("},
        {"(dp0\nVa\np1\nI1\ns.", "a Python pickle", "pickle.load("},
        {"]q\0(K\1K\2e."s, "a Python pickle", "pickle.load("},
        {"cnumpy.core.multiarray\n_reconstruct\np0\n", "a Python pickle", "pickle.load("},
        {"MMIDIDX\0\0\1\0\0\0"s + rest, "the index of Megatron's data", "'bin', 'uint16')"},
        {"PK\3\4\x14\0\6\0[Content_Types].xml"s + rest, "an Office document", "libreoffice"},
        {"PK\3\4mimetypeapplication/epub+zip"s + rest, "an EPUB book", "pandoc"},
        {"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0"s + rest, "an old Office document", "libreoffice"},
        {"SQLite format 3\0\x10\0"s + rest, "an SQLite database", "sqlite3 -json "},
        {"\x08\x08\x12\7pytorch\x1a\5"s + rest, "an ONNX model", "model.safetensors"},
        {"\x89PNG\r\n\x1a\n\0\0"s + rest, "a picture (PNG)", "neither text nor tokens"},
        {"\xff\xd8\xff\xe0\0\x10JFIF\0"s + rest, "a picture (JPEG)", "neither"},
        {"GIF89a\1\0\1\0"s + rest, "a picture (GIF)", "neither"},
        {"RIFF\0\0\0\0WAVEfmt \x10\0"s + rest, "a sound (WAV)", "neither"},
        {"\x7f" "ELF\2\1\1\0"s + rest, "a program (ELF)", "neither"},
        {"\x4\x22\x4d\x18\0"s + rest, "LZ4 data", "lz4 -d "},
        {"\n<!doctype HTML>\n<p>", "a web page", "pandoc -f html", true}, {"<HTML>\n<p>", "a web page", "pandoc", true},
        {"<?xml version=\"1.0\"?>\n<html><p>", "a web page", "pandoc", true},
        {"<mediawiki xml:lang=\"en\">", "a dump of Wikipedia", "wikiextractor", true},
        {"<?xml version=\"1.0\"?>\n<doc>", "XML", "pandoc", true},
        {"{\\rtf1\\ansi Hello}", "Rich Text", "libreoffice", true},
        {"{\n \"cells\": [", "a notebook", "nbconvert", true},
        {std::string(999, '\0'), "zeros and nothing else", "make it again"},
        {std::string(64, '\0'), "zeros and nothing else", "make it again"},
        {floats<float>(500, 1), "bare 32-bit floats", "'float32'"},
        {floats<float>(500, 0.02), "bare 32-bit floats", "'float32'"},
        {floats<double>(500, 1), "bare 64-bit floats", "'float64'"},
        {whole<float>(500), "bare 32-bit floats", "'float32'"}, {whole<double>(500), "bare 64-bit floats", "'float64'"},
        {halves(500), "bare 16-bit floats", "whole numbers"},
        {numbers<int32_t>(500, 50257), "bare 32-bit numbers", "'int32'"},
        {numbers<int32_t>(64, 257), "bare 32-bit numbers", "'int32'"},
        {numbers<int32_t>(500, 200000), "bare 32-bit numbers", "'int32'"},
        {numbers<int64_t>(500, 50257), "bare 64-bit numbers", "'int64'"},
    };
    const std::string path = DIR + "foreign";
    for (auto& c : cases) {
        write_file(path, c.bytes);
        std::string wrong, step = c.usable;
        auto reader = [&](const char* name, bool asked, auto f) {
            if (!asked || !wrong.empty()) return;
            const std::string error = error_of(f);
            for (const std::string& words : {path + ": looks like " + c.what, step})
                if (wrong.empty()) wrong = one_line_with(error, words);
            if (!wrong.empty()) wrong = format(" by %s", name) + wrong;
        };
        const bool plain = c.what == std::string("text"), json = has(c.bytes.substr(0, 1), "{");
        reader("--train", true, [&] { Shard(path, false); });
        reader("--raw", !c.tokens, [&] { Shard(path, true); });
        if (plain)
            step = "make one of JSON Lines: build/shards examples --in " + path + " --tokenizer bytes --out NAME.bin";
        reader("--answers", true, [&] { Examples(path, 10, 8); });
        if (plain) step = "dev/data/download.sh gpt2-124M fetches HellaSwag's";
        reader("--choices", true, [&] { Choices(path, 10, 8); });
        if (plain) step = "give a model's directory";
        reader("--model", true, [&] { open_model(path); });
        reader("encode", !c.text, [&] { check_text(path, Input(path).text()); });
        reader("--prompt-file", !c.text, [&] { read_prompt(path); });
        reader("--tokenizer", !plain, [&] { Tokenizer::load(path); });
        reader("config.json", !c.text, [&] { read_config(Config().members(), read_json(path), path); });
        if (c.text && !json && wrong.empty())
            wrong = error_of([&] {
                check_text(path, Input(path).text());
                shards::Source(Input(path).text(), path, "", "text");
            });
        check(wrong.empty(), "cases/named: %s%s", c.what, wrong.c_str());
    }
    // ours, given to the wrong option
    const std::pair<std::string, const char*> ours[] = {
        {header({20240520, 1, 9}, 18), "--train and --val read it, without --raw, in pretraining"},
        {header({20240801, 7, 9}, 36), "--train and --val read it, without --raw, in pretraining"},
        {header({20261121, 1}, 8), "--answers reads it, and with --stage sft, reward or rl --train and --val"},
        {header({20240522, 1}, 8), "eval --choices reads it"}, {header({20240326, 3}, 8), "--init and --model read it"},
        {"\x10\0\0\0\0\0\0\0{\"a\": {}        }"s, "--init and --model read it"}};
    for (auto& [bytes, words] : ours) {
        write_file(path, bytes);
        dies(format("ours as --raw: %s", words).c_str(), words, [&] { Shard(path, true); });
        dies(format("ours as text: %s", words).c_str(), words, [&] { check_text(path, Input(path).text()); });
        if (!has(bytes, "{")) dies(format("ours as merges: %s", words).c_str(), words, [&] { Tokenizer::load(path); });
    }
    // what is 16-bit tokens: GPT-2's, in shards of any length; bytes, of DNA and of text; two values; every other one 0
    size_t mistaken = 0;
    for (size_t i = 0; i < 4000; i++) {
        std::string bytes;
        const size_t n = 1 + rng.below(i % 4 ? 40 : 4000);
        for (size_t k = 0; k < n; k++) {
            auto of_text = [] { return GPT2_BYTES.id[(uint8_t)"The cat, a dog. "[rng.below(16)]]; };
            const uint16_t v = i % 8 == 7    ? k % 2 * rng.below(2)
                               : i % 16 == 3 ? Ids{32, 34, 38, 51}[rng.below(4)]
                               : i % 16 == 5 ? of_text()
                               : i % 2       ? rng.below(257)
                                             : std::pow(50257, rng.uniform());
            bytes.append((const char*)&v, 2);
        }
        if (n > 2) mistaken += kind_of(bytes, true) != nullptr;
    }
    check(mistaken == 0, "cases/4000 files of 16-bit tokens, %zu taken for something else", mistaken);
}

// What is given as text: taken, taken with a warning, or refused with the command that makes it text.
static void foreign_texts() {
    auto repeated = [](const std::string& s, size_t n) {
        std::string all;
        while (n--) all += s;
        return all;
    };
    const std::string line = "The cat sat on the mat, and it was 12.\n", many = repeated(line, 100);
    const std::string path = DIR + "a text's", quoted = "'" + DIR + "a text'\\''s'";
    const struct { const char* name; std::string bytes, said; bool taken; } cases[] = {
        {"ASCII", many, "", true},
        {"UTF-8", repeated("D\xc3\xa9j\xc3\xa0 vu: \xe4\xb8\xad\xe6\x96\x87 \xf0\x9f\x98\x80\n", 99), "", true},
        {"terminal colours", many + "\x1b[31mred\x1b[0m\f\x7f", "", true},
        {"3 bytes that are none", many + "\xff caf\xe9 \x80",
         "warning: " + path + ": byte 3900, 0xff, is not UTF-8, the first of 3; they are taken as they stand", true},
        {"a character cut off", many + "\xf0\x9f\x98", "is not UTF-8, the first of 3", true},
        {"a surrogate", many + "\xed\xa0\x80", "is not UTF-8, the first of 3", true},
        {"French in Latin-1", repeated("Le caf\xe9 est tr\xe8s na\xef" "f, o\xf9 \xe7" "a br\xfble.\n", 9),
         "byte 6, 0xe9, is not UTF-8, the first of 54: looks like Latin-1 text; make it UTF-8: iconv -f LATIN1 -t "
         "UTF-8 " + quoted + " > text.txt", false},
        {"English in Windows-1252",
         repeated("He said \x93yes\x94: it\x92s fine \x97 really, and so it went on and on for the day.\n", 9),
         "iconv -f WINDOWS-1252 -t UTF-8 " + quoted, false},
        {"one line in Latin-1", "tr\xe8s na\xef" "f, l'\xe9t\xe9", "iconv -f LATIN1", false},
        {"Russian in KOI8-R", repeated("\xf0\xd2\xc9\xd7\xc5\xd4 \xcd\xc9\xd2\n", 9),
         "looks like text in another encoding; make it UTF-8: iconv -f ENCODING", false},
        {"damaged UTF-8", repeated("\xd0\x9f\xd1\x80\xd0", 99),
         "looks like damaged UTF-8; take out what is none: iconv -c", false},
        {"a zero byte", many + "a\0b"s, "byte 3901 is zero, the first of 1: looks like text with zero bytes, not "
         "UTF-8 text; take them out: tr -d '\\000' < " + quoted, false},
        {"GPT-2's 16-bit tokens", numbers<uint16_t>(500, 5000),
         "looks like bare 16-bit tokens, not UTF-8 text; --train and --val read these with --raw u16", false},
        {"16-bit tokens, few of them small", numbers<uint16_t>(999, 50257), "looks like bare 16-bit tokens", false},
        {"16-bit tokens of characters", numbers<uint16_t>(500, 65), "looks like bare 16-bit tokens", false},
        {"noise", numbers<uint32_t>(5000, INT_MAX), "looks like binary data, not UTF-8 text", false}};
    for (auto& c : cases)
        for (const char* reader : {"encode", "bpe", "--prompt-file"}) {
            write_file(path, c.bytes);
            std::string said, error;
            if (*reader == 'e')
                said = shards_run({"encode", "--in", path, "--tokenizer", "bytes", "--out", DIR + "text/t"}, &error);
            else if (*reader == 'b')
                said = shards_run({"bpe", "--in", path, "--vocab", "257", "--out", DIR + "text"}, &error);
            else
                error = error_of([&] {
                    const std::string want = c.bytes.substr(0, c.bytes.size() - c.bytes.ends_with('\n'));
                    if (read_prompt(path) != want) die("other bytes");
                }, &said);
            std::string wrong = c.taken ? error : one_line_with(error, c.said);
            if (wrong.empty() && c.taken && (c.said.empty() ? has(said, "warning") : !has(said, c.said)))
                wrong = ": " + said;
            check(wrong.empty(), "cases/text by %s: %s%s", reader, c.name, wrong.c_str());
        }
    // counted in pieces, which begin anywhere
    std::string wrong;
    const Words pieces = {"\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80", "a\r\n", "\x80\xfe", "\xf0\x9f\x98"};
    for (const std::string& c : pieces)
        for (size_t shift = 0; shift < 5; shift++) {
            const size_t n = (5 << 20) / c.size();
            const TextCount t = count_text(std::string(shift, ' ') + repeated(c, n)), one = count_text(c);
            if (t.wide != n * one.wide || t.bad != n * one.bad || t.returns != n * one.returns || t.zeros ||
                t.first_bad != (one.bad ? shift : SIZE_MAX))
                wrong = format("%zu characters %s behind %zu blanks: %zu wide, %zu bad, %zu returns", n,
                               json_quote(c).c_str(), shift, t.wide, t.bad, t.returns);
        }
    check(wrong.empty(), "cases/text counted in pieces %s", wrong.c_str());
    // text that may not be meant so is told of
    const std::string objects = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    const std::pair<const char*, std::pair<std::string, const char*>> told[] = {
        {"objects.txt",
         {objects, "looks like JSON Lines, and is taken as it stands, with all that is no prose; for a document a line, "
                   "name it so: mv build/test_cases_data/objects.txt build/test_cases_data/objects.txt.jsonl"}},
        {"objects", {"\xef\xbb\xbf\n" + objects, "looks like JSON Lines"}},
        {"objects.log", {" " + objects + "end", "looks like JSON Lines"}},
        {"page.html", {"<!DOCTYPE html><p>a", "looks like a web page, and is taken as it stands"}},
        {"a.csv", {"a,b\n1,2\n", "looks like a table, and is taken"}},
        {"A.TSV", {"a\tb\n", "looks like a table"}}, {"a.rtf", {"{\\rtf1 a}", "looks like Rich Text"}},
        {"lines.txt", {"a\r\nb\r\nc\rd\n", "lines.txt: 2 lines end in \\r\\n, as on Windows"}}};
    for (auto& [name, c] : told) {
        write_file(DIR + name, c.first);
        const Words words = {"encode", "--in", DIR + name, "--tokenizer", "bytes", "--out", DIR + "text/t"};
        const std::string said = shards_run(words);
        check(has(said, std::string("warning: ") + DIR + name + ": ") && has(said, c.second) &&
                  has(said, "tokens, documents: 1") && has(said, "out: tr -d") == has(c.second, "Windows"),
              "cases/text told of: %s%s", name, has(said, c.second) ? "" : (": " + said).c_str());
    }
}

// ---- tokenizers -----------------------------------------------------------------------------------------------------
static const char* const MERGES = "#version: 0.2\nt h\nth e\n\xc4\xa0 the\nc a\nca t\n";
static const Words TEXTS = {"the cat, the caterer", " the\n\xff\xc3\xa9 cathe", ""};
static std::string fresh_directory(const char* name) {
    fs::remove_all(DIR + name);
    fs::create_directories(DIR + name);
    return DIR + name;
}
static std::string json_of(const std::map<std::string, int>& ids) {
    std::string s;
    for (auto& [token, id] : ids) s += (s.empty() ? "{" : ", ") + json_quote(token) + ": " + std::to_string(id);
    return s.empty() ? "{}" : s + "}";
}
// What Hugging Face's tokenizers save of MERGES, with the ids given.
static std::string whole_json(const std::map<std::string, int>& ids, const std::string& added) {
    std::string merges;
    for (const char* pair : {"t h", "th e", "\xc4\xa0 the", "c a", "ca t"})
        merges += (merges.empty() ? "" : ", ") + json_quote(pair);
    return R"({"version": "1.0", "truncation": null, "added_tokens": [)" + added +
           R"(], "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, )"
           R"("trim_offsets": true, "use_regex": true}, "post_processor": {"type": "ByteLevel", "add_prefix_space": )"
           R"(true}, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "dropout": null, )"
           R"("continuing_subword_prefix": "", "end_of_word_suffix": null, "byte_fallback": false, )"
           R"("ignore_merges": false, "vocab": )" + json_of(ids) + R"(, "merges": [)" + merges + "]}}";
}
static void ids() {
    const Tokenizer plain = Tokenizer::from_merges(MERGES, "merges");
    auto names = [&](auto id_of) {
        std::map<std::string, int> ids;
        for (int i = 0; i < plain.eot(); i++) ids[GPT2_BYTES.printable(plain.decode(i))] = id_of(i);
        return ids;
    };
    const std::string dir = fresh_directory("tokenizer");
    for (const char* merges : {"merges.txt", "vocab.bpe", "own.bpe", "my-merges.txt"}) {
        for (const std::string kind :
             {"end first", "end last", "shuffled, with holes", "none there", "named elsewhere", "added"}) {
            fresh_directory("tokenizer");
            write_file(dir + "/" + merges, MERGES);
            Ids order(plain.eot());
            std::iota(order.begin(), order.end(), kind == "end first" ? 1 : 0);
            if (has(kind, "shuffled")) for (int& id : order) id = 2 * id;
            if (has(kind, "shuffled")) rng.shuffle(order);
            auto vocab = names([&](int i) { return order[i]; });
            int end = plain.eot();
            if (kind == "end first") vocab["<|endoftext|>"] = end = 0;
            if (kind == "end last" || kind == "added") vocab["<|endoftext|>"] = end;
            if (has(kind, "shuffled")) {
                vocab["<|endoftext|>"] = end = 333;
                vocab["<pad>"] = 335;
                vocab["[MASK]"] = 337;
            }
            if (kind == "named elsewhere") vocab["</s>"] = end = 300;
            const std::string name = merges == std::string("my-merges.txt") ? "my-vocab.json"
                                     : merges == std::string("vocab.bpe")   ? "encoder.json"
                                                                            : "vocab.json";
            write_file(dir + "/" + name, "\xef\xbb\xbf" + json_of(vocab));
            const bool companions = name != "my-vocab.json";
            if (!companions && kind == "named elsewhere") continue;
            if (kind == "named elsewhere")
                write_file(dir + "/special_tokens_map.json",
                           "{\"eos_token\": {\"content\": \"</s>\"}, \"pad_token\": \"</s>\"}");
            if (kind == "added") {
                write_file(dir + "/added_tokens.json", "{\"<|sep|>\": 270}");
                write_file(dir + "/tokenizer_config.json",
                           R"({"add_bos_token": false, "added_tokens_decoder": {"271": {"content": "two words"}, )"
                           R"("270": {"content": "<|sep|>"}}})");
                write_file(dir + "/tokenizer.json",
                           whole_json(vocab, "{\"id\": 272, \"content\": \"\xc3\xa9\", \"special\": true}"));
            }
            std::string wrong = error_of([&] {
                const Tokenizer t = Tokenizer::load(dir + "/" + merges);
                const std::string copy = fresh_directory("copy");
                t.save(copy);
                const Tokenizer again = Tokenizer::load(copy);
                if (t.eot() != end || again.eot() != end)
                    die("end of text is %d, saved %d, expected %d", t.eot(), again.eot(), end);
                if (!again.same(t) || again.vocab() != t.vocab() || again.vocab_json() != t.vocab_json())
                    die("what is saved is another tokenizer");
                if (t.same(plain) != (kind == "end last" || kind == "none there" || kind == "added"))
                    die("same() is wrong");
                for (const std::string& text : TEXTS) {
                    Ids want;
                    for (int id : plain.encode(text)) want.push_back(order[id]);
                    std::string decoded;
                    for (int id : t.encode(text)) decoded += t.decode(id);
                    if (t.encode(text) != want || again.encode(text) != want || decoded != text)
                        die("other ids for %s", text.c_str());
                }
                for (auto& [token, id] : parse_json(t.vocab_json(), "vocab.json").members)
                    if (vocab.count(token) ? vocab[token] != id.number : kind != "none there" ||
                        token != "<|endoftext|>") die("vocab.json: %s", token.c_str());
                if (kind == "added" && companions &&
                    (t.decode(270) != "<|sep|>" || t.decode(271) != "two words" || t.decode(272) != "\xc3\xa9" ||
                     t.vocab() != 273 || again.decode(271) != "two words"))
                    die("added tokens");
                for (int id : t.hidden(600)) if (!t.decode(id).empty()) die("%d is hidden", id);
                const int more = kind == "added" && companions ? 3 : has(kind, "shuffled") ? 2 : 0;
                if ((int)t.hidden(600).size() != 600 - plain.vocab() - more)
                    die("%zu ids are hidden", t.hidden(600).size());
            });
            check(wrong.empty(), "cases/ids: %s, %s%s", merges, kind.c_str(),
                  wrong.empty() ? "" : (": " + wrong).c_str());
        }
    }
    auto changed = [&](auto change) {
        auto vocab = names([](int i) { return i; });
        vocab["<|endoftext|>"] = plain.eot();
        change(vocab);
        return json_of(vocab);
    };
    using Vocab = std::map<std::string, int>&;
    auto no_end = [](Vocab v) {
        v.erase("<|endoftext|>");
        v["</s>"] = 290;
    };
    const struct { const char* name; std::string vocab, words, other = "", content = ""; } refused[] = {
        {"a token of the merges missing", changed([](Vocab v) { v.erase("the"); }),
         "tokenizer/vocab.json: token \"the\": missing, but merges.txt makes it"},
        {"a token of no merge", changed([](Vocab v) { v["xyz"] = 300; }), "token \"xyz\": merges.txt does not make it"},
        {"an id twice", changed([](Vocab v) { v["the"] = 7; }), "has id 7, as has "},
        {"an id twice, by an added token", changed([](Vocab) {}), "has id 7, as has ", "added_tokens.json",
         "{\"<x>\": 7}"},
        {"an id below 0", changed([](Vocab v) { v["the"] = -1; }), "expected an id below"},
        {"an id too large", changed([](Vocab v) { v["the"] = 1 << 23; }), "expected an id below"},
        {"an id that is no number", "{\"!\": \"0\"}", "expected an id below"},
        {"no token", "{}", "token \"th\": missing"},
        {"two ids of one token", changed([](Vocab) {}), "found id 301, but 300", "tokenizer_config.json",
         "{\"added_tokens_decoder\": {\"300\": {\"content\": \"<x>\"}, \"301\": {\"content\": \"<x>\"}}}"},
        {"no end of text", changed(no_end),
         "which token ends a text? none is <|endoftext|>; name it in tokenizer_config.json: {\"eos_token\": \"</s>\"}"},
        {"not an object", "[1]", "token \"th\": missing"}, {"not JSON", "{\"!\": 0,", "JSON ends"},
        {"UTF-16", "\xff\xfe{", "looks like UTF-16 text, not JSON"}};
    for (auto& c : refused) {
        fresh_directory("tokenizer");
        write_file(dir + "/merges.txt", MERGES);
        write_file(dir + "/vocab.json", c.vocab);
        if (!c.other.empty()) write_file(dir + "/" + c.other, c.content);
        dies(format("ids refused: %s", c.name).c_str(), c.words, [&] { Tokenizer::load(dir); });
    }
    // a tokenizer.json beside them: taken where it makes the same tokens
    auto vocab = names([](int i) { return i; });
    vocab["<|endoftext|>"] = plain.eot();
    const std::string good = whole_json(vocab, "{\"id\": 261, \"content\": \"<|endoftext|>\", \"special\": true}");
    const struct { const char *name, *from, *to, *words; } settings[] = {
        {"as it is saved", "", "", ""}, {"merges as pairs", "\"th e\"", "[\"th\", \"e\"]", ""},
        {"no use_regex", ", \"use_regex\": true", "", ""}, {"an older one", "\"type\": \"BPE\", ", "", ""},
        {"a sequence of one",
         "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}",
         "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\", \"add_prefix_space\": false}]}", ""},
        {"lower case", "\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}",
         "tokenizer/tokenizer.json: normalizer: found \"Lowercase\", expected null: "},
        {"several normalizers", "\"normalizer\": null", "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []}",
         "normalizer: found \"Sequence\""},
        {"a blank before", "\"add_prefix_space\": false", "\"add_prefix_space\": true",
         "add_prefix_space of the pre_tokenizer: found true, expected false"},
        {"no pattern", "\"use_regex\": true", "\"use_regex\": false", "use_regex of the pre_tokenizer: found false"},
        {"another pre_tokenizer", "{\"type\": \"ByteLevel\"", "{\"type\": \"Whitespace\"",
         "pre_tokenizer: found \"Whitespace\", expected \"ByteLevel\" alone"},
        {"several pre_tokenizers", "{\"type\": \"ByteLevel\"",
         "{\"pretokenizers\": [{\"type\": \"Digits\"}, {\"type\": \"ByteLevel\"}], \"type\": \"Sequence\"",
         "pre_tokenizer: found \"Sequence\""},
        {"no pre_tokenizer", "\"pre_tokenizer\"", "\"pre\"", "pre_tokenizer: found null"},
        {"another model", "\"BPE\"", "\"Unigram\"", "model: found \"Unigram\", expected \"BPE\""},
        {"dropout", "\"dropout\": null", "\"dropout\": 0.1", "dropout of the model"},
        {"ignore_merges", "\"ignore_merges\": false", "\"ignore_merges\": true", "ignore_merges of the model"},
        {"a suffix", "\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"",
         "end_of_word_suffix of the model"},
        {"another merge", "\"c a\"", "\"a c\"",
         "merges of the model: found \"a c\", expected \"c a\", as in merges.txt"},
        {"a merge more", "\"ca t\"", "\"ca t\", \"cat s\"", "merges of the model: found \"cat s\""},
        {"a merge less", ", \"ca t\"", "", "merges of the model: found \"\", expected \"ca t\""},
        {"another id", "\"the\": 257", "\"the\": 300", "vocab of the model: found another id of \"the\", expected 257"},
        {"an added word", "\"special\": true}",
         "\"special\": true}, {\"id\": 262, \"content\": \"newword\", \"special\": false}",
         "added_tokens: found \"newword\" for texts, expected \"special\": true"}};
    for (auto& c : settings) {
        std::string json = good;
        const size_t at = json.find(c.from);
        json.replace(at, strlen(c.from), c.to);
        fresh_directory("tokenizer");
        write_file(dir + "/merges.txt", MERGES);
        write_file(dir + "/vocab.json", json_of(vocab));
        write_file(dir + "/tokenizer.json", json);
        const std::string error = error_of([&] { if (!Tokenizer::load(dir).same(plain)) die("another tokenizer"); });
        const std::string wrong = *c.words ? one_line_with(error, c.words) : error;
        check(wrong.empty() && (!*c.words || has(error, "if merges.txt alone is meant")), "cases/tokenizer.json: %s %s",
              c.name, wrong.c_str());
    }
    fresh_directory("tokenizer");
    write_file(dir + "/merges.txt", MERGES);
    write_file(dir + "/tokenizer_config.json", "{\"add_prefix_space\": true}");
    dies("tokenizer_config.json with a blank before texts",
         "tokenizer_config.json: add_prefix_space: found true, expected false", [&] { Tokenizer::load(dir); });

    // which token ends a text: the declared one
    using Files = std::vector<std::pair<std::string, std::string>>;
    const std::string config = "tokenizer_config.json", map = "special_tokens_map.json";
    const std::string eos = "{\"eos_token\": \"</s>\"}", usual = "{\"eos_token\": \"<|endoftext|>\"}";
    const std::string both = changed([](Vocab v) { v.insert({{"</s>", 270}, {"<pad>", 271}}); });
    const struct { const char* name; Files files; int end; const char* words; } ends[] = {
        {"none declared", {}, 261, ""}, {"in tokenizer_config.json", {{config, eos}}, 270, ""},
        {"in special_tokens_map.json", {{map, "{\"eos_token\": {\"content\": \"</s>\"}}"}}, 270, ""},
        {"in config.json", {{"config.json", "{\"eos_token_id\": 270}"}}, 270, ""},
        {"in all", {{config, eos}, {map, eos}, {"config.json", "{\"eos_token_id\": 270}"}}, 270, ""},
        {"the usual one", {{config, usual}}, 261, ""}, {"a null", {{config, "{\"eos_token\": null}"}}, 261, ""},
        {"an id of no added token", {{"config.json", "{\"eos_token_id\": 50256}"}, {config, eos}}, 270, ""},
        {"an id of an ordinary token", {{"config.json", "{\"eos_token_id\": 5}"}}, 261, ""},
        {"two files differ", {{config, eos}, {map, usual}}, 0,
         "special_tokens_map.json: token \"<|endoftext|>\": ends a text, but \"</s>\" does by tokenizer_config.json"},
        {"config.json differs", {{config, eos}, {"config.json", "{\"eos_token_id\": 261}"}}, 0,
         "config.json: token \"<|endoftext|>\": ends a text, but \"</s>\" does by tokenizer_config.json"},
        {"one without an id", {{config, "{\"eos_token\": \"<end>\"}"}}, 0,
            "tokenizer_config.json: token \"<end>\": ends a text, but has no id in vocab.json"}};
    for (auto& c : ends) {
        fresh_directory("tokenizer");
        write_file(dir + "/merges.txt", MERGES);
        write_file(dir + "/vocab.json", both);
        for (auto& [name, json] : c.files) write_file(dir + "/" + name, json);
        const std::string error = error_of([&] {
            const Tokenizer t = Tokenizer::load(dir);
            t.save(fresh_directory("copy"));
            if (t.eot() != c.end || Tokenizer::load(DIR + "copy").eot() != c.end) die("end of text is %d", t.eot());
        });
        const std::string wrong = *c.words ? one_line_with(error, c.words) : error;
        check(wrong.empty(), "cases/end of text: %s %s", c.name, wrong.c_str());
    }
    // an end of text among added tokens: what is saved, from whatever files it was read, reads as the same tokens
    const std::string bare = json_of(names([](int i) { return i; })), usual_vocab = changed([](Vocab) {});
    const std::string im = "{\"eos_token\": \"<|im_end|>\"}";
    const std::string user = "<|user|>", eot = "<|endoftext|>", end = "<|im_end|>";
    using Names = std::map<int, std::string>;
    auto whole = [&](const Names& added) {
        std::string list;
        for (auto& [id, token] : added)
            list += (list.empty() ? "" : ", ") +
                    format("{\"id\": %d, \"content\": %s, \"special\": true}", id, json_quote(token).c_str());
        return whole_json(names([](int i) { return i; }), list);
    };
    auto decoder = [&](const Names& added) {
        std::string list;
        for (auto& [id, token] : added)
            list += (list.empty() ? "" : ", ") +
                    format("\"%d\": {\"content\": %s, \"special\": true}", id, json_quote(token).c_str());
        return "{\"added_tokens_decoder\": {" + list + "}}";
    };
    const std::string json = "tokenizer.json", others = "added_tokens.json";
    const struct { const char* name; std::string vocab; Files files; int end; Names added; } among[] = {
        {"alone, in tokenizer.json", bare, {{json, whole({{261, eot}})}}, 261, {{261, eot}}},
        {"behind another", bare, {{json, whole({{261, user}, {262, eot}})}}, 262, {{261, user}, {262, eot}}},
        {"before another", bare, {{json, whole({{261, eot}, {262, user}})}}, 261, {{261, eot}, {262, user}}},
        {"between two", bare, {{json, whole({{261, user}, {262, eot}, {263, "<|a b|>"}})}}, 262,
         {{261, user}, {262, eot}, {263, "<|a b|>"}}},
        {"in added_tokens.json", bare, {{others, "{\"<|user|>\": 261, \"<|endoftext|>\": 262, \"<|z|>\": 263}"}}, 262,
         {{261, user}, {262, eot}, {263, "<|z|>"}}},
        {"in added_tokens_decoder", bare, {{config, decoder({{261, user}, {262, eot}})}}, 262,
         {{261, user}, {262, eot}}},
        {"of another name", bare, {{others, "{\"<|im_start|>\": 261, \"<|im_end|>\": 262}"}, {config, im}}, 262,
         {{261, "<|im_start|>"}, {262, end}}},
        {"alone, of another name", bare, {{others, "{\"<|im_end|>\": 261}"}, {config, im}}, 261, {{261, end}}},
        {"of another name, beside GPT-2's", usual_vocab, {{others, "{\"<|im_start|>\": 262, \"<|im_end|>\": 263}"},
         {config, im}}, 263, {{261, eot}, {262, "<|im_start|>"}, {263, end}}},
        {"in vocab.json, others beside it", usual_vocab, {{others, "{\"<|user|>\": 262}"}}, 261,
         {{261, eot}, {262, user}}},
        {"all in vocab.json", changed([](Vocab v) { v.insert({{"<|user|>", 262}, {"END", 263}}); }),
         {{config, "{\"eos_token\": \"END\"}"}}, 263, {{261, eot}, {262, user}, {263, "END"}}},
        {"ids apart", bare, {{others, "{\"<|user|>\": 270, \"<|endoftext|>\": 280}"}}, 280, {{270, user}, {280, eot}}},
        {"named, and without an id", bare, {{others, "{\"<|user|>\": 261, \"<|z|>\": 262}"}, {config, usual}}, 263,
         {{261, user}, {262, "<|z|>"}, {263, eot}}},
        {"merges alone, and a list", "", {{others, "{\"<|user|>\": 261, \"<|endoftext|>\": 262}"}}, 262,
         {{261, user}, {262, eot}}}};
    for (auto& c : among) {
        fresh_directory("tokenizer");
        write_file(dir + "/merges.txt", MERGES);
        if (!c.vocab.empty()) write_file(dir + "/vocab.json", c.vocab);
        for (auto& [name, text] : c.files) write_file(dir + "/" + name, text);
        const std::string wrong = error_of([&] {
            std::string first;
            for (const char* from : {"tokenizer", "copy", "copy 2"}) {
                const Tokenizer t = Tokenizer::load(DIR + from);
                if (t.eot() != c.end || t.added_tokens() != c.added || t.vocab() != c.added.rbegin()->first + 1 ||
                    t.encode("the cat") != plain.encode("the cat"))
                    die("in %s: end of text is %d of %zu added tokens", from, t.eot(), t.added_tokens().size());
                for (auto& [id, token] : c.added)
                    if (t.decode(id) != token) die("in %s: %d is %s", from, id, std::string(t.decode(id)).c_str());
                if (*from == 't') t.save(fresh_directory("copy"));
                t.save(fresh_directory("copy 2"));
                if (*from != 't' && entries_of(DIR + "copy").size() != entries_of(DIR + "copy 2").size())
                    die("saved again otherwise");
            }
            write_file(DIR + "added.txt", "the cat");
            fresh_directory("added");
            const std::string in = DIR + "added.txt", out = DIR + "added/a";
            std::string said = shards_run({"encode", "--in", in, "--tokenizer", dir, "--out", out});
            if (!has(said, ": 4 tokens")) die("%s", said.c_str());
            said = shards_run({"decode", "--in", out + "_train.bin", "--tokenizer", DIR + "added", "--eot", "|"});
            if (said != "|the cat") die("%s", said.c_str());
        });
        check(wrong.empty(), "cases/end of text among added tokens: %s %s", c.name, wrong.c_str());
    }
    const std::pair<std::string, const char*> advised[] = {
        {"<|im_end|>", "{\"eos_token\": \"<|im_end|>\"}, if that is it"},
        {"[EOS]", "\"[EOS]\"}, if"}, {"<|z|>", "{\"eos_token\": \"NAME\"}"}};
    for (auto& [token, advice] : advised) {
        fresh_directory("tokenizer");
        write_file(dir + "/merges.txt", MERGES);
        write_file(dir + "/vocab.json", bare);
        write_file(dir + "/added_tokens.json", "{\"<|user|>\": 261, " + json_quote(token) + ": 262, \"<|zz|>\": 263}");
        dies(("which token ends a text: " + token).c_str(), advice, [&] { Tokenizer::load(dir); });
    }
    fresh_directory("tokenizer");
    write_file(dir + "/merges.txt", MERGES);
    write_file(dir + "/vocab.json", changed([](Vocab v) { v.erase("x"); }));
    check(error_of([&] { if (Tokenizer::load(dir).encode("the") != Ids{257}) die("other ids"); }).empty(),
          "cases/a vocab.json without a byte encodes others");
    dies("a vocab.json without a byte", dir + "/vocab.json: has no token of byte 0x78, which is in the text",
         [&] { Tokenizer::load(dir).encode("fox"); });
    fresh_directory("tokenizer");
    write_file(dir + "/tokenizer.json", "{\"version\": \"1.0\"}");
    auto saving = [&](const std::string& file) {
        return "python3 -c \"import tokenizers; tokenizers.Tokenizer.from_file('" + dir + file +
               "').model.save('" + dir + "/.')\"";
    };
    const std::string step =
        "tokenizer.json: its merges are needed in a file of their own: " + saving("/tokenizer.json");
    dies("tokenizer.json alone", step, [&] { find_tokenizer("", {dir}); });
    dies("tokenizer.json alone, by its name", step, [&] { Tokenizer::load(dir + "/tokenizer.json"); });
    write_file(dir + "/other.json", "{\"added_tokens\": []}");
    dies("tokenizer.json of another name", "give its directory: " + saving("/other.json"),
         [&] { Tokenizer::load(dir + "/other.json"); });
    check(has(usable(marked_kind("{\"added_tokens\": []}")->usable, "a.json"), ".save('.')"),
          "cases/tokenizer.json in the working directory");
    write_file(dir + "/merges.txt", MERGES);
    write_file(dir + "/vocab.json", bare);
    write_file(dir + "/tokenizer.json", whole({{261, user}, {262, eot}}));
    check(error_of([&] { if (Tokenizer::load(dir + "/tokenizer.json").eot() != 262) die("another end"); }).empty(),
          "cases/tokenizer.json beside its merges, by its name");
    fresh_directory("tokenizer");
    write_file(dir + "/tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}");
    dies("tokenizer.json of another model", "tokenizer.json: model: found \"WordPiece\", expected \"BPE\"",
         [&] { Tokenizer::load(dir); });
    for (const char* text :
         {"\xef\xbb\xbf#version: 0.2\na b\nab c\n", "#version: 0.2\r\na b\r\nab c\r\n", "a b\nab c\n\n\n",
          "a b\r\nab c\r\n\r\n\r\n", "a b\nab c", "\xef\xbb\xbf" "a b\r\nab c\r\n\n"}) {
        const std::string error = error_of([&] {
            const std::string taken = Tokenizer::from_merges(text, "m").merges_txt();
            if (taken != "#version: 0.2\na b\nab c\n") die("other merges");
        });
        check(error.empty(), "cases/merges taken: %s", json_quote(text).c_str());
    }
}

// ---- weights --------------------------------------------------------------------------------------------------------
struct Piece { std::string name, dtype; std::vector<size_t> shape; std::string data; };
static std::string safetensors(const std::vector<Piece>& pieces) {
    std::string json, data;
    for (const Piece& p : pieces) {
        std::string shape;
        for (size_t d : p.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
        json += (json.empty() ? "{" : ",") + json_quote(p.name) +
                format(":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", p.dtype.c_str(),
                       shape.c_str(), data.size(), data.size() + p.data.size());
        data += p.data;
    }
    json += "}";
    const uint64_t n = json.size();
    return std::string((const char*)&n, 8) + json + data;
}
static Config tiny_config() {
    Config c;
    c.L = 2;
    c.NH = 2;
    c.C = 8;
    c.V = 260;
    c.T = 16;
    return c;
}
static std::vector<Piece> pieces_of(const cpu::Model& m) {
    std::vector<Piece> pieces;
    std::vector<float> v;
    for (size_t i = 0; i < m.layout.tensors.size(); i++) {
        const Tensor& t = m.layout.tensors[i];
        if (!t.present) continue;
        v.resize(t.count());
        m.get(WEIGHT, i, v.data());
        std::vector<size_t> shape = {(size_t)t.cols};
        if (t.rows) shape.insert(shape.begin(), t.rows);
        pieces.push_back({t.name, "F32", shape, std::string((char*)v.data(), 4 * v.size())});
    }
    return pieces;
}
static void weights() {
    const Config c = tiny_config();
    cpu::Model model(c, 1, 4, false);
    initialize(model, 5);
    const std::vector<Piece> good = pieces_of(model);
    const std::string dir = fresh_directory("weights");
    auto differs = [&](const std::string& path, bool tied = true) {     // from the model, "" if it does not
        return error_of([&] {
            const ModelFile file = open_model(path);
            const Config found = config_of(file, 2);
            if (found.L != c.L || found.V != c.V || found.T != c.T || found.tied != tied) die("another shape");
            cpu::Model loaded(found, 1, 4, false);
            load_tensors(stored(loaded), file.tensors, file.path);
            for (const Piece& p : pieces_of(loaded)) {
                auto same = [&](const Piece& g) { return g.name == p.name && g.data == p.data; };
                if (p.name != "lm_head.weight" && std::none_of(good.begin(), good.end(), same))
                    die("tensor %s differs", p.name.c_str());
            }
        });
    };
    auto renamed = [&](auto name_of) {
        std::vector<Piece> pieces = good;
        for (Piece& p : pieces) p.name = name_of(p.name);
        return pieces;
    };
    const Piece wte = good[0], head = {"lm_head.weight", "F32", wte.shape, wte.data};
    const Piece mask = {"h.0.attn.bias", "BOOL", {1, 1, 4, 4}, std::string(16, '\1')};
    for (const char* config : {"", "\xef\xbb\xbf"})                    // none, and one with a mark
        for (const std::string before : {"", "transformer.", "_orig_mod.transformer.", "module.transformer.", "module.",
                                         "model.", "model.transformer.", "_orig_mod.module.x.y."})
            for (const std::string kind : {"wte alone", "head alone", "both", "a mask"}) {
                auto pieces = renamed([&](std::string name) { return before + name.substr(strlen("transformer.")); });
                std::string whole = before;
                if (before.ends_with("transformer.")) whole.resize(before.size() - strlen("transformer."));
                Piece other = head;
                other.name = whole + head.name;
                if (kind == "head alone") pieces[0] = other;
                if (kind == "both") pieces.push_back(other);
                if (kind == "a mask") {
                    pieces.push_back(mask);
                    pieces.back().name = before + mask.name;
                }
                fresh_directory("weights");
                write_file(dir + "/model.safetensors", safetensors(pieces));
                if (*config) write_file(dir + "/config.json", config + config_json(c, -1));
                const std::string wrong = differs(dir);
                check(wrong.empty(), "cases/weights below '%s', %s%s%s", before.c_str(), kind.c_str(),
                      *config ? ", config.json with a mark" : "", wrong.empty() ? "" : (": " + wrong).c_str());
            }
    fresh_directory("weights");
    auto twice = good;
    for (const Piece& p : good) {
        twice.push_back(p);
        twice.back().name = "ema." + p.name;
    }
    write_file(dir + "/model.safetensors", safetensors(twice));
    dies("two models in one", "two models in one: 'ema.transformer.wpe.weight' and 'transformer.wpe.weight'",
         [&] { open_model(dir); });
    twice = good;
    twice.push_back(head);
    twice.push_back(head);
    twice.back().name = "module.lm_head.weight";
    write_file(dir + "/model.safetensors", safetensors(twice));
    dies("two heads", "'lm_head.weight' is there twice", [&] { open_model(dir); });
    auto linear = good;                                                // as nanoGPT keeps them
    for (Piece& p : linear)
        if (p.shape.size() == 2 && !has(p.name, "te.weight") && !has(p.name, "pe.weight")) {
            const std::string data = p.data;
            for (size_t r = 0; r < p.shape[0]; r++)
                for (size_t k = 0; k < p.shape[1]; k++)
                    data.copy(&p.data[4 * (k * p.shape[0] + r)], 4, 4 * (r * p.shape[1] + k));
            std::swap(p.shape[0], p.shape[1]);
        }
    write_file(dir + "/model.safetensors", safetensors(linear));
    std::string said, wrong = differs(dir);
    error_of([&] { open_model(dir); }, &said);
    check(wrong.empty() && has(said, "warning: ") && has(said, "as in nanoGPT"),
          "cases/weights as nanoGPT keeps them%s", wrong.c_str());

    auto loaded = [&](const std::string& path) {
        const ModelFile file = open_model(path);
        cpu::Model m(config_of(file, 2), 1, 4, false);
        load_tensors(stored(m), file.tensors, file.path);
    };
    fresh_directory("weights");
    auto doubles = good;
    doubles[2].dtype = "F64";
    doubles[2].data += doubles[2].data;
    const std::string in_float32 = "expected F32, BF16 or F16 of (8); make it float32: python3 -c \"import "
                                   "safetensors.torch as s; s.save_file({k: v.float().clone() for k, v in "
                                   "s.load_file('" + dir + "/";
    write_file(dir + "/model.safetensors", safetensors(doubles));
    dies("64-bit weights", in_float32 + "model.safetensors').items()}, '" + dir + "/model.safetensors')\"",
         [&] { loaded(dir); });
    fs::rename(dir + "/model.safetensors", dir + "/a.safetensors");
    std::string all;
    for (const Piece& p : doubles) all += (all.empty() ? "" : ", ") + json_quote(p.name) + ": \"a.safetensors\"";
    write_file(dir + "/model.safetensors.index.json", "{\"weight_map\": {" + all + "}}");
    dies("64-bit weights in several files", in_float32 + "PART').items()}, '", [&] { loaded(dir); });

    // in several files
    fresh_directory("weights");
    std::string map;
    for (size_t i = 0; i < good.size(); i++)
        map += (map.empty() ? "" : ", ") + json_quote(good[i].name) + format(": \"model-0000%zu.safetensors\"", i % 3);
    for (size_t part = 0; part < 3; part++) {
        std::vector<Piece> some;
        for (size_t i = part; i < good.size(); i += 3) some.push_back(good[i]);
        write_file(dir + format("/model-0000%zu.safetensors", part), safetensors(some));
    }
    write_file(dir + "/model.safetensors.index.json",
               "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {" + map + "}}");
    wrong = differs(dir);
    check(wrong.empty(), "cases/weights in several files%s", wrong.c_str());
    wrong = differs(dir + "/model.safetensors.index.json");
    check(wrong.empty(), "cases/weights by their index%s", wrong.c_str());
    write_file(dir + "/model.safetensors.index.json", "{\"weight_map\": {\"a\": \"model-00000.safetensors\"}}");
    dies("an index of another model", "tensor a: is not in ", [&] { open_model(dir); });
    write_file(dir + "/model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../a.safetensors\"}}");
    dies("an index that leads elsewhere", "expected a file beside the index", [&] { open_model(dir); });
    write_file(dir + "/model.safetensors.index.json", "{}");
    dies("an index of nothing", "'weight_map' is missing", [&] { open_model(dir); });
    fs::remove(dir + "/model-00001.safetensors");
    write_file(dir + "/model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
    dies("a part that is not there", "model-00001.safetensors: cannot open", [&] { open_model(dir); });

    fresh_directory("weights");
    const std::string part = dir + "/model-00002-of-00003.safetensors";
    const std::string lacks = part + ": is a part of a model; " + dir +
                              "/model.safetensors.index.json is missing, which names all parts";
    write_file(part, safetensors({good[1]}));
    write_file(dir + "/optimizer.pt", std::string("PK\3\4\0\0a/data.pkl", 16) + std::string(1 << 16, '\1'));
    dies("parts without their index", lacks, [&] { open_model(dir); });
    dies("a part without its index", lacks, [&] { open_model(part); });
    write_file(dir + "/model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
    dies("a part beside its index", part + ": is a part of a model; give its directory, or the index there",
         [&] { open_model(part); });
    for (const char* name : {"model.safetensors", "a-of-b.safetensors", "1-of-2.safetensors", "x-1-of-.safetensors",
                             "x--of-2.safetensors", "x-1-of-2.bin", "x-1-of-2.safetensors.old",
                             "x-00001-of-00001.safetensors", "-of-"})
        check(index_of(name).empty(), "cases/weights: no part: %s", name);
    check(index_of("a-b/x-of-y-1-of-2.safetensors") == "a-b/x-of-y.safetensors.index.json",
          "cases/weights: a part of another name");

    // directories with other weights: the largest file counts
    for (const std::string config : {"", "config"})
        for (const char* name : {"pytorch_model.bin", "ckpt.pt"}) {
            fresh_directory("weights");
            if (!config.empty()) write_file(dir + "/config.json", config_json(c, -1));
            write_file(dir + "/" + name, std::string("PK\3\4\0\0a/data.pkl", 16) + std::string(999, '\1'));
            write_file(dir + "/optimizer.pt", std::string("PK\3\4\0\0a/data.pkl", 16));
            dies(format("%s in a directory", name).c_str(),
                 dir + "/" + name + ": looks like a PyTorch checkpoint, not model.safetensors; python3 -c ",
                 [&] { open_model(dir); });
            dies(format("%s in a directory, and its weights beside", name).c_str(),
                 "w.get('state_dict', w)); s.save_file({k: v.contiguous().clone() for k, v in w.items() if "
                 "torch.is_tensor(v)}, '" + dir + "/model.safetensors')", [&] { open_model(dir); });
        }
    fresh_directory("weights");
    dies("an empty directory", "holds no model.safetensors and no whole checkpoint", [&] { open_model(dir); });

    // numbers that are none
    for (const char* dtype : {"F32", "BF16", "F16"})
        for (float bad : {NAN, INFINITY, -INFINITY})
            for (size_t at : {0, 2, 5}) {
                auto pieces = good;
                Piece& p = pieces[at];
                const size_t k = rng.below(p.data.size() / 4), width = p.shape.back();
                const uint32_t bits = std::bit_cast<uint32_t>(bad);
                const uint32_t half = (bits >> 16 & 0x8000) | (std::isnan(bad) ? 0x7e00 : 0x7c00);
                if (dtype == std::string("F32")) memcpy(&p.data[4 * k], &bits, 4);
                else {
                    p.dtype = dtype;
                    p.data = std::string(p.data.size() / 2, '\0');
                    const uint16_t upper = dtype == std::string("F16") ? half : bits >> 16;
                    memcpy(&p.data[2 * k], &upper, 2);
                }
                write_file(dir + "/model.safetensors", safetensors(pieces));
                const std::string place = p.shape.size() == 2 ? format("row %zu, column %zu", k / width, k % width)
                                                              : format("number %zu", k);
                dies(format("%s %g", dtype, bad).c_str(),
                     "model.safetensors: tensor '" + p.name + "': " + place + format(" is %g", bad), [&] {
                    const ModelFile file = open_model(dir);
                    cpu::Model loaded(config_of(file, 2), 1, 4, false);
                    load_tensors(stored(loaded), file.tensors, file.path);
                });
            }
}

// ---- paths, texts, runs ---------------------------------------------------------------------------------------------
static void paths() {
    const std::string dir = fresh_directory("globs");
    for (const char* name : {"data [v2]", "a{1}", "plain", "~"}) {
        fs::create_directories(dir + "/" + name);
        for (const char* file : {"x1.bin", "x2.bin", "y[1].bin", "y1.bin"})
            write_file(dir + "/" + name + "/" + file, "");
    }
    const std::pair<const char*, std::vector<const char*>> cases[] = {
        {"data [v2]/x1.bin", {"data [v2]/x1.bin"}}, {"data [v2]/x*.bin", {"data [v2]/x1.bin", "data [v2]/x2.bin"}},
        {"data [v2]/x[2].bin", {"data [v2]/x2.bin"}}, {"data [v2]/y[1].bin", {"data [v2]/y[1].bin"}},
        {"plain/y[1-2].bin", {"plain/y1.bin"}},
        {"a{1}/x?.bin", {"a{1}/x1.bin", "a{1}/x2.bin"}}, {"a{1}/{x2,x1,x1}.bin", {"a{1}/x1.bin", "a{1}/x2.bin"}},
        {"{plain,a{1}}/x1.bin", {"plain/x1.bin"}}, {"{plain,data*}/x1.bin", {"data [v2]/x1.bin", "plain/x1.bin"}},
        {"~/x1.bin", {"~/x1.bin"}}, {"*/x1.bin", {"a{1}/x1.bin", "data [v2]/x1.bin", "plain/x1.bin", "~/x1.bin"}}};
    for (auto& [pattern, expected] : cases) {
        Words want, got;
        for (const char* path : expected) want.push_back(dir + "/" + path);
        const std::string error = error_of([&, p = pattern] { got = glob_files(dir + "/" + p, "--train"); });
        check(got == want, "cases/glob %s: %zu files%s", pattern, got.size(), error.c_str());
    }
    setenv("HOME", (fs::absolute(dir) / "data [v2]").c_str(), 1);
    const std::string home = getenv("HOME");
    check(at_home("~/x1.bin") == home + "/x1.bin" && at_home("~") == home && at_home("~x") == "~x" &&
              at_home("a/~") == "a/~", "cases/~ is the home directory");
    check(glob_files(at_home("~/x*.bin"), "--train").size() == 2, "cases/a glob below ~");
}

// Data without a tokenizer: nothing in it tells the vocabulary, and a shell may have seen the pattern first.
static void data() {
    const std::string dir = fresh_directory("bare"), out = DIR + "bare_run";
    const std::string none = dir + "/none.bin", wide = dir + "/wide.bin", narrow = dir + "/narrow.bin";
    write_file(narrow, numbers<uint16_t>(999, 65) + std::string("\x40\0", 2));
    write_file(wide, numbers<uint16_t>(999, 50257) + std::string("\x50\xc4", 2));
    write_file(none, "");
    std::string error, said;
    const Words rest = {"--init", "custom", "--layers", "1", "--heads", "1", "--channels", "4", "--context", "4",
                        "--batch", "1", "--steps", "1", "--sample-every", "0", "--out", out};
    auto start = [&](const Words& words) {
        fs::remove_all(out);
        said = run(joined(joined({"train"}, words), rest), &error);
        return error;
    };
    const std::string far = "--vocab: is missing, and the largest token is 64, where GPT-2 has 50257; give --vocab 65, "
                            "or more if ";
    auto right = [&](const char* name, const std::string& wrong) {
        check(wrong.empty(), "cases/data: %s %s", name, wrong.c_str());
    };
    right("16-bit tokens of characters",
          one_line_with(start({"--train", narrow, "--raw", "u16"}), far + "the tokenizer has more"));
    right("these in --train, GPT-2's in --val",
          start({"--train", narrow, "--val", wide, "--raw", "u16", "--eval-rows", "1"}));
    right("the vocabulary given", start({"--train", narrow, "--raw", "u16", "--vocab", "65"}));
    right("GPT-2's tokens", start({"--train", wide, "--raw", "u16"}));
    write_file(dir + "/meta.pkl", "\x80\4");
    const std::string near = "the largest token is 50256, where GPT-2 has 50257; give --vocab 50257, or more if " +
                             dir + "/meta.pkl has a vocab_size of more";
    right("GPT-2's tokens beside meta.pkl", one_line_with(start({"--train", wide, "--raw", "u16"}), near));
    fs::remove(dir + "/meta.pkl");
    Ids small(99);
    small[0] = 64;
    write_shard(dir + "/shard.bin", small, 65);
    write_shard(dir + "/nothing.bin", {}, 65);
    right("a shard of characters", start({"--train", dir + "/shard.bin"}));
    check(has(said, "warning: " + far), "cases/data: a shard of characters is told of");
    for (const char* raw : {"", "u16"}) {
        Words words = {"--train", none, "--vocab", "65"};
        if (*raw) words = joined(words, {"--raw", raw});
        right("an empty file", one_line_with(start(words), none + ": empty, expected tokens"));
    }
    right("no tokens",
          one_line_with(start({"--train", dir + "/nothing.bin", "--vocab", "65"}), "nothing.bin: holds no tokens"));
    right("a pattern without quotes",
          one_line_with(start({"--train", narrow, wide}),
                        wide + ": stands after no option; a pattern needs quotes: --train '*.bin'"));
}

static void texts() {
    const std::string dir = fresh_directory("texts"), out = dir + "/out/s";
    auto encode = [&](const Words& more, std::string* error = nullptr) {
        return shards_run(joined({"encode", "--tokenizer", "bytes", "--out", out}, more), error);
    };
    auto shard = [&](const std::string& name) {                        // its texts, "|" for the end of text
        std::string s;
        const Shard tokens(out + name, false);
        const Tokenizer t = Tokenizer::load("bytes");
        for (size_t i = 0; i < tokens.count; i++)
            s += (int)tokens[i] == t.eot() ? "|" : std::string(t.decode(tokens[i]));
        return s;
    };
    const struct { const char* name; std::string bytes, split, want, said = "", second = ""; } taken[] = {
        {"crlf.txt", "one\r\n\r\ntwo\r\n\r\nthree", "\\n\\n", "|one\r\n\r\n|two\r\n\r\n|three", "documents: 3"},
        {"both.txt", "one\r\n\r\ntwo\n\nthree\r\n", "\\n\\n", "|one\r\n\r\n|two\n\n|three\r\n"},
        {"mark.txt", "a\r\n<|x|>\r\nb\n<|x|>\nc", "\\n<|x|>\\n", "|a|b|c"},
        {"windows.txt", "a\r\n\r\nb\n\nc", "\\r\\n\\r\\n", "|a\r\n\r\n|b\n\nc"},
        {"bom.txt", "\xef\xbb\xbfone", "", "|one", "documents: 1"},
        {"none.txt", "one two", "\\n\\n", "|one two", "warning: --split \\n\\n: is nowhere in the input"},
        {"a.ndjson", "{\"text\":\"hi\"}\n", "", "|hi"}, {"a.jsonlines", "{\"text\":\"hi\"}\n", "", "|hi"},
        {"A.jl", "\n{\"text\":\"hi\"}\n{\"text\":\"you\"}", "", "|hi|you"}, {"julia.jl", "{a} = 1\n", "", "|{a} = 1\n"},
        {"julia 2.jl", "[1]\n", "", "|[1]\n"}, {"A.JSONL", "{\"text\":\"hi\"}\n", "", "|hi"},
        {"bom.jsonl", "\xef\xbb\xbf{\"text\":\"hi\"}\r\n\r\n{\"text\":\"you\"}\r\n\r\n \n", "", "|hi|you",
         "documents: 2"},
        {"lines.json", "{\"text\":\"hi\"}\n{\"text\":\"you\"}\n", "", "|hi|you"},
        {"json.txt", "{\"text\":\"hi\"}\n", "", "|{\"text\":\"hi\"}\n"},
        {"two.txt", "one", "", "|one|x--y", "documents: 2", "x--y"},
        {"split.txt", "one", "--", "|one|x|y", "documents: 3", "x--y"}};
    for (auto& c : taken) {
        const std::string in = dir + "/" + c.name;
        write_file(in, c.bytes);
        write_file(dir + "/second", c.second);
        Words words = {"--in", in};
        if (!c.split.empty()) words = joined(words, {"--split", c.split});
        if (!c.second.empty()) words = joined(words, {"--in", dir + "/second"});
        const std::string said = encode(words), got = has(said, "error") ? said : shard("_train.bin");
        check(got == c.want && has(said, c.said), "cases/encode %s%s", c.name,
              got == c.want && has(said, c.said) ? "" : (": " + json_quote(got) + " " + said).c_str());
    }
    check(!has(encode({"--in", dir + "/crlf.txt", "--split", "\\n\\n"}), "--split"),
          "cases/encode: no warning where --split matches");
    encode({"--in", dir + "/two.txt", "--in", dir + "/second", "--in", dir + "/crlf.txt", "--val-fraction", "0.2"});
    write_file(dir + "/second", "x--y");
    const std::string fraction = encode({"--in", dir + "/two.txt", "--in", dir + "/second", "--val-fraction", "0.5"});
    check(shard("_val.bin") == "|one" && shard("_train.bin") == "|x--y" &&
              has(fraction, "_val.bin: 4 tokens, documents: 1"),
          "cases/encode two inputs, the first part for validation: %s", json_quote(fraction).c_str());
    const std::pair<const char*, const char*> refused[][2] = {
        {{"array.json", "[{\"text\": \"a\"}]"}, {"jq -c '.[]' ", ""}},
        {{"pretty.json", "{\n  \"text\": \"a\"\n}\n"}, {"looks like JSON, not JSON Lines", ""}},
        {{"array.jsonl", "[\n{\"text\": \"a\"}\n]"}, {"looks like JSON, not JSON Lines", ""}},
        {{"chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"},
         {"line 1: expected an object with a string \"text\"; it has \"messages\" (no string); it holds a chat", ""}},
        {{"pairs.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n"}, {"build/shards examples reads", ""}},
        {{"alpaca.jsonl", "{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}\n"},
         {"; build/shards examples reads prompts, responses", ""}},
        {{"hh.jsonl", "{\"chosen\": \"a\", \"rejected\": \"b\"}\n"},
         {"; build/shards examples reads prompts, responses", ""}},
        {{"sharegpt.jsonl", "{\"id\": \"x\", \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}\n"},
         {"it holds a chat, which build/shards examples reads; or make texts of chats: jq -c '{text: "
          "[.conversations[] | .from + \": \" + .value] | join(\"\\n\")}' ", ""}},
        {{"null.jsonl", "{\"text\": \"a\"}\n{\"text\": null, \"id\": \"b\"}\n"},
         {"line 2: expected an object with a string \"text\"; it has \"id\", \"text\" (no string); leave such lines out: jq -c 'select(.[\"text\"])' ", ""}},
        {{"number.jsonl", "{\"text\": 3}\n"}, {"make it a string: jq -c '.[\"text\"] |= tostring' ", ""}},
        {{"bool.jsonl", "{\"text\": false}\n"}, {"make it a string: jq", ""}},
        {{"list.jsonl", "{\"text\": [\"a\"]}\n"}, {"jq -c '.[\"text\"][] | {text: .}' ", ""}},
        {{"other.jsonl", "{\"content\": \"a\", \"id\": 3}\n"},
         {"it has \"content\", \"id\" (no string); name another member with --field", ""}},
        {{"nested.jsonl", "{\"doc\": {\"text\": \"a\"}}\n"},
         {"it has \"doc\" (no string); take it from where it is: jq -c '{text: .MEMBER}' ", ""}},
        {{"none.jsonl", "{}\n"}, {"it has no members", ""}}, {{"string.jsonl", "\"a\"\n"}, {"found no object", ""}},
        {{"blank.jsonl", "\n \n"}, {"blank.jsonl: holds no text", ""}},
        {{"data.json", "{\"version\": 2, \"data\": [{\"text\": \"a\"}]}"}, {"jq -c '.[\"data\"][]' " , ""}},
        {{"data.jsonl", "{\n \"of all\":\n [\"a\"]}"}, {"byte 1: ", ""}},
        {{"texts.json", "{\n \"n\": {\"a\": [1]}, \"of all\":\n [\"a\"]}"},
         {"jq -c '.[\"of all\"][] | {text: .}' ", ""}},
        {{"strings.json", "[\"a\", \"b\"]"}, {"jq -c '.[] | {text: .}' ", ""}},
        {{"cut.json", "{\n\"a\": "}, {"cut.json: byte 7: the JSON ends", ""}},
        {{"no text", ""}, {"no text: empty, expected text", ""}}};
    for (auto& c : refused) {
        write_file(dir + "/" + c[0].first, c[0].second);
        std::string error;
        encode({"--in", dir + "/" + c[0].first}, &error);
        const std::string wrong = one_line_with(error, c[1].first);
        check(wrong.empty(), "cases/encode refuses %s%s", c[0].first, wrong.c_str());
    }
    for (const char* text : {"{ no JSON }\n", "[1] a footnote\n", "{\n \"a\": 1}", "a {\"text\": 1}\n"}) {
        write_file(dir + "/prose", text);
        const std::string said = encode({"--in", dir + "/prose"});
        check(!has(said, "warning") && shard("_train.bin") == std::string("|") + text,
              "cases/encode: no JSON Lines: %s%s", json_quote(text).c_str(), said.c_str());
    }
    // names of inputs and outputs
    write_file(dir + "/g1.txt", "one");
    write_file(dir + "/g2.txt", "two");
    write_file(dir + "/g 3.txt", "three");
    encode({"--in", dir + "/g*.txt"});
    check(shard("_train.bin") == "|three|one|two", "cases/encode takes a pattern");
    shards_run({"encode", "--in", dir + "/g1.txt", "--tokenizer", "bytes", "--out", out + "2"});
    check(shards_run({"decode", "--in", out + "*_train.bin", "--eot", "|", "--tokenizer", "bytes"}) ==
              "|one|three|one|two",
          "cases/decode takes a pattern");
    const std::pair<const char*, Words> usages[] = {
        {"b.txt: stands after no option; a pattern needs quotes: --in '*.txt'; or give the option before each file",
         {"--in", "a.txt", "b.txt", "--out", out}},
        {"h*.txt: no such file", {"--in", dir + "/h*.txt", "--out", out}},
        {"/: names a directory; give what the names of files in it begin with, too: --out ", {"--in", dir + "/g1.txt",
         "--out", dir + "/"}},
        {"--out ..: names a directory", {"--in", dir + "/g1.txt", "--out", ".."}}};
    fs::create_directories(dir + "/t/there");
    const std::string beside =
        shards_run({"encode", "--in", dir + "/g1.txt", "--tokenizer", "bytes", "--out", dir + "/t/there"});
    check(has(beside, "/t/there: the shards will stand beside this directory; for files in it: --out "),
          "cases/encode beside a directory");
    for (auto& [words, arguments] : usages) {
        std::string error;
        shards_run(joined(joined({"encode"}, arguments), {"--tokenizer", "bytes"}), &error);
        const std::string wrong = one_line_with(error, words);
        check(wrong.empty(), "cases/encode refuses %s%s", words, wrong.c_str());
    }
    for (const auto& [name, line] : {std::pair("/no text", "no text: empty, expected text"),
                                     {"/blank.jsonl", "blank.jsonl: holds no text"}})
        dies(format("bpe of%s", name).c_str(), line, [&, name = name] {
            std::string error;
            shards_run({"bpe", "--in", dir + name, "--vocab", "300", "--out", out}, &error);
            die("%s", error.c_str());
        });
    check(has(encode({"--in", dir + "/crlf.txt", "--val-fraction", "0.5"}),
              "_train.bin: 9 tokens, the rest of a document, shards: 1"),
          "cases/encode a document in two parts");
    // examples and text of one directory have one tokenizer
    write_file(dir + "/pairs.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n");
    write_file(dir + "/other.txt", "a b\n");
    write_file(dir + "/wrong.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n");
    const Words pairs = {"examples", "--in", dir + "/pairs.jsonl", "--out", dir + "/pairs/p.bin",
                         "--tokenizer"};
    const std::string by_bytes = shards_run(joined(pairs, {"bytes"}));
    const char* report = "p.bin: prompts and responses: 1, of {\"prompt\", \"response\"}; tokens of prompts: 1, of "
                         "responses: 1, of the longest row: 3\n";
    check(has(by_bytes, report) && Tokenizer::load(dir + "/pairs").same(Tokenizer::load("bytes")),
          "cases/examples keep their tokenizer beside them");
    check(has(shards_run(joined(pairs, {dir + "/other.txt"})),
              "/pairs/merges.txt: is another tokenizer than --tokenizer "),
          "cases/examples of another tokenizer");
    const Words by_other = {"encode", "--in", dir + "/g1.txt", "--tokenizer", dir + "/other.txt", "--out",
                            dir + "/pairs/t"};
    check(has(shards_run(by_other), "/pairs/merges.txt: is another tokenizer"),
          "cases/a text of another tokenizer than the examples beside it");
    check(has(shards_run({"examples", "--in", dir + "/wrong.jsonl", "--out", out, "--tokenizer", "bytes"}),
              "it has \"instruction\", \"output\""),
          "cases/examples of other members");
    // standard input and a pipe
    for (const std::string bytes : {"one--two", "{\"text\": \"one--two\"}\n"}) {
        write_file(dir + "/stdin", bytes);
        const std::string said = with_input(dir + "/stdin", [&] { return encode({"--in", "-"}); });
        check(shard("_train.bin") == "|one--two", "cases/encode standard input: %s", json_quote(said).c_str());
    }
    const std::pair<const char*, const char*> refused_inputs[] = {
        {"\x1f\x8b\x08 zipped", "error: standard input: looks like gzip data, not UTF-8 text; put it in a FILE, and unpack it: gunzip FILE"},
        {"[{\"text\": \"a\"}]", "error: standard input: looks like JSON, not JSON Lines; put it in a FILE, and make an object a line: jq -c '.[]' FILE"},
        {" [\n \"a\",\n \"b\"\n]\n", "error: standard input: looks like JSON, not JSON Lines"},
        {"{\n \"data\": [\"a\"]\n}\n", "error: standard input: looks like JSON, not JSON Lines"},
        {"[1] a footnote", "_train.bin: 15 tokens, documents: 1"},
        {"{ no JSON }", "_train.bin: 12 tokens, documents: 1"},
        {"a<|endoftext|>b<|endoftext|>c", "warning: standard input: holds <|endoftext|> 2 times, which are taken as "
         "the letters they are, not as token 256; --split '<|endoftext|>' makes documents"}};
    for (auto& [bytes, line] : refused_inputs) {
        write_file(dir + "/stdin", bytes);
        const std::string said = with_input(dir + "/stdin", [&] { return encode({"--in", "-"}); });
        check(has(said, line), "cases/encode standard input: %s: %s", json_quote(bytes).c_str(),
              json_quote(said).c_str());
    }
    check(!has(encode({"--in", dir + "/stdin", "--split", "<|endoftext|>"}), "letters") &&
              shard("_train.bin") == "|a|b|c",
          "cases/encode splits at end of text");
    const std::string pipe = dir + "/pipe";
    mkfifo(pipe.c_str(), 0666);
    if (const pid_t pid = fork(); pid == 0) {
        write_file(pipe, "one--two");
        _exit(0);
    }
    const std::string said = encode({"--in", pipe, "--split", "--"});
    check(shard("_train.bin") == "|one|two", "cases/encode a pipe: %s", json_quote(said).c_str());
    write_file(dir + "/m.jsonl", "{\"text\": \"xyxyxy abab\"}\n");
    write_file(dir + "/m.txt", "cdcdcd abab");
    shards_run({"bpe", "--in", dir + "/m.jsonl", "--in", dir + "/m.txt", "--vocab", "258", "--out", dir + "/bpe"});
    check(read_file(dir + "/bpe/merges.txt") == "#version: 0.2\na b\n", "cases/bpe of two inputs");
    const auto again = [&](const char* vocab) {
        return shards_run({"bpe", "--in", dir + "/m.txt", "--vocab", vocab, "--out", dir + "/bpe"});
    };
    check(has(again("259"), "merges.txt: 259 tokens"), "cases/bpe takes the place of another");
    write_file(dir + "/bpe/a.bin", "");
    const std::pair<std::string, std::string> with_ends[] = {
        {"/ends.txt", "ab ab<|endoftext|>ab ab ab<|endoftext|>"},
        {"/ends.jsonl", "{\"text\": \"abab<|endoftext|>\"}\n{\"text\": \"ab<|endoftext|>ab\"}\n"}};
    for (auto& [name, bytes] : with_ends) {
        write_file(dir + name, bytes);
        const std::string told = shards_run({"bpe", "--in", dir + name, "--vocab", "258", "--out", dir + "/bpe2"});
        const std::string ending = name.substr(5);
        const std::string want = "warning: " + dir + name + ": holds <|endoftext|> 2 times, which are taken as the "
                                 "letters they are, not as token 257; learn without them: sed 's/<|endoftext|>//g' " +
                                 dir + name + " > text" + ending + "\n";
        check(has(told, want) && has(told, "258 tokens"), "cases/bpe tells of an end of text in %s: %s", name.c_str(),
              told.c_str());
    }
    check(!has(again("259"), "holds"), "cases/bpe without an end of text tells of none");
    for (const std::string verb : {"encode", "bpe"})
        for (const std::string second : {"", "/m.jsonl"}) {
            Words words = {verb, "--in", dir + "/m.txt", "--field", "text", "--out", dir + "/field/f"};
            words = joined(words, verb == "encode" ? Words{"--tokenizer", "bytes"} : Words{"--vocab", "258"});
            if (!second.empty()) words = joined(words, {"--in", dir + second});
            int code = 0;
            std::string error;
            error_of([&] {
                try {
                    shards::run(shards::parse_arguments(words));
                } catch (const Error& e) {
                    code = e.exit_code;
                    error = e.line;
                }
            });
            const std::string want = "--field: is for JSON Lines, but " + dir + "/m.txt holds a text";
            const bool told = code == 2 && one_line_with(error, want).empty();
            check(second.empty() ? told : code == 0, "cases/%s --field of a text%s: %d %s", verb.c_str(),
                  second.empty() ? "" : " and of JSON Lines", code, error.c_str());
        }
    check(has(again("258"), "/bpe/merges.txt: a.bin beside it has this tokenizer's tokens") &&
              has(again("259"), "259 tokens"), "cases/bpe leaves the tokenizer of data");
}

// Examples of every form: their segments, "@" for an end of text within one, encoded each by itself; and back.
static void examples() {
    const std::string dir = fresh_directory("examples"), in = dir + "/in.jsonl", out = dir + "/out/e.bin";
    const std::string merges = dir + "/t";
    fs::create_directories(merges);
    write_file(merges + "/merges.txt", MERGES);
    const Tokenizer t = Tokenizer::load(merges);
    auto encoded = [&](const std::string& segment) {
        Ids ids;
        for (size_t at = 0, end; at <= segment.size(); at = end + 1) {
            end = std::min(segment.find('@', at), segment.size());
            if (at) ids.push_back(t.eot());
            for (int id : t.encode(segment.substr(at, end - at))) ids.push_back(id);
        }
        return ids;
    };
    auto make = [&](const std::string& lines, std::string* error, const Words& more = {}) {
        fs::remove_all(dir + "/out");
        write_file(in, lines);
        return shards_run(joined({"examples", "--in", in, "--tokenizer", merges, "--out", out}, more), error);
    };
    auto list = [](const Words& turns) {
        std::string s;
        for (const std::string& turn : turns) s += (s.empty() ? "[" : ", ") + turn;
        return s + "]";
    };
    auto messages = [&](const Words& turns) { return "{\"messages\": " + list(turns) + "}"; };
    auto prompt = [&](const Words& turns) { return "{\"prompt\": " + list(turns) + "}"; };
    auto preferred = [&](const Words& chosen, const Words& rejected) {
        return "{\"chosen\": " + list(chosen) + ", \"rejected\": " + list(rejected) + "}";
    };
    const std::string task = "Below is an instruction that describes a task", own = "<{role}>:{content};";
    const std::string request = ". Write a response that appropriately completes the request.\n\n### Instruction:\n";
    const std::string hi = R"({"role": "user", "content": "the cat"})";
    const std::string rule = R"({"role": "system", "content": "the\n"})";
    const std::string yes = R"({"role": "assistant", "content": "cat"})";
    const std::string no = R"({"role": "assistant", "content": "caterer"})";
    const struct {
        const char* name;
        std::string lines;
        int segments;
        Words want;
        Ids first;
        std::string said, back;
        Words more = {};
    } cases[] = {
        {"pairs",
         "{\"prompt\": \"the cat\", \"response\": \" cat\"}\n\n{\"response\": \"\\u00e9\\\"\", \"prompt\": \"\"}\n", 2,
         {"the cat", " cat", "", "\xc3\xa9\""}, {0, 2, 4}, "prompts and responses: 2, of {\"prompt\", \"response\"}; "
         "tokens of prompts: 3, of responses: 5, of the longest row: 6\n",
         "{\"prompt\": \"the cat\", \"response\": \" cat\"}\n{\"prompt\": \"\", \"response\": \"\xc3\xa9\\\"\"}\n"},
        {"answers", R"({"prompt": "1+1", "answer": "2", "id": 7, "why": "the"})" "\n", 2, {"1+1", "2"}, {0, 2},
         "of {\"prompt\", \"answer\"}, without \"id\", \"why\"; tokens of prompts: 3, of responses: 1, of the longest "
         "row: 5\n", "{\"prompt\": \"1+1\", \"response\": \"2\"}\n"},
        {"completions", R"({"prompt": "a", "completion": "b"})", 2, {"a", "b"}, {0, 2},
         "of {\"prompt\", \"completion\"}; ", "{\"prompt\": \"a\", \"response\": \"b\"}\n"},
        {"prompts", "{\"prompt\": \"the\"}\n{\"prompt\": \"cat the\"}\n", 1, {"the", "cat the"}, {0, 1, 2},
         "prompts alone: 2, of {\"prompt\"}; tokens of prompts: 3, of responses: 0, of the longest row: 3\n",
         "{\"prompt\": \"the\"}\n{\"prompt\": \"cat the\"}\n"},
        {"preferences", R"({"prompt": "a", "chosen": "b", "rejected": "the"})" "\n"
         R"({"prompt": "a", "chosen": "c", "rejected": "c"})" "\n"
         R"({"prompt": "a", "chosen": "the cat", "rejected": "d"})", 3, {"a", "b", "the", "a", "the cat", "d"},
         {0, 3, 6}, "preferences: 2, of {\"prompt\", \"chosen\", \"rejected\"}; tokens of prompts: 2, of responses: "
         "6, of the longest row: 5\nleft out: 1 preferences whose chosen and rejected are alike\n",
         "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"the\"}\n"
         "{\"prompt\": \"a\", \"chosen\": \"the cat\", \"rejected\": \"d\"}\n"},
        {"a ranking", R"({"prompt": "a", "responses": ["x", "y", "x", "z"]})", 3,
         {"a", "x", "y", "a", "x", "z", "a", "y", "x", "a", "y", "z", "a", "x", "z"}, {0, 3, 6, 9, 12, 15},
         "preferences: 5, of {\"prompt\", \"responses\"}; tokens of prompts: 5, of responses: 10, of the longest row: "
         "3\nleft out: 1 ", ""},
        {"HH-RLHF", R"({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: the", "rejected": )"
         R"("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: thx"})", 3,
         {"\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " the", " thx"}, {0, 3},
         "preferences: 1, of {\"chosen\", \"rejected\"}", ""},
        {"HH-RLHF that parts early", R"({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", )"
         R"("rejected": "\n\nHuman: a\n\nAssistant: x"})", 3,
         {"\n\nHuman: a\n\nAssistant:", " b\n\nHuman: c\n\nAssistant: d", " x"}, {0, 3}, "", ""},
        {"Alpaca", R"({"instruction": "the", "input": "", "output": "cat"})" "\n"
         R"({"instruction": "the", "input": "in", "output": "out"})", 2,
         {task + request + "the\n\n### Response:", "cat",
          task + ", paired with an input that provides further context" + request +
              "the\n\n### Input:\nin\n\n### Response:", "out"}, {0, 2, 4},
         "of {\"instruction\", \"input\", \"output\"}; ", ""},
        {"messages", messages({rule, hi, yes, hi, no, no, hi}) + "\n" + messages({yes}), 0,
         {"<|system|>\nthe\n\n<|user|>\nthe cat\n<|assistant|>\n", "cat", "<|user|>\nthe cat\n<|assistant|>\n",
          "caterer", "<|assistant|>\n", "caterer", "<|assistant|>\n", "cat"}, {0, 6, 8},
         "dialogues: 2, of {\"messages\"}; ", "{\"segments\": [\"<|system|>\\u000athe\\u000a\\u000a<|user|>\\u000athe "
         "cat\\u000a<|assistant|>\\u000a\", \"cat\", \"<|user|>\\u000athe cat\\u000a<|assistant|>\\u000a\", "
         "\"caterer\", \"<|assistant|>\\u000a\", \"caterer\"]}\n{\"segments\": [\"<|assistant|>\\u000a\", \"cat\"]}\n"},
        {"messages of another template", messages({hi, yes}), 0, {"<user>:the cat;<assistant>:",
         "cat"}, {0, 2}, "dialogues: 1, ", "", {"--template", own}},
        {"ShareGPT", R"({"id": "x", "conversations": [{"from": "system", "value": "a"}, {"from": "human", "value": )"
         R"("b"}, {"from": "gpt", "value": "c"}, {"from": "tool", "value": "d"}]})", 0,
         {"<system>:a;<user>:b;<assistant>:", "c"}, {0, 2}, "dialogues: 1, of {\"conversations\"}, without \"id\"; "
         "tokens of prompts: 32, of responses: 1, of the longest row: 34\n"
         "left out: 1 turns after the assistant's last\n", "", {"--template", own}},
        {"UltraFeedback", "{\"prompt\": \"the cat\", \"prompt_id\": \"1\", \"chosen\": " + list({hi, yes}) +
         ", \"rejected\": " + list({hi, no}) + ", \"messages\": " + list({hi, yes}) + "}", 3,
         {"<user>:the cat;<assistant>:", "cat", "caterer"}, {0, 3},
         "preferences: 1, of {\"prompt\", \"chosen\", \"rejected\"}, without \"messages\", \"prompt_id\"; ", "",
         {"--template", own}},
        {"preferred turns, longer",
         preferred({hi, yes, hi, yes}, {hi, yes, hi, no}) + "\n" + preferred({hi, yes}, {hi, yes}), 3,
         {"<user>:the cat;<assistant>:cat@<user>:the cat;<assistant>:", "cat", "caterer"}, {0, 3},
         "left out: 1 preferences", "{\"prompt\": \"<user>:the cat;<assistant>:cat@<user>:the cat;<assistant>:\", "
         "\"chosen\": \"cat\", \"rejected\": \"caterer\"}\n", {"--template", own}},
        {"preferred turns after a prompt of turns",
         "{\"prompt\": " + list({rule, hi}) + ", \"chosen\": " + list({yes}) + ", \"rejected\": " + list({no}) + "}", 3,
         {"<system>:the\n;<user>:the cat;<assistant>:", "cat", "caterer"}, {0, 3}, "", "", {"--template", own}},
        {"a prompt of turns",
         "{\"prompt\": " + list({rule, hi}) + "}\n{\"prompt\": \"the\"}\n{\"prompt\": " + list({hi, yes, hi}) + "}", 1,
         {"<system>:the\n;<user>:the cat;<assistant>:", "the",
          "<user>:the cat;<assistant>:cat@<user>:the cat;<assistant>:"}, {0, 1, 2, 3},
         "prompts alone: 3, of {\"prompt\"}; ", "", {"--template", own}},
        {"a prompt of turns and an answer", "{\"prompt\": " + list({hi}) + ", \"answer\": \"cat\"}\n{\"prompt\": " +
         list({hi, yes, hi}) + ", \"answer\": \"the\"}", 2,
         {"<user>:the cat;<assistant>:", "cat", "<user>:the cat;<assistant>:cat@<user>:the cat;<assistant>:", "the"},
         {0, 2, 4}, "prompts and responses: 2, of ", "", {"--template", own}},
        {"a prompt of turns and a completion of one",
         "{\"prompt\": " + list({hi}) + ", \"completion\": " + list({no}) + "}", 2,
         {"<user>:the cat;<assistant>:", "caterer"}, {0, 2}, "prompts and responses: 1, of ", "", {"--template", own}},
        {"preferred turns after a prompt",
         "{\"prompt\": \"the\", \"chosen\": " + list({yes}) + ", \"rejected\": " + list({no}) + "}", 3,
         {"<user>:the;<assistant>:", "cat", "caterer"}, {0, 3}, "", "", {"--template", own}}};
    for (auto& c : cases) {
        std::string error;
        const std::string said = make(c.lines, &error, c.more);
        error += error_of([&] {
            const Examples e(out, t.vocab(), 9999);
            if (e.segments != c.segments || Ids(e.first.begin(), e.first.end()) != c.first)
                die("%d segments, %zu examples", e.segments, e.size());
            for (size_t i = 0; i < c.want.size(); i++)
                if (e.tokens.at(i) != encoded(c.want[i])) die("segment %zu: other ids", i);
            if (!has(said, out + ": ") || !has(said, c.said)) die("said %s", said.c_str());
            const std::string back = shards_run({"decode", "--in", out, "--tokenizer", merges, "--eot", "@"});
            if (!c.back.empty() && back != c.back) die("decoded %s", back.c_str());
            if (c.segments && c.more.empty()) {                          // what is decoded can be encoded again
                const std::string bytes = read_file(out), again = make(back, nullptr);
                if (read_file(out) != bytes) die("encoded again otherwise: %s", again.c_str());
            }
        });
        check(error.empty(), "cases/examples: %s%s%s", c.name, error.empty() ? "" : ": ", error.c_str());
    }
    const std::string line = in + ": line ", ok = R"({"prompt": "a", "response": "b"})" "\n", two = line + "2: ";
    const struct { const char* name; std::string lines, words; Words more = {}; } refused[] = {
        {"no form", R"({"question": "a", "text": "b"})", line + R"(1: expected an object with the members of one of )"
         R"({"prompt", "chosen", "rejected"}, {"chosen", "rejected"}, {"prompt", "responses"}, {"prompt", )"
         R"("response"}, )" R"({"prompt", "answer"}, {"prompt", "completion"}, {"instruction", "input", "output"}, )"
         R"({"messages"}, {"conversations"}, {"prompt"}; it has "question", "text")"},
        {"no object", "[1]\n", "looks like JSON, not JSON Lines"},
        {"a string", "\"a\"\n", line + "1: expected an object with the members of one of "},
        {"no JSON", ok + "{", two + "byte 1: the JSON ends"},
        {"nothing", "\n", "no examples, expected one JSON object a line"},
        {"another form below", ok + R"({"prompt": "a", "answer": "b"})", two +
         R"(expected a string "response", as in {"prompt", "response"}, the same on every line; it has "answer", )"
         R"("prompt")"},
        {"a number", ok + R"({"prompt": "a", "response": 1})", two + "expected a string \"response\""},
        {"no prompt", R"({"prompt": 1})", line + "1: expected a string \"prompt\", as in {\"prompt\"}"},
        {"a prompt of no turns", R"({"prompt": ["a"]})",
         line + "1: turn 1 of \"prompt\": expected strings \"role\" and \"content\""},
        {"a prompt without a turn", R"({"prompt": []})",
         line + "1: \"prompt\" is a list of 0 turns, expected one to be answered at its end"},
        {"a prompt that is answered", prompt({hi, yes}),
         line + "1: \"prompt\" is a list of 2 turns, expected one to be answered"},
        {"a completion of two turns", "{\"prompt\": " + list({hi}) + ", \"completion\": " + list({yes, no}) + "}",
         line + "1: expected one turn in \"completion\", the assistant's"},
        {"a user's completion", "{\"prompt\": " + list({hi}) + ", \"completion\": " + list({hi}) + "}",
         "1: expected one turn in \"completion\""},
        {"an empty answer to turns", "{\"prompt\": " + list({hi}) + ", \"answer\": \"\"}", "1: \"answer\" is empty"},
        {"an empty response", ok + R"({"prompt": "a", "response": ""})",
         two + R"("response" is empty, expected a response; take such lines out: jq -c 'select(.response != "")')"},
        {"an empty rejected one", R"({"prompt": "a", "chosen": "a", "rejected": ""})", "1: \"rejected\" is empty"},
        {"an empty output", R"({"instruction": "a", "input": "", "output": ""})", "1: \"output\" is empty"},
        {"all alike", R"({"prompt": "a", "chosen": "b", "rejected": "b"})",
         "all of 1 preferences have chosen and rejected alike"},
        {"a ranking of one", R"({"prompt": "a", "responses": ["b"]})",
         "1: expected a list \"responses\" of two strings or more, none empty, the best first"},
        {"a ranking with an empty one", R"({"prompt": "a", "responses": ["b", "", "c"]})",
         "1: expected a list \"responses\""},
        {"a ranking of numbers", R"({"prompt": "a", "responses": [1, 2]})", "1: expected a list \"responses\""},
        {"HH-RLHF without a common beginning",
         R"({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"})",
         R"(1: expected "chosen" and "rejected" that go on from a common beginning that ends in "\n\nAssistant:")"},
        {"HH-RLHF, an empty answer", R"({"chosen": "\n\nAssistant: b", "rejected": "\n\nAssistant:"})",
         "1: expected \"chosen\" and \"rejected\" that go on"},
        {"turns of no list", R"({"messages": "a"})", "1: expected a list \"messages\" of turns; it has \"messages\""},
        {"a turn without content", "{\"messages\": [" + hi + R"(, {"role": "assistant", "content": null}]})",
         R"(1: turn 2 of "messages": expected strings "role" and "content"; it has "content" (no string), "role")"},
        {"a turn of ShareGPT in messages", R"({"messages": [{"from": "human", "value": "a"}]})",
         "1: turn 1 of \"messages\": expected strings \"role\" and \"content\"; it has \"from\", \"value\""},
        {"a turn of messages in ShareGPT", "{\"conversations\": " + list({hi}) + "}",
         "expected strings \"from\" and \"value\""},
        {"an empty answer in a chat", "{\"messages\": [" + hi + R"(, {"role": "assistant", "content": ""}]})",
         R"(1: turn 2 of "messages": is empty, expected a response; take such lines out: jq -c )"
         R"('select(all(.messages[]; .content != ""))')"},
        {"no answer in a chat", messages({hi}), R"(1: found 1 turns, none of them the assistant's; take such lines )"
         R"(out: jq -c 'select(any(.messages[]; .role == "assistant"))')"},
        {"no turns", R"({"conversations": []})", R"(1: found 0 turns, none of them the assistant's; take such lines )"
         R"(out: jq -c 'select(any(.conversations[]; .from == "gpt"))')"},
        {"preferred turns that differ earlier", preferred({hi, yes}, {rule, no}),
         "1: expected \"chosen\" and \"rejected\" that differ in their last turn alone, the assistant's"},
        {"preferred turns of other lengths", preferred({hi, yes}, {no}),
         "1: expected \"chosen\" and \"rejected\" that differ"},
        {"preferred turns of the user", preferred({hi}, {rule}), "1: expected \"chosen\" and \"rejected\" that differ"},
        {"no preferred turns", R"({"chosen": [], "rejected": []})", "that differ"},
        {"turns and a string", "{\"chosen\": " + list({hi}) + ", \"rejected\": \"a\"}",
         "expected a list \"rejected\" of turns"},
        {"a template for pairs", ok, "--template: is for chats, but " + in + " holds {\"prompt\", \"response\"}",
         {"--template", own}},
        {"a template without a role", ok, "--template: found '{content}', expected {role} and then {content}, each "
         "once, as in '<|{role}|>\\n{content}\\n'", {"--template", "{content}"}},
        {"a template the wrong way", ok, "--template: found '{content}{role}'", {"--template", "{content}{role}"}},
        {"a template with two roles", ok, "expected {role} and then {content}, each once",
         {"--template", "{role}{role}{content}"}},
        {"a template with two contents", ok, "each once", {"--template", "{role}{content}{content}"}},
        {"a template with \\q", ok, "--template \"{role}\\\\q{content}\": after \\ expected n, t, r or another \\",
         {"--template", "{role}\\q{content}"}},
        {"an empty template", ok, "--template: needs a value", {"--template", ""}}};
    for (auto& c : refused) {
        std::string error;
        make(c.lines, &error, c.more);
        const std::string wrong = one_line_with(error, c.words);
        check(wrong.empty() && !exists(out), "cases/examples refused: %s%s", c.name, wrong.c_str());
    }

    // the template stands beside the data, goes where the tokenizer goes, and is the only one in a directory
    const std::string chat = messages({hi, yes}), odd = "\t{role}\\t\n:{content}\r\n";
    const Tokenizer saved = (make(chat, nullptr, {"--template", escaped(odd)}), Tokenizer::load(dir + "/out"));
    check(saved.chat_template == odd && saved.same(t) &&
              read_file(dir + "/out/template.txt") == "\\t{role}\\\\t\\n:{content}\\r\\n\n",
          "cases/a template is one line beside the tokenizer");
    auto add = [&](const char* name, const std::string& tokenizer, const Words& more) {
        const Words words = {"examples", "--in", in, "--tokenizer", tokenizer, "--out", dir + "/out/" + name};
        return shards_run(joined(words, more));
    };
    check(has(add("f.bin", dir + "/out", {}), "dialogues: 1") && read_file(dir + "/out/f.bin") == read_file(out),
          "cases/a template beside --tokenizer is taken");
    check(has(add("g.bin", merges, {"--template", escaped(odd)}), "dialogues: 1") &&
              read_file(dir + "/out/g.bin") == read_file(out), "cases/the same template again");
    const std::string differs = "error: " + dir + "/out/template.txt: found '\\t{role}\\\\t\\n:{content}\\r\\n', but "
                                "these chats have '<|{role}|>\\n{content}\\n'; choose another directory for --out";
    check(has(add("h.bin", merges, {}), differs) && !exists(dir + "/out/h.bin"),
          "cases/another template in one directory");
    write_file(in, ok);
    check(has(add("p.bin", merges, {}), "prompts and responses: 1") &&
              Tokenizer::load(dir + "/out").chat_template == odd, "cases/pairs leave the template beside them");
    const std::string model = fresh_directory("model");
    t.save(model);
    write_file(dir + "/t/template.txt", "{role}:{content}\r\n");
    auto found = [&](const Words& directories) { return find_tokenizer("", directories)->chat_template; };
    check(found({model, dir + "/out"}) == odd && found({dir + "/out", model}) == odd &&
              found({model, dir + "/out", dir + "/out"}) == odd && found({dir + "/t"}) == "{role}:{content}",
          "cases/a template is that beside the model or the data");
    dies("two templates",
         dir + "/out: the template of chats there is not that of " + merges + "; say which is right with --tokenizer",
         [&] { found({merges, dir + "/out"}); });
    const std::pair<const char*, const char*> wrong_templates[] = {
        {"{role}{content}\nmore\n", "t/template.txt: expected one line, with \\n for each line's end"},
        {"", "t/template.txt: found '', expected {role} and then {content}"},
        {"{role}\\x{content}\n", "t/template.txt: \"{role}\\\\x{content}\": after \\ expected n"},
        {"{role}\\", "after \\ expected n"}};
    for (auto& [bytes, words] : wrong_templates) {
        write_file(dir + "/t/template.txt", bytes);
        dies(format("template.txt: %s", json_quote(bytes).c_str()).c_str(), words, [&] { Tokenizer::load(merges); });
    }
    const ChatTemplate own_template(own);
    check(own_template.turn("user", "{role}") == "<user>:{role};" && own_template.opening("x") == "<x>:" &&
              ChatTemplate("{role}{content}").turn("a", "b") == "ab", "cases/a template makes turns and openings");
    check(has(shards_run({"decode", "--in", dir + "/out/g.bin", "--tokenizer", "bytes"}),
              "is not below the vocabulary size 257"),
          "cases/decode examples of another tokenizer");
}

static void runs() {
    // a model of 260 tokens, of which bytes, end of text and <|sep|> = 258 can be shown; 257 and 259 are padding
    const std::string dir = fresh_directory("model"), data = fresh_directory("data"), other = fresh_directory("other");
    const std::string out = DIR + "run";
    cpu::Model model(tiny_config(), 1, 4, false);
    initialize(model, 5);
    write_file(dir + "/model.safetensors", safetensors(pieces_of(model)));
    write_file(dir + "/config.json", config_json(model.c, 256));
    write_file(dir + "/merges.txt", "#version: 0.2\n");
    write_file(dir + "/added_tokens.json", "{\"<|sep|>\": 258}");
    Ids tokens(300);
    for (int& t : tokens) t = rng.below(260);
    tokens[0] = 256;
    write_shard(data + "/t.bin", tokens, 260);
    write_shard(other + "/t.bin", tokens, 260);
    write_examples(other + "/answers.bin", {{1}, {2}}, 2, 260);
    write_file(other + "/merges.txt", "a b\n");
    const Words train = {"train", "--init", dir, "--train", data + "/t.bin", "--steps", "1", "--batch", "2",
                         "--out", out};
    std::string error, said = run(joined(train, {"--val", data + "/t.*"}), &error);
    check(error.empty() && has(said, "warning: --val " + data + "/t.bin: is in --train, too"),
          "cases/data with added tokens and padding trains; validation data in the training data is told: %s",
          error.c_str());
    const std::string kept = out + "/step_00000001/added_tokens.json";
    check(exists(kept) && read_file(kept) == "{\"<|sep|>\": 258}\n" &&
              error_of([&] { verify_checkpoint(out + "/step_00000001"); }).empty(),
          "cases/a checkpoint keeps added tokens");
    fs::remove_all(out);
    fs::create_directories(out + "2");
    said = run(joined(train, {"--val", other + "/t.bin"}), &error);
    check(!fs::exists(out) && one_line_with(error, other + ": the tokenizer there is not that of " + dir).empty(),
          "cases/train, validation data of another tokenizer: %s", error.c_str());
    for (const Words& more : {Words{"--val", other + "/t.bin"}, Words{"--answers", other + "/answers.bin"}}) {
        Words words = joined({"eval", "--model", dir}, more);
        run(words, &error);
        check(one_line_with(error, other + ": the tokenizer there is not that of " + dir).empty(),
              "cases/eval %s of another tokenizer: %s", more[0].c_str(), error.c_str());
        words = joined(words, {"--tokenizer", "bytes"});
        check(has(run(words), more[0] == "--val" ? "val loss" : "answers right"), "cases/eval %s, the tokenizer said",
              more[0].c_str());
    }
    // The likeliest tokens are those that cannot be shown: they are never drawn.
    for (int hidden : {257, 259})
        for (int k = 0; k < model.c.C; k++) model.weights_of(0).wte[hidden * model.c.C + k] = 0;
    auto drawn = [&](const Tokenizer* t, double temperature, integer top_k, double top_p) {
        std::vector<size_t> count(260);
        Options o;
        o.tokens = 3000;
        o.temperature = temperature;
        o.top_k = top_k;
        o.top_p = top_p;
        Config c = model.c;
        cpu::Model m(c, 1, 8, false);
        initialize(m, 3);
        auto w = m.weights_of(0);
        for (int k = 0; k < c.C; k++) {                  // lnf_b points to 257 and 259, away from end of text
            w.lnf.b[k] = k % 2 ? -1 : 1;
            for (int v : {257, 259}) w.wte[v * c.C + k] = w.lnf.b[k];
            w.wte[256 * c.C + k] = -w.lnf.b[k];
        }
        generate(m, Sampling(o), o.seed, {{{256}, o.tokens}}, 256, t, [&](int, int token) { return ++count[token]; });
        return count[257] + count[259];
    };
    const Tokenizer t = Tokenizer::load(dir);
    check(drawn(nullptr, 1, 0, 1) > 100, "cases/sampling without a tokenizer draws every token");
    for (auto [temperature, top_k, top_p] : {std::tuple(0.0, 0, 1.0), {1.0, 0, 1.0}, {1000.0, 0, 1.0}, {1.0, 3, 1.0},
                                             {1.0, 0, 0.5}, {2.0, 5, 0.9}})
        check(drawn(&t, temperature, top_k, top_p) == 0,
              "cases/sampling draws nothing that cannot be shown: temperature %g, top-k %d, top-p %g", temperature,
              top_k, top_p);

    // prompts
    const Words sample = {"sample", "--model", dir, "--temperature", "0", "--tokens", "3"};
    auto sampled = [&](Words more) {
        return run(joined(sample, more));
    };
    const std::string plain = sampled({"--prompt", "the cat"});
    for (const char* bytes : {"the cat", "the cat\n", "the cat\r\n", "\xef\xbb\xbfthe cat\n"}) {
        write_file(dir + "/prompt", bytes);
        check(sampled({"--prompt-file", dir + "/prompt"}) == plain, "cases/a prompt from a file: %s",
              json_quote(bytes).c_str());
    }
    const std::string from_input = with_input(dir + "/prompt", [&] { return sampled({"--prompt-file", "-"}); });
    check(from_input == plain && has(plain, "the cat"), "cases/a prompt from standard input");
    check(has(sampled({"--prompt-file", "-", "--prompt", "a"}), "not both"), "cases/two prompts");
    const std::string tail(16, 'b'), longer = sampled({"--prompt", std::string(50, 'a') + tail});
    const std::string shorter = sampled({"--prompt", tail});
    check(has(longer, "warning: a prompt of 66 tokens") &&
              longer.substr(longer.find(tail)) == shorter.substr(shorter.find(tail)),
          "cases/a prompt longer than the context: %s", json_quote(longer.substr(0, 90)).c_str());

    // ids of a model without a tokenizer are apart
    fs::remove(dir + "/merges.txt");
    fs::remove(dir + "/added_tokens.json");
    for (const char* prompt : {"", "5 6"})
        for (const char* samples : {"1", "2"}) {
            const std::string text = sampled({"--prompt", prompt, "--samples", samples});
            const size_t words = std::count_if(text.begin(), text.end(), [](char c) { return c == ' '; });
            const size_t each = *prompt ? 4 : 2, expected = *samples == '1' ? each : 2 * (each + 2);
            check(words == expected, "cases/ids are apart, prompt '%s', %s samples: %s", prompt, samples,
                  json_quote(text).c_str());
        }
}

// What a person at a terminal sees who types words, each when what was waited for has been shown; and how it ended.
static std::pair<std::string, int> at_terminal(const Words& words,
                                               const std::vector<std::pair<std::string, std::string>>& script) {
    int terminal;
    fflush(stdout);
    fflush(stderr);
    const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
    if (child == 0) {
        omp_set_num_threads(1);              // OpenMP's other threads are not in a child
        _exit(run_main([&] { run_verb<cpu::Model>(parse_options(words)); }));
    }
    std::string all;
    size_t seen = 0, step = 0;
    char some[4096];
    alarm(300);
    for (ssize_t n; (n = read(terminal, some, sizeof some)) > 0;) {
        all.append(some, n);
        for (; step < script.size(); step++) {               // "": anything more
            const auto& [wanted, answer] = script[step];
            const size_t at = all.find(wanted, seen);
            if (at == all.npos || (wanted.empty() && at == all.size())) break;
            seen = at + wanted.size();
            if (write(terminal, answer.data(), answer.size()) < 0) break;
        }
    }
    alarm(0);
    int status;
    waitpid(child, &status, 0);
    close(terminal);
    return {all, WIFEXITED(status) && step == script.size() ? WEXITSTATUS(status) : -1};
}

// sample, chat and eval as people use them, on a model that writes letters at random and no end of text.
static void talks() {
    const std::string dir = fresh_directory("talk"), small = fresh_directory("talk_small"), file = dir + "/prompts";
    Config c = tiny_config();
    c.V = 257;
    auto make = [&](const std::string& dir, int T) {
        c.T = T;
        auto model = std::make_unique<cpu::Model>(c, 1, 16, false);
        initialize(*model, 5);
        auto w = model->weights_of(0);
        for (int k = 0; k < c.C; k++) {
            w.lnf.b[k] = k % 2 ? -1 : 1;
            w.wte[256 * c.C + k] = -30 * w.lnf.b[k];
        }
        for (int v = 0; v < 256; v++)                                    // 50 letters, as GPT-2 orders bytes
            for (int k = 0; k < c.C; k++)
                w.wte[v * c.C + k] = (v >= 32 && v < 82 ? 1 : -30) * w.lnf.b[k] * 0.3f + 10 * w.wte[v * c.C + k];
        write_file(dir + "/model.safetensors", safetensors(pieces_of(*model)));
        write_file(dir + "/config.json", config_json(c, 256));
        write_file(dir + "/merges.txt", "#version: 0.2\n");
        return model;
    };
    make(dir, 4096);
    auto run_with = [&](Words words, const Words& more) {
        if (std::find(more.begin(), more.end(), "--model") == more.end())
            words.insert(words.begin() + 1, {"--model", dir});
        return run(joined(words, more));
    };
    auto sample = [&](const Words& more) { return run_with({"sample", "--tokens", "30"}, more); };
    auto lines = [](const std::string& text) {
        std::vector<Json> all;
        for (size_t at = 0, end; (end = text.find('\n', at)) != text.npos; at = end + 1)
            all.push_back(parse_json(text.substr(at, end - at), "a line of the output"));
        return all;
    };
    const std::string plain = sample({"--prompt", "ab"}), said = plain.substr(2, plain.size() - 3);
    check(plain.size() == 33 && plain.starts_with("ab"), "cases/sample: %s", json_quote(plain).c_str());
    const std::vector<Json> json = lines(sample({"--prompt", "ab", "--format", "jsonl", "--samples", "3"}));
    check(json.size() == 3 && json[0]["response"].string == said && json[0]["prompt"].string == "ab" &&
              json[0]["finish"].string == "length" && json[1]["response"].string != said &&
              json[2]["tokens"].items.size() == 30 && json[2]["logprobs"].items.size() == 30 &&
              json[2]["prompt_tokens"].items.size() == 2 && json[2]["prompt_logprobs"].items.size() == 2,
          "cases/sample as JSON Lines");
    // log-probabilities against those of logits, for a text that fills its context of 16 three times
    const auto whole = make(small, 16);
    const Words drawing = {"--prompt", "ab", "--format", "jsonl", "--temperature", "0.7", "--top-k", "9"};
    const std::vector<Json> few = lines(sample(joined({"--model", small}, drawing)));
    std::vector<int> all, row;
    std::vector<double> logprobs;
    for (const char* part : {"prompt_", ""})
        for (size_t i = 0; i < few[0][std::string(part) + "tokens"].items.size(); i++) {
            all.push_back(few[0][std::string(part) + "tokens"].items[i].number);
            logprobs.push_back(few[0][std::string(part) + "logprobs"].items[i].number);
        }
    double worst = 0;
    for (size_t i = 0; i + 1 < all.size(); i++) {
        row.push_back(all[i]);
        if (row.size() > 16) row.erase(row.begin(), row.end() - 8);
        std::vector<float> z(c.V);
        whole->extend(row.data(), 1, 0, row.size());
        whole->logits(row.size() - 1, 1, 1, z.data());
        double sum = 0;
        for (float f : z) sum += std::exp((double)f);
        keep_worst(worst, std::abs(z[all[i + 1]] - std::log(sum) - logprobs[i + 1]));
    }
    check(all.size() == 32 && worst < 1e-4,
          "cases/log-probabilities are the model's own, around a full context: off by %.1e", worst);
    // stops
    const std::string stop = said.substr(11, 3), before = said.substr(0, said.find(stop));
    check(sample({"--prompt", "ab", "--stop", "none", "--stop", stop}) == "ab" + before + "\n",
          "cases/a stop string ends a text");
    const Json stopped = lines(sample({"--prompt", "ab", "--stop", stop, "--format", "jsonl"}))[0];
    check(stopped["response"].string == before && stopped["finish"].string == "stop" &&
              stopped["tokens"].items.size() == before.size() + 3 &&
              stopped["logprobs"].items.size() == before.size() + 3,
          "cases/its tokens and theirs");
    check(sample({"--prompt", "ab", "--stop", said.substr(25) + "xyz"}) == plain,
          "cases/what is held back is shown at the end");
    // prompts
    std::string many;
    for (int i = 0; i < 70; i++) many += std::string(1 + i % 7, 'a' + i % 20) + "\n" + (i % 9 ? "" : "\r\n");
    write_file(file, many.substr(0, many.size() - 1));
    const std::vector<Json> together = lines(sample({"--prompts", file, "--format", "jsonl"}));
    check(together.size() == 70 && together[65]["prompt"].string == "fff" && together[0]["prompt"].string == "a",
          "cases/70 prompts, in their order");
    many.clear();
    for (int i = 0; i < 70; i++) many += "b\n";
    write_file(file, many);
    std::set<std::string> different;
    for (const Json& t : lines(sample({"--prompts", file, "--format", "jsonl"})))
        different.insert(t["response"].string);
    check(different.size() == 70, "cases/the same prompt 70 times: %zu texts", different.size());
    write_file(file, "ab\n\ncd");
    const std::string two = sample({"--prompts", file});
    check(two.starts_with("--- prompt 1\n" + plain + "--- prompt 2\ncd"), "cases/two prompts as text: %s",
          json_quote(two).c_str());
    check(has(sample({"--prompts", file, "--samples", "2"}), "--- prompt 2, sample 2\ncd"),
          "cases/two prompts, two texts each");
    // examples
    write_file(file, "{\"prompt\": \"ab\", \"response\": \" c\"}\n");
    check(sample({"--prompt", "x", "--examples", file}) == "x" + sample({"--prompt", "ab c\nx"}).substr(6),
          "cases/an example before a prompt");
    const std::string too_long = sample({"--prompt", "xxxxxxx", "--examples", file, "--model", small});
    const std::string warning = ": the first 1 of 1 do not fit the context beside a prompt and its answer";
    check(has(too_long, "warning: --examples " + file + warning), "cases/an example that does not fit");
    write_examples(dir + "/answers.bin", {{65, 66}, {67}, {65}, {68, 69}}, 2, 257);
    check(run_with({"eval", "--examples", file}, {"--answers", dir + "/answers.bin"}) == "answers right 0 of 2\n",
          "cases/eval with an example");
    check(has(run_with({"eval", "--examples", file}, {"--answers", dir + "/answers.bin", "--context", "8"}),
              ": the first 1 of 1 do not fit"),
          "cases/eval with an example that does not fit");
    // one of several texts
    size_t likely = 0, seed = 1;
    std::string response;
    for (; likely == 0 && seed < 9; seed++) {                            // until it is not the first of them
        std::vector<double> sums;
        const std::vector<Json> three = lines(sample({"--prompt", "ab", "--format", "jsonl", "--samples", "3", "--seed",
                                                      std::to_string(seed)}));
        for (const Json& t : three) {
            double sum = 0;
            for (const Json& logprob : t["logprobs"].items) sum += logprob.number;
            sums.push_back(sum);
        }
        likely = std::max_element(sums.begin(), sums.end()) - sums.begin();
        response = three[likely]["response"].string;
    }
    const std::string best = sample({"--prompt", "ab", "--best-of", "3", "--seed", std::to_string(seed - 1)});
    check(likely > 0 && best == "ab" + response + "\n",
          "cases/the best of three is the likeliest, of seed %zu text %zu", seed - 1, likely + 1);
    const std::string mark = json[1]["response"].string.substr(20, 2);
    check(sample({"--prompt", "ab", "--vote", "3", "--vote-after", mark}) == "ab" + json[1]["response"].string + "\n",
          "cases/a vote of the only text with the mark");
    check(has(sample({"--prompt", "ab", "--vote", "3", "--vote-after", "\\n\\n"}),
              "warning: --vote-after '\\x0a\\x0a': is in no text; the first is taken"),
          "cases/a vote of no text");
    const std::pair<const char*, const char*> choosing[] = {
        {"--vote", "\nvote of 2: answers right 0 of 2\n"},
        {"--best-of", "\nbest of 2 by log-probability: answers right 0 of 2\n"}};
    for (auto [how, line] : choosing) {
        const Words eval = {"eval", "--answers", dir + "/answers.bin", "--context", "16"};
        check(has(run_with(eval, {how, "2"}), line), "cases/eval %s", how);
    }
    // penalties
    std::set<char> letters;
    for (char l : sample({"--prompt", "ab", "--repetition-penalty", "100"}).substr(2)) letters.insert(l);
    check(letters.size() == 31, "cases/a penalty on repetition: %zu letters of 30", letters.size() - 1);
    check(sample({"--prompt", "ab", "--min-p", "1"}) == sample({"--prompt", "ab", "--temperature", "0"}),
          "cases/--min-p 1 draws the likeliest");

    // a chat through a pipe, and at a terminal
    write_file(file, "/help\nhi\n/new\nhi");
    const std::string talk = with_input(file, [&] {
        return run({"chat", "--model", dir, "--tokens", "20", "--temperature", "0"});
    });
    clearerr(stdin);
    const std::string answers = talk.substr(std::min(talk.size(), strlen(Conversation::HELP)));
    check(talk.starts_with(Conversation::HELP) && answers.size() == 42 && answers.substr(0, 21) == answers.substr(21) &&
              answers[20] == '\n', "cases/a chat through a pipe, begun anew: %s", json_quote(answers).c_str());
    const Words chat = {"chat", "--model", dir, "--tokens", "4000", "--dtype", "fp32"};
    const auto [screen, ended] = at_terminal(chat,
        {{"> ", "hi\n"}, {"hi\r\n", ""}, {"", "\x03"}, {"> ", "/new\n"}, {"> ", "/quit\n"}});
    check(ended == 0 && screen.size() < 4000 && has(screen, "^C") && screen.ends_with("> /quit\r\n"),
          "cases/Ctrl-C ends an answer and not the chat: exit %d, %zu bytes", ended, screen.size());
    for (const char* key : {"\x03", "\x04"}) {
        const auto [shown, code] = at_terminal(chat, {{"> ", key}});
        check(code == 0 && shown.starts_with("> "), "cases/Ctrl-%c at the prompt ends the chat: exit %d, %s",
              '@' + *key, code, json_quote(shown).c_str());
    }
    fs::remove(dir + "/merges.txt");
    const std::pair<Words, const char*> without[] = {
        {{"chat"}, "chat: needs a tokenizer, to know texts"},
        {{"sample", "--stop", "a"}, "--stop: needs a tokenizer, to know texts"},
        {{"sample", "--examples", file}, "--examples: needs a tokenizer, to know texts"},
        {{"sample", "--vote", "2"}, "--vote: needs a tokenizer, to know the end of text"},
        {{"sample", "--best-of", "2"}, "--best-of: needs a tokenizer, to know the end of text"}};
    for (auto& [words, line] : without) check(run_with(words, {}) == std::string("error: ") + line, "cases/%s", line);
}

int main() {
    fs::remove_all(DIR);
    fs::create_directories(DIR);
    for (auto section : {kinds, foreign_texts, ids, weights, paths, data, texts, examples, runs, talks})
        try {
            section();
        } catch (const std::exception& e) {
            check(false, "cases: %s", e.what());
        } catch (const Error& e) { check(false, "cases: %s", e.line.c_str()); }
    return failed > 0;
}
