package layerdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plyfs/drivers"
)

// MountSnapshot mounts an active snapshot and returns the absolute path of its root. The mount stays until UnmountSnapshot, or until the
// snapshot is committed or removed, and outlives this process. Another call returns the same root, and mounts anew if the mount is
// gone.
//
// The error wraps drivers.ErrNotFound if there is no such snapshot; drivers.ErrInvalid if it is not an active one whose content is
// written through mounts; drivers.ErrInUse if the driver finds that somebody else has mounted it; and drivers.ErrNotSupported if the
// driver is no drivers.Referrer.
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
	n, err := s.lockedSnapshot(name)
	if err != nil {
		return "", err
	}
	if n.Kind != SnapshotActive || n.Unpacked {
		return "", fmt.Errorf("it is not written through mounts: %w", drivers.ErrInvalid)
	}
	known, mounted := s.roots.Load(n.ID)
	if root, ok := known.(string); ok && root != "" && drivers.IsMountPoint(root) {
		return root, nil
	}
	d, ok := s.drv.(drivers.Referrer)
	if !ok {
		return "", fmt.Errorf("driver %s does not tell what it has mounted: %w", s.drv.Name(), drivers.ErrNotSupported)
	}
	if root, err = s.drv.Get(ctx, n.ID, &drivers.GetOptions{Alone: true}); err != nil {
		return "", err
	}
	// This snapshot has one reference, whoever took it: if there was one before the Get, give that of the Get back.
	if mounted && d.References()[n.ID] > 1 {
		if err := s.drv.Put(context.WithoutCancel(ctx), n.ID); err != nil {
			return "", err
		}
	}
	s.roots.Store(n.ID, root)
	return root, nil
}

// lockedSnapshot returns a snapshot. Precondition: its name is locked.
func (s *Store) lockedSnapshot(name string) (n Snapshot, err error) {
	err = s.view(func(t *tx) error {
		r, err := t.snapshot(name)
		if err == nil {
			n = *r.Snapshot
		}
		return err
	})
	return n, err
}

// SnapshotIsMounted says whether MountSnapshot, in this process or an earlier one, mounted the snapshot, and it was not unmounted since.
// Its mount may be gone all the same, if the server of it died.
func (s *Store) SnapshotIsMounted(n Snapshot) bool {
	_, ok := s.roots.Load(n.ID)
	return ok
}

// UnmountSnapshot undoes MountSnapshot; without one it does nothing. Bind mounts that others made of the mount stay, and go on to be
// served. It waits up to two seconds for the server. The error wraps drivers.ErrNotFound if there is no such snapshot, and
// drivers.ErrInUse while something beneath the root is in use.
func (s *Store) UnmountSnapshot(ctx context.Context, name string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := errors.Join(ctx.Err(), validSnapshotName(name)); err != nil {
		return err
	}
	defer s.snapshots.lock(name)()
	n, err := s.lockedSnapshot(name)
	if err == nil {
		err = s.unmountSnapshot(ctx, n.ID)
	}
	if err != nil {
		return fmt.Errorf("unmount snapshot %s: %w", name, err)
	}
	return nil
}

// snapshotEndWait bounds how long unmounting a snapshot waits for the server to end. It does not end as long as somebody has a bind
// mount of it, who is not supposed to write through that any more.
const snapshotEndWait = 2 * time.Second

// unmountSnapshot gives back the reference that MountSnapshot took, if any, to the driver's layer id.
func (s *Store) unmountSnapshot(ctx context.Context, id string) error {
	if _, mounted := s.roots.Load(id); !mounted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotEndWait)
	defer cancel()
	// The driver forgets what is not mounted any more.
	if err := s.drv.Put(ctx, id); err != nil && !errors.Is(err, drivers.ErrInvalid) && !errors.Is(err, drivers.ErrNotFound) {
		return err
	}
	s.roots.Delete(id)
	return nil
}
