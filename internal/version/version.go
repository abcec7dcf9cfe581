// Package version says which build of this module is running.
//
// What does not belong here: versions of protocols, which their own packages
// negotiate.
package version

import (
	"cmp"
	"runtime/debug"
	"strings"
)

// release is set by whoever builds one, where no tag is at hand:
//
//	go build -ldflags "-X github.com/tacit-mesh/tacit/internal/version.release=v1.2.3"
var release string

// String is the module's version and the commit it was built from, such as
// "v0.1.0 (1a2b3c4d5e6f, changed)", as far as the build recorded them.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return describe(release, info)
}

func describe(release string, info *debug.BuildInfo) string {
	version := cmp.Or(release, info.Main.Version)
	if version == "" || version == "(devel)" {
		version = "development build"
	}
	var details []string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			details = append(details, s.Value[:min(len(s.Value), 12)])
		case s.Key == "vcs.modified" && s.Value == "true":
			details = append(details, "changed")
		}
	}
	if len(details) == 0 {
		return version
	}
	return version + " (" + strings.Join(details, ", ") + ")"
}
