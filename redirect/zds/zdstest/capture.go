package zdstest

import (
	"fmt"
	"os/exec"
	"strings"
)

// rules are those of Istio's CNI agent in a pod, DNS capture apart.
const rules = `*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -s PROBES -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d LOOPBACK -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d PROBES -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
`

// dnsRules are those for DNS capture, which come first.
const dnsRules = `*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
COMMIT
*nat
-I ISTIO_OUTPUT 1 ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-I ISTIO_OUTPUT 2 ! -d LOOPBACK -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
COMMIT
`

// CaptureDNS does the same for DNS capture, once Capture has been done.
func CaptureDNS(pod interface{ Do(func() error) error }) error {
	for tables, loopback := range map[string]string{"iptables-restore": "127.0.0.1/32", "ip6tables-restore": "::1/128"} {
		if err := run(pod, strings.ReplaceAll(dnsRules, "LOOPBACK", loopback), tables, "--noflush"); err != nil {
			return err
		}
	}
	return nil
}

func run(pod interface{ Do(func() error) error }, stdin string, args ...string) error {
	return pod.Do(func() error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, said)
		}
		return nil
	})
}

// Capture does in a pod what Istio's CNI agent does there, with both families.
func Capture(pod interface{ Do(func() error) error }) error {
	for _, f := range []struct{ tables, ip, probes, loopback string }{
		{"iptables-restore", "-4", "169.254.7.127/32", "127.0.0.1/32"},
		{"ip6tables-restore", "-6", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128", "::1/128"},
	} {
		for _, step := range []struct {
			stdin string
			args  []string
		}{
			{strings.NewReplacer("PROBES", f.probes, "LOOPBACK", f.loopback).Replace(rules), []string{f.tables, "--noflush"}},
			{"", []string{"ip", f.ip, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"}},
			{"", []string{"ip", f.ip, "route", "add", "local", "default", "dev", "lo", "table", "100"}},
		} {
			if err := run(pod, step.stdin, step.args...); err != nil {
				return err
			}
		}
	}
	return nil
}
