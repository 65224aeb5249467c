package cow_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// oracle is a mount of the kernel's overlayfs: lower l, upper u, work w, merged m.
type oracle struct {
	*testing.T
	base  string
	names *ovl.Names
}

func (o oracle) path(rel string) string { return filepath.Join(o.base, rel) }

// mark returns the attribute of a file of the upper, and fails the test where there is none.
func (o oracle) mark(rel, attr string) string {
	o.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(o.path(rel), attr, buf)
	if err != nil {
		o.Fatalf("%s has no %s: %v", rel, attr, err)
	}
	return string(buf[:n])
}

// origin returns what plyfs would write as the origin of a lower file.
func (o oracle) origin(rel string) ovl.Origin {
	o.Helper()
	l := openLayer(o, o.path("l"))
	h, err := sys.Handle(unix.AT_FDCWD, o.path(rel))
	must(o, err, l.Close())
	return ovl.Origin{UUID: l.UUID, FileHandle: h}
}

func (o oracle) checkOrigin(upper, lower string) {
	o.Helper()
	want, value := o.origin(lower), []byte(o.mark(upper, o.names.Origin))
	if got := want.Encode(); string(got) != string(value) {
		o.Errorf("origin of %s: the kernel writes %x, plyfs %x", upper, value, got)
	}
	got, err := ovl.ParseOrigin(value)
	must(o, err)
	var st unix.Stat_t
	must(o, unix.Lstat(o.path(lower), &st))
	if ino, ok := got.Inode(); ino != st.Ino || !ok {
		o.Errorf("origin of %s: inode %d, %v; want %d", upper, ino, ok, st.Ino)
	}
}

// checkNlink compares the link count that the mark tells with that of the merged file.
func (o oracle) checkNlink(upper, lower, merged string) {
	o.Helper()
	value := o.mark(upper, o.names.Nlink)
	d, err := ovl.ParseNlink([]byte(value))
	if err != nil || string(d.Encode()) != value {
		o.Errorf("link count %q is read as %+v, %v", value, d, err)
	}
	var u, l, m unix.Stat_t
	must(o, unix.Lstat(o.path(upper), &u), unix.Lstat(o.path(lower), &l), unix.Lstat(o.path(merged), &m))
	real := u.Nlink
	if d.OfLower {
		real = l.Nlink
	}
	if int(real)+d.Delta != int(m.Nlink) {
		o.Errorf("link count %q on %d is not that of the union, %d", value, real, m.Nlink)
	}
}

func (o oracle) checkRedirect(upper string, want ovl.Redirect) {
	o.Helper()
	value := o.mark(upper, o.names.Redirect)
	got, err := ovl.ParseRedirect([]byte(value))
	if err != nil || got != want || string(want.Value()) != value {
		o.Errorf("redirect %q of %s is read as %+v, %v; want %+v, which is written %q", value, upper, got, err, want, want.Value())
	}
}

func (o oracle) appendTo(rel string) {
	o.Helper()
	f, err := os.OpenFile(o.path(rel), os.O_WRONLY|os.O_APPEND, 0)
	must(o, err)
	_, err = f.WriteString("more")
	must(o, err, f.Close())
}

// TestKernelMarks lets the kernel's overlayfs write each of its marks and compares what it wrote with what plyfs reads and
// writes.
func TestKernelMarks(t *testing.T) {
	for name, c := range map[string]struct {
		options []string
		names   *ovl.Names
		disk    bool
	}{
		"ext4":      {[]string{"index=on", "redirect_dir=on", "metacopy=on"}, ovl.Trusted(), true},
		"tmpfs":     {[]string{"index=on", "redirect_dir=on", "metacopy=on"}, ovl.Trusted(), false},
		"userxattr": {[]string{"index=on", "userxattr"}, ovl.User(), true},
	} {
		t.Run(name, func(t *testing.T) {
			o := oracle{T: t, base: testenv.Scratch(t), names: c.names}
			if c.disk {
				o.base = testenv.Ext4(t, 32<<20)
			}
			for _, d := range []string{"l/dir", "l/moved", "l/again", "l/to", "u", "w", "m"} {
				must(t, os.MkdirAll(o.path(d), 0o755))
			}
			for _, f := range []string{"l/file", "l/dir/file", "l/meta", "l/link1", "l/gone", "l/again/x"} {
				write(t, o.path(f), "content")
			}
			must(t, os.Link(o.path("l/link1"), o.path("l/link2")), os.Link(o.path("l/link1"), o.path("l/link3")))
			err := testenv.MountOverlay(testenv.Overlay{
				Lowers: []string{o.path("l")}, Upper: o.path("u"), Work: o.path("w"), Options: c.options,
			}, o.path("m"))
			must(t, err)
			defer testenv.Unmount(t, o.path("m"))
			o.copyUps()
			o.deletions()
			o.escapes()
			if c.names == ovl.Trusted() {
				o.moves()
			}
		})
	}
}

