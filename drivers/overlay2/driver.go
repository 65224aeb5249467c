package overlay2

import (
	"context"
	"errors"
	"path/filepath"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
	"plyfs/drivers/internal/overlaystore"
)

// Name is the driver's name in the registry.
const Name = "overlay2"

// Driver is a store of layers that the kernel mounts. It implements drivers.Driver, drivers.Differ and drivers.Planner.
type Driver struct {
	*overlaystore.Store
	opts   options
	userNS bool
	quotas *projectQuotas
}

// Factory returns what makes drivers of this kind.
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    Name,
		Summary: "the kernel's overlayfs, in moby's layout; fast, wants root or a user namespace",
		Probe:   probe,
		Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
			return Open(ctx, o)
		},
	}
}

// Open opens or begins a store in o.Home. With the option read_only it changes nothing there, and reads moby's stores,
// too. It does not try whether the kernel mounts; the factory's Probe does.
func Open(ctx context.Context, o drivers.Options) (*Driver, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(o.Options)
	if err != nil {
		return nil, err
	}
	d := &Driver{opts: opts, userNS: drivers.UserNamespace().Nested, quotas: newProjectQuotas(o.Home)}
	form := overlaystore.Form{Whiteouts: tarlayer.WhiteoutKernel, Names: ovl.Trusted()}
	if d.userNS {
		form.Names, form.Devices = ovl.User(), tarlayer.DeviceSkip
	}
	form.Reads = ovl.KernelForms(form.Names)
	if opts.ignoreChownErrors {
		form.Owner = tarlayer.OwnerIgnore
	}
	d.Store, err = overlaystore.Open(overlaystore.Config{
		Name: Name, Home: o.Home, Run: o.Run, Log: o.Log, ReadOnly: opts.readOnly, Volatile: opts.volatile,
		Mounter: mounter{opts: opts, userNS: d.userNS, quotas: d.quotas}, Quotas: d.quotas, Form: form,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Unmask implements drivers.Unmasker.
func (d *Driver) Unmask(ctx context.Context, id string) (tree tarlayer.Source, done func() error, err error) {
	v, done, err := d.OpenView(ctx, id)
	if err != nil {
		return nil, nil, err // not v: a nil pointer in an interface is not nil
	}
	return v, done, nil
}

// Close implements drivers.Driver.
func (d *Driver) Close() error { return errors.Join(d.Store.Close(), d.quotas.close()) }

// Status implements drivers.Driver.
func (d *Driver) Status(ctx context.Context) ([]drivers.Pair, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	quota := "project"
	if err := d.quotas.Check(drivers.Quota{Bytes: 1}); err != nil {
		quota = "none: " + err.Error()
	}
	attributes := "trusted"
	if d.userNS {
		attributes = "user"
	}
	return []drivers.Pair{
		{Label: "Backing Filesystem", Value: layerdir.FSName(d.Home())},
		{Label: "Root Dir", Value: filepath.Clean(d.Home())},
		{Label: "Overlay Attributes", Value: attributes},
		{Label: "Native Overlay Diff", Value: "true"},
		{Label: "Quota", Value: quota},
	}, nil
}
