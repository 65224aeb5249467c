package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Fill implements drivers.Filler. A layer that was not filled to the end is marked as such; it shows nothing, and Cleanup
// removes it.
func (d *Driver) Fill(ctx context.Context, id string, fn func(root string) error) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := d.wholeRecord(id)
	if err != nil {
		return err
	}
	if r.Writable {
		return fmt.Errorf("layer %s is no image layer: %w", id, drivers.ErrInvalid)
	}
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s is mounted: %w", id, drivers.ErrInUse)
	}
	mark := filepath.Join(d.layerPath(id), unfilledName)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	if err := d.onRoot(id, func(fd int) error {
		readOnly, err := sys.BtrfsReadOnly(fd)
		if err != nil || !readOnly {
			return err
		}
		return sys.BtrfsSetWritable(fd)
	}); err != nil {
		return fmt.Errorf("layer %s: make it writable: %w", id, err)
	}
	if err := fn(d.rootPath(id)); err != nil {
		return err
	}
	if err := d.seal(id); err != nil {
		return err
	}
	if err := os.Remove(mark); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// seal makes an image layer read-only for good.
func (d *Driver) seal(id string) error {
	err := d.onRoot(id, func(fd int) error {
		readOnly, err := sys.BtrfsReadOnly(fd)
		if err != nil || readOnly {
			return err
		}
		return sys.BtrfsSetReadOnly(fd)
	})
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("layer %s: %w: %w", id, err, drivers.ErrDamaged)
	}
	if err != nil {
		return fmt.Errorf("layer %s: make it read-only: %w", id, err)
	}
	return nil
}

// onRoot calls fn with a descriptor of a layer's subvolume.
func (d *Driver) onRoot(id string, fn func(fd int) error) error {
	fd, err := openDir(unix.AT_FDCWD, d.rootPath(id))
	if err != nil {
		return fmt.Errorf("open %s: %w", d.rootPath(id), err)
	}
	defer unix.Close(fd)
	return fn(fd)
}
