package layerdb

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"plyfs/drivers"
)

// snapshotTable is what is known of all snapshots without asking the database. It follows from the records.
type snapshotTable struct {
	// children is how many snapshots have this one as their parent, by name.
	children map[string]int
	// names are the names of the snapshots by the driver's ids.
	names map[string]string
}

func (k *snapshotTable) add(n *Snapshot) {
	k.names[n.ID] = n.Name
	if n.Parent != "" {
		k.children[n.Parent]++
	}
}

func (k *snapshotTable) remove(n *Snapshot) {
	delete(k.names, n.ID)
	if n.Parent == "" {
		return
	}
	if k.children[n.Parent]--; k.children[n.Parent] == 0 {
		delete(k.children, n.Parent)
	}
}

// snapshotTableLocked reads the table when it is wanted first. Precondition: graph is held.
func (s *Store) snapshotTableLocked() (*snapshotTable, error) {
	if s.snapshotsKnown != nil {
		return s.snapshotsKnown, nil
	}
	k := &snapshotTable{children: make(map[string]int), names: make(map[string]string)}
	err := s.view(func(t *tx) error {
		return t.records(snapshotPrefix, func(r Record) error {
			k.add(r.Snapshot)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	s.snapshotsKnown = k
	return k, nil
}

// updateSnapshots is update for snapshots: committed changes the table if the transaction is committed.
func (s *Store) updateSnapshots(fn func(t *tx, k *snapshotTable) ([]work, error), committed func(k *snapshotTable)) error {
	s.graph.Lock()
	defer s.graph.Unlock()
	k, err := s.snapshotTableLocked()
	if err != nil {
		return err
	}
	_, err = s.updateLocked(func(t *tx) ([]work, error) { return fn(t, k) })
	switch {
	case err == nil:
		committed(k)
	case uncertain(err):
		// What is on disk the next reader finds out.
		s.snapshotsKnown = nil
	}
	return err
}

// SnapshotOf returns the name of the snapshot whose layer has this id in the driver; "" if there is none.
func (s *Store) SnapshotOf(ctx context.Context, id string) (name string, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s.graph.Lock()
	defer s.graph.Unlock()
	k, err := s.snapshotTableLocked()
	if err != nil {
		return "", err
	}
	return k.names[id], nil
}

// A note is a file named by the driver's id of a snapshot's layer that is being made, changed or removed. It is the copy of the
// snapshot's record on its way: one that is made, or changed, becomes the copy behind the commit; that of one that is removed was the
// copy. So an operation needs no other file: a file system that has just removed many looks long for a free inode. A snapshot that is
// unpacked gets its copy when it is committed; until then the note stays, empty.
//
// Unlike the notes of works it is not durable: it is there after the death of the process. After a power cut it may be lost with what
// it is about, or without it: then Check finds a layer that nothing names. So a snapshot costs one sync, and not three.

func (s *Store) notePath(id string) string { return s.path(notesDir, id) }

// hasCopy says whether there is a copy of the record when nothing is under way.
func (r Record) hasCopy() bool {
	return r.Snapshot == nil || !r.Snapshot.Unpacked || r.Snapshot.Kind == SnapshotCommitted
}

// noteSnapshot notes that the snapshot's record is about to become r.
func (s *Store) noteSnapshot(r Record) error {
	var b []byte
	if r.hasCopy() {
		var err error
		if b, err = copyOf(r); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(s.notePath(r.Snapshot.ID), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if len(b) > 0 {
		_, err = f.Write(b)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the copy of the record of snapshot %s: %w", r.Snapshot.Name, errors.Join(err, removeFile(f.Name())))
	}
	return nil
}

// noteRemoval notes that a snapshot is about to be removed.
func (s *Store) noteRemoval(r Record) error {
	err := os.Rename(s.path(recordsDir, copyName(r)), s.notePath(r.Snapshot.ID))
	if errors.Is(err, os.ErrNotExist) {
		return s.noteSnapshot(r)
	}
	return err
}

// settleNote makes a note the copy of the record, which the database has.
func (s *Store) settleNote(r Record) {
	if !r.hasCopy() {
		return
	}
	if err := os.Rename(s.notePath(r.Snapshot.ID), s.path(recordsDir, copyName(r))); err != nil {
		s.log.Warn("the copy of a snapshot's record is stale until the store is opened anew", "snapshot", r.Snapshot.Name, "error", err)
	}
}

// settleNotes does so with all notes about what the database names, at Open.
func (s *Store) settleNotes() error {
	notes, err := os.ReadDir(s.path(notesDir))
	if err != nil || len(notes) == 0 {
		return err
	}
	noted := make(map[string]bool, len(notes))
	for _, note := range notes {
		noted[note.Name()] = true
	}
	return s.view(func(t *tx) error {
		return t.records(snapshotPrefix, func(r Record) error {
			switch {
			case !noted[r.Snapshot.ID]:
				return nil
			case !r.hasCopy():
				return removeFile(s.notePath(r.Snapshot.ID))
			}
			if err := s.noteSnapshot(r); err != nil {
				return err
			}
			s.settleNote(r)
			return nil
		})
	})
}

// beginSnapshot notes that a snapshot is being made.
func (s *Store) beginSnapshot(r Record) error {
	if err := s.needSpace(addSpace); err != nil {
		return err
	}
	s.removals.make(r.Snapshot.ID)
	if err := s.noteSnapshot(r); err != nil {
		s.removals.made(r.Snapshot.ID)
		return err
	}
	return nil
}

// endSnapshot ends that: the database names what was made.
func (s *Store) endSnapshot(r Record) {
	s.settleNote(r)
	s.removals.made(r.Snapshot.ID)
}

// discardSnapshot removes what is there of a snapshot that the database does not name, and its note at the end.
func (s *Store) discardSnapshot(ctx context.Context, id string) error {
	if err := s.unmountSnapshot(ctx, id); err != nil {
		return err
	}
	if err := s.drv.Remove(ctx, id); err != nil {
		return fmt.Errorf("driver %s: %w", s.drv.Name(), err)
	}
	return errors.Join(removeFile(s.path(recordsDir, snapshotCopyName(id))), removeFile(s.notePath(id)))
}

// CleanSnapshots removes what interrupted operations, and those that failed, left of snapshots, and returns how many there were. It
// runs beside other operations. The error tells what could not be removed.
func (s *Store) CleanSnapshots(ctx context.Context) (n int, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	return s.sweepSnapshots(ctx)
}

func (s *Store) sweepSnapshots(ctx context.Context) (n int, err error) {
	dead, err := s.deadSnapshots(ctx)
	if err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, w := range dead {
		s.removals.enter(w.ID, w.Parent)
		if err := s.discardSnapshot(ctx, w.ID); err != nil {
			errs = append(errs, err)
		} else {
			n++
		}
		s.removals.leave(w.ID)
	}
	return n, errors.Join(errs...)
}

// deadSnapshots lists what notes are about and the database does not name, the topmost first.
func (s *Store) deadSnapshots(ctx context.Context) (dead []work, err error) {
	notes, err := os.ReadDir(s.path(notesDir))
	if err != nil || len(notes) == 0 {
		return nil, err
	}
	parents := make(map[string]string)
	if err := s.drv.List(ctx, func(i drivers.Info) error {
		parents[i.ID] = i.Parent
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list the layers of driver %s: %w", s.drv.Name(), err)
	}
	s.graph.Lock()
	defer s.graph.Unlock()
	k, err := s.snapshotTableLocked()
	if err != nil {
		return nil, err
	}
	for _, note := range notes {
		id := note.Name()
		if _, named := k.names[id]; named || drivers.ValidID(id) != nil || s.removals.busy(id) {
			continue
		}
		dead = append(dead, work{Driver: s.drv.Name(), ID: id, Parent: parents[id]})
	}
	s.removals.note(dead)
	return topDown(dead), nil
}

// IsSnapshotID says whether a word has the form of the driver's id of a snapshot's layer.
func IsSnapshotID(word string) bool {
	b, err := hex.DecodeString(word)
	return err == nil && len(b) == idBytes && strings.ToLower(word) == word
}
