package tarlayer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// aufsMark is part of every name of the AUFS form: a path without it needs no call of aufsParent or whiteout.
const aufsMark = ".wh."

// whiteout unpacks a member of the AUFS form, whatever its type. It applies to the layers below only, wherever in the stream it comes
// (image-spec, layer.md, "Whiteouts"). No symlink is followed on the way to it: what it deletes was there, under this very name, when
// the layer was made.
func (a *applier) whiteout(parent, name string) error {
	victim, ok := ovl.AUFSVictim(name)
	switch {
	case name == ovl.AUFSOpaque:
		return a.opaque(parent)
	case !ok && ovl.IsAUFSBookkeeping(name):
		a.note(join(parent, name), "bookkeeping of AUFS")
		return nil
	case !ok || victim == "." || victim == "..":
		return fmt.Errorf("a whiteout of nothing: %w", ErrInvalid)
	}
	if a.underOpaque(parent) {
		// Nothing of the layers below shows there; and the kernel takes no whiteout in an opaque directory for one.
		return nil
	}
	if a.o.Whiteouts == WhiteoutRemove {
		return a.removeLower(parent, victim)
	}
	if nothing, err := a.nothingBelow(parent); err != nil || nothing {
		a.noteDeleted(join(parent, victim))
		return err
	}
	d, err := a.whiteoutDir(parent)
	if err != nil {
		return err
	}
	return a.placeWhiteout(d, name, victim)
}

func (a *applier) placeWhiteout(d *dir, name, victim string) error {
	full := join(d.path, victim)
	if err := a.unfollow(d, full); err != nil {
		return err
	}
	if a.o.Whiteouts == WhiteoutAUFS {
		a.left.delete(full)
		return a.sentinel(d.fd, name)
	}
	err := a.m.Mknod(d.fd, victim, unix.S_IFCHR, 0)
	switch {
	case err == nil:
		a.left.delete(full)
		return nil
	case errors.Is(err, unix.EEXIST):
		var st unix.Statx_t
		if err := sys.Statx(d.fd, victim, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR { // what this layer has of it stays, what is below does not show
			return a.setOpaque(d.fd, victim, full)
		}
		return nil
	case errors.Is(err, unix.EPERM) && a.o.Whiteouts == WhiteoutAny:
		a.left.delete(full)
		return a.sentinel(d.fd, name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("a whiteout is a 0:0 device, which needs root or Linux 5.8: %w", err)
	}
	return fmt.Errorf("whiteout: %w", err)
}

// whiteoutDir is dir for a whiteout: a symlink on the way is refused.
func (a *applier) whiteoutDir(parent string) (*dir, error) {
	d, err := a.dir(parent)
	if err == nil && d.path != parent {
		err = fmt.Errorf("the directory of a whiteout is reached through a symlink: %w", ErrInvalid)
	}
	return d, err
}

// sentinel makes an empty file of the AUFS form; it may exist.
func (a *applier) sentinel(dirfd int, name string) error {
	fd, err := a.m.Create(dirfd, name, unix.O_WRONLY, 0o600)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("whiteout %s: %w", name, err)
	}
	return unix.Close(fd)
}

// opaque makes the directory parent hide what the layers below have in it.
func (a *applier) opaque(parent string) error {
	if a.o.Whiteouts == WhiteoutRemove {
		a.noteOpaque(parent)
		return a.emptyLower(parent)
	}
	if nothing, err := a.nothingBelow(parent); err != nil || nothing {
		a.noteOpaque(parent)
		return err
	}
	d, err := a.whiteoutDir(parent)
	if err != nil {
		return err
	}
	return a.setOpaque(d.fd, "", d.path)
}

// noteOpaque remembers that the directory path hides all of the layers below. Whiteouts beneath it are redundant from now on, and do
// not count in the layer's sum.
func (a *applier) noteOpaque(path string) {
	a.opaques[path] = true
	a.left.forgetDeleted(path)
}

// underOpaque says whether the directory path or a parent of it is opaque.
func (a *applier) underOpaque(path string) bool {
	for len(a.opaques) > 0 {
		if a.opaques[path] {
			return true
		}
		if path == "" {
			return false
		}
		path = parentOf(path)
	}
	return false
}

// setOpaque marks the directory at the path full as opaque: by the attribute, or by the AUFS form's file where the options ask for
// that, or allow it and the attribute is refused. The directory is name in dirfd, or dirfd itself if name is empty.
func (a *applier) setOpaque(dirfd int, name, full string) error {
	a.noteOpaque(full)
	if a.o.Whiteouts != WhiteoutAUFS {
		if err := a.dropWhiteouts(dirfd, name); err != nil {
			return pathError("opaque directory", full, err)
		}
		err := a.m.Setxattr(dirfd, name, a.names.Opaque, ovl.OpaqueValue(), 0)
		refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)
		switch {
		case err == nil:
			return nil
		case !refused || a.o.Whiteouts != WhiteoutAny:
			return fmt.Errorf("attribute %s: %w", a.names.Opaque, err)
		}
	}
	if name == "" {
		return a.sentinel(dirfd, ovl.AUFSOpaque)
	}
	fd, err := sys.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return a.sentinel(fd, ovl.AUFSOpaque)
}

