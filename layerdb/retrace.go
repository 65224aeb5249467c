package layerdb

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"strings"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// sameRetraced says whether the tree has the layer's sum if its members are looked for where they were unpacked to. The final tree
// alone does not tell that if the stream reached members through a symlink or directory that it replaced or removed afterwards.
func (s *Store) sameRetraced(ctx context.Context, drv drivers.Driver, src tarlayer.Source, l Layer, below string) bool {
	paths, err := s.retrace(ctx, drv, l, below)
	var sum uint64
	if err == nil {
		sum, err = tarlayer.Sum(ctx, src, paths)
	}
	if err != nil {
		s.log.Info("where the members of a layer went cannot be found out", "layer", l.ID, "error", err)
	}
	return err == nil && sum == l.Sum
}

// retrace finds out what a layer's stream left at which paths, by unpacking it without content into an empty directory over the driver's
// layer below ("" for none).
func (s *Store) retrace(ctx context.Context, drv drivers.Driver, l Layer, below string) (paths []tarlayer.Change, err error) {
	dir, err := os.MkdirTemp(s.path(tempDir), "names-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, err := layer.OpenPlain(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	o := tarlayer.ApplyOptions{
		Whiteouts: tarlayer.WhiteoutAny, Sum: true, Left: func(c tarlayer.Change) { paths = append(paths, c) },
		// The stream was within the limits when the layer was made.
		Limits: tarlayer.Limits{
			Entries: math.MaxInt64, Bytes: math.MaxInt64, Depth: math.MaxInt64, Name: math.MaxInt64, Header: math.MaxInt64,
		},
	}
	apply := func() error {
		pr, pw := io.Pipe()
		written := make(chan struct{})
		go func() {
			defer close(written)
			pw.CloseWithError(s.writeNames(l, pw))
		}()
		_, err := tarlayer.Apply(ctx, root, pr, o)
		pr.Close()
		<-written
		return err
	}
	if below == "" {
		err = apply()
		return paths, err
	}
	err = withTree(ctx, drv, below, func(t *tree) (err error) {
		under := tarlayer.NewDirSource(t.root, tarlayer.DirOptions{})
		defer func() { err = errors.Join(err, under.Close()) }()
		o.Lower = shape{under}
		return apply()
	})
	return paths, err
}

// writeNames writes the stream of a layer with the names of its members only: all but directories and symlinks become empty files.
func (s *Store) writeNames(l Layer, w io.Writer) error {
	out := tar.NewWriter(w)
	err := s.withStream(l, func(r io.Reader) error {
		return eachHeader(l.Stream, r, func(h tar.Header) error {
			switch h.Typeflag {
			case tar.TypeXGlobalHeader:
				return nil
			case tar.TypeDir:
				h.Mode, h.Linkname = 0o755, ""
			case tar.TypeSymlink:
				h.Mode = 0o777
			default:
				h.Typeflag, h.Mode, h.Linkname = tar.TypeReg, 0o600, ""
				h.Name = strings.TrimRight(h.Name, "/")
			}
			return out.WriteHeader(&h)
		})
	})
	return errors.Join(err, out.Close())
}

// shape is a tree of which only names, types and targets of symlinks count.
type shape struct{ tarlayer.Source }

// Lstat implements tarlayer.Source.
func (s shape) Lstat(path string) (tarlayer.Attr, error) {
	a, err := s.Source.Lstat(path)
	a.UID, a.GID = 0, 0
	return a, err
}

// Xattrs implements tarlayer.Source.
func (shape) Xattrs(string) (map[string]string, error) { return nil, nil }
