package layerdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"plyfs/drivers"
	"plyfs/internal/sys"
	"plyfs/metadata/kv"
)

// pin keeps a layer from being collected while operations of this process need it.
type pin struct {
	users int
	// condemned says that the layer would have been collected if it had not been pinned: the last unpin tries again.
	condemned bool
}

// pinLayer returns a layer and keeps it from being collected until unpin is called. The error wraps drivers.ErrNotFound if there is
// none. For the empty ChainID it returns an empty record, and pins nothing.
func (s *Store) pinLayer(id ChainID) (r Record, unpin func(), err error) {
	if id == "" {
		return Record{}, func() {}, nil
	}
	if err := id.Validate(); err != nil {
		return Record{}, nil, err
	}
	s.graph.Lock()
	defer s.graph.Unlock()
	err = s.view(func(t *tx) error {
		r, err = t.layer(id)
		return err
	})
	if err != nil {
		return Record{}, nil, err
	}
	p := s.pins[id]
	if p == nil {
		p = &pin{}
		s.pins[id] = p
	}
	p.users++
	return r, sync.OnceFunc(func() { s.unpin(id) }), nil
}

func (s *Store) unpin(id ChainID) {
	s.graph.Lock()
	p := s.pins[id]
	p.users--
	if p.users > 0 {
		s.graph.Unlock()
		return
	}
	delete(s.pins, id)
	var dead []work
	var err error
	if p.condemned {
		dead, err = s.updateLocked(func(t *tx) ([]work, error) { return s.collectLocked(t, nil, id) })
	}
	s.graph.Unlock()
	if err == nil {
		err = s.discardAll(context.Background(), s.drv, dead)
	}
	if err != nil {
		s.log.Warn("a layer that nobody needs stays until the next collection", "layer", id, "error", err)
	}
}

// collectLocked takes the layer out of the database if nobody uses it, and then each layer below it of which that was the last user.
// It adds the works that remove them to dead, for discardAll after the transaction. Precondition: graph is held.
func (s *Store) collectLocked(t *tx, dead []work, id ChainID) ([]work, error) {
	for id != "" {
		r, err := t.layer(id)
		if errors.Is(err, drivers.ErrNotFound) {
			return dead, nil
		} else if err != nil {
			return dead, err
		}
		if used, err := t.used(id); err != nil || used {
			return dead, err
		}
		if p := s.pins[id]; p != nil {
			p.condemned = true
			return dead, nil
		}
		if err := t.delete(layerKey(id)); err != nil {
			return dead, err
		}
		parent := r.Layer.Parent
		if err := t.dropUser(parent, userLayer, string(id)); err != nil {
			return dead, err
		}
		w := work{ID: r.Layer.CacheID}
		if below, err := t.layer(parent); err == nil {
			w.Parent = below.Layer.CacheID
		}
		if dead, err = t.condemn(dead, r, w); err != nil {
			return dead, err
		}
		id = parent
	}
	return dead, nil
}

// condemn notes that the layer of a record, whose ID and Parent are those of w, is to be removed from each driver that has it.
func (t *tx) condemn(dead []work, r Record, w work) ([]work, error) {
	for _, driver := range r.Drivers {
		w.Driver = driver
		if err := t.putJSON(workKey(driver, w.ID), w); err != nil {
			return dead, err
		}
		dead = append(dead, w)
	}
	return dead, nil
}

// removals knows which of the driver's layers this process is making and removing: a sweep leaves them alone, and layers are removed
// only after those above them. Ids are the driver's. Its zero value is ready.
type removals struct {
	mu      sync.Mutex
	changed sync.Cond           // of mu, set with the first of going
	going   map[string]string   // the layers that are being removed, with their parents; guarded by mu
	making  map[string]struct{} // guarded by mu
}

// enter notes that id is being removed, until leave, and waits until nothing above it is.
func (r *removals) enter(id, parent string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noteLocked(id, parent)
	for r.aboveLocked(id) {
		r.changed.Wait()
	}
}

// note notes that layers will be removed soon, so that the removal of what is below them waits. enter and leave follow for each.
func (r *removals) note(dead []work) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range dead {
		r.noteLocked(w.ID, w.Parent)
	}
}

func (r *removals) noteLocked(id, parent string) {
	if r.going == nil {
		r.going = make(map[string]string)
		r.changed.L = &r.mu
	}
	r.going[id] = parent
}

