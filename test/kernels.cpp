/* test/kernels.cpp -- every kernel of train_gpt.cu, and every rung of dev/ beside it, against cpu::, on tiny, odd and
   small shapes; emulated, in several orders of the threads, which must all give the same bits: dev/bench.cuh. */
#include "../dev/adamw.cu"
#include "../dev/attention.cu"
#include "../dev/cross_entropy.cu"
#include "../dev/decoding.cu"
#include "../dev/embedding.cu"
#include "../dev/gelu.cu"
#include "../dev/layernorm.cu"
#include "../dev/matmul.cu"
