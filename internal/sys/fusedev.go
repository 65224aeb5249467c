package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	fuseBackingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	fuseBackingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE
)

// backingMap is struct fuse_backing_map of linux/fuse.h.
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

// BackingOpen registers fd with the connection of the /dev/fuse descriptor dev and returns the id by which an answer
// to OPEN can name it. The kernel takes its own reference: fd may be closed at once. Errors are EPERM without
// CAP_SYS_ADMIN in the initial user namespace or without passthrough, ELOOP when fd lies on a stacked file system.
func BackingOpen(dev, fd int) (int32, error) {
	m := backingMap{fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), fuseBackingOpen, uintptr(unsafe.Pointer(&m)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}

// BackingClose takes back an id of BackingOpen. Files that are open through it stay so.
func BackingClose(dev int, id int32) error {
	return unix.IoctlSetPointerInt(dev, fuseBackingClose, int(id))
}

// WriteNoWait is write(2) without telling the scheduler, for short writes to a descriptor that never blocks, such as
// an answer to /dev/fuse. It must not be used for anything else: a blocked call would stop the garbage collector.
func WriteNoWait(fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		return 0, syscall.Errno(errno)
	}
	return int(n), nil
}
