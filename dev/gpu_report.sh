#!/bin/bash
# dev/gpu_report.sh [STAGE...] -- everything to be known of the CUDA program on this machine's GPU, in stages of a few minutes
# each, in this order where none are given:
#
#   build        the programs and all ladders of dev/
#   check        --check in bf16 and fp32, the program's promises (test/gpu.sh), the golden cases, all rungs at small shapes
#   sanitizer    compute-sanitizer's four tools on a small run, where the machine permits it
#   determinism  the hash of 20 runs' checkpoints, and of 3 of GPT-2 124M
#   kernels      all ladders timed: a table
#   train        GPT-2 124M at 64 x 1024 and 1.5B at 16 x 1024: step time, tokens/s, MFU, share of speed of light
#   torch        the same in PyTorch, and its best batch (dev/bench_torch.py; needs torch)
#   report       one Markdown file of all that
#
# Results stay in build/report (or in $REPORT), a file for each stage, until the stage runs again; the report takes what is
# there. Every stage goes on after a failure, and says so.
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${REPORT:-build/report}
mkdir -p "$out" build
STAGES="build check sanitizer determinism kernels train torch report"
LADDERS=$(ls dev/*.cu | sed 's|dev/||; s|\.cu||')

# Runs a command with a limit of seconds, shows it with what it printed last, and how it ended.
try() {                                      # SECONDS LINES COMMAND...
    local limit=$1 lines=$2 start=$SECONDS log code
    shift 2
    log=$(mktemp)
    timeout "$limit" "$@" > "$log" 2>&1
    code=$?
    printf '\n    %s\n' "$*"
    tail -n "$lines" "$log" | sed 's/^/    /'
    [ $code -eq 0 ] && echo "ok ($((SECONDS - start)) s)" || echo "FAILED: exit $code ($((SECONDS - start)) s)"
    rm -f "$log"
    return $code
}

tokens() {                                   # a shard of tokens as frequent as in text: the k-th as often as 1 / k
    [ -s build/tokens.bin ] || python3 - build/tokens.bin 20000000 50257 <<'END'
import array, math, random, struct, sys
path, n, V = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(1)
some = array.array("H", (min(V - 1, int(math.exp(rng.random() * math.log(V + 1))) - 1) for _ in range(1 << 20)))
tokens = array.array("H")
while len(tokens) < n:
    at = rng.randrange(len(some))
    tokens += some[at:] + some[:at]
with open(path, "wb") as f:
    f.write(struct.pack("<3i", 20240520, 1, n).ljust(1024, b"\0"))
    tokens[:n].tofile(f)
END
}
run_of() {                                   # the options of a run that leaves nothing behind but its log
    echo "train --train build/tokens.bin --sample-every 0 --eval-every 0 --save-every 0 --lr 6e-4 $*"
}
hashes() { sort "$1" | uniq -c | sed 's/^ *\([0-9]*\) /\1 times /'; }
hash_of_run() {                              # COMMAND... : of the last checkpoint's weights and moments
    rm -rf build/hashed
    "$@" --out build/hashed > build/hashed.log 2>&1 || { tail -1 build/hashed.log; return 1; }
    cat build/hashed/step_*/*.safetensors | sha256sum | cut -c1-16
}

stage_build() {
    try 500 3 make -j"$(nproc)" train_gpt train_gpt_cuda train_gpt_cuda_fp32 $(printf 'build/bench_%s ' $LADDERS) build/gpu_golden
}
stage_check() {
    try 120 1 ./train_gpt_cuda --check
    try 120 1 ./train_gpt_cuda_fp32 --check
    try 200 30 test/gpu.sh ./train_gpt_cuda
    try 120 1 build/gpu_golden test/golden/*/
    for ladder in $LADDERS; do try 120 1 "build/bench_$ladder" --check; done
}
stage_sanitizer() {
    command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not installed"; return; }
    for tool in memcheck racecheck initcheck synccheck; do
        try 110 3 compute-sanitizer --tool $tool --error-exitcode 1 ./train_gpt_cuda --check
    done
}
stage_determinism() {
    tokens
    local small medium
    small=$(run_of --init custom --layers 2 --heads 2 --channels 128 --context 128 --batch 4 --steps 20)
    medium=$(run_of --init d12 --batch 16 --context 1024 --steps 5)
    for i in $(seq 20); do hash_of_run ./train_gpt_cuda $small; done > "$out/small.hashes"
    for i in 1 2 3; do hash_of_run ./train_gpt_cuda $medium; done > "$out/medium.hashes"
    echo "20 runs of ./train_gpt_cuda $small:"; hashes "$out/small.hashes"
    echo "3 runs of ./train_gpt_cuda $medium:"; hashes "$out/medium.hashes"
}
stage_kernels() {
    rm -f "$out"/kernels.csv "$out"/kernels.md
    for ladder in $LADDERS; do try 150 100 "build/bench_$ladder" --write "$out/kernels"; done
}
stage_train() {
    tokens
    smi name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu
    for model in "d12 --batch 64 --steps 60" "d48 --batch 16 --steps 20"; do
        rm -rf build/measured
        try 250 12 ./train_gpt_cuda $(run_of --init $model --context 1024) --out build/measured
        # the median without the first five steps, in which kernels are loaded and graphs recorded
        grep '"event": "step"' build/measured/log.jsonl | tail -n +6 | sed 's/.*"ms": \([0-9.]*\).*/\1/' | sort -n |
            awk -v model="$model" '{ ms[NR] = $1 }
                END { if (NR) printf "train_gpt_cuda, %s: median %.1f ms/step of %d\n", model, ms[int((NR + 1) / 2)], NR }'
    done
    rm -rf build/measured
}
stage_torch() {
    python3 -c 'import torch' 2> /dev/null || { echo "no PyTorch here"; return; }
    tokens
    try 250 1 python3 dev/bench_torch.py --tokens build/tokens.bin --model d12 --batch 64 --steps 40
    try 250 4 python3 dev/bench_torch.py --tokens build/tokens.bin --model d12 --batch 32,96,128 --steps 20
    try 250 1 python3 dev/bench_torch.py --tokens build/tokens.bin --model d48 --batch 16 --steps 15
}
stage_report() {
    {
        printf '# train_gpt_cuda on %s\n\n' "$(smi name)"
        echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)," \
             "CUDA $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), driver $(smi driver_version). Command: dev/gpu_report.sh"
        for stage in train torch check determinism sanitizer build; do
            [ -s "$out/$stage.log" ] && printf '\n## %s\n\n' $stage && sed 's/^\([^ ]\)/- \1/' "$out/$stage.log"
        done
        [ -s "$out/kernels.md" ] && printf '\n## kernels\n\n' && cat "$out/kernels.md"
    } > "$out/report.md"
    python3 dev/plot.py "$out/kernels.csv" -o "$out/kernels.png" 2>&1 | tail -1
    echo "wrote $out/report.md"
}

smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader | head -1; }
smi name > /dev/null 2>&1 || { echo "error: no NVIDIA GPU here" >&2; exit 1; }
for stage in ${@:-$STAGES}; do
    case " $STAGES " in *" $stage "*) ;; *) echo "error: no stage $stage; there are: $STAGES" >&2; exit 2 ;; esac
done
for stage in ${@:-$STAGES}; do
    echo "== $stage"
    "stage_$stage" 2>&1 | tee "$out/$stage.log"
done
