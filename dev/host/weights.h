/* dev/host/weights.h -- safetensors, one file or several, and whatever names wrappers gave a GPT-2's tensors. */
#pragma once
#include "kinds.h"
#include <tuple>

struct View {                                // one tensor in a mapped file
    std::string dtype;                       // F32, BF16, F16
    std::vector<size_t> shape;
    const uint8_t* data;
    bool transposed = false;                 // llm.c keeps Linear weights as (out, in)
    float operator[](size_t i) const {
        uint32_t bits = 0;
        memcpy((char*)&bits + (dtype == "F32" ? 0 : 2), data + i * bytes(), bytes());     // bfloat16: the upper half
        if (dtype == "F16") {                                               // 1 sign, 5 exponent, 10 mantissa bits
            const uint32_t sign = bits & 0x80000000, exponent = bits >> 26 & 31, mantissa = bits >> 16 & 1023;
            if (exponent == 0) return std::ldexp(mantissa, -24) * (sign ? -1 : 1);
            bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
        }
        return std::bit_cast<float>(bits);
    }
    size_t bytes() const { return dtype == "F32" ? 4 : dtype == "BF16" || dtype == "F16" ? 2 : 0; }   // 0: unknown
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
        if (file.size < 8 || length > file.size - 8) name_kind(file, "safetensors");
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
            for (const Json& d : shape.items) view.shape.push_back(whole(d)), count *= view.shape.back();
            size_t begin = whole(offsets.items[0]), end = whole(offsets.items[1]);
            if (begin > end || end > size)
                die("%s: tensor %s: data_offsets [%zu,%zu] do not lie in the %zu bytes of data", name, tensor.c_str(),
                    begin, end, size);
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
            die("%s: %zu bytes of data, the header describes %zu; is it cut short?", name, size, reached);
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
        wpe = name, before = name.substr(0, name.size() - strlen("wpe.weight"));
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
            std::swap(view.shape[0], view.shape[1]), view.transposed = true;
        }
    warn("%s: weights stand (out, in), as in nanoGPT, whose GELU is another; here it is gelu_new", path.c_str());
    return found;
}

// The weights in a directory: a file, or the index of several; what else there may be, the largest is named.
inline std::string weights_in(const std::string& dir) {
    for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"})
        if (exists(dir + name)) return dir + name;
    std::string largest;
    size_t size = 0;
    std::error_code error;
    for (const std::string& name : entries_of(dir)) {
        const std::string path = dir + "/" + name;
        if (!fs::is_regular_file(path, error) || fs::file_size(path, error) <= size) continue;
        const Mapped file(path);
        if (const Kind* kind = kind_of(file.text()); kind && !kind->text) largest = path, size = file.size;
    }
    if (!largest.empty()) refuse(largest, *kind_of(Mapped(largest).text()), "model.safetensors");
    die("%s: holds no model.safetensors and no whole checkpoint", dir.c_str());
}
