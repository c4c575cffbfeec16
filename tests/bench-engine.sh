#!/usr/bin/env bash
# Decode and prefill speed of the FP8 and bf16 model beside the machine's own bounds, each measured in the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -q --workspace --bin llamero-worker
worker=$(ls .local/target/*/release/llamero-worker)
for model in SmolLM2-135M-Instruct-FP8 SmolLM2-135M-Instruct; do
  for threads in 1 2; do
    "$worker" bench ".local/models/$model" --threads "$threads"
  done
done
