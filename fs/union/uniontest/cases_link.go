package uniontest

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func linkCases() []Case {
	return []Case{
		{Name: "link/upper", Run: func(c *C) {
			c.Put("a", "x")
			c.OK(c.Mkdir("d", 0o755))
			for i := range 5 {
				c.OK(c.Link("a", fmt.Sprintf("d/l%d", i)))
				Eq(c, "links", c.Stat("a").Nlink, uint64(i+2))
				Eq(c, "links by the new name", c.Stat(fmt.Sprintf("d/l%d", i)).Nlink, uint64(i+2))
			}
			c.Append("d/l3", "y")
			c.Has("a", "xy")
			for i := range 5 {
				c.OK(c.Unlink(fmt.Sprintf("d/l%d", i)))
				Eq(c, "links", c.Stat("a").Nlink, uint64(5-i))
			}
		}},
		{Name: "link/lower", Lowers: []Layer{{Reg("a", "x"), Sym("l", "t"), Fifo("p"), Reg("d/f", "f")}}, Run: caseLinkLower},
		{Name: "link/lower-special", Lowers: []Layer{{
			Sym("d/s", "t"), Hard("d/s", "d/s2"), Sym("m", "t"), Hard("m", "m2"), Fifo("p"), Hard("p", "p2"), Sym("r", "t"), Hard("r", "r2"),
		}}, Run: caseLinkSpecial},
		{Name: "link/lower-unlink-one", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Hard("a", "d/c")}}, Run: func(c *C) {
			c.OK(c.Unlink("b"))
			Eq(c, "links", c.Stat("a").Nlink, 2)
			c.OK(c.Remount())
			Eq(c, "links after a remount", c.Stat("d/c").Nlink, 2)
			c.Append("a", "y")
			c.Has("d/c", "xy")
			c.OK(c.Unlink("a"))
			Eq(c, "links", c.Stat("d/c").Nlink, 1)
			c.OK(c.Remount())
			Eq(c, "links after a remount", c.Stat("d/c").Nlink, 1)
			c.Has("d/c", "xy")
		}},
		{Name: "link/lower-rename-over-one", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Reg("n", "n")}}, Run: func(c *C) {
			c.OK(c.Rename("n", "b", 0))
			Eq(c, "links", c.Stat("a").Nlink, 1)
			c.Has("b", "n")
			c.Has("a", "x")
			c.OK(c.Remount())
			Eq(c, "links", c.Stat("a").Nlink, 1)
		}},
		{Name: "link/lower-of-upper", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Xattr("a", "overlay.nlink", "U-1")}}, Run: caseLinkFormerUpper},
		{Name: "link/many-groups", Lowers: manyGroups(), Run: caseLinkGroups},
		{Name: "link/tmpfile", Run: caseTmpfile},
		{Name: "link/unlinked", Lowers: []Layer{{Reg("f", "x")}}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.OK(c.Unlink("f"))
			c.Fails(c.LinkFile2(f, "again"), unix.ENOENT)
			c.OK(f.Close())
			c.Absent("f")
		}},
		{Name: "link/2000", Run: func(c *C) { caseManyLinks(c, 2000, 20*time.Second) }},
		{Name: "link/65000", Long: true, Serial: true, Run: func(c *C) { caseManyLinks(c, 64_000, 3*time.Minute) }},
	}
}

// LinkFile2 is LinkFile for trees that offer it; a tree without file descriptors answers as the kernel would.
func (c *C) LinkFile2(f File, p string) error {
	if f.FD() < 0 {
		return unix.ENOENT
	}
	return c.LinkFile(f, p)
}

