package union

import "sync"

// nameLocks is the number of locks that nodes share, by their spread, for steady.
const nameLocks = 256

// namesLock is the lock that is held for reading by who reaches n, which is no directory, by one of its names, and for writing while these
// change: the layers and the tree don't do so at the same moment.
func (u *Union) namesLock(n *Node) *sync.RWMutex { return &u.moving[n.spread%nameLocks] }

// steady keeps the names of n until unsteady; those of a directory, renameMu keeps. Whoever holds one does not wait for another.
func (u *Union) steady(n *Node) {
	if n.dir == nil {
		u.namesLock(n).RLock()
	}
}

// trySteady is steady for who may hold such a lock: it reports false instead of waiting.
func (u *Union) trySteady(n *Node) bool { return n.dir != nil || u.namesLock(n).TryRLock() }

// unsteady ends steady.
func (u *Union) unsteady(n *Node) {
	if n.dir == nil {
		u.namesLock(n).RUnlock()
	}
}

// holdNames keeps everybody from reaching what moves by its names, until what it returns is called. A topology change does so by
// renameMu.
func (r *rename) holdNames() (release func()) {
	if r.topology {
		return func() {}
	}
	a, b := r.src.spread%nameLocks, r.src.spread%nameLocks
	if r.dst != nil {
		b = r.dst.spread % nameLocks
	}
	a, b = min(a, b), max(a, b)
	first, second := &r.u.moving[a], &r.u.moving[b]
	first.Lock()
	if a == b {
		return first.Unlock
	}
	second.Lock()
	return func() {
		second.Unlock()
		first.Unlock()
	}
}
