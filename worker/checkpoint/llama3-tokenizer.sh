#!/usr/bin/env bash
# Make the tokenizer of Llama 3.1 in the folder $1, if it is not there: Meta's file out of a pinned wheel, written as tokenizer.json.
set -euo pipefail
cd "$(dirname "$0")/../.."

models=$1
folder=$models/Llama-3.1-tokenizer
# 7 MB.
wheel=(llama-models==0.3.0 llama_models-0.3.0-py3-none-any.whl 7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f)

mkdir -p "$folder"
# Two builds at once must not trip over each other.
exec 9> "$folder/.lock"
flock 9
[[ ! -f $folder/tokenizer.json ]] || exit 0

scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
worker/checkpoint/wheel.sh "${wheel[@]}" "$scratch"
python3 worker/checkpoint/llama3_tokenizer.py "$scratch/unpacked/llama_models/llama3/tokenizer.model" "$folder/tokenizer.json"
mv "$scratch/unpacked/llama_models/llama3/tokenizer.model" "$folder/"
