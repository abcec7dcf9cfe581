package handoff

import (
	"os"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A proxy is told of what a pod consists if it understands that, and as far as
// there is room for it.
func TestWhoIsToldOfContainers(t *testing.T) {
	one := model.Composition{Containers: []model.Container{{Name: "web", Image: "web:1"}}}
	long := model.Composition{Containers: []model.Container{{Name: "web", Image: strings.Repeat("i", protocol.MaxComposition)}}}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = read.Close(), write.Close() }()
	for name, test := range map[string]struct {
		version uint32
		is      model.Composition
		told    bool
	}{
		"one that understands":         {protocol.Composes, one, true},
		"an older one":                 {protocol.Composes - 1, one, false},
		"of more than a message holds": {protocol.Composes, long, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{})
			s.pods["u"] = &entry{Pod: Pod{UID: "u", Name: "web", Composition: test.is}, listeners: []int{int(read.Fd())}}
			m, fds, err := s.newsOf(&proxy{version: test.version, news: map[string]bool{"u": false}}, "u")
			if err != nil {
				t.Fatal(err)
			}
			protocol.CloseAll(fds)
			if got := m.GetAdd().Composition(); m.GetAdd().GetName() != "web" || got.Equal(test.is) != test.told || len(got.Containers) > 0 != test.told {
				t.Errorf("told %v", m)
			}
		})
	}
}
