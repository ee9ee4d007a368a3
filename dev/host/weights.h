/* dev/host/weights.h -- models on disk: safetensors, one file or several, whatever names wrappers gave a GPT-2's
   tensors, and llm.c's format. Each becomes a description in config.json's words and a view of every tensor. */
#pragma once
#include "packed.h"
#include "runs.h"
#include <tuple>
#include <variant>

struct View {                                // one tensor in a mapped file
    std::string dtype;                       // F32, BF16, F16
    std::vector<size_t> shape;
    const uint8_t* data;
    bool transposed = false;                 // llm.c keeps Linear weights as (out, in)

    size_t bytes() const { return dtype == "F32" ? 4 : dtype == "BF16" || dtype == "F16" ? 2 : 0; }   // 0: unknown
    template <typename F> auto as_type(F f) const {          // f(a number of that type)
        return dtype == "F32" ? f(float()) : dtype == "BF16" ? f(bfloat16()) : f(float16());
    }
    template <typename T> float at(size_t i) const {         // wherever it lies
        T x;
        memcpy(&x, data + i * sizeof x, sizeof x);
        return x;
    }
    float operator[](size_t i) const { return as_type([&]<typename T>(T) { return at<T>(i); }); }
    // All numbers, row by row: where they lie, if they are floats in that order, or else in `memory`.
    const float* read(std::vector<float>& memory) const {
        if (dtype == "F32" && !transposed && (uintptr_t)data % alignof(float) == 0) return (const float*)data;
        const size_t rows = shape.size() == 2 ? shape[0] : 1, cols = shape.back();
        memory.resize(rows * cols);
        as_type([&]<typename T>(T) {
            #pragma omp parallel for schedule(static)
            for (size_t r = 0; r < rows; r++)
                if (transposed) for (size_t k = 0; k < cols; k++) memory[r * cols + k] = at<T>(k * rows + r);
                else for (size_t k = 0; k < cols; k++) memory[r * cols + k] = at<T>(r * cols + k);
        });
        return memory.data();
    }
};

inline std::string show_shape(const std::vector<size_t>& shape) {
    std::string s = "(";
    for (size_t d : shape) s += format(s.size() > 1 ? ",%zu" : "%zu", d);
    return s + ")";
}

inline bool same_bytes(const View& a, const View& b) {
    size_t bytes = a.bytes();
    for (size_t d : a.shape) bytes *= d;
    return a.shape == b.shape && a.dtype == b.dtype && memcmp(a.data, b.data, bytes) == 0;
}

// A safetensors file: uint64 length of a JSON header, the header, raw data. The tensors must tile the data.
struct Safetensors {
    Mapped file;
    std::map<std::string, View> tensors;

    explicit Safetensors(const std::string& path) : file(path) {
        const char* name = path.c_str();
        uint64_t length = file.size < 8 ? 0 : file.at<uint64_t>(0);
        if (file.size < 8 || length < 2 || length > file.size - 8 || file.data[9] != '"')
            name_kind(file, "safetensors");
        if (file.size < 8) die("%s: %zu bytes, too short for safetensors", name, file.size);
        if (length > file.size - 8)
            die("%s: byte 0: a header of %llu bytes does not fit a file of %zu; is this safetensors, and whole?", name,
                (unsigned long long)length, file.size);
        Json header = parse_json(file.text().substr(8, length), path);
        if (header.kind != Json::OBJECT) die("%s: byte 8: the header is not a JSON object", name);
        const uint8_t* data = file.data + 8 + length;
        const size_t size = file.size - 8 - length;
        std::vector<std::tuple<size_t, size_t, std::string>> pieces;
        for (auto& member : header.members) {
            const std::string& tensor = member.first;
            const Json& v = member.second;
            if (tensor == "__metadata__") continue;
            const Json &dtype = v["dtype"], &shape = v["shape"], &offsets = v["data_offsets"];
            if (!dtype || !shape || offsets.items.size() != 2)
                die("%s: tensor %s: expected dtype, shape and data_offsets", name, tensor.c_str());
            View view{dtype.string, {}, nullptr};
            auto whole = [&](const Json& number) {
                if (number.kind != Json::NUMBER || number.number < 0 || number.number > 0x1p53 ||
                    number.number != std::floor(number.number))
                    die("%s: tensor %s: shape and data_offsets must be whole numbers", name, tensor.c_str());
                return (size_t)number.number;
            };
            double count = 1;
            for (const Json& d : shape.items) view.shape.push_back(whole(d));
            for (size_t d : view.shape) count *= d;
            size_t begin = whole(offsets.items[0]), end = whole(offsets.items[1]);
            if (begin > end || end > size)
                die("%s: tensor %s: data_offsets [%zu,%zu] do not lie in the %zu bytes of data; is it cut short?", name,
                    tensor.c_str(), begin, end, size);
            if (view.bytes() && count * view.bytes() != double(end - begin))
                die("%s: tensor %s: %s%s does not fill data_offsets [%zu,%zu]", name, tensor.c_str(),
                    view.dtype.c_str(), show_shape(view.shape).c_str(), begin, end);
            view.data = data + begin;
            pieces.push_back({begin, end, tensor});
            tensors[tensor] = view;
        }
        std::sort(pieces.begin(), pieces.end());
        size_t reached = 0;
        for (auto& [begin, end, tensor] : pieces) {
            if (begin != reached)
                die("%s: tensor %s: data begins at %zu, expected %zu: tensors must neither overlap nor leave holes",
                    name, tensor.c_str(), begin, reached);
            reached = end;
        }
        if (reached != size)
            die("%s: %zu bytes of data, more than the %zu that the header describes", name, size, reached);
    }
};

