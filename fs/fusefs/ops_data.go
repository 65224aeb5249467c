package fusefs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// open answers OPEN. In no-open mode that happens once: the kernel then never asks again.
func (f *FS) open(c *union.Caller, id uint64, flags, openFlags uint32, o *opened) fuse.Status {
	s := f.table.slot(id)
	switch {
	case id == probeID:
		return fuse.ENOSYS
	case s == nil:
		return fuse.Status(unix.ESTALE)
	}
	switch f.modeNow() {
	case modeNoOpen:
		return fuse.ENOSYS
	case modeReopen:
		*o = opened{flags: fuse.FOPEN_NOFLUSH}
		return fuse.OK
	}
	n := s.node.Load()
	if flags&unix.O_TRUNC != 0 {
		// FUSE_ATOMIC_O_TRUNC: truncating first spares the copy-up of what is thrown away.
		in := union.SetAttrIn{Valid: union.SetSize}
		if openFlags&fuse.OPEN_KILL_SUIDGID != 0 {
			in.Valid |= union.SetKillPriv
		}
		if _, err := f.u.SetAttr(c, n, &in); err != nil {
			return f.status("open", err)
		}
	}
	want := union.ForReading
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		want = union.ForWriting
	}
	code := f.openBacking(n, s, want, c.PID, o)
	if code.Ok() && s.noteMappable(flags, o) {
		f.attrChanged(id)
	}
	return code
}

func (f *FS) read(id uint64, p []byte, off int64) (int, fuse.Status) {
	n := f.table.node(id)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	k, err := f.u.Read(n, p, off)
	if err != nil {
		return 0, f.status("read", err)
	}
	return k, fuse.OK
}

func (f *FS) write(id uint64, p []byte, off int64, writeFlags uint32) (int, fuse.Status) {
	s := f.table.slot(id)
	if s == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	n := s.node.Load()
	bits := union.KeepSetID
	if writeFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		bits = union.KillSetID
	}
	k, err := f.u.Write(n, p, off, bits)
	if err == nil && k < len(p) && writeFlags&fuse.WRITE_CACHE != 0 {
		// Nobody waits for this answer to write the rest: of write-back the kernel sees only errors.
		_, err = f.u.Write(n, p[k:], off+int64(k), bits)
	}
	if err != nil {
		return 0, f.status("write", err)
	}
	if bits == union.KillSetID {
		f.privKilled(id, s)
	}
	if s.stale() {
		f.changedElsewhere(id, n)
	}
	return k, fuse.OK
}

// privKilled is called after an operation that cleared the set-id bits of id, if there were any. The kernel expects
// that and yet goes on using the mode it knows, in execve(2) too. The caller of the operation keeps the inode alive,
// so the notification can be written before the answer.
func (f *FS) privKilled(id uint64, s *slot) {
	if !s.setIDSeen.Swap(false) {
		return
	}
	f.attrChanged(id)
}

// attrChanged drops the attributes that the kernel cached of id, which the caller of the running operation keeps alive.
func (f *FS) attrChanged(id uint64) {
	f.counts.notices.Add(1)
	if err := invalInode(f.dev.Load().Fd(), id, onlyAttrs); err != nil {
		f.log.Warn("notification refused", "node", id, "error", err)
	}
}

// setFlags answers the ioctls of chattr(1), after which the kernel goes on using the ctime that it knows.
func (f *FS) setFlags(id uint64, s *slot, set func(*union.Node) error) fuse.Status {
	n := s.node.Load()
	if err := set(n); err != nil {
		return f.status("setflags", err)
	}
	if f.modeNow() == modePassthrough {
		s.openState().flagged.Store(true)
	}
	f.attrChanged(id)
	if s.stale() {
		f.changedElsewhere(id, n)
	}
	return fuse.OK
}

// dropPriv clears set-id bits after a change of content by an unprivileged process, for the two requests that carry
// no flag for it: with FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to the server.
func (f *FS) dropPriv(c *union.Caller, id uint64, s *slot) fuse.Status {
	if c.UID == 0 || !s.setIDSeen.Load() {
		return fuse.OK
	}
	n := s.node.Load()
	a, err := f.u.GetAttr(n)
	if err != nil {
		return f.status("clear set-id", err)
	}
	mode := a.Mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	if mode != a.Mode {
		in := union.SetAttrIn{Valid: union.SetMode, Mode: mode & 0o7777}
		if _, err := f.u.SetAttr(&union.Caller{}, n, &in); err != nil {
			return f.status("clear set-id", err)
		}
	}
	f.privKilled(id, s)
	return fuse.OK
}

