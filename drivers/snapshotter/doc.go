// Package snapshotter serves containerd: its snapshots are layers of a driver of plyfs, kept in a layer store (package layerdb).
//
// # Mounts
//
// containerd asks how a snapshot is mounted, and mounts it itself, or has its shim do so. What the answer is depends on the driver:
//
//	plyfs          fuse3.plyfs-mount, which mount.fuse3 makes by running that program (or plyfs), or a bind mount of what Mounts
//	               mounted (see Options.Served); a bind mount where there is but one layer
//	overlay2       overlay; a bind mount where there is but one layer
//	btrfs, vfs     a bind mount of the layer
//	zfs            a mount of the type zfs
//	devicemapper   none: the device would have to be there whether the snapshot is mounted or not
//
// While containerd unpacks an image it prepares a snapshot with a key whose last part begins with "extract-", and commits it. For
// the mount type overlay its differ does not mount, but writes the layer directly, in the form of the kernel's overlayfs. That is the form of
// plyfs too, so both drivers answer with it for such keys, where they can: for root of the machine, on a file system that takes what
// an overlay needs. No mount is made to pull an image.
//
// # Differences
//
// Differ is containerd's diff service for these snapshots. It recognises them by the paths in their mounts, and has the driver
// make the difference, at the cost of what changed. What it does not know it leaves to containerd's own way: mounting both
// and walking. Apply unpacks into the layer directly.
//
// # Crashes and restarts
//
// The store says what there is, and the driver what is mounted; nothing else is kept. Servers of mounts outlive this process, so that
// running containers notice nothing of its end. See layerdb for what is durable.
package snapshotter
