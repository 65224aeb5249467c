package fsck

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// checkDir checks the marks of an upper directory, and finds the lowers that merge into it: f.below. fd is the
// directory, name what it is called in the one at the top of the stack.
func (w *walk) checkDir(f *frame, fd int, name, path string, m *marks) error {
	c := w.c
	var parent *frame
	if len(w.stack) > 0 {
		parent = &w.stack[len(w.stack)-1]
	}
	if m.origin != nil {
		w.checkOrigin(fd, ".", path, m)
		if parent != nil {
			parent.originIn = m.origin.ns
		}
	}
	if m.metacopy != nil {
		c.reportMetacopyType(fd, ".", pathOrRoot(path))
	}
	sentinel := hasAUFS(fd, ovl.AUFSOpaque)
	f.opaque = m.isOpaque() || sentinel
	if m.isOpaque() && sentinel {
		c.report(Finding{
			Severity: Note, Class: OpaqueTwice, Layer: InUpper, Path: joined(path, ovl.AUFSOpaque),
			Explanation: "the AUFS sentinel repeats what an attribute of the directory says", Repair: "removes it",
		}, func() error { return c.unlinkMark(fd, ovl.AUFSOpaque) })
	}
	natural, err := w.naturalLowers(parent, name)
	if err != nil {
		return err
	}
	switch {
	case f.opaque:
		if c.withLowers() && !natural.ok {
			if w.needless++; w.needless == 1 {
				w.firstNeedless = path
			}
		}
	case m.redirect != nil:
		return w.checkRedirect(f, fd, name, path, m.redirect)
	default:
		f.below = natural.dirs
		return w.noteLower(f)
	}
	return nil
}

// naturalLowers is what the lowers have under the directory's own name.
func (w *walk) naturalLowers(parent *frame, name string) (lowerObject, error) {
	c := w.c
	if !c.withLowers() {
		return lowerObject{}, nil
	}
	if parent == nil {
		dirs, err := c.lowers.roots(0)
		return lowerObject{ok: true, dirs: dirs}, err
	}
	if len(parent.below) == 0 {
		return lowerObject{}, nil
	}
	return c.lowers.lookup(parent.below, name)
}

// noteLower remembers which lower directory is the topmost that merges.
func (w *walk) noteLower(f *frame) error {
	if len(f.below) == 0 {
		return nil
	}
	at, err := w.c.lowers.identify(f.below[0])
	f.lower = at
	return err
}

// identify says which inode a directory of a lower is.
func (ls lowers) identify(d lowerDir) (inode, error) {
	fd, err := ls[d.layer].OpenDir(d.at.path())
	if err != nil {
		return inode{}, fmt.Errorf("%s in lower %s: %w", d.at.path(), ls[d.layer].Path, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	err = sys.Statx(fd, "", &st)
	return inodeOf(&st), err
}

// reportNeedless reports the opaque directories that no lower has, all at once: the kernel's overlayfs makes each new
// directory so (cf. dir.c ovl_create_upper), so that there may be as many as directories.
func (w *walk) reportNeedless() {
	if w.needless == 0 {
		return
	}
	f := Finding{
		Severity: Note, Class: OpaqueWithoutLower, Layer: InUpper, Path: w.firstNeedless,
		Explanation: "is opaque, and no lower has that name", Remedy: "nothing needs to be done",
	}
	if more := w.needless - 1; more > 0 {
		f.Explanation += fmt.Sprintf(", nor those of %d further opaque directories", more)
	}
	w.c.report(f, nil)
}

// checkRedirect follows the redirect of a directory and reports one that leads nowhere or to what is shown elsewhere.
func (w *walk) checkRedirect(f *frame, fd int, name, path string, a *attr) error {
	c := w.c
	bad := Finding{
		Severity: Error, Class: RedirectMalformed, Layer: InUpper, Path: pathOrRoot(path),
		Repair: "makes the directory opaque instead: it then shows what the upper holds of it",
	}
	opaque := func() error {
		// Opaque first: a crash in between leaves both, and opaque counts.
		if err := c.m.Setxattr(fd, ".", a.ns.Opaque, ovl.OpaqueValue(), 0); err != nil {
			return err
		}
		return c.dropAttr(fd, ".", func(ns *ovl.Names) string { return ns.Redirect })
	}
	r, err := ovl.ParseRedirect(a.value)
	if err != nil {
		bad.Explanation = err.Error() + ": the directory can't be looked up"
		c.report(bad, func() error {
			err := opaque()
			f.opaque = err == nil && !c.withLowers() // with them, whiteouts in it are found to have no victim
			return err
		})
		return nil //nolint:nilerr // it is the finding
	}
	if !c.withLowers() {
		return nil
	}
	if r.Absolute {
		f.below, err = c.lowers.walkFrom(0, r.Path)
	} else if len(w.stack) > 0 {
		var there lowerObject
		there, err = c.lowers.lookup(w.stack[len(w.stack)-1].below, r.Path)
		f.below = there.dirs
	}
	if err != nil {
		return err
	}
	if len(f.below) == 0 {
		bad.Class = RedirectDangling
		bad.Explanation = fmt.Sprintf("is redirected to %q, which is no directory of the lowers", a.value)
		c.report(bad, opaque)
		return nil
	}
	if err := w.noteLower(f); err != nil {
		return err
	}
	return w.checkShared(f, name, path, r)
}

// checkShared reports a redirect to a lower directory that another place of the union shows too.
func (w *walk) checkShared(f *frame, name, path string, r ovl.Redirect) error {
	bad := Finding{
		Severity: Error, Class: RedirectShared, Layer: InUpper, Path: path,
		Remedy: "move what is needed out of one of the two in a mount, and remove that one there",
	}
	for i := range w.stack {
		if w.stack[i].lower == f.lower {
			bad.Class = RedirectLoop
			bad.Explanation = fmt.Sprintf("is redirected to %q, the directory that %s above it shows: it contains itself",
				r.Value(), pathOrRoot(string(w.path[:w.stack[i].path])))
			w.c.report(bad, nil)
			return nil
		}
	}
	if other, ok := w.redirects[f.lower]; ok {
		bad.Explanation = fmt.Sprintf("is redirected to %q, and so is %s: what the lowers have there shows twice",
			r.Value(), other)
		w.c.report(bad, nil)
		return nil
	}
	w.redirects[f.lower] = path
	old := r.Path
	if !r.Absolute {
		old = joined(string(w.path), r.Path)
	}
	if old == path {
		return nil // the mark is set before the directory moves, and true then
	}
	shown, err := w.c.shows(old, f.lower)
	if err == nil && shown {
		bad.Explanation = fmt.Sprintf("is redirected to %q, which shows at %s too: the whiteout there is missing",
			r.Value(), old)
		w.c.report(bad, nil)
	}
	return err
}

// shows says whether the union has a directory at path of which the topmost lower is want.
func (c *checker) shows(path string, want inode) (bool, error) {
	at := unionDir{upper: true}
	var err error
	if at.below, err = c.lowers.roots(0); err != nil {
		return false, err
	}
	for rest := path; rest != ""; {
		name, tail, _ := strings.Cut(rest, "/")
		next, ok, err := c.step(at, name)
		if err != nil || !ok {
			return false, err
		}
		at, rest = next, tail
	}
	if len(at.below) == 0 {
		return false, nil
	}
	id, err := c.lowers.identify(at.below[0])
	return id == want, err
}
