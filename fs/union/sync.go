package union

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// A copy-up is not synced when it is published. After a power cut the upper file may lack its data, but the lower still has the old
// content: it is enough that the upper file says so. That is the unsynced mark, an attribute. It is set before the copy is
// published, and taken off after the next fsync by an application, or after a background sync of all marked files, the batch. The
// mount that follows a crash of the machine gives files that carry a mark their lower's content back (recoverUnsynced).

const (
	// syncDelay is how long after the first mark the batch is synced: as long as the kernel keeps dirty pages young.
	syncDelay = 5 * time.Second
	// syncBatch is how many marked files do not wait for that.
	syncBatch = 4096
)

// markUnsynced puts the mark on a staged copy of n.
func (u *Union) markUnsynced(n *Node, dirfd int, name string) error {
	if err := u.noteRecord(); err != nil {
		return err
	}
	m := ovl.UnsyncedMark{Boot: u.boot(), Lower: n.lower.viewPath()}
	return u.m.Setxattr(dirfd, name, u.names.Unsynced, m.Encode(), 0)
}

// noteRecord leaves, once, the record that marks may exist.
func (u *Union) noteRecord() error {
	u.sync.mu.Lock()
	defer u.sync.mu.Unlock()
	if u.sync.recorded {
		return nil
	}
	if err := u.work.NoteUnsynced(); err != nil {
		return err
	}
	u.sync.recorded = true
	return nil
}

// noteUnsynced puts n, which was just published with a mark, into the next batch. The batch holds a reference.
func (u *Union) noteUnsynced(n *Node) {
	u.treeMu.Lock()
	n.refs++
	u.treeMu.Unlock()
	s := &u.sync
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, n)
	u.marked.Add(1)
	switch {
	case s.closed:
	case len(s.pending) == 1:
		s.timer = time.AfterFunc(syncDelay, u.syncPending)
	case len(s.pending) == syncBatch:
		go u.syncPending()
	}
}

// syncPending syncs the batch and takes its marks off. A failure leaves them: those files stay safe, and are tried
// again with the next batch.
func (u *Union) syncPending() {
	s := &u.sync
	s.run.Lock()
	defer s.run.Unlock()
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	if err := u.m.Syncfs(u.upper.FD()); err != nil {
		u.log.Error("background sync failed; marked files keep their mark", "files", len(batch), "err", err)
		u.syncAgain(batch)
		return
	}
	var kept []*Node
	for _, n := range batch {
		if err := u.unmark(n); err != nil {
			// Whoever finds the mark after a power cut would take back what is written from now on.
			u.log.Warn("cannot remove the unsynced mark yet", "file", u.pathOf(n), "err", err)
			kept = append(kept, n)
			continue
		}
		u.marked.Add(^uint64(0))
		u.Forget(n, 1)
	}
	u.syncAgain(kept)
}

// unmarkUnlinked takes files without a name out of the next batch, whose reference keeps them from being freed. Nobody can find
// them after a crash, so they need no mark. Precondition: no lock of the union is held.
func (u *Union) unmarkUnlinked() {
	s := &u.sync
	s.mu.Lock()
	var gone []*Node
	s.pending = slices.DeleteFunc(s.pending, func(n *Node) bool {
		unlinked := n.has(flagUnlinked)
		if unlinked {
			gone = append(gone, n)
		}
		return unlinked
	})
	s.mu.Unlock()
	u.unmarkAll(gone)
}

// unmarkAll takes the marks off unlinked files that have left the batch, although their data may not be on disk. Link may give one
// of them a name again: after a crash it is then what any new file is that was not synced.
func (u *Union) unmarkAll(gone []*Node) {
	var kept []*Node
	for _, n := range gone {
		if err := u.unmark(n); err != nil {
			kept = append(kept, n)
			continue
		}
		u.marked.Add(^uint64(0))
		u.Forget(n, 1)
	}
	u.syncAgain(kept)
}

