#!/usr/bin/env bash
# Bash, since others drop variables of cargo whose names hold a dash.
# Compiles without the machine's paths: generated code lies where the checkout's build is, dependencies where cargo keeps them, and messages of panics would
# tell both. So two checkouts make the same program.
rustc=$1
shift
# A program that loads an NVIDIA driver cannot be static. Libraries are the same in both kinds of programs and are compiled once.
case "${CARGO_PKG_NAME:-}/${CARGO_BIN_NAME:-${CARGO_CRATE_NAME:-}}" in
  llamero-gpu-emulator/* | llamero-gpu-check/* | llamero-cuda/* | llamero-worker/cuda | llamero-worker/llamero-worker-cuda)
    set -- "${@/#target-feature=+crt-static/target-feature=-crt-static}"
    ;;
esac
[ -z "${OUT_DIR:-}" ] || set -- "$@" --remap-path-prefix="$OUT_DIR=/out"
exec "$rustc" "$@" --remap-path-prefix="${0%/.cargo/rustc.sh}=/llamero" --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
