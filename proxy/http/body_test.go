package http

import (
	"fmt"
	"strings"
	"testing"
)

// However many trailers there are, each is looked at once.
func TestTrailersAreCheckedOnce(t *testing.T) {
	allocations := func(n int) float64 {
		text := []byte("0\r\n" + strings.Repeat("A:\r\n", n) + "\r\n")
		return testing.AllocsPerRun(1, func() {
			b := body{kind: bodyChunked, strict: true}
			if took, done, err := b.scan(text); took != len(text) || !done || err != nil {
				t.Errorf("%d of %d bytes, done %v: %v", took, len(text), done, err)
			}
		})
	}
	const many = maxTrailers / len("A:\r\n")
	if few, all := allocations(many/16), allocations(many); all > 20*few {
		t.Errorf("%v allocations for %d trailers, %v for %d", all, many, few, many/16)
	}
}

// What trailers must not say is refused as it comes, and where it is known only
// later, then.
func TestReservedTrailers(t *testing.T) {
	for _, test := range []struct {
		name          string
		refused, late bool
	}{{"Host", true, true}, {"x-user", false, true}, {"x_user", false, true}, {"x-other", false, false}} {
		b := body{kind: bodyChunked, strict: true}
		_, _, err := b.scan(fmt.Appendf(nil, "0\r\nA:\r\n%s: 1\r\n\r\n", test.name))
		if (err != nil) != test.refused {
			t.Errorf("%s: %v", test.name, err)
		}
		if err := b.reserve([]string{"X-User"}); err == nil == test.late {
			t.Errorf("%s, reserved: %v", test.name, err)
		}
	}
}
