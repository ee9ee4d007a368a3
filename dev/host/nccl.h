/* dev/host/nccl.h -- the GPUs of several processes: NCCL, built in with NCCL=1. Sends and receives go through a stream of their
   own, so that they travel while kernels compute; who reads what arrives waits for an event. Ranks, one for each GPU, come
   from the environment of mpirun, srun or torchrun, and meet in a directory that all of them see. */
#pragma once
#include "comm.h"
#include <atomic>
#include <random>
#include <thread>
#ifdef CUDART_VERSION                        // train_gpt.cu has included CUDA
#ifndef USE_NCCL
struct Nccl {
    cudaStream_t stream = nullptr;
    Nccl(const std::string&, const Launched& who) { die("started as one of %d processes, but built for one: make train_gpt_cuda NCCL=1", who.size); }
    void exchange(Comm&, const Moves&) {}
    void leave() {}
};
#else
#include <nccl.h>

inline void must(cudaError_t e, const char* call) { if (e != cudaSuccess) die("%s: %s", call, cudaGetErrorString(e)); }
inline void must(ncclResult_t e, const char* call) { if (e != ncclSuccess) die("%s: %s", call, ncclGetErrorString(e)); }
#define MUST(call) must(call, #call)

/* How ranks come by the id of a new communicator. Each other rank says hello with a number it has just drawn; the first answers
   with the id and all of these numbers, anew whenever one changes; who finds his own there takes the id and says so. So what
   an earlier run left is never taken for an answer. */
inline ncclUniqueId meet(const std::string& directory, const Launched& who) {
    const double began = seconds(), patience = 300;
    auto path = [&](const char* what, int rank) { return directory + format("/%s_%d", what, rank); };
    auto say = [&](const std::string& path, std::string_view text) {
        std::error_code error;
        write_file(path + ".new", text), fs::rename(path + ".new", path, error);
    };
    auto heard = [&](const std::string& path) -> std::string {           // which may vanish at any time
        try { return read_file(path); } catch (const Error&) { return ""; }
    };
    std::error_code error;
    fs::create_directories(directory, error);
    if (error) die("%s: cannot create: %s", directory.c_str(), error.message().c_str());
    std::random_device random;
    ncclUniqueId id = {};
    if (who.rank) {
        const std::string mine = format("%08x%08x;", random(), random());
        for (std::string answer; seconds() - began < patience; usleep(20000)) {
            fs::create_directories(directory, error);
            if (heard(path("hello", who.rank)) != mine) say(path("hello", who.rank), mine);
            answer = heard(path("id", 0));
            if (answer.size() <= sizeof id || answer.find(mine, sizeof id) == answer.npos) continue;
            memcpy(&id, answer.data(), sizeof id);
            say(path("got", who.rank), mine + answer.substr(0, sizeof id));
            return id;
        }
        die("no word from rank 0 in %s for %g seconds", directory.c_str(), patience);
    }
    MUST(ncclGetUniqueId(&id));
    const std::string text((const char*)&id, sizeof id);
    for (std::string said; seconds() - began < patience; usleep(20000)) {
        std::string hellos;
        int got = 0;
        for (int rank = 1; rank < who.size; rank++) {
            const std::string its = heard(path("hello", rank));
            hellos += its, got += !its.empty() && heard(path("got", rank)) == its + text;
        }
        if (got == who.size - 1) return fs::remove_all(directory, error), id;
        if (hellos != said) say(path("id", 0), text + hellos), said = hellos;
    }
    std::string missing;
    for (int rank = 1; rank < who.size; rank++) if (heard(path("got", rank)).empty()) missing += format(" %d", rank);
    die("no word from rank%s in %s for %g seconds", missing.c_str(), directory.c_str(), patience);
}

struct Nccl {
    const Launched who;
    ncclComm_t comm;
    cudaStream_t stream;
    char* memory = nullptr;                  // of gather()
    size_t room = 0;
    std::atomic<bool> ending = false;
    std::thread watch;

    Nccl(const std::string& directory, const Launched& who) : who(who) {
        MUST(ncclCommInitRank(&comm, who.size, meet(directory, who), who.rank));
        MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        world().gather = [this](const void* mine, void* all, size_t bytes) { gather(mine, all, bytes); };
        watch = std::thread([this] {                         // another rank that has died would be waited for without end
            for (ncclResult_t state = ncclSuccess; !ending; usleep(50000)) {
                if (ncclCommGetAsyncError(comm, &state) == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) continue;
                fprintf(stderr, "error: rank %d: NCCL: %s: another rank has ended\n", this->who.rank, ncclGetErrorString(state));
                _exit(1);
            }
        });
    }
    ~Nccl() { if (watch.joinable()) ending = true, watch.join(); }
    void gather(const void* mine, void* all, size_t bytes) {
        if (bytes == 0) return;
        if (bytes * who.size > room) cudaFree(memory), MUST(cudaMalloc(&memory, room = bytes * who.size));
        char* const own = memory + bytes * who.rank;
        MUST(cudaMemcpyAsync(own, mine, bytes, cudaMemcpyHostToDevice, stream));
        MUST(ncclAllGather(own, memory, bytes, ncclInt8, comm, stream));
        MUST(cudaMemcpyAsync(all, memory, bytes * who.size, cudaMemcpyDeviceToHost, stream));
        MUST(cudaStreamSynchronize(stream));
    }
    void exchange(Comm& world, const Moves& m) {
        MUST(ncclGroupStart());
        for (int r = 0; r < who.size; r++) {
            world.sent += m.out[r].bytes;
            if (m.out[r].bytes) MUST(ncclSend(m.out[r].p, m.out[r].bytes, ncclInt8, r, comm, stream));
            if (m.in[r].bytes) MUST(ncclRecv(m.in[r].p, m.in[r].bytes, ncclInt8, r, comm, stream));
        }
        MUST(ncclGroupEnd());
    }
    void leave() {                           // when all do
        ending = true;
        world().barrier();
        watch.join();
        MUST(ncclCommDestroy(comm));
    }
};
#endif
#endif
