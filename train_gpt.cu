/* train_gpt.cu -- trains GPT-2 models on one NVIDIA GPU, samples from them, and measures them.

   It is train_gpt.cpp, which it includes, with another model behind it: options, data, checkpoints and the training
   loop are the same; gpu::Model computes what cpu::Model does, with fused kernels. Matrix products are cuBLASLt's.

     make train_gpt_cuda            for the GPU of this machine, or for ARCH=90
     ./train_gpt_cuda train --train shard.bin --init d12 --batch 64 --context 1024 --out runs/a

   Numbers: weights, moments and gradients are fp32. Products and activations are bf16 (floatX) with sums in fp32, of
   weights that the optimizer rounds as it writes them. Built with -DTRAIN_FP32, floatX is float, to compare with CPUs.
   Every sum has a fixed order, so a run gives the same bits again on the same GPU. The host asks for all of a step,
   reads the next batch, and only then waits for loss and gradient norm.

   Sections
      1 what kernels stand on    2 instructions    3 layers    4 matmul      5 decoding    6 model    7 main
   A kernel's comment gives its maths, shapes, and the bytes it moves: what bounds all kernels but attention and the
   products. X stands for the bytes of one (B,T,C) activation.                                                       */

#define NO_CPU_MAIN
#ifdef TRAIN_FP32
#define DTYPE "fp32"
#define BASE_DTYPES "fp32"
#define PROGRAM "train_gpt_cuda_fp32"
#else
#define DTYPE "bf16"
#define BASE_DTYPES "bf16|int8|nf4"
#define PROGRAM "train_gpt_cuda"
#endif
#define DTYPES DTYPE
#define PROGRAM_HELP \
    "train_gpt_cuda computes in bf16, train_gpt_cuda_fp32 in fp32.\n" \
    "./" PROGRAM " --check compares small models on CPU and GPU, tensor by tensor.\n" \
    "A step's MFU is the share of the card's peak (data sheet: bf16, dense) that 6 P + 6 L C T operations a\n" \
    "token make, of P parameters. SOL is the time that the step would take at 80 % of that peak and 90 % of\n" \
    "the memory's, over the time it took.\n"
#include <cfloat>
#include <cublasLt.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include "train_gpt.cpp"
#ifndef SYNCHRONOUS                          // true by make DEBUG=1: the host waits for each kernel, to see its faults
#define SYNCHRONOUS false
#endif

namespace gpu {

// ---- 1. what kernels stand on ---------------------------------------------------------------------------------------
// The program also runs without a GPU, its kernels thread by thread on the CPU (test/emulation). For that, instructions
// that C++ cannot express have two bodies side by side, ASM for the GPU and EMU for the emulator, and shared memory is
// declared through a macro.
#ifndef CUDA_EMU
#define SHARED(name, ...) __shared__ __align__(16) std::type_identity_t<__VA_ARGS__> name
#define SHARED_DYNAMIC(name) extern __shared__ __align__(1024) unsigned char name[]
#define EMU(...)
#define ASM(...) asm volatile(__VA_ARGS__)
#else
#define SHARED_DYNAMIC(name) SHARED_DYN(name, 1024)
#define EMU(...) __VA_ARGS__
#define ASM(...)
#endif
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")             // the loop after it, so that arrays that it indexes lie in registers

constexpr bool BF16 = std::string_view(DTYPE) == "bf16";
using floatX = std::conditional_t<BF16, __nv_bfloat16, float>;
using std::max, std::min;                    // on the host; kernels call CUDA's ::min

// Calls of the CUDA runtime and of cuBLASLt: anything but success ends the program.
inline void check(cudaError_t e, const char* call, int line) {
    if (e != cudaSuccess) die("%s: %s (train_gpt.cu, line %d)", call, cudaGetErrorString(e), line);
}
inline void check(cublasStatus_t e, const char* call, int line) {
    if (e != CUBLAS_STATUS_SUCCESS) die("%s: cuBLAS status %d (train_gpt.cu, line %d)", call, (int)e, line);
}
#define CHECK(call) check(call, #call, __LINE__)

__global__ void probe_kernel() {}            // whether this program's kernels are for this GPU

// The GPU: the first that CUDA shows (CUDA_VISIBLE_DEVICES chooses), or one for each rank of a machine.
struct Device {
    cudaDeviceProp properties;
    cudaStream_t stream;
    cublasLtHandle_t cublas;
    void* workspace;
    size_t workspace_size = 32 << 20;
    int number;                              // as CUDA counts
    int built_for, ptx_for;                  // compute capabilities, times ten, of the machine code and of its PTX

    Device() {
        int count = 0;
        const cudaError_t error = cudaGetDeviceCount(&count);
        if (error != cudaSuccess || count == 0)
            die("no NVIDIA GPU, or no driver for CUDA %d.%d: %s; ./train_gpt runs without one", CUDART_VERSION / 1000,
                CUDART_VERSION % 1000 / 10, error != cudaSuccess ? cudaGetErrorString(error) : "no device is visible");
        CHECK(cudaGetDevice(&number));
        CHECK(cudaGetDeviceProperties(&properties, number));
        cudaFuncAttributes kernel;
        if (cudaFuncGetAttributes(&kernel, probe_kernel) != cudaSuccess)
            die("%s: %s; build for this GPU: make train_gpt_cuda ARCH=%d", properties.name,
                cudaGetErrorString(cudaGetLastError()), capability());
        built_for = kernel.binaryVersion;
        ptx_for = kernel.ptxVersion;
        CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        CHECK(cublasLtCreate(&cublas));
        CHECK(cudaMalloc(&workspace, workspace_size));
    }
    int sms() const { return properties.multiProcessorCount; }
    int capability() const { return 10 * properties.major + properties.minor; }
    // FLOP/s of the tensor cores in bf16, dense, with fp32 sums, for which a GeForce has half the rate: per SM
    // as on a generation's largest card. Sources: NVIDIA's data sheets of A100, A40, L40S, H100 and H200 SXM, B200 and
    // RTX PRO 6000, and its white papers on the GeForce RTX 3090, 4090 and 5090.
    double peak() const {
        const struct { int capability; const char* name; double flops; int sms; } generations[] = {
            {120, "GeForce", 209.5e12, 170}, {120, "", 503.8e12, 188}, {100, "", 2250e12, 148}, {90, "", 989.4e12, 132},
            {89, "GeForce", 165.2e12, 128}, {89, "", 362e12, 142}, {86, "GeForce", 71e12, 82}, {86, "", 149.7e12, 84}};
        for (auto& g : generations)
            if (capability() >= g.capability && strstr(properties.name, g.name)) return g.flops / g.sms * sms();
        return 312e12 / 108 * sms();
    }
    double bandwidth() const {               // of the memory, bytes/s: two transfers a clock
        int khz = 0, bits = 0;
        CHECK(cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, number));
        CHECK(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, number));
        return 2e3 * khz * bits / 8;         // 0 where the driver does not say
    }
};
inline Device& device() {
    static Device d;
    return d;
}

// early: it may begin before the kernel ahead of it has ended, up to its kernel_ahead_wait(), which it must have.
template <typename... P, typename... A>
void launch_if(bool early, void (*kernel)(P...), dim3 grid, int threads, size_t shared, A&&... arguments) {
    if (shared > 40 << 10)                   // plus static shared memory, perhaps over the 48 KB that need no opt-in
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = {.gridDim = grid, .blockDim = dim3(threads), .dynamicSmemBytes = shared,
        .stream = device().stream, .attrs = &attribute, .numAttrs = early && device().ptx_for >= 90};
    const char* name = "a kernel";
    if (SYNCHRONOUS) cudaFuncGetName(&name, (const void*)kernel);        // now: after a fault every call fails
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...);
    if (SYNCHRONOUS && error == cudaSuccess) error = cudaStreamSynchronize(device().stream);
    if (error == cudaSuccess) return;
    if (!SYNCHRONOUS) cudaFuncGetName(&name, (const void*)kernel);
    die("%s: %u x %u x %u blocks of %d threads, %zu bytes of shared memory: %s", name, grid.x, grid.y, grid.z, threads,
        shared, cudaGetErrorString(error));
}
template <typename... A> void launch(A&&... arguments) { launch_if(false, std::forward<A>(arguments)...); }
template <typename... A> void launch_early(A&&... arguments) { launch_if(true, std::forward<A>(arguments)...); }
inline int ceil_div(size_t n, int each) { return int((n + each - 1) / each); }
inline int threads_for(size_t n, int most) { return (int)std::min<size_t>(most, (n + 31) / 32 * 32); }    // whole warps
DEVICE size_t thread_index() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }   // among those of all blocks
DEVICE size_t all_threads() { return size_t(gridDim.x) * blockDim.x; }

// W neighbours at once, as float. Kernels are made for W = 16 bytes and, for sizes that are no multiple of it, W = 1.
constexpr int WIDE = 16 / sizeof(floatX);
template <typename T, int W> struct alignas(sizeof(T) * W) Pack { T v[W]; };
template <int W, typename T> DEVICE Pack<T, W> fetch(const T* p) {
    EMU(emu::aligned<sizeof(T) * W>(p);)
    return *reinterpret_cast<const Pack<T, W>*>(p);
}
template <int W, typename T> DEVICE void load(float (&x)[W], const T* p) {
    const Pack<T, W> pack = fetch<W>(p);
    for (int i = 0; i < W; i++) x[i] = float(pack.v[i]);
}
template <int W, typename T> DEVICE void add(float (&sum)[W], const T* p) {
    float x[W];
    load(x, p);
    for (int i = 0; i < W; i++) sum[i] += x[i];
}
template <int W, typename T> DEVICE void store(T* p, const float (&x)[W]) {
    EMU(emu::aligned<sizeof(T) * W>(p);)
    Pack<T, W> pack;
    for (int i = 0; i < W; i++) pack.v[i] = T(x[i]);
    *reinterpret_cast<Pack<T, W>*>(p) = pack;
}
// WIDE numbers as they lie in memory, to be kept: in four registers, where a Pack of bf16 may take eight.
using Raw = Pack<unsigned, 4>;
DEVICE Raw fetch_raw(const floatX* p) { return fetch<4>((const unsigned*)p); }
DEVICE void load(float (&x)[WIDE], const Raw& raw) {
    Pack<floatX, WIDE> pack;
    memcpy(&pack, &raw, sizeof pack);
    for (int i = 0; i < WIDE; i++) x[i] = float(pack.v[i]);
}
// kernel<WIDE> if WIDE divides the columns, else kernel<1>; and the same choice of a number
#define WIDTH(columns, kernel, ...) \
    ((columns) % WIDE ? kernel<1 __VA_OPT__(,) __VA_ARGS__> : kernel<WIDE __VA_OPT__(,) __VA_ARGS__>)
inline int width(size_t columns) { return columns % WIDE ? 1 : WIDE; }

// f(f(x, y), z) ... over all lanes of a warp, and over all threads of a block, a multiple of 32; every thread gets the
// result. f(x, none) is x.
constexpr unsigned WARP = 0xffffffffu;       // all lanes
template <typename X, typename F> DEVICE X over_warp(X x, F f) {
    for (int o = 16; o; o >>= 1) x = f(x, __shfl_xor_sync(WARP, x, o));
    return x;
}
template <typename X, typename F> DEVICE X over_block(X x, F f, X none) {
    SHARED(parts, X[32]);
    x = over_warp(x, f);
    __syncthreads();                         // parts may still be read from the last time
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    return over_warp(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : none, f);
}
DEVICE float warp_sum(float x) { return over_warp(x, [](float x, float y) { return x + y; }); }
template <typename X> DEVICE X block_sum(X x) { return over_block(x, [](X x, X y) { return x + y; }, X(0)); }
DEVICE float block_max(float x) { return over_block(x, [](float x, float y) { return fmaxf(x, y); }, -INFINITY); }

// ---- 2. instructions ------------------------------------------------------------------------------------------------
// One function for each PTX instruction that C++ cannot express: what the emulator does instead, and the instruction,
// under whose name the PTX ISA explains it, with its operands.
#define INSTRUCTION(function, emulated, ...) DEVICE void function { EMU(emulated;) ASM(__VA_ARGS__ : "memory"); }
constexpr float LOG2E = 1.4426950408889634f;
DEVICE unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
DEVICE float power_of_2(float x) {           // 2 ulp; 0 for what would be subnormal
    float y = 0;
    EMU(y = exp2f(x);)
    ASM("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE unsigned pair(float low, float high) {                // as bf16
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    unsigned bits;
    memcpy(&bits, &two, 4);
    return bits;
}
DEVICE unsigned uniform(unsigned x) { return __shfl_sync(WARP, x, 0); }  // tells the compiler that all lanes have one x
DEVICE bool elected() {                      // true in one lane of a warp, always the same, as the compiler knows
    EMU(return emu::elect_sync();)
    unsigned yes = 0;
    ASM("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(yes));
    return yes;
}
template <int NUMBER>                        // __syncthreads() is number 0
INSTRUCTION(barrier(int threads), emu::bar_sync(NUMBER, threads), "bar.sync %0, %1;" ::"n"(NUMBER), "r"(threads))

// cp.async: copies from global to shared memory that bypass the registers. The thread that issued them sees them after
// copies_wait(), other threads after a barrier that follows it.
INSTRUCTION(copy_16(unsigned to, const void* from, bool present),        // zeros if not present
            emu::cp_async(to, from, 16, present ? 16 : 0, "cp.async"),
            "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0))
INSTRUCTION(copies_commit(), emu::cp_async_commit(), "cp.async.commit_group;" ::)
template <int LEFT>                          // until all groups but the last LEFT are there
INSTRUCTION(copies_wait(), emu::cp_async_wait(LEFT), "cp.async.wait_group %0;" ::"n"(LEFT))
DEVICE void copies_finish() {
    copies_commit();
    copies_wait<0>();
}
// W neighbours, or zeros
template <int W> DEVICE void copy(floatX* to, const floatX* from, bool present = true) {
    if constexpr (W == WIDE) copy_16(shared_address(to), from, present);
    else *to = present ? *from : floatX(0);
}

// Programmatic dependent launch (sm_90): a kernel that is launched early may begin when all blocks of the kernel ahead
// have called next_kernel_may_begin(). What that kernel and those before it have written is there after
// kernel_ahead_wait().
#if defined(CUDA_EMU) || __CUDA_ARCH__ >= 900
INSTRUCTION(next_kernel_may_begin(), emu::griddep_launch(), "griddepcontrol.launch_dependents;" ::)
INSTRUCTION(kernel_ahead_wait(), emu::griddep_wait(), "griddepcontrol.wait;" ::)
#else
DEVICE void next_kernel_may_begin() {}
DEVICE void kernel_ahead_wait() {}
#endif

// Tensor cores, as a warp uses them: it multiplies A (16,16) by B (16,8) and adds to C (16,8). Lane l holds of C the
// numbers (l / 4 + 8 i, l % 4 * 2 + j) in c[2 i + j], and of A and B pairs of bf16 numbers in registers, which ldmatrix
// fetches from shared memory, 8 x 8 numbers at a time. ("Matrix Fragments for mma.m16n8k16")
DEVICE int row_of(int lane, int e) { return lane / 4 + e / 2 * 8; }      // in C, of c[e]
DEVICE int column_of(int lane, int n, int e) { return n * 8 + lane % 4 * 2 + e % 2; }    // and in the n-th C of a row
template <typename F> DEVICE float over_row(float x, F f) {              // over the four lanes that share rows of C
    x = f(x, __shfl_xor_sync(WARP, x, 1));
    return f(x, __shfl_xor_sync(WARP, x, 2));
}
DEVICE float row_sum(float x) { return over_row(x, [](float x, float y) { return x + y; }); }
DEVICE float row_max(float x) { return over_row(x, [](float x, float y) { return fmaxf(x, y); }); }
INSTRUCTION(load_fragments(unsigned (&r)[4], unsigned from), (emu::ldmatrix<4, false>(r, from)),
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from))
INSTRUCTION(load_transposed(unsigned (&r)[4], unsigned from), (emu::ldmatrix<4, true>(r, from)),
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from))
INSTRUCTION(store_fragments(unsigned to, const unsigned (&r)[4]), (emu::stmatrix<4, false>(to, r)),      // the reverse
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
            ::"r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]))
DEVICE void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    EMU(unsigned b[2] = {b0, b1}; emu::mma_m16n8k16_bf16(c, a, b);)
    ASM("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// From here on: sm_90, in part sm_90a alone. One thread asks TMA to copy a box of a tensor between global and shared
// memory. An mbarrier tells of its arrival: a phase completes when `count` threads have arrived and all announced bytes
// are there. mbarrier_wait() takes the parity of the phase that it waits for: 0 for the first, then 1, 0, ...
#if defined(CUDA_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SM90A 1                              // else kernels that need it are empty, and nobody launches them
#endif
INSTRUCTION(mbarrier_init(unsigned b, unsigned count), emu::mbarrier_init(b, count); emu::fence_mbarrier_init(),
            "mbarrier.init.shared::cta.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(b), "r"(count))
INSTRUCTION(mbarrier_arrive(unsigned b), emu::mbarrier_arrive(b), "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b))
INSTRUCTION(mbarrier_expect(unsigned b, int bytes), emu::mbarrier_arrive_expect_tx(b, bytes),    // arrives, announces
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes))
INSTRUCTION(mbarrier_wait(unsigned b, unsigned parity), emu::mbarrier_wait(b, parity),
            "{\n.reg .pred p;\nL_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra L_%=;\n}"
            ::"r"(b), "r"(parity))
// The box of the tensor (batches,rows,columns) at (b,row,column), from memory; outside of the tensor are zeros.
INSTRUCTION(load_box(unsigned to, const CUtensorMap* map, unsigned mbarrier, int column, int row, int b),
            emu::tma_load<3>(to, map, mbarrier, {column, row, b}),
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5}], [%2];"
            ::"r"(to), "l"(map), "r"(mbarrier), "r"(column), "r"(row), "r"(b))
// From shared to global memory, in bulk groups that the issuing thread waits for: a box, clipped to its tensor; bytes;
// fp32 numbers, added to those there. Groups complete in any order unless one is waited for before the next is issued.
INSTRUCTION(store_box(const CUtensorMap* map, unsigned from, int column, int row, int b),
            emu::tma_store<3>(map, from, {column, row, b}),
            "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2,%3,%4}], [%1];"
            ::"l"(map), "r"(from), "r"(column), "r"(row), "r"(b))
INSTRUCTION(bulk_store(float* to, unsigned from, int bytes), emu::bulk_store(to, from, bytes),
            "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes))
INSTRUCTION(bulk_add(float* to, unsigned from, int bytes), emu::bulk_add(to, from, bytes),
            "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
            ::"l"(to), "r"(from), "r"(bytes))
INSTRUCTION(bulk_commit(), emu::bulk_commit(), "cp.async.bulk.commit_group;" ::)
INSTRUCTION(bulk_wait(), emu::bulk_wait<0>(), "cp.async.bulk.wait_group 0;" ::)                  // until all is written
INSTRUCTION(bulk_wait_read(), emu::bulk_wait_read(), "cp.async.bulk.wait_group.read 0;" ::)      // until all is read
// Makes this thread's stores to shared memory visible to TMA and wgmma; all threads' stores, with a barrier after it.
INSTRUCTION(stores_visible(), emu::fence_proxy_async(), "fence.proxy.async.shared::cta;" ::)

/* Tensor cores, as the four warps of a warpgroup use them (wgmma): d (64,N) = a (64,16) b (16,N), or d += a b, while
   the warps go on. Lane l of warp w holds d's number (16 w + l / 4 + 8 i, 8 n + l % 4 * 2 + j) in d[4 n + 2 i + j].
   b, and a of multiply_shared(), lie in shared memory as TMA leaves them: panels of 64 numbers a row, in 128 bytes
   whose 16-byte pieces are permuted by the row's number (the 128-byte swizzle). A panel's row is one m or n, with k
   along it (K-major); if TRANSPOSED, it is one k (MN-major). An Operand is the address of a part: the next 16 k begin
   32 bytes further, or 16 rows if TRANSPOSED. ("Asynchronous Warpgroup Level Matrix Instructions") */
constexpr int PANEL_ROW = 128;               // bytes
struct Operand {                             // the lower half of a matrix descriptor; all have the same upper half
    unsigned low;
    DEVICE explicit Operand(unsigned address) : low(address >> 4 | 1 << 16) {}
    DEVICE uint64_t after(int bytes) const { return uint64_t(1024 >> 4 | 1 << 30) << 32 | (low + bytes / 16); }
};
// where the k-th 16 columns of a tile begin: panels of `rows` rows, one after the other
constexpr DEVICE int columns_16(int k, int rows) { return k / 4 * rows * PANEL_ROW + k % 4 * 32; }
// Orders the wgmmas that follow after all other accesses to their registers.
INSTRUCTION(wgmma_fence(), emu::wgmma_fence(), "wgmma.fence.sync.aligned;" ::)
INSTRUCTION(wgmma_commit(), emu::wgmma_commit(), "wgmma.commit_group.sync.aligned;" ::)
template <int LEFT>                          // until all groups but the last LEFT are done
INSTRUCTION(wgmma_wait(), emu::wgmma_wait<LEFT>(), "wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT))
#define NUMBERS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NUMBERS_8(d, i) NUMBERS_4(d, i), NUMBERS_4(d, i + 4)
#define NUMBERS_32(d, i) NUMBERS_8(d, i), NUMBERS_8(d, i + 8), NUMBERS_8(d, i + 16), NUMBERS_8(d, i + 24)
#define REGISTERS_0_31 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
    "%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS_32_63 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
    "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
template <bool A_TRANSPOSED = false, bool B_TRANSPOSED = false>
DEVICE void multiply_shared(float (&d)[32], uint64_t a, uint64_t b, bool add) {
    EMU(emu::wgmma_ss<64>(d, a, b, add, A_TRANSPOSED, B_TRANSPOSED);)
    ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        REGISTERS_0_31 "}, %32, %33, p, 1, 1, %35, %36;\n}"
        : NUMBERS_32(d, 0) : "l"(a), "l"(b), "r"((int)add), "n"((int)A_TRANSPOSED), "n"((int)B_TRANSPOSED));
}
DEVICE void multiply_shared(float (&d)[64], uint64_t a, uint64_t b, bool add) {
    EMU(emu::wgmma_ss<128>(d, a, b, add, false, false);)
    ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        REGISTERS_0_31 "," REGISTERS_32_63 "}, %64, %65, p, 1, 1, 0, 0;\n}"
        : NUMBERS_32(d, 0), NUMBERS_32(d, 32) : "l"(a), "l"(b), "r"((int)add));
}
// a in registers, as pairs of bf16: a[2 k + i] holds (16 w + l / 4 + 8 i, 8 k + l % 4 * 2) and its neighbour
template <bool B_TRANSPOSED = false>
DEVICE void multiply_registers(float (&d)[32], const unsigned (&a)[4], uint64_t b, bool add) {
    EMU(emu::wgmma_rs<64>(d, a, b, add, B_TRANSPOSED);)
    ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        REGISTERS_0_31 "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
        : NUMBERS_32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)B_TRANSPOSED));
}
// The n-th 8 columns of a result, as pairs of bf16, to where multiply_registers() wants them.
template <int K> DEVICE void round_columns(unsigned (&a)[K][4], const float (&d)[8 * K], int n) {
    UNROLL for (int i = 0; i < 2; i++) a[n / 2][n % 2 * 2 + i] = pair(d[4 * n + 2 * i], d[4 * n + 2 * i + 1]);
}
// d (64,N) = a b^T, of tiles of HS columns; a is a part of one of ROWS rows
template <int HS, int ROWS, int N> DEVICE void multiply_transposed(float (&d)[N], Operand a, Operand b) {
    wgmma_fence();
    UNROLL for (int k = 0; k < HS / 16; k++)
        multiply_shared(d, a.after(columns_16(k, ROWS)), b.after(columns_16(k, 2 * N)), k > 0);
    wgmma_commit();
}
// d (64, 64 PANELS) = a b, or d += a b; of a (64, 16 K) in registers, and all rows of a tile b
template <int PANELS, int K>
DEVICE void multiply_results(float (&d)[PANELS][32], const unsigned (&a)[K][4], Operand b, bool add) {
    wgmma_fence();
    UNROLL for (int k = 0; k < K; k++)
        UNROLL for (int n = 0; n < PANELS; n++)
            multiply_registers<true>(d[n], a[k], b.after((n * K + k) * 16 * PANEL_ROW), add || k > 0);
    wgmma_commit();
}

