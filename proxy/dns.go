package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/dns"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/xds/model"
)

// maxDNSConnections is how many connections a pod may ask by at a time. Most
// queries come without one.
const maxDNSConnections = 64

// answer serves a pod's DNS queries. It is called with mu held, and reserves
// what it starts, as Add does.
func (p *Proxy) answer(asking *pod) {
	listeners := asking.listeners.DNS
	if listeners == nil || p.DNS == nil {
		return
	}
	server := dns.NewServer(dns.Config{
		Zone: p.Zone, Forwarder: p.DNS,
		Mesh: func() (*model.Snapshot, dns.Client, bool) {
			s := p.State.Snapshot()
			if !placed(s, asking) || s.OnDemand() { // a name that is not there may exist
				return nil, dns.Client{}, false
			}
			return s, dns.Client{Namespace: asking.Namespace, Network: networkOf(s, asking)}, true
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return p.Sockets.Dial(ctx, asking.UID, netip.Addr{}, to)
		},
		Observe: func(e dns.Event) { p.Recorder.DNS(workloadOf(p.State.Snapshot(), asking), e) },
	})
	for _, packets := range listeners.UDP {
		done, ok := packets.Use()
		if !ok {
			continue
		}
		p.live.Add(1)
		asking.live.Add(1)
		go func() {
			defer p.live.Done()
			defer asking.live.Done()
			defer done()
			var forwards sync.WaitGroup
			defer forwards.Wait()
			p.awaitMesh(asking)
			p.answerPackets(asking, func() error { return server.ServeUDP(asking.ctx, packets.UDPConn, &forwards) })
		}()
	}
	slots := make(chan struct{}, maxDNSConnections)
	for _, l := range listeners.TCP {
		p.live.Add(1)
		asking.live.Add(1)
		go p.accept(asking, l, slots, func(_ *pod, conn *net.TCPConn) {
			defer p.carried(asking, slots)
			p.answerConnection(asking, server, conn)
		})
	}
}

// lastUnreadPause is the longest time after which a socket is read again.
const lastUnreadPause = time.Second

// answerPackets serves a socket until it is closed. Whatever else ends that, such
// as a lack of memory, is told, and it is served again: nobody else would. It is
// soon where the one before has been long ago.
func (p *Proxy) answerPackets(asking *pod, serve func() error) {
	var pause time.Duration
	for {
		began := time.Now()
		err := serve()
		if time.Since(began) > lastUnreadPause {
			pause = 0
		}
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || asking.ctx.Err() != nil {
			return
		}
		p.Recorder.DNSUnread(workloadOf(p.State.Snapshot(), asking), err)
		pause = min(max(2*pause, 5*time.Millisecond), lastUnreadPause)
		select {
		case <-time.After(pause):
		case <-asking.ctx.Done():
			return
		}
	}
}

// awaitMesh waits until names can be found, for as long as it makes sense: what
// comes meanwhile stays in the kernel, or is read by the proxy of before. After
// that everything is forwarded, which is more than no answer.
func (p *Proxy) awaitMesh(pod *pod) {
	ctx, cancel := context.WithTimeout(pod.ctx, decisionTimeout)
	defer cancel()
	_, _ = p.State.Wait(ctx, func(s *model.Snapshot) bool { return placed(s, pod) })
}

// answerConnection is a connection for DNS queries. Where it was going is where
// its further queries go.
func (p *Proxy) answerConnection(pod *pod, server *dns.Server, conn *net.TCPConn) {
	p.awaitMesh(pod)
	original, err := sockets.OriginalDst(conn)
	if err != nil || original == addrPort(conn.LocalAddr()) {
		original = netip.AddrPort{} // it was made to the proxy itself
	}
	server.ServeTCP(pod.ctx, conn, original)
}
