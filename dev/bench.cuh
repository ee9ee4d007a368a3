/* dev/bench.cuh -- what the ladders on a GPU share, on top of bench.h: arrays on the device, the clock, the roofs. A
   file beside it ends with a Study, a function that climbs its ladders; a program runs those of all files that it
   includes.

     make build/bench_layernorm && build/bench_layernorm [--check [tiny]] [--write TABLE]       on a GPU
     make build/emulated_kernels && build/emulated_kernels [RUNS [tiny|large]]           without one: the checks alone

   The reference is the CPU program's function. It gets inputs that are rounded as the GPU's are; the limit for a result
   in bf16 is a rounding, 2^-8, where nothing else is said. A run is timed by the GPU's clock, from memory: the level-2
   cache is filled with something else before. All rungs but those that add up in any order must give the same bits 20
   times more; emulated, with their threads in other orders every time. */
#pragma once
#define BENCH_GPU
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#include "bench.h"
using gpu::floatX, gpu::load, gpu::store, gpu::launch, gpu::ceil_div, gpu::warp_sum, gpu::WIDE, gpu::WARP;

struct Study {
    inline static std::vector<void (*)()> all;
    Study(void (*f)()) { all.push_back(f); }
};
inline void ok(cudaError_t e) {
    if (e != cudaSuccess) die("%s", cudaGetErrorString(e));
}
inline cudaStream_t stream() { return gpu::device().stream; }

// ---- arrays on the device ----
// The memory's bits, in units of 2 bytes: integers, so that the sum has no order.
__global__ void hash_kernel(const unsigned short* p, size_t n, unsigned long long* hash) {
    unsigned long long sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        unsigned long long x = (i << 16 | p[i]) * 0x9E3779B97F4A7C15ull;
        sum += (x ^ x >> 32) * 0xD6E8FEB86659FD93ull;
    }
    atomicAdd(hash, sum);
}

