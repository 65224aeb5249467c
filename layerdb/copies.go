package layerdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/internal/sys"
	"plyfs/metadata/kv"
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

// copies compares the copies with the records.
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

// settleCopies makes the copies say what the records do, at Open, unless the process before is known to have left them so: one that was
// killed between the two has left a copy of no record, or one that is ahead of its record. Copies of layers and containers that
// came to nothing go with their works, those of snapshots with their notes. What a crash cannot explain is left to Check: a copy that
// cannot be read, and one of a layer that the database does not name.
func (s *Store) settleCopies() error {
	if s.agree.Load() {
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
	s.agree.Store(true)
	return nil
}

// dropHolderCopies removes the copies of records of holders that are not named.
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

// sameCopy says whether the copy of the record says what the record says.
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

// verifyStream compares what is kept of a layer's stream with its digest.
func (s *Store) verifyStream(l Layer) error {
	f, err := os.Open(s.streamPath(l))
	if errors.Is(err, os.ErrNotExist) {
		return nil // reported as missing
	} else if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if has := digest.NewDigest(digest.SHA256, sum); has != l.StreamSum {
		return fmt.Errorf("%s has digest %s, not %s: %w", f.Name(), has, l.StreamSum, drivers.ErrDamaged)
	}
	return nil
}

// Rebuild makes a new database for a store whose database cannot be opened, of the copies of its records, and reports what
// is wrong with the store then. The old database stays beside it, under a name that begins with db.damaged. Errors are those
// of Open; the error wraps drivers.ErrExists if the database is not damaged.
func Rebuild(ctx context.Context, o Options) (Report, error) {
	rep, err := rebuild(ctx, o)
	if err != nil {
		return rep, fmt.Errorf("rebuild the database: %w", err)
	}
	s, err := Open(ctx, o)
	if err != nil {
		return rep, err
	}
	found, err := s.Check(ctx, CheckOptions{})
	found.Problems = append(rep.Problems, found.Problems...)
	return found, errors.Join(err, s.Close())
}

func rebuild(ctx context.Context, o Options) (rep Report, err error) {
	s, err := lockRoot(ctx, o)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, s.release()) }()
	if db, err := openDatabase(s); err == nil {
		s.db = db
		return rep, fmt.Errorf("the database can be opened: %w", drivers.ErrExists)
	} else if !errors.Is(err, drivers.ErrDamaged) {
		return rep, err
	}
	copies, bad, err := readCopies(s.path(recordsDir))
	if err != nil {
		return rep, err
	}
	for path, why := range bad {
		rep.Problems = append(rep.Problems, Problem{Kind: ProblemCopy, Object: path, Detail: why.Error(), Remedy: remedyImport})
	}
	m := meta{}
	if m.Driver, err = readDriverFile(s.root); err != nil {
		return rep, err
	}
	if m.Driver == "" {
		return rep, fmt.Errorf("file %s, which names the driver, is gone too; write it anew: %w", s.path(driverFile), drivers.ErrDamaged)
	}
	return rep, s.fill(m, copies)
}

// fill puts a database of the given records in the place of the damaged one.
func (s *Store) fill(m meta, records map[string]Record) (err error) {
	fresh := s.path(tempDir, dbDir)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	db, err := openKV(fresh, s.log)
	if err != nil {
		return err
	}
	list := make([]Record, 0, len(records))
	for _, r := range records {
		if r.Holder == nil {
			// What another driver has is known to be whole only by the database that is lost.
			r.Drivers = []string{m.Driver}
		}
		list = append(list, r)
	}
	err = db.UpdateEach(len(list)+1, func(k *kv.Txn, i int) error {
		t := &tx{k}
		if i == len(list) {
			return t.putJSON(metaKey, m)
		}
		for user := range list[i].wants() {
			if err := t.Set([]byte(user), []byte{'1'}); err != nil {
				return err
			}
		}
		return t.put(list[i])
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return s.replaceDatabase(fresh)
}

// replaceDatabase puts the database in the directory fresh in the place of the old one, which it keeps.
func (s *Store) replaceDatabase(fresh string) error {
	if exists(s.path(dbDir)) {
		aside := ""
		for i := 1; aside == "" || exists(aside); i++ {
			aside = s.path(fmt.Sprintf("%s.damaged-%d", dbDir, i))
		}
		if err := os.Rename(s.path(dbDir), aside); err != nil {
			return err
		}
		s.log.Warn("the damaged database was set aside", "path", aside)
	}
	if err := os.Rename(fresh, s.path(dbDir)); err != nil {
		return err
	}
	return sys.SyncDir(s.root)
}
