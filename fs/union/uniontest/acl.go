package uniontest

import (
	"encoding/binary"
	"slices"
)

// An aclEntry is one entry of a POSIX ACL as struct posix_acl_xattr_entry holds it.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// The tags of ACL entries, cf. include/uapi/linux/posix_acl.h.
const (
	tagUserObj  = 0x01
	tagUser     = 0x02
	tagGroupObj = 0x04
	tagGroup    = 0x08
	tagMask     = 0x10
	tagOther    = 0x20

	noID = ^uint32(0)
)

func aclUser(uid uint32, perm uint16) aclEntry  { return aclEntry{tagUser, perm, uid} }
func aclGroup(gid uint32, perm uint16) aclEntry { return aclEntry{tagGroup, perm, gid} }
func aclMask(perm uint16) aclEntry              { return aclEntry{tagMask, perm, noID} }

// aclBytes is the attribute value of rw-r--r-- for the file's owner, group and others plus the given entries. Entries of
// the basic tags replace those.
func aclBytes(extra ...aclEntry) string {
	all := []aclEntry{{tagUserObj, 6, noID}, {tagGroupObj, 4, noID}, {tagOther, 4, noID}}
	for _, x := range extra {
		i := slices.IndexFunc(all, func(e aclEntry) bool { return e.tag == x.tag && e.id == x.id })
		if i >= 0 {
			all[i] = x
		} else {
			all = append(all, x)
		}
	}
	slices.SortFunc(all, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(a.id) - int(b.id)
	})
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range all {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// parseACL is the inverse of aclBytes.
func parseACL(v string) (list []aclEntry) {
	for b := []byte(v)[min(4, len(v)):]; len(b) >= 8; b = b[8:] {
		list = append(list, aclEntry{
			binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:]),
		})
	}
	return list
}
