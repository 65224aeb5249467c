package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Link gives n a further name, and returns its attributes then. A file made by Tmpfile gets its first. The new name comes
// with a reference to n.
func (u *Union) Link(n, dir *Node, name string) (Attr, error) {
	if err := checkName(name); err != nil {
		return Attr{}, err
	}
	switch {
	case dir.dir == nil:
		return Attr{}, unix.ENOTDIR
	case n.IsDir():
		return Attr{}, unix.EPERM
	case u.work == nil:
		return Attr{}, unix.EROFS
	}
	if err := u.copyUpMeta(dir); err != nil {
		return Attr{}, err
	}
	if err := u.copyUpMeta(n); err != nil {
		return Attr{}, err
	}
	if err := u.storeDelta(n); err != nil {
		return Attr{}, err
	}
	u.quota.enter()
	defer u.quota.leave()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if n.has(flagMetacopy) {
		if err := u.redirectMetacopy(n); err != nil {
			return Attr{}, err
		}
	}
	if err := u.linkName(n, dir, name); err != nil {
		return Attr{}, err
	}
	n.showCtime()
	a, err := u.attr(n)
	if err != nil {
		u.Forget(n, 1)
	}
	return a, err
}

// linkName adds the upper name (dir, name) to n. Precondition: renameMu is held.
func (u *Union) linkName(n, dir *Node, name string) error {
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	p, err := u.freePlaceLocked(dir, name)
	if err != nil {
		return err
	}
	defer p.dir.Close()
	if !p.below {
		if err := u.examine(&p); err != nil {
			return err
		}
	}
	u.steady(n)
	defer u.unsteady(n)
	from, err := u.upperLoc(n)
	if err != nil {
		return err
	}
	defer from.close()
	if err := u.markMoved(n, &p, from); err != nil {
		return err
	}
	if err := u.linkInto(from, p); err != nil {
		return err
	}
	var st unix.Statx_t
	err = u.upper.Stat(p.dir.FD(), name, &st)
	u.treeMu.Lock()
	n.refs++
	if err == nil {
		u.addKeyLocked(n, inodeKey{sys.Dev(&st), st.Ino})
	} else if n.hard() == nil {
		n.hardp.Store(&hardlink{})
	}
	u.attachLocked(n, dir, name, true)
	u.treeMu.Unlock()
	n.clear(flagUnlinked | flagNameless)
	u.quota.linked(n)
	dir.dir.listAddedLocked(name, n.Mode())
	return nil
}

// linkInto gives the upper object at from the name p, replacing a whiteout.
func (u *Union) linkInto(from loc, p place) error {
	link := func(dirfd int, name string) error {
		if from.name == "" {
			return u.m.LinkFD(from.fd(), dirfd, name)
		}
		return u.m.Link(from.fd(), from.name, dirfd, name)
	}
	if !p.whiteout {
		if err := link(p.dir.FD(), p.name); err != nil {
			return err
		}
		if p.aufs {
			return u.dropAUFSWhiteout(p.dir.FD(), p.name)
		}
		return nil
	}
	stage, err := u.work.Stage()
	if err != nil {
		return err
	}
	tmp := u.work.TempName()
	if err := link(stage, tmp); err != nil {
		return err
	}
	if err := u.m.Rename(stage, tmp, p.dir.FD(), p.name, 0); err != nil {
		u.work.Discard(tmp)
		return err
	}
	u.replacedWhiteout(&p)
	return nil
}

// markMoved leaves the marks that n, whose upper object is at, needs at a place where it was not made, before it arrives there.
func (u *Union) markMoved(n *Node, p *place, at loc) error {
	if n.has(flagSpecial) {
		if err := u.markSpecials(p.parent, p.dir.FD()); err != nil {
			return err
		}
	}
	if needsLiteral(u.upperType(n.Mode(), n.has(flagSpecial)), p.name) {
		if u.names == nil {
			return unix.EINVAL
		}
		u.quota.mark(n, at, 1)
		if err := u.m.Setxattr(at.fd(), at.name, u.names.Literal, ovl.OpaqueValue(), 0); err != nil {
			return err
		}
	}
	if u.names == nil || p.parent.has(flagImpure) {
		return nil
	}
	if _, err := sys.Getxattrat(at.fd(), at.name, u.names.Origin, nil); err == nil {
		u.markImpure(p.parent, p.dir)
	}
	return nil
}

// redirectMetacopy records where the data of a metadata-only copy lies before it gets another name (cf. overlayfs dir.c
// ovl_set_link_redirect). Precondition: renameMu is held.
func (u *Union) redirectMetacopy(n *Node) error {
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.upperLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	return u.setRedirect(n, l, n.lower.viewPath())
}

// setRedirect records path, relative to the lowers' roots, as the origin of n's object at l.
func (u *Union) setRedirect(n *Node, l loc, path string) error {
	v := ovl.Redirect{Path: path, Absolute: true}.Value()
	u.quota.mark(n, l, len(v))
	return u.m.Setxattr(l.fd(), l.name, u.names.Redirect, v, 0)
}

// linkUp gives a hard-linked object its upper name (dir, name), which so far was its lower's (cf. overlayfs copy_up.c
// ovl_link_up).
func (u *Union) linkUp(n, dir *Node, name string) error {
	if n.hard() == nil {
		return nil
	}
	if u.linkIsUpper(n, dir, name) {
		return u.storeDelta(n)
	}
	if err := u.linkUpName(n, dir, name); err != nil {
		return err
	}
	return u.storeDelta(n)
}

