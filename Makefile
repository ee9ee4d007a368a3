# make run        train a small GPT on the built-in corpus and show what it learned; STEPS=n sets the length
# make assistant  from that corpus to a chat: base model, supervised, reward model, reinforced, and a table; SEED=n
# make test       every test, with or without a GPU; make stress: the long versions; make test-hf: against PyTorch
# make train_gpt_cuda         the CUDA program, for the GPU here or ARCH=90; train_gpt_cuda_fp32: the same without bf16
# make            everything; DEBUG=1 without optimization, SANITIZE=1 with address and undefined behaviour sanitizers,
#                 PORTABLE=1 for any x86-64 of the last decade, or any ARM, rather than for this machine
# make baby       the smallest GPT and its state graph; make fuzz: libFuzzer targets in build/ (needs clang++)
# make study      the CPU's kernels in steps, from naive to shipped: build/study_gemm, ...; on a GPU build/bench_attention, ...
# make bench      all of these, and one table: build/bench.csv, build/bench.md
STEPS ?= 3000
SHELL := /bin/sh
comma := ,
hash  := \#

# The compiler is asked what it knows: a flag with which it cannot build a program is left out. CPPFLAGS, CXXFLAGS and
# LDFLAGS, which many environments export, stand first: the project's own flags win.
knows  = $(shell printf '%s\nint main() {}\n' '$(2)' | $(GIVEN) $(1) -x c++ - -o /dev/null 2>/dev/null && echo '$(1)')
GIVEN  = $(CXX) $(CPPFLAGS) $(CXXFLAGS) $(LDFLAGS)
UNFIT := $(shell if ! command -v $(firstword $(CXX)) >/dev/null; then echo 'no such compiler'; else \
  said=$$(echo 'int main() {}' | $(GIVEN) -x c++ - -o /dev/null 2>&1) || echo "it builds no program: $$said" | head -1; fi)
ifneq ($(and $(UNFIT),$(filter-out clean,$(or $(MAKECMDGOALS),all))),)
$(error CXX=$(CXX): $(UNFIT))
endif
OPENMP := $(call knows,-fopenmp,$(hash)include <omp.h>)
ifeq ($(OPENMP),)
$(info OpenMP not found: the programs will use one thread)
OPENMP := $(call knows,-fopenmp-simd) -Wno-unknown-pragmas
endif
# Without the second flag compilers prefer 256-bit vectors on some machines that have 512, at half the speed.
# Without the third a loop with a square root is not vectorised; NaN and infinity are as they were.
NATIVE   := $(call knows,-march=$(if $(PORTABLE),x86-64-v2,native)) $(call knows,-mtune=$(if $(PORTABLE),generic,native)) $(call knows,-mprefer-vector-width=512) $(call knows,-fno-math-errno)
SANITIZERS := -fsanitize=address$(comma)undefined -fno-sanitize-recover=all
OPTIMIZE  = $(if $(DEBUG),-O0 -g -U_FORTIFY_SOURCE -DSYNCHRONOUS=true,-O$(1))
COMMIT   := $(shell test -e .git && git describe --always --dirty 2>/dev/null)
VERSION  := $(if $(COMMIT),-DVERSION='"$(COMMIT)"')
FLAGS    := -std=c++20 -fno-fast-math $(if $(SANITIZE),-g $(SANITIZERS)) $(NATIVE) -Wall -Wextra $(call knows,-Wno-pass-failed) $(OPENMP)
# compile: with optimization of level $(1). What fails leaves no program of the last time, which would pass for it.
compile   = rm -f $@; $(GIVEN) $(OPTIMIZE) $(FLAGS) $(if $(WERROR),-Werror) $(VERSION)

# What the programs are built with, so that a change of it builds them again; not what changes no program.
quoted    = '$(subst ','\'',$(1))'
WITH     := $(call quoted,$(GIVEN) $(OPTIMIZE) $(FLAGS))

TOOLS := build/corpus build/shards
TESTS := $(patsubst test/%.cpp,build/%,$(wildcard test/test_*.cpp))
EMULATED := $(foreach test,golden kernels broken heuristics nccl,build/emulated_$(test)) build/emulated_golden_fp32 build/emulated_kernels_fp32 \
  build/train_gpt_emulated build/train_gpt_emulated_fp32 build/plan
