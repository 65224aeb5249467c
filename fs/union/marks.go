package union

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// dirMark is what a directory of a layer says of the layers below.
type dirMark struct {
	dirMarks
	opaque   bool
	impure   bool
	whiteout bool // a whiteout of the same name lies beside it
	own      bool // it is the own mount's root, which has no content in the layer
	redirect *ovl.Redirect
}

// readMark reads the marks of the directory behind dirfd, which is an O_PATH descriptor; sentinel says whether to look
// for the AUFS form too. First hit wins, in the order of the attributes in the switch. EACCES if there may be a mark that this
// process can't see: a directory that is not known to be transparent must not show what lies below it.
func (u *Union) readMark(dirfd int, sentinel bool) (m dirMark, err error) {
	names, err := cow.ListXattrs(dirfd, ".")
	if err != nil {
		return m, err
	}
	for _, name := range names {
		for _, ns := range u.opt.Forms.Namespaces() {
			if err := m.read(dirfd, name, ns); err != nil {
				return m, err
			}
		}
		if name == ovl.FuseOverlayfsOpaque && u.opt.Forms.All() {
			if err := m.readOpaque(dirfd, name); err != nil {
				return m, err
			}
		}
	}
	if sentinel && !m.opaque {
		m.opaque, err = u.findAUFS(dirfd, ovl.AUFSOpaque)
	}
	return m, err
}

// read adds what the attribute name says, if it is one of ns.
func (m *dirMark) read(dirfd int, name string, ns *ovl.Names) error {
	switch name {
	case ns.Opaque:
		return m.readOpaque(dirfd, name)
	case ns.Redirect:
		v, err := cow.GetXattr(dirfd, ".", name)
		if errors.Is(err, unix.EACCES) {
			return err
		}
		if err != nil {
			return nil //nolint:nilerr // removed meanwhile
		}
		r, err := parseRedirect(v)
		if err != nil {
			return err
		}
		if m.redirect == nil {
			m.redirect = &r
		}
	case ns.Impure:
		m.impure = true
	case ns.Specials:
		m.specials = true
	}
	return nil
}

// parseRedirect reads the value of a redirect attribute; EIO if it is malformed.
func parseRedirect(v []byte) (ovl.Redirect, error) {
	r, err := ovl.ParseRedirect(v)
	if err != nil {
		return r, fmt.Errorf("%w: %w", err, unix.EIO)
	}
	return r, nil
}

func (m *dirMark) readOpaque(dirfd int, name string) error {
	v, err := cow.GetXattr(dirfd, ".", name)
	if errors.Is(err, unix.EACCES) {
		return err
	}
	if err == nil {
		m.opaque = m.opaque || ovl.IsOpaque(v)
		m.xwhiteouts = m.xwhiteouts || ovl.HasXWhiteouts(v)
	}
	return nil
}

// isXWhiteout says whether an object is a whiteout in attribute form.
func (u *Union) isXWhiteout(dirfd int, name string, st *unix.Statx_t) bool {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != 0 {
		return false
	}
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(dirfd, name, ns.Whiteout, nil); err == nil {
			return true
		}
	}
	return false
}
