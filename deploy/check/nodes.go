package check

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/deploy/facts"
)

// Bounds of what is fine on a node.
const (
	fullShare      = 0.8               // of a table
	fewFiles       = 65536             // descriptors: two for a connection
	clockTolerance = 2 * time.Second   // beyond this logs of two nodes mislead
	clockBackdate  = 5 * time.Minute   // by which certificates are backdated
	atOnce         = 8                 // nodes
	confDir        = "/host/cni/net.d" // where the chart mounts it
)

// seen is what a node says, and by how much its clock is ahead of ours.
type seen struct {
	node   string
	facts  facts.Node
	offset time.Duration
	// doubt is half of the time that asking took: the offset may be that much
	// off.
	doubt time.Duration
	cni   bool // the agent has the directory of conflists
}

// facts asks each agent about its node, or the pods in their place.
func (s *state) facts(ctx context.Context) {
	before := len(s.findings)
	var (
		mu    sync.Mutex
		all   []seen
		group errgroup.Group
	)
	group.SetLimit(atOnce)
	lookouts := s.agents
	if len(lookouts) == 0 {
		lookouts = s.scouts
	}
	for _, pod := range lookouts {
		group.Go(func() error {
			one, err := s.look(ctx, pod)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.unknown("Nodes", pod.Spec.NodeName, err)
				return nil
			}
			all = append(all, one)
			return nil
		})
	}
	_ = group.Wait()
	for _, one := range all {
		s.kernel(one)
		s.room(one)
		s.conflists(one)
	}
	s.clocks(all)
	s.fine(before, "Nodes from inside", fmt.Sprintf("kernels, iptables, CNI configuration, limits and clocks of %d nodes", len(all)))
}

func (s *state) look(ctx context.Context, pod core.Pod) (seen, error) {
	one := seen{node: pod.Spec.NodeName, cni: slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m core.VolumeMount) bool {
		return m.MountPath == confDir
	})}
	command := []string{"tacit-agent", "facts"}
	if one.cni {
		command = append(command, "--cni-conf-dir="+confDir)
	}
	begin := s.now()
	text, err := s.c.Run(ctx, pod.Name, cluster.Agent, command)
	if err != nil {
		return one, err
	}
	end := s.now()
	if err := json.Unmarshal(text, &one.facts); err != nil {
		return one, fmt.Errorf("what its agent says: %w", err)
	}
	one.doubt = end.Sub(begin) / 2
	one.offset = one.facts.Time.Sub(begin.Add(one.doubt))
	return one, nil
}

func (s *state) kernel(n seen) {
	backends := []string{"nft", "legacy"}
	var refused []string
	for _, backend := range backends {
		if why, ok := n.facts.Missing[backend]; ok {
			refused = append(refused, backend+": "+why)
		}
	}
	if len(refused) == len(backends) {
		s.add(Broken, "Kernel", n.node, "refuses rules that capture needs: "+strings.Join(refused, "; "),
			"load the modules xt_REDIRECT, xt_mark, xt_connmark, xt_conntrack, xt_multiport and nf_nat (or nft_compat), or use another kernel")
	}
	for _, backend := range backends {
		if why, ok := n.facts.Missing[backend]; ok && n.facts.Backends[backend] > 0 {
			s.add(Broken, "iptables", n.node, "the node uses "+backend+" iptables, which refuses rules that capture needs: "+why, "see above, or set agent.iptables to the other backend")
		}
	}
	if n.facts.Backends["nft"] > 0 && n.facts.Backends["legacy"] > 0 {
		s.add(Risky, "iptables", n.node, fmt.Sprintf("has rules of both backends (%d nft, %d legacy): both are in force, and who reads one does not see the other",
			n.facts.Backends["nft"], n.facts.Backends["legacy"]), "find out who writes with the other one, and have all use the same")
	}
	if !n.facts.IPv6 {
		s.add(Fine, "IPv6", n.node, "the kernel has none, so only IPv4 is captured", "")
	}
	if n.facts.SELinux == "enforcing" && !s.hasSELinuxOptions() {
		s.add(Risky, "SELinux", n.node, "is enforcing, and the proxy runs as container_t, which may not reach the agent's socket",
			"tacit "+s.verb()+" --set proxy.seLinuxOptions.type=spc_t --set agent.seLinuxOptions.type=spc_t")
	}
}

