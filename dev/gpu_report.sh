#!/bin/bash
# dev/gpu_report.sh [STAGE...] -- everything to be known of the CUDA program on this machine's GPU, in stages that end
# within 4 minutes each, in this order where none are named:
#
#   build        the programs and all ladders of dev/
#   check        --check in bf16 and fp32, the program's promises (test/gpu.sh), the golden cases, all rungs at small
#                shapes
#   peers        llm.c, from a checkout named by LLMC=, with and without cuDNN; what torch.compile can prepare for race
#                and race48
#   train        GPT-2 124M at 64 x 1024 and 1.5B at 16 x 1024: medians of the step time, the clock, the power; joules a
#                step
#   race         124M by turns: this program, compiled PyTorch, llm.c with cuDNN and without; medians of the turns, and
#                ratios
#   race48       1.5B, the same
#   learning     loss and norm beside those of transformers, from one checkpoint on one batch
#   sampling     tokens/s of 1, 8 and 64 texts by 124M, weights in bf16, int8 and nf4, and for how long a checkpoint
#                holds up training
#   torch        124M in PyTorch at other batches and with cuDNN's attention, and its functions one by one
#   ranks        NCCL: several ranks, as test/ranks.sh has them, which share one GPU where there are no more
#   kernels      all ladders timed: a table. LADDERS="attention matmul" does some of them again
#   determinism  hashes of the checkpoints of 20 small runs, and of 3 of 124M
#   memcheck racecheck initcheck synccheck       compute-sanitizer on --check and on all rungs at tiny shapes
#   report       one Markdown file of all that was run, and a picture
#
# What a stage printed stays in build/report (or in $REPORT), with date and commit, until the stage runs again; whole
# logs in its folder logs. A stage goes on after a failure, after which the exit code is 1; it skips aloud what it has
# no tools for, and what its time ($LIMIT s) no longer suffices for has failed. PYTHON= names another python3. With
# FORK=cut_heads, build also builds test/forks/cut_heads.patch, which then takes part in the races. For trials without
# a GPU there are PROGRAM=, D12=layers,heads,channels, D48=, BATCH=, BATCH48= and CONTEXT=.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit
out=${REPORT:-build/report}
mkdir -p "$out/logs"
STAGES="build check peers train race race48 learning sampling torch ranks kernels determinism"
STAGES="$STAGES memcheck racecheck initcheck synccheck report"
all_ladders=$(ls dev/*.cu | sed 's|dev/||; s|\.cu||')
ladders=${LADDERS:-$all_ladders}
program=${PROGRAM:-./train_gpt_cuda} python=${PYTHON:-python3} LIMIT=${LIMIT:-240}
D12=${D12:-d12} D48=${D48:-d48} BATCH=${BATCH:-64} BATCH48=${BATCH48:-16} CONTEXT=${CONTEXT:-1024}

smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader | head -1; }
cuda() { "${NVCC:-nvcc}" --version 2> /dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' | grep . || echo 0; }
left() { echo $((LIMIT - (SECONDS - begun))); }             # seconds of the stage
median() { sort -g | awk '{ v[NR] = $1 } END { if (!NR) exit 1; print v[int((NR + 1) / 2)] }'; }
range() { sort -g | sed -n '1p; $p' | paste -sd' ' | sed 's/ / to /'; }
# Runs a command for at most so many seconds; shows the end of what it printed, or what failed.
try() {                                      # SECONDS LINES COMMAND...
    local limit=$1 lines=$2 start=$SECONDS code
    shift 2
    log=$out/logs/$(echo "$*" | tr -c 'A-Za-z0-9\n' _ | cut -c1-120).log
    printf '\n$ %s\n' "$*"
    [ "$limit" -lt "$(left)" ] || limit=$(left)
    [ "$limit" -gt 0 ] || { echo "FAILED: not run, the stage's $LIMIT s are over"; return 1; }
    timeout -k 5 "$limit" "$@" > "$log" 2>&1
    code=$?
    [ $code -eq 0 ] || grep -m 20 -E '^FAIL|rror|\*\*\*' "$log"
    tail -n "$lines" "$log"
    [ $code -eq 0 ] && echo "ok, $((SECONDS - start)) s" || echo "FAILED with exit code $code, $((SECONDS - start)) s"
    return $code
}
together() {                                 # COMMAND...: each a word, all at once, on two threads each
    local i=0 command
    for command in "$@"; do
        i=$((i + 1))
        OMP_NUM_THREADS=2 try "$LIMIT" 1 $command > "$out/logs/together_$i" 2>&1 &
    done
    wait
    for i in $(seq $i); do cat "$out/logs/together_$i"; done
}
have() {                                     # MODULE...: whether Python does
    "$python" -c "import $(echo "$*" | tr ' ' ,)" 2> /dev/null || { echo "skip: $python without $*"; return 1; }
}

# A shard of tokens as frequent as in text: the k-th as often as 1 / k.
tokens() {                                   # FILE COUNT
    [ -s "$1" ] || "$python" - "$1" "$2" 50257 <<'END'
import array, math, os, random, struct, sys
path, n, V = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(1)
some = array.array("H", (min(V - 1, int(math.exp(rng.random() * math.log(V + 1))) - 1) for _ in range(1 << 20)))
tokens = array.array("H")
while len(tokens) < n:
    at = rng.randrange(len(some))
    tokens += some[at:] + some[:at]
with open(path + ".part", "wb") as f:
    f.write(struct.pack("<3i", 20240520, 1, n).ljust(1024, b"\0"))
    tokens[:n].tofile(f)
os.rename(path + ".part", path)
END
}
many=build/tokens.bin
shape() {                                    # d12, or layers,heads,channels: as options
    case $1 in
        *,*) echo "$1" | sed 's/\(.*\),\(.*\),\(.*\)/--init custom --layers \1 --heads \2 --channels \3/' ;;
        *) echo "--init $1" ;;
    esac
}
run_of() { echo "$program train --train $many --sample-every 0 --eval-every 0 $*"; }

# The card at work: a sample every 0.1 s while it is watched, and of these the ones at 80 % of the maximum power or
# more.
watch() {
    stdbuf -oL nvidia-smi -i 0 --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader -lms 100 \
        > "$out/logs/samples" 2> /dev/null &
    watcher=$!
}
seen() {                                     # sets clock, clocks, watts, degrees
    kill $watcher 2> /dev/null
    wait $watcher 2> /dev/null
    local most
    most=$(cut -d, -f2 "$out/logs/samples" | tr -cd '0-9.\n' | sort -g | tail -1)
    awk -F, -v most="${most:-0}" 'NF == 3 && $2 + 0 >= 0.8 * most { print $1 + 0, $2 + 0, $3 + 0 }' \
        "$out/logs/samples" > "$out/logs/busy"
    clock=$(cut -d' ' -f1 "$out/logs/busy" | median) clocks=$(cut -d' ' -f1 "$out/logs/busy" | range)
    watts=$(cut -d' ' -f2 "$out/logs/busy" | median) degrees=$(cut -d' ' -f3 "$out/logs/busy" | median)
}
watched() {                                  # COMMAND...
    local code
    watch
    "$@"
    code=$?
    seen
    return $code
}
# Millijoules since the driver was loaded, by NVML; nothing where it does not count.
energy() {
    "$python" - 2> /dev/null <<'END'
import ctypes
nvml, card, total = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p(), ctypes.c_ulonglong()
if not (nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card)) or
        nvml.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(total))):
    print(total.value)
END
}

logged() { cat build/measured/log.jsonl 2> /dev/null | grep -c '^{"event": "step"'; }      # steps
# Trains until the log holds so many steps, then kills the program, so that it saves nothing (1.5B parameters are 19
# GB). The first five, in which kernels are loaded and graphs recorded, do not count. Sets ms, or says FAILED.
ours() {                                     # STEPS TOKENS-A-STEP OPTIONS...
    local steps=$1 tokens=$2 command pid first before after joules
    shift 2
    command="$(run_of "$@") --save-every 0 --steps $((steps + 1000))"
    printf '\n$ %s\n' "$command"
    rm -rf build/measured
    $command --out build/measured > "$out/logs/train.log" 2>&1 &
    pid=$!
    until_logged() {
        while kill -0 $pid 2> /dev/null && [ "$(left)" -gt 0 ] && [ "$(logged)" -lt "$1" ]; do sleep 0.05; done
    }
    until_logged 5
    watch
    before=$(energy) first=$(logged)
    until_logged "$steps"
    after=$(energy) steps=$(logged)
    seen
    kill -KILL $pid 2> /dev/null
    wait $pid 2> /dev/null
    grep ' parameters, ' "$out/logs/train.log"
    tail -1 "$out/logs/train.log"
    grep '^{"event": "step"' build/measured/log.jsonl 2> /dev/null | tail -n +6 |
        sed 's/.*"ms": \([0-9.]*\).*/\1/' > "$out/logs/ms"
    rm -rf build/measured
    ms=$(median < "$out/logs/ms") || { echo "FAILED: no step was measured"; return 1; }
    joules=$(awk -v a="$before" -v b="$after" -v n="$((steps - first))" -v watts="$watts" -v ms="$ms" 'BEGIN {
        if (a != "" && b > a && n > 0) printf "%.1f J a step by the counter of NVML", (b - a) / 1e3 / n
        else printf "%.1f J a step, power x time", watts * ms / 1e3 }')
    echo "median of $(wc -l < "$out/logs/ms") steps: $ms ms/step ($(range < "$out/logs/ms"))," \
        "$(rate "$tokens" "$ms") tok/s; $clock MHz ($clocks), $watts W, $degrees C; $joules"
}
rate() { awk -v n="$1" -v ms="$2" 'BEGIN { printf "%.0f", n / ms * 1e3 }'; }

