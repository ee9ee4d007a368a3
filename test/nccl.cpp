/* test/nccl.cpp -- the emulator's NCCL: up to 4 processes, what every call gives in several orders of the streams, and
   what must be refused, told of or shown: other sizes, waits in vain, a rank that died, an event that is missing.
   build/emulated_nccl */
#include <nccl.h>
#include "check.h"
#include <numeric>
#include <sys/wait.h>

// ---- ranks, which are children ----
struct Said { std::string text; int status; };
using Ranks = std::vector<Said>;
// Runs body(rank, id) in n processes, and tells what each said and how it ended: its exit code, or 128 and a signal.
template <typename F> static Ranks ranks(int n, int seed, F body) {
    ncclUniqueId id;
    if (ncclGetUniqueId(&id) != ncclSuccess) {
        printf("FAIL nccl: no id\n");
        exit(1);
    }
    std::vector<pid_t> pids;
    std::vector<FILE*> files;
    for (int r = 0; r < n; r++) {
        files.push_back(tmpfile());
        pids.push_back(fork());
        if (pids[r]) continue;
        dup2(fileno(files[r]), 1);
        dup2(fileno(files[r]), 2);
        emu::settings.seed = seed;
        emu::settings.workers = 1;
        emu::settings.nccl_timeout = 1;
        alarm(20);                           // what waits by a mistake, and has no limit of its own
        body(r, id);
        fflush(stdout);
        _exit(0);
    }
    Ranks all(n);
    for (int r = n; r-- > 0;) {
        int status;
        waitpid(pids[r], &status, 0);
        all[r].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        rewind(files[r]);
        int c;
        while ((c = fgetc(files[r])) != EOF) all[r].text += c == '\n' ? ' ' : (char)c;
        fclose(files[r]);
    }
    return all;
}
static void need(bool good, const char* what, int line) {
    if (!good) {
        printf("line %d: %s\n", line, what);
        fflush(stdout);
        _exit(1);
    }
}
#define NEED(x) need(x, #x, __LINE__)
#define OK(x) NEED((x) == 0)

