package fsck

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// lowers are the lower layers, topmost first, seen as one tree.
type lowers []*layer.Layer

// place is a directory of a layer, as a chain of names that its descendants share; nil is the root.
type place struct {
	parent *place
	name   string
}

// path is relative to the layer's root, "" for the root itself.
func (p *place) path() string {
	var names []string
	for ; p != nil; p = p.parent {
		names = append(names, p.name)
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// lowerDir is a directory of one lower that takes part in a merged one.
type lowerDir struct {
	layer int
	at    *place
	// xwhiteouts says that it may hold whiteouts in attribute form.
	xwhiteouts bool
}

// roots are the roots of the layers from index first on.
func (ls lowers) roots(first int) ([]lowerDir, error) {
	var ds []lowerDir
	for i := first; i < len(ls); i++ {
		m, err := readMarks(ls[i].FD(), ".")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ls[i].Path, err)
		}
		ds = append(ds, lowerDir{layer: i, xwhiteouts: m.xwhiteouts()})
		if m.isOpaque() || hasAUFS(ls[i].FD(), ovl.AUFSOpaque) {
			break
		}
	}
	return ds, nil
}

// mergedDir is a merged directory of the lowers, open: one descriptor for each that takes part.
type mergedDir struct {
	ls   lowers
	dirs []lowerDir
	fds  []int
}

// open opens the directories. The caller closes the result.
func (ls lowers) open(dirs []lowerDir) (*mergedDir, error) {
	o := &mergedDir{ls: ls, dirs: dirs}
	for _, d := range dirs {
		path := d.at.path()
		fd, err := ls[d.layer].OpenDir(path)
		if err != nil {
			o.close()
			return nil, fmt.Errorf("%s in lower %s: %w", path, ls[d.layer].Path, err)
		}
		o.fds = append(o.fds, fd)
	}
	return o, nil
}

func (o *mergedDir) close() {
	for _, fd := range o.fds {
		unix.Close(fd)
	}
	o.fds = nil
}

// lowerObject is what the merged lowers show under one name.
type lowerObject struct {
	// ok says that there is something.
	ok bool
	// in is the index into the merged directory's parts of the topmost one that has it.
	in int
	// st describes it, in the words of its layer.
	st unix.Statx_t
	// dirs are the directories that merge, topmost first; nil for another object.
	dirs []lowerDir
}

func (f *lowerObject) regular() bool { return f.ok && f.st.Mode&unix.S_IFMT == unix.S_IFREG }

// maxRedirects is how many redirects one look at the lowers may follow, as in package union: those of a hostile image would take a time
// that doubles with each layer.
const maxRedirects = 4096

// redirects counts those that one look at the lowers has followed.
type redirects int

// find looks for name (cf. overlayfs namei.c ovl_lookup_layer). The error is ELOOP where too many redirects lead there.
func (o *mergedDir) find(name string) (lowerObject, error) { return o.findWithin(name, new(redirects)) }

func (o *mergedDir) findWithin(name string, count *redirects) (f lowerObject, err error) {
	for i := range o.dirs {
		st, kind, err := o.probe(i, name)
		if err != nil {
			return f, err
		}
		switch kind {
		case kindNone:
			continue
		case kindWhiteout:
			return f, nil
		}
		if !f.ok {
			f.ok, f.in, f.st = true, i, st
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return f, nil // ends the merge, or is all there is
		}
		more, err := o.merge(&f, i, name, kind, count)
		if err != nil || !more {
			return f, err
		}
	}
	return f, nil
}

// merge adds the directory name of the i-th part, which is of the given kind, to f; more says that the parts below
// are to be looked at too.
func (o *mergedDir) merge(f *lowerObject, i int, name string, kind int, count *redirects) (more bool, err error) {
	d := o.dirs[i]
	fd, err := sys.Openat(o.fds[i], name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	m, err := readMarks(fd, ".")
	if err != nil {
		return false, err
	}
	at := &place{parent: d.at, name: name}
	if last := len(f.dirs) - 1; last >= 0 && f.dirs[last].at.parent == d.at && f.dirs[last].at.name == name {
		at = f.dirs[last].at
	}
	f.dirs = append(f.dirs, lowerDir{layer: d.layer, at: at, xwhiteouts: m.xwhiteouts()})
	switch {
	case m.isOpaque() || hasAUFS(fd, ovl.AUFSOpaque) || kind == kindBeside:
		return false, nil
	case m.redirect == nil:
		return true, nil
	}
	r, err := ovl.ParseRedirect(m.redirect.value)
	if err != nil {
		return false, fmt.Errorf("%s in lower %s: %w", at.path(), o.ls[d.layer].Path, err)
	}
	if *count++; *count > maxRedirects {
		return false, fmt.Errorf("more than %d redirects lead to one directory: %w", maxRedirects, unix.ELOOP)
	}
	var rest []lowerDir
	if r.Absolute {
		rest, err = o.ls.walkWithin(d.layer+1, r.Path, count)
	} else {
		var below lowerObject
		below, err = o.ls.lookupWithin(o.dirs[i+1:], r.Path, count)
		rest = below.dirs
	}
	f.dirs = append(f.dirs, rest...)
	return false, err
}

// What a lower has under a name.
const (
	kindNone = iota
	kindWhiteout
	kindObject
	// kindBeside is an object that an AUFS whiteout of its layer keeps apart from the layers below.
	kindBeside
)

// probe looks for name in the i-th part.
func (o *mergedDir) probe(i int, name string) (st unix.Statx_t, kind int, err error) {
	fd, l := o.fds[i], o.ls[o.dirs[i].layer]
	beside := !ovl.IsAUFSName(name) && hasAUFS(fd, ovl.AUFSWhiteout(name))
	err = l.Stat(fd, name, &st)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG):
		if beside {
			return st, kindWhiteout, nil
		}
		return st, kindNone, nil
	case err != nil:
		return st, kindNone, fmt.Errorf("%s in lower %s: %w", name, l.Path, err)
	case isDevice(l, fd, name, &st), o.dirs[i].xwhiteouts && isXWhiteout(fd, name, &st):
		return st, kindWhiteout, nil
	case ovl.IsAUFSName(name) && isAUFS(fd, name, &st):
		return st, kindNone, nil
	case beside:
		return st, kindBeside, nil
	}
	return st, kindObject, nil
}

