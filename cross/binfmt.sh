#!/usr/bin/env bash
# Run a command for which the kernel hands aarch64 programs to qemu-user (binfmt_misc):
# cross/binfmt.sh COMMAND... The registration is in a namespace of the command's own, which takes
# Linux 6.7 and no rights; where that cannot be, one of the system's has to be there, such as
# Debian's package qemu-user-binfmt makes.
set -euo pipefail

files=/proc/sys/fs/binfmt_misc
if [[ ${1:-} == --inside ]]; then
    shift
    mount -t binfmt_misc binfmt_misc "$files"
    # An ELF file's first bytes: 64 bits, little-endian, a program or library, for machine 183.
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    emulator=$(command -v qemu-aarch64)
    printf '%s' ":hermes-aarch64:M::$magic:$mask:$emulator:F" >"$files/register"
    exec "$@"
fi
own=(unshare --user --map-root-user --mount "$0" --inside)
if "${own[@]}" true 2>/dev/null; then
    exec "${own[@]}" "$@"
fi
if [[ ! -e $files/qemu-aarch64 ]]; then
    echo "tests that start programs will fail: install qemu-user-binfmt, or use Linux 6.7" >&2
fi
exec "$@"
