package layer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Layer is a directory tree that takes part in a union.
//
// A Layer is immutable after Open and may be used by any number of goroutines. Close ends it.
type Layer struct {
	// Path is where the layer was opened; for messages only, never resolved again.
	Path string
	// Dev is the device number of the layer's root; FSType its statfs magic, FSID its statfs identity.
	Dev    uint64
	Ino    uint64
	FSType int64
	FSID   uint64
	// UID and GID are the owner of the layer's root, as the mount that it was opened in shows it.
	UID, GID uint32
	// UUID identifies the file system in origin handles; zero where the kernel does not tell.
	UUID [16]byte
	// Subvol is the subvolume of btrfs that the layer's root is in, 0 for other file systems.
	Subvol uint64
	// Btime is when the root was made, zero where the file system does not tell. Mount is the id of the mount that the layer was
	// opened in, zero where the kernel does not tell.
	Btime unix.StatxTimestamp
	Mount uint64

	fd   int
	root File // what Root returns
	// handles says that inode numbers can be read out of this file system's file handles.
	handles bool
	// avoid is the device number of the mount that shows the layer, 0 for none; inside says that it may lie in the layer.
	avoid  uint64
	inside bool
	// override is the attribute that holds owner and mode of the layer's objects, "" for none.
	override string
}

// Open opens the directory path as a layer, a directory on disk that is to be read as a union reads it: owners and modes come from
// the override attribute, if the root has one. What a mount or a driver shows is for OpenPlain. Symlinks in path are followed once, here; the layer stays the directory that
// path named at this moment. The error names the path; it wraps ENOENT, ENOTDIR or EACCES.
func Open(path string) (*Layer, error) { return new(Opener).Open(path) }

// OpenPlain opens the directory path as Open does, but as a tree that applications see and write to, or the kernel's overlayfs reads:
// an attribute that is named like an override is one like any other. Whoever can set a user attribute on a file of his own could
// decide about its owner and set-user-ID bit otherwise.
func OpenPlain(path string) (*Layer, error) { return (&Opener{Plain: true}).Open(path) }

// FD is the layer's root directory. It belongs to the layer.
func (l *Layer) FD() int { return l.fd }

// Root is FD as a File; closing it does nothing.
func (l *Layer) Root() *File { return &l.root }

// Close releases the descriptor.
func (l *Layer) Close() error {
	if l.fd < 0 {
		return nil
	}
	fd := l.fd
	l.fd = -1
	return unix.Close(fd)
}

// SetOverride makes the layer keep owner and mode in the given attribute from now on ("" for in the inode). It is called
// before the layer is shared.
func (l *Layer) SetOverride(attr string) { l.override = attr }

// Override is the attribute that holds owner and mode, "" for none.
func (l *Layer) Override() string { return l.override }

// Handles says whether origins of this layer's inodes can be written and read back to inode numbers.
func (l *Layer) Handles() bool { return l.handles }

// Holds says whether o is the origin of an inode of this layer's file system, as far as that can be told.
func (l *Layer) Holds(o ovl.Origin) bool {
	return l.handles && l.UUID == o.UUID && l.Subvol == o.Subvolume()
}

// TellApart makes Handles false for layers on file systems that origins do not tell apart: copies of one disk have its UUID, and some
// file systems have none (cf. overlayfs super.c ovl_lower_uuid_ok). It is called before the layers are shared.
func TellApart(layers []*Layer) {
	if !slices.ContainsFunc(layers, func(l *Layer) bool { return l.Dev != layers[0].Dev }) {
		return
	}
	for i, a := range layers {
		for _, b := range layers[:i] {
			if a.Dev != b.Dev && a.UUID == b.UUID && !a.besides(b) {
				a.handles, b.handles = false, false
			}
		}
	}
}

// besides says whether two layers are in different subvolumes of one btrfs. Its statfs(2) mixes the subvolume into the identity (cf.
// btrfs super.c btrfs_statfs).
func (l *Layer) besides(o *Layer) bool {
	whole := func(l *Layer) uint64 { return l.FSID ^ (l.Subvol<<32 | l.Subvol>>32) }
	return l.FSType == unix.BTRFS_SUPER_MAGIC && o.FSType == l.FSType && l.Subvol != o.Subvol && whole(l) == whole(o)
}

// maxWalk bounds one openat2 argument; a longer path is walked in pieces.
const maxWalk = 4000

// OpenDir opens the directory path, relative to the layer's root, following no symlink. The caller owns the descriptor,
// which can be used for *at calls and, where permissions allow, for listing.
func (l *Layer) OpenDir(path string) (int, error) {
	return OpenDirAt(l.fd, path)
}

// OpenDirAt is OpenDir relative to any directory descriptor.
func OpenDirAt(dirfd int, path string) (int, error) {
	at := dirfd
	for len(path) > maxWalk {
		cut := strings.LastIndexByte(path[:maxWalk], '/')
		if cut <= 0 {
			if at != dirfd {
				unix.Close(at)
			}
			return -1, unix.ENAMETOOLONG
		}
		fd, err := sys.OpenBeneath(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY)
		if at != dirfd {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at, path = fd, path[cut+1:]
	}
	fd, err := sys.OpenBeneath(at, path, unix.O_PATH|unix.O_DIRECTORY)
	if at != dirfd {
		unix.Close(at)
	}
	return fd, err
}

// Stat fills st with the attributes of name below dirfd ("." or "" for dirfd itself), as kept by this layer: with
// xattr_permissions, owner, mode, type and device number come from the attribute.
func (l *Layer) Stat(dirfd int, name string, st *unix.Statx_t) error {
	if err := l.StatRaw(dirfd, name, sys.StatMask, st); err != nil {
		return err
	}
	if l.override == "" || l.Avoids(st) {
		return nil
	}
	return l.applyOverride(dirfd, name, st)
}

func (l *Layer) applyOverride(dirfd int, name string, st *unix.Statx_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	var buf [256]byte
	n, err := sys.Getxattrat(dirfd, name, l.override, buf[:])
	if errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("%s in %s: attribute %s is longer than any owner and mode: %w", name, l.Path, l.override, unix.EIO)
	}
	if err != nil {
		return nil //nolint:nilerr // an object without the attribute is described by its inode
	}
	o, err := ovl.ParseOverride(buf[:n])
	if err != nil {
		return fmt.Errorf("%s in %s: %w: %w", name, l.Path, err, unix.EIO)
	}
	st.Uid, st.Gid = o.UID, o.GID
	st.Mode = uint16(uint32(st.Mode)&unix.S_IFMT | o.Mode&0o7777)
	if o.HasType {
		st.Mode = uint16(o.Mode)
		st.Rdev_major, st.Rdev_minor = unix.Major(o.Rdev), unix.Minor(o.Rdev)
	}
	return nil
}

// IsWhiteoutDevice says whether st is the kernel's form of a whiteout, a 0:0 character device.
func IsWhiteoutDevice(st *unix.Statx_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == 0 && st.Rdev_minor == 0
}
