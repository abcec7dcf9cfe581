// Package crl reads certificate revocation lists (RFC 5280) from files and
// says which certificates they revoke.
//
// What does not belong here: fetching lists from elsewhere, and what is done
// about a revoked certificate (identity, proxy).
package crl

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// maxFile bounds a file of lists.
const maxFile = 32 << 20

// settle is how long the writing of files may take before they are read.
const settle = 100 * time.Millisecond

// Lists are the lists of some files, which are read again when they change. It
// implements identity.Revocations.
type Lists struct {
	files []string
	log   *zap.Logger

	mu      sync.RWMutex
	byFile  map[string][]*list
	changed chan struct{}
}

// list is one list, not verified yet: of whose it is, nothing is known before
// its issuer is at hand.
type list struct {
	*x509.RevocationList
	file    string
	serials map[string]time.Time // when revoked, by serial number
}

// Open reads the files, each of which holds one list in DER or any number in
// PEM, such as the ConfigMap that Istio publishes. One that cannot be read is
// an error now; later on, what it held before stays in force.
func Open(files []string, log *zap.Logger) (*Lists, error) {
	l := &Lists{files: files, log: log, byFile: map[string][]*list{}, changed: make(chan struct{})}
	for _, file := range files {
		read, err := readFile(file)
		if err != nil {
			return nil, err
		}
		l.byFile[file] = read
	}
	return l, nil
}

// Run follows the files until the context ends.
func (l *Lists) Run(ctx context.Context) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch lists of revoked certificates: %w", err)
	}
	defer func() { _ = notify.Close() }()
	for _, file := range l.files {
		// Of the directory, since files are replaced rather than written.
		if err := notify.Add(filepath.Dir(file)); err != nil {
			return fmt.Errorf("watch %s: %w", filepath.Dir(file), err)
		}
	}
	l.reload() // what has changed since Open
	for {
		select {
		case <-notify.Events:
		case err := <-notify.Errors:
			l.log.Warn("watch lists of revoked certificates", zap.Error(err))
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := quiet(ctx, notify); err != nil {
			return err
		}
		l.reload()
	}
}

// quiet waits until nothing has happened for a moment.
func quiet(ctx context.Context, notify *fsnotify.Watcher) error {
	for {
		select {
		case <-notify.Events:
		case <-time.After(settle):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Lists) reload() {
	fresh := map[string][]*list{}
	for _, file := range l.files {
		read, err := readFile(file)
		if err != nil {
			l.log.Error("what was revoked before stays so", zap.Error(err))
			continue
		}
		fresh[file] = read
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	same := true
	for file, read := range fresh {
		if !equal(l.byFile[file], read) {
			same = false
			l.byFile[file] = read
			l.log.Info("lists of revoked certificates", zap.String("file", file), zap.Int("lists", len(read)))
		}
	}
	if same {
		return
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func equal(a, b []*list) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i].Raw, b[i].Raw) {
			return false
		}
	}
	return true
}

// Changed implements identity.Revocations.
func (l *Lists) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Revoked implements identity.Revocations. A list counts if the very issuer of
// the certificate has signed it, also after the time of its next update: what
// was revoked stays so.
func (l *Lists) Revoked(chain, roots []*x509.Certificate) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, read := range l.byFile {
		for _, list := range read {
			for _, c := range chain {
				if err := list.revokes(c, chain, roots); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l *list) revokes(c *x509.Certificate, chain, roots []*x509.Certificate) error {
	when, listed := l.serials[string(c.SerialNumber.Bytes())]
	if !listed || !bytes.Equal(l.RawIssuer, c.RawIssuer) {
		return nil
	}
	for _, issuers := range [][]*x509.Certificate{chain, roots} {
		for _, issuer := range issuers {
			// Not CheckSignatureFrom: whether the issuer may sign lists is
			// no reason to trust what it has taken back.
			if bytes.Equal(issuer.RawSubject, l.RawIssuer) && c.CheckSignatureFrom(issuer) == nil &&
				issuer.CheckSignature(l.SignatureAlgorithm, l.RawTBSRevocationList, l.Signature) == nil {
				return fmt.Errorf("the certificate with serial %.40s has been revoked on %s, says %s", c.SerialNumber.Text(16), when.UTC().Format(time.RFC3339), l.file)
			}
		}
	}
	return nil
}

func readFile(path string) ([]*list, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("list of revoked certificates: %w", err)
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	var read []*list
	if err == nil {
		read, err = parse(content)
	}
	if err != nil {
		return nil, fmt.Errorf("list of revoked certificates %s: %w", path, err)
	}
	for _, l := range read {
		l.file = path
	}
	return read, nil
}

// parse takes all or nothing: half a list would let the rest pass.
func parse(content []byte) (all []*list, err error) {
	if !bytes.Contains(content, []byte("-----BEGIN")) {
		l, err := newList(content)
		return []*list{l}, err
	}
	for len(bytes.TrimSpace(content)) > 0 {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil || block.Type != "X509 CRL" {
			return nil, errors.New("something in it is no PEM block of type X509 CRL")
		}
		l, err := newList(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

func newList(der []byte) (*list, error) {
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	l := &list{RevocationList: parsed, serials: map[string]time.Time{}}
	for _, e := range parsed.RevokedCertificateEntries {
		l.serials[string(e.SerialNumber.Bytes())] = e.RevocationTime
	}
	return l, nil
}
