package fsck

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// object is one entry of an upper directory.
type object struct {
	w     *walk
	dirfd int
	name  string
	// below is what the lowers have of the directory; without parts if there is nothing, or nothing is known.
	below *mergedDir
	st    unix.Statx_t
	m     marks
	// descend says that it is a directory to visit.
	descend bool
}

func (o *object) path() string { return o.w.pathOf(o.name) }

func (o *object) frame() *frame { return &o.w.stack[len(o.w.stack)-1] }

// finding is one about this object.
func (o *object) finding(s Severity, class Class, explanation string) Finding {
	return Finding{Severity: s, Class: class, Layer: InUpper, Path: o.path(), Explanation: explanation}
}

// check looks at the object; a directory's own marks are looked at when it is visited.
func (o *object) check() error {
	c := o.w.c
	if err := c.opt.Upper.Stat(o.dirfd, o.name, &o.st); err != nil {
		return err
	}
	if isDevice(c.opt.Upper, o.dirfd, o.name, &o.st) {
		c.sum.Objects++
		return o.checkWhiteout(o.name, true)
	}
	if ovl.IsAUFSName(o.name) && isAUFS(o.dirfd, o.name, &o.st) {
		c.sum.Objects++
		return o.checkAUFS()
	}
	if o.st.Mode&unix.S_IFMT == unix.S_IFDIR {
		o.descend = true
		return nil
	}
	c.sum.Objects++
	var err error
	if o.m, err = readMarks(o.dirfd, o.name); err != nil {
		return err
	}
	regular := o.st.Mode&unix.S_IFMT == unix.S_IFREG
	if regular && o.st.Size == 0 && o.m.whiteout != nil {
		return o.checkWhiteout(o.name, true)
	}
	if o.m.origin != nil {
		o.w.checkOrigin(o.dirfd, o.name, o.path(), &o.m)
		o.frame().originIn = o.m.origin.ns
	}
	if o.m.special != nil && regular && o.st.Size == 0 {
		o.frame().specialIn = o.m.special.ns
	}
	if o.m.nlink != nil {
		o.checkNlink()
	}
	if o.m.metacopy != nil && !regular {
		c.reportMetacopyType(o.dirfd, o.name, o.path())
	} else if o.m.metacopy != nil {
		if err := o.checkMetacopy(); err != nil {
			return err
		}
	}
	if o.m.unsynced != nil && regular {
		return c.checkUnsynced(InUpper, o.path(), o.dirfd, o.name, &o.m)
	}
	return nil
}

// checkWhiteout looks for what a whiteout hides. The kernel's forms are listed by its overlayfs where nothing is to be
// hidden.
func (o *object) checkWhiteout(victim string, kernelForm bool) error {
	c := o.w.c
	remove := func() error { return c.unlinkMark(o.dirfd, o.name) }
	if o.frame().opaque {
		f := o.finding(Note, WhiteoutInOpaque, "is a whiteout in a directory that hides the lowers already")
		if kernelForm {
			f.Severity = Error
			f.Explanation += ": the kernel's overlayfs lists it as an entry that does not exist"
		}
		f.Repair = "removes it"
		c.report(f, remove)
		return nil
	}
	if !c.withLowers() {
		return nil
	}
	found, err := o.below.find(victim)
	if err != nil || found.ok {
		return err
	}
	f := o.finding(Note, WhiteoutWithoutVictim, "is a whiteout, and no lower has "+victim)
	f.Repair = "removes it"
	c.report(f, remove)
	return nil
}

// unlinkMark removes an entry that no mount shows, and gives its directory its times back: nothing changed that anybody
// could see.
func (c *checker) unlinkMark(dirfd int, name string) error {
	var st unix.Statx_t
	if err := sys.Statx(dirfd, "", &st); err != nil {
		return err
	}
	if err := c.m.Unlink(dirfd, name); err != nil {
		return err
	}
	return c.m.Utimes(dirfd, ".", sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec())
}

// checkAUFS looks at what has a name of the AUFS form and is not an application's.
func (o *object) checkAUFS() error {
	if o.name == ovl.AUFSOpaque && o.st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil // part of its directory's marks
	}
	victim, ok := ovl.AUFSVictim(o.name)
	if !ok && o.st.Mode&unix.S_IFMT == unix.S_IFREG {
		victim, ok = ovl.AUFSLiteralVictim(o.name)
	}
	f := o.finding(Note, HiddenName, "is taken for bookkeeping of AUFS, and does not show in a mount")
	f.Remedy = "if an application is to see it, rename it in the upper while nothing is mounted; else remove it there"
	switch {
	case !ok:
	case o.st.Size > 0:
		f.Explanation = fmt.Sprintf("is taken for a whiteout of %s, and its %d bytes do not show in a mount",
			victim, o.st.Size)
	default:
		return o.checkWhiteout(victim, false)
	}
	o.w.c.report(f, nil)
	return nil
}

// checkOrigin reports an origin that can't be read.
func (w *walk) checkOrigin(dirfd int, name, path string, m *marks) {
	_, err := ovl.ParseOrigin(m.origin.value)
	if err == nil || errors.Is(err, ovl.ErrNoOrigin) {
		return
	}
	w.c.report(Finding{
		Severity: Error, Class: OriginMalformed, Layer: InUpper, Path: pathOrRoot(path),
		Explanation: err.Error() + ": the inode number is another than before copy-up",
		Repair:      "removes the attribute",
	}, func() error {
		return w.c.dropAttr(dirfd, name, func(ns *ovl.Names) string { return ns.Origin })
	})
}

// checkNlink reports a link count that can't be read, of a file that is not in the index: of one that is, checkIndex
// did.
func (o *object) checkNlink() {
	c := o.w.c
	_, err := ovl.ParseNlink(o.m.nlink.value)
	if err == nil || c.indexed(&o.st, &o.m) {
		return
	}
	f := o.finding(Error, NlinkMalformed, err.Error())
	f.Repair = "removes the attribute"
	c.report(f, func() error {
		return c.dropAttr(o.dirfd, o.name, func(ns *ovl.Names) string { return ns.Nlink })
	})
}

// indexed says whether the upper object is the one that the index has for its origin.
func (c *checker) indexed(st *unix.Statx_t, m *marks) bool {
	if c.index < 0 || m.origin == nil {
		return false
	}
	o, err := ovl.ParseOrigin(m.origin.value)
	if err != nil {
		return false
	}
	var ist unix.Statx_t
	return sys.Statx(c.index, o.IndexName(), &ist) == nil && inodeOf(&ist) == inodeOf(st)
}
