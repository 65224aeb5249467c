package uniontest

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// capability is a version 2 vfs_cap_data with cap_net_raw permitted and effective.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// aclAccess and aclDefault are the attributes that hold POSIX ACLs.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

func copyUpCases() []Case {
	old := Old()
	every := Layer{
		Dir("p/q", 0o751), RegMode("p/q/f", "content", 0o640), Sym("p/q/l", "target"), Fifo("p/q/fifo"),
		Node("p/q/sock", unix.S_IFSOCK|0o600, 0), Dir("p/q/dir", 0o711),
		Owner("p/q/f", 1, 2), Owner("p/q/l", 3, 4), Owner("p/q/fifo", 5, 6), Owner("p/q/sock", 5, 7), Owner("p/q/dir", 8, 9),
		Owner("p", 10, 11), Owner("p/q", 12, 13),
		Xattr("p", "user.k", "p"), Xattr("p/q", "user.k", "q"), Xattr("p/q/f", "user.k", "f"), Xattr("p/q/dir", "user.k", "d"),
		Times("p/q/f", old, old), Times("p/q/l", old, old), Times("p/q/fifo", old, old), Times("p/q/sock", old, old),
		Times("p/q/dir", old, old), Times("p/q", old, old), Times("p", old, old),
	}
	return []Case{
		{Name: "copy-up/every-type", Lowers: []Layer{every}, Run: caseCopyUpTypes},
		{Name: "copy-up/every-type-no-metacopy", Options: []string{"metacopy=off"}, Lowers: []Layer{every}, Run: caseCopyUpTypes},
		{Name: "copy-up/parents", Lowers: []Layer{every}, Run: caseCopyUpParents},
		{Name: "copy-up/devices", Needs: Devices, Lowers: []Layer{{
			Node("null", unix.S_IFCHR|0o604, unix.Mkdev(1, 3)), Owner("null", 1, 2), Times("null", old, old),
		}}, Run: func(c *C) {
			c.OK(c.Link("null", "null2"))
			st := c.Stat("null")
			Eq(c, "mode", st.Mode, unix.S_IFCHR|0o604)
			Eq(c, "rdev", st.Rdev, unix.Mkdev(1, 3))
			Eq(c, "owner", [2]uint32{st.UID, st.GID}, [2]uint32{1, 2})
			Eq(c, "mtime", st.Mtime, old)
			Eq(c, "links", st.Nlink, 2)
		}},
		{Name: "copy-up/set-id", Lowers: []Layer{{
			RegMode("s", "x", 0o755), Owner("s", 1, 2), Perm("s", 0o6755), Xattr("s", "user.k", "v"),
		}}, Run: caseCopyUpSetID},
		{Name: "copy-up/capability", Needs: InitialRoot, Lowers: []Layer{{
			RegMode("f", "x", 0o755), Xattr("f", "security.capability", capability), Xattr("f", "trusted.k", "t"),
			Xattr("f", "security.other", "o"),
		}}, Run: func(c *C) {
			c.OK(c.Utimens("f", old, old))
			Eq(c, "capability", c.Attr("f", "security.capability"), capability)
			Eq(c, "trusted attribute", c.Attr("f", "trusted.k"), "t")
			Eq(c, "security attribute", c.Attr("f", "security.other"), "o")
			c.Append("f", "y")
			_, err := c.Getxattr("f", "security.capability", nil)
			c.Fails(err, unix.ENODATA)
			Eq(c, "trusted attribute", c.Attr("f", "trusted.k"), "t")
		}},
		{Name: "copy-up/acl", Lowers: []Layer{{
			Reg("d/f", "x"), Xattr("d/f", aclAccess, aclBytes(aclUser(5, 6), aclMask(6))), Xattr("d", aclDefault, aclBytes(aclUser(7, 7), aclMask(7))),
		}}, Run: func(c *C) {
			access, def := c.Attr("d/f", aclAccess), c.Attr("d", aclDefault)
			c.Append("d/f", "y")
			if c.Attr("d/f", aclAccess) != access || c.Attr("d", aclDefault) != def {
				c.Error("copy-up changed an ACL")
			}
			Eq(c, "mode shows the mask", c.Stat("d/f").Perm(), 0o664)
		}},
		{Name: "copy-up/holes", Lowers: []Layer{{Sparse("s", 64<<20, "data", 0, 10<<20, 40<<20)}}, Run: func(c *C) {
			blocks := c.Stat("s").Blocks
			c.Append("s", "end")
			st := c.Stat("s")
			// The kernel copies each piece of data with the rest of its chunk of 1 MiB, cf. overlayfs copy_up.c
			// OVL_COPY_UP_CHUNK_SIZE.
			slack := int64(64)
			if c.Is(Kernel) {
				slack += 3 << 20 / 512
			}
			if st.Size != 64<<20+3 || st.Blocks > blocks+slack {
				c.Errorf("%d blocks became %d", blocks, st.Blocks)
			}
			f := c.OpenFile("s", unix.O_RDONLY, 0)
			off, err := f.Seek(1<<20, unix.SEEK_DATA)
			c.OK(err)
			Eq(c, "second data", off, 10<<20)
			c.OK(f.Close())
		}},
		{Name: "copy-up/truncate", Lowers: []Layer{{Sparse("big", 1<<40, "data", 0, 1<<30), RegMode("set", "abc", 0o755), Perm("set", 0o6755)}}, Run: caseCopyUpTruncate},
		{Name: "copy-up/hard-links", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Hard("a", "d/c")}}, Run: caseCopyUpHardLinks},
		{Name: "copy-up/hard-links-broken", Options: []string{"hardlink_index=off"}, Lowers: []Layer{{Reg("a", "x"), Hard("a", "b")}}, Run: func(c *C) {
			c.Append("a", "y")
			c.Has("a", "xy")
			c.Has("b", "x")
		}},
		{Name: "copy-up/hard-links-removed-by-hand", Lowers: []Layer{{Reg("a", "x"), Hard("a", "b"), Hard("a", "c")}}, Run: caseHardLinksRemoved},
		{Name: "copy-up/identity", Lowers: []Layer{every, {Reg("m/x", ""), Reg("p/below", "")}}, Run: caseCopyUpIdentity},
		{Name: "copy-up/open-handles", Lowers: []Layer{{Reg("f", "old content")}}, Run: caseOpenHandles},
		{Name: "copy-up/read-does-not", Lowers: []Layer{{Reg("d/f", "x"), Sym("d/l", "f"), Xattr("d/f", "user.k", "v")}}, Run: func(c *C) {
			c.Has("d/f", "x")
			c.Attr("d/f", "user.k")
			c.Names("d")
			_, err := c.Readlink("d/l")
			c.OK(err)
			f := c.OpenFile("d/f", unix.O_RDONLY, 0)
			c.OK(f.Sync())
			c.OK(f.Close())
			if _, ok := c.UpperStat("d"); ok {
				c.Error("reading copied up")
			}
		}},
		{Name: "copy-up/empty-and-large", Lowers: []Layer{{Reg("empty", ""), Reg("large", strings.Repeat("large ", 2<<20))}}, Run: func(c *C) {
			c.Append("empty", "x")
			c.Append("large", "x")
			c.Has("empty", "x")
			c.Has("large", strings.Repeat("large ", 2<<20)+"x")
		}},
		{Name: "copy-up/immutable-mode", Lowers: []Layer{{RegMode("ro", "x", 0o400), RegMode("none", "y", 0), Dir("rodir", 0o555), Reg("rodir/f", "z")}}, Run: func(c *C) {
			c.Append("ro", "1")
			c.Append("none", "2")
			c.Append("rodir/f", "3")
			c.Put("rodir/new", "4")
			Eq(c, "mode", c.Stat("ro").Perm(), 0o400)
			Eq(c, "mode", c.Stat("none").Perm(), 0)
			Eq(c, "mode", c.Stat("rodir").Perm(), 0o555)
			c.Has("none", "y2")
		}},
		{Name: "copy-up/concurrent", Lowers: []Layer{{Reg("d/e/f", strings.Repeat("x", 3<<20))}}, Run: caseCopyUpConcurrent},
	}
}

