//go:build !inpod

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	core "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/identity/person"
	"github.com/tacit-mesh/tacit/sight/page"
)

// uiPort is where tacitd serves the map, inside its pod.
const uiPort = 15017

// ui leads a browser to the map that tacitd serves.
type ui struct {
	cluster cluster.Flags
	socket  string
	demo    bool
	port    int
	open    bool
	// connect is Flags.Connect but in tests.
	connect func() (*cluster.Cluster, error)
}

func uiCommand() *cobra.Command {
	var u ui
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show in a browser who talks to whom: the map of the last hour",
		Long: `Lead a browser to the map that tacitd serves: who talks to whom, by namespace and
workload; what is mutual TLS, in clear or denied, and why; as it is now, or was
within the last hour.

The address that is printed works once, and for a minute; after that the browser
has a session of four hours. tacitd serves the map inside its pod alone, so this
forwards a port to it and has to go on running. Who you are the API server tells
tacitd, in a CertificateSigningRequest that nobody signs: no credential of yours
goes there. You see the namespaces whose pods you may list. It takes the rights
of the ClusterRole tacit-ui, and of the Role tacit-ui in Tacit's namespace.

Without a cluster, name the socket of tacitd's --ui: whoever may open it sees
everything.`,
		Example: `  tacit ui
  tacit ui --open                      # start the browser, too
  tacit ui --port 8080                 # as behind an SSH tunnel
  tacit ui --socket /run/tacit/ui.sock`,
		Args: cobra.NoArgs,
	}
	clusterFlags(cmd.Flags(), &u.cluster)
	cmd.Flags().StringVar(&u.socket, "socket", "", "`path` of the socket of a tacitd outside of a cluster")
	cmd.Flags().BoolVar(&u.demo, "demo", false, "that of a demo of this machine that was kept, as tacit demo ui")
	cmd.MarkFlagsMutuallyExclusive("demo", "socket")
	u.browserFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if u.demo {
			return u.runInDemo(cmd)
		}
		return u.run(cmd)
	}
	return cmd
}

// browserFlags are about this machine's side.
func (u *ui) browserFlags(f *pflag.FlagSet) {
	f.IntVar(&u.port, "port", 0, "`number` of the port of this machine's loopback device; 0: any")
	f.BoolVar(&u.open, "open", false, "start a browser; others who use this machine may see the address among its processes before it is used up")
}

func (u *ui) run(cmd *cobra.Command) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	lead := u.leadToPod
	if u.socket != "" {
		lead = u.leadToSocket
	}
	where, ended, err := lead(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "The map is at\n\n  %s\n\nThat address works once. Ctrl-C ends this.\n", where)
	if u.open {
		if err := startBrowser(ctx, where); err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "tacit: no browser was started:", err)
		}
	}
	select {
	case err := <-ended:
		if ctx.Err() == nil {
			return fmt.Errorf("the way to tacitd is lost: %w", err)
		}
	case <-ctx.Done():
		<-ended //nolint:errcheck // the person has ended it
	}
	return nil
}

// leadToPod forwards a port to a tacitd and proves to it who the user is. Each of
// several is told everything, so that the one which began first knows the most.
func (u *ui) leadToPod(ctx context.Context) (where string, ended <-chan error, err error) {
	connect := u.connect
	if connect == nil {
		connect = u.cluster.Connect
	}
	c, err := connect()
	if err != nil {
		return "", nil, err
	}
	pods, err := c.Pods(ctx, cluster.Control)
	if err != nil {
		return "", nil, err
	}
	if len(pods) == 0 {
		return "", nil, fmt.Errorf("no tacitd runs in namespace %s of this cluster: name its namespace with --tacit-namespace", c.Namespace)
	}
	port, ended, err := c.Forward(ctx, oldest(pods).Name, u.port, uiPort)
	if err != nil {
		return "", nil, err
	}
	base := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	client := &http.Client{Timeout: timeout}
	var asked page.Proof
	if err := exchange(ctx, client, http.MethodGet, base+"/challenge", nil, &asked); err != nil {
		return "", nil, err
	}
	proof, done, err := person.Prove(ctx, c.Client, asked.Challenge)
	if err != nil {
		return "", nil, err
	}
	defer done(context.WithoutCancel(ctx))
	where, err = enter(ctx, client, base, base, proof)
	return where, ended, err
}

// oldest is the pod whose containers have run for the longest, of those that are
// ready if any is.
func oldest(pods []core.Pod) *core.Pod {
	age := func(p *core.Pod) (ready bool, since time.Time) {
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil && c.State.Running.StartedAt.After(since) {
				since = c.State.Running.StartedAt.Time
			}
			ready = c.Ready
		}
		return ready, since
	}
	first := &pods[0]
	for i := range pods[1:] {
		ready, since := age(&pods[i+1])
		firstReady, firstSince := age(first)
		if ready != firstReady && ready || ready == firstReady && since.Before(firstSince) {
			first = &pods[i+1]
		}
	}
	return first
}

// leadToSocket serves what is behind a socket on the loopback device. There,
// others who use this machine may ask, so letting people in is not on offer:
// the token comes by the socket itself.
func (u *ui) leadToSocket(ctx context.Context) (where string, ended <-chan error, err error) {
	behind := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", u.socket)
	}}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(u.port)))
	if err != nil {
		return "", nil, fmt.Errorf("listen for the browser: %w", err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", r.In.Host, r.In.Host
		},
		Transport: behind, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			http.Error(w, "tacitd does not answer", http.StatusBadGateway)
		},
	}
	server := &http.Server{ReadHeaderTimeout: timeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" || r.URL.Path == "/challenge" || r.Method != http.MethodGet {
			http.Error(w, "not by this way", http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, r)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	context.AfterFunc(ctx, func() { _ = server.Close(); behind.CloseIdleConnections() })
	where, err = enter(ctx, &http.Client{Transport: behind, Timeout: timeout}, "http://localhost", "http://"+listener.Addr().String(), page.Proof{})
	if err != nil {
		_ = server.Close()
		return "", nil, err
	}
	return where, done, nil
}

// enter exchanges a proof for an address that works once.
func enter(ctx context.Context, client *http.Client, at, base string, proof page.Proof) (string, error) {
	body, err := json.Marshal(proof)
	if err != nil {
		return "", err
	}
	var e page.Entrance
	if err := exchange(ctx, client, http.MethodPost, at+"/login", body, &e); err != nil {
		return "", err
	}
	return base + "/enter?token=" + url.QueryEscape(e.Token), nil
}

func exchange(ctx context.Context, client *http.Client, method, where string, body []byte, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, where, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no map here: tacitd with --ui makes this socket: %w", err)
	case err != nil:
		return fmt.Errorf("ask tacitd for the map: %w (does it run with --ui?)", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("tacitd lets you not in: %w", refusal(response))
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(into); err != nil {
		return fmt.Errorf("answer of tacitd: %w", err)
	}
	return nil
}

func startBrowser(ctx context.Context, where string) error {
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, program, where).Run()
}
