package mountopt

import "time"

// Switch is an option that is on, off, or not given.
type Switch int

// The states of a Switch.
const (
	Default Switch = iota
	On
	Off
)

// Enabled reports the state of s, def where it was not given.
func (s Switch) Enabled(def bool) bool {
	if s == Default {
		return def
	}
	return s == On
}

// RedirectDir is the kernel's redirect_dir option.
type RedirectDir int

// The values of redirect_dir; RedirectDefault where it was not given.
const (
	RedirectDefault RedirectDir = iota
	RedirectOn
	RedirectFollow
	RedirectOff
	RedirectNoFollow
)

// Xino is the xino option. plyfs's inode numbers are stable and unique whatever it says.
type Xino int

// The values of xino; XinoDefault where it was not given.
const (
	XinoDefault Xino = iota
	XinoOff
	XinoAuto
	XinoOn
)

// Data selects how file contents travel.
type Data int

// The values of data.
const (
	// DataAuto picks by privilege and by what is mounted.
	DataAuto Data = iota
	// DataPassthrough lets the kernel read and write the layers' files directly; needs root in the initial user
	// namespace.
	DataPassthrough
	// DataNoOpen answers no OPEN at all: cached files are opened, read and closed without a request.
	DataNoOpen
)

// Transport selects what reads requests from /dev/fuse.
type Transport int

// The values of transport.
const (
	// TransportAuto picks the fast one.
	TransportAuto Transport = iota
	// TransportFast is plyfs's own read loop.
	TransportFast
	// TransportGoFUSE is go-fuse's server.
	TransportGoFUSE
)

// Whiteout selects how deletions are written.
type Whiteout int

// The values of whiteout.
const (
	// WhiteoutAuto writes the kernel's form where mknod is allowed.
	WhiteoutAuto Whiteout = iota
	// WhiteoutKernel writes 0:0 character devices or fails.
	WhiteoutKernel
	// WhiteoutAUFS writes .wh.NAME files.
	WhiteoutAUFS
)

// LogLevel is the least severe level that is logged.
type LogLevel int

// The values of loglevel.
const (
	LogInfo LogLevel = iota
	LogDebug
	LogWarn
	LogError
)

// Atime says when the mount updates access times.
type Atime int

// The values of Atime; AtimeDefault where none of the words was given.
const (
	AtimeDefault Atime = iota
	AtimeOff
	AtimeOn
	AtimeRelative
	AtimeStrict
)

// IDRange maps Len identifiers: Disk on the layers is shown as Mount, Disk+1 as Mount+1, and so on. A map
// that maps nothing at all is one range whose Len is zero.
type IDRange struct {
	Disk, Mount, Len uint32
}

// Word is one element of an option string: key or key=value, quotes and escapes removed.
type Word struct {
	Key      string
	Value    string
	HasValue bool
}

// Index says how the stack index is used.
type Index int

// IndexDefault is IndexOn, but with a Timeout, which is for layers that change.
const (
	IndexDefault Index = iota
	IndexOn
	IndexOff
	// IndexVerify compares every entry with the layers when it is first used.
	IndexVerify
)

// Options is what an option string says. The zero value is the empty string; every field at its zero value was not given
// or was given as its default.
type Options struct {
	// LowerDirs are the paths of the lower layers, topmost first, as given (relative ones stay relative).
	LowerDirs []string
	// UpperDir and WorkDir are empty for a mount without an upper layer.
	UpperDir, WorkDir string

	// UIDMap and GIDMap are nil for no map. Ranges overlap on neither side.
	UIDMap, GIDMap []IDRange
	// SquashToRoot, SquashToUID and SquashToGID report every object as owned by one user or group.
	SquashToRoot             bool
	SquashToUID, SquashToGID *uint32

	RedirectDir RedirectDir
	Metacopy    Switch
	// HardlinkIndex at Off breaks hard links on copy-up, as the kernel's index=off.
	HardlinkIndex Switch
	// Index says whether the stack index is used, IndexDir where it is, "" for the usual place.
	Index    Index
	IndexDir string
	Xino     Xino
	// Fsync at Off answers fsync(2) without doing it.
	Fsync     Switch
	Writeback Switch
	Volatile  bool
	UserXattr bool

	NoACL       bool
	NoXattrs    bool
	StaticNlink bool
	// Ino32 asks for inode numbers below 2^32.
	Ino32 bool
	// XattrPermissions is 0, 1 (privileged) or 2 (user).
	XattrPermissions int
	// Timeout bounds how long the kernel may cache names and attributes; nil for without end.
	Timeout *time.Duration

	Data         Data
	Transport    Transport
	Whiteout     Whiteout
	Log          string
	LogLevel     LogLevel
	MaxOpenFiles int
	// QuotaBytes and QuotaInodes bound what the upper layer takes up; 0 for no bound.
	QuotaBytes, QuotaInodes int64

	// Context, FSContext, DefContext and RootContext are SELinux labels for the mount.
	Context, FSContext, DefContext, RootContext string

	// FSName and Subtype override what mountinfo shows as source and behind "fuse.".
	FSName, Subtype string
	// MaxRead is the kernel's limit of one read request in bytes, 0 for none.
	MaxRead int

	AllowOther, AllowRoot, DefaultPermissions bool
	Debug                                     bool

	// ReadOnly and Writable are ro and rw; neither where none was given.
	ReadOnly, Writable bool

	Remount         bool
	Suid, Dev, Exec Switch
	Atime           Atime
	DirAtime        Switch
	LazyTime        Switch
	Symfollow       Switch
	// Sync and DirSync make every write, every change of a directory, synchronous.
	Sync    Switch
	DirSync bool

	// Unknown are the words that mean nothing to this package, in order.
	Unknown []Word
}
