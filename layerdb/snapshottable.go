package layerdb

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// A note is an empty file named by the driver's id of a snapshot's layer that is being made or removed. Unlike the notes of works
// it is not durable: it is there after the death of the process. After a power cut it may be lost with what it is about, or
// without it: then Check finds a layer that nothing names. So a snapshot costs one sync, and not three.

func (s *Store) notePath(id string) string { return s.path(notesDir, id) }

func (s *Store) noteSnapshot(id string) error {
	f, err := os.OpenFile(s.notePath(id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// beginSnapshot notes that a snapshot is being made.
func (s *Store) beginSnapshot(id string) error {
	if err := s.needSpace(addSpace); err != nil {
		return err
	}
	s.removals.make(id)
	if err := s.noteSnapshot(id); err != nil {
		s.removals.made(id)
		return err
	}
	return nil
}

// endSnapshot takes the note away: the database names what was made.
func (s *Store) endSnapshot(id string) {
	if err := removeFile(s.notePath(id)); err != nil {
		s.log.Warn("the note of a snapshot that was made stays until the next clean-up", "error", err)
	}
	s.removals.made(id)
}

// discardSnapshot removes what is there of a snapshot that the database does not name, and its note at the end.
func (s *Store) discardSnapshot(ctx context.Context, id string) error {
	if err := s.unmountSnapshot(ctx, id); err != nil {
		return err
	}
	if err := s.drv.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove layer %s of driver %s: %w", id, s.drv.Name(), err)
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

// deadSnapshots lists what notes are about and the database does not name, the topmost first, and takes other notes away.
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
		if drivers.ValidID(id) != nil || s.removals.busy(id) {
			continue
		}
		if _, named := k.names[id]; named {
			if err := removeFile(s.notePath(id)); err != nil {
				return nil, err
			}
			continue
		}
		dead = append(dead, work{Driver: s.drv.Name(), ID: id, Parent: parents[id]})
	}
	s.removals.note(dead)
	return topDown(dead), nil
}

// writeLazyCopy replaces the copy of a record, without waiting for the disk: behind a power cut it may be that of an earlier
// moment, of which Check tells. A snapshot is committed for each layer of an image, and containerd has a record of its own.
func (s *Store) writeLazyCopy(r Record) error {
	b, err := copyOf(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.path(tempDir), "file-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.path(recordsDir), copyName(r)))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the copy of the record of snapshot %s: %w", r.Snapshot.Name, err), removeFile(f.Name()))
	}
	return nil
}

// IsSnapshotID says whether a word has the form of the driver's id of a snapshot's layer.
func IsSnapshotID(word string) bool {
	b, err := hex.DecodeString(word)
	return err == nil && len(b) == idBytes && strings.ToLower(word) == word
}
