package access

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// Refusals say which rule would grant what was asked for, in whichever form they
// come; everything else arrives as it was.
func TestRefusalsSayWhatToGrant(t *testing.T) {
	const lacks = `pods "a" is forbidden: User "system:serviceaccount:tacit-system:tacit-agent" cannot patch resource "pods/status" in API group "" in the namespace "shop"`
	for name, tt := range map[string]struct {
		code    int
		message string
		want    string // at its end
	}{
		"nothing grants it": {http.StatusForbidden, lacks, `: grant it by a rule {apiGroups: [""], resources: [pods/status], verbs: [patch]} in the ClusterRole or Role tacit-agent; the chart has all of them, so tacit upgrade brings it, too`},
		"of another group": {
			http.StatusForbidden, `User "system:serviceaccount:mesh:tacitd" cannot watch resource "nodes" in API group "a.b" at the cluster scope`,
			`{apiGroups: ["a.b"], resources: [nodes], verbs: [watch]} in the ClusterRole or Role tacitd; the chart has all of them, so tacit upgrade brings it, too`,
		},
		"admission refuses it": {http.StatusForbidden, "an agent changes no label", "an agent changes no label"},
		"it is a person":       {http.StatusForbidden, `User "jane" cannot list resource "pods" in API group ""`, `User "jane" cannot list resource "pods" in API group ""`},
		"no refusal":           {http.StatusNotFound, lacks, lacks},
	} {
		for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
			t.Run(name+" in "+contentType, func(t *testing.T) {
				status := &metav1.Status{
					TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
					Status:   metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: int32(tt.code), Message: tt.message,
				}
				server := httptest.NewServer(answer(t, tt.code, contentType, status))
				defer server.Close()
				err := clientOf(t, server.URL, contentType).Get().Resource("pods").Name("a").Do(t.Context()).Error()
				if got := apierrors.IsForbidden(err); !got {
					t.Errorf("%v is no refusal any more", err)
				}
				if err == nil || !strings.HasPrefix(err.Error(), tt.message) || !strings.HasSuffix(err.Error(), tt.want) {
					t.Errorf("got %v, want it to begin with %q and end with %q", err, tt.message, tt.want)
				}
			})
		}
	}
}

// What is no status, as of a proxy in between, arrives as it was.
func TestOtherRefusals(t *testing.T) {
	for _, text := range []string{"", "no", "k8s\x00\xff", `{"kind": "Pod"}`, strings.Repeat("x", maxRefusal)} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(text)) // to a test
		}))
		got, err := clientOf(t, server.URL, runtime.ContentTypeJSON).Get().AbsPath("/").DoRaw(t.Context())
		if string(got) != text || !apierrors.IsForbidden(err) {
			t.Errorf("%.20q arrives as %.20q, error %v", text, got, err)
		}
		server.Close()
	}
}

func kinds(t *testing.T) serializer.CodecFactory {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return serializer.NewCodecFactory(scheme)
}

func answer(t *testing.T, code int, contentType string, status *metav1.Status) http.Handler {
	t.Helper()
	text, err := json.Marshal(status)
	if contentType == runtime.ContentTypeProtobuf {
		info, _ := runtime.SerializerInfoForMediaType(kinds(t).SupportedMediaTypes(), contentType)
		text, err = runtime.Encode(info.Serializer, status)
	}
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = w.Write(text) // to a test
	})
}

// clientOf is as the programs' own, of a server that asks nobody who they are.
func clientOf(t *testing.T, address, contentType string) *rest.RESTClient {
	t.Helper()
	config := &rest.Config{Host: address}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return explaining{next} })
	config.GroupVersion, config.APIPath = &corev1.SchemeGroupVersion, "/api"
	config.NegotiatedSerializer, config.ContentType = kinds(t).WithoutConversion(), contentType
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
