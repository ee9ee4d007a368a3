#!/bin/sh
# test/sanitizers.sh -- the kernels on small shapes, and the broken ones that change no result, under clang's
# sanitizers: what threads do to each other's memory, ends of arrays, numbers that nobody wrote. Skipped where clang has
# no sanitizers.
dir=build/test_sanitizers
mkdir -p $dir
build() {                                    # SANITIZER PROGRAM
    clang++ -std=c++20 -O1 -g -fno-omit-frame-pointer -fno-strict-aliasing -fno-sanitize-recover=all -fsanitize=$1 \
        -Wno-unknown-pragmas -Wno-psabi -Wno-unknown-attributes -rdynamic -I test/emulation \
        -x c++ $(ls test/$2.cpp $2.cu 2> /dev/null) -o $dir/$1_$2 -ldl > $dir/$1_$2.log 2>&1
}
export ASAN_OPTIONS=detect_leaks=0
check() {                                    # SANITIZER
    sanitizer=$1 output=$dir/$1_output
    if ! echo 'int main() {}' | clang++ -fsanitize=$sanitizer -x c++ - -o $dir/$1_probe 2> /dev/null; then
        echo "skip sanitizers/$sanitizer: no clang++ that has it"
        return
    fi
    found() { grep -m 1 -hE '^FAIL|ERROR|WARNING|error: ' $output $dir/${sanitizer}_$1.log; }
    build $sanitizer kernels
    if $dir/${sanitizer}_kernels 2 tiny > $output 2>&1
    then echo "ok sanitizers/$sanitizer: nothing found in $(grep -c '^ok' $output) checks of kernels"
    else echo "FAIL sanitizers/$sanitizer: $(found kernels)"; fi
    # A model, too: sampling, three steps of training, every tensor compared. (memory takes std::map's own code, which
    # is in a library that it has not compiled, for a mistake.)
    if [ -n "$STRESS" ] && [ $sanitizer != memory ]; then
        build $sanitizer train_gpt
        if $dir/${sanitizer}_train_gpt --check > $output 2>&1; then echo "ok sanitizers/$sanitizer: $(tail -1 $output)"
        else echo "FAIL sanitizers/$sanitizer: $(found train_gpt)"; fi
    fi
    build $sanitizer broken
    $dir/${sanitizer}_broken > $output 2>&1
    grep -E '^(ok|FAIL) ' $output || echo "FAIL sanitizers/$sanitizer: $(tail -1 $output)"
}
# Each of these builds and runs on one processor; thread takes as long as the two others.
(check address; check memory) > $dir/two & check thread
wait && cat $dir/two
