package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// conn1 is a connection that carries HTTP/1: one request at a time, its
// response meanwhile. A request that the client sends ahead waits.
type conn1 struct {
	*conn
	head    head1 // of requests; the goroutine that reads the client
	request Request

	mu      sync.Mutex // guards what follows
	current *exchange1 // forwarded, its response not complete
	broken  *MalformedError
	ended   bool // no more comes from the application
}

var (
	errRevoked = errors.New("the request is no longer allowed")
	errAppGone = errors.New("the application has closed the connection")
)

// serveClient reads requests until the connection ends. io.EOF is the client's
// FIN, to be passed on; nil an end that the proxy made itself.
func (c *conn1) serveClient() error {
	var last *exchange1
	for {
		n, err := c.client.head()
		var bad *MalformedError
		switch malformed := errors.As(err, &bad); {
		case err == io.ErrUnexpectedEOF: //nolint:errorlint // returned as it is
			return io.EOF // the part of a request is nobody's
		case err != nil && !malformed:
			return err
		case last != nil:
			<-last.answered
		}
		if bad != nil {
			return c.refuseMalformed(bad)
		}
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return errAppGone
		}
		next, err := c.exchange(n)
		switch {
		case errors.As(err, &bad):
			return c.refuseMalformed(bad)
		case err == errLast: //nolint:errorlint // our own
			return nil
		case err != nil:
			return err
		case next == nil: // refused
			continue
		case next.tunnel:
			return c.copy(&c.client, c.app.side, &next.Sent)
		}
		last = next
	}
}

// errLast says that the proxy has answered and closed the connection.
var errLast = errors.New("answered for the last time")

// exchange decides on a request whose head is the next n bytes, and forwards
// it. It returns nil for one that was refused.
func (c *conn1) exchange(n int) (*exchange1, error) {
	if err := c.head.parseRequest(string(c.client.bytes()[:n]), &c.request); err != nil {
		return nil, err
	}
	x := &exchange1{method: c.request.Method, upgrade: c.request.Upgrade, halves: 2}
	x.answered, x.settled = make(chan struct{}), make(chan struct{})
	x.Abort = func() { c.fail(relay.Aborted, errRevoked) }
	x.result.GRPCStatus = -1
	x.gate = c.gate.Begin(&c.request, &x.Live)
	early, err := c.collect(n, x.gate)
	if err != nil {
		early.free(x.gate)
		x.over(err)
		return nil, err
	}
	decision := x.gate.Decision(early.Content)
	if decision.Refusal == nil && !decision.valid() {
		decision.Refusal = &Refusal{Status: 500, GRPC: grpcInternal, Message: "what is to be added cannot be"}
	}
	if err := c.head.body.reserve(decision.Own); err != nil && decision.Refusal == nil {
		early.free(x.gate)
		x.over(err)
		return nil, err
	}
	x.response = decision.Response
	if decision.Refusal != nil {
		early.free(x.gate)
		return nil, c.refuse(x, n, early.taken, decision.Refusal)
	}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		early.free(x.gate)
		x.over(errAppGone)
		return nil, errAppGone
	}
	c.current = x
	c.mu.Unlock()
	err = c.forward(x, n, &early, &decision.Edits)
	var bad *MalformedError
	switch {
	case errors.As(err, &bad):
		return nil, c.breakOff(x, bad)
	case err == io.EOF: //nolint:errorlint // returned as it is
		x.half() // the response may come yet
		return nil, err
	case err != nil:
		x.over(err)
		return nil, err
	}
	x.half()
	if x.upgrade || x.method == "CONNECT" {
		<-x.settled
	}
	return x, nil
}

// forward passes on a request: its head as it came where nothing changes it,
// together with what there is of the body.
func (c *conn1) forward(x *exchange1, n int, early *early1, edits *Edits) error {
	ahead := n
	if early.taken || !c.head.plain(edits) {
		b := c.head.rewrite(make([]byte, headRoom, headRoom+n+len(early.raw)+512), edits)
		b = append(b, early.raw...)
		x.Sent.Add(int64(len(early.raw)))
		if !early.taken {
			c.client.skip(n)
		}
		ahead = 0
		early.Content, early.raw = Content{}, nil // this may take long, and b is all that is needed
		err := c.app.side.Send(b, headRoom, c.client.side.Err)
		early.free(x.gate)
		if err != nil {
			return err
		}
	}
	return passBody(&c.client, c.app.side, ahead, &c.head.body, &x.Sent)
}

// passBody passes on the head that is the next bytes, and the body behind it.
func passBody(from *reader, to Side, head int, b *body, count *atomic.Int64) error {
	for {
		n, done, err := b.scan(from.bytes()[head:])
		count.Add(int64(n))
		if failed := from.pass(head+n, to); failed != nil {
			return failed
		}
		if err != nil || done {
			return err
		}
		head = 0
		if err := from.fill(); err != nil {
			return err
		}
	}
}

// refuse answers in the place of the application.
func (c *conn1) refuse(x *exchange1, n int, taken bool, refusal *Refusal) error {
	x.status(refusal.Status)
	x.over(nil)
	last := c.head.body.kind != bodyNone
	if !taken {
		c.client.skip(n)
	}
	if err := answer1(c.client.side, c.app.side.Err, refusal, c.id, x.method, last); err != nil {
		return err
	}
	if !last {
		return nil
	}
	return c.leave()
}

// refuseMalformed answers what is no request, and ends the connection: nobody
// knows where the next one would begin.
func (c *conn1) refuseMalformed(bad *MalformedError) error {
	c.gate.Malformed(bad)
	refusal := &Refusal{Status: bad.Status, Message: bad.Error()}
	if err := answer1(c.client.side, c.app.side.Err, refusal, c.id, "", true); err != nil {
		return err
	}
	if err := c.leave(); err != errLast { //nolint:errorlint // our own
		return err
	}
	return nil
}

// leave ends the connection behind an answer. The application, to which nothing
// is owed, sees FIN.
func (c *conn1) leave() error {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	_ = c.app.side.CloseWrite()
	c.linger()
	c.left.Store(true)
	c.app.side.Reset() // unless it has ended by now
	return errLast
}

// breakOff ends an exchange whose body turned out to be no body. Its
// application, which has a part of it, sees RST; whoever reads it answers.
func (c *conn1) breakOff(x *exchange1, bad *MalformedError) error {
	c.gate.Malformed(bad)
	c.mu.Lock()
	c.broken = bad
	c.mu.Unlock()
	c.app.side.Reset()
	<-x.answered
	c.linger()
	return errLast
}