func caseCopyUpTypes(c *C) {
	for _, p := range []string{"p/q/f", "p/q/l", "p/q/fifo", "p/q/sock", "p/q/dir"} {
		before := c.Stat(p)
		attrs := c.Attrs(p)
		// Setting a time to itself copies up and changes nothing.
		c.OK(c.Utimens(p, Omit(), Old()))
		if _, ok := c.UpperStat(p); !ok {
			c.Errorf("%s is not in the upper", p)
		}
		after := c.Stat(p)
		Eq(c, p+" mode", after.Mode, before.Mode)
		Eq(c, p+" owner", [2]uint32{after.UID, after.GID}, [2]uint32{before.UID, before.GID})
		Eq(c, p+" mtime", after.Mtime, before.Mtime)
		Eq(c, p+" size", after.Size, before.Size)
		Eq(c, p+" inode", after.Ino, before.Ino)
		Eq(c, p+" attributes", strings.Join(c.Attrs(p), " "), strings.Join(attrs, " "))
	}
	c.Has("p/q/f", "content")
	Eq(c, "attribute", c.Attr("p/q/f", "user.k"), "f")
	target, err := c.Readlink("p/q/l")
	c.OK(err)
	Eq(c, "target", target, "target")
}

func caseCopyUpParents(c *C) {
	p, q := c.Stat("p"), c.Stat("p/q")
	c.Append("p/q/f", "!")
	for path, before := range map[string]Stat{"p": p, "p/q": q} {
		after := c.Stat(path)
		Eq(c, path+" mode", after.Mode, before.Mode)
		Eq(c, path+" owner", [2]uint32{after.UID, after.GID}, [2]uint32{before.UID, before.GID})
		Eq(c, path+" mtime", after.Mtime, before.Mtime)
		Eq(c, path+" attribute", c.Attr(path, "user.k"), path[len(path)-1:])
	}
	st, _ := c.UpperStat("p/q")
	Eq(c, "owner in the upper", [2]uint32{st.Uid, st.Gid}, [2]uint32{12, 13})
}

