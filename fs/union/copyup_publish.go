package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// publish gives the staged object its name in the upper, under the locks, unless the node lost its last name meanwhile.
func (c *copyUp) publish() error {
	u, n := c.u, c.n
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	l := u.firstLink(n)
	if l.parent == nil {
		return c.publishUnlinked()
	}
	l.parent.dir.mu.Lock()
	defer l.parent.dir.mu.Unlock()
	if now := u.firstLink(n); now.parent != l.parent || now.name != l.name {
		if now.parent == nil {
			return c.publishUnlinked()
		}
		return errMoved
	}
	pf, err := u.dirUpper(l.parent)
	if err != nil {
		return err
	}
	defer pf.Close()
	u.quota.grow(l.parent, pf.FD(), l.name)
	var pst unix.Statx_t
	if err := sys.Statx(pf.FD(), "", &pst); err != nil {
		return err
	}
	index, err := c.publishAt(l, pf)
	if err != nil {
		return err
	}
	// Best effort: a copy-up is no change of the directory that anybody should see.
	_ = u.m.Utimes(pf.FD(), ".", sys.TimeOf(pst.Atime).Timespec(), sys.TimeOf(pst.Mtime).Timespec())
	c.hideCtimes(l, pf.FD(), &pst)
	c.settle(func() {
		u.treeMu.Lock()
		n.setLinkUpperLocked(l.parent, l.name)
		u.treeMu.Unlock()
		if index != "" {
			n.hard().setIndex(index)
			n.hard().delta, n.hard().ofLower = int(c.st.Nlink)+c.adjust-2, true
		}
	})
	if c.st.Nlink > 1 && !n.IsDir() && index == "" {
		u.corrected(n) // it has another inode number and link count
	}
	return nil
}

// publishAt gives the staged object the name l in the upper directory pf, which gets the marks that go with it first. It returns
// the name of the object's entry in the hard-link index, "" for none.
func (c *copyUp) publishAt(l link, pf *layer.File) (index string, err error) {
	u, n := c.u, c.n
	if c.origin != nil {
		u.markImpure(l.parent, pf)
	}
	if n.has(flagSpecial) && u.names != nil { // who reads the upper as a lower looks for the file's mark only then
		if err := u.markSpecials(l.parent, pf.FD()); err != nil {
			return "", err
		}
	}
	if index, err = c.publishIndex(); err != nil {
		return "", err
	}
	if index != "" {
		if err = u.m.Link(u.indexFD(), index, pf.FD(), l.name); err != nil {
			_ = u.m.Unlink(u.indexFD(), index) // the quota does not count it
		}
	} else {
		err = c.publishName(pf.FD(), l.name)
	}
	if err != nil {
		return "", err
	}
	if c.shut && n.IsDir() {
		// Who may not write to a directory can't move it to another one.
		if err := u.m.Chmod(pf.FD(), l.name, u.copiedMode(&c.st)); err != nil {
			u.log.Warn("a copied-up directory has mode 0700", "name", l.name, "err", err)
		}
	}
	if c.st.Nlink > 1 && !n.IsDir() {
		c.renumber(pf, l.name)
	}
	return index, nil
}

// renumber makes the node of a hard-linked object known by its upper inode too. Without an index the copy is another file
// than the lower's other names now.
func (c *copyUp) renumber(dir *layer.File, name string) {
	u, n := c.u, c.n
	var st unix.Statx_t
	if sys.Statx(dir.FD(), name, &st) != nil {
		return
	}
	if !c.indexed() {
		n.ino.Store(u.mapIno(sys.Dev(&st), st.Ino))
		return
	}
	u.treeMu.Lock()
	u.addKeyLocked(n, inodeKey{sys.Dev(&st), st.Ino})
	u.treeMu.Unlock()
}

func (c *copyUp) publishName(dirfd int, name string) error {
	if c.name == "" {
		return c.u.m.LinkFD(c.tmp, dirfd, name)
	}
	return c.u.m.Rename(c.u.work.StageFD(), c.name, dirfd, name, unix.RENAME_NOREPLACE)
}

// publishIndex puts a hard-linked object into the index first, so that its other names follow (cf. copy_up.c
// ovl_copy_up_workdir, c->indexed). It returns the entry's name, "" if the object is not indexed.
func (c *copyUp) publishIndex() (string, error) {
	if !c.indexed() {
		return "", nil
	}
	u := c.u
	idx, err := u.work.MakeIndex()
	if err != nil {
		return "", err
	}
	key := c.origin.IndexName()
	if len(key) > unix.NAME_MAX {
		return "", unix.ENAMETOOLONG
	}
	err = c.publishName(idx, key)
	if errors.Is(err, unix.EEXIST) {
		// A kill after this step left it, or somebody removed its names from the upper: a lookup would have found one in use.
		if err = u.quota.removed(idx, key, func() error { return u.m.Unlink(idx, key) }); err == nil {
			err = c.publishName(idx, key)
		}
	}
	return key, err
}

// publishUnlinked keeps the copy of an object that has no name any more, for those who have it open.
func (c *copyUp) publishUnlinked() error {
	u, n := c.u, c.n
	if c.tmp < 0 {
		fd, err := sys.Openat(u.work.StageFD(), c.name, unix.O_PATH)
		if err != nil {
			return err
		}
		c.tmp = fd
	}
	if c.name != "" {
		u.work.Discard(c.name)
	}
	c.marked = false
	if n.IsDir() {
		u.dirs.PutPinned(&n.dir.upper, c.tmp, layer.ReadOnly)
		c.tmp = -1
	}
	c.unlinked = true
	c.settle(func() { n.set(flagUnlinked) })
	u.quota.hold(n)
	return nil
}

// keep hands the descriptor of the copy to its node.
func (c *copyUp) keep(a layer.Access) {
	if c.unlinked {
		c.u.files.PutPinned(&c.n.data, c.tmp, a)
	} else {
		c.u.files.Put(&c.n.data, c.tmp, a).Close()
	}
	c.tmp = -1
}

// settle switches the node to its new upper object. more is what else changes with that: flagUpper, which others read without a
// lock, comes last.
func (c *copyUp) settle(more func()) {
	u, n := c.u, c.n
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	u.files.Drop(&n.data)
	switch {
	case c.tmp < 0 || n.IsDir():
	case !c.meta && n.mode != unix.S_IFREG && c.name != "":
		c.keep(layer.ReadOnly)
	case !c.meta:
		c.keep(layer.ReadWrite)
	case u.firstLink(n).parent == nil: // a metadata-only copy is reached by its name, but this one lost it
		c.keep(layer.ReadWrite)
	}
	if c.meta {
		n.set(flagMetacopy)
		if n.lowerBlocks.Load() == 0 && c.st.Blocks*512 >= c.st.Size { // fewer may be those of a metadata-only copy
			n.keepBlocks(c.st.Blocks)
		}
	}
	if c.marked {
		n.set(flagUnsynced)
	}
	more()
	n.set(flagUpper)
	c.done = true
	if c.marked {
		u.noteUnsynced(n)
	}
}

// markImpure notes on the upper directory dir that it holds objects with an origin, so that the kernel's readdir looks
// for their inode numbers (cf. util.c ovl_set_impure). It is best effort, as there.
func (u *Union) markImpure(dir *Node, f *layer.File) {
	if dir.has(flagImpure) || u.names == nil {
		return
	}
	u.quota.mark(dir, loc{dir: f}, 1)
	if u.m.Setxattr(f.FD(), ".", u.names.Impure, ovl.OpaqueValue(), 0) == nil {
		dir.set(flagImpure)
	}
}