// fsyncDataOnly asks an FSYNC or FSYNCDIR for fdatasync(2) (cf. include/uapi/linux/fuse.h FUSE_FSYNC_FDATASYNC).
const fsyncDataOnly = 1

func (f *FS) fsync(id uint64, flags uint32) fuse.Status {
	n := f.table.node(id)
	switch {
	case n == nil:
		return fuse.Status(unix.ESTALE)
	case flags&fsyncDataOnly != 0:
		return f.status("fsync", f.u.Fdatasync(n))
	}
	return f.status("fsync", f.u.Fsync(n))
}

func (f *FS) fallocate(c *union.Caller, in *fuse.FallocateIn) fuse.Status {
	s := f.table.slot(in.NodeId)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	n := s.node.Load()
	bits := union.KeepSetID
	if c.UID != 0 {
		bits = union.KillSetID
	}
	if err := f.u.Fallocate(n, in.Mode, int64(in.Offset), int64(in.Length), bits); err != nil {
		return f.status("fallocate", err)
	}
	if bits == union.KillSetID {
		f.privKilled(in.NodeId, s)
	}
	if s.stale() {
		f.changedElsewhere(in.NodeId, n)
	}
	return fuse.OK
}

func (f *FS) lseek(in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := f.table.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	off, err := f.u.Seek(n, int64(in.Offset), int(in.Whence))
	if err != nil {
		return f.status("lseek", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (f *FS) copyRange(c *union.Caller, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, s := f.table.node(in.NodeId), f.table.slot(in.NodeIdOut)
	if src == nil || s == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	// The answer has 32 bits; a caller goes on after a short copy.
	length := int64(min(in.Len, 1<<30))
	dst := s.node.Load()
	k, err := f.u.CopyRange(src, int64(in.OffIn), dst, int64(in.OffOut), length)
	if err != nil {
		return 0, f.status("copy_file_range", err)
	}
	if code := f.dropPriv(c, in.NodeIdOut, s); !code.Ok() {
		return 0, code
	}
	if s.stale() {
		f.changedElsewhere(in.NodeIdOut, dst)
	}
	return uint32(k), fuse.OK
}

// Of the flags of chattr(1), the commands for a long and for an int argument. Both carry 32 bits.
const (
	iocGetFlags   = 0x80086601
	iocSetFlags   = 0x40086602
	iocGetFlags32 = 0x80046601
	iocSetFlags32 = 0x40046602

	iocFSGetXattr = 0x801c581f
	iocFSSetXattr = 0x401c5820
)

func (f *FS) ioctl(id uint64, cmd uint32, in, out []byte) fuse.Status {
	s := f.table.slot(id)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	n := s.node.Load()
	switch cmd {
	case iocGetFlags, iocGetFlags32:
		if len(out) < 4 {
			return fuse.EINVAL
		}
		flags, err := f.u.GetFlags(n)
		if err != nil {
			return f.status("getflags", err)
		}
		clear(out)
		binary.NativeEndian.PutUint32(out, flags)
		return fuse.OK
	case iocSetFlags, iocSetFlags32:
		if len(in) < 4 {
			return fuse.EINVAL
		}
		return f.setFlags(id, s, func(n *union.Node) error { return f.u.SetFlags(n, binary.NativeEndian.Uint32(in)) })
	case iocFSGetXattr:
		x, err := f.u.GetFSXattr(n)
		if err != nil {
			return f.status("getfsxattr", err)
		}
		if copy(out, x[:]) < len(x) {
			return fuse.EINVAL
		}
		return fuse.OK
	case iocFSSetXattr:
		var x sys.FSXattr
		if copy(x[:], in) < len(x) {
			return fuse.EINVAL
		}
		return f.setFlags(id, s, func(n *union.Node) error { return f.u.SetFSXattr(n, x) })
	}
	return fuse.Status(unix.ENOTTY)
}
