package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// rawFS is the FS as go-fuse wants it: for its server, and for the requests that the fast transport does not decode
// itself.
type rawFS struct {
	*FS
	// init is called when go-fuse's server has answered INIT.
	init func(*fuse.Server)
	// counted says that the transport counts requests already.
	counted bool
	scratch *sync.Pool
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

func newRawFS(f *FS) *rawFS {
	return &rawFS{FS: f, scratch: &sync.Pool{New: func() any {
		s := make([]union.Dirent, scratchLen)
		return &s
	}}}
}

// scratchLen is the number of entries asked of the union at once.
const scratchLen = 256

func (r *rawFS) count(op uint32) {
	if !r.counted {
		r.counts.count(op)
	}
}

func caller(h *fuse.InHeader, umask uint32) union.Caller {
	return union.Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid, Umask: umask & 0o777}
}

func fillAttr(out *fuse.Attr, a *union.Attr) {
	*out = fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: uint64(a.Atime.Sec), Mtime: uint64(a.Mtime.Sec), Ctime: uint64(a.Ctime.Sec),
		Atimensec: a.Atime.Nsec, Mtimensec: a.Mtime.Nsec, Ctimensec: a.Ctime.Nsec,
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: kernelDev(a.Rdev), Blksize: a.Blksize,
	}
}

func (f *FS) fillAttrOut(out *fuse.AttrOut, a *attrs) {
	*out = fuse.AttrOut{}
	if !a.volatile {
		out.AttrValid, out.AttrValidNsec = f.validSec, f.validNsec
	}
	fillAttr(&out.Attr, &a.Attr)
}

func (f *FS) fillEntry(out *fuse.EntryOut, e *entry) {
	*out = fuse.EntryOut{NodeId: e.id, Generation: e.gen}
	if !e.fleeting {
		out.EntryValid, out.EntryValidNsec = f.validSec, f.validNsec
	}
	if e.id == 0 {
		return
	}
	if !e.volatile {
		out.AttrValid, out.AttrValidNsec = f.validSec, f.validNsec
	}
	fillAttr(&out.Attr, &e.Attr)
}

func (r *rawFS) fillEntryIf(code fuse.Status, out *fuse.EntryOut, e *entry) fuse.Status {
	if code.Ok() {
		r.fillEntry(out, e)
	}
	return code
}

func (r *rawFS) String() string { return "plyfs" }

func (r *rawFS) SetDebug(bool) {}

func (r *rawFS) Init(s *fuse.Server) {
	if r.init != nil {
		r.init(s)
	}
}

func (r *rawFS) OnUnmount() {}

func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	r.count(opLookup)
	var e entry
	return r.fillEntryIf(r.lookup(h.Pid, h.NodeId, name, &e), out, &e)
}

func (r *rawFS) Forget(id, count uint64) {
	r.count(opForget)
	r.forget(id, count)
}

func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.count(opGetattr)
	var a attrs
	code := r.getattr(in.NodeId, &a)
	if code.Ok() {
		r.fillAttrOut(out, &a)
	}
	return code
}

func (r *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.count(opSetattr)
	c := caller(&in.InHeader, 0)
	var a attrs
	code := r.setattr(&c, in.NodeId, &setattrIn{
		valid: in.Valid, mode: in.Mode, uid: in.Uid, gid: in.Gid, size: in.Size,
		atime: sys.Time{Sec: int64(in.Atime), Nsec: in.Atimensec},
		mtime: sys.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
	}, &a)
	if code.Ok() {
		r.fillAttrOut(out, &a)
	}
	return code
}

func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	r.count(opReadlink)
	target, code := r.readlink(h.NodeId)
	return []byte(target), code
}

