package copytree

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// entry copies name of the current directory; a directory it leaves to the caller.
func (c *copier) entry(name, p string) (isDir bool, err error) {
	var st unix.Statx_t
	if err := sys.Statx(c.src, name, &st); err != nil {
		return false, err
	}
	kind := uint32(st.Mode) & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return true, nil
	}
	if c.o.Skip != nil && c.o.Skip(p) {
		return false, nil
	}
	if st.Nlink > 1 {
		id := inode{sys.Dev(&st), st.Ino}
		if first, ok := c.links[id]; ok {
			return false, c.link(first, name)
		}
		c.links[id] = p
	}
	switch kind {
	case unix.S_IFREG:
		return false, c.file(name, &st)
	case unix.S_IFLNK:
		var target string
		if target, err = sys.Readlinkat(c.src, name); err == nil {
			err = c.m.Symlink(target, c.dst, name)
		}
	default:
		err = c.m.Mknod(c.dst, name, kind|0o600, sys.Rdev(&st))
	}
	if err != nil {
		return false, err
	}
	return false, c.attributes(c.src, name, c.dst, name, &st)
}

// link gives the copy of the file at path first another name.
func (c *copier) link(first, name string) error {
	dirfd, err := layer.OpenDirAt(c.root, path.Dir(first))
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	return c.m.Link(dirfd, path.Base(first), c.dst, name)
}

func (c *copier) file(name string, st *unix.Statx_t) error {
	src, err := sys.Openat(c.src, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := c.m.Create(c.dst, name, unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if _, err := c.data.CopyData(c.m, dst, src, int64(st.Size)); err != nil {
		return err
	}
	return c.attributes(src, "", dst, "", st)
}

// attributes copies what is neither name nor data. The order matters: chown takes set-id bits and capabilities away,
// and all of them change times.
func (c *copier) attributes(srcDir int, srcName string, dstDir int, dstName string, st *unix.Statx_t) error {
	if err := c.m.Chown(dstDir, dstName, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFLNK {
		if err := c.m.Chmod(dstDir, dstName, uint32(st.Mode)&0o7777); err != nil {
			return err
		}
	}
	if err := c.xattrs(srcDir, srcName, dstDir, dstName); err != nil {
		return err
	}
	return c.m.Utimes(dstDir, dstName, sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec())
}

// xattrs copies all attributes, an overlay's included: in a plain tree they are an application's.
func (c *copier) xattrs(srcDir int, srcName string, dstDir int, dstName string) error {
	names, err := cow.ListXattrs(srcDir, srcName)
	if err != nil {
		return err
	}
	for _, attr := range names {
		// The label is the policy's to give.
		if attr == "security.selinux" {
			continue
		}
		v, err := cow.GetXattr(srcDir, srcName, attr)
		if errors.Is(err, unix.ENODATA) {
			continue // made up by the kernel, as security labels are
		}
		if err != nil {
			return err
		}
		if err := c.m.Setxattr(dstDir, dstName, attr, v, 0); err != nil {
			return err
		}
	}
	return nil
}
