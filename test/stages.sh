#!/bin/sh
# test/stages.sh PROGRAM -- supervised fine-tuning, reward model and reinforcement learning as runs: what they learn,
# the same bits after a stop and with any number of threads, what is refused. One line a check.
program=$1
dir=build/test_stages/$(basename $program) failed=0
rm -rf $dir && mkdir -p $dir/data
suite=stages && . test/check.sh
stage() {                                    # STAGE RUN OPTIONS...
    of=$1 to=$2
    shift 2
    $program train --stage $of --out $dir/$to --sample-every 0 --eval-every 0 --keep 9 "$@"
}
same() {                                     # RUN RUN STEP: the same bits
    for f in $dir/$1/step_0000000$3/*.safetensors; do cmp $f $dir/$2/step_0000000$3/$(basename $f) || return; done
}
# what a run has logged; a figure that is no number is ""
figure() { sed -n "s/.*\"event\": \"$2\".*\"$3\": \([-0-9.e]*\).*/\1/p" $dir/$1/log.jsonl; }
above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 > b + 0) }'; }
near() {                                     # A B MOST: two figures that differ by less
    awk -v a="$1" -v b="$2" -v most=$3 'BEGIN { exit !(a != "" && b != "" && a - b < most && b - a < most) }'
}
share() {                                    # RIGHT REWARD LEAST: more right answers than that of 25, and their share
    awk -v a="$1" -v b="$2" -v least=$3 'BEGIN { exit !(a > least && a / 25 - b < 1e-6 && b - a / 25 < 1e-6) }'
}

# which of two digits is larger: examples, preferences, prompts
awk -v d=$dir/data 'BEGIN { for (a = 0; a < 5; a++) for (b = 0; b < 5; b++) {
    p = "{\"prompt\": \"" a "?" b "=\""; c = a > b ? a : b
    print a "?" b "=" c > d "/text"
    print p ", \"response\": \"" c "\"}" > d "/sft.jsonl"
    print p ", \"chosen\": \"" c "\", \"rejected\": \"" (c + 1 + b % 3) % 5 "\"}" > d "/ranked.jsonl"
    print p "}" > d "/prompts.jsonl"
    asked = "{\"role\": \"u\", \"content\": \"" a b "\"}"
    answered = "{\"role\": \"assistant\", \"content\": \"" c "\"}"
    print "{\"messages\": [" asked ", " answered "]}" > d "/chats.jsonl" } }'
data=$dir/data chats=$dir/chats/chats.bin
for name in sft ranked prompts; do
    build/shards examples --in $data/$name.jsonl --tokenizer bytes --out $data/$name.bin || exit
done > $dir/log
build/shards examples --in $data/chats.jsonl --tokenizer bytes --template '{role}{content}' --out $chats \
    >> $dir/log || exit
build/shards encode --in $data/text --split '\n' --tokenizer bytes --out $data/text >> $dir/log || exit
$program train --train $data/text_train.bin --init custom --layers 2 --heads 2 --channels 32 --context 16 --batch 2 \
    --steps 3 --sample-every 0 --out $dir/base >> $dir/log || { echo "FAIL stages: $(tail -1 $dir/log)"; exit 1; }
init="--init $dir/base --lr 3e-3"
sft="--train $data/sft.bin --batch 4"
reward="--train $data/ranked.bin --batch 8"
rl="--batch 4 --response-tokens 3 --rl-passes 2"
group="--group 4 --tokens-per-step 128"
prompts="--train $data/prompts.bin"
length='while read line; do echo ${#line}; done'         # a reward: the longer, the better
threes='while read line; do echo 3; done'                # and one that is the same for all
# a run in one piece, one in two, one on one thread
twice() {                                    # RUN STAGE OPTIONS...
    run=$1 kind=$2
    shift 2
    expect "$run" stage $kind $run --steps 6 --save-every 3 $init "$@"
    mkdir -p $dir/$run.stopped && cp -r $dir/$run/step_00000003 $dir/$run.stopped
    sed '/"step": [456],/d' $dir/$run/log.jsonl > $dir/$run.stopped/log.jsonl
    expect "$run: resumed" $program train --resume --out $dir/$run.stopped
    expect "$run: the same bits after a stop" same $run $run.stopped 6
    case $program in *emulated*) ;; *)
        expect "$run: on one thread" stage $kind $run.alone --steps 6 --threads 1 $init "$@"
        expect "$run: the same bits on one thread" same $run $run.alone 6 ;;
    esac
}
twice reward reward $reward
constrained() {
    $program sample --model $dir/reward --prompt '1?2=' --pattern '[0-4]{3}|[x-z]+ ' --samples 9 --tokens 40 \
        --format jsonl > $dir/texts &&
        [ "$(grep -cE '"response": "([0-4]{3}|[x-z]+ )", "finish": "end"' $dir/texts)" = 9 ]
}
expect "texts match a pattern, and end with it" constrained
refused "a pattern that is none" 2 "--pattern: character 1, '(a': a ( that no ) closes" \
    $program sample --model $dir/reward --pattern '(a'
