/* dev/host/texts.h -- prompts, and what becomes of the texts that a model draws to them: what ends one, which of
   several is taken, how it is written; and completions among which it chooses. */
#pragma once
#include "reports.h"
#include "rows.h"
#include "tokenizer.h"
#include <functional>
#include <optional>

inline std::string show_token(int id, const Tokenizer* tokenizer, bool first) {
    return tokenizer ? std::string(tokenizer->decode(id)) : format(first ? "%d" : " %d", id);
}
inline std::string show_tokens(const std::vector<int>& ids, const Tokenizer* tokenizer) {
    std::string s;
    for (int id : ids) s += show_token(id, tokenizer, s.empty());
    return s;
}

// Of multiple choice questions, from the sum of the log-probabilities of each completion's tokens.
inline ChoiceScores choice_scores(const ChoiceRows& rows, const std::vector<double>& sums, const Tokenizer* tokenizer) {
    ChoiceScores scores;
    for (size_t i = 0; i < sums.size(); i++) {
        const auto& [example, k] = rows.of[i];
        const auto& [label, context, completions] = rows.choices.examples[example];
        const std::string text = tokenizer ? show_tokens(completions[k], tokenizer) : "";
        scores.add(k, completions.size(), label, sums[i], completions[k].size(), text.size() - text.starts_with(' '));
    }
    return scores;
}

inline void write_out(const std::string& s) {
    fwrite(s.data(), 1, s.size(), stdout);
    fflush(stdout);
}

struct Prompt {
    std::vector<int> tokens;
    long long most;                          // tokens to write
    uint64_t stream = 0;                     // of random numbers
    std::string text = {};                   // as it is shown; ids are apart
    std::string shown(const Tokenizer* tokenizer) const { return text + (tokenizer || text.empty() ? "" : " "); }
};
// Of a shard's prompt, to be answered within a context of T.
inline Prompt prompt_of(const std::vector<int>& ids, int eot, int T, long long most = LLONG_MAX, uint64_t stream = 0) {
    Prompt p = {{eot}, std::min(most, T - 1 - (long long)ids.size()), stream};
    p.tokens.insert(p.tokens.end(), ids.begin(), ids.end());
    return p;
}
// The numbers of prompts in groups of at most n, the shortest prompts first: those of a group are about as long.
inline std::vector<std::vector<int>> by_length(const std::vector<Prompt>& prompts, size_t n) {
    std::vector<int> order(prompts.size());
    std::iota(order.begin(), order.end(), 0);
    auto shorter = [&](int a, int b) { return prompts[a].tokens.size() < prompts[b].tokens.size(); };
    std::stable_sort(order.begin(), order.end(), shorter);
    std::vector<std::vector<int>> groups;
    for (size_t i = 0; i < order.size(); i += n)
        groups.emplace_back(&order[i], &order[i] + std::min(n, order.size() - i));
    return groups;
}
// n copies of each prompt, with random numbers of their own, as many prompts at a time as make about `most` texts.
inline std::vector<std::vector<Prompt>> repeated(const std::vector<Prompt>& prompts, size_t n, size_t most) {
    const size_t at_once = std::max<size_t>(1, most / n);
    std::vector<std::vector<Prompt>> groups;
    for (size_t i = 0; i < prompts.size() * n; i++) {
        if (i % (at_once * n) == 0) groups.emplace_back();
        groups.back().push_back(prompts[i / n]);
        groups.back().back().stream = i;
    }
    return groups;
}
using Adjust = std::function<void(int, float*)>;             // of a prompt's number, and the logits of its next token

/* The texts to some prompts as they grow side by side, a row each, all of one length: at first that of the shortest
   prompt; longer ones are then fed a token a step, while the others are drawn. When the context is full, its later half
   is the new prompt. past: tokens of each row that the model holds in its cache. */
struct Growing {
    const std::vector<Prompt>& prompts;
    const std::vector<int>& number;          // of each row's prompt, the shortest first
    const uint64_t seed;
    size_t at;                               // tokens of each text, with those that the context has lost
    int past = 0;
    std::vector<std::vector<int>> rows = {};
    std::vector<long long> left = {};        // tokens to draw yet
    std::vector<Rng> rng = {};

