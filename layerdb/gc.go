package layerdb

import (
	"context"
	"errors"
	"time"

	"plyfs/drivers"
)

// GCResult is what GC did.
type GCResult struct {
	// Layers and Holders is how many were removed.
	Layers  int `json:"layers"`
	Holders int `json:"holders"`
	// Leftovers is how many interrupted operations were ended.
	Leftovers int `json:"leftovers"`
}

// GC removes holders that have expired, layers that nobody uses, and what interrupted operations left. It runs beside other
// operations. The error tells what of it could not be removed, which stays for the next time.
func (s *Store) GC(ctx context.Context) (res GCResult, err error) {
	leave, err := s.gate.enter()
	if err != nil {
		return res, err
	}
	defer leave()
	if res.Holders, err = s.expire(ctx); err != nil {
		return res, err
	}
	var ids []ChainID
	err = s.view(func(t *tx) error {
		layers, err := t.layers(ctx)
		for _, l := range layers {
			ids = append(ids, l.ID)
		}
		return err
	})
	if err != nil {
		return res, err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return res, err
		}
		dead, err := s.collect(id)
		if err != nil {
			return res, err
		}
		res.Layers += len(dead)
		if err := s.discardAll(ctx, s.drv, dead); err != nil {
			return res, err
		}
	}
	res.Leftovers, err = s.sweep(ctx, s.drv)
	return res, err
}

// collect removes the layer from the database if nobody uses it. Most are used, which is found out without a transaction that
// writes.
func (s *Store) collect(id ChainID) (dead []work, err error) {
	used := false
	if err := s.view(func(t *tx) error {
		used, err = t.used(id)
		return err
	}); err != nil || used {
		return nil, err
	}
	return s.update(func(t *tx) ([]work, error) { return s.collectLocked(t, nil, id) })
}

// expire releases the holders whose time is over.
func (s *Store) expire(ctx context.Context) (n int, err error) {
	var over []Ref
	err = s.view(func(t *tx) error {
		return t.records(holderPrefix, func(r Record) error {
			if r.Holder.expired() {
				over = append(over, r.Holder.Ref())
			}
			return ctx.Err()
		})
	})
	if err != nil {
		return 0, err
	}
	for _, ref := range over {
		done, err := s.expireOne(ctx, ref)
		if err != nil {
			return n, err
		}
		n += done
	}
	return n, nil
}

func (h *Holder) expired() bool { return !h.Expires.IsZero() && h.Expires.Before(time.Now()) }

// expireOne releases the holder unless it was given more time meanwhile, and returns how many it released.
func (s *Store) expireOne(ctx context.Context, ref Ref) (int, error) {
	defer s.holders.lock(holderKey(ref))()
	var r Record
	err := s.view(func(t *tx) (err error) {
		r, err = t.holder(ref)
		return err
	})
	switch {
	case errors.Is(err, drivers.ErrNotFound), err == nil && !r.Holder.expired():
		return 0, nil
	case err != nil:
		return 0, err
	}
	return 1, s.changeHeld(ctx, Update{Release: []Ref{ref}})
}
