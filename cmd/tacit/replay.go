package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/replay"
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/meshconfig"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

// meshFlags are a mesh of objects, in the place of what proxies know.
type meshFlags struct {
	policies, mesh    []string
	instead           bool
	root, trustDomain string
	config            string
	skips             func() (model.SkipSettings, error)
}

func (f *meshFlags) flags(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringSliceVar(&f.policies, "policies", nil, "`files` or directories of candidate policies")
	set.StringSliceVar(&f.mesh, "mesh", nil, "`files` or directories of the mesh's objects")
	set.BoolVar(&f.instead, "instead", false, "take the candidates in the place of all policies of the mesh")
	set.StringVar(&f.root, "root-namespace", build.DefaultRootNamespace, "with --mesh, `namespace` whose policies cover the whole mesh")
	set.StringVar(&f.trustDomain, "trust-domain", "", "with --mesh, trust `domain` of the identities, if it is not cluster.local")
	set.StringVar(&f.config, "mesh-config", "", "with --mesh, the `file` of tacitd --mesh-config (of a cluster, what is in the ConfigMap tacit-mesh)")
	f.skips = cli.Skips(cmd)
}

// read makes the mesh, and says on the way what of it has no effect as written.
// Candidates that are named must be policies.
func (f *meshFlags) read(cmd *cobra.Command) (*model.Snapshot, error) {
	skips, err := f.skips()
	if err != nil {
		return nil, err
	}
	objects, errs := files.Read(f.mesh...)
	candidates, more := files.Read(f.policies...)
	if err := errors.Join(append(errs, more...)...); err != nil {
		return nil, err
	}
	policies := build.Objects{AuthorizationPolicies: candidates.AuthorizationPolicies, PeerAuthentications: candidates.PeerAuthentications,
		RequestAuthentications: candidates.RequestAuthentications}
	if len(f.policies) > 0 && len(policies.AuthorizationPolicies)+len(policies.PeerAuthentications)+len(policies.RequestAuthentications) == 0 {
		return nil, errors.New("there is no policy among the candidates")
	}
	settings := build.Settings{RootNamespace: f.root, TrustDomain: f.trustDomain, Skips: skips}
	// By which certificates providers are known is of no interest: none is asked.
	if err := meshconfig.Read(f.config, &settings, noFile); err != nil {
		return nil, err
	}
	mesh, remarks := replay.Mesh(settings, *objects, policies, f.instead)
	for _, remark := range remarks {
		fmt.Fprintln(cmd.ErrOrStderr(), "tacit:", remark)
	}
	return mesh, nil
}

// replayFlags are what a replay is made of.
type replayFlags struct {
	meshFlags
	flows string
	since time.Duration
}

func replayCommand() *cobra.Command {
	var (
		c client
		f replayFlags
	)
	cmd := &cobra.Command{
		Use:   "replay --policies DIR --mesh FILE",
		Short: "Say which recorded connections other policies would deny or allow",
		Long: `Decide about the connections and requests of the last minutes once more, with
candidate policies that are not in force, and list what would newly be denied
or allowed. So that STRICT, or a default that denies, comes without surprises.

The candidates are AuthorizationPolicies, PeerAuthentications and
RequestAuthentications. They take the place of those in --mesh that have the
same name, and stand beside the others; with --instead, in the place of all.
--mesh has the pods, namespaces, services, policies and revoked identities of
the cluster, as kubectl or the manifests of tacitd --from have them. What a
policy denied that is not among them cannot be told.

The records are those that tacit flows lists, of all nodes; with --flows, those
of a file that tacit flows -o json has written, so that nothing is asked of
anybody. Where a decision needs what was not recorded, such as a header, that
is said. Limits of rates are not replayed. Nobody is asked, either: what a policy
with the action CUSTOM covers cannot be told, unless --mesh-config is given and
has no such provider, which denies it.

Exit status: 0 nothing would newly be denied, 3 something would, 4 nothing would
as far as it can be told without the nodes that are missing, 1 there is no
answer.`,
		Example: `  kubectl get pods,namespaces,services,authorizationpolicies,peerauthentications,requestauthentications,revokedidentities -A -o yaml > mesh.yaml
  tacit replay --mesh mesh.yaml --policies strict.yaml --since 1h
  tacit flows --since 1h --limit 65536 -o json > flows.json
  tacit replay --mesh mesh.yaml --policies policies/ --flows flows.json`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	f.meshFlags.flags(cmd)
	cmd.Flags().StringVar(&f.flows, "flows", "", "`file` of tacit flows -o json, in the place of what proxies remember")
	cmd.Flags().DurationVar(&f.since, "since", 10*time.Minute, "how far to look back")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(f.policies) == 0 || len(f.mesh) == 0 {
			return errors.New("replay: name the candidate policies with --policies and the mesh's objects with --mesh; see tacit replay --help")
		}
		return c.replay(cmd, f)
	}
	return cmd
}

func (c *client) replay(cmd *cobra.Command, f replayFlags) error {
	if err := checkOutput(c.output, c.more...); err != nil {
		return err
	}
	mesh, err := f.read(cmd)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	r, err := c.recorded(cmd, f)
	if err != nil {
		return err
	}
	result := replay.Run(mesh, r.flows, f.instead)
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, struct {
			replay.Result
			Partial bool      `json:"partial"`
			Missing []missing `json:"missing"`
		}{result, len(r.missing) > 0, r.missing})
	} else {
		p := c.printer(cmd)
		err = errors.Join(p.Replay(result), partial(p, r.missing, r.asked))
	}
	return ended(cmd, err, r.failed, result.Count(replay.NewlyDenied) > 0)
}

// recordings are what happened, and of whom it is not known.
type recordings struct {
	flows   []flows.Flow
	missing []missing
	asked   int   // nodes
	failed  error // that there are missing ones
}

func (c *client) recorded(cmd *cobra.Command, f replayFlags) (recordings, error) {
	if f.flows != "" {
		return readRecords(f.flows)
	}
	all, err := c.proxies(cmd, about{})
	if err != nil {
		return recordings{}, err
	}
	query := url.Values{"since": {f.since.String()}, "limit": {strconv.Itoa(admin.MaxFlows)}, "direction": {"inbound"}}
	answers := askAll[admin.Flows](cmd, all, "/flows", query)
	r := recordings{asked: len(all), failed: failures(answers)}
	if r.missing, err = partly(answers); err != nil {
		return recordings{}, err
	}
	for _, a := range answers {
		r.flows = append(r.flows, a.value.Flows...)
	}
	return r, nil
}

// readRecords reads what tacit flows -o json has written.
func readRecords(file string) (recordings, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return recordings{}, fmt.Errorf("replay: %w", err)
	}
	var written struct {
		Flows   *[]flows.Flow
		Missing []missing
	}
	if err := json.Unmarshal(text, &written); err != nil {
		return recordings{}, fmt.Errorf("replay: %s is not what tacit flows -o json of this version writes: %w", file, err)
	}
	if written.Flows == nil {
		return recordings{}, fmt.Errorf("replay: %s is not what tacit flows -o json writes: it has no flows", file)
	}
	nodes := map[string]bool{}
	for _, flow := range *written.Flows {
		nodes[flow.Node] = true
	}
	r := recordings{flows: *written.Flows, missing: append([]missing{}, written.Missing...), asked: len(nodes) + len(written.Missing)}
	if len(r.missing) > 0 {
		r.failed = partialError{fmt.Errorf("replay: %d nodes gave no answer when %s was written", len(r.missing), file)}
	}
	return r, nil
}
