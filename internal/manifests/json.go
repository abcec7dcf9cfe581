package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxJSON bounds what one document may grow to: aliases can make a small one
// enormous.
const (
	maxJSON  = 4 << 20
	maxDepth = 100
)

// rendering is a document, or a part of it, as JSON on a single line.
type rendering struct {
	json  []byte
	marks []mark     // where each key and value begins; only when asked for
	skip  *yaml.Node // rendered as null
}

// mark ties a position in the JSON to one in the YAML.
type mark struct {
	offset int
	node   *yaml.Node
	path   string
}

// render writes the field of a document as JSON, the whole document if field
// is empty, and null if there is no such field.
func (d *Document) render(field string, marks bool, skip *yaml.Node) (*rendering, error) {
	r, n := &rendering{skip: skip}, d.node
	if marks {
		r.marks = make([]mark, 0, 64)
	}
	if field != "" {
		if n = child(d.node, field); n == nil {
			r.json = []byte("null")
			return r, nil
		}
	}
	if bad, err := r.add(n, field, 0); err != nil {
		return nil, d.fail(field, bad, err)
	}
	return r, nil
}

// add appends one node; on error it returns the node at fault.
func (r *rendering) add(n *yaml.Node, path string, depth int) (*yaml.Node, error) {
	if depth > maxDepth || len(r.json) > maxJSON {
		return n, fmt.Errorf("deeper than %d levels or larger than %d bytes", maxDepth, maxJSON)
	}
	r.mark(n, path)
	switch {
	case n == r.skip:
		r.json = append(r.json, "null"...)
		return nil, nil
	case n.Kind == yaml.AliasNode:
		return r.add(n.Alias, path, depth+1)
	case n.Kind == yaml.MappingNode:
		return r.addMapping(n, path, depth)
	case n.Kind == yaml.SequenceNode:
		r.json = append(r.json, '[')
		for i, item := range n.Content {
			if i > 0 {
				r.json = append(r.json, ',')
			}
			if bad, err := r.add(item, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return bad, err
			}
		}
		r.json = append(r.json, ']')
		return nil, nil
	}
	text, err := scalarJSON(n)
	r.json = append(r.json, text...)
	return n, err
}

func (r *rendering) addMapping(n *yaml.Node, path string, depth int) (*yaml.Node, error) {
	r.json = append(r.json, '{')
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
			return key, errors.New("keys must be plain strings; merging with << is not supported")
		}
		if i > 0 {
			r.json = append(r.json, ',')
		}
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		r.mark(key, at)
		name, err := json.Marshal(key.Value)
		if err != nil {
			return key, err
		}
		r.json = append(append(r.json, name...), ':')
		if bad, err := r.add(value, at, depth+1); err != nil {
			return bad, err
		}
	}
	r.json = append(r.json, '}')
	return nil, nil
}

func (r *rendering) mark(n *yaml.Node, path string) {
	if r.marks != nil {
		r.marks = append(r.marks, mark{len(r.json), n, path})
	}
}

// scalarJSON keeps what YAML resolves to a number, a boolean or null, and
// makes everything else, dates too, a string, as Kubernetes does.
func scalarJSON(n *yaml.Node) ([]byte, error) {
	var v any = n.Value
	switch n.ShortTag() {
	case "!!null", "!!bool", "!!int", "!!float":
		if err := n.Decode(&v); err != nil {
			return nil, err
		}
	}
	if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
		return nil, fmt.Errorf("%s is no number in JSON", n.Value)
	}
	return json.Marshal(v)
}
