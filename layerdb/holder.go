package layerdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plyfs/drivers"
)

// Update is a change of several holders at once.
type Update struct {
	// Hold makes these holders, or replaces those of the same name.
	Hold []Holder
	// Release ends these.
	Release []Ref
}

// Change makes all of an update or nothing of it. Layers that nobody uses any more are removed, and layers below them that
// nobody else uses.
//
// The error wraps drivers.ErrNotFound if a layer that shall be held, or a holder that shall be released, is not there, and
// drivers.ErrInvalid for what cannot be the name or the data of a holder. After the change is made, the removal of
// layers may take its time, and what cannot be removed is left to GC.
func (s *Store) Change(ctx context.Context, u Update) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	return s.change(ctx, u)
}

// Hold makes or replaces holders, all together; see Change.
func (s *Store) Hold(ctx context.Context, h ...Holder) error { return s.Change(ctx, Update{Hold: h}) }

// Release ends holders, all together; see Change.
func (s *Store) Release(ctx context.Context, refs ...Ref) error {
	return s.Change(ctx, Update{Release: refs})
}

// Holder returns the named holder; the error wraps drivers.ErrNotFound. The caller owns what it refers to.
func (s *Store) Holder(ctx context.Context, ref Ref) (h Holder, err error) {
	if err := ref.validate(); err != nil {
		return Holder{}, err
	}
	err = s.read(ctx, func(t *tx) error {
		r, err := t.holder(ref)
		if err == nil {
			h = *r.Holder
		}
		return err
	})
	return h, err
}

// Holders returns the holders of a kind, or all for "", in the order of kinds and keys.
func (s *Store) Holders(ctx context.Context, kind string) (all []Holder, err error) {
	prefix := holderPrefix
	if kind != "" {
		prefix += kind + "/"
	}
	err = s.read(ctx, func(t *tx) error {
		all = nil
		return t.records(prefix, func(r Record) error {
			all = append(all, *r.Holder)
			return ctx.Err()
		})
	})
	return all, err
}

// read is view for exported methods.
func (s *Store) read(ctx context.Context, fn func(t *tx) error) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.view(fn)
}

func (s *Store) change(ctx context.Context, u Update) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := u.validate()
	if err != nil {
		return err
	}
	defer s.holders.lock(names...)()
	return s.changeHeld(ctx, u)
}

// changeHeld is change. Precondition: the locks of the update's holders are held.
func (s *Store) changeHeld(ctx context.Context, u Update) error {
	var dead []work
	err := s.withCopies(u, func(hold []Holder) (err error) {
		dead, err = s.update(func(t *tx) ([]work, error) { return s.changeLocked(t, hold, u.Release) })
		return err
	})
	if err != nil {
		return err
	}
	s.discardLater(ctx, dead)
	return nil
}

// validate returns the keys of all holders that the update names.
func (u Update) validate() (names []string, err error) {
	for _, h := range u.Hold {
		if err := h.validate(); err != nil {
			return nil, fmt.Errorf("hold %s: %w: %w", h.Ref(), drivers.ErrInvalid, err)
		}
		names = append(names, holderKey(h.Ref()))
	}
	for _, ref := range u.Release {
		if err := ref.validate(); err != nil {
			return nil, fmt.Errorf("release: %w", err)
		}
		names = append(names, holderKey(ref))
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(names))); len(sorted) != len(names) {
		return nil, fmt.Errorf("an update names a holder twice: %w", drivers.ErrInvalid)
	}
	return names, nil
}

