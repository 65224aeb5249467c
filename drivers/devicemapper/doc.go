// Package devicemapper is the graph driver for a thin pool of the kernel's device mapper: a layer is a thin device
// with a file system of its own, a child begins as a snapshot of its parent's. Layers share blocks, not files:
// nothing is stacked, any file system semantics that xfs or ext4 has, a container has, and the page cache is not
// shared.
//
// # In the kernel and on disk
//
//	pool           made by someone else (dm.thinpooldev), or by the driver as plyfs-TOKEN-pool from two block
//	               devices (dm.datadev, dm.metadatadev) or two sparse files on loop devices; the store has it alone
//	plyfs-TOKEN-N  the thin device N, active while its layer is mounted
//	HOME/data, HOME/metadata  the sparse files
//	HOME/mnt/ID    where a layer is mounted
//
// One device is the base: an empty file system, of which a layer without parent is a snapshot. Snapshots
// do not need their origin, so a layer can be removed before its children.
//
// Everything is done by ioctls: no udev, no dmsetup, no daemon. Nodes of devices are made in /dev where there are none.
//
// # The log
//
// A thin pool can't say which devices it has, and each takes up space until it is deleted by its number. So what
// there is stands in records of a drivers.Ledger, and each creation and deletion is a transaction, which the pool's
// own transaction id commits:
//
//	pool         the token, and what the base is like
//	device-N     one device: of which layer, its parent, its size; that it is being made, or deleted
//	transaction  the last one: its id, what it does to which device
//
// A transaction writes its record, changes the pool, and sets the pool's id to that of the record. Whoever finds the
// pool one behind the record undoes what was begun; who finds them equal finishes the records; anything else says
// that pool and records do not belong together, and the driver refuses to touch either.
//
// # Quotas and usage
//
// Quotas are the file system's: all of a layer belongs to one project from the beginning. On a kernel without project
// quotas a quota is the size of the device, so there are none of inodes, and none of fewer bytes than the file system
// of the parent has: file systems only grow. dm-thin has no list of what a device has alone, so Usage does not know
// what was overwritten in place.
//
// # Locks
//
//	drivers.Locks    one layer's operations
//	  Driver.poolMu  transactions, and devices that are being activated, suspended or removed
//	    Driver.mu    the tables of layers and devices
package devicemapper
