#!/usr/bin/env bash
# Measure the passes that SPECIFICATION.md gives figures of: tools/bench.sh [DIR]
# Writes BERT-Large with random weights (1.3 GB) and its store (1.7 GB) into DIR, by default
# target/bench, once; then plays cold and warm passes of 128 tokens through a 16 MiB window, and
# sixteen requests at once from a disk of 200 MB/s.
# Run it on an idle machine. HERMES_BIN=DIR takes programs that are built already.
set -euo pipefail

cd "$(dirname "$0")/.."
dir=${1:-target/bench}
mkdir -p "$dir"
if [[ -z ${HERMES_BIN:-} ]]; then
    "${CARGO:-cargo}" build --release --locked --quiet --bins
    HERMES_BIN=${CARGO_TARGET_DIR:-target}/release
fi

if [[ ! -f $dir/store/bert-large/current ]]; then
    "$HERMES_BIN/hermes-bench" synth bert-large --output "$dir/bert-large.onnx"
    "$HERMES_BIN/hermes-shard" build "$dir/bert-large.onnx" --store "$dir/store" \
        --name bert-large --variants f32,q8 --force
fi
for variant in f32 q8; do
    for cold in "" --cold; do
        echo "== bert-large $variant, 128 tokens, window 16 MiB ${cold:+(cold page cache)}"
        "$HERMES_BIN/hermes-bench" pass --store "$dir/store" --model bert-large \
            --variant "$variant" --window 16MiB --tokens 128 $cold
    done
done
echo "== 16 requests of 16 tokens at once, a disk of 200 MB/s"
"$HERMES_BIN/hermes-bench" together --store "$dir/store" --model bert-large --variant f32 \
    --throttle 190.7MiB
echo "== what the socket adds, and what idle clients hold"
"$HERMES_BIN/hermes-bench" socket --store "$dir/store" --model bert-large --variant q8 --repeat 9
