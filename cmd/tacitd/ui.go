package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/tacit-mesh/tacit/sight/page"
)

// Bounds on the map's readers: some people, each with a browser.
const (
	uiClients   = 64
	uiTimeout   = 10 * time.Second
	uiMaxHeader = 16 << 10
)

// openDoor lets everybody in who reaches the socket, and shows them everything:
// the file's owner alone does.
type openDoor struct{}

func (openDoor) Challenge() (string, error) { return "", nil }

func (openDoor) Open(context.Context, page.Proof) (page.Viewer, error) { return everything{}, nil }

type everything struct{}

func (everything) Sees(context.Context, string) bool { return true }

// serveUI serves the map until the context ends.
func (o *options) serveUI(ctx context.Context, seen *observed, door page.Door, log *zap.Logger) error {
	listener, err := o.listenUI()
	if err != nil {
		return fmt.Errorf("listen for the map: %w", err)
	}
	log.Info("serving the map", zap.Stringer("address", listener.Addr()))
	if o.listeningUI != nil {
		o.listeningUI(listener.Addr().String())
	}
	server := &http.Server{
		Handler:     (&page.Server{Hour: seen.hour, Mesh: seen.mesh, Silent: seen.silent, Lacks: seen.lacks, Door: door}).Handler(),
		ReadTimeout: uiTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: uiMaxHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    stdlog.New(io.Discard, "", 0), // browsers that hang up
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err = server.Serve(netutil.LimitListener(listener, uiClients))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serve the map: %w", err)
}

// listenUI listens on the loopback device, or on a socket that nobody else may
// open at any moment: it is made in a directory of its own, and then moved.
func (o *options) listenUI() (net.Listener, error) {
	if o.kubernetes {
		return (&net.ListenConfig{}).Listen(context.Background(), "tcp", o.ui)
	}
	dir, err := os.MkdirTemp(filepath.Dir(o.ui), ".ui-*") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	fresh := filepath.Join(dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if info, statErr := os.Lstat(o.ui); statErr == nil && info.Mode().Type() != fs.ModeSocket {
		err = fmt.Errorf("%s is there, and no socket", o.ui)
	}
	if err = errors.Join(err, os.Chmod(fresh, 0o600)); err == nil {
		err = os.Rename(fresh, o.ui)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}
