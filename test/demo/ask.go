package demo

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
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/world"
)

// shell shows and runs a command line in a pod. A command that fails is no
// error here: some are expected to.
func (d *Demo) shell(ctx context.Context, pod, line string) (output string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.out.command(pod, line)
	text, err := d.world.Pod(pod).Command(ctx, "sh", "-c", line).CombinedOutput()
	d.out.output(string(text))
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return string(text), exit.ExitCode(), nil
	}
	return string(text), 0, err
}

// tacit shows and runs the CLI against a node's proxy.
func (d *Demo) tacit(ctx context.Context, node *world.Node, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.out.command("node "+node.Name, "tacit "+strings.Join(args, " "))
	args = append(args, "--socket", node.AdminSocket())
	cmd := exec.CommandContext(ctx, filepath.Join(d.config.Programs, "tacit"), args...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	text, err := cmd.Output()
	d.out.output(string(text))
	// Its exit code says whether the connection would be allowed.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && problem.Len() == 0 {
		err = nil
	}
	if err != nil {
		return "", fmt.Errorf("tacit %s: %w: %s", args[0], err, &problem)
	}
	return string(text), nil
}

// ask puts a question to a node's proxy, as the CLI does.
func ask[T any](ctx context.Context, node *world.Node, path string, query url.Values) (T, error) {
	var out T
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", node.AdminSocket())
		},
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+path+"?"+query.Encode(), nil)
	if err != nil {
		return out, err
	}
	response, err := client.Do(request)
	if err != nil {
		return out, fmt.Errorf("ask the proxy of node %s: %w", node.Name, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &out)
	}
	if err != nil {
		return out, fmt.Errorf("ask the proxy of node %s for %s: %w", node.Name, path, err)
	}
	return out, nil
}

// connections lists those of a node, live or, with which "ended" or "denied",
// ended ones, oldest first.
func connections(ctx context.Context, node *world.Node, which, from, to string) ([]admin.Connection, error) {
	answer, err := ask[struct {
		Connections []admin.Connection `json:"connections"`
	}](ctx, node, "/connections", url.Values{which: {""}, "from": {from}, "to": {to}})
	return answer.Connections, err
}

// newest waits until a node knows such a connection that ok accepts, and
// returns the newest. A connection's end is recorded just after its ends see it.
func newest(ctx context.Context, node *world.Node, which, from, to string, ok func(admin.Connection) bool) (admin.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var found *admin.Connection
	err := world.Poll(ctx, func() error {
		all, err := connections(ctx, node, which, from, to)
		if err != nil {
			return err
		}
		for _, c := range all {
			if ok(c) {
				found = &c
			}
		}
		if found == nil {
			return fmt.Errorf("node %s knows no %s connection from %s to %s", node.Name, which, from, to)
		}
		return nil
	})
	if err != nil {
		return admin.Connection{}, err
	}
	return *found, nil
}
