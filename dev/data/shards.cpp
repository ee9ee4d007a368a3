/* dev/data/shards.cpp -- text and JSON Lines in, the shards that train_gpt reads out; trains a tokenizer, too.
       make build/shards && build/shards --help

   encode     The input is taken in pieces, each cut where no word of the tokenizer crosses (safe_cut), so pieces can be
              encoded by several threads and written one after another: the tokens do not depend on the size of the
              pieces nor on the number of threads, and memory holds one batch of pieces, however long the input is.
   bpe        Words are counted first, then pairs of tokens within distinct words; a join touches the words that hold
              the pair and no others. */
#include "../host/options.h"
#include "../host/shards.h"
#include "../host/tokenizer.h"

namespace shards {

// ---- options: one row each, for the parser and --help ---------------------------------------------------------------
const Program SHARDS = {
    "shards",
    {{'e', "encode", "text or .jsonl to token shards PREFIX_train.bin, PREFIX_val.bin; merges.txt and vocab.json too"},
     {'b', "bpe", "trains a byte-level BPE on text or .jsonl; writes DIR/merges.txt and DIR/vocab.json"},
     {'x', "examples", ".jsonl of prompts, pairs, preferences or chats to an example shard"},
     {'d', "decode", "a token shard back to text, an example shard to .jsonl, on standard output"}},
    "text and JSON Lines to the shards that train_gpt reads, and back",
    "usage: shards encode|bpe|examples|decode [--option value]...      (shards --help lists all options)\n"
    "  shards bpe    --in book.txt --vocab 4096 --out data\n"
    "  shards encode --in book.txt --tokenizer data --val-fraction 0.1 --out data/book\n"
    "  shards decode --in data/book_val.bin --tokenizer data\n", ""};

struct Arguments {
    std::string verb;
    std::set<std::string> given = {};
    text_list in = {};                       // first as they are given, then the files
    text out = "", tokenizer = "", split = "", field = "text", eot = "<|endoftext|>", chat = "";
    integer val_tokens = 0, shard_tokens = 100000000, vocab = 0;
    number val_fraction = 0;

