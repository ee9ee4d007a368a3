/* dev/host/files.h -- what the trainer and the data tools stand on: errors, files, a checksum, random numbers, JSON.
   Shards are read and written by shards.h, text by tokenizer.h, other people's weights read by weights.h, checkpoints
   written by checkpoints.h; kinds.h knows other people's files. */
#pragma once
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
inline constexpr const char* WITHOUT_OPENMP = "";
#else
inline constexpr const char* WITHOUT_OPENMP = " (built without OpenMP)";
inline int omp_get_max_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_procs() { return 1; }
inline void omp_set_num_threads(int) {}
#endif

namespace fs = std::filesystem;

#ifndef VERSION                  // the Makefile asks git
#define VERSION "of no known commit"
#endif

// Everything that is wrong with what the user gave us ends here: one line on stderr, and exit 1 (data, files, memory)
// or 2 (command line). It is thrown, not exited, so that tests and fuzzers can read the line. Nothing throws inside an
// OpenMP region, unless memory runs out.
struct Error {
    int exit_code;
    std::string line;
};

__attribute__((format(printf, 1, 0))) inline std::string vformat(const char* fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    std::string s(vsnprintf(nullptr, 0, fmt, again), '\0');
    va_end(again);
    vsnprintf(s.data(), s.size() + 1, fmt, args);
    return s;
}

// Names from hostile files reach error lines: they stay one line, printable, and of a length one can read.
inline std::string printable(const std::string& s) {
    std::string out;
    for (unsigned char c : s) {
        if (out.size() >= 1000) return out + "...";
        char escaped[5];
        snprintf(escaped, sizeof escaped, "\\x%02x", c);
        if (c < 0x20 || c == 0x7f) out += escaped;
        else out += (char)c;
    }
    return out;
}

__attribute__((format(printf, 1, 2))) inline std::string format(const char* fmt, ...);

inline std::string show(double v) {                          // the shortest form that reads back as the same number
    std::string s;
    for (int digits = 6; digits <= 17; digits++) {
        s = format("%.*g", digits, v);
        if (strtod(s.c_str(), nullptr) == v) break;
    }
    return s;
}

// A word as a shell reads it back.
inline std::string shell_quote(const std::string& word) {
    const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%";
    if (!word.empty() && word.find_first_not_of(plain) == word.npos) return word;
    std::string quoted = "'";
    for (char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
    return quoted + "'";
}

// ", nearest is NAME", of the names that take few changes, insertions and deletions, or that hold the word or stand in
// it; "" if none is near.
inline std::string nearest(const std::string& word, const std::vector<std::string>& names) {
    std::string best;
    size_t least = word.size() / 3 + 1;
    auto bare = [](const std::string& s) { return s.substr(std::min(s.find_first_not_of('-'), s.size())); };
    auto holds = [&](const std::string& a, const std::string& b) {
        return bare(b).size() >= 4 && a.find(bare(b)) != a.npos;
    };
    for (const std::string& name : names) {
        std::vector<size_t> cost(name.size() + 1);           // of turning what was read of the word into j characters
        for (size_t j = 0; j < cost.size(); j++) cost[j] = j;
        for (size_t i = 0; i < word.size(); i++) {
            size_t diagonal = cost[0]++;
            for (size_t j = 0; j < name.size(); j++) {
                const size_t changed = diagonal + (word[i] != name[j]);
                diagonal = cost[j + 1];
                cost[j + 1] = std::min({changed, diagonal + 1, cost[j] + 1});
            }
        }
        if (holds(word, name) || holds(name, word)) cost.back() = std::min(cost.back(), word.size() / 3);
        if (cost.back() >= least) continue;
        least = cost.back();
        best = name;
    }
    return best.empty() ? "" : ", nearest is " + best;
}

#define FORMAT_INTO(s) va_list args; va_start(args, fmt); s = vformat(fmt, args); va_end(args)
__attribute__((format(printf, 1, 2))) inline std::string format(const char* fmt, ...) {
    std::string s;
    FORMAT_INTO(s);
    return s;
}
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void die(const char* fmt, ...) {
    Error e{1, ""};
    FORMAT_INTO(e.line);
    e.line = printable(e.line);
    throw e;
}
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void die_usage(const char* fmt, ...) {
    Error e{2, ""};
    FORMAT_INTO(e.line);
    e.line = printable(e.line);
    throw e;
}
// Who says a line of stderr, where several processes work together; the first of them is nameless.
inline std::string& speaker() {
    static std::string name;
    return name;
}
// What the user should know, but may have meant: one line, and it goes on.
__attribute__((format(printf, 1, 2))) inline void warn(const char* fmt, ...) {
    std::string s;
    if (!speaker().empty()) return;
    FORMAT_INTO(s);
    fflush(stdout);
    fprintf(stderr, "warning: %s\n", printable(s).c_str());
}
#undef FORMAT_INTO

// What every main() does: runs f(), and turns what it dies of into one line and an exit code.
template <typename F> int run_main(F f) {
    for (int fd = 0; fd < 3; fd++)                           // a closed one would be given to the first file opened
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) return 1;
    signal(SIGBUS, [](int) {
        const char line[] = "error: a file was cut short while it was read\n";
        if (write(STDERR_FILENO, line, sizeof line - 1)) {}
        _exit(1);
    });
    signal(SIGXFSZ, SIG_IGN);                                // a full disk is an error, not a signal
    signal(SIGPIPE, SIG_DFL);
    std::string line;
    int code = 0;
    try {
        f();
        if (fflush(stdout) != 0 || ferror(stdout)) die("standard output: cannot write: %s", strerror(errno));
    } catch (const Error& e) {
        line = e.line;
        code = e.exit_code;
    } catch (const std::exception& e) {                      // out of memory, a file system that fails
        line = printable(e.what());
        code = 1;
    }
    fflush(stdout);
    // What all die of is the first one's to say: its launcher ends the others while they wait.
    if (code && !speaker().empty() && usleep(900000) != 0) return code;
    if (code) fprintf(stderr, "%serror: %s\n", speaker().c_str(), line.c_str());
    return code;
}

