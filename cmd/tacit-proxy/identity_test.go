package main

import (
	"errors"
	"strings"
	"testing"
)

func TestWhereCertificatesComeFrom(t *testing.T) {
	for name, test := range map[string]struct {
		options options
		want    string // a word of the problem, "" if there is none
	}{
		"a CA":                    {options{ca: "tacitd:15012"}, ""},
		"SPIRE's agent":           {options{spire: "/run/spire/admin/agent.sock"}, ""},
		"a Workload API":          {options{workloadAPI: "/run/spire/sockets/agent.sock"}, ""},
		"nobody":                  {options{}, "nobody gives certificates"},
		"two":                     {options{ca: "tacitd:15012", workloadAPI: "/a"}, "come from one of them"},
		"all":                     {options{ca: "tacitd:15012", workloadAPI: "/a", spire: "/b"}, "come from one of them"},
		"a relative admin socket": {options{spire: "agent.sock"}, "--spire=agent.sock: want the absolute path"},
		"a relative socket":       {options{workloadAPI: "unix:///a"}, "--workload-api=unix:///a: want the absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			err := errors.Join(test.options.checkIdentity()...)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
