/* dev/host/comm.h -- several processes (ranks) that train one model: who they are, sums that all of them agree on, what
   each keeps of an arena (ZeRO), how gradients and weights travel while others are computed, and sums of activations
   where ranks share each layer. Built with MPI=1 the CPU program starts MPI; the CUDA program's NCCL is in
   dev/host/nccl.h. One process needs neither and moves nothing.
     all-gather       every rank sends its part of a range to all others
     reduce-scatter   every rank gets all others' numbers for its part, and adds them in the order of the ranks
     all-reduce       a reduce-scatter, and an all-gather of what it gave
   So the order of a sum is fixed, whatever a library would choose. Of n ranks, each sends (n - 1) / n of a range.
     source   Rajbhandari et al. 2020, arXiv:1910.02054, sections 5 and 7: what is kept, and what it costs to send;
              Shoeybi et al. 2019, arXiv:1909.08053, section 3: layers that ranks share */
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
    int lowest = 0, step = 1;                // of some of all ranks: rank r is number lowest + r step of all
    int tensor = 1;                          // consecutive ranks that share each layer, a tensor group
    std::vector<int> machine = {};           // of each rank: the first rank on it
    double sent = 0;                         // bytes, by this rank
    std::function<void(const void* mine, void* all, size_t bytes)> gather = {};      // so many of every rank

    bool first() const { return rank == 0; }
    std::string describe() const {
        const std::string groups = tensor == 1 ? "" : format(" in groups of %d that share each layer", tensor);
        return size == 1 ? "" : format("%d ranks%s, ZeRO %d; rank 0: ", size, groups.c_str(), zero);
    }
    // A tensor group trains on the same rows; ranks of the same place in their groups have the same parts of layers.
    int place() const { return rank % tensor; }
    int replica() const { return rank / tensor; }
    int replicas() const { return size / tensor; }
    Comm group(int n) const {                // of n ranks, 1 where a model is no group's
        if (n == 1) return {};
        return {.rank = place(), .size = n, .lowest = rank - place()};
    }
    Comm data() const {
        return {.rank = replica(), .size = replicas(), .zero = zero, .lowest = place(), .step = tensor};
    }
    // Of n things to do the first ranks have as many each, those of rank r in a row.
    Range share(size_t n, int r) const {
        const size_t most = (n + size - 1) / size, first = std::min(n, most * r);
        return {first, std::min(n, first + most) - first};
    }
    Range share(size_t n) const { return share(n, rank); }
    // From here on n ranks share each layer of a model with so many heads and tokens, and several groups of these have
    // the ZeRO that was asked for.
    void share_layers(int n, int asked, int heads, int vocab) {
        std::string fit;
        for (int k = 1; k <= size; k++)
            if (size % k == 0 && heads % k == 0 && k <= vocab) fit += format("%s%d", k == 1 ? "" : ", ", k);
        if (size % n || heads % n || n > vocab)
            die_usage("--tensor-parallel %d: must divide the %d ranks and the model's %d heads: take one of %s", n,
                      size, heads, fit.c_str());
        tensor = n;
        zero = replicas() > 1 ? asked : 0;
        if (n == 1 || !first()) return;
        for (int r = 0; r < size; r += n)
            if (machine[r] != machine[r + n - 1])
                return warn("--tensor-parallel %d: ranks %d to %d share each layer, but are on several machines; a "
                            "launcher that puts consecutive ranks on one makes it faster", n, r, r + n - 1);
    }
    // Sums, in the order of the ranks: all have the same bits.
    void sum(double* values, size_t n) const {
        if (size == 1) return;
        std::vector<double> all(n * size);
        gather(values, all.data(), n * sizeof(double));
        std::copy_n(all.data(), n, values);
        for (size_t i = n; i < all.size(); i++) values[i % n] += all[i];
    }
    void barrier() const {
        double none = 0;
        sum(&none, 1);
    }
    // The sum of what tensor groups have found, each rank of a group the same.
    double sum_of_groups(double value) const {
        if (place()) value = 0;
        sum(&value, 1);
        return value;
    }

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