    Growing(const std::vector<Prompt>& prompts, const std::vector<int>& number, uint64_t seed)
        : prompts(prompts), number(number), seed(seed), at(prompts[number[0]].tokens.size()) {
        for (int i : number) {
            const Prompt& p = prompts[i];
            rows.emplace_back(p.tokens.begin(), p.tokens.begin() + at);
            left.push_back(p.most);
            rng.emplace_back(seed, p.stream + 1);
        }
    }
    // What the first text begins with is in the cache; its last two are fed again: one alone goes on from a draw.
    void skip(const std::vector<int>& held) {
        const auto begin = rows[0].begin(), end = rows[0].end() - std::min<size_t>(2, at);
        past = std::mismatch(begin, end, held.begin(), held.end()).first - begin;
    }
    bool go_on() const { return std::any_of(left.begin(), left.end(), [](long long n) { return n > 0; }); }
    std::vector<int> unseen(int context) {   // by the model: the tokens to feed, as many of each row
        if ((int)rows[0].size() > context) {
            for (auto& row : rows) row.erase(row.begin(), row.end() - std::max(1, context / 2));
            past = 0;
        }
        std::vector<int> x;
        for (auto& row : rows) x.insert(x.end(), row.begin() + past, row.end());
        return x;
    }
    bool draws(int b) const { return at >= prompts[number[b]].tokens.size() && left[b] > 0; }
    bool all_draw() const { return at >= prompts[number.back()].tokens.size(); }         // or have ended
    // A token for each row, of which those count that are no prompt's; emit(i, token) says whether text i goes on.
    template <typename F> void add(const std::vector<int>& drawn, int eot, F emit) {
        past = rows[0].size();
        for (size_t b = 0; b < rows.size(); b++) {
            const Prompt& p = prompts[number[b]];
            const bool fed = at < p.tokens.size();
            rows[b].push_back(fed ? p.tokens[at] : drawn[b]);
            if (fed) rng[b] = Rng(seed, p.stream + 1);
            else if (left[b] > 0) left[b] = emit(number[b], drawn[b]) && drawn[b] != eot ? left[b] - 1 : 0;
        }
        at++;
    }
    std::vector<int> cached() const { return {rows[0].begin(), rows[0].begin() + past}; }
};

// Strings before whose first occurrence a text ends.
struct Stops {
    std::vector<std::string> strings;

    // Adds a token's bytes; false if the text ends in them. Of a string that it has held already it would have ended.
    bool add(std::string& text, std::string_view bytes) const {
        const size_t before = text.size();
        size_t end = text.npos;
        text += bytes;
        for (const std::string& s : strings) end = std::min(end, text.find(s, before - std::min(before, s.size() - 1)));
        if (end != text.npos) text.resize(end);
        return end == text.npos;
    }
    // Bytes of a text that goes on, without those which may begin a stop string.
    size_t certain(std::string_view text) const {
        size_t held = 0;
        for (std::string_view s : strings)
            for (size_t n = std::min(s.size() - 1, text.size()); n > held; n--)
                if (text.ends_with(s.substr(0, n))) held = n;
        return text.size() - held;
    }
};

// The answer of a text: what stands behind the last MARK, without blanks around it; none where there is no mark.
inline std::optional<std::string> answer_in(const std::string& text, const std::string& mark) {
    const size_t at = text.rfind(mark), blank = text.npos;
    if (!mark.empty() && at == text.npos) return {};
    const std::string answer = mark.empty() ? text : text.substr(at + mark.size());
    const size_t first = answer.find_first_not_of(" \t\r\n"), last = answer.find_last_not_of(" \t\r\n");
    return first == blank ? "" : answer.substr(first, last + 1 - first);
}

enum class Finish { LENGTH, END, STOP };      // all tokens are written; an end of text; a stop string
inline constexpr const char* FINISHES[] = {"length", "end", "stop"};

// What is drawn to a prompt, token by token.
struct Text {
    Prompt prompt;
    std::vector<int> tokens = {};            // an end of text, and those of a stop string, are among them
    std::string response = {};               // neither is in it
    Finish finish = Finish::LENGTH;
    size_t certain = 0;                      // bytes of the response that no stop string will take back
    std::vector<double> logprobs = {};       // of prompt and tokens, without the first
    double reward = 0;                       // the greatest is the best

