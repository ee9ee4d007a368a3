/* dev/host/checkpoints.h -- what a run leaves to go on from. A checkpoint is a directory that Hugging Face tools open
   as it is: config.json, model.safetensors, tokenizer files; beside them optimizer.safetensors and state.json, which
   makes it whole: it is the last file written, and holds size and checksum of all others and of itself. Everything is
   written under another name, synced, then renamed. Of a model it knows a list of tensors. */
#pragma once
#include "comm.h"
#include "options.h"
#include "tokenizer.h"
#include "weights.h"
#include <future>
#include <optional>
#include <set>

// A tensor as files hold it. Of get(out, from, n) this process may have some ranges only: those it writes; of a tensor
// that a group of ranks shares they count what is this rank's. set(in) takes all of it.
struct Stored {
    std::string name;
    std::vector<size_t> shape;
    std::function<void(float*, size_t, size_t)> get;
    std::function<void(const float*)> set;
    bool present = true;                     // an absent one need not be in a file; it is zero there, and written so,
    std::string same_as = "";                // or it is another tensor again, and not written
    std::optional<std::vector<Range>> mine = {};             // what this process writes, if not all
    Slice slice = {};                        // where that stands
    std::vector<Range> ranges() const { return mine ? *mine : std::vector<Range>{{0, count()}}; }
    size_t count() const {
        size_t n = 1;
        for (size_t d : shape) n *= d;
        return n;
    }
};

// Gives tensors the numbers that a file has for them. All must be there, of these shapes and finite, and no others.
inline void load_tensors(const std::vector<Stored>& tensors, const std::map<std::string, View>& views,
                         const std::string& path) {
    std::set<std::string> known;
    std::vector<float> memory, memory_of_twin;
    for (const Stored& t : tensors) {
        const char *where = path.c_str(), *name = t.name.c_str();
        auto it = views.find(t.name);
        known.insert(t.name);
        if (it == views.end() && !t.present) continue;
        if (it == views.end()) die("%s: tensor '%s' is missing", where, name);
        const View& v = it->second;
        if (v.shape != t.shape || !v.bytes()) {
            const std::string file = path.ends_with(".index.json") ? directory_of(path) + "/PART" : path;
            std::string step;
            if (v.shape == t.shape && v.dtype.starts_with('F'))
                step = usable("; make it float32: python3 -c \"import safetensors.torch as s; s.save_file({k: v.float()"
                              ".clone() for k, v in s.load_file('FILE').items()}, 'FILE')\"", file);
            die("%s: tensor '%s' is %s%s, expected F32, BF16 or F16 of %s%s", where, name,
                v.dtype.substr(0, 20).c_str(), show_shape(v.shape).c_str(), show_shape(t.shape).c_str(), step.c_str());
        }
        const float* const values = v.read(memory);
        const size_t count = t.count(), cols = t.shape.back();
        float zero = 0;                                      // 0 x, or NaN where x is not finite
        #pragma omp parallel for simd schedule(static) reduction(+ : zero)
        for (size_t k = 0; k < count; k++) zero += 0 * values[k];
        if (!(zero == 0)) {
            auto bad = [](float x) { return !std::isfinite(x); };
            const size_t k = std::find_if(values, values + count, bad) - values;
            const bool table = cols < count;
            const std::string at = table ? format("row %zu, column %zu", k / cols, k % cols) : format("number %zu", k);
            die("%s: tensor '%s': %s is %g", where, name, at.c_str(), std::isnan(values[k]) ? NAN : values[k]);
        }
        if (t.present) {
            t.set(values);
        } else if (t.same_as.empty()) {
            if (std::any_of(values, values + count, [](float x) { return x != 0; }))
                die("%s: tensor '%s' is not zero, but the config says bias false", where, name);
        } else {
            const View& twin = views.at(t.same_as);
            if (twin.shape != v.shape || !std::equal(values, values + count, twin.read(memory_of_twin)))
                die("%s: %s differs from %s, but the config says tie_word_embeddings", where, name, t.same_as.c_str());
        }
    }
    for (auto& [name, view] : views)
        if (!known.count(name))
            die("%s: tensor '%s' has no place in a GPT-2 of this shape", path.c_str(), name.c_str());
}

