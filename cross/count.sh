#!/usr/bin/env bash
# Count the instructions of a pass of the demo's model on cores that are not here:
# cross/count.sh PROGRAMS [CPU]..., PROGRAMS the folder of release programs for aarch64.
#
# A plugin of qemu-user (count.c) counts those of all threads of hermes-bench, and the difference of
# two runs with few and with many rounds is what a round takes: starting and ending are in both. A
# round is a streamed pass and a play of the tape, where nothing is computed; with the option it is
# a resident pass more. So both kinds of work can be told apart.
set -euo pipefail

programs=$(realpath "$1")
shift
(($#)) || set -- cortex-a72 cortex-a76
cd "$(dirname "$0")/.."
few=2 many=10 tokens=11
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
cross/setup.sh "$toolchain" >/dev/null
# shellcheck source=/dev/null
. "$toolchain/env"
models=${HERMES_MODELS:-models}
tools/fetch_models.sh "$models" paraphrase-minilm-l3 >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -O2 -shared -fPIC -o "$work/count.so" cross/count.c
qemu-aarch64 "$programs/hermes-shard" build \
    "$models/paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx" --store "$work/store" --name demo \
    --variants f32,q8,a6,a5,a4,a3,a2 --json >/dev/null

# Of a run with so many rounds. One thread computes and one loads, for others wait by spinning; the
# budget is large, for the emulator's memory counts.
counted() { # variant, rounds, option...
    qemu-aarch64 -plugin "$work/count.so" "$programs/hermes-bench" pass --store "$work/store" \
        --model demo --variant "$1" --repeat "$2" --tokens "$tokens" --threads 1 --loaders 1 \
        --window 8MiB --budget 1GiB --source mapped "${@:3}" 2>"$work/log" >&2 ||
        { cat "$work/log" >&2 && exit 1; }
    sed -n 's/^instructions: //p' "$work/log"
}

echo "| core | variant | compute, million instructions a pass | load |"
echo "|---|---|---|---|"
for cpu in "$@"; do
    export HERMES_QEMU_CPU=$cpu
    unset TRACT_CPU_AARCH64_KIND
    # shellcheck source=cross/emulator.sh
    . cross/emulator.sh
    for variant in f32 q8 a6 a5 a4 a3 a2; do
        streamed=$(($(counted "$variant" "$many" --no-resident) - \
            $(counted "$variant" "$few" --no-resident)))
        all=$(($(counted "$variant" "$many") - $(counted "$variant" "$few")))
        # A round loads the tape twice: in the streamed pass, and in the play.
        awk -v cpu="$cpu" -v variant="$variant" -v streamed="$streamed" -v all="$all" \
            -v rounds=$((many - few)) 'BEGIN {
            compute = (all - streamed) / rounds / 1e6
            load = (streamed / rounds / 1e6 - compute) / 2
            printf "| %s | %s | %.1f | %.1f |\n", cpu, variant, compute, load }'
    done
done
