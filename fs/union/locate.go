package union

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// loc is where an object of a layer is: name below dir, or dir itself when name is empty or ".".
type loc struct {
	dir   *layer.File
	name  string
	layer *layer.Layer
}

func (l loc) fd() int { return l.dir.FD() }
func (l loc) close()  { l.dir.Close() }

// retryFiles runs an open and, when the process has no descriptor left, closes idle ones and tries once more.
func (u *Union) retryFiles(open func() (int, error)) (int, error) {
	fd, err := open()
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		u.dirs.Shrink()
		u.files.Shrink()
		fd, err = open()
	}
	return fd, err
}

// dirUpper returns the upper directory of n. Precondition: renameMu is held, n has an upper.
func (u *Union) dirUpper(n *Node) (*layer.File, error) {
	if n == u.root {
		return u.upper.Root(), nil
	}
	if f := u.dirs.Get(&n.dir.upper); f != nil {
		return f, nil
	}
	l := u.firstLink(n)
	if l.parent == nil {
		return nil, unix.ESTALE
	}
	pf, err := u.dirUpper(l.parent)
	if err != nil {
		return nil, err
	}
	defer pf.Close()
	fd, err := u.retryFiles(func() (int, error) {
		return sys.Openat(pf.FD(), l.name, unix.O_PATH|unix.O_DIRECTORY)
	})
	if err != nil {
		return nil, err
	}
	return u.dirs.Put(&n.dir.upper, fd, layer.ReadOnly), nil
}

func (u *Union) openLower(d *lowerDir) (*layer.File, error) {
	l := u.lowers[d.layer]
	if d.path == "" {
		return l.Root(), nil
	}
	if f := u.dirs.Get(&d.slot); f != nil {
		return f, nil
	}
	fd, err := u.retryFiles(func() (int, error) { return l.OpenDir(d.path) })
	if err != nil {
		return nil, err
	}
	return u.dirs.Put(&d.slot, fd, layer.ReadOnly), nil
}

// lowerLoc is the place of the topmost lower object of a node that was looked up in the lowers.
func (u *Union) lowerLoc(n *Node) (loc, error) {
	r := n.lower
	if !r.exists() {
		return loc{}, unix.ESTALE
	}
	l := u.lowers[r.layer]
	if p := u.firstLink(n).parent; p != nil {
		for i := range p.dir.lowers {
			if d := &p.dir.lowers[i]; d.layer == r.layer && d.path == r.dir {
				f, err := u.openLower(d)
				return loc{f, r.name, l}, err
			}
		}
	}
	return u.refLoc(r)
}

func (u *Union) refLoc(r lowerRef) (loc, error) {
	l := u.lowers[r.layer]
	if r.dir == "" {
		return loc{l.Root(), r.name, l}, nil
	}
	fd, err := u.retryFiles(func() (int, error) { return l.OpenDir(r.dir) })
	if err != nil {
		return loc{}, err
	}
	return loc{layer.Own(fd), r.name, l}, nil
}

// upperLoc is the place of n's upper object. Precondition: renameMu is held, n has an upper.
func (u *Union) upperLoc(n *Node) (loc, error) {
	if n.IsDir() {
		f, err := u.dirUpper(n)
		return loc{f, ".", u.upper}, err
	}
	if n.has(flagUnlinked) {
		if f := u.files.Get(&n.data); f != nil {
			return loc{f, "", u.upper}, nil
		}
		return loc{}, unix.ESTALE
	}
	if l, ok := u.upperLink(n); ok {
		f, err := u.dirUpper(l.parent)
		return loc{f, l.name, u.upper}, err
	}
	if n.hard() != nil && n.hard().index() != "" {
		return loc{layer.Borrow(u.indexFD()), n.hard().index(), u.upper}, nil
	}
	if f := u.files.Get(&n.data); f != nil { // being unlinked right now
		return loc{f, "", u.upper}, nil
	}
	return loc{}, unix.ESTALE
}

// openUpperLoc is upperLoc for who needs no name: of a file whose data is open, the descriptor, which spares the kernel
// the way to it. Precondition: renameMu is held, n has an upper.
func (u *Union) openUpperLoc(n *Node) (loc, error) {
	if n.mode == unix.S_IFREG && !n.has(flagMetacopy) {
		if f := u.files.Get(&n.data); f != nil {
			if f.Writable { // what is open for writing is the upper's
				return loc{f, "", u.upper}, nil
			}
			f.Close()
		}
	}
	return u.upperLoc(n)
}

// attrLoc is the place of the object whose attributes n shows; the name may be empty. Precondition: renameMu is held.
func (u *Union) attrLoc(n *Node) (loc, error) {
	if n.has(flagUpper) {
		return u.openUpperLoc(n)
	}
	if n == u.root {
		return loc{u.lowers[0].Root(), ".", u.lowers[0]}, nil
	}
	// The attributes of a merged directory are those of its topmost lower.
	return u.lowerLoc(n)
}

