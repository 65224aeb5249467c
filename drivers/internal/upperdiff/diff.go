package upperdiff

import (
	"context"
	"errors"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
)

// Diff is what one layer has and another has not.
type Diff struct {
	newer *View
	older *View // nil for nothing at all
	// narrow says that older is the layers right below newer, so that only the names in newer's own directory can differ.
	narrow bool
}

// Open opens both layers; the zero Layers for older stand for an empty tree without even a root. The caller closes the
// Diff.
func Open(newer, older Layers) (*Diff, error) {
	d := &Diff{}
	var err error
	if d.newer, err = OpenView(newer); err != nil {
		return nil, err
	}
	if older.Own == "" {
		return d, nil
	}
	if d.older, err = OpenView(older); err != nil {
		return nil, errors.Join(err, d.newer.Close())
	}
	d.narrow = isBelow(d.older, d.newer)
	return d, nil
}

// isBelow says whether the layers of older are those that newer lies on.
func isBelow(older, newer *View) bool {
	type id struct{ dev, ino uint64 }
	below := []id{{older.upper.Dev, older.upper.Ino}}
	for _, l := range older.lowers {
		below = append(below, id{l.Dev, l.Ino})
	}
	var lowers []id
	for _, l := range newer.lowers {
		lowers = append(lowers, id{l.Dev, l.Ino})
	}
	return slices.Equal(below, lowers)
}

// Close closes the layers.
func (d *Diff) Close() error {
	err := d.newer.Close()
	if d.older != nil {
		err = errors.Join(err, d.older.Close())
	}
	return err
}

// Changes lists what differs, parents before children. Errors name the path.
func (d *Diff) Changes(ctx context.Context) ([]tarlayer.Change, error) {
	c := comparer{ctx: ctx, newer: d.newer, older: d.older, links: make(linkNames)}
	root := side{node: d.newer.u.Root()}
	var old side
	if d.older != nil {
		old.node = d.older.u.Root()
	}
	var at *place
	if d.narrow {
		upper, err := d.newer.upper.OpenDir("")
		if err != nil {
			return nil, pathError("open", d.newer.upper.Path, err)
		}
		defer unix.Close(upper)
		// An opaque root hides every name below.
		hides, err := d.newer.showsOthers(upper, "")
		if err != nil {
			return nil, pathError("open", d.newer.upper.Path, err)
		}
		if !hides {
			further, err := d.furtherNames(ctx)
			if err != nil {
				return nil, err
			}
			at = &place{view: d.newer, fd: upper, further: further}
		}
	}
	if _, err := c.compareDirs("", root, old, at); err != nil {
		return nil, err
	}
	c.list = c.links.complete(c.list)
	tarlayer.SortChanges(c.list)
	return c.list, nil
}

// Write writes what differs as a tar stream of an OCI layer.
func (d *Diff) Write(ctx context.Context, w io.Writer, o tarlayer.WriteOptions) error {
	list, err := d.Changes(ctx)
	if err != nil {
		return err
	}
	return tarlayer.Write(ctx, w, d.newer, list, o)
}

// Size is the number of bytes of files in what Write writes.
func (d *Diff) Size(ctx context.Context) (int64, error) {
	list, err := d.Changes(ctx)
	if err != nil {
		return 0, err
	}
	return tarlayer.Size(ctx, d.newer, list)
}
