package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// ended waits for the server to end by itself.
func (m *mounted) ended(t *testing.T) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- m.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("server: %v", err)
		}
		m.cmd = nil
	case <-time.After(10 * time.Second):
		t.Error("the server goes on")
	}
}

// TestUnmounted: the server ends when somebody else takes the mount away, in whatever way.
func TestUnmounted(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			mount := func() *mounted {
				return mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") },
					func(c *serverConfig) { c.Transport = tr.t })
			}
			t.Run("plain", func(t *testing.T) {
				m := mount()
				readFile(t, m.path("file"))
				must(t, unix.Unmount(m.Target, 0))
				m.ended(t)
			})
			t.Run("lazy", func(t *testing.T) {
				m := mount()
				f, err := os.Open(m.path("file"))
				must(t, err)
				must(t, unix.Unmount(m.Target, unix.MNT_DETACH))
				buf := make([]byte, 7)
				_, err = f.ReadAt(buf, 0)
				must(t, err)
				must(t, f.Close())
				m.ended(t)
			})
			t.Run("force", func(t *testing.T) {
				m := mount()
				_ = unix.Unmount(m.Target, unix.MNT_FORCE)
				_ = unix.Unmount(m.Target, unix.MNT_DETACH)
				m.ended(t)
			})
		})
	}
}

// TestDeviceFails: a server that can't read requests any more leaves no mount, and says why.
func TestDeviceFails(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, nil)
	readFile(t, m.path("file"))
	_, err := io.WriteString(m.in, "break\n")
	must(t, err)
	if got, err := m.out.ReadString('\n'); err != nil || got != "<nil>\n" {
		t.Fatalf("%q, %v", got, err)
	}
	// A request, without which nobody reads again. Its answer goes nowhere.
	stat := exec.Command("stat", m.path("other"))
	must(t, stat.Start())
	_ = stat.Wait()
	why, err := io.ReadAll(m.out)
	must(t, err)
	_ = m.cmd.Wait()
	m.cmd = nil
	if !strings.Contains(string(why), "read /dev/fuse: is a directory") {
		t.Errorf("the server ended with %q", why)
	}
	if at, err := mountinfo.Mounted(m.Target); err != nil || at {
		t.Errorf("still mounted: %v", err)
		testenv.Unmount(t, m.Target)
	}
}

// TestKernelErrno: file systems may fail with numbers that are the kernel's own (NFS and 9p do), which it takes from no FUSE server: it
// refuses the answer, and whoever waits for it would do so until the mount ends.
func TestKernelErrno(t *testing.T) {
	for _, errno := range []syscall.Errno{512, 524, 4095} {
		t.Run(strconv.Itoa(int(errno)), func(t *testing.T) {
			m := mountUnion(t, nil, func(c *serverConfig) { c.MkdirFails = errno })
			got := make(chan error, 1)
			go func() { got <- unix.Mkdir(m.path("d"), 0o755) }()
			select {
			case err := <-got:
				if !errors.Is(err, unix.EIO) {
					t.Errorf("got %v, want EIO", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("no answer")
			}
		})
	}
}

// TestPanicWithLock: a request that panics fails alone, unless it keeps a lock. Then the server ends, and nobody waits for it.
func TestPanicWithLock(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			m := mountUnion(t, nil, func(c *serverConfig) { c.Transport, c.Panic = tr.t, true })
			for i := range 3 {
				if err := os.Symlink("target", m.path("link")); !errors.Is(err, unix.EIO) {
					t.Errorf("a request that panics: %v, want EIO", err)
				}
				time.Sleep(300 * time.Millisecond) // longer than a lock is waited for
				writeFile(t, m.path(fmt.Sprint("file", i)), "content")
			}
			if n := m.state().Counters["panics"]; n != 3 {
				t.Errorf("%d panics are counted", n)
			}
			if err := unix.Mkfifo(m.path("pipe"), 0o644); !errors.Is(err, unix.EIO) {
				t.Errorf("a request that panics with a lock: %v, want EIO", err)
			}
			waits := make(chan error, 1)
			go func() { waits <- os.WriteFile(m.path("more"), nil, 0o644) }()
			select {
			case err := <-waits:
				if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
					t.Errorf("a request that wants the lock: %v, want ENOTCONN", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("a request waits for the lock for ever")
				_ = m.cmd.Process.Kill()
				<-waits
			}
			var exit *exec.ExitError
			if err := m.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != stuckCode {
				t.Errorf("the server ended with %v", err)
			}
			m.cmd = nil
			if _, err := os.Stat(m.path("other")); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("the mount without a server: %v, want ENOTCONN", err)
			}
			testenv.Unmount(t, m.Target)
		})
	}
}

