package upperdiff

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// side is what one of the two views has at a path; nothing if node is nil.
type side struct {
	node *union.Node
	attr union.Attr
}

func (s side) isDir() bool { return s.node != nil && s.node.IsDir() }

// place limits the comparison of a directory that both views merge from the same lower directories: they can differ only at the names
// that the newer view's upper holds there, and on the way to those in further.
type place struct {
	view    *View
	fd      int    // the upper's directory; -1 if it has none
	further *names // see Diff.furtherNames
}

// comparer compares two views.
type comparer struct {
	ctx          context.Context //nolint:containedctx // it lives for one call
	newer, older *View
	list         []tarlayer.Change
	links        linkNames
}

func (c *comparer) add(path string, k tarlayer.Kind, s side) {
	c.list = append(c.list, tarlayer.Change{Path: path, Kind: k, Type: s.attr.Mode & unix.S_IFMT})
}

// compareDirs compares what is in the directory path; older may be no directory. at says which names can differ, nil stands for all.
// changed says whether any does.
func (c *comparer) compareDirs(path string, newer, older side, at *place) (changed bool, err error) {
	if err := c.ctx.Err(); err != nil {
		return false, err
	}
	var list []string
	var marks map[string]bool
	if at != nil {
		list, marks, err = at.candidates()
		if marks[ovl.AUFSOpaque] {
			at = nil
		}
	}
	if err == nil && at == nil {
		list, err = c.allNames(newer, older)
	}
	if err != nil {
		return false, pathError("list", path, err)
	}
	for _, name := range list {
		full := name
		if path != "" {
			full = path + "/" + name
		}
		child := at
		if at != nil && marks[ovl.AUFSWhiteout(name)] {
			child = nil
		}
		one, err := c.compareName(full, name, newer, older, child)
		if err != nil {
			return false, err
		}
		changed = changed || one
	}
	return changed, nil
}

// allNames lists the names in either directory.
func (c *comparer) allNames(newer, older side) ([]string, error) {
	list, err := c.newer.list(newer.node)
	if err != nil || !older.isDir() {
		return list, err
	}
	more, err := c.older.list(older.node)
	list = append(list, more...)
	slices.Sort(list)
	return slices.Compact(list), err
}

// lookTries is how often a name is compared before it is given up because it changes each time.
const lookTries = 8

// compareName compares one name of a directory. It begins again if the object at the name goes or is replaced meanwhile.
func (c *comparer) compareName(path, name string, newerDir, olderDir side, at *place) (changed bool, err error) {
	for try := 1; ; try++ {
		newer, err := lookup(c.newer, newerDir, name)
		if err != nil {
			return false, pathError("look up", path, err)
		}
		listed := len(c.list)
		changed, err := c.compareFound(path, name, newer, olderDir, at)
		was := newer.attr
		if err == nil && changed && newer.node != nil {
			c.newer.keep(newer)
		} else {
			c.newer.release(newer)
		}
		switch {
		case err == nil || c.ctx.Err() != nil || !c.moved(newerDir, name, was, err):
			return changed, err
		case try == lookTries: // whoever looks at the directory need not try as often
			return false, fmt.Errorf("/%s changes all the time: %v", path, err) //nolint:errorlint // not to be tried again
		}
		c.list = c.list[:listed]
	}
}

// moved says whether err may come from what was found at a name being there no more.
func (c *comparer) moved(dir side, name string, was union.Attr, err error) bool {
	if gone(err) {
		return true
	}
	now, err := lookup(c.newer, dir, name)
	defer c.newer.release(now)
	return err == nil && (now.node == nil || birth(now.attr) != birth(was) || now.attr.Mode&unix.S_IFMT != was.Mode&unix.S_IFMT)
}

// gone says whether err is that of an object whose name, in the upper, is gone.
func gone(err error) bool { return sys.Gone(err) || errors.Is(err, unix.ESTALE) }

