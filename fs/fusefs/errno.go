package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// status maps an error of the union to what the kernel is told. It is the only place that does so. What carries no
// errno becomes EIO and is logged, since the application will not learn the reason.
func (f *FS) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno, ok := err.(syscall.Errno) //nolint:errorlint // the common case, without reflection
	if !ok && !errors.As(err, &errno) {
		f.log.Error("request failed without an errno, answered EIO", "op", op, "error", err)
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
