package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"

	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/test/world"
)

// As ztunnel's Development.md says how to run it without a control plane: one
// for each of both pods, the workloads from a file, with certificates that it
// signs itself, which takes a ztunnel that was built with "--features testing".
var ztunnelConfig = template.Must(template.New("ztunnel").Parse(`
workloads:
{{- range .}}
- uid: Kubernetes//Pod/plain/{{.Name}}
  name: {{.Name}}
  namespace: plain
  serviceAccount: default
  workloadIps: ["{{.Address}}"]
  protocol: HBONE
  node: {{.Name}}
  network: ""
{{- end}}
policies: []
services: {}
`))

// ztunnelUser tells its own connections from those that it takes.
const ztunnelUser = "1337"

// ztunnelPod is a pod in its configuration.
type ztunnelPod struct{ Name, Address string }

// addZtunnel starts a pair of it and adds its path. One that does not carry a
// connection is as good as absent, and said to be so.
func (m *maker) addZtunnel(ctx context.Context) error {
	if m.Ztunnel == "" || !m.wanted.MatchString(pathZtunnel) {
		if m.Ztunnel == "" {
			m.derive(pathZtunnel, "no file is named with --ztunnel")
		}
		return nil
	}
	client, server := m.world.Pod("plain/ztunnel-client"), m.world.Pod("plain/ztunnel-server")
	file, err := m.writeZtunnelConfig(client, server)
	if err != nil {
		return err
	}
	if err := addRule(ctx, client, "OUTPUT", "--dst", server.Address().String(), "-m", "owner", "!", "--uid-owner", ztunnelUser, "-j", "REDIRECT", "--to-ports", "15001"); err != nil {
		return err
	}
	var pids []int
	for _, pod := range []*world.Pod{client, server} {
		name := filepath.Base(pod.Key)
		// setpriv becomes the program, and env(1) too: the process is ztunnel's.
		cmd := pod.Command(ctx, "env", "FAKE_CA=true", "XDS_ADDRESS=", "LOCAL_XDS_PATH="+file, "NODE_NAME="+name,
			"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=plain/"+name+"/default", "INSTANCE_IP="+pod.Address().String(),
			fmt.Sprintf("ZTUNNEL_WORKER_THREADS=%d", runtime.NumCPU()), "RUST_LOG=error",
			"setpriv", "--reuid="+ztunnelUser, "--regid="+ztunnelUser, "--clear-groups", m.Ztunnel)
		if err := m.started.start(cmd); err != nil {
			return err
		}
		pids = append(pids, cmd.Process.Pid)
	}
	p := m.path(route{Path: report.Path{Name: pathZtunnel, Class: report.Peer}, client: client.Key, server: server.Key, proxies: pids, own: true, programs: true})
	if err := p.Settle(ctx, settleTimeout); err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.derive(pathZtunnel, fmt.Sprintf("%s carries no connection: %v", m.Ztunnel, err))
		return nil
	}
	m.paths = append(m.paths, p)
	return nil
}

// derive notes a peer as absent, whose figures are then others'.
func (m *maker) derive(name, why string) {
	m.absent = append(m.absent, name+": "+why)
	m.derived = append(m.derived, name)
}

func (m *maker) writeZtunnelConfig(pods ...*world.Pod) (string, error) {
	var all []ztunnelPod
	for _, p := range pods {
		name := filepath.Base(p.Key)
		all = append(all, ztunnelPod{Name: name, Address: p.Address().String()})
	}
	var text strings.Builder
	if err := ztunnelConfig.Execute(&text, all); err != nil {
		return "", err
	}
	file := filepath.Join(m.world.Dir(), "ztunnel.yaml")
	return file, os.WriteFile(file, []byte(text.String()), 0o644)
}
