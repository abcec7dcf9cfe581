package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/test/kube/load"
)

// What the opt-in is made of, as users see it.
const (
	dataplaneLabel    = "tacit.mesh/dataplane"
	captureAnnotation = "tacit.mesh/redirection"
	enabled           = "enabled"
)

// inMesh are the labels of a namespace that has opted in.
func inMesh() map[string]string { return map[string]string{dataplaneLabel: enabled} }

// replicas are those of every workload: one a node.
const replicas = 2

// workload is a Deployment with a ServiceAccount of its own, spread over the
// nodes, whose pods run the app with the given arguments. Probes are lines of
// the container.
func (e environment) workload(namespace, name string, args []string, probes string) {
	e.t.Helper()
	image, err := e.AppImage(e.ctx)
	e.must(err)
	quoted, err := json.Marshal(append([]string{}, args...))
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
      serviceAccountName: %[2]s
      terminationGracePeriodSeconds: 20
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: %[2]s}}
      containers:
      - name: app
        image: %[4]q
        args: %[5]s
%[6]s
`, namespace, name, replicas, image, quoted, probes)))
}

// serve makes a server of [load] with a service of the same name; further flags
// are of app serve.
func (e environment) serve(namespace, name string, flags ...string) {
	e.t.Helper()
	e.workload(namespace, name, append([]string{"serve", "--lame-duck=5s"}, flags...), "        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}")
	e.must(e.Apply(e.ctx, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: %[2]s}
  ports: [{name: echo, port: 7000}, {name: web, port: 8080}]
`, namespace, name)))
	e.must(e.AwaitDeployment(e.ctx, namespace, name))
}

// clients are pods that make traffic all the time and count.
type clients struct {
	environment
	namespace, name string
}

// load makes clients of a server, "NAME.NAMESPACE", with further flags of app
// client, and returns when each has had answers of all kinds.
func (e environment) load(namespace, name, server string, flags ...string) clients {
	e.t.Helper()
	c := clients{e, namespace, name}
	e.workload(namespace, name, append([]string{"client", server, "--exchanges=4", "--streams=2", "--requests=2", "--pause=40ms"}, flags...), "")
	e.must(e.AwaitDeployment(e.ctx, namespace, name))
	// Names and virtual addresses of services take a moment to be everywhere:
	// what failed until then is not the mesh's doing.
	c.progress()
	c.restart()
	return c
}

// restart begins the counts anew, with new pods.
func (c clients) restart() {
	c.t.Helper()
	for _, pod := range c.pods() {
		c.must(c.Delete(c.ctx, "v1", "Pod", c.namespace, pod))
	}
	c.must(c.AwaitDeployment(c.ctx, c.namespace, c.name))
	c.progress()
}

// pods are the names of the clients' pods that are not about to end.
func (c clients) pods() []string {
	c.t.Helper()
	return c.podNames(c.namespace, "app="+c.name)
}

func (e environment) podNames(namespace, selector string) []string {
	e.t.Helper()
	list, err := e.Client.CoreV1().Pods(namespace).List(e.ctx, metav1.ListOptions{LabelSelector: selector})
	e.must(err)
	var names []string
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	return names
}

// reports asks each client.
func (c clients) reports() map[string]load.Report {
	c.t.Helper()
	all := map[string]load.Report{}
	for _, pod := range c.pods() {
		report, err := c.report(pod)
		c.must(err)
		all[pod] = report
	}
	return all
}

func (c clients) report(pod string) (load.Report, error) {
	var report load.Report
	out, err := c.Exec(c.ctx, c.namespace, pod, "/app", "report")
	if err != nil {
		return report, err
	}
	return report, json.Unmarshal([]byte(out), &report)
}

// stretch is how many answers of each kind make a test believe that traffic
// goes on.
const stretch = 40

// progress waits until each client has had more answers of every kind.
func (c clients) progress() {
	c.t.Helper()
	for _, pod := range c.pods() {
		var first *load.Report
		c.eventually("traffic of "+c.namespace+"/"+pod, func() error {
			now, err := c.report(pod)
			if err != nil {
				return err
			}
			if first == nil {
				first = &now
			}
			if now.Exchanges.Done < first.Exchanges.Done+stretch || now.Streams.Done < first.Streams.Done+stretch || now.Requests.Done < first.Requests.Done+stretch {
				return fmt.Errorf("not yet: %+v", now)
			}
			return nil
		})
	}
}

