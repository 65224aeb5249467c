package union

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// copyWant is how much of a lower object must be in the upper.
type copyWant int

const (
	// copyMeta: its attributes.
	copyMeta copyWant = iota
	// copyData: its data too.
	copyData
)

// wholeFile is the limit of a copy-up that wants all of the data.
const wholeFile = math.MaxInt64

// copyUpMeta gives n, and its ancestors, upper objects with the attributes of the lower ones; see copyUp.
func (u *Union) copyUpMeta(n *Node) error { return u.copyUp(n, copyMeta, wholeFile) }

// copyUpData does what copyUpMeta does, and puts the data of n into the upper too; see copyUp.
func (u *Union) copyUpData(n *Node) error { return u.copyUp(n, copyData, wholeFile) }

// copyUp gives n, and its ancestors, upper objects. With copyData, limit is how many bytes of the data are wanted: a
// caller that is about to truncate the file needs no more. It blocks for the copying; others that want the same node wait
// for it, nobody else does (cf. overlayfs copy_up.c ovl_copy_up_flags, ovl_copy_up_start).
//
// Precondition: no lock is held.
func (u *Union) copyUp(n *Node, want copyWant, limit int64) error {
	if n.copied(want) {
		if u.opt.ReadOnly {
			return unix.EROFS
		}
		return u.linkKnown(n)
	}
	if u.work == nil {
		return unix.EROFS
	}
	if p := u.firstLink(n).parent; p != nil {
		if err := u.copyUpMeta(p); err != nil {
			return err
		}
	}
	land := n.takeOff(want)
	if land == nil {
		return nil
	}
	began := time.Now()
	err := u.copyUpInFlight(n, want, limit, land)
	if errors.Is(err, errMoved) {
		return u.copyUp(n, want, limit)
	}
	if err != nil {
		return fmt.Errorf("copy-up of %s: %w", u.pathOf(n), err)
	}
	u.copyUps.Add(1)
	u.copyUpTimes.Observe(time.Since(began))
	if u.opt.Observer != nil && n.mode == unix.S_IFREG {
		u.opt.Observer.CopiedUp(n)
	}
	return u.linkKnown(n)
}

// takeOff makes the caller the one who copies n up, until land is called. It waits while others do; land is nil if nothing is left to
// do then.
func (n *Node) takeOff(want copyWant) (land func()) {
	own := n.rework()
	for {
		n.copyMu.Lock()
		if n.copied(want) {
			n.copyMu.Unlock()
			return nil
		}
		if running := own.inflight; running != nil {
			n.copyMu.Unlock()
			<-running
			continue
		}
		done := make(chan struct{})
		own.inflight = done
		n.copyMu.Unlock()
		return func() {
			n.copyMu.Lock()
			own.inflight = nil
			n.copyMu.Unlock()
			close(done)
		}
	}
}

// copyUpInFlight is copyUpOne for who took off, and lands also if it panics.
func (u *Union) copyUpInFlight(n *Node, want copyWant, limit int64, land func()) error {
	defer land()
	return u.copyUpOne(n, want, limit)
}

func (n *Node) copied(want copyWant) bool {
	f := n.flags.Load()
	return f&flagUpper != 0 && (want == copyMeta || f&flagMetacopy == 0)
}

// errMoved says that the name under which an object was to be published is no longer its first.
var errMoved = errors.New("first name changed during copy-up")

// copyUpOne copies one object whose parent is in the upper already.
func (u *Union) copyUpOne(n *Node, want copyWant, limit int64) error {
	if n.has(flagUpper) {
		return u.completeMetacopy(n, limit)
	}
	c := &copyUp{u: u, n: n, limit: limit, tmp: -1}
	c.data = want == copyData || u.opt.NoMetacopy || u.names == nil || u.upper.Override() != ""
	defer c.close()
	if err := c.prepare(); err != nil {
		return err
	}
	if u.quota != nil {
		return c.runCharged()
	}
	if err := c.stage(); err != nil {
		return err
	}
	return c.publish()
}

// copyUp is one running copy-up: prepared, staged and published in this order (cf. overlayfs copy_up.c struct
// ovl_copy_up_ctx).
type copyUp struct {
	u     *Union
	n     *Node
	data  bool // the data is wanted too, up to limit bytes
	limit int64

	from   loc // nowhere, for an own mount's root
	st     unix.Statx_t
	origin *ovl.Origin
	adjust int // see hardlink.adjust

	name   string // in the staging directory, "" for an unnamed file
	tmp    int    // descriptor of the staged object, -1 for none
	marked bool   // the staged file carries the unsynced mark
	meta   bool   // the staged file has no data
	moded  bool   // the staged file was made with the mode that it keeps
	shut   bool   // attributes can't be written any more once the copy has its mode
	done   bool
	// unlinked says that the object has no name left: the descriptor is the only way to it.
	unlinked bool
}

// prepare looks at the lower object.
func (c *copyUp) prepare() (err error) {
	u := c.u
	if c.n.isOwnMount() {
		if !c.n.lower.exists() {
			return unix.EBUSY // in the upper, where it is a mount point
		}
		return u.statOwn(&c.st)
	}
	if c.from, err = u.copySource(c.n); err != nil {
		return err
	}
	if err := c.from.layer.Stat(c.from.fd(), c.from.name, &c.st); err != nil {
		return err
	}
	if h := c.n.hard(); h != nil {
		c.adjust = h.adjust
	}
	if c.from.layer.Handles() && u.names != nil {
		h, err := sys.Handle(c.from.fd(), c.from.name)
		o := ovl.Origin{UUID: c.from.layer.UUID, FileHandle: h}
		if err == nil && o.Fits() {
			c.origin = &o
		}
	}
	c.shut = c.willShut()
	c.meta = c.n.mode == unix.S_IFREG && !c.data && c.st.Size > 0 && !c.n.has(flagSpecial) && !c.shut
	return nil
}

// copySource is where the attributes of n are.
func (u *Union) copySource(n *Node) (loc, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	return u.attrLoc(n)
}

// willShut says whether this process, a plain user's, has no right to write the attributes of a copy: of one with these permissions
// not even the owner has it. Such a copy has none that would have to change: it is complete, and on the disk, before it gets its mode.
// A directory that can't be read either is not copied: what its marks say is not known.
func (c *copyUp) willShut() bool {
	const readable = unix.S_IRUSR | unix.S_IXUSR
	mode := c.u.copiedMode(&c.st)
	if c.u.euid == 0 || c.u.upper.Override() != "" || mode&unix.S_IWUSR != 0 {
		return false
	}
	return c.n.mode == unix.S_IFREG || c.n.IsDir() && mode&readable == readable
}

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

func (c *copyUp) close() {
	if c.from.dir != nil {
		c.from.close()
	}
	if c.tmp >= 0 {
		unix.Close(c.tmp)
	}
	if !c.done && c.name != "" {
		c.u.work.Discard(c.name)
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
