package page

import (
	"fmt"
	"net/http"
	"time"
)

// Live updates: that there is something new, at most so often; and that we are
// alive.
const (
	eventPause = 2 * time.Second
	eventPulse = 15 * time.Second
	eventLimit = time.Hour
	writeLimit = 10 * time.Second
)

// events tells a browser that there is something new, as server-sent events. It
// asks for what it shows.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // that of the request; nothing more is read but the reader's end
	w.Header().Set("Content-Type", "text/event-stream")
	end := time.NewTimer(eventLimit) // the browser comes again, if its session lives
	defer end.Stop()
	pulse := time.NewTicker(eventPulse)
	defer pulse.Stop()
	say := func(text string) bool {
		_ = control.SetWriteDeadline(time.Now().Add(writeLimit))
		_, err := fmt.Fprint(w, text)
		return err == nil && control.Flush() == nil
	}
	for ok := say("retry: 5000\n\n"); ok; {
		select {
		case <-s.Hour.News():
			ok = say("event: news\ndata:\n\n") && wait(r, eventPause)
		case <-pulse.C:
			ok = say(":\n\n")
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func wait(r *http.Request, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.Context().Done():
		return false
	}
}
