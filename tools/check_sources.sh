#!/usr/bin/env bash
# Check what compilers and clippy do not: no file names a package registry's host or a path of one
# developer's machine, sources are ASCII, scripts parse.
set -euo pipefail

cd "$(dirname "$0")/.."
failures=0

complain() { # what, matches
    echo "$1:" >&2
    sed 's/^/    /' <<<"$2" >&2
    failures=$((failures + 1))
}

# A tarball without .git is checked as far as it can be.
if git rev-parse --git-dir >/dev/null 2>&1; then
    mapfile -t files < <(git ls-files --cached --others --exclude-standard)
else
    mapfile -t files < <(find . -path ./target -prune -o -path ./models -prune -o -type f -print)
fi
text=()
for file in "${files[@]}"; do
    case $file in
    *.npy | *.png | *.safetensors | *.gguf | *Cargo.lock) ;;
    *) [[ -f $file ]] && text+=("$file") ;;
    esac
done

# Hosts that may be named: licences, papers, conventions, this machine.
allowed='localhost|127\.0\.0\.1|(git-lfs\.)?github\.com|(www\.)?apache\.org|arxiv\.org|keepachangelog\.com|semver\.org|www\.w3\.org'
urls=$(grep -nEo 'https?://[A-Za-z0-9.-]+\.[A-Za-z]+[^ )">]*' "${text[@]}" |
    grep -vE "https?://($allowed)([/:]|$)" || true)
[[ -z $urls ]] || complain "hosts that are not on this check's list" "$urls"

registries='(crates|pypi|npmjs|pythonhosted|debian|deb\.|rustup|huggingface)[a-z.]*\.(io|org|com|rs|co)\b'
hosts=$(grep -nEo "\b$registries" "${text[@]}" |
    grep -v "^tools/check_sources\.sh:" || true)
[[ -z $hosts ]] || complain "package registries are named" "$hosts"

# The brackets keep this line from finding itself.
paths=$(grep -nE '(^|[^A-Za-z0-9_.])/(wor[k]|hom[e]|roo[t])/|\.\./share[d]/' "${text[@]}" || true)
[[ -z $paths ]] || complain "paths of one machine" "$paths"

foreign=$(grep -nP '[^\x00-\x7F]' "${text[@]}" || true)
[[ -z $foreign ]] || complain "not ASCII" "$foreign"

unknown=$(grep -nE '^source = ' Cargo.lock |
    grep -vF '"registry+https://github.com/rust-lang/crates.io-index"' || true)
[[ -z $unknown ]] || complain "Cargo.lock has crates from elsewhere" "$unknown"

for file in "${text[@]}"; do
    if [[ $file == *.sh || $file == .ci/run ]]; then
        bash -n "$file" || failures=$((failures + 1))
        [[ -x $file ]] || complain "not executable" "$file"
    fi
done
exit $((failures > 0))
