/* test/test_pattern.cpp [CASES] -- regular expressions and the tokens they leave, against Python: test/patterns.tsv, or
   the cases in the file named, - for standard input. test/patterns.py says how they are made and written. */
#include "../dev/host/pattern.h"
#include "check.h"
#include <climits>
#include <optional>

template <typename F> static std::string error_of(F f) {               // what f() dies of, after its exit code
    try {
        f();
    } catch (const Error& e) { return format("%d ", e.exit_code) + e.line; }
    return "";
}
static std::string readable(const std::string& s) { return json_quote(s.substr(0, 200)); }

// Draws a text of random tokens and returns how many it took; -1 where none may follow though it is no match.
static int drawn(Guide& g, uint64_t seed, int most, std::string* text = nullptr,
                 const std::vector<std::string>& tokens = {}) {
    Rng rng(seed, 1);
    std::vector<int> at = {g.start()};
    for (int n = 0; n < most; n++) {
        if (g.must_end(at[0]) || (g.may_end(at[0]) && rng.below(8) == 0)) return n;
        const Guide::Allowed& allowed = g.allowed(at[0]);
        std::vector<int> ids;
        for (size_t t = 0; t < 64 * allowed.bits.size(); t++) if (allowed[t]) ids.push_back(t);
        if (ids.empty()) return -1;
        const int token = ids[rng.below(ids.size())];
        if (text) *text += tokens[token];
        at[0] = g.advance(at[0], token);
        g.tidy(at);
    }
    return most;
}

// ---- Python's answers ----
static std::vector<std::string> fields_of(std::string_view line) {
    std::vector<std::string> fields(1);
    for (size_t i = 0; i < line.size(); i++) {
        if (line[i] == '\t') {
            fields.emplace_back();
        } else if (line[i] != '\\') {
            fields.back() += line[i];
        } else if (line[i + 1] == '\\') {
            fields.back() += '\\';
            i++;
        } else {
            fields.back() += (char)strtol(std::string(line.substr(i + 2, 2)).c_str(), nullptr, 16);
            i += 3;
        }
    }
    return fields;
}
static void cases(const std::string& path) {
    const Input input(path);
    std::optional<Pattern> p;
    std::optional<Guide> g;
    std::string pattern;
    std::map<char, int> asked, wrong;
    for (std::string_view rest = input.text(); !rest.empty();) {
        const std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(rest.size(), line.size() + 1));
        std::vector<std::string> fields = fields_of(line), given, found;
        const char kind = line[0];
        fields.erase(fields.begin());
        auto state = [&](size_t n) { return p->step(p->start(), fields[0].substr(0, n)); };
        const std::string error = error_of([&] {
            if (kind == 'P' || kind == 'R') {
                pattern = fields[0];
                g.reset();
                p.emplace(pattern);
            }
            if (kind == 'V' || kind == 'N') g.emplace(pattern, fields);
            if (kind == 'V') for (int seed = 0; seed < 5; seed++) if (drawn(*g, seed, 30) < 0) found.push_back("stuck");
            if (kind == 'T' && p) {
                size_t viable = 0;
                while (viable < fields[0].size() && state(viable + 1) != Pattern::DEAD) viable++;
                found.push_back(std::to_string(viable));
                for (size_t n = 0; n <= fields[0].size(); n++) if (p->accepts(state(n)))
                    found.push_back(std::to_string(n));
                given.assign(fields.begin() + 1, fields.end());
            }
            if (kind == 'A' && g) {
                int at = g->start();
                size_t i = 0;
                for (; fields[i] != ":"; i++) at = g->advance(at, std::stoi(fields[i]));
                given.assign(fields.begin() + i + 1, fields.end());
                const Guide::Allowed& allowed = g->allowed(at);
                for (size_t t = 0; t < 64 * allowed.bits.size(); t++) if (allowed[t])
                    found.push_back(std::to_string(t));
                if (allowed.any == found.empty() || g->must_end(at) != found.empty())
                    found.push_back("any, or must_end(), is wrong");
            }
        });
        const bool refused = kind == 'R' || kind == 'N';
        const bool good = (refused ? error.starts_with("2 pattern: ") : error.empty()) && found == given;
        asked[kind]++;
        wrong[kind] += !good;
        if (!good && wrong[kind] < 10)
            check(false, "pattern/Python: %s: %s: found %zu of %zu, error '%s'", readable(pattern).c_str(),
                  printable(std::string(line)).c_str(), found.size(), given.size(), error.c_str());
    }
    for (auto [kind, what] : {std::pair{'P', "patterns taken"}, {'R', "patterns refused"}, {'T', "texts"},
                              {'V', "vocabularies"}, {'N', "vocabularies that make no match"},
                              {'A', "texts of tokens"}})
        check(asked[kind] > 0 && wrong[kind] == 0, "pattern/%s as Python has them: %d of %d", what,
              asked[kind] - wrong[kind], asked[kind]);
}

