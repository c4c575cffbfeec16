#!/usr/bin/env bash
# The packages of the client suites, each pinned by hash: `install.sh short` those of `make test`, of which `install.sh sdk` those that the gateway's
# own tests need, `install.sh all` all of them. Safe to repeat.
# `install.sh lock` makes tests/requirements/clients-*.txt from python/*.in, and node/package-lock.json from node/package.json.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p ../../.local
local=$(realpath ../../.local)

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
  local python
  python=$(interpreter "$2")
  ../venv.sh "clients-$1" "$python"
}

modules() {
  local lock=node/package-lock.json place=$local/clients-node
  cmp -s "$lock" "$place/lock" && return
  command -v npm >/dev/null || ../cluster/install-debian.sh nodejs npm
  rm -rf "$place"
  mkdir "$place"
  cp node/package.json "$lock" "$place"
  (cd "$place" && npm ci --ignore-scripts --no-audit --no-fund --silent)
  cp "$lock" "$place/lock"
}

# What the requirements in a file come to, for this version of Python.
compile() {
  echo "# Made by: tests/clients/install.sh lock"
  "$local/venv-clients-lock/bin/uv" pip compile -q --universal --generate-hashes --python-version "$2" --no-header --no-annotate "$1"
}

# Hashes of all files of a version, also those for other machines.
lock() {
  local venv=$local/venv-clients-lock set minor
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --require-hashes --no-deps -r ../requirements/lock.txt
  for set in sdk openai2 openai3 stack; do
    minor=11
    [ $set != stack ] || minor=12
    compile python/$set.in 3.$minor > ../requirements/clients-$set.txt
  done
  (cd node && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --silent)
}

case "${1:-}" in
  sdk) packages sdk 11 ;;
  short) packages sdk 11; modules ;;
  all) packages sdk 11; packages openai3 11; packages openai2 11; packages stack 12; modules ;;
  lock) lock ;;
  *) echo "usage: install.sh sdk|short|all|lock" >&2; exit 2 ;;
esac
