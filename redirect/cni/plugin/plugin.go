// Package plugin is the chained CNI plugin tacit-cni: it holds back the first
// container of an enrolled pod until the agent has captured the pod, and no
// other pod at all.
//
// It changes nothing itself. For whom it waits, it asks the agent; while that
// does not answer, the API; and while neither does, the list of enrolled
// namespaces that the agent keeps. What does not belong here: anything that
// waits for the proxy, for tacitd or for DNS.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

// Plugin is one installation of the plugin.
type Plugin struct {
	// BinDir is the directory of the plugin's binary, beside which the agent
	// leaves what is needed without it.
	BinDir string
}

// Funcs are the commands of the CNI specification.
func (p *Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Check: p.check, Del: p.del, Status: p.status, GC: p.collect}
}

const (
	defaultTimeout = 20 * time.Second
	delTimeout     = 2 * time.Second
	retryEvery     = 250 * time.Millisecond
)

// config is what a runtime passes on standard input.
type config struct {
	types.PluginConf
	own cni.Config
}

func parse(stdin []byte) (config, error) {
	var c config
	if err := json.Unmarshal(stdin, &c.PluginConf); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration", err.Error())
	}
	if err := json.Unmarshal(stdin, &c.own); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration", err.Error())
	}
	if c.own.Socket == "" {
		return c, types.NewError(types.ErrInvalidNetworkConfig, "the entry of "+cni.Type+" names no socket", "tacit-agent writes the entry; delete it, and it writes a new one")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "result of the plugin before", err.Error())
	}
	return c, nil
}

func (c config) timeout() time.Duration {
	if c.own.TimeoutSeconds <= 0 {
		return defaultTimeout
	}
	return time.Duration(c.own.TimeoutSeconds) * time.Second
}

// podArgs are those that Kubernetes' runtimes pass (their names by the CNI
// conventions).
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

// attachment is the pod, or nil if it is none of Kubernetes' or never waits.
func attachment(args *skel.CmdArgs, c config) (*cni.Attachment, error) {
	var pod podArgs
	pod.IgnoreUnknown = true
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS", err.Error())
	}
	if pod.K8S_POD_NAMESPACE == "" || slices.Contains(c.own.SkipNamespaces, string(pod.K8S_POD_NAMESPACE)) {
		return nil, nil
	}
	return &cni.Attachment{
		Namespace: string(pod.K8S_POD_NAMESPACE), Pod: string(pod.K8S_POD_NAME), UID: string(pod.K8S_POD_UID),
		Container: args.ContainerID, NetNS: args.Netns,
	}, nil
}

// add prints the result of the plugins before this one, as it is.
func (p *Plugin) add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, cni.Type+" must come after the plugin that makes the pod's network", "")
	}
	a, err := attachment(args, c)
	if err != nil {
		return err
	}
	if a != nil {
		if err := p.await(c, a, cni.PathAdd); err != nil {
			return err
		}
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

func (p *Plugin) check(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	a, err := attachment(args, c)
	if err != nil || a == nil {
		return err
	}
	return p.await(c, a, cni.PathCheck)
}

// del tells the agent, which finds out by itself, too: that it does not answer
// is no error.
func (p *Plugin) del(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return nil // what is not readable now must not keep the pod from going
	}
	if a, err := attachment(args, c); err == nil && a != nil {
		ctx, cancel := context.WithTimeout(context.Background(), delTimeout)
		defer cancel()
		_, _ = ask(ctx, c.own.Socket, cni.PathDel, a)
	}
	return nil
}

// status says yes while the agent is away, too: pods that are not enrolled,
// the agent among them, do not need it, and a runtime that is told no makes
// none.
func (p *Plugin) status(args *skel.CmdArgs) error {
	_, err := parse(args.StdinData)
	return err
}

// collect has nothing to do: the agent lets go of pods that are gone.
func (p *Plugin) collect(*skel.CmdArgs) error { return nil }

// await returns when the pod is as it should be: captured or not enrolled.
func (p *Plugin) await(c config, a *cni.Attachment, path string) error {
	if err := complete(a, c.PrevResult); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout())
	defer cancel()
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	decided := false
	for {
		answer, err := ask(ctx, c.own.Socket, path, a)
		if err == nil {
			return verdict(a, answer)
		}
		if !decided { // the agent is away: wait for it only if it has to do with this pod
			wanted, why := p.wanted(ctx, a)
			if !wanted {
				return nil
			}
			decided = true
			err = errors.Join(err, why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return types.NewError(types.ErrTryAgainLater,
				fmt.Sprintf("pod %s/%s is enrolled in the mesh (label tacit.mesh/dataplane), and tacit-agent did not answer on %s within %v", a.Namespace, a.Pod, c.own.Socket, c.timeout()),
				fmt.Sprintf("see whether the pod of the DaemonSet tacit-agent on this node runs; the last error: %v", err))
		}
	}
}

func verdict(a *cni.Attachment, answer cni.Answer) error {
	if !answer.Enrolled || answer.Error == "" {
		return nil
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s/%s is enrolled in the mesh and not captured", a.Namespace, a.Pod), answer.Error)
}

// complete adds what the agent needs to find and to verify the pod's network.
func complete(a *cni.Attachment, previous types.Result) error {
	id, err := netns.At(a.NetNS)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS", err.Error())
	}
	a.NetNSDevice, a.NetNSInode = id.Dev, id.Inode
	if previous == nil {
		return nil
	}
	result, err := current.NewResultFromResult(previous)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "result of the plugin before", err.Error())
	}
	for _, ip := range result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && isInPod(result, ip) {
			a.Addresses = append(a.Addresses, addr.Unmap())
		}
	}
	return nil
}

// isInPod reports whether an address is on an interface inside the pod; one
// that is on no interface in particular is.
func isInPod(r *current.Result, ip *current.IPConfig) bool {
	if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces) {
		return true
	}
	return r.Interfaces[*ip.Interface].Sandbox != ""
}
