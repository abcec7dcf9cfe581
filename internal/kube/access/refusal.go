package access

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// maxRefusal is how much is read of an answer that refuses something, in bytes.
const maxRefusal = 64 << 10

// explaining has refusals say what to change: every caller's errors do then,
// whatever it asked for.
type explaining struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (e explaining) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := e.next.RoundTrip(request)
	if err != nil || response.StatusCode != http.StatusForbidden {
		return response, err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	_ = response.Body.Close() // it was read as far as it is wanted
	if err != nil {
		return nil, fmt.Errorf("read why the Kubernetes API refuses: %w", err)
	}
	if status, ok := parseStatus(text); ok {
		if remedy := remedy(status.Message); remedy != "" {
			status.Message += ": " + remedy
			if text, err = json.Marshal(status); err != nil {
				return nil, fmt.Errorf("say why the Kubernetes API refuses: %w", err)
			}
			response.Header.Set("Content-Type", runtime.ContentTypeJSON)
		}
	}
	response.Body, response.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	response.Header.Del("Content-Length")
	return response, nil
}

// parseStatus reads a refusal in whichever form the client has asked for.
func parseStatus(text []byte) (status metav1.Status, ok bool) {
	if enveloped, isProtobuf := bytes.CutPrefix(text, []byte("k8s\x00")); isProtobuf {
		var envelope runtime.Unknown
		if envelope.Unmarshal(enveloped) != nil || status.Unmarshal(envelope.Raw) != nil {
			return status, false
		}
		status.Kind, status.APIVersion = envelope.Kind, envelope.APIVersion
		return status, true
	}
	return status, json.Unmarshal(text, &status) == nil && status.Kind == "Status"
}

// lack is how RBAC says that nothing grants something.
var lack = regexp.MustCompile(`User "system:serviceaccount:[^:"]+:([^:"]+)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)"`)

// remedy says how to grant what a message says that nothing does; "" where it
// says something else, as admission does, which no role changes.
func remedy(message string) string {
	found := lack.FindStringSubmatch(message)
	if found == nil {
		return ""
	}
	account, verb, resource, group := found[1], found[2], found[3], found[4]
	return fmt.Sprintf(`grant it by a rule {apiGroups: [%q], resources: [%s], verbs: [%s]} in the ClusterRole or Role %s; the chart has all of them, so tacit upgrade brings it, too`,
		group, resource, verb, account)
}
