package rules

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Saved is what iptables-save -c printed: tables by name.
type Saved map[string]SavedTable

// SavedTable maps a chain's name to its rules.
type SavedTable map[string][]SavedRule

// SavedRule is a rule without its "-A NAME", and how many packets it has seen.
type SavedRule struct {
	Text    string
	Packets uint64
}

// ParseSave reads the output of iptables-save, with or without -c.
func ParseSave(text string) Saved {
	saved := Saved{}
	var table SavedTable
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		counters, rest, counted := strings.Cut(line, "] ")
		if counted && strings.HasPrefix(counters, "[") {
			line = rest
		} else {
			counters = ""
		}
		switch {
		case strings.HasPrefix(line, "*"):
			table = SavedTable{}
			saved[line[1:]] = table
		case table == nil:
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			table[name] = nil
		case strings.HasPrefix(line, "-A "):
			name, rule, _ := strings.Cut(line[len("-A "):], " ")
			packets, _, _ := strings.Cut(strings.TrimPrefix(counters, "["), ":")
			n, _ := strconv.ParseUint(packets, 10, 64) // none without -c
			table[name] = append(table[name], SavedRule{rule, n})
		}
	}
	return saved
}

// Ours is our part, in a form to compare and to show: the jumps that lead to
// our chains and where they stand, and what is in these.
func (s Saved) Ours() string {
	var b strings.Builder
	for _, name := range s.tables() {
		t := s[name]
		for _, chain := range t.names() {
			for i, r := range t[chain] {
				switch {
				case isOurs(chain):
					fmt.Fprintf(&b, "%s: -A %s %s\n", name, chain, r.Text)
				case isOurs(target(r.Text)):
					fmt.Fprintf(&b, "%s: -I %s %d %s\n", name, chain, i+1, r.Text)
				}
			}
		}
	}
	return b.String()
}

// Canonical is what Ours says when exactly the wanted tables are in place.
func Canonical(want []Table) string {
	s := Saved{}
	for _, t := range want {
		table := SavedTable{}
		for _, c := range t.Chains {
			table[c.Hook] = append(table[c.Hook], SavedRule{Text: "-j " + c.Name})
			for _, r := range c.Rules {
				table[c.Name] = append(table[c.Name], SavedRule{Text: r})
			}
		}
		s[t.Name] = table
	}
	return s.Ours()
}

// HasRules reports whether any chain has a rule.
func (s Saved) HasRules() bool {
	for _, t := range s {
		for _, rules := range t {
			if len(rules) > 0 {
				return true
			}
		}
	}
	return false
}

// HasOurs reports whether any chain or jump is ours.
func (s Saved) HasOurs() bool { return Remove(s) != "" }

// Uncaptured counts the flows of other protocols than TCP that passed since
// the rules were last written.
func (s Saved) Uncaptured() uint64 {
	var n uint64
	for _, chain := range []string{preRouting, output} {
		for _, r := range s["nat"][chain] {
			if r.Text == notTCP {
				n += r.Packets
			}
		}
	}
	return n
}

// MadeByUs lists the tables that were not there before us and hold nothing
// of others now.
func (s Saved) MadeByUs() []string {
	var names []string
	for _, name := range s.tables() {
		if _, ok := s[name][made]; ok && !s[name].foreign() {
			names = append(names, name)
		}
	}
	return names
}

func (t SavedTable) foreign() bool {
	for chain, rules := range t {
		if isOurs(chain) {
			continue
		}
		if !isBuiltIn(chain) || slices.ContainsFunc(rules, func(r SavedRule) bool { return !isOurs(target(r.Text)) }) {
			return true
		}
	}
	return false
}

func isBuiltIn(chain string) bool {
	return slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, chain)
}

func isOurs(chain string) bool { return strings.HasPrefix(chain, Prefix) }

// target is where a rule jumps to.
func target(rule string) string {
	fields := strings.Fields(rule)
	for i, f := range fields[:max(0, len(fields)-1)] {
		if f == "-j" || f == "-g" {
			return fields[i+1]
		}
	}
	return ""
}

// jumps are the places of the rules that lead from a chain of others to ours.
func (t SavedTable) jumps(chain string) (at []int) {
	for i, r := range t[chain] {
		if !isOurs(chain) && isOurs(target(r.Text)) {
			at = append(at, i)
		}
	}
	return at
}

// ours are the names of our chains. A jump to one of ours without the chain
// cannot be.
func (t SavedTable) ours() []string {
	return slices.DeleteFunc(t.names(), func(n string) bool { return !isOurs(n) })
}

func (t SavedTable) names() []string { return slices.Sorted(maps.Keys(t)) }

func (s Saved) tables() []string { return slices.Sorted(maps.Keys(s)) }