// ---- vocabularies with all bytes: these alone, and as a BPE has them ----
static std::vector<std::string> bytes() {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; b++) tokens.push_back(std::string(1, (char)b));
    return tokens;
}
static std::vector<std::string> with_words() {
    const std::string text = "\"name\": \"Zo\xc3\xab\", 2024-05-17 yes no maybe "
                             "\xe2\x82\xac\xf0\x9f\x98\x80 aab ba {\"a\\n\"}.\nthe cat sat";
    std::vector<std::string> tokens = bytes();
    Rng rng(1);
    for (int k = 0; k < 1500; k++) tokens.push_back(text.substr(rng.below(text.size()), rng.below(9)));
    return tokens;
}
static const char* const PATTERNS[] = {
    "\\d{4}-\\d{2}-\\d{2}", "yes|no|maybe", ".*", "[a-z]+", "[^\"]*\"", "(?:\xe2\x82\xac|[\xc3\xa4-\xc3\xbc]){2,5}.",
    "\"(?:[^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\/bfnrt])*\"", "\\{\"name\": \"[A-Z][a-z]+\", \"age\": \\d{1,3}\\}",
    "(\\w+ ){2,4}\\w+\\.", "(a|b)*a(a|b){9}", "\\W{3}", "(?:.|\\n){,40}", "", "((a*)*)*", "-?\\d+(\\.\\d*)?",
    "[\\u0800-\\uffff]+"};

static void guided() {
    for (auto& [name, tokens] : {std::pair{"bytes", bytes()}, {"words", with_words()}}) {
        int texts = 0, ended = 0, masks = 0, wrong = 0;
        for (const char* regex : PATTERNS) {
            Guide g(regex, tokens);
            Pattern p(regex);
            for (int seed = 0; seed < 20; seed++) {
                std::string text;
                texts++;
                const int n = drawn(g, seed, 100000, &text, tokens);
                ended += n >= 0 && n < 100000 && p.accepts(p.step(p.start(), text));
                // what may follow where it ended, and half way, token by token
                for (size_t length : {text.size() / 2, text.size()}) {
                    const Guide::Allowed& allowed = g.allowed(g.pattern.step(g.start(), text.substr(0, length)));
                    const int at = p.step(p.start(), text.substr(0, length));
                    masks++;
                    for (size_t t = 0; t < tokens.size(); t++)
                        wrong += allowed[t] != (!tokens[t].empty() && p.step(at, tokens[t]) != Pattern::DEAD);
                }
            }
        }
        check(ended == texts, "pattern/%s: texts of random tokens that end in a match: %d of %d", name, ended, texts);
        check(wrong == 0, "pattern/%s: tokens that may follow, one by one: %d of %d masks of %zu wrong", name, wrong,
              masks, tokens.size());
    }
}

// ---- limits: a pattern with more states than there is memory for ----
static void limits() {
    const std::string many = "((a|b)*a(a|b){40}c?)*";         // whether c may follow depends on the letter 41 before it
    Guide g(many, bytes());
    g.pattern.limit = 1 << 20;
    int at = g.start(), steps = 0;
    Rng rng(1);
    const std::string error = error_of([&] {
        for (; steps < 1000000; steps++) at = g.advance(at, 'a' + rng.below(2));
    });
    check(error == "2 pattern: takes more than 1 MB of states; it has too many ways to match a text" && steps > 1000,
          "pattern/limits/states: '%s' after %d", error.c_str(), steps);

    Guide small(many, bytes()), large(many, bytes());
    small.pattern.limit = 1 << 20;
    std::vector<int> held = {small.start(), small.start()}, kept = {large.start(), large.start()};
    int wrong = 0, forgot = 0;
    for (int n = 0; n < 30000; n++) {
        for (int k = 0; k < 2; k++) {
            const int token = 'a' + rng.below(2);
            held[k] = small.advance(held[k], token);
            kept[k] = large.advance(kept[k], token);
            wrong += small.allowed(held[k]).bits != large.allowed(kept[k]).bits ||
                     small.may_end(held[k]) != large.may_end(kept[k]);
        }
        const std::vector<int> before = held;
        small.tidy(held);
        forgot += held != before;
    }
    check(wrong == 0 && forgot > 5, "pattern/limits/states that were forgotten come back: %d wrong, forgot %d times",
          wrong, forgot);
}