func caseLinkLower(c *C) {
	for _, p := range []string{"a", "l", "p", "d/f"} {
		ino := c.Stat(p).Ino
		n := "new-" + p[len(p)-1:]
		c.OK(c.Link(p, n))
		for _, q := range []string{p, n} {
			Eq(c, q+" links", c.Stat(q).Nlink, 2)
			if c.Is(Trusted) || p == "a" || p == "d/f" {
				Eq(c, q+" inode", c.Stat(q).Ino, ino) // else see the difference rootless-inode
			}
		}
	}
	c.OK(c.Link("d/f", "d/g"))
	c.OK(c.Unlink("new-f"))
	Eq(c, "links", c.Stat("d/g").Nlink, 2)
	c.Append("new-a", "y")
	c.Has("a", "xy")
	c.OK(c.Remount())
	c.Has("a", "xy")
	Eq(c, "links", c.Stat("a").Nlink, 2)
	Eq(c, "links", c.Stat("l").Nlink, 2)
	Eq(c, "inode", c.Stat("d/g").Ino, c.Stat("d/f").Ino)
}

// caseLinkFormerUpper: a layer that was an upper may have lost the hard-link index that its stored link counts allow for; containers/storage
// removes the work directory of one that it changed the owners of. Each of the names counts.
func caseLinkFormerUpper(c *C) {
	c.OK(c.Chmod("a", 0o600))
	Eq(c, "links", c.Stat("b").Nlink, 2)
	c.OK(c.Unlink("b"))
	c.OK(c.Link("a", "b"))
	Eq(c, "links", c.Stat("a").Nlink, 2)
	c.OK(c.Remount())
	Eq(c, "links after a remount", c.Stat("b").Nlink, 2)
	Eq(c, "inode", c.Stat("a").Ino, c.Stat("b").Ino)
	c.Has("b", "x")
}

// caseLinkSpecial: where no attribute can keep their link count, hard links of what is no regular file can be changed and removed as well.
func caseLinkSpecial(c *C) {
	for range 2 {
		for _, p := range []string{"d/s", "d/s2"} {
			c.OK(c.Chown(p, 0, 0))
		}
		c.OK(c.Chmod("p", 0o600))
		c.OK(c.Chmod("p2", 0o640))
	}
	Eq(c, "mode", c.Stat("p2").Perm(), 0o640)
	c.OK(c.Rename("m", "m3", 0))
	c.OK(c.Unlink("m2"))
	c.OK(c.Unlink("r2"))
	c.OK(c.Remount())
	for _, p := range []string{"d/s", "d/s2", "m3", "p", "p2", "r"} {
		if links := c.Stat(p).Nlink; links < 1 || links > 2 && c.Is(Trusted) {
			c.Errorf("%s has %d links", p, links)
		}
	}
	c.Absent("m2")
	c.Absent("r2")
	for _, p := range []string{"d/s2", "d/s", "m3", "p2", "p", "r"} {
		c.OK(c.Unlink(p))
	}
	c.OK(c.Rmdir("d"))
}

func manyGroups() []Layer {
	var top, bottom Layer
	for g := range 20 {
		bottom = append(bottom, Reg(fmt.Sprintf("g%d/n0", g), fmt.Sprint(g)))
		for n := 1; n <= g%5; n++ {
			bottom = append(bottom, Hard(fmt.Sprintf("g%d/n0", g), fmt.Sprintf("x%d/g%d", n, g)))
		}
	}
	top = append(top, Reg("g0/other", ""))
	return []Layer{top, bottom}
}

func caseLinkGroups(c *C) {
	check := func() {
		c.Helper()
		for g := range 20 {
			p := fmt.Sprintf("g%d/n0", g)
			st := c.Stat(p)
			Eq(c, p+" links", st.Nlink, uint64(1+g%5))
			for n := 1; n <= g%5; n++ {
				q := fmt.Sprintf("x%d/g%d", n, g)
				Eq(c, q+" inode", c.Stat(q).Ino, st.Ino)
			}
		}
	}
	check()
	for g := range 20 {
		switch g % 4 {
		case 0:
			c.Append(fmt.Sprintf("g%d/n0", g), "+")
		case 1:
			c.OK(c.Chmod(fmt.Sprintf("g%d/n0", g), 0o600))
		case 2:
			if g%5 > 0 {
				c.Append(fmt.Sprintf("x1/g%d", g), "+")
			}
		}
	}
	check()
	c.OK(c.Remount())
	check()
	c.Has("x1/g6", "6+")
	c.Has("g6/n0", "6+")
	c.Has("x1/g16", "16+")
}

