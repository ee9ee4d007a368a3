/* test/broken.cpp -- small kernels with one defect each, and the same ones mended: the emulator must catch the first and
   have nothing to say of the second.      build/emulated_broken [NAME [mended]]
   A defect is caught by a message of the emulator, by a wrong result, or by results that differ between two orders of the
   threads; those that change no result, by the sanitizer that the program is built with. */
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#include "check.h"
#include <sys/wait.h>
using gpu::launch;

static void ok(cudaError_t e) { gpu::check(e, "CUDA", 0); }
static cudaStream_t stream() { return gpu::device().stream; }
// Results of a child go to its output, for the parent to compare, and must be what is expected.
static void result(const std::vector<float>& got, const std::vector<float>& want) {
    for (float f : got) printf("%a ", f);
    printf("\n");
    if (got != want) printf("wrong result\n"), exit(1);
}
struct Floats {                              // n floats on the device, uninitialized unless given
    float* p;
    size_t n;
    explicit Floats(size_t n) : n(n) { ok(cudaMalloc(&p, n * sizeof(float))); }
    Floats(const std::vector<float>& v) : Floats(v.size()) { ok(cudaMemcpy(p, v.data(), n * sizeof(float), cudaMemcpyHostToDevice)); }
    std::vector<float> get() const {
        std::vector<float> v(n);
        ok(cudaStreamSynchronize(stream())), ok(cudaMemcpy(v.data(), p, n * sizeof(float), cudaMemcpyDeviceToHost));
        return v;
    }
    operator float*() const { return p; }
};
static std::vector<float> count_up(int n, float from = 0) {
    std::vector<float> v(n);
    std::iota(v.begin(), v.end(), from);
    return v;
}
static std::vector<float> reversed(std::vector<float> v) { return {v.rbegin(), v.rend()}; }

// ---- barriers ----
template <bool BROKEN> __global__ void missing_barrier(float* out) {
    SHARED(values, float[64]);
    values[threadIdx.x] = threadIdx.x;
    if (!BROKEN) __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
}
template <bool BROKEN> __global__ void missing_second_barrier(float* out) {      // a slow thread still reads what is overwritten
    SHARED(values, float[64]);
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    const float first = values[63 - threadIdx.x];
    if (!BROKEN) __syncthreads();
    values[threadIdx.x] = 100 + threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = first + values[threadIdx.x] - 100 - threadIdx.x;
}
template <bool BROKEN> __global__ void divergent_barrier(float* out) {
    if (BROKEN && threadIdx.x < 32) __syncthreads();
    else __syncthreads();
    out[threadIdx.x] = threadIdx.x;
}
template <bool BROKEN> __global__ void early_exit(float* out) {
    out[threadIdx.x] = threadIdx.x;
    if (BROKEN && threadIdx.x >= 32) return;
    __syncthreads();
}
// ---- warps ----
template <bool BROKEN> __global__ void wrong_mask(float* out) {
    const float x = __shfl_xor_sync(BROKEN ? 0xffffu : 0xffffffffu, (float)threadIdx.x, 1);
    out[threadIdx.x] = x - (threadIdx.x ^ 1) + threadIdx.x;
}
template <bool BROKEN> __global__ void absent_lanes(float* out) {
    float x = threadIdx.x;
    if (!BROKEN || threadIdx.x % 32 < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);
    out[threadIdx.x] = x - (threadIdx.x ^ 1) + threadIdx.x;
}
template <bool BROKEN> __global__ void reads_absent_lane(float* out) {
    float x = threadIdx.x;
    if (threadIdx.x % 32 < 16) x = __shfl_sync(0xffffu, x, BROKEN ? 20 : threadIdx.x % 32);
    out[threadIdx.x] = x;
}
// ---- memory ----
template <bool BROKEN> __global__ void write_past_end(float* out) { out[threadIdx.x + (BROKEN && threadIdx.x == 63)] = threadIdx.x; if (BROKEN && threadIdx.x == 62) out[63] = 63; }
template <bool BROKEN> __global__ void read_past_end(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x + (BROKEN ? 1 : 0)]; }
template <bool BROKEN> __global__ void past_shared(float* out) {
    SHARED(values, float[64]);
    values[threadIdx.x + (BROKEN ? 1 : 0)] = threadIdx.x;
    out[threadIdx.x] = threadIdx.x;
}
template <bool BROKEN> __global__ void misaligned(float* out, const float* in) {
    float v[4];
    gpu::load(v, in + threadIdx.x * 4 + (BROKEN ? 1 : 0));
    gpu::store(out + threadIdx.x * 4, v);
}
template <bool BROKEN> __global__ void unwritten(float* out) { if (!BROKEN || threadIdx.x != 7) out[threadIdx.x] = threadIdx.x; }
template <bool BROKEN> __global__ void unwritten_shared(float* out) {
    SHARED(values, float[64]);
    if (!BROKEN || threadIdx.x != 7) values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}