    bool add(int token, int eot, const Tokenizer* tokenizer, const Stops& stops) {       // whether the text goes on
        tokens.push_back(token);
        if (token == eot) finish = Finish::END;
        else if (!stops.add(response, show_token(token, tokenizer, response.empty()))) finish = Finish::STOP;
        certain = stops.certain(response);
        return finish == Finish::LENGTH;
    }
    std::vector<int> all() const {
        std::vector<int> v = prompt.tokens;
        v.insert(v.end(), tokens.begin(), tokens.end());
        return v;
    }
    bool ended() const { return finish == Finish::END; }
    std::vector<int> said() const {          // without an end of text
        return {tokens.begin(), tokens.end() - ended()};
    }
    Row row(int) const {                     // behind whose last token an end of text may follow
        Row r = {all(), {}};
        if (ended()) r.x.pop_back();
        return r;
    }
    // Whether it is what was wanted or, with a mark, ends in the same answer.
    bool is_right(const std::vector<int>& wanted, const Tokenizer* tokenizer, const std::string* mark) const {
        const std::string words = show_tokens(wanted, tokenizer);
        if (mark) return answer_in(response, *mark) && answer_in(response, *mark) == answer_in(words, *mark);
        return finish == Finish::STOP ? response == words : ended() && said() == wanted;
    }
    double mean_logprob() const {            // of the tokens drawn
        const double sum = std::accumulate(logprobs.end() - tokens.size(), logprobs.end(), 0.0);
        return tokens.empty() ? -INFINITY : sum / tokens.size();
    }
    void show(size_t& shown) const {         // what has become certain
        write_out(response.substr(shown, certain - shown));
        shown = certain;
    }
};

/* Rows that score all tokens of a text but the first, each behind what its model saw of the text when it drew it: if T
   tokens are exceeded, the later half of them begins another row, as in generate(). */
inline std::vector<Row> text_rows(const std::vector<int>& tokens, int T) {
    std::vector<Row> rows;
    for (size_t begin = 0, scored = 1; scored < tokens.size();) {
        const auto x = tokens.begin() + begin;
        const size_t n = std::min<size_t>(T, tokens.size() - 1 - begin);
        Row& row = rows.emplace_back(Row{{x, x + n}, {x + 1, x + n + 1}});
        std::fill_n(row.y.begin(), scored - begin - 1, -1);
        scored = begin + n + 1;
        begin = scored - std::max(1, T / 2);
    }
    return rows;
}

/* Self-consistency: the first of n texts with the answer that most of them have, of several such answers the one that
   came first; if none has one, the first text.
   source   Wang et al. 2022, arXiv:2203.11171 */
inline size_t elected(const Text* texts, size_t n, const std::string& mark) {
    std::map<std::string, size_t> votes;
    size_t first = 0, most = 0;
    for (size_t i = 0; i < n; i++) if (const auto answer = answer_in(texts[i].response, mark)) votes[*answer]++;
    for (size_t i = 0; i < n; i++) {
        const auto answer = answer_in(texts[i].response, mark);
        if (!answer || votes[*answer] <= most) continue;
        first = i;
        most = votes[*answer];
    }
    return first;
}
inline size_t best_of(const Text* texts, size_t n) {
    return std::max_element(texts, texts + n, [](auto& a, auto& b) { return a.reward < b.reward; }) - texts;
}

// By what one of several texts is taken, or any.
inline std::string taken_by(long long vote, long long best_of, const std::string& reward) {
    if (best_of) return format("best of %lld by %s", best_of, reward.empty() ? "log-probability" : reward.c_str());
    return vote ? format("vote of %lld", vote) : "with --pattern";
}
// What stands above a text where there are several.
inline std::string heading(size_t k, size_t prompts, size_t i, size_t texts) {
    std::string s = prompts > 1 ? format("--- prompt %zu", k + 1) : "";
    if (texts > 1) s += format("%ssample %zu", s.empty() ? "--- " : ", ", i + 1);
    return s.empty() ? s : s + "\n";
}
// A text as a line of JSON Lines. Bytes that are not UTF-8 become U+FFFD; the tokens tell which they were.
inline std::string json_line(const Text& t) {
    auto list = [](const char* name, size_t from, size_t to, auto item) {
        std::string s = format(", \"%s\": [", name);
        for (size_t i = from; i < to; i++) s += (i > from ? ", " : "") + item(i);
        return s + "]";
    };
    const std::vector<int> all = t.all();
    const size_t n = t.prompt.tokens.size();
    auto id = [&](size_t i) { return std::to_string(all[i]); };
    auto logprob = [&](size_t i) { return i ? format("%.6f", t.logprobs[i - 1]) : "null"; };
    return "{\"prompt\": " + json_quote(valid_utf8(t.prompt.text)) +
           ", \"response\": " + json_quote(valid_utf8(t.response)) +
           ", \"finish\": \"" + FINISHES[(int)t.finish] + "\"" +
           list("tokens", n, all.size(), id) + list("logprobs", n, all.size(), logprob) +
           list("prompt_tokens", 0, n, id) + list("prompt_logprobs", 0, n, logprob) + "}\n";
}

