package fusefs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// entry is what a name stands for, as the kernel is told.
type entry struct {
	id, gen uint64 // id 0: no such name, and the kernel may remember that
	// fleeting says that the kernel must look the name up again the next time.
	fleeting bool
	attrs
}

// attrs are the attributes of a node id, and whether the kernel may cache them.
type attrs struct {
	union.Attr
	volatile bool
}

const setID = unix.S_ISUID | unix.S_ISGID

// note keeps track of what the kernel learns about a slot with its attributes.
func (s *slot) note(a *attrs) {
	if a.Mode&setID != 0 && a.Mode&unix.S_IFMT == unix.S_IFREG {
		s.setIDSeen.Store(true)
	}
	a.volatile = s.stale() || a.Provisional || s.mappable()
}

// enter makes the entry of a node that the union just returned, with the reference that came along.
func (f *FS) enter(n *union.Node, e *entry) *slot {
	id, s := f.table.acquire(n)
	e.id, e.gen = id, uint64(s.gen.Load())
	s.note(&e.attrs)
	return s
}

func (f *FS) lookup(pid uint32, dir uint64, name string, e *entry) fuse.Status {
	f.lookups[pid%lookupThreads].Add(1)
	s := f.table.slot(dir)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	if f.probing.Load() && dir == rootID && name == probeName {
		fillProbe(e)
		return fuse.OK
	}
	d := s.node.Load()
	switch name {
	case ".":
		return f.lookupSelf(dir, d, e)
	case "..":
		// Only asked to connect a directory that was opened by a handle and has lost its path.
		n, a, err := f.u.Parent(d)
		if err != nil {
			return f.status("lookup", err)
		}
		e.Attr = a
		f.enter(n, e)
		return fuse.OK
	}
	n, a, err := f.u.Lookup(d, name)
	if err != nil {
		code := f.status("lookup", err)
		if code == fuse.ENOENT && f.keep {
			e.id = 0
			return fuse.OK
		}
		return code
	}
	e.Attr = a
	f.enter(n, e)
	f.walk.looked(dir, a.Mode)
	return fuse.OK
}

// lookupSelf answers a lookup of ".", with which the kernel revives a file handle (cf. fs/fuse/inode.c
// fuse_get_dentry).
func (f *FS) lookupSelf(id uint64, n *union.Node, e *entry) fuse.Status {
	a, err := f.u.GetAttr(n)
	if err != nil {
		return f.status("lookup", err)
	}
	s, ok := f.table.again(id)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	e.Attr = a
	e.id, e.gen = id, uint64(s.gen.Load())
	if id == rootID {
		e.gen = 0
	}
	s.note(&e.attrs)
	return fuse.OK
}

func (f *FS) forget(id, count uint64) {
	n, refs, open := f.table.forget(id, count)
	if n == nil {
		return
	}
	if open != nil {
		f.closeBacking(open)
	}
	f.u.Forget(n, refs)
	f.memory.forgot()
}

func (f *FS) getattr(id uint64, a *attrs) fuse.Status {
	s := f.table.slot(id)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	var err error
	if a.Attr, err = f.u.GetAttr(s.node.Load()); err != nil {
		return f.status("getattr", err)
	}
	s.note(a)
	return fuse.OK
}

// setattrIn is struct fuse_setattr_in, as far as it is used.
type setattrIn struct {
	valid        uint32
	mode         uint32
	uid, gid     uint32
	size         uint64
	atime, mtime sys.Time
}

func (f *FS) setattr(c *union.Caller, id uint64, in *setattrIn, a *attrs) fuse.Status {
	s := f.table.slot(id)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	set := union.SetAttrIn{
		Mode: in.mode & 0o7777, UID: in.uid, GID: in.gid, Size: in.size, Atime: in.atime, Mtime: in.mtime,
	}
	for _, m := range [...]struct {
		fattr uint32
		mask  union.SetMask
	}{
		{fuse.FATTR_MODE, union.SetMode},
		{fuse.FATTR_UID, union.SetUID},
		{fuse.FATTR_GID, union.SetGID},
		{fuse.FATTR_SIZE, union.SetSize},
		{fuse.FATTR_KILL_SUIDGID, union.SetKillPriv},
	} {
		if in.valid&m.fattr != 0 {
			set.Valid |= m.mask
		}
	}
	set.Valid |= timeMask(in.valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, union.SetAtime, union.SetAtimeNow)
	set.Valid |= timeMask(in.valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, union.SetMtime, union.SetMtimeNow)

	n := s.node.Load()
	attr, err := f.u.SetAttr(c, n, &set)
	if err != nil {
		return f.status("setattr", err)
	}
	a.Attr = attr
	s.note(a)
	if a.volatile {
		f.changedElsewhere(id, n)
	}
	return fuse.OK
}

// timeMask: the kernel sets both bits for "now", the union wants one of them.
func timeMask(valid, set, now uint32, setMask, nowMask union.SetMask) union.SetMask {
	switch {
	case valid&set == 0:
		return 0
	case valid&now != 0:
		return nowMask
	}
	return setMask
}

// changedElsewhere drops the attributes that the kernel cached under the current id of n, after n was changed through
// another one, before the caller hears of the change. If the kernel is just evicting that inode, this waits for what is still
// written to it, which another reader handles.
func (f *FS) changedElsewhere(id uint64, n *union.Node) {
	if cur := f.table.current(n); cur != 0 && cur != id {
		f.corrected(n)
	}
}

func (f *FS) readlink(id uint64) (string, fuse.Status) {
	n := f.table.node(id)
	if n == nil {
		return "", fuse.Status(unix.ESTALE)
	}
	target, err := f.u.Readlink(n)
	return target, f.status("readlink", err)
}

func (f *FS) statfs(out *fuse.StatfsOut) fuse.Status {
	st, err := f.u.Statfs()
	if err != nil {
		return f.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: st.Bsize, Frsize: st.Frsize, NameLen: st.Namelen,
	}
	return fuse.OK
}

func (f *FS) statx(id uint64, out *fuse.StatxOut) fuse.Status {
	var a attrs
	if code := f.getattr(id, &a); !code.Ok() {
		return code
	}
	*out = fuse.StatxOut{Statx: fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID,
		Mode: uint16(a.Mode), Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: sxTime(a.Atime), Mtime: sxTime(a.Mtime), Ctime: sxTime(a.Ctime), Btime: sxTime(a.Btime),
		RdevMajor: unix.Major(a.Rdev), RdevMinor: unix.Minor(a.Rdev),
	}}
	if a.Btime != (sys.Time{}) {
		out.Mask |= unix.STATX_BTIME
	}
	if !a.volatile {
		out.AttrValid, out.AttrValidNsec = f.validSec, f.validNsec
	}
	return fuse.OK
}

func sxTime(t sys.Time) fuse.SxTime { return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec} }

// kernelDev is rdev in the encoding of the protocol (cf. linux/kdev_t.h new_encode_dev).
func kernelDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// userDev undoes kernelDev.
func userDev(dev uint32) uint64 {
	return unix.Mkdev(dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
}
