//go:build engines && long

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"plyfs/internal/e2e/listing"
)

// containerdVersion is the containerd that is built as a Go module.
const containerdVersion = "v2.4.2"

// TestContainerdDrivers is TestContainerd with the drivers whose layers containerd mounts by other means.
func TestContainerdDrivers(t *testing.T) {
	for _, driver := range []string{"overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) { newContainerd(t, driver).life(t) })
	}
}

// TestContainerdHelper is TestContainerd where containerd mounts everything itself.
func TestContainerdHelper(t *testing.T) {
	c := prepareContainerd(t, "plyfs")
	c.mounts = "helper"
	c.start(t)
	c.life(t)
}

// TestContainerd2 runs containerd 2, which has plyfs make and unpack layers too.
func TestContainerd2(t *testing.T) {
	c := prepareContainerd(t, "plyfs")
	c.useModule(buildContainerd(t))
	c.start(t)
	c.life(t)
	if n := c.calls(t, "Apply"); n == 0 {
		t.Error("plyfs unpacked no layer")
	}
}

// useModule has everything run the containerd of that directory.
func (c *containerdTest) useModule(bin string) {
	c.bin, c.config = bin+"/", 3
	for i, v := range c.env {
		if rest, ok := strings.CutPrefix(v, "PATH="); ok {
			// containerd starts its shim from there.
			c.env[i] = "PATH=" + bin + ":" + rest
		}
	}
}

// buildContainerd returns the directory of containerd's programs, which are built once and kept in the user's cache.
func buildContainerd(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "plyfs-engines", "containerd-"+containerdVersion)
	var packages []string
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			packages = append(packages, "github.com/containerd/containerd/v2/cmd/"+name+"@"+containerdVersion)
		}
	}
	if len(packages) == 0 {
		return dir
	}
	cmd := exec.Command("go", append([]string{"install"}, packages...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", strings.Join(packages, " "), err, tail(string(out), 20))
	}
	return dir
}

// TestContainerdRootless runs snapshotter, containerd and containers in the user namespace of a user.
func TestContainerdRootless(t *testing.T) {
	c := prepareContainerd(t, "plyfs")
	im := engineImage(t)
	im.writeDocker(t, c.path("docker.tar"), imageName)
	c.want = listing.Lines(im.entries("data"))
	c.becomeUser(t)
	c.start(t)
	c.ctr(t, "images", "import", "--snapshotter", "plyfs", c.path("docker.tar"))
	checkLines(t, "the image", c.want, c.list(t, imageName))
	c.ctr(t, append(c.runArgs("-d"), imageName, "box", "sleep", "1000")...)
	c.checkMounts(t)
	c.exec(t, "box", "sh", "-ec", work)
	live := outputLines(c.exec(t, "box", "/treedump", "/", "data"))
	c.snapshotter.end(t, syscall.SIGKILL)
	c.anotherSnapshotter(t)
	checkLines(t, "the container with another snapshotter", live, outputLines(c.exec(t, "box", "/treedump", "/", "data")))
	c.ctr(t, "tasks", "kill", "-s", "KILL", "box")
	c.waitGone(t, "box")
	c.clean(t)
}

// becomeUser has everything from here on run as the user, as root of one user namespace with all subordinate ids.
func (c *containerdTest) becomeUser(t *testing.T) {
	t.Helper()
	c.uid = userID
	err := filepath.WalkDir(c.dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, userID, userID))
	})
	if err != nil {
		t.Fatal(err)
	}
	holder := c.spawn(t, "rootlesskit", "rootlesskit", "--net=host", "--copy-up=/run", "--state-dir", c.path("rootlesskit"), "sleep", "10000")
	holder.fails = true
	c.waitFor(t, holder, func() error {
		_, err := os.Stat(c.path("rootlesskit/child_pid"))
		return err
	})
	pid, err := os.ReadFile(c.path("rootlesskit/child_pid"))
	if err != nil {
		t.Fatal(err)
	}
	c.flags = []string{"--cgroup", "", "--cpu-shares", "0"}
	c.within = []string{"nsenter", "-U", "-m", "--preserve-credentials", "-t", strings.TrimSpace(string(pid)), "--"}
}
