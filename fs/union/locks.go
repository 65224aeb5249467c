package union

// TakeLocks takes each lock of the union that requests hold, and gives it back before it takes the next: it returns when it has had all
// of them, and never if one was lost, as by a request that panicked. Left out are the locks that are held for as long as files are copied
// or synced (sync.run, and quota.running and quota.sweeping), and those of nodes without a name.
func (u *Union) TakeLocks() {
	u.renameMu.Lock()
	u.renameMu.Unlock() //nolint:staticcheck // it was free: that is all there is to know, here and below
	for i := range u.moving {
		u.moving[i].Lock()
		u.moving[i].Unlock() //nolint:staticcheck // see above
	}
	u.sync.mu.Lock()
	u.sync.mu.Unlock() //nolint:staticcheck // see above
	if u.quota != nil {
		u.quota.mu.Lock()
		u.quota.mu.Unlock() //nolint:staticcheck // see above
	}
	u.Stats() // which counts descriptors under the locks of their caches
	for _, n := range u.named() {
		n.copyMu.Lock()
		n.copyMu.Unlock() //nolint:staticcheck // see above
		if n.dir != nil {
			n.dir.mu.Lock()
			n.dir.mu.Unlock() //nolint:staticcheck // see above
		}
	}
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
