/* dev/host/kinds.h -- what a foreign file is, by what it holds, and the one step that makes it usable. Readers ask here
   before they say no more than what they expected. To name another kind, add a row to the table. */
#pragma once
#include "files.h"

// In `usable` FILE stands for the path, BESIDE/ for its directory. A kind that is text may be taken as it is by who
// reads text; its mark may follow blanks, in capitals or not.
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
    const char *const SHARD = "--train and --val read it, without --raw, in pretraining",
        *const NOTHING = "it holds neither text nor tokens",
        *const TORCH = "python3 -c \"import torch, safetensors.torch as s; w = torch.load('FILE', 'cpu'); w = w.get("
                       "'model', w.get('state_dict', w)); s.save_file({k: v.contiguous().clone() for k, v in w.items() "
                       "if torch.is_tensor(v)}, 'BESIDE/model.safetensors')\"",
        *const META = "the data are the .bin files beside it, with --raw u16 --vocab N, where N is: python3 -c \""
                      "import pickle; print(pickle.load(open('FILE', 'rb'))['vocab_size'])\"",
        *const OFFICE = "take its text: libreoffice --headless --convert-to txt:Text FILE",
        *const PANDOC = "take its text: pandoc -t plain -o text.txt FILE",
        *const PAGE = "if another file was meant, download that; take its text: pandoc -f html -t plain -o text.txt "
                      "FILE",
        *const GPT2 = "only GPT-2 is computed here; take its model.safetensors",
        *const MERGES = "--tokenizer takes the merges of GPT-2's byte-level BPE, merges.txt or vocab.bpe",
        *const DIRECTORY = "give its directory",
        *const UTF16 = "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE > text.txt",
        *const UTF32 = "make it UTF-8: iconv -f UTF-32 -t UTF-8 FILE > text.txt",
        *const ARROW = "in Python: datasets.Dataset.from_file('FILE').to_json('text.jsonl'), for build/shards encode";
    const std::string
        TENSOR = "in Python, if it holds tokens: a = torch.load('FILE').numpy(); " + TO_SHARD,
        TENSORS = "in Python, if they are tokens: a = torch.load('FILE')[NAME].numpy(); " + TO_SHARD,
        PICKLE =
        "in Python, if it holds tokens: a = numpy.array(pickle.load(open('FILE', 'rb'))); " + TO_SHARD;
    static const Kind KINDS[] = {                        // what is longer stands above what it begins with
        {0, magic(20240520), "", "a token shard", SHARD},
        {0, magic(20240801), "", "a token shard", SHARD},
        {0, magic(20261121), "", "an example shard", "--answers reads it, and with --stage sft, reward or rl --train "
         "and --val"},
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
        {0, "PK\3\4", "\x80\x02" "ctorch._utils", "a PyTorch tensor", TENSOR},
        {0, "PK\3\4", "LongStorage", "PyTorch tensors of whole numbers", TENSORS},
        {0, "PK\3\4", "IntStorage", "PyTorch tensors of whole numbers", TENSORS},
        {0, "PK\3\4", "ShortStorage", "PyTorch tensors of whole numbers", TENSORS},
        {0, "PK\3\4", "data.pkl", "a PyTorch checkpoint", TORCH},
        {0, "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19", "\x80\x02" "ctorch._utils", "a PyTorch tensor", TENSOR},
        {0, "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19", "", "a PyTorch checkpoint", TORCH},
        {0, "\x80", "vocab_size", "the meta.pkl of nanoGPT's data", META},
        {0, "\x80\x02}", "", "a Python pickle", PICKLE}, {0, "\x80\x02]", "", "a Python pickle", PICKLE},
        {0, "\x80\x02" "c", "", "a Python pickle", PICKLE}, {0, "\x80\x03}", "", "a Python pickle", PICKLE},
        {0, "\x80\x03]", "", "a Python pickle", PICKLE}, {0, "\x80\x03" "c", "", "a Python pickle", PICKLE},
        {0, "\x80\x04\x95", "", "a Python pickle", PICKLE}, {0, "\x80\x05\x95", "", "a Python pickle", PICKLE},
        {0, "(lp0\n", "", "a Python pickle", PICKLE}, {0, "(dp0\n", "", "a Python pickle", PICKLE},
        {0, "(lp1\n", "", "a Python pickle", PICKLE}, {0, "(dp1\n", "", "a Python pickle", PICKLE},
        {0, "]q\0"s, "", "a Python pickle", PICKLE}, {0, "}q\0"s, "", "a Python pickle", PICKLE},
        {0, "cnumpy", "_reconstruct\n", "a Python pickle", PICKLE}, {0, "ccopy_reg\n", "", "a Python pickle", PICKLE},
        {0, "MMIDIDX\0"s, "", "the index of Megatron's data", "the tokens are in the .bin beside it; in Python, if "
         "they are of 16 bits: a = numpy.fromfile('FILE'[:-3] + 'bin', 'uint16'); " + TO_SHARD},
        {0, "PK\3\4", ".npy", "NumPy arrays (.npz)", "in Python: a = numpy.load('FILE')[NAME]; " + TO_SHARD},
        {0, "PK\3\4", "[Content_Types].xml", "an Office document", OFFICE},
        {0, "PK\3\4", "mimetypeapplication/vnd.oasis", "an OpenDocument file", OFFICE},
        {0, "PK\3\4", "mimetypeapplication/epub", "an EPUB book", PANDOC},
        {0, "PK\3\4", "", "a zip archive", "unpack it: unzip FILE"},
        {0, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "", "an old Office document", OFFICE},
        {0, "SQLite format 3\0"s, "", "an SQLite database", "take a table of it: sqlite3 -json FILE 'select COLUMN as "
         "text from TABLE' | jq -c '.[]' > text.jsonl"},
        {2, "\x12\7pytorch", "", "an ONNX model", "take the model.safetensors of the same model"},
        {0, "\x4\x22\x4d\x18", "", "LZ4 data", "unpack it: lz4 -d FILE"},
        {0, "\x89PNG\r\n\x1a\n", "", "a picture (PNG)", NOTHING}, {0, "\xff\xd8\xff", "", "a picture (JPEG)", NOTHING},
        {0, "GIF89a", "\0"s, "a picture (GIF)", NOTHING}, {0, "GIF87a", "\0"s, "a picture (GIF)", NOTHING},
        {0, "RIFF", "WEBPVP8", "a picture (WebP)", NOTHING}, {0, "RIFF", "WAVEfmt", "a sound (WAV)", NOTHING},
        {0, "ID3\3", "", "a sound (MP3)", NOTHING}, {0, "ID3\4", "", "a sound (MP3)", NOTHING},
        {0, "OggS\0"s, "", "a sound (Ogg)", NOTHING}, {4, "ftyp", "\0"s, "a film (MP4)", NOTHING},
        {0, "\x7f" "ELF", "", "a program (ELF)", NOTHING}, {0, "MZ", "This program", "a program (EXE)", NOTHING},
        {0, "\xcf\xfa\xed\xfe", "", "a program (Mach-O)", NOTHING},
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
        {0, "{", "\"added_tokens\"", "a tokenizer.json", "save what it holds beside it, and give its directory: "
         "python3 -c \"import tokenizers; tokenizers.Tokenizer.from_file('FILE').model.save('BESIDE/.')\"", true},
        {0, "{", "\"!\"", "the vocab.json of a tokenizer", MERGES, true},
        {0, "{", "\"cells\"", "a notebook", "take its text: jupyter nbconvert --to markdown FILE", true},
        {0, "<!doctype", "", "a web page", PAGE, true}, {0, "<html", "", "a web page", PAGE, true},
        {0, "<head", "", "a web page", PAGE, true}, {0, "<?xml", "<html", "a web page", PAGE, true},
        {0, "<mediawiki", "", "a dump of Wikipedia", "take its texts: wikiextractor --json -o texts FILE", true},
        {0, "<?xml", "", "XML", PANDOC, true},
        {0, "{\\rtf", "", "Rich Text (RTF)", OFFICE, true},
        {0, "%!ps", "", "PostScript", "take its text: ps2ascii FILE text.txt", true},
    };
    const std::string_view s = without_mark(bytes).substr(0, 1024);
    std::string small(s.substr(std::min(s.find_first_not_of(" \t\r\n"), s.size())));
    for (char& c : small) c = (char)tolower((unsigned char)c);
    for (const Kind& k : KINDS) {
        const bool begins = k.text ? small.starts_with(k.mark) : s.size() > k.at && s.substr(k.at).starts_with(k.mark);
        if (begins && s.find(k.also) != s.npos) return &k;
    }
    return nullptr;
}

