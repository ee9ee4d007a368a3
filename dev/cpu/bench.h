/* dev/cpu/bench.h -- what the files beside it share: a ladder of functions that compute the same thing, each checked
   against a result in double, timed, and set against what the machine can do.

     build/study_gemm             a table: median of 9 runs, rate, share of the roof, relative error
     build/study_gemm --check     the checks alone, on small shapes; `make test` runs these

   The roof is measured in the same process, before and after every timed run, and its median taken: multiply-adds in
   registers for what computes; for what moves memory, reading it, or an update in place. */
#pragma once
#define NO_CPU_MAIN
#include "../../train_gpt.cpp"
#include "../../test/check.h"
#include <functional>

struct Rung {
    const char* name;
    std::function<void()> run;
    double slowest = 1e10;                   // the most work that it is asked to do; beyond, it would take minutes
};

// A result, and what it should be. The error is ||got - want|| / ||want||, so that a NaN fails.
struct Result {
    float* got;
    std::vector<double> want;
    double limit;
    double error() const {
        double difference = 0, size = 0;
        for (size_t i = 0; i < want.size(); i++) {
            difference += (got[i] - want[i]) * (got[i] - want[i]);
            size += want[i] * want[i];
        }
        return std::sqrt(difference / size);
    }
};

enum Roof { COMPUTE, COMPUTE_BF16, READ, UPDATE };
inline const char* const ROOF_UNITS[] = {"GFLOP/s", "GFLOP/s", "GB/s", "GB/s"};

inline double measure(Roof roof) {           // in FLOP/s or bytes/s
    if (roof == COMPUTE || roof == COMPUTE_BF16) return cpu::measure_peak(roof == COMPUTE_BF16, 1);
    static Buffer numbers(32 << 20);         // 128 MiB
    static volatile real sink;
    const double start = seconds();
    real *p = numbers.data(), sum = 0;
    if (roof == READ) {
        #pragma omp parallel for simd schedule(static) reduction(+ : sum)
        for (size_t i = 0; i < numbers.size; i++) sum += p[i];
    } else {
        #pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < numbers.size; i++) p[i] = p[i] * real(0.5);
    }
    sink = sum, (void)sink;
    return (roof == READ ? 1 : 2) * numbers.size * sizeof(real) / (seconds() - start);
}

inline double median(std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
}

// work: FLOPs or bytes of one run. reset() gives the results the state that a run starts from: NaN, where it writes.
inline void climb(const std::string& title, bool timed, Roof roof, double work, const std::function<void()>& reset,
                  const std::vector<Result>& results, const std::vector<Rung>& rungs) {
    if (timed) printf("\n%-44s %10s %9s %9s %10s\n", title.c_str(), "ms", ROOF_UNITS[roof], "of roof", "rel. error");
    for (const Rung& rung : rungs) {
        if (work > rung.slowest) continue;
        reset();
        rung.run();
        double worst = 0, share = 0;
        for (const Result& r : results) keep_worst(worst, r.error()), keep_worst(share, r.error() / r.limit);
        if (!timed || !(share <= 1))
            check(share <= 1, "study/%s, %s: relative error %.1e, %.2f of its limit", title.c_str(), rung.name, worst,
                  share);
        if (!timed) continue;
        std::vector<double> times, roofs = {measure(roof)};
        for (int r = 0; r < 9; r++) {
            const double start = seconds();
            rung.run();
            times.push_back(seconds() - start), roofs.push_back(measure(roof));
        }
        const double t = median(times);
        printf("  %-42s %10.3f %9.1f %8.1f%% %10.1e\n", rung.name, t * 1e3, work / t / 1e9, 100 * work / t / median(roofs), worst);
        fflush(stdout);
    }
}

inline std::vector<float> random_floats(size_t n, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> v(n);
    for (float& f : v) f = (float)rng.normal();
    return v;
}
