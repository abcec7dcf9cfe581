package caclient_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/caclient"
	api "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

// many is a node with many identities, under load: connections between any two
// of them, all the time.
type many struct {
	t        *testing.T
	store    *identity.Store
	subjects []identity.Subject
	failures chan error
	updates  atomic.Int64 // certificates that came
}

// counted counts what comes of a source.
type counted struct {
	identity.Source
	updates *atomic.Int64
}

func (c counted) Subscribe(ctx context.Context, s identity.Subject, update func(*identity.Material), failed func(error)) error {
	return c.Source.Subscribe(ctx, s, func(m *identity.Material) {
		c.updates.Add(1)
		update(m)
	}, failed)
}

// authorityEnv names the directory of TestAuthorityProcess.
const authorityEnv = "TACIT_TEST_AUTHORITY"

// TestAuthorityProcess is no test: it is the control plane's own authority, in
// a process of its own for the sake of what the node's process uses, until it
// is killed or its standard input ends. It prints its address.
func TestAuthorityProcess(t *testing.T) {
	dir := os.Getenv(authorityEnv)
	if dir == "" {
		t.Skip("runs for TestManyIdentities")
	}
	signer, err := ca.Open(dir, "td.test")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := signer.ServerCertificate(serverName)
	if err != nil {
		t.Fatal(err)
	}
	service := &ca.Service{
		Authority: signer, TrustDomain: "td.test", Log: zap.NewNop(),
		Node: func(context.Context) string { return "node-a" }, Authorize: func(context.Context, string, model.Identity) error { return nil },
	}
	fmt.Println(listen(t, grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificate})),
		func(s *grpc.Server) { api.RegisterIstioCertificateServiceServer(s, service) }))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startAuthority runs TestAuthorityProcess, and returns how it is asked.
func startAuthority(t *testing.T) caclient.Config {
	t.Helper()
	dir := t.TempDir()
	process := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAuthorityProcess$")
	process.Env, process.Stderr = append(os.Environ(), authorityEnv+"="+dir), os.Stderr
	_, stdinErr := process.StdinPipe() // ends with this process, if that is killed
	stdout, stdoutErr := process.StdoutPipe()
	if err := errors.Join(stdinErr, stdoutErr, process.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Wait() }) // t.Context has ended, and killed it
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the authority has not told its address: %v", err)
	}
	config := caclient.Config{
		Address: strings.TrimSpace(address), ServerName: serverName, ClusterID: "Kubernetes",
		RootsFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token"),
	}
	writeFile(t, config.TokenFile, "secret")
	return config
}

// startMany runs the node against the control plane's own authority.
func startMany(t *testing.T, n int, life time.Duration) *many {
	t.Helper()
	config := startAuthority(t)
	config.Lifetime = life
	client, err := caclient.New(config)
	if err != nil {
		t.Fatal(err)
	}
	m := &many{t: t, failures: make(chan error, 1000)}
	m.store = identity.NewStore(counted{client, &m.updates}, identity.WithFailures(func(s identity.Status) { m.fail(s.Err) }))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = m.store.Run(ctx) })
	running.Go(func() { m.save(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = client.Close()
	})
	for i := range n {
		subject := identity.Subject{Identity: model.Identity{TrustDomain: "td.test", Namespace: "shop", ServiceAccount: fmt.Sprintf("web-%d", i)}}
		m.store.Acquire(subject)
		m.subjects = append(m.subjects, subject)
	}
	for _, subject := range m.subjects {
		if _, err := m.store.Get(t.Context(), subject); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *many) fail(err error) {
	select {
	case m.failures <- err:
	default:
	}
}

// save exports all there is once a second, as a proxy of so many does for its
// successor.
func (m *many) save(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := m.store.Export(); err != nil {
				m.fail(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// connect is one connection between any two of the identities.
func (m *many) connect() error {
	from, to := m.subjects[rand.IntN(len(m.subjects))], m.subjects[rand.IntN(len(m.subjects))]
	own, err := m.store.Get(m.t.Context(), from)
	if err != nil {
		return err
	}
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	served := make(chan error, 1)
	go func() {
		config := identity.ServerConfig(func() (*identity.Material, error) { return m.store.Get(m.t.Context(), to) })
		conn := tls.Server(b, config)
		err := conn.HandshakeContext(m.t.Context())
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- err
	}()
	conn := tls.Client(a, identity.ClientConfig(own, []string{to.Identity.String()}))
	if err = conn.HandshakeContext(m.t.Context()); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	_ = a.Close()
	return errors.Join(err, <-served)
}

// second is what the process did in one.
type second struct {
	share    float64 // of a core, that it used
	renewals int64
}

// load connects until done says so, and returns what was done in each second.
func (m *many) load(perSecond int, done func() bool) (seconds []second) {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	began, used, updates := time.Now(), cpu(m.t), m.updates.Load()
	for !done() {
		<-tick.C
		if err := m.connect(); err != nil {
			m.fail(err)
		}
		if took := time.Since(began); took >= time.Second {
			now, came := cpu(m.t), m.updates.Load()
			seconds = append(seconds, second{(now - used).Seconds() / took.Seconds(), came - updates})
			began, used, updates = time.Now(), now, came
		}
	}
	return seconds
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Many identities are renewed again and again, and no connection between them
// fails. With TACIT_LONG it is 500 with a life of a minute, for ten minutes or
// the time that it says, and what the node's process uses, both ends of the load
// included, stays below a tenth of a core in every second.
func TestManyIdentities(t *testing.T) {
	n, life, perSecond := 50, 30*time.Second, 20
	end := time.Time{}
	if long := os.Getenv("TACIT_LONG"); long != "" {
		n, life, perSecond = 500, time.Minute, 10
		duration, err := time.ParseDuration(long)
		if err != nil {
			duration = 10 * time.Minute
		}
		end = time.Now().Add(duration)
	}
	m := startMany(t, n, life)
	first := map[identity.Subject]time.Time{}
	for _, s := range m.store.All() {
		first[s.Subject] = s.NotAfter()
	}
	seconds := m.load(perSecond, func() bool {
		if !end.IsZero() {
			return !time.Now().Before(end)
		}
		return !slices.ContainsFunc(m.store.All(), func(s identity.Status) bool { return !s.NotAfter().After(first[s.Subject]) })
	})
	for len(m.failures) > 0 { // it stays open: renewals may fail as long as the store runs
		t.Error(<-m.failures)
	}
	slices.SortFunc(seconds, func(a, b second) int { return cmp.Compare(a.share, b.share) })
	middle, worst := seconds[len(seconds)/2], seconds[len(seconds)-1]
	t.Logf("%d identities with a life of %v: in each of %d seconds %.1f %% of a core in the middle, %.1f %% at most, with %d renewals",
		n, life, len(seconds), 100*middle.share, 100*worst.share, worst.renewals)
	if !end.IsZero() && worst.share > 0.1 {
		t.Errorf("%.1f %% of a core in some second", 100*worst.share)
	}
}
