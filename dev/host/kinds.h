/* dev/host/kinds.h -- what a foreign file is, by what it holds, and the one step that makes it usable. Readers ask here
   before they say no more than what they expected. To name another kind, add a row to the table. */
#pragma once
#include "files.h"

// In `usable` FILE stands for the path. A kind that is text may be taken as it is by who reads text.
struct Kind {
    size_t at;                               // where mark stands, and somewhere in the first 1024 bytes `also`
    std::string mark, also;
    const char* what;
    std::string usable;
    bool text = false;
};

inline std::string magic(int32_t number) { return std::string((const char*)&number, 4); }
inline std::string_view without_mark(std::string_view text) {
    return text.substr(text.starts_with(BYTE_ORDER_MARK) ? BYTE_ORDER_MARK.size() : 0);
}

// In Python, of an array `a` of tokens of any type.
inline const std::string TO_SHARD =
    "numpy.r_[20240801, 7, a.size, [0] * 253, a.ravel()].astype('uint32').tofile('tokens.bin')";

inline const Kind* marked_kind(std::string_view bytes) {
    using namespace std::string_literals;
    const char *const SHARD = "--train and --val read it, without --raw",
        *const TORCH = "python3 -c \"import torch, safetensors.torch as s; w = torch.load('FILE', 'cpu'); s.save_file({"
                       "k: v.contiguous().clone() for k, v in w.get('model', w).items()}, 'model.safetensors')\"",
        *const GPT2 = "only GPT-2 is computed here; take its model.safetensors",
        *const MERGES = "--tokenizer takes the merges of GPT-2's byte-level BPE, merges.txt or vocab.bpe",
        *const DIRECTORY = "give its directory",
        *const UTF16 = "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE > text.txt",
        *const UTF32 = "make it UTF-8: iconv -f UTF-32 -t UTF-8 FILE > text.txt",
        *const ARROW = "in Python: datasets.Dataset.from_file('FILE').to_json('text.jsonl'), for build/shards encode";
    const std::string PICKLE =
        "in Python, if it holds tokens: a = numpy.array(pickle.load(open('FILE', 'rb'))); " + TO_SHARD;
    static const Kind KINDS[] = {                        // what is longer stands above what it begins with
        {0, magic(20240520), "", "a token shard", SHARD},
        {0, magic(20240801), "", "a token shard", SHARD},
        {0, magic(20261121), "", "an example shard", "--answers reads it"},
        {0, magic(20240522), "", "multiple choice questions of llm.c", "eval --choices reads it"},
        {0, magic(20240326), "", "a model of llm.c", "--init and --model read it"},
        {0, magic(20240327), "", "reference activations of llm.c", "--init and --model read the model beside it"},
        {0, magic(20240328), "", "a tokenizer of llm.c", MERGES},
        {0, magic(20240527), "", "an optimizer's state of llm.c", "--init reads the model_*.bin beside it"},
        {0, magic(20240803), "", "a Llama 3 of llm.c", GPT2},
        {0, "GGUF", "", "a model for llama.cpp (GGUF)", GPT2},
        {0, "version https://git-lfs", "", "a Git LFS pointer", "fetch the file it stands for: git lfs pull"},
        {0, "\x1f\x8b\x08", "", "gzip data", "unpack it: gunzip FILE"},
        {0, "\x28\xb5\x2f\xfd", "", "Zstandard data", "unpack it: zstd -d FILE"},
        {0, "\xfd" "7zXZ", "", "xz data", "unpack it: xz -d FILE"},
        {4, "1AY&SY", "", "bzip2 data", "unpack it: bunzip2 FILE"},
        {0, "7z\xbc\xaf\x27\x1c", "", "a 7z archive", "unpack it: 7z x FILE"},
        {257, "ustar", "", "a tar archive", "unpack it: tar xf FILE"},
        {0, "PK\3\4", "data.pkl", "a PyTorch checkpoint", TORCH},
        {0, "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19", "", "a PyTorch checkpoint", TORCH},
        {0, "\x80\x02}", "", "a Python pickle", PICKLE}, {0, "\x80\x02]", "", "a Python pickle", PICKLE},
        {0, "\x80\x02" "c", "", "a Python pickle", PICKLE}, {0, "\x80\x03}", "", "a Python pickle", PICKLE},
        {0, "\x80\x03]", "", "a Python pickle", PICKLE}, {0, "\x80\x03" "c", "", "a Python pickle", PICKLE},
        {0, "\x80\x04\x95", "", "a Python pickle", PICKLE}, {0, "\x80\x05\x95", "", "a Python pickle", PICKLE},
        {0, "PK\3\4", ".npy", "NumPy arrays (.npz)", "in Python: a = numpy.load('FILE')[NAME]; " + TO_SHARD},
        {0, "PK\3\4", "", "a zip archive", "unpack it: unzip FILE"},
        {0, "\x93NUMPY", "", "a NumPy array (.npy)", "in Python: a = numpy.load('FILE'); " + TO_SHARD},
        {0, "PAR1", "", "a Parquet table", "in Python: pandas.read_parquet('FILE').to_json('text.jsonl', "
                                           "orient='records', lines=True), for build/shards encode"},
        {0, "ARROW1", "", "an Arrow table", ARROW},
        {0, "\xff\xff\xff\xff", "huggingface", "an Arrow table", ARROW},
        {0, "\x89HDF\r\n\x1a\n", "", "HDF5, TensorFlow's weights", "take the model.safetensors of the same model"},
        {0, "%PDF-", "", "a PDF", "take its text: pdftotext FILE text.txt"},
        {0, "\n", "<unk>\x15", "a SentencePiece model", MERGES},
        {0, "\xff\xfe\0\0"s, "", "UTF-32 text", UTF32},
        {0, "\0\0\xfe\xff"s, "", "UTF-32 text", UTF32},
        {0, "\xff\xfe", "", "UTF-16 text", UTF16},
        {0, "\xfe\xff", "", "UTF-16 text", UTF16},
        {0, "{", "\"weight_map\"", "the index of a model in several files", DIRECTORY, true},
        {0, "{", "\"model_type\"", "the config.json of a model", DIRECTORY, true},
        {0, "{", "\"added_tokens\"", "a tokenizer.json", "save what it holds, in Python: "
         "tokenizers.Tokenizer.from_file('FILE').model.save('.')", true},
        {0, "{", "\"!\"", "the vocab.json of a tokenizer", MERGES, true},
        {0, "<!DOCTYPE", "", "a web page", "download the file itself", true},
        {0, "<html", "", "a web page", "download the file itself", true},
    };
    const std::string_view s = without_mark(bytes).substr(0, 1024);
    for (const Kind& k : KINDS)
        if (s.size() > k.at && s.substr(k.at).starts_with(k.mark) && s.find(k.also) != s.npos) return &k;
    return nullptr;
}

