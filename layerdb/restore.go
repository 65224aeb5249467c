package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// knows says whether the database names a layer, and if so, whether that is lost: the driver does not have it, or nothing is
// kept of its stream.
func (s *Store) knows(ctx context.Context, id ChainID) (known, lost bool, err error) {
	r, unpin, err := s.pinLayer(id)
	if errors.Is(err, drivers.ErrNotFound) {
		return false, false, ctx.Err()
	} else if err != nil {
		return false, false, err
	}
	defer unpin()
	there, err := s.drv.Exists(ctx, r.cacheID())
	return true, !there || !exists(s.streamPath(*r.Layer)), err
}

// restore makes a layer anew, in the place of what is lost of it, of the stream that it was made of. What is above it is whole
// again then. The note of that tells a sweep not to take what the database names for garbage. Precondition: the layer's
// flight has begun, below is pinned.
func (s *Store) restore(ctx context.Context, in *input, id ChainID, below Record, o RegisterOptions) (err error) {
	r, unpin, err := s.pinLayer(id)
	if err != nil {
		return err
	}
	defer unpin()
	old := *r.Layer
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore layer %s: %w", id, err)
		}
	}()
	there, err := s.drv.Exists(ctx, old.CacheID)
	if err != nil {
		return err
	}
	w := work{Driver: s.drv.Name(), ID: old.CacheID, Parent: below.cacheID(), Restore: true}
	if there {
		// Only the stream is lost. Another layer is made on the way, for a while.
		w.ID, w.Restore = newID(), false
	}
	if err := s.beginWork(w); err != nil {
		return err
	}
	made := false
	defer func() {
		if made {
			s.removals.made(w.ID)
			return
		}
		if uncertain(err) {
			return
		}
		if left := s.abandon(ctx, s.drv, w); err != nil {
			err = errors.Join(err, left)
		} else if left != nil {
			s.log.Warn("what helped to restore a layer takes up space until the next collection", "error", left)
		}
	}()
	if err := s.drv.Create(ctx, w.ID, w.Parent, nil); err != nil {
		return err
	}
	o.ExpectDiffID = old.DiffID
	l, err := s.unpack(ctx, w, in, o, nil)
	if err != nil {
		return err
	}
	l.ID, l.Parent, l.Created, l.CacheID = old.ID, old.Parent, old.Created, old.CacheID
	if there {
		return s.replaceStream(r, l, w)
	}
	s.log.Info("a layer that was lost is made again", "layer", id)
	made, err = s.replaceLayer(ctx, r, l, w)
	return err
}

// replaceLayer makes a restored layer durable and known.
func (s *Store) replaceLayer(ctx context.Context, r Record, l Layer, w work) (made bool, err error) {
	if err := s.drv.Sync(ctx, w.ID); err != nil {
		return false, err
	}
	if err := s.replaceRecord(r, l, func(t *tx) error { return t.delete(workKey(w.Driver, w.ID)) }); err != nil {
		return false, err
	}
	return true, nil
}

// replaceStream gives a layer the stream of another one, which w is about. The record comes first: behind a crash the stream is
// lost still, and not one that the record does not know.
func (s *Store) replaceStream(r Record, l Layer, w work) error {
	from := l
	from.CacheID = w.ID
	if err := s.replaceRecord(r, l, func(*tx) error { return nil }); err != nil {
		return err
	}
	if err := os.Rename(s.streamPath(from), s.streamPath(l)); err != nil {
		return err
	}
	s.log.Info("the stream of a layer that was lost is kept again", "layer", l.ID)
	return sys.SyncDir(s.path(streamsDir))
}

// replaceRecord makes l the layer of a record, in a transaction that does more, too.
func (s *Store) replaceRecord(r Record, l Layer, more func(t *tx) error) error {
	old := *r.Layer
	r.Layer = &l
	if err := s.writeCopy(r); err != nil {
		return err
	}
	_, err := s.update(func(t *tx) ([]work, error) {
		if err := more(t); err != nil {
			return nil, err
		}
		return nil, t.put(r)
	})
	if err != nil {
		s.copiesMatch.Store(false)
		return err
	}
	if was := s.streamPath(old); was != s.streamPath(l) {
		if err := removeFile(was); err != nil {
			s.log.Warn("the old form of a stream stays until the next check", "layer", l.ID, "error", err)
		}
	}
	return nil
}
