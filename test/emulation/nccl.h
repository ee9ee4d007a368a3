/* nccl.h -- NCCL for processes of one machine, each of which emulates a device of its own.

   A communicator is memory that its ranks share: for each ordered pair of them a box that holds one piece of a message.
   It has no name, so nothing is left of it however its ranks end: the id names a descriptor of the process that made
   it, which must live until all have joined. Each rank holds a lock there, which the system opens when the rank dies.
   Every call is sends and receives, made together with those of its group: a gather sends to all what is one's own; a
   sum gets the numbers of all, and adds them in the order of the ranks, each sum rounded to the type. As with NCCL
     order     calls of one communicator run one after another, on whatever streams; a group on several streams waits
               for all of them, and they for it
     waiting   a stream waits until others have taken what it sends; two ranks that send first, ungrouped, wait forever
     errors    a wrong argument is the call's result, a rank that died ncclCommGetAsyncError's
   and more strictly: messages must agree in count and type, empty ones too; what a call writes, no other of its group
   may use; memory must be the device's. A mistake, a rank that died, or one that does not come for EMU_NCCL_TIMEOUT
   seconds, ends the process that waits, with a message. Streams go on while their host waits for one or asks after it,
   not while it waits for other processes by other means.
   It lacks sums of float16, FP8, and what is not below. */
#pragma once
#include "cuda_bf16.h"
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>

