#!/usr/bin/env bash
# Check the crates against the public list of advisories: tools/check_advisories.sh. Needs cargo-deny
# (cargo install cargo-deny --locked) and the network. Exit code 3: there is no cargo-deny.
set -euo pipefail

cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    echo "cargo-deny is not installed"
    exit 3
fi
exec cargo deny --locked check
