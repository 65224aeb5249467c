package fusefs

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// opened is the answer to OPEN and CREATE; file handles are not used.
type opened struct {
	flags   uint32
	backing int32
}

// backingKind says how the open files of a node id get at their data.
type backingKind uint8

const (
	backingNone   backingKind = iota // nothing decided
	backingLower                     // the kernel reads a lower file
	backingUpper                     // the kernel reads and writes the upper file
	backingCached                    // through the page cache and this process: the kernel refused the file
)

// openState is the passthrough state of one node id. The backing id is kept until the kernel forgets the node, so
// that opening a file again takes no system call. Every file that is open through one kernel inode must have the same
// backing file (cf. fs/fuse/iomode.c fuse_inode_uncached_io_start); opens says whether there is any.
type openState struct {
	// copies counts copy-ups of the node. It is compared around a call into the union, which must not be made
	// under mu: that call may copy up, and copiedUp locks mu.
	copies atomic.Uint64
	gone   atomic.Bool // the id is stale; set under mu
	// flagged says that flags of chattr(1) were set: the kernel opens the backing file by itself and does not heed them,
	// so that each open for writing has to be tried here first.
	flagged atomic.Bool
	// mappable says that the upper file was open for reading and writing. What is stored to a mapping of it changes its
	// times and blocks, and no request tells of that.
	mappable atomic.Bool

	mu      sync.Mutex
	kind    backingKind
	backing int32
	opens   int
	// retries are the last threads that were answered ESTALE; nil for most nodes.
	retries  []retry
	retryAge uint32 // which of them goes next, modulo their number
}

const (
	lookupThreads = 64 // counts of lookups, which threads share by their ids
	retryThreads  = 16
)

// retry says that the thread pid was answered ESTALE when the count of its lookups was at.
type retry struct {
	pid uint32
	at  uint64
}

// retriedLocked reports whether r was noted before, and notes it. Precondition: o.mu is held.
func (o *openState) retriedLocked(r retry) bool {
	i := slices.IndexFunc(o.retries, func(x retry) bool { return x.pid == r.pid })
	switch {
	case i >= 0 && o.retries[i] == r:
		return true
	case i >= 0:
		o.retries[i] = r
	case len(o.retries) < retryThreads:
		o.retries = append(o.retries, r)
	default:
		o.retries[o.retryAge%retryThreads] = r
		o.retryAge++
	}
	return false
}

// stale reports whether the node has got another id; see the package documentation.
func (s *slot) stale() bool {
	o := s.open.Load()
	return o != nil && o.gone.Load()
}

// mappable reports whether a mapping may change the node's attributes behind the kernel's cache of them.
func (s *slot) mappable() bool {
	o := s.open.Load()
	return o != nil && o.mappable.Load()
}

func (s *slot) openState() *openState {
	if o := s.open.Load(); o != nil {
		return o
	}
	s.open.CompareAndSwap(nil, new(openState))
	return s.open.Load()
}

// openBacking answers an OPEN in passthrough mode.
func (f *FS) openBacking(n *union.Node, s *slot, want union.Access, pid uint32, out *opened) fuse.Status {
	o := s.openState()
	if want == union.ForWriting && o.flagged.Load() {
		// The backing file that reuseBacking would hand out may be older than the flags: another open tells what they forbid.
		file, _, err := f.u.Backing(n, union.ForWriting)
		if err != nil {
			return f.status("open", err)
		}
		file.Close()
	}
	for {
		copies := o.copies.Load()
		if done, code := f.reuseBacking(o, s, want, pid, out); done {
			return code
		}
		file, upper, err := f.u.Backing(n, want)
		if err != nil {
			return f.status("open", err)
		}
		o.mu.Lock()
		// Else it was copied up meanwhile, perhaps by this very call: everything may look different now.
		if o.copies.Load() == copies && o.kind == backingNone {
			kind := backingLower
			if upper {
				kind = backingUpper
			}
			f.registerBackingLocked(o, file.FD(), kind)
		}
		o.mu.Unlock()
		file.Close()
	}
}