#define NCCL_MAJOR 2
#define NCCL_MINOR 28
#define NCCL_PATCH 9
#define NCCL_VERSION_CODE 22809
#define NCCL_UNIQUE_ID_BYTES 128
enum ncclResult_t {
    ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclSystemError = 2, ncclInternalError = 3, ncclInvalidArgument = 4,
    ncclInvalidUsage = 5, ncclRemoteError = 6, ncclInProgress = 7
};
enum ncclDataType_t {
    ncclInt8 = 0, ncclChar = 0, ncclUint8 = 1, ncclInt32 = 2, ncclInt = 2, ncclUint32 = 3, ncclInt64 = 4,
    ncclUint64 = 5, ncclFloat16 = 6, ncclHalf = 6, ncclFloat32 = 7, ncclFloat = 7, ncclFloat64 = 8, ncclDouble = 8,
    ncclBfloat16 = 9
};
enum ncclRedOp_t { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3, ncclAvg = 4 };
struct ncclUniqueId { char internal[NCCL_UNIQUE_ID_BYTES]; };
inline const char* ncclGetErrorString(ncclResult_t e) {
    constexpr const char* texts[] = {
        "no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument",
        "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
    return (unsigned)e < std::size(texts) ? texts[e] : "unknown result code";
}
inline ncclResult_t ncclGetVersion(int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }

namespace emu {
constexpr struct { const char* name; size_t size; } NCCL_TYPES[] = {
    {"int8", 1}, {"uint8", 1}, {"int32", 4}, {"uint32", 4}, {"int64", 8}, {"uint64", 8}, {"float16", 2}, {"float32", 4},
    {"float64", 8}, {"bfloat16", 2}};
constexpr const char* NCCL_SUMS[] = {"sum", "product", "maximum", "minimum", "average"};

// ---- what ranks share -----------------------------------------------------------------------------------------------
struct Member { std::atomic<int> pid, size; std::atomic<bool> left; };   // size: how many ranks this one expects
struct Box {
    std::atomic<uint64_t> put, taken;        // pieces
    char what[112], piece[64 << 10];         // what: the message, in words; both sides must mean the same
};
struct Backoff {                             // between looks at what others may have done
    int looks = 0;
    bool operator()() { return looks++ < 50 ? sched_yield(), false : (usleep(200), true); }      // whether it was long
};
}  // namespace emu
struct ncclComm {
    int rank, size, file;
    emu::Member* members = nullptr;
    bool aborted = false;
    emu::Event order{};                      // the last call
    std::map<cudaStream_t, emu::Event> joined{};             // streams of a group, to its first

    size_t front() const { return (size * sizeof(emu::Member) + 4095) / 4096 * 4096; }
    size_t bytes() const { return front() + size * size * sizeof(emu::Box); }
    emu::Box& box(int from, int to) const { return ((emu::Box*)((char*)members + front()))[from * size + to]; }
    struct flock lock(int whose) const {
        struct flock l = {};
        l.l_type = F_WRLCK;
        l.l_whence = SEEK_SET;
        l.l_start = whose;
        l.l_len = 1;
        return l;
    }
    bool lives(int other) const {
        struct flock l = lock(other);
        if (fcntl(file, F_OFD_GETLK, &l)) emu::fail("NCCL: cannot ask for a lock: %s", strerror(errno));
        return l.l_type != F_UNLCK || other == rank;
    }
    bool died(int other) const { return members[other].pid && !lives(other) && !members[other].left; }
    // Dies of a wait in vain: for a rank that was gone before a last look at what it had done, or for too long.
    void check_wait(int other, bool lives, double seconds, const char* what) const {
        const emu::Member& m = members[other];
        if (m.pid && !lives)
            emu::fail("NCCL: rank %d waits for rank %d to %s, but that process, %d, has %s", rank, other, what,
                      (int)m.pid, m.left ? "left" : "died");
        if (seconds > emu::settings.nccl_timeout)
            emu::fail("NCCL: rank %d has waited %.0f s for rank %d to %s", rank, seconds, other, what);
    }
};
using ncclComm_t = ncclComm*;

inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    struct stat s;
    const int file = memfd_create("nccl", MFD_CLOEXEC);
    if (file < 0 || fstat(file, &s)) return ncclSystemError;
    *id = {};
    snprintf(id->internal, sizeof id->internal, "%d %d %llu", (int)getpid(), file, (unsigned long long)s.st_ino);
    return ncclSuccess;
}
inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
    int pid, descriptor;
    unsigned long long number;
    struct stat s;
    if (size < 1 || rank < 0 || rank >= size) return ncclInvalidArgument;
    if (id.internal[sizeof id - 1] || sscanf(id.internal, "%d %d %llu", &pid, &descriptor, &number) != 3)
        return ncclInvalidArgument;
    const std::string name = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(descriptor);
    const int file = open(name.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0 || fstat(file, &s) || s.st_ino != number)
        emu::fail("ncclCommInitRank: rank %d finds nothing at the id of process %d; has that ended?", rank, pid);
    ncclComm* const c = *comm = new ncclComm{rank, size, file};
    struct flock mine = c->lock(rank);
    if (fcntl(file, F_OFD_SETLK, &mine)) emu::fail("ncclCommInitRank: there is a rank %d already", rank);
    if ((size_t)s.st_size < c->bytes() && ftruncate(file, c->bytes())) return ncclSystemError;
    c->members = (emu::Member*)mmap(nullptr, c->bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (c->members == MAP_FAILED) return ncclSystemError;
    c->members[rank].size = size;
    c->members[rank].pid = getpid();
    const double begin = emu::now();
    for (int r = 0; r < size; r++) {
        for (emu::Backoff wait; !c->members[r].pid; wait()) c->check_wait(r, true, emu::now() - begin, "join");
        if (c->members[r].size != size)
            emu::fail("ncclCommInitRank: rank %d joins %d ranks, rank %d joins %d", rank, size, r,
                      (int)c->members[r].size);
    }
    if (pid == getpid()) close(descriptor);
    emu::streams().random = emu::Random(emu::settings.seed + 77 + 1000 * rank);              // an order of its own
    return ncclSuccess;
}
inline ncclResult_t ncclCommAbort(ncclComm_t c) {            // what is queued still names it, and will do nothing
    if (!c) return ncclInvalidArgument;
    c->aborted = true;
    munmap(c->members, c->bytes());
    close(c->file);
    return ncclSuccess;
}
inline ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (!c) return ncclInvalidArgument;
    emu::streams().wait_for_all();
    c->members[c->rank].left = true;
    return ncclCommAbort(c), delete c, ncclSuccess;
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t* error) {
    if (!c) return ncclInvalidArgument;
    *error = ncclSuccess;
    for (int r = 0; r < c->size; r++) if (c->died(r)) *error = ncclRemoteError;
    return ncclSuccess;
}

