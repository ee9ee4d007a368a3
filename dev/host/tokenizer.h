/* dev/host/tokenizer.h -- GPT-2's byte-level BPE, from a merges file and the ids that a vocab.json beside it gives.
   Text is cut into words, and within a word neighbouring tokens are joined, the merge of lowest rank first. Tokens
   0..255 are the bytes in GPT-2's order, 256 + rank is a merge; these are their ids, too, where no file says otherwise,
   and the last is <|endoftext|>, which only tools put between documents: inside a text those letters, and those of any
   other added token, are ordinary. Any string of bytes has an encoding and comes back from it unchanged; where a
   vocab.json leaves bytes out, one with these has none. To try another splitting pattern, edit word_length() and no
   more; `make test` then says which published cases differ. */
#pragma once
#include "kinds.h"
#include "template.h"
#include <climits>
#include <unordered_map>

enum class CharClass : uint8_t { LETTER, NUMBER, SPACE, OTHER };

// \p{L}, \p{N} and \s of Unicode 16.0. For every range in ascending order: its gap from the range before it, and
// 3 * (last - first) + class. A number is digits in base 20, written as '#' + 72 + digit, then one digit in base 72,
// '#' + digit. dev/data/unicode_table.py prints and checks it.
inline const char UNICODE_CLASSES[] = R"(
,15%2?*l&)l&-%=%,#*'$#&$##$*$e$l5$~&'D1/*#$#l\/$&%,$#)#$)$#$\$nA$pY+qb$lJ%#)lSjl)',PlY8?'&$o)$#2&*&#?#)%#3#$l2@nS.#1?#
l;,&'#(b'#,#&#:l#*A(h$24lV]m2&#5#*>'?$P'8%&%b$5$#&,&#3#0&$)'?#&%3%#+2'&%b$5$&$&$&B,$#*?%)3;$)$b$5$&$/&#5#2&'?,#.8%&%b$
5$&$/&#A&$)'?$##3.#$2&)$,&&$#$&&&&)&D9#8H58$)$e$P&#=)%#%&'?+6$#'8$)$e$>$/&#B&$&'?$&4;$)$lS%#3#()$6#)'Z$2(V&h$;$#%5B?4l
h$&/5,?J&$#$/$h$#$>$&,#%/$#,?%,C#B]/8$lD>/lNlY7##?)2',&#&&*)'G/#$?)lJ$#(#%lY$x_$,%5$#$,%lS$,%l;$,%5$#$,%M$m;$,%mY1]&P3
nJ%2&lp\%S#%#l&(n)&*#8*V0Y1V1G$)2m,F#'#&?)?9?)nS*/%l>$#(mb-l5J?#l2%/.l\'l&)BHe,m/N?)?0#l8le48&?Ll20&#?#l\=lD??&)#?#lD%
A(lY%)L,$2$&&#(rhcvJ%2%lJ%2%8$#$#$#$l5%m/$5$#&)$5&,%2'G()$5&C@((%R%3$##%3(##?)Gl@#'#%>$#&/)#$#$#$,$A%,(/'#$m*#&#0u)mEl
)csYl3zWtG),&&,$%lJ$#(#%m8*#3e,5$5$5$5$5$5$5$5l+#qC%'&#$<<*/%*#&'nJ))$nV$,(lY$nb&--l8SPC?A9$NC?JNoCxyPcmqn/flb%v/&P#?#
&7le3l5%mb#?J;%o5%mY%&$#$88P$)$,$e03-m,1m&??;2&#$&$?#l,-e<l/*le?##?)/$>#?#/$lS:)$8'?)e&#&m&$#&&%/%#$#;)%A*)/2%2%2,5$5$
lY$J)oY0?)lnpD/e'm#p|?z2%o>I5//(#$>$G$/$#$&$&$oDDz)5mP%m2KDlO/$pM6?*l&)l&.nS&2%2%2%)FD$l&$Y$&$M%JEp)/l`/m<4'n?l/&m#3l*
'l8#-,\#$#8#$(lJ-l2%lD'8$0MqJ%?)lD'lD'lP+m,/A$M$5$&$A$M$5$&&m,/we,b-8;2$lV$;h2%#$l\$&&#%e%9#e%6#l5+<SY$&(0#b#3'l&im8''
#&#Q%lc##2,$)$l/-<:l/#'$l/#*C8$l,)03m2-b%9#Y(9#V:6l+n#Zm)0m)*3#lD/?)?#l,,en%l6$lV)&3)^l/#?##+b.->VQ_#67e/m/=l3$&%#0l_C
l#*?,lD2?'#%#+lA&#/lh1,.?##$#'].V$l#6&b5$#$,$M$>*le4?.8%&%b$5$&$/&#5#//A>$#%#$lJ$#<#$#Om/5,(?()Alh7&$#+?m9leL,Glh7#.?I
lY0#*?)]?l)8E'5mLl\lOmP#Z/8%#%8$&$h2#$#1?i8%lM3#$#?#-lP*#8#.lb6#5n#mZl;2?);$lG4#2l0(l2lK5$&$lJ8#,?)2$&$l81#*?o9Y2#$G$l
>??l1#2`Nl}>lAoN4s,l{Oo#2moP42<sqA(lo5oz$l25?lo)lnS*l5$?)n5$?)l25lh3,/?$6$_(Yq#l_&?mYmP#flDn)(#eGc&$#?wzP+mvJL>qo*,$5$
&$w)2#@)%#1,+{Dlw'oA(G&;*>m})?lkI]/]lGl$lbnG$me$&%#%&%,$D$#$5$mS$,%8$5$l,$,$/$#&5$y,%l#$l#$l5$l#$l5$l#$l5$l#$l5$l#$8%m
'locl5)2nPmJm%l_-5%?'#oDl25l\'?qIl,'?mil2%##?qX5$,$&$M$s/%<Sm\*#'?ujmB$*$-l'l`$NmU,$l)$&$#%#$>$,$#$#)#'#$#$#$)$&$#%#$#
$#$#$#$&$#%,$5$,$,$#$>$S()$/$Ss'Hl}V?y9os~hCsx&)t2%wk&1zv;2lpbly5lmJlkeupY(syP
)";

