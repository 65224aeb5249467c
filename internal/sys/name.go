package sys

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// nameBuf is room on the stack for one name, so that the calls made for every request leave nothing to the collector.
type nameBuf [unix.NAME_MAX + 1]byte

// cstring returns s as the kernel takes it, in b unless it is longer. EINVAL if s holds a NUL.
func (b *nameBuf) cstring(s string) (*byte, error) {
	if len(s) >= len(b) {
		return unix.BytePtrFromString(s)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return nil, unix.EINVAL
	}
	b[copy(b[:], s)] = 0
	return &b[0], nil
}

// Gone says whether err, of a call that follows no symlink, means that a name, or a directory on the way to it, is not there any more.
func Gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