    Table table() {
        return {
            {"in", &in, "", "ebxdP!", "the input, or several, each after an --in, or a pattern in quotes, '*.txt'; "
             "decode: shards; else text, or JSON Lines, as are .jsonl, .jsonlines and .ndjson, and .json, .jl and - "
             "(standard input) whose first line is an object"},
            {"out", &out, "", "ebxP!", "encode: PREFIX, as DIR/book; bpe: DIR; examples: FILE; old ones are replaced"},
            {"tokenizer", &tokenizer, "", "exdP!", "merges file, or its directory, or the word bytes"},
            {"split", &split, "", "eE", "what separates documents in a text (\\n, also as \\r\\n, \\t, \\r, \\\\); "
             "white space stays with the document before it, any other separator is removed [none]"},
            {"field", &field, "", "eb", "the member of a JSON line that holds a document's text"},
            {"val_tokens", &val_tokens, "0..2147483647", "e1", "the first N tokens are for validation"},
            {"val_fraction", &val_fraction, "0..1", "e1", "such a share of the input, its first, is for validation"},
            {"shard_tokens", &shard_tokens, "1..2147483647", "e", "tokens in one file; more go to "
             "PREFIX_train_000000.bin and so on"},
            {"vocab", &vocab, "257..8388608", "b!", "all tokens: 256 bytes, merges, end of text"},
            {"template", &chat, "", "x", "the text of a turn in a chat (\\n as in --split) "
             "[that beside --tokenizer, or <|{role}|>\\n{content}\\n]"},
            {"eot", &eot, "", "dE", "what to print for end of text (\\n as in --split)"},
        };
    }
};

inline Arguments parse_arguments(const std::vector<std::string>& words) {
    Arguments a;
    a.verb = parse_words(SHARDS, words, a.table(), a.given);
    text_list files;
    for (const std::string& path : a.in)
        for (auto& file : path == "-" ? std::vector{path} : glob_files(path, "--in")) files.push_back(file);
    a.in = files;
    return a;
}

// ---- input ----------------------------------------------------------------------------------------------------------
// The class of the character that ends at p, begin < p < end, where another character starts at p.
inline CharClass class_before(const char* begin, const char* p, const char* end) {
    const char* q = p - 1;
    while (q > begin && p - q < 4 && (*q & 0xC0) == 0x80) q--;
    Char c = char_at(q, end);
    return q + c.size == p ? c.cls : CharClass::OTHER;       // else the last byte is a stray one
}

// The first place at or after `from` where a text may be cut, or its end. It is a place where a run of letters, numbers
// or others ends for good. Not after white space, whose last character may go with what follows; not between an
// apostrophe and a letter, which may be 're. What has no such place is one run, that is one word or two.
inline size_t safe_cut(std::string_view text, size_t from) {
    const char *begin = text.data(), *end = begin + text.size();
    for (const char* p = begin + std::max<size_t>(from, 1); p < end; p++) {
        if ((*p & 0xC0) == 0x80) continue;                   // perhaps in the middle of a character
        CharClass before = class_before(begin, p, end), after = char_at(p, end).cls;
        if (before == CharClass::SPACE || before == after) continue;
        if (before != CharClass::OTHER || after != CharClass::LETTER) return p - begin;
    }
    return text.size();
}

struct Piece {
    std::string_view text;       // for JSON Lines the line
    size_t line;                 // JSON Lines: its number, from 1
    bool starts;                 // a document starts here
    bool validation;             // it lies in the validation part of the input
};

inline bool begins_with_object(std::string_view text) {      // a line of its own
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
    try {
        return text.starts_with('{') && bool(parse_json(text.substr(0, text.find('\n')), ""));
    } catch (const Error&) { return false; }
}

// JSON Lines by its name, or, where that says too little (.jl is Julia's, too), by its first line.
inline bool is_json_lines(std::string_view text, std::string name) {
    for (char& c : name) c = (char)tolower((unsigned char)c);
    for (const char* ending : {".jsonl", ".ndjson", ".jsonlines"}) if (name.ends_with(ending)) return true;
    return (name.ends_with(".json") || name.ends_with(".jl") || name == "-") && begins_with_object(text);
}

// Whether all of a text is one JSON list or object.
inline bool is_json(std::string_view text) {
    const size_t first = text.find_first_not_of(" \t\r\n");
    if (first == text.npos || (text[first] != '[' && text[first] != '{')) return false;
    try {
        parse_json(text, "");
        return true;
    } catch (const Error&) { return false; }
}

// The jq filter that makes JSON Lines of one value: the items of its list, or of the first one among its members.
inline std::string lines_filter(std::string_view text, const std::string& name) {
    JsonParser p{text, name};
    std::string list = ".[]";
    p.blanks();
    for (bool first = true; p.take(first ? '{' : ','); first = false) {
        p.blanks();
        if (p.take('}')) return ".";
        const std::string member = p.string();
        list = ".[" + json_quote(member) + "][]";
        p.blanks();
        if (!p.take(':')) p.fail("':'");
        p.blanks();
        if (p.i < text.size() && text[p.i] == '[') break;
        p.value(0);
        p.blanks();
        if (p.take('}')) return ".";
    }
    if (!p.take('[')) p.fail("'[', '{' or ','");
    p.blanks();
    return list + (p.i < text.size() && text[p.i] == '"' ? " | {text: .}" : "");
}

inline std::string lines_by(const std::string& filter, const std::string& path) {
    return usable("make an object a line: jq -c " + shell_quote(filter) + " FILE > text.jsonl", path);
}

// What to do about a JSON line whose member is no text, or missing.
inline std::string advice_on(const Json& json, const std::string& field, std::string_view line,
                             const std::string& path) {
    const std::string member = ".[" + json_quote(field) + "]";
    bool strings = false;
    for (auto& [name, value] : json.members) strings |= value.kind == Json::STRING;
    std::string step = strings ? "name another member with --field"
                               : usable("take it from where it is: jq -c '{text: .MEMBER}' FILE > text.jsonl", path);
    for (auto& [name, value] : json.members)
        if (!strings && value.kind == Json::ARRAY) step = lines_by(lines_filter(line, path), path);
    if (json[field].kind == Json::NUMBER || json[field].kind == Json::BOOL)
        step = usable("make it a string: jq -c " + shell_quote(member + " |= tostring") + " FILE > text.jsonl", path);
    if (json.members.count(field) && !json[field])
        step = usable("leave such lines out: jq -c " + shell_quote("select(" + member + ")") + " FILE > text.jsonl",
                      path);
    for (auto [name, role, content] : {std::tuple("messages", "role", "content"), {"conversations", "from", "value"}})
        if (json[name])
            step = usable(format("it holds a chat, which build/shards examples reads; or make texts of chats: "
                                 "jq -c '{text: [.%s[] | .%s + \": \" + .%s] | join(\"\\n\")}' FILE > text.jsonl", name,
                                 role, content), path);
    for (const char* name : {"prompt", "instruction", "chosen"})
        if (json[name]) step = "build/shards examples reads prompts, responses and preferences";
    return members_of(json) + "; " + step;
}

// What a text is by its name or its first line.
inline const Kind* structured_kind(std::string_view text, std::string name) {
    static const Kind LINES = {0, "", "", "JSON Lines", "for a document a line, name it so: mv FILE FILE.jsonl", true},
                      TABLE = {0, "", "", "a table", "for a text a row, in Python: pandas.read_csv('FILE').to_json("
                               "'text.jsonl', orient='records', lines=True)", true};
    for (char& c : name) c = (char)tolower((unsigned char)c);
    if (name.ends_with(".csv") || name.ends_with(".tsv")) return &TABLE;
    return begins_with_object(text) ? &LINES : nullptr;
}

// The first separator in a text from `at` on, where it begins and ends; a line in it may end as on Windows.
inline std::pair<size_t, size_t> find_separator(std::string_view text, std::string_view split, size_t at) {
    if (split.empty()) return {text.npos, text.npos};
    for (size_t i = text.find(split[0], at); i != text.npos; i = text.find(split[0], i + 1)) {
        size_t n = 1, k = i + 1;
        for (; n < split.size(); n++) {
            if (split[n] == '\n' && text.substr(k, 2) == "\r\n") k++;
            if (k >= text.size() || text[k] != split[n]) break;
            k++;
        }
        if (n == split.size()) return {i - (split[0] == '\n' && i > at && text[i - 1] == '\r'), k};
    }
    return {text.npos, text.npos};
}

// Hands out an input piece by piece, in order, no piece much longer than piece_bytes if it can be cut.
struct Source {
    std::string_view text;
    std::string name, split, field;
    bool json_lines;
    size_t piece_bytes = 1 << 18;
    size_t validation_end = 0;   // the first byte that is not for validation
    // where we are: the rest of the document is [at, document_end), the next one starts at next_document
    size_t at = 0, document_end = 0, next_document = 0, line = 0;
    bool inside = false, matched = false;                    // matched: a separator was found

