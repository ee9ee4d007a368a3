/* test/broken.cpp -- small kernels with one defect each, and the same ones mended: the emulator must catch the first
   and have nothing to say of the second.      build/emulated_broken [NAME [mended]]
   A defect is caught by a message of the emulator, by a wrong result, or by results that differ between two orders of
   the threads; those that change no result, by the sanitizer that the program is built with. */
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
    if (got != want) {
        printf("wrong result\n");
        exit(1);
    }
}
struct Floats {                              // n floats on the device, uninitialized unless given
    float* p;
    size_t n;
    explicit Floats(size_t n) : n(n) { ok(cudaMalloc(&p, n * sizeof(float))); }
    Floats(const std::vector<float>& v) : Floats(v.size()) {
        ok(cudaMemcpy(p, v.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    }
    std::vector<float> get() const {
        std::vector<float> v(n);
        ok(cudaStreamSynchronize(stream()));
        ok(cudaMemcpy(v.data(), p, n * sizeof(float), cudaMemcpyDeviceToHost));
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
// A slow thread still reads what is overwritten.
template <bool BROKEN> __global__ void missing_second_barrier(float* out) {
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
template <bool BROKEN> __global__ void write_past_end(float* out) {
    out[threadIdx.x + (BROKEN && threadIdx.x == 63)] = threadIdx.x;
    if (BROKEN && threadIdx.x == 62) out[63] = 63;
}
template <bool BROKEN> __global__ void read_past_end(float* out, const float* in) {
    out[threadIdx.x] = in[threadIdx.x + (BROKEN ? 1 : 0)];
}
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
template <bool BROKEN> __global__ void unwritten(float* out) {
    if (!BROKEN || threadIdx.x != 7) out[threadIdx.x] = threadIdx.x;
}
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
    gpu::copy_16(gpu::shared_address(&values[threadIdx.x * 4]), in + threadIdx.x * 4, true);
    gpu::copies_commit();
    if (!BROKEN) gpu::copies_wait<0>();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = values[threadIdx.x * 4 + i];
    gpu::copies_wait<0>();
}
template <bool BROKEN> __global__ void copies_of_others(float* out, const float* in) {
    SHARED(pieces, float4[64]);
    float* const values = &pieces[0].x;
    gpu::copy_16(gpu::shared_address(&values[threadIdx.x * 4]), in + threadIdx.x * 4, true);
    gpu::copies_commit();
    gpu::copies_wait<0>();
    if (!BROKEN) __syncthreads();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = values[255 - threadIdx.x * 4 - i];
}
// ---- sm_90: mbarriers, TMA, wgmma, clusters ----
DEVICE void mbarrier_init(unsigned b, unsigned count) {
    EMU(emu::mbarrier_init(b, count); emu::fence_mbarrier_init();)
    ASM("mbarrier.init.shared::cta.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(b), "r"(count) : "memory");
}
DEVICE void mbarrier_arrive(unsigned b) {
    EMU(emu::mbarrier_arrive(b);)
    ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory");
}
DEVICE void mbarrier_arrive_expect(unsigned b, int bytes) {
    EMU(emu::mbarrier_arrive_expect_tx(b, bytes);)
    ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(unsigned b, unsigned parity) {
    EMU(emu::mbarrier_wait(b, parity);)
    ASM("{\n.reg .pred p;\nL_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra L_%=;\n}"
        ::"r"(b), "r"(parity) : "memory");
}
DEVICE void load_box(unsigned to, const CUtensorMap* map, unsigned mbarrier, int x, int y) {
    EMU(emu::tma_load<2>(to, map, mbarrier, {x, y});)
    ASM("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        ::"r"(to), "l"(map), "r"(mbarrier), "r"(x), "r"(y) : "memory");
}
DEVICE void bulk_store(float* to, unsigned from, int bytes) {
    EMU(emu::bulk_store(to, from, bytes);)
    ASM("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
DEVICE void bulk_add(float* to, unsigned from, int bytes) {
    EMU(emu::bulk_add(to, from, bytes);)
    ASM("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
        ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
DEVICE void store_box(const CUtensorMap* map, unsigned from, int x, int y) {
    EMU(emu::tma_store<2>(map, from, {x, y});)
    ASM("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
        ::"l"(map), "r"(from), "r"(x), "r"(y) : "memory");
}
DEVICE void bulk_commit() { EMU(emu::bulk_commit();) ASM("cp.async.bulk.commit_group;" ::: "memory"); }
DEVICE void bulk_wait() { EMU(emu::bulk_wait<0>();) ASM("cp.async.bulk.wait_group 0;" ::: "memory"); }
DEVICE void bulk_wait_read() { EMU(emu::bulk_wait_read();) ASM("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
DEVICE void stores_visible() { EMU(emu::fence_proxy_async();) ASM("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void wgmma_fence() { EMU(emu::wgmma_fence();) ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { EMU(emu::wgmma_commit();) ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_wait() { EMU(emu::wgmma_wait<0>();) ASM("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
DEVICE void wgmma_64x8x16(float (&d)[4], uint64_t a, uint64_t b) {               // d = a b
    EMU(emu::wgmma_ss<8>(d, a, b, 0);)
    ASM("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b));
}
DEVICE unsigned cluster_rank() {
    unsigned rank = 0;
    EMU(rank = emu::cluster_ctarank();)
    ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void cluster_barrier() {
    EMU(emu::barrier_cluster();)
    ASM("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE float load_from(unsigned rank, unsigned shared) {     // shared memory of another block of the cluster
    float x = 0;
    EMU(x = *(const float*)emu::shared_pointer(emu::mapa(shared, rank));)
    ASM("{\n.reg .u32 a;\nmapa.shared::cluster.u32 a, %1, %2;\nld.shared::cluster.f32 %0, [a];\n}"
        : "=f"(x) : "r"(shared), "r"(rank) : "memory");
    return x;
}
DEVICE void wait_for_kernel_ahead() { EMU(emu::griddep_wait();) ASM("griddepcontrol.wait;" ::: "memory"); }

// Some may arrive before it is initialized.
template <bool BROKEN> __global__ void mbarrier_not_ready(float* out) {
    SHARED(barrier, uint64_t);
    const unsigned b = gpu::shared_address(&barrier);
    if (threadIdx.x == 0) mbarrier_init(b, 64);
    if (!BROKEN) __syncthreads();
    mbarrier_arrive(b);
    mbarrier_wait(b, 0);
    out[threadIdx.x] = threadIdx.x;
}
template <bool BROKEN> __global__ void missing_arrival(float* out) {
    SHARED(barrier, uint64_t);
    const unsigned b = gpu::shared_address(&barrier);
    if (threadIdx.x == 0) mbarrier_init(b, 64);
    __syncthreads();
    if (!BROKEN || threadIdx.x != 7) mbarrier_arrive(b);
    mbarrier_wait(b, 0);
    out[threadIdx.x] = threadIdx.x;
}
// The second phase is waited for as if it were the first.
template <bool BROKEN> __global__ void missing_phase(float* out) {
    SHARED(barrier, uint64_t);
    SHARED(values, float[64]);
    const unsigned b = gpu::shared_address(&barrier);
    if (threadIdx.x == 0) mbarrier_init(b, 64);
    __syncthreads();
    mbarrier_arrive(b);
    mbarrier_wait(b, 0);
    values[threadIdx.x] = threadIdx.x;
    mbarrier_arrive(b);
    mbarrier_wait(b, BROKEN ? 0 : 1);
    out[63 - threadIdx.x] = values[63 - threadIdx.x];
}
// A box of 8 x 8 numbers comes through TMA.
enum { SOUND, NOT_AWAITED, OTHER_PARITY, NOT_EXPECTED, TOO_FEW_EXPECTED, MISALIGNED, TOO_SMALL };
template <int DEFECT> __global__ void box(float* out, const __grid_constant__ CUtensorMap map) {
    struct alignas(128) Room { float x[DEFECT == TOO_SMALL ? 32 : 64]; };
    SHARED(barrier, uint64_t);
    SHARED(room, Room);
    const unsigned b = gpu::shared_address(&barrier);
    if (threadIdx.x == 0) {
        mbarrier_init(b, 1);
        if (DEFECT == NOT_EXPECTED) mbarrier_arrive(b);
        else mbarrier_arrive_expect(b, DEFECT == TOO_FEW_EXPECTED ? 128 : 256);
        load_box(gpu::shared_address(room.x) + (DEFECT == MISALIGNED ? 16 : 0), &map, b, 8, 4);
    }
    __syncthreads();
    if (DEFECT != NOT_AWAITED) mbarrier_wait(b, DEFECT == OTHER_PARITY);
    const float x = room.x[threadIdx.x];
    if (DEFECT == NOT_AWAITED) mbarrier_wait(b, 0);
    out[threadIdx.x] = x;
}
static CUtensorMap boxes(float* p, unsigned box_rows = 8, uint64_t rows = 16) {
    CUtensorMap map;
    const cuuint64_t size[] = {16, rows}, stride[] = {64};
    const cuuint32_t box[] = {8, box_rows}, element_stride[] = {1, 1};
    if (cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, p, size, stride, box, element_stride,
                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                               CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        printf("no tensor map has boxes of %u rows\n", box_rows);
        exit(1);
    }
    return map;
}
static void load_box(void (*kernel)(float*, CUtensorMap), unsigned box_rows = 8, uint64_t rows = 16) {
    Floats in(count_up(256)), out(64);
    launch(kernel, 1, 64, 0, out.p, boxes(in.p, box_rows, rows));
    std::vector<float> want(64);
    for (int i = 0; i < 64; i++) want[i] = (4 + i / 8) * 16 + 8 + i % 8;
    result(out.get(), want);
}
// 64 numbers leave shared memory, in a box or in a row, and come back to it by way of out.
enum { STORED = 0, REUSED, NOT_COMMITTED, ONLY_READ, LEFT_BEHIND, NO_PROXY_FENCE, FENCE_OF_ONE, FENCE_TOO_EARLY };
template <int DEFECT, bool BOX>
__global__ void leaves(float* out, float* copy, const __grid_constant__ CUtensorMap map) {
    struct alignas(128) Room { float x[64]; };
    SHARED(room, Room);
    const int i = threadIdx.x;
    if (DEFECT == FENCE_TOO_EARLY) stores_visible();
    room.x[i] = i;
    if (DEFECT < NO_PROXY_FENCE) stores_visible();
    __syncthreads();
    if (i == 0) {
        if (DEFECT == FENCE_OF_ONE) stores_visible();
        if (BOX) store_box(&map, gpu::shared_address(room.x), 8, 4);
        else bulk_store(out, gpu::shared_address(room.x), 256);
        if (DEFECT != NOT_COMMITTED) bulk_commit();
        if (DEFECT == ONLY_READ) bulk_wait_read();
        else if (DEFECT != REUSED && DEFECT != LEFT_BEHIND) bulk_wait();
        if (!BOX && DEFECT != REUSED && DEFECT != LEFT_BEHIND) for (int k = 0; k < 64; k++) copy[k] = out[k];
    }
    __syncthreads();
    if (DEFECT == LEFT_BEHIND) return;
    room.x[i] = -1;
    if (i == 0) bulk_wait();
    if (BOX || DEFECT == REUSED) copy[i] = i;
}
template <int DEFECT, bool BOX = false> static void store() {
    Floats out(std::vector<float>(256)), copy(64);
    launch(leaves<DEFECT, BOX>, 1, 64, 0, out.p, copy.p, boxes(out.p));
    std::vector<float> want(256), got = out.get();
    for (int i = 0; i < 64; i++) want[BOX ? (4 + i / 8) * 16 + 8 + i % 8 : i] = i;
    for (float f : copy.get()) got.push_back(f);
    for (int i = 0; i < 64; i++) want.push_back(i);
    result(got, want);
}
template <bool BROKEN> __global__ void adds_in_any_order(float* sum) {   // the one after the other, or as it comes
    struct alignas(16) Room { float x[128]; };
    SHARED(room, Room);
    room.x[threadIdx.x] = 1 / (threadIdx.x + 0.7f);
    room.x[threadIdx.x + 64] = 1 / (threadIdx.x + 0.3f);
    stores_visible();
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            bulk_add(sum, gpu::shared_address(room.x + i * 64), 256);
            bulk_commit();
            if (!BROKEN) bulk_wait();
        }
        bulk_wait();
    }
}
// 8 x 8 numbers lie together; two such along the 16 columns, which are summed over, and then the next 8 rows.
template <bool NO_FENCE, bool NO_WAIT, bool NO_PROXY = false> __global__ void product(float* out) {
    SHARED(a, float4[128]);                  // (64,16): i in row i of column 0
    SHARED(b, float4[16]);                   // (16,8): j in column j of row 0
    __nv_bfloat16 *A = (__nv_bfloat16*)a, *B = (__nv_bfloat16*)b;
    for (int i = threadIdx.x; i < 1024; i += 128) A[i] = i % 128 < 64 && i % 8 == 0 ? i / 128 * 8 + i % 64 / 8 : 0;
    B[threadIdx.x] = threadIdx.x < 64 && threadIdx.x % 8 == 0 ? (int)threadIdx.x / 8 : 0;
    if (!NO_PROXY) stores_visible();
    __syncthreads();
    const auto operand = [](const void* p) {
        return (gpu::shared_address(p) & 0x3ffff) >> 4 | uint64_t(128 >> 4) << 16 | uint64_t(256 >> 4) << 32;
    };
    float d[4] = {};
    if (!NO_FENCE) wgmma_fence();
    wgmma_64x8x16(d, operand(a), operand(b));
    wgmma_commit();
    if (!NO_WAIT) wgmma_wait();
    for (int q = 0; q < 4; q++) {
        const int lane = threadIdx.x % 32;
        const int row = threadIdx.x / 32 * 16 + lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
        out[row * 8 + column] = d[q];
    }
    if (NO_WAIT) wgmma_wait();
}
static void multiply(void (*kernel)(float*)) {
    Floats out(512);
    launch(kernel, 1, 128, 0, out.p);
    std::vector<float> want(512);
    for (int i = 0; i < 512; i++) want[i] = i / 8 * (i % 8);
    result(out.get(), want);
}
// Takes what the other block has.
template <bool NO_BARRIER, bool NO_SECOND> __global__ void neighbour(float* out) {
    SHARED(values, float[32]);
    values[threadIdx.x] = blockIdx.x * 32 + threadIdx.x;
    if (!NO_BARRIER) cluster_barrier();
    out[(1 - blockIdx.x) * 32 + threadIdx.x] = load_from(1 - cluster_rank(), gpu::shared_address(&values[threadIdx.x]));
    if (!NO_SECOND) cluster_barrier();
}
template <bool BROKEN> __global__ void takes_over(float* out, const float* in) {         // from the kernel ahead of it
    if (!BROKEN) wait_for_kernel_ahead();
    out[threadIdx.x] = in[threadIdx.x];
}
#endif
// ---- between threads and blocks ----
// Every block waits for all others, in a loop.
template <bool NO_SLEEP> __global__ void grid_barrier(float* out, float* parts, unsigned* arrived) {
    parts[blockIdx.x * 4 + threadIdx.x] = blockIdx.x * 4 + threadIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(arrived, 1u);
        while (NO_SLEEP ? *(volatile unsigned*)arrived < gridDim.x : atomicAdd(arrived, 0u) < gridDim.x)
            if (!NO_SLEEP) __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
    out[blockIdx.x * 4 + threadIdx.x] = parts[63 - blockIdx.x * 4 - threadIdx.x];
}
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
template <bool BROKEN> __global__ void maximum_of_more(float* out, const float* in) {    // one more than there are
    float maximum = -1;
    for (int i = 0; i < 64 + BROKEN; i++) maximum = fmaxf(maximum, in[i]);
    out[threadIdx.x] = threadIdx.x + maximum - 63;
}
template <bool BROKEN> __global__ void much_shared(float* out) {
    SHARED(values, float[BROKEN ? 13 << 10 : 12 << 10]);
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[threadIdx.x];
}
// With float atomics the order decides.
template <bool BROKEN> __global__ void order_of_sums(float* sum, float* parts) {
    const float x = 1 / (blockIdx.x * 64 + threadIdx.x + 0.7f);
    if (BROKEN) atomicAdd(sum, x);
    else parts[blockIdx.x * 64 + threadIdx.x] = x;
}
template <bool BROKEN> __global__ void two_writers(float* out) {         // each block writes its share, or all of it
    for (int i = BROKEN ? 0 : blockIdx.x * 16 + threadIdx.x; i < (BROKEN ? 64 : (int)blockIdx.x * 16 + 16); i += 16)
        out[i % 64] = BROKEN ? blockIdx.x : i / 16;
}

template <typename... P, typename... A>
static void launch_as(cudaLaunchAttributeID id, int value, void (*kernel)(P...), int blocks, int threads,
                      A&&... arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = id;
    if (id == cudaLaunchAttributeClusterDimension) {
        attribute.val.clusterDim.x = value;
        attribute.val.clusterDim.y = 1;
        attribute.val.clusterDim.z = 1;
    } else if (id == cudaLaunchAttributeCooperative) {
        attribute.val.cooperative = value;
    } else {
        attribute.val.programmaticStreamSerializationAllowed = value;
    }
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(blocks);
    c.blockDim = dim3(threads);
    c.stream = stream();
    c.attrs = &attribute;
    c.numAttrs = 1;
    ok(cudaLaunchKernelEx(&c, kernel, std::forward<A>(arguments)...));
}
static void meet_all(bool cooperative, bool sleeps) {
    Floats out(64), parts(64), arrived(std::vector<float>{0});
    launch_as(cudaLaunchAttributeCooperative, cooperative, sleeps ? grid_barrier<false> : grid_barrier<true>, 16, 4,
              out.p, parts.p, (unsigned*)arrived.p);
    result(out.get(), reversed(count_up(64)));
}

struct Defect { const char *name, *caught_by; void (*run)(bool broken); };
// Kernels of 64 threads that have to write what is wanted, and those that read 0, 1, 2 ..., `of` numbers, too.
#define WRITES(kernel, message, want) {#kernel, message, [](bool broken) { \
    const std::vector<float> expected = want; \
    Floats out(expected.size()); \
    launch(broken ? kernel<true> : kernel<false>, 1, 64, 0, out.p); \
    result(out.get(), expected); }}
#define READS(kernel, message, of, want) {#kernel, message, [](bool broken) { \
    const std::vector<float> expected = want; \
    Floats in(count_up(of)), out(expected.size()); \
    launch(broken ? kernel<true> : kernel<false>, 1, 64, 0, out.p, (const float*)in.p); \
    result(out.get(), expected); }}
#define ONE_KERNEL(kernel, message) WRITES(kernel, message, count_up(64))
// Kernels that have one defect of several.
#define BOX(name, message, defect) {#name, message, [](bool broken) { load_box(broken ? box<defect> : box<SOUND>); }}
#define STORE(name, message, defect, in_box) {#name, message, [](bool broken) { \
    if (broken) store<defect, in_box>(); \
    else store<STORED, in_box>(); }}
#define PRODUCT(name, message, ...) {#name, message, [](bool broken) { \
    multiply(broken ? product<__VA_ARGS__> : product<false, false>); }}
static const Defect DEFECTS[] = {
    WRITES(missing_barrier, "wrong result", reversed(count_up(64))),
    WRITES(missing_second_barrier, "wrong result", reversed(count_up(64))),
    ONE_KERNEL(divergent_barrier, "divergent __syncthreads"),
    ONE_KERNEL(early_exit, "__syncthreads"),
    ONE_KERNEL(wrong_mask, "is not in its own mask"),
    ONE_KERNEL(absent_lanes, "__shfl_xor_sync"),
    ONE_KERNEL(reads_absent_lane, "reads lane 20, which does not take part"),
    ONE_KERNEL(write_past_end, "touches device memory"),
    READS(read_past_end, "touches device memory", 64, count_up(64)),
    ONE_KERNEL(past_shared, "write past the end of shared array values"),
    READS(misaligned, "misaligned 16-byte access", 260, count_up(256)),
    ONE_KERNEL(unwritten, "wrong result"),
    ONE_KERNEL(unwritten_shared, "wrong result"),
    {"freed", "points into no live device allocation", [](bool broken) {
        Floats out(64);
        if (broken) ok(cudaFree(out.p));
        launch(missing_barrier<false>, 1, 64, 0, out.p);
        result(out.get(), reversed(count_up(64))); }},
    {"host_reads_device", "host code, EMU_SEED=0: touches device memory", [](bool broken) {
        Floats out(count_up(64));
        result({broken ? out.p[5] : out.get()[5]}, {5}); }},
    {"wrong_direction", "memcpy kind", [](bool broken) {
        Floats out(64);
        const std::vector<float> in = count_up(64);
        ok(cudaMemcpy(out.p, in.data(), 256, broken ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice));
        result(out.get(), in); }},
    {"copy_past_end", "overrun", [](bool broken) {
        Floats out(64);
        const std::vector<float> in = count_up(65);
        ok(cudaMemcpy(out.p, in.data(), broken ? 260 : 256, cudaMemcpyHostToDevice));
        result(out.get(), count_up(64)); }},
    {"too_much_shared", "dynamic shared memory", [](bool broken) {
        Floats out(64);
        cudaLaunchConfig_t c = {};
        c.gridDim = dim3(1);
        c.blockDim = dim3(64);
        c.dynamicSmemBytes = (broken ? 60 : 40) << 10;
        c.stream = stream();
        ok(cudaLaunchKernelEx(&c, missing_barrier<false>, out.p));
        result(out.get(), reversed(count_up(64))); }},
    {"more_shared_than_the_card_has", "sm_89 refuses 120 KB", [](bool broken) {
        emu::settings.capability = broken ? 89 : 80;
        Floats out(64);
        const auto size = cudaFuncAttributeMaxDynamicSharedMemorySize;
        if (cudaFuncSetAttribute(missing_barrier<false>, size, 120 << 10) != cudaSuccess) {
            printf("sm_%d refuses 120 KB\n", gpu::device().capability());
            exit(1);
        }
        launch(missing_barrier<false>, 1, 64, 120 << 10, out.p);
        result(out.get(), reversed(count_up(64))); }},
    {"too_many_threads", "bad grid", [](bool broken) {
        Floats out(64);
        launch(missing_barrier<false>, 1, broken ? 2048 : 64, 0, out.p);
        result(out.get(), reversed(count_up(64))); }},
    {"not_awaited", "wrong result", [](bool broken) {        // the host looks before the device has copied
        Floats out(count_up(64));
        float* pinned;
        ok(cudaMallocHost(&pinned, 256));
        ok(cudaMemcpyAsync(pinned, out.p, 256, cudaMemcpyDeviceToHost, stream()));
        if (!broken) ok(cudaStreamSynchronize(stream()));
        result(std::vector<float>(pinned, pinned + 64), count_up(64)); }},
#ifndef TRAIN_FP32
    READS(copy_not_awaited, "wrong result", 256, count_up(256)),
    READS(copies_of_others, "wrong result", 256, reversed(count_up(256))),
    ONE_KERNEL(mbarrier_not_ready, "no mbarrier was initialized"),
    ONE_KERNEL(missing_arrival, "deadlock"),
    ONE_KERNEL(missing_phase, "deadlock"),
    BOX(box_not_awaited, "wrong result", NOT_AWAITED),
    BOX(box_wrong_parity, "its block has ended", OTHER_PARITY),
    BOX(box_not_expected, "its block has ended", NOT_EXPECTED),
    BOX(box_of_more_bytes, "deadlock", TOO_FEW_EXPECTED),
    BOX(box_misaligned, "is not a multiple of 128", MISALIGNED),
    BOX(box_past_shared, "write past the end of shared array room", TOO_SMALL),
    {"box_too_large", "no tensor map", [](bool broken) { load_box(box<SOUND>, broken ? 512 : 8); }},
    {"tensor_past_end", "overrun", [](bool broken) { load_box(box<SOUND>, 8, broken ? 17 : 16); }},
    PRODUCT(wgmma_not_fenced, "wgmma without a wgmma.fence", true, false),
    PRODUCT(wgmma_not_awaited, "wrong result", false, true),
    {"wgmma_elsewhere", "wgmma: this GPU, of compute capability 10.0,", [](bool broken) {
        emu::settings.capability = broken ? 100 : 90;
        multiply(product<false, false>); }},
    {"box_before_sm_90", "of compute capability 8.9,", [](bool broken) {
        emu::settings.capability = broken ? 89 : 120;
        load_box(box<SOUND>); }},
    PRODUCT(wgmma_of_unfenced, "wgmma: reads what thread", false, false, true),
    STORE(bulk_source_reused, "wrong result", REUSED, false),
    STORE(bulk_not_committed, "before a bulk copy of thread 0 has read", NOT_COMMITTED, false),
    STORE(bulk_not_awaited, "wrong result", ONLY_READ, false),
    STORE(bulk_left_behind, "before a bulk copy of thread 0 has read", LEFT_BEHIND, false),
    STORE(bulk_unfenced, "bulk copy: reads what thread", NO_PROXY_FENCE, false),
    STORE(bulk_fenced_by_one, "bulk copy: reads what thread", FENCE_OF_ONE, false),
    STORE(bulk_fenced_too_early, "bulk copy: reads what thread", FENCE_TOO_EARLY, false),
    STORE(box_stored_reused, "wrong result", REUSED, true),
    STORE(box_stored_unfenced, "bulk copy: reads what thread", NO_PROXY_FENCE, true),
    {"bulk_adds_in_any_order", "another result", [](bool broken) {
        Floats sum(std::vector<float>(64, 1 / 3.0f));
        launch(broken ? adds_in_any_order<true> : adds_in_any_order<false>, 1, 64, 0, sum.p);
        const std::vector<float> s = sum.get();
        result(s, s); }},
    {"missing_cluster_barrier", "wrong result", [](bool broken) {
        Floats out(64);
        const auto kernel = broken ? neighbour<true, false> : neighbour<false, false>;
        launch_as(cudaLaunchAttributeClusterDimension, 2, kernel, 2, 32, out.p);
        result(out.get(), count_up(64)); }},
    {"leaves_cluster", "which has ended", [](bool broken) {
        Floats out(64);
        const auto kernel = broken ? neighbour<false, true> : neighbour<false, false>;
        launch_as(cudaLaunchAttributeClusterDimension, 2, kernel, 2, 32, out.p);
        result(out.get(), count_up(64)); }},
    {"kernel_ahead_not_awaited", "wrong result", [](bool broken) {
        Floats in(64), out(64);
        launch(unwritten<false>, 1, 64, 0, in.p);
        launch_as(cudaLaunchAttributeProgrammaticStreamSerialization, 1, broken ? takes_over<true> : takes_over<false>,
                  1, 64, out.p, (const float*)in.p);
        result(out.get(), count_up(64)); }},
#endif
    {"not_cooperative", "waits in a loop", [](bool broken) { meet_all(!broken, true); }},
    {"no_sleep", "in a loop without __nanosleep", [](bool broken) { meet_all(true, !broken); }},
    {"missing_event", "wrong result", [](bool broken) {      // two streams, and nothing says which goes first
        Floats in(64), out(64);
        cudaStream_t other;
        cudaEvent_t written;
        ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
        ok(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
        launch(unwritten<false>, 1, 64, 0, in.p);
        ok(cudaEventRecord(written, stream()));
        if (!broken) ok(cudaStreamWaitEvent(other, written, 0));
        ok(cudaMemcpyAsync(out.p, in.p, 256, cudaMemcpyDeviceToDevice, other));
        ok(cudaStreamSynchronize(other));
        result(out.get(), count_up(64)); }},
    {"pinned_reused", "wrong result", [](bool broken) {      // the host writes anew what the device has not copied yet
        Floats out(64);
        float* pinned;
        ok(cudaMallocHost(&pinned, 256));
        for (int i = 0; i < 64; i++) pinned[i] = i;
        ok(cudaMemcpyAsync(out.p, pinned, 256, cudaMemcpyHostToDevice, stream()));
        if (!broken) ok(cudaStreamSynchronize(stream()));
        for (int i = 0; i < 64; i++) pinned[i] = -1;
        result(out.get(), count_up(64)); }},
    {"order_of_sums", "another result", [](bool broken) {
        Floats sum(std::vector<float>{0}), parts(std::vector<float>(512));
        launch(broken ? order_of_sums<true> : order_of_sums<false>, 8, 64, 0, sum.p, parts.p);
        const std::vector<float> p = parts.get(), added = {std::accumulate(p.begin(), p.end(), 0.0f)};
        const std::vector<float> s = broken ? sum.get() : added;
        result(s, s); }},
    ONE_KERNEL(harmless_race, "ThreadSanitizer: data race"),
    {"last_block", "ThreadSanitizer: data race", [](bool broken) {
        Floats out(64), parts(64), done(std::vector<float>{0});
        launch(broken ? last_block<true> : last_block<false>, 8, 64, 0, out.p, parts.p, (unsigned*)done.p);
        result(out.get(), count_up(64)); }},
    ONE_KERNEL(decides_on_nothing, "MemorySanitizer: use-of-uninitialized-value"),
    READS(reads_after_array, "AddressSanitizer", 64, count_up(64)),
    {"maximum_of_more", "wrong result", [](bool broken) {
        emu::settings.fence = false;         // where the array's end is no page's
        Floats in(count_up(64)), out(64);
        launch(broken ? maximum_of_more<true> : maximum_of_more<false>, 1, 64, 0, out.p, (const float*)in.p);
        result(out.get(), count_up(64)); }},
    ONE_KERNEL(much_shared, "shared array values of 53248 bytes, more than 49152"),
    {"argument_of_host", "is the host's memory", [](bool broken) {
        const std::vector<float> host = count_up(64);
        Floats in(host), out(64);
        launch(maximum_of_more<false>, 1, 64, 0, out.p, broken ? host.data() : (const float*)in.p);
        result(out.get(), count_up(64)); }},
    {"memory_while_capturing", "cudaMalloc while a stream is being captured", [](bool broken) {
        cudaGraph_t graph;
        float* more = nullptr;
        ok(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
        if (broken) ok(cudaMalloc(&more, 4));
        ok(cudaStreamEndCapture(stream(), &graph));
        result({}, {}); }},
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
        dup2(pipes[1], 1);
        dup2(pipes[1], 2);
        close(pipes[0]);
        setenv("EMU_SEED", std::to_string(seed).c_str(), 1);
        if (!emu::ASAN) setenv("EMU_FENCE", "1", 1);         // which watches the ends of arrays itself
        setenv("EMU_SPIN_TIMEOUT", "1", 1);
        setenv("EMU_WORKERS", "2", 1);
        execl(self, self, name, broken ? "broken" : "mended", nullptr);
        _exit(127);
    }
    close(pipes[1]);
    std::string said;
    char buffer[4096];
    ssize_t n;
    while ((n = read(pipes[0], buffer, sizeof buffer)) > 0) said.append(buffer, n);
    close(pipes[0]);
    int status;
    waitpid(pid, &status, 0);
    return said + format("exit %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char** argv) {
    const char* const sanitizer = emu::TSAN ? "ThreadSanitizer"
                                : emu::MSAN ? "MemorySanitizer" : emu::ASAN ? "AddressSanitizer" : "";
    for (const Defect& d : DEFECTS) {
        if (argc > 1) {
            if (strcmp(argv[1], d.name)) continue;
            d.run(argc < 3 || strcmp(argv[2], "mended"));
            return 0;
        }
        if (*sanitizer ? !strstr(d.caught_by, sanitizer) : !!strstr(d.caught_by, "Sanitizer")) continue;
        const int seeds = *sanitizer ? 3 : 8;
        std::string natural, caught, said;
        int sound = 0;
        for (int seed = 0; seed < seeds; seed++) {
            const std::string mended = run(argv[0], d.name, false, seed);
            if (mended.size() > 6 && mended.substr(mended.size() - 6) == "exit 0") sound++;
            else said = mended;
            if (!caught.empty()) continue;
            const std::string broken = run(argv[0], d.name, true, seed);
            if (seed == 0) natural = broken;
            const bool by_difference = !strcmp(d.caught_by, "another result");
            if (by_difference ? broken != natural : broken.find(d.caught_by) != broken.npos) {
                caught = format("with seed %d", seed);
            }
        }
        const std::string how = caught.empty() ? ": not caught; " + natural : ", " + caught;
        check(!caught.empty(), "broken/%s: %s%s", d.name, d.caught_by, how.c_str());
        check(sound == seeds, "broken/%s, mended: nothing to say with %d of %d seeds%s", d.name, sound, seeds,
              said.c_str());
    }
    return failed > 0;
}
