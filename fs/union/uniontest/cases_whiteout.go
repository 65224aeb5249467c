package uniontest

import "golang.org/x/sys/unix"

func whiteoutCases() []Case {
	below := Layer{
		Reg("gone-file", "1"), Reg("gone-dir/x", "1"), Sym("gone-link", "t"), Reg("kept", "1"), Reg("d/gone", "1"),
		Reg("d/kept", "1"), Reg("op/hidden", "1"), Reg("op/sub/hidden", "1"),
	}
	check := func(c *C) {
		c.Lists(".", "kept", "d", "op")
		c.Lists("d", "kept")
		c.Lists("op", "shown")
		for _, p := range []string{"gone-file", "gone-dir", "gone-link", "d/gone", "op/hidden", "op/sub"} {
			c.Absent(p)
		}
		c.Put("gone-file", "again")
		c.OK(c.Mkdir("gone-dir", 0o755))
		c.Lists("gone-dir")
		c.OK(c.Mkdir("op/sub", 0o755))
		c.Lists("op/sub")
		c.OK(c.Remount())
		c.Lists("gone-dir")
		c.Lists("op/sub")
		c.Has("gone-file", "again")
	}
	marks := func(wh func(string) Applier, op func(string) Applier) Layer {
		return Layer{
			wh("gone-file"), wh("gone-dir"), wh("gone-link"), wh("never-there"), wh("d/gone"), Reg("op/shown", "0"), op("op"),
		}
	}
	return []Case{
		{Name: "whiteout/kernel-form", Lowers: []Layer{marks(Whiteout, Opaque), below}, Run: check},
		{
			Name: "whiteout/aufs-form", Lowers: []Layer{marks(WhiteoutAUFS, OpaqueAUFS), below}, Not: Kernel,
			NoCross: "the kernel's overlayfs does not read this form",
			Run: func(c *C) {
				if c.Differs("aufs-whiteouts") {
					check(c)
				}
			},
		},
		{Name: "whiteout/xattr-form", Lowers: []Layer{append(marks(WhiteoutXattr, Opaque),
			// The root's own mark, as the kernel wants it for a directory that holds such whiteouts.
			Xattr(".", "overlay.opaque", "x")), below}, Run: check},
		{
			Name: "whiteout/other-prefixes", Not: Kernel, NoCross: "the kernel's overlayfs reads one namespace only",
			Lowers: []Layer{
				{
					Reg("u/shown", ""), Xattr("u", "user.overlay.opaque", "y"),
					Reg("f/shown", ""), Xattr("f", "user.fuseoverlayfs.opaque", "y"),
					Reg("n/shown", ""), Xattr("n", "user.overlay.opaque", "n"),
				},
				{Reg("u/hidden", ""), Reg("f/hidden", ""), Reg("n/shown2", "")},
			},
			Run: func(c *C) {
				if !c.Differs("both-prefixes") {
					return
				}
				c.Lists("u", "shown")
				c.Lists("f", "shown")
				c.Lists("n", "shown", "shown2")
			},
		},
		{
			Name: "whiteout/mixed-forms", Not: Kernel, NoCross: "the kernel's overlayfs does not read these forms",
			Lowers: []Layer{{WhiteoutAUFS("a"), Whiteout("b")}, {Reg("a", "1"), Reg("c", "1")}, {Reg("b", "2"), WhiteoutAUFS("c")}, {Reg("c", "3")}},
			Run: func(c *C) {
				c.Lists(".", "c")
				c.Has("c", "1")
			},
		},
		{
			Name: "whiteout/levels", Run: caseLevels,
			Lowers: []Layer{
				{Reg("back", "top"), Dirs("dir")},
				{Whiteout("back"), Whiteout("dir"), Whiteout("only"), Whiteout("stays")},
				{Reg("back", "low"), Reg("dir/old", ""), Reg("only", ""), Reg("stays/x", "")},
				{Reg("dir/older", ""), Reg("stays", "file")},
			},
		},
		{
			Name: "whiteout/in-upper", Upper: Layer{Whiteout("gone"), Dirs("op"), Opaque("op"), Reg("op/x", "")},
			Lowers: []Layer{{Reg("gone", ""), Reg("kept", ""), Reg("op/hidden", "")}}, Run: func(c *C) {
				c.Lists(".", "kept", "op")
				c.Lists("op", "x")
				c.Fails(c.Unlink("gone"), unix.ENOENT)
				c.OK(c.Unlink("op/x"))
				c.OK(c.Rmdir("op"))
				c.Absent("op")
				c.OK(c.Mkdir("op", 0o755))
				c.Lists("op")
			},
		},
		{Name: "whiteout/bottom", Lowers: []Layer{{Whiteout("x"), Whiteout("d/y"), Reg("d/z", "")}}, Run: func(c *C) {
			c.Lists(".", "d")
			if c.Differs("stray-whiteout") {
				c.Lists("d", "z")
				c.Absent("d/y")
			}
			_, err := c.Lstat("d/y")
			c.Fails(err, unix.ENOENT)
			c.Absent("x")
			c.Put("x", "new")
			c.OK(c.Unlink("d/z"))
			c.OK(c.Rmdir("d"))
			c.Lists(".", "x")
		}},
		{Name: "whiteout/written-form", Not: AUFSForm, Lowers: []Layer{{Reg("f", ""), Reg("d/x", "")}}, Run: caseWrittenForm},
		{
			Name: "whiteout/aufs-written", Lowers: []Layer{{Reg("f", ""), Reg("d/x", ""), Reg("d/y", ""), Reg("r", "r")}}, Not: Kernel,
			Options: []string{"whiteout=aufs"}, NoCross: "the kernel's overlayfs does not read this form",
			Run: caseAUFSWritten,
		},
	}
}

