/* dev/data/corpus.cpp -- the built-in corpus: endless small documents whose best possible loss is known exactly.

       make build/corpus && build/corpus --out data/corpus            (build/corpus --help lists its options)

   The corpus is drawn from the small probabilistic program of section 2. emit() writes text that is certain, choose()
   and pick() draw one of several alternatives, and nothing else is random. No alternative of a choice is the beginning
   of another, so a text can be derived in one way only, and its exact probability is the product over its choices:

       -ln P(document) = sum over its choices of -ln p(alternative taken)
       floor           = sum over the documents of -ln P / sum over the documents of (tokens + 1)     nats a token

   where the + 1 is the end-of-text token, which is certain. No model can have a lower loss in expectation. Repeated
   words, places, sums and answers cost 0 nats in this count: they are what a model has to learn.

   Three kinds of documents: a story that follows two persons and a thing through places, a list of who has what, and
   a sum worked column by column; each ends in a question and its answer. Evaluation gives every document a row of its
   own: inputs end-of-text d1 .. dn, targets d1 .. dn end-of-text, at most 256 tokens. Later stages of training get
   examples of other documents, cut behind the last "A:": prompts with their answers, and with a wrong one besides.

   The program is written once and run by three kinds of Source (section 3): Sampler draws a text, Parser reads one back
   and returns its -ln P, Explorer follows all choices to get the entropy of the whole population.

   To add a kind of document: a name in KINDS, its first words in start(), its steps in Step and sentence(), and what
   its later sentences must remember in State. Keep it below 256 bytes; `make test` checks the rest. */
#ifndef NO_CPU_MAIN
#define NO_CPU_MAIN
#endif
#include "../host/options.h"
#include "../host/shards.h"
#include "../host/tokenizer.h"
#include <array>
#include <compare>
#include <filesystem>
#include <functional>
#include <map>
#include <unordered_map>
#include <unordered_set>

namespace corpus {

// ---- 1. words, state, source ----------------------------------------------------------------------------------------
// The words of one list are interchangeable: the program may ask whether two words are equal, never which word it is
// when it decides what can happen next. (Names alternate between she and he, which changes the text only.)
std::vector<std::string> NAMES = {"Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry",
                                  "Iris", "Jack", "Lucy", "Max", "Nora", "Oscar", "Ruth", "Theo"};
std::vector<std::string> PLACES = {"attic", "barn", "cellar", "forest", "garden", "hall", "park", "tower"};
std::vector<std::string> OBJECTS = {"ball", "book", "coin", "hat", "key", "kite", "lamp", "scarf"};
std::vector<std::string> COLOURS = {"black", "blue", "green", "red", "white", "yellow"};

enum Kind { STORY, LIST, SUM, KINDS_END };
constexpr const char* KINDS[KINDS_END] = {"story", "list", "sum"};

enum Step { START, STORY_OPENING, STORY_EVENT, STORY_QUESTION, LIST_ROW, LIST_QUESTION, SUM_FIRST, SUM_SECOND, END };

constexpr int NOBODY = 2, THING = 2;        // beside the persons 0 and 1: who holds the thing; where the thing is

// Everything that later sentences depend on. Two documents in equal states have the same future.
struct State {
    Step step = START;
    int kind = KINDS_END;
    bool held_out = false;                  // of sums, only those that training never shows, instead of all others
    int count = 0;                          // events told, rows listed
    std::array<int, 4> who{}, colour{}, object{};     // by person or by row; the thing of a story is in [0]
    std::array<int, 3> place{};             // of both persons and the thing
    int holder = 0, subject = 0;            // who has the thing; whom the last sentence was about
    int a = 0, op = 0;                      // first operand, index of the operation
    auto operator<=>(const State&) const = default;
};

// What runs the program. Probabilities are integer weights over their sum, the same on every machine.
struct Source {
    struct Alternative { uint32_t weight; std::string text; };
    using Weight = std::function<uint32_t(int)>;
    using Text = std::function<std::string(int)>;

