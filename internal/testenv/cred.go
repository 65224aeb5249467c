package testenv

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Cred is who a function runs as.
type Cred struct {
	UID, GID int
	Groups   []int // supplementary groups
	Umask    int
}

// Root is the superuser with an umask of 0.
func Root() Cred { return Cred{} }

// RunAs runs f as another user, on a thread of its own that ends with it, and returns f's error. The other threads of
// the process keep their identity. f must not start goroutines, call test functions that end a goroutine, or use
// /proc/self.
func RunAs(c Cred, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its identity with it.
		runtime.LockOSThread()
		if err := become(c); err != nil {
			done <- fmt.Errorf("become uid %d: %w", c.UID, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func become(c Cred) error {
	// The umask belongs to the file system context that threads share.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	unix.Umask(c.Umask)
	if err := unix.Setgroups(c.Groups); err != nil {
		return err
	}
	// Raw calls: those of the syscall package change all threads.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(c.GID), uintptr(c.GID), uintptr(c.GID)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(c.UID), uintptr(c.UID), uintptr(c.UID)); e != 0 {
		return e
	}
	return nil
}
