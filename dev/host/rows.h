/* dev/host/rows.h -- rows of tokens with their targets, from token shards and from example shards. */
#pragma once
#include "runs.h"
#include <numeric>
#include <optional>

// What to make rows of: files, and how they are read.
struct Wanted {
    std::string option, pattern, rows, stage;                // rows: packed, documents or sliding
    std::vector<int> kinds;                  // of Examples; none: token shards
    bool raw, side_by_side;                  // several examples in a row, as many as fit it in their order
    int V, T, eot;
};

// One row to train on or to score. A target of -1 counts nowhere.
struct Row { std::vector<int> x, y; };

// Adds to a row: end of text, context, response; its targets are the response and the end of text behind it.
inline void add_turn(Row& r, int eot, const std::vector<int>& context, const std::vector<int>& response) {
    r.x.push_back(eot);
    r.x.insert(r.x.end(), context.begin(), context.end());
    r.x.insert(r.x.end(), response.begin(), response.end());
    r.y.insert(r.y.end(), context.size(), -1);
    r.y.insert(r.y.end(), response.begin(), response.end());
    r.y.push_back(eot);
}

inline Row turn_row(int eot, const std::vector<int>& context, const std::vector<int>& response) {
    Row r;
    add_turn(r, eot, context, response);
    return r;
}

// The completions of multiple choice questions, a row each, without an end of text.
struct ChoiceRows {
    const Choices& choices;
    std::vector<std::pair<int, int>> of = {};                // example, completion
    explicit ChoiceRows(const Choices& choices) : choices(choices) {
        for (size_t e = 0; e < choices.examples.size(); e++)
            for (size_t k = 0; k < choices.examples[e].completions.size(); k++) of.push_back({(int)e, (int)k});
    }
    Row row(size_t i) const {
        const Choices::Example& e = choices.examples[of[i].first];
        Row row = turn_row(e.context[0], {e.context.begin() + 1, e.context.end()}, e.completions[of[i].second]);
        row.y.back() = -1;
        return row;
    }
};

inline auto rows_of(const auto& rows) {      // as functions that take rows ask for them
    return [&rows](size_t i) { return rows.row(i); };
}

// A padded batch: rows shorter than the longest end in inputs whose target is -1, which counts nowhere.
struct Batch {
    int B, T = 0;
    std::vector<int> x, y;                   // (B,T)
    std::vector<int> last;                   // (B): where a row ends
    std::vector<float> weight, old, ref;     // (B,T): PPO's; see Objective in train_gpt.cpp
    explicit Batch(const std::vector<Row>& rows) : B(rows.size()) {
        for (const Row& r : rows) T = std::max(T, (int)r.x.size());
        x.resize((size_t)B * T, 0);
        y.resize((size_t)B * T, -1);
        for (int b = 0; b < B; b++) {
            std::copy(rows[b].x.begin(), rows[b].x.end(), x.begin() + (size_t)b * T);
            std::copy(rows[b].y.begin(), rows[b].y.end(), y.begin() + (size_t)b * T);
            last.push_back((int)rows[b].x.size() - 1);
        }
    }
    size_t targets() const { return y.size() - std::count(y.begin(), y.end(), -1); }
    static Batch nothing() { return Batch({Row{{0}, {-1}}}); }           // one token without a target
};

template <typename F> double sum_over(const std::vector<Batch>& batches, F f) {
    return std::accumulate(batches.begin(), batches.end(), 0.0, [&](double sum, const Batch& b) { return sum + f(b); });
}

// f(i, rows i, i + 1, ... as a batch) for all n rows, at most so many at a time, or every `ranks`th of these batches.
template <typename RowAt, typename F>
void each_batch(size_t n, size_t most, RowAt row_at, F f, int rank = 0, int ranks = 1) {
    for (size_t i = rank * most; i < n; i += ranks * most) {
        std::vector<Row> rows;
        for (size_t k = i; k < std::min(n, i + most); k++) rows.push_back(row_at(k));
        f(i, Batch(rows));
    }
}

// Rows of whole examples, none of them cut.
struct ExampleRows {
    Examples examples;
    std::vector<std::vector<int>> packs;     // the examples of each row
    const int eot, T;
    const bool side_by_side;

