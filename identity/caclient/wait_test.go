package caclient

import (
	"testing"
	"time"
)

// Waits become shorter towards the end of a certificate and longer after it, so
// that an outage of days is cheap.
func TestLimit(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{
		24 * time.Hour:    150 * time.Second,
		80 * time.Second:  10 * time.Second,
		time.Second:       time.Second,
		0:                 time.Second,
		-time.Second:      time.Second,
		-80 * time.Second: 10 * time.Second,
		-72 * time.Hour:   15 * time.Second,
		none:              15 * time.Second,
	} {
		if got := limit(left); got != want {
			t.Errorf("with %v left it waits for up to %v, want %v", left, got, want)
		}
	}
}