// makeAfterWhiteout puts a directory that the stream does not describe where a whiteout is: nothing below may show in
// it.
func (a *applier) makeAfterWhiteout(parent *dir, name string) error {
	if err := a.m.Unlink(parent.fd, name); err != nil {
		return pathError("replace whiteout", join(parent.path, name), err)
	}
	ob := a.plainDir()
	if err := a.mapOwner(&ob); err != nil {
		return err
	}
	if err := a.makeDir(parent, name, join(parent.path, name), &ob); err != nil {
		return err
	}
	return a.setOpaque(parent.fd, name, join(parent.path, name))
}

// removeLower deletes name in the directory parent from a tree that holds the layers below, but for what this stream
// put there.
func (a *applier) removeLower(parent, name string) error {
	d, ok, err := a.existingDir(parent)
	if err != nil {
		return err
	}
	if !ok {
		// There is nothing to delete, and the sum of the layer is that with any driver.
		a.left.delete(join(parent, name))
		return nil
	}
	full := join(d.path, name)
	if a.left.has(full) {
		a.noteOpaque(full)
		var st unix.Statx_t
		if err := sys.Statx(d.fd, name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return err
		}
		return a.removeBelow(d.fd, name, full)
	}
	err = a.clear(d, name, full)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	a.left.delete(full)
	return nil
}

// emptyLower deletes everything in the directory path that is not of this stream.
func (a *applier) emptyLower(path string) error {
	d, ok, err := a.existingDir(path)
	if err != nil || !ok {
		return err
	}
	return a.removeBelow(d.fd, "", d.path)
}

// existingDir is whiteoutDir of a directory that may be missing, and is not made then: nothing is there to delete.
func (a *applier) existingDir(path string) (d *dir, ok bool, err error) {
	if d = a.dirs.get(path); d == nil {
		d, err = a.openDir(path)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, false, nil
	case err == nil && d.path != path:
		err = fmt.Errorf("the directory of a whiteout is reached through a symlink: %w", ErrInvalid)
	}
	return d, err == nil, err
}

// noteAlone remembers that the layers below do not have the directory path, which is made now.
func (a *applier) noteAlone(path string) {
	if a.alone == nil {
		a.alone = make(map[string]bool)
	}
	a.alone[path] = true
}

// noteDeleted counts a whiteout that is not made, since the layers below have nothing there: the sum must be that of any driver.
func (a *applier) noteDeleted(full string) {
	if a.left.has(full) {
		a.noteOpaque(full)
	} else {
		a.left.delete(full)
	}
}

// nothingBelow says whether the layers below are known to show nothing in the directory path. Then a whiteout in it deletes nothing, and
// must not be made: the kernel shows whiteouts in a directory that only one layer has. The layers below, which may not be complete yet,
// are only asked if this layer does not have the directory either, because it would be made with their attributes then.
func (a *applier) nothingBelow(path string) (bool, error) {
	if a.o.Lower == nil {
		return false, nil
	}
	for p := path; p != "" && len(a.alone) > 0; p = parentOf(p) {
		if a.alone[p] {
			return true, nil
		}
	}
	if d := a.dirs.get(path); d != nil || path == "" {
		return false, nil
	}
	have, typ, err := a.wayInLayer(path)
	switch {
	case err != nil, have == path, typ == unix.S_IFLNK:
		return false, err
	case typ != 0:
		return true, nil // something hides what is below
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(path, have), "/")
	for name := range strings.SplitSeq(rest, "/") {
		have = join(have, name)
		at, err := a.o.Lower.Lstat(have)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return true, nil
		case err != nil:
			return false, pathError("whiteout", have, err)
		case at.Mode&unix.S_IFMT == unix.S_IFLNK:
			return false, nil
		case at.Mode&unix.S_IFMT != unix.S_IFDIR:
			return true, nil
		}
	}
	return false, nil
}

