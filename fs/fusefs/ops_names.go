package fusefs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
)

func (f *FS) mkdir(c *union.Caller, dir uint64, name string, mode uint32, e *entry) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	n, a, err := f.u.Mkdir(c, d, name, mode)
	return f.made("mkdir", n, a, err, e)
}

func (f *FS) mknod(c *union.Caller, dir uint64, name string, mode, rdev uint32, e *entry) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	n, a, err := f.u.Mknod(c, d, name, mode, userDev(rdev))
	return f.made("mknod", n, a, err, e)
}

func (f *FS) symlink(c *union.Caller, dir uint64, name, target string, e *entry) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	n, a, err := f.u.Symlink(c, d, name, target)
	return f.made("symlink", n, a, err, e)
}

func (f *FS) made(op string, n *union.Node, a union.Attr, err error, e *entry) fuse.Status {
	if err != nil {
		return f.status(op, err)
	}
	e.Attr = a
	f.enter(n, e)
	return fuse.OK
}

// create makes and opens a file; an empty name makes one without a name (O_TMPFILE).
func (f *FS) create(c *union.Caller, dir uint64, name string, in *fuse.CreateIn, e *entry, o *opened) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	var n *union.Node
	var err error
	if name == "" {
		n, e.Attr, err = f.u.Tmpfile(c, d, in.Mode)
	} else {
		n, e.Attr, err = f.u.Create(c, d, name, in.Mode, int(in.Flags))
	}
	if err != nil {
		return f.status("create", err)
	}
	s := f.enter(n, e)
	if f.modeNow() != modePassthrough {
		*o = opened{flags: fuse.FOPEN_NOFLUSH}
		if f.keep {
			o.flags |= fuse.FOPEN_KEEP_CACHE
		}
		return fuse.OK
	}
	if code := f.openBacking(n, s, union.ForWriting, c.PID, o); !code.Ok() {
		f.forget(e.id, 1)
		return code
	}
	if s.noteMappable(in.Flags, o) {
		e.volatile = true
	}
	return fuse.OK
}

func (f *FS) link(old, dir uint64, name string, e *entry) fuse.Status {
	n, d := f.table.node(old), f.table.node(dir)
	if n == nil || d == nil {
		return fuse.Status(unix.ESTALE)
	}
	a, err := f.u.Link(n, d, name)
	// For a stale id the answer is the new one, which the kernel accepts.
	return f.made("link", n, a, err, e)
}

func (f *FS) unlink(dir uint64, name string) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status("unlink", f.u.Unlink(d, name))
}

func (f *FS) rmdir(dir uint64, name string) fuse.Status {
	d := f.table.node(dir)
	if d == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status("rmdir", f.u.Rmdir(d, name))
}

func (f *FS) rename(c *union.Caller, odir uint64, oname string, ndir uint64, nname string, flags uint32) fuse.Status {
	od, nd := f.table.node(odir), f.table.node(ndir)
	if od == nil || nd == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status("rename", f.u.Rename(c, od, oname, nd, nname, flags))
}
