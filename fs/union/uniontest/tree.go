package uniontest

import (
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// Traits say what an implementation is and can do.
type Traits uint32

const (
	// Kernel is the kernel's overlayfs.
	Kernel Traits = 1 << iota
	// Mounted trees are seen through the VFS: permissions are enforced, paths follow symlinks, files have descriptors
	// that can be mapped and locked.
	Mounted
	// Devices can be made in the layers, beside the 0:0 device of a whiteout.
	Devices
	// Trusted is set where layers keep trusted.overlay.* attributes, else user.overlay.*; only then does the kernel's
	// overlayfs do redirects and metacopy.
	Trusted
	// InitialRoot trees take ids beyond 65535 and attributes in security.* and trusted.*: the process is the machine's root.
	InitialRoot
	// SharedUpper trees may be opened a second time over the same upper while the first is open.
	SharedUpper
	// Passthrough maps and reads a file directly from its layer while it is open.
	Passthrough
	// PlainRenames says that renameat2 takes no flags on the layers' file system. Names that leave no room for the AUFS form's prefix can't
	// be renamed there.
	PlainRenames
	// AUFSForm is set where whiteouts are written in the AUFS form.
	AUFSForm
)

// Spec is what a tree is opened over.
type Spec struct {
	// Base is a directory of the case's own, on the layers' file system, for mount points.
	Base string
	// Lowers are the lower directories, topmost first.
	Lowers []string
	// Upper and Work are empty for a tree without an upper.
	Upper, Work string
	// Options are mount options, "key=value" or "key": metacopy=off, redirect_dir=off, hardlink_index=off, ro, volatile and
	// others that implementations translate.
	Options []string
}

// Factory opens trees of one implementation.
type Factory interface {
	// Name is a short word for test names.
	Name() string
	Traits() Traits
	// Open opens a tree. The test's end closes it if it is still open.
	Open(t testing.TB, s Spec) (Tree, error)
}

// Stat is what stat(2) and statx(2) tell of a file.
type Stat struct {
	Dev, Ino, Nlink     uint64
	Mode                uint32 // with type bits
	UID, GID            uint32
	Rdev                uint64
	Size, Blocks        int64
	Blksize             int64
	Atime, Mtime, Ctime unix.Timespec
	Btime               unix.Timespec // zero when unknown
}

// Type returns the type bits.
func (s Stat) Type() uint32 { return s.Mode & unix.S_IFMT }

// Perm returns the permission, set-id and sticky bits.
func (s Stat) Perm() uint32 { return s.Mode &^ unix.S_IFMT }

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Ino  uint64
	Type uint32 // type bits of a mode
	Next int64  // offset behind this entry
}

// Statfs is the part of statfs(2) that a union passes on.
type Statfs struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Namelen                             int64
}

// Tree is a union that is open. Paths are relative to its root, "." or "" being the root; the last component is never
// followed, except by Open (unless O_NOFOLLOW), Chmod and Truncate. Errors wrap a syscall errno.
type Tree interface {
	Mkdir(path string, mode uint32) error
	Mknod(path string, mode uint32, dev uint64) error
	Symlink(target, path string) error
	Link(oldpath, newpath string) error
	Unlink(path string) error
	Rmdir(path string) error
	// Rename takes the flags of renameat2(2).
	Rename(oldpath, newpath string, flags uint32) error
	// Open takes the flags of open(2), O_CREAT and O_TMPFILE among them.
	Open(path string, flags int, mode uint32) (File, error)
	// LinkFile gives an open file, possibly one made by O_TMPFILE, a name.
	LinkFile(f File, newpath string) error

	Lstat(path string) (Stat, error)
	Chmod(path string, mode uint32) error
	// Chown leaves an id of -1 alone.
	Chown(path string, uid, gid int) error
	// Utimens accepts UTIME_OMIT and UTIME_NOW.
	Utimens(path string, atime, mtime unix.Timespec) error
	Truncate(path string, size int64) error
	Readlink(path string) (string, error)
	// ReadDir lists a whole directory, "." and ".." included, in its order.
	ReadDir(path string) ([]Dirent, error)
	OpenDir(path string) (DirHandle, error)

	// Getxattr with a nil dest returns the size.
	Getxattr(path, name string, dest []byte) (int, error)
	Setxattr(path, name string, value []byte, flags int) error
	Removexattr(path, name string) error
	// Listxattr with a nil dest returns the size.
	Listxattr(path string, dest []byte) (int, error)
	Statfs() (Statfs, error)

	// As returns the same tree as another user sees it. It is valid until the next Remount of t.
	As(c testenv.Cred) Tree
	// Remount closes the tree cleanly and opens it again over the same directories.
	Remount() error
	// Close closes the tree cleanly; all its files must be closed. A second Close does nothing.
	Close() error
	// Root returns the mount point, "" for a tree that is not mounted.
	Root() string
}

// File is an open file.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Write appends for files opened with O_APPEND, else writes at the file's own position.
	Write(p []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Datasync() error
	Fallocate(mode uint32, off, length int64) error
	// Seek is for SEEK_DATA and SEEK_HOLE.
	Seek(off int64, whence int) (int64, error)
	// CopyRange is copy_file_range(2) to dst, a file of the same tree.
	CopyRange(off int64, dst File, doff int64, length int) (int, error)
	Stat() (Stat, error)
	Chmod(mode uint32) error
	Chown(uid, gid int) error
	Utimens(atime, mtime unix.Timespec) error
	Setxattr(name string, value []byte, flags int) error
	Getxattr(name string, dest []byte) (int, error)
	// Flags and SetFlags are FS_IOC_GETFLAGS and FS_IOC_SETFLAGS.
	Flags() (uint32, error)
	SetFlags(flags uint32) error
	// FD returns the descriptor, -1 for a tree that is not mounted.
	FD() int
	Close() error
}

// DirHandle is an open directory.
type DirHandle interface {
	// Next returns some further entries, none at the end.
	Next() ([]Dirent, error)
	// SeekTo continues from an offset that a Dirent gave, or from 0, the beginning.
	SeekTo(off int64) error
	Sync() error
	Close() error
}
