#!/bin/sh
# dev/scale_report.sh [PROGRAM] -- what several ranks on this machine bring: strong scaling (the same step, more ranks),
# weak scaling (each rank the same), each ZeRO, and the bytes that travel beside their formula. PROGRAM is ./train_gpt
# (make MPI=1) or ./train_gpt_cuda (make train_gpt_cuda NCCL=1). LAUNCH starts ranks, RANKS lists their numbers, ARGS
# are options of a step.
program=${1:-./train_gpt}
launch=${LAUNCH:-mpirun --allow-run-as-root --oversubscribe -n}
out=build/scale_report
case $program in
*cuda*)
    ranks=${RANKS:-1 2 4 8} batch=${BATCH:-64} steps=${STEPS:-30} wide=2
    args=${ARGS:---init d12 --vocab 50257 --context 1024} ;;
*)
    ranks=${RANKS:-1 2} batch=${BATCH:-2} steps=${STEPS:-8} wide=4
    args=${ARGS:---init d6 --vocab 50257 --context 128} ;;
esac
rm -rf $out && mkdir -p $out
largest=$(echo $ranks | tr ' ' '\n' | sort -n | tail -1)
awk 'BEGIN { for (i = 0; i < 4000000; i++) printf "%c%c", i * i % 251 + 1, i % 97 }' > $out/train.u16 2> /dev/null
context=$(echo "$args" | sed 's/.*--context \([0-9]*\).*/\1/')
# the median of the steps behind the first three, in ms, and the bytes a rank sends in one
step() {                                     # NAME RANKS OPTIONS...
    name=$1 n=$2
    shift 2
    $launch $n $program train --train $out/train.u16 --raw u16 $args --batch $batch --steps $steps \
        --sample-every 0 --save-minutes 0 --out $out/$name "$@" > $out/$name.log 2>&1 ||
        { tail -3 $out/$name.log >&2; exit 1; }
    sed -n 's/.*"event": "step", "step": \([0-9]*\),.*"ms": \([0-9.]*\).*/\1 \2/p' $out/$name/log.jsonl |
        awk '$1 > 3 { print $2 }' | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}
sent() { sed -n 's/.*"sent_bytes": \([0-9.e+]*\).*/\1/p' $out/$1/log.jsonl | tail -1; }
row() { printf '| %s | %s | %s | %s | %s |\n' "$@"; }
over() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
echo "$program, $(uname -n), $(nproc) cores, $(date +%F), commit $(git describe --always --dirty 2> /dev/null)"
nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | sort | uniq -c
nvidia-smi topo -m 2> /dev/null
row "" ranks "ms a step" efficiency "GB sent by a rank, and by the formula"
row --- --: --: --: --:
for kind in strong weak; do
    one=""
    for n in $ranks; do
        tokens=$((batch * context * $([ $kind = weak ] && echo $n || echo $largest)))
        ms=$(step $kind.$n $n --tokens-per-step $tokens) || exit
        [ -n "$one" ] || one=$ms first=$n
        micro=$((tokens / batch / context / n))
        p=$(sed -n 's/.*"parameters": \([0-9]*\).*/\1/p' $out/$kind.$n/log.jsonl)
        bytes=$(awk -v s="$(sent $kind.$n)" -v p=$p -v n=$n -v m=$micro -v w=$wide 'BEGIN {
            printf "%.3f, %.3f", s / 1e9, (4 * m + w) * p * (n - 1) / n / 1e9 }')
        if [ $kind = strong ]; then efficiency=$(over $((first * ${one%.*})) $((n * ${ms%.*})))
        else efficiency=$(over $one $ms); fi
        row $kind $n $ms $efficiency "$bytes"
    done
done
tokens=$((batch * context * largest))
for zero in 0 1 2; do
    row "ZeRO $zero" $largest $(step zero.$zero $largest --zero $zero --tokens-per-step $tokens) "" ""
done
