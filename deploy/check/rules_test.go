package check

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// root is a CA's certificate that ends after a while.
func root(left time.Duration) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(left)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestNetworkPolicyRules(t *testing.T) {
	port := func(n int) networking.NetworkPolicyPort {
		number := intstr.FromInt(n)
		return networking.NetworkPolicyPort{Port: &number}
	}
	udp, end := core.ProtocolUDP, int32(16000)
	dns := port(53)
	dns.Protocol = &udp
	ranged := port(15000)
	ranged.EndPort = &end
	from := func(app string) []networking.NetworkPolicyPeer {
		return []networking.NetworkPolicyPeer{{PodSelector: &meta.LabelSelector{MatchLabels: map[string]string{"app": app}}}}
	}
	ports := func(all ...networking.NetworkPolicyPort) []networking.NetworkPolicyPort { return all }
	for name, test := range map[string]struct {
		own, others []rule
		blocks      bool
	}{
		"drops all":              {},
		"lets all":               {own: []rule{{}}},
		"any port of a peer":     {own: []rule{{peers: from("a")}}},
		"a port":                 {own: []rule{{ports: ports(port(8080))}}, blocks: true},
		"with ours":              {own: []rule{{ports: ports(port(8080), port(15008))}}},
		"in a range":             {own: []rule{{ports: ports(ranged)}}},
		"all of TCP":             {own: []rule{{ports: ports(networking.NetworkPolicyPort{})}}},
		"DNS alone":              {own: []rule{{ports: ports(dns, port(53))}}},
		"ours for everybody":     {own: []rule{{ports: ports(port(8080)), peers: from("a")}, {ports: ports(port(15008))}}},
		"ours for somebody else": {own: []rule{{ports: ports(port(8080)), peers: from("a")}, {ports: ports(port(15008)), peers: from("b")}}, blocks: true},
		"ours by another policy": {own: []rule{{ports: ports(port(8080))}}, others: []rule{{ports: ports(port(15008))}}},
	} {
		if got := blocks(test.own, test.others); got != test.blocks {
			t.Errorf("%s: blocks is %v", name, got)
		}
	}
}

// Before an installation what only agents see is unknown, and said to be.
func TestBeforeInstallation(t *testing.T) {
	w := newWorld()
	var left []runtime.Object
	for _, o := range w.objects {
		switch o := o.(type) {
		case *apps.DaemonSet, *apps.Deployment:
			continue
		case *core.Pod:
			if o.Namespace == "tacit-system" {
				continue
			}
		}
		left = append(left, o)
	}
	w.objects, w.roots, w.custom = left, "", nil
	change(t, w, "node-a", func(n *core.Node) { n.Labels["cloud.google.com/gke-nodepool"] = "default" })
	report, err := Run(t.Context(), w.connect(t))
	if err != nil {
		t.Fatal(err)
	}
	if report.Installed || report.Worst() != Risky {
		t.Errorf("%+v", report)
	}
	var out bytes.Buffer
	if err := report.Print(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"LEVEL", "--preset gke", "unknown  Nodes", "seen only from the agent's pods", "0 broken, 1 risky, 1 unknown, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "fine  ") {
		t.Errorf("what is fine is shown unasked:\n%s", out.String())
	}
}

// A clock is not said to be off by less than the time that asking took.
func TestClocksWithinDoubt(t *testing.T) {
	for doubt, found := range map[time.Duration]int{0: 1, 2 * time.Second: 0} {
		s := &state{}
		s.clocks([]seen{{node: "a", doubt: doubt}, {node: "b", offset: 3 * time.Second, doubt: doubt}})
		if len(s.findings) != found {
			t.Errorf("in doubt by %v: %+v", doubt, s.findings)
		}
	}
}
