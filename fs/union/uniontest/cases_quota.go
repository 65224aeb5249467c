package uniontest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The quota of the cases, far above what they need beside it.
const quotaSize = 1 << 20

func quotaCases() []Case {
	bytes := []string{"quota_bytes=1048576"}
	inodes := []string{"quota_inodes=20"}
	low := Layer{Reg("big", strings.Repeat("0123456789abcdef", 2*quotaSize/16)), Reg("d/small", "x"), Reg("d/other", "y")}
	cases := []Case{
		{Name: "quota/bytes", Options: bytes, Run: caseQuotaBytes},
		{Name: "quota/inodes", Options: inodes, Lowers: []Layer{low}, Run: caseQuotaInodes},
		{Name: "quota/open-unlinked", Options: bytes, Run: caseQuotaUnlinked},
		{Name: "quota/copy-up", Options: bytes, Lowers: []Layer{low}, Run: caseQuotaCopyUp},
		{Name: "quota/remount", Options: bytes, Upper: Layer{Reg("there", strings.Repeat("x", quotaSize/2))}, Run: caseQuotaRemount},
		{Name: "quota/exceeded", Options: bytes, Upper: Layer{Reg("there", strings.Repeat("x", 2*quotaSize))}, Run: caseQuotaExceeded},
		{Name: "quota/allocate", Options: bytes, Run: caseQuotaAllocate},
		{Name: "quota/copy-range", Options: bytes, Lowers: []Layer{low}, Run: caseQuotaCopyRange},
		{Name: "quota/concurrent", Options: bytes, Run: caseQuotaConcurrent},
		{Name: "quota/whiteouts", Options: inodes, Lowers: []Layer{removable(40)}, Run: caseQuotaWhiteouts},
		{Name: "quota/aufs-whiteouts", Options: append([]string{"whiteout=aufs"}, inodes...), Lowers: []Layer{removable(40)}, Run: caseQuotaWhiteouts},
	}
	for i := range cases {
		cases[i].Not, cases[i].NoCross = Kernel, "the kernel's overlayfs has no quota of its own"
	}
	return cases
}

func removable(n int) (l Layer) {
	for i := range n {
		l = append(l, Reg(fmt.Sprintf("d/f%02d", i), ""))
	}
	return l
}

// fill writes pieces at off until one fails, which must be EDQUOT, and returns how much was written.
func (c *C) fill(f File, off int64) int64 {
	c.Helper()
	piece := []byte(strings.Repeat("0123456789abcdef", 1024))
	for done := int64(0); ; {
		n, err := f.WriteAt(piece, off+done)
		done += int64(n)
		if err != nil || done > 4*quotaSize {
			c.Fails(err, unix.EDQUOT)
			return done
		}
	}
}

func caseQuotaBytes(c *C) {
	f := c.OpenFile("f", unix.O_RDWR|unix.O_CREAT, 0o600)
	written := c.fill(f, 0)
	if written > quotaSize || written < quotaSize-96<<10 {
		c.Errorf("%d bytes could be written, the quota is %d", written, quotaSize)
	}
	s, err := c.Statfs()
	c.OK(err)
	if s.Blocks > quotaSize/512 || s.Bfree > s.Blocks/10 || s.Bavail > s.Bfree {
		c.Errorf("statfs of a full tree: %+v", s)
	}
	// What is there can be written again: nothing more is allocated.
	c.WriteAll(f, strings.Repeat("again", 20_000), 12_345)
	c.OK(c.Mkdir("d", 0o755)) // takes up no block here, or one of those that are left
	c.OK(f.Truncate(quotaSize / 2))
	if got := c.fill(f, quotaSize/2); got < quotaSize/2-96<<10 {
		c.Errorf("%d bytes could be written after a truncation that gave back %d", got, quotaSize/2)
	}
	c.OK(f.Close())
	c.OK(c.Unlink("f"))
	f = c.OpenFile("g", unix.O_RDWR|unix.O_CREAT, 0o600)
	if got := c.fill(f, 0); got < quotaSize-96<<10 {
		c.Errorf("%d bytes could be written after everything was removed", got)
	}
	c.OK(f.Close())
	// Replacing the full file by an empty one gives all back.
	c.Put("empty", "")
	c.OK(c.Rename("empty", "g", 0))
	c.Put("h", strings.Repeat("h", quotaSize/2))
}