// A whole file, mapped read-only.
struct Mapped {
    std::string path;
    const uint8_t* data = nullptr;
    size_t size = 0;

    explicit Mapped(const std::string& path) : path(path) {
        int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);       // a FIFO must not block
        if (fd < 0) die("%s: cannot open: %s", path.c_str(), strerror(errno));
        struct stat st;
        bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
        void* p = nullptr;
        if (regular && st.st_size > 0) p = mmap(nullptr, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        const int error = errno;
        close(fd);
        if (!regular) die("%s: is not a regular file", path.c_str());
        if (p == MAP_FAILED) die("%s: cannot map %lld bytes: %s", path.c_str(), (long long)st.st_size, strerror(error));
        data = (const uint8_t*)p;
        size = st.st_size;
    }
    ~Mapped() { if (data) munmap((void*)data, size); }
    Mapped(Mapped&&) = delete;
    std::string_view text() const { return {(const char*)data, size}; }
    template <typename T> T at(size_t byte) const {        // unaligned little-endian read
        T value;
        memcpy(&value, data + byte, sizeof(T));
        return value;
    }
};

// What is read once, from start to end: a file, a pipe, or for "-" standard input.
struct Input {
    std::string path, bytes;
    std::unique_ptr<Mapped> file;
    std::string_view text() const { return file ? file->text() : bytes; }

    explicit Input(const std::string& path) : path(path) {
        struct stat st;
        const bool standard = path == "-";
        if (!standard && (stat(path.c_str(), &st) != 0 || !S_ISFIFO(st.st_mode))) {
            file = std::make_unique<Mapped>(path);
            return;
        }
        const int fd = standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
        char some[1 << 16];
        ssize_t n;
        do {
            n = read(fd, some, sizeof some);
            if (n < 0 && errno != EINTR) die("%s: cannot read: %s", path.c_str(), strerror(errno));
            if (n > 0) bytes.append(some, n);
        } while (n != 0);
        if (!standard) close(fd);
    }
};

// A file being written, a new one or parts of one that is there. finish() has it on the disk, or dies; a file that was
// not finished was not written.
struct Writer {
    std::string path;
    int fd;

    explicit Writer(const std::string& path, bool create = true)
        : path(path), fd(open(path.c_str(), O_WRONLY | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0666)) {
        if (fd < 0) die("%s: cannot %s: %s", path.c_str(), create ? "create" : "open", strerror(errno));
    }
    ~Writer() { if (fd >= 0) close(fd); }
    Writer(Writer&&) = delete;
    void put(const void* data, size_t size) {
        const char* p = (const char*)data;
        while (size > 0) {
            ssize_t n = write(fd, p, std::min(size, (size_t)1 << 30));
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) die("%s: cannot write: %s", path.c_str(), n < 0 ? strerror(errno) : "nothing was taken");
            p += n;
            size -= n;
        }
    }
    void put(std::string_view s) { put(s.data(), s.size()); }
    void seek(size_t at) { if (lseek(fd, at, SEEK_SET) < 0) die("%s: cannot seek: %s", path.c_str(), strerror(errno)); }
    void finish() {
        int bad = fsync(fd) != 0 && errno != EINVAL && errno != EROFS;      // pipes and devices cannot be synced
        bad |= close(fd) != 0;
        fd = -1;
        if (bad) die("%s: cannot write: %s", path.c_str(), strerror(errno));
    }
};

inline void write_file(const std::string& path, std::string_view bytes) {
    Writer w(path);
    w.put(bytes);
    w.finish();
}

