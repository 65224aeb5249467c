package cow

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// A volatile mount syncs nothing, so no fsync of its own would ever tell it that the kernel failed to write data back. The
// kernel keeps that for each superblock (errseq_t s_wb_err), but shows it only to syncfs, which writes everything first, and
// to the overlays above: fsync in a volatile one compares the superblock's state with that at mount, and does nothing else
// (cf. overlayfs util.c ovl_sync_status). So Work mounts such an overlay over empty directories of its staging directory,
// and keeps a descriptor of its root. It has no mount point: nobody else sees it, and it goes with the descriptor. That costs
// about as much as the whole rest of a mount, so it waits for the first data, unless data of the upper may be lost already.

// ErrUnwatched says that failed write-back of a volatile mount can't be seen, and wraps why not: the file system can't be
// the upper of an overlay (NFS, FUSE, another overlay), or this process may not mount one.
var ErrUnwatched = errors.New("failed write-back of the file system cannot be watched")

// ErrUnseenWriteBack refuses a volatile mount: data of the upper's file system was lost before, and no program was told. The
// kernel's overlayfs refuses it too, since it could not tell the next failure from that one.
var ErrUnseenWriteBack = errors.New("its file system failed to write data back, which nobody was told yet")

// The directories of the private overlay, in the staging directory.
const (
	watchDir   = "volatile"
	watchLower = "lower"
	watchUpper = "upper"
	watchWork  = "work"
)

// refusal is how long BeginData's refusal stands: each trial leaves a line in the kernel's log.
const refusal = time.Second

// BeginData is called before data is written to the upper. In a volatile mount it begins to watch for failed write-back; the error
// is ErrUnseenWriteBack if it can't, and nothing may be written then. It also makes the staging directory, which a disk
// that the data fills may have no room for: removals need it. Once it succeeded it does nothing.
func (w *Work) BeginData() error {
	if w.begun.Load() {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun.Load() {
		return nil
	}
	if w.refused != nil && time.Since(w.refusedAt) < refusal {
		return w.refused
	}
	stage, err := w.stageLocked()
	if err != nil {
		return err
	}
	if w.volatile {
		if err := w.watchWriteBack(stage); err != nil {
			w.refused, w.refusedAt = err, time.Now()
			return err
		}
	}
	w.begun.Store(true)
	return nil
}

// WriteBackError returns the errno of the first write-back to the upper's file system that failed since BeginData, whichever
// program's data it was, and returns it ever after; nil while none did, before BeginData, which began with nothing that could be lost,
// and for a mount that is not volatile. It writes nothing and does not block. The error is ErrUnwatched where the kernel
// can't be asked. Precondition: w is not closed.
func (w *Work) WriteBackError() error {
	if !w.begun.Load() {
		return nil
	}
	if w.watch < 0 {
		return w.unwatched
	}
	return sys.Retry(func() error { return unix.Fsync(w.watch) })
}

// watchWriteBack begins to watch. That it can't is for WriteBackError to say, and no error here.
// Precondition: mu is held.
func (w *Work) watchWriteBack(stage int) error {
	if !w.Durable {
		return nil // nothing is ever written back from memory
	}
	fd, err := w.mountWatch(stage)
	if err == nil {
		w.watch = fd
		return nil
	}
	w.Discard(watchDir)
	if errors.Is(err, ErrUnseenWriteBack) {
		return fmt.Errorf("%w; run sync -f %s, which tells it once, check what the file system holds, and mount again",
			err, w.base.Path)
	}
	w.unwatched = fmt.Errorf("%w: %w", ErrUnwatched, err)
	return nil
}

// mountWatch mounts the private overlay and returns a descriptor of its root.
func (w *Work) mountWatch(stage int) (int, error) {
	dir, err := ensureDir(stage, watchDir)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", watchDir, err)
	}
	defer unix.Close(dir)
	for _, name := range []string{watchLower, watchUpper, watchWork} {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return -1, fmt.Errorf("%s/%s: %w", watchDir, name, err)
		}
	}
	config, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(config)
	for _, o := range [][2]string{{"lowerdir", watchLower}, {"upperdir", watchUpper}, {"workdir", watchWork}} {
		// Paths through the descriptor hold no character that the option means something else by.
		if err := unix.FsconfigSetString(config, o[0], sys.ProcPath(dir)+"/"+o[1]); err != nil {
			return -1, fmt.Errorf("overlay option %s: %w", o[0], err)
		}
	}
	flags := []string{"volatile"}
	if w.Names == ovl.User() {
		flags = append(flags, "userxattr")
	}
	for _, name := range flags {
		if err := unix.FsconfigSetFlag(config, name); err != nil {
			return -1, fmt.Errorf("overlay option %s: %w", name, err)
		}
	}
	err = sys.Retry(func() error { return unix.FsconfigCreate(config) })
	if errors.Is(err, unix.EIO) { // cf. overlayfs super.c ovl_fill_super
		return -1, fmt.Errorf("%w: %w", ErrUnseenWriteBack, err)
	}
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	mnt, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mnt)
	return sys.Openat(mnt, ".", unix.O_RDONLY|unix.O_DIRECTORY)
}
