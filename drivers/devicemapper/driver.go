package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"plyfs/drivers"
)

// name is that of the driver in the registry.
const name = "devicemapper"

// mountDir is where in the home layers are mounted.
const mountDir = "mnt"

// Factory returns the driver's entry for a registry. Its options are
//
//	dm.thinpooldev           a thin pool, by its name in the device mapper; the store needs it for itself
//	dm.datadev               with dm.metadatadev: blank block devices to make a pool from
//	dm.loopdatasize          with dm.loopmetadatasize: the sizes of sparse files to make one from in the home if no
//	                         devices are given (100G, 2G); later they can be made larger
//	dm.basesize              the size of the file system of a layer (10G)
//	dm.fs, dm.mkfsarg, dm.mountopt  xfs (the default) or ext4; arguments of mkfs; mount options (discard)
//	dm.blocksize             the unit in which the pool gives out space (64K)
//	dm.min_free_space        do not make layers with less than this free in the pool (10%)
//	dm.use_deferred_removal  have what is still in use elsewhere go later, in place of an error (true)
//	dm.blkdiscard            give the blocks of a removed layer back to what the pool is made from (for sparse files)
//
// Sizes are in bytes, or have a unit K, M, G or T. The first three, dm.fs and dm.blocksize are settled when a store
// begins.
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    name,
		Summary: "thin devices and snapshots in a pool of the device mapper, each with a file system of its own",
		Probe:   probe,
		Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
			opts, err := parseOptions(o.Options)
			if err != nil {
				return nil, err
			}
			m, err := openMapper()
			if err != nil {
				return nil, err
			}
			d, err := open(ctx, o, opts, m, realHost{})
			if err != nil {
				return nil, errors.Join(err, m.close())
			}
			return d, nil
		},
	}
}

// Driver keeps layers as thin devices. It implements drivers.Driver and drivers.Filler.
type Driver struct {
	home    string
	opts    options
	log     *slog.Logger
	dm      mapper
	host    host
	records records
	pool    poolRecord
	// poolName and poolDev are the pool's name and number in the kernel.
	poolName string
	poolDev  uint64
	locks    drivers.Locks
	mounts   *drivers.Mounts
	// busyWait bounds how long a device that is in use is waited for where it can't be removed later.
	busyWait time.Duration

	poolMu      sync.Mutex
	transaction uint64 // the pool's; guarded by poolMu
	unsettled   bool   // the last transaction may be half done; guarded by poolMu

	mu      sync.Mutex
	devices map[deviceID]*deviceRecord // all there are, never changed in place; guarded by mu
	layers  map[string]*deviceRecord   // those of them that are layers, and the base; guarded by mu
	nextID  deviceID                   // guarded by mu
	burying map[deviceID]bool          // those that are being deleted; guarded by mu
}

// defaultBusyWait is for what has a device open for a moment: a scan of new devices, a mount that another namespace
// copied.
const defaultBusyWait = 10 * time.Second

// open opens a store. The mapper is the Driver's from then on, if there is no error.
func open(ctx context.Context, o drivers.Options, opts options, dm mapper, h host) (d *Driver, err error) {
	if !filepath.IsAbs(o.Home) || !filepath.IsAbs(o.Run) {
		return nil, fmt.Errorf("directories %q and %q of the driver devicemapper: not absolute: %w", o.Home, o.Run,
			drivers.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, dir := range []string{o.Home, o.Run, filepath.Join(o.Home, mountDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	d = &Driver{
		home: o.Home, opts: opts, log: o.Log, dm: dm, host: h, records: records{o.Ledger}, busyWait: defaultBusyWait,
		layers: make(map[string]*deviceRecord), burying: make(map[deviceID]bool),
	}
	if d.log == nil {
		d.log = discardLog()
	}
	if o.Ledger == nil {
		if d.records.Ledger, err = drivers.OpenFileLedger(filepath.Join(o.Home, "ledger")); err != nil {
			return nil, err
		}
	}
	if err := d.openPool(ctx); err != nil {
		return nil, err
	}
	if err := d.openStore(ctx, o.Run); err != nil {
		return nil, errors.Join(err, d.closePool())
	}
	return d, nil
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openStore is what there is to open once there is a pool.
func (d *Driver) openStore(ctx context.Context, run string) (err error) {
	if d.devices, err = d.records.devices(ctx); err != nil {
		return err
	}
	for _, r := range d.devices {
		d.learn(r)
	}
	d.poolMu.Lock()
	err = d.claimLocked(ctx)
	d.poolMu.Unlock()
	if err != nil {
		return err
	}
	// After settling, which may have changed the records.
	for id := range d.devices {
		d.nextID = max(d.nextID, (id+1)&maxDeviceID)
	}
	if d.mounts, err = drivers.OpenMounts(filepath.Join(run, "mounts")); err != nil {
		return err
	}
	return d.openBase(ctx)
}

// deviceName is the name of a thin device in the kernel.
func (d *Driver) deviceName(id deviceID) string { return fmt.Sprintf("%s%d", d.devicePrefix(), id) }

func (d *Driver) devicePrefix() string { return "plyfs-" + d.pool.Token + "-" }

// lookup returns a layer. The error wraps ErrNotFound if there is none.
func (d *Driver) lookup(id string) (*deviceRecord, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.layers[id]
	if r == nil {
		return nil, fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	return r, nil
}

// lookupReady is lookup for those who want the content: of a layer whose making did not end well there is none.
func (d *Driver) lookupReady(id string) (*deviceRecord, error) {
	r, err := d.lookup(id)
	if err != nil {
		return nil, err
	}
	if r.State != stateReady {
		return nil, fmt.Errorf("layer %s was not made, or unpacked, to its end, remove it: %w", id, drivers.ErrDamaged)
	}
	return r, nil
}

// setState writes another state of a device, and returns what is its record from then on.
func (d *Driver) setState(ctx context.Context, r *deviceRecord, s deviceState) (*deviceRecord, error) {
	changed := *r
	changed.State = s
	if err := d.records.putDevice(ctx, &changed); err != nil {
		return r, fmt.Errorf("layer %s: %w", r.Layer, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices[r.id] = &changed
	if s == stateLeaving {
		delete(d.layers, r.Layer)
	} else {
		d.layers[r.Layer] = &changed
	}
	return &changed, nil
}

// Name implements drivers.Driver.
func (d *Driver) Name() string { return name }

// Close implements drivers.Driver. A pool that the driver made, and that nothing uses, goes; the next Open makes it
// again.
func (d *Driver) Close() error { return errors.Join(d.closePool(), d.dm.close()) }

// isOurs says whether a device of the kernel is a thin device of this store.
func (d *Driver) isOurs(device string) bool {
	rest, ok := strings.CutPrefix(device, d.devicePrefix())
	return ok && rest != poolSuffix
}
