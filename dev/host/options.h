/* dev/host/options.h -- a command line as a table of options says it: parsed, explained by --help, written as a command
   that can be given again, and brought back when a run is resumed. It knows options by their rows alone. */
#pragma once
#include "files.h"
#include <set>
#include <variant>

using text = std::string;
using integer = long long;
using number = double;
using flag = bool;
using text_list = std::vector<text>;         // may be given several times; a run, which is resumed, has none

inline std::string show(const text& v) { return v; }
inline std::string show(const text_list& v) {
    std::string s;
    for (const text& each : v) s += (s.empty() ? "" : " ") + each;
    return s;
}
inline std::string show(flag v) { return v ? "1" : "0"; }
inline std::string show(integer v) { return format("%lld", v); }

inline std::string dashed(std::string name) {
    std::replace(name.begin(), name.end(), '_', '-');
    return "--" + name;
}

inline void read_value(text& out, const char* s, const char* allowed) {
    const std::string list = std::string("|") + allowed + "|";
    if (*allowed && (strchr(s, '|') || list.find("|" + std::string(s) + "|") == list.npos))
        die_usage("must be one of %s", allowed);
    out = s;
}
inline void read_value(text_list& out, const char* s, const char* allowed) {
    read_value(out.emplace_back(), s, allowed);
}
inline void read_value(flag& out, const char* s, const char*) { out = strcmp(s, "0") != 0; }
template <typename T> void read_value(T& out, const char* s, const char* allowed) {
    constexpr bool whole = std::is_same_v<T, integer>;
    char* end;
    errno = 0;
    if constexpr (whole) out = strtoll(s, &end, 10);
    else out = strtod(s, &end);
    const bool plain = strspn(s, "+-.0123456789eE") == strlen(s);            // no blanks, nan, inf or hexadecimal
    if (end == s || *end || !plain) die_usage(whole ? "not an integer" : "not a number");
    const char* dots = strstr(allowed, "..");
    if ((whole && errno) || (dots && (out < strtod(allowed, nullptr) || out > strtod(dots + 2, nullptr))))
        die_usage("must lie in %s", allowed);
}

// One row of a table.
struct Option {
    const char* name;                        // with underscores where a dash is typed
    std::variant<text*, integer*, number*, flag*, text_list*> value;
    const char* allowed;                     // a|b|c, or lo..hi; "" is anything
    const char* marks;                       // letters of its verbs, and what is said of it below
    const char* help;                        // what its default stands for, in [...] at the end; else that is shown

    /* R   may differ when a run is resumed     D   names data, which may then lie elsewhere
       E   may be empty     P   a path, whose ~ is one's home     !   has to be given
       F   a value that another program wrote and this one does not know is none
       L   of reinforcement learning alone      A   of adapters alone     W   eval: for --answers alone
       T   needs a tokenizer                    Z   needs one that has an end of text
       1   options with the same digit exclude each other */
    bool is(char mark) const { return strchr(marks, mark); }
    bool excludes(const Option& other) const {
        auto shared = [&](char m) { return isdigit(m) && other.is(m); };
        return &other != this && std::any_of(marks, marks + strlen(marks), shared);
    }
    bool is_flag() const { return std::holds_alternative<flag*>(value); }
    bool is_list() const { return std::holds_alternative<text_list*>(value); }
    std::string typed() const { return dashed(name); }
    std::string show() const {
        return std::visit([](auto* v) { return ::show(*v); }, value);
    }
    void set(const std::string& s, const char* within) const {
        try {
            std::visit([&](auto* v) { read_value(*v, s.c_str(), within); }, value);
        } catch (const Error& e) { die_usage("%s %s: %s", typed().c_str(), s.c_str(), e.line.c_str()); }
    }
    bool is_given() const {                  // a default that is not allowed says "not given"
        if (is_flag()) return show() == "1";
        try {
            set(show(), allowed);
            return !show().empty();
        } catch (const Error&) { return false; }
    }
};
using Table = std::vector<Option>;

inline std::string value_of(const Table& options, const std::string& name) {
    const auto row = std::find_if(options.begin(), options.end(), [&](const Option& o) { return name == o.name; });
    return row == options.end() ? "" : row->show();
}

