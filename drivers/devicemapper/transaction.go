package devicemapper

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// run carries out a transaction: it writes its record, lets change do its work in the pool, commits and finishes the
// records. After an error everything is as if it had not been begun, or as if it were done; which of them, settle
// found out from the pool.
//
// Precondition: d.poolMu is held.
func (d *Driver) run(ctx context.Context, t transactionRecord, change func() error) error {
	if err := d.settleIfNeededLocked(ctx); err != nil {
		return err
	}
	t.ID = d.transaction + 1
	d.unsettled = true
	// From here on nobody's loss of interest may leave it half done.
	ctx = context.WithoutCancel(ctx)
	err := d.commit(ctx, t, change)
	if err == nil {
		d.unsettled = false
		return nil
	}
	if serr := d.settleLocked(ctx); serr != nil {
		d.log.Warn("a transaction of the thin pool could not be settled, the next operation tries again", "pool",
			d.poolName, "error", serr)
		return err
	}
	if d.transaction == t.ID {
		// What failed came after the commit, and has been made up for.
		return nil
	}
	return err
}

func (d *Driver) commit(ctx context.Context, t transactionRecord, change func() error) error {
	if err := d.records.put(ctx, keyTransaction, t); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	if err := d.dm.message(d.poolName, msgSetTransaction(t.ID-1, t.ID)); err != nil {
		return err
	}
	d.transaction = t.ID
	return d.finish(ctx, t)
}

// finish writes what a committed transaction makes of the records.
func (d *Driver) finish(ctx context.Context, t transactionRecord) error {
	switch t.Op {
	case opCreate:
		t.Record.id = t.Device
		if err := d.records.putDevice(ctx, t.Record); err != nil {
			return err
		}
		d.learn(t.Record)
	case opDelete:
		if err := d.records.Delete(ctx, deviceKey(t.Device)); err != nil {
			return err
		}
		d.forget(t.Device)
	case opClaim:
	}
	return nil
}

func (d *Driver) settleIfNeededLocked(ctx context.Context) error {
	if !d.unsettled {
		return nil
	}
	return d.settleLocked(ctx)
}

// settleLocked brings pool and records together: a transaction that the pool did not commit is undone, one that it
// did is finished. The error wraps ErrDamaged if they do not belong together.
//
// Precondition: d.poolMu is held.
func (d *Driver) settleLocked(ctx context.Context) error {
	s, err := d.poolState()
	if err != nil {
		return err
	}
	var t transactionRecord
	if _, err := d.records.get(ctx, keyTransaction, &t); err != nil {
		return err
	}
	switch {
	case s.transaction == t.ID:
		err = d.redo(ctx, t)
	case s.transaction+1 == t.ID && t.Op == opClaim:
		err = d.dm.message(d.poolName, msgSetTransaction(0, 1))
		s.transaction = 1
	case s.transaction+1 == t.ID && t.Op == opCreate:
		err = d.deleteDevice(t.Device)
	case s.transaction+1 == t.ID && t.Op == opDelete:
		// Its record says that it is leaving, so it will be tried again.
	default:
		err = fmt.Errorf("thin pool %s is at transaction %d, the store at %d: they do not belong together. "+
			"One of them was replaced or restored; restore the other too, or begin a new store with a new pool: %w",
			d.poolName, s.transaction, t.ID, drivers.ErrDamaged)
	}
	if err != nil {
		return err
	}
	d.transaction, d.unsettled = s.transaction, false
	return nil
}

// redo finishes a committed transaction, unless that was done: what came of the device later must stay.
func (d *Driver) redo(ctx context.Context, t transactionRecord) error {
	r := &deviceRecord{id: t.Device}
	there, err := d.records.get(ctx, deviceKey(t.Device), r)
	switch {
	case err != nil:
		return err
	case t.Op == opCreate && there:
		// This process may not know, if it could not tell that the record was written.
		d.learn(r)
		return nil
	case t.Op == opDelete && !there:
		d.forget(t.Device)
		return nil
	}
	return d.finish(ctx, t)
}

// deleteDevice deletes a thin device; one that is not there is no error.
func (d *Driver) deleteDevice(id deviceID) error {
	err := d.dm.message(d.poolName, msgDelete(id))
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// poolState asks the pool, and fails if it can't be written to.
func (d *Driver) poolState() (poolStatus, error) {
	t, err := d.dm.status(d.poolName)
	if err != nil {
		return poolStatus{}, err
	}
	if t.Type != "thin-pool" {
		return poolStatus{}, fmt.Errorf("device %s is no thin pool but of type %s: %w", d.poolName, t.Type,
			drivers.ErrInvalid)
	}
	s, err := parsePoolStatus(t.Params)
	if err != nil {
		return s, err
	}
	return s, s.check(d.poolName)
}

// createDevice makes a thin device with the given record: empty, or a snapshot of origin. It sets the record's id.
//
// Precondition: d.poolMu is held; origin is not active, or suspended.
func (d *Driver) createDevice(ctx context.Context, r *deviceRecord, origin *deviceRecord) error {
	if err := d.settleIfNeededLocked(ctx); err != nil {
		return err
	}
	id, err := d.freeID()
	if err != nil {
		return err
	}
	r.id = id
	text := msgCreateThin(id)
	if origin != nil {
		text = msgCreateSnap(id, origin.id)
	}
	return d.run(ctx, transactionRecord{Op: opCreate, Device: id, Record: r}, func() error {
		err := d.dm.message(d.poolName, text)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		// The pool is this store's alone, and no record has the number.
		d.log.Warn("deleting a device of the thin pool that no record names", "pool", d.poolName, "device", id)
		if err := d.deleteDevice(id); err != nil {
			return err
		}
		return d.dm.message(d.poolName, text)
	})
}

// dropDevice deletes a thin device that is not active, and its record.
//
// Precondition: d.poolMu is held.
func (d *Driver) dropDevice(ctx context.Context, id deviceID) error {
	return d.run(ctx, transactionRecord{Op: opDelete, Device: id}, func() error { return d.deleteDevice(id) })
}

// freeID returns a number that no device has.
func (d *Driver) freeID() (deviceID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range maxDeviceID + 1 {
		id := d.nextID
		d.nextID = (d.nextID + 1) & maxDeviceID
		if d.devices[id] == nil {
			return id, nil
		}
	}
	return 0, fmt.Errorf("thin pool %s has %d devices, the most that it can: %w", d.poolName, maxDeviceID+1,
		ErrPoolFull)
}

// learn and forget keep the tables.
func (d *Driver) learn(r *deviceRecord) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices[r.id] = r
	if r.State != stateLeaving {
		d.layers[r.Layer] = r
	}
}

func (d *Driver) forget(id deviceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.devices[id]; r != nil && d.layers[r.Layer] == r {
		delete(d.layers, r.Layer)
	}
	delete(d.devices, id)
}
