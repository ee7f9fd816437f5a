#!/usr/bin/env bash
# Stands in for rustdoc under `cargo test --doc`: checks the documentation, private items included,
# with the libraries that the tests were built with. (cargo doc would check every dependency once
# more, tract among them: minutes.)
set -euo pipefail

arguments=()
while (($#)); do
    case $1 in
    --test) ;;
    --test-run-directory | --test-builder | --test-runtool) shift ;;
    --test-*) ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
exec rustdoc -D warnings --document-private-items \
    --out-dir "${CARGO_TARGET_DIR:-target}/doc" "${arguments[@]}"
