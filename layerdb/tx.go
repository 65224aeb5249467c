package layerdb

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"plyfs/drivers"
	"plyfs/metadata/kv"
)

// Keys of the database; the table is in the package doc.
const (
	metaKey         = "m"
	layerPrefix     = "l/"
	containerPrefix = "c/"
	holderPrefix    = "h/"
	userPrefix      = "u/"
	snapshotPrefix  = "s/"
	workPrefix      = "w/"
)

func layerKey(id ChainID) string                  { return layerPrefix + string(id) }
func containerKey(name string) string             { return containerPrefix + name }
func snapshotKey(name string) string              { return snapshotPrefix + name }
func holderKey(r Ref) string                      { return holderPrefix + r.Kind + "/" + r.Key }
func userKey(id ChainID, kind, key string) string { return usersOf(id) + kind + "/" + key }
func usersOf(id ChainID) string                   { return userPrefix + string(id) + "/" }
func workKey(driver, id string) string            { return workPrefix + driver + "/" + id }

// errStop ends a scan early.
var errStop = errors.New("stop")

// tx is a transaction of the store's database.
type tx struct{ *kv.Txn }

// view reads the database as it is now.
func (s *Store) view(fn func(t *tx) error) error {
	return s.db.View(func(k *kv.Txn) error { return fn(&tx{k}) })
}

// update runs fn in a transaction and commits it, under graph. Decisions are made one after another, because the database would not
// notice if two contradict each other: one finds that nobody uses a layer, another begins to use it. fn may be run again, and must
// have no effect outside the transaction. It returns the works, noted in the transaction, that the caller has to end with discardAll
// after the commit.
func (s *Store) update(fn func(t *tx) ([]work, error)) ([]work, error) {
	s.graph.Lock()
	defer s.graph.Unlock()
	return s.updateLocked(fn)
}

// commitError is the error of a commit of which nobody knows whether it is on disk. Only the next Open finds out; until then nothing
// that the transaction is about may be changed or removed.
type commitError struct{ error }

func (e commitError) Unwrap() error { return e.error }

// uncertain says whether err is, or wraps, a commitError.
func uncertain(err error) bool {
	var c commitError
	return errors.As(err, &c)
}

// updateLocked is update. Precondition: graph is held.
func (s *Store) updateLocked(fn func(t *tx) ([]work, error)) (dead []work, err error) {
	s.trimBallast()
	var decided error
	err = s.db.Update(func(k *kv.Txn) error {
		dead, decided = fn(&tx{k})
		return decided
	})
	switch {
	case err != nil && decided == nil:
		s.copiesMatch.Store(false)
		return nil, commitError{err}
	case err != nil:
		return nil, err
	}
	s.removals.note(dead)
	return dead, nil
}

// get returns the value of key. If there is none, the error wraps drivers.ErrNotFound and calls it what.
func (t *tx) get(key, what string) ([]byte, error) {
	b, err := t.Get([]byte(key))
	if errors.Is(err, kv.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w", what, drivers.ErrNotFound)
	}
	return b, err
}

