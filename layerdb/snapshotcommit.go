package layerdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"plyfs/drivers"
)

// Durability says what is on disk when a snapshot is committed.
type Durability int

const (
	// DurableRecord makes the record durable, and leaves the content to the kernel's write-back, as containerd's overlayfs snapshotter
	// does: after a power cut within some half a minute, content may be missing.
	DurableRecord Durability = iota
	// DurableContent has the driver sync the content first (drivers.Driver.Sync). Most drivers sync their whole file system.
	DurableContent
)

// SnapshotCommit are options of a commit; the zero value stands for none.
type SnapshotCommit struct {
	// Labels are those of the committed snapshot; it inherits none.
	Labels  map[string]string
	Durable Durability
}

// CommitSnapshot turns the snapshot called active into a committed one called name, and unmounts it. The layer stays where it is; most
// of the time goes into counting its usage. Nobody may write to it from then on. The error wraps drivers.ErrExists if the name is
// taken, drivers.ErrNotFound if there is no such snapshot, and drivers.ErrInUse if it is not active, or cannot be unmounted.
func (s *Store) CommitSnapshot(ctx context.Context, name, active string, o SnapshotCommit) (n Snapshot, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	defer func() {
		if err != nil {
			err = fmt.Errorf("commit snapshot %s as %s: %w", active, name, err)
		}
	}()
	if err := errors.Join(validSnapshotName(name), validSnapshotName(active)); err != nil {
		return Snapshot{}, err
	}
	defer s.snapshots.lock(name, active)()
	if err := ctx.Err(); err != nil {
		return Snapshot{}, err
	}
	var old Record
	err = s.view(func(t *tx) (err error) {
		if name != active {
			if err := t.snapshotIsFree(name); err != nil {
				return err
			}
		}
		old, err = t.snapshot(active)
		return err
	})
	if err != nil {
		return Snapshot{}, err
	}
	n = *old.Snapshot
	if n.Kind != SnapshotActive {
		return Snapshot{}, fmt.Errorf("it is not active, but %s: %w", n.Kind, drivers.ErrInUse)
	}
	n.Name, n.Kind, n.Labels, n.Created = name, SnapshotCommitted, maps.Clone(o.Labels), time.Now().UTC()
	n.Updated = n.Created
	if err := n.validate(); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", drivers.ErrInvalid, err)
	}
	if err := s.unmountSnapshot(ctx, n.ID); err != nil {
		return Snapshot{}, err
	}
	if n.Usage, err = s.drv.Usage(ctx, n.ID); err != nil {
		return Snapshot{}, err
	}
	if o.Durable == DurableContent {
		if err := s.drv.Sync(ctx, n.ID); err != nil {
			return Snapshot{}, err
		}
	}
	return n, s.replaceSnapshot(old, Record{Snapshot: &n, Drivers: old.Drivers})
}

// RemoveSnapshot removes a snapshot with its content. When it returns nil the snapshot is gone; space that could not be given back is
// left to CleanSnapshots. The error wraps drivers.ErrNotFound if there is no such snapshot, and drivers.ErrInUse while it is the parent
// of another.
func (s *Store) RemoveSnapshot(ctx context.Context, name string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := errors.Join(ctx.Err(), validSnapshotName(name)); err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	defer s.snapshots.lock(name)()
	w, err := s.forgetSnapshot(name)
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", name, err)
	}
	ctx = context.WithoutCancel(ctx)
	s.removals.enter(w.ID, w.Parent)
	defer s.removals.leave(w.ID)
	if err := s.discardSnapshot(ctx, w.ID); err != nil {
		s.log.Warn("what is left of a removed snapshot takes up space until the next clean-up", "snapshot", name, "error", err)
	}
	return nil
}

// forgetSnapshot takes a snapshot out of the database, and returns its layer as a work, which has no note in the database. Precondition:
// its name is locked.
func (s *Store) forgetSnapshot(name string) (w work, err error) {
	var r Record
	if err := s.view(func(t *tx) (err error) {
		if r, err = t.snapshot(name); err != nil {
			return err
		}
		w = work{Driver: s.drv.Name(), ID: r.Snapshot.ID}
		if parent, err := t.snapshot(r.Snapshot.Parent); r.Snapshot.Parent != "" && err == nil {
			w.Parent = parent.Snapshot.ID
		}
		return nil
	}); err != nil {
		return work{}, err
	}
	if err := s.noteRemoval(r); err != nil {
		return work{}, err
	}
	err = s.updateSnapshots(func(t *tx, k *snapshotTable) ([]work, error) {
		if n := k.children[name]; n > 0 {
			return nil, fmt.Errorf("it is the parent of %d others: %w", n, drivers.ErrInUse)
		}
		return []work{w}, t.delete(snapshotKey(name))
	}, func(k *snapshotTable) { k.remove(r.Snapshot) })
	if err != nil && !uncertain(err) {
		s.settleNote(r)
	}
	return w, err
}

// SnapshotLayers are the ids, in the driver, of the layers of a snapshot.
type SnapshotLayers struct {
	// Top is the layer that shows the snapshot: that of its parent for a view of one.
	Top string
	// Below is the layer of the parent, "" for none.
	Below string
}

// UseSnapshot calls fn with a snapshot and its layers, which are neither committed nor removed until fn returns. fn must not change that
// snapshot. The error is that of fn, or wraps drivers.ErrNotFound.
func (s *Store) UseSnapshot(ctx context.Context, name string, fn func(n Snapshot, l SnapshotLayers) error) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := errors.Join(ctx.Err(), validSnapshotName(name)); err != nil {
		return err
	}
	defer s.snapshots.rlock(name)()
	var n Snapshot
	var l SnapshotLayers
	err = s.view(func(t *tx) error {
		r, err := t.snapshot(name)
		if err != nil {
			return err
		}
		n = *r.Snapshot
		l = SnapshotLayers{Top: n.ID}
		if n.Parent == "" {
			return nil
		}
		parent, err := t.snapshot(n.Parent)
		if err != nil {
			return fmt.Errorf("parent of snapshot %s: %w", name, err)
		}
		l.Below = parent.Snapshot.ID
		if !n.hasLayer() {
			l.Top = l.Below
		}
		return nil
	})
	if err != nil {
		return err
	}
	return fn(n, l)
}

// SnapshotUsage returns what a snapshot takes up beyond its parent: for a committed one what was counted at its commit, for an active one
// what it takes up now, for a view nothing.
func (s *Store) SnapshotUsage(ctx context.Context, name string) (u drivers.Usage, err error) {
	err = s.UseSnapshot(ctx, name, func(n Snapshot, l SnapshotLayers) error {
		switch n.Kind {
		case SnapshotCommitted:
			u = n.Usage
		case SnapshotActive:
			u, err = s.drv.Usage(ctx, l.Top)
		}
		return err
	})
	return u, err
}