// ---- one rank ----
struct World {
    int rank, size;
    ncclComm_t comm;
    cudaStream_t compute, send;
    World(int rank, int size, ncclUniqueId id) : rank(rank), size(size) {
        OK(ncclCommInitRank(&comm, size, id, rank));
        for (cudaStream_t* s : {&compute, &send}) OK(cudaStreamCreateWithFlags(s, cudaStreamNonBlocking));
    }
    ~World() { OK(ncclCommDestroy(comm)); }
    void wait(cudaStream_t a, cudaStream_t b) const {        // a, for what b has now
        cudaEvent_t e;
        OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        OK(cudaEventRecord(e, b));
        OK(cudaStreamWaitEvent(a, e));
    }
};
template <typename T> struct Array {         // on the device
    T* p;
    size_t n;
    explicit Array(size_t n) : n(n) { OK(cudaMalloc(&p, (n + 1) * sizeof(T))); }
    Array(const std::vector<T>& v) : Array(v.size()) {
        OK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get(cudaStream_t s) const {
        std::vector<T> v(n);
        OK(cudaMemcpyAsync(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, s));
        OK(cudaStreamSynchronize(s));
        return v;
    }
    operator T*() const { return p; }
};
// Numbers of rank r whose sum depends on its order; `which` makes others.
static std::vector<float> numbers(size_t n, int r, int which = 0) {
    std::vector<float> v(n);
    constexpr float scales[] = {1, 1e2f, 1e4f, 1e6f};
    for (size_t i = 0; i < n; i++) v[i] = std::sin((float)(i + 1 + 100 * which)) * scales[(r + i) % 4];
    return v;
}
template <typename T, typename F> static std::vector<T> folded(const std::vector<std::vector<T>>& all, F f) {
    std::vector<T> v = all[0];
    for (size_t r = 1; r < all.size(); r++) for (size_t i = 0; i < v.size(); i++) v[i] = f(v[i], all[r][i]);
    return v;
}

// ---- collectives ----
constexpr size_t SIZES[] = {1, 20001};       // the latter in several pieces, not all of them full
static void gathers(World& w) {
    for (size_t n : SIZES) {
        std::vector<float> want;
        for (int r = 0; r < w.size; r++) for (float x : numbers(n, r)) want.push_back(x);
        const Array<float> mine(numbers(n, w.rank)), all(n * w.size), place(n * w.size);
        OK(cudaMemcpy(place + w.rank * n, mine, n * 4, cudaMemcpyDeviceToDevice));
        OK(ncclAllGather(mine, all, n, ncclFloat32, w.comm, w.send));
        OK(ncclAllGather(place + w.rank * n, place, n * 4, ncclInt8, w.comm, w.send));
        NEED(all.get(w.send) == want);
        NEED(place.get(w.send) == want);
    }
}
static void broadcasts(World& w) {
    for (size_t n : SIZES)
        for (int root = 0; root < w.size; root++) {
            const Array<float> mine(numbers(n, w.rank)), other(n);
            OK(ncclBroadcast(w.rank == root ? mine.p : nullptr, other, n, ncclFloat32, root, w.comm, w.send));
            OK(ncclBroadcast(mine, mine, n, ncclFloat32, root, w.comm, w.send));
            NEED(other.get(w.send) == numbers(n, root));
            NEED(mine.get(w.send) == numbers(n, root));
        }
}
template <typename T> static void sums(World& w, ncclDataType_t type) {
    const auto sum = [](T a, T b) { return T(a + b); };
    for (size_t n : SIZES) {
        std::vector<std::vector<T>> all(w.size);
        for (int r = 0; r < w.size; r++)
            for (float x : numbers(n * w.size, r)) all[r].push_back(T(std::fabs(x) / 1e4f));
        const auto reduced = [&](ncclRedOp_t op, auto want) {
            const Array<T> mine(all[w.rank]), out(n * w.size), place(all[w.rank]), some(n);
            OK(ncclAllReduce(mine, out, n * w.size, type, op, w.comm, w.send));
            OK(ncclReduceScatter(mine, some, n, type, op, w.comm, w.send));
            OK(ncclReduceScatter(mine, mine + n * w.rank, n, type, op, w.comm, w.send));
            OK(ncclAllReduce(place, place, n * w.size, type, op, w.comm, w.send));
            const auto is = [](const auto& a, const auto& b, size_t n) { return !memcmp(&a[0], &b[0], n * sizeof(T)); };
            NEED(is(out.get(w.send), want, n * w.size));
            NEED(is(place.get(w.send), want, n * w.size));
            want.erase(want.begin(), want.begin() + n * w.rank);
            auto got = mine.get(w.send);
            got.erase(got.begin(), got.begin() + n * w.rank);
            NEED(is(some.get(w.send), want, n));
            NEED(is(got, want, n));
        };
        auto mean = folded(all, sum);
        for (T& x : mean) x = T(x / T(w.size));
        reduced(ncclSum, folded(all, sum));
        reduced(ncclAvg, mean);
        reduced(ncclProd, folded(all, [](T a, T b) { return T(a * b); }));
        reduced(ncclMax, folded(all, [](T a, T b) { return a < b ? b : a; }));
        reduced(ncclMin, folded(all, [](T a, T b) { return b < a ? b : a; }));
    }
}

// ---- sends and receives ----
// All ranks send to all, and to themselves, two messages: sizes differ, some are empty. The calls stand in an order of
// its own on every rank; messages of a pair keep theirs.
static size_t length(int from, int to, int which) { return (from * 5 + to * 3 + which) % 4 * 7001; }
static void exchange(World& w, int order) {
    struct One { bool out; int peer, which; };
    std::vector<One> calls;
    for (int i = 0; i < 2 * w.size; i++) calls.push_back({i % 2 == 0, i / 2, 0});
    int k = order + 7 * w.rank;
    for (int i = 0; i < (int)calls.size(); i++) {
        std::swap(calls[i], calls[i - k % (i + 1)]);
        k /= i + 1;
    }
    for (int i = 0; i < 2 * w.size; i++) calls.push_back({calls[i].out, calls[i].peer, 1});
    std::vector<Array<float>> buffers;
    OK(ncclGroupStart());
    for (auto& [out, peer, which] : calls) {
        const size_t n = out ? length(w.rank, peer, which) : length(peer, w.rank, which);
        const auto& b = out ? buffers.emplace_back(numbers(n, w.rank, which)) : buffers.emplace_back(n);
        OK(out ? ncclSend(b, n, ncclFloat, peer, w.comm, w.send) : ncclRecv(b, n, ncclFloat, peer, w.comm, w.send));
    }
    OK(ncclGroupEnd());
    for (size_t i = 0; i < calls.size(); i++)
        if (auto& [out, peer, which] = calls[i]; !out)
            NEED(buffers[i].get(w.send) == numbers(buffers[i].n, peer, which));
}
static void one_after_another(World& w) {    // around a ring, rank 0 first
    const Array<float> mine(numbers(20001, w.rank)), got(20001);
    const int next = (w.rank + 1) % w.size, last = (w.rank + w.size - 1) % w.size;
    if (w.rank == 0) OK(ncclSend(mine, mine.n, ncclFloat, next, w.comm, w.send));
    OK(ncclRecv(got, got.n, ncclFloat, last, w.comm, w.send));
    if (w.rank) OK(ncclSend(mine, mine.n, ncclFloat, next, w.comm, w.send));
    NEED(got.get(w.send) == numbers(20001, last));
}
static void graphs(World& w) {               // a sum in a graph, launched twice, and then one outside
    Array<float> mine(std::vector<float>(9, w.rank + 1.0f));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(w.send, cudaStreamCaptureModeThreadLocal));
    OK(ncclAllReduce(mine, mine, 9, ncclFloat, ncclSum, w.comm, w.send));
    OK(cudaStreamEndCapture(w.send, &graph));
    OK(cudaGraphInstantiate(&exec, graph));
    OK(cudaGraphLaunch(exec, w.send));
    OK(cudaGraphLaunch(exec, w.send));
    OK(ncclAllReduce(mine, mine, 9, ncclFloat, ncclSum, w.comm, w.send));
    NEED(mine.get(w.send) == std::vector<float>(9, w.size * (w.size + 1) / 2 * w.size * w.size));
}
static void results(World& w) {              // of wrong calls
    const Array<float> a(8);
    NEED(ncclSend(a, 1, ncclFloat, w.size, w.comm, w.send) == ncclInvalidArgument);
    NEED(ncclBroadcast(a, a, 1, ncclFloat, -1, w.comm, w.send) == ncclInvalidArgument);
    NEED(ncclRecv(a, 1, (ncclDataType_t)99, 0, w.comm, w.send) == ncclInvalidArgument);
    NEED(ncclAllReduce(a, a, 1, ncclFloat, (ncclRedOp_t)5, w.comm, w.send) == ncclInvalidArgument);
    NEED(ncclSend(a, 1, ncclFloat, 0, nullptr, w.send) == ncclInvalidArgument);
    NEED(ncclSend(a, 1, ncclFloat, w.rank, w.comm, w.send) == ncclInvalidUsage);             // nobody receives it
    OK(ncclGroupStart());
    OK(ncclGroupStart());
    OK(ncclSend(a, 1, ncclFloat, 1 - w.rank, w.comm, w.send));
    OK(ncclGroupEnd());
    NEED(ncclSend(a, 1, ncclFloat, 9, w.comm, w.send) == ncclInvalidArgument);
    NEED(ncclGroupEnd() == ncclInvalidArgument);                                             // and nothing was sent
    NEED(ncclGroupEnd() == ncclInvalidUsage);
    ncclResult_t error = ncclInternalError;
    int version;
    OK(ncclCommGetAsyncError(w.comm, &error));
    OK(error);
    OK(ncclGetVersion(&version));
    NEED(version == NCCL_VERSION_CODE);
    NEED(!strcmp(ncclGetErrorString(ncclRemoteError), "remote process exited or there was a network error"));
    OK(cudaStreamQuery(w.send));
}

