package layerdb

import (
	"context"
	"encoding/hex"
	"strings"
)

// snapshotTable caches what decisions about snapshots need of all records, so that none has to scan them.
type snapshotTable struct {
	// children is the number of snapshots over each one that has any, by its name.
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

// snapshotTableLocked returns the table, which it makes of the records if there is none. Precondition: graph is held.
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

// updateSnapshots is update for snapshots: fn decides by the table, and committed changes the table once the transaction is on disk.
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
		// Nobody knows what is on disk: the next reader makes the table anew.
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

// IsSnapshotID says whether a word has the form of the driver's id of a snapshot's layer.
func IsSnapshotID(word string) bool {
	b, err := hex.DecodeString(word)
	return err == nil && len(b) == idBytes && strings.ToLower(word) == word
}
