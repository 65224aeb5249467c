package zfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	zfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Exists implements drivers.Driver.
func (d *Driver) Exists(ctx context.Context, id string) (bool, error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	_, err = d.lookup(id)
	if errors.Is(err, drivers.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// List implements drivers.Driver.
func (d *Driver) List(ctx context.Context, fn func(drivers.Info) error) error {
	d.mu.Lock()
	table := maps.Clone(d.table)
	d.mu.Unlock()
	for id, l := range table {
		if err := ctx.Err(); err != nil {
			return err
		}
		unfilled, err := d.unfilled(id)
		if err != nil {
			return err
		}
		if unfilled {
			continue
		}
		if err := fn(drivers.Info{ID: id, Parent: l.parent, Writable: l.writable}); err != nil {
			return err
		}
	}
	return nil
}

// Status implements drivers.Driver.
func (d *Driver) Status(ctx context.Context) ([]drivers.Pair, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	poolName, _, _ := strings.Cut(d.base, "/")
	pool, err := zfs.GetZpool(poolName)
	if err != nil {
		return nil, fmt.Errorf("state of the pool %s: %w", poolName, explain(err))
	}
	base, err := zfs.GetDataset(d.base)
	if err != nil {
		return nil, fmt.Errorf("state of the dataset %s: %w", d.base, explain(err))
	}
	quota := "none"
	if base.Quota > 0 {
		quota = strconv.FormatUint(base.Quota, 10)
	}
	return []drivers.Pair{
		{Label: "Backing file system", Value: "zfs"},
		{Label: "Home", Value: d.home},
		{Label: "Pool", Value: pool.Name},
		{Label: "Pool health", Value: pool.Health},
		{Label: "Dataset", Value: base.Name},
		{Label: "Space used", Value: strconv.FormatUint(base.Used, 10)},
		{Label: "Space available", Value: strconv.FormatUint(base.Avail, 10)},
		{Label: "Quota of the dataset", Value: quota},
		{Label: "Compression", Value: base.Compression},
		{Label: "Native diff", Value: "false"},
	}, nil
}

// Metadata implements drivers.Driver. The keys are dataset, mountpoint (where it is or would be mounted), used and referenced
// (bytes) and, where there are any, origin and quota (bytes).
func (d *Driver) Metadata(ctx context.Context, id string) (map[string]string, error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ds, err := d.state(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{
		"dataset":    ds.Name,
		"mountpoint": d.mountPath(id),
		"used":       strconv.FormatUint(ds.Usedbydataset, 10),
		"referenced": strconv.FormatUint(ds.Referenced, 10),
	}
	if ds.Origin != "" {
		m["origin"] = ds.Origin
	}
	if ds.Quota > 0 {
		m["quota"] = strconv.FormatUint(ds.Quota, 10)
	}
	return m, nil
}

// state asks zfs for a layer's dataset.
//
// Precondition: id is locked.
func (d *Driver) state(id string) (*zfs.Dataset, error) {
	l, err := d.lookup(id)
	if err != nil {
		return nil, err
	}
	ds, err := zfs.GetDataset(l.name)
	if err = explain(err); errors.Is(err, errNoDataset) {
		return nil, fmt.Errorf("layer %s: %w: %w", id, err, drivers.ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	return ds, nil
}

// Usage implements drivers.Driver. Bytes are those in the pool, compressed and with metadata, as of the last transaction; Inodes is
// how many more the layer has than its parent, to which zfs may add a few of its own. To count them it mounts both.
func (d *Driver) Usage(ctx context.Context, id string) (u drivers.Usage, err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return u, err
	}
	ds, err := d.state(id)
	parent := ""
	if err == nil {
		u.Bytes = int64(ds.Usedbydataset)
		_, l, _ := d.layerOf(ds)
		parent = l.parent
	}
	unlock()
	if err != nil {
		return u, err
	}
	if u.Inodes, err = d.inodes(ctx, id); err != nil || parent == "" {
		return u, err
	}
	below, err := d.inodes(ctx, parent)
	u.Inodes = max(u.Inodes-below, 0)
	return u, err
}

// inodes counts the inodes that a layer shows.
func (d *Driver) inodes(ctx context.Context, id string) (n int64, err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	l, err := d.lookupWhole(id)
	if err != nil {
		return 0, err
	}
	if d.mounts.Count(id) == 0 {
		if err := d.mount(id, l, drivers.GetOptions{ReadOnly: true}); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, d.unmount(id)) }()
	}
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Statfs(d.mountPath(id), &st) }); err != nil {
		return 0, fmt.Errorf("inodes of layer %s: %w", id, err)
	}
	return int64(st.Files - st.Ffree), nil
}

// Sync implements drivers.Driver. What is not mounted is durable already.
func (d *Driver) Sync(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if err := d.syncLayer(ctx, id); err != nil {
			return fmt.Errorf("sync layer %s: %w", id, err)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	// That a layer is whole is told in the home.
	if err := sys.SyncDir(filepath.Join(d.home, unfilledDir)); err != nil {
		return fmt.Errorf("sync %s: %w", d.home, err)
	}
	return nil
}

func (d *Driver) syncLayer(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.lookup(id); err != nil {
		return err
	}
	if d.mounts.Count(id) == 0 {
		return nil
	}
	fd, err := unix.Open(d.mountPath(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Retry(func() error { return unix.Syncfs(fd) })
}
