package policy

import "testing"

func TestSameName(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"X-User", "x-user", true}, {"X-User", "x_USER", true}, {"x_a-b_c", "X-A_B-C", true},
		{"X-User", "X-Users", false}, {"X-User", "XUser", false}, {"X-User", "X.User", false}, {"[", "{", false}, {"@a", "`a", false}, {"", "", true},
	} {
		if SameName(test.a, test.b) != test.want || SameName(test.b, test.a) != test.want {
			t.Errorf("%q and %q: not %v", test.a, test.b, test.want)
		}
	}
}
