package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/postrenderer"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"helm.sh/helm/v4/pkg/storage/driver"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// Upgrade replaces what is installed by this version, with the values of the
// installation and the given ones over them. The nodes come first: a newer
// proxy understands an older tacitd, and what a newer tacitd sends is enforced
// only where every proxy understands it.
func Upgrade(ctx context.Context, c *cluster.Cluster, o Options) error {
	values, err := o.Values()
	if err != nil {
		return err
	}
	config, err := helm(c)
	if err != nil {
		return err
	}
	last, err := lastRelease(config)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return fmt.Errorf("there is no Tacit in namespace %s: tacit install, or name its namespace with --tacit-namespace", c.Namespace)
	}
	if err != nil {
		return fmt.Errorf("look for the installation: %w", err)
	}
	chart, err := deploy.Chart()
	if err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "Upgrading Tacit from %s to %s: the nodes, then the control plane.\n",
		last.Chart.Metadata.AppVersion, chart.Metadata.AppVersion)
	if err := apply(ctx, config, chart, values, keepControl(last.Manifest)); err != nil {
		return err
	}
	if err := o.wait(ctx, c, cluster.Agent, cluster.Proxy); err != nil {
		return err
	}
	// The values are those of the release by now.
	if err := apply(ctx, config, chart, nil, nil); err != nil {
		return err
	}
	return o.wait(ctx, c, cluster.Control, cluster.Agent, cluster.Proxy)
}

func apply(ctx context.Context, config *action.Configuration, chart *chartv2.Chart, values map[string]any, change postrenderer.PostRenderer) error {
	upgrade := action.NewUpgrade(config)
	upgrade.WaitStrategy = kube.HookOnlyStrategy // the progress display waits
	upgrade.ResetThenReuseValues = true
	upgrade.MaxHistory = 10
	upgrade.PostRenderer = change
	if _, err := upgrade.RunWithContext(ctx, deploy.Release, chart, values); err != nil {
		return fmt.Errorf("apply the chart: %w", err)
	}
	return nil
}

// keepControl leaves the objects of tacitd as an earlier manifest has them.
func keepControl(earlier string) postrenderer.PostRenderer {
	before := map[string]string{}
	for _, doc := range releaseutil.SplitManifests(earlier) {
		if key, ours := controlKey(doc); ours {
			before[key] = doc
		}
	}
	return rewrite(func(doc string) string {
		key, ours := controlKey(doc)
		if old, there := before[key]; ours && there {
			return old
		}
		return doc
	})
}

// controlKey names an object, and reports whether it is of tacitd.
func controlKey(doc string) (key string, ours bool) {
	var o struct {
		Kind     string
		Metadata struct {
			Name   string
			Labels map[string]string
		}
	}
	if yaml.Unmarshal([]byte(doc), &o) != nil {
		return "", false
	}
	return o.Kind + "/" + o.Metadata.Name, o.Metadata.Labels["app.kubernetes.io/name"] == cluster.Control
}

// rewrite is a post-renderer that looks at one object at a time.
type rewrite func(doc string) string

// Run implements postrenderer.PostRenderer.
func (r rewrite) Run(in *bytes.Buffer) (*bytes.Buffer, error) {
	var out bytes.Buffer
	for _, doc := range releaseutil.SplitManifests(in.String()) {
		fmt.Fprintf(&out, "---\n%s\n", r(doc))
	}
	return &out, nil
}
