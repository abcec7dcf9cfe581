package policy

import (
	"net/netip"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

func (e *evaluation) judgeRemote(h *model.HTTPMatch, wanted, deny bool) verdict {
	prefixes := h.RemoteIPs
	if !wanted {
		prefixes = h.NotRemoteIPs
	}
	switch {
	case len(prefixes) == 0:
		return absent
	case e.anyRequest && deny:
		return fails
	case e.anyRequest:
		return fits
	}
	return addresses(prefixes, e.remote(&h.Forwarding), wanted)
}

// remote is the address of the original client: that of the connection, unless
// its caller is one whose X-Forwarded-For is believed. It is not known where
// such a caller does not say it, or not as HTTP.
func (e *evaluation) remote(f *model.Forwarding) netip.Addr {
	switch {
	case f.Proxies == 0 || !e.hasPrincipal(f.Callers):
		return e.source
	case e.request.HTTP == nil:
		return netip.Addr{}
	}
	return e.request.HTTP.forwarded(f.Proxies)
}

// forwarded is the nth address from the end of X-Forwarded-For, of which
// several lines are one list.
func (r *HTTPRequest) forwarded(n uint32) netip.Addr {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if !model.EqualFold(r.Headers[i].Name, "x-forwarded-for") {
			continue
		}
		for list, more := r.Headers[i].Value, true; more; {
			var last string
			comma := strings.LastIndexByte(list, ',')
			list, last, more = list[:max(comma, 0)], list[comma+1:], comma >= 0
			if n--; n == 0 {
				return hostAddress(strings.Trim(last, " \t"))
			}
		}
	}
	return netip.Addr{}
}

// hostAddress reads an address, to which some proxies add the port.
func hostAddress(s string) netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		return plain(a)
	}
	if inside, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inside, "]") {
		a, _ := netip.ParseAddr(strings.TrimSuffix(inside, "]"))
		return plain(a)
	}
	a, _ := netip.ParseAddrPort(s)
	return plain(a.Addr())
}
