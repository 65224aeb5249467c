package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"plyfs/drivers"
	"plyfs/internal/sys"
	"plyfs/metadata/kv"
)

// Rebuild replaces a database that cannot be opened by a new one, made of the copies of the records, and reports what is wrong with
// the store then. The damaged database is kept in ROOT/db.damaged-N. The errors are those of Open, and drivers.ErrExists if the
// database is not damaged.
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
	s.copiesMatch.Store(false) // fill may change a record; Open writes its copy anew
	return rep, s.fill(m, copies)
}

// fill replaces the damaged database by one that holds these records.
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
			// Whether other drivers have it whole, too, only the lost database knew.
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

// replaceDatabase renames the database in the directory fresh to its place, and the one that is there to a free name.
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
