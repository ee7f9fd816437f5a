#!/usr/bin/env bash
# Install, upgrade and purge the package in a Debian of its own, and look what is left:
# tests/deb.sh [PACKAGE], as root. Without a package it packs the programs that are built.
#
# Needs cargo-deb, lintian and debootstrap. The Debian is fetched once and kept in
# HERMES_DEB_ROOT (target/deb-root by default); the package is tried in a copy of it. Exit code 3:
# this machine has not what it takes.
set -euo pipefail

cd "$(dirname "$0")/.."
suite=${HERMES_DEB_SUITE:-bookworm}
root=${HERMES_DEB_ROOT:-${CARGO_TARGET_DIR:-$PWD/target}/deb-root}-$suite
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

fail() {
    echo "$*" >&2
    exit 1
}
unable() {
    echo "$*" >&2
    exit 3
}
((EUID == 0)) || unable "run as root: a chroot is made"
for tool in cargo-deb lintian debootstrap; do
    command -v "$tool" >/dev/null || unable "$tool is not installed"
done

if [[ ! -e $root/.complete ]]; then
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase --include=dbus,procps,systemd "$suite" "$root" \
        >"$work/log" 2>&1 || fail "$(tail -n 5 "$work/log")"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    touch "$root/.complete"
fi

package=${1:-$(packaging/deb.sh "" --fast)}
lintian --allow-root --fail-on error "$package"
cp -a --reflink=auto "$root" "$work/root"
cp "$package" "$work/root/old.deb"
# The same with a higher version, for an upgrade.
dpkg-deb -R "$package" "$work/newer"
sed -i 's/^Version: .*/&+newer/' "$work/newer/DEBIAN/control"
dpkg-deb -Znone -b "$work/newer" "$work/root/new.deb" >/dev/null

inside() {
    # shellcheck disable=SC2016 # the inner shell expands them
    unshare --mount --pid --fork bash -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' \
        "$work/root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
# Everything but what dpkg and the account tools keep of their own.
listing() {
    (cd "$work/root" && find . -xdev ! -path './var/lib/dpkg/*' ! -path './var/log/*' \
        ! -path './var/cache/*' ! -path './etc/*-' ! -path './run/systemd/*' ! -path './*.deb' \
        -printf '%y %m %u %p\n' | sort)
}
check() { # what, command...
    "${@:2}" >"$work/out" 2>&1 || fail "$1: $(cat "$work/out")"
    echo "ok: $1"
}

listing >"$work/before"
check "installs" inside dpkg -i /old.deb
check "the user is there" inside id hermes
check "the store belongs to the user" \
    test "$(inside stat -c '%U %a' /var/lib/hermes)" = "hermes 750"
wants=$work/root/etc/systemd/system
check "the socket is enabled" test -L "$wants/sockets.target.wants/hermesd.socket"
check "the service waits for its first client" \
    test ! -e "$wants/multi-user.target.wants/hermesd.service"
for program in hermesd hermesctl hermes-shard hermes-bench; do
    check "$program starts" inside "$program" --version
done
bytes=$(find "$work/root/usr/bin" -type f -name 'hermes*' -printf '%s\n' | paste -sd+)
check "the programs take 60 MB at most: $((bytes))" test "$((bytes))" -le 60000000
check "the example config is good" inside hermesd --check-config
check "the units are understood" inside systemd-analyze verify hermesd.service hermesd.socket
check "verifies" test -z "$(inside dpkg --verify hermes)"

echo '# ours' >>"$work/root/etc/hermes/hermesd.toml"
touch "$work/root/var/lib/hermes/kept"
inside systemctl disable hermesd.socket 2>/dev/null
check "upgrades" inside dpkg -i --force-confold /new.deb
check "an upgrade keeps the settings" grep -q '# ours' "$work/root/etc/hermes/hermesd.toml"
check "an upgrade keeps the store" test -e "$work/root/var/lib/hermes/kept"
check "a disabled socket stays disabled" \
    test ! -e "$wants/sockets.target.wants/hermesd.socket"

check "is removed" inside dpkg --remove hermes
check "removing keeps settings and store" \
    test -e "$work/root/etc/hermes/hermesd.toml" -a -e "$work/root/var/lib/hermes/kept"
check "is installed again" inside dpkg -i --force-confold /new.deb
check "is purged" inside dpkg --purge hermes
listing >"$work/after"
# The user stays, so that no other comes by its number; the folders of others' tools stay empty.
diff "$work/before" "$work/after" >"$work/left" || fail "left behind or taken: $(cat "$work/left")"
echo "ok: nothing is left but the user"
