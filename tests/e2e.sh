#!/usr/bin/env bash
# End-to-end tests: the local cluster tests itself, then a fresh cluster gets the chart and every test of tests/tests/e2e runs in turn.
# Nothing is left running, also after a failure. Words after the script's name choose tests; those that need the image of the CUDA worker,
# which takes minutes to build, run where they are named (`gpus`), and with LLAMERO_LONG.
set -euo pipefail
cd "$(dirname "$0")/.."

down() { make --no-print-directory cluster-down || true; }
trap down EXIT

extent=short
[ -z "${LLAMERO_LONG:-}" ] || extent=all
tests/clients/install.sh "$extent"
if [ $# -eq 0 ]; then
  cargo test --locked --release -q --workspace --features llamero-tests/cluster --test cluster
fi
make --no-print-directory cluster-up NODES=3
images/build.sh weights smollm2 .local/models/SmolLM2-135M-Instruct-FP8
.local/bin/llamero-cluster import-image .local/images/{llamero,llamero-worker,weights-smollm2}.tar
ignored=()
if [ -n "${LLAMERO_LONG:-}" ] || [[ " $* " == *gpus* ]]; then
  images/build.sh emulated
  tests/gpu-check/cut-to-chat.sh .local/smollm2-cut 2 8192
  images/build.sh weights cut .local/smollm2-cut
  .local/bin/llamero-cluster import-image .local/images/{worker-emulated,weights-cut}.tar
  ignored=(--include-ignored)
fi
tests/install.sh
cargo build --locked --release -q --workspace --bin kubectl-llamero --bin llamero-chaos --bin llamero-worker
cargo test --locked --release --workspace --features llamero-tests/cluster --test e2e -- --test-threads=1 "${ignored[@]}" "$@"
chaos=$(ls "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-chaos)
# A minute of faults that is always the same.
if [ $# -eq 0 ]; then
  "$chaos" --seed 11 --seconds 60 --tokens 16
fi
# What operator and gateway asked of the API server all the while is what their roles grant.
if [ $# -eq 0 ] && [ -n "${LLAMERO_LONG:-}" ]; then
  cargo test --locked --release -q --workspace --features llamero-tests/cluster --test permissions
fi
# An hour of others, with certificates that are renewed all the time (tests/src/chaos/fault.rs).
if [ -n "${LLAMERO_LONG:-}" ]; then
  tests/install.sh --set security.certificateLife=30s
  .local/bin/kubectl --kubeconfig .local/cluster/kubeconfig -n llamero-system rollout restart deployment/llamero-gateway
  .local/bin/kubectl --kubeconfig .local/cluster/kubeconfig -n llamero-system rollout status deployment/llamero-gateway --timeout 3m
  "$chaos" --seed "$(date +%s)" --seconds 3600
fi
