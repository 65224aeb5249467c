package kv

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Get returns the value of key in the database of a Reader, and whether there is one. It is a string, since it is copied out
// of the mapping once and never changes. Values are not empty: one that is was lost. The error wraps ErrDamaged.
func (db *DB) Get(key []byte) (value string, found bool, err error) {
	err = db.protect(func() error {
		t := db.borrow()
		item, err := t.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			db.giveBack(t)
			return nil
		} else if err != nil {
			return err
		}
		found = true
		err = item.Value(func(v []byte) error {
			value = string(v)
			return nil
		})
		db.giveBack(t)
		return err
	})
	if err != nil {
		return "", false, fmt.Errorf("database %s: key %q: %w", db.name, key, damage(err))
	}
	if found && value == "" {
		// The library logs that it cannot read a value, and gives none.
		return "", false, fmt.Errorf("database %s: key %q: %w: no value", db.name, key, ErrDamaged)
	}
	return value, found, nil
}

// damage makes any error of reading immutable data wrap ErrDamaged.
func damage(err error) error {
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// borrow returns a transaction to read with. It is not given back after a fault.
func (db *DB) borrow() *badger.Txn {
	db.mu.Lock()
	defer db.mu.Unlock()
	if n := len(db.idle); n > 0 {
		t := db.idle[n-1]
		db.idle = db.idle[:n-1]
		return t
	}
	return db.b.NewTransaction(false)
}

func (db *DB) giveBack(t *badger.Txn) {
	db.mu.Lock()
	db.idle = append(db.idle, t)
	db.mu.Unlock()
}

// Scan calls fn for every key of a Reader's database that begins with prefix, in order, with its value. It ends at fn's
// first error, and returns it. A value that cannot be read is given as "". Other errors wrap ErrDamaged.
func (db *DB) Scan(prefix []byte, fn func(key, value string) error) error {
	var it *badger.Iterator
	var t *badger.Txn
	err := db.protect(func() error {
		t = db.borrow()
		o := badger.DefaultIteratorOptions
		o.Prefix = prefix
		o.PrefetchValues = false
		it = t.NewIterator(o)
		it.Rewind()
		return nil
	})
	if err != nil {
		return fmt.Errorf("database %s: %w", db.name, err)
	}
	defer func() {
		if !db.faulted.Load() {
			it.Close()
			db.giveBack(t)
		}
	}()
	for {
		key, value, ok, err := db.step(it)
		if err != nil {
			return fmt.Errorf("database %s: behind key %q: %w", db.name, key, err)
		}
		if !ok {
			return nil
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
}

// step returns what the iterator is at, and moves it on. ok is false at the end.
func (db *DB) step(it *badger.Iterator) (key, value string, ok bool, err error) {
	err = db.protect(func() error {
		if !it.Valid() {
			return nil
		}
		item := it.Item()
		key = string(item.Key())
		ok = true
		err := item.Value(func(v []byte) error {
			value = string(v)
			return nil
		})
		it.Next()
		return err
	})
	return key, value, ok, err
}
