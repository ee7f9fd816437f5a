#!/usr/bin/env bash
# Check what programs need of the C library beyond that of JetPack 4 (glibc 2.27), the oldest of the
# boards': tools/check_symbols.sh PROGRAM...
# Fails where one needs a symbol that is newer and is not listed here. It is for programs that are
# linked with glibc 2.31 (cross/README.md): a newer one has newer versions of many of its symbols.
set -euo pipefail

limit=2.27
# Newer mathematics without the old handling of errors: linked with 2.28 or older, a program takes
# the versions of 2.17.
known="exp 2.29
exp2 2.29
log 2.29
log2 2.29
pow 2.29"

failures=0
for program in "$@"; do
    # Weak symbols may be missing: the standard library does without them.
    found=$(objdump -T "$program" | awk -v limit="$limit" '
        function number(version,   parts) { split(version, parts, "."); return parts[1] * 1000 + parts[2] }
        / \*UND\*/ && !/ w / && match($0, /GLIBC_[0-9.]+/) {
            version = substr($0, RSTART + 6, RLENGTH - 6)
            if (number(version) > number(limit)) print $NF, version
        }' | sort -u)
    while read -r needed; do
        if [[ -n $needed ]] && ! grep -qxF "$needed" <<<"$known"; then
            echo "$program: needs $needed, and glibc $limit has no such symbol" >&2
            failures=$((failures + 1))
        fi
    done <<<"$found"
done
((failures == 0)) && echo "nothing but ${known//$'\n'/, } is newer than glibc $limit"
exit $((failures > 0))
