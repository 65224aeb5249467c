package fusefs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

var dataModes = []struct {
	name string
	mode DataMode
}{{"noopen", DataNoOpen}, {"passthrough", DataPassthrough}}

func eachMode(t *testing.T, fill func(lower string), f func(t *testing.T, m *mounted)) {
	for _, mode := range dataModes {
		t.Run(mode.name, func(t *testing.T) {
			f(t, mountUnion(t, fill, func(c *serverConfig) { c.Data = mode.mode }))
		})
	}
}

// TestTruncate: with FUSE_ATOMIC_O_TRUNC and no OPEN the truncation would be lost.
func TestTruncate(t *testing.T) {
	long := strings.Repeat("long ", 5000)
	eachMode(t, func(lower string) { writeFile(t, lower+"/file", long) }, func(t *testing.T, m *mounted) {
		for range 3 {
			readFile(t, m.path("file"))
			fd, err := unix.Open(m.path("file"), unix.O_WRONLY|unix.O_TRUNC, 0)
			must(t, err)
			if got := readFile(t, m.path("file")); got != "" {
				t.Fatalf("%d bytes after O_TRUNC", len(got))
			}
			_, err = unix.Write(fd, []byte(long[:777]))
			must(t, err)
			must(t, unix.Close(fd))
			if got := readFile(t, m.path("file")); got != long[:777] {
				t.Fatalf("%d bytes after the write", len(got))
			}
			if got := readFile(t, m.Upper+"/file"); got != long[:777] {
				t.Fatalf("the upper has %d bytes", len(got))
			}
		}
		must(t, os.Truncate(m.path("file"), 10))
		if got := readFile(t, m.path("file")); got != long[:10] {
			t.Fatalf("%q after truncate", got)
		}
		if got := readFile(t, m.Lowers[0]+"/file"); got != long {
			t.Error("the lower changed")
		}
	})
}

// TestCopyUpWhileOpen: a copy-up that meets an open file fails nobody, and whoever opens afterwards sees the upper.
func TestCopyUpWhileOpen(t *testing.T) {
	eachMode(t, func(lower string) { writeFile(t, lower+"/file", "lower content") }, func(t *testing.T, m *mounted) {
		old, err := os.Open(m.path("file"))
		must(t, err)
		defer old.Close()
		var before, after unix.Stat_t
		must(t, unix.Stat(m.path("file"), &before))
		for i := range 3 {
			f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
			must(t, err)
			_, err = f.WriteAt([]byte(fmt.Sprintf("UPPER %d", i)), 0)
			must(t, err)
			must(t, f.Close())
			if got, want := readFile(t, m.path("file")), fmt.Sprintf("UPPER %dontent", i); got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		}
		buf := make([]byte, 5)
		_, err = old.ReadAt(buf, 0)
		must(t, err)
		want := "UPPER"
		if m.Data == DataPassthrough {
			want = "lower"
		}
		if got := string(buf); got != want {
			t.Errorf("the old file reads %q, want %q", got, want)
		}
		must(t, unix.Stat(m.path("file"), &after))
		if before.Ino != after.Ino {
			t.Errorf("inode number %d became %d", before.Ino, after.Ino)
		}
		// Attributes through the old file and through the path are one.
		must(t, old.Chmod(0o640))
		waitFor(t, "mode through the path", func() bool {
			must(t, unix.Stat(m.path("file"), &after))
			return after.Mode&0o777 == 0o640
		})
		must(t, os.WriteFile(m.path("file"), []byte(strings.Repeat("x", 999)), 0))
		must(t, unix.Fstat(int(old.Fd()), &after))
		if after.Size != 999 {
			t.Errorf("size %d through the old file, want 999", after.Size)
		}
		re, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", old.Fd()))
		must(t, err)
		defer re.Close()
		_, err = re.ReadAt(buf, 0)
		must(t, err)
		if got := string(buf); got != "xxxxx" {
			t.Errorf("the file opened through /proc/self/fd reads %q", got)
		}
		if got := readFile(t, m.Lowers[0]+"/file"); got != "lower content" {
			t.Errorf("the lower changed to %q", got)
		}
	})
}

