package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// uringParamsSize is the size of struct io_uring_params of linux/io_uring.h.
const uringParamsSize = 120

// IOUring makes an io_uring of one entry and closes it. Errors are ENOSYS where the kernel, or a seccomp filter, has no
// such call, and EPERM where kernel.io_uring_disabled or the filter forbids it.
func IOUring() error {
	var params [uringParamsSize / 8]uint64
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}