func caseCopyUpSetID(c *C) {
	// Neither touching nor linking nor an attribute costs the set-id bits; a write and a change of owner do.
	c.OK(c.Utimens("s", Old(), Old()))
	Eq(c, "mode after utimens", c.Stat("s").Perm(), 0o6755)
	c.OK(c.Link("s", "s2"))
	Eq(c, "mode after link", c.Stat("s").Perm(), 0o6755)
	c.OK(c.Setxattr("s", "user.k2", []byte("v"), 0))
	Eq(c, "mode after setxattr", c.Stat("s").Perm(), 0o6755)
	c.OK(c.Rename("s2", "s3", 0))
	Eq(c, "mode after rename", c.Stat("s3").Perm(), 0o6755)
	st, _ := c.UpperStat("s")
	Eq(c, "mode in the upper", st.Mode, unix.S_IFREG|0o6755)
	c.OK(c.Chown("s", 7, 8))
	Eq(c, "mode after chown", c.Stat("s").Perm(), 0o755)
}

func caseCopyUpTruncate(c *C) {
	// Copying a terabyte, even a sparse one, or its data would not go unnoticed.
	f := c.OpenFile("big", unix.O_WRONLY|unix.O_TRUNC, 0)
	c.WriteAll(f, "short", 0)
	c.OK(f.Close())
	c.Has("big", "short")
	st, _ := c.UpperStat("big")
	Eq(c, "size in the upper", st.Size, 5)
	c.OK(c.Truncate("set", 0))
	Eq(c, "size", c.Stat("set").Size, 0)
	c.OK(c.Remount())
	c.Has("big", "short")
	c.Has("set", "")
}