inline const std::vector<CharClass> CLASS_OF = [] {      // by code point; beyond the table's end all are OTHER
    std::vector<CharClass> table;
    const char* p = UNICODE_CLASSES;
    auto number = [&p] {
        for (size_t n = 0;;) {
            while (*p == '\n') p++;
            size_t digit = *p++ - '#';
            if (digit < 72) return n * 72 + digit;
            n = n * 20 + digit - 72;
        }
    };
    while (p[1] != '\0') {                               // a newline ends the literal
        size_t gap = number(), length_class = number();
        table.insert(table.end(), gap, CharClass::OTHER);
        table.insert(table.end(), length_class / 3 + 1, (CharClass)(length_class % 3));
    }
    return table;
}();

struct Char {
    CharClass cls;
    int size;               // bytes
};

// The character at p < end. A byte which starts none is by itself one of class OTHER: that keeps the encoding lossless.
inline Char char_at(const char* p, const char* end) {
    uint32_t code = (uint8_t)p[0];
    if (code < 0x80) return {CLASS_OF[code], 1};
    const int size = utf8_size(p, end);
    if (size == 0) return {CharClass::OTHER, 1};
    code &= 0x7F >> size;
    for (int i = 1; i < size; i++) code = code << 6 | (p[i] & 0x3F);
    return {code < CLASS_OF.size() ? CLASS_OF[code] : CharClass::OTHER, size};
}

