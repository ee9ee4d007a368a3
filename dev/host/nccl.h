/* dev/host/nccl.h -- the GPUs of several processes: NCCL, built in with NCCL=1. Sends and receives go through a stream
   of their own, so that they travel while kernels compute; who reads what arrives waits for an event. Ranks, one for
   each GPU, come from the environment of mpirun, srun or torchrun, and meet in a directory that all of them see. */
#pragma once
#include "comm.h"
#include <atomic>
#include <map>
#include <poll.h>
#include <random>
#include <sys/syscall.h>
#include <thread>
#ifdef CUDART_VERSION                        // it is a part of train_gpt.cu, from which it takes launch() and CHECK()
#ifdef USE_NCCL
#include <nccl.h>
#endif
namespace gpu {

#ifndef USE_NCCL
struct Nccl {
    cudaStream_t stream = nullptr;
    Nccl(const std::string&, const Launched& who) {
        die("started as one of %d processes, but built for one: make train_gpt_cuda NCCL=1", who.size);
    }
    void exchange(const Comm&, const Moves&) {}
    void leave() {}
};
#else
inline void check(ncclResult_t e, const char* call, int) {
    if (e != ncclSuccess) die("%s: %s", call, ncclGetErrorString(e));
}

/* Ranks whose processes this one can see, those of its machine and container: the kernel tells of their end at once.
   NCCL tells of some only, and of none while ranks meet. One thread at a time uses it. */
struct Peers {
    std::map<int, std::pair<std::string, int>> known;        // by rank: what it said last; its process, or -1

    static std::string place() {             // "" where that cannot be known
        std::array<char, 64> boot = {};
        std::error_code none;
        FILE* const f = fopen("/proc/sys/kernel/random/boot_id", "r");
        const bool read = f && fscanf(f, "%63s", boot.data()) == 1;
        if (f) fclose(f);
        const std::string names = fs::read_symlink("/proc/self/ns/pid", none).string();
        return read && !names.empty() ? names + boot.data() : "";
    }
    // A rank that has just drawn a number says so with it, and this of itself.
    static std::string introduction(const std::string& number) {
        return format("%s %d %s;", number.c_str(), getpid(), place().c_str());
    }
    // What it has said; an earlier run may have left that, of a process that is gone.
    void said(int rank, const std::string& introduction) {
        const auto [it, first] = known.insert({rank, {introduction, -1}});
        auto& [before, fd] = it->second;
        if (!first && before == introduction) return;
        int pid = 0, at = 0;
        if (fd >= 0) close(fd);
        before = introduction;
        fd = -1;
        if (sscanf(introduction.c_str(), "%*s %d %n", &pid, &at) != 1) return;
        if (const std::string here = place(); here.empty() || introduction.substr(at) != here + ";") return;
#ifdef SYS_pidfd_open
        fd = syscall(SYS_pidfd_open, pid, 0);
        if (fd < 0 && errno == ESRCH && !first) fd = GONE;
#endif
    }
    int ended() const {                      // one that has, or -1
        for (auto& [rank, its] : known) {
            pollfd asked = {its.second, POLLIN, 0};
            if (asked.fd == GONE || (asked.fd >= 0 && poll(&asked, 1, 0) == 1)) return rank;
        }
        return -1;
    }
private:
    static constexpr int GONE = -2;
};

/* How ranks come by the id of a new communicator. Each says hello with a number it has just drawn; the first answers
   with the id and all of these numbers, anew whenever one changes; who finds its own there takes the id and says so. So
   what an earlier run left is never taken for an answer. */
inline ncclUniqueId meet(const std::string& directory, const Launched& who, Peers& peers) {
    const double began = seconds(), patience = 300;
    double told = began;                     // that it waits
    int lost = -1;
    auto path = [&](const char* what, int rank) { return directory + format("/%s_%d", what, rank); };
    auto say = [&](const std::string& path, std::string_view text) {
        std::error_code error;
        write_file(path + ".new", text);
        fs::rename(path + ".new", path, error);
    };
    auto heard = [&](const std::string& path) -> std::string {           // which may vanish at any time
        try { return read_file(path); } catch (const Error&) { return ""; }
    };
    auto waits = [&] {
        lost = peers.ended();
        return lost < 0 && seconds() - began < patience && !stop_signal;
    };
    std::error_code error;
    fs::create_directories(directory, error);
    if (error) die("%s: cannot create: %s", directory.c_str(), error.message().c_str());
    std::random_device random;
    const std::string mine = Peers::introduction(format("%08x%08x", random(), random()));
    ncclUniqueId id = {};
    if (who.rank) {
        for (std::string answer; waits(); usleep(20000)) {
            fs::create_directories(directory, error);
            peers.said(0, heard(path("hello", 0)));     // first: from our hello on its end is known
            if (heard(path("hello", who.rank)) != mine) say(path("hello", who.rank), mine);
            answer = heard(path("id", 0));
            if (answer.size() <= sizeof id || answer.find(mine, sizeof id) == answer.npos) continue;
            memcpy(&id, answer.data(), sizeof id);
            say(path("got", who.rank), mine + answer.substr(0, sizeof id));
            return id;
        }
        if (lost == 0) die("rank 0 has ended while ranks met in %s", directory.c_str());
        die("no word from rank 0 in %s for %.0f seconds", directory.c_str(), seconds() - began);
    }
    CHECK(ncclGetUniqueId(&id));
    const std::string text((const char*)&id, sizeof id);
    std::string missing;
    for (std::string said; waits(); usleep(20000)) {
        std::string hellos;
        missing.clear();
        for (int rank = 1; rank < who.size; rank++) {
            const std::string its = heard(path("hello", rank));
            peers.said(rank, its);
            hellos += its;
            if (its.empty() || heard(path("got", rank)) != its + text) missing += format(" %d", rank);
        }
        if (heard(path("hello", 0)) != mine) say(path("hello", 0), mine);
        if (missing.empty()) {
            fs::remove_all(directory, error);
            return id;
        }
        if (hellos != said) say(path("id", 0), text + hellos);
        said = hellos;
        if (seconds() - told > 15) {
            told = INFINITY;
            warn("%s: waiting for rank%s", directory.c_str(), missing.c_str());
        }
    }
    fs::remove_all(directory, error);
    if (lost > 0) die("rank %d has ended while ranks met in %s", lost, directory.c_str());
    die("no word from rank%s in %s for %.0f seconds", missing.c_str(), directory.c_str(), seconds() - began);
}

struct Nccl {
    const Launched who;
    ncclComm_t comm;
    cudaStream_t stream;
    char* memory = nullptr;                  // of gather()
    size_t room = 0;
    Peers peers;                   // rank 0's are all, another's is rank 0
    std::atomic<bool> met = false;
    std::jthread watch;

