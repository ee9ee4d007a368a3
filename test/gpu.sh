#!/bin/sh
# test/gpu.sh PROGRAM -- what the CUDA program promises as a program, on a GPU or emulated: the same bits again and
# after a stop, checkpoints that the CPU program takes over and gives back, refusals. One line a check.
gpu=$1
dir=build/test_gpu_data failed=0
rm -rf $dir && mkdir -p $dir
awk 'BEGIN { for (i = 0; i < 4000; i++) printf "%c%c", i * i % 47 + 1, 0 }' > $dir/train.u16 2>/dev/null
cp $dir/train.u16 $dir/val.u16
train="train --train $dir/train.u16 --val $dir/val.u16 --raw u16 --init custom --layers 2 --heads 1 --channels 64
  --vocab 50 --context 70 --tokens-per-step 280 --steps 6 --save-every 3 --keep 9 --eval-every 3 --eval-rows 3
  --sample-every 0 --lr 1e-2"
large="${train%--tokens-per-step*} --tokens-per-step 140000 --batch 2000"
short="${train%--context*} --context 24 --tokens-per-step 96 --steps 1 --eval-every 0 --sample-every 0 --lr 1e-2"
train="$train --batch 1"                    # four micro-batches: more than the host's two pieces of memory for them

suite=gpu && . test/check.sh
same() {                                     # RUN RUN: the same bits
    for f in model optimizer; do
        cmp "$1/step_00000006/$f.safetensors" "$2/step_00000006/$f.safetensors" || return
    done
}
val_loss() {                                 # PROGRAM MODEL
    "$1" eval --model "$2" --val $dir/train.u16 --raw u16 --rows packed | sed -n 's/^val loss \([0-9.]*\).*/\1/p'
}
sample() { program=$1; shift; EMU_SEED=1 "$program" sample --model $dir/short --prompt "5 7 9" "$@"; }
same_text() {
    sample "${gpu}_fp32" "$@" > $dir/text && sample ./train_gpt "$@" > $dir/text_cpu && cmp $dir/text $dir/text_cpu
}
second_of() { sample $gpu --tokens 40 --samples $1 | sed -n '/sample 2$/{n;p}'; }
same_among() { [ "$(second_of $1)" = "$(second_of $2)" ] && [ -n "$(second_of $1)" ]; }
# How often which kernels took a whole row's attention there and back, by head size: a slower one gives the same
# numbers.
kernels() {
    name='gpu::attention_\(\(forward_[wt]\|backward_\)[a-z]*\).*<\([^,>]*\)'
    sed -n "s/.* \([0-9]*\) launches *$name.*/\1 \2 \4/p" $dir/output | tr '\n' ';'
}
attention_was() { expect "attention: $(kernels)" [ "$(kernels)" = "$1;" ]; }
close() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && b > 0 && a - b < 0.02 && b - a < 0.02) }'; }

expect "a run" $gpu $train --out $dir/whole
case $gpu in *emulated*)
    expect "it says what attention it has" [ "$(grep -c '; attention: wgmma;' $dir/output)" = 1 ] ;;
esac
expect "a run again" $gpu $train --out $dir/again
expect "the same bits again" same $dir/whole $dir/again
expect "training goes on while a checkpoint is written" awk '
    /"step", "step": 4,/ { later = 1 }
    /"checkpoint", "step": 3,/ { late = later }
    END { exit !late }' $dir/whole/log.jsonl
mkdir -p $dir/resumed && cp -r $dir/whole/step_00000003 $dir/resumed &&
    sed '/"step": [456],/d' $dir/whole/log.jsonl > $dir/resumed/log.jsonl
expect "resumed" $gpu train --resume --out $dir/resumed
expect "the same bits after a stop" same $dir/whole $dir/resumed
expect "the CPU program goes on" ./train_gpt train --resume --steps 8 --out $dir/resumed
expect "and this one after it" $gpu train --resume --steps 10 --out $dir/resumed
expect "the CPU program finds the same loss" close "$(val_loss $gpu $dir/whole)" "$(val_loss ./train_gpt $dir/whole)"
expect "a sample of two texts" $gpu sample --model $dir/whole --prompt "5 7 9" --tokens 12 --samples 2
# the schedule of these launches has a block multiply, and discard, keys that are on their way at step 13
expect "heads of 128" $gpu train --train $dir/train.u16 --val $dir/val.u16 --raw u16 --rows packed --init custom \
    --layers 1 --heads 1 --channels 128 --vocab 300 --context 128 --batch 4 --tokens-per-step 512 --steps 20 \
    --eval-every 10 --eval-rows 4 --lr 5e-3 --seed 3 --sample-every 0 --out $dir/wide
case $gpu in *emulated*) export EMU_STATS=1 ;; esac
# in an order of the threads in which kernels that are launched early do begin early
expect "all tensors agree with the CPU's" env EMU_SEED=1 $gpu --check
case $gpu in *emulated*)
    plain="20 backward_plain false;20 backward_plain true"
    tiles="$plain;4 backward_tiles 128;4 backward_tiles 128;12 backward_tiles 64;12 backward_tiles 64"
    tiles="$tiles;9 forward_tiles 128;27 forward_tiles 64"
    attention_was "$plain;4 backward_wgmma 128;12 backward_wgmma 64;9 forward_wgmma 128;27 forward_wgmma 64"
    expect "all tensors agree with the CPU's on an RTX 4090" env EMU_CAPABILITY=89 $gpu --check
    attention_was "$tiles"
    expect "all tensors agree with the CPU's in fp32" ${gpu}_fp32 --check
    unset EMU_STATS
    [ -z "$STRESS" ] || expect "all tensors agree with the CPU's on an A100" env EMU_CAPABILITY=80 $gpu --check
    for seed in 1 2; do
        expect "a run, order $seed of the threads" env EMU_SEED=$seed $gpu $train --out $dir/order$seed
        expect "the same bits in order $seed" same $dir/whole $dir/order$seed
    done
    expect "a model of 24 positions" $gpu $short --out $dir/short
    for how in ${STRESS:+"" "--temperature 0"} "--samples 3 --top-k 20 --temperature 0.8" \
               "--samples 11 --top-p 0.7 --min-p 0.05" "--samples 2 --repetition-penalty 1.3"; do
        expect "the CPU's text, twice around a full context: ${how:-one sample}" same_text --tokens 60 $how
    done
    expect "the same text, one of 2 or of 7" same_among 2 7
    refused "a batch beyond the memory" 1 "not enough memory on the GPU: .*--batch [0-9]* fits" \
        env EMU_MEM_MB=64 $gpu $large --out $dir/none
    refused "no GPU" 1 "no NVIDIA GPU" env EMU_DEVICES=0 $gpu $train --out $dir/none ;;
esac
bad=$dir/nan/model.safetensors
mkdir $dir/nan && cp $dir/whole/step_00000006/config.json $dir/whole/step_00000006/model.safetensors $dir/nan &&
    printf '\377\377\377\377' | dd of=$bad bs=1 conv=notrunc seek=$(($(wc -c < $bad) - 4)) 2> /dev/null
refused "a weight that is NaN" 1 "tensor 'transformer.ln_f.bias': number 63 is nan" \
    $gpu sample --model $dir/nan --tokens 9
refused "another format" 2 "dtype fp32: must be one of bf16" $gpu $train --dtype fp32 --out $dir/none
exit $failed
