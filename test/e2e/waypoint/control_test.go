package waypoint

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

const controlName = "control.test"

// control is a control plane that sends all it has once it is asked, and signs
// for whoever asks.
type control struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	ca.UnimplementedIstioCertificateServiceServer
	m   *mesh
	all []*discovery.Resource // addresses
}

// start serves at the listener until the end of the test and returns the file of
// the root by which it is known.
func (c *control) start(m *mesh, l net.Listener) (root string) {
	m.t.Helper()
	c.m = m
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.must(err)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{controlName}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	m.must(err)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, c)
	ca.RegisterIstioCertificateServiceServer(server, c)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) })
	m.t.Cleanup(func() { server.Stop(); running.Wait() })
	return m.write("control.crt", encoded("CERTIFICATE", der))
}

// DeltaAggregatedResources sends no policies and, in one response, all addresses.
func (c *control) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue // an answer
		}
		response := &discovery.DeltaDiscoveryResponse{Nonce: "1", TypeUrl: r.GetTypeUrl()}
		if r.GetTypeUrl() == wire.AddressType {
			response.Resources = c.all
		}
		if err := s.Send(response); err != nil {
			return err
		}
	}
}

// CreateCertificate signs for the identity that is asked for.
func (c *control) CreateCertificate(_ context.Context, r *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(r.GetCsr()))
	if block == nil {
		return nil, errors.New("a request that is no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	id := r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()
	leaf := c.m.ca.Sign(c.m.t, identitytest.Template(c.m.t, id), csr.PublicKey)
	chain := &ca.IstioCertificateResponse{}
	for _, cert := range []*x509.Certificate{leaf, c.m.ca.Root} {
		chain.CertChain = append(chain.CertChain, string(encoded("CERTIFICATE", cert.Raw)))
	}
	return chain, nil
}

// addressesOf are the workloads and services of a snapshot, as resources.
func addressesOf(s *model.Snapshot) (all []*discovery.Resource) {
	for _, w := range s.Workloads() {
		body, err := wire.EncodeWorkload(w)
		if err != nil {
			panic(err)
		}
		all = append(all, &discovery.Resource{Name: w.UID, Version: "1", Resource: body})
	}
	for _, v := range s.Services() {
		body, err := wire.EncodeService(v)
		if err != nil {
			panic(err)
		}
		all = append(all, &discovery.Resource{Name: v.Key(), Version: "1", Resource: body})
	}
	return all
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}