// ---- two streams ----
static void set(float* p, float x) { p[threadIdx.x] = x; }
static void copy(float* to, const float* from) { to[threadIdx.x] = from[threadIdx.x]; }
template <typename... P, typename... A> static void launch(cudaStream_t s, void (*kernel)(P...), A... arguments) {
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(1);
    c.blockDim = dim3(64);
    c.stream = s;
    OK(cudaLaunchKernelEx(&c, kernel, arguments...));
}
enum Missing { NONE, WRITTEN, RECEIVED, SENT };
// Computes on one stream, exchanges with the neighbour on another: without an event that which reads may be early or
// late.
static void overlapped(World& w, Missing missing) {
    const Array<float> mine(64), got(64), out(64);
    const int other = 1 - w.rank;
    for (int step = 1; step < 4; step++) {
        launch(w.compute, set, mine.p, step * 10.0f + w.rank);
        if (missing != WRITTEN) w.wait(w.send, w.compute);
        OK(ncclGroupStart());
        OK(ncclSend(mine, 64, ncclFloat, other, w.comm, w.send));
        OK(ncclRecv(got, 64, ncclFloat, other, w.comm, w.send));
        OK(ncclGroupEnd());
        if (missing == NONE || missing == WRITTEN) w.wait(w.compute, w.send);
        if (missing == SENT) {
            launch(w.compute, set, mine.p, -1.0f);
            w.wait(w.compute, w.send);
        }
        launch(w.compute, copy, out.p, (const float*)got.p);
        const std::vector<float> v = out.get(w.compute);
        if (v != std::vector<float>(64, step * 10.0f + other)) {
            printf("wrong numbers");
            fflush(stdout);
            _exit(3);
        }
        OK(cudaStreamSynchronize(w.send));
    }
}
static void group_on_two_streams(World& w) { // waits for what is before it on both, and both for it
    const Array<float> mine(64), got(64), out(64);
    for (int step = 0; step < 3; step++) {
        launch(w.compute, set, mine.p, 10.0f * step + w.rank);
        OK(ncclGroupStart());
        OK(ncclRecv(got, 64, ncclFloat, 1 - w.rank, w.comm, w.send));
        OK(ncclSend(mine, 64, ncclFloat, 1 - w.rank, w.comm, w.compute));
        OK(ncclGroupEnd());
        launch(w.compute, copy, out.p, (const float*)got.p);
        NEED(out.get(w.compute) == std::vector<float>(64, 10.0f * step + 1 - w.rank));
    }
}
static void calls_on_two_streams(World& w) { // keep their order, where no event asks for it
    const Array<float> a(numbers(64, w.rank)), b(numbers(64, w.rank));
    OK(ncclAllReduce(a, a, 64, ncclFloat, ncclSum, w.comm, w.send));
    OK(ncclAllReduce(b, b, 64, ncclFloat, ncclMax, w.comm, w.compute));
    b.get(w.compute);
    a.get(w.send);
}
static void two_communicators(World& w) {    // whose calls the ranks make in opposite orders, on two streams
    ncclUniqueId id;
    if (w.rank == 0) OK(ncclGetUniqueId(&id));
    const Array<char> named(std::vector<char>(id.internal, id.internal + sizeof id));
    OK(ncclBroadcast(named, named, sizeof id, ncclChar, 0, w.comm, w.send));
    memcpy(&id, named.get(w.send).data(), sizeof id);
    World more(w.rank, w.size, id);
    const Array<float> a(std::vector<float>(20001, w.rank)), b(std::vector<float>(20001, w.rank));
    if (w.rank) OK(ncclAllReduce(a, a, 20001, ncclFloat, ncclSum, more.comm, w.compute));
    OK(ncclAllReduce(b, b, 20001, ncclFloat, ncclMax, w.comm, w.send));
    if (!w.rank) OK(ncclAllReduce(a, a, 20001, ncclFloat, ncclSum, more.comm, w.compute));
    NEED(a.get(w.compute) == std::vector<float>(20001, w.size * (w.size - 1) / 2));
    NEED(b.get(w.send) == std::vector<float>(20001, w.size - 1));
}
static int told[2];                          // a pipe: what ranks say beside NCCL
static void host_goes_on(World& w) {         // a call returns though nobody receives yet
    char c = 0;
    const Array<float> a(numbers(64, 0));
    if (w.rank) {
        NEED(read(told[0], &c, 1) == 1);
        OK(ncclRecv(a, 64, ncclFloat, 0, w.comm, w.send));
    } else {
        OK(ncclSend(a, 64, ncclFloat, 1, w.comm, w.send));
        NEED(write(told[1], &c, 1) == 1);
    }
    NEED(a.get(w.send) == numbers(64, 0));
}

