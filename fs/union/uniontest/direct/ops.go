package direct

import (
	"golang.org/x/sys/unix"

	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/sys"
)

// made gives back the node that a creation returned.
func (t *Tree) made(n *union.Node, _ union.Attr, err error) error {
	if err == nil {
		t.hold(1)
		t.forget(n)
	}
	return err
}

// Mkdir makes a directory.
func (t *Tree) Mkdir(p string, mode uint32) error {
	return t.at("mkdir", p, func(d *union.Node, name string) error {
		return t.made(t.u.Mkdir(t.caller(), d, name, mode))
	})
}

// Mknod makes a node.
func (t *Tree) Mknod(p string, mode uint32, dev uint64) error {
	return t.at("mknod", p, func(d *union.Node, name string) error {
		return t.made(t.u.Mknod(t.caller(), d, name, mode, dev))
	})
}

// Symlink makes a symlink.
func (t *Tree) Symlink(target, p string) error {
	return t.at("symlink", p, func(d *union.Node, name string) error {
		if target == "" {
			return unix.ENOENT
		}
		return t.made(t.u.Symlink(t.caller(), d, name, target))
	})
}

// Link makes a hard link.
func (t *Tree) Link(a, b string) error {
	return t.on("link to "+b, a, false, func(n *union.Node) error {
		return t.at("link", b, func(d *union.Node, name string) error { return t.linkNode(n, d, name) })
	})
}

// linkNode does what vfs_link does before it asks the file system.
func (t *Tree) linkNode(n, d *union.Node, name string) error {
	if have, err := t.lookup(d, name); err == nil {
		t.forget(have)
		return unix.EEXIST
	}
	if n.IsDir() {
		return unix.EPERM
	}
	_, err := t.u.Link(n, d, name)
	if err == nil {
		t.hold(1)
		t.forget(n)
	}
	return err
}

// LinkFile gives an open file a name.
func (t *Tree) LinkFile(f uniontest.File, p string) error {
	return t.at("linkat", p, func(d *union.Node, name string) error { return t.linkNode(f.(*file).n, d, name) })
}

// Unlink removes a name that is no directory's.
func (t *Tree) Unlink(p string) error {
	return t.at("unlink", p, func(d *union.Node, name string) error {
		n, err := t.lookup(d, name)
		if err != nil {
			return err
		}
		defer t.forget(n)
		if n.IsDir() {
			return unix.EISDIR
		}
		return t.u.Unlink(d, name)
	})
}

// Rmdir removes a directory.
func (t *Tree) Rmdir(p string) error {
	return t.at("rmdir", p, func(d *union.Node, name string) error {
		n, err := t.lookup(d, name)
		if err != nil {
			return err
		}
		defer t.forget(n)
		if !n.IsDir() {
			return unix.ENOTDIR
		}
		return t.u.Rmdir(d, name)
	})
}

// Rename renames.
func (t *Tree) Rename(a, b string, flags uint32) error {
	return t.at("rename to "+b, a, func(d1 *union.Node, n1 string) error {
		return t.at("rename", b, func(d2 *union.Node, n2 string) error {
			if err := t.mayRename(a, d1, n1, b, d2, n2, flags); err != nil || flags&^7 != 0 {
				return err
			}
			err := t.u.Rename(t.caller(), d1, n1, d2, n2, flags)
			return err
		})
	})
}

// mayRename does what do_renameat2 and vfs_rename do before they ask the file system, but for nothing to do, where the
// engine is asked all the same.
func (t *Tree) mayRename(a string, d1 *union.Node, n1, b string, d2 *union.Node, n2 string, flags uint32) error {
	exchange := flags&unix.RENAME_EXCHANGE != 0
	if flags&^7 != 0 || exchange && flags != unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	src, err := t.lookup(d1, n1)
	if err != nil {
		return err
	}
	defer t.forget(src)
	if inside(a, b) {
		return unix.EINVAL
	}
	dst, err := t.lookup(d2, n2)
	if err != nil {
		if exchange {
			return err
		}
		return nil
	}
	defer t.forget(dst)
	switch {
	case flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case exchange && inside(b, a):
		return unix.EINVAL
	case inside(b, a):
		return unix.ENOTEMPTY
	case exchange || src == dst:
		return nil
	case src.IsDir() && !dst.IsDir():
		return unix.ENOTDIR
	case !src.IsDir() && dst.IsDir():
		return unix.EISDIR
	}
	return nil
}

