package testenv

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Stop stops a process, and returns when each of its threads stands still: until then it may go on answering. The caller continues it,
// with SIGCONT.
func Stop(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatalf("stop %d: %v", pid, err)
	}
	for deadline := time.Now().Add(10 * time.Second); !stopped(t, pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

func stopped(t testing.TB, pid int) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/stat"))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return false // it ends
		}
		// The state stands behind the name, which is in parentheses and may hold anything.
		if i := bytes.LastIndex(b, []byte(") ")); i < 0 || b[i+2] != 'T' {
			return false
		}
	}
	return true
}