// ---- asynchronous copies ----
#ifndef TRAIN_FP32
template <bool BROKEN> __global__ void copy_not_awaited(float* out, const float* in) {
    SHARED(pieces, float4[64]);
    float* const values = &pieces[0].x;
    gpu::copy_16(gpu::shared_address(&values[threadIdx.x * 4]), in + threadIdx.x * 4, true), gpu::copies_commit();
    if (!BROKEN) gpu::copies_wait<0>();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = values[threadIdx.x * 4 + i];
    gpu::copies_wait<0>();
}
template <bool BROKEN> __global__ void copies_of_others(float* out, const float* in) {
    SHARED(pieces, float4[64]);
    float* const values = &pieces[0].x;
    gpu::copy_16(gpu::shared_address(&values[threadIdx.x * 4]), in + threadIdx.x * 4, true), gpu::copies_commit();
    gpu::copies_wait<0>();
    if (!BROKEN) __syncthreads();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = values[255 - threadIdx.x * 4 - i];
}
#endif
// ---- between threads and blocks ----
template <bool BROKEN> __global__ void harmless_race(float* out) {       // all write the same number
    SHARED(value, float);
    if (BROKEN || threadIdx.x == 0) value = 1;
    __syncthreads();
    out[threadIdx.x] = value * threadIdx.x;
}
template <bool BROKEN> __global__ void last_block(float* out, float* parts, unsigned* done) {
    SHARED(last, bool);
    if (threadIdx.x < 8) parts[blockIdx.x * 8 + threadIdx.x] = blockIdx.x * 8 + threadIdx.x;
    if (!BROKEN) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(done, 1u) == gridDim.x - 1;
        if (!BROKEN) __threadfence();
    }
    __syncthreads();
    if (last) out[threadIdx.x] = parts[threadIdx.x];
}
template <bool BROKEN> __global__ void decides_on_nothing(float* out) {          // what was never written decides
    SHARED(limit, float);
    if (!BROKEN && threadIdx.x == 0) limit = 100;
    __syncthreads();
    out[limit > 1e30f ? 63 - threadIdx.x : threadIdx.x] = threadIdx.x;
}
template <bool BROKEN> __global__ void reads_after_array(float* out, const float* in) {
    const float beyond = threadIdx.x == 63 ? in[63 + (BROKEN ? 2 : 0)] : 0;
    out[threadIdx.x] = beyond > 1e30f ? 64 : threadIdx.x;
}
template <bool BROKEN> __global__ void order_of_sums(float* sum, float* parts) {         // with float atomics the order decides
    const float x = 1 / (blockIdx.x * 64 + threadIdx.x + 0.7f);
    if (BROKEN) atomicAdd(sum, x);
    else parts[blockIdx.x * 64 + threadIdx.x] = x;
}
template <bool BROKEN> __global__ void two_writers(float* out) {         // each block writes its share, or all of it
    for (int i = BROKEN ? 0 : blockIdx.x * 16 + threadIdx.x; i < (BROKEN ? 64 : (int)blockIdx.x * 16 + 16); i += 16)
        out[i % 64] = BROKEN ? blockIdx.x : i / 16;
}

struct Defect { const char *name, *caught_by; void (*run)(bool broken); };
#define ONE_KERNEL(kernel, message) {#kernel, message, [](bool broken) { \
    Floats out(64); \
    launch(broken ? kernel<true> : kernel<false>, 1, 64, 0, out.p); \
    result(out.get(), count_up(64)); }}
