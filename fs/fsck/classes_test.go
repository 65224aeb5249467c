package fsck_test

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/sys"
)

// Appliers of the suite, under short names.
var (
	dirs   = uniontest.Dirs
	reg    = uniontest.Reg
	white  = uniontest.Whiteout
	opaque = uniontest.Opaque
	xattr  = uniontest.Xattr
)

func upperDamages() []damage {
	return []damage{
		{
			name: "device", upper: ls{dirs("d"), white("d/gone")}, lowers: []ls{{dirs("d"), reg("d/other", "x")}},
			class: fsck.WhiteoutWithoutVictim, path: "d/gone", severity: fsck.Note, after: absent("d/gone"),
		},
		{
			name: "aufs", upper: ls{uniontest.WhiteoutAUFS("gone")},
			class: fsck.WhiteoutWithoutVictim, path: ".wh.gone", severity: fsck.Note, after: absent(".wh.gone"),
		},
		{
			name: "attribute", upper: ls{dirs("d"), uniontest.WhiteoutXattr("d/gone")}, lowers: []ls{{dirs("d")}},
			class: fsck.WhiteoutWithoutVictim, path: "d/gone", severity: fsck.Note, after: absent("d/gone"),
		},
		{
			name: "victim-deleted-below", upper: ls{white("f")}, lowers: []ls{{white("f")}, {reg("f", "x")}},
			class: fsck.WhiteoutWithoutVictim, path: "f", severity: fsck.Note, after: absent("f"),
		},
		{
			name: "device", upper: ls{dirs("d"), opaque("d"), white("d/f")}, lowers: []ls{{reg("d/f", "x")}},
			class: fsck.WhiteoutInOpaque, path: "d/f", severity: fsck.Error, after: absent("d/f"),
		},
		{
			name: "aufs", upper: ls{dirs("d"), uniontest.OpaqueAUFS("d"), uniontest.WhiteoutAUFS("d/f")},
			lowers: []ls{{reg("d/f", "x")}},
			class:  fsck.WhiteoutInOpaque, path: "d/.wh.f", severity: fsck.Note, after: absent("d/.wh.f"),
		},
		{
			name: "many", upper: ls{dirs("a", "b/c"), opaque("b"), opaque("b/c")}, lowers: []ls{{dirs("b")}},
			class: fsck.OpaqueWithoutLower, path: "b/c", severity: fsck.Note, kept: true,
		},
		{
			name: "by-kernel", kernel: true, use: func(t testing.TB, u uniontest.Tree) { ok(t, u.Mkdir("new", 0o755)) },
			class: fsck.OpaqueWithoutLower, path: "new", severity: fsck.Note, kept: true,
		},
		{
			name: "", upper: ls{dirs("d"), opaque("d"), uniontest.OpaqueAUFS("d")}, lowers: []ls{{reg("d/f", "x")}},
			class: fsck.OpaqueTwice, path: "d/.wh..wh..opq", severity: fsck.Note, after: absent("d/.wh..wh..opq"),
		},
		{
			name: "copied-up", lowers: []ls{{reg("d/f", "x")}},
			use:   func(t testing.TB, u uniontest.Tree) { ok(t, u.Chmod("d/f", 0o600)) },
			hurt:  drop("d", ovl.Trusted().Impure),
			class: fsck.ImpureUnmarked, path: "d", severity: fsck.Note, after: has("d", ovl.Trusted().Impure),
		},
		{
			name: "nested-whiteout",
			use: func(t testing.TB, u uniontest.Tree) {
				ok(t, u.Mkdir("d", 0o755))
				ok(t, u.Mknod("d/dev", unix.S_IFCHR|0o600, 0))
			},
			hurt:  drop("d", ovl.Trusted().Specials),
			class: fsck.SpecialsUnmarked, path: "d", severity: fsck.Error, changes: true,
			after: has("d", ovl.Trusted().Specials),
		},
		{
			name: "bookkeeping", upper: ls{dirs(".wh..wh.plnk/x")},
			class: fsck.HiddenName, path: ".wh..wh.plnk", severity: fsck.Note, kept: true,
		},
		{
			name: "content", upper: ls{reg(".wh.f", "precious")}, lowers: []ls{{reg("f", "x")}},
			class: fsck.HiddenName, path: ".wh.f", severity: fsck.Note, kept: true, after: content(".wh.f", "precious"),
		},
	}
}

