package client

import (
	"fmt"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// subscriptions are the first requests of a connection, one for each type:
// everything (no names), or what is asked for, but not what is held.
func (c *Client) subscriptions() []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, k := range c.kinds {
		request := &discovery.DeltaDiscoveryRequest{
			Node:                    c.config.Node.proto(),
			TypeUrl:                 k.typeURL,
			InitialResourceVersions: k.versions(),
		}
		if c.config.OnDemand && k.typeURL == wire.AddressType {
			c.resume(request)
		}
		out = append(out, request)
	}
	return out
}

// handle applies responses as one change and returns the answers to them.
func (c *Client) handle(responses ...*discovery.DeltaDiscoveryResponse) (answers []*discovery.DeltaDiscoveryRequest) {
	c.applying.Lock()
	update, rejected := c.accept(responses)
	if !isEmpty(update) {
		c.config.Sink.Apply(update)
	}
	c.applying.Unlock()
	c.warn(update.Policies)
	for i, response := range responses {
		reason := rejection(rejected[i], len(response.GetResources()))
		c.answered(response, reason)
		answer := &discovery.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}
		if reason != "" {
			c.log.Error("xDS resources rejected", zap.String("type", response.GetTypeUrl()), zap.String("reason", reason))
			answer.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: reason}
		}
		answers = append(answers, answer)
	}
	return answers
}

// warn names the policies that are not understood as a whole. The control plane
// is told that they are taken: they stand, and deny.
func (c *Client) warn(policies []*model.Policy) {
	var list []error
	for _, p := range policies {
		if what := p.NotUnderstood(); what != "" {
			list = append(list, fmt.Errorf("policy %q: %s", p.Key(), what))
		}
	}
	if len(list) > 0 {
		c.log.Warn("xDS policies not understood; what is unknown in them denies", zap.String("reason", summed(fmt.Sprintf("%d policies", len(list)), list)))
	}
}

// accept returns the update that responses lead to, and for each response what
// is rejected of it.
func (c *Client) accept(responses []*discovery.DeltaDiscoveryResponse) (u model.Update, rejected [][]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected()
	c.largeCame, c.largeUnsaved = false, c.largeUnsaved || c.largeCame
	for _, response := range responses {
		k := c.kind(response.GetTypeUrl())
		if k == nil {
			rejected = append(rejected, []error{fmt.Errorf("type %q was not subscribed to", response.GetTypeUrl())})
			continue
		}
		rejected = append(rejected, k.accept(response, &u))
		c.markDirty()
	}
	if c.config.OnDemand {
		c.hear(&u, responses)
	}
	return u, rejected
}

func (c *Client) markDirty() {
	select {
	case c.dirty <- struct{}{}:
	default: // already to be saved
	}
}

// answered notes how a response was answered; from then on the first full
// list counts as in.
func (c *Client) answered(response *discovery.DeltaDiscoveryResponse, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.kind(response.GetTypeUrl()); k != nil {
		k.status.note(response.GetNonce(), reason, time.Now())
	}
	c.announceReady()
}

func (c *Client) announceReady() {
	for _, k := range c.kinds {
		if !k.isComplete {
			return
		}
	}
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

func (c *Client) kind(typeURL string) *kind {
	for _, k := range c.kinds {
		if k.typeURL == typeURL {
			return k
		}
	}
	return nil
}

func isEmpty(u model.Update) bool {
	return len(u.Workloads) == 0 && len(u.Services) == 0 && len(u.Policies) == 0 &&
		len(u.RemovedAddresses) == 0 && len(u.RemovedPolicies) == 0 &&
		len(u.Heard) == 0 && len(u.Unheard) == 0 &&
		!u.AddressesComplete && !u.PoliciesComplete
}

// rejection names the resources rejected and why; empty if none is.
func rejection(rejected []error, total int) string {
	if len(rejected) == 0 {
		return ""
	}
	return summed(fmt.Sprintf("%d of %d resources rejected", len(rejected), total), rejected)
}

// maxRejection bounds a rejection's text, which goes to the server, into the
// log and into the status.
const maxRejection = 4 << 10

// summed is a list of errors in one line, within bounds.
func summed(head string, list []error) string {
	b := strings.Builder{}
	b.WriteString(head)
	for i, err := range list {
		separator := "; "
		if i == 0 {
			separator = ": "
		}
		if b.Len()+len(separator)+len(err.Error()) > maxRejection {
			fmt.Fprintf(&b, "; and %d more", len(list)-i)
			break
		}
		b.WriteString(separator + err.Error())
	}
	return strings.ToValidUTF8(b.String(), "?")
}