// leaveBatch takes n out of the next batch if its last name is gone: the batch's reference would keep its space until then.
// Precondition: no lock of the union is held.
func (u *Union) leaveBatch(n *Node) {
	if !n.has(flagUnlinked) || !n.has(flagUnsynced) {
		return
	}
	s := &u.sync
	s.mu.Lock()
	i := slices.Index(s.pending, n)
	if i >= 0 {
		s.pending = slices.Delete(s.pending, i, i+1)
	}
	s.mu.Unlock()
	if i >= 0 {
		u.unmarkAll([]*Node{n})
	}
}

// syncAgain keeps marked files for the next background sync.
func (u *Union) syncAgain(batch []*Node) {
	if len(batch) == 0 {
		return
	}
	s := &u.sync
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(batch, s.pending...)
	if !s.closed {
		s.timer = time.AfterFunc(syncDelay, u.syncPending)
	}
}

// unmark takes the unsynced mark off n, whose data is on disk.
func (u *Union) unmark(n *Node) error {
	c, err := u.reserve(amount{}, nil)
	if err != nil {
		return err
	}
	defer c.close()
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	n.copyMu.Lock()
	marked := n.has(flagUnsynced)
	n.copyMu.Unlock()
	if !marked {
		return nil
	}
	// Nobody else looks at n or changes its attributes meanwhile: what the ctime was, and is, is known.
	names := u.namesLock(n)
	names.Lock()
	defer names.Unlock()
	l, err := u.upperLoc(n)
	if err != nil {
		if n.has(flagUnlinked) {
			return nil
		}
		return err
	}
	defer l.close()
	if err := c.onExact(n, l.fd(), l.name); err != nil {
		return err
	}
	defer c.off()
	var before, after unix.Statx_t
	known := sys.Statx(l.fd(), l.name, &before) == nil
	err = u.m.Removexattr(l.fd(), l.name, u.names.Unsynced)
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EBADF) {
		return err
	}
	if known && err == nil && sys.Statx(l.fd(), l.name, &after) == nil {
		n.hideOwnChange(&before, &after)
	}
	n.clear(flagUnsynced)
	return nil
}

// Fsync makes n durable: a file's data and attributes, a directory's entries. A lower object is durable already. The first
// fsync of a copied-up file also takes its mark off, durably.
//
// In a volatile mount it makes nothing durable, writes nothing, and fails from the first failed write-back on, whatever n is:
// what an application wrote and believes to be in the upper may be lost (cf. overlayfs util.c ovl_sync_status).
func (u *Union) Fsync(n *Node) error { return u.flush(n, (*sys.Mutator).Fsync) }

// Fdatasync is Fsync that leaves out the attributes without which the data can be read.
func (u *Union) Fdatasync(n *Node) error { return u.flush(n, (*sys.Mutator).Fdatasync) }

// flush is Fsync or Fdatasync, of which flushFD is the system call.
func (u *Union) flush(n *Node, flushFD func(m *sys.Mutator, fd int) error) error {
	if u.opt.Volatile {
		return u.volatileStatus(n)
	}
	if u.opt.NoFsync || !n.has(flagUpper) {
		return nil
	}
	if err := u.syncLeft(n); err != nil {
		return err
	}
	f, err := u.syncFile(n)
	if err != nil {
		return err
	}
	defer f.Close()
	if !n.has(flagUnsynced) {
		return flushFD(u.m, f.FD())
	}
	if err := u.m.Fdatasync(f.FD()); err != nil {
		return err
	}
	if err := u.unmark(n); err != nil {
		return err
	}
	return u.m.Fsync(f.FD())
}

// syncLeft makes the whole of a rename durable before an fsync does a part of it. On btrfs the fsync of a file that is new in the
// running transaction makes its new name durable, and not what took the old one (as of Linux 6.18): after a power cut the lower's
// file would be back under that beside this one, of which it is the origin, and which the kernel's overlayfs then doesn't open
// (ESTALE). Once for each file that leaves a name of the lowers.
func (u *Union) syncLeft(n *Node) error {
	if !n.has(flagLeft) {
		return nil
	}
	n.clear(flagLeft) // before: a rename meanwhile sets it again
	err := u.m.Syncfs(u.upper.FD())
	if err != nil {
		n.set(flagLeft)
	}
	return err
}

