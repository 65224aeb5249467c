package fusefs

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// reclaimAfter is how many forgotten node ids are worth a collection: some ten megabytes.
	reclaimAfter = 32768
	// reclaimDelay lets a burst of forgets, as of a large tree that was removed, come to its end.
	reclaimDelay = 2 * time.Second
)

// reclaimer gives memory back to the system after the kernel forgot many nodes. An idle server makes no garbage, so the runtime would
// not collect for minutes.
type reclaimer struct {
	forgotten atomic.Int64
	armed     atomic.Bool
}

// forgot counts one node id that was freed.
func (r *reclaimer) forgot() {
	if r.forgotten.Add(1) < reclaimAfter || !r.armed.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(reclaimDelay, func() {
		r.forgotten.Store(0)
		r.armed.Store(false)
		debug.FreeOSMemory()
	})
}
