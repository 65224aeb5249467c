package tarlayer

import (
	"encoding/binary"
	"fmt"
)

// The encodings of attributes that hold ids: include/uapi/linux/posix_acl_xattr.h and capability.h.
const (
	aclVersion   = 2
	aclEntrySize = 8
	aclUser      = 0x02
	aclGroup     = 0x08

	capsV2Size = 20
	capsV3Size = 24
	capsV2     = 0x02000000
	capsV3     = 0x03000000
	capsRev    = 0xff000000
)

// mapACL returns the value of an ACL with the ids in it translated in the direction that ends tells. Values that are no
// ACL are returned as they are: the kernel refuses them.
func mapACL(value string, m IDMaps, ends func(IDRange) (from, to uint32)) (string, error) {
	if len(value) < 4 || (len(value)-4)%aclEntrySize != 0 || binary.LittleEndian.Uint32([]byte(value)) != aclVersion {
		return value, nil
	}
	b := []byte(value)
	for e := b[4:]; len(e) > 0; e = e[aclEntrySize:] {
		id := binary.LittleEndian.Uint32(e[4:])
		ranges := m.UIDs
		switch binary.LittleEndian.Uint16(e) {
		case aclUser:
		case aclGroup:
			ranges = m.GIDs
		default:
			continue
		}
		to, ok := translate(ranges, id, ends)
		if !ok {
			return "", fmt.Errorf("id %d in an ACL: %w", id, ErrUnmapped)
		}
		binary.LittleEndian.PutUint32(e[4:], to)
	}
	return string(b), nil
}

// plainCaps takes the root's id off file capabilities that were set within the container's user namespace: in a layer
// they belong to whoever is root of the next one.
func plainCaps(value string, hostRoot uint32) string {
	b := []byte(value)
	if len(b) != capsV3Size {
		return value
	}
	magic := binary.LittleEndian.Uint32(b)
	if magic&capsRev != capsV3 || binary.LittleEndian.Uint32(b[capsV2Size:]) != hostRoot {
		return value
	}
	binary.LittleEndian.PutUint32(b, magic&^capsRev|capsV2)
	return string(b[:capsV2Size])
}
