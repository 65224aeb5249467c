package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
)

// Config is what a driver makes a store with.
type Config struct {
	// Name is the driver's.
	Name string
	// Home, Run and Log are those of drivers.Options.
	Home, Run string
	Log       *slog.Logger
	// Volatile says that mounts sync nothing, and mark the work directory as the kernel does (volatile.go).
	Volatile bool
	// ReadOnly opens a store, also one of moby's, in which nothing is changed: mount points are in Run.
	ReadOnly bool
	Mounter  Mounter
	Quotas   Quotas
	Form     Form
}

// Form says in which form a store keeps what a layer cannot hold as such: whiteouts, owners, devices.
type Form struct {
	// Whiteouts, Owner and Devices are for unpacking; see tarlayer.ApplyOptions.
	Whiteouts tarlayer.WhiteoutForm
	Owner     tarlayer.OwnerForm
	Devices   tarlayer.DeviceForm
	// Names are the attributes that mark whiteouts and opaque directories; nil where the file system takes none.
	Names *ovl.Names
	// Reads are the forms of marks that the mounts of this store understand. Other marks are an application's files.
	Reads ovl.Forms
}

// Quotas bounds writable layers.
type Quotas interface {
	// Check returns an error that wraps drivers.ErrNotSupported if q cannot be enforced here.
	Check(q drivers.Quota) error
	// Set bounds what will be in dirs, taken together. They are empty.
	Set(q drivers.Quota, dirs ...string) error
	// Release ends the quota of dirs. It is called before they are deleted.
	Release(dirs ...string) error
}

// Store keeps the layers of one home. It implements all of drivers.Driver, drivers.Differ and drivers.Planner, for a
// driver to embed.
type Store struct {
	name     string
	home     string
	run      string
	log      *slog.Logger
	readOnly bool
	volatile bool
	selinux  bool
	mounter  Mounter
	quotas   Quotas
	form     Form

	dirs   *layerdir.Home // nil for a store that is only read
	locks  drivers.Locks
	mounts *drivers.Mounts

	mu    sync.Mutex
	table map[string]*entry // guarded by mu
}

// entry is a layer in the table; its fields are guarded by Store.mu.
type entry struct {
	parent   string
	writable bool
	// pending says that the layer is being made or deleted.
	pending bool
	// children is the number of layers that have this one as their parent.
	children int
	// readers is the number of operations that read the layer and those below it, which must stay as they are meanwhile.
	readers int
	// filling says that the layer is being unpacked.
	filling bool
	// restoring says that the layer was lost and made anew, beneath layers that have it as their parent, and was not unpacked yet.
	restoring bool
	// damaged says that its directory could not be read when the store was opened.
	damaged bool
}

// Open opens the store in c.Home, or begins one.
func Open(c Config) (*Store, error) {
	s := &Store{
		name: c.Name, home: c.Home, run: c.Run, log: c.Log, readOnly: c.ReadOnly, volatile: c.Volatile,
		mounter: c.Mounter, quotas: c.Quotas, form: c.Form, table: make(map[string]*entry),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	// selinuxfs is mounted exactly where SELinux is enabled (cf. libselinux is_selinux_enabled).
	_, err := os.Stat("/sys/fs/selinux/enforce")
	s.selinux = err == nil
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open the store %s: %w", s.home, errors.Join(err, s.Close()))
	}
	if s.mounts, err = drivers.OpenMounts(filepath.Join(s.run, "mounts")); err != nil {
		return nil, fmt.Errorf("open the store %s: %w", s.home, errors.Join(err, s.Close()))
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open the store %s: %w", s.home, errors.Join(err, s.Close()))
	}
	return s, nil
}

// prepare makes the directories of the store.
func (s *Store) prepare() error {
	for _, dir := range []string{s.home, s.run} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("directory %q is not absolute: %w", dir, drivers.ErrInvalid)
		}
	}
	if err := os.MkdirAll(s.run, 0o700); err != nil {
		return err
	}
	if s.readOnly {
		if _, err := os.Stat(filepath.Join(s.home, linksDir)); err != nil {
			return fmt.Errorf("no store of overlay layers to be read: %w", err)
		}
		return mkdir(s.empty(), 0o755)
	}
	var err error
	if s.dirs, err = layerdir.Open(s.home); err != nil {
		return err
	}
	return errors.Join(mkdir(filepath.Join(s.home, linksDir), 0o700), mkdir(s.empty(), 0o755))
}

// empty is a directory that stands in for a lower layer where there is none.
func (s *Store) empty() string {
	if s.readOnly {
		return filepath.Join(s.run, "empty")
	}
	return filepath.Join(s.home, emptyDir)
}