// volatileStatus is what fsync of n answers in a volatile mount.
func (u *Union) volatileStatus(n *Node) error {
	if u.work == nil {
		return nil // read-only
	}
	err := u.work.WriteBackError()
	if errors.Is(err, cow.ErrUnwatched) {
		if err = u.writeBackErrorOf(n); err != nil && !errors.Is(err, errWriteBack) {
			return err // not even that is known; the next fsync may tell
		}
	}
	switch {
	case err != nil:
		if !u.failed.Swap(true) {
			u.log.Error("data of a volatile mount was lost: write-back to the file system of its upper failed; start with an "+
				"empty upper", "upper", u.upper.Path, "err", err)
		}
		return err
	case u.failed.Load():
		return unix.EIO
	}
	return nil
}

// errWriteBack is wrapped by what writeBackErrorOf found, as opposed to what kept it from looking.
var errWriteBack = errors.New("write-back failed")

// beyondData is an offset behind which no file has pages.
const beyondData = 1 << 50

// writeBackErrorOf says whether data of n, a file of the upper, could not be written back since its descriptor was opened or
// the error last reported.
func (u *Union) writeBackErrorOf(n *Node) error {
	if n.mode != unix.S_IFREG || !n.has(flagUpper) {
		return nil
	}
	f, err := u.syncFile(n)
	if err != nil {
		return err
	}
	defer f.Close()
	err = sys.Retry(func() error {
		// Waiting for a range without pages takes no time and starts no write, and yet reports the error of the whole file
		// (cf. mm/filemap.c file_fdatawait_range).
		return unix.SyncFileRange(f.FD(), beyondData, 1, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	})
	if err == nil || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return fmt.Errorf("%w: %w", errWriteBack, err)
}

// syncFile opens n for fsync.
func (u *Union) syncFile(n *Node) (*layer.File, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	if n.mode == unix.S_IFREG && n.has(flagMetacopy) {
		u.steady(n)
		defer u.unsteady(n)
		l, err := u.upperLoc(n)
		if err != nil {
			return nil, err
		}
		defer l.close()
		if l.name == "" {
			fd, err := sys.Reopen(l.fd(), unix.O_RDONLY)
			return layer.Own(fd), err
		}
		fd, err := sys.Openat(l.fd(), l.name, unix.O_RDONLY)
		return layer.Own(fd), err
	}
	if n.mode == unix.S_IFREG {
		return u.dataFile(n, ForReading)
	}
	if !n.IsDir() {
		return nil, unix.EINVAL
	}
	d, err := u.dirUpper(n)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := sys.OpenSelf(d.FD(), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return layer.Own(fd), nil
}

// sticky remembers a write that a volatile mount's upper failed: every later fsync fails too. Only EIO loses data that was
// accepted before; a full disk or an exceeded limit was told to the writer, who may carry on.
func (u *Union) sticky(err error) error {
	if u.opt.Volatile && errors.Is(err, unix.EIO) {
		u.failed.Store(true)
	}
	return err
}

// recoverUnsynced looks at every upper file after a mount that did not end cleanly. Files marked under this boot are
// synced; those of an earlier one may lack data and get their lower's content back.
func (u *Union) recoverUnsynced() error {
	boot, err := u.work.UnsyncedBoot()
	if err != nil || boot == "" {
		return err
	}
	if !u.work.Alone() {
		return nil // the marks are those of a mount that is alive
	}
	if err := u.beginData(); err != nil {
		return err
	}
	if err := u.resolveRoot(); err != nil { // which lowers a redirect is followed through
		return err
	}
	r := &recovery{u: u}
	defer r.close()
	if err := r.walk(u.upper.FD(), ".", u.upper.Path); err != nil {
		return err
	}
	if idx := u.indexFD(); idx >= 0 {
		if err := r.walk(idx, ".", joinPath(u.opt.Work.Path, cow.IndexDir)); err != nil {
			return err
		}
	}
	if err := u.m.Syncfs(u.upper.FD()); err != nil {
		return err
	}
	if err := r.unmark(); err != nil {
		return err
	}
	if err := u.m.Syncfs(u.upper.FD()); err != nil {
		return err
	}
	if r.restored+r.lost > 0 {
		u.log.Warn("the machine went down before copied-up files were synced",
			"restored", r.restored, "without lower", r.lost)
	}
	return u.work.ForgetUnsynced()
}

// recovery is one run of recoverUnsynced.
type recovery struct {
	u *Union
	// marked are the descriptors of files that have their data again, and carry the mark until it is synced.
	marked []int
	// restored counts the files that got their lower's content back, lost those that have no lower any more.
	restored, lost int
}

// recoverBatch bounds the descriptors that a recovery keeps open.
const recoverBatch = 512

func (r *recovery) close() {
	for _, fd := range r.marked {
		unix.Close(fd)
	}
	r.marked = nil
}

// walk visits every regular file below the directory name in dirfd. path is that directory's, for errors.
func (r *recovery) walk(dirfd int, name, path string) error {
	fd, err := sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	var dirs []string
	err = layer.List(fd, func(e layer.RawDirent) error {
		switch e.Type {
		case unix.DT_DIR:
			dirs = append(dirs, e.Name)
		case unix.DT_REG, unix.DT_UNKNOWN:
			if err := r.file(fd, e.Name); err != nil {
				return fmt.Errorf("%s: %w", joinPath(path, e.Name), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := r.walk(fd, d, joinPath(path, d)); err != nil {
			return err
		}
	}
	return nil
}

// file prepares one file for the removal of its mark, if it has one, and restores it first if it may lack data.
func (r *recovery) file(dirfd int, name string) error {
	v, err := cow.GetXattr(dirfd, name, r.u.names.Unsynced)
	if err != nil {
		return nil //nolint:nilerr // unmarked
	}
	mark, err := ovl.ParseUnsynced(v)
	if err != nil {
		r.u.log.Error("unsynced mark is malformed; file left alone", "file", name, "err", err)
		return nil
	}
	fd, err := sys.Openat(dirfd, name, unix.O_RDWR)
	if err != nil {
		return err
	}
	if mark.Boot != r.u.boot() {
		if err := r.restore(fd, mark); err != nil {
			unix.Close(fd)
			return err
		}
	}
	r.marked = append(r.marked, fd)
	if len(r.marked) < recoverBatch {
		return nil
	}
	if err := r.u.m.Syncfs(fd); err != nil {
		return err
	}
	if err := r.unmark(); err != nil {
		return err
	}
	r.close()
	return nil
}

// unmark takes the marks off the files that are open, whose data is on disk.
func (r *recovery) unmark() error {
	for _, fd := range r.marked {
		if err := r.u.m.Removexattr(fd, "", r.u.names.Unsynced); err != nil && !errors.Is(err, unix.ENODATA) {
			return err
		}
	}
	return nil
}

// restore gives an upper file the content of its lower again. Its attributes were journalled and stay.
func (r *recovery) restore(fd int, mark ovl.UnsyncedMark) error {
	u := r.u
	dir, base := splitPath(mark.Lower)
	ref, err := u.findLower(0, dir, base)
	if err != nil {
		r.lost++
		u.log.Error("unsynced file has no lower to fall back to", "lower", mark.Lower, "err", err)
		return nil
	}
	l, err := u.refLoc(ref)
	if err != nil {
		return err
	}
	src, err := openNoatime(l.fd(), l.name)
	l.close()
	if err != nil {
		return err
	}
	if src, err = u.followMetacopy(src, ref); err != nil {
		return err
	}
	defer unix.Close(src)
	var st unix.Statx_t
	if err := sys.Statx(src, "", &st); err != nil {
		return err
	}
	if err := u.copiers[ref.layer].Refill(u.m, fd, src, int64(st.Size)); err != nil {
		return err
	}
	r.restored++
	_ = u.m.Removexattr(fd, "", u.names.Metacopy) // a data copy that was under way is complete now
	return nil
}
