#!/usr/bin/env bash
# Build for aarch64 and run the tests under qemu-user: cross/test.sh [cargo test arguments].
# Without arguments, everything but the tests of whole real models, which take minutes there.
# Makes the toolchain first where it is missing (cross/setup.sh).
#
# Under qemu-user, advice on mapped files (populate, dontneed) does nothing and the page cache is
# the host's: these tests are about arithmetic, layout and logic, not about memory.
set -euo pipefail

cd "$(dirname "$0")/.."
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
cross/setup.sh "$toolchain"
# shellcheck source=/dev/null
. "$toolchain/env"

# The emulator reports the host's /proc/cpuinfo, from which tract would guess the core.
export TRACT_CPU_AARCH64_KIND=${TRACT_CPU_AARCH64_KIND:-a72}
# One property test case costs about thirty times what it costs natively.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/arm}

if (($# == 0)); then
    set -- --lib --bins
fi
exec cargo test --locked --target aarch64-unknown-linux-gnu "$@"
