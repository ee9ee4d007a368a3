#!/bin/sh
# test/sanitizers.sh -- the kernels on small shapes, and the broken ones that change no result, under clang's sanitizers: what
# threads do to each other's memory, ends of arrays, numbers that nobody wrote. Skipped where clang has no sanitizers.
dir=build/test_sanitizers
mkdir -p $dir
build() {                                    # SANITIZER PROGRAM
    clang++ -std=c++20 -O1 -g -fno-omit-frame-pointer -fno-strict-aliasing -fno-sanitize-recover=all -fsanitize=$1 -Wno-unknown-pragmas \
        -Wno-psabi -Wno-unknown-attributes -rdynamic -I test/emulation -x c++ $(ls test/$2.cpp $2.cu 2> /dev/null) -o $dir/$1_$2 -ldl > $dir/$1_$2.log 2>&1
}
export ASAN_OPTIONS=detect_leaks=0
for sanitizer in address thread memory; do
    if ! echo 'int main() {}' | clang++ -fsanitize=$sanitizer -x c++ - -o $dir/probe 2> /dev/null; then echo "skip sanitizers/$sanitizer: no clang++ that has it"; continue; fi
    build $sanitizer kernels &
    build $sanitizer broken
    wait
    if $dir/${sanitizer}_kernels 2 tiny > $dir/output 2>&1; then echo "ok sanitizers/$sanitizer: nothing found in $(grep -c '^ok' $dir/output) checks of kernels"
    else echo "FAIL sanitizers/$sanitizer: $(grep -m 1 -hE '^FAIL|ERROR|WARNING|error: ' $dir/output $dir/${sanitizer}_kernels.log)"; fi
    # A model, too: sampling, three steps of training, every tensor compared. (memory takes std::map's own code, which is
    # in a library that it has not compiled, for a mistake.)
    if [ -n "$STRESS" ] && [ $sanitizer != memory ]; then
        build $sanitizer train_gpt
        if $dir/${sanitizer}_train_gpt --check > $dir/output 2>&1; then echo "ok sanitizers/$sanitizer: $(tail -1 $dir/output)"
        else echo "FAIL sanitizers/$sanitizer: $(grep -m 1 -hE '^FAIL|ERROR|WARNING|error: ' $dir/output $dir/${sanitizer}_train_gpt.log)"; fi
    fi
    $dir/${sanitizer}_broken > $dir/output 2>&1
    grep -E '^(ok|FAIL) ' $dir/output || echo "FAIL sanitizers/$sanitizer: $(tail -1 $dir/output)"
done
