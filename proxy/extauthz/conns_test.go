package extauthz

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// However many questions a node has under way at a time, the next ones are asked
// over the same connections: one for each would leave a port behind that cannot
// be used for a minute.
func TestConnectionsAreUsedAgain(t *testing.T) {
	const atOnce = 300
	var connections atomic.Int32
	var together sync.WaitGroup
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		together.Done()
		together.Wait()
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
				if _, err := c.Ask(t.Context(), to, question("user")); err != nil {
					t.Error(err)
				}
			})
		}
		questions.Wait()
	}
	if n := connections.Load(); n > 3*atOnce/2 { // some, on a machine that is busy
		t.Errorf("%d connections for %d questions at a time", n, atOnce)
	}
}
