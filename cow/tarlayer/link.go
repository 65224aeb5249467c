package tarlayer

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// hardLink gives a file of the tree a second name.
func (a *applier) hardLink(hdr *tar.Header, path string) error {
	target, err := a.linkName(hdr.Linkname, path)
	if err != nil {
		return err
	}
	if err := a.link(target, path); err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	return nil
}

// linkName returns the path that the target of the hard link at path stands for.
func (a *applier) linkName(linkname, path string) (string, error) {
	target, err := a.cleanName(linkname)
	switch {
	case err != nil:
		return "", fmt.Errorf("hard link: %w", err)
	case path == "" || target == "":
		return "", fmt.Errorf("hard link to %q: the root is a directory: %w", linkname, ErrInvalid)
	case path == target:
		return "", fmt.Errorf("hard link to itself: %w", ErrInvalid)
	}
	if strings.Contains(target, aufsMark) {
		if skip, err := aufsParent(target); skip || err != nil {
			return "", fmt.Errorf("hard link to %q, which is no file of a tree: %w", linkname, ErrInvalid)
		}
	}
	return target, nil
}

func (a *applier) link(target, path string) error {
	from, err := a.linkTarget(target)
	if err != nil {
		return err
	}
	// What follows may empty the cache that holds the target's directory.
	fromFD, err := unix.FcntlInt(uintptr(from.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fromFD)
	old, oldPath := baseOf(target), join(from.path, baseOf(target))
	d, err := a.dir(parentOf(path))
	if err != nil {
		return err
	}
	name, full := baseOf(path), join(d.path, baseOf(path))
	if err := a.unfollow(d, full); err != nil {
		return err
	}
	err = a.m.Link(fromFD, old, d.fd, name)
	if errors.Is(err, unix.EEXIST) {
		if same, serr := sameFile(fromFD, old, d.fd, name); same || serr != nil {
			return serr
		}
		if err = a.clear(d, name, full); err == nil {
			err = a.m.Link(fromFD, old, d.fd, name)
		}
	}
	if err != nil {
		return err
	}
	return a.left.link(full, oldPath, func() (uint64, error) { return a.attrsOf(oldPath) })
}

// attrsOf describes a file of the tree that is no member of the stream.
func (a *applier) attrsOf(path string) (uint64, error) {
	src := NewDirSource(a.root, DirOptions{IDs: a.o.IDs})
	defer src.Close()
	at, err := src.Lstat(path)
	if err != nil {
		return 0, err
	}
	return attrsHash(src, path, at, make([]byte, ioBuffer))
}

func sameFile(adir int, aname string, bdir int, bname string) (bool, error) {
	var x, y unix.Statx_t
	if err := sys.Statx(adir, aname, &x); err != nil {
		return false, err
	}
	if err := sys.Statx(bdir, bname, &y); err != nil {
		return false, err
	}
	return x.Ino == y.Ino && sys.Dev(&x) == sys.Dev(&y), nil
}

// linkTarget returns the directory of the file that a hard link names. A file that only the layers below have is copied
// up.
func (a *applier) linkTarget(target string) (*dir, error) {
	d, err := a.dir(parentOf(target))
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	err = sys.Statx(d.fd, baseOf(target), &st)
	switch {
	case err == nil && a.stacked && layer.IsWhiteoutDevice(&st):
		return nil, fmt.Errorf("a whiteout deletes it: %w: %w", ErrInvalid, unix.ENOENT)
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, fmt.Errorf("it is a directory: %w", ErrInvalid)
	case errors.Is(err, unix.ENOENT) && a.o.Lower != nil:
		err = a.copyUp(d, join(d.path, baseOf(target)))
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("it is not in this layer: %w", err)
	}
	return d, err
}

// copyUp makes a file as the layers below have it.
func (a *applier) copyUp(d *dir, full string) error {
	ob, err := a.describeLower(full)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("it is neither in this layer nor below: %w", err)
	}
	if err != nil {
		return err
	}
	switch ob.typ {
	case unix.S_IFDIR:
		return fmt.Errorf("it is a directory below: %w", ErrInvalid)
	case unix.S_IFREG:
		f, err := a.o.Lower.Open(full)
		if err != nil {
			return err
		}
		defer f.Close()
		ob.content = &fileContent{r: f, left: ob.size}
	}
	if err := a.put(d, baseOf(full), ob); err != nil {
		return err
	}
	a.left.below(full)
	return nil
}

// describeLower turns a path of the layers below into an object.
func (a *applier) describeLower(path string) (*object, error) {
	at, err := a.o.Lower.Lstat(path)
	if err != nil {
		return nil, err
	}
	ob := &object{
		typ: at.Mode & unix.S_IFMT, mode: at.Mode & 0o7777, cuid: at.UID, cgid: at.GID,
		atime: at.Mtime.Timespec(), mtime: at.Mtime.Timespec(), rdev: at.Rdev,
	}
	switch ob.typ {
	case unix.S_IFREG:
		ob.size = at.Size
	case unix.S_IFLNK:
		if ob.target, err = a.o.Lower.Readlink(path); err != nil {
			return nil, err
		}
	}
	if err := a.mapOwner(ob); err != nil {
		return nil, err
	}
	seen, err := a.o.Lower.Xattrs(path)
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if !a.appliesXattr(name) {
			continue
		}
		x, err := a.newXattr(name, seen[name])
		if err != nil {
			return nil, err
		}
		ob.xattrs = append(ob.xattrs, x)
	}
	return ob, err
}
