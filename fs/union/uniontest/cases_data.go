package uniontest

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

func dataCases() []Case {
	low := Layer{Reg("f", strings.Repeat("0123456789abcdef", 4096)), Sparse("s", 4<<20, "data", 0, 1<<20, 3<<20)}
	return []Case{
		{Name: "data/truncate", Lowers: []Layer{low}, Run: caseTruncate},
		{Name: "data/fallocate", Lowers: []Layer{low}, Run: caseFallocate},
		{Name: "data/punch-hole", Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.OK(f.Fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 16384))
			want := strings.Repeat("0123456789abcdef", 4096)
			want = want[:8192] + strings.Repeat("\x00", 16384) + want[8192+16384:]
			if c.GetFile(f) != want {
				c.Error("content after punching a hole differs")
			}
			off, err := f.Seek(0, unix.SEEK_HOLE)
			c.OK(err)
			Eq(c, "hole", off, 8192)
			off, err = f.Seek(8192, unix.SEEK_DATA)
			c.OK(err)
			Eq(c, "data", off, 8192+16384)
			c.OK(f.Close())
		}},
		{Name: "data/zero-range", Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			err := f.Fallocate(unix.FALLOC_FL_ZERO_RANGE, 100, 5000)
			if c.unsupported(err, f) {
				return
			}
			c.OK(err)
			got := c.GetFile(f)
			want := strings.Repeat("0123456789abcdef", 4096)
			if got != want[:100]+strings.Repeat("\x00", 5000)+want[5100:] {
				c.Error("content after zeroing a range differs")
			}
			c.OK(f.Close())
		}},
		{Name: "data/seek", Lowers: []Layer{low}, Run: caseSeek},
		{Name: "data/copy-range", Lowers: []Layer{low}, Run: caseCopyRange},
		{Name: "data/beyond-4gib", Run: caseBeyond4GiB},
		{Name: "data/beyond-4gib-lower", Lowers: []Layer{{Sparse("big", 6<<30, "mark", 5<<30, 1<<20)}}, Run: func(c *C) {
			f := c.OpenFile("big", unix.O_RDWR, 0)
			buf := make([]byte, 4)
			_, err := f.ReadAt(buf, 5<<30)
			c.OK(err)
			Eq(c, "data", string(buf), "mark")
			c.WriteAll(f, "MARK", 5<<30+100)
			_, err = f.ReadAt(buf, 5<<30+100)
			c.OK(err)
			Eq(c, "data", string(buf), "MARK")
			Eq(c, "size", c.StatFile(f).Size, 6<<30)
			if b := c.StatFile(f).Blocks; b > 3<<20/512+64 {
				c.Errorf("a sparse file takes %d blocks", b)
			}
			c.OK(f.Close())
		}},
		{Name: "data/sizes-and-blocks", Lowers: []Layer{low}, Run: func(c *C) {
			st := c.Stat("f")
			Eq(c, "size", st.Size, 65536)
			if st.Blocks < 128 || st.Blocks > 256 || st.Blksize == 0 {
				c.Errorf("%d blocks, block size %d", st.Blocks, st.Blksize)
			}
			blocks := c.Stat("s").Blocks
			if blocks > 64 {
				c.Errorf("a sparse file of three blocks reports %d", blocks)
			}
		}},
		{Name: "data/direct-io", Needs: Mounted, Lowers: []Layer{low}, Run: caseDirectIO},
		{Name: "data/cleared-flags", Needs: Mounted, Lowers: []Layer{low}, Run: caseClearedFlags},
		{Name: "data/flags", Lowers: []Layer{low}, Run: caseFlags},
		{Name: "data/ioctl", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDONLY, 0)
			for _, req := range []uint{unix.TCGETS, 0x1234, unix.BLKGETSIZE64} {
				_, err := unix.IoctlGetTermios(f.FD(), req)
				c.Fails(err, unix.ENOTTY)
			}
			c.OK(f.Close())
		}},
		{Name: "data/locks", Needs: Mounted, Lowers: []Layer{low}, Run: caseLocks},
	}
}