func caseCopyUpHardLinks(c *C) {
	names := []string{"a", "b", "d/c"}
	ino := c.Stat("a").Ino
	same := func(content string, links uint64, names ...string) {
		c.Helper()
		for _, n := range names {
			c.Has(n, content)
			st := c.Stat(n)
			Eq(c, n+" links", st.Nlink, links)
			Eq(c, n+" inode", st.Ino, ino)
		}
	}
	same("x", 3, names...)
	c.Append("b", "y")
	same("xy", 3, names...)
	c.OK(c.Remount())
	ino = c.Stat("b").Ino
	same("xy", 3, names...)
	c.Append("d/c", "z")
	same("xyz", 3, names...)
	c.OK(c.Unlink("a"))
	same("xyz", 2, "b", "d/c")
	c.OK(c.Link("b", "n"))
	same("xyz", 3, "b", "d/c", "n")
	c.OK(c.Chmod("n", 0o600))
	Eq(c, "mode by another name", c.Stat("d/c").Perm(), 0o600)
	c.OK(c.Remount())
	ino = c.Stat("b").Ino
	same("xyz", 3, "b", "d/c", "n")
	c.OK(c.Unlink("b"))
	c.OK(c.Unlink("n"))
	same("xyz", 1, "d/c")
	c.OK(c.Unlink("d/c"))
	c.Lists("d")
}

func caseCopyUpIdentity(c *C) {
	type id struct{ dev, ino uint64 }
	of := func(p string) id { st := c.Stat(p); return id{st.Dev, st.Ino} }
	before := make(map[string]id)
	paths := []string{"p", "p/q", "p/q/f", "p/q/l", "p/q/fifo", "p/q/dir"}
	for _, p := range paths {
		before[p] = of(p)
	}
	c.Append("p/q/f", "+")
	c.OK(c.Chown("p/q/l", 1, 1))
	c.OK(c.Chmod("p/q/fifo", 0o600))
	c.Put("p/q/dir/new", "")
	c.OK(c.Chmod("p", 0o700))
	for _, p := range paths {
		Eq(c, p+" device and inode after copy-up", of(p), before[p])
	}
	list, err := c.ReadDir("p/q")
	c.OK(err)
	for _, d := range list {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		Eq(c, d.Name+" inode in the list", d.Ino, c.Stat("p/q/"+d.Name).Ino)
	}
	c.OK(c.Rename("p/q/f", "moved", 0))
	c.OK(c.Rename("p/q/fifo", "m/fifo", 0))
	Eq(c, "identity after rename", of("moved"), before["p/q/f"])
	if c.Is(Trusted) { // else see the difference rootless-inode
		Eq(c, "identity after rename", of("m/fifo"), before["p/q/fifo"])
	}
	c.OK(c.Rename("p", "p2", 0))
	Eq(c, "identity of a renamed directory", of("p2"), before["p"])
	Eq(c, "identity beneath a renamed directory", of("p2/q/l"), before["p/q/l"])
}

func caseOpenHandles(c *C) {
	r := c.OpenFile("f", unix.O_RDONLY, 0)
	Eq(c, "content", c.GetFile(r), "old content")
	w := c.OpenFile("f", unix.O_RDWR, 0)
	c.WriteAll(w, "NEW", 0)
	Eq(c, "content by the writing handle", c.GetFile(w), "NEW content")
	if c.Differs("mapping-coherence") && !c.Is(Passthrough) {
		Eq(c, "content by a handle opened before copy-up", c.GetFile(r), "NEW content")
	}
	Eq(c, "content by a handle opened after copy-up", c.Get("f"), "NEW content")
	Eq(c, "inode of both handles", c.StatFile(r).Ino, c.StatFile(w).Ino)
	c.OK(w.Truncate(3))
	Eq(c, "size by the older handle", c.StatFile(r).Size, 3)
	c.OK(r.Close())
	c.OK(w.Close())
	c.Has("f", "NEW")
}

