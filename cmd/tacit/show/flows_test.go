package show

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

func shopFlows() []flows.Flow {
	web := flows.Peer{Address: netip.MustParseAddrPort("198.18.1.1:40000"), Namespace: "shop", Pod: "web-1", Owner: "web"}
	api := flows.Peer{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Namespace: "shop", Pod: "api-1", Owner: "api"}
	outside := flows.Peer{Address: netip.MustParseAddrPort("192.0.2.1:443")}
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	return []flows.Flow{
		{Kind: "opened", Direction: "outbound", Time: noon, Began: noon, Source: web, Destination: api, Security: "mtls", Outcome: "ok", Weight: 1},
		{Kind: "ended", Direction: "outbound", Time: noon, Began: ago(1234 * time.Microsecond), Source: web, Destination: outside,
			Security: "passthrough", Why: flows.WhyServerOutside, Outcome: "reset", Error: "reset by \x1b[2Jpeer", Sent: 2048, Weight: 20},
		{Kind: "ended", Direction: "inbound", Time: noon, Began: ago(17 * time.Microsecond), ID: "4bf9", Source: outside, Destination: api,
			Security: "plain", Why: flows.WhyClientOutside, Outcome: "denied", Policy: "shop/strict", Reason: "denied",
			Error: "denied by policy shop/strict (matched: notPrincipals)", Weight: 1},
		{Kind: "ended", Direction: "outbound", Time: noon, Began: noon, ID: "5bf9", Source: web, Destination: api, Security: "mtls", Outcome: "denied",
			Policy: "shop/p", Reason: "denied", Weight: 1},
		{Kind: "request", Direction: "inbound", Time: noon, Began: ago(35 * time.Millisecond), Source: web, Destination: api, Security: "local",
			Service: "api.shop.svc.cluster.local", Outcome: "ok", HTTP: &flows.HTTP{Method: "GET", Host: "api", Path: "/\u202e\x07a", Status: 200}, Weight: 1},
		{Kind: "request", Direction: "inbound", Time: noon, Began: ago(35 * time.Second), Source: web, Destination: api, Security: "mtls",
			Outcome: "reset", HTTP: &flows.HTTP{Method: "GET", Host: "api", Path: "/"}, Weight: 1},
		{Kind: "live", Direction: "inbound", Time: noon, Began: ago(2 * time.Hour), Source: web, Destination: flows.Peer{}, Security: "mtls", Outcome: "ok", Weight: 1},
	}
}

func TestFlows(t *testing.T) {
	golden(t, "flows", func(p Printer) error { return p.Flows(shopFlows(), false) })
	golden(t, "flows-none", func(p Printer) error { return p.Flows(nil, true) })
	all := shopFlows()
	for i := range all {
		all[i].Node = []string{"node-a", "node-b\x1b[31m"}[i%2]
	}
	golden(t, "flows-nodes", func(p Printer) error { return p.Flows(all, true) })
	golden(t, "flows-tap", func(p Printer) error {
		for i, f := range all {
			if err := p.Flow(f, true, i == 0); err != nil {
				return err
			}
		}
		return p.Partial([]string{"node-c", "node-d\x07"}, 4)
	})
}

// Colours change nothing but the colours.
func TestFlowColors(t *testing.T) {
	var plain, colored bytes.Buffer
	for out, color := range map[*bytes.Buffer]bool{&plain: false, &colored: true} {
		p := Printer{Out: out, Now: noon, Color: color}
		if err := p.Flows(shopFlows(), false); err != nil {
			t.Fatal(err)
		}
		if err := p.Partial([]string{"node-c"}, 2); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(colored.String(), red+"denied") {
		t.Errorf("colours: %q, %q", plain.String(), colored.String())
	}
	text := colored.String()
	for _, sequence := range []string{bold, red, amber, green, reset} {
		text = strings.ReplaceAll(text, sequence, "")
	}
	if text != plain.String() {
		t.Errorf("without its colours:\n%q\nwant\n%q", text, plain.String())
	}
}
