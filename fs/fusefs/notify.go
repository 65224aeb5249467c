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
	f.notify(dev.Fd(), id, onlyAttrs)
}

// notify is invalInode of an id that the kernel may have forgotten meanwhile.
func (f *FS) notify(fd int, id uint64, page int64) {
	if err := invalInode(fd, id, page); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
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
	f.notify(dev.Fd(), id, 0) // without its first page a listing is of no use
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
			f.notify(fd, id, onlyAttrs)
		}
	}
}

// onlyAttrs is no page. With a negative offset the kernel takes no lock that a request could hold (cf. fs/fuse/inode.c
// fuse_reverse_inval_inode), so handlers may call invalInode with it for an inode that their caller keeps alive.
const onlyAttrs = -1

// invalInode drops the attributes and ACLs of id, and the page in which the offset page lies. Handlers may do that to a directory:
// who holds a page of its listing waits for the server at most to read a file, into whose mapping the listing goes.
func invalInode(fd int, id uint64, page int64) error {
	const notifyInvalInode = 2
	const size = 16 + 24
	var b [size]byte
	binary.NativeEndian.PutUint32(b[0:], size)
	binary.NativeEndian.PutUint32(b[4:], notifyInvalInode)
	binary.NativeEndian.PutUint64(b[16:], id)
	binary.NativeEndian.PutUint64(b[24:], uint64(page))
	binary.NativeEndian.PutUint64(b[32:], 1)
	_, err := unix.Write(fd, b[:])
	return err
}
