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
		u: u, caller: c, odir: odir, oname: oname, ndir: ndir, nname: nname,
		exchange: flags&unix.RENAME_EXCHANGE != 0, leaveWhiteout: flags&unix.RENAME_WHITEOUT != 0,
	}
	defer r.forget()
	if err := r.find(flags&unix.RENAME_NOREPLACE != 0); err != nil {
		return err
	}
	if r.src == r.dst {
		return nil
	}
	if err := r.prepare(); err != nil {
		return err
	}
	u.quota.enter()
	defer u.quota.leave()
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

// rename is one running rename: prepared without locks, marked and acted under them (cf. overlayfs dir.c ovl_rename).
type rename struct {
	u            *Union
	caller       *Caller
	odir, ndir   *Node
	oname, nname string
	// exchange is RENAME_EXCHANGE; leaveWhiteout is RENAME_WHITEOUT: an application's own whiteout gets the old name.
	exchange, leaveWhiteout bool

	src, dst *Node       // dst is nil for a free name
	topology bool        // a directory moves
	of, nf   *layer.File // the upper directories odir and ndir
	// oldBelow and newBelow say that the lowers show the old and the new name.
	oldBelow, newBelow bool
	newPlace           place
	held               bool // dst is about to lose its last name
	// form is what Union.whiteouts says, if a whiteout comes or goes.
	form whiteoutForm
	// takeAway says that the directory dst can't be made empty, so it has to leave its name before src gets it.
	takeAway bool
}

// find looks both names up.
func (r *rename) find(noReplace bool) (err error) {
	u := r.u
	if r.odir.dir == nil || r.ndir.dir == nil {
		return unix.ENOTDIR
	}
	if r.src, err = u.find(r.odir, r.oname); err != nil {
		return err
	}
	r.dst, err = u.find(r.ndir, r.nname)
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
	r.topology = r.src.IsDir() || r.dst != nil && r.dst.IsDir()
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
	for _, n := range append(moving, r.odir, r.ndir) {
		if err := u.copyUpMeta(n); err != nil {
			return err
		}
	}
	if err := u.linkUp(r.src, r.odir, r.oname); err != nil {
		return err
	}
	if r.dst == nil {
		return nil
	}
	if r.exchange {
		return u.linkUp(r.dst, r.ndir, r.nname)
	}
	return u.prepareUnlink(r.dst, r.ndir, r.nname)
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
	if r.topology {
		u.renameMu.Lock()
	} else {
		u.renameMu.RLock()
	}
	a, b := r.odir, r.ndir
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
	for _, f := range []*layer.File{r.of, r.nf} {
		if f != nil {
			f.Close()
		}
	}
	r.odir.dir.mu.Unlock()
	if r.ndir != r.odir {
		r.ndir.dir.mu.Unlock()
	}
	if r.topology {
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
	u := r.u
	u.treeMu.Lock()
	same := r.odir.dir.children[r.oname] == r.src && r.ndir.dir.children[r.nname] == r.dst
	u.treeMu.Unlock()
	switch {
	case r.odir.dir.dead || r.ndir.dir.dead:
		return unix.ENOENT
	case !same:
		return unix.ESTALE // lost a race: the front end looks up again
	case r.src.IsDir() && u.isAncestor(r.src, r.ndir):
		return unix.EINVAL
	case r.dst != nil && r.dst.IsDir() && u.isAncestor(r.dst, r.odir):
		if r.exchange {
			return unix.EINVAL
		}
		return unix.ENOTEMPTY
	}
	if err := u.resolveLocked(r.odir); err != nil {
		return err
	}
	if err := u.resolveLocked(r.ndir); err != nil {
		return err
	}
	if r.of, err = u.dirUpper(r.odir); err != nil {
		return err
	}
	if r.nf, err = u.dirUpper(r.ndir); err != nil {
		return err
	}
	u.quota.grow(r.odir, r.of.FD(), r.oname)
	u.quota.grow(r.ndir, r.nf.FD(), r.nname)
	if r.oldBelow, err = u.lowerHasLocked(r.odir, r.oname); err != nil {
		return err
	}
	if r.newBelow, err = u.lowerHasLocked(r.ndir, r.nname); err != nil {
		return err
	}
	r.newPlace = place{parent: r.ndir, dir: r.nf, name: r.nname, below: r.newBelow}
	if r.dst == nil {
		return u.examine(r.ndir, &r.newPlace)
	}
	if r.dst.IsDir() && !r.exchange {
		return r.checkEmpty()
	}
	return nil
}

// mark records, before anything moves, what the moved objects need at their new places: each mark is true at the old
// place too.
func (r *rename) mark() error {
	if err := r.markOne(r.src, r.ndir, r.nf, r.nname, r.newBelow); err != nil {
		return err
	}
	if r.exchange {
		return r.markOne(r.dst, r.odir, r.of, r.oname, r.oldBelow)
	}
	return nil
}

func (r *rename) markOne(n, dir *Node, f *layer.File, name string, below bool) error {
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
	case n.IsDir() && below:
		u.quota.mark(n, l, 1)
		if err := u.makeOpaque(l.fd(), l.name); err != nil {
			return err
		}
	case n.has(flagMetacopy):
		if err := u.setRedirect(n, l, n.lower.viewPath()); err != nil {
			return err
		}
	}
	return u.markMoved(n, dir, f, name, l)
}

