package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/upperdiff"
)

// reading keeps layers, and those below them, from being removed and from being unpacked into, until done is called. The error wraps
// drivers.ErrNotFound, or drivers.ErrInUse or drivers.ErrDamaged for a layer whose content is not complete.
func (s *Store) reading(ids ...string) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if e := s.table[id]; e == nil || e.pending {
			return nil, notFound(id)
		}
		if err := s.completeLocked(id); err != nil {
			return nil, err
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

// OpenView opens what a layer shows, without mounting it. done closes it; until then the layer is not removed.
func (s *Store) OpenView(ctx context.Context, id string) (v *upperdiff.View, done func() error, err error) {
	if err := begin(ctx, id); err != nil {
		return nil, nil, err
	}
	release, err := s.reading(id)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	layers, err := s.layers(id)
	if err != nil {
		return nil, nil, err
	}
	if v, err = upperdiff.OpenView(layers); err != nil {
		return nil, nil, err
	}
	return v, func() error {
		defer release()
		return v.Close()
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
	a := upperdiff.Layers{Own: s.dir(id, diffDir), Forms: s.form.Reads}
	if l.Writable {
		a.Work = s.dir(id, workDir)
	}
	for _, link := range l.below {
		a.Lowers = append(a.Lowers, s.linkPath(link))
	}
	return a, nil
}

// Diff implements drivers.Differ.
func (s *Store) Diff(ctx context.Context, id, parent string, o *drivers.DiffOptions) (io.ReadCloser, error) {
	d, done, err := s.difference(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	if o == nil {
		o = &drivers.DiffOptions{}
	}
	return drivers.Stream(ctx, func(ctx context.Context, w io.Writer) error { return d.Write(ctx, w, *o) }, done), nil
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
