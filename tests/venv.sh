#!/usr/bin/env bash
# A pinned Python package in an environment of its own: `venv.sh NAME PACKAGE==VERSION` makes .local/venv-NAME, once.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.local/venv-$1
pin=$2
[ "$(cat "$venv/pin" 2>/dev/null)" = "$pin" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install -q "$pin"
echo "$pin" > "$venv/pin"
