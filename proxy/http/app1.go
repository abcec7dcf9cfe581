package http

import (
	"errors"
	"io"
)

// serveApp passes on responses until the application ends.
func (c *conn1) serveApp() error {
	for {
		err := c.app.await()
		c.mu.Lock()
		x, broken := c.current, c.broken
		c.mu.Unlock()
		switch {
		case broken != nil:
			return c.answerBroken(x, broken)
		case err != nil:
			return err
		case x == nil:
			return c.unsolicited()
		}
		if err := c.response(x); err != nil {
			c.mu.Lock()
			broken := c.broken
			c.mu.Unlock()
			if broken != nil {
				return c.answerBroken(x, broken)
			}
			var bad *MalformedError
			if errors.As(err, &bad) {
				return c.answerGarbled(x, bad)
			}
			return err
		}
		if x.tunnel {
			return c.copy(&c.app, c.client.side, &x.Received)
		}
	}
}

// unsolicited ends a connection on which the application speaks unasked, as
// some do to say that they close it for being idle.
func (c *conn1) unsolicited() error {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	_ = c.app.side.CloseWrite()
	return io.EOF
}

func (c *conn1) answerBroken(x *exchange1, bad *MalformedError) error {
	if x == nil || x.began {
		return io.EOF
	}
	x.status(bad.Status)
	return answer1(c.client.side, c.app.side.Err, &Refusal{Status: bad.Status, Message: bad.Error()}, c.id, x.method, true)
}

// answerGarbled is for a response that is none.
func (c *conn1) answerGarbled(x *exchange1, bad *MalformedError) error {
	if x.began {
		return bad
	}
	x.status(502)
	refusal := &Refusal{Status: 502, Message: "the application's answer is not HTTP: " + bad.Text}
	if err := answer1(c.client.side, c.app.side.Err, refusal, c.id, x.method, true); err != nil {
		return err
	}
	_ = c.client.side.CloseWrite()
	c.app.side.Reset()
	return nil
}

// response passes on one response, and the interim ones in front of it.
func (c *conn1) response(x *exchange1) error {
	var h head1
	for {
		n, err := c.app.head()
		if err != nil {
			return err
		}
		status, err := h.parseResponse(string(c.app.bytes()[:n]), x.method)
		if err != nil {
			return err
		}
		tunnel := status == 101 && x.upgrade && h.upgrades() || status < 300 && status >= 200 && x.method == "CONNECT"
		if status == 101 && !tunnel {
			return malformed(502, "a change of protocol that nobody asked for")
		}
		if status >= 200 || tunnel {
			x.began = true
			x.status(status)
		}
		if tunnel {
			x.tunnel = true
			close(x.settled)
			return c.app.pass(n, c.client.side)
		}
		if status >= 200 && !x.response.empty() {
			b := h.rewriteResponse(make([]byte, headRoom, headRoom+n+512), &x.response)
			c.app.skip(n)
			n = 0
			if err := c.client.side.Send(b, headRoom, c.app.side.Err); err != nil {
				return err
			}
		}
		err = passBody(&c.app, c.client.side, n, &h.body, &x.Received)
		if err == io.EOF && h.body.kind == bodyUntilEnd { //nolint:errorlint // a side's, returned as it is
			c.complete(x)
			return io.EOF
		}
		if err != nil {
			return err
		}
		if status >= 200 {
			c.complete(x)
			return nil
		}
		if err := c.app.await(); err != nil {
			return err
		}
	}
}

// complete lets the next request go.
func (c *conn1) complete(x *exchange1) {
	c.mu.Lock()
	c.current = nil
	c.mu.Unlock()
	close(x.settled)
	x.half()
	close(x.answered)
}

// appEnded ends what was under way when the application did.
func (c *conn1) appEnded() {
	c.mu.Lock()
	c.ended = true
	x := c.current
	c.current = nil
	c.mu.Unlock()
	if x == nil {
		return
	}
	if x.tunnel {
		x.over(nil)
	} else {
		close(x.settled)
		x.over(errAppGone)
	}
	close(x.answered)
}
