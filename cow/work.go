package cow

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

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

// Features are what the upper's file system and this process's privileges allow. They are found out by trying, in the
// work directory.
type Features struct {
	// Names are the overlay attributes that can be written; nil where the file system takes none at all.
	Names *ovl.Names
	// MknodWhiteout says that 0:0 character devices can be made, RenameWhiteout that renameat2 leaves one behind.
	MknodWhiteout  bool
	RenameWhiteout bool
	Tmpfile        bool
	// StageUnnamed says that files are staged without a name, as Tmpfile allows. On btrfs an fsync through the descriptor of
	// such a file, even once it has a name, does not make the name durable (as of Linux 6.18): after a power cut the copy would
	// be gone although it was synced.
	StageUnnamed bool
	// ExactMode says that an unnamed file gets the mode that it is made with: no umask and no ACL takes bits away.
	ExactMode bool
	// Durable says that the file system survives a power cut, so that data must be synced before it is relied on.
	Durable bool
}

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
type Work struct {
	Features
	base  *layer.Layer
	m     *sys.Mutator
	count func(delta int)
	dir   int // work/work
	stage int // work/work/plyfs-X, flocked for the life of the mount
	name  string
	index atomic.Int32 // work/index, -1 until made
	seq   atomic.Uint64
	watch int // root of the private overlay of a volatile mount, -1 for none
	// unwatched is what WriteBackError answers without it.
	unwatched error
}

// ErrVolatileLeft says that a volatile mount of the same upper did not end cleanly.
var ErrVolatileLeft = errors.New("a volatile mount of this upper did not end cleanly, so its content may be incomplete")

// OpenWork prepares base as the work directory of a mount whose upper lies on the same file system. It removes what
// processes that are gone left staged, and nothing else.
func OpenWork(base *layer.Layer, o WorkOptions) (w *Work, err error) {
	w = &Work{base: base, m: o.Mutator, count: o.Inodes, dir: -1, stage: -1, watch: -1}
	if w.count == nil {
		w.count = func(int) {}
	}
	w.index.Store(-1)
	defer func() {
		if err != nil {
			w.Close()
			err = fmt.Errorf("workdir %s: %w", base.Path, err)
		}
	}()
	if w.dir, err = ensureDir(base.FD(), StageDir); err != nil {
		return w, err
	}
	if err := checkIncompat(w.dir); err != nil {
		return w, err
	}
	if err := w.makeStage(); err != nil {
		return w, err
	}
	if err := w.sweep(); err != nil {
		return w, err
	}
	w.probe(o.UserXattr)
	if fd, err := OpenIndex(base); err == nil {
		w.index.Store(int32(fd))
	}
	if !o.Volatile {
		return w, nil
	}
	if err := w.watchWriteBack(); err != nil {
		return w, err
	}
	return w, w.markVolatile()
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

// stageTries is how often a new staging directory may be lost to the sweep of another mount.
const stageTries = 64

// makeStage makes this mount's own staging directory and takes its lock, which dies with the process.
func (w *Work) makeStage() error {
	for range stageTries {
		// A new name each time: a sweep that found the last one unlocked may be late to remove it, by its name.
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		w.name = StagePrefix + hex.EncodeToString(b[:])
		fd, err := ensureDir(w.dir, w.name)
		if errors.Is(err, unix.ENOENT) {
			continue // swept before it was opened
		}
		if err != nil {
			return err
		}
		if err = lockStage(fd); err != nil {
			unix.Close(fd)
			return fmt.Errorf("%s: %w", w.name, err)
		}
		var st unix.Statx_t
		if sys.Statx(w.dir, w.name, &st) == nil {
			w.stage = fd
			return nil
		}
		unix.Close(fd) // swept before it was locked
	}
	return fmt.Errorf("%s is removed by another again and again: %w", StageDir, unix.EBUSY)
}

func lockStage(fd int) error {
	// Below a set-gid directory, or one with a default ACL, these would pass on to what is staged.
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return err
	}
	for _, attr := range [...]string{"system.posix_acl_default", "system.posix_acl_access"} {
		err := unix.Fremovexattr(fd, attr)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("remove %s: %w", attr, err)
		}
	}
	// A sweep or Alone of another mount holds it for a moment.
	return sys.Retry(func() error { return unix.Flock(fd, unix.LOCK_EX) })
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