// ---- 3. layers ------------------------------------------------------------------------------------------------------
/* Column sums take two kernels, so that their order is fixed: each block sums up its share of the rows and writes one
   row of partial (blocks,columns); then add_partials() adds these up.
   math     to_k[c] += sum over blocks of partial[block][k][c]; one to three arrays of C numbers, each may be null */
struct Targets { float* of[3]; };
__global__ void add_partials_kernel(const __grid_constant__ Targets to, const float* partial, int blocks, int C) {
    SHARED(sums, float[8][32]);              // 32 columns; 8 warps take every eighth block each
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane, k = blockIdx.y;
    float* p = to.of[k];
    if (!p) return;
    float sum = 0;
    for (int b = warp; c < C && b < blocks; b += 8) sum += partial[((size_t)b * gridDim.y + k) * C + c];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
    for (int w = 1; w < 8; w++) sum += sums[w][lane];
    p[c] += sum;
}
inline void add_partials(Targets to, int arrays, const float* partial, int blocks, int C) {
    launch(add_partials_kernel, dim3(ceil_div(C, 32), arrays), 256, 0, to, partial, blocks, C);
}

/* embedding and layernorm
   math     out = (x - mean) rstd w + b,   rstd = 1 / sqrt(var + eps);   before the first block x is made here:
            x = embedded = wte[token] + wpe[t0 + t]
   shapes   token (N), N = B T   wte (V,C)   wpe (positions,C)   embedded, x, out (N,C)   mean, rstd (N)
   layout   a warp takes a row, of which each lane keeps K pieces of W neighbours in registers; a row with more than
            that is read again, from the cache
   cost     2X; with the embedding 3X
   source   Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 4 */
struct Embedding {
    floatX* embedded = nullptr;              // null: x is there already
    const int* token = nullptr;
    const floatX *wte = nullptr, *wpe = nullptr;
    int t0 = 0, T = 0;
};
template <int W, int K, bool EMBED>
__global__ void __launch_bounds__(256, 2) layernorm_forward_kernel(
    floatX* out, float* mean, float* rstd, const floatX* x, const floatX* w, const floatX* b, int N, int C, float eps,
    Embedding e) {
    const int lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= N) return;
    const floatX* const row = (EMBED ? e.embedded : x) + (size_t)n * C;
    float v[K][W], sum = 0, squares = 0, weight[W], bias[W];
    auto begin = [&](float (&v)[W], int c) {
        if constexpr (EMBED) {
            float position[W];
            load(v, e.wte + (size_t)e.token[n] * C + c);
            load(position, e.wpe + (size_t)(e.t0 + n % e.T) * C + c);
            for (int i = 0; i < W; i++) v[i] = floatX(v[i] + position[i]);
            store(e.embedded + (size_t)n * C + c, v);
        } else load(v, row + c);
    };
    auto each = [&](bool first, auto f) {    // f(W neighbours, where they begin)
        UNROLL for (int k = 0; k < K; k++)
            if (const int c = (k * 32 + lane) * W; c < C) {
                if (first) begin(v[k], c);
                f(v[k], c);
            }
        for (int c = (K * 32 + lane) * W; c < C; c += 32 * W) {
            float more[W];
            first ? begin(more, c) : load(more, row + c);
            f(more, c);
        }
    };
    each(true, [&](auto& v, int) { for (float f : v) sum += f; });
    const float m = warp_sum(sum) / C;
    each(false, [&](auto& v, int) { for (float f : v) squares += (f - m) * (f - m); });
    const float r = rsqrtf(warp_sum(squares) / C + eps);
    each(false, [&](auto& v, int c) {
        load(weight, w + c);
        load(bias, b + c);
        for (int i = 0; i < W; i++) v[i] = (v[i] - m) * r * weight[i] + bias[i];
        store(out + (size_t)n * C + c, v);
    });
    if (lane) return;
    mean[n] = m;
    rstd[n] = r;
}
constexpr int SUM_BLOCKS = 4;                // blocks an SM runs of kernels that sum up columns, at most
// rows of `bytes` each that fit a block's share of shared memory if an SM runs SUM_BLOCKS blocks; at most `most`
inline int rows_for(size_t bytes, int most) {
    const cudaDeviceProp& p = device().properties;
    if (const size_t limit = p.sharedMemPerBlockOptin; bytes > limit)
        die("%zu bytes a row do not fit the GPU's shared memory of %zu; fewer --channels", bytes, limit);
    return (int)std::clamp<size_t>((p.sharedMemPerMultiprocessor / SUM_BLOCKS - 1024) / bytes, 1, most);
}
inline void layernorm_forward(floatX* out, float* mean, float* rstd, const floatX* x, const floatX* w, const floatX* b,
                              int N, int C, double eps, const Embedding& e = {}) {
    auto with = [&](auto given, auto embedded) {
        launch(e.embedded ? embedded : given, ceil_div(N, 8), 256, 0, out, mean, rstd, x, w, b, N, C, (float)eps, e);
    };
    const bool few = C % WIDE == 0 && C <= 3 * 32 * WIDE;
    if (few) with(layernorm_forward_kernel<WIDE, 3, false>, layernorm_forward_kernel<WIDE, 3, true>);
    else with(WIDTH(C, layernorm_forward_kernel, 7, false), WIDTH(C, layernorm_forward_kernel, 7, true));
}

/* forward: xhat = (x - mean) rstd;   out = xhat w + b     so, with dxhat = dout w:
   math     dresidual += rstd (dxhat - mean_c(dxhat) - xhat mean_c(dxhat xhat))
            dw += sum_n dout xhat;   db += sum_n dout;   dbias += sum_n dresidual, the bias gradient of the product
            whose output joined the residual here
   layout   a block asks for x, dout and dresidual of some rows at once, in shared memory; a warp takes a row for the
            two means, then a thread takes W columns of these rows, K times, whose sums it keeps in registers. Where
            columns are fewer than threads, several groups of threads share the rows.
   cost     4X: x, dout and dresidual are read, dresidual is written */
constexpr int LAYERNORM_THREADS = 896;       // for which registers suffice: 72 each, so four blocks of 224, too
template <int W, int K>
__global__ void __launch_bounds__(LAYERNORM_THREADS) layernorm_backward_kernel(
    floatX* dresidual, bool add, float* partial, const floatX* dout, const floatX* x, const floatX* w,
    const float* mean, const float* rstd, int N, int C, int rows, int groups) {
    SHARED_DYNAMIC(shared);
    struct Row { float mean, rstd, sum = 0, dot = 0; };
    const size_t size = (size_t)rows * C;
    floatX *const xs = (floatX*)shared, *const ds = xs + size, *const gs = ds + size;
    Row* const row = (Row*)(shared + (3 * size * sizeof(floatX) + 15) / 16 * 16);
    const int across = (C + W * K - 1) / (W * K), group = threadIdx.x / across, c0 = threadIdx.x % across * W;
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sums[3][K][W] = {}, weight[K][W];                  // dw, db, dbias
    for (int j = 0; j < K; j++) if (const int c = c0 + j * across * W; c < C) load(weight[j], w + c);
    for (int n0 = blockIdx.x * rows; n0 < N; n0 += gridDim.x * rows) {
        const int here = ::min(rows, N - n0);
        for (int i = threadIdx.x * W; i < here * C; i += blockDim.x * W) {
            const size_t at = (size_t)n0 * C + i;
            copy<W>(xs + i, x + at);
            copy<W>(ds + i, dout + at);
            copy<W>(gs + i, dresidual + at, add);
        }
        copies_finish();
        __syncthreads();
        for (int k = warp; k < here; k += warps) {
            float d[W], v[W], u[W];
            Row r = {.mean = mean[n0 + k], .rstd = rstd[n0 + k]};
            for (int c = lane * W; c < C; c += 32 * W) {
                load(d, ds + k * C + c);
                load(v, xs + k * C + c);
                load(u, w + c);
                for (int i = 0; i < W; i++) {
                    r.sum += d[i] * u[i];
                    r.dot += d[i] * u[i] * (v[i] - r.mean);
                }
            }
            r.sum = warp_sum(r.sum) / C;
            r.dot = warp_sum(r.dot) * r.rstd / C;
            if (lane == 0) row[k] = r;
        }
        __syncthreads();
        for (int j = 0; j < K; j++) {
            const int c = c0 + j * across * W;
            if (group >= groups || c >= C) continue;
            float d[W], v[W], g[W];
            for (int k = group; k < here; k += groups) {
                const Row r = row[k];
                load(d, ds + k * C + c);
                load(v, xs + k * C + c);
                load(g, gs + k * C + c);
                for (int i = 0; i < W; i++) {
                    const float xhat = (v[i] - r.mean) * r.rstd;
                    g[i] += r.rstd * (d[i] * weight[j][i] - r.sum - xhat * r.dot);
                    sums[0][j][i] += d[i] * xhat;
                    sums[1][j][i] += d[i];
                    sums[2][j][i] += g[i];
                }
                store(dresidual + (size_t)(n0 + k) * C + c, g);
            }
        }
        __syncthreads();
    }
    float* all = (float*)shared;                             // (groups, 3, C)
    for (int j = 0; j < K; j++) {
        const int c = c0 + j * across * W;
        if (group < groups && c < C)
            for (int k = 0; k < 3; k++) for (int i = 0; i < W; i++) all[(group * 3 + k) * C + c + i] = sums[k][j][i];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < 3 * C; c += blockDim.x) {
        float sum = 0;
        for (int g = 0; g < groups; g++) sum += all[g * 3 * C + c];
        partial[(size_t)blockIdx.x * 3 * C + c] = sum;
    }
}
// add: to dresidual, else its first gradient, which needs no zeros to be added to
inline void layernorm_backward(floatX* dresidual, bool add, float* dw, float* db, float* dbias, float* partial,
                               const floatX* dout, const floatX* x, const floatX* w, const float* mean,
                               const float* rstd, int N, int C) {
    const int each = C % WIDE ? 4 : WIDE, across = ceil_div(C, each);              // columns of a thread: W K
    if (across > LAYERNORM_THREADS) die("--channels %d: a GPU's layernorm takes %d", C, LAYERNORM_THREADS * each);
    const int groups = max(1, 192 / across), threads = threads_for(groups * across, LAYERNORM_THREADS);
    const size_t row = 3 * C * sizeof(floatX) + 16;
    const int rows = rows_for(row, threads / 32), blocks = min(ceil_div(N, rows), SUM_BLOCKS * device().sms());
    launch(C % WIDE ? layernorm_backward_kernel<1, 4> : layernorm_backward_kernel<WIDE, 1>, blocks, threads,
           max(rows * row + 16, groups * 3 * C * sizeof(float)), dresidual, add, partial, dout, x, w, mean, rstd, N, C,
           rows, groups);
    add_partials({dw, db, dbias}, 3, partial, blocks, C);
}

// The activation, element by element. Cost: 8X.
template <int W> __global__ void gelu_forward_kernel(floatX* out, const floatX* x, size_t n) {
    const size_t i = thread_index() * W;
    if (i >= n) return;
    float v[W];
    load(v, x + i);
    for (int k = 0; k < W; k++) v[k] = gelu(v[k]);
    store(out + i, v);
}
inline void gelu_forward(floatX* out, const floatX* x, size_t n) {
    launch(WIDTH(n, gelu_forward_kernel), ceil_div(n, 256 * width(n)), 256, 0, out, x, n);
}

/* Column sums of a gradient (N,C), which for the activation is first multiplied with its derivative, in place.
   math     d = d gelu'(x), if x is given;   db += sum_n d
   layout   a block takes 32 W columns and a share of the rows; its 8 warps take rows in turn
   cost     (N,C) once; three times with gelu */
template <int W, bool GELU, typename D>      // that d is not x tells the compiler to read on before it writes
__global__ void column_sums_kernel(D* __restrict__ d, float* partial, const floatX* __restrict__ x, int N, int C) {
    SHARED(sums, float[8][32 * W]);
    constexpr int ROWS = GELU ? 2 : 4;       // at once
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = (blockIdx.x * 32 + lane) * W, step = 8 * gridDim.y;
    float sum[W] = {};
    for (int n = blockIdx.y * 8 + warp; c < C && n < N; n += ROWS * step) {
        float v[ROWS][W] = {}, u[ROWS][W];
        for (int k = 0; k < ROWS; k++) if (n + k * step < N) {
            load(v[k], d + (size_t)(n + k * step) * C + c);
            if constexpr (GELU) load(u[k], x + (size_t)(n + k * step) * C + c);
        }
        for (int k = 0; k < ROWS; k++) {
            if constexpr (GELU) if (n + k * step < N) {
                for (int i = 0; i < W; i++) v[k][i] *= gelu_grad(u[k][i]);
                store(d + (size_t)(n + k * step) * C + c, v[k]);
            }
            for (int i = 0; i < W; i++) sum[i] += v[k][i];
        }
    }
    for (int i = 0; i < W; i++) sums[warp][lane * W + i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * W; i += blockDim.x) {
        float total = 0;
        for (int k = 0; k < 8; k++) total += sums[k][i];
        const int column = blockIdx.x * 32 * W + i;
        if (column < C) partial[(size_t)blockIdx.y * C + column] = total;
    }
}
template <bool GELU = false, typename D>
void column_sums(D* d, float* db, float* partial, int N, int C, const floatX* x = nullptr) {
    const int across = ceil_div(C, 32 * width(C));
    const int down = std::clamp(SUM_BLOCKS * device().sms() / across, 1, ceil_div(N, 8));
    launch(WIDTH(C, column_sums_kernel, GELU, D), dim3(across, down), 256, 0, d, partial, x, N, C);
    if (db) add_partials({db}, 1, partial, down, C);
}
inline void gelu_backward(floatX* d, float* db, float* partial, const floatX* x, int N, int C) {
    column_sums<true>(d, db, partial, N, C, x);
}
// numbers in `partial`: 3C from each block; or 32 W at most from each, and 4C
inline size_t partial_size(size_t C) {
    return SUM_BLOCKS * device().sms() * max<size_t>(3 * C, 32 * WIDE) + 4 * C;
}

