#!/usr/bin/env bash
# Check that each crate that is linked or built with offers a licence of deny.toml's list.
set -euo pipefail

cd "$(dirname "$0")/.."
allowed=$(sed -n '/^allow = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' deny.toml | sed 's/\./\\./g' | paste -sd'|')
failures=0
while IFS=$'\t' read -r crate licence; do
    [[ -n $crate ]] || continue
    # A licence is an expression: true where what is allowed is 1 and all else 0.
    sum=$(sed -E -e 's, ?/ ?, OR ,g' -e 's/ WITH [A-Za-z-]+//g' \
        -e "s/(^|[ (])($allowed)($|[ )])/\11\3/g" -e "s/(^|[ (])($allowed)($|[ )])/\11\3/g" \
        -e 's/ AND / \&\& /g' -e 's/ OR / || /g' -e 's/[A-Za-z][A-Za-z0-9.-]*/0/g' <<<"$licence")
    if [[ -z $licence ]] || (((sum) == 0)); then
        echo "$crate: licence \"$licence\" is none that deny.toml allows" >&2
        failures=$((failures + 1))
    fi
done < <(${CARGO:-cargo} tree --locked --target all --edges normal,build --prefix none \
    --format $'{p}\t{l}' | sed 's/ (\*)$//' | sort -u)
exit $((failures > 0))