// TestForeignMount: Unmount leaves alone what it did not mount.
func TestForeignMount(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, nil)
	must(t, unix.Mount("cover", m.Target, "tmpfs", 0, ""))
	defer testenv.Unmount(t, m.Target)
	must(t, m.in.Close())
	time.Sleep(100 * time.Millisecond)
	var st unix.Statfs_t
	must(t, unix.Statfs(m.Target, &st))
	if st.Type != unix.TMPFS_MAGIC {
		t.Error("the mount on top was taken away")
	}
	must(t, unix.Unmount(m.Target, 0))
	must(t, unix.Unmount(m.Target, 0))
	m.ended(t)
	must(t, unix.Mount("cover", m.Target, "tmpfs", 0, "")) // for the deferred call
}

// TestSettle: the mount itself is asked, once, and only where it is.
func TestSettle(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			m := mountUnion(t, nil, func(c *serverConfig) { c.Transport = tr.t })
			want := func(what string) {
				t.Helper()
				if got := m.settle(); !strings.Contains(got, what) {
					t.Errorf("settled: %s, want %s", got, what)
				}
			}
			if n := m.requests(func() { want("<nil>") }); n["STATFS"] != 1 {
				t.Errorf("requests: %v", n)
			}
			must(t, unix.Mount("cover", m.Target, "tmpfs", 0, ""))
			want("not at its place")
			must(t, unix.Unmount(m.Target, 0))
			want("<nil>")
		})
	}
}

// TestSettleInVain: a mount that does not answer, with all readers at work, is waited for as long as wanted, and not by two.
func TestSettleInVain(t *testing.T) {
	hold := filepath.Join(testenv.Scratch(t), "hold")
	writeFile(t, hold, "")
	m := mountUnion(t, nil, func(c *serverConfig) { c.Hold = hold })
	files := make([]*os.File, maxReaders)
	for i := range files {
		f, err := os.Create(m.path(fmt.Sprint(i)))
		must(t, err)
		defer f.Close()
		files[i] = f
	}
	var all sync.WaitGroup
	for _, f := range files {
		all.Go(func() {
			if _, err := f.WriteString("x"); err != nil {
				t.Error(err)
			}
		})
	}
	for end := time.Now().Add(20 * time.Second); m.state().Counters["WRITE"] < maxReaders && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := m.settle(); !strings.Contains(got, context.DeadlineExceeded.Error()) {
		t.Errorf("settled: %s", got)
	}
	if got := m.settle(); !strings.Contains(got, "already") {
		t.Errorf("settled: %s", got)
	}
	must(t, os.Remove(hold))
	all.Wait()
	for end := time.Now().Add(20 * time.Second); m.settle() != "<nil>"; {
		if time.Now().After(end) {
			t.Fatal("not settled when all has been written")
		}
	}
}

// TestTransports runs many clients at once against both transports.
func TestTransports(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			m := mountUnion(t, nil, func(c *serverConfig) { c.Transport = tr.t })
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					dir := m.path(fmt.Sprintf("d%d", i))
					if err := churn(dir, 50); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if got := listDir(t, m.Target); len(got) != 0 {
				t.Errorf("left over: %v", got)
			}
			if n := m.state().Counters["panics"]; n != 0 {
				t.Errorf("%d panics", n)
			}
		})
	}
}

