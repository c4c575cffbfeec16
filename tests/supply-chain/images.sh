#!/usr/bin/env bash
# What is inside the built images (`make images`): programs of this checkout, and the bill of materials that its Cargo.lock makes. Nothing else but directories.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

look() { # look IMAGE PROGRAM...
  local image=$1 archive=.local/images/$1.tar layer files wanted
  shift
  [ -f "$archive" ] || { echo "images.sh: there is no $archive: run \`make images\`" >&2; exit 1; }
  mkdir -p "$work/$image/root"
  tar -xf "$archive" -C "$work/$image"
  for layer in $(jq -r '.[0].Layers[]' "$work/$image/manifest.json"); do
    tar -xf "$work/$image/$layer" -C "$work/$image/root"
  done
  files=$(cd "$work/$image/root" && find . ! -type d -printf '%P\n' | sort)
  wanted=$(printf '%s\n' "$@" sbom.cdx.json | sort)
  [ "$files" = "$wanted" ] || { printf 'images.sh: %s holds\n%s\nin place of\n%s\n' "$image" "$files" "$wanted" >&2; exit 1; }
  images/sbom.sh "$image" "$@" | diff - "$work/$image/root/sbom.cdx.json" >&2 ||
    { echo "images.sh: the bill of materials in $image is not that of this checkout: run \`make images\`" >&2; exit 1; }
}
look llamero llamero-operator llamero-gateway
look llamero-worker llamero-worker