/* attention -- causal self-attention; three versions: plain, tiles (mma.sync), and below them wgmma (sm_90a)
   math     s_j = q_i . k_j / sqrt(HS) for j <= i;   p = softmax(s);   out_i = sum_j p_j v_j;   lse_i = log sum_j e^s_j
   shapes   qkv (B,S,3C): q, k, v side by side, HS columns of each belong to a head; rows 0 .. t0+T-1 of each b exist
            out (B,T,C), lse (B,NH,T): of the T rows from t0 on, as in cpu::attention_forward
   plain    any head size and type: a block takes one query (backward: or one key) and holds a row of scores in shared
            memory. Also what reads a cache of keys, where there is one query only.
   tiles    bf16 and heads of 64 or 128: blocks of 64 queries, and of 64 keys one after another, multiplied by tensor
            cores; scores stay in registers (Dao 2023, arXiv:2307.08691, algorithms 1 and 2). Backward recomputes them
            twice: once per block of keys for dk and dv, once per block of queries for dq, so that each has one writer.
   cost     2 B T^2 C FLOPs forward, 7 B T^2 C backward (5, and s and dp again); bytes 4X forward, 8X backward */
__global__ void attention_forward_plain(floatX* out, float* lse, const floatX* qkv, int t0, int T, int S, int C, int HS,
                                        float scale) {
    SHARED_DYNAMIC(shared);
    float* scores = (float*)shared;
    const int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, keys = t0 + t + 1;
    const floatX* row = qkv + (size_t)b * S * 3 * C + h * HS;            // of token 0
    const floatX* q = row + (size_t)(t0 + t) * 3 * C;
    float maximum = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        const floatX* k = row + (size_t)j * 3 * C + C;
        float dot = 0;
        for (int c = 0; c < HS; c++) dot += float(q[c]) * float(k[c]);
        scores[j] = dot * scale;
        maximum = fmaxf(maximum, scores[j]);
    }
    maximum = block_max(maximum);
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        scores[j] = expf(scores[j] - maximum);
        sum += scores[j];
    }
    sum = block_sum(sum);                                    // and all scores are written
    for (int c = threadIdx.x; c < HS; c += blockDim.x) {
        float o = 0;
        for (int j = 0; j < keys; j++) o += scores[j] * float(row[(size_t)j * 3 * C + 2 * C + c]);
        out[((size_t)b * T + t) * C + h * HS + c] = floatX(o / sum);
    }
    if (threadIdx.x == 0 && lse) lse[((size_t)b * gridDim.y + h) * T + t] = maximum + logf(sum);
}

