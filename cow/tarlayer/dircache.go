package tarlayer

import (
	"container/list"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

const (
	// openDirs is how many directories are held open: streams come directory by directory.
	openDirs = 64
	// maxLinks is how many symlinks that lead nowhere are followed to make a parent (cf. the kernel's MAXSYMLINKS).
	maxLinks = 40
	// maxOpenat2 bounds one argument of openat2(2); longer ways are walked in pieces, which can't follow symlinks.
	maxOpenat2 = 4000
)

// dir is an open directory of the tree.
type dir struct {
	fd int
	// path is where the directory really is, without symlinks on the way; key the name by which the stream means it.
	path, key string
	// gid and setgid say what group new entries get.
	gid    uint32
	setgid bool
	// inherits says that new entries get ACLs from the directory's default one.
	inherits bool
}

// dirCache keeps the directories used last. The descriptors are its own.
type dirCache struct {
	last  *dir
	byKey map[string]*list.Element
	order *list.List // of *dir, the one used last in front
}

func newDirCache() dirCache {
	return dirCache{byKey: make(map[string]*list.Element), order: list.New()}
}

func (c *dirCache) get(key string) *dir {
	if c.last != nil && c.last.key == key {
		return c.last
	}
	e := c.byKey[key]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	c.last = e.Value.(*dir)
	return c.last
}

func (c *dirCache) add(d *dir) {
	if old := c.byKey[d.key]; old != nil {
		c.drop(old)
	}
	if c.order.Len() >= openDirs {
		c.drop(c.order.Back())
	}
	c.byKey[d.key] = c.order.PushFront(d)
	c.last = d
}

func (c *dirCache) drop(e *list.Element) {
	d := c.order.Remove(e).(*dir)
	delete(c.byKey, d.key)
	if c.last == d {
		c.last = nil
	}
	unix.Close(d.fd)
}

// forget drops the directory that really is at path, under whatever name: what it says of new entries changed.
func (c *dirCache) forget(path string) {
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*dir).path == path {
			c.drop(e)
		}
		e = next
	}
}

// keepOnly drops all directories but d, which may have been dropped already.
func (c *dirCache) keepOnly(d *dir) error {
	if e := c.byKey[d.key]; e == nil || e.Value.(*dir) != d {
		return unix.EBADF
	}
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*dir) != d {
			c.drop(e)
		}
		e = next
	}
	return nil
}

// close closes all directories. The cache is empty then and can be used on: what was removed or replaced in the tree
// may have been on the way to any of them.
func (c *dirCache) close() {
	for c.order.Len() > 0 {
		c.drop(c.order.Back())
	}
}

// lateDir is what a directory gets when the stream is over.
type lateDir struct {
	atime, mtime unix.Timespec
	mode         uint32
	setMode      bool
	// acl is the default ACL, which entries made meanwhile would inherit; nil for none.
	acl *xattr
	// inherits says that the directory has a default ACL already, and keeps it: entries made meanwhile do inherit it.
	inherits bool
}

// dir returns the directory that a clean path of the stream leads to, made if it does not exist. A symlink on the way
// is followed as within a container: its root is the tree's, and nothing leads out of it. The descriptor belongs to the
// cache and is valid until the next call.
func (a *applier) dir(key string) (*dir, error) {
	if d := a.dirs.get(key); d != nil {
		return d, nil
	}
	return a.ensureDir(key, 0)
}

func (a *applier) ensureDir(key string, links int) (*dir, error) {
	d, err := a.openDir(key)
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return d, err
	}
	if key == "" {
		return nil, err
	}
	parent, perr := a.ensureDir(parentOf(key), links)
	if perr != nil {
		return nil, perr
	}
	name := baseOf(key)
	var st unix.Statx_t
	switch err := sys.Statx(parent.fd, name, &st); {
	case errors.Is(err, unix.ENOENT):
		return a.makeParent(parent, name, key, links)
	case err != nil:
		return nil, pathError("parent", join(parent.path, name), err)
	case a.stacked && layer.IsWhiteoutDevice(&st):
		if err := a.makeAfterWhiteout(parent, name); err != nil {
			return nil, err
		}
		return a.openReal(join(parent.path, name), key)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return a.openReal(join(parent.path, name), key)
	case st.Mode&unix.S_IFMT != unix.S_IFLNK:
		return nil, fmt.Errorf("parent %q is no directory: %w: %w",
			"/"+join(parent.path, name), ErrInvalid, unix.ENOTDIR)
	case links == maxLinks:
		return nil, fmt.Errorf("parent %q: %w: %w", "/"+join(parent.path, name), ErrInvalid, unix.ELOOP)
	}
	// A symlink whose target is not there yet, maybe in a layer below: its directory is made, as a container's mkdir -p
	// would.
	target, err := sys.Readlinkat(parent.fd, name)
	if err != nil {
		return nil, pathError("parent", join(parent.path, name), err)
	}
	return a.follow(parent.path, target, key, links)
}

