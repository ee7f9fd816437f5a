#!/usr/bin/env bash
# The service on a board that is not there: tests/vm/run.sh PACKAGE, as root. Boots an arm64 Debian
# with systemd in 512 MiB of memory, installs the package, and has inside.sh use it; then once more
# without a memory cgroup, as on a stock Raspberry Pi. Takes some minutes, for all is emulated.
#
# Needs qemu-system-arm, mmdebstrap, kmod, cpio, e2fsprogs and jq; this machine's hermesd,
# hermesctl and hermes-shard in HERMES_BIN (target/release), and the models (make models). The
# Debian is kept in HERMES_VM (target/vm). For pages of 16 KiB, as a Raspberry Pi 5 has them:
# HERMES_VM=target/vm16 HERMES_VM_KERNEL=linux-image-arm64-16k HERMES_VM_CPU=cortex-a76.
set -euo pipefail

cd "$(dirname "$0")/../.."
package=$1
programs=${HERMES_BIN:-${CARGO_TARGET_DIR:-$PWD/target}/release}
dir=${HERMES_VM:-${CARGO_TARGET_DIR:-$PWD/target}/vm}
models=${HERMES_MODELS:-$PWD/models}
work=$(mktemp -d)
daemon=
cleanup() {
    [[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

tests/vm/rootfs.sh "$dir" "${HERMES_VM_KERNEL:-}"

# The store is made here, and so is the answer to compare with.
"$programs/hermes-shard" build "$models/paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx" \
    --store "$work/store" --name demo >/dev/null
"$programs/hermesd" --store "$work/store" --socket "$work/s" --budget 64MiB 2>"$work/log" &
daemon=$!
for _ in {1..100}; do
    [[ -S $work/s ]] && break
    sleep 0.1
done
HERMES_SOCKET=$work/s "$programs/hermesctl" embed demo "A cat sleeps on the warm sofa." --json \
    >"$work/expected"

cp -a --reflink=auto "$dir/root" "$work/root"
rm -rf "$work/root/dev"
mkdir "$work/root/dev"
cp -r "$work/store" "$work/root/store"
# Not compressed, as unpacking would take minutes there.
dpkg-deb -R "$package" "$work/package"
dpkg-deb -Znone -b "$work/package" "$work/root/hermes.deb" >/dev/null
install -m 755 tests/vm/inside.sh "$work/root/inside.sh"
cat >"$work/root/usr/lib/systemd/system/inside.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/inside.sh
UNIT
mkdir -p "$work/root/etc/systemd/system/multi-user.target.wants"
ln -s /usr/lib/systemd/system/inside.service \
    "$work/root/etc/systemd/system/multi-user.target.wants/"

boot() { # name, kernel arguments
    echo "== $1"
    mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$work/root" "$work/disk" 1200M
    timeout "${HERMES_VM_SECONDS:-1200}" qemu-system-aarch64 -M virt -cpu "${HERMES_VM_CPU:-cortex-a72}" -m 512 -smp 1 \
        -nodefaults -no-reboot -display none -serial "file:$work/console" \
        -kernel "$dir/kernel" -initrd "$dir/initrd" \
        -append "console=ttyAMA0 panic=-1 quiet systemd.show_status=0 $2" \
        -drive "if=none,id=disk,format=raw,file=$work/disk,cache=unsafe" \
        -device virtio-blk-pci,drive=disk </dev/null || true
    tr -d '\r' <"$work/console" >"$work/said"
    rm -f "$work/disk" "$work/console"
    grep -v '^embedding: ' "$work/said"
    grep -q '^end' "$work/said" || { echo "$1: it did not come to its end" >&2 && exit 1; }
    ! grep -q '^FAILED' "$work/said" || exit 1
    # The same vector as here, within 1e-5 of its largest value.
    sed -n 's/^embedding: //p' "$work/said" >"$work/found"
    jq -es '[.. | numbers] as $all | ($all | length / 2) as $n | ($all[:$n]) as $a | ($all[$n:]) as $b
        | ([$a[] | fabs] | max) as $scale
        | ([range($n) | ($a[.] - $b[.]) | fabs] | max / $scale) as $error
        | ($n >= 384 and $error <= 1e-5), $error' "$work/expected" "$work/found" >"$work/error" ||
        true
    echo "figure: the answers differ by $(tail -n 1 "$work/error") of the largest value"
    [[ $(head -n 1 "$work/error") == true ]] || { echo "$1: another answer" >&2 && exit 1; }
}
boot "with a memory cgroup and PSI" "psi=1"
boot "without a memory cgroup, without PSI" "cgroup_disable=memory psi=0"
