#!/usr/bin/env bash
# Fetch the Python packages that clients of hermesd are tested with, or those of another list:
# tools/fetch_clients.sh [DIR [LIST]]
# Default: ${CARGO_TARGET_DIR:-target}/python (185 MB there). They are put into that folder alone,
# for this machine's python3, which needs pip; what is there already is left alone.
set -euo pipefail

cd "$(dirname "$0")/.."
dir=${1:-${CARGO_TARGET_DIR:-target}/python}
list=${2:-tests/python/requirements.txt}

wanted=$(python3 --version && cat "$list")
if [[ -f $dir/fetched && $(<"$dir/fetched") == "$wanted" ]]; then
    echo "Python's packages are in $dir"
    exit
fi
mkdir -p "$(dirname "$dir")"
tmp=$(mktemp -d "$dir.fetch-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "fetching Python's packages"
# The list is complete: nothing is to be resolved, nor compared with what the system has.
PIP_ROOT_USER_ACTION=ignore python3 -m pip --disable-pip-version-check install --quiet --no-deps \
    --only-binary :all: --target "$tmp" --requirement "$list"
printf '%s\n' "$wanted" >"$tmp/fetched"
chmod 755 "$tmp"
rm -rf "$dir"
mv "$tmp" "$dir"
echo "Python's packages are in $dir"
