// Package drivers is the contract of a graph driver: it keeps image layers, makes root file systems of them and turns
// what was written back into a layer. Its subpackages are the backends: plyfs, overlay2, vfs, btrfs, zfs, devicemapper.
// Package drivers/all lists them; drivers/drivertest is the suite that each of them passes.
//
// # The life of a layer
//
// An image layer begins with Create, which names its parent ("" for none), and is empty: it shows exactly what its
// parent shows. ApplyDiff gives it its content, once. Sync makes that durable. From then on it never changes; any
// number of layers may have it as their parent.
//
//	d.Create(ctx, "base", "", nil)
//	d.ApplyDiff(ctx, "base", r1)
//	d.Create(ctx, "app", "base", nil)
//	d.ApplyDiff(ctx, "app", r2)
//	d.Sync(ctx, "base", "app")
//
// A container gets a writable layer of its own on top. Get mounts it and says where; whoever uses the same layer at the
// same time gets the same place, and the mount goes with the last Put.
//
//	d.CreateReadWrite(ctx, "c1", "app", nil)
//	root, _ := d.Get(ctx, "c1", nil)        // run something in root
//	d.Put(ctx, "c1")
//
// A commit reads what changed, and makes an image layer of it beside the container, which goes on.
//
//	changes := drivers.DifferOf(d)
//	r, _ := changes.Diff(ctx, "c1", "app", nil)  // a tar stream, of which ApplyDiff makes a layer
//
// Remove ends a layer that nobody uses. A driver knows nothing of digests, names of images, or who is whose parent
// beyond what it needs to mount; package layerdb does. A driver's layer that layerdb does not know is garbage.
//
// # Differences
//
// DifferOf gives the driver's own Differ, or one that mounts two layers and compares them (NaiveDiffer). Both give the
// same: names that are new, changed or gone, with the directories above them. A directory of which only the time
// changed is no difference. If a file got another name, all its names are in it, so that they stay names of one file.
// What is mounted in a container is no part of its layer (OpenBare). What Get returns is opened as a plain tree (layer.OpenPlain):
// its attributes are those of a container, which must not decide who owns what in the next layer.
//
// # What a driver keeps
//
// A driver owns its home directory and everything in it. What it must know of a layer is on disk beside the layer, so
// that a restart, also one after kill -9, finds all layers, and the mounts that are still there with their references
// (Mounts). Half of a layer is never there: an operation that fails, or whose process dies, leaves either nothing or
// something that List does not name and Cleanup removes.
//
// # Concurrency
//
// A Driver may be used by any number of goroutines. Operations on one layer are serialised by the driver, operations on
// different layers run side by side. Two processes never use one home at once; layerdb's lock sees to that. The servers
// of FUSE mounts are not users in this sense: they outlive the process that started them.
//
//	Locks.Lock(id)        one layer's operations; nobody holds the locks of two layers
//	  Mounts.mu           the table of mount references
package drivers
