package union

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// overflowID is what an identifier without a mapping is shown as.
const overflowID = 65534

// toMount maps an identifier on disk to the one shown.
func toMount(m []IDRange, id uint32) uint32 {
	if len(m) == 0 {
		return id
	}
	for _, r := range m {
		if id >= r.Disk && id-r.Disk < r.Len {
			return r.Mount + (id - r.Disk)
		}
	}
	return overflowID
}

// toDisk maps an identifier of the mount to the one kept on disk; ok is false where it has none.
func toDisk(m []IDRange, id uint32) (uint32, bool) {
	if len(m) == 0 {
		return id, true
	}
	for _, r := range m {
		if id >= r.Mount && id-r.Mount < r.Len {
			return r.Disk + (id - r.Mount), true
		}
	}
	return 0, false
}

// showOwner maps and squashes an owner on disk.
func (u *Union) showOwner(uid, gid uint32) (uint32, uint32) {
	uid, gid = toMount(u.opt.UIDMap, uid), toMount(u.opt.GIDMap, gid)
	if u.opt.SquashUID != nil {
		uid = *u.opt.SquashUID
	}
	if u.opt.SquashGID != nil {
		gid = *u.opt.SquashGID
	}
	return uid, gid
}

// diskOwner maps the owner that an application asked for; -1 means leave alone. A squashed id is never written.
func (u *Union) diskOwner(uid, gid int64) (duid, dgid int, err error) {
	conv := func(m []IDRange, squash *uint32, id int64) (int, error) {
		if id < 0 || squash != nil {
			return -1, nil
		}
		d, ok := toDisk(m, uint32(id))
		if !ok {
			return -1, unix.EINVAL
		}
		return int(d), nil
	}
	if duid, err = conv(u.opt.UIDMap, u.opt.SquashUID, uid); err != nil {
		return -1, -1, err
	}
	dgid, err = conv(u.opt.GIDMap, u.opt.SquashGID, gid)
	return duid, dgid, err
}

// creator maps the owner of a new object. Somebody without an identifier in the mount makes nobody's, as with fuse-overlayfs: an
// engine outside of a container's map puts files into it, and then gives them to the container's root.
func (u *Union) creator(c *Caller) (duid, dgid int) {
	conv := func(m []IDRange, squash *uint32, id uint32) int {
		if squash != nil {
			return -1
		}
		d, ok := toDisk(m, id)
		if !ok {
			return overflowID
		}
		return int(d)
	}
	return conv(u.opt.UIDMap, u.opt.SquashUID, c.UID), conv(u.opt.GIDMap, u.opt.SquashGID, c.GID)
}

// POSIX ACL attribute layout (cf. include/uapi/linux/posix_acl_xattr.h): a version word, then entries of tag, perm, id.
const (
	aclHeader   = 4
	aclEntry    = 8
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
)

func isACL(name string) bool { return name == xattrACLAccess || name == xattrACLDefault }

// aclToDisk rewrites the users and groups that an ACL value of an application names, in place, to those on disk; EINVAL if one has
// none.
func (u *Union) aclToDisk(v []byte) error { return u.mapACL(v, toDisk) }

// aclToMount rewrites the users and groups that an ACL value on disk names, in place, to those that are shown.
func (u *Union) aclToMount(v []byte) {
	_ = u.mapACL(v, func(m []IDRange, id uint32) (uint32, bool) { return toMount(m, id), true }) // every id is shown as one
}

// mapACL rewrites the named users and groups of an ACL value in place; EINVAL if one has no counterpart.
func (u *Union) mapACL(v []byte, to func(m []IDRange, id uint32) (uint32, bool)) error {
	if len(u.opt.UIDMap) == 0 && len(u.opt.GIDMap) == 0 {
		return nil
	}
	for i := aclHeader; i+aclEntry <= len(v); i += aclEntry {
		m := u.opt.UIDMap
		switch binary.LittleEndian.Uint16(v[i:]) {
		case aclUser:
		case aclGroup:
			m = u.opt.GIDMap
		default:
			continue
		}
		id, ok := to(m, binary.LittleEndian.Uint32(v[i+4:]))
		if !ok {
			return unix.EINVAL
		}
		binary.LittleEndian.PutUint32(v[i+4:], id)
	}
	return nil
}