inline std::string read_file(const std::string& path, size_t limit = SIZE_MAX) {
    Mapped file(path);
    if (file.size > limit) die("%s: %zu bytes, expected at most %zu", path.c_str(), file.size, limit);
    return std::string(file.text());
}

// Whether there is such a path (a directory, if asked); what cannot be known, for want of permission say, is an error.
inline bool exists(const std::string& path, bool directory = false) {
    struct stat st;
    if (stat(path.c_str(), &st) == 0) return !directory || S_ISDIR(st.st_mode);
    if (errno != ENOENT && errno != ENOTDIR) die("%s: cannot look: %s", path.c_str(), strerror(errno));
    return false;
}

inline std::vector<std::string> entries_of(const std::string& dir) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
        names.push_back(it->path().filename().string());
    if (error && exists(dir, true)) die("%s: cannot list: %s", dir.c_str(), error.message().c_str());
    return names;
}

inline void sync_directory(const std::string& dir) {
    int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

// ~ as a shell has it, where none saw it: in quotes, or after --out=
inline std::string at_home(const std::string& path) {
    const char* home = getenv("HOME");
    return home && (path == "~" || path.starts_with("~/")) ? home + path.substr(1) : path;
}

inline std::string directory_of(const std::string& path) {
    std::string dir = fs::path(path).parent_path().string();
    return dir.empty() ? "." : dir;
}

/* SplitMix64 -- output number n is a fixed function of (seed, n), so any number of a stream can be made alone.
   source   Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195 */
constexpr uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

constexpr uint64_t multiply_high(uint64_t x, uint64_t y) { return (unsigned __int128)x * y >> 64; }

struct Rng {
    uint64_t state;
    explicit Rng(uint64_t seed, uint64_t stream = 0) : state(stream ? mix64(seed + mix64(stream)) : seed) {}
    constexpr uint64_t next() { return mix64(state += 0x9E3779B97F4A7C15ull); }
    double uniform() { return (next() >> 11) * 0x1p-53; }                                  // [0,1)
    constexpr uint64_t below(uint64_t n) { return multiply_high(next(), n); }                // bias below n / 2^64
    double normal() {                                                                        // Box-Muller
        double r = std::sqrt(-2 * std::log(1 - uniform()));
        return r * std::cos(2 * M_PI * uniform());
    }
    template <typename T> void shuffle(std::vector<T>& v) {
        for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[below(i)]);
    }
};

// 64-bit checksum of 8-byte words. Each round is a bijection of h, and of the word, so that damage inside one word
// always shows; other damage goes unseen with probability 2^-64. It guards against accidents, not against people.
inline uint64_t checksum(std::string_view bytes) {
    uint64_t h = bytes.size();
    auto take = [&](size_t at, size_t size) {
        uint64_t word = 0;
        memcpy(&word, bytes.data() + at, size);
        h = (h ^ word) * 0x9E3779B97F4A7C15ull;
        h ^= h >> 32;
    };
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) take(at, 8);                 // of a size known here: one load
    if (at < bytes.size()) take(at, bytes.size() - at);
    return mix64(h);
}

inline std::string hex(uint64_t v) { return format("%016llx", (unsigned long long)v); }

inline void append_utf8(std::string& out, unsigned code) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;        // bytes after the first
    out += (char)(more ? 0xFF00 >> (more + 1) | code >> 6 * more : code);
    for (int k = more - 1; k >= 0; k--) out += (char)(0x80 | (code >> 6 * k & 63));
}

// The bytes of the UTF-8 character at p < end; 0 where none begins: a stray byte, too long a form, a surrogate, what is
// above U+10FFFF or cut off.
inline int utf8_size(const char* p, const char* end) {
    const uint8_t first = p[0];
    if (first < 0x80) return 1;
    const int size = first < 0xC2 || first > 0xF4 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (size == 0 || end - p < size) return 0;
    const uint8_t second = p[1], least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80,
                  most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    for (int i = 2; i < size; i++) if ((p[i] & 0xC0) != 0x80) return 0;
    return second >= least && second <= most ? size : 0;
}

// JSON (RFC 8259), read whole. Object members are sorted by name; a name that stands twice is refused.
struct Json {
    enum Kind { NUL, BOOL, NUMBER, STRING, ARRAY, OBJECT } kind = NUL;
    double number = 0;                       // BOOL too: 0 or 1
    std::string string;
    std::vector<Json> items;
    std::map<std::string, Json> members;
    explicit operator bool() const { return kind != NUL; }
    const Json& operator[](const std::string& name) const {              // a null where there is none
        static const Json none;
        auto it = members.find(name);
        return it == members.end() ? none : it->second;
    }
};

struct JsonParser {
    std::string_view s;
    const std::string& where;                // the file, for messages
    size_t i = 0;