func caseCopyUpConcurrent(c *C) {
	const writers = 8
	done := make(chan error, writers)
	for i := range writers {
		go func() {
			f, err := c.Open("d/e/f", unix.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{byte('0' + i)}, int64(i))
				if cerr := f.Close(); err == nil {
					err = cerr
				}
			}
			done <- err
		}()
	}
	for range writers {
		c.OK(<-done)
	}
	want := "01234567" + strings.Repeat("x", 3<<20-8)
	if c.Get("d/e/f") != want {
		c.Error("writes were lost in a concurrent copy-up")
	}
}

func metacopyCases() []Case {
	low := Layer{
		Sparse("f", 8<<20, "data", 0, 4<<20), Owner("f", 1, 1), Xattr("f", "user.k", "v"),
		Reg("g", "content of g"), Reg("h", "content of h"), Hard("h", "h2"),
	}
	return []Case{
		{Name: "metacopy/no-data", Needs: Trusted, Lowers: []Layer{low}, Run: func(c *C) { caseMetacopy(c, true) }},
		{Name: "metacopy/user-xattr", Not: Trusted | Kernel, NoCross: "the kernel does no metacopy with userxattr", Lowers: []Layer{low}, Run: func(c *C) {
			if c.Differs("rootless-redirect") {
				caseMetacopy(c, true)
			}
		}},
		{Name: "metacopy/off", Options: []string{"metacopy=off"}, Lowers: []Layer{low}, Run: func(c *C) { caseMetacopy(c, false) }},
		{Name: "metacopy/then-write", Lowers: []Layer{low}, Run: caseMetacopyWrite},
		{Name: "metacopy/write-without-origin", Options: []string{"hardlink_index=off"}, Lowers: []Layer{
			{Reg("d/f", "content"), Hard("d/f", "d/g")},
		}, Run: func(c *C) {
			// Its attributes fit into the inode until the mark of unsynced data comes: a quota counts the block for them.
			c.OK(c.Chmod("d/f", 0o600))
			c.OK(c.Rename("d/f", "d/longer-than-before", 0))
			c.OK(c.Remount())
			c.Append("d/longer-than-before", "+")
			c.OK(c.Remount())
			c.Has("d/longer-than-before", "content+")
			c.Has("d/g", "content")
		}},
		{Name: "metacopy/capability", Needs: InitialRoot, Lowers: []Layer{{
			RegMode("open", "x", 0o755), Xattr("open", "security.capability", capability),
			RegMode("flags", "x", 0o755), Xattr("flags", "security.capability", capability),
		}}, Run: caseMetacopyCapability},
		{Name: "metacopy/rename", Lowers: []Layer{low, {Reg("f", "never seen")}}, Run: caseMetacopyRename},
		{Name: "metacopy/linked-without-index", Options: []string{"hardlink_index=off"}, Lowers: []Layer{
			{Reg("d/f", "content"), Hard("d/f", "d/g")},
		}, Run: func(c *C) {
			// Without an index it gets no origin, and the directory that it moves to is not marked impure.
			c.OK(c.Mkdir("new", 0o755))
			c.OK(c.Chmod("d/f", 0o600))
			c.OK(c.Rename("d/f", "new/f", 0))
			c.Has("new/f", "content")
			c.OK(c.Remount())
			c.Has("new/f", "content")
			c.Append("new/f", "+")
			c.OK(c.Remount())
			c.Has("new/f", "content+")
			c.Has("d/g", "content")
		}},
		{Name: "metacopy/in-pure-directory", Needs: Trusted, Upper: Layer{
			Dirs("d", "new"), Whiteout("d/f"), Reg("new/f", ""), truncated("new/f", 7), Xattr("new/f", "overlay.metacopy", ""), Xattr("new/f", "overlay.redirect", "/d/f"),
			Reg("new/plain", "plain"),
		}, Lowers: []Layer{{Reg("d/f", "content")}}, Run: func(c *C) {
			c.Lists("new", "f", "plain")
			c.Has("new/f", "content")
			c.Has("new/plain", "plain")
			c.Append("new/f", "+")
			c.OK(c.Remount())
			c.Has("new/f", "content+")
		}},
		{Name: "metacopy/link", Lowers: []Layer{low}, Run: func(c *C) {
			c.OK(c.Chmod("g", 0o600))
			c.OK(c.Link("g", "g2"))
			c.OK(c.Chmod("h2", 0o600))
			c.OK(c.Remount())
			c.Has("g2", "content of g")
			c.Append("g2", "!")
			c.Has("g", "content of g!")
			c.Append("h", "!")
			c.Has("h2", "content of h!")
			c.OK(c.Remount())
			c.Has("g", "content of g!")
			c.Has("h2", "content of h!")
		}},
		{Name: "metacopy/delete", Lowers: []Layer{low}, Run: func(c *C) {
			c.OK(c.Chmod("g", 0o600))
			c.OK(c.Unlink("g"))
			c.Absent("g")
			c.OK(c.Remount())
			c.Absent("g")
			c.Put("g", "new")
			c.OK(c.Remount())
			c.Has("g", "new")
		}},
		{Name: "metacopy/in-lower", Needs: Trusted, Lowers: []Layer{
			{
				Reg("f", ""), Perm("f", 0o600), truncated("f", 7), Xattr("f", "overlay.metacopy", ""),
				Reg("moved", ""), truncated("moved", 4), Xattr("moved", "overlay.metacopy", ""), Xattr("moved", "overlay.redirect", "/orig"),
				Whiteout("orig"),
			},
			{Reg("f", "content"), Reg("orig", "data")},
		}, Run: caseMetacopyInLower},
	}
}

