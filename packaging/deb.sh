#!/usr/bin/env bash
# Pack the release programs, built before, as a Debian package: packaging/deb.sh [TARGET]
# [cargo-deb's arguments].
#
# TARGET is cargo's name of the architecture, such as aarch64-unknown-linux-gnu; without one it is
# this machine's. Needs cargo-deb (cargo install cargo-deb --version 3.8.0 --locked). What goes into
# the package is `make install`'s, the metadata is in Cargo.toml. Prints where the package is.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${1:-}
case $target in
'') folder=${CARGO_TARGET_DIR:-$PWD/target} ;;
*) folder=${CARGO_TARGET_DIR:-$PWD/target/arm} ;;
esac
export CARGO_TARGET_DIR=$folder
built=$folder/${target:+$target/}release

# Programs write their own man pages, so those of another architecture are emulated.
run=
if [[ $target == aarch64-* && $(uname -m) != aarch64 ]]; then
    run="qemu-aarch64 -L /usr/aarch64-linux-gnu"
fi
stage=$built/package
rm -rf "$stage"
make --no-print-directory -s install BUILT="$built" RUN="$run" \
    DESTDIR="$stage" PREFIX=/usr SYSCONFDIR=/etc
gzip -9n "$stage"/usr/share/man/man*/*
cp CHANGELOG.md "$stage/usr/share/doc/hermes/changelog"
gzip -9n "$stage/usr/share/doc/hermes/changelog"

arguments=(--no-build --locked --quiet)
if [[ -n $target ]]; then
    # What the variant's dependencies say.
    cross/glibc.sh 2.30 "$built"/{hermes-programs,hermesctl} >&2
    arguments+=(--target "$target" --variant cross)
fi
cargo deb "${arguments[@]}" "${@:2}"
