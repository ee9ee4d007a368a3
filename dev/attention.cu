/* dev/attention.cu -- causal self-attention, forward and backward, in steps.
                                                                     make build/bench_attention && build/bench_attention

   forward   2 B T^2 C FLOPs, half of what full attention takes; qkv is read, out is written, 4X bytes
     matrix          as the formulas stand: scores to a matrix (T,T) of each head, its softmax, times v. It is written
                     three times and read four, and takes 10 times the bytes of q, k and v together at T = 1024
     plain           no matrix: a block takes a query and holds its row of scores; but every query reads all keys and
                     values
     keys_shared     a thread takes a query, 64 of them share each key and value through shared memory, with a running
                     maximum and sum (Milakov, Gimelshein 2018, arXiv:1805.02867): 1 / 64 of the reads, but
                     multiply-adds of single numbers
     tensor_cores    both products on them, 64 queries by 64 keys, scores in registers (Dao 2023, arXiv:2307.08691); but
                     rows of 128 bytes all begin in the same bank, and everybody waits for each copy
     tiles           the pieces of a row are permuted by its number, so that eight rows meet all banks; the next keys
                     are on their way meanwhile. Ships where there is no wgmma
     shipped         gpu::attention_forward: wgmma reads its operands from shared memory itself, 4 warps at once, and
                     TMA brings them there: no instruction of a warp fetches, and one warpgroup's exponentials hide
                     another's products

   backward  5 B T^2 C FLOPs; qkv, out and dout are read, dqkv is written, 8X bytes; dqkv_b, its column sums, besides
     atomics         a block takes a key and all queries after it, once: dk and dv are its own, dq is added to by every
                     key with atomics, in any order, and to a copy in fp32
     plain           twice: a block for each key, then one for each query, so that each result has one writer
     tiles           the same two passes on tensor cores: 7 B T^2 C FLOPs instead of 5, in order. Ships where there is
                     no wgmma
     unpipelined     once, with wgmma and TMA: a block walks over all keys of a head, so that dq can sum up in memory,
                     in order; but copies, products and exponentials wait for each other
     shipped         gpu::attention_backward: the next tile's copies and products are under way while this one's
                     exponentials are taken and its dq leaves, by bulk additions that no thread waits for; the column
                     sums are taken from what leaves, instead of reading dqkv again */
#include "bench.cuh"
namespace attention_study {

__global__ void scores(float* s, const floatX* qkv, int T, int C, int HS, float scale) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    const int b = blockIdx.z * HS / C, h = blockIdx.z % (C / HS);
    if (j >= T) return;
    const floatX *q = qkv + ((size_t)b * T + i) * 3 * C + h * HS, *k = qkv + ((size_t)b * T + j) * 3 * C + C + h * HS;
    float dot = 0;
    for (int c = 0; c < HS && j <= i; c++) dot += float(q[c]) * float(k[c]);
    s[((size_t)blockIdx.z * T + i) * T + j] = j <= i ? dot * scale : -INFINITY;
}
__global__ void softmax(float* s, float* lse, int T) {
    s += (size_t)blockIdx.x * T;
    float maximum = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < T; j += blockDim.x) maximum = fmaxf(maximum, s[j]);
    maximum = gpu::block_max(maximum);
    for (int j = threadIdx.x; j < T; j += blockDim.x) sum += s[j] = expf(s[j] - maximum);
    sum = gpu::block_sum(sum);
    for (int j = threadIdx.x; j < T; j += blockDim.x) s[j] /= sum;
    if (threadIdx.x == 0) lse[blockIdx.x] = maximum + logf(sum);
}
__global__ void times_v(floatX* out, const float* p, const floatX* qkv, int T, int C, int HS) {
    const int c = threadIdx.x, i = blockIdx.x, b = blockIdx.y * HS / C, h = blockIdx.y % (C / HS);
    float sum = 0;
    const floatX* v = qkv + (size_t)b * T * 3 * C + 2 * C + h * HS + c;
    p += ((size_t)blockIdx.y * T + i) * T;
    for (int j = 0; j < T; j++) sum += p[j] * float(v[(size_t)j * 3 * C]);
    out[((size_t)b * T + i) * C + h * HS + c] = floatX(sum);
}