case $program in *emulated*)
    twice lora rl $rl $group --train $data/sft.bin --lora-rank 4 --base-dtype nf4
    twice model rl $rl $group --train $data/prompts.bin --reward $dir/reward
    cpu=$(dirname $dir)/train_gpt            # which has run before
    step="train --stage rl --init $cpu/some --train $data/sft.bin $rl $group --steps 1 --sample-every 0"
    expect "a step in fp32" ${program}_fp32 $step --out $dir/gpu
    expect "the CPU's step" ./train_gpt $step --out $dir/cpu
    for what in reward length kl entropy clipped loss norm; do
        expect "$what as on the CPU" near "$(figure gpu step $what)" "$(figure cpu step $what)" 1e-3
    done
    exit $failed ;;
esac
twice sft sft $sft
twice exact rl $rl $group --train $data/sft.bin
twice model rl $rl $group --train $data/prompts.bin --reward $dir/reward
twice command rl $rl $group $prompts --advantage normalized --reward-command "$length"

expect "sft learns" stage sft sft.long $init $sft --rows documents --val $data/sft.bin --answers $data/sft.bin \
    --steps 600
expect "sft: loss of responses" above 0.3 "$(figure sft.long eval val_loss)"
expect "sft: answers" above "$(figure sft.long answers right)" 20
counted() {
    $program eval --model $dir/sft.long --answers $data/sft.bin "$@" |
        sed -n 's/^\(vote\|best\) of .*: answers right \([0-9]*\) of 25/\2/p'
}
expect "sft: answers that most of 20 texts have" above "$(counted --vote 20 --temperature 3)" 20
expect "sft: the likeliest of 20" above "$(counted --best-of 20 --temperature 3)" 20
expect "reward learns" stage reward reward.long $init $reward --val $data/ranked.bin --steps 300
expect "reward: accuracy" above "$(figure reward.long eval accuracy)" 0.9
evaluated=$($program eval --stage reward --model $dir/reward.long --val $data/ranked.bin |
    sed 's/.*accuracy \([0-9.]*\).*/\1/')
as_evaluated() { above "$evaluated" 0 && near "$evaluated" "$(figure reward.long eval accuracy)" 1e-4; }
expect "reward: as evaluated" as_evaluated
expect "reward: its choice of five" above "$(counted --best-of 5 --reward $dir/reward.long)" 20
expect "a start for rl" stage sft some $init $sft --rows documents --steps 150
expect "rl learns" stage rl rl.long $rl --group 8 --tokens-per-step 512 --init $dir/some --lr 3e-3 \
    --train $data/sft.bin --val $data/sft.bin --steps 60
expect "rl: reward" above "$(figure rl.long eval reward)" 0.6
right=$($program eval --model $dir/rl.long --answers $data/sft.bin | sed -n 's/answers right \([0-9]*\) of 25/\1/p')
expect "rl: the exact reward is the share of right answers" share "$right" "$(figure rl.long eval reward)" 0
expect "rl: a step of equal rewards" stage rl equal $init $rl $group $prompts --steps 1 --kl 0 \
    --reward-command "$threes"
expect "rl: equal rewards teach nothing" [ "$(figure equal step norm)" = 0 ]
# dialogues: their last response is the answer, and what rl draws one to
expect "chats: learned" stage sft chats.long $init --train $chats --batch 4 --rows documents --answers $chats \
    --steps 300
expect "chats: answers" above "$(figure chats.long answers right)" 15
expect "chats: rl" stage rl chats.rl --batch 4 --group 4 --tokens-per-step 256 --response-tokens 2 --lr 1e-4 \
    --init $dir/chats.long --train $chats --val $chats --answers $chats --steps 2
expect "chats: the exact reward is the share of right answers" \
    share "$(figure chats.rl answers right)" "$(figure chats.rl eval reward)" 15
