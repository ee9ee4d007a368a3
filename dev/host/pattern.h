/* dev/host/pattern.h -- regular expressions, and which tokens may come next for a text to match one.

   language   Python's re.fullmatch with re.ASCII, as far as an automaton can decide it: letters, . (any but \n), [a-z],
              [^a-z], \d \w \s \D \W \S (of ASCII), \n \r \t \f \v \a \xhh \uhhhh, \ before any sign, | * + ? {m} {m,}
              {,n} {m,n}, these lazy, too, for the same texts, ( ) and (?: ); ^ and $ at the ends, where they say
              nothing. A letter is a code point, that is, its bytes in UTF-8: no other bytes match anything.
   automaton  parts joined by edges that take a byte or none, a few for each letter of the pattern (Thompson 1968,
              "Regular expression search algorithm", doi:10.1145/363347.363387). A text's state is the set of parts that
              it may have led to (Rabin and Scott 1959, doi:10.1147/rd.32.0114), made when a text first comes there.
   tokens     those that may follow a state are found when first asked for, and kept (Willard and Louf 2023,
              arXiv:2307.09702).
   cost       a byte of a text: a look into a table. The tokens of a state: one for each beginning of tokens that may
              follow and each that is a byte too long, and a comparison for every token
   limits     SIZE parts, edges and letters, with all repetitions written out; groups in DEPTH others; `limit` bytes of
              states, for n parts have up to 2^n sets, and as many of tokens. Beyond them it ends in one line */
#pragma once
#include "tokenizer.h"
#include <array>
#include <unordered_map>

// Reads a pattern, and builds its parts on the way: what is repeated is read again for each time.
struct PatternParser {
    static constexpr int DEPTH = 100, SIZE = 1 << 18, END = 0, NO_BYTE = 256;
    struct Edge { int first, last, to; };                              // takes a byte of first..last, or NO_BYTE
    using Letters = std::vector<std::pair<uint32_t, uint32_t>>;        // code points: the first and last of ranges

    const std::string& where;                                          // the option, for messages
    const int exit_code;
    std::vector<std::vector<Edge>> edges = {};                         // of each part; END has none
    int size = 0;
    std::u32string s = {};
    size_t i = 0;

    // Returns the part where it begins. From every part some text leads to END.
    int parse(const std::string& text) {
        for (const char *p = text.data(), *end = p + text.size(); p < end;) {
            const int bytes = utf8_size(p, end);
            if (bytes == 0) fail(s.size(), format("found byte 0x%02x, expected UTF-8", (uint8_t)*p));
            s += *p & 0x7F >> (bytes > 1 ? bytes : 0);
            for (int k = 1; k < bytes; k++) s.back() = s.back() << 6 | (p[k] & 0x3F);
            p += bytes;
        }
        add();                               // END
        const int begin = add();
        join(either(begin, 0), END);
        if (i < s.size()) fail(i, "a ) that no ( opens");
        return begin;
    }

private:
    [[noreturn]] void fail(size_t at, const std::string& what) const {
        std::string rest;
        for (char32_t c : s.substr(at, 20)) append_utf8(rest, c);
        if (!rest.empty()) rest = ", '" + rest + "'";
        throw Error{exit_code, printable(where + format(": character %zu", at + 1) + rest + ": " + what)};
    }
    bool take(char32_t c) {
        const bool there = i < s.size() && s[i] == c;
        i += there;
        return there;
    }
    void count() {                           // what is built, and what is read: either may be long where it is repeated
        if (++size > SIZE) fail(i - 1, format("more than %d parts, with all repetitions; lower their numbers", SIZE));
    }
    int add() {
        count();
        edges.emplace_back();
        return (int)edges.size() - 1;
    }
    void join(int from, int to, int first = NO_BYTE, int last = NO_BYTE) {
        count();
        edges[from].push_back({first, last, to});
    }

