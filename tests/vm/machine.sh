# An emulated board, for run.sh, record.sh and kernel.sh, which source this: an arm64 Debian with
# systemd in 512 MiB of memory, and a script that runs in it once it is up.
#
# Needs root, Debian's packages that tools/check_machine.sh lists for a board, this machine's programs
# in HERMES_BIN (target/release) and the models (make models). The Debian is kept in HERMES_VM
# (target/vm). For pages of 16 KiB, as a Raspberry Pi 5 has them:
# HERMES_VM=target/vm16 HERMES_VM_KERNEL=linux-image-arm64-16k HERMES_VM_CPU=cortex-a76.
# Exit code 3: this machine has not what it takes.
# shellcheck shell=bash disable=SC2034

programs=${HERMES_BIN:-${CARGO_TARGET_DIR:-$PWD/target}/release}
vm=${HERMES_VM:-${CARGO_TARGET_DIR:-$PWD/target}/vm}
models=${HERMES_MODELS:-$PWD/models}
if ((EUID != 0)); then
    echo "run as root: the board's files belong to it" >&2
    exit 3
fi
tools/check_machine.sh board || exit 3
work=$(mktemp -d)
daemon=
cleanup() {
    [[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# One core. While it is busy, time passes there by 4 ns an instruction, not by the clock here:
# deadlines there do not care how busy this machine is.
cores=(-smp 1 -icount shift=2)

# Makes the board's files: furnish SCRIPT. $work/store, where there is one, becomes /store.
furnish() {
    tests/vm/rootfs.sh "$vm" "${HERMES_VM_KERNEL:-}"
    rm -rf "$work/root"
    cp -a --reflink=auto "$vm/root" "$work/root"
    rm -rf "$work/root/dev"
    mkdir "$work/root/dev"
    [[ ! -e $work/store ]] || mv "$work/store" "$work/root/store"
    install -m 755 "$1" "$work/root/inside.sh"
    local units=$work/root/etc/systemd/system
    cat >"$work/root/usr/lib/systemd/system/inside.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/inside.sh
UNIT
    mkdir -p "$units/multi-user.target.wants"
    ln -s /usr/lib/systemd/system/inside.service "$units/multi-user.target.wants/"
    # The console is ours.
    ln -s /dev/null "$units/serial-getty@ttyAMA0.service"
}

# Puts a package there as /hermes.deb: bring PACKAGE, once furnished.
bring() {
    # Not compressed, as unpacking would take minutes there.
    dpkg-deb -R "$1" "$work/package"
    dpkg-deb -Znone -b "$work/package" "$work/root/hermes.deb" >/dev/null
    rm -r "$work/package"
}

# Boots it and shows what it says, which is kept in $work/said: boot NAME KERNEL_ARGUMENTS
boot() {
    echo "== $1"
    mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$work/root" "$work/disk" 4G
    timeout "${HERMES_VM_SECONDS:-2400}" qemu-system-aarch64 -M virt \
        -cpu "${HERMES_VM_CPU:-cortex-a72}" -m 512 "${cores[@]}" \
        -nodefaults -no-reboot -display none -serial "file:$work/console" \
        -kernel "$vm/kernel" -initrd "$vm/initrd" \
        -append "console=ttyAMA0 panic=-1 quiet systemd.show_status=0 $2" \
        -drive "if=none,id=disk,format=raw,file=$work/disk,cache=unsafe" \
        -device virtio-blk-pci,drive=disk </dev/null || true
    tr -d '\r' <"$work/console" >"$work/said"
    rm -f "$work/disk" "$work/console"
    grep -v '^answer of ' "$work/said"
    grep -q '^end' "$work/said" || { echo "$1: it did not come to its end" >&2 && exit 1; }
    ! grep -q '^FAILED' "$work/said" || exit 1
}
