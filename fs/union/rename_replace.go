package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// checkEmpty says whether the directory that is to be replaced is empty, and makes its upper so.
func (r *rename) checkEmpty() error {
	u, d := r.u, r.dst
	d.dir.mu.Lock()
	defer d.dir.mu.Unlock()
	empty, err := u.emptyLocked(d)
	if err != nil {
		return err
	}
	if !empty {
		return unix.ENOTEMPTY
	}
	if !d.has(flagUpper) {
		return nil
	}
	f, err := u.dirUpper(d)
	if err != nil {
		return err
	}
	defer f.Close()
	bare := true
	err = layer.List(f.FD(), func(layer.RawDirent) error {
		bare = false
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	if bare {
		return nil
	}
	return r.clearEmpty(f)
}

var errStop = errors.New("stop")

// clearEmpty replaces the upper of an empty merged directory, which holds whiteouts, by an opaque one that holds nothing
// (cf. overlayfs dir.c ovl_clear_empty): only that can be replaced by rename. Precondition: dst.dir.mu is held.
func (r *rename) clearEmpty(old *layer.File) error {
	u := r.u
	if u.work.Names == nil {
		// What makes a directory opaque without attributes is a file in it.
		r.takeAway = true
		return nil
	}
	if form, err := u.whiteouts(); err != nil {
		return err
	} else if !form.exchange {
		return r.clearInPlace(old)
	}
	w, name := u.work, u.work.TempName()
	stage, err := w.Stage()
	if err != nil {
		return err
	}
	if err := u.m.Mkdir(stage, name, 0o700); err != nil {
		return err
	}
	swapped := false
	defer func() {
		if !swapped {
			w.Discard(name)
		}
	}()
	var st unix.Statx_t
	if err := sys.Statx(old.FD(), "", &st); err != nil {
		return err
	}
	if err := u.stageOpaque(old, &st, stage, name); err != nil {
		return err
	}
	if err := u.m.Rename(stage, name, r.to.dir.FD(), r.to.name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	swapped = true
	u.quota.replacedDir(r.dst, st.Blocks, name, r.to.dir.FD(), r.to.name)
	u.dirs.Drop(&r.dst.dir.upper)
	r.dst.dir.hideLowersLocked()
	w.Discard(name)
	return nil
}

// stageOpaque gives the staged directory name the attributes of the upper directory old, which st describes, and makes it opaque.
func (u *Union) stageOpaque(old *layer.File, st *unix.Statx_t, stage int, name string) error {
	if err := cow.CopyXattrs(u.m, old.FD(), ".", stage, name, nil); err != nil {
		return err
	}
	if o := u.upper.Override(); o != "" {
		if v, err := cow.GetXattr(old.FD(), ".", o); err == nil {
			if err := u.m.Setxattr(stage, name, o, v, 0); err != nil {
				return err
			}
		}
	}
	// By an attribute, whatever the form of whiteouts is: it is there for a moment only.
	if err := u.work.MakeOpaque(stage, name); err != nil {
		return err
	}
	if err := u.m.Chown(stage, name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := u.m.Chmod(stage, name, uint32(st.Mode)&0o7777); err != nil {
		return err
	}
	return u.m.Utimes(stage, name, sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec())
}

// clearInPlace makes the upper of an empty merged directory opaque, and then removes the whiteouts in it: it shows nothing at any moment.
// Precondition: dst.dir.mu is held.
func (r *rename) clearInPlace(old *layer.File) error {
	u, dst := r.u, r.dst
	if err := u.work.MakeOpaque(r.to.dir.FD(), r.to.name); err != nil {
		return err
	}
	dst.dir.hideLowersLocked()
	var names []string
	if err := layer.List(old.FD(), func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	}); err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := sys.Statx(old.FD(), name, &st); err != nil {
			return err
		}
		if err := u.m.Unlink(old.FD(), name); err != nil {
			return err
		}
		if st.Nlink == 1 {
			u.quota.inodes(-1)
		}
	}
	return nil
}