// The kind of a file, or none. raw: it may be bare 16-bit tokens, which are not like text, no byte of which controls
// anything, nor like numbers of more bits; and those of bytes, in GPT-2's order, only so far like UTF-16.
inline const Kind* kind_of(std::string_view bytes, bool raw = false) {
    static const Kind
        TEXT = {0, "", "", "text", "make shards of it: build/shards encode --in FILE --tokenizer bytes --out NAME",
                true},
        UTF16[] = {{0, "", "", "UTF-16 text", "make it UTF-8: iconv -f UTF-16LE -t UTF-8 FILE > text.txt"},
                   {0, "", "", "UTF-16 text", "make it UTF-8: iconv -f UTF-16BE -t UTF-8 FILE > text.txt"}},
        NUMBERS[] = {{0, "", "", "bare 32-bit numbers", "in Python: a = numpy.fromfile('FILE', 'int32'); " + TO_SHARD},
                     {0, "", "", "bare 64-bit numbers", "in Python: a = numpy.fromfile('FILE', 'int64'); " + TO_SHARD}},
        SAFETENSORS = {0, "", "", "safetensors", "--init and --model read it"};
    if (const Kind* k = marked_kind(bytes)) return k;
    uint64_t length = 0;
    if (bytes.size() > 8) memcpy(&length, bytes.data(), 8);
    if (length > 1 && length <= bytes.size() - 8 && bytes[8] == '{') return &SAFETENSORS;

    const std::string_view some = bytes.substr(0, 1 << 16);
    auto controls = [](unsigned c) { return (c < ' ' && (c < '\t' || c > '\r')) || c == 0x7f; };
    auto control = [&](char c) { return controls((unsigned char)c); };
    if (!some.empty() && std::none_of(some.begin(), some.end(), control)) return &TEXT;

    const size_t n = some.size() / 2;
    auto unit = [&](size_t i, bool big) { return (uint8_t)some[2 * i + big] | (uint8_t)some[2 * i + !big] << 8; };
    for (bool big : {false, true}) {                     // characters, some of them blanks, or all of them ASCII
        size_t blanks = 0, ascii = 0, letters = 0, wrong = n < 4 || some.size() % 2;
        for (size_t i = 0; i < n && !wrong; i++) {
            const unsigned u = unit(i, big), lower = u | 32;
            wrong += controls(u), blanks += u == ' ' || u == '\n', ascii += u < 0x7f;
            letters += (lower >= 'a' && lower <= 'z') || u > 0x7f;
        }
        const bool enough = raw ? n >= 32 && 12 * blanks >= n && 2 * letters >= n : 50 * blanks >= n || ascii == n;
        if (!wrong && enough) return &UTF16[big];
    }
    unsigned most[4] = {};                               // of every fourth unit: wider numbers have small upper ones
    for (size_t i = 0; i < n; i++) most[i % 4] = std::max(most[i % 4], (unsigned)unit(i, false));
    const unsigned low = std::max(most[0], most[2]), high = std::max(most[1], most[3]);
    if (n < 32 || bytes.size() % 4 || high > 15 || low <= 16 * (high + 1)) return nullptr;
    return &NUMBERS[high == 0 && most[2] == 0 && bytes.size() % 8 == 0];
}

[[noreturn]] inline void refuse(const std::string& path, const Kind& kind, const char* wanted) {
    std::string usable = kind.usable;
    for (size_t at = 0; (at = usable.find("FILE", at)) != usable.npos; at += path.size()) usable.replace(at, 4, path);
    die("%s: looks like %s, not %s; %s", path.c_str(), kind.what, wanted, usable.c_str());
}
// For a file that is not what was wanted: dies of what it is, where that can be told.
inline void name_kind(const Mapped& file, const char* wanted, bool raw = false) {
    if (const Kind* kind = kind_of(file.text(), raw)) refuse(file.path, *kind, wanted);
}

inline Json read_json(const std::string& path, size_t limit = SIZE_MAX) {
    const std::string text = read_file(path, limit);
    if (const Kind* kind = kind_of(text); kind && !kind->text) refuse(path, *kind, "JSON");
    return parse_json(text, path);
}

// Text to continue, without the line break that ends a file.
inline std::string read_prompt(const std::string& path) {
    const Input file(path);
    if (const Kind* kind = kind_of(file.text()); kind && !kind->text) refuse(path, *kind, "UTF-8 text");
    std::string_view text = without_mark(file.text());
    if (text.ends_with('\n')) text.remove_suffix(text.ends_with("\r\n") ? 2 : 1);
    return std::string(text);
}
