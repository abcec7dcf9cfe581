package kube

import (
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A port that a pod skips by an annotation that Linkerd's users have is not
// captured, and the others are; and an operator may forbid it.
func skips(e environment) {
	e.newNamespace("skips", inMesh())
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, "skips")))
	e.serve("skips", "database")
	e.must(e.Patch(e.ctx, "apps/v1", "Deployment", "skips", "database",
		`spec: {template: {metadata: {annotations: {config.linkerd.io/skip-inbound-ports: "7000"}}}}`))
	e.must(e.AwaitDeployment(e.ctx, "skips", "database"))
	e.workload("default", "plain", nil, "")
	e.atEnd(func(e environment) error { return e.Delete(e.ctx, "apps/v1", "Deployment", "default", "plain") })
	e.must(e.AwaitDeployment(e.ctx, "default", "plain"))
	e.workload("skips", "client", nil, "")
	e.must(e.AwaitDeployment(e.ctx, "skips", "client"))
	plain, client := e.podNames("default", "app=plain")[0], e.podNames("skips", "app=client")[0]
	const host = "database.skips"

	before, err := e.encrypted("skips")
	e.must(err)
	e.eventually("the skipped port in clear", func() error { return e.exchange("default", plain, host) })
	e.eventually("the skipped port from the mesh", func() error { return e.exchange("skips", client, host) })
	if now, err := e.encrypted("skips"); err != nil || now != before {
		e.t.Errorf("%v connections to a skipped port went over mutual TLS, error %v", now-before, err)
	}
	web := "http://" + host + ":8080/"
	e.wantDenied(e.get("default", plain, web))
	e.eventually("a port that is not skipped", func() error { return e.get("skips", client, web) })

	e.must(e.InstallTacit(e.ctx, "upgrade", tag, "skips.mode=none"))
	e.atEnd(func(e environment) error { return e.InstallTacit(e.ctx, "upgrade", tag, "skips.mode=any") })
	e.eventually("skipping is forbidden", func() error {
		if e.exchange("default", plain, host) == nil {
			return errors.New("but the port is still skipped")
		}
		return nil
	})
	e.eventually("the port that was skipped, from the mesh", func() error { return e.exchange("skips", client, host) })
	e.eventually("an event says so", func() error {
		events, err := e.Client.CoreV1().Events("skips").List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, event := range events.Items {
			if strings.Contains(event.Message, "skip") && strings.HasPrefix(event.InvolvedObject.Name, "database-") {
				return nil
			}
		}
		return fmt.Errorf("there is none among %d", len(events.Items))
	})
}

// get makes a request from a pod.
func (e environment) get(namespace, pod, url string) error {
	_, err := e.Exec(e.ctx, namespace, pod, "/app", "get", url)
	return err
}
