package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/page"
	"github.com/tacit-mesh/tacit/sight/traffic"
)

// roles are for people: who may look into all of the mesh, who may find its
// proxies but run nothing there, who may list the pods of a namespace, and who
// may write objects of our kinds, as one who may write everything does.
const roles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-looks}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list]}
- {apiGroups: [""], resources: [pods/exec], verbs: [create, get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-lists}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-writes}
rules: [{apiGroups: [policy.tacit.mesh], resources: ["*"], verbs: [get, list, watch, create, update, patch, delete]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-ui}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tacit-ui}
subjects: [{kind: ServiceAccount, name: guest, namespace: people}]
`

// sight shows people of the mesh what their rights let them see, by command and
// on the map, and lets who may suspend it.
func (e environment) sight(web clients) {
	e.t.Helper()
	e.newNamespace(peopleNamespace, nil)
	e.must(e.Apply(e.ctx, roles+"---"+fmt.Sprintf(requireTLS, "shop")))
	e.atEnd(func(e environment) error {
		errs := []error{e.Delete(e.ctx, "rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "", "test-ui")}
		for _, name := range []string{"test-looks", "test-lists", "test-writes"} {
			errs = append(errs, e.Delete(e.ctx, "rbac.authorization.k8s.io/v1", "ClusterRole", "", name))
		}
		return errors.Join(errs...)
	})
	operator, guest := e.person("operator"), e.person("guest")
	e.allow("operator", Namespace, "ClusterRole", "test-looks")
	e.allow("guest", Namespace, "Role", "tacit-ui")
	e.questions(operator, guest, web)
	e.onTheMap(guest)
	e.breakGlass(operator, guest, web)
	e.must(e.Delete(e.ctx, "security.istio.io/v1", "PeerAuthentication", "shop", "strict"))
}

// questions are asked of the proxies, as a plugin of kubectl, by one who may run
// things in their pods; one who may not gets no answer.
func (e environment) questions(operator, guest environment, web clients) {
	e.t.Helper()
	plugin := filepath.Join(e.t.TempDir(), "kubectl-tacit")
	program, err := filepath.Abs(filepath.Join(e.programs, "tacit"))
	e.must(err, os.Symlink(program, plugin))
	ask := func(who environment, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(e.ctx, plugin, args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+who.Kubeconfig) // as kubectl has it
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, complaint.String())
		}
		return out, err
	}
	if out, err := ask(operator, "help"); err != nil || !strings.Contains(string(out), "kubectl tacit [command]") {
		e.t.Errorf("the plugin does not know its name: %v\n%s", err, out)
	}
	from := "web/" + web.pods()[0]
	for _, question := range []struct {
		args  []string
		check func(answer []byte) error
	}{
		{[]string{"tap", "--to=shop/", "--count=4", "-o=json"}, tapIsOfBothEnds},
		{[]string{"top", "--interval=1s", "-o=json"}, topHasThePair},
		{[]string{"flows", "--to=shop/", "-o=json"}, flowsOfBothNodes},
		{[]string{"explain", "--from=" + from, "--to=shop.shop:7000", "-o=json"}, isAllowed},
	} {
		e.eventually(strings.Join(question.args, " "), func() error {
			answer, err := ask(operator, question.args...)
			if err != nil {
				return err
			}
			if err := question.check(answer); err != nil {
				return fmt.Errorf("%w in %.2000s", err, answer)
			}
			return nil
		})
		if answer, err := ask(guest, question.args...); err == nil || len(answer) > 0 || !strings.Contains(err.Error(), "the right to create pods/exec in namespace "+Namespace) {
			e.t.Errorf("%v by one who may not: %v, %.500s", question.args, err, answer)
		}
	}
}

func tapIsOfBothEnds(answer []byte) error {
	for in := json.NewDecoder(strings.NewReader(string(answer))); ; {
		var f flows.Flow
		if err := in.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if f.Source.Namespace != "web" || f.Destination.Namespace != "shop" || f.Security != "mtls" && f.Security != "local" {
			return fmt.Errorf("another flow, %+v", f)
		}
	}
}

func topHasThePair(answer []byte) error {
	var top struct {
		Rates   []traffic.Rate
		Partial bool
	}
	if err := json.Unmarshal(answer, &top); err != nil || top.Partial {
		return errors.Join(err, fmt.Errorf("partial: %v", top.Partial))
	}
	for _, r := range top.Rates {
		if r.Source.Namespace == "web" && r.Destination.Namespace == "shop" && r.Connections > 0 {
			return nil
		}
	}
	return errors.New("web and shop are no pair")
}

func flowsOfBothNodes(answer []byte) error {
	var list struct {
		Flows   []flows.Flow
		Partial bool
	}
	if err := json.Unmarshal(answer, &list); err != nil || list.Partial {
		return errors.Join(err, fmt.Errorf("partial: %v", list.Partial))
	}
	nodes := map[string]bool{}
	for _, f := range list.Flows {
		nodes[f.Node] = true
	}
	if len(nodes) < replicas {
		return fmt.Errorf("flows of the nodes %v alone", nodes)
	}
	return nil
}

func isAllowed(answer []byte) error {
	var e admin.Explanation
	if err := json.Unmarshal(answer, &e); err != nil || e.Outcome != admin.Allowed {
		return errors.Join(err, fmt.Errorf("it is %s", e.Outcome))
	}
	return nil
}

// onTheMap is what tacitd has been told by all nodes. Of it is shown what is about
// the namespaces whose pods somebody may list, which at first is Tacit's own.
func (e environment) onTheMap(guest environment) {
	e.t.Helper()
	e.eventually("the map", func() error {
		all := e.mapFor(e)
		if all.Missing > 0 || all.Partly {
			return fmt.Errorf("nodes %v tell nothing, partly: %v", all.Nodes, all.Partly)
		}
		if edge := edgeOf(all, "web", "shop"); edge == nil || edge.MTLS == 0 {
			return fmt.Errorf("from web to shop: %+v", edge)
		}
		return nil
	})
	seen := e.mapFor(guest)
	if !seen.Partly || len(seen.Edges)+len(seen.Nodes) > 0 {
		e.t.Errorf("one who may list the pods of %s sees %+v", Namespace, seen)
	}
	e.wantOnly(seen, Namespace)
	e.allow("guest", "web", "ClusterRole", "test-lists")
	e.eventually("the map of a namespace", func() error {
		seen := e.mapFor(guest)
		e.wantOnly(seen, Namespace, "web")
		if edge := edgeOf(seen, "web", ""); !seen.Partly || edge == nil || edge.MTLS == 0 {
			return fmt.Errorf("partly: %v, from web: %+v", seen.Partly, edge)
		}
		return nil
	})
}

// wantOnly fails the test if a map has workloads of other namespaces.
func (e environment) wantOnly(seen page.Map, namespaces ...string) {
	e.t.Helper()
	for _, w := range seen.Workloads {
		if w.Namespace != "" && !slices.Contains(namespaces, w.Namespace) {
			e.t.Errorf("one who may list the pods of %q sees %s/%s", namespaces, w.Namespace, w.Name)
		}
	}
}

// edgeOf is the first between workloads of two namespaces; nil if there is none.
func edgeOf(m page.Map, from, to string) *page.Edge {
	for i, edge := range m.Edges {
		if m.Workloads[edge.From].Namespace == from && m.Workloads[edge.To].Namespace == to {
			return &m.Edges[i]
		}
	}
	return nil
}

// mapFor is what tacit ui leads somebody's browser to.
func (e environment) mapFor(who environment) (seen page.Map) {
	e.t.Helper()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(e.programs, "tacit"), "ui", "--kubeconfig="+who.Kubeconfig)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	e.must(err, cmd.Start())
	defer func() {
		cancel()
		_ = cmd.Wait() // it was told to end
	}()
	var where *url.URL
	for lines := bufio.NewScanner(out); where == nil; {
		if !lines.Scan() {
			e.t.Fatalf("tacit ui ends without an address: %s", complaint.String())
		}
		if text := strings.TrimSpace(lines.Text()); strings.HasPrefix(text, "http://") {
			where, err = url.Parse(text)
			e.must(err)
		}
	}
	jar, err := cookiejar.New(nil)
	e.must(err)
	browser := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{where.RequestURI(), "/api/map?minutes=60"} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+where.Host+path, nil)
		e.must(err)
		response, err := browser.Do(request)
		e.must(err)
		text, err := io.ReadAll(response.Body)
		e.must(err, response.Body.Close())
		if response.StatusCode != http.StatusOK {
			e.t.Fatalf("%s: %s %s", path, response.Status, text)
		}
		if path != where.RequestURI() {
			e.must(json.Unmarshal(text, &seen))
		}
	}
	return seen
}
