package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	return d.has(id)
}

// List implements drivers.Driver.
func (d *Driver) List(ctx context.Context, fn func(drivers.Info) error) error {
	return d.eachLayer(ctx, func(id string) error {
		r, err := d.readRecord(id)
		info := drivers.Info{ID: id, Parent: r.Parent, Writable: r.Writable}
		switch {
		case errors.Is(err, drivers.ErrNotFound):
			return nil // removed meanwhile
		case errors.Is(err, drivers.ErrDamaged):
			d.log.Error("a layer is damaged", "layer", id, "error", err)
			info.Damaged = err.Error()
		case err != nil:
			return err
		}
		// Asked once: it may be filled to its end at this moment.
		if unfilled, err := d.unfilled(id); err != nil || unfilled {
			return err
		}
		return fn(info)
	})
}

// eachLayer calls fn for every name in the directory of layers.
func (d *Driver) eachLayer(ctx context.Context, fn func(id string) error) error {
	entries, err := os.ReadDir(filepath.Join(d.home, layersDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if drivers.ValidID(e.Name()) != nil {
			continue
		}
		if err := fn(e.Name()); err != nil {
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
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", d.home, err)
	}
	quota := "not known without CAP_SYS_ADMIN"
	mode, err := sys.BtrfsQuotaMode(d.fd)
	switch {
	case err == nil:
		quota = mode.String()
	case !errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("accounting of %s: %w", d.home, err)
	}
	unit := uint64(st.Bsize)
	return []drivers.Pair{
		{Label: "Backing file system", Value: "btrfs"},
		{Label: "Home", Value: d.home},
		{Label: "Space", Value: strconv.FormatUint(st.Blocks*unit, 10)},
		{Label: "Space available", Value: strconv.FormatUint(st.Bavail*unit, 10)},
		{Label: "Quota accounting", Value: quota},
		{Label: "Native diff", Value: "false"},
	}, nil
}

// Metadata implements drivers.Driver. The keys are root, subvolume (its number), uuid, parentUUID (of what it is a snapshot of),
// readOnly and, with a quota, quota (bytes).
func (d *Driver) Metadata(ctx context.Context, id string) (map[string]string, error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := d.readRecord(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{"root": d.rootPath(id)}
	if r.Quota.Bytes > 0 {
		m["quota"] = strconv.FormatInt(r.Quota.Bytes, 10)
	}
	err = d.onRoot(id, func(fd int) error {
		info, err := sys.BtrfsSubvolume(fd)
		if err != nil {
			return err
		}
		readOnly, err := sys.BtrfsReadOnly(fd)
		m["subvolume"] = strconv.FormatUint(info.ID, 10)
		m["uuid"] = fmt.Sprintf("%x", info.UUID)
		if info.Parent != [16]byte{} {
			m["parentUUID"] = fmt.Sprintf("%x", info.Parent)
		}
		m["readOnly"] = strconv.FormatBool(readOnly)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	return m, nil
}

// Sync implements drivers.Driver. It syncs the whole file system: btrfs knows nothing smaller.
func (d *Driver) Sync(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if ok, err := d.Exists(ctx, id); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("sync layer %s: %w", id, drivers.ErrNotFound)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := sys.Retry(func() error { return unix.Syncfs(d.fd) }); err != nil {
		return fmt.Errorf("sync %s: %w", d.home, err)
	}
	return nil
}
