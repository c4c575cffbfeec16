#!/usr/bin/env bash
# The packages of the client suites into .local/clients, exactly those of the lock files, each by its hash: `install.sh short` those of
# `make test`, `install.sh all` all of them. Safe to repeat. `install.sh lock` makes the lock files from python/*.in and node/package.json.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p ../../.local/clients
place=$(realpath ../../.local/clients)

# A Python of at least this minor version: of the system, or of pyenv where that is used.
interpreter() {
  local found
  for found in python3 python3.1{3,2} "$(pyenv root 2>/dev/null)"/versions/3.1[2-9]*/bin/python3; do
    if "$found" -c "import sys; sys.exit(sys.version_info < (3, $1))" 2>/dev/null; then
      echo "$found"
      return
    fi
  done
  echo "There is no Python 3.$1 or newer: install one, for example Debian 13's python3 and python3-venv." >&2
  exit 1
}

# Packages of Python that go together; the major versions of OpenAI's package do not.
packages() {
  local lock=python/$1.txt venv=$place/$1
  cmp -s "$lock" "$venv/lock" && return
  rm -rf "$venv"
  "$(interpreter "$2")" -m venv "$venv"
  "$venv/bin/pip" install -q --no-deps --require-hashes --only-binary :all: -r "$lock"
  cp "$lock" "$venv/lock"
}

modules() {
  local lock=node/package-lock.json
  cmp -s "$lock" "$place/node/lock" && return
  command -v npm >/dev/null || ../cluster/install-debian.sh nodejs npm
  rm -rf "$place/node"
  mkdir "$place/node"
  cp node/package.json "$lock" "$place/node"
  (cd "$place/node" && npm ci --ignore-scripts --no-audit --no-fund --silent)
  cp "$lock" "$place/node/lock"
}

# Hashes of all files of a version, also those for other machines.
lock() {
  "$(interpreter 11)" -m venv "$place/lock"
  "$place/lock/bin/pip" install -q uv==0.13.9
  local set
  for set in sdk openai2 openai3 stack; do
    local python=3.11
    [ $set != stack ] || python=3.12
    "$place/lock/bin/uv" pip compile -q --universal --generate-hashes --python-version $python --no-header --no-annotate python/$set.in -o python/$set.txt
  done
  (cd node && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --silent)
}

case "${1:-}" in
  short) packages sdk 11; modules ;;
  all) packages sdk 11; packages openai3 11; packages openai2 11; packages stack 12; modules ;;
  lock) lock ;;
  *) echo "usage: install.sh short|all|lock" >&2; exit 2 ;;
esac
