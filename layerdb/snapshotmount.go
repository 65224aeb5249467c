package layerdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plyfs/drivers"
)

// MountSnapshot makes the tree of an active snapshot accessible, and returns the absolute path of its root. It stays so until the
// snapshot is committed or removed, also behind the end of this process; to mount it again says where it is, and mounts it anew if its
// mount is gone. The error wraps drivers.ErrNotFound if there is no such snapshot, drivers.ErrInvalid if it is not one that is written
// through mounts, drivers.ErrInUse if somebody else has it mounted, in a way of which the driver can tell, and
// drivers.ErrNotSupported if the driver does not tell what it has mounted.
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
	// There was a reference already, unless its mount was gone.
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

// SnapshotIsMounted says whether MountSnapshot mounted a snapshot, also in an earlier process, and nothing undid it.
func (s *Store) SnapshotIsMounted(n Snapshot) bool {
	_, ok := s.roots.Load(n.ID)
	return ok
}

// UnmountSnapshot undoes MountSnapshot, if that was called. Copies of the mount that others made stay, and are served on. The error
// wraps drivers.ErrNotFound if there is no such snapshot, and drivers.ErrInUse while something below the root that MountSnapshot
// returned is in use.
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

// snapshotEndWait bounds how long it is waited for the server of a snapshot's mount: who has a copy of the mount may keep it for
// long, and is not supposed to write to it any more.
const snapshotEndWait = 2 * time.Second

// unmountSnapshot gives back what MountSnapshot got, if that was called, for the driver's layer id.
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