template <int HS>
__global__ void __launch_bounds__(64)
keys_shared(floatX* out, float* lse, const floatX* qkv, int T, int C, float scale) {
    SHARED(k, float[32][HS]);
    SHARED(v, float[32][HS]);
    const int i = blockIdx.x * 64 + threadIdx.x, h = blockIdx.y, b = blockIdx.z;
    const floatX* row = qkv + (size_t)b * T * 3 * C + h * HS;
    float q[HS], o[HS], maximum = -INFINITY, sum = 0;
    UNROLL for (int c = 0; c < HS; c++) q[c] = i < T ? float(row[(size_t)i * 3 * C + c]) : 0, o[c] = 0;
    for (int j0 = 0; j0 < T && j0 < int(blockIdx.x + 1) * 64; j0 += 32) {
        __syncthreads();
        for (int n = threadIdx.x; n < 32 * HS; n += 64) {
            const int j = j0 + n / HS;
            const floatX* at = row + (size_t)::min(j, T - 1) * 3 * C + C + n % HS;
            k[n / HS][n % HS] = float(at[0]);
            v[n / HS][n % HS] = float(at[C]);
        }
        __syncthreads();
        for (int j = 0; j < 32 && j0 + j <= i && i < T; j++) {
            float s = 0;
            UNROLL for (int c = 0; c < HS; c++) s += q[c] * k[j][c];
            s *= scale;
            const float high = fmaxf(maximum, s), shrink = expf(maximum - high), p = expf(s - high);
            maximum = high;
            sum = sum * shrink + p;
            UNROLL for (int c = 0; c < HS; c++) o[c] = o[c] * shrink + p * v[j][c];
        }
    }
    if (i >= T) return;
    UNROLL for (int c = 0; c < HS; c++) out[((size_t)b * T + i) * C + h * HS + c] = floatX(o[c] / sum);
    lse[((size_t)b * gridDim.y + h) * T + i] = maximum + logf(sum);
}

