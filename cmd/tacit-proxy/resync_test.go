package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/internal/processors"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/model/modeltest"
	"github.com/tacit-mesh/tacit/xds/wire"
)

const (
	resyncWorkloads = 70_000
	resyncName      = "control.test"
	quietRounds     = 5
	quietRound      = 3 * time.Second
	settling        = 2 * time.Second
)

// BenchmarkResync says how late a connection's bytes get, that come by way of
// this process, while a mesh of 70,000 workloads comes anew, is applied and is
// handed over for the next process. Beside them go others, by way of a process
// that does nothing else: what these take longer is the machine's. Figures are
// medians of rounds, a round's p100 being its longest round trip; "added" is how
// much longer that was by way of this process. The control plane, which has
// encoded its answers before, and who waits for the bytes are processes of their
// own, on the same CPUs.
//
//	go test -run '^$' -bench Resync -benchtime 8x ./cmd/tacit-proxy
func BenchmarkResync(b *testing.B) {
	control, server := startRole(b, "control"), startRole(b, "echo")
	probe := startRole(b, "probe", serveEcho(b), server.say(""))
	address, roots := control.say(""), filepath.Join(b.TempDir(), "roots")
	text := ""
	for line := control.say(""); line != ""; line = control.say("") {
		text += line + "\n"
	}
	if err := os.WriteFile(roots, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	known := state.New()
	p := &process{
		log: zap.NewNop(), state: known, exports: make(chan []byte, 1), handedOver: make(chan struct{}),
		store: identity.NewStore(nil), agent: sockets.NewAgent(sockets.AgentConfig{}),
	}
	var handed sync.WaitGroup
	p.xds = client.New(client.Config{
		Server: address, ServerName: resyncName, RootsFile: roots, Sink: known, Known: known.Snapshot, Node: client.Node{Name: "node-7"},
		Saved: p.keepExport, Burst: processors.Update,
	})
	ctx, cancel := context.WithCancel(b.Context())
	handed.Go(func() { p.save(ctx, ctx) })
	handed.Go(func() { _ = processors.Follow(ctx) })
	handed.Go(func() { _ = p.xds.Run(ctx) })
	defer handed.Wait()
	defer cancel()
	settled := func(round int) {
		want := fmt.Sprint("node-", round%2)
		if _, err := known.Wait(ctx, func(s *model.Snapshot) bool {
			w := s.Workload(modeltest.Workload(0).UID)
			return w != nil && w.Node == want
		}); err != nil {
			b.Fatal(err)
		}
		<-time.After(settling) // exports and collections end
	}
	settled(0)
	figures := map[string][]float64{}
	for range quietRounds {
		probe.say("begin")
		<-time.After(quietRound)
		note(b, figures, "quiet-", probe.say("end"))
	}
	before, round := pauses(), 0
	for b.Loop() {
		round++
		probe.say("begin")
		control.say("anew")
		began := time.Now()
		settled(round)
		figures["applied"] = append(figures["applied"], float64((time.Since(began) - settling).Milliseconds()))
		note(b, figures, "resync-", probe.say("end"))
	}
	for name, all := range figures {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name+"-ms")
		if strings.HasSuffix(name, "added") || name == "resync-relayed-p100" {
			b.ReportMetric(all[len(all)-1], name+"-worst-ms")
		}
	}
	b.ReportMetric(longestPauseSince(before), "stopped-ms")
}

// note adds what the probe has said of one round.
func note(b *testing.B, figures map[string][]float64, what, said string) {
	b.Helper()
	round := map[string]float64{}
	for _, figure := range strings.Fields(said) {
		name, text, _ := strings.Cut(figure, "=")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.Fatal(err)
		}
		round[name] = value
	}
	round["added"] = round["relayed-p100"] - round["direct-p100"]
	for name, value := range round {
		figures[what+name] = append(figures[what+name], value)
	}
}

// pauses are those for which the runtime has stopped everything.
func pauses() []metrics.Sample {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}, {Name: "/sched/pauses/total/other:seconds"}}
	metrics.Read(s)
	return s
}

func longestPauseSince(before []metrics.Sample) (ms float64) {
	for i, now := range pauses() {
		h, old := now.Value.Float64Histogram(), before[i].Value.Float64Histogram()
		for j, n := range h.Counts {
			if n > old.Counts[j] {
				ms = max(ms, 1000*h.Buckets[j])
			}
		}
	}
	return ms
}

// serveEcho relays as the proxy does: a goroutine waits for each side.
func serveEcho(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 1<<10)) }()
		}
	}()
	return l.Addr().String()
}

// role is this program once more, as something else.
type role struct {
	b   *testing.B
	in  io.Writer
	out *bufio.Reader
}

