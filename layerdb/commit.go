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

// Changes lists what was changed in a container since it was made, parents before children. The container may be in use: the list
// may or may not contain what changes while it is made.
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

// DiffSize returns the sum of the sizes, in bytes, of the regular files in Diff's stream.
func (s *Store) DiffSize(ctx context.Context, name string) (n int64, err error) {
	err = s.withContainer(name, func(c Container, below Record) error {
		n, err = s.differ.DiffSize(ctx, c.ID, below.cacheID())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size of the changes of container %s: %w", name, err)
	}
	return n, nil
}

// Usage returns what the container takes up in the driver beyond its parent.
func (s *Store) Usage(ctx context.Context, name string) (u drivers.Usage, err error) {
	err = s.withContainer(name, func(c Container, _ Record) error {
		u, err = s.drv.Usage(ctx, c.ID)
		return err
	})
	if err != nil {
		return drivers.Usage{}, fmt.Errorf("usage of container %s: %w", name, err)
	}
	return u, nil
}

// Diff returns what was changed in a container as the uncompressed tar stream of an OCI layer, which Register takes. The same
// changes give the same bytes. Not in the stream, but logged, is what none can hold: sockets, and names that begin with .wh.;
// neither are owner, mode and attributes of the container's root. The caller closes the stream: until then the container cannot be
// removed, and the store not be migrated.
func (s *Store) Diff(ctx context.Context, name string) (io.ReadCloser, error) {
	c, below, done, err := s.useContainer(name)
	if err != nil {
		return nil, err
	}
	r, err := s.differ.Diff(ctx, c.ID, below.cacheID(), s.diffOptions(name))
	if err != nil {
		done()
		return nil, fmt.Errorf("diff of container %s: %w", name, err)
	}
	return readCloser{diffOf{r, name}, sync.OnceValue(func() error {
		defer done()
		return r.Close()
	})}, nil
}

// diffOptions are the options of a container's Diff, which log what it leaves out.
func (s *Store) diffOptions(container string) *drivers.DiffOptions {
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

// Commit registers what was changed in a container as an image layer over the container's parent. The container stays as it is, and
// may be mounted. Where the driver has a Differ of its own, the time it takes grows with the changes, not with the image. Options
// and errors are those of Register.
func (s *Store) Commit(ctx context.Context, name string, o RegisterOptions) (l Layer, err error) {
	err = s.withContainer(name, func(c Container, below Record) error {
		r, err := s.differ.Diff(ctx, c.ID, below.cacheID(), s.diffOptions(name))
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

// withContainer calls fn with a container and its parent (an empty record for none). Until fn returns, neither is removed.
func (s *Store) withContainer(name string, fn func(c Container, below Record) error) error {
	c, below, done, err := s.useContainer(name)
	if err != nil {
		return err
	}
	defer done()
	return fn(c, below)
}

// useContainer returns a container and its parent (an empty record for none), which are not removed until done is called.
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
