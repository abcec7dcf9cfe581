#!/usr/bin/env bash
# next.sh DIR builds Tacit's programs into DIR as a later version might be: with
# a newer hand-over protocol, a newer extension of policies and one that this
# version has never heard of. Beside them, this version is the older one.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$1
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
overlay=()

# change FILE PATTERN REPLACEMENT: in what is built, not in the file.
change() {
  local copy=$sources/${1//\//-}
  sed "s/$2/$3/" "$1" >"$copy"
  ! cmp -s "$1" "$copy" || { echo "$0: $1 has no $2 any more" >&2; exit 1; }
  overlay+=("\"$PWD/$1\": \"$copy\"")
}
change redirect/handoff/protocol/protocol.go '^const Version = \([0-9]*\)$' 'const Version = \1 + 1'
change xds/wire/extensions.go 'httpExtension: \([0-9]*\)}' 'httpExtension: \1 + 1, "tacit.mesh\/next": 1}'
(IFS=, && echo "{\"Replace\": {${overlay[*]}}}") >"$sources/overlay.json"

CGO_ENABLED=0 go build -v -trimpath -ldflags '-s -w' -overlay "$sources/overlay.json" -o "$dir/" \
  ./cmd/tacitd ./cmd/tacit-agent ./cmd/tacit-cni ./cmd/tacit-proxy