    // What follows reads on from part `from`, which has no edges yet, and returns the part it leads to, which has none.
    int either(int from, int depth) {
        const int out = add();
        do {
            int at = add();
            join(from, at);
            if (depth == 0) take('^');
            while (i < s.size() && s[i] != '|' && s[i] != ')') {
                const bool last = i + 1 == s.size() || s[i + 1] == '|';
                if (depth == 0 && last && take('$')) break;
                at = repeated(at, depth);
            }
            join(at, out);
        } while (take('|'));
        return out;
    }
    int repeated(int from, int depth) {
        int least, most, at, last = from;
        const size_t begin = i, parts = edges.size();
        if (repetition(least, most)) fail(begin, "nothing to repeat");
        at = part(from, depth);
        if (!repetition(least, most)) return at;
        take('?');
        const size_t end = i;
        if (int n; repetition(n, n)) fail(end, "repeats a repetition, which needs (?: ) around it");
        if (most == 0) {
            edges.resize(parts);
            edges[from].clear();
        }
        const int out = add();
        if (least == 0) join(from, out);
        for (int k = 1; k < std::max(least, most); k++) {
            if (k >= least) join(at, out);
            i = begin;
            last = at;
            at = part(at, depth);
        }
        if (most < 0) join(at, last);
        if (most != 0) join(at, out);
        i = end;
        return out;
    }
    // Takes how often the part before it is repeated; most is -1 without an end. Braces without numbers are letters.
    bool repetition(int& least, int& most) {
        const size_t begin = i;
        auto number = [&] {
            int n = -1;
            while (i < s.size() && s[i] >= '0' && s[i] <= '9') {
                n = 10 * std::max(n, 0) + int(s[i++] - '0');
                if (n > SIZE) fail(begin, format("more than %d times", SIZE));
                count();
            }
            return n;
        };
        least = take('+');
        most = take('?') ? 1 : -1;
        if (i > begin || take('*')) return true;
        if (!take('{')) return false;
        least = most = number();
        if (take(',')) most = number();
        const bool braces = take('}') && i > begin + 2;
        if (!braces) i = begin;
        if (braces && most >= 0 && most < least) fail(begin, "the first number is above the second");
        least = std::max(least, 0);
        return braces;
    }
    int part(int from, int depth) {
        const size_t begin = i;
        if (take('(')) {
            if (depth == DEPTH) fail(begin, format("more than %d groups in one another", DEPTH));
            if (take('?') && !take(':')) fail(begin, "of groups with a ? only (?: ) can be used");
            const int to = either(from, depth + 1);
            if (!take(')')) fail(begin, "a ( that no ) closes");
            return to;
        }
        if (take('^') || take('$')) fail(begin, "^ and $ can stand at the ends alone; \\^ and \\$ are letters");
        const Letters letters = others(take('.') ? Letters{{'\n', '\n'}} : others(take('[') ? set(begin) : letter()));
        if (letters.empty()) fail(begin, "there is no such letter");
        return bytes(from, letters);
    }
    Letters letter() {                       // one, or those of \d and the like
        const size_t begin = i;
        count();
        const bool escaped = take('\\');
        if (i == s.size()) fail(begin, "a \\ with nothing behind it");
        const char32_t c = s[i++], small = c | 32;
        if (!escaped) return {{c, c}};
        const Letters of = small == 'd' ? Letters{{'0', '9'}} : small == 's' ? Letters{{'\t', '\r'}, {' ', ' '}}
                         : small == 'w' ? Letters{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}} : Letters{};
        if (!of.empty()) return c == small ? of : others(of);
        uint32_t code = c;
        if (c == 'x' || c == 'u') {
            code = 0;
            for (const size_t end = i + (c == 'x' ? 2 : 4); i < end; i++) {
                if (i >= s.size() || s[i] > 'f' || !isxdigit(s[i])) fail(begin, "expected hexadecimal digits");
                code = code * 16 + (s[i] <= '9' ? s[i] - '0' : (s[i] | 32) - 'a' + 10);
            }
        } else if (c < 0x80 && isalnum(c)) {
            const char *names = "nrtfva", *name = strchr(names, c);
            if (!name) fail(begin, "cannot be used");
            code = "\n\r\t\f\v\a"[name - names];
        }
        return {{code, code}};
    }
    Letters set(size_t begin) {              // behind its [
        Letters all;
        const bool rest = take('^');
        for (bool first = true; first || !take(']'); first = false) {
            const size_t at = i;
            if (i == s.size()) fail(begin, "a [ that no ] closes");
            Letters of = letter();
            if (i + 1 < s.size() && s[i] == '-' && s[i + 1] != ']') {
                i++;
                const Letters to = letter();
                auto one = [](const Letters& l) { return l.size() == 1 && l[0].first == l[0].second; };
                if (!one(of) || !one(to) || of[0] > to[0]) fail(at, "not a range of letters");
                of[0].second = to[0].second;
            }
            all.insert(all.end(), of.begin(), of.end());
        }
        return rest ? others(all) : all;
    }
    // All letters but these, in order. Surrogates are none, so that others(others(x)) are the letters of x.
    static Letters others(Letters letters) {
        letters.push_back({0xD800, 0xDFFF});
        std::sort(letters.begin(), letters.end());
        Letters rest;
        uint32_t next = 0;
        for (auto [first, last] : letters) {
            if (first > next) rest.push_back({next, first - 1});
            next = std::max(next, last + 1);
        }
        if (next <= 0x10FFFF) rest.push_back({next, 0x10FFFF});
        return rest;
    }
    // Ranges are cut until one holds all letters with bytes between those of its first and its last: then it is an edge
    // for each byte. Those behind the first byte are shared.
    int bytes(int from, Letters ranges) {
        const int out = add();
        std::map<std::array<int, 3>, int> shared;
        while (!ranges.empty()) {
            const auto [lo, hi] = ranges.back();
            uint32_t cut = hi;               // the last letter of the first piece
            for (uint32_t longest : {0xFFFF, 0x7FF, 0x7F}) if (lo <= longest && longest < hi) cut = longest;
            for (uint32_t low = 0x3F; cut == hi && hi > 0x7F && (lo | low) != (hi | low); low = low << 6 | 0x3F)
                if (lo & low) cut = lo | low;
                else if (~hi & low) cut = (hi & ~low) - 1;
            ranges.back().first = cut + 1;
            if (cut < hi) {
                ranges.push_back({lo, cut});
                continue;
            }
            ranges.pop_back();
            std::string first, last;
            append_utf8(first, lo);
            append_utf8(last, hi);
            int to = out;
            for (size_t k = first.size() - 1; k > 0; k--) {
                const int least = (uint8_t)first[k], most = (uint8_t)last[k];
                int& at = shared[{least, most, to}];
                if (at == 0) {
                    at = add();
                    join(at, to, least, most);
                }
                to = at;
            }
            join(from, to, (uint8_t)first[0], (uint8_t)last[0]);
        }
        return out;
    }
};

