// Package person says who a person is, to a program that is none of the API
// server's, and what they may see.
//
// The API server vouches for them: it writes into each
// CertificateSigningRequest who made it, and nobody can change that. So tacit ui
// makes a key and a request for it that nobody is ever to sign, and proves to
// tacitd that it has the key. tacitd gets no credential of the person, and takes
// nobody's word for who they are. That works however people log in. What does
// not belong here: what is shown to them (sight/page).
package person

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	authorization "k8s.io/api/authorization/v1"
	certificates "k8s.io/api/certificates/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tacit-mesh/tacit/sight/page"
)

const (
	// Signer is in requests of ours: nobody is to sign them.
	Signer = "tacit.mesh/ui"

	namePrefix   = "tacit-ui-"
	requestLife  = 2 * time.Minute // until a request proves nothing any more
	shortestLife = 600             // seconds; the API wants some
	maxWaiting   = 64              // challenges
)

// signed is what a proof's signature is of.
func signed(challenge, request string) []byte {
	sum := sha256.Sum256([]byte("tacit ui\x00" + challenge + "\x00" + request))
	return sum[:]
}

// Prove makes a proof of who the client's user is. done takes away what it left
// in the cluster, where the user may; else the API server does some hours later.
func Prove(ctx context.Context, client kubernetes.Interface, challenge string) (p page.Proof, done func(context.Context), err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "tacit-ui"}}, key)
	if err != nil {
		return p, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	life := int32(shortestLife)
	requests := client.CertificatesV1().CertificateSigningRequests()
	made, err := requests.Create(ctx, &certificates.CertificateSigningRequest{
		ObjectMeta: meta.ObjectMeta{Name: namePrefix + lower(rand.Text())},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: Signer, ExpirationSeconds: &life, Usages: []certificates.KeyUsage{certificates.UsageClientAuth},
		},
	}, meta.CreateOptions{})
	if err != nil {
		return p, nil, fmt.Errorf("have the API server say who you are: %w (it takes the right to create certificatesigningrequests)", err)
	}
	signature, err := ecdsa.SignASN1(rand.Reader, key, signed(challenge, made.Name))
	if err != nil {
		return p, nil, fmt.Errorf("sign the challenge: %w", err)
	}
	return page.Proof{Challenge: challenge, Request: made.Name, Signature: signature},
		func(ctx context.Context) { _ = requests.Delete(ctx, made.Name, meta.DeleteOptions{}) }, nil
}

// lower makes a text fit for a name: rand.Text has capitals and digits.
func lower(s string) string {
	out := []byte(s)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return string(out)
}

// Door is a page.Door that lets everybody in whom the API server knows, to see
// what it says that they may.
type Door struct {
	Client kubernetes.Interface

	mu      sync.Mutex
	waiting map[string]time.Time // challenges, by when they were given
}

// Challenge implements page.Door.
func (d *Door) Challenge() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for text, at := range d.waiting {
		if now.Sub(at) > requestLife {
			delete(d.waiting, text)
		}
	}
	if len(d.waiting) >= maxWaiting {
		return "", errors.New("too many people are on their way in: try again in two minutes")
	}
	if d.waiting == nil {
		d.waiting = map[string]time.Time{}
	}
	text := rand.Text()
	d.waiting[text] = now
	return text, nil
}

// take uses a challenge up.
func (d *Door) take(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.waiting[text]
	delete(d.waiting, text)
	return ok && time.Since(at) <= requestLife
}

// Open implements page.Door.
func (d *Door) Open(ctx context.Context, p page.Proof) (page.Viewer, error) {
	if !d.take(p.Challenge) {
		return nil, errors.New("the proof is of no challenge of ours, or of an old one")
	}
	if len(p.Request) <= len(namePrefix) || p.Request[:len(namePrefix)] != namePrefix {
		return nil, errors.New("the proof names no request of tacit ui")
	}
	request, err := d.Client.CertificatesV1().CertificateSigningRequests().Get(ctx, p.Request, meta.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("the request that is to prove who you are: %w", err)
	}
	if err := check(request, p, time.Now()); err != nil {
		return nil, err
	}
	spec := request.Spec
	extra := map[string]authorization.ExtraValue{}
	for name, values := range spec.Extra {
		extra[name] = authorization.ExtraValue(values)
	}
	return &viewer{client: d.Client, user: authorization.SubjectAccessReviewSpec{User: spec.Username, UID: spec.UID, Groups: spec.Groups, Extra: extra}}, nil
}

func check(request *certificates.CertificateSigningRequest, p page.Proof, now time.Time) error {
	age := now.Sub(request.CreationTimestamp.Time)
	switch {
	case request.Spec.SignerName != Signer:
		return errors.New("the request is one for certificates, and proves nothing here")
	case age > requestLife || age < -requestLife:
		return fmt.Errorf("the request is %v old: run tacit ui again (or are the clocks of the nodes apart?)", age.Round(time.Second))
	case request.Spec.Username == "":
		return errors.New("the request does not say who made it")
	}
	block, _ := pem.Decode(request.Spec.Request)
	if block == nil {
		return errors.New("the request is not PEM")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	key, ok := parsed.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, signed(p.Challenge, p.Request), p.Signature) {
		return errors.New("the signature is not by the key of the request")
	}
	return nil
}