#ifndef TRAIN_FP32
// A warp takes 16 of the 64 queries; heads of 64.
constexpr int SIDE = 64;
__global__ void __launch_bounds__(128)
tensor_cores(floatX* out, float* lse, const floatX* qkv, int T, int C, float scale) {
    SHARED(q, floatX[SIDE][SIDE]);
    SHARED(k, floatX[SIDE][SIDE]);
    SHARED(v, floatX[SIDE][SIDE]);
    const int i0 = blockIdx.x * SIDE, h = blockIdx.y, b = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const floatX* row = qkv + (size_t)b * T * 3 * C + h * SIDE;
    auto fill = [&](floatX (&to)[SIDE][SIDE], const floatX* from, int first) {
        for (int n = threadIdx.x * WIDE; n < SIDE * SIDE; n += blockDim.x * WIDE) {
            float x[WIDE] = {};
            if (first + n / SIDE < T) load(x, from + (size_t)(first + n / SIDE) * 3 * C + n % SIDE);
            store(&to[n / SIDE][n % SIDE], x);
        }
    };
    auto at = [&](floatX (&x)[SIDE][SIDE], int row, int column) { return gpu::shared_address(&x[row][column]); };
    fill(q, row, i0);
    float o[SIDE / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int j0 = 0; j0 <= i0; j0 += SIDE) {
        __syncthreads();
        fill(k, row + C, j0);
        fill(v, row + 2 * C, j0);
        __syncthreads();
        float s[SIDE / 8][4] = {};
        for (int c = 0; c < SIDE; c += 16) {                 // s = q k^T
            unsigned f[4], g[4];
            gpu::load_fragments(f, at(q, warp * 16 + lane % 16, c + lane / 16 * 8));
            for (int n = 0; n < SIDE / 8; n += 2) {
                gpu::load_fragments(g, at(k, n * 8 + lane % 8 + lane / 16 * 8, c + lane / 8 % 2 * 8));
                gpu::mma(s[n], f, g[0], g[1]);
                gpu::mma(s[n + 1], f, g[2], g[3]);
            }
        }
        for (int r = 0; r < 2; r++) {                        // the two rows this lane has a part of, with three others
            float high = maximum[r];
            for (int n = 0; n < SIDE / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) {
                const bool seen = j0 + n * 8 + lane % 4 * 2 + e % 2 <= i0 + warp * 16 + lane / 4 + 8 * r;
                high = fmaxf(high, s[n][e] = seen ? s[n][e] * scale : -INFINITY);
            }
            for (int lanes = 1; lanes <= 2; lanes *= 2) high = fmaxf(high, __shfl_xor_sync(WARP, high, lanes));
            const float shrink = expf(maximum[r] - high);
            maximum[r] = high;
            sum[r] *= shrink;
            for (int n = 0; n < SIDE / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) {
                sum[r] += s[n][e] = expf(s[n][e] - high);
                o[n][e] *= shrink;
            }
        }
        for (int c = 0; c < SIDE; c += 16) {                 // o += p v; a result's registers are an operand's
            const float *low = s[c / 8], *high = s[c / 8 + 1];
            const unsigned f[4] = {gpu::pair(low[0], low[1]), gpu::pair(low[2], low[3]), gpu::pair(high[0], high[1]),
                                   gpu::pair(high[2], high[3])};
            for (int n = 0; n < SIDE / 8; n += 2) {
                unsigned g[4];
                gpu::load_transposed(g, at(v, c + lane % 16, n * 8 + lane / 16 * 8));
                gpu::mma(o[n], f, g[0], g[1]);
                gpu::mma(o[n + 1], f, g[2], g[3]);
            }
        }
    }
    for (int r = 0; r < 2; r++) {
        const int i = i0 + warp * 16 + lane / 4 + 8 * r;
        float total = sum[r];
        for (int lanes = 1; lanes <= 2; lanes *= 2) total += __shfl_xor_sync(WARP, total, lanes);
        for (int n = 0; n < SIDE / 8 && i < T; n++) {
            const float two[2] = {o[n][2 * r] / total, o[n][2 * r + 1] / total};
            store(out + ((size_t)b * T + i) * C + h * SIDE + n * 8 + lane % 4 * 2, two);
        }
        if (lane % 4 == 0 && i < T) lse[((size_t)b * gridDim.y + h) * T + i] = maximum[r] + logf(total);
    }
}

