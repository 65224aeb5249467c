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

	"plyfs/internal/testenv"
)

// The user of the rootless tests and its subordinate ids. They exist in the tests' mount namespace only.
const (
	userName  = "plyfstest"
	userID    = 61234
	subIDs    = 400000
	subIDsLen = 65536
)

// settings is where the engines look for their configuration in a home directory.
const settings = "home/.config/containers/"

// engine runs container engines with a storage of their own, as root or as a user.
type engine struct {
	dir     string // on a disk, owned by the user
	uid     int
	env     []string
	program string     // the mount program that storage.conf names
	log     string     // of the calls of the mount program
	clean   [][]string // commands that remove all containers and images
}

// newEngine prepares everything that podman and buildah need to run on this machine as it is: configuration that asks
// for no more resources, cgroups and networks than they have here, and a user with subordinate ids. All of it, and what
// the engines leave, is undone when the test ends.
func newEngine(t *testing.T, uid int) *engine {
	t.Helper()
	unix.Umask(0o022)
	isolate(t)
	reapOrphans(t)
	dir, err := os.MkdirTemp(filepath.Dir(os.TempDir()), "engine-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{dir: dir, uid: uid, clean: [][]string{
		{"podman", "rm", "-af", "-t", "0"}, {"buildah", "rm", "-a"}, {"podman", "rmi", "-af"},
	}}
	for _, d := range []string{settings, "tmp", "vartmp", "run", "xdg", "graph", "networks"} {
		if err := os.MkdirAll(e.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e.buildTreedump(t) // before what may hide the sources
	// Engines that are killed leave their copies of images there, whatever TMPDIR says.
	bindOver(t, e.path("vartmp"), "/var/tmp")
	t.Cleanup(func() { e.close(t) })
	e.writeProgram(t)
	e.writeConfig(t)
	e.env = []string{
		"HOME=" + e.path("home"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + e.path("tmp"), "LANG=C.UTF-8",
		"XDG_RUNTIME_DIR=" + e.path("xdg"), "BUILDAH_ISOLATION=chroot",
	}
	if uid == 0 {
		// A user's are found in the home directory, also by podman's clean-up, which gets no such variables.
		e.env = append(e.env, "CONTAINERS_STORAGE_CONF="+e.path(settings+"storage.conf"),
			"CONTAINERS_CONF="+e.path(settings+"containers.conf"), "CONTAINERS_REGISTRIES_CONF="+e.path(settings+"registries.conf"))
	}
	err = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, uid))
	})
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(e.path("xdg"), 0o700)); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *engine) path(name string) string { return filepath.Join(e.dir, name) }

