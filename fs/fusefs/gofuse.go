package fusefs

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// serveGoFUSE serves with the library's own server, which takes over a descriptor by its number.
func (f *FS) serveGoFUSE(dev *Device, report func(error)) error {
	fd, err := unix.FcntlInt(uintptr(dev.Fd()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("fusefs: %w", err)
	}
	raw := newRawFS(f)
	// Its options are fixed before the kernel's capabilities are known, so O_TRUNC stays a request of its own.
	raw.init = func(s *fuse.Server) { f.chooseMode(s.KernelSettings().Flags64()) }
	server, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), f.options(false))
	if err != nil {
		return fmt.Errorf("fusefs: %w", err)
	}
	// The library has a reader for each processor, and one more, in the kernel. Each keeps its processor while it
	// waits, so that one that comes back would wait for another for tens of microseconds.
	if readers := min(max(runtime.GOMAXPROCS(0), 2), 16) + 1; runtime.GOMAXPROCS(0) < readers+4 {
		runtime.GOMAXPROCS(readers + 4)
	}
	f.tune(dev)
	report(nil)
	server.Serve()
	return nil
}