STUDY := $(patsubst dev/cpu/%.cpp,build/study_%,$(wildcard dev/cpu/*.cpp))
BENCH := $(patsubst dev/%.cu,build/bench_%,$(wildcard dev/*.cu))
LADDERS := dev/bench.h dev/bench.cuh test/check.h
FUZZ  := $(addprefix build/fuzz_,shards examples choices safetensors config merges vocab llmc options pattern)

HEADERS := $(wildcard dev/host/*.h) dev/check.cuh
FILES := $(HEADERS) build/flags

all: train_gpt $(TOOLS)
build/flags: $(shell echo $(WITH) | cmp -s - build/flags || echo FORCE)
	@mkdir -p build && echo $(WITH) > $@
# MPI=1: for several processes. Its compiler tells what it would add; its own bindings for C++ are not wanted.
MPICXX   ?= mpicxx
MPI_FLAGS = -DUSE_MPI -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX $(or $(wordlist 2,99,$(shell $(MPICXX) -show)),$(error MPI: there is no $(MPICXX)))
build/mpi: $(shell echo '$(MPI)' | cmp -s - build/mpi || echo FORCE)
	@mkdir -p build && echo '$(MPI)' > $@
train_gpt: train_gpt.cpp $(FILES) build/mpi
	$(call compile,3) $< -o $@$(if $(MPI), $(MPI_FLAGS))
build/train_gpt_mpi: train_gpt.cpp $(FILES)
	$(call compile,1) $< -o $@ $(MPI_FLAGS)
$(TOOLS): build/%: dev/data/%.cpp $(FILES)
	$(call compile,3) $< -o $@
$(TESTS): build/%: test/%.cpp test/check.h train_gpt.cpp $(wildcard dev/data/*.cpp) $(FILES)
	$(call compile,1) $(if $(filter %test_layers,$@),-DREAL=double) $(if $(filter %test_plan,$@),$(EMULATE)) $< -o $@ $(if $(filter %test_plan,$@),-ldl)
# The CUDA program. Its kernels also run on the CPU, thread by thread, which needs no CUDA: test/emulation.
CARD    = $(shell nvidia-smi --query-gpu=compute_cap --format=csv$(comma)noheader 2>/dev/null | head -1 | tr -d .)
ARCH   ?= $(or $(CARD),90)
NVCC   ?= nvcc
FP32    = $(if $(findstring fp32,$@),-DTRAIN_FP32)
# 90a is 90 with wgmma, the instructions that its tensor cores need for their full speed, and no other GPU has.
NVFLAGS   = -std=c++20 $(NVDEBUG) -arch=sm_$(ARCH:90=90a) $(FP32) $(VERSION) --expt-relaxed-constexpr -Xcompiler "$(NATIVE) $(OPENMP)"
NVDEBUG  := $(if $(DEBUG),-O0 -g -lineinfo -DSYNCHRONOUS=true,-O3)
NVWITH   := $(call quoted,$(NVCC) $(NVDEBUG) $(value ARCH) $(NATIVE) $(OPENMP) $(NCCL))
NVFILES  := train_gpt.cu train_gpt.cpp $(HEADERS) build/nvflags
build/nvflags: $(shell echo $(NVWITH) | cmp -s - build/nvflags || echo FORCE)
	@mkdir -p build && echo $(NVWITH) > $@
train_gpt_cuda train_gpt_cuda_fp32: $(NVFILES)
	$(NVCC) $(NVFLAGS) $(if $(NCCL),-DUSE_NCCL) $< -o $@ -lcublasLt $(if $(NCCL),-lnccl)
$(BENCH): build/bench_%: dev/%.cu $(LADDERS) $(NVFILES)
	$(NVCC) $(NVFLAGS) $< -o $@ -lcublasLt
build/gpu_golden: test/test_golden.cpp test/check.h $(NVFILES)
	$(NVCC) $(NVFLAGS) -DGPU -x cu $< -o $@ -lcublasLt
EMULATE := -fno-strict-aliasing -Wno-unknown-pragmas -Wno-psabi -rdynamic -I test/emulation -x c++
build/train_gpt_emulated build/train_gpt_emulated_fp32: train_gpt.cu train_gpt.cpp $(wildcard test/emulation/*.h) $(FILES)
	$(call compile,2) $(EMULATE) -DUSE_NCCL $(FP32) $< -o $@ -ldl
build/emulated_%: train_gpt.cu train_gpt.cpp test/*.cpp $(LADDERS) $(wildcard test/emulation/*.h dev/*.cu) $(FILES)
	$(call compile,1) $(EMULATE) -DGPU $(FP32) $(wildcard test/$(*:_fp32=).cpp test/test_$(*:_fp32=).cpp dev/$(*:_fp32=).cu) -o $@ -ldl
# What a run needs and takes: it asks the CUDA program for its sizes.
build/plan build/plan_mpi: dev/plan.cpp $(FILES)
	$(call compile,$(if $(findstring mpi,$@),2,1)) $(EMULATE) $< -o $@ $(if $(findstring mpi,$@),$(MPI_FLAGS)) -ldl
build/plan build/plan_mpi build/test_plan: dev/plan.cpp train_gpt.cu train_gpt.cpp $(wildcard test/emulation/*.h)
build/test_plan: | build/plan                               # which it runs
$(STUDY): build/study_%: dev/cpu/%.cpp $(LADDERS) train_gpt.cpp $(FILES)
	$(call compile,3) $< -o $@ -ldl
study: $(STUDY)
bench: $(STUDY) $(if $(filter bench,$(MAKECMDGOALS)),$(if $(CARD),$(BENCH)))
	@rm -f build/bench.csv build/bench.md
	@for program in $^; do $$program --write build/bench || exit 1; done
	@echo; $(if $(CARD),,echo "no NVIDIA GPU here: the CPU's ladders alone";) echo "wrote build/bench.csv and build/bench.md"
$(FUZZ): build/fuzz_%: test/fuzz.cpp train_gpt.cpp $(HEADERS)
	@mkdir -p build
	clang++ -std=c++20 -O1 -g -fsanitize=fuzzer $(SANITIZERS) -Wno-unknown-pragmas -DTARGET=$* $< -o $@
fuzz: $(FUZZ)

# The default run. A run of the same options, program and data goes on, or shows its result again if it has ended; any
# other is moved aside, when everything else is ready, and taken back when it is asked for again.
CORPUS := build/corpus_data
RUN := --train $(CORPUS)/train.bin --val $(CORPUS)/val.bin --rows documents --answers $(CORPUS)/answers.bin \
  --init custom --layers 3 --heads 2 --channels 96 --context 256 --batch 4 --lr 5e-3 --min-lr 0 --warmup 100 --schedule linear \
  --eval-every 500 --eval-rows 0 --sample-every 500
$(CORPUS)/val.json: build/corpus
	build/corpus --out $(CORPUS)
run: train_gpt build/shards $(CORPUS)/val.json
	@STEPS='$(subst ','\'',$(STEPS))'; echo "$$STEPS" | grep -qx '[1-9][0-9]\{0,11\}' || \
	  { echo "error: STEPS=$$STEPS: expected a number of steps, 1 or more" >&2; exit 2; }
	@$(call ready,runs/default,$(RUN) --steps $(STEPS),$(CORPUS)/train.bin $(CORPUS)/val.bin $(CORPUS)/answers.bin)
	@./train_gpt train --resume $(RUN) --steps $(STEPS) --out runs/default

# ready: makes directory $(1) one of a run with options $(2) on files $(3), which its file `begun_as` tells.
define ready
begun_as="$(2) $$(cat train_gpt.cpp dev/host/*.h $(3) | cksum)"; \
if [ -e $(1) ] && [ "$$(cat $(1)/begun_as 2>/dev/null)" != "$$begun_as" ] && ! rmdir $(1) 2>/dev/null; then \
  if command -v flock >/dev/null && ! flock -n $(1) true; then echo "error: $(1): another train_gpt is writing there" >&2; exit 1; fi; \
  n=1; while [ -e $(1).$$n ]; do n=$$((n + 1)); done; \
  mv $(1) $(1).$$n && echo "$(1) was a run with other options, program or data: moved to $(1).$$n" || exit 1; \
fi; \
for old in $(1).*; do \
  if [ ! -e $(1) ] && [ "$$(cat $$old/begun_as 2>/dev/null)" = "$$begun_as" ]; then \
    mv $$old $(1) && echo "$$old was this run: moved back to $(1)" || exit 1; \
  fi; \
done; \
mkdir -p $(1) && echo "$$begun_as" > $(1)/begun_as
endef

SEED ?= 1
assistant: train_gpt $(TOOLS)
	@$(call ready,runs/assistant,SEED=$(SEED),dev/assistant.sh dev/data/corpus.cpp)
	@dev/assistant.sh runs/assistant '$(SEED)'

# Files that were named, but are not there, are told of before minutes of compiling.
given:
	@for file in "$(MERGES)" "$(TEXT)"; do test -z "$$file" || test -f "$$file" || { echo "error: $$file: no such file;" \
	  "dev/data/download.sh gpt2 fetches data/vocab.bpe for MERGES, tinyshakespeare data/tinyshakespeare.txt for TEXT" >&2; exit 1; }; done
programs: all $(TESTS) $(STUDY) $(EMULATED) $(if $(shell command -v $(MPICXX)),build/train_gpt_mpi)
# What does not compile is one failure, and the rest is tested.
test stress: given
	@$(MAKE) -k --no-print-directory programs || :
	@GOMP_SPINCOUNT=1000 $(if $(filter stress,$@),STRESS=1) test/run.sh
test-hf: given all build/test_pattern
	CXX="$(CXX)" test/hf.sh

BITS := 111101111011110
BABY := --train build/baby.u16 --raw u16 --rows sliding --init custom --layers 4 --heads 4 --channels 16 --vocab 2 --context 3 \
  --bias 0 --batch 12 --steps 50 --lr 1e-3 --schedule constant --beta2 0.999 --clip 0 --sample-every 0
baby: train_gpt
	@mkdir -p build
	printf "$$(echo $(BITS) | sed 's/./\\&\\0/g')" > build/baby.u16
	@$(call ready,runs/baby,$(BABY),build/baby.u16)
	@./train_gpt train --resume $(BABY) --out runs/baby
	./train_gpt graph --model runs/baby > runs/baby/graph.dot
	@if command -v dot >/dev/null; then dot -Tsvg runs/baby/graph.dot -o runs/baby/graph.svg && echo "wrote runs/baby/graph.svg"; \
	  else echo "wrote runs/baby/graph.dot; install Graphviz for an SVG"; fi

clean:
	rm -rf build train_gpt train_gpt_cuda train_gpt_cuda_fp32
.PHONY: FORCE all run assistant given programs test stress study bench baby fuzz test-hf clean
