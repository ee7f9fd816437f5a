#!/usr/bin/env bash
# Chat with a language model that does not fit: tools/demo_chat.sh
# Builds, fetches SmolLM2 (a GGUF file of 98 MB), shards it, asks it within a budget smaller than the
# model, then with the whole model in memory, and says how fast the answers came and what they took.
# Ends with an error where the answers differ or the daemon outgrew its budget.
#
# HERMES_BIN=DIR takes programs that are built already; HERMES_MODELS=DIR says where models are.
set -euo pipefail

cd "$(dirname "$0")/.."
name=smollm2
variant=q8
budgets_mib=(96 512)
tokens=48
models=${HERMES_MODELS:-models}
file=$models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf
question="What is the capital of France? Answer in one sentence."

# shellcheck source=tools/demo_daemon.sh
. tools/demo_daemon.sh
tools/fetch_models.sh "$models" smollm2-135m

echo "== sharding $file"
"$HERMES_BIN/hermes-shard" build "$file" --store "$work/store" --name "$name" --variants "$variant"

chat() { # questions, a line each; what is told of each answer goes to the standard error
    "$HERMES_BIN/hermesctl" --socket "$socket" chat "$name" --temperature 0 --max-tokens "$tokens"
}

rows=()
for budget_mib in "${budgets_mib[@]}"; do
    start "$variant" "$budget_mib"
    # The first answer loads the model, and pins what there is room for.
    answer=$(chat <<<"$question") || {
        cat "$log" >&2
        exit 1
    }
    again=$(printf '/stats\n%s\n' "$question" | chat 2>"$work/told")
    [[ -n $answer && $again == "$answer" && ${first:=$answer} == "$answer" ]] || {
        printf 'these answers should be one:\n%s\n' "$first" "$answer" "$again" >&2
        exit 1
    }
    grep -q "a second" "$work/told" || {
        echo "nothing was told of the answer:" >&2
        cat "$work/told" >&2
        exit 1
    }
    rows+=("$(printf '%10s %14s   %s' "$budget_mib" "$(peak_mib "$budget_mib")" \
        "$(tail -1 "$work/told")")")
    stop
done

echo "== $question"
echo "$first"
echo "== the model has $(variant_mib "$name" "$variant") MiB in $variant"
printf '%10s %14s\n' "budget MiB" "peak RSS MiB"
printf '%s\n' "${rows[@]}"
