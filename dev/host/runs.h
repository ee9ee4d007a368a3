/* dev/host/runs.h -- the directory of a run: its checkpoints step_N, of which the best is in best, too; its log; and
   what tells its data from other data. Checkpoints are written by checkpoints.h, whole ones are known by state.json. */
#pragma once
#include "options.h"
#include "shards.h"
#include <optional>
#include <sys/file.h>
#include <utility>

// Tells whether files hold the bytes that others held, whatever they are called. Pieces of 1 MB have checksums of their
// own, which all threads compute, each with eight words at once, as checksum() does with one: it costs less than the
// look for foreign tokens, after which the file is still in memory.
struct Identity {
    size_t files = 0, bytes = 0;
    uint64_t sum = 0;

    Identity() = default;
    explicit Identity(const std::string& path) { add(Mapped(path)); }
    void add(const Mapped& file) {
        const size_t piece = 1 << 20;
        std::vector<uint64_t> sums((file.size + piece - 1) / piece);
        #pragma omp parallel for schedule(static)
        for (size_t i = 0; i < sums.size(); i++) {
            const std::string_view part = file.text().substr(i * piece, piece);
            uint64_t h[8] = {}, words[8];
            size_t at = 0;
            for (; at + sizeof words <= part.size(); at += sizeof words) {
                memcpy(words, part.data() + at, sizeof words);
                for (int k = 0; k < 8; k++) {
                    h[k] = (h[k] ^ words[k]) * 0x9E3779B97F4A7C15ull;
                    h[k] ^= h[k] >> 32;
                }
            }
            sums[i] = checksum({(const char*)h, sizeof h}) ^ checksum(part.substr(at));
        }
        files++;
        bytes += file.size;
        sum = mix64(sum ^ checksum({(const char*)sums.data(), 8 * sums.size()}));
    }
    std::string text() const { return format("%zu bytes in %zu files, checksum %s", bytes, files, hex(sum).c_str()); }
};

// A path that was given in another directory, as it is seen from here, if it leads anywhere there.
inline std::string given_in(const std::string& directory, const std::string& path) {
    std::error_code none;
    if (path.empty() || directory.empty() || directory == fs::current_path(none)) return path;
    const std::string there = (fs::path(directory) / path).string();
    try {
        glob_files(there, "");
        return there;
    } catch (const Error&) { return path; }
}

// Options of text that hold such paths, by is_path(row), become what they are from here, but for those given anew.
template <typename F>
void paths_from(const std::string& directory, const Table& options, const std::set<std::string>& given, F is_path) {
    for (const Option& row : options) {
        auto* path = std::get_if<text*>(&row.value);
        if (path && !given.count(row.name) && is_path(row)) **path = given_in(directory, **path);
    }
}

// The last line of state.json vouches for all before it.
inline std::string checksum_line(const std::string& body) {
    return "  \"checksum\": \"" + hex(checksum(body)) + "\"\n}\n";
}

// Whether a directory has a state.json of ours, whole or damaged; other programs have files of that name.
inline bool is_checkpoint(const std::string& dir) {
    if (!exists(dir + "/state.json")) return false;
    const Mapped file(dir + "/state.json");
    const std::string_view text = file.text(), first = "{\n  \"format\": 1,\n  \"step\"";
    return text.substr(0, first.size()) == first.substr(0, text.size()) || text.find("  \"checksum\": \"") != text.npos;
}

// Checks a checkpoint of ours against its state.json, which it returns: all its files, of which threads take one each,
// or only those that a model is read from.
inline Json verify_checkpoint(const std::string& dir, bool all = true) {
    const std::string path = dir + "/state.json", text = read_file(path);
    const size_t end = text.rfind("  \"checksum\"");
    if (end == text.npos || text.substr(end) != checksum_line(text.substr(0, end)))
        die("%s: damaged: its checksum does not fit; remove this checkpoint to use the one before", path.c_str());
    Json state = parse_json(text, path);
    if (!state["files"]) die("%s: 'files' is missing", path.c_str());
    std::vector<std::unique_ptr<Mapped>> files;
    std::vector<const Json*> entries;
    for (auto& [name, entry] : state["files"].members) {
        if (!all && name == "optimizer.safetensors") continue;
        files.push_back(std::make_unique<Mapped>(dir + "/" + name));
        entries.push_back(&entry);
    }
    std::vector<std::string> sums(files.size());
    #pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < files.size(); i++) sums[i] = hex(checksum(files[i]->text()));
    for (size_t i = 0; i < files.size(); i++)
        if ((double)files[i]->size != (*entries[i])["size"].number || (*entries[i])["checksum"].string != sums[i])
            die("%s: damaged: size or checksum differ from state.json; remove this checkpoint to use the one before",
                files[i]->path.c_str());
    return state;
}

