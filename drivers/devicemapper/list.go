package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"strconv"

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
	return err == nil, ignore(err, drivers.ErrNotFound)
}

// List implements drivers.Driver.
func (d *Driver) List(ctx context.Context, fn func(drivers.Info) error) error {
	for _, r := range d.inState(stateReady) {
		if r.Layer == baseLayer {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(drivers.Info{ID: r.Layer, Parent: r.Parent, Writable: r.Writable}); err != nil {
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
	t, err := d.dm.status(d.poolName)
	if err != nil {
		return nil, err
	}
	s, err := parsePoolStatus(t.Params)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	devices := len(d.devices)
	d.mu.Unlock()
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	pairs := []drivers.Pair{
		{Label: "Pool", Value: d.poolName},
		{Label: "Home", Value: d.home},
		{Label: "Backing file system", Value: d.pool.FS},
		{Label: "Base device size", Value: number(d.opts.baseSize)},
		{Label: "Pool size", Value: number(t.Length * sector)},
		{Label: "Data blocks used", Value: number(s.usedData)},
		{Label: "Data blocks", Value: number(s.totalData)},
		{Label: "Metadata blocks used", Value: number(s.usedMeta)},
		{Label: "Metadata blocks", Value: number(s.totalMeta)},
		{Label: "Mode", Value: s.mode},
		{Label: "Kept free", Value: number(d.opts.minFree) + "%"},
		{Label: "Transaction", Value: number(s.transaction)},
		{Label: "Thin devices", Value: strconv.Itoa(devices)},
		{Label: "Devices to be deleted", Value: strconv.Itoa(len(d.inState(stateLeaving)))},
		{Label: "Deferred removal", Value: strconv.FormatBool(d.opts.deferred)},
		{Label: "Sparse files", Value: strconv.FormatBool(d.pool.Loop)},
		{Label: "Native diff", Value: "false"},
	}
	if d.pool.Data != "" {
		pairs = append(pairs, drivers.Pair{Label: "Data device", Value: d.pool.Data},
			drivers.Pair{Label: "Metadata device", Value: d.pool.Metadata})
	}
	return pairs, nil
}

// Metadata implements drivers.Driver. The keys are device (in the device mapper, while the layer is mounted),
// device_id (in the pool), pool, size (bytes), file_system and mountpoint (where it is or would be mounted).
func (d *Driver) Metadata(ctx context.Context, id string) (map[string]string, error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := d.lookup(id)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"device":      d.deviceName(r.id),
		"device_id":   strconv.FormatUint(uint64(r.id), 10),
		"pool":        d.poolName,
		"size":        strconv.FormatUint(r.Size, 10),
		"file_system": d.pool.FS,
		"mountpoint":  d.mountPath(id),
	}, nil
}

// Usage implements drivers.Driver. It is how much more the layer has than its parent, or than an empty layer if that
// is gone, as the file system counts it, or the pool where the kernel has no project quotas. What was overwritten in
// place is the layer's own too, but does not count: neither tells. To find out, it mounts both.
func (d *Driver) Usage(ctx context.Context, id string) (u drivers.Usage, err error) {
	u, parent, err := d.total(ctx, id)
	if err != nil {
		return u, err
	}
	if parent != "" {
		below, _, perr := d.total(ctx, parent)
		if !errors.Is(perr, drivers.ErrNotFound) {
			return minus(u, below), perr
		}
	}
	base, err := d.base()
	if err != nil || base.Projects {
		// Nothing in it counts.
		return u, err
	}
	below, err := d.mappedBase(ctx, base)
	return minus(u, drivers.Usage{Bytes: below}), err
}

func minus(a, b drivers.Usage) drivers.Usage {
	return drivers.Usage{Bytes: max(a.Bytes-b.Bytes, 0), Inodes: max(a.Inodes-b.Inodes, 0)}
}

// total is what a layer uses, all that it shares included.
func (d *Driver) total(ctx context.Context, id string) (u drivers.Usage, parent string, err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return u, "", err
	}
	defer unlock()
	r, err := d.lookupReady(id)
	if err != nil {
		return u, "", err
	}
	if d.mounts.Count(id) == 0 {
		// Mounted read-only, not every file system counts projects.
		if err := d.mount(r, drivers.GetOptions{ReadOnly: !r.Projects}); err != nil {
			return u, "", err
		}
		defer func() { err = errors.Join(err, d.unmount(r)) }()
	}
	if r.Projects {
		u, err = d.host.used(d.mountPath(id))
		return u, r.Parent, err
	}
	if u.Bytes, err = d.mappedNow(r); err != nil {
		return u, "", err
	}
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Statfs(d.mountPath(id), &st) }); err != nil {
		return u, "", fmt.Errorf("inodes of layer %s: %w", id, err)
	}
	u.Inodes = int64(st.Files - st.Ffree)
	return u, r.Parent, nil
}

// mappedNow is how much of the pool an active device has, in bytes.
func (d *Driver) mappedNow(r *deviceRecord) (int64, error) {
	t, err := d.dm.status(d.deviceName(r.id))
	if err != nil {
		return 0, err
	}
	n, err := parseMapped(t.Params)
	return int64(n) * sector, err
}

// mappedBase is mappedNow for the base, which is never mounted.
func (d *Driver) mappedBase(ctx context.Context, base *deviceRecord) (n int64, err error) {
	defer d.locks.Lock(baseLayer)()
	if _, err := d.activate(base); err != nil {
		return 0, err
	}
	n, err = d.mappedNow(base)
	return n, errors.Join(err, d.deactivate(context.WithoutCancel(ctx), base))
}

// Sync implements drivers.Driver. What is not mounted is durable already.
func (d *Driver) Sync(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if err := d.syncLayer(ctx, id); err != nil {
			return fmt.Errorf("sync layer %s: %w", id, err)
		}
	}
	return nil
}

func (d *Driver) syncLayer(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := d.lookup(id)
	if err != nil {
		return err
	}
	return d.syncMounted(r)
}