expect "rl: no reward" stage rl nothing $init $rl $group $prompts --val $data/prompts.bin --steps 1 \
    --reward-command 'while read line; do echo 0; done'
expect "rl: no reward is a loss of 0, not of -0" [ "$(figure nothing eval val_loss)" = 0 ]
expect "rl: what is logged" [ "$(grep -c '"reward": .*"kl": .*"entropy": .*"clipped": ' $dir/rl.long/log.jsonl)" = 60 ]

# LoRA: adapters alone are trained and kept, and their start alone is what KL is measured from
answered() {
    right=$($program eval --answers $data/sft.bin "$@" | sed -n 's/answers right \([0-9]*\) of 25/\1/p')
}
twice lora sft $sft --lora-rank 4 --lora-targets qkv,fcproj
expect "lora: no weights of the model are kept" [ ! -e $dir/lora/step_00000006/model.safetensors ]
expect "lora learns" stage sft lora.long --init $dir/base $sft --rows documents --steps 600 --lora-rank 4 --lr 1e-2
answered --model $dir/lora.long
expect "lora: answers" above "$right" 15
expect "lora: merged" $program merge --model $dir/lora.long --out $dir/lora.merged
for model in "$dir/lora.merged" "$dir/base --adapter $dir/lora.long"; do
    was=$right && answered --model $model
    expect "lora: as many answers: $model" [ "$right" = "$was" ]
done
for form in bf16 int8 nf4; do
    answered --model $dir/sft.long --base-dtype $form
    expect "matrices kept as $form: answers" above "$right" 20
    answered --model $dir/lora.long --base-dtype $form
    expect "matrices kept as $form, an adapter beside them: answers" above "$right" 14
done
twice lora.int8 sft $sft --lora-rank 4 --base-dtype int8
twice lora.nf4 sft $sft --lora-rank 4 --base-dtype nf4
twice lora.rl rl $rl $group --train $data/sft.bin --adapter $dir/lora.long --lora-rank 4
expect "lora: rl goes on with an adapter" near "$(figure lora.rl step kl | head -1)" 0 1e-6
expect "lora: an adapter as start of all weights" stage sft lora.all $init $sft --adapter $dir/lora.long --steps 6
expect "lora: all weights are kept then" [ -e $dir/lora.all/step_00000006/model.safetensors ]

fails() {                                    # NAME CODE TEXT STAGE RUN OPTIONS...: a run that is refused
    about=$1 code=$2 text=$3
    shift 3
    rm -rf $dir/none
    refused "$about" $code "$text" stage "$@" --steps 6
}
plain="sft none $init $sft"
reinforced="rl none $init $rl $group"
fails "sft of prompts" 1 "prompts alone, but --stage sft needs dialogues or prompts and responses" \
    sft none $init $prompts
fails "reward without pairs" 1 "prompts and responses, but --stage reward needs preferences" \
    reward none $init --train $data/sft.bin
exact="prompts alone, but --reward exact needs prompts and responses"
fails "exact without answers" 1 "$exact; or give --reward MODEL or --reward-command PROGRAM" $reinforced $prompts
fails "exact without answers to validate" 1 "$exact" $reinforced --train $data/sft.bin --val $data/prompts.bin
fails "rl from nothing" 2 "--stage rl: needs --init, a model to start from" \
    rl none $rl $group --train $data/sft.bin --init d6 --context 16
fails "no reward model" 1 "--reward $dir/nowhere: no such file" $reinforced --train $data/sft.bin --reward $dir/nowhere
fails "token shards" 1 "not an example shard" sft none $init --train $data/text_train.bin
fails "example shards without --stage" 1 "an example shard" pretrain none $init --train $data/sft.bin
fails "raw" 2 "--stage sft: takes example shards, without --raw" $plain --raw u16
fails "sliding" 2 "--stage sft: takes example shards, without --raw or --rows sliding" $plain --rows sliding
fails "odd batch" 2 "--batch 3: --stage reward computes pairs of rows" \
    reward none $init --train $data/ranked.bin --batch 3
fails "part of a group" 2 "--tokens-per-step 64: not a multiple of batch and --group x context = 128" \
    rl none $init $rl --train $data/sft.bin --group 8 --tokens-per-step 64
fails "no room for a prompt" 1 "its prompt and an answer of --response-tokens make 20 tokens, and the context has 16" \
    rl none $init $group --train $data/sft.bin --response-tokens 15
