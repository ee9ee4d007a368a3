// Writers of token and example shards, for the tools beside this file and for tests; readers, and what the numbers of
// the headers mean, are in section 4 of train_gpt.cpp, which is included before this.
#pragma once

inline void put_tokens(Writer& w, const std::vector<int>& tokens, int token_bytes) {
    std::string bytes(tokens.size() * token_bytes, '\0');
    for (size_t i = 0; i < tokens.size(); i++) memcpy(&bytes[i * token_bytes], &tokens[i], token_bytes);
    w.put(bytes);
}

inline void write_shard(const std::string& path, const std::vector<int>& tokens, int V) {
    const ShardKind& kind = SHARD_KINDS[V > 65536];
    int32_t header[256] = {kind.magic, kind.version, (int32_t)tokens.size()};
    if (tokens.size() >= 1u << 31) die("%s: %zu tokens do not fit one shard", path.c_str(), tokens.size());
    Writer w(path);
    w.put(header, sizeof header);
    put_tokens(w, tokens, kind.token_bytes);
    w.finish();
}

inline void write_examples(const std::string& path, const std::vector<std::vector<int>>& segments, int per_example, int V) {
    std::vector<uint64_t> offsets = {0};
    std::vector<int> tokens;
    for (auto& s : segments) tokens.insert(tokens.end(), s.begin(), s.end()), offsets.push_back(tokens.size());
    int32_t header[256] = {EXAMPLES_MAGIC, EXAMPLES_VERSION, (int32_t)(segments.size() / per_example), per_example,
                           V > 65536 ? 4 : 2};
    uint64_t n = tokens.size();
    memcpy(&header[6], &n, sizeof n);
    Writer w(path);
    w.put(header, sizeof header);
    w.put(offsets.data(), offsets.size() * sizeof offsets[0]);
    put_tokens(w, tokens, header[4]);
    w.finish();
}
