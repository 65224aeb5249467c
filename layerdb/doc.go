// Package layerdb is the layer store: it knows which layers there are, what they are called and who uses them, and has a
// driver keep them. A layer is known by its ChainID; it comes from a tar stream and goes out as the same bytes. On top of layers
// there are containers, which are writable, and holders: an image, the name of an image, a lease, anything that keeps layers.
//
// The package knows nothing of images beyond the data of their holders, of registries, or of how layers are mounted.
//
// # The directory
//
//	ROOT/lock                 whose lock is the store's; it names the process that has it, or says that the last one left no copy ahead
//	ROOT/driver               the name of the driver, for those who look
//	ROOT/db/                  the database
//	ROOT/records/*.json       a copy of each record of a layer, container, holder or snapshot
//	ROOT/layers/DRIVER/       the driver's home
//	ROOT/tarsplit/ID.zst      what is not content of a layer's stream (tar-split's form)
//	ROOT/tarsplit/ID.whole    a layer's stream as it came, where tree and headers do not give it again
//	ROOT/blobs/               of those who manage images
//	ROOT/run/DRIVER/          what does not outlive a boot
//	ROOT/unfinished/ID        a snapshot that is being made, changed or removed
//	ROOT/tmp/                 emptied at Open
//	ROOT/ballast              space that is given back when the disk is full, so that something can be removed
//
// # The database
//
// Keys and values of version 1 (kv.Options.Schema). Values are JSON, which people can read, and which is the same bytes in the
// copies; unknown fields are damage, so a change of them is a new version. There are some thousand records, each read in
// microseconds beside the milliseconds of a mount or a sync: a binary form would save nothing.
//
//	m                      {driver, old, to}: the store as a whole
//	l/CHAINID              Record of a layer
//	c/NAME                 Record of a container
//	h/KIND/KEY             Record of a holder
//	s/NAME                 Record of a snapshot
//	u/CHAINID/KIND/KEY     "1": a layer's user; KIND is "layer", "container", or that of a holder
//	w/DRIVER/ID            work: a driver's layer that is being made or removed
//
// A layer without any u/ is collected: at once when its last user goes, else by GC. The database is the truth. What it does
// not name is garbage; what it names and is not there is reported by Check. Should it be lost, Rebuild makes a new one of
// the copies: a copy is written before the record and removed after it, so it may be ahead by the operation that was interrupted,
// never behind (those of snapshots see below); the next Open brings it back. Keys of u/ follow from the records.
//
// # How a layer comes and goes
//
// What is made is first noted under w/, then made, then made durable (the files, the driver's Sync, the copy), and then one
// transaction takes the note away and puts the record in its place: that is the moment at which the layer exists. What is
// removed goes the other way: one transaction takes the records and puts notes in their place, then the driver removes, durably and
// the topmost first, then the notes go. So after a crash at any moment whatever w/ names is garbage, which Open removes, and all
// else is whole. If a commit fails so that nobody knows whether it is on disk, everything stays as it is until the next
// Open.
//
// A layer that is named and missing in the driver, or whose stream is missing, stays so until it is registered again; then it is
// made in its place, and what is above it is whole again. Until its content is durable a note says that what the driver has is
// garbage, and not what the database names.
//
// # Snapshots
//
// containerd makes layers by other means: it wants an empty writable one over a parent, fills it, and commits it under a name. It has
// no digest for them until later, or ever; it has a database of its own, and removes what it does not need any more. So a snapshot
// is a record beside those of layers, over another snapshot, in the same driver. Only the snapshotter's process makes and removes
// them; everything else in the store leaves them alone.
//
// As containerd makes two or three of them for each layer of an image, one costs one synced transaction, and no more: that a layer
// is being made or removed is noted by a file in ROOT/unfinished, which becomes the copy of its record, both without waiting for the
// disk. The copy follows the commit; should the process die between the two, Open makes it. After a power cut notes and copies may
// be missing, and Check tells of what came of that.
//
// What a process got from the driver for itself, to read a layer, is given back at the next Open if the process died. The
// references that stay are those of mounted containers, which their records count, and one of each active snapshot that
// MountSnapshot mounted, which goes when the snapshot is committed or removed.
//
// # Locks and phases
//
// One process has a store open; the lock is the kernel's and ends with the process. Within it:
//
//	gate                       every operation is inside; Migrate is alone; nobody after Close
//	  mounting, by name          a container's mounts
//	    containers, by name      a container's content: for reading while it is read, for writing while it is made or removed
//	  snapshots, by name         a snapshot, its copy and its mount; parents for reading
//	  flights, by ChainID        making one layer; who makes several begins with the lowest
//	    holders, by key          a holder and its copy; who needs several takes them in their order
//	      graph                  decisions: transactions that change who uses what, and pins
//	        removals.mu          what is being made and removed in the driver
//
// No content is read or written under graph; a transaction is (one sync). A layer that an operation needs is pinned, which
// keeps it as long as the process lives, without a record.
package layerdb