fails "a context too short" 1 "no example is left of 25: .*; raise --context" $plain --context 4
fails "rl's options elsewhere" 2 "--kl: is for --stage rl" $plain --kl 0.1
fails "a reward elsewhere" 2 "--reward: is for --stage rl" reward none $init $reward --reward $dir/reward
fails "two rewards" 2 "--reward-command: give --reward or --reward-command, not both" \
    $reinforced --train $data/sft.bin --reward $dir/reward --reward-command cat
refused "another reward on resume" 2 "the run in .* has none, and a resumed run must not differ in it" \
    $program train --resume --steps 8 --out $dir/command.stopped --reward $dir/reward
again() {
    "$@" > $dir/said && head -1 $dir/said > $dir/said.first && rm -r $dir/again &&
        sh $dir/said.first && [ -e $dir/again/step_00000001 ]
}
expect "the line that a run begins with starts it again" \
    again stage rl again $init $rl $group $prompts --steps 1 --reward-command "$threes"
fails "answers of a reward model" 2 "--answers: a model of --stage reward writes none" \
    reward none $init $reward --answers $data/sft.bin
told() {                                     # TEXT COMMAND...: whether it says so on standard error
    text=$1
    shift
    "$@" 2>&1 > /dev/null | grep -q -e "$text"
}
untold() { ! told "$@"; }
rewarded="stage rl rewarded $init $rl $group $prompts --steps 1 --reward"
expect "a model of another stage as reward: told" told "^warning: --reward $dir/sft: is of --stage sft: how likely" \
    $rewarded $dir/sft
expect "a reward model as reward: nothing is told" untold "is of --stage" \
    $program sample --model $dir/sft --tokens 2 --best-of 2 --reward $dir/reward
expect "a reward model that is to write: told" told "^warning: --model $dir/reward: is of --stage reward" \
    $program sample --model $dir/reward --tokens 2
expect "a reward model that is evaluated: nothing is told" untold warning \
    $program eval --stage reward --model $dir/reward --val $data/ranked.bin
expect "sft of random weights: told" told "^warning: --stage sft: starts at random, without --init" \
    stage sft fresh $sft --layers 1 --heads 1 --channels 32 --context 16 --steps 1
refused "rl is not evaluated" 2 "--stage rl: evaluates nothing by itself" \
    $program eval --stage rl --model $dir/sft --val $data/sft.bin
echo 'one and one and one' > $data/words
build/shards bpe --in $data/words --vocab 258 --out $dir/two > $dir/log &&
    build/shards encode --in $data/text --tokenizer $dir/two --out $dir/two/t >> $dir/log
$program train --train $dir/two/t_train.bin --init custom --layers 1 --heads 1 --channels 32 --context 16 --batch 2 \
    --steps 1 --sample-every 0 --out $dir/foreign > $dir/log
mkdir $dir/bare && cp $data/sft.bin $dir/bare
fails "a reward model of another tokenizer" 2 "has another tokenizer than --init" \
    $reinforced --train $dir/bare/sft.bin --reward $dir/foreign
fails "data of another tokenizer than the reward model's" 1 "the tokenizer there is not that of $dir/foreign" \
    $reinforced --train $data/sft.bin --reward $dir/foreign

fails "an adapter of nothing" 2 "--lora-rank: needs --init" sft none $sft --lora-rank 4 --init d6 --context 16
fails "a frozen form of what is trained" 2 "--base-dtype nf4: all weights are trained; give --lora-rank" \
    $plain --base-dtype nf4
fails "an adapter's scale without one" 2 "--lora-alpha: is for --lora-rank" $plain --lora-alpha 8
fails "an adapter of another rank" 2 "--lora-rank 8: the adapter in $dir/lora.long/step_00000600 has rank 4" \
    $plain --lora-rank 8 --adapter $dir/lora.long
fails "an adapter of another alpha" 2 "--lora-alpha 8: the adapter in $dir/lora.long/step_00000600 has alpha 16" \
    $plain --lora-rank 4 --lora-alpha 8 --adapter $dir/lora.long
fails "an adapter of other targets" 2 \
    "--lora-targets: the adapter in $dir/lora.long/step_00000600 has fc,fcproj,proj,qkv" \
    $plain --lora-rank 4 --lora-targets qkv --adapter $dir/lora.long
fails "targets that are none" 2 "--lora-targets qkv,mlp: 'mlp' is none of qkv, proj, fc, fcproj" \
    $plain --lora-rank 8 --lora-targets qkv,mlp
fails "an adapter that is none" 1 "$dir/sft/step_00000006: holds no adapter_config.json" \
    $plain --lora-rank 8 --adapter $dir/sft
