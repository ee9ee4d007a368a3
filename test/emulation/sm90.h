/* sm90.h -- what the PTX instructions that came with sm_90 do (namespace emu, named after the instruction): mbarriers,
   clusters, TMA copies of boxes of tensors, bulk copies and reductions, fence.proxy.async, wgmma. */
#pragma once
#include "device.h"

// ---- tensor maps: cuda.h --------------------------------------------------------------------------------------------
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle {
    CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B
};
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE = 0, CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
struct alignas(64) CUtensorMap {
    uint32_t magic;
    uint8_t rank, element, swizzle;          // element: bytes
    char* base;
    uint64_t size[5], stride[5];             // dimension 0 is the innermost; strides in bytes
    uint16_t box[5];
};
inline CUresult cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* size,
    const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* element_stride, CUtensorMapInterleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    const uint8_t element = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
    if (rank < 1 || rank > 5 || (uintptr_t)base % 16 || !emu::memory().device(base)) return CUDA_ERROR_INVALID_VALUE;
    *map = {0x7E45, (uint8_t)rank, element, (uint8_t)swizzle, (char*)base, {}, {element}, {}};
    uint64_t bytes = element;                // from the first element to the last
    for (unsigned i = 0; i < rank; i++) {
        if (i) map->stride[i] = stride[i - 1];
        map->size[i] = size[i];
        map->box[i] = (uint16_t)box[i];
        if (!size[i] || size[i] > 1ull << 32 || !box[i] || box[i] > 256 || element_stride[i] != 1 ||
            (i && (map->stride[i] % 16 || map->stride[i] >= 1ull << 40)))
            return CUDA_ERROR_INVALID_VALUE;
        bytes += (size[i] - 1) * map->stride[i];
    }
    const unsigned row = box[0] * element;
    if (row % 16 || (swizzle && row > 16u << swizzle)) return CUDA_ERROR_INVALID_VALUE;
    emu::memory().check_range(base, bytes, "cuTensorMapEncodeTiled");
    return CUDA_SUCCESS;
}
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
enum { cudaEnableDefault = 0 };
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
    const bool known = !strcmp(name, "cuTensorMapEncodeTiled");
    *function = known ? (void*)&cuTensorMapEncodeTiled : nullptr;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