// D (B,NH,T) = sum over the head's columns of dout out: a warp for each
__global__ void attention_dot_kernel(float* D, const floatX* dout, const floatX* out, int n, int T, int NH, int HS) {
    const int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, h = i % NH, bt = i / NH;
    if (i >= n) return;
    float sum = 0;
    const size_t at = (size_t)i * HS;
    for (int c = threadIdx.x % 32; c < HS; c += 32) sum += float(dout[at + c]) * float(out[at + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) D[((size_t)(bt / T) * NH + h) * T + bt % T] = sum;
}

/* forward: p_ij = e^(s_ij - lse_i), out_i = sum_j p_ij v_j     so, with dp_ij = dout_i . v_j and D_i = dout_i . out_i:
   math     ds_ij = p_ij (dp_ij - D_i) / sqrt(HS);   dq_i = sum_j ds_ij k_j;   dk_j = sum_i ds_ij q_i
            dv_j = sum_i p_ij dout_i */
struct Probability { float p, ds; };
DEVICE Probability recompute(const floatX* q, const floatX* k, const floatX* v, const floatX* dout, float lse, float D,
                             int HS, float scale) {
    float s = 0, dp = 0;
    for (int c = 0; c < HS; c++) {
        s += float(q[c]) * float(k[c]);
        dp += float(dout[c]) * float(v[c]);
    }
    const float p = expf(s * scale - lse);
    return {.p = p, .ds = p * (dp - D) * scale};
}
template <bool KEYS>                         // dk and dv of one key; else dq of one query
__global__ void attention_backward_plain(floatX* dqkv, const floatX* dout, const floatX* qkv, const float* lse,
                                         const float* D, int T, int C, int HS, float scale) {
    SHARED_DYNAMIC(shared);
    float *p = (float*)shared, *ds = p + T;
    const int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, first = KEYS ? t : 0, last = KEYS ? T : t + 1;
    const size_t base = (size_t)b * T * 3 * C + h * HS, per_head = ((size_t)b * gridDim.y + h) * T;
    const floatX *row = qkv + base, *dout_0 = dout + (size_t)b * T * C + h * HS;
    for (int n = first + threadIdx.x; n < last; n += blockDim.x) {
        const int i = KEYS ? n : t, j = KEYS ? t : n;        // query and key
        const floatX *q = row + (size_t)i * 3 * C, *k = row + (size_t)j * 3 * C + C;
        const Probability r =
            recompute(q, k, k + C, dout_0 + (size_t)i * C, lse[per_head + i], D[per_head + i], HS, scale);
        p[n] = r.p;
        ds[n] = r.ds;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < HS; c += blockDim.x) {
        float sum = 0, dv = 0;
        for (int n = first; n < last; n++) {
            sum += ds[n] * float(row[(size_t)n * 3 * C + (KEYS ? 0 : C) + c]);
            if (KEYS) dv += p[n] * float(dout_0[(size_t)n * C + c]);
        }
        floatX* to = dqkv + base + (size_t)t * 3 * C + c;
        to[KEYS ? C : 0] = floatX(sum);
        if (KEYS) to[2 * C] = floatX(dv);
    }
}

// A tile of ROWS rows of HS numbers in shared memory. 16-byte pieces of a row are permuted by the row's number, so that
// the 8 rows which ldmatrix reads at once lie in different banks.
template <int HS, int ROWS> struct Tile {
    static constexpr int BYTES = ROWS * HS * 2, PIECES = HS / 8;
    unsigned base;
    DEVICE unsigned at(int row, int piece) const { return base + (row * PIECES + (piece ^ (row & 7))) * 16; }
    // rows first .. of x, whose rows lie `stride` apart; zeros from row `end` on
    DEVICE void fill(const floatX* x, size_t stride, int first, int end) const {
        for (int i = threadIdx.x; i < ROWS * PIECES; i += blockDim.x) {
            const int row = i / PIECES, piece = i % PIECES;
            const bool present = first + row < end;
            copy_16(at(row, piece), x + (present ? first + row : 0) * stride + piece * 8, present);
        }
    }
    // Fragments of the 16 x 16 numbers at (row,column): for the operand A, stored (m,k); for B, stored (k,n); and for
    // B, stored transposed, (n,k).
    DEVICE void as_a(unsigned (&r)[4], int row, int column) const {
        const int lane = threadIdx.x % 32;
        load_fragments(r, at(row + lane % 16, column / 8 + lane / 16));
    }
    DEVICE void as_b_transposed(unsigned (&r)[4], int row, int column) const {
        const int lane = threadIdx.x % 32;
        load_fragments(r, at(row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
    }
    DEVICE void as_b(unsigned (&r)[4], int row, int column) const {
        const int lane = threadIdx.x % 32;
        load_transposed(r, at(row + lane % 16, column / 8 + lane / 16));
    }
};
// c (16, 8 N) += a b^T, of a the 16 rows from `row`
template <int N, int HS, int R, int S>
DEVICE void multiply_transposed(float (&c)[N][4], Tile<HS, R> a, int row, Tile<HS, S> b) {
    for (int k = 0; k < HS; k += 16) {
        unsigned f[4];
        a.as_a(f, row, k);
        for (int n = 0; n < N; n += 2) {
            unsigned g[4];
            b.as_b_transposed(g, n * 8, k);
            mma(c[n], f, g[0], g[1]);
            mma(c[n + 1], f, g[2], g[3]);
        }
    }
}
// c (16,HS) += a b, where a (16, 8 K) is in registers, laid out as a product's result, and is rounded here
template <int K, int HS, int R>
DEVICE void multiply_results(float (&c)[HS / 8][4], const float (&a)[K][4], Tile<HS, R> b) {
    for (int k = 0; k < K; k += 2) {
        const unsigned f[4] = {pair(a[k][0], a[k][1]), pair(a[k][2], a[k][3]),
                               pair(a[k + 1][0], a[k + 1][1]), pair(a[k + 1][2], a[k + 1][3])};
        for (int n = 0; n < HS / 8; n += 2) {
            unsigned g[4];
            b.as_b(g, k * 8, n * 8);
            mma(c[n], f, g[0], g[1]);
            mma(c[n + 1], f, g[2], g[3]);
        }
    }
}

constexpr int TILE = 64;                     // queries or keys of a block of 4 warps: 16 for each

template <int HS>
__global__ void __launch_bounds__(128) attention_forward_tiles_kernel(floatX* out, float* lse, const floatX* qkv, int T,
                                                                      int S, int C, float scale) {
    SHARED_DYNAMIC(shared);
    using Rows = Tile<HS, TILE>;
    const Rows q{shared_address(shared)};
    auto keys = [&](int j) { return Rows{q.base + (1 + j % 2) * Rows::BYTES}; };         // two, to fetch ahead
    auto values = [&](int j) { return Rows{q.base + (3 + j % 2) * Rows::BYTES}; };
    const int block = gridDim.x - 1 - blockIdx.x, i0 = block * TILE;     // longest first
    const int h = blockIdx.y, b = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const floatX* row = qkv + (size_t)b * S * 3 * C + h * HS;
    auto fetch = [&](int j) {
        keys(j).fill(row + C, 3 * C, j * TILE, T);
        values(j).fill(row + 2 * C, 3 * C, j * TILE, T);
    };
    q.fill(row, 3 * C, i0, T);
    fetch(0);
    copies_commit();
    float o[HS / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int j = 0; j <= block; j++) {
        if (j < block) fetch(j + 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float s[TILE / 8][4] = {};
        multiply_transposed(s, q, warp * 16, keys(j));
        for (int r = 0; r < 2; r++) {                        // the two rows that this lane has a part of
            const int i = i0 + warp * 16 + row_of(lane, 2 * r);
            float high = maximum[r];
            for (int n = 0; n < TILE / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) {
                s[n][e] = j * TILE + column_of(lane, n, e) <= i ? s[n][e] * scale * LOG2E : -INFINITY;
                high = fmaxf(high, s[n][e]);
            }
            high = row_max(high);
            const float shrink = exp2f(maximum[r] - high);
            maximum[r] = high;
            sum[r] *= shrink;
            for (int n = 0; n < TILE / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) {
                s[n][e] = exp2f(s[n][e] - high);
                sum[r] += s[n][e];
            }
            for (int n = 0; n < HS / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) o[n][e] *= shrink;
        }
        multiply_results(o, s, values(j));
        __syncthreads();                                     // before the next keys take the place of these
    }
    for (int r = 0; r < 2; r++) {
        const int i = i0 + warp * 16 + row_of(lane, 2 * r);
        const float total = row_sum(sum[r]);
        if (i >= T) continue;
        floatX* to = out + ((size_t)b * T + i) * C + h * HS + column_of(lane, 0, 0);
        for (int n = 0; n < HS / 8; n++) store(to + n * 8, {o[n][2 * r] / total, o[n][2 * r + 1] / total});
        if (lane % 4 == 0) lse[((size_t)b * gridDim.y + h) * T + i] = maximum[r] / LOG2E + logf(total);
    }
}
template <int HS>
void attention_forward_tiles(floatX* out, float* lse, const floatX* qkv, int B, int T, int S, int NH) {
    launch(attention_forward_tiles_kernel<HS>, dim3(ceil_div(T, TILE), NH, B), 128, 5 * TILE * HS * sizeof(floatX), out,
           lse, qkv, T, S, NH * HS, 1 / sqrtf(HS));
}

// KEYS: dk and dv of 64 keys, from all queries; else dq of 64 queries, from all keys. `own` are the 64 rows, which lie
// along A; `other` come in steps of STEP. Scores are then (own, other): transposed, for keys.
template <int HS, bool KEYS>
__global__ void __launch_bounds__(128) attention_backward_tiles_kernel(
    floatX* dqkv, const floatX* dout, const floatX* qkv, const float* lse, const float* D, int T, int C, float scale) {
    SHARED_DYNAMIC(shared);
    constexpr int STEP = HS > 64 ? 32 : 64;                  // so that all sums fit the registers
    using Own = Tile<HS, TILE>;
    using Other = Tile<HS, STEP>;
    const Own own{shared_address(shared)}, own_2{own.base + Own::BYTES};         // k and v; or q and dout
    const Other other{own_2.base + Own::BYTES}, other_2{other.base + Other::BYTES};
    float* const row_lse = (float*)(shared + 2 * (Own::BYTES + Other::BYTES));   // of the queries, with D after them
    const int h = blockIdx.y, b = blockIdx.z, first = blockIdx.x * TILE, warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32, queries = KEYS ? STEP : TILE;
    const size_t base = (size_t)b * T * 3 * C + h * HS, per_head = ((size_t)b * gridDim.y + h) * T;
    const floatX *row = qkv + base, *dout_0 = dout + (size_t)b * T * C + h * HS;
    auto fill_queries = [&](auto q, auto d, int from) {
        q.fill(row, 3 * C, from, T);
        d.fill(dout_0, C, from, T);
        for (int i = threadIdx.x; i < queries; i += blockDim.x) {
            row_lse[i] = from + i < T ? lse[per_head + from + i] : 0;
            row_lse[queries + i] = from + i < T ? D[per_head + from + i] : 0;
        }
    };
    auto fill_keys = [&](auto k, auto v, int from) {
        k.fill(row + C, 3 * C, from, T);
        v.fill(row + 2 * C, 3 * C, from, T);
    };
    if constexpr (KEYS) fill_keys(own, own_2, first);
    else fill_queries(own, own_2, first);
    float sum[HS / 8][4] = {}, dv[KEYS ? HS / 8 : 1][4] = {};            // dk and dv, or dq
    for (int at = KEYS ? first : 0; at < (KEYS ? T : ::min(T, first + TILE)); at += STEP) {
        if constexpr (KEYS) fill_queries(other, other_2, at);
        else fill_keys(other, other_2, at);
        copies_finish();
        __syncthreads();
        float p[STEP / 8][4] = {}, ds[STEP / 8][4] = {};
        multiply_transposed(p, own, warp * 16, other);           // q k, or k q
        multiply_transposed(ds, own_2, warp * 16, other_2);      // dout v, or v dout
        for (int n = 0; n < STEP / 8; n++) for (int e = 0; e < 4; e++) {
            const int mine = warp * 16 + row_of(lane, e), its = column_of(lane, n, e);
            const int i = KEYS ? its : mine;                 // among the queries
            const int query = KEYS ? at + its : first + mine, key = KEYS ? first + mine : at + its;
            p[n][e] = key <= query && query < T ? __expf(p[n][e] * scale - row_lse[i]) : 0;
            ds[n][e] = p[n][e] * (ds[n][e] - row_lse[queries + i]) * scale;
        }
        multiply_results(sum, ds, other);
        if constexpr (KEYS) multiply_results(dv, p, other_2);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        const int t = first + warp * 16 + row_of(lane, 2 * r);
        if (t >= T) continue;
        floatX* to = dqkv + base + (size_t)t * 3 * C + (KEYS ? C : 0) + column_of(lane, 0, 0);
        for (int n = 0; n < HS / 8; n++) {
            store(to + n * 8, {sum[n][2 * r], sum[n][2 * r + 1]});
            if constexpr (KEYS) store(to + C + n * 8, {dv[n][2 * r], dv[n][2 * r + 1]});
        }
    }
}
template <int HS> void attention_backward_tiles(floatX* dqkv, const floatX* dout, const floatX* qkv, const float* lse,
                                                const float* D, int B, int T, int NH) {
    const size_t shared = 2 * (TILE + (HS > 64 ? 32 : 64)) * HS * sizeof(floatX) + 2 * TILE * sizeof(float);
    for (auto kernel : {attention_backward_tiles_kernel<HS, true>, attention_backward_tiles_kernel<HS, false>})
        launch(kernel, dim3(ceil_div(T, TILE), NH, B), 128, shared, dqkv, dout, qkv, lse, D, T, NH * HS, 1 / sqrtf(HS));
}
inline bool tiles_fit(int HS) { return BF16 && (HS == 64 || HS == 128); }

/* The same with wgmma and TMA, for heads of 64 and 128 on sm_90a, any T: behind the last token TMA puts zeros, and the
   causal mask does the rest. What overlaps with what is as in Shah et al. 2024, arXiv:2407.08608, but without warps
   that only copy. All sums have a fixed order.

   Boxes: 64 columns and so many rows of the first T tokens of x (B,S,columns). */
inline CUtensorMap boxes(const floatX* x, int B, int T, int S, int columns, int rows) {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
        if (!function) die("the driver has no cuTensorMapEncodeTiled; it must know CUDA 12");
        return (decltype(&cuTensorMapEncodeTiled))function;
    }();
    CUtensorMap map;
    const cuuint64_t size[] = {(cuuint64_t)columns, (cuuint64_t)T, (cuuint64_t)B};
    const cuuint64_t stride[] = {2ull * columns, 2ull * columns * S};
    const cuuint32_t box[] = {64, (cuuint32_t)rows, 1}, element_stride[] = {1, 1, 1};
    const int error = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<floatX*>(x), size, stride, box,
                             element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (error) die("a tensor map of (%d,%d,%d) numbers: error %d", B, T, columns, error);
    return map;
}
// This warp's 16 rows of d (64,64), each of a lane's two rows times its scale, as bf16 to shared memory, as TMA expects
// them. A lane names one row of the 8 x 8 numbers that the instruction stores.
DEVICE void stage_rows(unsigned to, const float (&d)[32], float scale_0, float scale_1) {
    const int row = threadIdx.x % 16, right = threadIdx.x / 16 % 2;
    UNROLL for (int k = 0; k < 4; k++) {
        const float* const x = &d[8 * k];
        const unsigned f[4] = {pair(x[0] * scale_0, x[1] * scale_0), pair(x[2] * scale_1, x[3] * scale_1),
                               pair(x[4] * scale_0, x[5] * scale_0), pair(x[6] * scale_1, x[7] * scale_1)};
        store_fragments(to + row * PANEL_ROW + ((k * 2 + right) ^ row % 8) * 16, f);
    }
}

/* layout   a block takes 128 queries of a head, 192 if it has 128 columns, 64 for each warpgroup; keys and values come
            through a ring in shared memory, 64 at a time. Four warpgroups fit an SM, or three: while one of them takes
            exponentials, others multiply.
   cost     2 B T^2 C FLOPs (and 1 / 16 more at T = 1024, above the diagonal); 4X, if the level-2 cache keeps a head's
            keys */
template <int HS> struct ForwardShape {
    static constexpr int PANELS = HS / 64, WARPGROUPS = HS == 64 ? 2 : 3, THREADS = 128 * WARPGROUPS;
    static constexpr int QUERIES = 64 * WARPGROUPS, STEP = 64, RING = 4;
    static constexpr int PANEL = STEP * PANEL_ROW, TILE_BYTES = PANELS * PANEL;          // a panel, a tile: 64 rows
    static constexpr size_t SHARED_BYTES = (WARPGROUPS + 2 * RING) * TILE_BYTES + 16 * RING + 8;
    static_assert(WARPGROUPS < RING);        // the first warpgroup, which has the fewest steps, fetches for the last
};
template <int HS>
__global__ void __launch_bounds__(ForwardShape<HS>::THREADS, HS == 64 ? 2 : 1) attention_forward_wgmma_kernel(
    const __grid_constant__ CUtensorMap out, float* lse, const __grid_constant__ CUtensorMap qkv, int T, int C,
    float scale) {
#ifdef SM90A
    using S = ForwardShape<HS>;
    constexpr int STEP = S::STEP, RING = S::RING, PANEL = S::PANEL, BYTES = S::TILE_BYTES;
    SHARED_DYNAMIC(shared);
    const unsigned queries = shared_address(shared), ring = queries + S::WARPGROUPS * BYTES;
    // mbarriers, of each stage of the ring: its keys and values are there; the warps that read them are done
    const unsigned full = ring + 2 * RING * BYTES, empty = full + 8 * RING, queries_full = empty + 8 * RING;
    const int block = gridDim.x - 1 - blockIdx.x, h = blockIdx.y, b = blockIdx.z;        // longest first
    const int warp = uniform(threadIdx.x / 32), warpgroup = warp / 4, lane = threadIdx.x % 32;
    const int busy = ::min(S::WARPGROUPS, (T + 63) / 64 - block * S::WARPGROUPS);        // those with queries below T
    const int mine = block * S::WARPGROUPS + warpgroup + 1, steps = block * S::WARPGROUPS + busy;    // to the diagonal
    const int column = h * HS;
    auto fetch = [&](int j) {
        const unsigned to = ring + j % RING * 2 * BYTES, ready = full + j % RING * 8;
        mbarrier_expect(ready, 2 * BYTES);
        for (int i = 0; i < 2; i++) for (int p = 0; p < S::PANELS; p++)
            load_box(to + i * BYTES + p * PANEL, &qkv, ready, (i + 1) * C + column + p * 64, j * STEP, b);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; i++) {
            mbarrier_init(full + 8 * i, 1);
            mbarrier_init(empty + 8 * i, 4 * busy);
        }
        mbarrier_init(queries_full, 1);
        mbarrier_expect(queries_full, S::WARPGROUPS * BYTES);
        for (int i = 0; i < S::WARPGROUPS; i++) for (int p = 0; p < S::PANELS; p++)
            load_box(queries + i * BYTES + p * PANEL, &qkv, queries_full, column + p * 64,
                     block * S::QUERIES + i * 64, b);
        for (int j = 0; j < RING && j < steps; j++) fetch(j);
    }
    __syncthreads();
    if (warpgroup >= busy) return;
    float o[S::PANELS][32], maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const int row = warp * 16 + row_of(lane, 0);             // and 8 further down
    const float c = scale * LOG2E;
    const Operand own(queries + warpgroup * BYTES);
    mbarrier_wait(queries_full, 0);
    for (int j = 0; j < mine; j++) {
        const Operand keys(ring + j % RING * 2 * BYTES), values(ring + (j % RING * 2 + 1) * BYTES);
        float s[32];
        mbarrier_wait(full + j % RING * 8, j / RING & 1);
        multiply_transposed<HS, 64>(s, own, keys);
        wgmma_wait<0>();                                  // also for o
        if (j > 0 && elected()) mbarrier_arrive(empty + (j - 1) % RING * 8);
        if (warp == 0 && j >= 2 && j - 2 + RING < steps && elected()) {      // by now the others will have left it
            mbarrier_wait(empty + (j - 2) % RING * 8, (j - 2) / RING & 1);
            fetch(j - 2 + RING);
        }
        if (j == mine - 1) {
            UNROLL for (int n = 0; n < 8; n++)
                UNROLL for (int e = 0; e < 4; e++)
                    if (column_of(lane, n, e) > row - warpgroup * 64 + e / 2 * 8) s[4 * n + e] = -INFINITY;
        }
        unsigned p[STEP / 16][4];
        float shrink[2];
        UNROLL for (int i = 0; i < 2; i++) {
            float high = maximum[i];
            UNROLL for (int n = 0; n < 8; n++) high = fmaxf(high, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
            high = row_max(high);
            const float shift = high * c;
            shrink[i] = power_of_2((maximum[i] - high) * c);
            maximum[i] = high;
            sum[i] *= shrink[i];
            UNROLL for (int n = 0; n < 8; n++) {
                const float p0 = power_of_2(s[4 * n + 2 * i] * c - shift);
                const float p1 = power_of_2(s[4 * n + 2 * i + 1] * c - shift);
                sum[i] += p0 + p1;
                p[n / 2][n % 2 * 2 + i] = pair(p0, p1);
            }
        }
        if (j > 0) {
            UNROLL for (int e = 0; e < S::PANELS * 32; e++) o[e / 32][e % 32] *= shrink[e / 2 % 2];
        }
        multiply_results(o, p, values, j > 0);
    }
    wgmma_wait<0>();
    UNROLL for (int i = 0; i < 2; i++) {
        sum[i] = row_sum(sum[i]);
        const int t = block * S::QUERIES + row + 8 * i;
        if (lane % 4 == 0 && t < T) lse[((size_t)b * gridDim.y + h) * T + t] = maximum[i] * scale + logf(sum[i]);
    }
    // o is staged where this warpgroup's queries were
    warpgroup == 0 ? barrier<1>(128) : warpgroup == 1 ? barrier<2>(128) : barrier<3>(128);
    const unsigned room = queries + warpgroup * BYTES + warp % 4 * 16 * PANEL_ROW;
    UNROLL for (int n = 0; n < S::PANELS; n++) stage_rows(room + n * PANEL, o[n], 1 / sum[0], 1 / sum[1]);
    stores_visible();
    __syncwarp();
    if (!elected()) return;
    for (int n = 0; n < S::PANELS; n++)
        store_box(&out, room + n * PANEL, column + n * 64, block * S::QUERIES + warp * 16, b);
    bulk_commit();
    bulk_wait_read();
#endif
}
template <int HS>
void attention_forward_wgmma(floatX* out, float* lse, const floatX* qkv, int B, int T, int S, int NH) {
    using F = ForwardShape<HS>;
    const int C = NH * HS;
    launch(attention_forward_wgmma_kernel<HS>, dim3(ceil_div(T, F::QUERIES), NH, B), F::THREADS, F::SHARED_BYTES,
           boxes(out, B, T, T, C, 16), lse, boxes(qkv, B, T, S, 3 * C, F::STEP), T, C, 1 / sqrtf(HS));
}

/* backward: a block takes whole heads, one after another. For each 128 keys it walks over the tiles of 128 queries at
   and after them, or of 64, if heads have 128 columns. p and ds come transposed, (keys,queries), 64 keys for each of
   two warpgroups, in registers, where they are operands of dv = p dout and dk = ds q. For dq = ds^T k, ds goes through
   shared memory, and each warpgroup takes 64 queries, or 64 columns. So one barrier a tile is enough.
   dq sums up over the keys, in fp32 in `sums`, which stays in the level-2 cache: each warp adds its 4 KB of a tile by a
   bulk reduction, and waits for these before it goes on to other keys, so that the order is always the same. The sum is
   complete at the diagonal, the last keys that the queries see.
   overlap  products run while the warps that asked for them do something else; a turn of the loop, with tiles' numbers:
              products   dk 0      dq 0, s 1   dp 1                   dv 1
              else       barrier               dq 0 leaves, exp 1     ds 1
   shared   keys and values: two buffers, or one of heads of 128; three of queries and dout, two of ds and of rows
   shapes   rows (B,NH,tiles,2,QUERIES): lse in units of log 2, and D;   sums (blocks,tiles,8192)
            sums_16 (B, T / 16, 3C): column sums of dqkv over 16 tokens, for the bias of what made qkv; or null
            T rounded up to 128
   cost     5 B T^2 C FLOPs (and 1 / 8 more at T = 1024, above the diagonal); 8X, if `sums` and a head's queries stay in
            the level-2 cache */
template <int HS> struct BackwardShape {
    static constexpr int PANELS = HS / 64, KEYS = 128, QUERIES = 8192 / HS;
    static constexpr int EACH = KEYS / QUERIES;              // tiles of queries beside 128 keys
    static constexpr int KEY_BUFFERS = HS == 64 ? 2 : 1, STAGES = 3;
    static constexpr int KEYS_PANEL = KEYS * PANEL_ROW, KEYS_BYTES = PANELS * KEYS_PANEL;
    static constexpr int QUERIES_PANEL = QUERIES * PANEL_ROW, QUERIES_BYTES = PANELS * QUERIES_PANEL;
    static constexpr int DS_BYTES = KEYS * QUERIES * 2, ROWS_BYTES = 2 * QUERIES * 4;
    static constexpr int DQ_BYTES = HS == 64 ? 0 : 8192 * 4;
    static constexpr size_t SHARED_BYTES = 2 * KEY_BUFFERS * KEYS_BYTES + 2 * STAGES * QUERIES_BYTES + 2 * DS_BYTES +
                                           DQ_BYTES + 2 * ROWS_BYTES + 8 * (STAGES + KEY_BUFFERS);
    static int tiles(int T) { return ceil_div(T, KEYS) * EACH; }
    static int blocks(int B, int NH) { return min(B * NH, device().sms()); }
    // numbers
    static size_t rows(int B, int T, int NH) { return (size_t)B * NH * tiles(T) * 2 * QUERIES; }
    static size_t sums(int B, int T, int NH) { return (size_t)blocks(B, NH) * tiles(T) * 8192; }
    static int groups(int B, int T) { return B * ceil_div(T, KEYS) * KEYS / 16; }
    static size_t scratch(int B, int T, int NH) {
        return rows(B, T, NH) + sums(B, T, NH) + (size_t)groups(B, T) * 3 * NH * HS;
    }
};
/* rows, as above; behind the last query lse is infinite, so that p = 0
   layout   a block takes a head's tile, HS / 8 lanes a query, 16 bytes apiece
   cost     2X */
template <int HS>
__global__ void __launch_bounds__(256) attention_rows_kernel(float* rows, const floatX* dout, const floatX* out,
                                                             const float* lse, int T, int NH) {
    constexpr int QUERIES = BackwardShape<HS>::QUERIES, LANES = HS / 8, AT_ONCE = 256 / LANES;
    const int h = blockIdx.x, tile = blockIdx.y, b = blockIdx.z, query = threadIdx.x / LANES;
    const size_t head = (size_t)b * NH + h;
    rows += (head * gridDim.y + tile) * 2 * QUERIES;
    float sum[QUERIES / AT_ONCE] = {};
    UNROLL for (int u = 0; u < QUERIES / AT_ONCE; u++) {
        const int t = tile * QUERIES + u * AT_ONCE + query;
        const size_t i = (((size_t)b * T + t) * NH + h) * HS + threadIdx.x % LANES * 8;
        float x[8] = {}, y[8] = {};
        if (t < T) load(x, dout + i);
        if (t < T) load(y, out + i);
        for (int k = 0; k < 8; k++) sum[u] += x[k] * y[k];
    }
    UNROLL for (int u = 0; u < QUERIES / AT_ONCE; u++) {
        for (int o = LANES / 2; o; o >>= 1) sum[u] += __shfl_xor_sync(WARP, sum[u], o);
        if (threadIdx.x % LANES == 0) rows[QUERIES + u * AT_ONCE + query] = sum[u];
    }
    const int t = tile * QUERIES + threadIdx.x;
    if (threadIdx.x < QUERIES) rows[threadIdx.x] = t < T ? lse[head * T + t] * LOG2E : INFINITY;
}
// Column sums over this warp's 16 rows of d (64,64), times scale: a reduce-scatter over the eight lanes that share
// columns, in three halving steps, which leaves columns 2 l and 2 l + 1 in lane l.
DEVICE void sum_rows(float* to, const float (&d)[32], float scale) {
    float v[8][2];
    UNROLL for (int n = 0; n < 8; n++)
        UNROLL for (int j = 0; j < 2; j++) v[n][j] = d[4 * n + j] + d[4 * n + j + 2];
    UNROLL for (int half = 4; half; half /= 2) {
        const bool upper = threadIdx.x % 32 / 4 & half;
        UNROLL for (int n = 0; n < half; n++)
            UNROLL for (int j = 0; j < 2; j++) {
                const float keep = upper ? v[n + half][j] : v[n][j], give = upper ? v[n][j] : v[n + half][j];
                v[n][j] = keep + __shfl_xor_sync(WARP, give, 4 * half);
            }
    }
    store(to + threadIdx.x % 32 * 2, {v[0][0] * scale, v[0][1] * scale});
}
// Over the tiles of all heads of a block: key counts 128 keys, query a tile.
template <int EACH> struct Walk {
    int head, b, h, key, query;
    DEVICE Walk(int head, int NH) : head(head), b(head / NH), h(head % NH), key(0), query(0) {}
    DEVICE void next(int tiles, int NH) {
        if (++query < tiles) return;
        if (++key * EACH == tiles) *this = Walk(head + gridDim.x, NH);
        query = key * EACH;
    }
    DEVICE bool first() const { return query == key * EACH; }            // of these keys
    DEVICE bool diagonal() const { return query < (key + 1) * EACH; }
};
template <int HS>
__global__ void __launch_bounds__(256, 1) attention_backward_wgmma_kernel(
    const __grid_constant__ CUtensorMap dqkv, float* sums, float* sums_16, const __grid_constant__ CUtensorMap qkv,
    const __grid_constant__ CUtensorMap dout, const float* rows, int heads, int NH, int T, float scale) {
#ifdef SM90A
    using S = BackwardShape<HS>;
    constexpr int PANELS = S::PANELS, KEYS = S::KEYS, QUERIES = S::QUERIES, STAGES = S::STAGES;
    constexpr bool ROOMY = S::KEY_BUFFERS == 2;              // the next keys, and dq, dk and dv, have room of their own
    SHARED_DYNAMIC(shared);
    // the first iteration multiplies uninitialized memory and discards the result, which a sanitizer cannot know
    EMU(for (size_t i = threadIdx.x; i < S::SHARED_BYTES; i += blockDim.x) shared[i] = 0;
        emu::fence_proxy_async();
        __syncthreads();)
    const unsigned keys_0 = shared_address(shared), queries_0 = keys_0 + 2 * S::KEY_BUFFERS * S::KEYS_BYTES;
    const unsigned ds_0 = queries_0 + 2 * STAGES * S::QUERIES_BYTES, dq_0 = ds_0 + 2 * S::DS_BYTES;
    const unsigned rows_0 = dq_0 + S::DQ_BYTES, queries_full = rows_0 + 2 * S::ROWS_BYTES;
    const unsigned keys_full = queries_full + 8 * STAGES;
    const int warp = uniform(threadIdx.x / 32), warpgroup = warp / 4, lane = threadIdx.x % 32;
    const int tiles = (T + KEYS - 1) / KEYS * S::EACH, C = NH * HS;
    const float c = scale * LOG2E;
    auto at_address = [&](unsigned a) { return (float*)(shared + (a - keys_0)); };

    using Walk = gpu::Walk<S::EACH>;
    auto fetch_keys = [&](const Walk& w, int buffer) {
        if (w.head >= heads) return;
        const unsigned to = keys_0 + buffer * 2 * S::KEYS_BYTES, ready = keys_full + buffer * 8;
        mbarrier_expect(ready, 2 * S::KEYS_BYTES);
        for (int i = 0; i < 2; i++) for (int p = 0; p < PANELS; p++) for (int r = 0; r < KEYS; r += QUERIES)
            load_box(to + i * S::KEYS_BYTES + p * S::KEYS_PANEL + r * PANEL_ROW, &qkv, ready,
                     (i + 1) * C + w.h * HS + p * 64, w.key * KEYS + r, w.b);
    };
    auto fetch_queries = [&](const Walk& w, int stage) {
        if (w.head >= heads) return;
        const unsigned to = queries_0 + stage * 2 * S::QUERIES_BYTES, ready = queries_full + stage * 8;
        mbarrier_expect(ready, 2 * S::QUERIES_BYTES);
        for (int i = 0; i < 2; i++) for (int p = 0; p < PANELS; p++)
            load_box(to + i * S::QUERIES_BYTES + p * S::QUERIES_PANEL, i ? &dout : &qkv, ready, w.h * HS + p * 64,
                     w.query * QUERIES, w.b);
    };
    auto fetch_rows = [&](const Walk& w, int odd) {
        if (threadIdx.x < S::ROWS_BYTES / 16)
            copy_16(rows_0 + odd * S::ROWS_BYTES + threadIdx.x * 16,
                    rows + ((size_t)w.head * tiles + w.query) * 2 * QUERIES + threadIdx.x * 4, w.head < heads);
        copies_commit();
    };
    Walk after(blockIdx.x, NH), at = after;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(queries_full + 8 * i, 1);
        for (int i = 0; i < S::KEY_BUFFERS; i++) mbarrier_init(keys_full + 8 * i, 1);
        fetch_keys(after, 0);
        fetch_queries(after, 0);
    }
    fetch_rows(after, 0);
    copies_wait<0>();
    __syncthreads();

    // A software pipeline: an iteration finishes tile `at` (dk, dq) and starts tile `after` (s, dp, dv). There is one
    // iteration more than tiles: the results for a tile before the first and for one behind the last are discarded.
    at.head = -1;
    at.query = tiles - 1;
    float dk[PANELS][32] = {}, dv[PANELS][32] = {};
    unsigned ds[QUERIES / 16][4] = {};                       // (64 keys, QUERIES), as s and dp
    // A warp stages its results in its own part of a buffer that no wgmma reads any more once both warpgroups are past
    // the barrier; for dq that is ds of the tile before, where it is large enough.
    const unsigned own = warp * 16 * PANEL_ROW;
    auto store_keys = [&](unsigned dk_room, unsigned dv_room) {
        const int column = at.h * HS, row = at.key * KEYS + warp * 16;
        const size_t group = (size_t)at.b * tiles / S::EACH * KEYS / 16 + row / 16;
        UNROLL for (int n = 0; n < PANELS; n++) {
            stage_rows(dk_room + n * S::KEYS_PANEL, dk[n], scale, scale);
            stage_rows(dv_room + n * S::KEYS_PANEL, dv[n], 1, 1);
            if (sums_16 && at.head >= 0) {
                sum_rows(sums_16 + group * 3 * C + C + column + n * 64, dk[n], scale);
                sum_rows(sums_16 + group * 3 * C + 2 * C + column + n * 64, dv[n], 1);
            }
        }
    };
    auto send_keys = [&](unsigned dk_room, unsigned dv_room) {           // one thread of each warp
        for (int n = 0; n < PANELS; n++) {
            const int column = at.h * HS + n * 64, row = at.key * KEYS + warp * 16;
            store_box(&dqkv, dk_room + n * S::KEYS_PANEL, C + column, row, at.b);
            store_box(&dqkv, dv_room + n * S::KEYS_PANEL, 2 * C + column, row, at.b);
        }
    };
    int stage = STAGES - 1, phase = 1, key_buffer = ROOMY, key_phase = 1, odd = 1;       // of `at`; odd: its number
    while (at.head < heads) {
        const bool first = at.first(), last = at.query == tiles - 1, complete = at.diagonal();
        const unsigned keys_at = keys_0 + key_buffer * 2 * S::KEYS_BYTES;
        const Operand keys(keys_at + (ROOMY ? 0 : warpgroup * S::KEYS_PANEL));
        const Operand queries(queries_0 + stage * 2 * S::QUERIES_BYTES);
        const Operand ds_queries(ds_0 + odd * S::DS_BYTES + (ROOMY ? warpgroup * 16 * PANEL_ROW : 0));
        const unsigned dq_room = (ROOMY ? ds_0 + (odd ^ 1) * S::DS_BYTES : dq_0) + warp * 4096;
        const unsigned dk_room = keys_at + S::KEYS_BYTES + own;                          // the values
        const unsigned dv_room = ROOMY ? queries_0 + (stage * 2 + 1) * S::QUERIES_BYTES + own : keys_at + own;
        auto room = [&](int n) { return dq_room + (n * 32 + lane) * 16; };
        float* const sum = sums + ((size_t(blockIdx.x) * tiles + at.query) * 8 + warp) * 1024;
        const bool add_sum = complete && at.key > 0;
        multiply_results(dk, ds, queries, !first);
        __syncthreads();                                     // ds is there; and both are done with the tile before
        Walk second = after;
        second.next(tiles, NH);
        if (warp == 0 && elected()) {
            fetch_queries(second, (stage + 2) % STAGES);
            if (ROOMY && first && at.head >= 0) {
                Walk w = at;
                w.query = tiles - 1;
                w.next(tiles, NH);
                fetch_keys(w, key_buffer ^ 1);
            }
        }
        if (add_sum) {
            if (first && elected()) bulk_wait();             // what the keys before have added is there
            __syncwarp();
            UNROLL for (int n = 0; n < 8; n++) copy_16(room(n), sum + (n * 32 + lane) * 4, true);
        }
        copies_commit();
        float dq[32];
        wgmma_fence();
        UNROLL for (int k = 0; k < KEYS / 16; k++)
            multiply_shared<true, true>(dq, ds_queries.after(k * QUERIES / 4 * PANEL_ROW),
                                        keys.after(k * 16 * PANEL_ROW), k > 0);
        wgmma_commit();
        if (!ROOMY && last && at.head >= 0) {                // dk and dv take the place of keys and values
            wgmma_wait<0>();
            __syncthreads();                                 // the other warpgroup's dq has read the keys
            store_keys(dk_room, dv_room);
            stores_visible();
            __syncwarp();
            if (elected()) {
                send_keys(dk_room, dv_room);
                bulk_commit();
                bulk_wait_read();
            }
            __syncthreads();                                 // all of dk and dv has been read
            if (warp == 0 && elected()) fetch_keys(after, 0);
        }
        if (last) {
            key_phase ^= ROOMY ? key_buffer : 1;             // flips on each return to buffer 0
            key_buffer ^= ROOMY;
        }
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
        odd ^= 1;
        if (after.head < heads) {
            if (after.first()) mbarrier_wait(keys_full + key_buffer * 8, key_phase);
            mbarrier_wait(queries_full + stage * 8, phase);
        }
        const Operand keys_after(keys_0 + key_buffer * 2 * S::KEYS_BYTES + warpgroup * 64 * PANEL_ROW);
        const Operand values_after(keys_0 + (key_buffer * 2 + 1) * S::KEYS_BYTES + warpgroup * 64 * PANEL_ROW);
        const Operand queries_after(queries_0 + stage * 2 * S::QUERIES_BYTES);
        const Operand douts(queries_0 + (stage * 2 + 1) * S::QUERIES_BYTES);
        float s[QUERIES / 2], dp[QUERIES / 2];
        multiply_transposed<HS, KEYS>(s, keys_after, queries_after);
        wgmma_wait<1>();                                  // for dk and dq
        multiply_transposed<HS, KEYS>(dp, values_after, douts);

        // dq, dk and dv leave
        const int dq_column = at.h * HS + (ROOMY ? 0 : warpgroup * 64);
        const int dq_row = at.query * QUERIES + (ROOMY ? warp : warp % 4) * 16;
        if (add_sum) {
            copies_wait<0>();
            UNROLL for (int n = 0; n < 8; n++)
                UNROLL for (int e = 0; e < 4; e++) dq[4 * n + e] += at_address(room(n))[e];
            __syncwarp();
        }
        if (complete) {
            stage_rows(dq_room, dq, scale, scale);
            if (sums_16 && at.head >= 0) {
                const size_t group = (size_t)at.b * tiles / S::EACH * KEYS / 16 + dq_row / 16;
                sum_rows(sums_16 + group * 3 * C + dq_column, dq, scale);
            }
        } else {
            UNROLL for (int n = 0; n < 8; n++)
                *(float4*)at_address(room(n)) = {dq[4 * n], dq[4 * n + 1], dq[4 * n + 2], dq[4 * n + 3]};
        }
        if (ROOMY && last) store_keys(dk_room, dv_room);
        stores_visible();
        __syncwarp();
        if (at.head >= 0 && elected()) {
            if (complete) store_box(&dqkv, dq_room, dq_column, dq_row, at.b);
            else if (at.key == 0) bulk_store(sum, dq_room, 4096);
            else bulk_add(sum, dq_room, 4096);
            if (ROOMY && last) send_keys(dk_room, dv_room);
            bulk_commit();
        }

        // dv += p dout, and ds to registers and to shared memory
        const float *row_lse = at_address(rows_0 + odd * S::ROWS_BYTES), *row_D = row_lse + QUERIES;
        unsigned p[QUERIES / 16][4];
        fetch_rows(second, odd ^ 1);
        wgmma_wait<1>();                                  // for s
        if (after.diagonal()) {
            const int ahead = (after.query - after.key * S::EACH) * QUERIES;             // of the first key
            UNROLL for (int n = 0; n < QUERIES / 8; n++)
                UNROLL for (int e = 0; e < 4; e++)
                    if (ahead + column_of(lane, n, e) < warp * 16 + row_of(lane, e)) s[4 * n + e] = -INFINITY;
        }
        UNROLL for (int n = 0; n < QUERIES / 8; n++) {
            float l[2];
            load(l, row_lse + column_of(lane, n, 0));
            UNROLL for (int e = 0; e < 4; e++) s[4 * n + e] = power_of_2(s[4 * n + e] * c - l[e % 2]);
            round_columns(p, s, n);
        }
        multiply_results(dv, p, douts, !after.first());
        wgmma_wait<1>();                                  // for dp
        UNROLL for (int n = 0; n < QUERIES / 8; n++) {
            float d[2];
            load(d, row_D + column_of(lane, n, 0));
            UNROLL for (int e = 0; e < 4; e++) s[4 * n + e] *= dp[4 * n + e] - d[e % 2];     // dk and dq are scaled
            round_columns(ds, s, n);
        }
        if (elected()) bulk_wait_read();                     // what left has been read
        __syncwarp();
        // (8 warps, QUERIES / 64, 16 keys, 64 queries): row and piece of the 8 x 8 numbers whose row this lane names
        UNROLL for (int k = 0; k < QUERIES / 16; k++) {
            const int row = (warp * (QUERIES / 64) + k / 4) * 16 + lane % 16, piece = k % 4 * 2 + lane / 16;
            store_fragments(ds_0 + odd * S::DS_BYTES + row * PANEL_ROW + (piece ^ row % 8) * 16, ds[k]);
        }
        copies_wait<0>();
        stores_visible();
        wgmma_wait<0>();
        at = after;
        after.next(tiles, NH);
    }
    bulk_wait();
#endif
}
template <int HS> void attention_backward_wgmma(floatX* dqkv, float* dqkv_b, float* scratch, float* partial,
                                                const floatX* dout, const floatX* qkv, const floatX* out,
                                                const float* lse, int B, int T, int NH) {
    using S = BackwardShape<HS>;
    const int C = NH * HS;
    float *const rows = scratch, *const sums = rows + S::rows(B, T, NH), *const sums_16 = sums + S::sums(B, T, NH);
    launch(attention_rows_kernel<HS>, dim3(NH, S::tiles(T), B), 256, 0, rows, dout, out, lse, T, NH);
    launch(attention_backward_wgmma_kernel<HS>, S::blocks(B, NH), 256, S::SHARED_BYTES,
           boxes(dqkv, B, T, T, 3 * C, 16), sums, dqkv_b ? sums_16 : nullptr, boxes(qkv, B, T, T, 3 * C, S::QUERIES),
           boxes(dout, B, T, T, C, S::QUERIES), rows, B * NH, NH, T, 1 / sqrtf(HS));
    if (dqkv_b) column_sums(sums_16, dqkv_b, partial, S::groups(B, T), 3 * C);
}
// Whether this GPU has the instructions, and the program was built for them: else kernels are empty, a few registers.
template <int HS> bool wgmma_built() {
    cudaFuncAttributes kernel;
    CHECK(cudaFuncGetAttributes(&kernel, attention_backward_wgmma_kernel<HS>));
    return device().capability() == 90 && kernel.numRegs > 64;
}
inline bool wgmma_fits(int HS) {
    static const bool built = [] {
        if constexpr (BF16) return wgmma_built<64>();
        else return false;
    }();
    return built && tiles_fit(HS);
}

#define BY_HEAD(HS, function) ((HS) == 64 ? function<64> : function<128>)
// Which of these a head size gets, where more than one query stands against no cache.
inline const char* attention_kernels(int HS) { return wgmma_fits(HS) ? "wgmma" : tiles_fit(HS) ? "tiles" : "plain"; }
inline size_t scores_size(int n) {           // bytes of n scores in shared memory
    const size_t bytes = (sizeof(float) * n + 15) / 16 * 16, limit = device().properties.sharedMemPerBlockOptin - 1024;
    if (bytes > limit) die("a row of %d attention scores does not fit the GPU's shared memory; lower --context", n);
    return bytes;
}
inline void attention_forward(floatX* out, float* lse, const floatX* qkv, int B, int t0, int T, int S, int C, int NH) {
    const int HS = C / NH;
    if constexpr (BF16) if (t0 == 0 && T > 1 && tiles_fit(HS)) {
        const auto by_wgmma = BY_HEAD(HS, attention_forward_wgmma), by_tiles = BY_HEAD(HS, attention_forward_tiles);
        return (wgmma_fits(HS) ? by_wgmma : by_tiles)(out, lse, qkv, B, T, S, NH);
    }
    launch(attention_forward_plain, dim3(T, NH, B), threads_for(t0 + T, 128), scores_size(t0 + T), out, lse, qkv, t0, T,
           S, C, HS, 1 / sqrtf(HS));
}
inline size_t attention_scratch(int B, int T, int NH, int HS) {     // numbers; backward's
    if (wgmma_fits(HS)) return (HS == 64 ? BackwardShape<64>::scratch : BackwardShape<128>::scratch)(B, T, NH);
    return (size_t)B * NH * T;               // of attention_dot_kernel()'s D
}
// dqkv; and its column sums are added to dqkv_b, unless that is null
inline void attention_backward(floatX* dqkv, float* dqkv_b, float* scratch, float* partial, const floatX* dout,
                               const floatX* qkv, const floatX* out, const float* lse, int B, int T, int C, int NH) {
    const int HS = C / NH, n = B * T * NH;
    if constexpr (BF16) if (wgmma_fits(HS))
        return BY_HEAD(HS, attention_backward_wgmma)(dqkv, dqkv_b, scratch, partial, dout, qkv, out, lse, B, T, NH);
    launch(attention_dot_kernel, ceil_div(n, 8), 256, 0, scratch, dout, out, n, T, NH, HS);
    if constexpr (BF16) if (tiles_fit(HS))
        BY_HEAD(HS, attention_backward_tiles)(dqkv, dout, qkv, lse, scratch, B, T, NH);
    if (!tiles_fit(HS)) for (auto kernel : {attention_backward_plain<true>, attention_backward_plain<false>})
        launch(kernel, dim3(T, NH, B), threads_for(T, 128), scores_size(2 * T), dqkv, dout, qkv, lse, scratch, T, C, HS,
               1 / sqrtf(HS));
    if (dqkv_b) column_sums(dqkv, dqkv_b, partial, B * T, 3 * C);
}

/* softmax and cross-entropy -- a row of logits becomes its gradient, in place
   math     logprob = z_y - log sum_v e^(z_v);   dz_v = weight (softmax(z)_v - (v == y)),   weight = -dloss/dlogprob
   shapes   logits (rows,V), rows `stride` apart; gradients beyond V are zero   y (rows); y = -1 counts nowhere
            logprob, best (rows)
   layout   a block asks for a whole row at once and goes through it twice in shared memory, where two blocks' rows of
            GPT-2's vocabulary fit: one is read while the other is written. A row that does not fit is read again.
   cost     logits once; with gradients twice */
template <bool GRADIENTS>
__global__ void cross_entropy_kernel(floatX* logits, float* logprob, int* best, const int* y, TokenTerms<float> terms,
                                     int V, int stride, bool fits) {
    constexpr int W = WIDE;
    SHARED(found, unsigned[32]);
    SHARED_DYNAMIC(shared);
    const int n = blockIdx.x, target = y[n], step = blockDim.x * W;
    floatX *z = logits + (size_t)n * stride, *row = fits ? (floatX*)shared : z;
    if (fits) for (int c = threadIdx.x * W; c < stride; c += step) copy<W>(row + c, z + c);
    const float at_target = target >= 0 ? float(z[target]) : 0;          // before anyone writes
    copies_finish();                                         // a thread goes through what it has fetched itself
    float maximum = -INFINITY, sum = 0, v[W];
    int where = 0;                                           // the maximum is among the W numbers from here on
    for (int c = threadIdx.x * W; c < V; c += step) {
        load(v, row + c);
        if (c + W > V) for (int i = 1; i < W; i++) if (c + i >= V) v[i] = -INFINITY;
        float high = v[0];
        for (int i = 1; i < W; i++) high = fmaxf(high, v[i]);
        if (high > maximum) {
            sum *= power_of_2((maximum - high) * LOG2E);
            maximum = high;
            where = c;
        }
        for (int i = 0; i < W; i++) sum += power_of_2(v[i] * LOG2E - maximum * LOG2E);
    }
    const float high = block_max(maximum);
    const float total = block_sum(maximum == -INFINITY ? 0 : sum * power_of_2((maximum - high) * LOG2E));
    unsigned first = V;                                      // the first place of the maximum
    for (int i = 0; i < W; i++)
        if (maximum == high && where + i < V && float(row[where + i]) == high)
            first = ::min(first, unsigned(where + i));
    first = __reduce_min_sync(WARP, first);
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = first;
    __syncthreads();
    const float lp = target >= 0 ? at_target - high - logf(total) : 0;
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x / 32; w++) first = ::min(first, found[w]);
        logprob[n] = lp;
        best[n] = target >= 0 ? (int)first : -1;
    }
    if constexpr (GRADIENTS) {
        const float weight = target >= 0 ? terms.loss<float>(n, lp).weight : 0, scale = weight / total;
        for (int c = threadIdx.x * W; c < stride; c += step) {
            load(v, row + c);
            for (int i = 0; i < W; i++) v[i] = scale * power_of_2(v[i] * LOG2E - high * LOG2E);
            if (c + W > V) for (int i = 0; i < W; i++) if (c + i >= V) v[i] = 0;
            if (c <= target && target < c + W)
                for (int i = 0; i < W; i++) v[i] -= c + i == target ? weight : 0;
            store(z + c, v);
        }
    }
}
inline void cross_entropy(floatX* logits, float* logprob, int* best, const int* y, const TokenTerms<float>& terms,
                          int rows, int V, int stride, bool gradients) {
    const size_t row = stride * sizeof(floatX);              // a multiple of 16
    const bool fits = row + 1024 <= device().properties.sharedMemPerBlockOptin;
    launch(gradients ? cross_entropy_kernel<true> : cross_entropy_kernel<false>, rows,
           threads_for(ceil_div(stride, WIDE), 512), fits ? row : 0, logits, logprob, best, y, terms, V, stride, fits);
}

