//go:build engines

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// docImage is the image that docs/engines.md uses. Here it is the test image.
const docImage = "docker.io/library/debian:12"

// docHost is a machine on which the commands of docs/engines.md are followed.
type docHost struct {
	*engine
	// load takes image.tar in before the first command that needs the image; nil if the commands do.
	load []string
	// settle are commands that have the engine do what it put off.
	settle [][]string
	// units are the services that systemctl restarts, by name.
	units   map[string]unit
	running []*service
}

// unit is how a service is started here, where no systemd runs.
type unit struct {
	args []string
	env  []string
	// socket is there when it serves.
	socket string
}

// service is one that runs.
type service struct {
	name string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

// TestEnginesDoc follows docs/engines.md literally.
func TestEnginesDoc(t *testing.T) {
	blocks := docBlocks(t, "engines.md", "test")
	tests := docTests()
	for name := range blocks {
		if _, known := tests[name]; !known && !strings.HasPrefix(name, "undo-") {
			t.Errorf("docs/engines.md: no test follows %s", name)
		}
	}
	for name, prepare := range tests {
		if blocks[name] == "" {
			t.Errorf("docs/engines.md has no commands for %s", name)
		}
		if testing.Short() && !docShort(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			_, who, _ := strings.Cut(name, "-")
			uid := 0
			if who == "rootless" {
				uid = userID
			}
			h := &docHost{engine: newHost(t, uid)}
			h.clean = nil
			prepare(t, h)
			h.follow(t, blocks[name])
			h.stop(t)
			h.follow(t, blocks["undo-"+who])
			if _, err := os.Lstat(h.link()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after plyfs uninstall there is still %s (%v)", h.link(), err)
			}
		})
	}
}

// docShort says which of the tests run within make test.
func docShort(name string) bool {
	return name == "podman-rootless" || name == "docker-root" || name == "containerd-root"
}

// docTests prepare a machine for each block of commands.
func docTests() map[string]func(*testing.T, *docHost) {
	podman := func(t *testing.T, h *docHost) {
		h.load = []string{"podman", "load", "-q", "-i", "image.tar"}
		h.clean = [][]string{{"podman", "rm", "-af", "-t", "0"}, {"buildah", "rm", "-a"}, {"podman", "rmi", "-af"}}
	}
	return map[string]func(*testing.T, *docHost){
		"podman-root": podman, "podman-rootless": podman, "buildah-root": podman, "buildah-rootless": podman,
		"docker-root": prepareDocDocker, "docker-rootless": prepareDocRootlessDocker, "containerd-root": prepareDocContainerd,
	}
}

// quietDockerd are the flags of a dockerd that leaves the machine's firewall and routing alone.
func quietDockerd() []string {
	return []string{
		"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false",
		"--oom-score-adjust=0",
	}
}

func prepareDocDocker(t *testing.T, h *docHost) {
	makeDirectory(t, h.path("docker"), 0)
	bindOver(t, h.path("docker"), "/var/lib/docker")
	h.load = []string{"docker", "load", "-q", "-i", "image.tar"}
	// It makes its bridge in a network namespace of its own.
	args := append([]string{"unshare", "--net", "--", "sh", "-c", `ip link set lo up && exec "$@"`, "sh", "dockerd"}, quietDockerd()...)
	h.units = map[string]unit{"docker": {args: args, socket: "/run/docker.sock"}}
	dropOtherDocker(t)
}

