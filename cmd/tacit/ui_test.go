package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	authorization "k8s.io/api/authorization/v1"
	csr "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	kube "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/identity/person"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/sight/page"
	"github.com/tacit-mesh/tacit/xds/model"
)

type anybody struct{}

func (anybody) Challenge() (string, error) { return "", nil }

func (anybody) Open(context.Context, page.Proof) (page.Viewer, error) { return anybody{}, nil }

func (anybody) Sees(context.Context, string) bool { return true }

func mapOf(door page.Door) http.Handler {
	mesh := model.NewSnapshot()
	return (&page.Server{Hour: hour.New(), Mesh: func() *model.Snapshot { return mesh }, Silent: func(time.Time) []string { return nil }, Door: door}).Handler()
}

// lead runs the command until the test ends, and returns the address it prints.
func lead(t *testing.T, u *ui) string {
	t.Helper()
	cmd := uiCommand()
	ctx, cancel := context.WithCancel(t.Context())
	cmd.SetContext(ctx)
	out, in := io.Pipe()
	cmd.SetOut(in)
	ended := make(chan error, 1)
	go func() {
		err := u.run(cmd)
		_ = in.CloseWithError(err)
		ended <- err
	}()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		if where, ok := strings.CutPrefix(strings.TrimSpace(line), "http://"); ok {
			go func() { _, _ = io.Copy(io.Discard, lines) }()
			t.Cleanup(func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("tacit ui ends with %v", err)
				}
			})
			return "http://" + where
		}
	}
}

// browse follows the address as a browser does, and asks for the map.
func browse(t *testing.T, where string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}
	at, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	get := func(where string) (int, string) {
		response, err := client.Get(where)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	if code, text := get(where); code != http.StatusOK || !strings.Contains(text, "<title>Tacit") {
		t.Fatalf("the address brings %d, %s", code, text)
	}
	if code, text := get("http://" + at.Host + "/api/map"); code != http.StatusOK || !strings.Contains(text, `"edges"`) {
		t.Errorf("the map is %d, %s", code, text)
	}
	if code, _ := get(where); code != http.StatusForbidden {
		t.Errorf("the address once more: %d", code)
	}
}

func TestUIOfSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "ui.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mapOf(anybody{}), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	where := lead(t, &ui{socket: socket})
	browse(t, where)
	// Whoever else uses this machine may come by the port, but not in.
	at, _ := url.Parse(where)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Post("http://"+at.Host+"/login", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("a token for anybody: %d", response.StatusCode)
	}
}

func TestUIWithoutTacitd(t *testing.T) {
	_, _, err := (&ui{socket: filepath.Join(t.TempDir(), "none")}).leadToSocket(t.Context())
	if err == nil || !strings.Contains(err.Error(), "tacitd with --ui") {
		t.Errorf("without a tacitd: %v", err)
	}
}

func TestUIOfCluster(t *testing.T) {
	tacitd := func(name string, age time.Duration, ready bool) *core.Pod {
		running := &core.ContainerStateRunning{StartedAt: meta.NewTime(time.Now().Add(-age))}
		return &core.Pod{
			ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "tacit-system", Labels: map[string]string{"app.kubernetes.io/name": "tacitd"}},
			Status:     core.PodStatus{Phase: core.PodRunning, ContainerStatuses: []core.ContainerStatus{{Ready: ready, State: core.ContainerState{Running: running}}}},
		}
	}
	// The one that has been told for the longest is asked, of those that answer.
	api := fake.NewClientset(tacitd("tacitd-0", time.Minute, true), tacitd("tacitd-1", time.Hour, true), tacitd("tacitd-2", 2*time.Hour, false))
	api.PrependReactor("create", "certificatesigningrequests", func(action kubetesting.Action) (bool, kube.Object, error) {
		request := action.(kubetesting.CreateAction).GetObject().(*csr.CertificateSigningRequest)
		request.Spec.Username, request.CreationTimestamp = "alice", meta.Now()
		return false, nil, nil
	})
	api.PrependReactor("create", "subjectaccessreviews", func(action kubetesting.Action) (bool, kube.Object, error) {
		review := action.(kubetesting.CreateAction).GetObject().(*authorization.SubjectAccessReview)
		review.Status.Allowed = review.Spec.User == "alice"
		return true, review, nil
	})
	server := httptest.NewServer(mapOf(&person.Door{Client: api}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	u := &ui{connect: func() (*cluster.Cluster, error) {
		return &cluster.Cluster{Namespace: "tacit-system", Client: api, Forward: func(ctx context.Context, pod string, _, remote int) (int, <-chan error, error) {
			if pod != "tacitd-1" || remote != uiPort {
				t.Errorf("port %d of %s is forwarded", remote, pod)
			}
			ended := make(chan error, 1)
			context.AfterFunc(ctx, func() { ended <- nil })
			_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
			number, err := strconv.Atoi(port)
			return number, ended, err
		}}, nil
	}}
	browse(t, lead(t, u))
	if left, err := api.CertificatesV1().CertificateSigningRequests().List(t.Context(), meta.ListOptions{}); err != nil || len(left.Items) != 0 {
		t.Errorf("left in the cluster: %v, %v", left.Items, err)
	}
}
