package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// DB is an open database.
type DB struct {
	b    *badger.DB
	opt  Options
	dir  string
	name string
	// at holds the directory open while the library names it by descriptor; nil unless the profile is Reader.
	at *os.File
	// faulted says that the library was left in the middle of something and must not be called again.
	faulted atomic.Bool

	mu   sync.Mutex
	idle []*badger.Txn // read-only transactions that nobody uses; guarded by mu. Only of a Reader, whose data stands still
}

// Open opens the database in dir for what o.Profile says. It blocks on disk I/O only. Errors name the database; see the
// package doc for what they wrap.
func Open(dir string, o Options) (*DB, error) {
	db := &DB{opt: o, dir: dir, name: o.Name}
	if db.name == "" {
		db.name = dir
	}
	if err := db.prepare(); err != nil {
		if scarce(err) {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return nil, errors.Join(fmt.Errorf("database %s: %w", db.name, err), db.release())
	}
	err := db.protect(func() (err error) {
		if err := reserve(db.dir); err != nil {
			return err
		}
		db.b, err = badger.Open(o.library(db.dir))
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", db.name, db.openError(err)), db.release())
	}
	return db, nil
}

// prepare makes sure that the library can be let at the directory.
func (db *DB) prepare() error {
	switch db.opt.Profile {
	case Reader:
		f, err := os.Open(db.dir)
		if err != nil {
			return err
		}
		// By descriptor, so that all files come from this directory even if another takes its name meanwhile.
		db.at, db.dir = f, sys.ProcPath(int(f.Fd()))
		return verifySeal(db.dir, db.opt.Schema)
	case Builder:
		names, err := namesIn(db.dir)
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("%w: it is to be made, but there is %s already", ErrForeign, names[0])
		}
		return err
	default:
		if err := os.MkdirAll(db.dir, 0o700); err != nil {
			return err
		}
		names, err := tidy(db.dir)
		if err != nil || len(names) == 0 {
			return err
		}
		return checkManifest(db.dir, db.opt.Schema)
	}
}

// tidy removes what a process left that died while the library made a file, and which the library refuses to open: files without
// content, and what comes before the manifest of a new database. It returns the names that stay. The caller sees to it that nobody
// else has the database open.
func tidy(dir string) (names []string, err error) {
	all, err := namesIn(dir)
	if err != nil {
		return nil, err
	}
	young := !slices.ContainsFunc(all, func(name string) bool { return name != lockName && name != manifestRewriteName })
	for _, name := range all {
		path := filepath.Join(dir, name)
		void := young
		if ext := filepath.Ext(name); ext == ".mem" || ext == ".vlog" {
			fi, err := os.Lstat(path)
			if err != nil {
				return nil, err
			}
			void = fi.Size() == 0
		}
		if !void {
			names = append(names, name)
		} else if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// Files of the library that its package does not name.
const (
	lockName            = "LOCK"
	manifestRewriteName = "MANIFEST-REWRITE"
)

// spareFiles are those that the library has open besides one for each file of the database.
const spareFiles = 16

// reserve sees to it that the process can open the files of the database in dir: where it can't, the library ends the process.
func reserve(dir string) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	fds := make([]int, 0, len(names)+spareFiles)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for range cap(fds) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		fds = append(fds, fd)
	}
	return nil
}

// openError says in this package's words why the library refused.
func (db *DB) openError(err error) error {
	switch {
	case errors.Is(err, ErrDamaged):
		return err
	case strings.Contains(err.Error(), unix.EAGAIN.Error()):
		// The library formats what it wraps, so its text is all there is.
		return fmt.Errorf("%w: %w", ErrLocked, err)
	case scarce(err):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case db.opt.Profile == Reader:
		// Immutable, and its user's own: what can't be read is of no use.
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case isAny(err, unix.EACCES, unix.EPERM, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	default:
		return err
	}
}

func (db *DB) release() error {
	if db.at == nil {
		return nil
	}
	return db.at.Close()
}

// The manifest begins with a magic word, the version of the schema, and that of the library's format.
const (
	manifestMagic   = "Bdgr"
	libraryVersion  = 8
	manifestHeadLen = 8
)

// checkManifest compares the versions in the head of the manifest in dir.
func checkManifest(dir string, schema uint16) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s", ErrForeign, badger.ManifestFilename)
	} else if err != nil {
		return err
	}
	defer f.Close()
	var head [manifestHeadLen]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:4]) != manifestMagic {
		return fmt.Errorf("%w: its %s is of something else", ErrForeign, badger.ManifestFilename)
	}
	if v := binary.BigEndian.Uint16(head[4:]); v != schema {
		return fmt.Errorf("%w: schema %d, this program knows %d", ErrVersion, v, schema)
	}
	if v := binary.BigEndian.Uint16(head[6:]); v != libraryVersion {
		return fmt.Errorf("%w: library format %d, this program knows %d", ErrVersion, v, libraryVersion)
	}
	return nil
}

// namesIn lists a directory, sorted.
func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// protect runs f, which calls the library, and turns a fault in a mapping (a file truncated by others, a disk that cannot be
// read) and a panic into ErrDamaged. f must not call code of others. After such an error the library may hold locks for
// ever: the database is not called again.
func (db *DB) protect(f func() error) (err error) {
	if db.faulted.Load() {
		return fmt.Errorf("%w: given up after a fault", ErrDamaged)
	}
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			db.faulted.Store(true)
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}

// Close closes the database; it must not be used any more, and no call may be under way. A database that faulted is left as
// it is, with its mappings, until the process ends.
func (db *DB) Close() error {
	if db.faulted.Load() {
		return nil
	}
	db.mu.Lock()
	for _, t := range db.idle {
		t.Discard()
	}
	db.idle = nil
	db.mu.Unlock()
	if err := errors.Join(db.protect(db.b.Close), db.release()); err != nil {
		return fmt.Errorf("close database %s: %w", db.name, err)
	}
	return nil
}

// Seal closes a database that a Builder filled, syncs it, and writes its seal. After an error it is closed, and of no use.
func (db *DB) Seal() error {
	if err := db.Close(); err != nil {
		return err
	}
	if err := writeSeal(db.dir, db.opt.Schema); err != nil {
		return fmt.Errorf("seal database %s: %w", db.name, err)
	}
	return nil
}
