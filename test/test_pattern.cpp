/* test/test_pattern.cpp [CASES] -- regular expressions and the tokens they leave, against Python: test/patterns.tsv, or the cases
   in the file named, - for standard input. test/patterns.py says how they are made and written. */
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
static std::string shown(const std::string& s) { return json_quote(s.substr(0, 200)); }

// ---- Python's answers ----
static std::vector<std::string> fields_of(std::string_view line) {
    std::vector<std::string> fields(1);
    for (size_t i = 0; i < line.size(); i++)
        if (line[i] == '\t') fields.emplace_back();
        else if (line[i] != '\\') fields.back() += line[i];
        else if (line[++i] == '\\') fields.back() += '\\';
        else fields.back() += (char)strtol(std::string(line.substr(i + 1, 2)).c_str(), nullptr, 16), i += 2;
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
            if (kind == 'P' || kind == 'R') g.reset(), p.emplace(pattern = fields[0]);
            if (kind == 'V' || kind == 'N') g.emplace(pattern, fields);
            if (kind == 'T') {
                size_t viable = 0;
                while (viable < fields[0].size() && state(viable + 1) != Pattern::DEAD) viable++;
                found.push_back(std::to_string(viable));
                for (size_t n = 0; n <= fields[0].size(); n++) if (p->accepts(state(n))) found.push_back(std::to_string(n));
                given.assign(fields.begin() + 1, fields.end());
            }
            if (kind == 'A') {
                int at = g->start();
                size_t i = 0;
                for (; fields[i] != ":"; i++) at = g->advance(at, std::stoi(fields[i]));
                given.assign(fields.begin() + i + 1, fields.end());
                const Guide::Allowed& allowed = g->allowed(at);
                for (size_t t = 0; t < 64 * allowed.bits.size(); t++) if (allowed[t]) found.push_back(std::to_string(t));
                if (allowed.any == found.empty() || g->must_end(at) != found.empty()) found.push_back("any, or must_end(), is wrong");
            }
        });
        const bool good = (kind == 'R' || kind == 'N' ? error.starts_with("2 pattern: ") : error.empty()) && found == given;
        asked[kind]++, wrong[kind] += !good;
        if (!good && wrong[kind] < 10)
            check(false, "pattern/Python: %s: %s: found %zu of %zu, error '%s'", shown(pattern).c_str(), printable(std::string(line)).c_str(), found.size(), given.size(), error.c_str());
    }
    for (auto [kind, what] : {std::pair{'P', "patterns taken"}, {'R', "patterns refused"}, {'T', "texts"}, {'V', "vocabularies"},
                              {'N', "vocabularies that make no match"}, {'A', "texts of tokens"}})
        check(asked[kind] > 0 && wrong[kind] == 0, "pattern/%s as Python has them: %d of %d", what, asked[kind] - wrong[kind], asked[kind]);
}

int main(int argc, char** argv) {
    cases(argc > 1 ? argv[1] : "test/patterns.tsv");
    return failed > 0;
}
