package hostile

import (
	"fmt"
	"math"
	"testing"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/test/world"
)

// A peer that breaks HTTP/2 or floods is cut, with a reason, and costs the
// proxy no more than a bounded amount of memory.
func TestFloods(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	before := usageOf(t, m, "b")
	data := make([]byte, 16<<10)
	for _, c := range []struct {
		name, cause string
		code        http2.ErrCode
		send        func(a *attacker) error // repeated until it fails
	}{
		{"oversized frame", "frame_size", http2.ErrCodeFrameSize, func(a *attacker) error {
			return a.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, make([]byte, 1<<20))
		}},
		{"a frame of 16 MB", "frame_size", http2.ErrCodeFrameSize, func(a *attacker) error {
			_, err := a.Conn.Write([]byte{0xff, 0xff, 0xff, byte(http2.FrameData), 0, 0, 0, 0, 1})
			return err
		}},
		{"malformed frame", "protocol_error", http2.ErrCodeProtocol, func(a *attacker) error {
			return a.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4))
		}},
		{"garbage", "", 0, func(a *attacker) error {
			_, err := a.Conn.Write(data)
			return err
		}},
		{"header flood", "header_flood", http2.ErrCodeEnhanceYourCalm, func(a *attacker) error {
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: data}); err != nil {
				return err
			}
			for range 1000 {
				if err := a.WriteContinuation(1, false, data); err != nil {
					return err
				}
			}
			return nil
		}},
		{"CONTINUATION flood", "header_flood", http2.ErrCodeEnhanceYourCalm, func(a *attacker) error {
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}); err != nil {
				return err
			}
			for range 100_000 {
				if err := a.WriteContinuation(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		}},
		{"rapid reset", "rapid_reset", http2.ErrCodeEnhanceYourCalm, func() func(a *attacker) error {
			id := uint32(1)
			return func(a *attacker) error {
				if err := a.connect(id, victim+":8080"); err != nil {
					return err
				}
				id += 2
				return a.WriteRSTStream(id-2, http2.ErrCodeCancel)
			}
		}()},
		{"requests beyond the limit", "rapid_reset", http2.ErrCodeEnhanceYourCalm, func() func(a *attacker) error {
			id := uint32(1)
			return func(a *attacker) error {
				id += 2
				return a.connect(id-2, victim+":8080")
			}
		}()},
		{"PING flood", "control_flood", http2.ErrCodeEnhanceYourCalm, func(a *attacker) error {
			return a.WritePing(false, [8]byte{})
		}},
		{"SETTINGS flood", "control_flood", http2.ErrCodeEnhanceYourCalm, func(a *attacker) error {
			return a.WriteSettings()
		}},
		{"window overflow", "flow_control", http2.ErrCodeFlowControl, func(a *attacker) error {
			return a.WriteWindowUpdate(0, math.MaxInt32)
		}},
		{"GOAWAY flood", "control_flood", http2.ErrCodeEnhanceYourCalm, func(a *attacker) error {
			return a.WriteGoAway(0, http2.ErrCodeNo, nil)
		}},
		{"RST_STREAM flood", "rapid_reset", http2.ErrCodeEnhanceYourCalm, func() func(a *attacker) error {
			opened := false
			return func(a *attacker) error {
				if !opened {
					opened = true
					if err := a.connect(1, victim+":8080"); err != nil {
						return err
					}
				}
				return a.WriteRSTStream(1, http2.ErrCodeCancel)
			}
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			counted := func() {}
			if c.cause != "" {
				counted = rises(t, m, "b", "tacit_peer_cuts_total", "cause="+c.cause)
			}
			logged := logs(t, m, "b", `"peer cut off"`, `"reason":"`+c.cause)
			a := attack(t, m, ca, "mesh/client", victimHBONE)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range 200_000 {
					if c.send(a) != nil {
						return
					}
				}
			}()
			code, err := a.end()
			if err != nil {
				t.Error(err)
			}
			if c.cause != "" && code != c.code {
				t.Errorf("GOAWAY says %v, want %v", code, c.code)
			}
			_ = a.Close()
			<-sent
			counted()
			logged()
		})
	}
	if now := usageOf(t, m, "b"); now.memory > before.memory+memory {
		t.Errorf("the proxy had %d MB before the floods, %d MB after", before.memory>>20, now.memory>>20)
	}
}

// More streams than were agreed are refused one by one, and those that there
// are go on.
func TestStreamsBeyondTheLimit(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	a := attack(t, m, ca, "mesh/client", victimHBONE)
	const streams = 201
	answers := map[uint32]string{}
	opened := make(chan error, 1)
	go func() {
		for i := range uint32(streams) {
			if err := a.connect(2*i+1, victim+":8080"); err != nil {
				opened <- err
				return
			}
		}
		opened <- nil
	}()
	for len(answers) < streams {
		f, err := a.ReadFrame()
		if err != nil {
			t.Fatalf("after %d answers: %v", len(answers), err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			answers[f.StreamID] = f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			answers[f.StreamID] = f.ErrCode.String()
		}
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	for i := range uint32(streams) {
		want := "200"
		if i == streams-1 {
			want = http2.ErrCodeRefusedStream.String()
		}
		if got := answers[2*i+1]; got != want {
			t.Errorf("stream %d was answered with %s, want %s", i+1, got, want)
		}
	}
	// One ends, and there is room again.
	if err := a.WriteData(1, true, nil); err != nil {
		t.Fatal(err)
	}
	a.readAll(1)
	m.Eventually("another stream is accepted", func() error {
		id := uint32(2*len(answers) + 1)
		if err := a.connect(id, victim+":8080"); err != nil {
			return err
		}
		answers[id] = a.answer(id)
		if answers[id] != "200" {
			return fmt.Errorf("it is answered with %s", answers[id])
		}
		return nil
	})
}

// A pod's share of connections is used up by its callers: they wait or are
// told so, while the pod itself still calls others, and other pods notice
// nothing.
func TestCallersUseUpAShare(t *testing.T) {
	const share = 16
	m, ca := startWith(t, world.Config{ProxyArgs: []string{"--connections-per-pod", fmt.Sprint(share)}})
	undisturbed := bystander(t, m) // takes two of them: its stream and the mTLS connection
	defer undisturbed()
	a := attack(t, m, ca, "mesh/client", victimHBONE)
	unavailable := ""
	for id := uint32(1); id < 2*share+10 && unavailable == ""; id += 2 {
		if err := a.connect(id, victim+":8080"); err != nil {
			t.Fatal(err)
		}
		if got := a.answer(id); got != "200" {
			unavailable = got
		}
	}
	if unavailable != "503" {
		t.Errorf("beyond the share a request is answered with %q, want 503", unavailable)
	}
	if _, err := m.Call("mesh/server", "198.18.1.20:8080"); err != nil {
		t.Errorf("the pod's own call: %v", err)
	}
	if _, err := m.Call("mesh/near", "198.18.2.11:8080"); err != nil {
		t.Errorf("a call to another pod of the node: %v", err)
	}
	_ = a.Close() // before the bystander's new connection
	m.Eventually("the share is given back", func() error {
		_, err := m.Call("mesh/near", victim+":8080")
		return err
	})
}
