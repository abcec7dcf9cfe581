package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/redirect/rules"
)

// Backend is the kernel interface that iptables uses.
type Backend string

// The backends. Auto takes the one whose rules a pod already has, and the
// node's default where it has none or both.
const (
	BackendAuto   Backend = "auto"
	BackendNFT    Backend = "nft"
	BackendLegacy Backend = "legacy"
)

// ParseBackend reads a backend by name.
func ParseBackend(s string) (Backend, error) {
	b := Backend(s)
	if !slices.Contains([]Backend{BackendAuto, BackendNFT, BackendLegacy}, b) {
		return "", fmt.Errorf("iptables backend %q: want auto, nft or legacy", s)
	}
	return b, nil
}

// tool is one set of iptables programs, by the infix of their names:
// iptables INFIX -save and so on. It runs them in the calling thread's
// network namespace.
type tool struct{ infix string }

const (
	nftInfix     = "-nft"
	legacyInfix  = "-legacy"
	defaultInfix = "-" // iptables-save: whichever the node prefers
)

func (t tool) program(f rules.Family, verb string) string {
	name := "iptables"
	if f == rules.IPv6 {
		name = "ip6tables"
	}
	if t.infix == defaultInfix {
		return name + "-" + verb
	}
	return name + t.infix + "-" + verb
}

func (t tool) exists() bool {
	_, err := exec.LookPath(t.program(rules.IPv4, "restore"))
	return err == nil
}

// tools are those of both backends, or the node's only ones.
func tools() []tool {
	var found []tool
	for _, t := range []tool{{nftInfix}, {legacyInfix}} {
		if t.exists() {
			found = append(found, t)
		}
	}
	if found == nil {
		return []tool{{defaultInfix}}
	}
	return found
}

// choose finds the programs to write with.
func choose(ctx context.Context, b Backend) (tool, error) {
	wanted := map[Backend]tool{BackendNFT: {nftInfix}, BackendLegacy: {legacyInfix}}
	if t, ok := wanted[b]; ok {
		if !t.exists() {
			return tool{}, fmt.Errorf("%s is not installed; the agent needs it for the %s backend", t.program(rules.IPv4, "restore"), b)
		}
		return t, nil
	}
	var used []tool
	for _, t := range tools() {
		state, err := t.state(ctx)
		if err != nil {
			return tool{}, err
		}
		if state == oursIn {
			return t, nil
		}
		if state == rulesIn {
			used = append(used, t)
		}
	}
	if len(used) == 1 {
		return used[0], nil
	}
	return nodeDefault(ctx), nil
}

const (
	nothingIn = iota
	rulesIn
	oursIn
)

func (t tool) state(ctx context.Context) (int, error) {
	state := nothingIn
	for _, f := range families() {
		saved, err := t.save(ctx, f)
		switch {
		case err != nil:
			return 0, err
		case saved.HasOurs():
			return oursIn, nil
		case saved.HasRules():
			state = rulesIn
		}
	}
	return state, nil
}

// nodeDefault is what "iptables" itself stands for.
func nodeDefault(ctx context.Context) tool {
	version, err := exec.CommandContext(ctx, "iptables", "--version").Output()
	for _, t := range tools() {
		legacy := strings.Contains(string(version), "legacy")
		if err == nil && t.infix != defaultInfix && legacy == (t.infix == legacyInfix) {
			return t
		}
	}
	return tools()[0]
}

func (t tool) save(ctx context.Context, f rules.Family) (rules.Saved, error) {
	out, err := run(ctx, "", t.program(f, "save"), "-c")
	if err != nil {
		return nil, err
	}
	return rules.ParseSave(out), nil
}

func (t tool) restore(ctx context.Context, f rules.Family, text string) error {
	_, err := run(ctx, text, t.program(f, "restore"), "--noflush", "--wait", "5")
	return err
}

// remove takes away what is ours, and tables that were not there before us.
func (t tool) remove(ctx context.Context) error {
	for _, f := range families() {
		saved, err := t.save(ctx, f)
		if err != nil {
			return err
		}
		if err := t.removeFamily(ctx, f, saved); err != nil {
			return err
		}
	}
	return nil
}

func (t tool) removeFamily(ctx context.Context, f rules.Family, saved rules.Saved) error {
	text := rules.Remove(saved)
	if text == "" {
		return nil
	}
	if err := t.restore(ctx, f, text); err != nil {
		return err
	}
	if t.infix != nftInfix { // the legacy backend cannot take a table away
		return nil
	}
	return deleteTables(ctx, f, saved.MadeByUs())
}

// deleteTables needs the nft program. Without it an empty table stays, which
// does nothing.
func deleteTables(ctx context.Context, f rules.Family, names []string) error {
	if path, _ := exec.LookPath("nft"); path == "" {
		return nil
	}
	family := map[rules.Family]string{rules.IPv4: "ip", rules.IPv6: "ip6"}[f]
	for _, name := range names {
		if _, err := run(ctx, "", "nft", "delete", "table", family, name); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	switch err := cmd.Run(); {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s is not installed; the agent needs the programs of the package iptables: %w", program, err)
	case err != nil:
		return "", fmt.Errorf("%s: %w: %s", program, errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