// wayInLayer returns how much of the way to the directory path the layer itself has, and the type bits of what is there instead of the
// next directory, 0 for nothing.
func (a *applier) wayInLayer(path string) (have string, typ uint32, err error) {
	dir := a.root.FD()
	defer func() {
		if dir != a.root.FD() {
			unix.Close(dir)
		}
	}()
	for name := range strings.SplitSeq(path, "/") {
		var st unix.Statx_t
		if err := sys.Statx(dir, name, &st); errors.Is(err, unix.ENOENT) {
			return have, 0, nil
		} else if err != nil {
			return have, 0, pathError("whiteout", join(have, name), err)
		}
		if t := uint32(st.Mode) & unix.S_IFMT; t != unix.S_IFDIR {
			return have, t, nil
		}
		next, err := sys.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return have, 0, pathError("whiteout", join(have, name), err)
		}
		if dir != a.root.FD() {
			unix.Close(dir)
		}
		dir, have = next, join(have, name)
	}
	return have, 0, nil
}

// removeBelow deletes what is in the directory name of dirfd (dirfd itself if name is empty) and not of this stream.
func (a *applier) removeBelow(dirfd int, name, full string) error {
	fd, err := openForList(dirfd, name)
	if err != nil {
		return pathError("empty", full, err)
	}
	defer unix.Close(fd)
	var names []string
	err = layer.List(fd, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	})
	if err != nil {
		return pathError("empty", full, err)
	}
	for _, n := range names {
		p := join(full, n)
		if !a.left.has(p) {
			err = a.removeTree(fd, n)
			a.forgetLate(p)
		} else {
			var st unix.Statx_t
			if err = sys.Statx(fd, n, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				err = a.removeBelow(fd, n, p)
			}
		}
		if err != nil {
			return pathError("empty", p, err)
		}
	}
	a.dirs.close()
	return nil
}

// dropWhiteouts removes the whiteouts in and beneath a directory of a stacked layer.
func (a *applier) dropWhiteouts(dirfd int, name string) error {
	fd, err := openForList(dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	entries, err := listEntries(fd)
	for _, e := range entries {
		switch {
		case err != nil:
			return err
		case e.Type == unix.DT_DIR:
			err = a.dropWhiteouts(fd, e.Name)
		case e.Type == unix.DT_CHR:
			var st unix.Statx_t
			if err = sys.Statx(fd, e.Name, &st); err == nil && layer.IsWhiteoutDevice(&st) {
				err = a.m.Unlink(fd, e.Name)
			}
		}
	}
	return err
}

// listEntries returns the entries of a directory, with their types also where the file system does not tell.
func listEntries(fd int) ([]layer.RawDirent, error) {
	var entries []layer.RawDirent
	err := layer.List(fd, func(e layer.RawDirent) error {
		if e.Type == unix.DT_UNKNOWN {
			var st unix.Statx_t
			if err := sys.Statx(fd, e.Name, &st); err != nil {
				return err
			}
			e.Type = uint8(uint32(st.Mode) & unix.S_IFMT >> 12)
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func openForList(dirfd int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	return sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// removeTree removes name in dirfd with all that is beneath it.
func (a *applier) removeTree(dirfd int, name string) error {
	err := a.m.Unlink(dirfd, name)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := a.m.Rmdir(dirfd, name); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := openForList(dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var names []string
	err = layer.List(fd, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	})
	for _, n := range names {
		if err == nil {
			err = a.removeTree(fd, n)
		}
	}
	if err != nil {
		return err
	}
	return a.m.Rmdir(dirfd, name)
}