// truncated sets the size of a file, leaving a hole.
func truncated(p string, size int64) Applier {
	return func(l *LayerDir) error { return unix.Truncate(l.path(p), size) }
}

func caseMetacopy(c *C, on bool) {
	for what, change := range map[string]func() error{
		"chmod":    func() error { return c.Chmod("f", 0o600) },
		"chown":    func() error { return c.Chown("f", 2, 3) },
		"utimens":  func() error { return c.Utimens("f", Old(), Old()) },
		"setxattr": func() error { return c.Setxattr("f", "user.new", []byte("n"), 0) },
	} {
		c.OK(change())
		st, ok := c.UpperStat("f")
		if !ok {
			c.Fatalf("%s did not copy up", what)
		}
		Eq(c, what+": size in the upper", st.Size, 8<<20)
		if data := c.upperHasData("f"); data == on {
			c.Errorf("%s: data in the upper is %v", what, data)
		}
	}
	f := c.OpenFile("f", unix.O_RDONLY, 0)
	buf := make([]byte, 4)
	_, err := f.ReadAt(buf, 4<<20)
	c.OK(err)
	Eq(c, "data", string(buf), "data")
	c.OK(f.Close())
	if c.Stat("f").Blocks == 0 {
		c.Error("a metacopy file reports no blocks")
	}
	Eq(c, "attribute", c.Attr("f", "user.k"), "v")
	for _, x := range c.Attrs("f") {
		if strings.Contains(x, "overlay") {
			c.Errorf("private attribute %s shows", x)
		}
	}
}