func redirectDamages() []damage {
	lower := []ls{{reg("a/f", "x"), dirs("p/q"), reg("p/q/g", "y")}}
	move := func(t testing.TB, u uniontest.Tree) { ok(t, u.Rename("a", "b", 0)) }
	return []damage{
		{
			name: "dots", upper: ls{dirs("d"), reg("d/own", "z"), xattr("d", "overlay.redirect", "/a/../..")}, lowers: lower,
			class: fsck.RedirectMalformed, path: "d", severity: fsck.Error, changes: true, after: content("d/own", "z"),
		},
		{
			name: "of-file", lowers: lower, use: func(t testing.TB, u uniontest.Tree) { ok(t, u.Chmod("a/f", 0o600)) },
			hurt:  apply(xattr("a/f", "overlay.redirect", "a//f")),
			class: fsck.RedirectMalformed, path: "a/f", severity: fsck.Error, kept: true,
		},
		{
			name: "renamed-lower-gone", lowers: lower, use: move,
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, os.RemoveAll(filepath.Join(s.Lowers[0], "a")))
				ok(t, os.WriteFile(filepath.Join(s.Upper, "b/own"), []byte("z"), 0o600))
			},
			class: fsck.RedirectDangling, path: "b", severity: fsck.Error,
			brings: []fsck.Class{fsck.WhiteoutWithoutVictim, fsck.OpaqueWithoutLower}, after: content("b/own", "z"),
		},
		{
			name: "sibling", upper: ls{dirs("p/d"), xattr("p/d", "overlay.redirect", "none")}, lowers: lower,
			class: fsck.RedirectDangling, path: "p/d", severity: fsck.Error,
			brings: []fsck.Class{fsck.OpaqueWithoutLower},
		},
		{
			name: "to-a-file", upper: ls{dirs("d"), xattr("d", "overlay.redirect", "/a/f")}, lowers: lower,
			class: fsck.RedirectDangling, path: "d", severity: fsck.Error,
			brings: []fsck.Class{fsck.OpaqueWithoutLower},
		},
		{
			name: "twice", lowers: lower, use: move, hurt: apply(dirs("c"), xattr("c", "overlay.redirect", "/a")),
			class: fsck.RedirectShared, path: "*", severity: fsck.Error, kept: true,
		},
		{
			name: "old-place-shown", lowers: lower, use: move,
			hurt:  func(t testing.TB, s uniontest.Spec) { ok(t, os.Remove(filepath.Join(s.Upper, "a"))) },
			class: fsck.RedirectShared, path: "b", severity: fsck.Error, kept: true,
		},
		{
			name: "ancestor", upper: ls{dirs("p/q"), xattr("p/q", "overlay.redirect", "/p")}, lowers: lower,
			class: fsck.RedirectLoop, path: "p/q", severity: fsck.Error, kept: true,
		},
	}
}

