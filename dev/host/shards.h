/* dev/host/shards.h -- token shards, example shards and multiple choice questions, read and written.
   Token shards have llm.c's format: 256 int32 {magic, version, count}, then the tokens. Example shards hold prompts,
   pairs (prompt, response), triples (prompt, chosen, rejected) or dialogues in the same spirit. A file is checked whole
   when it is opened, and then trusted. */
#pragma once
#include "kinds.h"
#include <glob.h>
#ifndef GLOB_BRACE                            // musl has none
#define GLOB_BRACE 0
#endif

struct ShardKind { int32_t magic, version; int token_bytes; };
inline constexpr ShardKind SHARD_KINDS[] = {{20240520, 1, 2}, {20240801, 7, 4}};
inline constexpr int32_t EXAMPLES_MAGIC = 20261121;
inline constexpr size_t HEADER = 1024;

struct Shard {
    Mapped file;
    size_t begin = HEADER, count = 0;
    int token_bytes = 2;

    Shard(const std::string& path, bool raw) : file(path) {
        const char* name = path.c_str();
        if (file.size == 0) die("%s: empty, expected tokens", name);
        if (raw) {
            begin = 0;
            count = file.size / 2;
            name_kind(file, "bare 16-bit tokens", true);
            if (file.size % 2) die("%s: %zu bytes is not a whole number of 16-bit tokens", name, file.size);
            return;
        }
        int32_t magic = file.size < 8 ? 0 : file.at<int32_t>(0), version = file.size < 8 ? 0 : file.at<int32_t>(4);
        const ShardKind* kind = nullptr;
        for (const ShardKind& k : SHARD_KINDS) if (k.magic == magic) kind = &k;
        if (!kind) name_kind(file, "a token shard");
        if (file.size < HEADER) die("%s: %zu bytes, shorter than a shard's header of %zu; is it headerless? --raw u16 "
                                    "reads nanoGPT's files", name, file.size, HEADER);
        if (!kind)
            die("%s: byte 0: found magic %d, expected %d or %d; a nanoGPT file has no header: read it with --raw u16",
                name, magic, SHARD_KINDS[0].magic, SHARD_KINDS[1].magic);
        if (version != kind->version) die("%s: byte 4: found version %d, expected %d", name, version, kind->version);
        if (file.at<int32_t>(8) == 0 && file.size == HEADER) die("%s: holds no tokens", name);
        count = file.at<uint32_t>(8);
        token_bytes = kind->token_bytes;
        size_t expected = HEADER + count * token_bytes;
        if (file.at<int32_t>(8) < 0 || file.size != expected)
            die("%s: %zu bytes, but a header that counts %d tokens means %zu; %s", name, file.size, file.at<int32_t>(8),
                expected, file.size < expected ? "is it cut short?" : "there is more than it counts");
    }
    uint32_t operator[](size_t i) const {
        return token_bytes == 2 ? file.at<uint16_t>(begin + 2 * i) : file.at<uint32_t>(begin + 4 * i);
    }
    void check_tokens(int V) const {
        size_t bad = count;
        #pragma omp parallel for reduction(min : bad)
        for (size_t i = 0; i < count; i++) if ((*this)[i] >= (uint32_t)V) bad = std::min(bad, i);
        if (bad < count)
            die("%s: byte %zu: token %u is not below the vocabulary size %d; was it written by another tokenizer?",
                file.path.c_str(), begin + bad * token_bytes, (*this)[bad], V);
    }
};

// The files of a pattern, sorted. What exists as it is written is none: the whole, or the directories it starts with.
inline std::vector<std::string> glob_files(const std::string& pattern, const char* option) {
    size_t plain = exists(pattern) ? pattern.size() : pattern.rfind('/');
    while (plain != pattern.npos && plain && !exists(pattern.substr(0, plain))) plain = pattern.rfind('/', plain - 1);
    std::string escaped;
    for (size_t i = 0; i < pattern.size(); i++) {
        if (plain != pattern.npos && i < plain && strchr("*?[]{}~\\", pattern[i])) escaped += '\\';
        escaped += pattern[i];
    }
    glob_t g;
    std::vector<std::string> paths;
    if (plain == pattern.size()) {
        paths.push_back(pattern);
    } else if (glob(escaped.c_str(), GLOB_BRACE, nullptr, &g) == 0) {
        paths.assign(g.gl_pathv, g.gl_pathv + g.gl_pathc);
        globfree(&g);
    }
    if (paths.empty()) die("%s %s: no such file", option, pattern.c_str());
    std::sort(paths.begin(), paths.end());                    // braces are sorted one by one, and may overlap
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    return paths;
}