// The automaton. A text is in a state, first start(), and each byte leads to another, DEAD being that of texts that no
// match begins with. States are numbers, which hold until tidy(). One thread at a time.
struct Pattern {
    static constexpr int DEAD = 0;
    using Edge = PatternParser::Edge;
    const std::string where;
    const int exit_code;
    size_t limit = (size_t)1 << 28;

    explicit Pattern(const std::string& regex, const std::string& where = "pattern", int exit_code = 2)
        : where(where), exit_code(exit_code) {
        PatternParser parser{this->where, exit_code};
        begin = parser.parse(regex);
        edges = std::move(parser.edges);
        marks.resize(edges.size());
        std::array<bool, 2 * PatternParser::NO_BYTE> differs{};        // a byte from the one before it
        for (auto& of : edges) for (const Edge& e : of) differs[e.first] = differs[e.last + 1] = true;
        for (int b = 1; b < 256; b++) kind[b] = kind[b - 1] + differs[b];
        kinds = kind[255] + 1;
        restart();
    }
    Pattern(const Pattern&) = delete;        // sets points into numbers

    int start() const { return first; }
    bool accepts(int state) const { return !set(state).empty() && set(state)[0] == PatternParser::END; }
    int step(int state, uint8_t byte) {
        const size_t at = (size_t)state * kinds + kind[byte];
        if (next[at] != UNKNOWN) return next[at];
        round++;
        found.clear();
        for (int p : set(state)) for (const Edge& e : edges[p]) if (e.first <= byte && byte <= e.last) reach(e.to);
        const int to = number(found);        // this may move next
        next[at] = to;
        return to;
    }
    int step(int state, std::string_view text) {
        for (uint8_t byte : text) state = step(state, byte);
        return state;
    }
    // When states take half of the limit, forgets all but those held, which have other numbers then.
    bool tidy(std::vector<int>& held) {
        if (bytes < limit / 2) return false;
        std::vector<std::vector<int>> kept;
        for (int state : held) kept.push_back(set(state));
        restart();
        for (size_t i = 0; i < held.size(); i++) held[i] = number(kept[i]);
        return true;
    }
    int parts() const { return edges.size(); }
    bool is_in_sets(int p) const {           // END, and what takes bytes
        auto takes = [](const Edge& e) { return e.first != PatternParser::NO_BYTE; };
        return p == PatternParser::END || std::any_of(edges[p].begin(), edges[p].end(), takes);
    }
    const std::vector<int>& set(int state) const { return *sets[state]; }
    int number(std::vector<int> set) {       // of the state that is this set
        std::sort(set.begin(), set.end());
        const auto [at, fresh] = numbers.emplace(std::move(set), sets.size());
        if (!fresh) return at->second;
        sets.push_back(&at->first);
        next.insert(next.end(), kinds, UNKNOWN);
        bytes += sizeof(*at) + sizeof(int) * (at->first.size() + kinds);
        if (bytes > limit)
            fail(format("takes more than %zu MB of states; it has too many ways to match a text", limit >> 20));
        return at->second;
    }
    [[noreturn]] void fail(const std::string& what) const { throw Error{exit_code, printable(where + ": " + what)}; }

private:
    static constexpr int UNKNOWN = -1;
    std::vector<std::vector<Edge>> edges;                              // of each part
    std::array<int, 256> kind{};                                       // bytes of a kind are on the same edges
    std::map<std::vector<int>, int> numbers;
    std::vector<const std::vector<int>*> sets;                         // by state
    std::vector<int> next, found, open;                                // next: by state and kind
    std::vector<size_t> marks;                                         // the round in which a part was reached
    int begin, first, kinds;
    size_t bytes, round = 0;