// act changes the upper: one renameat2 wherever the file system has the flags for it.
func (r *rename) act() error {
	u := r.u
	if r.exchange {
		return u.m.Rename(r.of.FD(), r.oname, r.nf.FD(), r.nname, unix.RENAME_EXCHANGE)
	}
	if err := r.hold(); err != nil {
		return err
	}
	err := r.move()
	switch {
	case err != nil && r.held:
		u.release(r.dst)
	case err == nil && !r.oldBelow: // else it went to the old name
		u.replacedWhiteout(&r.newPlace)
	}
	return err
}

// hold keeps what is about to be replaced reachable for those who have it open.
func (r *rename) hold() error {
	u := r.u
	switch {
	case r.dst == nil:
	case r.dst.IsDir():
		if r.dst.has(flagUpper) {
			return u.holdDir(r.dst)
		}
	case u.isLastName(r.dst):
		if err := u.holdUnlinked(r.dst); err != nil {
			return err
		}
		r.held = true
	}
	return nil
}

// move is the rename itself, leaving a whiteout where the lowers show the old name.
func (r *rename) move() error {
	u := r.u
	ofd, nfd := r.of.FD(), r.nf.FD()
	if r.oldBelow || r.newBelow || r.leaveWhiteout {
		var err error
		if r.form, err = u.whiteouts(); err != nil {
			return err
		}
	}
	if r.newPlace.whiteout && (r.src.IsDir() || r.oldBelow) {
		if err := u.unblock(&r.newPlace); err != nil {
			return err
		}
	}
	if r.takeAway {
		if err := r.takeDstAway(); err != nil {
			return err
		}
	}
	whiteout := r.oldBelow || r.leaveWhiteout && r.form.byRename
	switch {
	case r.newPlace.whiteout && (r.src.IsDir() || r.oldBelow):
		// The whiteout at the new name is what the old one needs.
		if err := u.m.Rename(ofd, r.oname, nfd, r.nname, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		if !r.oldBelow {
			return ignoreNotExist(u.m.Unlink(ofd, r.oname))
		}
		return nil
	case r.oldBelow && r.form.bridged():
		if err := u.aufsWhiteout(ofd, r.oname); err != nil {
			return err
		}
		if err := u.m.Rename(ofd, r.oname, nfd, r.nname, 0); err != nil {
			return err
		}
		u.endBridge(r.form, ofd, r.oname)
	case whiteout && r.form.byRename:
		err := u.m.Rename(ofd, r.oname, nfd, r.nname, unix.RENAME_WHITEOUT)
		if err == nil {
			u.quota.inodes(1)
		}
		return err
	case r.oldBelow:
		return r.moveExchange()
	default:
		if err := u.m.Rename(ofd, r.oname, nfd, r.nname, 0); err != nil {
			return err
		}
	}
	if r.newPlace.aufs || r.form.aufs && r.newBelow {
		return u.dropAUFSWhiteout(nfd, r.nname)
	}
	return nil
}

// takeDstAway takes the directory that is to be replaced, and that cannot be made empty, out of the way. A whiteout hides what the lowers
// have of it until src has the name; a kill in between leaves src at its old one.
func (r *rename) takeDstAway() error {
	u := r.u
	if r.newBelow {
		if err := u.aufsWhiteout(r.nf.FD(), r.nname); err != nil {
			return err
		}
		r.newPlace.aufs = true
	}
	return u.work.RemoveDir(r.nf.FD(), r.nname)
}

// moveExchange leaves a whiteout on a file system that has no RENAME_WHITEOUT: a whiteout takes the new name first and
// changes places with the object.
func (r *rename) moveExchange() error {
	u := r.u
	if r.dst != nil && u.linkIsUpper(r.dst, r.ndir, r.nname) {
		var err error
		if r.dst.IsDir() {
			err = u.work.WhiteoutDir(r.nf.FD(), r.nname)
		} else {
			err = u.work.WhiteoutFile(r.nf.FD(), r.nname)
		}
		if err != nil {
			return err
		}
	} else if err := u.work.WhiteoutAt(r.nf.FD(), r.nname); err != nil {
		return err
	}
	return u.m.Rename(r.of.FD(), r.oname, r.nf.FD(), r.nname, unix.RENAME_EXCHANGE)
}

// settle brings the tree in step with the layers.
func (r *rename) settle() {
	u := r.u
	r.noteLeft()
	r.src.showCtime()
	if r.exchange {
		r.dst.showCtime()
	}
	if r.dst != nil && !r.exchange {
		if r.dst.IsDir() {
			r.dst.dir.mu.Lock()
			r.dst.dir.dead = true
			r.dst.dir.listing = nil
			r.dst.dir.mu.Unlock()
			u.unlinked(r.dst)
		}
		u.forgetName(r.ndir, r.nname, r.dst)
	}
	if r.src.IsDir() {
		r.odir.dir.countDirLocked(-1)
		r.ndir.dir.countDirLocked(1)
	}
	if r.dst != nil && r.dst.IsDir() {
		r.ndir.dir.countDirLocked(-1)
		if r.exchange {
			r.odir.dir.countDirLocked(1)
		}
	}
	u.treeMu.Lock()
	if r.exchange {
		u.swapLinksLocked(r)
	} else {
		u.renameLinkLocked(r.src, r.odir, r.oname, r.ndir, r.nname)
	}
	u.treeMu.Unlock()
	if r.exchange {
		r.odir.dir.listAddedLocked(r.oname, r.dst.Mode())
	} else {
		r.odir.dir.listRemovedLocked(r.oname)
	}
	r.ndir.dir.listAddedLocked(r.nname, r.src.Mode())
}

// noteLeft remembers a file that syncLeft has to look after. What btrfs exchanges, and directories, its fsync gets right.
func (r *rename) noteLeft() {
	if r.u.upper.FSType == unix.BTRFS_SUPER_MAGIC && r.oldBelow && !r.exchange && !r.src.IsDir() {
		r.src.set(flagLeft)
	}
}

func (u *Union) swapLinksLocked(r *rename) {
	r.odir.refs += 2
	r.ndir.refs += 2
	u.detachLocked(r.src, r.odir, r.oname)
	u.detachLocked(r.dst, r.ndir, r.nname)
	u.attachLocked(r.src, r.ndir, r.nname, true)
	u.attachLocked(r.dst, r.odir, r.oname, true)
	// The links' own references moved with them: one each way, and those taken above.
	u.unrefLocked(r.odir, 3, nil)
	u.unrefLocked(r.ndir, 3, nil)
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
	p := place{parent: r.odir, dir: r.of, name: r.oname}
	var err error
	if p.hint, err = u.hintLocked(r.odir, r.of.FD()); err != nil {
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
	last := u.quota != nil && sys.Statx(r.of.FD(), r.oname, &left) == nil && left.Nlink == 1
	if err := u.m.Rename(u.work.StageFD(), s.name, r.of.FD(), r.oname, 0); err != nil {
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
	r.odir.dir.listAddedLocked(r.oname, unix.S_IFCHR)
	return nil
}

// undo moves the object back over the whiteout that the rename left.
func (r *rename) undo() error {
	u := r.u
	if r.form.bridged() {
		return r.undoBridged()
	}
	err := u.m.Rename(r.nf.FD(), r.nname, r.of.FD(), r.oname, unix.RENAME_EXCHANGE)
	if err != nil { // no whiteout was left
		return u.m.Rename(r.nf.FD(), r.nname, r.of.FD(), r.oname, unix.RENAME_NOREPLACE)
	}
	if r.newBelow {
		return nil
	}
	return u.m.Unlink(r.nf.FD(), r.nname)
}

// undoBridged is undo without the flags of renameat2.
func (r *rename) undoBridged() error {
	u := r.u
	old := place{parent: r.odir, dir: r.of, name: r.oname, below: r.oldBelow}
	if r.oldBelow {
		if err := u.examine(r.odir, &old); err != nil {
			return err
		}
	}
	if old.whiteout && r.src.IsDir() {
		if err := u.unblock(&old); err != nil {
			return err
		}
	}
	if r.newBelow {
		if err := u.aufsWhiteout(r.nf.FD(), r.nname); err != nil {
			return err
		}
	}
	if err := u.m.Rename(r.nf.FD(), r.nname, r.of.FD(), r.oname, 0); err != nil {
		return err
	}
	if old.whiteout {
		u.replacedWhiteout(&old)
	}
	if r.newBelow {
		u.endBridge(r.form, r.nf.FD(), r.nname)
	}
	if old.aufs {
		return u.dropAUFSWhiteout(r.of.FD(), r.oname)
	}
	return nil
}
