#!/usr/bin/env bash
# What programs of this checkout are made of, as a CycloneDX file on standard output: `sbom.sh NAME CRATE...`. From Cargo.lock alone, so that the same
# checkout gives the same bytes. Needs no more than cargo and awk, which every image that builds Rust has.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
packages=()
for crate in "$@"; do packages+=(--package "$crate"); done

cargo tree --locked "${packages[@]}" --edges normal --prefix none --no-dedupe --format '{p}|{l}' | sort -u |
  awk -v name="$name" -v version="$version" '
    # Cargo.lock: the SHA-256 of each package, by name and version.
    FILENAME == "Cargo.lock" {
      if ($1 == "name") { gsub(/"/, "", $3); package = $3 }
      if ($1 == "version") { gsub(/"/, "", $3); release = $3 }
      if ($1 == "checksum") { gsub(/"/, "", $3); sum[package " " release] = $3 }
      next
    }
    # Between two crates that were asked for.
    $0 == "" { next }
    {
      split($0, parts, "|"); split(parts[1], words, " ")
      release = substr(words[2], 2); key = words[1] " " release
      if (key in seen) next
      seen[key] = 1
      purl = "pkg:cargo/" words[1] "@" release
      entry = "    {\"type\": \"library\", \"bom-ref\": \"" purl "\", \"name\": \"" words[1] "\", \"version\": \"" release "\", \"purl\": \"" purl "\""
      license = parts[2]; gsub(/\//, " OR ", license)
      if (license != "") entry = entry ", \"licenses\": [{\"expression\": \"" license "\"}]"
      if (key in sum) entry = entry ", \"hashes\": [{\"alg\": \"SHA-256\", \"content\": \"" sum[key] "\"}]"
      entries[++count] = entry "}"
    }
    END {
      print "{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.6\",\n  \"version\": 1,"
      print "  \"metadata\": {\"component\": {\"type\": \"application\", \"name\": \"" name "\", \"version\": \"" version "\"}},"
      print "  \"components\": ["
      for (i = 1; i <= count; i++) print entries[i] (i < count ? "," : "")
      print "  ]\n}"
    }' Cargo.lock -
