package dns

import (
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// nothing answers that there is no such name.
func nothing(t testing.TB, soa string) func(mdns.ResponseWriter, *mdns.Msg) {
	return func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetRcode(q, mdns.RcodeNameError)
		if soa != "" {
			m.Ns = []mdns.RR{mustRecord(t, soa)}
		}
		_ = w.WriteMsg(m)
	}
}

const zone5 = "example.org. 20 IN SOA ns.example.org. . 1 5 5 5 10"

// That there is nothing is asked once, for as long as its zone says.
func TestNegativeAnswers(t *testing.T) {
	edns := about("absent.example.org.", mdns.TypeA)
	edns.SetEdns0(1232, false)
	signed := about("absent.example.org.", mdns.TypeA)
	signed.SetEdns0(1232, true)
	cookie := about("absent.example.org.", mdns.TypeA)
	cookie.SetEdns0(1232, false)
	cookie.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	for name, tt := range map[string]struct {
		q      *mdns.Msg
		answer func(mdns.ResponseWriter, *mdns.Msg)
		asked  int
	}{
		"no name":            {about("absent.example.org.", mdns.TypeA), nothing(t, zone5), 1},
		"no name, with EDNS": {edns, nothing(t, zone5), 1},
		"no data": {about("absent.example.org.", mdns.TypeA), func(w mdns.ResponseWriter, q *mdns.Msg) {
			m := new(mdns.Msg).SetReply(q)
			m.Ns = []mdns.RR{mustRecord(t, zone5)}
			_ = w.WriteMsg(m)
		}, 1},
		"without its zone":    {about("absent.example.org.", mdns.TypeA), nothing(t, ""), 2},
		"a zone that says no": {about("absent.example.org.", mdns.TypeA), nothing(t, "example.org. 20 IN SOA ns.example.org. . 1 5 5 5 0"), 2},
		"signatures wanted":   {signed, nothing(t, zone5), 2},
		"options":             {cookie, nothing(t, zone5), 2},
		"something":           {about("absent.example.org.", mdns.TypeA), says(t, "absent.example.org. 5 IN A 192.0.2.1"), 2},
		"a server that failed": {about("absent.example.org.", mdns.TypeA), func(w mdns.ResponseWriter, q *mdns.Msg) {
			_ = w.WriteMsg(new(mdns.Msg).SetRcode(q, mdns.RcodeServerFailure))
		}, 2},
		"a type of nobody": {about("absent.example.org.", 65280), nothing(t, zone5), 1},
		"an answer cut in half": {about("absent.example.org.", mdns.TypeA), func(w mdns.ResponseWriter, q *mdns.Msg) {
			m := new(mdns.Msg).SetReply(q)
			m.Truncated = true
			m.Ns = []mdns.RR{mustRecord(t, zone5)}
			_ = w.WriteMsg(m)
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, tt.answer)
			p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
			first := p.ask("udp", tt.q)
			tt.q.Id++
			if second := p.ask("udp", tt.q); second.Rcode != first.Rcode || second.Id != tt.q.Id || len(second.Ns) != len(first.Ns) {
				t.Errorf("at first\n%v\nthen\n%v", first, second)
			}
			if n := len(up.questions()); n != tt.asked {
				t.Errorf("%d questions, want %d", n, tt.asked)
			}
		})
	}
}

func TestNegativeAnswersEnd(t *testing.T) {
	n, start := newNegatives(), time.Now()
	m := about("absent.example.org.", mdns.TypeA)
	q, err := parse(packed(t, m))
	if err != nil {
		t.Fatal(err)
	}
	told := new(mdns.Msg).SetRcode(m, mdns.RcodeNameError)
	told.Ns = []mdns.RR{mustRecord(t, zone5)}
	n.keep(q, packed(t, told), start)
	got := new(mdns.Msg)
	if err := got.Unpack(n.find(q, start.Add(9*time.Second))); err != nil || got.Ns[0].Header().Ttl != 11 {
		t.Errorf("after 9 of 10 s: %v, %v", got, err)
	}
	if got := n.find(q, start.Add(10*time.Second)); got != nil {
		t.Errorf("after 10 s: %x", got)
	}
	for i := range 3 * maxNegatives {
		m.SetQuestion(mdns.Fqdn(mdns.Name(string(rune('a'+i%26))).String()+time.Duration(i).String()+".example.org"), mdns.TypeA)
		q, err := parse(packed(t, m))
		if err != nil {
			t.Fatal(err)
		}
		n.keep(q, packed(t, told), start)
	}
	if len(n.answers) > maxNegatives {
		t.Errorf("%d are remembered", len(n.answers))
	}
}
