#!/usr/bin/env bash
# Check the CUDA worker on this machine's first GPU: `./run.sh`, or `./run.sh STAGE…`. Each stage prints its results at once, and
# one that fails does not stop the next. After LLAMERO_GPU_CHECK_SECONDS (350) no further stage begins. Results: results.jsonl,
# results.txt; the table of their figures: table.json, table.md.
set -uo pipefail
cd "$(dirname "$0")"
export LLAMERO_GPU_CHECK=$PWD
most=${LLAMERO_GPU_CHECK_SECONDS:-350}
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

# Of what is left, but never more than $1 seconds.
left() {
  local left=$((most - SECONDS))
  echo $((left < $1 ? left : $1))
}

run_stages() {
  local failed=0 stage start
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,ecc.mode.current,power.limit --format=csv 2>/dev/null
  for stage in "${stages[@]}"; do
    echo "== $stage"
    if [ "$(left 150)" -le 0 ]; then
      echo "  $stage LEFT OUT: $most s are over; \`./run.sh $stage\` runs it"
      failed=1
      continue
    fi
    start=$SECONDS
    timeout "$(left 150)" ./gpu-check "$stage" || { echo "  $stage FAILED ($?)"; failed=1; }
    echo "  ($((SECONDS - start)) s)"
  done
  sanitize || failed=1
  echo "== table"
  ./gpu-check table || failed=1
  return $failed
}

sanitize() {
  local failed=0 tool test
  command -v compute-sanitizer >/dev/null || return 0
  for tool in memcheck racecheck synccheck; do
    [ "$(left 60)" -gt 0 ] || continue
    echo "== compute-sanitizer $tool"
    for test in product:fp8_products_of_small_leaves layer:joins_roots_in_the_order_of_their_tree layer:adds_a_product_and_norms attention:three_heads_share_one_of_64 candidates:candidates_are_the_engines; do
      [ "$(left 60)" -gt 0 ] || continue
      LLAMERO_GPU_EMULATOR_TEST=${test#*:} LLAMERO_GPU_CHECK_KERNELS=$PWD/kernels timeout "$(left 60)" \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "tests/${test%%:*}" "${test#*:}" --exact 2>&1 | tail -1 || failed=1
    done
  done
  return $failed
}

: > results.jsonl
run_stages 2>&1 | tee results.txt
exit "${PIPESTATUS[0]}"
