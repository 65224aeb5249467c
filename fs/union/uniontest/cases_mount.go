package uniontest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

func mountCases() []Case {
	two := []Layer{{Reg("a", "0"), Reg("d/x", "0"), Whiteout("gone")}, {Reg("d/y", "1"), Reg("gone", "1")}}
	readOnly := func(c *C) {
		c.Lists(".", "a", "d")
		c.Lists("d", "x", "y")
		c.Has("d/y", "1")
		for what, err := range map[string]error{
			"create": ignore(c.Open("n", unix.O_CREAT|unix.O_WRONLY, 0o600)), "write": ignore(c.Open("a", unix.O_WRONLY, 0)),
			"mkdir": c.Mkdir("n", 0o755), "unlink": c.Unlink("a"), "chmod": c.Chmod("a", 0o600),
			"rename": c.Rename("a", "n", 0), "setxattr": c.Setxattr("a", "user.k", nil, 0),
			"truncate": c.Truncate("a", 0), "link": c.Link("a", "n"), "utimens": c.Utimens("a", Old(), Old()),
			"symlink": c.Symlink("t", "n"), "rmdir": c.Rmdir("d"), "chown": c.Chown("a", 1, 1),
		} {
			if err == nil {
				c.Errorf("%s is allowed", what)
			} else {
				c.Fails(err, unix.EROFS)
			}
		}
		c.Has("a", "0")
	}
	return []Case{
		{Name: "mount/no-upper", Lowers: two, NoUpper: true, Run: readOnly},
		{Name: "mount/read-only", Lowers: two, Options: []string{"ro"}, Run: func(c *C) {
			readOnly(c)
			if _, ok := c.UpperStat("a"); ok {
				c.Error("a read-only mount wrote to its upper")
			}
		}},
		{Name: "mount/single-lower", Lowers: []Layer{{Reg("a", "0"), Whiteout("w")}}, NoUpper: true, Not: Kernel, NoCross: "the kernel refuses this", Run: func(c *C) {
			if c.Differs("single-lower") {
				c.Lists(".", "a")
				c.Has("a", "0")
			}
		}},
		{Name: "mount/many-lowers", Lowers: manyLowers(500), Run: func(c *C) {
			Eq(c, "entries", len(c.Names(".")), 502)
			c.Has("same", "0")
			c.Has("own499", "499")
			c.Append("own499", "+")
			c.OK(c.Unlink("same"))
			c.OK(c.Remount())
			c.Absent("same")
			c.Has("own499", "499+")
			c.Lists("deep", "f250")
		}},
		{Name: "mount/root-attributes", Lowers: []Layer{{Perm(".", 0o750), Owner(".", 1, 2), Xattr(".", "user.k", "lower")}}, Run: func(c *C) {
			// The root is the upper's.
			c.OK(c.Chmod(".", 0o711))
			c.OK(c.Chown(".", 3, 4))
			c.OK(c.Setxattr(".", "user.k", []byte("v"), 0))
			c.OK(c.Utimens(".", Old(), Old()))
			c.OK(c.Remount())
			st := c.Stat(".")
			Eq(c, "mode", st.Perm(), 0o711)
			Eq(c, "owner", [2]uint32{st.UID, st.GID}, [2]uint32{3, 4})
			Eq(c, "mtime", st.Mtime, Old())
			Eq(c, "attribute", c.Attr(".", "user.k"), "v")
		}},
		{Name: "mount/twice", Needs: SharedUpper, Not: Kernel, Lowers: two, Run: func(c *C) {
			// A commit of a running container reads the upper through a second, read-only mount.
			f := c.OpenFile("n", unix.O_RDWR|unix.O_CREAT, 0o600)
			c.WriteAll(f, strings.Repeat("dirty", 100_000), 0)
			c.Append("a", "+")
			spec := c.Spec
			spec.Options = append([]string{"ro"}, spec.Options...)
			second, err := c.factory.Open(c.T, spec)
			c.OK(err)
			s := &C{T: c.T, Tree: second, Spec: spec, factory: c.factory}
			s.Has("n", strings.Repeat("dirty", 100_000))
			s.Has("a", "0+")
			s.Lists(".", "a", "d", "n")
			c.Put("later", "x")
			s.Fails(s.Mkdir("x", 0o755), unix.EROFS)
			c.OK(second.Close())
			c.WriteAll(f, "DIRTY", 0)
			c.OK(f.Close())
			c.OK(c.Unlink("d/x"))
		}},
		{Name: "mount/volatile", Options: []string{"volatile"}, Lowers: two, NoFinal: "a volatile mount refuses the next", NoCross: "a volatile mount refuses the next", Run: func(c *C) {
			c.Put("n", "x")
			f := c.OpenFile("n", unix.O_RDWR, 0)
			c.OK(f.Sync())
			c.OK(f.Close())
			c.Append("a", "+")
			c.Has("a", "0+")
		}},
		{Name: "mount/remount-often", Lowers: two, Run: func(c *C) {
			for i := range 5 {
				c.Put(fmt.Sprintf("f%d", i), "x")
				c.Append("a", fmt.Sprint(i))
				c.OK(c.Rename("d/y", "d/t", 0))
				c.OK(c.Rename("d/t", "d/y", 0))
				c.OK(c.Remount())
			}
			c.Has("a", "001234")
			c.Lists("d", "x", "y")
		}},
	}
}

