#!/usr/bin/env bash
# Make a linker for aarch64 that links with glibc 2.27, JetPack 4's: cross/zig.sh DIR, where DIR is
# cross/setup.sh's. Prints the folder that goes before the others in PATH.
#
# Zig's package for Python has the symbols of every version of glibc. Its linker takes the name of
# gcc's, since cargo builds all anew where the linker has another; what is only compiled is gcc's
# matter still. Exit code 3: pip is not there, or has no such package.
set -euo pipefail

wanted=ziglang==0.17.1
dir=$(cd "$1" && pwd)
name=aarch64-linux-gnu-gcc
if [[ ! -f $dir/zig/fetched || $(<"$dir/zig/fetched") != "$wanted" ]]; then
    rm -rf "$dir/zig"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip --disable-pip-version-check install --quiet --no-deps \
        --only-binary :all: --target "$dir/zig" "$wanted" >&2 || exit 3
    echo "$wanted" >"$dir/zig/fetched"
fi
mkdir -p "$dir/oldest"
cat >"$dir/oldest/$name" <<LINKER
#!/bin/sh
case " \$* " in
*" -c "*) exec $dir/bin/$name "\$@" ;;
esac
exec $dir/zig/ziglang/zig cc -target aarch64-linux-gnu.2.27 "\$@"
LINKER
chmod +x "$dir/oldest/$name"
echo "$dir/oldest"