// unsupported ends the use of f if the layers' file system cannot do an operation: the union can do no more.
func (c *C) unsupported(err error, f File) bool {
	c.Helper()
	var st unix.Statfs_t
	c.OK(unix.Statfs(c.Spec.Upper, &st))
	if err == nil || st.Type != unix.TMPFS_MAGIC {
		return false
	}
	c.Fails(err, unix.EOPNOTSUPP)
	c.OK(f.Close())
	return true
}

func caseTruncate(c *C) {
	full := strings.Repeat("0123456789abcdef", 4096)
	c.OK(c.Truncate("f", 10))
	c.Has("f", full[:10])
	c.OK(c.Truncate("f", 20))
	c.Has("f", full[:10]+strings.Repeat("\x00", 10))
	f := c.OpenFile("f", unix.O_RDWR, 0)
	c.OK(f.Truncate(5))
	Eq(c, "size", c.StatFile(f).Size, 5)
	c.WriteAll(f, "z", 7)
	Eq(c, "content", c.GetFile(f), "01234\x00\x00z")
	c.OK(f.Truncate(1 << 33))
	Eq(c, "size", c.Stat("f").Size, 1<<33)
	c.OK(f.Truncate(0))
	c.OK(f.Close())
	c.Has("f", "")
	c.OK(c.Truncate("s", 2<<20))
	c.OK(c.Remount())
	Eq(c, "size", c.Stat("s").Size, 2<<20)
	// A truncated copy-up keeps nothing beyond the new end.
	c.OK(c.Truncate("s", 4<<20))
	g := c.OpenFile("s", unix.O_RDONLY, 0)
	buf := make([]byte, 4)
	_, err := g.ReadAt(buf, 3<<20)
	c.OK(err)
	Eq(c, "data beyond the old end", string(buf), "\x00\x00\x00\x00")
	c.OK(g.Close())
}

func caseFallocate(c *C) {
	f := c.OpenFile("new", unix.O_RDWR|unix.O_CREAT, 0o600)
	c.OK(f.Fallocate(0, 0, 100_000))
	st := c.StatFile(f)
	Eq(c, "size", st.Size, 100_000)
	if st.Blocks < 100_000/512 {
		c.Errorf("%d blocks allocated", st.Blocks)
	}
	c.OK(f.Fallocate(unix.FALLOC_FL_KEEP_SIZE, 100_000, 1<<20))
	Eq(c, "size", c.StatFile(f).Size, 100_000)
	if b := c.StatFile(f).Blocks; b < 1<<20/512 {
		c.Errorf("%d blocks allocated", b)
	}
	c.Fails(f.Fallocate(0, -1, 10), unix.EINVAL)
	c.Fails(f.Fallocate(0, 0, 0), unix.EINVAL)
	c.OK(f.Close())
	f = c.OpenFile("f", unix.O_RDWR, 0)
	c.OK(f.Fallocate(0, 60_000, 10_000))
	Eq(c, "size", c.StatFile(f).Size, 70_000)
	c.OK(f.Close())
	c.Has("f", strings.Repeat("0123456789abcdef", 4096)+strings.Repeat("\x00", 70_000-65536))
}

func caseSeek(c *C) {
	f := c.OpenFile("s", unix.O_RDONLY, 0)
	check := func(f File) {
		c.Helper()
		for _, x := range []struct {
			off    int64
			whence int
			want   int64
		}{{0, unix.SEEK_DATA, 0}, {0, unix.SEEK_HOLE, 4096}, {4096, unix.SEEK_DATA, 1 << 20}, {2 << 20, unix.SEEK_DATA, 3 << 20}, {2 << 20, unix.SEEK_HOLE, 2 << 20}} {
			got, err := f.Seek(x.off, x.whence)
			c.OK(err)
			Eq(c, "offset", got, x.want)
		}
		_, err := f.Seek(3<<20+8192, unix.SEEK_DATA)
		c.Fails(err, unix.ENXIO)
		_, err = f.Seek(5<<20, unix.SEEK_HOLE)
		c.Fails(err, unix.ENXIO)
	}
	check(f)
	c.OK(c.Chmod("s", 0o600))
	if !c.Is(Kernel) || c.Is(Trusted) {
		check(f)
	}
	w := c.OpenFile("s", unix.O_RDWR, 0)
	if !c.Is(Kernel) {
		// The kernel's copy-up fills chunks of 1 MiB, see copy-up/holes.
		check(w)
	}
	c.OK(w.Close())
	c.OK(f.Close())
}