// inside reports whether the path b lies beneath a. Paths of the suite that are renamed lead through no symlinks, except
// in random scripts, where a loop that it misses must be the engine's to find.
func inside(a, b string) bool {
	x, y := split(a), split(b)
	if len(y) <= len(x) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// Open opens a file.
func (t *Tree) Open(p string, flags int, mode uint32) (uniontest.File, error) {
	f, err := t.openNode(p, flags, mode)
	if err != nil {
		return nil, uniontest.Errno("open", p, err)
	}
	return f, nil
}

func (t *Tree) openNode(p string, flags int, mode uint32) (*file, error) {
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		return t.openTmpfile(p, flags, mode)
	}
	exclusive := flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL
	dir, name, err := t.parent(p, flags&unix.O_NOFOLLOW == 0 && !exclusive)
	if err != nil {
		return nil, err
	}
	defer t.forget(dir)
	if name == "" {
		return nil, unix.EISDIR
	}
	n, err := t.lookup(dir, name)
	switch {
	case err == unix.ENOENT && flags&unix.O_CREAT != 0: //nolint:errorlint // lookup's own
		n, _, err := t.u.Create(t.caller(), dir, name, mode, flags)
		if err != nil {
			return nil, err
		}
		t.hold(1)
		return &file{t: t, n: n, append: flags&unix.O_APPEND != 0}, nil
	case err != nil:
		return t.createOver(dir, name, flags, mode, err)
	}
	if err := t.mayOpen(n, flags, exclusive, writes); err != nil {
		t.forget(n)
		return nil, err
	}
	f := &file{t: t, n: n, append: flags&unix.O_APPEND != 0}
	if flags&unix.O_TRUNC != 0 {
		if err := f.Truncate(0); err != nil {
			t.forget(n)
			return nil, err
		}
	}
	return f, nil
}

// createOver creates what a lookup did not find.
func (t *Tree) createOver(dir *union.Node, name string, flags int, mode uint32, lookup error) (*file, error) {
	if flags&unix.O_CREAT == 0 || !isNotExist(lookup) {
		return nil, lookup
	}
	n, _, err := t.u.Create(t.caller(), dir, name, mode, flags)
	if err != nil {
		return nil, err
	}
	t.hold(1)
	return &file{t: t, n: n, append: flags&unix.O_APPEND != 0}, nil
}

func (t *Tree) openTmpfile(p string, flags int, mode uint32) (*file, error) {
	dir, err := t.walk(p, true)
	if err != nil {
		return nil, err
	}
	defer t.forget(dir)
	n, _, err := t.u.Tmpfile(t.caller(), dir, mode)
	if err != nil {
		return nil, err
	}
	t.hold(1)
	return &file{t: t, n: n, append: flags&unix.O_APPEND != 0}, nil
}

func (t *Tree) mayOpen(n *union.Node, flags int, exclusive, writes bool) error {
	kind := n.Mode() & unix.S_IFMT
	switch {
	case exclusive:
		return unix.EEXIST
	case flags&unix.O_DIRECTORY != 0 && kind != unix.S_IFDIR:
		return unix.ENOTDIR
	case kind == unix.S_IFDIR && (writes || flags&unix.O_CREAT != 0):
		return unix.EISDIR
	case kind == unix.S_IFLNK:
		return unix.ELOOP
	case writes:
		return t.writable()
	}
	return nil
}

// Lstat stats without following.
func (t *Tree) Lstat(p string) (st uniontest.Stat, err error) {
	err = t.on("stat", p, false, func(n *union.Node) error {
		a, err := t.u.GetAttr(n)
		st = stat(a)
		return err
	})
	return st, err
}

func stat(a union.Attr) uniontest.Stat {
	return uniontest.Stat{
		Dev: 1, Ino: a.Ino, Nlink: uint64(a.Nlink), Mode: a.Mode, UID: a.UID, GID: a.GID, Rdev: a.Rdev, Size: int64(a.Size),
		Blocks: int64(a.Blocks), Blksize: int64(a.Blksize), Atime: a.Atime.Timespec(), Mtime: a.Mtime.Timespec(),
		Ctime: a.Ctime.Timespec(), Btime: a.Btime.Timespec(),
	}
}

func (t *Tree) setAttr(n *union.Node, in union.SetAttrIn) error {
	if err := t.writable(); err != nil {
		return err
	}
	_, err := t.u.SetAttr(t.caller(), n, &in)
	return err
}

// Chmod changes a mode.
func (t *Tree) Chmod(p string, mode uint32) error {
	return t.on("chmod", p, true, func(n *union.Node) error { return t.chmod(n, mode) })
}

