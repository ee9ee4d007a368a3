#!/bin/sh
# test/ranks.sh PROGRAM -- training with several processes: the CPU's with MPI, or the CUDA program's with NCCL,
# emulated or on the GPUs of this machine; for more ranks than there are, NCCL is told that each has a machine of its
# own. The same losses for any number of ranks, the same bits for any ZeRO and after a stop or a kill, what is refused.
# One line a check. STRESS=1 kills 200 times.
program=$1
dir=$PWD/build/test_ranks/$(basename $program) failed=0      # whole: processes are found by it
rm -rf $dir && mkdir -p $dir/data
suite=ranks && . test/check.sh
export OMP_NUM_THREADS=1
case $program in
*emulated* | *cuda*)
    one=$program counts="2 3" steps=04 half=02 save=2 heads=1
    start() {                                # RANKS OPTIONS...: as torchrun would
        n=$1 pids="" code=0
        shift
        for rank in $(seq 0 $((n - 1))); do
            case $program in *cuda*)
                export NCCL_HOSTID=$rank NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_SOCKET_IFNAME=lo ;;
            esac
            RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$n timeout 100 $program "$@" &
            pids="$pids $!"
        done
        for pid in $pids; do wait $pid || code=$?; done
        return $code
    } ;;
*)
    one=$program counts="2 3 4" steps=20 half=10 save=5 heads=2
    mpi="timeout 100 mpirun --allow-run-as-root --oversubscribe --bind-to none"
    start() { n=$1; shift; $mpi -n $n $program "$@"; } ;;
