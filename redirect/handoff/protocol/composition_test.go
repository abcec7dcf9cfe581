package protocol

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/xds/model"
)

func TestCompositionArrives(t *testing.T) {
	want := model.Composition{
		Containers: []model.Container{
			{Name: "setup", Init: true, Image: "i:1", ImageID: "i@sha256:1", Started: true}, {Name: "web", Image: "w:1"},
		},
		Owners: []model.Owner{{Kind: "ReplicaSet", Name: "web-5d", UID: "u"}},
	}
	add := &AddPod{Uid: "u", Name: "n", Namespace: "s", ServiceAccount: "a", TrustDomain: "t"}
	add.Compose(want)
	payload, err := proto.Marshal(&FromAgent{Message: &FromAgent_Add{Add: add}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseFromAgent(payload, ListenersPerPod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.GetAdd().Composition()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Everything of a pod at its longest is one message.
func TestLongestPod(t *testing.T) {
	longest := strings.Repeat("n", maxName)
	add := &AddPod{Uid: longest, Name: longest, Namespace: longest, ServiceAccount: longest, TrustDomain: longest}
	for range maxAddresses {
		add.Addresses = append(add.Addresses, make([]byte, 16))
	}
	add.Labels = map[string]string{"l": strings.Repeat("l", MaxLabels-20)}
	fits := model.Composition{Owners: []model.Owner{{Name: strings.Repeat("o", MaxComposition-20)}}}
	add.Compose(fits)
	a, b, _ := pair(t)
	if err := a.Send(&FromAgent{Message: &FromAgent_Add{Add: add}}, pipes(t, ListenersPerPod)...); err != nil {
		t.Fatal(err)
	}
	_, fds, err := b.ReceiveFromAgent()
	if err != nil {
		t.Error(err)
	}
	CloseAll(fds)

	add.Compose(model.Composition{Owners: append(fits.Owners, model.Owner{Name: strings.Repeat("o", 20)})})
	payload, err := proto.Marshal(&FromAgent{Message: &FromAgent_Add{Add: add}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseFromAgent(payload, ListenersPerPod); err == nil || !strings.Contains(err.Error(), "containers and owners of") {
		t.Errorf("longer than is possible: %v", err)
	}
}
