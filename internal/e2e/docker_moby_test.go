//go:build engines && long

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// mobyVersion is the newest Docker that can be had as a Go module: 29.
const mobyVersion = "v2.0.0-beta.24"

// mobyDaemon returns dockerd of mobyVersion. It is built once, which takes minutes, and kept in the user's cache.
func mobyDaemon(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "plyfs-engines", "moby-"+mobyVersion)
	program := filepath.Join(dir, "dockerd")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	// Whoever ends in the middle leaves nothing that looks like a program.
	made, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(made)
	cmd := exec.Command("go", "install", "-tags", "exclude_graphdriver_btrfs", "github.com/moby/moby/v2/cmd/dockerd@"+mobyVersion)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+made, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, tail(string(out), 20))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(made, "dockerd"), program); err != nil {
		t.Fatal(err)
	}
	return program
}

// runcScript takes from a container what runc 1.1 does not know: time namespaces.
const runcScript = `#!/bin/sh
bundle=.
for arg do
	if [ "$last" = --bundle ]; then bundle=$arg; fi
	last=$arg
done
if [ -f "$bundle/config.json" ]; then
	sed -i -e 's/,{"type":"time"}//' -e 's/{"type":"time"},//' "$bundle/config.json"
fi
exec runc "$@"
`

// TestDockerNewest runs the suite on Docker 29 with its driver fuse-overlayfs, which finds plyfs under that name.
func TestDockerNewest(t *testing.T) {
	program := mobyDaemon(t)
	d := newDocker(t, "fuse-overlayfs", func(d *dockerTest) {
		runc := d.path("bin/runc-without-time")
		if err := os.WriteFile(runc, []byte(runcScript), 0o755); err != nil {
			t.Fatal(err)
		}
		d.program = program
		d.flags = slices.DeleteFunc(d.flags, func(f string) bool { return f == "--oom-score-adjust=0" })
		d.flags = append(d.flags, "--add-runtime", "plain="+runc, "--default-runtime", "plain")
		// It speaks to the client of docker.io all the same.
		d.env = append(d.env, "DOCKER_MIN_API_VERSION=1.24")
	})
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("save", d.save)
	t.Run("export", d.export)
	t.Run("dockerd killed", d.dockerdKilled)
	d.clean(t)
}