static const Defect DEFECTS[] = {
    {"missing_barrier", "wrong result", [](bool broken) {
        Floats out(64);
        launch(broken ? missing_barrier<true> : missing_barrier<false>, 1, 64, 0, out.p), result(out.get(), reversed(count_up(64))); }},
    {"missing_second_barrier", "wrong result", [](bool broken) {
        Floats out(64);
        launch(broken ? missing_second_barrier<true> : missing_second_barrier<false>, 1, 64, 0, out.p), result(out.get(), reversed(count_up(64))); }},
    ONE_KERNEL(divergent_barrier, "divergent __syncthreads"),
    ONE_KERNEL(early_exit, "__syncthreads"),
    ONE_KERNEL(wrong_mask, "is not in its own mask"),
    ONE_KERNEL(absent_lanes, "__shfl_xor_sync"),
    ONE_KERNEL(reads_absent_lane, "reads lane 20, which does not take part"),
    ONE_KERNEL(write_past_end, "touches device memory"),
    {"read_past_end", "touches device memory", [](bool broken) {
        Floats in(count_up(64)), out(64);
        launch(broken ? read_past_end<true> : read_past_end<false>, 1, 64, 0, out.p, (const float*)in.p), result(out.get(), count_up(64)); }},
    ONE_KERNEL(past_shared, "write past the end of shared array values"),
    {"misaligned", "misaligned 16-byte access", [](bool broken) {
        Floats in(count_up(260)), out(256);
        launch(broken ? misaligned<true> : misaligned<false>, 1, 64, 0, out.p, (const float*)in.p), result(out.get(), count_up(256)); }},
    ONE_KERNEL(unwritten, "wrong result"),
    ONE_KERNEL(unwritten_shared, "wrong result"),
    {"freed", "points into no live device allocation", [](bool broken) {
        Floats out(64);
        if (broken) ok(cudaFree(out.p));
        launch(missing_barrier<false>, 1, 64, 0, out.p), result(out.get(), reversed(count_up(64))); }},
    {"host_reads_device", "host code, EMU_SEED=0: touches device memory", [](bool broken) {
        Floats out(count_up(64));
        result({broken ? out.p[5] : out.get()[5]}, {5}); }},
    {"wrong_direction", "memcpy kind", [](bool broken) {
        Floats out(64);
        const std::vector<float> in = count_up(64);
        ok(cudaMemcpy(out.p, in.data(), 256, broken ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)), result(out.get(), in); }},
    {"copy_past_end", "overrun", [](bool broken) {
        Floats out(64);
        const std::vector<float> in = count_up(65);
        ok(cudaMemcpy(out.p, in.data(), broken ? 260 : 256, cudaMemcpyHostToDevice)), result(out.get(), count_up(64)); }},
    {"too_much_shared", "dynamic shared memory", [](bool broken) {
        Floats out(64);
        cudaLaunchConfig_t c = {};
        c.gridDim = dim3(1), c.blockDim = dim3(64), c.dynamicSmemBytes = broken ? 60 << 10 : 40 << 10, c.stream = stream();
        ok(cudaLaunchKernelEx(&c, missing_barrier<false>, out.p)), result(out.get(), reversed(count_up(64))); }},
    {"too_many_threads", "bad grid", [](bool broken) {
        Floats out(64);
        launch(missing_barrier<false>, 1, broken ? 2048 : 64, 0, out.p), result(out.get(), reversed(count_up(64))); }},
    {"not_awaited", "wrong result", [](bool broken) {        // the host looks before the device has copied
        Floats out(count_up(64));
        float* pinned;
        ok(cudaMallocHost(&pinned, 256));
        ok(cudaMemcpyAsync(pinned, out.p, 256, cudaMemcpyDeviceToHost, stream()));
        if (!broken) ok(cudaStreamSynchronize(stream()));
        result(std::vector<float>(pinned, pinned + 64), count_up(64)); }},
#ifndef TRAIN_FP32
    {"copy_not_awaited", "wrong result", [](bool broken) {
        Floats in(count_up(256)), out(256);
        launch(broken ? copy_not_awaited<true> : copy_not_awaited<false>, 1, 64, 0, out.p, (const float*)in.p), result(out.get(), count_up(256)); }},
    {"copies_of_others", "wrong result", [](bool broken) {
        Floats in(count_up(256)), out(256);
        launch(broken ? copies_of_others<true> : copies_of_others<false>, 1, 64, 0, out.p, (const float*)in.p), result(out.get(), reversed(count_up(256))); }},
#endif
    {"order_of_sums", "another result", [](bool broken) {
        Floats sum(std::vector<float>{0}), parts(std::vector<float>(512));
        launch(broken ? order_of_sums<true> : order_of_sums<false>, 8, 64, 0, sum.p, parts.p);
        const std::vector<float> p = parts.get(), s = broken ? sum.get() : std::vector<float>{std::accumulate(p.begin(), p.end(), 0.0f)};
        result(s, s); }},
    ONE_KERNEL(harmless_race, "ThreadSanitizer: data race"),
    {"last_block", "ThreadSanitizer: data race", [](bool broken) {
        Floats out(64), parts(64), done(std::vector<float>{0});
        launch(broken ? last_block<true> : last_block<false>, 8, 64, 0, out.p, parts.p, (unsigned*)done.p), result(out.get(), count_up(64)); }},
    ONE_KERNEL(decides_on_nothing, "MemorySanitizer: use-of-uninitialized-value"),
    {"reads_after_array", "AddressSanitizer", [](bool broken) {
        Floats in(count_up(64)), out(64);
        launch(broken ? reads_after_array<true> : reads_after_array<false>, 1, 64, 0, out.p, (const float*)in.p), result(out.get(), count_up(64)); }},
    {"two_writers", "wrong result", [](bool broken) {
        Floats out(64);
        launch(broken ? two_writers<true> : two_writers<false>, 4, 16, 0, out.p);
        std::vector<float> want(64);
        for (int i = 0; i < 64; i++) want[i] = i / 16;
        result(out.get(), want); }},
};

