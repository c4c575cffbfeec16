#!/usr/bin/env bash
# Two checkouts make the same images: builds the last commit in two clones of different names and compares the images' IDs. Takes two whole builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ids() { for tar in "$1"/.local/images/llamero{,-worker}.tar; do tar -xOf "$tar" manifest.json | sed 's/.*"Config":"\([^"]*\)".*/\1/'; done; }
for clone in one another-name; do
  git clone --quiet --local "$root" "$work/$clone"
  (unset CARGO_TARGET_DIR && cd "$work/$clone" && images/build.sh)
  # What tells where it was made would be made otherwise elsewhere.
  if told=$(grep --files-with-matches --fixed-strings -e "$work" -e "${CARGO_HOME:-$HOME/.cargo}" "$work/$clone"/.local/images/llamero{,-worker}.tar); then
    printf 'supply-chain: these images hold paths of this machine (is RUSTC_WRAPPER set, so that .cargo/rustc.sh is not used?):\n%s\n' "$told" >&2
    exit 1
  fi
  rm -rf "$work/$clone/.local/target"
done
one=$(ids "$work/one") other=$(ids "$work/another-name")
if [ "$one" != "$other" ]; then
  printf 'supply-chain: two checkouts make other images:\n%s\n%s\n' "$one" "$other" >&2
  exit 1
fi
printf 'supply-chain: two checkouts make the same images:\n%s\n' "$one"