// A step's loss and gradient norm; adamw_kernel() changes nothing unless both are finite.
struct Outcome { double loss, norm; };

// loss += the sum of the tokens' losses, by one block in a fixed order
__global__ void add_loss_kernel(Outcome* outcome, const float* logprob, TokenTerms<float> terms, const int* y, int N) {
    SHARED(parts, double[1024]);
    double sum = 0;
    for (int n = threadIdx.x; n < N; n += blockDim.x) if (y[n] >= 0) sum += terms.loss<double>(n, logprob[n]).loss;
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned i = 1; i < blockDim.x; i++) sum += parts[i];
    outcome->loss += sum;
}

/* readout -- one logit of one token of each row of a batch, and its gradients: cpu::readout_forward
   cost     reads 2BC numbers; backward: writes dx (B,T,C), of which BC are not zero, and reads as much again: in order,
            as a thread has a channel */
__global__ void readout_kernel(float* out, const floatX* x, const int* at, const floatX* w, int T, int C) {
    const floatX* x_b = x + ((size_t)blockIdx.x * T + at[blockIdx.x]) * C;
    float sum = 0;
    for (int i = threadIdx.x; i < C; i += 32) sum += float(x_b[i]) * float(w[i]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
__global__ void readout_backward_kernel(floatX* dx, float* dw, const float* dout, const floatX* x, const int* at,
                                        const floatX* w, int B, int T, int C) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= C) return;
    float sum = 0;
    for (int b = 0; b < B; b++) {
        const size_t n = ((size_t)b * T + at[b]) * C + i;
        sum += dout[b] * float(x[n]);
        dx[n] = floatX(dout[b] * float(w[i]));
    }
    if (dw) dw[i] += sum;
}

/* embedding, backward -- tokens repeat, some of them thousands of times, so the host sorts the positions by their token
   and cuts them into pieces of one token; a block sums up a piece, and then another a token's pieces, in order
   math     dwte[v] += sum over n with token[n] = v of dout[n];   dwpe[t] += sum over b of dout[b,t]
   shapes   order (N): positions, sorted   start (pieces + 1): where each piece begins   first (tokens + 1): the first
            piece of each token that occurs   partial (pieces,C)
   cost     2X, the rows of dwte that occur, and partial twice, much of it in the level-2 cache */
struct Occurrences { const int *order, *start, *first, *tokens; };       // tokens: the number of distinct ones
struct SortedTokens { std::vector<int> order, start, first; };
constexpr int PIECE = 64;                    // positions, at most
inline SortedTokens sort_tokens(const int* x, int N, int V) {            // a counting sort: cost N + V
    SortedTokens s{std::vector<int>(N), {}, {}};
    std::vector<int> count(V + 1);
    for (int n = 0; n < N; n++) count[x[n] + 1]++;
    for (int v = 0; v < V; v++) {
        if (count[v + 1]) s.first.push_back((int)s.start.size());
        for (int i = 0; i < count[v + 1]; i += PIECE) s.start.push_back(count[v] + i);
        count[v + 1] += count[v];
    }
    s.first.push_back((int)s.start.size());
    s.start.push_back(N);
    for (int n = 0; n < N; n++) s.order[count[x[n]]++] = n;
    return s;
}
// PIECES: rows of dout to rows of partial; else those to the rows of dwte
template <int W, bool PIECES, typename T>
__global__ void embedding_backward_kernel(float* sums, const T* rows, const int* x, Occurrences o, int C) {
    const int *const begin = PIECES ? o.start : o.first, n = PIECES ? o.first[*o.tokens] : *o.tokens;
    for (int p = blockIdx.x; p < n; p += gridDim.x) {
        const int from = begin[p], to = begin[p + 1];
        float* const row = sums + (size_t)(PIECES ? p : x[o.order[o.start[from]]]) * C;
        for (int c = threadIdx.x * W; c < C; c += blockDim.x * W) {
            float sum[W] = {};
            for (int i = from; i < to; i++) add(sum, rows + (size_t)(PIECES ? o.order[i] : i) * C + c);
            if (!PIECES) add(sum, row + c);
            store(row + c, sum);
        }
    }
}
template <int W> __global__ void embedding_backward_wpe_kernel(float* dwpe, const floatX* dout, int B, int TC) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (i >= TC) return;
    float sum[W] = {};
    for (int b = 0; b < B; b++) add(sum, dout + (size_t)b * TC + i);
    add(sum, dwpe + i);
    store(dwpe + i, sum);
}
inline void embedding_backward(float* dwte, float* dwpe, float* partial, const floatX* dout, const int* x,
                               Occurrences o, int B, int T, int C) {
    const int W = width(C), blocks = std::min(B * T, 32 * device().sms()), threads = threads_for(C / W, 128);
    launch(WIDTH(C, embedding_backward_kernel, true, floatX), blocks, threads, 0, partial, dout, x, o, C);
    launch(WIDTH(C, embedding_backward_kernel, false, float), blocks, threads, 0, dwte, partial, x, o, C);
    launch(WIDTH(C, embedding_backward_wpe_kernel), ceil_div((size_t)T * C, 128 * W), 128, 0, dwpe, dout, B, T * C);
}

