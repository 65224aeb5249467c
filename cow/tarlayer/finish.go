package tarlayer

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxPending is how many files of a batch are left open for the finisher: with all batches it must be well below the
// 1024 descriptors that a process may have by default.
const maxPending = 64

// pending is a regular file that was made and is open, and lacks content, owner, mode and times.
type pending struct {
	entry  entry // by its descriptor
	ob     object
	member string
}

// finisher completes small files in a goroutine of its own: making names takes about as long as filling files, and the
// kernel does the two side by side, the one under the lock of a directory, the other under that of a file. It works on
// descriptors alone, so that nothing depends on what becomes of the names meanwhile.
type finisher struct {
	a    *applier
	full chan *batch
	// free is where batches go whose content is written.
	free chan<- *batch
	done sync.WaitGroup
	// failed is set when there is nothing to do any more but to close files.
	failed atomic.Bool
	// err is the first error; to be read when the goroutine has ended.
	err error
}

func newFinisher(a *applier, free chan<- *batch) *finisher {
	f := &finisher{a: a, full: make(chan *batch, batches), free: free}
	f.done.Go(f.run)
	return f
}

func (f *finisher) run() {
	for b := range f.full {
		for i := range b.pending {
			f.finish(&b.pending[i])
		}
		clear(b.pending)
		b.pending = b.pending[:0]
		f.free <- b // never blocks: there are as many places as batches
	}
}

func (f *finisher) finish(p *pending) {
	defer unix.Close(p.entry.at)
	if f.failed.Load() {
		return
	}
	if err := f.a.fill(p); err != nil {
		f.err = fmt.Errorf("%s: %w", quoteShort(p.member), err)
		f.failed.Store(true)
	}
}

// take takes over a batch that was passed through. It does not block.
func (f *finisher) take(b *batch) { f.full <- b }

// end waits until all files are finished, or closed after an error, and returns the error. No batch may be taken any
// more.
func (f *finisher) end() error {
	close(f.full)
	f.done.Wait()
	return f.err
}

// fill completes a file. It runs in the finisher's goroutine, and so must not change the applier.
func (a *applier) fill(p *pending) error {
	end, err := a.writeSpans(p.entry.at, p.ob.data, 0)
	if err == nil && end < p.ob.size {
		err = a.m.Truncate(p.entry.at, p.ob.size)
	}
	if err != nil {
		return err
	}
	return a.dress(p.entry, &p.ob)
}

// leave leaves a file that was just made to the finisher, if it can: its whole content is in the current batch, and neither extended
// attributes nor ACLs are to be set. It says whether it did; the descriptor in e is the finisher's then.
func (a *applier) leave(e entry, ob *object) bool {
	if len(ob.data) == 0 || len(ob.xattrs) > 0 || e.inherits || a.override != "" || len(a.in.cur.pending) == maxPending {
		return false
	}
	a.in.cur.pending = append(a.in.cur.pending, pending{entry: e, ob: *ob, member: a.name})
	return true
}
