// Package zfs is the graph driver for a store in a zfs pool: a layer is a dataset, a child begins as a clone of a snapshot of its
// parent. Nothing is stacked, and space is shared, compressed and checked as the pool does it.
//
// # In the pool and on disk
//
//	FSNAME/plyfs-TOKEN               all that belongs to one store; user property plyfs:store is the token
//	FSNAME/plyfs-TOKEN/image/ID      an image layer
//	FSNAME/plyfs-TOKEN/container/ID  a writable layer
//	.../image/ID@plyfs               what all children of an image layer are clones of
//	.../container/ID@plyfs-*         what one child of a writable layer is a clone of; goes with it, by deferred destruction
//	HOME/zfs.json                    the name of the dataset and the token
//	HOME/graph/ID                    where a layer is mounted
//	HOME/unfilled/ID                 there while an image layer is being unpacked: its content is not whole
//
// FSNAME is the option zfs.fsname, or the dataset that the home lies on. Properties of it are inherited, except those that a root file
// system of a container wants otherwise. All of them can be changed on FSNAME/plyfs-TOKEN.
//
// A layer appears by one create or clone and disappears by one destroy. Whose child it is, is told by its origin. A clone needs its
// origin, so a layer that has children can't be removed.
//
// # What it does not do
//
// There are no quotas of inodes. What is written counts, for limits and Usage, when zfs writes it to the pool, some seconds later.
//
// All is done by the commands zfs and zpool, through go-zfs, but mounting, which is mount(2). A command that runs is not interrupted
// when a context ends.
//
// # Locks
//
//	drivers.Locks        one layer's operations
//	  Driver.changing    read: a layer is being made or destroyed; written: the table of layers is being read anew
//	    Driver.mu        the table, and the snapshots in use
package zfs