// Bytes of the first match at p < end of GPT-2's pattern
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// A match does not depend on anything before it, so a text may be cut, and its pieces encoded apart, wherever a match
// ends that would end there with nothing following: safe_cut() in dev/data/shards.cpp finds such places.
inline size_t word_length(const char* p, const char* end) {
    if (*p == '\'') {
        std::string_view text(p, end - p);
        for (const char* suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
            if (text.starts_with(suffix)) return strlen(suffix);
    }
    const char* q = p;
    Char c = char_at(q, end);
    if (*p == ' ' && p + 1 < end) {
        Char next = char_at(p + 1, end);
        if (next.cls != CharClass::SPACE) {
            c = next;
            q++;
        }
    }
    const CharClass cls = c.cls;
    const char* last;       // the run's last character
    do {
        last = q;
        q += c.size;
    } while (q < end && (c = char_at(q, end)).cls == cls);
    if (cls == CharClass::SPACE && q < end && last > p) q = last;      // \s+(?!\S): the last goes to what follows
    return q - p;
}

// GPT-2's order of the bytes: first the 188 that print in Latin-1, then the rest. Files show a byte of the first kind
// as the character of that code, the others as U+0100, U+0101, ...: so a token never holds a blank.
struct ByteOrder {
    uint8_t byte[256];      // of an id
    int id[256];            // of a byte
    ByteOrder() {
        int n = 0;
        for (bool printing : {true, false})
            for (int b = 0; b < 256; b++)
                if (((b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD)) == printing) byte[n++] = (uint8_t)b;
        for (int i = 0; i < 256; i++) id[byte[i]] = i;
    }
    std::string printable(std::string_view token) const {
        std::string s;
        for (uint8_t b : token) append_utf8(s, id[b] < 188 ? b : 256 + id[b] - 188);
        return s;
    }
};
inline const ByteOrder GPT2_BYTES;

struct Tokenizer {
    // What encode() keeps between texts. One for each thread, and never shared by two tokenizers.
    struct Scratch {
        using Known = std::pair<std::string, std::vector<int>>;        // a word, its tokens
        std::vector<Known> cache = std::vector<Known>(1 << 14);        // by hash of the word; the latest one stays
        std::vector<uint64_t> heap;
        std::vector<int> id, pair;
        std::vector<size_t> next, prev;
    };

    // A merges file, with the ids beside it; a directory that holds one, or its tokenizer.json; or `bytes`.
    static Tokenizer load(const std::string& path) {
        if (path == "bytes") return from_merges("", path);
        if (fs::path(path).filename() == "tokenizer.json" && exists(path)) return load(directory_of(path));
        if (exists(path, true)) {
            const std::string found = merges_in(path);
            if (found.empty()) die("%s: holds no merges.txt or vocab.bpe", path.c_str());
            return load(found);
        }
        Mapped file(path);
        if (file.size == 0) die("%s: empty, expected a GPT-2 merges file; for no merges say `bytes`", path.c_str());
        const Kind* kind = kind_of(file.text());
        if (kind && !(kind->text && kind->mark.empty())) refuse(path, *kind, "a merges file");
        return from_merges(file.text(), path, true);
    }
    // The merges file in a directory, "" if there is none.
    static std::string merges_in(const std::string& dir) {
        for (const char* name : {"/merges.txt", "/vocab.bpe"}) if (exists(dir + name)) return dir + name;
        const std::string path = dir + "/tokenizer.json";
        if (!exists(path)) return "";
        if (const Json type = read_json(path)["model"]["type"]; type && type.string != "BPE")
            die("%s: model: found %s, expected \"BPE\", as GPT-2 has", path.c_str(), json_quote(type.string).c_str());
        const std::string step = usable("python3 -c \"import tokenizers; tokenizers.Tokenizer.from_file('FILE')"
                                        ".model.save('BESIDE/.')\"", path);
        die("%s: its merges are needed in a file of their own: %s", path.c_str(), step.c_str());
    }

    static Tokenizer from_merges(std::string_view text, const std::string& where, bool ids_beside = false) {
        Tokenizer t;
        std::unordered_map<std::string, int> ids;                      // by the printable form, as in the file
        auto find = [&ids](std::string_view token) {
            auto at = ids.find(std::string(token));
            return at == ids.end() ? -1 : at->second;
        };
        for (int i = 0; i < 256; i++) {
            t.tokens.push_back(std::string(1, (char)GPT2_BYTES.byte[i]));
            ids[GPT2_BYTES.printable(t.tokens[i])] = i;
        }
        ids[END_OF_TEXT] = -1;                                         // taken
        text = without_mark(text);
        while (text.ends_with("\n\n") || text.ends_with("\n\r\n")) text.remove_suffix(text.ends_with("\r\n") ? 2 : 1);
        const size_t lines = std::min<size_t>(std::count(text.begin(), text.end(), '\n') + 1, MAX_VOCAB);
        while ((size_t)1 << (64 - t.table_shift) < 2 * lines) t.table_shift--;
        t.table.resize((size_t)1 << (64 - t.table_shift));
        for (size_t line_number = 1; !text.empty(); line_number++) {
            std::string_view line = text.substr(0, text.find('\n'));
            text.remove_prefix(std::min(text.size(), line.size() + 1));
            if (line.ends_with('\r')) line.remove_suffix(1);           // which no token holds
            if (line_number == 1 && line.starts_with("#version")) continue;
            const size_t blank = line.find(' ');
            const int left = find(line.substr(0, blank));
            const int right = blank == line.npos ? -1 : find(line.substr(blank + 1));
            const std::string joined = std::string(line.substr(0, blank)).append(line, blank + 1);
            const char* expected = left < 0 || right < 0    ? "two tokens, bytes or made above, with a blank between"
                                 : ids.count(joined)        ? "two that make a new token"
                                 : t.tokens.size() >= MAX_VOCAB ? "fewer merges than 2^23" : nullptr;
            if (expected)
                die("%s: line %zu: found %s, expected %s; is this a GPT-2 merges file?", where.c_str(), line_number,
                    json_quote(line.substr(0, 60)).c_str(), expected);
            const int id = (int)t.tokens.size();
            ids[joined] = id;
            t.table[t.slot(key(left, right))] = {key(left, right), id};
            t.merges.push_back({left, right});
            t.tokens.push_back(t.tokens[left] + t.tokens[right]);
        }
        t.take_ids(ids_beside ? where : "");
        return t;
    }

    std::string chat_template;                                         // of a turn in a chat; "" is none

    int vocab() const { return (int)texts.size(); }                    // above every id; some below may be no token
    int eot() const { return end_id; }
    bool is_added(int id) const { return added.count(id) > 0; }        // end of text, too: no bytes of a text
    const std::map<int, std::string>& added_tokens() const { return added; }
    // The bytes of a token; of an added one its name; of what is no token nothing.
    std::string_view decode(int id) const { return id < vocab() ? std::string_view(texts[id]) : ""; }
    std::vector<int> hidden(int V) const {                             // ids below V that no text can show
        std::vector<int> ids;
        for (int id = 0; id < V; id++) if (decode(id).empty()) ids.push_back(id);
        return ids;
    }
    // Whether texts have the same tokens; more added ones make no other tokenizer.
    std::string identity() const {
        auto sum = [](auto& v) { return checksum({(const char*)v.data(), v.size() * sizeof v[0]}); };
        const uint64_t all = mix64(sum(merges) ^ mix64(sum(id_of) + end_id));
        return format("%zu tokens, checksum %s", id_of.size(), hex(all).c_str());
    }
    bool same(const Tokenizer& t) const { return merges == t.merges && id_of == t.id_of && end_id == t.end_id; }

    std::vector<int> encode(std::string_view text) const {
        std::vector<int> out;
        Scratch scratch;
        encode(text, out, scratch);
        return out;
    }

    // Appends the tokens of one document, or of a piece of one that was cut between two words.
    void encode(std::string_view text, std::vector<int>& out, Scratch& scratch) const {
        for (const char *p = text.data(), *end = p + text.size(); p < end;) {
            size_t length = word_length(p, end);
            encode_word({p, length}, out, scratch);
            p += length;
        }
    }
    // Contexts and responses in turn, without the last one, which is to be answered or is the answer.
    void encode_prompt(const std::vector<std::string>& parts, std::vector<int>& out, Scratch& scratch) const {
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            encode(parts[i], out, scratch);
            if (i % 2) out.push_back(eot());
        }
    }

    // The files that Hugging Face's GPT2Tokenizer reads, and the template. All added tokens are special there, so that
    // it can take them as the letters they are; and none but ours begins a text or is unknown, or it would add one.
    void save(const std::string& dir) const {
        write_file(dir + "/merges.txt", merges_txt());
        write_file(dir + "/vocab.json", vocab_json());
        const bool plain = added.size() == 1 && added.at(end_id) == END_OF_TEXT;
        if (added.size() > 1 || !in_vocab.count(end_id)) write_file(dir + "/added_tokens.json", added_json());
        std::string special;
        for (auto& [id, name] : added)
            if (id != end_id) special += (special.empty() ? "" : ", ") + json_quote(name);
        std::string config =
            "{\"tokenizer_class\": \"GPT2Tokenizer\", \"additional_special_tokens\": [" + special + "]";
        for (const char* role : {"bos", "eos", "unk"})
            config += format(", \"%s_token\": ", role) + json_quote(added.at(end_id));
        if (!plain) write_file(dir + "/tokenizer_config.json", config + "}\n");
        if (!chat_template.empty()) write_file(dir + "/template.txt", escaped(chat_template) + "\n");
    }
    std::string merges_txt() const {
        std::string s = "#version: 0.2\n";
        for (size_t i = 0; i < merges.size(); i++) s += merge_line(i) + "\n";
        return s;
    }
    std::string vocab_json() const {
        std::map<int, std::string> names(in_vocab.begin(), in_vocab.end());
        for (size_t i = 0; i < tokens.size(); i++)
            if (id_of[i] >= 0) names[id_of[i]] = GPT2_BYTES.printable(tokens[i]);
        return names_json(names);
    }
    std::string added_json() const {                                   // end of text, too, where vocab.json has it not
        std::map<int, std::string> names = added;
        if (in_vocab.count(end_id)) names.erase(end_id);
        return names_json(names);
    }

private:
    static constexpr const char* END_OF_TEXT = "<|endoftext|>";
    static constexpr int NO_MERGE = INT_MAX, POSITION_BITS = 40, MAX_VOCAB = 1 << 23;

    std::string merge_line(size_t i) const {
        return GPT2_BYTES.printable(tokens[merges[i].first]) + " " + GPT2_BYTES.printable(tokens[merges[i].second]);
    }
    static std::string names_json(const std::map<int, std::string>& names) {
        std::string s;
        for (auto& [id, name] : names) s += (s.empty() ? "{" : ", ") + json_quote(name) + ": " + std::to_string(id);
        return s + "}\n";
    }

    // Gives every token its id: its number, or what stands in vocab.json (OpenAI: encoder.json; NAME-vocab.json for
    // NAME-merges.txt) beside the merges file. Tokens which the merges do not make must be added ones: in brackets, or
    // listed in the other files where Hugging Face's tools keep them. One of these ends a text.
    void take_ids(const std::string& path) {
        const std::string dir = directory_of(path) + "/", file = fs::path(path).filename().string();
        const std::string before = file.ends_with("merges.txt") ? file.substr(0, file.size() - 10) : "";
        if (const std::string chat = dir + "template.txt"; !path.empty() && before.empty() && exists(chat))
            chat_template = read_template(chat);
        auto wrong = [&](const std::string& name, const std::string& token, const std::string& why) {
            die("%s%s: token %s: %s", dir.c_str(), name.c_str(), json_quote(token.substr(0, 60)).c_str(), why.c_str());
        };
        auto read = [&](const std::string& name) {
            return !path.empty() && exists(dir + name) ? read_json(dir + name) : Json();
        };
        auto id_at = [&](const Json& id, const std::string& token, const std::string& name) {
            const double n = id.number;
            if (id.kind != Json::NUMBER || !(n >= 0 && n < MAX_VOCAB) || n != std::floor(n))
                wrong(name, token, format("expected an id below %d", MAX_VOCAB));
            return (int)n;
        };
        const std::string vocab_name = before + (exists(dir + before + "vocab.json") ? "vocab.json" : "encoder.json");
        const Json vocab = read(vocab_name);
        vocab_path = dir + vocab_name;

        std::map<std::string, int> listed;                             // added tokens; -1: the id is not told here
        std::string end, end_told;                                     // the end of text, and the file that tells it
        auto ends = [&](const std::string& token, const std::string& name) {
            if (end.empty()) {
                end = token;
                end_told = name;
            }
            if (!token.empty() && token != end)
                wrong(name, token, "ends a text, but " + json_quote(end.substr(0, 60)) + " does by " + end_told);
        };
        const Json whole = before.empty() ? read("tokenizer.json") : Json();
        auto list = [&](const Json& token, const Json& id, const std::string& name) {
            const std::string& text = token.kind == Json::STRING ? token.string : token["content"].string;
            if (text.empty()) return text;
            int &known = listed.emplace(text, -1).first->second, now = id ? id_at(id, text, name) : known;
            if (known >= 0 && now != known)
                wrong(name, text, format("found id %d, but %d in another file there", now, known));
            known = now;
            return text;
        };
        auto string = [](const std::string& s) {
            Json j;
            j.kind = Json::STRING;
            j.string = s;
            return j;
        };
        if (before.empty()) {
            for (auto& [token, id] : read("added_tokens.json").members) list(string(token), id, "added_tokens.json");
            for (auto& token : whole["added_tokens"].items) list(token, token["id"], "tokenizer.json");
            for (const std::string name : {"tokenizer_config.json", "special_tokens_map.json"})
                for (const Json json = read(name); auto& [role, token] : json.members) {
                    for (auto& [id, one] : token.members)
                        if (role == "added_tokens_decoder") list(one, parse_json(id, dir + name), name);
                    for (auto& one : token.items) if (role == "additional_special_tokens") list(one, Json(), name);
                    if (role == "add_prefix_space" && token.number == 1)
                        die("%s%s: add_prefix_space: found true, expected false: a text is taken as it is; with a "
                            "blank before each, Hugging Face's tokenizers make other tokens", dir.c_str(),
                            name.c_str());
                    if (!role.ends_with("_token")) continue;
                    const std::string text = list(token, Json(), name);
                    if (role == "eos_token") ends(text, name);
                }
        }

        std::map<int, std::string> names;
        auto give = [&](int id, const std::string& token) {
            auto [at, fresh] = names.emplace(id, token);
            const std::string& other = at->second;
            if (!fresh && other != token)
                wrong(vocab_name, token, format("has id %d, as has %s", id, json_quote(other.substr(0, 60)).c_str()));
        };
        id_of.resize(tokens.size());
        for (size_t i = 0; i < tokens.size(); i++) {
            const std::string token = GPT2_BYTES.printable(tokens[i]);
            const Json& id = vocab[token];
            if (vocab && !id && i >= 256)
                wrong(vocab_name, token, "missing, but " + file + " makes it; are these of one tokenizer?");
            id_of[i] = !vocab ? (int)i : id ? id_at(id, token, vocab_name) : -1;
            if (id_of[i] >= 0) give(id_of[i], token);
        }
        if (names.empty()) die("%s%s: holds no token", dir.c_str(), vocab_name.c_str());
        for (auto& [token, id] : vocab.members) {
            const int number = id_at(id, token, vocab_name);
            if (auto at = names.find(number); at != names.end() && at->second == token) continue;
            const bool angled = token.starts_with('<') && token.ends_with('>');
            if (!angled && !(token.starts_with('[') && token.ends_with(']')) && !listed.count(token))
                wrong(vocab_name, token, file + " does not make it, and no file there lists it as an added token");
            list(string(token), id, vocab_name);
            in_vocab[number] = token;
        }
        for (auto& [token, id] : listed) {
            if (id < 0 || (names.count(id) && names[id] == token)) continue;
            give(id, token);
            added[id] = token;
        }

        // A model's config.json may have kept the id of another tokenizer, which is then that of no added token.
        const Json model_end = before.empty() ? read("config.json")["eos_token_id"] : Json();
        for (auto& [id, token] : added)
            if (model_end.kind == Json::NUMBER && model_end.number == id) ends(token, "config.json");
        end_id = -1;
        for (auto& [id, token] : added) if (token == (end.empty() ? END_OF_TEXT : end)) end_id = id;
        if (end_id < 0 && !end.empty() && end != END_OF_TEXT)
            wrong(end_told, end, "ends a text, but has no id in " + vocab_name + " or added_tokens.json");
        if (end_id < 0 && end.empty() && vocab && !added.empty()) {
            std::string guess = "NAME";
            for (auto& [id, token] : added)
                for (const char* name : {"end", "END", "eos", "EOS", "eot", "EOT", "</s>"})
                    if (token.find(name) != token.npos) guess = token.substr(0, 60);
            die("%s%s: which token ends a text? none is %s; name it in tokenizer_config.json: {\"eos_token\": %s}%s",
                dir.c_str(), vocab_name.c_str(), END_OF_TEXT, json_quote(guess).c_str(),
                guess == "NAME" ? "" : ", if that is it");
        }
        if (whole) check_settings(whole, dir + "tokenizer.json", file);
        if (end_id < 0) {                                              // as Hugging Face's tokenizers add it
            end_id = vocab ? names.rbegin()->first + 1 : (int)tokens.size();
            give(end_id, END_OF_TEXT);
            if (added.empty() || end_id < added.begin()->first) in_vocab[end_id] = END_OF_TEXT;
            added[end_id] = END_OF_TEXT;
        }
        texts.resize(names.rbegin()->first + 1);
        for (auto& [id, token] : added) texts[id] = token;
        for (size_t i = 0; i < tokens.size(); i++) if (id_of[i] >= 0) texts[id_of[i]] = tokens[i];
    }

    // A tokenizer.json beside the merges may ask for more than these: what makes other tokens of a text is refused.
    void check_settings(const Json& json, const std::string& path, const std::string& file) const {
        using Text = const std::string&;
        auto expect = [&](bool good, Text member, Text found, Text expected) {
            if (!good)
                die("%s: %s: found %s, expected %s: Hugging Face's tokenizers make other tokens of texts; encode with "
                    "these, or move this file away, if %s alone is meant", path.c_str(), member.c_str(),
                    found.substr(0, 80).c_str(), expected.substr(0, 80).c_str(), file.c_str());
        };
        auto type = [](const Json& j) { return !j ? "null" : j["type"] ? json_quote(j["type"].string) : "no type"; };
        const Json &steps = json["pre_tokenizer"]["pretokenizers"], &model = json["model"], &merging = model["merges"],
                   &pre = steps.items.size() == 1 ? steps.items[0] : json["pre_tokenizer"];
        expect(!json["normalizer"], "normalizer", type(json["normalizer"]), "null");
        expect(pre["type"].string == "ByteLevel", "pre_tokenizer", type(pre), "\"ByteLevel\" alone");
        expect(pre["add_prefix_space"].number == 0, "add_prefix_space of the pre_tokenizer", "true", "false");
        expect(!pre["use_regex"] || pre["use_regex"].number == 1, "use_regex of the pre_tokenizer", "false", "true");
        expect(!model["type"] || model["type"].string == "BPE", "model", type(model), "\"BPE\"");
        for (const std::string name : {"dropout", "byte_fallback", "ignore_merges", "continuing_subword_prefix",
                                       "end_of_word_suffix"})
            expect(model[name].number == 0 && model[name].string.empty(), name + " of the model", "one", "none");
        for (size_t i = 0; i < std::max(merges.size(), merging.items.size()); i++) {
            const Json& pair = i < merging.items.size() ? merging.items[i] : Json();
            const std::string ours = i < merges.size() ? merge_line(i) : "none",
                theirs = pair.items.size() == 2 ? pair.items[0].string + " " + pair.items[1].string : pair.string;
            expect(ours == theirs, "merges of the model", json_quote(theirs), json_quote(ours) + ", as in " + file);
        }
        for (size_t i = 0; i < tokens.size(); i++) {
            const Json& id = model["vocab"][GPT2_BYTES.printable(tokens[i])];
            expect(id ? id.number == id_of[i] : id_of[i] < 0, "vocab of the model", "another id of " +
                   json_quote(GPT2_BYTES.printable(tokens[i])), std::to_string(id_of[i]));
        }
        for (auto& token : json["added_tokens"].items)
            expect(token["special"].number == 1, "added_tokens", json_quote(token["content"].string) + " for texts",
                   "\"special\": true");
    }

    struct Merge {
        uint64_t pair = 0;                                             // its key(); 0: an empty slot
        int id = NO_MERGE;
    };

    std::vector<std::string> tokens;                                   // the bytes of every token
    std::vector<int> id_of;                                            // its id; -1: a byte that vocab.json leaves out
    std::vector<std::string> texts;                                    // by id: its bytes, or an added token's name
    std::map<int, std::string> added, in_vocab;                        // names, by id; in_vocab: those in vocab.json
    std::string vocab_path;                                            // where that was
    int end_id = 0;
    std::vector<std::pair<int, int>> merges;                           // by rank
    std::vector<Merge> table;                                          // pair -> id, open addressing, half empty
    int table_shift = 63;                                              // 64 - log2 of its size

    size_t slot(uint64_t pair) const {                                 // where the pair is, or would be
        size_t i = pair * 0x9E3779B97F4A7C15 >> table_shift;
        while (table[i].pair && table[i].pair != pair) i = (i + 1) & (table.size() - 1);
        return i;
    }
    static uint64_t key(int left, int right) { return ((uint64_t)left << 32 | (uint32_t)right) + 1; }
    int merged(int left, int right) const { return table[slot(key(left, right))].id; }

    // Joins the pair of lowest rank, the leftmost of equals, until none is left. The tokens form a linked list over the
    // word's bytes, the pairs that could be joined wait in a heap: at most n - 1 joins, each O(log n). A heap entry is
    // id of the result << 40 | position of the left token; it is out of date unless pair[position] still is that id.
    void encode_word(std::string_view word, std::vector<int>& out, Scratch& s) const {
        auto& [known, known_ids] = s.cache[std::hash<std::string_view>()(word) % s.cache.size()];
        if (known == word) {
            out.insert(out.end(), known_ids.begin(), known_ids.end());
            return;
        }
        const size_t n = word.size(), first = out.size();
        s.id.resize(n);
        s.pair.resize(n);
        s.next.resize(n);
        s.prev.resize(n);
        s.heap.clear();
        auto consider = [&](size_t i) {                                // the pair that starts at position i
            s.pair[i] = s.next[i] < n ? merged(s.id[i], s.id[s.next[i]]) : NO_MERGE;
            if (s.pair[i] != NO_MERGE) s.heap.push_back((uint64_t)s.pair[i] << POSITION_BITS | i);
            return s.pair[i] != NO_MERGE;
        };
        const std::greater<uint64_t> smallest_first;
        for (size_t i = 0; i < n; i++) {
            s.id[i] = GPT2_BYTES.id[(uint8_t)word[i]];
            s.next[i] = i + 1;
            s.prev[i] = i - 1;
        }
        for (size_t i = 0; i < n; i++) consider(i);
        std::make_heap(s.heap.begin(), s.heap.end(), smallest_first);
        while (!s.heap.empty()) {
            const uint64_t best = s.heap.front();
            std::pop_heap(s.heap.begin(), s.heap.end(), smallest_first);
            s.heap.pop_back();
            const int id = (int)(best >> POSITION_BITS);
            const size_t i = best & (((uint64_t)1 << POSITION_BITS) - 1), gone = s.next[i];
            if (s.pair[i] != id) continue;
            s.id[i] = id;
            s.pair[gone] = NO_MERGE;
            s.next[i] = s.next[gone];
            if (s.next[i] < n) s.prev[s.next[i]] = i;
            if (consider(i)) std::push_heap(s.heap.begin(), s.heap.end(), smallest_first);
            if (i > 0 && consider(s.prev[i])) std::push_heap(s.heap.begin(), s.heap.end(), smallest_first);
        }
        for (size_t i = 0; i < n; i = s.next[i]) {
            out.push_back(id_of[s.id[i]]);
            if (out.back() < 0)
                die("%s: has no token of byte 0x%02x, which is in the text; train a tokenizer with all bytes",
                    vocab_path.c_str(), (uint8_t)word[i]);
        }
        if (n > 64) return;
        known = word;
        known_ids.assign(out.begin() + first, out.end());
    }
};

