// emu_host.h - device heap, streams, events, graphs, launches: the host side of the CUDA runtime.
#pragma once
#include "emu_core.h"
#include <chrono>

#define CUDART_VERSION 13000
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
    cudaErrorNotReady = 600, cudaErrorNotSupported = 801, cudaErrorStreamCaptureUnsupported = 900 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive, cudaStreamCaptureStatusInvalidated };
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0, cudaHostRegisterDefault = 0 };

namespace emu {
// --------------------------------------------------------------------------------------------------------- device heap
// a sorted vector: MemorySanitizer cannot see into libstdc++'s std::map
template <class V> struct FlatMap {
    std::vector<std::pair<char*, V>> v;
    using It = typename std::vector<std::pair<char*, V>>::iterator;
    It begin() { return v.begin(); }
    It end() { return v.end(); }
    It upper_bound(const void* k) { It i = v.begin(), e = v.end(); while (i < e) { It m = i + (e - i) / 2; if ((const void*)m->first > k) e = m; else i = m + 1; } return i; }
    It find(const void* k) { It i = upper_bound(k); return i != v.begin() && (i - 1)->first == k ? i - 1 : v.end(); }
    size_t count(const void* k) { return find(k) != v.end(); }
    V& operator[](const void* k) { It i = upper_bound(k); if (i != v.begin() && (i - 1)->first == k) return (i - 1)->second; return v.insert(i, {(char*)k, V{}})->second; }
    void erase(const void* k) { It i = find(k); if (i != v.end()) v.erase(i); }
};
struct Alloc { char* p; size_t n, pages; Loc loc; bool freed; size_t pad = 0; };
struct Heap {
    char* base = nullptr; size_t cap = 64ull << 30, top = 0, used = 0, limit = (size_t)env("EMU_MEM_MB", 8192) << 20;
    FlatMap<Alloc> live; FlatMap<size_t> pinned;
    int open = 0; std::recursive_mutex mu;
    void init() {
        if (base) return;
        base = (char*)mmap(nullptr, cap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) { perror("mmap"); abort(); }
        install_segv();
    }
    static void segv(int sig, siginfo_t* si, void*) {
        char b[512]; char* a = (char*)si->si_addr; int k;
        Heap& h = heap();
        if (a >= h.base && a < h.base + h.cap) {
            const char* where = "outside every allocation"; char w[256];
            auto it = h.live.upper_bound(a);
            if (it != h.live.begin()) { --it; auto& A = it->second;
                snprintf(w, sizeof w, "at offset %zd of the %zu bytes %s at %s:%d", a - A.p, A.n, A.freed ? "(freed!) allocated" : "allocated", A.loc.file, A.loc.line); where = w; }
            k = snprintf(b, sizeof b, "\nEMU ERROR: %s touches device memory %s\n", cur ? "kernel" : "HOST code", where);
        } else k = snprintf(b, sizeof b, "\nEMU ERROR: signal %d at address %p (in %s)%s\n", sig, (void*)a, cur ? "a kernel" : "host code",
                            a == nullptr && cur ? ": a misaligned vector access or a null pointer" : "");
        (void)!write(2, b, k);
        if (cur) { std::string s = kname(*cur_grid()); k = snprintf(b, sizeof b, "  in %s block (%u,%u,%u) thread (%u,%u,%u)\n", s.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z); (void)!write(2, b, k); }
        _exit(88);
    }
    void install_segv() {
#if !defined(EMU_ASAN) && !defined(EMU_TSAN) && !defined(EMU_MSAN)
        static char alt[65536];
        stack_t ss{}; ss.ss_sp = alt; ss.ss_size = sizeof alt; sigaltstack(&ss, nullptr);
        struct sigaction sa{}; sa.sa_sigaction = segv; sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &sa, nullptr); sigaction(SIGBUS, &sa, nullptr);
#endif
    }
    static Heap& heap() { static Heap* h = new Heap; return *h; }
    void* alloc(size_t n, Loc loc) {
        std::lock_guard l(mu); init();
        if (used + n > limit) return nullptr;
        size_t pages = (n + 256 + 4095) / 4096 * 4096;
        char* p = base + top; if (cfg.fence) { size_t pad = pages - (n + 15) / 16 * 16; p += pad; top += pages + 4096; return alloc_fence(p, n, pages, pad, loc); }
        top += pages + 4096;     // one guard page behind every allocation; addresses never reused
        if (top > cap) return nullptr;
        mprotect(p, pages, PROT_READ | PROT_WRITE);
        if (cfg.poison) memset(p, 0xff, n);
        memset(p + n, 0xA5, pages - n);
#ifdef EMU_ASAN
        __asan_poison_memory_region(p + n, pages - n);
#endif
#ifdef EMU_MSAN
        __msan_poison(p, n);
#endif
        if (cfg.hostcheck && !open) mprotect(p, pages, PROT_NONE);
        live[p] = {p, n, pages, loc, false, 0}; used += n;
        return p;
    }
    void* alloc_fence(char* p, size_t n, size_t pages, size_t pad, Loc loc) {   // the end of the buffer is the end of a page
        mprotect(p - pad, pages, PROT_READ | PROT_WRITE); memset(p - pad, 0xff, pages); memset(p + n, 0xA5, pages - pad - n);
        if (cfg.hostcheck && !open) mprotect(p - pad, pages, PROT_NONE);
        live[p] = {p, n, pages, loc, false, pad}; used += n; return p;
    }
    Alloc* find(const void* q) {
        auto it = live.upper_bound((char*)q);
        if (it == live.begin()) return nullptr;
        --it; Alloc& a = it->second;
        return (char*)q < a.p + a.n && !a.freed ? &a : nullptr;
    }
    bool device(const void* q) const { return base && (char*)q >= base && (char*)q < base + cap; }
    void check(Alloc& a) {
#ifndef EMU_ASAN
        for (size_t i = a.n; i < a.pages - a.pad; i++) if ((unsigned char)a.p[i] != 0xA5)
            fail("write past the end of a device allocation: offset %zu of %zu bytes allocated at %s:%d", i, a.n, a.loc.file, a.loc.line);
#else
        (void)a;
#endif
    }
    void check_all() { std::lock_guard l(mu); enter(); for (auto& [p, a] : live) if (!a.freed) check(a); leave(); }
    bool free(void* q) {
        std::lock_guard l(mu);
        auto it = live.find((char*)q); if (it == live.end() || it->second.freed) return false;
        Alloc& a = it->second; enter(); check(a); leave();
        a.freed = true; used -= a.n; madvise(a.p - a.pad, a.pages, MADV_DONTNEED); mprotect(a.p - a.pad, a.pages, PROT_NONE);
        return true;
    }
    void enter() { std::lock_guard l(mu); if (open++ == 0 && cfg.hostcheck) prot(PROT_READ | PROT_WRITE); }
    void leave() { std::lock_guard l(mu); if (--open == 0 && cfg.hostcheck) prot(PROT_NONE); }
    void prot(int p) { for (auto& [k, a] : live) if (!a.freed) mprotect(a.p - a.pad, a.pages, p); }
    // a copy's or kernel argument's range must lie inside one allocation
    void range(const void* q, size_t n, const char* what) {
        if (!device(q)) return;
        Alloc* a = find(q);
        if (!a) fail("%s: %p is device memory but in no live allocation", what, q);
        if ((char*)q + n > a->p + a->n) fail("%s: %zu bytes at offset %zu overrun the %zu bytes allocated at %s:%d", what, n, (size_t)((char*)q - a->p), a->n, a->loc.file, a->loc.line);
    }
};
inline Heap& heap() { return Heap::heap(); }
struct DeviceSection { DeviceSection() { heap().enter(); } ~DeviceSection() { heap().leave(); } };

