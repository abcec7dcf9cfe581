package main

import (
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"
)

// podsIn is the namespace of pods that are named without one, as kubectl's -n; empty
// if all are named in full.
type podsIn string

func (n *podsIn) flags(f *pflag.FlagSet, alone string) {
	f.StringVarP((*string)(n), "namespace", "n", "", "`namespace` of pods that are named without one"+alone)
}

// pod is a pod's full name. Addresses have none.
func (n podsIn) pod(name string) string {
	_, err := netip.ParseAddr(name)
	if n == "" || name == "" || strings.Contains(name, "/") || err == nil {
		return name
	}
	return string(n) + "/" + name
}

// any is the end that is meant where a command names none: whatever is in the
// namespace.
func (n podsIn) any() string {
	if n == "" {
		return ""
	}
	return string(n) + "/"
}

// target is what a client in full connects to. A name without a namespace a client
// from there reads as its DNS does; a dot makes it a host anywhere.
func (n podsIn) target(client, to string) string {
	host, _, err := net.SplitHostPort(to)
	if n == "" || err != nil || strings.Contains(host, ".") || strings.HasPrefix(client, n.any()) || n.pod(host) == host {
		return to
	}
	return n.any() + to
}
