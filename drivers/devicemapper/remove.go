package devicemapper

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// Remove implements drivers.Driver. Children stay whole. A device that something outside has open is deleted later, by
// Cleanup or by another Remove, if deferred removal is on.
func (d *Driver) Remove(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.remove(ctx, id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	// What could not go before may do so now. It is no part of this layer's removal.
	if err := d.buryLeaving(ctx); err != nil {
		d.log.Warn("devices of removed layers are still there", "error", err)
	}
	return nil
}

// remove removes a layer.
//
// Precondition: it is locked.
func (d *Driver) remove(ctx context.Context, id string) error {
	r, err := d.lookup(id)
	if errors.Is(err, drivers.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("it is mounted: %w", drivers.ErrInUse)
	}
	if err := d.deactivate(ctx, r); err != nil {
		return err
	}
	return d.bury(ctx, r)
}

// bury ends a layer, and deletes its device if nothing has it open.
func (d *Driver) bury(ctx context.Context, r *deviceRecord) (err error) {
	if r.State != stateLeaving {
		if r, err = d.setState(ctx, r, stateLeaving); err != nil {
			return err
		}
	}
	// From now on there is no such layer.
	ctx = context.WithoutCancel(ctx)
	if !d.claim(r.id) {
		return nil
	}
	defer d.release(r.id)
	active, err := d.isActive(r)
	if err != nil {
		return err
	}
	if active {
		if err := d.tryDeactivate(r); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
		if active, err = d.isActive(r); err != nil || active {
			return err
		}
	}
	if d.discards() {
		if err := d.discard(ctx, r); err != nil {
			d.log.Warn("the blocks of a removed layer were not given back", "layer", r.Layer, "error", err)
		}
	}
	d.poolMu.Lock()
	defer d.poolMu.Unlock()
	// In use again for a moment: it is deleted later.
	return ignore(d.dropDevice(ctx, r.id), unix.EBUSY)
}

// claim makes a device this goroutine's to delete, unless another has it, or it is gone.
func (d *Driver) claim(id deviceID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.burying[id] || d.devices[id] == nil {
		return false
	}
	d.burying[id] = true
	return true
}

func (d *Driver) release(id deviceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.burying, id)
}

// discards says whether the blocks of removed layers are to be given back to what the pool is made from. Deleting a
// device does not do so, and files stay as large as they ever were.
func (d *Driver) discards() bool {
	if d.opts.discard != "" {
		return d.opts.discard == "true"
	}
	return d.pool.Loop
}

// discard gives back the blocks of a device that it shares with no other.
func (d *Driver) discard(ctx context.Context, r *deviceRecord) error {
	dev, err := d.activate(r)
	if err != nil {
		return err
	}
	return errors.Join(d.host.discard(dev), d.deactivate(ctx, r))
}

// buryLeaving deletes the devices of removed layers that were still in use.
func (d *Driver) buryLeaving(ctx context.Context) error {
	var errs []error
	for _, r := range d.inState(stateLeaving) {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, d.bury(ctx, r))
	}
	return errors.Join(errs...)
}

func (d *Driver) inState(s deviceState) (list []*deviceRecord) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.devices {
		if r.State == s {
			list = append(list, r)
		}
	}
	return list
}

// ignore returns nil for an error that is what it should be.
func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}
