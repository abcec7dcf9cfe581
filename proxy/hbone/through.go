package hbone

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"
)

// Inner is a connection inside a stream: the tunnel within a tunnel that leads
// into another network.
type Inner struct {
	// TLS is the configuration that verifies the far end, and when the
	// certificate in it ends.
	TLS      *tls.Config
	NotAfter time.Time
	Request  Request
}

// OpenThrough begins a stream of a connection of its own, which is inside a
// stream of a pooled one, to a gateway. That is what the request is for, the
// inner one is for who is behind the gateway. The error is as Open's, or a
// *RefusedError of the gateway.
func (p *Pool) OpenThrough(ctx context.Context, key Key, r Request, inner Inner) (*Stream, error) {
	way, err := p.Open(ctx, key, r)
	if err != nil {
		return nil, err
	}
	if _, err := way.Answer(ctx); err != nil {
		way.Reset()
		return nil, err
	}
	s, err := p.inside(ctx, key, way, inner)
	if err != nil {
		way.Reset()
		return nil, &DialError{Key: key, Err: fmt.Errorf("through the gateway: %w", err)}
	}
	return s, nil
}

// inside makes the inner connection and its only stream.
func (p *Pool) inside(ctx context.Context, key Key, way *Stream, inner Inner) (*Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.DialTimeout)
	defer cancel()
	under := newCarried(way.Terminate())
	config := inner.TLS.Clone()
	config.DynamicRecordSizingDisabled = true
	c, err := p.greet(ctx, key, tls.Client(under, config), inner.NotAfter)
	if err != nil {
		return nil, err
	}
	c.single = true
	e, err := p.entry(key) // where it is found to be ended
	if err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	s := c.openStream(inner.Request, p.config.AnswerTimeout)
	if s == nil {
		return nil, errNoStreams
	}
	e.conns = append(e.conns, c)
	p.running.Go(func() {
		p.run(key, e, c)
		under.end()
	})
	return s, nil
}

// lastWords is how long the peer of a carried connection that has ended may take
// to end its side: what is on its way until then still arrives.
const lastWords = 5 * time.Second

// end lets the stream end in order: reset, it would take back what a gateway
// has not passed on yet.
func (c *carried) end() {
	_ = c.t.CloseWrite()
	late := time.AfterFunc(lastWords, c.t.Reset)
	defer late.Stop()
	defer c.t.Reset()
	for {
		buf, _, err := c.t.Read(0, 0, maxControlFrame)
		if err != nil {
			return
		}
		buf.Free()
	}
}
