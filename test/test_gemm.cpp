/* test/test_gemm.cpp -- the matrix product against sums in double: random sizes, all strides, edges untouched; in fp32,
   and in bf16, whose inputs are rounded first and whose sums are as exact, in every unit. Those that the machine has
   none of are emulated, and those that it has agree with their emulation. */
#define NO_CPU_MAIN
#include "units.h"
#include "../train_gpt.cpp"
#include "check.h"

static Rng rng(5);
static std::vector<float> random_numbers(size_t n) {
    std::vector<float> v(n);
    for (float& f : v) f = (float)(2 * rng.uniform() - 1);
    return v;
}

// A copy of numbers that end where memory does: who goes beyond them ends the program.
template <typename T> struct Guarded {
    const size_t page = sysconf(_SC_PAGESIZE), bytes, whole = (bytes + page - 1) / page * page;
    char* const pages = (char*)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    T* const p = (T*)(pages + whole - bytes);
    explicit Guarded(const std::vector<T>& v) : bytes(v.size() * sizeof(T)) {
        if (mprotect(pages + whole, page, PROT_NONE)) die("no memory for %zu bytes", bytes);
        memcpy((void*)p, v.data(), bytes);
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() { munmap(pages, whole + page); }
};

// How numbers are multiplied: P, where B is stored as E
template <typename T, typename U> struct Types { using P = T; using E = U; };
struct Fp32 : Types<float, float> { static constexpr const char* name = "fp32"; };
struct Bf16 : Types<bfloat16, float> { static constexpr const char* name = "bf16"; };
struct Bf16Stored : Types<bfloat16, bfloat16> { static constexpr const char* name = "bf16, B stored so"; };

// A product of random numbers; the worst error in units of its bound. What lies between the rows of C must stay.
template <typename Type> static double product(int M, int N, int K, int kind) {
    using P = typename Type::P;
    using E = typename Type::E;
    const bool a_transposed = kind & 1, b_transposed = kind & 2, odd = kind & 4;
    const bool with_bias = kind & 8, with_plus = kind & 16, own = kind & 32;
    const long a_step = odd ? 3 : 1, gap = odd ? 5 : 0, ldc = N + gap;     // steps of neither 1 nor a row: no fast path
    const size_t steps = (size_t)M * K - 1;                  // from a's first number to its last
    const Guarded<float> a(random_numbers(steps * a_step + 1)), bias(random_numbers(N));
    const std::vector<float> numbers = random_numbers((size_t)K * N), before = random_numbers((M - 1) * ldc + N);
    const std::vector<float> plus = own ? before : random_numbers(before.size());
    const Guarded<E> b({numbers.begin(), numbers.end()});
    const Guarded<float> result(before), addend(plus);
    float* const c = result.p;
    const cpu::Matrix A = a_transposed ? cpu::Matrix{a.p, a_step, M * a_step} : cpu::Matrix{a.p, K * a_step, a_step};
    const cpu::Matrix<E> B = b_transposed ? cpu::Matrix<E>{b.p, 1, K} : cpu::Matrix<E>{b.p, N, 1};
    const float* const added = with_plus ? own ? c : addend.p : nullptr;
    cpu::gemm<P, E>({c, ldc, added, with_bias ? bias.p : nullptr}, A, B, M, N, K);
    double worst = 0;
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0, size = 0;                        // a sum of n numbers errs by n eps/2 sum|x| at most
            auto add = [&](double x) {
                sum += x;
                size += std::abs(x);
            };
            for (int k = 0; k < K; k++) add((double)P(A.from(i, k).p[0]) * P(B.from(k, j).p[0]));
            if (with_bias) add(bias.p[j]);
            if (with_plus) add(plus[i * ldc + j]);
            keep_worst(worst, std::abs(c[i * ldc + j] - sum) / ((K + 2) * 0x1p-24 * size));
        }
        for (long k = i * ldc + N; k < std::min<long>((i + 1) * ldc, before.size()); k++)
            if (c[k] != before[k]) worst = NAN;
    }
    return worst;
}

