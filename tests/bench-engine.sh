#!/usr/bin/env bash
# Decode and prefill speed of the FP8 and bf16 model beside the machine's own bounds, each measured in the same run; draws
# docs/engine-speed.svg. ROUNDS runs (default 3) of each are made in turn, and medians are drawn: machines are noisy.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release -q --workspace --bin llamero-worker
worker=$(ls "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-worker)
results=.local/bench-engine.jsonl
: > "$results"
for round in $(seq "${ROUNDS:-3}"); do
  for model in SmolLM2-135M-Instruct-FP8 SmolLM2-135M-Instruct; do
    for threads in 1 2; do
      echo "round $round: $model, $threads threads" >&2
      "$worker" bench ".local/models/$model" --threads "$threads" --json >> "$results"
    done
  done
done

tests/venv.sh plot
.local/venv-plot/bin/python tests/plot-engine.py "$results" docs/engine-speed.svg