// verb is how a value of the chart comes to be in force.
func (s *state) verb() string {
	if len(s.agents) == 0 {
		return "install"
	}
	return "upgrade"
}

func (s *state) hasSELinuxOptions() bool {
	return slices.ContainsFunc(s.proxies, func(p core.Pod) bool {
		context := p.Spec.Containers[0].SecurityContext
		return context != nil && context.SELinuxOptions != nil
	})
}

func (s *state) room(n seen) {
	for name, table := range map[string]struct {
		use *facts.Use
		do  string
	}{
		"conntrack":  {n.facts.Conntrack, "raise net.netfilter.nf_conntrack_max on the node: each captured connection takes an entry or two"},
		"open files": {n.facts.Files, "raise fs.file-max on the node"},
	} {
		if table.use == nil || table.use.Max == 0 {
			continue
		}
		if share := float64(table.use.Now) / float64(table.use.Max); share > fullShare {
			s.add(Risky, "Limits", n.node, fmt.Sprintf("%s: %d of %d are in use", name, table.use.Now, table.use.Max), table.do)
		}
	}
	if n.facts.OpenFiles < fewFiles {
		s.add(Risky, "Limits", n.node, fmt.Sprintf("a process in a pod may open %d files, which is enough for %d connections of the node's pods", n.facts.OpenFiles, n.facts.OpenFiles/2),
			"raise LimitNOFILE of the container runtime's service")
	}
}

// conflists looks whether the plugin is in the configuration that is in use.
func (s *state) conflists(n seen) {
	if !n.cni {
		return
	}
	const plugin = "tacit-cni"
	if len(n.facts.CNI) == 0 {
		s.add(Broken, "CNI", n.node, "there is no configuration in the directory that the agent looks at", "set cni.confDir to the container runtime's, or take the --preset of your platform")
		return
	}
	first := n.facts.CNI[0]
	switch {
	case first.Error != "":
		s.add(Broken, "CNI", n.node, first.File+": "+first.Error, "mend the file: no pod can start on this node")
	case slices.Contains(first.Plugins, plugin):
	case len(s.agents) == 0:
		s.add(Fine, "CNI", n.node, fmt.Sprintf("%s has %s, and %s will come after them", first.File, strings.Join(first.Plugins, ", "), plugin), "")
	case slices.ContainsFunc(n.facts.CNI, func(c facts.Conflist) bool { return slices.Contains(c.Plugins, plugin) }):
		s.add(Broken, "CNI", n.node, fmt.Sprintf("%s comes before the file that has %s in it: pods start before they are captured", first.File, plugin),
			"take away the file that is not in use; if something makes it again, have it make only one")
	default:
		s.add(Broken, "CNI", n.node, fmt.Sprintf("%s has no %s in it (%s): pods start before they are captured", first.File, plugin, strings.Join(first.Plugins, ", ")),
			"see the log of tacit-agent there; something may take it out again, such as Cilium's exclusive mode")
	}
}

// clocks compares the nodes with each other.
func (s *state) clocks(all []seen) {
	if len(all) < 2 {
		return
	}
	slices.SortFunc(all, func(a, b seen) int { return int(a.offset - b.offset) })
	behind, ahead := all[0], all[len(all)-1]
	apart := ahead.offset - behind.offset - ahead.doubt - behind.doubt
	text := fmt.Sprintf("its clock is ahead of %s's by %v", behind.node, (ahead.offset - behind.offset).Round(time.Millisecond))
	switch do := "run a time service (chrony, systemd-timesyncd) on both nodes"; {
	case apart > clockBackdate:
		s.add(Broken, "Clocks", ahead.node, text+": certificates seem not to be valid yet, or not any more", do)
	case apart > clockTolerance:
		s.add(Risky, "Clocks", ahead.node, text+": logs of both cannot be compared", do)
	}
}
