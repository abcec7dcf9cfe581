package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	otlplogs "go.opentelemetry.io/proto/otlp/logs/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
)

// breakGlass suspends the mesh for a pod under load. Nothing fails and no
// connection is cut; its peers under STRICT deny it and say so; it ends by
// itself, and who began it and why is on record.
func (e environment) breakGlass(operator, guest environment, web clients) {
	e.t.Helper()
	collector := e.audited()
	pods := e.podNames("shop", "app=shop")
	one, peer := pods[0], e.addressOf("shop", pods[1])
	begin := []string{"bypass", "shop/" + one, "--for=1h", "--reason=a drill of many words"}
	e.allow("guest", "shop", "ClusterRole", "test-writes")
	e.allow("operator", "shop", "ClusterRole", "tacit-bypass")
	e.eventually("to write objects does not suffice", func() error {
		if out, err := guest.Tacit(e.ctx, begin...); err == nil || !strings.Contains(out, "a bypass takes the verb bypass") {
			return errors.Join(err, fmt.Errorf("it says %s", out))
		}
		return nil
	})
	e.eventually("a bypass begins", func() error {
		_, err := operator.Tacit(e.ctx, begin...)
		return err
	})
	e.eventually("nobody bypasses in another's name", func() error {
		err := operator.Apply(e.ctx, fmt.Sprintf(inAnothersName, time.Now().Add(time.Minute).UTC().Format(time.RFC3339)))
		if err == nil || !strings.Contains(err.Error(), "spec.by is the user who makes the bypass") {
			return errors.Join(err, errors.New("it is not refused for its author"))
		}
		return nil
	})

	e.awaitCaptureOf("shop", one, false)
	e.awaitGrowth("connections in clear to the pod", func() (float64, error) {
		return e.metric("tacit-proxy", "15020", "istio_tcp_connections_opened_total", "reporter=source", "connection_security_policy=unknown", "source_workload_namespace=web")
	})
	web.progress()
	web.wantNoFailure("a bypass begins")
	e.eventually("a STRICT peer denies the pod and says why", func() error {
		e.wantDenied(e.exchange("shop", one, peer))
		out, err := operator.Tacit(e.ctx, "connections", "--denied")
		if want := "its client is under bypass shop/bypass-shop-"; err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("no %q in %s", want, out)
		}
		return err
	})
	b := operator.bypassIn("shop", one)
	if want := "system:serviceaccount:" + peopleNamespace + ":operator"; b.Spec.By != want || b.Spec.Reason != "a drill of many words" {
		e.t.Errorf("on record is %+v, want it by %s", b.Spec, want)
	}

	// Nobody ends it: its time comes.
	e.must(e.Patch(e.ctx, bypass.Version, "Bypass", "shop", b.Name, fmt.Sprintf("spec: {until: %q}", time.Now().Add(3*time.Second).UTC().Format(time.RFC3339))))
	e.awaitCaptureOf("shop", one, true)
	e.awaitEncrypted("web")
	e.eventually("the pod has its identity again", func() error { return e.exchange("shop", one, peer) })
	web.progress()
	web.wantNoFailure("a bypass ends")
	if out, err := operator.Tacit(e.ctx, "bypass", "end", "shop/"+one); err == nil || !strings.Contains(out, "no bypass of that name") {
		e.t.Errorf("it is still in force: %v, %s", err, out)
	}
	if collector != nil {
		e.eventually("both are in the audit log", func() error { return hasBypass(collector.Logs(e.t, anything), b.String(), b.Spec.By) })
	}
}

const inAnothersName = `
apiVersion: policy.tacit.mesh/v1alpha1
kind: Bypass
metadata: {name: forged, namespace: shop}
spec: {pod: none, until: %q, reason: none, by: system:admin}
`