    Source(std::string_view whole, const std::string& name, const std::string& split, const std::string& field,
           bool lines = false)
        : text(without_mark(whole)), name(name), split(split), field(field),
          json_lines(lines || is_json_lines(text, name)) {
        const size_t first = text.find_first_not_of(" \t\r\n");
        const char begin = first == text.npos ? 0 : text[first];
        if (json_lines ? begin == '[' : name.ends_with(".json") || (name == "-" && is_json(text)))
            die("%s: looks like JSON, not JSON Lines; %s", shown(name),
                lines_by(lines_filter(text, name), name).c_str());
        if (json_lines && !split.empty()) die_usage("--split: not for JSON Lines, where every line is a document");
        if (json_lines) this->split = "\n";
    }

    bool next(Piece& piece) {
        const bool starts = !inside;
        if (!inside) {
            if (next_document > text.size()) return false;
            at = next_document;
            const auto [begin, end] = find_separator(text, split, at);
            const bool found = begin != text.npos;
            const bool keep = split.find_first_not_of(" \t\r\n") == split.npos && !json_lines;
            document_end = !found ? text.size() : keep ? end : begin;
            next_document = found ? end : text.size() + 1;
            matched |= found;
            line++;
        }
        size_t length = document_end - at, most = piece_bytes;
        const bool validation = at < validation_end;
        if (validation) most = std::min(most, validation_end - at);
        if (length > most && !json_lines) length = safe_cut(text.substr(at, length), most);
        piece = {text.substr(at, length), line, starts, validation};
        at += length;
        inside = at < document_end;
        return true;
    }

    // The text of a piece; a JSON line is decoded into storage. False for an empty line.
    bool read(const Piece& piece, std::string& storage, std::string_view& out) const {
        out = piece.text;
        if (!json_lines) return true;
        if (out.find_first_not_of(" \t\r") == out.npos) return false;
        const std::string where = format("%s: line %zu", shown(name), piece.line);
        const Json json = parse_json(out, where);
        const Json& member = json[field];
        if (member.kind != Json::STRING)
            die("%s: expected an object with a string %s; %s", where.c_str(), json_quote(field).c_str(),
                advice_on(json, field, out, name).c_str());
        storage = member.string;
        out = storage;
        return true;
    }
};

// The files of --in, which must outlive their sources.
struct Inputs {
    std::vector<std::unique_ptr<Input>> files;
    std::vector<Source> sources;

    Inputs(const Arguments& a, const std::string& split, const std::string& field, bool lines = false) {
        for (const std::string& path : a.in) {
            files.push_back(std::make_unique<Input>(path));
            const std::string_view text = files.back()->text();
            const TextCount count = check_text(path, text);
            sources.emplace_back(text, path, split, field, lines);
            if (sources.back().text.empty()) die("%s: empty, expected text", shown(path));
            if (sources.back().json_lines) continue;
            const Kind* kind = marked_kind(text);
            if (!kind) kind = structured_kind(sources.back().text, path);
            if (kind) warn("%s: looks like %s, and is taken as it stands, with all that is no prose; %s", shown(path),
                           kind->what, usable(kind->usable, path).c_str());
            if (count.returns)
                warn("%s: %zu lines end in \\r\\n, as on Windows, and every \\r is taken, too; take them out: %s",
                     shown(path), count.returns, usable("tr -d '\\r' < FILE > text.txt", path).c_str());
        }
        auto has_fields = [](const Source& s) { return s.json_lines; };
        if (a.given.count("field") && std::none_of(sources.begin(), sources.end(), has_fields))
            die_usage("--field: is for JSON Lines, but %s holds a text; give its name the ending .jsonl, if it has "
                      "lines of objects", shown(a.in[0]));
    }
};

// Tells of added tokens' names in texts, where they are letters, and what may be done: step(source, name).
template <class Step> void warn_of_added(const std::vector<Source>& sources, const Tokenizer& tokenizer, Step step) {
    for (const Source& s : sources) for (auto& [id, name] : tokenizer.added_tokens()) {
        size_t found = 0;
        for (size_t at = s.text.find(name); at != s.text.npos; at = s.text.find(name, at + name.size())) found++;
        if (found && name != s.split)
            warn("%s: holds %s %zu times, which are taken as the letters they are, not as token %d%s", shown(s.name),
                 name.c_str(), found, id, step(s, name).c_str());
    }
}

// ---- encode ---------------------------------------------------------------------------------------------------------
// Token shards under one prefix. Files are written as NAME.part and get their names when all of them are whole.
struct ShardWriter {
    std::string prefix;
    size_t shard_tokens;
    const ShardKind& kind;
    const int eot;
    size_t tokens = 0, documents = 0, files = 0, in_file = 0;            // documents: those that begin here
    std::unique_ptr<Writer> writer;

    ShardWriter(const std::string& prefix, size_t shard_tokens, const Tokenizer& t)
        : prefix(prefix), shard_tokens(shard_tokens), kind(SHARD_KINDS[t.vocab() > 65536]), eot(t.eot()) {}
    ~ShardWriter() {
        for (size_t i = 0; i < files; i++) unlink(part(i).c_str());
    }
    ShardWriter(const ShardWriter&) = delete;

    std::string numbered(size_t i) const { return format("%s_%06zu.bin", prefix.c_str(), i); }
    std::string part(size_t i) const { return numbered(i) + ".part"; }