func caseQuotaInodes(c *C) {
	create := func(p string) error {
		f, err := c.Open(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	made := 1 // the root
	for ; made < 40; made++ {
		if err := create(fmt.Sprintf("n%d", made)); err != nil {
			c.Fails(err, unix.EDQUOT)
			break
		}
	}
	Eq(c, "inodes", made, 20)
	for what, err := range map[string]error{
		"mkdir": c.Mkdir("x", 0o755), "symlink": c.Symlink("t", "x"), "fifo": c.Mknod("x", unix.S_IFIFO|0o600, 0),
		"copy-up": c.Chmod("big", 0o600), "tmpfile": ignore(c.Open(".", unix.O_TMPFILE|unix.O_RDWR, 0o600)),
	} {
		if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EOPNOTSUPP) {
			c.Errorf("%s with no inode left: %v", what, err)
		}
	}
	c.Fails(create("n1"), unix.EEXIST)
	c.Absent("x")
	s, err := c.Statfs()
	c.OK(err)
	Eq(c, "inodes in all", s.Files, 20)
	Eq(c, "inodes left", s.Ffree, 0)
	c.OK(c.Link("n1", "link")) // no inode
	c.OK(c.Unlink("n1"))       // neither
	c.Fails(create("x"), unix.EDQUOT)
	c.OK(c.Rename("n2", "n3", 0))
	c.OK(create("x"))
	c.OK(c.Unlink("link"))
	c.OK(c.Mkdir("y", 0o755))
	c.OK(c.Rmdir("y"))
	c.OK(c.Symlink("t", "y"))
	c.Fails(create("z"), unix.EDQUOT)
	c.OK(c.Remount())
	c.Fails(create("z"), unix.EDQUOT)
	c.OK(c.Unlink("y"))
	c.OK(create("z"))
}

func caseQuotaUnlinked(c *C) {
	half := strings.Repeat("h", quotaSize/2)
	f := c.OpenFile("f", unix.O_RDWR|unix.O_CREAT, 0o600)
	c.WriteAll(f, half, 0)
	c.OK(c.Unlink("f"))
	g := c.OpenFile("g", unix.O_RDWR|unix.O_CREAT, 0o600)
	if got := c.fill(g, 0); got > quotaSize/2 {
		c.Errorf("%d bytes could be written beside an open file of %d", got, quotaSize/2)
	}
	if c.GetFile(f) != half {
		c.Error("content of the unlinked file differs")
	}
	c.OK(f.Close())
	c.WriteAll(g, half, quotaSize/2-64<<10)
	c.OK(g.Close())
}

func caseQuotaCopyUp(c *C) {
	whole := c.Get("big")
	err := ignoreWrite(c, "big", "+")
	c.Fails(err, unix.EDQUOT)
	if _, there := c.UpperStat("big"); there {
		c.Error("a copy-up that was refused left something")
	}
	c.OK(c.Chmod("big", 0o600))
	c.Fails(ignoreWrite(c, "big", "+"), unix.EDQUOT)
	if c.Get("big") != whole {
		c.Error("content differs after a refused copy-up")
	}
	c.Append("d/small", "+")
	c.Has("d/small", "x+")
	c.OK(c.Truncate("big", quotaSize/2)) // which copies only what remains
	c.Has("big", whole[:quotaSize/2])
	c.OK(c.Unlink("big"))
	c.Put("big", strings.Repeat("n", quotaSize/4*3))
}

func ignoreWrite(c *C, p, content string) error {
	f, err := c.Open(p, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), 0)
	return errors.Join(err, f.Close())
}

func caseQuotaRemount(c *C) {
	for range 2 {
		f := c.OpenFile("f", unix.O_RDWR|unix.O_CREAT, 0o600)
		if got := c.fill(f, 0); got > quotaSize/2 || got < quotaSize/2-96<<10 {
			c.Errorf("%d bytes could be written beside %d", got, quotaSize/2)
		}
		c.OK(f.Close())
		c.OK(c.Remount())
		c.Fails(ignoreWrite(c, "there", strings.Repeat("y", quotaSize)), unix.EDQUOT)
		c.OK(c.Unlink("f"))
	}
	c.OK(c.Unlink("there"))
	c.Put("f", strings.Repeat("x", quotaSize/4*3))
}

func caseQuotaExceeded(c *C) {
	s, err := c.Statfs()
	c.OK(err)
	Eq(c, "free blocks", s.Bfree, 0)
	c.Fails(ignore(c.Open("n", unix.O_CREAT|unix.O_WRONLY, 0o600)), unix.EDQUOT)
	c.OK(ignoreWrite(c, "there", "what is there"))
	c.OK(c.Rename("there", "moved", 0))
	c.OK(c.Truncate("moved", 4096))
	c.Put("n", "x")
}

