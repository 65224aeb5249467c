package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// place is a free name in an upper directory.
type place struct {
	parent *Node
	dir    *layer.File
	name   string
	hint   createHint
	// below says that lowers have the name too: it is hidden by a whiteout that the new object replaces, and a new
	// directory must be opaque.
	below    bool
	whiteout bool // a whiteout of the kernel's form is in place
	aufs     bool // a whiteout of the AUFS form lies beside
	// last says that the whiteout is the last name of its inode.
	last bool
}

// placeLocked finds out what a new object called name in dir replaces; EEXIST if the name is taken. Preconditions:
// renameMu and dir.dir.mu are held, dir has an upper. The caller closes place.dir.
func (u *Union) placeLocked(dir *Node, name string) (p place, err error) {
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
		if err := u.examine(dir, &p); err != nil {
			return p, err
		}
	}
	p.hint, err = u.hintLocked(dir, f.FD())
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

// examine looks at what the upper has under the name: a whiteout is noted, an object is EEXIST.
func (u *Union) examine(dir *Node, p *place) error {
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
		if p.aufs = u.aufsWhiteoutIn(dir, p.name); !p.aufs {
			return unix.EEXIST
		}
	}
	return nil
}

// removal is what has to be done to the layers to make one name go away.
type removal struct {
	dir   *layer.File // the upper directory
	name  string
	upper bool // the upper has an object of that name
	below bool // the lowers show the name
}

// removalLocked finds out what the removal of a name of n takes. Precondition: renameMu and dir.dir.mu are held; the caller closes r.dir.
func (u *Union) removalLocked(dir *Node, name string, n *Node) (r removal, err error) {
	if err := u.resolveLocked(dir); err != nil {
		return r, err
	}
	r = removal{name: name, upper: u.linkIsUpper(n, dir, name)}
	if r.below, err = u.lowerHasLocked(dir, name); err != nil {
		return r, err
	}
	if r.dir, err = u.dirUpper(dir); err == nil {
		u.quota.grow(dir, r.dir.FD(), name) // by a whiteout; or it shrinks
	}
	return r, err
}
