package union

import (
	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// lowerStat describes the non-directory that the lowers of dir show as name; ok is false if there is none.
func (u *Union) lowerStat(dir *Node, name string) (st unix.Statx_t, ok bool) {
	found, dirs, err := u.probeLowers(dir.dir.lowers, name)
	if err != nil || !found.exists() || dirs != nil {
		return st, false
	}
	l, err := u.refLoc(found)
	if err != nil {
		return st, false
	}
	defer l.close()
	return st, l.layer.Stat(l.fd(), l.name, &st) == nil
}

// lowerNumber gives a symlink, device, FIFO or socket of the upper the inode number of the lower object of the same type that it
// hides. It may be a copy of that, which no attribute can say: these types take none of the user namespace. The hidden object shows
// its number nowhere, so the number is unique, and the same after a remount.
func (u *Union) lowerNumber(dir *Node, name string, e *entry) {
	typ := uint32(e.st.Mode) & unix.S_IFMT
	if typ == unix.S_IFREG || typ == unix.S_IFDIR {
		return
	}
	if st, ok := u.lowerStat(dir, name); ok && uint32(st.Mode)&unix.S_IFMT == typ && st.Nlink == 1 {
		e.origin = u.mapIno(sys.Dev(&st), st.Ino)
	}
}

// lowerLinks fills in the link count of the lower file of an upper hard link, while it still has its lower's name.
func (u *Union) lowerLinks(dir *Node, name string, e *entry) {
	if st, ok := u.lowerStat(dir, name); ok && st.Nlink > 1 {
		e.lowerNlink = st.Nlink
	}
}

// probeLinks looks at the further names of a lower file.
func (u *Union) probeLinks(dirfd int, name string, e *entry) {
	if e.st.Nlink < 2 {
		return
	}
	for _, ns := range u.opt.Forms.Namespaces() {
		var buf [32]byte
		n, err := sys.Getxattrat(dirfd, name, ns.Nlink, buf[:])
		if err != nil {
			continue
		}
		origin, err := cow.GetXattr(dirfd, name, ns.Origin)
		if err != nil {
			continue
		}
		if e.adjust = formerIndexLinks(e.layer, &e.st, buf[:n], origin); e.adjust != 0 {
			break
		}
	}
	u.probeIndex(dirfd, name, e)
}

// formerIndex is where the work directory of a layer that was an upper has its hard-link index, by the layout that all engines use.
const formerIndex = "../work/" + cow.IndexDir + "/"

// formerIndexLinks is hardlink.adjust of a file with these attributes in a layer that was an upper: what its link count allowed for
// the entry in the hard-link index of that upper, if the entry is still there: engines may have removed it, and a copy of the layer
// never had one.
func formerIndexLinks(l *layer.Layer, st *unix.Statx_t, nlink, origin []byte) int {
	d, err := ovl.ParseNlink(nlink)
	if err != nil || d.OfLower || d.Delta == 0 || int(st.Nlink)+d.Delta <= 0 {
		return 0
	}
	o, err := ovl.ParseOrigin(origin)
	if err != nil {
		return 0
	}
	fd, err := sys.OpenInMount(l.FD(), formerIndex+o.IndexName(), unix.O_PATH)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var entry unix.Statx_t
	if sys.Statx(fd, "", &entry) != nil || entry.Ino != st.Ino || sys.Dev(&entry) != sys.Dev(st) {
		return 0
	}
	return d.Delta
}

// probeIndex replaces a hard-linked lower file by its entry in the index, if another of its names was copied up (cf.
// overlayfs namei.c ovl_lookup_index).
func (u *Union) probeIndex(dirfd int, name string, e *entry) {
	idx := u.indexFD()
	if u.opt.NoIndex || idx < 0 || !e.layer.Handles() {
		return
	}
	h, err := sys.Handle(dirfd, name)
	if err != nil {
		return // a file system without handles has no index
	}
	key := ovl.Origin{UUID: e.layer.UUID, FileHandle: h}.IndexName()
	var st unix.Statx_t
	if u.upper.Stat(idx, key, &st) != nil {
		return // no entry
	}
	if u.indexOrphan(idx, key, &st, e.st.Nlink) {
		return
	}
	e.origin = u.mapIno(sys.Dev(&e.st), e.st.Ino)
	e.lowerNlink = e.st.Nlink
	e.lowerKey = inodeKey{sys.Dev(&e.st), e.st.Ino}
	e.st, e.index, e.upper, e.layer = st, key, true, u.upper
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(idx, key, ns.Metacopy, nil); err == nil {
			e.metacopy = true
		}
	}
}

