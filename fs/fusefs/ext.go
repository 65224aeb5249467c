package fusefs

import "encoding/binary"

// extGroups is the type of a struct fuse_supp_groups among the extensions of a request.
const extGroups = 32

// splitExt cuts the extensions off a request that makes something, and returns the supplementary groups among them.
// The kernel sends one group at most: that of the parent directory, if the caller is a member of it by no other way
// (cf. fs/fuse/dir.c get_create_supp_group). Malformed extensions are passed over, as if they had not been sent.
func splitExt(req []byte, extLen int, groups []uint32) (rest []byte, _ []uint32) {
	if extLen == 0 || extLen > len(req) {
		return req, nil
	}
	rest, ext := req[:len(req)-extLen], req[len(req)-extLen:]
	for len(ext) >= 8 {
		size := int(binary.NativeEndian.Uint32(ext))
		if size < 8 || size > len(ext) {
			break
		}
		if binary.NativeEndian.Uint32(ext[4:]) == extGroups && size >= 12 {
			count := int(binary.NativeEndian.Uint32(ext[8:]))
			list := ext[12:size]
			for i := 0; i < count && len(list) >= 4; i++ {
				groups = append(groups, binary.NativeEndian.Uint32(list))
				list = list[4:]
			}
		}
		ext = ext[size:]
	}
	return rest, groups
}
