#!/bin/sh
# test/rung.sh -- adds to a copy of dev/gelu.cu the rung that dev/README.md shows, as it says, and runs it, emulated.
dir=build/test_rung
rm -rf $dir && mkdir -p $dir/dev && cp dev/* $dir/dev 2> /dev/null
cp -r dev/data dev/host $dir/dev && cp -r test train_gpt.cpp train_gpt.cu $dir
awk -v kernel=$dir/kernel -v line=$dir/line '
    /^```cpp/ { n++; inside = 1; next }
    /^```/ { inside = 0 }
    inside { print > (n == 1 ? kernel : line) }' dev/README.md
awk -v kernel=$dir/kernel -v line=$dir/line '
    function put(file) { while ((getline text < file) > 0) print text }
    /"shipped".*gelu_forward/ { put(line) }
    { print }
    /^namespace gelu_study/ { put(kernel) }' dev/gelu.cu > $dir/dev/gelu.cu
if ${CXX:-c++} -std=c++20 -O1 -fopenmp -fno-strict-aliasing -Wno-unknown-pragmas -Wno-psabi -rdynamic \
    -I test/emulation -x c++ $dir/dev/gelu.cu -o $dir/gelu -ldl > $dir/log 2>&1 &&
    $dir/gelu 2 > $dir/log 2>&1 && [ "$(grep -c 'ok study/gelu forward, .*, pairs' $dir/log)" -ge 5 ]
then echo "ok rung/the one of dev/README.md: $(grep -c pairs $dir/log) checks"
else
    echo "FAIL rung/the one of dev/README.md: $(grep -v '^ok' $dir/log | head -1)"
    exit 1
fi
