package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// overrideMode is the inode's own mode where owner and mode are kept in an attribute: readable by whoever shares the
// store, as fuse-overlayfs leaves it.
const overrideMode = 0o755

// newObject describes an object that an application makes.
type newObject struct {
	mode   uint32 // type and permissions, before umask
	rdev   uint64
	target string // of a symlink
	caller *Caller
}

// Mkdir makes a directory. EEXIST if the name is taken.
func (u *Union) Mkdir(c *Caller, dir *Node, name string, mode uint32) (*Node, Attr, error) {
	return u.create(dir, name, newObject{mode: unix.S_IFDIR | mode&0o7777, caller: c})
}

// Mknod makes a file, FIFO, socket or device. A 0:0 character device, which would be a whiteout, is kept as an escaped
// placeholder and shown as what it is.
func (u *Union) Mknod(c *Caller, dir *Node, name string, mode uint32, rdev uint64) (*Node, Attr, error) {
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	return u.create(dir, name, newObject{mode: mode, rdev: rdev, caller: c})
}

// Symlink makes a symlink to target.
func (u *Union) Symlink(c *Caller, dir *Node, name, target string) (*Node, Attr, error) {
	return u.create(dir, name, newObject{mode: unix.S_IFLNK | 0o777, target: target, caller: c})
}

// Create makes a regular file, or finds the one that is there: then O_EXCL is EEXIST, and O_TRUNC empties it.
func (u *Union) Create(c *Caller, dir *Node, name string, mode uint32, flags int) (*Node, Attr, error) {
	const tries = 100
	for try := 1; ; try++ {
		n, a, err := u.create(dir, name, newObject{mode: unix.S_IFREG | mode&0o7777, caller: c})
		if !errors.Is(err, unix.EEXIST) || flags&unix.O_EXCL != 0 {
			return n, a, err
		}
		n, a, err = u.Lookup(dir, name)
		if errors.Is(err, unix.ENOENT) && try < tries {
			continue // removed in between
		}
		if err == nil && flags&unix.O_TRUNC != 0 && n.mode == unix.S_IFREG {
			a, err = u.SetAttr(c, n, &SetAttrIn{Valid: SetSize | SetMtimeNow})
		}
		return n, a, err
	}
}

// create makes one object in dir.
func (u *Union) create(dir *Node, name string, o newObject) (*Node, Attr, error) {
	if err := checkName(name); err != nil {
		return nil, Attr{}, err
	}
	if dir.dir == nil {
		return nil, Attr{}, unix.ENOTDIR
	}
	if u.work == nil {
		return nil, Attr{}, unix.EROFS
	}
	if err := u.copyUpMeta(dir); err != nil {
		return nil, Attr{}, err
	}
	c, err := u.reserveObject(dir, name, &o)
	if err != nil {
		return nil, Attr{}, err
	}
	defer c.close()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	p, err := u.freePlaceLocked(dir, name)
	if err != nil {
		return nil, Attr{}, err
	}
	defer p.dir.Close()
	s := &staged{u: u, o: o, fd: -1}
	defer s.close()
	if err := s.create(p); err != nil {
		return nil, Attr{}, err
	}
	e := &entry{upper: true, lower: noLower(), layer: u.upper, special: s.special}
	if err := s.stat(p, &e.st); err != nil {
		return nil, Attr{}, err
	}
	n := u.instantiate(dir, name, e)
	c.done(n, e.st.Blocks)
	if n.dir != nil {
		n.dir.resolved.Store(true)
		dir.dir.countDirLocked(1)
	}
	n.set(flagNoCaps)
	if s.fd >= 0 && n.mode == unix.S_IFREG {
		u.files.Put(&n.data, s.fd, layer.ReadWrite).Close()
		s.fd = -1
	}
	dir.dir.listAddedLocked(name, n.Mode())
	return n, u.toAttr(n, &e.st), nil
}

