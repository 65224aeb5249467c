package zfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"

	zfs "github.com/mistifyio/go-zfs/v4"

	"plyfs/drivers"
)

// Create implements drivers.Driver.
func (d *Driver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("layer %s: quota of an image layer: %w", id, drivers.ErrInvalid)
	}
	return d.create(ctx, id, dataset{name: d.datasetName(id, false), parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver. The quota bounds the bytes that the layer holds beyond its parent, compressed, with
// metadata; zfs notices some seconds late.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return d.create(ctx, id, dataset{name: d.datasetName(id, true), parent: parent, writable: true}, o)
}

func (d *Driver) create(ctx context.Context, id string, l dataset, o *drivers.CreateOptions) error {
	properties, err := createProperties(id, o)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.lookup(id); err == nil {
		return fmt.Errorf("layer %s: %w", id, drivers.ErrExists)
	}
	d.changing.RLock()
	defer d.changing.RUnlock()
	if l.parent == "" {
		err = d.makeEmpty(ctx, l.name, properties)
	} else {
		err = d.clone(ctx, l, properties)
	}
	if err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.table[id] = l
	return nil
}

func createProperties(id string, o *drivers.CreateOptions) (map[string]string, error) {
	properties := map[string]string{"mountpoint": "legacy", "canmount": "noauto"}
	if o == nil {
		return properties, nil
	}
	for key := range o.Options {
		return nil, fmt.Errorf("layer %s: option %s: layers of the driver zfs have none: %w", id, key, drivers.ErrInvalid)
	}
	if _, err := mountData(o.MountLabel); err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	switch q := o.Quota; {
	case q.Bytes < 0 || q.Inodes < 0:
		return nil, fmt.Errorf("layer %s: quota of %d bytes, %d inodes: %w", id, q.Bytes, q.Inodes, drivers.ErrInvalid)
	case q.Inodes > 0:
		return nil, fmt.Errorf("layer %s: zfs cannot bound inodes of a dataset, only bytes (the driver plyfs can): %w", id,
			drivers.ErrNotSupported)
	case q.Bytes > 0:
		// Not refquota, which would count the image too.
		properties["quota"] = strconv.FormatInt(q.Bytes, 10)
	}
	return properties, nil
}

// makeEmpty makes a dataset with nothing in it.
func (d *Driver) makeEmpty(ctx context.Context, name string, properties map[string]string) error {
	// The command may have failed after it did its work: go-zfs looks at what it made.
	if _, err := zfs.CreateFilesystem(name, properties); err != nil {
		return d.undo(ctx, explain(err), zfs.Dataset{Name: name})
	}
	return nil
}

// clone makes a dataset that shows what the layer's parent shows now.
func (d *Driver) clone(ctx context.Context, l dataset, properties map[string]string) error {
	if err := drivers.ValidID(l.parent); err != nil {
		return err
	}
	parent, err := d.lookupWhole(l.parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if parent.writable {
		return d.cloneOfNow(ctx, parent, l, properties)
	}
	// What never changes needs one snapshot, whoever makes it first.
	from := parent.name + "@" + imageSnapshot
	if parent.snapshot {
		err := d.cloneFrom(ctx, from, l, properties)
		if !errors.Is(err, errNoDataset) {
			return err
		}
		// Destroyed behind the driver's back.
	}
	if err := d.snapshot(parent, l.parent, imageSnapshot); err != nil && !errors.Is(err, drivers.ErrExists) {
		return err
	}
	d.noteSnapshot(l.parent, true)
	return d.cloneFrom(ctx, from, l, properties)
}

// noteSnapshot notes whether an image layer has its snapshot.
func (d *Driver) noteSnapshot(id string, has bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l, ok := d.table[id]; ok {
		l.snapshot = has
		d.table[id] = l
	}
}

// cloneOfNow clones a snapshot of its own, which goes with the clone.
func (d *Driver) cloneOfNow(ctx context.Context, parent, l dataset, properties map[string]string) error {
	snapshot := snapshotName()
	full := zfs.Dataset{Name: parent.name + "@" + snapshot}
	defer d.hold(full.Name)()
	if err := d.snapshot(parent, l.parent, snapshot); err != nil {
		return d.undo(ctx, err, full)
	}
	if err := d.cloneFrom(ctx, full.Name, l, properties); err != nil {
		return d.undo(ctx, err, full)
	}
	if err := full.Destroy(zfs.DestroyDeferDeletion); err != nil {
		return d.undo(ctx, explain(err), zfs.Dataset{Name: l.name}, full)
	}
	return nil
}

// snapshot makes a snapshot of a layer.
func (d *Driver) snapshot(parent dataset, id, snapshot string) error {
	from := zfs.Dataset{Name: parent.name}
	_, err := from.Snapshot(snapshot, false)
	if err = explain(err); errors.Is(err, errNoDataset) {
		// Removed meanwhile, by this process or behind its back.
		return fmt.Errorf("parent %s: %w: %w", id, err, drivers.ErrNotFound)
	}
	return err
}

// cloneFrom clones a snapshot.
func (d *Driver) cloneFrom(ctx context.Context, snapshot string, l dataset, properties map[string]string) error {
	from := zfs.Dataset{Name: snapshot, Type: zfs.DatasetSnapshot}
	if _, err := from.Clone(l.name, properties); err != nil {
		return d.undo(ctx, explain(err), zfs.Dataset{Name: l.name})
	}
	return nil
}

// snapshotName returns a new name; ids are too long for it.
func snapshotName() string { return snapshotPrefix + strings.ToLower(rand.Text())[:12] }

// hold keeps Cleanup from destroying a snapshot.
func (d *Driver) hold(snapshot string) (release func()) {
	d.mu.Lock()
	d.held[snapshot] = true
	d.mu.Unlock()
	return func() {
		d.mu.Lock()
		delete(d.held, snapshot)
		d.mu.Unlock()
	}
}

// undo destroys what was made before err, if it is there. If err says that something of the first name was there already,
// or that there is nothing to make it of, that is not destroyed: this process did not make it.
func (d *Driver) undo(ctx context.Context, err error, made ...zfs.Dataset) error {
	if errors.Is(err, drivers.ErrExists) || errors.Is(err, errNoDataset) {
		made = made[1:]
	}
	ctx = context.WithoutCancel(ctx)
	errs := []error{err}
	for _, ds := range made {
		flags := zfs.DestroyDefault
		if strings.Contains(ds.Name, "@") {
			flags = zfs.DestroyDeferDeletion
		}
		if derr := d.destroy(ctx, ds.Name, flags); derr != nil {
			errs = append(errs, fmt.Errorf("and undo it: %w", derr))
		}
	}
	return errors.Join(errs...)
}