// awaitCaptureOf waits until a pod is captured, or is not.
func (e environment) awaitCaptureOf(namespace, name string, captured bool) {
	e.t.Helper()
	e.must(Await(e.ctx, e.Cluster, namespace, name, func(pod *corev1.Pod) error {
		if now := pod.Annotations[captureAnnotation]; (now == enabled) != captured {
			return fmt.Errorf("its annotation %s is %q", captureAnnotation, now)
		}
		return nil
	}))
}

// addressOf is the first of a pod's.
func (e environment) addressOf(namespace, pod string) string {
	e.t.Helper()
	addresses, err := e.PodAddresses(e.ctx, namespace, pod)
	e.must(err)
	if len(addresses) == 0 {
		e.t.Fatalf("%s/%s has no address", namespace, pod)
	}
	return addresses[0]
}

// bypassIn is the one of a pod, as tacit bypass lists it to one who may see those
// of its namespace alone.
func (e environment) bypassIn(namespace, pod string) *bypass.Bypass {
	e.t.Helper()
	out, err := e.Tacit(e.ctx, "bypass", "list", namespace, "-o=json")
	var list struct{ Bypasses []*bypass.Bypass }
	e.must(err, json.Unmarshal([]byte(out), &list))
	for _, b := range list.Bypasses {
		if b.Spec.Pod == pod {
			return b
		}
	}
	e.t.Fatalf("no bypass of %s/%s in %s", namespace, pod, out)
	return nil
}

// audited has tacitd tell a collector of what it audits, until the end of the
// test; nil where a cluster of another's cannot reach this machine.
func (e environment) audited() *otlptest.Collector {
	e.t.Helper()
	if !e.Ours() {
		return nil
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(gateway4, "0"))
	e.must(err)
	collector := otlptest.Start(e.t, listener, nil)
	args := []string{"--otlp=http://" + listener.Addr().String(), "--audit-otlp"}
	e.tacitdArgs(func(now []string) []string { return append(now, args...) })
	e.atEnd(func(e environment) error {
		e.tacitdArgs(func(now []string) []string { return now[:len(now)-len(args)] })
		return e.disown("tacitd")
	})
	return collector
}

// tester is who has changed what the installer is to own again.
const tester = "test"

// disown has a Deployment say of nothing that it is the tester's, so that the
// installer may change it.
func (e environment) disown(name string) error {
	deployments := e.Client.AppsV1().Deployments(Namespace)
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		d, err := deployments.Get(e.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		d.ManagedFields = slices.DeleteFunc(d.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == tester })
		_, err = deployments.Update(e.ctx, d, metav1.UpdateOptions{FieldManager: tester})
		return err
	})
}

// tacitdArgs changes the command line of tacitd and waits until it runs so.
func (e environment) tacitdArgs(change func(now []string) []string) {
	e.t.Helper()
	deployments := e.Client.AppsV1().Deployments(Namespace)
	e.eventually("tacitd's command line", func() error {
		d, err := deployments.Get(e.ctx, "tacitd", metav1.GetOptions{})
		if err != nil {
			return err
		}
		container := &d.Spec.Template.Spec.Containers[0]
		container.Args = change(container.Args)
		_, err = deployments.Update(e.ctx, d, metav1.UpdateOptions{FieldManager: tester}) // again where somebody was faster
		return err
	})
	e.must(e.AwaitDeployment(e.ctx, Namespace, "tacitd"))
}

func anything([]*otlplogs.LogRecord) bool { return true }

// hasBypass says what is missing of the beginning and the end of a bypass.
func hasBypass(records []*otlplogs.LogRecord, name, by string) error {
	told := map[string]bool{}
	for _, r := range records {
		var record struct {
			Event  string
			Fields map[string]string
		}
		if err := json.Unmarshal([]byte(r.Body.GetStringValue()), &record); err != nil {
			return err
		}
		if f := record.Fields; record.Event == "bypass" && f["name"] == name && f["by"] == by && f["reason"] != "" {
			told[f["in_force"]] = true
		}
	}
	if !told["true"] || !told["false"] {
		return errors.Join(fmt.Errorf("in force: %v", told), fmt.Errorf("of %d records", len(records)))
	}
	return nil
}
