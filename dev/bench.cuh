/* dev/bench.cuh -- what the ladders on a GPU share, on top of bench.h: arrays on the device, the clock, the roofs. A file
   beside it ends with a Study, a function that climbs its ladders; a program runs those of all files that it includes.

     make build/bench_layernorm && build/bench_layernorm [--check] [--write TABLE]          on a GPU
     make build/emulated_kernels && build/emulated_kernels [RUNS] [tiny|large]             without one: the checks alone

   The reference is the CPU program's function. It gets inputs that are rounded as the GPU's are; the limit for a result in
   bf16 is a rounding, 2^-8, where nothing else is said. A run is timed by the GPU's clock, from memory: the level-2 cache
   is filled with something else before. All rungs but those that add up in any order must give the same bits again, up
   to 20 times; emulated, with their threads in other orders every time. */
#pragma once
#define BENCH_GPU
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#include "bench.h"
using gpu::floatX, gpu::load, gpu::store, gpu::launch, gpu::blocks_for, gpu::warp_sum, gpu::WIDE, gpu::WARP;

struct Study {
    inline static std::vector<void (*)()> all;
    Study(void (*f)()) { all.push_back(f); }
};
// Shapes are tiny, for sanitizers; small, for every test; large, for long tests; or those of training, for a GPU alone.
enum Size { TINY, SMALL, LARGE, TRAINING };
inline Size largest = TRAINING;

inline void ok(cudaError_t e) { gpu::check(e, "CUDA", 0); }
inline cudaStream_t stream() { return gpu::device().stream; }

// ---- arrays on the device ----
// n numbers twice: on the CPU, where the reference finds its inputs and leaves its results, and on the device, rounded to
// T; results are NaN there until something is written. reset() makes the device's what they were at first.
template <typename T> struct Array {
    using Host = std::conditional_t<std::is_same_v<T, floatX>, float, T>;
    size_t n;
    std::vector<Host> host;
    std::vector<T> given;
    T* p = nullptr;
    explicit Array(size_t n) : n(n), host(n) { ok(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T))), reset(); }
    explicit Array(const std::vector<Host>& v) : n(v.size()), host(v), given(v.begin(), v.end()) {
        ok(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T))), reset();
    }
    Array(const Array&) = delete;
    ~Array() { cudaFree(p); }
    operator T*() const { return p; }        // on the device
    Host* cpu() { return host.data(); }
    void reset() const {
        if (given.empty()) ok(cudaMemsetAsync(p, 0xff, n * sizeof(T), stream()));
        else ok(cudaMemcpyAsync(p, given.data(), n * sizeof(T), cudaMemcpyHostToDevice, stream()));
        ok(cudaStreamSynchronize(stream()));
    }
    std::vector<T> get() const {
        std::vector<T> values(n);
        ok(cudaStreamSynchronize(stream()));
        ok(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }
};
// The device's numbers are to become what the reference left on the CPU.
template <typename T>
Result written(const char* name, const Array<T>& a, double limit_bf16, double limit_fp32 = 1e-5) {
    auto get = [&a] {
        const std::vector<T> values = a.get();
        return std::vector<float>(values.begin(), values.end());
    };
    return {name, get, {a.host.begin(), a.host.end()}, gpu::BF16 ? limit_bf16 : limit_fp32, [&a] { a.reset(); }};
}
constexpr double ONE = 0x1p-8;               // a rounding to bf16

// Normal numbers that floatX can hold; every call gives others.
inline uint64_t numbers_seed;
inline std::vector<float> numbers(size_t n, double scale = 1) {
    std::vector<float> v = random_floats(n, ++numbers_seed);
    for (float& f : v) f = float(floatX(float(scale * f)));
    return v;
}
inline std::vector<float> rounded(std::vector<float> v) {
    for (float& f : v) f = float(floatX(f));
    return v;
}

// ---- clock and roofs ----
inline std::string machine_name() { return gpu::device().properties.name; }
inline int repeats(size_t numbers) { return std::clamp(int(500e6 / numbers), 1, 20); }

// The level-2 cache is filled by reading: what is written would be written back while the next kernel runs.
__global__ void fill_cache_kernel(const float* p, size_t n, float* never) {
    float sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) sum += p[i];
    if (sum == 1) *never = sum;
}
__global__ void copy_kernel(floatX* to, const floatX* from, size_t n) {
    const size_t i = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    float v[WIDE];
    if (i < n) load(v, from + i), store(to + i, v);
}
inline double median_time(const std::function<void()>& run) {            // seconds; of 50 runs, or of fewer in 2 seconds
    static const Array<float> other(std::vector<float>(64 << 20));       // 256 MiB
    static cudaEvent_t begin = nullptr, end;
    if (!begin) ok(cudaEventCreate(&begin)), ok(cudaEventCreate(&end));
    std::vector<double> times;
    for (double all = 0; times.size() < 3 || (times.size() < 50 && all < 2);) {
        launch(fill_cache_kernel, 4 * gpu::device().processors(), 256, 0, other.p, other.n, other.p);
        ok(cudaEventRecord(begin, stream()));
        run();
        ok(cudaEventRecord(end, stream())), ok(cudaEventSynchronize(end));
        float ms;
        ok(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms / 1e3), all += ms / 1e3;
    }
    return median(times);
}
// FLOP/s of cuBLASLt on random numbers, 8192 in each direction (zeros would take less power, and be faster); and bytes/s
// of copying 1 GiB.
struct Roofs { double flops, bytes; };
inline const Roofs& roofs() {
    static const Roofs measured = [] {
        const int n = 8192;
        const Array<floatX> a(numbers((size_t)n * n)), b(numbers((size_t)n * n)), c((size_t)n * n);
        const Array<floatX> from((512 << 20) / sizeof(floatX)), to(from.n);
        const Roofs r = {2.0 * n * n * n / median_time([&] { gpu::multiply(c, a, b, {n, n, n, false, false, n, n, n}); }),
                         2.0 * from.n * sizeof(floatX) / median_time([&] {
                             launch(copy_kernel, blocks_for(from.n, 256 * WIDE), 256, 0, to.p, from.p, from.n);
                         })};
        printf("%s: products %.1f TFLOP/s, copying %.2f TB/s\n", machine_name().c_str(), r.flops / 1e12, r.bytes / 1e12);
        return r;
    }();
    return measured;
}
inline Timing time_of(const Rung& rung, const Work& work) {
    return {median_time(rung.run), std::max(work.flops / roofs().flops, work.bytes / roofs().bytes)};
}

int main(int argc, char** argv) {
    auto studies = [] { for (auto study : Study::all) study(); };
#ifndef CUDA_EMU
    return study_main(argc, argv, [&] {
        gpu::device(), largest = timed ? TRAINING : LARGE;
        studies();
    });
#else
    const int runs = argc > 1 ? atoi(argv[1]) : 3;
    largest = argc < 3 ? SMALL : !strcmp(argv[2], "large") ? LARGE : TINY, timed = false;
    for (int run = 0; run < runs; run++) {   // the first in natural order, others in adversarial ones
        emu::cfg.seed = run, emu::cfg.lazy = run > 0, emu::cfg.gang = run ? 1 + run % 4 : 1;
        numbers_seed = 0, report = run == 0;
        const int before = failed;
        studies();
        if (run) check(failed == before, "study/run %d gives the bits of the first", run + 1);
    }
    return failed > 0;
#endif
}
