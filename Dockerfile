# The images of the programs, one target each:
#
#   docker build --target tacit-proxy -t tacit-proxy:v1.2.3 --build-arg VERSION=v1.2.3 .
#
# What is in them is listed in deploy/images. The same sources give the same
# bytes: with SOURCE_DATE_EPOCH set, --output rewrite-timestamp=true, and the
# two base images given by digest (--build-arg GO_IMAGE=golang@sha256:...).
ARG GO_IMAGE=golang:1.26-trixie
ARG USERLAND_IMAGE=debian:trixie-slim

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# What the programs say that they are.
ARG VERSION=
ENV LDFLAGS="-s -w -buildid= -X github.com/tacit-mesh/tacit/internal/version.release=${VERSION}"
# What git says is left out: whether the tree has changes differs by who builds.
# gRPC's tracing makes the linker keep every method of everything.
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false -tags=grpcnotrace"
RUN go build -ldflags="$LDFLAGS" -o /out/ ./cmd/...
RUN go build -ldflags="$LDFLAGS" -tags inpod,grpcnotrace -o /out/inpod/ ./cmd/tacit

# No shell, no libc, no root: what parses bytes from the network has nothing.
FROM scratch AS tacit-proxy
COPY --from=build /out/tacit-proxy /out/inpod/tacit /usr/local/bin/
USER 13371:13371
ENTRYPOINT ["/usr/local/bin/tacit-proxy"]

FROM scratch AS tacitd
COPY --from=build /out/tacitd /usr/local/bin/
USER 13372:13372
ENTRYPOINT ["/usr/local/bin/tacitd"]

FROM scratch AS tacit
COPY --from=build /out/tacit /usr/local/bin/
USER 13372:13372
ENTRYPOINT ["/usr/local/bin/tacit"]

# iptables with both backends, nft, and the libraries that they load.
FROM ${USERLAND_IMAGE} AS userland
RUN apt-get update && apt-get install -y --no-install-recommends iptables nftables
COPY deploy/images/userland.sh /
RUN sh /userland.sh /userland

# Root, with the capabilities that its DaemonSet lists.
FROM scratch AS tacit-agent
COPY --from=userland /userland/ /
COPY --from=build /out/tacit-agent /out/tacit-cni /usr/local/bin/
USER 0:0
ENTRYPOINT ["/usr/local/bin/tacit-agent"]
