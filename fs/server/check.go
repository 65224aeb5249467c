package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/fs/fusefs"
	"plyfs/internal/exit"
	"plyfs/internal/sys"
)

// place is where a directory is: two paths with equal dev and ino are one directory.
type place struct {
	dev, ino uint64
}

// Check refuses what the kernel's overlayfs refuses of a set of layers, before anything is written. What p tolerates comes back
// as warnings.
func (s *Stack) Check(p Personality) (warnings []string, err error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	if s.Work != nil && !s.readOnly {
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

// Distinct refuses a stack that has a directory twice.
func (s *Stack) Distinct() error {
	_, err := s.roots()
	return err
}

// roots maps the layers' places to how they were given. No two may be the same (cf. overlayfs super.c ovl_setup_trap).
func (s *Stack) roots() (map[place]string, error) {
	roots := make(map[place]string, len(s.Lowers)+2)
	add := func(option string, l *layer.Layer) error {
		if l == nil {
			return nil
		}
		at := place{dev: l.Dev, ino: l.Ino}
		name := option + "=" + l.Path
		if other, ok := roots[at]; ok {
			return exit.Faultf(exit.Mount, "%s and %s are the same directory; give each layer once, and a workdir of its own", other, name)
		}
		roots[at] = name
		return nil
	}
	if err := add("upperdir", s.Upper); err != nil {
		return nil, err
	}
	if err := add("workdir", s.Work); err != nil {
		return nil, err
	}
	for _, l := range s.Lowers {
		if err := add("lowerdir", l); err != nil {
			return nil, err
		}
	}
	return roots, nil
}

// checkUpper looks at what upper and work need: one writable file system, one mount (a rename can't leave it).
func (s *Stack) checkUpper() error {
	const way = "put workdir next to upperdir"
	if s.Upper.Dev != s.Work.Dev {
		return exit.Faultf(exit.Mount, "upperdir=%s and workdir=%s are on different file systems; %s", s.Upper.Path, s.Work.Path, way)
	}
	if s.Upper.Mount != 0 && s.Work.Mount != 0 && s.Upper.Mount != s.Work.Mount {
		return exit.Faultf(exit.Mount, "upperdir=%s and workdir=%s are under different mounts of one file system; %s", s.Upper.Path, s.Work.Path, way)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(s.Upper.FD(), &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return exit.Faultf(exit.Mount, "upperdir=%s is on a read-only file system; use a writable one, or add ro", s.Upper.Path)
	}
	for _, l := range []struct {
		option string
		*layer.Layer
	}{{"upperdir", s.Upper}, {"workdir", s.Work}} {
		err := unix.Faccessat(l.FD(), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
			return exit.Faultf(exit.Usage, "%s=%s: %s; the mounting user needs to write there", l.option, l.Path, exit.Reason(err))
		}
	}
	return nil
}

// checkWork wants upper and work apart from each other (cf. overlayfs super.c ovl_workdir_ok), and work outside the lower
// layers, where its temporary files would be seen. One arrangement of that kind is common and harmless enough to be
// tolerated in fuse-overlayfs's personality: buildah and podman overlay a volume that contains their own storage, upper
// and work together.
func (s *Stack) checkWork(p Personality, roots map[place]string) (warnings []string, err error) {
	upperAt := place{dev: s.Upper.Dev, ino: s.Upper.Ino}
	workAt := place{dev: s.Work.Dev, ino: s.Work.Ino}
	aboveUpper, aboveWork := ancestors(s.Upper, nil), ancestors(s.Work, nil)
	if slices.Contains(aboveWork, upperAt) {
		return nil, exit.Faultf(exit.Mount, "workdir=%s is inside upperdir=%s; put it next to upperdir", s.Work.Path, s.Upper.Path)
	}
	if slices.Contains(aboveUpper, workAt) {
		return nil, exit.Faultf(exit.Mount, "upperdir=%s is inside workdir=%s; put it next to workdir", s.Upper.Path, s.Work.Path)
	}
	for _, at := range aboveWork {
		lower, ok := roots[at]
		if !ok {
			continue
		}
		if p.name == NameFuseOverlayfs && slices.Contains(aboveUpper, at) {
			return []string{"workdir=" + s.Work.Path + " and upperdir are inside " + lower +
				": their content shows in the mount and must not be used there"}, nil
		}
		return nil, exit.Faultf(exit.Mount, "workdir=%s is inside %s; put it outside of all lower directories", s.Work.Path, lower)
	}
	return nil, nil
}

// checkIncompat refuses an upper that a volatile mount left, since what it holds may be incomplete after a crash, and one
// that was marked as beyond mounts that do not know the mark (cf. overlayfs readdir.c ovl_workdir_cleanup_recurse).
func (s *Stack) checkIncompat() error {
	const marks = cow.StageDir + "/" + cow.IncompatDir
	fd, err := sys.OpenBeneath(s.Work.FD(), marks, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return exit.Faultf(exit.Mount, "workdir=%s: %s: %s; the mounting user needs to read it", s.Work.Path, marks, exit.Reason(err))
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		if e.Name == cow.VolatileMark {
			return exit.Faultf(exit.Mount, "upperdir=%s was last used by a volatile mount and may be incomplete; start with an empty one, "+
				"or, if the system did not crash since, remove %s/%s/%s", s.Upper.Path, s.Work.Path, marks, e.Name)
		}
		return exit.Faultf(exit.Mount, "upperdir=%s has the mark of a feature that plyfs does not know; mount it with what wrote it, "+
			"or start with an empty one; the mark is %s/%s/%s", s.Upper.Path, s.Work.Path, marks, e.Name)
	})
}

// checkLowers refuses a lower layer inside another layer (cf. overlayfs super.c ovl_check_layer).
func (s *Stack) checkLowers(roots map[place]string) error {
	clean := make(map[place]bool)
	for _, l := range s.Lowers {
		for _, at := range ancestors(l, clean) {
			if outer, ok := roots[at]; ok {
				return exit.Faultf(exit.Mount, "lowerdir=%s is inside %s; layers must not overlap", l.Path, outer)
			}
			clean[at] = true
		}
	}
	return nil
}

// ancestors returns the directories above l, nearest first, up to the root of its mount, as the kernel does with dentries, or up
// to one in stop, above which nothing matters any more. It ends early at a directory that may not be searched, and where the path
// of dots gets too long for a system call, after a thousand directories.
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

// contain says whether the directory target lies in one of the layers, whatever is mounted in between. It is false where that
// can't be found out.
func (s *Stack) contain(target string) bool {
	if _, passed := fusefs.PassedFD(target); passed {
		return false
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	roots := make(map[place]bool, len(s.Lowers)+1)
	for _, l := range s.Lowers {
		roots[place{dev: l.Dev, ino: l.Ino}] = true
	}
	if s.Upper != nil {
		roots[place{dev: s.Upper.Dev, ino: s.Upper.Ino}] = true
	}
	var last place
	for up := ".."; ; up += "/.." {
		var st unix.Statx_t
		if sys.StatKnown(fd, up, unix.STATX_INO, &st) != nil {
			return false
		}
		here := place{dev: sys.Dev(&st), ino: st.Ino}
		if roots[here] || here == last {
			return roots[here]
		}
		last = here
	}
}