func caseTmpfile(c *C) {
	c.OK(c.Mkdir("d", 0o755))
	f, err := c.Open("d", unix.O_TMPFILE|unix.O_RDWR, 0o640)
	c.OK(err)
	c.WriteAll(f, "temporary", 0)
	st := c.StatFile(f)
	Eq(c, "links", st.Nlink, 0)
	Eq(c, "mode", st.Mode, unix.S_IFREG|0o640)
	c.Lists("d")
	c.OK(c.LinkFile(f, "d/named"))
	Eq(c, "links", c.StatFile(f).Nlink, 1)
	Eq(c, "inode", c.Stat("d/named").Ino, st.Ino)
	c.WriteAll(f, "TEMP", 0)
	c.OK(f.Close())
	c.Has("d/named", "TEMPorary")
	// Without a link nothing stays.
	f, err = c.Open("d", unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	c.OK(err)
	c.WriteAll(f, "gone", 0)
	c.OK(f.Close())
	c.Lists("d", "named")
	// O_EXCL forbids linking.
	f, err = c.Open("d", unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o600)
	c.OK(err)
	if c.Is(Mounted) {
		c.Fails(c.LinkFile(f, "d/never"), unix.ENOENT)
	}
	c.OK(f.Close())
}

func caseManyLinks(c *C, n int, limit time.Duration) {
	c.Put("f", "x")
	start := time.Now()
	c.OK(c.Mkdir("d", 0o755))
	made := 0
	for i := range n {
		if err := c.Link("f", fmt.Sprintf("d/%d", i)); err != nil {
			// ext4 allows 65,000.
			c.Fails(err, unix.EMLINK)
			break
		}
		made++
	}
	Eq(c, "links", c.Stat("f").Nlink, uint64(made+1))
	Eq(c, "entries", len(c.Names("d")), made)
	for i := range made {
		c.OK(c.Unlink(fmt.Sprintf("d/%d", i)))
	}
	Eq(c, "links", c.Stat("f").Nlink, 1)
	c.Elapsed(fmt.Sprintf("%d hard links made and removed", made), start, limit)
}

func openFileCases() []Case {
	return []Case{
		{Name: "open-file/unlinked-upper", Run: func(c *C) {
			c.Put("f", "content")
			caseUnlinkedFile(c, "f")
		}},
		{Name: "open-file/unlinked-lower", Lowers: []Layer{{Reg("f", "content")}}, Run: func(c *C) { caseUnlinkedFile(c, "f") }},
		{Name: "open-file/unlinked-metacopy", Lowers: []Layer{{Reg("f", "content")}}, Run: func(c *C) {
			c.OK(c.Chmod("f", 0o600))
			caseUnlinkedFile(c, "f")
		}},
		{Name: "open-file/unlinked-reading", Lowers: []Layer{{Reg("f", "content")}}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDONLY, 0)
			c.OK(c.Unlink("f"))
			Eq(c, "content", c.GetFile(f), "content")
			if c.Differs("unlinked-lower-nlink") {
				Eq(c, "links", c.StatFile(f).Nlink, 0)
			}
			c.Put("f", "other")
			Eq(c, "content", c.GetFile(f), "content")
			c.OK(f.Close())
			c.Has("f", "other")
		}},
		{Name: "open-file/replaced", Lowers: []Layer{{Reg("f", "old"), Reg("n", "new")}}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.OK(c.Rename("n", "f", 0))
			Eq(c, "content", c.GetFile(f), "old")
			c.WriteAll(f, "OLDER", 0)
			Eq(c, "content", c.GetFile(f), "OLDER")
			Eq(c, "links", c.StatFile(f).Nlink, 0)
			c.Has("f", "new")
			c.OK(f.Close())
		}},
		{Name: "open-file/renamed", Lowers: []Layer{{Reg("f", "old"), Dirs("d")}}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.OK(c.Rename("f", "d/g", 0))
			c.WriteAll(f, "NEW", 0)
			c.OK(f.Close())
			c.Has("d/g", "NEW")
		}},
		{Name: "open-file/attributes-by-handle", Lowers: []Layer{{Reg("f", "x"), Reg("g", "y")}}, Run: func(c *C) {
			for _, p := range []string{"f", "g"} {
				f := c.OpenFile(p, unix.O_RDWR, 0)
				if p == "g" {
					c.OK(c.Unlink(p))
				}
				c.OK(f.Chmod(0o640))
				c.OK(f.Chown(3, 4))
				c.OK(f.Utimens(Old(), Old()))
				c.OK(f.Setxattr("user.k", []byte("v"), 0))
				st := c.StatFile(f)
				Eq(c, "mode", st.Perm(), 0o640)
				Eq(c, "owner", [2]uint32{st.UID, st.GID}, [2]uint32{3, 4})
				Eq(c, "mtime", st.Mtime, Old())
				buf := make([]byte, 8)
				n, err := f.Getxattr("user.k", buf)
				c.OK(err)
				Eq(c, "attribute", string(buf[:n]), "v")
				c.OK(f.Close())
			}
		}},
		{Name: "open-file/attributes-seen-by-name", Lowers: []Layer{manyFiles("d", 0, 100)}, Run: func(c *C) {
			for i := range 100 {
				p := "d/" + fileName(i)
				before := c.OpenFile(p, unix.O_RDONLY, 0)
				c.Append(p, "+")
				c.Stat(p)
				c.OK(before.Chmod(0o600))
				Eq(c, "mode", c.Stat(p).Perm(), 0o600)
				c.OK(before.Chown(3, 4))
				Eq(c, "owner", c.Stat(p).UID, 3)
				c.OK(before.Utimens(Old(), Old()))
				Eq(c, "mtime", c.Stat(p).Mtime, Old())
				c.OK(before.Close())
			}
		}},
		{Name: "open-file/many", Needs: Mounted, Serial: true, Lowers: []Layer{manyFiles("d", 0, 3000)}, Run: func(c *C) {
			var open []File
			for i := range 3000 {
				open = append(open, c.OpenFile("d/"+fileName(i), unix.O_RDWR, 0))
			}
			for i, f := range open {
				if i%100 == 0 {
					c.WriteAll(f, fileName(i), 0)
				}
			}
			for i, f := range open {
				c.OK(f.Close())
				if i%100 == 0 {
					c.Has("d/"+fileName(i), fileName(i))
				}
			}
		}},
		{Name: "open-file/removed-directory", Run: func(c *C) {
			c.OK(c.Mkdir("d", 0o755))
			d, err := c.OpenDir("d")
			c.OK(err)
			c.OK(c.Rmdir("d"))
			c.OK(d.Sync())
			c.OK(d.Close())
			c.Absent("d")
		}},
	}
}

// caseUnlinkedFile goes on using a file without a name.
func caseUnlinkedFile(c *C, p string) {
	c.Helper()
	f := c.OpenFile(p, unix.O_RDWR, 0)
	g := c.OpenFile(p, unix.O_RDONLY, 0)
	c.OK(c.Unlink(p))
	c.Absent(p)
	Eq(c, "links", c.StatFile(f).Nlink, 0)
	Eq(c, "content", c.GetFile(f), "content")
	c.WriteAll(f, "CON", 0)
	Eq(c, "content", c.GetFile(f), "CONtent")
	c.OK(f.Truncate(3))
	Eq(c, "size", c.StatFile(f).Size, 3)
	if c.Differs("mapping-coherence") && !c.Is(Passthrough) {
		Eq(c, "content by another handle", c.GetFile(g), "CON")
	}
	c.OK(f.Sync())
	c.OK(f.Close())
	c.OK(g.Close())
	c.Absent(p)
}
