package caclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// Dial prepares a connection to the authority, or to another service of the
// same server: requests carry the token. It connects when it is used.
func Dial(config Config) (*grpc.ClientConn, error) {
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = maxBackoffUrgent
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(rootsFile{config.RootsFile, config.ServerName}),
		grpc.WithContextDialer(dialTCP),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: requestTimeout}),
		grpc.WithDisableServiceConfig(),
	}
	if config.ServerName != "" {
		options = append(options, grpc.WithAuthority(config.ServerName))
	}
	if config.TokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(config.TokenFile)))
	}
	conn, err := grpc.NewClient(config.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("CA address %q: %w", config.Address, err)
	}
	return conn, nil
}

// dialTCP makes a connection that notices within seconds that the authority's
// machine is gone. HTTP/2 pings would do the same, but gRPC servers refuse
// clients that send them every few seconds.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) {
			unanswered := int(2 * requestTimeout / time.Millisecond)
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, unanswered)
		})
		return errors.Join(controlErr, err)
	}}
	return dialer.DialContext(ctx, "tcp", address)
}

// rootsFile is TLS to a server of that name, by roots that are read at each
// connection: a rotated root needs no restart.
type rootsFile struct{ path, serverName string }

func (r rootsFile) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	all, err := Roots(r.path)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range all {
		roots.AddCert(c)
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    roots,
		ServerName: r.serverName,
	}).ClientHandshake(ctx, authority, raw)
}

// Roots are those in a file of PEM by which an authority is known. What else is
// in it is passed over.
func Roots(path string) (all []*x509.Certificate, err error) {
	rest, err := readFile(path, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("roots of the CA: %w", err)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("roots of the CA: no PEM certificate in %s", path)
	}
	return all, nil
}

func (r rootsFile) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client used by a server")
}

func (r rootsFile) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (r rootsFile) Clone() credentials.TransportCredentials { return r }

// OverrideServerName is deprecated and unused: the name is fixed above.
func (r rootsFile) OverrideServerName(string) error { return nil }

// tokenFile sends the token in a file, which Kubernetes replaces from time to
// time, with each request.
type tokenFile string

func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := readFile(string(f), maxToken)
	if err != nil {
		return nil, fmt.Errorf("token for the CA: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return nil, fmt.Errorf("token for the CA: %s is empty", f)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (tokenFile) RequireTransportSecurity() bool { return true }

// Bounds of files, in bytes: of a Secret, and of what a server takes as a
// header.
const (
	maxRoots = 1 << 20
	maxToken = 64 << 10
)

func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return text, err
}
