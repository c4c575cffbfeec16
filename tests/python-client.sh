#!/usr/bin/env bash
# OpenAI's own Python client, pinned, for the test that streams a chat with it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.local/venv-openai
pin=openai==1.109.1
[ "$(cat $venv/pin 2>/dev/null)" = "$pin" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install -q "$pin"
echo "$pin" > "$venv/pin"
