package plyfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
	"plyfs/drivers/internal/overlaystore"
	"plyfs/fs/mountopt"
)

// Name is the driver's name in the registry, and the name of its mount program.
const Name = "plyfs"

// Driver is a store of layers that plyfs mounts. It implements drivers.Driver, drivers.Differ and drivers.Planner.
type Driver struct {
	*overlaystore.Store
	opts    options
	program string
	form    overlaystore.Form
	pool    *pool
}

// Factory returns what makes drivers of this kind.
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    Name,
		Summary: "plyfs's own mounts, in overlay2's layout; works for every user, on every file system, with quotas",
		Probe:   probe,
		Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
			return Open(ctx, o)
		},
	}
}

// Open opens or begins a store in o.Home. The error wraps drivers.ErrPrerequisites if there is no mount program.
func Open(ctx context.Context, o drivers.Options) (*Driver, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(o.Options)
	if err != nil {
		return nil, err
	}
	program, err := resolveProgram(opts.program)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", Name, err)
	}
	form, err := formOf(o.Home, opts)
	if err != nil {
		return nil, fmt.Errorf("driver %s: find out what %s can hold: %w", Name, o.Home, err)
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m, err := newMounter(opts, program, o.Home, o.Run, log)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", Name, err)
	}
	d := &Driver{opts: opts, program: program, form: form, pool: m.pool}
	d.Store, err = overlaystore.Open(overlaystore.Config{
		Name: Name, Home: o.Home, Run: o.Run, Log: log, Volatile: opts.mount.Volatile,
		Mounter: m, Quotas: servedQuotas{program}, Form: form,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Close implements drivers.Driver.
func (d *Driver) Close() error {
	return errors.Join(d.pool.close(), d.Store.Close())
}

// formOf finds out how layers can be unpacked, by asking the mount's own code to use a work directory there.
func formOf(home string, opts options) (f overlaystore.Form, err error) {
	dir, remove, err := layerdir.Scratch(home)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	base, err := layer.Open(dir)
	if err != nil {
		return f, err
	}
	w, err := cow.OpenWork(base, cow.WorkOptions{UserXattr: opts.mount.UserXattr})
	if err != nil {
		return f, errors.Join(err, base.Close())
	}
	f.Names, f.Whiteouts = w.Names, tarlayer.WhiteoutAny
	can, err := w.Whiteouts()
	if err != nil {
		w.Close()
		return f, errors.Join(err, base.Close())
	}
	if !can.Mknod || w.Names == nil || opts.mount.Whiteout == mountopt.WhiteoutAUFS {
		f.Whiteouts = tarlayer.WhiteoutAUFS
	}
	w.Close()
	if err := base.Close(); err != nil {
		return f, err
	}
	if os.Geteuid() != 0 || drivers.UserNamespace().Nested {
		f.Devices = tarlayer.DeviceSkip
	}
	if opts.ignoreChownErrors {
		f.Owner = tarlayer.OwnerIgnore
	}
	return f, nil
}

// Status implements drivers.Driver.
func (d *Driver) Status(ctx context.Context) ([]drivers.Pair, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	quota := "served"
	if !isOwn(d.program) {
		quota = "none"
	}
	whiteouts := "0:0 devices"
	if d.form.Whiteouts == tarlayer.WhiteoutAUFS {
		whiteouts = "AUFS files"
	}
	return []drivers.Pair{
		{Label: "Backing Filesystem", Value: layerdir.FSName(d.Home())},
		{Label: "Root Dir", Value: filepath.Clean(d.Home())},
		{Label: "Mount Program", Value: d.program},
		{Label: "Mount Options", Value: d.opts.mount.String()},
		{Label: "Whiteouts", Value: whiteouts},
		{Label: "Native Overlay Diff", Value: "true"},
		{Label: "Quota", Value: quota},
	}, nil
}

// servedQuotas are enforced by the servers, where these are plyfs.
type servedQuotas struct{ program string }

func (q servedQuotas) Check(drivers.Quota) error {
	if isOwn(q.program) {
		return nil
	}
	return fmt.Errorf("the mount program %s is not known to enforce quotas; use plyfs: %w", q.program, drivers.ErrNotSupported)
}

func (servedQuotas) Set(drivers.Quota, ...string) error { return nil }
func (servedQuotas) Release(...string) error            { return nil }
