package ca

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/internal/audit"
	api "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Bounds on what a node may ask for. A node that starts wants a certificate
// for each of its pods at once.
const (
	maxRequest = 16 << 10 // bytes of a request
	burst      = 1000     // requests at once
	perSecond  = 20       // requests thereafter
)

// Lifetimes of certificates.
const (
	DefaultTTL = 24 * time.Hour
	MinTTL     = 10 * time.Second
)

// Service is Istio's certificate service.
type Service struct {
	api.UnimplementedIstioCertificateServiceServer

	Authority   *Authority
	TrustDomain string
	// Aliases are other names of the trust domain, by which identities may be
	// asked for as well.
	Aliases []string
	MaxTTL  time.Duration // 0 means DefaultTTL
	// Node says as which node a call's context was authenticated.
	Node func(context.Context) string
	// Authorize says whether the node may have certificates for the
	// identity now; its error reaches the caller.
	Authorize func(ctx context.Context, node string, id model.Identity) error
	Log       *zap.Logger
	Audit     *audit.Log // of what was issued and refused; nil: none

	issued, refused atomic.Uint64
	mu              sync.Mutex
	limits          map[string]*rate.Limiter // by node
	known           map[holder]bool          // who had a certificate before
}

// holder is an identity on a node.
type holder struct{ node, identity string }

// maxKnown bounds of how many it is known whether a certificate is a renewal.
const maxKnown = 1 << 16

// Stats are counters since the start.
type Stats struct{ Issued, Refused uint64 }

// Stats is for metrics.
func (s *Service) Stats() Stats { return Stats{s.issued.Load(), s.refused.Load()} }

// CreateCertificate signs a request. The identity wanted is in the metadata
// as ImpersonatedIdentity and must be the request's only URI; of the request
// nothing else but the key is used. The answer is the leaf, then the
// intermediates, then all roots in one element.
func (s *Service) CreateCertificate(ctx context.Context, req *api.IstioCertificateRequest) (*api.IstioCertificateResponse, error) {
	node := s.Node(ctx)
	wanted := req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()
	issuer := s.Authority.issuer() // one for all of the answer
	leaf, err := s.issue(ctx, issuer, node, wanted, req)
	if err != nil {
		s.refused.Add(1)
		s.Log.Warn("certificate refused", zap.String("node", node), zap.String("identity", clip(wanted)), zap.Error(err))
		s.Audit.Write(audit.EventIdentity, map[string]string{"what": "refused", "node": node, "identity": clip(wanted), "error": err.Error()})
		return nil, err
	}
	s.issued.Add(1)
	s.Log.Info("certificate issued", zap.String("node", node), zap.String("identity", wanted),
		zap.Stringer("serial", leaf.SerialNumber), zap.Time("not_after", leaf.NotAfter))
	s.Audit.Write(audit.EventIdentity, map[string]string{
		"what": s.occasion(holder{node, wanted}), "node": node, "identity": wanted,
		"serial": leaf.SerialNumber.String(), "not_after": leaf.NotAfter.UTC().Format(time.RFC3339),
	})
	out := &api.IstioCertificateResponse{}
	for _, c := range issuer.chain(leaf) {
		out.CertChain = append(out.CertChain, string(encode(c)))
	}
	out.CertChain = append(out.CertChain, string(encode(issuer.roots...)))
	return out, nil
}

// occasion is "renewed" for whoever had a certificate since this process began.
func (s *Service) occasion(h holder) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[h] {
		return "renewed"
	}
	if s.known == nil || len(s.known) >= maxKnown {
		s.known = map[holder]bool{}
	}
	s.known[h] = true
	return "issued"
}

func (s *Service) issue(ctx context.Context, i *issuer, node, wanted string, req *api.IstioCertificateRequest) (*x509.Certificate, error) {
	if node == "" {
		return nil, status.Error(codes.Unauthenticated, "the caller is no known node")
	}
	if !s.limit(node).Allow() {
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d certificate requests a second from this node", perSecond)
	}
	id, err := model.ParseIdentity(wanted)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "metadata ImpersonatedIdentity: %v", err)
	}
	if id.TrustDomain != s.TrustDomain && !slices.Contains(s.Aliases, id.TrustDomain) {
		return nil, status.Errorf(codes.PermissionDenied, "trust domain %q is not this CA's, %q", id.TrustDomain, s.TrustDomain)
	}
	csr, err := parseRequest(req.GetCsr(), id)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: %v", err)
	}
	ttl, err := s.ttl(req.GetValidityDuration())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.Authorize(ctx, node, id); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	leaf, err := i.sign(workload(id), csr.PublicKey, ttl, s.Authority.now())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return leaf, nil
}

// parseRequest accepts one PEM block whose signature proves possession of the
// key.
func parseRequest(text string, id model.Identity) (*x509.CertificateRequest, error) {
	if len(text) > maxRequest {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(text), maxRequest)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("want one PEM block CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !strong(csr.PublicKey) {
		return nil, errors.New("the key must be ECDSA on P-256, P-384 or P-521")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != id.String() {
		return nil, fmt.Errorf("its URIs must be exactly the identity asked for, %s", id)
	}
	return csr, nil
}

// ttl keeps the wanted lifetime, in seconds, within bounds; 0 asks for the
// default.
func (s *Service) ttl(seconds int64) (time.Duration, error) {
	most := s.MaxTTL
	if most == 0 {
		most = DefaultTTL
	}
	switch {
	case seconds < 0:
		return 0, fmt.Errorf("validity_duration %d is negative", seconds)
	case seconds == 0:
		return min(DefaultTTL, most), nil
	case seconds > int64(most/time.Second):
		return most, nil
	}
	return max(time.Duration(seconds)*time.Second, MinTTL), nil
}

// limit has one entry for each node that has a token, which are few.
func (s *Service) limit(node string) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limits == nil {
		s.limits = map[string]*rate.Limiter{}
	}
	if s.limits[node] == nil {
		s.limits[node] = rate.NewLimiter(perSecond, burst)
	}
	return s.limits[node]
}

// clip shortens what a caller sent, for the log.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