func fileDamages() []damage {
	lower := []ls{{reg("d/f", "data")}}
	chmod := func(t testing.TB, u uniontest.Tree) { ok(t, u.Chmod("d/f", 0o600)) }
	return []damage{
		{
			name: "lower-gone", lowers: lower, use: chmod,
			hurt:  func(t testing.TB, s uniontest.Spec) { ok(t, os.Remove(filepath.Join(s.Lowers[0], "d/f"))) },
			class: fsck.MetacopyWithoutData, path: "d/f", severity: fsck.Error, kept: true,
			after: has("d/f", ovl.Trusted().Metacopy),
		},
		{
			name: "by-kernel-renamed", lowers: lower, kernel: true,
			use: func(t testing.TB, u uniontest.Tree) {
				ok(t, u.Chmod("d/f", 0o600))
				ok(t, u.Rename("d/f", "g", 0))
			},
			hurt:  func(t testing.TB, s uniontest.Spec) { ok(t, os.Remove(filepath.Join(s.Lowers[0], "d/f"))) },
			class: fsck.MetacopyWithoutData, path: "g", severity: fsck.Error, kept: true,
			brings: []fsck.Class{fsck.WhiteoutWithoutVictim},
		},
		{
			name:   "chain-ends-early",
			lowers: []ls{{reg("d/f", "1234"), xattr("d/f", "overlay.metacopy", "")}, {dirs("d")}},
			upper:  ls{reg("d/f", "5678"), xattr("d/f", "overlay.metacopy", "")},
			class:  fsck.MetacopyWithoutData, path: "d/f", severity: fsck.Error, kept: true,
		},
		{
			name: "directory", upper: ls{dirs("d"), xattr("d", "overlay.metacopy", "")},
			class: fsck.MetacopyNotRegular, path: "d", severity: fsck.Error,
		},
		{
			name: "symlink", upper: ls{uniontest.Sym("l", "/etc/passwd"), xattr("l", "overlay.metacopy", "")},
			class: fsck.MetacopyNotRegular, path: "l", severity: fsck.Error,
		},
		{
			name: "short", lowers: lower, use: chmod, hurt: apply(xattr("d/f", "overlay.metacopy", "xy")),
			class: fsck.MetacopyMalformed, path: "d/f", severity: fsck.Error,
		},
		{
			name: "short", lowers: lower, use: chmod, hurt: apply(xattr("d/f", "overlay.origin", "\x00\xfb")),
			class: fsck.OriginMalformed, path: "d/f", severity: fsck.Error, changes: true,
		},
		{
			name: "directory", lowers: lower, use: chmod, hurt: apply(xattr("d", "overlay.origin", "nonsense")),
			class: fsck.OriginMalformed, path: "d", severity: fsck.Error, changes: true,
		},
		{
			name: "plain-file", upper: ls{reg("f", "x"), xattr("f", "overlay.nlink", "U+")},
			class: fsck.NlinkMalformed, path: "f", severity: fsck.Error,
		},
	}
}

