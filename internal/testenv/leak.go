package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long things that end by themselves (a server after its unmount) may take to be gone on a busy machine.
const settle = 30 * time.Second

// CheckLeaks makes the test fail if, when it ends, the process has open descriptors that it has not now. It is not for
// tests that run in parallel with others.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := openFiles()
	t.Cleanup(func() {
		deadline := time.Now().Add(settle)
		for {
			left := newFiles(before)
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("descriptors left open: %s", strings.Join(left, ", "))
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func newFiles(before map[string]string) []string {
	var left []string
	now := openFiles()
	for _, fd := range slices.Sorted(maps.Keys(now)) {
		// Descriptors of the runtime's poller come and stay.
		if to := now[fd]; before[fd] == "" && !strings.HasPrefix(to, "anon_inode:[event") {
			left = append(left, fd+" -> "+to)
		}
	}
	return left
}

func openFiles() map[string]string {
	m := make(map[string]string)
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, n := range names {
		to, err := os.Readlink(n)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // that of the directory being listed is gone again
		case err != nil:
			to = err.Error() // such as of a path beyond PATH_MAX, which is open none the less
		}
		m[filepath.Base(n)] = to
	}
	return m
}

// mountPoints returns the mount points of this process's namespace, each once.
func mountPoints() (map[string]bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	m := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 {
			m[f[4]] = true
		}
	}
	return m, nil
}

// leftBehind waits for mounts and child processes that the tests made to go, and names what stays.
func leftBehind(before map[string]bool) error {
	deadline := time.Now().Add(settle)
	for {
		err := leftNow(before)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func leftNow(before map[string]bool) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	var left []string
	for m := range mounts {
		if !before[m] {
			left = append(left, "mount "+m)
		}
	}
	// This process is init of its PID namespace: whatever runs here beside it was started by a test, and orphans
	// that ended wait for it.
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			break
		}
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmd, err := os.ReadFile(filepath.Join("/proc", n.Name(), "cmdline"))
		if err == nil {
			left = append(left, fmt.Sprintf("process %d (%s)", pid, strings.ReplaceAll(string(cmd), "\x00", " ")))
		}
	}
	if left == nil {
		return nil
	}
	return fmt.Errorf("the tests left behind: %s", strings.Join(left, ", "))
}