// compareFound compares what was found at a name, if anything.
func (c *comparer) compareFound(path, name string, newer, olderDir side, at *place) (changed bool, err error) {
	var older side
	if olderDir.isDir() {
		if older, err = lookup(c.older, olderDir, name); err != nil {
			return false, pathError("look up", path, err)
		}
		defer c.older.release(older)
	}
	switch {
	case newer.node == nil && older.node == nil:
		return false, nil // a whiteout of nothing
	case newer.node == nil:
		c.add(path, tarlayer.Delete, newer)
		return true, nil
	case older.node == nil:
		c.add(path, tarlayer.Add, newer)
		c.links.note(path, newer.attr, tarlayer.Add)
	default:
		same, err := c.same(newer, older)
		if err != nil {
			return false, pathError("compare", path, err)
		}
		if changed = !same; changed {
			c.add(path, tarlayer.Modify, newer)
		}
		c.links.note(path, newer.attr, kindOf(same))
	}
	if !newer.isDir() {
		return changed || older.node == nil, nil
	}
	beneath, err := c.descend(path, name, newer, older, at)
	if err != nil {
		return false, err
	}
	if beneath && !changed && older.node != nil {
		// A directory counts as changed with what is in it.
		c.add(path, tarlayer.Modify, newer)
	}
	return changed || beneath || older.node == nil, nil
}

// kindOf is the change of a path that both views have; none for an equal one.
func kindOf(same bool) tarlayer.Kind {
	if same {
		return 0
	}
	return tarlayer.Modify
}

// descend compares what is in a directory of the newer view.
func (c *comparer) descend(path, name string, newer, older side, at *place) (changed bool, err error) {
	if at == nil || !older.isDir() {
		return c.compareDirs(path, newer, older, nil)
	}
	child, err := at.enter(name)
	if err != nil {
		return false, pathError("open", path, err)
	}
	if child != nil {
		defer child.close()
	}
	return c.compareDirs(path, newer, older, child)
}

// lookup finds name in a directory of v; a side without a node is none.
func lookup(v *View, dir side, name string) (side, error) {
	n, a, err := v.u.Lookup(dir.node, name)
	switch {
	case err == nil:
		return side{node: n, attr: a}, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENAMETOOLONG):
		return side{}, nil
	}
	return side{}, err
}

func (v *View) release(s side) {
	if s.node != nil {
		v.u.Forget(s.node, 1)
	}
}

// candidates are the names that the upper directory holds or deletes, and the further ones. marks are those of the AUFS
// form.
func (p *place) candidates() (list []string, marks map[string]bool, err error) {
	found := make(map[string]bool)
	marks = make(map[string]bool)
	for name := range p.further.children() {
		found[name] = true
	}
	if p.fd >= 0 {
		err = layer.List(p.fd, func(e layer.RawDirent) error {
			found[e.Name] = true // also of the AUFS form: an application may have made a file of that name
			if p.view.forms.All() && ovl.IsAUFSName(e.Name) {
				marks[e.Name] = true
				if victim, ok := ovl.AUFSVictim(e.Name); ok {
					found[victim] = true
				}
			}
			return nil
		})
	}
	return slices.Sorted(maps.Keys(found)), marks, err
}

// enter returns the place of a directory that both views have; nil if the views merge it from different lowers.
func (p *place) enter(name string) (*place, error) {
	child := &place{view: p.view, fd: -1, further: p.further.children()[name]}
	if p.fd < 0 {
		return child, nil
	}
	var st unix.Statx_t
	err := sys.Statx(p.fd, name, &st)
	if errors.Is(err, unix.ENOENT) {
		return child, nil // one of the further names lies beneath
	}
	if err != nil {
		return nil, err
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR {
		return nil, nil //nolint:nilnil // documented: what shows as a directory is not what lies here
	}
	moved, err := p.view.showsOthers(p.fd, name)
	if moved || err != nil {
		return nil, err
	}
	child.fd, err = layer.OpenDirAt(p.fd, name)
	return child, err
}

func (p *place) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// showsOthers says whether a directory of the upper hides the lower directories at its path, or shows others.
func (v *View) showsOthers(dirfd int, name string) (bool, error) {
	attrs, err := cow.ListXattrs(dirfd, name)
	if err != nil {
		return false, err
	}
	for _, attr := range attrs {
		opaque := attr == ovl.FuseOverlayfsOpaque && v.forms.All()
		redirect := attr == ovl.FuseOverlayfsOrigin && v.forms.All()
		for _, ns := range v.forms.Namespaces() {
			opaque = opaque || attr == ns.Opaque
			redirect = redirect || attr == ns.Redirect
		}
		if redirect {
			return true, nil
		}
		if !opaque {
			continue
		}
		if v, err := cow.GetXattr(dirfd, name, attr); err != nil || ovl.IsOpaque(v) {
			return true, err
		}
	}
	return false, nil
}