// linkKnown gives a hard-linked object that is about to change its upper names, as far as they are known: an upper that is
// later read without its index (as a layer of its own) shows the change under each of them. No lock is held.
func (u *Union) linkKnown(n *Node) error {
	h := n.hard()
	if h == nil || h.index() == "" {
		return nil
	}
	u.treeMu.Lock()
	fresh := h.fresh
	h.fresh = nil
	u.treeMu.Unlock()
	for i, k := range fresh {
		if u.known(k) != n {
			continue
		}
		err := u.copyUpMeta(k.parent)
		if err == nil {
			err = u.linkUp(n, k.parent, k.name)
		}
		if err != nil {
			u.treeMu.Lock()
			h.fresh = append(h.fresh, fresh[i:]...)
			u.treeMu.Unlock()
			return err
		}
	}
	return nil
}

// known is the node of a name, nil for none, without a reference.
func (u *Union) known(k linkKey) *Node {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	return k.parent.dir.children[k.name]
}

// linkUpName makes the name, leaving the stored link count relative to the lower's.
func (u *Union) linkUpName(n, dir *Node, name string) error {
	u.quota.enter()
	defer u.quota.leave()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	u.treeMu.Lock()
	still := dir.dir.children[name] == n
	u.treeMu.Unlock()
	if !still || u.linkIsUpper(n, dir, name) {
		return nil
	}
	f, err := u.dirUpper(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	var pst unix.Statx_t
	if err := sys.Statx(f.FD(), "", &pst); err != nil {
		return err
	}
	u.quota.grow(dir, f.FD(), name)
	u.markImpure(dir, f)
	if n.has(flagSpecial) && u.names != nil {
		if err := u.markSpecials(dir, f.FD()); err != nil {
			return err
		}
	}
	if n.has(flagMetacopy) {
		if err := u.redirectMetacopy(n); err != nil {
			return err
		}
	}
	if err := u.linkAlias(n, place{dir: f, name: name}); err != nil {
		return err
	}
	_ = u.m.Utimes(f.FD(), ".", sys.TimeOf(pst.Atime).Timespec(), sys.TimeOf(pst.Mtime).Timespec())
	u.treeMu.Lock()
	n.setLinkUpperLocked(dir, name)
	u.treeMu.Unlock()
	return nil
}

// linkAlias makes the upper name and keeps the stored link count of an indexed object right at each step.
func (u *Union) linkAlias(n *Node, p place) error {
	u.steady(n)
	defer u.unsteady(n)
	n.copyMu.Lock()
	index := n.hard().index()
	n.copyMu.Unlock()
	from, err := u.upperLoc(n)
	if err != nil {
		return err
	}
	defer from.close()
	if index == "" {
		return u.linkInto(from, p)
	}
	idx := u.indexFD()
	if err := u.deltaOfLower(n, idx, index); err != nil {
		return err
	}
	if err := u.m.Link(idx, index, p.dir.FD(), p.name); err != nil {
		return err
	}
	n.copyMu.Lock()
	n.hard().delta--
	n.hard().ofLower = true // what is stored is not right for the new upper count in any case
	n.copyMu.Unlock()
	return nil
}

// deltaOfLower writes the link count relative to the lower's before the upper's is changed by a name that the union has
// already, so that a crash in between leaves it right.
func (u *Union) deltaOfLower(n *Node, idx int, index string) error {
	if !n.lower.exists() {
		return nil // the lower is not known any more: the count is corrected right after
	}
	l, err := u.refLoc(n.lower)
	if err != nil {
		return nil // as above
	}
	defer l.close()
	var lst, ust unix.Statx_t
	if err := sys.Statx(l.fd(), l.name, &lst); err != nil {
		return err
	}
	if err := sys.Statx(idx, index, &ust); err != nil {
		return err
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	d := ovl.NlinkDelta{OfLower: true, Delta: int(ust.Nlink) + n.hard().delta - int(lst.Nlink)}
	err = u.m.Setxattr(idx, index, u.names.Nlink, d.Encode(), 0)
	if err == nil {
		n.hard().ofLower = true
	}
	return u.uncountable(n, err)
}

// uncountable drops the error of a link count that can't be stored: with user.overlay. names only regular files and directories can have
// attributes, and those of a plain user only with permission to write. See readDelta for what is read then.
func (u *Union) uncountable(n *Node, err error) error {
	if errors.Is(err, unix.EPERM) && n.mode != unix.S_IFREG || errors.Is(err, unix.EACCES) && u.euid != 0 {
		return nil
	}
	return err
}

// storeDelta writes the link count relative to the upper's, which link and unlink of upper names keep right by
// themselves; the form that it replaces is right only until then.
func (u *Union) storeDelta(n *Node) error {
	u.quota.enter()
	defer u.quota.leave()
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.hard() == nil || n.hard().index() == "" || !n.hard().ofLower {
		return nil
	}
	idx := u.indexFD()
	if idx < 0 {
		return nil
	}
	v := ovl.NlinkDelta{Delta: n.hard().delta}.Encode()
	u.quota.mark(n, loc{dir: layer.Borrow(idx), name: n.hard().index()}, len(v))
	err := u.m.Setxattr(idx, n.hard().index(), u.names.Nlink, v, 0)
	if err := u.uncountable(n, err); err != nil {
		return err
	}
	n.hard().ofLower = false
	return nil
}