// What a child says, with its exit code; under one order of the threads.
static std::string run(const char* self, const char* name, bool broken, int seed) {
    int pipes[2];
    if (pipe(pipes)) return "no pipe";
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(pipes[1], 1), dup2(pipes[1], 2), close(pipes[0]);
        setenv("EMU_SEED", std::to_string(seed).c_str(), 1);
        if (!emu::ASAN) setenv("EMU_FENCE", "1", 1);         // which watches the ends of arrays itself
        setenv("EMU_SPIN_TIMEOUT", "1", 1), setenv("EMU_WORKERS", "2", 1);
        execl(self, self, name, broken ? "broken" : "mended", nullptr);
        _exit(127);
    }
    close(pipes[1]);
    std::string said;
    char buffer[4096];
    for (ssize_t n; (n = read(pipes[0], buffer, sizeof buffer)) > 0;) said.append(buffer, n);
    close(pipes[0]);
    int status;
    waitpid(pid, &status, 0);
    return said + format("exit %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char** argv) {
    const char* const sanitizer = emu::TSAN ? "ThreadSanitizer" : emu::MSAN ? "MemorySanitizer" : emu::ASAN ? "AddressSanitizer" : "";
    for (const Defect& d : DEFECTS) {
        if (argc < 2 && (*sanitizer ? !strstr(d.caught_by, sanitizer) : !!strstr(d.caught_by, "Sanitizer"))) continue;
        if (argc > 1) {
            if (!strcmp(argv[1], d.name)) return d.run(argc < 3 || strcmp(argv[2], "mended")), 0;
            continue;
        }
        const int seeds = *sanitizer ? 3 : 8;
        std::string caught, natural;
        int sound = 0;
        for (int seed = 0; seed < seeds; seed++) {
            const std::string broken = run(argv[0], d.name, true, seed), mended = run(argv[0], d.name, false, seed);
            if (seed == 0) natural = broken;
            const bool differs = !strcmp(d.caught_by, "another result") && broken != natural;
            if (caught.empty() && (broken.find(d.caught_by) != broken.npos || differs)) caught = format("with seed %d", seed);
            sound += mended.size() > 6 && mended.substr(mended.size() - 6) == "exit 0";
        }
        check(!caught.empty(), "broken/%s: %s%s", d.name, d.caught_by, caught.empty() ? (": not caught; " + natural).c_str() : (", " + caught).c_str());
        check(sound == seeds, "broken/%s, mended: nothing to say with %d of %d seeds%s", d.name, sound, seeds, sound == seeds ? "" : run(argv[0], d.name, false, 1).c_str());
    }
    return failed > 0;
}
