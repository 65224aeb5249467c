package fusefs

import (
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

func (f *FS) listxattr(id uint64, dest []byte) (int, fuse.Status) {
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
