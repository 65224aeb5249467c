package tarlayer

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"plyfs/cow/ovl"
)

// cleanName returns the path that a member's name stands for, relative to the root and "" for it. A leading slash means
// the root, as for all unpackers of layers. Dot-dot components are resolved by their text; a name that leaves the root
// is refused.
func (a *applier) cleanName(name string) (string, error) {
	if int64(len(name)) > a.limits.Name {
		return "", fmt.Errorf("name %.40q...: %w", name, limitError("Name", a.limits.Name))
	}
	clean := name
	if !isClean(name) {
		rel := strings.TrimLeft(name, "/")
		clean = path.Clean(rel)
		if clean == ".." || strings.HasPrefix(clean, "../") {
			return "", fmt.Errorf("name %q leads out of the layer: %w", name, ErrInvalid)
		}
		if clean == "." {
			return "", nil
		}
	}
	if int64(strings.Count(clean, "/"))+1 > a.limits.Depth {
		return "", fmt.Errorf("name %.40q...: %w", name, limitError("Depth", a.limits.Depth))
	}
	return clean, nil
}

// isClean says whether path.Clean would return name as it is: the common case, which is not to allocate.
func isClean(name string) bool {
	if name == "" || name[0] == '/' || name[len(name)-1] == '/' {
		return false
	}
	for rest := name; ; {
		component, after, more := strings.Cut(rest, "/")
		if component == "" || component == "." || component == ".." {
			return false
		}
		if !more {
			return true
		}
		rest = after
	}
}

// aufsParent looks for a directory of the AUFS form among the parents of a clean path. Below AUFS's bookkeeping nothing
// is unpacked (skip); a whiteout can't be a directory.
func aufsParent(dir string) (skip bool, err error) {
	for rest := dir; rest != ""; {
		component, after, _ := strings.Cut(rest, "/")
		switch {
		case !ovl.IsAUFSName(component):
		case ovl.IsAUFSBookkeeping(component):
			return true, nil
		default:
			return false, fmt.Errorf("directory %q has the name of a whiteout: %w", component, ErrInvalid)
		}
		rest = after
	}
	return false, nil
}

// pathError says what was done to which path of a tree.
func pathError(op, path string, err error) error {
	return fmt.Errorf("%s %q: %w", op, "/"+path, err)
}

// quoteShort is a name for a message, which may be as long as a member likes.
func quoteShort(name string) string {
	if name == "" {
		return "the beginning"
	}
	if len(name) > maxQuoted {
		return strconv.Quote(name[:maxQuoted]) + "..."
	}
	return strconv.Quote(name)
}

const maxQuoted = 200
