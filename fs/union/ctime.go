package union

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// What the union does to an upper object on its own account, like a copy-up in a directory or the end of a mark, gives that a new
// ctime. The kernel goes on using the old one until it has a reason to ask, and reading is one: an archiver, which looks before and
// behind, would find that a file changed as it was read, and fail. So the old one is shown until an application changes something.

// reworked is what is known of an object that the union works on, or did, on its own account. Few nodes have one.
type reworked struct {
	inflight chan struct{} // guarded by copyMu; closed when the running copy-up ends, nil if there is none
	last     atomic.Pointer[ownChange]
}

// rework returns it, and makes it if need be.
func (n *Node) rework() *reworked {
	if r := n.reworked.Load(); r != nil {
		return r
	}
	n.reworked.CompareAndSwap(nil, new(reworked))
	return n.reworked.Load()
}

// ownChange is the last change of the union's own.
type ownChange struct {
	// ctime and mtime are those that the change left.
	ctime, mtime sys.Time
	shown        sys.Time
}

// shownCtime is what the mount shows as the ctime of n, for which the layer says st.
func (n *Node) shownCtime(st *unix.Statx_t) sys.Time {
	ctime := sys.TimeOf(st.Ctime)
	var o *ownChange
	if r := n.reworked.Load(); r != nil {
		o = r.last.Load()
	}
	// Where the kernel's clock is coarse, data that is written right after has the same ctime, and its own mtime.
	if o != nil && o.ctime == ctime && o.mtime == sys.TimeOf(st.Mtime) {
		return o.shown
	}
	return ctime
}

// hideOwnChange makes the mount go on showing the ctime of n, though the union made what the layer said before into after. What
// an application changed meanwhile shows.
func (n *Node) hideOwnChange(before, after *unix.Statx_t) {
	if before.Mtime != after.Mtime || before.Mode != after.Mode || before.Uid != after.Uid || before.Gid != after.Gid ||
		!n.IsDir() && before.Nlink != after.Nlink {
		return
	}
	n.rework().last.Store(&ownChange{ctime: sys.TimeOf(after.Ctime), mtime: sys.TimeOf(after.Mtime), shown: n.shownCtime(before)})
}

// showCtime ends that: an application changed n, perhaps within the same tick of the kernel's clock.
func (n *Node) showCtime() {
	if r := n.reworked.Load(); r != nil {
		r.last.Store(nil)
	}
}

// hideCtimes hides what the copy-up made of the ctime of the directory that it published a name in, and of the directory that it
// copied. Other objects are copied for an application that changes them.
func (c *copyUp) hideCtimes(l link, parent int, before *unix.Statx_t) {
	var after unix.Statx_t
	if sys.Statx(parent, "", &after) == nil {
		l.parent.hideOwnChange(before, &after)
	}
	if c.n.IsDir() && c.from.dir != nil && c.u.upper.Override() == "" && sys.Statx(parent, l.name, &after) == nil {
		c.n.hideOwnChange(&c.st, &after)
	}
}
