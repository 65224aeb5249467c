package union

import (
	"cmp"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// followMetacopy replaces fd, an open lower file at r, by the file that holds its data if it is a metadata-only copy
// (cf. overlayfs namei.c ovl_lookup, uppermetacopy). It owns fd.
func (u *Union) followMetacopy(fd int, r lowerRef) (int, error) {
	for depth := 0; depth <= len(u.lowers); depth++ {
		ns := u.metacopyNames(fd)
		if ns == nil {
			return fd, nil
		}
		next, err := u.lowerDataRef(fd, ns, r)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		l, err := u.refLoc(next)
		if err != nil {
			return -1, err
		}
		fd, err = openNoatime(l.fd(), l.name)
		l.close()
		if err != nil {
			return -1, err
		}
		r = next
	}
	unix.Close(fd)
	return -1, unix.ELOOP
}

// metacopyNames returns the namespace in which the open file says that it is a metadata-only copy, nil if it is none.
func (u *Union) metacopyNames(fd int) *ovl.Names {
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := unix.Fgetxattr(fd, ns.Metacopy, nil); err == nil {
			return ns
		}
	}
	return nil
}

// lowerDataRef finds the object below r that a metadata-only copy at r stands for.
func (u *Union) lowerDataRef(fd int, ns *ovl.Names, r lowerRef) (lowerRef, error) {
	name := r.name
	if v, err := cow.GetXattr(fd, "", ns.Redirect); err == nil {
		red, err := parseRedirect(v)
		if err != nil {
			return lowerRef{}, err
		}
		if name = red.Path; red.Absolute {
			dir, name := splitPath(red.Path)
			return u.findLower(r.layer+1, dir, name)
		}
	}
	// In the directory that the copy is in: what that is called further down, the redirects of its own layer say.
	at, err := u.walkLowers(u.rootLowers(r.layer), r.dir)
	if err != nil {
		return lowerRef{}, err
	}
	for len(at) > 0 && at[0].layer <= r.layer {
		at = at[1:]
	}
	return u.findLowerIn(at, r.dir, name)
}

// findLower looks for dir/name in the merged lowers from index first on; EIO if there is no regular file.
func (u *Union) findLower(first int32, dir, name string) (lowerRef, error) {
	at, err := u.walkLowers(u.rootLowers(first), dir)
	if err != nil {
		return lowerRef{}, err
	}
	return u.findLowerIn(at, dir, name)
}

// findLowerIn is findLower in the merged directory at, which is called dir.
func (u *Union) findLowerIn(at []lowerDir, dir, name string) (lowerRef, error) {
	found, dirs, err := u.probeLowers(at, name)
	if err != nil {
		return lowerRef{}, err
	}
	if !found.exists() || dirs != nil {
		return lowerRef{}, fmt.Errorf("no lower data for metadata-only copy of %s: %w", joinPath(dir, name), unix.EIO)
	}
	found.view = dir
	return found, nil
}

// completeMetacopy gives a metadata-only copy the first limit bytes of its data, in place. Until the metacopy attribute goes, what
// is read is the lower's data, up to the copy's size (cf. copy_up.c ovl_copy_up_meta_inode_data).
func (u *Union) completeMetacopy(n *Node, limit int64) error {
	if err := u.beginData(); err != nil {
		return err
	}
	src, err := u.lowerData(n)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	f, err := u.metacopyFile(n)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statx_t
	if err := sys.Statx(f.FD(), "", &st); err != nil {
		return err
	}
	size := min(int64(st.Size), limit)
	c, err := u.reserveData(src, size)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.onExact(n, f.FD(), ""); err != nil { // before the mark, which may take a block
		return err
	}
	marked := false
	if u.marks && size > 0 && !n.has(flagUnlinked) {
		if err := u.markUnsynced(n, f.FD(), ""); err != nil {
			return err
		}
		marked = true
	}
	err = u.fillMetacopy(n, f, src, size, &st)
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if marked { // after a failure too: the mark would outlive what is written and synced from now on
		n.set(flagUnsynced)
		u.noteUnsynced(n)
	}
	if err != nil {
		return err
	}
	if err := u.m.Removexattr(f.FD(), "", u.names.Metacopy); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	if _, named := u.upperLink(n); named {
		u.files.Drop(&n.data) // the lower's
	}
	n.clear(flagMetacopy)
	return nil
}

// fillMetacopy copies size bytes of src into f, whose attributes st stay as they were, also if that fails.
func (u *Union) fillMetacopy(n *Node, f *layer.File, src int, size int64, st *unix.Statx_t) error {
	const setID = unix.S_ISUID | unix.S_ISGID
	err := u.keepCaps(n, loc{dir: layer.Borrow(f.FD()), layer: u.upper}, func() error {
		copied, err := u.copiers[n.lower.layer].CopyData(u.m, f.FD(), src, size)
		u.copyUpBytes.Add(uint64(copied))
		if err == nil && size == 0 && st.Size > 0 {
			err = u.m.Truncate(f.FD(), 0)
		}
		return err
	})
	if st.Mode&setID != 0 { // which a write without CAP_FSETID takes away
		err = cmp.Or(err, u.m.Chmod(f.FD(), "", uint32(st.Mode&^unix.S_IFMT)))
	}
	return cmp.Or(err, u.m.Utimes(f.FD(), "", sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec()))
}

// metacopyFile opens the upper object of a metadata-only copy for writing.
func (u *Union) metacopyFile(n *Node) (*layer.File, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.upperLoc(n)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var fd int
	if l.name == "" {
		fd, err = sys.Reopen(l.fd(), unix.O_RDWR)
	} else {
		fd, err = u.retryFiles(func() (int, error) { return sys.Openat(l.fd(), l.name, unix.O_RDWR) })
	}
	if err != nil {
		return nil, err
	}
	return layer.Own(fd), nil
}
