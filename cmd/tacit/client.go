package main

import (
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

// client asks the proxy, as the flags of a command say.
type client struct {
	socket string
	output string
}

// The forms of output.
const (
	outputText = "text"
	outputJSON = "json"
)

// flags gives the command those that all questions share.
func (c *client) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.socket, "socket", admin.DefaultPath, "admin `path` of the proxy to ask")
	cmd.Flags().StringVarP(&c.output, "output", "o", outputText, "`form` of the answer: text or json")
}

// timeout bounds a question and its whole answer.
const timeout = 30 * time.Second

// get asks for path and reads the answer. With -o json the answer goes out as
// it came, and what the printer prints goes nowhere.
func (c *client) get(cmd *cobra.Command, path string, query url.Values, answer any) (show.Printer, error) {
	body, err := c.ask(cmd.Context(), path, query)
	if err != nil {
		return show.Printer{}, err
	}
	defer body.Close()
	out, text := cmd.OutOrStdout(), io.Reader(body)
	if c.output == outputJSON {
		out, text = io.Discard, io.TeeReader(body, out)
	}
	if err = json.NewDecoder(text).Decode(answer); err == nil {
		_, err = io.Copy(io.Discard, text)
	}
	if err != nil {
		return show.Printer{}, fmt.Errorf("answer of the proxy at %s: %w", c.socket, err)
	}
	return show.Printer{Out: out, Now: time.Now(), Color: isTerminal(out) && os.Getenv("NO_COLOR") == ""}, nil
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (c *client) ask(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	if c.output != outputText && c.output != outputJSON {
		return nil, fmt.Errorf("output %q: want text or json", c.output)
	}
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
	response, err := (&http.Client{Transport: transport, Timeout: timeout}).Do(request)
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
	return errors.New(problem.Error)
}
