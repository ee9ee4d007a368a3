/* dev/host/reports.h -- what is printed of a model that was measured. It knows numbers alone. */
#pragma once
#include "files.h"
#include <array>
#include <cmath>

using Measures = std::vector<std::pair<const char*, double>>;            // names, and values

// For the log: a validation's loss, and what else was measured.
inline Fields fields_of(double loss, const Measures& measures) {
    Fields fields = {{"val_loss", json_number(loss)}};
    for (auto& [name, value] : measures) fields.push_back({name, json_number(value)});
    return fields;
}

struct Validation {
    double nats = 0;
    size_t tokens = 0, bytes = 0;            // bytes: of the targets' text; an end of text has none
    double loss() const { return nats / tokens; }
    double bits() const { return bytes ? nats / std::log(2.0) / bytes : NAN; }           // a byte
    std::string line() const {
        const std::string known = bytes ? format("%.6f", bits()) : "unknown";
        return format("val loss %.6f nats/token, %s bits/byte, %zu tokens", loss(), known.c_str(), tokens);
    }
    Measures measures(double floor) const { return {{"bits_per_byte", bits()}, {"floor", floor}}; }
};

// The mean reward of the answers to prompts: the more, the better.
struct AnswersRewarded {
    double reward;
    size_t prompts;
    double loss() const { return 0 - reward; }               // no -0
    std::string line() const { return format("val reward %.6f, %zu prompts", reward, prompts); }
    Measures measures(double) const { return {{"reward", reward}}; }
};

// Sums by their names, in the order in which these came first.
struct Notes {
    Measures sums = {};
    void add(const char* name, double amount) {
        const auto it = std::find_if(sums.begin(), sums.end(), [&](auto& sum) { return !strcmp(sum.first, name); });
        if (it == sums.end()) sums.push_back({name, amount});
        else it->second += amount;
    }
};

// How fast a step was: for its line, and for the log.
struct Speed {
    std::string text;
    Fields log;
};

// What is told of a step.
struct StepReport {
    long long step;
    double loss, norm, lr, ms, tokens, seen;                 // tokens: of this step; seen: of all so far
    Speed speed;
    std::string text(const Notes& notes) const {             // what stands behind tokens a second
        std::string s = speed.text;
        for (auto& [name, value] : notes.sums) s += format("  %s %.4g", name, value);
        return s;
    }
    Fields log(const Notes& notes) const {
        Fields fields = {{"loss", json_number(loss)}, {"norm", json_number(norm)}, {"lr", json_number(lr)},
                         {"ms", format("%.3f", ms)}, {"tokens_per_s", format("%.1f", tokens / ms * 1e3)},
                         {"tokens", format("%.0f", seen)}};
        fields.insert(fields.end(), speed.log.begin(), speed.log.end());
        for (auto& [name, value] : notes.sums) fields.push_back({name, json_number(value)});
        return fields;
    }
};

/* How far a reward model tells the better answers of preferences: loss, the share of pairs that it orders rightly, the
   mean margin, and its calibration: by how much that share differs from the probability, sigmoid of the margin, that it
   gives its own order, over 10 bins of that probability (Guo et al. 2017, arXiv:1706.04599, eq. 3). */
struct Preferences {
    double nats = 0, margins = 0, expected[10] = {}, correct[10] = {};
    size_t pairs = 0, right = 0;
    void add(double margin, double loss) {
        const double sure = 1 / (1 + std::exp(-std::abs(margin)));
        const int bin = std::min(9, int(20 * (sure - 0.5)));
        nats += loss;
        margins += margin;
        pairs++;
        right += margin > 0;
        expected[bin] += sure;
        correct[bin] += margin > 0;
    }
    double loss() const { return nats / pairs; }
    double accuracy() const { return 1.0 * right / pairs; }
    double margin() const { return margins / pairs; }
    double calibration_error() const {
        double sum = 0;
        for (int k = 0; k < 10; k++) sum += std::abs(expected[k] - correct[k]);
        return sum / pairs;
    }
    std::string line() const {
        return format("val loss %.6f nats/pair, accuracy %.4f, margin %.3f, calibration error %.3f, %zu pairs", loss(),
                      accuracy(), margin(), calibration_error(), pairs);
    }
    Measures measures(double) const {
        return {{"accuracy", accuracy()}, {"margin", margin()}, {"calibration_error", calibration_error()}};
    }
};
/* A model whose context is full is a Markov chain over its V^T contexts: token v leads from (a, b, ..) to (b, .., v).
   Prints that chain as a Graphviz digraph, each arrow with its token and probability, which logits_of(context, out)
   gives. */
template <typename F> void print_chain(int V, int T, F logits_of) {
    const double contexts = std::pow(V, T);
    if (contexts * V > 65536)
        die("graph: %d^%d contexts of %d arrows each are too many to draw; at most 65536 arrows", V, T, V);
    std::vector<float> logits(V);
    printf("digraph gpt {\n  rankdir=LR;\n  node [shape=box];\n");
    std::vector<int> x(T);                                   // of a state: its number, written in base V
    auto name = [&](int state) {
        std::string s;
        for (int t = T - 1; t >= 0; t--) {
            x[t] = state % V;
            state /= V;
        }
        for (int token : x) s += (V > 10 && !s.empty()) ? format(" %d", token) : format("%d", token);
        return s;
    };
    for (int state = 0; state < (int)contexts; state++) {
        const std::string from = name(state);
        logits_of(x, logits);
        double maximum = *std::max_element(logits.begin(), logits.end()), sum = 0;
        for (float z : logits) sum += std::exp(z - maximum);
        for (int v = 0; v < V; v++)
            printf("  \"%s\" -> \"%s\" [label=\"%d (%.0f%%)\"];\n", from.c_str(),
                   name((state * V + v) % (int)contexts).c_str(), v, 100 * std::exp(logits[v] - maximum) / sum);
    }
    printf("}\n");
}

/* How often the right completion of a question has the maximum log-probability: as a sum (acc); per token (llm.c's
   acc_norm); per byte of its text without the space before it (lm-evaluation-harness's acc_norm counts characters: the
   same in ASCII). */
struct ChoiceScores {
    int questions = 0, chosen[3] = {};
    std::array<int, 3> right = {};
    double best[3] = {};
    // Completion k of n.
    void add(size_t k, size_t n, int label, double sum, size_t tokens, size_t bytes) {
        const double lengths[] = {1, (double)tokens, std::max(1.0, (double)bytes)};
        for (int r = 0; r < 3; r++) {
            if (k == 0 || sum / lengths[r] > best[r]) {
                best[r] = sum / lengths[r];
                chosen[r] = (int)k;
            }
            if (k + 1 == n) right[r] += chosen[r] == label;
        }
        questions += k + 1 == n;
    }
    std::string line(bool bytes) const {
        const char* const names[] = {"acc", ", acc_norm", ", acc_norm a byte"};
        std::string s;
        for (int r = 0; r < (bytes ? 3 : 2); r++)
            s += format("%s %.4f (%d of %d)", names[r], 1.0 * right[r] / questions, right[r], questions);
        return s;
    }
};