func (r *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status {
	r.count(opAccess)
	return fuse.ENOSYS
}

func (r *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	r.count(opStatfs)
	return r.statfs(out)
}

func (r *rawFS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	r.count(opStatx)
	return r.statx(in.NodeId, out)
}

func (r *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	r.count(opMknod)
	c := caller(&in.InHeader, in.Umask)
	var e entry
	return r.fillEntryIf(r.mknod(&c, in.NodeId, name, in.Mode, in.Rdev, &e), out, &e)
}

func (r *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	r.count(opMkdir)
	c := caller(&in.InHeader, in.Umask)
	var e entry
	return r.fillEntryIf(r.mkdir(&c, in.NodeId, name, in.Mode, &e), out, &e)
}

func (r *rawFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	r.count(opSymlink)
	c := caller(h, 0)
	var e entry
	return r.fillEntryIf(r.symlink(&c, h.NodeId, name, target, &e), out, &e)
}

func (r *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	r.count(opLink)
	var e entry
	return r.fillEntryIf(r.link(in.Oldnodeid, in.NodeId, name, &e), out, &e)
}

func (r *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r.count(opUnlink)
	return r.unlink(h.NodeId, name)
}

func (r *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r.count(opRmdir)
	return r.rmdir(h.NodeId, name)
}

func (r *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	flags := uint32(0)
	if in.Opcode == opRename2 {
		flags = in.Flags
	}
	r.count(in.Opcode)
	c := caller(&in.InHeader, 0)
	return r.rename(&c, in.NodeId, oldName, in.Newdir, newName, flags)
}

func (r *rawFS) createAny(in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c := caller(&in.InHeader, in.Umask)
	var e entry
	var o opened
	code := r.create(&c, in.NodeId, name, in, &e, &o)
	if code.Ok() {
		r.fillEntry(&out.EntryOut, &e)
		out.OpenOut = fuse.OpenOut{OpenFlags: o.flags, BackingID: o.backing}
	}
	return code
}

func (r *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	r.count(opCreate)
	return r.createAny(in, name, out)
}

func (r *rawFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	r.count(opTmpfile)
	return r.createAny(in, "", out)
}

func (r *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r.count(opOpen)
	c := caller(&in.InHeader, 0)
	var o opened
	code := r.open(&c, in.NodeId, in.Flags, in.Mode, &o)
	if code.Ok() {
		*out = fuse.OpenOut{OpenFlags: o.flags, BackingID: o.backing}
	}
	return code
}

func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r.count(opRead)
	n, code := r.read(in.NodeId, buf, int64(in.Offset))
	return fuse.ReadResultData(buf[:n]), code
}

func (r *rawFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	r.count(opWrite)
	n, code := r.write(in.NodeId, data, int64(in.Offset), in.WriteFlags)
	return uint32(n), code
}

func (r *rawFS) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (r *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	r.count(opRelease)
	r.release(in.NodeId)
}

func (r *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	r.count(opFlush)
	return fuse.ENOSYS
}

func (r *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	r.count(opFsync)
	return r.fsync(in.NodeId, in.FsyncFlags)
}

func (r *rawFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	r.count(opFsyncdir)
	return r.fsync(in.NodeId, in.FsyncFlags)
}

func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	r.count(opFallocate)
	c := caller(&in.InHeader, 0)
	return r.fallocate(&c, in)
}

func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	r.count(opLseek)
	return r.lseek(in, out)
}

func (r *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	r.count(opCopyRange)
	c := caller(&in.InHeader, 0)
	return r.copyRange(&c, in)
}

func (r *rawFS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, _ *fuse.IoctlOut, outbuf []byte) fuse.Status {
	r.count(opIoctl)
	return r.ioctl(in.NodeId, in.Cmd, inbuf, outbuf)
}

func (r *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r.count(opOpendir)
	var o opened
	code := r.opendir(in.NodeId, &o)
	if code.Ok() {
		*out = fuse.OpenOut{OpenFlags: o.flags}
	}
	return code
}

func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.count(opReaddir)
	scratch := r.scratch.Get().(*[]union.Dirent)
	defer r.scratch.Put(scratch)
	return r.readdir(in.NodeId, in.Offset, int(in.Size), *scratch, out)
}

func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.count(opReaddirplus)
	scratch := r.scratch.Get().(*[]union.Dirent)
	defer r.scratch.Put(scratch)
	return r.readdirplus(in.NodeId, in.Offset, in.Pid, int(in.Size), *scratch, out)
}

func (r *rawFS) ReleaseDir(*fuse.ReleaseIn) { r.count(opReleasedir) }

func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	r.count(opGetxattr)
	n, code := r.getxattr(h.NodeId, name, dest)
	return uint32(n), code
}

func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	r.count(opListxattr)
	n, code := r.listxattr(h.NodeId, h.Uid, dest)
	return uint32(n), code
}

func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	r.count(opSetxattr)
	return r.setxattr(in.NodeId, name, data, in.Flags, in.SetXAttrFlags)
}

func (r *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r.count(opRemovexattr)
	return r.removexattr(h.NodeId, name)
}

// Locks are never asked for: they are not negotiated, and the kernel keeps them itself.

func (r *rawFS) GetLk(<-chan struct{}, *fuse.LkIn, *fuse.LkOut) fuse.Status {
	return fuse.ENOSYS
}

func (r *rawFS) SetLk(<-chan struct{}, *fuse.LkIn) fuse.Status { return fuse.ENOSYS }

func (r *rawFS) SetLkw(<-chan struct{}, *fuse.LkIn) fuse.Status { return fuse.ENOSYS }
