/* dev/host/checkpoints.h -- what a run leaves to go on from. A checkpoint is a directory that Hugging Face tools open as it
   is: config.json, model.safetensors, tokenizer files; beside them optimizer.safetensors and state.json, which makes it
   whole: it is the last file written, and holds size and checksum of all others and of itself. Everything is written
   under another name, synced, then renamed. Of a model it knows a list of tensors. */
#pragma once
#include "arena.h"
#include "machine.h"
#include "tokenizer.h"
#include "weights.h"
#include <functional>
#include <future>
#include <set>

// A tensor as files hold it.
struct Stored {
    std::string name;
    std::vector<size_t> shape;
    std::function<void(float*)> get;
    std::function<void(const float*)> set;
    bool present = true;                     // an absent one need not be in a file; it is zero there, and written so,
    std::string same_as = "";                // or it is another tensor again, and not written
    size_t count() const {
        size_t n = 1;
        for (size_t d : shape) n *= d;
        return n;
    }
};

// Gives tensors the numbers that a file has for them. All must be there, of these shapes and finite, and no others.
inline void load_tensors(const std::vector<Stored>& tensors, const std::map<std::string, View>& views, const std::string& path) {
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
            const std::string step = "; make it float32: python3 -c \"import safetensors.torch as s; s.save_file({k: v.float()"
                ".clone() for k, v in s.load_file('FILE').items()}, 'FILE')\"", part = directory_of(path) + "/PART";
            const bool other = v.shape == t.shape && v.dtype.starts_with('F'), several = path.ends_with(".index.json");
            die("%s: tensor '%s' is %s%s, expected F32, BF16 or F16 of %s%s", where, name, v.dtype.substr(0, 20).c_str(),
                show_shape(v.shape).c_str(), show_shape(t.shape).c_str(), other ? usable(step, several ? part : path).c_str() : "");
        }
        const float* const values = v.read(memory);
        const size_t count = t.count(), cols = t.shape.back();
        float zero = 0;                                      // 0 x, or NaN where x is not finite
        #pragma omp parallel for simd schedule(static) reduction(+ : zero)
        for (size_t k = 0; k < count; k++) zero += 0 * values[k];
        if (!(zero == 0)) {
            const size_t k = std::find_if_not(values, values + count, [](float x) { return std::isfinite(x); }) - values;
            const std::string at = cols < count ? format("row %zu, column %zu", k / cols, k % cols) : format("number %zu", k);
            die("%s: tensor '%s': %s is %g", where, name, at.c_str(), std::isnan(values[k]) ? NAN : values[k]);
        }
        if (t.present) {
            t.set(values);
        } else if (t.same_as.empty()) {
            if (std::any_of(values, values + count, [](float x) { return x != 0; }))
                die("%s: tensor '%s' is not zero, but the config says bias false", where, name);
        } else if (const View& twin = views.at(t.same_as);
                   twin.shape != v.shape || !std::equal(values, values + count, twin.read(memory_of_twin))) {
            die("%s: %s differs from %s, but the config says tie_word_embeddings", where, name, t.same_as.c_str());
        }
    }
    for (auto& [name, view] : views)
        if (!known.count(name)) die("%s: tensor '%s' has no place in a GPT-2 of this shape", path.c_str(), name.c_str());
}

// The first gradient that is not finite in the order of backward, last tensor first: it spreads to all that follow.
inline std::string first_not_finite(const std::vector<Stored>& gradients) {
    std::vector<float> g;
    for (auto t = gradients.rbegin(); t != gradients.rend(); t++) {
        g.resize(t->count()), t->get(g.data());
        for (float f : g) if (!std::isfinite(f)) return t->name;
    }
    return "the norm, but no gradient,";
}

