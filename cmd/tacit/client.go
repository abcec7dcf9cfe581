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
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// client asks one proxy or those of all nodes, as the flags of a command say.
type client struct {
	socket string
	output string
	more   []string // forms of output besides those of all commands
	remote remote
}

// flags gives the command those that all questions share.
func (c *client) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.socket, "socket", admin.DefaultPath, "admin `path` of the proxy to ask")
	outputFlag(cmd.Flags(), &c.output, c.more...)
	c.remote.flags(cmd.Flags())
}

// timeout bounds a question and its whole answer.
const timeout = 30 * time.Second

// answerer is a proxy that can be asked.
type answerer struct {
	node string // "" for the one behind the socket
	ask  func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error)
	// follow is ask for an answer that goes on until the context ends.
	follow func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error)
}

// about is what a question is about, where that decides which proxy is asked.
type about struct {
	from, to string // as explain has them
	one      bool   // any proxy will do
}

// proxies are those to ask: the one behind the socket, or a cluster's.
func (c *client) proxies(cmd *cobra.Command, what about) ([]answerer, error) {
	if err := checkOutput(c.output, c.more...); err != nil {
		return nil, err
	}
	all, err := c.remote.proxies(cmd, c.socket, what)
	if all == nil && err == nil {
		all = []answerer{{ask: c.ask, follow: c.follow}}
	}
	return all, err
}

// printer writes text as the command's output.
func (c *client) printer(cmd *cobra.Command) show.Printer {
	out := cmd.OutOrStdout()
	return show.Printer{Out: out, Now: time.Now(), Color: isTerminal(out) && os.Getenv("NO_COLOR") == "", Wide: c.output == outputWide}
}

// get asks for path and reads the answer. In a form for programs the answer goes
// out as it is, and what the printer prints goes nowhere.
func (c *client) get(cmd *cobra.Command, from answerer, path string, query url.Values, answer any) (show.Printer, error) {
	body, err := from.ask(cmd.Context(), path, query)
	if err != nil {
		return show.Printer{}, err
	}
	defer body.Close()
	p := c.printer(cmd)
	out := p.Out
	switch c.output {
	case outputJSON:
		p.Out = io.Discard
		return p, from.read(io.TeeReader(body, out), answer)
	case outputYAML:
		p.Out = io.Discard
		var text bytes.Buffer
		if err := from.read(io.TeeReader(body, &text), answer); err != nil {
			return p, err
		}
		return p, printAs(out, outputYAML, json.RawMessage(text.Bytes()))
	}
	return p, from.read(body, answer)
}

// read decodes an answer to its end.
func (a answerer) read(text io.Reader, answer any) error {
	err := json.NewDecoder(text).Decode(answer)
	if err == nil {
		_, err = io.Copy(io.Discard, text)
	}
	if err != nil {
		return fmt.Errorf("answer of the proxy%s: %w", a.where(), err)
	}
	return nil
}

func (a answerer) where() string {
	if a.node == "" {
		return ""
	}
	return " of node " + a.node
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// ask is one question over the socket.
func (c *client) ask(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	return c.request(ctx, path, query, timeout)
}

// follow is one whose answer goes on for as long as it is read.
func (c *client) follow(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	return c.request(ctx, path, query, 0)
}

// request waits for the whole answer for at most a time; 0 is without end.
func (c *client) request(ctx context.Context, path string, query url.Values, most time.Duration) (io.ReadCloser, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		},
	}
	where := url.URL{Scheme: "http", Host: "tacit", Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport, Timeout: most}).Do(request)
	if err != nil {
		return nil, c.advise(err)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, refusal(response)
	}
	return response.Body, nil
}

// advise says what to do about a proxy that does not answer.
func (c *client) advise(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no proxy here: there is no socket %s. Run this where the proxy runs (in its container), or name its socket with --socket", c.socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("socket %s: permission denied. Only the proxy's own user and root may look: run this as one of them", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("socket %s: nobody listens. The proxy is not running (any more): its log says why", c.socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("socket %s: no answer within %v. The proxy is overloaded or stuck: its log may say why", c.socket, timeout)
	}
	return fmt.Errorf("socket %s: %w", c.socket, err)
}

// refusal is the proxy's own word on why it does not answer.
func refusal(response *http.Response) error {
	var problem struct {
		Error string `json:"error"`
	}
	text := io.LimitReader(response.Body, 64<<10)
	if err := json.NewDecoder(text).Decode(&problem); err != nil || problem.Error == "" {
		return fmt.Errorf("the proxy answers %s: is it of another version?", response.Status)
	}
	if response.StatusCode == http.StatusNotFound {
		return absentError{error: errors.New(problem.Error)}
	}
	return errors.New(problem.Error)
}
