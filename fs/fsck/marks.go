package fsck

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// attr is an attribute of the union: its value, and the namespace that it was found in. Where both namespaces have
// it, it is the trusted one.
type attr struct {
	ns    *ovl.Names
	value []byte
}

// marks are the union's attributes of an object, nil where it has none.
type marks struct {
	opaque, redirect, metacopy, origin, impure, nlink *attr
	whiteout, unsynced, special, specials, literal    *attr
	// fuseOpaque is fuse-overlayfs's opaque mark.
	fuseOpaque bool
}

func namespaces() [2]*ovl.Names { return [2]*ovl.Names{ovl.Trusted(), ovl.User()} }

// slot is where the attribute called name in the namespace ns is kept, nil if it is not of interest.
func (m *marks) slot(ns *ovl.Names, name string) **attr {
	switch name {
	case ns.Opaque:
		return &m.opaque
	case ns.Redirect:
		return &m.redirect
	case ns.Metacopy:
		return &m.metacopy
	case ns.Origin:
		return &m.origin
	case ns.Impure:
		return &m.impure
	case ns.Nlink:
		return &m.nlink
	case ns.Whiteout:
		return &m.whiteout
	case ns.Unsynced:
		return &m.unsynced
	case ns.Special:
		return &m.special
	case ns.Specials:
		return &m.specials
	case ns.Literal:
		return &m.literal
	}
	return nil
}

// readMarks reads the attributes of name below dirfd ("." for dirfd itself).
func readMarks(dirfd int, name string) (m marks, err error) {
	names, err := cow.ListXattrs(dirfd, name)
	if err != nil {
		return m, err
	}
	for _, n := range names {
		if n == ovl.FuseOverlayfsOpaque {
			v, err := cow.GetXattr(dirfd, name, n)
			m.fuseOpaque = err == nil && ovl.IsOpaque(v)
			continue
		}
		for _, ns := range namespaces() {
			at := m.slot(ns, n)
			if at == nil || *at != nil && (*at).ns == ovl.Trusted() {
				continue
			}
			v, err := cow.GetXattr(dirfd, name, n)
			if err != nil {
				return m, err
			}
			*at = &attr{ns: ns, value: v}
		}
	}
	return m, nil
}

// isOpaque says whether an attribute makes the directory opaque.
func (m *marks) isOpaque() bool {
	return m.fuseOpaque || m.opaque != nil && ovl.IsOpaque(m.opaque.value)
}

// xwhiteouts says whether the directory announces whiteouts in attribute form.
func (m *marks) xwhiteouts() bool { return m.opaque != nil && ovl.HasXWhiteouts(m.opaque.value) }

// dropAttr takes an attribute off name below dirfd, in whichever namespace it is.
func (c *checker) dropAttr(dirfd int, name string, attrOf func(*ovl.Names) string) error {
	for _, ns := range namespaces() {
		err := c.m.Removexattr(dirfd, name, attrOf(ns))
		absent := errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) || denied(dirfd, name, attrOf(ns), err)
		if err != nil && !absent {
			return err
		}
	}
	return nil
}

// denied says that the attribute could not be removed, and is not there: a process without privilege over the trusted
// namespace does not see it.
func denied(dirfd int, name, attr string, err error) bool {
	if !errors.Is(err, unix.EPERM) {
		return false
	}
	_, gerr := sys.Getxattrat(dirfd, name, attr, nil)
	return errors.Is(gerr, unix.ENODATA)
}