    ExampleRows(const std::string& path, const Wanted& w)
        : examples(path, w.V, w.T, true), eot(w.eot), T(w.T), side_by_side(w.side_by_side) {
        examples.need(("--stage " + w.stage).c_str(), w.kinds);
        if (std::count(w.kinds.begin(), w.kinds.end(), 1)) examples.answer_last(w.eot);  // who needs but prompts
        std::vector<int> order(examples.size());
        std::iota(order.begin(), order.end(), 0);
        pack(order);
    }
    void pack(const std::vector<int>& order) {
        packs.clear();
        int room = 0;
        for (int e : order) {
            const int length = examples.length(e);
            if (!side_by_side || length > room) {
                packs.emplace_back();
                room = T;
            }
            packs.back().push_back(e);
            room -= length;
        }
    }
    Row row(size_t i, int answer = 1) const {                // answer 2: the rejected one
        Row r;
        for (int e : packs[i])
            for (size_t k = 0; k + 1 < examples.count(e); k += examples.segments == 3 ? 3 : 2)
                add_turn(r, eot, examples.of(e)[k], examples.of(e)[k + answer]);
        return r;
    }
    const std::vector<int>* example(size_t i) const { return examples.of(packs[i][0]); }
};

// What a text like the shard's begins with: an end of text; or, where a million tokens hold no other than at their
// start, as in a book, the first ones, which a model of it has seen.
inline std::vector<int> beginning_of(const Shard& shard, int eot, int T) {
    for (size_t i = 1; i < std::min<size_t>(shard.count, 1 << 20); i++) if ((int)shard[i] == eot) return {eot};
    std::vector<int> first;
    for (size_t i = 0; i < std::min<size_t>(shard.count, std::clamp(T / 2, 1, 16)); i++) first.push_back(shard[i]);
    return first;
}

// The files, checked, and what tells them from others.
struct Source {
    std::vector<std::unique_ptr<Shard>> shards;
    std::vector<std::unique_ptr<ExampleRows>> examples;      // or these
    Identity identity;

    explicit Source(const Wanted& w) {
        for (const std::string& path : glob_files(w.pattern, w.option.c_str())) {
            if (w.kinds.size()) {
                examples.push_back(std::make_unique<ExampleRows>(path, w));
                identity.add(Mapped(path));
                continue;
            }
            shards.push_back(std::make_unique<Shard>(path, w.raw));
            shards.back()->check_tokens(w.V);
            identity.add(shards.back()->file);
        }
    }
    // What a text like these begins with.
    std::vector<int> beginning(int eot, int T) const {
        if (!shards.empty()) return beginning_of(*shards[0], eot, T);
        std::vector<int> first = {eot};
        const std::vector<int>& prompt = examples[0]->example(0)[0];
        first.insert(first.end(), prompt.begin(), prompt.end());
        return first;
    }
    // For those who draw answers of so many tokens to the prompts, and may compare them with the files' own.
    void check_prompts(long long answer, bool compared) const {
        for (auto& rows : examples) {
            if (compared)
                rows->examples.need("--reward exact", {2}, "; or give --reward MODEL or --reward-command PROGRAM");
            for (size_t i = 0; i < rows->packs.size(); i++) {
                const size_t n = rows->example(i)[0].size() + 1 + std::max(answer, 1LL);
                if (n > (size_t)rows->T)
                    die("%s: example %zu: its prompt and an answer of --response-tokens make %zu tokens, and the "
                        "context has %d", rows->examples.path.c_str(), rows->examples.number[i], n, rows->T);
            }
        }
    }
};

// n inputs from `at` on, each with the token after it as target, or only the last; after the shard's end comes eot.
inline Row row_of(const Shard& shard, size_t at, int n, bool last_only, int eot) {
    Row r{std::vector<int>(n), std::vector<int>(n, -1)};
    for (int t = 0; t < n; t++) {
        r.x[t] = shard[at + t];
        if (!last_only || t == n - 1) r.y[t] = at + t + 1 < shard.count ? (int)shard[at + t + 1] : eot;
    }
    return r;
}

/* The training data as an endless sequence of windows, number g = 0, 1, ...: every epoch visits the shards in an order
   shuffled by (seed, epoch), and the windows of a shard in an order shuffled by (seed, epoch, shard). Any g can be
   asked for, so the position in the data is one number.
   packed    windows of T tokens side by side, all targets
   sliding   every window of T tokens, one token apart, of which only the last target counts
   In the later stages a window is a row of examples, which have other neighbours in every epoch, so that these differ
   in length. */
