// Command hbone is either end of HBONE as Istio's own library speaks it, for
// tests: a server that connects where it is asked to, or a client that sends
// its standard input and prints what comes back.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"istio.io/istio/pkg/hbone"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "", "`address` to serve at")
	via := flag.String("via", "", "`address` of the server, for a client")
	to := flag.String("to", "", "`authority` to ask the server for")
	cert := flag.String("cert", "", "own certificate")
	key := flag.String("key", "", "key of that")
	root := flag.String("root", "", "by what the other is known")
	flag.Parse()
	config, err := identity(*cert, *key, *root)
	if err == nil && *listen != "" {
		err = serve(*listen, config)
	} else if err == nil {
		err = dial(*via, *to, config)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// identity knows others by the root alone: names are not what is tested here.
func identity(cert, key, root string) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(root)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{
		Certificates: []tls.Certificate{own}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}, nil
}

func serve(address string, config *tls.Config) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := hbone.NewServer()
	server.Protocols.SetHTTP2(true)
	server.TLSConfig = config
	return server.ServeTLS(l, "", "")
}

func dial(via, to string, config *tls.Config) error {
	c, err := hbone.NewDialer(hbone.Config{ProxyAddress: via, TLS: config}).Dial("tcp", to)
	if err != nil {
		return fmt.Errorf("not connected: %w", err)
	}
	sent, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	go func() { _, _ = c.Write(sent) }()
	// The echo's first line names the client; the library has no half close.
	line, back := []byte{0}, []byte{}
	for line[0] != '\n' {
		if _, err := io.ReadFull(c, line); err != nil {
			return err
		}
		back = append(back, line[0])
	}
	echo := make([]byte, len(sent))
	if _, err := io.ReadFull(c, echo); err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(back, echo...))
	return err
}