func (o oracle) copyUps() {
	o.appendTo("m/dir/file")
	o.checkOrigin("u/dir/file", "l/dir/file")
	o.checkOrigin("u/dir", "l/dir")
	if v := o.mark("u/dir", o.names.Impure); v != "y" {
		o.Errorf("impure is %q", v)
	}
	o.appendTo("m/link1")
	o.checkOrigin("u/link1", "l/link1")
	if got := names(o, o.path("w/index")); !slices.Contains(got, o.origin("l/link1").IndexName()) {
		o.Errorf("index entries %q, plyfs looks for %q", got, o.origin("l/link1").IndexName())
	}
	o.checkNlink("u/link1", "l/link1", "m/link1")
	must(o, os.Remove(o.path("m/link2")))
	o.checkNlink("u/link1", "l/link1", "m/link1")
	must(o, os.Link(o.path("m/link1"), o.path("m/link4")))
	o.checkNlink("u/link1", "l/link1", "m/link1")
}

func (o oracle) deletions() {
	must(o, os.Remove(o.path("m/gone")), os.RemoveAll(o.path("m/again")))
	for _, f := range []string{"u/gone", "u/again"} {
		if !isWhiteout(o.path(f)) {
			o.Errorf("%s is no whiteout", f)
		}
	}
	must(o, os.Mkdir(o.path("m/again"), 0o755))
	v := o.mark("u/again", o.names.Opaque)
	if v != string(ovl.OpaqueValue()) || !ovl.IsOpaque([]byte(v)) {
		o.Errorf("opaque is %q", v)
	}
}

// escapes lets an application, which may hold an overlay of its own, set attributes of the names that the mount itself uses.
func (o oracle) escapes() {
	for _, attr := range []string{o.names.Opaque, o.names.Origin, strings.Replace(o.names.Opaque, "opaque", "overlay.opaque", 1)} {
		must(o, unix.Lsetxattr(o.path("m/file"), attr, []byte(attr), 0))
		if got := o.mark("u/file", ovl.EscapeXattr(attr)); got != attr {
			o.Errorf("%s is kept as %q", attr, got)
		}
	}
}

func (o oracle) moves() {
	must(o, os.Chmod(o.path("m/meta"), 0o600))
	if v := o.mark("u/meta", o.names.Metacopy); v != string(ovl.MetacopyValue()) {
		o.Errorf("metacopy is %q", v)
	}
	o.checkOrigin("u/meta", "l/meta")
	must(o, os.Rename(o.path("m/meta"), o.path("m/to/meta")))
	o.checkRedirect("u/to/meta", ovl.Redirect{Path: "meta", Absolute: true})

	must(o, os.Rename(o.path("m/moved"), o.path("m/sibling")))
	o.checkRedirect("u/sibling", ovl.Redirect{Path: "moved"})
	o.checkOrigin("u/sibling", "l/moved")
	must(o, os.Rename(o.path("m/sibling"), o.path("m/to/other")))
	o.checkRedirect("u/to/other", ovl.Redirect{Path: "moved", Absolute: true})
	if !isWhiteout(o.path("u/moved")) {
		o.Error("a moved directory left no whiteout")
	}
}

// The kernel reads a directory of whiteouts in attribute form as plyfs does.
func TestKernelXattrWhiteout(t *testing.T) {
	base := testenv.Ext4(t, 16<<20)
	for _, d := range []string{"top", "low", "m"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	n := ovl.Trusted()
	write(t, filepath.Join(base, "top/gone"), "")
	write(t, filepath.Join(base, "low/gone"), "x")
	write(t, filepath.Join(base, "low/stays"), "x")
	must(t, unix.Setxattr(filepath.Join(base, "top"), n.Opaque, []byte{ovl.XWhiteoutsFlag}, 0),
		unix.Setxattr(filepath.Join(base, "top/gone"), n.Whiteout, nil, 0))
	m := filepath.Join(base, "m")
	must(t, testenv.MountOverlay(testenv.Overlay{
		Lowers: []string{filepath.Join(base, "top"), filepath.Join(base, "low")}, ReadOnly: true,
	}, m))
	defer testenv.Unmount(t, m)
	if got := names(t, m); !slices.Contains(got, "stays") || slices.Contains(got, "gone") {
		t.Errorf("merged: %q", got)
	}
	if v := xattr(filepath.Join(base, "top"), n.Opaque); !ovl.HasXWhiteouts([]byte(v)) || ovl.IsOpaque([]byte(v)) {
		t.Errorf("%q is read otherwise", v)
	}
}

// A layer of the kernel's whiteouts looks the same behind a descriptor.
func TestKernelWhiteoutType(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, unix.Mknod(filepath.Join(dir, "wh"), unix.S_IFCHR, 0), unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))),
		unix.Mknod(filepath.Join(dir, "block"), unix.S_IFBLK, 0))
	write(t, filepath.Join(dir, "file"), "")
	l := openLayer(t, dir)
	for name, want := range map[string]bool{"wh": true, "null": false, "block": false, "file": false} {
		var st unix.Statx_t
		must(t, l.Stat(l.FD(), name, &st))
		if layer.IsWhiteoutDevice(&st) != want {
			t.Errorf("%s: whiteout %v", name, !want)
		}
	}
}