struct Windows : Source {
    std::vector<size_t> windows;             // of each file
    size_t total = 0;                        // of an epoch, the first
    const int T;
    const bool sliding;
    const uint64_t seed;

    Windows(const Wanted& w, uint64_t seed) : Source(w), T(w.T), sliding(w.rows == "sliding"), seed(seed) {
        size_t tokens = 0;
        for (auto& e : examples) windows.push_back(e->packs.size());
        for (auto& s : shards) {
            const size_t n = s->count;
            windows.push_back(n > (size_t)T ? (n - T - 1) / (sliding ? 1 : T) + 1 : 0);
            tokens += n;
        }
        for (size_t n : windows) {
            if (n > UINT32_MAX) die("%s: more than 2^32 windows in a file; split it", w.pattern.c_str());
            total += n;
        }
        if (total == 0)
            die("%s: %zu tokens in %zu shards, but one window takes %d (the context and one); lower --context",
                w.pattern.c_str(), tokens, shards.size(), T + 1);
    }
    // Where window g is: its file, and its place there.
    std::pair<int, size_t> find(size_t g) {
        while (begins.back() <= g) next_epoch();
        const size_t e = std::upper_bound(begins.begin(), begins.end(), g) - begins.begin() - 1;
        open_epoch(e);
        size_t in_epoch = g - begins[e], i = 0, before = 0;
        while (in_epoch >= before + windows[order[i]]) before += windows[order[i++]];
        open_shard(order[i]);
        return {open, window_order[in_epoch - before]};
    }
    // The batches of n windows from g on that a rank has, each of so many windows, whose answers 1 .. `answers` are its
    // rows. All ranks have as many batches; those at the end may hold nothing.
    std::vector<Batch> batches(size_t g, size_t n, size_t each, int answers, size_t rank, size_t ranks) {
        std::vector<Batch> made;
        const size_t last = g + n;
        for (; g < last; g += each * ranks) {
            std::vector<Row> rows;
            const size_t first = g + each * rank, end = std::min(first + each, last);
            for (int answer = 1; answer <= answers; answer++)
                for (size_t k = first; k < end; k++) rows.push_back(row(k, answer));
            made.push_back(rows.empty() ? Batch::nothing() : Batch(rows));
        }
        return made;
    }
    size_t end_of(double epochs) {           // where so many passes end
        while (begins.size() < epochs + 1) next_epoch();
        const size_t whole = epochs, first = begins[whole];
        return std::max<size_t>(1, first + std::llround((epochs - whole) * (begins[std::ceil(epochs)] - first)));
    }
    Row row(size_t g, int answer = 1) {
        const auto [file, i] = find(g);
        if (shards.empty()) return examples[file]->row(i, answer);
        return row_of(*shards[file], i * (sliding ? 1 : T), T, sliding, -1);
    }

private:
    size_t epoch = SIZE_MAX;
    int open = -1;                           // the shard that window_order is of
    std::vector<size_t> begins = {0};        // of epochs, as far as they are known
    std::vector<int> order;
    std::vector<uint32_t> window_order;

    uint64_t stream(uint64_t a, uint64_t b) { return mix64(a * 0x9E3779B97F4A7C15ull + b + 1) | 1; }
    void open_epoch(size_t e) {
        if (e == epoch) return;
        epoch = e;
        open = -1;
        order.resize(windows.size());
        std::iota(order.begin(), order.end(), 0);
        Rng(seed, stream(e, 0)).shuffle(order);
        for (size_t k = 0; k < examples.size(); k++) {
            std::vector<int> shuffled(examples[k]->examples.size());
            std::iota(shuffled.begin(), shuffled.end(), 0);
            Rng(seed, stream(e, ~k)).shuffle(shuffled);
            examples[k]->pack(shuffled);
            windows[k] = examples[k]->packs.size();
        }
    }
    void next_epoch() {
        open_epoch(begins.size() - 1);
        begins.push_back(std::accumulate(windows.begin(), windows.end(), begins.back()));
    }
    void open_shard(int i) {
        if (i == open) return;
        open = i;
        window_order.resize(windows[i]);
        std::iota(window_order.begin(), window_order.end(), 0);
        Rng(seed, stream(epoch, i + 1)).shuffle(window_order);
    }
};

/* Validation rows, in the order of the files.
   packed      consecutive windows that do not overlap; the last one may be shorter
   documents   one row a document: inputs end-of-text, d1..dn, targets d1..dn, end-of-text
   sliding     as in training */
