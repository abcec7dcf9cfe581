package client

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/wire"
)

// mesh is what a control plane serves of one type, and what it believes that
// the client has.
type mesh struct {
	served   map[string]*discovery.Resource
	returned map[string]string
	// applied is the version that must be in force at the client by now;
	// "denial" for a policy that was rejected.
	applied map[string]string
	bad     map[string]bool
}

func newMesh() *mesh {
	return &mesh{map[string]*discovery.Resource{}, map[string]string{}, map[string]string{}, map[string]bool{}}
}

// delta is the response that a server of the delta protocol makes.
func (m *mesh) delta(typeURL string) *discovery.DeltaDiscoveryResponse {
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: "n"}
	for _, name := range slices.Sorted(maps.Keys(m.served)) {
		if version, ok := m.returned[name]; !ok || version != m.served[name].GetVersion() {
			r.Resources = append(r.Resources, m.served[name])
			m.returned[name] = m.served[name].GetVersion()
			switch {
			case !m.bad[name]:
				m.applied[name] = m.served[name].GetVersion()
			case typeURL == wire.AuthorizationType:
				m.applied[name] = "denial"
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.returned)) {
		if _, ok := m.served[name]; !ok {
			r.RemovedResources = append(r.RemovedResources, name)
			delete(m.returned, name)
			delete(m.applied, name)
		}
	}
	return r
}

// TestAnyHistoryEndsInWhatIsServed: changes, removals, bad resources, lost
// connections and restarts in any order.
func TestAnyHistoryEndsInWhatIsServed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sink := newRecorder()
		client := New(Config{Sink: sink})
		meshes := map[string]*mesh{wire.AuthorizationType: newMesh(), wire.AddressType: newMesh()}
		version := 0
		sync := func() {
			for typeURL, m := range meshes {
				client.handle(m.delta(typeURL))
			}
			check(t, client, sink, meshes)
		}
		reconnect := func() {
			for _, r := range client.subscriptions() {
				meshes[r.GetTypeUrl()].returned = maps.Clone(r.GetInitialResourceVersions())
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				version++
				isPolicy, isBad := rapid.Bool().Draw(t, "policy"), rapid.IntRange(0, 3).Draw(t, "bad") == 0
				name, m := fmt.Sprint("w", rapid.IntRange(0, 3).Draw(t, "name")), meshes[wire.AddressType]
				var r *discovery.Resource
				switch v := fmt.Sprint(version); {
				case isPolicy:
					m, r = meshes[wire.AuthorizationType], aPolicy(name, v, uint16(version))
				case rapid.Bool().Draw(t, "service"):
					r = aService(name, v)
				default:
					r = aWorkload(name, v)
				}
				if isBad {
					r.Resource = aPolicy("other", "", 1).GetResource()
				}
				m.served[r.GetName()], m.bad[r.GetName()] = r, isBad
			},
			"remove": func(t *rapid.T) {
				for _, m := range meshes {
					if names := slices.Sorted(maps.Keys(m.served)); len(names) > 0 {
						delete(m.served, rapid.SampledFrom(names).Draw(t, "name"))
					}
				}
			},
			"sync":      func(*rapid.T) { sync() },
			"reconnect": func(*rapid.T) { reconnect(); sync() },
			"restart": func(t *rapid.T) {
				data, err := client.Export()
				if err != nil {
					t.Fatal(err)
				}
				sink = newRecorder()
				client = New(Config{Sink: sink})
				if err := client.Restore(data); err != nil {
					t.Fatal(err)
				}
				check(t, client, sink, meshes)
				reconnect()
			},
		})
		sync()
		for len(sink.updates) > 0 {
			<-sink.updates
		}
		sync()
		if len(sink.updates) > 0 {
			t.Fatalf("applied without news: %+v", <-sink.updates)
		}
	})
}

func check(t *rapid.T, client *Client, sink *recorder, meshes map[string]*mesh) {
	for len(sink.updates) > 50 {
		<-sink.updates
	}
	got := map[string]string{}
	for _, w := range sink.snapshot.Workloads() {
		got[w.UID] = w.Name
	}
	for _, v := range sink.snapshot.Services() {
		got[v.Key()] = v.Name
	}
	if want := meshes[wire.AddressType].applied; !maps.Equal(got, want) {
		t.Fatalf("addresses in force %v, want %v", got, want)
	}
	got = map[string]string{}
	for _, p := range sink.snapshot.Policies() {
		if got[p.Key()] = "denial"; p.Unknown == "" {
			got[p.Key()] = fmt.Sprint(p.Rules[0].Clauses[0].Matches[0].DestinationPorts[0])
		}
	}
	if want := meshes[wire.AuthorizationType].applied; !maps.Equal(got, want) {
		t.Fatalf("policies in force %v, want %v", got, want)
	}
	for typeURL, m := range meshes {
		if n := client.kind(typeURL).describe().Resources; n != len(m.applied) {
			t.Fatalf("%s: %d resources held, %d in force", typeURL, n, len(m.applied))
		}
	}
}
