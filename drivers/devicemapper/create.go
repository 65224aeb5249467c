package devicemapper

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Create implements drivers.Driver.
func (d *Driver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("layer %s: quota of an image layer: %w", id, drivers.ErrInvalid)
	}
	return d.create(ctx, &deviceRecord{Layer: id, Parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver. A quota of bytes is the size of the layer's device, the image included. It can't be
// smaller than the parent's.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return d.create(ctx, &deviceRecord{Layer: id, Parent: parent, Writable: true}, o)
}

// create makes the layer that r describes, but for its size.
func (d *Driver) create(ctx context.Context, r *deviceRecord, o *drivers.CreateOptions) error {
	quota, err := checkCreateOptions(r, o)
	if err != nil {
		return err
	}
	unlock, err := d.begin(ctx, r.Layer)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.lookup(r.Layer); err == nil {
		return fmt.Errorf("layer %s: %w", r.Layer, drivers.ErrExists)
	}
	origin, err := d.origin(r.Parent)
	if err != nil {
		return fmt.Errorf("create layer %s: %w", r.Layer, err)
	}
	if r.Size, err = d.sizeOf(r, origin, quota); err != nil {
		return err
	}
	if err := d.snapshot(ctx, r, origin); err != nil {
		return fmt.Errorf("create layer %s: %w", r.Layer, err)
	}
	if r.State == stateReady {
		return nil
	}
	return d.enlarge(ctx, r)
}

func checkCreateOptions(r *deviceRecord, o *drivers.CreateOptions) (quota uint64, err error) {
	if o == nil {
		return 0, nil
	}
	for key := range o.Options {
		return 0, fmt.Errorf("layer %s: option %s: layers of the driver devicemapper have none: %w", r.Layer, key, drivers.ErrInvalid)
	}
	if err := checkLabel(o.MountLabel); err != nil {
		return 0, fmt.Errorf("layer %s: %w", r.Layer, err)
	}
	r.Label = o.MountLabel
	switch q := o.Quota; {
	case q.Bytes < 0 || q.Inodes < 0:
		return 0, fmt.Errorf("layer %s: quota of %d bytes, %d inodes: %w", r.Layer, q.Bytes, q.Inodes, drivers.ErrInvalid)
	case q.Inodes > 0:
		return 0, fmt.Errorf("layer %s: the driver devicemapper cannot bound inodes, only bytes (the driver plyfs can): %w", r.Layer, drivers.ErrNotSupported)
	default:
		return uint64(q.Bytes), nil
	}
}

// origin returns what a child of parent is a snapshot of.
func (d *Driver) origin(parent string) (*deviceRecord, error) {
	if parent == "" {
		return d.base()
	}
	if err := drivers.ValidID(parent); err != nil {
		return nil, err
	}
	r, err := d.lookupReady(parent)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	return r, nil
}

// sizeOf returns how large a layer is to be, in bytes.
func (d *Driver) sizeOf(r, origin *deviceRecord, quota uint64) (uint64, error) {
	if !r.Writable {
		return origin.Size, nil
	}
	if quota == 0 {
		return max(origin.Size, d.opts.baseSize/sector*sector), nil
	}
	quota = quota / sector * sector
	if quota < origin.Size {
		return 0, fmt.Errorf("layer %s: quota of %d bytes: the file system of its parent has %d, and can't shrink. Ask for that or more, begin a store with "+
			"a smaller %s, or use the driver plyfs: %w", r.Layer, quota, origin.Size, optBaseSize, drivers.ErrNotSupported)
	}
	return quota, nil
}

// snapshot makes the device of r. Its state is ready if the file system on it has the size that it should have.
func (d *Driver) snapshot(ctx context.Context, r, origin *deviceRecord) error {
	r.State = stateReady
	if r.Size > origin.Size {
		r.State = stateMaking
	}
	if err := d.checkFree(); err != nil {
		return err
	}
	// What the parent's users wrote would otherwise be written while nobody else can do anything.
	if err := d.syncMounted(origin); err != nil {
		return err
	}
	d.poolMu.Lock()
	defer d.poolMu.Unlock()
	if _, err := d.origin(r.Parent); err != nil {
		return err
	}
	return d.withQuiet(origin, func() error { return d.createDevice(ctx, r, origin) })
}

// syncMounted writes what was written to a layer that is mounted.
func (d *Driver) syncMounted(r *deviceRecord) error {
	target := d.mounts.Target(r.Layer)
	if target == "" {
		return nil
	}
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		// Put meanwhile.
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Retry(func() error { return unix.Syncfs(fd) })
}

// enlarge makes the file system of a new layer as large as its device. After an error the layer is gone.
//
// Precondition: the layer is locked.
func (d *Driver) enlarge(ctx context.Context, r *deviceRecord) error {
	err := d.withMounted(ctx, r, func(root string) error { return d.host.grow(root, d.pool.FS, r.Size) })
	if err == nil {
		_, err = d.setState(ctx, r, stateReady)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("create layer %s: %w", r.Layer, err)
	return errors.Join(err, d.bury(context.WithoutCancel(ctx), r))
}
