package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is set by the linker: -X main.version=v1.2.3. Empty, the build information of the Go toolchain is used.
var version string

// compatVersion is the fuse-overlayfs whose command line and behaviour the personality of that name has.
const compatVersion = "1.17"

// versionInfo is what plyfs version --json prints.
type versionInfo struct {
	Version string `json:"version"`
	// Commit is the revision that was built, "" if unknown; Modified says that the tree had changes beside.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
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
func (v versionInfo) String() string {
	s := "plyfs: version " + v.Version
	if v.Commit != "" {
		s += " commit " + v.Commit
		if v.Modified {
			s += "+"
		}
	}
	return s + " " + v.Go + " " + v.Platform
}

// printVersion answers --version. Callers of fuse-overlayfs show, and some read, the first line.
func printVersion(w io.Writer, p personality) error {
	if p.name == nameFuseOverlayfs {
		if _, err := fmt.Fprintf(w, "fuse-overlayfs: version %s\n", compatVersion); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, readVersion())
	return err
}

// versionCommand is plyfs version.
func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print it as a JSON object"}},
		Action: func(c *cli.Context) error {
			if !c.Bool("json") {
				return printVersion(c.App.Writer, personality{})
			}
			e := json.NewEncoder(c.App.Writer)
			e.SetIndent("", "  ")
			return e.Encode(readVersion())
		},
	}
}
