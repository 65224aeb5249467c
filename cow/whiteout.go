package cow

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Whiteout stages a whiteout of the kernel's form and returns its name in the staging directory. Whiteouts are links to
// one inode where the file system's link limit allows (cf. overlayfs dir.c ovl_whiteout).
//
// Precondition: Whiteouts has Mknod.
func (w *Work) Whiteout() (string, error) {
	stage, err := w.Stage()
	if err != nil {
		return "", err
	}
	name := w.TempName()
	return name, w.WhiteoutAt(stage, name)
}

// WhiteoutAt makes a whiteout of the kernel's form named name below dirfd; EEXIST if the name is taken.
func (w *Work) WhiteoutAt(dirfd int, name string) error {
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	err = w.m.Link(stage, sharedWhiteout, dirfd, name)
	switch {
	case err == nil || errors.Is(err, unix.EEXIST):
		return err
	case errors.Is(err, unix.EMLINK):
		// The shared inode is full: begin a new one.
		_ = w.m.Unlink(stage, sharedWhiteout)
	case !errors.Is(err, unix.ENOENT):
		// The file system links no device nodes (or none of this process): one inode each.
		return w.mknodWhiteout(dirfd, name)
	}
	if err := w.mknodWhiteout(stage, sharedWhiteout); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	err = w.m.Link(stage, sharedWhiteout, dirfd, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EMLINK) {
		// Another one that found the old inode full took the new one away, or filled it.
		return w.mknodWhiteout(dirfd, name)
	}
	return err
}

func (w *Work) mknodWhiteout(dirfd int, name string) error {
	err := w.m.Mknod(dirfd, name, unix.S_IFCHR, 0)
	if err == nil {
		w.count(1)
	}
	return err
}

// StatWhiteout fills st with the inode that new whiteouts are links to; ENOENT if there is none yet.
func (w *Work) StatWhiteout(st *unix.Statx_t) error {
	fd := w.StageFD()
	if fd < 0 {
		return unix.ENOENT
	}
	return sys.Statx(fd, sharedWhiteout, st)
}

// LastNames is how many of the entries of the staged directory name, which holds no directories, are the last name of their
// inode.
func (w *Work) LastNames(name string) (int, error) {
	fd, err := sys.Openat(w.StageFD(), name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	n := 0
	err = layer.List(fd, func(e layer.RawDirent) error {
		var st unix.Statx_t
		err := sys.Statx(fd, e.Name, &st)
		if err == nil && st.Nlink == 1 {
			n++
		}
		return err
	})
	return n, err
}

// discardDir is Discard of a directory of the upper that held nothing but whiteouts.
func (w *Work) discardDir(name string) {
	n, err := w.LastNames(name)
	w.Discard(name)
	if err == nil {
		w.count(-n)
	}
}

// RemoveDir takes the directory name below dirfd, which holds nothing but whiteouts, out of the way by one rename and
// then removes it.
func (w *Work) RemoveDir(dirfd int, name string) error {
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	tmp := w.TempName()
	if err := w.m.Rename(dirfd, name, stage, tmp, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	w.discardDir(tmp)
	return nil
}

// WhiteoutDir is RemoveDir that leaves a whiteout of the kernel's form in the directory's place, from the same moment on.
// Precondition: Whiteouts has Mknod and Exchange.
func (w *Work) WhiteoutDir(dirfd int, name string) error {
	tmp, err := w.Whiteout()
	if err != nil {
		return err
	}
	if err := w.m.Rename(w.StageFD(), tmp, dirfd, name, unix.RENAME_EXCHANGE); err != nil {
		w.Discard(tmp)
		return err
	}
	w.discardDir(tmp) // where the directory is now
	return nil
}

// WhiteoutFile puts a whiteout of the kernel's form in the place of the non-directory name below dirfd, in one step.
// Precondition: Whiteouts has Mknod.
func (w *Work) WhiteoutFile(dirfd int, name string) error {
	tmp, err := w.Whiteout()
	if err != nil {
		return err
	}
	if err := w.m.Rename(w.StageFD(), tmp, dirfd, name, 0); err != nil {
		w.Discard(tmp)
		return err
	}
	return nil
}

// MakeOpaque makes the directory name below dirfd hide the layers below, by an attribute or, where none can be written, by the
// sentinel of the AUFS form.
func (w *Work) MakeOpaque(dirfd int, name string) error {
	if w.Names == nil {
		return w.MakeOpaqueAUFS(dirfd, name)
	}
	return w.m.Setxattr(dirfd, name, w.Names.Opaque, ovl.OpaqueValue(), 0)
}

// MakeOpaqueAUFS is MakeOpaque by the sentinel in any case.
func (w *Work) MakeOpaqueAUFS(dirfd int, name string) error {
	fd, err := sys.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	f, err := w.m.Create(fd, ovl.AUFSOpaque, unix.O_WRONLY, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	w.count(1)
	return unix.Close(f)
}
