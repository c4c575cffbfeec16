#!/usr/bin/env bash
# Bash, since others drop variables of cargo whose names hold a dash.
# Compiles without the machine's paths: generated code lies where the checkout's build is, dependencies where cargo keeps them, and messages of panics would
# tell both. So two checkouts make the same program.
rustc=$1
shift
[ -z "${OUT_DIR:-}" ] || set -- "$@" --remap-path-prefix="$OUT_DIR=/out"
exec "$rustc" "$@" --remap-path-prefix="${0%/.cargo/rustc.sh}=/llamero" --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
