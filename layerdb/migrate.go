package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"plyfs/drivers"
)

// OldStore says what becomes of the layers in the driver that a store leaves.
type OldStore int

const (
	// KeepOld keeps them until RemoveOld.
	KeepOld OldStore = iota
	// RemoveOld removes them when all are in the new driver.
	RemoveOld
)

// MigrateOptions are options of a migration; the zero value keeps the old store.
type MigrateOptions struct {
	// DriverOptions are the new driver's own.
	DriverOptions map[string]string
	Old           OldStore
	// Progress is called before each layer and container, and at the end. It may be nil.
	Progress func(MigrateProgress)
}

// MigrateProgress is how far a migration is.
type MigrateProgress struct {
	// Object is the ChainID of a layer or the name of a container; empty at the end.
	Object string `json:"object"`
	// Done of Total layers and containers are in the new driver.
	Done  int `json:"done"`
	Total int `json:"total"`
}

// Migrate moves the store to another driver: every layer goes out of the old driver as the stream that it came from, is
// compared with its DiffID on the way, and is unpacked by the new one; containers go as their difference from their parent. In
// the end one transaction gives the store to the new driver; until then it belongs to the old one, and a migration that
// is interrupted goes on with the next call, where layers that are across stay there.
//
// Migrate is alone in the store. The error wraps drivers.ErrInUse while a container is mounted or there are snapshots; ErrNoSpace if
// the new driver's file system has too little room; drivers.ErrExists if the store is that driver's already; drivers.ErrNotSupported
// if the new driver cannot keep a container's quota, or something in a container, which the message names; and drivers.ErrDamaged for
// a layer that is not what it was.
func (s *Store) Migrate(ctx context.Context, to string, o MigrateOptions) error {
	leave, err := s.gate.enterAlone(ctx, "a migration to "+to)
	if err != nil {
		return err
	}
	defer leave()
	err = s.migrate(ctx, to, o)
	if err != nil {
		return fmt.Errorf("migrate to %s: %w", to, err)
	}
	if o.Old == RemoveOld {
		return s.removeOld(ctx)
	}
	return nil
}

func (s *Store) migrate(ctx context.Context, to string, o MigrateOptions) (err error) {
	m := &migration{store: s, from: s.drv.Name(), to: to, opt: o}
	if m.from == to {
		return fmt.Errorf("the store is that driver's: %w", drivers.ErrExists)
	}
	if err := m.list(ctx); err != nil {
		return err
	}
	f, err := s.opt.Registry.Lookup(to)
	if err != nil {
		return err
	}
	opt := s.opt
	opt.DriverOptions = o.DriverOptions
	if m.dst, err = f.Open(ctx, opt.ForDriver(to)); err != nil {
		return err
	}
	defer func() {
		if s.drv != m.dst {
			err = errors.Join(err, m.dst.Close())
		}
	}()
	m.differ = drivers.DifferOf(m.dst)
	if err := m.prepare(ctx); err != nil {
		return err
	}
	if err := m.checkSpace(); err != nil {
		return err
	}
	for i := range m.records {
		if err := m.move(ctx, i); err != nil {
			return err
		}
	}
	if err := m.finish(); err != nil {
		return err
	}
	s.opt.DriverOptions = o.DriverOptions
	m.progress("", len(m.records))
	return nil
}

// migration is the state of one Migrate.
type migration struct {
	store    *Store
	from, to string
	opt      MigrateOptions
	dst      drivers.Driver
	differ   drivers.Differ
	// records are the layers, parents first, and then the containers.
	records []Record
	layers  map[ChainID]Record
}

func (m *migration) progress(object string, done int) {
	if m.opt.Progress != nil {
		m.opt.Progress(MigrateProgress{Object: object, Done: done, Total: len(m.records)})
	}
}

// list reads what is to be moved.
func (m *migration) list(ctx context.Context) error {
	m.layers = make(map[ChainID]Record)
	return m.store.view(func(t *tx) error {
		if err := t.records(snapshotPrefix, func(r Record) error {
			return fmt.Errorf("the store has snapshots of containerd (%s and others), which are mounted by their paths in the driver's "+
				"directory; remove them (ctr snapshots, ctr images), and pull the images again afterwards: %w", r.Snapshot.Name, drivers.ErrInUse)
		}); err != nil {
			return err
		}
		all, err := t.layers(ctx)
		if err != nil {
			return err
		}
		for _, l := range all {
			r, err := t.layer(l.ID)
			if err != nil {
				return err
			}
			m.layers[l.ID] = r
			m.records = append(m.records, r)
		}
		return t.records(containerPrefix, func(r Record) error {
			if c := m.store.thisBoot(*r.Container); c.Mounts > 0 {
				return fmt.Errorf("container %s is mounted; unmount it first: %w", c.Name, drivers.ErrInUse)
			}
			m.records = append(m.records, r)
			return nil
		})
	})
}

