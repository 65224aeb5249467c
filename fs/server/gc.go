package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// A server allocates nodes, which live as long as the kernel knows them, and little garbage. With Go's defaults a small heap is
// collected over and over while it grows, in the middle of the first walk of a tree, and a large one keeps as much again for garbage
// that never comes.
const (
	// gcRoom is the garbage, in bytes, that may always gather.
	gcRoom = 12 << 20
	// gcPercent is by how much a large heap may grow between collections.
	gcPercent = 40
	// gcMost is the percentage with which a heap that is empty is first collected at gcRoom (cf. Go's runtime mgcpacer.go
	// defaultHeapMinimum).
	gcMost = gcRoom * 100 / (4 << 20)
)

// paceCollector sets the pace of the garbage collector, now and after each collection, unless the environment did.
func paceCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(gcMost)
	afterCollection(gcMost)
}

// afterCollection adapts the pace when the running or next collection has ended: a finalizer tells of it.
func afterCollection(now int) {
	runtime.SetFinalizer(&struct{ pace *int }{new(int)}, func(any) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		next := now
		if live[0].Value.Kind() == metrics.KindUint64 {
			next = gcPace(live[0].Value.Uint64())
		}
		if next != now {
			debug.SetGCPercent(next)
		}
		afterCollection(next)
	})
}

// gcPace is the percentage for a heap with that many live bytes.
func gcPace(live uint64) int {
	return int(min(gcMost, max(gcPercent, gcRoom*100/max(live, 1))))
}
