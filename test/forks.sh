#!/bin/sh
# test/forks.sh -- experiments as users make them, each a patch in test/forks. What a fork wrote that computes another
# function of the same tensors, the program as it is refuses, and the other way round; each goes on with its own. With
# STRESS=1 every fork in the table below, or with names those alone, trains and passes the project's tests, on the CPU
# and under emulation, and a mistake planted in it does not.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}        # threads that wait leave the cores to others
dir=build/test_forks
rm -rf $dir && mkdir -p $dir
command -v patch > /dev/null || { echo "skip forks: no patch here"; exit; }
# The sources, with the patch of a fork; a part that would have to be searched for is an error.
copy() {                                     # FORK
    mkdir -p $dir/$1 && cp -r Makefile train_gpt.cpp train_gpt.cu dev test $dir/$1 || return
    [ $1 = none ] || patch -s -F0 -p1 -d $dir/$1 < test/forks/$1.patch
}
compile() { ${CXX:-c++} -std=c++20 -O0 -fopenmp -Wno-unknown-pragmas $dir/$1/train_gpt.cpp -o $dir/$1/train_gpt; }
build/corpus --out $dir/data --documents 99 > /dev/null
small="--init custom --layers 2 --heads 2 --channels 32"
train() {                                    # PROGRAM DIR SHAPE: one step, so that weights are as they are drawn
    program_=$1 out=$2
    shift 2
    $program_ train --train $dir/data/train.bin --context 64 --batch 2 --steps 1 --sample-every 0 --out $out "$@"
}
eval_() { $1 eval --model $2 --val $dir/data/val.bin --eval-rows 2; }
verdict() {                                  # FORK WHAT: whether the command before has succeeded; what it said, if not
    if [ $? = 0 ]; then echo "ok forks/$1: $2"; else echo "FAIL forks/$1: $(tail -1 $dir/log)"; fi
}
train ./train_gpt $dir/own $small > $dir/log || { echo "FAIL forks: $(tail -1 $dir/log)"; exit 1; }
[ $# -gt 0 ] || forks="epsilon gelu_erf rope"
for fork in none $forks; do { copy $fork && compile $fork; } > $dir/$fork.log 2>&1 & done
wait
eval_ $dir/none/train_gpt $dir/own > $dir/log 2>&1
verdict none "the program built otherwise takes it"
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
    [ $? = 1 ] && grep -q "another function" $dir/log
    verdict $fork "not resumed"
    train ./train_gpt $dir/$fork/new --init $dir/$fork/run > $dir/log 2>&1
    [ $? = 1 ] && grep -q "another function" $dir/log
    verdict $fork "not begun from"
    eval_ ./train_gpt $dir/$fork/run/step_00000001/model.safetensors > $dir/log 2>&1
    verdict $fork "its weights alone are taken"
    eval_ $program $dir/$fork/run > $dir/log 2>&1 &&
        $program train --resume --steps 2 --out $dir/$fork/run > $dir/log 2>&1
    verdict $fork "goes on with its own"
done
[ -n "$STRESS" ] || exit 0

# A fork, the tests it passes, and options that a run of it takes; a mistake, and the line of FAIL by which a test
# notices it.
table() {                                    # FORK|TESTS|OPTIONS|FILE|MISTAKE|TEST|LINE
    cat << 'END'
relu2|layers check_fp32||train_gpt.cpp|s/: 2 \* x;/: x;/|layers|gradient/gelu
schedule|layers|--schedule rsqrt|train_gpt.cpp|s/(s.warmup + 1.0)/s.warmup/|layers|scalar/lr_at rsqrt
label_smoothing|layers check|--label-smoothing 0.1|train_gpt.cu|s,- weight \* all;,;,|check|gradient
rmsnorm|layers check||train_gpt.cpp|s/- x_n\[c\] \* r \* dot/+ x_n[c] * r * dot/|layers|gradient/rmsnorm dx
rope|layers check||train_gpt.cu|s/T, T, c.att(), c.heads(), -1/T, T, c.att(), c.heads(), 1/|check|gradient.*c_attn
numpy_shards|host||dev/host/shards.h|s/, token_bytes = bytes;/;/|host|a NumPy vector
cut_heads|attention_small check||train_gpt.cu|s/at.given() - at.taken();/at.given();/|attention_small|attention backward
fused_dot|attention check||train_gpt.cu|s/dot = block_sum(dot);/;/|attention|attention backward
swiglu|layers check||train_gpt.cpp|s/gate \* (1 - s))/gate * s)/|layers|gradient/swiglu
muon|layers check check_fp32||train_gpt.cu|s/MUON\[2\], A, MUON\[1\]/MUON[1], A, MUON[2]/|check_fp32|weight
grouped_queries|layers check||train_gpt.cu|s/HS) sum += /HS) sum = /|check|gradient.*c_attn
END
}
test_of() {                                  # TEST FORK, in the fork's own tree
    case $1 in
    check) set -- $2 train_gpt_emulated --check ;;
    check_fp32) set -- $2 train_gpt_emulated_fp32 --check ;;
    attention) set -- $2 emulated_attention 2 tiny ;;
    attention_small) set -- $2 emulated_attention 2 ;;       # more heads than SMs
    *) set -- $2 test_$1 ;;
    esac
    ( cd $dir/$1 && shift && ${MAKE:-make} -s build/$1 && build/"$@" )
}
table | while IFS='|' read -r fork tests options file mistake test line; do
    case " ${*:-$fork} " in *" $fork "*) ;; *) continue ;; esac
    if ! copy $fork > $dir/log 2>&1 || ! compile $fork >> $dir/log 2>&1; then
        echo "FAIL forks/$fork: $(head -1 $dir/log)"
        continue
    fi
    for of in $tests; do
        test_of $of $fork > $dir/log 2>&1 && echo "ok forks/$fork: passes $of" \
            || echo "FAIL forks/$fork: $of: $(grep -m1 -e ^FAIL -e error $dir/log)"
    done
    for program in train_gpt build/train_gpt_emulated; do
        [ -x $dir/$fork/$program ] || continue
        train $dir/$fork/$program $dir/$fork/$program.run $small $options > $dir/log 2>&1 \
            && echo "ok forks/$fork: $program trains" || echo "FAIL forks/$fork: $program: $(tail -1 $dir/log)"
    done
    sed -i.right "$mistake" $dir/$fork/$file
    cmp -s $dir/$fork/$file $dir/$fork/$file.right && echo "FAIL forks/$fork: $mistake changes nothing" && continue
    test_of $test $fork 2> /dev/null | grep -m1 "^FAIL.*$line" > $dir/log \
        && echo "ok forks/$fork: $mistake is noticed: $(cat $dir/log)" \
        || echo "FAIL forks/$fork: $test does not notice $mistake"
done
