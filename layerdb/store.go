package layerdb

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"plyfs/drivers"
	"plyfs/metadata/kv"
)

// schema is the version of what is in the database; see the key table in the package doc.
const schema = 1

// Options say which store is opened, and how.
type Options struct {
	// Root is the directory of the store, which Open makes if needed; "" stands for DefaultRoot.
	Root string
	// Driver is the name of the driver; "" for the one that made the store, and for a new store the first of the registry that
	// is usable and not passed over.
	Driver   string
	Registry *drivers.Registry
	// DriverOptions are the driver's own.
	DriverOptions map[string]string
	// MustExist says that a store is not made: where there is none the error wraps drivers.ErrNotFound.
	MustExist bool
	// Wait is how long Open waits for another process that has the store open; zero stands for ten seconds, a negative value,
	// such as NoWait, for not waiting.
	Wait time.Duration
	// Log takes what is worth knowing; nil discards.
	Log *slog.Logger
}

// Store is an open layer store. It may be used by any number of goroutines; see the package doc for its locks.
type Store struct {
	root string
	opt  Options
	log  *slog.Logger
	lock *storeLock
	made madeParts
	boot string
	db   database
	// drv and differ are replaced by a migration, which is alone then.
	drv    drivers.Driver
	differ drivers.Differ

	gate       gate
	flights    flights
	holders    keyLocks // by key
	mounting   keyLocks // by a container's name
	containers keyLocks // by a container's name
	snapshots  keyLocks // by a snapshot's name
	removals   removals
	// roots holds the root that MountSnapshot returned, by the driver's id of the snapshot's layer; "" if an earlier process mounted it.
	// Each entry stands for one reference of the driver. An entry changes under the lock of its snapshot.
	roots sync.Map

	// copiesMatch says that all copies equal their records, but for operations that are under way. Once false it stays so until the
	// next Open compares them.
	copiesMatch atomic.Bool

	graph sync.Mutex
	pins  map[ChainID]*pin // guarded by graph
	// snapshotsKnown is nil until it is needed; guarded by graph.
	snapshotsKnown *snapshotTable
}

// database is what the store needs of metadata/kv; tests fail and stop in it.
type database interface {
	View(fn func(*kv.Txn) error) error
	Update(fn func(*kv.Txn) error) error
	Close() error
}

// Root is the directory of the store.
func (s *Store) Root() string { return s.root }

// Driver is the driver of the store. Its layers are the store's: who uses it directly must hold what it uses, and change
// nothing.
func (s *Store) Driver() drivers.Driver { return s.drv }

// BlobDir is a directory in the store for blobs of images. The store does not look into it.
func (s *Store) BlobDir() string { return s.path(blobsDir) }

// DriverDir is the home of the store's driver.
func (s *Store) DriverDir() string { return s.path(layersDir, s.drv.Name()) }

// TempDir is a directory in the store that is emptied whenever the store is opened.
func (s *Store) TempDir() string { return s.path(tempDir) }

// Close ends the use of the store by this process. Layers, containers and mounts stay. Operations that are under way,
// readers that were not closed among them, fail or have failed: the caller ends them before. A second Close does nothing.
func (s *Store) Close() error {
	if !s.gate.close() {
		return nil
	}
	return s.release()
}

// release gives back what Open took, as far as it got.
func (s *Store) release() error {
	var errs []error
	if s.drv != nil {
		errs = append(errs, s.drv.Close())
	}
	if s.db != nil {
		s.trimBallast()
		errs = append(errs, s.db.Close())
	}
	if s.lock != nil {
		if s.copiesMatch.Load() && errors.Join(errs...) == nil {
			// If it fails, the next Open compares the copies once more than needed.
			_ = writeLock(s.lock.f, settled(s.boot))
		}
		errs = append(errs, s.lock.release())
	}
	return errors.Join(errs...)
}

const idBytes = 16

// newID returns 128 random bits as a name.
func newID() string {
	var b [idBytes]byte
	rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