    void put(const std::vector<int>& ids, size_t begin, size_t end) {
        documents += std::count(ids.begin() + begin, ids.begin() + end, eot);
        while (begin < end) {
            if (!writer || in_file == shard_tokens) {
                finish_file();
                writer = std::make_unique<Writer>(part(files++));
                writer->put(std::string(HEADER, '\0'));       // its place; the count is known at the end
            }
            const size_t n = std::min(end - begin, shard_tokens - in_file);
            put_tokens(*writer, std::vector<int>(ids.begin() + begin, ids.begin() + begin + n), kind.token_bytes);
            begin += n;
            in_file += n;
            tokens += n;
        }
    }
    void finish_file() {
        if (!writer) return;
        const int32_t header[3] = {kind.magic, kind.version, (int32_t)in_file};
        if (pwrite(writer->fd, header, sizeof(header), 0) != (ssize_t)sizeof(header))
            die("%s: cannot write: %s", writer->path.c_str(), strerror(errno));
        writer->finish();
        writer.reset();
        in_file = 0;
    }
    // Gives the files their names, and takes away what an earlier, longer run left under the same prefix.
    std::string publish() {
        finish_file();
        const std::string single = prefix + ".bin";
        for (size_t i = 0; i < files; i++) {
            const std::string name = files == 1 ? single : numbered(i);
            if (rename(part(i).c_str(), name.c_str()) != 0)
                die("%s: cannot rename: %s", part(i).c_str(), strerror(errno));
        }
        if (files != 1) unlink(single.c_str());
        for (size_t i = files == 1 ? 0 : files; unlink(numbered(i).c_str()) == 0; i++) {}
        if (files == 0) return "";
        const std::string name = files == 1 ? single : prefix + "_*.bin";
        const std::string begun = documents ? format("documents: %zu", documents) : "the rest of a document";
        const std::string line =
            format("%s: %zu tokens, %s, shards: %zu\n", name.c_str(), tokens, begun.c_str(), files);
        files = 0;
        return line;
    }
};

// Calls sink(tokens, validation) for consecutive stretches of the input's tokens. A batch is encoded in parallel and
// handed on in order; an error in it is reported for the first piece that has one.
template <class Sink> void encode_all(Source& source, const Tokenizer& tokenizer, Sink sink) {
    struct Job {
        std::vector<Piece> pieces;
        std::vector<int> tokens;
        std::string error;
    };
    std::vector<Tokenizer::Scratch> scratch(omp_get_max_threads());
    std::vector<Job> jobs(32);
    Piece piece;
    for (bool more = source.next(piece); more;) {
        size_t used = 0;
        for (; used < jobs.size() && more; used++) {
            Job& job = jobs[used];
            job.pieces.clear();
            const bool validation = piece.validation;
            for (size_t bytes = 0; more && bytes < source.piece_bytes && piece.validation == validation;) {
                job.pieces.push_back(piece);
                bytes += piece.text.size() + 1;
                more = source.next(piece);
            }
        }
        #pragma omp parallel for schedule(dynamic, 1)
        for (size_t j = 0; j < used; j++) {
            Job& job = jobs[j];
            const int thread = omp_get_thread_num();
            job.tokens.clear();
            std::string storage;
            std::string_view text;
            try {
                for (const Piece& p : job.pieces) {
                    if (!source.read(p, storage, text)) continue;
                    if (p.starts) job.tokens.push_back(tokenizer.eot());
                    tokenizer.encode(text, job.tokens, scratch[thread]);
                }
            } catch (const Error& e) {                       // must not leave the parallel region
                job.error = e.line;
            } catch (const std::exception& e) {
                job.error = std::string(shown(source.name)) + ": " + e.what();
            }
        }
        for (size_t j = 0; j < used; j++) {
            if (!jobs[j].error.empty()) throw Error{1, jobs[j].error};
            sink(jobs[j].tokens, jobs[j].pieces[0].validation);
        }
    }
}

inline void make_directory(const std::string& path) {
    std::error_code code;
    if (!path.empty()) fs::create_directories(path, code);
    if (code) die("%s: cannot make the directory: %s", path.c_str(), code.message().c_str());
}

// The trainer finds tokenizer and template beside the data, so one directory cannot hold data of two of either.
inline std::string directory_for(const Arguments& a, const Tokenizer& tokenizer) {
    const std::string directory = directory_of(a.out), merges = directory + "/merges.txt";
    make_directory(directory);
    if (!exists(merges)) return directory;
    const Tokenizer there = Tokenizer::load(merges);
    if (!there.same(tokenizer))
        die("%s: is another tokenizer than --tokenizer %s; choose another directory for --out", merges.c_str(),
            a.tokenizer.c_str());
    const std::string &old = there.chat_template, &now = tokenizer.chat_template;
    if (!old.empty() && !now.empty() && old != now)
        die("%s/template.txt: found '%s', but these chats have '%s'; choose another directory for --out, or give that "
            "with --template", directory.c_str(), escaped(old).c_str(), escaped(now).c_str());
    return directory;
}

inline std::string encode(const Arguments& a) {
    const size_t val_tokens = a.val_tokens, shard_tokens = a.shard_tokens;
    if (const std::string name = fs::path(a.out).filename().string(); name.empty() || name == "." || name == "..")
        die_usage("--out %s: names a directory; give what the names of files in it begin with, too: --out %s/text",
                  a.out.c_str(), directory_of(a.out + "/").c_str());
    if (exists(a.out, true))
        warn("--out %s: the shards will stand beside this directory; for files in it: --out %s/text", a.out.c_str(),
             a.out.c_str());
    const Tokenizer tokenizer = Tokenizer::load(a.tokenizer);
    Inputs inputs(a, unescaped("--split", a.split), a.field);
    std::vector<Source>& sources = inputs.sources;
    size_t bytes = 0, before = 0;
    for (const Source& s : sources) bytes += s.text.size();
    for (Source& s : sources) {
        const size_t end = (size_t)(a.val_fraction * (double)bytes);
        s.validation_end = end - std::min(end, before);
        before += s.text.size();
    }

    warn_of_added(sources, tokenizer, [](const Source& s, const std::string& name) {
        return s.json_lines ? "" : "; --split " + shell_quote(name) + " makes documents of what they separate";
    });
    const std::string directory = directory_for(a, tokenizer);
    ShardWriter train(a.out + "_train", shard_tokens, tokenizer), val(a.out + "_val", shard_tokens, tokenizer);
    for (Source& source : sources) encode_all(source, tokenizer, [&](const std::vector<int>& ids, bool validation) {
        const size_t room = val_tokens - std::min(val_tokens, val.tokens);
        const size_t to_val = validation ? ids.size() : std::min(ids.size(), room);
        val.put(ids, 0, to_val);
        train.put(ids, to_val, ids.size());
    });
    if (val.tokens + train.tokens == 0) die("%s: holds no text", shown(a.in.back()));
    if (val.tokens < val_tokens || train.tokens == 0)
        die("%s: holds %zu tokens, which leaves none for training; give a smaller --val-tokens or --val-fraction",
            shown(a.in.back()), val.tokens + train.tokens);
    if (!a.split.empty() && std::none_of(sources.begin(), sources.end(), [](const Source& s) { return s.matched; }))
        warn("--split %s: is nowhere in %s, which is one document", a.split.c_str(),
             sources.size() == 1 ? "the input" : "any input, each of");
    tokenizer.save(directory);
    const std::string line = train.publish();
    return line + val.publish();
}

// ---- bpe ------------------------------------------------------------------------------------------------------------
// Trains merges on words with their counts. Every round joins the pair with the most occurrences (neighbouring tokens
// within a word, times the word's count); of equals the one whose bytes come first, left token before right. Counts of
// pairs are kept up to date: a round costs the length of the words that hold its pair. The heap may hold pairs whose
// count has fallen since; they go back with the right one when they come up. Counts only grow for pairs with the new
// token, which enter the heap at the end of their round. Returns fewer merges than asked when no pair is left.
struct Trainer {
    struct Word {
        std::vector<int> ids;
        int64_t count;
    };
    struct Pair {
        int64_t count = 0;
        std::vector<int> words;          // where it was seen; it may be gone from some of them
    };
    struct Candidate {
        int64_t count;
        int left, right;
    };

