#!/bin/sh
# dev/assistant.sh DIR [SEED [SHARE]] -- from text to an assistant on the built-in corpus, as `make assistant` runs it:
# a tokenizer, a base model, and from it a supervised model, a reward model and a policy; then one table. All of it goes
# to DIR, and what was stopped goes on there. The tools are those that one would use on texts of one's own. A SHARE of
# 100 takes a hundredth of all steps, for a look at how it goes.
dir=$1 seed=${2:-1} share=${3:-1} data=$1/data
fail() { echo "error: $*" >&2; exit 1; }
quietly() { "$@" > $dir/log 2>&1 || fail "$1 $2: $(tail -1 $dir/log | sed 's/^error: //')"; }
steps() { echo $(($1 / share)); }
mkdir -p $dir || exit 1

# Words as single tokens: a fact is copied by one token then, and a question with two examples before it fits the
# context.
if ! [ -e $dir/examples.jsonl ]; then
    quietly build/corpus --out $dir/letters --documents 20000 --seed $seed
    quietly build/shards decode --in $dir/letters/train.bin --tokenizer bytes --eot '\n'
    mv $dir/log $dir/text.txt
    quietly build/shards bpe --in $dir/text.txt --vocab 455 --out $dir/tokenizer
    quietly build/corpus --out $data --tokenizer $dir/tokenizer --sft 3000 --ranked 24000 --prompts 24000 --seed $seed
    quietly build/shards decode --in $data/sft_train.bin --tokenizer $data
    head -2 $dir/log > $dir/two.jsonl && mv $dir/two.jsonl $dir/examples.jsonl
fi

# stage NAME WORDS...: trains DIR/NAME.
stage() {
    name=$1
    shift
    set -- ./train_gpt train "$@" --seed $seed --schedule linear --min-lr 0 --sample-every 0 --eval-every 250 \
        --eval-rows 0 --out $dir/$name
    echo "$*"
    quietly "$@" --resume
}
echo "how far it is stands in $dir/log"
answers="--answers $data/answers.bin"
documents="--train $data/train.bin --val $data/val.bin --rows documents $answers"
stage base    $documents --init custom --layers 4 --heads 4 --channels 64 --context 176 --batch 9 \
              --lr 5e-3 --warmup 100 --steps $(steps 3000)
stage longer  $documents --init $dir/base --batch 9 --lr 2e-3 --warmup 20 --steps $(steps 800)
stage sft     --stage sft --train $data/sft_train.bin --val $data/sft_val.bin $answers \
              --init $dir/base --context 96 --batch 16 --lr 2e-3 --warmup 20 --steps $(steps 800)
stage reward  --stage reward --train $data/ranked_train.bin --val $data/ranked_val.bin \
              --init $dir/sft --context 96 --batch 32 --lr 1e-3 --warmup 50 --steps $(steps 1000)
stage rl      --stage rl --reward exact --train $data/prompts.bin $answers \
              --init $dir/sft --context 96 --batch 64 --tokens-per-step 24576 --kl 0.02 \
              --lr 2e-4 --warmup 10 --steps $(steps 500)

# of DIR/NAME/log.jsonl: the minutes of its steps; the last FIELD of an EVENT; the mean of a step's FIELD over the last
# tenth; nan if there is none
minutes() { values $1 step ms | awk '{ sum += $1 } END { printf "%.1f", sum / 60000 }'; }
values() { sed -n 's/.*"event": "'$2'".* "'$3'": \([-0-9.e]*\).*/\1/p' $dir/$1/log.jsonl; }
last() { values "$@" | tail -1 | grep . || echo nan; }
late() {
    values $1 step $2 | awk '{ x[NR] = $1 }
        END { for (i = int(0.9 * NR) + 1; i <= NR; i++) { sum += x[i]; n++ }
              print n ? sum / n : "nan" }'
}
right() { ./train_gpt eval "$@" | sed -n 's/.*answers right \([0-9]*\) of.*/\1/p' | tail -1 | grep . || echo nan; }
row() {
    printf '%-38s %13s %8s  %s\n' "$@"
    case "$*" in *nan*) fail "$dir: a figure is missing" ;; esac
}
row "seed $seed" "answers right" minutes "of its own"
row "base, the question alone" $(last base answers right) $(minutes base) \
    "$(printf 'loss %.3f, floor %.3f' $(last base eval val_loss) $(last base eval floor))"
row "base, two examples before it" $(right --model $dir/base $answers --examples $dir/examples.jsonl) - -
row "base, trained on as long as sft" $(last longer answers right) $(minutes longer) \
    "$(printf 'loss %.3f' $(last longer eval val_loss))"
row "supervised (sft)" $(last sft answers right) $(minutes sft) \
    "$(printf 'loss of responses %.3f' $(last sft eval val_loss))"
best_of="--best-of 8 --temperature 0.5 --reward $dir/reward --seed $seed"
row "sft, best of 8 by the reward model" $(right --model $dir/sft $answers $best_of) \
    $(minutes reward) "$(printf 'held-out pairs right %.3f' $(last reward eval accuracy))"
row "reinforced (rl)" $(last rl answers right) $(minutes rl) \
    "$(printf 'reward %.3f, KL %.3f nats/token' $(late rl reward) $(late rl kl))"
echo "of 640 questions. Ask it: ./train_gpt chat --model $dir/rl"
