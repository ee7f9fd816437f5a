#!/usr/bin/env bash
# What the demos share, sourced by them: the programs, and a daemon of their own over "$work/store".
# shellcheck shell=bash

if [[ -z ${HERMES_BIN:-} ]]; then
    tools/check_machine.sh build models demo
    echo "== building (the first time takes minutes)"
    "${CARGO:-cargo}" build --release --locked --quiet --bins
    HERMES_BIN=${CARGO_TARGET_DIR:-target}/release
fi

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

get() { # path; the body, or a failure where the status is not 2xx
    curl --silent --fail --unix-socket "$socket" "http://localhost$1"
}

start() { # variant, budget in MiB
    "$HERMES_BIN/hermesd" --store "$work/store" --socket "$socket" --variant "$1" \
        --budget "${2}MiB" 2>"$log" &
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

status_mib() { # field of /proc/PID/status
    awk -v field="$1:" '$1 == field { printf "%.1f", $2 / 1024 }' "/proc/$daemon/status"
}

# The peak, which may not be beyond the budget.
peak_mib() { # budget in MiB
    local peak
    peak=$(status_mib VmHWM)
    awk -v peak="$peak" -v budget="$1" 'BEGIN { exit !(peak <= budget) }' || {
        echo "hermesd held $peak MiB, more than its budget of $1 MiB" >&2
        return 1
    }
    echo "$peak"
}

variant_mib() { # model, variant
    du -ch --apparent-size --block-size=KiB "$work/store/$1"/*/layers/*."$2".layer |
        awk 'END { printf "%.1f", $1 / 1024 }'
}
