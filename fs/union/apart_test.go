package union

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

func runT(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// remounted has use work with unions of the same lowers, upper and work directory, one after the other.
func remounted(t *testing.T, dir string, lowers []string, use ...func(u *Union)) {
	t.Helper()
	must(t, os.Mkdir(filepath.Join(dir, "upper"), 0o755), os.Mkdir(filepath.Join(dir, "work"), 0o755))
	for _, f := range use {
		var ls []*layer.Layer
		for _, d := range append(lowers, filepath.Join(dir, "upper"), filepath.Join(dir, "work")) {
			l, err := layer.Open(d)
			must(t, err)
			ls = append(ls, l)
		}
		k := len(lowers)
		u, err := New(Options{Lowers: ls[:k:k], Upper: ls[k], Work: ls[k+1]})
		must(t, err)
		f(u)
		must(t, u.Close())
	}
}

func inodeOf(t *testing.T, u *Union, name string) uint64 {
	t.Helper()
	n, a, err := u.Lookup(u.Root(), name)
	must(t, err)
	u.Forget(n, 1)
	return a.Ino
}

func contentOf(t *testing.T, u *Union, name string) string {
	t.Helper()
	n, _, err := u.Lookup(u.Root(), name)
	must(t, err)
	defer u.Forget(n, 1)
	b := make([]byte, 64)
	k, err := u.Read(n, b, 0)
	must(t, err)
	return string(b[:k])
}

func chmodIn(t *testing.T, u *Union, name string, mode uint32) {
	t.Helper()
	n, _, err := u.Lookup(u.Root(), name)
	must(t, err)
	defer u.Forget(n, 1)
	_, err = u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMode, Mode: mode})
	must(t, err)
}

// twoNames makes a file with two names in a new directory.
func twoNames(t *testing.T, dir, name, content string) string {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644),
		os.Link(filepath.Join(dir, name), filepath.Join(dir, name+"2")))
	return dir
}

// TestSubvolumes: files of different subvolumes, which have the same numbers and one UUID, stay apart, and keep their numbers.
func TestSubvolumes(t *testing.T) {
	root := testenv.Btrfs(t, 256<<20)
	var lowers []string
	for _, name := range []string{"a", "b"} {
		sub := filepath.Join(root, "of-"+name)
		runT(t, "btrfs", "subvolume", "create", sub)
		lowers = append(lowers, twoNames(t, filepath.Join(sub, "l"), name, name))
	}
	before := map[string]uint64{}
	names := []string{"a", "a2", "b", "b2"}
	remounted(t, root, lowers, func(u *Union) {
		for _, n := range names {
			before[n] = inodeOf(t, u, n)
		}
		chmodIn(t, u, "a", 0o600)
		chmodIn(t, u, "b", 0o600)
	}, func(u *Union) {
		for _, n := range names {
			if got := inodeOf(t, u, n); got != before[n] {
				t.Errorf("%s had the number %d and has %d", n, before[n], got)
			}
			if got := contentOf(t, u, n); got != n[:1] {
				t.Errorf("%s holds %q", n, got)
			}
		}
	})
	if before["a"] == before["b"] || before["a"] != before["a2"] {
		t.Errorf("numbers %v", before)
	}
}

// copiedDisks are two lowers on copies of one disk: the first has a and a2, one file, the second that file as b and b2.
func copiedDisks(t *testing.T, dir string) []string {
	t.Helper()
	first := filepath.Join(dir, "disk")
	runT(t, "truncate", "-s", "16M", first)
	runT(t, "mkfs.ext4", "-q", "-F", first)
	mount := func(disk string) string {
		at := disk + ".d"
		must(t, os.Mkdir(at, 0o755))
		runT(t, "mount", "-o", "loop", disk, at)
		t.Cleanup(func() { testenv.Unmount(t, at) })
		return at
	}
	one := mount(first)
	lowers := []string{twoNames(t, filepath.Join(one, "l"), "a", "one")}
	runT(t, "sync", "-f", one)
	second := filepath.Join(dir, "copy")
	runT(t, "cp", "--sparse=always", first, second)
	two := mount(second)
	for _, n := range []string{"", "2"} {
		must(t, os.Rename(filepath.Join(two, "l/a"+n), filepath.Join(two, "l/b"+n)))
	}
	must(t, os.WriteFile(filepath.Join(two, "l/b"), []byte("two"), 0))
	return append(lowers, filepath.Join(two, "l"))
}

// TestBrokenLinks: where no handle tells what a hard link of a lower is of, each name is copied up for itself, and what was written through it
// stays there.
func TestBrokenLinks(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, dir string) []string{
		"copied disks": copiedDisks,
		"no attributes": func(t *testing.T, dir string) []string {
			must(t, unix.Mount("ramfs", dir, "ramfs", 0, ""))
			t.Cleanup(func() { testenv.Unmount(t, dir) })
			return []string{twoNames(t, filepath.Join(testenv.Scratch(t), "l"), "a", "one")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testenv.Scratch(t)
			remounted(t, dir, make(t, dir), func(u *Union) {
				first, _, err := u.Lookup(u.Root(), "a")
				must(t, err)
				n, _, err := u.Lookup(u.Root(), "a2")
				must(t, err)
				_, err = u.Write(n, []byte("new"), 0, KeepSetID)
				must(t, err)
				u.Forget(n, 1)
				u.Forget(first, 1)
			}, func(u *Union) {
				if a, a2 := contentOf(t, u, "a"), contentOf(t, u, "a2"); a != "one" || a2 != "new" {
					t.Errorf("a holds %q, and a2, to which was written, %q", a, a2)
				}
				must(t, u.Unlink(u.Root(), "a"))
				if a2 := contentOf(t, u, "a2"); a2 != "new" {
					t.Errorf("after a is gone a2 holds %q", a2)
				}
			})
		})
	}
}

// TestCopiedDisk: of file systems that nothing tells apart, no file is taken for another.
func TestCopiedDisk(t *testing.T) {
	dir := testenv.Scratch(t)
	lowers := copiedDisks(t, dir)
	remounted(t, dir, lowers, func(u *Union) { chmodIn(t, u, "a", 0o600) }, func(u *Union) {
		for name, want := range map[string]string{"a": "one", "a2": "one", "b": "two", "b2": "two"} {
			if got := contentOf(t, u, name); got != want {
				t.Errorf("%s holds %q, want %q", name, got, want)
			}
		}
		n, a, err := u.Lookup(u.Root(), "b")
		must(t, err)
		u.Forget(n, 1)
		if a.Mode&0o777 != 0o644 || a.Ino == inodeOf(t, u, "a") {
			t.Errorf("b has mode %o and number %d, as a", a.Mode, a.Ino)
		}
	})
}

// TestLinksReadOnly: where nothing is copied up, names of one file are one file, whatever the layers can tell.
func TestLinksReadOnly(t *testing.T) {
	l, err := layer.Open(twoNames(t, filepath.Join(testenv.Scratch(t), "l"), "a", "one"))
	must(t, err)
	u, err := New(Options{Lowers: []*layer.Layer{l}})
	must(t, err)
	defer u.Close()
	first, a, err := u.Lookup(u.Root(), "a")
	must(t, err)
	second, _, err := u.Lookup(u.Root(), "a2")
	must(t, err)
	if first != second || a.Nlink != 2 {
		t.Errorf("two nodes: %v, %d links", first != second, a.Nlink)
	}
	u.Forget(first, 1)
	u.Forget(second, 1)
}
