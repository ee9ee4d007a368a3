#!/bin/sh
# `make test-hf`: compares train_gpt with PyTorch, Hugging Face's transformers, TRL and PEFT, and tiktoken, from the
# project's root. The first time it installs those into build/venv (about 6 GB, from PyPI); VENV=dir takes another
# environment, and adds what it lacks.
# MERGES=vocab.bpe adds GPT-2's own tokenizer, TEXT=file the text that tokenizers are compared on.
venv=${VENV:-build/venv}
log=build/hf_install.log
fail() { echo "error: test/hf.sh: $*" >&2; exit 1; }

for f in train_gpt build/shards build/test_pattern; do [ -x $f ] || fail "$f is missing; run make"; done
${CXX:-c++} -std=c++20 -O3 -march=native -fopenmp-simd -Wno-unknown-pragmas test/logits.cpp -o build/logits ||
  fail "cannot build test/logits.cpp"

if ! "$venv/bin/python" -c 'import numpy, peft, safetensors, tiktoken, torch, transformers, trl' 2>/dev/null; then
  command -v python3 >/dev/null || fail "needs python3"
  echo "installing torch, transformers, trl, peft and tiktoken into $venv; this takes minutes"
  "$venv/bin/python" -m pip --version >$log 2>&1 || python3 -m venv "$venv" >$log 2>&1 ||
    fail "python3 cannot make the environment $venv; see $log"
  "$venv/bin/python" -m pip install --retries 2 torch transformers trl peft tiktoken safetensors numpy >>$log 2>&1 ||
    fail "pip cannot install torch, transformers, trl, peft and tiktoken; is there a network? see $log"
fi
"$venv/bin/python" test/golden.py test/golden/*/ || exit 1
"$venv/bin/python" test/patterns.py --live build/test_pattern || exit 1
HF_HUB_OFFLINE=1 exec "$venv/bin/python" test/hf.py