struct ValidationRows : Source {
    struct Span { int file; size_t begin; int length; };     // `length` inputs from `begin` on; or that row of examples
    std::vector<Span> spans;
    const int eot;
    const bool sliding;

    ValidationRows(const Wanted& w, size_t limit) : Source(w), eot(w.eot), sliding(w.rows == "sliding") {
        for (int k = 0; k < (int)examples.size(); k++)
            for (size_t i = 0; i < examples[k]->packs.size(); i++) spans.push_back({k, i, 0});
        for (int k = 0; k < (int)shards.size(); k++) {
            const size_t n = shards[k]->count;
            if (w.rows == "documents") split_documents(k, w.T);
            else for (size_t i = 0; i + 1 < n; i += sliding ? 1 : w.T) {
                if ((sliding && i + w.T >= n) || (limit && spans.size() == limit)) break;
                spans.push_back({k, i, (int)std::min<size_t>(w.T, n - 1 - i)});
            }
        }
        if (spans.empty())
            die("%s: too short to validate on: no window of inputs and targets in it", w.pattern.c_str());
        if (limit && spans.size() > limit) spans.resize(limit);
    }
    Row row(size_t i, int answer = 1) const {
        const Span& s = spans[i];
        if (shards.empty()) return examples[s.file]->row(s.begin, answer);
        return row_of(*shards[s.file], s.begin, s.length, sliding, eot);
    }

private:
    void split_documents(int k, int T) {
        const Shard& s = *shards[k];
        const char* name = s.file.path.c_str();
        if (s.count && (int)s[0] != eot)
            die("%s: does not begin with end-of-text (%d), as a shard of whole documents does", name, eot);
        for (size_t begin = 0, end; begin < s.count; begin = end) {
            end = begin + 1;
            while (end < s.count && (int)s[end] != eot) end++;
            if (end - begin > (size_t)T)
                die("%s: token %zu: a document of %zu tokens does not fit the context of %d; raise --context", name,
                    begin, end - begin, T);
            spans.push_back({k, begin, (int)(end - begin)});
        }
    }
};

// The corpus tool writes the exact entropy of validation shard X.bin, in nats a token of document rows, to X.json.
inline double known_floor(const std::string& val) {
    const std::vector<std::string> paths = glob_files(val, "--val");
    const std::string path = fs::path(paths[0]).replace_extension(".json").string();
    if (paths.size() != 1 || !exists(path)) return NAN;
    const Json j = parse_json(read_file(path, 1 << 20), path);
    return j["floor"].kind == Json::NUMBER ? j["floor"].number : NAN;
}
// Tells of validation data in the training data.
inline void tell_shared(const std::string& train_files, const std::string& val_files) {
    for (const std::string& train : glob_files(train_files, "--train"))
        for (const std::string& path : glob_files(val_files, "--val"))
            if (fs::equivalent(train, path)) warn("--val %s: is in --train, too", path.c_str());
}

// What a model is measured on, read and checked before there is a model: validation rows, at most `limit` if that is
// not 0, multiple choice questions, and prompts with their answers, of a dialogue the last. train: files that it should
// have no part in, or "".
struct HeldOut {
    std::optional<ValidationRows> val;
    std::optional<Choices> choices;
    std::optional<Examples> answers;
    std::map<std::string, std::string> data = {};            // what tells it from other data
    double floor = NAN;

    HeldOut(const Wanted& w, size_t limit, const std::string& train, const std::string& questions,
            const std::string& answered) {
        const bool documents = w.rows == "documents";
        if (documents && w.eot < 0) die_usage("--rows documents: needs a tokenizer, to know the end of text");
        if (!answered.empty() && w.eot < 0) die_usage("--answers: needs a tokenizer, to know the end of text");
        if (!w.pattern.empty()) {
            if (!train.empty()) tell_shared(train, w.pattern);
            val.emplace(w, limit);
            data["val"] = val->identity.text();
            if (documents) floor = known_floor(w.pattern);
        }
        if (!questions.empty()) choices.emplace(questions, w.V, w.T);
        if (answered.empty()) return;
        if (w.stage == "reward") die_usage("--answers: a model of --stage reward writes none; --val orders pairs");
        answers.emplace(answered, w.V, w.T);
        answers->need("--answers", {0, 2, 3});
        answers->answer_last(w.eot);
        data["answers"] = Identity(answered).text();
    }
};
