package uniontest

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

func directoryRenameCases() []Case {
	low := []Layer{
		{Reg("m/top", "t"), Reg("m/sub/deep", "d"), Dirs("target", "empty")},
		{Reg("m/low", "l"), Reg("l/x", "x"), Reg("l/s/y", "y"), Reg("full/z", "z")},
	}
	return []Case{
		{Name: "rename-dir/basic", Lowers: low, Run: caseRenameDir},
		{Name: "rename-dir/into-each-other", Lowers: low, Run: caseRenameDirNest},
		{Name: "rename-dir/over", Lowers: low, Run: caseRenameDirOver},
		{Name: "rename-dir/over-whiteouts", Lowers: low, Run: caseRenameDirOverWhiteouts},
		{Name: "rename-dir/loop", Lowers: low, Run: func(c *C) {
			c.OK(c.Mkdir("up", 0o755))
			c.OK(c.Mkdir("up/in", 0o755))
			for _, p := range [][2]string{{"m", "m/sub/n"}, {"m", "m/n"}, {"l", "l/s/n"}, {"up", "up/in/x"}, {"m", "m/sub"}} {
				c.Fails(c.Rename(p[0], p[1], 0), unix.EINVAL)
				c.Fails(c.Rename(p[0], p[1], unix.RENAME_EXCHANGE), unix.EINVAL, unix.ENOENT)
			}
			c.Fails(c.Rename("m/sub", "m", 0), unix.ENOTEMPTY)
		}},
		{Name: "rename-dir/changes-inside", Lowers: low, Run: caseRenameDirChanges},
		{Name: "rename-dir/recreate", Not: PlainRenames, Lowers: low, Run: caseRenameDirRecreate},
		{Name: "rename-dir/chain", Lowers: low, Run: caseRenameDirChain},
		{Name: "rename-dir/open-files", Lowers: low, Run: caseRenameDirOpen},
		{Name: "rename-dir/redirect-off", Options: []string{"redirect_dir=off"}, Lowers: low, Run: func(c *C) {
			c.Fails(c.Rename("m", "n", 0), unix.EXDEV)
			c.Fails(c.Rename("l", "n", 0), unix.EXDEV)
			c.OK(c.Mkdir("up", 0o755))
			c.OK(c.Rename("up", "up2", 0))
			c.OK(c.Rename("l/x", "x", 0))
			c.Lists(".", "empty", "full", "l", "m", "target", "up2", "x")
		}},
		{Name: "rename-dir/parent-names", Lowers: low, Run: func(c *C) {
			// "..": of a moved directory leads to the new parent, also in a listing that was cached before.
			dots := func(dir, parent string) {
				list, err := c.ReadDir(dir)
				c.OK(err)
				for _, d := range list {
					if d.Name == ".." && !c.Is(Kernel) {
						Eq(c, "inode of .. in "+dir, d.Ino, c.Stat(parent).Ino)
					}
					if d.Name == "." {
						Eq(c, "inode of . in "+dir, d.Ino, c.Stat(dir).Ino)
					}
				}
			}
			if !c.redirects() {
				return
			}
			c.OK(c.Mkdir("up", 0o755))
			dots("m", ".")
			dots("up", ".")
			c.OK(c.Rename("m", "target/m", 0))
			dots("target/m", "target")
			err := c.Rename("target/m", "up", unix.RENAME_EXCHANGE)
			if c.Is(PlainRenames) {
				return
			}
			c.OK(err)
			dots("target/m", "target")
			dots("up", ".")
		}},
		{Name: "rename-dir/redirect-in-lower", Needs: Trusted, Lowers: []Layer{
			{Dirs("new", "d/abs"), Xattr("new", "overlay.redirect", "old"), Xattr("d/abs", "overlay.redirect", "/from/here"), Whiteout("old"), Whiteout("from/here"), Reg("new/added", "")},
			{Reg("old/f", "f"), Reg("from/here/g", "g")},
		}, Run: func(c *C) {
			c.Lists("new", "added", "f")
			c.Lists("d/abs", "g")
			c.Absent("old")
			c.Append("new/f", "+")
			c.OK(c.Rename("new", "newer", 0))
			c.OK(c.Remount())
			c.Has("newer/f", "f+")
			c.Lists("newer", "added", "f")
		}},
		{Name: "rename-dir/metacopy-below-redirect-in-lower", Needs: Trusted, Lowers: []Layer{
			{
				Dirs("new"), Xattr("new", "overlay.redirect", "old"), Whiteout("old"), Whiteout("new/h"),
				Reg("new/f", ""), truncated("new/f", 4), Xattr("new/f", "overlay.metacopy", ""),
				Reg("new/g", ""), truncated("new/g", 4), Xattr("new/g", "overlay.metacopy", ""), Xattr("new/g", "overlay.redirect", "h"),
			},
			{Reg("old/f", "data"), Reg("old/h", "DATA")},
		}, Run: func(c *C) {
			c.Has("new/f", "data")
			c.Has("new/g", "DATA")
			c.OK(c.Chmod("new/f", 0o600))
			c.Append("new/g", "+")
			c.OK(c.Remount())
			c.Has("new/f", "data")
			c.Has("new/g", "DATA+")
		}},
		{Name: "rename-dir/links-of-redirect-in-lower", Needs: Trusted, Not: Kernel, Lowers: []Layer{
			{Dirs("new/a", "d/abs"), Xattr("new", "overlay.redirect", "old"), Xattr("d/abs", "overlay.redirect", "/from/here"), Reg("old", ""), Reg("from/here", "")},
			{Dirs("old/b", "old/c", "from/here/x", "from/here/y")},
		}, Run: func(c *C) {
			Eq(c, "links", c.Stat("new").Nlink, 5)
			Eq(c, "links by an absolute redirect", c.Stat("d/abs").Nlink, 4)
		}},
		{Name: "rename-dir/long-redirect", Lowers: []Layer{longRedirect()}, Run: func(c *C) {
			if !c.redirects() {
				return
			}
			p := longDir()
			c.OK(c.Rename(p, "short", 0))
			c.OK(c.Mkdir("other", 0o755))
			c.OK(c.Rename("short", "other/short", 0))
			c.OK(c.Remount())
			c.Has("other/short/f", "deep")
			c.Absent(p)
		}},
	}
}

