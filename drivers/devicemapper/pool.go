package devicemapper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// poolSuffix ends the name of a pool that the driver made.
const poolSuffix = "pool"

// The sparse files in a home.
const (
	dataFile     = "data"
	metadataFile = "metadata"
)

// openPool finds the store's pool, or makes it.
func (d *Driver) openPool(ctx context.Context) error {
	known, err := d.records.get(ctx, keyPool, &d.pool)
	if err != nil {
		return err
	}
	claimed, err := d.records.get(ctx, keyTransaction, &transactionRecord{})
	if err != nil {
		return err
	}
	switch {
	case known && claimed:
		err = d.checkSettled()
	case claimed:
		err = fmt.Errorf("the record %q of the store in %s is gone: %w", keyPool, d.home, drivers.ErrDamaged)
	case !known:
		if err = d.checkNoFiles(); err == nil {
			err = d.newPool(ctx)
		}
	default:
		// Nothing is settled before the pool is the store's.
		err = d.newPool(ctx)
	}
	if err != nil {
		return err
	}
	if d.pool.Pool != "" {
		d.poolName = d.pool.Pool
		return d.findPool()
	}
	d.poolName = d.devicePrefix() + poolSuffix
	return d.makePool(claimed)
}

// checkNoFiles refuses to begin a store where there is one, of which the ledger just does not know.
func (d *Driver) checkNoFiles() error {
	if d.opts.pool != "" || d.opts.data != "" {
		return nil
	}
	for _, file := range []string{dataFile, metadataFile} {
		path := filepath.Join(d.home, file)
		_, err := os.Lstat(path)
		if err == nil {
			return fmt.Errorf("%s has a pool in it, and there are no records of it: restore the ledger, or delete "+
				"the files %s and %s and the layers in them: %w", path, dataFile, metadataFile, drivers.ErrDamaged)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// newPool says what the store is made of.
func (d *Driver) newPool(ctx context.Context) error {
	p := poolRecord{Token: d.pool.Token, Pool: d.opts.pool, Data: d.opts.data, Metadata: d.opts.metadata}
	if p.Token == "" {
		p.Token = strings.ToLower(rand.Text())[:12]
	}
	if p.Pool == "" {
		p.BlockSize = d.opts.blockSize
		p.Loop = p.Data == ""
	}
	var err error
	if p.FS, err = chooseFS(d.opts); err != nil {
		return err
	}
	d.pool = p
	return d.records.put(ctx, keyPool, p)
}

// checkSettled refuses options that say otherwise than what was settled when the store began.
func (d *Driver) checkSettled() error {
	for _, o := range []struct{ option, want, have string }{
		{optPool, d.opts.pool, d.pool.Pool},
		{optData, d.opts.data, d.pool.Data},
		{optMetadata, d.opts.metadata, d.pool.Metadata},
		{optFS, d.opts.fs, d.pool.FS},
	} {
		if o.want != "" && o.want != o.have {
			return fmt.Errorf("option %s=%s: the store in %s began with %q; begin a new one, or "+
				"leave the option away: %w", o.option, o.want, d.home, o.have, drivers.ErrInvalid)
		}
	}
	return nil
}

// findPool looks for a pool that someone else made.
func (d *Driver) findPool() error {
	info, err := d.dm.stat(d.poolName)
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("there is no thin pool %s: activate it (lvchange -ay VG/LV), or name another with %s: "+
			"%w: %w", d.poolName, optPool, err, drivers.ErrPrerequisites)
	}
	if err != nil {
		return err
	}
	d.poolDev = info.Dev
	s, err := d.poolState()
	if err == nil && s.queueIfFull {
		d.log.Warn("the thin pool holds writes back when it is full, for a minute by default, and containers "+
			"hang; lvchange --errorwhenfull y has it refuse them at once", "pool", d.poolName)
	}
	return err
}

// makePool makes the store's own pool, if it is not there. claimed says that there is something in it.
func (d *Driver) makePool(claimed bool) error {
	if d.pool.Loop {
		d.log.Warn("the driver devicemapper keeps its layers in sparse files on loop devices: that is slow, and "+
			"when their file system is full, layers break; use a thin pool on block devices ("+optPool+", or "+
			optData+" and "+optMetadata+")", "home", d.home)
	}
	info, err := d.dm.stat(d.poolName)
	switch {
	case err == nil && claimed && info.Live:
		d.poolDev = info.Dev
		return d.revive(d.poolName, info)
	case err == nil:
		// Whoever made it was killed meanwhile.
		if err := d.dm.remove(d.poolName); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENXIO):
		return err
	}
	return d.startPool(claimed)
}

// startPool makes the pool of its devices. claimed says that there is something in it.
func (d *Driver) startPool(claimed bool) (err error) {
	metadata, release, err := d.poolDevice(claimed, d.pool.Metadata, metadataFile, d.opts.loopMeta, defaultLoopMeta)
	if err != nil {
		return fmt.Errorf("metadata device of the thin pool: %w", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	data, release2, err := d.poolDevice(claimed, d.pool.Data, dataFile, d.opts.loopData, defaultLoopData)
	if err != nil {
		return fmt.Errorf("data device of the thin pool: %w", err)
	}
	defer func() { err = errors.Join(err, release2()) }()
	blocks := data.size / d.pool.BlockSize
	blockSectors := d.pool.BlockSize / sector
	table := sys.DMTarget{Length: blocks * blockSectors, Type: "thin-pool", Params: poolTable(metadata.dev, data.dev,
		blockSectors)}
	if d.poolDev, err = d.makeDevice(d.poolName, table); err != nil {
		return fmt.Errorf("make the thin pool: %w", err)
	}
	return nil
}

// poolDevice returns a device to make a pool of; release ends its use by this process.
func (d *Driver) poolDevice(claimed bool, path, file string, size, ifNew uint64) (b blockDevice, release func() error,
	err error,
) {
	if path != "" {
		b, err = d.host.device(path)
		if err == nil && !claimed && !b.blank {
			err = fmt.Errorf("%s is not blank: something may be on it. If that is not needed: "+
				"wipefs -a %s, and zero its first MiB: %w", path, path, drivers.ErrInvalid)
		}
		return b, func() error { return nil }, err
	}
	path = filepath.Join(d.home, file)
	if b.size, err = sparseFile(path, claimed, size, ifNew); err != nil {
		return b, nil, err
	}
	b.dev, release, err = d.host.attach(path)
	return b, release, err
}

// sparseFile makes sure that there is a file of at least the given size, if any, and returns its size. One that has
// something in it must be there.
func sparseFile(path string, claimed bool, size, ifNew uint64) (uint64, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_TRUNC
	if claimed {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w, and the layers with it: %w", err, drivers.ErrDamaged)
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	have := uint64(st.Size())
	if have == 0 && size == 0 {
		size = ifNew
	}
	if have >= size {
		return have, nil
	}
	return size, errors.Join(f.Truncate(int64(size)), f.Sync())
}

// makeDevice makes a device of the device mapper with a table of one target, and returns its number.
func (d *Driver) makeDevice(name string, t sys.DMTarget) (dev uint64, err error) {
	if err = d.dm.create(name); errors.Is(err, unix.EBUSY) {
		// It is not this call's to remove.
		return 0, err
	}
	if err == nil {
		err = d.startDevice(name, t)
	}
	if err != nil {
		return 0, errors.Join(err, ignore(d.dm.remove(name), unix.ENXIO))
	}
	info, err := d.dm.stat(name)
	return info.Dev, err
}

func (d *Driver) startDevice(name string, t sys.DMTarget) error {
	if err := d.dm.load(name, t); err != nil {
		return err
	}
	return d.dm.resume(name)
}

// claimLocked settles the last transaction; of a new store it makes the pool the store's.
//
// Precondition: d.poolMu is held.
func (d *Driver) claimLocked(ctx context.Context) error {
	claimed, err := d.records.get(ctx, keyTransaction, &transactionRecord{})
	if err != nil {
		return err
	}
	if claimed {
		return d.settleLocked(ctx)
	}
	s, err := d.poolState()
	if err != nil {
		return err
	}
	if s.transaction != 0 || s.usedData != 0 {
		return fmt.Errorf("thin pool %s is not empty (transaction %d, %d blocks of data in use): it belongs to "+
			"another store, or to LVM. Make a new pool for this store: %w", d.poolName, s.transaction,
			s.usedData, drivers.ErrInvalid)
	}
	return d.run(ctx, transactionRecord{Op: opClaim}, func() error { return nil })
}

// closePool removes the pool if the driver made it and nothing uses it.
func (d *Driver) closePool() error {
	if d.pool.Pool != "" || d.poolName == "" {
		return nil
	}
	err := d.dm.remove(d.poolName)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// checkFree fails if the pool is to have no more layers.
func (d *Driver) checkFree() error {
	s, err := d.poolState()
	if err != nil {
		return err
	}
	return s.checkFree(d.poolName, d.opts.minFree)
}

// explain says of an error of a file system whether it comes of a full pool: some file systems report that as EIO, or
// become read-only.
func (d *Driver) explain(err error) error {
	t, serr := d.dm.status(d.poolName)
	if serr != nil {
		return err
	}
	s, serr := parsePoolStatus(t.Params)
	if serr != nil || s.usedData < s.totalData && s.mode != modeFull {
		return err
	}
	return fmt.Errorf("%w: data of thin pool %s: %w: %w", err, d.poolName, ErrPoolFull, unix.ENOSPC)
}
