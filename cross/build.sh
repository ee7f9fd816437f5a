#!/usr/bin/env bash
# Build the release programs for aarch64: cross/build.sh [cargo build arguments].
# By cross where it and Docker work, else by the toolchain of cross/setup.sh, linked with the glibc of
# JetPack 4 where zig's linker can be had (cross/zig.sh).
set -euo pipefail

cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
# That of JetPack 5 and Raspberry Pi OS bullseye.
glibc=2.31
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/arm}
if (($# == 0)); then
    set -- --release
fi
if command -v cross >/dev/null && docker info >/dev/null 2>&1; then
    cross build --locked --target "$target" "$@"
else
    toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
    cross/setup.sh "$toolchain"
    # shellcheck source=/dev/null
    . "$toolchain/env"
    if linker=$(cross/zig.sh "$toolchain"); then
        PATH=$linker:$PATH glibc=2.27
    fi
    cargo build --locked --target "$target" "$@"
fi
for built in "$CARGO_TARGET_DIR/$target"/{release,debug}; do
    programs=("$built"/{hermes-programs,hermesctl,hermesd,hermes-shard,hermes-bench})
    [[ ! -x ${programs[0]} ]] || cross/glibc.sh "$glibc" "${programs[@]}"
done
echo "the programs are in $CARGO_TARGET_DIR/$target"
