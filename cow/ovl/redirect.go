package ovl

import (
	"fmt"
	"strings"
)

// Redirect is the value of a redirect attribute: where the layers below keep what lies here.
type Redirect struct {
	// Path is the place relative to the layer's root, without leading slash, when Absolute; else the name of a
	// sibling.
	Path     string
	Absolute bool
}

// ParseRedirect checks the value of a redirect attribute. A layer may come from an untrusted image: a path with an empty,
// `.` or `..` component, or a relative one with a slash, is refused (cf. overlayfs namei.c ovl_check_redirect and
// util.c ovl_get_redirect_xattr).
func ParseRedirect(value []byte) (Redirect, error) {
	s := string(value)
	abs := strings.HasPrefix(s, "/")
	path := strings.TrimPrefix(s, "/")
	if path == "" || strings.IndexByte(path, 0) >= 0 {
		return Redirect{}, fmt.Errorf("redirect %q is empty or holds a NUL", s)
	}
	if !abs && strings.Contains(path, "/") {
		return Redirect{}, fmt.Errorf("redirect %q is relative with a slash", s)
	}
	for rest := path; ; {
		name, tail, more := strings.Cut(rest, "/")
		if name == "" || name == "." || name == ".." || len(name) > 255 {
			return Redirect{}, fmt.Errorf("redirect %q has component %q", s, name)
		}
		if !more {
			return Redirect{Path: path, Absolute: abs}, nil
		}
		rest = tail
	}
}

// Value is the attribute's value.
func (r Redirect) Value() []byte {
	if r.Absolute {
		return []byte("/" + r.Path)
	}
	return []byte(r.Path)
}