func churn(dir string, rounds int) error {
	for i := range rounds {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		name := filepath.Join(dir, "file")
		content := fmt.Sprint("content ", i)
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Rename(name, name+"2"); err != nil {
			return err
		}
		got, err := os.ReadFile(name + "2")
		if err != nil || string(got) != content {
			return fmt.Errorf("read %q, %w", got, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// TestSlowHandler: a request that takes long does not hold up the others.
func TestSlowHandler(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") },
		func(c *serverConfig) { c.SlowWrite = 300 * time.Millisecond })
	f, err := os.Create(m.path("slow"))
	must(t, err)
	defer f.Close()
	done := make(chan time.Duration)
	for range 3 {
		go func() {
			start := time.Now()
			_, err := f.WriteString("slow")
			if err != nil {
				t.Error(err)
			}
			done <- time.Since(start)
		}()
	}
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	for i := range 20 {
		_, err := os.Stat(m.path(fmt.Sprint("missing", i)))
		if !os.IsNotExist(err) {
			t.Error(err)
		}
	}
	if took := time.Since(start); took > 100*time.Millisecond {
		t.Errorf("20 lookups took %v beside a slow write", took)
	}
	for range 3 {
		if took := <-done; took < 250*time.Millisecond {
			t.Errorf("the write was not slow: %v", took)
		}
	}
	if m.state().Counters["readers_started"] == 0 {
		t.Error("no reader was started")
	}
}

// TestSupplementaryGroup: a set-gid bit survives creation in a directory whose group the creator is a member of.
func TestSupplementaryGroup(t *testing.T) {
	m := mountUnion(t, nil, nil)
	dir := m.path("dir")
	must(t, os.Mkdir(dir, 0o777))
	must(t, os.Chown(dir, 0, 1234))
	must(t, os.Chmod(dir, 0o777|os.ModeSetgid))
	for _, c := range []struct {
		name   string
		groups []int
		want   uint32
	}{{"member", []int{1234}, 0o2755}, {"stranger", nil, 0o755}} {
		must(t, testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534, Groups: c.groups}, func() error {
			fd, err := unix.Open(dir+"/"+c.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o2755)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}))
		var st unix.Stat_t
		must(t, unix.Stat(dir+"/"+c.name, &st))
		if st.Mode&0o7777 != c.want || st.Gid != 1234 || st.Uid != 65534 {
			t.Errorf("%s: mode %o uid %d gid %d, want mode %o gid 1234", c.name, st.Mode, st.Uid, st.Gid, c.want)
		}
	}
}

// TestOtherUsers: the kernel checks permissions, of cached paths too.
func TestOtherUsers(t *testing.T) {
	m := mountUnion(t, func(lower string) {
		must(t, os.Mkdir(lower+"/private", 0o700))
		writeFile(t, lower+"/private/file", "secret")
		writeFile(t, lower+"/secret", "secret")
		must(t, os.Chmod(lower+"/secret", 0o600))
		writeFile(t, lower+"/public", "public")
	}, nil)
	readFile(t, m.path("private/file"))
	readFile(t, m.path("secret"))
	for name, want := range map[string]error{"private/file": unix.EACCES, "secret": unix.EACCES, "public": nil} {
		err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
			fd, err := unix.Open(m.path(name), unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		})
		if !errors.Is(err, want) {
			t.Errorf("%s opens with %v, want %v", name, err, want)
		}
	}
}

// TestFileAttributes: chattr, birth time, holes, anonymous files, special files.
func TestFileAttributes(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, nil)
	var sx unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, m.path("file"), 0, unix.STATX_BTIME, &sx))
	if sx.Mask&unix.STATX_BTIME == 0 || sx.Btime.Sec == 0 {
		t.Error("no birth time")
	}
	fd, err := unix.Open(m.Target, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("x"), 1<<20)
	must(t, err)
	off, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	must(t, err)
	if off == 0 || off > 1<<20 {
		t.Errorf("data at %d", off)
	}
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.path("linked"), unix.AT_SYMLINK_FOLLOW))
	must(t, unix.Close(fd))
	if len(readFile(t, m.path("linked"))) != 1<<20+1 {
		t.Error("the anonymous file lost its content")
	}
	must(t, unix.Mknod(m.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mkfifo(m.path("fifo"), 0o600))
	var st unix.Stat_t
	must(t, unix.Stat(m.path("null"), &st))
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("mode %o device %#x", st.Mode, st.Rdev)
	}
	if _, err := unix.IoctlGetInt(must1(t, m.path("file")), 0x1234); err != unix.ENOTTY {
		t.Errorf("unknown ioctl: %v", err)
	}
}

func must1(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestNoFileHandles: there are none to open, since a node id means another file in the next mount.
func TestNoFileHandles(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, nil)
	if _, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.path("file"), 0); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("name_to_handle_at: %v", err)
	}
}

// TestUserNamespace: root of a user namespace mounts by itself, and gets no-open mode where passthrough is asked for.
func TestUserNamespace(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestUserNamespace$")
		return
	}
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") },
		func(c *serverConfig) { c.Data = DataPassthrough })
	readFile(t, m.path("file"))
	got := m.requests(func() { readFile(t, m.path("file")) })
	if got["OPEN"] != 0 {
		t.Errorf("requests %v", got)
	}
	writeFile(t, m.path("file"), "changed")
	if got := readFile(t, m.path("file")); got != "changed" {
		t.Errorf("read %q", got)
	}
}

// TestPlainUser: a user without privileges mounts through fusermount3.
func TestPlainUser(t *testing.T) {
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Fatal(err)
	}
	dir := testenv.Scratch(t)
	m := &mounted{t: t, serverConfig: serverConfig{
		Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work", Target: dir + "/merged", Timeout: Unlimited,
	}, user: 65534}
	for _, d := range []string{m.Lowers[0], m.Upper, m.Work, m.Target} {
		must(t, os.Mkdir(d, 0o755))
		must(t, os.Chown(d, 65534, 65534))
	}
	writeFile(t, m.Lowers[0]+"/file", "content")
	m.start()
	defer m.stop()
	must(t, testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		return os.WriteFile(m.path("new"), []byte("new"), 0o644)
	}))
	if got := readFile(t, m.Upper+"/new"); got != "new" {
		t.Errorf("the upper has %q", got)
	}
}

