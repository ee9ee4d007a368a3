/* dev/host/rows.h -- rows of tokens with their targets, from token shards and from example shards. */
#pragma once
#include "runs.h"

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
    r.x.insert(r.x.end(), context.begin(), context.end()), r.x.insert(r.x.end(), response.begin(), response.end());
    r.y.insert(r.y.end(), context.size(), -1), r.y.insert(r.y.end(), response.begin(), response.end());
    r.y.push_back(eot);
}

// Rows of whole examples, none of them cut.
struct ExampleRows {
    const Examples examples;
    std::vector<std::vector<int>> packs;     // the examples of each row
    const int eot;

    ExampleRows(const std::string& path, const Wanted& w) : examples(path, w.V, w.T, true), eot(w.eot) {
        examples.need(("--stage " + w.stage).c_str(), w.kinds);
        int room = 0;
        for (size_t e = 0; e < examples.size(); e++) {
            const int length = examples.length(e);
            if (!w.side_by_side || length > room) packs.emplace_back(), room = w.T;
            packs.back().push_back(e), room -= length;
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

// The files, checked, and what tells them from others.
struct Source {
    std::vector<std::unique_ptr<Shard>> shards;
    std::vector<std::unique_ptr<ExampleRows>> examples;      // or these
    Identity identity;

    explicit Source(const Wanted& w) {
        for (const std::string& path : glob_files(w.pattern, w.option.c_str())) {
            if (w.kinds.size()) {
                examples.push_back(std::make_unique<ExampleRows>(path, w)), identity.add(Mapped(path));
                continue;
            }
            shards.push_back(std::make_unique<Shard>(path, w.raw)), shards.back()->check_tokens(w.V);
            identity.add(shards.back()->file);
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

// What a text like the shard's begins with: an end of text; or, where a million tokens hold no other than at their start, as
// in a book, the first ones, which a model of it has seen.
inline std::vector<int> beginning_of(const Shard& shard, int eot, int T) {
    for (size_t i = 1; i < std::min<size_t>(shard.count, 1 << 20); i++) if ((int)shard[i] == eot) return {eot};
    std::vector<int> first;
    for (size_t i = 0; i < std::min<size_t>(shard.count, std::clamp(T / 2, 1, 16)); i++) first.push_back(shard[i]);
    return first;
}

/* Validation rows, in the order of the files.
   packed      consecutive windows that do not overlap; the last one may be shorter
   documents   one row a document: inputs end-of-text, d1..dn, targets d1..dn, end-of-text
   sliding     as in training */
struct ValidationRows : Source {
    struct Span { int file; size_t begin; int length; };     // inputs begin .. begin + length - 1; or row `begin` of examples
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
        if (spans.empty()) die("%s: too short to validate on: no window of inputs and targets in it", w.pattern.c_str());
        if (limit && spans.size() > limit) spans.resize(limit);
    }
    Row row(size_t i, int answer = 1) const {
        const Span& s = spans[i];
        return shards.empty() ? examples[s.file]->row(s.begin, answer) : row_of(*shards[s.file], s.begin, s.length, sliding, eot);
    }

private:
    void split_documents(int k, int T) {
        const Shard& s = *shards[k];
        const char* name = s.file.path.c_str();
        if (s.count && (int)s[0] != eot)
            die("%s: does not begin with end-of-text (%d), as a shard of whole documents does", name, eot);
        for (size_t begin = 0, end; begin < s.count; begin = end) {
            for (end = begin + 1; end < s.count && (int)s[end] != eot;) end++;
            if (end - begin > (size_t)T)
                die("%s: token %zu: a document of %zu tokens does not fit the context of %d; raise --context", name,
                    begin, end - begin, T);
            spans.push_back({k, begin, (int)(end - begin)});
        }
    }
};