// With a packed B, the bits are those of a product with the numbers that it unpacks to.
static bool as_unpacked(Form form, int M, int rows, int cols, bool transposed) {
    const std::vector<float> numbers = random_numbers((size_t)rows * cols);
    std::vector<uint8_t> memory(packed_bytes(form, rows, cols));
    std::vector<float> plain(numbers.size());
    pack(form, memory.data(), numbers.data(), rows, cols);
    unpack(form, plain.data(), memory.data(), rows, cols);
    const float* const scales = (const float*)(memory.data() + code_bytes(form, rows, cols));
    const int K = transposed ? cols : rows, N = transposed ? rows : cols;
    const std::vector<float> a = random_numbers((size_t)M * K);
    std::vector<float> want((size_t)M * N), got(want);
    auto multiply = [&](auto b, std::vector<float>& c) {
        cpu::gemm({c.data(), N}, {a.data(), K, 1}, transposed ? b.t() : b, M, N, K);
    };
    const long row = packed_row(cols);
    multiply(cpu::Matrix<>{plain.data(), cols, 1}, want);
    if (form == Form::INT8) multiply(cpu::Matrix<int8_t>{(const int8_t*)memory.data(), scales, row, 1}, got);
    else multiply(cpu::Matrix<cpu::nf4>{memory.data(), scales, 0, row, 1}, got);
    return got == want;
}
static void packed_products() {
    for (Form form : {Form::INT8, Form::NF4}) {
        int wrong = 0;
        for (int r = 0; r < 200; r++)
            wrong += !as_unpacked(form, 1 + rng.below(20), 1 + rng.below(130), 1 + rng.below(130), r % 2);
        for (int M : {1, 8, 300}) for (bool transposed : {false, true})
            wrong += !as_unpacked(form, M, 400, 1100, transposed);
        check(wrong == 0, "gemm/%s: %d of 206 products have other bits than those of unpacked numbers",
              FORMS[(int)form], wrong);
    }
}

// Frozen matrices in fewer bits: logits are those of the numbers that they hold.
static void frozen_forms() {
    Config c;
    std::tie(c.L, c.NH, c.C, c.V, c.T) = std::tuple(2, 2, 16, 19, 24);
    std::vector<int> x(c.T);
    for (int& token : x) token = rng.below(c.V);
    for (Form form : {Form::BF16, Form::INT8, Form::NF4}) {
        Config fewer = c;
        fewer.form = form;
        cpu::Model plain(c, 1, c.T, false), frozen(fewer, 1, c.T, false);
        int rounded = 0, matrices = 0;
        for (size_t i = 0; i < plain.layout.tensors.size(); i++) {
            const std::vector<float> values = plain.layout.initial_values(i, 7);
            std::vector<float> held(values.size());
            frozen.set(WEIGHT, i, values.data());
            frozen.get(WEIGHT, i, held.data());
            plain.set(WEIGHT, i, held.data());
            const bool matrix = plain.layout.tensors[i].rows && plain.layout.tensors[i].present;
            matrices += matrix;
            rounded += matrix && held != values;
        }
        std::vector<float> want(c.T * c.V), got(want);
        plain.extend(x.data(), 1, 0, c.T);
        plain.logits(0, 1, c.T, want.data());
        frozen.extend(x.data(), 1, 0, c.T);
        frozen.logits(0, 1, c.T, got.data());
        check(want == got && rounded == matrices, "model, matrices in %s: logits of what they hold; %d of %d rounded",
              FORMS[(int)form], rounded, matrices);
    }
}

