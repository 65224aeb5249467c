package union

import (
	"log/slog"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Caller is the process on whose behalf an operation runs, in the identifiers that the mount presents (before the
// mount's uid and gid maps are applied).
type Caller struct {
	UID, GID uint32
	PID      uint32
	// Groups are supplementary groups where the transport knows them; used only to decide whether a set-gid bit
	// survives creation.
	Groups []uint32
	// Umask is applied to the mode of a new object unless the parent directory carries a default ACL.
	Umask uint32
}

// Attr is what stat(2) and statx(2) report of a node, after id maps, squashing and stable inode numbers.
type Attr struct {
	Ino     uint64
	Size    uint64
	Blocks  uint64 // units of 512 bytes
	Atime   sys.Time
	Mtime   sys.Time
	Ctime   sys.Time
	Btime   sys.Time // zero when the backing file system has none
	Mode    uint32   // type and permission bits
	Nlink   uint32
	UID     uint32
	GID     uint32
	Rdev    uint64 // as makedev(3)
	Blksize uint32
	// Provisional says that Nlink is not known yet, of a merged directory that nobody looked into: GetAttr finds out.
	Provisional bool
}

// SetMask says which fields of a SetAttrIn are to be applied.
type SetMask uint32

// The fields of SetAttrIn.
const (
	SetMode SetMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	// SetKillPriv asks that a size or owner change clear set-id bits and file capabilities
	// (FATTR_KILL_SUIDGID).
	SetKillPriv
)

// SetAttrIn is one setattr request: any of chmod, chown, truncate, utimens.
type SetAttrIn struct {
	Valid SetMask
	Mode  uint32
	UID   uint32
	GID   uint32
	Size  uint64
	Atime sys.Time
	Mtime sys.Time
}

// Access is what the data of a file is wanted for.
type Access int

const (
	// ForReading takes the data where it is.
	ForReading Access = iota
	// ForWriting wants it in the upper.
	ForWriting
)

// SetIDBits says what a change of a file's data does to its set-id bits.
type SetIDBits int

const (
	// KeepSetID leaves them, as a process with CAP_FSETID does.
	KeepSetID SetIDBits = iota
	// KillSetID clears them, as a process without it does (FUSE_WRITE_KILL_SUIDGID).
	KillSetID
)

// Dirent is one entry of a merged directory.
type Dirent struct {
	Name string
	Ino  uint64
	// Type is the file type bits of a mode (S_IFMT), never zero.
	Type uint32
	// Next is the offset from which a later ReadDir continues behind this entry. Offsets are stable: an entry
	// that exists during a whole scan is returned exactly once, whatever is created or removed meanwhile.
	Next uint64
}

// Statfs is the answer to statfs(2), of the upper's file system or, without an upper, the topmost layer's.
type Statfs struct {
	Blocks, Bfree, Bavail uint64
	Files, Ffree          uint64
	Bsize, Frsize         uint32
	Namelen               uint32
}

// IDRange maps Len identifiers: Disk on the layers' file systems is shown as Mount, Disk+1 as Mount+1, and so on.
type IDRange struct {
	Disk, Mount, Len uint32
}

// WhiteoutForm selects how deletions are written. Which are read, Options.Forms says.
type WhiteoutForm int

const (
	// WhiteoutAuto writes the kernel's form (a 0:0 character device) where mknod is allowed, else the AUFS form.
	WhiteoutAuto WhiteoutForm = iota
	// WhiteoutKernel writes 0:0 character devices and fails to mount where they cannot be made.
	WhiteoutKernel
	// WhiteoutAUFS writes empty .wh.NAME files and .wh..wh..opq sentinels.
	WhiteoutAUFS
)

// XattrPermissions is fuse-overlayfs's xattr_permissions: where owner, mode and type of new objects are kept.
type XattrPermissions int

const (
	// XattrPermissionsOff keeps them in the inode.
	XattrPermissionsOff XattrPermissions = 0
	// XattrPermissionsPrivileged keeps them in security.fuseoverlayfs.override_stat.
	XattrPermissionsPrivileged XattrPermissions = 1
	// XattrPermissionsUser keeps them in user.containers.override_stat (or user.fuseoverlayfs.override_stat).
	XattrPermissionsUser XattrPermissions = 2
)

// RedirectDir says what renaming a directory of a lower layer does.
type RedirectDir int

const (
	// RedirectOn renames in O(1) and records the origin in overlay.redirect.
	RedirectOn RedirectDir = iota
	// RedirectFollow reads redirects but makes none: EXDEV.
	RedirectFollow
	// RedirectOff neither reads nor makes them: EXDEV, as the kernel's redirect_dir=off on an upper without any.
	RedirectOff
)

// Quota bounds what an upper takes up on its file system. What would exceed it fails with EDQUOT, whoever asks; Statfs shows
// it as the size of the file system. The zero value bounds nothing.
type Quota struct {
	// Bytes are allocated ones, as st_blocks counts them.
	Bytes int64
	// Inodes are those of the upper's objects: its root and whiteouts count, a file counts once whatever its names.
	Inodes int64
}

// Options describe one union. The zero value plus Lowers is a read-only union with every feature on.
type Options struct {
	// Lowers are the read-only layers, topmost first. The union takes ownership.
	Lowers []*layer.Layer
	// Upper is the writable layer, nil for none; Work is its work directory, on the same file system.
	Upper *layer.Layer
	Work  *layer.Layer
	// ReadOnly serves Upper without ever changing it (a second mount of a live container's upper).
	ReadOnly bool
	// Forms are those in which deletions and other marks are read. Only a union that nothing is written to, without a StackIndex,
	// may have others than all of them: it shows what the kernel's overlayfs shows of its layers.
	Forms ovl.Forms

	UIDMap, GIDMap []IDRange
	// SquashUID and SquashGID, when not nil, are reported as every object's owner and group; chown is accepted
	// and forgotten. SquashRoot is both at 0.
	SquashUID, SquashGID *uint32

	Whiteout         WhiteoutForm
	XattrPermissions XattrPermissions
	RedirectDir      RedirectDir
	NoMetacopy       bool
	NoIndex          bool // hard links are broken by copy-up on disk, as the kernel's index=off
	NoACL            bool
	NoXattrs         bool // no extended attribute of an application is read or written
	StaticNlink      bool // report directories with a link count of 1 always
	UserXattr        bool // write user.overlay.* even where trusted.overlay.* would be allowed
	Volatile         bool // no sync at all; sticky EIO after a failed writeback
	NoFsync          bool // fsync=0: fsync of an application is answered without doing it

	// Live says that the lowers may change behind the union: no table of their names is kept.
	Live bool

	// StackIndex is the index of Lowers (see StackOf), nil for none; the union does not close it. VerifyIndex compares every
	// entry with the layers when it is first used.
	StackIndex  StackIndex
	VerifyIndex bool

	// Quota bounds what Upper takes up.
	Quota Quota

	// MaxOpenFiles bounds the descriptors that the union keeps open; 0 derives it from RLIMIT_NOFILE.
	MaxOpenFiles int

	// Mutator makes every system call that changes a layer; nil means direct. Tests inject failures through it.
	Mutator *sys.Mutator
	Logger  *slog.Logger
	// Observer is told of changes that the kernel does not know of; nil for none.
	Observer Observer
}

// Observer is implemented by a front end that lets the kernel cache.
type Observer interface {
	// CopiedUp says that the data of n moved from a lower file to an upper one. No lock of the union is held.
	CopiedUp(n *Node)
	// Corrected says that the attributes of n that were given out are not right: those that the kernel cached must go before
	// it returns. Locks of the union are held: it must not call back.
	Corrected(n *Node)
	// Moved says that dir, a directory, lies in another directory than before: what the kernel keeps of its listing has another ".."
	// now. No lock of the union is held.
	Moved(dir *Node)
}
