#!/usr/bin/env bash
# Cut SmolLM2 as cut.py does, with a tokenizer and a chat template that is nothing but the messages: the usual one has words that the cut
# model does not know. `cut-to-chat.sh TO LAYERS IDS`. Needs `make model`.
set -euo pipefail
cd "$(dirname "$0")/../.."
source=.local/models/SmolLM2-135M-Instruct-FP8
[ -f "$source/config.json" ] || { echo "$source is missing: run \`make model\` first" >&2; exit 1; }
tests/gpu-check/cut.py "$source" "$1" "$2" "$3"
cp "$source"/{tokenizer,generation_config}.json "$1/"
python3 - "$source" "$1" <<'PYTHON'
import json, sys
with open(f"{sys.argv[1]}/tokenizer_config.json") as file:
    config = json.load(file)
config["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
with open(f"{sys.argv[2]}/tokenizer_config.json", "w") as file:
    json.dump(config, file)
PYTHON