func startRole(b *testing.B, name string, args ...string) *role {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestResyncRole$")
	cmd.Env = append(os.Environ(), "TACIT_RESYNC="+strings.Join(append([]string{name}, args...), " "))
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return &role{b, in, bufio.NewReader(out)}
}

// say sends a line, unless it is empty, and returns the next one from there.
func (r *role) say(line string) string {
	r.b.Helper()
	if line != "" {
		if _, err := fmt.Fprintln(r.in, line); err != nil {
			r.b.Fatal(err)
		}
	}
	said, err := r.out.ReadString('\n')
	if err != nil {
		r.b.Fatal(err)
	}
	return strings.TrimSuffix(said, "\n")
}

func TestResyncRole(t *testing.T) {
	name, arguments, _ := strings.Cut(os.Getenv("TACIT_RESYNC"), " ")
	lines := bufio.NewScanner(os.Stdin)
	switch name {
	case "control":
		playControl(t, lines)
	case "echo":
		fmt.Println(serveEcho(t))
		lines.Scan()
	case "probe":
		playProbe(t, lines, strings.Fields(arguments))
	default:
		t.Skip("for BenchmarkResync")
	}
}

// rounds is a control plane that has the whole mesh come anew when it is told to.
type rounds struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	next chan int
}

func playControl(t *testing.T, lines *bufio.Scanner) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{resyncName}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rounds{next: make(chan int)}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, r)
	go func() { _ = server.Serve(l) }()
	fmt.Println(l.Addr())
	fmt.Println(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))) // and an empty line
	for n := 1; lines.Scan(); n++ {
		r.next <- n
		fmt.Println("sent")
	}
	server.Stop()
}

// DeltaAggregatedResources has two responses ready before the first round, which
// it sends in turn: while the other side applies one, it does nothing.
func (r *rounds) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	go func() {
		for { // answers
			if _, err := s.Recv(); err != nil {
				return
			}
		}
	}()
	if err := s.Send(&discovery.DeltaDiscoveryResponse{Nonce: "p", TypeUrl: wire.AuthorizationType}); err != nil {
		return err
	}
	var messages [2]grpc.PreparedMsg
	for i := range messages {
		if err := messages[i].Encode(s, wholeMesh(i)); err != nil {
			return err
		}
	}
	for round := 0; ; {
		if err := s.SendMsg(&messages[round%2]); err != nil {
			return err
		}
		select {
		case round = <-r.next:
		case <-s.Context().Done():
			return nil
		}
	}
}

func wholeMesh(round int) *discovery.DeltaDiscoveryResponse {
	version := fmt.Sprint(round)
	response := &discovery.DeltaDiscoveryResponse{Nonce: version, TypeUrl: wire.AddressType}
	mesh := modeltest.Mesh(resyncWorkloads)
	for _, w := range mesh.Workloads {
		w.Node = "node-" + version
		body, err := wire.EncodeWorkload(w)
		if err != nil {
			panic(err)
		}
		response.Resources = append(response.Resources, &discovery.Resource{Name: w.UID, Version: version, Resource: body})
	}
	for _, v := range mesh.Services {
		body, err := wire.EncodeService(v)
		if err != nil {
			panic(err)
		}
		response.Resources = append(response.Resources, &discovery.Resource{Name: v.Key(), Version: version, Resource: body})
	}
	return response
}

// playProbe makes round trips, one after the other, to the process under test and
// to another one that does nothing else.
func playProbe(t *testing.T, lines *bufio.Scanner, servers []string) {
	var mu sync.Mutex
	took := map[string][]time.Duration{}
	for i, name := range []string{"relayed", "direct"} {
		c, err := net.Dial("tcp", servers[i])
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			text := make([]byte, 64)
			for {
				began := time.Now()
				if _, err := c.Write(text); err != nil {
					return
				}
				if _, err := io.ReadFull(c, text); err != nil {
					return
				}
				mu.Lock()
				took[name] = append(took[name], time.Since(began))
				mu.Unlock()
				<-time.After(200 * time.Microsecond)
			}
		}()
	}
	for lines.Scan() {
		mu.Lock()
		said := "begun"
		if lines.Text() == "end" {
			said = ""
			for _, name := range []string{"direct", "relayed"} {
				all := took[name]
				slices.Sort(all)
				ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
				said += fmt.Sprintf("%s-p50=%v %s-p99.9=%v %s-p100=%v ", name, ms(all[len(all)/2]), name, ms(all[len(all)*999/1000]), name, ms(all[len(all)-1]))
			}
		}
		clear(took)
		mu.Unlock()
		fmt.Println(said)
	}
}
