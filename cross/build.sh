#!/usr/bin/env bash
# Build the release programs for aarch64: cross/build.sh [cargo build arguments].
# By cross where it and Docker work, else by the toolchain of cross/setup.sh.
set -euo pipefail

cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
if (($# == 0)); then
    set -- --release
fi
if command -v cross >/dev/null && docker info >/dev/null 2>&1; then
    exec cross build --locked --target "$target" "$@"
fi
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
cross/setup.sh "$toolchain"
# shellcheck source=/dev/null
. "$toolchain/env"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/arm}
cargo build --locked --target "$target" "$@"
echo "the programs are in $CARGO_TARGET_DIR/$target"
