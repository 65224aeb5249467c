package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// Unlink removes a name that is no directory. What is open stays readable and writable until it is forgotten.
func (u *Union) Unlink(dir *Node, name string) error { return u.remove(dir, name, false) }

// Rmdir removes an empty directory; one that holds nothing but whiteouts is empty.
func (u *Union) Rmdir(dir *Node, name string) error { return u.remove(dir, name, true) }

func (u *Union) remove(dir *Node, name string, wantDir bool) error {
	if u.work == nil {
		return unix.EROFS
	}
	n, err := u.find(dir, name)
	if err != nil {
		return err
	}
	defer u.Forget(n, 1)
	defer u.leaveBatch(n)
	switch {
	case wantDir && !n.IsDir():
		return unix.ENOTDIR
	case !wantDir && n.IsDir():
		return unix.EISDIR
	}
	if err := u.copyUpMeta(dir); err != nil {
		return err
	}
	if err := u.prepareUnlink(n, dir, name); err != nil {
		return err
	}
	u.quota.enter()
	defer u.quota.leave()
	if wantDir {
		u.renameMu.Lock() // the directory must not gain a child, nor move, while it goes
		defer u.renameMu.Unlock()
	} else {
		u.renameMu.RLock()
		defer u.renameMu.RUnlock()
	}
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	u.treeMu.Lock()
	still := dir.dir.children[name] == n
	u.treeMu.Unlock()
	if !still {
		return unix.ENOENT
	}
	if wantDir {
		return u.rmdirLocked(dir, name, n)
	}
	return u.unlinkLocked(dir, name, n)
}

// prepareUnlink copies up a lower file that has further names, so that the union's link count can be kept (cf.
// overlayfs util.c ovl_nlink_start).
func (u *Union) prepareUnlink(n, dir *Node, name string) error {
	if n.IsDir() || n.hard() == nil || u.opt.NoIndex || u.names == nil {
		return nil
	}
	if n.has(flagUpper) && n.hard().index() == "" {
		return nil // an application's own hard link
	}
	if !n.has(flagUpper) && !u.lowers[n.lower.layer].Handles() {
		return nil
	}
	if err := u.copyUpMeta(n); err != nil {
		return err
	}
	return u.linkUp(n, dir, name)
}

// unlinkLocked removes a name of n, which is no directory. Precondition: renameMu and dir.dir.mu are held.
func (u *Union) unlinkLocked(dir *Node, name string, n *Node) error {
	p, err := u.takenPlaceLocked(dir, name, n)
	if err != nil {
		return err
	}
	defer p.dir.Close()
	names := u.namesLock(n)
	names.Lock()
	defer names.Unlock()
	last := u.isLastName(n)
	if !last && u.upper.FSType == unix.NFS_SUPER_MAGIC {
		u.files.Drop(&n.data) // as long as it is open, the name would count
	}
	if last {
		if err := u.holdUnlinked(n); err != nil {
			return err
		}
	}
	if err := u.removeName(&p); err != nil {
		if last {
			u.release(n)
		}
		return err
	}
	u.forgetName(dir, name, n)
	dir.dir.listRemovedLocked(name)
	return nil
}

// removeName does to the upper what removes a non-directory.
func (u *Union) removeName(p *place) error {
	w, fd := u.work, p.dir.FD()
	if !p.below {
		return u.unlinkUpper(fd, p.name)
	}
	form, err := u.whiteouts()
	switch {
	case err != nil:
		return err
	case form.aufs:
		if err := u.aufsWhiteout(fd, p.name); err != nil || !p.upper {
			return err
		}
		return u.unlinkUpper(fd, p.name)
	case p.upper:
		return w.WhiteoutFile(fd, p.name)
	}
	err = w.WhiteoutAt(fd, p.name)
	if errors.Is(err, unix.EEXIST) {
		return unix.ESTALE // somebody else changed the upper
	}
	return err
}

// unlinkUpper removes a name of a non-directory in the upper. A client of NFS keeps a file that is open by renaming it in its
// directory, where it would be seen and keep the directory from being removed (cf. fs/nfs/dir.c nfs_sillyrename). So the file is
// moved to the staging directory first.
func (u *Union) unlinkUpper(dirfd int, name string) error {
	if u.upper.FSType != unix.NFS_SUPER_MAGIC {
		return u.m.Unlink(dirfd, name)
	}
	stage, err := u.work.Stage()
	if err != nil {
		return err
	}
	away := u.work.TempName()
	if err := u.m.Rename(dirfd, name, stage, away, 0); err != nil {
		return err
	}
	u.work.Discard(away)
	return nil
}

// isLastName says whether n has no more than one name left that is known. It may have names that nobody has looked up yet.
func (u *Union) isLastName(n *Node) bool {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	return n.hard() == nil || len(n.hard().more) == 0
}

// holdUnlinked opens the upper object of n, whose last name is about to go, and pins the descriptor, which is the only way to the
// object then. A lower object stays where it is, so it needs none.
func (u *Union) holdUnlinked(n *Node) error {
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if !n.has(flagUpper) {
		return nil
	}
	if !n.has(flagMetacopy) {
		if f := u.files.Get(&n.data); f != nil {
			if f.Writable {
				u.files.Pin(&n.data)
				f.Close()
				return nil
			}
			f.Close()
		}
	}
	l, err := u.upperLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	flags := unix.O_PATH
	if n.mode == unix.S_IFREG && !n.has(flagSpecial) {
		flags = unix.O_RDWR | unix.O_NONBLOCK
	}
	fd, err := u.retryFiles(func() (int, error) { return sys.Openat(l.fd(), l.name, flags) })
	if err != nil && flags != unix.O_PATH {
		flags = unix.O_PATH
		fd, err = u.retryFiles(func() (int, error) { return sys.Openat(l.fd(), l.name, flags) })
	}
	if err != nil {
		return err
	}
	u.files.Drop(&n.data)
	u.files.PutPinned(&n.data, fd, layer.AccessOf(flags))
	return nil
}

