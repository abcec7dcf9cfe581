package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
)

// newClient makes a client that checks the very address that it connects to:
// what a name resolved to a moment ago says nothing.
func newClient(c Config) *http.Client {
	transport := c.Transport
	if transport == nil {
		dialer := &net.Dialer{Timeout: MaxTimeout, Control: func(_, address string, _ syscall.RawConn) error {
			return permitted(address, c.Forbidden)
		}}
		transport = &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: MaxTimeout, ResponseHeaderTimeout: MaxTimeout,
			MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true, ForceAttemptHTTP2: true,
		}
	}
	return &http.Client{
		Transport: transport, Timeout: MaxTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// nat64 holds an IPv4 address in its last four bytes (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

func permitted(address string, forbidden []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address", address)
	}
	a := ap.Addr().Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsMulticast(), a.IsUnspecified(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is an address that key sets are not fetched from", a)
	case slices.ContainsFunc(forbidden, func(p netip.Prefix) bool { return p.Contains(a) }):
		return fmt.Errorf("%v is the cluster's own: key sets are not fetched from there", a)
	}
	return nil
}

// get returns the key set's document.
func (f *Fetcher) get(ctx context.Context, s Source) ([]byte, error) {
	if s.URI != "" {
		return f.fetch(ctx, s.URI)
	}
	text, err := f.fetch(ctx, strings.TrimSuffix(s.Issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, fmt.Errorf("the issuer's configuration: %w", err)
	}
	var discovered struct {
		Issuer string `json:"issuer"`
		URI    string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(text, &discovered); err != nil {
		return nil, fmt.Errorf("the issuer's configuration: %w", err)
	}
	if discovered.Issuer != s.Issuer {
		return nil, fmt.Errorf("the issuer's configuration is of %q", discovered.Issuer)
	}
	return f.fetch(ctx, discovered.URI)
}

func (f *Fetcher) fetch(ctx context.Context, where string) ([]byte, error) {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%q is no address of the form https://HOST/PATH", where)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	answer, err := f.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d, want 200; redirects are not followed", where, answer.StatusCode)
	}
	document, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", where, err)
	case len(document) > maxAnswer:
		return nil, errors.New(where + ": the answer is longer than 1 MB")
	}
	return document, nil
}
