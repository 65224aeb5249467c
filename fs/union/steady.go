package union

import "sync"

// nameLocks is the number of locks that nodes share for steady, each with those of the same spread.
const nameLocks = 256

// namesLock is the lock of the names of n, which is no directory. A name changes in the layers first and in the tree a moment
// later: whoever changes one holds the lock for writing, and whoever reaches n by its name in a layer for reading, so that the two
// agree.
func (u *Union) namesLock(n *Node) *sync.RWMutex { return &u.moving[n.spread%nameLocks] }

// steady keeps the names of n as they are until unsteady. For a directory it does nothing: renameMu keeps its names. Precondition:
// renameMu is held, and no other node is held steady.
func (u *Union) steady(n *Node) {
	if n.dir == nil {
		u.namesLock(n).RLock()
	}
}

// trySteady is steady for a caller that may hold another node steady: it returns false instead of waiting.
func (u *Union) trySteady(n *Node) bool { return n.dir != nil || u.namesLock(n).TryRLock() }

// unsteady ends steady.
func (u *Union) unsteady(n *Node) {
	if n.dir == nil {
		u.namesLock(n).RUnlock()
	}
}

// holdNames keeps others from reaching the nodes that move by their names, until release is called. A change of topology needs
// nothing: it holds renameMu for writing.
func (r *rename) holdNames() (release func()) {
	if r.topology() {
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
