package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// Source is the stream of one layer of several.
type Source struct {
	// DiffID is the digest of the uncompressed stream.
	DiffID digest.Digest
	// Open returns the stream, plain or compressed. It is called at most once, in some goroutine, and not at all for a layer that
	// the store has. Register closes what it returns.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Progress is RegisterOptions.Progress of this layer.
	Progress func(bytes int64)
}

// RegisterAllOptions are options of several layers.
type RegisterAllOptions struct {
	// Parent is the layer below the lowest; "" for none.
	Parent ChainID
	// Parallel is how many layers are unpacked at a time, where the driver can; zero stands for three.
	Parallel int
	// Hold is RegisterOptions.Hold for the topmost layer.
	Hold   *Holder
	Limits tarlayer.Limits
}

const defaultParallel = 3

// RegisterAll makes layers on top of each other, the lowest first in sources, and returns them in that order. It is Register
// for all layers of an image, and faster: where the driver unpacks a layer without a look at those below
// (drivers.ParallelApplier), several are unpacked at once.
//
// After an error, layers below the first that failed may be in the store, whole but not held, so that another attempt goes on
// from there; GC removes them otherwise.
func (s *Store) RegisterAll(ctx context.Context, sources []Source, o RegisterAllOptions) ([]Layer, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if len(sources) == 0 {
		return nil, fmt.Errorf("no layers to register: %w", drivers.ErrInvalid)
	}
	m := &many{store: s, sources: sources, opt: o}
	defer m.undo()
	if err := m.prepare(ctx); err != nil {
		return nil, err
	}
	if err := m.find(ctx); err != nil {
		return nil, err
	}
	if len(m.layers) == len(sources) {
		if o.Hold != nil {
			_, err = s.existing(ctx, m.layers[len(m.layers)-1].ID, o.Hold)
		}
		return m.layers, err
	}
	p, ok := s.drv.(drivers.ParallelApplier)
	if ok && p.ParallelApply() && o.Parallel != 1 {
		err = m.parallel(ctx)
	} else {
		err = m.sequence(ctx)
	}
	if err != nil {
		return nil, err
	}
	return m.layers, nil
}

// many is a RegisterAll on its way.
type many struct {
	store   *Store
	sources []Source
	opt     RegisterAllOptions
	ids     []ChainID
	// layers are those that are in the store, the lowest first; below is the topmost of them, or the parent of all.
	layers []Layer
	below  Record
	undone []func()
}

func (m *many) undo() {
	for _, fn := range slices.Backward(m.undone) {
		fn()
	}
}

// prepare begins the flights of all layers, the lowest first, as everybody does.
func (m *many) prepare(ctx context.Context) error {
	if m.opt.Hold != nil {
		if err := (RegisterOptions{Hold: m.opt.Hold}).validate(); err != nil {
			return err
		}
	}
	id := m.opt.Parent
	for i, src := range m.sources {
		if err := validDigest(src.DiffID); err != nil {
			return fmt.Errorf("DiffID of layer %d: %w", i, err)
		}
		id = id.above(src.DiffID)
		m.ids = append(m.ids, id)
	}
	if err := m.pin(m.opt.Parent); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	for _, id := range m.ids {
		land, err := m.store.flights.begin(ctx, id)
		if err != nil {
			return err
		}
		m.undone = append(m.undone, land)
	}
	return nil
}

// pin makes a layer of the store the one below the next, and keeps it.
func (m *many) pin(id ChainID) error {
	r, unpin, err := m.store.pinLayer(id)
	if err != nil {
		return err
	}
	m.below = r
	m.undone = append(m.undone, unpin)
	return nil
}

// find pins what the store has.
func (m *many) find(ctx context.Context) error {
	for _, id := range m.ids {
		err := m.pin(id)
		if errors.Is(err, drivers.ErrNotFound) {
			return ctx.Err()
		} else if err != nil {
			return err
		}
		m.layers = append(m.layers, *m.below.Layer)
	}
	return nil
}

