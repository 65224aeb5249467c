package union

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// diskXattr is the name under which an application's attribute is kept on l.
func (u *Union) diskXattr(l *layer.Layer, name string) string {
	disk := u.opt.Forms.EscapeXattr(name)
	if l.Override() != "" && !strings.HasPrefix(l.Override(), "security.") && ovl.ProtectedXattr(name) && !isACL(name) {
		return ovl.OverrideXattr(name)
	}
	return disk
}

func (u *Union) xattrAllowed(name string) error {
	if u.opt.NoXattrs || u.opt.NoACL && isACL(name) {
		return unix.EOPNOTSUPP
	}
	return nil
}

// Getxattr reads attribute name of n into dest and returns its size; with an empty dest only the size. ERANGE if dest is
// too small, ENODATA if there is none.
func (u *Union) Getxattr(n *Node, name string, dest []byte) (int, error) {
	if name == xattrCaps && n.has(flagNoCaps) {
		return 0, unix.ENODATA
	}
	if err := u.xattrAllowed(name); err != nil {
		return 0, err
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if u.lacksXattr(n, u.opt.Forms.EscapeXattr(name)) || n.isOwnMount() {
		return 0, unix.ENODATA
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.attrLoc(n)
	if err != nil {
		return 0, err
	}
	defer l.close()
	if name == xattrCaps {
		n.copyMu.Lock()
		defer n.copyMu.Unlock()
	}
	size, err := sys.Getxattrat(l.fd(), l.name, u.diskXattr(l.layer, name), dest)
	if err == nil && len(dest) > 0 && isACL(name) {
		size = len(cow.MappedACL(dest[:size]))
		u.aclToMount(dest[:size])
	}
	if isACL(name) && errors.Is(err, unix.EOPNOTSUPP) {
		// The file system of this layer has none, as squashfs. The kernel asks before it lets anybody but the owner in, root
		// too, and takes any other error for the answer to that.
		err = unix.ENODATA
	}
	if name == xattrCaps && errors.Is(err, unix.ENODATA) {
		n.set(flagNoCaps) // the kernel asks before each first write and each chown
	}
	return size, err
}

// xattrCaps holds file capabilities.
const xattrCaps = "security.capability"

// Listxattr writes the names of n's attributes to dest, each ended by a NUL, and returns the total length; with an empty
// dest only that.
func (u *Union) Listxattr(n *Node, dest []byte) (int, error) {
	if u.opt.NoXattrs {
		return 0, unix.EOPNOTSUPP
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if u.lacksXattr(n, "") || n.isOwnMount() {
		return 0, nil
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.attrLoc(n)
	if err != nil {
		return 0, err
	}
	defer l.close()
	names, err := cow.ListXattrs(l.fd(), l.name)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, disk := range names {
		seen, ok := u.opt.Forms.UnescapeXattr(disk)
		if !ok && l.layer.Override() != "" {
			seen, ok = ovl.FromOverrideXattr(disk)
		}
		if !ok || u.opt.NoACL && isACL(seen) {
			continue
		}
		if len(dest) > 0 {
			if total+len(seen)+1 > len(dest) {
				return 0, unix.ERANGE
			}
			copy(dest[total:], seen)
			dest[total+len(seen)] = 0
		}
		total += len(seen) + 1
	}
	return total, nil
}

// Setxattr sets attribute name of n, copying its attributes up first. XATTR_CREATE and XATTR_REPLACE are obeyed: EEXIST,
// ENODATA.
func (u *Union) Setxattr(n *Node, name string, value []byte, flags int) error {
	return u.changeXattr(n, name, len(value), func(l loc, disk string) error {
		if isACL(name) && (len(u.opt.UIDMap) > 0 || len(u.opt.GIDMap) > 0) {
			value = slices.Clone(value)
			if err := u.aclToDisk(value); err != nil {
				return err
			}
		}
		return u.m.Setxattr(l.fd(), l.name, disk, value, flags)
	}, func(l loc, disk string) error {
		// Refused without a copy-up, as the kernel refuses it (cf. overlayfs xattrs.c ovl_xattr_set).
		_, err := sys.Getxattrat(l.fd(), l.name, disk, nil)
		switch {
		case err == nil && flags&unix.XATTR_CREATE != 0:
			return unix.EEXIST
		case errors.Is(err, unix.ENODATA) && flags&unix.XATTR_REPLACE != 0:
			return unix.ENODATA
		}
		return nil
	})
}

// Removexattr removes attribute name of n; ENODATA if there is none.
func (u *Union) Removexattr(n *Node, name string) error {
	return u.changeXattr(n, name, 0, func(l loc, disk string) error {
		return u.m.Removexattr(l.fd(), l.name, disk)
	}, func(l loc, disk string) error {
		_, err := sys.Getxattrat(l.fd(), l.name, disk, nil)
		return err
	})
}

// changeXattr changes attribute name of n, whose value has size bytes then.
func (u *Union) changeXattr(n *Node, name string, size int, change, check func(loc, string) error) error {
	if err := u.xattrAllowed(name); err != nil {
		return err
	}
	if u.work == nil {
		return unix.EROFS
	}
	if !n.has(flagUpper) && !n.isOwnMount() {
		if err := u.checkXattr(n, name, check); err != nil {
			return err
		}
	}
	if err := u.copyUpMeta(n); err != nil {
		return err
	}
	c, err := u.reserveXattr(size)
	if err != nil {
		return err
	}
	defer c.close()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if n.IsDir() {
		n.dir.mu.Lock() // a copy-up in it restores its times, and hides what is younger
		defer n.dir.mu.Unlock()
	}
	u.steady(n)
	defer u.unsteady(n)
	l, err := u.openUpperLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	if err := c.onExact(n, l.fd(), l.name); err != nil {
		return err
	}
	defer c.off()
	if name == xattrCaps {
		n.copyMu.Lock()
		defer n.copyMu.Unlock()
		n.clear(flagNoCaps)
	}
	if err := change(l, u.diskXattr(l.layer, name)); err != nil {
		return err
	}
	n.showCtime()
	if n.IsDir() && isACL(name) {
		n.dir.hint = createHint{}
	}
	return nil
}

// checkXattr has check look at attribute name of n where it is now.
func (u *Union) checkXattr(n *Node, name string, check func(loc, string) error) error {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	l, err := u.attrLoc(n)
	if err != nil {
		return err
	}
	defer l.close()
	return check(l, u.diskXattr(l.layer, name))
}

// setOverride rewrites the attribute in which the layer keeps owner and mode.
func (u *Union) setOverride(n *Node, l loc, in *SetAttrIn, uid, gid int) error {
	var st unix.Statx_t
	if err := l.layer.Stat(l.fd(), l.name, &st); err != nil {
		return err
	}
	o := ovl.OverrideStat{UID: st.Uid, GID: st.Gid, Mode: uint32(st.Mode), HasType: true, Rdev: sys.Rdev(&st)}
	if uid >= 0 || gid >= 0 {
		if n.mode != unix.S_IFDIR { // cf. open.c chown_common
			o.Mode &^= unix.S_ISUID
			if o.Mode&unix.S_IXGRP != 0 {
				o.Mode &^= unix.S_ISGID
			}
		}
		if uid >= 0 {
			o.UID = uint32(uid)
		}
		if gid >= 0 {
			o.GID = uint32(gid)
		}
	}
	if in.Valid&SetMode != 0 {
		o.Mode = o.Mode&unix.S_IFMT | in.Mode&0o7777
	}
	return u.m.Setxattr(l.fd(), l.name, l.layer.Override(), o.Encode(), 0)
}

// placeholderTarget reads the target of a symlink that a store of xattr_permissions keeps in a regular file.
func placeholderTarget(l loc) (string, bool) {
	var st unix.Statx_t
	if sys.Statx(l.fd(), l.name, &st) != nil || uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		return "", false
	}
	fd, err := sys.Openat(l.fd(), l.name, unix.O_RDONLY)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return "", false
	}
	return string(buf[:n]), true
}
