// Package server sends the mesh to the nodes' proxies, over xDS in its
// aggregated, incremental form.
//
// The protocol's bookkeeping is go-control-plane's; what each stream is sent,
// and in which order, is decided here. A change of the mesh goes out as one
// generation, in up to three responses: policies, then the addresses that name
// them, then the removal of policies. All but the last say that more follows,
// so that a proxy can apply the generation whole; one that does not know of
// this never meets a name before what it stands for. What does not belong
// here: how the mesh is made (xds/build), the encoding (xds/wire), and who may
// connect.
package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// Server is the aggregated discovery service. Until the first update that
// completes both kinds of resources, streams wait.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	log   *zap.Logger
	node  func(context.Context) string
	grace time.Duration // bothKindsGrace

	current atomic.Pointer[state]
	closed  context.Context
	close   context.CancelFunc

	mu    sync.Mutex // serializes Apply; guards views
	views map[*view]struct{}

	responses, rejections atomic.Uint64

	nodes chan struct{} // holds one value after proxies came or went
}

// New makes a server without resources. node says as which node a stream's
// context was authenticated.
func New(log *zap.Logger, node func(context.Context) string) *Server {
	s := &Server{log: log, node: node, grace: bothKindsGrace, views: map[*view]struct{}{}, nodes: make(chan struct{}, 1)}
	s.closed, s.close = context.WithCancel(context.Background())
	s.current.Store(newState())
	return s
}

// Apply brings an update to every stream, as one generation or, to those that
// are behind, as a part of one. On an error, which a resource that cannot be
// encoded causes, nothing changes.
func (s *Server) Apply(u model.Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.current.Load().apply(u)
	if err != nil {
		return fmt.Errorf("apply update to xDS server: %w", err)
	}
	s.current.Store(next)
	for v := range s.views {
		v.wake()
	}
	return nil
}

// Snapshot is the mesh as it is sent.
func (s *Server) Snapshot() *model.Snapshot { return s.current.Load().snapshot }

// Stats are counters since the start, and what is there now.
type Stats struct {
	Streams    int
	Generation uint64 // of the resources
	Responses  uint64
	Rejections uint64 // responses that a proxy refused in part
}

// Stats is for metrics.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Streams: len(s.views), Generation: s.current.Load().generation,
		Responses: s.responses.Load(), Rejections: s.rejections.Load(),
	}
}

// Lacking are the nodes, sorted, with a connected proxy that does not
// understand all of the policy. Such a proxy errs on the closed side.
func (s *Server) Lacking(p *model.Policy) []string {
	if len(wire.Lacks(p, "")) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := map[string]bool{}
	for v := range s.views {
		v.mu.Lock()
		if v.known && len(wire.Lacks(p, v.announced)) > 0 {
			nodes[v.node] = true
		}
		v.mu.Unlock()
	}
	return slices.Sorted(maps.Keys(nodes))
}

// NodesChanged holds a value when [Server.Lacking] may have changed for
// another reason than the mesh.
func (s *Server) NodesChanged() <-chan struct{} { return s.nodes }

func (s *Server) nodesChanged() {
	select {
	case s.nodes <- struct{}{}:
	default:
	}
}

// Close ends all streams, and new ones at once. The proxies reconnect.
func (s *Server) Close() { s.close() }

// DeltaAggregatedResources serves one proxy.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	node := s.node(stream.Context())
	v := &view{server: s, node: node, log: s.log.With(zap.String("node", node))}
	grace := time.AfterFunc(s.grace, v.endGrace)
	defer grace.Stop()

	s.mu.Lock()
	s.views[v] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.views, v)
		s.mu.Unlock()
		s.nodesChanged()
	}()

	v.log.Info("proxy connected")
	err := delta.NewServer(s.closed, v, v).DeltaStreamHandler(stream, resource.AnyType)
	if s.closed.Err() != nil {
		err = status.Error(codes.Unavailable, "the control plane is stopping")
	}
	v.log.Info("proxy disconnected", zap.Error(err))
	return err
}

// The hooks of go-control-plane's server.

// OnDeltaStreamOpen does nothing.
func (v *view) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed does nothing.
func (v *view) OnDeltaStreamClosed(int64, *core.Node) {}

// OnStreamDeltaRequest notes what the proxy refused. The rest of that
// response is in force there.
func (v *view) OnStreamDeltaRequest(_ int64, req *discovery.DeltaDiscoveryRequest) error {
	if detail := req.GetErrorDetail(); detail != nil {
		v.server.rejections.Add(1)
		v.log.Warn("proxy rejected resources", zap.String("type", req.GetTypeUrl()), zap.String("reason", detail.GetMessage()))
	}
	return nil
}

// OnStreamDeltaResponse counts.
func (v *view) OnStreamDeltaResponse(int64, *discovery.DeltaDiscoveryRequest, *discovery.DeltaDiscoveryResponse) {
	v.server.responses.Add(1)
}
