package mounted

import (
	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// file is a descriptor of a mounted tree. What it may change depends on who writes as well as on who opened it.
type file struct {
	fd   int
	cred *testenv.Cred // who changes it; nil is the process itself
}

// as runs f as the file's user.
func (f *file) as(call func() error) error {
	if f.cred == nil {
		return call()
	}
	return testenv.RunAs(*f.cred, call)
}

func (f *file) FD() int { return f.fd }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := retry(func() (int, error) { return unix.Pread(f.fd, p, off) })
	return n, uniontest.Errno("read", "", err)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.retryAs(func() (int, error) { return unix.Pwrite(f.fd, p, off) })
	return n, uniontest.Errno("write", "", err)
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.retryAs(func() (int, error) { return unix.Write(f.fd, p) })
	return n, uniontest.Errno("write", "", err)
}

func (f *file) retryAs(call func() (int, error)) (n int, err error) {
	err = f.as(func() (err error) {
		n, err = retry(call)
		return err
	})
	return n, err
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR { //nolint:errorlint // raw errno of one call
			return max(n, 0), err
		}
	}
}

func (f *file) Truncate(size int64) error {
	return uniontest.Errno("ftruncate", "", f.as(func() error { return unix.Ftruncate(f.fd, size) }))
}

func (f *file) Sync() error { return uniontest.Errno("fsync", "", unix.Fsync(f.fd)) }

func (f *file) Datasync() error { return uniontest.Errno("fdatasync", "", unix.Fdatasync(f.fd)) }

func (f *file) Fallocate(mode uint32, off, length int64) error {
	_, err := f.retryAs(func() (int, error) { return 0, unix.Fallocate(f.fd, mode, off, length) })
	return uniontest.Errno("fallocate", "", err)
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	n, err := unix.Seek(f.fd, off, whence)
	return n, uniontest.Errno("lseek", "", err)
}

func (f *file) CopyRange(off int64, dst uniontest.File, doff int64, length int) (int, error) {
	n, err := f.retryAs(func() (int, error) { return unix.CopyFileRange(f.fd, &off, dst.FD(), &doff, length, 0) })
	return n, uniontest.Errno("copy_file_range", "", err)
}

func (f *file) Stat() (uniontest.Stat, error) {
	st, err := statx(f.fd, "", unix.AT_EMPTY_PATH)
	return st, uniontest.Errno("fstat", "", err)
}

func (f *file) Chmod(mode uint32) error {
	return uniontest.Errno("fchmod", "", f.as(func() error { return unix.Fchmod(f.fd, mode) }))
}

func (f *file) Chown(uid, gid int) error {
	return uniontest.Errno("fchown", "", f.as(func() error { return unix.Fchown(f.fd, uid, gid) }))
}

func (f *file) Utimens(atime, mtime unix.Timespec) error {
	err := f.as(func() error {
		return unix.UtimesNanoAt(f.fd, "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
	})
	return uniontest.Errno("futimens", "", err)
}

func (f *file) Setxattr(name string, value []byte, flags int) error {
	return uniontest.Errno("fsetxattr", name, f.as(func() error { return unix.Fsetxattr(f.fd, name, value, flags) }))
}

func (f *file) Getxattr(name string, dest []byte) (int, error) {
	n, err := unix.Fgetxattr(f.fd, name, dest)
	return n, uniontest.Errno("fgetxattr", name, err)
}

func (f *file) Flags() (uint32, error) {
	n, err := unix.IoctlGetUint32(f.fd, unix.FS_IOC_GETFLAGS)
	return n, uniontest.Errno("FS_IOC_GETFLAGS", "", err)
}

func (f *file) SetFlags(flags uint32) error {
	return uniontest.Errno("FS_IOC_SETFLAGS", "", unix.IoctlSetPointerInt(f.fd, unix.FS_IOC_SETFLAGS, int(flags)))
}

func (f *file) Close() error {
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return uniontest.Errno("close", "", unix.Close(fd))
}
