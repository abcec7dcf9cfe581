package show

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Status writes the proxy's own state, then each further section.
func (p Printer) Status(s admin.Status) error {
	rows := [][]string{
		{"node", s.Node},
		{"version", s.Version},
		{"started", fmt.Sprintf("%s (%s ago)", s.Started.UTC().Format(time.DateTime), age(p.Now.Sub(s.Started)))},
		{"mesh", fmt.Sprintf("generation %d: %d workloads, %d services, %d policies%s", s.Generation, s.Workloads, s.Services, s.Policies, missing(s))},
		{"connections", fmt.Sprintf("%d inbound, %d outbound", s.Inbound, s.Outbound)},
		{"denials", fmt.Sprintf("%d among the last connections (tacit connections --denied)", s.RecentDenials)},
	}
	if len(s.Bypasses) > 0 {
		rows = append(rows, []string{"bypasses", inForce(s.Bypasses)})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sections)) {
		if _, err := fmt.Fprintf(p.Out, "\n%s\n", p.bold(title(clean(name)))); err != nil {
			return err
		}
		if err := p.table(section(s.Sections[name])); err != nil {
			return err
		}
	}
	return nil
}

// Node is the proxy of one of several nodes, or why it says nothing.
type Node struct {
	Name   string
	Status admin.Status
	Err    error
}

// Nodes writes one line for each.
func (p Printer) Nodes(all []Node) error {
	rows := [][]string{p.wide([]string{"NODE", "VERSION", "AGE", "GENERATION", "WORKLOADS", "POLICIES", "INBOUND", "OUTBOUND", "DENIALS", "STATE"}, "SERVICES", "STARTED")}
	for _, n := range all {
		if n.Err != nil {
			rows = append(rows, p.wide([]string{n.Name, "", "", "", "", "", "", "", "", n.Err.Error()}, "", ""))
			continue
		}
		s, state := n.Status, "serving"
		if why := missing(s); why != "" {
			state = strings.Trim(why, " ()")
		}
		rows = append(rows, p.wide([]string{
			n.Name, s.Version, age(p.Now.Sub(s.Started)), strconv.FormatUint(s.Generation, 10), strconv.Itoa(s.Workloads), strconv.Itoa(s.Policies),
			strconv.Itoa(s.Inbound), strconv.Itoa(s.Outbound), strconv.Itoa(s.RecentDenials), state,
		}, strconv.Itoa(s.Services), s.Started.UTC().Format(time.DateTime)))
	}
	if err := p.table(rows); err != nil {
		return err
	}
	bypasses := map[string]bool{}
	for _, n := range all {
		for _, name := range n.Status.Bypasses {
			bypasses[name] = true
		}
	}
	if len(bypasses) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(p.Out, "\n%s\n", p.paint(bold+amber, "Bypasses are in force: "+clean(inForce(slices.Sorted(maps.Keys(bypasses))))))
	return err
}

// inForce names bypasses, and where there is more about them.
func inForce(bypasses []string) string {
	return strings.Join(bypasses, ", ") + " (tacit bypass list)"
}

// Heading writes a line above a part, after an empty one if it is not the
// first.
func (p Printer) Heading(text string, further bool) error {
	if further {
		text = "\n" + p.bold(clean(text))
	} else {
		text = p.bold(clean(text))
	}
	_, err := fmt.Fprintln(p.Out, text)
	return err
}

func missing(s admin.Status) string {
	switch {
	case !s.AddressesReady && !s.PoliciesReady:
		return " (nothing received from the control plane yet)"
	case !s.AddressesReady:
		return " (no full list of workloads and services yet)"
	case !s.PoliciesReady:
		return " (no full list of policies yet)"
	}
	return ""
}

// section makes rows of an object, one for each member, or of an array of
// objects, one for each object under a heading of their members' names.
// Members stay in the order in which the proxy wrote them.
func section(text json.RawMessage) [][]string {
	if object, ok := members(text); ok {
		rows := [][]string{}
		for _, m := range object {
			rows = append(rows, []string{words(m.name), plain(m.value)})
		}
		return rows
	}
	var list []json.RawMessage
	if json.Unmarshal(text, &list) != nil {
		return [][]string{{plain(text)}}
	}
	if len(list) == 0 {
		return [][]string{{"none"}}
	}
	heading := []string{}
	objects := make([][]member, len(list))
	for i, item := range list {
		object, ok := members(item)
		if !ok {
			object = []member{{"value", item}}
		}
		objects[i] = object
		for _, m := range object {
			if !slices.Contains(heading, m.name) {
				heading = append(heading, m.name)
			}
		}
	}
	return columns(heading, objects)
}

func columns(heading []string, objects [][]member) [][]string {
	rows := [][]string{make([]string, len(heading))}
	for i, name := range heading {
		rows[0][i] = title(name)
	}
	for _, object := range objects {
		row := make([]string, len(heading))
		for _, m := range object {
			row[slices.Index(heading, m.name)] = plain(m.value)
		}
		rows = append(rows, row)
	}
	return rows
}

type member struct {
	name  string
	value json.RawMessage
}

// members reads an object in the order of its text.
func members(text json.RawMessage) ([]member, bool) {
	in := json.NewDecoder(bytes.NewReader(text))
	if start, err := in.Token(); err != nil || start != json.Delim('{') {
		return nil, false
	}
	var out []member
	for in.More() {
		var m member
		name, err := in.Token()
		if err != nil || in.Decode(&m.value) != nil {
			return nil, false
		}
		m.name, _ = name.(string)
		out = append(out, m)
	}
	return out, true
}

// plain is a string without its quotes, a time to the second, a list of strings
// with commas, an object as its members that say something, and any other value
// as JSON.
func plain(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return moment(t)
		}
		return s
	}
	var all []string
	if json.Unmarshal(value, &all) == nil {
		return strings.Join(all, ", ")
	}
	if object, ok := members(value); ok {
		for _, m := range object {
			if text := plain(m.value); text != "" {
				all = append(all, words(m.name)+" "+text)
			}
		}
		return strings.Join(all, ", ")
	}
	return string(value)
}

func title(name string) string { return strings.ToUpper(words(name)) }

// words are those that the name of a member is made of.
func words(name string) string {
	var out strings.Builder
	wasLower := false
	for _, r := range name {
		if wasLower && unicode.IsUpper(r) {
			out.WriteByte(' ')
		}
		wasLower = unicode.IsLower(r)
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}
