package fsck

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// inode identifies a file or directory of any layer.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Statx_t) inode { return inode{sys.Dev(st), st.Ino} }

// frame is a directory on the way from the upper's root to where the walk is.
type frame struct {
	// path is the length of walk.path for this directory.
	path int
	// below are the lowers that merge into it.
	below []lowerDir
	// lower is the topmost of them, zero for none.
	lower inode
	// opaque says that the directory hides the lowers.
	opaque bool
	// subdirs are those that are still to be visited.
	subdirs []string
	// impure and specials say that the directory announces objects with an origin, escaped devices. originIn and
	// specialIn are the namespaces in which it holds such, nil for none.
	impure, specials    bool
	originIn, specialIn *ovl.Names
}

// walk visits every directory of the upper, the deepest first to be finished.
type walk struct {
	c     *checker
	path  []byte // of the top of the stack, without slashes at the ends
	stack []frame
	// redirects are the places of lower directories that redirects lead to.
	redirects map[inode]string
	// needless counts the opaque directories that no lower has; firstNeedless is the place of one.
	needless      uint64
	firstNeedless string
}

// checkUpper looks at every object of the upper.
func (c *checker) checkUpper() error {
	w := &walk{c: c, redirects: map[inode]string{}}
	if err := w.enter(""); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		last := len(top.subdirs) - 1
		if last < 0 {
			w.leave()
			continue
		}
		name := top.subdirs[last]
		top.subdirs = top.subdirs[:last]
		if err := w.enter(name); err != nil {
			return err
		}
	}
	w.reportNeedless()
	return nil
}

// pathOf is the path of name in the directory at the top of the stack, "." for the upper's root.
func (w *walk) pathOf(name string) string {
	switch {
	case len(w.path) == 0 && name == "":
		return "."
	case name == "":
		return string(w.path)
	case len(w.path) == 0:
		return name
	}
	return string(w.path) + "/" + name
}

// enter visits the directory name below the top of the stack, and puts it there.
func (w *walk) enter(name string) error {
	path := w.pathOf(name)
	if path == "." {
		path = ""
	}
	if err := w.c.progress("upper", path); err != nil {
		return err
	}
	if err := w.visit(name, path); err != nil {
		w.c.unreadable(InUpper, pathOrRoot(path), err)
	}
	return nil
}

// visit checks the directory at path, called name in the directory at the top of the stack, and then what it holds. The
// directory is put on the stack.
func (w *walk) visit(name, path string) error {
	c := w.c
	fd, err := c.opt.Upper.OpenDir(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := readMarks(fd, ".")
	if err != nil {
		return err
	}
	c.sum.Objects++
	c.sum.Directories++
	f := frame{path: len(path), impure: m.impure != nil, specials: m.specials != nil}
	if err := w.checkDir(&f, fd, name, path, &m); err != nil {
		return err
	}
	w.stack = append(w.stack, f)
	w.path = append(w.path[:0], path...)
	return w.list(fd)
}

// list checks what the directory at the top of the stack holds.
func (w *walk) list(fd int) error {
	c, top := w.c, &w.stack[len(w.stack)-1]
	below := &mergedDir{}
	if c.withLowers() && len(top.below) > 0 {
		var err error
		if below, err = c.lowers.open(top.below); err != nil {
			return err
		}
		defer below.close()
	}
	return layer.List(fd, func(e layer.RawDirent) error {
		o := object{w: w, dirfd: fd, name: e.Name, below: below}
		err := o.check()
		if err != nil && !errors.Is(err, unix.ENOENT) {
			c.unreadable(InUpper, w.pathOf(e.Name), err)
		}
		if o.descend {
			top.subdirs = append(top.subdirs, e.Name)
		}
		return c.ctx.Err()
	})
}

// leave takes the finished directory off the stack, and checks what could be known only now.
func (w *walk) leave() {
	c, f := w.c, w.stack[len(w.stack)-1]
	if ns := f.originIn; ns != nil && !f.impure {
		c.report(Finding{
			Severity: Note, Class: ImpureUnmarked, Layer: InUpper, Path: w.pathOf(""),
			Explanation: "holds copied-up objects and is not marked impure: the kernel's overlayfs may list other inode numbers",
			Repair:      "marks it",
		}, func() error { return w.markDir(ns.Impure) })
	}
	if ns := f.specialIn; ns != nil && !f.specials {
		c.report(Finding{
			Severity: Error, Class: SpecialsUnmarked, Layer: InUpper, Path: w.pathOf(""),
			Explanation: "holds an escaped 0:0 device and is not marked so: the device may show as an empty file",
			Repair:      "marks it",
		}, func() error { return w.markDir(ns.Specials) })
	}
	w.stack = w.stack[:len(w.stack)-1]
	if up := len(w.stack) - 1; up >= 0 {
		w.path = w.path[:w.stack[up].path]
	}
}

// markDir sets a mark on the directory at the top of the stack.
func (w *walk) markDir(attr string) error {
	fd, err := w.c.opt.Upper.OpenDir(string(w.path))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return w.c.m.Setxattr(fd, ".", attr, ovl.OpaqueValue(), 0)
}
