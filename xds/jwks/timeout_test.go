package jwks

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A fetch takes as long as its source says, within a bound.
func TestTimeout(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		0: DefaultTimeout, time.Second: time.Second, 7 * time.Second: 7 * time.Second, time.Hour: MaxTimeout,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := New(Config{Log: zap.NewNop(), Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done() // an issuer that never answers
				return nil, r.Context().Err()
			})})
			began := time.Now()
			_, err := f.once(t.Context(), Source{Name: "a", URI: "https://issuer.example/keys", Timeout: timeout})
			if err == nil || time.Since(began) != want {
				t.Errorf("timeout %v: %v after %v, want an error after %v", timeout, err, time.Since(began), want)
			}
		})
	}
}
