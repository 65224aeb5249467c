package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// entry is what one name of a merged directory stands for, as found in the layers.
type entry struct {
	// st are the attributes of the object in layer, which is the upper if upper is set.
	st    unix.Statx_t
	layer *layer.Layer
	upper bool
	// origin is the inode number to show, 0 for the one in st.
	origin   uint64
	metacopy bool // see flagMetacopy
	special  bool // see flagSpecial
	// own says that it is the root of the own mount, which a layer shows as an empty directory; see Avoid.
	own bool
	// lower is the topmost lower object that is visible, dirs the lower directories that merge into a directory.
	lower lowerRef
	dirs  []lowerDir
	// redirected says that the only one of dirs merges with a directory of another name; see probeRedirect.
	redirected bool

	// index is the name of the entry of the hard-link index that stands in for a lower file, "" for none; lowerKey is the inode of
	// that lower file then.
	index    string
	lowerKey inodeKey
	// originKey is the name that the entry of an upper file with an origin would have in the index.
	originKey string
	// lowerNlink is the link count of the lower file, 0 where it is not known.
	lowerNlink uint32
	adjust     int // see hardlink.adjust

	// recorded says that st is from the stack index; subdirs is dirState.subdirs of a directory then.
	recorded bool
	subdirs  int32
}

func (e *entry) mode() uint32 {
	if e.special {
		return unix.S_IFCHR
	}
	return uint32(e.st.Mode) & unix.S_IFMT
}

// upperName says whether the upper has the name. What the hard-link index stands in for has an upper object, and a lower name.
func (e *entry) upperName() bool { return e.upper && e.index == "" }

