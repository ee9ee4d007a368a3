/* dev/host/arena.h -- memory for numbers: arrays side by side in one piece. */
#pragma once
#include "files.h"
#include <utility>

enum Per { ONCE, BLOCK };
struct Range { size_t at, n; };

// What one of several ranks has of an array, and where it stands in the whole: runs of n numbers, one every `stride`
// from `first` on; or all.
struct Slice {
    size_t first = 0, n = SIZE_MAX, stride = 0;
    bool all() const { return n == SIZE_MAX; }
    size_t place(size_t i) const { return first + i / n * stride + i % n; }      // in the whole, of number i
    // Of an array, the numbers of this rank, `count` of them: itself, or copies in `own`.
    const float* of(const float* whole, size_t count, std::vector<float>& own) const {
        if (all()) return whole;
        own.resize(count);
        each({0, count}, [&](size_t i, size_t at, size_t some) { std::copy_n(whole + at, some, &own[i]); });
        return own.data();
    }
    // f(i, place, n) for some of its numbers, run by run
    template <typename F> void each(Range some, F f) const {
        while (some.n) {
            const size_t m = std::min(n - some.at % n, some.n);
            f(some.at, place(some.at), m);
            some = {some.at + m, some.n - m};
        }
    }
};

// Places arrays in one arena, each at a multiple of 128 numbers: 256 bytes in the smallest format, which suits matrix
// units best. Of arrays that exist once per layer (BLOCK), those named one after the other stand together with the rest
// of their layer, so a layer is one contiguous piece: array k of layer l begins at place(k, l). More layers than there
// are take turns.
struct Slots {
    std::vector<size_t> first, stride;
    size_t size = 0;                                         // of the arena, in elements
    int layers;

    Slots(const std::vector<std::pair<Per, size_t>>& arrays, int L) : stride(arrays.size(), 0), layers(L) {
        auto padded = [](size_t n) { return (n + 127) / 128 * 128; };
        for (size_t k = 0, end; k < arrays.size(); k = end) {
            const bool block = arrays[k].first == BLOCK;
            size_t within = 0;
            end = k + 1;
            while (block && end < arrays.size() && arrays[end].first == BLOCK) end++;
            for (size_t i = k; i < end; i++) {
                first.push_back(size + within);
                within += padded(arrays[i].second);
            }
            if (block) std::fill(&stride[k], &stride[end - 1] + 1, within);
            size += within * (block ? L : 1);
        }
    }
    size_t place(size_t k, int l) const { return first[k] + l % layers * stride[k]; }
};

// Zeroed memory for n numbers, first touched by the threads that will use it. Huge pages, where there are any, save a
// TLB miss at every row when a product reads down a column.
template <typename E> struct Buffer {
    size_t size;
    std::unique_ptr<E, void (*)(void*)> memory{nullptr, free};
    explicit Buffer(size_t n = 0) : size(n) {
        if (n == 0) return;
        const size_t page = n * sizeof(E) < (1 << 21) ? 64 : 1 << 21;
        const size_t bytes = (n * sizeof(E) + page - 1) / page * page;
        memory.reset((E*)std::aligned_alloc(page, bytes));
        if (!memory) die("out of memory: %zu bytes asked for", bytes);
#ifdef MADV_HUGEPAGE
        madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
        zero();
    }
    void zero() {
        E* p = memory.get();
        #pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < size; i++) p[i] = E(0);
    }
    E* data() const { return memory.get(); }
};
