package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxLine bounds a line that is read.
const maxLine = 1 << 20

// Verified is what was found of a chain in order.
type Verified struct {
	Records uint64
	// First and Last are the ends of the chain; what is before First was in a
	// file that is not there.
	First, Last Record
	Expected    bool // some record has the hash that was expected
}

// Verifier follows a chain through the files that it was written to, the oldest
// first.
type Verifier struct {
	Expect   string // a hash that some record is to have; empty for none
	verified Verified
}

// Verified is what was found so far.
func (v *Verifier) Verified() Verified { return v.verified }

// Read goes on with the chain in one file. The error names the first line that
// breaks it.
func (v *Verifier) Read(name string, from io.Reader) error {
	in := bufio.NewScanner(from)
	in.Buffer(nil, maxLine)
	n := 0
	for in.Scan() {
		n++
		if err := v.line(in.Bytes()); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	return nil
}

func (v *Verifier) line(text []byte) error {
	var r Record
	in := json.NewDecoder(bytes.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(&r); err != nil {
		return fmt.Errorf("no record of an audit log, or one that was cut off: %w", err)
	}
	if again, err := json.Marshal(r); err != nil || !bytes.Equal(again, text) {
		return errors.New("the record is not written as it was: something in the line was changed")
	}
	hash, err := r.hash()
	last := &v.verified.Last
	switch {
	case err != nil:
		return err
	case hash != r.Hash:
		return fmt.Errorf("record %d does not have the hash that it says: it was changed", r.Sequence)
	case v.verified.Records == 0:
		if (r.Sequence == 1) != (r.Previous == "") {
			return fmt.Errorf("record %d says that it follows %q: it was changed", r.Sequence, r.Previous)
		}
		v.verified.First = r
	case r.Sequence != last.Sequence+1:
		return fmt.Errorf("record %d follows record %d: what was in between is missing, or the files are not in order, the oldest first", r.Sequence, last.Sequence)
	case r.Previous != last.Hash:
		return fmt.Errorf("record %d does not follow the record %d before it, but another one: that was put in its place", r.Sequence, last.Sequence)
	}
	*last = r
	v.verified.Expected = v.verified.Expected || r.Hash == v.Expect
	v.verified.Records++
	return nil
}