    std::vector<Word> words;
    std::vector<std::string> tokens;     // bytes of every id
    std::unordered_map<uint64_t, Pair> pairs;
    std::vector<Candidate> heap;
    std::vector<uint64_t> fresh;         // pairs that are new in this round

    static uint64_t key(int left, int right) { return (uint64_t)left << 32 | (uint32_t)right; }

    void push(int64_t count, uint64_t pair) {
        heap.push_back({count, (int)(pair >> 32), (int)(uint32_t)pair});
        std::push_heap(heap.begin(), heap.end(), [this](auto& a, auto& b) { return worse(a, b); });
    }
    bool worse(const Candidate& a, const Candidate& b) const {
        if (a.count != b.count) return a.count < b.count;
        const int order = tokens[a.left].compare(tokens[b.left]);
        return order != 0 ? order > 0 : tokens[a.right].compare(tokens[b.right]) > 0;
    }
    // Adds word w's pair at ids[i]; a pair met for the first time is listed in fresh.
    void add(int w, size_t i) {
        const uint64_t pair = key(words[w].ids[i], words[w].ids[i + 1]);
        Pair& p = pairs[pair];
        if (p.words.empty()) fresh.push_back(pair);
        if (p.words.empty() || p.words.back() != w) p.words.push_back(w);
        p.count += words[w].count;
    }
    // Joins every left, right in word w, from the left. Only pairs that touch a join are counted anew.
    void join(int w, int left, int right, int id) {
        std::vector<int>& ids = words[w].ids;
        size_t n = 0, counted = 0;       // tokens written, old pairs taken off the counts
        for (size_t i = 0; i < ids.size(); i++) {
            const bool here = i + 1 < ids.size() && ids[i] == left && ids[i + 1] == right;
            if (here) for (size_t k = std::max(counted, i - (i > 0)); k < i + 2 && k + 1 < ids.size(); counted = ++k)
                pairs[key(ids[k], ids[k + 1])].count -= words[w].count;
            ids[n++] = here ? id : ids[i];
            i += here;
        }
        ids.resize(n);
        for (size_t i = 0; i + 1 < n; i++)
            if (ids[i] == id || ids[i + 1] == id) add(w, i);
    }

