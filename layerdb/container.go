package layerdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"plyfs/drivers"
)

// ContainerOptions are options of a new container; the zero value stands for none.
type ContainerOptions struct {
	// Quota bounds what is written.
	Quota drivers.Quota
	// MountLabel is the SELinux context of its mounts.
	MountLabel string
	// Options are the driver's own for one layer.
	Options map[string]string
	// Labels are the caller's.
	Labels map[string]string
}

// CreateContainer makes a writable layer over parent ("" for an empty root), durably, and gives it a name, which is what
// drivers.ValidID accepts. The container keeps its parent. The error wraps drivers.ErrExists if the name is taken,
// drivers.ErrNotFound if there is no such parent, and drivers.ErrNotSupported for a quota that cannot be enforced.
func (s *Store) CreateContainer(ctx context.Context, name string, parent ChainID, o ContainerOptions) (c Container, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Container{}, err
	}
	defer leave()
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s: %w", name, err)
		}
	}()
	c = Container{
		Name: name, ID: newID(), Parent: parent, Created: time.Now().UTC(), Quota: o.Quota, MountLabel: o.MountLabel,
		Options: maps.Clone(o.Options), Labels: maps.Clone(o.Labels),
	}
	if err := c.validate(); err != nil {
		return Container{}, fmt.Errorf("%w: %w", drivers.ErrInvalid, err)
	}
	defer s.containers.lock(name)()
	if err := s.nameIsFree(name); err != nil {
		return Container{}, err
	}
	below, unpin, err := s.pinLayer(parent)
	if err != nil {
		return Container{}, fmt.Errorf("parent: %w", err)
	}
	defer unpin()
	return c, s.makeContainer(ctx, c, below)
}

func (s *Store) nameIsFree(name string) error {
	return s.view(func(t *tx) error {
		has, err := t.has(containerKey(name))
		if err == nil && has {
			err = fmt.Errorf("the name: %w; choose another", drivers.ErrExists)
		}
		return err
	})
}

// makeContainer makes the container over below, which is pinned. Precondition: the lock of its name is held.
func (s *Store) makeContainer(ctx context.Context, c Container, below Record) (err error) {
	w := work{Driver: s.drv.Name(), ID: c.ID, Parent: below.cacheID()}
	if err := s.beginWork(w); err != nil {
		return err
	}
	defer func() {
		switch {
		case err == nil:
			s.removals.made(w.ID)
		case !uncertain(err):
			err = errors.Join(err, s.abandon(ctx, s.drv, w))
		}
	}()
	if err := s.drv.CreateReadWrite(ctx, c.ID, w.Parent, c.createOptions()); err != nil {
		return err
	}
	r := Record{Container: &c, Drivers: []string{w.Driver}}
	if err := s.writeCopy(r); err != nil {
		return err
	}
	if err := s.drv.Sync(ctx, c.ID); err != nil {
		return err
	}
	_, err = s.update(func(t *tx) ([]work, error) {
		if err := t.addUser(c.Parent, userContainer, c.Name); err != nil {
			return nil, err
		}
		if err := t.delete(workKey(w.Driver, w.ID)); err != nil {
			return nil, err
		}
		return nil, t.put(r)
	})
	return err
}

func (c Container) createOptions() *drivers.CreateOptions {
	return &drivers.CreateOptions{MountLabel: c.MountLabel, Quota: c.Quota, Options: c.Options}
}

// Container returns the named container; the error wraps drivers.ErrNotFound. The caller owns what it refers to.
func (s *Store) Container(ctx context.Context, name string) (c Container, err error) {
	if err := drivers.ValidID(name); err != nil {
		return Container{}, err
	}
	err = s.read(ctx, func(t *tx) error {
		r, err := t.container(name)
		if err == nil {
			c = s.thisBoot(*r.Container)
		}
		return err
	})
	return c, err
}

// Containers returns all containers in the order of their names.
func (s *Store) Containers(ctx context.Context) (all []Container, err error) {
	err = s.read(ctx, func(t *tx) error {
		all = nil
		return t.records(containerPrefix, func(r Record) error {
			all = append(all, s.thisBoot(*r.Container))
			return ctx.Err()
		})
	})
	return all, err
}

// thisBoot returns the container without the mounts of an earlier boot, of which none is left.
func (s *Store) thisBoot(c Container) Container {
	if c.Boot != s.boot {
		c.Mounts, c.Boot = 0, ""
	}
	return c
}

// RemoveContainer removes a container with all that was written in it, and layers that were kept by it alone. The error wraps
// drivers.ErrNotFound if there is no such container, drivers.ErrInUse while it is mounted. It waits until readers of its
// content are closed.
func (s *Store) RemoveContainer(ctx context.Context, name string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := drivers.ValidID(name); err != nil {
		return err
	}
	defer s.mounting.lock(name)()
	defer s.containers.lock(name)()
	if err := ctx.Err(); err != nil {
		return err
	}
	dead, err := s.update(func(t *tx) ([]work, error) {
		r, err := t.container(name)
		if err != nil {
			return nil, err
		}
		if n := s.thisBoot(*r.Container).Mounts; n > 0 {
			return nil, fmt.Errorf("container %s is mounted (%d times); unmount it first: %w", name, n, drivers.ErrInUse)
		}
		return s.removeContainerLocked(t, r)
	})
	if err != nil {
		return err
	}
	s.discardLater(ctx, dead)
	return nil
}

// removeContainerLocked takes a container, and what only it used, out of the database. Precondition: graph is held.
func (s *Store) removeContainerLocked(t *tx, r Record) (dead []work, err error) {
	c := r.Container
	if err := t.delete(containerKey(c.Name)); err != nil {
		return nil, err
	}
	if err := t.dropUser(c.Parent, userContainer, c.Name); err != nil {
		return nil, err
	}
	w := work{ID: c.ID}
	if below, err := t.layer(c.Parent); err == nil {
		w.Parent = below.Layer.CacheID
	}
	if dead, err = t.condemn(dead, r, w); err != nil {
		return nil, err
	}
	return s.collectLocked(t, dead, c.Parent)
}
