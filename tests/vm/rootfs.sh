#!/usr/bin/env bash
# Make a Debian 13 for arm64 with systemd, and a kernel and initrd that boot it from a virtio disk:
# tests/vm/rootfs.sh DIR [KERNEL]. KERNEL is Debian's package: linux-image-cloud-arm64 by default,
# linux-image-arm64-16k for pages of 16 KiB. No foreign code is run: packages are unpacked, not
# configured, and what their scripts would do and a boot needs is done here. Needs root, mmdebstrap,
# kmod and cpio. What was made by this same script stays. Exit code 3: no Debian could be fetched.
set -euo pipefail

dir=$1
image=${2:-linux-image-cloud-arm64}
root=$dir/root
# The last thing made: a copy of what made it.
! cmp -s "$0" "$dir/complete" || exit 0
rm -rf --one-file-system "$dir"
mkdir -p "$dir"
packages=base-files,base-passwd,bash,coreutils,dash,diffutils,findutils,grep,sed,mawk,tar,gzip,xz-utils
packages+=,util-linux,mount,libc-bin,libgcc-s1,passwd,perl-base,dpkg,init-system-helpers,hostname
packages+=,systemd,systemd-sysv,dbus,udev,kmod,procps,$image,busybox-static
if ! mmdebstrap --quiet --variant=extract --architectures=arm64 --include="$packages" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --format=directory trixie "$root"; then
    echo "mmdebstrap could not make a Debian for arm64: is the archive to be reached?" >&2
    exit 3
fi
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
touch "$root/var/lib/dpkg/status"
echo board >"$root/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
mkdir -p "$root/var/log/journal"
ln -sf dash "$root/usr/bin/sh"
[[ -e $root/usr/bin/awk ]] || ln -s mawk "$root/usr/bin/awk"
kernel=$(ls "$root/usr/lib/modules")
depmod -b "$root" "$kernel"
cp "$root"/boot/vmlinuz-* "$dir/kernel"
rm -rf "${root:?}"/boot/*

# The initrd: busybox and the modules that a virtio disk with ext4 takes.
initrd=$(mktemp -d)
trap 'rm -rf "$initrd"' EXIT
mkdir -p "$initrd"/{bin,dev,proc,sys,root}
cp "$root/usr/bin/busybox" "$initrd/bin/"
ln -s busybox "$initrd/bin/sh"
number=10
for module in virtio_pci virtio_blk ext4; do
    modprobe -d "$root" -S "$kernel" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' >"$initrd/modules"
while read -r module; do
    number=$((number + 1))
    name=$(basename "$module")
    case $module in
    *.xz) xz -dc "$module" >"$initrd/$number-${name%.xz}" ;;
    *) cp "$module" "$initrd/$number-$name" ;;
    esac
done <"$initrd/modules"
cat >"$initrd/init" <<'INIT'
#!/bin/sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
for module in /*.ko; do $B insmod $module; done
i=0
while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $B sleep 0.1; i=$((i+1)); done
$B mount -t ext4 -o rw /dev/vda /root && exec $B switch_root /root /usr/lib/systemd/systemd
echo "no root"
$B poweroff -f
INIT
chmod +x "$initrd/init"
(cd "$initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd"
cp "$0" "$dir/complete"
