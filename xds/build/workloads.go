package build

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// What opts in, and what the node's agent reports back.
const (
	dataplaneLabel        = "tacit.mesh/dataplane"
	redirectionAnnotation = "tacit.mesh/redirection"
	enabled               = "enabled"
	disabled              = "disabled"
)

// finished pods have given their addresses back.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// inMesh reports whether the pod's label, or else its namespace's, opts in.
func inMesh(pod *corev1.Pod, ns *corev1.Namespace) bool {
	if pod.Spec.HostNetwork {
		return false
	}
	if value, ok := pod.Labels[dataplaneLabel]; ok {
		return value == enabled
	}
	return ns != nil && ns.Labels[dataplaneLabel] == enabled
}

// podWorkload is a pod as a workload, without what other objects say of it.
// ns is nil where the namespace has no object.
func podWorkload(s Settings, pod *corev1.Pod, ns *corev1.Namespace, where model.Locality) (*model.Workload, []error) {
	w := &model.Workload{
		UID:            s.Cluster + "//Pod/" + pod.Namespace + "/" + pod.Name,
		PodUID:         string(pod.UID),
		Name:           pod.Name,
		Namespace:      pod.Namespace,
		ServiceAccount: cmp.Or(pod.Spec.ServiceAccountName, "default"),
		TrustDomain:    s.TrustDomain,
		Node:           pod.Spec.NodeName,
		ClusterID:      s.Cluster,
		Locality:       where,
		HostNetwork:    pod.Spec.HostNetwork,
		Unhealthy:      !ready(pod),
		Terminating:    pod.DeletionTimestamp != nil,
		Capacity:       1,
		Paths:          s.Paths,

		TrustDomainAliases: s.TrustDomainAliases,
	}
	w.WorkloadName, w.WorkloadType = controller(pod)
	w.CanonicalName = cmp.Or(pod.Labels["service.istio.io/canonical-name"], pod.Labels["app.kubernetes.io/name"], pod.Labels["app"], w.WorkloadName)
	w.CanonicalRevision = cmp.Or(pod.Labels["service.istio.io/canonical-revision"], pod.Labels["app.kubernetes.io/version"], pod.Labels["version"], "latest")
	var errs []error
	w.Addresses, errs = podAddresses(pod)
	if err := checkDataplaneLabel(pod.Labels); err != nil {
		errs = append(errs, err)
	}
	if ns != nil {
		if err := checkDataplaneLabel(ns.Labels); err != nil {
			errs = append(errs, fmt.Errorf("its namespace: %w", err))
		}
	}
	if !inMesh(pod, ns) {
		return w, errs
	}
	if pod.Annotations[redirectionAnnotation] == enabled {
		w.Protocol = model.ProtocolHBONE
	}
	var nsAnnotations map[string]string
	if ns != nil {
		nsAnnotations = ns.Annotations
	}
	skips, by, skipErrs := model.ExplainSkips(pod.Annotations, nsAnnotations, s.Skips)
	w.SkipInbound, w.SkipOutbound, w.SkipOutboundCIDRs = skips.Inbound, skips.Outbound, skips.OutboundCIDRs
	if by != (model.SkippedBy{}) {
		w.SkippedBy = &by
	}
	return w, append(errs, skipErrs...)
}

func checkDataplaneLabel(labels map[string]string) error {
	if value, ok := labels[dataplaneLabel]; ok && value != enabled && value != disabled {
		return fmt.Errorf("label %s: %q is neither %q nor %q: taken for %q", dataplaneLabel, value, enabled, disabled, disabled)
	}
	return nil
}

func podAddresses(pod *corev1.Pod) (out []netip.Addr, errs []error) {
	list := pod.Status.PodIPs
	if len(list) == 0 && pod.Status.PodIP != "" {
		list = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range list {
		a, err := parseAddress(ip.IP)
		if err != nil {
			errs = append(errs, fmt.Errorf("status.podIPs: %w", err))
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, errs
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("%q is not an address", s)
	}
	return a, nil
}

// ready follows the pod's condition; a manifest written by hand may have none.
func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return pod.Status.Phase != corev1.PodPending
}

// scheduledJob is how a CronJob names its Jobs: by the minute.
var scheduledJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// controller is the name and kind of what made the pod. A Deployment is known
// by the name of its ReplicaSet, a CronJob by that of its Job.
func controller(pod *corev1.Pod) (string, model.WorkloadType) {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		return pod.Name, model.TypePod
	}
	switch owner.Kind {
	case "ReplicaSet":
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
				return name, model.TypeDeployment
			}
		}
	case "Job":
		if m := scheduledJob.FindStringSubmatch(owner.Name); m != nil {
			return m[1], model.TypeCronJob
		}
		return owner.Name, model.TypeJob
	}
	return owner.Name, model.TypePod
}

// locality reads a node's labels; the second name of each is Kubernetes'
// former one.
func locality(labels map[string]string) model.Locality {
	return model.Locality{
		Region:  cmp.Or(labels[corev1.LabelTopologyRegion], labels[corev1.LabelFailureDomainBetaRegion]),
		Zone:    cmp.Or(labels[corev1.LabelTopologyZone], labels[corev1.LabelFailureDomainBetaZone]),
		Subzone: labels["topology.istio.io/subzone"],
	}
}
