#!/usr/bin/env bash
# Hold this machine's programs against those for aarch64 under qemu-user: both cut models into the
# same files, byte for byte, and answer the same (tests/architectures.rs). Builds what is missing.
set -euo pipefail

cd "$(dirname "$0")/.."
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
arm=${HERMES_ARM_TARGET:-${CARGO_TARGET_DIR:-$PWD/target/arm}}
cross/setup.sh "$toolchain"
# A subshell, for the tests are built by the machine's own compiler.
(
    # shellcheck source=/dev/null
    . "$toolchain/env"
    # As the tests build them: without the tests' dependencies all of tract would be built once more.
    CARGO_TARGET_DIR=$arm cargo test --locked --no-run --test program --test kernels \
        --target aarch64-unknown-linux-gnu
)
# shellcheck source=/dev/null
prefix=$(. "$toolchain/env" && echo "$QEMU_LD_PREFIX")
# shellcheck source=cross/emulator.sh
. cross/emulator.sh
export HERMES_OTHER_BIN=$arm/aarch64-unknown-linux-gnu/debug
# What else emulator.sh says is for the emulated programs alone.
export HERMES_OTHER_RUN="env QEMU_LD_PREFIX=$prefix TRACT_CPU_AARCH64_KIND=$TRACT_CPU_AARCH64_KIND
    HERMES_WITHOUT=$HERMES_WITHOUT qemu-aarch64 -cpu $QEMU_CPU"
unset HERMES_WITHOUT
# As make test builds it; a program for aarch64 starts copies of itself.
exec cross/binfmt.sh tools/linted.sh cargo test --locked --test architectures "$@"
