package upperdiff

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

var must = testenv.Must

// tree is the directories of a layer over another.
type tree struct {
	testing.TB
	upper, work, lower, bottom string
}

func newTree(t testing.TB) tree {
	t.Helper()
	base := testenv.Scratch(t)
	x := tree{TB: t}
	for name, dir := range map[string]*string{"upper": &x.upper, "work": &x.work, "lower": &x.lower, "bottom": &x.bottom} {
		*dir = filepath.Join(base, name)
		must(t, os.Mkdir(*dir, 0o755))
	}
	return x
}

func (x tree) layers() (newer, older Layers) {
	return Layers{Own: x.upper, Work: x.work, Lowers: []string{x.lower, x.bottom}}, Layers{Own: x.lower, Lowers: []string{x.bottom}}
}

// put writes files, with their names as content, and directories (names that end in a slash).
func (x tree) put(dir string, names ...string) {
	x.Helper()
	for _, n := range names {
		p := filepath.Join(dir, n)
		must(x, os.MkdirAll(filepath.Dir(p), 0o755))
		if strings.HasSuffix(n, "/") {
			must(x, os.MkdirAll(p, 0o755))
			continue
		}
		must(x, os.WriteFile(p, []byte(n), 0o644))
		must(x, os.Chtimes(p, unixTime, unixTime))
	}
}

func (x tree) whiteout(names ...string) {
	x.Helper()
	for _, n := range names {
		must(x, os.MkdirAll(filepath.Dir(filepath.Join(x.upper, n)), 0o755))
		must(x, unix.Mknod(filepath.Join(x.upper, n), unix.S_IFCHR, 0))
	}
}

func (x tree) attr(name, attr, value string) {
	x.Helper()
	must(x, unix.Lsetxattr(filepath.Join(x.upper, name), attr, []byte(value), 0))
}

// changes returns the changes, one "K path" a line, and checks that the comparison of whole trees finds the same.
func (x tree) changes() []string {
	x.Helper()
	d, err := Open(x.layers())
	must(x, err)
	defer func() { must(x, d.Close()) }()
	if !d.narrow {
		x.Fatal("the layers are not recognised as each other's")
	}
	got := d.lines(x)
	d.narrow = false
	if whole := d.lines(x); !slices.Equal(got, whole) {
		x.Errorf("by the upper:\n%s\nby the trees:\n%s", strings.Join(got, "\n"), strings.Join(whole, "\n"))
	}
	return got
}

func (d *Diff) lines(t testing.TB) (lines []string) {
	t.Helper()
	list, err := d.Changes(context.Background())
	must(t, err)
	for _, c := range list {
		lines = append(lines, c.Kind.String()+" "+c.Path)
	}
	return lines
}

