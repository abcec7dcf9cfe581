package dns

import (
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Whatever a pod sends, what it gets is an answer to it, of bounded length, or
// nothing.
func FuzzQuery(f *testing.F) {
	s := mesh()
	for _, m := range []*mdns.Msg{about("web.", mdns.TypeA), about("headless.mine.svc.cluster.local.mine.svc.cluster.local.", mdns.TypeAAAA), about("a.wild.example.com.", mdns.TypeA), about(".", mdns.TypeNS)} {
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(withRecords(raw, 1, opt(0)))
		f.Add(withRecords(raw, 2, opt(1), opt(0)))
	}
	f.Add(longName())
	server := NewServer(Config{
		Zone: NewZone("cluster.local"), Observe: func(Event) {},
		Mesh: func() (*model.Snapshot, Client, bool) { return s, Client{"mine", "net1"}, true },
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, tcp := range []bool{false, true} {
			q, out, done := server.own(raw, tcp)
			switch {
			case !done && (q.end < headerLength+5 || q.end > len(raw)):
				t.Fatalf("forwards a question that ends at %d of %d", q.end, len(raw))
			case !done:
				server.Forwarder = NewForwarder("")
				server.Forwarder.absent.keep(q, failure(q, mdns.RcodeNameError), time.Time{})
				server.Forwarder.absent.find(q, time.Time{})
				sent, id := renumbered(raw)
				sent[2] |= 0x80
				if q.end == len(raw) && !isAnswer(q, id, sent) {
					t.Fatal("the question itself, as an answer, is not taken for one")
				}
				continue
			case out == nil:
				continue
			case out[0] != raw[0] || out[1] != raw[1] || out[2]&0x80 == 0:
				t.Fatalf("%x is no answer to %x", out, raw)
			case !tcp && len(out) > maxUDP:
				t.Fatalf("%d bytes by UDP", len(out))
			}
			if err := new(mdns.Msg).Unpack(out); err != nil {
				t.Fatalf("answer %x: %v", out, err)
			}
		}
	})
}
