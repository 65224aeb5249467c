package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// layerState is what the store has of a layer.
type layerState int

const (
	// layerUnknown: the database does not name it.
	layerUnknown layerState = iota
	// layerLost: the database names it, and the driver does not have it, or the file of its stream is gone.
	layerLost
	// layerWhole: it can be used.
	layerWhole
)

// state says what the store has of a layer.
func (s *Store) state(ctx context.Context, id ChainID) (layerState, error) {
	r, unpin, err := s.pinLayer(id)
	if errors.Is(err, drivers.ErrNotFound) {
		return layerUnknown, ctx.Err()
	} else if err != nil {
		return layerUnknown, err
	}
	defer unpin()
	there, err := s.drv.Exists(ctx, r.cacheID())
	if !there || !exists(s.streamPath(*r.Layer)) {
		return layerLost, err
	}
	return layerWhole, err
}

// restore makes a lost layer anew, of the stream that it was made of: in its place in the driver if the driver lost it, so that the
// layers above are whole again, or else only the file of its stream, by unpacking the stream into a layer that is discarded.
// Precondition: the layer's flight has begun, and below is pinned.
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
		// Only the file of the stream is lost. The layer that comes of unpacking is discarded at the end.
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
		left := s.abandon(ctx, s.drv, w)
		if w.Restore {
			left = errors.Join(left, removeFile(s.otherStreamPath(old)))
		}
		if err != nil {
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

// replaceLayer makes a restored layer durable, and then its record. made says whether the record is.
func (s *Store) replaceLayer(ctx context.Context, r Record, l Layer, w work) (made bool, err error) {
	if err := s.drv.Sync(ctx, w.ID); err != nil {
		return false, err
	}
	if err := s.replaceRecord(r, l, func(t *tx) error { return t.delete(workKey(w.Driver, w.ID)) }); err != nil {
		return false, err
	}
	return true, nil
}

// replaceStream gives a layer the file of the stream of the layer that w is about. The record comes first: after a crash between the
// two the file is still missing, while the other order would leave one whose digest the record does not have.
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

// replaceRecord replaces the layer of a record by l, and calls more in the same transaction.
func (s *Store) replaceRecord(r Record, l Layer, more func(t *tx) error) error {
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
	if err := removeFile(s.otherStreamPath(l)); err != nil {
		s.log.Warn("the old form of a stream stays until the next check", "layer", l.ID, "error", err)
	}
	return nil
}

// settleStreams removes the form of each layer's stream that its record does not name, at Open, unless the last process closed the store
// and said so. A process that is killed while it restores a layer, whose stream is now kept in another form than before, leaves both.
func (s *Store) settleStreams() error {
	if s.copiesMatch.Load() {
		return nil
	}
	var layers []Layer
	err := s.view(func(t *tx) error {
		return t.records(layerPrefix, func(r Record) error {
			layers = append(layers, *r.Layer)
			return nil
		})
	})
	for _, l := range layers {
		err = errors.Join(err, removeFile(s.otherStreamPath(l)))
	}
	return err
}
