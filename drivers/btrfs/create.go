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

// Create implements drivers.Driver.
func (d *Driver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("layer %s: quota of an image layer: %w", id, drivers.ErrInvalid)
	}
	return d.create(ctx, id, record{Parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver. The quota bounds the bytes that the layer alone holds, metadata included.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	r := record{Parent: parent, Writable: true}
	if o != nil {
		r.Quota = o.Quota
	}
	return d.create(ctx, id, r, o)
}

func (d *Driver) create(ctx context.Context, id string, r record, o *drivers.CreateOptions) (err error) {
	if err := checkCreate(id, o); err != nil {
		return err
	}
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := d.has(id); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	} else if ok {
		return fmt.Errorf("layer %s: %w", id, drivers.ErrExists)
	}
	// What was not deleted to the end.
	if err := d.destroy(d.layerPath(id)); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	stage, release := d.hold()
	defer release()
	if err := os.Mkdir(stage, 0o700); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.destroy(stage))
		}
	}()
	if err := d.makeRoot(stage, r); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	if err := r.write(stage); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	if err := os.Rename(stage, d.layerPath(id)); err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	return nil
}

func checkCreate(id string, o *drivers.CreateOptions) error {
	if o == nil {
		return nil
	}
	for key := range o.Options {
		return fmt.Errorf("layer %s: option %s: layers of the driver btrfs have none: %w", id, key, drivers.ErrInvalid)
	}
	if err := checkLabel(id, o.MountLabel); err != nil {
		return err
	}
	switch q := o.Quota; {
	case q.Bytes < 0 || q.Inodes < 0:
		return fmt.Errorf("layer %s: quota of %d bytes, %d inodes: %w", id, q.Bytes, q.Inodes, drivers.ErrInvalid)
	case q.Inodes > 0:
		return fmt.Errorf("layer %s: btrfs cannot bound inodes, only bytes (the driver plyfs can): %w", id, drivers.ErrNotSupported)
	}
	return nil
}

// checkLabel refuses labels: all mounts of one btrfs share its super block, and with it the context.
func checkLabel(id, label string) error {
	if label == "" {
		return nil
	}
	return fmt.Errorf("layer %s: mount label %q: btrfs labels only the whole file system, by the mount option context=: %w",
		id, label, drivers.ErrNotSupported)
}

// makeRoot makes the subvolume of a layer in the directory stage.
func (d *Driver) makeRoot(stage string, r record) error {
	dir, err := openDir(unix.AT_FDCWD, stage)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if r.Parent == "" {
		// The umask had its say on the mode.
		err = errors.Join(sys.BtrfsCreate(dir, rootName), unix.Fchmodat(dir, rootName, 0o755, 0))
	} else {
		err = d.snapshot(r.Parent, dir)
	}
	if err != nil || r.Quota.Bytes == 0 {
		return err
	}
	return d.limit(filepath.Join(stage, rootName), uint64(r.Quota.Bytes))
}

// snapshot makes a snapshot of parent in the open directory dir.
func (d *Driver) snapshot(parent string, dir int) error {
	if err := drivers.ValidID(parent); err != nil {
		return err
	}
	if _, err := d.wholeRecord(parent); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	src, err := openDir(unix.AT_FDCWD, d.rootPath(parent))
	if err != nil {
		return fmt.Errorf("parent %s: %w", parent, d.missing(parent, err))
	}
	defer unix.Close(src)
	if err := sys.BtrfsSnapshot(src, dir, rootName); err != nil {
		return fmt.Errorf("snapshot of %s: %w", parent, d.missing(parent, err))
	}
	return nil
}

// missing explains why something of a layer failed: another goroutine may have removed the layer meanwhile.
func (d *Driver) missing(id string, err error) error {
	if _, rerr := d.readRecord(id); errors.Is(rerr, drivers.ErrNotFound) {
		return rerr
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", err, drivers.ErrDamaged)
	}
	return err
}
