// Package audit keeps what must not be forgotten or changed unnoticed, in a file
// or where it is exported to: denials, bypasses, and what became of identities.
//
// Each line is a record of JSON that ends with the SHA-256 of itself and of the
// one before, so that a line which is changed, missing or out of its place
// breaks the chain. Who can write the whole file anew can compute all of it
// anew: against that, keep the hash of the last record elsewhere. What does not
// belong here: what is worth a record.
package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Bounds of what is kept and of what may wait.
const (
	DefaultMaxSize = 64 << 20 // bytes of a file
	DefaultKeep    = 10       // files beside the current one

	queued    = 4096
	maxText   = 2000 // bytes of one field
	syncEvery = time.Second

	maxWriters = 4 // processes that write beside each other
)

// Events of records.
const (
	EventStarted    = "started" // the program writes from here on
	EventLost       = "lost"    // so many records came faster than they could be written
	EventDenied     = "denied"
	EventBypassed   = "let_through_by_bypass"
	EventRepeated   = "repeated" // more of what was told, so many times
	EventBypass     = "bypass"
	EventIdentity   = "identity"
	EventHandshake  = "handshake_refused"
	EventRevocation = "revocation"
)

// Record is one line. The hash covers all that is before it in the line.
type Record struct {
	Sequence uint64            `json:"sequence"` // from 1 on, without a gap
	Time     time.Time         `json:"time"`
	Program  string            `json:"program"`
	Node     string            `json:"node,omitempty"`
	Event    string            `json:"event"`
	Fields   map[string]string `json:"fields,omitempty"`
	Previous string            `json:"previous"` // hash of the record before; empty for the first
	Hash     string            `json:"hash"`
}

// hash is that of a record, whatever its Hash says.
func (r Record) hash() (string, error) {
	r.Hash = ""
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode a record: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// Config says where records go.
type Config struct {
	Path          string // of the file; empty for none, where Export takes the records
	MaxSize       int64  // bytes, after which a file is closed and the next begun; 0: DefaultMaxSize
	Keep          int    // files beside the current one, PATH.1 being the youngest; 0: DefaultKeep
	Program, Node string
	Log           *zap.Logger
	// Export is told of each record, and its line, once it is in the file; it
	// must not wait. nil: nobody is.
	Export func(r Record, line []byte)
}

// Log writes records. Its methods may be called from any goroutine; nil writes
// nothing.
type Log struct {
	config Config
	lock   *os.File
	file   *os.File
	size   int64
	last   Record // the one written last
	queue  chan Record

	mu   sync.Mutex
	lost uint64
}

// Open goes on with the file, or begins it. A line that was cut off, by a crash
// in the middle of a write, is taken away: nobody was told that it was there.
func Open(c Config) (*Log, error) {
	if c.MaxSize == 0 {
		c.MaxSize = DefaultMaxSize
	}
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	l := &Log{config: c, queue: make(chan Record, queued)}
	if c.Path == "" {
		l.Write(EventStarted, nil)
		return l, nil
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.config.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit log: %w", err), l.lock.Close())
	}
	l.file = f
	if err := l.resume(); err != nil {
		return nil, errors.Join(err, l.file.Close(), l.lock.Close())
	}
	l.Write(EventStarted, nil)
	return l, nil
}

// claim takes the file for this process alone: while one program takes over from
// another, which drains, the newer one writes a chain of its own beside it.
func (l *Log) claim() error {
	name := l.config.Path
	for n := 2; ; n++ {
		f, err := os.OpenFile(l.config.Path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			l.lock = f
			return nil
		}
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) || n > maxWriters {
			return fmt.Errorf("audit log %s: other processes write it, and %d beside it: %w", name, n-2, err)
		}
		l.config.Path = fmt.Sprintf("%s-%d", name, n)
	}
}

