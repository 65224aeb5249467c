package uniontest

import (
	"golang.org/x/sys/unix"
)

func renameCases() []Case {
	low := []Layer{{Reg("a", "A"), Reg("b", "B"), Reg("d/x", "X"), Dirs("empty", "e2"), Sym("l", "a"), Fifo("p")}, {Reg("d/y", "Y"), Reg("c", "C")}}
	return []Case{
		{Name: "rename/files", Lowers: low, Run: caseRenameFiles},
		{Name: "rename/same-file", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b")}}, Run: func(c *C) {
			c.OK(c.Rename("a", "b", 0))
			c.Lists(".", "a", "b")
			c.OK(c.Rename("a", "a", 0))
			c.Append("a", "y")
			c.OK(c.Rename("b", "a", 0))
			c.Lists(".", "a", "b")
			c.Has("b", "xy")
		}},
		{Name: "rename/noreplace", Lowers: low, Run: func(c *C) {
			c.Put("up", "U")
			for _, to := range []string{"b", "d", "empty", "l", "up"} {
				c.Fails(c.Rename("a", to, unix.RENAME_NOREPLACE), unix.EEXIST)
				c.Fails(c.Rename("d", to, unix.RENAME_NOREPLACE), unix.EEXIST)
			}
			c.OK(c.Unlink("b"))
			c.OK(c.Rename("a", "b", unix.RENAME_NOREPLACE))
			c.Has("b", "A")
			c.Absent("a")
		}},
		{Name: "rename/exchange", Not: PlainRenames, Lowers: low, Run: caseExchange},
		{Name: "rename/exchange-mixed", Not: PlainRenames, Lowers: low, Run: caseExchangeMixed},
		{Name: "rename/whiteout-flag", Lowers: low, Run: caseRenameWhiteout, NoCross: "the 0:0 device is escaped"},
		{Name: "rename/flags", Lowers: low, Run: func(c *C) {
			c.Fails(c.Rename("a", "n", unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE), unix.EINVAL)
			c.Fails(c.Rename("a", "n", unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT), unix.EINVAL)
			c.Fails(c.Rename("a", "n", 1<<10), unix.EINVAL)
			c.Fails(c.Rename("a", "none", unix.RENAME_EXCHANGE), unix.ENOENT)
			c.Lists(".", "a", "b", "c", "d", "e2", "empty", "l", "p")
		}},
		{Name: "rename/special", Lowers: low, Run: func(c *C) {
			c.OK(c.Rename("l", "l2", 0))
			c.OK(c.Rename("p", "d/p", 0))
			target, err := c.Readlink("l2")
			c.OK(err)
			Eq(c, "target", target, "a")
			Eq(c, "type", c.Stat("d/p").Type(), unix.S_IFIFO)
			c.OK(c.Rename("l2", "a", 0))
			Eq(c, "type", c.Stat("a").Type(), unix.S_IFLNK)
			c.OK(c.Remount())
			c.Lists(".", "a", "b", "c", "d", "e2", "empty")
		}},
		{Name: "rename/back-and-forth", Lowers: low, Run: func(c *C) {
			for range 3 {
				c.OK(c.Rename("a", "z", 0))
				c.Absent("a")
				c.OK(c.Rename("z", "a", 0))
				c.Absent("z")
				c.OK(c.Rename("d", "dz", 0))
				c.Absent("d")
				c.OK(c.Rename("dz", "d", 0))
				c.Absent("dz")
			}
			c.OK(c.Remount())
			c.Has("a", "A")
			c.Lists("d", "x", "y")
			c.Lists(".", "a", "b", "c", "d", "e2", "empty", "l", "p")
		}},
		{Name: "rename/hard-link-lower", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Hard("a", "c")}}, Run: func(c *C) {
			c.OK(c.Rename("a", "a2", 0))
			Eq(c, "links", c.Stat("b").Nlink, 3)
			Eq(c, "inode", c.Stat("a2").Ino, c.Stat("b").Ino)
			c.Append("a2", "y")
			c.Has("c", "xy")
			c.OK(c.Rename("b", "c", 0))
			c.OK(c.Remount())
			Eq(c, "links", c.Stat("a2").Nlink, 3)
			c.Has("b", "xy")
		}},
	}
}

