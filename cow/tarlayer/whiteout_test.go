package tarlayer_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// base is the layer below in the tests of whiteouts.
func base() []member {
	sub := directory("d/sub")
	sub.Mode, sub.Uid = 0o750, 1
	return []member{
		directory("."), directory("d"), file("d/one", "1"), file("d/two", "2"), sub, file("d/sub/x", "x"),
		file("f", "f"), symlink("l", "d"), hardlink("h", "f"), directory("e"), directory("old"), file("old/file", "o"),
	}
}

// upperLayers are layers over base, each with what a container then sees.
func upperLayers() map[string]struct {
	members []member
	want    []string
} {
	all := []string{"d", "d/one", "d/sub", "d/sub/x", "d/two", "e", "f", "h", "l", "old", "old/file"}
	without := func(gone ...string) []string {
		var left []string
		for _, p := range all {
			keep := true
			for _, g := range gone {
				keep = keep && p != g
			}
			if keep {
				left = append(left, p)
			}
		}
		return left
	}
	return map[string]struct {
		members []member
		want    []string
	}{
		"file":                {[]member{directory("d"), file("d/.wh.one", "")}, without("d/one")},
		"directory":           {[]member{file(".wh.d", "")}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")},
		"nothing there":       {[]member{file(".wh.none", "")}, all},
		"before the new file": {[]member{file(".wh.f", ""), file("f", "new")}, all},
		"after the new file":  {[]member{file("f", "new"), file(".wh.f", "")}, all},
		"before a new directory": {
			[]member{file(".wh.d", ""), directory("d"), file("d/new", "")},
			append([]string{"d", "d/new"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"after a new directory": {
			[]member{directory("d"), file("d/new", ""), file(".wh.d", "")},
			append([]string{"d", "d/new"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"before an implicit one": {[]member{file(".wh.d", ""), file("d/new", "")}, append([]string{"d", "d/new"},
			without("d", "d/one", "d/two", "d/sub", "d/sub/x")...)},
		"opaque first": {
			[]member{directory("d"), file("d/.wh..wh..opq", ""), file("d/new", "")},
			append([]string{"d", "d/new"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"opaque last": {
			[]member{directory("d"), file("d/new", ""), file("d/.wh..wh..opq", "")},
			append([]string{"d", "d/new"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"opaque with subtree": {
			[]member{directory("d"), file("d/sub/y", ""), file("d/.wh..wh..opq", "")},
			append([]string{"d", "d/sub", "d/sub/y"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"opaque and a whiteout": {
			[]member{directory("d"), file("d/.wh.one", ""), file("d/.wh..wh..opq", "")},
			without("d/one", "d/two", "d/sub", "d/sub/x"),
		},
		"file over a directory": {[]member{file("d", "now a file")}, without("d/one", "d/two", "d/sub", "d/sub/x")},
		"directory over a file": {[]member{directory("f"), file("f/in", "")}, append(append([]string{}, without("h",
			"l", "old", "old/file")...), "f/in", "h", "l", "old", "old/file")},
		"symlink over a file": {[]member{symlink("f", "e")}, all},
		"directory over symlink": {[]member{directory("l"), file("l/in", "")}, append(append([]string{},
			without("old", "old/file")...), "l/in", "old", "old/file")},
		"under an opaque directory, like one that was deleted": {
			[]member{directory("d"), file("d/.wh..wh..opq", ""), file("d/sub/y", "")},
			append([]string{"d", "d/sub", "d/sub/y"}, without("d", "d/one", "d/two", "d/sub", "d/sub/x")...),
		},
		"in no directory":                {[]member{file("b/b/.wh.c", ""), file("d/none/.wh.c", "")}, all},
		"in no directory, then made":     {[]member{file("b/.wh.c", ""), file("b/d", "")}, append([]string{"b", "b/d"}, all...)},
		"in no directory that was made":  {[]member{file("b/d/e", ""), file("b/.wh.c", ""), file("b/d/.wh.e", "")}, append([]string{"b", "b/d", "b/d/e"}, all...)},
		"in a file":                      {[]member{file("f/.wh.c", "")}, all},
		"in a new file":                  {[]member{file("n", ""), file("n/.wh.c", "")}, append(append([]string{}, without("old", "old/file")...), "n", "old", "old/file")},
		"in a directory that is deleted": {[]member{file(".wh.e", ""), file("e/.wh.c", "")}, without("e")},
		"no directory is opaque":         {[]member{file("b/.wh..wh..opq", ""), file("d/none/.wh..wh..opq", "")}, all},
		"whiteout of a symlink":          {[]member{file(".wh.l", "")}, without("l")},
		"not through the symlink":        {[]member{file(".wh.l", ""), file(".wh.e", "")}, without("l", "e")},
		"bookkeeping of AUFS": {[]member{
			file(".wh..wh.aufs", ""), directory(".wh..wh.plnk"),
			file(".wh..wh.plnk/1.2", ""),
		}, all},
		"whiteout as directory":  {[]member{directory(".wh.f")}, without("f")},
		"file, then a directory": {[]member{file("d", "x"), directory("d")}, without("d/one", "d/two", "d/sub", "d/sub/x")},
		"twice":                  {[]member{file(".wh.f", ""), file(".wh.f", "")}, without("f")},
		"new, old and new again": {
			[]member{file("n", "1"), directory("n"), file("n/x", ""), file("n", "2")},
			append(append([]string{}, without("old", "old/file")...), "n", "old", "old/file"),
		},
	}
}

// What a container sees must not depend on how a driver keeps layers: the tree with whiteouts carried out is the tree
// that the kernel's overlayfs shows of the stacked form.
func TestWhiteoutFormsAgree(t *testing.T) {
	for name, c := range upperLayers() {
		t.Run(name, func(t *testing.T) {
			dir := testenv.Scratch(t)
			lower, flat, upper, merged := subdir(t, dir, "lower"), subdir(t, dir, "flat"), subdir(t, dir,
				"upper"), subdir(t, dir, "merged")
			apply(t, lower, tarlayer.ApplyOptions{}, base()...)
			apply(t, flat, tarlayer.ApplyOptions{}, base()...)
			a := apply(t, flat, tarlayer.ApplyOptions{Sum: true}, c.members...)
			b := apply(t, upper, tarlayer.ApplyOptions{
				Whiteouts: tarlayer.WhiteoutKernel, Sum: true,
				Lower: tarlayer.NewDirSource(open(t, lower), tarlayer.DirOptions{}),
			}, c.members...)
			want(t, "sum in stacked form", b.Sum, a.Sum)
			wantPaths(t, flat, c.want...)
			must(t, testenv.MountOverlay(testenv.Overlay{Lowers: []string{upper, lower}, ReadOnly: true}, merged))
			defer testenv.Unmount(t, merged)
			// Link counts differ where one name of a lower file is hidden: that is the kernel's.
			same(t, take(t, flat), take(t, merged), fingerprint.Default&^(fingerprint.Nlink|fingerprint.Groups))
		})
	}
}

// A whiteout in a directory that nobody has deletes nothing, but the layer's sum has it with every driver.
func TestWhiteoutInMissingDirectory(t *testing.T) {
	dir := testenv.Scratch(t)
	lower, flat, upper := subdir(t, dir, "lower"), subdir(t, dir, "flat"), subdir(t, dir, "upper")
	apply(t, lower, tarlayer.ApplyOptions{}, base()...)
	apply(t, flat, tarlayer.ApplyOptions{}, base()...)
	members := []member{file("no/where/.wh.x", ""), file("d/none/.wh.y", "")}
	a := apply(t, flat, tarlayer.ApplyOptions{Sum: true}, members...)
	b := apply(t, upper, tarlayer.ApplyOptions{
		Whiteouts: tarlayer.WhiteoutKernel, Sum: true,
		Lower: tarlayer.NewDirSource(open(t, lower), tarlayer.DirOptions{}),
	}, members...)
	want(t, "sum in stacked form", b.Sum, a.Sum)
	src := tarlayer.NewDirSource(open(t, flat), tarlayer.DirOptions{})
	defer src.Close()
	// What the tree shows, as with a driver that keeps whole trees: a whiteout is known by absence.
	sum, err := tarlayer.Sum(t.Context(), struct{ tarlayer.Source }{src}, []tarlayer.Change{
		{Path: "no/where/x", Kind: tarlayer.Delete}, {Path: "d/none/y", Kind: tarlayer.Delete},
	})
	must(t, err)
	want(t, "sum of the tree", sum, a.Sum)
}

func TestWhiteoutAUFSFormKeepsTheFiles(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutAUFS}, directory("d"), file("d/.wh.x", ""),
		file("d/.wh..wh..opq", ""))
	wantPaths(t, dir, "d", "d/.wh..wh..opq", "d/.wh.x")
}

func TestWhiteoutUserXattrForm(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Names: ovl.User()}, directory("d"),
		file("d/.wh..wh..opq", ""))
	want(t, "opaque", xattr(filepath.Join(dir, "d"), "user.overlay.opaque"), "y")
}

func TestWhiteoutOfNothingIsRefused(t *testing.T) {
	for _, name := range []string{".wh.", "d/.wh.", ".wh..", ".wh...", "d/.wh...", ".wh.d/file", "d/.wh.x/y/z"} {
		for _, form := range []tarlayer.WhiteoutForm{
			tarlayer.WhiteoutRemove, tarlayer.WhiteoutKernel,
			tarlayer.WhiteoutAUFS,
		} {
			dir := testenv.Scratch(t)
			must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
			_, err := tryApply(t, dir, tarlayer.ApplyOptions{Whiteouts: form}, stream(t, file(name, "")))
			if !errors.Is(err, tarlayer.ErrInvalid) {
				t.Errorf("%s: %v, want an error that wraps ErrInvalid", name, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "d")); err != nil {
				t.Error(err)
			}
		}
	}
}

// refuseMknod is a kernel that makes no device nodes.
func refuseMknod(op string) error {
	if op == "mknod" {
		return unix.EPERM
	}
	return nil
}

func TestWhiteoutWithoutMknod(t *testing.T) {
	dir := testenv.Scratch(t)
	m := mutator(refuseMknod)
	apply(t, dir, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutAny, Mutator: m}, file(".wh.x", ""))
	wantPaths(t, dir, ".wh.x")
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Mutator: m}, stream(t,
		file(".wh.y", "")))
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want an error that wraps EPERM", err)
	}
}

// A whiteout must not appear in a layer by any other way than being one.
func TestForgedMarksAreEscaped(t *testing.T) {
	dir := testenv.Scratch(t)
	lower, upper, merged := subdir(t, dir, "lower"), subdir(t, dir, "upper"), subdir(t, dir, "merged")
	apply(t, lower, tarlayer.ApplyOptions{}, base()...)
	apply(t, upper, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel},
		device("f", 0, 0), directory("d").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y"),
		file("g", "").xattr("trusted.overlay.redirect", "/old/file").xattr("trusted.overlay.metacopy", ""))
	must(t, testenv.MountOverlay(testenv.Overlay{Lowers: []string{upper, lower}, ReadOnly: true}, merged))
	defer testenv.Unmount(t, merged)
	wantPaths(t, merged, "d", "d/one", "d/sub", "d/sub/x", "d/two", "e", "f", "g", "h", "l", "old", "old/file")
	want(t, "content", content(t, filepath.Join(merged, "g")), "")
	want(t, "type of the device's place", lstat(t, filepath.Join(upper, "f")).Mode&unix.S_IFMT, uint32(unix.S_IFREG))
	want(t, "nested attribute", xattr(filepath.Join(upper, "d"), "trusted.overlay.overlay.opaque"), "y")

	// The Source shows what the stream had.
	src := tarlayer.NewDirSource(open(t, upper), tarlayer.DirOptions{Names: ovl.Trusted()})
	defer src.Close()
	a, err := src.Lstat("f")
	must(t, err)
	want(t, "mode", a.Mode&unix.S_IFMT, uint32(unix.S_IFCHR))
	x, err := src.Xattrs("d")
	must(t, err)
	want(t, "attribute", x["trusted.overlay.opaque"], "y")
}

func TestDirSourceOfAStackedLayer(t *testing.T) {
	dir := testenv.Scratch(t)
	for name, form := range map[string]tarlayer.WhiteoutForm{
		"kernel": tarlayer.WhiteoutKernel,
		"aufs":   tarlayer.WhiteoutAUFS,
	} {
		t.Run(name, func(t *testing.T) {
			root := subdir(t, dir, name)
			members := []member{
				directory("o"), file("o/.wh..wh..opq", ""), file("o/x", "x"), file(".wh.gone", ""),
				file("stays", "s"),
			}
			res := apply(t, root, tarlayer.ApplyOptions{Whiteouts: form, Sum: true}, members...)
			src := tarlayer.NewDirSource(open(t, root), tarlayer.DirOptions{Names: ovl.Trusted()})
			defer src.Close()
			o, err := src.Lstat("o")
			must(t, err)
			want(t, "opaque", o.Opaque, true)
			if _, err := src.Lstat("gone"); !errors.Is(err, unix.ENOENT) {
				t.Errorf("a whiteout is there: %v", err)
			}
			for path, is := range map[string]bool{
				"gone": true, "stays": false, "none": false, "o": false,
				"none/none": false,
			} {
				got, err := src.Whiteout(path)
				must(t, err)
				want(t, "whiteout of "+path, got, is)
			}
			sum, err := tarlayer.Sum(t.Context(), src, []tarlayer.Change{
				{Path: "gone", Kind: tarlayer.Delete}, {Path: "o", Kind: tarlayer.Add}, {
					Path: "o/x",
					Kind: tarlayer.Add,
				}, {Path: "stays", Kind: tarlayer.Add},
			})
			must(t, err)
			want(t, "sum", sum, res.Sum)
			sum, err = tarlayer.Sum(t.Context(), src, []tarlayer.Change{
				{Path: "lost", Kind: tarlayer.Delete}, {Path: "o", Kind: tarlayer.Add}, {
					Path: "o/x",
					Kind: tarlayer.Add,
				}, {Path: "stays", Kind: tarlayer.Add},
			})
			must(t, err)
			want(t, "sum with a lost whiteout is equal", sum == res.Sum, false)
		})
	}
}

func TestWriteOpaqueAndUnsayable(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel}, directory("o"), file("o/.wh..wh..opq",
		""), file("o/x", ""))
	must(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o600, 0))
	src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{Names: ovl.Trusted()})
	defer src.Close()
	var noted []string
	got := memberNames(t, src, tarlayer.WriteOptions{Note: func(path, _ string) { noted = append(noted, path) }},
		"o", "o/x", "sock", ".wh.app")
	want(t, "members", got, "o/ o/.wh..wh..opq o/x")
	if len(noted) != 2 {
		t.Errorf("notes on %q", noted)
	}
}

// memberNames writes paths and returns the names of the members.
func memberNames(t *testing.T, src tarlayer.Source, o tarlayer.WriteOptions, paths ...string) string {
	t.Helper()
	names := ""
	readMembers(t, src, o, paths, func(h *tar.Header) {
		if names != "" {
			names += " "
		}
		names += h.Name
	})
	return names
}
