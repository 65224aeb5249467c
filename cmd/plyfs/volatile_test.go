package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"plyfs/internal/testenv"
)

// envStarved hands the file system of a test on to its run in a user namespace.
const envStarved = "PLYFS_CMD_TEST_STARVED"

// TestVolatileLostData: a volatile mount syncs nothing, but fsync fails from the moment on that data was lost.
func TestVolatileLostData(t *testing.T) {
	if testenv.InUserNamespace() {
		dir := os.Getenv(envStarved)
		lostData(t, testenv.Starved{Root: filepath.Join(dir, "root"), Pool: filepath.Join(dir, "pool")}, "noopen")
		return
	}
	for _, mode := range []string{"noopen", "passthrough"} {
		t.Run(mode, func(t *testing.T) { lostData(t, testenv.NewStarved(t), mode) })
	}
	t.Run("rootless", func(t *testing.T) {
		s := testenv.NewStarved(t)
		if err := os.Chmod(s.Root, 0o777); err != nil {
			t.Fatal(err)
		}
		t.Setenv(envStarved, filepath.Dir(s.Root))
		testenv.RunInUserNamespace(t, "^TestVolatileLostData$")
	})
}

func lostData(t *testing.T, s testenv.Starved, mode string) {
	t.Helper()
	dir := filepath.Join(s.Root, "union")
	leavesNothing(t, dir)
	mkdirs(t, dir, "lower", "lower2", "upper", "work", "merged")
	write(t, "low\n", dir, "lower/file")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",volatile,data="+mode, "merged")
	shell(t, dir, "head -c 1000000 /dev/zero >merged/new; sync merged/new merged/file merged")
	s.Starve(t)
	if err := testenv.WriteBack(filepath.Join(dir, "upper/new")); err == nil {
		t.Fatal("write-back to a full device succeeds")
	}
	for range 2 {
		for _, name := range []string{"new", "file", "."} {
			got := runIn(t, dir, "/bin/sync", "merged/"+name)
			if got.code == 0 || !strings.Contains(got.stderr, "error syncing") {
				t.Errorf("fsync of %s after a failed write-back: %+v", name, got)
			}
		}
		s.Feed(t)
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
	onlyMark(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, "work/work/incompat/volatile")); err != nil {
		t.Fatal(err)
	}
	got := runIn(t, dir, "plyfs", "mount", "-o", allLayers+",volatile", "merged")
	if got.code != exitMount || !strings.Contains(got.stderr, "run sync -f "+dir+"/work,") {
		t.Errorf("a mount before anyone was told of the error: %+v", got)
	}
	onlyMark(t, dir)
	_ = runIn(t, dir, "/bin/sync", "-f", "work") // tells it
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",volatile", "merged")
	shell(t, dir, "sync merged")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
}

// onlyMark fails the test unless the work directory holds nothing but the place of the volatile mark.
func onlyMark(t *testing.T, dir string) {
	t.Helper()
	if got := shell(t, dir, "ls -A work/work"); got != "incompat\n" {
		t.Errorf("the work directory holds %q", got)
	}
}

// TestVolatileKilled: a killed volatile mount leaves nothing that the next mount does not remove.
func TestVolatileKilled(t *testing.T) {
	dir := filepath.Join(testenv.Ext4(t, 16<<20), "union")
	leavesNothing(t, dir)
	mkdirs(t, dir, "lower", "lower2", "upper", "work", "merged")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",volatile", "merged")
	shell(t, dir, "echo x >merged/new")
	for _, pid := range servers(testenv.Binary(t), dir) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	waitGone(t, dir)
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	if err := os.RemoveAll(filepath.Join(dir, "work/work/incompat/volatile")); err != nil {
		t.Fatal(err)
	}
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	if got := shell(t, dir, "cat merged/new"); got != "x\n" {
		t.Errorf("the mount holds %q", got)
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
	onlyMark(t, dir)
}