func caseCopyRange(c *C) {
	src := c.OpenFile("f", unix.O_RDONLY, 0)
	dst := c.OpenFile("new", unix.O_RDWR|unix.O_CREAT, 0o600)
	full := strings.Repeat("0123456789abcdef", 4096)
	for done := 0; done < 65536; {
		n, err := src.CopyRange(int64(done), dst, int64(done), 65536-done)
		c.OK(err)
		if n == 0 {
			c.Fatal("copied nothing")
		}
		done += n
	}
	if c.GetFile(dst) != full {
		c.Error("the copy differs")
	}
	n, err := src.CopyRange(65536, dst, 0, 10)
	c.OK(err)
	Eq(c, "bytes copied at the end", n, 0)
	// Into a lower file, which has to be copied up first.
	low := c.OpenFile("s", unix.O_RDWR, 0)
	n, err = src.CopyRange(3, low, 10, 7)
	c.OK(err)
	Eq(c, "bytes copied", n, 7)
	buf := make([]byte, 7)
	_, err = low.ReadAt(buf, 10)
	c.OK(err)
	Eq(c, "copied", string(buf), "3456789")
	// From an upper file that was a lower one a moment ago, onto itself.
	n, err = low.CopyRange(10, low, 100, 7)
	c.OK(err)
	Eq(c, "bytes copied", n, 7)
	_, err = low.ReadAt(buf, 100)
	c.OK(err)
	Eq(c, "copied", string(buf), "3456789")
	for _, f := range []File{src, dst, low} {
		c.OK(f.Close())
	}
}

func caseBeyond4GiB(c *C) {
	f := c.OpenFile("big", unix.O_RDWR|unix.O_CREAT, 0o600)
	for _, off := range []int64{1<<31 - 2, 1<<32 - 2, 1 << 33, 1 << 40} {
		c.WriteAll(f, "mark", off)
		buf := make([]byte, 4)
		_, err := f.ReadAt(buf, off)
		c.OK(err)
		Eq(c, "data", string(buf), "mark")
	}
	Eq(c, "size", c.StatFile(f).Size, 1<<40+4)
	off, err := f.Seek(1<<33+8192, unix.SEEK_DATA)
	c.OK(err)
	Eq(c, "data", off, 1<<40)
	c.OK(f.Close())
	c.OK(c.Remount())
	Eq(c, "size", c.Stat("big").Size, 1<<40+4)
	if b := c.Stat("big").Blocks; b > 128 {
		c.Errorf("a sparse file takes %d blocks", b)
	}
}

// caseDirectIO writes and reads blocks with O_DIRECT where the layers' file system has it.
func caseDirectIO(c *C) {
	probe, err := unix.Open(c.InUpper("."), unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return
	}
	c.OK(unix.Close(probe))
	buf := aligned(8192)
	copy(buf, strings.Repeat("direct", 1000))
	f := c.OpenFile("new", unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o600)
	_, err = f.WriteAt(buf, 0)
	c.OK(err)
	back := aligned(8192)
	_, err = f.ReadAt(back, 0)
	c.OK(err)
	if string(back) != string(buf) {
		c.Error("direct read differs from direct write")
	}
	c.OK(f.Close())
	Eq(c, "size", c.Stat("new").Size, 8192)
	low := c.OpenFile("f", unix.O_RDWR|unix.O_DIRECT, 0)
	_, err = low.WriteAt(buf[:4096], 4096)
	c.OK(err)
	c.OK(low.Close())
	if got := c.Get("f"); got[4096:4102] != "direct" || got[:16] != "0123456789abcdef" {
		c.Error("a direct write to a lower file did not arrive")
	}
}

