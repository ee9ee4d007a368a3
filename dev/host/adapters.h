/* dev/host/adapters.h -- LoRA adapters on disk, as PEFT keeps them: a directory with adapter_config.json, which names
   the model that they are for, and adapter_model.safetensors, where A stands (rank, in) and B (out, rank). */
#pragma once
#include "checkpoints.h"

// The Linear layers of a block: as options name them, and as Hugging Face does.
inline const std::pair<const char*, const char*> ADAPTABLE[] = {
    {"qkv", "attn.c_attn"}, {"proj", "attn.c_proj"}, {"fc", "mlp.c_fc"}, {"fcproj", "mlp.c_proj"}};

inline std::set<std::string> read_targets(const std::string& option, const std::string& list) {
    std::set<std::string> targets;
    for (size_t begin = 0, end; begin <= list.size(); begin = end + 1) {
        end = std::min(list.find(',', begin), list.size());
        const std::string name = list.substr(begin, end - begin);
        if (std::none_of(std::begin(ADAPTABLE), std::end(ADAPTABLE), [&](auto& layer) { return name == layer.first; }))
            die_usage("%s %s: '%s' is none of qkv, proj, fc, fcproj", option.c_str(), list.c_str(), name.c_str());
        targets.insert(name);
    }
    return targets;
}

// A and B of this rank beside the matrices that are targets: they count alpha / rank times.
struct Lora {
    int rank = 0;
    double alpha = 0;
    std::set<std::string> targets = {};
};

struct Adapter : Lora {
    std::string path;                        // its directory
    std::string base;                        // the model that it says it is for
    std::map<std::string, View> tensors = {};                // under the names of TENSORS
    std::shared_ptr<Safetensors> memory = nullptr;

    explicit Adapter(std::string dir) {
        const Held held = hold_newest(dir);
        path = dir;
        const std::string config = dir + "/adapter_config.json", weights = dir + "/adapter_model.safetensors";
        if (!exists(config)) die("%s: holds no adapter_config.json; is this a LoRA adapter?", dir.c_str());
        if (is_checkpoint(dir)) verify_checkpoint(dir, false);
        const char* where = config.c_str();
        const Json j = read_json(config, 1 << 20);
        auto is = [&](const char* name, const char* value) { return !j[name] || j[name].string == value; };
        auto on = [&](const char* name) { return j[name] && (j[name].kind != Json::BOOL || j[name].number); };
        if (!is("peft_type", "LORA")) die("%s: peft_type '%s', expected LORA", where, j["peft_type"].string.c_str());
        if (!is("bias", "none"))
            die("%s: its biases are trained, too (bias '%s'): not supported", where, j["bias"].string.c_str());
        for (const char* kind : {"use_dora", "use_rslora", "modules_to_save", "layers_to_transform", "rank_pattern",
                                 "alpha_pattern"})
            if (on(kind) && !(j[kind].kind == Json::OBJECT && j[kind].members.empty()))
                die("%s: '%s': only plain LoRA is supported", where, kind);
        const double r = j["r"].number;
        const Json& scale = j["lora_alpha"];
        if (!(r >= 1 && r <= 65536 && r == std::floor(r))) die("%s: 'r' must be a whole number from 1", where);
        if (scale.kind != Json::NUMBER || !std::isfinite(scale.number)) die("%s: 'lora_alpha' must be a number", where);
        rank = r;
        alpha = scale.number;
        base = j["base_model_name_or_path"].string;
        if (!exists(weights)) die("%s: holds no adapter_model.safetensors", dir.c_str());
        memory = std::make_shared<Safetensors>(weights);
        for (auto& [given, view] : memory->tensors) {
            std::string name = given.substr(given.starts_with("base_model.model.") ? strlen("base_model.model.") : 0);
            if (!name.starts_with("transformer.")) name = "transformer." + name;
            const std::string tail = ".weight";
            if (!name.ends_with(tail) || view.shape.size() != 2)
                die("%s: tensor '%s' is no A or B of LoRA", weights.c_str(), given.c_str());
            name.resize(name.size() - tail.size());
            for (auto& [target, module] : ADAPTABLE) if (name.find(module) < name.size()) targets.insert(target);
            View& own = tensors[name] = view;
            std::swap(own.shape[0], own.shape[1]);
            own.transposed = true;
        }
    }
    std::string identity() const { return Identity(path + "/adapter_model.safetensors").text(); }
    // For a model that is to train it on as one of this shape.
    void check(const Lora& asked) const {
        std::string own;
        for (auto& target : targets) own += (own.empty() ? "" : ",") + target;
        if (rank != asked.rank)
            die_usage("--lora-rank %d: the adapter in %s has rank %d", asked.rank, path.c_str(), rank);
        if (alpha != asked.alpha)
            die_usage("--lora-alpha %g: the adapter in %s has alpha %g", asked.alpha, path.c_str(), alpha);
        if (targets != asked.targets) die_usage("--lora-targets: the adapter in %s has %s", path.c_str(), own.c_str());
    }
};

