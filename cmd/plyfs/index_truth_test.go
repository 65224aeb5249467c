package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
