#!/usr/bin/env bash
# The main job, shown: a real cluster, a model sharded over two nodes, a streamed answer that survives a killed rank.
set -euo pipefail
cd "$(dirname "$0")/.."
export KUBECONFIG=$PWD/.local/cluster/kubeconfig
kubectl() { .local/bin/kubectl "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "Packages, model and binaries (slow only the first time)"
tests/cluster/install-debian.sh
make --no-print-directory cluster-build model images

say "Three nodes"
make --no-print-directory cluster-up NODES=3
.local/bin/llamero-cluster import-image .local/images/llamero.tar .local/images/llamero-worker.tar

say "helm install llamero charts/llamero"
tests/install.sh

say "kubectl apply -f manifests/samples/smollm2-claim.yaml"
kubectl -n demo delete llamadeployment smollm2 --ignore-not-found --wait >/dev/null
kubectl -n demo apply -f manifests/samples/smollm2-claim.yaml
.local/bin/kubectl -n demo get llamadeployments -w & # not the function: its process id would be that of a subshell
watch=$!
trap 'kill $watch 2>/dev/null || true' EXIT
kubectl -n demo wait --for=condition=Ready llamadeployment/smollm2 --timeout=120s >/dev/null
kill $watch; wait $watch 2>/dev/null || true
kubectl -n demo get pods -o wide

gateway=$(kubectl -n llamero-system get pods -l app.kubernetes.io/name=llamero-gateway -o jsonpath='{.items[0].status.podIP}'):8000
ask() { # ask PROMPT: stream the answer's text
  curl -sSN "http://$gateway/v1/chat/completions" -H 'content-type: application/json' \
    -d "{\"model\": \"smollm2\", \"stream\": true, \"temperature\": 0, \"max_tokens\": 160, \"messages\": [{\"role\": \"user\", \"content\": \"$1\"}]}" |
    sed -un 's/^data: \({.*\)/\1/p' | jq --unbuffered -rj '.choices[0].delta.content // empty'
}
question="Tell me how llamas carry loads over mountains."

say "A chat answer, undisturbed"
ask "$question" | tee .local/demo-answer

say "The same again; one rank is killed (SIGKILL) in the middle of it"
follower=$(kubectl -n demo get pods -l llamero.dev/deployment=smollm2,llamero.dev/role=member --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}')
ask "$question" > .local/demo-answer-again &
stream=$!
tail -f -n +1 --pid=$stream .local/demo-answer-again &
until [ "$(wc -c < .local/demo-answer-again)" -gt 150 ]; do sleep 0.02; done
.local/bin/llamero-cluster kill "demo/$follower" --process 'worker rank'
printf '\033[31m[killed the rank of %s]\033[0m' "$follower"
wait $stream
wait
echo
if cmp -s .local/demo-answer .local/demo-answer-again; then
  say "The stream went on: both answers are the same, byte for byte"
else
  say "The answers differ:"; diff .local/demo-answer .local/demo-answer-again || true; exit 1
fi
kubectl -n demo get llamadeployments

cat <<TRY

The cluster is still running. Try:
  export KUBECONFIG=$KUBECONFIG PATH=$PWD/.local/bin:\$PATH
  kubectl -n demo get llamadeployments,llamagroups,pods -o wide
  kubectl -n demo scale llamadeployment smollm2 --replicas 2
  curl http://$gateway/v1/chat/completions -H 'content-type: application/json' -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'
Stop it with: make demo-down
TRY
