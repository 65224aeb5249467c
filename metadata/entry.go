package metadata

import (
	"errors"

	"github.com/cespare/xxhash/v2"
)

// SchemaVersion is the version of the keys and values in the database of an index.
const SchemaVersion = 1

// MaxXattrValue is the size in bytes up to which the value of an extended attribute is recorded.
const MaxXattrValue = 256

// MaxView is the length in bytes of the longest view path that is recorded. Deeper directories exist, since one can be made
// below a descriptor; they are read from the layers.
const MaxView = 16 << 10

// Errors of this package; those that are returned wrap one of them and name the object.
var (
	// ErrDamaged says that bytes are not what was written. What they described has to be read from the layers.
	ErrDamaged = errors.New("damaged")
	// ErrInvalid says that a record cannot be stored: its builder made a mistake.
	ErrInvalid = errors.New("invalid record")
)

// Time is a point in time as the kernel reports it: seconds since 1970 and nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Stamp tells one state of an object of a layer from another.
type Stamp struct {
	Ino, Size    uint64
	Mtime, Ctime Time
}

// Lower is one lower directory that takes part in a merged one.
type Lower struct {
	// Layer is an index into the stack, 0 is topmost.
	Layer int32
	// Path is where the directory is below the layer's root, "" for the root itself.
	Path string
	// XWhiteouts says that empty files with a whiteout attribute in this directory are whiteouts.
	XWhiteouts bool
	// Specials says that files of this directory may stand for a 0:0 device of an application.
	Specials bool
	Stamp    Stamp
}

// Xattr is an extended attribute as it is on disk. A nil Value is one too large to be recorded: ask the layer.
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one visible name of a merged directory. Names that are whited out are not recorded.
//
// Of an Entry that a Dir filled, Below is reused when the Entry is filled again; Xattrs belong to the Dir, stay as they
// are, and must not be changed.
type Entry struct {
	Name string
	// First is the index into Dir.Lowers of the lower whose object shows.
	First int32
	// Ask says that only Name, First, the type bits of Mode, Ino and Below are recorded: ask the layer for the rest.
	Ask bool
	// Special says that the object is an empty file that stands for a 0:0 device of an application.
	Special bool
	// NoXattrs says that the object is known to have no extended attributes. It is derived: Encode ignores it.
	NoXattrs bool
	// Below are, of a directory, the indices into Dir.Lowers, ascending, of those that merge into it.
	Below []int32
	// Mode holds type and permissions as in st_mode.
	Mode, UID, GID, Nlink, Blksize uint32
	// Blocks are of 512 bytes.
	Ino, Size, Blocks, Rdev uint64
	// Btime is zero where it is not known.
	Atime, Mtime, Ctime, Btime Time
	// Subdirs is, of a directory, one more than the number of its merged subdirectories, 0 if that is not known.
	Subdirs int32
	// Target is that of a symlink.
	Target string
	// Xattrs are sorted by name.
	Xattrs []Xattr
}

// Record is a directory to be stored.
type Record struct {
	Lowers  []Lower
	Entries []Entry
}

// OffsetShift is the number of low bits that are the same in all of NameOffset's: they tell colliding names apart.
const OffsetShift = 8

// NameOffset orders the entries of a directory: it is a name's position for readdir.
func NameOffset(name string) uint64 {
	return xxhash.Sum64String(name)>>1&^(1<<OffsetShift-1) | 1<<OffsetShift
}
