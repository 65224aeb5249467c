package uniontest

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

func basicCases() []Case {
	both := []Layer{{Reg("top", "0"), Reg("d/both", "0"), Reg("d/zero", "0")}, {Reg("d/both", "1"), Reg("d/one", "1"), Reg("bottom", "1")}}
	return []Case{
		{Name: "basic/merge", Lowers: both, Run: caseMerge},
		{Name: "basic/merge-types", Run: caseMergeTypes, Lowers: []Layer{
			{Reg("file-over-dir", "f"), Dirs("dir-over-file"), Reg("dir-over-link/x", "x"), Sym("link-over-dir", "t"), Reg("stop", "")},
			{Reg("file-over-dir/hidden", ""), Reg("dir-over-file", "h"), Sym("dir-over-link", "t"), Reg("link-over-dir/h", ""), Reg("stop/a", "")},
			{Reg("dir-over-file/deep", ""), Reg("file-over-dir/deep", ""), Reg("stop/b", "")},
		}},
		{Name: "basic/create-flags", Lowers: []Layer{{Reg("low", "lower"), Dirs("dir")}}, Run: caseCreateFlags},
		{Name: "basic/errors", Lowers: []Layer{{Reg("f", "x"), Reg("full/x", ""), Dirs("empty"), Sym("l", "f")}}, Run: caseErrors},
		{Name: "basic/mknod", Run: caseMknod},
		{Name: "basic/mknod-devices", Needs: Devices, Run: caseMknodDevices},
		{Name: "basic/umask", Run: caseUmask},
		{Name: "basic/times", Lowers: []Layer{{Reg("f", "x"), Dirs("d"), Sym("l", "nowhere"), Fifo("p")}}, Run: caseTimes},
		{Name: "basic/time-effects", Lowers: []Layer{{Reg("d/f", "x"), Reg("d/g", "x")}}, Run: caseTimeEffects},
		{Name: "basic/btime", Run: func(c *C) {
			c.Put("f", "x")
			st := c.Stat("f")
			if st.Btime.Sec == 0 {
				c.Error("a new file has no birth time")
			}
			c.OK(c.Utimens("f", Old(), Old()))
			Eq(c, "birth time after utimens", c.Stat("f").Btime, st.Btime)
		}},
		{Name: "basic/symlink", Run: caseSymlink},
		{Name: "basic/append", Lowers: []Layer{{Reg("f", "ab")}}, Run: caseAppend},
		{Name: "basic/statfs", Run: func(c *C) {
			s, err := c.Statfs()
			c.OK(err)
			if s.Blocks == 0 || s.Namelen != 255 {
				c.Errorf("statfs: %+v", s)
			}
		}},
		{Name: "basic/fsync", Lowers: []Layer{{Reg("d/low", "x")}}, Run: caseFsync},
		{Name: "basic/read-write", Run: caseReadWrite},
	}
}

func caseMerge(c *C) {
	c.Lists(".", "top", "bottom", "d")
	c.Lists("d", "both", "zero", "one")
	c.Has("d/both", "0")
	c.Has("d/one", "1")
	c.Put("d/both", "upper")
	c.Put("d/new", "upper")
	c.Lists("d", "both", "zero", "one", "new")
	c.Has("d/both", "upper")
	st, ok := c.UpperStat("d/both")
	if !ok || st.Size != 5 {
		c.Errorf("the upper has size %d", st.Size)
	}
}

func caseMergeTypes(c *C) {
	c.Has("file-over-dir", "f")
	c.Lists("dir-over-file")
	c.Lists("dir-over-link", "x")
	Eq(c, "type", c.Stat("link-over-dir").Type(), unix.S_IFLNK)
	c.Has("stop", "")
	_, err := c.Lstat("stop/b")
	c.Fails(err, unix.ENOTDIR)
}

