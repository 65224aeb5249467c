package main

import (
	"bytes"
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

// inBothWays mounts the layers without and with the index in dir/index, one after the other, and returns what a script prints.
func inBothWays(t *testing.T, dir, options, script string) (off, on string) {
	t.Helper()
	var out []string
	for _, index := range []string{"off", dir + "/index"} {
		mustMount(t, dir, "plyfs", "mount", "-o", options+",index="+index, "merged")
		out = append(out, shell(t, dir, script))
		mustMount(t, dir, "plyfs", "umount", "merged")
	}
	return out[0], out[1]
}

func setXattr(t *testing.T, value, attr string, path ...string) {
	t.Helper()
	if err := unix.Setxattr(filepath.Join(path...), attr, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// TestIndexBehindRedirects: what is added where a redirect leads shows, though no directory changed that the record has.
func TestIndexBehindRedirects(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "l0/x", "l1/a/y/sub", "l2/a", "l2/keep")
	write(t, "", dir, "l1/a/y/f1")
	setXattr(t, "/a/y", "trusted.overlay.redirect", dir, "l0/x")
	const options = "lowerdir=l0:l1:l2,upperdir=upper,workdir=work"
	mustMount(t, dir, "plyfs", "mount", "-o", options+",index=off", "merged")
	shell(t, dir, "mv merged/a/y merged/z")
	mustMount(t, dir, "plyfs", "umount", "merged")
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "l0", "l1", "l2"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	mkdirs(t, dir, "l2/a/y/sub")
	write(t, "", dir, "l2/a/y/new")
	write(t, "", dir, "l2/a/y/sub/new")
	off, on := inBothWays(t, dir, options, "ls merged/x merged/x/sub merged/z merged/z/sub")
	if want := "merged/x:\nf1\nnew\nsub\n\nmerged/x/sub:\nnew\n\nmerged/z:\nf1\nnew\nsub\n\nmerged/z/sub:\nnew\n"; off != want || on != want {
		t.Errorf("without an index:\n%s\nwith it:\n%s", off, on)
	}
}

// TestOpaqueRootBehindRedirect: what a lower's opaque root hides stays hidden where a redirect leads.
func TestOpaqueRootBehindRedirect(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "l0/a/b", "l0/c", "l1/a/b")
	for _, name := range []string{"l0/.wh..wh..opq", "l0/a/b/x", "l1/a/b/secret"} {
		write(t, "", dir, name)
	}
	const options = "lowerdir=l0:l1,upperdir=upper,workdir=work"
	mustMount(t, dir, "plyfs", "mount", "-o", options+",index=off", "merged")
	shell(t, dir, "mv merged/a/b merged/c/b2")
	mustMount(t, dir, "plyfs", "umount", "merged")
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "l0", "l1"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	off, on := inBothWays(t, dir, options, "ls merged/c/b2")
	if off != "x\n" || on != "x\n" {
		t.Errorf("without an index %q, with it %q", off, on)
	}
}

// TestFsckPlaceholders: what an attribute makes a 0:0 device is an application's, and no whiteout.
func TestFsckPlaceholders(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/d", "upper/d")
	for _, name := range []string{"lower", "upper"} {
		setXattr(t, "0:0:0755", "user.containers.override_stat", dir, name)
	}
	write(t, "", dir, "lower/d/low")
	setXattr(t, "0:0:0600:char-0-0", "user.containers.override_stat", dir, "lower/d/low")
	const options = "lowerdir=lower,upperdir=upper,workdir=work"
	const types = "stat -c '%n %F' merged/d/*"
	mustMount(t, dir, "plyfs", "mount", "-o", options+",xattr_permissions=2", "merged")
	if got := shell(t, dir, "mknod merged/d/dev c 0 0; rm -f merged/d/gone; "+types); strings.Count(got, "character special file") != 2 {
		t.Fatalf("before: %s", got)
	}
	shell(t, dir, "rm merged/d/low")
	mustMount(t, dir, "plyfs", "umount", "merged")
	if got := runIn(t, dir, "plyfs", "fsck", "--repair", "-o", options); got.code > 1 || strings.Contains(got.stdout, "whiteout-without-victim") {
		t.Errorf("fsck: %+v", got)
	}
	mustMount(t, dir, "plyfs", "mount", "-o", options+",xattr_permissions=2", "merged")
	if got := shell(t, dir, types); got != "merged/d/dev character special file\n" {
		t.Errorf("after a repair: %s", got)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")

	// Nor is an index of such a layer wrong.
	if err := os.Remove(filepath.Join(dir, "lower/file")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"index", "build", "-q", "--dir", dir + "/index", "lower"}, {"index", "verify", "-q", "--dir", dir + "/index", "-o", "lowerdir=lower"}} {
		if got := runIn(t, dir, "plyfs", args...); got.code != 0 || strings.Contains(got.stdout, "edited") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

// idmapped makes at show dir with all ids 100,000 higher.
func idmapped(t *testing.T, dir, at string) {
	t.Helper()
	shift := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: shift, GidMappings: shift}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		t.Fatal(err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, at) })
}

