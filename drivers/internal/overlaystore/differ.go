package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	ondisk "plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/upperdiff"
)

// reading keeps a layer from being removed until done is called.
func (s *Store) reading(ids ...string) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if e := s.table[id]; e == nil || e.pending {
			return nil, notFound(id)
		}
	}
	for _, id := range ids {
		s.table[id].readers++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			s.table[id].readers--
		}
	}, nil
}

// difference opens a layer and its parent to be compared, without mounting them. The caller closes it.
func (s *Store) difference(ctx context.Context, id, parent string) (d *upperdiff.Diff, done func() error, err error) {
	if err := begin(ctx, id); err != nil {
		return nil, nil, err
	}
	ids := []string{id}
	if parent != "" {
		if err := drivers.ValidID(parent); err != nil {
			return nil, nil, err
		}
		ids = append(ids, parent)
	}
	release, err := s.reading(ids...)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	newer, err := s.layers(id)
	if err != nil {
		return nil, nil, err
	}
	var older upperdiff.Layers
	if parent != "" {
		if older, err = s.layers(parent); err != nil {
			return nil, nil, err
		}
	}
	// What was written through a mapping may still be in the cache of the mount.
	s.flush(id)
	d, err = upperdiff.Open(newer, older)
	if err != nil {
		return nil, nil, fmt.Errorf("compare layer %s with %q: %w", id, parent, err)
	}
	return d, func() error {
		defer release()
		return d.Close()
	}, nil
}

// flush has a mounted layer write out what it caches. What it cannot write is reported to whoever wrote it.
func (s *Store) flush(id string) {
	if s.mounts.Count(id) == 0 {
		return
	}
	if err := s.mounter.Flush(s.target(id)); err != nil {
		s.log.Warn("a mount could not be flushed before its difference is read", "layer", id, "error", err)
	}
}

// layers are the directories that a layer consists of.
func (s *Store) layers(id string) (upperdiff.Layers, error) {
	l, err := s.readLayer(id)
	if err != nil {
		return upperdiff.Layers{}, err
	}
	a := upperdiff.Layers{Own: s.dir(id, diffDir)}
	if l.Writable {
		a.Work = s.dir(id, workDir)
	}
	for _, link := range l.below {
		a.Lowers = append(a.Lowers, s.linkPath(link))
	}
	return a, nil
}

// Diff implements drivers.Differ.
func (s *Store) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	d, done, err := s.difference(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	return newStream(ctx, d.Write, done), nil
}

// Changes implements drivers.Differ.
func (s *Store) Changes(ctx context.Context, id, parent string) (list []tarlayer.Change, err error) {
	d, done, err := s.difference(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	return d.Changes(ctx)
}

// DiffSize implements drivers.Differ.
func (s *Store) DiffSize(ctx context.Context, id, parent string) (size int64, err error) {
	d, done, err := s.difference(ctx, id, parent)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done()) }()
	return d.Size(ctx)
}

// ApplyDiff implements drivers.Differ. The stream is unpacked beside the layer's directory, which it replaces when it
// is complete: the layer is empty until then.
func (s *Store) ApplyDiff(
	ctx context.Context, id string, r io.Reader, o *drivers.ApplyOptions,
) (res tarlayer.ApplyResult, err error) {
	if err := errors.Join(begin(ctx, id), s.mayChange()); err != nil {
		return res, err
	}
	if o == nil {
		o = &drivers.ApplyOptions{}
	}
	defer s.locks.Lock(id)()
	e, there := s.lookup(id)
	switch {
	case !there:
		return res, notFound(id)
	case e.writable:
		return res, fmt.Errorf("unpack into layer %s: it is no image layer: %w", id, drivers.ErrInvalid)
	case e.children > 0 || e.readers > 0 || s.mounts.Count(id) > 0:
		return res, fmt.Errorf("unpack into layer %s: its content must not change any more: %w", id, drivers.ErrInUse)
	}
	stage, err := os.MkdirTemp(s.dir(id), unpackPrefix)
	if err != nil {
		return res, damaged(s.dir(id), err)
	}
	res, err = s.unpack(ctx, id, stage, r, o)
	if err != nil {
		return res, errors.Join(fmt.Errorf("unpack into layer %s: %w", id, err), os.RemoveAll(stage))
	}
	return res, nil
}

// unpack makes stage the content of a layer.
func (s *Store) unpack(
	ctx context.Context, id, stage string, r io.Reader, o *drivers.ApplyOptions,
) (res tarlayer.ApplyResult, err error) {
	diff := s.dir(id, diffDir)
	if err := copyRoot(stage, diff); err != nil {
		return res, err
	}
	root, err := ondisk.Open(stage)
	if err != nil {
		return res, err
	}
	defer root.Close()
	ao := tarlayer.ApplyOptions{
		Whiteouts: s.form.Whiteouts, Names: s.form.Names, Owner: s.form.Owner, Devices: s.form.Devices,
		Limits: o.Limits, Sum: true,
		Note: func(path, reason string) {
			s.log.Warn("left out while unpacking", "layer", id, "path", path, "reason", reason)
		},
	}
	l, err := s.readLayer(id)
	if err != nil {
		return res, err
	}
	if l.Parent != "" {
		below, err := s.layers(l.Parent)
		if err != nil {
			return res, err
		}
		view, err := upperdiff.OpenView(below)
		if err != nil {
			return res, err
		}
		defer func() { err = errors.Join(err, view.Close()) }()
		ao.Lower = view
	}
	if res, err = tarlayer.Apply(ctx, root, &meter{r: r, progress: o.Progress}, ao); err != nil {
		return res, err
	}
	err = unix.Rename(stage, diff) // os.Rename refuses a directory, which here is empty
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%s has content already: %w", filepath.Base(id), drivers.ErrInvalid)
	}
	return res, err
}
