#!/usr/bin/env bash
# Another checkout makes the same images: builds those of this one, and those of its last commit in a clone of another name, and compares the images' IDs.
# One of the two builds begins from nothing, so it takes half an hour on two cores. Nothing may be changed here and not committed: `--check` looks at that only.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
changed=$(git status --porcelain)
if [ -n "$changed" ]; then
  printf 'supply-chain: commit or put away what is changed here first, because a clone has only what is committed:\n%s\n' "$changed" >&2
  exit 2
fi
if [ "${1:-}" = --check ]; then exit; fi
commit=$(git rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ids() { for tar in "$1"/.local/images/llamero{,-worker}.tar; do tar -xOf "$tar" manifest.json | sed 's/.*"Config":"\([^"]*\)".*/\1/'; done; }
# What tells where it was made would be made otherwise elsewhere.
tells() {
  local told
  if told=$(grep --files-with-matches --fixed-strings -e "$1" -e "${CARGO_HOME:-$HOME/.cargo}" "$1"/.local/images/llamero{,-worker}.tar); then
    printf 'supply-chain: these images hold paths of this machine (is RUSTC_WRAPPER set, so that .cargo/rustc.sh is not used?):\n%s\n' "$told" >&2
    exit 1
  fi
}
images/build.sh
tells "$root"
if [ "$(git rev-parse HEAD)" != "$commit" ] || [ -n "$(git status --porcelain)" ]; then
  printf 'supply-chain: something was changed here while the images were built; begin again.\n' >&2
  exit 2
fi
clone=$work/another-name
git clone --quiet --local "$root" "$clone"
(unset CARGO_TARGET_DIR && cd "$clone" && images/build.sh)
tells "$clone"
one=$(ids "$root") other=$(ids "$clone")
if [ "$one" != "$other" ]; then
  printf 'supply-chain: two checkouts make other images:\n%s\n%s\n' "$one" "$other" >&2
  exit 1
fi
printf 'supply-chain: two checkouts make the same images:\n%s\n' "$one"
