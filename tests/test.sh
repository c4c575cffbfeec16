#!/usr/bin/env bash
# The tests, in stages: `test.sh` runs lint, unit and cluster; a stage's name runs that one; `long` runs every combination. `gpu` runs those of the
# unit tests that use the emulated driver.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m (%s s)\n' "$*" "$SECONDS"; }

prepare() {
  say "Packages, models"
  tests/cluster/install-debian.sh
  make --no-print-directory model
}

lint() {
  say "Formatting"
  cargo fmt --all --check
  say "Generated files"
  make --no-print-directory cluster-build
  tests/generate.sh --check
  .local/bin/helm lint --quiet --strict charts/llamero
  say "Supply chain"
  tests/supply-chain/check.sh
}

clippy() {
  exec cargo clippy --locked --workspace --all-targets --all-features --release -q -- -D warnings
}

# Clusters mostly wait, so that their tests leave time for clippy; in a folder of its own, since cargo locks it.
cluster_beside_clippy() {
  mkdir -p .local
  CARGO_TARGET_DIR=.local/target/clippy chrt --idle 0 tests/test.sh clippy > .local/clippy.log 2>&1 &
  local clippy=$!
  trap "kill $clippy 2> /dev/null || true" EXIT
  cluster
  say "Clippy"
  wait "$clippy" || { cat .local/clippy.log; exit 1; }
  trap - EXIT
}

unit() {
  # The S3 server of the tests is among the cluster's programs, the gateway's answers are held beside the types of OpenAI's package and read by it and
  # Anthropic's, and NVIDIA's compiler makes the kernels that run on the emulated driver.
  make --no-print-directory cluster-build
  tests/clients/install.sh sdk
  tests/gpu-emulator/toolchain.sh
  say "Unit, property and real-model tests"
  cargo test --locked --workspace --release --no-fail-fast "$@"
}

gpu() {
  say "The CUDA worker on an emulated driver"
  tests/gpu-emulator/test.sh
}

cluster() {
  say "End-to-end tests on a real cluster"
  make --no-print-directory cluster-build images
  tests/e2e.sh "$@"
}

case "${1:-all}" in
  lint) prepare; lint; say "Clippy"; clippy ;;
  clippy) clippy ;;
  unit) prepare; unit ;;
  gpu) gpu ;;
  cluster) prepare; cluster ;;
  long)
    prepare
    # The chat page is tested in a browser, streams behind a proxy.
    tests/cluster/install-debian.sh chromium nginx-light
    # Among the ignored ones: exact_streams kills the leader of twelve kinds of answers at every token.
    LLAMERO_FUZZ_SECONDS=60 LLAMERO_FUZZ_CASES=4000 PROPTEST_CASES=4096 unit -- --include-ignored
    say "2,000 streams through the gateway"
    tests/load-gateway.sh 600 2000 "$(date +%s)"
    tests/supply-chain/check.sh --advisories
    tests/supply-chain/reproduce.sh
    LLAMERO_LONG=1 cluster
    ;;
  all) prepare; lint; unit; cluster_beside_clippy; say "All tests passed" ;;
  *) echo "usage: test.sh [lint|clippy|unit|gpu|cluster|long]" >&2; exit 2 ;;
esac
