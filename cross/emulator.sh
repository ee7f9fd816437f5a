#!/usr/bin/env bash
# How qemu-user emulates a board; to be sourced. HERMES_QEMU_CPU says which core: cortex-a53 and
# cortex-a72 (Raspberry Pi 3 and 4, Jetson Nano) have neither fp16 nor dot products, cortex-a76
# (Raspberry Pi 5, the default) and newer have both. Where the target's libraries are says
# QEMU_LD_PREFIX, by setup.sh.
export QEMU_CPU=${HERMES_QEMU_CPU:-cortex-a76}

# The emulator reports the host's /proc/cpuinfo, from which tract would guess the core; cortex-a75
# is the newest that it has kernels for.
case $QEMU_CPU in
*-a53) kind=a53 ;;
*-a72) kind=a72 ;;
*) kind=a75 ;;
esac
export TRACT_CPU_AARCH64_KIND=${TRACT_CPU_AARCH64_KIND:-$kind}

# The emulator (7.2) fills the alignment of direct reads in with zeros, which means that there are
# none.
export HERMES_WITHOUT=${HERMES_WITHOUT:-dioalign}