    Nccl(const std::string& directory, const Launched& who) : who(who) {
        const ncclUniqueId id = meet(directory, who, peers);
        watch = std::jthread([this](std::stop_token ending) {            // the dead would be waited for without end
            for (std::string lost; !ending.stop_requested(); usleep(50000)) {
                ncclResult_t state = ncclSuccess;
                const bool failed = met && ncclCommGetAsyncError(comm, &state) != ncclSuccess;
                if (const int rank = peers.ended(); rank >= 0) lost = format("rank %d has ended", rank);
                else if (failed || (state != ncclSuccess && state != ncclInProgress))
                    lost = format("NCCL: %s: another rank has ended", ncclGetErrorString(state));
                if (lost.empty()) continue;
                for (int i = 0; i < 40 && !ending.stop_requested(); i++) usleep(50000);  // this one may say why
                if (ending.stop_requested()) return;
                fprintf(stderr, "%serror: %s\n", speaker().c_str(), lost.c_str());
                _exit(1);
            }
        });
        CHECK(ncclCommInitRank(&comm, who.size, id, who.rank));
        met = true;
        CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        world().gather = [this](const void* mine, void* all, size_t bytes) { gather(mine, all, bytes); };
    }
    void gather(const void* mine, void* all, size_t bytes) {
        if (bytes == 0) return;
        if (bytes * who.size > room) {
            room = bytes * who.size;
            cudaFree(memory);
            CHECK(cudaMalloc(&memory, room));
        }
        char* const own = memory + bytes * who.rank;
        CHECK(cudaMemcpyAsync(own, mine, bytes, cudaMemcpyHostToDevice, stream));
        CHECK(ncclAllGather(own, memory, bytes, ncclInt8, comm, stream));
        CHECK(cudaMemcpyAsync(all, memory, bytes * who.size, cudaMemcpyDeviceToHost, stream));
        CHECK(cudaStreamSynchronize(stream));
    }
    void exchange(const Comm& ranks, const Moves& m) {
        CHECK(ncclGroupStart());
        for (int r = 0; r < ranks.size; r++) {
            const int peer = ranks.lowest + r * ranks.step;
            world().sent += m.out[r].bytes;
            if (m.out[r].bytes) CHECK(ncclSend(m.out[r].p, m.out[r].bytes, ncclInt8, peer, comm, stream));
            if (m.in[r].bytes) CHECK(ncclRecv(m.in[r].p, m.in[r].bytes, ncclInt8, peer, comm, stream));
        }
        CHECK(ncclGroupEnd());
    }
    void leave() {                           // when all do
        watch.request_stop();
        world().barrier();
        watch.join();
        CHECK(ncclCommDestroy(comm));
    }
};
#endif

/* several ranks -- sums = own + what the others have sent, in the order of ranks: n numbers of each, at arrivals +
   rank n; MORE: sums +=, of gradients
   cost     n (ranks + 3) numbers, without MORE n (ranks + 1) */
template <bool MORE, typename E>
__global__ void add_in_order_kernel(E* sums, const E* own, const E* arrivals, size_t n, int rank, int ranks) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int r = 0; r < ranks; r++) sum += float(r == rank ? own[i] : arrivals[r * n + i]);
    sums[i] = E(MORE ? float(sums[i]) + sum : sum);
}

