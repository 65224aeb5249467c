package union

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
)

// followMetacopy replaces fd, an open lower file at r, by the file that holds its data if it is a metadata-only copy
// (cf. overlayfs namei.c ovl_lookup, uppermetacopy). It owns fd.
func (u *Union) followMetacopy(fd int, r lowerRef) (int, error) {
	for depth := 0; depth <= len(u.lowers); depth++ {
		ns := metacopyNames(fd)
		if ns == nil {
			return fd, nil
		}
		next, err := u.lowerDataRef(fd, ns, r)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		l, err := u.refLoc(next)
		if err != nil {
			return -1, err
		}
		fd, err = openNoatime(l.fd(), l.name)
		l.close()
		if err != nil {
			return -1, err
		}
		r = next
	}
	unix.Close(fd)
	return -1, unix.ELOOP
}

// metacopyNames returns the namespace in which the open file says that it is a metadata-only copy, nil if it is none.
func metacopyNames(fd int) *ovl.Names {
	for _, ns := range [...]*ovl.Names{ovl.Trusted(), ovl.User()} {
		if _, err := unix.Fgetxattr(fd, ns.Metacopy, nil); err == nil {
			return ns
		}
	}
	return nil
}

// lowerDataRef finds the object below r that a metadata-only copy at r stands for.
func (u *Union) lowerDataRef(fd int, ns *ovl.Names, r lowerRef) (lowerRef, error) {
	dir, name := r.dir, r.name
	if v, err := cow.GetXattr(fd, "", ns.Redirect); err == nil {
		red, err := ovl.ParseRedirect(v)
		if err != nil {
			return lowerRef{}, fmt.Errorf("%w: %w", err, unix.EIO)
		}
		name = red.Path
		if red.Absolute {
			dir = ""
			if i := strings.LastIndexByte(red.Path, '/'); i >= 0 {
				dir, name = red.Path[:i], red.Path[i+1:]
			}
		}
	}
	return u.findLower(r.layer+1, dir, name)
}

// findLower looks for dir/name in the merged lowers from index first on; EIO if there is no regular file.
func (u *Union) findLower(first int32, dir, name string) (lowerRef, error) {
	at, err := u.walkLowers(u.rootLowers(first), dir)
	if err != nil {
		return lowerRef{}, err
	}
	found, dirs, err := u.probeLowers(at, name)
	if err != nil {
		return lowerRef{}, err
	}
	if found.layer < 0 || dirs != nil {
		return lowerRef{}, fmt.Errorf("no lower data for metadata-only copy of %s: %w", joinPath(dir, name), unix.EIO)
	}
	found.view = dir
	return found, nil
}