// How many bits numbers have, if they are floats of moderate size or 0; else 0. Tokens, even of 16 bits, are smaller.
inline int bits_of_floats(std::string_view some) {
    const size_t n = some.size() / 8 * 4;                    // units of 16 bits, the lowest first
    size_t bad[3] = {}, zeros[3] = {}, low = 0;              // of 16, 32, 64; low: 32-bit ones at even places, not 0
    uint16_t u[4];
    for (size_t i = 0; i < n; i += 4) {
        memcpy(u, some.data() + 2 * i, 8);
        auto count = [&](int which, bool zero, int upper, int from, int to) {
            bad[which] += !zero && ((upper & 0x7fff) < from || (upper & 0x7fff) > to);
            zeros[which] += zero;
        };
        for (int k : {0, 1, 2, 3}) count(0, !u[k], u[k], 0x1000, 0x4fff);
        for (int k : {0, 2}) count(1, !u[k] && !u[k + 1], u[k + 1], 0x2b80, 0x4b80);       // 2^-40 to 2^24
        count(2, !u[0] && !u[1] && !u[2] && !u[3], u[3], 0x3d70, 0x4170);                  // the same
        low += u[0] || u[1];
    }
    auto are = [&](int which, size_t count) { return 50 * bad[which] <= count && 8 * zeros[which] <= 7 * count; };
    if (n < 256) return 0;
    if (are(0, n) && 4 * zeros[0] <= n) return 16;
    if (!low && are(2, n / 4)) return 64;
    return are(1, n / 2) ? 32 : are(2, n / 4) ? 64 : 0;
}

