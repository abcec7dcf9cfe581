// Package install puts Tacit on a cluster, replaces it by another version, and
// takes it away again, with nothing left on the nodes; and has these looked at
// before.
//
// What does not belong here: what is installed (deploy), and whether a cluster
// is fit for it (deploy/check).
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	helmvalues "helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// Options are what a person chose.
type Options struct {
	Preset string   // of a platform; "" for none
	Files  []string // of values, each over the ones before
	Set    []string // single values, over the files: "proxy.drainSeconds=60"
	// Timeout is how long to wait until all is ready. 0: do not wait.
	Timeout time.Duration
	Out     io.Writer // progress
	// Width is that of the terminal that Out is; 0 if it is none. On a terminal
	// lines are drawn over.
	Width int
}

// Values are the preset's, the files' and the single ones, the later over the
// earlier.
func (o Options) Values() (map[string]any, error) {
	values := map[string]any{}
	if o.Preset != "" {
		var err error
		if values, err = deploy.Preset(o.Preset); err != nil {
			return nil, err
		}
	}
	given, err := (&helmvalues.Options{ValueFiles: o.Files, Values: o.Set}).MergeValues(nil)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	return loader.MergeMaps(values, given), nil
}

// Install puts Tacit on the cluster and waits until it is ready on every node.
func Install(ctx context.Context, c *cluster.Cluster, o Options) error {
	values, err := o.Values()
	if err != nil {
		return err
	}
	// What the chart itself refuses is said before anything is changed.
	if _, err := deploy.Render(c.Namespace, values); err != nil {
		return err
	}
	config, err := helm(c)
	if err != nil {
		return err
	}
	if err := ensureNamespace(ctx, c); err != nil {
		return err
	}
	chart, err := deploy.Chart()
	if err != nil {
		return err
	}
	last, err := lastRelease(config)
	if err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
		return fmt.Errorf("look for an earlier installation: %w", err)
	}
	if err == nil {
		if problem := refusal(last); problem != nil {
			return problem
		}
	}
	install := action.NewInstall(config)
	install.ReleaseName, install.Namespace = deploy.Release, c.Namespace
	install.WaitStrategy = kube.HookOnlyStrategy // the progress display waits
	install.Replace = true                       // an installation that failed
	fmt.Fprintf(o.Out, "Installing Tacit %s into namespace %s.\n", chart.Metadata.AppVersion, c.Namespace)
	if _, err := install.RunWithContext(ctx, chart, values); err != nil {
		return fmt.Errorf("apply the chart: %w", err)
	}
	return o.wait(ctx, c, cluster.Control, cluster.Agent, cluster.Proxy)
}

// refusal says why there cannot be another installation over the last one.
func refusal(last *release.Release) error {
	switch status := last.Info.Status; {
	case status.IsPending():
		return fmt.Errorf("an installation was begun %s ago and not finished. If it is not running any more: tacit uninstall, then tacit install again",
			time.Since(last.Info.LastDeployed).Round(time.Second))
	case status == "failed" || status == "uninstalled":
		return nil
	}
	return fmt.Errorf("there is Tacit %s in namespace %s already. To change it: tacit upgrade", last.Chart.Metadata.AppVersion, last.Namespace)
}

// helm is what Helm's library needs for each action. Its own log would only
// repeat errors.
func helm(c *cluster.Cluster) (*action.Configuration, error) {
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := config.Init(c.Getter, c.Namespace, ""); err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	return config, nil
}

func lastRelease(config *action.Configuration) (*release.Release, error) {
	last, err := config.Releases.Last(deploy.Release)
	if err != nil {
		return nil, err
	}
	r, ok := last.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("release %s: Helm gives %T", deploy.Release, last)
	}
	return r, nil
}

// The label of a namespace that an installation has made.
const (
	ownerLabel = "app.kubernetes.io/managed-by"
	owner      = "tacit"
)

func ensureNamespace(ctx context.Context, c *cluster.Cluster) error {
	namespaces := c.Client.CoreV1().Namespaces()
	now, err := namespaces.Get(ctx, c.Namespace, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = namespaces.Create(ctx, &core.Namespace{ObjectMeta: meta.ObjectMeta{
			Name: c.Namespace, Labels: map[string]string{ownerLabel: owner, deploy.SecurityLabel: deploy.SecurityLevel},
		}}, meta.CreateOptions{})
		if err != nil {
			return fmt.Errorf("make namespace %s: %w", c.Namespace, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", c.Namespace, err)
	}
	if now.DeletionTimestamp != nil {
		return fmt.Errorf("namespace %s is being deleted: wait until it is gone", c.Namespace)
	}
	if level := now.Labels[deploy.SecurityLabel]; level != deploy.SecurityLevel {
		return fmt.Errorf("namespace %s does not let in pods that mount directories of their nodes (%s=%q). If it is for Tacit alone:"+
			" kubectl label --overwrite namespace %s %s=%s", c.Namespace, deploy.SecurityLabel, level, c.Namespace, deploy.SecurityLabel, deploy.SecurityLevel)
	}
	return nil
}
