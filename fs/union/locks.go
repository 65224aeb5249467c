package union

import "sync"

// TakeLocks takes each lock of the union that requests hold, and gives it back before it takes the next: it returns when it has had all
// of them, and never if one was lost, as by a request that panicked. Left out are the locks that are held for as long as files are copied
// or synced (sync.run, and quota.running and quota.sweeping), and those of nodes without a name.
func (u *Union) TakeLocks() {
	take(&u.renameMu)
	for i := range u.moving {
		take(&u.moving[i])
	}
	take(&u.sync.mu)
	if u.quota != nil {
		take(&u.quota.mu)
	}
	u.Stats() // which counts descriptors under the locks of their caches
	for _, n := range u.named() {
		take(&n.copyMu)
		if n.dir != nil {
			take(&n.dir.mu)
		}
	}
}

// take returns when nobody has the lock.
func take(l sync.Locker) {
	l.Lock()
	defer l.Unlock()
}

// named are the nodes in memory that have a name.
func (u *Union) named() []*Node {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	all := []*Node{u.root}
	for i := 0; i < len(all); i++ {
		if all[i].dir == nil {
			continue
		}
		for _, n := range all[i].dir.children {
			all = append(all, n)
		}
	}
	return all
}
