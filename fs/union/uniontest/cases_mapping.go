package uniontest

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func mappingCases() []Case {
	content := strings.Repeat("m", 3*4096)
	low := Layer{Reg("f", content), Reg("g", content), Reg("d/h", content)}
	return []Case{
		{Name: "mapping/shared-write", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			m := c.mapFile(f, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			m[0], m[5000] = 'A', 'B'
			c.OK(unix.Msync(m, unix.MS_SYNC))
			got := c.Get("f")
			if got[0] != 'A' || got[5000] != 'B' {
				c.Error("a shared mapping's changes are not read")
			}
			c.WriteAll(f, "W", 8192)
			if m[8192] != 'W' {
				c.Error("a shared mapping does not see a write")
			}
			c.OK(f.Close())
			// A mapping outlives its descriptor, and its changes reach the file without msync.
			m[1] = 'C'
			c.OK(unix.Munmap(m))
			c.OK(c.Remount())
			if got := c.Get("f"); got[:2] != "AC" || len(got) != len(content) {
				c.Errorf("after a remount the file begins %q", got[:2])
			}
		}},
		{Name: "mapping/private", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("g", unix.O_RDONLY, 0)
			m := c.mapFile(f, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			m[0] = 'P'
			c.OK(f.Close())
			c.OK(unix.Munmap(m))
			c.Has("g", content)
			if _, ok := c.UpperStat("g"); ok {
				c.Error("a private mapping copied up")
			}
		}},
		{Name: "mapping/new-file", Needs: Mounted, Run: func(c *C) {
			f := c.OpenFile("n", unix.O_RDWR|unix.O_CREAT, 0o600)
			c.OK(f.Truncate(1 << 20))
			m := c.mapFile(f, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			for i := 0; i < len(m); i += 4096 {
				m[i] = byte(i >> 12)
			}
			c.OK(unix.Munmap(m))
			got := c.GetFile(f)
			for i := 0; i < len(got); i += 4096 {
				if got[i] != byte(i>>12) {
					c.Fatalf("page %d differs", i>>12)
				}
			}
			c.OK(f.Close())
		}},
		{Name: "mapping/sees-copy-up", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			r := c.OpenFile("f", unix.O_RDONLY, 0)
			m := c.mapFile(r, 4096, unix.PROT_READ, unix.MAP_SHARED)
			if m[0] != 'm' {
				c.Error("mapping differs")
			}
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.WriteAll(f, "new", 0)
			if c.Differs("mapping-coherence") && !c.Is(Passthrough) && string(m[:3]) != "new" {
				c.Errorf("a mapping made before copy-up shows %q", m[:3])
			}
			c.OK(unix.Munmap(m))
			c.OK(r.Close())
			c.OK(f.Close())
			c.Has("f", "new"+content[3:])
		}},
		{Name: "mapping/unlinked", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("d/h", unix.O_RDWR, 0)
			m := c.mapFile(f, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			c.OK(c.Unlink("d/h"))
			c.OK(f.Close())
			m[4096] = 'x'
			c.OK(unix.Msync(m, unix.MS_SYNC))
			if m[4096] != 'x' || m[8192] != 'm' {
				c.Error("the mapping of an unlinked file changed")
			}
			c.OK(unix.Munmap(m))
			c.Absent("d/h")
		}},
		{Name: "mapping/execute", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDONLY, 0)
			m := c.mapFile(f, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
			c.OK(unix.Munmap(m))
			c.OK(f.Close())
		}},
		{Name: "mapping/grow-and-shrink", Needs: Mounted, Lowers: []Layer{low}, Run: func(c *C) {
			f := c.OpenFile("f", unix.O_RDWR, 0)
			c.OK(f.Truncate(100))
			m := c.mapFile(f, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if m[99] != 'm' || m[100] != 0 {
				c.Error("bytes beyond the end are not zero in a mapping")
			}
			c.OK(f.Truncate(4096))
			m[4095] = 'e'
			c.OK(unix.Msync(m, unix.MS_SYNC))
			c.OK(unix.Munmap(m))
			c.Has("f", content[:100]+strings.Repeat("\x00", 3995)+"e")
			c.OK(f.Close())
		}},
		{Name: "inotify/copy-up", Needs: Mounted, Lowers: []Layer{low}, Run: caseInotify},
	}
}

func (c *C) mapFile(f File, n, prot, flags int) []byte {
	c.Helper()
	m, err := unix.Mmap(f.FD(), 0, n, prot, flags)
	c.OK(err)
	return m
}

func caseInotify(c *C) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	c.OK(err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, c.Root()+"/f", unix.IN_MODIFY|unix.IN_ATTRIB)
	c.OK(err)
	_, err = unix.InotifyAddWatch(fd, c.Root()+"/d", unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM)
	c.OK(err)
	seen := func(what string) {
		c.Helper()
		buf := make([]byte, 4096)
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if n, err := unix.Read(fd, buf); err == nil && n > 0 {
				return
			}
		}
		c.Errorf("no event of %s", what)
	}
	c.Put("d/new", "")
	seen("a new file in a copied up directory")
	c.Append("f", "x")
	if c.Differs("inotify-copy-up") {
		seen("a write that copies up")
	}
}