// What gpu::attention_backward_wgmma_kernel<64> does, one thing after another. A thread adds up the same numbers of dq
// each time, in `sums`, so that no other has to wait for it.
using Shape = gpu::BackwardShape<64>;
constexpr int SIDE_2 = Shape::KEYS, TILE_BYTES = Shape::KEYS_BYTES, ROW = gpu::PANEL_ROW;
constexpr size_t UNPIPELINED_BYTES = 6 * TILE_BYTES + Shape::ROWS_BYTES + 8;
__global__ void __launch_bounds__(256, 1) unpipelined(floatX* dqkv, float* sums,
                                                      const __grid_constant__ CUtensorMap qkv,
                                                      const __grid_constant__ CUtensorMap dout, const float* rows,
                                                      int heads, int NH, int T, float scale) {
#ifdef SM90A
    using namespace gpu;
    SHARED_DYNAMIC(shared);
    const unsigned keys_at = shared_address(shared), values_at = keys_at + TILE_BYTES;
    const unsigned queries_at = values_at + TILE_BYTES;
    const unsigned douts_at = queries_at + TILE_BYTES, ds_at = douts_at + TILE_BYTES;
    const unsigned ready = ds_at + 2 * TILE_BYTES + Shape::ROWS_BYTES;
    float* const row = (float*)(shared + 6 * TILE_BYTES);    // of the tile's queries: lse, and D
    const int warp = uniform(threadIdx.x / 32), warpgroup = warp / 4, lane = threadIdx.x % 32;
    const int tiles = (T + SIDE_2 - 1) / SIDE_2, C = NH * 64;
    const Operand keys(keys_at), queries(queries_at), douts(douts_at);
    const Operand own_keys(keys_at + warpgroup * 64 * ROW), own_values(values_at + warpgroup * 64 * ROW);
    const Operand own_ds(ds_at + warpgroup * TILE_BYTES);
    if (threadIdx.x == 0) mbarrier_init(ready, 1);
    unsigned phase = 0;
    for (int head = blockIdx.x; head < heads; head += gridDim.x) for (int key = 0; key < tiles; key++) {
        const int b = head / NH, column = head % NH * 64;
        float dk[32], dv[32];
        // d (64,64) of this warpgroup, to rows of dqkv
        auto leave = [&](const float (&d)[32], int tile, int at, float scale) {
            for (int i = 0; i < 2; i++) for (int n = 0; n < 8; n++) {
                const int t = tile * SIDE_2 + warp * 16 + lane / 4 + 8 * i;
                const float two[2] = {d[4 * n + 2 * i] * scale, d[4 * n + 2 * i + 1] * scale};
                if (t < T) store(dqkv + ((size_t)b * T + t) * 3 * C + at + column + n * 8 + lane % 4 * 2, two);
            }
        };
        for (int query = key; query < tiles; query++) {
            const bool diagonal = query == key;
            __syncthreads();                                 // nobody reads the tile before any more
            if (threadIdx.x == 0) {
                mbarrier_expect(ready, (diagonal ? 4 : 2) * TILE_BYTES);
                if (diagonal) load_box(keys_at, &qkv, ready, C + column, key * SIDE_2, b);
                if (diagonal) load_box(values_at, &qkv, ready, 2 * C + column, key * SIDE_2, b);
                load_box(queries_at, &qkv, ready, column, query * SIDE_2, b);
                load_box(douts_at, &dout, ready, column, query * SIDE_2, b);
            }
            row[threadIdx.x] = rows[((size_t)head * tiles + query) * 2 * SIDE_2 + threadIdx.x];
            mbarrier_wait(ready, phase);
            phase ^= 1;
            __syncthreads();
            float s[64], dp[64];                             // (64 keys, 128 queries)
            wgmma_fence();
            UNROLL for (int k = 0; k < 4; k++) {
                multiply_shared(s, own_keys.after(k * 32), queries.after(k * 32), k > 0);
                multiply_shared(dp, own_values.after(k * 32), douts.after(k * 32), k > 0);
            }
            wgmma_commit();
            wgmma_wait<0>();
            unsigned p[8][4], ds[8][4];
            UNROLL for (int n = 0; n < 16; n++) {
                float l[2];
                load(l, row + n * 8 + lane % 4 * 2);
                UNROLL for (int e = 0; e < 4; e++) {
                    const bool hidden = diagonal && n * 8 + lane % 4 * 2 + e % 2 < warp * 16 + lane / 4 + e / 2 * 8;
                    s[4 * n + e] = hidden ? 0 : power_of_2(s[4 * n + e] * scale * LOG2E - l[e % 2]);
                }
                for (int i = 0; i < 2; i++) p[n / 2][n % 2 * 2 + i] = pair(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]);
            }
            UNROLL for (int n = 0; n < 16; n++) {
                float D[2];
                load(D, row + SIDE_2 + n * 8 + lane % 4 * 2);
                UNROLL for (int e = 0; e < 4; e++) s[4 * n + e] *= dp[4 * n + e] - D[e % 2];
                for (int i = 0; i < 2; i++) ds[n / 2][n % 2 * 2 + i] = pair(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]);
            }
            UNROLL for (int k = 0; k < 8; k++) {             // two tiles (128 keys, 64 queries)
                const int at = warp * 16 + lane % 16, piece = k % 4 * 2 + lane / 16;
                store_fragments(ds_at + k / 4 * TILE_BYTES + at * ROW + (piece ^ at % 8) * 16, ds[k]);
            }
            stores_visible();
            __syncthreads();
            float dq[32];
            wgmma_fence();
            UNROLL for (int k = 0; k < 8; k++) {
                multiply_registers<true>(dv, p[k], douts.after(k * 16 * ROW), !diagonal || k > 0);
                multiply_registers<true>(dk, ds[k], queries.after(k * 16 * ROW), !diagonal || k > 0);
                multiply_shared<true, true>(dq, own_ds.after(k * 16 * ROW), keys.after(k * 16 * ROW), k > 0);
            }
            wgmma_commit();
            wgmma_wait<0>();
            float* const sum = sums + (size_t(blockIdx.x) * tiles + query) * 8192 + threadIdx.x * 4;
            UNROLL for (int n = 0; n < 8; n++) {
                float so_far[4] = {}, all[4];
                if (key > 0) load(so_far, sum + n * 1024);
                for (int e = 0; e < 4; e++) all[e] = dq[4 * n + e] += so_far[e];
                if (!diagonal) store(sum + n * 1024, all);
            }
            if (diagonal) leave(dq, query, 0, scale);
            if (query == tiles - 1) {
                leave(dk, key, C, scale);
                leave(dv, key, 2 * C, 1);
            }
        }
    }
