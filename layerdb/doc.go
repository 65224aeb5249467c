// Package layerdb is the layer store: it records which layers, containers, holders and snapshots there are and what each needs, and
// leaves it to a driver to keep their content.
//
//   - A layer is immutable and known by its ChainID. It is made of a tar stream and goes out as the same bytes.
//   - A container is a writable layer under a name, over a layer.
//   - A holder keeps layers from being collected: an image, the name of an image, a lease.
//   - A snapshot is a tree under a name as containerd wants it, with or without content yet.
//
// The package does not know what an image is (its holder's data are opaque bytes), nor registries, nor how layers are mounted.
//
// # The directory
//
//	ROOT/lock                 locked by the process that has the store open, whose PID it holds; once that closed the store properly,
//	                          it says that all copies match their records
//	ROOT/driver               the name of the driver, for those who look
//	ROOT/db/                  the database
//	ROOT/records/*.json       a copy of each record of a layer, container, holder or snapshot
//	ROOT/layers/DRIVER/       the driver's home
//	ROOT/tarsplit/ID.zst      what is not content of a layer's stream (tar-split's form)
//	ROOT/tarsplit/ID.whole    a layer's stream as it came, where tree and headers do not give it again
//	ROOT/blobs/               files of package layerdb/image
//	ROOT/run/DRIVER/          what does not outlive a boot
//	ROOT/unfinished/ID        a snapshot that is being made, changed or removed
//	ROOT/tmp/                 emptied at Open
//	ROOT/ballast              space that is given back when the disk is full, so that something can be removed
//
// # The database
//
// These are keys and values of version 1 (kv.Options.Schema). Values are JSON: people can read them, and a copy has the same bytes.
// Unknown fields are damage, so new fields need a new version. A store has some thousand records, and reading one takes microseconds
// where a mount or a sync takes milliseconds: a binary form would save nothing.
//
//	m                      {driver, old, to}: the store as a whole
//	l/CHAINID              Record of a layer
//	c/NAME                 Record of a container
//	h/KIND/KEY             Record of a holder
//	s/NAME                 Record of a snapshot
//	u/CHAINID/KIND/KEY     "1": a layer's user; KIND is "layer", "container", or that of a holder
//	w/DRIVER/ID            work: a driver's layer that is being made or removed
//
// A layer without any u/ is collected: at once when its last user goes, else by GC. The keys of u/ follow from the records.
//
// The database is the truth: what it does not name is garbage, and what it names and is not there Check reports. If it is lost,
// Rebuild makes a new one of the copies. A copy is written before its record and removed after it, so after a crash it may be ahead
// of the record by the interrupted operation, but never behind (snapshots are another case, see below); the next Open makes
// them equal.
//
// # How a layer comes and goes
//
// To make a layer: note it under w/; make it; make it durable (its files, the driver's Sync, the copy); then replace the note by the
// record in one transaction, at which moment the layer exists. To remove layers: replace their records by notes in one transaction;
// have the driver remove them durably, the topmost first; then delete the notes. So after a crash at any moment, whatever w/ names is
// garbage, which Open removes, and all else is whole. If a commit fails in such a way that nobody knows whether it is on disk
// (commitError), everything stays as it is until the next Open.
//
// A layer that the database names, but whose content the driver lost, or whose stream is gone, is lost. Registering it again restores
// it in its place, and with it all layers above. Until its content is durable, a note (work.Restore) says that what the driver has of
// it is garbage.
//
// # Snapshots
//
// containerd asks for an empty writable layer over a parent, fills it, and commits it under a name. It knows no digest by then, has a
// database of its own, and itself removes what it does not need any more. So a snapshot is a record of another kind, over another
// snapshot, in the same driver. Only containerd's calls make and remove snapshots: GC and the references of layers ignore them.
//
// As containerd makes two or three snapshots for each layer of an image, each costs one synced transaction and nothing else that waits
// for the disk: a file in ROOT/unfinished notes that a snapshot is being made or removed, and becomes the copy of its record
// (snapshotnotes.go). The copy follows the commit; if the process dies between the two, Open makes it. After a power cut notes and
// copies may be missing; Check reports what is left.
//
// # References of the driver
//
// Driver.Get and Put count references, which outlive the process where mounts do. Those of mounted containers are counted in their
// records, and a snapshot that MountSnapshot mounted has one, until it is committed or removed. Whatever else a process got, to read a
// layer, is given back at once, or by the next Open if the process died.
//
// # Locks
//
// One process has a store open: ROOT/lock is locked by flock(2), which ends with the process. Within the process, locks are taken in
// this order; whoever needs several of one kind takes them in the order of their keys, or as said:
//
//	gate                   every operation is inside; Check (of names), Migrate and RemoveOld are alone; nobody enters after Close
//	mounting, by name      the mounts of a container
//	containers, by name    the content of a container: shared to read it, alone to make or remove the container
//	flights, by ChainID    making one layer; of several layers, the parents first
//	holders, by key        a holder and its copy
//	graph                  decisions: all transactions that change who uses what, and pins
//	removals.mu            which layers are being made and removed in the driver
//
// Snapshots take gate, then snapshots, by name (a snapshot, its copy and its mount; the parent shared), then graph and removals.mu.
//
// Under graph nothing blocks but one transaction and its sync; content is read and written outside. What an operation needs it pins
// under graph: a pinned layer is not collected as long as the pin and the process live. removals.enter waits for the removal of what
// is above a layer; it is never called under graph.
package layerdb
