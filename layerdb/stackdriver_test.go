package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// stackDriver is a driver for tests: directories that the kernel's overlayfs stacks, and that are unpacked without a look at
// those below.
type stackDriver struct {
	name, home string
	locks      drivers.Locks
	mounts     *drivers.Mounts
}

var (
	_ drivers.Differ          = (*stackDriver)(nil)
	_ drivers.ParallelApplier = (*stackDriver)(nil)
)

func stackFactory(name string, wrap func(*stackDriver) drivers.Driver) drivers.Factory {
	return drivers.Factory{
		Name:  name,
		Probe: func(context.Context, drivers.Options) drivers.Report { return drivers.Report{Usable: true} },
		Open: func(_ context.Context, o drivers.Options) (drivers.Driver, error) {
			if err := os.MkdirAll(o.Home, 0o700); err != nil {
				return nil, err
			}
			m, err := drivers.OpenMounts(filepath.Join(o.Run, "mounts"))
			if err != nil {
				return nil, err
			}
			return wrap(&stackDriver{name: name, home: o.Home, mounts: m}), nil
		},
	}
}

func asItIs(d *stackDriver) drivers.Driver { return d }

func (d *stackDriver) path(elem ...string) string {
	return filepath.Join(append([]string{d.home}, elem...)...)
}

func (d *stackDriver) parent(id string) (string, error) {
	b, err := os.ReadFile(d.path(id, "parent"))
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	return string(b), err
}

func (d *stackDriver) Name() string                { return d.name }
func (*stackDriver) ParallelApply() bool           { return true }
func (*stackDriver) Close() error                  { return nil }
func (*stackDriver) Cleanup(context.Context) error { return nil }

func (d *stackDriver) Create(_ context.Context, id, parent string, _ *drivers.CreateOptions) error {
	if parent != "" && !exists(d.path(parent)) {
		return fmt.Errorf("parent %s: %w", parent, drivers.ErrNotFound)
	}
	for _, dir := range []string{"", "diff", "work", "merged"} {
		if err := os.Mkdir(d.path(id, dir), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(d.path(id, "parent"), []byte(parent), 0o600)
}

func (d *stackDriver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return errors.Join(d.Create(ctx, id, parent, o), os.WriteFile(d.path(id, "writable"), nil, 0o600))
}

func (d *stackDriver) Remove(_ context.Context, id string) error {
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s: %w", id, drivers.ErrInUse)
	}
	others, err := os.ReadDir(d.home)
	if err != nil {
		return err
	}
	for _, e := range others {
		if parent, err := d.parent(e.Name()); err == nil && parent == id {
			return fmt.Errorf("layer %s is below %s: %w", id, e.Name(), drivers.ErrInUse)
		}
	}
	return os.RemoveAll(d.path(id))
}

func (d *stackDriver) Get(_ context.Context, id string, o *drivers.GetOptions) (string, error) {
	defer d.locks.Lock(id)()
	if o == nil {
		o = &drivers.GetOptions{}
	}
	target := d.path(id, "merged")
	return target, d.mounts.Get(id, target, *o, func() error {
		spec := testenv.Overlay{ReadOnly: true}
		at := id
		if exists(d.path(id, "writable")) {
			spec = testenv.Overlay{Upper: d.path(id, "diff"), Work: d.path(id, "work")}
			var err error
			if at, err = d.parent(id); err != nil {
				return err
			}
		}
		for at != "" {
			spec.Lowers = append(spec.Lowers, d.path(at, "diff"))
			var err error
			if at, err = d.parent(at); err != nil {
				return err
			}
		}
		// The kernel wants two directories at least.
		spec.Lowers = append(spec.Lowers, d.path(id, "work"))
		if !spec.ReadOnly {
			spec.Lowers[len(spec.Lowers)-1] = d.path(id, "merged")
		}
		return testenv.MountOverlay(spec, target)
	})
}

func (d *stackDriver) Put(_ context.Context, id string) error {
	defer d.locks.Lock(id)()
	return d.mounts.Put(id, func(target string) error { return unix.Unmount(target, 0) })
}

func (d *stackDriver) Exists(_ context.Context, id string) (bool, error) {
	return exists(d.path(id)), nil
}

func (d *stackDriver) List(_ context.Context, fn func(drivers.Info) error) error {
	entries, err := os.ReadDir(d.home)
	for _, e := range entries {
		parent, perr := d.parent(e.Name())
		if err = errors.Join(err, perr); err == nil {
			err = fn(drivers.Info{ID: e.Name(), Parent: parent, Writable: exists(d.path(e.Name(), "writable"))})
		}
	}
	return err
}

func (*stackDriver) Status(context.Context) ([]drivers.Pair, error) { return nil, nil }

func (*stackDriver) Metadata(context.Context, string) (map[string]string, error) { return nil, nil }

func (*stackDriver) Usage(context.Context, string) (drivers.Usage, error) {
	return drivers.Usage{Bytes: 1}, nil
}

func (*stackDriver) Sync(context.Context, ...string) error { return nil }

func (d *stackDriver) Diff(ctx context.Context, id, parent string, o *drivers.DiffOptions) (io.ReadCloser, error) {
	return drivers.NaiveDiffer(d).Diff(ctx, id, parent, o)
}

func (d *stackDriver) Changes(ctx context.Context, id, parent string) ([]tarlayer.Change, error) {
	return drivers.NaiveDiffer(d).Changes(ctx, id, parent)
}

func (d *stackDriver) DiffSize(ctx context.Context, id, parent string) (int64, error) {
	return drivers.NaiveDiffer(d).DiffSize(ctx, id, parent)
}

func (d *stackDriver) ApplyDiff(ctx context.Context, id string, r io.Reader, o *drivers.ApplyOptions) (tarlayer.ApplyResult, error) {
	root, err := layer.Open(d.path(id, "diff"))
	if err != nil {
		return tarlayer.ApplyResult{}, err
	}
	defer root.Close()
	opt, r := o.Tar(r)
	opt.Whiteouts = tarlayer.WhiteoutKernel
	return tarlayer.Apply(ctx, root, r, opt)
}