// withCopies runs commit, which makes the update, between the writing of copies of what is held and the removal of those of what is
// released, so that there is never a holder without a copy. If commit fails the copies are as before, unless writing
// fails for them too, or nobody knows what was committed; the next Open compares them. Precondition: the locks of the update's holders are held.
func (s *Store) withCopies(u Update, commit func(hold []Holder) error) error {
	if len(u.Hold) > 0 {
		if err := s.needSpace(addSpace); err != nil {
			return err
		}
	}
	before := make([]Record, len(u.Hold))
	hold := slices.Clone(u.Hold)
	now := time.Now().UTC()
	err := s.view(func(t *tx) error {
		for i, h := range hold {
			r, err := t.holder(h.Ref())
			switch {
			case errors.Is(err, drivers.ErrNotFound):
				hold[i].Created = now
			case err != nil:
				return err
			default:
				hold[i].Created, before[i] = r.Holder.Created, r
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range hold {
		if err = s.writeCopy(Record{Holder: &hold[i]}); err != nil {
			break
		}
	}
	if err == nil {
		err = commit(hold)
	}
	if uncertain(err) {
		return err
	} else if err != nil {
		return errors.Join(err, s.restoreCopies(hold, before))
	}
	for _, ref := range u.Release {
		if err := s.removeCopy(Record{Holder: &Holder{Kind: ref.Kind, Key: ref.Key}}); err != nil {
			s.log.Warn("a copy of a record stays until the store is opened anew", "holder", ref.String(), "error", err)
		}
	}
	return nil
}

// restoreCopies undoes what withCopies wrote: before has the records as they were, empty ones where there was none.
func (s *Store) restoreCopies(hold []Holder, before []Record) error {
	var errs []error
	for i := range hold {
		if before[i].Holder != nil {
			errs = append(errs, s.writeCopy(before[i]))
		} else {
			errs = append(errs, s.removeCopy(Record{Holder: &hold[i]}))
		}
	}
	return errors.Join(errs...)
}

// changeLocked makes the update, and then collects: what one holder drops, another may take. Precondition: graph is held.
func (s *Store) changeLocked(t *tx, hold []Holder, release []Ref) (dead []work, err error) {
	var dropped []ChainID
	for _, h := range hold {
		ids, err := t.hold(h)
		if err != nil {
			return nil, err
		}
		dropped = append(dropped, ids...)
	}
	for _, ref := range release {
		ids, err := t.release(ref)
		if err != nil {
			return nil, err
		}
		dropped = append(dropped, ids...)
	}
	for _, id := range dropped {
		if dead, err = s.collectLocked(t, dead, id); err != nil {
			return nil, err
		}
	}
	return dead, nil
}

// hold makes or replaces a holder, and returns the layers that it held and does not hold any more.
func (t *tx) hold(h Holder) (dropped []ChainID, err error) {
	old, err := t.holder(h.Ref())
	if err != nil && !errors.Is(err, drivers.ErrNotFound) {
		return nil, err
	}
	for _, id := range h.Layers {
		if err := t.addUser(id, h.Kind, h.Key); err != nil {
			return nil, fmt.Errorf("hold by %s: %w", h.Ref(), err)
		}
	}
	if old.Holder != nil {
		if dropped, err = t.drop(*old.Holder, h.Layers); err != nil {
			return nil, err
		}
	}
	return dropped, t.put(Record{Holder: &h})
}

func (t *tx) release(ref Ref) (dropped []ChainID, err error) {
	r, err := t.holder(ref)
	if err != nil {
		return nil, err
	}
	if err := t.delete(holderKey(ref)); err != nil {
		return nil, err
	}
	return t.drop(*r.Holder, nil)
}

// drop ends the holder's use of its layers but those in keep.
func (t *tx) drop(h Holder, keep []ChainID) (dropped []ChainID, err error) {
	for _, id := range h.Layers {
		if slices.Contains(keep, id) {
			continue
		}
		if err := t.dropUser(id, h.Kind, h.Key); err != nil {
			return nil, err
		}
		dropped = append(dropped, id)
	}
	return dropped, nil
}

// discardLater ends works whose decision is committed; what fails is said, and left to the next sweep.
func (s *Store) discardLater(ctx context.Context, dead []work) {
	if err := s.discardAll(ctx, s.drv, dead); err != nil {
		s.log.Warn("removed layers take up space until the next collection", "error", err)
	}
}
