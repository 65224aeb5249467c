package fusefs

import (
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// ErrLockLost says that a request panicked with a lock that others need: they wait for ever.
var ErrLockLost = errors.New("a request that panicked has kept a lock")

// lockWait is how long, after a panic, a lock may be held until it is taken for lost. Under a lock are single system calls, which a
// slow medium may hold up, and never the copying of data.
const lockWait = 20 * time.Second

// panicked turns a panic in a handler into EIO, so that a defect in one operation does not take the mount away. Most handlers give their
// locks back when they panic; whether this one did is found out.
func (f *FS) panicked(reason any) fuse.Status {
	f.counts.panics.Add(1)
	f.log.Error("panic in a request, answered EIO", "panic", reason, "stack", string(debug.Stack()))
	if f.doubts.begin() {
		go f.checkLocks()
	}
	return fuse.EIO
}

// checkLocks tells Config.Stuck if a lock is lost. It looks again if there was another panic meanwhile.
func (f *FS) checkLocks() {
	for {
		upTo := f.doubts.n.Load()
		free := make(chan struct{})
		go func() {
			defer close(free)
			f.table.takeLocks()
			f.u.TakeLocks()
		}()
		late := time.NewTimer(f.lockWait)
		select {
		case <-free:
			late.Stop()
		case <-late.C:
			f.log.Error("requests wait for a lock that nobody gives back")
			if f.cfg.Stuck != nil {
				f.cfg.Stuck(ErrLockLost)
			}
			return
		}
		if f.doubts.end(upTo) {
			return
		}
	}
}

// doubts counts the panics behind which it is not known yet whether all locks were given back.
type doubts struct{ n atomic.Uint64 }

// begin counts one more, and reports whether nobody is finding out.
func (d *doubts) begin() bool { return d.n.Add(1) == 1 }

// end settles those that were counted up to n, and reports whether there are no others.
func (d *doubts) end(n uint64) bool { return d.n.CompareAndSwap(n, 0) }