// ---- what all must do ----
struct Case { const char* name; int ranks, seeds; std::function<void(World&)> run; };
static const Case CASES[] = {
    {"gathers", 4, 3, gathers},
    {"broadcasts", 3, 3, broadcasts},
    {"sums of float32", 4, 3, [](World& w) { sums<float>(w, ncclFloat32); }},
    {"sums of bfloat16", 3, 2, [](World& w) { sums<__nv_bfloat16>(w, ncclBfloat16); }},
    {"sums of other types", 2, 1, [](World& w) {
        sums<double>(w, ncclFloat64);
        sums<int8_t>(w, ncclInt8);
        sums<uint8_t>(w, ncclUint8);
        sums<int32_t>(w, ncclInt32);
        sums<uint32_t>(w, ncclUint32), sums<int64_t>(w, ncclInt64), sums<uint64_t>(w, ncclUint64); }},
    {"exchanges in every order", 2, 2, [](World& w) { for (int order = 0; order < 24; order++) exchange(w, order); }},
    {"exchanges of three", 3, 3, [](World& w) { for (int order = 0; order < 720; order += 89) exchange(w, order); }},
    {"a group on two streams", 2, 9, group_on_two_streams},
    {"calls on two streams", 2, 9, calls_on_two_streams},
    {"one after another", 4, 4, one_after_another},
    {"graphs", 3, 2, graphs},
    {"results of wrong calls", 2, 2, results},
    {"two communicators", 3, 2, two_communicators},
    {"a call that nobody answers yet", 2, 2, host_goes_on},
    {"two streams with events", 2, 9, [](World& w) { overlapped(w, NONE); }},
};
// What must end every rank, one of them saying this.
struct Refusal { const char* name; int ranks; const char* said; std::function<void(World&)> run; };
static void pair(World& w, size_t sent, size_t received, ncclDataType_t type = ncclFloat) {
    const Array<float> a(64);
    OK(w.rank ? ncclSend(a, sent, ncclFloat, 0, w.comm, w.send) : ncclRecv(a, received, type, 1, w.comm, w.send));
    OK(cudaStreamSynchronize(w.send));
}
static const Refusal REFUSALS[] = {
    {"more than is received", 2, "NCCL: rank 1 sends 5 of float32, and rank 0 receives 4 of float32", [](World& w) { pair(w, 5, 4); }},
    {"less than is received", 2, "NCCL: rank 1 sends 4 of float32, and rank 0 receives 5 of float32", [](World& w) { pair(w, 4, 5); }},
    {"nothing", 2, "NCCL: rank 1 sends 0 of float32, and rank 0 receives 5 of float32", [](World& w) { pair(w, 0, 5); }},
    {"another type", 2, "NCCL: rank 1 sends 5 of float32, and rank 0 receives 5 of int32", [](World& w) { pair(w, 5, 5, ncclInt32); }},
    {"another sum", 2, "5 of float32 for ncclAllReduce, maximum", [](World& w) {
        const Array<float> a(64);
        OK(ncclAllReduce(a, a, 5, ncclFloat, w.rank ? ncclMax : ncclSum, w.comm, w.send));
        OK(cudaStreamSynchronize(w.send)); }},
    {"another root", 3, "5 of float32 for ncclBroadcast from rank", [](World& w) {
        const Array<float> a(64);
        OK(ncclBroadcast(a, a, 5, ncclFloat, w.rank > 0, w.comm, w.send));
        OK(cudaStreamSynchronize(w.send)); }},
    {"another call", 2, "for ncclAllGather", [](World& w) {
        const Array<float> a(64), b(64);
        if (w.rank) OK(ncclAllGather(a, b, 5, ncclFloat, w.comm, w.send));
        else OK(ncclAllReduce(a, b, 5, ncclFloat, ncclSum, w.comm, w.send));
        OK(cudaStreamSynchronize(w.send)); }},
    {"two that send first", 2, " has waited 1 s for rank ", [](World& w) {
        const Array<float> a(64), b(64);
        OK(ncclSend(a, 1, ncclFloat, 1 - w.rank, w.comm, w.send));
        OK(ncclRecv(b, 1, ncclFloat, 1 - w.rank, w.comm, w.send));
        OK(cudaStreamSynchronize(w.send)); }},
    {"one that has left", 2, "NCCL: rank 0 waits for rank 1 to send 5 of float32, but that process, ", [](World& w) { if (!w.rank) pair(w, 5, 5); }},
    {"beyond an array", 1, "5 of float32 for ncclAllReduce, sum: 20 bytes at offset 244 overrun the 260", [](World& w) {
        const Array<float> a(64);
        ncclAllReduce(a + 61, a + 61, 5, ncclFloat, ncclSum, w.comm, w.send); }},
    {"memory that was freed", 1, "points into no live device allocation", [](World& w) {
        const Array<float> a(64);
        cudaFree(a.p);
        ncclAllReduce(a, a, 5, ncclFloat, ncclSum, w.comm, w.send); }},
    {"memory of the host", 1, "is the host's memory", [](World& w) {
        float a[5] = {};
        ncclAllReduce(a, a, 5, ncclFloat, ncclSum, w.comm, w.send); }},
    {"a group that reads what it writes", 1, "NCCL: in one group, '5 of float32' writes what '5 of float32' uses", [](World& w) {
        const Array<float> a(64);
        ncclGroupStart();
        ncclSend(a, 5, ncclFloat, 0, w.comm, w.send);
        ncclRecv(a + 4, 5, ncclFloat, 0, w.comm, w.send);
        ncclGroupEnd(); }},
};

