#!/usr/bin/env bash
# Build for aarch64 and run the tests under qemu-user: cross/test.sh [--computing | cargo test
# arguments]. Makes the toolchain first where it is missing (cross/setup.sh).
#
# Under qemu-user, advice on mapped files (populate, dontneed) does nothing, the page cache is the
# host's and a process's memory is the emulator's: for these, tests/vm/kernel.sh runs tests under a
# kernel for arm64. So without arguments these run here: what computes, what lays files out, what
# looks at the kernel's features; with --computing only what another core may compute otherwise.
# Tests of HTTP, of clients and of the command line are the same text on both architectures, and run
# natively.
set -euo pipefail

cd "$(dirname "$0")/.."
toolchain=${HERMES_CROSS_DIR:-$PWD/target/cross}
cross/setup.sh "$toolchain"
# shellcheck source=/dev/null
. "$toolchain/env"
# shellcheck source=cross/emulator.sh
. cross/emulator.sh

# One property test case costs about thirty times what it costs natively.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/arm}

skipped=(
    # The program's code is data of the emulator's: what smaps calls code is the emulator.
    code_that_is_released_comes_back_in_pieces
    # MADV_POPULATE_READ succeeds and populates nothing.
    nothing_is_mapped_around_what_is_populated
    what_is_mapped_behind_a_block_goes_with_it
    what_is_released_leaves_the_page_cache_and_what_is_mapped_stays
    # Nothing is wrong, but emulated it takes more than six minutes of a processor.
    vit_s
    # The kernel hands the emulator a program's path, not the name that it is called by.
    copies_of_it_are_what_it_is
)
cross/are_tests.sh cross/test.sh "${skipped[@]}"
case ${1:-} in
'') set -- --lib --bins --test program --test engine --test kernels --test models --test store ;;
--computing) set -- --lib --test program --test kernels ;;
*) skipped=() ;;
esac
((${#skipped[@]} == 0)) || set -- "$@" -- "${skipped[@]/#/--skip=}"
# Tests start programs too, by their names.
exec cross/binfmt.sh cargo test --locked --no-fail-fast --target aarch64-unknown-linux-gnu "$@"
