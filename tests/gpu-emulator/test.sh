#!/usr/bin/env bash
# Test the emulator, and the CUDA worker and its check on it. Arguments go to cargo test.
#
# Everything else in the workspace is linked statically; programs that load a driver at run time cannot be.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/gpu-emulator/toolchain.sh
export RUSTC_WORKSPACE_WRAPPER="$PWD/tests/gpu-emulator/rustc-dynamic.sh"
cargo test --locked --release -p llamero-gpu-emulator -p llamero-cuda -p llamero-gpu-check "$@"
# Selected out of the whole workspace, so that crates from outside are those that the other tests were built with.
exec cargo test --locked --release --workspace --test cuda "$@"
