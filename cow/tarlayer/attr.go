package tarlayer

import (
	"archive/tar"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
)

const (
	paxXattr        = "SCHILY.xattr."
	xattrCaps       = "security.capability"
	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
	nsTrusted       = "trusted."
	nsUser          = "user."
	nsOverlay       = "overlay."

	setIDs = unix.S_ISUID | unix.S_ISGID
	// overrideMode is the inode's own mode where owner and mode are kept in an attribute, as fs/union has it.
	overrideMode = 0o755
)

// xattr is an extended attribute of a member. On disk its name may be escaped, and ids in its value are mapped.
type xattr struct {
	name, value         string // as a container sees them
	diskName, diskValue string
	// kept says that the file got it, and so that it counts in the sum.
	kept bool
}

// specialValue is the value of the attribute that makes an empty file stand for a 0:0 device (ovl.Names.Special).
func specialValue() []byte { return ovl.OverrideStat{Mode: unix.S_IFCHR}.Encode() }

// entry is a file that exists and is to get attributes: name in the directory at, or, if name is empty, the open file at itself.
type entry struct {
	at   int
	name string
	path string // for messages, and for what is done at the end
	// uid, gid and mode are what the file has now.
	uid, gid, mode uint32
	// inherits says that it may have inherited ACLs from its directory, which also changes its mode.
	inherits bool
}

// fresh describes an entry that was just made in d with the given mode, of which the kernel took the umask off.
func (a *applier) fresh(d *dir, at int, name, path string, mode uint32) entry {
	e := entry{at: at, name: name, path: path, uid: a.uid, gid: a.gid, mode: mode &^ a.umask, inherits: d.inherits}
	if d.setgid {
		e.gid = d.gid
	}
	return e
}

// inodeMode is the mode of the object's inode, without what chown would take away.
func (a *applier) inodeMode(ob *object) uint32 {
	if a.override != "" {
		return overrideMode
	}
	return ob.mode
}

// dress gives an entry its owner, mode, attributes and times, in an order in which none undoes another, and without a call for what
// is right already. Times and default ACL of a directory are left to the end of the stream.
func (a *applier) dress(e entry, ob *object) error {
	link := ob.typ == unix.S_IFLNK
	mode := a.inodeMode(ob)
	switch {
	case a.override == "":
		owned, err := a.chown(e, ob)
		if err != nil {
			return err
		}
		if !owned {
			mode &^= setIDs
		}
	case !link:
		o := ovl.OverrideStat{UID: ob.uid, GID: ob.gid, Mode: ob.typ | ob.mode, HasType: true, Rdev: ob.rdev}
		if err := a.m.Setxattr(e.at, e.name, a.override, o.Encode(), 0); err != nil {
			return fmt.Errorf("attribute %s: %w", a.override, err)
		}
	}
	if e.inherits && !link {
		for _, attr := range []string{xattrACLAccess, xattrACLDefault} {
			err := a.m.Removexattr(e.at, e.name, attr)
			if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("attribute %s: %w", attr, err)
			}
		}
	}
	if !link && (mode != e.mode || e.inherits) {
		if err := a.m.Chmod(e.at, e.name, mode); err != nil {
			return fmt.Errorf("chmod %04o: %w", mode, err)
		}
	}
	for i := range ob.xattrs {
		x := &ob.xattrs[i]
		if ob.typ == unix.S_IFDIR && x.diskName == xattrACLDefault {
			continue
		}
		if err := a.setXattr(e, x); err != nil {
			return err
		}
	}
	if ob.typ == unix.S_IFDIR {
		return nil // its times are set when nothing changes in it any more
	}
	if err := a.m.Utimes(e.at, e.name, ob.atime, ob.mtime); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// chown sets the owner, if it is not that already. owned is false if the kernel refused and OwnerIgnore puts up with it.
func (a *applier) chown(e entry, ob *object) (owned bool, err error) {
	if ob.uid == e.uid && ob.gid == e.gid {
		return true, nil
	}
	err = a.m.Chown(e.at, e.name, int(ob.uid), int(ob.gid))
	switch {
	case err == nil:
		return true, nil
	case a.o.Owner == OwnerIgnore && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)):
		return false, nil
	case errors.Is(err, unix.EINVAL):
		return false, fmt.Errorf("owner %d:%d does not exist in this user namespace: %w: %w",
			ob.uid, ob.gid, ErrUnmapped, err)
	}
	return false, fmt.Errorf("chown to %d:%d: %w", ob.uid, ob.gid, err)
}

