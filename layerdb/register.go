package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// RegisterOptions are options of one new layer; the zero value is right for a layer of which nothing is known.
type RegisterOptions struct {
	// ExpectDiffID is the digest that the uncompressed stream must have; "" for any.
	ExpectDiffID digest.Digest
	// Hold becomes a holder of the new layer in the transaction that publishes it: it is made if it is not there, else the layer
	// is added to it, and its Data and Expires are replaced if they are given here. Without, nothing keeps the layer from the
	// next GC.
	Hold *Holder
	// Limits bound what the stream may make; zero fields stand for tarlayer's defaults.
	Limits tarlayer.Limits
	// Progress is called now and then with the bytes of the uncompressed stream that were unpacked. It may be nil.
	Progress func(bytes int64)
}

func (o RegisterOptions) validate() error {
	if o.ExpectDiffID != "" {
		if err := validDigest(o.ExpectDiffID); err != nil {
			return fmt.Errorf("expected DiffID: %w", err)
		}
	}
	if o.Hold != nil {
		if err := o.Hold.validate(); err != nil {
			return fmt.Errorf("hold: %w: %w", drivers.ErrInvalid, err)
		}
	}
	return nil
}

// Register makes a layer over parent ("" for none) of a tar stream, plain or compressed, which it reads to its end. A layer
// that is in the store already is not made again: its stream is not read at all if o.ExpectDiffID tells. One that the database
// names, and that is missing (Check reports such), is made again in its place. When Register returns, the layer is durable;
// after an error there is nothing of it.
//
// The error wraps drivers.ErrNotFound if there is no such parent, ErrDigest if the stream is not what was expected,
// io.ErrUnexpectedEOF if it breaks off, and tarlayer's errors for a stream that makes no sense or exceeds o.Limits.
func (s *Store) Register(ctx context.Context, r io.Reader, parent ChainID, o RegisterOptions) (Layer, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return Layer{}, err
	}
	defer leave()
	in, err := s.newInput(r)
	if err != nil {
		return Layer{}, err
	}
	defer in.close()
	return s.register(ctx, in, parent, o)
}

func (s *Store) register(ctx context.Context, in *input, parent ChainID, o RegisterOptions) (Layer, error) {
	if err := o.validate(); err != nil {
		return Layer{}, err
	}
	below, unpin, err := s.pinLayer(parent)
	if err != nil {
		return Layer{}, fmt.Errorf("parent: %w", err)
	}
	defer unpin()
	if o.ExpectDiffID == "" {
		return s.makeLayer(ctx, in, below, o)
	}
	id := parent.above(o.ExpectDiffID)
	land, err := s.flights.begin(ctx, id)
	if err != nil {
		return Layer{}, err
	}
	defer land()
	state, err := s.state(ctx, id)
	if err != nil {
		return Layer{}, err
	}
	switch state {
	case layerUnknown:
		return s.makeLayer(ctx, in, below, o)
	case layerLost:
		if err := s.restore(ctx, in, id, below, o); err != nil {
			return Layer{}, err
		}
	}
	return s.existing(ctx, id, o.Hold)
}

// existing returns the layer if the store has it, and makes hold one of its holders.
func (s *Store) existing(ctx context.Context, id ChainID, hold *Holder) (Layer, error) {
	r, unpin, err := s.pinLayer(id)
	if err != nil {
		return Layer{}, err
	}
	defer unpin()
	if hold != nil {
		if err := s.extend(ctx, *hold, id, func(h []Holder) error {
			_, err := s.update(func(t *tx) ([]work, error) { return s.changeLocked(t, h, nil) })
			return err
		}); err != nil {
			return Layer{}, err
		}
	}
	return *r.Layer, nil
}

// extend adds a layer to a holder, which it makes if needed: commit gets the holder as it shall be.
func (s *Store) extend(ctx context.Context, h Holder, id ChainID, commit func(hold []Holder) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock := s.holders.lock(holderKey(h.Ref()))
	defer unlock()
	var old Record
	err := s.view(func(t *tx) (err error) {
		old, err = t.holder(h.Ref())
		return err
	})
	layers := append(slices.Clone(h.Layers), id)
	switch {
	case errors.Is(err, drivers.ErrNotFound):
	case err != nil:
		return err
	default:
		layers = append(layers, old.Holder.Layers...)
		if h.Data == nil {
			h.Data = old.Holder.Data
		}
		if h.Expires.IsZero() {
			h.Expires = old.Holder.Expires
		}
	}
	slices.Sort(layers)
	h.Layers = slices.Compact(layers)
	return s.withCopies(Update{Hold: []Holder{h}}, commit)
}