func caseRenameFiles(c *C) {
	c.OK(c.Rename("a", "a2", 0))
	c.OK(c.Rename("c", "b", 0))
	c.OK(c.Rename("d/y", "y", 0))
	c.OK(c.Rename("d/x", "d/y", 0))
	check := func() {
		c.Helper()
		c.Lists(".", "a2", "b", "d", "e2", "empty", "l", "p", "y")
		c.Lists("d", "y")
		c.Has("a2", "A")
		c.Has("b", "C")
		c.Has("y", "Y")
		c.Has("d/y", "X")
	}
	check()
	c.OK(c.Remount())
	check()
	c.Absent("a")
	c.Put("a", "again")
	c.OK(c.Rename("a2", "a", 0))
	c.OK(c.Remount())
	c.Has("a", "A")
	c.Absent("a2")
}

func caseExchange(c *C) {
	c.OK(c.Rename("a", "b", unix.RENAME_EXCHANGE))
	c.Has("a", "B")
	c.Has("b", "A")
	c.Put("up", "U")
	c.OK(c.Rename("up", "c", unix.RENAME_EXCHANGE))
	c.OK(c.Rename("d/x", "p", unix.RENAME_EXCHANGE))
	check := func() {
		c.Helper()
		c.Has("a", "B")
		c.Has("b", "A")
		c.Has("up", "C")
		c.Has("c", "U")
		c.Has("p", "X")
		Eq(c, "type", c.Stat("d/x").Type(), unix.S_IFIFO)
		c.Lists(".", "a", "b", "c", "d", "e2", "empty", "l", "p", "up")
		c.Lists("d", "x", "y")
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Unlink("a"))
	c.OK(c.Unlink("up"))
	c.OK(c.Remount())
	c.Absent("a")
	c.Absent("up")
}

func caseExchangeMixed(c *C) {
	if !c.redirects() {
		c.Fails(c.Rename("d", "a", unix.RENAME_EXCHANGE), unix.EXDEV)
		return
	}
	c.OK(c.Rename("d", "a", unix.RENAME_EXCHANGE))
	c.Has("d", "A")
	c.Lists("a", "x", "y")
	c.OK(c.Mkdir("n", 0o755))
	c.Put("n/in", "N")
	c.OK(c.Rename("n", "a", unix.RENAME_EXCHANGE))
	c.Lists("a", "in")
	c.Lists("n", "x", "y")
	c.OK(c.Rename("empty", "n/x", unix.RENAME_EXCHANGE))
	c.Fails(c.Rename("n", "n/x", unix.RENAME_EXCHANGE), unix.EINVAL)
	c.Fails(c.Rename("n/x", "n", unix.RENAME_EXCHANGE), unix.EINVAL, unix.ENOTEMPTY)
	c.OK(c.Remount())
	c.Has("d", "A")
	c.Lists("a", "in")
	c.Lists("n", "x", "y")
	c.Lists("n/x")
	c.Has("empty", "X")
	c.Remove("a")
	c.Remove("n")
	c.OK(c.Remount())
	c.Absent("a")
	c.Absent("n")
}

func caseRenameWhiteout(c *C) {
	if !c.Differs("rename-whiteout") {
		c.Fails(c.Rename("a", "n", unix.RENAME_WHITEOUT), unix.EINVAL)
		return
	}
	c.OK(c.Rename("a", "n", unix.RENAME_WHITEOUT))
	c.Has("n", "A")
	st := c.Stat("a")
	Eq(c, "what is left behind", st.Mode&unix.S_IFMT, unix.S_IFCHR)
	Eq(c, "its device", st.Rdev, 0)
	c.OK(c.Rename("d/y", "d/x", unix.RENAME_WHITEOUT))
	check := func() {
		c.Lists("d", "x", "y")
		Eq(c, "what is left behind", c.Stat("d/y").Type(), unix.S_IFCHR)
		Eq(c, "what is left behind", c.Stat("a").Type(), unix.S_IFCHR)
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Unlink("a"))
	c.OK(c.Remount())
	c.Absent("a")
}

// redirects reports whether a directory of a lower can be renamed.
func (c *C) redirects() bool {
	return !c.Is(Kernel) || c.Is(Trusted)
}