// staged is an object on its way into the upper.
type staged struct {
	u       *Union
	o       newObject
	fd      int    // open regular file, -1 for none
	name    string // in the staging directory, "" for unnamed or already in place
	placed  bool
	special bool
	moded   bool // made with the mode that it keeps

	mode       uint32
	uid, gid   int // -1: as created
	access     []byte
	dflt       []byte
	needsOwner bool
}

// create makes the object and gives it its name. Where the bare system call already makes exactly the right object, it is
// made in place; else it is staged.
func (s *staged) create(p place) error {
	if err := s.plan(p); err != nil {
		return err
	}
	if err := s.markParent(p); err != nil {
		return err
	}
	if s.direct(p) {
		err := s.makeDirect(p)
		if !errors.Is(err, unix.EEXIST) {
			s.placed = err == nil
			return err
		}
	}
	if !p.below {
		// Not looked at yet: a whiteout without a victim may be in the way.
		if err := s.u.examine(&p); err != nil {
			return err
		}
	}
	if err := s.stage(p); err != nil {
		return err
	}
	return s.publish(p)
}

// plan decides mode, owner and ACLs (cf. inode.c inode_init_owner).
func (s *staged) plan(p place) error {
	u, o := s.u, &s.o
	typ := o.mode & unix.S_IFMT
	perm := o.mode & 0o7777
	uid, gid := u.creator(o.caller)
	if p.hint.mode&unix.S_ISGID != 0 {
		gid = int(p.hint.gid)
		if typ == unix.S_IFDIR {
			perm |= unix.S_ISGID
		}
	}
	switch {
	case typ == unix.S_IFLNK:
	case p.hint.acl != nil:
		perm, s.access, s.dflt = inheritACL(p.hint.acl, perm, typ == unix.S_IFDIR)
	default:
		perm &^= o.caller.Umask & 0o777
	}
	s.mode, s.uid, s.gid = perm, uid, gid
	s.special = typ == unix.S_IFCHR && o.rdev == 0
	if s.special && u.names == nil {
		return unix.EPERM
	}
	s.needsOwner = uid >= 0 && uid != u.euid || gid >= 0 && gid != u.egid && p.hint.mode&unix.S_ISGID == 0
	return nil
}

// markParent notes on the directory that it holds objects which need a closer look.
func (s *staged) markParent(p place) error {
	if !s.special || p.parent.has(flagSpecials) {
		return nil
	}
	return s.u.markSpecials(p.parent, p.dir.FD())
}

func (u *Union) markSpecials(dir *Node, dirfd int) error {
	if dir.has(flagSpecials) {
		return nil
	}
	u.quota.mark(dir, loc{dir: layer.Borrow(dirfd)}, 1)
	if err := u.m.Setxattr(dirfd, ".", u.names.Specials, ovl.OpaqueValue(), 0); err != nil {
		return err
	}
	dir.set(flagSpecials)
	return nil
}

// literal says whether the name of a new object must be marked as an application's.
func (s *staged) literal(p place) bool {
	return needsLiteral(s.u.upperType(s.o.mode, s.special), p.name)
}

// upperType is the type that an object of this mode has in the upper: where it can't be there as what it is, an empty file stands for it.
func (u *Union) upperType(mode uint32, special bool) uint32 {
	typ := mode & unix.S_IFMT
	if special || u.upper.Override() != "" && typ != unix.S_IFDIR && typ != unix.S_IFLNK {
		return unix.S_IFREG
	}
	return typ
}

// needsLiteral says whether an object of this type in the upper would be taken for one of the AUFS form by its name.
func needsLiteral(typ uint32, name string) bool {
	switch typ {
	case unix.S_IFREG:
		return ovl.IsAUFSName(name)
	case unix.S_IFDIR:
		return ovl.IsAUFSBookkeeping(name)
	}
	return false
}

