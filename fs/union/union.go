package union

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/latency"
	"plyfs/internal/sys"
)

// Union is one merged tree. All methods are safe for concurrent use.
type Union struct {
	opt    Options
	log    *slog.Logger
	m      *sys.Mutator
	lowers []*layer.Layer
	// copiers copy from the lower of the same index.
	copiers []cow.Copier
	upper   *layer.Layer
	// work is nil for a union that nothing is written to.
	work *cow.Work
	// index is the descriptor of the hard-link index of a union that only reads its upper, -1 for none; see indexFD.
	index int
	// names are the attributes that can be written to the upper, nil for none.
	names *ovl.Names
	// marks says that copied-up files carry a mark until they are synced; see sync.go.
	marks bool
	// userNS says whether this process's user namespace is not the initial one.
	userNS     func() bool
	euid, egid int
	// boot identifies the running kernel's boot.
	boot func() string
	// devs are the devices of the layers; the place of one is the high part of its inode numbers, see mapIno.
	devs  []uint64
	avoid uint64 // see Avoid; 0 for none
	root  *Node
	// dirs keeps the descriptors in dirState.upper and lowerDir.slot, files those in Node.data.
	dirs, files *layer.Cache
	// keptLowers is how many lowers of one directory are left open after it was resolved.
	keptLowers int

	// The locks are in the package documentation.
	renameMu sync.RWMutex
	moving   [nameLocks]sync.RWMutex
	treeMu   sync.Mutex
	// inodes finds the node of an inode that has several names, inodesPeak is the most that it held. Guarded by treeMu.
	inodes     map[inodeKey]*Node
	inodesPeak int

	// sync is the batch of files that carry the unsynced mark, see sync.go.
	sync struct {
		run sync.Mutex
		mu  sync.Mutex
		// All below are guarded by mu.
		pending  []*Node
		timer    *time.Timer
		recorded bool // the work directory says that there may be marks
		closed   bool
	}

	// quota is the account of an upper with limits, nil without.
	quota *quota

	// describer is the running Describe, nil for none: it merges each directory itself.
	describer *describer

	failed      atomic.Bool // data of a volatile mount was lost; see sticky
	refused     atomic.Bool // a write was refused, since write-back had failed before; logged once
	distrusted  atomic.Bool // the stack index is not believed any more
	nodes       atomic.Int64
	copyUps     atomic.Uint64
	copyUpBytes atomic.Uint64
	marked      atomic.Uint64

	copyUpTimes latency.Histogram
	// Directories that were resolved by the stack index, and otherwise.
	indexHits, indexMisses, indexFallbacks atomic.Uint64
}

// Stats are counters of a union, for people and metrics.
type Stats struct {
	Nodes       uint64 // known to the front end
	OpenFiles   uint64 // descriptors of data
	OpenDirs    uint64 // descriptors of directories
	CopyUps     uint64
	CopyUpBytes uint64
	Marked      uint64 // copied-up files whose data may not be on disk

	// IndexHits are directories whose lowers were taken from the stack index; IndexMisses those that it does not have, or not any
	// more as they are; IndexFallbacks those that were read since the index is not believed any more. All are 0 without one.
	IndexHits, IndexMisses, IndexFallbacks uint64
	// FileHits and FileMisses are how often the descriptor of a file's data was open, or had to be opened; DirHits and DirMisses
	// the same of directories.
	FileHits, FileMisses uint64
	DirHits, DirMisses   uint64
}

// New assembles a union. It owns the layers of o from then on, also when it fails. It takes back what an earlier mount of
// the same upper left staged or unsynced, which may block for as long as a sync takes.
func New(o Options) (u *Union, err error) {
	u = &Union{opt: o, log: o.Logger, m: o.Mutator, lowers: o.Lowers, upper: o.Upper, inodes: map[inodeKey]*Node{}, index: -1}
	u.copiers = make([]cow.Copier, len(o.Lowers))
	defer func() {
		if err != nil {
			u.closeLayers()
		}
	}()
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	if u.m == nil {
		u.m = &sys.Mutator{}
	}
	if len(o.Lowers) == 0 && o.Upper == nil {
		return u, fmt.Errorf("a union needs at least one layer: %w", unix.EINVAL)
	}
	if !o.Forms.All() && (o.Upper != nil && !o.ReadOnly || o.StackIndex != nil) {
		return u, fmt.Errorf("a union that is written to, or has an index, reads all forms of marks: %w", unix.EINVAL)
	}
	u.euid, u.egid = os.Geteuid(), os.Getegid()
	u.userNS = sync.OnceValue(inUserNamespace)
	u.boot = sync.OnceValue(cow.BootID)
	limit := o.MaxOpenFiles
	if limit <= 0 {
		limit = defaultOpenFiles()
	}
	u.dirs, u.files = layer.NewCache(limit/2), layer.NewCache(limit/2)
	if u.euid == 0 {
		// Who may not open any file for writing keeps those that are.
		u.files.LetGo(letGoAfter)
	}
	u.keptLowers = min(limit/2, maxKeptLowers)
	if err := u.openWork(); err != nil {
		return u, err
	}
	if u.upper != nil && u.upper.Override() != "" {
		u.opt.NoACL = true // a mode that is an attribute has no mask that chmod could change
	}
	layer.TellApart(u.lowers)
	u.numberDevices()
	u.makeRoot()
	if u.work != nil && u.names != nil {
		if err := u.recoverUnsynced(); err != nil {
			return u, fmt.Errorf("recovery after an unclean end: %w", err)
		}
	}
	return u, u.openQuota()
}

