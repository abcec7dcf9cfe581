package version

import (
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	setting := func(key, value string) debug.BuildSetting { return debug.BuildSetting{Key: key, Value: value} }
	for _, tt := range []struct {
		want     string
		release  string
		version  string
		settings []debug.BuildSetting
	}{
		{"development build", "", "(devel)", nil},
		{"development build", "", "", nil},
		{"v1.2.3", "", "v1.2.3", []debug.BuildSetting{setting("GOOS", "linux"), setting("vcs.modified", "false")}},
		{"v1.2.3 (0123456789ab)", "", "v1.2.3", []debug.BuildSetting{setting("vcs.revision", "0123456789abcdef")}},
		{"v1.2.3 (0123, changed)", "", "v1.2.3", []debug.BuildSetting{setting("vcs.revision", "0123"), setting("vcs.modified", "true")}},
		{"v1.2.4", "v1.2.4", "(devel)", nil},
		{"v1.2.4 (0123)", "v1.2.4", "v1.2.3-0.20260102030405-0123", []debug.BuildSetting{setting("vcs.revision", "0123")}},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: tt.version}, Settings: tt.settings}
		if got := describe(tt.release, info); got != tt.want {
			t.Errorf("%q %v: %q, want %q", tt.version, tt.settings, got, tt.want)
		}
	}
	if String() == "unknown" {
		t.Error("a test binary carries build information")
	}
}