/* gradient norm and AdamW, over the whole arena: blocks sum up squares of their shares, in double, where no square of a
   float overflows; then each block adds up all of these, in order, for the clip scale. If loss or norm is not finite,
   nothing changes.
   math     adamw_step(); gradients are scaled by min(1, clip / (norm + 1e-6))
   shapes   w, m, v, g, rounded (n), n a multiple of 128   decays (n / 128): whether weight decay applies
   cost     4 bytes a weight for the norm; 34 for the update: w, m, v and g are read and written, rounded is written */
constexpr int NORM_BLOCKS = 512;
__global__ void squares_kernel(double* squares, const float* g, size_t n, const unsigned char* counts) {
    double sum = 0;
    float v[4];
    const size_t step = all_threads() * 4;
    for (size_t i = thread_index() * 4; i < n; i += step) {
        if (counts && !counts[i / 128]) continue;
        load(v, g + i);
        for (int k = 0; k < 4; k++) sum += double(v[k]) * v[k];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}
__global__ void adamw_kernel(float* w, float* m, float* v, float* g, floatX* rounded, const unsigned char* decays,
                             size_t n, AdamWStep s, float clip, const double* squares, int parts, Outcome* outcome) {
    double sum = 0;
    for (int b = threadIdx.x; b < parts; b += blockDim.x) sum += squares[b];
    const double norm = sqrt(block_sum(sum));
    if (blockIdx.x == 0 && threadIdx.x == 0) outcome->norm = norm;
    if (!isfinite(norm) || !isfinite(outcome->loss)) return;
    const float scale = clip > 0 ? fminf(1, clip / (float(norm) + 1e-6f)) : 1;
    const size_t i = thread_index() * 4;
    if (i >= n) return;
    float w4[4], m4[4], v4[4], g4[4];
    load(w4, w + i);
    load(m4, m + i);
    load(v4, v + i);
    load(g4, g + i);
    for (int k = 0; k < 4; k++) {
        adamw_step(w4[k], m4[k], v4[k], scale * g4[k], s, decays[i / 128]);
        g4[k] = 0;
    }
    store(w + i, w4);
    store(m + i, m4);
    store(v + i, v4);
    store(g + i, g4);
    if (rounded) store(rounded + i, w4);
}
// In so many parts; of 128 numbers where counts is not 0.
inline int sum_of_squares(double* squares, const float* g, size_t n, const unsigned char* counts = nullptr) {
    const int parts = std::min(NORM_BLOCKS, ceil_div(n, 4096));
    launch(squares_kernel, parts, 256, 0, squares, g, n, counts);
    return parts;
}
inline void adamw(float* w, float* m, float* v, float* g, floatX* rounded, const unsigned char* decays, size_t n,
                  const AdamWStep& s, double clip, const double* squares, int parts, Outcome* outcome) {
    if (n) launch(adamw_kernel, ceil_div(n, 1024), 256, 0, w, m, v, g, BF16 ? rounded : nullptr, decays, n, s,
                  (float)clip, squares, parts, outcome);
}

// ---- 4. matmul ------------------------------------------------------------------------------------------------------
// cuBLASLt sees matrices by columns: what is (N,C) by rows here is (C,N) there, so out = x w is computed as
// out^T = w^T x^T. What a product is made with (descriptors, layouts, the algorithm) is found out once for each kind.
// d (m,n) by columns = a (m,k) b (k,n) + ..., each with its leading dimension
struct Matmul {
    int m, n, k;
    bool a_transposed = false, b_transposed = false;         // as they lie in memory, they are (k,m) and (n,k)
    long lda = a_transposed ? k : m, ldb = b_transposed ? n : k, ldd = m;        // leading dimensions
    bool bias = false;                       // + bias (m)
    bool plus = false;                       // + c (m,n), which may be d
    bool fp32 = false;                       // c and d are float, not floatX
    float scale = 1;                         // of a b
    unsigned alignment = 256;                // of a, b, c and d, in bytes
    bool operator==(const Matmul&) const = default;
};
template <typename... P> unsigned alignment_of(P*... operands) {         // the largest power of two, up to 256
    const uintptr_t all = ((uintptr_t)operands | ... | 256);
    return unsigned(all & -all);
}

}  // namespace gpu
#include "dev/host/heuristics.h"
#include "dev/host/nccl.h"
#include "dev/host/neighbours.h"
namespace gpu {

inline void matmul(void* d, const floatX* a, const floatX* b, Matmul p, const floatX* bias = nullptr,
                   const void* c = nullptr) {
    static std::vector<std::pair<Matmul, Plan>> plans;
    if (!c) c = d;
    p.alignment = alignment_of(a, b, c, d);
    auto it = std::find_if(plans.begin(), plans.end(), [&](auto& known) { return known.first == p; });
    if (it == plans.end()) {
        const auto plan = fastest(p, bias);
        if (!plan) die("cuBLASLt has no product (%d,%d) (%d,%d) for this GPU", p.n, p.k, p.k, p.m);
        it = plans.insert(it, {p, *plan});
    }
    CHECK(matmul_with(it->second, d, a, b, p, bias, c));
    if (SYNCHRONOUS) CHECK(cudaStreamSynchronize(device().stream));
}

// linear -- the Linear layer, as in cpu::linear_forward: out = x w + b (+ plus), of x (N,C), w (C,OC), b (OC) or null
inline void linear_forward(floatX* out, const floatX* x, const floatX* w, const floatX* b, const floatX* plus, int N,
                           int C, int OC) {
    matmul(out, w, x, {.m = OC, .n = N, .k = C, .bias = b != nullptr, .plus = plus != nullptr}, b, plus);
}
// forward: out = x w + b     so: dx = dout w^T,   dw += x^T dout, unless w is frozen;   what writes dout sums db
inline void linear_backward(floatX* dx, float* dw, const floatX* dout, const floatX* x, const floatX* w, int N, int C,
                            int OC) {
    matmul(dx, w, dout, {.m = C, .n = N, .k = OC, .a_transposed = true});
    if (dw) matmul(dw, dout, x, {.m = OC, .n = C, .k = N, .b_transposed = true, .plus = true, .fp32 = true});
}

// lora, as in cpu::lora_forward: out += u B,   u = scale x A
inline void lora_forward(floatX* out, floatX* u, const floatX* x, const Layer<floatX>& w, float scale, int N, int C,
                         int OC, int R) {
    matmul(u, w.A, x, {.m = R, .n = N, .k = C, .scale = scale});
    matmul(out, w.B, u, {.m = OC, .n = N, .k = R, .plus = true});
}
inline void lora_backward(floatX* dx, const Linear<float>& g, floatX* u, floatX* du, const floatX* dout,
                          const floatX* x, const Layer<floatX>& w, float scale, int N, int C, int OC, int R) {
    matmul(u, w.A, x, {.m = R, .n = N, .k = C, .scale = scale});
    matmul(du, w.B, dout, {.m = R, .n = N, .k = OC, .a_transposed = true, .scale = scale});
    matmul(dx, w.A, du, {.m = C, .n = N, .k = R, .a_transposed = true, .plus = true});
    matmul(g.A, du, x, {.m = R, .n = C, .k = N, .b_transposed = true, .plus = true, .fp32 = true});
    matmul(g.B, dout, u, {.m = OC, .n = R, .k = N, .b_transposed = true, .plus = true, .fp32 = true});
}

// cuBLASLt multiplies sizes that are no multiple of 8 at an eighth of its speed (H200, dev/SPEED.md). So the device
// pads V to a multiple of 64. The tables' rows beyond V are zero and stay so: cross_entropy() gives them no gradient.
constexpr int VOCABULARY_TILE = 64;
inline int padded(int V) { return (V + VOCABULARY_TILE - 1) / VOCABULARY_TILE * VOCABULARY_TILE; }

// ---- 5. decoding ----------------------------------------------------------------------------------------------------
// One token more for each of a few rows. All that changes from step to step is on the device (position, token, random
// state of each row), so that one recording of these kernels serves every step.

/* product of few rows, bound by reading the weights: once for ROWS rows, up to 16 bytes a load, many under way before
   the rows are there; one row may be normalized first, by every warp for itself
   math     out = f(x) w + b (+ plus), then gelu if asked;   f: layernorm, if norm has weights
   shapes   x (N,C)   w (C,OC) in any form   b (OC) or null   out, plus (N,OC);   C and OC are multiples of WIDE
   layout   `across` lanes side by side take WIDE columns each; threads above each other take rows of w in turn
   cost     w in its form; every row gets the bits that it gets alone, from w unpacked */
struct Normed {                              // a product's input: x; or layernorm(x), still to be done, if there is w
    const floatX *x, *w, *b;
    float eps;
    Normed(const floatX* x, const floatX* w = nullptr, const floatX* b = nullptr, float eps = 0)
        : x(x), w(w), b(b), eps(eps) {}
};
template <Form FORM, int ROWS> __global__ void __launch_bounds__(512, ROWS > 1 ? 1 : 2)
few_rows_kernel(floatX* out, Normed x, Place<floatX> w, const floatX* b, const floatX* plus, bool gelu, int N, int C,
                int OC, int across) {
    SHARED_DYNAMIC(shared);
    constexpr int AHEAD = 8;                 // rows of w that a thread has asked for
    floatX *const xs = (floatX*)shared, *const ws = xs + ROWS * C, *const bs = ws + C; // x; the layernorm's weights
    const int columns = across * WIDE, c = blockIdx.x * columns + threadIdx.x % across * WIDE, lane = threadIdx.x % 32;
    const int first = threadIdx.x / across, step = blockDim.x / across, end = c < OC ? C : 0;
    const int column = blockIdx.x * columns + threadIdx.x;
    const bool ends = (int)threadIdx.x < columns && column < OC;         // whether this thread writes the column
    const int n0 = ROWS > 1 ? blockIdx.y * ROWS : 0, rows = ROWS > 1 ? min(ROWS, N - n0) : 1;
    SHARED(parts, float[ROWS][16][8 * WIDE]);                // sums of each warp
    SHARED(level, float[16]);
    const Neighbours<FORM> neighbours(w, c, OC, level);
    typename Neighbours<FORM>::Kept ahead[AHEAD];
    auto ask = [&](int i, int k) { if (k < end) ahead[i] = neighbours.row(k); };
    auto copy = [&](floatX* to, const floatX* from, int n) {
        for (int i = threadIdx.x * WIDE; i < n; i += blockDim.x * WIDE) gpu::copy<WIDE>(to + i, from + i);
    };
    next_kernel_may_begin();
    UNROLL for (int i = 0; i < AHEAD; i++) ask(i, first + i * step);
    if (x.w) copy(ws, x.w, C);
    if (x.w) copy(bs, x.b, C);
    const float bias = ends && b ? float(b[column]) : 0;
    kernel_ahead_wait();
    copy(xs, x.x + (size_t)n0 * C, rows * C);
    copies_commit();
    float residual[ROWS] = {}, sum[ROWS][WIDE] = {};
    if (ends && plus) UNROLL for (int r = 0; r < ROWS; r++)
        if (r < rows) residual[r] = float(plus[size_t(n0 + r) * OC + column]);
    copies_wait<0>();
    __syncthreads();
    if (x.w) {
        float all = 0, squares = 0, v[WIDE], weight[WIDE], shift[WIDE];
        auto each = [&](auto f) {
            for (int i = lane * WIDE; i < C; i += 32 * WIDE) {
                load(v, xs + i);
                for (float u : v) f(u);
            }
        };
        each([&](float u) { all += u; });
        const float mean = warp_sum(all) / C;
        each([&](float u) { squares += (u - mean) * (u - mean); });
        const float rstd = rsqrtf(warp_sum(squares) / C + x.eps);
        __syncthreads();                     // all warps have read
        for (int k = threadIdx.x * WIDE; k < C; k += blockDim.x * WIDE) {
            load(v, xs + k);
            load(weight, ws + k);
            load(shift, bs + k);
            for (int i = 0; i < WIDE; i++) v[i] = (v[i] - mean) * rstd * weight[i] + shift[i];
            store(xs + k, v);
        }
        __syncthreads();
    }
    for (int k0 = first; k0 < end; k0 += AHEAD * step)
        UNROLL for (int i = 0; i < AHEAD; i++) {
            const int k = k0 + i * step;
            if (k >= end) break;
            float row[WIDE];
            neighbours.load(row, ahead[i]);
            UNROLL for (int r = 0; r < ROWS; r++) if (r < rows)
                for (int j = 0; j < WIDE; j++) sum[r][j] += float(xs[r * C + k]) * row[j];
            ask(i, k + AHEAD * step);
        }
    for (int r = 0; r < ROWS; r++) for (int j = 0; j < WIDE; j++) {
        for (int o = 16; o >= across; o /= 2) sum[r][j] += __shfl_xor_sync(WARP, sum[r][j], o);
        if (lane < across) parts[r][threadIdx.x / 32][lane * WIDE + j] = sum[r][j];
    }
    __syncthreads();
    if (ends) UNROLL for (int r = 0; r < ROWS; r++) if (r < rows) {
        float total = bias;
        for (int k = 0; k < (int)blockDim.x / 32; k++) total += parts[r][k][threadIdx.x];
        out[size_t(n0 + r) * OC + column] = floatX((gelu ? ::gelu(total) : total) + residual[r]);
    }
}
constexpr int FEW_ROWS = 8, TOGETHER = 4;    // rows that it takes if w is packed, else one; those that share a reading
inline size_t few_rows_bytes(int N, int C) { return ((N > 1 ? TOGETHER : 1) + 2) * C * sizeof(floatX); }  // shared
inline bool few_rows_fit(int N, int C) {
    return N <= FEW_ROWS && few_rows_bytes(N, C) <= device().properties.sharedMemPerBlockOptin;
}
inline void few_rows(floatX* out, Normed x, const Place<floatX>& w, const floatX* b, const floatX* plus, bool gelu,
                     int N, int C, int OC) {
    int across = 1;                          // WIDE columns; up to 8 times that, a line of bf16, with blocks enough
    while (across < 8 && OC / (2 * across * WIDE) >= device().sms()) across *= 2;
    auto kernel = w.form == Form::INT8 ? N > 1 ? few_rows_kernel<Form::INT8, TOGETHER> : few_rows_kernel<Form::INT8, 1>
                : w.form == Form::NF4 ? N > 1 ? few_rows_kernel<Form::NF4, TOGETHER> : few_rows_kernel<Form::NF4, 1>
                : few_rows_kernel<Form::FP32, 1>;
    launch_early(kernel, dim3(ceil_div(OC, across * WIDE), ceil_div(N, N > 1 ? TOGETHER : 1)),
                 C * across > 2048 ? 512 : 256, few_rows_bytes(N, C), out, x, w, b, plus, gelu, N, C, OC, across);
}

// embedded (B,C) = wte[token] + wpe[position]. Kernels behind it ask for weights at once, so they may only begin when
// all ahead of it is done.
__global__ void embedding_step_kernel(floatX* embedded, const int* token, const int* position, const floatX* wte,
                                      const floatX* wpe, int C) {
    kernel_ahead_wait();
    next_kernel_may_begin();
    embedded += (size_t)blockIdx.x * C;
    wte += (size_t)token[blockIdx.x] * C;
    wpe += (size_t)position[blockIdx.x] * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) embedded[c] = floatX(float(wte[c]) + float(wpe[c]));
}

/* attention of one query a row, whose key and value join the cache
   math     s_j = q . k_j / sqrt(HS) for j <= position;   out = sum_j e^s_j v_j / sum_j e^s_j
   shapes   fresh (B,3C): q, k, v of the new token   cache (B,S,3C): of the others, its q is never read   out (B,C)
   layout   a block takes a head of a row. `lanes` lanes side by side take a key and its value, 16 bytes each, and four
            keys at once, with a maximum and sums of their own, which shrink as the maximum rises; these are joined at
            the end, in order. HS is a multiple of WIDE and at most 32 WIDE.
   cost     2 C numbers a key */
constexpr int STEP_THREADS = 1024;
__global__ void __launch_bounds__(STEP_THREADS, 1) attention_step_kernel(
    floatX* out, floatX* cache, const floatX* fresh, const int* position, int S, int C, int HS, int lanes,
    float scale) {
    constexpr int W = WIDE, AT_ONCE = 4, WARPS = STEP_THREADS / 32;
    SHARED(sums, float[WARPS]);
    SHARED(highs, float[WARPS]);
    SHARED(outs, float[WARPS][32 * W]);
    next_kernel_may_begin();
    kernel_ahead_wait();
    const int h = blockIdx.x, b = blockIdx.y, keys = position[b] + 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = threadIdx.x / lanes, step = STEP_THREADS / lanes, c = threadIdx.x % lanes * W;
    const bool mine = c < HS;
    floatX* const row = cache + (size_t)b * S * 3 * C + h * HS + c;
    const floatX* const now = fresh + (size_t)b * 3 * C + h * HS + c;
    float q[W] = {}, o[W] = {}, maximum = -FLT_MAX, sum = 0;
    if (mine) load(q, now);
    for (int j0 = 0; j0 < keys; j0 += AT_ONCE * step) {      // all threads alike: lanes meet in the shuffles
        Raw k[AT_ONCE] = {}, v[AT_ONCE] = {};
        float s[AT_ONCE] = {}, high = maximum, x[W];
        for (int i = 0; i < AT_ONCE; i++)
            if (const int j = j0 + first + i * step; mine && j < keys) {
                const floatX* const at = j + 1 < keys ? row + (size_t)j * 3 * C : now;
                k[i] = fetch_raw(at + C);
                v[i] = fetch_raw(at + 2 * C);
            }
        for (int i = 0; i < AT_ONCE; i++) {
            load(x, k[i]);
            for (int w = 0; w < W; w++) s[i] += q[w] * x[w];
        }
        for (int l = lanes / 2; l; l /= 2)
            for (int i = 0; i < AT_ONCE; i++) s[i] += __shfl_xor_sync(WARP, s[i], l);
        for (int i = 0; i < AT_ONCE; i++) {
            s[i] *= scale * LOG2E;
            if (j0 + first + i * step < keys) high = fmaxf(high, s[i]);
        }
        const float shrink = exp2f(maximum - high);
        maximum = high;
        sum *= shrink;
        for (float& f : o) f *= shrink;
        for (int i = 0; i < AT_ONCE; i++) {
            const float p = j0 + first + i * step < keys ? exp2f(s[i] - high) : 0;
            sum += p;
            load(x, v[i]);
            for (int w = 0; w < W; w++) o[w] += p * x[w];
        }
    }
    for (int l = lanes; l < 32; l *= 2) {    // a warp's keys
        const float high = fmaxf(maximum, __shfl_xor_sync(WARP, maximum, l)), shrink = exp2f(maximum - high);
        maximum = high;
        sum *= shrink;
        sum += __shfl_xor_sync(WARP, sum, l);
        for (float& f : o) {
            f *= shrink;
            f += __shfl_xor_sync(WARP, f, l);
        }
    }
    if (lane == 0) {
        highs[warp] = maximum;
        sums[warp] = sum;
    }
    if (lane < lanes) for (int w = 0; w < W; w++) outs[warp][c + w] = o[w];
    if (first == 0 && mine) for (int part : {C, 2 * C}) {
        load(q, now + part);
        store(row + (size_t)(keys - 1) * 3 * C + part, q);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HS; i += STEP_THREADS) {
        float high = highs[0], total = 0, all = 0;
        for (float f : highs) high = fmaxf(high, f);
        for (int w = 0; w < WARPS; w++) {
            const float share = exp2f(highs[w] - high);
            total += share * sums[w];
            all += share * outs[w][i];
        }
        out[(size_t)b * C + h * HS + i] = floatX(all / total);
    }
}
inline bool steps_fit(int C, int NH) { return C % WIDE == 0 && C / NH % WIDE == 0 && C / NH <= 32 * WIDE; }
inline void attention_step(floatX* out, floatX* cache, const floatX* fresh, const int* position, int B, int S, int C,
                           int NH) {
    const int HS = C / NH;
    launch_early(attention_step_kernel, dim3(NH, B), STEP_THREADS, 0, out, cache, fresh, position, S, C, HS,
                 (int)std::bit_ceil(unsigned(HS / WIDE)), 1 / sqrtf(HS));
}