// openWork takes the work directory and decides what can be written to the upper, and how.
func (u *Union) openWork() (err error) {
	o := &u.opt
	if u.upper == nil || o.ReadOnly {
		u.opt.ReadOnly = true
		if u.upper != nil && o.Work != nil {
			u.index, _ = cow.OpenIndex(o.Work)
		}
		return nil
	}
	if o.Work == nil {
		return fmt.Errorf("upper %s needs a work directory on the same file system: %w", u.upper.Path, unix.EINVAL)
	}
	u.work, err = cow.OpenWork(o.Work, cow.WorkOptions{
		UserXattr: o.UserXattr, Volatile: o.Volatile, Mutator: u.m,
		Inodes: func(delta int) { u.quota.inodes(int64(delta)) },
	})
	if err != nil {
		return err
	}
	u.names = u.work.Names
	if o.RedirectDir != RedirectOn {
		// A metadata-only copy that is renamed needs a redirect (cf. overlayfs params.c ovl_fs_params_verify).
		u.opt.NoMetacopy = true
	}
	if o.NoXattrs && !o.UserXattr && u.names == nil {
		u.opt.RedirectDir = RedirectFollow
	}
	takesWhiteouts := u.work.TakesWhiteouts
	if o.Whiteout == WhiteoutAUFS {
		takesWhiteouts = u.work.TakesAUFSWhiteouts
	}
	if ok, err := takesWhiteouts(); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("upperdir=%s is on a file system that takes no whiteouts, as fuse-overlayfs: nothing of the lower layers could be "+
			"removed or renamed; put upperdir and workdir on another file system, or add ro", u.upper.Path)
	}
	if o.Whiteout == WhiteoutKernel {
		f, err := u.work.Whiteouts()
		if err != nil {
			return err
		}
		if !f.Mknod {
			return fmt.Errorf("whiteout=kernel, but %s takes no 0:0 devices from this user: use whiteout=auto: %w",
				u.upper.Path, unix.EPERM)
		}
	}
	u.marks = u.work.Durable && !o.Volatile && !o.NoFsync && u.names != nil
	if o.XattrPermissions != XattrPermissionsOff && u.upper.Override() == "" {
		return u.beginOverrides(ovl.OverrideNames()[o.XattrPermissions-1])
	}
	return nil
}

// beginOverrides has owner, mode and type of the upper's objects kept in an attribute from now on. Its root gets one, too: by that
// everybody sees who mounts it later, without the option or as a lower, that those of the objects count.
func (u *Union) beginOverrides(attr string) error {
	fd := u.upper.FD()
	var st unix.Statx_t
	if err := u.upper.Stat(fd, ".", &st); err != nil {
		return err
	}
	o := ovl.OverrideStat{UID: st.Uid, GID: st.Gid, Mode: uint32(st.Mode)}
	if err := u.m.Setxattr(fd, ".", attr, o.Encode(), 0); err != nil {
		return fmt.Errorf("xattr_permissions=%d, but %s takes no attribute %s from this user: %w", u.opt.XattrPermissions,
			u.upper.Path, attr, err)
	}
	u.upper.SetOverride(attr)
	return nil
}

// beginData is called before data is written to the upper.
func (u *Union) beginData() error {
	if u.work == nil {
		return nil
	}
	err := u.work.BeginData()
	if errors.Is(err, cow.ErrUnseenWriteBack) && !u.refused.Swap(true) {
		u.log.Error("nothing can be written to a volatile mount", "upper", u.upper.Path, "err", err)
	}
	return err
}

// indexFD is the directory of the hard-link index, -1 for none.
func (u *Union) indexFD() int {
	if u.work == nil {
		return u.index
	}
	return u.work.IndexFD()
}

