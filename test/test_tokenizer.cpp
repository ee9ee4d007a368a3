/* test/test_tokenizer.cpp -- the tokenizer of dev/host and the tool that makes shards.
       build/test_tokenizer                       needs no file: everything against slow code written here
       build/test_tokenizer MERGES CASES.tsv      published cases: a line is bytes in hex (- for none), TAB, ids, TAB,
                                                  category
       build/test_tokenizer --shakespeare TEXT MERGES TRAIN.bin VAL.bin      the published shards, byte for byte */
#define NO_SHARDS_MAIN
#include "../dev/data/shards.cpp"
#include "check.h"

namespace {

using Ids = std::vector<int>;

void report(const std::string& name, size_t cases, const std::string& wrong) {
    if (wrong.empty()) check(true, "tokenizer/%s %zu cases", name.c_str(), cases);
    else check(false, "tokenizer/%s: %s", name.c_str(), wrong.c_str());
}

std::string hex(std::string_view bytes) {
    std::string s;
    for (uint8_t b : bytes.substr(0, 80)) s += format("%02x", b);
    return bytes.size() > 80 ? s + "..." : bytes.empty() ? "-" : s;
}
std::string show(const Ids& ids) {
    std::string s;
    for (size_t i = 0; i < ids.size() && i < 24; i++) s += (i ? " " : "") + std::to_string(ids[i]);
    return ids.size() > 24 ? s + " ..." : s;
}
std::string decode(const Tokenizer& t, const Ids& ids) {
    std::string s;
    for (int id : ids) s += t.decode(id);
    return s;
}

struct Random {
    uint64_t state;
    size_t below(size_t n) {      // SplitMix64
        uint64_t z = state += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return (z ^ z >> 31) % n;
    }
};

std::string utf8(uint32_t code) {
    if (code < 0x80) return {(char)code};
    if (code < 0x800) return {(char)(0xC0 | code >> 6), (char)(0x80 | (code & 63))};
    if (code < 0x10000) return {(char)(0xE0 | code >> 12), (char)(0x80 | (code >> 6 & 63)), (char)(0x80 | (code & 63))};
    return {(char)(0xF0 | code >> 18), (char)(0x80 | (code >> 12 & 63)), (char)(0x80 | (code >> 6 & 63)),
            (char)(0x80 | (code & 63))};
}

// Text made of what the pattern cares about: classes, contractions, every sort of blank, and bytes that are not UTF-8.
std::string random_text(Random& r, size_t parts) {
    const char* pieces[] = {
        "a", "b", "ab", "the", " ", " ", "  ", "\n", "\t", "\r\n", "'s", "'re", "'ll", "'", "'R", "1", "23", "!", "?.",
        "<|endoftext|>", "\xC2\xA0", "\xE3\x80\x80", "\xE2\x80\x83", "\xC3\xA9", "\xE4\xB8\xAD", "\xD9\xA3", "\xC2\xB2",
        "\xF0\x9F\x98\x80", "\xCC\x81", "\xFF", "\x80", "\xC3", "\xE2\x82", "\xF0\x9F\x98", "\xC0\x80", "\xED\xA0\x80",
        "\xF4\x90\x80\x80", "\x1C", "\x85"};
    std::string s;
    for (size_t i = 0; i < parts; i++) {
        switch (r.below(8)) {
            case 0: s += utf8((uint32_t)r.below(0x110000)); break;
            case 1: s += utf8((uint32_t)r.below(0x3000)); break;
            case 2: s += (char)r.below(256); break;
            case 3: s += std::string(r.below(12), "ab 1!\n'\xE4"[r.below(8)]); break;
            default: s += pieces[r.below(std::size(pieces))];
        }
    }
    return s;
}

// ---- slow versions, each straight from its definition ---------------------------------------------------------------
// The pattern, alternative by alternative, with the backtracking that a regex engine would do.
std::vector<std::string> slow_words(std::string_view text) {
    std::vector<std::pair<std::string, CharClass>> chars;
    for (const char *p = text.data(), *end = p + text.size(); p < end;) {
        Char c = char_at(p, end);
        chars.push_back({std::string(p, c.size), c.cls});
        p += c.size;
    }
    auto run = [&](size_t i, CharClass cls) {
        size_t n = 0;
        while (i + n < chars.size() && chars[i + n].second == cls) n++;
        return n;
    };
    auto match = [&](size_t i) -> size_t {
        for (std::string suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
            std::string here;
            for (size_t k = 0; k < suffix.size() && i + k < chars.size(); k++) here += chars[i + k].first;
            if (here == suffix) return suffix.size();
        }
        for (CharClass cls : {CharClass::LETTER, CharClass::NUMBER, CharClass::OTHER})
            for (size_t blank : {1, 0})
                if ((!blank || chars[i].first == " ") && run(i + blank, cls)) return blank + run(i + blank, cls);
        for (size_t n = run(i, CharClass::SPACE); n > 0; n--)
            if (i + n == chars.size() || chars[i + n].second == CharClass::SPACE) return n;
        return run(i, CharClass::SPACE);
    };
    std::vector<std::string> words;
    for (size_t i = 0; i < chars.size();) {
        words.emplace_back();
        for (size_t n = match(i); n > 0; n--) words.back() += chars[i++].first;
    }
    return words;
}

using Merges = std::vector<std::pair<std::string, std::string>>;      // bytes of left and right

std::vector<std::string> bytes_of(const std::string& word) {
    std::vector<std::string> out;
    for (char c : word) out.push_back(std::string(1, c));
    return out;
}
void join_all(std::vector<std::string>& tokens, const std::pair<std::string, std::string>& merge) {
    for (size_t i = 0; i + 1 < tokens.size(); i++)
        if (tokens[i] == merge.first && tokens[i + 1] == merge.second) {
            tokens[i] += tokens[i + 1];
            tokens.erase(tokens.begin() + i + 1);
        }
}
// Every merge in turn, wherever it applies.
std::vector<std::string> slow_encode(const std::string& text, const Merges& merges) {
    std::vector<std::string> out;
    for (const std::string& word : slow_words(text)) {
        std::vector<std::string> tokens = bytes_of(word);
        for (auto& merge : merges) join_all(tokens, merge);
        out.insert(out.end(), tokens.begin(), tokens.end());
    }
    return out;
}
// Counts everything again before every merge.
Merges slow_train(const std::string& text, size_t n) {
    std::vector<std::vector<std::string>> words;
    for (const std::string& word : slow_words(text)) words.push_back(bytes_of(word));
    Merges merges;
    while (merges.size() < n) {
        std::map<std::pair<std::string, std::string>, int> counts;     // ordered by bytes: the first maximum wins ties
        for (auto& w : words)
            for (size_t i = 0; i + 1 < w.size(); i++) counts[{w[i], w[i + 1]}]++;
        if (counts.empty()) break;
        auto best = counts.begin();
        for (auto it = counts.begin(); it != counts.end(); it++)
            if (it->second > best->second) best = it;
        merges.push_back(best->first);
        for (auto& w : words) join_all(w, merges.back());
    }
    return merges;
}
std::string merges_text(const Merges& merges) {
    std::string s = "#version: 0.2\n";
    for (auto& [l, r] : merges) s += GPT2_BYTES.printable(l) + " " + GPT2_BYTES.printable(r) + "\n";
    return s;
}

// ---- checks without files -------------------------------------------------------------------------------------------
void check_bytes() {
    const Tokenizer t = Tokenizer::load("bytes");
    std::string wrong;
    size_t n = 0;
    const std::pair<int, int> known[] = {{'!', 0}, {'A', 32}, {'~', 93}, {0xA1, 94}, {0xAC, 105}, {0xAE, 106},
                                         {0xFF, 187}, {0, 188}, {'\n', 198}, {' ', 220}, {0x7F, 221}, {0x80, 222},
                                         {0xAD, 255}};
    for (auto [byte, id] : known) {
        n++;
        if (t.encode(std::string(1, (char)byte)) != Ids{id}) wrong = format("byte %d is not id %d", byte, id);
    }
    if (t.vocab() != 257 || t.eot() != 256) wrong = "end of text is not 256";
    Tokenizer::Scratch scratch;
    Random r{1};
    for (size_t i = 0; i < 70000 && wrong.empty(); i++) {
        n++;
        std::string s = i < 65536 ? std::string{(char)(i >> 8), (char)i} : random_text(r, r.below(30));
        Ids ids;
        t.encode(s, ids, scratch);
        if (ids.size() != s.size() || decode(t, ids) != s) wrong = hex(s) + " does not come back";
    }
    report("bytes", n, wrong);
}

void check_utf8() {
    size_t valid[5] = {}, n = 0;
    auto look = [&](const char* p, int size) {
        n++;
        Char c = char_at(p, p + size);
        if (c.size == size) valid[size]++;
        else if (c.size != 1 && c.size > size) valid[0]++;
    };
    for (int a = 0x80; a < 0x100; a++)
        for (int b = 0; b < 0x100; b++) {
            const char two[] = {(char)a, (char)b};
            look(two, 2);
            for (int c = 0x7F; c < 0xC2; c++) {
                const char three[] = {(char)a, (char)b, (char)c};
                look(three, 3);
                for (int d = 0x80; a >= 0xEF && b > 0x7E && b < 0xC2 && d < 0xC0; d++) {
                    const char four[] = {(char)a, (char)b, (char)c, (char)d};
                    look(four, 4);
                }
            }
        }
    bool good = !valid[0] && valid[2] == 1920 && valid[3] == 61440 && valid[4] == 1048576;
    report("utf8", n, good ? "" : format("accepts %zu, %zu, %zu sequences of 2, 3, 4 bytes, expected 1920, 61440, "
                                         "1048576", valid[2], valid[3], valid[4]));
}

void check_classes() {
    using enum CharClass;
    const std::pair<uint32_t, CharClass> known[] = {
        {'a', LETTER}, {0xAA, LETTER}, {0xB5, LETTER}, {0x2C6, LETTER}, {0x5D0, LETTER}, {0x4E00, LETTER},
        {0x323AF, LETTER},
        {'0', NUMBER}, {0xB2, NUMBER}, {0xBC, NUMBER}, {0x663, NUMBER}, {0x2160, NUMBER}, {0x1D7FF, NUMBER},
        {'\t', SPACE}, {0x85, SPACE}, {0xA0, SPACE}, {0x1680, SPACE}, {0x2028, SPACE}, {0x202F, SPACE}, {0x3000, SPACE},
        {0x1C, OTHER}, {0x300, OTHER}, {0x200B, OTHER}, {0x20AC, OTHER}, {0xFEFF, OTHER}, {0xE000, OTHER},
        {0x323B0, OTHER}, {0x1F600, OTHER}, {0x10FFFF, OTHER}};
    std::string wrong;
    for (auto [code, cls] : known) {
        const std::string s = utf8(code);
        if (char_at(s.data(), s.data() + s.size()).cls != cls)
            wrong = format("U+%04X is not of class %d", code, (int)cls);
    }
    size_t count[4] = {};
    for (CharClass cls : CLASS_OF) count[(int)cls]++;
    if (count[0] != 141028 || count[1] != 1911 || count[2] != 25)
        wrong = format("%zu letters, %zu numbers, %zu blanks are not Unicode 16's", count[0], count[1], count[2]);
    report("classes", std::size(known) + 3, wrong);
}

void check_split() {
    Random r{2};
    std::string wrong;
    size_t n = 0;
    for (; n < 30000 && wrong.empty(); n++) {
        const std::string text = random_text(r, 1 + r.below(20));
        std::vector<std::string> words;
        for (const char *p = text.data(), *end = p + text.size(); p < end; p += words.back().size())
            words.push_back(std::string(p, word_length(p, end)));
        if (words != slow_words(text)) wrong = hex(text) + " is split differently by the pattern";
    }
    report("split", n, wrong);
}

void check_merges(const Tokenizer& t, const Merges& merges) {
    Random r{3};
    Tokenizer::Scratch scratch;
    std::string wrong;
    size_t n = 0;
    for (; n < 4000 && wrong.empty(); n++) {
        std::string text = random_text(r, r.below(20));
        if (n % 4 == 0)
            for (size_t k = 1 + r.below(300); k > 0; k--) text += "abcthe"[r.below(2 + r.below(5))];
        Ids ids;
        t.encode(text, ids, scratch);
        std::vector<std::string> tokens;
        for (int id : ids) tokens.push_back(std::string(t.decode(id)));
        if (tokens != slow_encode(text, merges)) wrong = hex(text) + " is joined differently one merge at a time";
        if (decode(t, ids) != text) wrong = hex(text) + " does not come back";
    }
    report("merges", n, wrong);
}

// Every piece size and several thread counts give the tokens of the whole.
void check_pieces(const Tokenizer& t) {
    Random r{4};
    std::string wrong;
    size_t n = 0;
    for (size_t round = 0; round < 100 && wrong.empty(); round++) {
        const std::string text = random_text(r, r.below(60));
        const char* separators[] = {"", "\n", "  ", "the", "\x80"};
        const std::string split = separators[round % 5];
        const bool keep = split.find_first_not_of(" \n") == split.npos;
        Ids whole;
        for (size_t at = 0; at <= text.size();) {
            const size_t found = split.empty() ? text.npos : text.find(split, at);
            const size_t end = found == text.npos ? text.size() : found + (keep ? split.size() : 0);
            whole.push_back(t.eot());
            for (int id : t.encode(text.substr(at, end - at))) whole.push_back(id);
            at = found == text.npos ? text.size() + 1 : found + split.size();
        }
        for (size_t size = 1; size < text.size() + 2 && wrong.empty(); size += 1 + size / 8) {
            n++;
            shards::Source source(text, "text", split, "text");
            source.piece_bytes = size;
            source.validation_end = r.below(text.size() + 1);
            Ids ids;
            shards::encode_all(source, t, [&](const Ids& more, bool) {
                ids.insert(ids.end(), more.begin(), more.end());
            });
            if (ids != whole)
                wrong = format("%s in pieces of %zu bytes: ", hex(text).c_str(), size) + show(ids) + ", expected " +
                        show(whole);
        }
    }
    report("pieces", n, wrong);
    std::string text;                       // that pieces are short wherever they can be
    for (int i = 0; i < 3000; i++) text += i % 3 ? "\xE4\xB8\xAD\xE6\x96\x87" "12" : "\xE3\x80\x82";
    shards::Source source(text, "text", "", "");
    source.piece_bytes = 100;
    size_t longest = 0;
    for (shards::Piece piece; source.next(piece);) longest = std::max(longest, piece.text.size());
    report("piece_length", 1, longest < 120 ? "" : format("a piece of %zu bytes where 100 were asked for", longest));
}

void check_training() {
    Random r{5};
    std::string wrong;
    size_t n = 0;
    for (; n < 150 && wrong.empty(); n++) {
        std::string text;
        const size_t letters = 2 + r.below(4);
        for (size_t i = 0, size = 20 + r.below(400); i < size; i++) text += "ab c\xE4"[r.below(letters)];
        const size_t wanted = r.below(60);
        shards::Source source(text, "text", "", "");
        shards::Trainer trainer;
        Merges fast;
        std::unordered_map<std::string, int64_t> counts;
        shards::count_words(source, counts);
        for (auto [left, right] : trainer.train(counts, wanted))
            fast.push_back({trainer.tokens[left], trainer.tokens[right]});
        if (fast != slow_train(text, wanted))
            wrong = format("%zu merges of %s: ", wanted, hex(text).c_str()) + json_quote(merges_text(fast)) +
                    ", expected " + json_quote(merges_text(slow_train(text, wanted)));
    }
    report("training", n, wrong);
    // All pairs occur once: (space, c) comes before (a, b), as its bytes do; then (" c", d) before (a, b) again.
    shards::Source source("ab cd", "text", "", "");
    const std::string got = shards::train_tokenizer({source}, 257 + 3).merges_txt();
    const std::string expected = "#version: 0.2\n\xC4\xA0 c\n\xC4\xA0" "c d\na b\n";
    report("ties", 1, got == expected ? "" : json_quote(got) + ", expected " + json_quote(expected));
}

// What must die, with a line that holds the given words.
template <class F> void must_die(std::string& wrong, const std::string& what, int code, const std::string& words, F f) {
    try {
        f();
        wrong = what + " is accepted";
    } catch (const Error& e) {
        if (e.exit_code != code || e.line.find(words) == e.line.npos || e.line.find('\n') != e.line.npos)
            wrong = format("%s ends with exit %d and \"%s\"", what.c_str(), e.exit_code, e.line.c_str());
    }
}

void check_bad_merges() {
    const std::pair<const char*, const char*> cases[] = {
        {"#version: 0.2\na", "line 2"}, {"a b\nc\n", "line 2"}, {"a b\n\nc d\n", "line 2"}, {"\n", "line 1"},
        {"a  b\n", "line 1"}, {" a b\n", "line 1"}, {"a b \n", "line 1"}, {"a b c\n", "line 1"},
        {"a b\r\r\n", "line 1"}, {"a b\n\xEF\xBB\xBF" "c d\n", "line 2"}, {"a b\r\n\r\nc d\r\n", "line 2"},
        {"a b\na b\n", "new token"}, {"a b\nb c\na bc\nab c\n", "line 4"}, {"ab c\n", "made above"},
        {"#version\n#version\n", "line 2"}, {"a \xE2\x82\xAC\n", "line 1"}, {"a \xFF\n", "line 1"},
        {"a \xC5\x84\n", "line 1"},
        {"< |\n<| e\n<|e n\n", nullptr}};
    std::string wrong;
    for (auto& [text, words] : cases) {
        auto load = [text = text] { Tokenizer::from_merges(text, "merges.txt"); };
        if (words) must_die(wrong, json_quote(text), 1, words, load);
        else load();
    }
    const std::string name = "<|endoftext|>";
    std::string text;
    for (size_t i = 1; i < name.size(); i++) text += name.substr(0, i) + " " + name[i] + "\n";
    must_die(wrong, "a merge that makes <|endoftext|>", 1, "line 12", [&] { Tokenizer::from_merges(text, "m"); });
    must_die(wrong, "a file that is not there", 1, "/nowhere/m", [&] { Tokenizer::load("/nowhere/m"); });
    Random r{6};
    size_t n = std::size(cases) + 2;
    for (size_t i = 0; i < 3000; i++) {           // whatever the bytes are: a tokenizer or one line
        n++;
        std::string noise = random_text(r, r.below(6)) + " " + random_text(r, r.below(3)) + "\n";
        try {
            Tokenizer::from_merges(noise, "noise").encode(noise);
        } catch (const Error& e) {
            if (e.line.find('\n') != e.line.npos || e.line.find("line ") == e.line.npos) wrong = e.line;
        }
    }
    report("bad_merges", n, wrong);
}

void check_long_words(const Tokenizer& t) {
    const size_t letters = 1000000;
    Random r{7};
    std::string run(letters, 'a'), mixed;
    while (mixed.size() < letters) mixed += "abcthe"[r.below(6)];
    std::string wrong;
    for (const std::string& word : {run, mixed}) {
        const auto start = std::chrono::steady_clock::now();
        const Ids ids = t.encode(word);
        const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (decode(t, ids) != word) wrong = "a word of 1,000,000 letters does not come back";
        if (s > 20) wrong = format("a word of 1,000,000 letters takes %.1f s: is the join loop quadratic?", s);
    }
    report("long_words", 2, wrong);
}

void check_files(const Tokenizer& t) {
    std::string wrong;
    const Tokenizer again = Tokenizer::from_merges(t.merges_txt(), "merges.txt");
    if (again.merges_txt() != t.merges_txt() || again.vocab() != t.vocab()) wrong = "merges_txt() loads as another";
    const Json json = parse_json(t.vocab_json(), "vocab.json");
    if ((int)json.members.size() != t.vocab()) wrong = "vocab.json has another number of tokens";
    for (int i = 0; i < t.vocab() && wrong.empty(); i++) {
        const std::string name = i == t.eot() ? "<|endoftext|>" : GPT2_BYTES.printable(t.decode(i));
        if (!json[name] || json[name].number != i) wrong = format("vocab.json, token %d", i);
    }
    report("vocab_files", (size_t)t.vocab(), wrong);
}

std::string read_all(const std::string& path) { return std::string(Mapped(path).text()); }

// An empty one, for the files of a check.
std::string new_directory() {
    const std::string dir = "build/test_tokenizer_data";
    fs::remove_all(dir);
    fs::create_directories(dir);
    return dir;
}

// Shard files: how they are cut, named and numbered, and what else the verbs refuse.
void check_tool(const Tokenizer& t) {
    const std::string dir = new_directory(), prefix = dir + "/deep/er/s";
    std::string wrong;
    size_t n = 0;
    auto expect = [&](bool good, const char* what) {
        n++;
        if (!good) wrong = what;
    };
    auto shard = [](const Ids& ids) {
        int32_t header[256] = {20240520, 1, (int32_t)ids.size()};
        std::string s((char*)header, sizeof(header));
        for (int id : ids) s += {(char)id, (char)(id >> 8)};
        return s;
    };
    write_file(dir + "/in.txt", "the cat\n\nsat, that's all");
    write_file(dir + "/in.jsonl", "{\"text\": \"the cat\\n\\n\"}\n\n{\"id\": 1, \"text\": \"sat, that's all\"}\n");
    write_file(dir + "/m.txt", t.merges_txt());
    Ids all = {t.eot()};
    for (int id : t.encode("the cat\n\n")) all.push_back(id);
    const Ids first = all;
    all.push_back(t.eot());
    for (int id : t.encode("sat, that's all")) all.push_back(id);
    const std::vector<std::string> base = {"encode", "--tokenizer", dir + "/m.txt", "--out", prefix};
    auto run = [&](std::vector<std::string> more) {
        std::vector<std::string> words = base;
        words.insert(words.end(), more.begin(), more.end());
        shards::run(shards::parse_arguments(words));
    };
    const std::string text = dir + "/in.txt", lines = dir + "/in.jsonl";
    run({"--in", text, "--split", "\\n\\n", "--shard-tokens", "3"});
    expect(read_all(prefix + "_train_000001.bin") == shard({all[3], all[4], all[5]}), "the second shard");
    run({"--in", text, "--split=\\n\\n", "--val-tokens", "5"});
    expect(read_all(prefix + "_val.bin") == shard(Ids(all.begin(), all.begin() + 5)), "five validation tokens");
    expect(read_all(prefix + "_train.bin") == shard(Ids(all.begin() + 5, all.end())), "the tokens after them");
    for (const char* old : {"_train_000000.bin", "_train_000003.bin"})
        expect(!fs::exists(prefix + old), "the numbered shards of the earlier run are gone");
    run({"--in", lines, "--val-fraction", "0.1"});
    expect(read_all(prefix + "_val.bin") == shard(first), "JSON Lines: the first line is for validation");
    const Ids rest(all.begin() + (int)first.size(), all.end());
    expect(read_all(prefix + "_train.bin") == shard(rest), "the other line is for training");
    expect(read_all(dir + "/deep/er/merges.txt") == t.merges_txt(), "merges.txt lies beside the shards");
    write_file(dir + "/bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n");
    write_file(dir + "/cut.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b");
    write_file(dir + "/empty", "");
    const std::pair<std::vector<std::string>, const char*> bad[] = {
        {{"--in", dir + "/bad.jsonl"}, "line 2"},   {{"--in", dir + "/cut.jsonl"}, "line 2"},
        {{"--in", dir + "/empty"}, "empty"},        {{"--in", text, "--val-tokens", "99"}, "--val-tokens"},
        {{"--in", dir}, "regular file"},            {{"--in", dir + "/nothing"}, "nothing"},
        {{"--in", text, "--val-fraction", "1"}, "--val-fraction"}, {{"--in", lines, "--field", "id"}, "line 1"}};
    for (auto& [more, words] : bad) {
        n++;
        must_die(wrong, words, 1, words, [&, &more = more] { run(more); });
    }
    const std::pair<std::vector<std::string>, const char*> usage[] = {
        {{"--in", text, "--val-tokens", "3x"}, "not an integer"},
        {{"--in", text, "--val-tokens", "1.5"}, "not an integer"},
        {{"--in", text, "--val-tokens", ""}, "needs a value"},
        {{"--in", text, "--val-fraction", "1.0.1"}, "a number"},
        {{"--in", text, "--val-fraction", "2"}, "must lie in 0..1"},
        {{"--in", text, "--shard-tokens", "0"}, "must lie in 1.."},
        {{"--in", text, "--field", "a", "--field", "a"}, "twice"}, {{"--in", text, "--vocab", "300"}, "not an option"},
        {{"--in"}, "--in: needs a value"},                      {{}, "encode: --in is missing: the input"},
        {{"--in", text, lines}, "the option before each file"},
        {{"--in", text, "--split", "\\q"}, "after \\"},         {{"--in", lines, "--split", "a"}, "--split"},
        {{"--in", text, "--val-tokens", "1", "--val-fraction", "0.5"}, "not both"}};
    for (auto& [more, words] : usage) {
        n++;
        must_die(wrong, words, 2, words, [&, &more = more] { run(more); });
    }
    n += 2;
    must_die(wrong, "no verb", 2, "encode: --in is missing", [] { shards::parse_arguments({}); });
    must_die(wrong, "another verb", 2, "unknown verb", [] { shards::parse_arguments({"encode bpe"}); });
    for (const char* kept : {"_train.bin", "_val.bin"})
        expect(fs::exists(prefix + kept), "a failed run leaves the old shards");
    for (auto& entry : fs::directory_iterator(dir + "/deep/er"))
        expect(entry.path().extension() != ".part", "no unfinished file is left");
    const std::string pairs = dir + "/pairs.jsonl", out = dir + "/pairs.bin";
    write_file(pairs, "{\"prompt\": \"the\", \"chosen\": \" cat\", \"rejected\": \"t\"}\n");
    shards::run(shards::parse_arguments({"examples", "--in", pairs, "--tokenizer", dir + "/m.txt", "--out", out}));
    Ids ids = t.encode("the cat");
    const uint64_t offsets[4] = {0, t.encode("the").size(), ids.size(), ids.size() + 1};
    ids.push_back(t.encode("t")[0]);
    int32_t header[256] = {20261121, 1, 1, 3, 2, 0, (int32_t)ids.size()};
    const std::string head = std::string((char*)header, 1024) + std::string((char*)offsets, 32);
    expect(read_all(out) == head + shard(ids).substr(1024), "an example shard of one preference");
    write_file(pairs, "{\"prompt\": \"a\", \"response\": \"b\"}\n"
                      "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n");
    n++, must_die(wrong, "mixed examples", 1, "line 2", [&] {
        shards::run(shards::parse_arguments({"examples", "--in", pairs, "--tokenizer", "bytes", "--out", out}));
    });
    fs::remove_all(dir);
    report("shards_tool", n, wrong);
}

void check_without_files() {
    check_bytes();
    check_utf8();
    check_classes();
    check_split();
    Random r{8};
    std::string text = "the cat that sat there, that's the cat's hat: 1, 2, 12, 112. ";
    for (int i = 0; i < 40; i++) text += random_text(r, 10) + " the that " + std::string(r.below(20), 'a');
    const Merges merges = slow_train(text, 300);
    const Tokenizer t = Tokenizer::from_merges(merges_text(merges), "trained");
    check_merges(t, merges);
    check_pieces(t);
    check_training();
    check_bad_merges();
    check_long_words(t);
    check_files(t);
    check_tool(t);
}

// ---- published cases ------------------------------------------------------------------------------------------------
void check_cases(const std::string& merges, const std::string& path) {
    const Tokenizer t = Tokenizer::load(merges);
    const Mapped file(path);
    std::map<std::string, std::pair<size_t, std::string>> categories;      // cases, what is wrong
    size_t line_number = 0;
    for (std::string_view text = file.text(); !text.empty();) {
        const std::string line(text.substr(0, text.find('\n')));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        line_number++;
        const size_t tab = line.find('\t'), tab2 = tab == line.npos ? tab : line.find('\t', tab + 1);
        std::string bytes, digits = tab2 == line.npos ? "?" : line.substr(0, tab);
        if (digits == "-") digits = "";
        const bool good = digits.size() % 2 == 0 && digits.find_first_not_of("0123456789abcdefABCDEF") == digits.npos;
        const std::string listed = good ? line.substr(tab + 1, tab2 - tab - 1) : "?";
        if (listed.find_first_not_of("0123456789 ") != listed.npos)
            die("%s: line %zu: expected hex bytes, TAB, ids, TAB, category", path.c_str(), line_number);
        for (size_t i = 0; i < digits.size(); i += 2) bytes += (char)std::stoi(digits.substr(i, 2), nullptr, 16);
        Ids expected;
        for (size_t i = 0; i < listed.size();) {
            const size_t end = std::min(listed.find(' ', i), listed.size());
            if (end > i) expected.push_back((int)strtol(listed.substr(i, end - i).c_str(), nullptr, 10));
            i = end + 1;
        }
        auto& [cases, wrong] = categories[line.substr(tab2 + 1)];
        cases++;
        const Ids ids = t.encode(bytes);
        if (wrong.empty() && ids != expected)
            wrong = format("line %zu, %s: ", line_number, hex(bytes).c_str()) + show(ids) + ", expected " +
                    show(expected);
        if (wrong.empty() && decode(t, ids) != bytes) wrong = format("line %zu does not come back", line_number);
    }
    if (categories.empty()) die("%s: holds no cases", path.c_str());
    for (auto& [category, result] : categories) report(category, result.first, result.second);
}

void check_shakespeare(char** files) {
    const std::string dir = new_directory(), prefix = dir + "/s";
    shards::run(shards::parse_arguments({"encode", "--in", files[0], "--tokenizer", files[1], "--out", prefix,
                                         "--split", "\\n\\n", "--val-tokens", "32768"}));
    for (int i = 0; i < 2; i++) {
        const std::string made = prefix + (i ? "_val.bin" : "_train.bin");
        report(i ? "shakespeare_val" : "shakespeare_train", 1,
               read_all(made) == read_all(files[2 + i]) ? "" : made + " differs from " + files[2 + i]);
    }
    fs::remove_all(dir);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc == 1) check_without_files();
        else if (argc == 6 && !strcmp(argv[1], "--shakespeare")) check_shakespeare(argv + 2);
        else if (argc == 3) check_cases(argv[1], argv[2]);
        else die_usage("expected no arguments, MERGES CASES.tsv, or --shakespeare TEXT MERGES TRAIN VAL");
    } catch (const Error& e) {
        printf("FAIL tokenizer: %s\n", e.line.c_str());
        return e.exit_code;
    }
    return failed ? 1 : 0;
}
