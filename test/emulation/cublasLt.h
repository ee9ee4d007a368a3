/* cublasLt.h -- cuBLASLt's matrix product with a bias, on matrices that lie column by column:
     D = epilogue(alpha op(A) op(B) + beta C)
   It refuses what cuBLASLt refuses, and ends the program where operands are less aligned than the algorithm was asked
   for, which cuBLASLt would not tell. It proposes emu::heuristics: one way, unless a test wants more. */
#pragma once
#include "cuda_runtime.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4, CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};
enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM = 2, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3
};
enum cublasLtReductionScheme_t { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };

namespace emu {
struct Product {
    int a_transposed = 0, b_transposed = 0, epilogue = CUBLASLT_EPILOGUE_DEFAULT, bias_type = -1;
    const void* bias = nullptr;
};
struct Layout {                              // of a matrix: columns are `leading` numbers apart
    cudaDataType type;
    uint64_t rows, columns;
    int64_t leading;
    size_t bytes() const { return ((columns - 1) * leading + rows) * (type == CUDA_R_32F ? 4 : 2); }
};
// A way to compute a product: the sum over k in `parts`, or from its end; not at all; refused when it is to run; and
// the time it takes by the device's clock, whatever it really took.
struct Heuristic {
    int parts = 1;
    bool backwards = false, idle = false, refused = false;
    double seconds = 0;
    bool operator==(const Heuristic&) const = default;
};
inline std::vector<Heuristic> heuristics{{}};
struct Preference { uint64_t workspace = 0; uint32_t alignment[4] = {256, 256, 256, 256}; };     // of A, B, C, D
}  // namespace emu
using cublasLtHandle_t = void*;
using cublasLtMatmulDesc_t = emu::Product*;
using cublasLtMatrixLayout_t = emu::Layout*;
using cublasLtMatmulPreference_t = emu::Preference*;
struct cublasLtMatmulAlgo_t { uint32_t alignment[4]; emu::Heuristic way; };
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; size_t workspaceSize; cublasStatus_t state; };

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return *handle = nullptr, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t, cudaDataType) {
    return *d = new emu::Product, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return delete d, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                                     const void* value, size_t size) {
    const auto set = [&](auto& member) {
        if (size != sizeof member) return CUBLAS_STATUS_INVALID_VALUE;
        return memcpy(&member, value, size), CUBLAS_STATUS_SUCCESS;
    };
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(d->a_transposed);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(d->b_transposed);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(d->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(d->bias_type);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType type, uint64_t rows,
                                                 uint64_t columns, int64_t leading) {
    return *l = new emu::Layout{type, rows, columns, leading}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return delete l, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
    return *p = new emu::Preference, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                           cublasLtMatmulPreferenceAttributes_t attribute,
                                                           const void* value, size_t size) {
    const bool workspace = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    const int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (size != (workspace ? sizeof p->workspace : sizeof *p->alignment)) return CUBLAS_STATUS_INVALID_VALUE;
    if (workspace) memcpy(&p->workspace, value, size);
    else if (operand >= 0) memcpy(&p->alignment[operand], value, size);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t p, int most, cublasLtMatmulHeuristicResult_t* results,
    int* found) {
    *found = std::min(most, (int)emu::heuristics.size());
    for (int i = 0; i < *found; i++) {
        results[i] = {};
        memcpy(results[i].algo.alignment, p->alignment, sizeof p->alignment);
        results[i].algo.way = emu::heuristics[i];
    }
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                           cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                           size_t size, size_t* written) {
    const int parts = algorithm->way.parts;
    const int is = attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? parts
                 : parts > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    if (size != sizeof is) return CUBLAS_STATUS_INVALID_VALUE;
    return memcpy(value, &is, size), *written = size, CUBLAS_STATUS_SUCCESS;
}

namespace emu {
inline float get(const void* p, int type, size_t i) {
    return type == CUDA_R_32F ? ((const float*)p)[i] : from_bf16(((const uint16_t*)p)[i]);
}
inline void set(const void* p, int type, size_t i, float x) {
    if (type == CUDA_R_32F) ((float*)p)[i] = x;
    else ((uint16_t*)p)[i] = to_bf16(x);
}
inline void multiply(const Heuristic& way, const Product& p, float alpha, const void* A, const Layout& la,
                     const void* B, const Layout& lb, float beta, const void* C, const Layout& lc, void* D,
                     const Layout& ld) {
    const size_t m = ld.rows, n = ld.columns, k = p.a_transposed ? la.rows : la.columns;
    const int bias_type = p.bias_type < 0 ? ld.type : p.bias_type;
    std::vector<float> a(k * m), b(n * k), d(n * m);         // op(A), op(B) and D, column by column
    const auto at = [](const Layout& l, bool transposed, size_t row, size_t column) {
        return transposed ? row * l.leading + column : column * l.leading + row;
    };
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < k; l++) a[l * m + i] = get(A, la.type, at(la, p.a_transposed, i, l));
    for (size_t j = 0; j < n; j++)
        for (size_t l = 0; l < k; l++) b[j * k + l] = get(B, lb.type, at(lb, p.b_transposed, l, j));
#pragma omp parallel for if (!TSAN && m * n * k > 200000)
    for (size_t j = 0; j < n; j++) {
        float* column = &d[j * m];
        std::vector<float> part(way.parts > 1 ? m : 0);
        const size_t each = (k + way.parts - 1) / way.parts;
        for (size_t turn = 0; turn < k; turn++) {
            const size_t l = way.backwards ? k - 1 - turn : turn;
            float* const sum = way.parts > 1 ? part.data() : column;
            const float x = b[j * k + l];
#pragma omp simd
            for (size_t i = 0; i < m; i++) sum[i] += x * a[l * m + i];
            if (way.parts == 1 || ((n + 1) % each && n + 1 < k)) continue;
            for (size_t i = 0; i < m; i++) column[i] += std::exchange(part[i], 0.0f);
        }
        for (size_t i = 0; i < m; i++) {
            float x = alpha * column[i];
            if (beta != 0) x += beta * get(C, lc.type, j * lc.leading + i);
            if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) x += get(p.bias, bias_type, i);
            set(D, ld.type, j * ld.leading + i, x);
        }
    }
}
}  // namespace emu
inline cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t p, const void* alpha, const void* A, cublasLtMatrixLayout_t la,
    const void* B, cublasLtMatrixLayout_t lb, const void* beta, const void* C, cublasLtMatrixLayout_t lc, void* D,
    cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* algorithm, void*, size_t, cudaStream_t s) {
    const auto [m, k] = p->a_transposed ? std::pair(la->columns, la->rows) : std::pair(la->rows, la->columns);
    const auto [kb, n] = p->b_transposed ? std::pair(lb->columns, lb->rows) : std::pair(lb->rows, lb->columns);
    const bool bias = p->epilogue & CUBLASLT_EPILOGUE_BIAS;
    if (kb != k || ld->rows != m || ld->columns != n || lc->rows != m || lc->columns != n || (bias && !p->bias))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (algorithm->way.refused) return CUBLAS_STATUS_NOT_SUPPORTED;
    const struct { const char* name; const void* p; const emu::Layout* layout; uint32_t alignment; } operands[] = {
        {"A", A, la, algorithm->alignment[0]}, {"B", B, lb, algorithm->alignment[1]},
        {"C", C, lc, algorithm->alignment[2]}, {"D", D, ld, algorithm->alignment[3]}};
    for (const auto& o : operands) {
        if (o.layout->leading < (int64_t)o.layout->rows) return CUBLAS_STATUS_INVALID_VALUE;
        emu::memory().check_range(o.p, o.layout->bytes(), "cublasLtMatmul");
        if ((uintptr_t)o.p % o.alignment)
            emu::fail("cublasLtMatmul: %s at %p, but the algorithm was asked for with an alignment of %u bytes", o.name,
                      o.p, o.alignment);
    }
    if (bias && (uintptr_t)p->bias % 16) emu::fail("cublasLtMatmul: the bias at %p is not a multiple of 16", p->bias);
    emu::Operation o;
    o.library = true;
    const float by = *(const float*)alpha, and_by = *(const float*)beta;
    o.run = [=, way = algorithm->way, p = *p, la = *la, lb = *lb, lc = *lc, ld = *ld] {
        emu::clock_ahead += way.seconds;
        if (!way.idle) emu::multiply(way, p, by, A, la, B, lb, and_by, C, lc, D, ld);
    };
    return emu::streams().push(s, std::move(o)), CUBLAS_STATUS_SUCCESS;
}
