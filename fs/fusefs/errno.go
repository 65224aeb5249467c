package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxErrno is the greatest number that the kernel takes for an answer. Those above are its own, yet some file systems let them out, such
// as NFS and 9p (cf. linux/errno.h, fs/fuse/dev.c fuse_dev_do_write: it refuses the answer, and goes on waiting for one).
const maxErrno = 511

// status maps an error of the union to what the kernel is told. It is the only place that does so. What carries no
// errno, or none that the kernel takes, becomes EIO and is logged, since the application will not learn the reason.
func (f *FS) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno, ok := err.(syscall.Errno) //nolint:errorlint // the common case, without reflection
	if !ok && !errors.As(err, &errno) {
		f.log.Error("request failed without an errno, answered EIO", "op", op, "error", err)
		return fuse.EIO
	}
	if errno > maxErrno {
		f.log.Error("request failed with an errno that the kernel takes from nobody, answered EIO", "op", op, "error", err, "errno", int(errno))
		return fuse.EIO
	}
	switch errno {
	case 0:
		return fuse.OK
	case syscall.EIO, syscall.EUCLEAN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EBADF, syscall.EFAULT:
		// None of these is the application's doing.
		f.log.Error("request failed", "op", op, "error", err)
	case syscall.ENOSYS:
		// The kernel takes ENOSYS as "this mount will never support the request", for all files.
		return fuse.ENOTSUP
	}
	return fuse.Status(errno)
}
