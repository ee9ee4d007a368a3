#!/bin/sh
# Fetches what the project does not hold; needs a network, and curl or wget. What is there already is left alone.
#   dev/data/download.sh tinyshakespeare    data/tinyshakespeare.txt, 1 MB of text
#   dev/data/download.sh gpt2               data/vocab.bpe, the GPT-2 merges (OpenAI, modified MIT licence)
#   dev/data/download.sh gpt2-124M          data/gpt2-124M/: the published GPT-2 (weights, config, merges), 0.6 GB, and
#                                           hellaswag_val.bin, the questions of HellaSwag in llm.c's form
#   dev/data/download.sh fineweb [N]        data/fineweb/: validation and the first N (1) training shards of GPT-2
#                                           tokens, 200 MB and 100 million tokens each, and the merges beside them
# DATA=DIR puts it elsewhere than in data/.
set -eu
data=${DATA:-data}

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

# fetch URL FILE [SHA256]: whole and right, or not at all
fetch() {
    if [ -s "$2" ]; then
        echo "$2: already there"
        return
    fi
    mkdir -p "$(dirname "$2")"
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --retry 2 --connect-timeout 20 --output "$2.part" "$1"
    elif command -v wget >/dev/null; then
        wget --quiet --tries=2 --timeout=20 --output-document="$2.part" "$1"
    else
        fail "neither curl nor wget is installed; fetch $1 by hand and save it as $2"
    fi || {
        rm -f "$2.part"
        fail "$1: cannot be fetched; is there a network? $2 was not written"
    }
    if [ -n "${3:-}" ]; then
        found=$(sha256sum "$2.part" 2>/dev/null || shasum -a 256 "$2.part")
        if [ "${found%% *}" != "$3" ]; then
            rm -f "$2.part"
            fail "$1: sha256 is ${found%% *}, expected $3; $2 was not written"
        fi
    fi
    mv "$2.part" "$2"
    echo "$2: $(wc -c <"$2" | tr -d ' ') bytes"
}

merges() {
    fetch https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe "$1" \
        1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
}

case "${1:-}" in
tinyshakespeare)
    [ $# -eq 1 ] || fail "tinyshakespeare takes no argument, found: $2" 2
    fetch https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt \
        "$data/tinyshakespeare.txt"
    ;;
gpt2)
    [ $# -eq 1 ] || fail "gpt2 takes no argument, found: $2" 2
    merges "$data/vocab.bpe"
    ;;
gpt2-124M)
    [ $# -eq 1 ] || fail "gpt2-124M takes no argument, found: $2" 2
    merges "$data/gpt2-124M/merges.txt"
    for name in config.json model.safetensors; do
        fetch "https://huggingface.co/openai-community/gpt2/resolve/main/$name" "$data/gpt2-124M/$name"
    done
    fetch https://huggingface.co/datasets/karpathy/llmc-starter-pack/resolve/main/hellaswag_val.bin \
        "$data/gpt2-124M/hellaswag_val.bin"
    ;;
fineweb)
    shards=${2:-1}
    case $shards in '' | *[!0-9]* | ????*) shards=0 ;; esac
    { [ $# -le 2 ] && [ "$shards" -ge 1 ] && [ "$shards" -le 103 ]; } ||
        fail "fineweb: expected one number of training shards, 1 to 103" 2
    base=https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main
    merges "$data/fineweb/merges.txt"
    fetch "$base/fineweb_val_000000.bin" "$data/fineweb/fineweb_val_000000.bin"
    i=1
    while [ "$i" -le "$shards" ]; do
        name=$(printf 'fineweb_train_%06d.bin' "$i")
        fetch "$base/$name" "$data/fineweb/$name"
        i=$((i + 1))
    done
    ;;
*)
    fail "usage: dev/data/download.sh tinyshakespeare | gpt2 | gpt2-124M | fineweb [N]" 2
    ;;
esac
