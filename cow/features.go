package cow

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// What the upper's file system and this process's privileges allow is found out by trying, in the staging directory, at the
// first need of the answer: each object that is tried with costs an inode. What failed for another reason than that it is not
// possible, as on a full disk, is no answer, and tried again.

// FileFeatures are how regular files can be staged.
type FileFeatures struct {
	// Tmpfile says that files can be made without a name and get one later.
	Tmpfile bool
	// StageUnnamed says that files are staged without a name, as Tmpfile allows. On btrfs an fsync through the descriptor of
	// such a file, even once it has a name, does not make the name durable (as of Linux 6.18): after a power cut the copy would
	// be gone although it was synced.
	StageUnnamed bool
	// ExactMode says that an unnamed file gets the mode that it is made with: no umask and no ACL takes bits away.
	ExactMode bool
}

// WhiteoutFeatures are how whiteouts of the kernel's form can be made.
type WhiteoutFeatures struct {
	// Mknod says that 0:0 character devices can be made, Rename that renameat2 leaves one behind.
	Mknod, Rename bool
	// Exchange says that renameat2 lets two entries change places: without, a directory can't replace a whiteout of that form in one
	// step, nor such a whiteout a directory.
	Exchange bool
}

// features are what was found out, nil until then: written under Work.mu, and read without it, since every creation asks.
type features struct {
	files     atomic.Pointer[FileFeatures]
	whiteouts atomic.Pointer[WhiteoutFeatures]
}

