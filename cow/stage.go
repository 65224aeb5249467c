package cow

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// stageTries is how often a new staging directory may be lost to the sweep of another mount.
const stageTries = 64

// lockUse says to others that a mount uses the work directory whose StageDir is open as dir. The lock goes with the
// descriptor.
func lockUse(dir int) error {
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	return sys.Retry(func() error { return unix.FcntlFlock(uintptr(dir), unix.F_OFD_SETLK, &lock) })
}

// InUse says whether a mount uses the work directory whose StageDir is open as dir, other than one whose own descriptor dir
// is. Mounts from before the lock are known by their staging directory alone.
func InUse(dir int) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := sys.Retry(func() error { return unix.FcntlFlock(uintptr(dir), unix.F_OFD_GETLK, &lock) })
	return err == nil && lock.Type != unix.F_UNLCK
}

// Stage is the directory in which objects are staged, made on first use. It belongs to w.
func (w *Work) Stage() (int, error) {
	if fd := int(w.stage.Load()); fd >= 0 {
		return fd, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stageLocked()
}

// StageFD is Stage for those who have staged something. Precondition: Stage succeeded.
func (w *Work) StageFD() int { return int(w.stage.Load()) }

// stageLocked makes this mount's own staging directory, unless it is there, and takes its lock, which dies with the process.
// Precondition: mu is held.
func (w *Work) stageLocked() (int, error) {
	if fd := int(w.stage.Load()); fd >= 0 {
		return fd, nil
	}
	for range stageTries {
		// A new name each time: a sweep that found the last one unlocked may be late to remove it, by its name.
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return -1, err
		}
		name := StagePrefix + hex.EncodeToString(b[:])
		if err := w.m.Mkdir(w.dir, name, 0o700); err != nil {
			return -1, err
		}
		fd, err := sys.Openat(w.dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) {
			continue // swept before it was opened
		}
		if err != nil {
			return -1, err
		}
		// A sweep or Alone of another mount holds it for a moment.
		err = sys.Retry(func() error { return unix.Flock(fd, unix.LOCK_EX) })
		var st unix.Statx_t
		swept := err == nil && sys.Statx(w.dir, name, &st) != nil // before it was locked
		if err == nil && !swept {
			err = makePlain(fd, &st)
		}
		if err == nil && !swept {
			w.name = name
			w.stage.Store(int32(fd))
			return fd, nil
		}
		unix.Close(fd)
		if err != nil {
			_ = unix.Unlinkat(w.dir, name, unix.AT_REMOVEDIR)
			return -1, fmt.Errorf("%s: %w", name, err)
		}
	}
	return -1, fmt.Errorf("%s is removed by another again and again: %w", StageDir, unix.EBUSY)
}

// makePlain takes from a new directory what it inherited: below a set-gid directory, or one with a default ACL, it would pass
// on to what is staged.
func makePlain(fd int, st *unix.Statx_t) error {
	if st.Mode&0o7777 != 0o700 {
		if err := unix.Fchmod(fd, 0o700); err != nil {
			return err
		}
	}
	has, err := ListXattrs(fd, "")
	if err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("list attributes: %w", err)
	}
	for _, attr := range [...]string{"system.posix_acl_default", "system.posix_acl_access"} {
		if err == nil && !slices.Contains(has, attr) {
			continue
		}
		err := unix.Fremovexattr(fd, attr)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("remove %s: %w", attr, err)
		}
	}
	return nil
}

// Discard removes a staged object, a directory with all that it holds. It is best effort: what it leaves, the next
// mount's sweep removes.
func (w *Work) Discard(name string) {
	if fd := w.StageFD(); fd >= 0 {
		w.remove(fd, name)
	}
}

// remove deletes name below dirfd recursively, following nothing.
func (w *Work) remove(dirfd int, name string) {
	err := unix.Unlinkat(dirfd, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return
	}
	w.removeDir(dirfd, name)
}

// removeDir is remove of what is a directory.
func (w *Work) removeDir(dirfd int, name string) {
	if unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) == nil {
		return
	}
	fd, err := sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var entries []layer.RawDirent
	_ = layer.List(fd, func(e layer.RawDirent) error {
		entries = append(entries, e)
		return nil
	})
	for _, e := range entries {
		if e.Type == unix.DT_DIR {
			w.removeDir(fd, e.Name)
		} else {
			w.remove(fd, e.Name)
		}
	}
	_ = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

// Alone says whether no other live mount uses this work directory.
func (w *Work) Alone() bool {
	if InUse(w.dir) {
		return false
	}
	w.mu.Lock()
	own := w.name
	w.mu.Unlock()
	alone := true
	_ = layer.List(w.dir, func(e layer.RawDirent) error {
		if e.Name == own || !strings.HasPrefix(e.Name, StagePrefix) {
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
