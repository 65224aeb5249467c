package fusefs

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
)

const aclAccess = "system.posix_acl_access"

// getxattr fills dest, or with an empty dest returns the size.
func (f *FS) getxattr(id uint64, name string, dest []byte) (int, fuse.Status) {
	if f.cfg.NoXattrs {
		return 0, fuse.ENOSYS
	}
	n := f.table.node(id)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	k, err := f.u.Getxattr(n, name, dest)
	if err != nil {
		return 0, f.status("getxattr", err)
	}
	return k, fuse.OK
}

// listxattr fills dest, or with an empty dest returns the size. Only root is told of attributes that only root can read (cf. overlayfs
// xattrs.c ovl_can_list).
func (f *FS) listxattr(id uint64, uid uint32, dest []byte) (int, fuse.Status) {
	if uid == 0 {
		return f.listAllXattrs(id, dest)
	}
	all := make([]byte, usualXattrList)
	k, code := f.listAllXattrs(id, all)
	if code == fuse.Status(unix.ERANGE) {
		all = make([]byte, maxXattrList)
		k, code = f.listAllXattrs(id, all)
	}
	if !code.Ok() {
		return 0, code
	}
	shown := all[:0]
	for name := range bytes.SplitAfterSeq(all[:k], []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			shown = append(shown, name...)
		}
	}
	if len(dest) > 0 && len(shown) > len(dest) {
		return 0, fuse.Status(unix.ERANGE)
	}
	copy(dest, shown)
	return len(shown), fuse.OK
}

// usualXattrList is how long a list of names is at most, as a rule; maxXattrList how long it can be (cf. linux/limits.h XATTR_LIST_MAX).
const (
	usualXattrList = 1 << 10
	maxXattrList   = 64 << 10
)

func (f *FS) listAllXattrs(id uint64, dest []byte) (int, fuse.Status) {
	if f.cfg.NoXattrs {
		return 0, fuse.ENOSYS
	}
	n := f.table.node(id)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	k, err := f.u.Listxattr(n, dest)
	if err != nil {
		return 0, f.status("listxattr", err)
	}
	return k, fuse.OK
}

func (f *FS) setxattr(id uint64, name string, value []byte, flags, extFlags uint32) fuse.Status {
	if f.cfg.NoXattrs {
		return fuse.ENOSYS
	}
	s := f.table.slot(id)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	n := s.node.Load()
	if err := f.u.Setxattr(n, name, value, int(flags)); err != nil {
		return f.status("setxattr", err)
	}
	if s.stale() {
		f.changedElsewhere(id, n)
	}
	if name == aclAccess && extFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		return f.killSgid(n)
	}
	return fuse.OK
}

// killSgid clears set-gid after an ACL was set by somebody outside the group. The kernel drops its attributes
// afterwards by itself (cf. fs/fuse/acl.c fuse_set_acl).
func (f *FS) killSgid(n *union.Node) fuse.Status {
	a, err := f.u.GetAttr(n)
	if err != nil {
		return f.status("setxattr", err)
	}
	if a.Mode&unix.S_ISGID == 0 {
		return fuse.OK
	}
	in := union.SetAttrIn{Valid: union.SetMode, Mode: a.Mode & 0o7777 &^ unix.S_ISGID}
	_, err = f.u.SetAttr(&union.Caller{}, n, &in)
	return f.status("setxattr", err)
}

func (f *FS) removexattr(id uint64, name string) fuse.Status {
	if f.cfg.NoXattrs {
		return fuse.ENOSYS
	}
	s := f.table.slot(id)
	if s == nil {
		return fuse.Status(unix.ESTALE)
	}
	n := s.node.Load()
	if err := f.u.Removexattr(n, name); err != nil {
		return f.status("removexattr", err)
	}
	if s.stale() {
		f.changedElsewhere(id, n)
	}
	return fuse.OK
}
