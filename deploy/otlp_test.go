package deploy

import (
	"slices"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

// waits is a source of files with whether a pod waits for it.
func waits(kind string, optional *bool) string {
	if optional == nil || !*optional {
		return kind + ", waited for"
	}
	return kind
}

// Whoever tells a collector with TLS finds its roots, and the headers that it
// wants, in the files that the flags name, and does not wait for them; with one in clear
// there are none.
func TestCollectorWithTLS(t *testing.T) {
	pods := func(otlp values) map[string]core.PodSpec {
		objects := decode(t, render(t, values{"otlp": otlp}))
		return map[string]core.PodSpec{
			"tacitd":      find[*apps.Deployment](t, objects, "tacitd").Spec.Template.Spec,
			"tacit-proxy": find[*apps.DaemonSet](t, objects, "tacit-proxy").Spec.Template.Spec,
		}
	}
	secure := values{"endpoint": "https://collector:4317", "rootConfigMap": "roots", "headersSecret": "headers", "audit": true}
	for program, pod := range pods(secure) {
		for _, flag := range []string{"--otlp=https://collector:4317", "--otlp-root=/var/run/otlp/ca.crt", "--otlp-headers=/var/run/otlp/headers", "--audit-otlp"} {
			if !slices.Contains(pod.Containers[0].Args, flag) {
				t.Errorf("%s lacks %s", program, flag)
			}
		}
		if !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m core.VolumeMount) bool { return m.Name == "otlp" && m.MountPath == "/var/run/otlp" && m.ReadOnly }) {
			t.Errorf("%s mounts %+v", program, pod.Containers[0].VolumeMounts)
		}
		i := slices.IndexFunc(pod.Volumes, func(v core.Volume) bool { return v.Name == "otlp" })
		if i < 0 {
			t.Fatalf("%s has the volumes %+v", program, pod.Volumes)
		}
		var files []string
		for _, source := range pod.Volumes[i].Projected.Sources {
			switch {
			case source.ConfigMap != nil:
				files = append(files, waits("ConfigMap", source.ConfigMap.Optional), source.ConfigMap.Name, source.ConfigMap.Items[0].Path)
			case source.Secret != nil:
				files = append(files, waits("Secret", source.Secret.Optional), source.Secret.Name, source.Secret.Items[0].Path)
			}
		}
		if want := []string{"ConfigMap", "roots", "ca.crt", "Secret", "headers", "headers"}; !slices.Equal(files, want) {
			t.Errorf("%s has the files %q, want %q", program, files, want)
		}
	}
	for program, pod := range pods(values{"endpoint": "http://collector:4317"}) {
		if slices.ContainsFunc(pod.Volumes, func(v core.Volume) bool { return v.Name == "otlp" }) || !slices.Contains(pod.Containers[0].Args, "--otlp=http://collector:4317") {
			t.Errorf("%s in clear: %+v, %q", program, pod.Volumes, pod.Containers[0].Args)
		}
	}
}