// resume finds the last record, in the file or, if that is empty, in the one
// before.
func (l *Log) resume() error {
	text, err := io.ReadAll(l.file)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	if err := l.file.Truncate(int64(len(whole))); err != nil {
		return fmt.Errorf("audit log: take away a line that was cut off: %w", err)
	}
	if _, err := l.file.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.size = int64(len(whole))
	if len(whole) == 0 {
		before, err := os.ReadFile(l.older(1))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if whole = before; err != nil || len(before) == 0 {
			return err
		}
	}
	lines := bytes.Split(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	last := lines[len(lines)-1]
	if err := json.Unmarshal(last, &l.last); err != nil || l.last.Hash == "" {
		return fmt.Errorf("audit log %s: its last line is no record, so the chain cannot go on; move the file away to begin another: %w", l.config.Path, errors.Join(err, errNoHash))
	}
	return nil
}

var errNoHash = errors.New("no hash")

func (l *Log) older(n int) string { return fmt.Sprintf("%s.%d", l.config.Path, n) }

// Write adds a record. It waits for nothing: what there is no room for is
// counted, and that is told.
func (l *Log) Write(event string, fields map[string]string) {
	if l == nil {
		return
	}
	r := Record{Time: time.Now().UTC(), Program: l.config.Program, Node: l.config.Node, Event: event, Fields: bounded(fields)}
	select {
	case l.queue <- r:
	default:
		l.lose(1)
	}
}

func (l *Log) lose(records uint64) {
	l.mu.Lock()
	l.lost += records
	l.mu.Unlock()
}

func bounded(fields map[string]string) map[string]string {
	if len(fields) == 0 {
		return nil
	}
	out := make(map[string]string, len(fields))
	for key, text := range fields {
		if text != "" {
			// Other bytes would be read back as something else, which has another hash.
			out[key] = strings.ToValidUTF8(text[:min(len(text), maxText)], "?")
		}
	}
	return out
}

// Run writes until the context ends, and then what still waits.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	defer l.close()
	ticker := time.NewTicker(syncEvery)
	defer ticker.Stop()
	dirty := false
	for {
		select {
		case r := <-l.queue:
			l.append(r, 1)
			dirty = true
			continue
		case <-ticker.C:
		case <-ctx.Done():
			l.drain()
			l.sync()
			return ctx.Err()
		}
		l.tellLost()
		if dirty {
			l.sync()
		}
		dirty = false
	}
}

func (l *Log) close() {
	if l.file != nil {
		_ = l.file.Close()
		_ = l.lock.Close()
	}
}

func (l *Log) drain() {
	for {
		select {
		case r := <-l.queue:
			l.append(r, 1)
		default:
			l.tellLost()
			return
		}
	}
}

func (l *Log) tellLost() {
	l.mu.Lock()
	n := l.lost
	l.lost = 0
	l.mu.Unlock()
	if n > 0 {
		l.append(Record{Time: time.Now().UTC(), Program: l.config.Program, Node: l.config.Node, Event: EventLost, Fields: map[string]string{"records": fmt.Sprint(n)}}, n)
	}
}

func (l *Log) sync() {
	if l.file == nil {
		return
	}
	if err := l.file.Sync(); err != nil {
		l.config.Log.Error("audit log not on the disk", zap.Error(err))
	}
}

// append chains a record to the last one and writes it. What cannot be written
// is as if it had not been: the chain goes on from what was, and so many records
// are lost with it.
func (l *Log) append(r Record, records uint64) {
	r.Sequence, r.Previous = l.last.Sequence+1, l.last.Hash
	hash, err := r.hash()
	r.Hash = hash
	var text []byte
	if err == nil {
		text, err = json.Marshal(r)
	}
	if err == nil && l.file != nil {
		err = l.keep(text)
	}
	if err != nil {
		l.lose(records)
		l.config.Log.Error("audit record not written", zap.String("event", r.Event), zap.Error(err))
		return
	}
	l.last = r
	if l.config.Export != nil {
		l.config.Export(r, text)
	}
}

// keep writes a line to the file.
func (l *Log) keep(text []byte) error {
	if l.size > 0 && l.size+int64(len(text)) > l.config.MaxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if _, err := l.file.WriteAt(append(slices.Clip(text), '\n'), l.size); err != nil {
		return err
	}
	l.size += int64(len(text)) + 1
	return nil
}

// rotate puts the file behind the older ones, of which the oldest goes. Nothing
// moves before there is a file to go on with, and what a failure leaves half done
// the next record finishes.
func (l *Log) rotate() error {
	l.sync()
	name := l.config.Path + ".next"
	next, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err = l.shift(); err == nil {
		err = os.Rename(name, l.config.Path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("audit log: %w", err), next.Close())
	}
	l.config.Log.Info("audit log begins another file", zap.Uint64("records", l.last.Sequence), zap.String("hash", l.last.Hash))
	old := l.file
	l.file, l.size = next, 0
	return old.Close()
}

// shift makes each file one older, down to the first that is missing, unless
// that has happened already.
func (l *Log) shift() error {
	if _, err := os.Lstat(l.config.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	free := 1
	for ; free < l.config.Keep; free++ {
		if _, err := os.Lstat(l.older(free)); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	for n := free; n > 1; n-- {
		if err := os.Rename(l.older(n-1), l.older(n)); err != nil {
			return err
		}
	}
	return os.Rename(l.config.Path, l.older(1))
}