/* pick -- as in cpu::pick, the same token from the same logits: all sums are of integers
   shapes   logits (rows,V), rows `stride` apart   hidden (1 + n): n, and the tokens that are never drawn
   layout   a block takes a row, to shared memory if it fits there, each thread a range of it. For top-k and top-p,
            radix select finds the smallest key that is kept, one bit a pass. */
struct Pickers {                             // of each row
    int *token, *position;                   // the last, and where it stands
    Rng* rng;
    int* drawn;                              // (DRAWN,B), for the host: tokens, or bits of a logit that is not finite
};
constexpr int DRAWN = 4, PICK_THREADS = 1024, KEY_BITS = 8 * sizeof(floatX);
using u64 = unsigned long long;              // which the shuffles take
DEVICE unsigned key_of(float x) { return ordered(x) >> (32 - KEY_BITS); }
DEVICE float number_of(unsigned key) {
    return __uint_as_float((key >> (KEY_BITS - 1) ? key : ~key) << (32 - KEY_BITS) ^ (key >> (KEY_BITS - 1) << 31));
}
// The sum of x over all threads before this one; and over all.
DEVICE u64 sum_before(u64 x, u64& all) {
    SHARED(parts, u64[32]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = x, before = 0;
    for (int o = 1; o < 32; o *= 2) {
        const u64 other = __shfl_up_sync(WARP, sum, o);
        if (lane >= o) sum += other;
    }
    __syncthreads();                         // parts may still be read from the last time
    if (lane == 31) parts[warp] = sum;
    __syncthreads();
    all = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) {
        if (w < warp) before += parts[w];
        all += parts[w];
    }
    return before + sum - x;
}
// The greatest key for which amount(), summed up over it and all greater ones, reaches `least`; and the sum without it.
struct Cut { unsigned key; u64 above; };
template <typename Each, typename F> DEVICE Cut find_cut(Each each, u64 least, F amount) {
    Cut cut = {0, 0};
    for (unsigned bit = 1u << (KEY_BITS - 1); bit; bit >>= 1) {
        u64 mine = 0, all;
        each([&](int, float x) { if (const unsigned key = key_of(x); key >= (cut.key | bit)) mine += amount(key); });
        sum_before(mine, all);
        if (all >= least) cut.key |= bit;
        else cut.above = all;
    }
    return cut;
}
__global__ void __launch_bounds__(PICK_THREADS, 1) pick_kernel(Pickers p, floatX* logits, const Sampling* sampling,
                                                       const int* hidden, int V, int stride, int B, bool fits) {
    SHARED_DYNAMIC(shared);
    const int b = blockIdx.x, range = (V + PICK_THREADS * WIDE - 1) / (PICK_THREADS * WIDE) * WIDE;
    const int from = threadIdx.x * range, to = ::min(V, from + range), at = p.position[b] + 1;
    floatX* z = logits + (size_t)b * stride;
    const Sampling s = *sampling;
    for (int i = threadIdx.x; i < hidden[0]; i += PICK_THREADS) z[hidden[1 + i]] = floatX(NEVER);
    __syncthreads();
    if (fits) {
        floatX* const row = (floatX*)shared;
        for (int v = threadIdx.x * WIDE; v < stride; v += PICK_THREADS * WIDE) copy<WIDE>(row + v, z + v);
        copies_finish();
        __syncthreads();
        z = row;
    }
    Rng rng = p.rng[b];
    auto walk = [&](int from, int to, int step, auto f) {
        for (int v = from; v < to; v += step) {
            float x[WIDE];
            load(x, z + v);
            UNROLL for (int i = 0; i < WIDE; i++) if (v + i < to) f(v + i, x[i]);
        }
    };
    auto each = [&](auto f) { walk(from, to, WIDE, f); };    // in order
    auto any = [&](auto f) { walk(threadIdx.x * WIDE, V, PICK_THREADS * WIDE, f); };       // in the order of memory
    auto finish = [&](int token, int drawn) {                // by one thread, when all have read
        p.token[b] = token;
        p.position[b] = at;
        p.rng[b] = rng;
        p.drawn[at % DRAWN * B + b] = drawn;
    };
    float maximum = -INFINITY;
    int bad = V;                             // the first that is not finite; V < 2^24, so a float can hold it
    any([&](int v, float x) {
        maximum = fmaxf(maximum, x);
        bad = isfinite(x) ? bad : ::min(bad, v);
    });
    maximum = block_max(maximum);
    bad = -(int)block_max(-bad);
    if (bad < V) {
        if (threadIdx.x == 0) finish(0, __float_as_int(z[bad]));
        return;
    }
    auto weigh = [&](unsigned key) { return weight_of(maximum - number_of(key), s.scale); };
    unsigned cut = 0;                        // kept: all keys above it (so far, all), and the first `ties` equal to it
    u64 ties = 0, rank = 0, mine = 0, all;
    if (s.top_k < V) {
        const Cut c = find_cut(any, s.top_k, [](unsigned) { return u64(1); });
        cut = c.key;
        ties = s.top_k - c.above;
    }
    if (s.top_p) {
        any([&](int, float x) { if (key_of(x) > cut) mine += weigh(key_of(x)); });
        sum_before(mine, all);
        all += ties * weigh(cut);
        const Cut c = find_cut(any, multiply_high(all, s.top_p),
                               [&](unsigned key) { return u64(key < cut ? 0 : weigh(key)); });
        cut = c.key;
        ties = (multiply_high(all, s.top_p) - c.above + weigh(cut) - 1) / weigh(cut);
    }
    if (cut) {
        each([&](int, float x) { rank += key_of(x) == cut; });
        rank = sum_before(rank, all);
    }
    auto kept = [&](float x, u64& rank) {                   // its weight, or 0
        const unsigned key = key_of(x);
        return (key > cut || (key == cut && rank++ < ties)) && maximum - x <= s.most_below ? weigh(key) : 0;
    };
    u64 ranked = rank;
    int token = -1;
    mine = 0;
    each([&](int, float x) { mine += kept(x, ranked); });
    const u64 before = sum_before(mine, all);
    u64 left = rng.below(all) - before;                     // wraps to huge if the draw falls in an earlier range
    if (left >= mine) return;
    each([&](int v, float x) {
        const u64 w = kept(x, rank);
        if (token < 0 && left < w) token = v;
        left -= w;
    });
    finish(token, token);
}
inline void pick(Pickers p, floatX* logits, const Sampling* sampling, const int* hidden, int rows, int V, int B) {
    const size_t row = padded(V) * sizeof(floatX);
    const bool fits = row + 2048 <= device().properties.sharedMemPerBlockOptin;
    launch(pick_kernel, rows, PICK_THREADS, fits ? row : 0, p, logits, sampling, hidden, V, padded(V), B, fits);
}

// ---- 6. model -------------------------------------------------------------------------------------------------------
// What a step computes on a GPU beside ACTIVATIONS.
#define GPU_ACTIVATIONS(X) \
    ACTIVATIONS(X) \
    X(float,  scratch,  ONCE,  training ? attention_scratch(B, T, c.heads(), c.head_size()) : 0) \
    X(float,  partial,  ONCE,  training ? partial_size(c.C) : 0) \
    X(int,    token,    ONCE,  N)            X(int, target, ONCE, N)       X(float, weight, ONCE, N) \
    X(float,  old,      ONCE,  training ? N : 0)             X(float, ref, ONCE, training ? N : 0) \
    X(float,  kl,       ONCE,  1)            X(int, read_at, ONCE, B)      X(float, read, ONCE, B)     /* readout's */ \
    X(float,  logprob,  ONCE,  N)            X(int, best, ONCE, N) \
    X(cpu::Found, found, ONCE, c.tp > 1 ? c.tp * head_rows(N, c) : 0)      /* for cross_entropy() */ \
    X(int,    order,    ONCE,  training ? N : 0)             X(int, start, ONCE, training ? N + 1 : 0) \
    X(int,    first,    ONCE,  training ? N + 1 : 0)         /* these three: for embedding_backward() */ \
    X(int,    tokens,   ONCE,  1)            X(double, squares, ONCE, NORM_BLOCKS) \
    X(int,    position, ONCE,  N)            X(Rng, rng, ONCE, N)            X(Sampling, sampling, ONCE, 1) \
    X(int,    hidden,   ONCE,  c.V + 1)      /* these four: for pick() */ \
    X(Outcome, outcome, ONCE,  1) \
    X(floatX, unpacked, ONCE,  c.form > Form::BF16 ? c.C * max(c.qkv(), c.fc()) : 0)

using act = floatX;
using stat = float;
struct Activations { GPU_ACTIVATIONS(AS_POINTER) };

inline int most_logits = 1 << 29;            // numbers at once; --check has fewer, so that they come in several chunks
inline size_t head_rows(size_t N, const Config& c) {
    return std::min<size_t>(N, std::clamp(most_logits / (c.V / c.tp), 64, 16384));
}

// The arrays in units of 16 bytes, so that Slots aligns each to more than anyone asks for.
inline std::vector<std::pair<Per, size_t>> activation_arrays(const Config& c, int B, int T, bool training) {
    const size_t N = (size_t)B * T;
    const Per KEPT = training ? BLOCK : ONCE;
    std::vector<std::pair<Per, size_t>> v;
#define X(type, field, per, count) v.push_back({per, ((count) * sizeof(type) + 15) / 16});
    GPU_ACTIVATIONS(X)
#undef X
    return v;
}

struct Model : ModelBase<Link, floatX> {
    static void join(const Options& o) { join_nccl(o.out); }
    static void leave() { if (nccl()) nccl()->leave(); }
    const bool training;

    Model(const Config& c, int B, int T, bool training, bool = false)
        : ModelBase(c, B, T, training, VOCABULARY_TILE, BF16), training(training), token_weight(logprob.size()) {
        if (B > 65535) die("--batch %d: a GPU's grids have at most 65535 rows; use --tokens-per-step", B);
        size_t have, total;
        const size_t n = layout.slots.size, trained = layout.trained();
        device();                                            // says it if there is none
        CHECK(cudaMemGetInfo(&have, &total));
        have += device().workspace_size;                     // which needed() counts, and the device has already
        if (needed(B).all() > have) {
            int fits = B - 1;                                // the most rows that do
            while (fits && needed(fits).all() > have) fits--;
            die("not enough memory on the GPU: %s for %d rows of %d tokens, %.2f GB are free; %s",
                needed(B).text().c_str(), B, T, have / 1e9,
                fits ? format("--batch %d fits", fits).c_str() : "lower --context");
        }
        rounded = allocate<floatX>(n);
        packed = allocate<uint8_t>(16 * layout.packed.size);
        if (!BF16) weights = (float*)rounded + layout.frozen;
        if (training) {
            if (BF16) weights = allocate<float>(shares.moments());
            moment1 = allocate<float>(shares.moments());
            moment2 = allocate<float>(shares.moments());
            shares.gradients = shares.sums = allocate<float>(gradient_layout.trained());
        }
        if (shares.several()) {
            shares.sums = allocate<float>(shares.kept.back());
            shares.arrivals = allocate<float>(shares.landing);
        }
        place_activations();
        group.arrivals = activations(0).arrivals;
        for (Staged& s : staged) {
            CHECK(cudaMallocHost(&s.memory, sizeof(int) * (8 * (size_t)B * T + 4)));         // forward()'s, at most
            CHECK(cudaEventCreateWithFlags(&s.copied, cudaEventDisableTiming));
        }
        CHECK(cudaMallocHost(&drawn, sizeof(int) * DRAWN * B));
        for (cudaEvent_t& e : ready) CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        std::vector<unsigned char> flags(trained / 128);
        for (const Tensor& t : layout.tensors)
            if (t.present && t.decays() && t.trained)
                std::fill_n(&flags[(t.offset - layout.frozen) / 128], (t.count() + 127) / 128, 1);
        decays = allocate<unsigned char>(flags.size());
        upload(decays, flags.data(), flags.size());
        if (c.tp_rank) counts = allocate<unsigned char>(shares.kept.back() / 128);
        for (const Tensor& t : layout.tensors)               // what the first of the group does not have
            if (c.tp_rank && !t.slice.all()) each_place(GRADIENT, t, 0, t.count(), [&](float* own, auto, size_t n) {
                CHECK(cudaMemsetAsync(counts + (own - shares.sums) / 128, 1, ceil_div(n, 128), device().stream));
            });
        CHECK(cudaStreamSynchronize(device().stream));
    }
    Model(const Model&) = delete;
    ~Model() {
        cudaStreamSynchronize(device().stream);
        if (nccl()) cudaStreamSynchronize(nccl()->stream);
        for (void* p : owned) cudaFree(p);
        for (Staged& s : staged) cudaFreeHost(s.memory);
        for (Staged& s : staged) cudaEventDestroy(s.copied);
        for (cudaEvent_t e : ready) cudaEventDestroy(e);
        cudaFreeHost(drawn);
        for (auto& [key, graph] : graphs) if (graph) cudaGraphExecDestroy(graph);
    }

    Footprint needed(int B) const {          // gradients: with what is needed to add up those of several ranks
        const double as_read = layout.slots.size * double(sizeof(floatX)) + 16 * layout.packed.size;
        const size_t activations = Slots(activation_arrays(c, B, max_T, training), c.L).size;
        return {.weights = as_read + (BF16 && training) * 4.0 * shares.moments(),
                .gradients = training * 4.0 * (gradient_layout.trained() + shares.exchanged()),
                .moments = training * 8.0 * shares.moments(),
                .activations = 16.0 * activations + device().workspace_size};
    }
    std::string describe() const {
        const Device& d = device();
        return format("%s, %d SMs, compute capability %d.%d (built for %d.%d), %s, peak %.0f TFLOP/s, "
                      "%.2f TB/s; attention: %s; %s", d.properties.name, d.sms(), d.capability() / 10,
                      d.capability() % 10, d.built_for / 10, d.built_for % 10, DTYPE, d.peak() / 1e12,
                      d.bandwidth() / 1e12, attention_kernels(c.C / c.NH), needed(max_B).text().c_str());
    }

    /* The least time of a step of so many tokens: products and attention at 80 % of the peak, all else at 90 % of the
       memory's bandwidth, with the bytes of the kernels' comments: norms forward 3X + 4X a layer, backward 4X each,
       embedding backward about 4X. Activation and sums for biases do not count: they could be part of products. */
    Speed speed(double tokens, double seconds) const {
        const Config w = c.part(1, 0);
        const size_t all = layout.parameters, frozen = layout.frozen_parameters;
        const double matrices = c.C * (c.L * (w.qkv() + c.C + w.fc() + w.hidden()) + c.V);
        const double X = tokens * c.tp * c.C * sizeof(floatX), logits = tokens * c.V * sizeof(floatX);
        const double moved = (3 + 4 * c.L + 4 * (2 * c.L + 1) + 4) * X + 2 * logits + 38.0 * (all - frozen);
        const double flops = tokens * ((c.rank ? 4 : 6) * matrices + 6.0 * c.L * c.C * max_T);
        const double peak = device().peak(), bandwidth = device().bandwidth();
        const double floor = flops / (0.8 * peak) + (bandwidth ? moved / (0.9 * bandwidth) : 0);
        const double mfu = tokens * c.flops_per_token(all, frozen, max_T) / seconds / peak, sol = floor / seconds;
        return {format("MFU %.1f%%  SOL %.1f%%", 100 * mfu, 100 * sol),
                {{"mfu", json_number(mfu)}, {"mfu_products", json_number(flops / seconds / peak)},
                 {"sol", json_number(sol)}}};
    }

    void forward(const int* x, const int* y, const Objective& o, double denominator, int B, int T, bool backward) {
        const int N = B * T;
        const Activations a = activations(0);
        Pinned pinned(*this);
        for (int n = 0; n < N; n++) token_weight[n] = (o.weight ? o.weight[n] : 1.0) / denominator;
        const std::vector<int> tokens = in_table(x, N);
        pinned.send(a.token, tokens.data(), N);
        pinned.send(a.target, y, N);
        pinned.send(a.weight, token_weight.data(), N);
        terms = {.weight = a.weight, .kl = a.kl, .old = o.old ? a.old : nullptr, .ref = o.ref ? a.ref : nullptr,
                 .clip = (float)o.clip};
        const float kl = o.kl / denominator;
        if (o.old) pinned.send(a.old, o.old, N);
        if (o.ref) pinned.send(a.ref, o.ref, N);
        if (o.ref) pinned.send(a.kl, &kl, 1);
        last = {.B = B, .T = T, .scored = backward && !o.ref ? 0 : N};
        auto kernels = [&] { network_head(*this, network_forward(*this, B, 0, T, T), N, backward); };
        if (!backward) return kernels();
        play(o.old ? FORWARD_LATER : o.ref ? FORWARD_FIRST : FORWARD, B, T, kernels);
        send_sorted(pinned, tokens.data(), N);
    }
    void readout(const int* x, const int* at, int token, int B, int T, float* out) {
        const Activations a = activations(0);
        Pinned pinned(*this);
        pinned.send(a.token, x, B * T);
        pinned.send(a.read_at, at, B);
        last = {.B = B, .T = T, .token = token};
        const Normed normed = network_forward(*this, B, 0, T, T);
        launch(readout_kernel, B, 32, 0, a.read, normed.x, a.read_at, table() + (size_t)token * c.C, T, c.C);
        if (training) send_sorted(pinned, x, B * T);
        download(out, a.read, B);
        CHECK(cudaStreamSynchronize(device().stream));
    }
    void readout_backward(const float* dout) {
        const Activations a = activations(0);
        const size_t row = (size_t)last.token * c.C;
        float* const dw = dtable() ? dtable() + row : nullptr;
        upload(a.read, dout, last.B);
        CHECK(cudaMemsetAsync(a.dx, 0, sizeof(floatX) * last.B * last.T * c.C, device().stream));
        launch(readout_backward_kernel, ceil_div(c.C, 128), 128, 0, a.dx, dw, a.read, a.lnf, a.read_at, table() + row,
               last.B, last.T, c.C);
    }
    void backward() { play(BACKWARD, last.B, last.T, [&] { network_backward(*this, last.B, last.T); }); }

