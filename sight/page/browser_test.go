package page

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tacit-mesh/tacit/xds/api/sight"
)

const patience = 2 * time.Minute

// browser is Debian's Chromium without a screen, and what it complains of.
func browser(t *testing.T) (ctx context.Context, complaints func() []string) {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium-headless-shell", "chromium", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil && program == "" {
			program = path
		}
	}
	if program == "" {
		t.Skip("no Chromium: on Debian, scripts/with-tools.sh test installs it")
	}
	files := t.TempDir()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.WSURLReadTimeout(patience),
		chromedp.UserDataDir(files), chromedp.Env("TMPDIR="+files), chromedp.ModifyCmdFunc(together))
	// The test's own context ends before what is told here, and would only kill.
	ctx, end := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(end)
	ctx, endTab := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		defer endTab()
		defer time.AfterFunc(patience, end).Stop()
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("end of the browser: %v", err)
		}
	})
	if err := chromedp.Run(ctx); err != nil { // the browser lives as long as this context
		t.Fatal(err)
	}
	var mu sync.Mutex
	var said []string
	chromedp.ListenTarget(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			said = append(said, e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			said = append(said, e.Entry.Text)
		}
	})
	return ctx, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return said
	}
}

// together has all processes of a browser end with the first one, in whatever
// way that ends, and before it counts as ended. Debian's program is a script
// that starts another, which starts more: killing one leaves the rest.
func together(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	}
}

// do runs actions, which have to come to an end.
func do(ctx context.Context, t *testing.T, what string, actions ...chromedp.Action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// until waits until an expression is true on the page.
func until(expression string) chromedp.Action {
	return chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(patience))
}

// value is what an expression is on the page.
func value[T any](ctx context.Context, t *testing.T, expression string) (v T) {
	t.Helper()
	do(ctx, t, expression, chromedp.Evaluate(expression, &v))
	return v
}

