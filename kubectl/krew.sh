#!/usr/bin/env bash
# Packs the plugin and writes a Krew manifest for it: krew.sh VERSION URL, where URL is the address that the archive will have.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# == 2 && $1 == v* ]] || { echo "usage: krew.sh vMAJOR.MINOR.PATCH URL-OF-THE-ARCHIVE" >&2; exit 2; }
version=$1 url=$2 out=.local/krew
case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "krew.sh: no name for the architecture $(uname -m)" >&2; exit 1 ;;
esac
cargo build --release --locked -p kubectl-llamero
mkdir -p "$out"
cp "${CARGO_TARGET_DIR:-.local/target}"/*-linux-*/release/kubectl-llamero LICENSE "$out/"
# The same bytes from the same program, whenever and by whomever it is packed.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$out" -cf - kubectl-llamero LICENSE | gzip -n > "$out/llamero-$arch.tar.gz"
sha256=$(sha256sum "$out/llamero-$arch.tar.gz" | cut -d ' ' -f 1)
sed -e "s|@VERSION@|$version|" -e "s|@URL@|$url|" -e "s|@ARCH@|$arch|" -e "s|@SHA256@|$sha256|" kubectl/krew.yaml.in > "$out/llamero.yaml"
echo "$out/llamero.yaml names $out/llamero-$arch.tar.gz at $url"
