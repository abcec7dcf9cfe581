// Package manifests reads a directory of Kubernetes manifests and watches it.
//
// It finds the files, splits them into documents, decodes those of the kinds
// that the caller asks for, says file, line and field of what is wrong, and
// keeps the last good version of an object whose document no longer decodes.
// What does not belong here: what an object means, beyond its name.
package manifests

import (
	"crypto/sha1"
	"fmt"
	"strings"
)

// Kind is one kind of object that the caller wants.
type Kind struct {
	// APIVersions are those accepted, such as "v1" or
	// "security.istio.io/v1". Documents that differ in the version alone
	// are the same object.
	APIVersions []string
	Kind        string
	// Cluster says that objects of this kind have no namespace.
	Cluster bool
	// Decode makes the Go object. [Strict] is the usual one.
	Decode func(*Document) (any, error)
}

// Key names an object.
type Key struct {
	Group     string // of the API; "" is the core group
	Kind      string
	Namespace string // "" for kinds of the cluster; "default" where the document has none
	Name      string
}

// String is "Kind namespace/name".
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + " " + k.Name
	}
	return k.Kind + " " + k.Namespace + "/" + k.Name
}

// Object is a decoded document. Value stays the same pointer as long as its
// file does not change, and must not be written to.
type Object struct {
	Key
	File  string
	Line  int // of the document's first line with content, from 1
	Value any
}

// Error is what is wrong with a part of a file.
type Error struct {
	File  string
	Line  int    // from 1; 0 if it is about the whole file
	Field string // such as "spec.rules[0].from"; empty if it is about the whole document
	Kind  string // of the object that it is about; empty if that is not known
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Field != "" {
		b.WriteString(": " + e.Field)
	}
	return b.String() + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// PodUID is the UID of a pod: the manifest's own, or, as manifests written by
// hand have none, one derived from the pod's name (in the form of RFC 9562's
// version 5), so that all who read the same manifests agree on it.
func PodUID(uid, namespace, name string) string {
	if uid != "" {
		return uid
	}
	h := sha1.Sum([]byte("tacit.mesh/pod/" + namespace + "/" + name))
	h[6] = h[6]&0x0f | 0x50
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