// screenshot keeps a picture for people to look at, where one is wanted.
func screenshot(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	var picture []byte
	do(ctx, t, "screenshot", chromedp.FullScreenshot(&picture, 100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o600); err != nil {
		t.Error(err)
	}
}

const nodes = `document.querySelectorAll("#map .node").length`

// frame is how many milliseconds it takes to do something and to have it on the
// screen, the median of several times.
func frame(ctx context.Context, t *testing.T, what string) (milliseconds float64) {
	t.Helper()
	const times = 21
	script := fmt.Sprintf(`(async () => {
		const all = [];
		for (let i = 0; i < %d; i++) {
			await new Promise(requestAnimationFrame);
			const began = performance.now();
			%s;
			document.getElementById("map").getBoundingClientRect();
			await new Promise(requestAnimationFrame);
			all.push(performance.now() - began);
		}
		return all.sort((a, b) => a - b)[%d];
	})()`, times, what, times/2)
	do(ctx, t, "measure a frame", chromedp.Evaluate(script, &milliseconds, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return milliseconds
}

// A mesh of 2,000 workloads, from the whole of it to why a connection was
// denied, by keyboard and at the width of a telephone.
func TestBrowser(t *testing.T) {
	const namespaces, workloads = 40, 2000
	s := serve(t, namespaces, workloads)
	ctx, complaints := browser(t)
	began := time.Now()
	do(ctx, t, "enter", chromedp.EmulateViewport(1280, 800), chromedp.Navigate(s.entrance(t)), until(`document.body.dataset.loaded && `+nodes+` > 0`))
	t.Logf("%d workloads are drawn %v after the browser was told to load them", workloads, time.Since(began))
	t.Logf("drawing the namespaces anew and showing the frame takes %.1f ms, the largest namespace %.1f ms (medians)",
		frame(ctx, t, `state.open = null; show()`), frame(ctx, t, `state.open = "team-01"; show()`))
	do(ctx, t, "back to the namespaces", chromedp.Evaluate(`home()`, nil))

	if got := value[int](ctx, t, nodes); got != namespaces {
		t.Errorf("%d nodes are drawn, want the %d namespaces", got, namespaces)
	}
	if got := value[string](ctx, t, `document.getElementById("notice").textContent`); !strings.Contains(got, "Partial: a node says nothing (n2)") {
		t.Errorf("of the node that says nothing: %q", got)
	}
	screenshot(ctx, t, "mesh")

	// By keyboard: a namespace, one of its workloads, back, and back again.
	do(ctx, t, "open a namespace", chromedp.Evaluate(`document.querySelector('[data-key="nteam-01"]').focus()`, nil), chromedp.KeyEvent(kb.Enter),
		until(`document.querySelectorAll("#map .node.open").length === 50`))
	for _, state := range []string{"mtls", "plain", "denied"} {
		if value[int](ctx, t, fmt.Sprintf(`document.querySelectorAll("#map path.%s").length`, state)) == 0 {
			t.Errorf("no edge is drawn as %s", state)
		}
	}
	if got := value[string](ctx, t, `document.querySelector("#map path.denied").getAttribute("marker-end")`); got != "url(#to-denied)" || !value[bool](ctx, t, `document.querySelector("#to-denied polygon") !== null`) {
		t.Errorf("an edge does not say which way it goes: %q", got)
	}
	screenshot(ctx, t, "namespace")
	do(ctx, t, "the same as a table", chromedp.Evaluate(`document.querySelector("#list summary").focus()`, nil), chromedp.KeyEvent(kb.Enter),
		until(`document.querySelectorAll("#rows tr").length > 50`))
	do(ctx, t, "no table any more", chromedp.KeyEvent(kb.Enter), until(`!document.getElementById("list").open`))
	do(ctx, t, "open a workload", chromedp.Evaluate(`[...document.querySelectorAll("#map .node")].find((n) => n.textContent.includes("app-0001")).focus()`, nil),
		chromedp.KeyEvent(" "), until(`!document.getElementById("panel").hidden && document.querySelector("#panel details[open]")`))
	panel := value[string](ctx, t, `document.getElementById("panel").innerText`)
	for _, part := range []string{
		"team-01/app-0001", "closest was team-01/only-web (not matched: principals)", "Name the client in an ALLOW policy", "team-00/" + markup,
		"team-01/only-web (ALLOW, namespace)", "NOT ENFORCED AS WRITTEN: not enforced on port 80 of pods app-0001-x", "spiffe://cluster.local/ns/team-01/sa/app-0001 on n1", "app-0001-x on n1", "median < ",
	} {
		if !strings.Contains(panel, part) {
			t.Errorf("the panel lacks %q:\n%s", part, panel)
		}
	}
	screenshot(ctx, t, "denial")
	do(ctx, t, "dark", emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}),
		until(`getComputedStyle(document.body).backgroundColor === "rgb(20, 24, 29)"`))
	screenshot(ctx, t, "dark")

	do(ctx, t, "telephone", chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile), until(`innerWidth === 390`))
	if wide := value[int](ctx, t, `document.documentElement.scrollWidth`); wide > 390 {
		t.Errorf("the page is %d wide on a telephone of 390", wide)
	}
	screenshot(ctx, t, "telephone")
	do(ctx, t, "back", chromedp.EmulateViewport(1280, 800), chromedp.KeyEvent(kb.Escape), until(`document.getElementById("panel").hidden`),
		chromedp.KeyEvent(kb.Escape), until(nodes+fmt.Sprintf(" === %d", namespaces)))

	// Live: what is told now is there without anybody asking.
	s.take(&sight.Summary{Minute: time.Now().Unix() / 60, Pairs: []*sight.Pair{{Security: "mtls", Connections: 1, Source: &sight.Party{Namespace: markup, Name: "x"}, Destination: &sight.Party{Namespace: "team-01", Name: "app-0001"}}}})
	do(ctx, t, "live", until(nodes+fmt.Sprintf(" === %d", namespaces+1)))
	if value[bool](ctx, t, `document.title === "owned" || document.querySelector("img") !== null`) {
		t.Error("a name became markup")
	}
	// Half an hour ago nobody had told of anything.
	do(ctx, t, "time travel", chromedp.Evaluate(`document.getElementById("ago").value = -30; document.getElementById("ago").dispatchEvent(new Event("change"))`, nil),
		until(`document.querySelectorAll("#map path").length === 0 && document.getElementById("at").textContent.includes(" to ")`))
	screenshot(ctx, t, "past")
	if said := complaints(); len(said) > 0 {
		t.Errorf("the browser complains %d times, first: %.500q", len(said), said[0])
	}
}