// Writes texts to prompts, so many to each: as JSON Lines, or under headings, or as it grows if there is but one.
struct TextWriter {
    const Tokenizer* tokenizer;
    const size_t prompts;
    const bool json, grows;
    size_t shown = 0;                        // bytes of the one that grows

    TextWriter(const Tokenizer* tokenizer, const std::vector<Prompt>& all, size_t each, bool json)
        : tokenizer(tokenizer), prompts(all.size()), json(json), grows(!json && prompts == 1 && each == 1) {
        if (grows) write_out(all[0].shown(tokenizer));
    }
    bool show(const Text& t) {               // whether it goes on
        if (grows) t.show(shown);
        return true;
    }
    void put(size_t k, const Text* t, size_t n) {            // n texts to prompt k
        for (size_t i = 0; i < n; i++) {
            if (json) write_out(json_line(t[i]));
            else if (grows) write_out("\n");
            else write_out(heading(k, prompts, i, n) + t[i].prompt.shown(tokenizer) + t[i].response + "\n");
        }
    }
};

// f(line, its place) for the lines of a text that are not blank.
template <typename F> void each_line(const std::string& path, std::string_view text, F f) {
    text = without_mark(text);
    for (size_t number = 1; !text.empty(); number++) {
        std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line.find_first_not_of(" \t") != line.npos) f(line, format("%s: line %zu", shown(path), number));
    }
}
inline std::string member(const Json& object, const char* name, const std::string& where) {
    if (object[name].kind != Json::STRING) die("%s: expected an object with a string \"%s\"", where.c_str(), name);
    return object[name].string;
}

// A prompt as it is given: a text, or the turns of a chat.
struct Asked {
    std::string text;
    Turns turns = {};                        // if there are some, the text is none
    bool operator==(const Asked&) const = default;
};

// Prompts: JSON Lines with "prompt", or "messages", as its name says or its first line is; else every line is one.
inline std::vector<Asked> read_prompts(const std::string& path) {
    const Input file(path);
    check_text(path, file.text());
    bool json = false;
    for (const char* ending : {".jsonl", ".ndjson", ".jsonlines"}) json |= path.ends_with(ending);
    std::vector<Asked> prompts;
    each_line(path, file.text(), [&](std::string_view line, const std::string& where) {
        Json object;
        if (prompts.empty() || json)
            try {
                object = parse_json(line, where);
            } catch (const Error&) { if (json) throw; }
        const char* chat = object["messages"] ? "messages" : object["prompt"].kind == Json::ARRAY ? "prompt" : nullptr;
        json |= chat || object["prompt"];
        if (chat) prompts.push_back({"", read_asked(object, chat, where)});
        else prompts.push_back({json ? member(object, "prompt", where) : std::string(line)});
    });
    if (prompts.empty()) die("%s: holds no prompts", shown(path));
    return prompts;
}

// Of which at most one is given: a file of prompts, a file that is one, or the prompt itself.
inline std::vector<Asked> given_prompts(const std::string& prompt, const std::string& prompt_file,
                                        const std::string& prompts) {
    if (!prompts.empty()) return read_prompts(prompts);
    return {{prompt_file.empty() ? prompt : read_prompt(prompt_file)}};
}

// Examples to stand before a prompt: JSON Lines of a prompt and a response, each then followed by a line break.
inline std::vector<std::string> read_shots(const std::string& path) {
    const Input file(path);
    check_text(path, file.text());
    std::vector<std::string> shots;
    each_line(path, file.text(), [&](std::string_view line, const std::string& where) {
        const Json example = parse_json(line, where);
        shots.push_back(member(example, "prompt", where) + member(example, "response", where) + "\n");
    });
    if (shots.empty()) die("%s: holds no examples", shown(path));
    return shots;
}

// Makes prompts of texts.
struct Prompter {
    const Tokenizer* tokenizer;
    std::string model;
    int V, T, eot;
    long long most;
    bool after_end;                          // a prompt begins with an end of text
    std::vector<int> beginning = {};         // the prompt that an empty text is
    std::string examples = {};               // a file, and the tokens of each
    std::vector<std::vector<int>> shots = {};
    size_t left_out = 0, longest = 0;        // of the examples, where that were most; tokens of a prompt
    bool bare = false;                       // a prompt is no turn of a chat, though the model has a template of them

