package drivers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Ledger keeps small records for a driver whose layers are not files of its home, and so can't tell by themselves
// what they are. Whoever opens a driver may give it one in Options, in a database that is backed up with the rest;
// FileLedger is the other one.
//
// A key is what ValidID accepts. A record is durable when the call that made it returns, and old or new after a
// crash, never a mixture. A Ledger may be used by any number of goroutines.
type Ledger interface {
	// Put makes or replaces a record. The value is the caller's again afterwards.
	Put(ctx context.Context, key string, value []byte) error
	// Get returns a record, which the caller owns. The error wraps ErrNotFound if there is none.
	Get(ctx context.Context, key string) ([]byte, error)
	// Delete removes a record; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// Scan calls fn for each record whose key begins with prefix, in no particular order, and ends at fn's first
	// error, which it returns. fn may not change the ledger, and owns value.
	Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error
}

// FileLedger is a Ledger in a directory: one file a record. It holds some space back, so that layers can be removed
// from a full file system too.
type FileLedger struct{ dir string }

const (
	// ledgerTmp begins the name of a file that is being written; no key does so.
	ledgerTmp = ".tmp-"
	// ledgerSpare is the file that is given up when there is no space for a record. No key is like it.
	ledgerSpare = ".spare"
	// spareBytes is some records' worth of the largest blocks that file systems have.
	spareBytes = 256 << 10
)

// OpenFileLedger opens the ledger in dir, which it makes with mode 0700, and removes what was not written to its end.
func OpenFileLedger(dir string) (*FileLedger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l := &FileLedger{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("ledger %s: %w", dir, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ledgerTmp) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("ledger %s: %w", dir, err)
			}
		}
	}
	l.reserve()
	return l, l.sync()
}

// reserve takes space for bad times, if there is some and it has none.
func (l *FileLedger) reserve() {
	path := filepath.Join(l.dir, ledgerSpare)
	if st, err := os.Stat(path); err == nil && st.Size() == spareBytes {
		return
	}
	if err := os.WriteFile(path, make([]byte, spareBytes), 0o600); err != nil {
		// There is none: what it holds is better left to others.
		_ = os.Remove(path)
	}
}

// Put implements Ledger.
func (l *FileLedger) Put(ctx context.Context, key string, value []byte) error {
	if err := l.begin(ctx, key); err != nil {
		return err
	}
	err := l.put(key, value)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if os.Remove(filepath.Join(l.dir, ledgerSpare)) == nil {
			err = l.put(key, value)
		}
	}
	if err != nil {
		return fmt.Errorf("ledger %s: write %s: %w", l.dir, key, err)
	}
	return nil
}

func (l *FileLedger) put(key string, value []byte) (err error) {
	tmp := filepath.Join(l.dir, ledgerTmp+rand.Text())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, filepath.Join(l.dir, key))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return l.sync()
}

// Get implements Ledger.
func (l *FileLedger) Get(ctx context.Context, key string) ([]byte, error) {
	if err := l.begin(ctx, key); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(l.dir, key))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("ledger %s: read %s: %w", l.dir, key, err)
	}
	return b, nil
}

// Delete implements Ledger.
func (l *FileLedger) Delete(ctx context.Context, key string) error {
	if err := l.begin(ctx, key); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(l.dir, key))
	if errors.Is(err, fs.ErrNotExist) {
		// One whose removal could not be synced may be gone only here.
		err = nil
	}
	if err = errors.Join(err, l.sync()); err != nil {
		return fmt.Errorf("ledger %s: delete %s: %w", l.dir, key, err)
	}
	l.reserve()
	return nil
}

// Scan implements Ledger.
func (l *FileLedger) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("ledger %s: %w", l.dir, err)
	}
	for _, e := range entries {
		if ValidID(e.Name()) != nil || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		b, err := l.Get(ctx, e.Name())
		if errors.Is(err, ErrNotFound) {
			// Deleted meanwhile.
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(e.Name(), b); err != nil {
			return err
		}
	}
	return nil
}

func (l *FileLedger) begin(ctx context.Context, key string) error {
	if err := ValidID(key); err != nil {
		return fmt.Errorf("ledger %s: key: %w", l.dir, err)
	}
	return ctx.Err()
}

// sync makes the names of the records durable.
func (l *FileLedger) sync() error { return sys.SyncDir(l.dir) }
