package upperdiff

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// names is a set of paths, as a tree.
type names struct{ beneath map[string]*names }

// children is the next component of the paths, nil for no set.
func (n *names) children() map[string]*names {
	if n == nil {
		return nil
	}
	return n.beneath
}

func (n *names) insert(path string) {
	for rest, more := path, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		next := n.beneath[name]
		if next == nil {
			next = &names{beneath: make(map[string]*names)}
			n.beneath[name] = next
		}
		n = next
	}
}

// linked is a lower file that was copied up under some of its names.
type linked struct {
	ovl.Origin
	ino uint64
}

// furtherNames finds names at which the views may differ although the upper has nothing there: names, in the lowers, of files that were
// copied up under another of their names, as the hard-link index tells. It returns nil if there are none.
func (d *Diff) furtherNames(ctx context.Context) (*names, error) {
	files, err := d.linkedFiles()
	if err != nil || len(files) == 0 {
		return nil, err
	}
	set := &names{beneath: make(map[string]*names)}
	for _, l := range d.newer.lowers {
		inodes := make(map[uint64]bool)
		for _, f := range files {
			if l.Holds(f.Origin) {
				inodes[f.ino] = true
			}
		}
		if len(inodes) == 0 {
			continue
		}
		w := linkWalk{ctx: ctx, inodes: inodes, set: set}
		if err := w.walk(l.FD(), "", ""); err != nil {
			return nil, pathError("look for hard links in", l.Path, err)
		}
	}
	return set, nil
}

// linkedFiles reads the index. Files all of whose names are in the upper are left out.
func (d *Diff) linkedFiles() (files []linked, err error) {
	if d.newer.work == nil {
		return nil, nil
	}
	idx, err := cow.OpenIndex(d.newer.work)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, pathError("open the index in", d.newer.work.Path, err)
	}
	defer unix.Close(idx)
	err = layer.List(idx, func(e layer.RawDirent) error {
		b, err := hex.DecodeString(e.Name)
		if err != nil {
			return nil //nolint:nilerr // not an entry
		}
		o, err := ovl.ParseOrigin(b)
		if err != nil {
			return nil //nolint:nilerr // not an entry
		}
		if ino, ok := o.Inode(); ok && !d.complete(idx, e.Name) {
			files = append(files, linked{Origin: o, ino: ino})
		}
		return nil
	})
	return files, pathError("list the index in", d.newer.work.Path, err)
}

// complete says whether the upper has every name of the file of an index entry. The union's link count is kept relative
// to the upper inode's, in which the index counts too (cf. overlayfs inode.c ovl_get_nlink).
func (d *Diff) complete(idx int, name string) bool {
	for _, ns := range d.newer.forms.Namespaces() {
		v, err := cow.GetXattr(idx, name, ns.Nlink)
		if err != nil {
			continue
		}
		n, err := ovl.ParseNlink(v)
		return err == nil && !n.OfLower && n.Delta < 0
	}
	return false
}

// linkWalk finds the names of inodes in a layer, by its directories alone.
type linkWalk struct {
	ctx    context.Context //nolint:containedctx // it lives for one call
	inodes map[uint64]bool
	set    *names
}

func (w *linkWalk) walk(dirfd int, name, path string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := layer.OpenDirAt(dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var dirs []string
	err = layer.List(fd, func(e layer.RawDirent) error {
		full := e.Name
		if path != "" {
			full = path + "/" + e.Name
		}
		switch typeOf(fd, e) {
		case unix.DT_DIR:
			dirs = append(dirs, e.Name)
		case unix.DT_REG:
			if w.inodes[e.Ino] {
				w.set.insert(full)
			}
		}
		return nil
	})
	for _, sub := range dirs {
		if err != nil {
			return err
		}
		full := sub
		if path != "" {
			full = path + "/" + sub
		}
		err = w.walk(fd, sub, full)
	}
	return err
}

// typeOf is the type of a directory entry, also where the file system does not tell.
func typeOf(dirfd int, e layer.RawDirent) uint8 {
	if e.Type != unix.DT_UNKNOWN {
		return e.Type
	}
	var st unix.Statx_t
	if sys.Statx(dirfd, e.Name, &st) != nil {
		return unix.DT_UNKNOWN
	}
	return uint8(uint32(st.Mode) & unix.S_IFMT >> 12)
}
