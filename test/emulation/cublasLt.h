// cublasLt.h - emulator's stand-in: column-major matmul with the epilogues a GPT needs, executed by OpenMP loops.
#pragma once
#include "cuda_runtime.h"
#include "library_types.h"
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_RELU = 2, CUBLASLT_EPILOGUE_BIAS = 4, CUBLASLT_EPILOGUE_GELU = 32, CUBLASLT_EPILOGUE_GELU_AUX = 160,
    CUBLASLT_EPILOGUE_GELU_BIAS = 36, CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164, CUBLASLT_EPILOGUE_DGELU = 192, CUBLASLT_EPILOGUE_DGELU_BGRAD = 208, CUBLASLT_EPILOGUE_BGRADA = 256, CUBLASLT_EPILOGUE_BGRADB = 512 };
enum cublasLtMatmulDescAttributes_t { CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4, CUBLASLT_MATMUL_DESC_EPILOGUE = 7, CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE = 22, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26 };
enum cublasLtMatrixLayoutAttribute_t { CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6 };
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8 };
enum cublasLtReductionScheme_t { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_INPLACE = 1, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4 };
struct cublasLtContext {}; using cublasLtHandle_t = cublasLtContext*;
struct EmuMatmulDesc { int ta = 0, tb = 0; int epi = 1; const void* bias = nullptr; void* aux = nullptr; int64_t auxld = 0; int biast = -1, auxt = -1; }; using cublasLtMatmulDesc_t = EmuMatmulDesc*;
struct EmuLayout { cudaDataType t; uint64_t r, c; int64_t ld; int batch = 1; int64_t stride = 0; }; using cublasLtMatrixLayout_t = EmuLayout*;
struct EmuPref { size_t ws = 0; uint32_t align[4] = {256, 256, 256, 256}; /* of A, B, C, D */ }; using cublasLtMatmulPreference_t = EmuPref*;
struct cublasLtMatmulAlgo_t { uint64_t data[8]; };
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; size_t workspaceSize; cublasStatus_t state; float wavesCount; int reserved[4]; };
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) { *h = new cublasLtContext; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { delete h; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t, cudaDataType) { *d = new EmuMatmulDesc; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { delete d; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void* v, size_t n) {
    auto g = [&](auto& x) { if (n > sizeof x) return CUBLAS_STATUS_INVALID_VALUE; memcpy(&x, v, n); return CUBLAS_STATUS_SUCCESS; };
    switch (a) {
        case CUBLASLT_MATMUL_DESC_TRANSA: return g(d->ta);
        case CUBLASLT_MATMUL_DESC_TRANSB: return g(d->tb);
        case CUBLASLT_MATMUL_DESC_EPILOGUE: return g(d->epi);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return g(d->bias);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return g(d->aux);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return g(d->auxld);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE: return g(d->auxt);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return g(d->biast);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType t, uint64_t r, uint64_t c, int64_t ld) { *l = new EmuLayout{t, r, c, ld}; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, const void* v, size_t) { if (a == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) memcpy(&l->batch, v, 4); else memcpy(&l->stride, v, 8); return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { delete l; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) { *p = new EmuPref; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { delete p; return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, const void* v, size_t n) {
    if (n != (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4)) return CUBLAS_STATUS_INVALID_VALUE;
    if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) memcpy(&p->ws, v, 8); else if (a != CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) memcpy(&p->align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], v, 4);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t p, int n, cublasLtMatmulHeuristicResult_t* r, int* got) { *got = n ? 1 : 0; if (n) { *r = {}; for (int i = 0; i < 4; i++) r->algo.data[i] = p->align[i]; } return CUBLAS_STATUS_SUCCESS; }

namespace emu {
inline float ld_t(const void* p, cudaDataType t, size_t i) { return t == CUDA_R_32F ? ((const float*)p)[i] : bf2f(((const uint16_t*)p)[i]); }
inline void st_t(void* p, cudaDataType t, size_t i, float v) { if (t == CUDA_R_32F) ((float*)p)[i] = v; else ((uint16_t*)p)[i] = f2bf(v); }
inline size_t esize(cudaDataType t) { return t == CUDA_R_32F ? 4 : 2; }
inline float gelu(float x) { const float s = 0.7978845608f; return 0.5f * x * (1 + std::tanh(s * (x + 0.044715f * x * x * x))); }
inline float dgelu(float x) { const float s = 0.7978845608f; float t = std::tanh(s * (x + 0.044715f * x * x * x)); return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * s * (1 + 3 * 0.044715f * x * x); }
inline void gemm(EmuMatmulDesc d, float alpha, const char* A, EmuLayout la, const char* B, EmuLayout lb, float beta, const char* C, EmuLayout lc, char* D, EmuLayout ld) {
    const size_t m = ld.r, n = ld.c, k = d.ta ? la.r : la.c;
    const cudaDataType bt = d.biast >= 0 ? (cudaDataType)d.biast : ld.t, at = d.auxt >= 0 ? (cudaDataType)d.auxt : ld.t;
    std::vector<float> a(k * m), b(n * k), out(n * m);
    for (size_t i = 0; i < m; i++) for (size_t p = 0; p < k; p++) a[p * m + i] = ld_t(A, la.t, d.ta ? i * la.ld + p : p * la.ld + i);
    for (size_t j = 0; j < n; j++) for (size_t p = 0; p < k; p++) b[j * k + p] = ld_t(B, lb.t, d.tb ? p * lb.ld + j : j * lb.ld + p);
    const bool has_bias = d.epi & 4, act = (d.epi & 32) && !(d.epi & 64), dact = (d.epi & 192) == 192, aux = d.epi & 128;
#if defined(_OPENMP) && !defined(EMU_TSAN)
#pragma omp parallel for schedule(static) if (m * n * k > 200000)
#endif
    for (size_t j = 0; j < n; j++) {
        float* o = &out[j * m];
        for (size_t p = 0; p < k; p++) { const float x = b[j * k + p]; const float* ar = &a[p * m]; for (size_t i = 0; i < m; i++) o[i] += x * ar[i]; }
        for (size_t i = 0; i < m; i++) {
            float v = alpha * o[i];
            if (beta != 0) v += beta * ld_t(C, lc.t, j * lc.ld + i);
            if (has_bias) v += ld_t(d.bias, bt, i);
            if (act) { if (aux) st_t(d.aux, at, j * d.auxld + i, v); v = gelu(v); }
            if (dact) v *= dgelu(ld_t(d.aux, at, j * d.auxld + i));
            o[i] = v; st_t(D, ld.t, j * ld.ld + i, v);
        }
    }
    if (d.epi == CUBLASLT_EPILOGUE_DGELU_BGRAD) for (size_t i = 0; i < m; i++) { float s = 0; for (size_t j = 0; j < n; j++) s += out[j * m + i]; st_t((void*)d.bias, bt, i, s); }
    if (d.epi == CUBLASLT_EPILOGUE_BGRADB) for (size_t j = 0; j < n; j++) { float s = 0; for (size_t p = 0; p < k; p++) s += b[j * k + p]; st_t((void*)d.bias, bt, j, s); }
    if (d.epi == CUBLASLT_EPILOGUE_BGRADA) for (size_t i = 0; i < m; i++) { float s = 0; for (size_t p = 0; p < k; p++) s += a[p * m + i]; st_t((void*)d.bias, bt, i, s); }
}
}  // namespace emu
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void* alpha, const void* A, cublasLtMatrixLayout_t la, const void* B, cublasLtMatrixLayout_t lb,
                                     const void* beta, const void* C, cublasLtMatrixLayout_t lc, void* D, cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* algo, void*, size_t, cudaStream_t s) {
    const uint64_t m = ld->r, n = ld->c, k = d->ta ? la->r : la->c;
    if ((d->ta ? la->c : la->r) != m || (d->tb ? lb->c : lb->r) != k || (d->tb ? lb->r : lb->c) != n || lc->r != m || lc->c != n) return CUBLAS_STATUS_INVALID_VALUE;
    if (la->ld < (int64_t)la->r || lb->ld < (int64_t)lb->r || ld->ld < (int64_t)m || lc->ld < (int64_t)m) return CUBLAS_STATUS_INVALID_VALUE;
    if ((d->epi & 128) && (!d->aux || d->auxld < (int64_t)m || d->auxld % 8)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((d->epi & (4 | 16 | 256 | 512)) && !d->bias) return CUBLAS_STATUS_INVALID_VALUE;
    auto chk = [](const void* p, EmuLayout* l, const char* w) { emu::heap().range(p, ((l->batch - 1) * (l->batch > 1 ? l->stride : 0) + (l->c - 1) * l->ld + l->r) * emu::esize(l->t), w); };
    chk(A, la, "cublasLtMatmul A"); chk(B, lb, "cublasLtMatmul B"); chk(D, ld, "cublasLtMatmul D");
    const void* at[4] = {A, B, C, D};
    for (int i = 0; i < 4; i++) if (algo && (uintptr_t)at[i] % algo->data[i]) emu::fail("cublasLtMatmul: %c at %p, but the algorithm was asked for with an alignment of %d bytes", "ABCD"[i], at[i], (int)algo->data[i]);
    if ((d->epi & (4 | 16 | 256 | 512)) && (uintptr_t)d->bias % 16) emu::fail("cublasLtMatmul: the bias at %p is not 16-byte aligned", d->bias);
    const float al = *(const float*)alpha, be = *(const float*)beta;
    emu::Op op = emu::op_run([=, d = *d, la = *la, lb = *lb, lc = *lc, ld = *ld] {
        for (int i = 0; i < ld.batch; i++)
            emu::gemm(d, al, (const char*)A + i * la.stride * emu::esize(la.t), la, (const char*)B + i * lb.stride * emu::esize(lb.t), lb, be,
                      (const char*)C + i * lc.stride * emu::esize(lc.t), lc, (char*)D + i * ld.stride * emu::esize(ld.t), ld);
    });
    op.kernel = true; emu::engine().push(emu::engine().get(s), std::move(op));
    return CUBLAS_STATUS_SUCCESS;
}
