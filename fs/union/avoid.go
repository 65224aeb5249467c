package union

import (
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Avoid tells the union the device number of the mount that shows it. Where a layer shows the root of that mount, the union shows
// an empty directory with the attributes of its own root, and never goes into it: the server would wait for itself. That stays so
// when the mount is gone. inside says that the mount point is known to lie in a layer; without it, a mount that gets into
// one later, on a file system with a server of its own, may still be asked for its attributes.
//
// It is called at most once, before anything else is asked of the union.
func (u *Union) Avoid(dev uint64, inside bool) {
	u.avoid = dev
	for _, l := range u.lowers {
		l.Avoid(dev, inside)
	}
	if u.upper != nil {
		u.upper.Avoid(dev, inside)
	}
}

// own says whether st, of an object in a layer, is of the mount that shows the union.
func (u *Union) own(st *unix.Statx_t) bool { return u.avoid != 0 && sys.Dev(st) == u.avoid }

// statOwn fills in the attributes that the own mount's root has where a layer shows it. Device and inode number stay those in st:
// with those of the root of this tree, whoever walks the tree would take it for a loop.
func (u *Union) statOwn(st *unix.Statx_t) error {
	l := u.upper
	if l == nil {
		l = u.lowers[0]
	}
	id := *st
	if err := l.Stat(l.FD(), "", st); err != nil {
		return err
	}
	st.Dev_major, st.Dev_minor, st.Ino, st.Nlink = id.Dev_major, id.Dev_minor, id.Ino, 2
	return nil
}

// isOwnMount says whether n is the own mount's root in a layer, and not copied up yet. The layers are not to be asked about it.
func (n *Node) isOwnMount() bool { return n.flags.Load()&(flagOwnMount|flagUpper) == flagOwnMount }
