//go:build engines && long

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// run runs those of the page's blocks that are named, and works on within for a shorter time than TestNested.
func (n *nested) run(t *testing.T, blocks ...string) {
	t.Helper()
	n.brief = true
	ran := 0
	for _, c := range nestedCases() {
		for _, b := range blocks {
			if c.block == b {
				ran++
				t.Run(b, func(t *testing.T) { n.follow(t, c) })
			}
		}
	}
	if ran != len(blocks) {
		t.Errorf("of the blocks %q only %d exist", blocks, ran)
	}
}

// TestNestedRootless is TestNested with a podman of a user outside.
func TestNestedRootless(t *testing.T) {
	n := newNested(t, newEngine(t, userID), "podman")
	n.run(t, "podman-in-podman", "podman-as-user-in-podman", "podman-on-overlay-in-podman",
		"docker-in-rootless-podman", "store-in-podman")
}

// TestNestedOnOverlay is TestNested with the outer containers on the kernel's overlayfs.
func TestNestedOnOverlay(t *testing.T) {
	e := newEngine(t, 0)
	conf := e.path(settings + "storage.conf")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	native, _, _ := strings.Cut(string(text), "[storage.options.overlay]")
	if err := os.WriteFile(conf, []byte(native), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNested(t, e, "podman")
	n.run(t, "docker-on-plyfs", "docker-on-fuse-overlayfs", "docker-on-vfs", "podman-in-podman", "podman-as-user-in-podman",
		"store-in-podman")
}

// TestNestedDocker is TestNested with Docker outside.
func TestNestedDocker(t *testing.T) {
	newNestedDocker(t, "fuse-overlayfs", nil).run(t, "docker-in-docker", "podman-in-docker")
}

// TestNestedDockerPlugin is TestNestedDocker with the graph-driver plugin outside.
func TestNestedDockerPlugin(t *testing.T) {
	newNestedDocker(t, "plyfs", withPlugin("plyfs")).run(t, "docker-in-docker")
}

func newNestedDocker(t *testing.T, driver string, prepare func(*dockerTest)) *nested {
	t.Helper()
	d := newDocker(t, driver, prepare)
	if err := os.Symlink(d.client, d.path("bin/docker")); err != nil {
		t.Fatal(err)
	}
	n := newNested(t, d.engine, "docker")
	t.Cleanup(func() { d.docker(t, "rmi", "-f", enginesImage) })
	return n
}

// TestNestedKilled kills servers of inner and outer mounts, and goes on after a restart of what was on them.
func TestNestedKilled(t *testing.T) {
	n := newNested(t, newEngine(t, 0), "podman")
	c := nestedCases()[0]
	n.start(t, c.block)
	in := &nestedEngine{nested: n, nestedCase: c, want: n.want}
	t.Run("inner", in.killInner)
	t.Run("outer", in.killOuter)
	in.container(t)
	in.build(t)
}

// killInner kills the server of an inner container. Only that container is lost, and what it had written is there when
// it is started again.
func (in *nestedEngine) killInner(t *testing.T) {
	in.script(t, "$E run -d --name box $R "+imageName+" sleep 1000; $E run -d --name other $R "+imageName+" sleep 1000")
	in.script(t, "$E exec box sh -c 'echo made >/data/made'")
	merged := strings.TrimSpace(in.script(t, "$E inspect --format '{{.GraphDriver.Data.MergedDir}}' box"))
	if merged == "" || merged == "<no value>" {
		merged = "/var/lib/docker/fuse-overlayfs/"
	}
	killServers(t, merged)
	if out, err := in.exec("$E exec box cat /data/top"); err == nil {
		t.Errorf("a container whose server was killed still reads: %q", out)
	}
	in.script(t, "$E stop -t 0 box other; $E start box other")
	out := in.script(t, "$E exec box cat /data/made /data/top; $E exec other cat /data/top")
	expect(t, "the containers, started again,", out, "made\n40\n40\n")
	in.script(t, "$E rm -f other")
}

// killOuter kills the server of the outer container while images are built within. The outer container starts again,
// with the inner containers as they were.
func (in *nestedEngine) killOuter(t *testing.T) {
	built := make(chan error, 1)
	go func() {
		_, err := in.exec(`mkdir -p /tmp/killed; cd /tmp/killed; echo 'FROM ` + imageName + `' >Dockerfile
			echo 'RUN while cp -r /data/shared /data/copy && rm -r /data/copy; do :; done; false' >>Dockerfile
			echo begun >/tmp/killed/begun; $E build $B .`)
		built <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if out, err := in.exec("cat /tmp/killed/begun; $E ps -q | wc -l"); err == nil && out == "begun\n2\n" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the build within does not begin: %q, %v", out, err)
		}
	}
	killServers(t, in.path("graph"))
	if err := <-built; err == nil {
		t.Error("a build goes on without the file system of the outer container")
	}
	in.engine.run(t, "podman", "stop", "-t", "0", "outer")
	in.engine.run(t, "podman", "start", "outer")
	in.script(t, "timeout 60 sh -c 'until docker version; do sleep 0.2; done' >/dev/null 2>&1")
	removeGroups(t, printed(in.script(t, "$E ps -aq --no-trunc")))
	in.script(t, "$E start box")
	out := in.script(t, "$E exec box cat /data/made /data/top; $E rm -f box >/dev/null")
	expect(t, "the inner container after the outer server was killed", out, "made\n40\n")
	in.image(t)
}

// removeGroups removes the control groups of inner containers that ended together with the engine that would have done it. They
// are the machine's, and that of a build has nobody else who knows it.
func removeGroups(t *testing.T, ids []string) {
	t.Helper()
	for _, id := range ids {
		for _, pattern := range []string{"/sys/fs/cgroup/docker/", "/sys/fs/cgroup/*/docker/"} {
			groups, err := filepath.Glob(pattern + id)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range groups {
				testenv.Eventually(t, g+" can be removed", func() bool { return unix.Rmdir(g) == nil })
			}
		}
	}
}

// killServers kills the servers of mounts below a directory, as a path in their own namespace.
func killServers(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if err != nil || !strings.HasSuffix(args[0], "fuse-overlayfs") || !strings.HasPrefix(args[len(args)-1], dir) {
			continue
		}
		p, err := os.Open(filepath.Dir(f))
		if err != nil {
			continue
		}
		// A pidfd: the number may be another process's by now.
		err = unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0)
		p.Close()
		if err != nil {
			t.Errorf("kill %s: %v", strings.Join(args, " "), err)
		}
		killed++
	}
	if killed == 0 {
		t.Fatalf("no server of a mount below %s", dir)
	}
}