// The other ranks, if there are any.
inline std::optional<Nccl>& nccl() {
    static std::optional<Nccl> others;
    return others;
}
inline void join_nccl(std::string out) {
    const Launched who = launched();
    who.check();
    while (out.ends_with('/')) out.pop_back();               // what follows is a name beside it, not in it
    int gpus = 0;
    if (who.size > 1 && cudaGetDeviceCount(&gpus) == cudaSuccess && gpus) CHECK(cudaSetDevice(who.local % gpus));
    if (who.size > 1) nccl().emplace(out + ".ranks", who);
    join_world(who);
}

// What ranks tell each other before an update: the squares of their parts of the gradient, and their loss.
__global__ void tell_kernel(Outcome* told, const double* squares, int parts, const Outcome* outcome, bool first) {
    double sum = 0;
    for (int i = 0; i < parts; i++) sum += squares[i];
    *told = {first ? outcome->loss : 0, sum};                // the loss of a group its first rank's
}
__global__ void agree_kernel(Outcome* outcome, double* squares, const Outcome* told, int ranks) {
    outcome->loss = squares[0] = 0;
    for (int r = 0; r < ranks; r++) {
        outcome->loss += told[r].loss;
        squares[0] += told[r].norm;
    }
}

// NCCL's link, as dev/host/comm.h describes it: a stream of its own.
struct Link {
    cudaEvent_t computed = nullptr;
    std::vector<std::pair<cudaEvent_t, bool>> marks;         // of each slot, and whether it is to be waited for
    Outcome* told = nullptr;                 // by each rank

    Link() {
        if (!nccl()) return;
        CHECK(cudaEventCreateWithFlags(&computed, cudaEventDisableTiming));
        CHECK(cudaMalloc(&told, world().size * sizeof(Outcome)));
    }
    Link(const Link&) = delete;
    ~Link() {
        if (!nccl()) return;
        cudaStreamSynchronize(nccl()->stream);
        cudaEventDestroy(computed);
        cudaFree(told);
        for (auto& [event, pending] : marks) cudaEventDestroy(event);
    }
    void behind() {
        CHECK(cudaEventRecord(computed, device().stream));
        CHECK(cudaStreamWaitEvent(nccl()->stream, computed));
    }
    void exchange(const Comm& comm, const Moves& m) { nccl()->exchange(comm, m); }
    template <typename E>
    void add(const Comm& comm, E* sums, const E* own, const E* arrivals, size_t n, bool more = true) {
        const cudaStream_t main = std::exchange(device().stream, nccl()->stream);
        const auto kernel = more ? add_in_order_kernel<true, E> : add_in_order_kernel<false, E>;
        if (n) launch(kernel, ceil_div(n, 256), 256, 0, sums, own, arrivals, n, comm.rank, comm.size);
        device().stream = main;
    }
    void copy(float* to, const float* from, size_t n) {
        if (n) CHECK(cudaMemcpyAsync(to, from, n * sizeof(float), cudaMemcpyDeviceToDevice, nccl()->stream));
    }
    void clear(float* p, size_t n) { if (n) CHECK(cudaMemsetAsync(p, 0, n * sizeof(float), nccl()->stream)); }
    void then(auto) {}                       // arrived weights are as kernels read them
    void mark(int slot) {
        while ((int)marks.size() <= slot)
            CHECK(cudaEventCreateWithFlags(&marks.emplace_back().first, cudaEventDisableTiming));
        CHECK(cudaEventRecord(marks[slot].first, nccl()->stream));
        marks[slot].second = true;
    }
    void await(int slot) {
        if (slot >= (int)marks.size() || !marks[slot].second) return;
        marks[slot].second = false;
        CHECK(cudaStreamWaitEvent(device().stream, marks[slot].first));
    }
    // The squares of all ranks' parts of the gradient, in squares[0], and their loss.
    void agree(Outcome* outcome, double* squares, int parts) {
        const int rank = world().rank, size = world().size;
        Moves m;
        for (int r = 0; r < size; r++) {
            m.out.push_back(move(told + rank, r != rank));
            m.in.push_back(move(told + r, r != rank));
        }
        launch(tell_kernel, 1, 1, 0, told + rank, squares, parts, outcome, world().place() == 0);
        behind();
        exchange(world(), m);
        mark(0);                             // group 0 has arrived long ago
        await(0);
        launch(agree_kernel, 1, 1, 0, outcome, squares, told, size);
    }
};

