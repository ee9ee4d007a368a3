/* dev/host/machine.h -- what a program asks of the system it runs on: time, memory, signals, how its threads wait. */
#pragma once
#include "files.h"
#include <chrono>
#ifdef __linux__
#include <sys/auxv.h>
#endif

// What a GPU computes as a CPU does.
#ifdef __CUDACC__
#define HD __host__ __device__ inline
#else
#define HD inline
#endif

inline double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bytes that could be had, of the machine and of the container; SIZE_MAX where the system does not say.
inline size_t available_memory() {
    auto field = [](const char* path, const char* pattern) {
        size_t value = SIZE_MAX;
        char line[128];
        FILE* f = fopen(path, "r");
        while (f && fgets(line, sizeof line, f)) if (sscanf(line, pattern, &value) == 1) break;
        if (f) fclose(f);
        return value;
    };
    const size_t kb = field("/proc/meminfo", "MemAvailable: %zu"), machine = kb == SIZE_MAX ? kb : kb * 1024;
    const size_t limit = field("/sys/fs/cgroup/memory.max", "%zu");
    const size_t used = field("/sys/fs/cgroup/memory.stat", "anon %zu");
    return std::min(machine, limit == SIZE_MAX || used == SIZE_MAX ? limit : limit - std::min(limit, used));
}

// A first SIGINT, SIGTERM, SIGHUP, or an output that nobody reads any more, asks for an end; a second ends at once.
inline volatile sig_atomic_t stop_signal = 0;
inline void on_signal(int signal) {
    if (stop_signal) _exit(128 + signal);
    stop_signal = signal;
    ::signal(SIGPIPE, SIG_IGN);                              // who reads our output may be gone by now
}
inline void watch_signals() {
    for (int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE})             // under nohup the last is ignored, and remains so
        if (signal(number, on_signal) == SIG_IGN && number == SIGHUP) signal(number, SIG_IGN);
}

// OpenMP's waiting threads spin for milliseconds, which beside any other busy process costs far more than the work. The
// runtime reads its environment before main(), so the program starts itself again with a short spin.
inline void spin_briefly(char** argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    std::error_code none;
#ifdef __linux__
    if (getauxval(AT_BASE) == 0) return;                     // started through the loader: that is what would start
#endif
    setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv("KMP_BLOCKTIME", "1", 1);
    execv(fs::read_symlink("/proc/self/exe", none).c_str(), argv);
}

// What a model takes, in bytes.
struct Footprint {
    double weights, gradients, moments, activations;
    double all() const { return weights + gradients + moments + activations; }
    std::string text() const {
        return format("%.2f GB: weights %.2f, gradients %.2f, moments %.2f, activations %.2f", all() / 1e9,
                      weights / 1e9, gradients / 1e9, moments / 1e9, activations / 1e9);
    }
};

// Multiply-adds on numbers in registers, on all threads; how many FLOPs they were. A thread holds (MR,VECTORS) vectors.
template <typename vec, typename R, int MR, int VECTORS> double register_trial() {
    const int rounds = 40000, VL = sizeof(vec) / sizeof(R);
    R sink = 0;
    #pragma omp parallel reduction(+ : sink)
    {
        vec sums[MR][VECTORS], a, b;
        for (int j = 0; j < VL; j++) {
            a[j] = R(0.999);
            b[j] = R(0.001);
            for (int i = 0; i < MR; i++)                     // distinct values: the compiler would merge equal sums
                for (int v = 0; v < VECTORS; v++) sums[i][v][j] = i * VECTORS + v;
        }
        for (int r = 0; r < rounds; r++)
            for (int i = 0; i < MR; i++)
                for (int v = 0; v < VECTORS; v++) sums[i][v] = sums[i][v] * a + b;
        for (int i = 0; i < MR; i++) for (int v = 0; v < VECTORS; v++) sink += sums[i][v][0];
    }
    return sink > 0 ? 2.0 * MR * VECTORS * VL * rounds * omp_get_max_threads() : 0;      // sink: the sums are needed
}