// release undoes holdUnlinked.
func (u *Union) release(n *Node) { u.files.Drop(&n.data) }

// forgetName takes the name (dir, name) from n after the layers lost it, and settles what its link count becomes.
// Precondition: dir.dir.mu is held.
func (u *Union) forgetName(dir *Node, name string, n *Node) {
	var room goneRoom
	u.treeMu.Lock()
	u.detachLocked(n, dir, name)
	gone := u.unrefLocked(dir, 1, room[:0])
	none := n.link.parent == nil
	u.treeMu.Unlock()
	u.closeNodes(gone)
	if n.IsDir() {
		return
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	index := ""
	if n.hard() != nil {
		index = n.hard().index()
	}
	switch {
	case index != "":
		u.dropIndexLocked(n)
	case none && n.hard() == nil:
		u.unlinked(n)
	case none:
		// Names that nobody looked up may be left: the pinned descriptor knows.
		var st unix.Statx_t
		f := u.files.Get(&n.data)
		if f == nil {
			if !n.has(flagUpper) {
				u.unlinked(n)
			}
			return
		}
		if sys.Statx(f.FD(), "", &st) != nil || st.Nlink == 0 {
			u.unlinked(n)
		}
		f.Close()
	}
}

// dropIndexLocked removes the index entry of n when the union has no name of it any more (cf. util.c
// ovl_cleanup_index). Precondition: n.copyMu is held.
func (u *Union) dropIndexLocked(n *Node) {
	idx := u.indexFD()
	if idx < 0 {
		return
	}
	var st unix.Statx_t
	if sys.Statx(idx, n.hard().index(), &st) != nil || int(st.Nlink)+n.hard().delta > 0 {
		return
	}
	if err := u.m.Unlink(idx, n.hard().index()); err != nil {
		u.log.Warn("cannot remove hard-link index entry", "entry", n.hard().index(), "err", err)
	}
	n.hard().setIndex("")
	u.unlinked(n)
}

// rmdirLocked removes the empty directory n. Precondition: renameMu is held for writing, dir.dir.mu is held.
func (u *Union) rmdirLocked(dir *Node, name string, n *Node) error {
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	p, err := u.takenPlaceLocked(dir, name, n)
	if err != nil {
		return err
	}
	defer p.dir.Close()
	if err := u.resolveLocked(n); err != nil {
		return err
	}
	if done, err := u.rmdirPlainLocked(&p, n); done {
		if err == nil {
			u.forgetDirLocked(dir, name, n)
		}
		return err
	}
	empty, err := u.emptyLocked(n)
	if err != nil {
		return err
	}
	if !empty {
		return unix.ENOTEMPTY
	}
	if n.has(flagUpper) {
		if err := u.holdDir(n); err != nil {
			return err
		}
	}
	if err := u.removeDir(&p); err != nil {
		u.dirs.Drop(&n.dir.upper)
		return err
	}
	u.forgetDirLocked(dir, name, n)
	return nil
}

// rmdirPlainLocked removes a directory that only the upper has with one system call: the file system knows whether it is
// empty. It reports false when that did not settle the matter. Precondition: n.dir.mu is held, n is resolved.
func (u *Union) rmdirPlainLocked(p *place, n *Node) (done bool, err error) {
	if p.below || len(n.dir.lowers) > 0 || !n.has(flagUpper) {
		return false, nil
	}
	if err := u.holdDir(n); err != nil {
		return true, err
	}
	if err = u.m.Rmdir(p.dir.FD(), p.name); err == nil {
		return true, nil
	}
	u.dirs.Drop(&n.dir.upper)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return false, nil // perhaps of nothing but whiteouts
	}
	return true, err
}

// holdDir pins a descriptor of n's upper, which is about to lose its name: from then on it is the only way to it.
// Dropping it undoes that.
func (u *Union) holdDir(n *Node) error {
	f, err := u.dirUpper(n)
	if err != nil {
		return err
	}
	u.dirs.Pin(&n.dir.upper)
	u.quota.keep(n, f.FD())
	f.Close()
	return nil
}

// forgetDirLocked settles what is known after the layers lost the directory n. Precondition: renameMu is held for
// writing, dir.dir.mu and n.dir.mu are held.
func (u *Union) forgetDirLocked(dir *Node, name string, n *Node) {
	n.dir.dead = true
	n.dir.listing = nil
	u.unlinked(n)
	dir.dir.countDirLocked(-1)
	u.forgetName(dir, name, n)
	dir.dir.listRemovedLocked(name)
}

// removeDir does to the upper what removes a directory that shows nothing, but may hold whiteouts.
func (u *Union) removeDir(p *place) error {
	w, fd := u.work, p.dir.FD()
	if !p.below {
		return w.RemoveDir(fd, p.name)
	}
	form, err := u.whiteouts()
	switch {
	case err != nil:
		return err
	case !p.upper:
		return u.removeName(p)
	case !form.aufs && form.exchange:
		return w.WhiteoutDir(fd, p.name)
	}
	if err := u.aufsWhiteout(fd, p.name); err != nil {
		return err
	}
	if err := w.RemoveDir(fd, p.name); err != nil {
		return err
	}
	u.endBridge(form, fd, p.name)
	return nil
}