/* a vocabulary that ranks share, V tokens from `first` on in this one: cpu::embedding_forward, of tokens less `first`,
   and cpu::cross_entropy
   layout   a block takes a row; what ranks have found in theirs is exchanged between the two kernels of cross-entropy
   cost     embedding 2X; cross-entropy: logits three times, with gradients four */
__global__ void embedding_part_kernel(floatX* embedded, const int* token, const floatX* wte, const floatX* wpe, int t0,
                                      int T, int C, int V, bool positions) {
    const int n = blockIdx.x, v = token[n];
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float what = (unsigned)v < (unsigned)V ? float(wte[(size_t)v * C + c]) : 0;
        const float where = positions ? float(wpe[(size_t)(t0 + n % T) * C + c]) : 0;
        embedded[(size_t)n * C + c] = floatX(what + where);
    }
}
__global__ void softmax_part_kernel(cpu::Found* found, const floatX* logits, const int* y, int first, int V,
                                    int stride) {
    const int n = blockIdx.x, target = y[n] - first;
    const floatX* const z = logits + (size_t)n * stride;
    float maximum = -INFINITY, sum = 0;
    for (int v = threadIdx.x; v < V; v += blockDim.x) maximum = fmaxf(maximum, float(z[v]));
    maximum = block_max(maximum);
    unsigned best = V;
    for (int v = threadIdx.x; v < V; v += blockDim.x) {
        sum += power_of_2(float(z[v]) * LOG2E - maximum * LOG2E);
        if (float(z[v]) == maximum) best = ::min(best, (unsigned)v);
    }
    sum = block_sum(sum);
    best = over_block(best, [](unsigned a, unsigned b) { return ::min(a, b); }, ~0u);
    if (threadIdx.x) return;
    const float at_target = (unsigned)target < (unsigned)V ? float(z[target]) : 0;
    found[n] = {.maximum = maximum, .sum = sum, .target = at_target, .best = first + (int)best};
}
__global__ void cross_entropy_part_kernel(floatX* logits, float* logprob, int* best, const int* y,
                                          TokenTerms<float> terms, const cpu::Found* found, int ranks, int first, int V,
                                          int stride, bool gradients) {
    const int n = blockIdx.x, rows = gridDim.x, target = y[n];
    cpu::Found most = found[n];
    float sum = 0, at_target = 0;
    for (int r = 1; r < ranks; r++) if (found[r * rows + n].maximum > most.maximum) most = found[r * rows + n];
    for (int r = 0; r < ranks; r++) {
        const cpu::Found& its = found[r * rows + n];
        sum += its.sum * power_of_2((its.maximum - most.maximum) * LOG2E);
        at_target += its.target;
    }
    const float lp = target >= 0 ? at_target - most.maximum - logf(sum) : 0;
    if (threadIdx.x == 0) logprob[n] = lp;
    if (threadIdx.x == 0) best[n] = target >= 0 ? most.best : -1;
    if (!gradients) return;
    const float weight = target >= 0 ? terms.loss<float>(n, lp).weight : 0, scale = weight / sum;
    for (int v = threadIdx.x; v < stride; v += blockDim.x) {
        floatX& z = logits[(size_t)n * stride + v];
        const float p = v < V ? scale * power_of_2(float(z) * LOG2E - most.maximum * LOG2E) : 0;
        z = floatX(p - (first + v == target && v < V ? weight : 0));
    }
}
template <typename Group>
void cross_entropy(floatX* logits, float* logprob, int* best, const int* y, const TokenTerms<float>& terms,
                   cpu::Found* found, Group& group, int rows, int first, int V, int stride, bool gradients) {
    const int threads = threads_for(V, 512);
    launch(softmax_part_kernel, rows, threads, 0, found + group.comm.rank * rows, logits, y, first, V, stride);
    group.gather(found, rows);
    launch(cross_entropy_part_kernel, rows, threads, 0, logits, logprob, best, y, terms, found, group.comm.size, first,
           V, stride, gradients);
}

}  // namespace gpu
#endif
