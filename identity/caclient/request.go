package caclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	// An answer holds a leaf, a few intermediates and roots.
	maxCertificates = 64
	// minLife keeps a misconfigured authority from being asked without pause.
	minLife = 5 * time.Second
)

// ask makes a key and gets one certificate for it.
func (c *Client) ask(ctx context.Context, id model.Identity) (*identity.Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for %s: %w", id, err)
	}
	csr, err := certificateRequest(id, key)
	if err != nil {
		return nil, err
	}
	// The caller is the node's proxy; whose certificate it wants, it says here.
	impersonated, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id.String()})
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", id, err)
	}
	if c.config.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.config.ClusterID)
	}
	answer, err := c.ca.CreateCertificate(ctx, &ca.IstioCertificateRequest{
		Csr:              csr,
		ValidityDuration: int64(c.config.Lifetime / time.Second),
		Metadata:         impersonated,
	})
	if err != nil {
		return nil, fmt.Errorf("certificate for %s from CA %s%s: %w", id, c.config.Address, hint(err), err)
	}
	m, err := accept(answer.GetCertChain(), id, key, c.clock.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate for %s from CA %s: refused: %w", id, c.config.Address, err)
	}
	return m, nil
}

// certificateRequest names nothing but the identity: authorities copy or
// refuse what else they find.
func certificateRequest(id model.Identity, key *ecdsa.PrivateKey) (string, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return "", fmt.Errorf("certificate request for %s: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return "", fmt.Errorf("certificate request for %s: %w", id, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

func hint(err error) string {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return " (check the token file, and that a pod of this node has that identity)"
	case codes.Unavailable, codes.DeadlineExceeded:
		return " (check its address, server name and roots file)"
	}
	return ""
}

// accept turns an answer into material. What it lets through is presented to
// peers, so a mistake of the authority must end here.
func accept(answer []string, id model.Identity, key *ecdsa.PrivateKey, now time.Time) (*identity.Material, error) {
	if len(answer) < 2 {
		return nil, fmt.Errorf("%d elements in the answer where at least leaf and root are needed", len(answer))
	}
	var chain []*x509.Certificate
	for _, element := range answer[:len(answer)-1] {
		certs, err := parsePEM(element)
		if err != nil {
			return nil, fmt.Errorf("chain: %w", err)
		}
		chain = append(chain, certs...)
	}
	roots, err := parsePEM(answer[len(answer)-1])
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	m, err := identity.NewMaterial(chain, key, roots)
	if err != nil {
		return nil, err
	}
	if got := m.Identity(); got != id {
		return nil, fmt.Errorf("it is for %q", got)
	}
	return m, verify(m, now)
}

// verify sees to it that peers will accept the certificate in both directions.
func verify(m *identity.Material, now time.Time) error {
	if left := m.NotAfter().Sub(now); left > 0 && left < minLife {
		return fmt.Errorf("it ends in %s, less than %s", left, minLife)
	}
	return m.Check(now)
}

func parsePEM(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(certs) == maxCertificates {
			return nil, fmt.Errorf("a PEM block %.40q, or more than %d certificates", block.Type, maxCertificates)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return certs, nil
}
