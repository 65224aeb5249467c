package tarlayer

import (
	"io"

	"plyfs/internal/sys"
)

// Attr is what a tree tells of one path. Owners are those that the container sees.
type Attr struct {
	// Mode holds type and permission bits as st_mode does.
	Mode     uint32
	UID, GID uint32
	// Size is the length in bytes of a regular file.
	Size  int64
	Mtime sys.Time
	// Rdev is the device number of a device node, in the kernel's 64-bit encoding.
	Rdev uint64
	// Nlink, Dev and Ino tell names of one file: paths with Nlink above one and equal Dev and Ino are hard links.
	Nlink    uint32
	Dev, Ino uint64
	// Opaque says of a directory that nothing of the layers below shows in it.
	Opaque bool
}

// Source is a tree of files that can be read by path: a directory on disk (DirSource), or a merged view. Paths are
// relative to its root, without leading slash; "" is the root. No method follows a symlink in the last component.
// Errors wrap the errno: ENOENT for a path that does not exist. Methods may block on I/O; callers of this package use a
// Source from one goroutine at a time.
type Source interface {
	// Lstat returns the attributes of path.
	Lstat(path string) (Attr, error)
	// Open opens the regular file path for reading; the caller closes it.
	Open(path string) (io.ReadCloser, error)
	// Readlink returns the target of the symlink path.
	Readlink(path string) (string, error)
	// Xattrs returns the extended attributes of path as an application sees them: none of the union's own, nested
	// overlays' attributes with one level of escape taken off. The map is the caller's.
	Xattrs(path string) (map[string]string, error)
}

// Tree is a Source that can be walked.
type Tree interface {
	Source
	// ReadDir returns the names in the directory path, in any order. The slice is the caller's.
	ReadDir(path string) ([]string, error)
}