// longDir is a path short enough for the kernel's limit on redirects, of 256 bytes.
func longDir() string {
	p := ""
	for i := range 8 {
		p = path.Join(p, fmt.Sprintf("directory-with-a-long-name-%d", i))
	}
	return p
}

func longRedirect() Layer { return Layer{Reg(longDir()+"/f", "deep")} }

func caseRenameDir(c *C) {
	if !c.redirects() {
		c.Fails(c.Rename("m", "n", 0), unix.EXDEV)
		return
	}
	c.OK(c.Rename("m", "m2", 0))
	c.OK(c.Rename("l", "l2", 0))
	c.OK(c.Mkdir("u", 0o755))
	c.Put("u/f", "u")
	c.OK(c.Rename("u", "u2", 0))
	check := func() {
		c.Helper()
		c.Lists(".", "empty", "full", "l2", "m2", "target", "u2")
		c.Lists("m2", "low", "sub", "top")
		c.Lists("m2/sub", "deep")
		c.Lists("l2", "s", "x")
		c.Has("l2/s/y", "y")
		c.Has("m2/low", "l")
		c.Has("u2/f", "u")
		c.Absent("m")
		c.Absent("l")
	}
	check()
	c.OK(c.Remount())
	check()
	// Nothing of the lower was copied.
	if _, ok := c.UpperStat("l2/x"); ok {
		c.Error("renaming a directory copied a file")
	}
	c.Put("m2/new", "n")
	c.Append("m2/low", "+")
	c.OK(c.Unlink("m2/top"))
	c.OK(c.Remount())
	c.Lists("m2", "low", "new", "sub")
	c.Has("m2/low", "l+")
	c.OK(c.Rename("m2", "l2/m3", 0))
	c.OK(c.Rename("l2", "target/l3", 0))
	c.OK(c.Remount())
	c.Lists("target/l3", "m3", "s", "x")
	c.Lists("target/l3/m3", "low", "new", "sub")
	c.Has("target/l3/m3/low", "l+")
	c.Lists(".", "empty", "full", "target", "u2")
}

