#!/usr/bin/env bash
# Check that this machine has what a step needs:
# tools/check_machine.sh [build|models|demo|units|board]...
# Says what is missing and how to get it; run as root where there is apt-get, it installs it.
# Rust itself is never installed here.
set -euo pipefail

cd "$(dirname "$0")/.."
packages=()

need() { # package, command that proves it
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || packages+=("$package")
}

for step in "${@:-build}"; do
    case $step in
    build)
        need gcc command -v cc
        need make command -v make
        need libc6-dev test -e /usr/include/stdio.h
        ;;
    models)
        need python3-pip python3 -m pip --version
        ;;
    demo)
        need curl command -v curl
        ;;
    units)
        need systemd command -v systemd-analyze
        ;;
    board)
        need qemu-system-arm command -v qemu-system-aarch64
        need mmdebstrap command -v mmdebstrap
        need kmod command -v modprobe
        need cpio command -v cpio
        need e2fsprogs command -v mke2fs
        need jq command -v jq
        ;;
    *)
        echo "usage: $0 [build|models|demo|units|board]..." >&2
        exit 2
        ;;
    esac
done

if ((${#packages[@]})); then
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        echo "this machine lacks: ${packages[*]}" >&2
        echo "install them, as by: sudo apt-get install ${packages[*]}" >&2
        exit 1
    fi
    echo "installing ${packages[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y \
        "${packages[@]}" >/dev/null
fi

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null; then
    echo "Rust $wanted or newer is needed, and there is no cargo; rustup is the usual way" >&2
    exit 1
fi
found=$(rustc --version | cut -d' ' -f2)
if ! printf '%s\n' "$wanted" "$found" | sort -CV; then
    echo "Rust $wanted or newer is needed, and this is $found: rustup update" >&2
    exit 1
fi