func (t *Tree) chmod(n *union.Node, mode uint32) error {
	return t.setAttr(n, union.SetAttrIn{Valid: union.SetMode, Mode: mode})
}

// Chown changes an owner.
func (t *Tree) Chown(p string, uid, gid int) error {
	return t.on("chown", p, false, func(n *union.Node) error { return t.chown(n, uid, gid) })
}

func (t *Tree) chown(n *union.Node, uid, gid int) error {
	in := union.SetAttrIn{UID: uint32(uid), GID: uint32(gid)}
	if uid != -1 {
		in.Valid |= union.SetUID
	}
	if gid != -1 {
		in.Valid |= union.SetGID
	}
	if !n.IsDir() {
		in.Valid |= union.SetKillPriv
	}
	return t.setAttr(n, in)
}

// Utimens sets times.
func (t *Tree) Utimens(p string, atime, mtime unix.Timespec) error {
	return t.on("utimens", p, false, func(n *union.Node) error { return t.utimens(n, atime, mtime) })
}

func (t *Tree) utimens(n *union.Node, atime, mtime unix.Timespec) error {
	in := union.SetAttrIn{
		Atime: sys.Time{Sec: int64(atime.Sec), Nsec: uint32(atime.Nsec)},
		Mtime: sys.Time{Sec: int64(mtime.Sec), Nsec: uint32(mtime.Nsec)},
	}
	switch atime.Nsec {
	case unix.UTIME_OMIT:
	case unix.UTIME_NOW:
		in.Valid |= union.SetAtimeNow
	default:
		in.Valid |= union.SetAtime
	}
	switch mtime.Nsec {
	case unix.UTIME_OMIT:
	case unix.UTIME_NOW:
		in.Valid |= union.SetMtimeNow
	default:
		in.Valid |= union.SetMtime
	}
	return t.setAttr(n, in)
}

// Truncate sets a size.
func (t *Tree) Truncate(p string, size int64) error {
	return t.on("truncate", p, true, func(n *union.Node) error {
		switch {
		case size < 0:
			return unix.EINVAL
		case n.IsDir():
			return unix.EISDIR
		case n.Mode()&unix.S_IFMT != unix.S_IFREG:
			return unix.EINVAL
		}
		return t.truncate(n, size)
	})
}

func (t *Tree) truncate(n *union.Node, size int64) error {
	in := union.SetAttrIn{Valid: union.SetSize, Size: uint64(size)}
	if t.cred.UID != 0 {
		in.Valid |= union.SetKillPriv
	}
	return t.setAttr(n, in)
}

// Readlink reads a symlink.
func (t *Tree) Readlink(p string) (target string, err error) {
	err = t.on("readlink", p, false, func(n *union.Node) (err error) {
		if n.Mode()&unix.S_IFMT != unix.S_IFLNK {
			return unix.EINVAL
		}
		target, err = t.u.Readlink(n)
		return err
	})
	return target, err
}

// Getxattr reads an attribute.
func (t *Tree) Getxattr(p, name string, dest []byte) (n int, err error) {
	err = t.on("getxattr "+name, p, false, func(node *union.Node) (err error) {
		n, err = t.u.Getxattr(node, name, dest)
		return err
	})
	return n, err
}

// Setxattr sets an attribute.
func (t *Tree) Setxattr(p, name string, value []byte, flags int) error {
	return t.on("setxattr "+name, p, false, func(n *union.Node) error { return t.setxattr(n, name, value, flags) })
}

func (t *Tree) setxattr(n *union.Node, name string, value []byte, flags int) error {
	switch {
	case t.writable() != nil:
		return unix.EROFS
	case len(name) > 255:
		return unix.ERANGE
	case len(value) > 65536:
		return unix.E2BIG
	}
	return t.u.Setxattr(n, name, value, flags)
}

// Removexattr removes an attribute.
func (t *Tree) Removexattr(p, name string) error {
	return t.on("removexattr "+name, p, false, func(n *union.Node) error { return t.u.Removexattr(n, name) })
}

// Listxattr lists attributes.
func (t *Tree) Listxattr(p string, dest []byte) (n int, err error) {
	err = t.on("listxattr", p, false, func(node *union.Node) (err error) {
		n, err = t.u.Listxattr(node, dest)
		return err
	})
	return n, err
}

// Statfs returns the numbers of the upper's file system.
func (t *Tree) Statfs() (uniontest.Statfs, error) {
	s, err := t.u.Statfs()
	return uniontest.Statfs{
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree, Namelen: int64(s.Namelen),
	}, err
}