// Ends of ranks, each of which must end so and say this.
struct End { int status; const char* said; };
struct Failure { const char* name; std::vector<End> ends; std::function<void(int, ncclUniqueId)> run; };
static void join(int rank, int size, ncclUniqueId id) {
    ncclComm_t comm;
    OK(ncclCommInitRank(&comm, size, id, rank));
    OK(ncclCommDestroy(comm));
}
static ncclUniqueId from_the_dead() {        // the id of a process that has ended
    int ids[2];
    ncclUniqueId id = {};
    NEED(!pipe(ids));
    const pid_t pid = fork();
    if (pid == 0) {
        OK(ncclGetUniqueId(&id));
        NEED(write(ids[1], &id, sizeof id) == sizeof id);
        _exit(0);
    }
    NEED(read(ids[0], &id, sizeof id) == sizeof id);
    waitpid(pid, nullptr, 0);
    return id;
}
static const Failure FAILURES[] = {
    {"a rank that never joins, and one twice", {{1, "NCCL: rank 0 has waited 1 s for rank 1 to join"}, {1, "there is a rank 0 already"}, {137, ""}},
        [](int r, ncclUniqueId id) {
        if (r == 1) usleep(300000);
        if (r == 2) kill(getpid(), SIGKILL);
        join(0, 2, id); }},
    {"other numbers of ranks", {{1, "joins"}, {1, "joins"}}, [](int r, ncclUniqueId id) { join(r, 2 + r, id); }},
    {"an id whose process has ended", {{1, "has that ended?"}}, [](int r, ncclUniqueId) { join(r, 1, from_the_dead()); }},
    {"no id", {{0, ""}}, [](int r, ncclUniqueId) {
        ncclComm_t comm;
        NEED(ncclCommInitRank(&comm, 1, {}, r) == ncclInvalidArgument); }},
    {"a rank that was killed", {{0, "told of it"}, {137, ""}, {1, "NCCL: rank 2 waits for rank 1 to send 5 of float32, but that process, "}},
        [](int r, ncclUniqueId id) {
        World w(r, 3, id);
        const Array<float> a(64);
        if (r == 1) kill(getpid(), SIGKILL);
        OK(ncclRecv(a, 5, ncclFloat, 1, w.comm, w.send));
        if (r == 2) cudaStreamSynchronize(w.send);
        ncclResult_t error = ncclSuccess;
        while (!error) {
            NEED(cudaStreamQuery(w.send) == cudaErrorNotReady);
            OK(ncclCommGetAsyncError(w.comm, &error));
            usleep(1000);
        }
        NEED(error == ncclRemoteError);
        OK(ncclCommAbort(w.comm));
        OK(cudaStreamSynchronize(w.send));
        printf("told of it");
        fflush(stdout);
        _exit(0); }},
};