// Where what belongs to data may lie: beside a model, if there is one, and beside the data.
inline std::vector<std::string> directories_of(const std::string& model, const std::string& train,
                                               const std::string& val, const std::string& answers) {
    std::vector<std::string> directories;
    if (!model.empty()) directories.push_back(model);
    for (auto& [pattern, option] : {std::pair(train, "--train"), {val, "--val"}})
        if (!pattern.empty()) for (auto& path : glob_files(pattern, option)) directories.push_back(directory_of(path));
    if (!answers.empty()) directories.push_back(directory_of(answers));
    return directories;
}

// The vocabulary where nothing tells it: GPT-2's, unless the tokens lie far below it, as those of characters do.
inline int assumed_vocab(const std::string& train, const std::string& val, bool raw) {
    const int gpt2 = 50257;
    std::vector<std::string> paths = glob_files(train, "--train");
    if (!val.empty()) for (const std::string& path : glob_files(val, "--val")) paths.push_back(path);
    uint32_t largest = 0;
    for (const std::string& path : paths) {
        const Shard shard(path, raw);
        #pragma omp parallel for reduction(max : largest)
        for (size_t i = 0; i < shard.count; i++) largest = std::max(largest, shard[i]);
    }
    const std::string meta = directory_of(paths[0]) + "/meta.pkl";           // nanoGPT's, beside data of characters
    if (!exists(meta) && largest >= gpt2 / 8) return gpt2;
    const std::string found = format(
        "--vocab: is missing, and the largest token is %u, where GPT-2 has %d; give --vocab %u, or more if %s", largest,
        gpt2, largest + 1, exists(meta) ? (meta + " has a vocab_size of more").c_str() : "the tokenizer has more");
    if (raw) die_usage("%s", found.c_str());
    warn("%s", found.c_str());
    return gpt2;
}

// Examples: prompts, pairs, preferences or dialogues, each a list of segments. Version 1 has the same number of them in
// each: header, offsets, tokens. Version 2 any number: header, the first segment of each example, offsets, tokens.
struct Examples {
    static constexpr const char* KINDS[] = {"dialogues", "prompts alone", "prompts and responses", "preferences"};
    std::string path;
    int segments;                            // of each: 1 prompt; 2 prompt, response; 3 prompt, chosen, rejected;
                                             // 0 context and response in turn
    std::vector<std::vector<int>> tokens;    // all segments, one after the other
    std::vector<size_t> first = {0};         // of each example its first segment; then the number of all
    std::vector<size_t> number;              // of each example its number in the file
    size_t left_out = 0;                     // examples that are longer than T

