#!/usr/bin/env bash
# Thousands of streams through the gateway for minutes, while leaders (mocks of the benchmark) are killed, clients go away and others read slowly:
# `load-gateway.sh SECONDS STREAMS SEED`. Prints what came of it as JSON; fails if a stream is lost or wrong, or memory grows.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release -q --workspace --example bench_gateway
bench=$(ls -d "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release)/examples/bench_gateway
ulimit -n "$(ulimit -Hn)" # as many connections as are allowed
RUST_LOG=off "$bench" soak "$1" "$2" "$3"
