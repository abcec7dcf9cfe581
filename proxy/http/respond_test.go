package http

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
)

// What only a decision may say does not come in trailers either, in whatever
// spelling, whether the decision has seen the body or not.
func TestOwnFieldsInTrailers(t *testing.T) {
	for _, wants := range []int{0, 100} {
		for _, test := range []struct {
			trailer string
			ok      bool
		}{{"X-Other", true}, {"X-User", false}, {"x_user", false}} {
			t.Run(fmt.Sprint(test.trailer, " ", wants), func(t *testing.T) {
				gate := newGate(func(*Request) Decision { return Decision{Own: []string{"x-user"}} })
				gate.wants = wants
				to := proxied(t, server(t, sum), Undeclared, gate)
				c, b := dial(t, to)
				say(t, c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"+test.trailer+": admin\r\n\r\n")
				r, err := http.ReadResponse(b, nil)
				must(t, err)
				must(t, r.Body.Close())
				if test.ok != (r.StatusCode == 200) || !test.ok && r.StatusCode != 400 {
					t.Errorf("HTTP/1: %s", r.Status)
				}
				freed(t, gate)

				f := dialFrames(t, to)
				f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x")
				must(t, f.WriteData(1, false, []byte("hello")))
				f.open(1, true, lower(test.trailer), "admin")
				switch frame := f.next().(type) {
				case *http2.MetaHeadersFrame:
					if !test.ok || frame.PseudoValue("status") != "200" {
						t.Errorf("HTTP/2: %v", frame)
					}
				case *http2.RSTStreamFrame:
					if test.ok || frame.ErrCode != http2.ErrCodeProtocol {
						t.Errorf("HTTP/2: %v", frame)
					}
				}
				_ = f.Close()
				freed(t, gate)
			})
		}
	}
}

func lower(name string) string { return string(bytes.ToLower([]byte(name))) }

// A decision changes the head of the response alone, and of the final one.
func TestResponseEdits(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	app := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Early", "1")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header()["X-A"] = []string{"app", "app too"}
		w.Header().Set("X-B", "app")
		_, _ = w.Write(body)
	})
	gate := newGate(func(*Request) Decision {
		return Decision{Response: ResponseEdits{Set: []Field{{Name: "x-a", Value: "ours"}}, Add: []Field{{Name: "x-b", Value: "ours"}}}}
	})
	to := proxied(t, app, Undeclared, gate)
	client1 := &http.Client{Timeout: 3 * patience}
	defer client1.CloseIdleConnections()
	for version, client := range map[int]*http.Client{1: client1, 2: client2(t)} {
		for range 2 {
			r, err := client.Get(fmt.Sprintf("http://%v/", to))
			must(t, err)
			got, err := io.ReadAll(r.Body)
			must(t, err)
			must(t, r.Body.Close())
			a, b := r.Header.Values("X-A"), r.Header.Values("X-B")
			if fmt.Sprint(a, b) != "[ours] [app ours]" || !bytes.Equal(got, body) {
				t.Errorf("HTTP/%d: %v %v, %d bytes", version, a, b, len(got))
			}
		}
	}
}

// What others have a response get cannot end its head.
func TestResponseEditsAreChecked(t *testing.T) {
	gate := newGate(func(*Request) Decision {
		return Decision{Response: ResponseEdits{Add: []Field{{Name: "x-b", Value: "a\r\nx-c: d"}}}}
	})
	to := proxied(t, server(t, sum), Undeclared, gate)
	c, b := dial(t, to)
	say(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	r, err := http.ReadResponse(b, nil)
	must(t, err)
	must(t, r.Body.Close())
	if r.StatusCode != 500 || r.Header.Get("x-c") != "" {
		t.Errorf("%s %v", r.Status, r.Header)
	}
}