// ---- calls ----------------------------------------------------------------------------------------------------------
namespace emu {
struct Call {
    enum Kind { SEND, RECEIVE, GATHER, BROADCAST, REDUCE, SCATTER } kind;
    const char* from;
    char* to;
    size_t count;
    ncclDataType_t type;
    int sum, peer;                           // peer: or root
    ncclComm* comm;
    cudaStream_t stream;

    size_t bytes() const { return count * NCCL_TYPES[type].size; }
    size_t read() const { return from ? bytes() * (kind == SCATTER ? comm->size : 1) : 0; }
    size_t written() const { return to ? bytes() * (kind == GATHER ? comm->size : 1) : 0; }
    bool in_place() const {                  // as NCCL allows it
        return to == from + ((kind == SCATTER) - (kind == GATHER)) * comm->rank * (ptrdiff_t)bytes();
    }
    std::string what() const {
        const std::string n = std::to_string(count) + " of " + NCCL_TYPES[type].name, by = NCCL_SUMS[sum];
        switch (kind) {
        case GATHER: return n + " for ncclAllGather";
        case BROADCAST: return n + " for ncclBroadcast from rank " + std::to_string(peer);
        case REDUCE: return n + " for ncclAllReduce, " + by;
        case SCATTER: return n + " for ncclReduceScatter, " + by;
        default: return n;
        }
    }
};

template <typename T> void add(T* to, const T* all, size_t count, int ranks, int sum) {
    for (size_t i = 0; i < count; i++) {
        T x = all[i];
        for (int r = 1; r < ranks; r++) {
            const T y = all[r * count + i];
            switch (sum) {
            case ncclProd: x = T(x * y); break;
            case ncclMax: x = std::max(x, y); break;
            case ncclMin: x = std::min(x, y); break;
            default: x = T(x + y);
            }
        }
        to[i] = sum == ncclAvg ? T(x / T(ranks)) : x;
    }
}
inline void add(void* to, const void* all, size_t count, ncclDataType_t type, int ranks, int sum) {
    const auto as = [&](auto zero) { add((decltype(zero)*)to, (const decltype(zero)*)all, count, ranks, sum); };
    switch (type) {
    case ncclInt8: return as(int8_t());
    case ncclUint8: return as(uint8_t());
    case ncclInt32: return as(int32_t());
    case ncclUint32: return as(uint32_t());
    case ncclInt64: return as(int64_t());
    case ncclUint64: return as(uint64_t());
    case ncclFloat16: fail("NCCL: sums of float16 are not emulated");
    case ncclFloat32: return as(float());
    case ncclFloat64: return as(double());
    case ncclBfloat16: return as(__nv_bfloat16());
    }
}

// Calls of a group under way: what goes to each rank and comes from it, in the order of the calls.
struct Exchange {
    struct Message {
        char* p;
        size_t bytes;
        std::string what;
        size_t done = 0;                     // bytes that were put or taken
        bool begun = false;                  // a message without bytes is a piece, too
    };
    const ncclComm* comm;
    std::vector<std::deque<Message>> out, in;
    std::vector<Task> finish;
    double waited = 0;                       // seconds since anything moved, but for those spent elsewhere

