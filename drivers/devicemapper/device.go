package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// activate makes a thin device appear in the kernel, if it is not there, and returns its number.
func (d *Driver) activate(r *deviceRecord) (dev uint64, err error) {
	d.poolMu.Lock()
	defer d.poolMu.Unlock()
	name := d.deviceName(r.id)
	table := sys.DMTarget{Length: r.Size / sector, Type: "thin", Params: thinTable(d.poolDev, r.id)}
	info, err := d.dm.stat(name)
	switch {
	case errors.Is(err, unix.ENXIO):
		dev, err = d.makeDevice(name, table)
	case err != nil:
	case !info.Live:
		// Whoever made it was killed meanwhile.
		dev, err = info.Dev, d.startDevice(name, table)
	default:
		dev, err = info.Dev, d.revive(name, info)
	}
	if err != nil {
		return 0, fmt.Errorf("activate layer %s: %w", r.Layer, err)
	}
	return dev, nil
}

// revive makes a device that is there one that stays, and is not suspended.
func (d *Driver) revive(name string, info sys.DMInfo) error {
	if info.Suspended {
		if err := d.dm.resume(name); err != nil {
			return err
		}
	}
	if !info.Leaving {
		return nil
	}
	return d.dm.message(name, msgCancelRemove)
}

// The first pause between two tries to remove what is in use; each is twice as long as the one before.
const busyPause = 10 * time.Millisecond

// deactivate makes a thin device go from the kernel; one that is not there is no error. If it is still in use, in a
// mount namespace that copied a mount, it goes with its last user, or the error wraps ErrInUse.
func (d *Driver) deactivate(ctx context.Context, r *deviceRecord) error {
	deadline := time.Now().Add(d.busyWait)
	for pause := busyPause; ; pause *= 2 {
		err := d.tryDeactivate(r)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("deactivate layer %s: %w", r.Layer, err)
		case time.Now().After(deadline):
			return fmt.Errorf("deactivate layer %s: %w; a process, or a mount in another namespace, uses it: %w",
				r.Layer, err, drivers.ErrInUse)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// retire is deactivate for a layer that is not mounted any more but stays: what else uses its device is nobody's
// concern until the layer is removed.
func (d *Driver) retire(r *deviceRecord) error {
	err := d.tryDeactivate(r)
	if errors.Is(err, unix.EBUSY) {
		d.log.Info("the device of a layer that is not mounted is in use", "layer", r.Layer, "device",
			d.deviceName(r.id))
		return nil
	}
	return err
}

// tryDeactivate is deactivate without waiting: EBUSY if the device is in use, and can't go later.
func (d *Driver) tryDeactivate(r *deviceRecord) error {
	d.poolMu.Lock()
	defer d.poolMu.Unlock()
	name := d.deviceName(r.id)
	err := d.dm.remove(name)
	if errors.Is(err, unix.EBUSY) && d.opts.deferred {
		err = d.dm.removeLater(name)
	}
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// isActive says whether a thin device is in the kernel, because it is in use or could not go yet.
func (d *Driver) isActive(r *deviceRecord) (bool, error) {
	_, err := d.dm.stat(d.deviceName(r.id))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	return err == nil, err
}

// withQuiet calls fn while nothing is written to a device: a snapshot of it then has a file system in order.
//
// Precondition: d.poolMu is held.
func (d *Driver) withQuiet(r *deviceRecord, fn func() error) (err error) {
	name := d.deviceName(r.id)
	info, err := d.dm.stat(name)
	if errors.Is(err, unix.ENXIO) {
		return fn()
	}
	if err != nil {
		return err
	}
	if !info.Live || info.Suspended {
		return fn()
	}
	if err := d.dm.suspend(name); err != nil {
		return err
	}
	// If this process dies here, Cleanup resumes.
	defer func() {
		rerr := d.dm.resume(name)
		if rerr != nil {
			// Whoever uses the layer hangs until it succeeds.
			rerr = d.dm.resume(name)
		}
		err = errors.Join(err, rerr)
	}()
	return fn()
}
