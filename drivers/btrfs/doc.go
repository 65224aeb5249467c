// Package btrfs is the graph driver for a store that lies on btrfs: a layer is a subvolume, a child begins as a snapshot of its
// parent. Nothing is stacked, so a container reads and writes at the file system's own speed however many layers it has.
//
// # On disk
//
//	layers/ID/root        the subvolume
//	layers/ID/layer.json  what else is known of the layer; without it there is none, and the rest is for Cleanup
//	layers/ID/unfilled    there while an image layer is being unpacked: its content is not whole
//	mnt/ID                where a writable layer is mounted read-only, if that was asked for
//	tmp-*                 what is being made, for Cleanup
//
// A layer is made under a temporary name and appears by one rename; it disappears with its record. An image layer is sealed when it is
// whole, by the read-only property of its subvolume, and can then be changed by nobody, whatever path leads to it.
//
// # What it does not do
//
// Snapshots do not depend on what they were taken of, so a layer can be removed while it has children. Subvolumes that a
// container makes are removed with it, and are empty directories in what is made of it, as in any snapshot. There
// are no quotas of inodes and no SELinux labels of single mounts. Limits of space want CAP_SYS_ADMIN of the machine and turn on
// the accounting for the whole file system.
//
// # Locks
//
//	drivers.Locks     one layer's operations
//	  Driver.quotaMu  the accounting of the file system is being turned on
//	  Driver.heldMu   what this process is making
package btrfs
