package otlp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxHeaders bounds the file of headers, in bytes.
const maxHeaders = 16 << 10

var (
	headerName  = regexp.MustCompile(`^[a-z0-9_.-]+$`)
	headerValue = regexp.MustCompile(`^[\x20-\x7e]+$`)
)

// headers are sent with each message, by which a collector knows who sends. They
// are read each time: whoever keeps the file replaces it.
type headers struct{ file string }

// GetRequestMetadata implements [credentials.PerRPCCredentials]. A file that
// cannot be read may be there the next moment: what waits is sent then.
func (h headers) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	all, err := h.read()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return all, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (headers) RequireTransportSecurity() bool { return true }

// read has lines of "name: value". No error tells a value.
func (h headers) read() (map[string]string, error) {
	file, err := os.Open(h.file)
	if err != nil {
		return nil, fmt.Errorf("headers for the OTLP collector: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxHeaders+1))
	if err == nil && len(text) > maxHeaders {
		err = fmt.Errorf("more than %d bytes", maxHeaders)
	}
	if err != nil {
		return nil, fmt.Errorf("headers for the OTLP collector: %s: %w", h.file, err)
	}
	all := map[string]string{}
	for lines, n := bufio.NewScanner(bytes.NewReader(text)), 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !headerName.MatchString(name) || strings.HasPrefix(name, "grpc-") || strings.HasSuffix(name, "-bin") || !headerValue.MatchString(value) {
			return nil, fmt.Errorf("headers for the OTLP collector: %s:%d: want a line such as \"authorization: Bearer ...\", in ASCII, of a header that is not gRPC's own", h.file, n)
		}
		all[name] = value
	}
	if len(all) == 0 {
		return nil, errors.New("headers for the OTLP collector: " + h.file + " has none")
	}
	return all, nil
}
