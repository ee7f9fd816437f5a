#!/usr/bin/env bash
# Build for aarch64 and run the tests under qemu-user: cross/test.sh [cargo test arguments].
# Without arguments, the unit tests and those of the engine, the store and bare kernels.
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
# The emulator (7.2) fills the alignment of direct reads in with zeros, which means that there are
# none.
export HERMES_WITHOUT=${HERMES_WITHOUT:-dioalign}
# One property test case costs about thirty times what it costs natively.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/arm}

if (($# == 0)); then
    set -- --lib --bins --test engine --test kernels --test store
fi
# Tests start programs too, by their names.
exec cross/binfmt.sh cargo test --locked --target aarch64-unknown-linux-gnu "$@"