static void refused() {
    const std::string deep(101, '('), digits(100000, '0'), members(100000, 'b');
    const struct { std::string regex, line; } rows[] = {
        {"ab)", "character 3, ')': a ) that no ( opens"},
        {"\xc3\xa4(a", "character 2, '(a': a ( that no ) closes"},
        {"a[b", "character 2, '[b': a [ that no ] closes"},
        {"a\\", "character 2, '\\': a \\ with nothing behind it"},
        {"a|*", "character 3, '*': nothing to repeat"},
        {"a+*b", "character 3, '*b': repeats a repetition, which needs (?: ) around it"},
        {"a{2}{3}", "character 5, '{3}': repeats a repetition, which needs (?: ) around it"},
        {"a{3,2}", "character 2, '{3,2}': the first number is above the second"},
        {"a{262145}", "character 2, '{262145}': more than 262144 times"},
        {"a{99999999999999999999}", "character 2, '{9999999999999999999': more than 262144 times"},
        {"(?=a)b", "character 1, '(?=a)b': of groups with a ? only (?: ) can be used"},
        {"(?P<n>a)", "character 1, '(?P<n>a)': of groups with a ? only (?: ) can be used"},
        {"a^b", "character 2, '^b': ^ and $ can stand at the ends alone; \\^ and \\$ are letters"},
        {"(a$)", "character 3, '$)': ^ and $ can stand at the ends alone; \\^ and \\$ are letters"},
        {"(a$|b)", "character 3, '$|b)': ^ and $ can stand at the ends alone; \\^ and \\$ are letters"},
        {"(^a)", "character 2, '^a)': ^ and $ can stand at the ends alone; \\^ and \\$ are letters"},
        {"a\\b", "character 2, '\\b': cannot be used"},
        {"(a)\\1", "character 4, '\\1': cannot be used"},
        {"[a-\\d]", "character 2, 'a-\\d]': not a range of letters"},
        {"[b-a]", "character 2, 'b-a]': not a range of letters"},
        {"\\x4", "character 1, '\\x4': expected hexadecimal digits"},
        {"\\u00g0", "character 1, '\\u00g0': expected hexadecimal digits"},
        {"a[^\\s\\S]", "character 2, '[^\\s\\S]': there is no such letter"},
        {"\\ud800", "character 1, '\\ud800': there is no such letter"},
        {"a\xc3\xa4\xff" "b", "character 3: found byte 0xff, expected UTF-8"},
        {deep, "character 101, '(': more than 100 groups in one another"},
        {"((a{1000}){1000}){1000}",
         "character 3, 'a{1000}){1000}){1000': more than 262144 parts, with all repetitions; lower their numbers"},
        {"((){1000}){1000}", ""}, {"[" + members + "]{100000}", ""}, {"(a{" + digits + "1}){100000}", ""}};
    for (auto& [regex, line] : rows) {
        const std::string got = error_of([&, regex = regex] { Pattern p(regex, "--pattern"); });
        const bool good = line.empty() ? got.find("more than 262144 parts") != got.npos : got == "2 --pattern: " + line;
        check(good, "pattern/refused/%s%s", (line.empty() ? regex.substr(0, 20) : line).c_str(),
              (good ? "" : ": " + got).c_str());
    }
    const std::string none = error_of([] { Guide g("a+b", {"a", "ab c", ""}, "--pattern", 1); });
    check(none == "1 --pattern: no tokens of this vocabulary make a text that matches",
          "pattern/refused/by a vocabulary: '%s'", none.c_str());
    // Any bytes are a pattern or end in one line.
    Rng rng(1);
    int taken = 0, lines = 0;
    const std::string signs = "()[]{}|*+?^$.\\-,0189abdxu\xc3\xa4\xf0\n";
    for (int k = 0; k < 20000; k++) {
        std::string regex;
        for (size_t n = rng.below(20); n > 0; n--)
            regex += rng.below(9) ? signs[rng.below(signs.size())] : (char)rng.below(256);
        const std::string error = error_of([&] { Pattern p(regex); p.step(p.start(), regex); });
        taken += error.empty();
        lines += error.starts_with("2 pattern: character ") && error.find('\n') == error.npos;
    }
    check(taken > 100 && taken + lines == 20000, "pattern/random bytes: %d taken, %d refused", taken, lines);
}

int main(int argc, char** argv) {
    cases(argc > 1 ? argv[1] : "test/patterns.tsv");
    if (argc == 1)
        for (auto section : {guided, limits, refused})
            if (const std::string error = error_of(section); !error.empty()) check(false, "pattern: %s", error.c_str());
    return failed > 0;
}
