#!/usr/bin/env bash
# The tests of the emulator, and of the CUDA worker and its check on it. Arguments go to cargo test. `make test-unit` runs them with all others, and the unit
# tests of these crates besides.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/gpu-emulator/toolchain.sh
names=()
for file in tests/gpu-emulator/tests/*.rs worker/cuda/tests/*.rs tests/gpu-check/tests/*.rs; do names+=("--test=$(basename "$file" .rs)"); done
# Out of the whole workspace, so that crates from outside are those of all other tests.
exec cargo test --locked --release --workspace --test cuda "${names[@]}" "$@"
