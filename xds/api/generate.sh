#!/bin/sh
# Regenerates the Go code of every .proto file, here and of the agent. Needs
# protoc and the well-known types (Debian: protobuf-compiler and
# libprotobuf-dev); the plugins are built from the versions in go.mod.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
cd "$root"
go build -o "$plugins" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$plugins:$PATH" protoc -I . \
	--go_out=. --go_opt=module=github.com/tacit-mesh/tacit \
	--go-grpc_out=. --go-grpc_opt=module=github.com/tacit-mesh/tacit \
	xds/api/*/*.proto redirect/*/protocol/*.proto
