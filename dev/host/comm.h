/* dev/host/comm.h -- several processes (ranks) that train one model: who they are, sums that all of them agree on, what each
   keeps of an arena (ZeRO), and how gradients and weights travel while others are computed. Built with MPI=1 the CPU
   program starts MPI; the CUDA program's NCCL is in dev/host/nccl.h. One process needs neither and moves nothing.
     all-gather       every rank sends its part of a range to all others
     reduce-scatter   every rank gets all others' numbers for its part, and adds them in the order of the ranks
     all-reduce       a reduce-scatter, and an all-gather of what it gave
   So the order of a sum is fixed, whatever a library would choose. Of n ranks, each sends (n - 1) / n of a range.
     source   Rajbhandari et al. 2020, arXiv:1910.02054, sections 5 and 7: what is kept, and what it costs to send */
#pragma once
#include "arena.h"
#include "machine.h"
#include <deque>
#include <functional>
#include <optional>
#ifdef USE_MPI
#include <mpi.h>
#endif

struct Comm {
    int rank = 0, size = 1;
    int here = 1;                            // ranks on this machine
    int zero = 0;                            // what is kept in parts: 1 moments, 2 gradients, too
    double sent = 0;                         // bytes, by this rank
    std::function<void(const void* mine, void* all, size_t bytes)> gather;       // the same number of bytes from every rank

    bool first() const { return rank == 0; }
    std::string describe() const { return size == 1 ? "" : format("%d ranks, ZeRO %d; rank 0: ", size, zero); }
    // Sums, in the order of the ranks: all have the same bits.
    void sum(double* values, size_t n) const {
        if (size == 1) return;
        std::vector<double> all(n * size);
        gather(values, all.data(), n * sizeof(double));
        std::copy_n(all.data(), n, values);
        for (size_t i = n; i < all.size(); i++) values[i % n] += all[i];
    }
    double sum(double value) const { return sum(&value, 1), value; }
    void barrier() const { sum(0); }

    std::vector<std::string> texts(const std::string& mine) const {      // of all ranks
        if (size == 1) return {mine};
        const double length = mine.size();
        std::vector<double> lengths(size);
        gather(&length, lengths.data(), sizeof length);
        const size_t longest = *std::max_element(lengths.begin(), lengths.end());
        std::string padded = mine, all(longest * size, '\0');
        padded.resize(longest);
        if (longest) gather(padded.data(), all.data(), longest);
        std::vector<std::string> texts;
        for (int r = 0; r < size; r++) texts.push_back(all.substr(r * longest, lengths[r]));
        return texts;
    }
    // Dies on a rank where one of these texts, by name, is another than on rank 0.
    void same(const std::vector<std::pair<std::string, std::string>>& named) const {
        for (auto& [name, text] : named)
            if (const std::string its = texts(text)[0]; its != text)
                die("%s: '%s' here, and on rank 0 '%s'", name.c_str(), text.c_str(), its.c_str());
    }
};
inline Comm& world() {
    static Comm comm;
    return comm;
}