// dropOtherDocker takes a client of another version out of the test's view of the machine.
func dropOtherDocker(t *testing.T) {
	t.Helper()
	if err := os.Remove("/usr/local/bin/docker"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func prepareDocRootlessDocker(t *testing.T, h *docHost) {
	socket := fmt.Sprintf("/run/user/%d/docker.sock", userID)
	// dockerd makes its bridge in a network namespace of its own, without slirp4netns, which needs /dev/net/tun.
	makeDirectory(t, h.path("wrap"), 0)
	wrapper := "#!/bin/sh\nexec unshare --net -- sh -c 'ip link set lo up && exec /usr/sbin/dockerd \"$@\"' sh \"$@\"\n"
	if err := os.WriteFile(h.path("wrap/dockerd"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	h.load = []string{"docker", "-H", "unix://" + socket, "load", "-q", "-i", "image.tar"}
	h.units = map[string]unit{"docker": {
		args: append([]string{"/usr/share/docker.io/contrib/dockerd-rootless.sh"}, quietDockerd()...),
		env: []string{
			"DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host", "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none",
			"DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--state-dir=" + h.path("rootlesskit"),
			"PATH=" + h.path("wrap") + ":" + userHome + "/.local/bin:/usr/sbin:/usr/bin",
		},
		socket: socket,
	}}
	dropOtherDocker(t)
}

func prepareDocContainerd(t *testing.T, h *docHost) {
	for _, name := range []string{"containerd", "plyfs"} {
		makeDirectory(t, h.path(name), 0)
		bindOver(t, h.path(name), "/var/lib/"+name)
	}
	h.units = map[string]unit{
		"plyfs-snapshotter": {args: []string{"plyfs", "snapshotter"}, socket: "/run/plyfs/snapshotter.sock"},
		"containerd":        {args: []string{"containerd"}, socket: "/run/containerd/containerd.sock"},
	}
	// It removes the snapshots of removed containers some time later, and until then they are mounted.
	h.settle = [][]string{{"ctr", "leases", "create", "--id", "collect"}, {"ctr", "leases", "rm", "--sync", "collect"}}
}

func makeDirectory(t *testing.T, dir string, uid int) {
	t.Helper()
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, uid, uid)); err != nil {
		t.Fatal(err)
	}
}

// follow runs commands line by line, as a reader does, in a directory that has the image in image.tar.
func (h *docHost) follow(t *testing.T, commands string) {
	t.Helper()
	work := h.path("work")
	if _, err := os.Lstat(work); errors.Is(err, os.ErrNotExist) {
		makeDirectory(t, work, h.uid)
		engineImage(t).writeDocker(t, filepath.Join(work, "image.tar"), docImage)
	}
	inWork := func(args ...string) string {
		return h.run(t, append([]string{"sh", "-ec", `cd "$0" && exec "$@"`, work}, args...)...)
	}
	for line := range strings.Lines(strings.TrimSpace(commands)) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		if words[0] == "systemctl" {
			h.systemctl(t, words[1:])
			continue
		}
		if needsImage := strings.Contains(line, " run ") || strings.Contains(line, " build "); needsImage && h.load != nil {
			inWork(h.load...)
			h.load = nil
		}
		out := inWork("sh", "-ec", line)
		if strings.HasSuffix(line, " ls /") && !strings.Contains(out, "data\n") {
			t.Errorf("%s: the container prints %q", line, out)
		}
	}
}

// systemctl is systemctl restart, of the units that the test knows.
func (h *docHost) systemctl(t *testing.T, words []string) {
	t.Helper()
	if words[0] == "--user" && h.uid != 0 {
		words = words[1:]
	}
	if words[0] != "restart" {
		t.Fatalf("systemctl %s is not known to this test", words[0])
	}
	for _, name := range words[1:] {
		u, known := h.units[name]
		if !known {
			t.Fatalf("docs/engines.md: there is no service %s", name)
		}
		h.start(t, name, u)
	}
}

// start starts a service and waits until it serves.
func (h *docHost) start(t *testing.T, name string, u unit) {
	t.Helper()
	s := &service{name: name, cmd: h.command(context.Background(), u.args...), done: make(chan error, 1)}
	s.cmd.Env = append(s.cmd.Env, u.env...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	h.running = append(h.running, s)
	t.Cleanup(func() { h.stop(t) })
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err := os.Stat(u.socket); err == nil {
			break
		}
		select {
		case err := <-s.done:
			s.done <- err
			t.Fatalf("%s ended: %v\n%s", name, err, tail(s.log.String(), 30))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not serve at %s:\n%s", name, u.socket, tail(s.log.String(), 30))
		}
	}
}

// stop ends the services, the last one first, and what the engines keep.
func (h *docHost) stop(t *testing.T) {
	t.Helper()
	for _, args := range h.settle {
		if out, err := h.try(args...); err != nil {
			t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	h.settle = nil
	for len(h.running) > 0 {
		s := h.running[len(h.running)-1]
		h.running = h.running[:len(h.running)-1]
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
		case <-time.After(30 * time.Second):
			_ = s.cmd.Process.Kill()
			t.Errorf("%s does not end: %s", s.name, tail(s.log.String(), 20))
		}
		if t.Failed() {
			t.Logf("the log of %s ends:\n%s", s.name, tail(s.log.String(), 40))
		}
	}
	for _, dir := range []string{"/var/lib/docker", "/run/docker/netns"} {
		// dockerd and rootlesskit bind some of their directories over themselves.
		_ = unix.Unmount(dir+"/fuse-overlayfs", unix.MNT_DETACH)
		if dir == "/run/docker/netns" {
			mounts, _ := filepath.Glob(dir + "/*")
			for _, m := range mounts {
				_ = unix.Unmount(m, unix.MNT_DETACH)
			}
		}
	}
	if h.clean != nil {
		h.removeAll(t)
	}
}
