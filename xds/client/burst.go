package client

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// largeMessage is from how many bytes on a message keeps a CPU busy for long: it
// is some 2,000 workloads.
const largeMessage = 1 << 20

// largeKind is how many resources keep one busy for a millisecond or so.
const largeKind = 1000

// burst tells of work on so many bytes, a message's or what is restored.
func (c *Client) burst(bytes int) {
	if bytes < largeMessage || c.config.Burst == nil {
		return
	}
	c.config.Burst()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.largeCame = true
}

// codec tells of large messages before they are decoded, which takes as long as
// what is done with them. It puts them together in memory of their own: gRPC clears
// what it has kept of an earlier one at once, and while the runtime does so much in
// one go it can stop no goroutine, so that all others wait for a collection that
// wants to begin.
type codec struct {
	encoding.CodecV2
	burst func(bytes int)
}

func (c *Client) codec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto"), c.burst} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok || data.Len() < largeMessage {
		return c.CodecV2.Unmarshal(data, v)
	}
	c.burst(data.Len())
	return proto.Unmarshal(data.Materialize(), m)
}
