package sys

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// How long UnmountSoon waits for a mount that is busy, and how often it looks.
const (
	unmountWait = time.Second
	unmountPoll = 2 * time.Millisecond
)

// UnmountSoon unmounts what may be busy for a moment: a process that is being started holds all descriptors of this one until it
// has become another program. It follows no symlink, and returns EBUSY for what is still busy after a second.
func UnmountSoon(target string) error {
	for deadline := time.Now().Add(unmountWait); ; time.Sleep(unmountPoll) {
		err := Retry(func() error { return unix.Unmount(target, unix.UMOUNT_NOFOLLOW) })
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
