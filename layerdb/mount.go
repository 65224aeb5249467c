package layerdb

import (
	"context"
	"errors"
	"fmt"

	"plyfs/drivers"
)

// MountOptions are options of one mount; the zero value mounts for reading and writing.
type MountOptions struct {
	// ReadOnly mounts so that nothing can be written. While a container is mounted, further mounts must say the same.
	ReadOnly bool
}

// Mount makes a container's tree accessible and returns the absolute path of its root. Each Mount wants an Unmount; the
// references are in the store, so that another process may unmount. The error wraps drivers.ErrInUse if the container is
// mounted with other options.
func (s *Store) Mount(ctx context.Context, name string, o MountOptions) (root string, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	if err := drivers.ValidID(name); err != nil {
		return "", err
	}
	defer s.mounting.lock(name)()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	// The reference comes first: after a crash in between there is one too many, which Unmount takes away, and never a mount
	// under a container that is removed.
	c, err := s.countMount(name, 1)
	if err != nil {
		return "", err
	}
	root, err = s.drv.Get(ctx, c.ID, &drivers.GetOptions{MountLabel: c.MountLabel, ReadOnly: o.ReadOnly})
	if err != nil {
		_, undo := s.countMount(name, -1)
		return "", errors.Join(fmt.Errorf("mount container %s: %w", name, err), undo)
	}
	s.matchReferences(ctx, c, o)
	return root, nil
}

// matchReferences gives the driver as many references to the container's mount as the store counts. It has fewer where the mount was
// made anew, because its server had died: each Mount of before still wants its Unmount, and none of them may take the mount from the
// others.
func (s *Store) matchReferences(ctx context.Context, c Container, o MountOptions) {
	d, ok := s.drv.(drivers.Referrer)
	if !ok {
		return
	}
	for n := d.References()[c.ID]; n < c.Mounts; n++ {
		if _, err := s.drv.Get(ctx, c.ID, &drivers.GetOptions{MountLabel: c.MountLabel, ReadOnly: o.ReadOnly}); err != nil {
			s.log.Warn("an unmount may come too early", "container", c.Name, "error", err)
			return
		}
	}
}

// Unmount gives back one Mount. What was written through the last one is in the container when it returns. The error wraps
// drivers.ErrInvalid if the container is not mounted.
func (s *Store) Unmount(ctx context.Context, name string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := drivers.ValidID(name); err != nil {
		return err
	}
	defer s.mounting.lock(name)()
	var c Container
	if err := s.view(func(t *tx) error {
		r, err := t.container(name)
		if err == nil {
			c = s.thisBoot(*r.Container)
		}
		return err
	}); err != nil {
		return err
	}
	if c.Mounts == 0 {
		return fmt.Errorf("container %s is not mounted: %w", name, drivers.ErrInvalid)
	}
	// The driver may know nothing of it: a plain directory is only got for as long as a process lives, and a mount may be gone.
	if err := s.drv.Put(ctx, c.ID); err != nil && !errors.Is(err, drivers.ErrInvalid) {
		return fmt.Errorf("unmount container %s: %w", name, err)
	}
	_, err = s.countMount(name, -1)
	return err
}

// countMount changes the number of references to a container's mount, and returns the container.
func (s *Store) countMount(name string, by int) (c Container, err error) {
	_, err = s.update(func(t *tx) ([]work, error) {
		r, err := t.container(name)
		if err != nil {
			return nil, err
		}
		c = s.thisBoot(*r.Container)
		c.Mounts, c.Boot = max(c.Mounts+by, 0), s.boot
		r.Container = &c
		return nil, t.put(r)
	})
	return c, err
}

// dropReferences gives back what a process that died had got from the driver for itself, to read a layer: the only references
// that outlive a process are those of Mount, which the records of containers count, and one of each snapshot that is mounted. A mount
// in use stays until the next Open.
func (s *Store) dropReferences(ctx context.Context) error {
	d, ok := s.drv.(drivers.Referrer)
	if !ok {
		return nil
	}
	has := d.References()
	if len(has) == 0 {
		return nil
	}
	wanted := make(map[string]int)
	err := s.view(func(t *tx) error {
		if err := t.records(snapshotPrefix, func(r Record) error {
			if r.Snapshot.Kind == SnapshotActive && !r.Snapshot.Unpacked && has[r.Snapshot.ID] > 0 {
				s.roots.Store(r.Snapshot.ID, "")
				wanted[r.Snapshot.ID] = 1
			}
			return ctx.Err()
		}); err != nil {
			return err
		}
		return t.records(containerPrefix, func(r Record) error {
			c := s.thisBoot(*r.Container)
			wanted[c.ID] = c.Mounts
			return ctx.Err()
		})
	})
	if err != nil {
		return fmt.Errorf("compare the mounts of driver %s with the containers and snapshots: %w", s.drv.Name(), err)
	}
	for id, n := range has {
		for ; n > wanted[id]; n-- {
			if err := s.drv.Put(ctx, id); err != nil {
				s.log.Warn("a mount that nobody needs stays", "layer", id, "error", err)
				break
			}
		}
	}
	return ctx.Err()
}