func (t *tx) has(key string) (bool, error) {
	_, err := t.Get([]byte(key))
	if errors.Is(err, kv.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (t *tx) record(key, what string) (Record, error) {
	b, err := t.get(key, what)
	if err != nil {
		return Record{}, err
	}
	r, err := decodeAt(key, b)
	if err != nil {
		return Record{}, fmt.Errorf("%s: %w", what, err)
	}
	return r, nil
}

// decodeAt is DecodeRecord for the value of a key, which must be that of the record.
func decodeAt(key string, value []byte) (Record, error) {
	r, err := DecodeRecord(value)
	if err == nil && r.key() != key {
		return Record{}, fmt.Errorf("the record of %s is in its place: %w", r.key(), drivers.ErrDamaged)
	}
	return r, err
}

// key is the record's key in the database.
func (r Record) key() string {
	switch {
	case r.Layer != nil:
		return layerKey(r.Layer.ID)
	case r.Container != nil:
		return containerKey(r.Container.Name)
	case r.Snapshot != nil:
		return snapshotKey(r.Snapshot.Name)
	default:
		return holderKey(r.Holder.Ref())
	}
}

func (t *tx) put(r Record) error {
	b, err := EncodeRecord(r)
	if err != nil {
		return err
	}
	return t.Set([]byte(r.key()), b)
}

func (t *tx) putJSON(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.Set([]byte(key), b)
}

func (t *tx) delete(key string) error { return t.Delete([]byte(key)) }

func (t *tx) layer(id ChainID) (Record, error) { return t.record(layerKey(id), "layer "+string(id)) }

func (t *tx) container(name string) (Record, error) {
	r, err := t.record(containerKey(name), "container "+name)
	if errors.Is(err, drivers.ErrNotFound) {
		err = fmt.Errorf("%w; plyfs container ls lists what there is", err)
	}
	return r, err
}

func (t *tx) snapshot(name string) (Record, error) {
	return t.record(snapshotKey(name), "snapshot "+name)
}

func (t *tx) holder(r Ref) (Record, error) { return t.record(holderKey(r), r.String()) }

// records calls fn for every record whose key begins with prefix, in order.
func (t *tx) records(prefix string, fn func(Record) error) error {
	return t.Scan([]byte(prefix), func(key, value []byte) error {
		r, err := decodeAt(string(key), value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return fn(r)
	})
}

// meta returns the record of the store; the error wraps drivers.ErrNotFound in a new one.
func (s *Store) meta() (m meta, err error) {
	err = s.view(func(t *tx) error {
		m, err = t.meta()
		return err
	})
	return m, err
}

func (t *tx) meta() (meta, error) {
	b, err := t.get(metaKey, "record of the store")
	if err != nil {
		return meta{}, err
	}
	return decodeJSON[meta]("record of the store", b)
}

func (s *Store) putMeta(m meta) error {
	_, err := s.update(func(t *tx) ([]work, error) { return nil, t.putJSON(metaKey, m) })
	return err
}

// addUser notes that something uses a layer, which is there.
func (t *tx) addUser(id ChainID, kind, key string) error {
	if id == "" {
		return nil
	}
	if ok, err := t.has(layerKey(id)); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	// A value is never empty, so that one that is was lost.
	return t.Set([]byte(userKey(id, kind, key)), []byte{'1'})
}

func (t *tx) dropUser(id ChainID, kind, key string) error {
	if id == "" {
		return nil
	}
	return t.delete(userKey(id, kind, key))
}

// used says whether anything in the database uses the layer.
func (t *tx) used(id ChainID) (bool, error) {
	err := t.Scan([]byte(usersOf(id)), func(_, _ []byte) error { return errStop })
	if errors.Is(err, errStop) {
		return true, nil
	}
	return false, err
}

// users names who uses the layer: "layer sha256:...", "container NAME", "image NAME".
func (t *tx) users(id ChainID) (names []string, err error) {
	prefix := usersOf(id)
	err = t.Scan([]byte(prefix), func(key, _ []byte) error {
		kind, name, _ := strings.Cut(strings.TrimPrefix(string(key), prefix), "/")
		names = append(names, kind+" "+name)
		return nil
	})
	return names, err
}

// works returns the unfinished operations on the layers of a driver, in the order of topDown.
func (t *tx) works(driver string) (all []work, err error) {
	err = t.Scan([]byte(workPrefix+driver+"/"), func(key, value []byte) error {
		w, err := decodeJSON[work](string(key), value)
		if err != nil {
			return err
		}
		all = append(all, w)
		return nil
	})
	return topDown(all), err
}

// topDown orders works so that each comes before the one that it has as its parent.
func topDown(all []work) []work {
	children := make(map[string]int, len(all))
	byID := make(map[string]work, len(all))
	for _, w := range all {
		children[w.Parent]++
		byID[w.ID] = w
	}
	ordered := make([]work, 0, len(all))
	for _, w := range all {
		// From each work that none is above, go up the parents for as long as all works above the parent are in the list already.
		for ok := children[w.ID] == 0; ok; ok = ok && children[w.ID] == 0 {
			ordered = append(ordered, w)
			children[w.Parent]--
			if w, ok = byID[w.Parent]; !ok {
				break
			}
		}
	}
	return ordered
}