// lookup is find in a merged directory that is opened for it.
func (ls lowers) lookup(dirs []lowerDir, name string) (lowerObject, error) {
	return ls.lookupWithin(dirs, name, new(redirects))
}

func (ls lowers) lookupWithin(dirs []lowerDir, name string, count *redirects) (lowerObject, error) {
	o, err := ls.open(dirs)
	if err != nil {
		return lowerObject{}, err
	}
	defer o.close()
	return o.findWithin(name, count)
}

// walkFrom finds the merged directory path in the layers from index first on; nil if there is none.
func (ls lowers) walkFrom(first int, path string) ([]lowerDir, error) {
	return ls.walkWithin(first, path, new(redirects))
}

func (ls lowers) walkWithin(first int, path string, count *redirects) ([]lowerDir, error) {
	at, err := ls.roots(first)
	for err == nil && path != "" && len(at) > 0 {
		name, rest, _ := strings.Cut(path, "/")
		var f lowerObject
		f, err = ls.lookupWithin(at, name, count)
		at, path = f.dirs, rest
	}
	return at, err
}

// isDevice says whether an object, which st describes in the words of its layer, is a whiteout in the device form: a placeholder that an
// attribute makes a 0:0 device is an application's.
func isDevice(l *layer.Layer, dirfd int, name string, st *unix.Statx_t) bool {
	if !layer.IsWhiteoutDevice(st) || l.Override() == "" {
		return layer.IsWhiteoutDevice(st)
	}
	var raw unix.Statx_t
	return sys.Statx(dirfd, name, &raw) == nil && layer.IsWhiteoutDevice(&raw)
}

// isXWhiteout says whether an object is a whiteout in attribute form.
func isXWhiteout(dirfd int, name string, st *unix.Statx_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 &&
		hasAttr(dirfd, name, func(ns *ovl.Names) string { return ns.Whiteout })
}

// isAUFS says whether an object with a name of the AUFS form is of that form, and not an application's.
func isAUFS(dirfd int, name string, st *unix.Statx_t) bool {
	typ := st.Mode & unix.S_IFMT
	if typ != unix.S_IFREG && !(typ == unix.S_IFDIR && ovl.IsAUFSBookkeeping(name)) {
		return false
	}
	return !hasAttr(dirfd, name, func(ns *ovl.Names) string { return ns.Literal })
}

// hasAUFS says whether the directory holds a whiteout or sentinel of the AUFS form called wh.
func hasAUFS(dirfd int, wh string) bool {
	var st unix.Statx_t
	return sys.Statx(dirfd, wh, &st) == nil && isAUFS(dirfd, wh, &st)
}

func hasAttr(dirfd int, name string, attrOf func(*ovl.Names) string) bool {
	for _, ns := range namespaces() {
		if _, err := sys.Getxattrat(dirfd, name, attrOf(ns), nil); err == nil {
			return true
		}
	}
	return false
}

// fileAt finds the topmost object at path in the layers from index first on, and the directory that holds it.
func (ls lowers) fileAt(first int, path string) (lowerObject, lowerDir, error) {
	dir, base := splitPath(path)
	at, err := ls.walkFrom(first, dir)
	if err != nil {
		return lowerObject{}, lowerDir{}, err
	}
	return ls.fileIn(at, base)
}

// fileIn finds the object name in the merged directory at, and the directory that holds it.
func (ls lowers) fileIn(at []lowerDir, name string) (lowerObject, lowerDir, error) {
	if len(at) == 0 {
		return lowerObject{}, lowerDir{}, nil
	}
	f, err := ls.lookup(at, name)
	if err != nil || !f.ok {
		return f, lowerDir{}, err
	}
	return f, at[f.in], nil
}
