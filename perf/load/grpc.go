package load

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
)

// call makes the same unary call, over and over, on one connection. Size is the
// payload's either way.
func call(ctx context.Context, c *client) error {
	conn, err := grpc.NewClient("passthrough:///"+c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithDeadline(ctx, c.end.Add(patience))
	defer cancel()
	service := grpc_testing.NewBenchmarkServiceClient(conn)
	request := &grpc_testing.SimpleRequest{ResponseSize: int32(c.Size), Payload: &grpc_testing.Payload{Body: make([]byte, c.Size)}}
	for now := time.Now(); now.Before(c.end); {
		response, err := service.UnaryCall(ctx, request)
		if err != nil {
			return err
		}
		n := len(response.GetPayload().GetBody())
		if n != c.Size {
			return fmt.Errorf("an answer of %d bytes, not %d", n, c.Size)
		}
		c.done.Bytes += uint64(2 * n)
		after := time.Now()
		c.times = append(c.times, after.Sub(now))
		now = after
	}
	return nil
}

// calls serves them.
func calls(l net.Listener) error {
	server := grpc.NewServer()
	grpc_testing.RegisterBenchmarkServiceServer(server, benchmark{})
	return server.Serve(l)
}

type benchmark struct {
	grpc_testing.UnimplementedBenchmarkServiceServer
}

// UnaryCall implements grpc_testing.BenchmarkServiceServer.
func (benchmark) UnaryCall(_ context.Context, r *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Payload: &grpc_testing.Payload{Body: make([]byte, min(max(0, int(r.GetResponseSize())), maxCall))}}, nil
}

// maxCall is what a caller may ask for.
const maxCall = 1 << 20
