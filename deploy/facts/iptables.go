package facts

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/rules"
	"github.com/tacit-mesh/tacit/xds/model"
)

// countRules counts the rules of a backend in this network namespace.
func countRules(ctx context.Context, backend string) int {
	n := 0
	for _, family := range []string{"iptables", "ip6tables"} {
		out, err := exec.CommandContext(ctx, family+"-"+backend+"-save").Output()
		if err != nil {
			continue
		}
		for line := range bytes.Lines(out) {
			if bytes.HasPrefix(line, []byte("-A ")) {
				n++
			}
		}
	}
	return n
}

// sample is a capture with rules of every kind.
func sample() rules.Config {
	some := model.PortSet{{First: 5432, Last: 5432}}
	return rules.Config{
		OutboundPort: protocol.OutboundPort, PlaintextPort: protocol.PlaintextPort, HBONEPort: protocol.HBONEPort,
		Mark: protocol.Mark, ConnMark: 0x111, Mask: 0xfff, Zone: 1,
		Probes: some, SkipInbound: some, SkipOutbound: some,
	}
}

// tryRules puts the rules of a capture into a network namespace that is made for
// it and ends with it.
func tryRules(ctx context.Context, backend string, ipv6 bool) error {
	families := map[rules.Family]string{rules.IPv4: "iptables"}
	if ipv6 {
		families[rules.IPv6] = "ip6tables"
	}
	done := make(chan error)
	go func() {
		// The thread is in another namespace from here on; it ends with this
		// goroutine, as it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		for family, name := range families {
			program := name + "-" + backend + "-restore"
			cmd := exec.CommandContext(ctx, program, "--noflush")
			cmd.Stdin = strings.NewReader(rules.Restore(sample().Tables(family), rules.Saved{}))
			if out, err := cmd.CombinedOutput(); err != nil {
				done <- fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
				return
			}
		}
		done <- nil
	}()
	return <-done
}
