package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
)

// looks are of two pairs, one of them in clear, of which each does something
// between any two looks.
func looks() func() look {
	var mu sync.Mutex
	n := uint64(0)
	return func() look {
		mu.Lock()
		defer mu.Unlock()
		n++
		pair := func(from string, security string, c flows.Counts) traffic.Pair {
			return traffic.Pair{Key: traffic.Key{Source: flows.Party{Namespace: "web", Name: from}, Destination: flows.Party{Namespace: "shop", Name: "api"}, Security: security}, Counts: c}
		}
		return look{
			at: time.Unix(int64(n), 0),
			pairs: []traffic.Pair{
				pair("frontend", "mtls", flows.Counts{Requests: 100 * n, Latency: [flows.LatencyBuckets]uint64{2: 100 * n}}),
				pair("cron\x1b[31m", "plain", flows.Counts{Connections: n, Denied: 3 * n}),
			},
			missing: []missing{{Node: "n2", Error: "no answer"}},
		}
	}
}

// display is a terminal as far as output goes.
type display struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (d *display) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case d.news <- struct{}{}:
	default:
	}
	return d.text.Write(p)
}

// await waits until all parts were written since the last time.
func (d *display) await(t *testing.T, parts ...string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		d.mu.Lock()
		text, all := d.text.String(), true
		for _, part := range parts {
			all = all && strings.Contains(text, part)
		}
		if all {
			d.text.Reset()
		}
		d.mu.Unlock()
		if all {
			return
		}
		select {
		case <-d.news:
		case <-deadline:
			t.Fatalf("the screen does not show %q:\n%s", parts, text)
		}
	}
}

// A person looks, sorts, filters and goes.
func TestTopOnAScreen(t *testing.T) {
	s := &screen{look: looks(), asked: 2, interval: time.Millisecond, order: "busy"}
	keys, typed := io.Pipe()
	out := &display{news: make(chan struct{}, 1)}
	program := tea.NewProgram(s, tea.WithContext(t.Context()), tea.WithInput(keys), tea.WithOutput(out), tea.WithoutSignalHandler())
	ended := make(chan error, 1)
	go func() {
		_, err := program.Run()
		ended <- err
	}()
	press := func(text string) {
		if _, err := io.WriteString(typed, text); err != nil {
			t.Error(err)
		}
	}
	program.Send(tea.WindowSizeMsg{Width: 160, Height: 20})
	out.await(t, "by busy", "web/frontend", "100.0", "<256 µs", "web/cron", "n2")
	press("d")
	out.await(t, "by denied")
	press("/")
	out.await(t, "filter: _")
	press("cron")
	out.await(t, "filter: cron_")
	press("\r")
	out.await(t, "filter: cron")
	press("q")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := errors.Join(typed.Close(), keys.Close()); err != nil {
		t.Error(err)
	}
	if view := s.View(); strings.Contains(view, "web/frontend") || !strings.Contains(view, "web/cron") || strings.Contains(view, "\x1b") {
		t.Errorf("filtered, in the end:\n%q", view)
	}
}

func TestTopKeys(t *testing.T) {
	s := &screen{look: looks(), asked: 1, interval: time.Second, order: "busy"}
	for range 2 {
		s.take(s.look())
	}
	first := func() string { return s.shown()[0].Security }
	press := func(text string) {
		s.Update(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune(text)})
	}
	if first() != "mtls" {
		t.Error("the busiest is not first")
	}
	for key, order := range orderKeys {
		if press(key); s.order != order {
			t.Errorf("key %s sorts by %s", key, s.order)
		}
	}
	if press("p"); first() != "plain" {
		t.Error("plain is not first")
	}
	press(" ")
	held := s.rates
	if s.take(s.look()); &held[0] != &s.rates[0] {
		t.Error("a held screen moves")
	}
	s.Update(tea.WindowSizeMsg{Width: 10, Height: 5})
	lines := strings.Split(s.View(), "\n")
	for _, line := range lines[:len(lines)-1] {
		if len([]rune(line)) > 10 {
			t.Errorf("%q is wider than the terminal", line)
		}
	}
	if len(lines) > 5 {
		t.Errorf("%d lines on a terminal of 5", len(lines))
	}
}

// Where there is no terminal it is a table, and a node that gives no answer is
// named.
func TestTopAsATable(t *testing.T) {
	for output, parts := range map[string][]string{outputText: {"web/frontend", "REQ/S", "n2"}, outputJSON: {`"partial":true`, `"requestsPerSecond":100`}} {
		cmd := topCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetContext(t.Context())
		c := client{output: output}
		if err := c.topOnce(cmd, &screen{look: looks(), asked: 2, interval: time.Millisecond, order: "busy"}); err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			if !strings.Contains(out.String(), part) {
				t.Errorf("as %s it lacks %s:\n%s", output, part, out.String())
			}
		}
	}
	for in, want := range map[string]int{"web": 2, "nowhere": 0} {
		s := &screen{look: looks(), in: in}
		s.take(s.look())
		s.take(s.look())
		if got := len(s.shown()); got != want {
			t.Errorf("of namespace %s it shows %d pairs, want %d", in, got, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cmd := topCommand()
	cmd.SetContext(ctx)
	if err := new(client).topOnce(cmd, &screen{look: looks(), interval: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
