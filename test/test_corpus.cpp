/* test/test_corpus.cpp -- make build/test_corpus && build/test_corpus
   The built-in corpus: its probabilities, its entropy, its answers and its files. One line a check; exit 1 if any
   fails. Answers are worked out a second time here, from the text alone. */
#define NO_CORPUS_MAIN
#include "../dev/data/corpus.cpp"
#include <iterator>
#include <regex>
#include <set>
#include <sstream>

namespace corpus {

int failures = 0;

__attribute__((format(printf, 3, 4))) void check(const char* name, bool good, const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    printf("%s %s  %s\n", good ? "ok" : "FAIL", name, vformat(fmt, args).c_str());
    va_end(args);
    failures += !good;
}

// The error that f ends in; exit code 0 if it returns.
template <class F> Error error_of(F f) {
    try {
        f();
    } catch (const Error& e) {
        return e;
    }
    return {0, ""};
}

bool rejected(const std::string& text, bool held_out = false) {
    Error e = error_of([&] { parse_document(text, held_out); });
    return e.exit_code == 1 && e.line.rfind("byte ", 0) == 0 && e.line.find('\n') == std::string::npos;
}

struct Sum { int a, b; char op; int index() const { return (int)(strchr(OPS, op) - OPS); } };

bool read_sum(const std::string& text, Sum& s) {
    return sscanf(text.c_str(), "Q: What is %d %c %d?", &s.a, &s.op, &s.b) == 3;
}

// ---- answers, from the text alone -----------------------------------------------------------------------------------
std::string capitalised(std::string s) {
    s[0] = (char)toupper(s[0]);
    return s;
}

// Every column must be true and come from the right digits; returns what the result has to be.
std::string solve_sum(const std::string& text) {
    Sum s;
    if (!read_sum(text, s)) return "unreadable";
    std::istringstream in(text.substr(text.rfind("A:") + 3));
    std::string column;
    int a = s.a, b = s.b;
    for (int i = 0; i < 3; i++, a /= 10, b = s.op == 'x' ? b : b / 10) {
        int x = -1, y = -1, carry = 0, result = -1;
        char op = 0, sign = s.op == '-' ? '-' : '+';
        in >> column;
        if (sscanf(column.c_str(), "%d%c%d=%d,", &x, &op, &y, &result) != 4)
            if (sscanf(column.c_str(), "%d%c%d%c%d=%d,", &x, &op, &y, &sign, &carry, &result) != 6) return "bad column";
        int right = op == '+' ? x + y + carry : op == '-' ? x - y - carry : x * y + carry;
        if (right != result || op != s.op || x % 10 != a % 10 || y != b % 10 || result < 0) return "wrong column";
        if (sign != (s.op == '-' ? '-' : '+')) return "wrong sign";
    }
    return "so " + std::to_string(s.op == '+' ? s.a + s.b : s.op == '-' ? s.a - s.b : s.a * s.b) + ".";
}

// Reads the sentences of a story or a list one by one, keeping who has what where, then answers the question.
std::string solve_tale(const std::string& text) {
    std::map<std::string, std::string> person_at, holder, colour, owns;
    std::string subject, thing, thing_at, line = text.substr(text.find(text[0] == 'O' ? "day " : ": "));
    line = line.substr(line.find(' ') + 1);
    std::istringstream in(line.substr(0, line.find('\n')));
    for (std::string sentence; std::getline(in, sentence, '.');) {
        std::istringstream words(sentence);
        std::vector<std::string> w{std::istream_iterator<std::string>(words), {}};
        if (w.size() < 5) return "a sentence is too short";
        if (w[0] != "She" && w[0] != "He") subject = w[0];
        std::string last = w.back(), verb = w[1];
        if (verb == "has" || verb == "found") {
            thing = w[4];
            colour[thing] = w[3];
            holder[thing] = subject;
            owns[subject] = w[3] + " " + w[4];
        }
        if (verb == "left" && w.size() < 11) return "a sentence is too short";
        if (verb == "left" && (w[5] != person_at[subject] || w[5] != thing_at)) return "left it elsewhere";
        if (verb == "picked" && last != thing_at) return "picked it up elsewhere";
        if ((verb == "left" || verb == "gave" || verb == "took") && holder[thing] != subject) return "does not have it";
        if (verb == "left") holder[thing] = "Nobody";
        if (verb == "picked") holder[thing] = subject;
        if (verb == "gave") {
            if (person_at[w[4]] != last) return "is not there";
            holder[thing] = w[4];
        }
        person_at[subject] = last;
        if (holder[thing] == subject || verb == "gave") thing_at = last;
    }
    std::string question = text.substr(text.find("\nQ: ") + 4), name = question.substr(0, question.find('?'));
    name = name.substr(0, name.find(" have"));
    name = name.substr(name.rfind(' ') + 1);
    if (question.rfind("Where is the ", 0) == 0) return "In the " + thing_at + ".";
    if (question.rfind("Where is ", 0) == 0) return "In the " + person_at[name] + ".";
    if (question.rfind("Who has the ", 0) == 0) return holder[name] + ".";
    if (question.rfind("What colour is the ", 0) == 0) return capitalised(colour[name]) + ".";
    if (question.rfind("What does ", 0) == 0) return "A " + owns[name] + ".";
    return "unknown question";
}

// Whether in an answer's columns one result is off by one, and the rest follows from it.
bool slips(const std::string& right, const std::string& wrong) {
    static const std::regex column(R"((\d+)([-+x])(\d+)(?:[-+](\d+))?=(\d+), )");
    std::sregex_iterator at(wrong.begin(), wrong.end(), column), was(right.begin(), right.end(), column);
    int unit = 1, carry = 0, number = 0, off = 0;
    for (; at != std::sregex_iterator() && was != std::sregex_iterator(); ++at, ++was, unit *= 10) {
        const std::smatch& m = *at;
        const int x = stoi(m[1]), y = stoi(m[3]), old = m[4].matched ? stoi(m[4]) : 0, result = stoi(m[5]);
        const int value = m[2] == "-" ? x - y - old : (m[2] == "+" ? x + y : x * y) + old;
        if (m[1] != (*was)[1] || m[2] != (*was)[2] || m[3] != (*was)[3] || (m[2] != "-" && old != carry)) return false;
        carry = result / 10, off += std::abs(result - value), number += (unit == 100 ? result : result % 10) * unit;
    }
    return unit == 1000 && off == 1 && wrong.ends_with(" so " + std::to_string(number) + ".");
}

// Which corruption of an answer another one is; "" if none of the table.
std::string corruption(const std::string& prompt, const std::string& right, const std::string& wrong) {
    auto words_of = [](const std::string& s) {
        std::istringstream in(s.substr(0, s.size() - 1));
        return std::vector<std::string>{std::istream_iterator<std::string>(in), {}};
    };
    const std::vector<std::string> a = words_of(right), b = words_of(wrong);
    std::vector<size_t> differ;
    for (size_t i = 0; i < a.size() && a.size() == b.size(); i++) if (a[i] != b[i]) differ.push_back(i);
    if (slips(right, wrong)) return "a column";
    if (differ.size() != 1 || right[0] != ' ' || wrong[0] != ' ' || wrong.back() != '.') return "";
    const std::string &from = a[differ[0]], &to = b[differ[0]];
    if (isdigit(from[0])) {
        const int by = std::abs(atoi(from.c_str()) - atoi(to.c_str()));
        const bool last = differ[0] + 1 == a.size() && a[differ[0] - 1] == "so" && to[0] != '-';
        return last && std::to_string(atoi(to.c_str())) == to && (by == 1 || by == 10) ? format("by %d", by) : "";
    }
    auto names = NAMES, colours = COLOURS;
    names.push_back("Nobody");
    for (std::string& colour : colours) colour = capitalised(colour);
    const std::pair<const char*, std::vector<std::string>> lists[] = {
        {"place", PLACES}, {"object", OBJECTS}, {"colour of an object", COLOURS}, {"colour", colours}, {"name", names}};
    for (auto& [name, list] : lists) {
        if (!std::count(list.begin(), list.end(), from) || !std::count(list.begin(), list.end(), to)) continue;
        const bool colour = &list == &lists[3].second;
        auto said = [&](std::string word) {                            // by the prompt
            if (colour) word[0] = (char)tolower(word[0]);
            const size_t at = (" " + prompt).find(" " + word);
            return at != std::string::npos && !isalpha(prompt[at + word.size()]);
        };
        return said(to) ? name : std::string(name) + " not in the prompt";
    }
    return "";
}

bool answer_is_right(const Document& d) {
    std::string answer = d.text.substr(d.text.rfind("A:") + 3);
    if (d.kind == SUM) answer = answer.substr(std::min(answer.find("so "), answer.size()));
    return answer == (d.kind == SUM ? solve_sum(d.text) : solve_tale(d.text));
}

// ---- the program ----------------------------------------------------------------------------------------------------
// A sampler that looks at every choice it meets.
struct PrefixChecker : Sampler {
    size_t choices = 0, bad = 0;
    std::string example;
    using Sampler::Sampler;
    int choose(int n, const Weight& weight, const Text& text) override {
        std::vector<std::string> all;
        for (int i = 0; i < n; i++)
            if (weight(i) != 0) all.push_back(text(i));
        std::sort(all.begin(), all.end());          // whatever begins with a text follows it directly
        for (size_t i = 0; i + 1 < all.size(); i++)
            if (all[i + 1].compare(0, all[i].size(), all[i]) == 0) {
                bad++;
                example = "\"" + all[i] + "\" begins \"" + all[i + 1] + "\"";
            }
        choices++;
        return Sampler::choose(n, weight, text);
    }
};

void test_samples() {
    constexpr int COUNT = 20000;
    Rng rng(11);
    auto exact = population();
    struct Mean { double n = 0, sum = 0, squares = 0; } means[KINDS_END + 1];
    size_t differ = 0, wrong = 0, leaked = 0, unreadable = 0, longest = 0, survived = 0, broken = 0;
    std::string example;
    for (int i = 0; i < COUNT; i++) {
        Document d = sample_document(rng), back;
        Error e = error_of([&] { back = parse_document(d.text); });
        if (e.exit_code || back.nats != d.nats || back.kind != d.kind) differ++, example = d.text;
        for (int k : {d.kind, (int)KINDS_END}) {
            means[k].n++;
            means[k].sum += d.nats;
            means[k].squares += d.nats * d.nats;
        }
        if (!answer_is_right(d)) wrong++, example = d.text;
        Sum s;
        if (d.kind == SUM && !read_sum(d.text, s)) unreadable++;
        else if (d.kind == SUM && held_out(s.index(), s.a, s.b)) leaked++;
        longest = std::max(longest, d.text.size());
        if (i % 8) continue;
        std::string other = d.text;                 // one byte changed, one missing, one too many, another answer
        char& c = other[rng.below(other.size())];
        c = c == 'e' ? 'a' : c == '1' ? '2' : c >= '0' && c <= '9' ? '1' : 'e';
        for (const std::string& text : {other, d.text.substr(0, d.text.size() - 1), d.text + " ",
                                        d.text.substr(0, d.text.rfind("A:")) + "A: Yellow lamps."}) {
            broken++;
            if (!rejected(text)) survived++, example = text;
        }
    }
    check("round_trip", differ == 0, "%zu of %d documents read back otherwise %s", differ, COUNT,
          differ ? example.c_str() : "");
    check("answers", wrong == 0, "%zu of %d answers are wrong %s", wrong, COUNT, wrong ? example.c_str() : "");
    check("broken_texts", survived == 0, "%zu of %zu broken texts were accepted %s", survived, broken,
          survived ? example.c_str() : "");
    check("empty_text", rejected("") && rejected("One day "), "no text, and too little, are rejected");
    check("training_sums", leaked == 0 && unreadable == 0, "%zu held-out pairs, %zu unreadable", leaked, unreadable);
    check("longest_seen", longest <= 255, "%zu bytes", longest);

    double p = 0, nats = 0;
    for (const Population& kind : exact) p += kind.p, nats += kind.nats;
    // A million additions, each rounding by up to 2^-53 of a sum of at most 1 (or 24 nats): below 1e-9.
    check("total_probability", std::fabs(p - 1) <= 1e-9, "|sum - 1| = %.1e", std::fabs(p - 1));
    for (int k = 0; k <= KINDS_END; k++) {
        const Mean& m = means[k];
        double mean = m.sum / m.n, error = std::sqrt((m.squares / m.n - mean * mean) / m.n);
        double right = k == KINDS_END ? nats : exact[k].nats / exact[k].p;
        check(format("entropy_%s", k == KINDS_END ? "all" : KINDS[k]).c_str(), std::fabs(mean - right) <= 4 * error,
              "exact %.4f, sampled %.4f +- %.4f nats/document", right, mean, error);
    }
}

void test_prefixes() {
    Rng rng(12);
    size_t choices = 0, bad = 0;
    std::string example;
    for (int i = 0; i < 3000; i++) {
        PrefixChecker g(rng);
        run(g, State{.held_out = i % 10 == 0});
        choices += g.choices;
        bad += g.bad;
        if (g.bad) example = g.example;
    }
    check("prefix_free", bad == 0 && choices >= 3000, "%zu of %zu choices are ambiguous %s", bad, choices,
          example.c_str());
}

// Sums have a closed form: ln of the number of alternatives at each of the four choices, averaged.
void test_sum_entropy() {
    double mean = 0;
    size_t out[3] = {}, all[3] = {};
    for (int a = 100; a < 1000; a++) {
        std::vector<double> partners;
        for (int op = 0; op < 3; op++) {
            double count = 0;
            int first = op == 2 ? 2 : 100, end = op == 0 ? 1000 : op == 1 ? a : 10;
            for (int b = first; b < end; b++) {
                all[op]++;
                if (held_out(op, a, b)) out[op]++;
                else count++;
            }
            if (count > 0) partners.push_back(count);
        }
        double h = 0;
        for (double n : partners) h += std::log(n) / partners.size();
        mean += (std::log(7.0 / 3) + std::log(900) + std::log(partners.size()) + h) / 900;
    }
    Population p = population()[SUM];
    check("sum_closed_form", std::fabs(p.nats / p.p - mean) <= 1e-8, "%.10f, from the states %.10f", mean,
          p.nats / p.p);
    for (int op = 0; op < 3; op++) {
        double share = (double)out[op] / all[op];
        check("held_out_share", share >= 0.015 && share <= 0.025, "%c  %.4f of %zu pairs", OPS[op], share, all[op]);
    }
    size_t apart = 0;
    for (int a = 100; a < 1000; a++)
        for (int b = 100; b < a; b++) apart += held_out(0, a, b) != held_out(0, b, a);
    check("held_out_sides", apart == 0, "%zu pairs where only one of a + b and b + a is held out", apart);

    Rng rng(13);
    size_t wrong = 0, kept = 0;
    for (int i = 0; i < 500; i++) {
        Document d = sample_document(rng, true), back;
        Sum s;
        Error e = error_of([&] { back = parse_document(d.text, true); });
        if (e.exit_code || back.nats != d.nats || !read_sum(d.text, s) || !held_out(s.index(), s.a, s.b)) wrong++;
        if (!answer_is_right(d)) wrong++;
        if (!rejected(d.text)) kept++;
    }
    check("held_out_questions", wrong == 0 && kept == 0, "%zu of 500 wrong, %zu would pass as training text", wrong,
          kept);
}

// population() follows one word of each list for all of them. On short lists it can follow all.
void test_words() {
    auto names = NAMES, places = PLACES, objects = OBJECTS, colours = COLOURS;
    NAMES.resize(4), PLACES.resize(5), OBJECTS.resize(4), COLOURS.resize(2);
    auto one = population(), every = population(true);
    for (int k : {STORY, LIST})
        check("words_interchangeable", std::fabs(one[k].nats - every[k].nats) <= 1e-8 &&
              std::fabs(one[k].p - every[k].p) <= 1e-9, "%s  %.10f, following every word %.10f", KINDS[k],
              one[k].nats / one[k].p, every[k].nats / every[k].p);

    // No document can be longer than one with all words as long as the longest of their list.
    NAMES = names, PLACES = places, OBJECTS = objects, COLOURS = colours;
    for (auto* list : {&NAMES, &PLACES, &OBJECTS, &COLOURS}) {
        size_t most = 0;
        for (const auto& word : *list) most = std::max(most, word.size());
        for (auto& word : *list) word.resize(most, '_');
    }
    auto padded = population();
    for (int k = 0; k < KINDS_END; k++)
        check("longest_possible", padded[k].longest <= 255, "%s  at most %zu bytes", KINDS[k], padded[k].longest);
    NAMES = names, PLACES = places, OBJECTS = objects, COLOURS = colours;
}

// ---- files ----------------------------------------------------------------------------------------------------------
std::string read_all(const std::string& path) {
    std::string bytes;
    FILE* f = fopen(path.c_str(), "rb");
    if (!f) return "";
    for (int c; (c = fgetc(f)) != EOF;) bytes += (char)c;
    fclose(f);
    return bytes;
}

template <class T> T at(const std::string& bytes, size_t offset) {
    T value = 0;
    if (offset + sizeof(T) <= bytes.size()) memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

// The documents of a shard of bytes; none if its layout is wrong.
std::vector<std::string> documents_of(const std::string& shard, const Tokenizer& tokenizer) {
    size_t n = at<int32_t>(shard, 8);
    if (at<int32_t>(shard, 0) != 20240520 || at<int32_t>(shard, 4) != 1 || shard.size() != 1024 + 2 * n) return {};
    std::vector<std::string> documents;
    for (size_t i = 0; i < n; i++) {
        int id = at<uint16_t>(shard, 1024 + 2 * i);
        if (id == tokenizer.eot()) documents.emplace_back();
        else if (documents.empty() || id >= tokenizer.vocab()) return {};
        else documents.back() += tokenizer.decode(id);
    }
    return documents;
}

double number_after(const std::string& json, const std::string& key) {
    size_t i = json.find("\"" + key + "\": ");
    return i == std::string::npos ? NAN : atof(json.c_str() + i + key.size() + 4);
}

void test_files() {
    std::string root = (fs::temp_directory_path() / ("test_corpus." + std::to_string(getpid()))).string();
    auto write = [&](const char* name, uint64_t seed) {
        Settings s;
        s.out = root + "/" + name;
        s.documents = 1500, s.sft = 100, s.ranked = 600, s.prompts = 700;
        s.seed = seed;
        write_corpus(s);
        return s.out;
    };
    std::string a = write("a", 1), b = write("b", 1), c = write("c", 2);
    size_t differ = 0, same = 0;
    const std::vector<std::string> examples = {"answers.bin", "sft_train.bin", "sft_val.bin", "ranked_train.bin",
                                               "ranked_val.bin", "prompts.bin"};
    std::vector<std::string> files = {"train.bin", "val.bin", "val.json", "merges.txt", "vocab.json"};
    files.insert(files.end(), examples.begin(), examples.end());
    for (const std::string& file : files) {
        std::string bytes = read_all(a + "/" + file);
        differ += bytes.empty() || bytes != read_all(b + "/" + file);
        same += bytes == read_all(c + "/" + file);
    }
    check("same_seed_same_bytes", differ == 0, "%zu of 11 files differ", differ);
    check("other_seed_other_bytes", same == 2, "%zu of 11 files are the same, the tokenizer's 2 expected", same);

    Tokenizer tokenizer = Tokenizer::from_merges(read_all(a + "/merges.txt"), "merges.txt");
    std::vector<std::string> train = documents_of(read_all(a + "/train.bin"), tokenizer);
    std::vector<std::string> val = documents_of(read_all(a + "/val.bin"), tokenizer);
    check("shards", train.size() == 1500 && val.size() == 512, "%zu and %zu documents", train.size(), val.size());
    size_t bad = 0, shared = 0, tokens = 0, bytes = 0;
    double nats = 0;
    std::set<std::string> known(val.begin(), val.end());
    for (const std::string& text : train) {
        bad += error_of([&] { parse_document(text); }).exit_code != 0;
        shared += known.count(text);
    }
    for (const std::string& text : val) {
        bad += error_of([&] { nats += parse_document(text).nats; }).exit_code != 0;
        tokens += text.size() + 1;
        bytes += text.size();
    }
    check("shard_texts", bad == 0 && shared == 0, "%zu do not parse, %zu are in both shards", bad, shared);

    std::string json = read_all(a + "/val.json");
    double floor = number_after(json, "floor");
    check("floor", std::fabs(floor - nats / tokens) <= 1e-6 && number_after(json, "tokens") == (double)tokens &&
          number_after(json, "bytes") == (double)bytes && number_after(json, "documents") == 512,
          "%.6f in val.json, %.6f from val.bin", floor, nats / tokens);
    double ladder[] = {number_after(json, "uniform"), number_after(json, "byte frequencies (order 0)"),
                       number_after(json, "order-2"), number_after(json, "order-4"), floor};
    bool falls = true;
    for (int i = 0; i < 4; i++) falls = falls && ladder[i] > ladder[i + 1];
    check("ladder", falls, "%.3f > %.3f > %.3f > %.3f > %.3f", ladder[0], ladder[1], ladder[2], ladder[3], ladder[4]);

    std::string answers = read_all(a + "/answers.bin");
    size_t E = at<int32_t>(answers, 8), n = at<uint64_t>(answers, 24), data = 1024 + 8 * (2 * E + 1);
    bool layout = at<int32_t>(answers, 0) == 20261121 && at<int32_t>(answers, 4) == 1 && E == 512 + 128 &&
                  at<int32_t>(answers, 12) == 2 && at<int32_t>(answers, 16) == 2 && answers.size() == data + 2 * n &&
                  at<uint64_t>(answers, 1024) == 0 && at<uint64_t>(answers, data - 8) == n;
    check("answers_layout", layout, "%zu questions, %zu tokens, %zu bytes", E, n, answers.size());
    auto segment = [&](size_t i) {
        std::string text;
        for (uint64_t k = at<uint64_t>(answers, 1024 + 8 * i); k < at<uint64_t>(answers, 1024 + 8 * (i + 1)); k++)
            text += tokenizer.decode(at<uint16_t>(answers, data + 2 * k));
        return text;
    };
    size_t wrong = 0;
    for (size_t i = 0; layout && i < E; i++) {
        std::string prompt = segment(2 * i), response = segment(2 * i + 1);
        bool good = prompt.ends_with("\nA:") && response.starts_with(" ") && response.ends_with(".");
        if (i < val.size()) wrong += !good || prompt + response != val[i];
        else wrong += !good || error_of([&] { parse_document(prompt + response, true); }).exit_code != 0;
    }
    check("answers_texts", layout && wrong == 0, "%zu of %zu are not as they should be", wrong, E);

    // Files of later stages: every document is the program's and in one file only, every answer right, every rejected
    // one a corruption from the table.
    std::set<std::string> prompts, texts(train.begin(), train.end());
    texts.insert(val.begin(), val.end());
    std::map<std::string, int> corruptions;
    for (const std::string& file : examples) {
        const Examples e(a + "/" + file, tokenizer.vocab(), 256);
        const size_t count = file == "answers.bin" ? 640 : file == "sft_train.bin" ? 100
                           : file == "ranked_train.bin" ? 600 : file == "prompts.bin" ? 700 : 256;
        size_t twice = 0, learned = 0, wrong_here = 0;
        for (size_t i = 0; i < e.size(); i++) {
            std::string part[3];
            for (size_t k = 0; k < e.count(i); k++) for (int id : e.of(i)[k]) part[k] += tokenizer.decode(id);
            twice += !prompts.insert(part[0]).second;
            if (file == "answers.bin") continue;
            learned += texts.count(part[0] + part[1]);
            Document d;
            const int code = error_of([&] { d = parse_document(part[0] + part[1]); }).exit_code;
            wrong_here += code != 0 || !answer_is_right(d);
            if (e.segments == 3) corruptions[corruption(part[0], part[1], part[2])]++;
        }
        const int segments = file[0] == 'r' ? 3 : 2;
        check("stage_files", e.size() == count && e.segments == segments && twice + learned + wrong_here == 0,
              "%s: %zu examples; %zu prompts known, %zu of documents in train.bin or val.bin, %zu wrong", file.c_str(),
              e.size(), twice, learned, wrong_here);
    }
    std::string counts;
    for (auto& [name, times] : corruptions)
        counts += format("%s%s %d", counts.empty() ? "" : ", ", name.c_str(), times);
    check("corruptions", corruptions.size() == 13 && !corruptions.count(""), "%s", counts.c_str());

    // Other tokens are the same texts, and the same nats divided by fewer of them.
    Settings s;
    write_file(root + "/own.txt", "#version: 0.2\n\u0120 t\nh e\n\u0120t he\n");
    s.documents = 1500;
    s.sft = 100;
    s.ranked = 600;
    s.prompts = 700;
    s.out = root + "/own";
    s.tokenizer = root + "/own.txt";
    write_corpus(s);
    const Tokenizer own = Tokenizer::load(s.out);
    const std::string own_json = read_all(s.out + "/val.json");
    const double ratio = tokens / number_after(own_json, "tokens");
    const Examples theirs(a + "/ranked_val.bin", tokenizer.vocab(), 256);
    const Examples ours(s.out + "/ranked_val.bin", own.vocab(), 256);
    auto text = [](const Tokenizer& t, const std::vector<int>& ids) {
        std::string all;
        for (int id : ids) all += t.decode(id);
        return all;
    };
    size_t others = ours.size() != theirs.size();
    for (size_t i = 0; i < ours.size() && !others; i++)
        for (size_t k = 0; k < 3; k++) others += text(own, ours.of(i)[k]) != text(tokenizer, theirs.of(i)[k]);
    check("other_tokens", documents_of(read_all(s.out + "/val.bin"), own) == val && others == 0 && ratio > 1.05 &&
          std::fabs(number_after(own_json, "floor") / ratio - floor) <= 2e-6 &&
          std::fabs(number_after(own_json, "order-2") / ratio - ladder[2]) <= 2e-4 &&
          std::fabs(number_after(own_json, "uniform") - std::log(260)) <= 1e-4,
          "%.3f bytes a token, floor %.6f, order-2 %.4f, uniform %.4f; %zu examples differ", ratio,
          number_after(own_json, "floor"), number_after(own_json, "order-2"), number_after(own_json, "uniform"),
          others);

    write_file(root + "/file", "in the way");
    s.out = root + "/file/deeper";
    Error e = error_of([&] { write_corpus(s); });
    check("unwritable", e.exit_code == 1, "%s", e.line.c_str());
    fs::remove_all(root);
}

void test_options() {
    std::vector<std::vector<std::string>> bad = {
        {}, {"--out"}, {"--out", ""}, {"--out", "x", "--nonsense", "1"}, {"--out", "x", "--out", "y"}, {"data"},
        {"--out", "x", "--seed"}, {"--out", "x", "--seed", "1e3"}, {"--out", "x", "--seed", "-1"},
        {"--out", "x", "--documents", "0"}, {"--out", "x", "--documents", "10k"},
        {"--out", "x", "--sft", "0"}, {"--out", "x", "--ranked", "-1"}, {"--out", "x", "--prompts", "1000001"},
        {"--out", "x", "--documents", "1000001"}, {"--out", "x", "--documents", "99999999999999999999999999"}};
    for (auto& words : bad) {
        std::string shown = "corpus";
        for (const std::string& word : words) shown += " " + word;
        Error e = error_of([&] { settings(words); });
        check("bad_options", e.exit_code == 2 && !e.line.empty() && e.line.find('\n') == std::string::npos, "%s -> %s",
              shown.c_str(), e.line.c_str());
    }
    Settings s;
    Error e = error_of([&] { s = settings({"--seed", "7", "--out", "x", "--documents", "12"}); });
    check("good_options", e.exit_code == 0 && s.out == "x" && s.seed == 7 && s.documents == 12, "seed 7, 12 documents");
}

int test_all() {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    test_samples();
    test_prefixes();
    test_sum_entropy();
    test_words();
    test_files();
    test_options();
    printf("%s: %d checks failed\n", failures ? "FAIL" : "ok", failures);
    return failures != 0;
}

}    // namespace corpus

int main() {
    return corpus::test_all();
}
