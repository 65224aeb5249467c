package uniontest

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/fingerprint"
)

func nameCases() []Case {
	n255 := strings.Repeat("n", 255)
	odd := []string{"white space", "new\nline", "back\\slash", "colon:comma,", "quote\"'", "\xff\xfe", "-dash", "..dots", "...", "%s", "ümläut"}
	var oddLayer Layer
	for _, n := range odd {
		oddLayer = append(oddLayer, Reg("odd/"+n, n))
	}
	return []Case{
		{Name: "name/255", Not: PlainRenames | AUFSForm, Lowers: []Layer{{Reg("d/"+n255, "lower"), Dirs(n255)}}, Run: func(c *C) {
			c.Has("d/"+n255, "lower")
			c.Append("d/"+n255, "+")
			m255 := strings.Repeat("m", 255)
			c.OK(c.Rename("d/"+n255, "d/"+m255, 0))
			c.Has("d/"+m255, "lower+")
			c.OK(c.Rename("d/"+m255, n255+"/"+m255, 0))
			c.OK(c.Unlink(n255 + "/" + m255))
			c.OK(c.Rmdir(n255))
			c.Absent(n255)
			c.OK(c.Mkdir(n255, 0o755))
			c.OK(c.Remount())
			c.Lists(".", "d", n255)
			c.Lists(n255)
		}},
		{Name: "name/256", Lowers: []Layer{{Reg("f", "x"), Dirs("d")}}, Run: func(c *C) {
			long := strings.Repeat("n", 256)
			_, err := c.Lstat(long)
			c.Fails(err, unix.ENAMETOOLONG)
			_, err = c.Open(long, unix.O_CREAT|unix.O_WRONLY, 0o600)
			c.Fails(err, unix.ENAMETOOLONG)
			for _, err := range []error{
				c.Mkdir(long, 0o755), c.Mknod(long, unix.S_IFIFO, 0), c.Symlink("x", long), c.Link("f", long), c.Unlink(long),
				c.Rmdir(long), c.Rename("f", long, 0), c.Rename(long, "x", 0), c.Rename("d", "d/"+long, 0),
			} {
				c.Fails(err, unix.ENAMETOOLONG, unix.EINVAL)
			}
			c.Lists(".", "d", "f")
		}},
		{Name: "name/odd", Lowers: []Layer{oddLayer}, Run: func(c *C) {
			c.Lists("odd", odd...)
			for _, n := range odd {
				c.Has("odd/"+n, n)
				c.Append("odd/"+n, "+")
				c.OK(c.Rename("odd/"+n, n, 0))
				c.OK(c.Symlink(n, "odd/"+n))
			}
			c.OK(c.Remount())
			for _, n := range odd {
				c.Has(n, n+"+")
			}
			c.Lists("odd", odd...)
		}},
		{Name: "name/deep", Lowers: []Layer{{Reg(deepPath(3900)+"/f", "deep")}}, Run: func(c *C) {
			p := deepPath(3900)
			c.Has(p+"/f", "deep")
			c.Append(p+"/f", "+")
			c.Put(p+"/g", "new")
			c.OK(c.Link(p+"/f", p+"/h"))
			c.OK(c.Rename(p+"/g", "g", 0))
			c.OK(c.Unlink(p + "/h"))
			c.OK(c.Remount())
			c.Lists(p, "f")
			c.Has(p+"/f", "deep+")
			c.Remove(strings.SplitN(p, "/", 2)[0])
			c.Lists(".", "g")
		}},
		{Name: "name/beyond-path-max", Run: func(c *C) {
			p := ""
			for i := range 45 {
				p = path.Join(p, fmt.Sprintf("%02d-", i)+strings.Repeat("x", 200))
				c.OK(c.Mkdir(p, 0o755))
			}
			if len(p) < 2*4096 {
				c.Fatalf("the path has only %d bytes", len(p))
			}
			c.Put(p+"/f", "very deep")
			c.Has(p+"/f", "very deep")
			c.OK(c.Remount())
			c.Has(p+"/f", "very deep")
			c.OK(c.Unlink(p + "/f"))
			c.OK(c.Rmdir(p))
		}},
		{Name: "name/moved-below-path-max", Run: func(c *C) {
			if !c.redirects() {
				return
			}
			// A directory that is moved down makes all paths beneath it longer, beyond PATH_MAX at last.
			c.OK(c.Mkdir("m", 0o755))
			c.Put("m/f", "x")
			p := ""
			for range 25 {
				p = path.Join(p, strings.Repeat("d", 180))
				c.OK(c.Mkdir(p, 0o755))
			}
			c.OK(c.Rename("m", p+"/m", 0))
			c.Has(p+"/m/f", "x")
			c.Append(p+"/m/f", "+")
			c.OK(c.Rename(p+"/m", "m", 0))
			c.Has("m/f", "x+")
		}},
	}
}