func caseCreateFlags(c *C) {
	_, err := c.Open("low", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	c.Fails(err, unix.EEXIST)
	f := c.OpenFile("low", unix.O_RDWR|unix.O_CREAT, 0o600)
	Eq(c, "content", c.GetFile(f), "lower")
	c.OK(f.Close())
	Eq(c, "mode", c.Stat("low").Perm(), 0o644)
	f = c.OpenFile("low", unix.O_RDWR|unix.O_TRUNC, 0)
	Eq(c, "size after O_TRUNC", c.StatFile(f).Size, 0)
	c.WriteAll(f, "new", 0)
	c.OK(f.Close())
	c.Has("low", "new")
	f = c.OpenFile("n", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
	Eq(c, "mode", c.StatFile(f).Perm(), 0o640)
	c.WriteAll(f, "x", 3)
	c.OK(f.Close())
	c.Has("n", "\x00\x00\x00x")
	_, err = c.Open("n", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.Fails(err, unix.ENOTDIR)
	_, err = c.Open("dir", unix.O_WRONLY, 0)
	c.Fails(err, unix.EISDIR)
	_, err = c.Open("none", unix.O_RDONLY, 0)
	c.Fails(err, unix.ENOENT)
	_, err = c.Open("none/x", unix.O_WRONLY|unix.O_CREAT, 0o600)
	c.Fails(err, unix.ENOENT)
	_, err = c.Open("n/x", unix.O_WRONLY|unix.O_CREAT, 0o600)
	c.Fails(err, unix.ENOTDIR)
	// Nothing can be created with a mode that forbids writing it, yet the creator may.
	f = c.OpenFile("readonly", unix.O_RDWR|unix.O_CREAT, 0o400)
	c.WriteAll(f, "w", 0)
	c.OK(f.Close())
}

func caseErrors(c *C) {
	for p, kind := range map[string]string{"f": "file", "full": "dir", "empty": "dir", "l": "link"} {
		c.Fails(c.Mkdir(p, 0o755), unix.EEXIST)
		c.Fails(c.Mknod(p, unix.S_IFREG|0o600, 0), unix.EEXIST)
		c.Fails(c.Symlink("x", p), unix.EEXIST)
		c.Fails(c.Link("f", p), unix.EEXIST)
		if kind == "dir" {
			c.Fails(c.Unlink(p), unix.EISDIR, unix.EPERM)
			c.Fails(c.Link(p, "n"), unix.EPERM)
		} else {
			c.Fails(c.Rmdir(p), unix.ENOTDIR)
		}
	}
	c.Fails(c.Rmdir("full"), unix.ENOTEMPTY)
	c.Fails(c.Rmdir("none"), unix.ENOENT)
	c.Fails(c.Unlink("none"), unix.ENOENT)
	c.Fails(c.Rename("none", "x", 0), unix.ENOENT)
	c.Fails(c.Rename("f", "empty", 0), unix.EISDIR)
	c.Fails(c.Rename("empty", "f", 0), unix.ENOTDIR)
	c.Fails(c.Rename("f", "none/x", 0), unix.ENOENT)
	c.Fails(c.Rename("f", "f/x", 0), unix.ENOTDIR)
	c.Fails(c.Link("none", "n"), unix.ENOENT)
	c.Fails(c.Mkdir("none/x", 0o755), unix.ENOENT)
	c.Fails(c.Chmod("none", 0o600), unix.ENOENT)
	c.Fails(c.Truncate("empty", 0), unix.EISDIR)
	c.Fails(c.Truncate("f", -1), unix.EINVAL)
	_, err := c.Readlink("f")
	c.Fails(err, unix.EINVAL)
	_, err = c.ReadDir("f")
	c.Fails(err, unix.ENOTDIR)
	c.Lists(".", "empty", "f", "full", "l")
	c.Has("f", "x")
}

func caseMknod(c *C) {
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "reg": unix.S_IFREG} {
		c.OK(c.Mknod(name, mode|0o640, 0))
		st := c.Stat(name)
		Eq(c, name+" mode", st.Mode, mode|0o640)
		Eq(c, name+" links", st.Nlink, 1)
	}
	c.OK(c.Mkdir("dir", 0o1751))
	Eq(c, "directory mode", c.Stat("dir").Mode, unix.S_IFDIR|0o1751)
}

func caseMknodDevices(c *C) {
	c.OK(c.Mknod("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)))
	c.OK(c.Mknod("loop", unix.S_IFBLK|0o660, unix.Mkdev(7, 300)))
	Eq(c, "rdev", c.Stat("null").Rdev, unix.Mkdev(1, 3))
	Eq(c, "rdev", c.Stat("loop").Rdev, unix.Mkdev(7, 300))
	Eq(c, "type", c.Stat("loop").Type(), unix.S_IFBLK)
	if c.Is(Mounted) {
		f := c.OpenFile("null", unix.O_RDWR, 0)
		n, err := f.Write([]byte("gone"))
		c.OK(err)
		Eq(c, "bytes into the null device", n, 4)
		c.OK(f.Close())
	}
}

func caseUmask(c *C) {
	u := c.On(testenv.Cred{Umask: 0o027})
	c.OK(u.Mkdir("d", 0o777))
	u.PutMode("f", "", 0o666)
	c.OK(u.Mknod("p", unix.S_IFIFO|0o666, 0))
	Eq(c, "directory", c.Stat("d").Perm(), 0o750)
	Eq(c, "file", c.Stat("f").Perm(), 0o640)
	Eq(c, "fifo", c.Stat("p").Perm(), 0o640)
}

func caseTimes(c *C) {
	at, mt := unix.Timespec{Sec: 5_000_000_000, Nsec: 1}, unix.Timespec{Sec: 1, Nsec: 999_999_999}
	c.Put("up", "")
	for _, p := range []string{"f", "d", "l", "p", "up"} {
		c.OK(c.Utimens(p, at, mt))
		st := c.Stat(p)
		Eq(c, p+" atime", st.Atime, at)
		Eq(c, p+" mtime", st.Mtime, mt)
		c.OK(c.Utimens(p, Omit(), Old()))
		st = c.Stat(p)
		Eq(c, p+" omitted atime", st.Atime, at)
		Eq(c, p+" mtime", st.Mtime, Old())
		c.OK(c.Utimens(p, Old(), Omit()))
		Eq(c, p+" atime", c.Stat(p).Atime, Old())
		Eq(c, p+" omitted mtime", c.Stat(p).Mtime, Old())
		c.OK(c.Utimens(p, Omit(), Now()))
		if now := c.Stat(p).Mtime; now.Sec < 1_600_000_000 {
			c.Errorf("%s: UTIME_NOW gives %v", p, now)
		}
		c.OK(c.Utimens(p, at, mt))
	}
	c.OK(c.Remount())
	for _, p := range []string{"f", "d", "l", "p", "up"} {
		Eq(c, p+" mtime after a remount", c.Stat(p).Mtime, mt)
	}
}

func caseTimeEffects(c *C) {
	reset := func() {
		c.OK(c.Utimens("d", Old(), Old()))
	}
	for what, change := range map[string]func(){
		"create": func() { c.Put("d/n", "") },
		"mkdir":  func() { c.OK(c.Mkdir("d/m", 0o755)) },
		"link":   func() { c.OK(c.Link("d/f", "d/h")) },
		"rename": func() { c.OK(c.Rename("d/f", "d/f2", 0)); c.OK(c.Rename("d/f2", "d/f", 0)) },
		"unlink": func() { c.OK(c.Unlink("d/g")) },
	} {
		reset()
		change()
		if c.Stat("d").Mtime == Old() {
			c.Errorf("%s left the directory's mtime alone", what)
		}
	}
	c.OK(c.Utimens("d/f", Old(), Old()))
	before := c.Stat("d/f")
	c.Append("d/f", "more")
	if c.Stat("d/f").Mtime == Old() {
		c.Error("a write left mtime alone")
	}
	c.OK(c.Utimens("d/f", Old(), Old()))
	// ctime goes by the kernel's tick, of which the slowest are 10 ms apart.
	time.Sleep(20 * time.Millisecond)
	c.OK(c.Chmod("d/f", 0o600))
	st := c.Stat("d/f")
	Eq(c, "mtime after chmod", st.Mtime, Old())
	if st.Ctime == before.Ctime {
		c.Error("chmod left ctime alone")
	}
	// A read of the directory changes neither.
	reset()
	c.Names("d")
	Eq(c, "mtime after readdir", c.Stat("d").Mtime, Old())
}

func caseSymlink(c *C) {
	long := strings.Repeat("t/", 2047) + "t"
	for name, target := range map[string]string{"rel": "a/b", "abs": "/etc/none", "long": long, "dot": "."} {
		c.OK(c.Symlink(target, name))
		got, err := c.Readlink(name)
		c.OK(err)
		if got != target {
			c.Errorf("%s reads %s", name, clip(got))
		}
		Eq(c, name+" size", c.Stat(name).Size, int64(len(target)))
		Eq(c, name+" mode", c.Stat(name).Mode, unix.S_IFLNK|0o777)
	}
	c.Fails(c.Symlink("", "none"), unix.ENOENT, unix.EINVAL)
}

func caseAppend(c *C) {
	a := c.OpenFile("f", unix.O_WRONLY|unix.O_APPEND, 0)
	b := c.OpenFile("f", unix.O_WRONLY|unix.O_APPEND, 0)
	for i, f := range []File{a, b, a, b} {
		_, err := f.Write([]byte{byte('0' + i)})
		c.OK(err)
	}
	c.OK(a.Close())
	c.OK(b.Close())
	c.Has("f", "ab0123")
}

func caseFsync(c *C) {
	f := c.OpenFile("d/new", unix.O_RDWR|unix.O_CREAT, 0o600)
	c.WriteAll(f, "x", 0)
	c.OK(f.Sync())
	c.OK(f.Datasync())
	c.OK(f.Close())
	f = c.OpenFile("d/low", unix.O_RDONLY, 0)
	c.OK(f.Sync())
	c.OK(f.Close())
	d, err := c.OpenDir("d")
	c.OK(err)
	c.OK(d.Sync())
	c.OK(d.Close())
}

func caseReadWrite(c *C) {
	f := c.OpenFile("f", unix.O_RDWR|unix.O_CREAT, 0o600)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	c.WriteAll(f, big, 0)
	c.WriteAll(f, "XYZ", 4094)
	want := big[:4094] + "XYZ" + big[4097:]
	if c.GetFile(f) != want {
		c.Error("content differs after overlapping writes")
	}
	n, err := f.ReadAt(make([]byte, 10), int64(len(big)))
	if n != 0 {
		c.Errorf("read at the end: %d, %v", n, err)
	}
	_, err = f.WriteAt([]byte("x"), -1)
	c.Fails(err, syscall.EINVAL)
	c.OK(f.Close())
	r := c.OpenFile("f", unix.O_RDONLY, 0)
	if c.Is(Mounted) {
		_, err = r.WriteAt([]byte("x"), 0)
		c.Fails(err, unix.EBADF)
	}
	c.OK(r.Close())
}
