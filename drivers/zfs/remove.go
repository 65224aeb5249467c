package zfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	zfs "github.com/mistifyio/go-zfs/v4"

	"plyfs/drivers"
)

// Remove implements drivers.Driver. Snapshots that others made of the layer go with it. Space is given back in the background, unless
// there is little: then it waits for it.
func (d *Driver) Remove(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := d.lookup(id)
	if err != nil {
		return nil // what is not there needs no removal
	}
	await, err := d.wantedSpace(l)
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if err := d.remove(ctx, id); err != nil {
		return err
	}
	if await > 0 {
		d.awaitSpace(ctx, await)
	}
	return nil
}

const (
	// scarce is the part of the space that has to be free for nobody to wait for more.
	scarce = 16
	// spaceWait bounds how long what was destroyed is waited for.
	spaceWait = 10 * time.Second
	spacePoll = 20 * time.Millisecond
	// settled is after how many transactions what one freed can be used: cf. zfs txg.h TXG_DEFER_SIZE.
	settled = 4
	// sweptProperty is set to make a transaction; its value says nothing.
	sweptProperty = "plyfs:swept"
)

// wantedSpace returns how much will be available when a layer is gone, 0 where that matters to nobody.
func (d *Driver) wantedSpace(l dataset) (uint64, error) {
	base, err := zfs.GetDataset(d.base)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", d.base, explain(err))
	}
	if base.Avail > (base.Used+base.Avail)/scarce {
		return 0, nil
	}
	ds, err := zfs.GetDataset(l.name)
	if err = explain(err); errors.Is(err, errNoDataset) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("space of %s: %w", l.name, err)
	}
	// Others may write meanwhile.
	return base.Avail + ds.Usedbydataset/2, nil
}

// awaitSpace waits until so much is available. Whoever removes a layer because the pool is full has use for the space at once, and
// zfs gives it back with later transactions. The layer is gone already: what fails here is only told.
func (d *Driver) awaitSpace(ctx context.Context, want uint64) {
	base := zfs.Dataset{Name: d.base}
	deadline := time.Now().Add(spaceWait)
	for n := 0; ctx.Err() == nil && time.Now().Before(deadline); {
		if err := base.SetProperty(sweptProperty, "yes"); err != nil {
			d.log.Debug("waiting for space", "dataset", d.base, "err", explain(err))
			time.Sleep(spacePoll)
			continue
		}
		if n++; n < settled {
			continue
		}
		now, err := zfs.GetDataset(d.base)
		if err != nil {
			d.log.Warn("waiting for space", "dataset", d.base, "err", explain(err))
			return
		}
		if now.Avail >= want {
			return
		}
	}
}

// remove is Remove, but for the waiting.
//
// Precondition: id is locked.
func (d *Driver) remove(ctx context.Context, id string) error {
	l, err := d.lookup(id)
	if err != nil {
		return err
	}
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s is mounted: %w", id, drivers.ErrInUse)
	}
	if child, ok := d.hasChild(id); ok {
		return fmt.Errorf("layer %s is the parent of %s: %w", id, child, drivers.ErrInUse)
	}
	d.changing.RLock()
	defer d.changing.RUnlock()
	if err := d.destroy(ctx, l.name, zfs.DestroyRecursive); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	d.mu.Lock()
	delete(d.table, id)
	d.mu.Unlock()
	// Last: until here the layer was there, and not whole.
	if err := os.Remove(d.markPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return nil
}

// The first pause between two tries to destroy what is busy; each is twice as long as the one before.
const busyPause = 10 * time.Millisecond

// destroy destroys a dataset or snapshot; one that is not there is no error. What is busy is tried again until d.busyWait has
// passed, and then the error wraps ErrInUse.
func (d *Driver) destroy(ctx context.Context, name string, flags zfs.DestroyFlag) error {
	ds := zfs.Dataset{Name: name}
	deadline := time.Now().Add(d.busyWait)
	for pause := busyPause; ; pause *= 2 {
		err := explain(ds.Destroy(flags))
		switch {
		case err == nil || errors.Is(err, errNoDataset):
			return nil
		case !errors.Is(err, errBusy):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("%w; a process, or a mount in another namespace, uses it: %w", err, drivers.ErrInUse)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// Cleanup implements drivers.Driver.
func (d *Driver) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := []error{d.mounts.Refresh(), d.unmountUnknown(ctx), d.load()}
	marks, err := os.ReadDir(filepath.Join(d.home, unfilledDir))
	errs = append(errs, err)
	for _, e := range marks {
		errs = append(errs, d.removeUnfilled(ctx, e.Name()))
	}
	errs = append(errs, d.destroyOrphans(ctx))
	return errors.Join(errs...)
}

// unmountUnknown unmounts what was mounted by a process that was killed while it unpacked, and removes mount points.
func (d *Driver) unmountUnknown(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.home, graphDir))
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
		switch {
		case d.mounts.Count(e.Name()) > 0:
		case drivers.IsMountPoint(d.mountPath(e.Name())):
			errs = append(errs, d.unmount(e.Name()))
		default:
			errs = append(errs, os.Remove(d.mountPath(e.Name())))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// removeUnfilled removes a layer whose unpacking was interrupted, and the mark of one that is gone.
func (d *Driver) removeUnfilled(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if unfilled, err := d.unfilled(id); err != nil || !unfilled {
		return err
	}
	if _, err := d.lookup(id); err == nil {
		d.log.Info("removing a layer whose unpacking was interrupted", "layer", id)
		return d.remove(ctx, id)
	}
	return os.Remove(d.markPath(id))
}

// destroyOrphans destroys snapshots that were made for children which there are not. Those of others are not touched.
func (d *Driver) destroyOrphans(ctx context.Context) error {
	// First the snapshots, then the clones: one whose clone is made in between has one.
	snapshots, err := zfs.Snapshots(d.base)
	if err != nil {
		return fmt.Errorf("list the snapshots in %s: %w", d.base, explain(err))
	}
	layers, err := zfs.Filesystems(d.base)
	if err != nil {
		return fmt.Errorf("list the layers in %s: %w", d.base, explain(err))
	}
	origins := make(map[string]bool, len(layers))
	for _, ds := range layers {
		origins[ds.Origin] = true
	}
	var errs []error
	for _, s := range snapshots {
		_, name, _ := strings.Cut(s.Name, "@")
		if !strings.HasPrefix(name, snapshotPrefix) || d.isHeld(s.Name) {
			continue
		}
		if origins[s.Name] {
			continue
		}
		errs = append(errs, d.destroy(ctx, s.Name, zfs.DestroyDeferDeletion))
	}
	return errors.Join(errs...)
}

func (d *Driver) isHeld(snapshot string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[snapshot]
}