func (s *staged) direct(p place) bool {
	setID := s.mode&(unix.S_ISUID|unix.S_ISGID|unix.S_ISVTX) != 0 && s.o.mode&unix.S_IFMT != unix.S_IFDIR
	return !p.whiteout && !p.aufs && !p.below && !p.hint.shun && !s.needsOwner && !s.special && !s.literal(p) && !setID &&
		s.u.upper.Override() == "" && s.access == nil && s.dflt == nil
}

func (s *staged) makeDirect(p place) (err error) {
	m, dirfd := s.u.m, p.dir.FD()
	switch s.o.mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.fd, err = m.Create(dirfd, p.name, unix.O_RDWR, s.mode)
	case unix.S_IFDIR:
		err = m.Mkdir(dirfd, p.name, s.mode&^unix.S_ISGID)
	case unix.S_IFLNK:
		err = m.Symlink(s.o.target, dirfd, p.name)
	default:
		err = m.Mknod(dirfd, p.name, s.o.mode&unix.S_IFMT|s.mode, s.o.rdev)
	}
	return err
}

// stage makes the object in the work directory, complete.
func (s *staged) stage(p place) error {
	if err := s.stageObject(); err != nil {
		return err
	}
	return s.stageAttrs(p)
}

func (s *staged) stageObject() error {
	w, m := s.u.work, s.u.m
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	typ := s.o.mode & unix.S_IFMT
	if s.u.upperType(typ, s.special) == unix.S_IFREG {
		f, err := w.Files()
		if err != nil {
			return err
		}
		if f.StageUnnamed {
			mode := s.mode
			if s.moded = f.ExactMode && typ == unix.S_IFREG && s.u.upper.Override() == "" && keepsMode(mode); !s.moded {
				mode = 0o600
			}
			s.fd, err = m.Tmpfile(stage, unix.O_RDWR, mode)
			return err
		}
		s.name = w.TempName()
		s.fd, err = m.Create(stage, s.name, unix.O_RDWR, 0o600)
		return err
	}
	s.name = w.TempName()
	switch typ {
	case unix.S_IFDIR:
		return m.Mkdir(stage, s.name, 0o700)
	case unix.S_IFLNK:
		return m.Symlink(s.o.target, stage, s.name)
	}
	return m.Mknod(stage, s.name, typ|0o600, s.o.rdev)
}

func (s *staged) at() (int, string) {
	if s.name == "" {
		return s.fd, ""
	}
	return s.u.work.StageFD(), s.name
}

func (s *staged) stageAttrs(p place) error {
	u := s.u
	dirfd, name := s.at()
	typ := s.o.mode & unix.S_IFMT
	set := func(attr string, v []byte) error {
		if v == nil {
			return nil
		}
		return u.m.Setxattr(dirfd, name, attr, v, 0)
	}
	mode := s.mode
	if o := u.upper.Override(); o != "" && typ != unix.S_IFLNK {
		v := ovl.OverrideStat{UID: uint32(max(s.uid, 0)), GID: uint32(max(s.gid, 0)), Mode: typ | s.mode, Rdev: s.o.rdev}
		if err := set(o, v.Encode()); err != nil {
			return err
		}
		mode = overrideMode
	} else if s.uid >= 0 || s.gid >= 0 {
		if err := u.m.Chown(dirfd, name, s.uid, s.gid); err != nil {
			return err
		}
	}
	if typ != unix.S_IFLNK && !s.moded {
		if err := u.m.Chmod(dirfd, name, mode); err != nil {
			return err
		}
	}
	if err := set(xattrACLAccess, s.access); err != nil {
		return err
	}
	if err := set(xattrACLDefault, s.dflt); err != nil {
		return err
	}
	if s.special {
		if err := set(u.names.Special, ovl.OverrideStat{Mode: unix.S_IFCHR}.Encode()); err != nil {
			return err
		}
	}
	if s.literal(p) {
		if u.names == nil {
			return unix.EINVAL
		}
		if err := set(u.names.Literal, ovl.OpaqueValue()); err != nil {
			return err
		}
	}
	if typ == unix.S_IFDIR && p.below {
		return u.makeOpaque(dirfd, name)
	}
	return nil
}

