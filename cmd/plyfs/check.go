package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// place is where a directory is: two paths with equal dev and ino are one directory.
type place struct {
	dev, ino uint64
}

// check refuses what the kernel's overlayfs refuses of a set of layers, before anything is written. What p tolerates comes back
// as warnings.
func (s *stack) check(p personality) (warnings []string, err error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	if s.work != nil && !s.readOnly {
		if err := s.checkUpper(); err != nil {
			return nil, err
		}
		if warnings, err = s.checkWork(p, roots); err != nil {
			return nil, err
		}
		if err := s.checkIncompat(); err != nil {
			return nil, err
		}
	}
	return warnings, s.checkLowers(roots)
}

// roots maps the layers' places to how they were given. No two may be the same (cf. overlayfs super.c ovl_setup_trap).
func (s *stack) roots() (map[place]string, error) {
	roots := make(map[place]string, len(s.lowers)+2)
	add := func(option string, l *layer.Layer) error {
		if l == nil {
			return nil
		}
		at := place{dev: l.Dev, ino: l.Ino}
		name := option + "=" + l.Path
		if other, ok := roots[at]; ok {
			return faultf(exitMount, "%s and %s are the same directory; give each layer once, and a workdir of its own", other, name)
		}
		roots[at] = name
		return nil
	}
	if err := add("upperdir", s.upper); err != nil {
		return nil, err
	}
	if err := add("workdir", s.work); err != nil {
		return nil, err
	}
	for _, l := range s.lowers {
		if err := add("lowerdir", l); err != nil {
			return nil, err
		}
	}
	return roots, nil
}

// checkUpper looks at what upper and work need: one writable file system, one mount (a rename can't leave it).
func (s *stack) checkUpper() error {
	const way = "put workdir next to upperdir"
	if s.upper.Dev != s.work.Dev {
		return faultf(exitMount, "upperdir=%s and workdir=%s are on different file systems; %s", s.upper.Path, s.work.Path, way)
	}
	if s.upper.Mount != 0 && s.work.Mount != 0 && s.upper.Mount != s.work.Mount {
		return faultf(exitMount, "upperdir=%s and workdir=%s are under different mounts of one file system; %s", s.upper.Path, s.work.Path, way)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(s.upper.FD(), &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return faultf(exitMount, "upperdir=%s is on a read-only file system; use a writable one, or add ro", s.upper.Path)
	}
	for _, l := range []struct {
		option string
		*layer.Layer
	}{{"upperdir", s.upper}, {"workdir", s.work}} {
		err := unix.Faccessat(l.FD(), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
			return faultf(exitUsage, "%s=%s: %s; the mounting user needs to write there", l.option, l.Path, reason(err))
		}
	}
	return nil
}

// checkWork wants upper and work apart from each other (cf. overlayfs super.c ovl_workdir_ok), and work outside the lower
// layers, where its temporary files would be seen. One arrangement of that kind is common and harmless enough to be
// tolerated in fuse-overlayfs's personality: buildah and podman overlay a volume that contains their own storage, upper
// and work together.
func (s *stack) checkWork(p personality, roots map[place]string) (warnings []string, err error) {
	upperAt := place{dev: s.upper.Dev, ino: s.upper.Ino}
	workAt := place{dev: s.work.Dev, ino: s.work.Ino}
	aboveUpper, aboveWork := ancestors(s.upper, nil), ancestors(s.work, nil)
	if contains(aboveWork, upperAt) {
		return nil, faultf(exitMount, "workdir=%s is inside upperdir=%s; put it next to upperdir", s.work.Path, s.upper.Path)
	}
	if contains(aboveUpper, workAt) {
		return nil, faultf(exitMount, "upperdir=%s is inside workdir=%s; put it next to workdir", s.upper.Path, s.work.Path)
	}
	for _, at := range aboveWork {
		lower, ok := roots[at]
		if !ok {
			continue
		}
		if p.name == nameFuseOverlayfs && contains(aboveUpper, at) {
			return []string{"workdir=" + s.work.Path + " and upperdir are inside " + lower +
				": their content shows in the mount and must not be used there"}, nil
		}
		return nil, faultf(exitMount, "workdir=%s is inside %s; put it outside of all lower directories", s.work.Path, lower)
	}
	return nil, nil
}

// checkIncompat refuses an upper that a volatile mount left, since what it holds may be incomplete after a crash, and one
// that was marked as beyond mounts that do not know the mark (cf. overlayfs readdir.c ovl_workdir_cleanup_recurse).
func (s *stack) checkIncompat() error {
	const marks = "work/incompat"
	fd, err := sys.OpenBeneath(s.work.FD(), marks, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return faultf(exitMount, "workdir=%s: %s: %s; the mounting user needs to read it", s.work.Path, marks, reason(err))
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		if e.Name == "volatile" {
			return faultf(exitMount, "upperdir=%s was last used by a volatile mount and may be incomplete; start with an empty one, "+
				"or, if the system did not crash since, remove %s/%s/%s", s.upper.Path, s.work.Path, marks, e.Name)
		}
		return faultf(exitMount, "upperdir=%s has the mark of a feature that plyfs does not know; mount it with what wrote it, "+
			"or start with an empty one; the mark is %s/%s/%s", s.upper.Path, s.work.Path, marks, e.Name)
	})
}

// checkLowers refuses a lower layer inside another layer (cf. overlayfs super.c ovl_check_layer).
func (s *stack) checkLowers(roots map[place]string) error {
	clean := make(map[place]bool)
	for _, l := range s.lowers {
		for _, at := range ancestors(l, clean) {
			if outer, ok := roots[at]; ok {
				return faultf(exitMount, "lowerdir=%s is inside %s; layers must not overlap", l.Path, outer)
			}
			clean[at] = true
		}
	}
	return nil
}

func contains(list []place, at place) bool {
	for _, p := range list {
		if p == at {
			return true
		}
	}
	return false
}

// ancestors returns the directories above l, nearest first, up to the root of its mount, as the kernel does with dentries, or to
// one of which stop says that nothing above it matters. Above a directory that may not be searched, and beyond a thousand of
// them, nothing is found out.
func ancestors(l *layer.Layer, stop map[place]bool) []place {
	if l.Mount == 0 {
		return nil
	}
	var out []place
	last := place{dev: l.Dev, ino: l.Ino}
	for up := ".."; ; up += "/.." {
		var st unix.Statx_t
		if err := sys.StatPlace(l.FD(), up, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != l.Mount {
			return out
		}
		here := place{dev: sys.Dev(&st), ino: st.Ino}
		if here == last || stop[here] {
			return out
		}
		out = append(out, here)
		last = here
	}
}
