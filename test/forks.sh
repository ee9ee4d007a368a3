#!/bin/sh
# test/forks.sh -- forks that compute another function of the same tensors, made by the patches in test/forks: what one of them
# wrote, the program as it is refuses, and the other way round; each goes on with its own.
dir=build/test_forks
rm -rf $dir && mkdir -p $dir
command -v patch > /dev/null || { echo "skip forks: no patch here"; exit; }
compile() {
    mkdir -p $dir/$1/dev && cp train_gpt.cpp $dir/$1 && cp -r dev/host $dir/$1/dev && { [ $1 = none ] || patch -s -p1 -d $dir/$1 < test/forks/$1.patch; } &&
        ${CXX:-c++} -std=c++20 -O0 -fopenmp -Wno-unknown-pragmas $dir/$1/train_gpt.cpp -o $dir/$1/train_gpt
}
build/corpus --out $dir/data --documents 99 > /dev/null
small="--init custom --layers 2 --heads 2 --channels 32"
train() {                                    # PROGRAM DIR SHAPE: one step, so that weights are as they are drawn
    program_=$1 out=$2
    shift 2
    $program_ train --train $dir/data/train.bin --context 64 --batch 2 --steps 1 --sample-every 0 --out $out "$@"
}
eval_() { $1 eval --model $2 --val $dir/data/val.bin --eval-rows 2; }
train ./train_gpt $dir/own $small > $dir/log || { echo "FAIL forks: $(tail -1 $dir/log)"; exit 1; }
forks=$(ls test/forks | sed 's/\.patch$//')
for fork in none $forks; do compile $fork > $dir/$fork.log 2>&1 & done
wait
eval_ $dir/none/train_gpt $dir/own > $dir/log 2>&1 && echo "ok forks/none: the program built otherwise takes it" || echo "FAIL forks/none: $(tail -1 $dir/log)"
for fork in $forks; do
    program=$dir/$fork/train_gpt
    if ! [ -x $program ]; then echo "FAIL forks/$fork: $(head -1 $dir/$fork.log)"; continue; fi
    train $program $dir/$fork/run $small > $dir/log 2>&1
    for pair in "./train_gpt $dir/$fork/run" "$program $dir/own"; do
        eval_ $pair > $dir/log 2>&1
        [ $? = 1 ] && grep -q "state.json: this program computes another function of these weights" $dir/log \
            && echo "ok forks/$pair: $(tail -1 $dir/log)" || echo "FAIL forks/$pair: $(tail -1 $dir/log)"
    done
    ./train_gpt train --resume --steps 2 --out $dir/$fork/run > $dir/log 2>&1
    [ $? = 1 ] && grep -q "another function" $dir/log && echo "ok forks/$fork: not resumed" || echo "FAIL forks/$fork: $(tail -1 $dir/log)"
    train ./train_gpt $dir/$fork/new --init $dir/$fork/run > $dir/log 2>&1
    [ $? = 1 ] && grep -q "another function" $dir/log && echo "ok forks/$fork: not begun from" || echo "FAIL forks/$fork: $(tail -1 $dir/log)"
    eval_ ./train_gpt $dir/$fork/run/step_00000001/model.safetensors > $dir/log 2>&1 \
        && echo "ok forks/$fork: its weights alone are taken" || echo "FAIL forks/$fork: $(tail -1 $dir/log)"
    eval_ $program $dir/$fork/run > $dir/log 2>&1 && $program train --resume --steps 2 --out $dir/$fork/run > $dir/log 2>&1 \
        && echo "ok forks/$fork: goes on with its own" || echo "FAIL forks/$fork: $(tail -1 $dir/log)"
done