    void restart() {
        numbers.clear();
        sets.clear();
        next.clear();
        bytes = 0;
        number({});                          // DEAD
        round++;
        found.clear();
        reach(begin);
        first = number(found);
    }
    // Adds to `found` the parts of sets to which p leads without a byte.
    void reach(int p) {
        open = {p};
        while (!open.empty()) {
            p = open.back();
            open.pop_back();
            if (marks[p] == round) continue;
            marks[p] = round;
            if (is_in_sets(p)) found.push_back(p);
            for (const Edge& e : edges[p]) if (e.first == PatternParser::NO_BYTE) open.push_back(e.to);
        }
    }
};

// The tokens that may follow a text so that others can complete a match: who takes only these always can, whatever
// bytes the vocabulary lacks. A text's state is a number, as a Pattern's is.
struct Guide {
    struct Allowed {
        std::vector<uint64_t> bits;          // by token
        bool any = false;
        bool operator[](int token) const { return bits[token / 64] >> token % 64 & 1; }
    };
    Pattern pattern;

    // tokens: the bytes of each; one without any is never allowed
    Guide(const std::string& regex, std::vector<std::string> tokens, const std::string& where = "pattern", int code = 2)
        : pattern(regex, where, code), tokens(std::move(tokens)), states(1) {
        sort();
        find_completable();
        if (!completable(start())) pattern.fail("no tokens of this vocabulary make a text that matches");
    }

