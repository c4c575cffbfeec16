#!/usr/bin/env bash
# The tests, in stages: `test.sh` builds all, then runs lint, unit, clippy and cluster, the last three side by side; a stage's name runs that one;
# `long` runs every combination. `gpu` runs those of the unit tests that use the emulated driver.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m (%s s)\n' "$*" "$SECONDS"; }

prepare() {
  say "Packages, models"
  tests/cluster/install-debian.sh
  make --no-print-directory model
}

# What is fetched, and Kubernetes, which is built with Go: beside Rust's compiler, since this mostly waits for the network and for linkers. It takes no lock
# of cargo's.
fetch() {
  .local/bin/llamero-cluster build
  images/build.sh pause
  images/build.sh toolbox
  tests/gpu-emulator/toolchain.sh
  tests/supply-chain/tools.sh
  tests/clients/install.sh short
}

# Everything that the stages below need, so that none of them compiles anything but clippy.
build() {
  say "Packages"
  tests/cluster/install-debian.sh
  say "Build, and beside it Kubernetes and packages"
  make --no-print-directory cluster-program
  begin fetch tests/test.sh fetch
  cargo test --locked --workspace --release --no-run
  cargo test --locked --workspace --release --no-run -q --features llamero-tests/cluster --test cluster --test e2e
  cargo build --locked --workspace --release -q --bins
  say "Models, images, what is left of Kubernetes and packages"
  make --no-print-directory model
  end fetch
  make --no-print-directory images
  tests/supply-chain/images.sh
}

format() {
  say "Formatting"
  cargo fmt --all --check
}

lint() {
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
  tests/supply-chain/images.sh
  tests/e2e.sh "$@"
}

# Clusters mostly wait, so that their tests leave time for the others. Clippy has a folder of its own, since cargo locks it.
side_by_side() {
  begin unit tests/test.sh unit
  begin clippy env CARGO_TARGET_DIR=.local/target/clippy tests/test.sh clippy
  say "End-to-end tests on a real cluster, beside unit tests and clippy (.local/unit.log, .local/clippy.log)"
  local failed=0
  tests/e2e.sh || failed=1
  end clippy || failed=1
  end unit || failed=1
  return $failed
}

# begin NAME COMMAND…: runs it beside what follows, with its output in .local/NAME.log. Whatever ends this script ends it.
declare -A running=()
begin() {
  local name=$1
  shift
  mkdir -p .local
  setsid "$@" > ".local/$name.log" 2>&1 &
  running[$name]=$!
}

# end NAME: waits for it, and says what it said; fails where it failed.
end() {
  local failed=0
  wait "${running[$1]}" || failed=$?
  unset "running[$1]"
  say "$1, which ran beside this"
  if [ "$1" != unit ] || [ $failed -ne 0 ]; then cat ".local/$1.log"; else grep '^test result' .local/unit.log; fi
  return $failed
}

stop() {
  local group
  for group in "${running[@]}"; do kill -- "-$group" 2> /dev/null || true; done
}
trap stop EXIT

case "${1:-all}" in
  lint) prepare; format; lint; say "Clippy"; clippy ;;
  clippy) clippy ;;
  unit) prepare; unit ;;
  gpu) gpu ;;
  cluster) prepare; cluster ;;
  long)
    # What is built twice at the end must be the same all the time, and all of it committed: that is said now, not after hours.
    tests/supply-chain/reproduce.sh --check
    prepare
    # The chat page is tested in a browser, streams behind a proxy.
    tests/cluster/install-debian.sh chromium nginx-light
    # Among the ignored ones: exact_streams kills the leader of twelve kinds of answers at every token.
    LLAMERO_FUZZ_SECONDS=60 LLAMERO_FUZZ_CASES=4000 PROPTEST_CASES=4096 unit -- --include-ignored
    say "2,000 streams through the gateway"
    tests/load-gateway.sh 600 2000 "$(date +%s)"
    tests/supply-chain/check.sh --advisories
    tests/supply-chain/sbom.sh
    LLAMERO_LONG=1 cluster
    tests/supply-chain/reproduce.sh
    ;;
  fetch) fetch ;;
  all) format; build; lint; side_by_side; say "All tests passed" ;;
  *) echo "usage: test.sh [lint|clippy|unit|gpu|cluster|long]" >&2; exit 2 ;;
esac