esac
awk 'BEGIN { for (i = 0; i < 4000; i++) printf "%c%c", i * i % 47 + 1, 0 }' > $dir/train.u16 2>/dev/null
train="train --train $dir/train.u16 --val $dir/train.u16 --raw u16 --init custom --layers 5 --heads $heads --channels 64
  --vocab 50 --context 16 --batch 1 --tokens-per-step 192 --steps ${steps#0} --save-every $save --keep 99
  --eval-every ${half#0} --eval-rows 7 --sample-every 0 --lr 2e-3"
losses() { sed -n 's/.*"event": "\(step\|eval\)".*'$what'": \([-0-9.e]*\).*/\2/p' $dir/$1/log.jsonl; }
what=loss most=1e-6
alike() {                                    # RUN RUN: all losses, to a relative difference of `most`
    losses $1 > $dir/a && losses $2 > $dir/b || return
    paste $dir/a $dir/b | awk -v most=$most '
        { d = ($1 - $2) / $2; if (d < 0) d = -d; if (!(d <= most)) bad = 1 }
        END { print NR; exit !(NR >= 3 && !bad) }'
}
same() {                                     # RUN RUN: the same bits
    for f in $dir/$1/step_000000$steps/*.safetensors; do
        cmp $f $dir/$2/step_000000$steps/$(basename $f) || return
    done
}
stopped() {                                  # RUN AS: as if it had been stopped in the middle
    mkdir -p $dir/$2 && cp -r $dir/$1/step_000000$half $dir/$2 &&
        awk -v half=$half '{ match($0, /"step": [0-9]+/)
                             if (substr($0, RSTART + 8, RLENGTH - 8) + 0 <= half + 0) print }' \
            $dir/$1/log.jsonl > $dir/$2/log.jsonl
}

expect "one process" $one $train --out $dir/1
for n in $counts; do
    began=$(date +%s%N)
    expect "$n ranks" start $n $train --out $dir/$n
    eval took_$n=$(($(date +%s%N) - began))
    most_ranks=$n
    expect "$n ranks: the losses of one" alike $n 1
done
# so many micro-batches a rank, of whose gradients as of the new weights each rank sends (n - 1) / n
sent() { sed -n 's/.*"step": '${steps#0}',.*"sent_bytes": \([0-9.e+]*\).*/\1/p' $dir/$1/log.jsonl; }
parameters=$(sed -n 's/.*"parameters": \([0-9]*\).*/\1/p' $dir/1/log.jsonl)
expect "2 ranks: bytes sent a step, $(sent 2)" awk -v sent="$(sent 2)" -v p=$parameters \
    'BEGIN { want = (6 + 1) * 4 * p / 2; exit !(sent > 0.99 * want && sent < 1.06 * want) }'
for zero in 0 2; do
    expect "3 ranks, ZeRO $zero" start 3 $train --zero $zero --out $dir/3.$zero
    expect "3 ranks, ZeRO $zero: the bits of ZeRO 1" same 3 3.$zero
done
case $program in *emulated*)                 # transfers on a stream of their own, as early and as late as events allow
    expect "2 ranks, a head of its own" start 2 $train --tied 0 --out $dir/2.head
    for seed in 1 2 3; do
        export EMU_SEED=$seed
        zero=$((seed - 1))
        expect "2 ranks, ZeRO $zero, in order $seed" start 2 $train --zero $zero --out $dir/2.order.$seed
        expect "2 ranks, ZeRO $zero, in order $seed: the same bits" same 2 2.order.$seed
        expect "2 ranks, a head of its own, in order $seed" start 2 $train --tied 0 --out $dir/2.head.$seed
        expect "2 ranks, a head of its own, in order $seed: the same bits" same 2.head 2.head.$seed
    done
    unset EMU_SEED ;;
esac
expect "2 ranks again" start 2 $train --out $dir/2.again
expect "2 ranks: the same bits again" same 2 2.again
stopped 2 2.resumed && expect "2 ranks: resumed" start 2 train --resume --out $dir/2.resumed
expect "2 ranks: the same bits after a stop" same 2 2.resumed
stopped 2 2.on.3 && expect "3 ranks go on" start 3 train --resume --zero 2 --out $dir/2.on.3
expect "3 ranks go on: the losses of one" alike 2.on.3 1
stopped 3 3.on.1 && expect "one process goes on" $one train --resume --out $dir/3.on.1
expect "one process goes on: the losses of one" alike 3.on.1 1
val() { $1 eval --model $2 --val $dir/train.u16 --raw u16 --rows packed | sed -n 's/^val loss \([0-9.]*\).*/\1/p'; }
expect "the CPU program evaluates it" [ "$(val ./train_gpt $dir/3 | cut -c1-5)" = "$(val $one $dir/1 | cut -c1-5)" ]

# ranks that share each layer, its four heads evenly and 53 tokens not: losses and norms of one process, and its texts
shares="$(echo $train | sed "s|--layers 5 --heads $heads|--layers 2 --heads 4|; s|--vocab 50|--vocab 53|
                             s|--sample-every 0|--sample-every ${half#0}|")"
texts() { sed -n 's/.*"event": "sample".*"text": \(.*\)/\1/p' $dir/$1/log.jsonl; }
shared() {                                   # RUN AS RANKS OPTIONS...
    run=$1 as=$2 n=$3
    shift 3
    expect "$run" start $n $shares "$@" --out $dir/$run
    for what in loss norm; do expect "$run: each $what of one process" alike $run $as; done
    what=loss
}
most=1e-5
expect "one process with four heads" $one $shares --out $dir/whole
shared tensor2 whole 2 --tensor-parallel 2
expect "tensor2: the texts of one process" [ "$(texts tensor2)" = "$(texts whole)" ]
case $program in *mpi*) groups=1 ;; *) groups=$STRESS ;; esac
if [ -n "$groups" ]; then                    # ranks in larger groups, and in several
    shared tensor4 whole 4 --tensor-parallel 4
    shared tensor2x2 whole 4 --tensor-parallel 2
    for zero in 0 2; do
        expect "tensor2x2, ZeRO $zero" start 4 $shares --tensor-parallel 2 --zero $zero --out $dir/tensor2x2.$zero
        expect "tensor2x2, ZeRO $zero: the bits of ZeRO 1" same tensor2x2 tensor2x2.$zero
    done
    stopped tensor2x2 2x2.resumed && expect "tensor2x2: resumed" start 4 train --resume --out $dir/2x2.resumed
    expect "tensor2x2: the same bits after a stop" same tensor2x2 2x2.resumed
    stopped tensor2x2 2x2.on.4 && expect "four ranks that share each layer go on" \
        start 4 train --resume --tensor-parallel 4 --out $dir/2x2.on.4
    stopped tensor2x2 2x2.on.1 && expect "one process goes on with what four shared" \
        $one train --resume --out $dir/2x2.on.1
    for run in 2x2.on.4 2x2.on.1; do expect "$run: the losses of one process" alike $run whole; done
    shares="$shares --tied 0 --bias 0"
    expect "one process with a head of its own, without biases" $one $shares --out $dir/whole.head
    shared tensor2x2.head whole.head 4 --tensor-parallel 2 --zero 2
fi
case $program in *mpi*)
    told() {                                 # TEXT COMMAND...: whether it fails, and says so
        text=$1
        shift
        ! "$@" > $dir/said 2>&1 && grep -q "$text" $dir/said
    }
    shares="$shares --tensor-parallel 2 --out $dir/none"
    expect "three ranks in groups of two" \
        told "^error: --tensor-parallel 2: must divide the 3 ranks and the model's 4 heads: take one of 1$" \
        start 3 $shares
    expect "a stage that knows no groups" \
        told "^error: --tensor-parallel 2: is for --stage pretrain and sft" start 2 $shares --stage reward ;;
