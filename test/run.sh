#!/bin/sh
# Runs every test program from the project's root, shows what failed or was skipped, and counts. All lines:
# build/test.log. MERGES=vocab.bpe and TEXT=tinyshakespeare.txt add the checks that need them, llm.c's two shards beside
# it two more.
log=build/test.log
: > $log
run() {
    name=$(basename "$1")
    out=build/test_$name.out
    start=$(date +%s)
    "$@" > $out 2>&1
    code=$?
    # a program that ends badly without having said what failed has failed one check
    if [ $code -ne 0 ] && ! grep -q '^FAIL ' $out; then
        tail -3 $out
        echo "FAIL $name: exit $code" >> $out
    fi
    grep -E '^(FAIL|skip) ' $out
    printf '%-16s %4d ok %4d s\n' "$name" "$(grep -c '^ok ' $out)" $(($(date +%s) - start))
    cat $out >> $log
}
# Whether a program is there. One that is not did not compile: one failure, of the file to blame, whatever else needs
# it.
built() {
    [ -x "$1" ] && return
    name=$(basename "$1" | sed 's/^emulated_//; s/_fp32$//')
    blamed=$(ls test/$name.cpp test/test_$name.cpp dev/$name.cu dev/cpu/${name#study_}.cpp dev/data/$name.cpp \
        2> /dev/null | head -1)
    case $1 in *emulated*) [ -x build/train_gpt_emulated ] || blamed=train_gpt.cu ;; esac
    [ -x train_gpt ] || blamed=train_gpt.cpp
    if grep -q "^FAIL ${blamed:=$1}: " $log; then echo "skip $1: $blamed does not compile"
    else echo "FAIL $blamed: does not compile"; fi | tee -a $log
    return 1
}
try() { built "$1" && run "$@"; }
# All ladders, which are one program; where that does not compile, each is one of its own.
ladders() {                                  # FORMAT ORDERS [SIZE]
    format=$1
    shift
    if [ -x build/emulated_kernels$format ] || ! built build/train_gpt_emulated$format; then
        try build/emulated_kernels$format "$@"
        return
    fi
    for ladder in dev/*.cu; do
        program=build/emulated_$(basename $ladder .cu)$format
        ${MAKE:-make} -s $program > /dev/null 2>&1
        try $program "$@"
    done
    grep -q '^FAIL dev/.*: does not compile' $log || built build/emulated_kernels$format
}
# What no test runs, and must compile all the same: what only a processor with AMX is for (test_gemm emulates it), every
# header alone, the programs of make fuzz and make test-hf.
compiles() {                                 # FILE FLAGS...
    file=$1
    shift
    if message=$(${CXX:-c++} -std=c++20 -Wall -Wextra -Werror -fopenmp-simd -Wno-unknown-pragmas -fsyntax-only \
        "$@" 2>&1)
    then echo "ok compiles/$file"; else echo "FAIL compiles/$file: $(echo "$message" | grep -m 1 error)"; fi
}
sources() {
    if echo 'int main() {}' | ${CXX:-c++} -march=sapphirerapids -fsyntax-only -x c++ - 2>/dev/null
    then compiles "train_gpt.cpp with AMX" -march=sapphirerapids train_gpt.cpp
    else echo "skip compiles/train_gpt.cpp with AMX: the compiler does not know it"; fi
    for header in dev/host/*.h; do compiles $header -include $header -x c++ /dev/null; done
    compiles test/fuzz.cpp -DTARGET=model test/fuzz.cpp
    compiles test/logits.cpp test/logits.cpp
    if command -v clang++ > /dev/null; then (
        CXX=clang++
        compiles "train_gpt.cpp, no name hides another" -Wshadow train_gpt.cpp
        compiles "train_gpt.cu, no name hides another" -Wshadow -Wno-unused-function -Wno-unknown-attributes \
            -Wno-psabi -DUSE_NCCL -I test/emulation -x c++ train_gpt.cu
    )
    else echo "skip compiles/names that hide others: no clang++"; fi
    # The two programs stay what a person can read.
    for budget in train_gpt.cpp:2600 train_gpt.cu:2700; do
        lines=$(wc -l < ${budget%:*})
        if [ $lines -lt ${budget#*:} ]; then echo "ok lines/$budget: $lines"; else echo "FAIL lines/$budget: $lines"; fi
    done
    # But for rows of tables, up to 160: X( and {, and in here-documents of scripts a|b|c.
    wide=$(find train_gpt.* dev test -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.py' \
        -o -name '*.sh' | LC_ALL=C sort | xargs awk '
        FNR == 1 { here = "" }
        FILENAME ~ /\.sh$/ && here != "" && $0 == here { here = "" }
        { row = FILENAME ~ /\.sh$/ ? here != "" && /\|.*\|/ : FILENAME !~ /\.py$/ && /^ *(\{|X\()/ }
        length > (row ? 160 : 120) { print FILENAME ":" FNR; exit }
        match($0, /<< *.?[A-Za-z]+.?$/) { here = substr($0, RSTART + 2); gsub(/[^A-Za-z]/, "", here) }')
    if [ -z "$wide" ]; then echo "ok lines/120 columns, but for rows of tables"
    else echo "FAIL lines/$wide: over 120 columns"; fi
    if command -v python3 > /dev/null; then python3 test/mutants.py --number 0
    else echo "skip mutants/regions: no python3"; fi 2>&1
}
# Beside what follows, as far as the next wait: most of these tests keep one processor busy.
(built build/train_gpt_emulated && built build/train_gpt_emulated_fp32 && run test/gpu.sh build/train_gpt_emulated) &
run sources
try build/test_layers
try build/test_gemm
for study in dev/cpu/*.cpp; do try build/study_$(basename $study .cpp) --check; done
try build/test_golden test/golden/*/
try build/test_options
try build/test_host
try build/test_pattern
try build/emulated_golden test/golden/*/
try build/emulated_golden_fp32 test/golden/*/
ladders "" ${STRESS:+1}4 ${STRESS:+large}      # orders of the threads; in make stress 14, and larger shapes
ladders _fp32 ${STRESS:+1}2 ${STRESS:+large}
try build/emulated_heuristics
try build/emulated_nccl
try build/emulated_broken
try build/test_plan
wait
for script in sanitizers rung nvcc; do         # these compile all ladders
    if [ -x build/emulated_kernels ]; then run test/$script.sh
    else echo "skip $script: build/emulated_kernels does not compile" | tee -a $log; fi
done
# SEED= and N= of make
[ -z "$STRESS" ] || ! built train_gpt || run test/mutants.py --seed "${SEED:-1}" --number "${N:-12}"
try build/test_files
try build/test_cases
# Processes that train together: of the program with NCCL, emulated, and with MPI.
ranks() { built train_gpt && built build/shards && built build/$1 && run test/ranks.sh build/$1; }
ranks train_gpt_emulated_fp32 &
built train_gpt && built build/shards && built build/corpus && run test/make.sh
built train_gpt && built build/corpus && run test/forks.sh
built train_gpt && built build/shards && run test/stages.sh ./train_gpt
built train_gpt && built build/train_gpt_emulated && built build/train_gpt_emulated_fp32 &&
    run test/stages.sh build/train_gpt_emulated
wait
if command -v mpirun > /dev/null; then ranks train_gpt_mpi
else echo "skip ranks: no mpirun (Open MPI: openmpi-bin, libopenmpi-dev)" | tee -a $log; fi
try build/test_corpus
try build/test_tokenizer
if [ -n "$MERGES" ]; then try build/test_tokenizer "$MERGES" test/gpt2_cases.tsv
else echo "skip tokenizer/gpt2: give MERGES=vocab.bpe" | tee -a $log; fi
shards=$(dirname "$TEXT")/tiny_shakespeare
if [ -n "$MERGES" ] && [ -f "${shards}_train.bin" ] && [ -f "${shards}_val.bin" ]; then
    try build/test_tokenizer --shakespeare "$TEXT" "$MERGES" "${shards}_train.bin" "${shards}_val.bin"
else
    echo "skip tokenizer/tinyshakespeare: give MERGES= and TEXT=," \
        "with llm.c's tiny_shakespeare_train.bin and _val.bin beside it" | tee -a $log
fi
failed=$(grep -c '^FAIL ' $log)
echo "$(grep -c '^ok ' $log) passed, $failed failed, $(grep -c '^skip ' $log) skipped"
[ "$failed" -eq 0 ]
