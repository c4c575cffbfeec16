#!/usr/bin/env bash
# Is the engine slower than it was? `bench-against.sh REVISION` builds the worker of that revision beside this one, runs `bench` of both in turn
# (ROUNDS, default 5, of one and of two threads) on the FP8 model, and prints medians and ratios. For a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
revision=${1:?usage: bench-against.sh REVISION}
model=$PWD/.local/models/SmolLM2-135M-Instruct-FP8

old=.local/bench-against
rm -rf "$old/tree"
trap 'git worktree remove --force "$old/tree"' EXIT
git worktree add -q --detach "$old/tree" "$revision"
(cd "$old/tree" && CARGO_TARGET_DIR=../target cargo build --locked --release -q -p llamero-worker)
cargo build --locked --release -q --workspace --bin llamero-worker
cp "$old"/target/*-linux-*/release/llamero-worker "$old/before"
cp "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-worker "$old/now"

results=$old/results.jsonl
: > "$results"
for round in $(seq "${ROUNDS:-5}"); do
  for threads in 1 2; do
    for which in before now; do
      echo "round $round: $which, $threads thread(s)" >&2
      printf '{"which": "%s", "figures": %s}\n' "$which" \
        "$("$old/$which" bench "$model" --threads "$threads" --json | tr -d '\n')" >> "$results"
    done
  done
done

python3 - "$results" <<'PYTHON'
import json
import statistics
import sys

runs = [json.loads(line) for line in open(sys.argv[1])]
CASES = {
    "decode, 1 stream": lambda figures: figures["decode"]["tokensPerSecond"],
    "decode, 16 streams": lambda figures: figures["decodeBatch"]["tokensPerSecond"],
    "prefill of 512": lambda figures: figures["prefill"]["tokensPerSecond"],
}
print("tokens/s, medians          threads   before      now    ratio")
for threads in (1, 2):
    for name, of in CASES.items():
        before, now = (
            statistics.median(of(r["figures"]) for r in runs if r["which"] == which and r["figures"]["threads"] == threads)
            for which in ("before", "now")
        )
        print(f"{name:26} {threads:7} {before:8.1f} {now:8.1f} {now / before:8.3f}")
PYTHON