// The kind of a file, or none. raw: it may be bare 16-bit tokens, which are not like text, no byte of which controls
// anything, nor like numbers of more bits; and those of bytes, in GPT-2's order, only so far like UTF-16.
inline const Kind* kind_of(std::string_view bytes, bool raw = false) {
    static const Kind
        TEXT = {0, "", "", "text", "make shards of it: build/shards encode --in FILE --tokenizer bytes --out NAME",
                true},
        UTF16[] = {{0, "", "", "UTF-16 text", "make it UTF-8: iconv -f UTF-16LE -t UTF-8 FILE > text.txt"},
                   {0, "", "", "UTF-16 text", "make it UTF-8: iconv -f UTF-16BE -t UTF-8 FILE > text.txt"}},
        ZEROS = {0, "", "", "zeros and nothing else", "was it written to its end? make it again"},
        FLOATS[] = {{0, "", "", "bare 16-bit floats", "tokens are whole numbers"},
                    {0, "", "", "bare 32-bit floats", "tokens are whole numbers; if these are some, in Python: "
                     "a = numpy.fromfile('FILE', 'float32'); " + TO_SHARD},
                    {0, "", "", "bare 64-bit floats", "tokens are whole numbers; if these are some, in Python: "
                     "a = numpy.fromfile('FILE', 'float64'); " + TO_SHARD}},
        NUMBERS[] = {{0, "", "", "bare 32-bit numbers", "in Python: a = numpy.fromfile('FILE', 'int32'); " + TO_SHARD},
                     {0, "", "", "bare 64-bit numbers", "in Python: a = numpy.fromfile('FILE', 'int64'); " + TO_SHARD}},
        SAFETENSORS = {0, "", "", "safetensors", "--init and --model read it"};
    if (const Kind* k = marked_kind(bytes)) return k;
    uint64_t length = 0;
    if (bytes.size() > 8) memcpy(&length, bytes.data(), 8);
    if (length > 1 && length <= bytes.size() - 8 && bytes.substr(8, 2) == "{\"") return &SAFETENSORS;

    const std::string_view some = bytes.substr(0, 1 << 16);
    if (bytes.size() >= 64 && bytes.find_first_not_of('\0') == bytes.npos) return &ZEROS;
    auto controls = [](unsigned c) { return (c < ' ' && (c < '\t' || c > '\r')) || c == 0x7f; };
    auto control = [&](char c) { return controls((unsigned char)c); };
    if (!some.empty() && std::none_of(some.begin(), some.end(), control)) return &TEXT;

    const size_t n = some.size() / 2;
    auto unit = [&](size_t i, bool big) { return (uint8_t)some[2 * i + big] | (uint8_t)some[2 * i + !big] << 8; };
    for (bool big : {false, true}) {                     // characters, some of them blanks, or all of them ASCII
        size_t blanks = 0, ascii = 0, letters = 0, wrong = n < 4 || some.size() % 2;
        for (size_t i = 0; i < n && !wrong; i++) {
            const unsigned u = unit(i, big), lower = u | 32;
            wrong += controls(u);
            blanks += u == ' ' || u == '\n';
            ascii += u < 0x7f;
            letters += (lower >= 'a' && lower <= 'z') || u > 0x7f;
        }
        const bool enough = raw ? n >= 32 && 12 * blanks >= n && 2 * letters >= n : 50 * blanks >= n || ascii == n;
        if (!wrong && enough) return &UTF16[big];
    }
    if (const int bits = bytes.size() % 2 ? 0 : bits_of_floats(some)) return &FLOATS[bits / 32];
    unsigned most[4] = {};                               // of every fourth unit: wider numbers have small upper ones
    for (size_t i = 0; i < n; i++) most[i % 4] = std::max(most[i % 4], (unsigned)unit(i, false));
    const unsigned low = std::max(most[0], most[2]), high = std::max(most[1], most[3]);
    if (n < 32 || bytes.size() % 4 || high > 15 || low <= 16 * (high + 1)) return nullptr;
    return &NUMBERS[high == 0 && most[2] == 0 && bytes.size() % 8 == 0];
}