torch_turn() {                               # MODEL BATCH STEPS: sets ms
    try "$LIMIT" 1 "$python" dev/bench_torch.py --tokens $many --model "$1" --batch "$2" --context "$CONTEXT" \
        --steps "$3" || return 1
    ms=$(sed -n 's|.* \([0-9.]*\) ms/step.*|\1|p' "$log" | tail -1)
    [ -n "$ms" ]
}
llmc_turn() {                                # PROGRAM MODEL BATCH STEPS: sets ms
    try "$LIMIT" 1 "$1" -i $many -j $many -e "$2" -b "$3" -t "$CONTEXT" -d $(($3 * CONTEXT)) \
        -r 0 -l 6e-4 -c 0.1 -v 1000 -m 1 -s 0 -h 0 -x "$4" || return 1
    ms=$(sed -n 's/^step .*| *\([0-9.]*\) ms .*/\1/p' "$log" | tail -n +6 | median)
}
# Turns of all that is there, as many as fit (5 at most): the card's clock and temperature drift, and so does each
# alone.
race() {                                     # MODEL BATCH STEPS
    local turn started longest=0 who="" variant name mine label turns times joules
    rm -f "$out"/logs/turns_*
    tokens $many 20000000 || { echo "FAILED: no tokens"; return; }
    [ -x build/fork/train_gpt_cuda ] && [ -n "${FORK:-}" ] && who=fork
    have torch numpy && who="$who torch_turn"
    for variant in cudnn plain; do
        if [ -x "build/llmc_$variant/train_gpt2cu" ]; then who="$who llmc_$variant"
        else echo "skip: no llm.c ($variant); LLMC=checkout $0 peers builds it"; fi
    done
    for turn in 1 2 3 4 5; do
        [ "$(left)" -gt "$longest" ] || break
        started=$SECONDS
        for name in ours $who; do
            ms=
            case $name in
                ours) ours "$3" $(($2 * CONTEXT)) $(shape "$1") --batch "$2" --context "$CONTEXT" ;;
                fork) program=build/fork/train_gpt_cuda \
                    ours "$3" $(($2 * CONTEXT)) $(shape "$1") --batch "$2" --context "$CONTEXT" ;;
                torch_turn) watched torch_turn "$1" "$2" "$3" ;;
                *) watched llmc_turn "build/$name/train_gpt2cu" "$1" "$2" "$3" ;;
            esac && [ -n "$ms" ] && echo "$ms $clock $watts" >> "$out/logs/turns_$name"
        done
        [ $((SECONDS - started)) -le $longest ] || longest=$((SECONDS - started))
    done
    [ -s "$out/logs/turns_ours" ] || return
    printf '\n| %s, %s x %s | turns | ms/step, median (range) | tok/s | times ours | MHz | W |' "$1" "$2" "$CONTEXT"
    echo " J a step, power x time |"
    echo "|---|--:|--:|--:|--:|--:|--:|--:|"
    mine=$(cut -d' ' -f1 "$out/logs/turns_ours" | median)
    for name in ours $who; do
        [ -s "$out/logs/turns_$name" ] || { echo "FAILED: no turn of $name"; continue; }
        case $name in
            ours) label=$program ;;
            fork) label="with $FORK" ;;
            torch_turn) label="PyTorch, compiled" ;;
            llmc_cudnn) label="llm.c, cuDNN" ;;
            *) label=llm.c ;;
        esac
        turns=$out/logs/turns_$name
        ms=$(cut -d' ' -f1 "$turns" | median) watts=$(cut -d' ' -f3 "$turns" | median)
        times=$(awk -v a="$ms" -v b="$mine" 'BEGIN { printf "%.3f", a / b }')
        joules=$(awk -v w="$watts" -v ms="$ms" 'BEGIN { printf "%.1f", w * ms / 1e3 }')
        echo "| $label | $(wc -l < "$turns") | $ms ($(cut -d' ' -f1 "$turns" | range)) |" \
            "$(rate $(($2 * CONTEXT)) "$ms") | $times | $(cut -d' ' -f2 "$turns" | median) | $watts | $joules |"
    done
}

