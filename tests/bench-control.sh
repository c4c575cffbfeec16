#!/usr/bin/env bash
# The operator on a real API server and scheduler with KWOK's fake nodes; docs/benchmarks/control.md says what is measured.
# PODS (default 1000), NODES (100), FOREIGN (0) and DEPLOYMENTS (5) say how large; SOAK (10) how often a tenth goes up and down.
# A short check: PODS=200 NODES=20 SOAK=2 make bench-control. KEEP=1 adds the result to the history and draws it.
set -euo pipefail
cd "$(dirname "$0")/.."
pods=${PODS:-1000} nodes=${NODES:-100} foreign=${FOREIGN:-0} deployments=${DEPLOYMENTS:-5} soak=${SOAK:-10}
cluster=.local/bin/llamero-cluster
logs=.local/bench-control
mkdir -p "$logs"

cargo build --locked --release -q --workspace --bin llamero-operator --example bench_control
target=$(ls -d "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release)

running=()
finish() {
  for process in "${running[@]}"; do kill "$process" 2> /dev/null || true; done
  ip route del local 10.224.0.0/11 dev lo 2> /dev/null || true
  "$cluster" down
}
trap finish EXIT
"$cluster" build kwok
# Thousands of fake nodes renew their leases seldom, so that the API server has time for what is measured.
LLAMERO_NODE_GRACE=900s "$cluster" up --nodes 1
KUBECONFIG=$("$cluster" kubeconfig)
export KUBECONFIG
kubectl=.local/bin/kubectl
"$kubectl" apply --server-side -k crds
"$kubectl" create namespace llamero-system

# Every address of a fake pod is this machine's.
ip route add local 10.224.0.0/11 dev lo
.local/bin/kwok --kubeconfig "$KUBECONFIG" --manage-all-nodes=false --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake \
  --node-ip 10.255.255.254 --node-lease-duration-seconds 400 --config tests/cluster/kwok/stages.yaml > "$logs/kwok.log" 2>&1 &
running+=($!)
LLAMERO_LOG=${LLAMERO_LOG:-warn} "$target/llamero-operator" --identity bench --http-address 127.0.0.1:18089 \
  --allowed-host-paths /w --worker-image stand-in:1 > "$logs/operator.log" 2>&1 &
operator=$!
running+=("$operator")
until "$kubectl" -n llamero-system get lease llamero-operator > /dev/null 2>&1; do
  kill -0 "$operator" || { tail "$logs/operator.log" >&2; exit 1; }
  sleep 0.2
done
ulimit -n "$(ulimit -Hn)" # as many connections as are allowed
"$target/examples/bench_control" --pods "$pods" --nodes "$nodes" --foreign "$foreign" --deployments "$deployments" --soak "$soak" \
  --operator-pid "$operator" | tee "$logs/result.json"
if [[ -n ${KEEP:-} ]]; then
  cat "$logs/result.json" >> docs/benchmarks/control.jsonl
  tests/venv.sh plot
  .local/venv-plot/bin/python tests/plot-control.py docs/benchmarks/control.jsonl docs/benchmarks/control.svg
fi
