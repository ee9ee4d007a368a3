#!/bin/sh
# test/make.sh -- what `make run` does to runs that are there already, which flags win and what they build anew, and
# what does not compile, in a directory of its own.
dir=build/test_make
rm -rf $dir && mkdir -p $dir/build
for f in Makefile dev test train_gpt.cpp train_gpt.cu; do ln -s ../../$f $dir/$f; done
cp build/flags $dir/build && cp train_gpt $dir && cp build/shards build/corpus $dir/build && cd $dir || exit 1
ok() { if [ "$2" = "$3" ]; then echo "ok make/$1"; else echo "FAIL make/$1: found '$2', expected '$3'"; fi; }
run() { make --no-print-directory run "$@" > output 2>&1; }
list() { (cd runs && echo *); }

for steps in abc '' 0 3.5 '3 --lr 1' "3'"; do
    run "STEPS=$steps"
    ok "run STEPS=$steps" \
        "$? $(grep -c "^error: STEPS=$steps: expected a number of steps" output) $(ls -d runs 2>/dev/null)" '2 1 '
done
run STEPS=3
ok 'a first run' "$? $(list) $(grep -c '^step ' output)" '0 default 3'
before=$(cksum runs/default/step_00000003/model.safetensors)
run STEPS=abc
ok 'run STEPS=abc leaves the old run' "$(list) $(cksum runs/default/step_00000003/model.safetensors)" "default $before"
run STEPS=3
ok 'a run that has ended shows its result again' \
    "$? $(list) $(grep -c '^step ' output) $(grep -c '^answers right' output)" '0 default 0 1'
run STEPS=4
ok 'another length moves it aside' \
    "$? $(list) $(grep -c '^step ' output) $(grep -c 'moved to runs/default.1$' output)" '0 default default.1 4 1'
ok 'and keeps it' "$(cksum runs/default.1/step_00000003/model.safetensors | cut -d' ' -f1)" "${before%% *}"
run STEPS=3
ok 'which is taken back' \
    "$? $(list) $(grep -c '^runs/default.1 was this run' output) $(grep -c '^step ' output)" '0 default default.2 1 0'
ok 'one command line' "$(grep -c '^./train_gpt train' output)" 1
rm -rf runs
make run STEPS=40 > output 2>&1 & pid=$!
until grep -qs '"step": 2,' runs/default/log.jsonl || ! kill -0 $pid; do sleep 0.05; done
kill $pid && wait $pid
stopped=$(ls -d runs/default/step_* | tail -1)
run STEPS=40
ok 'a run that was stopped goes on' "$? $(list) $(grep -c "^resumed from $stopped" output)" '0 default 1'
rm build/shards
ok 'run builds what the next command needs' "$(make -n run | grep -c -e '-o build/shards')" 1

given() { make --no-print-directory given "$@"; }
ok 'a file that is named must be there' \
    "$(given MERGES=none.bpe 2>&1 | grep -c '^error: none.bpe: no such file')$(given MERGES=Makefile)" 1

# what conda exports
export CXXFLAGS='-march=nocona -mtune=haswell -O2 -ffast-math' CPPFLAGS='-O1 -DGIVEN' LDFLAGS='-Wl,-O2 -Lgiven'
for target in train_gpt build/shards build/test_files build/train_gpt_emulated build/study_gemm; do
    line=$(make -Bn $target | grep -e "-o $target")
    case $line in
    *-DGIVEN*-march=nocona*-ffast-math*-Lgiven*-O*-std=*-fno-fast-math*-march=*-mtune=*-fopenmp*) line=first ;;
    esac
    ok "flags of the environment, $target" "$line" first
done
unset CXXFLAGS CPPFLAGS LDFLAGS MAKEFLAGS DEBUG SANITIZE PORTABLE ARCH NVCC MERGES TEXT

# A compiler whose programs say ok, that knows no error but #error, in a file or those of other folders that it
# includes.
mkdir copy && cp -r ../../Makefile ../../dev ../../test ../../train_gpt.cpp ../../train_gpt.cu copy && cd copy || exit 1
cat > cxx << 'end'
#!/bin/sh
for word; do
    case $word in -) cat > /dev/null ;; *.cpp | *.cu) source=$word ;; esac
    [ "$last" != -o ] || program=$word
    last=$word
