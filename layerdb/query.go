package layerdb

import (
	"context"
	"fmt"
	"slices"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// Layer returns the layer; the error wraps drivers.ErrNotFound.
func (s *Store) Layer(ctx context.Context, id ChainID) (l Layer, err error) {
	if err := id.Validate(); err != nil {
		return Layer{}, err
	}
	err = s.read(ctx, func(t *tx) error {
		r, err := t.layer(id)
		if err == nil {
			l = *r.Layer
		}
		return err
	})
	return l, err
}

// Layers returns all layers, parents before children, the older first where that leaves a choice.
func (s *Store) Layers(ctx context.Context) (all []Layer, err error) {
	err = s.read(ctx, func(t *tx) error {
		all, err = t.layers(ctx)
		return err
	})
	return all, err
}

// layers returns all layers, parents before children; those without their parent come last.
func (t *tx) layers(ctx context.Context) (all []Layer, err error) {
	err = t.records(layerPrefix, func(r Record) error {
		all = append(all, *r.Layer)
		return ctx.Err()
	})
	return parentsFirst(all), err
}

func parentsFirst(all []Layer) []Layer {
	slices.SortStableFunc(all, func(a, b Layer) int { return a.Created.Compare(b.Created) })
	children := make(map[ChainID][]Layer, len(all))
	known := make(map[ChainID]bool, len(all))
	for _, l := range all {
		children[l.Parent] = append(children[l.Parent], l)
		known[l.ID] = true
	}
	ordered := make([]Layer, 0, len(all))
	todo := slices.Clone(children[""])
	for _, l := range all {
		if l.Parent != "" && !known[l.Parent] {
			todo = append(todo, l)
		}
	}
	for len(todo) > 0 {
		l := todo[0]
		todo = append(todo[1:], children[l.ID]...)
		ordered = append(ordered, l)
	}
	return ordered
}

// Chain returns the layer and all below it, the lowest first.
func (s *Store) Chain(ctx context.Context, id ChainID) (chain []Layer, err error) {
	err = s.read(ctx, func(t *tx) error {
		chain = nil
		for at := id; at != ""; {
			r, err := t.layer(at)
			if err != nil {
				return err
			}
			chain = append(chain, *r.Layer)
			at = r.Layer.Parent
		}
		return nil
	})
	slices.Reverse(chain)
	return chain, err
}

// Users names what keeps the layer: "layer" with a ChainID, "container" with a name, or kind and key of a holder.
func (s *Store) Users(ctx context.Context, id ChainID) (users []string, err error) {
	err = s.read(ctx, func(t *tx) error {
		if _, err := t.layer(id); err != nil {
			return err
		}
		users, err = t.users(id)
		return err
	})
	return users, err
}

// LayerChanges lists how the layer differs from its parent, parent directories before what is in them.
func (s *Store) LayerChanges(ctx context.Context, id ChainID) (list []tarlayer.Change, err error) {
	err = s.withLayer(id, func(r, below Record) error {
		list, err = s.differ.Changes(ctx, r.cacheID(), below.cacheID())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("changes of layer %s: %w", id, err)
	}
	return list, nil
}

// LayerUsage returns what the layer takes up in the driver beyond its parent.
func (s *Store) LayerUsage(ctx context.Context, id ChainID) (u drivers.Usage, err error) {
	err = s.withLayer(id, func(r, _ Record) error {
		u, err = s.drv.Usage(ctx, r.cacheID())
		return err
	})
	if err != nil {
		return drivers.Usage{}, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	return u, nil
}

// withLayer calls fn with the layer and the one below it (empty for none), both pinned.
func (s *Store) withLayer(id ChainID, fn func(r, below Record) error) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	r, unpin, err := s.pinLayer(id)
	if err != nil {
		return err
	}
	defer unpin()
	if r.Layer == nil {
		return fmt.Errorf("no layer is named: %w", drivers.ErrInvalid)
	}
	below, unpinBelow, err := s.pinLayer(r.Layer.Parent)
	if err != nil {
		return fmt.Errorf("parent of layer %s: %w", id, err)
	}
	defer unpinBelow()
	return fn(r, below)
}
