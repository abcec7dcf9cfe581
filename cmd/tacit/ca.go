//go:build !inpod

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/identity/ca"
)

const (
	// How often tacitd is looked at while a rotation goes on.
	caInterval = time.Second
	// How long tacitd has to take a request.
	caTaken = time.Minute
)

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Look after tacitd's certificate authority",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(rotateCommand())
	return cmd
}

const rotateHelp = `Replace the root by which all certificates are judged, in phases, in each of
which everybody accepts what anybody presents:

  distribute  the new root is handed out beside the old one, which still signs,
              until every certificate in use came with both, and every node has
              told tacitd that it has both
  overlap     the new root signs; the old one is kept until the last certificate
              that it signed has ended
  retire      the old root is not handed out any more, and is forgotten as
              certificates are renewed

Each lasts somewhat longer than a certificate may live (--max-certificate-ttl of
tacitd), so all of it takes days where that is 24 hours. No connection is cut.
Nodes that do not have the new root by then are named and waited for; with
--leave-behind they are not. What such a node has to do is said with its name:
once the new root signs, its proxy cannot reach tacitd before that is done. With
tacitd --no-flows nodes tell nothing, and the time alone counts.

After that flag was lowered, wait for as long as it was before you rotate.

It is tacitd that rotates; its state is with the CA. This command asks for it
and shows how far it is: when it is interrupted nothing changes, and when it is
run again it shows the rotation that is under way. tacit certs shows who has
signed each certificate.

The CA is that of a cluster, or with --ca-dir that of a tacitd on this machine.
There, copy ca.crt of that directory to where the proxies have their --root
while the phase is "distribute"; they read it again by themselves.

A CA that tacitd did not make, such as an intermediate of cert-manager, is
rotated where it comes from.

Exit status: 0 it is done, or asked for with --no-wait; 1 it is not.`

const rotateExample = `  tacit ca rotate --dry-run
  tacit ca rotate
  tacit ca rotate --leave-behind
  tacit ca rotate --ca-dir /var/lib/tacit/ca`

func rotateCommand() *cobra.Command {
	var (
		f       cluster.Flags
		dir     string
		dryRun  bool
		command rotation
	)
	cmd := &cobra.Command{
		Use:     "rotate",
		Short:   "Replace the root of the CA by a new one, without anybody noticing",
		Long:    rotateHelp,
		Example: rotateExample,
		Args:    cobra.NoArgs,
	}
	clusterFlags(cmd.Flags(), &f)
	cmd.Flags().StringVar(&dir, "ca-dir", "", "`directory` of the CA, as tacitd on this machine has it, in the place of a cluster's")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen, and when, and change nothing")
	cmd.Flags().BoolVar(&command.leaveBehind, "leave-behind", false, "have the rotation, also the one under way, go on without nodes that do not have the new root")
	cmd.Flags().BoolVar(&command.noWait, "no-wait", false, "end as soon as tacitd has begun")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		command.out, command.width = cmd.OutOrStdout(), terminalWidth(cmd.OutOrStdout())
		command.interval = caInterval
		var err error
		if command.desk, err = deskOf(cmd, &f, dir); err != nil {
			return err
		}
		return command.run(cmd.Context(), dryRun)
	}
	return cmd
}

// deskOf is that of the CA which the flags name.
func deskOf(cmd *cobra.Command, f *cluster.Flags, dir string) (desk, error) {
	if dir != "" {
		if cmd.Flag("kubeconfig").Changed || cmd.Flag("context").Changed || cmd.Flag("tacit-namespace").Changed {
			return nil, errors.New("--ca-dir is about this machine's tacitd, --kubeconfig, --context and --tacit-namespace about a cluster's: give one or the other")
		}
		return dirDesk(dir), nil
	}
	c, err := f.Connect()
	if err != nil {
		return nil, err
	}
	return clusterDesk{c}, nil
}

// desk is where rotations are asked for, and where it shows how far they are.
type desk interface {
	status(ctx context.Context) (ca.Status, error)
	request(ctx context.Context, id string) error
}

type dirDesk string

func (d dirDesk) status(context.Context) (ca.Status, error) {
	_, s, err := ca.ReadStatus(string(d))
	return s, err
}

