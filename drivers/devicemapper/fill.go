package devicemapper

import (
	"context"
	"errors"
	"fmt"

	"plyfs/drivers"
)

// Fill implements drivers.Filler. A layer that was not filled to the end shows nothing, and Cleanup removes it.
func (d *Driver) Fill(ctx context.Context, id string, fn func(root string) error) (err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := d.lookupReady(id)
	if err != nil {
		return err
	}
	if r.Writable {
		return fmt.Errorf("layer %s is no image layer: %w", id, drivers.ErrInvalid)
	}
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s is mounted: %w", id, drivers.ErrInUse)
	}
	if err := d.checkFree(); err != nil {
		return fmt.Errorf("fill layer %s: %w", id, err)
	}
	if r, err = d.setState(ctx, r, stateMaking); err != nil {
		return err
	}
	started := false
	err = d.withMounted(r, func(root string) error {
		started = true
		return fn(root)
	})
	switch {
	case err == nil:
		_, err = d.setState(ctx, r, stateReady)
	case !started:
		// Nothing was written, so it is as it was.
		_, rerr := d.setState(context.WithoutCancel(ctx), r, stateReady)
		err = errors.Join(err, rerr)
	}
	return err
}

// withMounted calls fn with the root of a layer, mounted for that time and writable. What fn wrote is durable
// afterwards.
//
// Precondition: the layer is locked, and not mounted.
func (d *Driver) withMounted(r *deviceRecord, fn func(root string) error) (err error) {
	if err := d.mount(r, drivers.GetOptions{}); err != nil {
		return err
	}
	err = fn(d.mountPath(r.Layer))
	if err != nil {
		err = d.explain(err)
	}
	return errors.Join(err, d.unmount(r))
}