    [[noreturn]] void fail(const char* expected) {
        if (i >= s.size()) die("%s: byte %zu: the JSON ends where %s was expected", where.c_str(), i, expected);
        die("%s: byte %zu: found byte 0x%02x, expected %s", where.c_str(), i, (unsigned char)s[i], expected);
    }
    bool take(char c) {
        const bool there = i < s.size() && s[i] == c;
        i += there;
        return there;
    }
    void blanks() { while (i < s.size() && (s[i] == ' ' || s[i] == '\n' || s[i] == '\r' || s[i] == '\t')) i++; }
    unsigned hex4() {
        unsigned u = 0;
        for (const size_t end = i + 4; i < end; i++) {
            if (i >= s.size() || !isxdigit((unsigned char)s[i])) fail("four hexadecimal digits");
            u = u * 16 + (s[i] <= '9' ? s[i] - '0' : (s[i] | 32) - 'a' + 10);
        }
        return u;
    }
    std::string string() {
        if (!take('"')) fail("a string");
        std::string out;
        while (!take('"')) {
            if (i >= s.size() || (unsigned char)s[i] < 0x20) fail("the rest of a string");
            if (!take('\\')) {
                out += s[i++];
                continue;
            }
            const char *escapes = "\"\\/bfnrt", *at = i < s.size() && s[i] ? strchr(escapes, s[i]) : nullptr;
            if (at) {
                out += "\"\\/\b\f\n\r\t"[at - escapes];
                i++;
                continue;
            }
            if (!take('u')) fail("an escape");
            unsigned u = hex4();
            if (u >= 0xD800 && u < 0xDC00 && s.substr(i, 2) == "\\u") {           // a surrogate pair
                i += 2;
                unsigned low = hex4();
                if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a surrogate pair");
                u = 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00);
            }
            append_utf8(out, u >= 0xD800 && u < 0xE000 ? 0xFFFD : u);
        }
        return out;
    }
    double parse_number() {
        size_t begin = i;
        auto digits = [&] {
            if (i >= s.size() || !isdigit((unsigned char)s[i])) fail("a digit");
            while (i < s.size() && isdigit((unsigned char)s[i])) i++;
        };
        take('-');
        if (!take('0')) digits();
        if (take('.')) digits();
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            digits();
        }
        return strtod(std::string(s.substr(begin, i - begin)).c_str(), nullptr);
    }
    Json value(int depth) {
        if (depth > 64) fail("at most 64 levels");
        Json v;
        blanks();
        if (take('{')) {
            v.kind = Json::OBJECT;
            for (blanks(); !take('}'); blanks()) {
                if (!v.members.empty() && !take(',')) fail("',' or '}'");
                blanks();
                std::string name = string();
                blanks();
                if (!take(':')) fail("':'");
                if (!v.members.emplace(name, value(depth + 1)).second) fail(("no second " + json_name(name)).c_str());
            }
        } else if (take('[')) {
            v.kind = Json::ARRAY;
            for (blanks(); !take(']'); blanks()) {
                if (!v.items.empty() && !take(',')) fail("',' or ']'");
                v.items.push_back(value(depth + 1));
            }
        } else if (i < s.size() && s[i] == '"') {
            v.kind = Json::STRING;
            v.string = string();
        } else if (s.substr(i, 4) == "true" || s.substr(i, 5) == "false") {
            v.kind = Json::BOOL;
            v.number = s[i] == 't';
            i += s[i] == 't' ? 4 : 5;
        } else if (s.substr(i, 4) == "null") {
            i += 4;
        } else {
            if (i >= s.size() || (s[i] != '-' && !isdigit((unsigned char)s[i]))) fail("a JSON value");
            v.kind = Json::NUMBER;
            v.number = parse_number();
        }
        return v;
    }
    static std::string json_name(const std::string& name) { return "member named '" + name.substr(0, 80) + "'"; }
};

inline constexpr std::string_view BYTE_ORDER_MARK = "\xef\xbb\xbf";       // before UTF-8 it says nothing

inline Json parse_json(std::string_view text, const std::string& where) {
    JsonParser p{text, where, text.starts_with(BYTE_ORDER_MARK) ? BYTE_ORDER_MARK.size() : 0};
    Json v = p.value(0);
    p.blanks();
    if (p.i < text.size()) p.fail("the end");
    return v;
}

inline std::string json_quote(std::string_view s) {
    std::string out = "\"";
    for (unsigned char c : s) {
        if (c == '"' || c == '\\') out += {'\\', (char)c};
        else if (c < 0x20) out += format("\\u%04x", c);
        else out += (char)c;
    }
    return out + '"';
}

// JSON has no nan and no infinity.
inline std::string json_number(double v) { return std::isfinite(v) ? show(v) : "null"; }
using Fields = std::vector<std::pair<const char*, std::string>>;         // names, and values as JSON has them