// numberDevices gives each device of the layers its part of the inode number space.
func (u *Union) numberDevices() {
	add := func(l *layer.Layer) {
		if _, have := u.devIndex(l.Dev); !have {
			u.devs = append(u.devs, l.Dev)
		}
	}
	if u.upper != nil {
		add(u.upper)
	}
	for i := len(u.lowers) - 1; i >= 0; i-- {
		add(u.lowers[i])
	}
}

func (u *Union) makeRoot() {
	top := u.upper
	if top == nil {
		top = u.lowers[0]
	}
	u.root = u.newNode(u.mapIno(top.Dev, top.Ino), unix.S_IFDIR)
	u.root.refs = 1
	if u.upper != nil {
		u.root.set(flagUpper)
	}
	u.root.dir.candidates = u.rootLowers(0)
	u.root.dir.below.Store(int32(len(u.lowers)))
}

// ACLs says whether POSIX ACLs are kept.
func (u *Union) ACLs() bool { return !u.opt.NoACL && !u.opt.NoXattrs }

// Root is the root directory. It needs no reference.
func (u *Union) Root() *Node { return u.root }

// Stats returns the current counters.
func (u *Union) Stats() Stats {
	fileHits, fileMisses := u.files.Lookups()
	dirHits, dirMisses := u.dirs.Lookups()
	return Stats{
		Nodes: uint64(max(u.nodes.Load(), 0)), OpenFiles: uint64(u.files.Len()), OpenDirs: uint64(u.dirs.Len()),
		CopyUps: u.copyUps.Load(), CopyUpBytes: u.copyUpBytes.Load(), Marked: u.marked.Load(),
		IndexHits: u.indexHits.Load(), IndexMisses: u.indexMisses.Load(), IndexFallbacks: u.indexFallbacks.Load(),
		FileHits: fileHits, FileMisses: fileMisses, DirHits: dirHits, DirMisses: dirMisses,
	}
}

// CopyUpDurations are those of the successful copy-ups of single objects, without those of their ancestors.
func (u *Union) CopyUpDurations() latency.Snapshot { return u.copyUpTimes.Snapshot() }

// Close ends the union after the front end stopped using it: what is not synced is, marks go, and the work directory is
// left without anything staged. It blocks for the sync.
func (u *Union) Close() error {
	u.sync.mu.Lock()
	u.sync.closed = true
	if u.sync.timer != nil {
		u.sync.timer.Stop()
	}
	recorded := u.sync.recorded
	u.sync.mu.Unlock()
	var err error
	if u.work != nil {
		u.syncPending()
		u.sync.mu.Lock()
		left := len(u.sync.pending)
		u.sync.mu.Unlock()
		switch {
		case left > 0:
			err = fmt.Errorf("%d copied-up files are not synced: %w", left, unix.EIO)
		case recorded && u.work.Alone():
			err = u.work.ForgetUnsynced()
		}
	}
	u.files.CloseAll()
	u.dirs.CloseAll()
	u.closeLayers()
	return err
}

func (u *Union) closeLayers() {
	if u.index >= 0 {
		unix.Close(u.index)
	}
	if u.work != nil {
		u.work.Close()
	}
	for _, l := range append(append([]*layer.Layer(nil), u.lowers...), u.upper, u.opt.Work) {
		if l != nil {
			l.Close() // nothing was written through a directory descriptor
		}
	}
}

// Path returns n's path in the mount, for people: it may be another one, or name something else, when they read it. A node
// without a name has that of the root. It does not block for I/O.
func (u *Union) Path(n *Node) string { return u.pathOf(n) }

// pathOf is n's path in the mount, for messages.
func (u *Union) pathOf(n *Node) string {
	var parts []string
	u.treeMu.Lock()
	for at := n; at != nil && at.link.parent != nil; at = at.link.parent {
		parts = append(parts, at.link.name)
	}
	u.treeMu.Unlock()
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(parts[i])
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// fewFiles is a limit of descriptors of which as many layers as there may be, and all else, take less than half.
const fewFiles = 2048

// letGoAfter is after what time of idleness, at least, a descriptor for writing becomes one for reading. The kernel does not tell when an
// application closes a file, in the mode in which it asks for no opening.
const letGoAfter = 10 * time.Second

// defaultOpenFiles leaves most of the process's descriptors unused: what is in use and pinned comes on top. Under a low limit,
// the layers may have taken more than half of them already.
func defaultOpenFiles() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 512
	}
	limit := min(lim.Cur/4, 4096)
	if lim.Cur < fewFiles {
		if open, err := os.ReadDir("/proc/self/fd"); err == nil {
			limit = min(limit, (lim.Cur-min(lim.Cur, uint64(len(open))))/2)
		}
	}
	return int(limit)
}

// inUserNamespace says whether the identifiers of this process are known to be mapped.
func inUserNamespace() bool {
	same, err := sys.IdentityMapped()
	return err == nil && !same
}
