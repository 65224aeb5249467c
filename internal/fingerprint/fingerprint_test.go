package fingerprint

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/f"), []byte("hello"), 0o640))
	must(t, os.Link(filepath.Join(dir, "a/f"), filepath.Join(dir, "a/g")))
	must(t, os.Symlink("f", filepath.Join(dir, "a/l")))
	must(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
	sparse, err := os.Create(filepath.Join(dir, "s"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("x"), 1<<20)
	must(t, err)
	must(t, sparse.Truncate(3<<20))
	must(t, sparse.Close())
	old := time.Unix(1e9, 123456789)
	for _, p := range []string{"a/f", "p", "s", "a/b", "a", "."} {
		must(t, os.Chtimes(filepath.Join(dir, p), old, old))
	}
	must(t, unix.Lutimes(filepath.Join(dir, "a/l"), []unix.Timeval{{Sec: 1}, {Sec: 2}}))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func take(t *testing.T, dir string, f Field) *Tree {
	t.Helper()
	tree, err := Take(dir, Options{Fields: f})
	must(t, err)
	return tree
}

func TestEqualTrees(t *testing.T) {
	a, b := take(t, build(t), Default|Holes), take(t, build(t), Default|Holes)
	if d := Diff(a, b, Default|Holes); d != nil {
		t.Fatalf("equal trees differ:\n%s", Format(d, 0))
	}
	if len(a.Entries) != 8 || a.Entries["a/g"].Group != "a/f" || a.Entries["a/l"].Target != "f" {
		t.Fatalf("unexpected tree: %v", a.Paths())
	}
	if got := a.Entries["s"].Extents; len(got) != 1 || got[0].Off != 1<<20 {
		t.Fatalf("extents of a sparse file: %v", got)
	}
}

// TestEveryChangeShows makes one change at a time and wants exactly the line that names it.
func TestEveryChangeShows(t *testing.T) {
	old := time.Unix(1e9, 123456789)
	keep := func(dir, p string) { must(t, os.Chtimes(filepath.Join(dir, p), old, old)) }
	for _, c := range []struct {
		want   string
		change func(dir string)
	}{
		{"p: mode: 0600 != 0640", func(d string) { must(t, os.Chmod(d+"/p", 0o640)) }},
		{"s: content: ", func(d string) {
			f, err := os.OpenFile(d+"/s", os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("y"), 5)
			must(t, err)
			must(t, f.Close())
			keep(d, "s")
		}},
		{"s: size: 3145728 != 7", func(d string) { must(t, os.Truncate(d+"/s", 7)); keep(d, "s") }},
		{"p: mtime: 1000000000.123456789 != 5.000000000", func(d string) {
			must(t, os.Chtimes(d+"/p", time.Unix(5, 0), time.Unix(5, 0)))
		}},
		{"a/l: target: f != b", func(d string) {
			must(t, os.Remove(d+"/a/l"))
			must(t, os.Symlink("b", d+"/a/l"))
			must(t, unix.Lutimes(d+"/a/l", []unix.Timeval{{Sec: 1}, {Sec: 2}}))
			keep(d, "a")
		}},
		{"a/b: only in the first tree (directory)", func(d string) { must(t, os.Remove(d+"/a/b")); keep(d, "a") }},
		{"n: only in the second tree (file)", func(d string) { must(t, os.WriteFile(d+"/n", nil, 0o600)); keep(d, ".") }},
		{"p: type: fifo != file", func(d string) {
			must(t, os.Remove(d+"/p"))
			must(t, os.WriteFile(d+"/p", nil, 0o600))
			keep(d, ".")
		}},
		{`a/b: xattr user.k: only in the second tree ("v")`, func(d string) {
			must(t, unix.Setxattr(d+"/a/b", "user.k", []byte("v"), 0))
		}},
	} {
		a, dir := take(t, build(t), 0), build(t)
		c.change(dir)
		d := Diff(a, take(t, dir, 0), 0)
		if len(d) != 1 || !strings.HasPrefix(d[0], c.want) {
			t.Errorf("want one line %q, got:\n%s", c.want, Format(d, 0))
		}
	}
}

func TestHardLinksAndInodes(t *testing.T) {
	dir := build(t)
	a := take(t, dir, All)
	must(t, os.Remove(dir+"/a/g"))
	must(t, os.WriteFile(dir+"/a/g", []byte("hello"), 0o640))
	d := Format(Diff(a, take(t, dir, Groups), Groups), 0)
	if !strings.Contains(d, `a/g: hard link of: a/f != ""`) {
		t.Fatalf("a broken hard link does not show:\n%s", d)
	}
	if bad := a.Inconsistent(); bad != nil {
		t.Fatalf("readdir and stat differ in %v", bad)
	}
	if dup := a.Duplicates(); dup != nil {
		t.Fatalf("duplicate inode numbers: %v", dup)
	}
}

// TestSumIgnoresHoles compares a sparse file with the same bytes written out, and with Sum.
func TestSumIgnoresHoles(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3<<20+17)
	copy(data[1<<20+5:], "some bytes in the middle of zeros")
	must(t, os.WriteFile(dir+"/full", data, 0o600))
	f, err := os.Create(dir + "/sparse")
	must(t, err)
	_, err = f.WriteAt(data[1<<20:1<<20+100], 1<<20)
	must(t, err)
	must(t, f.Truncate(int64(len(data))))
	must(t, f.Close())
	tree := take(t, dir, Content|Holes)
	full, sparse := tree.Entries["full"], tree.Entries["sparse"]
	if full.Sum != sparse.Sum {
		t.Fatal("holes change the sum")
	}
	if sum, err := Sum(bytes.NewReader(data), int64(len(data))); err != nil || sum != full.Sum {
		t.Fatalf("Sum differs from Take (%v)", err)
	}
}

// TestBeyondPathMax walks a path of more than PATH_MAX bytes.
func TestBeyondPathMax(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("d", 250)
	for range 20 {
		must(t, unix.Mkdirat(fd, name, 0o700))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if n := len(take(t, dir, All).Entries); n != 21 {
		t.Fatalf("%d entries", n)
	}
}