func (r *removals) aboveLocked(id string) bool {
	for _, parent := range r.going {
		if parent == id {
			return true
		}
	}
	return false
}

func (r *removals) leave(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.going, id)
	r.changed.Broadcast()
}

// make notes that a layer is being made, until made.
func (r *removals) make(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.making == nil {
		r.making = make(map[string]struct{})
	}
	r.making[id] = struct{}{}
}

func (r *removals) made(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.making, id)
}

// busy says whether somebody makes or removes the layer.
func (r *removals) busy(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, going := r.going[id]
	_, making := r.making[id]
	return going || making
}

// discardAll ends works: it removes the layers of drv that they name, and their files, in the given order, which has to be that of
// topDown. Works of other drivers stay in the database. It tries all of them; those that fail are left for the next sweep. It waits for
// removals of layers above, and so must not be called under graph.
func (s *Store) discardAll(ctx context.Context, drv drivers.Driver, dead []work) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	var gone []work
	for _, w := range dead {
		s.removals.enter(w.ID, w.Parent)
		if w.Driver == drv.Name() {
			if err := s.discard(ctx, drv, w); err != nil {
				errs = append(errs, err)
			} else {
				gone = append(gone, w)
			}
		}
		s.removals.leave(w.ID)
	}
	return errors.Join(append(errs, s.endWorks(gone))...)
}

// discard removes a layer that the database does not name (any more, or yet) from drv, and its files if drv is the store's driver.
func (s *Store) discard(ctx context.Context, drv drivers.Driver, w work) error {
	if err := drv.Remove(ctx, w.ID); err != nil {
		return fmt.Errorf("driver %s: %w", w.Driver, err)
	}
	if drv.Name() == s.drv.Name() && !w.Restore {
		return s.removeFiles(w.ID)
	}
	return nil
}

// removeFiles removes the files that belong to a layer or container.
func (s *Store) removeFiles(id string) error {
	return errors.Join(
		removeFile(s.path(recordsDir, "layer-"+id+copySuffix)),
		removeFile(s.path(recordsDir, "container-"+id+copySuffix)),
		removeFile(s.path(streamsDir, id+splitSuffix)),
		removeFile(s.path(streamsDir, id+wholeSuffix)),
	)
}

// beginWork notes that a layer is about to be made in the driver, so that a crash leaks nothing.
func (s *Store) beginWork(w work) error {
	if err := s.needSpace(addSpace); err != nil {
		return err
	}
	s.removals.make(w.ID)
	err := s.db.Update(func(k *kv.Txn) error { return (&tx{k}).putJSON(workKey(w.Driver, w.ID), w) })
	if err != nil {
		s.removals.made(w.ID)
	}
	return err
}

// worksAtOnce is how many notes one transaction takes away, which the database bounds.
const worksAtOnce = 512

// endWorks deletes the notes of works that were discarded, once their files cannot come back after a power cut. No decision depends
// on a note, so graph is not needed.
func (s *Store) endWorks(gone []work) error {
	if len(gone) == 0 {
		return nil
	}
	if err := errors.Join(sys.SyncDir(s.path(recordsDir)), sys.SyncDir(s.path(streamsDir))); err != nil {
		return err
	}
	for some := range slices.Chunk(gone, worksAtOnce) {
		err := s.db.Update(func(k *kv.Txn) error {
			for _, w := range some {
				if err := (&tx{k}).delete(workKey(w.Driver, w.ID)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// abandon ends the making of a layer that failed: it removes what was made. If that fails it is left for the next sweep.
func (s *Store) abandon(ctx context.Context, drv drivers.Driver, w work) error {
	defer s.removals.made(w.ID)
	if err := s.discard(context.WithoutCancel(ctx), drv, w); err != nil {
		return err
	}
	return s.endWorks([]work{w})
}

// sweep ends all works on layers of drv that no operation of this process is busy with, and returns how many there were.
func (s *Store) sweep(ctx context.Context, drv drivers.Driver) (n int, err error) {
	var all []work
	s.graph.Lock()
	err = s.view(func(t *tx) error {
		all, err = t.works(drv.Name())
		return err
	})
	all = slices.DeleteFunc(all, func(w work) bool { return s.removals.busy(w.ID) })
	s.removals.note(all)
	s.graph.Unlock()
	if err != nil {
		return 0, err
	}
	return len(all), s.discardAll(ctx, drv, all)
}
