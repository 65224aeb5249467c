// Package vfs is the graph driver that needs nothing of the kernel: each layer is a directory with a full copy of its
// parent's content. Where the file system shares data between files (xfs, btrfs, bcachefs), copies take no space until
// they are written to; elsewhere they take all of it, and as long as copying takes.
//
// # On disk
//
//	HOME/<id>/fs/          the tree of the layer, which Get returns
//	HOME/<id>/layer.json   its parent, and what it was made with
//	HOME/<id>/filling      there while ApplyDiff runs
//	HOME/<id>/ro/          where a writable layer is bound read-only
//
// A layer is made beside the others and renamed into place; see drivers/internal/layerdir. It depends on no other:
// parents may be removed. A size quota is a project quota of the file system (drivers/internal/projquota), and counts
// the copy, too.
package vfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/copytree"
	"plyfs/drivers/internal/layerdir"
	"plyfs/drivers/internal/projquota"
)

// Name is the driver's name in the registry.
const Name = "vfs"

const (
	treeName    = "fs"
	recordName  = "layer.json"
	fillingName = "filling"
	boundName   = "ro"
)

// driver implements drivers.Driver and drivers.Filler.
type driver struct {
	home   *layerdir.Home
	mounts *drivers.Mounts
	locks  drivers.Locks
	log    *slog.Logger

	quota   *projquota.Control // nil where there are none
	noQuota error              // says why

	shares string // whether copies share data, as reflinks answers
}

// record is the content of a layer's file.
type record struct {
	Parent   string        `json:"parent,omitempty"`
	Writable bool          `json:"writable"`
	Quota    drivers.Quota `json:"quota,omitzero"`
}

func open(_ context.Context, o drivers.Options) (drivers.Driver, error) {
	for name := range o.Options {
		return nil, fmt.Errorf("driver vfs: unknown option %q, there are none: %w", name, drivers.ErrInvalid)
	}
	home, err := layerdir.Open(o.Home)
	if err != nil {
		return nil, fmt.Errorf("driver vfs: %w", err)
	}
	mounts, err := drivers.OpenMounts(filepath.Join(o.Run, "mounts"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("driver vfs: %w", err), home.Close())
	}
	d := &driver{home: home, mounts: mounts, log: o.Log, shares: reflinks(o.Home)}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.quota, d.noQuota = projquota.Open(o.Home)
	return d, nil
}

// Name implements drivers.Driver.
func (d *driver) Name() string { return Name }

// CopiesParent implements drivers.ParentCopier.
func (d *driver) CopiesParent() bool { return d.shares != shared }

// References implements drivers.Referrer.
func (d *driver) References() map[string]int { return d.mounts.References() }

// Close implements drivers.Driver.
func (d *driver) Close() error {
	if d.quota != nil {
		return errors.Join(d.quota.Close(), d.home.Close())
	}
	return d.home.Close()
}

func (d *driver) tree(id string) string { return filepath.Join(d.home.Layer(id), treeName) }

func (d *driver) readRecord(id string) (rec record, err error) {
	if err := d.home.Need(id); err != nil {
		return rec, err
	}
	path := filepath.Join(d.home.Layer(id), recordName)
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && d.home.Need(id) != nil:
		return rec, d.home.Need(id)
	case err != nil:
		return rec, fmt.Errorf("layer %s: %s: %w: %w", id, path, err, drivers.ErrDamaged)
	}
	return rec, nil
}

// Exists implements drivers.Driver.
func (d *driver) Exists(_ context.Context, id string) (bool, error) { return d.home.Has(id) }