// TestIndexIDMapped: an index says nothing about the same directory through an idmapped mount.
func TestIndexIDMapped(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/d", "shifted")
	write(t, "", dir, "lower/d/f")
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "lower"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	idmapped(t, dir+"/lower", dir+"/shifted")
	for lower, want := range map[string]string{"lower": "0 0\n", "shifted": "100000 100000\n"} {
		off, on := inBothWays(t, dir, "lowerdir="+lower, "stat -c %u merged/d merged/d/f | xargs")
		if off != want || on != want {
			t.Errorf("%s belongs to %q without an index, to %q with it, want %q", lower, off, on, want)
		}
	}
}

// TestIndexWithinTick: where times have whole seconds, what changes in the second in which an index was built shows.
func TestIndexWithinTick(t *testing.T) {
	dir := unionTree(t)
	runT := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	runT("truncate", "-s", "16M", dir+"/disk")
	runT("mkfs.ext4", "-q", "-F", "-I", "128", dir+"/disk")
	runT("mount", "-o", "loop", dir+"/disk", dir+"/lower")
	t.Cleanup(func() { testenv.Unmount(t, dir+"/lower") })
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	mkdirs(t, dir, "lower/d")
	write(t, "", dir, "lower/d/f0")
	write(t, "", dir, "lower/d/f1")
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "lower"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	write(t, "", dir, "lower/d/f2")
	if err := os.Remove(filepath.Join(dir, "lower/d/f1")); err != nil {
		t.Fatal(err)
	}
	off, on := inBothWays(t, dir, "lowerdir=lower", "ls merged/d")
	if off != "f0\nf2\n" || on != off {
		t.Errorf("without an index %q, with it %q", off, on)
	}
}

// TestIndexKeptAttribute: an attribute that the builder may not read costs one value, and no directory.
func TestIndexKeptAttribute(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "cache", "lower/d/sub")
	write(t, "", dir, "lower/d/secret")
	write(t, "", dir, "lower/d/sub/f")
	setXattr(t, "v", "user.k", dir, "lower/d/secret")
	for _, err := range []error{os.Chmod(dir+"/lower/d/secret", 0o600), os.Chown(dir+"/cache", 65534, 65534)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := finish(t, asNobody(command(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/cache", "lower"))); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	if got := finish(t, asNobody(command(t, dir, "plyfs", "index", "ls", "--dir", dir+"/cache", "--json"))); !strings.Contains(got.stdout, `"entries":5`) {
		t.Errorf("%+v", got)
	}
}

// TestFsckLeavesIndex: a check without repair finds damage of an index, and notes nothing there.
func TestFsckLeavesIndex(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/d")
	write(t, "", dir, "lower/d/distinctive")
	for i := range 100 { // a record that is too large for a place beside its key
		write(t, "", dir, fmt.Sprint("lower/d/", i))
	}
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "lower"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	logs, err := filepath.Glob(dir + "/index/*/db/*.vlog")
	if err != nil || len(logs) != 1 {
		t.Fatalf("%q, %v", logs, err)
	}
	b, err := os.ReadFile(logs[0])
	at := bytes.Index(b, []byte("distinctive"))
	if err != nil || at < 0 {
		t.Fatal(at, err)
	}
	b[at] ^= 1
	if err := os.WriteFile(logs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	const options = "lowerdir=lower,upperdir=upper,workdir=work,index="
	for _, flag := range []string{"-n", "-q", "--repair"} {
		if got := runIn(t, dir, "plyfs", "fsck", flag, "-o", options+dir+"/index"); !strings.Contains(got.stdout, "stack-index-differs") {
			t.Errorf("%s: %+v", flag, got)
		}
		marks, err := filepath.Glob(dir + "/index/*/stale")
		if err != nil || len(marks) > 0 != (flag == "--repair") {
			t.Errorf("after fsck %s the index has %q, %v", flag, marks, err)
		}
	}
}
