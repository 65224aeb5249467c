package union

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"plyfs/cow"
	"plyfs/cow/ovl"
)

// inoBits is how much of an inode number is the backing file system's; the bits above tell file systems apart, as the
// kernel's xino does (cf. overlayfs inode.c ovl_map_dev_ino).
const inoBits = 48

// devIndex numbers the devices of the layers in mount order, so that numbers are the same after a remount.
func (u *Union) devIndex(dev uint64) (uint64, bool) {
	for i, d := range u.devs {
		if d == dev {
			return uint64(i), true
		}
	}
	return 0, false
}

// mapIno is the number shown for an inode of a layer. Numbers too large to carry their device, and devices mounted below
// a layer, are hashed into the upper half of the space.
func (u *Union) mapIno(dev, ino uint64) uint64 {
	if i, ok := u.devIndex(dev); ok && ino < 1<<inoBits {
		return i<<inoBits | ino
	}
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], dev)
	binary.NativeEndian.PutUint64(b[8:], ino)
	return 1<<63 | xxhash.Sum64(b[:])>>1
}

// anyXattr reads an attribute in the first of the namespaces that has it.
func (u *Union) anyXattr(dirfd int, name string, of func(ns *ovl.Names) string) (v []byte, err error) {
	for _, ns := range u.opt.Forms.Namespaces() {
		if v, err = cow.GetXattr(dirfd, name, of(ns)); err == nil {
			break
		}
	}
	return v, err
}

// originOf is the number of an upper object that was copied up: its lower's, read from the origin attribute; zero when
// it has none that can be read. key is the name that the origin has in the hard-link index.
func (u *Union) originOf(dirfd int, name string) (ino uint64, key string) {
	v, err := u.anyXattr(dirfd, name, func(ns *ovl.Names) string { return ns.Origin })
	if err != nil {
		return 0, ""
	}
	o, err := ovl.ParseOrigin(v)
	if err != nil {
		return 0, ""
	}
	key = o.IndexName()
	n, ok := o.Inode()
	if !ok {
		return 0, key
	}
	for _, l := range u.lowers {
		if l.Holds(o) {
			return u.mapIno(l.Dev, n), key
		}
	}
	return 0, key
}