namespace emu {
// ---- fence.proxy.async ----------------------------------------------------------------------------------------------
// What a thread has stored to shared memory is seen by products and copies from there after this fence, and a barrier.
inline void fence_proxy_async() {
    Unseen unseen;
    current->gang->watch.fence(current);
}
// ---- mbarrier -------------------------------------------------------------------------------------------------------
// Its phase ends when nobody's arrival is pending and as many bytes have come as were expected. Who waits for the end
// of phase `parity` goes on while the other phase lasts.
struct MBarrier {
    uint32_t phase : 1, count : 15, pending : 16;
    int32_t bytes;                           // expected and not come yet
    EMU_UNSEEN unsigned phase_now() const { return phase; }
    EMU_UNSEEN const void* sync(unsigned parity) const { return (const char*)this + (parity & 1); }
};
EMU_UNSEEN inline MBarrier& mbarrier_at(uint32_t address, const char* name) {
    void* p = shared_pointer(address);
    const std::vector<void*>& known = owner(address).mbarriers;
    if (std::find(known.begin(), known.end(), p) == known.end())
        fail("%s: no mbarrier was initialized at shared address %08x", name, address);
    reads(p, 8);                             // its initialization must have happened before
    return *(MBarrier*)p;
}
inline void update(Gang& gang, MBarrier& m, int arrivals, int bytes) {
    Unseen unseen;
    if ((int)m.pending < arrivals) fail("more arrivals at an mbarrier than its count, %u", m.count);
    m.pending -= arrivals;
    m.bytes += bytes;
    if (m.pending || m.bytes) return;
    for (Fiber& f : gang.fibers)
        if (f.mbarrier == &m && f.parity == m.phase) {
            f.mbarrier = nullptr;
            gang.make_ready(&f);
        }
    m.phase ^= 1;
    m.pending = m.count;
}
inline void mbarrier_init(uint32_t address, unsigned count) {
    needs("mbarrier.init, as it is used here,", 90);
    if (address % 8) fail("mbarrier.init: shared address %08x is not a multiple of 8", address);
    writes(shared_pointer(address), 8);
    Unseen unseen;
    *(MBarrier*)shared_pointer(address) = {0, count, count, 0};
    owner(address).mbarriers.push_back(shared_pointer(address));
    current->block->mbarrier_unfenced = true;
}
inline void fence_mbarrier_init() {
    Unseen unseen;
    current->block->mbarrier_unfenced = false;
}
inline void mbarrier_expect_tx(uint32_t address, int bytes) {
    MBarrier& m = mbarrier_at(address, "mbarrier.expect_tx");
    Unseen unseen;
    m.bytes += bytes;
}
inline void mbarrier_arrive(uint32_t address) {
    MBarrier& m = mbarrier_at(address, "mbarrier.arrive");
    release(m.sync(m.phase_now()));
    update(*current->gang, m, 1, 0);
}
inline void mbarrier_arrive_expect_tx(uint32_t address, int bytes) {
    mbarrier_expect_tx(address, bytes);
    mbarrier_arrive(address);
}
inline bool mbarrier_test_wait(uint32_t address, unsigned parity) {
    const MBarrier& m = mbarrier_at(address, "mbarrier.test_wait");
    if (m.phase_now() == (parity & 1)) return false;
    acquire(m.sync(parity));
    return true;
}
inline void mbarrier_wait(uint32_t address, unsigned parity, EMU_PLACE) {        // the whole loop around try_wait
    MBarrier& m = mbarrier_at(address, "mbarrier.try_wait");
    parity &= 1;
    if (m.phase_now() == parity) {
        Unseen unseen;
        current->mbarrier = &m;
        current->parity = parity;
        current->gang->wait(parity ? "mbarrier.try_wait of parity 1" : "mbarrier.try_wait of parity 0", place);
    } else if (settings.seed) current->gang->let_others();
    acquire(m.sync(parity));
}

// ---- clusters -------------------------------------------------------------------------------------------------------
inline uint32_t cluster_ctarank() { return current->block->rank; }
inline uint32_t mapa(uint32_t address, uint32_t rank) {
    if (rank >= current->gang->grid.cluster.x) fail("mapa: block %u is outside the cluster", rank);
    return (address & 0xffffff) | (current->block->first + rank) << 24;
}

// ---- TMA ------------------------------------------------------------------------------------------------------------
// Swizzle s exchanges the 16-byte pieces of 8 rows of 16 << s bytes, so that a column of them meets all banks: bits 4
// and up of an address are combined with those from bit 7 on.
inline uint32_t swizzled(uint32_t address, int s) { return address ^ (address >> 3 & ((1u << s) - 1) << 4); }
inline uint32_t box_bytes(const CUtensorMap& map, int rank) {
    uint32_t n = map.element;
    for (int i = 0; i < rank; i++) n *= map.box[i];
    return n;
}
inline void check_tensor(const CUtensorMap& map, uint32_t address, int rank, const char* name) {
    if (map.magic != 0x7E45 || map.rank != rank) fail("%s: not a tensor map of %d dimensions", name, rank);
    const unsigned multiple = 128u << map.swizzle;           // 8 rows
    if (address % multiple) fail("%s: shared address %08x is not a multiple of %u", name, address, multiple);
}
// Calls f(shared address, device address, bytes) for each 16 bytes of the box at c; fewer bytes at the tensor's edge.
template <int RANK, typename F> void for_box(const CUtensorMap& map, uint32_t shared, std::array<int, RANK> c, F f) {
    const int row = map.box[0] * map.element, rows = box_bytes(map, RANK) / row;
    for (int r = 0; r < rows; r++) {
        char* p = map.base;
        bool inside = true;
        int left = r;
        for (int i = 1; i < RANK; i++) {
            const int64_t x = c[i] + left % map.box[i];
            left /= map.box[i];
            inside &= x >= 0 && x < (int64_t)map.size[i];
            p += x * (int64_t)map.stride[i];
        }
        for (int b = 0; b < row; b += 16) {
            const int64_t x = (int64_t)c[0] * map.element + b, ahead = (int64_t)map.size[0] * map.element - x;
            const int bytes = inside && x >= 0 ? (int)std::clamp<int64_t>(ahead, 0, 16) : 0;
            f(swizzled(shared + r * row + b, map.swizzle), p + x, bytes);
        }
    }
}
// The box comes late, as the bytes that the mbarrier expects; to all blocks of the cluster that `blocks` names, if any.
template <int RANK>
void tma_load(uint32_t to, const CUtensorMap* map, uint32_t mbarrier, const int (&c)[RANK], unsigned blocks = 0) {
    check_tensor(*map, to, RANK, "TMA load");
    if (settings.strict && current->block->mbarrier_unfenced)
        fail("TMA load: no fence.mbarrier_init since mbarrier.init");
    Gang* gang = current->gang;
    const uint32_t bytes = box_bytes(*map, RANK);
    const std::array<int, RANK> corner = std::to_array(c);
    for (unsigned rank = 0, named = blocks ? blocks : 1; named >> rank; rank++) {
        if (!(named >> rank & 1)) continue;
        const uint32_t at = blocks ? mapa(to, rank) : to;
        MBarrier& m = mbarrier_at(blocks ? mapa(mbarrier, rank) : mbarrier, "TMA load");
        char* p = shared_pointer(at);
        writes(p, bytes);
        release(m.sync(m.phase_now()));
        Unseen unseen;
        if (settings.poison) gang->watch.fills(current, p, bytes);
        gang->copies.push_back([=, &m, map = *map, &block = owner(at)] {
            Unseen unseen;
            if (block.live == 0) fail("TMA load: its block has ended before it was done");
            for_box<RANK>(map, at, corner, [&](uint32_t address, const char* from, int n) {
                char* to = block.shared + (address & 0xffffff);
                if (n) memcpy(to, from, n);
                memset(to + n, 0, 16 - n);
            });
            gang->watch.forget(p, bytes);    // what threads had stored there is gone
            update(*gang, m, 0, -(int)bytes);
        });
    }
}
// ---- bulk copies from shared to global memory -----------------------------------------------------------------------
// They read their source and write, or add, late and in any order, but for what their thread waits for: groups of them,
// until they have read, or until they have written.
inline void bulk(std::vector<Copy> pieces, bool add) {
    needs("cp.async.bulk", 90);
    Watch& watch = current->gang->watch;
    if (Unseen unseen; watch.found(current)) for (const Copy& c : pieces) watch.check(c.from, c.bytes, "bulk copy");
    for (const Copy& c : pieces) {
        reads(c.from, c.bytes);
        writes(c.to, c.bytes);
        Unseen unseen;
        memory().check_range(c.to, c.bytes, "bulk copy");
        if (!add) poison(c.to, c.bytes);     // neither what was there nor what comes
    }
    Unseen unseen;
    Gang& gang = *current->gang;
    gang.bulks.push_back({current, current->bulk_groups, add, false, false, std::move(pieces), {}});
    for (unsigned steps = settings.seed ? gang.random.below(3) : 0; steps; steps--) gang.advance(gang.bulks.size() - 1);
}
inline void bulk(void* to, uint32_t from, int bytes, bool add) {
    if (from % 16 || (uintptr_t)to % 16 || bytes % 16)
        fail("misaligned bulk copy of %d bytes: from shared address %08x, to %p", bytes, from, to);
    bulk({{to, shared_pointer(from), bytes, bytes}}, add);
}
inline void bulk_store(void* to, uint32_t from, int bytes) { bulk(to, from, bytes, false); }
inline void bulk_add(float* to, uint32_t from, int bytes) { bulk(to, from, bytes, true); }
template <int RANK> void tma_store(const CUtensorMap* map, uint32_t from, const int (&c)[RANK], bool add = false) {
    check_tensor(*map, from, RANK, "TMA store");
    if (add && map->element != 4) fail("TMA reduction: emulated of fp32 only");
    std::vector<Copy> pieces;
    for_box<RANK>(*map, from, std::to_array(c), [&](uint32_t address, char* to, int n) {
        if (n) pieces.push_back({to, shared_pointer(address), n, n});
    });
    bulk(std::move(pieces), add);
}
inline void bulk_commit() {
    Unseen unseen;
    current->bulk_groups++;
}
// Until all but the last `left` groups of this thread are done, or have at least read.
inline void bulk_wait_for(size_t left, bool written) {
    std::vector<Copy> read, wrote;
    {
        Unseen unseen;
        Gang& gang = *current->gang;
        for (std::vector<size_t> open;; open.clear()) {
            for (size_t i = 0; i < gang.bulks.size(); i++)
                if (Bulk& b = gang.bulks[i]; b.by == current && b.group + left < current->bulk_groups) {
                    if (!b.released) read.insert(read.end(), b.pieces.begin(), b.pieces.end());
                    b.released = true;
                    if (written || !b.has_read) open.push_back(i);
                }
            if (open.empty()) break;
            const size_t i = open[settings.seed ? gang.random.below(open.size()) : 0];
            const Bulk& b = gang.bulks[i];
            if (b.has_read) wrote.insert(wrote.end(), b.pieces.begin(), b.pieces.end());         // its last step
            gang.advance(i);
        }
    }
    for (const Copy& c : read) reads(c.from, c.bytes);       // until here nobody else may have touched it
    for (const Copy& c : wrote) writes(c.to, c.bytes);
}
template <int LEFT> void bulk_wait() { bulk_wait_for(LEFT, true); }
template <int LEFT = 0> void bulk_wait_read() { bulk_wait_for(LEFT, false); }

// ---- wgmma ----------------------------------------------------------------------------------------------------------
// An operand in shared memory, as its 64-bit descriptor tells: address, two offsets and swizzle s. Number (mn,k) lies,
//   K-major    in row mn of 16 << s bytes; groups of 8 rows are `stride` apart, and without swizzle, columns of 16
//              bytes `leading`
//   MN-major   in row k; groups of 8 rows are `stride` apart, rows' ends and their continuations `leading`; without
//              swizzle the two change places
struct Operand {
    uint32_t address, leading, stride;
    int swizzle;
    Operand() = default;
    Operand(uint64_t descriptor) {
        const auto field = [&](int from) { return uint32_t(descriptor >> from & 0x3fff) << 4; };
        const Block& block = *current->block;
        address = field(0) | (block.first + block.rank) << 24;
        leading = field(16);
        stride = field(32);
        swizzle = (4 - int(descriptor >> 62)) % 4;           // 1: 128 bytes, 2: 64, 3: 32
        if (descriptor >> 49 & 7) fail("wgmma: descriptors with a base offset are not emulated");
    }
    uint32_t at(bool mn_major, int mn, int k) const {
        const int row = 16 << swizzle, numbers = row / 2;
        uint32_t offset;
        if (mn_major && swizzle) offset = mn / numbers * leading + k / 8 * stride + k % 8 * row + mn % numbers * 2;
        else if (mn_major) offset = mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2;
        else if (swizzle) offset = mn / 8 * stride + mn % 8 * row + k * 2;
        else offset = mn / 8 * stride + mn % 8 * 16 + k / 8 * leading + k % 8 * 2;
        return swizzled(address + offset, swizzle);
    }
};
struct WarpgroupLane {
    float* d;
    std::array<uint32_t, 4> a;
    uint64_t a_descriptor, b_descriptor;
    int scale_d;
};
// D (64,N) = A (64,16) B (16,N) + D, or without D if scale_d is 0. A warp computes 16 rows; a lane holds of them
// numbers (l / 4 + 8 (q / 2 % 2), q / 4 * 8 + l % 4 * 2 + q % 2), and of A, if it is in registers, what mma's lanes do.
template <int N>
void multiply(const std::array<WarpgroupLane, 32>& lanes, int first, const char* windows, const Operand* A,
              const Operand& B, bool a_transposed, bool b_transposed) {
    float a[16][16];
    Row b[16][N / 8], d[16][N / 8];
    const auto number = [&](uint32_t address) {
        uint16_t x;
        memcpy(&x, windows + (address >> 24) * WINDOW + (address & 0xffffff), sizeof x);
        return from_bf16(x);
    };
    for (int k = 0; k < 16; k++) {
        for (int i = 0; i < 16; i++)
            a[i][k] = A ? number(A->at(a_transposed, first + i, k))
                        : half_of(lanes[i % 8 * 4 + k % 8 / 2].a[i / 8 + k / 8 * 2], k % 2);
        for (int n = 0; n < N; n++) b[k][n / 8][n % 8] = number(B.at(b_transposed, n, k));
    }
    const auto each = [&](auto f) {          // numbers that lanes hold, and the same in d
        for (int l = 0; l < 32; l++)
            for (int q = 0; q < N / 2; q++) f(lanes[l].d[q], d[l / 4 + q / 2 % 2 * 8][q / 4], l % 4 * 2 + q % 2);
    };
    each([&](float held, Row& row, int i) { row[i] = lanes[0].scale_d ? held : 0; });
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < N / 8; n++) d[i][n] += a[i][k] * b[k][n];
    each([](float& held, const Row& row, int i) { held = row[i]; });
}
inline void run_all(std::vector<Task>& tasks) {
    for (const Task& task : tasks) task();
    tasks.clear();
}
// Calls f(p) for the pieces of 16 bytes that a warp reads of the operands; lanes of `lanes` take them in turn.
template <typename F>
void each_row(const Operand* A, const Operand& B, bool a_transposed, bool b_transposed, int first, int N, int lane,
              int lanes, F f) {
    const auto rows = [&](const Operand& o, bool mn_major, int begin, int size) {
        const int across = mn_major ? 16 : size, along = mn_major ? size / 8 : 2;        // pieces lie along mn, or k
        for (int i = lane; i < across * along; i += lanes) {
            const int piece = i / across * 8, row = i % across;
            f(shared_pointer(mn_major ? o.at(true, begin + piece, row) : o.at(false, begin + row, piece)));
        }
    };
    if (A) rows(*A, a_transposed, first, 16);
    rows(B, b_transposed, 0, N);
}
template <int N, bool A_SHARED>
void wgmma(float (&d)[N / 2], const uint32_t* registers, uint64_t a, uint64_t b, int scale_d, bool a_transposed,
           bool b_transposed, Place place) {
    needs("wgmma", 90, 90);
    const int threads = current->block->threads, first = current->warp->index % 4 * 16;
    if (threads % 128) fail("wgmma: a block of %d threads is not whole warpgroups", threads);
    WarpgroupLane lane = {d, {}, a, b, scale_d};
    if (!A_SHARED) memcpy(&lane.a, registers, sizeof lane.a);
    const Operand A = A_SHARED ? Operand(a) : Operand(), B(b);
    if (TSAN)
        each_row(A_SHARED ? &A : nullptr, B, a_transposed, b_transposed, first, N, current->lane, 32,
                 [](const void* p) { reads(p, 16); });
    whole_warp("wgmma.mma_async", place, &lane, [&](WarpgroupLane* const* given) {
        Warp& warp = *current->warp;
        std::array<WarpgroupLane, 32> lanes;
        for (int l = 0; l < 32; l++) {
            lanes[l] = *given[l];
            if (lanes[l].a_descriptor != a || lanes[l].b_descriptor != b || lanes[l].scale_d != scale_d)
                fail("wgmma: lanes disagree on the operands");
        }
        if (Watch& watch = current->gang->watch; watch.found(current))
            each_row(A_SHARED ? &A : nullptr, B, a_transposed, b_transposed, first, N, 0, 1,
                     [&](const void* p) { watch.check(p, 16, "wgmma"); });
        if (settings.strict && !warp.fenced) fail("wgmma without a wgmma.fence since the last wgmma.wait_group");
        const char* windows = current->gang->ground->windows;
        warp.products.push_back([=] {
            multiply<N>(lanes, first, windows, A_SHARED ? &A : nullptr, B, a_transposed, b_transposed);
        });
        if (settings.seed && current->gang->random.below(2)) {               // all so far is done at once, else late
            for (std::vector<Task>& group : warp.groups) run_all(group);
            run_all(warp.products);
        }
    });
}
template <int N>
void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int scale_d, bool a_transposed = false,
              bool b_transposed = false, EMU_PLACE) {
    wgmma<N, true>(d, nullptr, a, b, scale_d, a_transposed, b_transposed, place);
}
template <int N>
void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int scale_d, bool b_transposed = false,
              EMU_PLACE) {
    wgmma<N, false>(d, a, 0, b, scale_d, false, b_transposed, place);
}
inline void wgmma_fence(EMU_PLACE) {
    whole_warp("wgmma.fence", place, (char*)nullptr, [](auto) { current->warp->fenced = true; });
}
EMU_UNSEEN inline Warp* warpgroup() { return &current->block->warps[current->warp->index / 4 * 4]; }
EMU_UNSEEN inline void* group_sync(size_t group) { return &warpgroup()->group_sync[group % 8]; }
inline void wgmma_commit(EMU_PLACE) {
    size_t group;
    { Unseen unseen; group = current->warp->committed(); }
    release(group_sync(group));
    whole_warp("wgmma.commit_group", place, (char*)nullptr, [](auto) {
        current->warp->groups.push_back(std::exchange(current->warp->products, {}));
        for (int i = 0; i < 4; i++) current->gang->make_ready(warpgroup()[i].waiting);
    });
}
// A wgmma is one operation of four warps: who waits for it waits until the others have issued it too, and then it is
// done for all of them.
template <int LEFT> void wgmma_wait(EMU_PLACE) {
    size_t groups;                           // that are to be done
    {
        Unseen unseen;
        Warp& warp = *current->warp;
        groups = std::max<size_t>(warp.committed(), LEFT) - LEFT;
        for (int i = 0; i < 4; i++)
            while (warpgroup()[i].committed() < groups) {
                warp.waiting.push_back(current);
                current->gang->wait("wgmma.wait_group, for other warps of the warpgroup", place);
            }
    }
    whole_warp("wgmma.wait_group", place, (char*)nullptr, [groups](auto) {
        current->warp->fenced = false;
        for (int i = 0; i < 4; i++)
            for (Warp& warp = warpgroup()[i]; warp.groups_done < groups; warp.groups_done++) {
                run_all(warp.groups.front());
                warp.groups.pop_front();
            }
    });
    if (groups) acquire(group_sync(groups - 1));
}
}  // namespace emu