// TestBrokenLinkIsAnother: a hard link of a lower that copy-up breaks is another inode at once, also where the attributes of
// the lower are cached. Whoever sees one inode with two names copies one of them alone.
func TestBrokenLinkIsAnother(t *testing.T) {
	for _, mode := range dataModes {
		t.Run(mode.name, func(t *testing.T) {
			m := mountUnion(t, func(lower string) {
				writeFile(t, lower+"/a", "lower")
				must(t, os.Link(lower+"/a", lower+"/b"))
			}, func(c *serverConfig) { c.Data, c.NoIndex = mode.mode, true })
			var a, b unix.Stat_t
			must(t, unix.Stat(m.path("a"), &a))
			must(t, unix.Stat(m.path("b"), &b))
			f, err := os.OpenFile(m.path("a"), os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString(" and more")
			must(t, err)
			must(t, unix.Stat(m.path("a"), &a))
			must(t, unix.Stat(m.path("b"), &b))
			must(t, f.Close())
			if a.Ino == b.Ino || a.Nlink != 1 || a.Size != int64(len("lower and more")) {
				t.Errorf("inode %d, %d links, %d bytes; the other name is inode %d", a.Ino, a.Nlink, a.Size, b.Ino)
			}
		})
	}
}

// TestReopenBesideLookups: a file whose id is stale can be opened through its descriptor by several threads, whatever others look up.
func TestReopenBesideLookups(t *testing.T) {
	eachMode(t, func(lower string) { writeFile(t, lower+"/file", "lower content") }, func(t *testing.T, m *mounted) {
		old, err := os.Open(m.path("file"))
		must(t, err)
		defer old.Close()
		writeFile(t, m.path("file"), "upper content")
		stop := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					_, _ = os.Lstat(m.path(fmt.Sprint("none", i)))
				}
			}
		})
		var openers sync.WaitGroup
		for range 2 {
			openers.Go(func() {
				for range 200 {
					f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", old.Fd()))
					if err != nil {
						t.Error(err)
						return
					}
					f.Close()
				}
			})
		}
		openers.Wait()
		close(stop)
		all.Wait()
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// TestMappedTimes: what is stored to a mapping changes the times that are shown, though no request tells of it, and even when the file was
// closed long before.
func TestMappedTimes(t *testing.T) {
	eachMode(t, func(lower string) { writeFile(t, lower+"/old", strings.Repeat("x", 8192)) }, func(t *testing.T, m *mounted) {
		for _, name := range []string{"old", "new"} {
			var before, after unix.Stat_t
			if name == "old" {
				must(t, unix.Stat(m.path(name), &before))
			}
			f, err := os.OpenFile(m.path(name), os.O_RDWR|os.O_CREATE, 0o600)
			must(t, err)
			must(t, f.Truncate(8192))
			mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			must(t, f.Close())
			must(t, unix.Stat(m.path(name), &before))
			time.Sleep(20 * time.Millisecond) // past the kernel's tick
			mem[4096] = 'y'
			must(t, unix.Msync(mem, unix.MS_SYNC))
			must(t, unix.Stat(m.path(name), &after))
			if after.Mtim == before.Mtim || after.Ctim == before.Ctim {
				t.Errorf("%s: mtime %v and ctime %v before and %v, %v after", name, before.Mtim, before.Ctim, after.Mtim, after.Ctim)
			}
			must(t, unix.Munmap(mem))
			var upper unix.Stat_t
			must(t, unix.Stat(m.Upper+"/"+name, &upper))
			must(t, unix.Stat(m.path(name), &after))
			if after.Mtim != upper.Mtim || after.Blocks != upper.Blocks {
				t.Errorf("%s: %v and %d blocks, the upper has %v and %d", name, after.Mtim, after.Blocks, upper.Mtim, upper.Blocks)
			}
		}
	})
}

