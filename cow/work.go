package cow

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// The names in a work directory.
const (
	// StageDir holds what is being made: a directory for each mount that uses the work directory, its name beginning with
	// StagePrefix, and IncompatDir.
	StageDir    = "work"
	StagePrefix = "plyfs-"
	// IndexDir is the hard-link index.
	IndexDir = "index"
	// IncompatDir, below StageDir, holds an entry for each feature that keeps others from using the upper; VolatileMark is that
	// of a volatile mount.
	IncompatDir  = "incompat"
	VolatileMark = "volatile"
	// UnsyncedFile records that copied-up files may carry the unsynced mark.
	UnsyncedFile = "plyfs.unsynced"

	sharedWhiteout = "whiteout"
)

// WorkOptions are the mount's choices that bear on the work directory.
type WorkOptions struct {
	UserXattr bool
	Volatile  bool
	Mutator   *sys.Mutator
	// Inodes, when not nil, is told of whiteouts and sentinels of the upper that Work makes by itself (1) and removes together
	// with a directory (-1 each). It may be called from several goroutines, and with locks of the caller of Work held.
	Inodes func(delta int)
}

// Work is the work directory of one writable mount. Several mounts, of several processes, may use one work directory at a
// time: each stages in a directory of its own that it holds a lock on, and removes only those whose owner is gone.
//
// A mount that is the first to use a work directory makes its own only when it needs one: many mounts are begun and ended
// without a change, and an inode is dear to make and to remove.
type Work struct {
	// Names are the overlay attributes that can be written; nil where the file system takes none at all.
	Names *ovl.Names
	// Durable says that the file system survives a power cut, so that data must be synced before it is relied on.
	Durable bool

	base     *layer.Layer
	m        *sys.Mutator
	count    func(delta int)
	volatile bool
	dir      int          // work/work, read-locked for the life of the mount
	index    atomic.Int32 // work/index, -1 until made
	seq      atomic.Uint64
	stage    atomic.Int32 // work/work/plyfs-X, flocked, -1 until made
	begun    atomic.Bool  // BeginData succeeded

	mu    sync.Mutex // a leaf; held while the following are made or tried
	name  string     // of stage
	tried features
	watch int // root of the private overlay of a volatile mount, -1 for none
	// unwatched is what WriteBackError answers without it.
	unwatched error
	refused   error // what BeginData last said, at refusedAt
	refusedAt time.Time
}

// ErrVolatileLeft says that a volatile mount of the same upper did not end cleanly.
var ErrVolatileLeft = errors.New("a volatile mount of this upper did not end cleanly, so its content may be incomplete")

// OpenWork prepares base as the work directory of a mount whose upper lies on the same file system. It removes what
// processes that are gone left staged, and nothing else.
func OpenWork(base *layer.Layer, o WorkOptions) (w *Work, err error) {
	w = &Work{base: base, m: o.Mutator, count: o.Inodes, volatile: o.Volatile, dir: -1, watch: -1}
	if w.count == nil {
		w.count = func(int) {}
	}
	w.index.Store(-1)
	w.stage.Store(-1)
	w.Durable = !volatileFS(base.FSType)
	defer func() {
		if err != nil {
			w.Close()
			err = fmt.Errorf("workdir %s: %w", base.Path, err)
		}
	}()
	err = unix.Mkdirat(base.FD(), StageDir, 0o700)
	fresh := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return w, err
	}
	if w.dir, err = sys.Openat(base.FD(), StageDir, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return w, err
	}
	locked := lockUse(w.dir) == nil
	if !fresh {
		err = w.takeOver(locked)
	} else if !locked { // others know of this mount by its staging directory alone
		_, err = w.Stage()
	}
	if err != nil {
		return w, err
	}
	if err := w.findNames(o.UserXattr); err != nil {
		return w, err
	}
	if fd, err := OpenIndex(base); err == nil {
		w.index.Store(int32(fd))
	}
	if !fresh {
		// What is lost already may be what an earlier mount wrote to the upper: later were too late to refuse.
		if err := w.BeginData(); err != nil && (o.Volatile || !stageLater(locked, err)) {
			return w, err
		}
	}
	if !o.Volatile {
		return w, nil
	}
	return w, w.markVolatile()
}

// takeOver makes a work directory that was in use before this mount's. What is left in it goes first: on a full disk the
// staging directory gets the place of the last one.
func (w *Work) takeOver(locked bool) error {
	if err := checkIncompat(w.dir); err != nil {
		return err
	}
	if err := w.sweep(); err != nil {
		return err
	}
	if _, err := w.Stage(); err != nil && !stageLater(locked, err) {
		return err
	}
	return nil
}

// stageLater says whether a mount may begin although its staging directory could not be made: a full disk must be mounted to
// be cleaned up, and removing what only the upper has stages nothing. Others know of the mount by its lock.
func stageLater(locked bool, err error) bool {
	return locked && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT))
}