// dataFile returns a descriptor of n's data. Precondition: renameMu is held; for writing, the data is in the upper.
func (u *Union) dataFile(n *Node, want Access) (*layer.File, error) {
	if f := u.files.Get(&n.data); f != nil {
		if (want == ForReading || f.Writable) && !n.has(flagUnlinked) && !(f.Writable && n.has(flagMetacopy)) {
			return f, nil
		}
		f.Close()
	}
	u.steady(n)
	defer u.unsteady(n)
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.has(flagUnlinked) && n.has(flagUpper) {
		return u.unlinkedFileLocked(n, want)
	}
	inUpper := n.has(flagUpper) && !n.has(flagMetacopy)
	if want == ForWriting && !inUpper {
		return nil, unix.ESTALE // a caller's copy-up was undone: cannot happen
	}
	if !inUpper {
		if f := u.files.Get(&n.data); f != nil {
			f.Close() // the upper object is held there, for want of a name
			return u.openLowerDataUncached(n)
		}
		return u.openLowerData(n)
	}
	l, err := u.upperLoc(n)
	if err != nil {
		return nil, err
	}
	defer l.close()
	if l.name == "" { // the names that are left are not known
		return u.unlinkedFileLocked(n, want)
	}
	fd, got, err := u.openUpperData(l, want)
	if err != nil {
		return nil, err
	}
	return u.files.Put(&n.data, fd, got), nil
}

// openUpperData opens the upper file at l, for writing too wherever that is possible, so that one descriptor serves all.
func (u *Union) openUpperData(l loc, want Access) (fd int, got layer.Access, err error) {
	flags := unix.O_RDWR
	if u.opt.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err = u.retryFiles(func() (int, error) {
		fd, err := sys.Openat(l.fd(), l.name, flags)
		if want == ForReading && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.ETXTBSY) || errors.Is(err, unix.EROFS) ||
			errors.Is(err, unix.EPERM)) {
			flags = unix.O_RDONLY
			fd, err = sys.Openat(l.fd(), l.name, flags)
		}
		return fd, err
	})
	return fd, layer.AccessOf(flags), err
}

// unlinkedFileLocked reopens the pinned descriptor of an unlinked object for I/O, if it is an O_PATH one. Precondition:
// n.copyMu is held.
func (u *Union) unlinkedFileLocked(n *Node, want Access) (*layer.File, error) {
	f := u.files.Get(&n.data)
	if f == nil {
		return nil, unix.ESTALE
	}
	if n.has(flagMetacopy) {
		f.Close()
		return u.openLowerDataUncached(n)
	}
	if f.Writable || want == ForReading && readable(f.FD()) {
		return f, nil
	}
	defer f.Close()
	flags := unix.O_RDWR
	if u.opt.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err := sys.Reopen(f.FD(), flags)
	if err != nil {
		return nil, err
	}
	nf := u.files.Put(&n.data, fd, layer.AccessOf(flags))
	u.files.Pin(&n.data)
	return nf, nil
}

func readable(fd int) bool {
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && fl&unix.O_PATH == 0
}

// openLowerData opens the data of a lower file, or of a metadata-only copy of one. Precondition: n.copyMu is held.
func (u *Union) openLowerData(n *Node) (*layer.File, error) {
	fd, err := u.openLowerFD(n)
	if err != nil {
		return nil, err
	}
	return u.files.Put(&n.data, fd, layer.ReadOnly), nil
}

func (u *Union) openLowerDataUncached(n *Node) (*layer.File, error) {
	fd, err := u.openLowerFD(n)
	if err != nil {
		return nil, err
	}
	return layer.Own(fd), nil
}

// openLowerFD opens the lower file that holds n's data, following metadata-only copies among the lowers. The caller owns
// the descriptor.
func (u *Union) openLowerFD(n *Node) (int, error) {
	l, err := u.lowerLoc(n)
	if err != nil {
		return -1, err
	}
	defer l.close()
	return u.retryFiles(func() (int, error) {
		fd, err := openNoatime(l.fd(), l.name)
		switch {
		case err == nil:
			u.checkOpened(n, fd)
		case errors.Is(err, unix.ENOENT) && n.has(flagRecorded):
			u.distrust(fmt.Sprintf("/%s is gone from layer %s", joinPath(n.lower.dir, n.lower.name), u.lowers[n.lower.layer].Path))
		}
		if err != nil || n.lower.layer == int32(len(u.lowers)-1) {
			return fd, err
		}
		return u.followMetacopy(fd, n.lower)
	})
}

// openNoatime opens a lower file for reading without moving its access time, where the file's owner allows it (cf.
// overlayfs.h OVL_OPEN_FLAGS).
func openNoatime(dirfd int, name string) (int, error) {
	fd, err := sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK)
	if errors.Is(err, unix.EPERM) {
		fd, err = sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	return fd, err
}
