package tarlayer

import (
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// put gives name in d to the object; what was there before goes, but that a directory is merged with one.
func (a *applier) put(d *dir, name string, ob *object) error {
	full := join(d.path, name)
	err := a.unfollow(d, full)
	if err != nil {
		return err
	}
	if ob.typ == unix.S_IFDIR {
		err = a.putDir(d, name, full, ob)
	} else {
		err = a.make(d, name, full, ob)
		if errors.Is(err, unix.EEXIST) {
			a.left.index()
			if err = a.clear(d, name, full); err == nil {
				err = a.make(d, name, full, ob)
			}
		}
	}
	if err != nil {
		return err
	}
	a.left.put(full, ob)
	return nil
}

// make makes an object that is no directory; EEXIST if the name is taken.
func (a *applier) make(d *dir, name, full string, ob *object) error {
	placeholder := a.override != "" && ob.typ != unix.S_IFLNK || a.stacked && ob.special()
	if ob.typ == unix.S_IFREG || placeholder {
		return a.makeFile(d, name, full, ob)
	}
	if ob.typ == unix.S_IFLNK {
		if err := a.m.Symlink(ob.target, d.fd, name); err != nil {
			return err
		}
		return a.dress(a.fresh(d, d.fd, name, full, 0o777), ob)
	}
	mode := ob.mode & 0o777
	err := a.m.Mknod(d.fd, name, ob.typ|mode, ob.rdev)
	if errors.Is(err, unix.EPERM) && ob.isDevice() {
		return fmt.Errorf("mknod: %w: %w; only root of the machine makes device nodes, others can have them skipped",
			ErrDevice, err)
	}
	if err != nil {
		return err
	}
	return a.dress(a.fresh(d, d.fd, name, full, mode), ob)
}

func (a *applier) makeFile(d *dir, name, full string, ob *object) error {
	mode := a.inodeMode(ob) & 0o777
	fd, err := a.m.Create(d.fd, name, unix.O_WRONLY, mode)
	if err != nil {
		return err
	}
	e := a.fresh(d, fd, "", full, mode)
	if a.leave(e, ob) {
		return nil
	}
	defer unix.Close(fd)
	if ob.typ == unix.S_IFREG && ob.size > 0 {
		if err := a.writeContent(fd, ob); err != nil {
			return err
		}
	} else if a.o.Sum {
		ob.sum = xxhash.Sum64(nil)
	}
	if err := a.dress(e, ob); err != nil {
		return err
	}
	if a.stacked && a.override == "" && ob.special() {
		return a.markSpecial(d, fd)
	}
	return nil
}

// clear removes what is in the way of another object. The way to any cached directory may lead through it, so that d
// alone stays open.
func (a *applier) clear(d *dir, name, full string) error {
	a.res.Replaced = a.res.Replaced || a.left.has(full)
	err := a.m.Unlink(d.fd, name)
	if errors.Is(err, unix.EISDIR) {
		if err = a.removeTree(d.fd, name); err == nil {
			a.forgetLate(full)
			a.left.forgetTree(full)
			a.forgetOpaque(full)
		}
	}
	if err != nil {
		return pathError("replace", full, err)
	}
	return a.dirs.keepOnly(d)
}

// forgetLate drops what was to be done at the end with the directories at and beneath path, which are gone.
func (a *applier) forgetLate(path string) {
	for p := range a.late {
		if p == path || isBeneath(p, path) {
			delete(a.late, p)
		}
	}
}

// forgetOpaque forgets the marks of directories at and beneath path, which are gone.
func (a *applier) forgetOpaque(path string) {
	for p := range a.opaques {
		if p == path || isBeneath(p, path) {
			delete(a.opaques, p)
		}
	}
}

// putDir makes a directory or merges with the one that is there.
func (a *applier) putDir(d *dir, name, full string, ob *object) error {
	err := a.makeDir(d, name, full, ob)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	a.left.index()
	var st unix.Statx_t
	if err := sys.Statx(d.fd, name, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		a.dirs.forget(full)
		return a.mergeDir(entry{at: d.fd, name: name, path: full}, ob)
	case a.stacked && layer.IsWhiteoutDevice(&st):
		if err := a.m.Unlink(d.fd, name); err != nil {
			return pathError("replace whiteout", full, err)
		}
		if err := a.makeDir(d, name, full, ob); err != nil {
			return err
		}
		return a.setOpaque(d.fd, name, full)
	}
	if err := a.clear(d, name, full); err != nil {
		return err
	}
	if err := a.makeDir(d, name, full, ob); err != nil || !a.stacked {
		return err
	}
	// What the file before it replaced does not come back.
	return a.setOpaque(d.fd, name, full)
}

// makeDir makes a directory that children can be made in, whatever its mode will be; EEXIST if the name is taken.
func (a *applier) makeDir(d *dir, name, full string, ob *object) error {
	mode := a.inodeMode(ob)&0o777 | 0o700
	if err := a.m.Mkdir(d.fd, name, mode); err != nil {
		return err
	}
	if d.setgid {
		mode |= unix.S_ISGID // as the kernel passes it on
	}
	return a.dressDir(a.fresh(d, d.fd, name, full, mode), ob)
}

// mergeDir gives an existing directory the attributes of a member; those that it had and the member has not go.
func (a *applier) mergeDir(e entry, ob *object) error {
	if err := a.dropXattrs(e, ob); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := sys.Statx(e.at, e.name, &st); err != nil {
		return err
	}
	e.uid, e.gid, e.mode = st.Uid, st.Gid, uint32(st.Mode)&0o7777
	return a.dressDir(e, ob)
}

// mergeRoot is mergeDir of the root.
func (a *applier) mergeRoot(ob *object) error {
	a.dirs.forget("")
	if a.rootSeen {
		a.left.index()
	}
	a.rootSeen = true
	if err := a.mergeDir(entry{at: a.root.FD()}, ob); err != nil {
		return err
	}
	a.left.put("", ob)
	return nil
}

// dressDir is dress of a directory, and leaves for the end what would be in the way of entries, or undone by them.
func (a *applier) dressDir(e entry, ob *object) error {
	late := &lateDir{atime: ob.atime, mtime: ob.mtime}
	now := *ob // shares the attributes, of which dress notes those that were set
	for i := range ob.xattrs {
		if x := &ob.xattrs[i]; x.diskName == xattrACLDefault {
			late.acl = &xattr{diskName: x.diskName, diskValue: x.diskValue}
			x.kept = true
		}
	}
	if a.override == "" && ob.mode&0o700 != 0o700 {
		late.mode, late.setMode = ob.mode, true
		now.mode |= 0o700
	}
	a.late[e.path] = late
	return a.dress(e, &now)
}

// markSpecial makes the empty file fd stand for a 0:0 device, and lets its directory say that it holds such a file.
func (a *applier) markSpecial(d *dir, fd int) error {
	v := specialValue()
	if err := a.m.Setxattr(fd, "", a.names.Special, v, 0); err != nil {
		return fmt.Errorf("attribute %s: %w", a.names.Special, err)
	}
	if err := a.m.Setxattr(d.fd, "", a.names.Specials, v, 0); err != nil {
		return fmt.Errorf("attribute %s: %w", a.names.Specials, err)
	}
	return nil
}