// The first gradient that is not finite in the order of backward, last tensor first: it spreads to all that follow.
inline std::string first_not_finite(const std::vector<Stored>& gradients) {
    std::vector<float> g;
    for (auto t = gradients.rbegin(); t != gradients.rend(); t++) {
        g.assign(t->count(), 0);
        t->get(g.data(), 0, g.size());
        for (float f : g) if (!std::isfinite(f)) return t->name;
    }
    return "";
}

// The same where ranks have parts of them.
inline std::string not_finite_of_all(const std::vector<Stored>& gradients) {
    for (const std::string& name : world().texts(first_not_finite(gradients))) if (!name.empty()) return name;
    return "the norm, but no gradient,";
}

// The head of a file of float32 safetensors; `at` becomes where in the file each tensor begins, and where the last one
// ends.
inline std::string safetensors_head(const std::vector<Stored>& tensors, std::vector<size_t>& at) {
    std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
    at = {0};
    for (const Stored& t : tensors) {
        at.push_back(at.back() + (t.same_as.empty() ? 4 * t.count() : 0));
        if (!t.same_as.empty()) continue;
        const std::string shape = show_shape(t.shape);
        header += format(",\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", t.name.c_str(),
                         shape.substr(1, shape.size() - 2).c_str(), at.end()[-2], at.back());
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    for (size_t& offset : at) offset += 8 + length;
    return std::string((const char*)&length, 8) + header;
}
// Creates such a file, with zeros for numbers; then each process puts in those that it has.
inline void begin_tensors(const std::string& path, const std::vector<Stored>& tensors) {
    std::vector<size_t> at;
    Writer w(path);
    w.put(safetensors_head(tensors, at));
    if (ftruncate(w.fd, at.back()) != 0) die("%s: cannot write: %s", path.c_str(), strerror(errno));
}
inline void fill_tensors(const std::string& path, const std::vector<Stored>& tensors) {
    std::vector<size_t> at;
    safetensors_head(tensors, at);
    Writer w(path, false);
    std::vector<float> values;
    for (size_t i = 0; i < tensors.size(); i++) {
        if (!tensors[i].same_as.empty()) continue;
        for (const Range& mine : tensors[i].ranges()) {
            values.resize(mine.n);
            tensors[i].get(values.data(), mine.at, mine.n);
            tensors[i].slice.each(mine, [&](size_t k, size_t place, size_t n) {
                w.seek(at[i] + 4 * place);
                w.put(&values[k - mine.at], 4 * n);
            });
        }
    }
    w.finish();
}
inline void save_tensors(const std::string& path, const std::vector<Stored>& tensors) {
    begin_tensors(path, tensors);
    fill_tensors(path, tensors);
}

// The tensors as they are now, while the model itself goes on. All threads touch the pages of a copy before one fills
// them.
inline std::vector<Stored> copied(std::vector<Stored> tensors) {
    for (Stored& t : tensors) {
        if (!t.present) continue;
        std::map<size_t, std::shared_ptr<Buffer<float>>> memory;
        for (const Range& mine : t.ranges()) {
            memory[mine.at] = std::make_shared<Buffer<float>>(mine.n);
            t.get(memory[mine.at]->data(), mine.at, mine.n);
        }
        t.get = [memory](float* out, size_t from, size_t n) { std::copy_n(memory.at(from)->data(), n, out); };
    }
    return tensors;
}

// Where a run stands, apart from tensors. Orders and samples are functions of seed and step, so nothing else is random.
struct Position {
    long long step = 0;
    size_t window = 0;                       // the next one of the training data
    size_t windows = 0;                      // of an epoch
    double lowest = INFINITY;                // validation loss so far,
    long long lowest_step = -1;              // and where it was
    std::map<std::string, std::string> data = {};            // what the run was given to read, by option
    std::vector<int> beginning = {};         // what a sample without a prompt continues
    std::string unit = "";                   // of the processor, in which bf16 products are made; or none

    std::string json() const {
        std::string s = format("  \"step\": %lld,\n  \"window\": %zu,\n  \"windows\": %zu,\n", step, window, windows);
        std::string tokens, files;
        if (lowest_step >= 0)
            s += format("  \"lowest\": {\"step\": %lld, \"val_loss\": %s},\n", lowest_step, show(lowest).c_str());
        for (int token : beginning) tokens += (tokens.empty() ? "" : ", ") + std::to_string(token);
        s += "  \"beginning\": [" + tokens + "],\n";
        if (!unit.empty()) s += "  \"unit\": " + json_quote(unit) + ",\n";
        for (auto& [name, identity] : data)
            files += (files.empty() ? "" : ", ") + json_quote(name) + ": " + json_quote(identity);
        return s + "  \"data\": {" + files + "},\n";
    }
    Position() = default;
    Position(const Json& state, const std::string& where) {
        if (!state["step"] || !state["windows"] || !state["options"])
            die("%s: 'step', 'windows' or 'options' is missing", where.c_str());
        step = state["step"].number;
        window = state["window"].number;
        windows = state["windows"].number;
        for (auto& [name, identity] : state["data"].members) data[name] = identity.string;
        unit = state["unit"].string;
        for (const Json& token : state["beginning"].items) beginning.push_back(token.number);
        if (const Json& l = state["lowest"]) {
            lowest = l["val_loss"].number;
            lowest_step = l["step"].number;
        }
    }
    void found(double loss) {                // by a validation
        if (!(loss < lowest)) return;
        lowest = loss;
        lowest_step = step;
    }
    // Dies if the run in `out`, which is to end before window `end`, is beyond it.
    void check_window(size_t end, size_t windows_now, double epochs, const std::string& out) const {
        if (window > end)
            die_usage("--epochs %s: the run in %s has seen %zu windows already, and an epoch has %zu",
                      show(epochs).c_str(), out.c_str(), window, windows_now);
    }
    using Data = std::map<std::string, std::string>;
    // A program that rewards is known by its command alone, which may have been mended.
    void take_command(const std::string& was, const std::string& now) {
        if (was.empty() || now.empty() || was == now) return;
        warn("--reward-command: from step %lld on %s rewards, before it did %s", step + 1,
             shell_quote(now).c_str(), shell_quote(was).c_str());
        if (data.count("reward")) data["reward"] = now;
    }
    // Dies if the run in `out` cannot go on from here with what it is given now: to read, from path_of(the option),
    // windows of an epoch, and steps in all.
    template <typename F>
    void check(Data now, F path_of, size_t windows_now, long long steps, const std::string& out) const {
        const char* run = out.c_str();
        for (auto& [name, was] : data)
            if (now[name] != was)
                die("--%s %s: %s, but the run in %s was given other data: %s; --init %s --out with another directory "
                    "begins a new run from its weights", name.c_str(), path_of(name).c_str(), now[name].c_str(), run,
                    was.c_str(), run);
        if (windows && windows != windows_now)
            die("%s: %zu windows, but the run in %s was trained on %zu; are these the same shards?",
                path_of("train").c_str(), windows_now, run, windows);
        if (step > steps) die_usage("--steps %lld: the run in %s has done %lld already", steps, run, step);
    }
    // Goes on with that, if it can.
    template <typename F>
    void take(const Data& now, F path_of, size_t windows_now, long long steps, const std::string& out) {
        check(now, path_of, windows_now, steps, out);
        data = now;
        windows = windows_now;
    }
};

// What a run goes on from: its newest whole checkpoint or, before there is one, the options that its log began with.
struct Past {
    std::string checkpoint, where;           // "", if there is none; the file that has the options
    Json options = {};                       // null, if no file has them
    Position position = {};
    bool data_known = false;                 // its identity

    explicit Past(const std::string& run)
        : checkpoint(newest_whole(run)), where(checkpoint.empty() ? run + "/log.jsonl" : checkpoint + "/state.json") {
        if (checkpoint.empty()) {
            const std::string log = exists(where) ? read_file(where) : "";
            const size_t end = log.find('\n');
            if (end != log.npos) options = parse_json(log.substr(0, end), where)["options"];
        } else {
            const Json state = verify_checkpoint(checkpoint);
            options = state["options"];
            data_known = bool(state["data"]);
            position = Position(state, where);
            auto of = [&](const char* name) { return strtod(options[name].string.c_str(), nullptr); };
            if (!state["window"])                            // older ones; the last step of an epoch may be partial
                position.window = std::min(position.step * std::floor(of("tokens_per_step") / of("context")),
                    of("steps") ? INFINITY : std::round(std::max(1.0, of("epochs") * position.windows)));
        }
        if (options.kind != Json::OBJECT) options = {};
    }
};

// Tells of a model of another stage than it is used as: one that rewards texts, or one that writes them.
inline void tell_stage(const char* option, const std::string& given, bool rewards) {
    std::error_code none;
    const std::string path = is_checkpoint(given) || !fs::is_directory(given, none) ? given : newest_whole(given);
    if (!is_checkpoint(path)) return;
    const std::string stage = read_json(path + "/state.json")["options"]["stage"].string;
    if (stage.empty() || rewards == (stage == "reward")) return;
    warn("%s %s: is of --stage %s: %s", option, given.c_str(), stage.c_str(),
         rewards ? "how likely a text ends there is no reward" : "it says how good a text is, and writes none");
}

// What a program computes, some logits of a model that it draws, is kept in state.json. Another machine sums up in
// another order, which makes 1e-6.
inline void check_fingerprint(const std::vector<float>& computed, const std::string& checkpoint) {
    const std::string path = checkpoint + "/state.json";
    if (!is_checkpoint(checkpoint)) return;
    const Json state = parse_json(read_file(path), path), &wrote = state["fingerprint"];
    if (!wrote)
        return warn("%s: has no fingerprint, so it is not known whether this program computes what its writer did",
                    path.c_str());
    double most = 0, off = 0;
    for (float f : computed) most = std::max(most, std::abs((double)f));
    bool same = wrote.items.size() == computed.size();
    for (size_t i = 0; i < computed.size() && same; i++) {
        off = std::abs(computed[i] - wrote.items[i].number) / most;
        same = off <= 1e-5;                                  // NaN is not
    }
    if (!same)
        die("%s: this program computes another function of these weights than the one that wrote them (a logit of a "
            "test model is off by %.1e of the largest): use that program, or give the path of model.safetensors itself",
            path.c_str(), off);
}

// All that one checkpoint is made of.
struct Checkpoint {
    std::string out;                         // the run's directory
    size_t keep;                             // so many checkpoints stay in it
    Position position;
    std::string options, config;             // JSON
    bool adapter;                            // weights and config are LoRA's alone
    std::vector<float> fingerprint;          // of what the program computes
    const Tokenizer* tokenizer;              // or null
    std::vector<Stored> weights, moments;

    size_t bytes() const {                   // of what this process writes
        size_t n = 0;
        for (auto* list : {&weights, &moments})
            for (const Stored& t : *list) for (const Range& mine : t.ranges()) n += 4 * mine.n;
        return n;
    }
    std::string dir() const { return out + format("/step_%08lld", position.step); }
    std::string partial() const { return dir() + ".partial"; }
    std::string weights_path() const {
        return partial() + (adapter ? "/adapter_model.safetensors" : "/model.safetensors");
    }
    std::string moments_path() const { return partial() + "/optimizer.safetensors"; }
    std::string done_path(int rank) const { return partial() + format("/rank_%d.done", rank); }

    // Of several processes the first creates the directory, before any writes there.
    void begin() const {
        std::error_code error;
        if (!world().first()) return;
        fs::remove_all(partial(), error);
        if (!fs::create_directory(partial(), error))
            die("%s: cannot create: %s", partial().c_str(), error.message().c_str());
        begin_tensors(weights_path(), weights);
        begin_tensors(moments_path(), moments);
    }
    // Returns its directory: in the first process when it is whole, in others when they have done their part, which
    // they tell by a file. If one of them fails, its launcher ends all.
    std::string write() const {
        const std::string dir = this->dir(), partial = this->partial();
        std::error_code error;
        try {
            if (world().size == 1) begin();
            fill_tensors(weights_path(), weights);
            fill_tensors(moments_path(), moments);
            if (!world().first()) {
                write_file(done_path(world().rank), "");
                return dir;
            }
            for (int rank = 1; rank < world().size; rank++) {
                while (!exists(done_path(rank))) usleep(10000);
                fs::remove(done_path(rank), error);
            }
            write_file(partial + (adapter ? "/adapter_config.json" : "/config.json"), config);
            if (tokenizer) tokenizer->save(partial);
            std::vector<std::string> names = entries_of(partial);
            std::sort(names.begin(), names.end());
            std::string files, list;
            for (float f : fingerprint) list += (list.empty() ? "" : ", ") + json_number(f);
            for (const std::string& name : names) {
                Mapped file(partial + "/" + name);
                files += format("%s\n    \"%s\": {\"size\": %zu, \"checksum\": \"%s\"}", files.empty() ? "" : ",",
                                name.c_str(), file.size, hex(checksum(file.text())).c_str());
            }
            const std::string state = "{\n  \"format\": 1,\n" + position.json() + "  \"options\": " + options +
                                      ",\n  \"fingerprint\": [" + list + "],\n  \"files\": {" + files + "\n  },\n";
            write_file(partial + "/state.json", state + checksum_line(state));
            sync_directory(partial);
            fs::remove_all(dir, error);
            fs::rename(partial, dir, error);
            if (error) die("%s: cannot rename to %s: %s", partial.c_str(), dir.c_str(), error.message().c_str());
            sync_directory(out);
        } catch (const Error&) {
            if (world().first()) fs::remove_all(partial, error);
            else if (!exists(partial)) die("%s: rank 0 has given it up", partial.c_str());
            throw;
        }
        if (position.lowest_step == position.step) make_best(out, dir);
        remove_old(out, keep);
        return dir;
    }
};

// Writes a model as a plain Hugging Face directory.
inline void export_model(const std::string& dir, const std::vector<Stored>& weights, const std::string& config,
                         const Tokenizer* tokenizer) {
    const std::string partial = dir + ".partial";
    std::error_code error;
    if (exists(dir)) die("--out %s: is there already", dir.c_str());
    fs::remove_all(partial, error);
    fs::create_directories(partial, error);
    if (error) die("%s: cannot create: %s", partial.c_str(), error.message().c_str());
    save_tensors(partial + "/model.safetensors", weights);
    write_file(partial + "/config.json", config);
    if (tokenizer) tokenizer->save(partial);
    sync_directory(partial);
    fs::rename(partial, dir, error);
    if (error) die("%s: cannot rename to %s: %s", partial.c_str(), dir.c_str(), error.message().c_str());
}

// Writes the checkpoints of a run: copies, by another thread, while training goes on; without memory for a copy
// training waits. Whatever ends the run waits for the thread, if only in the destructor.
struct Saver {
    std::string saved = "";                  // the newest that is whole
    long long best = -1;                     // the step of the one in OUT/best
    RunDirectory* run = nullptr;
    double stood_ms = 0, last = seconds();   // how long training stood for the newest, and when it went on
    std::future<std::string> writing = {};   // the one under way,
    long long step = 0;                      // and its step

    // Whether one is due by time, of which checkpoints are to take 2 % at most.
    bool due(double minutes) const {
        const double since = seconds() - last;
        return minutes > 0 && since > 60 * minutes && since > 50 * stood_ms / 1e3;
    }
    // Waits for the checkpoint that is under way, or dies of what the thread died of.
    void finish() {
        if (!writing.valid()) return;
        saved = writing.get();
        run->put("checkpoint", step, {{"path", json_quote(saved)}, {"ms", format("%.3f", stood_ms)}});
    }
    void look() {
        if (writing.valid() && writing.wait_for(std::chrono::seconds(0)) == std::future_status::ready) finish();
    }
    void save(Checkpoint c) {
        const double start = seconds();
        finish();
        if (world().size > 1) {
            c.begin();
            world().barrier();
        }
        // It leaves as much again to others: a process that takes more than there is would be killed, and the run, too.
        const bool fits = c.bytes() <= available_memory() / 2 / world().here;
        if (fits) {
            c.weights = copied(std::move(c.weights));
            c.moments = copied(std::move(c.moments));
        }
        step = c.position.step;
        best = c.position.lowest_step;
        const auto when = fits ? std::launch::async : std::launch::deferred;
        writing = std::async(when, [c = std::move(c)] { return c.write(); });
        if (!fits) writing.wait();
        last = seconds();
        stood_ms = (last - start) * 1e3;
    }
};