// ------------------------------------------------------------------------------------------------------- run one kernel
struct Stat { double s = 0; long n = 0; };
inline std::map<std::string, Stat> g_stats;
inline void print_stats() {
    double t = 0; std::vector<std::pair<double, std::string>> v;
    for (auto& [k, s] : g_stats) { t += s.s; v.push_back({s.s, k}); }
    std::sort(v.rbegin(), v.rend());
    fprintf(stderr, "---- emulated kernels: %.3f s\n", t);
    for (auto& [s, k] : v) fprintf(stderr, "  %8.2f ms %6ld launches  %s\n", s * 1e3, g_stats[k].n, k.c_str());
}
struct GangPool { std::vector<std::unique_ptr<Gang>> v;
    std::unique_ptr<Gang> get() { if (v.empty()) return std::make_unique<Gang>(); auto g = std::move(v.back()); v.pop_back(); return g; }
    void put(std::unique_ptr<Gang> g) { v.push_back(std::move(g)); } };
inline GangPool& pool() { static thread_local GangPool p; return p; }

struct Kernel { Grid g; std::vector<std::pair<uint64_t, std::unique_ptr<Gang>>> early; };
inline std::vector<uint64_t> gang_order(const Grid& g, uint64_t ngangs) {
    std::vector<uint64_t> o(ngangs);
    for (uint64_t i = 0; i < ngangs; i++) o[i] = i;
    if (cfg.seed) { Rng r(cfg.seed * 31 + g.id); for (uint64_t i = ngangs; i > 1; i--) std::swap(o[i - 1], o[r.below((unsigned)i)]); }
    return o;
}
inline int gang_size(const Grid& g) {
    int total = g.grid.x * g.grid.y * g.grid.z, cl = g.cluster.x * g.cluster.y * g.cluster.z, t = g.block.x * g.block.y * g.block.z;
    return g.coop ? total : std::max(cl, std::min({cfg.gang * cl, 2048 / t / cl * cl, total}));
}
inline uint64_t gang_count(const Grid& g) { uint64_t t = uint64_t(g.grid.x) * g.grid.y * g.grid.z; int s = gang_size(g); return (t + s - 1) / s; }
inline int gang_blocks(const Grid& g, uint64_t i) { uint64_t t = uint64_t(g.grid.x) * g.grid.y * g.grid.z; int s = gang_size(g); return (int)std::min<uint64_t>(s, t - i * s); }
inline void start_early(Kernel& k) {                   // programmatic dependent launch: prologues run before the predecessor
    NoTsan nt;
    DeviceSection ds;
    int gs = gang_size(k.g); uint64_t ng = gang_count(k.g);
    auto o = gang_order(k.g, ng);
    for (uint64_t i = 0; i < ng && i < 4; i++) {
        auto g = pool().get(); g->park_ok = false;
        g->setup(k.g, o[i] * gs, gang_blocks(k.g, o[i])); g->park_ok = false;
        bool done = g->run();
        if (done) { pool().put(std::move(g)); g = nullptr; }
        k.early.push_back({o[i], std::move(g)});
    }
}
inline void run_kernel(Kernel& k) {
    auto t0 = std::chrono::steady_clock::now();
    {
        DeviceSection ds;
        hb_release(&k.g.id);
        for (auto& [i, g] : k.early) if (NoTsan nt; g) { g->unpark(); if (!g->run()) fail("parked twice"); }
        const int gs = gang_size(k.g);
        const uint64_t ng = gang_count(k.g);
        auto order = gang_order(k.g, ng);
        auto one = [&](uint64_t i) {
            for (auto& [e, g] : k.early) if (e == i) return;
            NoTsan nt; auto g = pool().get(); g->setup(k.g, i * gs, gang_blocks(k.g, i)); g->park_ok = true; g->run(); pool().put(std::move(g));
        };
#if defined(_OPENMP) && !defined(EMU_TSAN)
        int w = cfg.workers ? cfg.workers : omp_get_max_threads();
        if (w > 1 && ng > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(w)
            for (uint64_t i = 0; i < ng; i++) one(order[i]);
        } else
#endif
            for (uint64_t i = 0; i < ng; i++) one(order[i]);
        { NoTsan nt; for (auto& [i, g] : k.early) if (g) pool().put(std::move(g)); k.early.clear(); }
        hb_acquire(&k.g);
        { NoTsan nt; Gang::bury(0); }
    }
    if (cfg.stats) {
        static bool once = (atexit(print_stats), true); (void)once;
        Stat& s = g_stats[kname(k.g)]; s.n++; s.s += std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    }
}

