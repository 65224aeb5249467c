package layer_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

func TestOpen(t *testing.T) {
	testenv.CheckLeaks(t)
	for name, dir := range map[string]string{"tmpfs": testenv.Scratch(t), "ext4": testenv.Ext4(t, 16<<20)} {
		link := filepath.Join(testenv.Scratch(t), "link")
		must(t, os.Symlink(dir, link))
		for _, path := range []string{dir, link} {
			l, err := layer.Open(path)
			must(t, err)
			var st unix.Stat_t
			var fs unix.Statfs_t
			must(t, unix.Stat(dir, &st), unix.Statfs(dir, &fs))
			if l.Dev != st.Dev || l.Ino != st.Ino || l.FSType != int64(fs.Type) || l.Path != path || l.Override() != "" {
				t.Errorf("%s: %+v; want device %#x, inode %d, type %#x", name, l, st.Dev, st.Ino, fs.Type)
			}
			if !l.Handles() {
				t.Errorf("%s: inode numbers cannot be read out of file handles", name)
			}
			must(t, l.Close(), l.Close())
		}
	}
}

func TestOpenErrors(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Mkdir(filepath.Join(dir, "shut"), 0o700),
		os.Mkdir(filepath.Join(dir, "shut/in"), 0o755), os.Symlink("loop", filepath.Join(dir, "loop")))
	for path, want := range map[string]error{
		"absent": unix.ENOENT, "file": unix.ENOTDIR, "file/x": unix.ENOTDIR, "loop": unix.ELOOP, "shut/in": unix.EACCES,
		strings.Repeat("n", 256): unix.ENAMETOOLONG,
	} {
		path = filepath.Join(dir, path)
		err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
			l, err := layer.Open(path)
			if err == nil {
				l.Close()
			}
			return err
		})
		if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("%s: %v; want %v", path, err, want)
		}
	}
}

// A lower that may be searched but not listed serves what is asked for by name.
func TestOpenUnreadable(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Chmod(dir, 0o711))
	must(t, testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		l, err := layer.Open(dir)
		if err != nil {
			return err
		}
		defer l.Close()
		fd, err := l.OpenDir("d")
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}))
}

func TestOpenDir(t *testing.T) {
	testenv.CheckLeaks(t)
	outside := testenv.Scratch(t)
	dir := filepath.Join(outside, "layer")
	must(t, os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755), os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o600),
		os.Symlink("a", filepath.Join(dir, "inward")), os.Symlink(outside, filepath.Join(dir, "outward")),
		os.Symlink("../..", filepath.Join(dir, "a/up")), os.Symlink("/proc/self/root", filepath.Join(dir, "magic")))
	l := open(t, dir)
	for _, path := range []string{"", ".", "a", "a/b/c", "a/./b", "a/b/", "a//b"} {
		fd, err := l.OpenDir(path)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir, path), &st))
		if got := inode(t, fd); got != st.Ino {
			t.Errorf("%q: inode %d, want %d", path, got, st.Ino)
		}
		unix.Close(fd)
	}
	for path, want := range map[string]error{
		// A symlink in the last place is what it is: no directory.
		"inward": unix.ENOTDIR, "outward": unix.ENOTDIR, "a/up": unix.ENOTDIR, "magic": unix.ENOTDIR,
		"inward/b": unix.ELOOP, "outward/layer": unix.ELOOP, "a/up/layer": unix.ELOOP, "magic/etc": unix.ELOOP,
		"..": unix.EXDEV, "../layer": unix.EXDEV, "a/../..": unix.EXDEV, "/": unix.EXDEV, "/etc": unix.EXDEV, dir: unix.EXDEV,
		"absent": unix.ENOENT, "a/absent/b": unix.ENOENT, "a/file": unix.ENOTDIR, "a/file/x": unix.ENOTDIR,
		strings.Repeat("n", 256): unix.ENAMETOOLONG, strings.Repeat("n", 4000): unix.ENAMETOOLONG,
		strings.Repeat("n", 5000): unix.ENAMETOOLONG, "a/b/" + strings.Repeat("n", 5000): unix.ENAMETOOLONG,
	} {
		fd, err := l.OpenDir(path)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, want) {
			t.Errorf("%q: %v; want %v", path, err, want)
		}
	}
}

