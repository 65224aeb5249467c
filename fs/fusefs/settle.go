package fusefs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrEnded says that the kernel has ended the connection: nothing can come through it any more.
var ErrEnded = errors.New("fusefs: the mount has ended")

// Settle returns when every request that the kernel had for this mount before the call has been fetched, so that none is lost if the mount
// goes away now. A mapping's pages are written behind the back of whoever wrote them, and a kernel before 6.18 waits for their
// WRITE requests at no unmount: those that are not fetched yet are dropped (cf. fs/fuse/dev.c fuse_abort_conn). The queue is first in, first
// out, so the answer to a STATFS says that the server has all that was before it; Serve lets handlers finish.
//
// It takes a look at the mount from outside, for which the mount is busy for that moment. It blocks until ctx ends at most. The error wraps
// ErrEnded if it is too late, ctx's error if there was no answer in time (a thread goes on waiting for it then, and keeps the mount busy), or
// says that this process does not see the mount: it is another's, or not at its place any more.
func (f *FS) Settle(ctx context.Context) error {
	dev := f.dev.Load()
	if dev == nil || !f.serving.Load() {
		return errors.New("fusefs: not serving yet")
	}
	if dev.ended() {
		return ErrEnded
	}
	if now, err := identify(dev.target); dev.target == "" || err != nil || now != dev.mount {
		return errors.New("fusefs: the mount is not at its place, or was made by another")
	}
	if !f.settling.CompareAndSwap(false, true) {
		return errors.New("fusefs: somebody waits for an answer already")
	}
	done := make(chan error, 1)
	go func() {
		defer f.settling.Store(false)
		var st unix.Statfs_t
		done <- unix.Statfs(dev.target, &st)
	}()
	select {
	case err := <-done:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return ErrEnded
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fusefs: no answer from the mount: %w", ctx.Err())
	}
}

// ended reports whether the kernel has ended the connection.
func (d *Device) ended() bool {
	fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}
