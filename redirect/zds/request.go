package zds

import (
	"cmp"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	wire "github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// describe names what a request is about.
func describe(r *protocol.Request) string {
	switch x := r.GetPayload().(type) {
	case *protocol.Request_Add:
		info := x.Add.GetWorkloadInfo()
		return fmt.Sprintf("add pod %.64q (%.64s/%.64s)", x.Add.GetUid(), info.GetNamespace(), info.GetName())
	case *protocol.Request_Del:
		return fmt.Sprintf("delete pod %.64q", x.Del.GetUid())
	case *protocol.Request_Keep:
		return fmt.Sprintf("keep pod %.64q", x.Keep.GetUid())
	case *protocol.Request_SnapshotSent:
		return "end of the snapshot"
	}
	return "request of an unknown kind"
}

// do carries out a request. The descriptors are its own.
func (s *session) do(r *protocol.Request, fds []int) error {
	want := 0
	if r.GetAdd() != nil {
		want = 1
	}
	if len(fds) != want {
		wire.CloseAll(fds)
		return fmt.Errorf("%s: came with %d descriptors, want %d", describe(r), len(fds), want)
	}
	var err error
	switch x := r.GetPayload().(type) {
	case *protocol.Request_Add:
		err = s.add(x.Add, fds[0])
	case *protocol.Request_Del:
		err = s.del(x.Del.GetUid())
	case *protocol.Request_Keep:
		err = s.keep(x.Keep.GetUid())
	case *protocol.Request_SnapshotSent:
		err = s.endSnapshot()
	default:
		err = errors.New("not supported")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", describe(r), err)
	}
	return nil
}

// name notes that the snapshot names the pod of a request to add it, whatever
// comes of the request: it has not gone.
func (s *session) name(r *protocol.Request, err error) {
	if r.GetAdd() == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid := r.GetAdd().GetUid(); err != nil {
		s.spare(uid, err)
	} else if s.named != nil {
		s.named[uid] = true
	}
}

// add serves a pod. One that is known under this UID in this namespace is as
// it was; a namespace other than before takes that one's place.
func (s *session) add(m *protocol.AddWorkload, fd int) error {
	ns, err := netns.FromDescriptor(fd)
	if err != nil {
		return fmt.Errorf("its descriptor: %w", err)
	}
	facts, err := s.facts(m, ns)
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	var unseen error
	facts.Addresses, unseen = addressesOf(ns)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[facts.UID]
	known := p != nil && p.ns != nil
	same := known && p.ns.ID() == ns.ID()
	if unseen != nil {
		if same && p.err == nil { // and its addresses are known from before
			return errors.Join(unseen, ns.Close())
		}
		if known && !same {
			s.remove(facts.UID) // what served it was of a namespace that is no more
		}
		s.spare(facts.UID, unseen)
		p = s.pods[facts.UID]
	}
	if p == nil {
		p = &pod{}
		s.pods[facts.UID] = p
	}
	unneeded := p.ns
	if same {
		unneeded = ns // what serves the pod has the other one
	} else {
		p.ns = ns
	}
	p.Pod = facts
	err = s.serve(p)
	if unneeded != nil {
		unneeded.Close()
	}
	return err
}

// facts are who the pod is, by the agent's word. What is wrong with them does
// not pass.
func (s *session) facts(m *protocol.AddWorkload, ns *netns.NS) (handoff.Pod, error) {
	info := m.GetWorkloadInfo()
	p := handoff.Pod{
		UID: m.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: cmp.Or(info.GetServiceAccount(), "default"),
		TrustDomain: s.cfg.TrustDomain, NoLoopbackRoute: true, DNS: s.cfg.DNS,
	}
	if p.UID == "" || p.Name == "" {
		return p, errors.New("UID or name is missing")
	}
	id := model.Identity{TrustDomain: p.TrustDomain, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
	if _, err := model.ParseIdentity(id.String()); err != nil {
		return p, err
	}
	own, err := netns.At(netns.Own)
	if err == nil && ns.ID() == own {
		err = errors.New("its network namespace is the node's own")
	}
	return p, err
}

// spare keeps what a proxy may have of a pod that the snapshot names and that
// could not be added. The caller holds mu.
func (s *session) spare(uid string, cause error) {
	if uid == "" || s.named == nil {
		return
	}
	s.named[uid] = true
	if s.pods[uid] == nil {
		s.pods[uid] = &pod{Pod: handoff.Pod{UID: uid}, err: cause}
		s.cfg.Sockets.Keep(uid)
	}
}

// keep leaves a pod as it is, of which the agent has no namespace.
func (s *session) keep(uid string) error {
	switch {
	case uid == "":
		return errors.New("UID is missing")
	case s.named == nil:
		return errors.New("the snapshot has ended")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named[uid] = true
	if s.pods[uid] == nil {
		s.pods[uid] = &pod{Pod: handoff.Pod{UID: uid}}
		s.cfg.Sockets.Keep(uid)
	}
	return nil
}

func (s *session) del(uid string) error {
	if uid == "" {
		return errors.New("UID is missing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(uid)
	return nil
}

// endSnapshot lets go of what the agent has not named.
func (s *session) endSnapshot() error {
	if s.named == nil {
		return errors.New("it has ended before")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.pods {
		if !s.named[uid] {
			s.remove(uid)
		}
	}
	s.named = nil
	s.synced = true
	s.cfg.Sockets.Synced()
	s.cfg.Log.Info("Istio's CNI agent has named the node's pods", zap.Int("pods", len(s.pods)))
	return nil
}

// remove takes no new connections for a pod any more. Those that live go on
// if the pod does, which has merely left the mesh. The caller holds mu.
func (s *session) remove(uid string) {
	p, ok := s.pods[uid]
	if !ok {
		return
	}
	delete(s.pods, uid)
	s.cfg.Sockets.Remove(uid, p.gone())
	p.close()
}

// gone reports whether the pod has ended: it has no address left.
func (p *pod) gone() bool { return p.ns != nil && holdsNone(p.ns, p.Addresses) }
