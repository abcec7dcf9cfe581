package protocol

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// MaxWant bounds one request for dialing sockets.
const MaxWant = 128

// ListenersPerPod is how many descriptors AddPod and Offer bring at least:
// those for connections. From version 2 on, those for DNS follow.
const ListenersPerPod = 3

// MaxLabels bounds the length of all labels of a pod.
const MaxLabels = 4 << 10

// LengthOf is how many bytes labels take in a message.
func LengthOf(labels map[string]string) (n int) {
	const around = 9 // at most, around name and value
	for name, value := range labels {
		n += around + len(name) + len(value)
	}
	return n
}

const (
	maxName      = 512
	maxAddresses = 64
)

// ParseFromProxy reads and checks a message that came with so many
// descriptors. A kind unknown to this version, which a newer proxy may send,
// is a message with nothing in it, and must bring no descriptor.
func ParseFromProxy(payload []byte, descriptors int) (*FromProxy, error) {
	m := new(FromProxy)
	if err := proto.Unmarshal(payload, m); err != nil {
		return nil, fmt.Errorf("message from the proxy: %w", err)
	}
	want, err := 0, error(nil)
	switch x := m.Message.(type) {
	case *FromProxy_Offer:
		want, err = descriptors, errors.Join(checkListenerCount(descriptors), checkName("uid", x.Offer.GetUid()))
	case *FromProxy_Want:
		err = checkWant(x.Want.GetUid(), x.Want.GetFamily(), x.Want.GetCount())
	case *FromProxy_Save:
		want = 1
	}
	if err == nil && descriptors != want {
		err = fmt.Errorf("%d descriptors, want %d", descriptors, want)
	}
	if err != nil {
		return nil, fmt.Errorf("message from the proxy, %T: %w", m.Message, err)
	}
	return m, nil
}

// ParseFromAgent reads and checks a message that came with so many
// descriptors; unknown kinds are as in [ParseFromProxy].
func ParseFromAgent(payload []byte, descriptors int) (*FromAgent, error) {
	m := new(FromAgent)
	if err := proto.Unmarshal(payload, m); err != nil {
		return nil, fmt.Errorf("message from the agent: %w", err)
	}
	least, most, err := 0, 0, error(nil)
	switch x := m.Message.(type) {
	case *FromAgent_Restore:
		most = 1
	case *FromAgent_Add:
		least, most, err = descriptors, descriptors, errors.Join(checkListenerCount(descriptors), checkPod(x.Add))
	case *FromAgent_Remove:
		err = checkName("uid", x.Remove.GetUid())
	case *FromAgent_Keep:
		err = checkName("uid", x.Keep.GetUid())
	case *FromAgent_Sockets:
		most, err = int(x.Sockets.GetCount()), checkWant(x.Sockets.GetUid(), x.Sockets.GetFamily(), x.Sockets.GetCount())
	}
	if err == nil && (descriptors < least || descriptors > most) {
		err = fmt.Errorf("%d descriptors, want %d to %d", descriptors, least, most)
	}
	if err != nil {
		return nil, fmt.Errorf("message from the agent, %T: %w", m.Message, err)
	}
	return m, nil
}

func checkWant(uid string, family Family, count uint32) error {
	if family != Family_FAMILY_IPV4 && family != Family_FAMILY_IPV6 {
		return fmt.Errorf("family %d", family)
	}
	if count == 0 || count > MaxWant {
		return fmt.Errorf("%d sockets, 1 to %d are possible", count, MaxWant)
	}
	return checkName("uid", uid)
}

func checkPod(p *AddPod) error {
	for _, f := range []struct{ field, value string }{
		{"uid", p.GetUid()}, {"name", p.GetName()}, {"namespace", p.GetNamespace()},
		{"service account", p.GetServiceAccount()}, {"trust domain", p.GetTrustDomain()},
	} {
		if err := checkName(f.field, f.value); err != nil {
			return err
		}
	}
	if n := len(p.GetAddresses()); n > maxAddresses {
		return fmt.Errorf("%d addresses, at most %d are possible", n, maxAddresses)
	}
	if n := LengthOf(p.GetLabels()); n > MaxLabels {
		return fmt.Errorf("labels of %d bytes, at most %d are possible", n, MaxLabels)
	}
	if n := LengthOfComposition(p.Composition()); n > MaxComposition {
		return fmt.Errorf("containers and owners of %d bytes, at most %d are possible", n, MaxComposition)
	}
	for _, a := range p.GetAddresses() {
		if len(a) != 4 && len(a) != 16 {
			return fmt.Errorf("address of %d bytes", len(a))
		}
	}
	return nil
}

func checkName(field, value string) error {
	if value == "" || len(value) > maxName {
		return fmt.Errorf("%s of %d bytes", field, len(value))
	}
	return nil
}