// Every tensor of an index (model.safetensors.index.json) and of the files beside it that it names.
inline std::map<std::string, View> read_index(const std::string& path,
                                              std::vector<std::unique_ptr<Safetensors>>& files) {
    std::map<std::string, Safetensors*> opened;
    std::map<std::string, View> tensors;
    const Json json = read_json(path);
    for (auto& [tensor, entry] : json["weight_map"].members) {
        const std::string& name = entry.string;
        if (name.empty() || name.find('/') != name.npos)
            die("%s: tensor %s: expected a file beside the index", path.c_str(), tensor.c_str());
        if (!opened.count(name)) {
            files.push_back(std::make_unique<Safetensors>(directory_of(path) + "/" + name));
            opened[name] = files.back().get();
        }
        auto at = opened[name]->tensors.find(tensor);
        if (at == opened[name]->tensors.end())
            die("%s: tensor %s: is not in %s", path.c_str(), tensor.c_str(), opened[name]->file.path.c_str());
        tensors[tensor] = at->second;
    }
    if (tensors.empty()) die("%s: 'weight_map' is missing or empty", path.c_str());
    return tensors;
}

/* The tensors of a GPT-2 under Hugging Face's names. What wrapped the model, as in _orig_mod.transformer. or module.,
   stands before wpe.weight as before all others; masks are no parameters. nanoGPT's layers keep weights (out, in). */
