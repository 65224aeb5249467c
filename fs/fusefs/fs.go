package fusefs

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// DataMode says who reads and writes the data of files; see the package documentation.
type DataMode int

const (
	// DataAuto is DataNoOpen: most files of a container are small and opened often, which passthrough makes
	// several times slower, while a cold bulk read is bound by the disk in both modes.
	DataAuto DataMode = iota
	// DataPassthrough lets the kernel do it. Where it refuses (not root, a kernel before 6.9) the mode is no-open;
	// where it refuses a single file (one on a stacked file system), that file is served from here.
	DataPassthrough
	// DataNoOpen serves data from here and opens for nothing.
	DataNoOpen
)

// Transport says who reads requests from the descriptor.
type Transport int

const (
	// TransportFast is a loop of this package with one reader that is always hot.
	TransportFast Transport = iota
	// TransportGoFUSE is the server of the go-fuse library, for comparison. It is slower and does not pass on
	// supplementary groups.
	TransportGoFUSE
)

// Unlimited is the Timeout with which the kernel caches for ever.
const Unlimited time.Duration = -1

// Config describes how a union is served.
type Config struct {
	Data      DataMode
	Transport Transport
	// Timeout is how long the kernel may trust names, attributes and listings. It is Unlimited except for layers
	// that are changed from outside. With 0, the zero value, everything is asked for each time.
	Timeout time.Duration
	// ACL serves POSIX ACLs, which implies the kernel's permission checks.
	ACL bool
	// ReadOnly says that the union never changes. Then there are no copy-ups to observe.
	ReadOnly bool
	// NoXattrs lets the kernel answer all requests for extended attributes with EOPNOTSUPP.
	NoXattrs bool
	// Debug logs each request and answer, at level debug, and serves slowly.
	Debug bool
	// Logger is slog.Default() when nil.
	Logger *slog.Logger
	// Stuck, unless nil, is called with ErrLockLost when requests wait for what no one will give back. It is up to it to end the process:
	// then who waits, and all who come, get ENOTCONN from the kernel, and nobody waits for a mount that only looks alive.
	Stuck func(error)
	// Observer is the one given to the union as union.Options.Observer. Passthrough needs it unless ReadOnly;
	// without it the mode is no-open.
	Observer *Observer
}

// Observer hears of copy-ups from a union and passes them to the FS that serves it. The zero value is ready, and
// silent until New attaches it.
type Observer struct {
	fs atomic.Pointer[FS]
}

// CopiedUp implements union.Observer.
func (o *Observer) CopiedUp(n *union.Node) {
	if f := o.fs.Load(); f != nil {
		f.copiedUp(n)
		f.tellCopiedUp(func() string { return f.u.Path(n) })
	}
}

// Corrected implements union.Observer.
func (o *Observer) Corrected(n *union.Node) {
	if f := o.fs.Load(); f != nil {
		f.corrected(n)
	}
}

// Moved implements union.Observer.
func (o *Observer) Moved(dir *union.Node) {
	if f := o.fs.Load(); f != nil {
		f.moved(dir)
	}
}

type mode uint32

const (
	modeNone        mode = iota // INIT has not come
	modeNoOpen                  // OPEN answered ENOSYS
	modeReopen                  // OPEN answered without FOPEN_KEEP_CACHE: timeouts are limited
	modePassthrough             // OPEN answered with a backing file
)

// FS serves one union through one Device.
type FS struct {
	u     *union.Union
	cfg   Config
	log   *slog.Logger
	table *table
	walk  walkers

	mode atomic.Uint32 // a mode; set while INIT is answered
	dev  atomic.Pointer[Device]

	validSec  uint64
	validNsec uint32
	keep      bool // timeouts are unlimited

	serving atomic.Bool // INIT has been answered
	probing atomic.Bool // the probe file is there
	// settling says that a Settle waits for its answer.
	settling atomic.Bool
	lookups  [lookupThreads]atomic.Uint64 // LOOKUP requests by thread, to tell a retry of the VFS from a reopen
	counts   counters
	notices  notifier
	memory   reclaimer

	watchers watchers
	doubts   doubts
	lockWait time.Duration
	warned   sync.Once // passthrough was refused for a file
}

// New returns the FS that serves u. It owns neither u nor the Device it is given later.
func New(u *union.Union, cfg Config) *FS {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	f := &FS{u: u, cfg: cfg, log: cfg.Logger, table: newTable(u.Root()), lockWait: lockWait}
	if cfg.Timeout < 0 {
		// The kernel adds it to a clock: a lifetime is as good as for ever, and cannot overflow.
		f.keep, f.validSec = true, 1<<31
	} else {
		f.validSec = uint64(cfg.Timeout / time.Second)
		f.validNsec = uint32(cfg.Timeout % time.Second)
	}
	if cfg.Observer != nil {
		cfg.Observer.fs.Store(f)
	}
	return f
}

