#!/usr/bin/env bash
# Writes what is generated: CRDs, the chart's copy, the page about them, and the kustomize base (the chart rendered with its defaults). `--check` only compares.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release -q --workspace --bin llamero-crdgen
crdgen() { "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/llamero-crdgen "$@"; }
render() {
  echo "# Generated from charts/llamero by \`make generate\`; do not edit."
  .local/bin/helm template llamero charts/llamero --namespace llamero-system --set networkPolicy.enabled=true |
    sed -e '/helm.sh\/chart/d' -e 's/managed-by: Helm/managed-by: kustomize/'
}
case "${1:-}" in
  --check)
    crdgen --check
    diff -u manifests/base/llamero.yaml <(render) || { echo "manifests/base/llamero.yaml is stale: run 'make generate'" >&2; exit 1; }
    ;;
  "") crdgen; render > manifests/base/llamero.yaml ;;
  *) echo "usage: generate.sh [--check]" >&2; exit 2 ;;
esac