func caseRenameDirNest(c *C) {
	if !c.redirects() {
		return
	}
	c.OK(c.Rename("l", "m/l", 0))
	c.OK(c.Rename("m", "target/m", 0))
	c.OK(c.Mkdir("up", 0o755))
	c.OK(c.Rename("target/m/sub", "up/sub", 0))
	c.OK(c.Rename("target/m/l/s", "up/s", 0))
	c.OK(c.Rename("target", "up/target", 0))
	check := func() {
		c.Helper()
		c.Lists(".", "empty", "full", "up")
		c.Lists("up", "s", "sub", "target")
		c.Lists("up/target/m", "l", "low", "top")
		c.Lists("up/target/m/l", "x")
		c.Has("up/s/y", "y")
		c.Has("up/sub/deep", "d")
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Rename("up/target/m", "m", 0))
	c.OK(c.Rename("up/s", "m/l/s", 0))
	c.OK(c.Rename("up/sub", "m/sub", 0))
	c.OK(c.Rename("m/l", "l", 0))
	c.OK(c.Remount())
	c.Lists("m", "low", "sub", "top")
	c.Lists("l", "s", "x")
	c.Has("l/s/y", "y")
}

func caseRenameDirOver(c *C) {
	if !c.redirects() {
		return
	}
	c.Fails(c.Rename("m", "full", 0), unix.ENOTEMPTY)
	c.Fails(c.Rename("m", "l", 0), unix.ENOTEMPTY)
	c.OK(c.Mkdir("up", 0o755))
	c.Put("up/f", "f")
	c.Fails(c.Rename("m", "up", 0), unix.ENOTEMPTY)
	c.Fails(c.Rename("up", "m", 0), unix.ENOTEMPTY)
	c.OK(c.Rename("m", "empty", 0))
	c.OK(c.Rename("up", "target", 0))
	check := func() {
		c.Helper()
		c.Lists(".", "empty", "full", "l", "target")
		c.Lists("empty", "low", "sub", "top")
		c.Lists("target", "f")
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Mkdir("m", 0o755))
	c.Lists("m")
	c.OK(c.Rename("empty", "m", 0))
	c.OK(c.Remount())
	c.Lists("m", "low", "sub", "top")
	c.Absent("empty")
}

func caseRenameDirOverWhiteouts(c *C) {
	c.OK(c.Unlink("full/z"))
	c.OK(c.Unlink("l/x"))
	c.OK(c.Unlink("l/s/y"))
	c.OK(c.Rmdir("l/s"))
	c.OK(c.Mkdir("up", 0o755))
	c.Put("up/f", "f")
	c.OK(c.Rename("up", "full", 0))
	c.Lists("full", "f")
	if c.redirects() {
		c.OK(c.Rename("m", "l", 0))
		c.Lists("l", "low", "sub", "top")
	} else {
		c.OK(c.Rmdir("l"))
	}
	c.OK(c.Remount())
	c.Lists("full", "f")
	c.Has("full/f", "f")
	if c.redirects() {
		c.Lists("l", "low", "sub", "top")
		c.Absent("m")
	}
}

