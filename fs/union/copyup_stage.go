package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// stage makes the object, complete with attributes, in the work directory. No lock is held.
func (c *copyUp) stage() error {
	if err := c.stageObject(); err != nil {
		return err
	}
	if c.n.mode == unix.S_IFREG || c.n.has(flagSpecial) {
		if err := c.stageData(); err != nil {
			return err
		}
	}
	return c.stageAttrs()
}

// keepsMode says that a file made with this mode still has it after data was written and its owner set.
func keepsMode(mode uint32) bool { return mode&(unix.S_ISUID|unix.S_ISGID|unix.S_ISVTX) == 0 }

// stageObject makes the bare object, inaccessible to others until it is complete: one with a name gets its mode at the
// end.
func (c *copyUp) stageObject() error {
	u, n := c.u, c.n
	w := u.work
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	switch {
	case u.upperType(n.Mode(), n.has(flagSpecial)) == unix.S_IFREG:
		f, err := w.Files()
		if err != nil {
			return err
		}
		if f.StageUnnamed {
			mode := u.copiedMode(&c.st)
			if c.moded = f.ExactMode && u.upper.Override() == "" && keepsMode(mode) && !c.shut; !c.moded {
				mode = 0o600
			}
			c.tmp, err = u.m.Tmpfile(stage, unix.O_RDWR, mode)
			return err
		}
		c.name = w.TempName()
		c.tmp, err = u.m.Create(stage, c.name, unix.O_RDWR, 0o600)
		return err
	case n.mode == unix.S_IFDIR:
		c.name = w.TempName()
		return u.m.Mkdir(stage, c.name, 0o700)
	case n.mode == unix.S_IFLNK:
		target, err := c.target()
		if err != nil {
			return err
		}
		c.name = w.TempName()
		return u.m.Symlink(target, stage, c.name)
	}
	c.name = w.TempName()
	return u.m.Mknod(stage, c.name, n.Mode()|0o600, sys.Rdev(&c.st))
}

func (c *copyUp) target() (string, error) {
	if c.from.layer.Override() != "" {
		if t, ok := placeholderTarget(c.from); ok {
			return t, nil
		}
	}
	return sys.Readlinkat(c.from.fd(), c.from.name)
}

// at is where the staged object is, for calls on its attributes.
func (c *copyUp) at() (dirfd int, name string) {
	if c.name == "" {
		return c.tmp, ""
	}
	return c.u.work.StageFD(), c.name
}

// stageData copies the data, or gives a metadata-only copy its size. Data comes before attributes: writing would drop
// capabilities and set-id bits.
func (c *copyUp) stageData() error {
	u := c.u
	size := min(int64(c.st.Size), c.limit)
	if c.meta {
		return u.m.Truncate(c.tmp, int64(c.st.Size))
	}
	if size == 0 || c.n.mode != unix.S_IFREG {
		return nil
	}
	if err := u.beginData(); err != nil {
		return err
	}
	src, err := u.lowerData(c.n)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if u.marks && !c.shut {
		dirfd, name := c.at()
		if err := u.markUnsynced(c.n, dirfd, name); err != nil {
			return err
		}
		c.marked = true
	}
	copier := &u.copiers[c.n.lower.layer]
	var copied int64
	if int(c.n.lower.layer) == len(u.lowers)-1 {
		copied, err = copier.CopyKnown(u.m, c.tmp, src, size, cow.Extent{Size: int64(c.st.Size), Blocks: int64(c.st.Blocks)})
	} else { // perhaps of a metadata-only copy
		copied, err = copier.CopyData(u.m, c.tmp, src, size)
	}
	u.copyUpBytes.Add(uint64(copied))
	if err == nil && u.marks && c.shut {
		err = u.m.Fdatasync(c.tmp)
	}
	return err
}

// lowerData opens the data of n's lower for a copy-up. The caller owns the descriptor.
func (u *Union) lowerData(n *Node) (int, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	return u.openLowerFD(n)
}

