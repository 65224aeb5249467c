package fsck

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// linkKey is a lower inode, by the UUID of its file system and, on btrfs, the subvolume.
type linkKey struct {
	uuid   [16]byte
	subvol uint64
	ino    uint64
}

// linkCount counts the names of a lower inode that is in the index.
type linkCount struct {
	// lower is the link count of the lower inode, 0 if none of its names was met.
	lower uint32
	// shown are the names that the lowers show and the upper leaves alone, covered those that the upper hides.
	shown, covered uint32
}

// checkLinks counts the names of what is in the index and compares with what is stored.
func (c *checker) checkLinks() error {
	if c.index < 0 || c.live {
		return nil
	}
	if len(c.links) > 0 && c.withLowers() {
		if err := c.countLinks(); err != nil {
			return err
		}
		if err := c.searchHidden(); err != nil {
			return err
		}
	}
	return c.listIndex(func(name string, st *unix.Statx_t) error {
		key, _, err := keyOf(name)
		if err != nil {
			return nil //nolint:nilerr // reported by checkIndex
		}
		m, err := readMarks(c.index, name)
		if err != nil {
			return err
		}
		ino, ok := key.Inode()
		if !ok || !c.withLowers() || c.incomplete || !c.lowers.has(key) {
			c.checkNlinkForm(name, st, &m)
			return nil
		}
		c.checkCount(name, st, &m, c.links[linkKey{key.UUID, key.Subvolume(), ino}])
		return nil
	})
}

// has says whether a layer of the file system that o is of, or of any if it does not say, is there whose inodes can be recognised.
func (ls lowers) has(o ovl.Origin) bool {
	return slices.ContainsFunc(ls, func(l *layer.Layer) bool {
		return l.Holds(o) || l.Handles() && o.UUID == [16]byte{} && l.Subvol == o.Subvolume()
	})
}

// checkNlinkForm reports a stored count that can't be read, where the right one is not known.
func (c *checker) checkNlinkForm(name string, st *unix.Statx_t, m *marks) {
	if m.nlink == nil {
		return
	}
	if _, err := ovl.ParseNlink(m.nlink.value); err != nil {
		c.report(Finding{
			Severity: Error, Class: NlinkMalformed, Layer: InWork, Path: cow.IndexDir + "/" + name,
			Explanation: fmt.Sprintf("%v, of a file with %d names in the upper", err, int(st.Nlink)-1),
			Remedy:      "check it with all lowers",
		}, nil)
	}
}

// checkCount compares the stored link count of one entry with the names that there are. Names that no walk of the union
// meets (below a deleted directory, or outside of the layers) may count or not.
func (c *checker) checkCount(name string, st *unix.Statx_t, m *marks, n linkCount) {
	f := Finding{Severity: Error, Layer: InWork, Path: cow.IndexDir + "/" + name}
	names := int(st.Nlink) - 1 + int(n.shown)
	if names == 0 {
		f.Class = IndexOrphan
		f.Explanation = "the file has no name in the union any more"
		left, known := storedLinks(st, m, n)
		switch unmet := int(n.lower) - int(n.covered); {
		case known && left > 0 && left <= unmet:
			// The last removal left it, as in the kernel: it cannot know whether the further names can be reached.
			f.Severity = Note
			f.Explanation += ", and the file that it is a copy of has names where the union does not look"
		case m.nlink == nil && m.origin == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
			f.Severity = Note // no attribute could keep the count by which the last removal would have known
		}
		if f.Repair = "removes it"; n.lower == 0 {
			// Its lower may just have been moved: a copy of a layer has other inodes.
			f.Repair = ""
			f.Explanation += ", and the lowers do not show the one that it is a copy of"
			f.Remedy = "look at the file; remove it if it is not needed, or its layer was not copied from elsewhere"
		}
		c.report(f, func() error { return c.m.Unlink(c.index, name) })
		return
	}
	if d, ok := storedLinks(st, m, n); ok && d <= 0 && st.Nlink == 1 {
		f.Class, f.Repair = IndexOrphan, "removes it"
		f.Explanation = "the upper has no name of the file any more, and by its link count the lowers have none: theirs show the lower's file"
		c.report(f, func() error { return c.m.Unlink(c.index, name) })
		return
	}
	right := ovl.NlinkDelta{Delta: int(n.shown) - 1}
	ns := ovl.Trusted()
	if m.nlink != nil {
		ns = m.nlink.ns
	} else if m.origin != nil {
		ns = m.origin.ns
	}
	fix := func() error { return c.m.Setxattr(c.index, name, ns.Nlink, right.Encode(), 0) }
	f.Repair = "writes the right one"
	stored := int(st.Nlink) - 1
	switch {
	case m.nlink == nil && m.origin == nil:
		return // no attribute can be written on it
	case m.nlink != nil:
		d, err := ovl.ParseNlink(m.nlink.value)
		if err != nil {
			f.Class, f.Explanation = NlinkMalformed, err.Error()
			c.report(f, fix)
			return
		}
		if d.OfLower && n.lower == 0 {
			return // relative to a file that is not met
		}
		stored = int(st.Nlink) + d.Delta
		if d.OfLower {
			stored = int(n.lower) + d.Delta
		}
	}
	unmet := max(0, int(n.lower)-int(n.shown)-int(n.covered))
	if stored >= names && (n.lower == 0 || stored <= names+unmet) {
		return
	}
	f.Class = NlinkWrong
	f.Explanation = fmt.Sprintf("the stored link count says %d, and the file has %d names in the union", stored, names)
	c.report(f, fix)
}

