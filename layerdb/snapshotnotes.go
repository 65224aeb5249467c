package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"plyfs/drivers"
)

// A note says that an operation on a snapshot has begun: it is a file in ROOT/unfinished whose name is the driver's id of the
// snapshot's layer. While a snapshot is made or changed, its note holds the future copy of its record, which a rename turns into the
// copy once the record is committed; when one is removed, its copy is renamed to be the note. So no operation needs a second file:
// ext4 takes long to find a free inode for one after many were removed. A snapshot that is being unpacked (Snapshot.Unpacked) has no
// copy until it is committed: all this time it has an empty note.
//
// Unlike the notes of works in the database, these are not synced, so that a snapshot costs one sync instead of three. They survive
// the death of the process, and what they name without a record is then garbage (sweepSnapshots). A power cut may lose a note and
// leave the layer: Check reports that one as garbage.

func (s *Store) notePath(id string) string { return s.path(notesDir, id) }

// hasCopy says whether the record has a copy while no operation on it is under way.
func (r Record) hasCopy() bool {
	return r.Snapshot == nil || !r.Snapshot.Unpacked || r.Snapshot.Kind == SnapshotCommitted
}

// noteSnapshot notes that r is about to become, or already is, the snapshot's record.
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

// noteRemoval notes that a snapshot is about to be removed: its copy becomes the note.
func (s *Store) noteRemoval(r Record) error {
	err := os.Rename(s.path(recordsDir, copyName(r)), s.notePath(r.Snapshot.ID))
	if errors.Is(err, os.ErrNotExist) {
		return s.noteSnapshot(r)
	}
	return err
}

// settleNote turns the note into the copy of r, which the database has now. A failure is only logged: the next Open does it again.
func (s *Store) settleNote(r Record) {
	if !r.hasCopy() {
		return
	}
	if err := os.Rename(s.notePath(r.Snapshot.ID), s.path(recordsDir, copyName(r))); err != nil {
		s.log.Warn("the copy of a snapshot's record is stale until the store is opened anew", "snapshot", r.Snapshot.Name, "error", err)
	}
}

// settleNotes is settleNote, at Open, for the notes of all snapshots that the database names. A note may be of a change that was not
// committed, so it is written anew from the record.
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

// beginSnapshot notes that the snapshot is being made. endSnapshot or discardSnapshot ends that.
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

// endSnapshot ends what beginSnapshot began: the database names the snapshot.
func (s *Store) endSnapshot(r Record) {
	s.settleNote(r)
	s.removals.made(r.Snapshot.ID)
}

// discardSnapshot removes the layer and the files of a snapshot that the database does not name. The note goes last, so that a
// failure leaves it to the next sweep.
func (s *Store) discardSnapshot(ctx context.Context, id string) error {
	if err := s.unmountSnapshot(ctx, id); err != nil {
		return err
	}
	if err := s.drv.Remove(ctx, id); err != nil {
		return fmt.Errorf("driver %s: %w", s.drv.Name(), err)
	}
	return errors.Join(removeFile(s.path(recordsDir, snapshotCopyName(id))), removeFile(s.notePath(id)))
}

// CleanSnapshots removes what failed and interrupted operations left of snapshots, and returns of how many. It runs beside other
// operations. The error names what could not be removed.
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

// deadSnapshots lists the snapshots that have a note and no record, and that no operation of this process is working on, the topmost
// first. Each is noted as being removed until removals.leave.
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
