package http

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"golang.org/x/net/http2"
)

// mutations is how many of each kind are tried, always the same ones unless
// TACIT_LONG is set.
func mutations(t *testing.T, each func(t *testing.T, r *rand.Rand)) {
	n, seed := 1000, uint64(1)
	if os.Getenv("TACIT_LONG") != "" {
		n, seed = 100_000, rand.Uint64()
	}
	for i := range n {
		name := fmt.Sprint(seed, "-", i)
		if !t.Run(name, func(t *testing.T) { each(t, rand.New(rand.NewPCG(seed, uint64(i)))) }) {
			return
		}
	}
}

// Whatever comes of HTTP/1, net/http and nginx understand what was decided on,
// and no more.
func TestOriginsUnderstandWhatWasDecided(t *testing.T) {
	w := startWitness(t)
	byNginx := func(t *testing.T, input string, bodies bool) int {
		gate := send1(t, w.plain, input, bodies)
		w.quiet(t)
		return w.compare(t, gate)
	}
	for _, input := range hostile1 {
		for _, bodies := range []bool{false, true} {
			decidedByGo(t, input, bodies)
			byNginx(t, input, bodies)
		}
	}
	understood := map[string]int{}
	mutations(t, func(t *testing.T, r *rand.Rand) {
		input, bodies := mutate1(r, oneOf(r, hostile1)), r.IntN(2) == 0
		understood["net/http"] += decidedByGo(t, input, bodies)
		understood["nginx"] += byNginx(t, input, bodies)
		if t.Failed() {
			t.Logf("%q, bodies %v", input, bodies)
		}
	})
	for _, origin := range []string{"net/http", "nginx"} {
		t.Logf("%s understood %d requests", origin, understood[origin])
		if understood[origin] < 200 {
			t.Errorf("%s understood %d requests: these were no tests", origin, understood[origin])
		}
	}
}

// The same of HTTP/2; nginx makes HTTP/1 of it.
func TestOriginsUnderstandHTTP2(t *testing.T) {
	w := startWitness(t)
	base := []field2{{":method", "POST"}, {":scheme", "http"}, {":path", "/a?b=c"}, {":authority", "x"}, {"x-role", "a"}, {"content-type", "text/plain"}}
	understood := map[string]int{}
	mutations(t, func(t *testing.T, r *rand.Rand) {
		fields, body, bodies := mutate2(r, base), oneOf(r, []string{"", "abc", "GET /deny HTTP/1.1\r\nhost: x\r\n\r\n"}), r.IntN(2) == 0
		gate := send2(t, w.http2, fields, body, bodies)
		w.quiet(t)
		understood["nginx"] += w.compare(t, gate)

		o := &origin{} // of its own: a handler may outlive the connection
		s := httptest.NewUnstartedServer(o)
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		defer s.Close()
		gate = send2(t, s.Listener.Addr(), fields, body, bodies)
		s.Close()
		understood["net/http"] += o.compare(t, gate)
		if t.Failed() {
			t.Logf("%q, body %q, bodies %v", fields, body, bodies)
		}
	})
	for _, origin := range []string{"net/http", "nginx"} {
		t.Logf("%s understood %d requests", origin, understood[origin])
		if understood[origin] < 50 {
			t.Errorf("%s understood %d requests: these were no tests", origin, understood[origin])
		}
	}
}

// send2 makes one request and waits for its end.
func send2(t *testing.T, app net.Addr, fields []field2, body string, bodies bool) *testGate {
	gate := newGate(denyNormal)
	if bodies {
		gate.wants = 1 << 20
	}
	f := dialFrames(t, proxied(t, app, HTTP2, gate))
	var flat []string
	for _, field := range fields {
		flat = append(flat, field.name, field.value)
	}
	f.open(1, body == "", flat...)
	if body != "" {
		must(t, f.WriteData(1, true, []byte(body)))
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break
		}
		end := frame.Header().Type == http2.FrameGoAway || frame.Header().Type == http2.FrameRSTStream
		switch frame := frame.(type) {
		case *http2.DataFrame:
			end = frame.StreamEnded()
		case *http2.MetaHeadersFrame:
			end = frame.StreamEnded()
		}
		if end {
			break
		}
	}
	_ = f.Close()
	return gate
}
