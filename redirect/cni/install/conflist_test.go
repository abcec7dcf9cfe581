package install

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

const entry = `{"type":"tacit-cni","socket":"/run/s","skipNamespaces":["kube-system"],"timeoutSeconds":20}`

func TestAddAndRemove(t *testing.T) {
	for name, tt := range map[string]struct{ before, after string }{
		"indented": {
			"{\n  \"cniVersion\": \"1.0.0\", \"name\":\"n\",\n  \"plugins\": [\n    {\"type\": \"bridge\"},\n    {\n      \"type\": \"portmap\"\n    }\n  ]\n}\n",
			"{\n  \"cniVersion\": \"1.0.0\", \"name\":\"n\",\n  \"plugins\": [\n    {\"type\": \"bridge\"},\n    {\n      \"type\": \"portmap\"\n    },\n    " + entry + "\n  ]\n}\n",
		},
		"compact": {`{"plugins":[{"type":"ptp","plugins":[]}],"name":"n"}`, `{"plugins":[{"type":"ptp","plugins":[]},` + entry + `],"name":"n"}`},
	} {
		t.Run(name, func(t *testing.T) {
			added, err := add([]byte(tt.before), []byte(entry))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.after, string(added)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			again, err := add(added, []byte(entry))
			if err != nil || string(again) != tt.after {
				t.Errorf("added once more it is %s (%v)", again, err)
			}
			removed, err := remove(added)
			if err != nil || string(removed) != tt.before {
				t.Errorf("removed it is %s (%v), want %s", removed, err, tt.before)
			}
			if untouched, err := remove(removed); err != nil || string(untouched) != tt.before {
				t.Errorf("removed once more it is %s (%v)", untouched, err)
			}
		})
	}
}

// What an older agent or somebody else made of the entry ends as exactly one,
// at the end.
func TestAddReplaces(t *testing.T) {
	const want = `{"plugins":[{"type":"a"},{"type":"b"},` + entry + `]}`
	for _, before := range []string{
		`{"plugins":[{"type":"a"},{"type":"tacit-cni","old":true},{"type":"b"}]}`,
		`{"plugins":[{"type":"tacit-cni"},{"type":"a"},{"type":"b"},{"type":"tacit-cni"}]}`,
		`{"plugins":[{"type":"tacit-cni"},{"type":"tacit-cni"},{"type":"a"},{"type":"tacit-cni"},{"type":"b"}]}`,
		`{"plugins":[{"type":"a"},{"type":"b"},` + entry + `,` + entry + `]}`,
	} {
		got, err := add([]byte(before), []byte(entry))
		if err != nil || string(got) != want {
			t.Errorf("of %s it makes %s (%v)", before, got, err)
		}
	}
}

func TestBadLists(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "not JSON",
		"{\"plugins\": [":                       "not JSON",
		"[]":                                    "not a JSON object",
		"{}":                                    "no field \"plugins\"",
		`{"plugins":{}}`:                        "not a list",
		`{"plugins":[]}`:                        "at least one plugin",
		`{"plugins":["x"]}`:                     "plugin 1 of its list",
		`{"plugins":[{}],"plugins":[{}]}`:       "two fields",
		`{"plugins":[{"type":"tacit-cni"}]}`:    "its only plugin is tacit-cni",
		`{"plugins":[{"type":"a"}]} {"more":1}`: "not JSON",
	} {
		if got, err := add([]byte(text), []byte(entry)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %s, %v, want an error with %q", text, got, err, want)
		}
	}
}

// The list of a single plugin is one that runtimes read.
func TestList(t *testing.T) {
	got, err := list([]byte("{\n \"cniVersion\": \"0.4.0\", \"name\": \"n\", \"type\": \"bridge\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err = add(got, []byte(entry)); err != nil {
		t.Fatal(err)
	}
	read, err := libcni.NetworkConfFromBytes(got)
	if err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if read.Name != "n" || read.CNIVersion != "0.4.0" || len(read.Plugins) != 2 || read.Plugins[1].Network.Type != "tacit-cni" {
		t.Errorf("it reads as %+v", read)
	}
	for _, bad := range []string{"", "{}", `{"type":"tacit-cni"}`} {
		if _, err := list([]byte(bad)); err == nil {
			t.Errorf("%q became a list", bad)
		}
	}
}

// Whatever others write, what is added is valid and what is removed leaves
// their bytes as they were.
func FuzzAdd(f *testing.F) {
	f.Add(`{"plugins": [ {"type":"a"} , {"type":"b"}]}`)
	f.Add(`{"plugins":[{"type":"tacit-cni"},{"type":"a"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		added, err := add([]byte(text), []byte(entry))
		if err != nil {
			return
		}
		if !json.Valid(added) {
			t.Fatalf("not JSON: %s", added)
		}
		removed, err := remove(added)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, `tacit-cni`) && string(removed) != text {
			t.Fatalf("left of %s: %s", text, removed)
		}
	})
}