// Lookup finds name in dir and returns its node with a reference, which the caller gives back with Forget. ENOENT if
// there is none; ENAMETOOLONG if no layer's file system could have it.
func (u *Union) Lookup(dir *Node, name string) (*Node, Attr, error) {
	if err := checkName(name); err != nil {
		return nil, Attr{}, err
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	return u.lookup(dir, name)
}

// Parent returns the directory that dir lies in, the root's being the root, with a reference. ESTALE if dir was removed.
func (u *Union) Parent(dir *Node) (*Node, Attr, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	u.treeMu.Lock()
	p := dir.link.parent
	if dir == u.root {
		p = u.root
	}
	if p != nil {
		p.refs++
	}
	u.treeMu.Unlock()
	if p == nil {
		return nil, Attr{}, unix.ESTALE
	}
	a, err := u.attr(p)
	if err != nil {
		u.Forget(p, 1)
		return nil, Attr{}, err
	}
	return p, a, nil
}

func checkName(name string) error {
	if len(name) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	return nil
}

// lookup is Lookup under renameMu.
func (u *Union) lookup(dir *Node, name string) (*Node, Attr, error) {
	if dir.dir == nil {
		return nil, Attr{}, unix.ENOTDIR
	}
	if n := u.child(dir, name); n != nil {
		a, err := u.attr(n)
		if err != nil {
			u.Forget(n, 1)
			return nil, Attr{}, err
		}
		return n, a, nil
	}
	e := entry{lower: noLower()}
	n, known, err := u.lookupIn(dir, name, &e)
	if err != nil {
		return nil, Attr{}, err
	}
	if known || n.has(flagMetacopy) || n.hard() != nil {
		a, err := u.attr(n)
		if err != nil {
			u.Forget(n, 1)
		}
		return n, a, err
	}
	a := u.toAttr(n, &e.st)
	u.setBlocks(n, &a)
	return n, a, nil
}

// find is Lookup for a caller that wants no attributes.
func (u *Union) find(dir *Node, name string) (*Node, error) {
	if n := u.child(dir, name); n != nil {
		return n, nil
	}
	n, _, err := u.Lookup(dir, name)
	return n, err
}

// lookupIn is lookupLocked without dir.dir.mu. Precondition: renameMu is held.
func (u *Union) lookupIn(dir *Node, name string, e *entry) (n *Node, known bool, err error) {
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	return u.lookupLocked(dir, name, e)
}

// lookupLocked finds name in dir. If the node was not known, e is filled as by probeLocked. Precondition: renameMu and
// dir.dir.mu are held.
func (u *Union) lookupLocked(dir *Node, name string, e *entry) (n *Node, known bool, err error) {
	if n := u.child(dir, name); n != nil {
		return n, true, nil
	}
	if dir.dir.dead {
		return nil, false, unix.ENOENT
	}
	if err := u.probeLocked(dir, name, e); err != nil {
		return nil, false, err
	}
	return u.instantiate(dir, name, e), false, nil
}

// probeLocked finds what name stands for in the layers of dir and fills e with it, an entry without a lower. Precondition:
// renameMu and dir.dir.mu are held.
func (u *Union) probeLocked(dir *Node, name string, e *entry) error {
	if err := u.resolveLocked(dir); err != nil {
		return err
	}
	if dir.has(flagUpper) {
		done, err := u.probeUpper(dir, name, e)
		if done || err != nil {
			return err
		}
	}
	if err := u.probeLowerLocked(dir, name, e); err != nil {
		return err
	}
	if !e.upper && !e.lower.exists() {
		return unix.ENOENT
	}
	if !e.upper && u.own(&e.st) {
		e.own = true
		if err := u.statOwn(&e.st); err != nil {
			return err
		}
	}
	if dir.has(flagUpper) && (!e.upperName() || len(e.dirs) > 0) && u.aufsWhiteoutIn(dir, name) {
		if !e.upperName() {
			return unix.ENOENT
		}
		e.dirs = nil // beside an upper directory it hides what would merge
	}
	return nil
}

// probeUpper looks into the upper directory. done says that nothing below matters; ENOENT is a whiteout. A directory is
// left to be merged: e.upper is set and done is false if lowers may take part.
func (u *Union) probeUpper(dir *Node, name string, e *entry) (done bool, err error) {
	f, err := u.dirUpper(dir)
	if err != nil {
		return true, err
	}
	defer f.Close()
	err = u.upper.Stat(f.FD(), name, &e.st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if u.own(&e.st) {
		// What lies below it is the mount point, to which nothing can be done.
		e.own, e.layer = true, u.upper
		return true, u.statOwn(&e.st)
	}
	if u.isUpperWhiteout(f.FD(), name, &e.st) {
		return true, unix.ENOENT
	}
	e.upper, e.layer = true, u.upper
	merged := len(dir.dir.lowers) > 0
	if uint32(e.st.Mode)&unix.S_IFMT == unix.S_IFDIR {
		if !merged && !dir.has(flagImpure) {
			return false, nil
		}
		e.origin, _ = u.originOf(f.FD(), name)
		return false, nil
	}
	pure := !merged && !dir.has(flagImpure) && e.st.Nlink == 1
	if pure && !mayLackData(&e.st) {
		e.special = dir.has(flagSpecials) && u.isSpecial(f.FD(), name, &e.st)
		return true, nil
	}
	err = u.readUpperMarks(dir, f.FD(), name, e)
	if pure {
		e.origin = 0 // listings of the directory do not look for one
	}
	return true, err
}

// mayLackData says whether an upper object may be a metadata-only copy. One without an origin, as of a hard-linked file without an index,
// does not make the directory impure that it is moved to (cf. overlayfs copy_up.c ovl_do_copy_up, dir.c ovl_rename).
func mayLackData(st *unix.Statx_t) bool {
	return uint32(st.Mode)&unix.S_IFMT == unix.S_IFREG && st.Size > 0
}

// readUpperMarks reads what the attributes of an upper non-directory say.
func (u *Union) readUpperMarks(dir *Node, dirfd int, name string, e *entry) error {
	names, err := cow.ListXattrs(dirfd, name)
	if err != nil {
		return err
	}
	for _, attr := range names {
		for _, ns := range u.opt.Forms.Namespaces() {
			switch attr {
			case ns.Metacopy:
				e.metacopy = uint32(e.st.Mode)&unix.S_IFMT == unix.S_IFREG
			case ns.Special:
				e.special = e.st.Size == 0
			case ns.Origin:
				e.origin, e.originKey = u.originOf(dirfd, name)
			case ns.Nlink:
				u.lowerLinks(dir, name, e)
			}
		}
	}
	if e.origin == 0 && e.st.Nlink == 1 && u.names != ovl.Trusted() {
		u.lowerNumber(dir, name, e)
	}
	if !e.metacopy {
		return nil
	}
	return u.findMetacopyData(dir, dirfd, name, e)
}

// findMetacopyData finds the lower whose data an upper metadata-only copy stands for.
func (u *Union) findMetacopyData(dir *Node, dirfd int, name string, e *entry) error {
	for _, ns := range u.opt.Forms.Namespaces() {
		v, err := cow.GetXattr(dirfd, name, ns.Redirect)
		if err != nil {
			continue
		}
		r, err := parseRedirect(v)
		if err != nil {
			return err
		}
		if r.Absolute {
			d, base := splitPath(r.Path)
			e.lower, err = u.findLower(0, d, base)
			return err
		}
		name = r.Path
		break
	}
	found, dirs, err := u.probeLowers(dir.dir.lowers, name)
	if err != nil {
		return err
	}
	if !found.exists() || dirs != nil {
		u.log.Error("metadata-only copy without lower data", "path", u.pathOf(dir)+"/"+name)
		return unix.EIO
	}
	found.view = dir.dir.view
	e.lower = found
	return nil
}

// isUpperWhiteout says whether an upper object deletes its name.
func (u *Union) isUpperWhiteout(dirfd int, name string, st *unix.Statx_t) bool {
	switch {
	case layer.IsWhiteoutDevice(st):
		return !placeholder(u.upper, dirfd, name)
	case ovl.IsAUFSName(name):
		return u.aufsHidden(dirfd, name, direntType(uint32(st.Mode)))
	}
	return u.isXWhiteout(dirfd, name, st)
}

// placeholder says whether the 0:0 device that l shows is one of an application, which its attributes make of a regular file:
// a whiteout is a device for everybody.
func placeholder(l *layer.Layer, dirfd int, name string) bool {
	var raw unix.Statx_t
	return l.Override() != "" && sys.Statx(dirfd, name, &raw) == nil && !layer.IsWhiteoutDevice(&raw)
}

// isSpecial says whether an empty file stands for a 0:0 device of an application.
func (u *Union) isSpecial(dirfd int, name string, st *unix.Statx_t) bool {
	if st.Size != 0 || uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG && !layer.IsWhiteoutDevice(st) {
		return false
	}
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(dirfd, name, ns.Special, nil); err == nil {
			return true
		}
	}
	return false
}

// aufsWhiteoutIn says whether the upper directory deletes name in the AUFS form.
func (u *Union) aufsWhiteoutIn(dir *Node, name string) bool {
	f, err := u.dirUpper(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	return u.aufsDeletes(f.FD(), name)
}

// probeLowerLocked fills e with the lower objects of name, merging below an upper directory. Precondition: renameMu and
// dir.dir.mu are held, dir is resolved.
func (u *Union) probeLowerLocked(dir *Node, name string, e *entry) error {
	d := dir.dir
	if len(d.lowers) == 0 {
		return nil
	}
	ln, ok, err := u.lowerNameLocked(dir, name, e)
	if err != nil || !ok || ln.first < 0 {
		return err
	}
	top := &d.lowers[ln.first]
	e.lower = lowerRef{layer: top.layer, dir: top.path, name: name, view: d.view}
	if ln.typ == unix.DT_DIR && e.dirs == nil {
		path := joinPath(top.path, name)
		e.dirs = make([]lowerDir, len(ln.dirs))
		for i, k := range ln.dirs {
			p := path
			if d.lowers[k].path != top.path {
				p = joinPath(d.lowers[k].path, name)
			}
			e.dirs[i] = lowerDir{layer: d.lowers[k].layer, path: p}
		}
	}
	if e.upper {
		return nil
	}
	if ln.typ == unix.DT_DIR {
		if err := u.probeRedirect(top, name, e); err != nil {
			return err
		}
	}
	if e.layer != nil {
		return nil
	}
	f, err := u.openLower(top)
	if err != nil {
		return err
	}
	defer f.Close()
	e.layer = u.lowers[top.layer]
	if err := e.layer.Stat(f.FD(), name, &e.st); err != nil {
		return err
	}
	if ln.typ == unix.DT_DIR {
		return nil
	}
	e.special = top.marks.specials && u.isSpecial(f.FD(), name, &e.st)
	u.probeLinks(f.FD(), name, e)
	return nil
}

// probeRedirect finds out whether a directory for which no other lower has one of that name merges with one of another name. Opacity and
// redirects are looked at when a directory is entered, but what has several layers has another link count, which is asked for before.
func (u *Union) probeRedirect(top *lowerDir, name string, e *entry) error {
	switch {
	case len(e.dirs) != 1 || int(top.layer) == len(u.lowers)-1 || u.opt.RedirectDir == RedirectOff:
		return nil
	case e.recorded && e.subdirs != 0 && (e.st.Nlink == 1 || e.st.Nlink == uint32(e.subdirs)+1):
		return nil // the same number either way
	}
	f, err := u.openLower(top)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(f.FD(), name, ns.Redirect, nil); err == nil {
			e.redirected = true
		}
	}
	return nil
}

// probeNameLocked looks a name up in several lowers that were not listed. Of a directory, e.dirs is filled. Precondition:
// dir.dir.mu is held.
func (u *Union) probeNameLocked(d *dirState, name string, e *entry) (lowerName, bool, error) {
	d.probes++
	found, dirs, err := u.probeLowers(d.lowers, name)
	if err != nil || !found.exists() {
		return lowerName{}, false, err
	}
	ln := lowerName{typ: unix.DT_REG}
	if dirs != nil {
		ln.typ = unix.DT_DIR
		e.dirs = dirs
	}
	for i := range d.lowers {
		if d.lowers[i].layer == found.layer && d.lowers[i].path == found.dir {
			ln.first = int16(i)
		}
	}
	return ln, true, nil
}

// lowerNameLocked is what the lowers of dir hold under name: by the stack index, by the merged table, or by looking. Looking
// fills in more of e, so that the object need not be looked at again; see probeNameLocked and probeOnlyLower. Precondition:
// dir.dir.mu is held, dir is resolved and has lowers.
func (u *Union) lowerNameLocked(dir *Node, name string, e *entry) (lowerName, bool, error) {
	d := dir.dir
	if rec := u.trusted(d); rec != nil {
		ln, ok, err := u.recordedLocked(dir, rec, name, e)
		if err == nil {
			return ln, ok, nil
		}
		u.distrust(err.Error())
	}
	if d.names == nil && len(d.lowers) > 1 {
		if d.probes < maxProbes || u.opt.Live {
			return u.probeNameLocked(d, name, e)
		}
		if err := u.keepNamesLocked(d); err != nil {
			return lowerName{}, false, err
		}
	}
	if d.names != nil {
		ln, ok := d.names[name]
		return ln, ok, nil
	}
	return u.probeOnlyLower(d, name, e)
}

// probeOnlyLower is lowerNameLocked in a directory with a single lower. Unless the upper has the object (e.upper), e is filled in
// too.
func (u *Union) probeOnlyLower(d *dirState, name string, e *entry) (lowerName, bool, error) {
	low := &d.lowers[0]
	f, err := u.openLower(low)
	if err != nil {
		return lowerName{}, false, err
	}
	defer f.Close()
	l := u.lowers[low.layer]
	st := &e.st
	if e.upper {
		st = new(unix.Statx_t)
	}
	err = l.Stat(f.FD(), name, st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		u.noteAbsentLocked(d, f)
		return lowerName{}, false, nil
	}
	if err != nil {
		return lowerName{}, false, err
	}
	typ := direntType(uint32(st.Mode))
	switch {
	case layer.IsWhiteoutDevice(st) && !placeholder(l, f.FD(), name),
		ovl.IsAUFSName(name) && u.aufsHidden(f.FD(), name, typ),
		low.marks.xwhiteouts && u.isXWhiteout(f.FD(), name, st):
		return lowerName{}, false, nil
	}
	ln := lowerName{typ: typ, ino: st.Ino}
	if typ == unix.DT_DIR && !u.own(st) {
		ln.dirs = []int16{0}
	}
	if e.upper {
		return ln, true, nil
	}
	e.layer = l
	e.lower = lowerRef{layer: low.layer, dir: low.path, name: name, view: d.view}
	if typ == unix.DT_DIR {
		return ln, true, nil
	}
	e.special = low.marks.specials && u.isSpecial(f.FD(), name, st)
	u.probeLinks(f.FD(), name, e)
	return ln, true, nil
}

// instantiate makes the node of a found entry, or finds the one that its inode has already, and gives it the name. The
// node comes with a reference. Precondition: dir.dir.mu is held.
func (u *Union) instantiate(dir *Node, name string, e *entry) *Node {
	keys, index, delta, ofLower := u.hardKeys(e)
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	for _, k := range keys {
		if n := u.inodes[k]; n != nil {
			n.refs++
			n.clear(flagUnlinked) // it has a name that nobody had looked up
			u.attachLocked(n, dir, name, e.upperName())
			for _, k := range keys {
				u.addKeyLocked(n, k)
			}
			return n
		}
	}
	ino := e.origin
	if ino == 0 {
		ino = u.mapIno(sys.Dev(&e.st), e.st.Ino)
	}
	n := u.newNode(ino, e.mode())
	n.refs = 1
	n.lower = e.lower
	if e.upper {
		n.set(flagUpper)
		if n.dir == nil && !e.metacopy {
			n.lower = noLower()
		}
	}
	if e.metacopy {
		n.set(flagMetacopy)
	}
	if e.special {
		n.set(flagSpecial)
	}
	if n.dir != nil {
		n.dir.candidates, n.dir.view = e.dirs, joinPath(dir.dir.view, name)
		below := int32(len(e.dirs))
		if e.redirected {
			below++
		}
		n.dir.below.Store(below)
		n.dir.subdirs.Store(e.subdirs)
	}
	if e.recorded {
		n.set(flagRecorded)
	}
	if e.own {
		n.set(flagOwnMount)
	}
	for _, k := range keys {
		u.addKeyLocked(n, k)
	}
	if len(keys) > 0 {
		n.hard().adjust = e.adjust
	}
	if index != "" {
		n.hard().setIndex(index)
		n.hard().delta, n.hard().ofLower = delta, ofLower
	}
	u.attachLocked(n, dir, name, e.upperName())
	return n
}
