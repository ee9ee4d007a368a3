#!/bin/sh
# test/nvcc.sh [--write] -- compiles every kernel, those of dev/ too, for generations of GPUs and looks at what ptxas
# says: a spilled register, or a tensor core instruction that waits for another, fails. Registers of every kernel are
# compared with test/nvcc.txt, where this nvcc is the one that made it; --write makes it anew.
if ! command -v ${NVCC:-nvcc} > /dev/null; then echo "skip nvcc: not installed"; exit 0; fi
version=$(${NVCC:-nvcc} --version | sed -n 's/.*release \([0-9.]*\), V\([0-9.]*\)/\2/p')
known=$(${NVCC:-nvcc} --list-gpu-arch)
dir=build/test_nvcc
mkdir -p $dir && rm -f $dir/*.txt

options="-std=c++20 --expt-relaxed-constexpr -Xcompiler -fopenmp"
compile() {                                  # ARCH FORMAT: lines "arch format kernel registers spilled"
    name=$dir/$1_$2
    ${NVCC:-nvcc} $options -O3 -arch=sm_$1 $([ "$2" = fp32 ] && echo -DTRAIN_FP32) ${WERROR:+-Werror all-warnings} \
        -Xptxas -v -cubin -x cu test/kernels.cpp -o $name.cubin > $name.log 2>&1
    echo $? > $name.code
    c++filt < $name.log | awk -v arch=sm_$1 -v format=$2 '
        /Compiling entry function/ {
            kernel = $0
            sub(/.*entry function .(void )?/, "", kernel)
            gsub(/\(Form\)/, "", kernel)
            sub(/\(.*/, "", kernel) }
        # the stack, where arrays go that have no registers, counts too
        /bytes stack frame/ { spill = $1 + $5 + $9 }
        /Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") registers = $(i + 1)
                                  gsub(/ /, "", kernel)
                                  print arch, format, kernel, registers, spill }' | LC_ALL=C sort > $name.txt
}
for arch in 80 90a 100 ${STRESS:+89 120}; do
    if ! echo "$known" | grep -q "compute_$arch\$\|compute_${arch%a}\$"; then
        echo "skip nvcc/sm_$arch: nvcc $version does not know it"
        continue
    fi
    compile $arch bf16 &
    compile $arch fp32
    wait
    for format in bf16 fp32; do
        name=$dir/${arch}_$format
        if [ "$(cat $name.code)" -ne 0 ]; then
            echo "FAIL nvcc/sm_$arch $format: $(grep -m 1 -i error $name.log)"
            continue
        fi
        spilled=$(awk '$5 > 0 { print $3 ": " $5 " bytes" }' $name.txt)
        waits=$(grep -E 'C75[0-9][0-9]|C7602|serializ' $name.log)
        most=$(sort -k4 -n $name.txt | tail -1 | awk '{ print $4 " registers at most, " $3 }')
        if [ -z "$spilled$waits" ]
        then echo "ok nvcc/sm_$arch $format: $(wc -l < $name.txt) kernels, $most; nothing spilled"
        else echo "FAIL nvcc/sm_$arch $format: spilled: $spilled $waits"; fi
    done
done
# As programs, which run, or say that there is no GPU.
program() {                                  # FILE
    name=$dir/$(basename ${1%.*})
    if ! ${NVCC:-nvcc} $options -O0 -arch=sm_90a -x cu $1 -o $name -lcublasLt > $name.log 2>&1
    then echo "FAIL nvcc/$1: $(grep -m 1 error $name.log)"
    elif $name --check > $name.log 2>&1 || grep -q 'no NVIDIA GPU' $name.log
    then echo "ok nvcc/$1 runs: $(tail -1 $name.log)"
    else echo "FAIL nvcc/$1: $(tail -1 $name.log)"; fi
}
program train_gpt.cu &
program test/kernels.cpp
wait
{ echo "nvcc $version"; cat $dir/80_*.txt $dir/90a_*.txt $dir/100_*.txt | cut -d' ' -f1-4; } > $dir/table
if [ "$1" = --write ]; then cp $dir/table test/nvcc.txt
elif [ "$(head -1 test/nvcc.txt)" != "nvcc $version" ]
then echo "skip nvcc/registers: test/nvcc.txt is of $(head -1 test/nvcc.txt), this is $version"
elif diff test/nvcc.txt $dir/table > $dir/diff
then echo "ok nvcc/registers of $(($(wc -l < test/nvcc.txt) - 1)) kernels as in test/nvcc.txt"
else
    echo "FAIL nvcc/registers: $(grep -c '^[<>]' $dir/diff) lines differ from test/nvcc.txt," \
        "such as '$(grep -m 1 '^>' $dir/diff)'; test/nvcc.sh --write takes them over"
fi