// aligned returns memory that begins at a page.
func aligned(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// caseClearedFlags takes O_APPEND and O_DIRECT off descriptors, as dd does before the last, short block of a direct copy.
func caseClearedFlags(c *C) {
	if c.Is(Passthrough) { // see the difference passthrough-fcntl
		return
	}
	c.Put("new", "0123456789")
	for flag, content := range map[int]string{unix.O_APPEND: "ab", unix.O_DIRECT: "cd"} {
		for _, name := range []string{"new", "f"} {
			f, err := c.Open(name, unix.O_RDWR|flag, 0)
			if flag == unix.O_DIRECT && errors.Is(err, unix.EINVAL) {
				continue // the layers' file system has none
			}
			c.OK(err)
			now, err := unix.FcntlInt(uintptr(f.FD()), unix.F_GETFL, 0)
			c.OK(err)
			_, err = unix.FcntlInt(uintptr(f.FD()), unix.F_SETFL, now&^flag)
			c.OK(err)
			_, err = f.WriteAt([]byte(content), 3)
			c.OK(err)
			c.OK(f.Close())
			Eq(c, name, c.Get(name)[:10], "012"+content+"56789")
		}
	}
	Eq(c, "size", c.Stat("new").Size, 10)
}

// caseFlags sets inode flags where the layers' file system has them.
func caseFlags(c *C) {
	f := c.OpenFile("f", unix.O_RDWR, 0)
	defer func() { c.OK(f.Close()) }()
	was, err := f.Flags()
	if c.unsupportedFlags(err) {
		return
	}
	c.OK(err)
	const noDump, immutable = 0x40, 0x10
	c.OK(f.SetFlags(was | noDump))
	now, err := f.Flags()
	c.OK(err)
	Eq(c, "flags", now&noDump, noDump)
	if !c.Is(InitialRoot) {
		return
	}
	c.OK(f.SetFlags(now | immutable))
	// A server that is not asked at open refuses the write.
	w, err := c.Open("f", unix.O_WRONLY, 0)
	if err == nil {
		_, err = w.WriteAt([]byte("x"), 0)
		c.OK(w.Close())
	}
	c.Fails(err, unix.EPERM)
	c.Fails(c.Unlink("f"), unix.EPERM)
	c.OK(f.SetFlags(now))
	c.OK(c.Unlink("f"))
}

// unsupportedFlags reports whether the upper's file system has no inode flags.
func (c *C) unsupportedFlags(err error) bool {
	c.Helper()
	fd, oerr := unix.Open(c.Spec.Upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	c.OK(oerr)
	defer unix.Close(fd)
	if _, ferr := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); ferr == nil {
		return false
	}
	c.Fails(err, unix.ENOTTY, unix.EOPNOTSUPP)
	return true
}

func caseLocks(c *C) {
	a := c.OpenFile("f", unix.O_RDWR, 0)
	b := c.OpenFile("f", unix.O_RDWR, 0)
	c.OK(unix.Flock(a.FD(), unix.LOCK_EX|unix.LOCK_NB))
	c.Fails(unix.Flock(b.FD(), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	// A lock stays with a file that is copied up.
	r := c.OpenFile("s", unix.O_RDONLY, 0)
	c.OK(unix.Flock(r.FD(), unix.LOCK_EX|unix.LOCK_NB))
	w := c.OpenFile("s", unix.O_RDWR, 0)
	c.WriteAll(w, "x", 0)
	if !c.Is(Passthrough) { // see the difference passthrough-locks
		c.Fails(unix.Flock(w.FD(), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	}
	c.OK(unix.Flock(a.FD(), unix.LOCK_UN))
	c.OK(unix.Flock(b.FD(), unix.LOCK_SH|unix.LOCK_NB))
	// Open file description locks are POSIX record locks that two descriptors of one process can contend for.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	c.OK(unix.FcntlFlock(uintptr(a.FD()), unix.F_OFD_SETLK, &lock))
	other := unix.Flock_t{Type: unix.F_RDLCK, Start: 15, Len: 1}
	c.Fails(unix.FcntlFlock(uintptr(b.FD()), unix.F_OFD_SETLK, &other), unix.EAGAIN, unix.EACCES)
	other.Start = 20
	c.OK(unix.FcntlFlock(uintptr(b.FD()), unix.F_OFD_SETLK, &other))
	for _, f := range []File{a, b, r, w} {
		c.OK(f.Close())
	}
}
