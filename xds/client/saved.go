package client

import (
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/internal/processors"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// Export returns everything that is held, for [Client.Restore] in a later
// process. It fails if that is larger than Config.MaxSaved.
func (c *Client) Export() ([]byte, error) {
	state := &tacit.SavedState{}
	c.mu.Lock()
	for _, k := range c.kinds {
		if len(k.resources) > largeKind {
			processors.Busy()
		}
		saved := k.export()
		if c.config.OnDemand && k.typeURL == wire.AddressType {
			saved.OnDemand, saved.Names = true, c.heardNames()
			saved.Complete, saved.OnDemandComplete = false, saved.GetComplete()
		}
		state.Types = append(state.Types, saved)
	}
	c.mu.Unlock()
	if size := proto.Size(state); size > c.config.MaxSaved {
		return nil, fmt.Errorf("save xDS state: %d bytes are above the limit of %d", size, c.config.MaxSaved)
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("save xDS state: %w", err)
	}
	return out, nil
}

// Restore takes in what an earlier process exported and applies it, in one
// update. What was a full list counts as one once the control plane has said
// what has changed since, or cannot be reached, or has not answered within a
// second. It may be called once, before Run; empty data is nothing to restore.
// On an error nothing has been applied.
func (c *Client) Restore(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if len(data) > c.config.MaxSaved {
		return fmt.Errorf("restore xDS state: %d bytes are above the limit of %d", len(data), c.config.MaxSaved)
	}
	c.burst(len(data))
	state := &tacit.SavedState{}
	if err := proto.Unmarshal(data, state); err != nil {
		return fmt.Errorf("restore xDS state: %w", err)
	}
	u := c.restore(state)
	c.config.Sink.Apply(u)
	c.warn(u.Policies)
	return nil
}

// wasComplete reports whether all was in that had been asked for.
func wasComplete(saved *tacit.SavedType) bool {
	if saved.GetOnDemand() {
		return saved.GetOnDemandComplete()
	}
	return saved.GetComplete()
}

// trustAfter is how long the control plane is given to say what has changed
// since the restored state was saved.
const trustAfter = time.Second

// trust takes the restored lists for complete, as the control plane does not
// answer.
func (c *Client) trust() {
	c.applying.Lock()
	defer c.applying.Unlock()
	var u model.Update
	c.mu.Lock()
	for _, k := range c.kinds {
		if k.restored {
			k.markComplete(&u)
		}
	}
	c.mu.Unlock()
	if isEmpty(u) {
		return
	}
	c.config.Sink.Apply(u)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announceReady()
}

func (c *Client) restore(state *tacit.SavedState) (u model.Update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, saved := range state.GetTypes() {
		k := c.kind(saved.GetTypeUrl())
		if k == nil {
			continue // of another version of this program
		}
		onDemand := c.config.OnDemand && k.typeURL == wire.AddressType
		if saved.GetOnDemand() != onDemand {
			continue // what one lacks the other does not look for
		}
		for _, err := range k.restore(saved, &u) {
			c.log.Warn("saved xDS resource not restored", zap.Error(err))
		}
		switch {
		case onDemand && len(k.resources) == len(saved.GetResources()):
			c.restoreNames(saved.GetNames(), &u)
		case onDemand: // a name may stand for what is not held
			u.OnDemand = true
		}
	}
	return u
}

// save hands the export out after changes, spaced by saveEvery or, where it is
// large, by nine times what it took, and a last time at the end.
func (c *Client) save(ended <-chan struct{}) {
	if c.config.Saved == nil {
		return
	}
	for {
		var began time.Time
		select {
		case <-c.dirty:
			began = time.Now()
			c.handOut()
		case <-ended:
			select {
			case <-c.dirty:
				c.handOut()
			default:
			}
			return
		}
		timer := time.NewTimer(max(c.saveEvery, 9*time.Since(began)))
		select {
		case <-timer.C:
		case <-ended:
			timer.Stop()
		}
	}
}

func (c *Client) handOut() {
	c.mu.Lock()
	large := c.largeUnsaved
	c.largeUnsaved = false
	c.mu.Unlock()
	data, err := c.Export()
	if large {
		c.config.Burst()
	}
	c.mu.Lock()
	c.status.SaveError = errorText(err)
	c.mu.Unlock()
	if err != nil {
		c.log.Error("xDS state not saved; a restarted proxy will wait for the control plane", zap.Error(err))
	}
	c.config.Saved(data)
}

// ExportForPeople is Export without what must stay secret, for [Snapshot].
func (c *Client) ExportForPeople() ([]byte, error) {
	export, err := c.Export()
	if err != nil {
		return nil, err
	}
	state := &tacit.SavedState{}
	if err := proto.Unmarshal(export, state); err != nil {
		return nil, fmt.Errorf("export xDS state: %w", err)
	}
	for _, saved := range state.GetTypes() {
		if saved.GetTypeUrl() != wire.AuthorizationType {
			continue
		}
		for _, r := range saved.GetResources() {
			// Of what is no policy only the name is told.
			r.Resource, _ = wire.WithoutSecrets(r.GetResource())
		}
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(state)
}

// Snapshot is the mesh that the process had which made an export, for looking at
// it elsewhere. The errors say what of it this version cannot read; it is what a
// proxy of this version would make of it.
func Snapshot(export []byte) (*model.Snapshot, []error) {
	state := &tacit.SavedState{}
	if err := proto.Unmarshal(export, state); err != nil {
		return nil, []error{fmt.Errorf("read the export: %w", err)}
	}
	var (
		u    model.Update
		errs []error
	)
	onDemand := slices.ContainsFunc(state.GetTypes(), (*tacit.SavedType).GetOnDemand)
	known := newKinds(onDemand)
	for _, saved := range state.GetTypes() {
		i := slices.IndexFunc(known, func(k *kind) bool { return k.typeURL == saved.GetTypeUrl() })
		if i < 0 {
			errs = append(errs, fmt.Errorf("resources of the type %s are not known", saved.GetTypeUrl()))
			continue
		}
		errs = append(errs, known[i].restore(saved, &u)...)
		u.OnDemand, u.Heard = onDemand, append(u.Heard, saved.GetNames()...)
		if wasComplete(saved) {
			known[i].markComplete(&u)
		}
	}
	return model.NewSnapshot().Apply(u), errs
}