// Writes tensors as float32 safetensors.
inline void save_tensors(const std::string& path, const std::vector<Stored>& tensors) {
    std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
    size_t offset = 0;
    for (const Stored& t : tensors) {
        if (!t.same_as.empty()) continue;
        const size_t end = offset + 4 * t.count();
        const std::string shape = show_shape(t.shape);
        header += format(",\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", t.name.c_str(),
                         shape.substr(1, shape.size() - 2).c_str(), offset, end);
        offset = end;
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    uint64_t length = header.size();
    Writer w(path);
    w.put(&length, 8);
    w.put(header);
    std::vector<float> values;
    for (const Stored& t : tensors) {
        if (!t.same_as.empty()) continue;
        values.resize(t.count());
        t.get(values.data());
        w.put(values.data(), 4 * values.size());
    }
    w.finish();
}

// The tensors as they are now, while the model itself goes on.
inline std::vector<Stored> copied(std::vector<Stored> tensors) {
    for (Stored& t : tensors) {
        if (!t.present) continue;
        auto memory = std::make_shared<Buffer<float>>(t.count());        // whose pages all threads touch before one fills them
        t.get(memory->data());
        t.get = [memory](float* out) { std::copy_n(memory->data(), memory->size, out); };
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
        std::string s = format("  \"step\": %lld,\n  \"window\": %zu,\n  \"windows\": %zu,\n", step, window, windows), list;
        if (lowest_step >= 0)
            s += format("  \"lowest\": {\"step\": %lld, \"val_loss\": %s},\n", lowest_step, show(lowest).c_str());
        for (int token : beginning) list += (list.empty() ? "" : ", ") + std::to_string(token);
        s += "  \"beginning\": [" + list + "],\n", list = "";
        if (!unit.empty()) s += "  \"unit\": " + json_quote(unit) + ",\n";
        for (auto& [name, identity] : data) list += (list.empty() ? "" : ", ") + json_quote(name) + ": " + json_quote(identity);
        return s + "  \"data\": {" + list + "},\n";
    }
    Position() = default;
    Position(const Json& state, const std::string& where) {
        if (!state["step"] || !state["windows"] || !state["options"])
            die("%s: 'step', 'windows' or 'options' is missing", where.c_str());
        step = state["step"].number, window = state["window"].number, windows = state["windows"].number;
        for (auto& [name, identity] : state["data"].members) data[name] = identity.string;
        unit = state["unit"].string;
        for (const Json& token : state["beginning"].items) beginning.push_back(token.number);
        if (const Json& l = state["lowest"]) lowest = l["val_loss"].number, lowest_step = l["step"].number;
    }
};

// What a program computes, some logits of a model that it draws, is kept in state.json. Another machine sums up in another
// order, which makes 1e-6.
inline void check_fingerprint(const std::vector<float>& computed, const std::string& checkpoint) {
    const std::string path = checkpoint + "/state.json";
    if (!is_checkpoint(checkpoint)) return;
    const Json state = parse_json(read_file(path), path), &wrote = state["fingerprint"];
    if (!wrote) return warn("%s: has no fingerprint, so it is not known whether this program computes what its writer did", path.c_str());
    double most = 0, off = 0;
    for (float f : computed) most = std::max(most, std::abs((double)f));
    bool same = wrote.items.size() == computed.size();
    for (size_t i = 0; i < computed.size() && same; i++) {
        off = std::abs(computed[i] - wrote.items[i].number) / most;
        same = off <= 1e-5;                                  // NaN is not
    }
    if (!same)
        die("%s: this program computes another function of these weights than the one that wrote them (a logit of a test model "
            "is off by %.1e of the largest): use that program, or give the path of model.safetensors itself", path.c_str(), off);
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

    size_t bytes() const {
        size_t n = 0;
        for (auto* list : {&weights, &moments}) for (const Stored& t : *list) n += 4 * t.count();
        return n;
    }
    // Returns its directory when it is whole.
    std::string write() const {
        const std::string dir = out + format("/step_%08lld", position.step), partial = dir + ".partial";
        std::error_code error;
        fs::remove_all(partial, error);
        try {
            if (!fs::create_directory(partial, error)) die("%s: cannot create: %s", partial.c_str(), error.message().c_str());
            save_tensors(partial + (adapter ? "/adapter_model.safetensors" : "/model.safetensors"), weights);
            save_tensors(partial + "/optimizer.safetensors", moments);
            write_file(partial + (adapter ? "/adapter_config.json" : "/config.json"), config);
            if (tokenizer) tokenizer->save(partial);
            std::vector<std::string> names = entries_of(partial);
            std::sort(names.begin(), names.end());
            std::string files, list;
            for (float f : fingerprint) list += (list.empty() ? "" : ", ") + json_number(f);
            for (const std::string& name : names) {
                Mapped file(partial + "/" + name);
                files += format("%s\n    \"%s\": {\"size\": %zu, \"checksum\": \"%s\"}", files.empty() ? "" : ",", name.c_str(),
                                file.size, hex(checksum(file.text())).c_str());
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
            fs::remove_all(partial, error);
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
    fs::remove_all(partial, error), fs::create_directories(partial, error);
    if (error) die("%s: cannot create: %s", partial.c_str(), error.message().c_str());
    save_tensors(partial + "/model.safetensors", weights);
    write_file(partial + "/config.json", config);
    if (tokenizer) tokenizer->save(partial);
    sync_directory(partial);
    fs::rename(partial, dir, error);
    if (error) die("%s: cannot rename to %s: %s", partial.c_str(), dir.c_str(), error.message().c_str());
}

// Writes the checkpoints of a run: copies, by another thread, while training goes on; without memory for a copy training
// waits. Whatever ends the run waits for the thread, if only in the destructor.
struct Saver {
    std::string saved = "";                  // the newest that is whole
    long long best = -1;                     // the step of the one in OUT/best
    RunDirectory* run = nullptr;
    double stood_ms = 0, last = seconds();   // how long training stood for the newest, and when it went on
    std::future<std::string> writing = {};   // the one under way,
    long long step = 0;                      // and its step

    // Waits for the checkpoint that is under way, or dies of what the thread died of.
    void finish() {
        if (!writing.valid()) return;
        saved = writing.get();
        run->put("checkpoint", step, {{"path", json_quote(saved)}, {"ms", format("%.3f", stood_ms)}});
    }
    void look() { if (writing.valid() && writing.wait_for(std::chrono::seconds(0)) == std::future_status::ready) finish(); }
    void save(Checkpoint c) {
        const double start = seconds();
        finish();
        // It leaves as much again to others: a process that takes more than there is would be killed, and the run with it.
        const bool fits = c.bytes() <= available_memory() / 2;
        if (fits) c.weights = copied(std::move(c.weights)), c.moments = copied(std::move(c.moments));
        step = c.position.step, best = c.position.lowest_step;
        writing = std::async(fits ? std::launch::async : std::launch::deferred, [c = std::move(c)] { return c.write(); });
        if (!fits) writing.wait();
        last = seconds(), stood_ms = (last - start) * 1e3;
    }
};
