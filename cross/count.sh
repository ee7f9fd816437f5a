#!/usr/bin/env bash
# Count the instructions of one pass of the demo's model on cores that are not here:
# cross/count.sh PROGRAMS [CPU]..., PROGRAMS the folder of release programs for aarch64.
#
# A plugin of qemu-user (count.c) counts those of all threads, and a pass is the difference of two
# runs of hermesd that answer few and many requests: starting, loading and ending are in both. The
# request is one sentence of the demo's; its tokenizing and HTTP are in the count.
set -euo pipefail

programs=$(realpath "$1")
shift
(($#)) || set -- cortex-a72 cortex-a76
cd "$(dirname "$0")/.."
few=2 many=12
text="A cat sleeps on the warm sofa."
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
cross/setup.sh "$toolchain" >/dev/null
# shellcheck source=/dev/null
. "$toolchain/env"
models=${HERMES_MODELS:-models}
tools/fetch_models.sh "$models" paraphrase-minilm-l3

work=$(mktemp -d)
daemon=
trap '[[ -z $daemon ]] || kill -9 "$daemon" || true; rm -rf "$work"' EXIT
cc -O2 -shared -fPIC -o "$work/count.so" cross/count.c
folder=$models/paraphrase-minilm-l3
qemu-aarch64 "$programs/hermes-shard" build "$folder/paraphrase-MiniLM-L3-v2.onnx" \
    --store "$work/store" --name demo --variants f32,q8,q4 --tokenizer "$folder/tokenizer.json" \
    >/dev/null

# Instructions of a hermesd that answers so many requests. One compute thread: others wait by
# spinning. What changes by itself, measuring and watching, is off.
counted() { # variant, requests
    local i ask
    ask=(curl --silent --fail --unix-socket "$work/s" --output /dev/null --retry-connrefused
        --retry 100 --retry-delay 1)
    rm -f "$work/s"
    MEMORY_PRESSURE_WATCH=/dev/null qemu-aarch64 -plugin "$work/count.so" "$programs/hermesd" \
        --store "$work/store" --socket "$work/s" --budget 48MiB --variant "$1" --threads 1 \
        --loaders 1 --source mapped --window 8MiB --profiles false 2>"$work/log" &
    daemon=$!
    until [[ -S $work/s ]]; do
        kill -0 "$daemon" || { cat "$work/log" >&2 && exit 1; }
        sleep 0.1
    done
    for ((i = 0; i < $2; i++)); do
        "${ask[@]}" --header 'content-type: application/json' \
            --data "{\"model\":\"demo\",\"input\":\"$text\"}" http://localhost/v1/embeddings
    done
    kill "$daemon"
    wait "$daemon"
    daemon=
    sed -n 's/^instructions: //p' "$work/log"
}

echo "| core | variant | million instructions a pass |"
echo "|---|---|---|"
for cpu in "$@"; do
    export HERMES_QEMU_CPU=$cpu
    unset TRACT_CPU_AARCH64_KIND
    # shellcheck source=cross/emulator.sh
    . cross/emulator.sh
    for variant in f32 q8 q4; do
        before=$(counted "$variant" "$few")
        after=$(counted "$variant" "$many")
        awk -v cpu="$cpu" -v variant="$variant" -v sum=$((after - before)) \
            -v passes=$((many - few)) 'BEGIN {
            printf "| %s | %s | %.1f |\n", cpu, variant, sum / passes / 1e6 }'
    done
done