esac
most=1e-6

# the other stages: whichever of two digits is larger
awk -v d=$dir 'BEGIN { for (a = 0; a < 5; a++) for (b = 0; b < 5; b++) {
    p = "{\"prompt\": \"" a "?" b "=\""; c = a > b ? a : b
    print p ", \"response\": \"" c "\"}" > d "/data/sft.jsonl"
    print p ", \"chosen\": \"" c "\", \"rejected\": \"" (c + 1 + b % 3) % 5 "\"}" > d "/data/ranked.jsonl" } }'
data=$dir/data
for name in sft ranked; do
    build/shards examples --in $data/$name.jsonl --tokenizer bytes --out $data/$name.bin > $dir/log || exit
done
on_sft="--train $data/sft.bin --val $data/sft.bin"
digits="--init custom --layers 2 --heads 2 --channels 32 --context 16 --lr 1e-3 --sample-every 0 --steps 4
  --eval-every 2"
stage() {                                    # NAME OPTIONS...: 3 ranks, of which one may have nothing to do
    run=$1
    shift
    expect "$run" $one train $digits "$@" --out $dir/$run
    expect "$run: 3 ranks" start 3 train $digits "$@" --out $dir/$run.3
    expect "$run: 3 ranks: the losses of one" alike $run.3 $run
}
stage sft --stage sft $on_sft --batch 1 --tokens-per-step 64
# groups of two, whose ranks have one half each of the tokens that answers are made of; the model knows some
know="train --stage sft $on_sft --answers $data/sft.bin --batch 1 --tokens-per-step 64 --eval-every 1"
right() { sed -n 's/.*"event": "answers".*"right": \([0-9]*\).*/\1/p' $dir/$1/log.jsonl; }
most=1e-5
expect "sft: a model that knows some answers" ./train_gpt $know ${digits% --lr*} --lr 1e-2 --steps 60 --sample-every 0 \
    --out $dir/knows
know="$know --init $dir/knows --steps 2 --lr 1e-3 --sample-every 0"
expect "sft: it goes on" $one $know --out $dir/knows.1
case $program in *mpi*) n=4 ;; *) n=2 ;; esac
expect "sft: in groups of two" start $n $know --tensor-parallel 2 --out $dir/knows.2
expect "sft: in groups of two: the losses of one" alike knows.2 knows.1
expect "sft: in groups of two: $(right knows.2) of 25 answers, as one" \
    [ "$(right knows.1)" -gt 0 -a "$(right knows.2)" = "$(right knows.1)" ]
