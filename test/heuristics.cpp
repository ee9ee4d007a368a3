/* test/heuristics.cpp -- which of cuBLASLt's heuristics is taken for a product: emulated heuristics that differ in
   bits, in time by a clock that is theirs to choose, or fail, and the one that must be taken.
                                                                                            build/emulated_heuristics */
#define NO_GPU_MAIN
#include "../train_gpt.cu"
#include "check.h"
using emu::Heuristic;

struct Case { const char* name; std::vector<Heuristic> heuristics; int taken; };
constexpr double HOUR = 3600;
static const Case CASES[] = {
    {"the only one", {{.seconds = 3 * HOUR}}, 0},
    {"the fastest", {{.seconds = 3 * HOUR}, {.seconds = 2 * HOUR}, {.seconds = HOUR}, {.seconds = 2 * HOUR}}, 2},
    {"the first, if none is faster", {{.seconds = 3 * HOUR}, {.seconds = 4 * HOUR}, {.backwards = true, .seconds = HOUR}}, 0},
    {"not one of other bits", {{.seconds = 3 * HOUR}, {.backwards = true, .seconds = HOUR}, {.seconds = 2 * HOUR}}, 2},
    {"not one that splits the sum", {{.seconds = 3 * HOUR}, {.parts = 4, .seconds = HOUR}, {.seconds = 2 * HOUR}}, 2},
    {"not one that splits it to no effect", {{.seconds = 3 * HOUR}, {.parts = 1000, .seconds = HOUR}, {.seconds = 2 * HOUR}}, 2},
    {"not one that leaves what was there", {{.seconds = 3 * HOUR}, {.seconds = 2 * HOUR}, {.idle = true, .seconds = HOUR}}, 1},
    {"not one that fails", {{.seconds = 3 * HOUR}, {.refused = true}, {.seconds = 2 * HOUR}}, 2},
    {"the second, if the first fails", {{.refused = true}, {.backwards = true, .seconds = 2 * HOUR}, {.seconds = HOUR}}, 1},
    {"the first, if it splits the sum", {{.parts = 4, .seconds = 3 * HOUR}, {.seconds = HOUR}, {.parts = 4, .seconds = 2 * HOUR}}, 0},
};
static void expect(const std::string& name, const gpu::Matmul& p, const std::vector<Heuristic>& heuristics, int taken,
                   double least = 0) {
    emu::heuristics = heuristics;
    const size_t used = emu::memory().used;
    const auto plan = gpu::fastest(p, nullptr, least);
    int got = -1;
    for (int i = (int)heuristics.size(); i-- > 0;) if (plan && plan->algorithm.way == heuristics[i]) got = i;
    check(got == taken && emu::memory().used == used,
          "heuristics/%s: %d of %zu, must be %d; %zu bytes of memory remain", name.c_str(), got, heuristics.size(),
          taken, emu::memory().used - used);
}

int main() {
    using gpu::Matmul;
    // results that are rounded to bf16 tell another order of a sum in one of thousands
    Matmul forward{240, 160, 200, false, false, 240, 200, 240}, dx{240, 160, 200, true, false, 200, 200, 248};
    Matmul dw{240, 160, 200, false, true, 240, 160, 240, false, true, true}, residual = forward;
    residual.bias = residual.plus = true;
    const std::pair<const char*, Matmul> products[] = {{"forward", forward}, {"dx", dx}, {"dw", dw},
                                                       {"residual", residual}};
    gpu::device();
    for (auto& [name, product] : products)
        for (const Case& c : CASES) expect(std::string(name) + ": " + c.name, product, c.heuristics, c.taken);
    expect("the first, of a small product", forward, CASES[1].heuristics, 0, 1e10);
    emu::settings.memory = emu::memory().used + (64 << 10);
    expect("the first, where memory is too short", forward, CASES[1].heuristics, 0);
    expect("none", forward, {}, -1);
    return failed > 0;
}