// Below one descriptor the kernel resolves paths of up to PATH_MAX; trees may be deeper.
func TestOpenDirDeep(t *testing.T) {
	testenv.CheckLeaks(t)
	for _, size := range []int{7, 200, 255} {
		l := open(t, testenv.Scratch(t))
		at := l.FD()
		var parts []string
		for depth := 0; len(parts)*(size+1) < 12<<10; depth++ {
			name := strings.Repeat(string(rune('a'+depth%26)), size)
			must(t, unix.Mkdirat(at, name, 0o755))
			fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(t, err)
			if at != l.FD() {
				unix.Close(at)
			}
			at = fd
			parts = append(parts, name)
		}
		deep := strings.Join(parts, "/")
		fd, err := l.OpenDir(deep)
		if err != nil {
			t.Fatalf("a path of %d bytes, components of %d: %v", len(deep), size, err)
		}
		if inode(t, fd) != inode(t, at) {
			t.Errorf("a path of %d bytes, components of %d, leads elsewhere", len(deep), size)
		}
		unix.Close(fd)
		must(t, unix.Symlinkat(".", at, "link"), unix.Mkdirat(at, "d", 0o755))
		unix.Close(at)
		for tail, want := range map[string]error{
			"/link": unix.ENOTDIR, "/link/d": unix.ELOOP, "/absent": unix.ENOENT, "/absent/" + deep: unix.ENOENT,
			"/" + strings.Repeat("n", 5000): unix.ENAMETOOLONG, "/d/" + strings.Repeat("n", 256): unix.ENAMETOOLONG,
		} {
			fd, err := l.OpenDir(deep + tail)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, want) {
				t.Errorf("components of %d, then %.20q: %v; want %v", size, tail, err, want)
			}
		}
		must(t, l.Close())
	}
}

func TestOverrideChoice(t *testing.T) {
	names := []string{
		"security.fuseoverlayfs.override_stat", "user.containers.override_stat", "user.fuseoverlayfs.override_stat",
	}
	for i := range names {
		dir := testenv.Scratch(t)
		for _, name := range names[i:] {
			must(t, unix.Setxattr(dir, name, []byte("0:0:755:dir"), 0))
		}
		l := open(t, dir)
		if l.Override() != names[i] {
			t.Errorf("of %q, %q is taken", names[i:], l.Override())
		}
		l.SetOverride("")
		if l.Override() != "" {
			t.Errorf("%q is kept", l.Override())
		}
		plain, err := layer.OpenPlain(dir)
		must(t, err)
		if plain.Override() != "" {
			t.Errorf("of a plain tree, %q is taken", plain.Override())
		}
		must(t, plain.Close())
	}
}

func TestStatOverride(t *testing.T) {
	const attr = "user.containers.override_stat"
	dir := testenv.Scratch(t)
	must(t, unix.Setxattr(dir, attr, []byte("1:2:1777:dir"), 0))
	file := func(name, value string) {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte("data"), 0o600))
		if value != "" {
			must(t, unix.Setxattr(p, attr, []byte(value), 0))
		}
	}
	file("file", "1000:100:4711:file")
	file("untyped", "1000:100:640")
	file("device", "0:6:660:block-8-17")
	file("plain", "")
	file("malformed", "root:root:644")
	file("endless", "0:0:644:file"+strings.Repeat("-x", 200))
	must(t, os.Symlink("file", filepath.Join(dir, "link")), os.Lchown(filepath.Join(dir, "link"), 7, 8))
	l := open(t, dir)
	for _, c := range []struct {
		name         string
		uid, gid     uint32
		mode         uint16
		major, minor uint32
	}{
		{name: "", uid: 1, gid: 2, mode: unix.S_IFDIR | 0o1777},
		{name: "file", uid: 1000, gid: 100, mode: unix.S_IFREG | 0o4711},
		{name: "untyped", uid: 1000, gid: 100, mode: unix.S_IFREG | 0o640},
		{name: "device", gid: 6, mode: unix.S_IFBLK | 0o660, major: 8, minor: 17},
		{name: "plain", mode: unix.S_IFREG | 0o600},
		{name: "link", uid: 7, gid: 8, mode: unix.S_IFLNK | 0o777},
	} {
		var st unix.Statx_t
		must(t, l.Stat(l.FD(), c.name, &st))
		if st.Uid != c.uid || st.Gid != c.gid || st.Mode != c.mode || st.Rdev_major != c.major || st.Rdev_minor != c.minor {
			t.Errorf("%q: %d:%d %o %d:%d; want %+v", c.name, st.Uid, st.Gid, st.Mode, st.Rdev_major, st.Rdev_minor, c)
		}
	}
	// Owner and mode that cannot be read must not become those of the store's files.
	for _, name := range []string{"malformed", "endless"} {
		var st unix.Statx_t
		if err := l.Stat(l.FD(), name, &st); !errors.Is(err, unix.EIO) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: %v, owner %d, mode %o", name, err, st.Uid, st.Mode)
		}
	}
	var st unix.Statx_t
	if err := l.Stat(l.FD(), "absent", &st); !errors.Is(err, unix.ENOENT) {
		t.Errorf("absent: %v", err)
	}
	l.SetOverride("")
	must(t, l.Stat(l.FD(), "malformed", &st))
	if st.Uid != 0 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("without the attribute: owner %d, mode %o", st.Uid, st.Mode)
	}
}
