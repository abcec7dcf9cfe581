package hour

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// Bounds on what a node may send.
const (
	maxSummary    = 1 << 20 // bytes
	maxStreams    = 4       // of a node: its proxy, and those that drain
	summaryPause  = time.Second
	summariesOnce = 16 // at a time, such as the parts of a large one
)

// Interval is how often a proxy is asked to tell something.
const Interval = 10 * time.Second

// Service takes what proxies tell, for an Hour.
type Service struct {
	sight.UnimplementedSightServer
	Hour *Hour
	// Node says as which node a stream's context was authenticated.
	Node func(context.Context) string
	// Interval is how often each proxy is asked to tell something.
	Interval time.Duration
	Log      *zap.Logger

	begin   sync.Once
	process uint64
	mu      sync.Mutex
	streams map[string]int // by node
}

// Tell takes summaries until the proxy goes.
func (s *Service) Tell(stream grpc.BidiStreamingServer[sight.Summary, sight.Taken]) error {
	node := s.Node(stream.Context())
	if node == "" {
		return status.Error(codes.Unauthenticated, "which node this is is not known")
	}
	if !s.enter(node) {
		return status.Errorf(codes.ResourceExhausted, "node %s tells over %d streams already", node, maxStreams)
	}
	defer s.leave(node)
	s.begin.Do(func() { s.process = rand.Uint64() })
	limit := rate.NewLimiter(rate.Every(summaryPause), summariesOnce)
	for {
		summary, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if size := proto.Size(summary); size > maxSummary {
			s.Log.Warn("a proxy's summary is too large", zap.String("node", node), zap.Int("bytes", size))
			return status.Errorf(codes.InvalidArgument, "a summary of %d bytes: the limit is %d", size, maxSummary)
		}
		if err := limit.Wait(stream.Context()); err != nil {
			return status.FromContextError(err).Err()
		}
		s.Hour.Take(node, summary, time.Now())
		if err := stream.Send(&sight.Taken{IntervalMillis: s.Interval.Milliseconds(), Process: s.process}); err != nil {
			return err
		}
	}
}

func (s *Service) enter(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[node] >= maxStreams {
		return false
	}
	if s.streams == nil {
		s.streams = map[string]int{}
	}
	s.streams[node]++
	return true
}

func (s *Service) leave(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[node]--; s.streams[node] == 0 {
		delete(s.streams, node)
	}
}
