package enrol

import "testing"

func TestWanted(t *testing.T) {
	for _, tt := range []struct {
		pod, namespace string // values of the label; "-" for none
		want           bool
	}{
		{"-", "-", false},
		{"-", "enabled", true},
		{"-", "disabled", false},
		{"-", "Enabled", false},
		{"enabled", "-", true},
		{"enabled", "disabled", true},
		{"disabled", "enabled", false},
		{"", "enabled", false},
		{"true", "enabled", false},
	} {
		labels := func(value string) map[string]string {
			if value == "-" {
				return nil
			}
			return map[string]string{Label: value}
		}
		if got := Wanted(labels(tt.pod), labels(tt.namespace)); got != tt.want {
			t.Errorf("pod %q, namespace %q: got %v", tt.pod, tt.namespace, got)
		}
	}
}