// prepare notes where the store goes, and removes from the new driver what is not to stay: leftovers, layers that were removed since
// an earlier attempt, and containers, which may have changed since.
func (m *migration) prepare(ctx context.Context) error {
	s := m.store
	if err := m.dst.Cleanup(ctx); err != nil {
		return err
	}
	if _, err := s.update(func(t *tx) ([]work, error) {
		has, err := t.meta()
		if err != nil {
			return nil, err
		}
		if has.To != "" && has.To != m.to {
			has.Old = append(has.Old, has.To)
		}
		has.To = m.to
		has.Old = slices.DeleteFunc(has.Old, func(name string) bool { return name == m.to })
		return nil, t.putJSON(metaKey, has)
	}); err != nil {
		return err
	}
	stays := make(map[string]bool)
	for i, r := range m.records {
		switch {
		case !slices.Contains(r.Drivers, m.to):
		case r.Layer != nil:
			stays[r.Layer.CacheID] = true
		default:
			r.Drivers = without(r.Drivers, m.to)
			if err := s.putRecord(r); err != nil {
				return err
			}
			m.records[i] = r
		}
	}
	if err := m.removeOthers(ctx, stays); err != nil {
		return fmt.Errorf("remove what an earlier attempt left: %w", err)
	}
	// A layer that is noted as being across must be there.
	for i, r := range m.records {
		if r.Layer == nil || !stays[r.Layer.CacheID] {
			continue
		}
		there, err := m.dst.Exists(ctx, r.Layer.CacheID)
		if err != nil {
			return err
		}
		if !there {
			m.records[i].Drivers = without(r.Drivers, m.to)
		}
	}
	return nil
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(n string) bool { return n == name })
}