// registerBackingLocked makes the open file fd, of this kind, the backing file of an id. Precondition: o.mu is held.
func (f *FS) registerBackingLocked(o *openState, fd int, kind backingKind) {
	var err error
	if o.backing, err = sys.BackingOpen(f.dev.Load().Fd(), fd); err != nil {
		kind = backingCached
		f.warned.Do(func() {
			f.log.Warn("passthrough refused for a file, which is served without", "error", err)
		})
	}
	o.kind = kind
}

// reuseBacking answers an OPEN from what is known already, or reports that something has to be opened first.
func (f *FS) reuseBacking(o *openState, s *slot, want union.Access, pid uint32, out *opened) (bool, fuse.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone.Load() {
		if !o.retriedLocked(retry{pid, f.lookups[pid%lookupThreads].Load()}) {
			return true, fuse.Status(unix.ESTALE)
		}
		// No lookup came between: a reopen of /proc/self/fd/N, which the kernel has no path to retry with.
		switch {
		case o.kind == backingLower && o.opens == 0:
			f.dropBackingLocked(o)
		case o.kind == backingLower && want == union.ForWriting:
			// The lower must never be opened for writing, and the inode cannot have a second file.
			return true, fuse.Status(unix.ESTALE)
		case o.kind == backingLower:
			// Reads come here and find the new content; only a mapping shows the lower.
			o.opens++
			*out = opened{fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, o.backing}
			return true, fuse.OK
		}
	}
	switch o.kind {
	case backingUpper:
		*out = opened{fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH, o.backing}
		if want == union.ForWriting && s.setIDSeen.Load() {
			// The kernel writes a backing file with this process's privileges, which keeps set-id bits
			// (cf. fs/attr.c setattr_should_drop_suidgid). Writes have to come here to clear them.
			out.flags |= fuse.FOPEN_DIRECT_IO
		}
	case backingLower:
		if want == union.ForWriting {
			return false, fuse.OK
		}
		*out = opened{fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH, o.backing}
	case backingCached:
		*out = opened{flags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
	default:
		return false, fuse.OK
	}
	o.opens++
	return true, fuse.OK
}

// noteMappable is called after a file of s was opened with flags, and reports whether the kernel has to drop the attributes
// that it cached until now; see openState.mappable.
func (s *slot) noteMappable(flags uint32, o *opened) bool {
	return flags&unix.O_ACCMODE == unix.O_RDWR && o.flags&fuse.FOPEN_PASSTHROUGH != 0 && !s.openState().mappable.Swap(true)
}

// release notes that one file of an id was closed; the kernel has let go of the backing file by then (cf.
// fs/fuse/file.c fuse_file_put).
func (f *FS) release(id uint64) {
	s := f.table.slot(id)
	if s == nil {
		return
	}
	o := s.open.Load()
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.opens > 0 {
		o.opens--
	}
}

// copiedUp is told by the union that the data of n moved to the upper.
func (f *FS) copiedUp(n *union.Node) {
	if f.modeNow() != modePassthrough {
		return
	}
	id := f.table.current(n)
	if id == 0 {
		return
	}
	s := f.table.slot(id)
	if s == nil {
		return
	}
	o := s.open.Load()
	if o == nil || s.node.Load() != n {
		return // whoever opens it from now on gets the upper
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.copies.Add(1)
	switch {
	case o.kind == backingLower && o.opens > 0:
		o.gone.Store(true)
		f.table.detach(n, id)
		f.counts.stale.Add(1)
		f.notices.attr(id)
	case o.kind == backingLower, o.kind == backingCached && o.opens == 0:
		f.dropBackingLocked(o)
	}
}

// dropBackingLocked forgets the backing file of an id that has no file open. Precondition: o.mu is held.
func (f *FS) dropBackingLocked(o *openState) {
	if o.kind == backingLower || o.kind == backingUpper {
		if err := sys.BackingClose(f.dev.Load().Fd(), o.backing); err != nil {
			f.log.Debug("backing id not closed", "error", err)
		}
	}
	o.kind, o.backing = backingNone, 0
}

// closeBacking gives the backing file of a forgotten id back.
func (f *FS) closeBacking(o *openState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.dropBackingLocked(o)
}
