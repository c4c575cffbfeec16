#!/usr/bin/env bash
# Installs the Debian packages that the local cluster and the images need, and those that are named besides; only those that are
# missing, and only then it needs root.
set -euo pipefail

packages=(
  binutils buildah busybox-static conntrack containernetworking-plugins curl gcc iproute2 jq libc6-dev
  libseccomp-dev make mount nftables pkg-config procps util-linux
  "$@"
)

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "This is no Debian: install what provides ${missing[*]} by hand." >&2
  exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
