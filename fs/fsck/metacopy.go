package fsck

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// metacopyHeader is the length of a metacopy value without digest, maxDigest that of the longest digest (cf. overlayfs
// overlayfs.h struct ovl_metacopy).
const (
	metacopyHeader = 4
	maxDigest      = 64
)

// validMetacopy says whether the kernel's overlayfs takes the value of a metacopy attribute: empty, or version, length,
// flags, digest algorithm and digest (cf. util.c ovl_check_metacopy_xattr).
func validMetacopy(v []byte) bool {
	if len(v) == 0 {
		return true
	}
	return len(v) >= metacopyHeader && len(v) <= metacopyHeader+maxDigest && v[0] == 0 && int(v[1]) == len(v)
}

// reportMetacopyType reports an object that can't be a metadata-only copy.
func (c *checker) reportMetacopyType(dirfd int, name, path string) {
	c.report(Finding{
		Severity: Error, Class: MetacopyNotRegular, Layer: InUpper, Path: path,
		Explanation: "is marked as a metadata-only copy, and is no regular file", Repair: "takes the mark off",
	}, func() error {
		return c.dropAttr(dirfd, name, func(ns *ovl.Names) string { return ns.Metacopy })
	})
}

// checkMetacopy looks for the data of a metadata-only copy.
func (o *object) checkMetacopy() error {
	c := o.w.c
	if v := o.m.metacopy; !validMetacopy(v.value) {
		f := o.finding(Error, MetacopyMalformed, fmt.Sprintf(
			"has a malformed metacopy attribute of %d bytes: the kernel's overlayfs can't read the file", len(v.value)))
		f.Repair = "writes the empty value"
		c.report(f, func() error { return c.m.Setxattr(o.dirfd, o.name, v.ns.Metacopy, ovl.MetacopyValue(), 0) })
	}
	redirect := ovl.Redirect{Path: o.name}
	if a := o.m.redirect; a != nil {
		r, err := ovl.ParseRedirect(a.value)
		if err != nil {
			f := o.finding(Error, RedirectMalformed, err.Error()+": the data of this metadata-only copy is not found")
			f.Remedy = wayToData
			c.report(f, nil)
			return nil //nolint:nilerr // it is the finding
		}
		redirect = r
	}
	if !c.withLowers() {
		return nil
	}
	fd, err := o.openData(redirect)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	if !errors.Is(err, errNoData) {
		return err
	}
	f := o.finding(Error, MetacopyWithoutData, fmt.Sprintf("is a metadata-only copy, and %v: reading it fails", err))
	f.Remedy = wayToData
	c.report(f, nil)
	return nil
}

const wayToData = "mount with all lowers that the upper was used with; if the data is lost, restore the file from a " +
	"backup and remove this one in a mount"

// errNoData says that the lowers have no data of a metadata-only copy.
var errNoData = errors.New("no regular file of the lowers holds its data")

// openData opens the lower file that holds the data of a metadata-only copy.
func (o *object) openData(r ovl.Redirect) (int, error) {
	c := o.w.c
	if r.Absolute {
		return c.lowers.openData(0, r.Path)
	}
	found, err := o.below.find(r.Path)
	if err != nil {
		return -1, err
	}
	if !found.regular() {
		return -1, errNoData
	}
	return c.lowers.openFile(o.below.dirs[found.in], r.Path)
}

// openData opens the file with the data of path in the layers from index first on; errNoData if there is none.
func (ls lowers) openData(first int, path string) (int, error) {
	found, dir, err := ls.fileAt(first, path)
	if err != nil {
		return -1, err
	}
	if !found.regular() {
		return -1, errNoData
	}
	_, name := splitPath(path)
	return ls.openFile(dir, name)
}

// openFile opens the regular file name in a directory of a lower, or where that is a metadata-only copy itself, the
// file of a deeper layer that has the data. Each step leads to a deeper layer.
func (ls lowers) openFile(dir lowerDir, name string) (int, error) {
	for {
		fd, err := openReg(ls, dir, name)
		if err != nil {
			return -1, err
		}
		m, err := readMarks(fd, "")
		if err != nil || m.metacopy == nil {
			return closeOn(fd, err)
		}
		unix.Close(fd)
		r := ovl.Redirect{Path: name}
		if m.redirect != nil {
			if r, err = ovl.ParseRedirect(m.redirect.value); err != nil {
				return -1, fmt.Errorf("%w: %w in lower %s", errNoData, err, ls[dir.layer].Path)
			}
		}
		found, next, err := ls.below(dir, r)
		if err != nil {
			return -1, err
		}
		if !found.regular() {
			return -1, errNoData
		}
		dir = next
		_, name = splitPath(r.Path)
	}
}

// below finds what the lowers further down than the directory dir have where r leads from there: a name leads to dir itself, which
// may be called otherwise there.
func (ls lowers) below(dir lowerDir, r ovl.Redirect) (lowerObject, lowerDir, error) {
	if r.Absolute {
		return ls.fileAt(dir.layer+1, r.Path)
	}
	at, err := ls.walkFrom(dir.layer, dir.at.path())
	if err != nil {
		return lowerObject{}, lowerDir{}, err
	}
	for len(at) > 0 && at[0].layer <= dir.layer {
		at = at[1:]
	}
	return ls.fileIn(at, r.Path)
}

func openReg(ls lowers, dir lowerDir, name string) (int, error) {
	dirfd, err := ls[dir.layer].OpenDir(dir.at.path())
	if err != nil {
		return -1, err
	}
	defer unix.Close(dirfd)
	return sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK)
}

func closeOn(fd int, err error) (int, error) {
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