// Serve answers the requests of dev until it is unmounted, by whomever and in whatever way, and then returns nil.
// ready, unless nil, is called once: with nil when the kernel's INIT was answered, else with what Serve returns.
// Serve may be called once.
func (f *FS) Serve(dev *Device, ready func(error)) error {
	var once sync.Once
	report := func(err error) {
		once.Do(func() {
			f.serving.Store(err == nil)
			if ready != nil {
				ready(err)
			}
		})
	}
	if !f.dev.CompareAndSwap(nil, dev) {
		err := errors.New("fusefs: Serve called twice")
		report(err)
		return err
	}
	f.notices.start(f, dev.Fd())
	defer f.notices.stop()
	var err error
	switch f.cfg.Transport {
	case TransportGoFUSE:
		err = f.serveGoFUSE(dev, report)
	default:
		err = f.serveFast(dev, report)
	}
	if err == nil {
		report(errors.New("fusefs: unmounted before the kernel's INIT"))
	} else {
		report(err)
	}
	return err
}

// Counters returns how many requests were received, by the name of their opcode, and under the names of other events
// (panics, readers started) how often those happened. Names that never occurred are left out.
func (f *FS) Counters() map[string]uint64 { return f.counts.snapshot() }

// Nodes returns how many node ids the kernel knows.
func (f *FS) Nodes() int { return f.table.len() }

func (f *FS) modeNow() mode { return mode(f.mode.Load()) }

// chooseMode decides on the data mode, given the capabilities that the kernel offers in INIT.
func (f *FS) chooseMode(offered uint64) {
	m := modeNoOpen
	if !f.keep {
		m = modeReopen
	}
	if f.wantPassthrough() && offered&fuse.CAP_PASSTHROUGH != 0 {
		m = modePassthrough
	}
	f.mode.Store(uint32(m))
}

// wantPassthrough reports whether passthrough was asked for and this process may register backing files. It has to be
// known before INIT is answered, when the kernel would refuse any (cf. fs/fuse/passthrough.c fuse_backing_open).
func (f *FS) wantPassthrough() bool {
	return f.cfg.Data == DataPassthrough && (f.cfg.Observer != nil || f.cfg.ReadOnly) && initialSysAdmin()
}

// initialSysAdmin reports CAP_SYS_ADMIN in the initial user namespace.
func initialSysAdmin() bool {
	if same, err := sys.IdentityMapped(); err != nil || !same {
		return false
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	const capSysAdmin = 21
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps>>capSysAdmin&1 == 1
		}
	}
	return false
}

// readAhead is how far the kernel reads ahead, in KiB: as much as one request can carry.
const readAhead = maxWrite >> 10

// tune sets what INIT cannot raise. Only root may.
func (f *FS) tune(dev *Device) {
	if err := dev.SetReadAhead(readAhead); err != nil {
		f.log.Debug("read-ahead left as it is", "error", err)
	}
}

// maxWrite is the size of the largest WRITE and READ; the library lowers it to what the kernel allows.
const maxWrite = 1 << 20

// options returns what is negotiated in INIT. atomicTrunc may only be set when mode passthrough is certain.
func (f *FS) options(atomicTrunc bool) *fuse.MountOptions {
	// No handles: a node id means another file in the next mount, and an overlay on top of this one would keep it as
	// the origin of its copies.
	caps := uint64(fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK | fuse.CAP_ASYNC_DIO | fuse.CAP_NO_EXPORT_SUPPORT |
		fuse.CAP_CREATE_SUPP_GROUP | fuse.CAP_SETXATTR_EXT)
	if atomicTrunc {
		caps |= fuse.CAP_ATOMIC_O_TRUNC
	}
	o := &fuse.MountOptions{
		MaxWrite:                 maxWrite,
		MaxBackground:            64,
		ExplicitDataCacheControl: f.keep,
		EnableSymlinkCaching:     f.keep,
		EnableAcl:                f.cfg.ACL,
		DisableXAttrs:            f.cfg.NoXattrs,
		DisableSplice:            true,
		MaxStackDepth:            1,
		Name:                     "plyfs",
		Debug:                    f.cfg.Debug,
		Logger:                   slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		PanicHandler:             f.panicked,
		ExtraCapabilities:        caps,
	}
	if !f.wantPassthrough() {
		o.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	return o
}
