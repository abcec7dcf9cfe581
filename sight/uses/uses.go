// Package uses remembers when policies last decided about something, for longer
// than any process lives: what is remembered is a text that somebody keeps, and
// several who keep the same one lose nothing.
//
// What does not belong here: where the text is kept (cmd/tacitd), and when a
// policy decides (proxy/flows).
package uses

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// The text's place in Tacit's namespace of a cluster.
const (
	ConfigMap = "tacit-policy-uses"
	Key       = "uses.json"
)

// Week is how long a policy that is of use should not have been without one.
const Week = 7 * 24 * time.Hour

// Bounds on what is remembered, and how exactly: a text that changes with every
// use would be written all the time.
const (
	maxPolicies = 4096
	maxText     = 768 << 10 // bytes: a ConfigMap holds a mebibyte
	exactness   = time.Hour
)

// Use says since when a policy is known to be in force, and when it last decided
// about something; zero is never since then.
type Use struct {
	Since time.Time `json:"since"`
	Last  time.Time `json:"last,omitzero"`
}

// Memory is what is remembered. The zero value remembers nothing yet. Its methods
// may be called from any goroutine.
type Memory struct {
	mu       sync.Mutex
	policies map[string]Use
}

// Note takes in which policies are in force, and when they last decided about
// something, as far as that was heard of. Others are forgotten.
func (m *Memory) Note(inForce []string, matched map[string]time.Time, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := make(map[string]Use, len(inForce))
	for _, policy := range inForce[:min(len(inForce), maxPolicies)] {
		use, known := m.policies[policy]
		if !known {
			use.Since = now.UTC().Truncate(exactness)
		}
		if last := matched[policy].UTC().Truncate(exactness); !last.IsZero() && last.After(use.Last) {
			use.Last = last
		}
		kept[policy] = use
	}
	m.policies = kept
}

// Merge takes in what was kept, by this process or by another. What is no such
// text is an error, and nothing of it is taken.
func (m *Memory) Merge(text string) error {
	if text == "" {
		return nil
	}
	if len(text) > maxText {
		return fmt.Errorf("uses of policies: %d bytes are above the limit of %d", len(text), maxText)
	}
	var kept map[string]Use
	if err := json.Unmarshal([]byte(text), &kept); err != nil {
		return fmt.Errorf("uses of policies: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.policies == nil {
		m.policies = map[string]Use{}
	}
	for policy, other := range kept {
		own, known := m.policies[policy]
		if !known && len(m.policies) >= maxPolicies {
			continue
		}
		if !known || other.Since.Before(own.Since) {
			own.Since = other.Since
		}
		if other.Last.After(own.Last) {
			own.Last = other.Last
		}
		m.policies[policy] = own
	}
	return nil
}

// Text is what to keep, and how many policies there was no room for: the last by
// their names, so that all who keep the text leave out the same.
func (m *Memory) Text() (text string, left int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := make(map[string]Use, len(m.policies))
	size := len("{}")
	for _, policy := range slices.Sorted(maps.Keys(m.policies)) {
		entry, err := json.Marshal(map[string]Use{policy: m.policies[policy]}) // and two braces, one for a comma
		if err != nil {
			return "", 0, fmt.Errorf("uses of policies: %w", err)
		}
		if size += len(entry) - 1; size > maxText {
			break
		}
		kept[policy] = m.policies[policy]
	}
	whole, err := json.Marshal(kept) // sorted by their names
	if err != nil {
		return "", 0, fmt.Errorf("uses of policies: %w", err)
	}
	return string(whole), len(m.policies) - len(kept), nil
}

// Report is which policies are of no use.
type Report struct {
	// Since is when the first of the policies was seen in force.
	Since time.Time `json:"since,omitzero"`
	// Unused have decided about nothing for a week, and were in force all the
	// time.
	Unused []string `json:"unusedPolicies"`
}

// Report is that of now.
func (m *Memory) Report(now time.Time) *Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &Report{Unused: []string{}}
	for policy, use := range m.policies {
		if r.Since.IsZero() || use.Since.Before(r.Since) {
			r.Since = use.Since
		}
		last := use.Since
		if use.Last.After(last) {
			last = use.Last
		}
		// What was cut off a time is added, lest a week be shorter than it is.
		if now.Sub(last) >= Week+exactness {
			r.Unused = append(r.Unused, policy)
		}
	}
	slices.Sort(r.Unused)
	return r
}