    std::vector<std::pair<int, int>> train(const std::unordered_map<std::string, int64_t>& counts, size_t merges) {
        for (int i = 0; i < 256; i++) tokens.push_back(std::string(1, (char)GPT2_BYTES.byte[i]));
        for (auto& [text, count] : counts) {
            words.push_back({{}, count});
            for (uint8_t byte : text) words.back().ids.push_back(GPT2_BYTES.id[byte]);
        }
        for (int w = 0; w < (int)words.size(); w++)
            for (size_t i = 0; i + 1 < words[w].ids.size(); i++) add(w, i);
        std::vector<std::pair<int, int>> out;
        while (true) {
            for (uint64_t pair : fresh) push(pairs[pair].count, pair);
            fresh.clear();
            if (out.size() == merges || heap.empty()) return out;
            const Candidate best = heap.front();
            std::pop_heap(heap.begin(), heap.end(), [this](auto& a, auto& b) { return worse(a, b); });
            heap.pop_back();
            const uint64_t pair = key(best.left, best.right);
            const int64_t count = pairs[pair].count;
            if (count != best.count) {
                if (count > 0) push(count, pair);
                continue;
            }
            const int id = (int)tokens.size();
            tokens.push_back(tokens[best.left] + tokens[best.right]);
            out.push_back({best.left, best.right});
            const std::vector<int> where = std::move(pairs[pair].words);
            for (int w : where) join(w, best.left, best.right, id);
            pairs.erase(pair);
        }
    }
};

inline void count_words(Source& source, std::unordered_map<std::string, int64_t>& counts) {
    std::string storage, word;
    std::string_view text;
    for (Piece piece; source.next(piece);) {
        if (!source.read(piece, storage, text)) continue;
        for (const char *p = text.data(), *end = p + text.size(); p < end; p += word.size()) {
            word.assign(p, word_length(p, end));
            counts[word]++;
        }
    }
}

inline Tokenizer train_tokenizer(std::vector<Source> sources, int vocab) {
    Trainer trainer;
    const size_t wanted = vocab - 257;
    std::unordered_map<std::string, int64_t> counts;
    for (Source& source : sources) count_words(source, counts);
    if (counts.empty()) die("%s: holds no text", shown(sources.back().name));
    const auto merges = trainer.train(counts, wanted);
    if (merges.size() < wanted)
        die("%s: no two tokens are left to join after %zu merges; give --vocab %zu or less, or more text",
            shown(sources.back().name), merges.size(), merges.size() + 257);
    std::string text;
    for (auto [left, right] : merges)
        text += GPT2_BYTES.printable(trainer.tokens[left]) + " " + GPT2_BYTES.printable(trainer.tokens[right]) + "\n";
    return Tokenizer::from_merges(text, "merges");
}

inline std::string bpe(const Arguments& a) {
    const Inputs inputs(a, "", a.field);
    const Tokenizer tokenizer = train_tokenizer(inputs.sources, (int)a.vocab);
    warn_of_added(inputs.sources, tokenizer, [](const Source& s, const std::string& name) {
        const char* out = s.json_lines ? "text.jsonl" : "text.txt";
        return "; learn without them: " + usable("sed 's/" + name + "//g' FILE > " + out, s.name);
    });
    make_directory(a.out);
    const std::string merges = a.out + "/merges.txt";
    for (const std::string& name : entries_of(a.out)) {
        const bool depends = name.ends_with(".bin") || name.ends_with(".safetensors");
        if (depends && exists(merges) && !Tokenizer::load(merges).same(tokenizer))
            die("%s: %s beside it has this tokenizer's tokens; choose another directory for --out", merges.c_str(),
                name.c_str());
    }
    tokenizer.save(a.out);
    return format("%s: %lld tokens\n", (fs::path(a.out) / "merges.txt").c_str(), a.vocab);
}

// ---- examples -------------------------------------------------------------------------------------------------------
// What the lines of a file may be, all of them alike: the first form whose members the first object has.
struct ExampleMaker;
struct Form {
    std::vector<std::string> members;
    int segments;                            // of an example
    void (ExampleMaker::*add)(const Json&);

    std::string text() const {
        std::string s;
        for (const std::string& name : members) s += (s.empty() ? "{" : ", ") + json_quote(name);
        return s + "}";
    }
};

// Makes examples of lines. An end of text begins and ends what a model is to learn, so a response cannot be empty.
struct ExampleMaker {
    const Tokenizer& tokenizer;
    const ChatTemplate chat;
    const Form* form = nullptr;
    std::string where = "";                  // the line at hand
    std::vector<std::vector<int>> segments = {};
    std::vector<uint64_t> first = {0};
    size_t equal = 0, lost = 0, chats = 0;   // preferences left out, turns left out; lines that are chats
    Tokenizer::Scratch scratch = {};

    const std::string& text(const Json& line, const std::string& name) {
        if (line[name].kind != Json::STRING)
            die("%s: expected a string %s, as in %s, the same on every line; %s", where.c_str(),
                json_quote(name).c_str(), form->text().c_str(), members_of(line).c_str());
        return line[name].string;
    }
    const std::string& response(const Json& line, const std::string& name) {
        const std::string& s = text(line, name);
        if (s.empty()) die("%s: %s is empty, expected a response; take such lines out: jq -c 'select(.%s != \"\")'",
                           where.c_str(), json_quote(name).c_str(), name.c_str());
        return s;
    }
    Turns turns(const Json& line, const std::string& name) {
        chats++;
        return read_turns(line, name, where);
    }
    std::vector<std::string> exchanges(const Turns& turns) {
        size_t open = 0;
        const std::vector<std::string> parts = chat.exchanges(turns, open);
        const std::string& name = form->members[0];
        if (parts.empty())
            die("%s: found %zu turns, none of them the assistant's; take such lines out: "
                "jq -c 'select(any(.%s[]; %s))'; or, if all are to be answered, \"prompt\" may be such a list",
                where.c_str(), turns.size(), name.c_str(),
                name == "messages" ? ".role == \"assistant\"" : ".from == \"gpt\"");
        lost += open;
        return parts;
    }
    void segment(const std::string& s) { tokenizer.encode(s, segments.emplace_back(), scratch); }
    void add(const std::vector<std::string>& parts) {
        for (const std::string& s : parts) segment(s);
        first.push_back(segments.size());
    }
    void prefer(const std::string& prompt, const std::string& chosen, const std::string& rejected) {
        if (chosen == rejected) equal++;
        else add({prompt, chosen, rejected});
    }

