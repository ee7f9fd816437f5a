#!/usr/bin/env bash
# Show Hermes at work: tools/demo.sh
# Builds, fetches a real sentence-embedding model (69 MB), shards it in three precisions, serves
# each within 48 MiB over a Unix socket, asks how alike a few sentences are, and says what it took.
# Ends with an error where an answer is not plausible or the daemon outgrew its budget.
#
# HERMES_BIN=DIR takes programs that are built already; HERMES_MODELS=DIR says where models are.
set -euo pipefail

cd "$(dirname "$0")/.."
budget_mib=48
requests=20
name=paraphrase
models=${HERMES_MODELS:-models}
folder=$models/paraphrase-minilm-l3
sentences=(
    "A cat sleeps on the warm sofa."
    "A kitten is napping on the couch."
    "Interest rates went up again this spring."
    "The central bank raised its rates in May."
)

# shellcheck source=tools/demo_daemon.sh
. tools/demo_daemon.sh
tools/fetch_models.sh "$models" paraphrase-minilm-l3

echo "== sharding $folder"
"$HERMES_BIN/hermes-shard" build "$folder/paraphrase-MiniLM-L3-v2.onnx" --store "$work/store" \
    --name "$name" --variants f32,q8,a4 --tokenizer "$folder/tokenizer.json"

ask() { # the table of cosines, or the daemon's words
    "$HERMES_BIN/hermesctl" --socket "$socket" embed "$name" "${sentences[@]}" || {
        cat "$log" >&2
        exit 1
    }
}

median_ms() { # of one sentence, as a client sees it
    local i body
    body="{\"model\":\"$name\",\"input\":\"${sentences[0]}\"}"
    for ((i = 0; i < requests; i++)); do
        curl --silent --fail --unix-socket "$socket" --output /dev/null \
            --write-out '%{time_total}\n' --header 'content-type: application/json' \
            --data "$body" http://localhost/v1/embeddings
    done | sort -g | awk '{ t[NR] = $1 } END { printf "%.1f", 1000 * t[int((NR + 1) / 2)] }'
}

# Likeness of the first sentence to the second (the same said otherwise) and the third (another).
check() { # table
    awk 'NR == 2 { alike = $(NF - 2); other = $(NF - 1) }
        END { exit !(alike > 0.5 && other < 0.3) }' <<<"$1" || {
        echo "these likenesses cannot be right" >&2
        exit 1
    }
}

model_mib=$(awk -v bytes="$(stat -c %s "$folder/paraphrase-MiniLM-L3-v2.onnx")" \
    'BEGIN { printf "%.1f", bytes / 1048576 }')
rows=()
for variant in f32 q8 a4; do
    start "$variant" "$budget_mib"
    table=$(ask)
    check "$table"
    latency=$(median_ms)
    peak=$(peak_mib "$budget_mib")
    rows+=("$(printf '%-8s %12s %14s %14s' "$variant" \
        "$(variant_mib "$name" "$variant")" "$latency" "$peak")")
    if [[ $variant == f32 ]]; then
        echo "== how alike are they? (f32)"
        echo "$table"
    fi
    stop
done

echo "== the model's file has $model_mib MiB; the daemon may hold $budget_mib MiB"
printf '%-8s %12s %14s %14s\n' variant "on disk MiB" "latency ms" "peak RSS MiB"
printf '%s\n' "${rows[@]}"
echo "latency: median of $requests requests for one sentence, seen by curl;" \
    "peak RSS: VmHWM of hermesd"