// Rows of `width` numbers, of which rank r of a group has the columns part(r), side by side, made whole in place: all
// ranks of all groups do so at once.
template <typename F> void join_columns(float* rows, size_t count, size_t width, const Comm& group, F part) {
    if (group.size == 1) return;
    const size_t n = part(group.rank).n, most = count * (width / group.size + 1);        // numbers that a rank sends
    std::vector<float> mine(rows, rows + count * n), all(most * world().size);
    mine.resize(most);
    world().gather(mine.data(), all.data(), most * sizeof(float));
    for (int r = 0; r < group.size; r++) {
        const Range its = part(r);
        const float* const from = &all[(group.lowest + r) * most];
        for (size_t row = 0; row < count; row++) std::copy_n(from + row * its.n, its.n, rows + row * width + its.at);
    }
}

// What launchers tell the processes they start: mpirun of Open MPI, of MPICH and Intel; srun; torchrun.
struct Launched {
    int rank, size, local;
    void check() const {
        if (rank < 0 || rank >= size)
            die_usage("started as rank %d of %d, by the environment: the first of them is rank 0", rank, size);
    }
};
inline Launched launched() {
    const char* const variables[][3] = {
        {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
        {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
        {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
        {"RANK", "WORLD_SIZE", "LOCAL_RANK"}};
    for (auto& [rank, size, local] : variables)
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
inline void join_world(const Launched& who) {
    Comm& comm = world();
    comm.rank = who.rank;
    comm.size = who.size;
    if (comm.size == 1) return;
    std::array<char, 64> host = {};
    std::vector<std::array<char, 64>> hosts(comm.size);
    gethostname(host.data(), host.size() - 1);
    comm.gather(&host, hosts.data(), sizeof host);
    comm.here = std::count(hosts.begin(), hosts.end(), host);
    for (auto& its : hosts) comm.machine.push_back(std::find(hosts.begin(), hosts.end(), its) - hosts.begin());
    const int cores = omp_get_num_procs();                   // those that the launcher gave to this rank, or all
    if (cores == sysconf(_SC_NPROCESSORS_ONLN) && !getenv("OMP_NUM_THREADS"))
        omp_set_num_threads(std::max(1, cores / comm.here));
    if (!comm.first() && !freopen("/dev/null", "w", stdout)) die("/dev/null: cannot open: %s", strerror(errno));
}

// How what is trained, an arena of `size` numbers in which `layers` pieces of `stride` numbers begin at `first`, is
// shared out among ranks. What stands before and after the layers exists once. Layers and these two are groups,
// numbered as they are needed: 0 the first, 1 .. layers, and layers + 1 the last; a long one is sent in several pieces.
// An arena of gradients may have room for `ring` layers only, which take turns.
struct Shares {
    static constexpr size_t UNIT = 128;      // numbers; parts are whole units, as arrays are
    Comm comm;
    std::vector<Range> pieces;
    std::vector<size_t> group;               // its pieces: group[g] .. group[g + 1] - 1
    std::vector<size_t> in_ring;             // where a piece stands in an arena of gradients
    std::vector<size_t> kept;                // where this rank's part of a piece stands among its own; and their size
    size_t landing = 0;                      // numbers that other ranks may send at once

    Shares(const Comm& comm, size_t first, size_t stride, int layers, int ring, size_t size) : comm(comm), kept{0} {
        const size_t most = std::max<size_t>(stride, 1 << 22), end = first + layers * stride;
        auto add = [&](size_t at, size_t n, int down) {
            group.push_back(pieces.size());
            for (size_t done = 0; done < n; done += most) {
                pieces.push_back({at + done, std::min(n - done, most)});
                in_ring.push_back(at + done - down * stride);
            }
        };
        add(0, first, 0);
        for (int l = 0; l < layers; l++) add(first + l * stride, stride, l - l % ring);
        add(end, size - end, layers - ring);
        group.push_back(pieces.size());
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
    // f(at, n, own) for this rank's of numbers at .. at + n - 1, and where they stand in an arena of its own parts
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
    // Numbers that this rank has of each moment, and those beside its gradients.
    size_t moments() const { return comm.zero ? kept.back() : pieces.back().at + pieces.back().n; }
    size_t exchanged() const { return several() ? kept.back() + landing : 0; }
    std::vector<Range> of_tensor(size_t offset, size_t n) const {        // what this rank has of it
        if (!several()) return {{0, n}};
        std::vector<Range> ranges;
        each(offset, n, [&](size_t at, size_t some, size_t) { ranges.push_back({at - offset, some}); });
        return ranges;
    }
};

// What a rank sends to each rank, and takes from it.
struct Move { void* p; size_t bytes; };
struct Moves { std::vector<Move> out, in; };
template <typename E> Move move(E* p, size_t n) { return {p, n * sizeof(E)}; }

// All-gather of an array of which part(r) is rank r's: every part to where it belongs.
template <typename E, typename F> Moves gather_moves(const Comm& comm, F part, E* array) {
    Moves m;
    const Range mine = part(comm.rank);
    for (int r = 0; r < comm.size; r++) {
        const Range its = part(r);
        const bool other = r != comm.rank;
        m.out.push_back(move(array + mine.at, other * mine.n));
        m.in.push_back(move(array + its.at, other * its.n));
    }
    return m;
}
// Reduce-scatter: landing gets the numbers of rank r for this rank's part at r * its size.
template <typename E, typename F> Moves reduce_moves(const Comm& comm, F part, E* array, E* landing) {
    Moves m;
    const size_t n = part(comm.rank).n;
    for (int r = 0; r < comm.size; r++) {
        const Range its = part(r);
        const bool other = r != comm.rank;
        m.out.push_back(move(array + its.at, other * its.n));
        m.in.push_back(move(landing + r * n, other * n));
    }
    return m;
}

/* What ranks send each other while layers are computed, for both programs. A link does such work in order, beside what
   is computed:
     exchange(comm, moves)   add(comm, sums, own, arrivals, n)   copy(to, from, n)   clear(p, n)   then(f)   mark(slot)
   behind(): the next exchange begins behind all that was computed or asked for so far. await(slot): what is computed
   from now on waits for that mark, if it is still to come.
   E is the type of gradients; `gradients` is the arena of a micro-batch, `sums` has this rank's parts of those of all;
   of one rank they are the same. */
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
            link.behind();
            link.exchange(comm, reduce_moves(comm, parts(p, pieces[p].at), piece, arrivals));
            link.add(comm, sums + kept[p], piece + mine.at - pieces[p].at, arrivals, mine.n);
            link.clear(piece, pieces[p].n);
        }
        turn ^= 1;
        link.mark(reduced + turn);
        link.await(reduced + (turn ^ 1));    // of the group before, whose place the next one may take
    }
    void await_gradients() { if (several()) link.await(reduced + turn); }
    void gather_gradients() {                // ZeRO 0: the sums of all ranks' parts, which nothing reads any more
        for (size_t p = 0; p < pieces.size(); p++) {
            const Range mine = part(p, comm.rank);
            link.copy(gradients + mine.at, sums + kept[p], mine.n);
            link.clear(sums + kept[p], mine.n);
            link.behind();
            link.exchange(comm, gather_moves(comm, parts(p), gradients));
        }
        link.mark(reduced);
        link.await(reduced);
    }
    // ZeRO 1 and 2: the weights that each rank has updated; arrived(at, n) follows a piece's.
    template <typename W, typename F> void send_weights(W* weights, F arrived) {
        link.behind();
        for (int g = 0; g + 1 < (int)group.size(); g++) {
            for (size_t p = group[g]; p < group[g + 1]; p++) {
                link.exchange(comm, gather_moves(comm, parts(p), weights));
                link.then([=, piece = pieces[p]] { arrived(piece.at, piece.n); });
            }
            link.mark(g);
        }
    }
    void await_weights(int g) { if (several()) link.await(g); }
private:
    auto parts(size_t p, size_t from = 0) const {            // of piece p, in an array that begins at `from`
        return [this, p, from](int r) {
            const Range its = part(p, r);
            return Range{its.at - from, its.n};
        };
    }
};

/* The ranks that share each layer: sums of activations, of which each has a part. What is computed next waits for them.
   A is the type of activations; `arrivals` has room for one of them, and a number a rank. */
template <typename Link, typename A> struct Group {
    Comm comm;
    Link link = {};
    A* arrivals = nullptr;

    bool several() const { return comm.size > 1; }
    bool first() const { return comm.rank == 0; }
    void sum(A* x, size_t n) {               // an all-reduce
        if (!several()) return;
        auto part = [=, size = comm.size](int r) { return Range{n * r / size, n * (r + 1) / size - n * r / size}; };
        const Range mine = part(comm.rank);
        link.behind();
        link.exchange(comm, reduce_moves(comm, part, x, arrivals));
        link.add(comm, x + mine.at, x + mine.at, arrivals, mine.n, false);
        link.behind();
        link.exchange(comm, gather_moves(comm, part, x));
        link.mark(0);
        link.await(0);
    }
    // An all-gather: n of rank r stand at all + r n.
    template <typename E> void gather(E* all, size_t n) {
        link.behind();
        link.exchange(comm, gather_moves(comm, [=](int r) { return Range{r * n, n}; }, all));
        link.mark(0);
        link.await(0);
    }
};

/* MPI's link. An exchange begins at once; what follows it is done when something waits for it.
     errors   MPI ends all processes; so does its launcher where one of them ends by itself */
struct MpiLink {
    struct Work { std::function<void()> todo; int slot; };
    std::deque<Work> queue;

    void exchange([[maybe_unused]] const Comm& comm, const Moves& m) {
        for (const Move& out : m.out) world().sent += out.bytes;
#ifdef USE_MPI
        const auto requests = std::make_shared<std::vector<MPI_Request>>();
        const size_t most = 1 << 30;         // a message's bytes are an int
        auto each = [&](const std::vector<Move>& moves, auto f) {
            for (int r = 0; r < (int)moves.size(); r++) for (size_t at = 0; at < moves[r].bytes; at += most)
                f((char*)moves[r].p + at, (int)std::min(most, moves[r].bytes - at), MPI_BYTE,
                  comm.lowest + r * comm.step, 0, MPI_COMM_WORLD, &requests->emplace_back());
        };
        each(m.in, MPI_Irecv);
        each(m.out, MPI_Isend);
        then([=] { MPI_Waitall(requests->size(), requests->data(), MPI_STATUSES_IGNORE); });
#endif
    }
    void then(std::function<void()> f) { queue.push_back({f, -1}); }
    template <typename E> void copy(E* to, const E* from, size_t n) { then([=] { std::copy_n(from, n, to); }); }
    template <typename E> void clear(E* p, size_t n) { then([=] { std::fill_n(p, n, E(0)); }); }
    // sums = own + what other ranks have sent, n numbers of each, in the order of ranks; more: sums +=
    template <typename E>
    void add(const Comm& comm, E* sums, const E* own, const E* arrived, size_t n, bool more = true) {
        then([=, rank = comm.rank, size = comm.size] {
            #pragma omp parallel for simd schedule(static)
            for (size_t i = 0; i < n; i++) {
                E sum = 0;
                for (int r = 0; r < size; r++) sum += r == rank ? own[i] : arrived[r * n + i];
                sums[i] = more ? sums[i] + sum : sum;
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
        for (size_t i = 0; i < n; i++) {
            if (queue.front().todo) queue.front().todo();
            queue.pop_front();
        }
    }
};
inline void join_mpi() {
    Launched who = launched();
    who.check();
    if (who.size > 1) {
#ifdef USE_MPI
        const int told = who.size;
        int threads;
        MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads);
        MPI_Comm_rank(MPI_COMM_WORLD, &who.rank);
        MPI_Comm_size(MPI_COMM_WORLD, &who.size);
        if (who.size != told)
            die("one of %d processes, of which MPI sees %d: start them with mpirun, or with srun --mpi=pmix", told,
                who.size);
        world().gather = [](const void* mine, void* all, size_t bytes) {
            MPI_Allgather(mine, bytes, MPI_BYTE, all, bytes, MPI_BYTE, MPI_COMM_WORLD);
        };
#else
        die("started as one of %d processes, but built for one: make MPI=1", who.size);
#endif
    }
    join_world(who);
}
inline void leave_mpi() {                    // when all do
#ifdef USE_MPI
    if (world().size > 1) MPI_Finalize();
#endif
}