// The model in `path`, or the one that an adapter there is for, with that adapter or with the one given.
inline ModelFile open_adapted(const std::string& path, const std::string& given) {
    const bool itself = exists(path + "/adapter_config.json");
    if (itself && !given.empty())
        die_usage("--adapter %s: %s is an adapter itself; give the model that --adapter is for", given.c_str(),
                  path.c_str());
    if (!itself && given.empty()) return open_model(path);
    const auto adapter = std::make_shared<Adapter>(itself ? path : given);
    if (itself && !exists(adapter->base))
        die("%s/adapter_config.json: the model that it is for, '%s', is not there; give it as the model, and this with "
            "--adapter; --resume needs it there", path.c_str(), adapter->base.c_str());
    ModelFile m = open_model(itself ? adapter->base : path);
    m.adapter = adapter;
    if (!is_checkpoint(adapter->path)) return m;
    const Json state = read_json(adapter->path + "/state.json");
    const std::string was = state["data"]["init"].string, is = Identity(m.path).text();
    if (was != is)
        die("%s: is for another model than %s: for %s, and this is %s", adapter->path.c_str(), m.path.c_str(),
            was.c_str(), is.c_str());
    m.directory = adapter->path;             // of tokenizer and state.json
    return m;
}

// Of a model and its adapter.
inline std::string identity_of(const ModelFile& file) {
    return Identity(file.path).text() + (file.adapter ? "; adapter: " + file.adapter->identity() : "");
}

// Tensors of a model that an adapter becomes part of as they are set: w + scale A B, scale = alpha / rank.
inline std::vector<Stored> merged(std::vector<Stored> weights, const Adapter& adapter) {
    std::set<std::string> used;
    for (Stored& t : weights) {
        const std::string name = t.name.substr(0, t.name.rfind('.'));
        const auto a = adapter.tensors.find(name + ".lora_A"), b = adapter.tensors.find(name + ".lora_B");
        if (t.shape.size() != 2 || a == adapter.tensors.end() || b == adapter.tensors.end()) continue;
        const size_t rows = t.shape[0], cols = t.shape[1], rank = adapter.rank;
        std::vector<float> A(rows * rank), B(rank * cols);
        const Stored of_A = {a->first, {rows, rank}, {}, [&](const float* in) { std::copy_n(in, A.size(), A.data()); }};
        const Stored of_B = {b->first, {rank, cols}, {}, [&](const float* in) { std::copy_n(in, B.size(), B.data()); }};
        load_tensors({of_A, of_B}, {*a, *b}, adapter.path);
        for (float& value : A) value *= adapter.alpha / adapter.rank;
        t.set = [=, set = t.set](const float* in) {
            std::vector<float> w(in, in + rows * cols);
            #pragma omp parallel for schedule(static)
            for (size_t i = 0; i < rows; i++)
                for (size_t k = 0; k < rank; k++)
                    for (size_t j = 0; j < cols; j++) w[i * cols + j] += A[i * rank + k] * B[k * cols + j];
            set(w.data());
        };
        used.insert({a->first, b->first});
    }
    for (auto& [name, view] : adapter.tensors)
        if (!used.count(name))
            die("%s: tensor '%s' fits no matrix of the model, or its other half is missing", adapter.path.c_str(),
                name.c_str());
    return weights;
}

// Gives a model's tensors what a file has, and its adapter: to tensors of the model's own, if it has a place for one,
// or else merged with the weights.
inline void load_adapted(const std::vector<Stored>& weights, const std::vector<Stored>& adapter,
                         const ModelFile& file) {
    const Adapter* a = file.adapter.get();
    load_tensors(a && adapter.empty() ? merged(weights, *a) : weights, file.tensors, file.path);
    if (a && !adapter.empty()) load_tensors(adapter, a->tensors, a->path);
}

// By what path an adapter names a model whose weights are in `weights`: its directory, if that is one.
inline std::string base_path(const std::string& weights) {
    return fs::absolute(weights.ends_with("/model.safetensors") ? directory_of(weights) : weights).string();
}

// PEFT's description of an adapter for the model in `base`.
inline std::string adapter_config(const std::string& base, const Lora& lora) {
    std::string modules;
    for (auto& [target, module] : ADAPTABLE)
        if (lora.targets.count(target)) modules += (modules.empty() ? "" : ", ") + json_quote(module);
    return "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n"
           "  \"base_model_name_or_path\": " + json_quote(base) +
           format(",\n  \"r\": %d,\n  \"lora_alpha\": %s,\n", lora.rank, show(lora.alpha).c_str()) +
           "  \"lora_dropout\": 0.0,\n  \"target_modules\": [" + modules + "],\n  \"fan_in_fan_out\": true,\n"
           "  \"bias\": \"none\",\n  \"inference_mode\": true\n}\n";
}

// Tensors of an adapter as PEFT's files hold them.
inline std::vector<Stored> as_peft(std::vector<Stored> tensors) {
    for (Stored& t : tensors) {
        const size_t rows = t.shape[0], cols = t.shape[1];
        t.name = "base_model.model." + t.name + ".weight";
        t.shape = {cols, rows};
        if (world().size > 1) t.mine = std::vector<Range>(world().first(), Range{0, rows * cols});   // each has it all
        t.get = [get = t.get, rows, cols](float* out, size_t, size_t) {
            std::vector<float> values(rows * cols);
            get(values.data(), 0, values.size());
            for (size_t i = 0; i < values.size(); i++) out[i % cols * rows + i / cols] = values[i];
        };
    }
    return tensors;
}