// removeOthers removes the layers of the new driver that are not to stay, and the notes of works there.
func (m *migration) removeOthers(ctx context.Context, stays map[string]bool) error {
	var works []work
	if err := m.store.view(func(t *tx) (err error) {
		works, err = t.works(m.to)
		return err
	}); err != nil {
		return err
	}
	for _, w := range works {
		// A container that was being filled may be mounted still; that there is no mount is no error then.
		if err := m.dst.Put(ctx, w.ID); err != nil && !errors.Is(err, drivers.ErrInvalid) && !errors.Is(err, drivers.ErrNotFound) {
			return err
		}
	}
	if _, err := m.store.sweep(ctx, m.dst); err != nil {
		return err
	}
	var others []work
	err := m.dst.List(ctx, func(i drivers.Info) error {
		if !stays[i.ID] {
			others = append(others, work{Driver: m.to, ID: i.ID, Parent: i.Parent})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.store.discardAll(ctx, m.dst, topDown(others))
}

// checkSpace compares what is to be unpacked with what is free.
func (m *migration) checkSpace() error {
	p, ok := m.dst.(drivers.ParentCopier)
	copies := ok && p.CopiesParent()
	var need int64
	whole := make(map[ChainID]int64)
	for _, r := range m.records {
		if r.Layer == nil {
			if copies {
				need += whole[r.Container.Parent]
			}
			continue
		}
		whole[r.Layer.ID] = r.Layer.Content + whole[r.Layer.Parent]
		switch {
		case slices.Contains(r.Drivers, m.to):
		case copies:
			need += whole[r.Layer.ID]
		default:
			need += r.Layer.Content
		}
	}
	home := m.store.path(layersDir, m.to)
	free, err := freeBytes(home)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("%w: the layers need %d MiB more in %s, where %d MiB are free", ErrNoSpace, need>>20, home, free>>20)
	}
	return nil
}

// move brings one layer or container across, unless it is there.
func (m *migration) move(ctx context.Context, i int) (err error) {
	r := m.records[i]
	name, id, parent := "", "", ChainID("")
	if r.Layer != nil {
		name, id, parent = r.Layer.ID.String(), r.Layer.CacheID, r.Layer.Parent
	} else {
		name, id, parent = r.Container.Name, r.Container.ID, r.Container.Parent
	}
	m.progress(name, i)
	if slices.Contains(r.Drivers, m.to) {
		return nil
	}
	w := work{Driver: m.to, ID: id, Parent: m.layers[parent].cacheID()}
	if err := m.store.beginWork(w); err != nil {
		return err
	}
	defer func() {
		switch {
		case err == nil:
			m.store.removals.made(w.ID)
		case !uncertain(err):
			err = errors.Join(fmt.Errorf("%s: %w", name, err), m.store.writeCopy(m.records[i]), m.store.abandon(ctx, m.dst, w))
		}
	}()
	if r.Layer != nil {
		err = m.moveLayer(ctx, w, *r.Layer)
	} else {
		err = m.moveContainer(ctx, w, *r.Container)
	}
	if err != nil {
		return err
	}
	if err := m.dst.Sync(ctx, w.ID); err != nil {
		return err
	}
	r.Drivers = append(slices.Clone(r.Drivers), m.to)
	if err := m.store.writeCopy(r); err != nil {
		return err
	}
	_, err = m.store.update(func(t *tx) ([]work, error) {
		if err := t.delete(workKey(w.Driver, w.ID)); err != nil {
			return nil, err
		}
		return nil, t.put(r)
	})
	return err
}

func (m *migration) moveLayer(ctx context.Context, w work, l Layer) error {
	if err := m.dst.Create(ctx, w.ID, w.Parent, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := m.store.export(ctx, m.store.drv, l, pw)
		pw.CloseWithError(err)
		exported <- err
	}()
	// The DiffID is known, so the end of the stream is, too.
	res, err := m.differ.ApplyDiff(ctx, w.ID, pr, &drivers.ApplyOptions{AcceptUnterminated: true})
	if err == nil {
		_, err = io.Copy(io.Discard, pr)
	}
	pr.CloseWithError(errAbandoned)
	if was := <-exported; was != nil && !errors.Is(was, errAbandoned) {
		return was
	}
	if err != nil {
		return err
	}
	if res.Sum != l.Sum {
		return fmt.Errorf("in %s the tree's sum is %016x, not %016x: %w", m.to, res.Sum, l.Sum, drivers.ErrDamaged)
	}
	return nil
}

// finish gives the store to the new driver.
func (m *migration) finish() error {
	s := m.store
	if _, err := s.update(func(t *tx) ([]work, error) {
		has, err := t.meta()
		if err != nil {
			return nil, err
		}
		has.Driver, has.To = m.to, ""
		has.Old = append(without(has.Old, m.from), m.from)
		return nil, t.putJSON(metaKey, has)
	}); uncertain(err) {
		// Whose the store is the next Open finds out. Until then nothing may be written to either.
		s.gate.close()
		return errors.Join(err, s.release())
	} else if err != nil {
		return err
	}
	old := s.drv
	s.drv, s.differ = m.dst, m.differ
	// The database says whose the store is; what is left is for those who look, and is made up for by the next Open.
	return errors.Join(s.writeFile([]byte(m.to+"\n"), driverFile), old.Close())
}

// RemoveOld removes the layers in drivers that the store belonged to before migrations, and in one that an interrupted migration
// moves to: that one is given up. It is alone in the store.
func (s *Store) RemoveOld(ctx context.Context) error {
	leave, err := s.gate.enterAlone(ctx, "the removal of the old store")
	if err != nil {
		return err
	}
	defer leave()
	return s.removeOld(ctx)
}

// Old lists the drivers that the store belonged to before migrations and that still have layers of it.
func (s *Store) Old(ctx context.Context) (names []string, err error) {
	err = s.read(ctx, func(t *tx) error {
		m, err := t.meta()
		names = m.Old
		return err
	})
	return names, err
}

func (s *Store) removeOld(ctx context.Context) error {
	m, err := s.meta()
	if err != nil {
		return err
	}
	old := m.Old
	if m.To != "" {
		old = append(old, m.To)
	}
	for _, name := range old {
		if err := s.removeOldDriver(ctx, name); err != nil {
			return fmt.Errorf("remove the old store of driver %s: %w", name, err)
		}
	}
	return nil
}

func (s *Store) removeOldDriver(ctx context.Context, name string) error {
	if err := s.emptyDriver(ctx, name); err != nil {
		return err
	}
	for _, dir := range []string{layersDir, runDir} {
		if err := os.RemoveAll(s.path(dir, name)); err != nil {
			return err
		}
	}
	var records []Record
	err := s.view(func(t *tx) error {
		return t.Scan(nil, func(key, value []byte) error {
			if k := string(key); !strings.HasPrefix(k, layerPrefix) && !strings.HasPrefix(k, containerPrefix) {
				return nil
			}
			r, err := DecodeRecord(value)
			if err == nil && slices.Contains(r.Drivers, name) {
				r.Drivers = without(r.Drivers, name)
				records = append(records, r)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := errors.Join(s.writeCopy(r), s.putRecord(r)); err != nil {
			return err
		}
	}
	_, err = s.update(func(t *tx) ([]work, error) { return nil, t.forgetDriver(name) })
	return err
}

// emptyDriver removes all layers of a driver that is not the store's.
func (s *Store) emptyDriver(ctx context.Context, name string) (err error) {
	f, err := s.opt.Registry.Lookup(name)
	if err != nil {
		return err
	}
	opt := s.opt
	opt.DriverOptions = nil
	drv, err := f.Open(ctx, opt.ForDriver(name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drv.Close()) }()
	if err := drv.Cleanup(ctx); err != nil {
		return err
	}
	var all []work
	err = drv.List(ctx, func(i drivers.Info) error {
		all = append(all, work{Driver: name, ID: i.ID, Parent: i.Parent})
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range topDown(all) {
		if err := errors.Join(ctx.Err(), drv.Remove(ctx, w.ID)); err != nil {
			return err
		}
	}
	return nil
}

// forgetDriver takes a driver that is not the store's off its record, and the notes of its layers away.
func (t *tx) forgetDriver(name string) error {
	m, err := t.meta()
	if err != nil {
		return err
	}
	m.Old = without(m.Old, name)
	if m.To == name {
		m.To = ""
	}
	works, err := t.works(name)
	if err != nil {
		return err
	}
	for _, w := range works {
		if err := t.delete(workKey(w.Driver, w.ID)); err != nil {
			return err
		}
	}
	return t.putJSON(metaKey, m)
}
