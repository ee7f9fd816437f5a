#!/usr/bin/env bash
# Make a cross toolchain for aarch64 without Docker, on Debian: cross/setup.sh [DIR], default
# target/cross. Needs root for apt-get install alone. Exit code 3: this is no Debian.
#
# gcc, libc and qemu-user are ordinary packages. The compiler is the oldest that Cargo.toml promises
# to build with, by rustup where that is there, in a home of its own: so what is built for aarch64
# proves that promise. Elsewhere Debian's own compiler and both of its standard libraries are
# unpacked into DIR, with apt state of their own. Neither the user's rustup nor dpkg's architectures
# change. Programs are linked and tests are run with the C library of an older Debian, 2.31, unpacked
# there too: they start on every system that has that one or a newer (JetPack 5, Raspberry Pi OS
# bullseye).
# Afterwards `. DIR/env` makes the ordinary cargo build with `--target aarch64-unknown-linux-gnu`.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$here/target/cross}
mkdir -p "$dir"/{lists,cache/archives}/partial "$dir/sysroot"
dir=$(cd "$dir" && pwd)
# The last thing made: a copy of what made it.
cmp -s "$here/cross/setup.sh" "$dir/setup.sh" && (. "$dir/env" && "$RUSTC" --version) && exit 0
# shellcheck source=/dev/null
if [[ $(. /etc/os-release && echo "$ID") != debian || $(uname -m) != x86_64 ]]; then
    echo "the toolchain is made of Debian's packages for x86-64: elsewhere, use cross and Docker" >&2
    exit 3
fi

packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing+=("$package")
done
if ((${#missing[@]})); then
    if ((EUID != 0)); then
        echo "install these first, or run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    apt-get -qq update
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

old=bullseye
# Lists that were never fetched do not tell where they would come from.
archive_url() {
    # shellcheck disable=SC2016 # apt-get expands them
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' |
        awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}
archive=$(archive_url)
if [[ -z $archive ]] && ((EUID == 0)); then
    apt-get -qq update
    archive=$(archive_url)
fi
if [[ -z $archive ]]; then
    echo "apt knows no archive of Debian's: run apt-get update first" >&2
    exit 1
fi
keys=/usr/share/keyrings/debian-archive-keyring.gpg
cat /etc/apt/sources.list >"$dir/sources.list" 2>/dev/null || true
echo "deb [signed-by=$keys] $archive $old main" >>"$dir/sources.list"
apt=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o APT::Architectures::=amd64 -o APT::Architectures::=arm64
    -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/Cargo.toml")

# Each leaves the compiler's tree as DIR/rust and says where what runs it is: its own programs, or
# what gives them their libraries.

# The oldest compiler, by rustup.
take_oldest() {
    command -v rustup >/dev/null || return 1
    RUSTUP_HOME=$dir/rustup rustup -q toolchain install "$wanted.0" --profile minimal \
        --target aarch64-unknown-linux-gnu --no-self-update || return 1
    ln -sfnr "$dir/rustup/toolchains/$wanted.0-"* "$dir/rust"
    bin=$dir/rust/bin
}

# Debian's compiler: the newest of a stable release is called rustc-web, where there is one.
take_debians() {
    local compiler='' name version release std shared llvm archive libraries tool
    for name in rustc-web rustc; do
        version=$(apt-cache "${apt[@]}" policy "$name" | awk '/Candidate:/ { print $2 }')
        if [[ -n $version && $version != "(none)" ]]; then
            compiler=$name
            break
        fi
    done
    release=$(cut -d. -f1,2 <<<"$version")
    if [[ -z $compiler ]] || ! printf '%s\n' "$wanted" "$release" | sort -CV; then
        echo "Debian's rustc is ${version:-missing}, this project needs $wanted;" \
            "use cross (see cross/README.md), rustup or a newer Debian" >&2
        exit 1
    fi
    std=libstd-rust${compiler#rustc}
    shared=$std-$release
    llvm=$(apt-cache "${apt[@]}" show "$shared=$version" | grep -oE 'libllvm[0-9.]+' | head -n 1)
    cd "$dir/cache/archives"
    apt-get "${apt[@]}" download "$compiler=$version" "$shared=$version" "$llvm" libz3-4 libxml2 \
        libedit2 "$std-dev:amd64=$version" "$std-dev:arm64=$version"
    for archive in *.deb; do
        dpkg -x "$archive" "$dir/sysroot"
        rm "$archive"
    done
    # Not by sh: dash drops variables whose names it could not have, such as
    # CARGO_BIN_EXE_hermes-shard, by which cargo tells tests where the programs are.
    libraries=$dir/rust/lib/$(uname -m)-linux-gnu
    ln -sfn sysroot/usr "$dir/rust"
    bin=$dir/debian
    mkdir -p "$bin"
    for tool in rustc rustdoc; do
        printf '#!/usr/bin/env bash\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
            "$libraries" "$dir/rust/bin/$tool" >"$bin/$tool"
        chmod +x "$bin/$tool"
    done
}

bin=
take_oldest || take_debians

mkdir -p "$dir/cache/archives/old"
cd "$dir/cache/archives/old"
apt-get "${apt[@]}" download "libc6:arm64/$old" "libc6-dev:arm64/$old" "libgcc-s1:arm64/$old"
for archive in *.deb; do
    dpkg -x "$archive" "$dir/glibc"
done
# These link to where they would be on the board.
for link in "$dir"/glibc/usr/lib/aarch64-linux-gnu/*.so; do
    target=$(readlink "$link") || continue
    [[ $target != /* ]] || ln -sfr "$dir/glibc$target" "$link"
done
# By its own name: cargo builds all anew where the linker has another.
mkdir -p "$dir/bin"
triple=aarch64-linux-gnu
cat >"$dir/bin/$triple-gcc" <<GCC
#!/bin/sh
root=$dir/glibc
exec /usr/bin/$triple-gcc --sysroot=\$root -B\$root/usr/lib/$triple -L\$root/usr/lib/$triple \\
    -L\$root/lib/$triple -isystem \$root/usr/include -isystem \$root/usr/include/$triple "\$@"
GCC
chmod +x "$dir/bin/$triple-gcc"

cat >"$dir/env" <<ENV
export PATH=$dir/bin:\$PATH
export RUSTC=$bin/rustc RUSTDOC=$bin/rustdoc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export QEMU_LD_PREFIX=$dir/glibc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
ENV
cd "$here"
rm -rf "$dir/lists" "$dir/cache"
"$bin/rustc" --version
cp "$here/cross/setup.sh" "$dir/setup.sh"
