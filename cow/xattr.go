package cow

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// ListXattrs returns the attribute names of name below dirfd, as on disk; none where the file system has no attributes.
func ListXattrs(dirfd int, name string) ([]string, error) {
	var small [1024]byte
	buf := small[:]
	for {
		n, err := sys.Listxattrat(dirfd, name, buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			if n, err = sys.Listxattrat(dirfd, name, nil); err != nil {
				return nil, err
			}
			buf = make([]byte, n+256)
			continue
		case errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil:
			return nil, nil
		case err != nil:
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

// GetXattr returns the value of attribute attr of name below dirfd.
func GetXattr(dirfd int, name, attr string) ([]byte, error) {
	var small [512]byte
	n, err := sys.Getxattrat(dirfd, name, attr, small[:])
	for errors.Is(err, unix.ERANGE) {
		if n, err = sys.Getxattrat(dirfd, name, attr, nil); err != nil {
			return nil, err
		}
		buf := make([]byte, n+64)
		if n, err = sys.Getxattrat(dirfd, name, attr, buf); err == nil {
			return buf[:n], nil
		}
	}
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), small[:n]...), nil
}

// CopyXattrs gives dst (name below dirfd) the attributes of src, but for the union's own (cf. overlayfs copy_up.c
// ovl_copy_xattr). skip, when not nil, leaves further ones out. ACLs and capabilities travel as attributes. An
// attribute that the upper's file system does not take fails the copy, unless it is of the user namespace or a label
// that the mount gives every object.
func CopyXattrs(m *sys.Mutator, srcDir int, srcName string, dstDir int, dstName string, skip func(string) bool) error {
	return CopyXattrsOf(ovl.Forms{}, m, srcDir, srcName, dstDir, dstName, skip)
}

// CopyXattrsOf is CopyXattrs for a union that takes only the attributes of certain forms for its own.
func CopyXattrsOf(
	forms ovl.Forms, m *sys.Mutator, srcDir int, srcName string, dstDir int, dstName string, skip func(string) bool,
) error {
	names, err := ListXattrs(srcDir, srcName)
	if err != nil {
		return err
	}
	for _, attr := range names {
		if _, visible := forms.UnescapeXattr(attr); !visible || skip != nil && skip(attr) {
			continue
		}
		v, err := GetXattr(srcDir, srcName, attr)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile, or a security label made up by the kernel
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(attr, "system.posix_acl_") {
			v = MappedACL(v)
		}
		if err := m.Setxattr(dstDir, dstName, attr, v, 0); err != nil && !mayDrop(attr, err) {
			return err
		}
	}
	return nil
}

func mayDrop(attr string, err error) bool {
	switch {
	case strings.HasPrefix(attr, "security.selinux"):
		return true
	case strings.HasPrefix(attr, "trusted.") || strings.HasPrefix(attr, "security."):
		// Without the privilege they were not effective here, and a copy-up must not fail for them: the kernel's
		// overlayfs in a user namespace behaves alike (cf. copy_up.c ovl_must_copy_xattr).
		return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)
	}
	return errors.Is(err, unix.EOPNOTSUPP)
}

// MappedACL takes the entries out of the value v of an ACL that name users and groups without a mapping in this user namespace: they read
// as -1, which the kernel takes back from nobody, neither from setxattr(2) nor from FUSE. It works in place.
func MappedACL(v []byte) []byte {
	const header, entry, user, group = 4, 8, 0x02, 0x08
	if len(v) < header {
		return v
	}
	kept := v[:header]
	for i := header; i+entry <= len(v); i += entry {
		tag, id := binary.LittleEndian.Uint16(v[i:]), binary.LittleEndian.Uint32(v[i+4:])
		if (tag == user || tag == group) && id == ^uint32(0) {
			continue
		}
		kept = append(kept, v[i:i+entry]...)
	}
	return kept
}