    void update(const AdamW& o, double clip, integer step) {
        const Activations a = activations(0);
        const AdamWStep s(o, step);
        floatX* const trained = rounded + layout.frozen;
        int parts = sum_of_squares(a.squares, shares.sums, shares.kept.back(), counts);
        if (shares.several() || group.several()) {
            shares.link.agree(a.outcome, a.squares, parts);
            parts = 1;
        }
        if (shares.several() && shares.comm.zero == 0) shares.gather_gradients();
        if (shares.comm.zero == 0)
            return adamw(weights, moment1, moment2, shares.gradients, trained, decays, layout.trained(), s, clip,
                         a.squares, parts, a.outcome);
        for (size_t p = 0; p < shares.pieces.size(); p++) {              // each rank updates its parts
            const Range mine = shares.part(p, shares.comm.rank);
            const size_t own = shares.kept[p];
            adamw(weights + (BF16 ? own : mine.at), moment1 + own, moment2 + own, shares.sums + own, trained + mine.at,
                  decays + mine.at / 128, mine.n, s, clip, a.squares, parts, a.outcome);
        }
        shares.send_weights(trained, [](auto...) {});
    }

    StepResult result() {
        Outcome out;
        const Activations a = activations(0);
        download(&out, a.outcome, 1);
        download(logprob.data(), a.logprob, last.scored);
        download(best.data(), a.best, last.scored);
        CHECK(cudaStreamSynchronize(device().stream));
        CHECK(cudaMemsetAsync(&a.outcome->loss, 0, sizeof(double), device().stream));
        return {out.loss, out.norm};
    }

    void extend(const int* x, int B, int t0, int T) {
        upload(activations(0).token, in_table(x, B * T).data(), B * T);
        network_forward(*this, B, t0, T, max_T);
    }
    void logits(int n, int step, int count, float* out) {
        const Activations a = activations(0);
        const int V = c.vocab(), row = padded(V), chunk = this->chunk();
        std::vector<floatX> z;
        for (int i = 0; i < count; i += chunk) {
            const int some = std::min(chunk, count - i);
            logits_forward(a.lnf, n + i * step, step, some);
            z.resize((size_t)some * row);
            download(z.data(), a.logits, z.size() - (row - V));
            CHECK(cudaStreamSynchronize(device().stream));
            for (int r = 0; r < some; r++) std::copy_n(&z[(size_t)r * row], V, out + (size_t)(i + r) * V);
        }
        join_columns(out, count, c.V, group.comm, [&](int rank) { return c.tokens(rank); });
    }

    // The device runs up to DRAWN - 1 tokens ahead of the host; what it draws behind an end of text is discarded.
    void draw(const int* x, int B, int t0, int T, const Sampling& s, const std::vector<int>& hidden, Rng* rng,
              int* token, bool ahead) {
        const Activations a = activations(0);
        const int at = t0 + T;               // where the new tokens will stand
        if (t0 == 0 || T > 1 || made < at) {
            extend(x, B, t0, T);
            logits_forward(a.lnf, T - 1, T, B);
            const std::vector<int> positions(B, at - 1);
            std::vector<int> never = {(int)hidden.size()};
            never.insert(never.end(), hidden.begin(), hidden.end());
            upload(a.position, positions.data(), B);
            upload(a.rng, rng, B);
            upload(a.sampling, &s, 1);
            upload(a.hidden, never.data(), never.size());
            pick(B);
            made = at;
            CHECK(cudaEventRecord(ready[made % DRAWN], device().stream));
        }
        while (ahead && steps_fit(c.C, c.NH) && made < std::min(at + DRAWN - 1, max_T)) {
            play(STEP, B, 1, [&] {           // a token more for each row
                decoding = true;
                logits_forward(network_forward(*this, B, 0, 1, max_T), 0, 1, B);
                decoding = false;
                pick(B);
            });
            CHECK(cudaEventRecord(ready[++made % DRAWN], device().stream));
        }
        CHECK(cudaEventSynchronize(ready[at % DRAWN]));
        for (int b = 0; b < B; b++) {
            token[b] = drawn[at % DRAWN * max_B + b];
            rng[b].next();
            if ((unsigned)token[b] >= (unsigned)c.V)
                die("a logit is %g; are the model's weights finite?", std::bit_cast<float>(token[b]));
        }
    }

    // Of several ranks, each has a part of gradients, moments and unrounded weights; zeros stand for the others'.
    void get(Which which, size_t i, float* out, size_t from = 0, size_t n = SIZE_MAX) const {
        const Tensor& t = layout.tensors[i];
        n = std::min(n, t.count() - from);
        const bool here = arena(which) && t.trained, as_read = which == WEIGHT && t.present && !here;
        std::vector<floatX> values(as_read && t.form == Form::FP32 ? n : 0);
        std::vector<uint8_t> codes(as_read && t.form != Form::FP32 ? packed_bytes(t.form, t.rows, t.cols) : 0);
        if (!as_read) std::fill_n(out, n, 0.0f);
        each_place(which, t, from, n, [&](float* own, size_t at, size_t some) { download(out + at, own, some); });
        if (codes.size()) download(codes.data(), packed + t.packed, codes.size());
        if (values.size()) download(values.data(), rounded + t.offset + from, n);
        CHECK(cudaStreamSynchronize(device().stream));
        if (codes.size()) unpack(t.form, out, codes.data(), t.rows, t.cols);
        convert(out, values.data(), values.size());
    }
    void set(Which which, size_t i, const float* in) {
        const Tensor& t = layout.tensors[i];
        std::vector<floatX> values;
        std::vector<uint8_t> codes;
        each_place(which, t, 0, t.count(), [&](float* own, size_t at, size_t n) { upload(own, in + at, n); });
        if (which == WEIGHT && t.present && t.form != Form::FP32) {
            codes.resize(packed_bytes(t.form, t.rows, t.cols));
            pack(t.form, codes.data(), in, t.rows, t.cols);
            upload(packed + t.packed, codes.data(), codes.size());
        } else if (which == WEIGHT && t.present) {
            values.resize(t.count());
            convert(values.data(), in, t.count());
            upload(rounded + t.offset, values.data(), values.size());
        }
        CHECK(cudaStreamSynchronize(device().stream));
    }
    Activations activations(int l) const {
        size_t k = 0;
        Activations a;
#define X(type, field, ...) a.field = (type*)places[k++ * c.L + l];
        GPU_ACTIVATIONS(X)
#undef X
        return a;
    }

    // The layers, as the network calls them. While decoding, each row has one token, whose position is on the device;
    // with one row, norm_forward() leaves the norm to the product that reads it.
    using Parameters = Weights<floatX, Place<floatX>>;
    Parameters weights_of(int l) const { return layout.at<Parameters>(rounded, l, 0, packed); }
    const floatX* matrix(const Place<floatX>& w, int rows, int cols) {
        if (!w.packed) return w.p;
        unpack(activations(0).unpacked, w, rows, cols);
        return activations(0).unpacked;
    }
    bool fused_step(int N, int C) const { return decoding && N == 1 && !c.rank && few_rows_fit(N, C); }
    Normed embedding_norm_forward(const Activations& a, const Parameters& w, int B, int t0, int T) {
        const int N = B * T, threads = threads_for(c.C, 256);
        if (decoding) {
            launch_early(embedding_step_kernel, B, threads, 0, a.embedded, a.token, a.position, w.wte, w.wpe, c.C);
        } else if (group.several()) {
            launch(embedding_part_kernel, N, threads, 0, a.embedded, a.token, w.wte, w.wpe, t0, T, c.C, c.vocab(),
                   group.first());
            group.sum(a.embedded, (size_t)N * c.C);
        } else {
            layernorm_forward(a.ln1, a.ln1_stats, a.ln1_stats + N, a.embedded, w.ln1.w, w.ln1.b, N, c.C, c.eps,
                              {.embedded = a.embedded, .token = a.token, .wte = w.wte, .wpe = w.wpe, .t0 = t0, .T = T});
            return a.ln1;
        }
        return norm_forward(a.ln1, a.ln1_stats, a.embedded, w.ln1, N);
    }
    Normed norm_forward(floatX* out, float* stats, const floatX* x, const Norm<floatX>& norm, int N) {
        if (fused_step(N, c.C)) return {x, norm.w, norm.b, (float)c.eps};
        layernorm_forward(out, stats, stats + N, x, norm.w, norm.b, N, c.C, c.eps);
        return out;
    }
    void norm_backward(floatX* dresidual, bool add, const Norm<float>& g, float* dbias, const floatX* dout,
                       const floatX* x, const floatX* w, const float* stats, int N) {
        float* const partial = activations(0).partial;
        layernorm_backward(dresidual, add, g.w, g.b, dbias, partial, dout, x, w, stats, stats + N, N, c.C);
    }
    void linear_forward(floatX* out, const Normed& x, const Layer<floatX>& layer, const floatX* plus,
                        floatX* before_gelu, int N, int C, int OC) {
        if (fused_step(N, C)) return few_rows(out, x, layer.w, layer.b, plus, before_gelu, N, C, OC);
        floatX* const to = before_gelu ? before_gelu : out;
        if (decoding && layer.w.packed && few_rows_fit(N, C)) few_rows(to, x, layer.w, layer.b, plus, false, N, C, OC);
        else gpu::linear_forward(to, x.x, matrix(layer.w, C, OC), layer.b, plus, N, C, OC);
        if (layer.A) lora_forward(to, activations(0).lora, x.x, layer, c.lora_scale(), N, C, OC, c.rank);
        if (before_gelu) gelu_forward(out, before_gelu, (size_t)N * OC);
    }
    void linear_backward(floatX* dx, const Linear<float>& g, const floatX* dout, const floatX* x,
                         const Layer<floatX>& layer, int N, int C, int OC) {
        gpu::linear_backward(dx, g.w, dout, x, matrix(layer.w, C, OC), N, C, OC);
        floatX *const u = activations(0).lora, *const du = u + (size_t)N * c.rank;
        if (layer.A) lora_backward(dx, g, u, du, dout, x, layer, c.lora_scale(), N, C, OC, c.rank);
    }
    void gelu_backward(floatX* d, float* db, const floatX* x, int N, int C) {
        gpu::gelu_backward(d, db, activations(0).partial, x, N, C);
    }
    void attention_forward(const Activations& a, const floatX* qkv, int B, int t0, int T, int S) {
        if (decoding) return attention_step(a.att, a.qkv, qkv, a.position, B, S, c.att(), c.heads());
        const size_t row = c.qkv() * sizeof(floatX);
        if (T != S)
            CHECK(cudaMemcpy2DAsync(a.qkv + (size_t)t0 * c.qkv(), S * row, qkv, T * row, T * row, B,
                                    cudaMemcpyDeviceToDevice, device().stream));
        gpu::attention_forward(a.att, a.lse, a.qkv, B, t0, T, S, c.att(), c.heads());
    }
    void attention_backward(const Activations& a, float* db, int B, int T) {
        gpu::attention_backward(a.dwide, db, a.scratch, a.partial, a.dx, a.qkv, a.att, a.lse, B, T, c.att(), c.heads());
    }
    void embedding_backward(const Weights<float>& g, const floatX* dout, int B, int T) {
        const Activations a = activations(0);
        const Occurrences o = {.order = a.order, .start = a.start, .first = a.first, .tokens = a.tokens};
        if (g.wte) gpu::embedding_backward(g.wte, g.wpe, (float*)a.dwide, dout, a.token, o, B, T, c.C);
    }

    int chunk() const { return (int)head_rows((size_t)max_B * max_T, c); }
    // Logits of rows n0, n0 + step, ... of x, which is normalized first if norm_forward() has left that.
    void logits_forward(const Normed& x, int n0, int step, int rows) {
        const Activations a = activations(0);
        const int V = padded(c.vocab());
        if (x.w) layernorm_forward(a.lnf, a.lnf_stats, a.lnf_stats + rows, x.x, x.w, x.b, rows, c.C, x.eps);
        const floatX* some = (x.w ? a.lnf : x.x) + (size_t)n0 * c.C;
        matmul(a.logits, table(), some, {.m = V, .n = rows, .k = c.C, .a_transposed = true, .ldb = (long)step * c.C});
    }
    void cross_entropy(int n0, int rows, bool gradients) {
        const Activations a = activations(0);
        const int V = c.vocab(), stride = padded(V), *const y = a.target + n0;
        int* const best = a.best + n0;
        float* const lp = a.logprob + n0;
        const TokenTerms<float> t = terms.from(n0);
        if (!group.several()) return gpu::cross_entropy(a.logits, lp, best, y, t, rows, V, stride, gradients);
        gpu::cross_entropy(a.logits, lp, best, y, t, a.found, group, rows, c.first_token(), V, stride, gradients);
    }
    void logits_backward(const Normed& x, int n0, int rows) {
        const Activations a = activations(0);
        const int V = padded(c.vocab());
        matmul(a.dx + (size_t)n0 * c.C, table(), a.logits, {.m = c.C, .n = rows, .k = V});
        const Matmul dw = {.m = c.C, .n = V, .k = rows, .b_transposed = true, .plus = true, .fp32 = true};
        if (dtable()) matmul(dtable(), x.x + (size_t)n0 * c.C, a.logits, dw);
    }
    void add_loss(int N) {
        const Activations a = activations(0);
        launch(add_loss_kernel, 1, threads_for(N, 1024), 0, a.outcome, a.logprob, terms, a.target, N);
    }

private:
    float *weights = nullptr, *moment1 = nullptr, *moment2 = nullptr;
    floatX* rounded = nullptr;               // the weights as kernels read them; `weights` are those that are trained
    uint8_t* packed = nullptr;               // frozen matrices in fewer bits
    unsigned char *decays = nullptr, *counts = nullptr;      // whether weights decay; gradients that the norm counts
    std::vector<char*> places;               // of array k of GPU_ACTIVATIONS in layer l: places[k L + l]
    std::vector<void*> owned;                // all that allocate() has returned
    std::vector<float> token_weight;
    TokenTerms<float> terms;
    struct Pass { int B = 0, T = 0, scored = 0, token = 0; } last;       // scored: tokens; token: whose logit is read
    bool decoding = false;
    int turn = 0;                            // which of these two takes the next inputs
    struct Staged { int* memory; cudaEvent_t copied; } staged[2];
    // Inputs of forward() and readout() go through pinned memory, so that the host need not wait; two buffers in turn.
    struct Pinned {
        Staged& s;
        int* place;
        explicit Pinned(Model& m) : s(m.staged[m.turn ^= 1]), place(s.memory) { CHECK(cudaEventSynchronize(s.copied)); }
        ~Pinned() { cudaEventRecord(s.copied, device().stream); }
        void send(auto* to, const auto* from, size_t n) {
            memcpy(place, from, 4 * n);
            CHECK(cudaMemcpyAsync(to, place, 4 * n, cudaMemcpyHostToDevice, device().stream));
            place += n;
        }
    };
    // Where tokens stand in this rank's part of the table; those of others behind its end.
    std::vector<int> in_table(const int* x, int N) const {
        std::vector<int> rows(x, x + N);
        for (int& v : rows) v = std::min<unsigned>(v - c.first_token(), c.vocab());
        return rows;
    }
    void send_sorted(Pinned& pinned, const int* x, int N) {  // while the device is at work
        const Activations a = activations(0);
        const SortedTokens sorted = sort_tokens(x, N, c.vocab() + 1);
        const int tokens = (int)sorted.first.size() - 1 - (std::find(x, x + N, c.vocab()) < x + N);
        pinned.send(a.order, sorted.order.data(), N);
        pinned.send(a.start, sorted.start.data(), sorted.start.size());
        pinned.send(a.first, sorted.first.data(), tokens + 1);
        pinned.send(a.tokens, &tokens, 1);
    }
    int *drawn = nullptr, made = 0;          // tokens, in pinned memory; the position of the last that was asked for
    cudaEvent_t ready[DRAWN];                // when they are there

    const floatX* table() const { return c.tied ? weights_of(0).wte : weights_of(0).head_w; }
    float* arena(Which which) const { return std::array{weights, shares.sums, moment1, moment2}[which]; }
    template <typename F> void each_place(Which which, const Tensor& t, size_t from, size_t n, F f) const {
        const bool of_parts = which == GRADIENT ? shares.several() : shares.comm.zero && (which != WEIGHT || BF16);
        if (!arena(which) || !t.present || !t.trained) return;
        shares.places(arena(which), of_parts, t.offset - layout.frozen + from, n, f);
    }
    // One piece of memory for all; under emulation one for each, where an array's end is watched.
    void place_activations() {
        const auto arrays = activation_arrays(c, max_B, max_T, training);
        const Slots slots(arrays, c.L);
#ifndef CUDA_EMU
        char* const all = allocate<char>(slots.size * 16);
        auto place = [&](size_t k, int l) { return all + 16 * (slots.first[k] + l * slots.stride[k]); };
#else
        auto place = [&](size_t k, int l) {
            return l == 0 || slots.stride[k] ? allocate<char>(arrays[k].second * 16) : places.back();
        };
#endif
        for (size_t k = 0; k < arrays.size(); k++) for (int l = 0; l < c.L; l++) places.push_back(place(k, l));
    }
    template <typename T> T* allocate(size_t n) {
        CHECK(cudaMalloc(&owned.emplace_back(), std::max<size_t>(n, 1) * sizeof(T)));
        CHECK(cudaMemsetAsync(owned.back(), 0, n * sizeof(T), device().stream));
        return (T*)owned.back();
    }

    // CUDA graphs, one for each sequence of kernels and shape, captured at the second call: the first loads kernels and
    // queries cuBLASLt for algorithms, which no capture may do. Validation has none: its rows may have any length.
    enum Sequence { FORWARD, FORWARD_FIRST, FORWARD_LATER, BACKWARD, STEP };   // PPO's first pass, and those later
    std::map<std::tuple<Sequence, int, int>, cudaGraphExec_t> graphs;
    template <typename F> void play(Sequence sequence, int B, int T, F enqueue) {
        auto [it, first] = graphs.try_emplace({sequence, B, T}, nullptr);
        const bool of_ranks = shares.several() || group.several();       // others take part in it
        if (first || SYNCHRONOUS || (of_ranks && sequence != STEP)) return enqueue();
        if (!it->second) {
            cudaGraph_t graph;
            CHECK(cudaStreamBeginCapture(device().stream, cudaStreamCaptureModeThreadLocal));
            enqueue();
            CHECK(cudaStreamEndCapture(device().stream, &graph));
            CHECK(cudaGraphInstantiate(&it->second, graph, 0));
            CHECK(cudaGraphDestroy(graph));
        }
        CHECK(cudaGraphLaunch(it->second, device().stream));
    }

    template <typename T> static void upload(T* to, const T* from, size_t n) {
        CHECK(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyHostToDevice, device().stream));
    }
    template <typename T> static void download(T* to, const T* from, size_t n) {
        CHECK(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDeviceToHost, device().stream));
    }

    void pick(int B) {
        const Activations a = activations(0);
        const Pickers p = {.token = a.token, .position = a.position, .rng = a.rng, .drawn = drawn};
        gpu::pick(p, a.logits, a.sampling, a.hidden, B, c.V, max_B);
    }
};

}  // namespace gpu
#include "dev/check.cuh"

// ---- 7. main --------------------------------------------------------------------------------------------------------
#ifndef NO_GPU_MAIN
int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "--check")) return gpu::check_program();
    return run_program<gpu::Model>(argc, argv);
}
#endif
