#!/usr/bin/env bash
# with-tools.sh WHAT COMMAND [ARGUMENT...] runs a command with everything that
# it needs: packages of Debian or Ubuntu that are missing are installed, and
# "go" is one that is new enough for go.mod.
#
# WHAT is build, test, demo, e2e or perf.
set -euo pipefail
cd "$(dirname "$0")/.."

say() {
  if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then printf '\033[2m» %s\033[0m\n' "$*" >&2; else printf '» %s\n' "$*" >&2; fi
}
die() { printf 'with-tools: %s\n' "$*" >&2; exit 1; }

# have PROGRAM: also where daemons and PostgreSQL's tools are kept.
have() {
  local PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

# Each line: a program and the package that brings it.
needed() {
  case $1 in build) return ;; esac
  echo "iptables iptables
ip iproute2
conntrack conntrack"
  case $1 in
    test) echo "gcc gcc
dig bind9-dnsutils
dnsmasq dnsmasq-base
haproxy haproxy
h2load nghttp2-client
pip3 python3-pip
curl curl
/usr/lib/cni/bridge containernetworking-plugins
redis-server redis-server
redis-cli redis-tools
initdb postgresql
pgbench postgresql-contrib
nginx nginx
buildah buildah
prometheus prometheus
promtool prometheus"
      # Ubuntu's is a snap, which containers cannot install.
      (. /etc/os-release && [ "${ID:-}" = debian ]) && echo "chromium-headless-shell chromium-headless-shell"
      return 0 ;;
    demo) echo "curl curl
ss iproute2
nginx nginx
redis-server redis-server
redis-benchmark redis-tools
initdb postgresql
pgbench postgresql-contrib" ;;
    e2e) echo "containerd containerd
runc runc
nft nftables
/usr/lib/cni/ptp containernetworking-plugins
redis-server redis-server
redis-benchmark redis-tools
initdb postgresql
pgbench postgresql-contrib
pip3 python3-pip" ;;
    perf) echo "haproxy haproxy
pip3 python3-pip
h2load nghttp2-client
redis-server redis-server
redis-benchmark redis-tools
initdb postgresql
pgbench postgresql-contrib" ;;
  esac
}

install() {
  [ $# -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "please install: $*"
  [ "$(id -u)" = 0 ] || die "installing needs root; missing packages: $*"
  say "installing $*"
  (
    # Debian's packages start their daemons; here they are only wanted as programs.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
      trap 'rm -f $policy' EXIT
      printf '#!/bin/sh\nexit 101\n' >$policy
      chmod 755 $policy
    fi
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2
  )
}

install_missing() {
  local program package missing=()
  while read -r program package; do
    [ -n "$program" ] && ! have "$program" && missing+=("$package")
  done < <(needed "$1")
  install ${missing[@]+"${missing[@]}"}
}

# newer_or_same A B: is version A at least B?
newer_or_same() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# use_go puts a Go that go.mod accepts into PATH.
use_go() {
  local want have_version dir
  want=$(awk '$1 == "go" {print $2}' go.mod)
  command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || install golang-go ca-certificates
  have_version=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
  have_version=${have_version#go}
  if newer_or_same "$have_version" "$want"; then
    return
  fi
  if newer_or_same "$have_version" 1.21; then # fetches what go.mod asks for by itself
    export GOTOOLCHAIN=auto
    return
  fi
  # An older Go cannot switch, but can fetch: toolchains are modules too, and
  # are verified as any other.
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/tacit
  mkdir -p "$cache"
  dir=$cache/go$want
  if [ ! -x "$dir/bin/go" ]; then
    say "Go $have_version is too old for this project, fetching Go $want (about 70 MB)"
    local module fetched
    module=golang.org/toolchain@v0.0.1-go$want.$(go env GOHOSTOS)-$(go env GOHOSTARCH)
    fetched=$(cd / && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
    [ -d "$fetched" ] || die "cannot fetch $module"
    make_toolchain "$fetched" "$dir"
  fi
  export PATH=$dir/bin:$PATH GOTOOLCHAIN=local
  unset GOROOT
}

# make_toolchain MODULE-DIR DIR: a module's files are neither executable nor
# may there be a go.mod in it. Put in place at once, as others may be waiting.
make_toolchain() {
  local new=$2.new$$
  cp -r --no-preserve=mode "$1" "$new"
  find "$new" -name _go.mod -execdir mv {} go.mod \;
  chmod -R a+x "$new/bin" "$new/pkg/tool"
  mv -T "$new" "$2" 2>/dev/null || rm -rf "$new"
}

[ $# -ge 2 ] || die "usage: $0 build|test|demo|e2e|perf COMMAND [ARGUMENT...]"
what=$1
shift
install_missing "$what"
use_go
export PATH=$PATH:/usr/sbin:/sbin
exec "$@"
