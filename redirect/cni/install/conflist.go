package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/tacit-mesh/tacit/redirect/cni"
)

// A network configuration belongs to the cluster's CNI. Only our entry is
// written into its text and cut out of it again; every other byte stays.

// element is a plugin in a configuration's list: where it stands in the text.
type element struct {
	start, end int
	Type       string `json:"type"`
}

// elements finds the plugins of a configuration list.
func elements(text []byte) ([]element, error) {
	if !json.Valid(text) {
		var ignored any
		return nil, fmt.Errorf("it is not JSON: %w", json.Unmarshal(text, &ignored))
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	var found []element
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		if key != "plugins" {
			var skipped json.RawMessage
			if err := decoder.Decode(&skipped); err != nil {
				return nil, err
			}
			continue
		}
		if found != nil {
			return nil, errors.New(`it has two fields "plugins"`)
		}
		if found, err = elementsOf(decoder); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, errors.New(`it has no field "plugins" with at least one plugin`)
	}
	return found, nil
}

func elementsOf(decoder *json.Decoder) ([]element, error) {
	if open, err := decoder.Token(); err != nil || open != json.Delim('[') {
		return nil, errors.New(`its field "plugins" is not a list`)
	}
	found := []element{}
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return nil, err
		}
		end := int(decoder.InputOffset())
		e := element{start: end - len(raw), end: end}
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, fmt.Errorf("plugin %d of its list: %w", len(found)+1, err)
		}
		found = append(found, e)
	}
	_, err := decoder.Token()
	return found, err
}

// add puts the entry at the end of the list, unless exactly that is there.
func add(text []byte, entry []byte) ([]byte, error) {
	all, err := elements(text)
	if err != nil {
		return nil, err
	}
	if last := all[len(all)-1]; count(all) == 1 && last.Type == cni.Type && sameJSON(text[last.start:last.end], entry) {
		return text, nil
	}
	if text, err = remove(text); err != nil {
		return nil, err
	}
	if all, err = elements(text); err != nil {
		return nil, err
	}
	last := all[len(all)-1]
	lead := text[:last.start] // the blanks before it
	lead = lead[len(strings.TrimRight(string(lead), " \t\r\n")):]
	return bytes.Join([][]byte{text[:last.end], []byte(","), lead, entry, text[last.end:]}, nil), nil
}

// remove cuts our entries out.
func remove(text []byte) ([]byte, error) {
	all, err := elements(text)
	if err != nil {
		return nil, err
	}
	if count(all) == len(all) {
		return nil, fmt.Errorf("its only plugin is %s", cni.Type)
	}
	for i := len(all) - 1; i >= 0; i-- {
		switch {
		case all[i].Type != cni.Type:
		case i > 0:
			text = cut(text, all[i-1].end, all[i].end)
		default:
			text = cut(text, all[0].start, all[1].start)
			return remove(text) // those after it have moved
		}
	}
	return text, nil
}

func cut(text []byte, from, to int) []byte {
	return append(bytes.Clone(text[:from]), text[to:]...)
}

func count(all []element) (n int) {
	for _, e := range all {
		if e.Type == cni.Type {
			n++
		}
	}
	return n
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// list makes a configuration list of a single plugin's configuration.
func list(single []byte) ([]byte, error) {
	var head struct {
		Version string `json:"cniVersion,omitempty"`
		Name    string `json:"name"`
		Type    string `json:"type"`
	}
	if err := json.Unmarshal(single, &head); err != nil {
		return nil, fmt.Errorf("it is not JSON of a plugin: %w", err)
	}
	if head.Type == "" || head.Type == cni.Type {
		return nil, errors.New("it names no type of plugin")
	}
	fields, err := json.Marshal(map[string]string{"name": head.Name, "cniVersion": head.Version})
	if head.Version == "" {
		fields, err = json.Marshal(map[string]string{"name": head.Name})
	}
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s,\n\"plugins\": [\n%s\n]}\n", fields[:len(fields)-1], bytes.TrimSpace(single)), nil
}