template <typename Type> static void products(Unit unit = Unit::NONE) {
    using P = typename Type::P;
    const char* const names[] = {"gemm", "gemm, dots", "gemm, AMX"};
    const char* name = names[(int)unit];
    cpu::unit() = unit;
    for (int from = 0; from < 64; from += 8) {
        double worst = 0;
        auto size = [] { return 1 + rng.below(100); };
        for (int r = 0; r < 64; r++) keep_worst(worst, product<Type>(size(), size(), size(), from + r % 8));
        check(worst <= 1, "%s/%s, sizes 1 to 100, strides %d to %d: error %.2f of its bound", name, Type::name, from,
              from + 7, worst);
    }
    const struct { int M, N, K; } large[] = {{1, 1, 1}, {1, 1000, 1}, {513, 385, 769}, {1030, 50, 384},
                                             {7, 1200, 1153}, {64, 64, 5000}, {129, 4097, 33}};
    for (auto [M, N, K] : large) {
        double worst = 0;
        for (int kind : {0, 19, 55}) keep_worst(worst, product<Type>(M, N, K, kind));
        check(worst <= 1, "%s/%s, (%d,%d) (%d,%d): error %.2f of its bound", name, Type::name, M, K, K, N, worst);
    }
    // one product, any number of threads: the same bits
    const int M = 300, N = 500, K = 900;
    std::vector<float> a = random_numbers((size_t)M * K), b = random_numbers((size_t)K * N), first;
    for (int threads : {1, 2, 3, 8}) {
        std::vector<float> c((size_t)M * N);
        omp_set_num_threads(threads);
        cpu::gemm<P>({c.data(), N}, {a.data(), K, 1}, {b.data(), 1, K}, M, N, K);
        if (first.empty()) first = c;
        check(!memcmp(c.data(), first.data(), c.size() * sizeof c[0]), "%s/%s, %d threads: the same bits as 1", name,
              Type::name, threads);
    }
    // a row of C has the same bits whatever stands beside it: a sample does not depend on how many are made at once.
    // In a unit the sums have another order than among a few rows.
    for (bool transposed : {false, true}) {
        std::vector<float> whole((size_t)M * N), some((size_t)M * N);
        const cpu::Matrix A = {a.data(), K, 1};
        const cpu::Matrix B = transposed ? cpu::Matrix{b.data(), 1, K} : cpu::Matrix{b.data(), N, 1};
        cpu::gemm<P>({whole.data(), N}, A, B, M, N, K);
        for (int rows : {1, 3, 8, 9, 64}) {
            if (unit != Unit::NONE && rows <= cpu::MR) continue;
            cpu::gemm<P>({some.data(), N}, A.from(5, 0), B, rows, N, K);
            check(!memcmp(some.data(), &whole[5 * N], sizeof(float) * rows * N),
                  "%s/%s, %d rows%s: the same bits as among %d", name, Type::name, rows,
                  transposed ? " (B transposed)" : "", M);
        }
    }
}

// Rounding, number by number and a vector at a time: the nearest of the two neighbours, the even one of a tie.
static void rounding() {
    std::vector<float> x;
    for (uint32_t high : {0x0000u, 0x0001u, 0x007fu, 0x0080u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u, 0x7f81u, 0x7fffu})
        for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            for (uint32_t sign : {0u, 0x80000000u}) x.push_back(std::bit_cast<float>(high << 16 | low | sign));
    for (int i = 0; i < 1000; i++) x.push_back((float)rng.normal());
    x.resize(x.size() / cpu::VL * cpu::VL);
    int wrong = 0, differ = 0;
    for (size_t i = 0; i < x.size(); i++) {
        const uint32_t bits = std::bit_cast<uint32_t>(x[i]), low = bits & 0xffff, odd = bits >> 16 & 1;
        const uint32_t nearest = bits - low + (low + odd > 0x8000 ? 0x10000 : 0);
        const float y = bfloat16(x[i]), want = std::bit_cast<float>(nearest);
        if (std::isnan(x[i]) ? !std::isnan(y) : std::bit_cast<uint32_t>(y) != std::bit_cast<uint32_t>(want)) wrong++;
        const cpu::vec v = cpu::load<bfloat16>(cpu::Matrix{&x[i / cpu::VL * cpu::VL], cpu::VL, 1});
        const float lane = v[i % cpu::VL];
        if (std::isnan(y) ? !std::isnan(lane) : memcmp(&lane, &y, 4)) differ++;
    }
    check(!wrong, "bfloat16/%zu numbers rounded to the nearest, %d wrong", x.size(), wrong);
    check(!differ, "bfloat16/vectors round like numbers, %d differ", differ);
    std::vector<bfloat16> y(x.size());
    cpu::round_all(y.data(), x.data(), x.size() - 3);        // whole vectors, and what is left of one
    differ = 0;
    for (size_t i = 0; i < x.size(); i++)
        if (!std::isnan(x[i]) && !(float(y[i]) == (i < x.size() - 3 ? float(bfloat16(x[i])) : 0))) differ++;
    check(!differ, "bfloat16/many rounded at once, %d differ", differ);
}