// What makes a file usable, with its path as Python reads it in quotes, and else as a shell does.
inline std::string usable(std::string text, const std::string& path) {
    if (path == "-") return "put it in a FILE, and " + text;
    std::string quoted;
    for (char c : path) quoted += c == '\'' || c == '\\' ? std::string{'\\', c} : std::string(1, c);
    const std::string beside = quoted.substr(0, quoted.rfind('/') + 1);
    const std::pair<std::string, std::string> words[] = {
        {"BESIDE/", beside}, {"'FILE'", "'" + quoted + "'"}, {"FILE", shell_quote(path)}};
    for (auto& [word, replacement] : words) {
        size_t at = text.find(word);
        while (at != text.npos) {
            text.replace(at, word.size(), replacement);
            at = text.find(word, at + replacement.size());
        }
    }
    return text;
}
// How errors call what is read.
inline const char* shown(const std::string& path) { return path == "-" ? "standard input" : path.c_str(); }

[[noreturn]] inline void refuse(const std::string& path, const Kind& kind, const std::string& wanted) {
    std::string step = kind.usable;
    if (kind.text && kind.mark.empty()) {                    // of text it depends on what is wanted
        if (wanted == "an example shard")
            step = "make one of JSON Lines: build/shards examples --in FILE --tokenizer bytes --out NAME.bin";
        if (wanted == "multiple choice questions") step = "dev/data/download.sh gpt2-124M fetches HellaSwag's";
        if (wanted == "safetensors") step = "give a model's directory, or the model.safetensors in it";
    }
    die("%s: looks like %s, not %s; %s", shown(path), kind.what, wanted.c_str(), usable(step, path).c_str());
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

// How far a text is UTF-8.
struct TextCount {
    size_t zeros = 0, bad = 0, wide = 0, returns = 0;        // bytes of no character, characters of several, \r\n
    size_t first_zero = SIZE_MAX, first_bad = SIZE_MAX;
    bool controls = false;                                   // bad ones in 0x80..0x9f, which are no letters of Latin-1
};

// Pieces are counted apart. One that begins within a character is counted from behind it: whether it does, the 3 bytes
// before tell, as no byte both begins a character and continues one.
inline TextCount count_text(std::string_view text) {
    const size_t piece = 1 << 20, pieces = (text.size() + piece - 1) / piece;
    std::vector<TextCount> counts(pieces);
    const char* const end = text.data() + text.size();
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < pieces; i++) {
        TextCount& c = counts[i];
        const char *const begin = text.data() + i * piece, *const stop = std::min(begin + piece, end), *p = begin;
        c.zeros = std::count(begin, stop, '\0');
        if (c.zeros) c.first_zero = std::find(begin, stop, '\0') - text.data();
        auto find_return = [&](const char* from) { return (const char*)memchr(from, '\r', stop - from); };
        for (const char* r = find_return(begin); r; r = find_return(r + 1))
            c.returns += r + 1 < end && r[1] == '\n';
        if (i > 0) for (int back = 1; back <= 3; back++)
            if (const int size = utf8_size(begin - back, end); size > back) p = begin - back + size;
        auto ascii = [](const char* p) {                     // eight bytes of it
            uint64_t eight;
            memcpy(&eight, p, 8);
            return !(eight & 0x8080808080808080);
        };
        while (p < stop) {
            while (stop - p >= 8 && ascii(p)) p += 8;
            if (p >= stop) break;
            const int size = utf8_size(p, end);
            if (size == 0 && c.bad++ == 0) c.first_bad = p - text.data();
            c.controls |= size == 0 && (uint8_t)*p < 0xA0;
            c.wide += size > 1;
            p += std::max(size, 1);
        }
    }
    TextCount all;
    for (const TextCount& c : counts) {
        all.zeros += c.zeros;
        all.bad += c.bad;
        all.wide += c.wide;
        all.returns += c.returns;
        all.first_zero = std::min(all.first_zero, c.first_zero);
        all.first_bad = std::min(all.first_bad, c.first_bad);
        all.controls |= c.controls;
    }
    return all;
}

