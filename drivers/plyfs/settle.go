package plyfs

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// settleWithin bounds how long an unmount waits for a server that does not answer.
const settleWithin = 2 * time.Second

// settle waits until the server of the mount on target has fetched all that was written through mappings, which an unmount before
// Linux 6.18 drops otherwise; see fusefs.FS.Settle. It asks the mount itself: a server has no socket from its first moment on. A server that
// ended has nothing to lose any more. The error wraps drivers.ErrHangs for one that does not answer: a thread waits on, and keeps the mount
// busy. Else it is the context's.
func (m *mounter) settle(ctx context.Context, target string) error {
	late := time.After(settleWithin)
	for {
		answered := make(chan struct{})
		earlier, waiting := m.unanswered.LoadOrStore(target, answered)
		if waiting {
			// That of an unmount that gave up: what was written since comes behind it. Another thread each time would be one too many.
			answered = earlier.(chan struct{})
		} else {
			go func() {
				defer close(answered)
				defer m.unanswered.Delete(target)
				var st unix.Statfs_t
				_ = unix.Statfs(target, &st)
			}()
		}
		select {
		case <-answered:
			if !waiting {
				return nil
			}
		case <-late:
			return fmt.Errorf("the mount on %s is %w; if it stays so, end its process", target, drivers.ErrHangs)
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", target, ctx.Err())
		}
	}
}
