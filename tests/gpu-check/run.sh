#!/usr/bin/env bash
# Check the CUDA worker on this machine's first GPU: `./run.sh`, or `./run.sh STAGE…`. Each stage prints its results at once, and
# one that fails does not stop the next. Results: results.jsonl and results.txt.
set -uo pipefail
cd "$(dirname "$0")"
export LLAMERO_GPU_CHECK=$PWD
# PyTorch's own compiler, should the GPU be none of those whose machine code is in kernels/.
mkdir -p lib
nvrtc=$(python3 - <<'PYTHON' 2>/dev/null
import glob, site, sys
folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
found = [path for folder in folders for path in glob.glob(folder + "/nvidia/**/libnvrtc.so*", recursive=True)]
print(found[0] if found else "")
PYTHON
)
[ -n "$nvrtc" ] && ln -sf "$nvrtc" lib/libnvrtc.so && ln -sf "$nvrtc" "lib/$(basename "$nvrtc")"
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/lib${nvrtc:+:$(dirname "$nvrtc")}:/usr/local/nvidia/lib64:/usr/local/cuda/compat"
[ $# -gt 0 ] && stages=("$@") || mapfile -t stages < <(./gpu-check)
: > results.jsonl
failed=0
exec > >(tee results.txt) 2>&1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,ecc.mode.current,power.limit --format=csv 2>/dev/null
for stage in "${stages[@]}"; do
  start=$(date +%s)
  echo "== $stage"
  timeout 150 ./gpu-check "$stage" || { echo "  $stage FAILED ($?)"; failed=1; }
  echo "  ($(($(date +%s) - start)) s)"
done
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    echo "== compute-sanitizer $tool"
    for test in product:fp8_products_of_small_leaves layer:adds_roots_and_norms attention:three_heads_share_one_of_64 candidates:candidates_are_the_engines; do
      LLAMERO_GPU_EMULATOR_TEST=${test#*:} LLAMERO_GPU_CHECK_KERNELS=$PWD/kernels timeout 60 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "tests/${test%%:*}" "${test#*:}" --exact 2>&1 | tail -1
    done
  done
fi
exit $failed
