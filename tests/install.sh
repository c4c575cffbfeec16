#!/usr/bin/env bash
# Installs Llamero from the chart into the local cluster, where tenants may read the converted models from the nodes, and a namespace `demo` that enforces the restricted Pod Security
# Standard and has the converted models on a claim `weights`. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
export KUBECONFIG=$PWD/.local/cluster/kubeconfig
bin=$PWD/.local/bin
kubectl() { "$bin/kubectl" "$@"; }

for namespace in llamero-system demo; do
  kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  kubectl label --overwrite namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
done
kubectl apply --server-side -k crds >/dev/null
"$bin/helm" upgrade --install llamero charts/llamero --namespace llamero-system --set "tenants.hostPaths={$PWD/.local/models}" --set "networkPolicy.apiServerPorts={443,16443}" --wait --timeout 5m "$@" >/dev/null

# All nodes of the local cluster share one file system, so a hostPath volume is ReadOnlyMany in fact.
kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: demo-weights}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadOnlyMany]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  hostPath: {path: $PWD/.local/models, type: Directory}
  claimRef: {namespace: demo, name: weights}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: weights, namespace: demo}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  volumeName: demo-weights
  resources: {requests: {storage: 1Gi}}
YAML