refused "an adapter for another model" 1 "is for another model than" \
    $program eval --model $dir/sft --adapter $dir/lora.long --answers $data/sft.bin
refused "an adapter of an adapter" 2 "is an adapter itself" \
    $program eval --model $dir/lora.long --adapter $dir/lora --answers $data/sft.bin
refused "a model that is there already" 1 "--out $dir/lora.merged: is there already" \
    $program merge --model $dir/lora.long --out $dir/lora.merged

scored() {                                   # NAME TEXT COMMAND: one that gives no rewards
    fails "a command that $1" 1 "$2" $reinforced $prompts --reward-timeout 0.5 --reward-command "$3"
}
scored "ends" "ended with exit code 3 after 0 of 8 scores" "exit 3"
scored "ends in between" "ended with exit code 0 after 3 of 8 scores" "for i in 1 2 3; do read line; echo 1; done"
scored "is silent" "no answer within 0.5 seconds, after 0 of 8 scores; it has to write each line at once" "sleep 9"
scored "says too much" "more than 8 lines" "while read line; do echo 1; echo 2; done"
scored "says no number" "line 1: 'well' is no number" "while read line; do echo well; done"
scored "says infinity" "line 1: 'inf' is no number" "while read line; do echo inf; done"
scored "says what is too large" "line 1: '-2e30' is no number up to 1e30 in size; a score a line, and nothing else" \
    "while read line; do echo -2e30; done"
mended() {                                   # RUN STEP: of where another command goes on
    $program train --resume --out $dir/$1 --reward-command "$length" > $dir/said 2>&1 &&
        grep -q "^warning: --reward-command: from step $2 on 'while .*' rewards, before it did" $dir/said &&
        $program train --resume --out $dir/$1 > $dir/said
}
expect "another command before the first checkpoint" mended none 1
refused "a command that fails later" 1 "is no number" \
    stage rl later $init $rl $group $prompts --steps 6 --save-every 1 \
    --reward-command 'n=0; while read line; do n=$((n + 1)); [ $n -lt 33 ] && echo $((n % 3)) || echo no; done'
cp -r $dir/later $dir/later.model && refused "a model instead of a command on resume" 2 "must not differ in it" \
    $program train --resume --out $dir/later.model --reward $dir/reward
expect "another command goes on from it" mended later 5
refused "a command that ends at once" 1 "ended with exit code 3" \
    stage rl early --init $dir/base --adapter $dir/lora.long $rl $group $prompts --steps 2 --reward-command 'exit 3'
elsewhere() ( cd test && ../$program train --resume --out ../$dir/early --reward-command "$length" )
expect "from elsewhere, before the first checkpoint: data and adapter" elsewhere
expect "it leaves a whole checkpoint" $program eval --stage sft --model $dir/later --val $data/sft.bin
[ -z "$STRESS" ] || expect "from text to an assistant in a hundredth of the steps" dev/assistant.sh $dir/assistant 1 100
refused "another reward model on resume" 1 "was given other data" \
    $program train --resume --steps 8 --out $dir/model.stopped --reward $dir/reward.long
refused "a model instead of the exact reward on resume" 1 "was given other data: exact" \
    $program train --resume --steps 8 --out $dir/exact.stopped --reward $dir/reward.long
refused "a command instead of the exact reward on resume" 1 "was given other data: exact" \
    $program train --resume --steps 8 --out $dir/exact.stopped --reward-command cat
mv $dir/lora.long $dir/lora.moved && cp -r $dir/lora $dir/lora.long
refused "another adapter on resume" 1 "^error: --adapter $dir/lora.long: .* was given other data" \
    $program train --resume --steps 8 --out $dir/lora.rl.stopped
rm -r $dir/lora.long && mv $dir/lora.moved $dir/lora.long
mv $dir/base $dir/base.old && cp -r $dir/sft $dir/base
refused "an adapter whose model is another one" 1 "is for another model than" \
    $program sample --model $dir/lora --tokens 3
rm -r $dir/base && mv $dir/base.old $dir/base.moved
refused "an adapter without its model" 1 "the model that it is for, '.*/base/step_00000003', is not there" \
    $program sample --model $dir/lora --tokens 3
mv $dir/base.moved $dir/base.old && cp -r $dir/sft $dir/base
refused "another start on resume" 1 "--init $dir/base: " $program train --resume --steps 8 --out $dir/exact.stopped
exit $failed
