#!/usr/bin/env bash
# Fail where one of the names is no test, so that no list of tests to skip outlives them:
# cross/are_tests.sh SCRIPT NAME..., SCRIPT being whose list it is.
set -euo pipefail

cd "$(dirname "$0")/.."
for name in "${@:2}"; do
    grep -rqE "fn $name\b" src tests tools || {
        echo "$1 skips $name, which is no test" >&2
        exit 1
    }
done