// selectXattrs takes a member's attributes over into ob, under the names that they have on disk.
func (a *applier) selectXattrs(hdr *tar.Header, ob *object) error {
	total := int64(0)
	for key, value := range hdr.PAXRecords {
		if total += int64(len(key) + len(value)); total > a.limits.Header {
			return limitError("Header", a.limits.Header)
		}
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if int64(len(value)) > a.limits.Xattr {
			return fmt.Errorf("attribute %.80q: %w", name, limitError("Xattr", a.limits.Xattr))
		}
		if !a.appliesXattr(name) {
			a.note(hdr.Name, "attribute "+name)
			continue
		}
		x, err := a.newXattr(name, value)
		if err != nil {
			return err
		}
		ob.xattrs = append(ob.xattrs, x)
	}
	slices.SortFunc(ob.xattrs, func(x, y xattr) int { return strings.Compare(x.name, y.name) })
	return nil
}

// newXattr is the attribute that a container sees under name, as it is on disk.
func (a *applier) newXattr(name, value string) (xattr, error) {
	x := xattr{name: name, value: value, diskName: a.diskXattr(name), diskValue: value}
	var err error
	if name == xattrACLAccess || name == xattrACLDefault {
		x.diskValue, err = mapACL(value, a.o.IDs, toHost)
	}
	return x, err
}

// appliesXattr says whether an attribute of a stream, by the name that a container sees, is given to files.
func (a *applier) appliesXattr(name string) bool {
	return layerXattr(name) || a.o.KeepTrusted && strings.HasPrefix(name, nsTrusted)
}

// layerXattr says whether an attribute belongs into a layer: those of users, file capabilities, ACLs, and those of
// nested overlays. Labels of security modules belong to the machine.
func layerXattr(name string) bool {
	switch name {
	case xattrCaps, xattrACLAccess, xattrACLDefault:
		return true
	}
	return strings.HasPrefix(name, nsUser) && len(name) > len(nsUser) || strings.HasPrefix(name, nsTrusted+nsOverlay)
}

// diskXattr returns the name under which an attribute is kept on disk. In a stacked directory, names that its mounts take for their own
// are escaped.
func (a *applier) diskXattr(name string) string {
	if a.override != "" && !strings.HasPrefix(a.override, "security.") && ovl.ProtectedXattr(name) &&
		name != xattrACLAccess && name != xattrACLDefault {
		return ovl.OverrideXattr(name)
	}
	if a.stacked || a.override != "" {
		return a.o.Forms.EscapeXattr(name)
	}
	return name
}

// setXattr sets an attribute. What the file system, the file's type or the user namespace has no place for is left out
// with a note, as all unpackers of layers do.
func (a *applier) setXattr(e entry, x *xattr) error {
	err := a.m.Setxattr(e.at, e.name, x.diskName, []byte(x.diskValue), 0)
	switch {
	case err == nil:
		x.kept = true
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
		a.note(e.path, "attribute "+x.diskName+": "+err.Error())
		return nil
	}
	return fmt.Errorf("attribute %s: %w", x.diskName, err)
}

// dropXattrs removes the attributes that an application sees on e and ob has not.
func (a *applier) dropXattrs(e entry, ob *object) error {
	names, err := cow.ListXattrs(e.at, e.name)
	if err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	for _, disk := range names {
		seen, visible := disk, true
		if a.stacked || a.override != "" {
			seen, visible = a.o.Forms.UnescapeXattr(disk)
		}
		// A default ACL comes back at the end: until then entries would inherit it.
		kept := disk != xattrACLDefault && slices.ContainsFunc(ob.xattrs, func(x xattr) bool { return x.diskName == disk })
		if !visible || !a.appliesXattr(seen) || kept {
			continue
		}
		if err := a.m.Removexattr(e.at, e.name, disk); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove attribute %s: %w", disk, err)
		}
	}
	return nil
}