// probe finds out what the file system can do, by doing it on a scratch object. Failures are answers here.
func (w *Work) probe(userXattr bool) {
	w.Durable = !volatileFS(w.base.FSType)
	const a, b = "probe.a", "probe.b"
	defer w.remove(w.stage, a)
	defer w.remove(w.stage, b)
	if fd, err := unix.Openat(w.stage, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o777); err == nil {
		var made unix.Stat_t
		w.ExactMode = unix.Fstat(fd, &made) == nil && made.Mode&0o7777 == 0o777
		w.Tmpfile = unix.Linkat(unix.AT_FDCWD, sys.ProcPath(fd), w.stage, b, unix.AT_SYMLINK_FOLLOW) == nil
		unix.Close(fd)
		_ = unix.Unlinkat(w.stage, b, 0)
	}
	w.StageUnnamed = w.Tmpfile && w.base.FSType != unix.BTRFS_SUPER_MAGIC
	w.MknodWhiteout = unix.Mknodat(w.stage, a, unix.S_IFCHR, 0) == nil
	var st unix.Statx_t
	if w.MknodWhiteout {
		err := sys.Statx(w.stage, a, &st)
		w.MknodWhiteout = err == nil && layer.IsWhiteoutDevice(&st)
	}
	if w.MknodWhiteout && unix.Renameat2(w.stage, a, w.stage, b, unix.RENAME_WHITEOUT) == nil {
		w.RenameWhiteout = sys.Statx(w.stage, a, &st) == nil && layer.IsWhiteoutDevice(&st)
	}
	direct := &sys.Mutator{}
	if !userXattr && direct.Setxattr(w.stage, "", ovl.Trusted().Opaque, ovl.OpaqueValue(), 0) == nil {
		w.Names = ovl.Trusted()
	} else if direct.Setxattr(w.stage, "", ovl.User().Opaque, ovl.OpaqueValue(), 0) == nil {
		w.Names = ovl.User()
	}
	if w.Names != nil {
		_ = direct.Removexattr(w.stage, "", w.Names.Opaque) // scratch
	}
}

// volatileFS says whether a file system loses everything in a power cut anyway.
func volatileFS(magic int64) bool {
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC || magic == unix.HUGETLBFS_MAGIC
}

// Base is the work directory itself, as a layer that belongs to Work.
func (w *Work) Base() *layer.Layer { return w.base }

// StageFD is the directory in which objects are staged. It belongs to w.
func (w *Work) StageFD() int { return w.stage }

// TempName returns a name that is free in the staging directory (cf. overlayfs dir.c ovl_lookup_temp).
func (w *Work) TempName() string { return "#" + strconv.FormatUint(w.seq.Add(1), 16) }

// Discard removes a staged object, a directory with all that it holds. It is best effort: what it leaves, the next
// mount's sweep removes.
func (w *Work) Discard(name string) { w.remove(w.stage, name) }

// remove deletes name below dirfd recursively, following nothing.
func (w *Work) remove(dirfd int, name string) {
	err := unix.Unlinkat(dirfd, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return
	}
	if unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) == nil {
		return
	}
	fd, err := sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var names []string
	_ = layer.List(fd, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	})
	for _, n := range names {
		w.remove(fd, n)
	}
	_ = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

// OpenIndex opens the hard-link index in the work directory base, for a mount that only reads; -1 and an error where there
// is none. The caller owns the descriptor.
func OpenIndex(base *layer.Layer) (int, error) {
	fd, err := sys.Openat(base.FD(), IndexDir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// IndexFD is the directory of the hard-link index, made on first use when create is set; -1 when there is none.
// Precondition: calls with create set are serialised by the caller.
func (w *Work) IndexFD(create bool) (int, error) {
	if fd := int(w.index.Load()); fd >= 0 || !create {
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
	if w.watch >= 0 {
		unix.Close(w.watch) // unmounts it, before its directories go
		w.watch = -1
	}
	if w.stage >= 0 {
		w.remove(w.dir, w.name)
	}
	w.release()
}

func (w *Work) release() {
	if fd := int(w.index.Swap(-1)); fd >= 0 {
		unix.Close(fd)
	}
	for _, fd := range []*int{&w.stage, &w.dir} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// BootID identifies the running kernel's boot.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// UnsyncedBoot returns the boot under which a mount last left unsynced marks behind, "" when no upper file carries one.
func (w *Work) UnsyncedBoot() string {
	fd, err := sys.Openat(w.base.FD(), UnsyncedFile, unix.O_RDONLY)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [128]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil || n == 0 {
		return "unknown"
	}
	return string(buf[:n])
}

// NoteUnsynced records, before the first file is marked, that marks may exist, so that the next mount after a crash
// looks for them. Journals keep the order of this record and the marks.
func (w *Work) NoteUnsynced() error {
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

// Alone says whether no other live mount stages in this work directory.
func (w *Work) Alone() bool {
	alone := true
	_ = layer.List(w.dir, func(e layer.RawDirent) error {
		if e.Name == w.name || !strings.HasPrefix(e.Name, StagePrefix) {
			return nil
		}
		fd, err := sys.Openat(w.dir, e.Name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil //nolint:nilerr // its owner ended and removed it
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
			alone = false
		}
		unix.Close(fd)
		return nil
	})
	return alone
}
