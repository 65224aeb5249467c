package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
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

// renameat2 is the system call, with the flags of renameat2(2).
func (r *rename) renameat2(flags uint) error {
	return r.u.m.Rename(r.from.dir.FD(), r.from.name, r.to.dir.FD(), r.to.name, flags)
}

// act changes the upper: one renameat2 wherever the file system has the flags for it.
func (r *rename) act() error {
	u := r.u
	if r.exchange {
		return r.renameat2(unix.RENAME_EXCHANGE)
	}
	held, err := r.hold()
	if err != nil {
		return err
	}
	err = r.move()
	switch {
	case err != nil && held:
		u.release(r.dst)
	case err == nil && !r.from.below: // else it went to the old name
		u.replacedWhiteout(&r.to)
	}
	return err
}

// hold keeps what is about to be replaced reachable for those who have it open. held says that a failure has to release it.
func (r *rename) hold() (held bool, err error) {
	u := r.u
	switch {
	case r.dst == nil:
	case r.dst.IsDir():
		if r.dst.has(flagUpper) {
			return false, u.holdDir(r.dst)
		}
	case u.isLastName(r.dst):
		err := u.holdUnlinked(r.dst)
		return err == nil, err
	}
	return false, nil
}

// move is the rename itself, leaving a whiteout where the lowers show the old name.
func (r *rename) move() (err error) {
	u, from, to := r.u, &r.from, &r.to
	if from.below || to.below || r.leaveWhiteout {
		if r.form, err = u.whiteouts(); err != nil {
			return err
		}
	}
	// A file replaces a whiteout by itself. A directory does not, and an old name that needs a whiteout can have this one.
	swap := to.whiteout && (r.src.IsDir() || from.below)
	if swap {
		if err := u.unblock(to); err != nil {
			return err
		}
		swap = to.whiteout
	}
	if r.takeAway {
		if err := r.takeDstAway(); err != nil {
			return err
		}
	}
	switch {
	case swap:
		return r.swapWhiteout()
	case from.below && r.form.bridged():
		err = r.moveBridged()
	case r.form.byRename && (from.below || r.leaveWhiteout):
		if err = r.renameat2(unix.RENAME_WHITEOUT); err == nil {
			u.quota.inodes(1)
		}
		return err
	case from.below:
		return r.moveExchange()
	default:
		err = r.renameat2(0)
	}
	if err == nil && (to.aufs || r.form.aufs && to.below) {
		err = u.dropAUFSWhiteout(to.dir.FD(), to.name)
	}
	return err
}

// swapWhiteout lets the object and the whiteout at the new name change places, and removes the whiteout where no lower shows the
// old name.
func (r *rename) swapWhiteout() error {
	if err := r.renameat2(unix.RENAME_EXCHANGE); err != nil || r.from.below {
		return err
	}
	return ignoreNotExist(r.u.m.Unlink(r.from.dir.FD(), r.from.name))
}

// moveBridged leaves a whiteout without the flags of renameat2: one of the AUFS form is there before the object goes.
func (r *rename) moveBridged() error {
	ofd := r.from.dir.FD()
	if err := r.u.aufsWhiteout(ofd, r.from.name); err != nil {
		return err
	}
	if err := r.renameat2(0); err != nil {
		return err
	}
	r.u.endBridge(r.form, ofd, r.from.name)
	return nil
}

// takeDstAway takes the directory that is to be replaced, and that cannot be made empty, out of the way. A whiteout hides what the lowers
// have of it until src has the name; a kill in between leaves src at its old one.
func (r *rename) takeDstAway() error {
	u := r.u
	if r.to.below {
		if err := u.aufsWhiteout(r.to.dir.FD(), r.to.name); err != nil {
			return err
		}
		r.to.aufs = true
	}
	return u.work.RemoveDir(r.to.dir.FD(), r.to.name)
}

// moveExchange leaves a whiteout on a file system that has no RENAME_WHITEOUT: a whiteout takes the new name first and
// changes places with the object.
func (r *rename) moveExchange() (err error) {
	w, nfd := r.u.work, r.to.dir.FD()
	switch {
	case r.dst == nil || !r.u.linkIsUpper(r.dst, r.to.parent, r.to.name):
		err = w.WhiteoutAt(nfd, r.to.name)
	case r.dst.IsDir():
		err = w.WhiteoutDir(nfd, r.to.name)
	default:
		err = w.WhiteoutFile(nfd, r.to.name)
	}
	if err != nil {
		return err
	}
	return r.renameat2(unix.RENAME_EXCHANGE)
}

// settle brings the tree in step with the layers.
func (r *rename) settle() {
	u, odir, ndir := r.u, r.from.parent, r.to.parent
	r.noteLeft()
	r.src.showCtime()
	if r.exchange {
		r.dst.showCtime()
	}
	if r.dst != nil && !r.exchange {
		r.settleReplaced()
	}
	if r.src.IsDir() {
		odir.dir.countDirLocked(-1)
		ndir.dir.countDirLocked(1)
	}
	if r.dst != nil && r.dst.IsDir() {
		ndir.dir.countDirLocked(-1)
		if r.exchange {
			odir.dir.countDirLocked(1)
		}
	}
	u.treeMu.Lock()
	if r.exchange {
		r.swapLinksLocked()
	} else {
		u.renameLinkLocked(r.src, odir, r.from.name, ndir, r.to.name)
	}
	u.treeMu.Unlock()
	if r.exchange {
		odir.dir.listAddedLocked(r.from.name, r.dst.Mode())
	} else {
		odir.dir.listRemovedLocked(r.from.name)
	}
	ndir.dir.listAddedLocked(r.to.name, r.src.Mode())
}