    Exchange(const ncclComm* c, const std::vector<Call>& calls) : comm(c), out(c->size), in(c->size) {
        for (const Call& call : calls) begin(call);
    }
    void begin(const Call& call) {
        const size_t bytes = call.bytes();
        const auto send = [&](int r, const char* p) { out[r].push_back({(char*)p, bytes, call.what()}); };
        const auto receive = [&](int r, char* p) { in[r].push_back({p, bytes, call.what()}); };
        const auto each = [&](auto f) { for (int r = 0; r < comm->size; r++) if (r != comm->rank) f(r); };
        const auto copy = [=](char* to, const char* from) { memmove(to, from, bytes); };
        const int me = comm->rank;
        if (call.kind == Call::SEND) return send(call.peer, call.from);
        if (call.kind == Call::RECEIVE) return receive(call.peer, call.to);
        if (call.kind == Call::BROADCAST && call.peer != me) return receive(call.peer, call.to);
        if (call.kind == Call::BROADCAST || call.kind == Call::GATHER) {
            each([&](int r) { send(r, call.from); });
            if (call.kind == Call::GATHER) each([&](int r) { receive(r, call.to + r * bytes); });
            return finish.push_back([=] { copy(call.to + (call.kind == Call::GATHER) * me * bytes, call.from); });
        }
        const auto all = std::make_shared<std::vector<char>>(bytes * comm->size);
        const auto mine = [&](int r) { return call.from + (call.kind == Call::SCATTER) * r * bytes; };
        each([&](int r) {
            send(r, mine(r));
            receive(r, all->data() + r * bytes);
        });
        finish.push_back([=, from = mine(me), ranks = comm->size] {
            copy(all->data() + me * bytes, from);
            add(call.to, all->data(), call.count, call.type, ranks, call.sum);
        });
    }
    bool put(int r) {
        Box& b = comm->box(comm->rank, r);
        if (out[r].empty() || b.put != b.taken) return false;
        Message& m = out[r].front();
        if (m.begun && m.done == m.bytes) return out[r].pop_front(), true;
        const size_t n = std::min(m.bytes - m.done, sizeof b.piece);
        snprintf(b.what, sizeof b.what, "%s", m.what.c_str());
        memcpy(b.piece, m.p + m.done, n);
        m.done += n;
        m.begun = true;
        b.put++;
        return true;
    }
    bool take(int r) {
        Box& b = comm->box(r, comm->rank);
        if (in[r].empty() || b.put == b.taken) return false;
        Message& m = in[r].front();
        if (m.what != b.what)
            fail("NCCL: rank %d sends %s, and rank %d receives %s", r, b.what, comm->rank, m.what.c_str());
        const size_t n = std::min(m.bytes - m.done, sizeof b.piece);
        memcpy(m.p + m.done, b.piece, n);
        m.done += n;
        b.taken++;
        if (m.done == m.bytes) in[r].pop_front();
        return true;
    }
    void move() {                            // whatever can be
        for (bool any = true; any;) {
            any = false;
            for (int r = 0; r < comm->size; r++) {
                any |= put(r);
                any |= take(r);
            }
            if (any) waited = 0;
        }
    }
    std::string left(int r) const {          // what that rank must do
        return !in[r].empty() ? "send " + in[r].front().what : !out[r].empty() ? "receive " + out[r].front().what : "";
    }
    bool done() const {
        for (int r = 0; r < comm->size; r++) if (!in[r].empty() || !out[r].empty()) return false;
        return true;
    }
    bool advance(double patience) {          // as Operation's
        const double begin = now();
        double last = begin;
        for (Backoff wait;;) {
            if (move(), done()) break;
            const double time = now();
            waited += time - std::exchange(last, time);
            if (time - begin >= patience) return false;
            if (!wait()) continue;
            for (int r = 0; r < comm->size; r++) {
                const bool lives = comm->lives(r);
                move();
                const std::string what = left(r);
                if (!what.empty()) comm->check_wait(r, lives, waited, what.c_str());
            }
        }
        for (const Task& f : finish) f();
        return true;
    }
};

inline void check_buffer(const char* p, size_t bytes, const Call& call) {
    const std::string what = call.what();
    if (bytes && pageable(p)) fail("NCCL: %s: %p is the host's memory", what.c_str(), (const void*)p);
    if (bytes) memory().check_range(p, bytes, what.c_str());
}
// What a call writes, no other of its group may use, as they run together.
inline void check_overlap(const Call& a, const Call& b) {
    const auto meet = [&](const char* p, size_t bytes) { return a.to < p + bytes && p < a.to + a.written(); };
    const bool same = &a == &b;
    if ((meet(b.from, b.read()) && !(same && a.in_place())) || (meet(b.to, b.written()) && !same))
        fail("NCCL: in one group, '%s' writes what '%s' uses", a.what().c_str(), b.what().c_str());
}

// What a group has to do with one communicator: one operation, of the first stream.
inline void enqueue(ncclComm* c, const std::vector<Call>& calls) {
    const cudaStream_t first = calls[0].stream;
    std::vector<cudaStream_t> others;
    for (const Call& call : calls) {
        check_buffer(call.from, call.read(), call);
        check_buffer(call.to, call.written(), call);
        for (const Call& other : calls) check_overlap(call, other);
        const cudaStream_t s = call.stream;
        if (s != first && !std::count(others.begin(), others.end(), s)) others.push_back(s);
    }
    for (cudaStream_t s : others) {
        cudaEventRecord(&c->joined[s], s);
        cudaStreamWaitEvent(first, &c->joined[s]);
    }
    cudaStreamWaitEvent(first, &c->order);
    Operation o;
    o.advance = [=, exchange = std::shared_ptr<Exchange>()](double patience) mutable {
        if (c->aborted) return true;
        if (!exchange) exchange = std::make_shared<Exchange>(c, calls);
        return exchange->advance(patience);
    };
    streams().push(first, std::move(o));
    cudaEventRecord(&c->order, first);
    for (cudaStream_t s : others) cudaStreamWaitEvent(s, &c->order);
    c->order.capture = nullptr;              // a call after the last of a graph is not the graph's
}
struct Group {
    int depth = 0;
    ncclResult_t error = ncclSuccess;        // of a call: none is made
    std::vector<Call> calls;
};
inline thread_local Group group;
}  // namespace emu
inline ncclResult_t ncclGroupStart() { return emu::group.depth++, ncclSuccess; }
inline ncclResult_t ncclGroupEnd() {
    if (!emu::group.depth) return ncclInvalidUsage;
    if (--emu::group.depth) return ncclSuccess;
    emu::Group g = std::exchange(emu::group, {});
    std::vector<std::pair<ncclComm*, std::vector<emu::Call>>> of;        // each communicator, the first called first
    for (const emu::Call& call : g.calls) {
        auto one = std::find_if(of.begin(), of.end(), [&](auto& one) { return one.first == call.comm; });
        if (one == of.end()) one = of.insert(one, {call.comm, {}});
        one->second.push_back(call);
    }
    for (const auto& [comm, calls] : of) {   // to oneself only what one receives
        int to_self = 0;
        for (const emu::Call& call : calls)
            if (call.peer == comm->rank) to_self += (call.kind == emu::Call::SEND) - (call.kind == emu::Call::RECEIVE);
        if (to_self && !g.error) g.error = ncclInvalidUsage;
    }
    for (const auto& [comm, calls] : of) if (!g.error) emu::enqueue(comm, calls);
    return g.error;
}
namespace emu {
inline ncclResult_t call(Call::Kind kind, const void* from, void* to, size_t count, ncclDataType_t type, int sum,
                         int peer, ncclComm_t c, cudaStream_t stream) {
    ncclGroupStart();
    const bool good = c && !c->aborted && (size_t)type < std::size(NCCL_TYPES) && (size_t)sum < std::size(NCCL_SUMS) &&
                      peer >= 0 && peer < c->size;
    if (good) group.calls.push_back({kind, (const char*)from, (char*)to, count, type, sum, peer, c, stream});
    else group.error = ncclInvalidArgument;
    const ncclResult_t end = ncclGroupEnd();
    return good ? end : ncclInvalidArgument;
}
}  // namespace emu
inline ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                             cudaStream_t s) {
    return emu::call(emu::Call::SEND, from, nullptr, count, type, 0, peer, c, s);
}
inline ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s) {
    return emu::call(emu::Call::RECEIVE, nullptr, to, count, type, 0, peer, c, s);
}
inline ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t c,
                                  cudaStream_t s) {
    return emu::call(emu::Call::GATHER, from, to, count, type, 0, 0, c, s);
}
inline ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t c,
                                  cudaStream_t s) {
    return emu::call(emu::Call::BROADCAST, c && root == c->rank ? from : nullptr, to, count, type, 0, root, c, s);
}
inline ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t sum,
                                  ncclComm_t c, cudaStream_t s) {
    return emu::call(emu::Call::REDUCE, from, to, count, type, sum, 0, c, s);
}
inline ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t sum,
                                      ncclComm_t c, cudaStream_t s) {
    return emu::call(emu::Call::SCATTER, from, to, count, type, sum, 0, c, s);
}
