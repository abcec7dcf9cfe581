package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// echoes is a service that sends back what it gets, and metadata as header and
// trailers.
type echoes struct {
	testgrpc.UnimplementedTestServiceServer
}

func (echoes) UnaryCall(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	said := metadata.Pairs("x-echo", strings.Join(md.Get("x-say"), ","), "x-echo-bin", "\x00\xff")
	_ = grpc.SetHeader(ctx, said)
	_ = grpc.SetTrailer(ctx, said)
	if code := r.GetResponseStatus().GetCode(); code != 0 {
		return nil, status.Error(codes.Code(code), r.GetResponseStatus().GetMessage())
	}
	return &testgrpc.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (echoes) FullDuplexCall(s grpc.BidiStreamingServer[testgrpc.StreamingOutputCallRequest, testgrpc.StreamingOutputCallResponse]) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			s.SetTrailer(metadata.Pairs("x-end", "1"))
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&testgrpc.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// converseGRPC makes calls one after the other, and returns what came of them.
func converseGRPC(t *testing.T, to net.Addr) (heard string, exchanges int) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+to.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("shop.example"))
	must(t, err)
	defer func() { _ = conn.Close() }()
	client := testgrpc.NewTestServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-say", "a", "x-say", "b")
	var all strings.Builder
	for code := range codes.Code(17) {
		for _, size := range []int{0, 100_000} {
			var header, trailer metadata.MD
			answer, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{
				Payload:        &testgrpc.Payload{Body: make([]byte, size)},
				ResponseStatus: &testgrpc.EchoStatus{Code: int32(code), Message: "é % \n"},
			}, grpc.Header(&header), grpc.Trailer(&trailer))
			fmt.Fprintln(&all, code, size, len(answer.GetPayload().GetBody()), err, header, trailer)
			exchanges++
		}
	}
	stream, err := client.FullDuplexCall(ctx)
	must(t, err)
	exchanges++
	for i := range 10 {
		must(t, stream.Send(&testgrpc.StreamingOutputCallRequest{Payload: &testgrpc.Payload{Body: make([]byte, i*10_000)}}))
		answer, err := stream.Recv()
		fmt.Fprintln(&all, len(answer.GetPayload().GetBody()), err)
	}
	must(t, stream.CloseSend())
	_, err = stream.Recv()
	fmt.Fprintln(&all, err, stream.Trailer())
	return all.String(), exchanges
}

// Calls of gRPC are the same for the client and for the server as without the
// proxy.
func TestNoDifferenceOfGRPC(t *testing.T) {
	l := listen(t)
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, echoes{})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	direct, behind := tapped(t, l.Addr()), tapped(t, l.Addr())
	want, exchanges := converseGRPC(t, direct)
	got, _ := converseGRPC(t, proxied(t, behind, Undeclared, newGate(allowAll)))
	differ(t, "the client hears", date.ReplaceAllString(got, "$1-"), date.ReplaceAllString(want, "$1-"))
	differ(t, "the server hears", streams2(t, behind.last()), streams2(t, direct.last()))
	t.Logf("%d exchanges", exchanges)
}