    // A segment of all that was said before the last answer, in which an end of text ends each response; that answer.
    std::string before_answer(const Turns& all) {
        const std::vector<std::string> parts = exchanges(all);
        tokenizer.encode_prompt(parts, segments.emplace_back(), scratch);
        return parts.back();
    }
    // A prompt, and its answer if it has one, is a text or a list of turns.
    Turns asked(const Json& line) {
        chats++;
        return read_asked(line, "prompt", where);
    }
    void prompt(const Json& line) {
        if (line["prompt"].kind != Json::ARRAY) return add({text(line, "prompt")});
        Turns all = asked(line);
        all.push_back({ASSISTANT, ""});
        before_answer(all);
        add({});
    }
    void pair(const Json& line) {
        const std::string& name = form->members[1];
        if (line["prompt"].kind != Json::ARRAY) return add({text(line, "prompt"), response(line, name)});
        Turns all = asked(line);
        const bool text = line[name].kind != Json::ARRAY;
        const Turns last = text ? Turns{{ASSISTANT, response(line, name)}} : turns(line, name);
        if (last.size() != 1 || last[0].role != ASSISTANT)
            die("%s: expected one turn in %s, the assistant's; \"messages\" are whole dialogues", where.c_str(),
                json_quote(name).c_str());
        all.push_back(last[0]);
        add({before_answer(all)});
    }
    void dialogue(const Json& line) { add(exchanges(turns(line, form->members[0]))); }
    void preference(const Json& line) {
        if (line["chosen"].kind == Json::ARRAY) return preferred_turns(line);
        prefer(text(line, "prompt"), response(line, "chosen"), response(line, "rejected"));
    }
    // The best first: of any two the one before is chosen.
    void ranking(const Json& line) {
        std::vector<std::string> ranked;
        for (const Json& r : line["responses"].items) if (!r.string.empty()) ranked.push_back(r.string);
        if (ranked.size() < 2 || ranked.size() != line["responses"].items.size())
            die("%s: expected a list \"responses\" of two strings or more, none empty, the best first; %s",
                where.c_str(), members_of(line).c_str());
        for (size_t i = 0; i < ranked.size(); i++)
            for (size_t k = i + 1; k < ranked.size(); k++) prefer(text(line, "prompt"), ranked[i], ranked[k]);
    }
    // Alpaca's prompts, as its authors train on them.
    void instruction(const Json& line) {
        const std::string& input = text(line, "input");
        const bool none = input.empty();
        add({std::string("Below is an instruction that describes a task") +
             (none ? "" : ", paired with an input that provides further context") +
             ". Write a response that appropriately completes the request.\n\n### Instruction:\n" +
             text(line, "instruction") + (none ? "" : "\n\n### Input:\n" + input) + "\n\n### Response:",
             response(line, "output")});
    }
    // HH-RLHF: two dialogues, their prompt all that is common up to an answer of the assistant.
    void dialogues(const Json& line) {
        if (line["chosen"].kind == Json::ARRAY) return preferred_turns(line);
        const std::string answer = "\n\nAssistant:", &chosen = text(line, "chosen"), &rejected = text(line, "rejected");
        size_t same = 0;
        while (same < std::min(chosen.size(), rejected.size()) && chosen[same] == rejected[same]) same++;
        const size_t found = chosen.substr(0, same).rfind(answer), begin = found + answer.size();
        if (found == chosen.npos || begin == chosen.size() || begin == rejected.size())
            die("%s: expected \"chosen\" and \"rejected\" that go on from a common beginning that ends in "
                "\"\\n\\nAssistant:\", or a \"prompt\" beside them", where.c_str());
        prefer(chosen.substr(0, begin), chosen.substr(begin), rejected.substr(begin));
    }
    // Two chats, or what follows the one in "prompt". They differ in the last turn.
    void preferred_turns(const Json& line) {
        Turns chosen = turns(line, "chosen"), rejected = turns(line, "rejected"), all;
        const size_t n = chosen.size();
        if (line["prompt"].kind == Json::ARRAY) all = turns(line, "prompt");
        else if (line["prompt"] && n && chosen[0].role == ASSISTANT) all = {{"user", text(line, "prompt")}};
        if (n == 0 || rejected.size() != n || chosen[n - 1].role != ASSISTANT || rejected[n - 1].role != ASSISTANT ||
            !std::equal(chosen.begin(), chosen.end() - 1, rejected.begin()))
            die("%s: expected \"chosen\" and \"rejected\" that differ in their last turn alone, the assistant's",
                where.c_str());
        if (chosen == rejected) return (void)equal++;
        all.insert(all.end(), chosen.begin(), chosen.end());
        add({before_answer(all), rejected[n - 1].content});
    }
};

const Form FORMS[] = {
    {{"prompt", "chosen", "rejected"}, 3, &ExampleMaker::preference},
    {{"chosen", "rejected"}, 3, &ExampleMaker::dialogues},
    {{"prompt", "responses"}, 3, &ExampleMaker::ranking},
    {{"prompt", "response"}, 2, &ExampleMaker::pair},
    {{"prompt", "answer"}, 2, &ExampleMaker::pair},
    {{"prompt", "completion"}, 2, &ExampleMaker::pair},
    {{"instruction", "input", "output"}, 2, &ExampleMaker::instruction},
    {{"messages"}, 0, &ExampleMaker::dialogue},
    {{"conversations"}, 0, &ExampleMaker::dialogue},
    {{"prompt"}, 1, &ExampleMaker::prompt}};

inline const Form& form_of(const Json& line, const std::string& where) {
    std::string known;
    for (const Form& form : FORMS) {
        if (std::all_of(form.members.begin(), form.members.end(), [&](auto& name) { return bool(line[name]); }))
            return form;
        known += (known.empty() ? "" : ", ") + form.text();
    }
    die("%s: expected an object with the members of one of %s; %s", where.c_str(), known.c_str(),
        members_of(line).c_str());
}

inline std::string examples(const Arguments& a) {
    Tokenizer tokenizer = Tokenizer::load(a.tokenizer);
    std::string& chat = tokenizer.chat_template;
    const std::string text = !a.chat.empty() ? unescaped("--template", a.chat) : chat.empty() ? DEFAULT_TEMPLATE : chat;
    ExampleMaker make{tokenizer, ChatTemplate(text, "--template", 2)};
    std::string others;                      // members of the first object that are not taken
    Inputs inputs(a, "", "", true);
    for (Source& source : inputs.sources) {
        for (Piece piece; source.next(piece);) {
            if (piece.text.find_first_not_of(" \t\r") == piece.text.npos) continue;
            make.where = format("%s: line %zu", shown(source.name), piece.line);
            const Json json = parse_json(piece.text, make.where);
            if (!make.form) {
                make.form = &form_of(json, make.where);
                for (auto& [name, value] : json.members)
                    if (std::count(make.form->members.begin(), make.form->members.end(), name) == 0)
                        others += (others.empty() ? ", without " : ", ") + json_quote(name.substr(0, 60));
            }
            (make.*make.form->add)(json);
        }
    }
    if (!make.form) die("%s: no examples, expected one JSON object a line", shown(a.in.back()));
    if (!a.chat.empty() && !make.chats)
        die_usage("--template: is for chats, but %s holds %s", shown(a.in.back()), make.form->text().c_str());
    if (make.first.size() == 1)
        die("%s: all of %zu preferences have chosen and rejected alike", shown(a.in.back()), make.equal);
    if (make.chats) chat = text;
    const std::string directory = directory_for(a, tokenizer);
    const int per = make.form->segments;
    write_examples(a.out, make.segments, per, tokenizer.vocab(), per ? std::vector<uint64_t>() : make.first);
    tokenizer.save(directory);

    const Examples e(a.out, tokenizer.vocab(), INT_MAX);
    size_t tokens[2] = {}, longest = 0;      // of prompts and contexts, of responses
    for (size_t i = 0; i < e.size(); longest = std::max(longest, e.row(i++)))
        for (size_t k = 0; k < e.count(i); k++) tokens[per == 3 ? k > 0 : k % 2] += e.of(i)[k].size();
    std::string line = format("%s: %s: %zu, of %s%s; tokens of prompts: %zu, of responses: %zu, of the longest row: "
                              "%zu\n", a.out.c_str(), Examples::KINDS[per], e.size(), make.form->text().c_str(),
                              others.c_str(), tokens[0], tokens[1], longest);
    if (make.equal) line += format("left out: %zu preferences whose chosen and rejected are alike\n", make.equal);
    if (make.lost) line += format("left out: %zu turns after the assistant's last\n", make.lost);
    return line;
}

// ---- decode ---------------------------------------------------------------------------------------------------------
inline void decode_examples(const std::string& path, const Tokenizer& tokenizer, const std::string& end_of_text) {
    const Examples e(path, tokenizer.vocab(), INT_MAX);
    const char* names[][3] = {{}, {"prompt"}, {"prompt", "response"}, {"prompt", "chosen", "rejected"}};
    for (size_t i = 0; i < e.size(); i++) {
        std::string line;
        for (size_t k = 0; k < e.count(i); k++) {
            std::string bytes;
            for (int id : e.of(i)[k]) bytes += id == tokenizer.eot() ? end_of_text : tokenizer.decode(id);
            line += (k ? ", " : "") + (e.segments ? json_quote(names[e.segments][k]) + ": " : "");
            line += json_quote(valid_utf8(bytes));
        }
        printf(e.segments ? "{%s}\n" : "{\"segments\": [%s]}\n", line.c_str());
    }
}

inline std::string decode(const Arguments& a) {
    const Tokenizer tokenizer = Tokenizer::load(a.tokenizer);
    const std::string end_of_text = unescaped("--eot", a.eot);
    for (const std::string& path : a.in) {
        if (const Mapped file(path); file.size >= 4 && file.at<int32_t>(0) == EXAMPLES_MAGIC) {
            decode_examples(path, tokenizer, end_of_text);
            continue;
        }
        const Shard shard(path, false);
        shard.check_tokens(tokenizer.vocab());
        for (size_t i = 0; i < shard.count; i++) {
            const int id = (int)shard[i];
            const std::string_view bytes = id == tokenizer.eot() ? end_of_text : tokenizer.decode(id);
            fwrite(bytes.data(), 1, bytes.size(), stdout);
        }
    }
    return "";
}

// Returns the lines to print.
inline std::string run(const Arguments& a) {
    return a.verb == "encode" ? encode(a) : a.verb == "bpe" ? bpe(a) : a.verb == "examples" ? examples(a) : decode(a);
}

}  // namespace shards

#ifndef NO_SHARDS_MAIN
int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    if (words.empty()) return tell_usage(shards::SHARDS);
    return run_main([&] {
        if (answer(shards::SHARDS, shards::Arguments().table(), words)) return;
        fputs(shards::run(shards::parse_arguments(words)).c_str(), stdout);
    });
}
#endif
