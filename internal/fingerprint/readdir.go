package fingerprint

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

type dirent struct {
	name string
	ino  uint64
}

// direntHeader is the size of the fixed part of struct linux_dirent64: ino, off, reclen, type.
const direntHeader = 19

// readDir lists a directory without "." and "..". It opens the directory anew, so that the offset of fd stays.
func readDir(fd int) ([]dirent, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	var list []dirent
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(own, buf)
		if err != nil {
			return nil, fmt.Errorf("readdir: %w", err)
		}
		if n == 0 {
			return list, nil
		}
		for b := buf[:n]; len(b) > 0; {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < direntHeader || size > len(b) {
				return nil, fmt.Errorf("readdir: record of %d bytes in %d", size, len(b))
			}
			name, _, _ := bytes.Cut(b[direntHeader:size], []byte{0})
			if s := string(name); s != "." && s != ".." {
				list = append(list, dirent{s, binary.NativeEndian.Uint64(b)})
			}
			b = b[size:]
		}
	}
}