    int start() const { return pattern.start(); }
    int advance(int state, int token) { return pattern.step(state, tokens[token]); }
    bool may_end(int state) const { return pattern.accepts(state); }
    bool must_end(int state) { return may_end(state) && !allowed(state).any; }
    const Allowed& allowed(int state) {      // holds until the next call
        if (auto at = known.find(state); at != known.end()) return at->second;
        Allowed a = {std::vector<uint64_t>((tokens.size() + 63) / 64)};
        if (known.size() * a.bits.size() * sizeof(uint64_t) > pattern.limit) known.clear();
        walk(state, [&](size_t token) {
            a.bits[token / 64] |= (uint64_t)1 << token % 64;
            a.any = true;
            return true;
        });
        return known[state] = std::move(a);
    }
    // To be called between tokens, with the states of all texts: so the limit holds, however many there come to be.
    void tidy(std::vector<int>& held) { if (pattern.tidy(held)) known.clear(); }
    // The same, and then those logits are `never` whose tokens may not follow in state held[i]; `end` is the end of
    // text.
    void rule_out(float* logits, std::vector<int>& held, size_t i, int end, float never) {
        tidy(held);
        const Allowed& a = allowed(held[i]);
        for (int v = 0; v < (int)tokens.size(); v++) if (v == end ? !may_end(held[i]) : !a[v]) logits[v] = never;
    }

private:
    struct Token {
        std::string bytes;
        size_t token, shared;                // shared: how many of its bytes the one before it begins with
    };
    const std::vector<std::string> tokens;
    std::vector<Token> sorted;               // by their bytes
    std::vector<int> states;                 // along one of them
    std::vector<bool> can_end;               // by part: tokens lead from it to the end; empty: all do
    std::unordered_map<int, Allowed> known;

    void sort() {
        for (size_t t = 0; t < tokens.size(); t++) if (!tokens[t].empty()) sorted.push_back({tokens[t], t, 0});
        std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.bytes < b.bytes; });
        std::string_view before;
        for (auto& [bytes, token, shared] : sorted) {
            shared = std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first - bytes.begin();
            before = bytes;
            states.resize(std::max(states.size(), bytes.size() + 1));
        }
    }
    bool completable(int state) const {
        const std::vector<int>& set = pattern.set(state);
        return can_end.empty() ? !set.empty() : std::any_of(set.begin(), set.end(), [&](int p) { return can_end[p]; });
    }
    // f(token) for all tokens that may follow, while it says true. Of those that begin with what cannot, one is tried.
    template <typename F> void walk(int state, F f) {
        states[0] = state;
        for (size_t k = 0; k < sorted.size();) {
            const auto& [bytes, token, shared] = sorted[k++];
            size_t n = shared;
            for (; n < bytes.size() && states[n] != Pattern::DEAD; n++)
                states[n + 1] = pattern.step(states[n], bytes[n]);
            if (states[n] == Pattern::DEAD) while (k < sorted.size() && sorted[k].shared >= n) k++;
            else if (completable(states[n]) && !f(token)) return;
        }
    }
    // A set can be completed if one of its parts can; END can, and so can any part from which a token leads to such a
    // set. Parts are numbered about as texts come by: one pass from the end finds most, and another mostly no more.
    void find_completable() {
        std::array<bool, 256> alone{};       // a token
        for (auto& t : sorted) alone[(uint8_t)t.bytes[0]] |= t.bytes.size() == 1;
        if (std::find(alone.begin(), alone.end(), false) == alone.end()) return;
        can_end.resize(pattern.parts());
        can_end[PatternParser::END] = true;
        bool more;
        do {
            more = false;
            for (int p = pattern.parts() - 1; p > PatternParser::END; p--) {
                if (can_end[p] || !pattern.is_in_sets(p)) continue;
                std::vector<int> none;
                pattern.tidy(none);
                walk(pattern.number({p}), [&](size_t) {
                    more = can_end[p] = true;
                    return false;
                });
            }
        } while (more);
    }
};

// The bytes of each id below V; none of what is no text.
inline std::vector<std::string> vocabulary_of(const Tokenizer& tokenizer, int V) {
    std::vector<std::string> tokens(V);
    for (int id = 0; id < std::min(V, tokenizer.vocab()); id++)
        if (!tokenizer.is_added(id)) tokens[id] = tokenizer.decode(id);
    return tokens;
}
