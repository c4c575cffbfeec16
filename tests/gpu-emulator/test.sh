#!/usr/bin/env bash
# Test the emulator, and the CUDA worker and its check on it. Arguments go to cargo test.
#
# Everything else in the workspace is linked statically; programs that load a driver at run time cannot be.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/gpu-emulator/toolchain.sh
RUSTC_WORKSPACE_WRAPPER="$PWD/tests/gpu-emulator/rustc-dynamic.sh" exec cargo test --release \
  -p llamero-gpu-emulator -p llamero-cuda -p llamero-gpu-check "$@"
