#!/usr/bin/env bash
# The fault suite on a fresh cluster: `chaos.sh SEED MINUTES`. Nothing is left running, also after a failure; the page lies in .local/chaos.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=$1 minutes=$2

down() { make --no-print-directory cluster-down || true; }
trap down EXIT

cargo build --locked --release -q --workspace --bin llamero-chaos
make --no-print-directory cluster-up images NODES=3
.local/bin/llamero-cluster import-image .local/images/{llamero,llamero-worker}.tar
# As tests/src/chaos/fault.rs has it.
tests/install.sh --set security.certificateLife=30s
"$(ls "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-chaos)" --seed "$seed" --seconds $((minutes * 60))
