/* dev/bench.h -- what the files of dev/ share: a ladder of functions that compute the same thing, each checked against
   a reference, timed, and set against what the machine can do.

     build/study_gemm                   a table: median time, rates, share of the roof, relative error
     build/study_gemm --check           the checks alone, on small shapes; `make test` runs these
     build/study_gemm --write TABLE     adds the rows to TABLE.csv and TABLE.md too; `make bench` does it for all

   A ladder states the work that cannot be avoided: FLOPs, and bytes to and from memory. Its floor is the time in which
   the machine does the one or moves the other, whichever takes longer, at rates measured in the same process; a rung's
   share of the roof is floor / time. For rungs on a GPU see bench.cuh, which includes this. */
#pragma once
#ifndef BENCH_GPU
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#endif
#include "../test/check.h"
#include <fstream>
#include <functional>

struct Rung {
    const char* name;
    std::function<void()> run;
    bool any_order = false;                  // sums come in the order in which threads happen to run
    double limit = 0;                        // of its own, where it rounds once more than what ships
    double slowest = 1e18;                   // the most FLOPs that it is asked for; beyond, it would take minutes
};

// Something that a rung writes.
struct Result {
    std::string name;
    std::function<double()> error;           // relative to what it should be
    double limit;
    std::function<void()> reset;             // to the state that a run starts from: NaN, where it writes
    std::function<uint64_t()> bits;          // a hash
};
// ||got - want|| / ||want||, so that a NaN fails
template <typename T, typename U> double relative_error(const T* got, const U* want, size_t n) {
    double difference = 0, size = 0;
    #pragma omp parallel for simd reduction(+ : difference, size)
    for (size_t i = 0; i < n; i++) {
        difference += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return std::sqrt(difference) / (std::sqrt(size) + 1e-20);
}
// p is to become `want`; it is `start` before, or else NaN.
inline Result result(float* p, const std::vector<double>& want, double limit, const std::vector<float>& start = {}) {
    const size_t n = want.size();
    return {"", [=] { return relative_error(p, want.data(), n); }, limit,
            [=] { start.empty() ? (void)std::fill_n(p, n, NAN) : (void)std::copy(start.begin(), start.end(), p); },
            [=] { return checksum({(const char*)p, n * sizeof(float)}); }};
}

enum Compute { FP32, BFLOAT16 };
enum Memory { READ, UPDATE };                // read once; or read and written in place
struct Work {
    double flops = 0, bytes = 0;             // of one run; FLOPs outside of products are counted roughly
    Compute compute = FP32;
    Memory memory = UPDATE;
};
struct Timing { double seconds, floor; };

// Of the machine: a name for the table, a rung's median time with the floor of its work, and how often it must give the
// same bits again. bench.cuh has a GPU's.
std::string machine_name();
Timing time_of(const Rung& rung, const Work& work);
int repeats();

// Shapes are tiny, for sanitizers; small, for every test; large, for long tests; or those of training, which are timed.
enum Size { TINY, SMALL, LARGE, TRAINING };
inline Size largest = TRAINING;
inline bool size_is(const std::string& word) {               // sets it, if there is such a size
    const char* const words[] = {"tiny", "small", "large"};
    for (int i = TINY; i <= LARGE; i++) if (word == words[i]) return largest = Size(i), true;
    return false;
}
inline bool timed = true;
inline std::string table;                    // to be written, without .csv and .md
inline int study_main(int argc, char** argv, const std::function<void()>& study) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--check")) timed = false, largest = LARGE;
        else if (!timed && size_is(argv[i])) continue;
        else if (!strcmp(argv[i], "--write") && i + 1 < argc) table = argv[++i];
        else return fprintf(stderr, "usage: %s [--check [tiny|small|large]] [--write TABLE]\n", argv[0]), 2;
    }
    spin_briefly(argv);
    const int code = run_main(study);
    return code ? code : failed > 0;
}

inline double median(std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
}

// Adds a row to TABLE.csv and TABLE.md, which begin with the names of the columns.
inline void write_row(const std::vector<std::pair<const char*, std::string>>& columns) {
    struct { const char *name, *begin, *between, *end; } formats[] = {{".csv", "\"", "\",\"", "\"\n"},
                                                                      {".md", "| ", " | ", " |\n"}};
    for (auto& f : formats) {
        const std::string path = table + f.name;
        std::ofstream file(path, std::ios::app);
        auto line = [&](auto cell) {
            for (size_t i = 0; i < columns.size(); i++) file << (i ? f.between : f.begin) << cell(i);
            file << f.end;
        };
        if (file.tellp() == 0) {
            line([&](size_t i) { return columns[i].first; });
            if (f.begin[0] == '|') line([](size_t i) { return i < 4 ? "---" : "--:"; });
        }
        line([&](size_t i) { return columns[i].second; });
        if (!file.flush()) die("%s: cannot write: %s", path.c_str(), strerror(errno));
    }
}