same_hash() {                                # TIMES OPTIONS... : of the last checkpoint's weights and moments
    local times=$1 command
    shift
    command="$(run_of "$@") --save-every 0"
    printf '\n$ %s   # %s times\n' "$command" "$times"
    for _ in $(seq "$times"); do
        [ "$(left)" -gt 0 ] || { echo "error: the stage's $LIMIT s are over"; break; }
        rm -rf build/hashed
        timeout -k 5 "$(left)" $command --out build/hashed > "$out/logs/hashed.log" 2>&1 ||
            { tail -1 "$out/logs/hashed.log"; continue; }
        cat build/hashed/step_*/*.safetensors | sha256sum | cut -c1-16
    done | sort | uniq -c | tee "$out/logs/hashes"
    rm -rf build/hashed
    [ "$(awk '{ print $1 }' "$out/logs/hashes")" = "$times" ] && ! grep -q error "$out/logs/hashes" &&
        echo ok || echo FAILED
}
sanitize() {                                 # TOOL
    command -v compute-sanitizer > /dev/null || { echo "skip: no compute-sanitizer"; return; }
    local probe
    probe=$(timeout -k 5 60 compute-sanitizer --tool "$1" "build/bench_${ladders%%[[:space:]]*}" --check tiny 2>&1)
    case $probe in
        *"not supported"* | *"ot permitted"*)
            echo "skip: not possible on this machine: $(echo "$probe" | grep -m 1 -E 'ot (supported|permitted)')"
            return ;;
    esac
    local with="compute-sanitizer --tool $1 --error-exitcode 1"
    local commands=("$with $program --check" "$with ${program}_fp32 --check")
    for ladder in $ladders; do commands+=("$with build/bench_$ladder --check tiny"); done
    together "${commands[@]}"
}

stage_build() {
    try "$LIMIT" 1 make -k -j"$(nproc)" train_gpt train_gpt_cuda train_gpt_cuda_fp32 \
        $(printf 'build/bench_%s ' $all_ladders) build/gpu_golden
    [ -n "${FORK:-}" ] || return 0
    rm -rf build/fork
    mkdir -p build/fork
    cp -r Makefile train_gpt.cpp train_gpt.cu dev test build/fork
    try 10 1 patch -s -F0 -p1 -d build/fork -i "$PWD/test/forks/$FORK.patch" &&
        try "$LIMIT" 1 make -C build/fork train_gpt_cuda
}
stage_check() {
    local commands=()
    try 60 1 "$program" --check
    try 60 1 "${program}_fp32" --check
    try 90 20 test/gpu.sh "$program"
    try 60 1 build/gpu_golden test/golden/*/
    for ladder in $ladders; do commands+=("build/bench_$ladder --check"); done
    together "${commands[@]}"
}
stage_peers() {                              # all of it at work on the CPU, so at once
    local copy library cudnn commands=() torch="$python dev/bench_torch.py --context $CONTEXT --steps 1"
    local place='PreferredLocation, cudaMemLocation{cudaMemLocationTypeHost, 0}'
    for variant in cudnn plain; do
        [ -e "${LLMC:-}/train_gpt2.cu" ] || { echo "skip: no llm.c ($variant); LLMC= names a checkout"; continue; }
        copy=$PWD/build/llmc_$variant
        rm -rf "$copy"
        cp -r "$LLMC" "$copy"                # with cuDNN it wants CUDNN_FRONTEND_PATH, or ~/cudnn-frontend
        # what its Makefile does not find: the card, NVML where only the driver has it, and the type that CUDA 13 asks
        # for
        library=$(ldconfig -p | awk '/libnvidia-ml\.so\.1/ { print $NF; exit }')
        [ -z "$library" ] || ln -s "$library" "$copy/libnvidia-ml.so"
        [ "$(cuda | cut -d. -f1)" -lt 13 ] ||
            sed -i "s/PreferredLocation, cudaCpuDeviceId/$place/" "$copy/llmc/cuda_utils.cuh"
        cudnn=$([ $variant = cudnn ] && echo 1 || echo 0)
        commands+=("env LIBRARY_PATH=$copy:${LIBRARY_PATH:-} make -C $copy train_gpt2cu NO_MULTI_GPU=1
            USE_CUDNN=$cudnn GPU_COMPUTE_CAPABILITY=$(smi compute_cap | tr -d .)")
    done
    have torch numpy && commands+=("$torch --model $D12 --batch $BATCH" "$torch --model $D48 --batch $BATCH48")
    together "${commands[@]}"
}
stage_train() {
    tokens $many 20000000
    ours 60 $((BATCH * CONTEXT)) $(shape "$D12") --batch "$BATCH" --context "$CONTEXT"
    ours 20 $((BATCH48 * CONTEXT)) $(shape "$D48") --batch "$BATCH48" --context "$CONTEXT"
}
stage_race() { race "$D12" "$BATCH" 40; }
stage_race48() { race "$D48" "$BATCH48" 20; }
stage_learning() {                           # of B T + 1 tokens every order is the same batch
    local rows=$(((BATCH + 3) / 4)) many=build/one_batch.bin
    have torch transformers numpy || return
    rm -rf $many build/learning build/learned
    tokens $many $((rows * CONTEXT + 1))
    try 60 1 $(run_of $(shape "$D12") --context "$CONTEXT" --batch 1 --steps 1 --lr 0) --out build/learning || return
    try 120 1 $(run_of --init build/learning/step_00000001 --context "$CONTEXT" --batch $rows --steps 40 --lr 3e-4 \
        --schedule constant) --out build/learned || return
    try "$LIMIT" 9 "$python" dev/bench_torch.py --learn build/learned/log.jsonl --init build/learning/step_00000001 \
        --tokens $many --batch $rows --context "$CONTEXT"
    rm -rf build/learning build/learned
}
stage_sampling() {
    local how rows form length start ns=() words=()
    tokens $many 20000000
    rm -rf build/sampled
    try 150 1 $(run_of $(shape "$D12") --batch "$BATCH" --context "$CONTEXT" --steps 90 --save-every 30 --keep 1) \
        --out build/sampled || return
    rm -f "$out/logs/beside" "$out/logs/alone"
    # Steps that ended after a checkpoint's own, but before the line that says it is whole, are those beside its writer.
    awk -F'"ms": ' -v beside="$out/logs/beside" -v alone="$out/logs/alone" '
        { split($0, words, /[:,] */); step = words[4] + 0 }
        /"event": "step"/ && step > 5 { ms[step] = $2 + 0 }
        /"event": "checkpoint"/ {
            late = 0
            for (s in ms) if (s + 0 > step) { late++; near[s] = 1 }
            printf "checkpoint of step %d: training stood still for %.1f ms, ", step, $2
            printf "and took %d more steps until it was whole\n", late }
        END { for (s in ms) if (near[s]) print ms[s] > beside; else print ms[s] > alone }' build/sampled/log.jsonl
    echo "median step alone $(median < "$out/logs/alone") ms," \
        "beside the writer $([ -s "$out/logs/beside" ] && median < "$out/logs/beside" || echo "none: 0") ms"
    for how in 1,bf16 64,bf16 1,int8 8,int8 1,nf4 8,nf4 8,bf16; do
        rows=${how%,*} form=${how#*,}
        for length in $((CONTEXT / 5)) $((CONTEXT - 24)); do             # what both take is loading, not sampling
            rm -f "$out/logs/took"
            for _ in 1 2 3; do
                start=$(date +%s%N)
                try 60 0 "$program" sample --model build/sampled --prompt 0 --tokens $length --samples $rows \
                    --base-dtype $form || continue 3
                echo $(($(date +%s%N) - start)) >> "$out/logs/took"
            done
            ns+=($(median < "$out/logs/took")) words+=($(grep -v -e '^---' "$log" | wc -w))
        done
        awk -v rows=$rows -v form=$form -v ns=$((ns[-1] - ns[-2])) -v n=$((words[-1] - words[-2])) 'BEGIN {
            printf "sampling, batch %d, %s: %.0f tokens/s, %.3f ms a token of each text\n",
                rows, form, n / ns * 1e9, ns / 1e6 / n * rows }'
    done
    rm -rf build/sampled
}
stage_torch() {
    local with="$python dev/bench_torch.py --tokens $many --model $D12 --context $CONTEXT"
    have torch numpy || return
    tokens $many 20000000
    try 60 9 "$python" dev/bench_torch.py --kernels 1
    try 100 1 $with --batch "$BATCH" --steps 40 --sdpa cudnn
    for batch in $((BATCH / 2)) $((BATCH * 3 / 2)) $((BATCH * 2)); do try 100 1 $with --batch $batch --steps 20; done
}
stage_kernels() {
    for ladder in $ladders; do
        rm -f "$out/kernels_$ladder".*
        try "$LIMIT" 200 "build/bench_$ladder" --write "$out/kernels_$ladder"
    done
}
stage_determinism() {
    tokens $many 20000000
    same_hash 20 --init custom --layers 2 --heads 2 --channels 128 --context 128 --batch 4 --steps 20
    same_hash 3 $(shape "$D12") --batch $(((BATCH + 3) / 4)) --context "$CONTEXT" --steps 5
}
stage_ranks() {
    try 200 1 make train_gpt train_gpt_cuda_fp32 build/shards NCCL=1
    try "$LIMIT" 60 test/ranks.sh "${program}_fp32"
}
stage_memcheck() { sanitize memcheck; }
stage_racecheck() { sanitize racecheck; }
stage_initcheck() { sanitize initcheck; }
stage_synccheck() { sanitize synccheck; }
stage_report() {
    local tables=("$out"/kernels_*.csv)
    rm -f "$out/kernels.csv" "$out/kernels.md"
    if [ -e "${tables[0]}" ]; then
        awk 'FNR > 1 || NR == 1' "$out"/kernels_*.csv > "$out/kernels.csv"   # the ladders' tables as one
        awk 'FNR > 2 || NR == FNR' "$out"/kernels_*.md > "$out/kernels.md"
        try 60 1 "$python" dev/plot.py "$out/kernels.csv" -o "$out/kernels.png"
    fi
    {
        printf '# train_gpt_cuda on %s\n\n' "$(smi name)"
        echo "CUDA $(cuda), driver $(smi driver_version). Command: dev/gpu_report.sh"
        for stage in $STAGES; do
            case $stage in report | kernels) continue ;; esac
            [ -s "$out/$stage.log" ] || { printf '\n## %s\n\nnot run\n' "$stage"; continue; }
            printf '\n## %s\n\n```\n' "$stage"
            grep -v '^|' "$out/$stage.log"
            printf '```\n'
            grep -q '^|' "$out/$stage.log" && echo && grep '^|' "$out/$stage.log"
        done
        printf '\n## kernels\n\n'
        [ -s "$out/kernels.png" ] && printf '![time beside floor, and the roofline](kernels.png)\n\n'
        [ -s "$out/kernels.log" ] && { echo '```'; grep -E '^==|TB/s|^FAIL' "$out/kernels.log"; printf '```\n\n'; }
        [ -s "$out/kernels.md" ] && cat "$out/kernels.md" || echo "not run"
    } > "$out/report.md"
    echo "wrote $out/report.md"
}

smi name > /dev/null 2>&1 || { echo "error: no NVIDIA GPU here" >&2; exit 1; }
for stage in ${@:-$STAGES}; do
    case " $STAGES " in *" $stage "*) ;; *) echo "error: no stage $stage; there are: $STAGES" >&2; exit 2 ;; esac
done
failed=0
for stage in ${@:-$STAGES}; do
    begun=$SECONDS
    {
        commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
        echo "== $stage, $(date -u '+%F %H:%M'), commit $commit, $(smi name)"
        "stage_$stage" 2>&1
        echo "$stage: $((SECONDS - begun)) s"
    } | tee "$out/$stage.log"
    grep -q '^FAIL' "$out/$stage.log" && failed=1
done
exit $failed