inline std::map<std::string, View> gpt2_tensors(const std::map<std::string, View>& tensors, const std::string& path) {
    auto is = [](const std::string& name, const std::string& end) { return name == end || name.ends_with("." + end); };
    std::string wpe, before;
    for (auto& [name, view] : tensors) {
        if (!is(name, "wpe.weight")) continue;
        if (!wpe.empty()) die("%s: two models in one: '%s' and '%s'", path.c_str(), wpe.c_str(), name.c_str());
        wpe = name;
        before = name.substr(0, name.size() - strlen("wpe.weight"));
    }
    std::map<std::string, View> found;
    for (auto& [name, view] : tensors) {
        if (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")) continue;
        const std::string own = is(name, "lm_head.weight") ? "lm_head.weight" : wpe.empty() || !name.starts_with(before)
                              ? name : "transformer." + name.substr(before.size());
        if (!found.emplace(own, view).second) die("%s: tensor '%s' is there twice", path.c_str(), own.c_str());
    }
    auto qkv = found.find("transformer.h.0.attn.c_attn.weight");
    const std::vector<size_t> shape = qkv == found.end() ? std::vector<size_t>() : qkv->second.shape;
    if (shape.size() != 2 || shape[0] != 3 * shape[1]) return found;
    for (auto& [name, view] : found)
        for (const char* layer : {"c_attn.weight", "c_fc.weight", "c_proj.weight"}) {
            if (!is(name, layer) || view.shape.size() != 2) continue;
            std::swap(view.shape[0], view.shape[1]);
            view.transposed = true;
        }
    warn("%s: weights stand (out, in), as in nanoGPT, whose GELU is another; here it is gelu_new", path.c_str());
    return found;
}

// The index that a part of a model has beside it: NAME.safetensors.index.json of NAME-00001-of-00003.safetensors.
inline std::string index_of(const std::string& path) {
    const size_t of = path.rfind("-of-"), dash = of == path.npos ? of : path.rfind('-', of - 1);
    auto number = [&](size_t at, size_t end) { return end > at && path.find_first_not_of("0123456789", at) == end; };
    const std::string ending = ".safetensors";
    const bool part = dash != path.npos && path.ends_with(ending) && number(dash + 1, of) &&
                      number(of + 4, path.size() - ending.size()) && atoi(path.c_str() + of + 4) > 1;
    return part ? path.substr(0, dash) + ending + ".index.json" : "";
}
inline void refuse_part(const std::string& path) {
    const std::string index = index_of(path);
    if (!index.empty())
        die("%s: is a part of a model; %s", path.c_str(), exists(index) ? "give its directory, or the index there"
            : (index + " is missing, which names all parts: take it from where this is from").c_str());
}

// The weights in a directory: a file, or the index of several; what else there may be, the largest is named.
inline std::string weights_in(const std::string& dir) {
    for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"})
        if (exists(dir + name)) return dir + name;
    for (const std::string& name : entries_of(dir)) refuse_part(dir + "/" + name);
    std::string largest;
    size_t size = 0;
    std::error_code error;
    for (const std::string& name : entries_of(dir)) {
        const std::string path = dir + "/" + name;
        if (!fs::is_regular_file(path, error) || fs::file_size(path, error) <= size) continue;
        const Mapped file(path);
        const Kind* kind = kind_of(file.text());
        if (!kind || kind->text) continue;
        largest = path;
        size = file.size;
    }
    if (!largest.empty()) refuse(largest, *kind_of(Mapped(largest).text()), "model.safetensors");
    die("%s: holds no model.safetensors and no whole checkpoint", dir.c_str());
}

// A model on disk, whatever its format; tensors have their Hugging Face names.
struct ModelFile {
    std::string path, directory;
    Json config;
    std::string config_path;                 // where it stands; "": made of shapes, which do not tell of heads
    std::map<std::string, View> tensors;
    std::shared_ptr<void> memory;            // what the views look into
    std::shared_ptr<struct Adapter> adapter = nullptr;       // LoRA's, that stands beside it
};

inline Json json_of(double value, Json::Kind kind = Json::NUMBER) {
    Json j;
    j.kind = kind;
    j.number = value;
    return j;
}
inline Json gpt2_of(std::map<std::string, Json> members) {               // the config.json that such a model would have
    Json j = json_of(0, Json::OBJECT), type = json_of(0, Json::STRING);
    type.string = "gpt2";
    j.members = std::move(members);
    j.members["model_type"] = type;
    return j;
}

// llm.c's model file: 256 int32 {magic, 3 float32 or 5 bfloat16, T, V, L, NH, C, padded V}, then the tensors one after
// the other, all layers of one together; weights of Linear layers stand (out, in).
inline ModelFile read_llmc(const std::string& path) {
    auto file = std::make_shared<Mapped>(path);
    const char* name = path.c_str();
    if (file->size < HEADER) die("%s: %zu bytes, shorter than a header of %zu", name, file->size, HEADER);
    auto field = [&](int i) { return file->at<int32_t>(4 * i); };
    if (field(1) != 3 && field(1) != 5)
        die("%s: byte 4: found version %d, expected 3 (float32) or 5 (bfloat16)", name, field(1));
    for (int i = 2; i < 8; i++)
        if (field(i) < 1 || field(i) > 1 << 24 || (i == 4 && field(i) > 1000))
            die("%s: byte %d: found %d, expected a size from 1 to %d", name, 4 * i, field(i), i == 4 ? 1000 : 1 << 24);
    const size_t T = field(2), V = field(3), L = field(4), NH = field(5), C = field(6), padded_V = field(7);
    if (padded_V < V) die("%s: byte 28: found a vocabulary of %zu padded to %zu", name, V, padded_V);
    ModelFile m{path, directory_of(path), {}, path, {}, file};
    m.config = gpt2_of({{"n_positions", json_of(T)}, {"vocab_size", json_of(V)}, {"n_layer", json_of(L)},
                        {"n_head", json_of(NH)}, {"n_embd", json_of(C)}});
    const struct { std::string name; size_t rows, cols; } tensors[] = {
        {"wte.weight", V, C}, {"wpe.weight", T, C}, {"h.%.ln_1.weight", 0, C}, {"h.%.ln_1.bias", 0, C},
        {"h.%.attn.c_attn.weight", C, 3 * C}, {"h.%.attn.c_attn.bias", 0, 3 * C}, {"h.%.attn.c_proj.weight", C, C},
        {"h.%.attn.c_proj.bias", 0, C}, {"h.%.ln_2.weight", 0, C}, {"h.%.ln_2.bias", 0, C},
        {"h.%.mlp.c_fc.weight", C, 4 * C}, {"h.%.mlp.c_fc.bias", 0, 4 * C}, {"h.%.mlp.c_proj.weight", 4 * C, C},
        {"h.%.mlp.c_proj.bias", 0, C}, {"ln_f.weight", 0, C}, {"ln_f.bias", 0, C}};
    const size_t item = field(1) == 3 ? 4 : 2;
    size_t at = HEADER;
    for (auto& t : tensors) {
        const size_t layer = t.name.find('%');
        for (size_t l = 0; l < (layer == t.name.npos ? 1 : L); l++) {
            std::string full = "transformer." + t.name;
            if (layer != t.name.npos) full.replace(full.find('%'), 1, std::to_string(l));
            const std::vector<size_t> shape = t.rows ? std::vector{t.rows, t.cols} : std::vector{t.cols};
            m.tensors[full] = {item == 4 ? "F32" : "BF16", shape, file->data + at, layer != t.name.npos && t.rows};
            at += item * (at == HEADER ? padded_V : std::max<size_t>(t.rows, 1)) * t.cols;
        }
    }
    if (file->size != at) die("%s: %zu bytes, its header means %zu", name, file->size, at);
    return m;
}

// What shapes tell of a GPT-2 without a config.json.
inline Json config_of_shapes(const std::map<std::string, View>& tensors, const std::string& path) {
    auto shape = [&](const char* name) {
        auto it = tensors.find(name);
        if (it == tensors.end() || it->second.shape.size() != 2)
            die("%s: no matrix '%s' in it; is this a GPT-2?", path.c_str(), name);
        return it->second.shape;
    };
    const auto wte = shape("transformer.wte.weight"), wpe = shape("transformer.wpe.weight");
    const auto head = tensors.find("lm_head.weight");
    int layers = 0;
    while (tensors.count(format("transformer.h.%d.ln_1.weight", layers))) layers++;
    const bool bias = tensors.count("transformer.h.0.attn.c_attn.bias");
    const bool tied = head == tensors.end() || same_bytes(head->second, tensors.at("transformer.wte.weight"));
    return gpt2_of({{"vocab_size", json_of(wte[0])}, {"n_embd", json_of(wte[1])}, {"n_positions", json_of(wpe[0])},
                    {"n_layer", json_of(layers)}, {"bias", json_of(bias, Json::BOOL)},
                    {"tie_word_embeddings", json_of(tied, Json::BOOL)}});
}

// Names that other programs take for a model to fetch.
inline const char* published(const std::string& name) {
    return !name.starts_with("gpt2") || name.find('/') != name.npos ? ""
           : "; dev/data/download.sh gpt2-124M fetches the published GPT-2 into data/gpt2-124M";
}

// Holds the model that an option names, and makes `path` the newest checkpoint if it is a run's directory.
inline Held hold_model(const char* option, std::string& path) {
    if (!exists(path)) die("%s %s: no such file or directory%s", option, path.c_str(), published(path));
    return hold_newest(path);
}

inline ModelFile open_model(std::string path) {
    if (exists(path, true)) {
        const std::vector<std::string> found = checkpoints_in(path);
        if (!exists(path + "/config.json") && !found.empty()) path = found.back();
        if (is_checkpoint(path)) verify_checkpoint(path, false);
        path = weights_in(path);
    }
    refuse_part(path);
    Mapped probe(path);
    if (probe.size >= 4 && probe.at<int32_t>(0) == 20240326) return read_llmc(path);
    auto files = std::make_shared<std::vector<std::unique_ptr<Safetensors>>>();
    const std::string config = directory_of(path) + "/config.json";
    ModelFile m{path, directory_of(path), {}, exists(config) ? config : "", {}, files};
    if (path.ends_with(".index.json")) m.tensors = gpt2_tensors(read_index(path, *files), path);
    else m.tensors = gpt2_tensors(files->emplace_back(std::make_unique<Safetensors>(path))->tensors, path);
    const bool described = !m.config_path.empty();
    if (described) m.config = read_json(config, 1 << 20);
    const Json& tied = m.config["tie_word_embeddings"];
    if ((!tied || tied.number) && !m.tensors.count("transformer.wte.weight"))
        if (auto node = m.tensors.extract("lm_head.weight")) {               // tied, and kept under this name
            node.key() = "transformer.wte.weight";
            m.tensors.insert(std::move(node));
        }
    if (!described) m.config = config_of_shapes(m.tensors, path);
    return m;
}

// The config of a model; where its file does not say how many heads it has, `heads`, or if 0 heads of 64.
inline Json with_heads(const ModelFile& m, int heads) {
    const char* path = m.path.c_str();
    Json json = m.config;
    if (!m.config_path.empty()) return json;
    const int C = json["n_embd"].number;
    if (heads == 0 && C % 64) die_usage("--heads: %s does not say how many heads it has", path);
    if (heads == 0)
        warn("%s: does not say how many heads it has: %d of 64 are assumed; --heads says otherwise", path, C / 64);
    if (heads && C % heads) die_usage("--heads %d: does not divide the %d channels of %s", heads, C, path);
    json.members["n_head"] = json_of(heads ? heads : C / 64);
    return json;
}

// ---- config.json ----------------------------------------------------------------------------------------------------
// A member of config.json that a program's Config has as a field. Numbers that are whole have to be there.
struct Member {
    const char* name;
    std::variant<int*, bool*, double*> value;
    int largest = 0;                         // of a whole number, which is 1 at least
};

// Fills in the members; dies of a model that is no GPT-2 or computes something else.
inline void read_config(const std::vector<Member>& members, const Json& j, const std::string& path) {
    const char* where = path.c_str();
    if (j.kind != Json::OBJECT) die("%s: not a JSON object", where);
    const std::string &type = j["model_type"].string, &act = j["activation_function"].string;
    if (type != "gpt2") die("%s: found model_type '%s', expected 'gpt2'", where, type.c_str());
    if (act != "" && act != "gelu_new" && act != "gelu_pytorch_tanh")
        die("%s: activation_function '%s' is not computed here, only gelu_new", where, act.c_str());
    for (const Member& m : members) {
        const Json& v = j[m.name];
        if (auto* value = std::get_if<int*>(&m.value)) {
            if (!v) die("%s: '%s' is missing", where, m.name);
            if (v.kind != Json::NUMBER || v.number < 1 || v.number > m.largest || v.number != std::floor(v.number))
                die("%s: '%s' must be a whole number from 1 to %d", where, m.name, m.largest);
            **value = v.number;
        } else if (auto* flag = std::get_if<bool*>(&m.value)) {
            if (v && v.kind != Json::BOOL) die("%s: '%s' must be true or false", where, m.name);
            if (v) **flag = v.number != 0;
        } else if (v) {
            if (v.kind != Json::NUMBER || !(v.number > 0 && v.number < 1))
                die("%s: '%s' must lie between 0 and 1", where, m.name);
            *std::get<double*>(m.value) = v.number;
        }
    }
    const double C = j["n_embd"].number, heads = j["n_head"].number, hidden = 4 * C;
    if (const Json& inner = j["n_inner"]; inner && inner.number != hidden)
        die("%s: n_inner %g is not computed here, only 4 x n_embd = %g", where, inner.number, hidden);
    auto says = [&](const char* name, bool fallback) {
        const Json& v = j[name];
        if (v && v.kind != Json::BOOL) die("%s: '%s' must be true or false", where, name);
        return v ? v.number != 0 : fallback;
    };
    if (!says("scale_attn_weights", true) || says("scale_attn_by_inverse_layer_idx", false) ||
        says("add_cross_attention", false))
        die("%s: attention without scaling, scaled by layer, or across sequences is not computed here", where);
    if (heads > 0 && std::fmod(C, heads) != 0) die("%s: %g channels are not a multiple of %g heads", where, C, heads);
}

// eot: the end of text's token, or -1
inline std::string config_json(const std::vector<Member>& members, int eot) {
    std::string s = "{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"model_type\": \"gpt2\",\n";
    for (const Member& m : members) {
        std::string value;
        if (auto* number = std::get_if<int*>(&m.value)) value = std::to_string(**number);
        else if (auto* flag = std::get_if<bool*>(&m.value)) value = **flag ? "true" : "false";
        else value = show(*std::get<double*>(m.value));
        s += format("  \"%s\": %s,\n", m.name, value.c_str());
    }
    if (eot >= 0) s += format("  \"bos_token_id\": %d,\n  \"eos_token_id\": %d,\n", eot, eot);
    return s + "  \"n_inner\": null,\n  \"activation_function\": \"gelu_new\",\n  \"attn_pdrop\": 0.0,\n"
               "  \"embd_pdrop\": 0.0,\n  \"resid_pdrop\": 0.0,\n  \"torch_dtype\": \"float32\"\n}\n";
}