// wantNoFailure fails the test if a single exchange, stream or request of any
// client has failed since it began.
func (c clients) wantNoFailure(when string) {
	c.t.Helper()
	for pod, report := range c.reports() {
		for kind, count := range map[string]load.Count{"exchanges": report.Exchanges, "streams": report.Streams, "requests": report.Requests} {
			if count.Failed > 0 || count.Done == 0 {
				c.t.Errorf("%s: %s of %s/%s: %d failed and %d did not: %q", when, kind, c.namespace, pod, count.Failed, count.Done, count.Errors)
			}
		}
	}
}

// label sets a label of a namespace; "null" takes it away.
func (e environment) label(namespace, key, value string) {
	e.t.Helper()
	e.must(e.Patch(e.ctx, "v1", "Namespace", "", namespace, fmt.Sprintf("metadata: {labels: {%s: %s}}", key, value)))
}

// awaitCapture waits until all pods of a namespace that live are captured, or
// none is.
func (e environment) awaitCapture(namespace string, captured bool) {
	e.t.Helper()
	e.awaitAnnotation(namespace, captureAnnotation, captured)
}

// awaitAnnotation waits until all pods of a namespace that live are annotated as
// captured, or none is.
func (e environment) awaitAnnotation(namespace, key string, captured bool) {
	e.t.Helper()
	for _, name := range e.podNames(namespace, "") {
		e.must(Await(e.ctx, e.Cluster, namespace, name, func(pod *corev1.Pod) error {
			if now := pod.Annotations[key]; (now == enabled) != captured {
				return fmt.Errorf("its annotation %s is %q", key, now)
			}
			return nil
		}))
	}
}

// metric sums the samples of a metric of all pods of one of Tacit's programs
// whose labels include the given ones, written as "name=value".
func (e environment) metric(program, port, name string, labels ...string) (float64, error) {
	return e.metricIn(Namespace, program, port, name, labels...)
}

// metricIn is the same of programs in another namespace.
func (e environment) metricIn(namespace, program, port, name string, labels ...string) (float64, error) {
	sum := 0.0
	for _, pod := range e.podNames(namespace, "app.kubernetes.io/name="+program) {
		families, err := e.scrape(namespace, pod, port)
		if err != nil {
			return 0, err
		}
		for _, sample := range families[name].GetMetric() {
			has := map[string]bool{}
			for _, l := range sample.GetLabel() {
				has[l.GetName()+"="+l.GetValue()] = true
			}
			fits := true
			for _, l := range labels {
				fits = fits && has[l]
			}
			if fits {
				sum += sample.GetCounter().GetValue() + sample.GetGauge().GetValue()
			}
		}
	}
	return sum, nil
}

// scrape reads the metrics of a pod of Tacit.
func (e environment) scrape(namespace, pod, port string) (map[string]*dto.MetricFamily, error) {
	text, err := e.Client.CoreV1().Pods(namespace).ProxyGet("http", pod, port, "/metrics", nil).DoRaw(e.ctx)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(text))
}

// encrypted is how many connections from a namespace have been accepted over
// mutual TLS.
func (e environment) encrypted(from string) (float64, error) {
	return e.metric("tacit-proxy", "15020", "istio_tcp_connections_opened_total",
		"reporter=destination", "connection_security_policy=mutual_tls", "source_workload_namespace="+from)
}

// awaitEncrypted waits until more connections from a namespace go over mutual
// TLS.
func (e environment) awaitEncrypted(from string) {
	e.t.Helper()
	e.awaitGrowth("mutual TLS from "+from, func() (float64, error) { return e.encrypted(from) })
}

// awaitGrowth waits until a count has grown by some.
func (e environment) awaitGrowth(what string, count func() (float64, error)) {
	e.t.Helper()
	first := -1.0
	e.eventually(what, func() error {
		now, err := count()
		if err != nil {
			return err
		}
		if first < 0 {
			first = now
		}
		if now < first+stretch {
			return fmt.Errorf("%v, and %v before", now, first)
		}
		return nil
	})
}

// roll replaces all pods of a DaemonSet or Deployment, as kubectl rollout
// restart does, and waits for the new ones.
func (e environment) roll(kind, name string) {
	e.t.Helper()
	e.rollIn(Namespace, kind, name)
}

// rollIn is the same in another namespace.
func (e environment) rollIn(namespace, kind, name string) {
	e.t.Helper()
	patch := fmt.Sprintf("spec: {template: {metadata: {annotations: {rolled-by-test: %q}}}}", time.Now())
	e.must(e.Patch(e.ctx, "apps/v1", kind, namespace, name, patch))
	if kind == "DaemonSet" {
		e.must(e.AwaitDaemonSet(e.ctx, namespace, name))
		return
	}
	e.must(e.AwaitDeployment(e.ctx, namespace, name))
}
