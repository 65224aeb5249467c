package layer

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// RawDirent is one entry as getdents64(2) returned it.
type RawDirent struct {
	Name string
	Ino  uint64
	// Type is a DT_ constant, DT_UNKNOWN where the file system does not tell.
	Type uint8
}

const (
	// smallList is what a first call may return: most directories of a layer hold few names, and a mount lists the same one in many
	// layers. It fits the stack. listBuf is for those with more.
	smallList = 4 << 10
	listBuf   = 32 << 10
)

// List calls fn for every entry of the directory behind dirfd but "." and "..". It opens the directory anew, so that any
// number of goroutines may list through one descriptor. fn must not keep the buffer: Name is a fresh string.
func List(dirfd int, fn func(RawDirent) error) error {
	fd, err := sys.OpenSelf(dirfd, unix.O_RDONLY|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = sys.OpenSelf(dirfd, unix.O_RDONLY)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var room [smallList]byte
	for buf := room[:]; ; {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := parseDirents(buf[:n], fn); err != nil {
			return err
		}
		if n > smallList/2 && len(buf) == smallList {
			buf = make([]byte, listBuf)
		}
	}
}

const (
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

func parseDirents(b []byte, fn func(RawDirent) error) error {
	for len(b) > direntName {
		reclen := int(binary.NativeEndian.Uint16(b[direntReclen:]))
		if reclen < direntName || reclen > len(b) {
			return unix.EIO
		}
		name := b[direntName:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if !(len(name) == 1 && name[0] == '.' || len(name) == 2 && name[0] == '.' && name[1] == '.') {
			ent := RawDirent{Name: string(name), Ino: binary.NativeEndian.Uint64(b), Type: b[direntType]}
			if err := fn(ent); err != nil {
				return err
			}
		}
		b = b[reclen:]
	}
	return nil
}
