package fusefs

import (
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
)

// notifier tells the kernel what it cannot know. Notifications are written by a goroutine of their own: the request
// that causes one may hold, in the kernel, what the notification has to wait for.
type notifier struct {
	mu      sync.Mutex
	pending map[uint64]struct{} // node ids whose attributes are to be dropped
	wake    chan struct{}
	done    chan struct{}
	gone    sync.WaitGroup
}

func (n *notifier) start(f *FS, fd int) {
	n.pending = make(map[uint64]struct{})
	n.wake = make(chan struct{}, 1)
	n.done = make(chan struct{})
	n.gone.Go(func() { n.run(f, fd) })
}

func (n *notifier) stop() {
	close(n.done)
	n.gone.Wait()
}

// attr drops the cached attributes of id, soon.
func (n *notifier) attr(id uint64) {
	n.mu.Lock()
	n.pending[id] = struct{}{}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// corrected drops the cached attributes of n at once: a request that is being handled may depend on them.
func (f *FS) corrected(n *union.Node) {
	dev := f.dev.Load()
	id := f.table.current(n)
	if id == 0 || dev == nil {
		return
	}
	f.dropAttrs(dev.Fd(), id)
}

// dropAttrs drops the cached attributes of id, which the kernel may have forgotten meanwhile.
func (f *FS) dropAttrs(fd int, id uint64) { f.notify(fd, id, noPages) }

// notify is invalInode for an id that the kernel may have forgotten meanwhile.
func (f *FS) notify(fd int, id uint64, off int64) {
	if err := invalInode(fd, id, off); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		f.log.Warn("notification refused", "node", id, "error", err)
	}
	f.counts.notices.Add(1)
}

// moved drops the listing that the kernel cached of a directory that lies in another one now. Its ".." changed, and nothing else by which
// the kernel would know: neither its modification time nor its iversion (cf. fs/fuse/readdir.c fuse_readdir_cached).
func (f *FS) moved(dir *union.Node) {
	dev := f.dev.Load()
	id := f.table.current(dir)
	if id == 0 || dev == nil || !f.keep {
		return
	}
	f.notify(dev.Fd(), id, 0)
}

func (n *notifier) run(f *FS, fd int) {
	for {
		select {
		case <-n.done:
			return
		case <-n.wake:
		}
		n.mu.Lock()
		ids := n.pending
		n.pending = make(map[uint64]struct{})
		n.mu.Unlock()
		for id := range ids {
			f.dropAttrs(fd, id)
		}
	}
}

// noPages is the offset with which invalInode drops no page. The kernel then takes no lock that a request could hold (cf. fs/fuse/inode.c
// fuse_reverse_inval_inode), so handlers may do so for an inode that their caller keeps alive.
const noPages = -1

// invalAttr drops the attributes and ACLs of id but no page.
func invalAttr(fd int, id uint64) error { return invalInode(fd, id, noPages) }

// invalInode drops the attributes and ACLs of id, and the pages from off on: of a directory, its listing.
func invalInode(fd int, id uint64, off int64) error {
	const notifyInvalInode = 2
	const size = 16 + 24
	var b [size]byte
	binary.NativeEndian.PutUint32(b[0:], size)
	binary.NativeEndian.PutUint32(b[4:], notifyInvalInode)
	binary.NativeEndian.PutUint64(b[16:], id)
	binary.NativeEndian.PutUint64(b[24:], uint64(off))
	_, err := unix.Write(fd, b[:])
	return err
}