// What launchers tell the processes they start: mpirun of Open MPI, of MPICH and Intel; srun; torchrun.
struct Launched { int rank, size, local; };
inline Launched launched() {
    for (auto& [rank, size, local] : {std::array{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
                                      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"}, {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
                                      {"RANK", "WORLD_SIZE", "LOCAL_RANK"}})
        if (getenv(rank) && getenv(size)) {
            const char* const place = getenv(local) ? getenv(local) : getenv("SLURM_LOCALID");
            return {atoi(getenv(rank)), atoi(getenv(size)), place ? atoi(place) : 0};
        }
    return {0, 1, 0};
}
// What another rank than 0 dies of has its number; what all die of is rank 0's to say.
inline void name_speaker() {
    if (const Launched who = launched(); who.rank) speaker() = format("rank %d: ", who.rank);
}
// From here on rank 0 alone talks.
inline void join_world(const Launched& who, int zero) {
    Comm& comm = world();
    comm.rank = who.rank, comm.size = who.size, comm.zero = who.size > 1 ? zero : 0;
    if (comm.size == 1) return;
    std::array<char, 64> host = {};
    std::vector<std::array<char, 64>> hosts(comm.size);
    gethostname(host.data(), host.size() - 1);
    comm.gather(&host, hosts.data(), sizeof host);
    comm.here = std::count(hosts.begin(), hosts.end(), host);
    const int cores = omp_get_num_procs();                   // those that the launcher gave to this rank, or all
    if (cores == sysconf(_SC_NPROCESSORS_ONLN) && !getenv("OMP_NUM_THREADS")) omp_set_num_threads(std::max(1, cores / comm.here));
    if (!comm.first() && !freopen("/dev/null", "w", stdout)) die("/dev/null: cannot open: %s", strerror(errno));
}

// How what is trained, an arena of `size` numbers in which `layers` pieces of `stride` numbers begin at `first`, is shared out
// among ranks. What stands before and after the layers exists once. Layers and these two are groups, numbered as they
// are needed: 0 the first, 1 .. layers, and layers + 1 the last; a long one is sent in several pieces. An arena of gradients
// may have room for `ring` layers only, which take turns.
struct Shares {
    static constexpr size_t UNIT = 128;      // numbers; parts are whole units, as arrays are
    Comm comm;
    std::vector<Range> pieces;
    std::vector<size_t> group;               // its pieces: group[g] .. group[g + 1] - 1
    std::vector<size_t> in_ring;             // where a piece stands in an arena of gradients
    std::vector<size_t> kept;                // where this rank's part of a piece stands among all of its own; their size
    size_t landing = 0;                      // numbers that other ranks may send at once

    Shares(const Comm& comm, size_t first, size_t stride, int layers, int ring, size_t size) : comm(comm), kept{0} {
        const size_t most = std::max<size_t>(stride, 1 << 22), end = first + layers * stride;
        auto add = [&](size_t at, size_t n, int turned) {
            group.push_back(pieces.size());
            for (; n; at += pieces.back().n, n -= pieces.back().n)
                pieces.push_back({at, std::min(n, most)}), in_ring.push_back(at - turned * stride);
        };
        add(0, first, 0);
        for (int l = 0; l < layers; l++) add(first + l * stride, stride, l - l % ring);
        add(end, size - end, layers - ring), group.push_back(pieces.size());
        for (size_t p = 0; p < pieces.size(); p++) {
            kept.push_back(kept[p] + part(p, comm.rank).n);
            landing = std::max(landing, comm.size * part(p, comm.rank).n);
        }
    }
    // The part of a piece that belongs to a rank.
    Range part(size_t p, int rank) const {
        const size_t units = pieces[p].n / UNIT, begin = units * rank / comm.size, end = units * (rank + 1) / comm.size;
        return {pieces[p].at + begin * UNIT, (end - begin) * UNIT};
    }
    // f(at, n, own) for what is this rank's of numbers at .. at + n - 1, and where it stands in an arena of its own parts
    template <typename F> void each(size_t at, size_t n, F f) const {
        for (size_t p = 0; p < pieces.size(); p++) {
            const Range mine = part(p, comm.rank);
            const size_t begin = std::max(at, mine.at), end = std::min(at + n, mine.at + mine.n);
            if (begin < end) f(begin, end - begin, kept[p] + begin - mine.at);
        }
    }
    // f(place, i, n) for numbers i .. i + n - 1 of those `at` .. that are in an arena of all, or of this rank's parts
    template <typename E, typename F> void places(E* arena, bool of_parts, size_t at, size_t n, F f) const {
        if (!of_parts) f(arena + at, 0, n);
        else each(at, n, [&](size_t begin, size_t some, size_t own) { f(arena + own, begin - at, some); });
    }
    bool several() const { return comm.size > 1; }
    size_t moments() const { return comm.zero ? kept.back() : pieces.back().at + pieces.back().n; }  // numbers that this rank has
    size_t exchanged() const { return several() ? kept.back() + landing : 0; }       // and those beside its gradients
    std::optional<std::vector<Range>> of_tensor(size_t offset, size_t n) const {     // what this rank has of it; none: all
        std::vector<Range> ranges;
        each(offset, n, [&](size_t at, size_t some, size_t) { ranges.push_back({at - offset, some}); });
        return several() ? std::optional(ranges) : std::nullopt;
    }
};

// What a rank sends to each rank, and takes from it.
struct Move { void* p; size_t bytes; };
struct Moves { std::vector<Move> out, in; };
template <typename E> Move move(E* p, size_t n) { return {p, n * sizeof(E)}; }

// All-gather of piece p: every part to where it belongs.
template <typename E> Moves gather_moves(const Shares& s, size_t p, E* arena) {
    Moves m;
    const Range mine = s.part(p, s.comm.rank);
    for (int r = 0; r < s.comm.size; r++) {
        const Range its = s.part(p, r);
        const bool other = r != s.comm.rank;
        m.out.push_back(move(arena + mine.at, other * mine.n)), m.in.push_back(move(arena + its.at, other * its.n));
    }
    return m;
}
// Reduce-scatter of piece p, which begins at `piece`: landing gets the numbers of rank r for this rank's part at r * its size.
template <typename E> Moves reduce_moves(const Shares& s, size_t p, E* piece, E* landing) {
    Moves m;
    const size_t n = s.part(p, s.comm.rank).n;
    for (int r = 0; r < s.comm.size; r++) {
        const Range its = s.part(p, r);
        const bool other = r != s.comm.rank;
        m.out.push_back(move(piece + its.at - s.pieces[p].at, other * its.n)), m.in.push_back(move(landing + r * n, other * n));
    }
    return m;
}

/* What ranks send each other while layers are computed, for both programs. A link does such work in order, beside what is
   computed:
     exchange(moves)   add(sums, own, arrivals, n)   copy(to, from, n)   clear(p, n)   then(f)   mark(slot)
   behind(): the next exchange begins behind all that was computed or asked for so far. await(slot): what is computed from now
   on waits for that mark, if it is still to come.
   E is the type of gradients; `gradients` is the arena of a micro-batch, `sums` has this rank's parts of those of all; of one
   rank they are the same. */
template <typename Link, typename E> struct Sharing : Shares {
    Link link;
    E *gradients = nullptr, *sums = nullptr, *arrivals = nullptr;
    int reduced, turn = 0;                   // the slots of gradients, which take turns; others are groups of weights

    Sharing(const Shares& shares) : Shares(shares), reduced(group.size()) {}
    void reduce_gradients(int g) {           // as soon as those of a group are whole
        if (!several()) return;
        for (size_t p = group[g]; p < group[g + 1]; p++) {
            E* const piece = gradients + in_ring[p];
            const Range mine = part(p, comm.rank);
            link.behind(), link.exchange(reduce_moves(*this, p, piece, arrivals));
            link.add(sums + kept[p], piece + mine.at - pieces[p].at, arrivals, mine.n);
            link.clear(piece, pieces[p].n);
        }
        link.mark(reduced + (turn ^= 1));
        link.await(reduced + (turn ^ 1));    // of the group before, whose place the next one may take
    }
    void await_gradients() { if (several()) link.await(reduced + turn); }
    void gather_gradients() {                // ZeRO 0: the sums of all ranks' parts, which nothing reads any more
        for (size_t p = 0; p < pieces.size(); p++) {
            const Range mine = part(p, comm.rank);
            link.copy(gradients + mine.at, sums + kept[p], mine.n), link.clear(sums + kept[p], mine.n);
            link.behind(), link.exchange(gather_moves(*this, p, gradients));
        }
        link.mark(reduced), link.await(reduced);
    }
    // ZeRO 1 and 2: the weights that each rank has updated; arrived(at, n) follows a piece's.
    template <typename W, typename F> void send_weights(W* weights, F arrived) {
        link.behind();
        for (int g = 0; g + 1 < (int)group.size(); g++) {
            for (size_t p = group[g]; p < group[g + 1]; p++)
                link.exchange(gather_moves(*this, p, weights)), link.then([=, piece = pieces[p]] { arrived(piece.at, piece.n); });
            link.mark(g);
        }
    }
    void await_weights(int g) { if (several()) link.await(g); }
};

/* MPI's link. An exchange begins at once; what follows it is done when something waits for it.
     errors   MPI ends all processes; so does its launcher where one of them ends by itself */
struct MpiLink {
    struct Work { std::function<void()> todo; int slot; };
    std::deque<Work> queue;

    void exchange(const Moves& m) {
        for (const Move& out : m.out) world().sent += out.bytes;
#ifdef USE_MPI
        const auto requests = std::make_shared<std::vector<MPI_Request>>();
        const size_t most = 1 << 30;         // a message's bytes are an int
        auto each = [&](const std::vector<Move>& moves, auto f) {
            for (int r = 0; r < (int)moves.size(); r++) for (size_t at = 0; at < moves[r].bytes; at += most)
                f((char*)moves[r].p + at, (int)std::min(most, moves[r].bytes - at), MPI_BYTE, r, 0, MPI_COMM_WORLD, &requests->emplace_back());
        };
        each(m.in, MPI_Irecv), each(m.out, MPI_Isend);
        then([=] { MPI_Waitall(requests->size(), requests->data(), MPI_STATUSES_IGNORE); });
#endif
    }
    void then(std::function<void()> f) { queue.push_back({f, -1}); }
    template <typename E> void copy(E* to, const E* from, size_t n) { then([=] { std::copy_n(from, n, to); }); }
    template <typename E> void clear(E* p, size_t n) { then([=] { std::fill_n(p, n, E(0)); }); }
    // sums += own + what other ranks have sent, n numbers of each, in the order of ranks
    template <typename E> void add(E* sums, const E* own, const E* arrived, size_t n) {
        then([=] {
            const int rank = world().rank, size = world().size;
            #pragma omp parallel for simd schedule(static)
            for (size_t i = 0; i < n; i++) {
                E sum = 0;
                for (int r = 0; r < size; r++) sum += r == rank ? own[i] : arrived[r * n + i];
                sums[i] += sum;
            }
        });
    }
    void mark(int slot) { queue.push_back({nullptr, slot}); }
    void behind() { finish(queue.size()); }
    void await(int slot) {
        const auto it = std::find_if(queue.begin(), queue.end(), [=](const Work& w) { return w.slot == slot; });
        if (it != queue.end()) finish(it - queue.begin() + 1);
    }
    void finish(size_t n) {
        for (; n > 0; n--, queue.pop_front()) if (queue.front().todo) queue.front().todo();
    }
};
inline void join_mpi(int zero) {
    Launched who = launched();
    if (who.size > 1) {
#ifdef USE_MPI
        const int told = who.size;
        int threads;
        MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads);
        MPI_Comm_rank(MPI_COMM_WORLD, &who.rank), MPI_Comm_size(MPI_COMM_WORLD, &who.size);
        if (who.size != told) die("one of %d processes, of which MPI sees %d: start them with mpirun, or with srun --mpi=pmix", told, who.size);
        world().gather = [](const void* mine, void* all, size_t bytes) {
            MPI_Allgather(mine, bytes, MPI_BYTE, all, bytes, MPI_BYTE, MPI_COMM_WORLD);
        };
#else
        die("started as one of %d processes, but built for one: make MPI=1", who.size);
#endif
    }
    join_world(who, zero);
}
inline void leave_mpi() {                    // when all do
#ifdef USE_MPI
    if (world().size > 1) MPI_Finalize();
#endif
}
