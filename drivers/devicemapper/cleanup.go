package devicemapper

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

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
		unlock, err := d.locks.Begin(ctx, e.Name())
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
	unlock, err := d.locks.Begin(ctx, id)
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

// deactivateUnused deactivates devices whose layers are not mounted, or are gone.
func (d *Driver) deactivateUnused(ctx context.Context) error {
	active, err := d.active()
	if err != nil {
		return err
	}
	d.mu.Lock()
	known := make(map[string]*deviceRecord, len(d.devices))
	for _, r := range d.devices {
		known[d.deviceName(r.id)] = r
	}
	d.mu.Unlock()
	var errs []error
	for _, name := range active {
		r := known[name]
		switch {
		case r == nil:
			// Its thin device was deleted.
			err = ignore(d.dm.remove(name), unix.ENXIO)
		case r.State == stateReady && r.Layer != baseLayer:
			err = d.deactivateIfUnused(ctx, r.Layer)
		default:
			err = nil
		}
		errs = append(errs, ignore(err, unix.EBUSY))
	}
	return errors.Join(errs...)
}

func (d *Driver) deactivateIfUnused(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := d.lookup(id)
	if err != nil || d.mounts.Count(id) > 0 {
		return ignore(err, drivers.ErrNotFound)
	}
	return d.tryDeactivate(r)
}