// -------------------------------------------------------------------------------------------- streams, events, graphs
struct Event { uint64_t version = 0, done = 0; double when = 0; void* capture = nullptr; };
struct Op {
    uint64_t seq = 0; std::function<void()> run; std::function<std::shared_ptr<Kernel>()> make; std::shared_ptr<Kernel> k;
    Event* rec = nullptr; Event* wait = nullptr; uint64_t ver = 0; bool kernel = false;   // kernel: a library's kernel, PDL may overlap it
};
inline Op op_run(std::function<void()> f) { Op o; o.run = std::move(f); return o; }
struct Graph { std::vector<Op> ops; };
struct Stream { std::deque<Op> q; bool blocking = true; Graph* cap = nullptr; bool cap_origin = false; };
struct Engine {
    std::vector<Stream*> streams; Stream def; uint64_t seq = 0, launches = 0; Rng rng{cfg.seed + 77}; std::recursive_mutex mu;
    Engine() { streams.push_back(&def); }
    Stream* get(void* s) { return s ? (Stream*)s : &def; }
    bool runnable(Stream* s) {
        if (s->q.empty()) return false;
        Op& o = s->q.front();
        if (o.wait && o.wait->done < o.ver) return false;
        if (s == &def) { for (auto* t : streams) if (t != s && t->blocking && !t->q.empty() && t->q.front().seq < o.seq) return false; }
        else if (s->blocking && !def.q.empty() && def.q.front().seq < o.seq) return false;
        return true;
    }
    void exec(Op& o, Op* next) {
        if (o.rec) { o.rec->done = std::max(o.rec->done, o.ver); o.rec->when = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); return; }
        if (o.wait) return;
        if (o.make && !o.k) o.k = o.make();
        if (o.make || o.kernel) {
            if (next && next->make && cfg.seed) {
                if (!next->k) next->k = next->make();
                if (next->k->g.pdl) start_early(*next->k);
            }
        }
        if (o.make) { run_kernel(*o.k); o.k.reset(); }
        else if (o.run) { DeviceSection ds; o.run(); }
    }
    void step(Stream* s) { Op o = std::move(s->q.front()); s->q.pop_front(); exec(o, s->q.empty() ? nullptr : &s->q.front()); }
    template <class P> void drain(P done) {
        if (done()) return;
        DeviceSection ds;
        while (!done()) {
            Stream* c[256]; int n = 0;
            for (auto* s : streams) if (runnable(s) && n < 256) c[n++] = s;
            if (!n) { if (done()) break; fail("streams cannot make progress: a wait on an event that is never recorded?"); }
            step(c[cfg.seed ? rng.below(n) : 0]);
        }
    }
    void sync(Stream* s) { std::lock_guard l(mu); if (s->cap) fail("synchronising a stream that is being captured");
        drain([&] { return s->q.empty() && (s != &def || all_blocking_empty()); }); if (cfg.seed) heap().check_all(); }
    bool all_blocking_empty() { for (auto* t : streams) if (t->blocking && !t->q.empty()) return false; return true; }
    void sync_all() { std::lock_guard l(mu); drain([&] { for (auto* t : streams) if (!t->q.empty()) return false; return true; }); heap().check_all(); }
    void push(Stream* s, Op o) {
        std::lock_guard l(mu);
        o.seq = ++seq;
        if (o.wait && o.wait->capture && !s->cap) { s->cap = (Graph*)o.wait->capture; }
        if (s->cap) { if (o.rec) o.rec->capture = s->cap; else if (!o.wait) s->cap->ops.push_back(std::move(o)); return; }
        if (o.rec) o.rec->capture = nullptr;
        s->q.push_back(std::move(o));
        if (!cfg.lazy) drain([&] { return s->q.empty(); });
    }
};
inline Engine& engine() { static Engine* e = new Engine; return *e; }
}  // namespace emu

