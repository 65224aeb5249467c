package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// writeStacked writes a directory in an overlay's form, or AUFS's, as a layer.
func writeStacked(ctx context.Context, w io.Writer, root *layer.Layer) (err error) {
	names := stackNames()
	src := tarlayer.NewDirSource(root, tarlayer.DirOptions{Names: names})
	defer func() { err = errors.Join(err, src.Close()) }()
	walk := &stackWalk{ctx: ctx, root: root, src: src, names: names}
	if err := walk.dir(""); err != nil {
		return err
	}
	return tarlayer.Write(ctx, w, src, walk.changes, tarlayer.WriteOptions{})
}

// stackNames are the attributes with which a store was written that belongs to this user: rootless ones use those of users.
func stackNames() *ovl.Names {
	if drivers.UserNamespace().Nested {
		return ovl.User()
	}
	return ovl.Trusted()
}

// stackWalk collects what a stacked directory changes.
type stackWalk struct {
	ctx     context.Context
	root    *layer.Layer
	src     *tarlayer.DirSource
	names   *ovl.Names
	changes []tarlayer.Change
}

func (s *stackWalk) dir(at string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	fd, err := s.root.OpenDir(at)
	if err != nil {
		return fmt.Errorf("%q: %w", at, err)
	}
	defer unix.Close(fd)
	var names []string
	if err := layer.List(fd, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	}); err != nil {
		return fmt.Errorf("%q: %w", at, err)
	}
	for _, name := range names {
		if err := s.entry(fd, at, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *stackWalk) entry(dirfd int, at, name string) error {
	if victim, ok := ovl.AUFSVictim(name); ok {
		s.changes = append(s.changes, tarlayer.Change{Path: path.Join(at, victim), Kind: tarlayer.Delete})
		return nil
	} else if ovl.IsAUFSName(name) {
		return nil // the sentinel shows in its directory's Attr
	}
	p := path.Join(at, name)
	deleted, err := s.src.Whiteout(p)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	if deleted {
		s.changes = append(s.changes, tarlayer.Change{Path: p, Kind: tarlayer.Delete})
		return nil
	}
	attrs, err := cow.ListXattrs(dirfd, name)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	if slices.Contains(attrs, s.names.Redirect) || slices.Contains(attrs, s.names.Metacopy) {
		return fmt.Errorf("%q: its content is in a layer below (redirect_dir, metacopy): %w", p, drivers.ErrNotSupported)
	}
	a, err := s.src.Lstat(p)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	s.changes = append(s.changes, tarlayer.Change{Path: p, Kind: tarlayer.Modify})
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return s.dir(p)
	}
	return nil
}
