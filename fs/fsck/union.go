package fsck

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// unionDir is a directory of the union: what the upper has of it, and the lowers that merge below.
type unionDir struct {
	// upper says that the upper has the directory, at the place at.
	upper bool
	at    *place
	below []lowerDir
}

// step finds the directory name in the union's directory d; ok is false if the union shows no directory of that name.
func (c *checker) step(d unionDir, name string) (next unionDir, ok bool, err error) {
	fd := -1
	if d.upper {
		if fd, err = c.opt.Upper.OpenDir(d.at.path()); err != nil {
			return next, false, err
		}
		defer unix.Close(fd)
	}
	below, err := c.lowers.open(d.below)
	if err != nil {
		return next, false, err
	}
	defer below.close()
	return c.stepAt(d, fd, below, name)
}

// stepAt is step in an open directory; upperFD is -1 where the upper has nothing of it.
func (c *checker) stepAt(d unionDir, upperFD int, below *mergedDir, name string) (next unionDir, ok bool, err error) {
	kind, err := c.upperKind(upperFD, name)
	if err != nil || kind == kindWhiteout {
		return next, false, err
	}
	if kind == kindNone {
		f, err := below.find(name)
		return unionDir{below: f.dirs}, f.dirs != nil, err
	}
	fd, err := sys.Openat(upperFD, name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return next, false, nil
	}
	if err != nil {
		return next, false, err
	}
	defer unix.Close(fd)
	m, err := readMarks(fd, ".")
	if err != nil {
		return next, false, err
	}
	next = unionDir{upper: true, at: &place{parent: d.at, name: name}}
	if m.isOpaque() || hasAUFS(fd, ovl.AUFSOpaque) || kind == kindBeside {
		return next, true, nil
	}
	next.below, err = c.lowersOf(below, name, m.redirect)
	return next, err == nil, err
}

// lowersOf are the lowers that merge below the upper directory name.
func (c *checker) lowersOf(below *mergedDir, name string, redirect *attr) ([]lowerDir, error) {
	if redirect != nil {
		r, err := ovl.ParseRedirect(redirect.value)
		switch {
		case err != nil:
			return nil, nil //nolint:nilerr // reported when the directory itself is checked
		case r.Absolute:
			return c.lowers.walkFrom(0, r.Path)
		}
		name = r.Path
	}
	f, err := below.find(name)
	return f.dirs, err
}

// upperKind says what the upper directory behind fd has under name; nothing where fd is -1.
func (c *checker) upperKind(fd int, name string) (int, error) {
	if fd < 0 {
		return kindNone, nil
	}
	beside := !ovl.IsAUFSName(name) && hasAUFS(fd, ovl.AUFSWhiteout(name))
	var st unix.Statx_t
	err := c.opt.Upper.Stat(fd, name, &st)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG):
		if beside {
			return kindWhiteout, nil
		}
		return kindNone, nil
	case err != nil:
		return kindNone, err
	case isDevice(c.opt.Upper, fd, name, &st) || isXWhiteout(fd, name, &st), ovl.IsAUFSName(name) && isAUFS(fd, name, &st):
		return kindWhiteout, nil
	case beside:
		return kindBeside, nil
	}
	return kindObject, nil
}