// settleReplaced takes the new name from what had it.
func (r *rename) settleReplaced() {
	if d := r.dst.dir; d != nil {
		d.mu.Lock()
		d.dead = true
		d.listing = nil
		d.mu.Unlock()
		r.u.unlinked(r.dst)
	}
	r.u.forgetName(r.to.parent, r.to.name, r.dst)
}

// noteLeft remembers a file that syncLeft has to look after. What btrfs exchanges, and directories, its fsync gets right.
func (r *rename) noteLeft() {
	if r.u.upper.FSType == unix.BTRFS_SUPER_MAGIC && r.from.below && !r.exchange && !r.src.IsDir() {
		r.src.set(flagLeft)
	}
}

// swapLinksLocked exchanges the names of src and dst. Precondition: treeMu is held.
func (r *rename) swapLinksLocked() {
	u, odir, ndir := r.u, r.from.parent, r.to.parent
	odir.refs += 2
	ndir.refs += 2
	u.detachLocked(r.src, odir, r.from.name)
	u.detachLocked(r.dst, ndir, r.to.name)
	u.attachLocked(r.src, ndir, r.to.name, true)
	u.attachLocked(r.dst, odir, r.from.name, true)
	// The links' own references moved with them: one each way, and those taken above.
	u.unrefLocked(odir, 3, nil)
	u.unrefLocked(ndir, 3, nil)
}

// actLeaving is act for RENAME_WHITEOUT by a nested overlay: an application's own whiteout, escaped, takes the old name.
// It is staged first, so that one system call is between the rename and its appearance; should that fail, the rename is
// undone where nothing was replaced. A kill in between leaves the plain rename (docs/semantics.md, rename-whiteout).
func (r *rename) actLeaving() error {
	u := r.u
	if u.names == nil {
		return unix.EINVAL
	}
	s := &staged{u: u, fd: -1, o: newObject{mode: unix.S_IFCHR, caller: r.caller}}
	defer s.close()
	p := place{parent: r.from.parent, dir: r.from.dir, name: r.from.name}
	var err error
	if p.hint, err = u.hintLocked(p.parent, p.dir.FD()); err != nil {
		return err
	}
	if err := s.plan(p); err != nil {
		return err
	}
	if err := s.markParent(p); err != nil {
		return err
	}
	if err := s.stage(p); err != nil {
		return err
	}
	if err := s.named(); err != nil {
		return err
	}
	if err := r.act(); err != nil {
		return err
	}
	var left unix.Statx_t
	last := u.quota != nil && sys.Statx(r.from.dir.FD(), r.from.name, &left) == nil && left.Nlink == 1
	if err := u.m.Rename(u.work.StageFD(), s.name, r.from.dir.FD(), r.from.name, 0); err != nil {
		if r.dst == nil {
			if undo := r.undo(); undo == nil {
				return err
			}
		}
		r.settle()
		return err
	}
	s.placed = true
	if !last { // else it replaced the last name of a whiteout that counts
		u.quota.inodes(1)
	}
	r.settle()
	r.from.parent.dir.listAddedLocked(r.from.name, unix.S_IFCHR)
	return nil
}

// undo moves the object back over the whiteout that the rename left.
func (r *rename) undo() error {
	u := r.u
	if r.form.bridged() {
		return r.undoBridged()
	}
	err := u.m.Rename(r.to.dir.FD(), r.to.name, r.from.dir.FD(), r.from.name, unix.RENAME_EXCHANGE)
	if err != nil { // no whiteout was left
		return u.m.Rename(r.to.dir.FD(), r.to.name, r.from.dir.FD(), r.from.name, unix.RENAME_NOREPLACE)
	}
	if r.to.below {
		return nil
	}
	return u.m.Unlink(r.to.dir.FD(), r.to.name)
}

// undoBridged is undo without the flags of renameat2.
func (r *rename) undoBridged() error {
	u := r.u
	old := r.from
	if r.from.below {
		if err := u.examine(&old); err != nil {
			return err
		}
	}
	if old.whiteout && r.src.IsDir() {
		if err := u.unblock(&old); err != nil {
			return err
		}
	}
	if r.to.below {
		if err := u.aufsWhiteout(r.to.dir.FD(), r.to.name); err != nil {
			return err
		}
	}
	if err := u.m.Rename(r.to.dir.FD(), r.to.name, r.from.dir.FD(), r.from.name, 0); err != nil {
		return err
	}
	if old.whiteout {
		u.replacedWhiteout(&old)
	}
	if r.to.below {
		u.endBridge(r.form, r.to.dir.FD(), r.to.name)
	}
	if old.aufs {
		return u.dropAUFSWhiteout(r.from.dir.FD(), r.from.name)
	}
	return nil
}
