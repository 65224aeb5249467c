package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
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

// removal is what has to be done to the layers to make one name go away.
type removal struct {
	dir   *layer.File // the upper directory
	name  string
	upper bool // the upper has an object of that name
	below bool // the lowers show the name
}

// removalLocked finds out what the removal of a name of n takes. Precondition: renameMu and dir.dir.mu are held; the caller closes r.dir.
func (u *Union) removalLocked(dir *Node, name string, n *Node) (r removal, err error) {
	if err := u.resolveLocked(dir); err != nil {
		return r, err
	}
	r = removal{name: name, upper: u.linkIsUpper(n, dir, name)}
	if r.below, err = u.lowerHasLocked(dir, name); err != nil {
		return r, err
	}
	if r.dir, err = u.dirUpper(dir); err == nil {
		u.quota.grow(dir, r.dir.FD(), name) // by a whiteout; or it shrinks
	}
	return r, err
}

// unlinkLocked removes a name of n, which is no directory. Precondition: renameMu and dir.dir.mu are held.
func (u *Union) unlinkLocked(dir *Node, name string, n *Node) error {
	r, err := u.removalLocked(dir, name, n)
	if err != nil {
		return err
	}
	defer r.dir.Close()
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
	if err := u.removeName(r); err != nil {
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
func (u *Union) removeName(r removal) error {
	w, fd := u.work, r.dir.FD()
	if !r.below {
		return u.unlinkUpper(fd, r.name)
	}
	form, err := u.whiteouts()
	switch {
	case err != nil:
		return err
	case form.aufs:
		if err := u.aufsWhiteout(fd, r.name); err != nil || !r.upper {
			return err
		}
		return u.unlinkUpper(fd, r.name)
	case r.upper:
		return w.WhiteoutFile(fd, r.name)
	}
	err = w.WhiteoutAt(fd, r.name)
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

// aufsWhiteout deletes a lower name in the AUFS form. While an object of that name is there, it hides nothing.
func (u *Union) aufsWhiteout(dirfd int, name string) error {
	wh := ovl.AUFSWhiteout(name)
	f, err := u.m.Create(dirfd, wh, unix.O_WRONLY, 0)
	if errors.Is(err, unix.EEXIST) {
		if !u.hasAUFS(dirfd, wh) {
			return unix.EINVAL // an application's object has the name
		}
		return nil
	}
	if err != nil {
		return err
	}
	u.quota.inodes(1)
	return unix.Close(f)
}

// dropAUFSWhiteout removes the whiteout of the AUFS form beside name.
func (u *Union) dropAUFSWhiteout(dirfd int, name string) error {
	wh := ovl.AUFSWhiteout(name)
	if !u.hasAUFS(dirfd, wh) {
		return nil // none, or an application's object of that name
	}
	err := u.m.Unlink(dirfd, wh)
	if err == nil {
		u.quota.inodes(-1)
	}
	return ignoreNotExist(err)
}

// endBridge replaces the whiteout of the AUFS form that was a bridge by one of the kernel's form, unless AUFS is the form. If that
// fails, the deletion stands all the same, so the operation does not fail.
func (u *Union) endBridge(form whiteoutForm, dirfd int, name string) {
	if form.aufs {
		return
	}
	err := u.work.WhiteoutAt(dirfd, name)
	if err == nil {
		err = u.dropAUFSWhiteout(dirfd, name)
	}
	if err != nil {
		u.log.Debug("a deletion stays in the AUFS form", "name", name, "err", err)
	}
}

// unblock frees the name p of its whiteout for a directory, where the two can't change places: a whiteout of the AUFS form, beside
// the name, hides the lowers meanwhile.
func (u *Union) unblock(p *place) error {
	if form, err := u.whiteouts(); err != nil || form.exchange {
		return err
	}
	if p.below {
		if err := u.aufsWhiteout(p.dir.FD(), p.name); err != nil {
			return err
		}
		p.aufs = true
	}
	if err := u.m.Unlink(p.dir.FD(), p.name); err != nil {
		return err
	}
	u.replacedWhiteout(p)
	p.whiteout, p.last = false, false
	return nil
}

// replacedWhiteout notes that the whiteout at p is gone.
func (u *Union) replacedWhiteout(p *place) {
	if p.last {
		u.quota.inodes(-1)
	}
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
	u.files.PutPinned(&n.data, fd, flags != unix.O_PATH)
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
	r, err := u.removalLocked(dir, name, n)
	if err != nil {
		return err
	}
	defer r.dir.Close()
	if err := u.resolveLocked(n); err != nil {
		return err
	}
	if done, err := u.rmdirPlainLocked(r, n); done {
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
	if err := u.removeDir(r); err != nil {
		u.dirs.Drop(&n.dir.upper)
		return err
	}
	u.forgetDirLocked(dir, name, n)
	return nil
}

// rmdirPlainLocked removes a directory that only the upper has with one system call: the file system knows whether it is
// empty. It reports false when that did not settle the matter. Precondition: n.dir.mu is held, n is resolved.
func (u *Union) rmdirPlainLocked(r removal, n *Node) (done bool, err error) {
	if r.below || len(n.dir.lowers) > 0 || !n.has(flagUpper) {
		return false, nil
	}
	if err := u.holdDir(n); err != nil {
		return true, err
	}
	if err = u.m.Rmdir(r.dir.FD(), r.name); err == nil {
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
func (u *Union) removeDir(r removal) error {
	w, fd := u.work, r.dir.FD()
	if !r.below {
		return w.RemoveDir(fd, r.name)
	}
	form, err := u.whiteouts()
	switch {
	case err != nil:
		return err
	case !r.upper:
		return u.removeName(r)
	case !form.aufs && form.exchange:
		return w.WhiteoutDir(fd, r.name)
	}
	if err := u.aufsWhiteout(fd, r.name); err != nil {
		return err
	}
	if err := w.RemoveDir(fd, r.name); err != nil {
		return err
	}
	u.endBridge(form, fd, r.name)
	return nil
}

// checkEmpty says whether the directory that is to be replaced is empty, and makes its upper so.
func (r *rename) checkEmpty() error {
	u, d := r.u, r.dst
	d.dir.mu.Lock()
	defer d.dir.mu.Unlock()
	empty, err := u.emptyLocked(d)
	if err != nil {
		return err
	}
	if !empty {
		return unix.ENOTEMPTY
	}
	if !d.has(flagUpper) {
		return nil
	}
	f, err := u.dirUpper(d)
	if err != nil {
		return err
	}
	defer f.Close()
	bare := true
	err = layer.List(f.FD(), func(layer.RawDirent) error {
		bare = false
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	if bare {
		return nil
	}
	return r.clearEmpty(f)
}

var errStop = errors.New("stop")

// clearEmpty replaces the upper of an empty merged directory, which holds whiteouts, by an opaque one that holds nothing
// (cf. overlayfs dir.c ovl_clear_empty): only that can be replaced by rename. Precondition: dst.dir.mu is held.
func (r *rename) clearEmpty(old *layer.File) error {
	u := r.u
	if u.work.Names == nil {
		// What makes a directory opaque without attributes is a file in it.
		r.takeAway = true
		return nil
	}
	if form, err := u.whiteouts(); err != nil {
		return err
	} else if !form.exchange {
		return r.clearInPlace(old)
	}
	w, name := u.work, u.work.TempName()
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	if err := u.m.Mkdir(stage, name, 0o700); err != nil {
		return err
	}
	swapped := false
	defer func() {
		if !swapped {
			w.Discard(name)
		}
	}()
	var st unix.Statx_t
	if err := sys.Statx(old.FD(), "", &st); err != nil {
		return err
	}
	if err := cow.CopyXattrs(u.m, old.FD(), ".", stage, name, nil); err != nil {
		return err
	}
	if o := u.upper.Override(); o != "" {
		if v, err := cow.GetXattr(old.FD(), ".", o); err == nil {
			if err := u.m.Setxattr(stage, name, o, v, 0); err != nil {
				return err
			}
		}
	}
	// By an attribute, whatever the form of whiteouts is: it is there for a moment only.
	if err := w.MakeOpaque(stage, name); err != nil {
		return err
	}
	if err := u.m.Chown(stage, name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := u.m.Chmod(stage, name, uint32(st.Mode)&0o7777); err != nil {
		return err
	}
	if err := u.m.Utimes(stage, name, sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec()); err != nil {
		return err
	}
	if err := u.m.Rename(stage, name, r.nf.FD(), r.nname, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	swapped = true
	u.quota.replacedDir(r.dst, st.Blocks, name, r.nf.FD(), r.nname)
	u.dirs.Drop(&r.dst.dir.upper)
	r.dst.dir.hideLowersLocked()
	w.Discard(name)
	return nil
}

// clearInPlace makes the upper of an empty merged directory opaque, and then removes the whiteouts in it: it shows nothing at any moment.
// Precondition: dst.dir.mu is held.
func (r *rename) clearInPlace(old *layer.File) error {
	u, dst := r.u, r.dst
	if err := u.work.MakeOpaque(r.nf.FD(), r.nname); err != nil {
		return err
	}
	dst.dir.hideLowersLocked()
	var names []string
	if err := layer.List(old.FD(), func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	}); err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := sys.Statx(old.FD(), name, &st); err != nil {
			return err
		}
		if err := u.m.Unlink(old.FD(), name); err != nil {
			return err
		}
		if st.Nlink == 1 {
			u.quota.inodes(-1)
		}
	}
	return nil
}