// List implements drivers.Driver. A layer of which ApplyDiff did not end is none.
func (d *driver) List(ctx context.Context, fn func(drivers.Info) error) error {
	ids, err := d.home.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.filling(id) {
			continue
		}
		rec, err := d.readRecord(id)
		info := drivers.Info{ID: id, Parent: rec.Parent, Writable: rec.Writable}
		switch {
		case errors.Is(err, drivers.ErrNotFound):
			continue // removed meanwhile
		case errors.Is(err, drivers.ErrDamaged):
			d.log.Error("a layer is damaged", "layer", id, "error", err)
			info.Damaged = err.Error()
		case err != nil:
			return err
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) filling(id string) bool {
	_, err := os.Lstat(filepath.Join(d.home.Layer(id), fillingName))
	return err == nil
}

// Status implements drivers.Driver.
func (d *driver) Status(context.Context) ([]drivers.Pair, error) {
	quota := "project quotas"
	if d.quota == nil {
		quota = "no: " + d.noQuota.Error()
	}
	return []drivers.Pair{
		{Label: "Backing file system", Value: layerdir.FSName(d.home.Path())},
		{Label: "Copies share data", Value: d.shares},
		{Label: "Quota", Value: quota},
	}, nil
}

// Metadata implements drivers.Driver.
func (d *driver) Metadata(_ context.Context, id string) (map[string]string, error) {
	rec, err := d.readRecord(id)
	if err != nil {
		return nil, err
	}
	return map[string]string{"Dir": d.tree(id), "Parent": rec.Parent}, nil
}

// Usage implements drivers.Driver. Where copies share data, it counts what they share.
func (d *driver) Usage(ctx context.Context, id string) (drivers.Usage, error) {
	rec, err := d.readRecord(id)
	if err != nil {
		return drivers.Usage{}, err
	}
	if !rec.Quota.IsZero() && d.quota != nil {
		return d.quota.Usage(d.tree(id))
	}
	return layerdir.Usage(ctx, d.tree(id))
}

// Sync implements drivers.Driver.
func (d *driver) Sync(_ context.Context, ids ...string) error {
	for _, id := range ids {
		if err := d.home.Need(id); err != nil {
			return err
		}
	}
	return d.home.Sync()
}

// Cleanup implements drivers.Driver.
func (d *driver) Cleanup(ctx context.Context) error {
	errs := []error{d.mounts.Refresh()}
	ids, err := d.home.IDs()
	errs = append(errs, err)
	for _, id := range ids {
		if d.filling(id) {
			errs = append(errs, d.removeFilling(ctx, id))
		}
	}
	return errors.Join(append(errs, d.home.Sweep(ctx, d.releaseQuota))...)
}

// removeFilling removes a layer that was being filled when its process died.
func (d *driver) removeFilling(ctx context.Context, id string) error {
	// Whoever fills a layer in this process holds its lock.
	defer d.locks.Lock(id)()
	if !d.filling(id) || d.mounts.Count(id) > 0 {
		return nil
	}
	d.log.Info("removing a layer that was not completed", "layer", id)
	if err := d.home.Remove(ctx, id, d.releaseQuota); err != nil {
		return fmt.Errorf("remove layer %s, which was not completed: %w", id, err)
	}
	return nil
}

// releaseQuota forgets the quota of a layer's directory that is about to be deleted.
func (d *driver) releaseQuota(dir string) error {
	if d.quota == nil {
		return nil
	}
	err := d.quota.Release(filepath.Join(dir, treeName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Create implements drivers.Driver.
func (d *driver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("layer %s: a quota for an image layer: %w", id, drivers.ErrInvalid)
	}
	return d.create(ctx, id, record{Parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver.
func (d *driver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	rec := record{Parent: parent, Writable: true}
	if o != nil {
		rec.Quota = o.Quota
	}
	if !rec.Quota.IsZero() && d.quota == nil {
		return fmt.Errorf("layer %s: quota: %w", id, d.noQuota)
	}
	return d.create(ctx, id, rec, o)
}

func (d *driver) create(ctx context.Context, id string, rec record, o *drivers.CreateOptions) error {
	if err := drivers.ValidID(id); err != nil {
		return err
	}
	if o != nil {
		for name := range o.Options {
			return fmt.Errorf("layer %s: unknown option %q, driver vfs has none: %w", id, name, drivers.ErrInvalid)
		}
		if err := refuseLabel(id, o.MountLabel); err != nil {
			return err
		}
	}
	if rec.Parent != "" {
		if err := d.home.Need(rec.Parent); err != nil {
			return fmt.Errorf("parent of layer %s: %w", id, err)
		}
	}
	defer d.locks.Lock(id)()
	err := d.home.Create(ctx, id, func(dir string) error { return d.fillNew(ctx, dir, rec) })
	if err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	return nil
}

// refuseLabel refuses a mount label: there is no mount to give it to.
func refuseLabel(id, label string) error {
	if label == "" {
		return nil
	}
	return fmt.Errorf("layer %s: a mount label: driver vfs mounts nothing; use overlay2 or plyfs, or label the store: %w",
		id, drivers.ErrNotSupported)
}

// fillNew makes a layer in dir.
func (d *driver) fillNew(ctx context.Context, dir string, rec record) (err error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, treeName)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, recordName), b, 0o600), os.Mkdir(tree, 0o755), os.Chmod(tree,
		0o755)); err != nil {
		return err
	}
	if !rec.Quota.IsZero() {
		// Before anything is in it: what is there already would not count.
		if err := d.quota.Set(rec.Quota, tree); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, d.quota.Release(tree))
			}
		}()
	}
	if rec.Parent == "" {
		return nil
	}
	from, foreign, err := drivers.OpenBare(d.tree(rec.Parent))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := unix.Open(tree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return copytree.Copy(ctx, to, from.FD(), copytree.Options{Skip: foreign})
}

// Fill implements drivers.Filler.
func (d *driver) Fill(ctx context.Context, id string, fn func(root string) error) error {
	defer d.locks.Lock(id)()
	rec, err := d.readRecord(id)
	if err != nil {
		return err
	}
	if rec.Writable {
		return fmt.Errorf("layer %s is writable, and has its content: %w", id, drivers.ErrInvalid)
	}
	mark := filepath.Join(d.home.Layer(id), fillingName)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	if err := fn(d.tree(id)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.Remove(mark)
}

// Remove implements drivers.Driver.
func (d *driver) Remove(ctx context.Context, id string) error {
	defer d.locks.Lock(id)()
	ok, err := d.home.Has(id)
	if err != nil || !ok {
		return err
	}
	if n := d.mounts.Count(id); n > 0 {
		return fmt.Errorf("remove layer %s: it is in use by %d: %w", id, n, drivers.ErrInUse)
	}
	if err := d.home.Remove(ctx, id, d.releaseQuota); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return nil
}
