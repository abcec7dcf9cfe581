package extauthz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

func (p *provider) askGRPC(ctx context.Context, to *model.Provider, q *Question) (*Answer, error) {
	answer, err := authv3.NewAuthorizationClient(p.grpc).Check(ctx, checkRequest(to, q))
	if err != nil {
		return nil, err
	}
	if codes.Code(answer.GetStatus().GetCode()) == codes.OK {
		return allowed(answer.GetOkResponse()), nil
	}
	out := &Answer{Status: http.StatusForbidden}
	if d := answer.GetDeniedResponse(); d != nil {
		if code := int(d.GetStatus().GetCode()); code >= 200 && code <= 599 {
			out.Status = code
		}
		out.Body = d.GetBody()
		for _, h := range d.GetHeaders() {
			out.Headers = append(out.Headers, fieldOf(h))
		}
	}
	return out, nil
}

func allowed(ok *authv3.OkHttpResponse) *Answer {
	out := &Answer{Allowed: true, Remove: ok.GetHeadersToRemove()}
	for _, h := range ok.GetHeaders() {
		// Unset, the deprecated field means to replace, whatever the default
		// of the newer one is.
		if h.GetAppend().GetValue() { //nolint:staticcheck // what providers send
			out.Append = append(out.Append, fieldOf(h))
		} else {
			out.Set = append(out.Set, fieldOf(h))
		}
	}
	for _, h := range ok.GetResponseHeadersToAdd() {
		if h.GetAppend().GetValue() { //nolint:staticcheck // what providers send
			out.RespondAdd = append(out.RespondAdd, fieldOf(h))
		} else {
			out.RespondSet = append(out.RespondSet, fieldOf(h))
		}
	}
	return out
}

func fieldOf(h *corev3.HeaderValueOption) policy.HeaderField {
	value := h.GetHeader().GetValue()
	if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
		value = string(raw)
	}
	return policy.HeaderField{Name: strings.ToLower(h.GetHeader().GetKey()), Value: value}
}

func checkRequest(to *model.Provider, q *Question) *authv3.CheckRequest {
	headers := map[string]string{":method": q.Method, ":path": q.Target, ":authority": q.Host}
	for _, f := range q.Headers {
		name := strings.ToLower(f.Name)
		if name == partialBody { // ours to say
			continue
		}
		if before, ok := headers[name]; ok {
			headers[name] = before + "," + f.Value
		} else {
			headers[name] = f.Value
		}
	}
	about := &authv3.AttributeContext_HttpRequest{
		Id: q.ID, Method: q.Method, Path: q.Target, Host: q.Host, Scheme: "http", Protocol: q.Protocol,
		Headers: headers, Size: -1,
	}
	if len(q.Body) > 0 {
		headers[partialBody] = strconv.FormatBool(q.Partial)
		if !q.Partial {
			about.Size = int64(len(q.Body))
		}
		if to.BodyAsBytes {
			about.RawBody = q.Body
		} else {
			about.Body = strings.ToValidUTF8(string(q.Body), "!")
		}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: addressOf(q.Source), Principal: q.Principal},
		Destination: &authv3.AttributeContext_Peer{Address: addressOf(q.Destination), Principal: q.Local},
		Request:     &authv3.AttributeContext_Request{Time: timestamppb.Now(), Http: about},
	}}
}

// partialBody is the header in which Envoy says whether the body is cut off.
const partialBody = "x-envoy-auth-partial-body"

func addressOf(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// always are the headers that a provider over HTTP gets besides those that are
// named for it; it cannot decide about much without them.
var always = []string{"authorization"}

func (p *provider) askHTTP(ctx context.Context, to *model.Provider, q *Question) (*Answer, error) {
	scheme := "http"
	if to.TLS {
		scheme = "https"
	}
	target, err := url.ParseRequestURI(to.PathPrefix + q.Target)
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", to.Name, withoutURL(err))
	}
	target.Scheme, target.Host = scheme, hostPort(to)
	r, err := http.NewRequestWithContext(ctx, q.Method, target.String(), bytes.NewReader(q.Body))
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", to.Name, err)
	}
	r.Host = q.Host
	r.Header.Set("X-Forwarded-For", q.Source.Addr().String())
	for _, f := range q.Headers {
		if named(to.IncludeRequestHeaders, f.Name) || strings.EqualFold(f.Name, always[0]) {
			r.Header.Add(f.Name, f.Value)
		}
	}
	for name, value := range to.IncludeAdditionalHeaders {
		r.Header.Set(name, value)
	}
	if r.Header.Del(partialBody); len(q.Body) > 0 {
		r.Header.Set(partialBody, strconv.FormatBool(q.Partial))
	}
	response, err := p.http.Do(r)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer func() { _ = response.Body.Close() }()
	defer drain(response.Body)
	return answerOf(to, response)
}

// drain reads what is left of an answer, within bounds: a connection that has
// something unread is of no use for the next question.
func drain(body io.ReadCloser) {
	slow := time.AfterFunc(maxDrain, func() { _ = body.Close() })
	_, _ = io.CopyN(io.Discard, body, maxAnswer)
	slow.Stop()
}

// withoutURL leaves out the target: its query may hold secrets, and errors are
// logged.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// answerOf reads an answer of HTTP: 200 allows, an error of the server's is
// none at all.
func answerOf(to *model.Provider, r *http.Response) (*Answer, error) {
	switch {
	case r.StatusCode == http.StatusOK:
		return &Answer{
			Allowed: true, Set: fields(r.Header, to.HeadersToUpstreamOnAllow), RespondSet: fields(r.Header, to.HeadersToDownstreamOnOK),
		}, nil
	case r.StatusCode >= 500:
		return nil, fmt.Errorf("provider %s answers with %s", to.Name, r.Status)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	out := &Answer{Status: r.StatusCode, Body: string(body)}
	standard := []model.StringMatch{{Value: "www-authenticate"}, {Value: "location"}, {Value: "set-cookie"}}
	if len(to.HeadersToDownstreamOnDeny) > 0 {
		standard = to.HeadersToDownstreamOnDeny
	}
	out.Headers = fields(r.Header, standard)
	return out, nil
}

func fields(h http.Header, wanted []model.StringMatch) (out []policy.HeaderField) {
	for name, values := range h {
		switch name {
		case "Content-Length", "Transfer-Encoding", "Connection", "Content-Type", "Date":
			continue
		}
		if !named(wanted, name) {
			continue
		}
		for _, value := range values {
			out = append(out, policy.HeaderField{Name: strings.ToLower(name), Value: value})
		}
	}
	return out
}

func named(wanted []model.StringMatch, name string) bool {
	name = strings.ToLower(name)
	for _, m := range wanted {
		if m.MatchesFold(name) {
			return true
		}
	}
	return false
}

func hostPort(to *model.Provider) string {
	if strings.Contains(to.Host, ":") {
		return "[" + to.Host + "]:" + strconv.Itoa(int(to.Port))
	}
	return to.Host + ":" + strconv.Itoa(int(to.Port))
}
