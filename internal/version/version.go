// Package version knows what was built.
package version

import (
	"runtime"
	"runtime/debug"
)

// version is set by the linker: -X plyfs/internal/version.version=v1.2.3. Empty, the build information of the Go toolchain is
// used.
var version string

// Info is what was built, as plyfs version --json prints it.
type Info struct {
	Version string `json:"version"`
	// Commit is the revision that was built, "" if unknown; Modified says that the tree had changes beside.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Read returns what this program was built from.
func Read() Info {
	v := Info{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok && v.Version == "" {
		v.Version = info.Main.Version
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// String returns the version in one line.
func (v Info) String() string {
	s := "plyfs: version " + v.Version
	if v.Commit != "" {
		s += " commit " + v.Commit
		if v.Modified {
			s += "+"
		}
	}
	return s + " " + v.Go + " " + v.Platform
}