struct Verb {
    char letter;
    const char *name, *help = "";
};
struct Program {
    const char* name;
    std::vector<Verb> verbs;                 // the first, where none is given; a program without has one, ""
    const char *title, *usage, *footer;
};

// All options, or those of one verb.
inline void print_help(const Program& program, const Table& options, const std::string& only) {
    if (only.empty()) printf("%s -- %s\n\n%s", program.name, program.title, program.usage);
    for (const Verb& verb : program.verbs) {
        if (!only.empty() && only != verb.name) continue;
        const std::string begin = only.empty() ? "\n" : program.name + std::string(" ");
        printf("%s%s%s%s%s", begin.c_str(), verb.name, *verb.help ? ": " : "", verb.help, *verb.name ? "\n" : "");
        for (const Option& o : options) {
            if (!o.is(verb.letter)) continue;
            const std::string help = o.help;
            const char* takes = o.is_flag() ? "" : *o.allowed ? o.allowed : o.is('P') ? "PATH" : "TEXT";
            const bool told = help.ends_with("]") || o.is_flag();
            const std::string value = o.is('!') ? " [required]" : told ? "" : " [" + o.show() + "]";
            printf("  %-18s %-28s %s%s\n", o.typed().c_str(), takes, o.help, value.c_str());
        }
    }
    fputs(program.footer, stdout);
}

// Of a program that was given no words; its exit code.
inline int tell_usage(const Program& program) {
    fputs(program.usage, stderr);
    return 2;
}

// Answers --help, -h or --version, wherever it stands; false if none does.
inline bool answer(const Program& program, const Table& options, const std::vector<std::string>& words) {
    auto asked = [&](const char* word) { return std::count(words.begin(), words.end(), word) > 0; };
    const bool help = asked("--help") || asked("-h"), version = asked("--version");
    if (help) print_help(program, options, words[0][0] == '-' ? "" : words[0]);
    else if (version) printf("%s %s\n", program.name, VERSION);
    return help || version;
}

// The command that has these options, those left out that only say "not given", or have a mark.
inline std::string command_line(const Program& program, const std::string& verb, const Table& options,
                                char without = 0) {
    std::string line = std::string("./") + program.name + " " + verb;
    for (const Option& o : options)
        if (o.is(verb[0]) && o.is_given() && !(without && o.is(without)))
            line += " " + o.typed() + (o.is_flag() ? "" : " " + shell_quote(o.show()));
    return line;
}

// Gives the options the values that stand in the words after the program's name, and returns the verb. Dies with exit 2
// of anything unknown, repeated, missing or out of range.
inline std::string parse_words(const Program& program, const std::vector<std::string>& words, const Table& options,
                               std::set<std::string>& given) {
    size_t i = 0;
    std::string verb = program.verbs[0].name, verbs;
    if (!verb.empty() && !words.empty() && words[0].rfind("--", 0) != 0) verb = words[i++];
    char letter = 0;
    for (size_t k = 0, n = program.verbs.size(); k < n; k++) {
        if (verb == program.verbs[k].name) letter = program.verbs[k].letter;
        verbs += std::string(k == 0 ? "" : k + 1 < n ? ", " : " or ") + program.verbs[k].name;
    }
    const Option* last = nullptr;
    if (!letter) die_usage("%s: unknown verb; expected %s", verb.c_str(), verbs.c_str());
    while (i < words.size()) {
        std::string word = words[i++], value;
        const size_t equals = word.find('=');
        const bool joined = word.rfind("--", 0) == 0 && equals != word.npos;
        if (joined) {
            value = word.substr(equals + 1);
            word.resize(equals);
        }
        if (word.rfind("--", 0) == 0) std::replace(word.begin(), word.end(), '_', '-');
        const auto o = std::find_if(options.begin(), options.end(), [&](const Option& o) { return word == o.typed(); });
        if (o == options.end()) {
            std::vector<std::string> names = {"--help", "--version"};
            for (const Option& known : options) if (known.is(letter)) names.push_back(known.typed());
            if (last && word[0] != '-' && (last->is_list() || exists(word)))
                die_usage("%s: stands after no option; a pattern needs quotes: %s '*%s'%s", word.c_str(),
                          last->typed().c_str(), fs::path(word).extension().c_str(),
                          last->is_list() ? "; or give the option before each file" : "");
            die_usage("%s: unknown option%s; %s --help lists them", word.c_str(), nearest(word, names).c_str(),
                      program.name);
        }
        const char* name = word.c_str();
        if (!o->is(letter)) die_usage("%s: not an option of %s", name, verb.c_str());
        if (!given.insert(o->name).second && !o->is_list()) die_usage("%s: given twice", name);
        if (o->is_flag() && joined) die_usage("%s: takes no value", name);
        if (o->is_flag()) value = "1";
        else if (!joined && i == words.size()) die_usage("%s: needs a value", name);
        else if (!joined) value = words[i++];
        if (value.find('\0') != value.npos) die_usage("%s: the value holds a zero byte", name);
        if (value.empty() && !o->is('E')) die_usage("%s: needs a value", name);
        o->set(o->is('P') ? at_home(value) : value, o->allowed);
        last = &*o;
    }
    for (const Option& o : options)
        if (o.is('!') && o.is(letter) && !given.count(o.name))
            die_usage("%s%s%s is missing: %s", verb.c_str(), verb.empty() ? "" : ": ", o.typed().c_str(), o.help);
    for (const Option& a : options) for (const Option& b : options)
        if (&a < &b && a.excludes(b) && given.count(a.name) && given.count(b.name))
            die_usage("%s: give %s or %s, not both", b.typed().c_str(), a.typed().c_str(), b.typed().c_str());
    return verb;
}

