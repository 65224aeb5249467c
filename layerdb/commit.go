package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// Changes lists what was changed in a container, parents before children. The container may be in use: what is changed meanwhile
// may or may not be in the list.
func (s *Store) Changes(ctx context.Context, name string) (list []tarlayer.Change, err error) {
	err = s.withContainer(name, func(c Container, below Record) error {
		list, err = s.differ.Changes(ctx, c.ID, below.cacheID())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", name, err)
	}
	return list, nil
}

// DiffSize is the number of bytes of content in Diff's stream.
func (s *Store) DiffSize(ctx context.Context, name string) (n int64, err error) {
	err = s.withContainer(name, func(c Container, below Record) error {
		n, err = s.differ.DiffSize(ctx, c.ID, below.cacheID())
		return err
	})
	return n, err
}

// Usage is what the container takes up in the driver beyond its parent.
func (s *Store) Usage(ctx context.Context, name string) (u drivers.Usage, err error) {
	err = s.withContainer(name, func(c Container, _ Record) error {
		u, err = s.drv.Usage(ctx, c.ID)
		return err
	})
	return u, err
}

// Diff returns what was changed in a container as a tar stream of an OCI layer, of which Register makes one. The same changes
// give the same bytes. What no such stream can hold, names that begin with .wh. and sockets, is logged, and the root's own owner,
// mode and attributes are not in it. The container cannot be removed, nor the store be migrated, until the stream is closed.
func (s *Store) Diff(ctx context.Context, name string) (io.ReadCloser, error) {
	c, below, done, err := s.useContainer(name)
	if err != nil {
		return nil, err
	}
	r, err := s.differ.Diff(ctx, c.ID, below.cacheID(), s.noting(name))
	if err != nil {
		done()
		return nil, fmt.Errorf("diff of container %s: %w", name, err)
	}
	return readCloser{diffOf{r, name}, sync.OnceValue(func() error {
		defer done()
		return r.Close()
	})}, nil
}

// noting has what a difference leaves out logged.
func (s *Store) noting(container string) *drivers.DiffOptions {
	return &drivers.DiffOptions{Note: func(path, reason string) {
		s.log.Warn("left out of the difference", "container", container, "path", "/"+path, "reason", reason)
	}}
}

// diffOf names the container in the errors of its difference.
type diffOf struct {
	io.Reader
	container string
}

func (d diffOf) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("diff of container %s: %w", d.container, err)
	}
	return n, err
}

// Commit makes an image layer over the container's parent of what was changed in the container, which goes on, mounted or
// not. It costs what the changes are worth, not the image, where the driver has a Differ of its own. Options and errors are
// those of Register.
func (s *Store) Commit(ctx context.Context, name string, o RegisterOptions) (l Layer, err error) {
	err = s.withContainer(name, func(c Container, below Record) error {
		r, err := s.differ.Diff(ctx, c.ID, below.cacheID(), s.noting(name))
		if err != nil {
			return err
		}
		l, err = s.register(ctx, ownInput(r), c.Parent, o)
		return errors.Join(err, r.Close())
	})
	if err != nil {
		return Layer{}, fmt.Errorf("commit container %s: %w", name, err)
	}
	return l, nil
}

// withContainer calls fn with a container and its parent (an empty record for none).
func (s *Store) withContainer(name string, fn func(c Container, below Record) error) error {
	c, below, done, err := s.useContainer(name)
	if err != nil {
		return err
	}
	defer done()
	return fn(c, below)
}

// useContainer keeps a container until done.
func (s *Store) useContainer(name string) (c Container, below Record, done func(), err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Container{}, Record{}, nil, err
	}
	if err := drivers.ValidID(name); err != nil {
		leave()
		return Container{}, Record{}, nil, err
	}
	unlock := s.containers.rlock(name)
	err = s.view(func(t *tx) error {
		r, err := t.container(name)
		if err != nil {
			return err
		}
		c = s.thisBoot(*r.Container)
		if c.Parent != "" {
			below, err = t.layer(c.Parent)
		}
		return err
	})
	if err != nil {
		unlock()
		leave()
		return Container{}, Record{}, nil, err
	}
	return c, below, func() { unlock(); leave() }, nil
}