    virtual ~Source() = default;
    virtual void emit(std::string_view text) = 0;
    virtual int choose(int n, const Weight& weight, const Text& text) = 0;      // emits one of them, returns its index
    virtual int pick(const std::vector<std::string>& words, const std::vector<int>& except = {}) {
        return choose((int)words.size(), [&](int i) { return std::count(except.begin(), except.end(), i) == 0; },
                      [&](int i) { return words[i]; });
    }
    int choose(const std::vector<Alternative>& menu) {
        return choose((int)menu.size(), [&](int i) { return menu[i].weight; }, [&](int i) { return menu[i].text; });
    }
};

inline double cost(uint32_t weight, uint64_t total) { return std::log((double)total / weight); }       // -ln p

// ---- 2. the program -------------------------------------------------------------------------------------------------
std::string capital(std::string word) {
    word[0] = (char)(word[0] - 'a' + 'A');
    return word;
}

void start(State& s, Source& g) {
    uint32_t tale = s.held_out ? 0 : 2;        // held-out questions are sums
    s.kind = g.choose({{tale, "One day "}, {tale, "Remember: "}, {3, "Q: What is "}});
    s.step = std::array{STORY_OPENING, LIST_ROW, SUM_FIRST}[s.kind];
}

void finish(State& s, Source& g, const std::string& answer) {
    g.emit("?\nA: " + answer + ".");
    s = State{.step = END, .kind = s.kind};
}

// Stories. Whoever goes somewhere goes to a place that is not in use: what can happen next depends on who has the thing
// and who is with whom, never on which place was picked.
void story_opening(State& s, Source& g) {
    s.who[0] = g.pick(NAMES);
    g.emit(" found a ");
    s.colour[0] = g.pick(COLOURS);
    g.emit(" ");
    s.object[0] = g.pick(OBJECTS);
    g.emit(" in the ");
    s.place[0] = s.place[THING] = g.pick(PLACES);
    g.emit(". ");
    s.who[1] = g.pick(NAMES, {s.who[0]});
    g.emit(" was in the ");
    s.place[1] = g.pick(PLACES, {s.place[0]});
    g.emit(".");
    s.holder = 0;
    s.subject = 1;
    s.step = STORY_EVENT;
}

void story_event(State& s, Source& g) {
    constexpr uint32_t more[] = {1, 2, 1, 0}, enough[] = {0, 1, 1, 1};      // one, two or three events, equally often
    if (g.choose({{more[s.count], " "}, {enough[s.count], "\nQ: "}}) == 1) {
        s.step = STORY_QUESTION;
        return;
    }
    s.count++;
    auto name = [&](int i) {
        return i != s.subject ? NAMES[s.who[i]] : s.who[i] % 2 == 0 ? std::string("She") : std::string("He");
    };
    auto place = [&](int i) { return PLACES[s.place[i]]; };
    auto go = [&](int i) {
        s.place[i] = g.pick(PLACES, {s.place[0], s.place[1], s.place[THING]});
        if (s.holder == i) s.place[THING] = s.place[i];
        g.emit(".");
    };
    if (s.holder == NOBODY) {
        int taken = g.choose({{2, name(0) + " picked it up in the "}, {2, name(1) + " picked it up in the "},
                              {1, name(0) + " went to the "}, {1, name(1) + " went to the "}});
        s.subject = taken % 2;
        if (taken >= 2) return go(s.subject);
        g.emit(place(THING) + ".");
        s.holder = s.subject;
        s.place[s.subject] = s.place[THING];
        return;
    }
    int i = s.holder, other = 1 - i;
    uint32_t apart = s.place[i] != s.place[other];
    int taken = g.choose({{2, name(i) + " took it to the "}, {2, name(i) + " left it in the "},
                          {2 * apart, name(i) + " gave it to "}, {1, name(other) + " went to the "}});
    s.subject = taken == 3 ? other : i;
    if (taken == 2) {
        g.emit(NAMES[s.who[other]] + " in the " + place(other) + ".");
        s.holder = other;
        s.place[i] = s.place[THING] = s.place[other];
        return;
    }
    if (taken == 1) {
        g.emit(place(i) + " and went to the ");
        s.holder = NOBODY;
    }
    go(s.subject);
}

void story_question(State& s, Source& g) {
    const std::string &thing = OBJECTS[s.object[0]], &a = NAMES[s.who[0]], &b = NAMES[s.who[1]];
    auto in = [&](int i) { return "In the " + PLACES[s.place[i]]; };
    switch (g.choose({{3, "Where is the " + thing}, {1, "Where is " + a}, {1, "Where is " + b},
                      {2, "Who has the " + thing}, {1, "What colour is the " + thing}})) {
    case 0: return finish(s, g, in(THING));
    case 1: return finish(s, g, in(0));
    case 2: return finish(s, g, in(1));
    case 3: return finish(s, g, s.holder == NOBODY ? "Nobody" : NAMES[s.who[s.holder]]);
    default: return finish(s, g, capital(COLOURS[s.colour[0]]));
    }
}

// Lists: two to four rows, equally often; no person and no thing comes twice.
void list_row(State& s, Source& g) {
    int row = s.count++;
    s.who[row] = g.pick(NAMES, {s.who.begin(), s.who.begin() + row});
    g.emit(" has a ");
    s.colour[row] = g.pick(COLOURS);
    g.emit(" ");
    s.object[row] = g.pick(OBJECTS, {s.object.begin(), s.object.begin() + row});
    g.emit(".");
    constexpr uint32_t more[] = {0, 1, 2, 1, 0}, enough[] = {0, 0, 1, 1, 1};
    if (g.choose({{more[s.count], " "}, {enough[s.count], "\nQ: "}}) == 1) s.step = LIST_QUESTION;
}

void list_question(State& s, Source& g) {
    std::vector<Source::Alternative> menu;
    for (int row = 0; row < s.count; row++) {
        menu.push_back({1, "Who has the " + OBJECTS[s.object[row]]});
        menu.push_back({1, "What does " + NAMES[s.who[row]] + " have"});
        menu.push_back({1, "What colour is the " + OBJECTS[s.object[row]]});
    }
    int taken = g.choose(menu), row = taken / 3;
    const std::string& colour = COLOURS[s.colour[row]];
    finish(s, g, taken % 3 == 0 ? NAMES[s.who[row]]
               : taken % 3 == 1 ? "A " + colour + " " + OBJECTS[s.object[row]] : capital(colour));
}

// Sums. About 2 % of all pairs are held out, marked by a hash: neither training nor validation documents contain them,
// so the answers to them measure whether the method was learned. Every choice enumerates what is allowed, and its
// probabilities are renormalised over that.
constexpr char OPS[] = "+-x";

bool held_out(int op, int a, int b) {
    if (OPS[op] == '+' && a > b) std::swap(a, b);            // a + b and b + a are the same question
    return Rng(((uint64_t)op * 1000 + a) * 1000 + b, 1).next() % 50 == 0;
}

// Three-digit numbers, the smaller one subtracted; a product has one digit on its right.
bool allowed(const State& s, int op, int b) {
    bool in_range = OPS[op] == 'x' ? b >= 2 && b <= 9 : b >= 100 && (OPS[op] == '+' || b < s.a);
    return in_range && held_out(op, s.a, b) == s.held_out;
}

// The column method, from the ones up: "7+5=12, 4+8+1=13, 3+2+1=6". A subtraction borrows ten where it has to, and
// takes it back as the 1 of the next column: "13-7=6, 10-4-1=5, 5-2-1=2". A slip makes the result of column `slipped`
// (1, 10 or 100) wrong by so much, and what follows goes on from there; "" if no column can have it.
std::string working(char op, int a, int b, int slipped = 0, int slip = 0) {
    std::string text;
    int carry = 0, number = 0;
    for (int unit = 1; unit <= 100; unit *= 10) {
        int x = a / unit % 10, y = op == 'x' ? b : b / unit % 10, old = carry, result;
        if (op == '-') {
            carry = x < y + old;
            x += 10 * carry;
            result = x - y - old + (unit == slipped ? slip : 0);
            if (result < 0 || result > 9) return "";
        } else {
            result = (op == '+' ? x + y : x * y) + old + (unit == slipped ? slip : 0);
            if (result < 0) return "";
            carry = result / 10;
        }
        number += (unit == 100 ? result : result % 10) * unit;
        text += std::to_string(x) + op + std::to_string(y);
        if (old != 0) text += (op == '-' ? "-" : "+") + std::to_string(old);
        text += "=" + std::to_string(result) + ", ";
    }
    return text + "so " + std::to_string(number);
}

void sum_first(State& s, Source& g) {
    s.a = g.choose(1000, [](int a) { return a >= 100; }, [](int a) { return std::to_string(a); });
    std::vector<Source::Alternative> menu;
    for (int op = 0; op < 3; op++) {
        bool possible = false;
        for (int b = 0; b < 1000 && !possible; b++) possible = allowed(s, op, b);
        menu.push_back({possible, std::string{' ', OPS[op], ' '}});
    }
    s.op = g.choose(menu);
    s.step = SUM_SECOND;
}

void sum_second(State& s, Source& g) {
    int b = g.choose(1000, [&](int b) { return allowed(s, s.op, b); }, [](int b) { return std::to_string(b); });
    finish(s, g, working(OPS[s.op], s.a, b));
}

void sentence(State& s, Source& g) {
    switch (s.step) {
    case START: return start(s, g);
    case STORY_OPENING: return story_opening(s, g);
    case STORY_EVENT: return story_event(s, g);
    case STORY_QUESTION: return story_question(s, g);
    case LIST_ROW: return list_row(s, g);
    case LIST_QUESTION: return list_question(s, g);
    case SUM_FIRST: return sum_first(s, g);
    case SUM_SECOND: return sum_second(s, g);
    case END: return;
    }
}

State run(Source& g, State s = {}) {
    while (s.step != END) sentence(s, g);
    return s;
}

// ---- 3. three ways to run it ----------------------------------------------------------------------------------------
struct Document {
    std::string text;
    double nats = 0;        // -ln P(text)
    int kind = 0;
};

struct Sampler : Source {
    Rng& rng;
    Document out;
    explicit Sampler(Rng& rng) : rng(rng) {}
    void emit(std::string_view text) override { out.text += text; }
    int choose(int n, const Weight& weight, const Text& text) override {
        uint64_t total = 0;
        for (int i = 0; i < n; i++) total += weight(i);
        uint64_t left = rng.below(total);
        int taken = 0;
        for (; left >= weight(taken); taken++) left -= weight(taken);
        out.nats += cost(weight(taken), total);
        emit(text(taken));
        return taken;
    }
};

struct Parser : Source {
    std::string_view text;
    size_t at = 0;
    double nats = 0;
    explicit Parser(std::string_view text) : text(text) {}
    bool next_is(std::string_view s) const { return text.substr(at, s.size()) == s; }
    void emit(std::string_view s) override {
        for (char c : s) {
            if (!next_is({&c, 1})) die("byte %zu: expected byte %d", at, (unsigned char)c);
            at++;
        }
    }
    int choose(int n, const Weight& weight, const Text& alternative) override {
        uint64_t total = 0;
        int taken = -1;
        for (int i = 0; i < n; i++) {
            total += weight(i);
            if (weight(i) != 0 && next_is(alternative(i))) taken = i;
        }
        if (taken < 0) die("byte %zu: none of the alternatives allowed here", at);
        nats += cost(weight(taken), total);
        at += alternative(taken).size();
        return taken;
    }
};

/* Explorer -- to run a sentence once for every sequence of choices in it: run it, and again while advance() is true.
   Choices made before are replayed, the last one that has another alternative takes it. Words of a list being
   interchangeable, a pick() costs ln(number of words allowed) and only the first of them is followed; with
   every_word, which the test uses on short lists to check that they are, all are followed. */
struct Explorer : Source {
    struct Choice { std::vector<uint32_t> weights; uint64_t total; size_t taken; };
    bool every_word;
    std::vector<Choice> path;
    size_t depth = 0, bytes = 0;
    double p = 1, nats = 0;
    explicit Explorer(bool every_word) : every_word(every_word) {}
    void emit(std::string_view text) override { bytes += text.size(); }
    int choose(int n, const Weight& weight, const Text& text) override {
        if (depth == path.size()) {
            Choice c{std::vector<uint32_t>(n), 0, 0};
            for (int i = 0; i < n; i++) c.total += c.weights[i] = weight(i);
            while (c.weights[c.taken] == 0) c.taken++;
            path.push_back(std::move(c));
        }
        const Choice& c = path[depth++];
        p *= (double)c.weights[c.taken] / c.total;
        nats += cost(c.weights[c.taken], c.total);
        emit(text((int)c.taken));
        return (int)c.taken;
    }
    int pick(const std::vector<std::string>& words, const std::vector<int>& except) override {
        if (every_word) return Source::pick(words, except);
        std::vector<int> allowed;
        for (int i = 0; i < (int)words.size(); i++)
            if (std::count(except.begin(), except.end(), i) == 0) allowed.push_back(i);
        nats += cost(1, allowed.size());
        emit(words[allowed[0]]);
        return allowed[0];
    }
    bool advance() {
        depth = bytes = 0;
        p = 1;
        nats = 0;
        while (!path.empty()) {
            Choice& c = path.back();
            do c.taken++; while (c.taken < c.weights.size() && c.weights[c.taken] == 0);
            if (c.taken < c.weights.size()) return true;
            path.pop_back();
        }
        return false;
    }
};

Document sample_document(Rng& rng, bool held_out = false) {
    Sampler g(rng);
    g.out.kind = run(g, State{.held_out = held_out}).kind;
    return g.out;
}

Document parse_document(std::string_view text, bool held_out = false) {
    Parser g(text);
    State end = run(g, State{.held_out = held_out});
    if (g.at != text.size()) die("byte %zu: expected the end", g.at);
    return {std::string(text), g.nats, end.kind};
}

struct Population {
    double p = 0, nats = 0;     // probability of the state; sum of P * -ln P so far over the texts that lead to it
    size_t longest = 0;         // bytes of the longest of these texts (of those followed)
};

// Entropy without sampling: push the distribution over states forward sentence by sentence, merging equal states, until
// all of it has reached the end. The result is by kind; nats / p is the mean of -ln P over the documents of a kind.
std::array<Population, KINDS_END> population(bool every_word = false) {
    std::array<Population, KINDS_END> ended{};
    std::map<State, Population> now = {{State{}, {1, 0, 0}}};
    while (!now.empty()) {
        std::map<State, Population> next;
        for (const auto& [state, from] : now) {
            Explorer g(every_word);
            do {
                State s = state;
                sentence(s, g);
                Population& to = s.step == END ? ended[s.kind] : next[s];
                to.p += from.p * g.p;
                to.nats += (from.nats + from.p * g.nats) * g.p;
                to.longest = std::max(to.longest, from.longest + g.bytes);
            } while (g.advance());
        }
        now = std::move(next);
    }
    return ended;
}

// ---- 4. n-grams, for scale ------------------------------------------------------------------------------------------
// Nats of val, ends of documents included, by the orders 0 to 4, interpolated after Witten and Bell. With n(c,x) the
// times byte x followed context c in training, n(c) their sum and t(c) the number of different x:
//     P_k(x | c) = (n(c,x) + t(c) P_k-1(x | c without its first byte)) / (n(c) + t(c)),     P_-1 = 1 / 257
std::array<double, 5> ngrams(const std::vector<std::string>& train, const std::vector<std::string>& val) {
    struct Counts { double n = 0, followed = 0, types = 0; };
    std::unordered_map<std::string, Counts> seen;
    auto each = [](const std::string& text, auto visit) {
        std::string row = std::string(4, '\0') + text + '\0';             // '\0' stands for end of text
        for (size_t i = 4; i < row.size(); i++)
            for (int k = 0; k < 5; k++) visit(k, row.substr(i - k, k), row.substr(i - k, k + 1));
    };
    for (const std::string& text : train)
        each(text, [&](int, const std::string& context, const std::string& longer) {
            Counts& c = seen[context];
            c.followed++;
            c.types += seen[longer].n++ == 0;
        });
    std::array<double, 5> nats{};
    double p = 0;
    for (const std::string& text : val)
        each(text, [&](int k, const std::string& context, const std::string& longer) {
            if (k == 0) p = 1.0 / 257;
            const Counts& c = seen[context];                // one never seen leaves P_k-1 as it is: 0 / 0 must not be
            if (c.followed > 0) p = (seen[longer].n + c.types * p) / (c.followed + c.types);
            nats[k] -= std::log(p);
        });
    return nats;
}

// ---- 5. wrong answers -----------------------------------------------------------------------------------------------
// Where a word stands by itself; npos if nowhere.
size_t find_word(const std::string& text, const std::string& word) {
    size_t at = text.find(word);
    while (at != text.npos && ((at > 0 && isalpha(text[at - 1])) || isalpha(text[at + word.size()])))
        at = text.find(word, at + 1);
    return at;
}

/* corrupted -- a wrong answer of the same form as the right one, one of those that this table gives, equally often:
       ... so 813.            a column off by one, and what follows from it; the number off by one or by ten, not
                              below 0
       In the hall.           another place
       Blue.                  another colour
       A blue kite.           another colour, or another thing
       Ada.    Nobody.        another name; Nobody is one
   Half of the words stand in the prompt, where there are such: the others give themselves away. */
std::string corrupted(const std::string& prompt, const std::string& answer, Rng& rng) {
    std::vector<std::string> near, far;
    char op;
    if (int a, b; sscanf(prompt.c_str(), "Q: What is %d %c %d?", &a, &op, &b) == 3) {
        for (int unit : {1, 10, 100}) for (int slip : {-1, 1})
            if (const std::string wrong = working(op, a, b, unit, slip); wrong != "") near.push_back(" " + wrong + ".");
        const size_t at = answer.rfind("so ");
        const int right = std::stoi(answer.substr(at + 3));
        for (int wrong : {right - 10, right - 1, right + 1, right + 10})
            if (wrong >= 0) near.push_back(answer.substr(0, at + 3) + std::to_string(wrong) + ".");
    }
    std::vector<std::vector<std::string>> lists = {PLACES, OBJECTS, COLOURS, COLOURS, NAMES};
    for (std::string& colour : lists[3]) colour = capital(colour);
    lists[4].push_back("Nobody");
    for (const auto& words : lists)
        for (const std::string& right : words) {
            const size_t at = find_word(answer, right);
            for (size_t i = 0; i < words.size() && at != answer.npos; i++) {
                const std::string& said = &words == &lists[3] ? COLOURS[i] : words[i];       // as the prompt would
                auto& to = find_word(prompt, said) != prompt.npos ? near : far;
                if (words[i] != right) to.push_back(std::string(answer).replace(at, right.size(), words[i]));
            }
        }
    const std::vector<std::string>& all = far.empty() || (!near.empty() && rng.below(2)) ? near : far;
    return all[rng.below(all.size())];
}

// ---- 6. files -------------------------------------------------------------------------------------------------------
constexpr int VAL_DOCUMENTS = 512, HELD_OUT_QUESTIONS = 128, NGRAM_DOCUMENTS = 4096, VAL_EXAMPLES = 256;

const Program CORPUS = {"corpus", {{'c', ""}}, "endless small documents whose best possible loss is known exactly",
                        "usage: corpus --out DIR [--documents N] [--sft N] [--ranked N] [--prompts N] "
                        "[--tokenizer PATH] [--seed N]\n", ""};

struct Settings {
    text out, tokenizer = "bytes";
    integer documents = 40000, sft = 1000, ranked = 4000, prompts = 8000, seed = 1;
    Table table() {
        return {{"out", &out, "", "c!", "the directory to write to"},
                {"documents", &documents, "1..1000000", "c", "documents to train on"},
                {"sft", &sft, "1..1000000", "c", "prompts with answers, for supervised fine-tuning"},
                {"ranked", &ranked, "1..1000000", "c", "prompts with a right and a wrong answer, for a reward model"},
                {"prompts", &prompts, "1..1000000", "c", "prompts with answers, for reinforcement learning"},
                {"tokenizer", &tokenizer, "", "cP", "merges file, or its directory, or the word bytes"},
                {"seed", &seed, "0..1000000000000000000", "c", "of all that is drawn"}};
    }
};

Settings settings(const std::vector<std::string>& words) {
    Settings s;
    std::set<std::string> given;
    parse_words(CORPUS, words, s.table(), given);
    return s;
}

// Returns a summary to print.
std::string write_corpus(const Settings& o) {
    std::error_code failed;
    fs::create_directories(o.out, failed);
    if (failed) die("%s: cannot create the directory: %s", o.out.c_str(), failed.message().c_str());

    // Validation documents are drawn from the program as it is, so that the floor holds for them; training leaves out
    // the few that it would have in common with them. Questions are cut behind the last "A:".
    Rng train_rng(o.seed, 0), val_rng(o.seed, 1), question_rng(o.seed, 2);
    struct Part { size_t documents = 0, bytes = 0, tokens = 0; double nats = 0; };
    std::array<Part, KINDS_END + 1> parts{};           // by kind, and in all
    Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
    std::vector<int> train, val;
    std::vector<std::vector<int>> questions;
    std::vector<std::string> val_texts, ngram_texts;
    size_t longest = 0, train_bytes = 0;
    Tokenizer::Scratch scratch;
    auto encoded = [&](const std::string& text) {
        std::vector<int> ids;
        tokenizer.encode(text, ids, scratch);
        return ids;
    };
    auto add_document = [&](std::vector<int>& shard, const std::string& text) {
        std::vector<int> ids = encoded(text);
        shard.push_back(tokenizer.eot());
        shard.insert(shard.end(), ids.begin(), ids.end());
        longest = std::max(longest, text.size());
        return ids.size() + 1;
    };
    auto add_question = [&](const std::string& text) {
        size_t cut = text.rfind("A:") + 2;
        questions.push_back(encoded(text.substr(0, cut)));
        questions.push_back(encoded(text.substr(cut)));
    };
    for (int i = 0; i < VAL_DOCUMENTS; i++) {
        Document d = sample_document(val_rng);
        size_t tokens = add_document(val, d.text);
        for (int k : {d.kind, (int)KINDS_END}) {
            parts[k].documents++;
            parts[k].bytes += d.text.size();
            parts[k].tokens += tokens;
            parts[k].nats += d.nats;
        }
        add_question(d.text);
        val_texts.push_back(d.text);
    }
    for (int i = 0; i < HELD_OUT_QUESTIONS; i++) add_question(sample_document(question_rng, true).text);
    std::unordered_set<std::string> excluded(val_texts.begin(), val_texts.end());
    std::unordered_set<uint64_t> seen;                 // checksums of all documents, of training and validation
    for (const std::string& text : val_texts) seen.insert(checksum(text));
    for (integer i = 0; i < o.documents;) {
        Document d = sample_document(train_rng);
        if (excluded.count(d.text)) continue;
        add_document(train, d.text);
        seen.insert(checksum(d.text));
        train_bytes += d.text.size();
        if (i++ < NGRAM_DOCUMENTS) ngram_texts.push_back(d.text);
    }
    write_shard(o.out + "/train.bin", train, tokenizer.vocab());
    write_shard(o.out + "/val.bin", val, tokenizer.vocab());
    write_examples(o.out + "/answers.bin", questions, 2, tokenizer.vocab());
    tokenizer.save(o.out);

    // Later stages have documents that are in none of these files, each in one place and once. A prompt has one answer,
    // so that they have no prompt in common either; held-out pairs are in none of them.
    const struct { const char* name; integer count; bool ranked; } stages[] = {
        {"sft_train.bin", o.sft, false}, {"sft_val.bin", VAL_EXAMPLES, false}, {"ranked_train.bin", o.ranked, true},
        {"ranked_val.bin", VAL_EXAMPLES, true}, {"prompts.bin", o.prompts, false}};
    for (uint64_t stream = 3; const auto& [name, count, ranked] : stages) {
        Rng rng(o.seed, stream++);
        questions.clear();
        for (integer i = 0; i < count;) {
            const std::string text = sample_document(rng).text;
            if (!seen.insert(checksum(text)).second) continue;
            const size_t cut = text.rfind("A:") + 2;
            add_question(text);
            i++;
            if (ranked) questions.push_back(encoded(corrupted(text.substr(0, cut), text.substr(cut), rng)));
        }
        write_examples(o.out + "/" + name, questions, ranked ? 3 : 2, tokenizer.vocab());
    }

    // The floor is that of the validation file; entropy_per_document is the mean over all documents there can be.
    auto nats = ngrams(ngram_texts, val_texts);
    for (double& x : nats) x /= parts[KINDS_END].tokens;
    auto kinds = population();
    double entropy = 0, uniform = std::log(tokenizer.vocab());
    for (const Population& kind : kinds) entropy += kind.nats;
    auto describe = [&](int k, double mean) {
        const Part& p = parts[k];
        return format("\"floor\": %.6f, \"tokens\": %zu, \"bytes\": %zu, \"documents\": %zu, "
                      "\"entropy_per_document\": %.6f", p.nats / std::max<size_t>(p.tokens, 1), p.tokens, p.bytes,
                      p.documents, mean);
    };
    std::string json = "{" + describe(KINDS_END, entropy) + ",\n \"kinds\": {";
    for (int k = 0; k < KINDS_END; k++)
        json += format("%s\n  \"%s\": {%s}", k ? "," : "", KINDS[k], describe(k, kinds[k].nats / kinds[k].p).c_str());
    json += format("},\n \"answers\": {\"validation\": %d, \"held_out_pairs\": %d},\n \"ladder\": {\"uniform\": %.4f, "
                   "\"byte frequencies (order 0)\": %.4f, \"order-2\": %.4f, \"order-4\": %.4f}}\n", VAL_DOCUMENTS,
                   HELD_OUT_QUESTIONS, uniform, nats[0], nats[2], nats[4]);
    write_file(o.out + "/val.json", json);

    const Part& v = parts[KINDS_END];
    return format("train.bin    %lld documents, %zu bytes of text\n"
                  "val.bin      %zu documents, %zu bytes, floor %.4f nats/token; population %.3f nats/document\n"
                  "answers.bin  %d questions from val.bin, %d sums of held-out pairs\n"
                  "sft_*.bin    %lld prompts with answers, and %d for validation\n"
                  "ranked_*.bin %lld preferences, and %d for validation\n"
                  "prompts.bin  %lld prompts with answers; what these five files hold is in no other, and once\n"
                  "for scale    uniform %.3f, byte frequencies %.3f, order-2 %.3f, order-4 %.3f nats/token\n"
                  "longest document %zu bytes; written to %s\n",
                  o.documents, train_bytes, v.documents, v.bytes, v.nats / v.tokens, entropy,
                  VAL_DOCUMENTS, HELD_OUT_QUESTIONS, o.sft, VAL_EXAMPLES, o.ranked, VAL_EXAMPLES, o.prompts, uniform,
                  nats[0], nats[2], nats[4], longest, o.out.c_str());
}

}    // namespace corpus

#ifndef NO_CORPUS_MAIN
int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    return run_main([&] {
        if (answer(corpus::CORPUS, corpus::Settings().table(), words)) return;
        fputs(corpus::write_corpus(corpus::settings(words)).c_str(), stdout);
    });
}
#endif
