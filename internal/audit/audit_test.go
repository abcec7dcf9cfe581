package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// written is what is in a log once a program has written so many records to it
// and ended.
func written(t *testing.T, c Config, records int) {
	t.Helper()
	c.Program, c.Log = "test", zaptest.NewLogger(t)
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for n := range records {
		l.Write(EventDenied, map[string]string{"n": fmt.Sprint(n), "empty": ""})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func verify(t *testing.T, texts ...string) (Verified, error) {
	t.Helper()
	var v Verifier
	for i, text := range texts {
		if err := v.Read(fmt.Sprint("file", i), strings.NewReader(text)); err != nil {
			return v.Verified(), err
		}
	}
	return v.Verified(), nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestChainGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	written(t, Config{Path: path}, 3)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	// A crash in the middle of a line.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"sequence":5,"ti`)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	written(t, Config{Path: path}, 2)
	v, err := verify(t, read(t, path))
	if err != nil || v.Records != 7 || v.First.Sequence != 1 || v.Last.Sequence != 7 || v.Last.Fields["n"] != "1" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	c := Config{Path: path, MaxSize: 1000, Keep: 2}
	written(t, c, 20)
	written(t, c, 20)
	files, err := filepath.Glob(path + "*")
	if err != nil || !slices.Equal(files, []string{path, path + ".1", path + ".2", path + ".lock"}) {
		t.Fatalf("files: %v, %v", files, err)
	}
	for _, f := range files[:3] {
		if size := len(read(t, f)); size > 1000 {
			t.Errorf("%s has %d bytes", f, size)
		}
	}
	v, err := verify(t, read(t, path+".2"), read(t, path+".1"), read(t, path))
	if err != nil || v.First.Sequence == 1 || v.Last.Sequence != 42 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := verify(t, read(t, path+".2"), read(t, path)); err == nil {
		t.Error("a file that is missing is not noticed")
	}
}

func TestChangesAreFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	written(t, Config{Path: path}, 5)
	lines := strings.SplitAfter(strings.TrimSuffix(read(t, path), "\n"), "\n")
	other := filepath.Join(t.TempDir(), "other.jsonl")
	written(t, Config{Path: other}, 5)
	others := strings.SplitAfter(strings.TrimSuffix(read(t, other), "\n"), "\n")
	edit := func(change func([]string) []string) string { return strings.Join(change(slices.Clone(lines)), "") }
	for name, test := range map[string]struct{ text, want string }{
		"a value":     {edit(func(l []string) []string { l[2] = strings.Replace(l[2], `"n":"1"`, `"n":"9"`, 1); return l }), "file0:3: record 3 does not have the hash"},
		"a time":      {edit(func(l []string) []string { l[0] = strings.Replace(l[0], `"time":"2`, `"time":"3`, 1); return l }), "file0:1: record 1"},
		"the last":    {edit(func(l []string) []string { l[5] = strings.Replace(l[5], `"n":"4"`, `"n":"9"`, 1); return l }), "file0:6: record 6"},
		"missing":     {edit(func(l []string) []string { return slices.Delete(l, 2, 3) }), "file0:3: record 4 follows record 2"},
		"twice":       {edit(func(l []string) []string { return slices.Insert(l, 2, l[2]) }), "file0:4: record 3 follows record 3"},
		"swapped":     {edit(func(l []string) []string { l[2], l[3] = l[3], l[2]; return l }), "file0:3: record 4 follows record 2"},
		"replaced":    {edit(func(l []string) []string { l[2] = others[2]; return l }), "file0:3: record 3 does not follow"},
		"a new field": {edit(func(l []string) []string { l[2] = strings.Replace(l[2], "{", `{"more":1,`, 1); return l }), "file0:3: no record"},
		"spaces":      {edit(func(l []string) []string { l[2] = strings.Replace(l[2], ",", ", ", 1); return l }), "file0:3: the record is not written as it was"},
		"cut off":     {edit(func(l []string) []string { l[5] = l[5][:20]; return l }), "file0:6: no record"},
	} {
		if _, err := verify(t, test.text); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A program that takes over from another writes beside it until that has ended.
func TestTwoWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	first, err := Open(Config{Path: path, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	written(t, Config{Path: path}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = first.Run(ctx)
	written(t, Config{Path: path}, 1)
	for name, want := range map[string]uint64{path: 3, path + "-2": 2} {
		if v, err := verify(t, read(t, name)); err != nil || v.Records != want {
			t.Errorf("%s: %d records, want %d; %v", name, v.Records, want, err)
		}
	}
}

// A file that cannot be begun keeps records out for as long as that lasts, and
// costs none that were there.
func TestRotationThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(Config{Path: path, MaxSize: 1000, Keep: 5, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	add := func(records int) {
		for range records {
			l.append(Record{Event: EventDenied}, 1)
		}
	}
	add(4)
	withoutFiles(t, func() { add(10) })
	lost := l.lost
	if lost == 0 {
		t.Fatal("every record was written: the file was never full")
	}
	l.tellLost()
	// Only half of it was done: the file is behind the others, and none in its place.
	if err := l.shift(); err != nil {
		t.Fatal(err)
	}
	add(4)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
	var texts []string
	for n := l.config.Keep; n > 0; n-- {
		if text, err := os.ReadFile(l.older(n)); err == nil {
			texts = append(texts, string(text))
		}
	}
	v, err := verify(t, append(texts, read(t, path))...)
	if err != nil || v.First.Sequence != 1 || v.Records != 4+10-lost+1+4+1 {
		t.Errorf("%+v, %v; %d were lost", v, err, lost)
	}
}

// withoutFiles runs while this process can open no file.
func withoutFiles(t *testing.T, run func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	run()
}

// Callers choose some of the texts, such as a path of HTTP.
func TestTextThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(Config{Path: path, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	l.Write(EventDenied, map[string]string{"bytes": "a\xffb", "cut": strings.Repeat("a", maxText-1) + "\u00fc"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
	v, err := verify(t, read(t, path))
	if err != nil || v.Last.Fields["bytes"] != "a?b" || !strings.HasSuffix(v.Last.Fields["cut"], "a?") {
		t.Errorf("%+v, %v", v, err)
	}
}

// How many were lost is told once that can be written.
func TestLostIsToldLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(Config{Path: path, MaxSize: 100, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	l.append(Record{Event: EventDenied}, 1) // it fills a file
	l.lose(7)
	withoutFiles(t, l.tellLost)
	if l.lost != 7 {
		t.Errorf("%d are to be told, want 7", l.lost)
	}
	l.tellLost()
	if l.lost != 0 || l.last.Event != EventLost || l.last.Fields["records"] != "7" {
		t.Errorf("%d are to be told; the last record is %+v", l.lost, l.last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Run(ctx)
}

// What comes faster than it is written is counted, waits for nobody, and shows.
func TestLostIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	written(t, Config{Path: path}, queued+9) // one place is taken by the start
	text := read(t, path)
	if v, err := verify(t, text); err != nil || v.Records != queued+1 {
		t.Errorf("%d records, %v", v.Records, err)
	}
	if !bytes.Contains([]byte(text), []byte(`"event":"lost","fields":{"records":"10"}`)) {
		t.Error("that 10 were lost is not told")
	}
}

func TestNothingIsWrittenByNone(t *testing.T) {
	var l *Log
	l.Write(EventDenied, nil)
	if err := l.Run(t.Context()); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("a file of somebody else: %v", err)
	}
}