// n numbers on the device, of type T: those given, or NaN until something is written; reset() makes them so again. On
// the CPU, as far as cpu() is asked for, the reference's inputs and results.
template <typename T> struct Array {
    using Host = std::conditional_t<std::is_same_v<T, floatX>, float, T>;
    size_t n;
    std::vector<Host> host;
    bool given;
    T *p = nullptr, *start = nullptr;        // start: a copy of what was given, from the first reset on
    explicit Array(size_t n) : n(n), given(false) {
        ok(cudaMalloc(&p, bytes()));
        reset();
    }
    explicit Array(const std::vector<Host>& v) : n(v.size()), host(v), given(true) {
        const std::vector<T> values(v.begin(), v.end());
        ok(cudaMalloc(&p, bytes()));
        ok(cudaMemcpyAsync(p, values.data(), n * sizeof(T), cudaMemcpyHostToDevice, stream()));
        ok(cudaStreamSynchronize(stream()));
    }
    Array(const Array&) = delete;
    ~Array() { cudaFree(p), cudaFree(start); }
    operator T*() const { return p; }        // on the device
    Host* cpu() {
        host.resize(n);
        return host.data();
    }
    size_t bytes() const { return std::max<size_t>(n, 1) * sizeof(T); }
    void reset() {
        if (!given) return ok(cudaMemsetAsync(p, 0xff, n * sizeof(T), stream()));
        const bool first = !start;
        if (first) ok(cudaMalloc(&start, bytes()));
        ok(cudaMemcpyAsync(first ? start : p, first ? p : start, n * sizeof(T), cudaMemcpyDeviceToDevice, stream()));
    }
    std::vector<T> get() const {
        std::vector<T> values(n);
        ok(cudaStreamSynchronize(stream()));
        ok(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }
    uint64_t bits() const {
        static unsigned long long* const hash = [] {
            void* memory;
            return ok(cudaMalloc(&memory, 8)), (unsigned long long*)memory;
        }();
        unsigned long long value;
        ok(cudaMemsetAsync(hash, 0, 8, stream()));
        const size_t units = n * sizeof(T) / 2;
        launch(hash_kernel, std::min(ceil_div(units, 256), 4 * gpu::device().sms()), 256, 0,
               (const unsigned short*)p, units, hash);
        ok(cudaStreamSynchronize(stream()));
        ok(cudaMemcpy(&value, hash, 8, cudaMemcpyDeviceToHost));
        return value;
    }
};
// The device's numbers are to become those that the reference has left on the CPU. What they are before is kept from
// here on, whoever runs a rung next: one that adds to them may be timed before climb() resets them.
template <typename T> Result written(const char* name, Array<T>& a, double limit_bf16, double limit_fp32 = 1e-5) {
    a.reset();
    return {name, [&a] { return relative_error(a.get().data(), a.cpu(), a.n); }, gpu::BF16 ? limit_bf16 : limit_fp32,
            [&a] { a.reset(); }, [&a] { return a.bits(); }};
}
// What a rung leaves to itself on the way: no other may find it there.
template <typename T> Result forgotten(Array<T>& a) {
    return {"", [] { return 0.0; }, 1, [&a] { a.reset(); }, [] { return 0; }};
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

inline double norm(const std::vector<float>& v) {
    double sum = 0;
    for (float f : v) sum += (double)f * f;
    return std::sqrt(sum);
}

// ---- clock and roofs ----
inline std::string machine_name() { return gpu::device().properties.name; }
#ifdef CUDA_EMU
inline int repeats() { return 0; }           // main() runs all again, in another order
#else
inline int repeats() { return 20; }
#endif

// The level-2 cache is filled by reading: what is written would be written back while the next kernel runs.
__global__ void read_kernel(const floatX* p, size_t n, floatX* never) {
    float sum = 0, v[WIDE];
    const size_t first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    for (size_t i = first; i < n; i += size_t(gridDim.x) * blockDim.x * WIDE) {
        load(v, p + i);
        for (float f : v) sum += f;
    }
    if (sum == 1) *never = floatX(sum);
}
__global__ void copy_kernel(floatX* to, const floatX* from, size_t n) {
    const size_t i = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    float v[WIDE];
    if (i < n) {
        load(v, from + i);
        store(to + i, v);
    }
}
inline void read_all(const Array<floatX>& a) {
    launch(read_kernel, 8 * gpu::device().sms(), 256, 0, a.p, a.n, a.p);
}
inline double median_time(const std::function<void()>& run) {        // seconds; of 50 runs, or of fewer in 2 seconds
    static const Array<floatX> other((256 << 20) / sizeof(floatX));
    static cudaEvent_t begin = nullptr, end;
    if (!begin) {
        ok(cudaEventCreate(&begin));
        ok(cudaEventCreate(&end));
    }
    std::vector<double> times;
    for (double all = 0; times.size() < 3 || (times.size() < 50 && all < 2);) {
        read_all(other);
        ok(cudaEventRecord(begin, stream()));
        run();
        ok(cudaEventRecord(end, stream()));
        ok(cudaEventSynchronize(end));
        float ms;
        ok(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms / 1e3);
        all += ms / 1e3;
    }
    return median(times);
}
// FLOP/s of cuBLASLt on random numbers, 8192 in each direction (zeros would take less power, and be faster); bytes/s of
// reading, and of copying, 1 GiB.
struct Roofs { double flops, bytes[2]; };
inline const Roofs& roofs() {
    static const Roofs measured = [] {
        const int n = 8192;
        const Array<floatX> a(numbers((size_t)n * n)), b(numbers((size_t)n * n)), c((size_t)n * n);
        const Array<floatX> from((1 << 30) / sizeof(floatX)), to(from.n);
        const double product = median_time([&] { gpu::matmul(c, a, b, {n, n, n, false, false, n, n, n}); });
        const double copy = median_time([&] {
            launch(copy_kernel, ceil_div(from.n, 256 * WIDE), 256, 0, to.p, from.p, from.n);
        });
        const double bytes = double(1 << 30), read = median_time([&] { read_all(from); });
        const Roofs r = {2.0 * n * n * n / product, {bytes / read, 2 * bytes / copy}};
        printf("%s: products %.1f TFLOP/s, reading %.2f TB/s, copying %.2f TB/s\n", machine_name().c_str(),
               r.flops / 1e12, r.bytes[READ] / 1e12, r.bytes[UPDATE] / 1e12);
        return r;
    }();
    return measured;
}
inline Timing time_of(const Rung& rung, const Work& work) {              // whatever computes: tensor cores set the roof
    return {median_time(rung.run), std::max(work.flops / roofs().flops, work.bytes / roofs().bytes[work.memory])};
}

int main(int argc, char** argv) {
    auto studies = [] { for (auto study : Study::all) study(); };
#ifndef CUDA_EMU
    return study_main(argc, argv, [&] {
        gpu::device();
        if (timed) roofs();
        studies();
    });
#else
    const int runs = argc > 1 ? atoi(argv[1]) : 3;
    timed = false;
    largest = SMALL;
    if (runs < 1 || argc > 3 || (argc > 2 && !size_is(argv[2])))
        return fprintf(stderr, "usage: %s [RUNS [tiny|small|large]]\n", argv[0]), 2;
    const int code = run_main([&] {
        for (int run = 0; run < runs; run++) {               // the first in natural order, others in adversarial ones
            emu::settings.seed = run;
            numbers_seed = 0;
            report = run == 0;
            emu::settings.fence = run % 2 && !emu::ASAN;     // in turn: a forbidden page before the arrays, and behind
            const int before = failed;
            studies();
            if (run) check(failed == before, "study/run %d gives the bits of the first", run + 1);
        }
    });
    return code ? code : failed > 0;
#endif
}