// storedLinks is the link count that is stored for an entry, if there is one that can be told.
func storedLinks(st *unix.Statx_t, m *marks, n linkCount) (int, bool) {
	if m.nlink == nil {
		return 0, false
	}
	d, err := ovl.ParseNlink(m.nlink.value)
	switch {
	case err != nil || d.OfLower && n.lower == 0:
		return 0, false
	case d.OfLower:
		return int(n.lower) + d.Delta, true
	}
	return int(st.Nlink) + d.Delta, true
}

// linkWalk walks the merged tree to count names.
type linkWalk struct {
	c     *checker
	stack []linkFrame
}

type linkFrame struct {
	dir     unionDir
	name    string
	subdirs []string
}

// countLinks walks the merged tree and counts the names of the lower inodes in c.links. It opens every directory and no
// file.
func (c *checker) countLinks() error {
	root := unionDir{upper: true}
	var err error
	if root.below, err = c.lowers.roots(0); err != nil {
		return err
	}
	w := &linkWalk{c: c}
	if err := w.visit(root, ""); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		last := len(top.subdirs) - 1
		if last < 0 {
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		name := top.subdirs[last]
		top.subdirs = top.subdirs[:last]
		next, ok, err := c.step(top.dir, name)
		if err == nil && ok {
			err = w.visit(next, name)
		}
		if err != nil {
			c.unreadable(InUpper, w.pathOf(name), err)
		}
		if err := c.progress("links", ""); err != nil {
			return err
		}
	}
	return nil
}

func (w *linkWalk) pathOf(name string) string {
	var names []string
	for i := range w.stack {
		if w.stack[i].name != "" {
			names = append(names, w.stack[i].name)
		}
	}
	return strings.Join(append(names, name), "/")
}

// visit counts in one merged directory and puts it on the stack.
func (w *linkWalk) visit(d unionDir, name string) error {
	c := w.c
	upper := -1
	if d.upper {
		var err error
		if upper, err = c.opt.Upper.OpenDir(d.at.path()); err != nil {
			return err
		}
		defer unix.Close(upper)
	}
	below, err := c.lowers.open(d.below)
	if err != nil {
		return err
	}
	defer below.close()
	f := linkFrame{dir: d, name: name}
	seen := map[string]bool{}
	sub := func(fd int, e layer.RawDirent) error {
		if seen[e.Name] {
			return nil
		}
		is, err := isDir(fd, e)
		if is {
			seen[e.Name] = true
			f.subdirs = append(f.subdirs, e.Name)
		}
		return err
	}
	if upper >= 0 {
		if err := layer.List(upper, func(e layer.RawDirent) error { return sub(upper, e) }); err != nil {
			return err
		}
	}
	for i, fd := range below.fds {
		err := layer.List(fd, func(e layer.RawDirent) error {
			if err := w.count(upper, below, i, e); err != nil {
				return err
			}
			return sub(fd, e)
		})
		if err != nil {
			return err
		}
	}
	w.stack = append(w.stack, f)
	return nil
}

