package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Document is one YAML document that holds an object, not yet decoded.
type Document struct {
	File       string
	Line       int
	APIVersion string
	Kind       string
	Namespace  string
	Name       string

	node  *yaml.Node
	first int // line of the file that the YAML parser counted as its line 1
}

// FromJSON is the document of one object, as an API server sends it.
func FromJSON(data []byte) (*Document, error) {
	docs, err := chunk{data, 1}.parse("")
	if err != nil {
		return nil, err
	}
	if len(docs) != 1 {
		return nil, fmt.Errorf("%d objects, want one", len(docs))
	}
	return docs[0], nil
}

// chunk is the text between two document markers.
type chunk struct {
	text []byte
	line int // of its first line in the file
}

// split cuts a file at its document markers. YAML allows "---" at the start
// of a line nowhere else, so that a document that is no YAML at all does not
// hide those after it.
func split(data []byte) []chunk {
	var out []chunk
	start, startLine, line := 0, 1, 1
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if isMarker(data[pos:end]) && pos > start {
			out = append(out, chunk{data[start:pos], startLine})
			start, startLine = pos, line
		}
		pos = end
	}
	return append(out, chunk{data[start:], startLine})
}

func isMarker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0])))
}

// parse reads one chunk; a List counts as the documents in it. An error
// means that it is not known which objects the chunk is about.
func (c chunk) parse(file string) ([]*Document, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(c.text, &root); err != nil {
		return nil, syntaxError(file, c.line, err)
	}
	if root.Kind == 0 || len(root.Content) == 0 || root.Content[0].Tag == "!!null" {
		return nil, nil // nothing but comments
	}
	return documents(file, c.line, root.Content[0])
}

func documents(file string, first int, n *yaml.Node) ([]*Document, error) {
	d := &Document{File: file, Line: first + n.Line - 1, node: n, first: first}
	if n.Kind != yaml.MappingNode {
		return nil, d.fail("", n, errors.New("want an object with apiVersion, kind and metadata"))
	}
	d.APIVersion, d.Kind = scalar(n, "apiVersion"), scalar(n, "kind")
	if d.APIVersion == "" || d.Kind == "" {
		return nil, d.fail("", n, errors.New("apiVersion and kind are required"))
	}
	if d.APIVersion == "v1" && d.Kind == "List" {
		return d.items()
	}
	metadata := child(n, "metadata")
	if metadata == nil {
		return nil, d.fail("metadata", n, errors.New("metadata.name is required"))
	}
	d.Name, d.Namespace = scalar(metadata, "name"), scalar(metadata, "namespace")
	if problems := validation.IsDNS1123Subdomain(d.Name); len(problems) > 0 {
		return nil, d.fail("metadata.name", metadata, fmt.Errorf("%q: %s", d.Name, problems[0]))
	}
	if problems := validation.IsDNS1123Label(d.Namespace); d.Namespace != "" && len(problems) > 0 {
		return nil, d.fail("metadata.namespace", metadata, fmt.Errorf("%q: %s", d.Namespace, problems[0]))
	}
	return []*Document{d}, nil
}

func (d *Document) items() (out []*Document, err error) {
	list := child(d.node, "items")
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil, d.fail("items", d.node, errors.New("a List has items"))
	}
	var errs []error
	for _, item := range list.Content {
		docs, err := documents(d.File, d.first, item)
		out, errs = append(out, docs...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// child is the value of a key of a mapping; nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalar(n *yaml.Node, key string) string {
	if v := child(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func (d *Document) fail(field string, n *yaml.Node, err error) error {
	return &Error{File: d.File, Line: d.first + n.Line - 1, Field: field, Kind: d.Kind, Err: err}
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)`)

// syntaxError moves the parser's line, which counts from the chunk's start,
// from its text to the Error.
func syntaxError(file string, first int, err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		if line, convErr := strconv.Atoi(m[1]); convErr == nil {
			return &Error{File: file, Line: first + line - 1, Err: errors.New("not YAML: " + m[2])}
		}
	}
	return &Error{File: file, Line: first, Err: fmt.Errorf("not YAML: %w", err)}
}
