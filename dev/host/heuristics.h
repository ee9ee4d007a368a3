/* dev/host/heuristics.h -- what cuBLASLt proposes for a product, and which of it is taken: test/heuristics.cpp. */
#pragma once
#include <optional>
#include <utility>
#include <vector>
#ifdef CUDART_VERSION                        // a part of train_gpt.cu, from which it takes Matmul, launch() and CHECK()
namespace gpu {

struct Plan {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool splits;                             // the sum over k into parts
};

// What cuBLASLt proposes for p, the fastest by its own reckoning first: up to `most`, or none if it cannot do it.
constexpr int MOST_HEURISTICS = 16;
inline std::vector<Plan> heuristics(const Matmul& p, const floatX* bias, int most) {
    const cudaDataType_t type = BF16 ? CUDA_R_16BF : CUDA_R_32F, out = p.fp32 ? CUDA_R_32F : type;
    Plan q;
    CHECK(cublasLtMatmulDescCreate(&q.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
        CHECK(cublasLtMatmulDescSetAttribute(q.operation, attribute, &value, sizeof value));
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT);
    if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
    if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    CHECK(cublasLtMatrixLayoutCreate(&q.a, type, p.a_transposed ? p.k : p.m, p.a_transposed ? p.m : p.k, p.lda));
    CHECK(cublasLtMatrixLayoutCreate(&q.b, type, p.b_transposed ? p.n : p.k, p.b_transposed ? p.k : p.n, p.ldb));
    CHECK(cublasLtMatrixLayoutCreate(&q.d, out, p.m, p.n, p.ldd));
    cublasLtMatmulPreference_t preference;
    CHECK(cublasLtMatmulPreferenceCreate(&preference));
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
        CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, device().workspace_size);
    for (auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                           CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        prefer(attribute, uint32_t(p.alignment));
    // where a sum over k is cut into parts, these are added up in fp32
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t found[MOST_HEURISTICS];
    int n = 0;
    const auto status = cublasLtMatmulAlgoGetHeuristic(device().cublas, q.operation, q.a, q.b, q.d, q.d, preference,
                                                       min(most, MOST_HEURISTICS), found, &n);
    cublasLtMatmulPreferenceDestroy(preference);
    std::vector<Plan> plans;
    if (status != CUBLAS_STATUS_SUCCESS) return plans;
    for (int i = 0; i < n; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        auto ask = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto value) {
            size_t written;
            CHECK(cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, attribute, &value, sizeof value, &written));
            return value;
        };
        q.algorithm = found[i].algo;
        q.splits = ask(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32_t()) > 1 ||
                   ask(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32_t()) != CUBLASLT_REDUCTION_SCHEME_NONE;
        plans.push_back(q);
    }
    return plans;
}
inline cublasStatus_t matmul_with(const Plan& q, void* d, const floatX* a, const floatX* b, const Matmul& p,
                                  const floatX* bias, const void* c) {
    if (p.bias)
        CHECK(cublasLtMatmulDescSetAttribute(q.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    const float beta = p.plus ? 1 : 0;
    return cublasLtMatmul(device().cublas, q.operation, &p.scale, a, q.a, b, q.b, &beta, c, q.d, d, q.d, &q.algorithm,
                          device().workspace, device().workspace_size, device().stream);
}

/* Which heuristic is taken: the first, if it splits its sum (few tiles with a long sum need it), if the product has
   under `least` FLOPs, or if memory is too short to try others. Else the fastest, as timed on random numbers, of those
   that do not split it and whose result has the bits of the first's: they sum in the same order, so that timings, which
   differ from run to run, never decide about bits.
   cost     at a product's first use, up to 4 products for each heuristic, and memory for operands and two results */
__global__ void random_kernel(floatX* p, size_t n) {         // u^3, u in [-1,1): of many sizes, so that sums must round
    for (size_t i = thread_index(); i < n; i += all_threads()) {
        uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;
        x = (x ^ x >> 32) * 0xD6E8FEB86659FD93ull;
        const float u = int32_t(x >> 32) * 0x1p-31f;
        p[i] = floatX(u * u * u);
    }
}
__global__ void differ_kernel(const uint16_t* a, const uint16_t* b, size_t n, int* found) {
    for (size_t i = thread_index(); i < n; i += all_threads()) if (a[i] != b[i]) *found = 1;
}
inline std::optional<Plan> fastest(const Matmul& p, const floatX* bias, double least = 1e10) {
    const std::vector<Plan> plans = heuristics(p, bias, 2.0 * p.m * p.n * p.k < least ? 1 : MOST_HEURISTICS);
    if (plans.empty()) return {};
    if (plans.size() == 1 || plans[0].splits) return plans[0];
    size_t bytes = 0;
    auto room = [&](size_t n) { return std::exchange(bytes, bytes + (n + 255) / 256 * 256); };
    const size_t size = sizeof(floatX), d_size = (size_t)p.n * p.ldd * (p.fp32 ? sizeof(float) : size);
    const size_t a = room((p.a_transposed ? p.m : p.k) * p.lda * size);
    const size_t b = room((p.b_transposed ? p.k : p.n) * p.ldb * size);
    const size_t with = room(p.bias ? p.m * size : 0), c = room(p.plus ? d_size : 0), given = bytes;
    const size_t d = room(d_size), result = bytes - given, other = room(result);         // the first result, later ones
    const size_t found = room(sizeof(int));
    char* all;
    if (cudaMalloc(&all, bytes) != cudaSuccess) {
        cudaGetLastError();                  // clears the error
        return plans[0];
    }
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    const cudaStream_t s = device().stream;
    const int blocks = 8 * device().sms();
    launch(random_kernel, blocks, 256, 0, (floatX*)all, given / size);
    const Plan* best = nullptr;
    float least_time = INFINITY;
    for (const Plan& q : plans) {
        if (q.splits) continue;
        char* const to = all + (best ? other : d);
        auto run = [&] {
            return matmul_with(q, to, (floatX*)(all + a), (floatX*)(all + b), p, (floatX*)(all + with),
                               p.plus ? all + c : to);
        };
        int differs = 0;
        float time = INFINITY;
        CHECK(cudaMemsetAsync(all + found, 0, sizeof differs, s));
        CHECK(cudaMemsetAsync(to, 0xff, result, s));
        if (run() != CUBLAS_STATUS_SUCCESS) continue;
        launch(differ_kernel, blocks, 256, 0, (uint16_t*)(all + d), (uint16_t*)to, result / 2, (int*)(all + found));
        CHECK(cudaMemcpyAsync(&differs, all + found, sizeof differs, cudaMemcpyDeviceToHost, s));
        CHECK(cudaEventRecord(begin, s));
        for (int r = 0; r < 3; r++) CHECK(run());
        CHECK(cudaEventRecord(end, s));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&time, begin, end));
        if (differs || time >= least_time) continue;
        best = &q;
        least_time = time;
    }
    CHECK(cudaFree(all));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    return best ? *best : plans[0];
}

}  // namespace gpu
#endif
