#!/bin/bash
# dev/gpu_report.sh [STAGE...] -- everything to be known of the CUDA program on this machine's GPU, in stages that end within 9
# minutes each, in this order where none are named:
#
#   build        the programs and all ladders of dev/
#   check        --check in bf16 and fp32, the program's promises (test/gpu.sh), the golden cases, all rungs at small shapes
#   train        GPT-2 124M at 64 x 1024 and 1.5B at 16 x 1024: step time, tokens/s, MFU, share of speed of light
#   torch        124M in PyTorch at the same batch and at others, and its functions one by one (dev/bench_torch.py)
#   torch48      1.5B in PyTorch
#   kernels      all ladders timed: a table. LADDERS="attention products" does some of them again
#   determinism  hashes of the checkpoints of 20 small runs, and of 3 of 124M
#   sanitizer    compute-sanitizer's four tools on all rungs at tiny shapes, where the machine permits it
#   report       one Markdown file of all that, and a picture
#
# What a stage printed stays in build/report (or in $REPORT), with date and commit, until the stage runs again; whole logs in
# its folder logs. A stage goes on after a failure; the exit code then is 1.
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${REPORT:-build/report}
mkdir -p "$out/logs"
STAGES="build check train torch torch48 kernels determinism sanitizer report"
all_ladders=$(ls dev/*.cu | sed 's|dev/||; s|\.cu||')
ladders=${LADDERS:-$all_ladders}

smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader | head -1; }
# Runs a command for at most so many seconds; shows the end of what it printed, or what failed.
try() {                                      # SECONDS LINES COMMAND...
    local limit=$1 lines=$2 start=$SECONDS log code
    shift 2
    log=$out/logs/$(echo "$*" | tr -c 'A-Za-z0-9\n' _ | cut -c1-80).log
    timeout -k 10 "$limit" "$@" > "$log" 2>&1
    code=$?
    printf '\n$ %s\n' "$*"
    [ $code -eq 0 ] || grep -m 20 -E '^FAIL|rror' "$log"
    tail -n "$lines" "$log"
    [ $code -eq 0 ] && echo "ok, $((SECONDS - start)) s" || echo "FAILED with exit code $code, $((SECONDS - start)) s"
    return $code
}

tokens() {                                   # a shard of tokens as frequent as in text: the k-th as often as 1 / k
    [ -s build/tokens.bin ] || python3 - build/tokens.bin 20000000 50257 <<'END'
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
run_of() { echo "./train_gpt_cuda train --train build/tokens.bin --sample-every 0 --eval-every 0 --save-every 0 --lr 6e-4 $*"; }

# Trains until the log holds so many steps, then kills the program, so that it saves nothing (1.5B parameters are 19 GB).
measure() {                                  # STEPS TOKENS-A-STEP OPTIONS...
    local steps=$1 tokens=$2 command pid start=$SECONDS
    shift 2
    command="$(run_of "$@") --steps $((steps + 1000))"
    printf '\n$ %s\n' "$command"
    rm -rf build/measured
    $command --out build/measured > "$out/logs/train.log" 2>&1 &
    pid=$!
    while kill -0 $pid 2> /dev/null && [ $((SECONDS - start)) -lt 240 ]; do
        [ "$(grep -c '^{"event": "step"' build/measured/log.jsonl 2> /dev/null)" -ge "$steps" ] 2> /dev/null && break
        sleep 0.2
    done
    smi clocks.sm,clocks.mem,power.draw,temperature.gpu      # still under load
    kill -KILL $pid 2> /dev/null
    wait $pid 2> /dev/null
    grep ' parameters, ' "$out/logs/train.log"
    tail -2 "$out/logs/train.log"
    # the median without the first five steps, in which kernels are loaded and graphs recorded
    grep '^{"event": "step"' build/measured/log.jsonl | tail -n +6 | sed 's/.*"ms": \([0-9.]*\).*/\1/' | sort -n |
        awk -v tokens="$tokens" '{ ms[NR] = $1 }
            END { if (!NR) exit 1; m = ms[int((NR + 1) / 2)]; printf "median of %d steps: %.1f ms/step, %.0f tok/s\n", NR, m, tokens / m * 1000 }' ||
        echo FAILED
    rm -rf build/measured
}
same_hash() {                                # TIMES OPTIONS... : of the last checkpoint's weights and moments
    local times=$1 command
    shift
    command=$(run_of "$@")
    printf '\n$ %s   # %s times\n' "$command" "$times"
    for _ in $(seq "$times"); do
        rm -rf build/hashed
        timeout -k 10 60 $command --out build/hashed > "$out/logs/hashed.log" 2>&1 || { tail -1 "$out/logs/hashed.log"; continue; }
        cat build/hashed/step_*/*.safetensors | sha256sum | cut -c1-16
    done | sort | uniq -c | tee "$out/logs/hashes"
    rm -rf build/hashed
    [ "$(awk '{ print $1 }' "$out/logs/hashes")" = "$times" ] && ! grep -q error "$out/logs/hashes" && echo ok || echo FAILED
}

stage_build() {
    try 520 1 make -k -j"$(nproc)" train_gpt train_gpt_cuda train_gpt_cuda_fp32 $(printf 'build/bench_%s ' $all_ladders) build/gpu_golden
}
stage_check() {
    try 60 1 ./train_gpt_cuda --check
    try 60 1 ./train_gpt_cuda_fp32 --check
    try 120 20 test/gpu.sh ./train_gpt_cuda
    try 60 1 build/gpu_golden test/golden/*/
    for ladder in $ladders; do try 30 1 "build/bench_$ladder" --check; done
}
stage_train() {
    tokens
    measure 60 65536 --init d12 --batch 64 --context 1024
    measure 20 16384 --init d48 --batch 16 --context 1024
}
stage_torch() {
    tokens
    try 150 1 python3 dev/bench_torch.py --tokens build/tokens.bin --model d12 --batch 64 --steps 40
    try 200 3 python3 dev/bench_torch.py --tokens build/tokens.bin --model d12 --batch 32,96,128 --steps 20
    try 100 1 python3 dev/bench_torch.py --tokens build/tokens.bin --model d12 --batch 64 --steps 40 --sdpa cudnn
    try 60 9 python3 dev/bench_torch.py --kernels 1
}
stage_torch48() {
    tokens
    try 520 1 python3 dev/bench_torch.py --tokens build/tokens.bin --model d48 --batch 16 --steps 15
}
stage_kernels() {
    for ladder in $ladders; do
        rm -f "$out/kernels_$ladder".*
        try 200 200 "build/bench_$ladder" --write "$out/kernels_$ladder"
    done
}
stage_determinism() {
    tokens
    same_hash 20 --init custom --layers 2 --heads 2 --channels 128 --context 128 --batch 4 --steps 20
    same_hash 3 --init d12 --batch 16 --context 1024 --steps 5
}
stage_sanitizer() {
    compute-sanitizer ./train_gpt_cuda --check > "$out/logs/sanitizer.log" 2>&1
    if ! grep -q 'ERROR SUMMARY' "$out/logs/sanitizer.log" || grep -qi 'not supported' "$out/logs/sanitizer.log"; then
        echo "not possible on this machine: $(tail -1 "$out/logs/sanitizer.log")"
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        for ladder in $ladders; do try 18 1 compute-sanitizer --tool $tool --error-exitcode 1 "build/bench_$ladder" --check tiny; done
    done
}
stage_report() {
    awk 'FNR > 1 || NR == 1' "$out"/kernels_*.csv > "$out/kernels.csv"        # the ladders' tables as one
    awk 'FNR > 2 || NR == FNR' "$out"/kernels_*.md > "$out/kernels.md"
    {
        printf '# train_gpt_cuda on %s\n\n' "$(smi name)"
        echo "CUDA $(${NVCC:-nvcc} --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), driver $(smi driver_version). Command: dev/gpu_report.sh"
        for stage in train torch torch48 check determinism sanitizer; do
            [ -s "$out/$stage.log" ] && printf '\n## %s\n\n```\n%s\n```\n' $stage "$(cat "$out/$stage.log")"
        done
        printf '\n## kernels\n\n![time beside floor, and the roofline](kernels.png)\n\n```\n'
        [ -s "$out/kernels.log" ] && grep -E '^==|TB/s|^FAIL' "$out/kernels.log"
        printf '```\n\n%s\n' "$(cat "$out/kernels.md")"
    } > "$out/report.md"
    python3 dev/plot.py "$out/kernels.csv" -o "$out/kernels.png"
    echo "wrote $out/report.md"
}

smi name > /dev/null 2>&1 || { echo "error: no NVIDIA GPU here" >&2; exit 1; }
for stage in ${@:-$STAGES}; do
    case " $STAGES " in *" $stage "*) ;; *) echo "error: no stage $stage; there are: $STAGES" >&2; exit 2 ;; esac
done
failed=0
for stage in ${@:-$STAGES}; do
    { echo "== $stage, $(date -u '+%F %H:%M'), commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)"; "stage_$stage" 2>&1; } | tee "$out/$stage.log"
    grep -q '^FAIL' "$out/$stage.log" && failed=1
done
exit $failed