#endif
}
#endif

// one key: dk and dv, and its part of every dq
__global__ void backward_atomics(floatX* dqkv, float* dq, const floatX* dout, const floatX* qkv, const float* lse,
                                 const float* D, int T, int C, int HS, float scale) {
    SHARED_DYNAMIC(shared);
    float *p = (float*)shared, *ds = p + T;
    const int j = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const size_t per_head = ((size_t)b * gridDim.y + h) * T;
    const floatX *row = qkv + (size_t)b * T * 3 * C + h * HS, *dout_0 = dout + (size_t)b * T * C + h * HS;
    const floatX* k = row + (size_t)j * 3 * C + C;
    for (int i = j + threadIdx.x; i < T; i += blockDim.x) {
        const gpu::Probability r = gpu::recompute(row + (size_t)i * 3 * C, k, k + C, dout_0 + (size_t)i * C,
                                                  lse[per_head + i], D[per_head + i], HS, scale);
        p[i] = r.p;
        ds[i] = r.ds;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < HS; c += blockDim.x) {
        float dk = 0, dv = 0;
        for (int i = j; i < T; i++) {
            dk += ds[i] * float(row[(size_t)i * 3 * C + c]);
            dv += p[i] * float(dout_0[(size_t)i * C + c]);
            atomicAdd(dq + ((size_t)b * T + i) * C + h * HS + c, ds[i] * float(k[c]));
        }
        floatX* to = dqkv + ((size_t)b * T + j) * 3 * C + C + h * HS + c;
        to[0] = floatX(dk);
        to[C] = floatX(dv);
    }
}
__global__ void round_dq(floatX* dqkv, const float* dq, size_t n, int C) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) dqkv[i / C * 3 * C + i % C] = floatX(dq[i]);
}

// Long rows are emulated for the sake of what ships alone, whose rings turn more than once there.
static void ship_alone(std::vector<Rung>& rungs, int T) {
    if (repeats() == 0 && T > 256) rungs.erase(rungs.begin(), rungs.end() - 1);
}