func unsyncedDamages() []damage {
	lower := []ls{{reg("d/f", "old content")}}
	mark := func(boot, at, record string) func(testing.TB, uniontest.Spec) {
		return func(t testing.TB, s uniontest.Spec) {
			v := string(ovl.UnsyncedMark{Boot: boot, Lower: at}.Encode())
			apply(xattr("d/f", "overlay.plyfs.unsynced", v))(t, s)
			if record != "" {
				ok(t, os.WriteFile(filepath.Join(s.Work, "plyfs.unsynced"), []byte(record), 0o600))
			}
		}
	}
	upper := ls{reg("d/f", "new")}
	return []damage{
		{
			name: "this-boot", lowers: lower, upper: upper, hurt: mark(cow.BootID(), "d/f", cow.BootID()),
			class: fsck.UnsyncedMark, path: "d/f", severity: fsck.Note, brings: []fsck.Class{fsck.UnsyncedRecord},
			after: content("d/f", "new"),
		},
		{
			name: "earlier-boot", lowers: lower, upper: upper, hurt: mark("another", "d/f", "another"),
			class: fsck.UnsyncedMark, path: "d/f", severity: fsck.Error, changes: true,
			brings: []fsck.Class{fsck.UnsyncedRecord}, after: content("d/f", "old content"),
		},
		{
			name: "attributes-stay", lowers: lower, upper: ls{reg("d/f", "new"), uniontest.Perm("d/f", 0o6755)},
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, unix.Setxattr(filepath.Join(s.Upper, "d/f"), "security.capability", []byte(netRaw), 0))
				mark("another", "d/f", "another")(t, s)
				ok(t, os.Chtimes(filepath.Join(s.Upper, "d/f"), time.Unix(5, 6), time.Unix(7, 8)))
			},
			class: fsck.UnsyncedMark, path: "d/f", severity: fsck.Error, changes: true,
			brings: []fsck.Class{fsck.UnsyncedRecord}, after: keptAttributes("d/f"),
		},
		{
			name: "lower-gone", lowers: lower, upper: upper, hurt: mark("another", "d/none", "another"),
			class: fsck.UnsyncedMark, path: "d/f", severity: fsck.Error, kept: true,
			brings: []fsck.Class{fsck.UnsyncedRecord}, after: content("d/f", "new"),
		},
		{
			name: "unrecorded", lowers: lower, upper: upper, hurt: mark("another", "d/f", ""),
			class: fsck.UnsyncedMark, path: "d/f", severity: fsck.Error, kept: true, after: content("d/f", "new"),
		},
		{
			name: "no-lower", upper: ls{reg("f", "x"), xattr("f", "overlay.plyfs.unsynced", "boot")},
			class: fsck.UnsyncedMarkMalformed, path: "f", severity: fsck.Error, kept: true,
		},
		{
			name: "alone",
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, os.WriteFile(filepath.Join(s.Work, "plyfs.unsynced"), []byte("boot"), 0o600))
			},
			class: fsck.UnsyncedRecord, layer: fsck.InWork, path: "plyfs.unsynced", severity: fsck.Note,
		},
	}
}

func workDamages() []damage {
	stage := func(paths ...string) func(testing.TB, uniontest.Spec) {
		return func(t testing.TB, s uniontest.Spec) {
			for _, p := range paths {
				ok(t, os.MkdirAll(filepath.Join(s.Work, p), 0o700))
			}
		}
	}
	return []damage{
		{
			name: "plyfs",
			hurt: func(t testing.TB, s uniontest.Spec) {
				stage("work/plyfs-0123/#1/a/b", "work/plyfs-0123/#1/a/c/d")(t, s)
				ok(t, os.Symlink(s.Upper, filepath.Join(s.Work, "work/plyfs-0123/#1/a/link")))
				ok(t, os.WriteFile(filepath.Join(s.Upper, "stays"), nil, 0o600))
			},
			class: fsck.StagedLeftover, layer: fsck.InWork, path: "work/plyfs-0123", severity: fsck.Note,
			after: content("stays", ""),
		},
		{
			name: "kernel", hurt: stage("work/#12"),
			class: fsck.StagedLeftover, layer: fsck.InWork, path: "work/#12", severity: fsck.Note,
		},
		{
			name: "kernel-index", hurt: stage("index/#12/x"),
			class: fsck.StagedLeftover, layer: fsck.InWork, path: "index/#12", severity: fsck.Note,
		},
		{
			name: "kernel", hurt: stage("work/incompat/volatile"),
			class: fsck.VolatileMarker, layer: fsck.InWork, path: "work/incompat/volatile", severity: fsck.Error, kept: true,
		},
		{
			name: "unknown", hurt: stage("work/incompat/sparkle"),
			class: fsck.IncompatMarker, layer: fsck.InWork, path: "work/incompat/sparkle", severity: fsck.Error, kept: true,
		},
	}
}