// emptyLower is empty as a path of a Stack.
func (s *Store) emptyLower() string {
	if s.readOnly {
		return s.empty()
	}
	return emptyDir
}

// mkdir makes a directory, whatever the umask, if it is not there.
func mkdir(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// load fills the table. A damaged layer is in it, as far as it is known, so that it can be removed.
func (s *Store) load() error {
	names, err := os.ReadDir(s.home)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range names {
		id, ok := idOf(e.Name())
		if !ok || !e.IsDir() || s.isRestoring(id) {
			continue
		}
		l, bad := s.readLayer(id)
		if bad != nil {
			s.log.Error("a layer cannot be used", "layer", id, "error", bad)
			l = &layer{}
			_, _ = s.readRecord(id, &l.record) // what it says, if it says anything
		}
		s.table[id] = &entry{parent: l.Parent, writable: l.Writable, damaged: bad != nil}
	}
	for _, e := range s.table {
		if p := s.table[e.parent]; p != nil {
			p.children++
		}
	}
	return nil
}

// isRestoring says whether the directory of a layer is one that was made anew and is not complete.
func (s *Store) isRestoring(id string) bool {
	_, err := os.Lstat(s.dir(id, restoringFile))
	return err == nil
}

// References implements drivers.Referrer.
func (s *Store) References() map[string]int { return s.mounts.References() }

// Name implements drivers.Driver.
func (s *Store) Name() string { return s.name }

// Home is the directory of the store.
func (s *Store) Home() string { return s.home }

// Close implements drivers.Driver.
func (s *Store) Close() error {
	if s.dirs == nil {
		return nil
	}
	return s.dirs.Close()
}

// Exists implements drivers.Driver.
func (s *Store) Exists(ctx context.Context, id string) (bool, error) {
	if err := begin(ctx, id); err != nil {
		return false, err
	}
	e, ok := s.lookup(id)
	if !ok || e.restoring {
		return false, nil
	}
	_, err := os.Lstat(s.dir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// lookup returns a copy of what the table knows of a layer that is neither being made nor deleted.
func (s *Store) lookup(id string) (entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table[id]
	if e == nil || e.pending {
		return entry{}, false
	}
	return *e, true
}

// List implements drivers.Driver.
func (s *Store) List(ctx context.Context, fn func(drivers.Info) error) error {
	all := make(map[string]entry)
	s.mu.Lock()
	for id, e := range s.table {
		if !e.pending && !e.restoring {
			all[id] = *e
		}
	}
	s.mu.Unlock()
	for id, e := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		info := drivers.Info{ID: id, Parent: e.parent, Writable: e.writable}
		if e.damaged {
			// Cleanup may have mended it.
			if _, err := s.readLayer(id); err != nil {
				if _, there := s.lookup(id); !there {
					continue // it was removed meanwhile
				}
				info.Damaged = err.Error()
			}
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Sync implements drivers.Driver. All layers lie on one file system, which is synced as a whole.
func (s *Store) Sync(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if err := begin(ctx, id); err != nil {
			return err
		}
		if _, ok := s.lookup(id); !ok {
			return notFound(id)
		}
	}
	if len(ids) == 0 || s.readOnly {
		return nil
	}
	return s.dirs.Sync()
}

// Metadata implements drivers.Driver. The keys are moby's.
func (s *Store) Metadata(ctx context.Context, id string) (map[string]string, error) {
	if err := begin(ctx, id); err != nil {
		return nil, err
	}
	l, err := s.readLayer(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{
		"UpperDir": s.dir(id, diffDir), "MergedDir": s.target(id), "WorkDir": "", "LowerDir": "", "Parent": l.Parent,
	}
	if l.Writable {
		m["WorkDir"] = s.dir(id, workDir)
	}
	for i, link := range l.below {
		owner, err := s.ownerOf(link)
		if err != nil {
			return nil, damaged(s.dir(id, lowerFile), err)
		}
		if i > 0 {
			m["LowerDir"] += ":"
		}
		m["LowerDir"] += s.dir(owner, diffDir)
	}
	return m, nil
}

// begin checks what every method checks first: that ctx has not ended, and that id can be one.
func begin(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return drivers.ValidID(id)
}

// mayChange refuses to change a store that was opened to be read.
func (s *Store) mayChange() error {
	if s.readOnly {
		return fmt.Errorf("the store %s was opened read-only: %w", s.home, drivers.ErrNotSupported)
	}
	return nil
}
