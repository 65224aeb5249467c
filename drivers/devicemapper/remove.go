package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// Remove implements drivers.Driver. Children stay whole. A device that something outside has open is deleted later, by
// Cleanup or by another Remove, if deferred removal is on.
func (d *Driver) Remove(ctx context.Context, id string) error {
	unlock, err := d.begin(ctx, id)
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

// discards says whether the blocks of removed layers are to be given back to what the pool is made from. Deleting a device does
// not do so, and files stay as large as they ever were.
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

// Cleanup implements drivers.Driver.
func (d *Driver) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.poolMu.Lock()
	err := d.settleIfNeededLocked(ctx)
	if err == nil {
		err = d.resumeLocked()
	}
	d.poolMu.Unlock()
	if err != nil {
		return err
	}
	errs := []error{d.mounts.Refresh(), d.unmountUnknown(ctx)}
	for _, r := range d.inState(stateMaking) {
		errs = append(errs, d.removeHalf(ctx, r.Layer))
	}
	errs = append(errs, d.deactivateUnused(ctx), d.buryLeaving(ctx))
	return errors.Join(errs...)
}

// resumeLocked resumes devices that a process suspended which was killed then.
//
// Precondition: d.poolMu is held, so that nobody has one suspended now.
func (d *Driver) resumeLocked() error {
	active, err := d.active()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range active {
		info, err := d.dm.stat(name)
		if err == nil && info.Live && info.Suspended {
			d.log.Warn("resuming a device that was left suspended", "device", name)
			err = d.dm.resume(name)
		}
		errs = append(errs, ignore(err, unix.ENXIO))
	}
	return errors.Join(errs...)
}

// active lists the thin devices of this store that the kernel has.
func (d *Driver) active() (names []string, err error) {
	all, err := d.dm.list()
	for _, name := range all {
		if d.isOurs(name) {
			names = append(names, name)
		}
	}
	return names, err
}

// unmountUnknown unmounts what was mounted by a process that was killed meanwhile, and removes mount points.
func (d *Driver) unmountUnknown(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.home, mountDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		unlock, err := d.begin(ctx, e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		target := d.mountPath(e.Name())
		if d.mounts.Count(e.Name()) == 0 {
			if drivers.IsMountPoint(target) {
				errs = append(errs, d.host.unmount(target))
			}
			errs = append(errs, ignore(os.Remove(target), fs.ErrNotExist))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// removeHalf removes a layer whose making was interrupted.
func (d *Driver) removeHalf(ctx context.Context, id string) error {
	unlock, err := d.begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if r, err := d.lookup(id); err != nil || r.State != stateMaking {
		return ignore(err, drivers.ErrNotFound)
	}
	d.log.Info("removing a layer whose making was interrupted", "layer", id)
	return d.remove(ctx, id)
}

// deactivateUnused deactivates devices whose layers are not mounted.
func (d *Driver) deactivateUnused(ctx context.Context) error {
	active, err := d.active()
	if err != nil {
		return err
	}
	activeNow := make(map[string]bool, len(active))
	for _, name := range active {
		activeNow[name] = true
	}
	d.mu.Lock()
	var list []*deviceRecord
	for _, r := range d.layers {
		if activeNow[d.deviceName(r.id)] && r.Layer != baseLayer {
			list = append(list, r)
		}
	}
	d.mu.Unlock()
	var errs []error
	for _, r := range list {
		unlock, err := d.begin(ctx, r.Layer)
		if err != nil {
			return err
		}
		if d.mounts.Count(r.Layer) == 0 {
			errs = append(errs, ignore(d.tryDeactivate(r), unix.EBUSY))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// ignore returns nil for an error that is what it should be.
func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}