func TestForms(t *testing.T) {
	trusted, user := ovl.Trusted(), ovl.User()
	for name, c := range map[string]struct {
		prepare func(x tree)
		want    []string
	}{
		"nothing": {func(x tree) { x.put(x.lower, "d/f") }, nil},
		"added, changed, deleted": {func(x tree) {
			x.put(x.lower, "d/f", "d/g")
			x.put(x.bottom, "e/h")
			x.put(x.upper, "d/new/file")
			must(x, os.WriteFile(filepath.Join(x.upper, "d/f"), []byte("other"), 0o644))
			x.whiteout("d/g", "e/h")
		}, []string{"C d", "C d/f", "D d/g", "A d/new", "A d/new/file", "C e", "D e/h"}},
		"a whiteout of nothing": {func(x tree) { x.whiteout("x", "d/y") }, []string{"A d"}},
		"whiteouts of files and attributes": {func(x tree) {
			x.put(x.lower, "a", "b", "c/d")
			x.put(x.upper, ovl.AUFSWhiteout("a"), "b", "c/")
			must(x, os.Truncate(filepath.Join(x.upper, "b"), 0))
			x.attr("b", trusted.Whiteout, "y")
			x.attr("", trusted.Opaque, "x")
			x.put(x.upper, "c/"+ovl.AUFSOpaque)
		}, []string{"D a", "D b", "C c", "D c/d"}},
		"copied up and not changed": {func(x tree) {
			x.put(x.lower, "d/f", "d/e/")
			x.put(x.upper, "d/f", "d/e/")
		}, nil},
		"content changed, size and time not": {func(x tree) {
			x.put(x.lower, "f")
			must(x, os.WriteFile(filepath.Join(x.upper, "f"), []byte("g"), 0o644))
			must(x, os.Chtimes(filepath.Join(x.upper, "f"), unixTime, unixTime))
		}, []string{"C f"}},
		"mode, owner, attribute": {func(x tree) {
			x.put(x.lower, "mode", "owner", "attr", "dir/")
			x.put(x.upper, "mode", "owner", "attr", "dir/")
			must(x, os.Chmod(filepath.Join(x.upper, "mode"), 0o600))
			must(x, os.Chown(filepath.Join(x.upper, "owner"), 1, 2))
			x.attr("attr", "user.x", "y")
			must(x, os.Chmod(filepath.Join(x.upper, "dir"), 0o700))
		}, []string{"C attr", "C dir", "C mode", "C owner"}},
		"opaque": {func(x tree) {
			x.put(x.lower, "d/a", "d/b", "d/sub/x")
			x.put(x.bottom, "d/c")
			x.put(x.upper, "d/b", "d/n", "d/sub/y")
			x.attr("d", trusted.Opaque, "y")
		}, []string{"C d", "D d/a", "D d/c", "A d/n", "C d/sub", "D d/sub/x", "A d/sub/y"}},
		"opaque, of fuse-overlayfs and of user namespaces": {func(x tree) {
			x.put(x.lower, "d/a", "e/b")
			x.put(x.upper, "d/", "e/")
			x.attr("d", ovl.FuseOverlayfsOpaque, "y")
			x.attr("e", user.Opaque, "y")
		}, []string{"C d", "D d/a", "C e", "D e/b"}},
		"deleted and made again": {func(x tree) {
			x.put(x.lower, "d/a", "e/b")
			x.put(x.upper, ovl.AUFSWhiteout("d"), "d/c", ovl.AUFSWhiteout("e"), "e")
		}, []string{"C d", "D d/a", "A d/c", "C e"}},
		"types": {func(x tree) {
			x.put(x.lower, "file", "dir/x", "link")
			x.put(x.upper, "file/y", "dir")
			must(x, os.Symlink("t", filepath.Join(x.upper, "link")))
		}, []string{"C dir", "C file", "A file/y", "C link"}},
		"redirects": {func(x tree) {
			x.put(x.lower, "old/a", "old/sub/b", "p/q/r")
			x.put(x.bottom, "old/c")
			x.put(x.upper, "new/d", "p/moved/")
			x.whiteout("old", "p/q")
			x.attr("new", trusted.Redirect, "/old")
			x.attr("p/moved", trusted.Redirect, "q")
		}, []string{
			"A new", "A new/a", "A new/c", "A new/d", "A new/sub", "A new/sub/b", "D old",
			"C p", "A p/moved", "A p/moved/r", "D p/q",
		}},
		"a directory moved over another": {func(x tree) {
			x.put(x.lower, "one/a", "two/b")
			x.put(x.upper, "two/")
			x.whiteout("one")
			x.attr("two", trusted.Redirect, "one")
		}, []string{"D one", "C two", "A two/a", "D two/b"}},
		"metadata alone": {func(x tree) {
			x.put(x.lower, "f", "g", "same")
			for _, n := range []string{"f", "moved", "same"} {
				x.put(x.upper, n)
				must(x, os.WriteFile(filepath.Join(x.upper, n), make([]byte, 4), 0o644))
				x.attr(n, trusted.Metacopy, "")
			}
			must(x, os.Truncate(filepath.Join(x.upper, "f"), 1))
			must(x, os.Truncate(filepath.Join(x.upper, "moved"), 1))
			must(x, os.Chmod(filepath.Join(x.upper, "f"), 0o600))
			must(x, os.Chtimes(filepath.Join(x.upper, "same"), unixTime, unixTime))
			x.attr("moved", trusted.Redirect, "/g")
			x.whiteout("g")
		}, []string{"C f", "D g", "A moved"}},
		"links": {func(x tree) {
			x.put(x.upper, "a")
			x.put(x.lower, "a", "other")
			must(x, os.Link(filepath.Join(x.upper, "a"), filepath.Join(x.upper, "b")))
		}, []string{"C a", "A b"}},
		"a nested overlay's": {func(x tree) {
			x.put(x.lower, "d/a")
			x.put(x.upper, "d/zero")
			x.attr("d", trusted.Specials, "y")
			must(x, os.Truncate(filepath.Join(x.upper, "d/zero"), 0))
			x.attr("d/zero", trusted.Special, string(ovl.OverrideStat{Mode: unix.S_IFCHR | 0o600}.Encode()))
			x.attr("d", ovl.EscapeXattr(trusted.Opaque), "y")
		}, []string{"C d", "A d/zero"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTree(t)
			x.TB = t
			c.prepare(x)
			if got := x.changes(); !slices.Equal(got, c.want) {
				t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestOverride: owner and mode of a store without privileges lie in attributes.
func TestOverride(t *testing.T) {
	x := newTree(t)
	attr := ovl.OverrideNames()[1]
	set := func(path string, mode uint32, uid uint32) {
		t.Helper()
		must(t, unix.Lsetxattr(path, attr, ovl.OverrideStat{UID: uid, Mode: mode}.Encode(), 0))
	}
	for _, l := range []string{x.lower, x.upper, x.bottom} {
		set(l, unix.S_IFDIR|0o755, 0)
	}
	x.put(x.lower, "same", "owner", "pipe")
	x.put(x.upper, "same", "owner", "pipe")
	for _, p := range []string{"same", "owner"} {
		set(filepath.Join(x.lower, p), unix.S_IFREG|0o644, 5)
	}
	set(filepath.Join(x.upper, "same"), unix.S_IFREG|0o644, 5)
	set(filepath.Join(x.upper, "owner"), unix.S_IFREG|0o644, 6)
	set(filepath.Join(x.upper, "pipe"), unix.S_IFIFO|0o644, 0)
	must(t, os.Truncate(filepath.Join(x.upper, "pipe"), 0))
	if got, want := x.changes(), []string{"C owner", "C pipe"}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
}

// TestOtherParents: nothing, and a layer further below.
func TestOtherParents(t *testing.T) {
	x := newTree(t)
	x.put(x.bottom, "a", "b/c")
	x.put(x.lower, "b/d")
	x.whiteout("a")
	newer, _ := x.layers()
	for want, older := range map[string]Layers{
		"A b A b/c A b/d": {},
		"D a C b A b/d":   {Own: x.bottom},
	} {
		d, err := Open(newer, older)
		must(t, err)
		if got := strings.Join(d.lines(t), " "); got != want {
			t.Errorf("changes %q, want %q", got, want)
		}
		must(t, d.Close())
	}
}

// TestStream: content of renamed and metadata-only copied files comes from below, and links stay links.
func TestStream(t *testing.T) {
	x := newTree(t)
	x.put(x.lower, "old/data", "twice")
	x.put(x.upper, "new/", "twice")
	x.whiteout("old")
	x.attr("new", ovl.Trusted().Redirect, "/old")
	must(t, os.Link(filepath.Join(x.upper, "twice"), filepath.Join(x.upper, "again")))
	d, err := Open(x.layers())
	must(t, err)
	defer func() { must(t, d.Close()) }()
	var first, second bytes.Buffer
	must(t, d.Write(t.Context(), &first, tarlayer.WriteOptions{}))
	must(t, d.Write(t.Context(), &second, tarlayer.WriteOptions{}))
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two streams of one difference differ")
	}
	size, err := d.Size(t.Context())
	must(t, err)
	if want := int64(len("old/data") + len("twice")); size != want {
		t.Errorf("size %d, want %d", size, want)
	}
	var got []string
	for r := tar.NewReader(&first); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		got = append(got, h.Name+"="+string(content)+h.Linkname)
	}
	want := []string{ovl.AUFSWhiteout("old") + "=", "again=twice", "new/=", "new/data=old/data", "twice=again"}
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("members %q, want %q", got, want)
	}
}
