#!/bin/sh
# test/make.sh -- what `make run` does to runs that are there already, and which flags win, in a directory of its own.
dir=build/test_make
rm -rf $dir && mkdir -p $dir/build
for f in Makefile dev test train_gpt.cpp train_gpt.cu; do ln -s ../../$f $dir/$f; done
cp train_gpt $dir && cp build/shards build/corpus $dir/build && cd $dir || exit 1
ok() { if [ "$2" = "$3" ]; then echo "ok make/$1"; else echo "FAIL make/$1: found '$2', expected '$3'"; fi; }
run() { make --no-print-directory run "$@" > output 2>&1; }
list() { (cd runs && echo *); }

for steps in abc '' 0 3.5 '3 --lr 1' "3'"; do
    run "STEPS=$steps"
    ok "run STEPS=$steps" "$? $(grep -c "^error: STEPS=$steps: expected a number of steps" output) $(ls -d runs 2>/dev/null)" '2 1 '
done
run STEPS=3
ok 'a first run' "$? $(list) $(grep -c '^step ' output)" '0 default 3'
before=$(cksum runs/default/step_00000003/model.safetensors)
run STEPS=abc
ok 'run STEPS=abc leaves the old run' "$(list) $(cksum runs/default/step_00000003/model.safetensors)" "default $before"
run STEPS=3
ok 'a run that has ended shows its result again' "$? $(list) $(grep -c '^step ' output) $(grep -c '^answers right' output)" '0 default 0 1'
run STEPS=4
ok 'another length moves it aside' "$? $(list) $(grep -c '^step ' output) $(grep -c 'moved to runs/default.1$' output)" '0 default default.1 4 1'
ok 'and keeps it' "$(cksum runs/default.1/step_00000003/model.safetensors | cut -d' ' -f1)" "${before%% *}"
rm -rf runs
make run STEPS=40 > output 2>&1 & pid=$!
until grep -qs '"step": 2,' runs/default/log.jsonl || ! kill -0 $pid; do sleep 0.05; done
kill $pid && wait $pid
stopped=$(ls -d runs/default/step_* | tail -1)
run STEPS=40
ok 'a run that was stopped goes on' "$? $(list) $(grep -c "^resumed from $stopped" output)" '0 default 1'
rm build/shards
ok 'run builds what the next command needs' "$(make -n run | grep -c -e '-o build/shards')" 1

ok 'a file that is named must be there' "$(make --no-print-directory given MERGES=none.bpe 2>&1 | grep -c '^error: none.bpe: no such file')$(make --no-print-directory given MERGES=Makefile)" 1

# what conda exports
export CXXFLAGS='-march=nocona -mtune=haswell -O2 -ffast-math' CPPFLAGS='-O1 -DGIVEN' LDFLAGS='-Wl,-O2 -Lgiven'
for target in train_gpt build/shards build/test_files build/train_gpt_emulated build/study_gemm; do
    line=$(make -Bn $target | grep -e "-o $target")
    case $line in
    *-DGIVEN*-march=nocona*-ffast-math*-Lgiven*-std=*-fno-fast-math*-O*-march=*-mtune=*-fopenmp*) line=first ;;
    esac
    ok "flags of the environment, $target" "$line" first
done
