package sys

import (
	"io"

	"golang.org/x/sys/unix"
)

// FDReader reads from a descriptor that it does not own, without the runtime's poller: a read blocks a thread.
type FDReader int

// Read implements io.Reader.
func (fd FDReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
