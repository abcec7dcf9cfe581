package istio

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/tacit-mesh/tacit/test/servers"
)

// ztunnelAdmin is where a node's proxy answers as ztunnel does.
const ztunnelAdmin = "127.0.0.1:15000"

// shown has istioctl's own ztunnel-config show what the client's proxy answers,
// with a connection that is open and a policy.
func (m *mesh) shown(p policy) {
	m.t.Helper()
	dir, err := servers.Build(m.t.Context(), "istiod", os.Stderr)
	m.must(err)
	open, err := m.Dial("mesh/client", serverVIP+":80")
	m.must(err)
	defer open.Close()
	for what, rows := range map[string][]string{
		"workload": {`mesh server 198\.18\.2\.10,fd00:7ac1:2::10 b None HBONE`, `outside plain 198\.18\.1\.30\S* a None TCP`},
		"service":  {`mesh server ` + serverVIP + ` None 1/1`},
		"policy":   {`mesh ` + p.name + ` Deny WorkloadSelector`},
		"certificate": {
			`spiffe://cluster\.local/ns/mesh/sa/client Leaf Available true [0-9a-f]+ \S+Z \S+Z`,
			`spiffe://cluster\.local/ns/mesh/sa/client Root Available true [0-9a-f]+ \S+Z \S+Z`,
		},
		"connections": {`client\.mesh Outbound client\.mesh:\d+ server\.mesh:15008 server\.mesh\.svc\.cluster\.local:80 HBONE`},
	} {
		m.eventually("istioctl ztunnel-config "+what, func() error {
			said, err := m.ztunnelConfig(dir, what)
			if err != nil {
				return err
			}
			for _, row := range rows {
				if !regexp.MustCompile(`(?m)^` + strings.ReplaceAll(row, " ", `\s+`) + `$`).MatchString(said) {
					return fmt.Errorf("no row %s in\n%s", row, said)
				}
			}
			return nil
		})
	}
}

// ztunnelConfig is what it shows of the answer, which it reads from a file here:
// by itself it asks through the API server, which needs a kubelet.
func (m *mesh) ztunnelConfig(dir, what string) (string, error) {
	answer, err := m.Node("a").HTTP().Get("http://" + ztunnelAdmin + "/config_dump")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	dump, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	file := filepath.Join(m.dir, "config_dump")
	m.must(os.WriteFile(file, dump, 0o600))
	cmd := exec.CommandContext(m.context(), filepath.Join(dir, "istioctl"), "ztunnel-config", what, "--file="+file)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+m.istiod.Kubernetes.Kubeconfig)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	return string(said), nil
}