// TestFlagsWhileKnown: flags of chattr(1) hold for whoever opens a file from then on, though the kernel has its backing file already, and
// change its ctime.
func TestFlagsWhileKnown(t *testing.T) {
	const immutable = 0x10
	eachMode(t, func(string) {}, func(t *testing.T, m *mounted) {
		writeFile(t, m.path("file"), "content")
		fd := must1(t, m.path("file"))
		now, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		must(t, err)
		var before, after unix.Stat_t
		must(t, unix.Stat(m.path("file"), &before))
		time.Sleep(20 * time.Millisecond) // past the kernel's tick
		must(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now|immutable)))
		defer func() {
			must(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now)))
			writeFile(t, m.path("file"), "new content")
		}()
		must(t, unix.Stat(m.path("file"), &after))
		if after.Ctim == before.Ctim {
			t.Error("the ctime did not change")
		}
		w, err := os.OpenFile(m.path("file"), os.O_WRONLY, 0)
		if err == nil { // a server that is not asked at open refuses the write
			_, err = w.Write([]byte("CONTENT"))
			w.Close()
		}
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("writing an immutable file: %v", err)
		}
		if got := readFile(t, m.path("file")); got != "content" {
			t.Errorf("the immutable file reads %q", got)
		}
	})
}

// TestMapping: a mapping of a file that is copied up keeps working.
func TestMapping(t *testing.T) {
	eachMode(t, func(lower string) { writeFile(t, lower+"/file", "lower content") }, func(t *testing.T, m *mounted) {
		f, err := os.Open(m.path("file"))
		must(t, err)
		mem, err := unix.Mmap(int(f.Fd()), 0, 13, unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		must(t, f.Close())
		writeFile(t, m.path("file"), "upper content")
		if got := string(mem[5:]); got != " content" {
			t.Errorf("mapping reads %q", got)
		}
		must(t, unix.Munmap(mem))
		w, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
		must(t, err)
		defer w.Close()
		mem, err = unix.Mmap(int(w.Fd()), 0, 13, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		copy(mem, "MAPPED")
		must(t, unix.Msync(mem, unix.MS_SYNC))
		must(t, unix.Munmap(mem))
		if got := readFile(t, m.Upper+"/file"); got != "MAPPEDcontent" {
			t.Errorf("the upper has %q", got)
		}
		if got := readFile(t, m.Lowers[0]+"/file"); got != "lower content" {
			t.Errorf("the lower changed to %q", got)
		}
	})
}

// TestUnlinkedOpen: a file without a name is still read, written and described.
func TestUnlinkedOpen(t *testing.T) {
	eachMode(t, func(lower string) { writeFile(t, lower+"/file", "lower content") }, func(t *testing.T, m *mounted) {
		for _, name := range []string{"file", "new"} {
			f, err := os.OpenFile(m.path(name), os.O_RDWR|os.O_CREATE, 0o644)
			must(t, err)
			must(t, os.Remove(m.path(name)))
			_, err = f.WriteAt([]byte("after the unlink"), 0)
			must(t, err)
			buf := make([]byte, 16)
			_, err = f.ReadAt(buf, 0)
			must(t, err)
			if string(buf) != "after the unlink" {
				t.Errorf("read %q", buf)
			}
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st))
			if st.Nlink != 0 || st.Size != 16 {
				t.Errorf("%s: nlink %d size %d", name, st.Nlink, st.Size)
			}
			must(t, f.Truncate(3))
			must(t, f.Sync())
			must(t, f.Close())
			if _, err := os.Stat(m.path(name)); !os.IsNotExist(err) {
				t.Errorf("stat after the unlink: %v", err)
			}
		}
	})
}

// TestHardLinkCounts: link counts are right under all names, whichever one changed.
func TestHardLinkCounts(t *testing.T) {
	eachMode(t, nil, func(t *testing.T, m *mounted) {
		nlink := func(name string, want uint64) {
			t.Helper()
			var st unix.Stat_t
			must(t, unix.Stat(m.path(name), &st))
			if uint64(st.Nlink) != want {
				t.Errorf("%s has %d links, want %d", name, st.Nlink, want)
			}
		}
		writeFile(t, m.path("a"), "a")
		nlink("a", 1)
		must(t, os.Link(m.path("a"), m.path("b")))
		nlink("a", 2)
		nlink("b", 2)
		must(t, os.Link(m.path("b"), m.path("c")))
		nlink("a", 3)
		must(t, os.Remove(m.path("b")))
		nlink("a", 2)
		nlink("c", 2)
		writeFile(t, m.path("d"), "d")
		must(t, os.Rename(m.path("d"), m.path("c")))
		nlink("a", 1)
		nlink("c", 1)
		writeFile(t, m.path("a"), "longer")
		must(t, os.Link(m.path("a"), m.path("e")))
		must(t, os.Truncate(m.path("e"), 2))
		if got := readFile(t, m.path("a")); got != "lo" {
			t.Errorf("read %q", got)
		}
	})
}

