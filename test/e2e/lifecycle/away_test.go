package lifecycle

import (
	"bufio"
	"fmt"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// An agent whose image is on its way to the node takes longer than proxies wait
// for somebody who answers, on either side. What is opened meanwhile waits for
// the sockets that only an agent can make, and none of it is refused or cut.
func TestAgentAway(t *testing.T) {
	const longerThanADial = 12 * time.Second
	m := e2e.Start(t)
	serveEverywhere(m)
	if err := m.Node("a").Agent().Stop(m.Context()); err != nil {
		t.Fatal(err)
	}
	later := time.After(longerThanADial)
	served := make(chan error)
	waiting := 0
	for _, p := range touching("a") {
		for range 20 { // more than an idle pod's proxy has sockets left
			c, err := m.Dial(p.from, p.to)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(longerThanADial + 2*e2e.Patience)); err != nil {
				t.Fatal(err)
			}
			waiting++
			go func() {
				_, err := bufio.NewReader(c).ReadString('\n') // what the server says first
				if err != nil {
					err = fmt.Errorf("from %s to %s: %w", p.from, p.to, err)
				}
				served <- err
			}()
		}
	}
	for back := false; waiting > 0; {
		select {
		case err := <-served:
			waiting--
			if err != nil {
				t.Error(err)
			}
		case <-later:
			back = true
			t.Logf("%d connections have waited", waiting)
			startAgent(t, m, "a")
		}
		if waiting == 0 && !back {
			t.Error("no connection had to wait for the agent")
		}
	}
}