// The tokenizer of --tokenizer, or that beside the model and the data, or none. All that there are must be the same.
inline std::unique_ptr<Tokenizer> find_tokenizer(const std::string& option,
                                                 const std::vector<std::string>& directories) {
    if (!option.empty()) return std::make_unique<Tokenizer>(Tokenizer::load(option));
    std::unique_ptr<Tokenizer> found;
    std::string where, seen = "\n";
    for (const std::string& dir : directories) {
        const std::string path = seen.find("\n" + dir + "\n") == seen.npos ? Tokenizer::merges_in(dir) : "";
        seen += dir + "\n";
        if (path.empty()) continue;
        auto there = std::make_unique<Tokenizer>(Tokenizer::load(path));
        if (found && !there->same(*found))
            die("%s: the tokenizer there is not that of %s; encode the text with the model's, or say which is right "
                "with --tokenizer", dir.c_str(), where.c_str());
        if (!found) {
            found = std::move(there);
            where = dir;
        } else if (found->chat_template.empty()) {
            found->chat_template = there->chat_template;
        } else if (!there->chat_template.empty() && there->chat_template != found->chat_template) {
            die("%s: the template of chats there is not that of %s; say which is right with --tokenizer", dir.c_str(),
                where.c_str());
        }
    }
    return found;
}

// The token between documents; without a tokenizer GPT-2's own vocabulary is known by its size, others have none (-1).
inline int end_of_text(const Tokenizer* tokenizer, int vocab) {
    return tokenizer ? tokenizer->eot() : vocab == 50257 ? vocab - 1 : -1;
}

// Text for readers that insist on UTF-8: every byte that belongs to no character becomes U+FFFD.
inline std::string valid_utf8(const std::string& s) {
    std::string out;
    for (const char *p = s.data(), *end = p + s.size(); p < end;) {
        int size = char_at(p, end).size;
        out += size == 1 && (*p & 0x80) ? "\xEF\xBF\xBD" : std::string(p, size);
        p += size;
    }
    return out;
}

// The token ids, below V, that are written in a text; false if it says anything else.
inline bool read_ids(const std::string& text, int V, std::vector<int>& ids) {
    for (const char* s = text.c_str(); *s;) {
        char* after;
        const long id = strtol(s, &after, 10);
        if (after == s || id < 0 || id >= V || (*after && *after != ' ')) return false;
        ids.push_back(id);
        s = after + strspn(after, " ");
    }
    return true;
}