done
[ -z "$source" ] || ! cat $source $(sed -n 's,^#include "../\(.*\)",\1,p' $source) | grep '^#error' >&2 || exit 1
[ -z "$program" ] || [ -c $program ] || { echo 'echo "ok $0"' > $program && chmod +x $program; }
end
chmod +x cxx
for f in forks gpu make nvcc ranks rung sanitizers stages; do echo 'echo "ok $0"' > test/$f.sh; done
fake() { make --no-print-directory CXX=./cxx NVCC=./cxx "$@"; }
everything='programs train_gpt_cuda build/bench_gelu build/gpu_golden'
commands() { fake -n "$@" $everything | grep -c ' -o '; }

fake test > output 2>&1
ok 'all compiles' "$? $(grep -c '^FAIL' output)" '0 0'
fake $everything > output 2>&1
all=$(commands -B)
ok 'make builds the program and its tools' \
    "$(fake -Bn | grep ' -o ' | sed 's/.* //' | tr '\n' ' ')" 'train_gpt build/corpus build/shards '
ok 'nothing is built again' "$(commands) $(commands WERROR=1)" '0 0'
debug() { fake -n DEBUG=1 $everything | grep -c -e "$1"; }
ok 'DEBUG=1 reaches all' "$(debug '-O0 .*-DSYNCHRONOUS=true.* -o ') $(debug '-O[^0]')" "$all 0"
for change in DEBUG=1 PORTABLE=1; do ok "$change builds all again" $(commands "$change") $all; done
for change in 'CXX=./cxx -pipe' SANITIZE=1 CPPFLAGS=-DA "CXXFLAGS=-DA='b'" LDFLAGS=-La; do
    ok "$change builds again what is not CUDA's" $(commands "$change") $((all - 3))
done
for change in ARCH=80 'NVCC=./cxx -a'; do ok "$change builds CUDA's again" $(commands "$change") 3; done
fake DEBUG=1 $everything > output 2>&1
ok 'and then no more' "$(commands DEBUG=1) $(commands)" "0 $all"
for wrong in 'CXX=none' 'CXX=none -g' 'CXX=./cxx -o /dev/null ;false'; do
    case $wrong in *none*) says="CXX=.*: no such compiler" ;; *) says="CXX=.*: it builds no program" ;; esac
    fake "$wrong" train_gpt > output 2>&1
    ok "$wrong" "$? $(wc -l < output) $(grep -c "$says" output)" '2 1 1'
done

echo '#error' | tee -a dev/attention.cu dev/cpu/gemm.cpp test/test_golden.cpp > /dev/null
fake -j2 test > output 2>&1
ok 'what does not compile fails once' "$? $(grep '^FAIL' output | tr '\n' ' ')" \
    "2 $(printf 'FAIL %s: does not compile ' dev/cpu/gemm.cpp test/test_golden.cpp dev/attention.cu)"
for program in $(cd ../../../dev; ls *.cu | sed 's/\.cu//'); do
    echo ok build/emulated_$program
    echo ok build/emulated_${program}_fp32
done | grep -v attention > others
ok 'and the others run' \
    "$(grep -cFxf others build/test.log) $(grep -c '^ok build/\(study\|test_\)' build/test.log)" \
    "$(wc -l < others) $(($(ls test/test_*.cpp dev/cpu/*.cpp | wc -l) - 2))"
# those of dev/cpu/attention and test_gemm
ok 'no program of before' "$(grep -c '^ok .*\(golden\|attention\|gemm\|kernels\)' build/test.log)" 2

# What waits for a kernel has seen it run.
cat > test/waits.cpp << 'end'
#define NO_GPU_MAIN
#include "../train_gpt.cu"
static int runs = 0;
__global__ void run() { runs++; }
int main() { gpu::launch(run, 1, 1, 0), printf("%d\n", runs); }
end
make DEBUG=1 build/emulated_waits > output 2>&1
ok 'DEBUG=1 waits for each kernel' "$(EMU_LAZY=1 build/emulated_waits)" 1
