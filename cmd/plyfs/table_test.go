package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"plyfs/fs/mountopt"
	"plyfs/internal/launch"
	"plyfs/internal/testenv"
)

// TestServerHasRoom: a server has a large table of descriptors when it serves, which need not grow while requests wait, and keeps
// open nothing of how it got it.
func TestServerHasRoom(t *testing.T) {
	dir := unionTree(t)
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	pids := servers(testenv.Binary(t), dir)
	if len(pids) != 1 {
		t.Fatalf("servers %v", pids)
	}
	checkRoom(t, pids[0])
	// Only a server that plyfs-mount forked before it began knows of no launcher.
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pids[0]))
	if err != nil || strings.Contains(string(environ), mountopt.VerdictEnv) {
		t.Errorf("the server was started the long way: %v", err)
	}
	if got := runIn(t, dir, "plyfs", "umount", "merged"); got != (result{}) {
		t.Errorf("umount: %+v", got)
	}
	waitGone(t, dir)
}

// checkRoom holds that the table of descriptors of a process is large, and that nothing of how it got so is open.
func checkRoom(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "\nFDSize:")
	size := 0
	if _, err := fmt.Sscan(text, &size); err != nil || size <= launch.TableFD {
		t.Errorf("a table of %d descriptors, %v", size, err)
	}
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, launch.TableFD)); err == nil {
		t.Errorf("descriptor %d stays open", launch.TableFD)
	}
}