// ------------------------------------------------------------------------------------------------------------ CUDA API
using cudaStream_t = emu::Stream*; using cudaEvent_t = emu::Event*; using cudaGraph_t = emu::Graph*; using cudaGraphExec_t = emu::Graph*;
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory" : "emulator error"; }
inline const char* cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
inline cudaError_t& emu_last() { static thread_local cudaError_t e = cudaSuccess; return e; }
inline cudaError_t emu_ret(cudaError_t e) { if (e) emu_last() = e; return e; }
inline cudaError_t cudaGetLastError() { auto e = emu_last(); emu_last() = cudaSuccess; return e; }
inline cudaError_t cudaPeekAtLastError() { return emu_last(); }

template <class T> cudaError_t cudaMalloc(T** p, size_t n, EMU_LOC_ARG) { *p = (T*)emu::heap().alloc(n, loc); return emu_ret(*p ? cudaSuccess : cudaErrorMemoryAllocation); }
inline cudaError_t cudaFree(void* p) { emu::engine().sync_all(); if (p && !emu::heap().free(p)) emu::fail("cudaFree(%p): not a live allocation", p); return cudaSuccess; }
template <class T> cudaError_t cudaMallocAsync(T** p, size_t n, cudaStream_t, EMU_LOC_ARG) { return cudaMalloc(p, n, loc); }
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
template <class T> cudaError_t cudaMallocHost(T** p, size_t n) { *p = (T*)aligned_alloc(4096, (n + 4095) / 4096 * 4096); if (emu::cfg.poison) memset(*p, 0xff, n); emu::heap().pinned[(char*)*p] = n; return cudaSuccess; }
template <class T> cudaError_t cudaHostAlloc(T** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
template <class T> cudaError_t cudaMallocManaged(T** p, size_t n, unsigned = 1) { return cudaMallocHost(p, n); }
inline cudaError_t cudaFreeHost(void* p) { emu::engine().sync_all(); emu::heap().pinned.erase((char*)p); free(p); return cudaSuccess; }
inline cudaError_t cudaHostRegister(void* p, size_t n, unsigned) { emu::heap().pinned[(char*)p] = n; return cudaSuccess; }
inline cudaError_t cudaHostUnregister(void* p) { emu::heap().pinned.erase((char*)p); return cudaSuccess; }
inline bool emu_pinned(const void* q) { auto& m = emu::heap().pinned; auto it = m.upper_bound((char*)q); if (it == m.begin()) return false; --it; return (char*)q < it->first + it->second; }

inline void emu_check_copy(const void* d, const void* s, size_t n, cudaMemcpyKind k) {
    auto& h = emu::heap(); h.range(d, n, "memcpy destination"); h.range(s, n, "memcpy source");
    bool dd = h.device(d), sd = h.device(s);
    if ((k == cudaMemcpyHostToDevice && (!dd || sd)) || (k == cudaMemcpyDeviceToHost && (dd || !sd)) || (k == cudaMemcpyDeviceToDevice && (!dd || !sd)))
        emu::fail("memcpy kind %d does not match the pointers (destination is %s, source is %s)", k, dd ? "device" : "host", sd ? "device" : "host");
}
inline cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t st = nullptr) {
    emu_check_copy(d, s, n, k);
    auto* S = emu::engine().get(st); auto& h = emu::heap();
    if (!S->cap && !h.device(s) && !emu_pinned(s)) {       // pageable source: staged at once
        auto buf = std::make_shared<std::vector<char>>((const char*)s, (const char*)s + n);
        emu::engine().push(S, emu::op_run([=] { memcpy(d, buf->data(), n); })); return cudaSuccess;
    }
    emu::engine().push(S, emu::op_run([=] { memmove(d, s, n); }));
    if (!S->cap && !h.device(d) && !emu_pinned(d)) emu::engine().sync(S);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { auto e = cudaMemcpyAsync(d, s, n, k, nullptr); emu::engine().sync(&emu::engine().def); return e; }
inline cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t st = nullptr) { emu::heap().range(d, n, "memset"); emu::engine().push(emu::engine().get(st), emu::op_run([=] { memset(d, v, n); })); return cudaSuccess; }
inline cudaError_t cudaMemset(void* d, int v, size_t n) { return cudaMemsetAsync(d, v, n, nullptr); }
inline cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t hgt, cudaMemcpyKind k, cudaStream_t st = nullptr) {
    emu_check_copy(d, s, hgt ? (hgt - 1) * std::min(dp, sp) + w : 0, k);
    emu::engine().push(emu::engine().get(st), emu::op_run([=] { for (size_t i = 0; i < hgt; i++) memmove((char*)d + i * dp, (const char*)s + i * sp, w); })); return cudaSuccess;
}
template <class T> cudaError_t cudaMemcpyToSymbol(T& sym, const void* s, size_t n, size_t off = 0, cudaMemcpyKind = cudaMemcpyHostToDevice) { emu::engine().sync_all(); memcpy((char*)&sym + off, s, n); return cudaSuccess; }
template <class T> cudaError_t cudaMemcpyFromSymbol(void* d, T& sym, size_t n, size_t off = 0, cudaMemcpyKind = cudaMemcpyDeviceToHost) { emu::engine().sync_all(); memcpy(d, (char*)&sym + off, n); return cudaSuccess; }
template <class T> cudaError_t cudaGetSymbolAddress(void** p, T& sym) { *p = (void*)&sym; return cudaSuccess; }

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) { *s = new emu::Stream; (*s)->blocking = !(f & cudaStreamNonBlocking); emu::engine().streams.push_back(*s); return cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int) { return cudaStreamCreateWithFlags(s, f); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { emu::engine().sync(emu::engine().get(s)); return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { emu::engine().sync_all(); return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { emu::engine().sync(s); auto& v = emu::engine().streams; v.erase(std::find(v.begin(), v.end(), s)); delete s; return cudaSuccess; }
inline cudaError_t cudaStreamQuery(cudaStream_t st) { auto& e = emu::engine(); auto* s = e.get(st); if (!s->q.empty() && e.runnable(s)) e.step(s); return s->q.empty() ? cudaSuccess : cudaErrorNotReady; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = new emu::Event; return cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { emu::engine().sync_all(); delete e; return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr) { emu::Op o; o.rec = e; auto* S = emu::engine().get(s); if (!S->cap) e->version++; o.ver = e->version; emu::engine().push(S, std::move(o)); return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) { emu::Op o; o.wait = e; o.ver = e->version; emu::engine().push(emu::engine().get(s), std::move(o)); return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) { emu::engine().drain([=] { return e->done >= e->version; }); return cudaSuccess; }
inline cudaError_t cudaEventQuery(cudaEvent_t e) { return e->done >= e->version ? cudaSuccess : cudaErrorNotReady; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { cudaEventSynchronize(b); *ms = float((b->when - a->when) * 1e3); return cudaSuccess; }
using cudaHostFn_t = void (*)(void*);
inline cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* u) { emu::engine().push(emu::engine().get(s), emu::op_run([=] { f(u); })); return cudaSuccess; }

inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) { if (!s) return emu_ret(cudaErrorStreamCaptureUnsupported); s->cap = new emu::Graph; s->cap_origin = true; return cudaSuccess; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) { *g = s->cap; for (auto* t : emu::engine().streams) if (t->cap == *g) t->cap = nullptr; return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* st) { *st = emu::engine().get(s)->cap ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone; return cudaSuccess; }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* x, cudaGraph_t g, unsigned long long = 0) { *x = new emu::Graph(*g); return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { emu::DeviceSection ds; for (auto& o : x->ops) emu::engine().push(emu::engine().get(s), o); return cudaSuccess; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { emu::engine().sync_all(); delete g; return cudaSuccess; }

struct cudaDeviceProp { char name[256]; size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor; int regsPerBlock, warpSize, maxThreadsPerBlock, multiProcessorCount, major, minor, l2CacheSize, maxThreadsPerMultiProcessor, regsPerMultiprocessor, ECCEnabled; int maxGridSize[3]; };
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = {}; strcpy(p->name, "CUDA emulator"); p->totalGlobalMem = emu::heap().limit; p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = emu::kSmemMax; p->sharedMemPerMultiprocessor = 228 << 10; p->regsPerBlock = 65536; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->multiProcessorCount = emu::cfg.sms; p->major = 9; p->minor = 0; p->l2CacheSize = 50 << 20; p->maxThreadsPerMultiProcessor = 2048; p->regsPerMultiprocessor = 65536; return cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrL2CacheSize = 38, cudaDevAttrMemoryClockRate = 36, cudaDevAttrGlobalMemoryBusWidth = 37 };
inline cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) { *v = a == cudaDevAttrMultiProcessorCount ? emu::cfg.sms : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)emu::kSmemMax : a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrL2CacheSize ? 50 << 20 : a == cudaDevAttrMemoryClockRate ? 1000000 : a == cudaDevAttrGlobalMemoryBusWidth ? 64 : 0; return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* n) { *n = (int)emu::env("EMU_DEVICES", 1); return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
inline cudaError_t cudaMemGetInfo(size_t* f, size_t* t) { *t = emu::heap().limit; *f = *t - emu::heap().used; return cudaSuccess; }
inline cudaError_t cudaDeviceReset() { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9, cudaFuncAttributeNonPortableClusterSizeAllowed = 14 };
inline cudaError_t cudaFuncGetName(const char** name, const void*) { *name = "a kernel"; return cudaSuccess; }
struct cudaFuncAttributes { int binaryVersion, numRegs; size_t localSizeBytes, sharedSizeBytes; };
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, F*) { *a = {90, 0, 0, 0}; return cudaSuccess; }
inline emu::FlatMap<size_t>& emu_dynmax() { static emu::FlatMap<size_t> m; return m; }
template <class F> cudaError_t cudaFuncSetAttribute(F* f, cudaFuncAttribute a, int v) { if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if ((size_t)v > emu::kSmemMax) return emu_ret(cudaErrorInvalidValue); emu_dynmax()[(const void*)f] = v; } return cudaSuccess; }
template <class F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, F*, int, size_t) { *n = 1; return cudaSuccess; }

