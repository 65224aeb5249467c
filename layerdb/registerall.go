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

// RegisterAll makes layers on top of each other, the lowest first in sources, and returns them in that order. It is Register for all
// layers of an image, and faster: where the driver stacks directories (drivers.ParallelApplier), it unpacks several at once, and a
// layer waits for those below it only when it needs their content. They are published from the lowest to the topmost.
//
// After an error, layers below the first that failed may be in the store, whole but not held: another attempt finds them there, else GC
// removes them. The errors are those of Register.
func (s *Store) RegisterAll(ctx context.Context, sources []Source, o RegisterAllOptions) ([]Layer, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if len(sources) == 0 {
		return nil, fmt.Errorf("no layers to register: %w", drivers.ErrInvalid)
	}
	b := &batch{store: s, sources: sources, opt: o}
	defer b.release()
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	if err := b.find(ctx); err != nil {
		return nil, err
	}
	if len(b.layers) == len(sources) {
		if o.Hold != nil {
			_, err = s.existing(ctx, b.layers[len(b.layers)-1].ID, o.Hold)
		}
		return b.layers, err
	}
	p, ok := s.drv.(drivers.ParallelApplier)
	if ok && p.ParallelApply() && o.Parallel != 1 && !b.lost {
		err = b.parallel(ctx)
	} else {
		err = b.sequence(ctx)
	}
	if err != nil {
		return nil, err
	}
	return b.layers, nil
}

// batch is the state of one RegisterAll.
type batch struct {
	store   *Store
	sources []Source
	opt     RegisterAllOptions
	ids     []ChainID
	// layers are those that are done: in the store, and pinned, the lowest first. below is the topmost of them, or the parent of all.
	layers []Layer
	below  Record
	// lost says that the database knows the layer above those, but that it was lost.
	lost  bool
	undos []func()
}

func (b *batch) release() {
	for _, fn := range slices.Backward(b.undos) {
		fn()
	}
}

// begin checks the options, pins the parent, and begins the flights of all layers: the lowest first, as everybody does.
func (b *batch) begin(ctx context.Context) error {
	if b.opt.Hold != nil {
		if err := (RegisterOptions{Hold: b.opt.Hold}).validate(); err != nil {
			return err
		}
	}
	id := b.opt.Parent
	for i, src := range b.sources {
		if err := validDigest(src.DiffID); err != nil {
			return fmt.Errorf("DiffID of layer %d: %w", i, err)
		}
		id = id.above(src.DiffID)
		b.ids = append(b.ids, id)
	}
	if err := b.pin(b.opt.Parent); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	for _, id := range b.ids {
		land, err := b.store.flights.begin(ctx, id)
		if err != nil {
			return err
		}
		b.undos = append(b.undos, land)
	}
	return nil
}

// pin pins a layer of the store and makes it the one below the next.
func (b *batch) pin(id ChainID) error {
	r, unpin, err := b.store.pinLayer(id)
	if err != nil {
		return err
	}
	b.below = r
	b.undos = append(b.undos, unpin)
	return nil
}

// find adopts the layers that the store has, from the lowest up to the first that it does not have, or has lost.
func (b *batch) find(ctx context.Context) error {
	for _, id := range b.ids {
		state, err := b.store.state(ctx, id)
		if err != nil {
			return err
		}
		if b.lost = state == layerLost; state != layerWhole {
			return nil
		}
		if err := b.adopt(id); err != nil {
			return err
		}
	}
	return nil
}

// adopt pins a layer of the store and adds it to those that are done.
func (b *batch) adopt(id ChainID) error {
	if err := b.pin(id); err != nil {
		return err
	}
	b.layers = append(b.layers, *b.below.Layer)
	return nil
}

func (b *batch) options(i int) RegisterOptions {
	o := RegisterOptions{ExpectDiffID: b.sources[i].DiffID, Limits: b.opt.Limits, Progress: b.sources[i].Progress}
	if i == len(b.sources)-1 {
		o.Hold = b.opt.Hold
	}
	return o
}

// withSource opens the i-th source, calls fn with it, and closes it.
func (b *batch) withSource(ctx context.Context, i int, fn func(in *input) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("layer %d (%s): %w", i, b.sources[i].DiffID, err)
		}
	}()
	r, err := b.sources[i].Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	in, err := b.store.newInput(r)
	if err != nil {
		return err
	}
	defer in.close()
	return fn(in)
}

