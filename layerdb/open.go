package layerdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"plyfs/drivers"
	"plyfs/internal/sys"
	"plyfs/metadata/kv"
)

// Open opens the store, or makes a new one where there is none. It waits for another process that has it open, removes what
// interrupted operations left, and has the driver do the same.
//
// The error wraps ErrLocked if the other process does not end in time, drivers.ErrOtherDriver if another driver than
// o.Driver made the store, ErrVersion if another version of plyfs did, drivers.ErrDamaged if the database cannot be read
// (Rebuild makes a new one from the copies of its records), and what the driver's Open returns.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := openStore(ctx, o, openDatabase)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

// openStore is Open with a given way to open the database.
func openStore(ctx context.Context, o Options, open func(*Store) (database, error)) (_ *Store, err error) {
	s, err := lockRoot(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	named, err := readDriverFile(s.root)
	if err != nil {
		return nil, err
	}
	if err := checkDriver(s.root, named, o.Driver); err != nil {
		return nil, err
	}
	s.trimBallast()
	if s.db, err = open(s); err != nil {
		return nil, err
	}
	m, err := s.meta()
	switch {
	case errors.Is(err, drivers.ErrNotFound):
		if err = s.begin(ctx); s.drv == nil {
			s.unmake()
		}
	case err == nil:
		err = s.resume(ctx, m, named)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// lockRoot makes the store's directories and takes its lock.
func lockRoot(ctx context.Context, o Options) (*Store, error) {
	if o.Root == "" {
		o.Root = DefaultRoot()
	}
	if o.Root == "" {
		return nil, fmt.Errorf("no directory for the store: there is no home directory; name one: %w", drivers.ErrInvalid)
	}
	if o.Registry == nil {
		return nil, fmt.Errorf("no registry of drivers: %w", drivers.ErrInvalid)
	}
	if o.Driver != "" {
		// A store of another driver would advise a migration, which for a driver that there is not is no way out.
		if _, err := o.Registry.Lookup(o.Driver); err != nil {
			return nil, err
		}
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, err
	}
	if !utf8.ValidString(root) {
		// Records of mounts and orders to servers are JSON, and would name another directory.
		return nil, fmt.Errorf("store %q: its path is not UTF-8; choose another: %w", root, drivers.ErrInvalid)
	}
	o.Root = root
	boot, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	s := &Store{root: root, opt: o, log: o.Log, boot: boot, pins: make(map[ChainID]*pin)}
	if _, err := os.Lstat(s.path(dbDir)); o.MustExist && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is none in %s: %w; --root or PLYFS_ROOT names another directory", root, drivers.ErrNotFound)
	}
	if s.lock, err = s.makeAndLock(ctx); err != nil {
		return nil, err
	}
	s.copiesMatch.Store(s.lock.before == settled(s.boot))
	return s, nil
}

// openDatabase opens the store's database, or makes it.
func openDatabase(s *Store) (database, error) {
	fresh := !exists(s.path(dbDir, "MANIFEST"))
	if fresh {
		// Without its database a store looks new; layers would be taken for garbage.
		copies, err := os.ReadDir(s.path(recordsDir))
		if err != nil {
			return nil, err
		}
		if len(copies) > 0 {
			return nil, s.databaseError(errors.New("it is gone, but the store has layers"))
		}
	}
	db, err := openKV(s.path(dbDir), s.log)
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, kv.ErrVersion):
		return nil, fmt.Errorf("%s: %w; use the plyfs that made it: %w", s.root, ErrVersion, err)
	case errors.Is(err, kv.ErrLocked):
		return nil, fmt.Errorf("%s: %w: %w", s.root, ErrLocked, err)
	case errors.Is(err, kv.ErrRefused):
		return nil, fmt.Errorf("%s: %w; the store is unchanged", s.root, err)
	default:
		return nil, s.databaseError(err)
	}
}

func openKV(dir string, log *slog.Logger) (*kv.DB, error) {
	return kv.Open(dir, kv.Options{Profile: kv.Durable, Schema: schema, Name: "of the store", Log: log})
}

func (s *Store) databaseError(err error) error {
	return fmt.Errorf("the database of store %s is %w (%w); `plyfs layer check --repair` makes a new one from the copies in %s",
		s.root, drivers.ErrDamaged, err, s.path(recordsDir))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readDriverFile returns the name of the driver that made the store at root; "" if the file is not there.
func readDriverFile(root string) (string, error) {
	b, err := os.ReadFile(filepath.Join(root, driverFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// checkDriver compares the driver that has the store with the one that was asked for; either may be "".
func checkDriver(root, has, wanted string) error {
	if has == "" || wanted == "" || has == wanted {
		return nil
	}
	return fmt.Errorf("store %s: %w: %s made it, and %s was asked for; use --driver %s, another --root, or move all layers "+
		"with `plyfs layer migrate --to %s`", root, drivers.ErrOtherDriver, has, wanted, has, wanted)
}

// begin makes a new store of the directory.
func (s *Store) begin(ctx context.Context) error {
	name := s.opt.Driver
	if name == "" {
		f, err := s.opt.Registry.Choose(s.opt.Registry.Probe(ctx, s.opt.ForDriver))
		if err != nil {
			return err
		}
		name = f.Name
	}
	if err := s.openDriver(ctx, name); err != nil {
		return err
	}
	if err := s.putMeta(meta{Driver: name}); err != nil {
		return err
	}
	s.copiesMatch.Store(true)
	return s.writeFile([]byte(name+"\n"), driverFile)
}

// resume takes over an existing store; named is the content of the file that names the driver for those who look.
func (s *Store) resume(ctx context.Context, m meta, named string) error {
	if err := checkDriver(s.root, m.Driver, s.opt.Driver); err != nil {
		return err
	}
	if err := s.openDriver(ctx, m.Driver); err != nil {
		return err
	}
	if named != m.Driver {
		// A migration, or the making of the store, was interrupted behind its commit.
		if err := s.writeFile([]byte(m.Driver+"\n"), driverFile); err != nil {
			return err
		}
	}
	if err := emptyDir(s.path(tempDir)); err != nil {
		return err
	}
	if err := s.drv.Cleanup(ctx); err != nil {
		return fmt.Errorf("clean up driver %s: %w", m.Driver, err)
	}
	if err := s.dropReferences(ctx); err != nil {
		return err
	}
	if _, err := s.sweep(ctx, s.drv); err != nil {
		// Nothing that is wanted is lost: the next sweep tries again.
		s.log.Warn("leftovers of interrupted operations stay", "error", err)
	}
	if err := s.settleNotes(); err != nil {
		s.log.Warn("copies of the records of snapshots are missing or stale", "error", err)
	}
	if _, err := s.sweepSnapshots(ctx); err != nil {
		s.log.Warn("leftovers of interrupted operations on snapshots stay", "error", err)
	}
	if err := s.settleStreams(); err != nil {
		s.log.Warn("streams of layers may be kept twice until the next check", "error", err)
	}
	if err := s.settleCopies(); err != nil {
		s.log.Warn("copies of records may be missing or stale", "error", err)
	}
	return nil
}

// openDriver makes the named driver the store's.
func (s *Store) openDriver(ctx context.Context, name string) error {
	f, err := s.opt.Registry.Lookup(name)
	if err != nil {
		return err
	}
	drv, err := f.Open(ctx, s.opt.ForDriver(name))
	if err != nil {
		return fmt.Errorf("open driver %s: %w", name, err)
	}
	s.drv, s.differ = drv, drivers.DifferOf(drv)
	return nil
}
