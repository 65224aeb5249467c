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
		if state(f) != 'T' { // or it ends
			return false
		}
	}
	return true
}

// Ended returns when the process has ended and nothing is open in it any more. Somebody may still have to wait for it.
func Ended(t testing.TB, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ended(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// ended says whether each thread of the process has ended: they share the descriptors.
func ended(pid int) bool {
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return true
	}
	for _, thread := range threads {
		if s := state(filepath.Join("/proc", strconv.Itoa(pid), "task", thread.Name(), "stat")); s != 0 && s != 'Z' && s != 'X' {
			return false
		}
	}
	return true
}

// state is the letter in a stat file of /proc that says what a thread does, 0 if there is no such thread any more.
func state(file string) byte {
	b, err := os.ReadFile(file)
	// It stands behind the name, which is in parentheses and may hold anything.
	i := bytes.LastIndex(b, []byte(") "))
	if err != nil || i < 0 {
		return 0
	}
	return b[i+2]
}
