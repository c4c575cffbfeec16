#!/usr/bin/env bash
# NVIDIA's run-time compiler, pinned, from its wheel: compiles CUDA C++ to PTX without a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/venv.sh nvrtc
