package mounted

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// longPath is the length beyond which a path is walked in pieces; PATH_MAX is 4096.
const longPath = 3000

// dirTree has the operations of a tree on a directory of the file system, as one user.
type dirTree struct {
	root string
	fd   int // O_PATH descriptor of root; every path is relative to it
	cred testenv.Cred
	// plain is set for the identity of the process itself: no thread of its own is needed.
	plain bool
}

// do runs f as the tree's user. f gets a directory descriptor and the rest of p beneath it, shorter than PATH_MAX.
func (t *dirTree) do(op, p string, f func(dir int, rest string) error) error {
	call := func() error {
		dir, rest, err := t.shorten(p)
		if err != nil {
			return err
		}
		if dir != t.fd {
			defer unix.Close(dir)
		}
		for {
			if err := f(dir, rest); err != unix.EINTR { //nolint:errorlint // raw errno of one call
				return err
			}
		}
	}
	if t.plain {
		return uniontest.Errno(op, p, call())
	}
	return uniontest.Errno(op, p, testenv.RunAs(t.cred, call))
}

// shorten opens the first directories of an overlong path one piece after the other.
func (t *dirTree) shorten(p string) (dir int, rest string, err error) {
	dir, rest = t.fd, p
	if rest == "" {
		rest = "."
	}
	for len(rest) > longPath {
		cut := strings.LastIndexByte(rest[:longPath], '/')
		if cut < 0 {
			return dir, rest, nil
		}
		next, err := unix.Openat(dir, rest[:cut], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if dir != t.fd {
			unix.Close(dir)
		}
		if err != nil {
			return -1, "", err
		}
		dir, rest = next, strings.TrimLeft(rest[cut:], "/")
	}
	return dir, rest, nil
}

func (t *dirTree) Root() string { return t.root }

func (t *dirTree) Mkdir(p string, mode uint32) error {
	return t.do("mkdir", p, func(d int, p string) error { return unix.Mkdirat(d, p, mode) })
}

func (t *dirTree) Mknod(p string, mode uint32, dev uint64) error {
	return t.do("mknod", p, func(d int, p string) error { return unix.Mknodat(d, p, mode, int(dev)) })
}

func (t *dirTree) Symlink(target, p string) error {
	return t.do("symlink", p, func(d int, p string) error { return unix.Symlinkat(target, d, p) })
}

func (t *dirTree) two(op, a, b string, f func(d1 int, a string, d2 int, b string) error) error {
	return t.do(op, a, func(d1 int, a string) error {
		d2, b, err := t.shorten(b)
		if err != nil {
			return err
		}
		if d2 != t.fd {
			defer unix.Close(d2)
		}
		return f(d1, a, d2, b)
	})
}

func (t *dirTree) Link(a, b string) error {
	return t.two("link "+b, a, b, func(d1 int, a string, d2 int, b string) error { return unix.Linkat(d1, a, d2, b, 0) })
}

func (t *dirTree) Unlink(p string) error {
	return t.do("unlink", p, func(d int, p string) error { return unix.Unlinkat(d, p, 0) })
}

func (t *dirTree) Rmdir(p string) error {
	return t.do("rmdir", p, func(d int, p string) error { return unix.Unlinkat(d, p, unix.AT_REMOVEDIR) })
}

func (t *dirTree) Rename(a, b string, flags uint32) error {
	return t.two("rename to "+b, a, b, func(d1 int, a string, d2 int, b string) error {
		return unix.Renameat2(d1, a, d2, b, uint(flags))
	})
}

func (t *dirTree) Open(p string, flags int, mode uint32) (uniontest.File, error) {
	fd := -1
	err := t.do("open", p, func(d int, p string) (err error) {
		fd, err = unix.Openat(d, p, flags|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	if t.plain {
		return &file{fd: fd}, nil
	}
	return &file{fd: fd, cred: &t.cred}, nil
}

func (t *dirTree) LinkFile(f uniontest.File, p string) error {
	old := fmt.Sprintf("/proc/self/fd/%d", f.FD())
	return t.do("linkat", p, func(d int, p string) error {
		return unix.Linkat(unix.AT_FDCWD, old, d, p, unix.AT_SYMLINK_FOLLOW)
	})
}

func statx(fd int, p string, flags int) (st uniontest.Stat, err error) {
	var x unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(fd, p, flags|unix.AT_SYMLINK_NOFOLLOW, mask, &x); err != nil {
		return st, err
	}
	ts := func(t unix.StatxTimestamp) unix.Timespec { return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)} }
	st = uniontest.Stat{
		Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Ino: x.Ino, Nlink: uint64(x.Nlink), Mode: uint32(x.Mode),
		UID: x.Uid, GID: x.Gid, Rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor), Size: int64(x.Size),
		Blocks: int64(x.Blocks), Blksize: int64(x.Blksize), Atime: ts(x.Atime), Mtime: ts(x.Mtime), Ctime: ts(x.Ctime),
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		st.Btime = ts(x.Btime)
	}
	return st, nil
}

func (t *dirTree) Lstat(p string) (st uniontest.Stat, err error) {
	err = t.do("stat", p, func(d int, p string) (err error) {
		st, err = statx(d, p, 0)
		return err
	})
	return st, err
}

func (t *dirTree) Chmod(p string, mode uint32) error {
	return t.do("chmod", p, func(d int, p string) error { return unix.Fchmodat(d, p, mode, 0) })
}

func (t *dirTree) Chown(p string, uid, gid int) error {
	return t.do("chown", p, func(d int, p string) error {
		return unix.Fchownat(d, p, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (t *dirTree) Utimens(p string, atime, mtime unix.Timespec) error {
	return t.do("utimens", p, func(d int, p string) error {
		return unix.UtimesNanoAt(d, p, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (t *dirTree) Truncate(p string, size int64) error {
	return t.do("truncate", p, func(int, string) error { return unix.Truncate(t.abs(p), size) })
}

func (t *dirTree) Readlink(p string) (target string, err error) {
	err = t.do("readlink", p, func(d int, p string) error {
		buf := make([]byte, 8192)
		n, err := unix.Readlinkat(d, p, buf)
		target = string(buf[:max(n, 0)])
		return err
	})
	return target, err
}

// abs is the path for calls that take no directory descriptor.
func (t *dirTree) abs(p string) string { return filepath.Join(t.root, p) }

func (t *dirTree) Getxattr(p, name string, dest []byte) (n int, err error) {
	err = t.do("getxattr", p, func(int, string) (err error) {
		n, err = unix.Lgetxattr(t.abs(p), name, dest)
		return err
	})
	return n, err
}

func (t *dirTree) Setxattr(p, name string, value []byte, flags int) error {
	return t.do("setxattr "+name, p, func(int, string) error { return unix.Lsetxattr(t.abs(p), name, value, flags) })
}

func (t *dirTree) Removexattr(p, name string) error {
	return t.do("removexattr "+name, p, func(int, string) error { return unix.Lremovexattr(t.abs(p), name) })
}

func (t *dirTree) Listxattr(p string, dest []byte) (n int, err error) {
	err = t.do("listxattr", p, func(int, string) (err error) {
		n, err = unix.Llistxattr(t.abs(p), dest)
		return err
	})
	return n, err
}

func (t *dirTree) Statfs() (s uniontest.Statfs, err error) {
	err = t.do("statfs", ".", func(int, string) error {
		var st unix.Statfs_t
		if err := unix.Statfs(t.root, &st); err != nil {
			return err
		}
		s = uniontest.Statfs{
			Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree, Namelen: st.Namelen,
		}
		return nil
	})
	return s, err
}

func (t *dirTree) OpenDir(p string) (uniontest.DirHandle, error) {
	fd := -1
	err := t.do("opendir", p, func(d int, p string) (err error) {
		fd, err = unix.Openat(d, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &dir{fd: fd, buf: make([]byte, 32<<10)}, nil
}

func (t *dirTree) ReadDir(p string) ([]uniontest.Dirent, error) {
	d, err := t.OpenDir(p)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var all []uniontest.Dirent
	for {
		some, err := d.Next()
		if err != nil {
			return nil, uniontest.Errno("readdir", p, err)
		}
		if len(some) == 0 {
			return all, nil
		}
		all = append(all, some...)
	}
}

func (t *dirTree) open(root string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	t.root, t.fd = root, fd
	return nil
}

type dir struct {
	fd  int
	buf []byte
}

// direntHeader is the fixed part of struct linux_dirent64: ino, off, reclen, type.
const direntHeader = 19

func (d *dir) Next() ([]uniontest.Dirent, error) {
	n, err := unix.Getdents(d.fd, d.buf)
	if err != nil {
		return nil, err
	}
	var list []uniontest.Dirent
	for b := d.buf[:n]; len(b) > 0; {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size < direntHeader || size > len(b) {
			return nil, fmt.Errorf("directory record of %d bytes in %d", size, len(b))
		}
		name, _, _ := bytes.Cut(b[direntHeader:size], []byte{0})
		list = append(list, uniontest.Dirent{
			Name: string(name), Ino: binary.NativeEndian.Uint64(b), Type: uint32(b[18]) << 12,
			Next: int64(binary.NativeEndian.Uint64(b[8:])),
		})
		b = b[size:]
	}
	return list, nil
}

func (d *dir) SeekTo(off int64) error {
	_, err := unix.Seek(d.fd, off, unix.SEEK_SET)
	return err
}

func (d *dir) Sync() error { return unix.Fsync(d.fd) }

func (d *dir) Close() error { return unix.Close(d.fd) }
