package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// Flows is the answer to /flows: live connections and what is remembered of
// those that ended, oldest first.
type Flows struct {
	Node string `json:"node"`
	// Flows of which there were more than the limit are the newest.
	Flows []flows.Flow `json:"flows"`
}

// TapLine is one line of the answer to /tap. The first has the node alone; an
// empty one shows that the tap is alive.
type TapLine struct {
	Node string      `json:"node,omitempty"`
	Flow *flows.Flow `json:"flow,omitempty"`
	// Lost is how many flows there were that the reader was too slow for.
	Lost int `json:"lost,omitempty"`
	// Sampled is how many more there were at the end of a burst of which only a
	// sample was kept, whatever the filter.
	Sampled int `json:"sampled,omitempty"`
}

// Bounds on answers about flows.
const (
	defaultFlows = 1000
	MaxFlows     = 65536
	defaultSince = 5 * time.Minute
	tapPulse     = 2 * time.Second
	tapStall     = 30 * time.Second // how long a reader may take nothing
)

// flows answers with the flows of the last ?since, a duration, that a filter
// takes, at most ?limit of them.
func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	f, err := s.filter(query)
	since, limit := defaultSince, defaultFlows
	if text := query.Get("since"); err == nil && text != "" {
		if since, err = time.ParseDuration(text); err != nil || since <= 0 {
			err = fmt.Errorf("since %.40q: want a duration such as 10m", text)
		}
	}
	if text := query.Get("limit"); err == nil && text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > MaxFlows {
			err = fmt.Errorf("limit %.40q: want a number from 1 to %d", text, MaxFlows)
		}
	}
	if err != nil {
		answerWith(w, http.StatusBadRequest, problem{err.Error()})
		return
	}
	if s.Flows == nil {
		answerWith(w, http.StatusNotFound, problem{flows.ErrOff.Error()})
		return
	}
	chosen := s.Flows.Flows(f, time.Now().Add(-since), limit)
	for e := range s.liveFlows() {
		if flow, takes := flows.Show(&e, f); takes {
			chosen = append(chosen, flow)
		}
	}
	slices.SortStableFunc(chosen, func(a, b flows.Flow) int { return a.Time.Compare(b.Time) })
	chosen = chosen[max(0, len(chosen)-limit):]
	stream(w, func(e *encoder) {
		e.member("node", s.Node)
		writeList(e, "flows", chosen, asIs)
	})
}

func (s *Server) liveFlows() iter.Seq[flows.Event] {
	if s.LiveFlows == nil {
		return func(func(flows.Event) bool) {}
	}
	return s.LiveFlows()
}

// tap answers with flows as they happen, one JSON object a line, until the
// reader goes or stalls.
func (s *Server) tap(w http.ResponseWriter, r *http.Request) {
	f, err := s.filter(r.URL.Query())
	if err != nil {
		answerWith(w, http.StatusBadRequest, problem{err.Error()})
		return
	}
	t, err := s.Flows.Tap(f)
	if err != nil {
		code := http.StatusNotFound
		if errors.Is(err, flows.ErrTaps) {
			code = http.StatusTooManyRequests
		}
		answerWith(w, code, problem{err.Error()})
		return
	}
	defer t.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // that of the request; nothing more is read but the reader's end
	out := json.NewEncoder(w)
	pulse := time.NewTicker(tapPulse)
	defer pulse.Stop()
	for err = out.Encode(TapLine{Node: s.Node}); err == nil; {
		_ = control.SetWriteDeadline(time.Now().Add(tapStall))
		if err = control.Flush(); err == nil {
			err = s.tapNext(r, t, out, pulse.C, w)
		}
	}
}

// tapNext waits for the next line, and writes it and all that have come with
// it. It returns an error at the end of the tap.
func (s *Server) tapNext(r *http.Request, t *flows.Tap, out *json.Encoder, pulse <-chan time.Time, w http.ResponseWriter) error {
	select {
	case flow := <-t.Flows():
		for err := out.Encode(TapLine{Flow: &flow}); ; err = out.Encode(TapLine{Flow: &flow}) {
			if err != nil {
				return err
			}
			select {
			case flow = <-t.Flows():
				continue
			default:
			}
			break
		}
	case <-pulse:
		if lost := t.Lost(); lost != (flows.Lost{}) {
			return out.Encode(TapLine{Lost: lost.Unread, Sampled: lost.Sampled})
		}
		_, err := w.Write([]byte("\n"))
		return err
	case <-r.Context().Done():
		return r.Context().Err()
	}
	return nil
}

// filter reads a filter of flows. An end that neither the mesh nor the
// remembered flows know is most likely a mistake.
func (s *Server) filter(query url.Values) (*flows.Filter, error) {
	f, err := flows.ParseFilter(query)
	if err != nil {
		return nil, err
	}
	for _, end := range []flows.EndFilter{f.From, f.To, f.Either} {
		if end.IsZero() || end.Address.IsValid() || slices.ContainsFunc(s.Snapshot().Workloads(), end.Fits) {
			continue
		}
		if len(s.Flows.Flows(&flows.Filter{Either: end}, time.Time{}, 1)) == 0 {
			return nil, errors.New("no pod or owner of pods " + end.String() + " in the mesh" + didYouMean(s.Snapshot(), end.String()))
		}
	}
	return f, nil
}