static std::string all_said(const Ranks& ranks) {
    std::string text;
    for (size_t r = 0; r < ranks.size(); r++) {
        if (!ranks[r].status) continue;
        text += "; rank " + std::to_string(r) + ", exit " + std::to_string(ranks[r].status) + ": " + ranks[r].text;
    }
    return text;
}
static bool all_end(const Ranks& ranks, int status) {
    return std::all_of(ranks.begin(), ranks.end(), [&](const Said& s) { return s.status == status; });
}
static bool any_says(const Ranks& ranks, const char* text) {
    return std::any_of(ranks.begin(), ranks.end(), [&](const Said& s) { return s.text.find(text) != s.text.npos; });
}

int main() {
    if (pipe(told)) return printf("FAIL nccl: no pipe\n"), 1;
    for (const Case& c : CASES) {
        int good = 0;
        std::string said;
        for (int seed = 0; seed < c.seeds; seed++) {
            const Ranks all = ranks(c.ranks, seed, [&](int r, ncclUniqueId id) {
                World w(r, c.ranks, id);
                c.run(w);
            });
            good += all_end(all, 0);
            said += all_said(all);
        }
        check(good == c.seeds, "nccl/%s: %d ranks, in %d of %d orders%s", c.name, c.ranks, good, c.seeds, said.c_str());
    }
    for (Missing missing : {WRITTEN, RECEIVED, SENT}) {
        int wrong = 0;
        for (int seed = 1; seed < 9; seed++) {
            const Ranks all = ranks(2, seed, [&](int r, ncclUniqueId id) {
                World w(r, 2, id);
                overlapped(w, missing);
            });
            wrong += any_says(all, "wrong numbers");
        }
        const char* const when[] = {"", "before it is written", "before it is received", "while it is sent"};
        check(wrong > 0, "nccl/sent or used %s: shows in %d of 8 orders", when[missing], wrong);
    }
    for (const Refusal& f : REFUSALS) {
        const Ranks all = ranks(f.ranks, 1, [&](int r, ncclUniqueId id) {
            World w(r, f.ranks, id);
            f.run(w);
        });
        const bool good = any_says(all, f.said);
        check(good, "nccl/refuses %s: %s%s", f.name, f.said, good ? "" : all_said(all).c_str());
    }
    for (const Failure& f : FAILURES) {
        const Ranks all = ranks(f.ends.size(), 1, f.run);
        bool good = true;
        for (size_t r = 0; r < all.size(); r++)
            good &= all[r].status == f.ends[r].status && any_says({all[r]}, f.ends[r].said);
        check(good, "nccl/%s%s", f.name, good ? "" : all_said(all).c_str());
    }
    return failed > 0;
}