func caseLevels(c *C) {
	c.Lists(".", "back", "dir")
	c.Has("back", "top")
	c.Lists("dir")
	c.OK(c.Rmdir("dir"))
	c.Absent("dir")
	c.OK(c.Unlink("back"))
	c.Lists(".")
	c.OK(c.Mkdir("stays", 0o755))
	c.Lists("stays")
	c.OK(c.Remount())
	c.Lists(".", "stays")
	c.Lists("stays")
}

func caseWrittenForm(c *C) {
	c.OK(c.Unlink("f"))
	st, ok := c.UpperStat("f")
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		c.Errorf("a removed file leaves mode %o, device %d in the upper", st.Mode, st.Rdev)
	}
	c.OK(c.Unlink("d/x"))
	c.OK(c.Rmdir("d"))
	st, ok = c.UpperStat("d")
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		c.Errorf("a removed directory leaves mode %o in the upper", st.Mode)
	}
	c.OK(c.Mkdir("d", 0o755))
	Eq(c, "opaque mark of a new directory over a deleted one", c.Overlay("d", "opaque"), "y")
	c.Put("only-upper", "")
	c.OK(c.Unlink("only-upper"))
	if _, ok := c.UpperStat("only-upper"); ok {
		c.Error("a whiteout where no lower has the name")
	}
	c.OK(c.Mkdir("fresh", 0o755))
	c.Put("fresh/x", "")
	c.OK(c.Unlink("fresh/x"))
	if _, ok := c.UpperStat("fresh/x"); ok {
		c.Error("a whiteout in a directory that no lower has")
	}
}

func caseAUFSWritten(c *C) {
	c.OK(c.Unlink("f"))
	if _, ok := c.UpperStat(".wh.f"); !ok {
		c.Error("no .wh.f in the upper")
	}
	c.OK(c.Unlink("d/x"))
	c.OK(c.Unlink("d/y"))
	c.OK(c.Rmdir("d"))
	c.OK(c.Mkdir("d", 0o755))
	c.Lists("d")
	c.OK(c.Rename("r", "r2", 0))
	c.Lists(".", "d", "r2")
	c.OK(c.Remount())
	c.Lists(".", "d", "r2")
	c.Lists("d")
	c.Put("f", "back")
	c.OK(c.Remount())
	c.Has("f", "back")
	if _, ok := c.UpperStat(".wh.f"); ok {
		c.Error("the whiteout stays beside the new file")
	}
}