func caseQuotaAllocate(c *C) {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	f := c.OpenFile("f", unix.O_RDWR|unix.O_CREAT, 0o600)
	c.OK(f.Fallocate(0, 0, quotaSize/4*3))
	c.Fails(f.Fallocate(0, 0, 2*quotaSize), unix.EDQUOT)
	c.Fails(f.Fallocate(keep, quotaSize, quotaSize), unix.EDQUOT)
	Eq(c, "size", c.StatFile(f).Size, quotaSize/4*3)
	c.OK(f.Fallocate(0, 0, quotaSize/4*3)) // again
	g := c.OpenFile("g", unix.O_RDWR|unix.O_CREAT, 0o600)
	c.fill(g, 0)
	// All that is left is what f has.
	c.WriteAll(f, strings.Repeat("p", quotaSize/4*3), 0)
	c.OK(f.Fallocate(unix.FALLOC_FL_PUNCH_HOLE|keep, 0, quotaSize/2))
	if got := c.fill(g, quotaSize); got < quotaSize/2-96<<10 {
		c.Errorf("%d bytes could be written after %d were given back", got, quotaSize/2)
	}
	c.Fails(ignoreWriteFile(f, strings.Repeat("p", quotaSize/4), 0), unix.EDQUOT)
	c.OK(f.Truncate(1 << 40)) // a hole takes nothing
	c.OK(f.Close())
	c.OK(g.Close())
	c.OK(c.Truncate("f", 0))
}

func ignoreWriteFile(f File, content string, off int64) error {
	_, err := f.WriteAt([]byte(content), off)
	return err
}

func caseQuotaCopyRange(c *C) {
	in := c.OpenFile("big", unix.O_RDONLY, 0)
	out := c.OpenFile("out", unix.O_RDWR|unix.O_CREAT, 0o600)
	copied := 0
	for {
		n, err := in.CopyRange(int64(copied), out, int64(copied), 2*quotaSize-copied)
		if err != nil {
			c.Fails(err, unix.EDQUOT)
			break
		}
		if copied += n; n == 0 {
			break
		}
	}
	if copied > quotaSize || copied < quotaSize-96<<10 {
		c.Errorf("%d bytes could be copied, the quota is %d", copied, quotaSize)
	}
	if got := c.GetFile(out); got != c.Get("big")[:len(got)] || len(got) != copied {
		c.Errorf("content of the copy of %d bytes differs", copied)
	}
	c.OK(in.Close())
	c.OK(out.Close())
}

func caseQuotaConcurrent(c *C) {
	const writers, rounds = 8, 12
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				if err := quotaRound(c.Tree, fmt.Sprintf("w%d.%d", w, r%3)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		c.Error(err)
	}
	used, data, files := int64(0), int64(0), int64(0)
	for _, name := range c.Names(".") {
		blocks := c.Stat(name).Blocks * 512
		used += blocks
		data += min(blocks, c.dataBytes(name))
		files++
	}
	// A file in many pieces needs a block for its map (ext4, xfs), which the file system takes when it writes back, and does
	// not refuse for any quota (cf. ext4 balloc.c ext4_new_meta_blocks).
	if data > quotaSize || used > quotaSize+files*4096 {
		c.Errorf("%d bytes are in use, %d of them by data, the quota is %d", used, data, quotaSize)
	}
}

// dataBytes is how many bytes of the file, in whole pages, are not in holes.
func (c *C) dataBytes(name string) (n int64) {
	f := c.OpenFile(name, unix.O_RDONLY, 0)
	for at := int64(0); ; {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		c.OK(err)
		at, err = f.Seek(data, unix.SEEK_HOLE)
		c.OK(err)
		n += (at+4095)/4096*4096 - data/4096*4096
	}
	c.OK(f.Close())
	return n
}

// quotaRound writes and removes as far as the quota lets it.
func quotaRound(t Tree, name string) error {
	f, err := t.Open(name, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return onlyQuota(err)
	}
	piece := make([]byte, 20_000)
	for i := range int64(12) {
		_, err := f.WriteAt(piece, i*17_000)
		if onlyQuota(err) != nil {
			return err
		}
	}
	if err := errors.Join(f.Truncate(100_000), f.Close()); err != nil {
		return err
	}
	if strings.HasSuffix(name, ".1") {
		return t.Unlink(name)
	}
	return nil
}

func onlyQuota(err error) error {
	if errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}

func caseQuotaWhiteouts(c *C) {
	aufs := slices.Contains(c.Spec.Options, "whiteout=aufs")
	for i := range 40 {
		c.OK(c.Unlink(fmt.Sprintf("d/f%02d", i)))
	}
	c.Lists("d")
	s, err := c.Statfs()
	c.OK(err)
	switch used := s.Files - s.Ffree; {
	case aufs: // an inode for each, which no removal is refused
		Eq(c, "inodes in use", used, 20)
		c.Fails(c.Mkdir("n", 0o755), unix.EDQUOT)
	case used < 3: // root, d, one for all whiteouts, where the file system links them
		c.Errorf("%d inodes are in use", used)
	}
	c.OK(c.Rmdir("d"))
	c.OK(c.Mkdir("n", 0o755))
	c.OK(c.Remount())
	c.Lists(".", "n")
	c.OK(c.Mkdir("d", 0o755))
	c.Lists("d")
}
