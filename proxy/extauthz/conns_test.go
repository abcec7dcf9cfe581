package extauthz

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// However many questions a node has under way at a time, the next ones are asked
// over the same connections, whatever the answers were: one for each would leave
// a port behind that cannot be used for a minute.
func TestConnectionsAreUsedAgain(t *testing.T) {
	const atOnce = 300
	text := strings.Repeat("x", 1000)
	for _, answer := range []struct {
		status int
		body   string
	}{{200, ""}, {200, text}, {403, text}, {503, text}} {
		t.Run(fmt.Sprint(answer.status, " with ", len(answer.body)), func(t *testing.T) {
			var connections atomic.Int32
			var together sync.WaitGroup
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				together.Done()
				together.Wait()
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			}))
			s.Config.ConnState = func(_ net.Conn, is http.ConnState) {
				if is == http.StateNew {
					connections.Add(1)
				}
			}
			s.Start()
			defer s.Close()
			c := New(dial)
			defer c.Close()
			to := declared(t, model.ProviderHTTP, s.Listener.Addr())
			to.Timeout = time.Minute
			for range 3 {
				together.Add(atOnce)
				var questions sync.WaitGroup
				for range atOnce {
					questions.Go(func() {
						if _, err := c.Ask(t.Context(), to, question("user")); (err != nil) != (answer.status >= 500) {
							t.Error(err)
						}
					})
				}
				questions.Wait()
			}
			if n := connections.Load(); n > 3*atOnce/2 { // some, on a machine that is busy
				t.Errorf("%d connections for %d questions at a time", n, atOnce)
			}
		})
	}
}

// An answer's body that does not end holds no decision up.
func TestAnswerWithoutEnd(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "and")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	c := New(dial)
	defer c.Close()
	to := declared(t, model.ProviderHTTP, s.Listener.Addr())
	to.Timeout = time.Hour
	if answer, err := c.Ask(t.Context(), to, question("user")); err != nil || !answer.Allowed {
		t.Errorf("%+v, %v", answer, err)
	}
}