// The options that have a mark, as a JSON object, with the directory in which paths were given.
inline std::string options_json(const Table& options, char mark) {
    std::error_code none;
    std::string s = "{\"directory\": " + json_quote(fs::current_path(none).string());
    for (const Option& o : options)
        if (o.is(mark) && !o.is_flag()) s += ", " + json_quote(o.name) + ": " + json_quote(o.show());
    return s + "}";
}

// Refuses options with a mark that were given, and says why. Defaults may be: they stand in a start-up line.
inline void refuse_given(const Table& options, const Table& defaults, const std::set<std::string>& given, char mark,
                         const char* why) {
    for (size_t i = 0; i < options.size(); i++)
        if (const Option& o = options[i]; o.is(mark) && given.count(o.name) && o.show() != defaults[i].show())
            die_usage("%s: %s", o.typed().c_str(), why);
}

// Gives the options of a run that is resumed the values it had, but for those on the command line that may differ, and
// for those that exclude one of them. data_known: other places hold the same data, or it will be found out. weights:
// the run has some.
inline void resume_options(const Table& options, const Table& defaults, const std::set<std::string>& given,
                           const Json& stored, bool data_known, const std::string& run, const std::string& where,
                           bool weights = true) {
    for (size_t i = 0; i < options.size(); i++) {
        const Option& o = options[i];
        const Json& old = stored[o.name];
        const bool is_given = given.count(o.name), elsewhere = o.is('D') && data_known && !old.string.empty();
        auto excluded_by = [&](const Option& other) { return o.excludes(other) && given.count(other.name); };
        const bool instead = std::any_of(options.begin(), options.end(), excluded_by);
        const std::string bars = "|", list = bars + o.allowed + bars;
        const bool foreign = o.is('F') && list.find(bars + old.string + bars) == list.npos;
        if (!old || instead || foreign || (is_given && (o.is('R') || elsewhere))) continue;
        const std::string now = o.show();
        try {
            o.set(old.string, old.string == defaults[i].show() ? "" : o.allowed);
        } catch (const Error& e) { die("%s: %s", where.c_str(), e.line.c_str()); }
        if (is_given && o.show() != now)
            die_usage("%s %s: the run in %s has %s, and a resumed run must not differ in it; %s--out with another "
                      "directory begins a new one%s", o.typed().c_str(), now.c_str(), run.c_str(),
                      old.string.empty() ? "none" : old.string.c_str(), weights ? ("--init " + run + " ").c_str() : "",
                      weights ? " from its weights" : "");
    }
}
