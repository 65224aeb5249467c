package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"plyfs/fs/server"
	"plyfs/internal/testenv"
)

// builders returns the processes that build an index in dir's cache.
func builders(t *testing.T, dir string) int {
	t.Helper()
	lines := shell(t, dir, "grep -lz -- --idle /proc/[0-9]*/cmdline 2>/dev/null || true")
	n := 0
	for _, name := range strings.Fields(lines) {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), dir) {
			n++
		}
	}
	return n
}

func readLog(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const indexedLayers = allLayers + ",index=cache/index,log=log"

// TestIndexLife: a mount that lasts builds the index, the next one answers from it, an edited file is served as it is and ends
// the use of the index, and the mount after that builds another.
func TestIndexLife(t *testing.T) {
	t.Run("plyfs", func(t *testing.T) { indexLife(t, "plyfs", "mount") })
	// This one leaves mounts with an index to plyfs.
	t.Run("plyfs-mount", func(t *testing.T) { indexLife(t, "fuse-overlayfs") })
}

// serverProgram is the name of the program that serves the mount of dir.
func serverProgram(t *testing.T, dir string) string {
	t.Helper()
	pids := servers(testenv.Binary(t), dir)
	if len(pids) != 1 {
		t.Fatalf("%d servers", len(pids))
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(exe)
}

func indexLife(t *testing.T, mount ...string) {
	t.Helper()
	dir := unionTree(t)
	mustMount(t, dir, mount[0], append(mount[1:], "-o", indexedLayers, "merged")...)
	if _, err := os.Stat(filepath.Join(dir, "cache")); err == nil {
		t.Error("the cache directory was made at once")
	}
	testenv.Eventually(t, "the index", func() bool { return strings.Contains(readLog(t, dir), `msg="stack index built"`) })
	shell(t, dir, "umount merged")
	waitGone(t, dir)

	mustMount(t, dir, mount[0], append(mount[1:], "-o", indexedLayers, "merged")...)
	got := shell(t, dir, "ls merged; stat -c %s merged/file; echo changed >>lower/file; cat merged/file; stat -c %s merged/file")
	if exe := serverProgram(t, dir); exe != server.NamePlyfs {
		t.Errorf("a mount with an index is served by %s", exe)
	}
	if want := "file\nsecond\n4\nlow\nchanged\n12\n"; got != want {
		t.Errorf("the mount shows %q, want %q", got, want)
	}
	for _, want := range []string{"was changed in place", "the stack index is not used any more"} {
		if !strings.Contains(readLog(t, dir), want) {
			t.Errorf("the log does not say %q:\n%s", want, readLog(t, dir))
		}
	}
	if strings.Count(readLog(t, dir), "stack index built") != 1 {
		t.Error("an index that was there was built again")
	}
	shell(t, dir, "umount merged")
	waitGone(t, dir)
	if got := shell(t, dir, program(t, "plyfs")+" index ls --json --dir cache/index"); !strings.Contains(got, "/file in layer") {
		t.Errorf("index ls does not say why it is stale: %s", got)
	}

	mustMount(t, dir, mount[0], append(mount[1:], "-o", indexedLayers, "merged")...)
	testenv.Eventually(t, "the second index", func() bool { return strings.Count(readLog(t, dir), "stack index built") == 2 })
	shell(t, dir, "umount merged")
	waitGone(t, dir)
}

// TestMountProgramAlone: without plyfs beside it, plyfs-mount serves mounts without an index, and says so where one was asked for.
func TestMountProgramAlone(t *testing.T) {
	dir := unionTree(t)
	shell(t, dir, program(t, "plyfs")+" index build -q --dir $PWD/cache -o lowerdir=lower:lower2; mkdir bin; cp "+testenv.MountBinary(t)+" bin/fuse-overlayfs")
	got := shell(t, dir, "PATH=/usr/bin:/bin bin/fuse-overlayfs -o "+allLayers+",index=./cache,log=log merged; cat merged/file; umount merged")
	if got != "low\n" {
		t.Errorf("it shows %q", got)
	}
	if log := readLog(t, dir); !strings.Contains(log, "no stack index") || !strings.Contains(log, "plyfs is neither beside") {
		t.Errorf("the log does not say what is missing:\n%s", log)
	}
}

// TestMountProgramBesideOther: a plyfs that can't run, or is no other program, is as good as none: the mount is served, and the
// caller gets its verdict.
func TestMountProgramBesideOther(t *testing.T) {
	for name, make := range map[string]string{
		"no program": "echo nonsense >bin/plyfs; chmod +x bin/plyfs",
		"itself":     "ln bin/fuse-overlayfs bin/plyfs",
		"no right":   "touch bin/plyfs",
	} {
		t.Run(name, func(t *testing.T) {
			dir := unionTree(t)
			shell(t, dir, program(t, "plyfs")+" index build -q --dir $PWD/cache -o lowerdir=lower:lower2; mkdir bin; cp "+
				testenv.MountBinary(t)+" bin/fuse-overlayfs; "+make)
			got := shell(t, dir, "bin/fuse-overlayfs -o "+allLayers+",index=./cache,log=log merged; cat merged/file; umount merged")
			if got != "low\n" {
				t.Errorf("it shows %q", got)
			}
			if log := readLog(t, dir); !strings.Contains(log, "no stack index") || !strings.Contains(log, "plyfs") {
				t.Errorf("the log does not say what is wrong:\n%s", log)
			}
			waitGone(t, dir)
		})
	}
}

// TestMountProgramWarnsOnce: what plyfs finds too, once a mount was handed over to it, is told once.
func TestMountProgramWarnsOnce(t *testing.T) {
	dir := unionTree(t)
	shell(t, dir, program(t, "plyfs")+" index build -q --dir $PWD/cache -o lowerdir=lower:lower2")
	got := runIn(t, dir, "fuse-overlayfs", "-o", allLayers+",index=./cache,data=passthrough,quota_bytes=1G", "merged")
	if got.code != 0 || strings.Count(got.stderr, "data=passthrough") != 1 {
		t.Errorf("%+v", got)
	}
	if exe := serverProgram(t, dir); exe != server.NamePlyfs {
		t.Errorf("it is served by %s", exe)
	}
	shell(t, dir, "umount merged")
	waitGone(t, dir)
}

// TestMountProgramNames: plyfs-mount hands a mount over under whatever name it was called, and the server has what it had from the
// beginning.
func TestMountProgramNames(t *testing.T) {
	dir := unionTree(t)
	shell(t, dir, program(t, "plyfs")+" index build -q --dir $PWD/cache -o lowerdir=lower:lower2")
	beside := filepath.Dir(testenv.MountBinary(t))
	for _, name := range []string{"plyfs-mount", "my-mount", "fuse-overlayfs", "mount.fuse3.plyfs"} {
		args := []string{"-o", allLayers + ",index=" + dir + "/cache", "x", "merged"}
		switch name {
		case "fuse-overlayfs":
			args = slices.Delete(args, 2, 3)
		case "mount.fuse3.plyfs":
			args = []string{"x", filepath.Join(dir, "merged"), args[0], args[1]}
		}
		link := filepath.Join(testenv.Scratch(t), name)
		if err := os.Symlink(filepath.Join(beside, server.NameMount), link); err != nil {
			t.Fatal(err)
		}
		if got := runIn(t, dir, link, args...); got != (result{}) {
			t.Fatalf("%s: %+v", name, got)
		}
		if exe := serverProgram(t, dir); exe != server.NamePlyfs {
			t.Errorf("%s: served by %s", name, exe)
		}
		checkRoom(t, servers(testenv.Binary(t), dir)[0])
		if got := shell(t, dir, "cat merged/file; umount merged"); got != "low\n" {
			t.Errorf("%s: the mount shows %q", name, got)
		}
		waitGone(t, dir)
	}
}

// TestMountProgramServes: plyfs-mount serves what has no index, and needs no other program for it.
func TestMountProgramServes(t *testing.T) {
	dir := unionTree(t)
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	if exe := serverProgram(t, dir); exe != server.NameMount {
		t.Errorf("it is served by %s", exe)
	}
	shell(t, dir, "umount merged")
	waitGone(t, dir)
}

// TestIndexBuilderEnds: an unmount, and a kill of the server, end the builder, which leaves nothing that counts as an index.
func TestIndexBuilderEnds(t *testing.T) {
	for _, how := range []string{"umount merged", "kill -9 $(cat pid); umount -l merged"} {
		dir := unionTree(t)
		// Enough to do for the builder to be caught at it.
		shell(t, dir, "for i in $(seq 200); do mkdir lower/d$i; (cd lower/d$i && seq 400 | xargs touch); done")
		cmd, _ := startForeground(t, dir, indexedLayers)
		shell(t, dir, "echo "+strconv.Itoa(cmd.Process.Pid)+" >pid")
		testenv.Eventually(t, "the builder", func() bool { return builders(t, dir) > 0 })
		shell(t, dir, how)
		_ = cmd.Wait()
		testenv.Eventually(t, "the end of the builder", func() bool { return builders(t, dir) == 0 })
		got := shell(t, dir, program(t, "plyfs")+" index ls --json --dir cache/index")
		if strings.Contains(got, `"state": "broken"`) {
			t.Errorf("after %s: %s", how, got)
		}
	}
}

// TestIndexUnusable: a cache that cannot be used is a warning where it was asked for, and never fails a mount.
func TestIndexUnusable(t *testing.T) {
	dir := unionTree(t)
	shell(t, dir, "mkdir cache; chmod 777 cache")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",index=./cache,log=log", "merged")
	if got := shell(t, dir, "cat merged/file"); got != "low\n" {
		t.Errorf("the mount holds %q", got)
	}
	if log := readLog(t, dir); !strings.Contains(log, "no stack index") || !strings.Contains(log, "cache") {
		t.Errorf("the log says nothing of the cache:\n%s", log)
	}
	shell(t, dir, "umount merged")
	waitGone(t, dir)
}

// TestIndexUserNamespace: the root of a user namespace has an index of his own, since he sees other owners.
func TestIndexUserNamespace(t *testing.T) {
	dir := unionTree(t)
	build := program(t, "plyfs") + " index build -q --dir $PWD/cache -o lowerdir=lower:lower2"
	shell(t, dir, build+"; unshare -Ur sh -ec '"+build+"'")
	if got := strings.Count(shell(t, dir, program(t, "plyfs")+" index ls --json --dir cache"), `"name"`); got != 2 {
		t.Errorf("%d indexes of the same layers in two namespaces, want 2", got)
	}
}
