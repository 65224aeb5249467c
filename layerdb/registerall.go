package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// Source is the stream of one layer of several.
type Source struct {
	// DiffID is the digest of the uncompressed stream.
	DiffID digest.Digest
	// Open returns the stream, plain or compressed. It is called at most once, in some goroutine, and not at all for a layer that
	// the store has, whole. Register closes what it returns.
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
// for all layers of an image, and faster: where the driver stacks directories (drivers.ParallelApplier), several are unpacked at
// once, and a layer waits for those below only where it needs what is in them. They are published in their order.
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
	if ok && p.ParallelApply() && o.Parallel != 1 && !m.lost {
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
	// lost says that the layer above those is in the database, but lost.
	lost   bool
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

// find pins what the store has, up to the first layer that it has not, or has lost.
func (m *many) find(ctx context.Context) error {
	for _, id := range m.ids {
		known, lost, err := m.store.knows(ctx, id)
		if err != nil {
			return err
		}
		if m.lost = lost; !known || lost {
			return nil
		}
		if err := m.has(id); err != nil {
			return err
		}
	}
	return nil
}

// has pins a layer of the store and adds it to those that are there.
func (m *many) has(id ChainID) error {
	if err := m.pin(id); err != nil {
		return err
	}
	m.layers = append(m.layers, *m.below.Layer)
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
		if err := m.make(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// make makes the i-th layer, all below it being there, or restores it. Behind one that was lost there may be some that were not.
func (m *many) make(ctx context.Context, i int) error {
	id := m.ids[i]
	known, lost, err := m.store.knows(ctx, id)
	if err != nil {
		return err
	}
	if !known || lost {
		err = m.with(ctx, i, func(in *input) error {
			if lost {
				return m.store.restore(ctx, in, id, m.below, m.options(i))
			}
			_, err := m.store.makeLayer(ctx, in, m.below, m.options(i))
			return err
		})
	}
	if hold := m.options(i).Hold; err == nil && known && hold != nil {
		_, err = m.store.existing(ctx, id, hold)
	}
	if err != nil {
		return err
	}
	return m.has(id)
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
	layers := m.start(ctx, works)
	var errs []error
	for i := range works {
		r := <-layers[i].result
		if r.err == nil && len(errs) == 0 {
			r.layer.chain(m.below)
			r.layer, r.err = m.store.publish(ctx, works[i], r.layer, m.options(from+i).Hold)
			if r.err == nil {
				r.err = m.has(r.layer.ID)
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
		if !errors.Is(err, context.Canceled) && !errors.Is(err, errBelow) {
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

// errBelow is why a layer is given up whose work is not at fault.
var errBelow = errors.New("a layer below failed")

// stacking is one layer of several that are unpacked at once.
type stacking struct {
	// ctx ends when a layer below fails, and fail ends those of the layers above.
	ctx  context.Context
	fail context.CancelCauseFunc
	// complete is closed when the driver has the layer's content.
	complete chan struct{}
	result   chan unpacked
}

// stack prepares n layers, the lowest first. All contexts end with ctx.
func stack(ctx context.Context, n int) []stacking {
	layers := make([]stacking, n)
	for i := range layers {
		above, fail := context.WithCancelCause(ctx)
		layers[i] = stacking{ctx: ctx, fail: fail, complete: make(chan struct{}), result: make(chan unpacked, 1)}
		ctx = above
	}
	return layers
}

// waitFor returns when all of the layers are complete.
func waitFor(ctx context.Context, layers []stacking) error {
	for _, l := range layers {
		select {
		case <-l.complete:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// start unpacks the layers of works in goroutines, the lowest first, so that none waits for one that was not begun; each
// sends one result and ends.
func (m *many) start(ctx context.Context, works []work) []stacking {
	n := m.opt.Parallel
	if n <= 0 {
		n = defaultParallel
	}
	layers := stack(ctx, len(works))
	var next atomic.Int64
	for range min(n, len(works)) {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(works) {
					return
				}
				layers[i].result <- m.unpack(layers, i, works[i])
			}
		}()
	}
	return layers
}

// unpack unpacks the i-th of the layers that are made at once.
func (m *many) unpack(layers []stacking, i int, w work) (u unpacked) {
	l := layers[i]
	defer func() {
		if u.err != nil {
			l.fail(errBelow)
		} else {
			close(l.complete)
		}
	}()
	if l.ctx.Err() != nil {
		u.err = context.Cause(l.ctx)
		return u
	}
	at := len(m.sources) - len(layers) + i
	u.err = m.with(l.ctx, at, func(in *input) (err error) {
		u.layer, err = m.store.unpack(l.ctx, w, in, m.options(at), func(ctx context.Context) error {
			return waitFor(ctx, layers[:i])
		})
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
