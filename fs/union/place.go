package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// place is a name in an upper directory that an operation gives to an object, or takes from one, and what it has to know of it.
type place struct {
	parent *Node
	dir    *layer.File // the upper of parent
	name   string
	// hint is what a new object needs to know of parent.
	hint createHint

	// below says that the lowers show the name: without an object there, a whiteout hides theirs, and a new directory must be opaque.
	below bool
	// upper says that the upper has an object of that name, which is known only of one that is to go.
	upper bool
	// whiteout says that a whiteout of the kernel's form has the name; last that this is the last name of the whiteout's inode.
	whiteout, last bool
	// aufs says that a whiteout of the AUFS form lies beside.
	aufs bool
}

// freePlaceLocked is the place of a new object called name in dir; EEXIST if the name is taken. Preconditions: renameMu and dir.dir.mu
// are held, dir has an upper. The caller closes place.dir.
func (u *Union) freePlaceLocked(dir *Node, name string) (p place, err error) {
	if dir.dir.dead {
		return p, unix.ENOENT
	}
	u.treeMu.Lock()
	taken := dir.dir.children[name] != nil
	u.treeMu.Unlock()
	if taken {
		return p, unix.EEXIST
	}
	if err := u.resolveLocked(dir); err != nil {
		return p, err
	}
	f, err := u.dirUpper(dir)
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	u.quota.grow(dir, f.FD(), name)
	p = place{parent: dir, dir: f, name: name}
	if p.below, err = u.lowerHasLocked(dir, name); err != nil {
		return p, err
	}
	if p.below {
		if err := u.examine(&p); err != nil {
			return p, err
		}
	}
	p.hint, err = u.hintLocked(dir, f.FD())
	return p, err
}

// takenPlaceLocked is the place of a name of n that is to go. Precondition: renameMu and dir.dir.mu are held. The caller closes place.dir.
func (u *Union) takenPlaceLocked(dir *Node, name string, n *Node) (p place, err error) {
	if err := u.resolveLocked(dir); err != nil {
		return p, err
	}
	p = place{parent: dir, name: name, upper: u.linkIsUpper(n, dir, name)}
	if p.below, err = u.lowerHasLocked(dir, name); err != nil {
		return p, err
	}
	if p.dir, err = u.dirUpper(dir); err == nil {
		u.quota.grow(dir, p.dir.FD(), name) // by a whiteout; or it shrinks
	}
	return p, err
}

// lowerHasLocked says whether the lowers of dir show name. Precondition: dir.dir.mu and renameMu are held.
func (u *Union) lowerHasLocked(dir *Node, name string) (bool, error) {
	if len(dir.dir.lowers) == 0 {
		return false, nil
	}
	ln, ok, err := u.lowerNameLocked(dir, name, &entry{})
	return ok && ln.first >= 0, err
}

// examine looks at what the upper has under a name that is free in the merged view: a whiteout is noted, an object is EEXIST.
func (u *Union) examine(p *place) error {
	var st unix.Statx_t
	err := sys.Statx(p.dir.FD(), p.name, &st)
	switch {
	case err == nil && ovl.IsAUFSName(p.name) && u.aufsHidden(p.dir.FD(), p.name, direntType(uint32(st.Mode))):
		return unix.EINVAL // the union's own: without it, what it deletes would be back
	case err == nil && u.isUpperWhiteout(p.dir.FD(), p.name, &st):
		p.whiteout, p.last = true, st.Nlink == 1
		return nil
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	if p.below {
		if p.aufs = u.aufsWhiteoutIn(p.parent, p.name); !p.aufs {
			return unix.EEXIST
		}
	}
	return nil
}
