//go:build !inpod

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/sight/traffic"
)

func topCommand() *cobra.Command {
	var (
		c        client
		interval time.Duration
		order    string
		filter   string
		in       string
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the busiest pairs, their latency, denials and plain traffic",
		Long: `Show who talks to whom now: connections and requests a second, latency, what was
denied and what is not mutual TLS, again and again. Latency is that of requests,
and what the proxies add to connections.

Keys: b, y, l, d and p sort by busiest, bytes, latency, denials and plain first;
/ filters by a part of a name; space holds the screen; q ends. Where the output
is no terminal, or with -o, one table of one interval is printed.`,
		Example: `  tacit top
  tacit top --sort denied
  tacit top --filter shop/ --interval 10s > table.txt
  tacit top -o json | jq '.rates[0]'`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "`time` between two looks, at least 1s")
	cmd.Flags().StringVar(&order, "sort", traffic.Orders[0], "`order`: "+strings.Join(traffic.Orders, ", "))
	cmd.Flags().StringVarP(&in, "namespace", "n", "", "only pairs with an end in this `namespace`")
	cmd.Flags().StringVar(&filter, "filter", "", "only pairs with this `text` in a name, or in how they travel")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(traffic.Orders, order) {
			return fmt.Errorf("--sort=%s: want %s", order, strings.Join(traffic.Orders, ", "))
		}
		if interval < time.Second {
			return fmt.Errorf("--interval=%v: want at least 1s", interval)
		}
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		s := &screen{look: func() look { return lookAt(cmd, all) }, asked: len(all), interval: interval, order: order, in: in, filter: filter}
		if isTerminal(cmd.OutOrStdout()) && c.output == outputText {
			return s.run(cmd)
		}
		return c.topOnce(cmd, s)
	}
	return cmd
}

// look is what all nodes have counted at a time.
type look struct {
	at      time.Time
	pairs   []traffic.Pair
	missing []missing
	lack    error // that nodes are missing
	err     error // no node gave an answer
}

func lookAt(cmd *cobra.Command, all []answerer) look {
	answers := askAll[admin.Coverage](cmd, all, "/coverage", nil)
	l := look{at: time.Now()}
	if l.missing, l.err = partly(answers); l.err != nil {
		return l
	}
	l.lack = failures(answers)
	var nodes []admin.Coverage
	for _, a := range answers {
		if a.err == nil {
			nodes = append(nodes, a.value)
		}
	}
	l.pairs = traffic.Merge(nodes)
	return l
}

// topOnce prints what happens in one interval.
func (c *client) topOnce(cmd *cobra.Command, s *screen) error {
	s.take(s.look())
	timer := time.NewTimer(s.interval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-cmd.Context().Done():
		return cmd.Context().Err()
	}
	s.take(s.look())
	if s.last.err != nil {
		return s.last.err
	}
	if forPrograms(c.output) {
		err := printAs(cmd.OutOrStdout(), c.output, map[string]any{"rates": s.shown(), "partial": len(s.last.missing) > 0, "missing": s.last.missing})
		return errors.Join(err, s.last.lack)
	}
	p := c.printer(cmd)
	return errors.Join(p.Rates(s.shown()), partial(p, s.last.missing, s.asked), s.last.lack)
}

// screen is what a terminal shows. It is a tea.Model.
type screen struct {
	look     func() look
	asked    int // nodes
	interval time.Duration

	last, before  look
	rates         []traffic.Rate
	in            string // the namespace of an end, "" for any
	order, filter string
	typing, held  bool
	width, height int
}

// run shows it until somebody has had enough.
func (s *screen) run(cmd *cobra.Command) error {
	program := tea.NewProgram(s, tea.WithContext(cmd.Context()), tea.WithInput(cmd.InOrStdin()), tea.WithOutput(cmd.OutOrStdout()), tea.WithAltScreen(), tea.WithoutSignalHandler())
	_, err := program.Run()
	if errors.Is(err, tea.ErrProgramKilled) && cmd.Context().Err() != nil {
		return nil //nolint:nilerr // the person has ended it
	}
	return err
}

