# The four programs, one image each:
#
#   docker build --target tacit-proxy -t tacit-proxy .
#
# All are static; only the agent needs a userland, for iptables.
ARG GO_VERSION=1.26

FROM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/ ./cmd/...

# No shell, no libc, no root: what parses bytes from the network has nothing.
FROM scratch AS tacit-proxy
COPY --from=build /out/tacit-proxy /out/tacit /usr/local/bin/
USER 15001:15001
ENTRYPOINT ["/usr/local/bin/tacit-proxy"]

FROM scratch AS tacitd
COPY --from=build /out/tacitd /usr/local/bin/
USER 15002:15002
ENTRYPOINT ["/usr/local/bin/tacitd"]

FROM scratch AS tacit
COPY --from=build /out/tacit /usr/local/bin/
USER 15002:15002
ENTRYPOINT ["/usr/local/bin/tacit"]

# Root, with the capabilities that its DaemonSet lists.
FROM debian:stable-slim AS tacit-agent
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables conntrack \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/tacit-agent /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/tacit-agent"]
