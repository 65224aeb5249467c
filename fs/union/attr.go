package union

import (
	"cmp"
	"errors"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// toAttr converts what a layer says of n's object to what the mount shows.
func (u *Union) toAttr(n *Node, st *unix.Statx_t) Attr {
	a := Attr{
		Ino: n.ino.Load(), Size: st.Size, Blocks: st.Blocks,
		Atime: sys.TimeOf(st.Atime), Mtime: sys.TimeOf(st.Mtime), Ctime: n.shownCtime(st),
		Mode: n.Mode() | uint32(st.Mode)&0o7777, Nlink: st.Nlink, Blksize: st.Blksize, Rdev: sys.Rdev(st),
	}
	a.UID, a.GID = u.showOwner(st.Uid, st.Gid)
	if st.Mask&unix.STATX_BTIME != 0 {
		a.Btime = sys.TimeOf(st.Btime)
	}
	switch {
	case n.dir != nil:
		// A link count of 1 is what tools take for unknown.
		switch {
		case u.opt.StaticNlink:
			a.Nlink = 1
		case n.dir.merges(n.has(flagUpper)):
			known := n.dir.subdirs.Load()
			a.Nlink = uint32(known + 1)
			a.Provisional = known == 0
		case n.has(flagUpper) && !n.dir.resolved.Load():
			a.Provisional = len(u.lowers) > 0 // a redirect may lead to lowers
		}
	case n.has(flagSpecial):
		a.Rdev = 0
	}
	return a
}

// merges says whether more than one layer may take part in the directory.
func (d *dirState) merges(upper bool) bool {
	k := d.below.Load()
	if upper {
		k++
	}
	return k > 1
}

// GetAttr returns the attributes of n, from the layers.
func (u *Union) GetAttr(n *Node) (Attr, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	a, err := u.attr(n)
	if err != nil || !a.Provisional {
		return a, err
	}
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	if n.dir.dead {
		return a, nil
	}
	err = u.resolveLocked(n)
	if err == nil && n.dir.merges(n.has(flagUpper)) {
		err = u.countLocked(n)
	}
	if errors.Is(err, unix.EACCES) {
		// What can't be read has attributes all the same, by which its owner sees why and what to do.
		a.Nlink = 1
		return a, nil
	}
	if err != nil {
		return a, err
	}
	return u.attr(n)
}

// countLocked counts the subdirectories of a merged directory. Precondition: renameMu and n.dir.mu are held.
func (u *Union) countLocked(n *Node) error {
	d := n.dir
	if d.subdirs.Load() != 0 {
		return nil
	}
	had := d.listing != nil
	if err := u.listLocked(n); err != nil {
		return err
	}
	subdirs := int32(0)
	for i := range d.listing.entries {
		e := &d.listing.entries[i]
		if e.name != "" && e.typ == unix.DT_DIR {
			subdirs++
		}
	}
	if !had && len(d.listing.entries) > keptListing {
		d.listing = nil
	}
	d.subdirs.Store(subdirs + 1)
	return nil
}

// keptListing is how many entries a listing may have that was made only to count.
const keptListing = 1024

// countDirLocked notes that the directory gained or lost delta subdirectories. Precondition: d.mu is held.
func (d *dirState) countDirLocked(delta int32) {
	if known := d.subdirs.Load(); known != 0 {
		d.subdirs.Store(known + delta)
	}
}

// attr is GetAttr under renameMu.
func (u *Union) attr(n *Node) (Attr, error) {
	var st unix.Statx_t
	if err := u.statNode(n, &st); err != nil {
		return Attr{}, err
	}
	a := u.toAttr(n, &st)
	if n.dir != nil {
		if n.has(flagUnlinked) {
			a.Nlink, a.Provisional = 0, false
		}
		return a, nil
	}
	if n.has(flagUnlinked) {
		a.Nlink = 0
	} else if n.hard() != nil {
		n.copyMu.Lock()
		switch {
		case n.hard().index() != "":
			a.Nlink = uint32(max(int(st.Nlink)+n.hard().delta, 0))
		case !n.has(flagUpper):
			a.Nlink = uint32(max(int(st.Nlink)+n.hard().adjust, 1))
		}
		n.copyMu.Unlock()
	}
	u.setBlocks(n, &a)
	return a, nil
}

// statNode fills st with what the layers say of n. Precondition: renameMu is held.
func (u *Union) statNode(n *Node, st *unix.Statx_t) error {
	if n.isOwnMount() {
		return u.statOwn(st)
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.attrLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.layer.Stat(l.fd(), l.name, st); err != nil || !u.own(st) {
		return err
	}
	return u.statOwn(st)
}

// setBlocks gives a the blocks of the data, if n or its lower is a metadata-only copy. Precondition: renameMu is held.
func (u *Union) setBlocks(n *Node, a *Attr) {
	if !n.has(flagMetacopy) && (n.has(flagUpper) || n.mode != unix.S_IFREG || a.Blocks*512 >= a.Size) {
		return
	}
	if known := n.lowerBlocks.Load(); known != 0 {
		a.Blocks = uint64(known) - 1
		return
	}
	l, err := u.lowerLoc(n)
	if err != nil {
		return
	}
	defer l.close()
	var st unix.Statx_t
	if l.layer.Stat(l.fd(), l.name, &st) != nil {
		return
	}
	if st.Blocks*512 < st.Size && n.lower.layer < int32(len(u.lowers)-1) && u.isMetacopy(l) {
		fd, err := u.openLowerFD(n)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		if sys.Statx(fd, "", &st) != nil {
			return
		}
	}
	a.Blocks = st.Blocks
	n.keepBlocks(st.Blocks)
}

// isMetacopy says whether the object of a layer is a metadata-only copy.
func (u *Union) isMetacopy(l loc) bool {
	_, err := u.anyXattr(l.fd(), l.name, func(ns *ovl.Names) string { return ns.Metacopy })
	return err == nil
}

// SetAttr applies chmod, chown, truncate and utimens, in that order of precedence of their side effects, and returns the
// attributes afterwards. A lower object is copied up first, without its data unless the size changes; a truncation
// copies only what remains. It blocks for the copying.
func (u *Union) SetAttr(c *Caller, n *Node, in *SetAttrIn) (Attr, error) {
	if in.Valid&SetSize != 0 && n.IsDir() {
		return Attr{}, unix.EISDIR
	}
	uid, gid := int64(-1), int64(-1)
	if in.Valid&SetUID != 0 {
		uid = int64(in.UID)
	}
	if in.Valid&SetGID != 0 {
		gid = int64(in.GID)
	}
	duid, dgid, err := u.diskOwner(uid, gid)
	switch {
	case err == nil:
	case n == u.root && in.Valid&^(SetUID|SetGID) == 0:
		// containers/storage gives the directory that it mounts on to the root of its store, whenever somebody asks for a
		// mount that is there already: a diff or commit of a running container with a map of its own.
		return u.GetAttr(n)
	default:
		return Attr{}, err
	}
	want, limit := copyMeta, int64(wholeFile)
	if in.Valid&SetSize != 0 {
		want, limit = copyData, int64(min(in.Size, math.MaxInt64))
	}
	if err := u.copyUp(n, want, limit); err != nil {
		return Attr{}, err
	}
	var ch charge
	if in.Valid&SetSize != 0 {
		if ch, err = u.reserve(amount{}, nil); err != nil {
			return Attr{}, err
		}
		defer ch.close()
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if in.Valid&SetSize != 0 {
		if err := u.truncate(n, in, &ch); err != nil {
			return Attr{}, err
		}
	}
	if err := u.change(c, n, in, duid, dgid); err != nil {
		return Attr{}, err
	}
	return u.attr(n) // provisional for some directories, which is as good here
}

// change applies what in says but for the size to the upper object of n. Precondition: renameMu is held.
func (u *Union) change(c *Caller, n *Node, in *SetAttrIn, uid, gid int) error {
	if n.IsDir() {
		n.dir.mu.Lock() // a copy-up in it restores its times
		defer n.dir.mu.Unlock()
		n.dir.hint = createHint{}
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.openUpperLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	if err := u.setOwnerMode(c, n, l, in, uid, gid); err != nil {
		return err
	}
	defer n.showCtime()
	return u.setTimes(l, in)
}

func (u *Union) truncate(n *Node, in *SetAttrIn, c *charge) error {
	if err := u.beginData(); err != nil {
		return err
	}
	f, err := u.dataFile(n, ForWriting)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.onExact(n, f.FD(), ""); err != nil {
		return err
	}
	defer c.off()
	at := loc{dir: layer.Borrow(f.FD()), layer: u.upper}
	err = u.keepCaps(n, at, func() error { return u.sticky(u.m.Truncate(f.FD(), int64(in.Size))) })
	if err != nil {
		return err
	}
	if in.Valid&SetKillPriv != 0 {
		return u.killSetID(f.FD())
	}
	return nil
}

// setOwnerMode applies chown and chmod. The backing kernel clears set-id bits and capabilities on chown by its rules,
// and rewrites the mask of an ACL on chmod.
func (u *Union) setOwnerMode(c *Caller, n *Node, l loc, in *SetAttrIn, uid, gid int) error {
	if in.Valid&(SetMode|SetUID|SetGID) == 0 {
		return nil
	}
	if l.layer.Override() != "" && n.mode != unix.S_IFLNK {
		return u.setOverride(n, l, in, uid, gid)
	}
	if uid >= 0 || gid >= 0 {
		var before unix.Statx_t
		if n.has(flagNameless) && in.Valid&SetMode == 0 {
			// The copy-up of an overlay on top sets the mode first, which it wants to keep (cf. overlayfs copy_up.c ovl_set_attr).
			if err := l.layer.Stat(l.fd(), l.name, &before); err != nil {
				return err
			}
		}
		if err := u.keepCaps(n, l, func() error { return u.m.Chown(l.fd(), l.name, uid, gid) }); err != nil {
			return err
		}
		if owner, _ := u.showOwner(before.Uid, before.Gid); uint32(before.Mode)&(unix.S_ISUID|unix.S_ISGID) != 0 && owner == c.UID {
			if err := u.m.Chmod(l.fd(), l.name, uint32(before.Mode)&0o7777); err != nil {
				return err
			}
		}
	}
	if in.Valid&SetMode != 0 {
		return u.m.Chmod(l.fd(), l.name, in.Mode&0o7777)
	}
	return nil
}

// keepCaps runs change, a chown or a truncation, which takes the file capabilities of the upper object at l away, and gives them back:
// where they have to go, the kernel has removed them itself before it asks for the change (cf. fs/attr.c setattr_prepare,
// ATTR_KILL_PRIV). An overlay on top changes owner and size after it copied the attributes, and wants them kept (cf. overlayfs
// copy_up.c ovl_copy_up_metadata).
func (u *Union) keepCaps(n *Node, l loc, change func() error) error {
	if n.mode != unix.S_IFREG || n.has(flagNoCaps) {
		return change()
	}
	caps, err := cow.GetXattr(l.fd(), l.name, xattrCaps)
	if err != nil {
		return change()
	}
	changed := change() // a failed one may have taken them away already
	if err := u.m.Setxattr(l.fd(), l.name, xattrCaps, caps, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return cmp.Or(changed, err) // without CAP_SETFCAP they are gone, as they were anywhere before
	}
	return changed
}

func (u *Union) setTimes(l loc, in *SetAttrIn) error {
	if in.Valid&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) == 0 {
		return nil
	}
	at, mt := sys.OmitTime(), sys.OmitTime()
	switch {
	case in.Valid&SetAtimeNow != 0:
		at = sys.NowTime()
	case in.Valid&SetAtime != 0:
		at = in.Atime.Timespec()
	}
	switch {
	case in.Valid&SetMtimeNow != 0:
		mt = sys.NowTime()
	case in.Valid&SetMtime != 0:
		mt = in.Mtime.Timespec()
	}
	return u.m.Utimes(l.fd(), l.name, at, mt)
}

// killSetID clears the set-id bits of an open upper file as a write by a process without CAP_FSETID does (cf. attr.c
// setattr_should_drop_suidgid; the exception for members of the group of a file without group execution is not made, as they
// are not known). File capabilities went with the write itself.
func (u *Union) killSetID(fd int) error {
	var st unix.Statx_t
	if err := u.upper.Stat(fd, "", &st); err != nil {
		return err
	}
	mode := uint32(st.Mode) & 0o7777
	kept := mode &^ (unix.S_ISUID | unix.S_ISGID)
	if kept == mode {
		return nil
	}
	if attr := u.upper.Override(); attr != "" {
		o := ovl.OverrideStat{UID: st.Uid, GID: st.Gid, Mode: unix.S_IFREG | kept}
		return u.m.Setxattr(fd, "", attr, o.Encode(), 0)
	}
	return u.m.Chmod(fd, "", kept)
}

// Statfs describes the upper's file system, or the topmost lower's, with a quota as its size.
func (u *Union) Statfs() (Statfs, error) {
	l := u.upper
	if l == nil {
		l = u.lowers[0]
	}
	var s unix.Statfs_t
	if err := unix.Fstatfs(l.FD(), &s); err != nil {
		return Statfs{}, err
	}
	out := Statfs{
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: uint32(s.Bsize), Frsize: uint32(s.Frsize), Namelen: uint32(s.Namelen),
	}
	u.quota.statfs(&out)
	return out, nil
}

// Readlink returns the target of a symlink.
func (u *Union) Readlink(n *Node) (string, error) {
	if n.mode != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	var m metadata.Entry
	if !n.has(flagUpper) && u.entryOf(n, &m) {
		return strings.Clone(m.Target), nil
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.attrLoc(n)
	if err != nil {
		return "", err
	}
	defer l.close()
	if l.layer.Override() != "" {
		if t, ok := placeholderTarget(l); ok {
			return t, nil
		}
	}
	return sys.Readlinkat(l.fd(), l.name)
}
