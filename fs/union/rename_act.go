package union

import (
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

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