// TestPassedDescriptor: somebody else mounts, and hands the descriptor over.
func TestPassedDescriptor(t *testing.T) {
	target := testenv.Scratch(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR, 0)
	must(t, err)
	must(t, unix.Mount("passed", target, "fuse.plyfs", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd)))
	dev := os.NewFile(uintptr(fd), "fuse")
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, func(c *serverConfig) {
		c.Target = "/dev/fd/3"
		c.passed = dev
	})
	must(t, dev.Close())
	if got := readFile(t, target+"/file"); got != "content" {
		t.Errorf("read %q", got)
	}
	must(t, unix.Unmount(target, 0))
	m.ended(t)
}

func TestMountErrors(t *testing.T) {
	for _, target := range []string{"/nonexistent/dir", "/dev/fd/0", "/dev/fd/999"} {
		if d, err := Mount(MountConfig{Target: target}); err == nil {
			t.Errorf("%s: mounted", target)
			_ = d.Close()
		}
	}
	if _, err := Mount(MountConfig{Target: testenv.Scratch(t), Options: []string{"no_such_option"}}); err == nil {
		t.Error("an unknown option was accepted")
	}
}

// TestACL: an ACL that somebody outside the file's group sets clears set-gid, as on every file system.
func TestACL(t *testing.T) {
	m := mountUnion(t, func(lower string) {
		writeFile(t, lower+"/file", "content")
		must(t, os.Chown(lower+"/file", 65534, 1234))
		must(t, os.Chmod(lower+"/file", 0o755|os.ModeSetgid))
	}, func(c *serverConfig) { c.ACL = true })
	// Version 2; then tag, permissions and id of: owner, user 7, group, mask, others.
	acl := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 7, 7}, {4, 5, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		acl = append(acl, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	var st unix.Stat_t
	must(t, unix.Stat(m.path("file"), &st))
	if st.Mode&0o7777 != 0o2755 {
		t.Fatalf("mode %o before", st.Mode)
	}
	must(t, testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		return unix.Setxattr(m.path("file"), aclAccess, acl, 0)
	}))
	must(t, unix.Stat(m.path("file"), &st))
	if st.Mode&0o7777 != 0o770 {
		t.Errorf("mode %o, want 770", st.Mode&0o7777)
	}
	got := make([]byte, 256)
	n, err := unix.Getxattr(m.path("file"), aclAccess, got)
	must(t, err)
	if string(got[:n]) != string(acl) {
		t.Errorf("the ACL came back as %v", got[:n])
	}
	must(t, testenv.RunAs(testenv.Cred{UID: 7, GID: 7}, func() error {
		fd, err := unix.Open(m.path("file"), unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}))
}

// TestXattrs: values, sizes, lists, and none at all.
func TestXattrs(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") }, nil)
	p := m.path("file")
	must(t, unix.Setxattr(p, "user.one", []byte("value"), unix.XATTR_CREATE))
	if err := unix.Setxattr(p, "user.one", []byte("value"), unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("created twice: %v", err)
	}
	big := make([]byte, 60000)
	if err := unix.Setxattr(p, "trusted.big", big, 0); err != nil && err != unix.ENOSPC {
		t.Errorf("60,000 bytes: %v", err)
	}
	if n, err := unix.Getxattr(p, "user.one", nil); err != nil || n != 5 {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := unix.Getxattr(p, "user.one", make([]byte, 2)); err != unix.ERANGE {
		t.Errorf("short buffer: %v", err)
	}
	if _, err := unix.Getxattr(p, "user.none", nil); err != unix.ENODATA {
		t.Errorf("missing: %v", err)
	}
	buf := make([]byte, 1000)
	n, err := unix.Listxattr(p, buf)
	must(t, err)
	if got := string(buf[:n]); got != "user.one\x00" && got != "user.one\x00trusted.big\x00" && got != "trusted.big\x00user.one\x00" {
		t.Errorf("list %q", got)
	}
	must(t, unix.Removexattr(p, "user.one"))
	none := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") },
		func(c *serverConfig) { c.NoXattrs = true })
	if err := unix.Setxattr(none.path("file"), "user.one", []byte("value"), 0); err != unix.EOPNOTSUPP {
		t.Errorf("without attributes: %v", err)
	}
}

// TestDebug: with all requests logged, and decoded by the library, everything still works.
func TestDebug(t *testing.T) {
	m := mountUnion(t, nil, func(c *serverConfig) { c.Debug = true })
	must(t, churn(m.path("dir"), 3))
}