// A unit's sums of random numbers, some of them subnormal, are those of its emulation, bit for bit.
static void squares(Unit unit) {
    constexpr int most = 9;
    alignas(64) static uint32_t a[2 * most * TILE], b[2 * most * TILE];
    alignas(64) float got[4 * TILE];
    float want[4 * TILE];
    int differ = 0, runs = 0;
    for (int tiles = 1; tiles <= most; tiles++) for (int scale : {0, -60, -63, -70}) for (bool more : {false, true}) {
        for (uint32_t* words : {a, b}) for (int i = 0; i < 2 * most * TILE; i++) {
            auto bits = [&] { return (uint32_t)bfloat16(std::ldexp((float)rng.normal(), scale)).bits; };
            words[i] = bits() | bits() << 16;
        }
        for (int i = 0; i < 4 * TILE; i++) want[i] = got[i] = std::ldexp((float)rng.normal(), 2 * scale);
        if (unit == Unit::AMX) amx_begin();
        (unit == Unit::AMX ? amx_multiply : dots_multiply)(got, a, b, most * TILE, tiles, more);
        if (unit == Unit::AMX) amx_end();
        for (int q = 0; q < 4; q++) for (int t = 0; t < tiles; t++) {
            float* const sums = want + q * TILE;
            const uint32_t *a_t = a + (q / 2 * most + t) * TILE, *b_t = b + (q % 2 * most + t) * TILE;
            if (!more && t == 0) std::fill_n(sums, TILE, 0.0f);
            if (unit == Unit::AMX) {
                emulated_tiles(sums, a_t, b_t);
                continue;
            }
            for (int i = 0; i < TILE; i++) for (int k = 0; k < 16; k++)
                sums[i] = emulated_dot(sums[i], a_t[i / 16 * 16 + k], b_t[16 * k + i % 16]);
        }
        runs++;
        differ += memcmp(want, got, sizeof got) != 0;
    }
    check(differ == 0, "unit/%s: %d of %d squares have other bits than emulated ones", UNITS[(int)unit], differ, runs);
}

// Attention with products in a unit is that of floats, but for the rounding of what is multiplied. The inputs of a
// product err by 2^-9 of themselves each, at random: sqrt(2) 2^-9 of its norm; scores of about 1 err by as much, and so
// do probabilities. Backward there are four products on the way to dq and dk.
static void attention(Unit unit) {
    cpu::unit() = unit;
    const int B = 2, T = 150, C = 3 * 40, NH = 3;
    const std::vector<float> qkv = random_numbers(B * T * 3 * C), dout = random_numbers(B * T * C);
    std::vector<float> out[2], lse[2], dqkv[2];
    for (int rounded : {0, 1}) {
        out[rounded].assign(B * T * C, NAN);
        lse[rounded].assign(B * NH * T, NAN);
        dqkv[rounded].assign(B * T * 3 * C, NAN);
        float *const o = out[rounded].data(), *const l = lse[rounded].data(), *const dq = dqkv[rounded].data();
        const auto forward = rounded ? cpu::attention_forward<bfloat16> : cpu::attention_forward<real>;
        const auto backward = rounded ? cpu::attention_backward<bfloat16> : cpu::attention_backward<real>;
        forward(o, l, qkv.data(), B, 0, T, T, C, NH);
        backward(dq, dout.data(), qkv.data(), o, l, B, T, C, NH);
    }
    auto error = [](const std::vector<float>* v) {
        double difference = 0, size = 0;
        for (size_t i = 0; i < v[0].size(); i++) {
            difference += std::pow(v[1][i] - v[0][i], 2);
            size += std::pow(v[0][i], 2);
        }
        return std::sqrt(difference / size);
    };
    const double forward = error(out), backward = error(dqkv);
    check(forward > 1e-4 && forward <= std::sqrt(4) * 0x1p-9 && backward > 1e-4 && backward <= std::sqrt(8) * 0x1p-9,
          "attention/%s: relative error %.1e, of gradients %.1e", UNITS[(int)unit], forward, backward);
}

int main() {
    rounding();
    packed_products();
    frozen_forms();
    products<Fp32>();
    products<Bf16>();
    products<Bf16Stored>();
    emulate_units();
    for (Unit unit : {Unit::DOTS, Unit::AMX}) {
        if (!has(unit)) {
            skip("unit/%s: compiled for it, but the processor or the system has none", UNITS[(int)unit]);
            continue;
        }
        squares(unit);
        attention(unit);
        products<Bf16>(unit);
        products<Bf16Stored>(unit);
    }
    return failed > 0;
}
