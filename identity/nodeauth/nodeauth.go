// Package nodeauth says which node is calling the control plane.
//
// A node's proxy proves itself by a bearer token: one of a service account of
// the cluster, which the API server knows, or one of those in a file. What does
// not belong here: what a node may then do.
package nodeauth

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

const (
	minToken = 16 // characters; a shorter one can be guessed
	maxToken = 4096
	maxFile  = 4 << 20 // bytes
)

// TokenFile authenticates by a file of lines "TOKEN NODE", which is read
// again whenever it has changed. Blank lines and those that begin with "#"
// are passed over. As long as the file cannot be read nobody is let in.
type TokenFile struct {
	path string
	log  *zap.Logger

	mu    sync.Mutex
	info  fs.FileInfo // of the file as last read
	nodes map[[sha256.Size]byte]string
	err   error
}

// OpenTokenFile reads the file, which must be readable by its owner alone.
func OpenTokenFile(path string, log *zap.Logger) (*TokenFile, error) {
	f := &TokenFile{path: path, log: log}
	f.refresh()
	return f, f.err
}

type nodeKey struct{}

// Node is the name of the node that [TokenFile.Tap] or [Reviewer.Tap] found; ""
// if it found none.
func Node(ctx context.Context) string {
	node, _ := ctx.Value(nodeKey{}).(string)
	return node
}

func withNode(ctx context.Context, node string) context.Context {
	return context.WithValue(ctx, nodeKey{}, node)
}

// bearer is the only token of a request.
func bearer(header metadata.MD, longest int) (string, error) {
	values := header.Get("authorization")
	if len(values) != 1 {
		return "", status.Error(codes.Unauthenticated, "want one authorization header with a bearer token")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || len(token) > longest {
		return "", status.Error(codes.Unauthenticated, "want a bearer token")
	}
	return token, nil
}

// host is the address without the port.
func host(a net.Addr) string {
	name, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return name
}

// Tap is for grpc.InTapHandle. It refuses a call before anything of its body
// is read.
func (f *TokenFile) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	node, err := f.authenticate(info.Header)
	if err != nil {
		return nil, err
	}
	return withNode(ctx, node), nil
}

func (f *TokenFile) authenticate(header metadata.MD) (string, error) {
	token, err := bearer(header, maxToken)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	if f.err != nil {
		return "", status.Error(codes.Unavailable, "tokens cannot be checked now")
	}
	// The look-up is by hash, so its timing says nothing about tokens.
	node, ok := f.nodes[sha256.Sum256([]byte(token))]
	if !ok {
		return "", status.Error(codes.Unauthenticated, "unknown token")
	}
	return node, nil
}

// refresh reads the file if it is not the one that was read last.
func (f *TokenFile) refresh() {
	info, err := os.Stat(f.path)
	if err == nil && f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() &&
		info.ModTime().Equal(f.info.ModTime()) && info.Mode() == f.info.Mode() {
		return
	}
	before := f.err
	f.info, f.nodes = info, nil
	if err == nil {
		f.nodes, err = f.read(info)
	}
	if err == nil {
		f.err = nil
		f.log.Info("tokens read", zap.String("file", f.path), zap.Int("tokens", len(f.nodes)))
		return
	}
	f.err = fmt.Errorf("read tokens from %s: %w", f.path, err)
	if before == nil || before.Error() != f.err.Error() {
		f.log.Error("nobody is let in", zap.Error(f.err))
	}
}

func (f *TokenFile) read(info fs.FileInfo) (map[[sha256.Size]byte]string, error) {
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("mode %s: it must be a file that only its owner can read (chmod 600)", info.Mode())
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, the limit is %d", info.Size(), maxFile)
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	return parse(data)
}

func parse(data []byte) (map[[sha256.Size]byte]string, error) {
	nodes := map[[sha256.Size]byte]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 || len(fields[0]) < minToken || len(fields[0]) > maxToken {
			return nil, fmt.Errorf("line %d: want TOKEN NODE, the token of %d to %d characters", n, minToken, maxToken)
		}
		sum := sha256.Sum256([]byte(fields[0]))
		if _, ok := nodes[sum]; ok {
			return nil, fmt.Errorf("line %d: the same token twice", n)
		}
		nodes[sum] = fields[1]
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, errors.New("no tokens")
	}
	return nodes, nil
}
