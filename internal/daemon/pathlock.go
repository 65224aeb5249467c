package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockTimeout is long for what is done under the lock, which is a connect, an unlink and a bind.
	lockTimeout = 10 * time.Second
	lockRetry   = 5 * time.Millisecond
)

// lockPath excludes other daemons that are about to make or remove the socket at path. Between the check that nobody serves a
// socket and its removal another daemon could have put its own there. The lock is a file that is gone again afterwards; locking the
// directory would let everyone who may read it keep us waiting.
func lockPath(ctx context.Context, path string) (unlock func() error, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	name := path + ".lock"
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, socketMode)
		if err != nil {
			return nil, fmt.Errorf("lock of a socket: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, name) {
			return func() error { return errors.Join(os.Remove(name), f.Close()) }, nil
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: another process holds it; end that one: %w", name, context.Cause(ctx))
		case <-time.After(lockRetry):
		}
	}
}

// isAt reports whether name still is the open file: the last holder may have removed it after this process opened it.
func isAt(f *os.File, name string) bool {
	var open, there unix.Stat_t
	return unix.Fstat(int(f.Fd()), &open) == nil && unix.Lstat(name, &there) == nil && open.Dev == there.Dev && open.Ino == there.Ino
}
