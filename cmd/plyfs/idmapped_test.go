package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// TestLowerIDMappedAndMapped: containers/storage gives a mount program a map, and lower directories which that map has been laid over.
func TestLowerIDMappedAndMapped(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "stack/top", "stack/bottom", "shifted")
	write(t, "", dir, "stack/top/f")
	write(t, "", dir, "stack/bottom/g")
	idmapped(t, dir+"/stack", dir+"/shifted")
	if err := os.Symlink("shifted/top", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	const maps = ",uidmapping=0:100000:65536,gidmapping=0:100000:65536"
	owners := func(names string) string { return shell(t, dir, "cd "+names+"; stat -c %u:%g * | xargs") }

	mustMount(t, dir, "fuse-overlayfs", "-o", "lowerdir=link:shifted/bottom:lower,upperdir=upper,workdir=work"+maps, "merged")
	if got := owners("merged"); got != "100000:100000 100000:100000 100000:100000\n" {
		t.Errorf("owners in the mount: %s", got)
	}
	shell(t, dir, "chown 100007 merged/f; echo more >>merged/g")
	if got := owners("upper"); got != "7:0 0:0\n" {
		t.Errorf("owners on the disk: %s", got)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")

	mustMount(t, dir, "plyfs", "mount", "-o", "lowerdir=link"+maps, "merged")
	if got := owners("merged"); got != "65534:65534\n" {
		t.Errorf("plyfs mount, which does as it is told: %s", got)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")

	// The directory is on no other mount any more.
	if err := unix.Mount("none", dir+"/stack", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir+"/stack") })
	got := runIn(t, dir, "fuse-overlayfs", "-o", "lowerdir=link:lower"+maps, "merged")
	if want := "lowerdir=link is on an id-mapped mount"; got.code != 0 || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, want) {
		t.Errorf("%+v, want a line with %q", got, want)
	}
	if got := owners("merged"); got != "65534:65534 100000:100000\n" {
		t.Errorf("owners where nothing can be done: %s", got)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
}
