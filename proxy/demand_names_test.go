package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A peer has the control plane asked for what its authority may mean, and for
// nothing by addresses that are the pod's own or nobody's.
func TestTargetNames(t *testing.T) {
	byAddress := model.Gateway{Network: "n1", Address: netip.MustParseAddr("198.19.0.7"), Port: 15008}
	whole, w := sandwich()
	s := whole.Apply(model.Update{
		OnDemand: true,
		Services: []*model.Service{
			{Name: "gated", Namespace: "web", Hostname: "gated.example", Waypoints: []model.WeightedGateway{{Gateway: byAddress}}, Addresses: []model.NetworkAddress{{Network: "n1", Prefix: netip.MustParsePrefix("198.19.0.5/32")}}},
		},
		Workloads: []*model.Workload{{UID: "d", Namespace: "shop", Network: "n1", Addresses: []netip.Addr{netip.MustParseAddr("198.18.2.3")}, Waypoint: &byAddress}},
	})
	for name, tt := range map[string]struct {
		authority, want string
		of              *model.Snapshot
		workload        *model.Workload
	}{
		"its own address":                 {"198.18.1.1:80", "", s, w},
		"its own, mapped to IPv6":         {"[::ffff:198.18.1.1]:80", "", s, w},
		"loopback":                        {"127.0.0.1:80", "", s, w},
		"link-local":                      {"169.254.169.254:80", "", s, w},
		"multicast":                       {"224.0.0.1:80", "", s, w},
		"a zone":                          {"[fd00::1%lo]:80", "", s, w},
		"no port":                         {"198.19.0.1", "", s, w},
		"another address":                 {"203.0.113.9:80", "n1/203.0.113.9", s, w},
		"behind a waypoint of a name":     {"198.19.0.1:80", "n1/198.19.0.1", s, w},
		"behind a waypoint of an address": {"198.19.0.5:80", "n1/198.19.0.5 n1/198.19.0.7", s, w},
		"a workload behind one":           {"198.18.2.3:80", "n1/198.18.2.3 n1/198.19.0.7", s, w},
		"a workload behind a named one":   {"198.18.2.1:80", "n1/198.18.2.1", s, w},
		"a service of the cluster":        {"shop.shop.svc.cluster.local:80", "shop/shop.shop.svc.cluster.local", s, w},
		"one that it serves":              {"shared.example:80", "infra/shared.example web/shared.example", s, w},
		"another name":                    {"gated.example:80", "n1/198.19.0.7", s, w},
		"no name":                         {"-/..:80", "", s, w},
		"a name with a slash":             {"a.b.svc.c/d:80", "", s, w},
		"a workload behind none":          {"198.18.2.2:80", "n1/198.18.2.2", s, w},
		"a number":                        {"1234:80", "", s, w},
		"in a mesh that is all there":     {"203.0.113.9:80", "", whole, w},
		"to a pod that is not known":      {"203.0.113.9:80", "", s, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := targetNames(tt.of, tt.workload, tt.authority, arrived4)
			slices.Sort(got)
			if text := strings.Join(slices.Compact(got), " "); text != tt.want {
				t.Errorf("asked for %q, want %q", text, tt.want)
			}
		})
	}
}

func TestHostNames(t *testing.T) {
	for host, want := range map[string]string{
		"198.18.0.1": "n1/198.18.0.1", "::ffff:198.18.0.1": "n1/198.18.0.1", "fd00::1": "n1/fd00::1",
		"authz.infra.svc.cluster.local": "infra/authz.infra.svc.cluster.local", "a.b.svc.other": "b/a.b.svc.other",
		"authz.infra.svc": "", "authz.infra": "", "authz": "", "authz.example.com": "", "a.b.pod.cluster.local": "", "": "",
	} {
		if got := hostName("n1", host); got != want {
			t.Errorf("%q is asked for as %q, want %q", host, got, want)
		}
	}
}

// A host that decisions ask for is held between them, for a while; and others
// are asked for each time when there are too many.
func TestHostsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		p, c := a.called(t)
		ask := func(host string) {
			t.Helper()
			a.Apply(model.Update{Heard: []string{"n1/" + host}})
			p.learnOf(t.Context(), c.pod, host)
		}
		ask("198.18.3.1")
		if got := a.names(); got != "n1/198.18.3.1" {
			t.Errorf("held after a question: %q", got)
		}
		<-time.After(keepHost - time.Second)
		ask("198.18.3.1")
		<-time.After(keepHost - time.Second)
		ask("198.18.3.2")
		if got := a.names(); got != "n1/198.18.3.1 n1/198.18.3.2" {
			t.Errorf("held while it is used: %q", got)
		}
		<-time.After(time.Second)
		ask("198.18.3.2")
		if got := a.names(); got != "n1/198.18.3.2" {
			t.Errorf("held of what is used no more: %q", got)
		}
		p.learnOf(t.Context(), c.pod, "authz.example.com")
		for i := range 2 * maxHosts {
			ask(fmt.Sprintf("198.18.%d.%d", 4+i/256, i%256))
		}
		if n := len(strings.Fields(a.names())); n != maxHosts {
			t.Errorf("%d are held, want %d", n, maxHosts)
		}
		a.full = true
		<-time.After(2 * keepHost)
		p.hosts.keep("n1/198.18.3.9", time.Now(), func() (func(), bool) { return p.Demand("n1/198.18.3.9") })
		if got := a.names(); got != "" {
			t.Errorf("held without room: %q", got)
		}
		p.end(c)
		p.Remove("uid", true)
	})
}

// Hosts are let go of without another question, as there may be no provider left
// to ask.
func TestHostsAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		p, c := a.called(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.reportProgress(ctx) }()
		a.Apply(model.Update{Heard: []string{"n1/198.18.3.1"}})
		p.learnOf(t.Context(), c.pod, "198.18.3.1")
		<-time.After(keepHost - time.Second)
		if got := a.names(); got != "n1/198.18.3.1" {
			t.Errorf("held within the time: %q", got)
		}
		<-time.After(time.Second + progressInterval)
		synctest.Wait()
		if got := a.names(); got != "" {
			t.Errorf("held after the time: %q", got)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		p.end(c)
		p.Remove("uid", true)
	})
}

// A host of which the control plane does not speak keeps a decision waiting for
// no longer than it may take.
func TestHostsThatNobodySpeaksOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		p, c := a.called(t)
		began := time.Now()
		p.learnOf(t.Context(), c.pod, "198.18.3.1")
		if took := time.Since(began); took != decisionTimeout {
			t.Errorf("waited for %v", took)
		}
		if s := p.State.Snapshot(); s.Heard("n1/198.18.3.1") {
			t.Error("heard of what nobody spoke of")
		}
		p.end(c)
		p.Remove("uid", true)
	})
}