// TestSetIDCleared: a write by somebody without privileges clears set-id bits, on disk and for the kernel.
func TestSetIDCleared(t *testing.T) {
	nobody := testenv.Cred{UID: 65534, GID: 65534}
	for _, op := range []struct {
		name string
		do   func(path string) error
	}{
		{"write", func(p string) error {
			fd, err := unix.Open(p, unix.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.Write(fd, []byte("x"))
			return err
		}},
		{"trunc", func(p string) error {
			fd, err := unix.Open(p, unix.O_WRONLY|unix.O_TRUNC, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{"truncate", func(p string) error { return unix.Truncate(p, 3) }},
		{"fallocate", func(p string) error {
			fd, err := unix.Open(p, unix.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Fallocate(fd, 0, 0, 8192)
		}},
	} {
		for _, where := range []string{"upper", "lower"} {
			t.Run(op.name+"/"+where, func(t *testing.T) {
				eachMode(t, func(lower string) {
					writeFile(t, lower+"/lower", "content")
					must(t, os.Chmod(lower+"/lower", 0o777|os.ModeSetuid|os.ModeSetgid))
				}, func(t *testing.T, m *mounted) {
					p := m.path(where)
					if where == "upper" {
						writeFile(t, p, "content")
						must(t, os.Chmod(p, 0o777|os.ModeSetuid|os.ModeSetgid))
					}
					var st unix.Stat_t
					must(t, unix.Stat(p, &st))
					if st.Mode&0o7777 != 0o6777 {
						t.Fatalf("mode %o before", st.Mode)
					}
					must(t, testenv.RunAs(nobody, func() error { return op.do(p) }))
					must(t, unix.Stat(p, &st))
					if st.Mode&0o7777 != 0o777 {
						t.Errorf("mode %o after", st.Mode)
					}
					must(t, unix.Stat(m.Upper+"/"+where, &st))
					if st.Mode&0o7777 != 0o777 {
						t.Errorf("mode %o in the upper", st.Mode)
					}
				})
			})
		}
	}
}

// TestStackedBacking: files on a stacked file system, for which the kernel refuses passthrough, are served anyway.
func TestStackedBacking(t *testing.T) {
	dir := testenv.Scratch(t)
	for _, d := range []string{"l1", "l2", "merged"} {
		must(t, os.Mkdir(dir+"/"+d, 0o755))
	}
	writeFile(t, dir+"/l1/file", "stacked")
	must(t, testenv.MountOverlay(testenv.Overlay{Lowers: []string{dir + "/l1", dir + "/l2"}, ReadOnly: true}, dir+"/merged"))
	t.Cleanup(func() { testenv.Unmount(t, dir+"/merged") })
	m := mountUnion(t, nil, func(c *serverConfig) {
		c.Data = DataPassthrough
		c.Lowers = []string{dir + "/merged"}
	})
	old, err := os.Open(m.path("file"))
	must(t, err)
	defer old.Close()
	for range 2 {
		if got := readFile(t, m.path("file")); got != "stacked" {
			t.Fatalf("read %q", got)
		}
	}
	writeFile(t, m.path("file"), "upper")
	if got := readFile(t, m.path("file")); got != "upper" {
		t.Errorf("read %q", got)
	}
	buf := make([]byte, 5)
	_, err = old.ReadAt(buf, 0)
	must(t, err)
	if string(buf) != "upper" {
		t.Errorf("the old file reads %q", buf)
	}
}