// "step_", at least eight digits, and the ending given
inline bool is_step(const std::string& name, const std::string& ending) {
    const size_t digits = std::min(name.find_first_not_of("0123456789", 5), name.size());
    return name.rfind("step_", 0) == 0 && digits >= 13 && name.substr(digits) == ending;
}

inline std::vector<std::string> checkpoints_in(const std::string& run, bool whole = true) {     // oldest first
    std::vector<std::string> found;
    for (const std::string& name : entries_of(run)) {
        const std::string path = run + "/" + name;
        if (is_step(name, "") && (!whole || exists(path + "/state.json"))) found.push_back(path);
    }
    auto older = [](auto& a, auto& b) { return a.size() != b.size() ? a.size() < b.size() : a < b; };
    std::sort(found.begin(), found.end(), older);
    return found;
}

// The one to go on from, "" if there is none. A newer directory that is not whole, as a copy may be, is told of.
inline std::string newest_whole(const std::string& run) {
    std::vector<std::string> found = checkpoints_in(run, false);
    while (!found.empty() && !exists(found.back() + "/state.json")) {
        warn("%s: has no state.json, so it is not whole: passed over", found.back().c_str());
        found.pop_back();
    }
    const std::string best = run + "/best";                  // all that is left, where the others were removed for room
    return !found.empty() ? found.back() : exists(best + "/state.json") ? best : "";
}

// A directory that is held: shared by those who read a checkpoint, alone by who would remove it. Others are waited for
// 10 ms a try.
struct Held {
    int fd = -1;
    bool all = false;                        // of it is ours

    Held(const std::string& dir, int how, int tries = 1) : fd(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
        if (fd < 0) return;
        for (; tries > 0 && !all; tries--) {
            all = flock(fd, how | LOCK_NB) == 0;
            if (!all && tries > 1) usleep(10000);
        }
    }
    ~Held() { if (fd >= 0) close(fd); }
    Held(Held&& other) : fd(std::exchange(other.fd, -1)), all(other.all) {}
    bool still(const std::string& dir) const {               // whether it has that name, and no other took its place
        struct stat a, b;
        return fd >= 0 && fstat(fd, &a) == 0 && stat(dir.c_str(), &b) == 0 && a.st_ino == b.st_ino;
    }
};

// Makes `path` the newest checkpoint if it is a run's directory, and holds it: a run under way removes old ones.
inline Held hold_newest(std::string& path) {
    const std::string given = path;
    for (;;) {
        const bool model = exists(given + "/config.json") || exists(given + "/adapter_config.json");
        const bool run = exists(given, true) && !model;
        const std::string found = run ? newest_whole(given) : "";
        if (run && !found.empty()) path = found;
        Held held(path, LOCK_SH, 100);
        if (held.still(path) || (held.fd < 0 && (found.empty() || exists(path)))) return held;
    }
}

// Removes all but the newest `keep`, and none that is being read.
inline void remove_old(const std::string& run, size_t keep) {
    std::vector<std::string> found = checkpoints_in(run);
    std::error_code error;
    for (size_t i = 0; i + keep < found.size(); i++) {
        const Held held(found[i], LOCK_EX);
        if (!held.all) continue;
        fs::rename(found[i], found[i] + ".partial", error);              // from here on it is not whole
        fs::remove_all(found[i] + ".partial", error);
    }
}

// Makes RUN/best a second name of a checkpoint's files, or a copy where the file system has no such names. Where two
// directories cannot change places at once, a kill may leave no best: it is then the newest, whose state.json says so.
inline void make_best(const std::string& run, const std::string& checkpoint) {
    const std::string best = run + "/best", partial = best + ".partial", old = best + ".old";
    std::error_code error;
    fs::remove_all(partial, error);
    fs::remove_all(old, error);
    if (!fs::create_directory(partial, error)) die("%s: cannot create: %s", partial.c_str(), error.message().c_str());
    for (const std::string& name : entries_of(checkpoint)) {
        fs::create_hard_link(checkpoint + "/" + name, partial + "/" + name, error);
        if (error) write_file(partial + "/" + name, Mapped(checkpoint + "/" + name).text());
    }
    error.clear();
    sync_directory(partial);
    const Held held(best, LOCK_EX, 6000);
#ifdef RENAME_EXCHANGE
    if (renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, best.c_str(), RENAME_EXCHANGE) != 0)