// indexOrphan says whether an entry of the index is one that the union has no name for: the upper has none, and by the stored link
// count the lowers show none. The upper was changed while it was not mounted. The kernel removes such an entry when it mounts
// (cf. overlayfs namei.c ovl_verify_index); here the next copy-up does.
func (u *Union) indexOrphan(idx int, key string, st *unix.Statx_t, lowerNlink uint32) bool {
	if st.Nlink > 1 {
		return false
	}
	v, err := u.anyXattr(idx, key, func(ns *ovl.Names) string { return ns.Nlink })
	if err != nil {
		return false // it may be that none can be written: see readDelta
	}
	d, err := ovl.ParseNlink(v)
	if err != nil {
		return false
	}
	if d.OfLower {
		return int(lowerNlink)+d.Delta <= 0
	}
	return int(st.Nlink)+d.Delta <= 0
}

// hardKeys are the inodes by which other names of the object may be recognised, and its place in the hard-link index
// with the difference between the union's link count and the upper inode's (see hardlink).
func (u *Union) hardKeys(e *entry) (keys []inodeKey, index string, delta int, ofLower bool) {
	if e.mode() == unix.S_IFDIR || e.st.Nlink < 2 && e.index == "" {
		return nil, "", 0, false
	}
	if !e.upper && (u.opt.NoIndex || u.work != nil && (u.names == nil || !e.layer.Handles())) {
		return nil, "", 0, false // each name is copied up for itself, as by the kernel
	}
	keys = append(keys, inodeKey{sys.Dev(&e.st), e.st.Ino})
	if e.index != "" {
		keys = append(keys, e.lowerKey)
	}
	if !e.upper {
		return keys, "", 0, false
	}
	if index = e.index; index == "" {
		index = u.indexOfUpper(e)
	}
	if index == "" {
		return keys, "", 0, false
	}
	delta, ofLower = u.readDelta(index, e)
	return keys, index, delta, ofLower
}

// indexOfUpper is the index entry of an upper hard link, "" when it is none that was copied up.
func (u *Union) indexOfUpper(e *entry) string {
	idx := u.indexFD()
	if idx < 0 || e.originKey == "" {
		return ""
	}
	var st unix.Statx_t
	if sys.Statx(idx, e.originKey, &st) != nil || st.Ino != e.st.Ino {
		return ""
	}
	return e.originKey
}

// readDelta reads the nlink attribute of an indexed inode, as a difference to the upper's link count. Without one it is -1: the entry
// of the index is a link, but no name. Where there can be no attribute and the lower is known, all its names are taken to be there
// still: one link too many makes tar and rsync wait for a name that does not come, one too few would make two files of one.
func (u *Union) readDelta(index string, e *entry) (delta int, ofLower bool) {
	v, err := u.anyXattr(u.indexFD(), index, func(ns *ovl.Names) string { return ns.Nlink })
	switch {
	case err != nil && e.lowerNlink > 0 && e.mode() != unix.S_IFREG && u.names == ovl.User():
		return max(int(e.lowerNlink)-int(e.st.Nlink), -1), false
	case err != nil:
		return -1, false
	}
	d, err := ovl.ParseNlink(v)
	switch {
	case err != nil:
		u.log.Warn("link count attribute is malformed", "index", index, "err", err)
		return -1, false
	case !d.OfLower:
		return d.Delta, false
	case e.lowerNlink == 0:
		return -1, true // the lower is not to be found under this name: left by a crash, then renamed
	}
	return int(e.lowerNlink) + d.Delta - int(e.st.Nlink), true
}
