#!/bin/sh
# Runs every test program from the project's root, shows what failed or was skipped, and counts. All lines: build/test.log.
# MERGES=vocab.bpe and TEXT=tinyshakespeare.txt add the checks that need them, llm.c's two shards beside it two more.
log=build/test.log
: > $log
run() {
    name=$(basename "$1")
    start=$(date +%s)
    "$@" > build/test.out 2>&1
    code=$?
    # a program that ends badly without having said what failed has failed one check
    if [ $code -ne 0 ] && ! grep -q '^FAIL ' build/test.out; then
        tail -3 build/test.out
        echo "FAIL $name: exit $code" >> build/test.out
    fi
    grep -E '^(FAIL|skip) ' build/test.out
    printf '%-16s %4d ok %4d s\n' "$name" "$(grep -c '^ok ' build/test.out)" $(($(date +%s) - start))
    cat build/test.out >> $log
}
# What no test runs, and must compile all the same: what only a processor with AMX is for (test_gemm emulates it), every header
# alone, the programs of make fuzz and make test-hf.
compiles() {                                 # FILE FLAGS...
    file=$1
    shift
    if message=$(${CXX:-c++} -std=c++20 -Wall -Wextra -Werror -fopenmp-simd -Wno-unknown-pragmas -fsyntax-only "$@" 2>&1)
    then echo "ok compiles/$file"; else echo "FAIL compiles/$file: $(echo "$message" | grep -m 1 error)"; fi
}
sources() {
    if echo 'int main() {}' | ${CXX:-c++} -march=sapphirerapids -fsyntax-only -x c++ - 2>/dev/null
    then compiles "train_gpt.cpp with AMX" -march=sapphirerapids train_gpt.cpp; else echo "skip compiles/train_gpt.cpp with AMX: the compiler does not know it"; fi
    for header in dev/host/*.h; do compiles $header -include $header -x c++ /dev/null; done
    compiles test/fuzz.cpp -DTARGET=model test/fuzz.cpp
    compiles test/logits.cpp test/logits.cpp
}
run sources
run build/test_layers
run build/test_gemm
for study in build/study_*; do run "$study" --check; done
run build/test_golden test/golden/*/
run build/test_options
run build/emulated_golden test/golden/*/
run build/emulated_golden_fp32 test/golden/*/
run build/emulated_kernels ${STRESS:+1}4 ${STRESS:+large}      # orders of the threads; in make stress 14, and larger shapes
run build/emulated_kernels_fp32 ${STRESS:+1}2 ${STRESS:+large}
run build/emulated_proposals
run build/emulated_broken
run test/gpu.sh build/train_gpt_emulated
run test/sanitizers.sh
run test/rung.sh
run test/nvcc.sh
run build/test_files
run build/test_cases
run test/make.sh
run build/test_corpus
run build/test_tokenizer
if [ -n "$MERGES" ]; then run build/test_tokenizer "$MERGES" test/gpt2_cases.tsv; else echo "skip tokenizer/gpt2: give MERGES=vocab.bpe" | tee -a $log; fi
data=$(dirname "$TEXT")
if [ -n "$MERGES" ] && [ -f "$data/tiny_shakespeare_train.bin" ] && [ -f "$data/tiny_shakespeare_val.bin" ]; then
    run build/test_tokenizer --shakespeare "$TEXT" "$MERGES" "$data/tiny_shakespeare_train.bin" "$data/tiny_shakespeare_val.bin"
else
    echo "skip tokenizer/tinyshakespeare: give MERGES= and TEXT=, with llm.c's tiny_shakespeare_train.bin and _val.bin beside it" | tee -a $log
fi
failed=$(grep -c '^FAIL ' $log)
echo "$(grep -c '^ok ' $log) passed, $failed failed, $(grep -c '^skip ' $log) skipped"
[ "$failed" -eq 0 ]
