package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	ondisk "plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/upperdiff"
)

// ParallelApply implements drivers.ParallelApplier.
func (s *Store) ParallelApply() bool { return true }

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
	filled, err := s.beginFill(id, o)
	if err != nil {
		return res, fmt.Errorf("unpack into layer %s: %w", id, err)
	}
	defer func() { filled(err) }()
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

// beginFill marks a layer as being unpacked: nobody can read or mount it, or a layer above it, until filled is called with the result
// of the unpacking. The error wraps drivers.ErrInUse if somebody does so already, or if the layer may not change any more.
func (s *Store) beginFill(id string, o *drivers.ApplyOptions) (filled func(error), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table[id]
	switch {
	case e == nil || e.pending:
		return nil, notFound(id)
	case e.writable:
		return nil, fmt.Errorf("it is no image layer: %w", drivers.ErrInvalid)
	case e.readers > 0 || s.mounts.Count(id) > 0 || e.children > 0 && o.Below == nil && !e.restoring:
		return nil, fmt.Errorf("its content must not change any more: %w", drivers.ErrInUse)
	}
	for _, above := range s.aboveLocked(id) {
		a := s.table[above]
		if a.readers > 0 || s.mounts.Count(above) > 0 || a.writable && !e.restoring {
			return nil, fmt.Errorf("layer %s, which is above it, is in use: %w", above, drivers.ErrInUse)
		}
	}
	e.filling = true
	return func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.filling = false
		e.restoring = e.restoring && err != nil
	}, nil
}

// aboveLocked lists all layers that are above one. Precondition: Store.mu is held.
func (s *Store) aboveLocked(id string) []string {
	if s.table[id].children == 0 {
		return nil
	}
	children := make(map[string][]string, len(s.table))
	for name, e := range s.table {
		children[e.parent] = append(children[e.parent], name)
	}
	all := children[id]
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// completeLocked returns an error if the layer, or one below it, has not got its content yet. Precondition: Store.mu is
// held.
func (s *Store) completeLocked(id string) error {
	for at := id; ; {
		e := s.table[at]
		switch {
		case e == nil:
			return nil // what is missing, those who look for it tell
		case e.filling:
			return fmt.Errorf("layer %s is being unpacked: %w", at, drivers.ErrInUse)
		case e.restoring:
			return fmt.Errorf("layer %s was lost, and made anew, but not unpacked: %w", at, drivers.ErrDamaged)
		}
		at = e.parent
	}
}

// unpack makes stage the content of a layer.
func (s *Store) unpack(
	ctx context.Context, id, stage string, r io.Reader, o *drivers.ApplyOptions,
) (res tarlayer.ApplyResult, err error) {
	diff := s.dir(id, diffDir)
	if err := s.copyRoot(stage, diff); err != nil {
		return res, err
	}
	root, err := ondisk.OpenPlain(stage)
	if err != nil {
		return res, err
	}
	defer root.Close()
	ao, r := o.Tar(r)
	ao.Whiteouts, ao.Names, ao.Forms, ao.Devices = s.form.Whiteouts, s.form.Names, s.form.Reads, s.form.Devices
	if s.form.Owner != tarlayer.OwnerInode {
		ao.Owner = s.form.Owner
	}
	ao.Note = func(path, reason string) {
		s.log.Warn("left out while unpacking", "layer", id, "path", path, "reason", reason)
		if o.Note != nil {
			o.Note(path, reason)
		}
	}
	l, err := s.readLayer(id)
	if err != nil {
		return res, err
	}
	if l.Parent != "" {
		b := s.belowOf(ctx, l.Parent, o.Below)
		defer func() { err = errors.Join(err, b.close()) }()
		ao.Lower = b
		res, err = tarlayer.Apply(ctx, root, r, ao)
		if b.err != nil {
			// Whatever tarlayer made of it: the layers below are not known.
			err = b.err
		}
	} else {
		res, err = tarlayer.Apply(ctx, root, r, ao)
	}
	if err != nil {
		return res, err
	}
	return res, s.publishFill(id, stage)
}

// publishFill puts stage in the place of a layer's directory.
func (s *Store) publishFill(id, stage string) error {
	err := unix.Rename(stage, s.dir(id, diffDir)) // os.Rename refuses a directory, which here is empty
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s has content already: %w", filepath.Base(id), drivers.ErrInvalid)
	}
	if err != nil {
		return err
	}
	err = os.Remove(s.dir(id, restoringFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// below is what the layers below show. It is opened when it is wanted first: until then they need not be complete. It is a
// tarlayer.Source, of which one goroutine at a time makes use.
type below struct {
	// open waits and opens, once.
	open func() (*upperdiff.View, error)
	// err is why it could not be opened.
	err   error
	close func() error
}

// belowOf returns the tree of a layer. wait, when not nil, returns when the layer and those below it are complete.
func (s *Store) belowOf(ctx context.Context, parent string, wait func(context.Context) error) *below {
	b := &below{close: func() error { return nil }}
	b.open = sync.OnceValues(func() (*upperdiff.View, error) {
		v, done, err := s.openBelow(ctx, parent, wait)
		if err != nil {
			b.err = fmt.Errorf("layers below: %w", err)
			return nil, b.err
		}
		b.close = func() error {
			defer done()
			return v.Close()
		}
		return v, nil
	})
	return b
}

func (s *Store) openBelow(
	ctx context.Context, parent string, wait func(context.Context) error,
) (v *upperdiff.View, done func(), err error) {
	if wait != nil {
		if err := wait(ctx); err != nil {
			return nil, nil, err
		}
	}
	done, err = s.reading(parent)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	layers, err := s.layers(parent)
	if err != nil {
		return nil, nil, err
	}
	v, err = upperdiff.OpenView(layers)
	return v, done, err
}

// Lstat implements tarlayer.Source.
func (b *below) Lstat(path string) (tarlayer.Attr, error) {
	v, err := b.open()
	if err != nil {
		return tarlayer.Attr{}, err
	}
	return v.Lstat(path)
}

// Open implements tarlayer.Source.
func (b *below) Open(path string) (io.ReadCloser, error) {
	v, err := b.open()
	if err != nil {
		return nil, err
	}
	return v.Open(path)
}

// Readlink implements tarlayer.Source.
func (b *below) Readlink(path string) (string, error) {
	v, err := b.open()
	if err != nil {
		return "", err
	}
	return v.Readlink(path)
}

// Xattrs implements tarlayer.Source.
func (b *below) Xattrs(path string) (map[string]string, error) {
	v, err := b.open()
	if err != nil {
		return nil, err
	}
	return v.Xattrs(path)
}
