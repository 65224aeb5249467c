package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	zfs "github.com/mistifyio/go-zfs/v4"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Fill implements drivers.Filler. A layer that was not filled to the end is marked as such; it shows nothing, and Cleanup
// removes it.
func (d *Driver) Fill(ctx context.Context, id string, fn func(root string) error) (err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := d.lookupWhole(id)
	if err != nil {
		return err
	}
	if l.writable {
		return fmt.Errorf("layer %s is no image layer: %w", id, drivers.ErrInvalid)
	}
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s is mounted: %w", id, drivers.ErrInUse)
	}
	if child, ok := d.hasChild(id); ok {
		return fmt.Errorf("layer %s is the parent of %s: %w", id, child, drivers.ErrInUse)
	}
	if l.snapshot {
		// Made for a child that was removed, of what the layer was before.
		if err := d.destroy(ctx, l.name+"@"+imageSnapshot, zfs.DestroyDefault); err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
		d.noteSnapshot(id, false)
	}
	if err := d.mark(id); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	if err := d.mount(id, l, drivers.GetOptions{}); err != nil {
		// Nothing was written yet.
		return errors.Join(err, os.Remove(d.markPath(id)))
	}
	if err := fn(d.mountPath(id)); err != nil {
		return errors.Join(err, d.unmount(id))
	}
	if err := d.unmount(id); err != nil {
		return err
	}
	if err := os.Remove(d.markPath(id)); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// mark notes that a layer is being unpacked. The note is on disk before anything of the layer is: they may lie on different file
// systems.
func (d *Driver) mark(id string) error {
	f, err := os.OpenFile(d.markPath(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close(), sys.SyncDir(filepath.Join(d.home, unfilledDir))); err != nil {
		return errors.Join(err, os.Remove(d.markPath(id)))
	}
	return nil
}
