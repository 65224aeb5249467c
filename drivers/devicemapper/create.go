package devicemapper

import (
	"context"
	"errors"
	"fmt"

	"plyfs/drivers"
)

// Create implements drivers.Driver.
func (d *Driver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("layer %s: quota of an image layer: %w", id, drivers.ErrInvalid)
	}
	return d.create(ctx, &deviceRecord{Layer: id, Parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver. A quota is enforced by the file system in the layer, if the kernel has
// project quotas; else one of bytes is the size of the layer's device, the image included, and can't be smaller than
// the parent's.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return d.create(ctx, &deviceRecord{Layer: id, Parent: parent, Writable: true}, o)
}

// create makes the layer that r describes, but for its size.
func (d *Driver) create(ctx context.Context, r *deviceRecord, o *drivers.CreateOptions) error {
	quota, err := checkCreateOptions(r, o)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Begin(ctx, r.Layer)
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
	if err := d.dimension(r, origin, quota); err != nil {
		return fmt.Errorf("create layer %s: %w", r.Layer, err)
	}
	if err := d.snapshot(ctx, r, origin); err != nil {
		return fmt.Errorf("create layer %s: %w", r.Layer, err)
	}
	if r.State == stateReady {
		return nil
	}
	return d.adjust(ctx, r, origin, quota)
}

func checkCreateOptions(r *deviceRecord, o *drivers.CreateOptions) (quota drivers.Quota, err error) {
	if o == nil {
		return quota, nil
	}
	for key := range o.Options {
		return quota, fmt.Errorf("layer %s: option %s: layers of the driver devicemapper have none: %w", r.Layer, key,
			drivers.ErrInvalid)
	}
	if err := checkLabel(o.MountLabel); err != nil {
		return quota, fmt.Errorf("layer %s: %w", r.Layer, err)
	}
	r.Label = o.MountLabel
	if q := o.Quota; q.Bytes < 0 || q.Inodes < 0 {
		return quota, fmt.Errorf("layer %s: quota of %d bytes, %d inodes: %w", r.Layer, q.Bytes, q.Inodes,
			drivers.ErrInvalid)
	}
	return o.Quota, nil
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

// dimension says how large the device of a layer is to be, and whether its file system is to enforce a limit.
func (d *Driver) dimension(r, origin *deviceRecord, quota drivers.Quota) error {
	r.Projects, r.Size = origin.Projects, origin.Size
	if !r.Writable {
		return nil
	}
	r.Size = max(origin.Size, d.opts.baseSize/sector*sector)
	bytes := uint64(quota.Bytes) / sector * sector
	switch {
	case quota.IsZero():
	case r.Projects:
		r.Limited = true
		if bytes > r.Size/2 {
			// The image, and what file systems need for themselves, have their share of the device too.
			r.Size += bytes
		}
	case quota.Inodes > 0:
		return fmt.Errorf("quota of %d inodes: the kernel or its %s has no project quotas "+
			"(the driver plyfs needs none): %w", quota.Inodes, d.pool.FS, drivers.ErrNotSupported)
	case bytes < origin.Size:
		return fmt.Errorf("quota of %d bytes: the kernel or its %s has no project quotas, and the file system of the "+
			"parent has %d bytes, and can't shrink. Ask for that or more, begin a store with a smaller %s, "+
			"or use the driver plyfs: %w", quota.Bytes, d.pool.FS, origin.Size, optBaseSize, drivers.ErrNotSupported)
	default:
		r.Size = bytes
	}
	return nil
}

// snapshot makes the device of r. Its state is ready if the file system on it has the size and limits that it should
// have.
func (d *Driver) snapshot(ctx context.Context, r, origin *deviceRecord) error {
	r.State = stateReady
	if r.Size > origin.Size || r.Limited || origin.Limited {
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
	if err := syncFS(target); err != nil {
		return fmt.Errorf("sync layer %s: %w", r.Layer, d.explain(err))
	}
	return nil
}

// adjust gives the file system of a new layer the size and the limits that it should have. After an error the layer
// is gone.
//
// Precondition: the layer is locked.
func (d *Driver) adjust(ctx context.Context, r, origin *deviceRecord, quota drivers.Quota) error {
	err := d.withMounted(r, func(root string) error {
		if r.Size > origin.Size {
			if err := d.host.grow(root, d.pool.FS, r.Size); err != nil {
				return err
			}
		}
		if r.Limited || origin.Limited {
			return d.host.limit(root, quota)
		}
		return nil
	})
	if err == nil {
		_, err = d.setState(ctx, r, stateReady)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("create layer %s: %w", r.Layer, err)
	return errors.Join(err, d.bury(context.WithoutCancel(ctx), r))
}