enum cudaLaunchAttributeID { cudaLaunchAttributeIgnore = 0, cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4, cudaLaunchAttributeProgrammaticStreamSerialization = 6, cudaLaunchAttributePriority = 8 };
union cudaLaunchAttributeValue { char pad[64]; int cooperative; int programmaticStreamSerializationAllowed; int priority; struct { unsigned x, y, z; } clusterDim; };
struct cudaLaunchAttribute { cudaLaunchAttributeID id; char pad[4]; cudaLaunchAttributeValue val; };
struct cudaLaunchConfig_t { dim3 gridDim, blockDim; size_t dynamicSmemBytes; cudaStream_t stream; cudaLaunchAttribute* attrs; unsigned numAttrs; };

namespace emu {
template <class... P> inline void check_arg(const P&...) {}
template <class T> inline void check_arg(T* const& p) { if (p && heap().device(p) && !heap().find(p) && !heap().find((const char*)p - 1)) fail("kernel argument %p points into no live device allocation", (const void*)p); }
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*k)(P...), A&&... a) {
    emu::Grid g; g.grid = c->gridDim; g.block = c->blockDim; g.dyn = c->dynamicSmemBytes; g.fn = (const void*)k;
    for (unsigned i = 0; i < c->numAttrs; i++) {
        auto& t = c->attrs[i];
        if (t.id == cudaLaunchAttributeClusterDimension) g.cluster = {t.val.clusterDim.x, t.val.clusterDim.y, t.val.clusterDim.z};
        if (t.id == cudaLaunchAttributeCooperative) g.coop = t.val.cooperative;
        if (t.id == cudaLaunchAttributeProgrammaticStreamSerialization) g.pdl = t.val.programmaticStreamSerializationAllowed;
    }
    const unsigned nt = g.block.x * g.block.y * g.block.z, cl = g.cluster.x * g.cluster.y * g.cluster.z;
    auto& dm = emu_dynmax(); size_t lim = dm.count(g.fn) ? dm[g.fn] : 49152;
    if (!nt || nt > 1024 || !g.grid.x || !g.grid.y || !g.grid.z || g.grid.y > 65535 || g.grid.z > 65535 || g.block.z > 64) emu::fail("launch of %s: bad grid (%u,%u,%u) or block (%u,%u,%u)", emu::kname(g).c_str(), g.grid.x, g.grid.y, g.grid.z, g.block.x, g.block.y, g.block.z);
    if (g.dyn > lim) emu::fail("launch of %s: %zu bytes of dynamic shared memory, limit %zu (cudaFuncSetAttribute?)", emu::kname(g).c_str(), g.dyn, lim);
    if (cl > 8 || g.grid.x % g.cluster.x || g.cluster.y != 1 || g.cluster.z != 1) emu::fail("launch of %s: bad cluster", emu::kname(g).c_str());
    std::tuple<std::decay_t<P>...> args(std::forward<A>(a)...);
    std::apply([](auto&... x) { (emu::check_arg(x), ...); }, args);
    g.call = [k, args] { std::apply(k, args); };
    emu::Op o;
    o.make = [g]() { auto s = std::make_shared<emu::Kernel>(); s->g = g; s->g.id = ++emu::engine().launches; return s; };
    emu::engine().push(emu::engine().get(c->stream), std::move(o));
    return cudaSuccess;
}
