package layerdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"plyfs/drivers"
)

// SnapshotKind says what can be done with a snapshot.
type SnapshotKind string

// The kinds are containerd's (core/snapshots).
const (
	// SnapshotActive is written to, until it is committed or removed.
	SnapshotActive SnapshotKind = "active"
	// SnapshotView is read, until it is removed.
	SnapshotView SnapshotKind = "view"
	// SnapshotCommitted does not change any more, and may be the parent of others.
	SnapshotCommitted SnapshotKind = "committed"
)

// Snapshot is a tree under a name, as containerd keeps them. Unlike a Layer it is known by its name, not by its content: the store keeps
// no stream of it, and snapshots above it refer to the name.
type Snapshot struct {
	Name string       `json:"name"`
	Kind SnapshotKind `json:"kind"`
	// Parent is the name of a committed snapshot, "" for none.
	Parent string `json:"parent,omitempty"`
	// ID is random: the driver's id of the snapshot's layer. A commit, which changes the name, does not change it. A view of a parent has
	// an ID, but no layer of its own.
	ID string `json:"id"`
	// Unpacked says that the layer was made for a stream, not for a mount: an image layer in the driver from the beginning.
	Unpacked bool `json:"unpacked,omitempty"`
	// Labels are the caller's.
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	// Usage is what a committed snapshot takes up beyond its parent, counted when it was committed.
	Usage drivers.Usage `json:"usage,omitzero"`
}

// hasLayer says whether the driver has a layer for the snapshot.
func (n *Snapshot) hasLayer() bool { return n.Kind != SnapshotView || n.Parent == "" }

// MaxSnapshotName bounds the name of a snapshot, in bytes.
const MaxSnapshotName = 4 << 10

func validSnapshotName(name string) error {
	if name == "" || len(name) > MaxSnapshotName || strings.ContainsRune(name, 0) || !utf8.ValidString(name) {
		return fmt.Errorf("name of a snapshot %.40q: it is not UTF-8 of 1 to %d bytes without zeros: %w", name, MaxSnapshotName,
			drivers.ErrInvalid)
	}
	return nil
}

func (n *Snapshot) validate() error {
	if err := validSnapshotName(n.Name); err != nil {
		return err
	}
	if n.Parent != "" {
		if err := validSnapshotName(n.Parent); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	if err := drivers.ValidID(n.ID); err != nil {
		return err
	}
	size := 0
	for key, value := range n.Labels {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return fmt.Errorf("snapshot %s: label %q is not UTF-8", n.Name, key)
		}
		size += len(key) + len(value)
	}
	switch {
	case n.Kind != SnapshotActive && n.Kind != SnapshotView && n.Kind != SnapshotCommitted:
		return fmt.Errorf("snapshot %s: its kind is %q", n.Name, n.Kind)
	case n.Usage.Bytes < 0 || n.Usage.Inodes < 0:
		return fmt.Errorf("snapshot %s: its usage is negative", n.Name)
	case n.Unpacked && n.Kind == SnapshotView:
		return fmt.Errorf("snapshot %s: a view has no content of its own", n.Name)
	case size > MaxData:
		return fmt.Errorf("snapshot %s: %d bytes of labels, at most %d fit", n.Name, size, MaxData)
	}
	return nil
}

// SnapshotContent says where the content of an active snapshot comes from.
type SnapshotContent int

const (
	// SnapshotWritten is written through a mount.
	SnapshotWritten SnapshotContent = iota
	// SnapshotUnpacked is unpacked from one stream, by the driver's ApplyDiff, or by somebody who writes the form of the driver's layers.
	SnapshotUnpacked
)

// SnapshotOptions are options of a new snapshot; the zero value stands for none.
type SnapshotOptions struct {
	// Kind is SnapshotActive or SnapshotView; "" stands for the former.
	Kind    SnapshotKind
	Content SnapshotContent
	// Quota bounds what is written.
	Quota drivers.Quota
	// Labels are the caller's.
	Labels map[string]string
}

// CreateSnapshot makes a snapshot over parent ("" for an empty root). Its record is durable; what is written to it is as durable as
// any file. The error wraps drivers.ErrExists if the name is taken, drivers.ErrNotFound if there is no such parent,
// drivers.ErrInvalid if the parent is not committed, and drivers.ErrNotSupported for a quota that cannot be enforced.
func (s *Store) CreateSnapshot(ctx context.Context, name, parent string, o SnapshotOptions) (n Snapshot, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	defer func() {
		if err != nil {
			err = fmt.Errorf("create snapshot %s: %w", name, err)
		}
	}()
	if o.Kind == "" {
		o.Kind = SnapshotActive
	}
	now := time.Now().UTC()
	n = Snapshot{
		Name: name, Kind: o.Kind, Parent: parent, ID: newID(), Unpacked: o.Content == SnapshotUnpacked,
		Labels: maps.Clone(o.Labels), Created: now, Updated: now,
	}
	if err := n.validate(); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", drivers.ErrInvalid, err)
	}
	if n.Kind == SnapshotCommitted || name == parent {
		return Snapshot{}, fmt.Errorf("a new snapshot is active or a view, and not its own parent: %w", drivers.ErrInvalid)
	}
	defer s.lockSnapshotOver(name, parent)()
	if err := ctx.Err(); err != nil {
		return Snapshot{}, err
	}
	below, err := s.snapshotParent(name, parent)
	if err != nil {
		return Snapshot{}, err
	}
	return n, s.makeSnapshot(ctx, n, below, o.Quota)
}

