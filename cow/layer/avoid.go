package layer

import (
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Avoid tells the device number of the mount that shows the layer, so that looking at the layer never asks that mount's server,
// which would wait for itself. inside says that the mount point is known to lie in the layer. It is called before the layer is
// shared.
func (l *Layer) Avoid(dev uint64, inside bool) { l.avoid, l.inside = dev, inside }

// Avoids says whether st is of the mount that shows the layer.
func (l *Layer) Avoids(st *unix.Statx_t) bool { return l.avoid != 0 && sys.Dev(st) == l.avoid }

// StatRaw is Stat without the attribute that holds owner and mode, for what the mask says. Of the mount that shows the layer it
// gives a device number that Avoids knows, and attributes that mean nothing.
//
// Local file systems have no server, and ask nobody whatever the flags: there one call is enough, but for what another file
// system was mounted on. On others what is known may be old, so that a look for the mount comes before the call that asks, where
// it may find it.
func (l *Layer) StatRaw(dirfd int, name string, mask uint32, st *unix.Statx_t) error {
	local := l.local()
	if l.avoid == 0 || !local && !l.inside {
		return sys.StatMasked(dirfd, name, mask, st)
	}
	err := sys.StatKnown(dirfd, name, mask, st)
	if err != nil || l.Avoids(st) || local && sys.Dev(st) == l.Dev {
		return err
	}
	return sys.StatMasked(dirfd, name, mask, st)
}

// local says whether the layer's file system is one whose attributes are always those on its disk.
func (l *Layer) local() bool {
	switch l.FSType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.EROFS_SUPER_MAGIC_V1, unix.SQUASHFS_MAGIC:
		return true
	}
	return false
}
