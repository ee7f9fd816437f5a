#!/usr/bin/env bash
# Tests under real kernels for arm64: tests/vm/kernel.sh [4|16]..., as root, by KiB of a page: 4 on
# a core of a Raspberry Pi 4, 16 on one of a 5; both by default. With --fetch it only fetches the
# boards' files, with --build it only builds. Builds test programs as cross/test.sh does, puts them
# on the board of machine.sh, which says what is needed, and runs them there (programs.sh). There is
# what qemu-user does not have: mappings and advice on them, a page cache, direct reads, a process's
# own memory, the board's /proc/cpuinfo. Exit code 3: this machine has not what it takes.
set -euo pipefail

cd "$(dirname "$0")/../.."
# shellcheck source=tests/vm/machine.sh
. tests/vm/machine.sh
# As many as a board has; counted instructions would take one core.
cores=(-smp 4)

tests=(--lib --bins --test program --test budget --test engine --test kernels --test store)
skipped=(
    # Nothing of these is the kernel's, and emulated they take minutes; under qemu-user and natively
    # they run.
    a_failing_disk_gives_errors_and_never_wrong_answers
    damaged_indexes_and_lengths_are_named
    lying_manifests_are_refused
    # Emulated, its imports take more of the processor than hermes-shard gives a model.
    a_decoder_with_past_inputs_keeps_its_smallest_budget
)
cross/are_tests.sh tests/vm/kernel.sh "${skipped[@]}"

large_pages=linux-image-arm64-16k
if [[ ${1:-} == --fetch ]]; then
    tests/vm/rootfs.sh "$vm" ""
    tests/vm/rootfs.sh "${vm}16" "$large_pages"
    exit
fi
tools/fetch_models.sh "$models" paraphrase-minilm-l3
models=$(realpath "$models")
export CARGO_TARGET_DIR=${HERMES_ARM_TARGET:-${CARGO_TARGET_DIR:-$PWD/target/arm}}
cross/test.sh --no-run --message-format=json-render-diagnostics "${tests[@]}" >"$work/built"
[[ ${1:-} != --build ]] || exit 0
# Of each program whether it is a test, its name, and where it is.
grep '^{' "$work/built" | jq -r 'select(.reason == "compiler-artifact" and .executable)
    | "\(.profile.test) \(.target.name) \(.executable)"' >"$work/programs"

# What furnish makes, with the programs, which know each other and the models by their paths here:
# furnish_tests [NAME], without that test program.
furnish_tests() {
    local is_test name program root=$work/root
    furnish tests/vm/programs.sh
    while read -r is_test name program; do
        mkdir -p "$root/${program%/*}"
        aarch64-linux-gnu-strip -o "$root/$program" "$program"
        [[ $is_test == false || $name == "${1:-}" ]] ||
            echo "$name $program ${skipped[*]/#/--skip=}" >>"$root/tests"
    done <"$work/programs"
    mkdir -p "$root/$models"
    cp -r "$models/paraphrase-minilm-l3" "$root/$models/"
    echo "export HERMES_MODELS=$models PROPTEST_CASES=${PROPTEST_CASES:-16}" >"$root/environment"
    # Tests write to the disk there, not to memory.
    ln -s /dev/null "$root/etc/systemd/system/tmp.mount"
}

folder=$vm
(($#)) || set -- 4 16
for kib in "$@"; do
    case $kib in
    4)
        vm=$folder HERMES_VM_KERNEL='' HERMES_VM_CPU=cortex-a72
        furnish_tests
        ;;
    16)
        vm=${folder}16 HERMES_VM_KERNEL=$large_pages HERMES_VM_CPU=cortex-a76
        # What it checks is laid out the same whatever the size of a page.
        furnish_tests store
        ;;
    *)
        echo "usage: $0 [4|16]..." >&2
        exit 2
        ;;
    esac
    boot "tests on $HERMES_VM_CPU, pages of $kib KiB" "psi=1"
    grep -qx "pages of $kib KiB" "$work/said" || {
        echo "the kernel's pages are not of $kib KiB" >&2
        exit 1
    }
done