func ensureDir(dirfd int, name string) (int, error) {
	if err := unix.Mkdirat(dirfd, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// checkIncompat refuses a work directory with marks of overlays that must not be mounted, or not by this one (cf. overlayfs
// readdir.c ovl_workdir_cleanup_recurse).
func checkIncompat(dir int) error {
	fd, err := sys.Openat(dir, IncompatDir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s/%s: %w", StageDir, IncompatDir, err)
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		if e.Name == VolatileMark {
			return ErrVolatileLeft
		}
		return fmt.Errorf("%s/%s/%s marks a feature that plyfs does not know: %w", StageDir, IncompatDir, e.Name, unix.EINVAL)
	})
}

// markVolatile leaves the kernel's mark (cf. overlayfs super.c ovl_create_volatile_dirty).
func (w *Work) markVolatile() error {
	at := w.dir
	for _, name := range []string{IncompatDir, VolatileMark} {
		fd, err := ensureDir(at, name)
		if at != w.dir {
			unix.Close(at)
		}
		if err != nil {
			return err
		}
		at = fd
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, "dirty", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// sweep removes everything staged whose owner is gone: unlocked plyfs directories, and the kernel's and
// fuse-overlayfs's leftovers.
func (w *Work) sweep() error {
	var names []string
	err := layer.List(w.dir, func(e layer.RawDirent) error {
		if e.Name != w.name && e.Name != IncompatDir {
			names = append(names, e.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, StagePrefix) {
			w.remove(w.dir, name)
			continue
		}
		fd, err := sys.Openat(w.dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			continue // its owner ended and removed it
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			w.remove(w.dir, name)
		}
		unix.Close(fd)
	}
	return nil
}

// TempName returns a name that is free in the staging directory (cf. overlayfs dir.c ovl_lookup_temp).
func (w *Work) TempName() string { return "#" + strconv.FormatUint(w.seq.Add(1), 16) }

// OpenIndex opens the hard-link index in the work directory base, for a mount that only reads; -1 and an error where there
// is none. The caller owns the descriptor.
func OpenIndex(base *layer.Layer) (int, error) {
	fd, err := sys.Openat(base.FD(), IndexDir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// IndexFD is the directory of the hard-link index, -1 when there is none. It belongs to w.
func (w *Work) IndexFD() int { return int(w.index.Load()) }

// MakeIndex is IndexFD that makes the directory where there is none.
func (w *Work) MakeIndex() (int, error) {
	if fd := w.IndexFD(); fd >= 0 {
		return fd, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if fd := w.IndexFD(); fd >= 0 {
		return fd, nil
	}
	if err := w.m.Mkdir(w.base.FD(), IndexDir, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := sys.Openat(w.base.FD(), IndexDir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	w.index.Store(int32(fd))
	return fd, nil
}

// Close removes what this mount staged and, of a volatile mount that ended cleanly, leaves the mark: its content was
// never synced (cf. overlayfs documentation, volatile mount).
func (w *Work) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watch >= 0 {
		unix.Close(w.watch) // unmounts it, before its directories go
		w.watch = -1
	}
	stage := int(w.stage.Swap(-1))
	if stage >= 0 && unix.Unlinkat(w.dir, w.name, unix.AT_REMOVEDIR) != nil {
		w.remove(w.dir, w.name)
	}
	for _, fd := range []int{int(w.index.Swap(-1)), stage, w.dir} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	w.dir = -1
}

// BootID is the id of the running kernel's boot, "unknown" where procfs does not tell.
func BootID() string {
	id, err := sys.BootID()
	if err != nil {
		return "unknown"
	}
	return id
}

// UnsyncedBoot returns the boot under which a mount last left unsynced marks behind, "" when no upper file carries one and "unknown"
// where the record does not tell. The error says that nobody can know whether files carry marks: it wraps the errno with which the
// record, which is there, cannot be opened.
func (w *Work) UnsyncedBoot() (string, error) {
	fd, err := sys.Openat(w.base.FD(), UnsyncedFile, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open %s/%s: %w", w.base.Path, UnsyncedFile, err)
	}
	defer unix.Close(fd)
	var buf [128]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil || n == 0 {
		return "unknown", nil // then all files are looked at
	}
	return string(buf[:n]), nil
}

// NoteUnsynced records, before the first file is marked, that marks may exist, so that the next mount after a crash
// looks for them. Journals keep the order of this record and the marks.
func (w *Work) NoteUnsynced() error {
	if _, err := w.Stage(); err != nil { // for Alone of others
		return err
	}
	fd, err := w.m.Create(w.base.FD(), UnsyncedFile, unix.O_WRONLY, 0o600)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = w.m.Pwrite(fd, []byte(BootID()), 0)
	return err
}

// ForgetUnsynced removes the record: no upper file carries a mark any more.
func (w *Work) ForgetUnsynced() error {
	err := w.m.Unlink(w.base.FD(), UnsyncedFile)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
