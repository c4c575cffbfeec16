#!/usr/bin/env bash
# Build the folder that checks the CUDA worker on a real GPU: .local/gpu-check, and .local/gpu-check.tar.xz. It needs an NVIDIA
# driver and nothing else; see run.sh there.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=.local/gpu-check
tests/gpu-emulator/toolchain.sh
export RUSTC_WORKSPACE_WRAPPER="$PWD/tests/gpu-emulator/rustc-dynamic.sh"
names=(product layer attention candidates backend)
rm -rf "$out"
mkdir -p "$out/tests" "$out/kernels"
# The programs' tests, and with them the program of the check.
cargo test --release --no-run --message-format=json -p llamero-gpu-emulator -p llamero-cuda -p llamero-gpu-check \
  "${names[@]/#/--test=}" |
  python3 -c '
import json, sys
for line in sys.stdin:
    item = json.loads(line)
    if item.get("executable"):
        print(item["target"]["kind"][0], item["target"]["name"], item["executable"])' > "$out/programs"
for name in "${names[@]}"; do
  program=$(awk -v name="$name" '$1 == "test" && $2 == name {print $3}' "$out/programs")
  strip -o "$out/tests/$name" "$program"
done
program=$(awk '$1 == "bin" && $2 == "gpu-check" {print $3}' "$out/programs" | head -1)
strip -o "$out/gpu-check" "$program"
rm "$out/programs"
cp tests/gpu-check/run.sh "$out/"
nvrtc=$(echo .local/venv-nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)
LLAMERO_GPU_CHECK="$out" LD_LIBRARY_PATH="$nvrtc" "$out/gpu-check" compile
chmod -R a+rX "$out"
tar -C .local -cJf "$out.tar.xz" gpu-check
size=$(stat -c %s "$out.tar.xz")
echo "$out: $((size >> 20)) MiB packed"
[ "$size" -le $((45 << 20)) ] || { echo "more than 45 MiB: leave something out" >&2; exit 1; }