// lockSnapshotOver locks a name for writing, and that of its parent for reading, in the order of the names, as keyLocks.lock does.
func (s *Store) lockSnapshotOver(name, parent string) (unlock func()) {
	if parent == "" {
		return s.snapshots.lock(name)
	}
	if parent < name {
		below := s.snapshots.rlock(parent)
		own := s.snapshots.lock(name)
		return func() { own(); below() }
	}
	own := s.snapshots.lock(name)
	below := s.snapshots.rlock(parent)
	return func() { below(); own() }
}

// snapshotParent returns the driver's id of a new snapshot's parent, "" for none. The error wraps drivers.ErrExists if the name is taken.
func (s *Store) snapshotParent(name, parent string) (id string, err error) {
	err = s.view(func(t *tx) error {
		if parent != "" {
			r, err := t.snapshot(parent)
			if err != nil {
				return fmt.Errorf("parent: %w", err)
			}
			if r.Snapshot.Kind != SnapshotCommitted {
				return fmt.Errorf("parent %s is not committed: %w", parent, drivers.ErrInvalid)
			}
			id = r.Snapshot.ID
		}
		return t.snapshotIsFree(name)
	})
	return id, err
}

func (t *tx) snapshotIsFree(name string) error {
	has, err := t.has(snapshotKey(name))
	if err == nil && has {
		err = fmt.Errorf("snapshot %s: %w", name, drivers.ErrExists)
	}
	return err
}

// makeSnapshot makes the snapshot over the driver's layer below. Precondition: its name is locked, and its parent's.
func (s *Store) makeSnapshot(ctx context.Context, n Snapshot, below string, q drivers.Quota) (err error) {
	r := Record{Snapshot: &n, Drivers: []string{s.drv.Name()}}
	if err := s.beginSnapshot(r); err != nil {
		return err
	}
	defer func() {
		switch {
		case err == nil:
			s.endSnapshot(r)
		case !uncertain(err):
			err = errors.Join(err, s.discardSnapshot(context.WithoutCancel(ctx), n.ID))
			s.removals.made(n.ID)
		}
	}()
	if n.hasLayer() {
		if err := s.createSnapshotLayer(ctx, n, below, q); err != nil {
			return err
		}
	}
	return s.updateSnapshots(func(t *tx, _ *snapshotTable) ([]work, error) { return nil, t.put(r) },
		func(k *snapshotTable) { k.add(&n) })
}

func (s *Store) createSnapshotLayer(ctx context.Context, n Snapshot, below string, q drivers.Quota) error {
	if n.Unpacked || n.Kind == SnapshotView {
		return s.drv.Create(ctx, n.ID, below, nil)
	}
	return s.drv.CreateReadWrite(ctx, n.ID, below, &drivers.CreateOptions{Quota: q})
}

// Snapshot returns the named snapshot; the error wraps drivers.ErrNotFound. The caller owns what it refers to.
func (s *Store) Snapshot(ctx context.Context, name string) (n Snapshot, err error) {
	if err := validSnapshotName(name); err != nil {
		return Snapshot{}, err
	}
	err = s.read(ctx, func(t *tx) error {
		r, err := t.snapshot(name)
		if err == nil {
			n = *r.Snapshot
		}
		return err
	})
	return n, err
}

// Snapshots returns all snapshots in the order of their names.
func (s *Store) Snapshots(ctx context.Context) (all []Snapshot, err error) {
	err = s.read(ctx, func(t *tx) error {
		all = nil
		return t.records(snapshotPrefix, func(r Record) error {
			all = append(all, *r.Snapshot)
			return ctx.Err()
		})
	})
	return all, err
}

// RelabelSnapshot replaces the labels of a snapshot by what change makes of them, and returns the snapshot as it is then. change
// may be called again, and may keep what it is given. Its error is returned, and leaves the snapshot as it was.
func (s *Store) RelabelSnapshot(
	ctx context.Context, name string, change func(labels map[string]string) (map[string]string, error),
) (n Snapshot, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	defer func() {
		if err != nil {
			err = fmt.Errorf("change the labels of snapshot %s: %w", name, err)
		}
	}()
	if err := errors.Join(ctx.Err(), validSnapshotName(name)); err != nil {
		return Snapshot{}, err
	}
	defer s.snapshots.lock(name)()
	var old Record
	if err := s.view(func(t *tx) (err error) {
		old, err = t.snapshot(name)
		return err
	}); err != nil {
		return Snapshot{}, err
	}
	n = *old.Snapshot
	if n.Labels, err = change(maps.Clone(n.Labels)); err != nil {
		return Snapshot{}, err
	}
	n.Updated = time.Now().UTC()
	if err := n.validate(); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", drivers.ErrInvalid, err)
	}
	return n, s.replaceSnapshot(old, Record{Snapshot: &n, Drivers: old.Drivers})
}

// replaceSnapshot puts a record in the place of another one of the same layer. Precondition: the names of both are locked.
func (s *Store) replaceSnapshot(old, r Record) error {
	if err := s.noteSnapshot(r); err != nil {
		return err
	}
	err := s.updateSnapshots(func(t *tx, _ *snapshotTable) ([]work, error) {
		if old.Snapshot.Name != r.Snapshot.Name {
			if err := t.snapshotIsFree(r.Snapshot.Name); err != nil {
				return nil, err
			}
			if err := t.delete(old.key()); err != nil {
				return nil, err
			}
		}
		return nil, t.put(r)
	}, func(k *snapshotTable) { k.names[r.Snapshot.ID] = r.Snapshot.Name })
	switch {
	case err == nil:
		s.settleNote(r)
	case !uncertain(err):
		err = errors.Join(err, removeFile(s.notePath(r.Snapshot.ID)))
	}
	return err
}
