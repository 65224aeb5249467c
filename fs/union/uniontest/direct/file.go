package direct

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
)

func isNotExist(err error) bool { return errors.Is(err, unix.ENOENT) }

// file is an open file: a reference to its node.
type file struct {
	t      *Tree
	n      *union.Node
	append bool
	pos    int64
}

func (f *file) FD() int { return -1 }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.t.u.Read(f.n, p, off)
	return n, uniontest.Errno("read", "", err)
}

// setIDBits is what the VFS finds out before a write: whether the process has CAP_FSETID.
func (f *file) setIDBits() union.SetIDBits {
	if f.t.cred.UID != 0 {
		return union.KillSetID
	}
	return union.KeepSetID
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, uniontest.Errno("write", "", unix.EINVAL)
	}
	n, err := f.t.u.Write(f.n, p, off, f.setIDBits())
	return n, uniontest.Errno("write", "", err)
}

func (f *file) Write(p []byte) (int, error) {
	off := f.pos
	if f.append {
		a, err := f.t.u.GetAttr(f.n)
		if err != nil {
			return 0, err
		}
		off = int64(a.Size)
	}
	n, err := f.WriteAt(p, off)
	f.pos = off + int64(n)
	return n, err
}

func (f *file) Truncate(size int64) error {
	return uniontest.Errno("ftruncate", "", f.t.truncate(f.n, size))
}

func (f *file) Sync() error { return uniontest.Errno("fsync", "", f.t.u.Fsync(f.n)) }

func (f *file) Datasync() error { return uniontest.Errno("fdatasync", "", f.t.u.Fdatasync(f.n)) }

func (f *file) Fallocate(mode uint32, off, length int64) error {
	if off < 0 || length <= 0 {
		return uniontest.Errno("fallocate", "", unix.EINVAL)
	}
	return uniontest.Errno("fallocate", "", f.t.u.Fallocate(f.n, mode, off, length, f.setIDBits()))
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	n, err := f.t.u.Seek(f.n, off, whence)
	return n, uniontest.Errno("lseek", "", err)
}

func (f *file) CopyRange(off int64, dst uniontest.File, doff int64, length int) (int, error) {
	n, err := f.t.u.CopyRange(f.n, off, dst.(*file).n, doff, int64(length))
	return n, uniontest.Errno("copy_file_range", "", err)
}

func (f *file) Stat() (uniontest.Stat, error) {
	a, err := f.t.u.GetAttr(f.n)
	return stat(a), uniontest.Errno("fstat", "", err)
}

func (f *file) Chmod(mode uint32) error { return uniontest.Errno("fchmod", "", f.t.chmod(f.n, mode)) }

func (f *file) Chown(uid, gid int) error {
	return uniontest.Errno("fchown", "", f.t.chown(f.n, uid, gid))
}

func (f *file) Utimens(atime, mtime unix.Timespec) error {
	return uniontest.Errno("futimens", "", f.t.utimens(f.n, atime, mtime))
}

func (f *file) Setxattr(name string, value []byte, flags int) error {
	return uniontest.Errno("fsetxattr", name, f.t.setxattr(f.n, name, value, flags))
}

func (f *file) Getxattr(name string, dest []byte) (int, error) {
	n, err := f.t.u.Getxattr(f.n, name, dest)
	return n, uniontest.Errno("fgetxattr", name, err)
}

func (f *file) Flags() (uint32, error) {
	n, err := f.t.u.GetFlags(f.n)
	return n, uniontest.Errno("FS_IOC_GETFLAGS", "", err)
}

func (f *file) SetFlags(flags uint32) error {
	return uniontest.Errno("FS_IOC_SETFLAGS", "", f.t.u.SetFlags(f.n, flags))
}

func (f *file) Close() error {
	if f.n != nil {
		f.t.forget(f.n)
		f.n = nil
	}
	return nil
}

// OpenDir opens a directory.
func (t *Tree) OpenDir(p string) (uniontest.DirHandle, error) {
	n, err := t.walk(p, true)
	if err != nil {
		return nil, uniontest.Errno("opendir", p, err)
	}
	if !n.IsDir() {
		t.forget(n)
		return nil, uniontest.Errno("opendir", p, unix.ENOTDIR)
	}
	return &dir{t: t, n: n, buf: make([]union.Dirent, 128)}, nil
}

// ReadDir lists a directory.
func (t *Tree) ReadDir(p string) ([]uniontest.Dirent, error) {
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

type dir struct {
	t   *Tree
	n   *union.Node
	off uint64
	buf []union.Dirent
}

func (d *dir) Next() ([]uniontest.Dirent, error) {
	n, err := d.t.u.ReadDir(d.n, d.off, d.buf)
	if err != nil {
		return nil, err
	}
	list := make([]uniontest.Dirent, n)
	for i, e := range d.buf[:n] {
		list[i] = uniontest.Dirent{Name: e.Name, Ino: e.Ino, Type: e.Type, Next: int64(e.Next)}
		d.off = e.Next
	}
	return list, nil
}

func (d *dir) SeekTo(off int64) error {
	d.off = uint64(off)
	return nil
}

func (d *dir) Sync() error { return d.t.u.Fsync(d.n) }

func (d *dir) Close() error {
	if d.n != nil {
		d.t.forget(d.n)
		d.n = nil
	}
	return nil
}
