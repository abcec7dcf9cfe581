package manifests

import (
	stdjson "encoding/json"
	"errors"
	"regexp"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/json"
)

// Strict decodes into the Go type of a Kubernetes kind. Unknown and repeated
// fields are errors.
func Strict[T any](d *Document) (any, error) {
	object := new(T)
	if err := d.Decode("", object); err != nil {
		return nil, err
	}
	return object, nil
}

// Decode decodes one field of the document, all of it if field is empty, as
// Kubernetes would, but with unknown and repeated fields as errors. A field
// that is absent leaves the target alone.
func (d *Document) Decode(field string, into any) error {
	return d.decode(field, func(text []byte) []error {
		strict, err := json.UnmarshalStrict(text, into)
		if err != nil {
			return []error{err}
		}
		return strict
	})
}

// DecodeProto decodes one field of the document by the JSON mapping of
// protobuf, with unknown and repeated fields as errors. A field that is
// absent leaves the target empty.
func (d *Document) DecodeProto(field string, into proto.Message) error {
	return d.decode(field, func(text []byte) []error {
		if string(text) == "null" {
			return nil
		}
		if err := protojson.Unmarshal(text, into); err != nil {
			return []error{err}
		}
		return nil
	})
}

func (d *Document) decode(field string, unmarshal func([]byte) []error) error {
	r, err := d.render(field, false, nil)
	if err != nil {
		return err
	}
	errs := unmarshal(r.json)
	if len(errs) == 0 {
		return nil
	}
	if r, err = d.render(field, true, nil); err != nil {
		return err
	}
	located := make([]error, 0, len(errs))
	for _, err := range errs {
		at, err := r.locate(err)
		if at == nil {
			at = d.blame(field, r, unmarshal)
		}
		located = append(located, d.fail(at.path, at.node, err))
	}
	return errors.Join(located...)
}

var (
	fieldInText    = regexp.MustCompile(`^((?:unknown|duplicate) field) "(.*)"$`)
	positionInText = regexp.MustCompile(`^proto:.\(line (\d+):(\d+)\): (.*)`)
)

// locate finds the place that a decoder's error is about; nil if it does not
// say. The error comes back without what the place says already.
func (r *rendering) locate(err error) (*mark, error) {
	var typeError *stdjson.UnmarshalTypeError
	if errors.As(err, &typeError) {
		return r.before(int(typeError.Offset)), errors.New("cannot be a " + typeError.Value + ", want " + typeError.Type.String())
	}
	if m := fieldInText.FindStringSubmatch(err.Error()); m != nil {
		for i := len(r.marks) - 1; i >= 0; i-- {
			if r.marks[i].path == m[2] {
				return &r.marks[i], errors.New(m[1])
			}
		}
	}
	if m := positionInText.FindStringSubmatch(err.Error()); m != nil && m[1] == "1" {
		if column, convErr := strconv.Atoi(m[2]); convErr == nil {
			return r.before(byteOffset(r.json, column-1) + 1), errors.New(m[3])
		}
	}
	return nil, err
}

// before is the last mark ahead of a position.
func (r *rendering) before(offset int) *mark {
	found := &r.marks[0]
	for i := range r.marks {
		if r.marks[i].offset >= offset {
			break
		}
		found = &r.marks[i]
	}
	return found
}

func byteOffset(text []byte, runes int) int {
	offset := 0
	for ; runes > 0 && offset < len(text); runes-- {
		_, size := utf8.DecodeRune(text[offset:])
		offset += size
	}
	return offset
}

// maxBlame bounds how many values are tried.
const maxBlame = 1000

// blame finds the value behind an error that tells no position (those of
// quantities and times): the first one without which the error is another.
func (d *Document) blame(field string, r *rendering, unmarshal func([]byte) []error) *mark {
	was := errors.Join(unmarshal(r.json)...)
	for i := 1; i < len(r.marks) && i < maxBlame; i++ {
		if r.marks[i].node.Kind != yaml.ScalarNode {
			continue
		}
		without, err := d.render(field, false, r.marks[i].node)
		if err != nil {
			break
		}
		if now := errors.Join(unmarshal(without.json)...); now == nil || now.Error() != was.Error() {
			return &r.marks[i]
		}
	}
	return &r.marks[0]
}