    // An example longer than T is an error or, if leave_out, left out, which is told of.
    Examples(const std::string& path, int V, int T, bool leave_out = false) : path(path) {
        Mapped f(path);
        const char* name = path.c_str();
        const int32_t magic = f.size < 4 ? 0 : f.at<int32_t>(0);
        if (magic != EXAMPLES_MAGIC) name_kind(f, "an example shard");
        if (f.size < HEADER) die("%s: %zu bytes, shorter than a header of %zu", name, f.size, HEADER);
        if (magic != EXAMPLES_MAGIC)
            die("%s: byte 0: found magic %d, expected %d (an example shard)", name, magic, EXAMPLES_MAGIC);
        const int version = f.at<int32_t>(4), bytes = f.at<int32_t>(16);
        const bool any = version == 2;                                   // number of segments
        if (version != 1 && !any) die("%s: byte 4: found version %d, expected 1 or 2", name, version);
        segments = f.at<int32_t>(12);
        if (any ? segments != 0 : segments < 1 || segments > 3)
            die("%s: byte 12: found %d segments, expected %s", name, segments, any ? "0 for any number" : "1, 2 or 3");
        if (bytes != 2 && bytes != 4) die("%s: byte 16: found %d bytes a token, expected 2 or 4", name, bytes);
        const size_t E = f.at<uint32_t>(8), n = f.at<uint64_t>(24), S = any ? f.at<uint64_t>(32) : E * segments;
        const size_t offsets = HEADER + (any ? 8 * (E + 1) : 0), start = offsets + 8 * (S + 1);
        if (E >= 1u << 31 || S > f.size || n > f.size || f.size != start + n * bytes)
            die("%s: %zu bytes, but its header of %zu examples, %zu segments and %zu tokens means %zu", name, f.size, E,
                S, n, start + n * bytes);
        auto ascend = [&](const char* what, size_t at, size_t count, size_t last) {
            if (f.at<uint64_t>(at) != 0 || f.at<uint64_t>(at + 8 * count) != last)
                die("%s: byte %zu: %s must run from 0 to %zu", name, at, what, last);
            for (; count-- > 0; at += 8)
                if (f.at<uint64_t>(at) > f.at<uint64_t>(at + 8))
                    die("%s: byte %zu: %s must ascend", name, at + 8, what);
        };
        if (any) ascend("first segments", HEADER, E, S);
        ascend("offsets", offsets, S, n);
        auto begin = [&](size_t e) { return any ? f.at<uint64_t>(HEADER + 8 * e) : e * segments; };
        std::string told;
        for (size_t e = 0; e < E; e++) {
            for (size_t i = begin(e); i < begin(e + 1); i++) {
                std::vector<int>& to = tokens.emplace_back();
                for (size_t k = f.at<uint64_t>(offsets + 8 * i); k < f.at<uint64_t>(offsets + 8 * (i + 1)); k++) {
                    uint32_t t = bytes == 2 ? f.at<uint16_t>(start + 2 * k) : f.at<uint32_t>(start + 4 * k);
                    if (t >= (uint32_t)V) die("%s: byte %zu: token %u is not below the vocabulary size %d", name,
                                              start + k * bytes, t, V);
                    to.push_back(t);
                }
            }
            first.push_back(tokens.size());
            number.push_back(e);
            const size_t last = size() - 1;
            check(path, e, segments, of(last), count(last));
            const size_t needed = row(last) + (segments == 1);           // a prompt, and what follows it
            if (needed <= (size_t)T) continue;
            const std::string found = format("example %zu: %zu tokens do not fit the context of %d", e, needed, T);
            if (!leave_out) die("%s: %s", name, found.c_str());
            if (left_out++ == 0) told = found;
            first.pop_back();
            number.pop_back();
            tokens.resize(first.back());
        }
        if (E == 0) die("%s: holds no examples", name);
        if (left_out == E)
            die("%s: no example is left of %zu: %s; raise --context, or shorten them", name, E, told.c_str());
        if (left_out)
            warn("%s: %zu of %zu examples are left out, the first of them %s", name, left_out, E, told.c_str());
    }
    size_t size() const { return number.size(); }
    size_t count(size_t e) const { return first[e + 1] - first[e]; }
    const std::vector<int>* of(size_t e) const { return tokens.data() + first[e]; }
    // Of its longest row: end of text, context, response, and so on in turn; of 3 segments with the longer answer.
    int length(size_t e) const { return (int)row(e); }
    size_t row(size_t e) const {
        const std::vector<int>* s = of(e);
        if (segments == 3) return 1 + s[0].size() + std::max(s[1].size(), s[2].size());
        size_t sum = (count(e) + 1) / 2;
        for (size_t i = 0; i < count(e); i++) sum += s[i].size();
        return sum;
    }
    // Makes a dialogue a prompt, in which an end of text ends each response, and its last response: the same tokens.
    void answer_last(int eot) {
        if (segments != 0) return;
        std::vector<std::vector<int>> pairs;
        for (size_t e = 0; e < size(); e++) {
            std::vector<int> prompt;
            for (size_t k = 0; k + 1 < count(e); k++) {
                prompt.insert(prompt.end(), of(e)[k].begin(), of(e)[k].end());
                if (k % 2) prompt.push_back(eot);
            }
            pairs.push_back(std::move(prompt));
            pairs.push_back(of(e)[count(e) - 1]);
        }
        segments = 2;
        tokens = std::move(pairs);
        for (size_t e = 0; e < first.size(); e++) first[e] = 2 * e;
    }
    // For callers that can use some kinds only: need("--answers", {0, 2, 3}).
    void need(const char* what, const std::vector<int>& kinds, const char* otherwise = "") const {
        std::string names;
        for (int kind : kinds) {
            if (kind == segments) return;
            names += (names.empty() ? "" : " or ") + std::string(KINDS[kind]);
        }
        die("%s: %s, but %s needs %s%s", path.c_str(), KINDS[segments], what, names.c_str(), otherwise);
    }
    // Of what is read or written: contexts and responses in turn, no response empty.
    static void check(const std::string& path, size_t e, int segments, const std::vector<int>* s, size_t count) {
        if (segments == 0 && (count == 0 || count % 2))
            die("%s: example %zu: %zu segments, expected contexts and responses in turn", path.c_str(), e, count);
        for (size_t i = 1; i < count; i += segments == 3 ? 1 : 2)
            if (s[i].empty()) die("%s: example %zu: segment %zu, a response, is empty", path.c_str(), e, i);
    }
};

// Multiple choice in llm.c's format: 256 int32 {magic, 1, examples, bytes of the longest}, then uint16 streams.
struct Choices {
    struct Example { int label; std::vector<int> context; std::vector<std::vector<int>> completions; };
    std::vector<Example> examples;