func indexDamages() []damage {
	lower := []ls{{reg("d/f", "data"), uniontest.Hard("d/f", "d/g"), uniontest.Hard("d/f", "h")}}
	write := func(t testing.TB, u uniontest.Tree) {
		f, err := u.Open("d/f", unix.O_WRONLY, 0)
		ok(t, err)
		_, err = f.WriteAt([]byte("new!"), 0)
		ok(t, err)
		ok(t, f.Close())
	}
	rename := func(to func(string) string) func(testing.TB, uniontest.Spec) {
		return func(t testing.TB, s uniontest.Spec) {
			e := entry(t, s)
			ok(t, os.Rename(e, filepath.Join(filepath.Dir(e), to(filepath.Base(e)))))
		}
	}
	nlink := func(v string) func(testing.TB, uniontest.Spec) {
		return func(t testing.TB, s uniontest.Spec) {
			ok(t, unix.Lsetxattr(entry(t, s), ovl.Trusted().Nlink, []byte(v), 0))
		}
	}
	onIndex := func(d damage) damage {
		d.lowers, d.layer, d.severity = lower, fsck.InWork, fsck.Error
		if d.use == nil {
			d.use = write
		}
		if d.path == "" {
			d.path = "index/*"
		}
		return d
	}
	return []damage{
		onIndex(damage{
			name: "has-names", hurt: rename(func(string) string { return "zz" }),
			class: fsck.IndexNameMalformed, path: "index/zz", after: content("d/f", "new!"),
		}),
		onIndex(damage{
			name: "last-name", class: fsck.IndexNameMalformed, path: "index/zz", kept: true,
			hurt: func(t testing.TB, s uniontest.Spec) {
				rename(func(string) string { return "zz" })(t, s)
				ok(t, os.Remove(filepath.Join(s.Upper, "d/f")))
			},
		}),
		onIndex(damage{
			name: "another", class: fsck.IndexOriginDiffers, kept: true, brings: []fsck.Class{fsck.NlinkWrong},
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, unix.Lsetxattr(entry(t, s), ovl.Trusted().Origin, originOf(t, s.Upper).Encode(), 0))
			},
		}),
		onIndex(damage{
			name: "missing", class: fsck.IndexOriginDiffers, hurt: dropIn(entry, ovl.Trusted().Origin),
			after: func(t testing.TB, s uniontest.Spec) {
				got, err := cow.GetXattr(unix.AT_FDCWD, entry(t, s), ovl.Trusted().Origin)
				if err != nil || hex.EncodeToString(got) != filepath.Base(entry(t, s)) {
					t.Errorf("origin %x, %v", got, err)
				}
			},
		}),
		onIndex(damage{
			name: "malformed", class: fsck.IndexOriginDiffers, brings: []fsck.Class{fsck.OriginMalformed},
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, unix.Lsetxattr(entry(t, s), ovl.Trusted().Origin, []byte("x"), 0))
			},
		}),
		onIndex(damage{
			name: "all-names-removed-by-hand", class: fsck.IndexOrphan, brings: []fsck.Class{fsck.WhiteoutWithoutVictim},
			use: func(t testing.TB, u uniontest.Tree) {
				write(t, u)
				ok(t, u.Unlink("d/g"))
				ok(t, u.Unlink("h"))
			},
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, os.Remove(filepath.Join(s.Upper, "d/f")))
				apply(white("d/f"))(t, s)
			},
		}),
		onIndex(damage{
			name: "upper-names-removed-by-hand", class: fsck.IndexOrphan,
			use: func(t testing.TB, u uniontest.Tree) {
				write(t, u)
				for _, name := range []string{"d/f", "d/g", "h"} {
					ok(t, u.Chmod(name, 0o600))
				}
			},
			hurt: func(t testing.TB, s uniontest.Spec) {
				for _, name := range []string{"d/f", "d/g", "h"} {
					ok(t, os.Remove(filepath.Join(s.Upper, name)))
				}
			},
		}),
		onIndex(damage{
			name: "layer-copied", class: fsck.IndexOrphan, kept: true, brings: []fsck.Class{fsck.WhiteoutWithoutVictim},
			use: func(t testing.TB, u uniontest.Tree) {
				write(t, u)
				ok(t, u.Unlink("d/f"))
			},
			hurt: func(t testing.TB, s uniontest.Spec) {
				ok(t, os.CopyFS(s.Lowers[0]+".copy", os.DirFS(s.Lowers[0])))
				ok(t, os.RemoveAll(s.Lowers[0]))
				ok(t, os.Rename(s.Lowers[0]+".copy", s.Lowers[0]))
			},
			after: func(t testing.TB, s uniontest.Spec) {
				if got, err := os.ReadFile(entry(t, s)); err != nil || string(got) != "new!" {
					t.Errorf("the only copy of what was written: %q, %v", got, err)
				}
			},
		}),
		onIndex(damage{name: "too-few", hurt: nlink("U-1"), class: fsck.NlinkWrong, after: links(3)}),
		onIndex(damage{name: "too-many", hurt: nlink("L+1"), class: fsck.NlinkWrong, after: links(3)}),
		onIndex(damage{name: "missing", hurt: dropIn(entry, ovl.Trusted().Nlink), class: fsck.NlinkWrong, after: links(3)}),
		onIndex(damage{
			name: "after-unlink", hurt: nlink("U+1"), class: fsck.NlinkWrong, after: links(2),
			use: func(t testing.TB, u uniontest.Tree) {
				write(t, u)
				ok(t, u.Unlink("d/g"))
			},
		}),
		onIndex(damage{name: "indexed", hurt: nlink("many"), class: fsck.NlinkMalformed, after: links(3)}),
	}
}