// deepPath returns a path of about n bytes, made of long names.
func deepPath(n int) string {
	p := ""
	for len(p) < n-130 {
		p = path.Join(p, strings.Repeat("p", 120))
	}
	return p
}

func inodeCases() []Case {
	return []Case{
		{Name: "inode/unique-and-constant", Lowers: []Layer{
			{Reg("a", "0"), Reg("d/x", "0"), Sym("l", "x"), Fifo("p")}, {Reg("b", "1"), Reg("d/y", "1")}, {Reg("c", "2"), Reg("d/z", "2"), Dirs("e")},
		}, Run: func(c *C) {
			before := make(map[string]uint64)
			seen := make(map[uint64]string)
			all := []string{"a", "b", "c", "d", "d/x", "d/y", "d/z", "e", "l", "p"}
			for _, p := range all {
				before[p] = c.Stat(p).Ino
				if q, dup := seen[before[p]]; dup {
					c.Errorf("%s and %s share an inode number", p, q)
				}
				seen[before[p]] = p
			}
			for _, p := range all {
				c.OK(c.Utimens(p, Old(), Old()))
			}
			for _, p := range all {
				Eq(c, p+" inode after copy-up", c.Stat(p).Ino, before[p])
			}
			c.Put("new", "")
			if q, dup := seen[c.Stat("new").Ino]; dup {
				c.Errorf("a new file has the inode number of %s", q)
			}
			// They may change when mounted anew, but not because of a copy-up in between.
			c.OK(c.Remount())
			again := make(map[string]uint64)
			for _, p := range all {
				again[p] = c.Stat(p).Ino
			}
			c.OK(c.Rename("a", "a2", 0))
			c.OK(c.Rename("d/y", "e/y", 0))
			Eq(c, "inode after rename", c.Stat("a2").Ino, again["a"])
			Eq(c, "inode after rename", c.Stat("e/y").Ino, again["d/y"])
		}},
		{Name: "inode/over-remount", Lowers: []Layer{{Reg("a", "0"), Reg("d/x", "0"), Dirs("e")}, {Reg("d/y", "")}}, Run: func(c *C) {
			all := []string{"a", "d", "d/x", "d/y", "e"}
			before := make(map[string]uint64)
			for _, p := range all {
				before[p] = c.Stat(p).Ino
			}
			c.Append("a", "+")
			c.OK(c.Chmod("d/x", 0o600))
			c.Put("e/new", "")
			c.OK(c.Remount())
			for _, p := range all {
				Eq(c, p+" inode after copy-up and remount", c.Stat(p).Ino, before[p])
			}
		}},
		{Name: "inode/one-device", Lowers: []Layer{{Reg("a", ""), Dirs("d")}, {Reg("d/b", ""), Sym("l", "x")}}, Run: func(c *C) {
			c.Put("up", "")
			dev := c.Stat(".").Dev
			for _, p := range []string{"a", "d", "d/b", "l", "up"} {
				Eq(c, p+" device", c.Stat(p).Dev, dev)
			}
		}},
		{Name: "inode/directory-links", Lowers: []Layer{{Dirs("d/a", "d/b")}, {Dirs("d/c", "d/a/x")}}, Run: func(c *C) {
			if !c.Differs("directory-nlink") {
				Eq(c, "links", c.Stat("d").Nlink, 1)
				return
			}
			Eq(c, "links", c.Stat("d").Nlink, 5)
			c.OK(c.Mkdir("d/n", 0o755))
			Eq(c, "links", c.Stat("d").Nlink, 6)
			c.OK(c.Rmdir("d/b"))
			Eq(c, "links", c.Stat("d").Nlink, 5)
			c.OK(c.Rename("d/n", "n", 0))
			Eq(c, "links", c.Stat("d").Nlink, 4)
			c.OK(c.Remount())
			Eq(c, "links", c.Stat("d").Nlink, 4)
			Eq(c, "links", c.Stat("n").Nlink, 2)
		}},
		{Name: "inode/directory-links-constant", Lowers: []Layer{{Dirs("d/a", "d/b", "e"), Reg("gone/x", "")}, {Dirs("d/c", "d/a/x")}}, Run: func(c *C) {
			c.OK(c.Mkdir("new", 0o755))
			c.OK(c.Mkdir("new/sub", 0o755))
			c.Remove("gone")
			c.OK(c.Mkdir("gone", 0o755))
			c.OK(c.Chmod("d/a", 0o700))
			if c.redirects() {
				c.OK(c.Rename("e", "d/e", 0))
				c.OK(c.Rename("d", "new/d", 0))
			}
			before := c.Snapshot()
			c.OK(c.Remount())
			if d := fingerprint.Diff(before, c.Snapshot(), fingerprint.DirNlink); d != nil && !c.Is(Kernel) {
				c.Errorf("a remount changes link counts of directories:\n%s", fingerprint.Format(d, 10))
			}
		}},
	}
}