    void take_examples(const std::string& path) {
        examples = path;
        for (const std::string& shot : read_shots(path)) shots.push_back(tokenizer->encode(shot));
    }
    // The last examples that `room` tokens can hold.
    void put_examples(std::vector<int>& prompt, long long room) {
        size_t n = shots.size();
        while (n > 0 && room >= (long long)shots[n - 1].size()) {
            room -= shots[--n].size();
            prompt.insert(prompt.begin(), shots[n].begin(), shots[n].end());
        }
        left_out = std::max(left_out, n);
    }
    void put_examples(Examples& answers) {                   // before all their prompts
        for (size_t i = 0; i < answers.size(); i++)
            put_examples(answers.tokens[answers.first[i]], T - answers.length(i));
    }
    void tell() const {
        if (bare)
            warn("%s: has a template of chats, and a bare text is no turn of one: it is continued as it stands; "
                 "--prompts takes turns, {\"prompt\": [{\"role\": \"user\", \"content\": \"...\"}]} a line, and chat "
                 "asks", model.c_str());
        if (left_out)
            warn("--examples %s: the first %zu of %zu do not fit the context beside a prompt and its answer",
                 examples.c_str(), left_out, shots.size());
    }
    bool opens_none(const std::string& text) const {         // of the turns in which the model learned to answer
        const std::string& form = tokenizer->chat_template;
        return !form.empty() && text.find(ChatTemplate(form).opening(ASSISTANT)) == text.npos;
    }
    std::vector<int> dialogue(Turns turns) const {           // up to where the assistant is to answer
        if (!tokenizer || tokenizer->chat_template.empty())
            die("%s: has no template of chats, so a prompt cannot be a list of turns; give it as a text",
                model.c_str());
        size_t open;
        std::vector<int> ids;
        Tokenizer::Scratch scratch;
        turns.push_back({ASSISTANT, ""});
        tokenizer->encode_prompt(ChatTemplate(tokenizer->chat_template).exchanges(turns, open), ids, scratch);
        return ids;
    }
    Prompt prompt(const Asked& asked) {
        const auto& [text, turns] = asked;
        Prompt p = {{}, most, 0, text};
        std::vector<int>& ids = p.tokens;
        if (!turns.empty()) {
            ids = dialogue(turns);
            p.text = show_tokens(ids, tokenizer);
        } else if (tokenizer) {
            ids = tokenizer->encode(text);
            bare |= !text.empty() && after_end && opens_none(text);
        } else if (!read_ids(text, V, ids)) {
            die_usage("--prompt %s: %s has no tokenizer, so the prompt must be token ids below %d", text.c_str(),
                      model.c_str(), V);
        }
        put_examples(ids, T - 1 - (long long)ids.size() - std::min<long long>(most, T / 4));
        if (ids.empty() && !beginning.empty()) {
            ids = beginning;
            p.text = show_tokens({ids.begin() + (ids[0] == eot), ids.end()}, tokenizer);
        } else if (after_end || !turns.empty()) ids.insert(ids.begin(), eot);
        if (ids.empty()) ids.push_back(eot >= 0 ? eot : 0);
        if (ids.size() > (size_t)T) {
            warn("a prompt of %zu tokens: the context takes %d, so only the last of them count", ids.size(), T);
            ids.erase(ids.begin(), ids.end() - T);
        }
        longest = std::max(longest, ids.size());
        return p;
    }
};

// An answer that was drawn to a prompt.
struct Answer {
    const std::vector<int>* example;         // the prompt, and the shard's answer if it has one
    std::vector<int> tokens = {};
    bool ended = false;                      // by itself: the end of text is one of its targets
    double reward = 0;
    bool add(int token, int eot) {           // whether it goes on
        ended = token == eot;
        if (!ended) tokens.push_back(token);
        return !ended;
    }
    Row row(int eot) const {
        Row r = turn_row(eot, example[0], tokens);
        if (!ended) r.y.back() = -1;
        return r;
    }
};
// What n answers add to the mean reward of so many.
inline double mean_reward(const Answer* answers, size_t n, size_t of) {
    return std::accumulate(answers, answers + n, 0.0, [&](double sum, auto& a) { return sum + a.reward / of; });
}
