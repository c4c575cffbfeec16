#!/usr/bin/env bash
# The pinned programs of requirements.txt, in an environment of their own, once.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.local/venv-supply-chain pins=tests/supply-chain/requirements.txt
cmp -s "$pins" "$venv/pins" && exit 0
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install -q --require-hashes --no-deps -r "$pins"
cp "$pins" "$venv/pins"