// makeLayer makes a layer over below (an empty record for none), which is pinned, and publishes it. Where the DiffID is
// expected, the layer's flight has begun.
func (s *Store) makeLayer(ctx context.Context, in *input, below Record, o RegisterOptions) (l Layer, err error) {
	w := work{Driver: s.drv.Name(), ID: newID(), Parent: below.cacheID()}
	if err := s.beginWork(w); err != nil {
		return Layer{}, err
	}
	defer func() {
		if err != nil && !uncertain(err) {
			err = errors.Join(err, s.abandon(ctx, s.drv, w))
		}
	}()
	if err := s.drv.Create(ctx, w.ID, w.Parent, nil); err != nil {
		return Layer{}, err
	}
	l, err = s.unpack(ctx, w, in, o, nil)
	if err != nil {
		return Layer{}, err
	}
	l.chain(below)
	if o.ExpectDiffID == "" {
		// Another may be about to publish the same, with layers on top of it already.
		land, err := s.flights.begin(ctx, l.ID)
		if err != nil {
			return Layer{}, err
		}
		defer land()
	}
	l, err = s.publish(ctx, w, l, o.Hold)
	if err != nil || l.CacheID == w.ID {
		return l, err
	}
	return s.mend(ctx, in, l, below, o)
}

// mend returns a layer of the store, which is restored if it was lost. The input was read.
func (s *Store) mend(ctx context.Context, in *input, l Layer, below Record, o RegisterOptions) (Layer, error) {
	state, err := s.state(ctx, l.ID)
	if err != nil || state != layerLost {
		return l, err
	}
	r, err := in.again()
	if err != nil {
		return Layer{}, fmt.Errorf("layer %s is lost, and cannot be restored of this: %w: %w", l.ID, drivers.ErrDamaged, err)
	}
	if err := s.restore(ctx, &input{Reader: r, again: in.again}, l.ID, below, o); err != nil {
		return Layer{}, err
	}
	return s.existing(ctx, l.ID, nil)
}

// cacheID is the driver's id of the record's layer; "" of an empty record.
func (r Record) cacheID() string {
	if r.Layer == nil {
		return ""
	}
	return r.Layer.CacheID
}

// chain places the layer on top of another; an empty record stands for none.
func (l *Layer) chain(below Record) {
	if below.Layer != nil {
		l.Parent = below.Layer.ID
	}
	l.ID = l.Parent.above(l.DiffID)
}

// publish makes the layer durable, and then known. If the store has the same layer already, that one is returned, and what was
// made is removed. Precondition: the parent is pinned, and the layer's flight has begun.
func (s *Store) publish(ctx context.Context, w work, l Layer, hold *Holder) (Layer, error) {
	r := Record{Layer: &l, Drivers: []string{w.Driver}}
	if err := s.writeCopy(r); err != nil {
		return Layer{}, err
	}
	if err := s.drv.Sync(ctx, w.ID); err != nil {
		return Layer{}, fmt.Errorf("sync layer %s: %w", l.ID, err)
	}
	var has Record
	commit := func(h []Holder) error {
		_, err := s.update(func(t *tx) (_ []work, err error) {
			if has, err = t.layer(l.ID); errors.Is(err, drivers.ErrNotFound) {
				has, err = r, t.publish(w, r)
			}
			if err != nil {
				return nil, err
			}
			return s.changeLocked(t, h, nil)
		})
		return err
	}
	var err error
	if hold != nil {
		err = s.extend(ctx, *hold, l.ID, commit)
	} else if err = ctx.Err(); err == nil {
		err = commit(nil)
	}
	if err != nil {
		return Layer{}, err
	}
	if has.Layer.CacheID == l.CacheID {
		s.removals.made(w.ID)
		return l, nil
	}
	if err := s.abandon(ctx, s.drv, w); err != nil {
		s.log.Warn("a layer that was made twice takes up space until the next collection", "error", err)
	}
	return *has.Layer, nil
}

// publish puts a layer in the place of the note that it is being made.
func (t *tx) publish(w work, r Record) error {
	if err := t.addUser(r.Layer.Parent, userLayer, string(r.Layer.ID)); err != nil {
		return err
	}
	if err := t.delete(workKey(w.Driver, w.ID)); err != nil {
		return err
	}
	return t.put(r)
}
