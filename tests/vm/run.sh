#!/usr/bin/env bash
# The service on a board that is not there: tests/vm/run.sh PACKAGE, as root. Installs the package on
# the board of machine.sh, which says what is needed besides jq, and has inside.sh use it; then once
# more without a memory cgroup, as on a stock Raspberry Pi. Takes some minutes, for all is emulated.
set -euo pipefail

cd "$(dirname "$0")/../.."
# shellcheck source=tests/vm/machine.sh
. tests/vm/machine.sh

# The store is made here, and so are the answers to compare with. The second model has more than
# four times the bytes that the service may have there.
shard=$programs/hermes-shard
"$shard" build "$models/paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx" --store "$work/store" \
    --name demo >/dev/null 2>&1
"$programs/hermes-bench" synth bert-base --layers 10 --output "$work/big.onnx"
"$shard" build "$work/big.onnx" --store "$work/store" --name big --variants f32 >/dev/null 2>&1
rm "$work/big.onnx"
cat >"$work/request" <<'REQUEST'
{"inputs": [
    {"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": [101, 2003, 2009, 102]},
    {"name": "attention_mask", "datatype": "INT64", "shape": [1, 4], "data": [1, 1, 1, 1]},
    {"name": "token_type_ids", "datatype": "INT64", "shape": [1, 4], "data": [0, 0, 0, 0]}
]}
REQUEST
"$programs/hermesd" --store "$work/store" --socket "$work/s" --budget 64MiB 2>"$work/log" &
daemon=$!
for _ in {1..100}; do
    [[ -S $work/s ]] && break
    sleep 0.1
done
export HERMES_SOCKET=$work/s
ctl=$programs/hermesctl
"$ctl" embed demo "A cat sleeps on the warm sofa." --json >"$work/expected.demo"
"$ctl" infer big --request "$work/request" --json >"$work/expected.big"
kill "$daemon"
daemon=

furnish tests/vm/inside.sh
bring "$1"
cp "$work/request" "$work/root/request"

# The same values as here, within 1e-5 of the largest.
compare() { # model, how many values there are
    sed -n "s/^answer of $1: //p" "$work/said" >"$work/found"
    jq -es --argjson count "$2" 'map(.outputs[0].data // .data[0].embedding) as [$a, $b]
        | ([$a[] | fabs] | max) as $largest
        | ([$a, $b] | transpose | map(.[0] - .[1] | fabs) | max / $largest) as $error
        | (map($a, $b | length) | all(. == $count)) and $error <= 1e-5, $error' \
        "$work/expected.$1" "$work/found" >"$work/error" || true
    echo "figure: the answers of $1 differ by $(tail -n 1 "$work/error") of the largest value"
    [[ $(head -n 1 "$work/error") == true ]] || { echo "another answer of $1" >&2 && exit 1; }
}
for kernel in "with a memory cgroup and PSI:psi=1" \
    "without a memory cgroup, without PSI:cgroup_disable=memory psi=0"; do
    boot "${kernel%%:*}" "${kernel#*:}"
    compare demo 384
    compare big $((4 * 768))
done