func isDir(fd int, e layer.RawDirent) (bool, error) {
	if e.Type != unix.DT_UNKNOWN {
		return e.Type == unix.DT_DIR, nil
	}
	var st unix.Statx_t
	err := sys.Statx(fd, e.Name, &st)
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// count looks whether an entry of the i-th lower is a name of an inode in the index, and counts it.
func (w *linkWalk) count(upper int, below *mergedDir, i int, e layer.RawDirent) error {
	c := w.c
	l, fd := c.lowers[below.dirs[i].layer], below.fds[i]
	if e.Type == unix.DT_DIR || !l.Handles() {
		return nil
	}
	key, n, ok, err := c.indexedName(l, fd, e)
	if !ok || err != nil {
		return err
	}
	top, err := below.find(e.Name)
	if err != nil {
		return err
	}
	if !top.ok || top.in != i {
		c.links[key] = n
		return nil // hidden by another lower: not a name of the union since ever
	}
	kind, err := c.upperKind(upper, e.Name)
	if err != nil {
		return err
	}
	if kind == kindNone {
		n.shown++
	} else {
		n.covered++
	}
	c.links[key] = n
	return nil
}

// indexedName says whether an entry of the directory fd of l is a name of an inode in the index, and returns what is counted of that
// with the link count of the inode.
func (c *checker) indexedName(l *layer.Layer, fd int, e layer.RawDirent) (linkKey, linkCount, bool, error) {
	for _, uuid := range [...][16]byte{l.UUID, {}} {
		key := linkKey{uuid, l.Subvol, e.Ino}
		n, wanted := c.links[key]
		if !wanted {
			continue
		}
		h, err := sys.Handle(fd, e.Name)
		if err != nil {
			return key, n, false, err
		}
		var st unix.Statx_t
		if sys.Statx(c.index, ovl.Origin{UUID: uuid, FileHandle: h}.IndexName(), &st) != nil {
			continue // another generation of that inode number
		}
		if err := sys.Statx(fd, e.Name, &st); err != nil {
			return key, n, false, err
		}
		n.lower = st.Nlink
		return key, n, true, nil
	}
	return linkKey{}, linkCount{}, false, nil
}

// searchHidden looks for the inodes of c.links that countLinks met no name of below directories that the union hides. It
// tells a file that was removed with its directory from the copy of a layer, which has other inodes.
func (c *checker) searchHidden() error {
	left := 0
	for _, n := range c.links {
		if n.lower == 0 {
			left++
		}
	}
	for _, l := range c.lowers {
		dirs := []string{"."}
		for l.Handles() && left > 0 && len(dirs) > 0 {
			dir := dirs[len(dirs)-1]
			subdirs, found, err := c.searchDir(l, dir)
			if err != nil {
				c.unreadable(InUpper, dir, err)
			}
			left -= found
			dirs = append(dirs[:len(dirs)-1], subdirs...)
			if err := c.progress("links", ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// searchDir notes the link counts of indexed inodes of which no name was met before in one directory of a layer, and returns
// its subdirectories and how many such inodes there were.
func (c *checker) searchDir(l *layer.Layer, dir string) (subdirs []string, found int, err error) {
	fd, err := l.OpenDir(dir)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	err = layer.List(fd, func(e layer.RawDirent) error {
		is, err := isDir(fd, e)
		if is || err != nil {
			subdirs = append(subdirs, dir+"/"+e.Name)
			return err
		}
		key, n, ok, err := c.indexedName(l, fd, e)
		if ok && c.links[key].lower == 0 {
			c.links[key] = n
			found++
		}
		return err
	})
	return subdirs, found, err
}
