//go:build engines

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reapOrphans does until the test ends what an init process does: podman waits for its monitors to be gone, and as
// orphans they become zombies of the test process, which is init of its PID namespace. Orphans are told from the
// commands that tests wait for by having a session of their own.
func reapOrphans(t *testing.T) {
	t.Helper()
	session, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				reap(session)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
}

func reap(session int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything.
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
		var state string
		var parent, group, sid, pid int
		if _, err := fmt.Sscan(rest, &state, &parent, &group, &sid); err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			continue
		}
		if state == "Z" && parent == os.Getpid() && sid != session {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}
