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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// program is a mount program as containers/storage uses one.
type program struct {
	path string
	dir  string // where it is started
}

// newProgram puts the binary under test at a path that ends in fuse-overlayfs, by which plyfs knows what is expected.
func newProgram(t testing.TB, dir string) *program {
	t.Helper()
	bin, err := filepath.Abs(testenv.MountBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(bin) == "fuse-overlayfs" {
		return &program{path: bin, dir: dir}
	}
	link := filepath.Join(testenv.Scratch(t), "fuse-overlayfs")
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	return &program{path: link, dir: dir}
}

// start runs the program as the driver does: standard input and output are /dev/null, standard error is a pipe that is
// read to its end. A server that keeps the pipe open is an error, as it would make the driver wait for ever.
func (p *program) start(args ...string) (stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "_CONTAINERS_USERNS_CONFIGURED=done", "_CONTAINERS_ROOTLESS_UID=1000",
		"_CONTAINERS_ROOTLESS_GID=1000")
	var buf bytes.Buffer
	cmd.Stderr = &buf
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = fmt.Errorf("exit 0, but standard error stayed open: %w", err)
	}
	return buf.String(), err
}

// mount mounts options at target, checks that the mount is there as soon as the program has returned, and unmounts it
// when the test ends if the test did not.
func (p *program) mount(t testing.TB, options, target string) {
	t.Helper()
	if stderr, err := p.start("-o", options, target); err != nil {
		t.Fatalf("%s -o %.2000s %s: %v\n%s", p.path, options, target, err, stderr)
	}
	if !isFuse(t, target) {
		t.Fatalf("%s -o %.2000s %s: exit 0 and no mount", p.path, options, target)
	}
	t.Cleanup(func() {
		if isFuse(t, target) {
			unmount(t, target)
		}
	})
}

// isFuse reports whether target is the root of a FUSE mount, in the way of the driver: by the file system's magic number.
func isFuse(t testing.TB, target string) bool {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); errors.Is(err, unix.ENOENT) {
		return false // a target within another mount that is gone
	} else if err != nil {
		t.Fatalf("statfs %s: %v", target, err)
	}
	return fs.Type == unix.FUSE_SUPER_MAGIC && isMounted(t, target)
}

// patience is how long something that happens by itself may take on a busy machine, such as the end of a server after its unmount.
const patience = 30 * time.Second

// unmount calls fusermount3 and checks what the driver relies on: the directory is free at once, and the server ends by
// itself.
func unmount(t testing.TB, target string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "fusermount3", "-u", target).CombinedOutput(); err != nil {
		t.Errorf("fusermount3 -u %s: %v: %s", target, err, out)
		_ = unix.Unmount(target, unix.MNT_DETACH)
		return
	}
	other := target + ".1"
	err := errors.Join(os.Mkdir(other, 0o755), unix.Rename(other, target))
	if err != nil {
		t.Errorf("rename over %s after its unmount: %v", target, err)
	}
	deadline := time.Now().Add(patience)
	for {
		pids := serversOf(target)
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after the unmount of %s its server stays: %v", target, pids)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// serversOf lists processes whose last argument is target.
func serversOf(target string) []string {
	var pids []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.HasSuffix(string(text), "\x00"+target+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// checkTree compares the listing of dir below root with the one that is expected.
func checkTree(t testing.TB, what, root, dir string, want []string) {
	t.Helper()
	got, err := listing.Walk(root, dir)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	checkLines(t, what, want, got)
}

func checkLines(t testing.TB, what string, want, got []string) {
	t.Helper()
	diff := listing.Diff(want, got)
	if len(diff) == 0 {
		return
	}
	if len(diff) > 40 {
		diff = append(diff[:40], fmt.Sprintf("and %d more", len(diff)-40))
	}
	t.Errorf("%s differs (- expected, + found):\n%s", what, strings.Join(diff, "\n"))
}

// newCommand is exec.Command with a limit of time.
func newCommand(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	cmd := exec.CommandContext(ctx, name, args...)
	context.AfterFunc(ctx, cancel)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