// stageAttrs gives the staged object the lower's attributes: owner, mode, extended ones, the union's own, times, in the
// order in which none undoes another.
func (c *copyUp) stageAttrs() error {
	u := c.u
	dirfd, name := c.at()
	override := u.upper.Override()
	mode := u.copiedMode(&c.st)
	if override != "" && c.n.mode != unix.S_IFLNK {
		o := ovl.OverrideStat{UID: c.st.Uid, GID: c.st.Gid, Mode: c.n.Mode() | mode, Rdev: sys.Rdev(&c.st)}
		if err := u.m.Setxattr(dirfd, name, override, o.Encode(), 0); err != nil {
			return err
		}
		mode = overrideMode
	} else if int(c.st.Uid) != u.euid || int(c.st.Gid) != u.egid {
		if err := u.m.Chown(dirfd, name, int(c.st.Uid), int(c.st.Gid)); err != nil {
			return err
		}
	}
	chmod := func() error { return u.m.Chmod(dirfd, name, mode) }
	if c.n.mode != unix.S_IFLNK && !c.moded && !c.shut {
		if err := chmod(); err != nil {
			return err
		}
	}
	if c.from.dir != nil {
		// Behind the owner, whose change drops capabilities.
		// Those of an upper that keeps modes in attributes would say otherwise than these.
		skip := func(attr string) bool { return override != "" && isACL(attr) }
		if err := cow.CopyXattrs(u.m, c.from.fd(), c.from.name, dirfd, name, skip); err != nil {
			return err
		}
	}
	if err := c.stageOwnXattrs(dirfd, name); err != nil {
		return err
	}
	if c.shut && !c.n.IsDir() {
		if err := chmod(); err != nil {
			return err
		}
	}
	return u.m.Utimes(dirfd, name, sys.TimeOf(c.st.Atime).Timespec(), sys.TimeOf(c.st.Mtime).Timespec())
}

// stageOwnXattrs writes the union's own attributes. A symlink or device takes none of the user namespace: it goes
// without an origin then, which costs it its inode number at the next mount.
func (c *copyUp) stageOwnXattrs(dirfd int, name string) error {
	u := c.u
	if u.names == nil {
		return nil
	}
	set := func(attr string, v []byte) error {
		err := u.m.Setxattr(dirfd, name, attr, v, 0)
		if errors.Is(err, unix.EPERM) && c.n.mode != unix.S_IFREG && c.n.mode != unix.S_IFDIR {
			return nil
		}
		return err
	}
	if c.origin != nil && (c.st.Nlink == 1 || c.indexed() || c.n.IsDir()) {
		if err := set(u.names.Origin, c.origin.Encode()); err != nil {
			return err
		}
	}
	if c.indexed() {
		if err := set(u.names.Nlink, ovl.NlinkDelta{OfLower: true, Delta: c.adjust}.Encode()); err != nil {
			return err
		}
	}
	if c.meta {
		if err := set(u.names.Metacopy, ovl.MetacopyValue()); err != nil {
			return err
		}
	}
	if err := c.stageLiteral(set); err != nil {
		return err
	}
	if c.n.has(flagSpecial) {
		return set(u.names.Special, ovl.OverrideStat{Mode: unix.S_IFCHR}.Encode())
	}
	return nil
}

// stageLiteral keeps the mark of an object whose name begins like those of the AUFS form, or that has other names, which may. What is
// an empty file from now on gets one.
func (c *copyUp) stageLiteral(set func(attr string, v []byte) error) error {
	typ := c.u.upperType(c.n.Mode(), c.n.has(flagSpecial))
	linked := typ == unix.S_IFREG && c.st.Nlink > 1
	if c.from.dir == nil || !linked && !needsLiteral(typ, c.n.lower.name) {
		return nil
	}
	if c.n.mode != unix.S_IFREG && typ == unix.S_IFREG {
		return set(c.u.names.Literal, ovl.OpaqueValue())
	}
	for _, ns := range c.u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(c.from.fd(), c.from.name, ns.Literal, nil); err == nil {
			return set(c.u.names.Literal, ovl.OpaqueValue())
		}
	}
	return nil
}

// indexed says whether the object has several names in its layer, which stay linked through the index.
func (c *copyUp) indexed() bool {
	return !c.n.IsDir() && c.st.Nlink > 1 && c.origin != nil && !c.u.opt.NoIndex
}

// copiedMode is the mode that a copy gets. Set-id bits of an owner that has no mapping here were inert and stay so
// (CVE-2023-0386).
func (u *Union) copiedMode(st *unix.Statx_t) uint32 {
	mode := uint32(st.Mode) & 0o7777
	if (st.Uid == overflowID || st.Gid == overflowID) && u.userNS() {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return mode
}