// Files says how regular files can be staged. The error is what kept it from finding out.
func (w *Work) Files() (FileFeatures, error) {
	if f := w.tried.files.Load(); f != nil {
		return *f, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.tried.files.Load(); f != nil {
		return *f, nil
	}
	stage, err := w.stageLocked()
	if err != nil {
		return FileFeatures{}, err
	}
	f, err := w.tryFiles(stage)
	if err != nil {
		return FileFeatures{}, fmt.Errorf("workdir %s: try unnamed files: %w", w.base.Path, err)
	}
	f.StageUnnamed = f.Tmpfile && w.base.FSType != unix.BTRFS_SUPER_MAGIC
	w.tried.files.Store(&f)
	return f, nil
}

// Whiteouts says how whiteouts can be made. The error is what kept it from finding out.
func (w *Work) Whiteouts() (WhiteoutFeatures, error) {
	if f := w.tried.whiteouts.Load(); f != nil {
		return *f, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.tried.whiteouts.Load(); f != nil {
		return *f, nil
	}
	stage, err := w.stageLocked()
	if err != nil {
		return WhiteoutFeatures{}, err
	}
	f, err := w.tryWhiteouts(stage)
	if err != nil {
		return WhiteoutFeatures{}, fmt.Errorf("workdir %s: try whiteouts: %w", w.base.Path, err)
	}
	w.tried.whiteouts.Store(&f)
	return f, nil
}

// TakesWhiteouts says whether the upper takes whiteouts of the AUFS form or of the kernel's: true also where that could not be found
// out, since whoever deletes first asks again.
func (w *Work) TakesWhiteouts() (bool, error) {
	if ok, err := w.TakesAUFSWhiteouts(); ok || err != nil {
		return ok, err
	}
	f, err := w.Whiteouts()
	return f.Mknod || err != nil, nil
}

// TakesAUFSWhiteouts is TakesWhiteouts of the AUFS form alone. Only file systems of FUSE are asked: one of them may be a union that
// keeps both forms to itself, as fuse-overlayfs does, and all others take names of any kind.
func (w *Work) TakesAUFSWhiteouts() (bool, error) {
	if w.base.FSType != unix.FUSE_SUPER_MAGIC {
		return true, nil
	}
	stage, err := w.Stage()
	if err != nil {
		if hindered(err) {
			err = nil
		}
		return true, err
	}
	direct, name := &sys.Mutator{}, ovl.AUFSWhiteout(w.TempName())
	fd, err := direct.Create(stage, name, unix.O_WRONLY, 0)
	if err == nil {
		_ = unix.Close(fd)
		_ = unix.Unlinkat(stage, name, 0) // scratch
	}
	return err == nil || hindered(err), nil
}

// hindered says that a trial failed for a reason that may pass.
func hindered(err error) bool {
	for _, e := range [...]unix.Errno{
		unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EROFS,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tryFiles tries unnamed files, and tryWhiteouts whiteouts, on scratch objects.
func (w *Work) tryFiles(stage int) (f FileFeatures, err error) {
	var fd int
	err = sys.Retry(func() (err error) {
		fd, err = unix.Openat(stage, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o777)
		return err
	})
	if hindered(err) {
		return f, err
	}
	if err != nil {
		return f, nil
	}
	defer unix.Close(fd)
	var made unix.Stat_t
	f.ExactMode = unix.Fstat(fd, &made) == nil && made.Mode&0o7777 == 0o777
	name := w.TempName()
	err = unix.Linkat(unix.AT_FDCWD, sys.ProcPath(fd), stage, name, unix.AT_SYMLINK_FOLLOW)
	if hindered(err) {
		return f, err
	}
	if f.Tmpfile = err == nil; f.Tmpfile {
		_ = unix.Unlinkat(stage, name, 0)
	}
	return f, nil
}

func (w *Work) tryWhiteouts(stage int) (f WhiteoutFeatures, err error) {
	a, b := w.TempName(), w.TempName()
	err = unix.Mknodat(stage, a, unix.S_IFCHR, 0)
	if hindered(err) {
		return f, err
	}
	f.Mknod = err == nil && isWhiteout(stage, a)
	if err != nil {
		// Any two entries tell whether they can change places.
		if err = unix.Mknodat(stage, a, unix.S_IFREG|0o600, 0); err != nil {
			return f, onlyHindered(err)
		}
	}
	defer func() { _ = unix.Unlinkat(stage, a, 0) }()
	err = w.m.TryRename(stage, a, stage, b, unix.RENAME_WHITEOUT)
	if hindered(err) {
		return f, err
	}
	if err == nil {
		// Both names are taken now. A mount that gives that flag of itself, as plyfs does, need not have the other.
		f.Rename = f.Mknod && isWhiteout(stage, a)
	} else if err = unix.Mknodat(stage, b, unix.S_IFREG|0o600, 0); err != nil {
		return f, onlyHindered(err)
	}
	defer func() { _ = unix.Unlinkat(stage, b, 0) }()
	err = w.m.TryRename(stage, a, stage, b, unix.RENAME_EXCHANGE)
	f.Exchange = err == nil
	return f, onlyHindered(err)
}

// onlyHindered is the error of a trial that failed, nil if that is the answer.
func onlyHindered(err error) error {
	if hindered(err) {
		return err
	}
	return nil
}

func isWhiteout(dirfd int, name string) bool {
	var st unix.Statx_t
	return sys.Statx(dirfd, name, &st) == nil && layer.IsWhiteoutDevice(&st)
}

// findNames finds out which overlay attributes can be written.
func (w *Work) findNames(userXattr bool) error {
	try := removesNothing
	if !tellsXattrs(w.base.FSType) {
		if _, err := w.Stage(); err != nil {
			return err
		}
		try = setsXattr
	}
	dir := w.dir
	if fd := w.StageFD(); fd >= 0 {
		dir = fd
	}
	for _, n := range [...]*ovl.Names{ovl.Trusted(), ovl.User()} {
		if n == ovl.Trusted() && userXattr {
			continue
		}
		err := try(dir, n.Opaque)
		if err == nil {
			w.Names = n
			return nil
		}
		if hindered(err) { // without attributes, all that this mount writes would have another form
			return fmt.Errorf("try attributes: %w", err)
		}
	}
	return nil
}

// tellsXattrs says whether removesNothing is enough on a file system: that it finds no attribute where it could keep one.
func tellsXattrs(magic int64) bool {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// removesNothing says whether an attribute that is not there could be removed: that asks for the same privileges as writing
// one does (cf. fs/xattr.c xattr_permission), and changes nothing.
func removesNothing(fd int, attr string) error {
	return asRemoved(sys.Retry(func() error { return unix.Fremovexattr(fd, attr) }))
}

// asRemoved is what an attempt to remove an attribute that is not there says: a full file system, which may want space for that
// (btrfs), was asked after the privileges.
func asRemoved(err error) error {
	for _, e := range [...]unix.Errno{unix.ENODATA, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// setsXattr says whether an attribute can be written on the directory fd, by doing it.
func setsXattr(fd int, attr string) error {
	direct := &sys.Mutator{}
	if err := direct.Setxattr(fd, "", attr, ovl.OpaqueValue(), 0); err != nil {
		return err
	}
	_ = direct.Removexattr(fd, "", attr) // scratch
	return nil
}

// volatileFS says whether a file system loses everything in a power cut anyway.
func volatileFS(magic int64) bool {
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC || magic == unix.HUGETLBFS_MAGIC
}
