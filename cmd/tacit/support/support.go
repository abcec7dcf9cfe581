// Package support packs what somebody who maintains Tacit needs in order to
// find out what is wrong with an installation: an archive of bounded size,
// without secrets, that says itself what it lacks.
//
// What does not belong here: flags, and how proxies are asked (cmd/tacit).
package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/version"
)

// Bounds.
const (
	atOnce  = 4                // parts
	maxPart = 16 << 20         // bytes of one, before compression
	most    = 2 * time.Minute  // for one
	cutMark = "\n[cut here]\n" // where a part is longer
)

// Part is one file of an archive.
type Part struct {
	Name string // its path
	// Read gives its content, as it is. What is longer than a part may be is
	// cut, at its beginning if the end matters more.
	Read func(context.Context) (io.ReadCloser, error)
	// Tail: the end matters more.
	Tail bool
}

// File is what the index says of one part.
type File struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
	// Cut: there was more of it.
	Cut bool `json:"cut,omitempty"`
	// Error is why it is missing.
	Error string `json:"error,omitempty"`
}

// Index is the last file of an archive.
type Index struct {
	Version string    `json:"version"` // of the program that packed it
	Time    time.Time `json:"time"`
	Command string    `json:"command"`
	// Partial: something is missing or cut, as Files say.
	Partial bool   `json:"partial"`
	Files   []File `json:"files"`
}

// Packed is how many parts are in the archive.
func (i *Index) Packed() (count int) {
	for _, file := range i.Files {
		if file.Error == "" {
			count++
		}
	}
	return count
}

// Packer writes archives.
type Packer struct {
	Command  []string // that was run
	MaxBytes int      // of all parts together, before compression
	// Progress is told about each part as it is done, from one goroutine at a
	// time; may be nil.
	Progress func(done, of int, f File)
}

// Pack writes an archive of the parts, begun in their order; one that has no room
// is left out. The error is one of writing, or that there is no part at all: what
// else could not be read is in the index.
func (p *Packer) Pack(ctx context.Context, out io.Writer, parts []Part) (Index, error) {
	now := time.Now().UTC().Truncate(time.Second)
	index := Index{Version: version.String(), Time: now, Command: Command(p.Command), Files: []File{}}
	compressed := gzip.NewWriter(out)
	archive := tar.NewWriter(compressed)
	folder := "tacit-support-" + now.Format("20060102-150405")
	write := func(name string, content []byte) error {
		header := &tar.Header{Name: path.Join(folder, name), Mode: 0o600, Size: int64(len(content)), ModTime: now, Format: tar.FormatPAX}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	var (
		mu    sync.Mutex
		group errgroup.Group
		left  = p.MaxBytes
	)
	group.SetLimit(atOnce)
	for _, part := range parts {
		group.Go(func() error {
			content, file := part.read(ctx)
			mu.Lock()
			defer mu.Unlock()
			if len(content) > left {
				content = nil
				file.Error = fmt.Sprintf("left out: the archive would be larger than %d bytes before compression (--max-size)", p.MaxBytes)
			}
			left -= len(content)
			file.Bytes = len(content)
			index.Files = append(index.Files, file)
			index.Partial = index.Partial || file.Error != "" || file.Cut
			if p.Progress != nil {
				p.Progress(len(index.Files), len(parts), file)
			}
			if file.Error != "" {
				return nil
			}
			return write(file.Name, content)
		})
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return index, ctx.Err()
	}
	if err == nil && len(parts) > 0 && index.Packed() == 0 {
		return index, fmt.Errorf("nothing is packed: %s: %s", index.Files[0].Name, index.Files[0].Error)
	}
	text, problem := json.MarshalIndent(index, "", "  ")
	err = errors.Join(err, problem)
	if err == nil {
		err = errors.Join(write("index.json", append(text, '\n')), archive.Close(), compressed.Close())
	}
	if err != nil {
		return index, fmt.Errorf("write the archive: %w", err)
	}
	return index, nil
}

// read gives the content without secrets and within bounds.
func (p *Part) read(ctx context.Context) ([]byte, File) {
	file := File{Name: p.Name}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	body, err := p.Read(ctx)
	if err != nil {
		file.Error = string(Text([]byte(err.Error())))
		return nil, file
	}
	defer body.Close()
	text, cut, err := bounded(body, p.Tail)
	if err != nil {
		file.Error = string(Text([]byte(err.Error())))
		return nil, file
	}
	if begin := bytes.TrimSpace(text[:min(len(text), 64)]); cut && !p.Tail && len(begin) > 0 && (begin[0] == '{' || begin[0] == '[') {
		// Its members can no longer be told apart, so secrets in it would stay.
		file.Error = fmt.Sprintf("left out: it is JSON and larger than %d bytes", maxPart)
		return nil, file
	}
	_, file.Cut = body.(shortened)
	file.Cut = file.Cut || cut
	text = Document(text)
	switch {
	case cut && p.Tail:
		text = append([]byte(cutMark), text...)
	case cut:
		text = append(text, cutMark...)
	}
	return text, file
}

// shortened is a content that is whole as JSON, though there was more to say.
type shortened struct{ io.ReadCloser }

// bounded reads the first maxPart bytes, or the last.
func bounded(in io.Reader, tail bool) (text []byte, cut bool, err error) {
	text, err = io.ReadAll(io.LimitReader(in, maxPart+1))
	if err != nil || len(text) <= maxPart {
		return text, false, err
	}
	if !tail {
		return text[:maxPart], true, nil
	}
	for chunk := make([]byte, 1<<20); err == nil; {
		var n int
		n, err = io.ReadFull(in, chunk)
		text = append(text, chunk[:n]...)
		if len(text) > 2*maxPart {
			text = append(text[:0], text[len(text)-maxPart:]...)
		}
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, false, err
	}
	return text[len(text)-maxPart:], true, nil
}
