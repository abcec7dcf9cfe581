package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// logLine is what a proxy's log says of the end of a connection or request, of a
// denial, or of denials that it does not list one by one.
type logLine struct {
	Time      time.Time `json:"time"`
	ID        string    `json:"id"`
	Direction string    `json:"direction"`
	Security  string    `json:"security"`
	Outcome   string    `json:"outcome"`

	Source          string `json:"src.addr"`
	SourceIP        string `json:"src.ip"` // of several
	SourceName      string `json:"src.workload"`
	SourceNamespace string `json:"src.namespace"`
	SourceIdentity  string `json:"src.identity"`

	Destination          string `json:"dst.addr"`
	DestinationName      string `json:"dst.workload"`
	DestinationNamespace string `json:"dst.namespace"`
	Service              string `json:"dst.service"`

	Policy    string `json:"policy"`
	Reason    string `json:"reason"`
	Attribute string `json:"attribute"`
	Error     string `json:"error"`

	source, destination netip.AddrPort
}

// parseLogLine reads a line, with or without what others have put before it, such
// as kubectl logs --prefix.
func parseLogLine(text string) (*logLine, error) {
	line := &logLine{}
	in := json.NewDecoder(strings.NewReader(text[strings.IndexByte(text, '{'):]))
	if err := in.Decode(line); err != nil {
		return nil, fmt.Errorf("explain: this is no line of a proxy's log, which is JSON: %w", err)
	}
	var err error
	if line.destination, err = netip.ParseAddrPort(line.Destination); err != nil {
		return nil, errors.New("explain: this line of the log is about no connection: it has no dst.addr. Paste one that says how a connection or request ended, or why it was denied")
	}
	if line.source, err = netip.ParseAddrPort(line.Source); err != nil {
		ip, err := netip.ParseAddr(line.SourceIP)
		if err != nil {
			return nil, errors.New("explain: this line of the log does not say who connected: it has neither src.addr nor src.ip")
		}
		line.source = netip.AddrPortFrom(ip, 0)
	}
	return line, nil
}

// connection is what the line says, as a proxy would remember it.
func (l *logLine) connection() admin.Connection {
	end := func(address netip.AddrPort, namespace, name string) admin.End {
		e := admin.End{Address: address}
		if name != "" {
			e.Workload = namespace + "/" + name
		}
		return e
	}
	c := admin.Connection{
		ID: l.ID, Direction: cmp.Or(l.Direction, admin.Inbound), Security: l.Security, Policy: l.Policy, Since: l.Time, Ended: l.Time,
		Source:      end(l.source, l.SourceNamespace, l.SourceName),
		Destination: end(l.destination, l.DestinationNamespace, l.DestinationName),
		// A line of denials that are counted alone has no outcome.
		Denied: l.Outcome == "denied" || l.Outcome == "",
	}
	c.Source.Identity, c.Destination.Service = l.SourceIdentity, l.Service
	why := []string{}
	for _, part := range []string{l.Reason, l.Policy, l.Attribute, l.Error} {
		if part != "" {
			why = append(why, part)
		}
	}
	c.Reason = strings.Join(why, ", ")
	if c.Denied && c.Reason != "" {
		c.Reason = "denied: " + c.Reason
	}
	return c
}
