package http

import "sync"

// exchange1 is a request that was forwarded.
type exchange1 struct {
	Live
	gate     Exchange
	method   string
	upgrade  bool
	answered chan struct{} // closed when the response is complete or will not be
	settled  chan struct{} // closed when it is known whether the connection is a tunnel
	tunnel   bool          // set before settled is closed
	began    bool          // bytes of the final response were passed on
	response ResponseEdits

	mu     sync.Mutex // guards what follows
	halves int        // of request and response, that are not over
	result Result
	ended  bool
}

func (x *exchange1) status(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.result.Status = status
}

// half notes that the request was forwarded, or the response.
func (x *exchange1) half() {
	x.mu.Lock()
	x.halves--
	over := x.halves == 0
	x.mu.Unlock()
	if over {
		x.over(nil)
	}
}

// over tells the gate, once.
func (x *exchange1) over(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return
	}
	x.ended = true
	x.result.Err = err
	x.result.Sent, x.result.Received = x.Sent.Load(), x.Received.Load()
	x.gate.End(x.result)
}
