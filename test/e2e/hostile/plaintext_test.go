package hostile

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// The proxy's own ports lead nowhere, by whatever way they are reached, and
// never back to themselves.
func TestOwnPorts(t *testing.T) {
	m, _ := start(t)
	m.Serve("outside/target", ":8080", e2e.Echo)
	undisturbed := bystander(t, m)
	defer undisturbed()
	before := usageOf(t, m, "b")
	type way struct {
		from, address string
		marked        bool // past the pod's own capture
	}
	var ways []way
	for _, port := range []int{15001, 15006, 15008} {
		for _, address := range []string{victim, "fd00:7ac1:2::10"} {
			for _, from := range []string{"outside/plain", "outside/target", "mesh/client", "mesh/server2"} {
				ways = append(ways, way{from, address, false})
			}
			ways = append(ways, way{"mesh/client", address, true}, way{"mesh/server", address, false}, way{"mesh/server", address, true})
		}
		for _, address := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
			ways = append(ways, way{"mesh/server", address, false}, way{"mesh/server", address, true})
		}
		for _, w := range ways {
			address := net.JoinHostPort(w.address, fmt.Sprint(port))
			t.Run(fmt.Sprintf("%s from %s, marked %v", address, w.from, w.marked), func(t *testing.T) {
				connect := func() (*net.TCPConn, error) { return m.Dial(w.from, address) }
				if w.marked {
					connect = func() (*net.TCPConn, error) { return tryDial(m, w.from, address) }
				}
				if answer, err := shout(connect); answer != "" || isTimeout(err) {
					t.Errorf("it was answered with %.100q (%v)", answer, err)
				}
			})
		}
		ways = nil
	}
	m.Eventually("nothing is left of it", func() error {
		if now := usageOf(t, m, "b"); now.descriptors > before.descriptors+20 {
			return fmt.Errorf("%d descriptors before, %d after", before.descriptors, now.descriptors)
		}
		return nil
	})
}

// shout says something in clear on a new connection and reads whatever comes.
func shout(connect func() (*net.TCPConn, error)) (string, error) {
	c, err := connect()
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return "", err
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// Services whose endpoints are their own client, or a port of the proxy, end
// as ordinary connections do, or are refused.
func TestLoops(t *testing.T) {
	service := func(name string, address string, port int) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: mesh}
spec:
  clusterIPs: ["%s"]
  selector: {app: server}
  ports: [{port: 80, targetPort: %d}]
---`, name, address, port)
	}
	m, _ := start(t, service("itself", "198.18.100.50", 8080)+service("out", "198.18.100.51", 15001)+
		service("in", "198.18.100.52", 15006)+service("hbone", "198.18.100.53", 15008))
	undisturbed := bystander(t, m)
	defer undisturbed()
	before := usageOf(t, m, "b")
	if _, err := m.Call("mesh/server", "198.18.100.50:80"); err != nil {
		t.Errorf("a call to a service of its own: %v", err)
	}
	for _, vip := range []string{"198.18.100.51", "198.18.100.52", "198.18.100.53"} {
		for _, from := range []string{"mesh/server", "mesh/server2"} {
			if answer, err := shout(func() (*net.TCPConn, error) { return m.Dial(from, vip+":80") }); answer != "" || isTimeout(err) {
				t.Errorf("from %s to %s: answered with %.100q (%v)", from, vip, answer, err)
			}
		}
	}
	m.Eventually("nothing is left of it", func() error {
		if now := usageOf(t, m, "b"); now.descriptors > before.descriptors+20 {
			return fmt.Errorf("%d descriptors before, %d after", before.descriptors, now.descriptors)
		}
		return nil
	})
}

// A neighbor on the pod's link can send it packets for any address. What was
// not meant for the pod's own is not carried on, neither to other hosts nor to
// what listens on loopback only.
func TestForeignDestinations(t *testing.T) {
	m, _ := start(t)
	reached := make(chan string, 10)
	stray := func(c *net.TCPConn) { reached <- fmt.Sprintf("%v reached %v", c.RemoteAddr(), c.LocalAddr()) }
	m.Serve("mesh/server", "127.0.0.1:9000", stray)
	m.Serve("mesh/server2", ":9000", stray)
	m.Serve("outside/target", ":9000", stray)
	undisturbed := bystander(t, m)
	defer undisturbed()
	for _, address := range []string{"203.0.113.9", "127.0.0.1", "198.18.2.11", "198.18.2.30"} {
		t.Run(address, func(t *testing.T) {
			refused := logs(t, m, "b", `"connection failed"`, "connection to "+address+":9000, which is not the pod's")
			answer, err := shout(func() (c *net.TCPConn, err error) {
				err = m.Node("b").Do(func() error {
					c, err = dialThrough(netip.MustParseAddr(victim), netip.MustParseAddr(address))
					return err
				})
				return c, err
			})
			if answer != "" || isTimeout(err) {
				t.Errorf("the connection was not reset: %q, %v", answer, err)
			}
			refused()
		})
	}
	select {
	case where := <-reached:
		t.Error(where)
	default:
	}
}

// dialThrough connects to port 9000 of an address by sending all packets to
// the neighbor, whatever that has to do with the address.
func dialThrough(neighbor, address netip.Addr) (*net.TCPConn, error) {
	routes, err := netlink.RouteGet(neighbor.AsSlice())
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil, err
	}
	name := link.Attrs().Name
	for _, lenient := range []string{"route_localnet", "accept_local"} { // about what comes back
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/"+lenient, []byte("1"), 0o644); err != nil {
			return nil, err
		}
	}
	route := &netlink.Route{
		Dst: netlink.NewIPNet(address.AsSlice()), Gw: neighbor.AsSlice(), LinkIndex: link.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
	}
	if err := netlink.RouteReplace(route); err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: e2e.Patience, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), name) }); e != nil {
			return e
		}
		return err
	}}
	c, err := d.Dial("tcp", netip.AddrPortFrom(address, 9000).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// An address of the pod that nobody has told of must not be taken for a way
// out: the proxy would call itself without end.
func TestUnknownOwnAddress(t *testing.T) {
	m, _ := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	const unknown = "203.0.113.77"
	answer, err := shout(func() (c *net.TCPConn, err error) {
		err = m.Pod("mesh/server").Do(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(unknown + "/32")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, address); err != nil {
				return err
			}
			from := &net.TCPAddr{IP: net.ParseIP(victim)}
			c, err = net.DialTCP("tcp", from, &net.TCPAddr{IP: net.ParseIP(unknown), Port: 15001})
			return err
		})
		return c, err
	})
	if answer != "" || isTimeout(err) {
		t.Errorf("answered with %q, %v", answer, err)
	}
	if n := len(m.Connections("b", "ended", "", "")); n > 10 {
		t.Errorf("it has become %d connections", n)
	}
}