// entry is the path of the one index entry.
func entry(t testing.TB, s uniontest.Spec) string {
	t.Helper()
	names, err := os.ReadDir(filepath.Join(s.Work, "index"))
	if err != nil || len(names) != 1 {
		t.Fatalf("index holds %v, %v; want one entry", names, err)
	}
	return filepath.Join(s.Work, "index", names[0].Name())
}

// originOf is the origin attribute of a copy of path.
func originOf(t testing.TB, path string) ovl.Origin {
	t.Helper()
	l, err := layer.Open(path)
	ok(t, err)
	defer l.Close()
	h, err := sys.Handle(l.FD(), "")
	ok(t, err)
	return ovl.Origin{UUID: l.UUID, FileHandle: h}
}

func drop(path, attr string) func(testing.TB, uniontest.Spec) {
	return dropIn(func(_ testing.TB, s uniontest.Spec) string { return filepath.Join(s.Upper, path) }, attr)
}

func dropIn(at func(testing.TB, uniontest.Spec) string, attr string) func(testing.TB, uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) { ok(t, unix.Lremovexattr(at(t, s), attr)) }
}

func has(path, attr string) func(testing.TB, uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		if _, err := unix.Lgetxattr(filepath.Join(s.Upper, path), attr, nil); err != nil {
			t.Errorf("%s of %s: %v", attr, path, err)
		}
	}
}

// links checks the link count that a mount shows of the file h.
func links(want uint64) func(testing.TB, uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		tree := openTree(t, s, false)
		defer closeTree(t, tree)
		if st, err := tree.Lstat("h"); err != nil || st.Nlink != want {
			t.Errorf("h has %d links, %v; want %d", st.Nlink, err, want)
		}
	}
}

// netRaw is cap_net_raw, permitted and effective (cf. linux/capability.h struct vfs_cap_data).
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// keptAttributes wants what damage "attributes-stay" gave a file.
func keptAttributes(path string) func(t testing.TB, s uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		t.Helper()
		content(path, "old content")(t, s)
		var st unix.Stat_t
		ok(t, unix.Stat(filepath.Join(s.Upper, path), &st))
		if st.Mode&0o7777 != 0o6755 || st.Mtim != unix.NsecToTimespec(7e9+8) {
			t.Errorf("%s has mode %o and mtime %v", path, st.Mode, st.Mtim)
		}
		var buf [64]byte
		n, err := unix.Getxattr(filepath.Join(s.Upper, path), "security.capability", buf[:])
		if err != nil || string(buf[:n]) != netRaw {
			t.Errorf("%s has the capabilities %q, %v", path, buf[:max(n, 0)], err)
		}
	}
}
