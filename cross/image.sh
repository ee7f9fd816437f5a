#!/usr/bin/env bash
# Run a command in what Dockerfile.aarch64 describes, without Docker: cross/image.sh COMMAND..., as
# root, as by: cross/image.sh cargo build --release --locked --target aarch64-unknown-linux-gnu
#
# The base is made by debootstrap, the Dockerfile's RUN steps are run in it and its ENV is set. As
# cross does it, the checkout, cargo and the compiler are this machine's, mounted; the compiler is
# the one of setup.sh, which knows the target. The image is kept in HERMES_CROSS_IMAGE
# (target/cross-image).
set -euo pipefail

cd "$(dirname "$0")/.."
dockerfile=cross/Dockerfile.aarch64
toolchain=$(realpath -m "${HERMES_CROSS_DIR:-$PWD/target/cross}")
image=$(realpath -m "${HERMES_CROSS_IMAGE:-$PWD/target/cross-image}")
target=$(realpath -m "${CARGO_TARGET_DIR:-$PWD/target/image}")
cross/setup.sh "$toolchain" >/dev/null

# The lines of one kind of instruction, continued ones joined.
instructions() { # RUN or ENV
    sed -e ':a' -e '/\\$/{N;s/\\\n *//;ba' -e '}' "$dockerfile" | sed -n "s/^$1 //p"
}
base=$(sed -n 's/^FROM debian:\([a-z]*\)-.*/\1/p' "$dockerfile")
[[ -n $base ]] || { echo "$dockerfile begins with no Debian that is known here" >&2 && exit 1; }
inside() {
    # shellcheck disable=SC2016 # the inner shell expands them
    unshare --mount --pid --fork bash -euc '
        root=$0
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        for folder in "${@:2:$1}"; do
            mkdir -p "$root$folder"
            mount --bind "$folder" "$root$folder"
        done
        mkdir -p "$root/host"
        mount --bind / "$root/host"
        exec chroot "$root" "${@:2 + $1}"' "$image" "$@"
}
if ! cmp -s "$dockerfile" "$image/Dockerfile"; then
    rm -rf --one-file-system "$image"
    debootstrap --variant=minbase "$base" "$image" >&2
    while read -r step; do
        inside 0 /bin/sh -c "$step" >&2
    done < <(instructions RUN)
    cp "$dockerfile" "$image/Dockerfile"
fi

# This machine's compiler, with this machine's C library.
libraries=/host/lib/x86_64-linux-gnu:$toolchain/rust/lib:$toolchain/rust/lib/x86_64-linux-gnu
mkdir -p "$image/opt/rust" "$target"
for tool in rustc rustdoc; do
    printf '#!/bin/sh\nexec /host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path %s %s --sysroot %s "$@"\n' \
        "$libraries" "$toolchain/rust/bin/$tool" "$toolchain/rust" >"$image/opt/rust/$tool"
    chmod +x "$image/opt/rust/$tool"
done
cargo=$(rustup which cargo 2>/dev/null || command -v cargo)
home=${CARGO_HOME:-$HOME/.cargo}
environment=()
eval "environment=($(instructions ENV))"
inside 5 "$PWD" "$target" "$toolchain" "$home" "$(dirname "$cargo")" \
    /usr/bin/env -i -C "$PWD" "PATH=$(dirname "$cargo"):/usr/sbin:/usr/bin:/sbin:/bin" \
    "HOME=$HOME" "CARGO_HOME=$home" "CARGO_TARGET_DIR=$target" \
    RUSTC=/opt/rust/rustc RUSTDOC=/opt/rust/rustdoc "${environment[@]}" "$@"