// follow returns the directory that a symlink in the directory at stands for, made if it does not exist, and puts it into the cache
// as key.
func (a *applier) follow(at, target, key string, links int) (*dir, error) {
	if !path.IsAbs(target) {
		target = "/" + at + "/" + target
	}
	to, err := a.ensureDir(strings.TrimPrefix(path.Clean(target), "/"), links+1)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(to.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("parent", to.path, err)
	}
	return a.adopt(fd, key, to.path)
}

// openReal opens the directory that is at the path full, where no symlink is on the way, and puts it into the cache as key.
func (a *applier) openReal(full, key string) (*dir, error) {
	fd, err := layer.OpenDirAt(a.root.FD(), full)
	if err != nil {
		return nil, pathError("parent", full, err)
	}
	return a.adopt(fd, key, full)
}

// unfollow forgets which directories were reached through a symlink of the layers below at the path full, which gets something else
// now. d alone stays open.
func (a *applier) unfollow(d *dir, full string) error {
	if !a.followed[full] {
		return nil
	}
	delete(a.followed, full)
	return a.dirs.keepOnly(d)
}

// openDir opens an existing directory and puts it into the cache.
func (a *applier) openDir(key string) (*dir, error) {
	where := key
	fd, err := layer.OpenDirAt(a.root.FD(), key)
	// A symlink is ELOOP on the way and ENOTDIR at its end.
	if (errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR)) && len(key) <= maxOpenat2 {
		if fd, err = openInRoot(a.root.FD(), key); err == nil {
			where, err = realPath(a.root.FD(), fd)
		}
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		if errors.Is(err, unix.ELOOP) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil, pathError("parent", key, err)
	}
	return a.adopt(fd, key, where)
}

// adopt describes the open directory fd, which it owns from now on, and puts it into the cache.
func (a *applier) adopt(fd int, key, where string) (*dir, error) {
	var st unix.Statx_t
	if err := sys.Statx(fd, "", &st); err != nil {
		unix.Close(fd)
		return nil, pathError("parent", where, err)
	}
	late := a.late[where]
	if late == nil {
		// A directory that the stream does not describe stays as it was, its times included.
		late = &lateDir{
			atime: sys.TimeOf(st.Atime).Timespec(),
			mtime: sys.TimeOf(st.Mtime).Timespec(),
		}
		_, err := cow.GetXattr(fd, "", xattrACLDefault)
		late.inherits = err == nil
		a.late[where] = late
	}
	d := &dir{
		fd: fd, path: where, key: key, gid: st.Gid, setgid: st.Mode&unix.S_ISGID != 0, inherits: late.inherits,
	}
	a.dirs.add(d)
	return d, nil
}

// makeParent makes a directory that the stream does not have, like the one in the layers below if that is known. A symlink that they
// have there is followed.
func (a *applier) makeParent(parent *dir, name, key string, links int) (*dir, error) {
	full := join(parent.path, name)
	ob := a.plainDir()
	if err := a.mapOwner(&ob); err != nil {
		return nil, pathError("parent", full, err)
	}
	// Under an opaque directory nothing of the layers below shows: one that they have of that name is deleted, and this is another.
	if a.o.Lower != nil && !a.underOpaque(parent.path) {
		lower, err := a.describeLower(full)
		switch {
		case err == nil && lower.typ == unix.S_IFDIR:
			ob = *lower
		case err == nil && lower.typ != unix.S_IFLNK:
			return nil, fmt.Errorf("parent %q is no directory: %w: %w", "/"+full, ErrInvalid, unix.ENOTDIR)
		case err == nil && links == maxLinks:
			return nil, fmt.Errorf("parent %q: %w: %w", "/"+full, ErrInvalid, unix.ELOOP)
		case err == nil:
			if a.followed == nil {
				a.followed = make(map[string]bool)
			}
			a.followed[full] = true
			return a.follow(parent.path, lower.target, key, links)
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return nil, pathError("parent", full, err)
		default:
			a.noteAlone(full)
		}
	}
	if err := a.makeDir(parent, name, full, &ob); err != nil {
		return nil, pathError("parent", full, err)
	}
	return a.openReal(full, key)
}

// plainDir is a directory of which nothing is known, as old as the member that needs it.
func (a *applier) plainDir() object {
	return object{typ: unix.S_IFDIR, mode: 0o755, atime: a.when, mtime: a.when}
}

// openInRoot opens a directory by a path whose symlinks are resolved as if root were the process's root.
func openInRoot(root int, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(root, path, &how)
		// EAGAIN: a rename raced with the walk and the kernel could not prove that it stayed beneath.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// realPath is the way from root to the directory fd beneath it.
func realPath(root, fd int) (string, error) {
	base, err := sys.Readlinkat(unix.AT_FDCWD, sys.ProcPath(root))
	if err != nil {
		return "", err
	}
	full, err := sys.Readlinkat(unix.AT_FDCWD, sys.ProcPath(fd))
	if err != nil {
		return "", err
	}
	if full == base {
		return "", nil
	}
	rest, ok := strings.CutPrefix(full, strings.TrimSuffix(base, "/")+"/")
	if !ok {
		return "", fmt.Errorf("%q is not beneath %q: %w", full, base, unix.EXDEV)
	}
	return rest, nil
}
