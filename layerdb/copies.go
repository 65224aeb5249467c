package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"plyfs/drivers"
)

// readCopies reads the copies of records in dir, by key. bad has the paths of those that cannot be read, with the reason.
func readCopies(dir string) (copies map[string]Record, bad map[string]error, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	copies, bad = make(map[string]Record, len(entries)), make(map[string]error)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch r, err := readCopy(path); {
		case errors.Is(err, drivers.ErrDamaged):
			bad[path] = err
		case err != nil:
			return nil, nil, err
		default:
			copies[r.key()] = r
		}
	}
	return copies, bad, nil
}

// readCopy reads a copy of a record; the error wraps drivers.ErrDamaged if it is none, or one of another record.
func readCopy(path string) (Record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	r, err := DecodeRecord(bytes.TrimSuffix(b, []byte{'\n'}))
	if err == nil && copyName(r) != filepath.Base(path) {
		err = fmt.Errorf("it is a copy of the record of %s: %w", r.key(), drivers.ErrDamaged)
	}
	return r, err
}

// copies reports records without an equal copy, and copies without a record.
func (c *check) copies(context.Context) error {
	s := c.store
	named := make(map[string]bool)
	for key, r := range c.all {
		named[copyName(r)] = true
		if !r.hasCopy() {
			continue
		}
		same, err := s.sameCopy(r)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		p := Problem{Kind: ProblemCopy, Object: key, Detail: "the copy of its record is missing or stale"}
		if err := c.found(p, func() error { return s.writeCopy(r) }); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(s.path(recordsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] || !strings.HasSuffix(e.Name(), copySuffix) {
			continue
		}
		path := s.path(recordsDir, e.Name())
		p := Problem{Kind: ProblemCopy, Object: path, Detail: "it is a copy of no record"}
		if err := c.found(p, func() error { return removeFile(path) }); err != nil {
			return err
		}
	}
	return nil
}

// settleCopies makes the copies say what the records do, at Open, unless the last process closed the store and said so. A process
// that is killed between a copy and its record leaves a copy that is ahead of its record, or is of no record. Here copies of records are
// written anew, and those of holders without a record removed; those of layers and containers go with their works, those of
// snapshots with their notes. What no crash explains is left to Check: a copy that cannot be read, and that of a layer which the
// database does not name.
func (s *Store) settleCopies() error {
	if s.copiesMatch.Load() {
		return nil
	}
	named := make(map[string]bool)
	var stale []Record
	err := s.view(func(t *tx) error {
		for _, prefix := range []string{layerPrefix, containerPrefix, holderPrefix, snapshotPrefix} {
			if err := t.records(prefix, func(r Record) error {
				named[copyName(r)] = true
				if !r.hasCopy() {
					return nil
				}
				same, err := s.sameCopy(r)
				if err == nil && !same {
					stale = append(stale, r)
				}
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range stale {
		if err := s.writeCopy(r); err != nil {
			return err
		}
	}
	if err := s.dropHolderCopies(named); err != nil {
		return err
	}
	s.copiesMatch.Store(true)
	return nil
}

// dropHolderCopies removes the copies of holders whose file names are not in named.
func (s *Store) dropHolderCopies(named map[string]bool) error {
	entries, err := os.ReadDir(s.path(recordsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] || !strings.HasPrefix(e.Name(), holderCopy) {
			continue
		}
		path := s.path(recordsDir, e.Name())
		r, err := readCopy(path)
		switch {
		case errors.Is(err, drivers.ErrDamaged):
			continue
		case err != nil:
			return err
		}
		s.log.Info("the copy of a record that an interrupted operation left is removed", "holder", r.Holder.Ref().String())
		if err := removeFile(path); err != nil {
			return err
		}
	}
	return nil
}

// sameCopy says whether there is a copy of the record, and is equal to it.
func (s *Store) sameCopy(r Record) (bool, error) {
	has, err := os.ReadFile(s.path(recordsDir, copyName(r)))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	want, err := copyOf(r)
	return bytes.Equal(has, want), err
}
