package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"
)

// restoreTimeout is how long the control plane is left alone while the agent
// is asked what the proxy before this one knew.
const restoreTimeout = 5 * time.Second

// sendTimeout is how long the end of a proxy waits for the agent to take what it
// knows.
const sendTimeout = time.Second

// saved is what a proxy leaves to the next one, in memory that the agent keeps
// and does not read: a restart while the control plane is away changes
// nothing. Certificates include private keys.
type saved struct {
	mesh         []byte // client.Export
	certificates []byte // identity.Store.Export
}

// savedFormat is what begins a state of this form.
const savedFormat = "tacit-proxy 1"

// pieces is what is handed over, one field of protobuf after the other, and in
// pieces: a mesh may be tens of megabytes, and while the runtime copies so much at
// once it can stop no goroutine, so that all others wait for a collection that
// wants to begin.
func (s saved) pieces() (all [][]byte) {
	for i, value := range [][]byte{[]byte(savedFormat), s.mesh, s.certificates} {
		head := protowire.AppendTag(nil, protowire.Number(i+1), protowire.BytesType)
		all = append(all, protowire.AppendVarint(head, uint64(len(value))), value)
	}
	return all
}

// readSaved is without a copy, too. ok is false for what another version has
// written.
func readSaved(content []byte) (s saved, ok bool) {
	var values [3][]byte
	for i := range values {
		field, kind, n := protowire.ConsumeTag(content)
		if n < 0 || field != protowire.Number(i+1) || kind != protowire.BytesType {
			return saved{}, false
		}
		value, m := protowire.ConsumeBytes(content[n:])
		if m < 0 {
			return saved{}, false
		}
		values[i], content = value, content[n+m:]
	}
	return saved{values[1], values[2]}, string(values[0]) == savedFormat
}

// followControlPlane takes over what the proxy before this one knew, then
// follows the control plane and leaves what it learns to the next. That has all
// that is known when serving ends before handedOver is closed.
func (p *process) followControlPlane(serving, ctx context.Context) error {
	if err := p.restore(ctx); err != nil {
		p.log.Warn("nothing taken over from an earlier proxy", zap.Error(err))
	}
	saving := make(chan struct{})
	go func() {
		defer close(saving)
		p.save(serving, ctx)
	}()
	err := p.xds.Run(ctx)
	<-saving
	return err
}

func (p *process) restore(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	content, err := p.agent.Restore(wait)
	if err != nil || len(content) == 0 {
		return err
	}
	s, ok := readSaved(content)
	if !ok {
		return fmt.Errorf("state of %d bytes is not of this version", len(content))
	}
	if err := p.store.Import(s.certificates); err != nil {
		return err
	}
	if err := p.xds.Restore(s.mesh); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	p.log.Info("took over from an earlier proxy", zap.Int("bytes", len(content)))
	return nil
}

// keepExport passes the newest export to save.
func (p *process) keepExport(export []byte) {
	for {
		select {
		case p.exports <- export:
			return
		default:
		}
		select { // an older one that nobody has taken
		case <-p.exports:
		default:
		}
	}
}

// save leaves the state to the next proxy whenever mesh or certificates have
// changed, until the context ends.
func (p *process) save(serving, ctx context.Context) {
	keepSaved(serving, ctx, p.store.Changed, p.exports, p.mesh, func(mesh []byte) (sent <-chan struct{}) {
		certificates, err := p.store.Export()
		if err == nil {
			sent, err = p.agent.Save(saved{mesh, certificates}.pieces()...)
		}
		if err != nil {
			p.log.Warn("the next proxy will not know what this one knows", zap.Error(err))
		}
		return sent
	}, func() { close(p.handedOver) })
}

// mesh is what is held now; exports may come later, as the client spaces them.
func (p *process) mesh() []byte {
	export, err := p.xds.Export()
	if err != nil { // as with those that come by themselves
		return nil
	}
	return export
}

// afterHandover ends after serving has, as soon as the agent was sent what is
// known by then.
func (p *process) afterHandover(serving, ctx context.Context) context.Context {
	after, end := context.WithCancel(context.WithoutCancel(serving))
	go func() {
		defer end()
		<-serving.Done()
		select {
		case <-p.handedOver:
		case <-ctx.Done():
		}
	}()
	return after
}

// Each save writes all there is, so certificates wait for savePause times as long
// as the last one took, up to longestPause. With many of them one is renewed all
// the time; who dies meanwhile leaves the one before it, which has half of its
// life left, and of an identity that had none before, none. A mesh waits for
// nothing, as a policy in it may forbid what the one before it allowed; the xDS
// client spaces them.
const (
	savePause    = 300
	longestPause = time.Second
)

// keepSaved saves now, and again what has changed since the last time. When
// serving ends it saves without a pause, and says so once the agent was sent that.
func keepSaved(serving, ctx context.Context, certificates func() <-chan struct{}, meshes <-chan []byte, newest func() []byte, save func(mesh []byte) (sent <-chan struct{}), handedOver func()) {
	ends, mesh := serving.Done(), newest()
	for {
		changed, began := certificates(), time.Now()
		sent := save(mesh)
		if ends == nil && handedOver != nil {
			await(ctx, sent)
			handedOver()
			handedOver = nil
		}
		pause := time.NewTimer(min(savePause*time.Since(began), longestPause))
		select {
		case <-pause.C:
			select {
			case <-changed:
			case mesh = <-meshes:
			case <-ends:
				ends = nil
			case <-ctx.Done():
				return
			}
		case mesh = <-meshes:
		case <-ends:
			ends = nil
		case <-ctx.Done():
			return
		}
		if ends == nil { // there may be no other time
			mesh = newest()
		}
	}
}

// await waits for what is sent to an agent, for as long as it may take one that
// is there.
func await(ctx context.Context, sent <-chan struct{}) {
	timeout := time.NewTimer(sendTimeout)
	defer timeout.Stop()
	select {
	case <-sent:
	case <-timeout.C:
	case <-ctx.Done():
	}
}