    Choices(const std::string& path, int V, int T) {
        Mapped f(path);
        const char* name = path.c_str();
        if (f.size < 4 || f.at<int32_t>(0) != 20240522) name_kind(f, "multiple choice questions");
        if (f.size < HEADER || f.at<int32_t>(0) != 20240522 || f.at<int32_t>(4) != 1)
            die("%s: byte 0: expected magic 20240522 and version 1 of a multiple choice file", name);
        size_t at = HEADER, count = f.at<uint32_t>(8);
        for (size_t e = 0; e < count; e++) {
            size_t begin = at;
            auto word = [&] {
                if (at + 2 > f.size) die("%s: byte %zu: the file ends inside example %zu of %zu", name, at, e, count);
                at += 2;
                return f.at<uint16_t>(at - 2);
            };
            auto tokens = [&] {
                std::vector<int> v(word());
                for (int& t : v) {
                    t = word();
                    if (t >= V) die("%s: byte %zu: token %d is not below the vocabulary size %d", name, at - 2, t, V);
                }
                return v;
            };
            if (int found = word(); found != 65535)
                die("%s: byte %zu: found %d, expected 65535, the start of example %zu", name, at - 2, found, e);
            size_t bytes = word(), index = word(), label = word(), options = word();
            if (index != e || options < 2 || label >= options)
                die("%s: byte %zu: example %zu: found index %zu, label %zu of %zu completions", name, begin, e, index,
                    label, options);
            Example example{(int)label, tokens(), {}};
            for (size_t k = 0; k < options; k++) {
                example.completions.push_back(tokens());
                size_t length = example.context.size() + example.completions.back().size();
                if (example.context.empty() || example.completions.back().empty() || length > (size_t)T)
                    die("%s: byte %zu: example %zu: context and completion of %zu tokens, expected at least 1 and 1, "
                        "at most the context of %d", name, begin, e, length, T);
            }
            if (at - begin != bytes)
                die("%s: byte %zu: example %zu takes %zu bytes, its header says %zu", name, begin, e, at - begin,
                    bytes);
            examples.push_back(example);
        }
        if (examples.empty() || at != f.size)
            die("%s: byte %zu: %zu examples, then %zu more bytes", name, at, count, f.size - at);
    }
};

inline void put_tokens(Writer& w, const std::vector<int>& tokens, int token_bytes) {
    std::string bytes(tokens.size() * token_bytes, '\0');
    for (size_t i = 0; i < tokens.size(); i++) memcpy(&bytes[i * token_bytes], &tokens[i], token_bytes);
    w.put(bytes);
}

inline void write_shard(const std::string& path, const std::vector<int>& tokens, int V) {
    const ShardKind& kind = SHARD_KINDS[V > 65536];
    int32_t header[256] = {kind.magic, kind.version, (int32_t)tokens.size()};
    if (tokens.size() >= 1u << 31) die("%s: %zu tokens do not fit one shard", path.c_str(), tokens.size());
    Writer w(path);
    w.put(header, sizeof header);
    put_tokens(w, tokens, kind.token_bytes);
    w.finish();
}

// Examples of a fixed number of segments or, if that is 0, of those from first[e] to first[e + 1].
inline void write_examples(const std::string& path, const std::vector<std::vector<int>>& segments, int per_example,
                           int V, std::vector<uint64_t> first = {}) {
    const bool any = per_example == 0;
    if (!any) for (size_t i = 0; i <= segments.size(); i += per_example) first.push_back(i);
    if (first.empty() || first.back() != segments.size())
        die("%s: %zu segments are not a whole number of examples", path.c_str(), segments.size());
    for (size_t e = 0; e + 1 < first.size(); e++)
        Examples::check(path, e, per_example, segments.data() + first[e], first[e + 1] - first[e]);
    std::vector<uint64_t> offsets = {0};
    std::vector<int> tokens;
    for (auto& s : segments) {
        tokens.insert(tokens.end(), s.begin(), s.end());
        offsets.push_back(tokens.size());
    }
    int32_t header[256] = {EXAMPLES_MAGIC, any ? 2 : 1, (int32_t)(first.size() - 1), per_example, V > 65536 ? 4 : 2};
    const uint64_t counts[] = {tokens.size(), any ? segments.size() : 0};
    memcpy(&header[6], counts, sizeof counts);
    Writer w(path);
    w.put(header, sizeof header);
    if (any) w.put(first.data(), first.size() * sizeof first[0]);
    w.put(offsets.data(), offsets.size() * sizeof offsets[0]);
    put_tokens(w, tokens, header[4]);
    w.finish();
}
