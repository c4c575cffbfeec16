#!/usr/bin/env bash
# Build the folder that checks the CUDA worker on a real GPU: .local/gpu-check, and .local/gpu-check.tar.xz. It needs an NVIDIA
# driver and nothing else; see run.sh there. `build.sh DIR` builds it in DIR and packs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.local/gpu-check}
model=.local/models/SmolLM2-135M-Instruct-FP8
[ -f "$model/config.json" ] || { echo "$model is missing: run \`make model\` first" >&2; exit 1; }
tests/gpu-emulator/toolchain.sh
names=(product layer attention candidates backend)
# What was compiled of the same kernels before stays.
[ -d "$out" ] && find "$out" -mindepth 1 -maxdepth 1 ! -name kernels -exec rm -rf {} +
mkdir -p "$out/tests" "$out/kernels"
# The programs' tests, and with them the program of the check. Out of the whole workspace, so that crates from outside are those of all other tests.
cargo test --locked --release --no-run --message-format=json --workspace "${names[@]/#/--test=}" |
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
tests/gpu-check/cut.py "$model" "$out/smollm2" 2 8192
nvrtc=$(echo .local/venv-nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)
LLAMERO_GPU_CHECK="$out" LD_LIBRARY_PATH="$nvrtc" "$out/gpu-check" compile
chmod -R a+rX "$out"
[ $# -eq 0 ] || exit 0
tar -C .local -cJf "$out.tar.xz" gpu-check
size=$(stat -c %s "$out.tar.xz")
echo "$out: $((size >> 20)) MiB packed"
[ "$size" -le $((45 << 20)) ] || { echo "more than 45 MiB: leave something out" >&2; exit 1; }
