package otlp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
)

// roots are by what a collector is known. They are read for each connection:
// whoever keeps the file replaces it, and may bring it later.
type roots struct {
	credentials.TransportCredentials
	file string
}

func withRoots(file string) roots {
	return roots{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), file}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (r roots) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := r.read()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
}

// Clone implements [credentials.TransportCredentials].
func (r roots) Clone() credentials.TransportCredentials { return r }

func (r roots) read() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if r.file == "" {
		return config, nil // the system's
	}
	text, err := os.ReadFile(r.file)
	if err != nil {
		return nil, fmt.Errorf("roots of the OTLP collector: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("roots of the OTLP collector: no PEM certificate in %s", r.file)
	}
	return config, nil
}
