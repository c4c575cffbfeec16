#!/usr/bin/env bash
# Our gateway and smg, one after the other in front of the same mock workers; docs/benchmarks/gateway.md says what is measured.
# SECONDS_EACH (8), RATE (3000 requests a second) and STREAMS (2000) say how much. A short check:
# SECONDS_EACH=2 RATE=300 STREAMS=200 make bench-gateway. KEEP=1 adds the result to the history and draws it.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-8} rate=${RATE:-3000} streams=${STREAMS:-2000}
logs=.local/bench-gateway
mkdir -p "$logs"
http=127.0.0.1:18110 grpc=127.0.0.1:18111 ours=127.0.0.1:18112 smg=127.0.0.1:18113

tests/venv.sh smg
cargo build --locked --release -q --workspace --example bench_gateway
bench=$(ls -d "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release)/examples/bench_gateway
ulimit -n "$(ulimit -Hn)" # as many connections as are allowed

running=()
finish() { for process in "${running[@]}"; do kill "$process" 2> /dev/null || true; done; }
trap finish EXIT

# A route that only a server which is ready answers.
wait_for() { # ADDRESS PROCESS LOG
  local body='{"model": "bench", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'
  for _ in $(seq 600); do
    curl -sf -o "$logs/answer.json" -H 'content-type: application/json' -d "$body" "http://$1/v1/chat/completions" && return
    kill -0 "$2" || break
    sleep 0.1
  done
  tail "$3" >&2
  exit 1
}

"$bench" mock "$http" "$grpc" > "$logs/mock.log" 2>&1 &
running+=($!)
wait_for "$http" $! "$logs/mock.log"

measure() { # NAME ADDRESS PROCESS
  "$bench" load "$2" "$http" "$3" "$seconds" "$rate" "$streams" > "$logs/$1.json"
}

"$bench" gateway "$ours" "$grpc" > "$logs/ours.log" 2>&1 &
gateway=$!
running+=("$gateway")
wait_for "$ours" "$gateway" "$logs/ours.log"
measure ours "$ours" "$gateway"
kill "$gateway"

.local/venv-smg/bin/smg launch --host 127.0.0.1 --port "${smg#*:}" --worker-urls "http://$http" --policy round_robin \
  --log-level warn --prometheus-port 18114 > "$logs/smg.log" 2>&1 &
router=$!
running+=("$router")
wait_for "$smg" "$router" "$logs/smg.log"
measure smg "$smg" "$router"

.local/venv-smg/bin/python - "$logs" "$seconds" "$streams" << 'PY' | tee "$logs/result.json"
import datetime
import json
import pathlib
import platform
import sys

logs, seconds, streams = sys.argv[1:]
read = lambda name: json.loads((pathlib.Path(logs) / f"{name}.json").read_text())
models = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
print(json.dumps({
    "date": datetime.date.today().isoformat(),
    "cpu": models[0].split(":")[1].strip() if models else platform.machine(),
    "cores": len(models),
    "seconds": int(seconds),
    "ours": read("ours"),
    "smg": read("smg"),
}))
PY
if [[ -n ${KEEP:-} ]]; then
  cat "$logs/result.json" >> docs/benchmarks/gateway.jsonl
  tests/venv.sh plot
  .local/venv-plot/bin/python tests/plot-gateway.py docs/benchmarks/gateway.jsonl docs/benchmarks/gateway.svg
fi