// T queries from t0 on, among S tokens that there is room for: in training t0 = 0, S = T.
static void forward(int B, int t0, int T, int S, int NH, int HS) {
    const int C = NH * HS;
    const float scale = 1 / std::sqrt((float)HS);
    Array<floatX> qkv(numbers((size_t)B * S * 3 * C)), out((size_t)B * T * C);
    Array<float> lse((size_t)B * T * NH), matrix(t0 || S != T ? 0 : (size_t)B * NH * T * T);
    cpu::attention_forward(out.cpu(), lse.cpu(), qkv.cpu(), B, t0, T, S, C, NH);
    std::vector<Rung> rungs;
    if (matrix.n) rungs.push_back({"matrix", [&] {
        launch(scores, dim3(ceil_div(T, 128), T, B * NH), 128, 0, matrix, qkv, T, C, HS, scale);
        launch(softmax, B * NH * T, 128, 0, matrix, lse, T);
        launch(times_v, dim3(T, B * NH), HS, 0, out, matrix, qkv, T, C, HS);
    }});
    rungs.push_back({"plain", [&] {
        launch(gpu::attention_forward_plain, dim3(T, NH, B), gpu::threads_for(t0 + T, 128), gpu::scores_size(t0 + T),
               out, lse, qkv, t0, T, S, C, HS, scale);
    }});
    if (matrix.n && HS == 64) rungs.push_back({"keys_shared", [&] {
        launch(keys_shared<64>, dim3(ceil_div(T, 64), NH, B), 64, 0, out, lse, qkv, T, C, scale);
    }});
#ifndef TRAIN_FP32
    const dim3 grid(ceil_div(T, 64), NH, B);
    if (matrix.n && HS == 64)
        rungs.push_back({"tensor_cores", [&] { launch(tensor_cores, grid, 128, 0, out, lse, qkv, T, C, scale); }});
    if (t0 == 0 && T > 1 && gpu::tiles_fit(HS)) rungs.push_back({"tiles", [&] {
        (HS == 64 ? gpu::attention_forward_tiles<64> : gpu::attention_forward_tiles<128>)(out, lse, qkv, B, T, S, NH);
    }});
#endif
    rungs.push_back({"shipped", [&] { gpu::attention_forward(out, lse, qkv, B, t0, T, S, C, NH); }});
    ship_alone(rungs, T);
    climb("attention forward", format("B=%d T=%d..%d of %d, %d heads of %d", B, t0, t0 + T - 1, S, NH, HS),
          {.flops = 2.0 * B * T * (2 * t0 + T) * C, .bytes = 2.0 * B * (t0 + 2 * T) * C * sizeof(floatX)},
          {written("out", out, 1.5 * ONE), written("lse", lse, 1e-5)}, rungs);
}