/* Dies of what is no text, and tells of bytes in it that are not UTF-8: a few are taken, as a tokenizer of bytes takes
   any. More than 3 and 1 in 500 are another encoding: languages with accents have 1 in 100 and more in Latin-1. */
inline TextCount check_text(const std::string& path, std::string_view text) {
    if (const Kind* kind = kind_of(text); kind && !kind->text) refuse(path, *kind, "UTF-8 text");
    const TextCount t = count_text(text);
    const bool other = t.bad > 3 + text.size() / 500, many = 100 * t.zeros > text.size() + 100;
    auto as = [&](const char* what, const char* step) { return std::pair(std::string(what), usable(step, path)); };
    if (t.zeros) {
        bool tokens = (many || other) && text.size() >= 64 && text.size() % 2 == 0;    // below GPT-2's 50257
        for (size_t i = 0; i + 1 < std::min<size_t>(text.size(), 1 << 16) && tokens; i += 2)
            tokens = ((uint8_t)text[i] | (uint8_t)text[i + 1] << 8) < 50257;
        const auto [what, step] = tokens ? as("bare 16-bit tokens", "--train and --val read these with --raw u16")
            : many || other ? as("binary data", "which kind it is may be known to: file FILE")
                            : as("text with zero bytes", "take them out: tr -d '\\000' < FILE > text.txt");
        die("%s: byte %zu is zero, the first of %zu: looks like %s, not UTF-8 text; %s", shown(path), t.first_zero,
            t.zeros, what.c_str(), step.c_str());
    }
    if (t.bad == 0) return t;
    const auto [what, step] =
        t.wide > t.bad ? as("damaged UTF-8", "take out what is none: iconv -c -f UTF-8 -t UTF-8 FILE > text.txt")
        : 4 * t.bad > text.size() ? as("text in another encoding", "make it UTF-8: iconv -f ENCODING -t UTF-8 FILE > "
                                       "text.txt")
        : t.controls ? as("Windows-1252 text", "make it UTF-8: iconv -f WINDOWS-1252 -t UTF-8 FILE > text.txt")
                     : as("Latin-1 text", "make it UTF-8: iconv -f LATIN1 -t UTF-8 FILE > text.txt");
    const std::string found = format("%s: byte %zu, 0x%02x, is not UTF-8, the first of %zu", shown(path),
                                     t.first_bad, (uint8_t)text[t.first_bad], t.bad);
    if (other) die("%s: looks like %s; %s", found.c_str(), what.c_str(), step.c_str());
    warn("%s; they are taken as they stand; if this is %s, %s", found.c_str(), what.c_str(), step.c_str());
    return t;
}

// Text to continue, without the line break that ends a file.
inline std::string read_prompt(const std::string& path) {
    const Input file(path);
    check_text(path, file.text());
    std::string_view text = without_mark(file.text());
    if (text.ends_with('\n')) text.remove_suffix(text.ends_with("\r\n") ? 2 : 1);
    return std::string(text);
}
