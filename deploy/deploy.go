// Package deploy holds the Helm chart that installs Tacit on Kubernetes, the
// presets of platforms, and how to render them.
//
// What does not belong here: talking to a cluster (deploy/install).
package deploy

import (
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"
	"sigs.k8s.io/yaml"
)

// The names of an installation, unless it is told otherwise.
const (
	Release   = "tacit"
	Namespace = "tacit-system"
)

// What Kubernetes calls the pod security of a namespace.
const (
	SecurityLabel = "pod-security.kubernetes.io/enforce"
	SecurityLevel = "privileged"
)

//go:embed all:chart
var chartFiles embed.FS

//go:embed presets
var presetFiles embed.FS

// Chart loads the chart as it was built in.
func Chart() (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(chartFiles, "chart", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := chartFiles.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(path, "chart/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the built-in chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load the built-in chart: %w", err)
	}
	return c, nil
}

// Presets names the platforms that there are values for.
func Presets() []string {
	entries, err := presetFiles.ReadDir("presets")
	if err != nil {
		return nil
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[strings.TrimSuffix(e.Name(), ".yaml")] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// Preset reads the values of one platform.
func Preset(name string) (map[string]any, error) {
	text, err := presetFiles.ReadFile("presets/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("preset %q: there is %s", name, strings.Join(Presets(), ", "))
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		return nil, fmt.Errorf("preset %s: %w", name, err)
	}
	return values, nil
}

// NamespaceManifest is the namespace that the chart's objects go to. Its pods
// mount directories of their nodes, which only this level of pod security lets
// through.
func NamespaceManifest(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n  labels:\n    " + SecurityLabel + ": " + SecurityLevel + "\n"
}

// Render is the chart's objects as YAML, without a cluster to ask: kinds that
// are installed only where absent are among them if crds.install says so.
func Render(namespace string, values map[string]any) (string, error) {
	c, err := Chart()
	if err != nil {
		return "", err
	}
	return RenderChart(c, Release, namespace, values)
}

// RenderChart is the same of any chart, as a release of that name.
func RenderChart(c *chart.Chart, name, namespace string, values map[string]any) (string, error) {
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	install := action.NewInstall(config)
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = name, namespace
	install.KubeVersion = &common.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"} // the oldest that there is support for
	out, err := install.Run(c, values)
	if err != nil {
		return "", fmt.Errorf("render the chart: %w", err)
	}
	r, ok := out.(*release.Release)
	if !ok {
		return "", fmt.Errorf("render the chart: Helm gives %T", out)
	}
	return r.Manifest, nil
}
