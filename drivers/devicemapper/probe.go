package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
)

// probe implements drivers.Factory.Probe.
func probe(ctx context.Context, o drivers.Options) drivers.Report {
	rep := drivers.Report{Driver: name}
	opts, err := parseOptions(o.Options)
	if err != nil {
		rep.Why, rep.Todo = err.Error(), "correct the option"
		return rep
	}
	if drivers.UserNamespace().Nested {
		rep.Why = "the device mapper is for root of the machine, and this is a user namespace"
		rep.Todo = "run as root outside of user namespaces, or use the driver plyfs"
		return rep
	}
	m, err := openMapper()
	if err != nil {
		rep.Why, rep.Todo = err.Error(), "load the module (modprobe dm_thin_pool) and be root, or use the driver plyfs"
		return rep
	}
	return probeWith(ctx, o, opts, m, realHost{})
}

// probeWith is probe once there is a device mapper, which it closes.
func probeWith(ctx context.Context, o drivers.Options, opts options, m mapper, h host) (rep drivers.Report) {
	rep = drivers.Report{Driver: name}
	where, todo, err := tryPool(ctx, o, opts, m, h)
	if err = errors.Join(err, m.close()); err != nil {
		rep.Why, rep.Todo = err.Error(), todo
		return rep
	}
	rep.Usable, rep.Why = true, where
	if opts.pool == "" && opts.data == "" {
		rep.Warning = "without " + optPool + " the layers are in sparse files on loop devices: slow, and broken " +
			"when their file system is full"
		rep.Todo = "make a thin pool on a block device and name it with " + optPool
	}
	return rep
}

// tryPool finds out whether there would be a pool. It returns what was found, or what to do about the error.
func tryPool(ctx context.Context, o drivers.Options, opts options, m mapper, h host) (found, todo string, err error) {
	if err := ctx.Err(); err != nil {
		return "", "try again", err
	}
	fstype, err := chooseFS(opts)
	if err != nil {
		return "", "correct the option", err
	}
	if _, err := exec.LookPath("mkfs." + fstype); err != nil {
		return "", "install " + mkfsPackage(fstype), err
	}
	d := &Driver{opts: opts, dm: m, host: h}
	switch {
	case opts.pool != "":
		d.poolName = opts.pool
		s, err := d.poolState()
		if err != nil {
			return "", "make or activate the thin pool, or name another with " + optPool, err
		}
		return fmt.Sprintf("thin pool %s has %d of %d blocks in use", opts.pool, s.usedData, s.totalData), "", nil
	case opts.data != "":
		for _, path := range []string{opts.data, opts.metadata} {
			if _, err := h.device(path); err != nil {
				return "", "name other devices with " + optData + " and " + optMetadata, err
			}
		}
		return fmt.Sprintf("a thin pool can be made from %s and %s", opts.data, opts.metadata), "", nil
	}
	return d.tryLoop(ctx, o.Home)
}

// Sizes of the files that a probe makes a pool from, both sparse.
const (
	probeData     = "64M"
	probeMetadata = "2M"
)

// tryLoop makes a pool of sparse files, a device in it, and removes all.
func (d *Driver) tryLoop(ctx context.Context, home string) (found, todo string, err error) {
	const advice = "put the store on a file system that loop devices work on, or name a thin pool with " + optPool
	dir, remove, err := layerdir.Scratch(home)
	if err != nil {
		return "", "name a directory that can be written to", err
	}
	defer func() { err = errors.Join(err, remove()) }()
	d.home = dir
	if d.records.Ledger, err = drivers.OpenFileLedger(dir + "/ledger"); err != nil {
		return "", advice, err
	}
	if d.opts, err = parseOptions(map[string]string{optLoopData: probeData, optLoopMeta: probeMetadata}); err != nil {
		return "", "", err
	}
	d.log = discardLog()
	if err := d.openPool(ctx); err != nil {
		return "", advice, err
	}
	err = d.dm.message(d.poolName, msgCreateThin(0))
	if err = errors.Join(err, d.closePool()); err != nil {
		return "", advice, err
	}
	return "a thin pool of sparse files could be made", "", nil
}