// Init implements tea.Model.
func (s *screen) Init() tea.Cmd { return func() tea.Msg { return s.look() } }

// Update implements tea.Model.
func (s *screen) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch m := message.(type) {
	case tea.WindowSizeMsg:
		s.width, s.height = m.Width, m.Height
	case look:
		s.take(m)
		return s, tea.Tick(s.interval, func(time.Time) tea.Msg { return s.look() })
	case tea.KeyMsg:
		return s, s.key(m)
	}
	return s, nil
}

// take compares a look with the one before it.
func (s *screen) take(l look) {
	s.before, s.last = s.last, l
	if s.held || l.err != nil || s.before.at.IsZero() || s.before.err != nil {
		return
	}
	s.rates = traffic.Rates(s.before.pairs, l.pairs, l.at.Sub(s.before.at))
}

var orderKeys = map[string]string{"b": "busy", "y": "bytes", "l": "latency", "d": "denied", "p": "plain"}

func (s *screen) key(k tea.KeyMsg) tea.Cmd {
	if k.Type == tea.KeyCtrlC {
		return tea.Quit
	}
	if s.typing {
		s.edit(k)
		return nil
	}
	switch text := k.String(); text {
	case "q", "esc":
		return tea.Quit
	case "/":
		s.typing, s.filter = true, ""
	case " ":
		s.held = !s.held
	default:
		if order := orderKeys[text]; order != "" {
			s.order = order
		}
	}
	return nil
}

// edit types the filter.
func (s *screen) edit(k tea.KeyMsg) {
	const longest = 100
	switch k.Type {
	case tea.KeyEnter:
		s.typing = false
	case tea.KeyEsc:
		s.typing, s.filter = false, ""
	case tea.KeyBackspace:
		if letters := []rune(s.filter); len(letters) > 0 {
			s.filter = string(letters[:len(letters)-1])
		}
	case tea.KeyRunes, tea.KeySpace:
		if len(s.filter) < longest {
			s.filter += string(k.Runes)
		}
	}
}

// shown are the rates that the filter takes, in order.
func (s *screen) shown() []traffic.Rate {
	out := []traffic.Rate{}
	for _, r := range s.rates {
		if s.in != "" && r.Source.Namespace != s.in && r.Destination.Namespace != s.in {
			continue
		}
		if strings.Contains(strings.Join([]string{show.Party(r.Source), show.Party(r.Destination), r.Security, r.Why}, " "), s.filter) {
			out = append(out, r)
		}
	}
	traffic.SortRates(out, s.order)
	return out
}

// View implements tea.Model.
func (s *screen) View() string {
	var b strings.Builder
	p := show.Printer{Out: &b, Now: time.Now()}
	fmt.Fprintf(&b, "tacit top  by %s  %s\n", s.order, s.state())
	if len(s.last.missing) > 0 {
		_ = partial(p, s.last.missing, s.asked) // to a string: it never fails
	}
	switch all := s.shown(); {
	case s.last.err != nil:
		fmt.Fprintf(&b, "\nNo node answers: %v\n", s.last.err)
	case s.before.at.IsZero():
		fmt.Fprint(&b, "\nLooking…\n")
	default:
		b.WriteString("\n")
		_ = p.Rates(all)
	}
	return s.fit(b.String()) + "\nb busiest  y bytes  l latency  d denied  p plain  / filter  space hold  q quit"
}

func (s *screen) state() string {
	switch {
	case s.typing:
		return "filter: " + s.filter + "_"
	case s.held:
		return "held"
	case s.filter != "":
		return "filter: " + s.filter
	}
	return ""
}

// fit cuts what the terminal has no room for.
func (s *screen) fit(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if s.height > 2 && len(lines) > s.height-2 {
		lines = lines[:s.height-2]
	}
	for i, line := range lines {
		if letters := []rune(line); s.width > 0 && len(letters) > s.width {
			lines[i] = string(letters[:s.width])
		}
	}
	return strings.Join(lines, "\n")
}
