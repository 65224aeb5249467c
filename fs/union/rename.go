package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
)

// Rename moves (odir, oname) to (ndir, nname), with the flags of renameat2(2). A directory of lower layers moves in O(1):
// its upper records where the lowers keep it. EXDEV where that is switched off or cannot be recorded.
func (u *Union) Rename(c *Caller, odir *Node, oname string, ndir *Node, nname string, flags uint32) error {
	if err := checkName(nname); err != nil {
		return err
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 ||
		flags&unix.RENAME_EXCHANGE != 0 && flags != unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	if u.work == nil {
		return unix.EROFS
	}
	r := &rename{
		u: u, caller: c, from: place{parent: odir, name: oname}, to: place{parent: ndir, name: nname},
		exchange: flags&unix.RENAME_EXCHANGE != 0, leaveWhiteout: flags&unix.RENAME_WHITEOUT != 0,
	}
	defer r.forget()
	if err := r.find(flags&unix.RENAME_NOREPLACE != 0); err != nil {
		return err
	}
	if r.src == r.dst {
		return nil
	}
	if err := r.run(); err != nil {
		return err
	}
	r.tellMoved()
	return nil
}

// run is Rename when what has the two names is known.
func (r *rename) run() error {
	if err := r.prepare(); err != nil {
		return err
	}
	r.u.quota.enter()
	defer r.u.quota.leave()
	r.lock()
	defer r.unlock()
	if err := r.check(); err != nil {
		return err
	}
	defer r.holdNames()()
	if err := r.mark(); err != nil {
		return err
	}
	if r.leaveWhiteout {
		return r.actLeaving()
	}
	if err := r.act(); err != nil {
		return err
	}
	r.settle()
	return nil
}

// tellMoved tells the observer of the directories that have another parent now. No lock is held.
func (r *rename) tellMoved() {
	o := r.u.opt.Observer
	if o == nil || r.from.parent == r.to.parent {
		return
	}
	if r.src.IsDir() {
		o.Moved(r.src)
	}
	if r.exchange && r.dst.IsDir() {
		o.Moved(r.dst)
	}
}

// rename is one running rename: prepared without locks, marked and acted under them (cf. overlayfs dir.c ovl_rename).
type rename struct {
	u      *Union
	caller *Caller
	// exchange is RENAME_EXCHANGE; leaveWhiteout is RENAME_WHITEOUT: an application's own whiteout gets the old name.
	exchange, leaveWhiteout bool

	// from is the old name, to the new one. Under the locks check opens their directories, and finds what else is known of them.
	from, to place
	src, dst *Node // what has the two names; dst is nil for a free one
	// form is what Union.whiteouts says, if a whiteout comes or goes.
	form whiteoutForm
	// takeAway says that the directory dst can't be made empty, so it has to leave its name before src gets it.
	takeAway bool
}

// topology says whether a directory moves.
func (r *rename) topology() bool { return r.src.IsDir() || r.dst != nil && r.dst.IsDir() }

// find looks both names up.
func (r *rename) find(noReplace bool) (err error) {
	u := r.u
	if r.from.parent.dir == nil || r.to.parent.dir == nil {
		return unix.ENOTDIR
	}
	if r.src, err = u.find(r.from.parent, r.from.name); err != nil {
		return err
	}
	r.dst, err = u.find(r.to.parent, r.to.name)
	switch {
	case errors.Is(err, unix.ENOENT):
		if r.exchange {
			return err
		}
		r.dst = nil
	case err != nil:
		return err
	case noReplace:
		return unix.EEXIST
	case r.exchange || r.src == r.dst:
	case r.dst.IsDir() && !r.src.IsDir():
		return unix.EISDIR
	case !r.dst.IsDir() && r.src.IsDir():
		return unix.ENOTDIR
	}
	return nil
}

func (r *rename) forget() {
	if r.src != nil {
		r.u.Forget(r.src, 1)
	}
	if r.dst != nil {
		r.u.leaveBatch(r.dst)
		r.u.Forget(r.dst, 1)
	}
}

// prepare copies up what moves and where it moves. No lock is held.
func (r *rename) prepare() error {
	u := r.u
	moving := []*Node{r.src}
	if r.exchange {
		moving = append(moving, r.dst)
	}
	for _, n := range moving {
		if err := u.movable(n); err != nil {
			return err
		}
	}
	for _, n := range append(moving, r.from.parent, r.to.parent) {
		if err := u.copyUpMeta(n); err != nil {
			return err
		}
	}
	if err := u.linkUp(r.src, r.from.parent, r.from.name); err != nil {
		return err
	}
	if r.dst == nil {
		return nil
	}
	if r.exchange {
		return u.linkUp(r.dst, r.to.parent, r.to.name)
	}
	return u.prepareUnlink(r.dst, r.to.parent, r.to.name)
}

// movable says whether n can move; EXDEV for a directory of lowers where redirects are off.
func (u *Union) movable(n *Node) error {
	if !n.IsDir() {
		return nil
	}
	if n == u.root {
		return unix.EBUSY
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	if err := u.resolveLocked(n); err != nil {
		return err
	}
	if len(n.dir.lowers) > 0 && (u.opt.RedirectDir != RedirectOn || u.names == nil) {
		return unix.EXDEV
	}
	return nil
}

func (r *rename) lock() {
	u := r.u
	if r.topology() {
		u.renameMu.Lock()
	} else {
		u.renameMu.RLock()
	}
	a, b := r.from.parent, r.to.parent
	if a == b {
		a.dir.mu.Lock()
		return
	}
	if u.isAncestor(b, a) || !u.isAncestor(a, b) && b.ino.Load() < a.ino.Load() {
		a, b = b, a
	}
	a.dir.mu.Lock()
	b.dir.mu.Lock()
}

func (r *rename) unlock() {
	for _, f := range []*layer.File{r.from.dir, r.to.dir} {
		if f != nil {
			f.Close()
		}
	}
	r.from.parent.dir.mu.Unlock()
	if r.to.parent != r.from.parent {
		r.to.parent.dir.mu.Unlock()
	}
	if r.topology() {
		r.u.renameMu.Unlock()
	} else {
		r.u.renameMu.RUnlock()
	}
}

// isAncestor says whether a is b or above it. Precondition: renameMu is held.
func (u *Union) isAncestor(a, b *Node) bool {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	for ; b != nil; b = b.link.parent {
		if a == b {
			return true
		}
	}
	return false
}

// check repeats under the locks what find saw, and opens the two directories.
func (r *rename) check() (err error) {
	u, from, to := r.u, &r.from, &r.to
	u.treeMu.Lock()
	same := from.parent.dir.children[from.name] == r.src && to.parent.dir.children[to.name] == r.dst
	u.treeMu.Unlock()
	switch {
	case from.parent.dir.dead || to.parent.dir.dead:
		return unix.ENOENT
	case !same:
		return unix.ESTALE // lost a race: the front end looks up again
	case r.src.IsDir() && u.isAncestor(r.src, to.parent):
		return unix.EINVAL
	case r.dst != nil && r.dst.IsDir() && u.isAncestor(r.dst, from.parent):
		if r.exchange {
			return unix.EINVAL
		}
		return unix.ENOTEMPTY
	}
	if err := u.resolveLocked(from.parent); err != nil {
		return err
	}
	if err := u.resolveLocked(to.parent); err != nil {
		return err
	}
	if from.dir, err = u.dirUpper(from.parent); err != nil {
		return err
	}
	if to.dir, err = u.dirUpper(to.parent); err != nil {
		return err
	}
	u.quota.grow(from.parent, from.dir.FD(), from.name)
	u.quota.grow(to.parent, to.dir.FD(), to.name)
	if from.below, err = u.lowerHasLocked(from.parent, from.name); err != nil {
		return err
	}
	if to.below, err = u.lowerHasLocked(to.parent, to.name); err != nil {
		return err
	}
	if r.dst == nil {
		return u.examine(to)
	}
	if r.dst.IsDir() && !r.exchange {
		return r.checkEmpty()
	}
	return nil
}

// mark records, before anything moves, what the moved objects need at their new places: each mark is true at the old
// place too.
func (r *rename) mark() error {
	if err := r.markOne(r.src, &r.to); err != nil {
		return err
	}
	if r.exchange {
		return r.markOne(r.dst, &r.from)
	}
	return nil
}

// markOne marks n, which is about to move to p.
func (r *rename) markOne(n *Node, p *place) error {
	u := r.u
	l, err := u.upperLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	switch {
	case n.IsDir() && len(n.dir.lowers) > 0:
		if err := u.setRedirect(n, l, n.dir.view); err != nil {
			return err
		}
	case n.IsDir() && p.below:
		u.quota.mark(n, l, 1)
		if err := u.makeOpaque(l.fd(), l.name); err != nil {
			return err
		}
	case n.has(flagMetacopy):
		if err := u.setRedirect(n, l, n.lower.viewPath()); err != nil {
			return err
		}
	}
	return u.markMoved(n, p, l)
}