func (m *many) options(i int) RegisterOptions {
	o := RegisterOptions{ExpectDiffID: m.sources[i].DiffID, Limits: m.opt.Limits, Progress: m.sources[i].Progress}
	if i == len(m.sources)-1 {
		o.Hold = m.opt.Hold
	}
	return o
}

// with opens the i-th source, and calls fn with it.
func (m *many) with(ctx context.Context, i int, fn func(in *input) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("layer %d (%s): %w", i, m.sources[i].DiffID, err)
		}
	}()
	r, err := m.sources[i].Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	in, err := m.store.newInput(r)
	if err != nil {
		return err
	}
	defer in.close()
	return fn(in)
}

// sequence makes one layer after the other.
func (m *many) sequence(ctx context.Context) error {
	for i := len(m.layers); i < len(m.sources); i++ {
		var l Layer
		err := m.with(ctx, i, func(in *input) (err error) {
			l, err = m.store.makeLayer(ctx, in, m.below, m.options(i))
			return err
		})
		if err == nil {
			err = m.publishedAs(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *many) publishedAs(l Layer) error {
	m.layers = append(m.layers, l)
	return m.pin(l.ID)
}

// parallel makes all empty layers, unpacks several at a time, and publishes each when those below it are.
func (m *many) parallel(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := len(m.layers)
	var works []work
	defer func() {
		if !uncertain(err) {
			err = errors.Join(err, m.abandon(ctx, works))
		}
	}()
	for parent := m.below.cacheID(); from+len(works) < len(m.sources); parent = works[len(works)-1].ID {
		w := work{Driver: m.store.drv.Name(), ID: newID(), Parent: parent}
		if err := m.store.beginWork(w); err != nil {
			return err
		}
		works = append(works, w)
		if err := m.store.drv.Create(ctx, w.ID, w.Parent, nil); err != nil {
			return err
		}
	}
	results := m.start(ctx, works)
	var errs []error
	for i := range works {
		r := <-results[i]
		if r.err == nil && len(errs) == 0 {
			r.layer.chain(m.below)
			r.layer, r.err = m.store.publish(ctx, works[i], r.layer, m.options(from+i).Hold)
			if r.err == nil {
				r.err = m.publishedAs(r.layer)
			}
		}
		if r.err != nil {
			errs = append(errs, r.err)
			cancel()
		}
	}
	return firstCause(errs)
}

// firstCause is the error for which the others were cancelled.
func firstCause(errs []error) error {
	for _, err := range errs {
		if !errors.Is(err, context.Canceled) {
			return err
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

type unpacked struct {
	layer Layer
	err   error
}

// start unpacks the layers of works in goroutines, the lowest first; each sends one result and ends.
func (m *many) start(ctx context.Context, works []work) []chan unpacked {
	n := m.opt.Parallel
	if n <= 0 {
		n = defaultParallel
	}
	results := make([]chan unpacked, len(works))
	for i := range results {
		results[i] = make(chan unpacked, 1)
	}
	var mu sync.Mutex
	next := 0
	for range min(n, len(works)) {
		go func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(works) {
					return
				}
				results[i] <- m.unpack(ctx, works[i], len(m.sources)-len(works)+i)
			}
		}()
	}
	return results
}

func (m *many) unpack(ctx context.Context, w work, i int) (u unpacked) {
	if u.err = ctx.Err(); u.err != nil {
		return u
	}
	u.err = m.with(ctx, i, func(in *input) (err error) {
		u.layer, err = m.store.unpack(ctx, w, in, m.options(i))
		return err
	})
	return u
}

// abandon removes what was made and not published, the topmost first.
func (m *many) abandon(ctx context.Context, works []work) error {
	published := make(map[string]bool)
	for _, l := range m.layers {
		published[l.CacheID] = true
	}
	var errs []error
	for _, w := range slices.Backward(works) {
		if !published[w.ID] {
			errs = append(errs, m.store.abandon(ctx, m.store.drv, w))
		}
	}
	return errors.Join(errs...)
}
