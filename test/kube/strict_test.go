package kube

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const requireTLS = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: %s}
spec: {mtls: {mode: STRICT}}
`

// steady is for how long a pod has to be well without a pause, at one probe a
// second of each type.
const steady = 10 * time.Second

// Under STRICT the kubelet's probes of every type get through, and nothing
// else does by their way.
func strict(e environment) {
	e.newNamespace("strict", inMesh())
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, "strict")))
	pods := e.probed("strict")
	e.workload("default", "outside", nil, "")
	e.atEnd(func(e environment) error { return e.Delete(e.ctx, "apps/v1", "Deployment", "default", "outside") })
	e.must(e.AwaitDeployment(e.ctx, "default", "outside"))
	e.workload("strict", "inside", nil, "")
	e.must(e.AwaitDeployment(e.ctx, "strict", "inside"))
	outside, inside := e.podNames("default", "app=outside")[0], e.podNames("strict", "app=inside")[0]
	for _, name := range pods {
		addresses, err := e.PodAddresses(e.ctx, "strict", name)
		e.must(err)
		for _, address := range addresses {
			e.wantDenied(e.exchange("default", outside, address))
			e.must(e.exchange("strict", inside, address))
			if e.Ours() {
				e.wantHostDenied(address)
			}
		}
	}
}

// probed makes pods with probes of every type, and waits until those have found
// each of them well for a while.
func (e environment) probed(namespace string) []string {
	e.t.Helper()
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.workload(namespace, "probed", []string{"serve"}, `
        startupProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, failureThreshold: 60}
        livenessProbe: {grpc: {port: 9000}, periodSeconds: 1, failureThreshold: 3}
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 1}
      - name: inside
        image: `+image+`
        readinessProbe: {exec: {command: [/app, get, "http://127.0.0.1:8080/"]}, periodSeconds: 1, failureThreshold: 1}`)
	e.must(e.AwaitDeployment(e.ctx, namespace, "probed"))
	pods := e.podNames(namespace, "app=probed")
	for _, name := range pods {
		e.eventually("well for a while: "+name, func() error {
			pod, err := e.pod(namespace, name)
			if err != nil {
				return err
			}
			return wellSince(pod, time.Now().Add(-steady))
		})
	}
	return pods
}

// exchange sends a message to the echo port of a host and gets it back.
func (e environment) exchange(namespace, pod, host string) error {
	out, err := e.Exec(e.ctx, namespace, pod, "/app", "exchange", host)
	if err != nil {
		return fmt.Errorf("%w %s", err, out)
	}
	return nil
}

// wantDenied takes the error of something that must not work.
func (e environment) wantDenied(err error) {
	e.t.Helper()
	if err == nil {
		e.t.Error("a connection in clear was let in under STRICT")
	}
}

// wantHostDenied checks that processes on the nodes themselves, which is
// where probes come from, are not let in to a port that no probe names.
func (e environment) wantHostDenied(address string) {
	e.t.Helper()
	for _, node := range e.nodes {
		script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/7000 && echo hello >&3 && timeout 5 head -n 1 <&3`, address)
		out, _ := node.Command(e.ctx, "bash", "-c", script).Output()
		if strings.Contains(string(out), "hello") {
			e.t.Errorf("%s reached port 7000 of %s under STRICT", node.Name, address)
		}
	}
}

// wellSince says what has been wrong with a pod since a time.
func wellSince(pod *corev1.Pod, since time.Time) error {
	if err := podReady(pod); err != nil {
		return err
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.RestartCount > 0 {
			return fmt.Errorf("container %s was restarted %d times", s.Name, s.RestartCount)
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.LastTransitionTime.After(since) {
			return fmt.Errorf("ready only since %v", condition.LastTransitionTime)
		}
	}
	return nil
}

// readyAgain says why a pod is not ready with containers of after a time.
func readyAgain(pod *corev1.Pod, since time.Time) error {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running == nil || s.State.Running.StartedAt.Time.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("container %s does not run again: %+v", s.Name, s.State)
		}
	}
	return podReady(pod)
}
