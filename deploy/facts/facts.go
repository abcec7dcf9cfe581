// Package facts finds out what a node can do, from inside the agent's pod, for
// tacit check.
//
// What does not belong here: what to make of it (deploy/check), and changing
// anything of the node.
package facts

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what there is on a node. What could not be looked at is absent.
type Node struct {
	Time   time.Time `json:"time"`
	Kernel string    `json:"kernel"`
	// IPv6 is whether the kernel has it and it is not switched off.
	IPv6 bool `json:"ipv6"`
	// Conntrack and Files are how much of the node's tables is in use.
	Conntrack *Use `json:"conntrack,omitempty"`
	Files     *Use `json:"files,omitempty"`
	// OpenFiles is the limit of a process in a pod.
	OpenFiles uint64 `json:"openFiles"`
	// SELinux is "enforcing", "permissive" or "" for none seen.
	SELinux string `json:"selinux,omitempty"`
	// Backends are the rules in the node's own network namespace by iptables
	// backend.
	Backends map[string]int `json:"backends"`
	// Missing are things that the rules in pods need and the kernel refuses,
	// by backend: the error of iptables.
	Missing map[string]string `json:"missing,omitempty"`
	CNI     []Conflist        `json:"cni,omitempty"`
}

// Use is how much there is of something, and at most.
type Use struct {
	Now uint64 `json:"now"`
	Max uint64 `json:"max"`
}

// Conflist is a file of the container runtime's network configuration. The
// first by name is the one in use.
type Conflist struct {
	File    string   `json:"file"`
	Plugins []string `json:"plugins,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Look collects the facts. confDir is the directory of conflists as this
// process sees it; "" for none.
func Look(ctx context.Context, confDir string) Node {
	n := Node{
		Time: time.Now().UTC(), IPv6: readNumber("/proc/sys/net/ipv6/conf/all/disable_ipv6", 1) == 0,
		SELinux: selinux(), Backends: map[string]int{}, Missing: map[string]string{},
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		n.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		n.OpenFiles = limit.Cur
	}
	const netfilter = "/proc/sys/net/netfilter/nf_conntrack_"
	if most := readNumber(netfilter+"max", 0); most > 0 {
		n.Conntrack = &Use{Now: readNumber(netfilter+"count", 0), Max: most}
	}
	if fields := strings.Fields(readText("/proc/sys/fs/file-nr")); len(fields) == 3 {
		n.Files = &Use{Now: number(fields[0], 0), Max: number(fields[2], 0)}
	}
	for _, backend := range []string{"nft", "legacy"} {
		n.Backends[backend] = countRules(ctx, backend)
		if err := tryRules(ctx, backend, n.IPv6); err != nil {
			n.Missing[backend] = err.Error()
		}
	}
	if confDir != "" {
		n.CNI = conflists(confDir)
	}
	return n
}

func selinux() string {
	switch strings.TrimSpace(readText("/sys/fs/selinux/enforce")) {
	case "1":
		return "enforcing"
	case "0":
		return "permissive"
	}
	return ""
}

// conflists reads the files that a container runtime would, in its order.
func conflists(dir string) []Conflist {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []Conflist{{File: dir, Error: err.Error()}}
	}
	var all []Conflist
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			all = append(all, readConflist(filepath.Join(dir, e.Name())))
		}
	}
	slices.SortFunc(all, func(a, b Conflist) int { return cmp.Compare(a.File, b.File) })
	return all
}

func readConflist(path string) Conflist {
	c := Conflist{File: filepath.Base(path)}
	text, err := os.ReadFile(path)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	var content struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(text, &content); err != nil {
		c.Error = fmt.Sprintf("not JSON: %v", err)
		return c
	}
	if content.Type != "" {
		c.Plugins = append(c.Plugins, content.Type)
	}
	for _, p := range content.Plugins {
		c.Plugins = append(c.Plugins, p.Type)
	}
	return c
}

func readText(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}

func readNumber(path string, otherwise uint64) uint64 {
	return number(strings.TrimSpace(readText(path)), otherwise)
}

func number(text string, otherwise uint64) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return otherwise
	}
	return n
}
