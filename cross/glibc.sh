#!/usr/bin/env bash
# Print the newest version of the C library that programs need, and fail where that is above the
# limit: cross/glibc.sh LIMIT PROGRAM...
set -euo pipefail

limit=$1
shift
needed=$(readelf -VW "$@" | grep -oE 'GLIBC_[0-9.]+' | cut -d_ -f2 | sort -Vu | tail -n 1)
[[ -n $needed ]] || { echo "these need no C library: $*" >&2 && exit 1; }
echo "glibc $needed is needed, and $limit is there"
printf '%s\n' "$needed" "$limit" | sort -CV