most=1e-6
stage reward --stage reward --train $data/ranked.bin --val $data/ranked.bin --batch 2 --tokens-per-step 64
digits="${digits#*16} --init $dir/sft"
rl="--stage rl $on_sft --batch 2 --group 4 --response-tokens 3"
what=entropy                                 # the loss is almost 0
stage rl $rl --tokens-per-step 128 --rl-passes 2 --reward $dir/reward
what=reward
expect "rl: 3 ranks: the rewards of one" alike rl.3 rl
what=loss
# answers that a rank finds better and better, and another worse and worse: all save the same step as the best one
judge='i=0; while read -r answer; do i=$((i + 1)); echo $((i * (1 - ${RANK:-$OMPI_COMM_WORLD_RANK} % 2 * 2))); done'
expect "rl: ranks whose judges disagree" \
    start 2 train ${digits%%--eval-every*} --eval-every 1${digits#*--eval-every 2} \
    $rl --tokens-per-step 64 --reward-command "$judge" --out $dir/judged
stage lora --stage sft $on_sft --batch 1 --tokens-per-step 64 --lora-rank 4

# what is not alike, and what is for one
refused "a rank that there is not" 2 "started as rank 5 of 2" env RANK=5 WORLD_SIZE=2 $program $train --out $dir/none
refused "a verb that is for one process" 2 "sample: runs as one process" \
    env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 $program sample --model $dir/sft
case $program in
*mpi*)
    differs() {                              # OPTION VALUE OTHER
        rest="$(echo $train | sed "s|$1 [^ ]*||") --out $dir/differs"
        $mpi -n 1 $program $rest $1 $2 : -n 1 $program $rest $1 $3 > $dir/said 2>&1
        rm -rf $dir/differs
    }
    differs --lr 2e-3 1e-3
    expect "another option: rank 1 says so" grep -q "rank 1: error: --lr: '0.001' here, and on rank 0 '0.002'" $dir/said
    cp $dir/train.u16 $dir/other.u16 && printf '\1\0' >> $dir/other.u16
    differs --train $dir/train.u16 $dir/other.u16
    expect "other data: rank 1 says so" \
        grep -q "rank 1: error: --train: '8002 bytes.*here, and on rank 0 '8000 bytes" $dir/said
    started="$mpi -n 1 $program $train --out $dir/started : -n 1 $program"
    started() {
        $started "$@" > $dir/said 2>&1
        rm -rf $dir/started
        grep -q "$text" $dir/said
    }
    text="rank 1: error: --out $dir/elsewhere: is not the directory that rank 0 writes to"
    expect "another directory: rank 1 says so" started $train --out $dir/elsewhere
    cp $program $dir/changed && echo >> $dir/changed
    text="rank 1: error: program: '.* here, and on rank 0 '"
    started="$mpi -n 1 $program $train --out $dir/started : -n 1 $dir/changed"
    expect "another program: rank 1 says so" started $train --out $dir/started
    refused "a program built for one" 1 "built for one: make MPI=1" \
        env OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 ./train_gpt $train --out $dir/none ;;
esac

hellos() {                                   # RUN N: waits until so many ranks of it have said hello, or have met
    for i in $(seq 1 3000); do
        [ -e $1 ] || [ "$(ls $1.ranks 2> /dev/null | grep -c '^hello_[0-9]$')" -ge $2 ] && break
        sleep 0.01
    done
}
case $program in *emulated* | *cuda*)
    mkdir -p $dir/met.ranks && for file in id_0 hello_1 got_1; do head -c 200 $program > $dir/met.ranks/$file; done
    expect "an id that an earlier run left is not read" \
        start 2 $(echo $train | sed "s|--steps [0-9]*|--steps 1|") --out $dir/met/
    expect "and what was left is gone" [ ! -e $dir/met.ranks ]
    alone() {
        RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 timeout 2 $program $train --out $dir/alone > /dev/null 2> $dir/said
        grep -q "no word from rank 1" $dir/said
    }
    expect "one that waits for others can be stopped" alone
    expect "and leaves nothing" [ ! -e $dir/alone.ranks ]
    # two of three, of which one is killed before the third has come
    meets() { RANK=$1 LOCAL_RANK=$1 WORLD_SIZE=3 timeout 60 $program $train --out $dir/meets; }
    for killed in 0 1; do
        meets $((1 - killed)) > $dir/said 2>&1 &
        left=$!
        meets $killed > /dev/null 2>&1 &
        hellos $dir/meets 2
        for pid in $(pgrep -f -- "--out $dir/meets"); do
            grep -qz "^RANK=$killed$" /proc/$pid/environ && kill -9 $pid
        done
        wait $left
        expect "rank $killed is killed while they meet: the other one says so" \
            grep -q "error: rank $killed has ended" $dir/said
    done ;;