inline bool report = true;                   // whether checks that pass are printed
// Whether these are the bits that the rung of this name gave the first time.
inline bool same_bits(const std::string& name, uint64_t bits) {
    static std::vector<std::pair<std::string, uint64_t>> known;
    for (auto& [n, first] : known) if (n == name) return first == bits;
    return known.push_back({name, bits}), true;
}
inline void climb(const std::string& kernel, const std::string& shape, const Work& work,
                  const std::vector<Result>& results, const std::vector<Rung>& rungs) {
    if (timed)
        printf("\n%-44s %10s %9s %9s %9s %10s\n", (kernel + ", " + shape).c_str(), "ms", "GB/s", "TFLOP/s", "of roof",
               "rel. error");
    if (!timed && report)                    // as where it is timed: what has run must not change what is checked
        for (const Rung& rung : rungs) if (work.flops <= rung.slowest) rung.run();
    for (const Rung& rung : rungs) {
        if (work.flops > rung.slowest) continue;
        const std::string name = format("%s, %s, %s", kernel.c_str(), shape.c_str(), rung.name);
        double error = 0, share = 0;
        std::string worst;
        try {
            for (int run = 0; run <= (rung.any_order ? 0 : repeats()); run++) {
                for (const Result& r : results) r.reset();
                rung.run();
                uint64_t bits = 0;
                for (const Result& r : results) bits = bits * 31 + r.bits();
                if (!rung.any_order && !same_bits(name, bits))
                    check(false, "study/%s: other bits than the first time", name.c_str());
            }
            for (const Result& r : results) {
                const double e = r.error(), of_limit = e == 0 ? 0 : e / std::max(r.limit, rung.limit);
                if (!(of_limit <= share) && !std::isnan(share)) share = of_limit, error = e, worst = r.name;
            }
        } catch (Error& e) {
            e.line = name + ": " + e.line;
            throw;
        }
        if ((!timed && report) || !(share <= 1))
            check(share <= 1, "study/%s: relative error %.1e%s%s, %.2f of its limit", name.c_str(), error,
                  worst.empty() ? "" : " of ", worst.c_str(), share);
        if (!timed) continue;
        const Timing t = time_of(rung, work);
        printf("  %-42s %10.3f %9.1f %9.3f %8.1f%% %10.1e\n", rung.name, t.seconds * 1e3, work.bytes / t.seconds / 1e9,
               work.flops / t.seconds / 1e12, 100 * t.floor / t.seconds, error);
        fflush(stdout);
        if (table.empty()) continue;
        auto number = [](double x) { return format("%.4g", x); };
        write_row({{"machine", machine_name()}, {"kernel", kernel}, {"shape", shape}, {"rung", rung.name},
                   {"ms", number(t.seconds * 1e3)}, {"GB/s", number(work.bytes / t.seconds / 1e9)},
                   {"TFLOP/s", number(work.flops / t.seconds / 1e12)}, {"floor ms", number(t.floor * 1e3)},
                   {"% of roof", number(100 * t.floor / t.seconds)}, {"relative error", format("%.1e", error)},
                   {"GB", number(work.bytes / 1e9)}, {"TFLOP", number(work.flops / 1e12)}});
    }
}

inline std::vector<float> random_floats(size_t n, uint64_t seed) {
    std::vector<float> v(n);
    #pragma omp parallel for
    for (size_t part = 0; part < (n >> 16) + 1; part++) {
        Rng rng(seed << 32 | part);
        for (size_t i = part << 16; i < std::min(n, (part + 1) << 16); i++) v[i] = (float)rng.normal();
    }
    return v;
}

#ifndef BENCH_GPU
// ---- a CPU: its rates are measured between any two runs, because machines that are shared change theirs ----
inline std::string machine_name() {
    std::ifstream f("/proc/cpuinfo");
    for (std::string line; std::getline(f, line);)
        if (line.starts_with("model name")) return line.substr(line.find(": ") + 2);
    return "CPU";
}
inline double bandwidth(Memory memory) {     // bytes/s
    static Buffer<real> numbers(32 << 20);         // 128 MiB
    static volatile real sink;
    const double start = seconds();
    real *p = numbers.data(), sum = 0;
    if (memory == READ) {
        #pragma omp parallel for simd schedule(static) reduction(+ : sum)
        for (size_t i = 0; i < numbers.size; i++) sum += p[i];
    } else {
        #pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < numbers.size; i++) p[i] = p[i] * real(0.5);
    }
    sink = sum, (void)sink;
    return (memory == READ ? 1 : 2) * numbers.size * sizeof(real) / (seconds() - start);
}
inline double floor_of(const Work& work) {   // seconds
    const Unit unit = work.compute == BFLOAT16 ? cpu::unit() : Unit::NONE;
    return std::max(work.flops ? work.flops / cpu::measure_peak(unit, 1) : 0,
                    work.bytes ? work.bytes / bandwidth(work.memory) : 0);
}
inline int repeats() { return 1; }
inline Timing time_of(const Rung& rung, const Work& work) {
    std::vector<double> times, floors = {floor_of(work)};
    for (int r = 0; r < 9; r++) {
        const double start = seconds();
        rung.run();
        times.push_back(seconds() - start), floors.push_back(floor_of(work));
    }
    return {median(times), median(floors)};
}
#endif
