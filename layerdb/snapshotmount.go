package layerdb

import (
	"context"
	"errors"
	"fmt"

	"plyfs/drivers"
)

// MountSnapshot makes the tree of an active snapshot accessible, and returns the absolute path of its root. It stays so until the
// snapshot is committed or removed, also behind the end of this process; to mount it again says where it is, and mounts it anew if its
// mount is gone. The error wraps drivers.ErrNotFound if there is no such snapshot, drivers.ErrInvalid if it is not one that is written
// through mounts, and drivers.ErrNotSupported if the driver does not tell what it has mounted.
func (s *Store) MountSnapshot(ctx context.Context, name string) (root string, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount snapshot %s: %w", name, err)
		}
	}()
	if err := errors.Join(ctx.Err(), validSnapshotName(name)); err != nil {
		return "", err
	}
	defer s.snapshots.lock(name)()
	var n Snapshot
	if err := s.view(func(t *tx) error {
		r, err := t.snapshot(name)
		if err == nil {
			n = *r.Snapshot
		}
		return err
	}); err != nil {
		return "", err
	}
	if n.Kind != SnapshotActive || n.Unpacked {
		return "", fmt.Errorf("it is not written through mounts: %w", drivers.ErrInvalid)
	}
	if root, ok := s.roots.Load(n.ID); ok && drivers.IsMountPoint(root.(string)) {
		return root.(string), nil
	}
	d, ok := s.drv.(drivers.Referrer)
	if !ok {
		return "", fmt.Errorf("driver %s does not tell what it has mounted: %w", s.drv.Name(), drivers.ErrNotSupported)
	}
	if root, err = s.drv.Get(ctx, n.ID, nil); err != nil {
		return "", err
	}
	// One reference is enough: nobody gives them back one by one.
	for range d.References()[n.ID] - 1 {
		if err := s.drv.Put(context.WithoutCancel(ctx), n.ID); err != nil {
			return "", err
		}
	}
	s.roots.Store(n.ID, root)
	return root, nil
}

// unmountSnapshot undoes MountSnapshot, if that was called, for the driver's layer id. The error wraps drivers.ErrInUse while something
// below the root that it returned is in use; copies of the mount elsewhere do not count.
func (s *Store) unmountSnapshot(ctx context.Context, id string) error {
	d, ok := s.drv.(drivers.Referrer)
	if !ok {
		return nil
	}
	s.roots.Delete(id)
	for range d.References()[id] {
		// The driver forgets what is not mounted any more.
		if err := s.drv.Put(ctx, id); err != nil && !errors.Is(err, drivers.ErrInvalid) {
			return err
		}
	}
	return nil
}