esac

# one of 2, 3 or 4 ranks is killed at any instant of a run: nothing of it is left within 10 seconds, and it goes on to
# the same bits
running() { pgrep -f -- "--out $dir/$1"; }
ranks() {                                    # of a run, without what launched them
    running $1 | while read pid; do
        grep -qx "$(basename $program | cut -c1-15)" /proc/$pid/comm 2>/dev/null && echo $pid
    done
}
kills=0 try=0 wanted=$([ -n "$STRESS" ] && echo 200 || echo 3)
while [ $kills -lt $wanted ] && [ $try -lt $((4 * wanted)) ]; do
    try=$((try + 1))
    n=$((2 + try % (most_ranks - 1)))
    rm -rf $dir/killed
    start $n $train --out $dir/killed > $dir/killed.log 2>&1 &
    launched=$!
    case $program in *emulated* | *cuda*) hellos $dir/killed $n ;; esac      # before that a launcher would see to it
    eval took=\$took_$n
    sleep $(awk -v t=$try -v took=$took 'BEGIN { srand(t); print took / 1e9 * rand() }')
    victim=$(ranks killed |
        awk -v t=$try '{ p[NR] = $1 } END { srand(1000 + t); print p[int(NR * rand()) + 1] }')
    killed=$(cat /proc/${victim:-none}/environ 2> /dev/null | tr '\0' '\n' | sed -n 's/^\(OMPI_COMM_WORLD_\|\)RANK=//p')
    [ -n "$victim" ] && kill -9 $victim 2>/dev/null || { wait $launched; continue; }      # not begun, or over
    kills=$((kills + 1))
    for tenth in $(seq 1 100); do
        running killed > /dev/null || break
        sleep 0.1
    done
    expect "killed $try, one of $n: no process is left after $tenth tenths of a second" [ -z "$(running killed)" ]
    wait $launched
    [ -e $dir/killed/step_000000$steps ] || expect "killed $try: it is told that rank $killed was" \
        grep -q "rank $killed \(with PID\|has ended\|to .* has died\)" $dir/killed.log
    ls $dir/killed/step_*/state.json > /dev/null 2>&1 || [ -s $dir/killed/log.jsonl ] || rm -rf $dir/killed
    if [ -d $dir/killed ]; then begin="--resume"; else begin=${train#train}; fi
    start $n train $begin --out $dir/killed > $dir/killed.log 2>&1
    expect "killed $try: the same bits in the end" same $n killed
done
expect "ranks that were killed: $kills" [ $kills = $wanted ]

# asked to stop, all of them do, behind the same step
case $program in *mpi*)
    long=$(echo $train | sed "s|--steps [0-9]*|--steps 1000000|; s|--save-every [0-9]*||")
    start 2 $long --out $dir/stopped > $dir/stopped.log 2>&1 &
    launched=$!
    for tenth in $(seq 1 100); do
        grep -q '^step 3/' $dir/stopped.log 2> /dev/null && break
        sleep 0.1
    done
    pkill -TERM -f -- "^mpirun .*--out $dir/stopped"
    wait $launched
    last=$(sed -n 's/^stopped after step \([0-9]*\);.*/\1/p' $dir/stopped.log | awk '{ printf "step_%08d", $1 }')
    expect "stopped: a checkpoint of the last step" [ -e $dir/stopped/$last/state.json ] ;;
esac
exit $failed
