package tarlayer

import (
	"errors"
	"fmt"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Sentinel errors; what is returned wraps one of them and names the member or path.
var (
	// ErrLimit says that a stream is beyond one of Limits, which the message names.
	ErrLimit = errors.New("limit exceeded")
	// ErrInvalid says that a member makes no sense: an escaping name, a whiteout of nothing, an unknown type.
	ErrInvalid = errors.New("invalid layer")
	// ErrUnmapped says that an owner has no counterpart in the id maps.
	ErrUnmapped = errors.New("id is not mapped")
	// ErrDevice says that a device node was refused, by option or by the kernel.
	ErrDevice = errors.New("device node refused")
	// ErrChanged says that a file changed while it was written to a stream.
	ErrChanged = errors.New("changed while it was read")
)

// WhiteoutForm says what becomes of the whiteouts of a stream.
type WhiteoutForm uint8

// The forms. All but WhiteoutRemove are for directories that are stacked: then attributes of the stream that the union
// would take for its own are escaped as those of a nested overlay, and a 0:0 device is kept as plyfs keeps one that an
// application made (ovl.Names.Special).
const (
	// WhiteoutRemove deletes from the tree what a whiteout names: for drivers whose tree holds the layers below.
	WhiteoutRemove WhiteoutForm = iota
	// WhiteoutKernel makes 0:0 devices and opaque attributes, and fails where the kernel refuses them.
	WhiteoutKernel
	// WhiteoutAny is WhiteoutKernel, and WhiteoutAUFS for a whiteout that is refused. Not for the kernel's overlayfs,
	// which does not know the second form.
	WhiteoutAny
	// WhiteoutAUFS keeps whiteouts and opaque sentinels as the files that they are in the stream.
	WhiteoutAUFS
)

// OwnerForm says how owners, modes and types are kept.
type OwnerForm uint8

// The forms of ownership.
const (
	// OwnerInode sets them on the inode, and fails where that is refused.
	OwnerInode OwnerForm = iota
	// OwnerIgnore leaves files to the calling user where chown is refused, as for a user namespace with a single id.
	// Set-id bits go with the owner that they were meant for.
	OwnerIgnore
	// OwnerXattr keeps them in the layer's override attribute (Layer.Override; user.containers.override_stat if it has
	// none), special files as regular placeholders: stores of xattr_permissions.
	OwnerXattr
)

// DeviceForm says what becomes of block and character devices.
type DeviceForm uint8

// The forms. With OwnerXattr devices are placeholders, which are always possible, and only DeviceRefuse matters.
const (
	DeviceMake   DeviceForm = iota // made; an error that wraps ErrDevice where the kernel refuses
	DeviceSkip                     // left out, with a note
	DeviceRefuse                   // an error that wraps ErrDevice
)

// Limits bound what a stream may make. A zero field means its default, a negative one no limit.
type Limits struct {
	// Entries is the number of members; default 16 Mi.
	Entries int64
	// Bytes is the sum of the sizes of regular files, holes included, and of what follows the end mark; default 4 TiB.
	Bytes int64
	// Depth is the number of components of a name; default 2048.
	Depth int64
	// Name is the length in bytes of a name or link target; default 64 KiB.
	Name int64
	// Header is the number of bytes in front of one member's data: PAX records, long names, sparse maps; default 4 MiB.
	// One record is bounded by archive/tar, to 1 MiB.
	Header int64
	// Xattr is the size in bytes of one extended attribute; default 64 KiB, which is the kernel's.
	Xattr int64
}

const (
	defaultEntries = 16 << 20
	defaultBytes   = 4 << 40
	defaultDepth   = 2048
	defaultName    = 64 << 10
	defaultHeader  = 4 << 20
	defaultXattr   = 64 << 10
)

func (l Limits) withDefaults() Limits {
	for field, value := range map[*int64]int64{
		&l.Entries: defaultEntries, &l.Bytes: defaultBytes, &l.Depth: defaultDepth,
		&l.Name: defaultName, &l.Header: defaultHeader, &l.Xattr: defaultXattr,
	} {
		switch {
		case *field == 0:
			*field = value
		case *field < 0:
			*field = 1<<63 - 1
		}
	}
	return l
}

func limitError(name string, limit int64) error {
	return fmt.Errorf("more than %d %s (Limits.%s): %w", limit, limitUnits(name), name, ErrLimit)
}

func limitUnits(name string) string {
	switch name {
	case "Entries":
		return "members"
	case "Depth":
		return "components in a name"
	}
	return "bytes"
}

// IDRange maps Size ids that begin with Container to those that begin with Host.
type IDRange struct{ Container, Host, Size uint32 }

// IDMaps translate owners between a container, as streams have them, and the file system. No ranges mean identity. The
// zero value is the identity of both.
type IDMaps struct{ UIDs, GIDs []IDRange }

// ToHost returns the owner on the file system. The error wraps ErrUnmapped.
func (m IDMaps) ToHost(uid, gid uint32) (hostUID, hostGID uint32, err error) {
	u, ok := translate(m.UIDs, uid, toHost)
	if !ok {
		return 0, 0, fmt.Errorf("user %d: %w", uid, ErrUnmapped)
	}
	g, ok := translate(m.GIDs, gid, toHost)
	if !ok {
		return 0, 0, fmt.Errorf("group %d: %w", gid, ErrUnmapped)
	}
	return u, g, nil
}

// ToContainer is the inverse of ToHost.
func (m IDMaps) ToContainer(uid, gid uint32) (containerUID, containerGID uint32, err error) {
	u, ok := translate(m.UIDs, uid, toContainer)
	if !ok {
		return 0, 0, fmt.Errorf("user %d of the host: %w", uid, ErrUnmapped)
	}
	g, ok := translate(m.GIDs, gid, toContainer)
	if !ok {
		return 0, 0, fmt.Errorf("group %d of the host: %w", gid, ErrUnmapped)
	}
	return u, g, nil
}

func toHost(r IDRange) (from, to uint32) { return r.Container, r.Host }

func toContainer(r IDRange) (from, to uint32) { return r.Host, r.Container }

func translate(ranges []IDRange, id uint32, ends func(IDRange) (from, to uint32)) (uint32, bool) {
	if len(ranges) == 0 {
		return id, true
	}
	for _, r := range ranges {
		if from, to := ends(r); id >= from && id-from < r.Size {
			return to + (id - from), true
		}
	}
	return 0, false
}

// ApplyOptions say how Apply unpacks. The zero value is right for a plain directory and a privileged process.
type ApplyOptions struct {
	Whiteouts WhiteoutForm
	// Names are the attributes of opaque directories and of escaped devices; nil means ovl.Trusted.
	Names *ovl.Names
	// Forms are those that the mounts of a stacked directory read. What they leave alone must not be escaped: a container would see
	// the escaped name.
	Forms   ovl.Forms
	IDs     IDMaps
	Owner   OwnerForm
	Devices DeviceForm
	// KeepTrusted applies trusted attributes of the stream that are not an overlay's. Without, they are left out with a
	// note.
	KeepTrusted bool
	// AcceptUnterminated accepts a stream that ends between two members without the end mark. For callers that compare
	// the digest of the whole stream afterwards: some tools write no end mark, and without it a lost end can't be told.
	AcceptUnterminated bool
	Limits             Limits
	// Lower is the tree of the layers below, for stacked directories: a hard link to a file that is there alone copies
	// the file up, a directory that the stream does not have takes its attributes from there, and a symlink on the way to
	// a member is followed. May be nil.
	Lower Source
	// Sum asks for ApplyResult.Sum.
	Sum bool
	// Left, when not nil, is told at the end of each path that counts in ApplyResult.Sum, in any order. It needs Sum.
	Left func(Change)
	// Progress, when not nil, is called for each member, from the goroutine that called Apply. The content of a file may still
	// be on its way to the disk then: only Apply's return says that all is there.
	Progress func(Progress)
	// Note, when not nil, is told what was left out and why, from the goroutine that called Apply.
	Note func(path, reason string)
	// Mutator makes the changes; nil for direct calls.
	Mutator *sys.Mutator
}

// Progress is how far Apply is.
type Progress struct {
	// Path is the member that was unpacked last. Entries and Bytes count as in ApplyResult.
	Path    string
	Entries int64
	Bytes   int64
}

// ApplyResult is what Apply did.
type ApplyResult struct {
	// Bytes is the sum of the sizes of the regular files in the stream, as docker counts a layer's size.
	Bytes int64
	// Entries is the number of members, whiteouts included.
	Entries int64
	// Skipped is the number of things left out, for each of which Note was called.
	Skipped int64
	// Sum is the canonical hash of what the stream left in the tree (see Sum).
	Sum uint64
	// Replaced says that a member took the place of another one, whose content is not in the tree. It is told only with
	// ApplyOptions.Sum or WhiteoutRemove.
	Replaced bool
}

// TimeForm says how precise times are in a stream.
type TimeForm uint8

// The forms of times.
const (
	// TimeSeconds cuts times to whole seconds.
	TimeSeconds TimeForm = iota
	// TimeNanoseconds keeps them, at the price of a PAX record for each member.
	TimeNanoseconds
)

// WriteOptions say how Write makes a stream. The zero value writes what docker and containerd would.
type WriteOptions struct {
	Times TimeForm
	// KeepTrusted writes trusted attributes that are not an overlay's; see ApplyOptions.
	KeepTrusted bool
	// Note, when not nil, is told what was left out and why, from the goroutine that called Write.
	Note func(path, reason string)
	// Progress, when not nil, is called after each member.
	Progress func(Progress)
}

// CompareOptions say how Compare decides that a file differs.
type CompareOptions struct {
	// Verify compares the content of files of equal size and time, too.
	Verify bool
}

// Compression is the format of a compressed stream.
type Compression uint8

// The formats.
const (
	Plain Compression = iota
	Gzip
	Zstd
	Bzip2
	Xz
)

// String is the name of the format as command lines have it.
func (c Compression) String() string {
	switch c {
	case Plain:
		return "plain"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case Bzip2:
		return "bzip2"
	case Xz:
		return "xz"
	}
	return fmt.Sprintf("Compression(%d)", uint8(c))
}

// DecompressOptions bound what Decompress gives.
type DecompressOptions struct {
	// Bytes is the largest decompressed size; zero means 4 TiB, negative no limit.
	Bytes int64
}
