#!/usr/bin/env bash
# Figures of the emulated board: tests/vm/record.sh PACKAGE, as root. What passes hold there, and
# what reading asks of kernel and disk with little and with much read ahead. Counts and bytes are as
# on a board with such a kernel; times are the emulator's and only to be compared with each other.
# Takes half an hour. machine.sh says what is needed.
set -euo pipefail

cd "$(dirname "$0")/../.."
# shellcheck source=tests/vm/machine.sh
. tests/vm/machine.sh

made() { # name, architecture, arguments
    "$programs/hermes-bench" synth "$2" "${@:3}" --output "$work/$1.onnx"
    "$programs/hermes-shard" build "$work/$1.onnx" --store "$work/store" --name "$1" \
        --variants f32 >/dev/null 2>&1
    rm "$work/$1".onnx*
}
made bert-large bert-large
made three-layers bert-base --layers 3
"$programs/hermes-shard" build "$models/paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx" \
    --store "$work/store" --name demo --variants f32 >/dev/null 2>&1

furnish tests/vm/measure.sh
bring "$1"
boot "figures" "psi=1"
