package demo

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/world"
)

// capture holds what passes a node's uplink from its start on. The kernel
// keeps the packets; nothing runs meanwhile.
type capture struct {
	socket int
	of     []netip.Addr
}

// startCapture listens on the uplink for packets between any of the addresses.
func startCapture(node *world.Node, of []netip.Addr) (*capture, error) {
	c := &capture{socket: -1, of: of}
	err := node.Do(func() (err error) {
		uplink, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
		if c.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(c.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		return unix.Bind(c.socket, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: uplink.Index})
	})
	if err != nil {
		c.close()
		return nil, fmt.Errorf("capture on node %s: %w", node.Name, err)
	}
	return c, nil
}

func (c *capture) close() {
	if c.socket >= 0 {
		_ = unix.Close(c.socket)
	}
}

// finish returns what has passed so far. Packets that are on the socket's
// queue by now are all that were sent before the call.
func (c *capture) finish() (*traffic, error) {
	seen := &traffic{flows: map[flow]*stream{}}
	for buf := make([]byte, 128<<10); ; {
		n, _, err := unix.Recvfrom(c.socket, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read captured packets: %w", err)
		}
		if err := seen.add(buf[:n], c.of); err != nil {
			return nil, err
		}
	}
	stats, err := unix.GetsockoptTpacketStats(c.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return nil, fmt.Errorf("capture statistics: %w", err)
	}
	if stats.Drops > 0 {
		return nil, fmt.Errorf("%d packets were too many to capture", stats.Drops)
	}
	return seen, nil
}

// flow is one direction of a TCP connection.
type flow struct{ from, to netip.AddrPort }

// stream is what one direction carried.
type stream struct {
	next uint32 // sequence number
	data []byte
}

// traffic is TCP between the addresses, put together again.
type traffic struct {
	packets int
	raw     []byte // all packets, whole
	flows   map[flow]*stream
}

// add takes one packet into account, if both its ends are among of.
func (t *traffic) add(frame []byte, of []netip.Addr) error {
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	network := packet.NetworkLayer()
	if network == nil {
		return nil // ARP and the like
	}
	from, _ := netip.AddrFromSlice(network.NetworkFlow().Src().Raw())
	to, _ := netip.AddrFromSlice(network.NetworkFlow().Dst().Raw())
	if !slices.Contains(of, from) || !slices.Contains(of, to) {
		return nil
	}
	t.packets++
	t.raw = append(t.raw, frame...)
	tcp, ok := packet.TransportLayer().(*layers.TCP)
	if !ok {
		return fmt.Errorf("a packet from %s to %s is not TCP", from, to)
	}
	key := flow{netip.AddrPortFrom(from, uint16(tcp.SrcPort)), netip.AddrPortFrom(to, uint16(tcp.DstPort))}
	return t.stream(key, tcp.SYN, tcp.Seq).add(key, tcp)
}

func (t *traffic) stream(key flow, syn bool, seq uint32) *stream {
	s := t.flows[key]
	if s == nil {
		s = &stream{next: seq}
		if syn {
			s.next++
		}
		t.flows[key] = s
	}
	return s
}

// add appends what is new. Veth links neither lose nor reorder packets, so
// whatever is left out is a retransmission.
func (s *stream) add(key flow, tcp *layers.TCP) error {
	if tcp.SYN || len(tcp.Payload) == 0 {
		return nil
	}
	offset := int32(s.next - tcp.Seq) // sequence numbers wrap around
	if offset < 0 {
		return fmt.Errorf("%d bytes from %s are missing in the capture", -offset, key.from)
	}
	if int(offset) < len(tcp.Payload) {
		s.data = append(s.data, tcp.Payload[offset:]...)
		s.next = tcp.Seq + uint32(len(tcp.Payload))
	}
	return nil
}

// without fails if the text is anywhere in the packets.
func (t *traffic) without(text string) error {
	if bytes.Contains(t.raw, []byte(text)) {
		return fmt.Errorf("the packets contain %q in clear", text)
	}
	return nil
}
