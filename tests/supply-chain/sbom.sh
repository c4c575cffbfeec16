#!/usr/bin/env bash
# What Llamero is made of, as CycloneDX files in .local/sbom: one of Cargo.lock (all programs), one of the Go modules that build the test cluster.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/supply-chain/tools.sh
out=.local/sbom work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
bom() { # bom NAME FILES...: of these files alone, so that nothing that only lies about gets in
  local name=$1; shift
  mkdir "$work/$name"
  cp --parents "$@" "$work/$name/"
  SYFT_CHECK_FOR_APP_UPDATE=false .local/venv-supply-chain/bin/syft scan "dir:$work/$name" -q \
    --source-name "$name" --source-version "$version" -o "cyclonedx-json=$out/$name.cdx.json"
  [ "$(jq '.components | length' "$out/$name.cdx.json")" -gt 0 ] || { echo "sbom.sh: $name has no components" >&2; exit 1; }
}
bom llamero Cargo.lock
bom llamero-test-cluster tests/cluster/*/go.mod tests/cluster/*/go.sum
# Every crate of the lock file must stand there.
missing=$(comm -23 <(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.lock | sort -u) <(jq -r '.components[].name' "$out/llamero.cdx.json" | sort -u))
[ -z "$missing" ] || { echo "sbom.sh: not in the bill of materials:" $missing >&2; exit 1; }
ls -l "$out"