// sequence makes the missing layers one after the other.
func (b *batch) sequence(ctx context.Context) error {
	for i := len(b.layers); i < len(b.sources); i++ {
		if err := b.makeOrRestore(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// makeOrRestore adds the i-th layer, over those that are done: it makes it if the store does not know it, restores it if it was lost, and
// else only adopts it, since above a lost layer there may be others that are whole.
func (b *batch) makeOrRestore(ctx context.Context, i int) error {
	id := b.ids[i]
	state, err := b.store.state(ctx, id)
	if err != nil {
		return err
	}
	if state != layerWhole {
		err = b.withSource(ctx, i, func(in *input) error {
			if state == layerLost {
				return b.store.restore(ctx, in, id, b.below, b.options(i))
			}
			_, err := b.store.makeLayer(ctx, in, b.below, b.options(i))
			return err
		})
	}
	if hold := b.options(i).Hold; err == nil && state != layerUnknown && hold != nil {
		_, err = b.store.existing(ctx, id, hold)
	}
	if err != nil {
		return err
	}
	return b.adopt(id)
}

// parallel creates all missing layers empty, unpacks several at a time, and publishes each once those below it are published.
func (b *batch) parallel(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := len(b.layers)
	var works []work
	defer func() {
		if !uncertain(err) {
			err = errors.Join(err, b.abandon(ctx, works))
		}
	}()
	for parent := b.below.cacheID(); from+len(works) < len(b.sources); parent = works[len(works)-1].ID {
		w := work{Driver: b.store.drv.Name(), ID: newID(), Parent: parent}
		if err := b.store.beginWork(w); err != nil {
			return err
		}
		works = append(works, w)
		if err := b.store.drv.Create(ctx, w.ID, w.Parent, nil); err != nil {
			return err
		}
	}
	layers := b.start(ctx, works)
	var errs []error
	for i := range works {
		r := <-layers[i].result
		if r.err == nil && len(errs) == 0 {
			r.layer.chain(b.below)
			r.layer, r.err = b.store.publish(ctx, works[i], r.layer, b.options(from+i).Hold)
			if r.err == nil {
				r.err = b.adopt(r.layer.ID)
			}
		}
		if r.err != nil {
			errs = append(errs, r.err)
			cancel()
		}
	}
	return firstCause(errs)
}

// firstCause returns the error because of which the others were cancelled.
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

// errBelow is the error of a layer that is given up although nothing is wrong with it.
var errBelow = errors.New("a layer below failed")

// stacking is one of several layers that are unpacked at once.
type stacking struct {
	// ctx ends when a layer below fails; fail ends the contexts of the layers above.
	ctx  context.Context
	fail context.CancelCauseFunc
	// complete is closed when the driver has all of the layer's content.
	complete chan struct{}
	result   chan unpacked
}

// stack returns the state of n layers, the lowest first. All their contexts end with ctx.
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

// start unpacks the layers of works in goroutines, the lowest first, so that none waits for a layer that was not begun. Each layer
// gets exactly one result, for which nobody has to wait.
func (b *batch) start(ctx context.Context, works []work) []stacking {
	n := b.opt.Parallel
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
				layers[i].result <- b.unpack(layers, i, works[i])
			}
		}()
	}
	return layers
}

// unpack unpacks layers[i].
func (b *batch) unpack(layers []stacking, i int, w work) (u unpacked) {
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
	at := len(b.sources) - len(layers) + i
	u.err = b.withSource(l.ctx, at, func(in *input) (err error) {
		u.layer, err = b.store.unpack(l.ctx, w, in, b.options(at), func(ctx context.Context) error {
			return waitFor(ctx, layers[:i])
		})
		return err
	})
	return u
}

// abandon removes the layers that were made and not published, the topmost first.
func (b *batch) abandon(ctx context.Context, works []work) error {
	published := make(map[string]bool)
	for _, l := range b.layers {
		published[l.CacheID] = true
	}
	var errs []error
	for _, w := range slices.Backward(works) {
		if !published[w.ID] {
			errs = append(errs, b.store.abandon(ctx, b.store.drv, w))
		}
	}
	return errors.Join(errs...)
}
