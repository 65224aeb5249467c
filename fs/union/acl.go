package union

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow"
)

// createHint is what creation in a directory needs to know of it.
type createHint struct {
	valid bool
	// mode and gid are the directory's, on disk.
	mode uint32
	gid  uint32
	// acl is its default ACL, nil for none.
	acl []byte
	// shun says that it has one that does not count: the file system would apply it to what is made in place.
	shun bool
}

// hintLocked returns the creation hint of the upper directory dir. Precondition: renameMu and dir.dir.mu are held.
func (u *Union) hintLocked(dir *Node, dirfd int) (createHint, error) {
	if h := dir.dir.hint; h.valid {
		return h, nil
	}
	var st unix.Statx_t
	if err := u.upper.Stat(dirfd, ".", &st); err != nil {
		return createHint{}, err
	}
	h := createHint{valid: true, mode: uint32(st.Mode), gid: st.Gid}
	if v, err := cow.GetXattr(dirfd, ".", xattrACLDefault); err == nil {
		if h.shun = u.opt.NoACL; !h.shun {
			h.acl = cow.MappedACL(v)
		}
	}
	dir.dir.hint = h
	return h, nil
}

// inheritACL computes what an object made with mode in a directory with the default ACL def gets: its mode, its access
// ACL (nil when the mode says it all) and, for a directory, its default ACL (cf. posix_acl.c posix_acl_create_masq).
func inheritACL(def []byte, mode uint32, isDir bool) (newMode uint32, access, dflt []byte) {
	if len(def) < aclHeader {
		return mode, nil, nil
	}
	access = slices.Clone(def)
	perm := func(i int) uint16 { return binary.LittleEndian.Uint16(access[i+2:]) }
	setPerm := func(i int, p uint16) { binary.LittleEndian.PutUint16(access[i+2:], p) }
	var group, mask int
	extended := false
	newMode = mode
	for i := aclHeader; i+aclEntry <= len(access); i += aclEntry {
		switch binary.LittleEndian.Uint16(access[i:]) {
		case aclUserObj:
			p := perm(i) & uint16(mode>>6&7)
			setPerm(i, p)
			newMode = newMode&^0o700 | uint32(p)<<6
		case aclOther:
			p := perm(i) & uint16(mode&7)
			setPerm(i, p)
			newMode = newMode&^0o007 | uint32(p)
		case aclGroupObj:
			group = i
		case aclMask:
			mask = i
			extended = true
		case aclUser, aclGroup:
			extended = true
		}
	}
	if at := max(mask, 0); at == 0 {
		mask = group
	}
	if mask != 0 {
		p := perm(mask) & uint16(mode>>3&7)
		setPerm(mask, p)
		newMode = newMode&^0o070 | uint32(p)<<3
	}
	if !extended {
		access = nil
	}
	if isDir {
		dflt = def
	}
	return newMode, access, dflt
}