static void backward(int B, int T, int NH, int HS) {
    const int C = NH * HS;
    const float scale = 1 / std::sqrt((float)HS);
    Array<floatX> qkv(numbers((size_t)B * T * 3 * C)), dout(numbers((size_t)B * T * C)), dqkv(qkv.n);
    std::vector<float> o(dout.n), l((size_t)B * T * NH);
    cpu::attention_forward(o.data(), l.data(), qkv.cpu(), B, 0, T, T, C, NH);
    Array<floatX> out(rounded(o));           // as forward leaves it
    Array<float> lse(l), D(lse.n), dq(std::vector<float>(out.n)), dqkv_b(numbers(3 * C));
    Array<float> scratch(gpu::attention_scratch(B, T, NH, HS)), partial(gpu::partial_size(C));
    cpu::attention_backward(dqkv.cpu(), dout.cpu(), qkv.cpu(), out.cpu(), l.data(), B, T, C, NH);
    cpu::bias_backward(dqkv_b.cpu(), dqkv.cpu(), B * T, 3 * C);
    auto dots = [&] {
        launch(gpu::attention_dot_kernel, ceil_div(lse.n, 8), 256, 0, D, dout, out, (int)lse.n, T, NH, HS);
    };
    auto bias = [&] { gpu::column_sums(dqkv.p, dqkv_b, partial, B * T, 3 * C); };
    const dim3 grid(T, NH, B);
    const int threads = gpu::threads_for(T, 128);
    std::vector<Rung> rungs = {
        {"atomics", [&] {
            dots();
            ok(cudaMemsetAsync(dq, 0, dq.n * sizeof(float), stream()));
            launch(backward_atomics, grid, threads, gpu::scores_size(2 * T), dqkv, dq, dout, qkv, lse, D, T, C, HS,
                   scale);
            launch(round_dq, ceil_div(dq.n, 256), 256, 0, dqkv, dq, dq.n, C);
            bias();
        }, true},
        {"plain", [&] {
            dots();
            for (auto kernel : {gpu::attention_backward_plain<true>, gpu::attention_backward_plain<false>})
                launch(kernel, grid, threads, gpu::scores_size(2 * T), dqkv, dout, qkv, lse, D, T, C, HS, scale);
            bias();
        }}};
#ifndef TRAIN_FP32
    if (gpu::tiles_fit(HS)) rungs.push_back({"tiles", [&] {
        dots();
        const auto tiles = HS == 64 ? gpu::attention_backward_tiles<64> : gpu::attention_backward_tiles<128>;
        tiles(dqkv, dout, qkv, lse, D, B, T, NH);
        bias();
    }});
    if (HS == 64 && gpu::wgmma_fits(HS)) rungs.push_back({"unpipelined", [&] {
        launch(gpu::attention_rows_kernel<64>, dim3(NH, Shape::tiles(T), B), 256, 0, scratch, dout, out, lse, T, NH);
        launch(unpipelined, Shape::blocks(B, NH), 256, UNPIPELINED_BYTES, dqkv, scratch + Shape::rows(B, T, NH),
               gpu::boxes(qkv, B, T, T, 3 * C, SIDE_2), gpu::boxes(dout, B, T, T, C, SIDE_2), scratch, B * NH, NH, T,
               scale);
        bias();
    }});
#endif
    rungs.push_back({"shipped", [&] {
        gpu::attention_backward(dqkv, dqkv_b, scratch, partial, dout, qkv, out, lse, B, T, C, NH);
    }});
    ship_alone(rungs, T);
    climb("attention backward", format("B=%d T=%d, %d heads of %d", B, T, NH, HS),
          {.flops = 5.0 * B * T * T * C, .bytes = 8.0 * out.n * sizeof(floatX)},
          {written("dqkv", dqkv, 2 * ONE, 2e-5), written("dqkv_b", dqkv_b, ONE, 1e-5), forgotten(D),
           forgotten(scratch)}, rungs);
}

static const Study study([] {
    const struct { Size size; int B, t0, T, S, NH, HS; } shapes[] = {
        {TINY, 1, 0, 1, 1, 1, 1}, {TINY, 2, 0, 5, 5, 3, 5}, {TINY, 1, 0, 33, 33, 2, 24}, {TINY, 3, 0, 64, 64, 2, 64},
        {TINY, 1, 0, 65, 65, 1, 64}, {TINY, 1, 0, 70, 70, 1, 128}, {SMALL, 2, 0, 130, 130, 1, 128},
        {SMALL, 1, 0, 200, 200, 1, 64}, {SMALL, 2, 0, 330, 330, 3, 64}, {SMALL, 1, 0, 330, 330, 5, 128},
        {LARGE, 1, 0, 450, 450, 2, 128}, {LARGE, 2, 0, 256, 256, 2, 64}, {LARGE, 1, 0, 255, 255, 3, 128},
        {LARGE, 2, 0, 193, 193, 2, 40},
        // as when sampling: the first tokens at once, one more, and some more
        {TINY, 2, 0, 7, 20, 2, 64}, {TINY, 2, 7, 1, 20, 2, 64}, {TINY, 1, 3, 4, 9, 3, 5},
        {TRAINING, 64, 0, 1024, 1024, 12, 64}, {TRAINING, 16, 0, 1024, 1024, 25, 64},
        {TRAINING, 16, 0, 1024, 1024, 8, 128}, {TRAINING, 8, 1023, 1, 1024, 12, 64}};
    for (auto& s : shapes) {
        if (s.size > largest) continue;
        forward(s.B, s.t0, s.T, s.S, s.NH, s.HS);
        if (s.t0 == 0 && s.S == s.T) backward(s.B, s.T, s.NH, s.HS);
    }
});
}  // namespace attention_study