// writeProgram makes a mount program that writes down how it is called and then becomes the binary under test.
func (e *engine) writeProgram(t *testing.T) {
	t.Helper()
	bin, err := filepath.Abs(testenv.MountBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	e.program, e.log = e.path("bin/fuse-overlayfs"), e.path("program.log")
	if err := errors.Join(os.Mkdir(e.path("bin"), 0o755), os.Mkdir(e.path("real"), 0o755),
		os.Symlink(bin, e.path("real/fuse-overlayfs")), os.WriteFile(e.log, nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", e.log, e.path("real/fuse-overlayfs"))
	if err := os.WriteFile(e.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// writeConfig writes the engines' configuration. crun stays below the limits of a machine without CAP_SYS_RESOURCE;
// cgroups and networks are not used; locks are files, so that nothing stays in /dev/shm.
func (e *engine) writeConfig(t *testing.T) {
	t.Helper()
	for name, text := range map[string]string{
		"storage.conf": fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n"+
			"[storage.options.overlay]\nmount_program = %q\n", e.path("graph"), e.path("run"), e.program),
		"containers.conf": fmt.Sprintf("[containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=4096:4096\"]\n"+
			"netns = \"none\"\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n"+
			"[network]\nnetwork_config_dir = %q\n"+
			"[engine]\nruntime = \"crun\"\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\nlock_type = \"file\"\n"+
			"tmp_dir = %q\nstatic_dir = %q\nvolume_path = %q\n",
			e.path("networks"), e.path("run/libpod"), e.path("graph/libpod"), e.path("graph/volumes")),
		"registries.conf": "unqualified-search-registries = []\n",
		"policy.json":     `{"default":[{"type":"insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(e.path(settings+name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// isolate gives the test a /run, a /dev/shm and a user database of its own, and takes a cgroup hierarchy away that crun
// does not get along with.
func isolate(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/run", "/dev/shm"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
			t.Fatalf("mount a tmpfs on %s: %v", dir, err)
		}
		t.Cleanup(func() { testenv.Unmount(t, dir) })
	}
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Fatalf("unmount the unified part of a hybrid cgroup hierarchy: %v", err)
	}
	dir := testenv.Scratch(t)
	ids := fmt.Sprintf("%s:%d:%d\n", userName, subIDs, subIDsLen)
	for file, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/nonexistent:/bin/sh\n", userName, userID, userID),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n", userName, userID),
		"/etc/subuid": ids, "/etc/subgid": ids,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("the user database (package uidmap): %v", err)
		}
		changed := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(changed, append(text, line...), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(changed, file, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("bind over %s: %v", file, err)
		}
		t.Cleanup(func() { testenv.Unmount(t, file) })
	}
}

// command prepares a command as the engine's user.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = e.dir
	cmd.Env = e.env
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(e.uid), Gid: uint32(e.uid)}}
	return cmd
}

// try runs a command and returns what it printed on standard output.
func (e *engine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := e.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("as uid %d: %s: %w\nstdout: %s\nstderr: %s", e.uid, strings.Join(args, " "), err,
			tail(stdout.String(), 20), tail(stderr.String(), 30))
	}
	return stdout.String(), nil
}

// run is try for a command that has to succeed.
func (e *engine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.try(args...)
	if err != nil {
		calls, _ := os.ReadFile(e.log)
		t.Fatalf("%v\nlast calls of the mount program:\n%s", err, tail(string(calls), 3))
	}
	return out
}

// tail returns the last n lines of text, each cut where it gets too long to read.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i, l := range lines {
		if len(l) > 600 {
			lines[i] = l[:300] + " ... " + l[len(l)-280:]
		}
	}
	return strings.Join(lines, "\n")
}

// expect compares what a command printed.
func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// close ends what the engines keep running, checks that no server and no mount stays, and removes the storage.
func (e *engine) close(t *testing.T) {
	t.Helper()
	for _, args := range e.clean {
		if _, err := e.try(args...); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}
	e.checkServers(t)
	e.endPause(t)
	// containers/storage binds its directory over itself.
	if isMountPoint(e.path("graph/overlay")) {
		testenv.Unmount(t, e.path("graph/overlay"))
	}
	if err := os.RemoveAll(e.dir); err != nil {
		t.Errorf("remove the storage: %v", err)
	}
	// buildah makes this where a process of its own has got no environment; it stays empty.
	user := fmt.Sprintf("/tmp/containers-user-%d", e.uid)
	for _, d := range []string{user + "/containers", user} {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up after buildah: %v", err)
		}
	}
}

// checkServers waits for the servers of this storage to be gone; nothing but their unmounts ends them.
func (e *engine) checkServers(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		left := e.servers()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%d servers stay after everything was removed, one is: %s", len(left), tail(left[0], 1))
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// servers returns the command lines of the processes that serve mounts of this storage.
func (e *engine) servers() []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if err == nil && strings.HasSuffix(args[0], "fuse-overlayfs") && strings.HasPrefix(args[len(args)-1], e.dir) {
			found = append(found, strings.Join(args, " "))
		}
	}
	return found
}

// endPause ends the process by which rootless podman keeps its namespaces.
func (e *engine) endPause(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(e.path("run/libpod/pause.pid"))
	if err != nil {
		return
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || pid <= 1 {
		t.Errorf("pause.pid holds %q", text)
		return
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Errorf("end podman's pause process: %v", err)
	}
}

func isMountPoint(dir string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	return strings.Contains(string(text), " "+dir+" ")
}

// treedump is the program that lists a tree within a container.
func (e *engine) treedump() string { return e.path("treedump") }

// buildTreedump makes it.
func (e *engine) buildTreedump(t *testing.T) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", e.path("treedump"), "plyfs/internal/e2e/treedump")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build treedump: %v: %s", err, text)
	}
}

// asEach runs a test as root and as the user.
func asEach(t *testing.T, test func(*testing.T, *engine)) {
	t.Run("root", func(t *testing.T) { test(t, newEngine(t, 0)) })
	t.Run("rootless", func(t *testing.T) { test(t, newEngine(t, userID)) })
}
