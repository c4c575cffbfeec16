#!/usr/bin/env bash
# A Python package with all that it needs, pinned by hash, in an environment of its own: `venv.sh NAME [PYTHON]` makes .local/venv-NAME from
# tests/requirements/NAME.txt, once, by this Python.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.local/venv-$1 pins=tests/requirements/$1.txt
cmp -s "$pins" "$venv/pins" && exit 0
rm -rf "$venv"
"${2:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --require-hashes --no-deps -r "$pins"
cp "$pins" "$venv/pins"
