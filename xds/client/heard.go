package client

import (
	"math"
	"slices"
	"strconv"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// A response does not say which request it answers, and may be older than the
// latest. So with each batch of names goes a mark, a name that stands for nothing:
// the response that says so is the answer to the batch.

// batchMark begins the marks, which no address and no hostname of a namespace
// can be.
const batchMark = "/tacit-ask-"

// unreadable is the batch of a name whose answer is wrong: it is as if there had
// been none, until it is asked for again.
const unreadable = math.MaxUint64

func markOf(batch uint64) string { return batchMark + strconv.FormatUint(batch, 10) }

// batchOf is 0 for what is no mark.
func batchOf(mark string) uint64 {
	number, ok := strings.CutPrefix(mark, batchMark)
	batch, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil {
		return 0
	}
	return batch
}

// hear adds to an update what responses say of names, which counts from the
// answer to the batch on.
func (c *Client) hear(u *model.Update, responses []*discovery.DeltaDiscoveryResponse) {
	said := c.said(responses)
	if len(said.other)+len(said.wrong)+len(u.RemovedAddresses)+len(u.Workloads)+len(u.Services) == 0 {
		return // it is about nothing that has a name
	}
	next := c.config.Known().Apply(*u)
	for key, n := range c.names {
		if said.batches[n.batch] {
			n.batch = 0
		}
		means := next.Stands(key)
		switch {
		case n.heard && lost(next, n, means) && !(n.answered() && means == "" && said.nothing[key]):
			n.heard, n.means = false, ""
			u.Unheard = append(u.Unheard, key)
			if n.answered() {
				c.again(key, n)
			}
		case n.answered() && said.wrong[key] != "" && said.wrong[key] != means:
			if n.batch = unreadable; n.heard {
				n.heard, n.means = false, ""
				u.Unheard = append(u.Unheard, key)
			}
		case n.answered() && (means != "" || said.nothing[key] || said.other[key]):
			if n.means = means; !n.heard {
				n.heard = true
				u.Heard = append(u.Heard, key)
			}
		}
	}
}

// lost reports whether what a name stood for has gone, so that it has to be asked
// for again: its successor may not be known here, and a range that the address is
// in may not be all. A workload is what is meant by its address.
func lost(next *model.Snapshot, n *name, means string) bool {
	return n.means != "" && means != n.means && next.Workload(means) == nil
}

// said are what responses say: which batches they answer, which names stand for
// nothing, which are those of resources that are found by other names, and which
// are those of a resource that is wrong, and what that is.
type said struct {
	batches        map[uint64]bool
	nothing, other map[string]bool
	wrong          map[string]string
}

func (c *Client) said(responses []*discovery.DeltaDiscoveryResponse) said {
	out := said{map[uint64]bool{}, map[string]bool{}, map[string]bool{}, map[string]string{}}
	for _, response := range responses {
		k := c.kind(response.GetTypeUrl())
		if k == nil || k.typeURL != wire.AddressType {
			continue
		}
		c.tellsNews = wire.IsGeneration(response.GetSystemVersionInfo())
		for _, key := range response.GetRemovedResources() {
			if batch := batchOf(key); batch != 0 {
				out.batches[batch] = true
				c.marks = append(c.marks, key)
				continue
			}
			out.nothing[key] = true
		}
		for _, r := range response.GetResources() {
			held, ok := k.resources[r.GetName()]
			for _, key := range slices.Concat(r.GetAliases(), []string{r.GetName()}) {
				if !ok || held.rejected {
					out.wrong[key] = r.GetName()
				} else {
					out.other[key] = true
				}
			}
		}
	}
	return out
}
