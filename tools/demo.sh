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

if [[ -z ${HERMES_BIN:-} ]]; then
    tools/check_machine.sh build models demo
    echo "== building (the first time takes minutes)"
    "${CARGO:-cargo}" build --release --locked --quiet --bins
    HERMES_BIN=${CARGO_TARGET_DIR:-target}/release
fi
tools/fetch_models.sh "$models" paraphrase-minilm-l3

work=$(mktemp -d)
socket=$work/hermes.sock
log=$work/hermesd.log
daemon=
stop() {
    [[ -n $daemon ]] || return 0
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" || true
    daemon=
}
trap 'stop; rm -rf "$work"' EXIT

echo "== sharding $folder"
"$HERMES_BIN/hermes-shard" build "$folder/paraphrase-MiniLM-L3-v2.onnx" --store "$work/store" \
    --name "$name" --variants f32,q8,a4 --tokenizer "$folder/tokenizer.json"

get() { # path; the body, or a failure where the status is not 2xx
    curl --silent --fail --unix-socket "$socket" "http://localhost$1"
}

start() { # variant
    "$HERMES_BIN/hermesd" --store "$work/store" --socket "$socket" --variant "$1" \
        --budget "${budget_mib}MiB" 2>"$log" &
    daemon=$!
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        get /v2/health/ready >/dev/null && return 0
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.05
    done
    echo "hermesd did not become ready; it said:" >&2
    cat "$log" >&2
    exit 1
}

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

status_mib() { # field of /proc/PID/status
    awk -v field="$1:" '$1 == field { printf "%.1f", $2 / 1024 }' "/proc/$daemon/status"
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
    start "$variant"
    table=$(ask)
    check "$table"
    latency=$(median_ms)
    peak=$(status_mib VmHWM)
    rows+=("$(printf '%-8s %12s %14s %14s' "$variant" \
        "$(du -ch --apparent-size --block-size=KiB "$work/store/$name"/*/layers/*."$variant".layer |
            awk 'END { printf "%.1f", $1 / 1024 }')" "$latency" "$peak")")
    if [[ $variant == f32 ]]; then
        echo "== how alike are they? (f32)"
        echo "$table"
    fi
    stop
    awk -v peak="$peak" -v budget="$budget_mib" 'BEGIN { exit !(peak <= budget) }' || {
        echo "hermesd held $peak MiB, more than its budget of $budget_mib MiB" >&2
        exit 1
    }
done

echo "== the model's file has $model_mib MiB; the daemon may hold $budget_mib MiB"
printf '%-8s %12s %14s %14s\n' variant "on disk MiB" "latency ms" "peak RSS MiB"
printf '%s\n' "${rows[@]}"
echo "latency: median of $requests requests for one sentence, seen by curl;" \
    "peak RSS: VmHWM of hermesd"