#endif
    {
        fs::rename(best, old, error);
        fs::rename(partial, best, error);
    }
    if (error) die("%s: cannot rename to %s: %s", partial.c_str(), best.c_str(), error.message().c_str());
    sync_directory(run);
    fs::remove_all(partial, error);
    fs::remove_all(old, error);
}

// The run's directory, held against a second writer for as long as this object lives. OUT/log.jsonl has one JSON object
// a line; on resume it is rewound to the checkpoint's step. Of several processes one writes there.
struct RunDirectory {
    std::string path;
    std::optional<Held> lock = {};           // let go of if this constructor throws, too
    FILE* log = nullptr;
    const bool writes;

    RunDirectory(const std::string& path, bool resume, bool writes = true) : path(path), writes(writes) {
        const char* name = path.c_str();
        std::error_code error;
        if (resume && is_checkpoint(path))
            die("%s: is a checkpoint; its run is the directory above: --out %s", name,
                (fs::path(path) / "..").lexically_normal().c_str());
        if (!writes) return;
        fs::create_directories(path, error);
        if (error) die("%s: cannot create: %s", name, error.message().c_str());
        lock.emplace(path, LOCK_EX);
        if (lock->fd < 0) die("%s: cannot open: %s", name, strerror(errno));
        if (!lock->all)
            die("%s: %s", name, errno == EWOULDBLOCK ? "another train_gpt is writing there" : strerror(errno));
        if (!resume && !fs::is_empty(path, error))
            die("%s: is not empty; choose another --out, or go on with --resume", name);
        for (const std::string& entry : entries_of(path))                                // left by a killed run
            if (is_step(entry, ".partial") || entry == "best.partial" || entry == "best.old")
                fs::remove_all(path + "/" + entry, error);
    }
    ~RunDirectory() {
        if (log) fclose(log);
    }
    RunDirectory(const RunDirectory&) = delete;
    RunDirectory& operator=(const RunDirectory&) = delete;

    std::string log_path() const { return path + "/log.jsonl"; }

    // Of several processes each has to see what the first has made, and not its like on another machine.
    template <typename World> void check_shared(World& world) const {
        struct stat st = {};
        world.barrier();
        const std::string seen = stat(path.c_str(), &st) == 0 ? format("%llu", (unsigned long long)st.st_ino) : "none";
        if (world.texts(seen)[0] != seen)
            die("--out %s: is not the directory that rank 0 writes to; all ranks must see the same, by one name",
                path.c_str());
    }

    // Keeps what the log says of steps up to `step`, and opens it for more. What follows the last step is made again.
    void rewind_log(long long step, long long last) {
        if (!writes) return;
        std::string kept;
        if (step > 0 && exists(log_path())) {
            const std::string all = read_file(log_path());
            size_t begin = 0;
            while (all.find('\n', begin) != all.npos) {
                const std::string line = all.substr(begin, all.find('\n', begin) + 1 - begin);
                begin += line.size();
                char event[16];
                long long at;
                if (sscanf(line.c_str(), "{\"event\": \"%15[a-z]\", \"step\": %lld", event, &at) != 2) continue;
                const bool measured = !strcmp(event, "eval") || !strcmp(event, "answers") || !strcmp(event, "sample");
                if (at <= step && !(at == last && measured)) kept += line;
            }
        }
        write_file(log_path() + ".new", kept);
        std::error_code error;
        fs::rename(log_path() + ".new", log_path(), error);
        if (!error) log = fopen(log_path().c_str(), "a");
        if (error || !log) die("%s: cannot write", log_path().c_str());
    }
    void put(const char* event, long long step, const Fields& fields) {
        if (!writes) return;
        std::string line = format("{\"event\": \"%s\", \"step\": %lld", event, step);
        for (auto& [name, value] : fields) line += format(", \"%s\": %s", name, value.c_str());
        if (fprintf(log, "%s}\n", line.c_str()) < 0 || fflush(log) != 0)
            die("%s: cannot write: %s", log_path().c_str(), strerror(errno));
    }
};