func manyLowers(n int) []Layer {
	var all []Layer
	for i := range n {
		l := Layer{Reg(fmt.Sprintf("own%d", i), fmt.Sprint(i)), Reg("same", fmt.Sprint(i))}
		if i == 250 {
			l = append(l, Reg("deep/f250", ""))
		}
		all = append(all, l)
	}
	return all
}

// peerCases are defects that public suites and users found in fuse-overlayfs; each is a case of its own even where
// another covers the ground.
func peerCases() []Case {
	return []Case{
		{Name: "peer/mknod-zero-device-hides-directory", Lowers: []Layer{{Reg("d/a", ""), Reg("d/b", "")}}, NoCross: escaped, Run: func(c *C) {
			if err := c.Mknod("d/z", unix.S_IFCHR|0o600, 0); err != nil {
				c.Fails(err, unix.EPERM)
				c.Lists("d", "a", "b")
				return
			}
			c.Lists("d", "a", "b", "z")
		}},
		{Name: "peer/link-count-after-unlink", Lowers: []Layer{{Reg("a", "x")}}, Run: func(c *C) {
			c.OK(c.Link("a", "b"))
			f := c.OpenFile("a", unix.O_RDWR, 0)
			Eq(c, "links", c.StatFile(f).Nlink, 2)
			c.OK(c.Unlink("a"))
			Eq(c, "links", c.StatFile(f).Nlink, 1)
			c.OK(c.Unlink("b"))
			Eq(c, "links", c.StatFile(f).Nlink, 0)
			c.OK(f.Close())
		}},
		{Name: "peer/deleted-comes-back", Lowers: []Layer{{Reg("d/f", "lower"), Reg("d/s/x", "")}}, Run: func(c *C) {
			c.Remove("d")
			c.OK(c.Mkdir("d", 0o755))
			c.OK(c.Mkdir("d/s", 0o755))
			c.OK(c.Remount())
			c.Lists("d/s")
			c.OK(c.Rename("d", "e", 0))
			c.OK(c.Mkdir("d", 0o755))
			c.OK(c.Remount())
			c.Lists("d")
			c.Lists("e", "s")
		}},
		{Name: "peer/fallocate-set-gid", Needs: Mounted, Lowers: []Layer{{RegMode("f", "x", 0o777), Perm("f", 0o2777)}}, Run: func(c *C) {
			f, err := c.On(Nobody()).Open("f", unix.O_RDWR, 0)
			c.OK(err)
			c.OK(f.Fallocate(0, 0, 100))
			c.OK(f.Close())
			Eq(c, "mode", c.Stat("f").Perm(), 0o777)
		}},
		{Name: "peer/atime", Lowers: []Layer{{Reg("f", "x"), Times("f", unix.Timespec{Sec: 1000}, unix.Timespec{Sec: 2000})}}, Run: func(c *C) {
			c.OK(c.Utimens("f", unix.Timespec{Sec: 3000, Nsec: 7}, Omit()))
			Eq(c, "atime", c.Stat("f").Atime, unix.Timespec{Sec: 3000, Nsec: 7})
			Eq(c, "mtime", c.Stat("f").Mtime, unix.Timespec{Sec: 2000})
		}},
		{Name: "peer/same-inode-other-file", Lowers: []Layer{{Reg("lib/a", "a")}, {Reg("lib/b", "b")}, {Reg("lib/c", "c")}}, Run: func(c *C) {
			seen := make(map[uint64]string)
			for _, n := range c.Names("lib") {
				ino := c.Stat("lib/" + n).Ino
				if q, dup := seen[ino]; dup {
					c.Errorf("%s and %s are one file", n, q)
				}
				seen[ino] = n
			}
		}},
		{Name: "peer/symlink-escape", Upper: Layer{Sym("etc", "/")}, Lowers: []Layer{{Reg("etc/passwd", "x")}}, Run: func(c *C) {
			// A symlink in the place of a lower's directory: nothing is done through it.
			Eq(c, "type", c.Stat("etc").Type(), unix.S_IFLNK)
			c.OK(c.Unlink("etc"))
			c.OK(c.Mkdir("etc", 0o755))
			c.Put("etc/passwd", "new")
			c.OK(c.Remount())
			c.Lists("etc", "passwd")
			c.Has("etc/passwd", "new")
		}},
		{Name: "peer/redirect-escape", Needs: Trusted, NoCross: "the kernel refuses the directory", Lowers: []Layer{
			{Dirs("in"), Xattr("in", "overlay.redirect", "../../../../etc"), Dirs("abs"), Xattr("abs", "overlay.redirect", "/../../../etc"), Reg("ok", "")},
			{Dirs("x")},
		}, NoFinal: "the tree holds directories that cannot be read", Run: caseRedirectEscape},
	}
}

// caseRedirectEscape holds that a redirect in a lower never leads out of its layer: what it names is refused or empty.
func caseRedirectEscape(c *C) {
	for _, p := range []string{"in", "abs"} {
		list, err := c.ReadDir(p)
		if err != nil {
			continue
		}
		for _, d := range list {
			if d.Name != "." && d.Name != ".." {
				c.Errorf("%s lists %s, which no layer has", p, d.Name)
			}
		}
	}
	c.Has("ok", "")
}
