package protocol

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func pair(t *testing.T) (a, b *Conn, raw int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns []*Conn
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close(); c.Close() })
		conns = append(conns, NewConn(c.(*net.UnixConn)))
		conns[len(conns)-1].SetReadDeadline(time.Now().Add(5 * time.Second))
	}
	return conns[0], conns[1], fds[0]
}

func pipes(t *testing.T, n int) []int {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseAll(p[:]) })
	fds := make([]int, n)
	for i := range fds {
		fds[i] = p[0]
	}
	return fds
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func sockets(count int) *FromAgent {
	return &FromAgent{Message: &FromAgent_Sockets{Sockets: &Sockets{Uid: "u", Family: Family_FAMILY_IPV4, Count: uint32(count)}}}
}

func TestMessagesCarryDescriptors(t *testing.T) {
	a, b, _ := pair(t)
	if err := a.Send(sockets(MaxWant), pipes(t, MaxWant)...); err != nil {
		t.Fatal(err)
	}
	m, fds, err := b.ReceiveFromAgent()
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(fds)
	if m.GetSockets().GetCount() != MaxWant || len(fds) != MaxWant {
		t.Fatalf("%v with %d descriptors", m, len(fds))
	}
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("descriptor %d would be inherited by programs: %d, %v", fd, flags, err)
		}
	}
}

// Each of these ends the connection, and no descriptor stays open.
func TestBadMessages(t *testing.T) {
	marshal := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		payload []byte
		fds     int
		want    string
	}{
		"more descriptors than said":       {marshal(sockets(1)), 2, "2 descriptors, want 0 to 1"},
		"descriptors on a message without": {marshal(&FromAgent{Message: &FromAgent_Synced{Synced: &Synced{}}}), 1, "1 descriptors"},
		"too few listeners": {marshal(&FromAgent{Message: &FromAgent_Add{Add: &AddPod{
			Uid: "u", Name: "n", Namespace: "s", ServiceAccount: "a", TrustDomain: "t"}}}), 2, "want 3"},
		"half of a family's listeners for DNS": {marshal(&FromAgent{Message: &FromAgent_Add{Add: &AddPod{
			Uid: "u", Name: "n", Namespace: "s", ServiceAccount: "a", TrustDomain: "t"}}}), 4, "want 3"},
		"more listeners than there are": {marshal(&FromAgent{Message: &FromAgent_Add{Add: &AddPod{
			Uid: "u", Name: "n", Namespace: "s", ServiceAccount: "a", TrustDomain: "t"}}}), 9, "want 3"},
		"a kind unknown to us, with a descriptor": {[]byte{0xa2, 0x06, 0}, 1, "1 descriptors"},
		"not protobuf": {[]byte{0xff, 0xff}, 1, "message from the agent"},
		"too long":     {make([]byte, maxMessage+100), 1, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, b, raw := pair(t)
			before := openDescriptors(t)
			if err := unix.Sendmsg(raw, tt.payload, unix.UnixRights(pipes(t, tt.fds)...), nil, 0); err != nil {
				t.Fatal(err)
			}
			m, _, err := b.ReceiveFromAgent()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v; want an error with %q", m, err, tt.want)
			}
			if after := openDescriptors(t); after != before+2 { // the pipe's own
				t.Errorf("%d descriptors are open, before it were %d", after, before)
			}
		})
	}
}

// The kernel drops descriptors that find no room and says so.
func TestLostDescriptorsAreFatal(t *testing.T) {
	a, b, _ := pair(t)
	b.control = make([]byte, unix.CmsgSpace(4))
	before := openDescriptors(t)
	if err := a.Send(sockets(8), pipes(t, 8)...); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.ReceiveFromAgent(); err == nil || !strings.Contains(err.Error(), "descriptors were lost") {
		t.Errorf("got %v", err)
	}
	if after := openDescriptors(t); after != before+2 {
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}

// A packet without content ends the connection like any other that is wrong.
func TestEmptyPacketLeavesNoDescriptors(t *testing.T) {
	_, b, raw := pair(t)
	before := openDescriptors(t)
	control := unix.UnixRights(pipes(t, 8)...)
	header := unix.Msghdr{Control: &control[0]}
	header.SetControllen(len(control))
	// Sendmsg of x/sys would add a byte of content.
	if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(raw), uintptr(unsafe.Pointer(&header)), 0); errno != 0 {
		t.Fatal(errno)
	}
	if m, _, err := b.ReceiveFromProxy(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, %v", m, err)
	}
	if after := openDescriptors(t); after != before+2 { // the pipe's own
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}

func TestAgree(t *testing.T) {
	for _, tt := range []struct{ own, peer, want uint32 }{{1, 1, 1}, {1, 2, 1}, {2, 1, 1}, {1, 3, 0}, {3, 1, 0}, {1, 0, 0}} {
		got, err := Agree(tt.own, tt.peer)
		if got != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("Agree(%d, %d) = %d, %v; want %d", tt.own, tt.peer, got, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range []proto.Message{
		sockets(3),
		&FromAgent{Message: &FromAgent_Add{Add: &AddPod{Uid: "u", Name: "n", Namespace: "s", ServiceAccount: "a", TrustDomain: "t", Addresses: [][]byte{{1, 2, 3, 4}}}}},
		&FromProxy{Message: &FromProxy_Want{Want: &Want{Uid: "u", Family: Family_FAMILY_IPV6, Count: 9}}},
		&FromProxy{Message: &FromProxy_Offer{Offer: &Offer{Uid: "u"}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 3)
	}
	f.Fuzz(func(t *testing.T, payload []byte, descriptors int) {
		if m, err := ParseFromProxy(payload, descriptors); err == nil {
			if w := m.GetWant(); w != nil && (w.GetCount() == 0 || w.GetCount() > MaxWant || w.GetUid() == "" || descriptors != 0) {
				t.Errorf("accepted %v with %d descriptors", m, descriptors)
			}
			if m.GetOffer() != nil && checkListenerCount(descriptors) != nil || m.GetSave() != nil && descriptors != 1 {
				t.Errorf("accepted %v with %d descriptors", m, descriptors)
			}
		}
		if m, err := ParseFromAgent(payload, descriptors); err == nil {
			if s := m.GetSockets(); s != nil && descriptors > int(s.GetCount()) || m.GetAdd() != nil && checkListenerCount(descriptors) != nil {
				t.Errorf("accepted %v with %d descriptors", m, descriptors)
			}
		}
	})
}