func caseRenameDirChanges(c *C) {
	if !c.redirects() {
		return
	}
	c.OK(c.Rename("m", "n", 0))
	c.OK(c.Chmod("n/low", 0o600))
	c.OK(c.Rename("n/top", "n/sub/top", 0))
	c.OK(c.Unlink("n/sub/deep"))
	c.OK(c.Mkdir("n/low2", 0o755))
	c.OK(c.Link("n/low", "n/low2/link"))
	c.OK(c.Symlink("x", "n/sub/deep"))
	c.OK(c.Rename("n/sub", "n/sub2", 0))
	check := func(n string) {
		c.Helper()
		c.Lists(n, "low", "low2", "sub2")
		c.Lists(n+"/sub2", "deep", "top")
		Eq(c, "type", c.Stat(n+"/sub2/deep").Type(), unix.S_IFLNK)
		c.Has(n+"/low2/link", "l")
		Eq(c, "links", c.Stat(n+"/low").Nlink, 2)
	}
	check("n")
	c.OK(c.Remount())
	check("n")
	c.OK(c.Rename("n", "target/n", 0))
	c.OK(c.Remount())
	check("target/n")
	c.Append("target/n/low", "!")
	c.OK(c.Remount())
	c.Has("target/n/low2/link", "l!")
	c.Remove("target/n")
	c.OK(c.Remount())
	c.Lists("target")
	c.Absent("m")
}

func caseRenameDirRecreate(c *C) {
	if !c.redirects() {
		return
	}
	c.OK(c.Rename("m", "n", 0))
	c.OK(c.Mkdir("m", 0o700))
	c.Lists("m")
	c.Put("m/low", "other")
	c.OK(c.Remount())
	c.Lists("m", "low")
	c.Has("m/low", "other")
	c.Has("n/low", "l")
	// The two change places, by a third name and at once.
	c.OK(c.Rename("m", "t", 0))
	c.OK(c.Rename("n", "m", 0))
	c.OK(c.Rename("t", "n", 0))
	c.OK(c.Remount())
	c.Lists("m", "low", "sub", "top")
	c.Lists("n", "low")
	c.OK(c.Rename("m", "n", unix.RENAME_EXCHANGE))
	c.OK(c.Remount())
	c.Lists("n", "low", "sub", "top")
	c.Lists("m", "low")
	c.Remove("n")
	c.OK(c.Rename("m", "n", 0))
	c.OK(c.Remount())
	c.Lists("n", "low")
	c.Has("n/low", "other")
	c.Absent("m")
}

func caseRenameDirChain(c *C) {
	if !c.redirects() {
		return
	}
	at := "m"
	for i := range 12 {
		next := fmt.Sprintf("r%d", i)
		if i%3 == 2 {
			c.OK(c.Mkdir(fmt.Sprintf("p%d", i), 0o755))
			next = fmt.Sprintf("p%d/r", i)
		}
		c.OK(c.Rename(at, next, 0))
		at = next
		if i%4 == 3 {
			c.OK(c.Remount())
		}
		c.Lists(at, "low", "sub", "top")
		c.Has(at+"/sub/deep", "d")
	}
	c.Absent("m")
}

func caseRenameDirOpen(c *C) {
	if !c.redirects() {
		return
	}
	r := c.OpenFile("m/low", unix.O_RDONLY, 0)
	w := c.OpenFile("m/sub/deep", unix.O_RDWR, 0)
	d, err := c.OpenDir("m")
	c.OK(err)
	c.OK(c.Rename("m", "target/n", 0))
	Eq(c, "content", c.GetFile(r), "l")
	c.WriteAll(w, "changed", 0)
	c.OK(r.Close())
	c.OK(w.Close())
	names := 0
	for {
		some, err := d.Next()
		c.OK(err)
		if len(some) == 0 {
			break
		}
		names += len(some)
	}
	Eq(c, "entries with . and ..", names, 5)
	c.OK(d.Close())
	c.Has("target/n/sub/deep", "changed")
}
