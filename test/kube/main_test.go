package kube

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tacit-mesh/tacit/test/servers/envoy"
	"github.com/tacit-mesh/tacit/test/world"
)

// How make e2e says which cluster to use. Without it these tests are skipped:
// whoever has a kubeconfig does not mean to have his cluster tested by it.
var (
	binariesFlag   = flag.String("kubernetes", "", "make a cluster of the programs in this `directory`")
	programsFlag   = flag.String("programs", "", "`directory` of Tacit's programs and of app")
	kubeconfigFlag = flag.String("kubeconfig", "", "use the cluster of this `file` instead")
	registryFlag   = flag.String("registry", "", "where that cluster pulls images from, and where they may be pushed to")
	keepFlag       = flag.Bool("keep", false, "leave the cluster up after the tests, until interrupted")
)

// shared is the cluster of all tests; nil where there is none.
var shared *Cluster

// envoyProgram is the file of Envoy, for sidecars.
var envoyProgram string

// Istio is installed from its own charts, with programs made of the same source.
var istioPrograms, istioCharts string

// patience bounds each wait of a test for something that is about to happen.
const patience = time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case *kubeconfigFlag != "":
		os.Exit(runTests(m, func(ctx context.Context) (*Cluster, error) {
			return Attach(*kubeconfigFlag, *registryFlag, *programsFlag)
		}))
	case *binariesFlag != "":
		// Here, as there is no way to anywhere from inside.
		var err error
		if envoyProgram, err = envoy.Program(context.Background(), os.Stderr); err == nil {
			err = findIstio(context.Background())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		world.Enter(func() int {
			return runTests(m, func(ctx context.Context) (*Cluster, error) {
				return Up(ctx, *binariesFlag, *programsFlag, 2)
			})
		})
	default:
		os.Exit(m.Run())
	}
}

func runTests(m *testing.M, connect func(context.Context) (*Cluster, error)) int {
	begin := time.Now()
	var err error
	if shared, err = connect(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintf(os.Stderr, "the cluster is there after %.1f s\n", time.Since(begin).Seconds())
	code := m.Run()
	if *keepFlag {
		fmt.Fprintf(os.Stderr, "the cluster stays until this is interrupted; to look around:\n  nsenter -a -t %s kubectl --kubeconfig %s\n", outerPID(), shared.Kubeconfig)
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
		<-interrupted
	}
	if err := shared.Down(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// outerPID is the process of the tests as the machine sees it.
func outerPID() string {
	link, _ := os.Readlink("/proc/self/ns/pid")
	return "$(lsns --noheadings --output PID " + filepath.Base(link) + ")"
}

// environment is what a test has of the cluster.
type environment struct {
	*Cluster
	t   *testing.T
	ctx context.Context // ends with the test, or when it has taken too long
}

// use is for tests that need a cluster; without one they are skipped.
func use(t *testing.T) environment {
	t.Helper()
	if shared == nil {
		t.Skip("needs a Kubernetes: run make e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return environment{shared, t, ctx}
}

func (e environment) must(errs ...error) {
	e.t.Helper()
	if err := errors.Join(errs...); err != nil {
		e.t.Fatal(err)
	}
}

// newNamespace makes a namespace that ends with the test.
func (e environment) newNamespace(name string, labels map[string]string) {
	e.t.Helper()
	e.must(e.CreateNamespace(e.ctx, name, labels))
	e.atEnd(func(e environment) error { return e.Delete(e.ctx, "v1", "Namespace", "", name) })
}

// atEnd does something at the end of the test, whose own context is over by
// then.
func (e environment) atEnd(do func(environment) error) {
	e.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), 2*patience)
		defer cancel()
		if err := do(environment{e.Cluster, e.t, ctx}); err != nil {
			e.t.Error(err)
		}
	})
}

// eventually polls for a state that offers no event.
func (e environment) eventually(what string, check func() error) {
	e.t.Helper()
	e.eventuallyWithin(patience, what, check)
}

func (e environment) eventuallyWithin(limit time.Duration, what string, check func() error) {
	e.t.Helper()
	last := errors.New("not looked at")
	err := wait.PollUntilContextTimeout(e.ctx, interval, limit, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	})
	if err != nil {
		e.t.Fatalf("%s: %v, last: %v", what, err, last)
	}
}

// interval is slow enough for looking not to be the load.
const interval = 200 * time.Millisecond
