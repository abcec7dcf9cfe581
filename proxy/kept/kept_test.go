package kept

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type conn struct{ closed bool }

func (c *conn) Close() error { c.closed = true; return nil }

// fixture is a set of which most connections may be kept, and mostEach of one.
type fixture struct {
	*Set[string, *conn]
	t *testing.T
}

func newFixture(t *testing.T, most, mostEach int) fixture {
	return fixture{New[string, *conn](most, mostEach), t}
}

func open() (*conn, error) { return new(conn), nil }

// patience is how long a connection is waited for that is to come at once.
const patience = 20 * time.Second

// use uses a connection for which there is room.
func (f fixture) use(of, key string) (*conn, func()) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	c, done, err := f.Use(ctx, of, key, open)
	if err != nil {
		f.t.Fatal(err)
	}
	return c, done
}

// full wants that there is no room now.
func (f fixture) full(of, key string) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	cancel()
	if _, _, err := f.Use(ctx, of, key, open); !errors.Is(err, ErrBusy) {
		f.t.Errorf("%s of %s: %v, want that there is no room", key, of, err)
	}
}

func TestOldestMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 3, 3)
		conns := map[string]*conn{}
		for _, key := range []string{"a", "b", "c", "a"} { // the first one again
			c, done := f.use(key, key)
			if before := conns[key]; before != nil && before != c {
				t.Errorf("%s is another one", key)
			}
			conns[key] = c
			done()
		}
		_, done := f.use("d", "d")
		done()
		synctest.Wait()
		if !conns["b"].closed || conns["a"].closed || conns["c"].closed || f.Len() != 3 {
			t.Errorf("want the one closed that was used the longest time ago, of %+v", conns)
		}
	})
}

// What is in use is not closed for others, who wait until it is in use no more.
func TestInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2, 2)
		a, doneA := f.use("a", "a")
		b, doneB := f.use("b", "b")
		_, again := f.use("b", "b")
		f.full("c", "c")
		got := make(chan *conn)
		go func() {
			c, done := f.use("c", "c")
			done()
			got <- c
		}()
		synctest.Wait()
		doneB()
		synctest.Wait()
		select {
		case <-got:
			t.Error("made room by what is in use")
		default:
		}
		again()
		c := <-got
		synctest.Wait()
		if c.closed || !b.closed || a.closed {
			t.Errorf("closed: a %v, b %v, c %v", a.closed, b.closed, c.closed)
		}
		doneA()
	})
}

// Nobody takes all that there are: with as many as one may have, one's own make
// room, and else one waits; others do not.
func TestOneLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4, 2)
		first, done := f.use("a", "1")
		done()
		f.use("a", "2")
		f.use("a", "3")
		if synctest.Wait(); !first.closed {
			t.Error("more than one may have")
		}
		f.full("a", "4")
		for i := range 2 {
			f.use("b", fmt.Sprint("b", i))
		}
		f.full("c", "5") // four are in use
		f.Forget("a")
		f.use("c", "5")
		f.Forget("b")
		f.Forget("c")
		if f.Len() != 0 || len(f.of) != 0 {
			t.Errorf("%d kept, of %v", f.Len(), f.of)
		}
	})
}

// What is nobody's is for all, and not bounded as what is one's.
func TestOfNobody(t *testing.T) {
	f := newFixture(t, 4, 2)
	for i := range 4 {
		f.use("", fmt.Sprint(i))
	}
	f.full("", "4")
	f.Close()
}

// slow takes its time to close.
type slow struct{ closing, closed chan struct{} }

func (c *slow) Close() error {
	close(c.closing)
	<-c.closed
	return nil
}

// However long connections take to be closed, all others are used meanwhile, and
// several of them are closed at a time.
func TestClosingHoldsUpNobody(t *testing.T) {
	for name, closes := range map[string]func(*Set[string, *slow]){
		"making room": func(s *Set[string, *slow]) {
			for _, key := range []string{"c", "d"} {
				_, done, _ := s.Use(context.Background(), "another", key, func() (*slow, error) { return new(slow), nil })
				done()
			}
		},
		"forgotten": func(s *Set[string, *slow]) { s.Forget("a") },
		"closed":    func(s *Set[string, *slow]) { s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := New[string, *slow](2, 2)
			var conns []*slow
			for _, key := range []string{"a", "b"} {
				c := &slow{make(chan struct{}), make(chan struct{})}
				_, done, err := s.Use(t.Context(), "a", key, func() (*slow, error) { return c, nil })
				if err != nil {
					t.Fatal(err)
				}
				done()
				conns = append(conns, c)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				closes(s)
			}()
			for _, c := range conns {
				select {
				case <-c.closing:
				case <-time.After(patience):
					t.Error("a connection is not closed while another one is being closed")
				}
			}
			used := make(chan struct{})
			go func() {
				defer close(used)
				_, done, err := s.Use(t.Context(), "b", "d", func() (*slow, error) { return new(slow), nil })
				if err != nil {
					t.Error(err)
				} else {
					done()
				}
			}()
			select {
			case <-used:
			case <-time.After(patience):
				t.Error("a connection that is closed slowly holds up others")
			}
			for _, c := range conns {
				close(c.closed)
			}
			<-ended
			<-used
		})
	}
}

func TestForgetAndClose(t *testing.T) {
	f := newFixture(t, 4, 4)
	a, done := f.use("a", "a")
	b, _ := f.use("b", "b")
	f.Forget("a")
	done() // of one that is gone
	if !a.closed || b.closed {
		t.Error("want what is somebody's closed, and nothing else")
	}
	if other, _ := f.use("a", "a"); other == a {
		t.Error("what was closed is still used")
	}
	f.Close()
	if !b.closed || f.Len() != 0 {
		t.Error("not closed")
	}
	failed := errors.New("failed")
	if _, _, err := f.Use(t.Context(), "a", "a", func() (*conn, error) { return nil, failed }); !errors.Is(err, failed) || f.Len() != 0 {
		t.Errorf("of one that cannot be made: %v, %d kept", err, f.Len())
	}
}