// publish gives the staged object its name, replacing a whiteout.
func (s *staged) publish(p place) error {
	u, m := s.u, s.u.m
	w := u.work
	isDir := s.o.mode&unix.S_IFMT == unix.S_IFDIR
	if p.whiteout && isDir {
		if err := u.unblock(&p); err != nil {
			return err
		}
	}
	switch {
	case !p.whiteout && s.name == "":
		if err := m.LinkFD(s.fd, p.dir.FD(), p.name); err != nil {
			return err
		}
	case !p.whiteout:
		if err := m.Rename(w.StageFD(), s.name, p.dir.FD(), p.name, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
	default:
		if err := s.named(); err != nil {
			return err
		}
		flags := uint(0)
		if isDir {
			flags = unix.RENAME_EXCHANGE // a directory does not replace a whiteout by itself
		}
		if err := m.Rename(w.StageFD(), s.name, p.dir.FD(), p.name, flags); err != nil {
			return err
		}
		if flags != 0 {
			w.Discard(s.name)
		}
		u.replacedWhiteout(&p)
	}
	s.placed = true
	if p.aufs {
		// The object hides the lowers by itself already.
		return u.dropAUFSWhiteout(p.dir.FD(), p.name)
	}
	return nil
}

// named gives a staged object without a name one in the staging directory.
func (s *staged) named() error {
	if s.name != "" {
		return nil
	}
	name := s.u.work.TempName()
	if err := s.u.m.LinkFD(s.fd, s.u.work.StageFD(), name); err != nil {
		return err
	}
	s.name = name
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (s *staged) stat(p place, st *unix.Statx_t) error {
	if s.fd >= 0 {
		return s.u.upper.Stat(s.fd, "", st)
	}
	return s.u.upper.Stat(p.dir.FD(), p.name, st)
}

func (s *staged) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	if !s.placed && s.name != "" {
		s.u.work.Discard(s.name)
	}
}

// Tmpfile makes a regular file without a name in dir's file system; Link may give it one.
func (u *Union) Tmpfile(c *Caller, dir *Node, mode uint32) (*Node, Attr, error) {
	if dir.dir == nil {
		return nil, Attr{}, unix.ENOTDIR
	}
	if u.work == nil {
		return nil, Attr{}, unix.EROFS
	}
	switch f, err := u.work.Files(); {
	case err != nil:
		return nil, Attr{}, err
	case !f.Tmpfile:
		return nil, Attr{}, unix.EOPNOTSUPP
	}
	if err := u.copyUpMeta(dir); err != nil {
		return nil, Attr{}, err
	}
	ch, err := u.reserve(amount{inodes: 1}, nil)
	if err != nil {
		return nil, Attr{}, err
	}
	defer ch.close()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	f, err := u.dirUpper(dir)
	if err != nil {
		return nil, Attr{}, err
	}
	defer f.Close()
	hint, err := u.hintLocked(dir, f.FD())
	if err != nil {
		return nil, Attr{}, err
	}
	p := place{parent: dir, dir: f, hint: hint}
	s := &staged{u: u, o: newObject{mode: unix.S_IFREG | mode&0o7777, caller: c}, fd: -1}
	defer s.close()
	if err := s.plan(p); err != nil {
		return nil, Attr{}, err
	}
	if err := s.stage(p); err != nil {
		return nil, Attr{}, err
	}
	var st unix.Statx_t
	if err := u.upper.Stat(s.fd, "", &st); err != nil {
		return nil, Attr{}, err
	}
	n := u.newNode(u.mapIno(sys.Dev(&st), st.Ino), unix.S_IFREG)
	n.refs = 1
	n.set(flagUpper | flagNameless)
	u.unlinked(n)
	ch.done(n, st.Blocks)
	u.files.PutPinned(&n.data, s.fd, layer.ReadWrite)
	s.fd = -1
	a := u.toAttr(n, &st)
	a.Nlink = 0
	return n, a, nil
}
