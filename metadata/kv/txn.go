package kv

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// conflictRetries is how often a transaction is run again before its conflict is reported. Transactions of this program
// are short and few: who loses as often waits for something that does not end.
const conflictRetries = 100

// Txn is a transaction: it sees the database as it was when it began, and what it wrote itself. It belongs to one goroutine
// and ends with the function that it was given to.
type Txn struct{ t *badger.Txn }

// Get returns a copy of the value of key; the error wraps ErrNotFound if there is none.
func (t *Txn) Get(key []byte) ([]byte, error) {
	item, err := t.t.Get(key)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", key, classify(err))
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", key, classify(err))
	}
	return v, nil
}

// Set stores value under key. Both belong to the transaction until it ends. The error wraps ErrTooLarge when the transaction
// takes no more; what was written before can still be committed.
func (t *Txn) Set(key, value []byte) error {
	if err := t.t.Set(key, value); err != nil {
		return fmt.Errorf("key %q: %w", key, classify(err))
	}
	return nil
}

// Delete removes key; that there is none is no error. It is otherwise like Set.
func (t *Txn) Delete(key []byte) error {
	if err := t.t.Delete(key); err != nil {
		return fmt.Errorf("key %q: %w", key, classify(err))
	}
	return nil
}

// Scan calls fn for every key that begins with prefix, in order, with copies of key and value. It ends at fn's first
// error, and returns it.
func (t *Txn) Scan(prefix []byte, fn func(key, value []byte) error) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	o.PrefetchValues = false
	it := t.t.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		key := item.KeyCopy(nil)
		value, err := item.ValueCopy(nil)
		if err != nil {
			return fmt.Errorf("key %q: %w", key, classify(err))
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

// View runs fn in a transaction that only reads.
func (db *DB) View(fn func(*Txn) error) error {
	t := db.b.NewTransaction(false)
	defer t.Discard()
	return fn(&Txn{t})
}

// Update runs fn in a transaction and commits it if fn returns nil. When others changed what fn read, fn is run again from
// the beginning, so it must have no effect outside the transaction. The error wraps ErrConflict when that never ends.
func (db *DB) Update(fn func(*Txn) error) error {
	for range conflictRetries {
		err := db.attempt(fn)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("database %s: %w: %d times", db.name, ErrConflict, conflictRetries)
}

func (db *DB) attempt(fn func(*Txn) error) error {
	t := db.b.NewTransaction(true)
	defer t.Discard()
	if err := fn(&Txn{t}); err != nil {
		return err
	}
	if err := t.Commit(); err != nil {
		return fmt.Errorf("database %s: commit: %w", db.name, classify(err))
	}
	return nil
}

// UpdateEach runs fn for every i below n, as many as fit in each transaction. All that fn does for one i is committed
// together or not at all; after an error, what was done for some i before may be committed. fn is run again for
// the same i when a transaction was full or in conflict, so it must have no effect outside the transaction. The error
// wraps ErrTooLarge if one i alone does not fit.
func (db *DB) UpdateEach(n int, fn func(t *Txn, i int) error) error {
	for done, most := 0, n; done < n; {
		tried := 0
		err := db.Update(func(t *Txn) error {
			for tried = 0; tried < min(most, n-done); tried++ {
				if err := fn(t, done+tried); err != nil {
					return err
				}
			}
			return nil
		})
		switch {
		case err == nil:
			done += tried
		case errors.Is(err, ErrTooLarge) && min(most, n-done) > 1:
			// Begin anew without the one that did not fit, of which a part may be written.
			most = max(min(tried, min(most, n-done)-1), 1)
		default:
			return err
		}
	}
	return nil
}