// upperHasData reports whether a file in the upper is more than one hole.
func (c *C) upperHasData(p string) bool {
	c.Helper()
	fd, err := unix.Open(c.InUpper(p), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	c.OK(err)
	defer unix.Close(fd)
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	return err == nil
}

func caseMetacopyWrite(c *C) {
	c.OK(c.Chmod("g", 0o601))
	c.OK(c.Utimens("g", Old(), Old()))
	c.OK(c.Remount())
	c.Has("g", "content of g")
	Eq(c, "mtime", c.Stat("g").Mtime, Old())
	r := c.OpenFile("g", unix.O_RDONLY, 0)
	c.Append("g", ", more")
	c.Has("g", "content of g, more")
	Eq(c, "mode", c.Stat("g").Perm(), 0o601)
	c.OK(r.Close())
	st, _ := c.UpperStat("g")
	Eq(c, "size in the upper", st.Size, 18)
	c.OK(c.Remount())
	c.Has("g", "content of g, more")
	// Truncating to nothing and a write in the middle, on metacopy files too.
	c.OK(c.Chmod("f", 0o600))
	f := c.OpenFile("f", unix.O_RDWR|unix.O_TRUNC, 0)
	c.OK(f.Close())
	Eq(c, "size", c.Stat("f").Size, 0)
	c.OK(c.Chmod("h", 0o600))
	f = c.OpenFile("h2", unix.O_RDWR, 0)
	c.WriteAll(f, "C", 0)
	c.OK(f.Close())
	c.Has("h", "Content of h")
}

// caseMetacopyCapability has metadata-only copies get their data though nobody writes.
func caseMetacopyCapability(c *C) {
	for _, name := range []string{"open", "flags"} {
		c.OK(c.Chmod(name, 0o711))
		f := c.OpenFile(name, unix.O_RDWR, 0)
		if name == "flags" {
			const noDump = 0x40
			if now, err := f.Flags(); !c.unsupportedFlags(err) {
				c.OK(err)
				c.OK(f.SetFlags(now | noDump))
			}
		}
		c.OK(f.Close())
		Eq(c, name, c.Attr(name, "security.capability"), capability)
	}
}

func caseMetacopyRename(c *C) {
	c.OK(c.Chown("f", 7, 7))
	c.OK(c.Rename("f", "r", 0))
	c.OK(c.Chmod("g", 0o600))
	c.OK(c.Mkdir("d", 0o755))
	c.OK(c.Rename("g", "d/g", 0))
	c.OK(c.Remount())
	c.Absent("f")
	c.Has("d/g", "content of g")
	Eq(c, "size", c.Stat("r").Size, 8<<20)
	c.OK(c.Rename("d/g", "g", 0))
	c.OK(c.Rename("r", "d/r", 0))
	c.OK(c.Remount())
	c.Has("g", "content of g")
	f := c.OpenFile("d/r", unix.O_RDWR, 0)
	buf := make([]byte, 4)
	_, err := f.ReadAt(buf, 4<<20)
	c.OK(err)
	Eq(c, "data", string(buf), "data")
	c.WriteAll(f, "more", 100)
	c.OK(f.Close())
	c.OK(c.Remount())
	Eq(c, "owner", c.Stat("d/r").UID, 7)
}

// caseHardLinksRemoved removes all upper names of a file from the upper: the names of the lower show its content again.
func caseHardLinksRemoved(c *C) {
	for _, name := range []string{"a", "b", "c"} {
		c.Append(name, "y")
		c.OK(c.Chmod(name, 0o640)) // the write alone may leave the name in the lower
	}
	c.OK(c.Remount())
	for _, name := range []string{"a", "b", "c"} {
		c.OK(os.Remove(c.InUpper(name)))
	}
	c.OK(c.Remount())
	for _, name := range []string{"a", "b", "c"} {
		c.Has(name, "x")
		Eq(c, name+" links", c.Stat(name).Nlink, 3)
	}
	c.OK(c.Link("a", "d"))
	c.Append("b", "z")
	check := func() {
		for _, name := range []string{"a", "b", "c", "d"} {
			c.Has(name, "xz")
			Eq(c, name+" links", c.Stat(name).Nlink, 4)
		}
	}
	check()
	c.OK(c.Remount())
	check()
}

func caseMetacopyInLower(c *C) {
	blocks := func(what string) {
		for _, name := range []string{"f", "moved"} {
			if c.Stat(name).Blocks == 0 {
				c.Errorf("%s: %s has no blocks", what, name)
			}
		}
	}
	blocks("first look")
	c.Has("f", "content")
	Eq(c, "mode", c.Stat("f").Perm(), 0o600)
	c.Has("moved", "data")
	c.Absent("orig")
	c.Append("f", "+")
	c.OK(c.Chmod("moved", 0o600))
	blocks("copied up")
	c.OK(c.Remount())
	blocks("mounted again")
	c.Has("f", "content+")
	c.Has("moved", "data")
	c.Append("moved", "+")
	c.Has("moved", "data+")
}