func (d dirDesk) request(_ context.Context, id string) error {
	dir, _, err := ca.ReadStatus(string(d))
	if err != nil {
		return err
	}
	return dir.Request(id)
}

type clusterDesk struct{ c *cluster.Cluster }

func (d clusterDesk) status(ctx context.Context) (s ca.Status, err error) {
	m, err := d.c.Client.CoreV1().ConfigMaps(d.c.Namespace).Get(ctx, ca.ConfigMap, meta.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && m.Data[ca.StatusKey] == "" {
		return s, fmt.Errorf("tacitd says nothing of its CA in ConfigMap %s/%s: see that it runs, in this version (tacit check)", d.c.Namespace, ca.ConfigMap)
	}
	if err != nil {
		return s, fmt.Errorf("status of the CA: %w", err)
	}
	if err := json.Unmarshal([]byte(m.Data[ca.StatusKey]), &s); err != nil {
		return s, fmt.Errorf("status of the CA in ConfigMap %s/%s: %w", d.c.Namespace, ca.ConfigMap, err)
	}
	return s, nil
}

func (d clusterDesk) request(ctx context.Context, id string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{ca.RequestAnnotation: id}}})
	if err != nil {
		return err
	}
	_, err = d.c.Client.CoreV1().ConfigMaps(d.c.Namespace).Patch(ctx, ca.ConfigMap, types.MergePatchType, patch, meta.PatchOptions{})
	if err != nil {
		return fmt.Errorf("ask for a rotation (it takes the right to patch ConfigMap %s/%s): %w", d.c.Namespace, ca.ConfigMap, err)
	}
	return nil
}

// rotation is one run of the command.
type rotation struct {
	desk   desk
	out    io.Writer
	width  int // of the terminal; 0 if there is none
	noWait bool
	// leaveBehind is to go on without nodes that do not have the new root.
	leaveBehind bool
	// interval is the time between two looks.
	interval time.Duration
}

func (r *rotation) run(ctx context.Context, dryRun bool) error {
	s, err := r.desk.status(ctx)
	if err != nil {
		return err
	}
	p := show.Printer{Out: r.out, Now: time.Now()}
	underWay := s.Rotation.Active()
	if !underWay && s.Fixed != "" {
		return errors.New("this root cannot be rotated by tacitd: " + s.Fixed)
	}
	if dryRun {
		return p.RotationPlan(s)
	}
	if underWay {
		fmt.Fprintln(r.out, "A rotation is under way.")
		if !r.leaveBehind || s.Rotation.LeaveBehind {
			return r.follow(ctx, "")
		}
	}
	id := time.Now().UTC().Format(time.RFC3339Nano)
	if r.leaveBehind {
		id += ca.LeaveBehind
	}
	if err := r.desk.request(ctx, id); err != nil {
		return err
	}
	return r.follow(ctx, id)
}

// follow shows how far it is until it is done. id is of a request that tacitd
// may not have taken yet.
func (r *rotation) follow(ctx context.Context, id string) error {
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	screen := show.NewRotation(r.out, r.width)
	taken := time.After(caTaken)
	for {
		s, err := r.desk.status(ctx)
		rotating := err == nil && s.Rotation != nil && (id == "" || s.Rotation.Request == id || s.Rotation.Active())
		switch {
		case ctx.Err() != nil:
			return r.interrupted()
		case err != nil:
			screen.Problem(err) // it may be back in a moment
		case rotating:
			id, taken = "", nil
			screen.Show(*s.Rotation, time.Now())
			switch {
			case s.Rotation.Phase == ca.Abandoned:
				return errors.New("the rotation was abandoned: somebody replaced the CA meanwhile, and that one is in force")
			case r.noWait || !s.Rotation.Active():
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-taken:
			return fmt.Errorf("tacitd has not begun after %v; see that it runs, and its log. If it takes the request later on, tacit ca rotate shows how far it is", caTaken)
		case <-ctx.Done():
			return r.interrupted()
		}
	}
}

func (r *rotation) interrupted() error {
	return errors.New("not waiting any more; the rotation goes on by itself, and tacit ca rotate shows how far it is")
}
